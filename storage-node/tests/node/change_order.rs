//! The order in which a home to come takes over its partitions: it begins when every member knows the new ring, compares
//! what it holds with every old home, and is ready once all of it is in the bucket.

use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::{SharedBucket, list_all};
use cartwheel_cluster::membership::{self, View};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::frame::FrameVersion;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Brief, Record};
use cartwheel_core::ring::change::{Edit, Known};
use cartwheel_core::segment::SegmentBuilder;
use cartwheel_core::wire::{Reply, Request};
use cartwheel_segments::hints::{hint_object, holder_label};
use cartwheel_storage_node::disk::{Disk, MemoryDisk};
use cartwheel_storage_node::{RunningNode, start};

use crate::rigged::{Done, Operation, Rigged};
use crate::support::{Cluster, PATIENCE, hash_of, homes, id, key, namespace, read, secret, values, version};

const KEYS: usize = 200;

fn name(i: usize) -> String {
    format!("k{i}")
}

/// Starts a node whose bucket the test can rig.
async fn rigged_node(cluster: &Cluster, name: &str) -> (RunningNode, Arc<Rigged>) {
    let rigged = Rigged::new(Arc::clone(&cluster.bucket));
    let bucket: SharedBucket = rigged.clone();
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let mut config = cluster.config(name);
    // What the bucket does not show it, it does not know: by these frames it can't ask other nodes for the ring.
    config.frames = FrameVersion::One;
    let node = start(config, Seams::real(), Some(disk), bucket, &secret()).await.unwrap();
    (node, rigged)
}

/// Three nodes that flush only when asked to, with keys of which one home alone knows: now the one, now the other.
async fn filled() -> (Cluster, Arc<View>, Arc<Rigged>) {
    let mut cluster = Cluster::new(2);
    cluster.flush_interval = Duration::from_secs(86_400);
    for node in ["node-a", "node-b"] {
        cluster.add(node).await;
    }
    let (third, rigged) = rigged_node(&cluster, "node-c").await;
    cluster.nodes.push(third);
    let view = cluster.settled(3).await;
    for i in 0..KEYS {
        let home = homes(&view, &name(i))[i % 2].clone();
        let dot = Dot { actor: Actor::parse("node-z.1").unwrap(), n: 1 };
        let container = Container::delta(&Clock::new(), dot, version(i as u128 + 1, &Clock::new(), &name(i)));
        let record = Record { namespace: namespace(), key: key(&name(i)), container }.encode();
        let durability = Durability::Memory;
        let request = Request::Replicate { durability, hint_for: None, record };
        let reply = cluster.call(&home, view.version(), request).await;
        assert!(matches!(reply, Reply::Acked { .. }), "{reply:?}");
    }
    (cluster, view, rigged)
}

async fn objects(cluster: &Cluster, prefix: &str, part: &str) -> Vec<String> {
    let objects = list_all(&*cluster.bucket, prefix).await.unwrap();
    objects.into_iter().map(|object| object.key).filter(|key| key.contains(part)).collect()
}

#[tokio::test]
async fn what_one_old_home_alone_holds_is_taken_over_whichever_it_is() {
    let (cluster, ..) = filled().await;
    let joining = cluster.start("node-d", Some(Arc::new(MemoryDisk::default()))).await;
    let view = cluster.settled(4).await;
    let mut held = [0, 0];
    for i in (0..KEYS).filter(|i| homes(&view, &name(*i)).iter().any(|home| home == joining.address())) {
        let reply = cluster.call(joining.address(), view.version(), read(&name(i))).await;
        assert_eq!(values(reply), [name(i)]);
        held[i % 2] += 1;
    }
    assert!(held[0] > 10 && held[1] > 10, "{held:?}");
}

#[tokio::test]
async fn nothing_is_taken_over_before_every_member_knows_the_new_ring() {
    let (cluster, view, third) = filled().await;
    let next = format!("ring/{:010}", view.version() + 1);
    third.refuse(Operation::Get, &next);
    let _joining = cluster.start("node-d", Some(Arc::new(MemoryDisk::default()))).await;
    // It looks again each time that somebody tells it of the new ring.
    let looks =
        |journal: &[Done]| journal.iter().filter(|done| done.refused && done.key.starts_with(&next)).count();
    third.until("node-c looks for the new ring", |journal| looks(journal) >= 60).await;
    assert_eq!(objects(&cluster, "nodes/", "/pins/node-d-").await, Vec::<String>::new());
    // Nor has it borrowed, merged and let go already.
    assert_eq!(objects(&cluster, "nodes/node-d/c/", "").await, Vec::<String>::new());
    assert_eq!(objects(&cluster, "ring-ready/", "/node-d").await.len(), 0);
    third.relent();
    cluster.settled(4).await;
    assert!(!objects(&cluster, "nodes/node-d/c/", "").await.is_empty());
}

