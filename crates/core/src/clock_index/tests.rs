//! The index against a plain table, and how much memory it takes.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::collections::HashMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::clock::{Actor, Dot};
use crate::container::Sibling;
use crate::names::{Key, Namespace};

fn actor(i: u64) -> Actor {
    Actor::parse(&format!("node-{i}.{}", i % 3 + 1)).unwrap()
}

fn alive(size: u64) -> Brief {
    Brief { deleted: false, expires_ms: 0, request: size.wrapping_mul(0x9e37_79b9_7f4a_7c15), size }
}

fn deletion() -> Brief {
    Brief { deleted: true, ..alive(0) }
}

fn one(n: u64, version: Brief) -> Container<Brief> {
    Container::delta(&Clock::new(), Dot { actor: actor(1), n }, version)
}

/// A key somewhere in a shard.
fn at(shard: u32, rest: u128) -> KeyHash {
    KeyHash(u128::from(shard) << 120 | rest)
}

#[test]
fn absence_is_certain_only_once_complete() {
    let mut index = ClockIndex::default();
    assert_eq!(index.get(KeyHash(1)), Known::AtLeast(Container::default()));
    index.join(KeyHash(1), one(1, alive(0)), false);
    assert_eq!(index.get(KeyHash(1)), Known::AtLeast(one(1, alive(0))));
    assert!(!index.is_complete());
    index.set_complete();
    assert!(index.is_complete());
    assert_eq!(index.get(KeyHash(1)), Known::All(one(1, alive(0))));
    assert_eq!(index.get(KeyHash(2)), Known::All(Container::default()));
}

#[test]
fn a_full_read_joins_what_came_meanwhile() {
    let mut index = ClockIndex::default();
    index.join(KeyHash(1), one(2, alive(0)), false);
    index.join(KeyHash(1), one(1, alive(0)), true);
    let Known::All(known) = index.get(KeyHash(1)) else { panic!("not full") };
    assert_eq!(known.siblings().len(), 2);
}

#[test]
fn the_dead_are_found() {
    let mut index = ClockIndex::default();
    let expires = |ms| Brief { expires_ms: ms, ..alive(9) };
    let mut mixed = one(1, deletion());
    mixed.sync(one(3, expires(50)));
    let mut half = one(1, deletion());
    half.sync(one(3, alive(9)));
    for (rest, known) in [
        (6, Known::All(one(1, deletion()))),
        (5, Known::All(one(1, expires(100)))),
        (4, Known::All(mixed.clone())),
        (3, Known::All(half)),
        (2, Known::All(Container::default())),
        (1, Known::AtLeast(one(1, deletion()))),
        (0, Known::All(one(1, alive(1)))),
    ] {
        index.set(at(0xff, rest), &known);
    }
    let hashes = |index: &ClockIndex, now| -> Vec<u128> {
        index.dead_in(255, now).iter().map(|(hash, _)| hash.0 & 0xff).collect()
    };
    assert_eq!(hashes(&index, 0), [6]);
    assert_eq!(hashes(&index, 50), [4, 6]);
    assert_eq!(hashes(&index, 100), [4, 5, 6]);
    assert_eq!(index.dead_in(255, 50)[0], (at(0xff, 4), mixed.seen().clone()));
    assert!(index.dead_in(254, 100).is_empty());
    assert!(index.dead_in(256, 100).is_empty());
    assert_eq!(index.group(15).dead, 2);
    assert_eq!(index.group(16), GroupFigures::default());
    index.set_complete();
    assert_eq!(hashes(&index, 50), [1, 4, 6]);
}

/// A shard that lost something says of nothing that it is all, unless it was told that very thing.
#[test]
fn a_full_shard_is_not_trusted() {
    let mut index = ClockIndex::default();
    let (told, partly, lost) = (at(7, 1), at(7, 2), at(7, 3));
    index.set(told, &Known::All(one(1, alive(5))));
    index.set(partly, &Known::AtLeast(one(1, deletion())));
    index.set_complete();
    assert_eq!(index.get(partly), Known::All(one(1, deletion())));
    index.set_within(lost, &Known::All(one(1, alive(5))), 70);
    assert_eq!(index.get(lost), Known::AtLeast(Container::default()));
    assert_eq!(index.get(told), Known::All(one(1, alive(5))));
    assert_eq!(index.get(partly), Known::AtLeast(one(1, deletion())));
    assert!(index.dead_in(7, 0).is_empty());
    assert_eq!(index.get(at(8, 3)), Known::All(Container::default()));
    assert!(!index.is_complete());
}

