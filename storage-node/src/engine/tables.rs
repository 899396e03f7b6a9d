//! What the engine decides on under its one lock: memtables, clock index, and the requests carried out lately.

use std::sync::Arc;

use bytes::Bytes;

use cartwheel_core::clock::Actor;
use cartwheel_core::clock_index::{ClockIndex, Known};
use cartwheel_core::container::{Container, Sibling};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::merkle::LeafDeltas;
use cartwheel_core::record::{Brief, Record, Version};

use crate::memtable::{Entry, Memtable, RecordKey};
use crate::requests::Requests;
use crate::segments::holds_all;

/// A record on its way in.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    key: RecordKey,
    record: &'a Record,
    /// Its encoding.
    pub(super) bytes: &'a Bytes,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(hash: KeyHash, record: &'a Record, bytes: &'a Bytes) -> Self {
        Self { key: RecordKey::new(hash, &record.namespace, &record.key), record, bytes }
    }
}

/// Memtables, clock index and request ids: what is decided under one lock.
pub(super) struct Tables {
    /// Who mints.
    pub(super) actor: Actor,
    pub(super) active: Memtable,
    /// Being flushed.
    pub(super) frozen: Option<Arc<Memtable>>,
    pub(super) index: ClockIndex,
    /// How often the index was begun anew.
    pub(super) index_number: u64,
    /// What was minted lately.
    pub(super) requests: Requests,
    /// Set when the process ends: what came in later would be on no disk and in no segment.
    pub(super) closed: bool,
}

impl Tables {
    /// The memtables, oldest first.
    pub(super) fn memtables(&self) -> impl Iterator<Item = &Memtable> {
        self.frozen.as_deref().into_iter().chain(std::iter::once(&self.active))
    }

    /// What has changed in the Merkle tree since the last call; `None` while the tree, or what came before, is not known.
    pub(super) fn take_leaf_deltas(&mut self) -> Option<LeafDeltas> {
        if self.index.is_complete() { self.index.take_tree_changes() } else { None }
    }

    pub(super) fn unflushed_bytes(&self) -> usize {
        self.memtables().map(Memtable::bytes).sum()
    }

    /// Brings index and memtable up to a record; its bytes are kept as they are where they say it all.
    /// `known` is what the index says of the key.
    pub(super) fn take_in(&mut self, known: Known, incoming: Incoming<'_>) {
        let Incoming { key, record, bytes } = incoming;
        let brief = record.container.map(|v| Brief::from(v));
        let (mut live, full) = match known {
            Known::All(live) => (live, true),
            Known::AtLeast(live) => (live, false),
        };
        live.sync(brief);
        let entry = if full && live.same_as(&record.container) {
            Entry { record: bytes.clone(), complete: true }
        } else {
            self.merge(&key, record, full.then_some(&live))
        };
        self.index.set(key.hash, &if full { Known::All(live) } else { Known::AtLeast(live) });
        self.active.insert(key, entry);
    }

    /// The entry for a record that is not all there is of its key.
    fn merge(&self, key: &RecordKey, record: &Record, live: Option<&Container<Brief>>) -> Entry {
        let mut merged = self.held(key);
        merged.sync(record.container.clone());
        let whole = live.and_then(|live| whole(&merged, live));
        let complete = whole.is_some();
        // Without all live siblings the entry must not claim to have seen them: a record that has seen a dot
        // and does not hold it says that the version was replaced.
        let container = whole.unwrap_or(merged);
        let record = Record { namespace: record.namespace.clone(), key: record.key.clone(), container };
        Entry { record: record.encode(), complete }
    }

    /// All that the memtables hold of a key.
    pub(super) fn held(&self, key: &RecordKey) -> Container<Version> {
        let mut merged = Container::default();
        for entry in self.memtables().filter_map(|table| table.get(key)) {
            // Bytes that this process encoded or verified when they came in.
            if let Ok(record) = Record::decode(&entry.record) {
                merged.sync(record.container);
            }
        }
        merged
    }
}

/// The whole truth of a key: the versions among `held` that are live, with all that was seen. `None` if one
/// that is live is not among them.
pub(super) fn whole(held: &Container<Version>, live: &Container<Brief>) -> Option<Container<Version>> {
    if !holds_all(held, live) {
        return None;
    }
    let is_live = |s: &&Sibling<Version>| live.siblings().binary_search_by(|l| l.dot.cmp(&s.dot)).is_ok();
    let siblings = held.siblings().iter().filter(is_live).cloned().collect();
    Some(Container::from_parts(live.seen().clone(), siblings))
}
