//! How many slots (replicas of partitions) each node may hold, in integers.
//!
//! Fair shares follow the weights, but no node can hold more than every partition once, and no zone more
//! than its limit per partition; what such a node or zone cannot take is shared by the others
//! (water-filling). The level is found by bisection in fixed point, so it is exact on every platform.

/// Fixed-point one: shares are in 1/2^32 of a slot.
const ONE: u64 = 1 << 32;
/// Slack in rounding up, far above the bisection's error and far below any real fraction of a slot.
const ROUNDING: u64 = 1 << 16;

/// One node, as quotas see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    /// 1 to 1000.
    pub(super) weight: u32,
    /// Dense zone number, from 0.
    pub(super) zone: usize,
}

/// What a placement must respect.
#[derive(Debug, Clone)]
pub(super) struct Quotas {
    /// Homes per partition: N, or all nodes where there are fewer.
    pub(super) homes: usize,
    /// Most homes of one partition in one zone.
    pub(super) per_zone: usize,
    /// Fair share of each node, in 1/2^32 of a slot.
    pub(super) fair: Vec<u64>,
    /// Most slots of each node: the fair share, rounded up.
    pub(super) caps: Vec<usize>,
}

/// Quotas for `nodes` in `zones` zones, with `partitions` partitions of `replicas` replicas.
pub(super) fn quotas(nodes: &[Node], zones: usize, partitions: u32, replicas: usize) -> Quotas {
    let homes = replicas.min(nodes.len());
    let per_zone = per_zone_limit(nodes, zones, homes);
    let full = u64::from(partitions) * ONE;
    let zone_full = full * per_zone as u64;
    let zone_at = |zone: usize, level: u64| -> u64 {
        nodes.iter().filter(|n| n.zone == zone).map(|n| share(n, level, full)).sum()
    };
    let total = full * homes as u64;
    let level =
        lowest(full, |level| (0..zones).map(|z| zone_at(z, level).min(zone_full)).sum::<u64>() >= total);
    let levels: Vec<u64> = (0..zones)
        .map(|z| level.min(lowest(level, |l| zone_at(z, l) >= zone_full.min(zone_at(z, level)))))
        .collect();
    let fair: Vec<u64> =
        nodes.iter().map(|n| share(n, levels.get(n.zone).copied().unwrap_or(level), full)).collect();
    let caps =
        fair.iter().map(|f| usize::try_from((f + ONE - ROUNDING) / ONE).unwrap_or(usize::MAX)).collect();
    Quotas { homes, per_zone, fair, caps }
}

fn share(node: &Node, level: u64, full: u64) -> u64 {
    (level * u64::from(node.weight)).min(full)
}

/// The smallest number of homes per zone that still gives each partition all its homes: 1 where there are
/// zones enough, more where zones are few or some are smaller than their part.
fn per_zone_limit(nodes: &[Node], zones: usize, homes: usize) -> usize {
    let sizes: Vec<usize> = (0..zones).map(|z| nodes.iter().filter(|n| n.zone == z).count()).collect();
    (1..=homes)
        .find(|limit| sizes.iter().map(|s| s.min(limit)).sum::<usize>() >= homes)
        .unwrap_or(homes.max(1))
}

/// The smallest level in 0..=`most` that `enough` accepts; `most` if none is. `enough` is monotone.
fn lowest(most: u64, enough: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low) / 2;
        if enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}
