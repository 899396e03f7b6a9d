//! What a node that counts does with each kind of call, and how nodes join.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use cartwheel_bucket::{
    Bucket, BucketError, Created, Faults, FaultyBucket, Listing, MemoryBucket, SharedBucket,
};
use cartwheel_cluster::ReplyTo;
use cartwheel_cluster::membership;
use cartwheel_cluster::peer::{FRAMES_PATH, Peers};
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::clock::{Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::frame::FrameVersion;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value};
use cartwheel_core::ring::{Change, Member, MemberState};
use cartwheel_core::wire::{Answer, Call, Refusal, Reply, Request};
use cartwheel_storage_node::RunningNode;
use cartwheel_storage_node::disk::{Disk, MemoryDisk};

use crate::support::version;
use crate::support::{Cluster, PATIENCE, homes, id, key, mint, namespace, read, secret, status_of, values};

/// Mints at the first home and brings the delta to every home of the newest ring, and of a newer one if the
/// ring changes meanwhile. What comes back is acknowledged by all of them.
async fn put(cluster: &Cluster, name: &str, request: u128) -> (Dot, String) {
    let value = format!("{name} {request}");
    let minted = version(request, &Clock::new(), &value);
    let mut view = cluster.ring(|_| true).await;
    let dot = loop {
        let asked = mint(name, minted.clone(), Durability::Memory);
        match cluster.call(&homes(&view, name)[0], view.version(), asked).await {
            Reply::Minted { dot, .. } => break dot,
            Reply::Refused(Refusal::StaleRing) => {
                view = cluster.ring(|v| v.version() > view.version()).await;
            }
            other => panic!("{name}: {other:?}"),
        }
    };
    let container = Container::delta(&Clock::new(), dot.clone(), minted);
    let record = Record { namespace: namespace(), key: key(name), container }.encode();
    'ring: loop {
        for address in homes(&view, name) {
            let delta =
                Request::Replicate { durability: Durability::Memory, hint_for: None, record: record.clone() };
            match cluster.call(&address, view.version(), delta).await {
                Reply::Acked { .. } => {}
                Reply::Refused(Refusal::StaleRing) => {
                    view = cluster.ring(|v| v.version() > view.version()).await;
                    continue 'ring;
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        return (dot, value);
    }
}

#[tokio::test]
async fn a_node_answers_every_kind_of_call() {
    let mut cluster = Cluster::new(1);
    cluster.add("node-a").await;
    let at = cluster.nodes[0].address().to_owned();
    assert_eq!(cluster.call(&at, 1, Request::Hello).await, Reply::Hello);
    assert_eq!(cluster.call(&at, 1, read("k")).await, Reply::Absent);
    for (n, durability) in [Durability::Memory, Durability::Disk, Durability::Bucket].into_iter().enumerate()
    {
        let asked = mint("k", version(n as u128, &Clock::new(), &n.to_string()), durability);
        let Reply::Minted { dot, reached, .. } = cluster.call(&at, 1, asked.clone()).await else { panic!() };
        assert_eq!((dot.n, reached), (n as u64 + 1, durability));
        // A caller that did not get the answer asks again, and learns the dot and what is known of the key.
        let Reply::Minted { dot: again, reached, repeated } = cluster.call(&at, 1, asked).await else {
            panic!()
        };
        assert_eq!((again, reached), (dot, durability));
        assert_eq!(values(Reply::Found(repeated)).len(), n + 1);
    }
    assert_eq!(values(cluster.call(&at, 1, read("k")).await), ["0", "1", "2"]);
    let head = Request::Read { namespace: namespace(), key: key("k"), values: false, stands_for: None };
    let Reply::Found(head) = cluster.call(&at, 1, head).await else { panic!() };
    let head_record = Record::decode(&head).unwrap();
    assert!(head_record.container.siblings().iter().all(|s| s.version.value == Value::Omitted(1)));
    let status = status_of(cluster.call(&at, 1, Request::Status).await);
    assert_eq!((&status["id"], &status["keys"]), (&"node-a".into(), &1.into()));
    assert_eq!(status["steps_down"], false);

    // Versions without their values stand for others; taken in, they would replace them.
    let other = Record { key: key("else"), ..head_record.clone() };
    let taken_in =
        Request::Replicate { durability: Durability::Memory, hint_for: None, record: other.encode() };
    let refused = cluster.call(&at, 1, taken_in).await;
    assert!(matches!(refused, Reply::Refused(Refusal::Malformed(_))), "{refused:?}");
    let mut without = version(9, &Clock::new(), "");
    without.value = Value::Omitted(4);
    let refused = cluster.call(&at, 1, mint("else", without, Durability::Memory)).await;
    assert!(matches!(refused, Reply::Refused(Refusal::Malformed(_))), "{refused:?}");
    assert_eq!(cluster.call(&at, 1, read("else")).await, Reply::Absent);
    let garbage =
        Request::Replicate { durability: Durability::Memory, hint_for: None, record: "garbage".into() };
    let refused = cluster.call(&at, 1, garbage).await;
    assert!(matches!(refused, Reply::Refused(Refusal::Malformed(_))), "{refused:?}");
    let beyond = Request::Scan { partition: 16, after: None, bytes: 100, age_ms: None };
    let refused = cluster.call(&at, 1, beyond).await;
    assert!(matches!(refused, Reply::Refused(Refusal::Malformed(_))), "{refused:?}");
}

#[tokio::test]
async fn an_older_ring_is_refused_and_so_is_a_key_of_others() {
    let mut cluster = Cluster::new(1);
    cluster.add("node-a").await;
    cluster.add("node-b").await;
    let view = cluster.settled(2).await;
    let name = "k";
    let home = homes(&view, name)[0].clone();
    let other = cluster.nodes.iter().map(RunningNode::address).find(|a| *a != home).unwrap().to_owned();
    let new_version = || version(1, &Clock::new(), "v");
    let (dot, _) = put(&cluster, name, 1).await;
    let container = Container::delta(&Clock::new(), dot, new_version());
    let record = Record { namespace: namespace(), key: key(name), container }.encode();
    let replicate = Request::Replicate { durability: Durability::Memory, hint_for: None, record };
    for request in [read(name), mint(name, new_version(), Durability::Memory), replicate] {
        let stale = cluster.call(&home, view.version() - 1, request.clone()).await;
        assert_eq!(stale, Reply::Refused(Refusal::StaleRing));
        let foreign = cluster.call(&other, view.version(), request).await;
        assert_eq!(foreign, Reply::Refused(Refusal::NotAHome));
    }
}

/// While two nodes join a cluster that holds data, and a writer goes on, no acknowledged write may be missing
/// at any home of the ring that comes out of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_join_hold_all_that_was_acknowledged_before_they_count() {
    let mut cluster = Cluster::new(3);
    // Nothing is flushed by age: what is in the bucket at the end was waited for.
    cluster.flush_interval = Duration::from_secs(3600);
    for name in ["node-a", "node-b", "node-c"] {
        cluster.add(name).await;
    }
    let before = cluster.settled(3).await;
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut request = 0;
    for i in 0..60 {
        let name = format!("k{}", i % 50);
        request += 1;
        expected.entry(name.clone()).or_default().push(put(&cluster, &name, request).await.1);
    }
    // Writes that one home alone has heard of, each home in its turn.
    for i in 0..48 {
        let name = format!("lone{i}");
        request += 1;
        let minted = mint(&name, version(request, &Clock::new(), &name), Durability::Memory);
        let reply = cluster.call(&homes(&before, &name)[i % 3], before.version(), minted).await;
        assert!(matches!(reply, Reply::Minted { .. }), "{reply:?}");
    }
    cluster.add("node-d").await;
    cluster.add("node-e").await;
    let mut during = 0;
    let after = loop {
        let view = cluster.ring(|_| true).await;
        if view.document.members.len() == 5 && !view.document.has_pending_change() {
            break view;
        }
        let name = format!("k{}", request % 50);
        request += 1;
        expected.entry(name.clone()).or_default().push(put(&cluster, &name, request).await.1);
        during += 1;
    };
    assert!(during > 0);
    let mut new_homes = 0;
    for (name, mut wanted) in expected {
        wanted.sort();
        for address in homes(&after, &name) {
            new_homes += usize::from(!homes(&before, &name).contains(&address));
            let found = values(cluster.call(&address, after.version(), read(&name)).await);
            assert_eq!(found, wanted, "{name} at {address}");
        }
    }
    assert!(new_homes > 20, "{new_homes}");
    for name in (0..48).map(|i| format!("lone{i}")) {
        for address in homes(&after, &name).iter().filter(|a| !homes(&before, &name).contains(a)) {
            let found = values(cluster.call(address, after.version(), read(&name)).await);
            assert_eq!(found, *std::slice::from_ref(&name), "at {address}");
        }
    }
    for name in ["node-d", "node-e"] {
        let flushed = cluster.bucket.list(&format!("nodes/{name}/f/"), None, 1).await.unwrap();
        assert_eq!(
            flushed.objects.len(),
            1,
            "{name} said that it was ready before its copy was in the bucket"
        );
    }
}

/// A home to come takes writes in, and neither answers reads nor mints before it holds its range (P8).
#[tokio::test]
async fn a_home_to_come_takes_writes_in_and_does_not_vote() {
    let mut cluster = Cluster::new(1);
    cluster.add("node-a").await;
    // A member that never gets ready keeps the change pending.
    let ring = membership::read_newest(&*cluster.bucket, 0).await.unwrap().unwrap();
    let next = ring.with_member(nobody("node-x"), joins("node-x"), "n".to_owned()).unwrap();
    assert!(membership::create(&*cluster.bucket, &next).await.unwrap());
    cluster.add("node-b").await;
    let view = cluster.ring(|v| v.document.members.len() == 3).await;
    let coming = cluster.nodes[1].address();
    let name = (0..1000).map(|i| format!("k{i}")).find(|name| homes(&view, name)[1..] == [coming.to_owned()]);
    let name = name.unwrap();
    put(&cluster, &name, 1).await;
    let reply = cluster.call(coming, view.version(), read(&name)).await;
    assert_eq!(reply, Reply::Refused(Refusal::CatchingUp));
    let asked = mint(&name, version(2, &Clock::new(), "v"), Durability::Memory);
    assert_eq!(cluster.call(coming, view.version(), asked).await, Reply::Refused(Refusal::NotAHome));
}

/// A joining member that no process stands behind.
fn nobody(name: &str) -> Member {
    Member {
        id: id(name),
        address: "127.0.0.1:1".to_owned(),
        zone: "z".to_owned(),
        weight: 1,
        state: MemberState::Joining,
        becomes: None,
        dead: false,
    }
}

fn joins(name: &str) -> Change {
    Change { at_ms: 1, by: "test".to_owned(), what: format!("{name} joins") }
}

/// A bucket whose range reads wait until they are let through.
#[derive(Debug)]
struct Gated {
    inner: SharedBucket,
    reads: Semaphore,
}

#[async_trait]
impl Bucket for Gated {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.inner.get(key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        drop(self.reads.acquire().await.unwrap());
        self.inner.get_range(key, range).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.inner.put(key, body).await
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.inner.create(key, body).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.inner.list(prefix, after, limit).await
    }
    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(key).await
    }
}

