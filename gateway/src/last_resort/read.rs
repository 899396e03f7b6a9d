//! Reading a key from the bucket: one look for all who want the same key at the same time.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::try_join_all;
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use cartwheel_bucket::SharedBucket;
use cartwheel_core::container::Container;
use cartwheel_core::names::NodeId;
use cartwheel_core::record::Version;
use cartwheel_segments::manifests::ManifestReadError;
use cartwheel_segments::{RecordKey, Segment, SegmentError, Segments};

use super::breaker::{Breaker, Pass};
use super::homes::Homes;
use super::{BucketFound, LastResortError};

/// Reads at once; those who wait for another's read are not counted.
const MAX_READS: usize = 64;
/// The block cache.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// Segments of one home that are looked into at once.
const SEGMENTS_AT_ONCE: usize = 8;
/// How often a home is listed for one read, if objects vanish while they are read.
const MAX_LISTS: usize = 4;

/// All that reading takes.
#[derive(Debug)]
pub(super) struct Reads {
    pub(super) homes: Homes,
    segments: Arc<Segments>,
    breaker: Arc<Breaker>,
    room: Arc<Semaphore>,
    flights: Mutex<Flights>,
}

#[derive(Debug, Default)]
struct Flights {
    next: u64,
    under_way: HashMap<RecordKey, Flight>,
}

/// A read under way.
#[derive(Debug, Clone)]
struct Flight {
    number: u64,
    homes: Vec<NodeId>,
    landing: Arc<Landing>,
}

/// Where those who joined a read wait for it. They are woken in the order in which they came; `watch` wakes its
/// receivers in a random one, and then no simulation repeats.
#[derive(Debug, Default)]
struct Landing {
    landed: Mutex<Option<Landed>>,
    ended: Notify,
}

impl Landing {
    fn land(&self, landed: Landed) {
        *self.landed.lock() = Some(landed);
        self.ended.notify_waiters();
    }

    async fn landed(&self) -> Landed {
        loop {
            // Made before the look, so that no landing in between is missed.
            let ended = self.ended.notified();
            if let Some(landed) = self.landed.lock().clone() {
                return landed;
            }
            ended.await;
        }
    }
}

#[derive(Debug, Clone)]
enum Landed {
    Found(BucketFound),
    Failed(LastResortError),
    /// Its deadline came first.
    TooLate,
}

