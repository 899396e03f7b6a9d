//! A bucket that misbehaves, repeatably: the same seed and the same order of
//! calls give the same faults.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::settle::{self, Attempt, CreateOnce};
use crate::splitmix::SplitMix;
use crate::{Bucket, BucketError, Created, Listing, SharedBucket};

/// The probability of a fault that always happens; all are out of this.
pub const CERTAIN: u32 = 65_536;

/// The faults of one kind of operation, each a probability out of [`CERTAIN`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationFaults {
    /// Answers `Unavailable` and does nothing.
    pub refuse: u32,
    /// Does it, then answers `Unavailable`: the answer got lost.
    pub mute: u32,
    /// Waits for [`Faults::slow_by`] first.
    pub slow: u32,
}

/// Everything that can go wrong. The default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every call answers `Unavailable` and does nothing.
    pub unavailable: bool,
    /// Creates overwrite, as in stores that ignore `If-None-Match`.
    pub ignore_conditions: bool,
    /// How long a slow call waits.
    pub slow_by: Duration,
    /// Faults of `get`.
    pub get: OperationFaults,
    /// Faults of `get_range`.
    pub get_range: OperationFaults,
    /// Faults of `put`.
    pub put: OperationFaults,
    /// Faults of `create`; they hit each attempt, not the whole call.
    pub create: OperationFaults,
    /// Faults of `list`.
    pub list: OperationFaults,
    /// Faults of `delete`.
    pub delete: OperationFaults,
}

impl Faults {
    /// The same faults for every operation.
    #[must_use]
    pub fn everywhere(each: OperationFaults) -> Self {
        Self {
            get: each,
            get_range: each,
            put: each,
            create: each,
            list: each,
            delete: each,
            ..Self::default()
        }
    }
}

/// Wraps a bucket and a plan of faults that can be changed while it runs.
#[derive(Debug)]
pub struct FaultyBucket {
    inner: SharedBucket,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    faults: Faults,
    stream: SplitMix,
    injected: u64,
}

/// What was drawn for one call.
#[derive(Debug, Clone, Copy)]
struct Drawn {
    refuse: bool,
    mute: bool,
    slow: Option<Duration>,
}

impl FaultyBucket {
    /// A bucket that behaves until [`FaultyBucket::set`] says otherwise.
    #[must_use]
    pub fn new(inner: SharedBucket, seed: u64) -> Self {
        let state = State { faults: Faults::default(), stream: SplitMix::new(seed), injected: 0 };
        Self { inner, state: Mutex::new(state) }
    }

    /// Replaces the plan; calls that begin from now on follow it.
    pub fn set(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// The plan in force.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.lock().faults
    }

    /// How many calls or attempts were refused or muted so far.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.lock().injected
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Always draws three numbers, so that one setting does not shift another's.
    fn draw(&self, pick: fn(&Faults) -> OperationFaults) -> Drawn {
        let mut state = self.lock();
        let chances = pick(&state.faults);
        let mut hit = |chance: u32| state.stream.next() % u64::from(CERTAIN) < u64::from(chance);
        let (refuse, mute, slow) = (hit(chances.refuse), hit(chances.mute), hit(chances.slow));
        let refuse = refuse || state.faults.unavailable;
        state.injected += u64::from(refuse || mute);
        Drawn { refuse, mute, slow: slow.then_some(state.faults.slow_by) }
    }

    /// Runs one operation under what was drawn for it.
    async fn run<T>(
        &self,
        key: &str,
        pick: fn(&Faults) -> OperationFaults,
        operation: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        let drawn = self.draw(pick);
        if let Some(wait) = drawn.slow {
            tokio::time::sleep(wait).await;
        }
        if drawn.refuse {
            return Err(BucketError::unavailable(key, "injected: refused, nothing was done"));
        }
        let answer = operation.await?;
        if drawn.mute {
            return Err(BucketError::unavailable(key, "injected: done, but the answer was lost"));
        }
        Ok(answer)
    }
}

#[async_trait]
impl CreateOnce for FaultyBucket {
    async fn create_once(&self, key: &str, body: Bytes) -> Attempt {
        let ignore_conditions = self.faults().ignore_conditions;
        let operation = async {
            if ignore_conditions {
                self.inner.put(key, body).await.map(|()| Created::New)
            } else {
                self.inner.create(key, body).await
            }
        };
        match self.run(key, |faults| faults.create, operation).await {
            Ok(Created::New) => Attempt::Stored,
            Ok(Created::Exists) => Attempt::Taken,
            Err(error) if error.is_retryable() => Attempt::Unknown(error),
            Err(error) => Attempt::Refused(error),
        }
    }

