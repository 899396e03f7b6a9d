//! One seed: the hosts, the loop that lets faults begin and end, and what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cartwheel_storage_node::NodeConfig;

use crate::checker::Checker;
use crate::client::{Client, KEYS, Shared, WRITERS};
use crate::cluster::{GATEWAYS, Machine, Place, Presence, add_gateway};
use crate::ending::{self, End};
use crate::faults::{CALM, FOUNDERS, LATE, NODES, TWIN, joins, plan};
use crate::hosts::{Hosts, client};
use crate::limits;
use crate::mischief;
use crate::options::Options;
use crate::report::{Check, Outcome, Report, Scene};
use crate::weather::Weather;
use crate::wire;
use crate::world::SeededRandom;
use crate::world::lock::Lock;

/// The longest that a simulation may last.
const LONGEST: Duration = Duration::from_secs(360);
/// The longest that a message is on its way, on a link that nothing is amiss with.
pub const LATENCY: Duration = Duration::from_millis(20);
/// When writers stop: a while after nothing is amiss any more.
const STOP: Duration = Duration::from_secs(45);

/// How far one step of the simulation goes: most of what it costs is paid per step and host, whatever happens in it.
/// Timers are exact within a step; messages are delivered between steps, so that its length is part of their latency.
const TICK_MS: (u64, u64) = (3, 6);

fn tick(seed: u64) -> Duration {
    SeededRandom::new(seed, "tick").millis(TICK_MS.0..TICK_MS.1 + 1)
}

/// Under every other seed what is not needed any more is deleted while the simulation goes on.
fn configure(seed: u64, config: &mut NodeConfig) {
    if seed % 4 < 2 {
        config.delete_after = Duration::from_secs(10);
    }
}

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

/// Runs the seed.
pub fn run(options: &Options) -> Outcome {
    let (seed, bug) = (options.seed, options.bug);
    let place = Place { configure, level: options.level, ..Place::new(seed, bug) };
    let writers = options.writers(WRITERS);
    let presence = Arc::new(Presence::default());
    let shared = Arc::new(Shared {
        seed,
        bug,
        homes_are_fresh: false,
        keys: options.keys(KEYS),
        calm: Lock::new(CALM),
        stop: Lock::new(options.until.unwrap_or(STOP).min(STOP)),
        writers,
        trace: Arc::clone(&place.trace),
        checker: Lock::new(Checker::default()),
        stopped: Lock::new(0),
        presence: Arc::clone(&presence),
        objects: Arc::clone(&place.objects),
        sight: Arc::clone(&place.sight),
        weather: Weather::of(&plan(options), joins(seed)),
        settled: Lock::new(None),
    });
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(LONGEST)
        .max_message_latency(LATENCY)
        .tick_duration(tick(seed))
        .enable_random_order()
        .build();
    wire::add_server(&mut sim, &place);
    place.found(&NODES[..FOUNDERS]);
    let late = joins(seed).unwrap_or(Duration::MAX);
    let from = |name| if name == LATE { late } else { Duration::ZERO };
    let machines: Vec<_> =
        NODES.iter().chain([&TWIN]).map(|name| Machine::add(&mut sim, &place, name, from(*name))).collect();
    let gateways =
        (0..GATEWAYS.len()).map(|number| add_gateway(&mut sim, &place, number, &presence)).collect();
    for number in 0..writers {
        let name = client(number);
        let client = Client::new(name, Arc::clone(&shared));
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
    let reader = Client::new("reader", Arc::clone(&shared));
    let end = End { shared: Arc::clone(&shared), place: place.clone(), repairs: false };
    sim.client("reader", async move {
        reader.look_at_the_end().await;
        ending::look(&end).await;
        Ok(())
    });
    let landings = Arc::clone(&place.landings);
    let mut hosts = Hosts::new(sim, machines, gateways, presence, place, writers);
    let faults = hosts.drive(plan(options), &shared);
    let (injected, repeated, simulated) = (hosts.injected(), hosts.repeated(), hosts.sim.elapsed());
    drop(hosts);
    let mut outcome = finish(&shared, Ended { scene: Scene::Whole, faults, injected, simulated });
    for (name, count) in [("frames sent twice", repeated), ("writes that landed late", landings.landed())] {
        outcome.report.counts.insert(name.to_owned(), count);
    }
    outcome
}

/// Puts together what came of a run.
pub fn finish(shared: &Shared, ended: Ended) -> Outcome {
    let Ended { scene, faults, injected, simulated } = ended;
    let mut checker = shared.checker.lock();
    checker.violations.extend(shared.sight.take_violations());
    for (actor, what) in std::mem::take(&mut checker.twice) {
        let node = actor.rsplit_once('.').map_or(actor.as_str(), |(node, _)| node);
        if !shared.sight.ended_orderly(node) {
            checker.violate(Check::Dot, what);
        }
    }
    checker.counts.void = shared.sight.promises.lock().voided() as u64;
    let most = shared.sight.starts.lock().most;
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
        ("requests that make no sense", c.nonsense),
        ("writes sent again", c.again),
        ("writes found where they were said to be", c.copies),
        ("writes that had to be accepted", c.had_to),
        ("acknowledged writes not owed any more", c.void),
        ("looks at how nodes are", c.looks),
        ("most operations of a start", most.operations),
        ("most bytes read by a start", most.bytes),
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
