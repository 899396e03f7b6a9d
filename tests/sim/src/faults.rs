//! What goes wrong, and when: a plan drawn from the seed before the simulation begins.

use std::time::Duration;

use cartwheel_cluster::seams::Random;

use crate::cluster::GATEWAYS;
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
/// When everything else goes wrong, each kind in its own time: from the start to shortly before all is whole.
const MORE_MS: (u64, u64) = (2_000, 33_200);
/// How far apart a rolling restart ends the nodes' processes.
const ROLLED_MS: u64 = 900;
/// How long two processes of one name are there.
const TWIN_MS: u64 = 4_000;
/// When everything is whole again.
pub const HEALED: Duration = Duration::from_millis(34_000);
/// When nothing is amiss any more.
pub const CALM: Duration = Duration::from_millis(42_000);

/// When the late storage node joins, in the midst of all faults: under every other seed.
pub fn joins(seed: u64) -> Option<Duration> {
    seed.is_multiple_of(2).then(|| SeededRandom::new(seed, "joins").millis(3_000..20_000))
}

/// A host, by its number in [`HOSTS`].
pub type Host = usize;
/// Hosts that links are between: the storage nodes, the gateways, a second machine that a process of some node's name runs
/// on, and the clients.
pub const HOSTS: [&str; 13] = [
    NODES[0],
    NODES[1],
    NODES[2],
    NODES[3],
    NODES[4],
    LATE,
    GATEWAYS[0],
    GATEWAYS[1],
    TWIN,
    "client-0",
    "client-1",
    "client-2",
    "client-3",
];
/// The second machine.
pub const TWIN: &str = "twin";
/// Its number.
pub const TWIN_HOST: Host = 8;
/// The number of the first gateway.
pub const GATEWAY_HOST: Host = NODES.len();
/// How many hosts are storage nodes and gateways.
pub const SERVERS: usize = NODES.len() + GATEWAYS.len();
/// The number of the first client.
pub const CLIENT_HOST: Host = 9;

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
    /// Nothing passes between a node and all other nodes and gateways.
    Isolated(usize),
    /// Nothing passes between the nodes and gateways in the set (bits) and the others.
    Halves(u32),
    /// What each node sends to the next is lost, all around.
    RingOfCuts,
    /// Nothing passes between a gateway and all nodes.
    GatewayAlone(usize),
    /// Nothing passes between the clients and a gateway.
    ClientsCut(usize),
    /// What a gateway answers to its clients is lost.
    ClientsDeaf(usize),
    /// Every message between the two hosts takes so many milliseconds.
    SlowLink(Host, Host, u64),
    /// One of so many messages between the two hosts is lost, with all that is under way.
    LossyLink(Host, Host, u32),
    /// Some of the frames that a host sends arrive twice.
    FramesTwice(Host),
    /// Somebody sets the wall clock of a host, by so many seconds.
    ClockJumped(Host, i64),
    /// A node's disk is full; it starts again when there is room.
    DiskFull(usize),
    /// The syncs of a node's disk fail; it starts again when they do not any more.
    DiskFails(usize),
    /// A node's disk takes seconds.
    DiskSlow(usize),
    /// A node's machine dies and comes back with a disk that can only be read; until it is mended.
    DiskReadOnly(usize),
    /// The bucket takes its time with a host, or with all.
    BucketSlow(Option<Host>),
    /// Half of what a host, or everybody, asks of the bucket is answered with an error and not done.
    BucketErrors(Option<Host>),
    /// A third of what a host, or everybody, asks of the bucket is done, and the answer is lost or cut off.
    BucketMute(Option<Host>),
    /// What a host, or everybody, writes or deletes fails half of the time, and lands seconds later.
    BucketLate(Option<Host>),
    /// A node or a gateway stands still.
    Frozen(Host),
    /// A node's process dies again and again.
    CrashedAgain(usize),
    /// One node after the other ends in an orderly way and starts again.
    RolledOver(usize),
    /// A second process of a node's name starts on another machine, with another disk, while the first goes on; then that
    /// machine is gone, and the first starts again with its own disk. Meanwhile the first is cut off as told.
    Twin(usize, Seclusion),
}

/// From what the older of two processes of one name is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seclusion {
    /// Nothing.
    None,
    /// The bucket.
    Bucket,
    /// The other nodes.
    Nodes,
    /// Both.
    BucketAndNodes,
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

/// A kind of trouble of which a seed has some or none, from a stream of its own.
struct More<'a> {
    random: SeededRandom,
    events: &'a mut Vec<Event>,
}

impl More<'_> {
    fn below(&self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).unwrap()
    }

    /// Two hosts that are not the same.
    fn two(&self) -> (Host, Host) {
        let first = self.below(SERVERS);
        (first, (first + 1 + self.below(SERVERS - 1)) % SERVERS)
    }

    /// A host, or all.
    fn whose(&self) -> Option<Host> {
        let host = self.below(SERVERS);
        (self.below(3) > 0).then_some(host)
    }

    /// `many` faults at any time, each for a while of up to `longest_ms`.
    fn add(&mut self, many: usize, longest_ms: u64, draw: impl Fn(&Self) -> Fault) {
        for _ in 0..many {
            let fault = draw(self);
            let from = MORE_MS.0 + self.random.below(MORE_MS.1 - MORE_MS.0 - 300);
            let to = (from + 300 + self.random.below(longest_ms - 300)).min(MORE_MS.1);
            for (at, begins) in [(from, true), (to, false)] {
                self.events.push(Event { at: Duration::from_millis(at), fault, begins });
            }
        }
    }
}

