//! A simulated cluster: storage nodes and gateways as hosts that run their production code.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use cartwheel_bucket::{CERTAIN, Faults, FaultyBucket, OperationFaults, SharedBucket};
use cartwheel_cluster::membership::{self, Founding};
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::Random;
use cartwheel_cluster::secret::{ClusterSecret, NodeToken};
use cartwheel_core::header::ClockKey;
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Member, MemberState, RingDocument};
use cartwheel_gateway::GatewayConfig;
use cartwheel_storage_node::NodeConfig;
use cartwheel_storage_node::disk::Disk;
use futures_util::FutureExt;
use tokio::sync::Notify;
use turmoil::Sim;

use crate::doom::{Doom, Doomed};
use crate::limits::Counted;
use crate::options::Level;
use crate::sight::Sight;
use crate::trace::Trace;
use crate::versions::Versions;
use crate::wire;
use crate::world::lock::Lock;
use crate::world::{
    Bug, DiskTrouble, Host, Landings, Objects, Road, SeededRandom, SimDisk, TracedBucket, pass, seams,
};

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
    /// How the bucket is reached.
    pub level: Level,
    /// The planted bug.
    pub bug: Bug,
    /// All objects.
    pub objects: SharedBucket,
    /// Where they are.
    pub store: Arc<Objects>,
    /// What is written late.
    pub landings: Arc<Landings>,
    /// What is where, for those who check.
    pub sight: Arc<Sight>,
    /// What happens.
    pub trace: Arc<Trace>,
    /// Who dies in the midst of an operation of the bucket.
    pub doom: Arc<Doom>,
    /// Is the S3 server well from now on?
    pub well: Arc<AtomicBool>,
    /// How storage nodes are configured besides.
    pub configure: fn(u64, &mut NodeConfig),
}

impl Place {
    /// A place where nobody is doomed.
    pub fn new(seed: u64, bug: Bug) -> Self {
        let store = Arc::new(Objects::default());
        let sight = Sight::new(Arc::clone(&store));
        let (objects, trace) = (sight.watched(), Arc::new(Trace::default()));
        Self {
            store,
            landings: Arc::new(Landings::new(Arc::clone(&objects), Arc::clone(&trace))),
            seed,
            level: Level::Memory,
            bug,
            objects,
            sight,
            trace,
            doom: Arc::new(Doom::default()),
            well: Arc::default(),
            configure: |_, _| {},
        }
    }

    /// Bytes of a memtable, and of hints, at most, as nodes are configured.
    pub fn limits(&self) -> (u64, u64) {
        let mut config = NodeConfig::new(NodeId::new("node-a").unwrap(), String::new());
        (self.configure)(self.seed, &mut config);
        (config.flush_bytes as u64, config.hint_bytes)
    }

    /// How long what is not needed any more stays in the bucket.
    pub fn deletes_after(&self) -> Duration {
        let mut config = NodeConfig::new(NodeId::new("node-a").unwrap(), String::new());
        (self.configure)(self.seed, &mut config);
        config.delete_after
    }

    /// What signs clocks.
    pub fn clock_key() -> ClockKey {
        ClusterSecret::given(SECRET).clock_key()
    }

    /// What lets anybody call storage nodes.
    pub fn token() -> NodeToken {
        ClusterSecret::given(SECRET).node_token()
    }

    /// Calls to storage nodes from the host `who`.
    pub fn peers(&self, who: &str) -> Peers {
        Peers::new(seams(self.seed, who), Self::token())
    }

