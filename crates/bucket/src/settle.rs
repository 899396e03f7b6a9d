//! Create-if-absent over a store that may lose its answers.
//!
//! A 412 may be the echo of our own earlier attempt (a lost answer, or a proxy
//! that sent the request twice), a 409 means that another write was under way,
//! and a time-out says nothing. The stored bytes settle all three, because a
//! create's body is unique to its caller.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BucketError, Created};

/// Attempts of one create, the first included.
pub(crate) const ATTEMPTS: u32 = 6;

/// The longest wait before the second attempt; it doubles with each one after.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// What one attempt to create said.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Stored, and it is ours.
    Stored,
    /// The key is taken (412), by somebody or by our earlier attempt.
    Taken,
    /// Nothing was stored, but trying again may help (409).
    Again(BucketError),
    /// It may or may not have been stored.
    Unknown(BucketError),
    /// The store says no, for good.
    Refused(BucketError),
}

/// A store that can try once and read back.
#[async_trait]
pub(crate) trait CreateOnce: Sync {
    /// One conditional write, with no retry behind it.
    async fn create_once(&self, key: &str, body: Bytes) -> Attempt;
    /// The stored object.
    async fn read_back(&self, key: &str) -> Result<Bytes, BucketError>;
    /// A number to spread waits with.
    fn jitter(&self) -> u64;
}

/// Tries until it is known whose body is stored, at most [`ATTEMPTS`] times.
pub(crate) async fn create<S>(store: &S, key: &str, body: &Bytes) -> Result<Created, BucketError>
where
    S: CreateOnce + ?Sized,
{
    let mut last = BucketError::unavailable(key, "no attempt was made");
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(wait(attempt, store.jitter())).await;
        }
        last = match store.create_once(key, body.clone()).await {
            Attempt::Stored => return Ok(Created::New),
            Attempt::Refused(error) => return Err(error),
            Attempt::Again(error) => {
                tracing::debug!(key, attempt, %error, "create asked to try again");
                error
            }
            Attempt::Taken => BucketError::unavailable(key, "the key was taken, then free again"),
            Attempt::Unknown(error) => {
                tracing::debug!(key, attempt, %error, "create lost its answer; reading back");
                error
            }
        };
        match store.read_back(key).await {
            Ok(stored) if stored == *body => return Ok(Created::New),
            Ok(_) => return Ok(Created::Exists),
            // Free: either nothing arrived, or it arrives later and then meets
            // our next attempt's condition. Both end well by trying again.
            Err(BucketError::NotFound { .. }) => {}
            Err(error) if error.is_retryable() => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Between half and all of the doubled wait.
fn wait(attempt: u32, jitter: u64) -> Duration {
    let longest = FIRST_WAIT * 2_u32.pow(attempt.saturating_sub(1).min(6));
    let part = u32::try_from(jitter % 1024).unwrap_or(0);
    longest / 2 + longest / 2 * part / 1024
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::{ATTEMPTS, Attempt, Bytes, CreateOnce, FIRST_WAIT, create, wait};
    use crate::{BucketError, Created};

    /// Answers from a script; `stored` is what a read finds.
    struct Script {
        attempts: Mutex<VecDeque<Attempt>>,
        reads: Mutex<VecDeque<Result<&'static str, BucketError>>>,
    }

    #[async_trait::async_trait]
    impl CreateOnce for Script {
        async fn create_once(&self, _: &str, _: Bytes) -> Attempt {
            self.attempts.lock().unwrap().pop_front().unwrap()
        }
        async fn read_back(&self, _: &str) -> Result<Bytes, BucketError> {
            self.reads.lock().unwrap().pop_front().unwrap().map(|body| Bytes::from_static(body.as_bytes()))
        }
        fn jitter(&self) -> u64 {
            0
        }
    }

    fn lost() -> BucketError {
        BucketError::unavailable("k", "lost")
    }

    async fn settle(
        attempts: Vec<Attempt>,
        reads: Vec<Result<&'static str, BucketError>>,
    ) -> (Result<Created, BucketError>, usize) {
        let script = Script { attempts: Mutex::new(attempts.into()), reads: Mutex::new(reads.into()) };
        let answer = create(&script, "k", &Bytes::from_static(b"mine")).await;
        let left = script.attempts.lock().unwrap().len();
        (answer, left)
    }

    #[tokio::test]
    async fn a_clear_answer_needs_no_read() {
        assert_eq!(settle(vec![Attempt::Stored], vec![]).await, (Ok(Created::New), 0));
    }

    #[tokio::test]
    async fn a_412_is_ours_if_the_body_is_ours() {
        assert_eq!(settle(vec![Attempt::Taken], vec![Ok("mine")]).await.0, Ok(Created::New));
        assert_eq!(settle(vec![Attempt::Taken], vec![Ok("theirs")]).await.0, Ok(Created::Exists));
    }

    #[tokio::test]
    async fn a_lost_answer_is_settled_by_the_stored_body() {
        assert_eq!(settle(vec![Attempt::Unknown(lost())], vec![Ok("mine")]).await.0, Ok(Created::New));
        assert_eq!(settle(vec![Attempt::Unknown(lost())], vec![Ok("theirs")]).await.0, Ok(Created::Exists));
    }

    #[tokio::test]
    async fn a_late_arrival_of_our_own_attempt_is_a_win() {
        let attempts = vec![Attempt::Unknown(lost()), Attempt::Taken];
        let reads = vec![Err(BucketError::not_found("k")), Ok("mine")];
        assert_eq!(settle(attempts, reads).await, (Ok(Created::New), 0));
    }

    #[tokio::test]
    async fn a_409_is_tried_again() {
        let attempts = vec![Attempt::Again(lost()), Attempt::Stored];
        assert_eq!(settle(attempts, vec![Err(BucketError::not_found("k"))]).await, (Ok(Created::New), 0));
    }

    #[tokio::test]
    async fn a_refusal_ends_it_at_once() {
        let no = BucketError::Refused {
            key: "k".into(),
            status: 403,
            code: "AccessDenied".into(),
            detail: "no".into(),
        };
        let answer = settle(vec![Attempt::Refused(no.clone()), Attempt::Stored], vec![]).await;
        assert_eq!(answer, (Err(no), 1));
    }

    #[tokio::test]
    async fn it_gives_up_after_its_attempts_and_says_that_it_does_not_know() {
        let count = ATTEMPTS as usize;
        let attempts = (0..=count).map(|_| Attempt::Unknown(lost())).collect();
        let (answer, left) = settle(attempts, (0..count).map(|_| Err(lost())).collect()).await;
        assert!(answer.unwrap_err().is_retryable());
        assert_eq!(left, 1);
    }

    #[test]
    fn waits_double_and_stay_between_half_and_all() {
        for attempt in 1..ATTEMPTS {
            let longest = FIRST_WAIT * 2_u32.pow(attempt - 1);
            assert_eq!(wait(attempt, 0), longest / 2);
            assert!(wait(attempt, 1023) < longest);
        }
    }
}
