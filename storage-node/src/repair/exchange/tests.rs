//! A comparison of two homes over a socket, with something happening to them between two questions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::routing::get;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use cartwheel_cluster::frames::{self, Handler, IncomingCall};
use cartwheel_cluster::http_server::{Limits, serve};
use cartwheel_cluster::peer::{FRAMES_PATH, Peers};
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::clock::{Actor, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::frame::FrameVersion;
use cartwheel_core::record::{Record, Version};

use super::*;
use crate::engine::Engine;
use crate::ledger::Ledger;
use crate::pace::Pace;
use crate::repair::answer::answer;
use crate::testing::upkeep::{Store, deletion, wide_plan};
use crate::testing::{Machine, Process, SEED, hash, key, namespace, version};

/// What happens before the n-th question of a kind is answered; both are counted from 1.
type Before = Box<dyn Fn(&'static str, usize) + Send + Sync>;

/// The home that is asked.
struct Other {
    engine: Arc<Engine>,
    ledger: Arc<Ledger>,
    before: Before,
    asked: Mutex<Vec<&'static str>>,
}

impl Other {
    async fn answer(&self, request: Request) -> Reply {
        let kind = match &request {
            Request::Repair(Repair::Sums { .. }) => "sums",
            Request::Repair(Repair::Clocks { .. }) => "clocks",
            Request::Repair(Repair::Fetch { .. }) => "fetch",
            Request::Replicate { .. } => "replicate",
            other => panic!("nobody asks {other:?}"),
        };
        let nth = {
            let mut asked = self.asked.lock();
            asked.push(kind);
            asked.iter().filter(|before| **before == kind).count()
        };
        (self.before)(kind, nth);
        match request {
            Request::Repair(asked) => {
                answer(&self.engine, &self.ledger, asked).await.unwrap_or_else(Reply::Refused)
            }
            Request::Replicate { record, .. } => {
                take(&self.engine, &Record::decode(&record).unwrap()).await;
                Reply::Acked { reached: Durability::Memory }
            }
            _ => unreachable!("told apart above"),
        }
    }
}

struct Answering(Arc<Other>);

impl Handler for Answering {
    fn handle(&self, call: IncomingCall) {
        let other = Arc::clone(&self.0);
        tokio::spawn(async move {
            let reply = other.answer(Call::decode(call.payload).unwrap().request).await;
            call.reply.send(Answer { ring_version: 1, reply }.encode());
        });
    }
}

async fn take(engine: &Engine, record: &Record) {
    let (sender, reached) = oneshot::channel();
    let done = Box::new(move |reached| {
        let _ = sender.send(reached);
    });
    let hash = KeyHash::of(SEED, &record.namespace, &record.key);
    engine.take(hash, record, &record.encode(), Durability::Memory, done).await.unwrap();
    reached.await.unwrap();
}

/// The n-th write of somebody else.
fn record(name: &str, n: u64, value: &[u8]) -> Record {
    let dot = Dot { actor: Actor::parse("node-m.1").unwrap(), n };
    let container = Container::delta(&Clock::new(), dot, version(n.into(), &Clock::new(), value));
    Record { namespace: namespace(), key: key(name), container }
}

/// Takes in a write at once, as one that comes in while others go on.
fn put_now(engine: &Arc<Engine>, record: &Record) {
    let hash = KeyHash::of(SEED, &record.namespace, &record.key);
    let (bytes, done) = (record.encode(), Box::new(|_| {}));
    let graved = crate::engine::Graved::Unknown;
    assert!(engine.replicate(hash, record, &bytes, Durability::Memory, graved, done).is_ok());
}

/// Two homes that hold the same keys, in buckets of their own.
async fn two(keys: u64) -> (Process, Process) {
    let mut both = Vec::new();
    for _ in 0..2 {
        let store = Store::new();
        let machine = Machine { flush_bytes: 64 << 20, ..store.machine(store.bucket(), None) };
        let process = machine.boot().await;
        process.load_index().await;
        for n in 1..=keys {
            take(&process.engine, &record(&format!("k{n}"), n, b"same")).await;
        }
        both.push(process);
    }
    let theirs = both.pop().unwrap();
    (both.pop().unwrap(), theirs)
}

/// Where a home is called, and what is used to call it.
struct Line {
    other: Arc<Other>,
    copier: Copier,
    address: String,
    _stop: watch::Sender<bool>,
}

impl Line {
    async fn between(ours: &Process, theirs: &Process, before: Before) -> Self {
        let (engine, ledger) = (Arc::clone(&theirs.engine), Arc::clone(&theirs.ledger));
        let other = Arc::new(Other { engine, ledger, before, asked: Mutex::default() });
        let token = ClusterSecret::given("a secret").node_token();
        let (answering, accepted) = (Arc::new(Answering(Arc::clone(&other))), token.clone());
        let accept = move |request: HttpRequest| {
            let (answering, token) = (Arc::clone(&answering), accepted.clone());
            async move { frames::accept(request, &token, FrameVersion::NEWEST, answering) }
        };
        let listener = Seams::real().net.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = watch::channel(false);
        let router = Router::new().route(FRAMES_PATH, get(accept));
        tokio::spawn(serve(listener, router, Limits::default(), stopped));
        let copier = Copier {
            engine: Arc::clone(&ours.engine),
            peers: Peers::new(Seams::real(), token),
            pace: Arc::new(Pace::new()),
            hash_seed: SEED,
        };
        Self { other, copier, address, _stop: stop }
    }

    fn exchange(&self) -> Exchange<'_> {
        Exchange::new(&self.copier, &self.address, 1)
    }

    fn asked(&self, kind: &str) -> usize {
        self.other.asked.lock().iter().filter(|asked| **asked == kind).count()
    }

    /// Compares all keys one by one; what came of it but the bytes.
    async fn compare_keys(&self) -> (u64, u64, u64) {
        let mut exchange = self.exchange();
        exchange.keys(&[all()]).await.unwrap();
        let Exchanged { differing, pulled, pushed, .. } = exchange.done;
        (differing, pulled, pushed)
    }
}

fn all() -> Span {
    Span::of_partition(0, 1)
}

fn nothing() -> Before {
    Box::new(|_, _| {})
}

#[tokio::test]
async fn a_write_in_flight_is_no_difference_at_any_level() {
    for depth in [0, 4, 8] {
        let (ours, theirs) = two(50).await;
        let late = record("late", 100, b"in flight");
        take(&theirs.engine, &late).await;
        let engine = Arc::clone(&ours.engine);
        let before: Before = Box::new(move |kind, nth| {
            if (kind, nth) == ("sums", 2) {
                put_now(&engine, &late);
            }
        });
        let line = Line::between(&ours, &theirs, before).await;
        assert_eq!(line.exchange().differing(&[all()], depth).await.unwrap(), [], "{depth} below");
        assert_eq!(line.asked("sums"), 2, "looked at twice");
        // What is there for good is found, and nothing else.
        let damaged = record("damaged", 101, b"lacking");
        take(&ours.engine, &damaged).await;
        let bits = all().bits() + depth;
        let found = line.exchange().differing(&[all()], depth).await.unwrap();
        assert_eq!(found, [Span::of(hash("damaged"), bits)]);
    }
}

#[tokio::test]
async fn a_write_in_flight_is_not_sent_once_more() {
    let (ours, theirs) = two(20).await;
    let to_us = record("comes here", 100, b"in flight");
    let to_them = record("comes there", 101, b"in flight");
    take(&theirs.engine, &to_us).await;
    take(&ours.engine, &to_them).await;
    take(&theirs.engine, &record("lacking here", 102, b"lost")).await;
    take(&ours.engine, &record("lacking there", 103, b"lost")).await;
    let (here, there) = (Arc::clone(&ours.engine), Arc::clone(&theirs.engine));
    let before: Before = Box::new(move |kind, nth| {
        if (kind, nth) == ("clocks", 2) {
            put_now(&here, &to_us);
            put_now(&there, &to_them);
        }
    });
    let line = Line::between(&ours, &theirs, before).await;
    assert_eq!(line.compare_keys().await, (2, 1, 1));
    assert_eq!(ours.engine.sums(&[all()], 8).await, theirs.engine.sums(&[all()], 8).await);
    assert_eq!(ours.values("lacking here").await, ["lost"]);
    assert_eq!(theirs.values("lacking there").await, ["lost"]);
    assert_eq!(line.compare_keys().await, (0, 0, 0));
}

#[tokio::test]
async fn siblings_that_each_lacks_go_both_ways_and_pages_are_followed() {
    let (ours, theirs) = two(200).await;
    let large = vec![b'x'; 100 * 1024];
    for n in 0..30 {
        let name = format!("k{}", n * 3 + 1);
        take(&ours.engine, &record(&name, 1000 + n, b"ours")).await;
        take(&theirs.engine, &record(&name, 2000 + n, &large)).await;
    }
    let line = Line::between(&ours, &theirs, nothing()).await;
    let mut exchange = line.exchange();
    exchange.repair(all()).await.unwrap();
    let Exchanged { differing, pulled, pushed, bytes } = exchange.done;
    assert_eq!((differing, pulled, pushed), (30, 30, 30));
    assert!(bytes > 30 * 100 * 1024, "{bytes}");
    assert!(line.asked("fetch") > 1, "one page does not hold them");
    assert_eq!(ours.engine.sums(&[all()], 8).await, theirs.engine.sums(&[all()], 8).await);
    for n in 0..30 {
        let name = format!("k{}", n * 3 + 1);
        assert_eq!(ours.container(&name).await, theirs.container(&name).await);
        assert_eq!(ours.values(&name).await.len(), 3);
    }
    let before = line.asked("sums") + line.asked("clocks");
    let mut again = line.exchange();
    again.repair(all()).await.unwrap();
    assert_eq!((again.done.differing, again.done.pulled, again.done.pushed), (0, 0, 0));
    assert_eq!(line.asked("sums") + line.asked("clocks"), before + 1, "one look, and nothing more");
}

/// More keys than one question may name, and more clocks than one page holds.
#[tokio::test]
async fn a_home_that_lacks_a_whole_partition_gets_it() {
    let (ours, theirs) = two(0).await;
    let keys = 35_000;
    for n in 1..=keys {
        put_now(&theirs.engine, &record(&format!("k{n}"), n, b"lacking"));
    }
    put_now(&ours.engine, &record("only here", 1, b"x"));
    let line = Line::between(&ours, &theirs, nothing()).await;
    let mut exchange = line.exchange();
    exchange.keys(&[all()]).await.unwrap();
    let Exchanged { differing, pulled, pushed, .. } = exchange.done;
    assert_eq!((differing, pulled, pushed), (keys + 1, keys, 1));
    assert_eq!(ours.engine.sums(&[all()], 8).await, theirs.engine.sums(&[all()], 8).await);
}

/// A key that was written and deleted; the home `keeps` holds its tombstone, the home `forgets` has laid it into a grave.
async fn forgotten(forgets: &mut Process, keeps: &Process, name: &str) {
    let old = forgets.write(name, version(1, &Clock::new(), b"old")).await.unwrap();
    forgets.write(name, deletion(2, old.seen())).await.unwrap();
    forgets.flush().await;
    keeps.take(name, &forgets.container(name).await).await.unwrap();
    forgets.prove(name);
    forgets.compactor().merge(&forgets.engine.segments.all(), &wide_plan()).await.unwrap();
    assert!(forgets.engine.knows_nothing_of(hash(name)));
}

#[tokio::test]
async fn a_deletion_that_was_forgotten_here_is_not_fetched_again() {
    let (mut ours, theirs) = two(0).await;
    forgotten(&mut ours, &theirs, "k").await;
    let line = Line::between(&ours, &theirs, nothing()).await;
    assert_eq!(line.compare_keys().await, (0, 0, 0));
    assert!(ours.engine.knows_nothing_of(hash("k")));
    // What was written since is no part of what was forgotten.
    let newer: Version = version(9, &Clock::new(), b"newer");
    theirs.write("k", newer).await.unwrap();
    assert_eq!(line.compare_keys().await, (1, 1, 0));
    assert_eq!(ours.container("k").await, theirs.container("k").await);
}

#[tokio::test]
async fn a_deletion_that_was_forgotten_there_is_not_sent_again() {
    let (ours, mut theirs) = two(0).await;
    forgotten(&mut theirs, &ours, "k").await;
    let line = Line::between(&ours, &theirs, nothing()).await;
    assert_eq!(line.compare_keys().await, (0, 0, 0));
    assert!(theirs.engine.knows_nothing_of(hash("k")));
    assert_eq!(line.asked("replicate"), 0);
}

/// A home that never heard of a deletion gets it, but by asking for it: only it knows that it has not forgotten it.
#[tokio::test]
async fn a_deletion_that_a_home_never_heard_of_is_fetched() {
    let (ours, theirs) = two(0).await;
    let old = theirs.write("k", version(1, &Clock::new(), b"old")).await.unwrap();
    theirs.write("k", deletion(2, old.seen())).await.unwrap();
    let line = Line::between(&ours, &theirs, nothing()).await;
    assert_eq!(line.compare_keys().await, (1, 1, 0));
    assert_eq!(ours.container("k").await, theirs.container("k").await);
    // One that still shows the value is told.
    take(&theirs.engine, &record("shown", 50, b"value")).await;
    take(&ours.engine, &record("shown", 50, b"value")).await;
    let seen = ours.seen("shown");
    ours.write("shown", deletion(3, &seen)).await.unwrap();
    assert_eq!(line.compare_keys().await, (1, 0, 1));
    assert_eq!(theirs.container("shown").await, ours.container("shown").await);
}
