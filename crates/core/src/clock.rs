//! Dots and clocks: what has been seen.
//!
//! A [`Dot`] names one write for ever: the n-th write of a key by an [`Actor`]. A [`Clock`] is a set of dots,
//! kept as a version vector (all of 1..=base) plus, where counts have gaps, a small cloud of dots above it:
//! the "dotted version vectors" of Preguiça et al., 2010, and the server-side containers of Gonçalves
//! et al., "Concise server-wide causality management", 2017.

use std::fmt;

use bytes::BufMut;

use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::names::NodeId;

/// The highest number of a dot: the longest integer of a structured field, so that clients can be told of it and give
/// it back. Far above what any key can be written, and far below where sums of counts would overflow.
pub const MAX_COUNT: u64 = 999_999_999_999_999;

/// One incarnation of a storage node as a minter of dots. The epoch changes whenever the node can't prove
/// that it still holds every dot it minted.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Actor {
    /// The node.
    pub node: NodeId,
    /// Its epoch, leased from the bucket; starts at 1.
    pub epoch: u32,
}

impl Actor {
    /// Parses `node-id.epoch`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (node, epoch) = text.rsplit_once('.')?;
        if epoch.is_empty() || epoch.starts_with('0') || !epoch.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some(Self { node: NodeId::new(node).ok()?, epoch: epoch.parse().ok()? })
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.epoch)
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The n-th write of one key by one actor; n starts at 1.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dot {
    /// Who minted it.
    pub actor: Actor,
    /// Its number.
    pub n: u64,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.actor, self.n)
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What has been seen of one actor: all of `1..=base`, and each of `cloud`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The actor.
    pub actor: Actor,
    /// All dots up to this number.
    pub base: u64,
    /// Single dots above `base + 1`, ascending.
    pub cloud: Vec<u64>,
}

impl Seen {
    fn contains(&self, n: u64) -> bool {
        n <= self.base || self.cloud.binary_search(&n).is_ok()
    }

    fn max(&self) -> u64 {
        self.cloud.last().copied().unwrap_or(self.base)
    }

    fn insert(&mut self, n: u64) {
        if n <= self.base {
            return;
        }
        if let Err(at) = self.cloud.binary_search(&n) {
            self.cloud.insert(at, n);
            self.settle();
        }
    }

    /// Drops from the cloud what the base covers, and lets the base grow through it.
    fn settle(&mut self) {
        let mut used = 0;
        for &n in &self.cloud {
            if n > self.base + 1 {
                break;
            }
            self.base = self.base.max(n);
            used += 1;
        }
        self.cloud.drain(..used);
    }

    fn join(&mut self, other: &Self) {
        self.base = self.base.max(other.base);
        for &n in &other.cloud {
            if let Err(at) = self.cloud.binary_search(&n) {
                self.cloud.insert(at, n);
            }
        }
        self.settle();
    }

    fn covers(&self, other: &Self) -> bool {
        let base = if other.base <= self.base {
            true
        } else {
            (self.base + 1..=other.base).all(|n| self.cloud.binary_search(&n).is_ok())
        };
        base && other.cloud.iter().all(|&n| self.contains(n))
    }
}

/// A set of dots; sorted by actor, without empty entries, so that equal sets are equal values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Clock {
    entries: Vec<Seen>,
}

impl Clock {
    /// The clock that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// Its entries, one per actor, ascending.
    #[must_use]
    pub fn entries(&self) -> &[Seen] {
        &self.entries
    }

