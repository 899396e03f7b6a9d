//! What lies in the bucket, end to end, with processes of the real binary: overwritten and deleted data goes from it,
//! what was deleted stays deleted whatever turns up late, and of two processes of one name one steps down.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
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
use crate::support::process::{Process, cartwheel};
use crate::support::store::{ACCESS_KEY, HttpStore, SECRET_KEY};
use crate::support::{Answer, Client, PATIENCE, Port, in_time, until};

/// Requests at once.
const AT_ONCE: usize = 32;
/// Slow machines must not fail tests.
const PATIENT: &str = "deadline=30s";
/// What all homes of a key together say.
const STRICT: &str = "r=all&sloppy=false&deadline=30s";

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
        let (id, listen, replicas) = (Self::id(node), port.address(), self.replicas.to_string());
        let arguments = [
            &["storage-node", "--id", &id, "--bucket", &self.store.url, "--listen", &listen][..],
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
    async fn homes(&self, key: &str) -> Vec<usize> {
        let path = format!("/v1/cluster/locate?namespace=load&key={key}");
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

    /// How many values a node itself holds of a key.
    async fn values_at(&self, node: usize, key: &str) -> usize {
        let seams = Seams::real();
        let secret = ClusterSecret::from_bucket(&self.store.connect().await, &*seams.random).await.unwrap();
        let request = Request::Read {
            namespace: Namespace::new(b"load").unwrap(),
            key: Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap(),
            values: true,
            stands_for: None,
        };
        let peers = Peers::new(seams, secret.node_token());
        let status = self.client().path(Method::GET, "/v1/cluster").gives(200).await.json();
        let call = Call { ring_version: status["ring_version"].as_u64().unwrap(), request };
        let answer = peers.call(&self.ports[node].address(), &call, Instant::now() + PATIENCE).await.unwrap();
        match answer.reply {
            Reply::Absent => 0,
            Reply::Found(bytes) => {
                let record = Record::decode(&bytes).unwrap();
                record.container.siblings().iter().filter(|s| !s.version.value.is_deleted()).count()
            }
            other => panic!("{} answers {other:?}", Self::id(node)),
        }
    }
}

/// Overwrites each key so many times, always knowing of the value before, and gives the last values and answers.
async fn overwrite(
    client: &Client,
    last: Vec<(String, Option<Answer>)>,
    times: usize,
    length: usize,
    query: &str,
) -> BTreeMap<String, (String, Answer)> {
    let writing = last.into_iter().map(|(key, mut seen)| async move {
        let mut value = String::new();
        for _ in 0..times {
            let before = seen.as_ref().map_or("nothing", Answer::dot);
            value = format!("{key} after {before}: {:length$}", "milk");
            let put = client.put(&format!("load/{key}"), value.clone()).query(query).query(PATIENT);
            let put = seen.iter().fold(put, |put, seen| put.seen(seen));
            seen = Some(put.gives(204).await);
        }
        (key, (value, seen.unwrap()))
    });
    iter(writing).buffer_unordered(AT_ONCE).collect().await
}

/// Every key has this value, and no other beside it, by all its homes together.
async fn all_read(client: &Client, wanted: &BTreeMap<String, (String, Answer)>) {
    let reading = wanted.iter().map(|(key, (value, _))| async move {
        let read = client.get(&format!("load/{key}")).query(STRICT).gives(200).await;
        assert_eq!(read.text(), value, "{key}");
    });
    iter(reading).buffer_unordered(AT_ONCE).for_each(async |()| ()).await;
}

/// None of these is there.
async fn none_read(client: &Client, keys: &[String]) {
    let reading = keys.iter().map(|key| async move {
        client.get(&format!("load/{key}")).query(STRICT).gives(404).await;
    });
    iter(reading).buffer_unordered(AT_ONCE).for_each(async |()| ()).await;
}

fn fresh(keys: impl Iterator<Item = usize>) -> Vec<(String, Option<Answer>)> {
    keys.map(|n| (format!("key-{n}"), None)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_overwritten_and_deleted_goes_from_the_bucket_and_stays_away() {
    let mut quick = Quick::start(3, 3, BUSY).await;
    let client = quick.client();
    let mut living = overwrite(&client, fresh(0..300), 20, 2048, "w=2").await;
    let doomed: Vec<String> = living.keys().step_by(2).cloned().collect();
    assert_eq!(doomed.len(), 150);
    let deleting = doomed.iter().map(|key| {
        let (_, seen) = living.remove(key).unwrap();
        client.delete(&format!("load/{key}")).seen(&seen).query(PATIENT).gives(204)
    });
    iter(deleting.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).for_each(async |_| ()).await;
    // The newest two flushes of a process always stay: small ones here.
    for last in ["last-1", "last-2"] {
        living.extend(
            overwrite(&client, vec![(last.to_owned(), None)], 1, 10, "w=all&durability=bucket").await,
        );
    }

    // Every node holds every key: one record of at most 250 bytes beside the value.
    let live: u64 = living.values().map(|(value, _)| value.len() as u64 + 250).sum();
    let all_gone = |m: &Value| m["keys"] == living.len() && m["graves"].as_u64() > Some(0);
    let said = quick.all_say("deletions are forgotten", all_gone).await;
    for node in &said {
        let flushed = node["bucket_usage"]["flush"]["bytes_in"].as_u64();
        assert!(flushed > Some(5 * live), "most of what was flushed was overwritten: {node}");
    }
    // What is forgotten leaves a small record each in a grave.
    let most = live + live / 2 + 150 * 250;
    until("the bucket holds little more than what lives", || async {
        let mut bytes = Vec::new();
        for node in 0..3 {
            bytes.push(quick.segment_bytes(node).await);
        }
        bytes.iter().all(|bytes| *bytes <= most).then_some(())
    })
    .await;
    none_read(&client, &doomed).await;
    all_read(&client, &living).await;

    for without_disks in [false, true] {
        quick.all_say("everything is in the bucket", |m| m["memtable_keys"] == 0).await;
        for node in 0..3 {
            quick.kill(node);
            if without_disks {
                std::fs::remove_dir_all(quick.data(node)).unwrap();
            }
        }
        quick.start_all().await;
        none_read(&client, &doomed).await;
        all_read(&client, &living).await;
        quick.all_say("forgotten for good", all_gone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_that_turns_up_after_its_key_was_deleted_and_forgotten_brings_nothing_back() {
    let mut quick = Quick::start(4, 3, BUSY).await;
    let client = quick.client();
    let homes = quick.homes("cart").await;
    let away = homes[1];
    let prefix = format!("hints/{}/", Quick::id(away));
    let old = client.put("load/cart", "old").query("w=all").query(PATIENT).gives(204).await;
    quick.kill(away);
    let hinted = client.put("load/cart", "hinted").seen(&old).query("w=3").query(PATIENT).gives(204).await;
    assert_eq!((hinted.quorum("home"), hinted.quorum("fallback")), ("2", "1"));
    let hint = until("the hint is in the bucket", || async { quick.list(&prefix).await.pop() }).await;
    let bucket = quick.store.connect().await;
    let bytes = bucket.get(&hint.key).await.unwrap();
    quick.start_node(away);
    quick.serves().await;
    until("the home took it", || async { quick.list(&prefix).await.is_empty().then_some(()) }).await;
    let read = client.get("load/cart").query(STRICT).gives(200).await;
    assert_eq!(read.text(), "hinted");
    client.delete("load/cart").seen(&read).query("w=all").query(PATIENT).gives(204).await;

    let forgotten = |m: &Value| {
        m["keys"] == 0 && (m["graves"].as_u64() > Some(0) || !homes.contains(&Quick::number(&m["id"])))
    };
    quick.all_say("the deletion is forgotten", forgotten).await;
    for home in &homes {
        assert_eq!(quick.values_at(*home, "cart").await, 0);
    }

    // An upload that was on its way all the while.
    quick.kill(away);
    let name = parse_hint_object(&hint.key).unwrap();
    let late = hint_object(&name.home, &name.label, name.n + 1);
    bucket.put(&late, bytes).await.unwrap();
    quick.start_node(away);
    quick.serves().await;
    until("the home took it again", || async { quick.list(&prefix).await.is_empty().then_some(()) }).await;
    for home in &homes {
        assert_eq!(quick.values_at(*home, "cart").await, 0);
    }
    client.get("load/cart").query(STRICT).gives(404).await;

    // Nothing of it stands in the way of a new value.
    client.put("load/cart", "anew").query("w=all").query(PATIENT).gives(204).await;
    let read = client.get("load/cart").query(STRICT).send().await;
    // Written without knowing of the deletion, it may stand beside that; but beside no value.
    assert!(read.values().into_iter().flatten().eq(["anew"]), "{read:?}");
    client.put("load/cart", "and newer").seen(&read).query("w=all").query(PATIENT).gives(204).await;
    assert_eq!(client.get("load/cart").query(STRICT).gives(200).await.text(), "and newer");
}

/// The newest manifest of a node names nothing that is not there.
async fn manifest_is_whole(quick: &Quick, node: usize) {
    let (bucket, id) = (quick.store.connect().await, NodeId::new(&Quick::id(node)).unwrap());
    let newest = || async { manifests::newest(&bucket, &id).await.unwrap().unwrap() };
    // Listed while it was the newest all along.
    let (manifest, listed) = until("the manifest is still the newest", || async {
        let before = newest().await;
        let listed = quick.list(&format!("nodes/{id}/")).await;
        (newest().await.version == before.version).then_some((before, listed))
    })
    .await;
    assert!(!manifest.segments.is_empty());
    for entry in manifest.segments.iter().chain(&manifest.graves) {
        let there = listed.iter().find(|object| object.key == entry.object);
        assert_eq!(there.map(|object| object.size), Some(entry.bytes), "{}", entry.object);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_taken_over_while_it_hung_loses_nothing_and_ends() {
    // One copy of everything: nobody else makes up for what these two lose.
    let mut quick = Quick::start(1, 1, LAZY).await;
    let client = quick.client();
    let mut wanted = BTreeMap::new();
    // Many small flushes, and so merges.
    for _ in 0..8 {
        let last = (0..10).map(|n| format!("key-{n}"));
        let last = last.map(|key| (key.clone(), wanted.remove(&key).map(|(_, seen)| seen))).collect();
        wanted.extend(overwrite(&client, last, 1, 100, "durability=bucket").await);
    }
    quick.all_say("it merged", |m| m["bucket_usage"]["compaction"]["create"].as_u64() > Some(0)).await;
    // On the first one's disk alone, unless a flush that was under way took it along.
    wanted.extend(overwrite(&client, fresh(100..130), 2, 100, "durability=disk").await);
    let mut unflushed = 0;
    for n in 130..140 {
        wanted.extend(overwrite(&client, fresh(n..n + 1), 1, 100, "durability=disk").await);
        unflushed = quick.figures().await.unwrap()[0]["memtable_keys"].as_u64().unwrap();
        if unflushed > 0 {
            break;
        }
    }
    assert!(unflushed > 0, "it flushes though nobody waits for that");

    let first = quick.nodes[0].take().unwrap();
    first.signal("STOP");
    let port = Port::reserve();
    let second = quick.process(0, "second", &port, &quick.data(1));
    quick
        .all_say("the other serves", |m| m["address"] == port.address() && m["standing"] == "counting")
        .await;
    for round in 0..8 {
        let last = (0..10).map(|n| format!("key-{n}"));
        let last = last.map(|key| (key.clone(), wanted.remove(&key).map(|(_, seen)| seen))).collect();
        wanted.extend(overwrite(&client, last, 1, 100 + round, "durability=bucket").await);
    }
    wanted.extend(overwrite(&client, fresh(200..230), 2, 100, "durability=disk").await);
    quick.all_say("it merged too", |m| m["bucket_usage"]["compaction"]["create"].as_u64() > Some(0)).await;

    first.signal("CONT");
    first.ends_with(5).await;
    let said = std::fs::read_to_string(quick.directory.path().join("node-a.log")).unwrap();
    assert!(said.contains("--id node-a: another process has taken over this name"), "{said}");
    manifest_is_whole(&quick, 0).await;
    for (key, (value, _)) in &wanted {
        until("what the first one held is taken up", || async {
            let read = client.get(&format!("load/{key}")).send().await;
            (read.status == 200 && read.text() == value).then_some(())
        })
        .await;
    }
    all_read(&client, &wanted).await;
    manifest_is_whole(&quick, 0).await;

    // And all of it is in the bucket once the other ends too.
    second.terminate();
    second.ends_with(0).await;
    manifest_is_whole(&quick, 0).await;
    quick.ports = vec![Port::reserve()];
    std::fs::remove_dir_all(quick.data(0)).unwrap();
    quick.start_all().await;
    all_read(&client, &wanted).await;
}

const DONE: &[u8] = b"HTTP/1.1 200 OK\r\netag: \"1\"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// A store that says yes to every conditional create: a wire to one that honours them, which turns 412 into 200.
async fn careless(store: &HttpStore) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let to = store.endpoint.strip_prefix("http://").unwrap().to_owned();
    let hand_on = async |outer: TcpStream, mut inner: TcpStream| {
        let ((mut from_client, mut to_client), (mut from_store, mut to_store)) =
            (outer.into_split(), inner.split());
        let answering = async {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let length = from_store.read(&mut buffer).await?;
                // An answer begins with its head, in one piece.
                if buffer[..length].starts_with(b"HTTP/1.1 412") {
                    return to_client.write_all(DONE).await;
                }
                if length == 0 {
                    return Ok(());
                }
                to_client.write_all(&buffer[..length]).await?;
            }
        };
        // Either side may end it.
        tokio::select! {
            _ = tokio::io::copy(&mut from_client, &mut to_store) => {}
            _ = answering => {}
        }
    };
    tokio::spawn(async move {
        while let Ok((outer, _)) = listener.accept().await {
            let inner = TcpStream::connect(&to).await.unwrap();
            tokio::spawn(hand_on(outer, inner));
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_node_does_not_start_over_a_store_that_ignores_conditions() {
    let store = HttpStore::start().await;
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let endpoint = careless(&store).await;
    let mut command = cartwheel(&["storage-node", "--id", "node-a", "--bucket", &store.url]);
    command
        .args(["--listen", "127.0.0.1:0", "--cluster-secret", "of some length"])
        .args(["--data-dir", data.to_str().unwrap()])
        .env("AWS_ENDPOINT_URL_S3", endpoint)
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env("AWS_REGION", "us-east-1");
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = in_time("the node's end", ended).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--unsafe-no-cas") && said.contains("If-None-Match"), "{said}");
    let left = list_all(&store.connect().await, "").await.unwrap();
    assert!(left.is_empty(), "it founded nothing: {left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_node_shows_what_it_asks_of_the_bucket_and_what_that_costs() {
    let quick = Quick::start(1, 1, LAZY).await;
    quick.client().put("load/cart", "milk").query("durability=bucket").gives(204).await;
    let node = Client::new(&quick.ports[0].address());
    let figures = node.path(Method::GET, "/metrics").gives(200).await;
    let line = r#"cartwheel_bucket_requests_total{node="node-a",op="put",work="flush"} 1"#;
    assert!(figures.text().lines().any(|found| found == line), "{}", figures.text());
    let said = &quick.figures().await.unwrap()[0];
    assert_eq!(said["bucket_usage"]["flush"]["put"], 1, "{said}");
    assert!(said["bucket_dollars"].as_f64() > Some(0.0), "{said}");
}
