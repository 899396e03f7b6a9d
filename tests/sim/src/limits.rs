//! P9, and limits: what a storage node asks of the bucket before it serves, whatever it holds; and what nodes say of their
//! queues and their memory, looked at now and then.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cartwheel_bucket::{Bucket, BucketError, Created, Listing, SharedBucket};
use cartwheel_core::wire::{Call, Reply, Request};
use tokio::time::Instant;

use crate::client::Shared;
use crate::cluster::Place;
use crate::report::Check;
use crate::world::lock::Lock;
use crate::world::pass;

/// How often nodes are asked how they are, and how long they may take to answer.
const LOOK: Duration = Duration::from_secs(1);

/// The most operations of the bucket before a node serves: they find the ring, lease an epoch, list, and read the
/// manifest; those that fail are tried again.
const MAX_OPERATIONS: u64 = 192;
/// The most bytes that they may bring: documents, no segment's records.
const MAX_BYTES: u64 = 1 << 20;

/// What a host has asked of the bucket.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Operations.
    pub operations: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

impl Asked {
    /// What is too much of it for a start, if anything is.
    pub fn too_much(self) -> Option<String> {
        let Self { operations, bytes } = self;
        let much = operations > MAX_OPERATIONS || bytes > MAX_BYTES;
        much.then(|| {
            format!(
                "{operations} operations of the bucket and {bytes} bytes from it; \
                 at most {MAX_OPERATIONS} and {MAX_BYTES} are allowed"
            )
        })
    }
}

/// What starts of nodes have taken.
#[derive(Debug, Default)]
pub struct Starts {
    hosts: BTreeMap<String, Arc<Lock<Asked>>>,
    begun: BTreeMap<String, Asked>,
    /// The most that one took.
    pub most: Asked,
}

impl Starts {
    /// The count of a host.
    pub fn asked(&mut self, who: &str) -> Arc<Lock<Asked>> {
        Arc::clone(self.hosts.entry(who.to_owned()).or_default())
    }

    fn now(&self, who: &str) -> Asked {
        self.hosts.get(who).map(|asked| *asked.lock()).unwrap_or_default()
    }

    /// `who` tries to start.
    pub fn begins(&mut self, who: &str) {
        self.begun.insert(who.to_owned(), self.now(who));
    }

    /// It serves; what that took.
    pub fn serves(&mut self, who: &str) -> Option<Asked> {
        let (now, then) = (self.now(who), self.begun.remove(who)?);
        let taken = Asked { operations: now.operations - then.operations, bytes: now.bytes - then.bytes };
        self.most.operations = self.most.operations.max(taken.operations);
        self.most.bytes = self.most.bytes.max(taken.bytes);
        Some(taken)
    }
}

/// A bucket whose operations are counted.
#[derive(Debug)]
pub struct Counted {
    inner: SharedBucket,
    asked: Arc<Lock<Asked>>,
}

impl Counted {
    /// Around `inner`.
    pub fn new(inner: SharedBucket, asked: Arc<Lock<Asked>>) -> Self {
        Self { inner, asked }
    }

    fn count(&self, bytes: usize) {
        self.asked.lock().bytes += bytes as u64;
    }

    fn began(&self) {
        self.asked.lock().operations += 1;
    }
}

#[async_trait]
impl Bucket for Counted {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.began();
        self.inner.get(key).await.inspect(|bytes| self.count(bytes.len()))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.began();
        self.inner.get_range(key, range).await.inspect(|bytes| self.count(bytes.len()))
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.began();
        self.inner.put(key, body).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.began();
        self.inner.create(key, body).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.began();
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.began();
        self.inner.delete(key).await
    }
}

