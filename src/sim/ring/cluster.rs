//! What a strategy places (a cluster), what comes of it (a placement), and what a strategy is.

use cartwheel_core::ring::RingError;

/// One storage node of a simulated cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    /// Its name: it keeps it whoever joins or leaves.
    pub(super) number: u16,
    /// Its share, relative to the others'.
    pub(super) weight: u32,
    /// Its failure zone.
    pub(super) zone: u16,
}

/// A cluster, and what it chose once.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    /// Sorted by number.
    pub(super) nodes: Vec<Node>,
    /// N.
    pub(super) replicas: usize,
    /// T: tokens per unit of weight.
    pub(super) tokens: u32,
    /// Q: a power of two.
    pub(super) partitions: u32,
    /// What all that is random follows from.
    pub(super) seed: u64,
}

impl Cluster {
    /// This cluster and one node more, whose number is above all others.
    pub(super) fn with(&self, node: Node) -> Self {
        let mut nodes = self.nodes.clone();
        nodes.push(node);
        Self { nodes, ..self.clone() }
    }

    /// This cluster without the node of that number.
    pub(super) fn without(&self, number: u16) -> Self {
        let nodes = self.nodes.iter().copied().filter(|node| node.number != number).collect();
        Self { nodes, ..self.clone() }
    }

    /// Homes of each part of the circle: N, or all nodes where there are fewer.
    pub(super) fn homes(&self) -> usize {
        self.replicas.min(self.nodes.len())
    }

    /// The sum of all weights.
    pub(super) fn weight(&self) -> u64 {
        self.nodes.iter().map(|node| u64::from(node.weight)).sum()
    }
}

/// Which nodes hold which part of the circle of 2^64 positions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Placement {
    /// The first position of each range, ascending.
    starts: Vec<u64>,
    /// Where each range's homes end in `homes`.
    ends: Vec<usize>,
    homes: Vec<u16>,
}

/// The whole circle.
pub(super) const CIRCLE: u128 = 1 << 64;

impl Placement {
    /// Adds the range that begins at `start`: 0 for the first, and after the last one's start. It ends where the
    /// next begins.
    pub(super) fn push(&mut self, start: u64, homes: &[u16]) {
        self.starts.push(start);
        self.homes.extend_from_slice(homes);
        self.ends.push(self.homes.len());
    }

    /// Starts, lengths and homes of all ranges, in order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u128, &[u16])> {
        let ends = self.starts.iter().skip(1).map(|start| u128::from(*start)).chain([CIRCLE]);
        let ranges = self.starts.iter().zip(ends).zip(0..);
        ranges.map(|((start, end), range)| (*start, end - u128::from(*start), self.homes_of(range)))
    }

    /// The homes at a position.
    pub(super) fn at(&self, position: u64) -> &[u16] {
        self.homes_of(self.starts.partition_point(|start| *start <= position).saturating_sub(1))
    }

    /// All positions where a range begins.
    pub(super) fn starts(&self) -> &[u64] {
        &self.starts
    }

    fn homes_of(&self, range: usize) -> &[u16] {
        let start = range.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(range).and_then(|end| self.homes.get(start..*end)).unwrap_or_default()
    }
}

/// What a node must have in memory to find every key's homes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bytes {
    /// What it must be told: it can't work this out.
    pub(super) kept: u64,
    /// Tables that it makes of that, to look things up at once.
    pub(super) worked_out: u64,
}

/// A way to place the circle on nodes.
pub(super) trait Strategy {
    /// As reports name it.
    fn name(&self) -> &'static str;

    /// Whether T has a part in it.
    fn uses_tokens(&self) -> bool;

    /// Whether Q has a part in it.
    fn uses_partitions(&self) -> bool;

    /// The placement of a new cluster.
    ///
    /// # Errors
    /// A field outside the limits of the ring document.
    fn place(&self, cluster: &Cluster) -> Result<Placement, RingError>;

    /// The placement of `to`, after [`Self::place`] had placed `from`, which differs in one node.
    ///
    /// # Errors
    /// As [`Self::place`].
    fn change(&self, from: &Cluster, to: &Cluster) -> Result<Placement, RingError> {
        // A strategy without a memory places what there is.
        let _ = from;
        self.place(to)
    }

    /// What each node must have in memory.
    ///
    /// # Errors
    /// As [`Self::place`].
    fn bytes(&self, cluster: &Cluster) -> Result<Bytes, RingError>;
}

/// The first `count` distinct nodes of a walk.
pub(super) fn distinct(walk: impl Iterator<Item = u16>, count: usize) -> Vec<u16> {
    let mut found = Vec::with_capacity(count);
    for node in walk {
        if found.len() == count {
            break;
        }
        if !found.contains(&node) {
            found.push(node);
        }
    }
    found
}

/// Where a partition begins on the circle. `partitions` is a power of two.
pub(super) fn partition_start(partition: u32, partitions: u32) -> u64 {
    let bits = partitions.trailing_zeros();
    if bits == 0 { 0 } else { u64::from(partition) << (64 - bits) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_the_circle() {
        let mut placement = Placement::default();
        placement.push(0, &[1, 2]);
        placement.push(10, &[3]);
        let ranges: Vec<_> = placement.ranges().collect();
        assert_eq!(ranges, [(0, 10, [1, 2].as_slice()), (10, CIRCLE - 10, [3].as_slice())]);
        assert_eq!((placement.at(0), placement.at(9)), ([1, 2].as_slice(), [1, 2].as_slice()));
        assert_eq!((placement.at(10), placement.at(u64::MAX)), ([3].as_slice(), [3].as_slice()));
    }

    #[test]
    fn a_walk_meets_each_node_once() {
        assert_eq!(distinct([4, 4, 1, 4, 2, 3].into_iter(), 3), [4, 1, 2]);
        assert_eq!(distinct([4, 4].into_iter(), 3), [4]);
    }

    #[test]
    fn partitions_are_equal() {
        assert_eq!(partition_start(0, 1), 0);
        assert_eq!([0, 1, 2, 3].map(|p| partition_start(p, 4)), [0, 1 << 62, 1 << 63, 3 << 62]);
    }
}
