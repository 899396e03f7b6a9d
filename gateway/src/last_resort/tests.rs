//! Reads and writes with no storage node: what is found in the bucket, what is counted, what is refused.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use cartwheel_bucket::{
    Bucket, BucketError, CERTAIN, Created, Faults, FaultyBucket, Listing, MemoryBucket, OperationFaults,
    list_all,
};
use cartwheel_cluster::seams::{Random, Seams, WallClock};
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::{Manifest, SegmentEntry};
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::record::{Brief, Record, Value, Version};
use cartwheel_core::segment::{BuiltSegment, SegmentBuilder};
use cartwheel_segments::RecordKey;
use cartwheel_segments::hints::{hint_object, hint_prefix, holder_label, parse_hint_object};

use super::{BucketFound, LastResort, LastResortError};

const SECOND: Duration = Duration::from_secs(1);
/// What the gateway's own clock says.
const NOW_MS: u64 = 1_700_000_000_000;

#[derive(Debug, Default)]
struct Counting(AtomicU64);

impl Random for Counting {
    fn next_u64(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Still;

impl WallClock for Still {
    fn now_ms(&self) -> u64 {
        NOW_MS
    }
}

/// Seams that repeat themselves.
pub(super) fn seams() -> Seams {
    Seams { random: Arc::new(Counting::default()), clock: Arc::new(Still), ..Seams::real() }
}

/// Counts calls, holds those below one prefix, and fails those below another.
#[derive(Debug)]
struct Spy {
    inner: Arc<dyn Bucket>,
    calls: Mutex<BTreeMap<&'static str, usize>>,
    keys: Mutex<Vec<String>>,
    held: AtomicUsize,
    shut: watch::Sender<Option<String>>,
    broken: Mutex<Option<String>>,
}

impl Spy {
    fn calls(&self) -> BTreeMap<&'static str, usize> {
        self.calls.lock().clone()
    }

    fn total(&self) -> usize {
        self.calls.lock().values().sum()
    }

    fn shut_below(&self, prefix: &str) {
        self.shut.send_replace(Some(prefix.to_owned()));
    }

    fn open(&self) {
        self.shut.send_replace(None);
    }

    fn break_below(&self, prefix: &str) {
        *self.broken.lock() = Some(prefix.to_owned());
    }

    async fn enter(&self, what: &'static str, key: &str) -> Result<(), BucketError> {
        *self.calls.lock().entry(what).or_default() += 1;
        self.keys.lock().push(key.to_owned());
        self.held.fetch_add(1, Ordering::Relaxed);
        let passes = |shut: &Option<String>| shut.as_ref().is_none_or(|prefix| !key.starts_with(prefix));
        let _ = self.shut.subscribe().wait_for(passes).await;
        self.held.fetch_sub(1, Ordering::Relaxed);
        match self.broken.lock().as_ref() {
            Some(prefix) if key.starts_with(prefix) => {
                Err(BucketError::Unavailable { key: key.to_owned(), detail: "broken".to_owned() })
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Bucket for Spy {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.enter("get", key).await?;
        self.inner.get(key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.enter("get_range", key).await?;
        self.inner.get_range(key, range).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.enter("put", key).await?;
        self.inner.put(key, body).await
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.enter("create", key).await?;
        self.inner.create(key, body).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.enter("list", prefix).await?;
        self.inner.list(prefix, after, limit).await
    }
    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.enter("delete", key).await?;
        self.inner.delete(key).await
    }
}

/// A gateway's last resort, and the bucket at each layer.
struct World {
    memory: Arc<MemoryBucket>,
    faulty: Arc<FaultyBucket>,
    spy: Arc<Spy>,
    last_resort: Arc<LastResort>,
}

impl World {
    fn new() -> Self {
        let memory = Arc::new(MemoryBucket::new());
        let faulty = Arc::new(FaultyBucket::new(memory.clone(), 1));
        let spy = Arc::new(Spy {
            inner: faulty.clone(),
            calls: Mutex::default(),
            keys: Mutex::default(),
            held: AtomicUsize::new(0),
            shut: watch::Sender::new(None),
            broken: Mutex::default(),
        });
        let last_resort = Arc::new(LastResort::new(spy.clone(), seams()));
        Self { memory, faulty, spy, last_resort }
    }

    async fn put(&self, object: &str, built: &BuiltSegment) {
        self.memory.put(object, built.bytes.clone()).await.unwrap();
    }

    async fn read(&self, homes: &[&str], key: &str) -> Result<BucketFound, LastResortError> {
        self.read_within(homes, key, SECOND).await
    }

    async fn read_within(
        &self,
        homes: &[&str],
        key: &str,
        patience: Duration,
    ) -> Result<BucketFound, LastResortError> {
        let (namespace, key, hash) = names(key);
        self.last_resort.read(&ids(homes), &namespace, &key, hash, Instant::now() + patience).await
    }

    /// What a read finds, as text.
    async fn values(&self, homes: &[&str], key: &str) -> Vec<String> {
        values(&self.read(homes, key).await.unwrap())
    }

    fn begin_read(
        &self,
        homes: &'static [&'static str],
        key: &str,
        patience: Duration,
    ) -> JoinHandle<Result<BucketFound, LastResortError>> {
        let (last_resort, (namespace, key, hash)) = (Arc::clone(&self.last_resort), names(key));
        let deadline = Instant::now() + patience;
        tokio::spawn(async move { last_resort.read(&ids(homes), &namespace, &key, hash, deadline).await })
    }

    async fn write(&self, homes: &[&str], record: &Record, needed: usize) -> Result<usize, LastResortError> {
        let deadline = Instant::now() + SECOND;
        self.last_resort.write(&ids(homes), record, hash_of(record), needed, deadline).await
    }

    fn begin_write(
        &self,
        homes: &'static [&'static str],
        record: Record,
        needed: usize,
    ) -> JoinHandle<Result<usize, LastResortError>> {
        let (last_resort, deadline) = (Arc::clone(&self.last_resort), Instant::now() + SECOND);
        let hash = hash_of(&record);
        tokio::spawn(async move { last_resort.write(&ids(homes), &record, hash, needed, deadline).await })
    }

    /// Goes on once so many calls are held, and every task has done what it can.
    async fn held(&self, calls: usize) {
        while self.spy.held.load(Ordering::Relaxed) < calls {
            tokio::task::yield_now().await;
        }
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }

    async fn inbox(&self, home: &str) -> Vec<String> {
        let listed = list_all(&*self.memory, &hint_prefix(&id(home))).await.unwrap();
        listed.into_iter().map(|object| object.key).collect()
    }
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn ids(names: &[&str]) -> Vec<NodeId> {
    names.iter().map(|name| id(name)).collect()
}

fn names(key: &str) -> (Namespace, Key, KeyHash) {
    let namespace = Namespace::new(b"carts").unwrap();
    let key = Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap();
    let hash = KeyHash::of(7, &namespace, &key);
    (namespace, key, hash)
}

fn hash_of(record: &Record) -> KeyHash {
    KeyHash::of(7, &record.namespace, &record.key)
}

/// A delta: the n-th write of `key` by `actor`, with a value that says so.
fn record(key: &str, actor: &str, n: u64) -> Record {
    let (namespace, key, _) = names(key);
    let version = Version {
        value: Value::Present(format!("{actor}={n}").into()),
        written_ms: 0,
        expires_ms: 0,
        request: 0,
        context: Clock::new(),
        content_type: Bytes::new(),
        meta: Vec::new(),
    };
    let dot = Dot { actor: Actor::parse(actor).unwrap(), n };
    Record { namespace, key, container: Container::delta(&Clock::new(), dot, version) }
}

fn segment(records: &[Record]) -> BuiltSegment {
    let key = |r: &Record| RecordKey::new(hash_of(r), &r.namespace, &r.key);
    let sorted: BTreeMap<RecordKey, &Record> = records.iter().map(|r| (key(r), r)).collect();
    let mut builder = SegmentBuilder::new();
    for (key, record) in sorted {
        builder.push(key.hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
    }
    builder.finish().unwrap()
}

fn flushed(home: &str, n: u64) -> String {
    format!("nodes/{home}/f/0000000001-00000000000000aa/{n:010}.seg")
}

fn hint(home: &str, n: u64) -> String {
    hint_object(&id(home), &holder_label(&id("node-z"), 1, "00000000000000bb"), n)
}

fn values(found: &BucketFound) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Present(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => format!("{other:?}"),
    };
    found.container.siblings().iter().map(|s| text(&s.version.value)).collect()
}

fn unreachable_because(result: &Result<impl std::fmt::Debug, LastResortError>, why: &str) {
    let told = matches!(result, Err(LastResortError::Unreachable(text)) if text.contains(why));
    assert!(told, "{result:?}; expected: {why}");
}

fn down() -> Faults {
    Faults { unavailable: true, ..Faults::default() }
}

// ---- reads ----

#[tokio::test(start_paused = true)]
async fn keys_are_found_in_all_places_and_homes_are_merged() {
    let w = World::new();
    let named = segment(&[record("named", "a.1", 1), record("both", "a.1", 1)]);
    w.put("elsewhere/named.seg", &named).await;
    w.put(&flushed("a", 1), &segment(&[record("flushed", "a.1", 1)])).await;
    w.put(&hint("a", 1), &segment(&[record("hinted", "z.1", 1)])).await;
    w.put(&flushed("b", 1), &segment(&[record("both", "b.1", 4)])).await;
    let segments = vec![SegmentEntry::of("elsewhere/named.seg".to_owned(), &named)];
    let manifest = Manifest { segments, ..Manifest::new(id("a"), 1, 1, String::new(), 0) };
    let object = Manifest::object_name(&id("a"), 1);
    w.memory.put(&object, manifest.to_json().into()).await.unwrap();

    let both = ["a", "b"];
    assert_eq!(w.values(&both, "named").await, ["a.1=1"]);
    assert_eq!(w.values(&both, "flushed").await, ["a.1=1"]);
    assert_eq!(w.values(&both, "hinted").await, ["z.1=1"]);
    assert_eq!(w.values(&both, "both").await, ["a.1=1", "b.1=4"]);
    assert_eq!(w.values(&["b"], "both").await, ["b.1=4"]);
    assert_eq!(w.values(&both, "never").await, [""; 0]);
    unreachable_because(&w.read(&[], "named").await, "no homes");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_as_of_the_newest_object_of_all_homes() {
    let w = World::new();
    assert_eq!(w.read(&["a", "b"], "k").await.unwrap().as_of_ms, 0, "there is nothing");
    for (object, at) in [(flushed("a", 1), 30), (hint("a", 1), 20), (flushed("b", 1), 10)] {
        w.memory.set_now_ms(at);
        w.put(&object, &segment(&[record("other", "a.1", 1)])).await;
    }
    tokio::time::advance(SECOND).await;
    assert_eq!(w.read(&["a", "b"], "k").await.unwrap().as_of_ms, 30);
    assert_eq!(w.read(&["b"], "k").await.unwrap().as_of_ms, 10);
    w.write(&["b"], &record("other", "g.1", 1), 1).await.unwrap();
    assert_eq!(w.read(&["b"], "k").await.unwrap().as_of_ms, NOW_MS, "its own write, by its own clock");
}

#[tokio::test(start_paused = true)]
async fn lists_live_a_second_and_what_is_known_of_segments_longer() {
    let w = World::new();
    w.put(&flushed("a", 1), &segment(&[record("k", "a.1", 1)])).await;
    assert_eq!(w.values(&["a"], "k").await, ["a.1=1"]);
    let first = w.spy.calls();
    assert_eq!(first["list"], 3, "hints, manifests, segments");
    assert_eq!(w.spy.keys.lock()[0], "hints/a/", "a home deletes hints after it has put the segment");
    w.put(&flushed("a", 2), &segment(&[record("k", "a.1", 2)])).await;
    tokio::time::advance(SECOND - Duration::from_millis(1)).await;
    assert_eq!(w.values(&["a"], "k").await, ["a.1=1"]);
    assert_eq!(w.spy.calls(), first, "nothing was asked");
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(w.values(&["a"], "k").await, ["a.1=1", "a.1=2"]);
    let second = w.spy.calls();
    assert_eq!(second["list"], 6);
    assert_eq!(second["get_range"], 2 * first["get_range"], "only the new segment was read");
}

#[tokio::test(start_paused = true)]
async fn homes_not_asked_for_are_forgotten() {
    let w = World::new();
    w.read(&["a", "b"], "k").await.unwrap();
    tokio::time::advance(SECOND * 59).await;
    w.read(&["b"], "k").await.unwrap();
    assert_eq!(w.last_resort.reads.homes.known(), 2);
    tokio::time::advance(SECOND).await;
    w.write(&["b"], &record("k", "g.1", 1), 1).await.unwrap();
    assert_eq!(w.last_resort.reads.homes.known(), 1);
}

#[tokio::test(start_paused = true)]
async fn half_the_truth_is_no_answer() {
    for broken in ["hints/b/", "nodes/b/manifest/", "nodes/b/f/"] {
        let w = World::new();
        w.put(&flushed("a", 1), &segment(&[record("k", "a.1", 1)])).await;
        w.put(&flushed("b", 1), &segment(&[record("k", "b.1", 1)])).await;
        w.spy.break_below(broken);
        unreachable_because(&w.read(&["a", "b"], "k").await, "broken");
        assert_eq!(w.values(&["a"], "k").await, ["a.1=1"], "the other home alone can be read");
    }
    let w = World::new();
    w.memory.put(&flushed("b", 1), Bytes::from_static(b"not a segment at all")).await.unwrap();
    unreachable_because(&w.read(&["b"], "k").await, &flushed("b", 1));
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_its_home_took_over_is_found_where_it_went() {
    let w = World::new();
    let held = segment(&[record("k", "z.1", 1)]);
    w.put(&hint("a", 1), &held).await;
    // The list is known, the hint itself was not looked into: then its home comes back.
    w.spy.break_below(&hint("a", 1));
    unreachable_because(&w.read(&["a"], "k").await, "broken");
    *w.spy.broken.lock() = None;
    w.put(&flushed("a", 1), &held).await;
    w.memory.delete(&hint("a", 1)).await.unwrap();
    assert_eq!(w.values(&["a"], "k").await, ["z.1=1"], "within the list's second");
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_is_listed_but_stays_away_fails_the_read() {
    let w = World::new();
    let built = segment(&[record("k", "a.1", 1)]);
    let segments = vec![SegmentEntry::of(flushed("a", 1), &built)];
    let manifest = Manifest { segments, ..Manifest::new(id("a"), 1, 1, String::new(), 0) };
    let object = Manifest::object_name(&id("a"), 1);
    w.memory.put(&object, manifest.to_json().into()).await.unwrap();
    unreachable_because(&w.read(&["a"], "k").await, "does not exist");
}

#[tokio::test(start_paused = true)]
async fn identical_reads_share_one_look_and_others_are_capped() {
    let w = World::new();
    w.put(&flushed("a", 1), &segment(&[record("k0", "a.1", 1)])).await;
    w.spy.shut_below("");
    let same: Vec<_> = (0..200).map(|_| w.begin_read(&["a"], "k0", SECOND)).collect();
    w.held(1).await;
    let others: Vec<_> = (1..64).map(|n| w.begin_read(&["a"], &format!("k{n}"), SECOND)).collect();
    w.held(1).await;
    assert_eq!(w.read(&["a"], "one too many").await, Err(LastResortError::Busy));
    let joins = w.begin_read(&["a"], "k0", SECOND);
    w.held(1).await;
    assert_eq!(w.spy.total(), 1, "all of them wait for one list");
    w.spy.open();
    for read in same.into_iter().chain([joins]) {
        assert_eq!(values(&read.await.unwrap().unwrap()), ["a.1=1"]);
    }
    for read in others {
        assert_eq!(values(&read.await.unwrap().unwrap()), [""; 0]);
    }
    assert_eq!(w.spy.calls()["list"], 3);
    assert_eq!(w.values(&["a"], "one too many").await, [""; 0], "there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_read_is_bounded_by_its_deadline_and_another_goes_on() {
    let w = World::new();
    w.put(&flushed("a", 1), &segment(&[record("k", "a.1", 1)])).await;
    w.spy.shut_below("");
    let short = w.begin_read(&["a"], "k", Duration::from_millis(100));
    let long = w.begin_read(&["a"], "k", SECOND);
    w.held(1).await;
    unreachable_because(&short.await.unwrap(), "deadline");
    w.spy.open();
    assert_eq!(values(&long.await.unwrap().unwrap()), ["a.1=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_fails_is_left_alone_and_tried_again() {
    let w = World::new();
    w.put(&flushed("a", 1), &segment(&[record("k", "a.1", 1)])).await;
    w.faulty.set(down());
    for failure in 1..=5 {
        unreachable_because(&w.read(&["a"], "k").await, "injected");
        assert_eq!(w.spy.total(), 3 * failure, "each read is tried three times");
    }
    assert_eq!(w.read(&["a"], "k").await, Err(LastResortError::Busy));
    assert_eq!(w.write(&["a"], &record("k", "g.1", 1), 1).await, Err(LastResortError::Busy));
    tokio::time::advance(SECOND).await;
    unreachable_because(&w.read(&["a"], "k").await, "injected");
    w.faulty.set(Faults::default());
    tokio::time::advance(SECOND).await;
    assert_eq!(w.read(&["a"], "k").await, Err(LastResortError::Busy), "now it is two seconds");
    assert_eq!(w.spy.total(), 18, "left alone");
    tokio::time::advance(SECOND).await;
    w.spy.shut_below("");
    let trial = w.begin_read(&["a"], "k", SECOND);
    w.held(1).await;
    assert_eq!(w.read(&["a"], "other").await, Err(LastResortError::Busy), "one trial at a time");
    w.spy.open();
    assert_eq!(values(&trial.await.unwrap().unwrap()), ["a.1=1"]);
    assert_eq!(w.values(&["a"], "other").await, [""; 0]);
}

// ---- writes ----

const ALL: [&str; 3] = ["a", "b", "c"];

#[tokio::test(start_paused = true)]
async fn a_write_reaches_every_home_under_names_that_homes_understand() {
    let w = World::new();
    let record = record("k", "g.1", 1);
    assert!((1..=3).contains(&w.write(&ALL, &record, 1).await.unwrap()));
    assert_eq!(w.write(&ALL, &record, 3).await, Ok(3));
    let mut names = Vec::new();
    for home in ALL {
        let inbox = w.inbox(home).await;
        assert_eq!(inbox.len(), 2);
        for object in inbox {
            let name = parse_hint_object(&object).unwrap();
            assert_eq!((name.home, name.holder), (id(home), w.last_resort.dots.actor().node));
            names.push(name.n);
        }
        assert_eq!(w.values(&[home], "k").await, ["g.1=1"]);
    }
    names.sort_unstable();
    assert_eq!(names, [1, 2, 3, 4, 5, 6], "no name is used twice");
}

#[tokio::test(start_paused = true)]
async fn writes_that_wait_go_together() {
    let w = World::new();
    w.spy.shut_below("");
    let mut writes = vec![w.begin_write(&ALL, record("k0", "g.1", 1), 3)];
    w.held(3).await;
    for n in 1..=20 {
        writes.push(w.begin_write(&ALL, record(&format!("k{}", n % 10), "g.1", 100 + n), 3));
    }
    w.held(3).await;
    assert_eq!(w.spy.calls()["put"], 3, "one upload at a time for each home");
    w.spy.open();
    for write in writes {
        assert_eq!(write.await.unwrap(), Ok(3));
    }
    for home in ALL {
        assert_eq!(w.inbox(home).await.len(), 2, "the first, and all that waited for it");
        assert_eq!(w.values(&[home], "k3").await, ["g.1=103", "g.1=113"]);
        assert_eq!(w.values(&[home], "k0").await, ["g.1=1", "g.1=110", "g.1=120"]);
    }
    w.write(&["a"], &record("k", "g.1", 1), 1).await.unwrap();
    assert_eq!(w.inbox("a").await.len(), 3, "an uploader starts again when it is needed");
}

#[tokio::test(start_paused = true)]
async fn enough_homes_are_enough_and_the_count_is_true() {
    let w = World::new();
    w.spy.break_below("hints/b/");
    assert_eq!(w.write(&ALL, &record("k", "g.1", 1), 2).await, Ok(2));
    assert_eq!((w.inbox("a").await.len(), w.inbox("b").await.len(), w.inbox("c").await.len()), (1, 0, 1));
    unreachable_because(
        &w.write(&ALL, &record("k", "g.1", 2), 3).await,
        "3 inboxes are to hold the write, 2 do",
    );
    unreachable_because(&w.write(&ALL, &record("k", "g.1", 3), 4).await, "the key has 3");
    unreachable_because(&w.write(&["a", "a"], &record("k", "g.1", 3), 2).await, "the key has 1");
}

#[tokio::test(start_paused = true)]
async fn the_rest_goes_on_after_the_answer() {
    let w = World::new();
    w.spy.break_below("hints/b/");
    assert_eq!(w.write(&ALL, &record("k", "g.1", 1), 2).await, Ok(2));
    *w.spy.broken.lock() = None;
    while w.inbox("b").await.is_empty() {
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    assert_eq!(w.values(&["b"], "k").await, ["g.1=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_passes_is_not_seen() {
    let w = World::new();
    let refuse = OperationFaults { refuse: CERTAIN, ..OperationFaults::default() };
    w.faulty.set(Faults { put: refuse, ..Faults::default() });
    let write = w.begin_write(&["a"], record("k", "g.1", 1), 1);
    while w.spy.total() < 2 {
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    w.faulty.set(Faults::default());
    assert_eq!(write.await.unwrap(), Ok(1));
    assert_eq!(w.inbox("a").await.len(), 1, "the same object");
}

#[tokio::test(start_paused = true)]
async fn a_write_says_so_when_the_bucket_is_down_or_silent() {
    let w = World::new();
    w.faulty.set(down());
    let began = Instant::now();
    unreachable_because(&w.write(&ALL, &record("k", "g.1", 1), 1).await, "1 inboxes are to hold");
    assert!(began.elapsed() <= SECOND);
    assert_eq!(w.memory.len(), 0);

    let w = World::new();
    w.spy.shut_below("");
    let began = Instant::now();
    unreachable_because(&w.write(&ALL, &record("k", "g.1", 1), 2).await, "deadline");
    assert_eq!(began.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn too_much_at_once_is_refused_and_room_comes_back() {
    let w = World::new();
    let big = |n| {
        let mut record = record("k", "g.1", n);
        let (seen, mut siblings) = record.container.into_parts();
        siblings[0].version.value = Value::Present(vec![0; 15 * 1024 * 1024].into());
        record.container = Container::from_parts(seen, siblings);
        record
    };
    w.spy.shut_below("");
    let writes: Vec<_> = (1..=4).map(|n| w.begin_write(&["a"], big(n), 1)).collect();
    w.held(1).await;
    assert_eq!(w.write(&["a"], &big(5), 1).await, Err(LastResortError::Busy));
    w.spy.open();
    for write in writes {
        assert_eq!(write.await.unwrap(), Ok(1));
    }
    assert_eq!(w.write(&["a"], &big(5), 1).await, Ok(1));
    assert_eq!(w.inbox("a").await.len(), 3, "two, two and one: objects are bounded too");
}

#[tokio::test(start_paused = true)]
async fn its_own_write_is_read_back_at_once() {
    let w = World::new();
    assert_eq!(w.values(&ALL, "k").await, [""; 0]);
    w.write(&ALL, &record("k", "g.1", 1), 1).await.unwrap();
    let lists = w.spy.calls()["list"];
    assert_eq!(w.values(&ALL, "k").await, ["g.1=1"]);
    assert_eq!(w.spy.calls()["list"], lists, "no list was needed");
    tokio::time::advance(SECOND).await;
    assert_eq!(w.values(&ALL, "k").await, ["g.1=1"]);
    w.write(&ALL, &record("k", "g.1", 2), 3).await.unwrap();
    assert_eq!(w.values(&ALL, "k").await, ["g.1=1", "g.1=2"]);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_began_before_the_write_is_not_joined_after_it() {
    let w = World::new();
    w.put(&flushed("a", 1), &segment(&[record("k", "a.1", 1)])).await;
    w.spy.shut_below(&flushed("a", 1));
    let before = w.begin_read(&["a"], "k", SECOND);
    w.held(1).await;
    assert_eq!(w.write(&["a"], &record("k", "g.1", 1), 1).await, Ok(1));
    let after = w.begin_read(&["a"], "k", SECOND);
    w.held(1).await;
    w.spy.open();
    assert_eq!(values(&after.await.unwrap().unwrap()), ["a.1=1", "g.1=1"]);
    assert_eq!(values(&before.await.unwrap().unwrap()), ["a.1=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_write_while_its_home_is_listed_is_not_lost_to_the_list() {
    let w = World::new();
    w.spy.shut_below("nodes/");
    let before = w.begin_read(&["a"], "other", SECOND);
    w.held(2).await;
    assert_eq!(w.write(&["a"], &record("k", "g.1", 1), 1).await, Ok(1));
    w.spy.open();
    before.await.unwrap().unwrap();
    let lists = w.spy.calls()["list"];
    assert_eq!(w.values(&["a"], "k").await, ["g.1=1"]);
    assert_eq!(w.spy.calls()["list"], lists, "from the list that did not have it");
}
