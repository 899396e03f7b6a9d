//! What it costs to know where keys live, per node: bytes of state and bytes received per second, by formulas.
//!
//! Three ways: everyone is known and each change is told to all once; Chord's tables; Cartwheel as it is built.
//! The formulas favour none: no message is lost, sent twice or sent for nothing. `docs/ring-and-routing.md` says
//! them in words.

use std::time::Duration;

use cartwheel_core::gossip::{DEAD_AFTER_MS, FANOUT, Heard, TICK_MS, Word, encode};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{MAX_MEMBERS, RingError};
use cartwheel_core::standing::Standing;

use super::chord::log2_up;
use crate::sim::ring::bytes_as_built;

/// A node as others know it: 20 bytes of id (Chord's are SHA-1), IPv4 address and port.
pub(super) const ENTRY_BYTES: f64 = 26.0;
/// A message that says nothing: IP and UDP headers, its kind, its number, a key.
pub(super) const HEADER_BYTES: f64 = 48.0;
/// A change told to one node: who, what, and which change it is.
pub(super) const CHANGE_BYTES: f64 = HEADER_BYTES + ENTRY_BYTES + 8.0;
/// One hop of a lookup: the question, and the answer with the next node.
pub(super) const HOP_BYTES: f64 = 2.0 * HEADER_BYTES + ENTRY_BYTES;
/// Versions of the ring document that one join or leave makes: announced, copied, settled.
pub(super) const VERSIONS_PER_CHANGE: f64 = 3.0;
/// Most nodes that a crossover is looked for among.
pub(super) const MOST_NODES: f64 = 1e15;

/// What is assumed of the cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Assumed {
    /// After how long a node leaves; another joins in its place.
    pub(super) lifetime: Duration,
    /// How often a node looks after its neighbours, and after one finger.
    pub(super) stabilise: Duration,
    /// Lookups per second that each node makes.
    pub(super) rate: f64,
}

impl Assumed {
    /// Changes of membership per second: each node leaves and joins once per lifetime.
    fn changes(&self, nodes: f64) -> f64 {
        2.0 * nodes / self.lifetime.as_secs_f64()
    }
}

/// What one way costs each node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Bytes in memory.
    pub(super) state: f64,
    /// Bytes received per second to keep it right.
    pub(super) upkeep: f64,
    /// Bytes received per second to look keys up.
    pub(super) lookups: f64,
    /// Which part of what is known is wrong at any moment.
    pub(super) stale: f64,
}

impl Cost {
    /// Bytes received per second in all.
    pub(super) fn traffic(&self) -> f64 {
        self.upkeep + self.lookups
    }
}

/// Everyone knows everyone; each change is told to all once. A node is watched by one other.
pub(super) fn everyone(nodes: f64, assumed: &Assumed) -> Cost {
    let every = assumed.stabilise.as_secs_f64();
    Cost {
        state: nodes * ENTRY_BYTES,
        upkeep: assumed.changes(nodes) * CHANGE_BYTES + 2.0 * HEADER_BYTES / every,
        lookups: 0.0,
        stale: wrong_after(every, assumed),
    }
}

/// What is known of a Chord circle: by simulation, or by [`Shape::of`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Other nodes that a node knows.
    pub(super) known: f64,
    /// Entries of a finger table.
    pub(super) fingers: f64,
    /// Entries of a successor list.
    pub(super) successors: f64,
    /// Hops of a lookup.
    pub(super) hops: f64,
}

impl Shape {
    /// The paper's figures: log2 n fingers, half as many hops; log2 n successors and a predecessor.
    pub(super) fn of(nodes: f64) -> Self {
        let log = nodes.log2();
        Self { known: 2.0 * log + 1.0, fingers: log, successors: log.ceil(), hops: log / 2.0 }
    }
}

/// Chord: each interval, a node asks its successor for its predecessor and list, notifies it, checks on its own
/// predecessor, and looks up one finger anew. A node that joins looks up each finger.
pub(super) fn chord(shape: &Shape, assumed: &Assumed) -> Cost {
    let every = assumed.stabilise.as_secs_f64();
    let neighbours = 5.0 * HEADER_BYTES + (shape.successors + 2.0) * ENTRY_BYTES;
    let finger = shape.hops * HOP_BYTES;
    let join = shape.fingers * finger / assumed.lifetime.as_secs_f64();
    Cost {
        state: shape.known * ENTRY_BYTES,
        upkeep: (neighbours + finger) / every + join,
        lookups: assumed.rate * shape.hops * HOP_BYTES,
        // Wrong when its node has left or another has joined before it; looked up once in so many intervals,
        // it is half as old in the mean.
        stale: wrong_after(shape.fingers * every, assumed),
    }
}

/// Cartwheel as it is built: ring documents, each from the bucket and from a node, placement tables, and gossip of whole
/// views. `None` for more members than a ring document holds.
///
/// # Errors
/// As [`bytes_as_built`].
pub(super) fn as_built(nodes: usize, assumed: &Assumed) -> Result<Option<Cost>, RingError> {
    if nodes > MAX_MEMBERS {
        return Ok(None);
    }
    let (document, tables) = bytes_as_built(nodes)?;
    let words = view(nodes);
    let partners = FANOUT.min(nodes.saturating_sub(1)) as f64;
    // A node asks so many and is asked by as many; each time it receives all words.
    let gossip = 2.0 * partners * (words as f64 + HEADER_BYTES) * 1000.0 / TICK_MS as f64;
    let documents =
        assumed.changes(nodes as f64) * VERSIONS_PER_CHANGE * 2.0 * (document as f64 + HEADER_BYTES);
    Ok(Some(Cost {
        state: (document + tables) as f64 + words as f64,
        upkeep: gossip + documents,
        lookups: 0.0,
        stale: wrong_after(DEAD_AFTER_MS as f64 / 1000.0, assumed),
    }))
}

