//! Nodes that take over partitions: from the segments of the old homes, and what those do not say from the homes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::list_all;
use cartwheel_cluster::membership::{self, View};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::manifest::Manifest;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Version};
use cartwheel_core::ring::change::{Edit, Known};
use cartwheel_core::wire::{Reply, Request};
use cartwheel_storage_node::disk::{Disk, MemoryDisk};

use crate::support::{Cluster, PATIENCE, homes, id, key, mint, namespace, read, status_of, values, version};

const KEYS: usize = 400;

/// Writes a key as a gateway does: mints at the first home and sends the rest the delta.
async fn write(cluster: &Cluster, view: &View, name: &str, request: u128) {
    let homes = homes(view, name);
    let minted = version(request, &Clock::new(), name);
    let asked = mint(name, minted.clone(), Durability::Memory);
    let reply = cluster.call(&homes[0], view.version(), asked).await;
    let Reply::Minted { dot, .. } = reply else { panic!("{reply:?}") };
    let container = Container::delta(&Clock::new(), dot, minted);
    let record = Record { namespace: namespace(), key: key(name), container }.encode();
    for home in &homes[1..] {
        let request =
            Request::Replicate { durability: Durability::Memory, hint_for: None, record: record.clone() };
        let reply = cluster.call(home, view.version(), request).await;
        assert!(matches!(reply, Reply::Acked { .. }), "{reply:?}");
    }
}

fn name(i: usize) -> String {
    format!("k{i}")
}

async fn filled(nodes: &[&str], replicas: u32) -> Cluster {
    filled_with(nodes, Cluster::new(replicas)).await
}

async fn filled_with(nodes: &[&str], mut cluster: Cluster) -> Cluster {
    for node in nodes {
        cluster.add(node).await;
    }
    let view = cluster.settled(cluster.nodes.len()).await;
    for i in 0..KEYS {
        write(&cluster, &view, &name(i), i as u128 + 1).await;
    }
    cluster
}

/// Every home of every key has it.
async fn all_there(cluster: &Cluster, view: &View) {
    for i in 0..KEYS {
        for home in homes(view, &name(i)) {
            let reply = cluster.call(&home, view.version(), read(&name(i))).await;
            assert_eq!(values(reply), [name(i)], "{home}");
        }
    }
}

/// The objects of other nodes that `node`'s newest manifest names, and the pins of `node`.
async fn borrowed(cluster: &Cluster, node: &str) -> (BTreeSet<String>, Vec<String>) {
    let manifests = list_all(&*cluster.bucket, &Manifest::prefix(&id(node))).await.unwrap();
    let newest = cluster.bucket.get(&manifests.last().unwrap().key).await.unwrap();
    let manifest = Manifest::parse(&newest).unwrap();
    let own = format!("nodes/{node}/");
    let named = manifest.segments.into_iter().chain(manifest.graves).map(|entry| entry.object);
    let foreign = named.filter(|object| !object.starts_with(&own)).collect();
    let objects = list_all(&*cluster.bucket, "nodes/").await.unwrap().into_iter().map(|listed| listed.key);
    let pins = objects.filter(|object| object.contains(&format!("/pins/{node}-"))).collect();
    (foreign, pins)
}

