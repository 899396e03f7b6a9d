//! The outside world of the simulated processes: sockets, clock and randomness of turmoil's hosts, disks that
//! outlive a crash, and a bucket whose every operation is written down.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cartwheel_bucket::{Bucket, BucketError, Created, Listing, MemoryBucket, SharedBucket};
use cartwheel_cluster::seams::{Listener, Net, Random, Seams, Stream, WallClock};
use cartwheel_storage_node::disk::{Disk, MemoryDisk};
use futures_util::FutureExt;
use lock::Lock;

use crate::trace::Trace;

/// What the wall clock shows when a simulation begins: the first of January 2026.
const BASE_MS: u64 = 1_767_225_600_000;
/// The longest that a disk takes for one append, in milliseconds.
const SLOWEST_APPEND_MS: u64 = 4;

/// Lets simulated time pass.
pub async fn pass(time: Duration) {
    // The time-out of something that never happens: in a simulation there is nothing real to wait for.
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// A mutex without poisoning: a simulation has one thread.
pub mod lock {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// The mutex.
    #[derive(Debug, Default)]
    pub struct Lock<T>(Mutex<T>);

    impl<T> Lock<T> {
        /// Around `value`.
        pub fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        /// Takes it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// A planted bug: what the checker must be able to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// None: the product as it is.
    None,
    /// A client writes with the clock of a read whose values it ignores, as if answers to writes carried the
    /// replica's whole clock.
    WholeClock,
    /// Disks say that a write is safe and forget it.
    LyingDisk,
    /// Disks lie, and the bucket hands out the first epoch again and again.
    SameEpoch,
    /// Homes that were away count at once (only where a home returns).
    CountsAtOnce,
    /// Hints are said to be in the bucket and are not (only where a home returns).
    DroppedHints,
}

/// The planted bugs by name.
pub const BUGS: [(&str, Bug); 5] = [
    ("whole-clock", Bug::WholeClock),
    ("lying-disk", Bug::LyingDisk),
    ("same-epoch", Bug::SameEpoch),
    ("counts-at-once", Bug::CountsAtOnce),
    ("dropped-hints", Bug::DroppedHints),
];

/// A repeatable stream of numbers (splitmix64); it goes on where it was when its host restarts.
#[derive(Debug)]
pub struct SeededRandom(Lock<u64>);

impl SeededRandom {
    /// The stream of `who` under `seed`.
    pub fn new(seed: u64, who: &str) -> Self {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for byte in who.bytes() {
            state = state.rotate_left(11).wrapping_add(u64::from(byte)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        }
        Self(Lock::new(state))
    }

    /// A number of milliseconds within `range`.
    pub fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.below(range.end - range.start))
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Wall-clock time that moves with the simulation.
#[derive(Debug)]
struct SimClock;

impl WallClock for SimClock {
    fn now_ms(&self) -> u64 {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        BASE_MS + u64::try_from(elapsed.as_millis()).unwrap()
    }
}

/// turmoil's network, as the host sees it that uses it.
#[derive(Debug)]
struct SimNet;

struct SimListener(turmoil::net::TcpListener);

#[async_trait]
impl Net for SimNet {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        Ok(Box::new(turmoil::net::TcpStream::connect(address).await?))
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(SimListener(turmoil::net::TcpListener::bind(address).await?)))
    }
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        Ok((Box::new(stream), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// The seams of the host `who`.
pub fn seams(seed: u64, who: &str) -> Seams {
    Seams { net: Arc::new(SimNet), clock: Arc::new(SimClock), random: Arc::new(SeededRandom::new(seed, who)) }
}

/// A disk that takes its time, outlives its host, and is left with half an append by a crash in the middle.
#[derive(Debug)]
pub struct SimDisk {
    files: MemoryDisk,
    random: SeededRandom,
    lies: bool,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64, who: &str, bug: Bug) -> Self {
        let lies = matches!(bug, Bug::LyingDisk | Bug::SameEpoch);
        Self { files: MemoryDisk::default(), random: SeededRandom::new(seed, &format!("{who} disk")), lies }
    }
}

/// An append under way; dropped before it is done, it leaves a part of it behind.
struct Appending<'a> {
    disk: &'a SimDisk,
    name: &'a str,
    bytes: Bytes,
    done: bool,
}

impl Drop for Appending<'_> {
    fn drop(&mut self) {
        if !self.done {
            let part = self.disk.random.below(self.bytes.len() as u64 + 1);
            let torn = self.bytes.slice(..usize::try_from(part).unwrap());
            let written = self.disk.files.append(self.name, torn).now_or_never();
            assert!(matches!(written, Some(Ok(()))), "a disk in memory never waits");
        }
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn list(&self) -> io::Result<Vec<String>> {
        self.files.list().await
    }

    async fn read(&self, name: &str) -> io::Result<Bytes> {
        self.files.read(name).await
    }

    async fn append(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        if self.lies {
            return Ok(());
        }
        let mut appending = Appending { disk: self, name, bytes, done: false };
        pass(self.random.millis(0..SLOWEST_APPEND_MS)).await;
        appending.done = true;
        self.files.append(name, appending.bytes.clone()).await
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.files.replace(name, bytes).await
    }

    async fn delete(&self, name: &str) -> io::Result<()> {
        self.files.delete(name).await
    }
}

/// The objects of all hosts, stamped with simulated time.
#[derive(Debug, Default)]
pub struct Objects(MemoryBucket);

impl Objects {
    fn stamp(&self) {
        self.0.set_now_ms(SimClock.now_ms());
    }
}

#[async_trait]
impl Bucket for Objects {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.0.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.0.get_range(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.stamp();
        self.0.put(key, body).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.stamp();
        self.0.create(key, body).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.0.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.0.delete(key).await
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