/// Once a node has said that it knows a ring, it carries out no write under an older one: the homes to come
/// copy what it holds from then on. Not even one that arrived before and had to wait for the bucket.
#[tokio::test]
async fn a_mint_that_waited_through_a_ring_change_is_refused() {
    let inner: SharedBucket = Arc::new(MemoryBucket::new());
    let gated = Arc::new(Gated { inner, reads: Semaphore::new(Semaphore::MAX_PERMITS) });
    let cluster = Cluster::over(gated.clone(), 1);
    let node = cluster.start("node-a", None).await;
    cluster.counting(node.address()).await;
    let asked = mint("k", version(1, &Clock::new(), "one"), Durability::Bucket);
    assert!(matches!(cluster.call(node.address(), 1, asked).await, Reply::Minted { .. }));
    node.shutdown().await;

    // Started again, its index is not complete, and the key has to be read before it can mint.
    gated.reads.forget_permits(Semaphore::MAX_PERMITS);
    let node = cluster.start("node-a", None).await;
    cluster.counting(node.address()).await;
    let ring = membership::read_newest(&*cluster.bucket, 0).await.unwrap().unwrap();
    let (sender, mut minted) = mpsc::unbounded_channel();
    let asked = mint("k", version(2, &Clock::new(), "two"), Durability::Memory);
    let call = Call { ring_version: ring.version, request: asked };
    let deadline = Instant::now() + PATIENCE;
    cluster.peers.submit(node.address(), call.encode(), deadline, ReplyTo { sender, tag: 0 });
    // Calls of one connection are taken in order: the mint waits by now.
    let status = status_of(cluster.call(node.address(), ring.version, Request::Status).await);
    assert_eq!(status["index_complete"], false);
    assert!(minted.try_recv().is_err());

    let next = ring.with_member(nobody("node-b"), joins("node-b"), "n".to_owned()).unwrap();
    assert!(membership::create(&*cluster.bucket, &next).await.unwrap());
    assert_eq!(cluster.call(node.address(), next.version, Request::Hello).await, Reply::Hello);
    gated.reads.add_permits(Semaphore::MAX_PERMITS);
    let (_, answer) = minted.recv().await.unwrap();
    assert_eq!(Answer::decode(answer.unwrap()).unwrap().reply, Reply::Refused(Refusal::StaleRing));
    assert_eq!(values(cluster.call(node.address(), next.version, read("k")).await), ["one"]);
}

