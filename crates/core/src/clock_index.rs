//! The clock index: for each key its clock and the dots of its siblings, in little memory, so that accepting a
//! write never reads the bucket.
//!
//! After a restart it fills in the background from the clock columns of the segments. Until then an entry may
//! know only part of its key; such entries are marked and not trusted for decisions.
//!
//! Keys are spread over shards by the first byte of their hash, so a partition is a contiguous group of shards or
//! a part of one. Each grows by itself: the whole is never copied. The common key, with one sibling by one actor,
//! takes some 33 bytes, plus what its shard's table and spare room take.

mod actors;
mod packed;
mod shard;
#[cfg(test)]
mod tests;

use crate::clock::Clock;
use crate::container::Container;
use crate::hash::KeyHash;
use crate::merkle::{LeafDeltas, Span, Tree, Watched, find, leaf};
use crate::record::Brief;

use actors::Actors;
use shard::{MAX_SHARD_BYTES, Name, Shard, ShardFull};

/// What the index says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// All of it; an empty container if the node has never heard of the key.
    All(Container<Brief>),
    /// At least this much.
    AtLeast(Container<Brief>),
}

/// Figures of a group of keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupFigures {
    /// Keys in the index.
    pub keys: u64,
    /// About how many bytes their newest records take in segments.
    pub live_bytes: u64,
    /// Keys whose siblings, one at least, are all deletions. Whether a sibling has ended by itself does not count.
    pub dead: u64,
}

impl GroupFigures {
    // A sibling may claim any size, so sums wrap: what was added can always be taken away again.
    fn add(&mut self, other: &Self) {
        self.keys = self.keys.wrapping_add(other.keys);
        self.live_bytes = self.live_bytes.wrapping_add(other.live_bytes);
        self.dead = self.dead.wrapping_add(other.dead);
    }

    fn subtract(&mut self, other: &Self) {
        self.keys = self.keys.wrapping_sub(other.keys);
        self.live_bytes = self.live_bytes.wrapping_sub(other.live_bytes);
        self.dead = self.dead.wrapping_sub(other.dead);
    }
}

/// A shard, and whether it could not keep all that it was told.
#[derive(Debug, Default)]
struct Slot {
    shard: Shard,
    /// It was full once: what it has no entry of, or part of, is not known.
    lossy: bool,
}

/// The index. A shard of 4 GiB is full: from then on it forgets a key rather than keep too little of it, and no
/// longer takes a key without an entry for one that does not exist.
#[derive(Debug)]
pub struct ClockIndex {
    /// One for each first byte of a hash.
    slots: Vec<Slot>,
    actors: Actors,
    complete: bool,
    /// The sums of all entries, changed with each of them.
    merkle: Watched,
}

impl Default for ClockIndex {
    fn default() -> Self {
        let slots = (0..Self::SHARDS).map(|_| Slot::default()).collect();
        Self { slots, actors: Actors::default(), complete: false, merkle: Watched::default() }
    }
}

impl ClockIndex {
    /// How many shards there are. The shard of a key is the top 8 bits of its hash.
    pub const SHARDS: u32 = 256;
    /// How many groups there are. The group of a key is the top 4 bits of its hash.
    pub const GROUPS: u32 = 16;

    /// What is known of a key.
    #[must_use]
    pub fn get(&self, hash: KeyHash) -> Known {
        let (at, name) = split(hash);
        let slot = &self.slots[at];
        let trusted = self.complete && !slot.lossy;
        match slot.shard.get(&name) {
            Some(packed) => {
                let brief = packed::unpack(packed, &self.actors);
                if trusted || packed::is_full(packed) { Known::All(brief) } else { Known::AtLeast(brief) }
            }
            None if trusted => Known::All(Container::default()),
            None => Known::AtLeast(Container::default()),
        }
    }

    /// Replaces what is known of a key.
    pub fn set(&mut self, hash: KeyHash, known: &Known) {
        self.set_within(hash, known, MAX_SHARD_BYTES);
    }

    fn set_within(&mut self, hash: KeyHash, known: &Known, limit: usize) {
        let (brief, full) = match known {
            Known::All(brief) => (brief, true),
            Known::AtLeast(brief) => (brief, false),
        };
        let packed = packed::pack(brief, full, &mut self.actors);
        let before = self.leaf(hash);
        let mut after = leaf(hash, brief.seen());
        let (at, name) = split(hash);
        let slot = &mut self.slots[at];
        if slot.shard.put(&name, &packed, limit) == Err(ShardFull) {
            slot.lossy = true;
            after = 0;
        }
        self.merkle.change(hash, before, after);
    }

    /// What the entry of a key adds to the Merkle tree; 0 without one.
    #[must_use]
    pub fn leaf(&self, hash: KeyHash) -> u64 {
        self.seen(hash).map_or(0, |seen| leaf(hash, &seen))
    }

