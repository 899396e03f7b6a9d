//! Chord (Stoica et al., SIGCOMM 2001): nodes at random places on a circle of 2^64, each with a finger table and
//! a successor list; a key's home is the first node at or after it.
//!
//! The finger table of a node is built when a lookup reaches it, from the sorted ids. That is what the node would
//! hold once its table is settled, and it spares keeping the tables of all nodes.

use crate::sim::draw::Draw;

/// A circle of nodes whose tables are all settled.
#[derive(Debug, Clone)]
pub(super) struct Chord {
    /// Ascending, each once, at least one.
    ids: Vec<u64>,
    /// Entries of a successor list: log2 of the nodes, rounded up.
    successors: usize,
}

/// How a lookup went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// Where it ended, by place on the circle.
    pub(super) home: usize,
    /// From node to node, the last one to the home.
    pub(super) hops: usize,
}

impl Chord {
    /// `count` nodes with random ids.
    pub(super) fn new(count: usize, draw: &mut Draw) -> Self {
        let mut ids: Vec<u64> = Vec::with_capacity(count);
        while ids.len() < count {
            ids.extend((ids.len()..count).map(|_| draw.next()));
            ids.sort_unstable();
            ids.dedup();
        }
        Self::at(ids)
    }

    /// Nodes with these ids, ascending, each once, at least one.
    pub(super) fn at(ids: Vec<u64>) -> Self {
        let successors = log2_up(ids.len());
        Self { ids, successors }
    }

    /// The home of a position: the first node at or after it.
    pub(super) fn successor(&self, position: u64) -> usize {
        let index = self.ids.partition_point(|id| *id < position);
        if index == self.ids.len() { 0 } else { index }
    }

    /// The finger table of a node: the homes of its id plus each power of two, those that are the same once, itself
    /// left out; nearest first.
    pub(super) fn fingers(&self, node: usize) -> Vec<usize> {
        let mut fingers: Vec<usize> = Vec::new();
        for power in 0..64 {
            let finger = self.successor(self.ids[node].wrapping_add(1 << power));
            if finger != node && fingers.last() != Some(&finger) {
                fingers.push(finger);
            }
        }
        fingers
    }

    /// The nodes after a node, nearest first: its successor list.
    pub(super) fn successor_list(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        let count = self.successors.min(self.ids.len() - 1);
        (1..=count).map(move |step| (node + step) % self.ids.len())
    }

    /// How many other nodes a node knows: fingers, successors and predecessor, each once.
    pub(super) fn known(&self, node: usize) -> usize {
        let mut known = self.fingers(node);
        known.extend(self.successor_list(node));
        known.push(self.before(node));
        known.sort_unstable();
        known.dedup();
        known.len()
    }

    /// Looks a key up, beginning at a node: from each node to the one it knows that is nearest before the key, and
    /// at last to the key's home.
    pub(super) fn route(&self, from: usize, key: u64) -> Route {
        let (mut at, mut hops) = (from, 0);
        loop {
            let next = match self.step(at, key) {
                Step::Here => return Route { home: at, hops },
                Step::Home(home) => return Route { home, hops: hops + 1 },
                Step::Closer(next) => next,
            };
            at = next;
            hops += 1;
        }
    }

    /// What a node does about a key, by what it knows itself.
    fn step(&self, at: usize, key: u64) -> Step {
        let id = self.ids[at];
        let before = self.ids[self.before(at)];
        // Distances clockwise; a node alone on the circle is its own predecessor and home of all.
        if self.ids.len() == 1 || key.wrapping_sub(before).wrapping_sub(1) < id.wrapping_sub(before) {
            return Step::Here;
        }
        let to_key = key.wrapping_sub(id);
        let distance = |node: usize| self.ids[node].wrapping_sub(id);
        if let Some(home) = self.successor_list(at).find(|node| distance(*node) >= to_key) {
            return Step::Home(home);
        }
        let known = self.successor_list(at).chain(self.fingers(at));
        let closest = known.filter(|node| distance(*node) < to_key).max_by_key(|node| distance(*node));
        // The first successor is always nearer: it is not the home, or it would have been found above.
        Step::Closer(closest.unwrap_or((at + 1) % self.ids.len()))
    }

