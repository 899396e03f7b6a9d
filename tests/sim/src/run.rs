//! One seed: the hosts, the loop that lets faults begin and end, and what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::{Faults, FaultyBucket};
use turmoil::Sim;

use crate::checker::Checker;
use crate::client::{Client, KEYS, Shared, WRITERS};
use crate::cluster::{GATEWAYS, Machine, Place, Presence, add_gateway, bucket_faults};
use crate::faults::{CALM, Event, FOUNDERS, Fault, HEALED, LATE, NODES, joins, plan};
use crate::options::Options;
use crate::report::{Check, Outcome, Report, Scene};
use crate::world::lock::Lock;

/// The longest that a simulation may last.
const LONGEST: Duration = Duration::from_secs(120);
/// The longest that a message is on its way.
const LATENCY: Duration = Duration::from_millis(20);
/// When writers stop: a while after nothing is amiss any more.
const STOP: Duration = Duration::from_secs(45);

/// How a run ended.
pub struct Ended {
    /// What was simulated.
    pub scene: Scene,
    /// How often each kind of fault began.
    pub faults: BTreeMap<String, u64>,
    /// How many operations of the bucket failed on purpose.
    pub injected: u64,
    /// How much time passed.
    pub simulated: Duration,
}

/// The hosts of a simulation, as faults reach them.
struct Hosts<'a> {
    sim: Sim<'a>,
    machines: Vec<Arc<Machine>>,
    /// Which of them are told to end and start again when they have.
    ending: Vec<bool>,
    gateways: Vec<Arc<FaultyBucket>>,
    presence: Arc<Presence>,
}

/// Runs the seed.
pub fn run(options: &Options) -> Outcome {
    let (seed, bug) = (options.seed, options.bug);
    let place = Place::new(seed, bug);
    let writers = options.writers.unwrap_or(WRITERS).min(WRITERS);
    let presence = Arc::new(Presence::default());
    let shared = Arc::new(Shared {
        seed,
        bug,
        homes_are_fresh: false,
        keys: KEYS,
        calm: Lock::new(CALM),
        stop: Lock::new(options.until.unwrap_or(STOP).min(STOP)),
        writers,
        trace: Arc::clone(&place.trace),
        checker: Lock::new(Checker::default()),
        stopped: Lock::new(0),
        presence: Arc::clone(&presence),
        objects: Arc::clone(&place.objects),
        settled: Lock::new(None),
    });
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(LONGEST)
        .max_message_latency(LATENCY)
        .build();
    place.found(&NODES[..FOUNDERS]);
    let late = joins(seed).unwrap_or(Duration::MAX);
    let from = |name| if name == LATE { late } else { Duration::ZERO };
    let machines: Vec<_> =
        NODES.iter().map(|name| Machine::add(&mut sim, &place, name, from(*name))).collect();
    let gateways =
        (0..GATEWAYS.len()).map(|number| add_gateway(&mut sim, &place, number, &presence)).collect();
    for number in 0..writers {
        let name = format!("client-{number}");
        let client = Client::new(&name, Arc::clone(&shared));
        sim.client(name, async move {
            client.fill_carts().await;
            Ok(())
        });
    }
    let reader = Client::new("reader", Arc::clone(&shared));
    sim.client("reader", async move {
        reader.look_at_the_end().await;
        Ok(())
    });
    let ending = vec![false; machines.len()];
    let mut hosts = Hosts { sim, machines, ending, gateways, presence };
    let faults = hosts.drive(plan(options), &shared);
    let buckets = hosts.machines.iter().map(|m| &m.faults).chain(&hosts.gateways);
    let injected: u64 = buckets.map(|faults| faults.injected()).sum();
    let simulated = hosts.sim.elapsed();
    drop(hosts);
    finish(&shared, Ended { scene: Scene::Whole, faults, injected, simulated })
}

