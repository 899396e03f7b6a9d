//! Strategy 3 of the paper: Q equal partitions, and Q/S of their tokens for each of S nodes.

use std::collections::BTreeMap;

use cartwheel_core::ring::RingError;

use super::cluster::{Bytes, Cluster, Node, Placement, Strategy, distinct, partition_start};
use crate::sim::draw::Draw;

/// An entry of the table of partitions: the node that has the partition's token.
const OWNER_BYTES: u64 = 2;
/// The stream of a new cluster's shuffle, apart from every node's.
const SHUFFLE: u64 = 1 << 32;
/// The stream of what moves at a change.
const CHANGE: u64 = (1 << 32) + 1;

/// Strategy 3. A node that joins steals tokens at random from those that have more than their share; those of
/// one that leaves go at random to nodes that have less.
#[derive(Debug)]
pub(super) struct Third;

impl Strategy for Third {
    fn name(&self) -> &'static str {
        "3 Q/S tokens, equal partitions"
    }

    fn uses_tokens(&self) -> bool {
        false
    }

    fn uses_partitions(&self) -> bool {
        true
    }

    fn place(&self, cluster: &Cluster) -> Result<Placement, RingError> {
        Ok(placement(&owners(cluster), cluster.homes()))
    }

    fn change(&self, from: &Cluster, to: &Cluster) -> Result<Placement, RingError> {
        let mut owners = owners(from);
        rebalance(&mut owners, &to.nodes, &mut Draw::new(to.seed, CHANGE));
        Ok(placement(&owners, to.homes()))
    }

    fn bytes(&self, cluster: &Cluster) -> Result<Bytes, RingError> {
        Ok(Bytes { kept: u64::from(cluster.partitions) * OWNER_BYTES, worked_out: 0 })
    }
}

fn owners(cluster: &Cluster) -> Vec<u16> {
    let quotas = quotas(&cluster.nodes, cluster.partitions as usize, &BTreeMap::new());
    let mut owners: Vec<u16> =
        quotas.iter().flat_map(|(node, quota)| std::iter::repeat_n(*node, *quota)).collect();
    Draw::new(cluster.seed, SHUFFLE).shuffle(&mut owners);
    owners
}

fn placement(owners: &[u16], homes: usize) -> Placement {
    let mut placement = Placement::default();
    let partitions = u32::try_from(owners.len()).unwrap_or(u32::MAX);
    for (partition, index) in (0..partitions).zip(0..) {
        let (before, after) = owners.split_at(index);
        let nodes = distinct(after.iter().chain(before).copied(), homes);
        placement.push(partition_start(partition, partitions), &nodes);
    }
    placement
}

/// How many tokens each node should have: its share of `partitions` by weight, in whole numbers. What is left
/// goes to the largest remainders, among equals to those that hold more already: the less moves.
fn quotas(nodes: &[Node], partitions: usize, held: &BTreeMap<u16, usize>) -> BTreeMap<u16, usize> {
    let total: usize = nodes.iter().map(|node| node.weight as usize).sum();
    let exact = |node: &Node| partitions * node.weight as usize;
    let mut quotas: BTreeMap<u16, usize> =
        nodes.iter().map(|node| (node.number, exact(node) / total.max(1))).collect();
    let left = partitions - quotas.values().sum::<usize>();
    let mut order: Vec<&Node> = nodes.iter().collect();
    order.sort_by_key(|node| {
        let holds = held.get(&node.number).copied().unwrap_or(0);
        (std::cmp::Reverse((exact(node) % total.max(1), holds)), node.number)
    });
    for node in order.into_iter().take(left) {
        *quotas.entry(node.number).or_default() += 1;
    }
    quotas
}

/// Gives every node its quota by moving as few tokens as that takes, drawn at random.
fn rebalance(owners: &mut [u16], nodes: &[Node], draw: &mut Draw) {
    let mut held: BTreeMap<u16, usize> = BTreeMap::new();
    for owner in owners.iter() {
        *held.entry(*owner).or_default() += 1;
    }
    let quotas = quotas(nodes, owners.len(), &held);
    let quota = |node: u16| quotas.get(&node).copied().unwrap_or(0);
    let mut order: Vec<usize> = (0..owners.len()).collect();
    draw.shuffle(&mut order);
    // Free are the tokens of nodes that have too many, or are gone.
    let mut free = Vec::new();
    for partition in order {
        let owner = owners[partition];
        if let Some(count) = held.get_mut(&owner)
            && *count > quota(owner)
        {
            *count -= 1;
            free.push(partition);
        }
    }
    let wanted = nodes.iter().flat_map(|node| {
        let has = held.get(&node.number).copied().unwrap_or(0);
        std::iter::repeat_n(node.number, quota(node.number).saturating_sub(has))
    });
    // Which free token goes to whom is random, as the order of the free ones is.
    for (partition, node) in free.into_iter().zip(wanted) {
        owners[partition] = node;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(weights: &[u32]) -> Vec<Node> {
        (0..).zip(weights).map(|(number, weight)| Node { number, weight: *weight, zone: 0 }).collect()
    }

    fn cluster(weights: &[u32], partitions: u32) -> Cluster {
        Cluster { nodes: nodes(weights), replicas: 2, tokens: 1, partitions, seed: 7 }
    }

    fn counts(owners: &[u16]) -> BTreeMap<u16, usize> {
        let mut counts = BTreeMap::new();
        for owner in owners {
            *counts.entry(*owner).or_default() += 1;
        }
        counts
    }

    #[test]
    fn tokens_are_shared_out_by_weight() {
        assert_eq!(counts(&owners(&cluster(&[1, 1, 2], 16))), BTreeMap::from([(0, 4), (1, 4), (2, 8)]));
        let thirds = counts(&owners(&cluster(&[1, 1, 1], 16)));
        assert_eq!(thirds, BTreeMap::from([(0, 6), (1, 5), (2, 5)]));
    }

    #[test]
    fn a_walk_skips_only_the_same_node() {
        let placement = placement(&[0, 0, 1, 2], 2);
        let homes: Vec<_> = placement.ranges().map(|(_, _, homes)| homes.to_vec()).collect();
        assert_eq!(homes, [[0, 1], [0, 1], [1, 2], [2, 0]]);
    }

    #[test]
    fn who_joins_steals_its_share_and_nothing_else_moves() {
        let before = owners(&cluster(&[1, 1, 1], 16));
        let mut after = before.clone();
        rebalance(&mut after, &nodes(&[1, 1, 1, 1]), &mut Draw::new(1, 0));
        assert_eq!(counts(&after), BTreeMap::from([(0, 4), (1, 4), (2, 4), (3, 4)]));
        assert!(before.iter().zip(&after).all(|(old, new)| old == new || *new == 3));
    }

    #[test]
    fn tokens_of_who_leaves_go_to_the_others_and_nothing_else_moves() {
        let before = owners(&cluster(&[1, 1, 1, 1], 16));
        let mut after = before.clone();
        rebalance(&mut after, &nodes(&[1, 1, 1]), &mut Draw::new(1, 0));
        assert_eq!(counts(&after).into_values().max(), Some(6));
        assert!(before.iter().zip(&after).all(|(old, new)| if *old == 3 { *new < 3 } else { old == new }));
    }
}
