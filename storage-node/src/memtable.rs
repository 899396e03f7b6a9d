//! The memtable: records since the last flush, sorted as a segment will be. Plain memory, never a cache:
//! what is here is nowhere else but in the log.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_core::hash::KeyHash;
use cartwheel_core::merkle::{LeafDeltas, Tree};
use cartwheel_core::quorum::Durability;

pub(crate) use cartwheel_segments::RecordKey;

/// One key's entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The record's bytes.
    pub(crate) record: Bytes,
    /// Does it hold all that this node knows of the key, so that no segment need be read?
    pub(crate) complete: bool,
}

/// Called when the memtable is in the bucket, or when it is clear that it can't be for now, with what is reached.
pub(crate) type Flushed = Box<dyn FnOnce(Durability) + Send>;

/// A memtable.
#[derive(Default)]
pub(crate) struct Memtable {
    entries: BTreeMap<RecordKey, Entry>,
    bytes: usize,
    /// When the first record came in.
    since: Option<Instant>,
    /// Some of its records are older than that: an earlier process acknowledged them.
    pub(crate) replayed: bool,
    /// The log file that its records are in.
    pub(crate) log_number: u64,
    /// Once it is closed: what has changed in the node's Merkle tree since the one before it was, if that is known.
    pub(crate) leaves: Option<LeafDeltas>,
    /// And that tree, if somebody wanted it.
    pub(crate) tree: Option<Tree>,
}

impl std::fmt::Debug for Memtable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memtable").field("keys", &self.entries.len()).field("bytes", &self.bytes).finish()
    }
}

/// Bytes of an entry beside its name and record: map node, two handles and their allocations.
const ENTRY_OVERHEAD: usize = 160;

impl Memtable {
    pub(crate) fn new(log_number: u64) -> Self {
        Self { log_number, ..Self::default() }
    }

    pub(crate) fn get(&self, key: &RecordKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(crate) fn insert(&mut self, key: RecordKey, entry: Entry) {
        let name = key.name.len();
        self.since.get_or_insert_with(Instant::now);
        self.bytes += entry.record.len();
        match self.entries.insert(key, entry) {
            Some(old) => self.bytes -= old.record.len(),
            None => self.bytes += name + ENTRY_OVERHEAD,
        }
    }

    /// How many keys have this hash.
    pub(crate) fn holds(&self, hash: KeyHash) -> usize {
        self.range(hash, hash, None).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the first record came in; `None` if there is none.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RecordKey, &Entry)> {
        self.entries.iter()
    }

    /// The entries after `after` (or from `first` on) up to hash `last`.
    pub(crate) fn range(
        &self,
        first: KeyHash,
        last: KeyHash,
        after: Option<&RecordKey>,
    ) -> impl Iterator<Item = (&RecordKey, &Entry)> {
        let start = match after {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Included(RecordKey { hash: first, name: Bytes::new() }),
        };
        self.entries.range((start, Bound::Unbounded)).take_while(move |(key, _)| key.hash <= last)
    }
}