    /// The bucket as the host `who` reaches it.
    fn bucket(&self, who: &str, host: &Host) -> Reach {
        let own = SeededRandom::new(self.seed, &format!("{who} bucket")).next_u64();
        let reached = match self.level {
            Level::Memory => Arc::clone(&self.objects),
            Level::Wire => wire::bucket(),
        };
        let (landings, freezer) = (Arc::clone(&self.landings), Arc::clone(&host.freezer));
        let road = Arc::new(Road::new(reached, landings, self.seed, who, freezer));
        let faults = Arc::new(FaultyBucket::new(road.clone(), own));
        let bucket = TracedBucket::new(faults.clone(), who, Arc::clone(&self.trace), self.bug);
        let bucket = Counted::new(Arc::new(bucket), self.sight.asked(who));
        Reach { bucket: Arc::new(Doomed::new(Arc::new(bucket), who, Arc::clone(&self.doom))), faults, road }
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

/// How a host reaches the bucket.
#[derive(Debug, Clone)]
pub struct Reach {
    bucket: SharedBucket,
    /// How it fails.
    pub faults: Arc<FaultyBucket>,
    /// The way there.
    pub road: Arc<Road>,
}

/// Where a storage node is called.
pub fn address(node: &str) -> String {
    format!("{node}:{NODE_PORT}")
}

/// A storage node's machine.
pub struct Machine {
    name: &'static str,
    /// The storage node that runs on it: its own, or that of which it runs a second process.
    id: Lock<&'static str>,
    place: Place,
    /// Its clock, its frames, and whether it stands still.
    pub host: Host,
    /// The disk, and how many there were.
    disk: Lock<(Arc<SimDisk>, u32)>,
    /// Which versions of the program run on it.
    versions: Versions,
    /// How it reaches the bucket.
    pub reach: Reach,
    /// When it is switched on for the first time.
    from: Duration,
    /// Told to end.
    pub end: Notify,
    /// Its process ended because another took over its name.
    stepped_down: Lock<bool>,
}

impl Machine {
    /// Adds the machine `name` to the simulation, switched on at `from`.
    pub fn add(sim: &mut Sim<'_>, place: &Place, name: &'static str, from: Duration) -> Arc<Self> {
        let host = Host::new(place.seed, name);
        let reach = place.bucket(name, &host);
        let disk = Arc::new(SimDisk::new(place.seed, name, place.bug, Arc::clone(&host.freezer)));
        let machine = Self {
            name,
            id: Lock::new(name),
            place: place.clone(),
            host,
            disk: Lock::new((disk, 1)),
            versions: Versions::of(place.seed, name),
            reach,
            from,
            end: Notify::new(),
            stepped_down: Lock::new(false),
        };
        place.sight.has_disk(name, name, &machine.disk.lock().0);
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
        let mut config =
            NodeConfig::new(NodeId::new(*self.id.lock()).unwrap(), format!("0.0.0.0:{NODE_PORT}"));
        config.advertise = Some(address(self.name));
        config.flush_interval = Duration::from_secs(3);
        config.founding = FOUNDING;
        config.frames = self.versions.next();
        (self.place.configure)(self.place.seed, &mut config);
        config.catches_up = self.place.bug != Bug::CountsAtOnce;
        config
    }

    /// The life of a process: starts the node, again if that fails, and ends it when told to.
    async fn live(&self) {
        pass(self.from.saturating_sub(turmoil::sim_elapsed().unwrap_or_default())).await;
        let host = self.host.clone();
        tokio::spawn(async move { host.freezer.leaps().await });
        // What an earlier process was told and did not live to hear.
        let _ = self.end.notified().now_or_never();
        let secret = ClusterSecret::given(SECRET);
        let trace = &self.place.trace;
        let life = self.place.sight.begins(self.name);
        loop {
            self.place.sight.starts(self.name);
            let disk: Arc<dyn Disk> = self.disk.lock().0.clone();
            let bucket = Arc::clone(&self.reach.bucket);
            let started = cartwheel_storage_node::start(
                self.config(),
                self.host.seams.clone(),
                Some(disk),
                bucket,
                &secret,
            );
            match started.await {
                Ok(node) => {
                    trace.line(self.name, &format!("serves as {}", node.incarnation().label()));
                    self.place.sight.serves(self.name);
                    let replaced = tokio::select! {
                        biased;
                        () = self.end.notified() => false,
                        () = node.taken_over() => true,
                    };
                    if replaced {
                        trace.line(self.name, "has been taken over");
                    }
                    node.shutdown().await;
                    if !replaced {
                        life.ended();
                    }
                    *self.stepped_down.lock() = replaced;
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
        let freezer = Arc::clone(&self.host.freezer);
        *disk = (Arc::new(SimDisk::new(self.place.seed, &who, self.place.bug, freezer)), number);
        self.place.sight.has_disk(self.name, *self.id.lock(), &disk.0);
    }

    /// It runs, with an empty disk, a second process of the node `id` from now on; it must not be running.
    pub fn becomes(&self, id: &'static str) {
        *self.id.lock() = id;
        self.wipe();
    }

    /// The disk of the second process of its node is gone; its own is that node's disk again.
    pub fn has_its_own_disk_again(&self) {
        self.place.sight.has_no_disk(crate::faults::TWIN);
    }

    /// What is wrong with its disk from now on.
    pub fn set_disk(&self, trouble: Option<DiskTrouble>) {
        self.disk.lock().0.set(trouble);
    }

    /// Did its process end because another took over its name? Says so once.
    pub fn take_stepped_down(&self) -> bool {
        std::mem::take(&mut *self.stepped_down.lock())
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
    /// How many faults are between the clients and each of them, and how often anybody asked meanwhile.
    troubles: Lock<[(u64, u64); 2]>,
}

impl Presence {
    /// A number that changes when the gateway crashes or comes back, and whenever something is between it and the
    /// clients; `None` while it does not serve.
    pub fn life(&self, gateway: usize) -> Option<u64> {
        let (lost, served) = self.lives.lock()[gateway];
        let (troubles, asked) = &mut self.troubles.lock()[gateway];
        *asked += u64::from(*troubles > 0);
        (lost < served).then_some(served << 32 | *asked)
    }

    /// Something comes between it and the clients, or goes away.
    pub fn trouble(&self, gateway: usize, begins: bool) {
        let (troubles, asked) = &mut self.troubles.lock()[gateway];
        *troubles = if begins { *troubles + 1 } else { troubles.saturating_sub(1) };
        *asked += 1;
    }

    /// It crashed.
    pub fn lost(&self, gateway: usize) {
        let lives = &mut self.lives.lock()[gateway];
        lives.0 = lives.1;
    }
}

/// What of a gateway can be made to fail.
#[derive(Debug)]
pub struct Gateway {
    /// Its clock, its frames, and whether it stands still.
    pub host: Host,
    /// How it reaches the bucket.
    pub reach: Reach,
}

/// Adds a gateway.
pub fn add_gateway(sim: &mut Sim<'_>, place: &Place, gateway: usize, presence: &Arc<Presence>) -> Gateway {
    let name = GATEWAYS[gateway];
    let host = Host::new(place.seed, name);
    let reach = place.bucket(name, &host);
    let (seams, bucket, freezer) = (host.seams.clone(), Arc::clone(&reach.bucket), Arc::clone(&host.freezer));
    let (presence, versions) = (Arc::clone(presence), Versions::of(place.seed, name));
    sim.host(name, move || {
        let (seams, bucket, presence) = (seams.clone(), Arc::clone(&bucket), Arc::clone(&presence));
        let (freezer, frames) = (Arc::clone(&freezer), versions.next());
        async move {
            tokio::spawn(async move { freezer.leaps().await });
            let mut config = GatewayConfig::new(format!("0.0.0.0:{PORT}"));
            config.frames = frames;
            let secret = ClusterSecret::given(SECRET);
            let _gateway = cartwheel_gateway::start(config, seams, bucket, &secret).await?;
            presence.lives.lock()[gateway].1 += 1;
            std::future::pending().await
        }
    });
    Gateway { host, reach }
}
