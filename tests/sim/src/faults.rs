//! What goes wrong, and when: a plan drawn from the seed before the simulation begins.

use std::time::Duration;

use cartwheel_cluster::seams::Random;

use crate::options::Options;
use crate::world::SeededRandom;

/// The storage nodes. All but the last found the cluster.
pub const NODES: [&str; 6] = ["node-a", "node-b", "node-c", "node-d", "node-e", LATE];
/// How many of them found it.
pub const FOUNDERS: usize = NODES.len() - 1;
/// The storage node that joins late, or never.
pub const LATE: &str = "node-f";

/// When things begin to go wrong, and until when: a little of everything.
const FIRST_MS: (u64, u64) = (2_000, 9_000);
/// When all machines lose power at once.
const POWER_CUT_MS: u64 = 9_000;
/// When one or two nodes are away for long.
const ABSENCE_MS: (u64, u64) = (15_000, 24_000);
/// When a machine loses its disk.
const WIPE_MS: u64 = 25_000;
/// A little of everything, again.
const SECOND_MS: (u64, u64) = (29_500, 34_000);
/// When everything is whole again.
pub const HEALED: Duration = Duration::from_millis(34_000);
/// When nothing is amiss any more.
pub const CALM: Duration = Duration::from_millis(42_000);

/// When the late storage node joins, in the midst of all faults: under every other seed.
pub fn joins(seed: u64) -> Option<Duration> {
    seed.is_multiple_of(2).then(|| SeededRandom::new(seed, "joins").millis(3_000..20_000))
}

/// Something that goes wrong for a while. Nodes and gateways are indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes between a node and a gateway; what was under way is lost.
    Cut(usize, usize),
    /// What the gateway sends to the node is lost.
    Deaf(usize, usize),
    /// What the node answers to the gateway is lost.
    Mute(usize, usize),
    /// All that passes between a node and a gateway comes late.
    Stalled(usize, usize),
    /// Nothing passes between two nodes.
    Apart(usize, usize),
    /// What the first node sends to the second is lost.
    Unheard(usize, usize),
    /// All that passes between a node and everybody else comes late, as if it were stopped.
    Paused(usize),
    /// A node's process dies; its disk stays.
    Crashed(usize),
    /// A node's machine dies and comes back with an empty disk.
    Wiped(usize),
    /// A node ends in an orderly way and starts again.
    Restarted(usize),
    /// A node can't reach the bucket.
    NoBucket(usize),
    /// A gateway dies and comes back.
    GatewayCrashed(usize),
    /// A gateway can't reach the bucket.
    GatewayNoBucket(usize),
    /// Nobody can reach the bucket.
    BucketGone,
}

impl Fault {
    /// What it is called when faults are counted.
    pub fn kind(self) -> String {
        let said = format!("{self:?}");
        said.split('(').next().unwrap_or_default().to_owned()
    }
}

/// A fault begins or ends.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
    /// Does it begin?
    pub begins: bool,
}

/// The plan of a seed, as it is drawn.
struct Plan {
    random: SeededRandom,
    events: Vec<Event>,
}

impl Plan {
    fn below(&self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).unwrap()
    }

    fn add(&mut self, fault: Fault, from: u64, to: u64) {
        for (at, begins) in [(from, true), (to, false)] {
            self.events.push(Event { at: Duration::from_millis(at), fault, begins });
        }
    }

    /// Faults of one node, one after the other; `harsh` ones end processes too.
    fn trouble(&mut self, node: usize, (from, to): (u64, u64), harsh: bool) {
        let mut at = from + self.random.below(1_500);
        while at + 200 < to {
            let (gateway, other) = (self.below(2), (node + 1 + self.below(NODES.len() - 1)) % NODES.len());
            let fault = match self.random.below(if harsh { 10 } else { 8 }) {
                0 => Fault::Cut(node, gateway),
                1 => Fault::Deaf(node, gateway),
                2 => Fault::Mute(node, gateway),
                3 => Fault::Stalled(node, gateway),
                4 => Fault::Apart(node, other),
                5 => Fault::Unheard(node, other),
                6 => Fault::Paused(node),
                7 => Fault::NoBucket(node),
                8 => Fault::Crashed(node),
                _ => Fault::Restarted(node),
            };
            let end = (at + 200 + self.random.below(3_000)).min(to - 1);
            self.add(fault, at, end);
            at = end + 200 + self.random.below(2_500);
        }
    }
}

/// The plan of a seed, by time, of those faults that are to happen.
pub fn plan(options: &Options) -> Vec<Event> {
    let seed = options.seed;
    let mut plan = Plan { random: SeededRandom::new(seed, "faults"), events: Vec::new() };
    for node in 0..NODES.len() {
        plan.trouble(node, FIRST_MS, true);
        plan.trouble(node, SECOND_MS, true);
        let back = POWER_CUT_MS + 2_000 + plan.random.below(2_500);
        plan.add(Fault::Crashed(node), POWER_CUT_MS, back);
    }
    let away: Vec<usize> = {
        let first = plan.below(FOUNDERS);
        let second = (first + 1 + plan.below(FOUNDERS - 1)) % FOUNDERS;
        if plan.random.below(2) == 0 { vec![first] } else { vec![first, second] }
    };
    for node in 0..NODES.len() {
        if away.contains(&node) {
            let from = ABSENCE_MS.0 + plan.random.below(2_000);
            let to = ABSENCE_MS.1 - plan.random.below(2_000);
            plan.add(Fault::Crashed(node), from, to);
        } else {
            plan.trouble(node, ABSENCE_MS, false);
        }
    }
    // Alone: the other copies of what was acknowledged last must be there.
    let wiped = plan.below(FOUNDERS);
    let back = WIPE_MS + 300 + plan.random.below(1_500);
    plan.add(Fault::Wiped(wiped), WIPE_MS, back);
    for gateway in 0..2 {
        let from = [16_000, 30_000][gateway] + plan.random.below(2_000);
        let to = from + 300 + plan.random.below(1_500);
        plan.add(Fault::GatewayCrashed(gateway), from, to);
        let from = 5_000 + plan.random.below(26_000);
        let to = from + 500 + plan.random.below(2_000);
        plan.add(Fault::GatewayNoBucket(gateway), from, to);
    }
    let gone = 18_000 + plan.random.below(3_000);
    plan.add(Fault::BucketGone, gone, gone + 1_000 + plan.random.below(3_000));
    // Each begins and ends: two events, one number.
    let mut number = 0..;
    plan.events.retain(|_| options.has(number.next().unwrap_or(0) / 2));
    // Those of one moment in the order drawn.
    plan.events.sort_by_key(|event| event.at);
    plan.events
}
