//! What holds of every placement: distinct homes in walk order, zones apart, quotas kept, and little moved
//! when a node comes or goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Change, Member, MemberState, Ring, RingDocument};
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::RngSeed;

fn member(number: u64, zone: u64, weight: u32, state: MemberState) -> Member {
    Member {
        id: NodeId::new(&format!("n{number:x}")).unwrap(),
        address: format!("n{number:x}.test:7000"),
        zone: format!("z{zone}"),
        weight,
        state,
        becomes: None,
        dead: false,
    }
}

fn found(hash_seed: u64, partitions: u32, replicas: u32, members: Vec<Member>) -> RingDocument {
    let changed = Change { at_ms: 0, by: "test".to_owned(), what: "founded".to_owned() };
    RingDocument::found(
        "test".to_owned(),
        hash_seed,
        partitions,
        64,
        replicas,
        members,
        changed,
        "n".to_owned(),
    )
    .unwrap()
}

/// `count` members of weight 1 spread over `zones`; ids follow from `seed`.
fn equal(seed: u64, count: u64, zones: u64) -> Vec<Member> {
    (0..count).map(|i| member(seed * 1000 + i, i % zones, 1, MemberState::Active)).collect()
}

fn homes_by_id(ring: &Ring) -> BTreeSet<(u32, NodeId)> {
    (0..ring.partitions())
        .flat_map(|p| ring.homes(p).iter().map(move |node| (p, ring.member(*node).unwrap().id.clone())))
        .collect()
}

/// The smallest number of homes per zone that still gives each partition all its homes, by counting.
fn zone_limit(ring: &Ring) -> usize {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for member in ring.members() {
        *sizes.entry(&member.zone).or_default() += 1;
    }
    let fits = |limit: usize| sizes.values().map(|size| limit.min(*size)).sum::<usize>() >= ring.replicas();
    (1..8).find(|limit| fits(*limit)).unwrap()
}

fn clusters() -> impl Strategy<Value = RingDocument> {
    let members = prop::collection::vec((0..4_u64, 1..=10_u32, 0..3_u8), 1..=14);
    (any::<u64>(), 0..=8_u32, 1..=7_u32, members).prop_map(|(seed, bits, replicas, members)| {
        let members = (0..).zip(members).map(|(i, (zone, weight, state))| {
            let state = [MemberState::Active, MemberState::Joining, MemberState::Leaving][usize::from(state)];
            member(i, zone, weight, state)
        });
        found(seed, 1 << bits, replicas, members.collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200, failure_persistence: None, rng_seed: RngSeed::Fixed(4), ..ProptestConfig::default()
    })]

    #[test]
    fn every_partition_has_its_homes(doc in clusters()) {
        for ring in [Ring::current(&doc), Ring::next(&doc)] {
            prop_assert_eq!(ring.replicas(), ring.members().len().min(doc.replicas as usize));
            let limit = if ring.members().is_empty() { 0 } else { zone_limit(&ring) };
            for partition in 0..ring.partitions() {
                let (homes, walk) = (ring.homes(partition), ring.walk(partition));
                prop_assert_eq!(homes.len(), ring.replicas());
                let distinct: BTreeSet<_> = walk.iter().collect();
                prop_assert_eq!(distinct.len(), ring.members().len());
                let in_walk_order: Vec<_> = walk.iter().copied().filter(|n| homes.contains(n)).collect();
                prop_assert_eq!(homes, in_walk_order);
                for home in homes {
                    let zone = &ring.member(*home).unwrap().zone;
                    let same = homes.iter().filter(|n| ring.member(**n).unwrap().zone == *zone).count();
                    prop_assert!(same <= limit, "{same} homes in zone {zone}, limit {limit}");
                }
            }
            let slots: u64 = ring.shares().iter().map(|share| u64::from(share.slots)).sum();
            prop_assert_eq!(slots, u64::from(ring.partitions()) * ring.replicas() as u64);
            for share in ring.shares() {
                prop_assert!(share.slots <= ring.partitions());
                // No more than the fair share rounded up (itself known to a thousandth).
                prop_assert!(u64::from(share.slots) * 1000 <= share.fair_milli + 1000, "{share:?}");
            }
        }
    }

    #[test]
    fn the_document_alone_decides(doc in clusters()) {
        let again = RingDocument::parse(&doc.to_json()).unwrap();
        prop_assert_eq!(Ring::current(&again), Ring::current(&doc));
        let reversed = doc.members.iter().rev().cloned().collect();
        let reversed = found(doc.hash_seed, doc.partitions, doc.replicas, reversed);
        prop_assert_eq!(Ring::current(&reversed), Ring::current(&doc));
        let settled = doc.settled(doc.changed.clone(), "n".to_owned()).unwrap();
        prop_assert_eq!(Ring::current(&settled), Ring::next(&doc));
    }

    #[test]
    fn a_key_prefers_its_homes_then_everyone_else_once(doc in clusters(), hash in any::<u128>()) {
        let ring = Ring::next(&doc);
        let list = ring.preference_list(KeyHash(hash));
        let homes: BTreeSet<_> = ring.homes(list.partition()).iter().copied().collect();
        prop_assert_eq!(&homes, &list.homes().iter().copied().collect());
        let mut all = list.homes().to_vec();
        all.extend(ring.fallbacks(KeyHash(hash)));
        prop_assert_eq!(all.len(), ring.members().len());
        prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        for member in ring.members() {
            let is_home = list.is_home(ring.index_of(&member.id).unwrap());
            prop_assert_eq!(ring.partitions_of(&member.id).contains(&list.partition()), is_home);
        }
    }
}

