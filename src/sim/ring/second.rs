//! Strategy 2 of the paper: T random tokens per node, and Q equal partitions.

use cartwheel_core::ring::RingError;

use super::cluster::{Bytes, Cluster, Placement, Strategy, partition_start};
use super::tokens::{TOKEN_BYTES, Tokens};

/// Strategy 2.
#[derive(Debug)]
pub(super) struct Second;

impl Strategy for Second {
    fn name(&self) -> &'static str {
        "2 tokens, equal partitions"
    }

    fn uses_tokens(&self) -> bool {
        true
    }

    fn uses_partitions(&self) -> bool {
        true
    }

    fn place(&self, cluster: &Cluster) -> Result<Placement, RingError> {
        Ok(from_the_end(&Tokens::draw(cluster), cluster.partitions, cluster.homes()))
    }

    fn bytes(&self, cluster: &Cluster) -> Result<Bytes, RingError> {
        Ok(Bytes { kept: cluster.weight() * u64::from(cluster.tokens) * TOKEN_BYTES, worked_out: 0 })
    }
}

/// A partition is held by the first distinct nodes clockwise from its end.
fn from_the_end(tokens: &Tokens, partitions: u32, homes: usize) -> Placement {
    let mut placement = Placement::default();
    for partition in 0..partitions {
        // The end of the last partition is the beginning of the circle.
        let end = partition_start((partition + 1) % partitions, partitions);
        let nodes = tokens.walk(tokens.at_or_after(end), homes);
        placement.push(partition_start(partition, partitions), &nodes);
    }
    placement
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_go_to_the_nodes_after_their_end() {
        let quarter = 1_u64 << 62;
        // One token inside the first quarter, one exactly at its end, one in the last quarter.
        let tokens = Tokens::at(vec![(5, 1), (quarter, 2), (3 * quarter + 1, 3)]);
        let placement = from_the_end(&tokens, 4, 2);
        let homes: Vec<_> = placement.ranges().map(|(_, length, homes)| (length, homes.to_vec())).collect();
        let quarter = u128::from(quarter);
        assert_eq!(
            homes,
            [(quarter, vec![2, 3]), (quarter, vec![3, 1]), (quarter, vec![3, 1]), (quarter, vec![1, 2])]
        );
    }
}