/// Adds kinds of trouble: of each, a seed has some or none, so that under some seeds two meet that hide each other
/// where everything happens.
fn add_more(seed: u64, events: &mut Vec<Event>) {
    type Kind = (&'static str, fn(&mut More<'_>));
    let kinds: [Kind; 6] = [
        ("links", |more| {
            let many = 2 + more.below(4);
            more.add(many, 3_000, |more| {
                let (a, b) = more.two();
                match more.below(9) {
                    0 => Fault::Isolated(more.below(NODES.len())),
                    1 => Fault::Halves(1 + u32::try_from(more.below((1 << SERVERS) - 2)).unwrap()),
                    2 => Fault::RingOfCuts,
                    3 => Fault::GatewayAlone(more.below(GATEWAYS.len())),
                    4 => Fault::ClientsCut(more.below(GATEWAYS.len())),
                    5 => Fault::ClientsDeaf(more.below(GATEWAYS.len())),
                    6 => Fault::SlowLink(a, b, 50 + more.random.below(950)),
                    7 => Fault::LossyLink(a, b, 5 + u32::try_from(more.below(60)).unwrap()),
                    _ => Fault::FramesTwice(a),
                }
            });
            // It does little else.
            more.add(2, 6_000, |more| Fault::FramesTwice(more.below(SERVERS)));
        }),
        ("clocks", |more| {
            let many = 1 + more.below(4);
            more.add(many, 9_000, |more| {
                let seconds = i64::try_from(more.below(7_200)).unwrap() - 3_600;
                Fault::ClockJumped(more.below(SERVERS), seconds)
            });
        }),
        ("disks", |more| {
            let many = 1 + more.below(4);
            more.add(many, 4_000, |more| {
                let node = more.below(NODES.len());
                match more.below(4) {
                    0 => Fault::DiskFull(node),
                    1 => Fault::DiskFails(node),
                    2 => Fault::DiskSlow(node),
                    _ => Fault::DiskReadOnly(node),
                }
            });
        }),
        ("bucket", |more| {
            let many = 1 + more.below(4);
            more.add(many, 5_000, |more| {
                let whose = more.whose();
                match more.below(5) {
                    0 => Fault::BucketSlow(whose),
                    1 => Fault::BucketErrors(whose),
                    2 => Fault::BucketMute(whose),
                    _ => Fault::BucketLate(whose),
                }
            });
        }),
        ("pauses", |more| {
            let many = 1 + more.below(4);
            more.add(many, 3_000, |more| Fault::Frozen(more.below(SERVERS)));
        }),
        ("crash loops", |more| {
            let (node, many) = (more.below(NODES.len()), 2 + more.below(5));
            let mut at = MORE_MS.0 + more.random.below(20_000);
            for _ in 0..many {
                let back = at + 50 + more.random.below(400);
                for (at, begins) in [(at, true), (back, false)] {
                    let fault = Fault::CrashedAgain(node);
                    more.events.push(Event { at: Duration::from_millis(at), fault, begins });
                }
                at = back + 50 + more.random.below(1_200);
            }
        }),
    ];
    for (name, add) in kinds {
        let mut more = More { random: SeededRandom::new(seed, &format!("faults: {name}")), events };
        if more.below(5) < 3 {
            add(&mut more);
        }
    }
}

/// The plan of a seed, by time, of those faults that are to happen.
///
/// What clients are told is safe is on the disks of two nodes at least, so no two disks may be lost before what one of
/// them held is elsewhere: one machine is wiped, once, or is replaced by another while its process goes on, which loses
/// as much. A disk that fails, fills up, or can't be written to, loses nothing that was acknowledged. Any number of
/// processes may die at once.
pub fn plan(options: &Options) -> Vec<Event> {
    let seed = options.seed;
    let mut plan = Plan { random: SeededRandom::new(seed, "faults"), events: Vec::new() };
    let variant = SeededRandom::new(seed, "variant");
    // In place of the power cut, and of the wiped disk.
    let (rolls, has_twin) = (variant.below(3) == 0, variant.below(3) == 0);
    for node in 0..NODES.len() {
        plan.trouble(node, FIRST_MS, true);
        plan.trouble(node, SECOND_MS, true);
        let back = POWER_CUT_MS + 2_000 + plan.random.below(2_500);
        if rolls {
            let at = POWER_CUT_MS + node as u64 * ROLLED_MS;
            plan.add(Fault::RolledOver(node), at, at + ROLLED_MS);
        } else {
            plan.add(Fault::Crashed(node), POWER_CUT_MS, back);
        }
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
    let wiped = plan.below(FOUNDERS);
    let back = WIPE_MS + 300 + plan.random.below(1_500);
    if has_twin {
        let seclusion = match variant.below(4) {
            0 => Seclusion::None,
            1 => Seclusion::Bucket,
            2 => Seclusion::Nodes,
            _ => Seclusion::BucketAndNodes,
        };
        plan.add(Fault::Twin(wiped, seclusion), WIPE_MS, WIPE_MS + TWIN_MS);
    } else {
        plan.add(Fault::Wiped(wiped), WIPE_MS, back);
    }
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
    add_more(seed, &mut plan.events);
    // Each begins and ends: two events, one number.
    let mut number = 0..;
    plan.events.retain(|_| options.has(number.next().unwrap_or(0) / 2));
    // Those of one moment in the order drawn.
    plan.events.sort_by_key(|event| event.at);
    plan.events
}