#[test]
fn many_actors_and_big_containers_come_back() {
    let mut index = ClockIndex::default();
    let big = |key: u64| {
        let mut big = Container::default();
        for i in 0..100 {
            let dot = Dot { actor: actor(key * 31 + i), n: 1 + i % 5 };
            big.sync(Container::delta(&Clock::new(), dot, alive(key + i)));
        }
        big
    };
    for key in 0..64 {
        index.set(KeyHash(u128::from(key)), &Known::All(big(key)));
    }
    for key in 0..64 {
        let Known::All(known) = index.get(KeyHash(u128::from(key))) else { panic!("not full") };
        assert_eq!(known.siblings().len(), 100);
        assert_eq!(known, big(key));
    }
    let sizes: u64 = (0..64).flat_map(|key| (0..100).map(move |i| key + i)).sum();
    let live_bytes = 64 * (packed::KEY_BYTES + 100 * packed::SIBLING_BYTES) + sizes;
    assert_eq!(index.group(0), GroupFigures { keys: 64, live_bytes, dead: 0 });
}

/// Keys as they usually are: one sibling, by one of three nodes, of some kilobytes.
fn usual(i: u64) -> (KeyHash, impl Fn(u64) -> Container<Brief>) {
    let key = Key::new(Bytes::from(format!("user-{i:08}"))).unwrap();
    let hash = KeyHash::of(7, &Namespace::new(b"carts").unwrap(), &key);
    let write = move |n: u64| {
        let context: Clock = (1..n).map(|n| Dot { actor: actor(i % 3), n }).collect();
        Container::delta(&context, Dot { actor: actor(i % 3), n }, alive(100 + (i * 7 + n * 997) % 40_000))
    };
    (hash, write)
}

/// The limit holds at every size, also right after the tables have doubled, and after each key was written often. The
/// Merkle tree comes on top: it takes the same for any number of keys.
#[test]
fn a_usual_key_takes_little_memory() {
    const KEYS: u64 = 200_000;
    const LIMIT: usize = 64;
    let bytes = |index: &ClockIndex| (index.bytes() - Tree::BYTES) as f64;
    let mut index = ClockIndex::default();
    let mut most = 0.0_f64;
    for i in 0..KEYS {
        let (hash, write) = usual(i);
        index.join(hash, write(1), true);
        if i >= 20_000 && i % 1000 == 0 {
            most = most.max(bytes(&index) / index.len() as f64);
        }
    }
    let once = bytes(&index) / KEYS as f64;
    for i in 0..2 * KEYS {
        let (hash, write) = usual(i * 7 % KEYS);
        index.join(hash, write(2 + i / KEYS), true);
        if i % 1000 == 0 {
            most = most.max(bytes(&index) / KEYS as f64);
        }
    }
    let often = bytes(&index) / KEYS as f64;
    assert_eq!(index.len() as u64, KEYS);
    assert_eq!(index.get(usual(5).0), Known::All(usual(5).1(3)));
    let figures = (0..16).map(|g| index.group(g).keys).sum::<u64>();
    assert_eq!(figures, KEYS);
    assert!(
        [most, once, often].iter().all(|each| *each <= LIMIT as f64),
        "bytes per key: {once:.1} written once, {often:.1} written three times, {most:.1} at most on the way"
    );
}

// ---- against a plain map ----

#[derive(Debug, Clone)]
enum Step {
    Set { hash: KeyHash, known: Known },
    Join { hash: KeyHash, brief: Container<Brief>, full: bool },
    Remove { hash: KeyHash },
    Complete,
}

/// Few keys, so that steps meet; some differ only where a shard's table does not look.
fn hash() -> impl Strategy<Value = KeyHash> {
    let shard = prop::sample::select(vec![0_u32, 15, 16, 255]);
    (shard, 0_u128..2, 0_u128..3).prop_map(|(shard, middle, low)| at(shard, middle << 100 | low))
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0_u64), 1_u64..100, 0_u64..100_000, any::<u64>()]
}

fn version() -> impl Strategy<Value = Brief> {
    (any::<bool>(), number(), any::<u64>(), number()).prop_map(|(deleted, expires_ms, request, size)| Brief {
        deleted,
        expires_ms,
        request,
        size,
    })
}

