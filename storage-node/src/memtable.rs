//! The memtable: records since the last flush, sorted as a segment will be. Plain memory, never a cache:
//! what is here is nowhere else but in the log.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};

use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::record::{Record, Version};

/// What records are sorted by: the hash, then namespace and key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RecordKey {
    /// The key's position on the circle.
    pub(crate) hash: KeyHash,
    /// Length of the namespace, namespace, key.
    pub(crate) name: Bytes,
}

impl RecordKey {
    pub(crate) fn new(hash: KeyHash, namespace: &Namespace, key: &Key) -> Self {
        let (ns, key) = (namespace.as_bytes(), key.as_bytes());
        let mut name = BytesMut::with_capacity(1 + ns.len() + key.len());
        name.put_u8(u8::try_from(ns.len()).unwrap_or(u8::MAX));
        name.put_slice(ns);
        name.put_slice(key);
        Self { hash, name: name.freeze() }
    }

    /// The record of this key with what is known of it; `None` if that is nothing.
    pub(crate) fn record(&self, container: Container<Version>) -> Option<Record> {
        if container.seen().is_empty() {
            return None;
        }
        let length = usize::from(*self.name.first()?);
        let namespace = Namespace::new(self.name.get(1..=length)?).ok()?;
        let key = Key::new(self.name.slice(1 + length..)).ok()?;
        Some(Record { namespace, key, container })
    }
}

/// One key's entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The record's bytes.
    pub(crate) record: Bytes,
    /// Does it hold all that this node knows of the key, so that no segment need be read?
    pub(crate) complete: bool,
}

/// Called when the memtable is in the bucket.
pub(crate) type Flushed = Box<dyn FnOnce() + Send>;

/// A memtable.
#[derive(Default)]
pub(crate) struct Memtable {
    entries: BTreeMap<RecordKey, Entry>,
    bytes: usize,
    /// The log file that its records are in.
    pub(crate) log_number: u64,
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
        self.bytes += entry.record.len();
        match self.entries.insert(key, entry) {
            Some(old) => self.bytes -= old.record.len(),
            None => self.bytes += name + ENTRY_OVERHEAD,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
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