/// Bytes of the words of so many nodes, none of which has hints, as gossip sends them.
fn view(nodes: usize) -> usize {
    let heard = |number: usize| {
        let node = NodeId::new(&format!("node-{number:04}")).ok()?;
        let (generation, beat, ring_version, rounds) = (3, 1_000_000, 1_000, 3);
        let word = Word {
            node,
            generation,
            beat,
            ring_version,
            standing: Standing::Counting,
            rounds,
            bucket_fails: false,
            unflushed_bytes: 1 << 20,
            hints: Vec::new(),
            away: Vec::new(),
        };
        Some(Heard { word, age_ms: TICK_MS, brief: false })
    };
    encode(&(0..nodes).filter_map(heard).collect::<Vec<_>>()).len()
}

/// Which part of entries is wrong that are checked every `seconds`: half of that old in the mean, while at each
/// moment a node can leave and another join at its side.
fn wrong_after(seconds: f64, assumed: &Assumed) -> f64 {
    1.0 - (-seconds / assumed.lifetime.as_secs_f64()).exp()
}

/// From how many nodes on finger tables cost less than knowing everyone, by `figure` of both; `None` beyond
/// [`MOST_NODES`]. The one grows with n and the other with its logarithm, so there is one such number.
pub(super) fn crossover(assumed: &Assumed, figure: fn(&Cost) -> f64) -> Option<f64> {
    let fingers_cost_less =
        |nodes: f64| figure(&chord(&Shape::of(nodes), assumed)) < figure(&everyone(nodes, assumed));
    let (mut low, mut high) = (2.0, MOST_NODES);
    if !fingers_cost_less(high) {
        return None;
    }
    while high - low > 1.0 {
        let middle = f64::midpoint(low, high).floor();
        if fingers_cost_less(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

/// Entries of a successor list among so many nodes.
pub(super) fn successors(nodes: usize) -> f64 {
    log2_up(nodes).min(nodes.saturating_sub(1)) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOUR: Assumed =
        Assumed { lifetime: Duration::from_secs(3600), stabilise: Duration::from_secs(30), rate: 10.0 };

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6 * expected.abs(), "{found}, not {expected}");
    }

    #[test]
    fn knowing_everyone_by_hand() {
        let cost = everyone(1000.0, &HOUR);
        near(cost.state, 26_000.0);
        // 2,000 changes of 82 bytes an hour, and two bare messages every 30 s.
        near(cost.upkeep, 2000.0 * 82.0 / 3600.0 + 96.0 / 30.0);
        near(cost.traffic(), cost.upkeep);
        near(cost.stale, 1.0 - (-30.0_f64 / 3600.0).exp());
    }

    #[test]
    fn chord_by_hand() {
        let shape = Shape::of(1024.0);
        near(shape.hops, 5.0);
        let cost = chord(&shape, &HOUR);
        near(cost.state, 21.0 * 26.0);
        // Five messages and twelve entries, five hops of 122 bytes; ten such lookups an hour to join.
        near(cost.upkeep, (240.0 + 312.0 + 610.0) / 30.0 + 10.0 * 610.0 / 3600.0);
        near(cost.traffic(), cost.upkeep + 10.0 * 610.0);
    }

    #[test]
    fn as_built_by_the_bytes_of_its_formats() {
        let cost = as_built(100, &HOUR).unwrap().unwrap();
        let (document, tables) = bytes_as_built(100).unwrap();
        let words = view(100) as f64;
        // About 25 bytes a node.
        assert!((2000.0..4000.0).contains(&words), "{words}");
        // Three documents for each of 200 changes an hour, each from the bucket and from a node.
        near(cost.upkeep, 20.0 * (words + 48.0) + 200.0 / 3600.0 * 6.0 * (document as f64 + 48.0));
        near(cost.state, (document + tables) as f64 + words);
        assert!(as_built(MAX_MEMBERS, &HOUR).unwrap().is_some());
        assert!(as_built(MAX_MEMBERS + 1, &HOUR).unwrap().is_none());
    }

    #[test]
    fn the_crossover_lies_between() {
        let nodes = crossover(&HOUR, |cost| cost.upkeep).unwrap();
        let costs = |nodes: f64| (chord(&Shape::of(nodes), &HOUR).upkeep, everyone(nodes, &HOUR).upkeep);
        let (fingers, all) = costs(nodes);
        assert!(fingers < all);
        let (fingers, all) = costs(nodes - 1.0);
        assert!(fingers >= all);
        // Lookups go to the account of fingers alone.
        assert!(crossover(&HOUR, Cost::traffic).unwrap() > 10.0 * nodes);
        let still = Assumed { lifetime: Duration::from_secs(u32::MAX.into()), ..HOUR };
        assert!(crossover(&still, |cost| cost.upkeep).unwrap() > 1e6 * nodes / 10.0);
        assert!(crossover(&Assumed { rate: 1e15, ..still }, Cost::traffic).is_none());
        near(successors(1000), 10.0);
        near(successors(2), 1.0);
    }
}
