//! Cartwheel's own placement: core's [`Ring`] of a ring document, as a running cluster would work it out.

use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Change, Member, MemberState, Ring, RingDocument, RingError};

use super::cluster::{Bytes, Cluster, Node, Placement, Strategy, partition_start};
use crate::sim::draw::Draw;

/// The stream of the cluster's hash seed, apart from every node's.
const HASH_SEED: u64 = 1 << 33;
/// An entry of the placement's tables: a node.
const ENTRY_BYTES: u64 = 2;

/// The placement of this project.
#[derive(Debug)]
pub(super) struct Ours;

impl Strategy for Ours {
    fn name(&self) -> &'static str {
        "Cartwheel"
    }

    fn uses_tokens(&self) -> bool {
        true
    }

    fn uses_partitions(&self) -> bool {
        true
    }

    fn place(&self, cluster: &Cluster) -> Result<Placement, RingError> {
        let ring = Ring::current(&document(cluster)?);
        // Members are sorted by id, and ids by number: an index stands for the node at the same place.
        let number =
            |index: &u16| cluster.nodes.get(usize::from(*index)).map_or(u16::MAX, |node| node.number);
        let mut placement = Placement::default();
        for partition in 0..ring.partitions() {
            let homes: Vec<u16> = ring.homes(partition).iter().map(number).collect();
            placement.push(partition_start(partition, ring.partitions()), &homes);
        }
        Ok(placement)
    }

    fn bytes(&self, cluster: &Cluster) -> Result<Bytes, RingError> {
        let kept = document(cluster)?.to_json().len() as u64;
        // For each partition its homes, and its walk over all members, in which fallbacks are found.
        let entries = u64::from(cluster.partitions) * (cluster.homes() + cluster.nodes.len()) as u64;
        Ok(Bytes { kept, worked_out: entries * ENTRY_BYTES })
    }
}

/// The ring document of a cluster.
pub(super) fn document(cluster: &Cluster) -> Result<RingDocument, RingError> {
    let members = cluster.nodes.iter().map(member).collect::<Result<Vec<Member>, RingError>>()?;
    let changed = Change { at_ms: 0, by: "sim".to_owned(), what: "founded for a simulation".to_owned() };
    RingDocument::found(
        "simulated".to_owned(),
        Draw::new(cluster.seed, HASH_SEED).next(),
        cluster.partitions,
        cluster.tokens,
        u32::try_from(cluster.replicas).unwrap_or(u32::MAX),
        members,
        changed,
        "simulated".to_owned(),
    )
}

fn member(node: &Node) -> Result<Member, RingError> {
    let name = format!("node-{:04}", node.number);
    // Such a name is always a node id; the error is there so that nothing can panic.
    let id = NodeId::new(&name).map_err(|error| RingError::Json(error.to_string()))?;
    Ok(Member {
        id,
        address: format!("10.0.{}.{}:7070", node.number >> 8, node.number & 0xff),
        zone: format!("zone-{}", node.zone),
        weight: node.weight,
        state: MemberState::Active,
        becomes: None,
        dead: false,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cluster(numbers: &[u16]) -> Cluster {
        let nodes = numbers.iter().map(|n| Node { number: *n, weight: 1, zone: n % 3 }).collect();
        Cluster { nodes, replicas: 3, tokens: 64, partitions: 256, seed: 1 }
    }

    #[test]
    fn it_is_the_ring_of_the_document() {
        let cluster = cluster(&[0, 2, 3, 4, 7, 10, 100]);
        let placement = Ours.place(&cluster).unwrap();
        let ring = Ring::current(&document(&cluster).unwrap());
        assert_eq!(placement.ranges().count(), 256);
        for (partition, (start, length, homes)) in (0..).zip(placement.ranges()) {
            let names: Vec<String> = homes.iter().map(|number| format!("node-{number:04}")).collect();
            let expected: Vec<&str> =
                ring.homes(partition).iter().map(|n| ring.member(*n).unwrap().id.as_str()).collect();
            assert_eq!(names, expected);
            assert_eq!((start, length), (u64::from(partition) << 56, 1 << 56));
        }
    }

    #[test]
    fn bytes_are_those_of_the_document_and_of_the_tables() {
        let cluster = cluster(&[0, 1, 2, 3]);
        let bytes = Ours.bytes(&cluster).unwrap();
        assert_eq!(bytes.worked_out, 256 * (3 + 4) * 2);
        assert_eq!(bytes.kept, document(&cluster).unwrap().to_json().len() as u64);
    }

    #[test]
    fn limits_of_the_document_are_named() {
        let mut cluster = cluster(&[0, 1, 2, 3]);
        cluster.replicas = 8;
        assert_eq!(
            Ours.place(&cluster).unwrap_err().to_string(),
            "ring document: replicas is 8; it must be 1 to 7"
        );
    }
}
