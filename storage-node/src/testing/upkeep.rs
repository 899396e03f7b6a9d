//! What tests of merging and deleting share: a bucket that can be stopped at any request, a clock that is set, and a
//! look at all that lies in the bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};

use cartwheel_bucket::{Bucket, BucketError, Created, Listing, MemoryBucket, SharedBucket, list_all};
use cartwheel_cluster::seams::{Random, Seams, WallClock};
use cartwheel_core::clock::Clock;
use cartwheel_core::clock_index::Known;
use cartwheel_core::compaction::{Plan, Why, group_of};
use cartwheel_core::container::Container;
use cartwheel_core::manifest::{Manifest, SegmentEntry};
use cartwheel_core::merkle::leaf;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value, Version};
use cartwheel_core::wire::{Deceased, Refusal};

use super::{Machine, Minted, Process, SEED, hash, key, mint_request, namespace, version};
use crate::compact::Compactor;
use crate::pace::Pace;
use crate::segments::{Cursor, Segments};
use crate::sweep::Sweeper;
use crate::{disk::Disk, manifests};

/// How long dropped objects stay in these tests.
pub(crate) const GRACE: Duration = Duration::from_secs(1000);
/// The wall clock at the start of a test.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

/// What a node is to say of each key.
pub(crate) type Model = BTreeMap<String, Container<Version>>;

/// A small generator of repeatable numbers.
#[derive(Debug)]
pub(crate) struct Dice(AtomicU64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub(crate) fn below(&self, bound: usize) -> usize {
        usize::try_from(self.next_u64() % bound as u64).unwrap()
    }
}

impl Random for Dice {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// A wall clock that stands until it is set.
#[derive(Debug)]
pub(crate) struct SetClock(AtomicU64);

impl SetClock {
    pub(crate) fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

impl WallClock for SetClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A store whose clock is set, and the wall clock of those who use it.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) memory: Arc<MemoryBucket>,
    pub(crate) clock: Arc<SetClock>,
    store_ms: Arc<AtomicU64>,
    seams: Seams,
}

impl Store {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(SetClock(START_MS.into()));
        let seams =
            Seams { clock: Arc::<SetClock>::clone(&clock), random: Arc::new(Dice::new(1)), ..Seams::real() };
        let store = Self { memory: Arc::default(), clock, store_ms: Arc::default(), seams };
        store.advance(Duration::from_millis(START_MS));
        store
    }

    /// A machine over this store, seen through `bucket`.
    pub(crate) fn machine(&self, bucket: SharedBucket, disk: Option<Arc<dyn Disk>>) -> Machine {
        Machine { bucket, disk, flush_bytes: 1 << 20, seams: self.seams.clone(), name: "node-a" }
    }

    /// As [`Store::machine`], of another node.
    pub(crate) fn machine_of(&self, name: &'static str, bucket: SharedBucket) -> Machine {
        Machine { name, ..self.machine(bucket, None) }
    }

    pub(crate) fn bucket(&self) -> SharedBucket {
        Arc::<MemoryBucket>::clone(&self.memory)
    }

    /// What the wall clock shows.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Moves the store's clock on by so much, and a little more.
    pub(crate) fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap() + 10_000;
        self.memory.set_now_ms(self.store_ms.fetch_add(by, Ordering::Relaxed) + by);
    }

    /// Another store with the same objects.
    pub(crate) async fn copy(&self) -> Self {
        let copy = Self { memory: Arc::default(), store_ms: Arc::default(), ..self.clone() };
        copy.store_ms.store(self.store_ms.load(Ordering::Relaxed), Ordering::Relaxed);
        for listed in list_all(&*self.memory, "").await.unwrap() {
            copy.memory.set_now_ms(listed.modified_ms);
            copy.memory.put(&listed.key, self.memory.get(&listed.key).await.unwrap()).await.unwrap();
        }
        copy.advance(Duration::from_millis(100_000));
        copy
    }

    /// The objects of the node of one kind: `c`, `g`, `f`, `pins`.
    pub(crate) async fn objects(&self, kind: &str) -> BTreeSet<String> {
        self.objects_of("node-a", kind).await
    }

    pub(crate) async fn objects_of(&self, node: &str, kind: &str) -> BTreeSet<String> {
        let listed = list_all(&*self.memory, &format!("nodes/{node}/{kind}/")).await.unwrap();
        listed.into_iter().map(|listed| listed.key).collect()
    }

    pub(crate) async fn manifest(&self) -> Manifest {
        self.manifest_of("node-a").await
    }

    pub(crate) async fn manifest_of(&self, node: &str) -> Manifest {
        manifests::newest(&*self.memory, &NodeId::new(node).unwrap()).await.unwrap().unwrap()
    }

    /// Reads all that the newest manifest names, checks that it is in order, and joins it: what lies in segments, and
    /// what lies in graves.
    pub(crate) async fn scrub(&self) -> (Model, Model) {
        self.scrub_of("node-a").await
    }

    pub(crate) async fn scrub_of(&self, node: &str) -> (Model, Model) {
        let manifest = self.manifest_of(node).await;
        assert!(manifest.dropped.iter().all(|dropped| dropped.object.starts_with(&format!("nodes/{node}/"))));
        let named = |entries: &[SegmentEntry]| entries.iter().map(|e| e.object.clone()).collect::<Vec<_>>();
        let all = [named(&manifest.segments), named(&manifest.graves)].concat();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "an object is named twice");
        for dropped in &manifest.dropped {
            assert!(!all.contains(&dropped.object), "{} is named and dropped", dropped.object);
        }
        let mut runs: BTreeMap<(&str, String), &str> = BTreeMap::new();
        let (mut segments, mut graves) = (Model::new(), Model::new());
        for (entry, is_grave) in manifest
            .segments
            .iter()
            .map(|entry| (entry, false))
            .chain(manifest.graves.iter().map(|entry| (entry, true)))
        {
            for (name, container) in self.read(entry).await {
                if !is_grave {
                    let twice = runs.insert((&entry.run, name.clone()), &entry.object);
                    assert_eq!(twice, None, "{name} is twice in {}", entry.run);
                }
                let model = if is_grave { &mut graves } else { &mut segments };
                model.entry(name).or_default().sync(container);
            }
        }
        (segments, graves)
    }

    /// The records of one named segment.
    pub(crate) async fn read(&self, entry: &SegmentEntry) -> Model {
        let bucket = self.bucket();
        let segments = Segments::new(Arc::clone(&bucket), 0);
        let bytes = self.memory.get(&entry.object).await;
        let bytes = bytes.unwrap_or_else(|_| panic!("{} is named, but not there", entry.object));
        assert_eq!(bytes.len() as u64, entry.bytes);
        // What the object itself says is what the manifest says.
        let segment = segments.open(entry.object.clone(), entry.bytes, None, None);
        let found = segment.entry(&bucket).await.unwrap().clone();
        let (run, born_ms, only) = (entry.run.clone(), entry.born_ms, entry.only.clone());
        assert_eq!(SegmentEntry { run, born_ms, only, ..found }, *entry);
        let segment = segment.with_entry(entry.clone());
        let mut cursor = Cursor::open(&bucket, &segment, SEED, None).await.unwrap();
        let mut model = Model::new();
        while let Some(item) = cursor.next().await.unwrap() {
            let name = String::from_utf8(item.record.key.as_bytes().to_vec()).unwrap();
            model.insert(name, item.record.container);
        }
        model
    }
}

