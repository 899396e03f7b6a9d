//! Changes to what lies in the bucket, seen from memory: the index is loaded from it, merged segments take the place of
//! others.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_core::clock_index::Known;
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::merkle::leaf;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Brief, Record, Version};

use super::{Engine, Incoming};
use crate::memtable::{Memtable, RecordKey};
use crate::segments::{Clocks, Segment, SegmentError};

/// Keys that go into or out of the index under one lock.
const AT_ONCE: usize = 256;

/// A deletion that a merge has laid into a grave.
#[derive(Debug, Clone)]
pub(crate) struct Reaped {
    pub(crate) key: RecordKey,
    pub(crate) record: Record,
}

impl Engine {
    /// Fills the clock index from the segments that were there at the start; then it is complete.
    ///
    /// # Errors
    /// [`SegmentError`]; what was read stays. After damage it is to be begun anew.
    pub(crate) async fn load_index(&self, segments: &[Arc<Segment>]) -> Result<(), SegmentError> {
        self.go_on_loading(segments, &mut 0).await
    }

    /// As [`Engine::load_index`], after the first `done` segments, which then are more.
    pub(crate) async fn go_on_loading(
        &self,
        segments: &[Arc<Segment>],
        done: &mut usize,
    ) -> Result<(), SegmentError> {
        self.graves.load().await.inspect_err(|error| self.note(error))?;
        let mut damage = None;
        for segment in segments.iter().skip(*done) {
            match self.index(segment).await {
                // All that is damaged, at one go.
                Err(error) if error.damaged_object().is_some() => {
                    self.note(&error);
                    damage = Some(error);
                }
                indexed => indexed?,
            }
            *done += 1;
        }
        if let Some(error) = damage {
            return Err(error);
        }
        for grave in self.graves.segments.all().iter() {
            self.exhume_what_is_known(grave).await.inspect_err(|error| self.note(error))?;
        }
        self.tables.write().index.set_complete();
        Ok(())
    }

    /// What a segment's clock column says.
    async fn index(&self, segment: &Segment) -> Result<(), SegmentError> {
        self.index_all(segment.clocks(&self.index_bucket).await?).await
    }

