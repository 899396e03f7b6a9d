//! The bucket of a simulation: the objects, the way of each host to them with all that can go wrong on it, and writes
//! that arrive when nobody expects them any more.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cartwheel_bucket::{Bucket, BucketError, CERTAIN, Created, Listing, MemoryBucket, SharedBucket};
use cartwheel_cluster::seams::Random;
use futures_util::FutureExt;

use super::clock::right_ms;
use super::listing::in_between;
use super::lock::Lock;
use super::{Bug, Freezer, SeededRandom, pass};
use crate::trace::Trace;

/// How much later a late write lands, in milliseconds: everything has landed before nothing is amiss any more.
const LATER_MS: Range<u64> = 300..4_500;
/// After how long the host of a late write gets an error, in milliseconds: at once, or after a time-out.
const GIVEN_UP_MS: [Range<u64>; 2] = [1..300, 1_000..7_000];
/// How long the host of a late write waits at most.
pub const GIVEN_UP: Duration = Duration::from_millis(GIVEN_UP_MS[1].end);

/// The objects of all hosts, stamped with simulated time.
#[derive(Debug, Default)]
pub struct Objects {
    memory: MemoryBucket,
    /// The store's clock, where somebody keeps it; otherwise it is that of whoever writes. Hosts that stood still are
    /// ahead for a moment.
    now: Lock<Option<Duration>>,
}

impl Objects {
    /// Sets the store's clock.
    pub fn at(&self, now: Duration) {
        *self.now.lock() = Some(now);
    }

    fn now(&self) -> Duration {
        self.now.lock().or_else(turmoil::sim_elapsed).unwrap_or_default()
    }

    fn stamp(&self) {
        self.memory.set_now_ms(right_ms(self.now()));
    }
}

#[async_trait]
impl Bucket for Objects {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.memory.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.memory.get_range(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.stamp();
        self.memory.put(key, body).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.stamp();
        self.memory.create(key, body).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.memory.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.memory.delete(key).await
    }
}

/// A write on its way.
#[derive(Debug, Clone)]
enum Write {
    Put(String, Bytes),
    Create(String, Bytes),
    Delete(String),
}

/// Writes that land later than anybody waits for them, whatever became of who sent them.
#[derive(Debug)]
pub struct Landings {
    objects: SharedBucket,
    trace: Arc<Trace>,
    queue: Lock<Vec<(Duration, Write)>>,
    landed: Lock<u64>,
}

impl Landings {
    /// None yet.
    pub fn new(objects: SharedBucket, trace: Arc<Trace>) -> Self {
        Self { objects, trace, queue: Lock::default(), landed: Lock::new(0) }
    }

    /// Lets land what is due.
    pub fn land(&self, now: Duration) {
        let mut due: Vec<_> = self.queue.lock().extract_if(.., |(at, _)| *at <= now).collect();
        // Those of one moment in the order sent.
        due.sort_by_key(|(at, _)| *at);
        for (_, write) in due {
            *self.landed.lock() += 1;
            let said = match write {
                Write::Put(key, body) => {
                    let put = self.objects.put(&key, body).now_or_never();
                    format!("put {key}: {put:?}")
                }
                Write::Create(key, body) => {
                    let created = self.objects.create(&key, body).now_or_never();
                    format!("create {key}: {created:?}")
                }
                Write::Delete(key) => {
                    let deleted = self.objects.delete(&key).now_or_never();
                    format!("delete {key}: {deleted:?}")
                }
            };
            self.trace.line_at(now, "lands late", &said);
        }
    }

    /// How many have landed.
    pub fn landed(&self) -> u64 {
        *self.landed.lock()
    }
}

/// How the way to the bucket is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Way {
    /// The longest that a request and an answer each take, in milliseconds.
    pub latency_ms: u64,
    /// The chance, out of [`CERTAIN`], that a write fails and lands later.
    pub late: u32,
    /// Is a write under way when its process dies or gives it up lost, or does it land, perhaps later?
    pub outlives: bool,
}

/// The way of one host to the objects.
#[derive(Debug)]
pub struct Road {
    objects: SharedBucket,
    landings: Arc<Landings>,
    random: SeededRandom,
    way: Lock<Way>,
    freezer: Arc<Freezer>,
}

/// A write under way; given up before it has arrived, it may arrive all the same.
struct Sending<'a> {
    road: &'a Road,
    write: Option<Write>,
    sent: Duration,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let Some(write) = self.write.take() else { return };
        if self.road.way.lock().outlives && self.road.random.below(2) == 0 {
            let at = self.sent + self.road.random.millis(0..LATER_MS.end);
            self.road.landings.queue.lock().push((at, write));
        }
    }
}

impl Road {
    /// The road of `who`, without any trouble.
    pub fn new(
        objects: SharedBucket,
        landings: Arc<Landings>,
        seed: u64,
        who: &str,
        freezer: Arc<Freezer>,
    ) -> Self {
        let random = SeededRandom::new(seed, &format!("{who} road"));
        Self { objects, landings, random, way: Lock::default(), freezer }
    }