/// The `n`th write that a gateway left for `home` in the bucket: of this key, and its name is the value.
async fn left_by_a_gateway(cluster: &Cluster, view: &View, home: &NodeId, name: &str, n: u64) {
    let dot = Dot { actor: Actor::parse("gw-1.1").unwrap(), n };
    let container = Container::delta(&Clock::new(), dot, version(u128::from(n), &Clock::new(), name));
    let record = Record { namespace: namespace(), key: key(name), container };
    let mut builder = SegmentBuilder::new();
    let brief = record.container.clone().map(|version| Brief::from(version));
    builder.push(hash_of(view, name), &record.encode(), &brief);
    let object = hint_object(home, &holder_label(&id("gw-1"), 1, "0123456789abcdef"), n);
    cluster.bucket.put(&object, builder.finish().unwrap().bytes).await.unwrap();
}

/// A gateway that reached no home wrote into the inbox of one that is dead: it lies in the bucket alone, and nobody else
/// gives it away. One that has not heard of the change may do so when it is settled.
#[tokio::test]
async fn what_gateways_wrote_for_the_dead_is_taken_from_the_bucket() {
    let mut cluster = Cluster::new(2);
    for node in ["node-a", "node-b", "node-c", "node-d"] {
        cluster.add(node).await;
    }
    let view = cluster.settled(4).await;
    let dead = id("node-d");
    let address = view.document.member(&dead).unwrap().address.clone();
    let written = (0..).map(name).find(|name| homes(&view, name).contains(&address)).unwrap();
    cluster.nodes.remove(3).shutdown().await;
    left_by_a_gateway(&cluster, &view, &dead, &written, 1).await;

    let known = Known { alive: &|member| *member != dead, force: false };
    let (seams, edits) = (Seams::real(), [Edit::Forget { id: dead.clone() }]);
    membership::apply(&*cluster.bucket, &seams, view.version(), &edits, known, "a test").await.unwrap();
    let view = cluster.settled(3).await;
    is_with_a_home(&cluster, &view, &written).await;
    no_hints_are_left(&cluster).await;

    let late = name(9000);
    left_by_a_gateway(&cluster, &view, &dead, &late, 2).await;
    no_hints_are_left(&cluster).await;
    is_with_a_home(&cluster, &view, &late).await;
}

async fn is_with_a_home(cluster: &Cluster, view: &View, name: &str) {
    let mut found = false;
    for home in homes(view, name) {
        let reply = cluster.call(&home, view.version(), read(name)).await;
        found |= matches!(reply, Reply::Found(_)) && values(reply) == [name];
    }
    assert!(found, "no home holds {name}");
}

async fn no_hints_are_left(cluster: &Cluster) {
    let gone = async {
        while !objects(cluster, "hints/", "").await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("hints for the gone are kept for ever");
}

/// A write that only a node holds which is no home any more, for it came from an inbox after the homes had compared.
#[tokio::test]
async fn what_only_this_node_holds_is_given_to_its_homes_before_it_is_forgotten() {
    let mut cluster = Cluster { delete_after: Duration::from_secs(1), ..Cluster::new(1) };
    for node in ["node-a", "node-b"] {
        cluster.add(node).await;
    }
    let view = cluster.settled(2).await;
    let (old, home) = (cluster.nodes[0].address().to_owned(), cluster.nodes[1].address().to_owned());
    let written = (0..).map(name).find(|name| homes(&view, name) == [home.clone()]).unwrap();
    left_by_a_gateway(&cluster, &view, &id("node-a"), &written, 1).await;
    // It takes what lies there for it.
    let taken = async {
        while !objects(&cluster, "hints/", "").await.is_empty() {
            cluster.call(&old, view.version(), Request::Probe { hinted: true }).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.expect("its inbox is never looked at");
    let given = async {
        while !matches!(cluster.call(&home, view.version(), read(&written)).await, Reply::Found(_)) {}
    };
    tokio::time::timeout(PATIENCE, given).await.expect("the home never gets it");
}

#[tokio::test]
async fn who_joins_is_ready_once_all_that_it_took_is_in_the_bucket() {
    let (cluster, ..) = filled().await;
    let flushes = "nodes/node-d/f/";
    let rigged = Rigged::new(Arc::clone(&cluster.bucket));
    rigged.refuse(Operation::Put, flushes);
    let (bucket, disk): (SharedBucket, Arc<dyn Disk>) = (rigged.clone(), Arc::new(MemoryDisk::default()));
    let config = cluster.config("node-d");
    let _joining = start(config, Seams::real(), Some(disk), bucket, &secret()).await.unwrap();
    let refused = |journal: &[Done]| journal.iter().filter(|done| done.is(Operation::Put, flushes)).count();
    rigged.until("node-d puts what it took into the bucket", |journal| refused(journal) >= 2).await;
    assert_eq!(objects(&cluster, "ring-ready/", "/node-d").await, Vec::<String>::new());
    rigged.relent();
    cluster.settled(4).await;
    assert!(!objects(&cluster, flushes, "").await.is_empty());
}
