//! Counts the requests of a process by the kind of work that they are for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use cartwheel_telemetry::Recorder;
use cartwheel_telemetry::trace::{Kind, Span};

use crate::{Bucket, BucketError, Created, Listing, SharedBucket};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// The first steps of a process: is the store sound, what did earlier processes leave?
    Start,
    /// Ring documents, the cluster's secret, leases.
    Membership,
    /// Memtables that become segments.
    Flush,
    /// Lists of segments.
    Manifest,
    /// Merging segments.
    Compaction,
    /// Looking for what is not needed any more, and deleting it.
    Sweep,
    /// Reads of clients.
    Read,
    /// Loading the clock index.
    Index,
    /// Records that are kept for homes that are away.
    Hints,
    /// A home that was away comes to count again.
    CatchUp,
    /// Homes that compare what they hold, and take over what others held.
    Repair,
    /// A gateway that does without storage nodes.
    LastResort,
    /// Settings of namespaces.
    Namespaces,
    /// Commands that people run.
    Tools,
}

impl Work {
    /// Every kind of work, in the order of their declaration.
    pub const ALL: [Self; 14] = [
        Self::Start,
        Self::Membership,
        Self::Flush,
        Self::Manifest,
        Self::Compaction,
        Self::Sweep,
        Self::Read,
        Self::Index,
        Self::Hints,
        Self::CatchUp,
        Self::Repair,
        Self::LastResort,
        Self::Namespaces,
        Self::Tools,
    ];

    /// Its name in figures, such as `catch_up`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Membership => "membership",
            Self::Flush => "flush",
            Self::Manifest => "manifest",
            Self::Compaction => "compaction",
            Self::Sweep => "sweep",
            Self::Read => "read",
            Self::Index => "index",
            Self::Hints => "hints",
            Self::CatchUp => "catch_up",
            Self::Repair => "repair",
            Self::LastResort => "last_resort",
            Self::Namespaces => "namespaces",
            Self::Tools => "tools",
        }
    }
}

/// What one kind of work asked of the bucket so far. A request counts when it begins, whatever comes of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct WorkUsage {
    /// Reads of whole objects.
    pub get: u64,
    /// Reads of parts of objects.
    pub get_range: u64,
    /// Writes.
    pub put: u64,
    /// Writes of what must not be there yet.
    pub create: u64,
    /// Pages of keys.
    pub list: u64,
    /// Deletes.
    pub delete: u64,
    /// Those of the above that brought nothing: errors other than "no such object", and requests given up.
    pub failed: u64,
    /// Bytes that were sent to the bucket: the bodies of writes, whatever came of them.
    pub bytes_in: u64,
    /// Bytes that were read out of the bucket. Keys in listings don't count.
    pub bytes_out: u64,
}

impl WorkUsage {
    /// How many requests of each kind, with the names of the kinds.
    #[must_use]
    pub fn requests(&self) -> [(&'static str, u64); 6] {
        [
            ("get", self.get),
            ("get_range", self.get_range),
            ("put", self.put),
            ("create", self.create),
            ("list", self.list),
            ("delete", self.delete),
        ]
    }
}

/// What was asked of the bucket so far, by work; works that asked for nothing are left out. As JSON:
/// `{"flush": {"get": 0, …}, …}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Usage {
    /// By kind of work.
    pub works: BTreeMap<Work, WorkUsage>,
}

/// The counters of one part of a process: a storage node, a gateway.
///
/// It counts calls of the trait. What [`crate::S3Bucket`] sends again after a failure, and what it reads back to
/// settle a create, is not seen here, so a store that fails often bills somewhat more than this says.
#[derive(Debug, Default)]
pub struct Meter {
    works: [Counters; Work::ALL.len()],
    /// Whose requests they are, and who takes down how long each takes.
    listener: Option<(String, Recorder)>,
}

