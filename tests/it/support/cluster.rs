//! A cluster in this process: storage nodes with a runtime each, so that one can be killed without a word,
//! and gateways, all over sockets on loopback.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use cartwheel_bucket::{FaultyBucket, SharedBucket, list_all};
use cartwheel_cluster::membership::{self, Founding};
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::{Seams, WallClock};
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Member, MemberState};
use cartwheel_core::wire::{Call, Reply, Request};
use cartwheel_gateway::{GatewayConfig, RunningGateway};
use cartwheel_storage_node::disk::{Disk, FileDisk};
use cartwheel_storage_node::{NodeConfig, RunningNode};
use http::Method;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::http::Client;
use super::store::{HttpStore, Kind, Store};
use super::wire::Wire;
use super::{PATIENCE, Port, until};

/// How often processes look for a newer ring.
const RING_INTERVAL: Duration = Duration::from_millis(60);
/// Caches of a node: enough for any test.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// What a cluster is to be like.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    nodes: usize,
    gateways: usize,
    replicas: u32,
    store: Kind,
    flush_interval: Duration,
    gateway: GatewayConfig,
    founded: bool,
    catches_up: bool,
    wires: bool,
}

impl Builder {
    pub(crate) fn gateways(self, gateways: usize) -> Self {
        Self { gateways, ..self }
    }

    /// N replicas, with R and W the majorities that every namespace has by default.
    pub(crate) fn quorum(self, n: u32, r: u32, w: u32) -> Self {
        assert_eq!((r, w), (n / 2 + 1, n / 2 + 1), "other R and W are asked for by each request");
        Self { replicas: n, ..self }
    }

    pub(crate) fn store(self, store: Kind) -> Self {
        Self { store, ..self }
    }

    /// Without a ring document: the nodes found the cluster and join it as they come.
    pub(crate) fn unfounded(self) -> Self {
        Self { founded: false, ..self }
    }

    /// Nodes that count at once after they were away: what the rule is for.
    pub(crate) fn without_catching_up(self) -> Self {
        Self { catches_up: false, ..self }
    }

    /// With wires to the nodes that can be cut.
    pub(crate) fn with_wires(self) -> Self {
        Self { wires: true, ..self }
    }

    fn founding(&self) -> Founding {
        // Few partitions and tokens: placements are worked out quickly.
        Founding { partitions: 64, tokens: 16, replicas: self.replicas }
    }

    /// Changes the gateways' configuration.
    pub(crate) fn configure(mut self, change: impl FnOnce(&mut GatewayConfig)) -> Self {
        change(&mut self.gateway);
        self
    }

    /// The founded cluster, with no process running yet.
    pub(crate) async fn found(self) -> Cluster {
        let store = Store::start(self.store).await;
        let bucket = store.connect().await;
        let seams = Seams::real();
        let secret = ClusterSecret::from_bucket(&*bucket, &*seams.random).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let nodes: Vec<Node> = (0..self.nodes)
            .map(|at| {
                let id = format!("node-{}", char::from(b'a' + u8::try_from(at).unwrap()));
                let (port, inner) = (Port::reserve(), self.wires.then(Port::reserve));
                Node {
                    directory: directory.path().join(&id),
                    id: NodeId::new(&id).unwrap(),
                    wire: inner.map(|inner| (Wire::new(&port, &inner), inner)),
                    port,
                    life: None,
                }
            })
            .collect();
        let members = nodes
            .iter()
            .map(|node| Member {
                id: node.id.clone(),
                address: node.port.address(),
                zone: "default".to_owned(),
                weight: 1,
                state: MemberState::Active,
                becomes: None,
                dead: false,
            })
            .collect();
        if self.founded {
            let document = membership::found(&seams, self.founding(), members, "a test").unwrap();
            assert!(membership::create(&*bucket, &document).await.unwrap());
        }
        Cluster { builder: self, store, secret, _directory: directory, nodes, gateways: Vec::new() }
    }

    /// The cluster, serving.
    pub(crate) async fn start(self) -> Cluster {
        let mut cluster = self.found().await;
        let all: Vec<usize> = (0..cluster.nodes.len()).collect();
        cluster.start_nodes(&all).await;
        for _ in 0..cluster.builder.gateways {
            cluster.start_gateway().await;
        }
        cluster.serves().await;
        cluster
    }
}

