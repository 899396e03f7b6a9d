//! The row cache: what the segments together say of a key, as of a write sequence.
//!
//! moka holds clean data only, and an entry counts only while its sequence is the newest of its stripe: whatever
//! changes what segments say of a key raises that first. So a row that was read before the change and put after it is
//! never believed.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use moka::sync::Cache;
use parking_lot::RwLock;

use cartwheel_core::hash::KeyHash;

use crate::memtable::{Memtable, RecordKey};

/// Stripes of write sequences; a power of two.
const STRIPES: usize = 4096;
/// Bytes of a row beside its record and name: two handles, and the cache's own entry.
const ROW_OVERHEAD: usize = 320;

/// A row of the cache.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) sequence: u64,
    pub(super) record: Option<Bytes>,
    /// Is it the whole truth of the key, where memory holds nothing of it?
    pub(super) whole: bool,
}

/// The cache.
#[derive(Debug)]
pub(super) struct Rows {
    cache: RwLock<Cache<RecordKey, Row>>,
    sequences: Vec<AtomicU64>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Rows {
    /// An empty cache of about `bytes` bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let sequences = (0..STRIPES).map(|_| AtomicU64::new(0)).collect();
        Self { cache: RwLock::new(cache_of(bytes)), sequences, hits: 0.into(), misses: 0.into() }
    }

    fn stripe(&self, hash: KeyHash) -> &AtomicU64 {
        &self.sequences[usize::try_from(hash.0 % STRIPES as u128).unwrap_or(0)]
    }

    /// The write sequence of a key; read before what is to be cached.
    pub(super) fn sequence(&self, hash: KeyHash) -> u64 {
        self.stripe(hash).load(Ordering::Acquire)
    }

    /// What segments say of a key changes: rows cached until now count no longer.
    pub(super) fn raise(&self, hash: KeyHash) {
        self.stripe(hash).fetch_add(1, Ordering::AcqRel);
    }

    /// What segments say changes, of any key.
    pub(super) fn raise_every(&self) {
        for sequence in &self.sequences {
            sequence.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The row of a key, if nothing has made it old.
    pub(super) fn get(&self, key: &RecordKey, sequence: u64) -> Option<Row> {
        let row = self.cache.read().get(key).filter(|row| row.sequence == sequence)?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(row)
    }

    /// A row had to be read from segments.
    pub(super) fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Rows found, and rows that had to be read from segments, so far.
    pub(super) fn cache_use(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    pub(super) fn insert(&self, key: RecordKey, row: Row) {
        self.cache.read().insert(key, row);
    }

    /// Takes the rows of a memtable that was flushed, each as of its sequence; the cache keeps those that are read often.
    pub(super) fn warm(&self, table: &Memtable, sequences: &[u64]) {
        for ((key, entry), sequence) in table.iter().zip(sequences.iter().copied()) {
            if !entry.complete {
                continue;
            }
            self.insert(key.clone(), Row { sequence, record: Some(entry.record.clone()), whole: true });
        }
    }

    /// Bytes in the cache.
    pub(super) fn bytes(&self) -> u64 {
        self.cache.read().weighted_size()
    }

    /// Gives the cache another size, keeping what fits.
    pub(super) fn resize(&self, bytes: u64) {
        // Without the lock, for it takes a while; rows that are put meanwhile are read again.
        let cache = self.cache.read().clone();
        let resized = cache_of(bytes);
        let mut kept = 0;
        for (key, row) in cache.iter() {
            kept += u64::from(weight(&key, &row));
            if kept > bytes {
                break;
            }
            resized.insert((*key).clone(), row);
        }
        *self.cache.write() = resized;
    }
}

fn cache_of(bytes: u64) -> Cache<RecordKey, Row> {
    Cache::builder().max_capacity(bytes).weigher(weight).build()
}

fn weight(key: &RecordKey, row: &Row) -> u32 {
    let record = row.record.as_ref().map_or(0, Bytes::len);
    u32::try_from(record + key.name.len() + ROW_OVERHEAD).unwrap_or(u32::MAX)
}
