//! Commutative sums over what is known: Merkle trees (Dynamo, SOSP 2007, section 4.7).
//!
//! What a replica knows of a key is summed up in 64 bits; the sum over many keys does not depend on their order, so it
//! is kept up at each write and can be taken again from any list of clocks. With the dotted container equal `seen`
//! means equal siblings, so `seen` is all that goes in.
//!
//! The circle of hashes is cut into [`LEAVES`] equal leaves, however many partitions there are. The sum of any
//! [`Span`] above a leaf is the sum of its leaves; below a leaf sums are taken anew, for the few spans that differ.

use std::collections::BTreeMap;

use crate::clock::Clock;
use crate::codec::{DecodeError, Reader, put_varint};
use crate::hash::{KeyHash, checksum};
use crate::record::encode_clock;

/// What one key adds to the sum of its leaf; 0 for a key of which nothing is known.
#[must_use]
pub fn leaf(hash: KeyHash, seen: &Clock) -> u64 {
    if seen.is_empty() {
        return 0;
    }
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&hash.0.to_be_bytes());
    encode_clock(&mut bytes, seen);
    // Zero stands for nothing.
    checksum(&bytes).max(1)
}

/// A sum of leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeafSum(pub u64);

impl LeafSum {
    /// Adds a key.
    pub fn add(&mut self, hash: KeyHash, seen: &Clock) {
        self.0 = self.0.wrapping_add(leaf(hash, seen));
    }

    /// Takes a key away that was added with the same clock.
    pub fn remove(&mut self, hash: KeyHash, seen: &Clock) {
        self.0 = self.0.wrapping_sub(leaf(hash, seen));
    }
}

/// The leaf of a key is so many top bits of its hash.
pub const LEAF_BITS: u8 = 16;
/// How many leaves a tree has.
pub const LEAVES: usize = 1 << LEAF_BITS;
/// Most levels below a span that are asked for at once: 256 sums of each.
pub const MAX_DEPTH: u8 = 8;

/// The hashes that have their top bits in common: a partition, a leaf, or a part of one. Ordered by where they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    first: KeyHash,
    bits: u8,
}

impl Span {
    /// The span of `bits` bits, at most 128, that `hash` is in.
    #[must_use]
    pub fn of(hash: KeyHash, bits: u8) -> Self {
        let bits = bits.min(128);
        Self { first: KeyHash(hash.0 & !below(bits)), bits }
    }

    /// All of a partition; `partitions` is a power of two.
    #[must_use]
    pub fn of_partition(partition: u32, partitions: u32) -> Self {
        let bits = u8::try_from(partitions.trailing_zeros()).unwrap_or(0);
        let first = if bits == 0 { 0 } else { u128::from(partition) << (128 - bits) };
        Self::of(KeyHash(first), bits)
    }

    /// Its first hash.
    #[must_use]
    pub fn first(self) -> KeyHash {
        self.first
    }

    /// Its last hash.
    #[must_use]
    pub fn last(self) -> KeyHash {
        KeyHash(self.first.0 | below(self.bits))
    }

    /// How many bits its hashes have in common.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Is this hash in it?
    #[must_use]
    pub fn contains(self, hash: KeyHash) -> bool {
        (hash.0 ^ self.first.0) & !below(self.bits) == 0
    }

    /// Its parts, ascending: 2^`depth` of them, fewer where hashes have no more bits.
    pub fn parts(self, depth: u8) -> impl Iterator<Item = Self> {
        let bits = self.bits.saturating_add(depth.min(MAX_DEPTH)).min(128);
        let step = 128 - u32::from(bits);
        (0..1_u128 << (bits - self.bits)).map(move |part| {
            // One part that is all the circle has nothing to be shifted.
            let offset = part.checked_shl(step).unwrap_or(0);
            Self { first: KeyHash(self.first.0 | offset), bits }
        })
    }

    /// Which of its parts of `bits` bits holds `hash`, counted from its beginning.
    fn part_of(self, hash: KeyHash, bits: u8) -> usize {
        let part = (hash.0 & below(self.bits)).checked_shr(128 - u32::from(bits)).unwrap_or(0);
        usize::try_from(part).unwrap_or(usize::MAX)
    }
}

/// The hash bits below the top `bits`.
fn below(bits: u8) -> u128 {
    u128::MAX.checked_shr(u32::from(bits)).unwrap_or(0)
}

/// The sums of each of `spans`' parts, taken from a list of keys and leaves: how those below the tree's leaves are made.
/// `spans` ascend, have the same number of bits, and no hash in common; keys outside them are left out.
#[derive(Debug)]
pub struct DeepSums<'a> {
    spans: &'a [Span],
    bits: u8,
    sums: Vec<u64>,
}

impl<'a> DeepSums<'a> {
    /// Sums of the parts that are `depth` levels below `spans`.
    #[must_use]
    pub fn new(spans: &'a [Span], depth: u8) -> Self {
        let bits = spans.first().map_or(0, |span| span.bits.saturating_add(depth.min(MAX_DEPTH)).min(128));
        let each = spans.first().map_or(0, |span| 1_usize << (bits - span.bits));
        Self { spans, bits, sums: vec![0; spans.len() * each] }
    }

