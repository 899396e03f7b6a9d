//! Random tokens on the circle, as strategies 1 and 2 of the paper have them.

use super::cluster::{Cluster, distinct};
use crate::sim::draw::Draw;

/// A token on the wire: eight bytes of position, two of node.
pub(super) const TOKEN_BYTES: u64 = 10;

/// Positions and their nodes, in order of the circle.
#[derive(Debug, Clone)]
pub(super) struct Tokens(Vec<(u64, u16)>);

impl Tokens {
    /// T tokens per unit of weight for each node; they depend on the seed and the node alone.
    pub(super) fn draw(cluster: &Cluster) -> Self {
        let mut tokens = Vec::new();
        for node in &cluster.nodes {
            let mut draw = Draw::new(cluster.seed, u64::from(node.number));
            tokens.extend((0..cluster.tokens * node.weight).map(|_| (draw.next(), node.number)));
        }
        Self::at(tokens)
    }

    /// These tokens, in any order.
    pub(super) fn at(mut tokens: Vec<(u64, u16)>) -> Self {
        tokens.sort_unstable();
        Self(tokens)
    }

    /// The positions, ascending.
    pub(super) fn positions(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(|(position, _)| *position)
    }

    /// Which token lies first at or after a position; after the last one, the walk goes on at the first.
    pub(super) fn at_or_after(&self, position: u64) -> usize {
        let index = self.0.partition_point(|(at, _)| *at < position);
        if index == self.0.len() { 0 } else { index }
    }

    /// The first `count` distinct nodes clockwise from a token, its own first. Zones don't matter to the walk.
    pub(super) fn walk(&self, from: usize, count: usize) -> Vec<u16> {
        let (before, after) = self.0.split_at(from.min(self.0.len()));
        distinct(after.iter().chain(before).map(|(_, node)| *node), count)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::Node;
    use super::*;

    #[test]
    fn a_walk_goes_around() {
        let tokens = Tokens::at(vec![(30, 1), (10, 1), (20, 2), (40, 3)]);
        assert_eq!(tokens.positions().collect::<Vec<_>>(), [10, 20, 30, 40]);
        assert_eq!((tokens.at_or_after(20), tokens.at_or_after(21), tokens.at_or_after(41)), (1, 2, 0));
        assert_eq!(tokens.walk(2, 2), [1, 3]);
        assert_eq!(tokens.walk(3, 3), [3, 1, 2]);
        assert_eq!(tokens.walk(0, 9), [1, 2, 3]);
    }

    #[test]
    fn tokens_follow_weights_and_stay_when_others_come() {
        let node = |number, weight| Node { number, weight, zone: 0 };
        let cluster =
            Cluster { nodes: vec![node(0, 1), node(1, 3)], replicas: 2, tokens: 4, partitions: 1, seed: 5 };
        let before = Tokens::draw(&cluster).0;
        assert_eq!(before.iter().filter(|(_, node)| *node == 1).count(), 12);
        let mut after = Tokens::draw(&cluster.with(node(2, 1))).0;
        after.retain(|(_, node)| *node != 2);
        assert_eq!(before, after);
    }
}
