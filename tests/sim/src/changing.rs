//! The ring changes while clients write and read: storage nodes join, leave, get another weight, die and are forgotten,
//! at moments drawn from the seed, one change after the other; whoever takes part dies at every step of it
//! (`doom.rs`) and starts again, and some hosts do not see the bucket, so that they go by an old ring.
//! In the end every change is completed or undone, and all homes of a partition hold the same (`ending.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cartwheel_storage_node::NodeConfig;
use turmoil::Sim;

use crate::checker::Checker;
use crate::client::{Client, Shared, WRITERS};
use crate::cluster::{GATEWAYS, Machine, Place, Presence, add_gateway};
use crate::ending::End;
use crate::limits;
use crate::mischief;
use crate::operator::Operator;
use crate::options::Options;
use crate::report::{Check, Outcome, Scene as Name};
use crate::run::{Ended, finish};
use crate::weather::Weather;
use crate::world::SeededRandom;
use crate::world::lock::Lock;
use crate::{steps, wire};
use cartwheel_bucket::{CERTAIN, Faults, FaultyBucket, OperationFaults};

/// The storage nodes. The last two are switched on when they are to join.
pub const NODES: [&str; 7] = ["node-a", "node-b", "node-c", "node-d", "node-e", "node-f", "node-g"];
/// How many found the cluster.
pub const FOUNDERS: usize = 5;
/// The keys that the writers share: many, so that most changes move some.
const KEYS: u64 = 48;
/// The longest that a simulation may last.
const LONGEST: Duration = Duration::from_secs(1_200);
/// The longest that a message is on its way.
const LATENCY: Duration = Duration::from_millis(10);

/// What the operator does to machines and links, carried out between two steps of the simulation.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// The process dies; its disk stays.
    Crash(usize),
    /// It starts.
    Start(usize),
    /// It gets a new disk, while it is off.
    Wipe(usize),
    /// A node does not reach the bucket any more, or does again.
    NodeBucket(usize, bool),
    /// The same of a gateway.
    GatewayBucket(usize, bool),
    /// Nothing passes between a node and a gateway any more, or does again.
    Link(usize, usize, bool),
    /// Buckets stop failing at random.
    Heal,
}

impl Order {
    /// The fault that it is, if it is one.
    fn kind(self) -> Option<&'static str> {
        match self {
            Self::Crash(_) => Some("crashed"),
            Self::Wipe(_) => Some("wiped"),
            Self::NodeBucket(_, false) => Some("no bucket"),
            Self::GatewayBucket(_, false) => Some("gateway without bucket"),
            Self::Link(_, _, false) => Some("cut"),
            _ => None,
        }
    }
}

/// What the operator, the reader and the loop share.
pub struct Scene {
    /// What all clients share.
    pub shared: Arc<Shared>,
    /// Where they are.
    pub place: Place,
    /// What is to be done.
    pub orders: Lock<Vec<Order>>,
    /// Which nodes are on, as the operator wants it.
    pub on: Lock<[bool; NODES.len()]>,
    /// Changes that were settled.
    pub settled: Lock<u32>,
}

impl Scene {
    /// What is looked at in the end.
    pub fn end(&self) -> End {
        let (shared, place) = (Arc::clone(&self.shared), self.place.clone());
        End { repairs: repairs(shared.seed), shared, place }
    }
}

/// Do the homes compare what they hold? Where they do not, only the change itself brings data where it belongs.
fn repairs(seed: u64) -> bool {
    !seed.is_multiple_of(2)
}

/// Do the homes forget deletions within the simulation?
fn forgets(seed: u64) -> bool {
    seed.is_multiple_of(3)
}

fn configure(seed: u64, config: &mut NodeConfig) {
    config.repair_every = Duration::from_secs(if repairs(seed) { 5 } else { 86_400 });
    config.delete_after = Duration::from_secs(3);
    if forgets(seed) {
        config.reap_after = Duration::from_secs(2);
    }
}

/// Faults of a bucket: rarer than in the big simulation, as a change asks for hundreds of objects.
fn faults(unavailable: bool) -> Faults {
    let each = OperationFaults { refuse: CERTAIN / 300, mute: CERTAIN / 300, slow: CERTAIN / 10 };
    Faults { unavailable, slow_by: Duration::from_millis(300), ..Faults::everywhere(each) }
}

struct Hosts<'a> {
    sim: Sim<'a>,
    machines: Vec<Arc<Machine>>,
    gateways: Vec<Arc<FaultyBucket>>,
    presence: Arc<Presence>,
    random: SeededRandom,
    /// Who died at a step and starts again, and when.
    returning: Vec<(Duration, &'static str)>,
}

