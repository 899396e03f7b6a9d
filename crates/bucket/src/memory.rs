//! A bucket in memory: no clock, no randomness, gone with the process.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::bucket::check_limit;
use crate::{Bucket, BucketError, Created, Listed, Listing};

/// Objects in a sorted map. Every write is stamped with a counter that moves
/// on by one millisecond per write and that [`MemoryBucket::set_now_ms`] sets.
#[derive(Debug, Default)]
pub struct MemoryBucket {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    now_ms: u64,
}

#[derive(Debug)]
struct Object {
    body: Bytes,
    modified_ms: u64,
}

impl State {
    fn write(&mut self, key: &str, body: Bytes) {
        let modified_ms = self.now_ms;
        self.now_ms = self.now_ms.saturating_add(1);
        self.objects.insert(key.to_owned(), Object { body, modified_ms });
    }
}

impl MemoryBucket {
    /// An empty bucket whose counter stands at 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time of the next write, in milliseconds since 1970.
    pub fn set_now_ms(&self, now_ms: u64) {
        self.lock().now_ms = now_ms;
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().objects.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every change below is one step, so a poisoned lock still guards whole data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Bucket for MemoryBucket {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        let state = self.lock();
        state.objects.get(key).map(|object| object.body.clone()).ok_or_else(|| BucketError::not_found(key))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        if range.is_empty() {
            return Err(BucketError::range(key, &range));
        }
        slice(key, &self.get(key).await?, &range)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.lock().write(key, body);
        Ok(())
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        let mut state = self.lock();
        match state.objects.get(key) {
            Some(stored) if stored.body == body => Ok(Created::New),
            Some(_) => Ok(Created::Exists),
            None => {
                state.write(key, body);
                Ok(Created::New)
            }
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        check_limit(prefix, limit)?;
        let state = self.lock();
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut matching = state
            .objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, object)| Listed {
                key: key.clone(),
                size: object.body.len() as u64,
                modified_ms: object.modified_ms,
            });
        let objects: Vec<Listed> = matching.by_ref().take(limit).collect();
        let more = matching.next().is_some();
        Ok(Listing { objects, more })
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.lock().objects.remove(key);
        Ok(())
    }
}

/// The bytes of `range` out of a whole body.
pub(crate) fn slice(key: &str, body: &Bytes, range: &Range<u64>) -> Result<Bytes, BucketError> {
    match (usize::try_from(range.start), usize::try_from(range.end)) {
        (Ok(start), Ok(end)) if start < end && end <= body.len() => Ok(body.slice(start..end)),
        _ => Err(BucketError::range(key, range)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;

    use super::MemoryBucket;
    use crate::Bucket;

    #[tokio::test]
    async fn times_come_from_the_counter() {
        let bucket = MemoryBucket::new();
        bucket.put("a", Bytes::new()).await.unwrap();
        bucket.set_now_ms(1_000);
        bucket.put("b", Bytes::new()).await.unwrap();
        bucket.put("c", Bytes::new()).await.unwrap();
        let listing = bucket.list("", None, 10).await.unwrap();
        let times: Vec<u64> = listing.objects.iter().map(|object| object.modified_ms).collect();
        assert_eq!(times, [0, 1_000, 1_001]);
        assert_eq!(bucket.len(), 3);
    }
}
