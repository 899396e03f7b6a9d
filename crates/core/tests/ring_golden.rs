//! Golden vectors: a document has one placement, on every platform and in every version of this code.
//! A change that alters a value here moves data in every cluster there is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use cartwheel_core::hash::{KeyHash, checksum};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Change, Member, MemberState, Ring, RingDocument};

fn member(id: &str, zone: &str, weight: u32) -> Member {
    Member {
        id: NodeId::new(id).unwrap(),
        address: format!("{id}.test:7000"),
        zone: zone.to_owned(),
        weight,
        state: MemberState::Active,
        becomes: None,
        dead: false,
    }
}

fn document(hash_seed: u64, members: Vec<Member>) -> RingDocument {
    let changed = Change { at_ms: 0, by: "golden".to_owned(), what: "founded".to_owned() };
    RingDocument::found("golden".to_owned(), hash_seed, 256, 64, 3, members, changed, "n".to_owned()).unwrap()
}

fn owners_checksum(ring: &Ring) -> String {
    let table: Vec<u8> =
        (0..ring.partitions()).flat_map(|p| ring.homes(p)).flat_map(|node| node.to_be_bytes()).collect();
    format!("{:016x}", checksum(&table))
}

fn walks_checksum(ring: &Ring) -> String {
    let table: Vec<u8> =
        (0..ring.partitions()).flat_map(|p| ring.walk(p)).flat_map(|node| node.to_be_bytes()).collect();
    format!("{:016x}", checksum(&table))
}

fn slots(ring: &Ring) -> Vec<u32> {
    ring.shares().iter().map(|share| share.slots).collect()
}

fn ids(ring: &Ring, partition: u32) -> String {
    let names: Vec<&str> =
        ring.homes(partition).iter().map(|node| ring.member(*node).unwrap().id.as_str()).collect();
    names.join(" ")
}

#[test]
fn three_nodes_without_zones() {
    let nodes = ["node-a", "node-b", "node-c"].map(|id| member(id, "z", 1)).to_vec();
    let ring = Ring::current(&document(0x0123_4567_89ab_cdef, nodes));
    assert_eq!(slots(&ring), [256, 256, 256]);
    assert_eq!(
        [0, 1, 128, 255].map(|p| ids(&ring, p)),
        ["node-a node-b node-c", "node-b node-a node-c", "node-a node-b node-c", "node-b node-a node-c"]
    );
    assert_eq!(
        (owners_checksum(&ring).as_str(), walks_checksum(&ring).as_str()),
        ("2f7f181186c514d9", "2f7f181186c514d9")
    );
}

#[test]
fn five_nodes_in_three_zones_with_weights() {
    let nodes = vec![
        member("node-a", "z1", 1),
        member("node-b", "z1", 2),
        member("node-c", "z2", 1),
        member("node-d", "z2", 1),
        member("node-e", "z3", 3),
    ];
    let ring = Ring::current(&document(42, nodes));
    assert_eq!(slots(&ring), [85, 171, 128, 128, 256]);
    assert_eq!(
        [0, 1, 128, 255].map(|p| ids(&ring, p)),
        ["node-b node-e node-c", "node-e node-b node-c", "node-b node-c node-e", "node-e node-b node-c"]
    );
    assert_eq!(
        (owners_checksum(&ring).as_str(), walks_checksum(&ring).as_str()),
        ("e606076b08f88763", "fa626da524113b49")
    );
}

#[test]
fn thirty_nodes() {
    let nodes = (0..30).map(|i| member(&format!("node-{i:02}"), "z", 1)).collect();
    let ring = Ring::current(&document(u64::MAX, nodes));
    assert_eq!(ring.efficiency_permille(), 985);
    assert_eq!(
        [0, 1, 128, 255].map(|p| ids(&ring, p)),
        [
            "node-05 node-17 node-06",
            "node-11 node-14 node-23",
            "node-15 node-16 node-05",
            "node-19 node-01 node-03"
        ]
    );
    assert_eq!(
        (owners_checksum(&ring).as_str(), walks_checksum(&ring).as_str()),
        ("da0aa73e5c034233", "8007c8d940e15a09")
    );
}