    /// Has it seen nothing?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn find(&self, actor: &Actor) -> Result<usize, usize> {
        self.entries.binary_search_by(|e| e.actor.cmp(actor))
    }

    /// Has it seen this dot?
    #[must_use]
    pub fn contains(&self, dot: &Dot) -> bool {
        self.find(&dot.actor).is_ok_and(|at| self.entries[at].contains(dot.n))
    }

    /// The highest number seen of `actor`; 0 if none.
    #[must_use]
    pub fn max(&self, actor: &Actor) -> u64 {
        self.find(actor).map_or(0, |at| self.entries[at].max())
    }

    /// Adds one dot.
    pub fn insert(&mut self, dot: &Dot) {
        match self.find(&dot.actor) {
            Ok(at) => self.entries[at].insert(dot.n),
            Err(at) => {
                let mut seen = Seen { actor: dot.actor.clone(), base: 0, cloud: Vec::new() };
                seen.insert(dot.n);
                self.entries.insert(at, seen);
            }
        }
    }

    /// Adds an entry: all of `1..=base` and the dots of `cloud`, in any order.
    pub fn insert_seen(&mut self, actor: Actor, base: u64, mut cloud: Vec<u64>) {
        cloud.sort_unstable();
        cloud.dedup();
        cloud.retain(|&n| n > base);
        let mut seen = Seen { actor, base, cloud };
        seen.settle();
        if seen.base == 0 && seen.cloud.is_empty() {
            return;
        }
        match self.find(&seen.actor) {
            Ok(at) => self.entries[at].join(&seen),
            Err(at) => self.entries.insert(at, seen),
        }
    }

    /// The union.
    pub fn join(&mut self, other: &Self) {
        for theirs in &other.entries {
            match self.find(&theirs.actor) {
                Ok(at) => self.entries[at].join(theirs),
                Err(at) => self.entries.insert(at, theirs.clone()),
            }
        }
    }

    /// Is every dot of `other` in it?
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other
            .entries
            .iter()
            .all(|theirs| self.find(&theirs.actor).is_ok_and(|at| self.entries[at].covers(theirs)))
    }

    /// Writes the clock with each actor as its index in `actors`, which must hold them all.
    pub(crate) fn encode(&self, out: &mut impl BufMut, actors: &[Actor]) {
        put_varint(out, self.entries.len() as u64);
        for e in &self.entries {
            put_varint(out, actors.binary_search(&e.actor).unwrap_or(usize::MAX) as u64);
            put_varint(out, e.base);
            put_varint(out, e.cloud.len() as u64);
            let mut last = e.base;
            for &n in &e.cloud {
                put_varint(out, n - last);
                last = n;
            }
        }
    }

    /// Reads what [`Clock::encode`] wrote.
    pub(crate) fn decode(reader: &mut Reader, actors: &[Actor]) -> Result<Self, DecodeError> {
        let count = reader.count(3, "clock")?;
        let mut entries: Vec<Seen> = Vec::with_capacity(count);
        for _ in 0..count {
            let at = usize::try_from(reader.varint("clock")?).unwrap_or(usize::MAX);
            let actor = actors.get(at).ok_or(DecodeError::Malformed("clock actor"))?.clone();
            let base = reader.varint("clock")?;
            let dots = reader.count(1, "clock cloud")?;
            let mut cloud = Vec::with_capacity(dots);
            let mut last = base;
            for at in 0..dots {
                let step = reader.varint("clock cloud")?;
                if step < if at == 0 { 2 } else { 1 } {
                    return Err(DecodeError::Malformed("clock cloud"));
                }
                let next = last.checked_add(step).filter(|next| *next <= MAX_COUNT);
                last = next.ok_or(DecodeError::Malformed("clock cloud"))?;
                cloud.push(last);
            }
            let empty = base == 0 && cloud.is_empty();
            if empty || base > MAX_COUNT || entries.last().is_some_and(|e| e.actor >= actor) {
                return Err(DecodeError::Malformed("clock"));
            }
            entries.push(Seen { actor, base, cloud });
        }
        Ok(Self { entries })
    }
}

impl FromIterator<Dot> for Clock {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut clock = Self::new();
        for dot in dots {
            clock.insert(&dot);
        }
        clock
    }
}

/// The readable form: `node-a.3=17, node-b.1=(0 7 9)`. An integer n stands for all of 1 to n; a list holds
/// such an n first (0 for none) and then single dots above it.
impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, e) in self.entries.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            if e.cloud.is_empty() {
                write!(f, "{}={}", e.actor, e.base)?;
            } else {
                write!(f, "{}=({}", e.actor, e.base)?;
                for n in &e.cloud {
                    write!(f, " {n}")?;
                }
                f.write_str(")")?;
            }
        }
        Ok(())
    }
}

/// Writes a table of actors for [`Clock::encode`] to point into.
pub(crate) fn encode_actors(out: &mut impl BufMut, actors: &[Actor]) {
    put_varint(out, actors.len() as u64);
    for actor in actors {
        put_bytes(out, actor.node.as_str().as_bytes());
        put_varint(out, u64::from(actor.epoch));
    }
}

