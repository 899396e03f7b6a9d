//! Keeps a bucket that fails from being asked on and on, and bounds every call to it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use cartwheel_bucket::{Bucket, BucketError, Created, Listing, SharedBucket};

/// Failures in a row after which the bucket is left alone.
const MAX_FAILURES: u32 = 5;
/// For how long at first; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// A call that its caller gave up after this long is a failure of the bucket. Before, it says nothing of the
/// bucket: clients choose their deadlines.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long one call may take, whoever waits for it.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Calls at once.
const MAX_CALLS: usize = 64;

/// Counts failures in a row; opens, and lets one operation at a time try again after a pause.
#[derive(Debug)]
pub(super) struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    failures: u32,
    /// While it lies ahead no call is made; once it has passed, one operation may try.
    open_until: Option<Instant>,
    pause: Duration,
    trial: bool,
}

/// The right to use the bucket for one operation.
#[derive(Debug)]
pub(super) struct Pass {
    trial_of: Option<Arc<Breaker>>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(breaker) = &self.trial_of {
            breaker.state.lock().trial = false;
        }
    }
}

impl Breaker {
    /// A closed one.
    pub(super) fn new() -> Arc<Self> {
        let state = State { failures: 0, open_until: None, pause: FIRST_PAUSE, trial: false };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// A pass, if the bucket is not left alone just now.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Pass> {
        let mut state = self.state.lock();
        match state.open_until {
            None => Some(Pass { trial_of: None }),
            Some(until) if Instant::now() < until || state.trial => None,
            Some(_) => {
                state.trial = true;
                Some(Pass { trial_of: Some(Arc::clone(self)) })
            }
        }
    }

    fn is_open(&self) -> bool {
        self.state.lock().open_until.is_some_and(|until| Instant::now() < until)
    }

    fn report(&self, good: bool) {
        let mut state = self.state.lock();
        let now = Instant::now();
        match state.open_until {
            // A late answer to a call from before.
            Some(until) if now < until => {}
            _ if good => {
                (state.failures, state.open_until, state.pause) = (0, None, FIRST_PAUSE);
            }
            Some(_) => {
                state.pause = (state.pause * 2).min(MAX_PAUSE);
                state.open_until = Some(now + state.pause);
            }
            None => {
                state.failures += 1;
                if state.failures >= MAX_FAILURES {
                    tracing::warn!("the bucket fails; leaving it alone for a while");
                    state.open_until = Some(now + state.pause);
                }
            }
        }
    }
}

/// A bucket behind a breaker.
#[derive(Debug)]
pub(super) struct Guarded {
    inner: SharedBucket,
    breaker: Arc<Breaker>,
    calls: Semaphore,
}

/// A call under way. One that is dropped unanswered is judged by how long it was given.
struct Watched<'a> {
    breaker: &'a Breaker,
    began: Instant,
    answered: bool,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if !self.answered && self.began.elapsed() >= PATIENCE {
            self.breaker.report(false);
        }
    }
}

fn unavailable(key: &str, detail: &str) -> BucketError {
    BucketError::Unavailable { key: key.to_owned(), detail: detail.to_owned() }
}

impl Guarded {
    pub(super) fn new(inner: SharedBucket, breaker: Arc<Breaker>) -> Self {
        Self { inner, breaker, calls: Semaphore::new(MAX_CALLS) }
    }

    async fn call<T>(
        &self,
        key: &str,
        call: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        let Ok(_permit) = self.calls.acquire().await else {
            return Err(unavailable(key, "the process is shutting down"));
        };
        if self.breaker.is_open() {
            return Err(unavailable(key, "not asked: it failed several times in a row just now"));
        }
        let mut watched = Watched { breaker: &self.breaker, began: Instant::now(), answered: false };
        let answer = tokio::time::timeout(CALL_LIMIT, call).await;
        watched.answered = true;
        let answer = answer.unwrap_or_else(|_| Err(unavailable(key, "no answer in 10 s")));
        let failed = matches!(answer, Err(BucketError::Unavailable { .. } | BucketError::Refused { .. }));
        self.breaker.report(!failed);
        answer
    }
}

#[async_trait]
impl Bucket for Guarded {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.call(key, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.call(key, self.inner.get_range(key, range)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.call(key, self.inner.put(key, body)).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.call(key, self.inner.create(key, body)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.call(prefix, self.inner.list(prefix, after, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.call(key, self.inner.delete(key)).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_a_limit_and_one_operation_tries() {
        let breaker = Breaker::new();
        for _ in 1..MAX_FAILURES {
            breaker.report(false);
        }
        breaker.report(true);
        for _ in 1..MAX_FAILURES {
            breaker.report(false);
        }
        assert!(breaker.admit().is_some(), "a success in between starts the count again");
        breaker.report(false);
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert!(breaker.admit().is_none());
            tokio::time::advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            breaker.report(true);
            assert!(breaker.admit().is_none(), "a late answer changes nothing; {seconds} s");
            tokio::time::advance(Duration::from_millis(1)).await;
            let trial = breaker.admit().unwrap();
            assert!(breaker.admit().is_none(), "one at a time");
            drop(trial);
            let _trial = breaker.admit().unwrap();
            breaker.report(false);
        }
        tokio::time::advance(MAX_PAUSE).await;
        breaker.report(true);
        assert!(breaker.admit().is_some() && breaker.admit().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_given_up_early_says_nothing_of_the_bucket() {
        let guarded = Guarded::new(Arc::new(cartwheel_bucket::MemoryBucket::new()), Breaker::new());
        let hang = |patience| {
            let call = guarded.call("k", std::future::pending::<Result<(), BucketError>>());
            tokio::time::timeout(patience, call)
        };
        for _ in 0..2 * MAX_FAILURES {
            hang(PATIENCE / 2).await.unwrap_err();
        }
        assert!(!guarded.breaker.is_open());
        for _ in 0..MAX_FAILURES {
            hang(PATIENCE).await.unwrap_err();
        }
        assert!(guarded.breaker.is_open());
    }
}