/// Asks all nodes how they are, until all writers have stopped; those that can't be reached have nothing to say.
pub async fn watch(shared: &Shared, place: &Place) {
    let peers = place.peers("watcher");
    let (flush_bytes, hint_bytes) = place.limits();
    while *shared.stopped.lock() < shared.writers {
        pass(LOOK).await;
        let Some(ring) = shared.sight.ring() else { continue };
        for member in &ring.document.members {
            let call = Call { ring_version: ring.document.version, request: Request::Status };
            let asked = peers.call(&member.address, &call, Instant::now() + LOOK).await;
            let Ok(Reply::Status(said)) = asked.map(|answer| answer.reply) else { continue };
            shared.checker.lock().counts.looks += 1;
            let status = serde_json::from_slice(&said).unwrap_or_default();
            for what in beyond(&status, flush_bytes, hint_bytes) {
                shared.sight.violate(Check::Limit, &what);
            }
        }
    }
}

/// What a node that says this of itself has too much of.
///
/// A memtable is full at `flush_bytes`; four of them may wait. Hints have a cap. What is not in order shows in
/// `memory.over`: more must be held than was given.
pub fn beyond(status: &serde_json::Value, flush_bytes: u64, hint_bytes: u64) -> Vec<String> {
    let id = status["id"].as_str().unwrap_or_default();
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(u64::MAX);
    let hints: u64 =
        status["hints"].as_array().into_iter().flatten().map(|hint| number(&hint["bytes"])).sum();
    let unflushed = flush_bytes.saturating_mul(4);
    let mut beyond = Vec::new();
    for (what, found, most) in [
        ("bytes of hints", hints, hint_bytes),
        ("bytes of memtables", number(&status["memtable_bytes"]), unflushed),
        ("bytes waiting for the disk", number(&status["memory"]["log_queue"]), 64 << 20),
        ("bytes of unflushed records", number(&status["memory"]["unflushed"]), unflushed),
        (
            "bytes of the block cache",
            number(&status["block_cache_bytes"]),
            number(&status["memory"]["given"]),
        ),
        ("segments", number(&status["segments"]), 8192),
    ] {
        if found > most {
            beyond.push(format!("{id} has {found} {what}, at most {most} are allowed"));
        }
    }
    if status["memory"]["over"] != false {
        beyond.push(format!("{id} must hold more than it was given: {}", status["memory"]));
    }
    beyond
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_start_that_reads_too_much_is_seen() {
        let mut starts = Starts::default();
        let asked = starts.asked("node-a");
        *asked.lock() = Asked { operations: 500, bytes: 5 << 20 };
        starts.begins("node-a");
        asked.lock().operations += 20;
        let taken = starts.serves("node-a").unwrap();
        assert_eq!((taken, taken.too_much()), (Asked { operations: 20, bytes: 0 }, None));
        assert_eq!(starts.serves("node-a"), None, "it had begun once");
        for more in [Asked { operations: 200, bytes: 0 }, Asked { operations: 1, bytes: 2 << 20 }] {
            starts.begins("node-a");
            asked.lock().operations += more.operations;
            asked.lock().bytes += more.bytes;
            assert!(starts.serves("node-a").unwrap().too_much().is_some());
        }
        assert_eq!(starts.most, Asked { operations: 200, bytes: 2 << 20 });
    }

    #[test]
    fn queues_beyond_their_bounds_are_seen() {
        let fine = json!({
            "id": "node-a",
            "hints": [{"bytes": 60}, {"bytes": 40}],
            "memtable_bytes": 400,
            "segments": 3,
            "block_cache_bytes": 10,
            "memory": {"over": false, "log_queue": 0, "unflushed": 400, "given": 10},
        });
        assert_eq!(beyond(&fine, 100, 100), Vec::<String>::new());
        assert_eq!(beyond(&fine, 100, 99).len(), 1);
        assert_eq!(beyond(&fine, 99, 100).len(), 2);
        let mut over = fine;
        over["memory"]["over"] = json!(true);
        assert_eq!(beyond(&over, 100, 100).len(), 1);
        assert!(
            beyond(&json!({"id": "node-a"}), 100, 100).len() > 3,
            "what says nothing of it is not within"
        );
    }
}