/// Reads what [`encode_actors`] wrote.
pub(crate) fn decode_actors(reader: &mut Reader) -> Result<Vec<Actor>, DecodeError> {
    let count = reader.count(3, "actor table")?;
    let mut actors: Vec<Actor> = Vec::with_capacity(count);
    for _ in 0..count {
        let node = reader.bytes("actor")?;
        let node = std::str::from_utf8(&node).map_err(|_| DecodeError::Malformed("actor"))?;
        let node = NodeId::new(node).map_err(|_| DecodeError::Malformed("actor"))?;
        let epoch = u32::try_from(reader.varint("actor")?).map_err(|_| DecodeError::Malformed("actor"))?;
        let actor = Actor { node, epoch };
        if actors.last().is_some_and(|last| *last >= actor) {
            return Err(DecodeError::Malformed("actor table"));
        }
        actors.push(actor);
    }
    Ok(actors)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn dot(actor: u8, n: u64) -> Dot {
        let node = NodeId::new(["a", "b", "c"][usize::from(actor % 3)]).unwrap();
        Dot { actor: Actor { node, epoch: 1 }, n }
    }

    fn dots() -> impl Strategy<Value = BTreeSet<Dot>> {
        prop::collection::btree_set((0_u8..3, 1_u64..9).prop_map(|(a, n)| dot(a, n)), 0..14)
    }

    /// Adding one to such a count would overflow in whoever merges, and no client could ever give it back.
    #[test]
    fn counts_beyond_the_limit_are_refused() {
        let actors = [dot(0, 1).actor];
        let decode = |entry: &[u64]| {
            let mut out = Vec::new();
            [1, 0].iter().chain(entry).for_each(|n| put_varint(&mut out, *n));
            Clock::decode(&mut Reader::new(out.into()), &actors)
        };
        assert!(decode(&[MAX_COUNT, 0]).is_ok());
        assert_eq!(decode(&[MAX_COUNT + 1, 0]), Err(DecodeError::Malformed("clock")));
        assert_eq!(decode(&[u64::MAX, 0]), Err(DecodeError::Malformed("clock")));
        assert!(decode(&[MAX_COUNT - 2, 1, 2]).is_ok());
        assert_eq!(decode(&[MAX_COUNT - 2, 1, 3]), Err(DecodeError::Malformed("clock cloud")));
    }

    proptest! {
        /// A clock is a set of dots: every operation agrees with the plain set.
        #[test]
        fn agrees_with_a_set(a in dots(), b in dots()) {
            let (ca, cb): (Clock, Clock) = (a.iter().cloned().collect(), b.iter().cloned().collect());
            for actor in 0..3 {
                for n in 1..10 {
                    prop_assert_eq!(ca.contains(&dot(actor, n)), a.contains(&dot(actor, n)));
                }
                let max = a.iter().filter(|d| d.actor == dot(actor, 1).actor).map(|d| d.n).max();
                prop_assert_eq!(ca.max(&dot(actor, 1).actor), max.unwrap_or(0));
            }
            let mut union = ca.clone();
            union.join(&cb);
            let expected: Clock = a.union(&b).cloned().collect();
            prop_assert_eq!(&union, &expected);
            prop_assert_eq!(ca.covers(&cb), b.is_subset(&a));
        }

        #[test]
        fn round_trips(a in dots()) {
            let clock: Clock = a.iter().cloned().collect();
            let actors: Vec<Actor> = clock.entries().iter().map(|e| e.actor.clone()).collect();
            let mut out = Vec::new();
            encode_actors(&mut out, &actors);
            clock.encode(&mut out, &actors);
            let mut reader = Reader::new(out.into());
            let actors = decode_actors(&mut reader).unwrap();
            prop_assert_eq!(Clock::decode(&mut reader, &actors).unwrap(), clock);
            prop_assert!(reader.end("clock").is_ok());
        }
    }

    #[test]
    fn display_shows_gaps() {
        let clock: Clock = [dot(0, 1), dot(0, 2), dot(1, 7), dot(1, 9)].into_iter().collect();
        assert_eq!(clock.to_string(), "a.1=2, b.1=(0 7 9)");
    }

    #[test]
    fn actors_parse_strictly() {
        assert_eq!(Actor::parse("node-a.3").unwrap().to_string(), "node-a.3");
        for bad in ["node-a", "node-a.", "node-a.03", "node-a.0", "node-a.+3", "A.3", ".3", "a.99999999999"] {
            assert!(Actor::parse(bad).is_none(), "{bad}");
        }
    }
}