/// A caller's connection lives on when the node has ended. What it still sends must not be taken in: the next
/// process goes on with the same actor.
#[tokio::test]
async fn a_node_that_has_ended_takes_nothing_in_and_its_epoch_goes_on() {
    let cluster = Cluster::new(1);
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let first = cluster.start("node-a", Some(Arc::clone(&disk))).await;
    cluster.counting(first.address()).await;
    let old_address = first.address().to_owned();
    let asked = |request| mint("k", version(request, &Clock::new(), "v"), Durability::Memory);
    let reply = cluster.call(&old_address, 1, asked(1)).await;
    let Reply::Minted { dot, .. } = reply else { panic!("{reply:?}") };
    let epoch = first.incarnation().epoch;
    first.shutdown().await;
    let call = Call { ring_version: 1, request: asked(2) };
    // Refused, or not even connected any more.
    if let Ok(answer) = cluster.peers.call(&old_address, &call, Instant::now() + PATIENCE).await {
        assert!(matches!(answer.reply, Reply::Refused(Refusal::Unable(_))), "{answer:?}");
    }

    let second = cluster.start("node-a", Some(disk)).await;
    assert_eq!(second.incarnation().epoch, epoch, "it ended cleanly");
    cluster.counting(second.address()).await;
    let ring = cluster.ring(|v| v.document.members[0].address == second.address()).await;
    let reply = cluster.call(second.address(), ring.version(), asked(3)).await;
    let Reply::Minted { dot: next, .. } = reply else { panic!("{reply:?}") };
    assert_eq!((next.actor, next.n), (dot.actor, 2));
}