impl Hosts<'_> {
    /// Steps until all clients have finished, with faults beginning and ending as planned; how many of each kind there were.
    fn drive(&mut self, plan: Vec<Event>, shared: &Shared) -> BTreeMap<String, u64> {
        let mut faults = BTreeMap::new();
        for event in plan.iter().filter(|event| event.begins) {
            *faults.entry(event.fault.kind()).or_default() += 1;
        }
        let mut plan = plan.into_iter().peekable();
        let mut healed = false;
        self.set_buckets(bucket_faults(false));
        loop {
            while let Some(event) = plan.next_if(|event| event.at <= self.sim.elapsed()) {
                let what = if event.begins { "begins" } else { "ends" };
                shared.trace.line_at(self.sim.elapsed(), "fault", &format!("{:?} {what}", event.fault));
                self.apply(event);
            }
            if !healed && self.sim.elapsed() >= HEALED {
                healed = true;
                shared.trace.line_at(self.sim.elapsed(), "fault", "all have ended");
                self.heal();
            }
            for (node, ending) in self.ending.iter_mut().enumerate() {
                if *ending && !self.sim.is_host_running(NODES[node]) {
                    *ending = false;
                    self.sim.bounce(NODES[node]);
                }
            }
            match self.sim.step() {
                Ok(false) => {}
                Ok(true) => return faults,
                Err(error) => {
                    shared.checker.lock().violate(Check::Broke, format!("the simulation broke off: {error}"));
                    return faults;
                }
            }
        }
    }

    fn set_buckets(&self, faults: Faults) {
        self.machines.iter().for_each(|machine| machine.faults.set(faults));
        self.gateways.iter().for_each(|gateway| gateway.set(faults));
    }

    /// Faults of two kinds may have met on one link: none is left now.
    fn heal(&self) {
        self.set_buckets(Faults::default());
        for (at, node) in NODES.iter().enumerate() {
            for other in NODES[at + 1..].iter().chain(&GATEWAYS) {
                self.sim.release(*node, *other);
                self.sim.repair(*node, *other);
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let sim = &mut self.sim;
        let begins = event.begins;
        match event.fault {
            Fault::Cut(node, gateway) if begins => sim.partition(GATEWAYS[gateway], NODES[node]),
            Fault::Cut(node, gateway) => sim.repair(GATEWAYS[gateway], NODES[node]),
            Fault::Deaf(node, gateway) if begins => sim.partition_oneway(GATEWAYS[gateway], NODES[node]),
            Fault::Deaf(node, gateway) => sim.repair_oneway(GATEWAYS[gateway], NODES[node]),
            Fault::Mute(node, gateway) if begins => sim.partition_oneway(NODES[node], GATEWAYS[gateway]),
            Fault::Mute(node, gateway) => sim.repair_oneway(NODES[node], GATEWAYS[gateway]),
            Fault::Stalled(node, gateway) if begins => sim.hold(GATEWAYS[gateway], NODES[node]),
            Fault::Stalled(node, gateway) => sim.release(GATEWAYS[gateway], NODES[node]),
            Fault::Apart(node, other) if begins => sim.partition(NODES[node], NODES[other]),
            Fault::Apart(node, other) => sim.repair(NODES[node], NODES[other]),
            Fault::Unheard(node, other) if begins => sim.partition_oneway(NODES[node], NODES[other]),
            Fault::Unheard(node, other) => sim.repair_oneway(NODES[node], NODES[other]),
            Fault::Paused(node) => {
                let others = NODES.iter().chain(&GATEWAYS).filter(|other| **other != NODES[node]);
                for other in others {
                    if begins {
                        sim.hold(NODES[node], *other);
                    } else {
                        sim.release(NODES[node], *other);
                    }
                }
            }
            Fault::Crashed(node) | Fault::Wiped(node) if begins => {
                self.ending[node] = false;
                sim.crash(NODES[node]);
                if let Fault::Wiped(_) = event.fault {
                    self.machines[node].wipe();
                }
            }
            Fault::Crashed(node) | Fault::Wiped(node) => sim.bounce(NODES[node]),
            Fault::Restarted(node) if begins => {
                self.ending[node] = true;
                self.machines[node].end.notify_one();
            }
            // It starts again when it has ended.
            Fault::Restarted(_) => {}
            Fault::NoBucket(node) => self.machines[node].faults.set(bucket_faults(begins)),
            Fault::GatewayCrashed(gateway) if begins => {
                self.presence.lost(gateway);
                sim.crash(GATEWAYS[gateway]);
            }
            Fault::GatewayCrashed(gateway) => sim.bounce(GATEWAYS[gateway]),
            Fault::GatewayNoBucket(gateway) => self.gateways[gateway].set(bucket_faults(begins)),
            Fault::BucketGone => self.set_buckets(bucket_faults(begins)),
        }
    }
}

/// Puts together what came of a run.
pub fn finish(shared: &Shared, ended: Ended) -> Outcome {
    let Ended { scene, faults, injected, simulated } = ended;
    let mut checker = shared.checker.lock();
    let c = &checker.counts;
    let settled = shared.settled.lock().map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
    let counts = [
        ("requests", c.requests),
        ("writes acknowledged", c.acknowledged),
        ("writes refused", c.refused),
        ("writes of unknown fate", c.unknown),
        ("reads", c.reads),
        ("reads without a quorum", c.unread),
        ("reads with siblings", c.conflicts),
        ("answers with fallbacks", c.fallbacks),
        ("answers of the bucket", c.degraded),
        ("stale reads while something was amiss", c.stale),
        ("stale reads said to be the bucket's", c.stale_degraded),
        ("bucket operations", shared.trace.bucket_operations()),
        ("failures injected into the bucket", injected),
        ("writes minted twice", checker.minted_twice() as u64),
        ("values shown again", c.shown_again),
        ("ring versions settled", c.rings),
        ("ms until settled", settled),
    ];
    let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    for stale in &checker.stale {
        shared.trace.line_at(simulated, "stale", stale);
    }
    let violations = std::mem::take(&mut checker.violations);
    let report = Report { scene, seed: shared.seed, simulated, counts, faults, violations };
    shared.trace.line_at(simulated, "end", &report.to_string());
    Outcome { trace: shared.trace.bytes(), report }
}