    /// As [`Engine::index`], of a column that was read.
    pub(super) async fn index_all(&self, mut clocks: Clocks) -> Result<(), SegmentError> {
        loop {
            let chunk = clocks.by_ref().take(AT_ONCE).collect::<Result<Vec<_>, _>>();
            let chunk: Vec<(KeyHash, Container<Brief>)> = chunk.map_err(super::damaged)?;
            if chunk.is_empty() {
                return Ok(());
            }
            {
                let mut tables = self.tables.write();
                for (hash, brief) in chunk {
                    tables.index.join(hash, brief, false);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Puts merged segments in the place of `merged`, and forgets the deletions that the merge has laid into graves,
    /// which are there already; those whose keys were written since, or lie elsewhere too, are kept in memory instead.
    /// `false`, and nothing is changed, if the segments are not what they were.
    pub(crate) fn swap(&self, merged: &[Arc<Segment>], with: Vec<Arc<Segment>>, reaped: &[Reaped]) -> bool {
        for chunk in reaped.chunks(AT_ONCE) {
            let mut tables = self.tables.write();
            // Under the lock: a flush shows its segment before it lets go of its memtable.
            let all = self.segments.all();
            let others = all.iter().filter(|segment| !merged.iter().any(|m| Arc::ptr_eq(m, segment)));
            let others: Vec<&Arc<Segment>> = others.collect();
            for Reaped { key, record } in chunk {
                let known = tables.index.get(key.hash);
                let elsewhere = others.iter().any(|segment| segment.may_hold(key.hash));
                let unchanged = matches!(&known, Known::All(known) if known.same_as(&record.container));
                let unwritten = tables.memtables().all(|table| table.get(key).is_none());
                if unchanged && unwritten && !elsewhere {
                    tables.index.remove(key.hash);
                } else {
                    let bytes: Bytes = record.encode();
                    let incoming = Incoming::new(key.hash, record, &bytes);
                    self.apply(&mut tables, known, incoming, Durability::Memory, Box::new(|_| {}));
                }
            }
            drop(tables);
            for Reaped { key, .. } in chunk {
                self.rows.raise(key.hash);
            }
        }
        self.segments.replace(merged, with)
    }

    /// Waits until all that was taken in so far is in segments; `false` if the bucket does not take it.
    pub(crate) async fn flushed(&self) -> bool {
        let (sender, reached) = tokio::sync::oneshot::channel();
        {
            let tables = self.tables.read();
            let Some(table) = tables.memtables().filter(|table| !table.is_empty()).last() else {
                return true;
            };
            if self.bucket_fails() {
                return false;
            }
            let done = Box::new(move |reached| {
                // Nobody waits any more: no error.
                let _ = sender.send(reached == Durability::Bucket);
            });
            self.waiting.lock().push((table.log_number, done));
        }
        self.flush_now.notify_one();
        reached.await.unwrap_or(false)
    }

    /// Does this node hold all that `container` says of the key of this hash?
    pub(crate) fn includes(&self, hash: KeyHash, container: &Container<Version>) -> bool {
        let (Known::All(known) | Known::AtLeast(known)) = self.tables.read().index.get(hash);
        known.includes(container)
    }

    /// All that was taken in before this time is in segments; `None` if that can't be told, for something is from before
    /// this process.
    pub(crate) fn held_since(&self) -> Option<Instant> {
        let tables = self.tables.read();
        if tables.memtables().any(|table| table.replayed) {
            return None;
        }
        // Under the lock that writes are taken in under: whoever comes after it comes later.
        Some(tables.memtables().find_map(Memtable::since).unwrap_or_else(Instant::now))
    }

    /// Does this node hold the key of this hash in segments, fully known, dead at `now_ms`, with this leaf?
    pub(crate) fn is_dead_as(&self, hash: KeyHash, told: u64, now_ms: u64) -> bool {
        let tables = self.tables.read();
        let Known::All(known) = tables.index.get(hash) else { return false };
        leaf(hash, known.seen()) == told
            && !known.siblings().is_empty()
            && known.siblings().iter().all(|s| s.version.is_dead(now_ms))
            && tables.memtables().all(|table| table.holds(hash) == 0)
    }

    /// Are all siblings of the key of this hash deletions, as far as is known?
    pub(crate) fn is_dead(&self, hash: KeyHash) -> bool {
        let (Known::All(known) | Known::AtLeast(known)) = self.tables.read().index.get(hash);
        !known.siblings().is_empty() && known.siblings().iter().all(|s| s.version.deleted)
    }

    /// What the index says of a key.
    #[cfg(test)]
    pub(crate) fn known(&self, hash: KeyHash) -> Known {
        self.tables.read().index.get(hash)
    }

    /// Has this node never heard of the key of this hash, or forgotten it?
    pub(crate) fn knows_nothing_of(&self, hash: KeyHash) -> bool {
        matches!(self.tables.read().index.get(hash), Known::All(known) if known.seen().is_empty())
    }

    /// The dead keys of one shard of the index, with their leaves. Values that have expired count as deleted from now
    /// on, so that merges drop them.
    pub(crate) fn dead_in(&self, shard: u32, now_ms: u64) -> Vec<(KeyHash, u64)> {
        // Writes wait only while expired values are marked.
        let dead = self.tables.read().index.dead_in(shard, now_ms);
        let expired = |known: &Known| match known {
            Known::All(known) => {
                let siblings = known.siblings();
                siblings.iter().all(|s| s.version.is_dead(now_ms))
                    && siblings.iter().any(|s| !s.version.deleted)
            }
            Known::AtLeast(_) => false,
        };
        for (hash, _) in &dead {
            if !expired(&self.tables.read().index.get(*hash)) {
                continue;
            }
            let mut tables = self.tables.write();
            let known = tables.index.get(*hash);
            if let Known::All(known) = known.clone()
                && expired(&Known::All(known.clone()))
            {
                let buried = known.map(|brief| Brief { deleted: true, size: 0, ..*brief });
                tables.index.set(*hash, &Known::All(buried));
            }
        }
        dead.into_iter().map(|(hash, seen)| (hash, leaf(hash, &seen))).collect()
    }
}