#[derive(Debug, Default)]
struct Counters {
    get: AtomicU64,
    get_range: AtomicU64,
    put: AtomicU64,
    create: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    failed: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Counters {
    fn usage(&self) -> WorkUsage {
        // The figures are taken one after another: a request that begins meanwhile may be in some and not in others.
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WorkUsage {
            get: now(&self.get),
            get_range: now(&self.get_range),
            put: now(&self.put),
            create: now(&self.create),
            list: now(&self.list),
            delete: now(&self.delete),
            failed: now(&self.failed),
            bytes_in: now(&self.bytes_in),
            bytes_out: now(&self.bytes_out),
        }
    }
}

impl Meter {
    /// All counters at 0.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// As [`Self::new`], for the requests of `node`, whose times `recorder` takes down.
    #[must_use]
    pub fn recording(node: &str, recorder: Recorder) -> Arc<Self> {
        Arc::new(Self { listener: Some((node.to_owned(), recorder)), ..Self::default() })
    }

    /// A handle of `inner` whose requests count as `work`. `inner` must not be such a handle itself: its requests
    /// would count twice.
    #[must_use]
    pub fn bucket(self: &Arc<Self>, inner: &SharedBucket, work: Work) -> SharedBucket {
        Arc::new(Metered { inner: Arc::clone(inner), meter: Arc::clone(self), work })
    }

    /// What was asked so far, through all handles.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let used = Work::ALL.into_iter().map(|work| (work, self.counters(work).usage()));
        Usage { works: used.filter(|(_, usage)| *usage != WorkUsage::default()).collect() }
    }

    fn counters(&self, work: Work) -> &Counters {
        // One counter for each of `ALL`, which a test holds against the declaration.
        &self.works[work as usize]
    }
}

/// A handle of a bucket that counts what it hands on.
#[derive(Debug)]
struct Metered {
    inner: SharedBucket,
    meter: Arc<Meter>,
    work: Work,
}

