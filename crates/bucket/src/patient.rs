//! A bucket whose reads are tried again: for work of many reads that would begin anew where one of them fails.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Bucket, BucketError, Created, Listing, SharedBucket};

/// How many times a read is tried, and the pause between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// Tries reads that failed for the moment again; hands on everything else as it is.
#[derive(Debug, Clone)]
pub struct PatientBucket(SharedBucket);

impl PatientBucket {
    /// Around `inner`, shared.
    #[must_use]
    pub fn around(inner: SharedBucket) -> SharedBucket {
        Arc::new(Self(inner))
    }
}

async fn patiently<T, F>(read: impl Fn() -> F) -> Result<T, BucketError>
where
    F: Future<Output = Result<T, BucketError>>,
{
    let mut tries = 1;
    loop {
        match read().await {
            Err(error) if error.is_retryable() && tries < TRIES => {
                tracing::debug!(%error, "trying again");
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

#[async_trait]
impl Bucket for PatientBucket {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        patiently(|| self.0.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        patiently(|| self.0.get_range(key, range.clone())).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.0.put(key, body).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.0.create(key, body).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        patiently(|| self.0.list(prefix, after, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.0.delete(key).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{CERTAIN, Faults, FaultyBucket, MemoryBucket, OperationFaults};

    #[tokio::test(start_paused = true)]
    async fn reads_that_fail_now_and_then_succeed_and_what_is_gone_is_gone_at_once() {
        let faulty = Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), 7));
        let patient = PatientBucket::around(faulty.clone());
        patient.put("a", "body".into()).await.unwrap();
        let each = OperationFaults { refuse: CERTAIN / 10, mute: 0, slow: 0 };
        faulty.set(Faults::everywhere(each));
        for _ in 0..50 {
            assert_eq!(patient.get("a").await.unwrap(), "body");
            assert_eq!(patient.get_range("a", 1..3).await.unwrap(), "od");
            assert_eq!(patient.list("", None, 10).await.unwrap().objects.len(), 1);
        }
        assert!(faulty.injected() > 0);
        faulty.set(Faults { unavailable: true, ..Faults::default() });
        assert!(patient.get("a").await.unwrap_err().is_retryable(), "but not for ever");
        faulty.set(Faults::default());
        assert!(matches!(patient.get("b").await, Err(BucketError::NotFound { .. })));
    }
}
