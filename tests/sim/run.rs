//! One seed: the hosts, the loop that lets faults begin and end, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::{Faults, FaultyBucket};
use turmoil::Sim;

use crate::checker::Checker;
use crate::client::{Client, KEYS, Shared, WRITERS};
use crate::cluster::{GATEWAYS, Machine, Place, Presence, add_gateway, bucket_faults};
use crate::faults::{CALM, Event, FOUNDERS, Fault, HEALED, LATE, NODES, joins, plan};
use crate::world::Bug;
use crate::world::lock::Lock;

/// The longest that a simulation may last.
const LONGEST: Duration = Duration::from_secs(120);
/// The longest that a message is on its way.
const LATENCY: Duration = Duration::from_millis(20);
/// When writers stop: a while after nothing is amiss any more.
const STOP: Duration = Duration::from_secs(45);

/// What came of a run.
pub struct Outcome {
    /// All that happened, byte by byte.
    pub trace: Vec<u8>,
    /// What can't be true.
    pub violations: Vec<String>,
    /// In one line.
    pub summary: String,
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
pub fn run(seed: u64, bug: Bug) -> Outcome {
    let place = Place::new(seed, bug);
    let presence = Arc::new(Presence::default());
    let shared = Arc::new(Shared {
        seed,
        bug,
        homes_are_fresh: false,
        keys: KEYS,
        calm: Lock::new(CALM),
        stop: Lock::new(STOP),
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
    for number in 0..WRITERS {
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
    let faults = hosts.drive(plan(seed), &shared);
    let buckets = hosts.machines.iter().map(|m| &m.faults).chain(&hosts.gateways);
    let injected: u64 = buckets.map(|faults| faults.injected()).sum();
    let simulated = hosts.sim.elapsed();
    drop(hosts);
    finish(&shared, faults, injected, simulated)
}

impl Hosts<'_> {
    /// Steps until all clients have finished, with faults beginning and ending as planned; how many there were.
    fn drive(&mut self, plan: Vec<Event>, shared: &Shared) -> usize {
        let faults = plan.iter().filter(|event| event.begins).count();
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
                    shared.checker.lock().violate(format!("the simulation broke off: {error}"));
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

pub fn finish(shared: &Shared, faults: usize, injected: u64, simulated: Duration) -> Outcome {
    let mut checker = shared.checker.lock();
    let c = &checker.counts;
    let settled = shared.settled.lock().map_or("never".to_owned(), |at| format!("{:.1} s", at.as_secs_f64()));
    let summary = format!(
        "seed {}: {:.1} s simulated, {} requests ({} writes acknowledged, {} refused, {} unknown; {} reads, {} \
         without a quorum, {} with siblings), {} answers with fallbacks and {} from the bucket, {} stale reads \
         and {} said to be from the bucket, {} bucket operations, {faults} faults and {injected} injected into \
         the bucket, {} writes minted twice and {} shown again, settled at {settled}, {} violations",
        shared.seed,
        simulated.as_secs_f64(),
        c.requests,
        c.acknowledged,
        c.refused,
        c.unknown,
        c.reads,
        c.unread,
        c.conflicts,
        c.fallbacks,
        c.degraded,
        c.stale,
        c.stale_degraded,
        shared.trace.bucket_operations(),
        checker.minted_twice(),
        c.shown_again,
        checker.violations.len(),
    );
    for stale in &checker.stale {
        shared.trace.line_at(simulated, "stale", stale);
    }
    shared.trace.line_at(simulated, "end", &summary);
    Outcome { trace: shared.trace.bytes(), violations: std::mem::take(&mut checker.violations), summary }
}