    /// How it is from now on.
    pub fn set(&self, way: Way) {
        *self.way.lock() = way;
    }

    async fn travel(&self) {
        self.freezer.pass().await;
        let latency = self.way.lock().latency_ms;
        if latency > 0 {
            pass(self.random.millis(0..latency + 1)).await;
        }
    }

    async fn read<T>(&self, read: impl Future<Output = T>) -> T {
        self.travel().await;
        let answer = read.await;
        self.travel().await;
        self.freezer.pass().await;
        answer
    }

    /// Sends a write. An error if it goes astray on the way; it may arrive later.
    async fn send(&self, key: &str, write: Write) -> Result<(), BucketError> {
        // What a process that stands still has not yet said is not on its way.
        self.freezer.pass().await;
        let sent = turmoil::sim_elapsed().unwrap_or_default();
        let mut sending = Sending { road: self, write: Some(write), sent };
        self.travel().await;
        let late = self.random.below(u64::from(CERTAIN)) < u64::from(self.way.lock().late);
        if late {
            let write = sending.write.take();
            let at = sent + self.random.millis(LATER_MS);
            self.landings.queue.lock().extend(write.map(|write| (at, write)));
            let given_up = GIVEN_UP_MS[usize::try_from(self.random.below(2)).unwrap()].clone();
            pass(self.random.millis(given_up)).await;
            self.freezer.pass().await;
            let detail = "injected: no answer; it lands later".to_owned();
            return Err(BucketError::Unavailable { key: key.to_owned(), detail });
        }
        sending.write = None;
        Ok(())
    }
}

#[async_trait]
impl Bucket for Road {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.read(self.objects.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.read(self.objects.get_range(key, range)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.send(key, Write::Put(key.to_owned(), body.clone())).await?;
        let done = self.objects.put(key, body).await;
        self.travel().await;
        done
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.send(key, Write::Create(key.to_owned(), body.clone())).await?;
        let done = self.objects.create(key, body).await;
        self.travel().await;
        done
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        let begun = self.read(self.objects.list(prefix, after, limit)).await?;
        let ended = self.read(self.objects.list(prefix, after, limit)).await?;
        Ok(in_between(&begun, ended, limit, || self.random.below(2) == 0))
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.send(key, Write::Delete(key.to_owned())).await?;
        let done = self.objects.delete(key).await;
        self.travel().await;
        done
    }
}

/// A bucket as one host reaches it, with every operation and its outcome written to the trace.
#[derive(Debug)]
pub struct TracedBucket {
    inner: SharedBucket,
    who: String,
    trace: Arc<Trace>,
    bug: Bug,
}

impl TracedBucket {
    /// The bucket of `who`.
    pub fn new(inner: SharedBucket, who: &str, trace: Arc<Trace>, bug: Bug) -> Self {
        Self { inner, who: who.to_owned(), trace, bug }
    }

    fn note<T>(
        &self,
        what: &str,
        key: &str,
        outcome: Result<T, BucketError>,
        show: impl Fn(&T) -> String,
    ) -> Result<T, BucketError> {
        let shown = match &outcome {
            Ok(value) => show(value),
            Err(error) => error.to_string(),
        };
        self.trace.bucket(&self.who, &format!("{what} {key}: {shown}"));
        outcome
    }

    fn forgets(&self, key: &str) -> bool {
        self.bug == Bug::SameEpoch && key.contains("/epochs/")
    }

    fn drops(&self, key: &str) -> bool {
        self.bug == Bug::DroppedHints && key.starts_with("hints/")
    }
}

fn digest(bytes: &Bytes) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{} bytes {hash:016x}", bytes.len())
}

#[async_trait]
impl Bucket for TracedBucket {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        let outcome = self.inner.get(key).await;
        self.note("get", key, outcome, digest)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        let what = format!("get {}..{} of", range.start, range.end);
        let outcome = self.inner.get_range(key, range).await;
        self.note(&what, key, outcome, digest)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        let what = format!("put {} to", digest(&body));
        let outcome = if self.drops(key) { Ok(()) } else { self.inner.put(key, body).await };
        self.note(&what, key, outcome, |()| "done".to_owned())
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        let what = format!("create {} as", digest(&body));
        let outcome = if self.forgets(key) {
            self.inner.put(key, body).await.map(|()| Created::New)
        } else {
            self.inner.create(key, body).await
        };
        self.note(&what, key, outcome, |created| format!("{created:?}"))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        let mut outcome = self.inner.list(prefix, after, limit).await;
        if let (true, Ok(listing)) = (self.forgets(prefix), &mut outcome) {
            listing.objects.clear();
        }
        self.note("list", prefix, outcome, |listing| {
            let names: Vec<&str> = listing.objects.iter().map(|o| o.key.as_str()).collect();
            format!("{} more={}", names.join(" "), listing.more)
        })
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let outcome = self.inner.delete(key).await;
        self.note("delete", key, outcome, |()| "done".to_owned())
    }
}
