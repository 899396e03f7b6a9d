//! What these tests share: a cluster of one bucket, and how it is called.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_bucket::{MemoryBucket, SharedBucket};
use cartwheel_cluster::membership::{Follower, Founding, View};
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::clock::Clock;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value, Version};
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{Call, Precondition, Reply, Request};
use cartwheel_storage_node::disk::{Disk, MemoryDisk};
use cartwheel_storage_node::{NodeConfig, RunningNode, start};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn namespace() -> Namespace {
    Namespace::new(b"carts").unwrap()
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(Bytes::copy_from_slice(name.as_bytes())).unwrap()
}

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn secret() -> ClusterSecret {
    ClusterSecret::given("a secret")
}

pub(crate) fn version(request: u128, context: &Clock, value: &str) -> Version {
    Version {
        value: Value::Present(Bytes::copy_from_slice(value.as_bytes())),
        written_ms: 1,
        expires_ms: 0,
        request,
        context: context.clone(),
        content_type: Bytes::new(),
        meta: Vec::new(),
    }
}

pub(crate) fn mint(name: &str, version: Version, durability: Durability) -> Request {
    Request::Mint {
        namespace: namespace(),
        key: key(name),
        version,
        durability,
        precondition: Precondition::None,
        max_siblings: 100,
        hint_for: None,
        insist: false,
    }
}

pub(crate) fn read(name: &str) -> Request {
    Request::Read { namespace: namespace(), key: key(name), values: true, stands_for: None }
}

/// A cluster of one bucket, and a caller.
pub(crate) struct Cluster {
    pub(crate) bucket: SharedBucket,
    pub(crate) peers: Peers,
    pub(crate) follower: Follower,
    pub(crate) replicas: u32,
    pub(crate) flush_interval: Duration,
    pub(crate) delete_after: Duration,
    pub(crate) ring_interval: Duration,
    pub(crate) nodes: Vec<RunningNode>,
}

impl Cluster {
    pub(crate) fn new(replicas: u32) -> Self {
        Self::over(Arc::new(MemoryBucket::new()), replicas)
    }

    pub(crate) fn over(bucket: SharedBucket, replicas: u32) -> Self {
        let peers = Peers::new(Seams::real(), secret().node_token());
        let follower = Follower::start(Arc::clone(&bucket), Seams::real(), Duration::from_millis(20));
        let flush_interval = Duration::from_millis(100);
        let delete_after = Duration::from_secs(300);
        let ring_interval = Duration::from_millis(50);
        let nodes = Vec::new();
        Self { bucket, peers, follower, replicas, flush_interval, delete_after, ring_interval, nodes }
    }

    pub(crate) fn config(&self, name: &str) -> NodeConfig {
        let mut config = NodeConfig::new(id(name), "127.0.0.1:0".to_owned());
        config.founding = Founding { partitions: 16, tokens: 64, replicas: self.replicas };
        config.ring_interval = self.ring_interval;
        config.cache_bytes = 1 << 20;
        config.flush_interval = self.flush_interval;
        config.delete_after = self.delete_after;
        // Homes compare what they hold when a test asks them to.
        config.repair_every = Duration::from_secs(86_400);
        config
    }

    pub(crate) async fn start(&self, name: &str, disk: Option<Arc<dyn Disk>>) -> RunningNode {
        let config = self.config(name);
        start(config, Seams::real(), disk, Arc::clone(&self.bucket), &secret()).await.unwrap()
    }

    pub(crate) async fn add(&mut self, name: &str) {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
        let node = self.start(name, Some(disk)).await;
        self.counting(node.address()).await;
        self.nodes.push(node);
    }

    /// Waits until the node at `address` counts: it was away, as every process that starts.
    pub(crate) async fn counting(&self, address: &str) {
        let reply = self.call(address, 1, Request::Probe { hinted: false }).await;
        assert_eq!(reply, Reply::Standing(Standing::Counting));
    }

    /// Waits for a ring that satisfies `enough`.
    pub(crate) async fn ring(&self, enough: impl Fn(&View) -> bool) -> Arc<View> {
        let waiting = async {
            let mut version = 0;
            loop {
                let view = self.follower.newer_than(version).await.unwrap();
                if enough(&view) {
                    return view;
                }
                version = view.version();
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the ring never got there")
    }

    pub(crate) async fn settled(&self, members: usize) -> Arc<View> {
        self.ring(|v| v.document.members.len() == members && !v.document.has_pending_change()).await
    }

    pub(crate) async fn call(&self, address: &str, ring_version: u64, request: Request) -> Reply {
        let call = Call { ring_version, request };
        self.peers.call(address, &call, Instant::now() + PATIENCE).await.unwrap().reply
    }
}

pub(crate) fn hash_of(view: &View, name: &str) -> KeyHash {
    KeyHash::of(view.document.hash_seed, &namespace(), &key(name))
}

/// The addresses of a key's homes, and of those to come; the first may mint.
pub(crate) fn homes(view: &View, name: &str) -> Vec<String> {
    let hash = hash_of(view, name);
    let mut all = Vec::new();
    for ring in [&view.current, &view.next] {
        for home in ring.preference_list(hash).homes() {
            let address = ring.member(*home).unwrap().address.to_string();
            if !all.contains(&address) {
                all.push(address);
            }
        }
    }
    all
}

pub(crate) fn values(reply: Reply) -> Vec<String> {
    let Reply::Found(bytes) = reply else { panic!("{reply:?}") };
    let record = Record::decode(&bytes).unwrap();
    let text = |v: &Version| match &v.value {
        Value::Present(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    };
    let mut values: Vec<String> = record.container.siblings().iter().map(|s| text(&s.version)).collect();
    values.sort();
    values
}

pub(crate) fn status_of(reply: Reply) -> serde_json::Value {
    let Reply::Status(json) = reply else { panic!("{reply:?}") };
    serde_json::from_slice(&json).unwrap()
}