    /// Adds a key, if it is in one of the spans.
    pub fn add(&mut self, hash: KeyHash, leaf: u64) {
        if let Some(at) = find(self.spans, hash) {
            let each = self.sums.len() / self.spans.len();
            let part = at * each + self.spans[at].part_of(hash, self.bits);
            self.sums[part] = self.sums[part].wrapping_add(leaf);
        }
    }

    /// The sums, in order.
    #[must_use]
    pub fn into_sums(self) -> Vec<u64> {
        self.sums
    }
}

/// Which of these ascending spans holds `hash`?
#[must_use]
pub fn find(spans: &[Span], hash: KeyHash) -> Option<usize> {
    let at = spans.partition_point(|span| span.first <= hash).checked_sub(1)?;
    spans[at].contains(hash).then_some(at)
}

/// The leaf of a hash.
fn leaf_of(hash: KeyHash) -> u16 {
    u16::try_from(hash.0 >> (128 - u32::from(LEAF_BITS))).unwrap_or(u16::MAX)
}

/// What leaves have gained, wrapping, by their number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeafDeltas(BTreeMap<u16, u64>);

impl LeafDeltas {
    fn add(&mut self, leaf: u16, gain: u64) {
        let entry = self.0.entry(leaf).or_default();
        *entry = entry.wrapping_add(gain);
        if *entry == 0 {
            self.0.remove(&leaf);
        }
    }

    /// Has nothing changed?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes them: varint count, then per leaf varint distance from the one before, u64 gain.
    pub fn encode(&self, out: &mut impl bytes::BufMut) {
        put_varint(out, self.0.len() as u64);
        let mut last = 0;
        for (leaf, gain) in &self.0 {
            put_varint(out, u64::from(leaf - last));
            out.put_u64_le(*gain);
            last = *leaf;
        }
    }

    /// Reads what [`LeafDeltas::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let count = r.count(9, "leaf deltas")?;
        let (mut last, mut deltas) = (0_u64, BTreeMap::new());
        for _ in 0..count {
            last = last.saturating_add(r.varint("leaf")?);
            let leaf = u16::try_from(last).map_err(|_| DecodeError::Malformed("leaf"))?;
            if deltas.insert(leaf, r.u64("leaf gain")?).is_some() {
                return Err(DecodeError::Malformed("leaf"));
            }
        }
        Ok(Self(deltas))
    }
}

/// The Merkle tree over all that a node knows: its leaves. Branches and roots are sums of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    leaves: Vec<u64>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { leaves: vec![0; LEAVES] }
    }
}

impl Tree {
    /// Bytes that a tree takes.
    pub const BYTES: usize = LEAVES * 8;

    /// What is known of a key changes: its leaf was `before` and is `after` ([`leaf`]).
    pub fn change(&mut self, hash: KeyHash, before: u64, after: u64) {
        let sum = &mut self.leaves[usize::from(leaf_of(hash))];
        *sum = sum.wrapping_sub(before).wrapping_add(after);
    }

    /// Changes the leaves by these.
    pub fn apply(&mut self, deltas: &LeafDeltas) {
        for (leaf, gain) in &deltas.0 {
            let sum = &mut self.leaves[usize::from(*leaf)];
            *sum = sum.wrapping_add(*gain);
        }
    }

    /// The sum of a span of at most [`LEAF_BITS`] bits; `None` for a smaller one.
    #[must_use]
    pub fn sum(&self, span: Span) -> Option<u64> {
        if span.bits > LEAF_BITS {
            return None;
        }
        let (first, last) = (usize::from(leaf_of(span.first())), usize::from(leaf_of(span.last())));
        Some(self.leaves[first..=last].iter().fold(0, |sum, leaf| sum.wrapping_add(*leaf)))
    }

    /// The leaves, in order, as a snapshot holds them.
    pub fn encode(&self, out: &mut impl bytes::BufMut) {
        self.leaves.iter().for_each(|leaf| out.put_u64_le(*leaf));
    }

    /// Reads what [`Tree::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { leaves: (0..LEAVES).map(|_| r.u64("leaf")).collect::<Result<_, _>>()? })
    }
}

/// A tree that remembers what has changed since somebody last asked.
#[derive(Debug, Default)]
pub struct Watched {
    tree: Tree,
    /// `None` as long as nobody asked to watch.
    changes: Option<LeafDeltas>,
}

impl Watched {
    /// The tree.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// As [`Tree::change`].
    pub fn change(&mut self, hash: KeyHash, before: u64, after: u64) {
        if before != after {
            self.tree.change(hash, before, after);
            if let Some(changes) = &mut self.changes {
                changes.add(leaf_of(hash), after.wrapping_sub(before));
            }
        }
    }

