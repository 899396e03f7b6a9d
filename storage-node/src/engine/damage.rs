//! What was found to be damaged while it was read, and how the engine goes on without it. What is to be done about it is
//! decided in `quarantine`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use cartwheel_core::clock_index::ClockIndex;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::record::{Brief, Record};

use super::{Engine, Tables};
use crate::segments::{Segment, SegmentError};

/// The most keys with versions missing that are noted one by one; others are noted when they are read again.
const MAX_KEYS: usize = 1024;

/// What nobody has looked at yet.
#[derive(Debug, Default)]
pub(super) struct Noted {
    waiting: Mutex<Waiting>,
    rung: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Objects, and how large they should be.
    objects: BTreeMap<String, u64>,
    keys: BTreeSet<KeyHash>,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// An object can't be read right, or is not there.
    Object {
        /// Its name.
        object: String,
        /// Its size, bytes.
        bytes: u64,
    },
    /// The index knows of a version of this key that no segment holds.
    Key(KeyHash),
}

impl Engine {
    /// Notes what an error says of damage; others are passed over.
    pub(crate) fn note(&self, error: &SegmentError) {
        if let SegmentError::Incomplete { hash } = error {
            let mut waiting = self.noted.waiting.lock();
            if waiting.keys.len() < MAX_KEYS && waiting.keys.insert(*hash) {
                tracing::error!(%error, "something is missing");
            }
        } else if let Some(object) = error.damaged_object() {
            let Some(segment) = self.find(object) else { return };
            if self.noted.waiting.lock().objects.insert(segment.object.clone(), segment.bytes).is_none() {
                tracing::error!(%error, %object, "an object is damaged or gone");
            }
        }
        self.noted.rung.notify_one();
    }

    /// Notes a segment that is damaged and is not read here.
    pub(crate) fn note_late(&self, segment: &Segment) {
        self.noted.waiting.lock().objects.insert(segment.object.clone(), segment.bytes);
        self.noted.rung.notify_one();
    }

    /// Was this object found to be damaged, and nobody has looked at it yet?
    pub(crate) fn is_noted(&self, object: &str) -> bool {
        self.noted.waiting.lock().objects.contains_key(object)
    }

    /// Something that nobody has looked at yet.
    pub(crate) fn report(&self) -> Option<Report> {
        let waiting = self.noted.waiting.lock();
        let object = waiting.objects.first_key_value();
        let object = object.map(|(object, bytes)| Report::Object { object: object.clone(), bytes: *bytes });
        object.or_else(|| waiting.keys.first().map(|hash| Report::Key(*hash)))
    }

    /// That is looked at.
    pub(crate) fn clear(&self, report: &Report) {
        let mut waiting = self.noted.waiting.lock();
        match report {
            Report::Object { object, .. } => drop(waiting.objects.remove(object)),
            Report::Key(hash) => drop(waiting.keys.remove(hash)),
        }
    }

    /// Has whoever waits for something to be noted look again.
    pub(crate) fn ring(&self) {
        self.noted.rung.notify_one();
    }

    /// Waits until something is noted.
    pub(crate) async fn rung(&self) {
        self.noted.rung.notified().await;
    }

    /// The segment or grave of this name that is read here.
    pub(crate) fn find(&self, object: &str) -> Option<Arc<Segment>> {
        let (segments, graves) = (self.segments.all(), self.graves.segments.all());
        segments.iter().chain(graves.iter()).find(|segment| segment.object == object).cloned()
    }

    /// Is this a grave that is read here?
    pub(crate) fn is_grave(&self, segment: &Arc<Segment>) -> bool {
        self.graves.segments.all().iter().any(|grave| Arc::ptr_eq(grave, segment))
    }

    /// How often the index was begun anew.
    pub(super) fn index_number(&self) -> u64 {
        self.tables.read().index_number
    }

    /// Adds a segment that the index of this number knows; `false` if there is another one by now.
    pub(super) fn push_by(&self, segment: &Arc<Segment>, number: u64) -> bool {
        let tables = self.tables.write();
        let is_same = tables.index_number == number;
        if is_same {
            self.segments.push(Arc::clone(segment));
        }
        is_same
    }

    /// Reads what is kept of a segment in memory from the bucket again.
    pub(crate) fn reopen(&self, segment: &Arc<Segment>) {
        let among = if self.is_grave(segment) { &self.graves.segments } else { &self.segments };
        let (object, known) = (segment.object.clone(), segment.known().cloned());
        let fresh = among.open(object, segment.bytes, known, segment.born);
        among.replace(std::slice::from_ref(segment), vec![fresh]);
    }

    /// Goes on without a segment: the index begins anew with what memory holds, and is to be loaded. Nothing that was read
    /// before counts any more. `None`: every segment stays, but the index can't be relied on.
    pub(crate) fn give_up(&self, segment: Option<&Arc<Segment>>) {
        {
            let mut tables = self.tables.write();
            if let Some(segment) = segment {
                // It may have been merged a moment ago.
                self.segments.replace(std::slice::from_ref(segment), Vec::new());
            }
            tables.index = index_of_memory(&tables);
            tables.index_number += 1;
        }
        self.rows.raise_every();
        self.want_tree();
    }

    /// Goes on without a grave.
    pub(crate) fn give_up_grave(&self, grave: &Arc<Segment>) {
        self.graves.segments.replace(std::slice::from_ref(grave), Vec::new());
    }
}

/// An index that knows what memory holds; all else is not known.
fn index_of_memory(tables: &Tables) -> ClockIndex {
    let mut index = ClockIndex::default();
    for (key, entry) in tables.memtables().flat_map(|table| table.iter()) {
        // Bytes that this process encoded or verified when they came in.
        if let Ok(record) = Record::decode(&entry.record) {
            index.join(key.hash, record.container.map(|v| Brief::from(v)), false);
        }
    }
    index
}