/// Runs the seed.
pub fn run(options: &Options) -> Outcome {
    let seed = options.seed;
    let place = Place { configure, level: options.level, ..Place::new(seed, options.bug) };
    let presence = Arc::new(Presence::default());
    let mut checker = Checker::default();
    checker.forgets = forgets(seed);
    let shared = Arc::new(Shared {
        seed,
        bug: options.bug,
        homes_are_fresh: true,
        keys: options.keys(KEYS),
        calm: Lock::new(Duration::MAX),
        stop: Lock::new(options.until.unwrap_or(Duration::MAX)),
        writers: options.writers(WRITERS),
        trace: Arc::clone(&place.trace),
        checker: Lock::new(checker),
        stopped: Lock::new(0),
        presence: Arc::clone(&presence),
        objects: Arc::clone(&place.objects),
        sight: Arc::clone(&place.sight),
        weather: Weather::unknown(),
        settled: Lock::new(None),
    });
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(LONGEST)
        .max_message_latency(LATENCY)
        .build();
    wire::add_server(&mut sim, &place);
    place.found(&NODES[..FOUNDERS]);
    let add = |name: &&'static str| Machine::add(&mut sim, &place, name, Duration::ZERO);
    let machines: Vec<_> = NODES.iter().map(add).collect();
    for spare in &NODES[FOUNDERS..] {
        sim.crash(*spare);
    }
    let gateways = (0..GATEWAYS.len())
        .map(|number| add_gateway(&mut sim, &place, number, &presence).reach.faults)
        .collect();
    let scene = Arc::new(Scene {
        shared: Arc::clone(&shared),
        place: place.clone(),
        orders: Lock::default(),
        on: Lock::new(std::array::from_fn(|node| node < FOUNDERS)),
        settled: Lock::new(0),
    });
    for number in 0..shared.writers {
        let name = format!("client-{number}");
        let client = Client::new(&name, Arc::clone(&shared));
        sim.client(name, async move {
            client.fill_carts().await;
            Ok(())
        });
    }
    let odd = (Client::new("mischief", Arc::clone(&shared)), SeededRandom::new(seed, "mischief draws"));
    sim.client("mischief", async move {
        mischief::be_odd(odd.0, odd.1).await;
        Ok(())
    });
    let watched = (Arc::clone(&shared), place.clone());
    sim.client("watcher", async move {
        limits::watch(&watched.0, &watched.1).await;
        Ok(())
    });
    let operator = Operator::new(Arc::clone(&scene), options.clone());
    sim.client("operator", async move {
        operator.change_the_ring().await;
        Ok(())
    });
    let random = SeededRandom::new(seed, "doom");
    let mut hosts = Hosts { sim, machines, gateways, presence, random, returning: Vec::new() };
    let deaths = hosts.drive(&scene);
    let buckets = hosts.machines.iter().map(|m| &m.reach.faults).chain(&hosts.gateways);
    let injected: u64 = buckets.map(|faults| faults.injected()).sum();
    let simulated = hosts.sim.elapsed();
    drop(hosts);
    for version in place.doom.made_twice() {
        shared.checker.lock().violate(Check::Ring, format!("{version} was made twice"));
    }
    let changes = *scene.settled.lock();
    shared.checker.lock().counts.rings += u64::from(changes);
    finish(&shared, Ended { scene: Name::Changes, faults: deaths, injected, simulated })
}

impl Hosts<'_> {
    /// Steps until all clients have finished; which processes died at which step, and how often.
    fn drive(&mut self, scene: &Scene) -> BTreeMap<String, u64> {
        let (shared, doom) = (&scene.shared, Arc::clone(&scene.place.doom));
        let mut deaths = BTreeMap::new();
        self.set_buckets(faults(false));
        loop {
            let orders = std::mem::take(&mut *scene.orders.lock());
            for order in orders {
                if let Some(kind) = order.kind() {
                    *deaths.entry(kind.to_owned()).or_default() += 1;
                }
                shared.trace.line_at(self.sim.elapsed(), "operator", &format!("{order:?}"));
                self.carry_out(order, scene);
            }
            for (who, step) in doom.take_dying() {
                shared.trace.line_at(self.sim.elapsed(), "doom", &format!("{who} dies: {step:?}"));
                *deaths.entry(format!("dies at {step:?}")).or_default() += 1;
                self.doomed(&who);
            }
            let now = self.sim.elapsed();
            while let Some(at) = self.returning.iter().position(|(at, _)| *at <= now) {
                let (_, who) = self.returning.remove(at);
                self.sim.bounce(who);
            }
            match steps::step(&mut self.sim) {
                Ok(false) => {}
                Ok(true) => return deaths,
                Err(error) => {
                    shared.checker.lock().violate(Check::Broke, format!("the simulation broke off: {error}"));
                    return deaths;
                }
            }
        }
    }

    fn doomed(&mut self, who: &str) {
        let Some(name) = NODES.iter().chain(&GATEWAYS).find(|name| **name == who).copied() else { return };
        if let Some(gateway) = GATEWAYS.iter().position(|gateway| *gateway == name) {
            self.presence.lost(gateway);
        }
        self.sim.crash(name);
        let at = self.sim.elapsed() + self.random.millis(50..2_500);
        self.returning.push((at, name));
    }

    fn set_buckets(&self, faults: Faults) {
        self.machines.iter().for_each(|machine| machine.reach.faults.set(faults));
        self.gateways.iter().for_each(|gateway| gateway.set(faults));
    }

    fn carry_out(&mut self, order: Order, scene: &Scene) {
        match order {
            Order::Crash(node) => {
                scene.on.lock()[node] = false;
                self.returning.retain(|(_, name)| *name != NODES[node]);
                self.sim.crash(NODES[node]);
            }
            Order::Start(node) => {
                scene.on.lock()[node] = true;
                self.returning.retain(|(_, name)| *name != NODES[node]);
                self.sim.bounce(NODES[node]);
            }
            Order::Wipe(node) => self.machines[node].wipe(),
            Order::NodeBucket(node, there) => self.machines[node].reach.faults.set(faults(!there)),
            Order::GatewayBucket(gateway, there) => self.gateways[gateway].set(faults(!there)),
            Order::Link(node, gateway, true) => self.sim.repair(GATEWAYS[gateway], NODES[node]),
            Order::Link(node, gateway, false) => self.sim.partition(GATEWAYS[gateway], NODES[node]),
            Order::Heal => {
                scene.place.well.store(true, Ordering::Relaxed);
                self.set_buckets(Faults::default());
            }
        }
    }
}
