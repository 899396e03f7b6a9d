//! What a placement is worth: how even it is, what moves when a node comes or goes, which zones it mixes.
//! Written once, for every strategy. Figures are for reports; nothing is placed by them.

use std::collections::{BTreeMap, BTreeSet};

use cartwheel_core::ring::RingError;

use super::cluster::{Bytes, CIRCLE, Cluster, Node, Placement, Strategy};
use crate::sim::draw::Draw;
use crate::sim::stats::{least, median, most};

/// The stream of keys, apart from every node's.
const KEYS: u64 = 1 << 34;
/// The stream that says who leaves.
const LEAVER: u64 = 1 << 35;

/// What moved at a change, and what had to. Both are parts of all replicas of all keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Movement {
    /// What nodes hold that did not hold it before.
    pub(super) moved: f64,
    /// What no strategy could have spared: what the new node holds, or what the one that left had held.
    pub(super) least: f64,
}

/// How much of the circle breaks the rule of zones, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ZoneViolations {
    /// Some zone holds more of the homes than it must.
    pub(super) shared: f64,
    /// One zone holds all the homes, though there are others.
    pub(super) single: f64,
}

/// One strategy under one seed.
#[derive(Debug, Clone, Copy)]
struct Sample {
    efficiency: f64,
    join: Movement,
    leave: Movement,
    zones: ZoneViolations,
    bytes: Bytes,
}

/// What all seeds say of one kind of change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Moves {
    /// Median of what moved.
    pub(super) moved: f64,
    /// Median of what had to.
    pub(super) least: f64,
    /// All that moved, over all that had to.
    pub(super) times: f64,
    /// The worst seed's.
    pub(super) worst_times: f64,
}

/// One strategy with one T and Q over all seeds.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) strategy: &'static str,
    /// T, where it has a part in the strategy.
    pub(super) tokens: Option<u32>,
    /// Q, where it has a part in the strategy.
    pub(super) partitions: Option<u32>,
    /// Median.
    pub(super) efficiency: f64,
    pub(super) worst_efficiency: f64,
    pub(super) join: Moves,
    pub(super) leave: Moves,
    /// Medians.
    pub(super) zones: ZoneViolations,
    /// The largest of any seed.
    pub(super) bytes: Bytes,
}

/// Measures a strategy over `seeds` (at least one). `keys`: how many to draw to measure loads by; without it,
/// loads are exact parts of the circle.
///
/// # Errors
/// A field outside the limits of the ring document.
pub(super) fn measure(
    strategy: &dyn Strategy,
    cluster: &Cluster,
    newcomer: Node,
    seeds: u64,
    keys: Option<u32>,
) -> Result<Row, RingError> {
    let samples: Vec<Sample> = (0..seeds)
        .map(|seed| sample(strategy, &Cluster { seed, ..cluster.clone() }, newcomer, keys))
        .collect::<Result<_, _>>()?;
    let all = |figure: fn(&Sample) -> f64| samples.iter().map(figure).collect::<Vec<f64>>();
    let efficiencies = all(|s| s.efficiency);
    let bytes = |figure: fn(Bytes) -> u64| samples.iter().map(|s| figure(s.bytes)).max().unwrap_or(0);
    Ok(Row {
        strategy: strategy.name(),
        tokens: strategy.uses_tokens().then_some(cluster.tokens),
        partitions: strategy.uses_partitions().then_some(cluster.partitions),
        efficiency: median(&efficiencies),
        worst_efficiency: least(&efficiencies),
        join: moves(&samples.iter().map(|s| s.join).collect::<Vec<_>>()),
        leave: moves(&samples.iter().map(|s| s.leave).collect::<Vec<_>>()),
        zones: ZoneViolations {
            shared: median(&all(|s| s.zones.shared)),
            single: median(&all(|s| s.zones.single)),
        },
        bytes: Bytes { kept: bytes(|b| b.kept), worked_out: bytes(|b| b.worked_out) },
    })
}

fn sample(
    strategy: &dyn Strategy,
    cluster: &Cluster,
    newcomer: Node,
    keys: Option<u32>,
) -> Result<Sample, RingError> {
    let placement = strategy.place(cluster)?;
    let joined = strategy.change(cluster, &cluster.with(newcomer))?;
    let leaver = cluster.nodes.get(Draw::new(cluster.seed, LEAVER).below(cluster.nodes.len()));
    let leaver = leaver.map_or(0, |node| node.number);
    let left = strategy.change(cluster, &cluster.without(leaver))?;
    let loads = match keys {
        None => exact_loads(&placement),
        Some(keys) => drawn_loads(&placement, keys, &mut Draw::new(cluster.seed, KEYS)),
    };
    Ok(Sample {
        efficiency: efficiency(&loads, &cluster.nodes, cluster.homes()),
        join: movement(&placement, &joined, newcomer.number),
        leave: movement(&placement, &left, leaver),
        zones: zone_violations(&placement, &cluster.nodes, cluster.homes()),
        bytes: strategy.bytes(cluster)?,
    })
}

fn part(length: u128) -> f64 {
    length as f64 / CIRCLE as f64
}

