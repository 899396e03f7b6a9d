//! What goes wrong, and when: a plan drawn from the seed before the simulation begins.

use std::time::Duration;

use cartwheel_cluster::seams::Random;

use crate::world::SeededRandom;

/// The storage nodes. The first three found the cluster.
pub const NODES: [&str; 4] = ["node-a", "node-b", "node-c", LATE];
/// The storage node that joins late, or never.
pub const LATE: &str = "node-d";
/// The gateway.
pub const GATEWAY: &str = "gateway";

/// When things begin to go wrong, in milliseconds.
const FIRST_MS: u64 = 3_000;
/// When all machines lose power at once.
const POWER_CUT_MS: u64 = 11_000;
/// When things begin to go wrong again after that.
const SECOND_MS: u64 = 14_000;
/// When everything is whole again.
pub const HEALED: Duration = Duration::from_secs(22);

/// When the late storage node joins, in the midst of all faults: under every other seed.
pub fn joins(seed: u64) -> Option<Duration> {
    seed.is_multiple_of(2).then(|| SeededRandom::new(seed, "joins").millis(4_000..16_000))
}

/// Something that goes wrong with one storage node for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes between it and the gateway; what was under way is lost.
    Cut,
    /// What the gateway sends is lost.
    Deaf,
    /// What it answers is lost.
    Mute,
    /// All that passes between it and the gateway comes late.
    Stalled,
    /// Nothing passes between it and the next storage node.
    Apart,
    /// Its process dies; its disk stays.
    Crashed,
    /// It ends in an orderly way and starts again.
    Restarted,
    /// It can't reach the bucket.
    NoBucket,
}

const FAULTS: [Fault; 8] = [
    Fault::Cut,
    Fault::Deaf,
    Fault::Mute,
    Fault::Stalled,
    Fault::Apart,
    Fault::Crashed,
    Fault::Restarted,
    Fault::NoBucket,
];

/// A fault of a node begins or ends.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// When.
    pub at: Duration,
    /// Which node, as an index of [`NODES`].
    pub node: usize,
    /// What.
    pub fault: Fault,
    /// Does it begin?
    pub begins: bool,
}

/// The plan of a seed, by time.
pub fn plan(seed: u64) -> Vec<Event> {
    let random = SeededRandom::new(seed, "faults");
    let mut events = Vec::new();
    let mut add = |node, fault, from: u64, to: u64| {
        for (at, begins) in [(from, true), (to, false)] {
            events.push(Event { at: Duration::from_millis(at), node, fault, begins });
        }
    };
    let healed = u64::try_from(HEALED.as_millis()).unwrap();
    for (from, to) in [(FIRST_MS, POWER_CUT_MS), (SECOND_MS, healed)] {
        for node in 0..NODES.len() {
            let mut at = from + random.below(1_500);
            while at + 200 < to {
                let fault = FAULTS[usize::try_from(random.below(FAULTS.len() as u64)).unwrap()];
                let end = (at + 200 + random.below(3_000)).min(to - 1);
                add(node, fault, at, end);
                at = end + 200 + random.below(2_500);
            }
        }
    }
    for node in 0..NODES.len() {
        add(node, Fault::Crashed, POWER_CUT_MS, POWER_CUT_MS + 100 + random.below(1_500));
    }
    events.sort_by_key(|event| (event.at, event.node, event.begins));
    events
}
