//! A brief container as the clock index keeps it: a run of bytes that knows its own end. It never leaves the
//! process, so it has no version and no checksum.
//!
//! ```text
//! u8 flags | varint clock entries, (varint actor, varint base[, varint cloud, varint step…])…
//!          | varint siblings, (u8 kind, varint place of its actor among the clock entries, varint n
//!                              [, varint expires_ms], u64 request tag, varint size)…
//! ```
//! The clouds are there if the flags say that there is one, `expires_ms` if the sibling's kind says so. A step is
//! the distance from the dot before it, the first from `base`.

use crate::clock::{Clock, Dot};
use crate::codec::put_varint;
use crate::container::{Container, Sibling};
use crate::record::Brief;

use super::GroupFigures;
use super::actors::Actors;

/// What a key's namespace, name and clock take in a segment, about, in bytes.
pub(super) const KEY_BYTES: u64 = 80;
/// What a sibling takes in a segment besides its value, about, in bytes.
pub(super) const SIBLING_BYTES: u64 = 40;

/// Flag: this is all there is of the key.
const FULL: u8 = 1;
/// Flag: a clock entry has a cloud.
const CLOUDS: u8 = 2;
/// Flag: there are siblings, and each is a deletion.
const DELETED: u8 = 4;
/// Flag: a sibling ends by itself.
const EXPIRES: u8 = 8;

/// Kind of a sibling: a deletion.
const KIND_DELETED: u8 = 1;
/// Kind of a sibling: it ends by itself.
const KIND_EXPIRES: u8 = 2;

/// Packs `brief`; `full` if it is all there is of its key.
pub(super) fn pack(brief: &Container<Brief>, full: bool, actors: &mut Actors) -> Vec<u8> {
    let entries = brief.seen().entries();
    let siblings = brief.siblings();
    let clouds = entries.iter().any(|e| !e.cloud.is_empty());
    let deleted = !siblings.is_empty() && siblings.iter().all(|s| s.version.deleted);
    let expires = siblings.iter().any(|s| s.version.expires_ms != 0);
    let flags = [(full, FULL), (clouds, CLOUDS), (deleted, DELETED), (expires, EXPIRES)];
    let mut out = Vec::with_capacity(64);
    out.push(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum());
    put_varint(&mut out, entries.len() as u64);
    for e in entries {
        put_varint(&mut out, actors.number(&e.actor) as u64);
        put_varint(&mut out, e.base);
        if clouds {
            put_varint(&mut out, e.cloud.len() as u64);
            let mut last = e.base;
            for &n in &e.cloud {
                put_varint(&mut out, n - last);
                last = n;
            }
        }
    }
    put_varint(&mut out, siblings.len() as u64);
    for s in siblings {
        let expires = s.version.expires_ms != 0;
        let kind = [(s.version.deleted, KIND_DELETED), (expires, KIND_EXPIRES)];
        out.push(kind.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum());
        // Every sibling's dot is in `seen`, so its actor has an entry there.
        let place = entries.binary_search_by(|e| e.actor.cmp(&s.dot.actor)).unwrap_or(usize::MAX);
        put_varint(&mut out, place as u64);
        put_varint(&mut out, s.dot.n);
        if expires {
            put_varint(&mut out, s.version.expires_ms);
        }
        out.extend_from_slice(&s.version.request.to_le_bytes());
        put_varint(&mut out, s.version.size);
    }
    out
}

/// Reads what [`pack`] wrote; what follows it in `bytes` does not matter.
pub(super) fn unpack(bytes: &[u8], actors: &Actors) -> Container<Brief> {
    let mut rest = Cursor { rest: bytes };
    let seen = rest.seen(actors);
    let count = rest.count();
    let mut siblings = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = rest.byte();
        let actor = seen.entries().get(rest.count()).map(|e| e.actor.clone());
        let n = rest.varint();
        let expires_ms = if kind & KIND_EXPIRES == 0 { 0 } else { rest.varint() };
        let (request, size) = (rest.u64(), rest.varint());
        let version = Brief { deleted: kind & KIND_DELETED != 0, expires_ms, request, size };
        siblings.extend(actor.map(|actor| Sibling { dot: Dot { actor, n }, version }));
    }
    Container::from_parts(seen, siblings)
}

/// Of what [`pack`] wrote, all that was seen.
pub(super) fn unpack_seen(bytes: &[u8], actors: &Actors) -> Clock {
    Cursor { rest: bytes }.seen(actors)
}

/// Is it all there is of its key?
pub(super) fn is_full(bytes: &[u8]) -> bool {
    has(bytes, FULL)
}

/// Could all its siblings be dead at some time? Tells most living keys apart without unpacking them.
pub(super) fn is_mortal(bytes: &[u8]) -> bool {
    has(bytes, DELETED | EXPIRES)
}