    async fn read_back(&self, key: &str) -> Result<Bytes, BucketError> {
        self.get(key).await
    }

    fn jitter(&self) -> u64 {
        self.lock().stream.next()
    }
}

#[async_trait]
impl Bucket for FaultyBucket {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.run(key, |faults| faults.get, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.run(key, |faults| faults.get_range, self.inner.get_range(key, range)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.run(key, |faults| faults.put, self.inner.put(key, body)).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        settle::create(self, key, &body).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.run(prefix, |faults| faults.list, self.inner.list(prefix, after, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.run(key, |faults| faults.delete, self.inner.delete(key)).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;

    use super::{CERTAIN, Faults, FaultyBucket, OperationFaults};
    use crate::{Bucket, Created, MemoryBucket, ProbeVerdict, probe_conditional_create};

    fn faulty(seed: u64, faults: Faults) -> (Arc<MemoryBucket>, FaultyBucket) {
        let inner = Arc::new(MemoryBucket::new());
        let bucket = FaultyBucket::new(inner.clone(), seed);
        bucket.set(faults);
        (inner, bucket)
    }

    fn body() -> Bytes {
        Bytes::from_static(b"body")
    }

    #[tokio::test]
    async fn refused_writes_do_nothing_and_mute_ones_do_everything() {
        let refuse = OperationFaults { refuse: CERTAIN, ..OperationFaults::default() };
        let (inner, bucket) = faulty(1, Faults::everywhere(refuse));
        assert!(bucket.put("k", body()).await.unwrap_err().is_retryable());
        assert!(inner.is_empty());
        let mute = OperationFaults { mute: CERTAIN, ..OperationFaults::default() };
        bucket.set(Faults::everywhere(mute));
        assert!(bucket.put("k", body()).await.unwrap_err().is_retryable());
        assert_eq!(inner.get("k").await.unwrap(), body());
        assert!(bucket.delete("k").await.unwrap_err().is_retryable());
        assert!(inner.is_empty());
    }

    #[tokio::test]
    async fn while_unavailable_nothing_answers() {
        let (inner, bucket) = faulty(1, Faults { unavailable: true, ..Faults::default() });
        assert!(bucket.get("k").await.unwrap_err().is_retryable());
        assert!(bucket.get_range("k", 0..1).await.unwrap_err().is_retryable());
        assert!(bucket.create("k", body()).await.unwrap_err().is_retryable());
        assert!(bucket.list("", None, 1).await.unwrap_err().is_retryable());
        assert!(inner.is_empty());
        bucket.set(Faults::default());
        assert_eq!(bucket.create("k", body()).await, Ok(Created::New));
    }

    #[tokio::test]
    async fn a_mute_create_is_settled_by_reading_back() {
        let create = OperationFaults { mute: CERTAIN, ..OperationFaults::default() };
        let (_, bucket) = faulty(1, Faults { create, ..Faults::default() });
        assert_eq!(bucket.create("k", body()).await, Ok(Created::New));
        assert_eq!(bucket.create("k", Bytes::from_static(b"other")).await, Ok(Created::Exists));
    }

    #[tokio::test]
    async fn the_probe_finds_a_store_that_ignores_conditions() {
        let (inner, bucket) = faulty(1, Faults { ignore_conditions: true, ..Faults::default() });
        let verdict = probe_conditional_create(&bucket, 9).await;
        assert_eq!(verdict, Ok(ProbeVerdict::IgnoresConditions { winners: 9 }));
        assert!(inner.is_empty(), "the probe cleans up");
    }

    #[tokio::test]
    async fn the_same_seed_gives_the_same_faults() {
        async fn trace(seed: u64) -> Vec<bool> {
            let half = OperationFaults { refuse: CERTAIN / 2, mute: CERTAIN / 4, slow: CERTAIN / 2 };
            let plan = Faults { slow_by: Duration::ZERO, ..Faults::everywhere(half) };
            let (_, bucket) = faulty(seed, plan);
            let mut trace = Vec::new();
            for _ in 0..64 {
                trace.push(bucket.put("k", body()).await.is_ok());
            }
            trace
        }
        let first = trace(5).await;
        assert_eq!(first, trace(5).await);
        assert_ne!(first, trace(6).await);
        assert!(first.contains(&true) && first.contains(&false));
    }
}
