//! One seed: the hosts, the loop that lets faults begin and end, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::{CERTAIN, Faults, FaultyBucket, MemoryBucket, OperationFaults, SharedBucket};
use cartwheel_cluster::membership::Founding;
use cartwheel_cluster::seams::{Random, Seams};
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::names::NodeId;
use cartwheel_gateway::GatewayConfig;
use cartwheel_storage_node::NodeConfig;
use cartwheel_storage_node::disk::Disk;
use futures_util::FutureExt;
use tokio::sync::Notify;
use turmoil::Sim;

use crate::checker::Checker;
use crate::client::{Client, PORT, Shared, WRITERS};
use crate::faults::{Event, Fault, GATEWAY, HEALED, LATE, NODES, joins, plan};
use crate::trace::Trace;
use crate::world::lock::Lock;
use crate::world::{Bug, SeededRandom, SimDisk, TracedBucket, pass, seams};

/// The port of every storage node.
const NODE_PORT: u16 = 7101;
/// The longest that a simulation may last.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest that a message is on its way.
const LATENCY: Duration = Duration::from_millis(20);
/// What clients and nodes share.
const SECRET: &str = "a secret of the simulation";

/// What came of a run.
pub struct Outcome {
    /// All that happened, byte by byte.
    pub trace: Vec<u8>,
    /// What can't be true.
    pub violations: Vec<String>,
    /// In one line.
    pub summary: String,
}

/// A storage node's machine.
struct Machine {
    name: &'static str,
    seams: Seams,
    disk: Arc<SimDisk>,
    bucket: SharedBucket,
    faults: Arc<FaultyBucket>,
    trace: Arc<Trace>,
    /// When it is switched on for the first time.
    from: Duration,
    end: Notify,
}

impl Machine {
    fn config(&self) -> NodeConfig {
        let mut config = NodeConfig::new(NodeId::new(self.name).unwrap(), format!("0.0.0.0:{NODE_PORT}"));
        config.advertise = Some(format!("{}:{NODE_PORT}", self.name));
        config.flush_interval = Duration::from_secs(3);
        // A join asks every home of every partition in turn: few of them, so that it ends in seconds.
        config.founding = Founding { partitions: 64, ..Founding::default() };
        config
    }

    /// The life of a process: starts the node, again if that fails, and ends it when told to.
    async fn live(&self) {
        pass(self.from.saturating_sub(turmoil::sim_elapsed().unwrap_or_default())).await;
        // What an earlier process was told and did not live to hear.
        let _ = self.end.notified().now_or_never();
        let secret = ClusterSecret::given(SECRET);
        loop {
            let disk: Arc<dyn Disk> = self.disk.clone();
            let bucket = Arc::clone(&self.bucket);
            let started =
                cartwheel_storage_node::start(self.config(), self.seams.clone(), Some(disk), bucket, &secret);
            match started.await {
                Ok(node) => {
                    self.trace.line(self.name, &format!("serves as {}", node.incarnation().label()));
                    self.end.notified().await;
                    node.shutdown().await;
                    return self.trace.line(self.name, "ended");
                }
                Err(error) => {
                    self.trace.line(self.name, &format!("can't start: {error}"));
                    pass(Duration::from_millis(500)).await;
                }
            }
        }
    }

    /// A bucket that now and then fails, as all do; or that can't be reached.
    fn set_bucket(&self, unavailable: bool) {
        let each = OperationFaults { refuse: CERTAIN / 50, mute: CERTAIN / 50, slow: CERTAIN / 10 };
        let slow_by = Duration::from_millis(300);
        self.faults.set(Faults { unavailable, slow_by, ..Faults::everywhere(each) });
    }
}

/// Runs the seed.
pub fn run(seed: u64, bug: Bug) -> Outcome {
    let trace = Arc::new(Trace::default());
    let shared = Arc::new(Shared {
        seed,
        bug,
        trace: Arc::clone(&trace),
        checker: Lock::new(Checker::default()),
        stopped: Lock::new(0),
    });
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(LONGEST)
        .max_message_latency(LATENCY)
        .build();
    let objects: SharedBucket = Arc::new(MemoryBucket::new());
    let machines = NODES.map(|name| machine(name, seed, bug, &objects, &trace));
    for machine in &machines {
        let machine = Arc::clone(machine);
        sim.host(machine.name, move || {
            let machine = Arc::clone(&machine);
            async move {
                machine.live().await;
                Ok(())
            }
        });
    }
    add_gateway(&mut sim, seed, &objects, &trace);
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
    let faults = drive(&mut sim, plan(seed), &machines, &trace, &shared);
    let injected: u64 = machines.iter().map(|m| m.faults.injected()).sum();
    let simulated = sim.elapsed();
    drop(sim);
    finish(&shared, faults, injected, simulated)
}

