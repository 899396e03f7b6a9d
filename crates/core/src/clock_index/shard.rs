//! One shard of the clock index: a table of offsets into one run of packed entries.
//!
//! An entry is the key's hash without its first byte, which the shard stands for, and a packed brief. An entry
//! that grows moves to the end and leaves a gap; when the gaps are a quarter of all, the shard is packed anew.
//! Only one shard is ever copied at a time.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::GroupFigures;
use super::packed::skim;

/// Most bytes of a shard's entries, so that every offset fits 32 bits.
pub(super) const MAX_SHARD_BYTES: usize = u32::MAX as usize;
/// Gaps of fewer bytes are left alone.
const MIN_GAPS: usize = 1024;
/// Bytes that a full run of entries grows by, besides an eighth of it.
const GROWTH: usize = 512;
/// Bytes of a hash that are kept.
const NAME: usize = 15;

/// A key's hash without the byte that its shard stands for.
pub(super) type Name = [u8; NAME];

/// The shard is full ([`MAX_SHARD_BYTES`]); the entry is not in it any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ShardFull;

/// Some of the keys.
#[derive(Debug, Default)]
pub(super) struct Shard {
    table: HashTable<u32>,
    /// The entries, with gaps between them.
    run: Vec<u8>,
    /// Bytes of `run` that belong to no entry.
    gaps: usize,
    figures: GroupFigures,
}

impl Shard {
    /// The packed brief of a key, and what follows it.
    pub(super) fn get(&self, name: &Name) -> Option<&[u8]> {
        let at = self.table.find(spread(name), |&at| is_at(&self.run, at, name))?;
        Some(&self.run[*at as usize + NAME..])
    }

    /// Puts a key's packed brief in place of what was there. `limit` is [`MAX_SHARD_BYTES`] outside tests.
    ///
    /// # Errors
    /// [`ShardFull`].
    pub(super) fn put(&mut self, name: &Name, packed: &[u8], limit: usize) -> Result<(), ShardFull> {
        let is = |&at: &u32| is_at(&self.run, at, name);
        let result = match self.table.entry(spread(name), is, |&at| spread(&self.run[at as usize..])) {
            Entry::Vacant(vacant) => append(&mut self.run, name, packed, limit).map(|at| {
                vacant.insert(at);
            }),
            Entry::Occupied(mut occupied) => {
                let start = *occupied.get() as usize + NAME;
                let old = skim(&self.run[start..]);
                self.figures.subtract(&old.figures);
                if packed.len() <= old.length {
                    self.run[start..start + packed.len()].copy_from_slice(packed);
                    self.gaps += old.length - packed.len();
                    Ok(())
                } else {
                    self.gaps += NAME + old.length;
                    let moved = append(&mut self.run, name, packed, limit);
                    match moved {
                        Ok(at) => *occupied.get_mut() = at,
                        Err(ShardFull) => drop(occupied.remove()),
                    }
                    moved.map(drop)
                }
            }
        };
        if result.is_ok() {
            self.figures.add(&skim(packed).figures);
        }
        self.close_gaps();
        result
    }

    /// Forgets a key. Was it there?
    pub(super) fn remove(&mut self, name: &Name) -> bool {
        let Ok(found) = self.table.find_entry(spread(name), |&at| is_at(&self.run, at, name)) else {
            return false;
        };
        let (at, _) = found.remove();
        let old = skim(&self.run[at as usize + NAME..]);
        self.figures.subtract(&old.figures);
        self.gaps += NAME + old.length;
        self.close_gaps();
        true
    }

    /// The names and packed briefs of all keys, each with what follows it, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &[u8])> {
        self.table.iter().filter_map(|&at| self.run[at as usize..].split_first_chunk::<NAME>())
    }

    /// How many keys it holds.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.run.capacity() + self.table.allocation_size()
    }

    /// What its keys add to the figures of its group.
    pub(super) fn figures(&self) -> &GroupFigures {
        &self.figures
    }

    /// Packs the entries anew where the gaps are too much of the run.
    fn close_gaps(&mut self) {
        if self.gaps < MIN_GAPS || self.gaps < self.run.len() / 4 {
            return;
        }
        let live = self.run.len() - self.gaps;
        let mut run = Vec::with_capacity(live + room(live));
        for at in self.table.iter_mut() {
            let entry = &self.run[*at as usize..];
            let length = NAME + skim(&entry[NAME..]).length;
            // The new run is shorter than the old one.
            *at = u32::try_from(run.len()).unwrap_or(u32::MAX);
            run.extend_from_slice(&entry[..length]);
        }
        self.run = run;
        self.gaps = 0;
        if self.table.len() < self.table.capacity() / 4 {
            self.table.shrink_to(self.table.len() * 2, |&at| spread(&self.run[at as usize..]));
        }
    }

    /// Panics unless every byte of the run is accounted for.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut figures = GroupFigures::default();
        let mut ends: Vec<(usize, usize)> = Vec::new();
        for &at in &self.table {
            let skimmed = skim(&self.run[at as usize + NAME..]);
            figures.add(&skimmed.figures);
            ends.push((at as usize, at as usize + NAME + skimmed.length));
        }
        ends.sort_unstable();
        assert!(ends.windows(2).all(|w| w[0].1 <= w[1].0), "entries overlap");
        let live: usize = ends.iter().map(|(start, end)| end - start).sum();
        assert_eq!(live + self.gaps, self.run.len());
        assert!(self.gaps < MIN_GAPS.max(self.run.len() / 4), "{} of {} bytes", self.gaps, self.run.len());
        assert_eq!(figures, self.figures);
    }
}