#[tokio::test]
async fn an_end_that_could_not_flush_is_not_clean_and_loses_nothing() {
    let faulty = Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), 1));
    let cluster = Cluster::over(faulty.clone(), 1);
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let first = cluster.start("node-a", Some(Arc::clone(&disk))).await;
    cluster.counting(first.address()).await;
    faulty.set(Faults { unavailable: true, ..Faults::default() });
    let asked = mint("k", version(1, &Clock::new(), "v"), Durability::Disk);
    assert!(matches!(cluster.call(first.address(), 1, asked).await, Reply::Minted { .. }));
    first.shutdown().await;
    faulty.set(Faults::default());
    let second = cluster.start("node-a", Some(disk)).await;
    assert!(second.incarnation().epoch > 1);
    cluster.counting(second.address()).await;
    let ring = cluster.ring(|v| v.document.members[0].address == second.address()).await;
    assert_eq!(values(cluster.call(second.address(), ring.version(), read("k")).await), ["v"]);
}

/// The first line of the answer to an upgrade with this token.
async fn upgrade(address: &str, token: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let offer = FrameVersion::NEWEST.offer();
    let request = format!(
        "GET {FRAMES_PATH} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: {offer}\r\n\
         authorization: {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8(answer.to_vec()).unwrap()
}

#[tokio::test]
async fn only_the_clusters_token_opens_frames() {
    let mut cluster = Cluster::new(1);
    cluster.add("node-a").await;
    let address = cluster.nodes[0].address();
    let right = secret().node_token().header();
    let wrong = ClusterSecret::given("another secret").node_token().header();
    assert_eq!(upgrade(address, right.to_str().unwrap()).await, "HTTP/1.1 101");
    assert_eq!(upgrade(address, wrong.to_str().unwrap()).await, "HTTP/1.1 401");
    assert_eq!(upgrade(address, "").await, "HTTP/1.1 401");
    let strangers = Peers::new(Seams::real(), ClusterSecret::given("another secret").node_token());
    let call = Call { ring_version: 1, request: Request::Hello };
    assert!(strangers.call(address, &call, Instant::now() + PATIENCE).await.is_err());
}