    fn before(&self, node: usize) -> usize {
        node.checked_sub(1).unwrap_or(self.ids.len() - 1)
    }
}

enum Step {
    Here,
    Home(usize),
    Closer(usize),
}

/// The logarithm to base 2, rounded up; at least 1.
pub(super) fn log2_up(count: usize) -> usize {
    (1..64).find(|bits| 1_usize << bits >= count).unwrap_or(64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::stats::mean;

    /// The home of a key by looking at everyone.
    fn brute(ids: &[u64], key: u64) -> usize {
        (0..ids.len()).min_by_key(|node| ids[*node].wrapping_sub(key)).unwrap_or(0)
    }

    #[test]
    fn the_example_of_a_small_circle() {
        // As in the Chord paper's Figure 3, but at the top of 64 bits: nodes 0, 1 and 3 of a circle of 8.
        let unit = 1_u64 << 61;
        let chord = Chord::at(vec![0, unit, 3 * unit]);
        assert_eq!(chord.fingers(0), [1, 2]);
        assert_eq!(chord.fingers(1), [2, 0]);
        assert_eq!(chord.fingers(2), [0]);
        assert_eq!(chord.known(0), 2);
        assert_eq!(chord.route(2, unit), Route { home: 1, hops: 1 });
        assert_eq!(chord.route(0, 4 * unit), Route { home: 0, hops: 0 });
        assert_eq!(chord.route(1, unit), Route { home: 1, hops: 0 });
        assert_eq!(chord.route(1, unit + 1), Route { home: 2, hops: 1 });
    }

    #[test]
    fn one_node_and_two() {
        let chord = Chord::at(vec![9]);
        assert_eq!(
            (chord.route(0, 9), chord.route(0, 1 << 63)),
            (Route { home: 0, hops: 0 }, Route { home: 0, hops: 0 })
        );
        assert_eq!(chord.fingers(0), [0_usize; 0]);
        let chord = Chord::at(vec![9, 20]);
        assert_eq!(chord.route(0, 10), Route { home: 1, hops: 1 });
        assert_eq!(chord.route(0, 21), Route { home: 0, hops: 0 });
        assert_eq!(chord.route(1, 21), Route { home: 0, hops: 1 });
    }

    #[test]
    fn every_lookup_ends_at_the_home_within_log2_hops() {
        for count in [2, 3, 7, 64, 100, 1000, 5000] {
            let mut draw = Draw::new(count as u64, 0);
            let chord = Chord::new(count, &mut draw);
            assert!(chord.ids.windows(2).all(|pair| pair[0] < pair[1]) && chord.ids.len() == count);
            let mut hops = Vec::new();
            for lookup in 0..300 {
                // Some keys lie exactly at a node, or just after one.
                let at = chord.ids[draw.below(count)];
                let key = [draw.next(), at, at.wrapping_add(1)][lookup % 3];
                let route = chord.route(draw.below(count), key);
                assert_eq!(route.home, brute(&chord.ids, key), "{count} nodes, key {key}");
                assert!(route.hops <= log2_up(count), "{count} nodes: {} hops", route.hops);
                hops.push(route.hops as f64);
            }
            // The paper: about half of log2; the successor list spares some of it.
            assert!(mean(&hops) <= 0.5 * (count as f64).log2() + 0.6, "{count} nodes: {}", mean(&hops));
        }
    }

    #[test]
    fn a_finger_table_has_about_log2_entries() {
        let chord = Chord::new(4096, &mut Draw::new(1, 0));
        let sizes: Vec<f64> = (0..4096).step_by(64).map(|node| chord.fingers(node).len() as f64).collect();
        assert!((mean(&sizes) - 12.0).abs() < 1.5, "{}", mean(&sizes));
        for node in [0, 77, 4095] {
            let id = chord.ids[node];
            for finger in chord.fingers(node) {
                // Each is the home of some power of two after the node.
                assert!((0..64).any(|power| brute(&chord.ids, id.wrapping_add(1 << power)) == finger));
            }
        }
        assert_eq!([1, 2, 3, 4, 5, 1024, 1025].map(log2_up), [1, 1, 2, 2, 3, 10, 11]);
    }
}
