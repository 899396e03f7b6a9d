//! The clock index: for each key its clock and the dots of its siblings, in memory, so that accepting a write
//! never reads the bucket.
//!
//! After a restart it fills in the background from the clock columns of the segments. Until then an entry may
//! know only part of its key; such entries are marked and not trusted for decisions.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use bytes::Bytes;

use cartwheel_core::codec::Reader;
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::record::{Brief, decode_brief, encode_brief};
use cartwheel_segments::Identity;

#[derive(Debug)]
struct Entry {
    brief: Box<[u8]>,
    full: bool,
}

/// What the index says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// All of it; an empty container if the node has never heard of the key.
    All(Container<Brief>),
    /// At least this much.
    AtLeast(Container<Brief>),
}

/// The index.
#[derive(Debug, Default)]
pub(crate) struct ClockIndex {
    entries: HashMap<KeyHash, Entry, BuildHasherDefault<Identity>>,
    bytes: usize,
    complete: bool,
}

impl ClockIndex {
    /// What is known of a key.
    pub(crate) fn get(&self, hash: KeyHash) -> Known {
        match self.entries.get(&hash) {
            Some(entry) if entry.full || self.complete => Known::All(decode(&entry.brief)),
            Some(entry) => Known::AtLeast(decode(&entry.brief)),
            None if self.complete => Known::All(Container::default()),
            None => Known::AtLeast(Container::default()),
        }
    }

    /// Replaces what is known of a key.
    pub(crate) fn set(&mut self, hash: KeyHash, known: &Known) {
        let (brief, full) = match known {
            Known::All(brief) => (brief, true),
            Known::AtLeast(brief) => (brief, false),
        };
        let mut bytes = Vec::with_capacity(64);
        encode_brief(&mut bytes, brief);
        self.bytes += bytes.len();
        let entry = Entry { brief: bytes.into_boxed_slice(), full };
        if let Some(old) = self.entries.insert(hash, entry) {
            self.bytes -= old.brief.len();
        }
    }

    /// Adds what a segment or a full read says. `full` if that was all there is.
    pub(crate) fn join(&mut self, hash: KeyHash, brief: Container<Brief>, full: bool) {
        let merged = match self.get(hash) {
            Known::All(mut known) => {
                known.sync(brief);
                Known::All(known)
            }
            Known::AtLeast(mut known) => {
                known.sync(brief);
                if full { Known::All(known) } else { Known::AtLeast(known) }
            }
        };
        self.set(hash, &merged);
    }

    /// From now on every entry is all there is, and what has no entry does not exist.
    pub(crate) fn set_complete(&mut self) {
        self.complete = true;
    }

    /// Is it complete?
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// How many keys it knows.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// About how much memory it takes: clocks, their allocations, and the table at its usual load.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.entries.len() * (16 + size_of::<(KeyHash, Entry)>() * 8 / 7)
    }
}

fn decode(bytes: &[u8]) -> Container<Brief> {
    // The bytes are this process's own; they can only be what `set` encoded.
    decode_brief(&mut Reader::new(Bytes::copy_from_slice(bytes))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use cartwheel_core::clock::{Actor, Clock, Dot};

    use super::*;

    fn brief(n: u64) -> Container<Brief> {
        let dot = Dot { actor: Actor::parse("a.1").unwrap(), n };
        Container::delta(&Clock::new(), dot, Brief { deleted: false, expires_ms: 0, request: 0, size: 0 })
    }

    #[test]
    fn absence_is_certain_only_once_complete() {
        let mut index = ClockIndex::default();
        assert_eq!(index.get(KeyHash(1)), Known::AtLeast(Container::default()));
        index.join(KeyHash(1), brief(1), false);
        assert_eq!(index.get(KeyHash(1)), Known::AtLeast(brief(1)));
        index.set_complete();
        assert_eq!(index.get(KeyHash(1)), Known::All(brief(1)));
        assert_eq!(index.get(KeyHash(2)), Known::All(Container::default()));
    }

    #[test]
    fn a_full_read_joins_what_came_meanwhile() {
        let mut index = ClockIndex::default();
        index.join(KeyHash(1), brief(2), false);
        index.join(KeyHash(1), brief(1), true);
        let Known::All(known) = index.get(KeyHash(1)) else { panic!("not full") };
        assert_eq!(known.siblings().len(), 2);
    }
}