fn too_late() -> LastResortError {
    LastResortError::Unreachable("the bucket did not answer before the deadline".to_owned())
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    List(#[from] ManifestReadError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

impl ReadError {
    /// Is an object gone that was listed?
    fn is_gone(&self) -> bool {
        matches!(self, Self::Segment(SegmentError::Bucket(error)) if error.is_not_found())
    }
}

impl Reads {
    pub(super) fn new(bucket: SharedBucket, breaker: Arc<Breaker>) -> Arc<Self> {
        let segments = Arc::new(Segments::new(Arc::clone(&bucket), CACHE_BYTES));
        Arc::new(Self {
            homes: Homes::new(bucket, Arc::clone(&segments)),
            segments,
            breaker,
            room: Arc::new(Semaphore::new(MAX_READS)),
            flights: Mutex::default(),
        })
    }

    /// What is in the bucket for `homes` of a key.
    pub(super) async fn read(
        self: &Arc<Self>,
        homes: &[NodeId],
        key: &RecordKey,
        deadline: Instant,
    ) -> Result<BucketFound, LastResortError> {
        if homes.is_empty() {
            return Err(LastResortError::Unreachable("the key has no homes".to_owned()));
        }
        loop {
            let flight = self.join(homes, key, deadline)?;
            match timeout_at(deadline, flight.landing.landed()).await.map_err(|_| too_late())? {
                Landed::Found(found) => return Ok(found),
                Landed::Failed(error) => return Err(error),
                // Somebody else's deadline came before ours.
                Landed::TooLate if Instant::now() < deadline => {}
                Landed::TooLate => return Err(too_late()),
            }
        }
    }

    /// The read of this key that is under way, or a new one.
    fn join(
        self: &Arc<Self>,
        homes: &[NodeId],
        key: &RecordKey,
        deadline: Instant,
    ) -> Result<Flight, LastResortError> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.under_way.get(key)
            && flight.homes == homes
        {
            return Ok(flight.clone());
        }
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| LastResortError::Busy)?;
        let pass = self.breaker.admit().ok_or(LastResortError::Busy)?;
        let landing = Arc::new(Landing::default());
        flights.next += 1;
        let flight = Flight { number: flights.next, homes: homes.to_vec(), landing: Arc::clone(&landing) };
        flights.under_way.insert(key.clone(), flight.clone());
        let (reads, key, homes, number) = (Arc::clone(self), key.clone(), homes.to_vec(), flight.number);
        // A task of its own: the caller that began it may give up, the others still want it.
        cartwheel_telemetry::trace::spawn(async move {
            let landed = reads.fly(&homes, &key, deadline, pass).await;
            drop(room);
            reads.end(&key, number);
            landing.land(landed);
        });
        Ok(flight)
    }

    /// From now on nobody joins this read.
    fn end(&self, key: &RecordKey, number: u64) {
        let mut flights = self.flights.lock();
        if flights.under_way.get(key).is_some_and(|flight| flight.number == number) {
            flights.under_way.remove(key);
        }
    }

    /// A record was written: nobody joins a read of it that began before.
    pub(super) fn outdate(&self, key: &RecordKey) {
        self.flights.lock().under_way.remove(key);
    }

    async fn fly(&self, homes: &[NodeId], key: &RecordKey, deadline: Instant, _pass: Pass) -> Landed {
        match timeout_at(deadline, self.look_up(homes, key)).await {
            Ok(Ok(found)) => Landed::Found(found),
            Ok(Err(error)) => Landed::Failed(LastResortError::Unreachable(error.to_string())),
            Err(_) => Landed::TooLate,
        }
    }

    /// Every home must be seen whole: half the truth could say that a key does not exist.
    async fn look_up(&self, homes: &[NodeId], key: &RecordKey) -> Result<BucketFound, ReadError> {
        let all = try_join_all(homes.iter().map(|home| self.of_home(home, key))).await?;
        let mut found = BucketFound { container: Container::default(), as_of_ms: 0 };
        for of_home in all {
            found.container.sync(of_home.container);
            found.as_of_ms = found.as_of_ms.max(of_home.as_of_ms);
        }
        Ok(found)
    }

    async fn of_home(&self, home: &NodeId, key: &RecordKey) -> Result<BucketFound, ReadError> {
        let mut after = None;
        let mut lists = 1;
        loop {
            let view = self.homes.view(home, after).await?;
            match self.of_segments(view.objects, key).await {
                // The home has taken over a hint since it was listed. A later list names what it went into.
                Err(error) if error.is_gone() && lists < MAX_LISTS => after = Some(view.number),
                Err(error) => return Err(error),
                Ok(container) => return Ok(BucketFound { container, as_of_ms: view.as_of_ms }),
            }
            lists += 1;
        }
    }

    async fn of_segments(
        &self,
        segments: Vec<Arc<Segment>>,
        key: &RecordKey,
    ) -> Result<Container<Version>, ReadError> {
        let looks = iter(segments).map(|segment| self.of_segment(segment, key));
        let merged = looks.buffer_unordered(SEGMENTS_AT_ONCE).try_fold(
            Container::default(),
            |mut merged, found| async move {
                merged.sync(found);
                Ok(merged)
            },
        );
        Ok(merged.await?)
    }

    async fn of_segment(
        &self,
        segment: Arc<Segment>,
        key: &RecordKey,
    ) -> Result<Container<Version>, SegmentError> {
        self.segments.read_in(&[segment], key, None).await
    }
}
