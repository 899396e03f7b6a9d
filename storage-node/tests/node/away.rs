//! Homes that go away and come back: what others keep for them, and when they count again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use cartwheel_bucket::list_all;
use cartwheel_cluster::membership::{self, View};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::gossip::{self, Heard, Word};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Brief, Record};
use cartwheel_core::ring::{Change, Member, MemberState};
use cartwheel_core::segment::SegmentBuilder;
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{Refusal, Reply, Request};
use cartwheel_segments::hints::{hint_object, hint_prefix, holder_label};
use cartwheel_storage_node::disk::{Disk, MemoryDisk};
use cartwheel_storage_node::{RunningNode, start};

use crate::rigged::{Operation, Rigged};
use crate::support::{Cluster, PATIENCE, hash_of, homes, id, key, mint, namespace, read, secret, status_of};
use crate::support::{values, version};

/// How long a node that comes back waits for another to take note of it.
const GREETING: Duration = Duration::from_secs(1);

/// A process with a runtime of its own, so that it can be killed.
struct Process {
    runtime: Option<Runtime>,
    node: Option<RunningNode>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A machine: what outlives a process.
struct Site {
    disk: Arc<dyn Disk>,
    bucket: Arc<Rigged>,
    process: Option<Process>,
}

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    sites: BTreeMap<&'static str, Site>,
}