/// Zones of unlike sizes and N = 7: the walk dead-ends here, so this holds the chains of moves still too.
#[test]
fn fourteen_nodes_in_four_uneven_zones() {
    let zones = [0, 1, 2, 3, 3, 2, 3, 0, 0, 1, 3, 3, 3, 1];
    let weights = [3, 1, 7, 2, 5, 1, 1, 4, 9, 2, 6, 1, 3, 8];
    let nodes =
        (0..14).map(|i| member(&format!("node-{i:02}"), &format!("z{}", zones[i]), weights[i])).collect();
    let mut doc = document(99, nodes);
    doc.replicas = 7;
    let ring = Ring::current(&doc);
    assert_eq!(slots(&ring), [110, 64, 256, 57, 143, 64, 29, 147, 255, 128, 168, 29, 86, 256]);
    assert_eq!(
        [0, 255].map(|p| ids(&ring, p)),
        [
            "node-08 node-04 node-13 node-10 node-01 node-02 node-00",
            "node-13 node-02 node-12 node-03 node-08 node-00 node-05"
        ]
    );
    assert_eq!(
        (owners_checksum(&ring).as_str(), walks_checksum(&ring).as_str()),
        ("7f5647dd6a7ade50", "c251ef63459616ea")
    );
}

/// One member joins and one leaves; the placement of now and the one to come, before and after it is settled.
#[test]
fn a_pending_change_has_two_placements() {
    let mut nodes: Vec<Member> =
        (0..7).map(|i| member(&format!("node-{i}"), &format!("z{}", i % 3), 1 + i % 2)).collect();
    nodes[2].state = MemberState::Leaving;
    nodes[6].state = MemberState::Joining;
    let doc = document(0xfeed_beef, nodes);
    let (now, then) = (Ring::current(&doc), Ring::next(&doc));
    assert_eq!(slots(&now), [86, 171, 85, 170, 85, 171]);
    assert_eq!(slots(&then), [64, 171, 128, 85, 256, 64]);
    assert_eq!(
        [0, 1, 128, 255].map(|p| ids(&now, p)),
        ["node-3 node-4 node-2", "node-3 node-4 node-2", "node-2 node-0 node-1", "node-1 node-2 node-3"]
    );
    assert_eq!(
        [0, 1, 128, 255].map(|p| ids(&then, p)),
        ["node-6 node-4 node-5", "node-6 node-4 node-5", "node-0 node-1 node-5", "node-1 node-3 node-5"]
    );
    assert_eq!(
        [&now, &then].map(|ring| (owners_checksum(ring), walks_checksum(ring))),
        [("504cdf1475ca23be", "c68f61f5b9893edd"), ("93dcf7b8b23b27ef", "678ba7d2714c4618")]
            .map(|(owners, walks)| (owners.to_owned(), walks.to_owned()))
    );
    let settled = doc.settled(doc.changed.clone(), "n".to_owned()).unwrap();
    assert_eq!(Ring::current(&settled), then);
}

#[test]
fn a_key_starts_at_one_of_its_homes_and_falls_back_along_the_walk() {
    let nodes = (0..6).map(|i| member(&format!("node-{i}"), &format!("z{}", i % 3), 1)).collect();
    let ring = Ring::current(&document(7, nodes));
    let hash = KeyHash(0x8000_0000_0000_0000_0000_0000_0000_0001);
    let list = ring.preference_list(hash);
    assert_eq!(list.partition(), 128);
    assert_eq!(ring.homes(128), [2, 4, 3]);
    assert_eq!(list.homes(), [4, 3, 2]);
    assert_eq!(ring.fallbacks(hash), [5, 0, 1]);
}