async fn let_go(cluster: &Cluster, node: &str) {
    let waiting = async {
        while borrowed(cluster, node).await != (BTreeSet::new(), Vec::new()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("borrowed segments are never let go of");
}

async fn edit(cluster: &Cluster, edit: Edit, dead: &[&str]) {
    let newest = membership::read_newest(&*cluster.bucket, 0).await.unwrap().unwrap();
    let known = Known { alive: &|id: &NodeId| !dead.contains(&id.as_str()), force: false };
    let seams = Seams::real();
    membership::apply(&*cluster.bucket, &seams, newest.version, &[edit], known, "a test").await.unwrap();
}

/// What the node at `address` took over: partitions, bytes borrowed and bytes copied.
async fn took_over(cluster: &Cluster, address: &str) -> (u64, u64, u64) {
    let status = status_of(cluster.call(address, 1, Request::Status).await);
    let figure = |name: &str| status["repair"]["takeover"][name].as_u64().unwrap();
    (figure("partitions"), figure("borrowed_bytes"), figure("copied_bytes"))
}

#[tokio::test]
async fn a_node_that_joins_borrows_what_it_is_to_hold_and_rewrites_it() {
    let mut cluster = filled(&["node-a", "node-b", "node-c"], 2).await;
    let joining = cluster.start("node-d", Some(Arc::new(MemoryDisk::default()))).await;
    let view = cluster.settled(4).await;
    all_there(&cluster, &view).await;
    let (partitions, borrowed_bytes, copied_bytes) = took_over(&cluster, joining.address()).await;
    assert_eq!(partitions, view.current.partitions_of(&id("node-d")).len() as u64);
    assert!(borrowed_bytes > 0 && copied_bytes < borrowed_bytes, "{borrowed_bytes} {copied_bytes}");
    let_go(&cluster, "node-d").await;
    // The old homes are gone, and what they had in the bucket too.
    cluster.nodes.push(joining);
    for node in cluster.nodes.drain(..3) {
        node.shutdown().await;
    }
    for node in ["node-a", "node-b", "node-c"] {
        for object in list_all(&*cluster.bucket, &format!("nodes/{node}/")).await.unwrap() {
            cluster.bucket.delete(&object.key).await.unwrap();
        }
    }
    let address = cluster.nodes[0].address();
    for i in (0..KEYS).filter(|i| homes(&view, &name(*i)).iter().any(|home| home == address)) {
        let reply = cluster.call(address, view.version(), read(&name(i))).await;
        assert_eq!(values(reply), [name(i)]);
    }
}

async fn status(cluster: &Cluster, address: &str, figure: &str) -> u64 {
    status_of(cluster.call(address, 1, Request::Status).await)[figure].as_u64().unwrap()
}

/// What a ring change gave away is forgotten, in memory and in the bucket; what comes back later is there again, and
/// nothing that is minted then has the dot of something forgotten.
#[tokio::test]
async fn what_was_given_away_is_forgotten_and_can_come_back() {
    let mut cluster = Cluster { delete_after: Duration::from_millis(200), ..Cluster::new(2) };
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let first = cluster.start("node-a", Some(Arc::clone(&disk))).await;
    cluster.counting(first.address()).await;
    cluster.nodes.push(first);
    let mut cluster = filled_with(&["node-b"], cluster).await;
    let joining = cluster.start("node-c", Some(Arc::new(MemoryDisk::default()))).await;
    let view = cluster.settled(3).await;
    cluster.nodes.push(joining);
    let of = |view: &View, address: &str| {
        (0..KEYS).filter(|i| homes(view, &name(*i)).iter().any(|home| home == address)).count() as u64
    };
    let forgetting = async {
        for node in &cluster.nodes {
            // In the segments too, once they are merged: what is left of them holds no more than the index knows.
            while status(&cluster, node.address(), "keys").await != of(&view, node.address())
                || segment_records(&cluster, node.id().as_str()).await > of(&view, node.address()) + 64 * 16
            {
            }
        }
    };
    tokio::time::timeout(PATIENCE, forgetting).await.expect("what was given away is never forgotten");
    all_there(&cluster, &view).await;

    edit(&cluster, Edit::Leave { id: id("node-c") }, &[]).await;
    let view = cluster.settled(2).await;
    all_there(&cluster, &view).await;
    let mut dots = BTreeSet::new();
    for i in 0..KEYS {
        let home = &homes(&view, &name(i))[0];
        let before = values(cluster.call(home, view.version(), read(&name(i))).await);
        let asked = mint(&name(i), version(10_000 + i as u128, &Clock::new(), "again"), Durability::Memory);
        let reply = cluster.call(home, view.version(), asked).await;
        let Reply::Minted { dot, .. } = reply else { panic!("{reply:?}") };
        let after = values(cluster.call(home, view.version(), read(&name(i))).await);
        assert_eq!(after.len(), before.len() + 1, "{dot} was minted before");
        dots.insert(dot.actor.epoch);
    }
    assert!(dots.iter().all(|epoch| *epoch > 1), "{dots:?}");
    // The next process mints under another epoch, though this one ends as it should.
    let node = cluster.nodes.remove(0);
    let epoch = node.incarnation().epoch;
    node.shutdown().await;
    let again = cluster.start("node-a", Some(disk)).await;
    assert!(again.incarnation().epoch > epoch);
}

/// Records that the segments of a node's newest manifest hold and that count.
async fn segment_records(cluster: &Cluster, node: &str) -> u64 {
    let manifests = list_all(&*cluster.bucket, &Manifest::prefix(&id(node))).await.unwrap();
    let newest = cluster.bucket.get(&manifests.last().unwrap().key).await.unwrap();
    Manifest::parse(&newest).unwrap().segments.iter().map(|entry| entry.records).sum()
}

#[tokio::test]
async fn what_a_leaving_node_holds_is_held_by_the_others_before_it_is_gone() {
    let cluster = filled(&["node-a", "node-b", "node-c", "node-d"], 2).await;
    edit(&cluster, Edit::Leave { id: id("node-b") }, &[]).await;
    let view = cluster.settled(3).await;
    assert!(view.current.index_of(&id("node-b")).is_none());
    all_there(&cluster, &view).await;
}

#[tokio::test]
async fn a_heavier_node_takes_over_its_new_share() {
    let cluster = filled(&["node-a", "node-b", "node-c", "node-d"], 2).await;
    let before = cluster.settled(4).await.current.partitions_of(&id("node-c")).len();
    edit(&cluster, Edit::Weight { id: id("node-c"), weight: 3 }, &[]).await;
    let changed = |view: &View| view.document.member(&id("node-c")).unwrap().weight == 3;
    let view = cluster.ring(|view| changed(view) && !view.document.has_pending_change()).await;
    assert!(view.current.partitions_of(&id("node-c")).len() > before);
    all_there(&cluster, &view).await;
}

/// A dead home is forgotten. What others kept for it is given to those that hold its keys then, and what it alone had
/// put into the bucket is read from there.
#[tokio::test]
async fn the_hints_and_the_segments_of_a_forgotten_node_go_to_the_new_homes() {
    let mut cluster = filled(&["node-a", "node-b", "node-c", "node-d"], 2).await;
    let dead = cluster.nodes.pop().unwrap();
    let (gone, view) = (dead.address().to_owned(), cluster.settled(4).await);
    let mut of_the_dead = (0..KEYS).map(name).filter(|name| homes(&view, name).contains(&gone));
    // One that only the dead node holds, as another that was acknowledged there alone.
    let alone = of_the_dead.next().unwrap();
    let only = Record { namespace: namespace(), key: key(&alone), container: container(9001, "alone") };
    let durability = Durability::Memory;
    let request = Request::Replicate { durability, hint_for: None, record: only.encode() };
    assert!(matches!(cluster.call(&gone, view.version(), request).await, Reply::Acked { .. }));
    dead.shutdown().await;
    // One that was written while it was away, and that a fallback keeps for it.
    let hinted = of_the_dead.next().unwrap();
    let members = view.document.members.iter().filter(|member| member.address != gone);
    let fallback = members.map(|m| m.address.clone()).find(|a| !homes(&view, &hinted).contains(a)).unwrap();
    let record = Record { namespace: namespace(), key: key(&hinted), container: container(9002, "hinted") };
    let hint_for = Some(id("node-d"));
    let request = Request::Replicate { durability, hint_for, record: record.encode() };
    // Connections to a node that has ended live as long as this process: the fallback may find it still.
    let keeping = async {
        while !matches!(cluster.call(&fallback, view.version(), request.clone()).await, Reply::Acked { .. }) {
        }
    };
    tokio::time::timeout(PATIENCE, keeping).await.expect("no fallback keeps anything");

    edit(&cluster, Edit::Forget { id: id("node-d") }, &["node-d"]).await;
    let view = cluster.settled(3).await;
    for (name, newer) in [(&alone, "alone"), (&hinted, "hinted")] {
        // One home at least has it, so that a read of all finds it; the homes tell each other the rest.
        let mut found = false;
        for home in homes(&view, name) {
            let held = values(cluster.call(&home, view.version(), read(name)).await);
            assert!(held.contains(name), "{held:?}");
            found |= held.contains(&newer.to_owned());
        }
        assert!(found, "{name}");
    }
    let kept = async {
        loop {
            let status = status_of(cluster.call(&fallback, 1, Request::Status).await);
            if status["hints"] == serde_json::json!([]) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, kept).await.expect("hints for a node that is gone are kept for ever");
}

fn container(request: u128, value: &str) -> Container<Version> {
    let dot = Dot { actor: Actor::parse("node-z.1").unwrap(), n: 1 };
    Container::delta(&Clock::new(), dot, version(request, &Clock::new(), value))
}