/// Where the table looks for a key: the hash is uniform, any 64 bits of it do.
fn spread(name: &[u8]) -> u64 {
    name[..NAME].last_chunk().map_or(0, |last| u64::from_be_bytes(*last))
}

fn is_at(run: &[u8], at: u32, name: &Name) -> bool {
    run[at as usize..].starts_with(name)
}

/// How much room a run of `length` bytes gets besides. Doubling would leave a third of the memory empty.
fn room(length: usize) -> usize {
    length / 8 + GROWTH
}

/// Writes an entry at the end; returns where.
fn append(run: &mut Vec<u8>, name: &Name, packed: &[u8], limit: usize) -> Result<u32, ShardFull> {
    let (start, length) = (run.len(), NAME + packed.len());
    let at = u32::try_from(start).map_err(|_| ShardFull)?;
    if start + length > limit {
        return Err(ShardFull);
    }
    if run.capacity() - start < length {
        run.reserve_exact(length.max(room(start)));
    }
    run.extend_from_slice(name);
    run.extend_from_slice(packed);
    Ok(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::actors::Actors;
    use super::super::packed::{pack, unpack};
    use super::*;
    use crate::clock::{Actor, Clock, Dot};
    use crate::container::Container;
    use crate::record::Brief;

    fn brief(siblings: u64) -> Container<Brief> {
        let version = Brief { deleted: false, expires_ms: 0, request: 1, size: siblings };
        let mut all = Container::default();
        for n in 1..=siblings {
            let dot = Dot { actor: Actor::parse("a.1").unwrap(), n };
            all.sync(Container::delta(&Clock::new(), dot, version));
        }
        all
    }

    fn name(i: usize) -> Name {
        let mut name = [0; NAME];
        name[..8].copy_from_slice(&i.to_be_bytes());
        name
    }

    /// Entries whose names differ only where the table does not look; each grows, shrinks, and some go.
    #[test]
    fn closing_gaps_keeps_everything() {
        let (mut shard, mut actors) = (Shard::default(), Actors::default());
        let sizes = |i: usize, round: u64| brief(1 + (i as u64 * 7 + round * 5) % 11);
        let mut closed = 0;
        for round in 0..12 {
            for i in 0..100 {
                let before = shard.gaps;
                shard.put(&name(i), &pack(&sizes(i, round), true, &mut actors), MAX_SHARD_BYTES).unwrap();
                closed += usize::from(shard.gaps < before);
            }
            shard.check();
            for i in 0..100 {
                assert_eq!(unpack(shard.get(&name(i)).unwrap(), &actors), sizes(i, round));
            }
        }
        assert!(closed > 5, "gaps were closed {closed} times");
        for i in (0..100).filter(|i| i % 10 != 0) {
            assert!(shard.remove(&name(i)));
            assert!(!shard.remove(&name(i)));
        }
        shard.check();
        assert_eq!(shard.iter().count(), 10);
        for i in 0..100 {
            let found = shard.get(&name(i)).map(|packed| unpack(packed, &actors));
            assert_eq!(found, (i % 10 == 0).then(|| sizes(i, 11)));
        }
    }

    #[test]
    fn memory_is_given_back() {
        let (mut shard, mut actors) = (Shard::default(), Actors::default());
        let packed = pack(&brief(1), true, &mut actors);
        for i in 0..10_000 {
            shard.put(&name(i), &packed, MAX_SHARD_BYTES).unwrap();
        }
        let most = shard.bytes();
        for i in 1..10_000 {
            shard.remove(&name(i));
        }
        assert_eq!(shard.len(), 1);
        assert!(shard.bytes() < most / 100, "{} of {most} bytes", shard.bytes());
        shard.check();
    }

    /// A full shard keeps what it can; what it can't keep is gone, not stale.
    #[test]
    fn a_full_shard_says_so() {
        let (mut shard, mut actors) = (Shard::default(), Actors::default());
        let small = pack(&brief(1), true, &mut actors);
        let large = pack(&brief(9), true, &mut actors);
        let limit = 2 * (NAME + small.len());
        for i in 0..2 {
            shard.put(&name(i), &small, limit).unwrap();
        }
        assert_eq!(shard.put(&name(2), &small, limit), Err(ShardFull));
        assert_eq!(shard.get(&name(2)), None);
        assert_eq!(shard.put(&name(0), &small, limit), Ok(()));
        assert_eq!(shard.put(&name(0), &large, limit), Err(ShardFull));
        assert_eq!(shard.get(&name(0)), None);
        assert_eq!(unpack(shard.get(&name(1)).unwrap(), &actors), brief(1));
        assert_eq!(shard.len(), 1);
        shard.check();
    }
}
