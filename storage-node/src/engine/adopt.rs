//! Segments that come to a running engine: late flushes of its node, and what it borrows from others.

use std::sync::Arc;

use cartwheel_core::clock_index::Known;
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Brief;

use super::{Engine, Incoming};
use crate::memtable::RecordKey;
use crate::segments::{Clocks, Segment, SegmentError};

impl Engine {
    /// Takes up a segment of this node that was found while it runs.
    ///
    /// # Errors
    /// [`SegmentError`]; it is not read then, no manifest names it, and it can be taken up again. Deletions may have come
    /// back from their graves, and the index may know of records that can't be read yet.
    pub(crate) async fn adopt(&self, segment: Arc<Segment>) -> Result<(), SegmentError> {
        let clocks = segment.clocks(&self.index_bucket).await?;
        self.exhume_all(&clocks).await?;
        loop {
            let number = self.index_number();
            self.learn(&segment, &clocks).await?;
            // An index that was begun anew meanwhile is loaded from what is there by then, and knows nothing of this.
            if self.push_by(&segment, number) {
                break;
            }
        }
        self.raise_all(&clocks)?;
        // Once more: a merge may have reaped a key just before it could see that this segment holds it.
        let exhumed = self.exhume_all(&clocks).await;
        if exhumed.is_err() {
            self.segments.replace(std::slice::from_ref(&segment), Vec::new());
        }
        exhumed
    }

    /// Takes up a segment that is borrowed, in the place of `instead` if that is the same object with fewer ranges. Gives
    /// how many records it has that count. Its clock column is read once.
    ///
    /// # Errors
    /// [`SegmentError`]; it is to be taken up again. It is read all the same: the index may know of what it holds, and
    /// must not say that something was seen which can't be read here, for then nobody would send it.
    pub(crate) async fn take_up(
        &self,
        segment: &Arc<Segment>,
        instead: Option<&Arc<Segment>>,
    ) -> Result<u64, SegmentError> {
        let clocks = segment.clocks(&self.index_bucket).await?;
        self.exhume_all(&clocks).await?;
        self.half_taken_up.lock().insert(segment.object.clone());
        let old = instead.map(std::slice::from_ref).unwrap_or_default();
        // Where a merge has taken the old one away, the new one stands for itself.
        if old.is_empty() || !self.segments.replace(old, vec![Arc::clone(segment)]) {
            self.segments.push(Arc::clone(segment));
        }
        self.learn(segment, &clocks).await?;
        let records = self.raise_all(&clocks)?;
        self.exhume_all(&clocks).await?;
        self.half_taken_up.lock().remove(&segment.object);
        Ok(records)
    }

    /// Index and memory learn what a segment holds.
    async fn learn(&self, segment: &Arc<Segment>, clocks: &Clocks) -> Result<(), SegmentError> {
        self.index_all(clocks.again().map_err(super::damaged)?).await?;
        // What memory believed to be all of a key before the index knew better.
        for entry in clocks.again().map_err(super::damaged)? {
            self.add_to_memory(segment, entry.map_err(super::damaged)?.0).await?;
        }
        Ok(())
    }

    async fn exhume_all(&self, clocks: &Clocks) -> Result<(), SegmentError> {
        for entry in clocks.again().map_err(super::damaged)? {
            let (hash, brief) = entry.map_err(super::damaged)?;
            self.exhume_unless_in(hash, &brief).await?;
        }
        Ok(())
    }

    /// Cached rows of these keys are not all there is any more; how many keys there are.
    fn raise_all(&self, clocks: &Clocks) -> Result<u64, SegmentError> {
        let mut records = 0;
        for entry in clocks.again().map_err(super::damaged)? {
            self.rows.raise(entry.map_err(super::damaged)?.0);
            records += 1;
        }
        Ok(records)
    }

    /// Takes up a grave, in the place of `instead` if that is the same object with fewer ranges.
    ///
    /// # Errors
    /// [`SegmentError`]; it can be taken up again.
    pub(crate) async fn take_up_grave(
        &self,
        grave: &Arc<Segment>,
        instead: Option<&Arc<Segment>>,
    ) -> Result<(), SegmentError> {
        grave.meta(self.graves.segments.bucket()).await?;
        self.half_taken_up.lock().insert(grave.object.clone());
        let old = instead.map(std::slice::from_ref).unwrap_or_default();
        // From here on writes of unknown keys look into it.
        if old.is_empty() || !self.graves.segments.replace(old, vec![Arc::clone(grave)]) {
            self.graves.segments.push(Arc::clone(grave));
        }
        self.exhume_what_is_known(grave).await?;
        self.half_taken_up.lock().remove(&grave.object);
        Ok(())
    }

    /// Was this object begun to be taken up, and not brought to an end?
    pub(crate) fn is_half_taken_up(&self, object: &str) -> bool {
        self.half_taken_up.lock().contains(object)
    }

    /// Whatever the index has learnt of a key that lies in a grave, from a log file that was not deleted, a segment that
    /// was put late, or one beside the merge that reaped the key, may be older than the deletion.
    pub(super) async fn exhume_what_is_known(&self, grave: &Segment) -> Result<(), SegmentError> {
        for entry in grave.clocks(&self.index_bucket).await? {
            let (hash, buried) = entry.map_err(super::damaged)?;
            let (Known::All(known) | Known::AtLeast(known)) = self.tables.read().index.get(hash);
            if !known.seen().is_empty() && !known.includes(&buried) {
                self.exhume(hash).await?;
            }
        }
        tokio::task::yield_now().await;
        Ok(())
    }

    /// Brings deletions back into memory that somebody who says `brief` of the key has not seen.
    async fn exhume_unless_in(&self, hash: KeyHash, brief: &Container<Brief>) -> Result<(), SegmentError> {
        if self.graves.may_hold(hash)
            && self.graves.find(hash).await?.iter().any(|buried| !brief.includes(&buried.container))
        {
            self.exhume(hash).await?;
        }
        Ok(())
    }

    /// What memory holds of a key it believes to be all; now a segment has more.
    async fn add_to_memory(&self, segment: &Arc<Segment>, hash: KeyHash) -> Result<(), SegmentError> {
        let keys: Vec<RecordKey> = {
            let tables = self.tables.read();
            let held = tables.memtables().flat_map(|table| table.range(hash, hash, None));
            held.map(|(key, _)| key.clone()).collect()
        };
        for key in keys {
            let container = self.segments.read_in(std::slice::from_ref(segment), &key, None).await?;
            let Some(record) = key.record(container) else { continue };
            let bytes = record.encode();
            let mut tables = self.tables.write();
            let known = tables.index.get(hash);
            let incoming = Incoming::new(hash, &record, &bytes);
            self.apply(&mut tables, known, incoming, Durability::Memory, Box::new(|_| {}));
        }
        Ok(())
    }
}
