//! A bucket that refuses or holds what a test names, and notes what was done to it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use cartwheel_bucket::{Bucket, BucketError, Created, Listing, SharedBucket};

use crate::support::PATIENCE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    Put,
    List,
    Delete,
}

/// An operation on the objects, or the one object, that begin so.
pub(crate) type Rule = (Operation, String);

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) operation: Operation,
    pub(crate) key: String,
    pub(crate) refused: bool,
}

impl Done {
    pub(crate) fn is(&self, operation: Operation, prefix: &str) -> bool {
        self.operation == operation && self.key.starts_with(prefix)
    }
}

#[derive(Debug, Default)]
struct State {
    refused: Vec<Rule>,
    held: Vec<Rule>,
    /// The next range that is read of this object has one wrong byte.
    garbled: Option<String>,
    journal: Vec<Done>,
}

#[derive(Debug)]
pub(crate) struct Rigged {
    inner: SharedBucket,
    state: Mutex<State>,
    changed: Notify,
}

impl Rigged {
    pub(crate) fn new(inner: SharedBucket) -> Arc<Self> {
        Arc::new(Self { inner, state: Mutex::default(), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these answer that the bucket can't be reached.
    pub(crate) fn refuse(&self, operation: Operation, prefix: &str) {
        self.lock().refused.push((operation, prefix.to_owned()));
    }

    /// The next range of this object that is read is damaged on its way.
    pub(crate) fn garble_once(&self, object: &str) {
        self.lock().garbled = Some(object.to_owned());
    }

    /// From now on these wait.
    pub(crate) fn hold(&self, operation: Operation, prefix: &str) {
        self.lock().held.push((operation, prefix.to_owned()));
    }

    /// Everything works from now on.
    pub(crate) fn relent(&self) {
        {
            let mut state = self.lock();
            state.refused.clear();
            state.held.clear();
        }
        self.changed.notify_waiters();
    }

    /// Waits until `enough` of what was done.
    pub(crate) async fn until(&self, what: &str, enough: impl Fn(&[Done]) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if enough(&self.lock().journal) {
                    return;
                }
                changed.await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}: {:?}", self.lock().journal);
    }

    pub(crate) fn journal(&self) -> Vec<Done> {
        self.lock().journal.clone()
    }

    async fn run<T>(
        &self,
        operation: Operation,
        key: &str,
        work: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        let matches =
            |rules: &[Rule]| rules.iter().any(|(op, prefix)| *op == operation && key.starts_with(prefix));
        loop {
            let changed = self.changed.notified();
            if !matches(&self.lock().held) {
                break;
            }
            changed.await;
        }
        let refused = matches(&self.lock().refused);
        let outcome = if refused {
            Err(BucketError::Unavailable { key: key.to_owned(), detail: "refused by the test".to_owned() })
        } else {
            work.await
        };
        self.lock().journal.push(Done { operation, key: key.to_owned(), refused });
        self.changed.notify_waiters();
        outcome
    }
}

#[async_trait]
impl Bucket for Rigged {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.run(Operation::Get, key, self.inner.get(key)).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        let read = self.run(Operation::Get, key, self.inner.get_range(key, range)).await?;
        if self.lock().garbled.take_if(|object| object == key).is_none() {
            return Ok(read);
        }
        let mut read = read.to_vec();
        let middle = read.len() / 2;
        read[middle] ^= 0x10;
        Ok(read.into())
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.run(Operation::Put, key, self.inner.put(key, body)).await
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.inner.create(key, body).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.run(Operation::List, prefix, self.inner.list(prefix, after, limit)).await
    }
    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.run(Operation::Delete, key, self.inner.delete(key)).await
    }
}