/// A bucket that stops at a request: the process behind it is killed or suspended there.
#[derive(Debug)]
pub(crate) struct StopBucket {
    inner: SharedBucket,
    /// Requests that go through before the one that stops.
    left: AtomicUsize,
    /// Is that one carried out before it stops, or after?
    carried_out: bool,
    stopped: Notify,
    has_stopped: AtomicBool,
    gate: Semaphore,
    /// Objects that somebody tried to create, and whether they were there.
    pub(crate) created: Mutex<Vec<(String, bool)>>,
}

impl StopBucket {
    pub(crate) fn new(inner: SharedBucket, left: usize, carried_out: bool) -> Arc<Self> {
        Arc::new(Self {
            inner,
            left: left.into(),
            carried_out,
            stopped: Notify::new(),
            has_stopped: false.into(),
            gate: Semaphore::new(0),
            created: Mutex::default(),
        })
    }

    /// Runs `work` until it ends, or stops in a request: `None`.
    pub(crate) async fn run<F: Future + Unpin>(&self, work: &mut F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.stopped.notified() => None,
        }
    }

    /// Stops after so many requests from now on.
    pub(crate) fn stop_after(&self, requests: usize) {
        self.left.store(requests, Ordering::Relaxed);
    }

    /// From now on all requests go through.
    pub(crate) fn go_on(&self) {
        self.left.store(usize::MAX, Ordering::Relaxed);
        self.gate.add_permits(1000);
    }

    /// As [`StopBucket::go_on`], where what was stopped has been given up: it can be stopped once more.
    pub(crate) fn revive(&self) {
        self.left.store(usize::MAX, Ordering::Relaxed);
        self.has_stopped.store(false, Ordering::Relaxed);
    }

    pub(crate) fn has_stopped(&self) -> bool {
        self.has_stopped.load(Ordering::Relaxed)
    }

    async fn step<T>(
        &self,
        request: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            return request.await;
        }
        let stop = async {
            self.has_stopped.store(true, Ordering::Relaxed);
            self.stopped.notify_one();
            drop(self.gate.acquire().await);
        };
        if self.carried_out && !self.has_stopped() {
            let answer = request.await;
            stop.await;
            return answer;
        }
        stop.await;
        request.await
    }
}