fn has(bytes: &[u8], flags: u8) -> bool {
    bytes.first().is_some_and(|first| first & flags != 0)
}

/// What can be told of a packed brief without unpacking it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Skimmed {
    /// Its length in bytes.
    pub(super) length: usize,
    /// What it adds to the figures of its group.
    pub(super) figures: GroupFigures,
}

/// Looks through the packed brief that `bytes` starts with.
pub(super) fn skim(bytes: &[u8]) -> Skimmed {
    let mut rest = Cursor { rest: bytes };
    let flags = rest.byte();
    for _ in 0..rest.varint() {
        rest.varint();
        rest.varint();
        let steps = if flags & CLOUDS == 0 { 0 } else { rest.varint() };
        for _ in 0..steps {
            rest.varint();
        }
    }
    let mut live_bytes = KEY_BYTES;
    for _ in 0..rest.varint() {
        let kind = rest.byte();
        rest.varint();
        rest.varint();
        if kind & KIND_EXPIRES != 0 {
            rest.varint();
        }
        rest.u64();
        let size = rest.varint();
        let value = if kind & KIND_DELETED == 0 { size } else { 0 };
        live_bytes = live_bytes.wrapping_add(SIBLING_BYTES).wrapping_add(value);
    }
    let dead = u64::from(flags & DELETED != 0);
    Skimmed { length: bytes.len() - rest.rest.len(), figures: GroupFigures { keys: 1, live_bytes, dead } }
}

/// Reads bytes that this process packed itself: they end where they should. Past their end there are zeros.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    /// The flags and the clock entries.
    fn seen(&mut self, actors: &Actors) -> Clock {
        let clouds = self.byte() & CLOUDS != 0;
        let mut seen = Clock::new();
        for _ in 0..self.varint() {
            let actor = actors.actor(self.count());
            let base = self.varint();
            let mut last = base;
            let steps = if clouds { self.count() } else { 0 };
            let mut cloud = Vec::with_capacity(steps);
            for _ in 0..steps {
                last += self.varint();
                cloud.push(last);
            }
            if let Some(actor) = actor {
                seen.insert_seen(actor.clone(), base, cloud);
            }
        }
        seen
    }

    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        first
    }

    fn varint(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte();
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }

    /// A varint that was a count.
    fn count(&mut self) -> usize {
        usize::try_from(self.varint()).unwrap_or(0)
    }

    fn u64(&mut self) -> u64 {
        let Some((first, rest)) = self.rest.split_first_chunk() else { return 0 };
        self.rest = rest;
        u64::from_le_bytes(*first)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::Actor;

    fn actor(i: u64) -> Actor {
        Actor::parse(&format!("n{i}.1")).unwrap()
    }

    fn round_trip(brief: &Container<Brief>) -> Skimmed {
        let mut actors = Actors::default();
        let mut bytes = pack(brief, true, &mut actors);
        let length = bytes.len();
        bytes.extend([0xff; 20]);
        assert_eq!(unpack(&bytes, &actors), *brief);
        assert!(is_full(&bytes));
        let skimmed = skim(&bytes);
        assert_eq!(skimmed.length, length);
        skimmed
    }

    #[test]
    fn nothing_round_trips() {
        let none = Container::default();
        assert_eq!(round_trip(&none).figures, GroupFigures { keys: 1, live_bytes: KEY_BYTES, dead: 0 });
        assert!(!is_full(&pack(&none, false, &mut Actors::default())));
    }

    #[test]
    fn clouds_and_the_largest_numbers_round_trip() {
        let mut seen = Clock::new();
        seen.insert_seen(actor(1), 0, vec![2, 900, 901, u64::MAX]);
        seen.insert_seen(actor(2), u64::MAX, vec![]);
        seen.insert_seen(actor(3), 7, vec![9]);
        let version = Brief { deleted: true, expires_ms: u64::MAX, request: u64::MAX, size: u64::MAX };
        let siblings = [(1, u64::MAX), (2, u64::MAX), (3, 9)]
            .map(|(a, n)| Sibling { dot: Dot { actor: actor(a), n }, version });
        let brief = Container::from_parts(seen, siblings.to_vec());
        let figures = GroupFigures { keys: 1, live_bytes: KEY_BYTES + 3 * SIBLING_BYTES, dead: 1 };
        assert_eq!(round_trip(&brief).figures, figures);
    }

    #[test]
    fn a_usual_key_is_short() {
        let version = Brief { deleted: false, expires_ms: 0, request: u64::MAX, size: 10_000 };
        let brief = Container::delta(&Clock::new(), Dot { actor: actor(1), n: 1 }, version);
        let skimmed = round_trip(&brief);
        assert_eq!(skimmed.length, 18);
        assert_eq!(skimmed.figures.live_bytes, KEY_BYTES + SIBLING_BYTES + 10_000);
    }
}