/// Thirty equal nodes with random ids, ten in each of three zones.
fn thirty(hash_seed: u64, ids: &BTreeSet<u32>, partitions: u32) -> Ring {
    let members = ids.iter().zip(0..).map(|(id, i)| member(u64::from(*id), i % 3, 1, MemberState::Active));
    Ring::current(&found(hash_seed, partitions, 3, members.collect()))
}

/// Every partition has a home in each of three zones.
fn zones_are_apart(ring: &Ring) -> bool {
    let zones =
        |partition| ring.homes(partition).iter().map(|node| ring.member(*node).unwrap().zone.as_str());
    (0..ring.partitions()).all(|partition| zones(partition).collect::<BTreeSet<_>>().len() == 3)
}

// 768 slots for thirty nodes are 25.6 each, and nobody holds more than 26: 0.985 in thousandths, the most that whole
// slots allow. With Q = 1024 it is 102.4 of 103: 0.994.
proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000, failure_persistence: None, rng_seed: RngSeed::Fixed(30), ..ProptestConfig::default()
    })]

    #[test]
    fn thirty_nodes_in_three_zones_share_256_partitions_evenly(
        seed in any::<u64>(),
        ids in prop::collection::btree_set(any::<u32>(), 30),
    ) {
        let ring = thirty(seed, &ids, 256);
        prop_assert!(ring.efficiency_permille() >= 985, "{}", ring.efficiency_permille());
        prop_assert!(zones_are_apart(&ring));
    }

    #[test]
    fn thirty_nodes_in_three_zones_share_1024_partitions_evenly(
        seed in any::<u64>(),
        ids in prop::collection::btree_set(any::<u32>(), 30),
    ) {
        let ring = thirty(seed, &ids, 1024);
        prop_assert!(ring.efficiency_permille() >= 990, "{}", ring.efficiency_permille());
        prop_assert!(zones_are_apart(&ring));
    }
}

#[test]
fn load_is_as_even_as_whole_slots_allow() {
    for (nodes, partitions, zones, efficiency) in
        [(30, 256, 1, 985), (30, 256, 3, 985), (30, 1024, 1, 990), (30, 1024, 3, 990), (7, 256, 1, 990)]
    {
        for seed in 0..4 {
            let ring = Ring::current(&found(seed, partitions, 3, equal(seed, nodes, zones)));
            let found = ring.efficiency_permille();
            assert!(found >= efficiency, "{nodes} nodes, {zones} zones, seed {seed}: {found}");
        }
    }
}

#[test]
fn slots_follow_weights() {
    for seed in 0..4 {
        let members = [1, 2, 3, 5, 1, 2, 3, 5, 1, 2].into_iter().zip(0..);
        let members = members.map(|(weight, i)| member(i, 0, weight, MemberState::Active));
        let ring = Ring::current(&found(seed, 1024, 3, members.collect()));
        for (member, share) in ring.members().iter().zip(ring.shares()) {
            // 3 × 1024 slots over a total weight of 25.
            let fair = u64::from(member.weight) * 3 * 1024 * 1000 / 25;
            assert!(share.fair_milli.abs_diff(fair) <= 1, "{member:?}: {share:?}");
            assert!(u64::from(share.slots) <= fair.div_ceil(1000), "{member:?}: {share:?}");
        }
    }
}

#[test]
fn a_heavy_node_and_a_heavy_zone_hold_each_partition_once() {
    let mut members = equal(1, 5, 5);
    members[0].weight = 1000;
    let ring = Ring::current(&found(9, 256, 3, members));
    assert_eq!(ring.shares()[0].slots, 256);
    assert!(ring.shares()[1..].iter().all(|s| s.slots == 128), "{:?}", ring.shares());

    // Zone 0 has six of eight nodes, and still one replica of each partition.
    let mut members = equal(2, 8, 1);
    members[6].zone = "z1".to_owned();
    members[7].zone = "z2".to_owned();
    let ring = Ring::current(&found(9, 256, 3, members));
    assert_eq!(ring.shares()[..6].iter().map(|s| s.slots).sum::<u32>(), 256);
    assert!(ring.shares()[..6].iter().all(|s| s.slots <= 43), "{:?}", ring.shares());
}

/// A leave is a join read backwards, so one measure serves both.
#[test]
fn a_node_that_joins_moves_little_beyond_its_own_share() {
    // Nodes before, Q, zones, and the most slots moved per hundred that the new node takes, on average.
    for (nodes, partitions, zones, most) in [
        (4, 256, 1, 115),
        (5, 256, 1, 115),
        (10, 256, 1, 125),
        (5, 256, 3, 105),
        (9, 256, 3, 115),
        (30, 1024, 3, 135),
        (30, 256, 1, 170),
    ] {
        let (mut moved, mut taken) = (0, 0);
        for seed in 0..12 {
            let before = Ring::current(&found(seed, partitions, 3, equal(seed, nodes, zones)));
            let after = Ring::current(&found(seed, partitions, 3, equal(seed, nodes + 1, zones)));
            moved += homes_by_id(&after).difference(&homes_by_id(&before)).count();
            taken += after.partitions_of(&NodeId::new(&format!("n{:x}", seed * 1000 + nodes)).unwrap()).len();
        }
        let found = moved * 100 / taken;
        assert!(found >= 100 && found <= most, "{nodes} nodes, Q {partitions}, {zones} zones: {found}");
    }
}