/// A storage node: its place, and its life if it runs.
#[derive(Debug)]
struct Node {
    id: NodeId,
    /// Where others call it.
    port: Port,
    /// The wire from there to where it listens, if that is not the same.
    wire: Option<(Wire, Port)>,
    directory: PathBuf,
    life: Option<Life>,
}

#[derive(Debug)]
struct Life {
    runtime: Option<Runtime>,
    /// Kept to the end: a node whose handle is dropped ends in good order.
    node: Option<RunningNode>,
}

/// A test that ends in a panic leaves nodes behind; their runtimes can't be waited for in async code.
impl Drop for Life {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    builder: Builder,
    store: Store,
    secret: ClusterSecret,
    _directory: TempDir,
    nodes: Vec<Node>,
    gateways: Vec<RunningGateway>,
}

impl Cluster {
    /// As many storage nodes, three replicas, one gateway, an S3 server over HTTP.
    pub(crate) fn nodes(nodes: usize) -> Builder {
        let gateway = GatewayConfig {
            ring_interval: RING_INTERVAL,
            // Slow machines must not fail tests: deadlines are the tests' to name.
            deadline: PATIENCE,
            ..GatewayConfig::new("127.0.0.1:0".to_owned())
        };
        Builder {
            nodes,
            gateways: 1,
            replicas: 3,
            store: Kind::S3,
            // What is not asked to be in the bucket stays out of it.
            flush_interval: Duration::from_secs(3600),
            gateway,
            founded: true,
            catches_up: true,
            wires: false,
        }
    }

    /// A client of the `number`th gateway.
    pub(crate) fn gateway(&self, number: usize) -> Client {
        Client::new(self.gateways[number].address())
    }

    /// How many partitions have a quorum, as a gateway shows it in its metrics.
    pub(crate) fn quorums(&self, gateway: usize) -> u64 {
        self.gateways[gateway].watch().partitions().unwrap().reachable
    }

    /// A bucket client of its own.
    pub(crate) async fn bucket(&self) -> SharedBucket {
        self.store.connect().await
    }

    /// The store's faults.
    pub(crate) fn faults(&self) -> &FaultyBucket {
        match &self.store {
            Store::Faulty(bucket) => bucket,
            _ => panic!("this cluster's store has no faults"),
        }
    }

    /// Holds back from the storage nodes what the bucket keeps for them, or does so no longer.
    pub(crate) fn hold_hints_back(&self, held: bool) {
        match &self.store {
            Store::HeldBack(bucket) => bucket.hold(held),
            _ => panic!("this cluster's store holds nothing back"),
        }
    }

    /// The S3 server that is the store.
    pub(crate) fn server(&mut self) -> &mut HttpStore {
        match &mut self.store {
            Store::Http(store) => store,
            _ => panic!("this cluster's store is no server"),
        }
    }

    pub(crate) async fn start_gateway(&mut self) {
        let secret = self.secret.clone();
        self.start_gateway_with(&secret).await;
    }

    /// A gateway that has this secret.
    pub(crate) async fn start_gateway_with(&mut self, secret: &ClusterSecret) {
        let bucket = self.bucket().await;
        self.start_gateway_in(Seams::real(), bucket, secret).await;
    }

    /// A gateway that reaches the store in this way.
    pub(crate) async fn start_gateway_at(&mut self, bucket: SharedBucket) {
        let secret = self.secret.clone();
        self.start_gateway_in(Seams::real(), bucket, &secret).await;
    }

    /// A gateway that goes by this clock.
    pub(crate) async fn start_gateway_by(&mut self, clock: Arc<dyn WallClock>) {
        let (bucket, secret) = (self.bucket().await, self.secret.clone());
        self.start_gateway_in(Seams { clock, ..Seams::real() }, bucket, &secret).await;
    }

    async fn start_gateway_in(&mut self, seams: Seams, bucket: SharedBucket, secret: &ClusterSecret) {
        let started = cartwheel_gateway::start(self.builder.gateway.clone(), seams, bucket, secret).await;
        self.gateways.push(started.unwrap());
    }

