//! Which nodes are the homes of which partition: deferred acceptance.
//!
//! Every partition asks the nodes in its walk order. A node with more askers than its quota keeps those that
//! were set back least often on the way to it (see [`setbacks`]), and among equals those with the smaller
//! hash. The outcome is the one stable matching that is best for the partitions, so it does not depend on
//! the order of work.
//!
//! The hash is the partition's alone, not the pair's: partitions then stand in the same order before every
//! node, so a refused partition rarely unseats another, and a change of membership moves less. Every detail
//! here is part of the ring's format: `tests/ring_golden.rs` holds it still.

use std::collections::BinaryHeap;

use super::placement::NodeIndex;
use super::quota::{Node, Quotas};

/// What is to be placed.
pub(super) struct Problem<'a> {
    pub(super) nodes: &'a [Node],
    pub(super) zones: usize,
    /// One row of all nodes for each partition, nearest first.
    pub(super) walks: &'a [NodeIndex],
    pub(super) partitions: usize,
    pub(super) quotas: &'a Quotas,
    /// One hash for each partition; where two are set back equally, a node keeps the smaller.
    pub(super) order: &'a [u64],
}

/// `quotas.homes` distinct nodes for each partition, in walk order.
pub(super) fn assign(problem: &Problem<'_>) -> Vec<NodeIndex> {
    let mut work = Work::new(problem);
    work.propose((0..problem.partitions).collect());
    while !work.complete() {
        // Whole numbers can stand in the way of a full placement under the tightest quotas. With every
        // quota at Q nothing is ever refused, so this ends.
        for cap in &mut work.caps {
            *cap += 1;
        }
    }
    work.owners()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    No,
    Held,
    Refused,
}

/// A request a node holds; the greatest is the first to be refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    setbacks: u16,
    order: u64,
    partition: usize,
    rank: usize,
}

/// For each partition and walk rank: how many nodes must have refused before the partition asks this one,
/// counted as the refusals in its own zone plus those of the walk as a whole. 0 for the homes that an
/// unbounded walk would choose.
fn setbacks(problem: &Problem<'_>) -> Vec<u16> {
    let (homes, per_zone) = (problem.quotas.homes, problem.quotas.per_zone);
    let mut all = Vec::with_capacity(problem.walks.len());
    for walk in problem.walks.chunks(problem.nodes.len().max(1)) {
        let mut in_zone = vec![0_usize; problem.zones];
        // Nodes before this one that could all be homes together.
        let mut before = 0_usize;
        for node in walk {
            let zone = &mut in_zone[problem.nodes[usize::from(*node)].zone];
            let refusals = (*zone + 1).saturating_sub(per_zone) + (before + 1).saturating_sub(homes);
            all.push(u16::try_from(refusals).unwrap_or(u16::MAX));
            before += usize::from(*zone < per_zone);
            *zone += 1;
        }
    }
    all
}

struct Work<'a> {
    problem: &'a Problem<'a>,
    /// Nodes in one row of the walks.
    width: usize,
    caps: Vec<usize>,
    loads: Vec<usize>,
    /// For each partition, by walk rank.
    asked: Vec<Asked>,
    /// For each partition and zone, homes so far.
    in_zone: Vec<u8>,
    /// For each partition, homes so far.
    count: Vec<usize>,
    /// For each partition, a rank below which it has asked everyone.
    asked_below: Vec<usize>,
}

/// One move in a search: the partition loses a home to the one before it in the chain.
#[derive(Clone, Copy)]
struct Step {
    partition: usize,
    /// The rank of the lost home in this partition's walk, and in the walk of the partition that takes it.
    /// `None` for the start, which loses nothing.
    lost: Option<(usize, usize)>,
    /// The step before, by position; the start points at itself.
    before: usize,
}

impl<'a> Work<'a> {
    fn new(problem: &'a Problem<'a>) -> Self {
        let width = problem.nodes.len();
        Self {
            problem,
            width,
            caps: problem.quotas.caps.clone(),
            loads: vec![0; width],
            asked: vec![Asked::No; problem.partitions * width],
            in_zone: vec![0; problem.partitions * problem.zones],
            count: vec![0; problem.partitions],
            asked_below: vec![0; problem.partitions],
        }
    }

    fn node(&self, partition: usize, rank: usize) -> usize {
        usize::from(self.problem.walks[partition * self.width + rank])
    }

    fn zone_cell(&self, partition: usize, node: usize) -> usize {
        partition * self.problem.zones + self.problem.nodes[node].zone
    }

    fn zone_open(&self, partition: usize, node: usize) -> bool {
        usize::from(self.in_zone[self.zone_cell(partition, node)]) < self.problem.quotas.per_zone
    }

    fn take(&mut self, partition: usize, rank: usize) {
        let node = self.node(partition, rank);
        let zone = self.zone_cell(partition, node);
        self.asked[partition * self.width + rank] = Asked::Held;
        self.in_zone[zone] += 1;
        self.count[partition] += 1;
        self.loads[node] += 1;
    }

