//! What lies in the bucket, end to end, with processes of the real binary: overwritten and deleted data goes from it,
//! what was deleted stays deleted whatever turns up late, and of two processes of one name one steps down.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cartwheel_bucket::{Bucket, Listed, list_all};
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::record::Record;
use cartwheel_core::wire::{Call, Reply, Request};
use cartwheel_segments::hints::{hint_object, parse_hint_object};
use cartwheel_segments::manifests;
use futures_util::stream::{StreamExt, iter};
use http::Method;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::support::cluster::members;
use crate::support::fleet::ask;
use crate::support::process::Process;
use crate::support::store::HttpStore;
use crate::support::{Client, PATIENCE, Port, in_time, until};

/// Requests at once.
const AT_ONCE: usize = 32;

/// A cluster that forgets quickly: storage nodes and one gateway, each a process.
struct Quick {
    store: HttpStore,
    directory: TempDir,
    replicas: usize,
    settings: &'static [&'static str],
    ports: Vec<Port>,
    nodes: Vec<Option<Process>>,
    gateway: Port,
    _gateway: Process,
}

/// Flushes all the time, deletes what is needed no longer and forgets deletions after a second.
const BUSY: &[&str] = &["--flush-interval", "300ms", "--flush-bytes", "64KiB"];
/// Flushes only what somebody waits for.
const LAZY: &[&str] = &["--flush-interval", "1h"];

impl Quick {
    /// Runs, with every node counting.
    async fn start(nodes: usize, replicas: usize, settings: &'static [&'static str]) -> Self {
        let store = HttpStore::start().await;
        let directory = tempfile::tempdir().unwrap();
        let gateway = Port::reserve();
        let arguments = ["gateway", "--bucket", &store.url, "--listen", &gateway.address()];
        let process = Process::start("gateway", directory.path(), Some(&store), &arguments);
        let ports = (0..nodes).map(|_| Port::reserve()).collect();
        let nodes = (0..nodes).map(|_| None).collect();
        let mut quick =
            Self { store, directory, replicas, settings, ports, nodes, gateway, _gateway: process };
        quick.start_all().await;
        quick
    }

    fn id(node: usize) -> String {
        format!("node-{}", char::from(b'a' + u8::try_from(node).unwrap()))
    }

    fn number(id: &Value) -> usize {
        usize::from(id.as_str().unwrap().as_bytes()[5] - b'a')
    }

    fn data(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("data-{node}"))
    }

    /// Another process of a node; what it says goes to `LOG.log`.
    fn process(&self, node: usize, log: &str, port: &Port, data: &std::path::Path) -> Process {
        let (id, replicas) = (Self::id(node), self.replicas.to_string());
        let arguments = [
            &["storage-node", "--id", &id, "--bucket", &self.store.url, "--listen", &port.address()][..],
            &["--data-dir", data.to_str().unwrap(), "--replicas", &replicas, "--partitions", "16"],
            &["--delete-after", "1s", "--reap-after", "1s"],
            self.settings,
        ];
        Process::start(log, self.directory.path(), Some(&self.store), &arguments.concat())
    }

    fn start_node(&mut self, node: usize) {
        let process = self.process(node, &Self::id(node), &self.ports[node], &self.data(node));
        self.nodes[node] = Some(process);
    }

    async fn start_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.start_node(node);
        }
        self.serves().await;
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].take().unwrap().kill();
    }

    fn client(&self) -> Client {
        Client::new(&self.gateway.address())
    }

    /// What each node says of itself, in the order of their numbers; `None` where one is not reached.
    async fn figures(&self) -> Option<Vec<Value>> {
        let status = ask(&self.client(), "/v1/cluster").await?;
        let all: BTreeMap<usize, Value> =
            members(&status).map(|m| (Self::number(&m["id"]), m.clone())).collect();
        let there = all.len() == self.nodes.len() && status["pending_change"].is_null();
        let reachable = all.values().all(|m| m["reachable"] == true);
        (there && reachable).then(|| all.into_values().collect())
    }

    /// Waits until all nodes say so of themselves.
    async fn all_say(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Vec<Value> {
        until(what, || async { self.figures().await.filter(|all| all.iter().all(&holds)) }).await
    }

    /// Waits until every node counts, and knows all that it holds.
    async fn serves(&self) {
        let counts = |m: &Value| m["standing"] == "counting" && m["partitions_not_held"] == 0;
        self.all_say("all nodes count", |m| counts(m) && m["index_complete"] == true).await;
    }

    /// The homes of a key, in its order.
    async fn homes(&self, namespace: &str, key: &str) -> Vec<usize> {
        let path = format!("/v1/cluster/locate?namespace={namespace}&key={key}");
        let location = self.client().path(Method::GET, &path).gives(200).await.json();
        location["homes"].as_array().unwrap().iter().map(Self::number).collect()
    }

    async fn list(&self, prefix: &str) -> Vec<Listed> {
        list_all(&self.store.connect().await, prefix).await.unwrap()
    }

    /// Bytes of a node's segments, those of what it has forgotten included.
    async fn segment_bytes(&self, node: usize) -> u64 {
        let listed = self.list(&format!("nodes/{}/", Self::id(node))).await;
        listed.iter().filter(|object| object.key.ends_with(".seg")).map(|object| object.size).sum()
    }

    /// The values that a node itself holds of a key; without asking any other.
    async fn values_at(&self, node: usize, namespace: &str, key: &str) -> usize {
        let seams = Seams::real();
        let secret = ClusterSecret::from_bucket(&self.store.connect().await, &*seams.random).await.unwrap();
        let request = Request::Read {
            namespace: Namespace::new(namespace).unwrap(),
            key: Key::new(key.as_bytes().to_vec()).unwrap(),
            values: true,
            stands_for: None,
        };
        let peers = Peers::new(seams, secret.node_token());
        let call = Call { ring_version: 1, request };
        let answer = peers.call(&self.ports[node].address(), &call, Instant::now() + PATIENCE).await.unwrap();
        match answer.reply {
            Reply::Absent => 0,
            Reply::Found(bytes) => {
                let record = Record::decode(&bytes).unwrap();
                record.container.siblings().iter().filter(|s| !s.version.is_deletion()).count()
            }
            other => panic!("{} answers {other:?}", Self::id(node)),
        }
    }
}
