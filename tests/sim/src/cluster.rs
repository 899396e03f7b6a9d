//! A simulated cluster: storage nodes and gateways as hosts that run their production code.

use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::{CERTAIN, Faults, FaultyBucket, OperationFaults, SharedBucket};
use cartwheel_cluster::membership::{self, Founding};
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::{Random, Seams};
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Member, MemberState, RingDocument};
use cartwheel_gateway::GatewayConfig;
use cartwheel_storage_node::NodeConfig;
use cartwheel_storage_node::disk::Disk;
use futures_util::FutureExt;
use tokio::sync::Notify;
use turmoil::Sim;

use crate::doom::{Doom, Doomed};
use crate::trace::Trace;
use crate::world::lock::Lock;
use crate::world::{Bug, Objects, SeededRandom, SimDisk, TracedBucket, pass, seams};

/// The port of every storage node.
const NODE_PORT: u16 = 7101;
/// The port of every gateway.
pub const PORT: u16 = 8080;
/// The gateways.
pub const GATEWAYS: [&str; 2] = ["gateway-1", "gateway-2"];
/// What gateways and nodes share.
const SECRET: &str = "a secret of the simulation";
/// A join asks every home of every partition in turn: few of them, so that it ends in seconds.
const FOUNDING: Founding = Founding { partitions: 64, tokens: 64, replicas: 3 };

/// Where the hosts of one simulation live.
#[derive(Clone)]
pub struct Place {
    /// The seed.
    pub seed: u64,
    /// The planted bug.
    pub bug: Bug,
    /// All objects.
    pub objects: SharedBucket,
    /// What happens.
    pub trace: Arc<Trace>,
    /// Who dies in the midst of an operation of the bucket.
    pub doom: Arc<Doom>,
    /// How storage nodes are configured besides.
    pub configure: fn(u64, &mut NodeConfig),
}

impl Place {
    /// A place where nobody is doomed.
    pub fn new(seed: u64, bug: Bug) -> Self {
        Self {
            seed,
            bug,
            objects: Arc::new(Objects::default()),
            trace: Arc::new(Trace::default()),
            doom: Arc::new(Doom::default()),
            configure: |_, _| {},
        }
    }

    /// Calls to storage nodes from the host `who`.
    pub fn peers(&self, who: &str) -> Peers {
        Peers::new(seams(self.seed, who), ClusterSecret::given(SECRET).node_token())
    }

    /// A bucket as `who` reaches it, and how to make it fail.
    fn bucket(&self, who: &str) -> (SharedBucket, Arc<FaultyBucket>) {
        let own = SeededRandom::new(self.seed, &format!("{who} bucket")).next_u64();
        let faults = Arc::new(FaultyBucket::new(Arc::clone(&self.objects), own));
        let bucket = TracedBucket::new(faults.clone(), who, Arc::clone(&self.trace), self.bug);
        (Arc::new(Doomed::new(Arc::new(bucket), who, Arc::clone(&self.doom))), faults)
    }

    /// Founds a cluster of these nodes.
    pub fn found(&self, nodes: &[&str]) -> RingDocument {
        let member = |name: &&str| Member {
            id: NodeId::new(name).unwrap(),
            address: address(name),
            zone: "default".to_owned(),
            weight: 1,
            state: MemberState::Active,
            becomes: None,
            dead: false,
        };
        let members = nodes.iter().map(member).collect();
        let document = membership::found(&seams(self.seed, "founder"), FOUNDING, members, "simulation");
        let document = document.unwrap();
        let created = membership::create(&*self.objects, &document).now_or_never();
        assert!(created.unwrap().unwrap(), "there is no ring yet");
        document
    }
}

/// Where a storage node is called.
pub fn address(node: &str) -> String {
    format!("{node}:{NODE_PORT}")
}

/// A storage node's machine.
pub struct Machine {
    name: &'static str,
    place: Place,
    seams: Seams,
    /// The disk, and how many there were.
    disk: Lock<(Arc<SimDisk>, u32)>,
    bucket: SharedBucket,
    /// How its bucket fails.
    pub faults: Arc<FaultyBucket>,
    /// When it is switched on for the first time.
    from: Duration,
    /// Told to end.
    pub end: Notify,
}