/// Dots seen, with gaps, and siblings among them.
fn brief() -> impl Strategy<Value = Container<Brief>> {
    let dot = (0_u64..6, 1_u64..20).prop_map(|(a, n)| Dot { actor: actor(a), n });
    let base = (0_u64..6, number());
    let siblings = prop::collection::vec((dot.clone(), version()), 0..12);
    (prop::collection::vec(base, 0..3), prop::collection::vec(dot, 0..6), siblings).prop_map(
        |(bases, dots, siblings)| {
            let mut seen: Clock = dots.into_iter().collect();
            bases.into_iter().for_each(|(a, base)| seen.insert_seen(actor(a), base, Vec::new()));
            let siblings = siblings.into_iter().map(|(dot, version)| Sibling { dot, version }).collect();
            Container::from_parts(seen, siblings)
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (hash(), brief(), any::<bool>()).prop_map(|(hash, brief, full)| {
            Step::Set { hash, known: if full { Known::All(brief) } else { Known::AtLeast(brief) } }
        }),
        6 => (hash(), brief(), any::<bool>()).prop_map(|(hash, brief, full)| Step::Join { hash, brief, full }),
        2 => hash().prop_map(|hash| Step::Remove { hash }),
        1 => Just(Step::Complete),
    ]
}

/// The index as it would be without any thought of memory.
#[derive(Default)]
struct Model {
    entries: HashMap<KeyHash, (Container<Brief>, bool)>,
    complete: bool,
}

impl Model {
    fn get(&self, hash: KeyHash) -> Known {
        let (brief, full) = self.entries.get(&hash).cloned().unwrap_or_default();
        if full || self.complete { Known::All(brief) } else { Known::AtLeast(brief) }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Set { hash, known: Known::All(brief) } => drop(self.entries.insert(hash, (brief, true))),
            Step::Set { hash, known: Known::AtLeast(brief) } => {
                drop(self.entries.insert(hash, (brief, false)));
            }
            Step::Join { hash, brief, full } => {
                let entry = self.entries.entry(hash).or_default();
                entry.0.sync(brief);
                entry.1 |= full || self.complete;
            }
            Step::Remove { hash } => drop(self.entries.remove(&hash)),
            Step::Complete => self.complete = true,
        }
    }

    fn group(&self, group: u32) -> GroupFigures {
        let mut sum = GroupFigures::default();
        for (brief, _) in self.entries.iter().filter(|(hash, _)| hash.partition(16) == group).map(|e| e.1) {
            let siblings = brief.siblings();
            sum.keys += 1;
            sum.dead += u64::from(!siblings.is_empty() && siblings.iter().all(|s| s.version.deleted));
            sum.live_bytes = sum.live_bytes.wrapping_add(packed::KEY_BYTES);
            for s in siblings {
                let size = if s.version.deleted { 0 } else { s.version.size };
                sum.live_bytes = sum.live_bytes.wrapping_add(packed::SIBLING_BYTES).wrapping_add(size);
            }
        }
        sum
    }

    fn dead_in(&self, shard: u32, now_ms: u64) -> Vec<(KeyHash, Clock)> {
        let mut dead: Vec<_> = self
            .entries
            .iter()
            .filter(|(hash, (brief, full))| {
                let siblings = brief.siblings();
                hash.partition(256) == shard
                    && (*full || self.complete)
                    && !siblings.is_empty()
                    && siblings.iter().all(|s| s.version.is_dead(now_ms))
            })
            .map(|(hash, (brief, _))| (*hash, brief.seen().clone()))
            .collect();
        dead.sort_by_key(|(hash, _)| *hash);
        dead
    }
}

fn take(index: &mut ClockIndex, step: Step) {
    match step {
        Step::Set { hash, known } => index.set(hash, &known),
        Step::Join { hash, brief, full } => index.join(hash, brief, full),
        Step::Remove { hash } => drop(index.remove(hash)),
        Step::Complete => index.set_complete(),
    }
}

proptest! {
    #[test]
    fn agrees_with_a_plain_map(steps in prop::collection::vec(step(), 0..120), now_ms in number()) {
        let (mut index, mut model) = (ClockIndex::default(), Model::default());
        for step in steps {
            if let Step::Remove { hash } = step {
                prop_assert_eq!(index.get(hash), model.get(hash));
            }
            model.take(step.clone());
            take(&mut index, step);
        }
        prop_assert_eq!(index.len(), model.entries.len());
        prop_assert_eq!(index.is_empty(), model.entries.is_empty());
        for shard in [0, 15, 16, 255] {
            for rest in 0..6 {
                let hash = at(shard, ((rest / 3) << 100) | (rest % 3));
                prop_assert_eq!(index.get(hash), model.get(hash));
            }
            for now_ms in [now_ms, 0, u64::MAX] {
                prop_assert_eq!(index.dead_in(shard, now_ms), model.dead_in(shard, now_ms));
            }
        }
        for group in 0..ClockIndex::GROUPS {
            prop_assert_eq!(index.group(group), model.group(group));
        }
        let all = [Span::of_partition(0, 1)];
        let (mut tree, mut hashes) = (Tree::default(), Vec::new());
        for (hash, (brief, _)) in &model.entries {
            tree.change(*hash, 0, leaf(*hash, brief.seen()));
            hashes.push(*hash);
            prop_assert_eq!(index.seen(*hash), Some(brief.seen().clone()));
        }
        prop_assert_eq!(index.tree(), &tree);
        hashes.sort_unstable();
        let of_shard = |shard: u32| index.hashes_in(shard, &all, None);
        prop_assert_eq!(&ClockIndex::shards_of(&all).into_iter().flat_map(of_shard).collect::<Vec<_>>(), &hashes);
        if let Some(middle) = hashes.get(hashes.len() / 2) {
            let after: Vec<_> = hashes.iter().copied().filter(|h| h > middle && h.0 >> 120 == 255).collect();
            prop_assert_eq!(index.hashes_in(255, &[Span::of_partition(255, 256)], Some(*middle)), after);
        }
        index.slots.iter().for_each(|slot| slot.shard.check());
        for (hash, _) in std::mem::take(&mut model.entries) {
            prop_assert!(index.remove(hash));
            prop_assert!(!index.remove(hash));
        }
        prop_assert!(index.is_empty());
        prop_assert!((0..16).all(|group| index.group(group) == GroupFigures::default()));
    }
}
