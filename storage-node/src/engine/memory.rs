//! Figures of an engine: what its memory is taken up by, and how much of it caches may have.

use tokio::time::Instant;

use cartwheel_core::clock_index::GroupFigures;
use cartwheel_core::compaction::{Amount, GROUPS};

use super::Engine;
use crate::memtable::Memtable;

/// Bytes that a record takes in segments beside what the index counts; rather too many than too few.
const RECORD_OVERHEAD: u64 = 80;

/// Bytes that the engine holds, by what for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Held {
    /// The clock index.
    pub(crate) index: u64,
    /// Filters and indexes of segments and graves.
    pub(crate) metadata: u64,
    /// Records that are in no segment yet.
    pub(crate) unflushed: u64,
    /// Records on their way to the disk.
    pub(crate) log_queue: u64,
    /// The row and the block cache.
    pub(crate) caches: u64,
}

/// Figures of an engine.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Figures {
    /// Keys in the clock index.
    pub(crate) keys: usize,
    /// Bytes of the clock index.
    pub(crate) index_bytes: usize,
    /// Does the index know every key?
    pub(crate) index_complete: bool,
    /// Keys not yet in the bucket.
    pub(crate) memtable_keys: usize,
    /// Bytes of memtables.
    pub(crate) memtable_bytes: usize,
    /// Segments in the bucket.
    pub(crate) segments: usize,
    /// Their bytes.
    pub(crate) segment_bytes: u64,
    /// Segments of deletions that are forgotten otherwise.
    pub(crate) graves: usize,
    /// Bytes in the row cache.
    pub(crate) row_cache_bytes: u64,
    /// Rows found in the row cache, and read from segments.
    pub(crate) row_cache_hits: u64,
    pub(crate) row_cache_misses: u64,
    /// Blocks found in the block cache, and read from the bucket.
    pub(crate) block_cache_hits: u64,
    pub(crate) block_cache_misses: u64,
    /// Bytes in the block cache.
    pub(crate) block_cache_bytes: u64,
}

impl Engine {
    /// What memory is taken up by.
    pub(crate) fn held(&self) -> Held {
        let metadata = [&self.segments, &self.graves.segments];
        let metadata =
            metadata.iter().flat_map(|s| s.all().to_vec()).map(|segment| segment.kept_bytes()).sum();
        let tables = self.tables.read();
        Held {
            index: tables.index.bytes() as u64,
            metadata,
            unflushed: tables.unflushed_bytes() as u64,
            log_queue: self.log.as_ref().map_or(0, |log| log.waiting_bytes() as u64),
            caches: self.rows.bytes() + self.segments.cached_bytes(),
        }
    }

    /// Since when the oldest record is not in the bucket; `None` if all are there. What an earlier process left in the log
    /// counts since it was read.
    pub(crate) fn unflushed_since(&self) -> Option<Instant> {
        self.tables.read().memtables().filter_map(Memtable::since).min()
    }

    /// Gives the caches another size, keeping what fits.
    pub(crate) fn resize_caches(&self, rows: u64, blocks: u64) {
        self.rows.resize(rows);
        self.segments.resize_cache(blocks);
    }

    /// What each group of partitions would take if every key were in one record.
    pub(crate) fn live(&self) -> [Amount; GROUPS as usize] {
        let tables = self.tables.read();
        let mut live = [Amount::default(); GROUPS as usize];
        for (group, amount) in (0..GROUPS).zip(&mut live) {
            let GroupFigures { keys, live_bytes, .. } = tables.index.group(group);
            *amount = Amount { bytes: live_bytes + keys * RECORD_OVERHEAD, records: keys };
        }
        live
    }

    /// Figures for people.
    pub(crate) fn figures(&self) -> Figures {
        let (row_cache_hits, row_cache_misses) = self.rows.cache_use();
        let (blocks_asked, block_cache_misses) = self.segments.cache_use();
        let tables = self.tables.read();
        Figures {
            keys: tables.index.len(),
            index_bytes: tables.index.bytes(),
            index_complete: tables.index.is_complete(),
            memtable_keys: tables.memtables().map(Memtable::len).sum(),
            memtable_bytes: tables.unflushed_bytes(),
            segments: self.segments.all().len(),
            segment_bytes: self.segments.all().iter().map(|segment| segment.bytes).sum(),
            graves: self.graves.segments.all().len(),
            row_cache_bytes: self.rows.bytes(),
            row_cache_hits,
            row_cache_misses,
            block_cache_hits: blocks_asked.saturating_sub(block_cache_misses),
            block_cache_misses,
            block_cache_bytes: self.segments.cached_bytes(),
        }
    }
}
