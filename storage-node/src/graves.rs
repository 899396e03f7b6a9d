//! Deletions that every home has forgotten otherwise.
//!
//! A tombstone that all homes hold is taken out of the segments and out of memory, and laid into a grave: a segment
//! that is looked at only before a key is believed new. So a copy of an older version that turns up late, from a hint, a
//! process thought dead or a log file that was not deleted, meets what has replaced it (P5), and a dot is never given
//! twice (P3). What stays in memory is a filter of 14 bits per key.

use std::sync::Arc;

use cartwheel_bucket::SharedBucket;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::record::Record;

use crate::segments::{Segment, SegmentError, Segments};

/// Bytes of the cache in front of graves.
const CACHE_BYTES: u64 = 1024 * 1024;

/// The graves of a node.
#[derive(Debug)]
pub(crate) struct Graves {
    pub(crate) segments: Segments,
    hash_seed: u64,
}

impl Graves {
    pub(crate) fn new(bucket: SharedBucket, hash_seed: u64) -> Self {
        Self { segments: Segments::new(bucket, CACHE_BYTES), hash_seed }
    }

    /// Opens a grave without adding it.
    pub(crate) fn open(&self, entry: SegmentEntry) -> Arc<Segment> {
        self.segments.open(entry.object.clone(), entry.bytes, Some(entry), None)
    }

    /// May a key with this hash lie here? `false` is certain.
    pub(crate) fn may_hold(&self, hash: KeyHash) -> bool {
        !removed(Rule::AskGraves) && self.segments.all().iter().any(|grave| grave.may_hold(hash))
    }

    /// The deletions of keys with this hash.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub(crate) async fn find(&self, hash: KeyHash) -> Result<Vec<Record>, SegmentError> {
        self.segments.find(hash, self.hash_seed).await
    }

    /// Reads the filters, so that [`Graves::may_hold`] is exact but for one in a thousand.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub(crate) async fn load(&self) -> Result<(), SegmentError> {
        for grave in self.segments.all().iter() {
            grave.meta(self.segments.bucket()).await?;
        }
        Ok(())
    }
}