fn machine(
    name: &'static str,
    seed: u64,
    bug: Bug,
    objects: &SharedBucket,
    trace: &Arc<Trace>,
) -> Arc<Machine> {
    let own = SeededRandom::new(seed, &format!("{name} bucket")).next_u64();
    let faults = Arc::new(FaultyBucket::new(Arc::clone(objects), own));
    let bucket = TracedBucket::new(faults.clone(), name, Arc::clone(trace), bug);
    let machine = Machine {
        name,
        seams: seams(seed, name),
        disk: Arc::new(SimDisk::new(seed, name, bug)),
        bucket: Arc::new(bucket),
        faults,
        trace: Arc::clone(trace),
        from: if name == LATE { joins(seed).unwrap_or(Duration::MAX) } else { Duration::ZERO },
        end: Notify::new(),
    };
    machine.set_bucket(false);
    Arc::new(machine)
}

fn add_gateway(sim: &mut Sim<'_>, seed: u64, objects: &SharedBucket, trace: &Arc<Trace>) {
    let seams = seams(seed, GATEWAY);
    let bucket: SharedBucket =
        Arc::new(TracedBucket::new(Arc::clone(objects), GATEWAY, Arc::clone(trace), Bug::None));
    sim.host(GATEWAY, move || {
        let (seams, bucket) = (seams.clone(), Arc::clone(&bucket));
        async move {
            let config = GatewayConfig::new(format!("0.0.0.0:{PORT}"));
            let secret = ClusterSecret::given(SECRET);
            let _gateway = cartwheel_gateway::start(config, seams, bucket, &secret).await?;
            std::future::pending().await
        }
    });
}

/// Steps until all clients have finished, with faults beginning and ending as planned; how many there were.
fn drive(
    sim: &mut Sim<'_>,
    plan: Vec<Event>,
    machines: &[Arc<Machine>],
    trace: &Trace,
    shared: &Shared,
) -> usize {
    let faults = plan.iter().filter(|event| event.begins).count();
    let mut plan = plan.into_iter().peekable();
    let mut ending = vec![false; machines.len()];
    loop {
        while let Some(event) = plan.next_if(|event| event.at <= sim.elapsed()) {
            let what = if event.begins { "begins" } else { "ends" };
            trace.line_at(sim.elapsed(), NODES[event.node], &format!("{:?} {what}", event.fault));
            apply(sim, event, machines, &mut ending);
        }
        if sim.elapsed() >= HEALED {
            machines.iter().for_each(|machine| machine.faults.set(Faults::default()));
        }
        for (node, ending) in ending.iter_mut().enumerate() {
            if *ending && !sim.is_host_running(NODES[node]) {
                *ending = false;
                sim.bounce(NODES[node]);
            }
        }
        match sim.step() {
            Ok(false) => {}
            Ok(true) => return faults,
            Err(error) => {
                shared.checker.lock().violate(format!("the simulation broke off: {error}"));
                return faults;
            }
        }
    }
}

fn apply(sim: &mut Sim<'_>, event: Event, machines: &[Arc<Machine>], ending: &mut [bool]) {
    let node = NODES[event.node];
    let next = NODES[(event.node + 1) % NODES.len()];
    match (event.fault, event.begins) {
        (Fault::Cut, true) => sim.partition(GATEWAY, node),
        (Fault::Cut, false) => sim.repair(GATEWAY, node),
        (Fault::Deaf, true) => sim.partition_oneway(GATEWAY, node),
        (Fault::Deaf, false) => sim.repair_oneway(GATEWAY, node),
        (Fault::Mute, true) => sim.partition_oneway(node, GATEWAY),
        (Fault::Mute, false) => sim.repair_oneway(node, GATEWAY),
        (Fault::Stalled, true) => sim.hold(GATEWAY, node),
        (Fault::Stalled, false) => sim.release(GATEWAY, node),
        (Fault::Apart, true) => sim.partition(node, next),
        (Fault::Apart, false) => sim.repair(node, next),
        (Fault::Crashed, true) => {
            ending[event.node] = false;
            sim.crash(node);
        }
        (Fault::Crashed, false) => sim.bounce(node),
        (Fault::Restarted, true) => {
            ending[event.node] = true;
            machines[event.node].end.notify_one();
        }
        // It starts again when it has ended.
        (Fault::Restarted, false) => {}
        (Fault::NoBucket, begins) => machines[event.node].set_bucket(begins),
    }
}

fn finish(shared: &Shared, faults: usize, injected: u64, simulated: Duration) -> Outcome {
    let mut checker = shared.checker.lock();
    let c = &checker.counts;
    let summary = format!(
        "seed {}: {:.1} s simulated, {} requests ({} writes acknowledged, {} refused, {} unknown; {} reads, {} \
         without a quorum, {} with siblings), {} bucket operations, {faults} faults and {injected} injected \
         into the bucket, {} writes minted twice and {} shown again, {} violations",
        shared.seed,
        simulated.as_secs_f64(),
        c.requests,
        c.acknowledged,
        c.refused,
        c.unknown,
        c.reads,
        c.unread,
        c.conflicts,
        shared.trace.bucket_operations(),
        checker.minted_twice(),
        c.shown_again,
        checker.violations.len(),
    );
    shared.trace.line_at(simulated, "end", &summary);
    Outcome { trace: shared.trace.bytes(), violations: std::mem::take(&mut checker.violations), summary }
}