impl Metered {
    /// Counts a request that begins.
    fn begin(&self, op: &'static Op) -> UnderWay<'_> {
        let counters = self.meter.counters(self.work);
        add((op.counter)(counters), 1);
        let mut span = Span::child(Kind::Client, || op.span.into());
        let listener = self.meter.listener.as_ref();
        if span.is_recorded() {
            span.set("cartwheel.work", self.work.name());
            if let Some((node, _)) = listener {
                span.set("cartwheel.node", node.clone());
            }
        }
        let recorder = listener.map(|(_, recorder)| recorder);
        let timed = recorder.filter(|r| r.get().is_some()).map(|recorder| (recorder, Instant::now()));
        UnderWay { counters, brought_nothing: true, op, timed, span }
    }

    /// Counts a request that begins and sends `body`.
    fn begin_sending(&self, op: &'static Op, body: &Bytes) -> UnderWay<'_> {
        let under_way = self.begin(op);
        add(&under_way.counters.bytes_in, body.len() as u64);
        under_way
    }
}

/// A kind of request.
struct Op {
    name: &'static str,
    span: &'static str,
    counter: fn(&Counters) -> &AtomicU64,
}

const GET: Op = Op { name: "get", span: "bucket GET", counter: |c| &c.get };
const GET_RANGE: Op = Op { name: "get_range", span: "bucket GET_RANGE", counter: |c| &c.get_range };
const PUT: Op = Op { name: "put", span: "bucket PUT", counter: |c| &c.put };
const CREATE: Op = Op { name: "create", span: "bucket CREATE", counter: |c| &c.create };
const LIST: Op = Op { name: "list", span: "bucket LIST", counter: |c| &c.list };
const DELETE: Op = Op { name: "delete", span: "bucket DELETE", counter: |c| &c.delete };

/// A request whose answer is not there yet. One that is dropped before, because its caller gave up, has failed.
struct UnderWay<'a> {
    counters: &'a Counters,
    brought_nothing: bool,
    op: &'static Op,
    /// Who takes down how long it took, and since when it is under way.
    timed: Option<(&'a Recorder, Instant)>,
    span: Span,
}

impl UnderWay<'_> {
    fn end<T>(mut self, answer: Result<T, BucketError>) -> Result<T, BucketError> {
        self.brought_nothing = matches!(&answer, Err(error) if !error.is_not_found());
        if let Err(error) = &answer
            && self.brought_nothing
            && self.span.is_recorded()
        {
            self.span.fail(error.to_string());
        }
        answer
    }

    fn end_reading(self, answer: Result<Bytes, BucketError>) -> Result<Bytes, BucketError> {
        if let Ok(body) = &answer {
            add(&self.counters.bytes_out, body.len() as u64);
        }
        self.end(answer)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.brought_nothing {
            add(&self.counters.failed, 1);
        }
        if let Some((recorder, since)) = self.timed
            && let Some(record) = recorder.get()
        {
            record.bucket_request(self.op.name, since.elapsed());
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

#[async_trait]
impl Bucket for Metered {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        let under_way = self.begin(&GET);
        under_way.end_reading(self.inner.get(key).await)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        let under_way = self.begin(&GET_RANGE);
        under_way.end_reading(self.inner.get_range(key, range).await)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        let under_way = self.begin_sending(&PUT, &body);
        under_way.end(self.inner.put(key, body).await)
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        let under_way = self.begin_sending(&CREATE, &body);
        under_way.end(self.inner.create(key, body).await)
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        let under_way = self.begin(&LIST);
        under_way.end(self.inner.list(prefix, after, limit).await)
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let under_way = self.begin(&DELETE);
        under_way.end(self.inner.delete(key).await)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;

    use super::{Meter, Usage, Work, WorkUsage};
    use crate::{
        CERTAIN, Created, Faults, FaultyBucket, MemoryBucket, OperationFaults, SharedBucket, conformance,
        list_all,
    };

    fn memory() -> SharedBucket {
        Arc::new(MemoryBucket::new())
    }

    fn body() -> Bytes {
        Bytes::from_static(b"body")
    }

    #[test]
    fn every_work_has_its_place_and_one_name() {
        for (at, work) in Work::ALL.into_iter().enumerate() {
            assert_eq!(work as usize, at, "{work:?}");
            assert_eq!(serde_json::to_value(work).unwrap(), work.name());
        }
    }

    #[tokio::test]
    async fn requests_and_bytes_count_for_their_work() {
        let (inner, meter) = (memory(), Meter::new());
        assert_eq!(meter.usage(), Usage::default(), "nothing was asked yet");
        let flush = meter.bucket(&inner, Work::Flush);
        let read = meter.bucket(&inner, Work::Read);
        flush.put("a", body()).await.unwrap();
        assert_eq!(flush.create("b", body()).await, Ok(Created::New));
        assert_eq!(flush.create("b", Bytes::from_static(b"others")).await, Ok(Created::Exists));
        flush.delete("a").await.unwrap();
        assert_eq!(read.get("b").await.unwrap(), body());
        assert_eq!(read.get_range("b", 1..3).await.unwrap().len(), 2);
        assert_eq!(list_all(&*read, "").await.unwrap().len(), 1);
        let flushed = WorkUsage { put: 1, create: 2, delete: 1, bytes_in: 14, ..WorkUsage::default() };
        let was_read = WorkUsage { get: 1, get_range: 1, list: 1, bytes_out: 6, ..WorkUsage::default() };
        let works = [(Work::Flush, flushed), (Work::Read, was_read)].into();
        assert_eq!(meter.usage(), Usage { works });
        // A second handle counts on, and another meter knows nothing of it.
        meter.bucket(&inner, Work::Flush).delete("b").await.unwrap();
        assert_eq!(meter.usage().works[&Work::Flush].delete, 2);
        assert_eq!(Meter::new().usage(), Usage::default());
    }

    #[tokio::test]
    async fn a_page_of_keys_is_a_request() {
        let (inner, meter) = (memory(), Meter::new());
        for n in 0..1001 {
            inner.put(&format!("{n:04}"), Bytes::new()).await.unwrap();
        }
        assert_eq!(list_all(&*meter.bucket(&inner, Work::Sweep), "").await.unwrap().len(), 1001);
        assert_eq!(meter.usage().works[&Work::Sweep], WorkUsage { list: 2, ..WorkUsage::default() });
    }

    #[tokio::test]
    async fn requests_that_fail_count_too() {
        let faulty = Arc::new(FaultyBucket::new(memory(), 1));
        let (inner, meter): (SharedBucket, _) = (faulty.clone(), Meter::new());
        let bucket = meter.bucket(&inner, Work::Hints);
        let refuse = OperationFaults { refuse: CERTAIN, ..OperationFaults::default() };
        faulty.set(Faults::everywhere(refuse));
        assert!(bucket.get("k").await.is_err());
        assert!(bucket.get_range("k", 0..1).await.is_err());
        assert!(bucket.put("k", body()).await.is_err());
        assert!(bucket.list("", None, 1).await.is_err());
        assert!(bucket.delete("k").await.is_err());
        let once = WorkUsage {
            get: 1,
            get_range: 1,
            put: 1,
            list: 1,
            delete: 1,
            failed: 5,
            bytes_in: 4,
            ..WorkUsage::default()
        };
        assert_eq!(meter.usage().works[&Work::Hints], once);
        // That nothing is there is an answer.
        faulty.set(Faults::default());
        assert!(bucket.get("k").await.unwrap_err().is_not_found());
        assert!(bucket.get_range("k", 0..1).await.unwrap_err().is_not_found());
        assert_eq!(meter.usage().works[&Work::Hints], WorkUsage { get: 2, get_range: 2, ..once });
        inner.put("k", body()).await.unwrap();
        assert!(bucket.get_range("k", 3..5).await.is_err());
        assert_eq!(meter.usage().works[&Work::Hints], WorkUsage { get: 2, get_range: 3, failed: 6, ..once });
    }

    #[tokio::test]
    async fn what_settles_a_create_below_counts_once() {
        let faulty = Arc::new(FaultyBucket::new(memory(), 1));
        let mute = OperationFaults { mute: CERTAIN, ..OperationFaults::default() };
        faulty.set(Faults { create: mute, ..Faults::default() });
        let (inner, meter): (SharedBucket, _) = (faulty, Meter::new());
        assert_eq!(meter.bucket(&inner, Work::Membership).create("k", body()).await, Ok(Created::New));
        let once = WorkUsage { create: 1, bytes_in: 4, ..WorkUsage::default() };
        assert_eq!(meter.usage().works[&Work::Membership], once);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_its_caller_gives_up_has_failed() {
        let faulty = Arc::new(FaultyBucket::new(memory(), 1));
        let slow = OperationFaults { slow: CERTAIN, ..OperationFaults::default() };
        faulty.set(Faults { slow_by: Duration::from_secs(60), ..Faults::everywhere(slow) });
        let (inner, meter): (SharedBucket, _) = (faulty, Meter::new());
        let bucket = meter.bucket(&inner, Work::LastResort);
        assert!(tokio::time::timeout(Duration::from_secs(1), bucket.get("k")).await.is_err());
        let given_up = WorkUsage { get: 1, failed: 1, ..WorkUsage::default() };
        assert_eq!(meter.usage().works[&Work::LastResort], given_up);
    }

    #[tokio::test]
    async fn a_metered_bucket_is_a_bucket() {
        conformance::run(Meter::new().bucket(&memory(), Work::Tools)).await.unwrap();
    }

    #[tokio::test]
    async fn usage_is_json_by_work() {
        let meter = Meter::new();
        meter.bucket(&memory(), Work::CatchUp).put("k", body()).await.unwrap();
        let json = serde_json::to_value(meter.usage()).unwrap();
        assert_eq!((&json["catch_up"]["put"], &json["catch_up"]["bytes_in"]), (&1.into(), &4.into()));
        assert!(json.get("read").is_none(), "{json}");
    }
}