    /// Waits until every gateway reaches every running node, and all of these count.
    pub(crate) async fn serves(&self) {
        for number in 0..self.gateways.len() {
            self.gateway_reaches(number, self.running()).await;
        }
        until("the running nodes count", || async {
            let status = self.status(0).await;
            let counts = |m: &Value| m["standing"] == "counting" && m["partitions_not_held"] == 0;
            let counting = members(&status).filter(|m| counts(m)).count();
            (counting == self.running()).then_some(())
        })
        .await;
    }

    fn running(&self) -> usize {
        self.nodes.iter().filter(|node| node.life.is_some()).count()
    }

    /// Waits until a gateway reaches so many nodes.
    pub(crate) async fn gateway_reaches(&self, number: usize, wanted: usize) {
        let client = &self.gateway(number);
        until("the gateway reaches the running nodes", || async move {
            let answer = client.path(Method::GET, "/v1/cluster").send().await;
            let ready = client.path(Method::GET, "/readyz").send().await.status == 200;
            (ready && answer.status == 200 && reachable(&answer.json()) == wanted).then_some(())
        })
        .await;
    }

    /// `GET /v1/cluster` of a gateway.
    pub(crate) async fn status(&self, number: usize) -> Value {
        self.gateway(number).path(Method::GET, "/v1/cluster").gives(200).await.json()
    }

    /// `GET /v1/cluster/locate` of the first gateway.
    pub(crate) async fn locate(&self, namespace: &str, key: &str) -> Value {
        let path = format!("/v1/cluster/locate?namespace={namespace}&key={key}");
        self.gateway(0).path(Method::GET, &path).gives(200).await.json()
    }

    /// The homes of a key, by the nodes' numbers, in the key's order.
    pub(crate) async fn homes(&self, namespace: &str, key: &str) -> Vec<usize> {
        let location = self.locate(namespace, key).await;
        let number = |id: &Value| self.nodes.iter().position(|n| id == n.id.as_str()).unwrap();
        location["homes"].as_array().unwrap().iter().map(number).collect()
    }

    /// Who keeps hints for whom, as the running nodes say, by the nodes' numbers.
    pub(crate) async fn hints(&self) -> Vec<(usize, usize)> {
        let status = self.status(0).await;
        let number = |id: &Value| self.nodes.iter().position(|n| id == n.id.as_str()).unwrap();
        let held = |member: &Value| {
            let hints = member["hints"].as_array().cloned().unwrap_or_default();
            hints.iter().map(|hint| (number(&member["id"]), number(&hint["target"]))).collect::<Vec<_>>()
        };
        members(&status).flat_map(held).collect()
    }

    /// The objects under `hints/`.
    pub(crate) async fn hint_objects(&self) -> Vec<String> {
        let listed = list_all(&*self.bucket().await, "hints/").await.unwrap();
        listed.into_iter().map(|object| object.key).collect()
    }

    /// Waits until nobody keeps anything for anybody any more, in memory or in the bucket.
    pub(crate) async fn no_hints_are_left(&self) {
        until("all hints are handed over", || async {
            (self.hints().await.is_empty() && self.hint_objects().await.is_empty()).then_some(())
        })
        .await;
    }

    /// Where a node listens.
    pub(crate) fn address(&self, node: usize) -> String {
        self.nodes[node].port.address()
    }

    /// The number of the node with this id.
    pub(crate) fn number(&self, id: &str) -> usize {
        self.nodes.iter().position(|node| node.id.as_str() == id).unwrap()
    }

    /// Calls a node as others of the cluster do.
    pub(crate) async fn call(&self, node: usize, request: Request) -> Reply {
        let peers = Peers::new(Seams::real(), self.secret.node_token());
        let ring_version = self.status(0).await["ring_version"].as_u64().unwrap();
        let call = Call { ring_version, request };
        let answer = peers.call(&self.address(node), &call, Instant::now() + PATIENCE).await;
        answer.unwrap().reply
    }

    /// The id of a node.
    pub(crate) fn id(&self, node: usize) -> &str {
        self.nodes[node].id.as_str()
    }

    /// The epoch that a running node mints under.
    pub(crate) fn epoch(&self, node: usize) -> u32 {
        self.nodes[node].life.as_ref().unwrap().node.as_ref().unwrap().incarnation().epoch
    }

