//! The replica of last resort: with too few storage nodes in reach, the gateway reads what the homes left in the
//! bucket, and writes into their inboxes there. No other part of the gateway touches data in the bucket.
//!
//! An inbox object is a hint whose holder is this gateway; its home takes it over before it counts again.

mod breaker;
mod dots;
mod homes;
mod inbox;
mod read;
mod repeats;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use cartwheel_bucket::{PatientBucket, SharedBucket, list_all};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock::{Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::record::{Record, Version};
use cartwheel_segments::RecordKey;
use cartwheel_segments::hints::{holder_label, parse_hint_object};

use crate::hints_api::{StoredHints, Whose};
use breaker::{Breaker, Guarded};
use dots::Dots;
use inbox::Inboxes;
use read::Reads;
use repeats::Repeats;

/// What the bucket knows of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BucketFound {
    /// Everything that the homes' segments and hints say, merged. What a home had only in its memory or log is
    /// not in it.
    pub(crate) container: Container<Version>,
    /// When the newest object consulted was written, in milliseconds since 1970; 0 if there is none.
    pub(crate) as_of_ms: u64,
}

/// Why the bucket could not stand in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LastResortError {
    /// Too much is under way, or the bucket failed often just now. Nothing was sent.
    #[error("the bucket is not asked just now")]
    Busy,
    /// The bucket did not do its part. A write may become visible all the same.
    #[error("the bucket could not stand in: {0}")]
    Unreachable(String),
}

/// The replica of last resort; one for each gateway.
#[derive(Debug)]
pub(crate) struct LastResort {
    reads: Arc<Reads>,
    inboxes: Arc<Inboxes>,
    dots: Dots,
    repeats: Repeats,
    bucket: SharedBucket,
}

impl LastResort {
    /// Asks the bucket for nothing yet.
    pub(crate) fn new(bucket: SharedBucket, seams: Seams) -> Self {
        let breaker = Breaker::new();
        // Many reads for one answer: one that fails for the moment is no reason to refuse a write.
        let bucket = PatientBucket::around(bucket);
        let bucket: SharedBucket = Arc::new(Guarded::new(bucket, Arc::clone(&breaker)));
        let dots = Dots::new(seams.clone());
        let nonce = format!("{:016x}", seams.random.next_u64());
        let label = holder_label(&dots.actor().node, dots::EPOCH, &nonce);
        let listed = Arc::clone(&bucket);
        let reads = Reads::new(Arc::clone(&bucket), Arc::clone(&breaker));
        let inboxes = Inboxes::new(bucket, seams, Arc::clone(&reads), breaker, label);
        Self { reads, inboxes, dots, repeats: Repeats::default(), bucket: listed }
    }

    /// All hints in the bucket, for people: for whom and by whom.
    ///
    /// # Errors
    /// [`LastResortError`].
    pub(crate) async fn stored_hints(
        &self,
        deadline: Instant,
    ) -> Result<BTreeMap<Whose, StoredHints>, LastResortError> {
        let late = || LastResortError::Unreachable("it did not list the hints in time".to_owned());
        let listed = tokio::time::timeout_at(deadline, list_all(&*self.bucket, "hints/")).await;
        let objects = listed.map_err(|_| late())?.map_err(|e| LastResortError::Unreachable(e.to_string()))?;
        let mut stored: BTreeMap<Whose, StoredHints> = BTreeMap::new();
        for object in objects {
            let Some(name) = parse_hint_object(&object.key) else { continue };
            let kept = stored.entry((name.home, name.holder)).or_default();
            kept.oldest_ms =
                if kept.objects == 0 { u64::MAX } else { kept.oldest_ms }.min(object.modified_ms);
            kept.objects += 1;
            kept.bytes += object.size;
        }
        Ok(stored)
    }

    /// What the homes' segments and hints in the bucket know of the key. `homes` are all homes of the key.
    ///
    /// # Errors
    /// [`LastResortError`]; also if a single home can't be seen whole.
    pub(crate) async fn read(
        &self,
        homes: &[NodeId],
        namespace: &Namespace,
        key: &Key,
        hash: KeyHash,
        deadline: Instant,
    ) -> Result<BucketFound, LastResortError> {
        self.reads.read(homes, &RecordKey::new(hash, namespace, key), deadline).await
    }

    /// A dot of this gateway's own actor for the key; never the same one twice (P3).
    pub(crate) fn next_dot(&self, hash: KeyHash, known: &Container<Version>, context: &Clock) -> Dot {
        self.dots.next(hash, known, context)
    }

    /// The write that this request was when it came before, whatever came of it.
    pub(crate) fn repeated(&self, hash: KeyHash, request: u128) -> Option<(Dot, Record)> {
        self.repeats.find(hash, request)
    }

    /// Remembers a write by its request, before it is made; gives what the request is.
    pub(crate) fn remember(&self, hash: KeyHash, request: u128, write: (Dot, Record)) -> (Dot, Record) {
        self.repeats.remember(hash, request, write)
    }

    /// Puts the record into the inbox of every home in `homes`. Answers with how many hold it once at least
    /// `needed` do; the rest goes on in the background until the deadline. The next read here sees it.
    ///
    /// # Errors
    /// [`LastResortError`], if `needed` can't be reached by `deadline`.
    pub(crate) async fn write(
        &self,
        homes: &[NodeId],
        record: &Record,
        hash: KeyHash,
        needed: usize,
        deadline: Instant,
    ) -> Result<usize, LastResortError> {
        self.inboxes.write(homes, record, hash, needed, deadline).await
    }
}