    /// What has changed since this was last called; `None` if nobody was watching since. From now on it is watched.
    pub fn take_changes(&mut self) -> Option<LeafDeltas> {
        self.changes.replace(LeafDeltas::default())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::{Actor, Dot};

    fn clock(dots: &[(&str, u64)]) -> Clock {
        dots.iter().map(|(a, n)| Dot { actor: Actor::parse(a).unwrap(), n: *n }).collect()
    }

    #[test]
    fn sums_do_not_depend_on_order_and_undo() {
        let keys = [(KeyHash(1), clock(&[("a.1", 1)])), (KeyHash(2), clock(&[("a.1", 1), ("b.1", 3)]))];
        let (mut there, mut back) = (LeafSum::default(), LeafSum::default());
        keys.iter().for_each(|(hash, seen)| there.add(*hash, seen));
        keys.iter().rev().for_each(|(hash, seen)| back.add(*hash, seen));
        assert_eq!(there, back);
        keys.iter().for_each(|(hash, seen)| back.remove(*hash, seen));
        assert_eq!(back, LeafSum::default());
    }

    #[test]
    fn every_difference_counts() {
        let one = leaf(KeyHash(1), &clock(&[("a.1", 1)]));
        assert_ne!(one, leaf(KeyHash(2), &clock(&[("a.1", 1)])));
        assert_ne!(one, leaf(KeyHash(1), &clock(&[("a.1", 1), ("a.1", 2)])));
        assert_ne!(one, leaf(KeyHash(1), &clock(&[("a.2", 1)])));
        assert_eq!(leaf(KeyHash(1), &Clock::new()), 0);
    }

    /// Frozen: nodes of different builds compare these.
    #[test]
    fn golden_vector() {
        assert_eq!(
            format!("{:016x}", leaf(KeyHash(7), &clock(&[("node-a.3", 1), ("node-a.3", 2)]))),
            "0841fdd4be1e4639"
        );
    }

    fn key(i: u64) -> KeyHash {
        KeyHash(u128::from(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(i))
    }

    #[test]
    fn spans_are_cut_into_parts_that_join_up() {
        for span in [Span::of_partition(0, 1), Span::of_partition(5, 8), Span::of(KeyHash(77 << 100), 30)] {
            for depth in [0, 1, 5, 8] {
                let parts: Vec<Span> = span.parts(depth).collect();
                assert_eq!(parts.len(), 1 << depth);
                assert_eq!((parts[0].first(), parts[parts.len() - 1].last()), (span.first(), span.last()));
                assert!(parts.windows(2).all(|w| w[0].last().0 + 1 == w[1].first().0));
                for part in &parts {
                    assert_eq!(find(&parts, part.last()).map(|at| parts[at]), Some(*part));
                    assert_eq!(Span::of(part.last(), part.bits()), *part);
                }
            }
        }
        assert_eq!(Span::of(KeyHash(9), 128).parts(8).count(), 1);
        assert_eq!(find(&[Span::of_partition(5, 8)], KeyHash(0)), None);
    }

    #[test]
    fn a_tree_sums_up_what_the_parts_of_a_list_do() {
        let keys: Vec<(KeyHash, u64)> = (1..5000).map(|i| (key(i), i * i)).collect();
        let mut tree = Tree::default();
        keys.iter().for_each(|(hash, leaf)| tree.change(*hash, 0, *leaf));
        for span in
            [Span::of_partition(0, 1), Span::of_partition(3, 4), Span::of(key(8), 9), Span::of(key(9), 16)]
        {
            for depth in 0..=8 {
                let spans = [span];
                let mut sums = DeepSums::new(&spans, depth);
                keys.iter().for_each(|(hash, leaf)| sums.add(*hash, *leaf));
                let sums = sums.into_sums();
                let by_tree: Vec<Option<u64>> = span.parts(depth).map(|part| tree.sum(part)).collect();
                if span.bits() + depth <= LEAF_BITS {
                    assert_eq!(sums.iter().copied().map(Some).collect::<Vec<_>>(), by_tree);
                } else {
                    assert_eq!(by_tree[0], None);
                }
                let total = sums.iter().fold(0_u64, |a, b| a.wrapping_add(*b));
                assert_eq!(Some(total), tree.sum(span));
            }
        }
    }

    #[test]
    fn changes_bring_a_copy_up_to_date() {
        let mut watched = Watched::default();
        watched.change(key(1), 0, 7);
        assert_eq!(watched.take_changes(), None);
        let mut copy = watched.tree().clone();
        for i in 2..100 {
            watched.change(key(i), 0, i);
        }
        watched.change(key(1), 7, 0);
        watched.change(key(50), 50, 3);
        let changes = watched.take_changes().unwrap();
        let mut bytes = Vec::new();
        changes.encode(&mut bytes);
        let decoded = LeafDeltas::decode(&mut Reader::new(bytes.into())).unwrap();
        assert_eq!(decoded, changes);
        copy.apply(&decoded);
        assert_eq!(&copy, watched.tree());
        watched.change(key(1), 0, 9);
        watched.change(key(1), 9, 0);
        assert!(watched.take_changes().unwrap().is_empty());

        let mut bytes = Vec::new();
        copy.encode(&mut bytes);
        assert_eq!(bytes.len(), Tree::BYTES);
        assert_eq!(Tree::decode(&mut Reader::new(bytes.into())).unwrap(), copy);
    }
}
