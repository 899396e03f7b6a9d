//! What holds of every change that an operator can make, over random clusters: the settled placement is the one that
//! was planned, a cancelled change leaves nothing behind, and no plan moves less than the least.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use cartwheel_core::names::NodeId;
use cartwheel_core::ring::change::{Edit, Known, edit};
use cartwheel_core::ring::plan::plan;
use cartwheel_core::ring::{Change, Member, MemberState, Ring, RingDocument};
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::RngSeed;

fn id(number: usize) -> NodeId {
    NodeId::new(&format!("n{number:02}")).unwrap()
}

fn changed() -> Change {
    Change { at_ms: 0, by: "test".to_owned(), what: "changed".to_owned() }
}

fn clusters() -> impl Strategy<Value = RingDocument> {
    let members = prop::collection::vec((0..4_u64, 1..=10_u32), 1..=10);
    (any::<u64>(), 0..=7_u32, 1..=5_u32, members).prop_map(|(seed, bits, replicas, members)| {
        let members = members.into_iter().enumerate().map(|(i, (zone, weight))| Member {
            id: id(i),
            address: format!("h:{i}"),
            zone: format!("z{zone}"),
            weight,
            state: MemberState::Active,
            becomes: None,
            dead: false,
        });
        let n = "n".to_owned();
        RingDocument::found("t".to_owned(), seed, 1 << bits, 8, replicas, members.collect(), changed(), n)
            .unwrap()
    })
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let one = (0..6_u8, 0..12_usize, 0..5_u64, 1..=12_u32).prop_map(|(kind, who, zone, weight)| {
        let (id, zone) = (id(who), format!("z{zone}"));
        match kind {
            0 => Edit::Join { id, address: "h:1".to_owned(), zone, weight },
            1 => Edit::Leave { id },
            2 => Edit::Weight { id, weight },
            3 => Edit::Zone { id, zone },
            4 => Edit::Forget { id },
            _ => Edit::Cancel,
        }
    });
    prop::collection::vec(one, 1..=4)
}

/// Edits one by one as far as they are taken.
fn taken(doc: &RingDocument, edits: &[Edit], known: Known<'_>) -> Vec<Edit> {
    let mut taken: Vec<Edit> = Vec::new();
    for one in edits {
        taken.push(one.clone());
        if edit(doc, &taken, known, changed(), "n".to_owned()).is_err() {
            taken.pop();
        }
    }
    taken
}

fn slots(ring: &Ring) -> BTreeMap<NodeId, u64> {
    ring.members().iter().map(|m| (m.id.clone(), ring.partitions_of(&m.id).len() as u64)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000, failure_persistence: None, rng_seed: RngSeed::Fixed(17), ..ProptestConfig::default()
    })]

    #[test]
    fn changes_keep_their_word(doc in clusters(), wanted in edits(), more in edits(), down in any::<u16>(), copy in any::<bool>()) {
        let alive = |node: &NodeId| (0..12).any(|i| id(i) == *node && down & (1 << i) == 0);
        let known = Known { alive: &alive, force: false };
        let wanted = taken(&doc, &wanted, known);
        if wanted.is_empty() {
            return Ok(());
        }
        let pending = edit(&doc, &wanted, known, changed(), "n".to_owned()).unwrap();
        prop_assert_eq!(pending.version, doc.version + 1);
        prop_assert_eq!(&RingDocument::parse(&pending.to_json()).unwrap(), &pending);
        // Whoever comes while a cluster forms is a member at once.
        if pending.has_pending_change() && !doc.is_forming() {
            let places = |doc: &RingDocument| {
                let ring = Ring::current(doc);
                (0..doc.partitions).map(|p| ring.homes(p).to_vec()).collect::<Vec<_>>()
            };
            prop_assert_eq!(places(&pending), places(&doc), "nothing moves before it is copied");
            let back = edit(&pending, &[Edit::Cancel], known, changed(), "n".to_owned()).unwrap();
            prop_assert_eq!(&back.members, &doc.members);
            prop_assert_eq!(Ring::current(&back), Ring::current(&doc));
        }

        // On the way, members may be forgotten; the rest has to wait.
        let on_the_way = if copy { pending.with_copied(changed(), "n".to_owned()).unwrap() } else { pending };
        let more: Vec<Edit> = more.into_iter().filter(|e| matches!(e, Edit::Forget { .. })).collect();
        let more = taken(&on_the_way, &more, known);
        let last = if more.is_empty() {
            on_the_way.clone()
        } else {
            edit(&on_the_way, &more, known, changed(), "n".to_owned()).unwrap()
        };
        prop_assert_eq!(last.copied, on_the_way.copied);
        if last.copied {
            let homes = |ring: Ring| (0..doc.partitions).map(|p| ring.homes(p).to_vec()).collect::<Vec<_>>();
            prop_assert_eq!(homes(Ring::next(&last)), homes(Ring::next(&on_the_way)), "what is read from stays");
        }
        let settled = last.settled(changed(), "n".to_owned()).unwrap();
        prop_assert_eq!(Ring::current(&settled), Ring::next(&last));
        prop_assert!(settled.members.iter().all(|m| m.becomes.is_none()));
        prop_assert!(!settled.has_pending_change() || settled.members.iter().any(|m| m.dead));

        // Forgetting ends, however many died on the way.
        let ended = settled.settled(changed(), "n".to_owned()).unwrap();
        prop_assert!(!ended.has_pending_change());
        prop_assert!(ended.members.len() >= last.must_be_ready().count());
    }

    #[test]
    fn no_plan_moves_less_than_the_least(doc in clusters(), wanted in edits(), down in any::<u16>()) {
        let alive = |node: &NodeId| (0..12).any(|i| id(i) == *node && down & (1 << i) == 0);
        let known = Known { alive: &alive, force: true };
        let wanted = taken(&doc, &wanted, known);
        if wanted.is_empty() {
            return Ok(());
        }
        let after = edit(&doc, &wanted, known, changed(), "n".to_owned()).unwrap();
        let plan = plan(&doc, &after, &BTreeMap::new(), &alive);
        prop_assert!(plan.slots_moved >= plan.least_moved, "{plan:?}");
        let gained: u64 = plan.members.iter().map(|m| u64::from(m.gained)).sum();
        prop_assert_eq!(gained, plan.slots_moved);
        let (old, new) = (slots(&Ring::current(&doc)), slots(&Ring::next(&after)));
        for member in &plan.members {
            let of = |slots: &BTreeMap<NodeId, u64>| slots.get(&member.id).copied().unwrap_or(0);
            prop_assert_eq!(u64::from(member.slots.before), of(&old));
            prop_assert_eq!(u64::from(member.slots.after), of(&new));
            prop_assert_eq!(of(&old) + u64::from(member.gained), of(&new) + u64::from(member.lost));
        }
        for step in &plan.steps {
            prop_assert!(step.newly_below <= step.below_quorum);
            prop_assert!(step.least_to_write <= doc.replicas && step.least_to_read <= doc.replicas);
        }
    }
}