    /// Adds what a segment or a full read says. `full` if that was all there is.
    pub fn join(&mut self, hash: KeyHash, brief: Container<Brief>, full: bool) {
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

    /// Forgets a key. Was there an entry of it?
    pub fn remove(&mut self, hash: KeyHash) -> bool {
        let before = self.leaf(hash);
        self.merkle.change(hash, before, 0);
        let (at, name) = split(hash);
        self.slots[at].shard.remove(&name)
    }

    /// From now on every entry is all there is, and what has no entry does not exist.
    pub fn set_complete(&mut self) {
        self.complete = true;
    }

    /// Is it complete?
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete && self.slots.iter().all(|slot| !slot.lossy)
    }

    /// How many keys it has entries of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.iter().map(|slot| slot.shard.len()).sum()
    }

    /// Has it no entry?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory it takes, in bytes: all that it has allocated, used or not.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let shards: usize = self.slots.iter().map(|slot| slot.shard.bytes()).sum();
        let slots = self.slots.capacity() * size_of::<Slot>();
        size_of::<Self>() + slots + shards + self.actors.bytes() + Tree::BYTES
    }

    /// The figures of a group, 0 to [`ClockIndex::GROUPS`] - 1; zeros past that.
    #[must_use]
    pub fn group(&self, group: u32) -> GroupFigures {
        let mut sum = GroupFigures::default();
        let each = (Self::SHARDS / Self::GROUPS) as usize;
        for slot in self.slots.iter().skip((group as usize).saturating_mul(each)).take(each) {
            sum.add(slot.shard.figures());
        }
        sum
    }

    /// The keys of a shard, 0 to [`ClockIndex::SHARDS`] - 1, all of whose siblings, one at least, are dead at
    /// `now_ms`, milliseconds since 1970; each with all that was seen of it. Ascending by hash, and only keys of
    /// which all is known.
    #[must_use]
    pub fn dead_in(&self, shard: u32, now_ms: u64) -> Vec<(KeyHash, Clock)> {
        let Some((slot, first)) = self.slots.get(shard as usize).zip(u8::try_from(shard).ok()) else {
            return Vec::new();
        };
        let trusted = self.complete && !slot.lossy;
        let mut dead = Vec::new();
        for (name, packed) in slot.shard.iter() {
            if !packed::is_mortal(packed) || !(trusted || packed::is_full(packed)) {
                continue;
            }
            let brief = packed::unpack(packed, &self.actors);
            if brief.siblings().iter().all(|s| s.version.is_dead(now_ms)) {
                dead.push((whole(first, name), brief.into_parts().0));
            }
        }
        dead.sort_unstable_by_key(|(hash, _)| *hash);
        dead
    }
}

impl ClockIndex {
    /// The Merkle tree over all entries.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        self.merkle.tree()
    }

    /// What has changed in the tree since this was last called; `None` the first time.
    pub fn take_tree_changes(&mut self) -> Option<LeafDeltas> {
        self.merkle.take_changes()
    }

    /// The shards, ascending, that hold the keys of `spans`.
    #[must_use]
    pub fn shards_of(spans: &[Span]) -> std::collections::BTreeSet<u32> {
        let shard = |hash: KeyHash| hash.partition(Self::SHARDS);
        spans.iter().flat_map(|span| shard(span.first())..=shard(span.last())).collect()
    }

    /// The keys of a shard that are in these ascending spans and after `after`, ascending.
    #[must_use]
    pub fn hashes_in(&self, shard: u32, spans: &[Span], after: Option<KeyHash>) -> Vec<KeyHash> {
        let Some((slot, first)) = self.slots.get(shard as usize).zip(u8::try_from(shard).ok()) else {
            return Vec::new();
        };
        let hashes = slot.shard.iter().map(|(name, _)| whole(first, name));
        let is_asked = |hash: &KeyHash| after.is_none_or(|a| *hash > a) && find(spans, *hash).is_some();
        let mut found: Vec<KeyHash> = hashes.filter(is_asked).collect();
        found.sort_unstable();
        found
    }

    /// All that was seen of a key; `None` without an entry.
    #[must_use]
    pub fn seen(&self, hash: KeyHash) -> Option<Clock> {
        let (at, name) = split(hash);
        let packed = self.slots[at].shard.get(&name)?;
        Some(packed::unpack_seen(packed, &self.actors))
    }
}

/// The number of a key's shard, and its name there.
fn split(hash: KeyHash) -> (usize, Name) {
    let [first, name @ ..] = hash.0.to_be_bytes();
    (usize::from(first), name)
}

/// The hash that [`split`] took apart.
fn whole(first: u8, name: &Name) -> KeyHash {
    let mut bytes = [first; 16];
    bytes[1..].copy_from_slice(name);
    KeyHash(u128::from_be_bytes(bytes))
}