impl Machine {
    /// Adds the machine `name` to the simulation, switched on at `from`.
    pub fn add(sim: &mut Sim<'_>, place: &Place, name: &'static str, from: Duration) -> Arc<Self> {
        let (bucket, faults) = place.bucket(name);
        let machine = Self {
            name,
            place: place.clone(),
            seams: seams(place.seed, name),
            disk: Lock::new((Arc::new(SimDisk::new(place.seed, name, place.bug)), 1)),
            bucket,
            faults,
            from,
            end: Notify::new(),
        };
        let machine = Arc::new(machine);
        let host = Arc::clone(&machine);
        sim.host(name, move || {
            let machine = Arc::clone(&host);
            async move {
                machine.live().await;
                Ok(())
            }
        });
        machine
    }

    fn config(&self) -> NodeConfig {
        let mut config = NodeConfig::new(NodeId::new(self.name).unwrap(), format!("0.0.0.0:{NODE_PORT}"));
        config.advertise = Some(address(self.name));
        config.flush_interval = Duration::from_secs(3);
        config.founding = FOUNDING;
        (self.place.configure)(self.place.seed, &mut config);
        config.catches_up = self.place.bug != Bug::CountsAtOnce;
        config
    }

    /// The life of a process: starts the node, again if that fails, and ends it when told to.
    async fn live(&self) {
        pass(self.from.saturating_sub(turmoil::sim_elapsed().unwrap_or_default())).await;
        // What an earlier process was told and did not live to hear.
        let _ = self.end.notified().now_or_never();
        let secret = ClusterSecret::given(SECRET);
        let trace = &self.place.trace;
        loop {
            let disk: Arc<dyn Disk> = self.disk.lock().0.clone();
            let bucket = Arc::clone(&self.bucket);
            let started =
                cartwheel_storage_node::start(self.config(), self.seams.clone(), Some(disk), bucket, &secret);
            match started.await {
                Ok(node) => {
                    trace.line(self.name, &format!("serves as {}", node.incarnation().label()));
                    self.end.notified().await;
                    node.shutdown().await;
                    return trace.line(self.name, "ended");
                }
                Err(error) => {
                    trace.line(self.name, &format!("can't start: {error}"));
                    pass(Duration::from_millis(500)).await;
                }
            }
        }
    }

    /// It gets a new disk; the process must not be running.
    pub fn wipe(&self) {
        let mut disk = self.disk.lock();
        let number = disk.1 + 1;
        let who = format!("{} {number}", self.name);
        *disk = (Arc::new(SimDisk::new(self.place.seed, &who, self.place.bug)), number);
    }
}

/// Faults of a bucket that now and then fails, as all do; or that can't be reached.
pub fn bucket_faults(unavailable: bool) -> Faults {
    let each = OperationFaults { refuse: CERTAIN / 50, mute: CERTAIN / 50, slow: CERTAIN / 10 };
    Faults { unavailable, slow_by: Duration::from_millis(300), ..Faults::everywhere(each) }
}

/// Which gateways are there.
#[derive(Debug, Default)]
pub struct Presence {
    /// How often each was started, and how often it began to serve.
    lives: Lock<[(u64, u64); 2]>,
}

impl Presence {
    /// A number that changes when the gateway crashes or comes back; `None` while it does not serve.
    pub fn life(&self, gateway: usize) -> Option<u64> {
        let (lost, served) = self.lives.lock()[gateway];
        (lost < served).then_some(served)
    }

    /// It crashed.
    pub fn lost(&self, gateway: usize) {
        let lives = &mut self.lives.lock()[gateway];
        lives.0 = lives.1;
    }
}

/// Adds a gateway; returns how its bucket fails.
pub fn add_gateway(
    sim: &mut Sim<'_>,
    place: &Place,
    gateway: usize,
    presence: &Arc<Presence>,
) -> Arc<FaultyBucket> {
    let name = GATEWAYS[gateway];
    let seams = seams(place.seed, name);
    let (bucket, faults) = place.bucket(name);
    let presence = Arc::clone(presence);
    sim.host(name, move || {
        let (seams, bucket, presence) = (seams.clone(), Arc::clone(&bucket), Arc::clone(&presence));
        async move {
            let config = GatewayConfig::new(format!("0.0.0.0:{PORT}"));
            let secret = ClusterSecret::given(SECRET);
            let _gateway = cartwheel_gateway::start(config, seams, bucket, &secret).await?;
            presence.lives.lock()[gateway].1 += 1;
            std::future::pending().await
        }
    });
    faults
}