    fn release(&mut self, partition: usize, rank: usize, then: Asked) {
        let node = self.node(partition, rank);
        let zone = self.zone_cell(partition, node);
        self.asked[partition * self.width + rank] = then;
        self.in_zone[zone] -= 1;
        self.count[partition] -= 1;
        self.loads[node] -= 1;
    }

    /// The nearest node the partition may still ask.
    fn next_to_ask(&mut self, partition: usize) -> Option<usize> {
        let row = partition * self.width;
        let mut from = self.asked_below[partition];
        while from < self.width && self.asked[row + from] != Asked::No {
            from += 1;
        }
        self.asked_below[partition] = from;
        (from..self.width).find(|rank| {
            self.asked[row + rank] == Asked::No && self.zone_open(partition, self.node(partition, *rank))
        })
    }

    /// Deferred acceptance. A partition's choice among the nodes that have not refused it is greedy under
    /// the zone limit, so a refusal costs it one home and never unseats another. The outcome is the same for every
    /// order of `waiting`.
    fn propose(&mut self, mut waiting: Vec<usize>) {
        let setbacks = setbacks(self.problem);
        let mut held: Vec<BinaryHeap<Held>> = self.caps.iter().map(|_| BinaryHeap::new()).collect();
        while let Some(partition) = waiting.pop() {
            while self.count[partition] < self.problem.quotas.homes {
                let Some(rank) = self.next_to_ask(partition) else { break };
                let node = self.node(partition, rank);
                self.take(partition, rank);
                held[node].push(Held {
                    setbacks: setbacks[partition * self.width + rank],
                    order: self.problem.order[partition],
                    partition,
                    rank,
                });
                if self.loads[node] > self.caps[node]
                    && let Some(worst) = held[node].pop()
                {
                    self.release(worst.partition, worst.rank, Asked::Refused);
                    if worst.partition != partition {
                        waiting.push(worst.partition);
                    }
                }
            }
        }
    }

    /// Fills what deferred acceptance left open; false if the quotas do not allow it.
    fn complete(&mut self) -> bool {
        for partition in 0..self.problem.partitions {
            while self.count[partition] < self.problem.quotas.homes {
                if !self.augment(partition) {
                    return false;
                }
            }
        }
        true
    }

    /// Gives `start` one more home by the shortest chain of moves: it takes a home of another partition,
    /// which takes one of a third, and so on to a node that has room.
    fn augment(&mut self, start: usize) -> bool {
        let mut holders: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.width];
        for (cell, asked) in self.asked.iter().enumerate() {
            if *asked == Asked::Held {
                let (partition, rank) = (cell / self.width, cell % self.width);
                holders[self.node(partition, rank)].push((partition, rank));
            }
        }
        let mut steps = vec![Step { partition: start, lost: None, before: 0 }];
        // What a partition can take depends on the zone it lost a home in, so each pair is a state.
        let mut seen = vec![false; self.problem.partitions * self.problem.zones];
        let mut at = 0;
        while let Some(&step) = steps.get(at) {
            let takeable: Vec<usize> = self.takeable(step.partition, step.lost.map(|(own, _)| own)).collect();
            let room = takeable.iter().copied().find(|rank| {
                let node = self.node(step.partition, *rank);
                self.loads[node] < self.caps[node]
            });
            if let Some(rank) = room {
                self.apply(&steps, at, rank);
                return true;
            }
            for wanted in takeable {
                let node = self.node(step.partition, wanted);
                // Taken out of the list: the first to want a node reaches all who hold it.
                for (other, own) in std::mem::take(&mut holders[node]) {
                    let state = self.zone_cell(other, node);
                    if !seen[state] && !in_chain(&steps, at, other) {
                        seen[state] = true;
                        steps.push(Step { partition: other, lost: Some((own, wanted)), before: at });
                    }
                }
            }
            at += 1;
        }
        false
    }

    /// Ranks of the nodes a partition could take, nearest first, if it lost the home at rank `lost`.
    fn takeable(&self, partition: usize, lost: Option<usize>) -> impl Iterator<Item = usize> + '_ {
        let lost_zone = lost.map(|rank| self.zone_cell(partition, self.node(partition, rank)));
        (0..self.width).filter(move |rank| {
            let node = self.node(partition, *rank);
            Some(*rank) != lost
                && self.asked[partition * self.width + rank] != Asked::Held
                && (self.zone_open(partition, node) || lost_zone == Some(self.zone_cell(partition, node)))
        })
    }

    fn apply(&mut self, steps: &[Step], end: usize, rank: usize) {
        let (mut at, mut gained) = (end, rank);
        while let Some((own, wanted)) = steps[at].lost {
            self.release(steps[at].partition, own, Asked::Refused);
            self.take(steps[at].partition, gained);
            (at, gained) = (steps[at].before, wanted);
        }
        self.take(steps[at].partition, gained);
    }

    fn owners(&self) -> Vec<NodeIndex> {
        let cells = self.asked.iter().zip(self.problem.walks);
        cells.filter(|(asked, _)| **asked == Asked::Held).map(|(_, node)| *node).collect()
    }
}