impl World {
    /// Storage nodes that all count.
    pub(crate) async fn of(replicas: u32, names: &[&'static str]) -> Self {
        let mut cluster = Cluster::new(replicas);
        // What is in the bucket was waited for.
        cluster.flush_interval = Duration::from_secs(3600);
        let mut world = Self { cluster, sites: BTreeMap::new() };
        for name in names {
            let bucket = Rigged::new(Arc::clone(&world.cluster.bucket));
            let site = Site { disk: Arc::new(MemoryDisk::default()), bucket, process: None };
            world.sites.insert(name, site);
            world.boot(name).await;
            world.counts(name).await;
        }
        world.cluster.settled(names.len()).await;
        world
    }

    pub(crate) async fn boot(&mut self, name: &'static str) {
        let config = self.cluster.config(name);
        let site = self.sites.get_mut(name).unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (disk, bucket) = (Some(Arc::clone(&site.disk)), Arc::clone(&site.bucket));
        let starting = runtime
            .spawn(async move { start(config, Seams::real(), disk, bucket, &secret()).await.unwrap() });
        let node = starting.await.unwrap();
        site.process = Some(Process { runtime: Some(runtime), node: Some(node) });
    }

    pub(crate) async fn kill(&mut self, name: &str) {
        let mut process = self.sites.get_mut(name).unwrap().process.take().unwrap();
        let runtime = process.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
    }

    /// Ends a node as SIGTERM does.
    pub(crate) async fn stop(&mut self, name: &str) {
        let mut process = self.sites.get_mut(name).unwrap().process.take().unwrap();
        let ending = process.node.take().unwrap().shutdown();
        process.runtime.as_ref().unwrap().spawn(ending).await.unwrap();
    }

    pub(crate) fn wipe(&mut self, name: &str) {
        self.sites.get_mut(name).unwrap().disk = Arc::new(MemoryDisk::default());
    }

    pub(crate) fn bucket(&self, name: &str) -> &Rigged {
        &self.sites[name].bucket
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        self.sites[name].process.as_ref().unwrap().node.as_ref().unwrap().address()
    }

    pub(crate) async fn counts(&self, name: &str) {
        self.cluster.counting(self.address(name)).await;
    }

    /// The ring with every process where it is now.
    pub(crate) async fn view(&self) -> Arc<View> {
        let known = |view: &View| {
            let running = self.sites.iter().filter(|(_, site)| site.process.is_some());
            running.into_iter().all(|(name, _)| {
                view.document.member(&id(name)).is_some_and(|member| member.address == self.address(name))
            })
        };
        self.cluster.ring(known).await
    }

    pub(crate) async fn call(&self, name: &str, request: Request) -> Reply {
        let version = self.view().await.version();
        self.cluster.call(self.address(name), version, request).await
    }

    pub(crate) async fn status(&self, name: &str) -> serde_json::Value {
        status_of(self.call(name, Request::Status).await)
    }

    /// Calls until the answer is as it should be.
    pub(crate) async fn until(&self, name: &str, request: Request, enough: impl Fn(&Reply) -> bool) -> Reply {
        let asking = async {
            loop {
                let reply = self.call(name, request.clone()).await;
                if enough(&reply) {
                    return reply;
                }
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("it never answered so")
    }

    async fn keeps_nothing(&self, name: &str) {
        let nothing = |reply: &Reply| {
            let status = status_of(reply.clone());
            status["hints"] == serde_json::json!([]) && status["away"] == serde_json::json!([])
        };
        self.until(name, Request::Status, nothing).await;
    }

    /// A key of which `name` is the first home.
    pub(crate) async fn key_at(&self, name: &str) -> String {
        let view = self.view().await;
        let at = |key: &String| homes(&view, key)[0] == self.address(name);
        (0..1000).map(|i| format!("k{i}")).find(at).unwrap()
    }

    /// Puts an object of hints into the bucket, as a holder does.
    async fn leave_hint(&self, home: &str, holder: &str, record: &Record) -> String {
        let hash = hash_of(&*self.view().await, std::str::from_utf8(record.key.as_bytes()).unwrap());
        let mut builder = SegmentBuilder::new();
        builder.push(hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
        self.leave_object(home, holder, builder.finish().unwrap().bytes).await
    }

    pub(crate) async fn leave_object(&self, home: &str, holder: &str, bytes: Bytes) -> String {
        let object = hint_object(&id(home), &holder_label(&id(holder), 1, "00000000000000ab"), 1);
        self.cluster.bucket.put(&object, bytes).await.unwrap();
        object
    }

    pub(crate) async fn objects(&self, prefix: &str) -> Vec<String> {
        let listed = list_all(&*self.cluster.bucket, prefix).await.unwrap();
        listed.into_iter().map(|object| object.key).collect()
    }
}

/// The nth write of somebody else.
fn record(name: &str, n: u64) -> Record {
    let dot = dot(n);
    let version = version(n.into(), &Clock::new(), &n.to_string());
    Record {
        namespace: namespace(),
        key: key(name),
        container: Container::delta(&Clock::new(), dot, version),
    }
}

fn dot(n: u64) -> Dot {
    Dot { actor: Actor::parse("node-m.1").unwrap(), n }
}

fn replicate(record: &Record, hint_for: Option<&str>) -> Request {
    Request::Replicate { durability: Durability::Memory, hint_for: hint_for.map(id), record: record.encode() }
}

fn read_for(name: &str, home: &str) -> Request {
    Request::Read { namespace: namespace(), key: key(name), values: true, stands_for: Some(id(home)) }
}

fn mint_for(name: &str, request: u128, home: &str) -> Request {
    let Request::Mint { namespace, key, version, durability, precondition, max_siblings, insist, .. } =
        mint(name, version(request, &Clock::new(), &request.to_string()), Durability::Memory)
    else {
        panic!("mint makes mints")
    };
    let hint_for = Some(id(home));
    Request::Mint { namespace, key, version, durability, precondition, max_siblings, hint_for, insist }
}

fn acked() -> Reply {
    Reply::Acked { reached: Durability::Memory }
}

fn none() -> Reply {
    Reply::Partial(Bytes::new())
}

fn partial(reply: Reply) -> Vec<String> {
    let Reply::Partial(record) = reply else { panic!("{reply:?}") };
    values(Reply::Found(record))
}

// ---- standing in ----

#[tokio::test]
async fn a_fallback_that_can_reach_the_home_passes_on_and_keeps_nothing() {
    let world = World::of(1, &["node-a", "node-b"]).await;
    let name = world.key_at("node-a").await;
    assert_eq!(world.call("node-b", read_for(&name, "node-a")).await, Reply::Absent);
    assert_eq!(world.call("node-b", replicate(&record(&name, 1), Some("node-a"))).await, acked());
    assert_eq!(values(world.call("node-a", read(&name)).await), ["1"]);
    assert_eq!(values(world.call("node-b", read_for(&name, "node-a")).await), ["1"]);
    let status = world.status("node-b").await;
    assert_eq!((&status["hints"], &status["away"]), (&serde_json::json!([]), &serde_json::json!([])));
    // What it mints, the home has before the answer is given.
    let minted = world.call("node-b", mint_for(&name, 2, "node-a")).await;
    let Reply::Minted { dot, .. } = minted else { panic!("{minted:?}") };
    assert_eq!(dot.actor.node, id("node-b"));
    // It may be taking the hint by now, and have no vote.
    let (Reply::Found(held) | Reply::Partial(held)) = world.call("node-a", read(&name)).await else {
        panic!()
    };
    assert_eq!(values(Reply::Found(held)), ["1", "2"]);
    world.keeps_nothing("node-b").await;
}

#[tokio::test]
async fn a_fallback_that_cannot_reach_the_home_keeps_hints_until_it_comes_back() {
    let mut world = World::of(1, &["node-a", "node-b"]).await;
    let name = world.key_at("node-a").await;
    world.kill("node-a").await;
    assert_eq!(world.call("node-b", replicate(&record(&name, 1), Some("node-a"))).await, acked());
    let status = world.status("node-b").await;
    assert_eq!(status["away"], serde_json::json!(["node-a"]));
    assert_eq!(status["hints"][0]["target"], "node-a");
    let asked = mint_for(&name, 2, "node-a");
    let Reply::Minted { dot, repeated, .. } = world.call("node-b", asked.clone()).await else { panic!() };
    assert!(repeated.is_empty());
    let Reply::Minted { dot: again, repeated, .. } = world.call("node-b", asked).await else { panic!() };
    assert_eq!(again, dot);
    assert_eq!(values(Reply::Found(repeated)), ["1", "2"]);
    assert_eq!(values(world.call("node-b", read_for(&name, "node-a")).await), ["1", "2"]);
    let reached =
        Request::Confirm { namespace: namespace(), key: key(&name), dot, durability: Durability::Bucket };
    assert_eq!(world.call("node-b", reached).await, Reply::Acked { reached: Durability::Bucket });
    assert!(!world.objects(&hint_prefix(&id("node-a"))).await.is_empty());

    world.boot("node-a").await;
    world.counts("node-a").await;
    assert_eq!(values(world.call("node-a", read(&name)).await), ["1", "2"]);
    // It is asked again from now on.
    assert_eq!(world.call("node-a", replicate(&record(&name, 3), None)).await, acked());
    assert_eq!(values(world.call("node-b", read_for(&name, "node-a")).await), ["1", "2", "3"]);
    world.keeps_nothing("node-b").await;
    assert!(world.objects(&hint_prefix(&id("node-a"))).await.is_empty());
}

/// The actor of hints is not the node's own, and it is another one once hints were handed over (P3).
#[tokio::test]
async fn what_a_node_mints_for_others_is_under_an_epoch_that_ends_with_the_handover() {
    let mut world = World::of(1, &["node-a", "node-b"]).await;
    let (name, own) = (world.key_at("node-a").await, world.key_at("node-b").await);
    let dot = |reply: Reply| match reply {
        Reply::Minted { dot, .. } => dot,
        other => panic!("{other:?}"),
    };
    let own = mint(&own, version(1, &Clock::new(), "own"), Durability::Memory);
    let own = dot(world.call("node-b", own).await);
    world.kill("node-a").await;
    let first = dot(world.call("node-b", mint_for(&name, 1, "node-a")).await);
    assert!(first.actor.epoch > own.actor.epoch);
    world.boot("node-a").await;
    world.counts("node-a").await;
    world.keeps_nothing("node-b").await;
    world.kill("node-a").await;
    let second = dot(world.call("node-b", mint_for(&name, 2, "node-a")).await);
    assert!(second.actor.epoch > first.actor.epoch, "{second} after {first}");
}

// ---- coming back ----

/// One holder has them in memory alone; the others are gone, and one was a gateway.
#[tokio::test]
async fn a_home_that_counts_again_holds_whatever_was_kept_for_it() {
    let mut world = World::of(1, &["node-a", "node-b"]).await;
    let name = world.key_at("node-a").await;
    world.bucket("node-b").refuse(Operation::Put, "hints/");
    world.kill("node-a").await;
    assert_eq!(world.call("node-b", replicate(&record(&name, 1), Some("node-a"))).await, acked());
    world.leave_hint("node-a", "node-gone", &record(&name, 2)).await;
    world.leave_hint("node-a", "gw-0123456789abcdef", &record(&name, 3)).await;
    let damaged =
        world.leave_object("node-a", "gw-fedcba9876543210", Bytes::from_static(b"no segment")).await;

    world.boot("node-a").await;
    world.counts("node-a").await;
    // What can't be read makes it ask the other homes first.
    let votes = |reply: &Reply| matches!(reply, Reply::Found(_));
    assert_eq!(values(world.until("node-a", read(&name), votes).await), ["1", "2", "3"]);
    world.keeps_nothing("node-b").await;
    assert_eq!(world.objects(&hint_prefix(&id("node-a"))).await, [""; 0]);
    let kept = format!("nodes/node-a/quarantine/{damaged}");
    assert_eq!(world.objects("nodes/node-a/quarantine/").await, [kept], "kept for people to look at");

    // All of it is in its own segments before the others let go of it.
    world.kill("node-a").await;
    world.wipe("node-a");
    world.boot("node-a").await;
    world.counts("node-a").await;
    assert_eq!(values(world.call("node-a", read(&name)).await), ["1", "2", "3"]);
}

/// P11.
#[tokio::test]
async fn hints_are_deleted_only_after_the_homes_own_segment_is_in_the_bucket() {
    let mut world = World::of(1, &["node-a", "node-b"]).await;
    let name = world.key_at("node-a").await;
    world.kill("node-a").await;
    assert_eq!(world.call("node-b", replicate(&record(&name, 1), Some("node-a"))).await, acked());
    let object = world.leave_hint("node-a", "node-gone", &record(&name, 2)).await;
    world.bucket("node-a").refuse(Operation::Put, "nodes/node-a/f/");
    world.boot("node-a").await;
    world.counts("node-a").await;
    let failed =
        |n| move |journal: &[crate::rigged::Done]| journal.iter().filter(|done| done.refused).count() >= n;
    world.bucket("node-a").until("it tries to flush", failed(5)).await;
    assert!(world.objects(&hint_prefix(&id("node-a"))).await.contains(&object));
    assert_eq!(world.status("node-b").await["hints"][0]["target"], "node-a");

    world.bucket("node-a").relent();
    world.keeps_nothing("node-b").await;
    assert!(world.objects(&hint_prefix(&id("node-a"))).await.is_empty());
    let journal = world.bucket("node-a").journal();
    let first = |operation, prefix: &str| {
        journal.iter().position(|done| !done.refused && done.is(operation, prefix)).unwrap()
    };
    assert!(first(Operation::Put, "nodes/node-a/f/") < first(Operation::Delete, "hints/node-a/"));
}

/// P11. Nobody reads at a node that is no member any more, and the ring that it follows may be old.
#[tokio::test]
async fn who_was_left_out_of_the_ring_leaves_its_hints_to_those_that_are_in_it() {
    let mut world = World::of(1, &["node-a", "node-b"]).await;
    let name = world.key_at("node-a").await;
    world.stop("node-a").await;
    world.cluster.ring_interval = Duration::from_secs(3600);
    world.bucket("node-a").hold(Operation::Put, "nodes/node-a/f/");
    world.boot("node-a").await;
    world.counts("node-a").await;
    let object = world.leave_hint("node-a", "node-gone", &record(&name, 1)).await;
    assert_eq!(
        world.call("node-a", Request::Probe { hinted: true }).await,
        Reply::Standing(Standing::Counting)
    );
    assert_eq!(values(world.call("node-a", read(&name)).await), ["1"], "it has taken them");
    let mut document = world.view().await.document.clone();
    document.version += 1;
    document.members.retain(|member| member.id != id("node-a"));
    assert!(membership::create(&*world.cluster.bucket, &document).await.unwrap());
    let before = world.bucket("node-a").journal().len();
    world.bucket("node-a").relent();
    let looks = |journal: &[crate::rigged::Done]| {
        let mut done = journal[before..].iter();
        done.any(|done| done.is(Operation::Put, "nodes/node-a/f/"))
            && done.any(|done| done.is(Operation::Get, "ring/"))
    };
    world.bucket("node-a").until("it looks at the ring once they are in its segments", looks).await;
    world.stop("node-a").await;
    assert!(world.objects(&hint_prefix(&id("node-a"))).await.contains(&object));
}

/// What a node says to the question whether it is ready: status line, headers and body.
async fn readiness(address: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Waits until it is.
async fn gets_ready(address: &str) -> String {
    let asking = async {
        loop {
            let answer = readiness(address).await;
            if answer.starts_with("HTTP/1.1 200") {
                return answer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("it never gets ready")
}

#[tokio::test]
async fn who_is_offered_what_it_lacks_has_no_vote_until_it_has_taken_it() {
    let world = World::of(1, &["node-a", "node-b"]).await;
    let name = world.key_at("node-a").await;
    assert_eq!(world.call("node-a", replicate(&record(&name, 1), None)).await, acked());
    world.bucket("node-a").hold(Operation::List, "hints/node-a/");
    let offer = |urgent| Request::Offer { holder: id("node-b"), urgent };
    assert_eq!(world.call("node-a", offer(false)).await, Reply::Hello);
    assert_eq!(values(world.call("node-a", read(&name)).await), ["1"], "it lacks nothing");
    // Not at once: others may have left something for it before they saw that it is back.
    let ready = gets_ready(world.address("node-a")).await;
    assert!(ready.ends_with("ready\n"), "{ready}");
    world.leave_hint("node-a", "node-gone", &record(&name, 2)).await;
    assert_eq!(world.call("node-a", offer(true)).await, Reply::Hello);
    assert_eq!(partial(world.call("node-a", read(&name)).await), ["1"]);
    let asked = mint(&name, version(9, &Clock::new(), "9"), Durability::Memory);
    assert_eq!(world.call("node-a", asked).await, Reply::Refused(Refusal::CatchingUp));
    let ready = readiness(world.address("node-a")).await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("catch"), "{ready}");
    world.bucket("node-a").relent();
    world.counts("node-a").await;
    let ready = readiness(world.address("node-a")).await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("counts, but"), "{ready}");
    gets_ready(world.address("node-a")).await;
    assert_eq!(values(world.call("node-a", read(&name)).await), ["1", "2"]);
}

/// A gateway that left hints in the bucket asks before it relies on the home again.
#[tokio::test]
async fn who_had_others_stand_in_is_told_that_a_home_counts_once_it_has_taken_what_they_kept() {
    let world = World::of(1, &["node-a", "node-b"]).await;
    let name = world.key_at("node-a").await;
    world.leave_hint("node-a", "gw-0123456789abcdef", &record(&name, 1)).await;
    assert_eq!(world.call("node-a", read(&name)).await, Reply::Absent, "it has not heard of it");
    let counts = Reply::Standing(Standing::Counting);
    assert_eq!(world.call("node-a", Request::Probe { hinted: false }).await, counts);
    assert_eq!(world.call("node-a", read(&name)).await, Reply::Absent, "and was not told to look");
    assert_eq!(world.call("node-a", Request::Probe { hinted: true }).await, counts);
    assert_eq!(values(world.call("node-a", read(&name)).await), ["1"]);
}

// ---- before it counts ----

/// A member that others believe alive, and that nobody can tell anything.
struct Mute {
    _listener: TcpListener,
    beat: u64,
}

impl Mute {
    async fn join(world: &World) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let member = Member {
            id: id("node-x"),
            address: listener.local_addr().unwrap().to_string(),
            zone: "z".to_owned(),
            weight: 1,
            state: MemberState::Joining,
            becomes: None,
            dead: false,
        };
        let change = Change { at_ms: 1, by: "test".to_owned(), what: "node-x joins".to_owned() };
        let ring = membership::read_newest(&*world.cluster.bucket, 0).await.unwrap().unwrap();
        let next = ring.with_member(member, change, "n".to_owned()).unwrap();
        assert!(membership::create(&*world.cluster.bucket, &next).await.unwrap());
        Self { _listener: listener, beat: 0 }
    }

    /// Lets a node hear that it lives.
    async fn lives(&mut self, world: &World, name: &str) {
        self.beat += 1;
        let word = Word {
            node: id("node-x"),
            generation: 1,
            beat: self.beat,
            ring_version: 1,
            standing: Standing::Counting,
            rounds: 1,
            bucket_fails: false,
            unflushed_bytes: 0,
            hints: Vec::new(),
            away: Vec::new(),
        };
        let words = gossip::encode(&[Heard { word, age_ms: 0, brief: false }]);
        let reply = world.call(name, Request::Gossip(words)).await;
        assert!(matches!(reply, Reply::Gossip(_)), "{reply:?}");
    }
}

/// P8. While a node that lives may still keep new hints for it, it counts for nothing: reads are only added to, its
/// acknowledgements are extras, and it mints only if there is nobody else.
#[tokio::test]
async fn a_node_that_has_just_started_counts_for_nothing_and_never_says_not_found() {
    let mut world = World::of(2, &["node-a", "node-b"]).await;
    world.kill("node-b").await;
    let mut mute = Mute::join(&world).await;
    let newer = world.cluster.ring(|view| view.document.members.len() == 3).await;
    assert_eq!(
        world.cluster.call(world.address("node-a"), newer.version(), Request::Hello).await,
        Reply::Hello
    );
    mute.lives(&world, "node-a").await;
    world.boot("node-b").await;
    let booted = Instant::now();

    let checked = async |mute: &mut Mute, request: Request| {
        mute.lives(&world, "node-a").await;
        world.call("node-b", request).await
    };
    assert_eq!(checked(&mut mute, read("k")).await, none());
    let extra = Reply::Extra { reached: Durability::Memory };
    assert_eq!(checked(&mut mute, replicate(&record("k", 1), None)).await, extra);
    assert_eq!(partial(checked(&mut mute, read("k")).await), ["1"]);
    let held = Request::Confirm {
        namespace: namespace(),
        key: key("k"),
        dot: dot(1),
        durability: Durability::Memory,
    };
    assert_eq!(checked(&mut mute, held).await, extra);
    let asked = |insist| match mint("k", version(2, &Clock::new(), "2"), Durability::Memory) {
        Request::Mint {
            namespace, key, version, durability, precondition, max_siblings, hint_for, ..
        } => Request::Mint {
            namespace,
            key,
            version,
            durability,
            precondition,
            max_siblings,
            hint_for,
            insist,
        },
        other => panic!("{other:?}"),
    };
    assert_eq!(checked(&mut mute, asked(false)).await, Reply::Refused(Refusal::CatchingUp));
    let minted = checked(&mut mute, asked(true)).await;
    assert!(matches!(minted, Reply::Minted { .. }), "{minted:?}");
    // A node that joins, or lost its disk, would take what it gets here for all there is.
    let partition = hash_of(&*world.view().await, "k").partition(16);
    let scan = |age_ms| Request::Scan { partition, after: None, bytes: 1 << 20, age_ms };
    assert_eq!(checked(&mut mute, scan(None)).await, Reply::Refused(Refusal::CatchingUp));
    assert_eq!(checked(&mut mute, scan(Some(60_000))).await, Reply::Refused(Refusal::CatchingUp));

    // Who stands in for it keeps what it says is an extra, though it has it, and adds up what both know.
    mute.lives(&world, "node-a").await;
    assert_eq!(world.call("node-a", replicate(&record("k", 3), Some("node-b"))).await, acked());
    let status = world.status("node-a").await;
    assert_eq!((&status["hints"][0]["target"], &status["away"]), (&"node-b".into(), &serde_json::json!([])));
    assert_eq!(partial(checked(&mut mute, read("k")).await), ["1", "2", "3"]);
    mute.lives(&world, "node-a").await;
    assert_eq!(values(world.call("node-a", read_for("k", "node-b")).await), ["1", "2", "3"]);
    // Not even once it has waited in vain for the silent one to answer.
    while booted.elapsed() < GREETING * 3 / 2 {
        assert_eq!(status_of(checked(&mut mute, Request::Status).await)["standing"], "returning");
    }

    // Once the silent one is dead to all, nobody is left who does not know.
    world.counts("node-b").await;
    assert_eq!(values(world.call("node-b", read("k")).await), ["1", "2", "3"]);
    assert_eq!(world.call("node-b", replicate(&record("k", 4), None)).await, acked());
    assert_eq!(world.call("node-b", read("never written")).await, Reply::Absent);
}

// ---- lost disks ----

#[tokio::test]
async fn what_only_another_home_has_in_memory_comes_back_after_the_disk_was_lost() {
    let mut world = World::of(2, &["node-a", "node-b"]).await;
    for name in ["node-a", "node-b"] {
        assert_eq!(world.call(name, replicate(&record("k", 1), None)).await, acked());
    }
    world.kill("node-b").await;
    world.wipe("node-b");
    world.boot("node-b").await;
    world.counts("node-b").await;
    assert_eq!(values(world.call("node-b", read("k")).await), ["1"]);
}

/// P1, P8: an acknowledged write may be left at the home that is down alone.
#[tokio::test]
async fn a_node_that_lost_its_disk_votes_once_enough_homes_have_said_what_they_hold() {
    let mut world = World::of(3, &["node-a", "node-b", "node-c"]).await;
    let on_disk = |key| {
        let Request::Replicate { hint_for, record, .. } = replicate(&record(key, 1), None) else { panic!() };
        Request::Replicate { durability: Durability::Disk, hint_for, record }
    };
    let reached = Reply::Acked { reached: Durability::Disk };
    // With its disk it has lost nothing, and needs nobody.
    assert_eq!(world.call("node-b", on_disk("early")).await, reached);
    world.kill("node-b").await;
    world.boot("node-b").await;
    world.counts("node-b").await;
    assert_eq!(values(world.call("node-b", read("early")).await), ["1"]);

    for name in ["node-b", "node-c"] {
        assert_eq!(world.call(name, on_disk("k")).await, reached);
    }
    world.kill("node-c").await;
    world.kill("node-b").await;
    world.wipe("node-b");
    world.boot("node-b").await;
    world.counts("node-b").await;
    assert_eq!(world.call("node-b", read("k")).await, none());
    assert_eq!(world.status("node-b").await["partitions_not_held"], 16);
    let asked = mint("k", version(2, &Clock::new(), "2"), Durability::Memory);
    assert_eq!(world.call("node-b", asked).await, Reply::Refused(Refusal::CatchingUp));
    assert_eq!(world.call("node-b", replicate(&record("k", 3), None)).await, acked(), "it takes writes in");

    // Nor does starting once more with the new disk bring back what was lost.
    world.kill("node-b").await;
    world.boot("node-b").await;
    world.counts("node-b").await;
    assert_eq!(world.status("node-b").await["partitions_not_held"], 16);

    world.boot("node-c").await;
    let votes = |reply: &Reply| matches!(reply, Reply::Found(_));
    assert!(values(world.until("node-b", read("k"), votes).await).contains(&"1".to_owned()));
    assert_eq!(world.status("node-b").await["partitions_not_held"], 0);
}
