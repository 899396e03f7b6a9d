//! Strategy 1 of the paper: T random tokens per node, and partitions from token to token.

use cartwheel_core::ring::RingError;

use super::cluster::{Bytes, Cluster, Placement, Strategy};
use super::tokens::{TOKEN_BYTES, Tokens};

/// Strategy 1.
#[derive(Debug)]
pub(super) struct First;

impl Strategy for First {
    fn name(&self) -> &'static str {
        "1 random tokens"
    }

    fn uses_tokens(&self) -> bool {
        true
    }

    fn uses_partitions(&self) -> bool {
        false
    }

    fn place(&self, cluster: &Cluster) -> Result<Placement, RingError> {
        Ok(between_tokens(&Tokens::draw(cluster), cluster.homes()))
    }

    fn bytes(&self, cluster: &Cluster) -> Result<Bytes, RingError> {
        Ok(Bytes { kept: cluster.weight() * u64::from(cluster.tokens) * TOKEN_BYTES, worked_out: 0 })
    }
}

/// A token's node and those after it hold what lies between the token before it and itself, itself included.
fn between_tokens(tokens: &Tokens, homes: usize) -> Placement {
    let mut placement = Placement::default();
    let mut start = Some(0);
    for (index, position) in tokens.positions().enumerate() {
        // Of two tokens at one position, nothing lies between them.
        let Some(from) = start.filter(|from| *from <= position) else { continue };
        placement.push(from, &tokens.walk(index, homes));
        start = position.checked_add(1);
    }
    if let Some(from) = start {
        placement.push(from, &tokens.walk(0, homes));
    }
    placement
}

#[cfg(test)]
mod tests {
    use super::super::cluster::CIRCLE;
    use super::*;

    #[test]
    fn a_node_owns_the_range_up_to_its_token() {
        let placement = between_tokens(&Tokens::at(vec![(9, 1), (19, 2), (29, 3)]), 2);
        let ranges: Vec<_> =
            placement.ranges().map(|(start, len, homes)| (start, len, homes.to_vec())).collect();
        assert_eq!(
            ranges,
            [(0, 10, vec![1, 2]), (10, 10, vec![2, 3]), (20, 10, vec![3, 1]), (30, CIRCLE - 30, vec![1, 2])]
        );
    }

    #[test]
    fn tokens_at_one_position_and_at_the_end_leave_no_gap() {
        let placement = between_tokens(&Tokens::at(vec![(0, 1), (9, 2), (9, 3), (u64::MAX, 4)]), 2);
        let ranges: Vec<_> =
            placement.ranges().map(|(start, len, homes)| (start, len, homes.to_vec())).collect();
        assert_eq!(ranges, [(0, 1, vec![1, 2]), (1, 9, vec![2, 3]), (10, CIRCLE - 10, vec![4, 1])]);
    }
}