/// Whether the chain that ends at step `at` already moves `partition`; each may move once.
fn in_chain(steps: &[Step], mut at: usize, partition: usize) -> bool {
    while steps[at].partition != partition {
        if steps[at].lost.is_none() {
            return false;
        }
        at = steps[at].before;
    }
    true
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64_with_seed;

    use super::super::quota::quotas;
    use super::*;

    fn nodes(zones: &[usize]) -> Vec<Node> {
        zones.iter().map(|zone| Node { weight: 1, zone: *zone }).collect()
    }

    /// A permutation of `0..count` for each partition.
    fn shuffled_walks(count: NodeIndex, partitions: u64) -> Vec<NodeIndex> {
        let row = |partition: u64| {
            let mut row: Vec<NodeIndex> = (0..count).collect();
            row.sort_by_key(|node| xxh3_64_with_seed(&node.to_be_bytes(), partition));
            row
        };
        (0..partitions).flat_map(row).collect()
    }

    #[test]
    fn the_order_of_work_does_not_matter() {
        let nodes = nodes(&[0, 0, 0, 1, 1, 2, 2, 3]);
        let walks = shuffled_walks(8, 64);
        let quotas = quotas(&nodes, 4, 64, 3);
        let order: Vec<u64> = (0..64_u64).map(|p| p.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let problem = Problem {
            nodes: &nodes,
            zones: 4,
            walks: &walks,
            partitions: 64,
            quotas: &quotas,
            order: &order,
        };
        let outcome = |waiting: Vec<usize>| {
            let mut work = Work::new(&problem);
            work.propose(waiting);
            (work.owners(), work.asked.iter().filter(|asked| **asked == Asked::Refused).count())
        };
        let forward = outcome((0..64).collect());
        assert!(forward.1 > 0, "quotas that refuse nobody test nothing");
        assert_eq!(outcome((0..64).rev().collect()), forward);
        assert_eq!(outcome((0..64).map(|i| (i * 37 + 11) % 64).collect()), forward);
    }

    #[test]
    fn a_dead_end_is_opened_by_a_chain_of_moves() {
        // All three partitions want nodes 0 and 1, which hold two each. The last in order is refused by
        // both, and node 2 alone cannot be two homes.
        let nodes = nodes(&[0, 0, 0]);
        let walks = [0, 1, 2, 0, 1, 2, 0, 1, 2];
        let quotas = quotas(&nodes, 1, 3, 2);
        let problem = Problem {
            nodes: &nodes,
            zones: 1,
            walks: &walks,
            partitions: 3,
            quotas: &quotas,
            order: &[1, 2, 3],
        };
        let mut work = Work::new(&problem);
        work.propose(vec![0, 1, 2]);
        assert_eq!(work.owners(), [0, 1, 0, 1, 2]);
        assert!(work.complete());
        assert_eq!(work.owners(), [1, 2, 0, 1, 0, 2]);
        assert_eq!(work.loads, [2, 2, 2]);
    }

    #[test]
    fn too_small_quotas_are_raised_until_all_fits() {
        let nodes = nodes(&[0, 0, 0]);
        let mut quotas = quotas(&nodes, 1, 4, 2);
        quotas.caps = vec![0, 1, 0];
        let walks = shuffled_walks(3, 4);
        let order = [4, 3, 2, 1];
        let problem =
            Problem { nodes: &nodes, zones: 1, walks: &walks, partitions: 4, quotas: &quotas, order: &order };
        let owners = assign(&problem);
        assert_eq!(owners.len(), 8);
        assert!(owners.chunks(2).all(|homes| homes[0] != homes[1]), "{owners:?}");
        assert!((0..3).all(|node| owners.iter().filter(|owner| **owner == node).count() <= 4));
    }

    #[test]
    fn setbacks_count_refusals_in_the_zone_and_on_the_walk() {
        let walk = [0, 1, 2, 3, 4];
        let setbacks_with = |zones: &[usize], count: usize, replicas: usize| {
            let nodes = nodes(zones);
            let quotas = quotas(&nodes, count, 1, replicas);
            let problem = Problem {
                nodes: &nodes,
                zones: count,
                walks: &walk,
                partitions: 1,
                quotas: &quotas,
                order: &[0],
            };
            setbacks(&problem)
        };
        // One zone, three homes: the first three nodes are asked without any refusal.
        assert_eq!(setbacks_with(&[0; 5], 1, 3), [0, 0, 0, 2, 3]);
        // Two zones, two homes, one in each.
        assert_eq!(setbacks_with(&[0, 0, 1, 0, 1], 2, 2), [0, 1, 0, 3, 2]);
    }
}