/// What part of the circle each node is a home of.
fn exact_loads(placement: &Placement) -> BTreeMap<u16, f64> {
    let mut lengths: BTreeMap<u16, u128> = BTreeMap::new();
    for (_, length, homes) in placement.ranges() {
        for node in homes {
            *lengths.entry(*node).or_default() += length;
        }
    }
    lengths.into_iter().map(|(node, length)| (node, part(length))).collect()
}

/// What part of `keys` keys, drawn at random, each node is a home of.
fn drawn_loads(placement: &Placement, keys: u32, draw: &mut Draw) -> BTreeMap<u16, f64> {
    let mut loads: BTreeMap<u16, f64> = BTreeMap::new();
    for _ in 0..keys {
        for node in placement.at(draw.next()) {
            *loads.entry(*node).or_default() += 1.0 / f64::from(keys);
        }
    }
    loads
}

/// The fair load of each node by weight, as a part of the circle: all together `homes`, none above 1, since no
/// node can be a home of anything twice. What one can't take, the others share.
fn fair_loads(nodes: &[Node], homes: usize) -> BTreeMap<u16, f64> {
    let mut full: BTreeSet<u16> = BTreeSet::new();
    loop {
        let open = |node: &&Node| !full.contains(&node.number);
        let weight: f64 = nodes.iter().filter(open).map(|node| f64::from(node.weight)).sum();
        let left = homes.saturating_sub(full.len()) as f64;
        let fair: BTreeMap<u16, f64> = nodes
            .iter()
            .map(|node| (node.number, if open(&node) { left * f64::from(node.weight) / weight } else { 1.0 }))
            .collect();
        let over: Vec<u16> = fair.iter().filter(|(_, load)| **load > 1.0).map(|(node, _)| *node).collect();
        if over.is_empty() {
            return fair;
        }
        full.extend(over);
    }
}

/// Load-balancing efficiency: fair load over load, of the node that is worst off. With equal weights that is
/// the paper's mean over maximum: which part of the cluster can be used before one node is full.
fn efficiency(loads: &BTreeMap<u16, f64>, nodes: &[Node], homes: usize) -> f64 {
    let fair = fair_loads(nodes, homes);
    let ratios = fair.iter().map(|(node, fair)| loads.get(node).map_or(0.0, |load| load / fair));
    let worst = most(&ratios.collect::<Vec<_>>());
    if worst > 0.0 { 1.0 / worst } else { 0.0 }
}

/// What moved from one placement to the next, where `changed` is the node that came or went.
fn movement(before: &Placement, after: &Placement, changed: u16) -> Movement {
    let mut starts: Vec<u64> = before.starts().iter().chain(after.starts()).copied().collect();
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|start| u128::from(*start)).chain([CIRCLE]);
    let (mut moved, mut least, mut all) = (0_u128, 0_u128, 0_u128);
    for (start, end) in starts.iter().zip(ends) {
        let length = end - u128::from(*start);
        let (old, new) = (before.at(*start), after.at(*start));
        moved += length * new.iter().filter(|node| !old.contains(node)).count() as u128;
        least += length * u128::from(old.contains(&changed) || new.contains(&changed));
        all += length * new.len() as u128;
    }
    let of_all = |length: u128| length as f64 / all.max(1) as f64;
    Movement { moved: of_all(moved), least: of_all(least) }
}

fn moves(seeds: &[Movement]) -> Moves {
    let moved: Vec<f64> = seeds.iter().map(|m| m.moved).collect();
    let needed: Vec<f64> = seeds.iter().map(|m| m.least).collect();
    let times = |moved: f64, least: f64| if least > 0.0 { moved / least } else { 1.0 };
    let each: Vec<f64> = seeds.iter().map(|m| times(m.moved, m.least)).collect();
    Moves {
        moved: median(&moved),
        least: median(&needed),
        times: times(moved.iter().sum(), needed.iter().sum()),
        worst_times: most(&each),
    }
}

/// How many homes of one place a zone must take, so that all homes find a zone: 1 where there are zones enough.
fn zone_limit(nodes: &[Node], homes: usize) -> usize {
    let mut sizes: BTreeMap<u16, usize> = BTreeMap::new();
    for node in nodes {
        *sizes.entry(node.zone).or_default() += 1;
    }
    let room = |limit: usize| sizes.values().map(|size| limit.min(*size)).sum::<usize>();
    (1..=homes).find(|limit| room(*limit) >= homes).unwrap_or(homes)
}

fn zone_violations(placement: &Placement, nodes: &[Node], homes: usize) -> ZoneViolations {
    let zones: BTreeMap<u16, u16> = nodes.iter().map(|node| (node.number, node.zone)).collect();
    let limit = zone_limit(nodes, homes);
    let (mut shared, mut single) = (0_u128, 0_u128);
    for (_, length, homes) in placement.ranges() {
        let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
        for zone in homes.iter().filter_map(|node| zones.get(node)) {
            *counts.entry(*zone).or_default() += 1;
        }
        let fullest = counts.values().copied().max().unwrap_or(0);
        shared += length * u128::from(fullest > limit);
        single += length * u128::from(fullest > limit && counts.len() == 1);
    }
    ZoneViolations { shared: part(shared), single: part(single) }
}

#[cfg(test)]
mod tests;