    /// Starts nodes at the same time.
    pub(crate) async fn start_nodes(&mut self, which: &[usize]) {
        let mut starting = Vec::new();
        for &at in which {
            let node = &self.nodes[at];
            assert!(node.life.is_none(), "{} runs already", node.id);
            let config = NodeConfig {
                cache_bytes: CACHE_BYTES,
                flush_interval: self.builder.flush_interval,
                ring_interval: RING_INTERVAL,
                founding: self.builder.founding(),
                catches_up: self.builder.catches_up,
                // Homes compare what they hold when a test asks them to.
                repair_every: Duration::from_secs(86_400),
                advertise: Some(node.port.address()),
                ..NodeConfig::new(
                    node.id.clone(),
                    node.wire.as_ref().map_or(&node.port, |(_, inner)| inner).address(),
                )
            };
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name(node.id.as_str())
                .enable_all()
                .build()
                .unwrap();
            let (bucket, secret) = (self.store.connect_node().await, self.secret.clone());
            let disk = open(&node.directory).await;
            let started = runtime.spawn(async move {
                cartwheel_storage_node::start(config, Seams::real(), Some(disk), bucket, &secret).await
            });
            starting.push((at, runtime, started));
        }
        for (at, runtime, started) in starting {
            let node = started.await.unwrap().unwrap();
            self.nodes[at].life = Some(Life { runtime: Some(runtime), node: Some(node) });
        }
    }

    pub(crate) async fn start_node(&mut self, node: usize) {
        self.start_nodes(&[node]).await;
    }

    /// Kills a node: its tasks and sockets are gone at once, and nothing is written or said.
    pub(crate) async fn kill(&mut self, node: usize) {
        let mut life = self.nodes[node].life.take().unwrap();
        let runtime = life.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || {
            runtime.shutdown_timeout(PATIENCE);
            drop(life);
        })
        .await
        .unwrap();
    }

    /// Kills every node that runs.
    pub(crate) async fn kill_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].life.is_some() {
                self.kill(node).await;
            }
        }
    }

    /// Ends a node as SIGTERM does.
    pub(crate) async fn stop(&mut self, node: usize) {
        let mut life = self.nodes[node].life.take().unwrap();
        let running = life.node.take().unwrap();
        life.runtime.as_ref().unwrap().spawn(running.shutdown()).await.unwrap();
        drop(life);
    }

    /// Stops the world for a node: its sockets stay open and say nothing, until the guard is dropped.
    pub(crate) fn freeze(&self, node: usize) -> Frozen {
        let life = self.nodes[node].life.as_ref().unwrap();
        let (thaw, frozen) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel::<()>();
        // The runtime has one worker thread, and this holds it.
        life.runtime.as_ref().unwrap().spawn(async move {
            let _ = begun.send(());
            let _ = frozen.recv();
        });
        begins.recv_timeout(PATIENCE).expect("the node's worker thread takes the task");
        Frozen(thaw)
    }

    /// Cuts the wire to a node, or mends it: it runs on, and can itself call others.
    pub(crate) fn cut(&self, node: usize, cut: bool) {
        self.nodes[node].wire.as_ref().unwrap().0.cut(cut);
    }

    /// Takes a node's disk away.
    pub(crate) fn wipe(&self, node: usize) {
        assert!(self.nodes[node].life.is_none(), "a running node's disk can't be wiped");
        std::fs::remove_dir_all(&self.nodes[node].directory).unwrap();
    }
}

/// A node that does nothing until this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen(#[expect(dead_code, reason = "dropping it thaws the node")] mpsc::Sender<()>);

/// Opens a node's disk, once the last process of that name has let go of it.
async fn open(directory: &std::path::Path) -> Arc<dyn Disk> {
    let opened = until("the disk is free", || async {
        match FileDisk::open(directory) {
            Ok(disk) => Some(disk),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{}: {error}", directory.display()),
        }
    });
    Arc::new(opened.await)
}

/// How many members `GET /v1/cluster` calls reachable.
pub(crate) fn reachable(cluster: &Value) -> usize {
    members(cluster).filter(|m| m["reachable"] == true).count()
}

/// The members in `GET /v1/cluster`.
pub(crate) fn members(cluster: &Value) -> impl Iterator<Item = &Value> {
    cluster["members"].as_array().unwrap().iter()
}