#[async_trait]
impl Bucket for StopBucket {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.step(self.inner.get(key)).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.step(self.inner.get_range(key, range)).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.step(self.inner.put(key, body)).await
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        let there = self.inner.get(key).await.is_ok();
        self.created.lock().push((key.to_owned(), there));
        self.step(self.inner.create(key, body)).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.step(self.inner.list(prefix, after, limit)).await
    }
    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.step(self.inner.delete(key)).await
    }
}

impl Process {
    /// Merges, with no heed to how young segments are.
    pub(crate) fn compactor(&self) -> Compactor {
        Compactor {
            engine: Arc::clone(&self.engine),
            ledger: Arc::clone(&self.ledger),
            bucket: Arc::clone(&self.bucket),
            seams: self.seams.clone(),
            node: self.me.node.clone(),
            hash_seed: SEED,
            pace: Arc::new(Pace::new()),
            proofs: Arc::clone(&self.proofs),
            piece_bytes: 1 << 20,
            settle: Duration::ZERO,
            wake: Arc::default(),
            give_away: None,
        }
    }

    pub(crate) fn sweeper(&self, grace: Duration) -> Sweeper {
        Sweeper {
            engine: Arc::clone(&self.engine),
            ledger: Arc::clone(&self.ledger),
            bucket: Arc::clone(&self.bucket),
            me: self.me.clone(),
            grace,
            whole: Arc::new(AtomicBool::new(true)),
            wake: Arc::default(),
        }
    }

    /// Merges until nothing is left to be merged.
    pub(crate) async fn compact(&self) {
        let compactor = self.compactor();
        let mut merges = 0;
        while compactor.once().await.unwrap() {
            merges += 1;
            assert!(merges < 100, "it never comes to rest");
        }
    }

    /// Every home has agreed that this key, as it is now, may be forgotten.
    pub(crate) fn prove(&self, name: &str) {
        self.prove_as(name, &self.seen(name));
    }

    pub(crate) fn prove_as(&self, name: &str, seen: &Clock) {
        self.proofs.add(&[Deceased { hash: hash(name), leaf: leaf(hash(name), seen) }]);
    }

    /// What the index has seen of a key.
    pub(crate) fn seen(&self, name: &str) -> Clock {
        let (Known::All(known) | Known::AtLeast(known)) = self.engine.known(hash(name));
        known.into_parts().0
    }

    /// Takes in a record as the service does.
    pub(crate) async fn take(&self, name: &str, container: &Container<Version>) -> Result<(), Refusal> {
        let record = Record { namespace: namespace(), key: key(name), container: container.clone() };
        let durability = if self.flusher.disk.is_some() { Durability::Disk } else { Durability::Memory };
        let (sender, reached) = oneshot::channel();
        let done = Box::new(move |reached| {
            let _ = sender.send(reached);
        });
        self.engine.take(hash(name), &record, &record.encode(), durability, done).await?;
        assert_eq!(reached.await, Ok(durability));
        Ok(())
    }

    /// Mints, and says what was added.
    pub(crate) async fn write(&self, name: &str, version: Version) -> Result<Container<Version>, Refusal> {
        let durability = if self.flusher.disk.is_some() { Durability::Disk } else { Durability::Memory };
        let context = version.context.clone();
        let minted = self.mint(&mint_request(name, version.clone(), durability)).await?;
        let Minted::New(dot, reached) = minted else { panic!("{name}: {minted:?}") };
        assert_eq!(reached, durability);
        Ok(Container::delta(&context, dot, version))
    }
}

/// A version that deletes all that `context` has seen.
pub(crate) fn deletion(request: u128, context: &Clock) -> Version {
    Version { value: Value::Deleted, ..version(request, context, b"") }
}

/// A merge of whatever it is given, into one run.
pub(crate) fn wide_plan() -> Plan {
    Plan { inputs: Vec::new(), split: false, why: Why::Tier }
}

/// The first names of keys in this group.
pub(crate) fn names_in(group: u32, count: usize) -> Vec<String> {
    let names = (0..).map(|n| format!("{group}-{n}"));
    names.filter(|name| group_of(hash(name)) == group).take(count).collect()
}

/// Is nothing alive in it, so that a node may have forgotten it?
pub(crate) fn is_dead(container: &Container<Version>) -> bool {
    container.siblings().iter().all(|sibling| sibling.version.value.is_deleted())
}

/// A node says of every key what the model says, or nothing of those that it may have forgotten.
pub(crate) async fn differs(process: &Process, model: &Model) -> Option<String> {
    for (name, expected) in model {
        let got = process.container(name).await;
        let forgotten = got.seen().is_empty() && is_dead(expected);
        if got != *expected && !forgotten {
            return Some(format!("{name}: {:?} where {:?} is expected", brief(&got), brief(expected)));
        }
    }
    None
}

fn brief(container: &Container<Version>) -> (Vec<String>, String) {
    (super::values(container), format!("{:?}", container.seen()))
}

pub(crate) async fn assert_equals(process: &Process, model: &Model, when: &str) {
    let differs = differs(process, model).await;
    assert_eq!(differs, None, "{when}");
}
