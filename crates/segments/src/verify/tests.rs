//! Sound segments pass, and every kind of damage is found.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use cartwheel_bucket::MemoryBucket;
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::record::{Value, Version};
use cartwheel_core::segment::{BLOCK_BYTES, BuiltSegment, SegmentBuilder};

use super::*;

const SEED: u64 = 7;
const NAME: &str = "nodes/a/f/0000000001-ab/0000000001.seg";

fn record(key: usize, size: usize) -> (KeyHash, Record) {
    let namespace = Namespace::new(b"carts").unwrap();
    let key = Key::new(format!("key-{key}").into_bytes().into()).unwrap();
    let dot = Dot { actor: Actor::parse("node-a.1").unwrap(), n: 1 };
    let version = Version {
        value: Value::Present(vec![b'x'; size].into()),
        written_ms: 1,
        expires_ms: 0,
        request: 5,
        context: Clock::new(),
        content_type: Bytes::new(),
        meta: Vec::new(),
    };
    let container = Container::delta(&Clock::new(), dot, version);
    (KeyHash::of(SEED, &namespace, &key), Record { namespace, key, container })
}

fn sorted(count: usize, size: usize) -> Vec<(KeyHash, Record)> {
    let mut records: Vec<_> = (0..count).map(|key| record(key, size)).collect();
    records.sort_by_key(|(hash, _)| *hash);
    records
}

fn brief(record: &Record) -> Container<Brief> {
    record.container.map(|version| Brief::from(version))
}

fn build(records: &[(KeyHash, Record)]) -> BuiltSegment {
    let mut builder = SegmentBuilder::new();
    for (hash, record) in records {
        builder.push(*hash, &record.encode(), &brief(record));
    }
    builder.finish().unwrap()
}

async fn check(bytes: Bytes, entry: Option<&SegmentEntry>, seed: Option<u64>) -> Verified {
    let bucket = MemoryBucket::new();
    let size = bytes.len() as u64;
    bucket.put(NAME, bytes).await.unwrap();
    verify(&bucket, NAME, size, entry, seed).await.unwrap()
}

fn words(verified: &Verified) -> String {
    verified.damages.iter().map(|damage| format!("{damage}\n")).collect()
}

#[tokio::test]
async fn a_sound_segment_passes_whatever_its_size() {
    for (count, size) in [(1, 0), (3, 10), (500, 700), (5, BLOCK_BYTES * 2), (3, 5 << 20)] {
        let built = build(&sorted(count, size));
        let entry = SegmentEntry::of(NAME.to_owned(), &built);
        for seed in [Some(SEED), None] {
            let verified = check(built.bytes.clone(), Some(&entry), seed).await;
            assert!(verified.is_sound(), "{count} of {size}: {}", words(&verified));
            assert_eq!((verified.records, verified.siblings), (count as u64, count as u64));
        }
    }
}

#[tokio::test]
async fn figures_come_from_the_tail() {
    let built = build(&sorted(200, 700));
    let bucket = MemoryBucket::new();
    let size = built.bytes.len() as u64;
    bucket.put(NAME, built.bytes.clone()).await.unwrap();
    let verification = Verification::open(&bucket, NAME, size, None, None).await.unwrap();
    let figures = verification.figures().unwrap();
    assert_eq!((figures.records, figures.tail_offset), (200, built.tail_offset));
    assert_eq!((figures.first, figures.last), (built.first, built.last));
    assert_eq!(figures.filter_bytes, 200 * 14 / 8);
    assert_eq!(figures.clocks.0, 8 + figures.block_bytes);
    assert_eq!(figures.clocks.0 + figures.clocks.1, built.tail_offset);
    assert!(figures.blocks > 3);
}

#[tokio::test]
async fn every_flipped_byte_and_every_cut_is_found() {
    let built = build(&sorted(12, 40));
    for at in 0..built.bytes.len() {
        let mut bad = built.bytes.to_vec();
        bad[at] ^= 1 << (at % 8);
        assert!(!check(bad.into(), None, None).await.is_sound(), "byte {at}");
        assert!(!check(built.bytes.slice(..at), None, None).await.is_sound(), "cut at {at}");
    }
}

/// One damaged block says so itself; what comes after it is still verified.
#[tokio::test]
async fn a_damaged_block_is_named_and_the_others_are_read() {
    let records = sorted(400, 700);
    let built = build(&records);
    let block = 8 + BLOCK_BYTES + 2000;
    let mut bad = built.bytes.to_vec();
    bad[block] ^= 4;
    for seed in [Some(SEED), None] {
        let verified = check(bad.clone().into(), None, seed).await;
        assert_eq!(verified.damages.len(), 1, "{}", words(&verified));
        assert_eq!(verified.damages[0].part, Part::Block(1));
        assert!(words(&verified).contains("checksum mismatch in segment block"), "{}", words(&verified));
        assert!((300..400).contains(&verified.records));
    }
}

/// What no checksum shows: a writer that put the wrong thing in.
#[tokio::test]
async fn what_does_not_belong_together_is_found() {
    let good = sorted(5, 10);
    let mut swapped = good.clone();
    swapped.swap(1, 2);
    let twice = [&good[..], &good[4..]].concat();
    let mut builder = SegmentBuilder::new();
    for (at, (hash, record)) in good.iter().enumerate() {
        let mut other = brief(record);
        if at == 3 {
            other = Container::delta(
                &Clock::new(),
                Dot { actor: Actor::parse("node-a.1").unwrap(), n: 2 },
                Brief { deleted: false, expires_ms: 0, request: 0, size: 10 },
            );
        }
        builder.push(*hash, &record.encode(), &other);
    }
    let clocks = builder.finish().unwrap();
    let mut builder = SegmentBuilder::new();
    for (at, (hash, record)) in good.iter().enumerate() {
        let bytes = if at == 2 { Bytes::from_static(b"not a record at all") } else { record.encode() };
        builder.push(*hash, &bytes, &brief(record));
    }
    let rotten = builder.finish().unwrap();
    for (built, says) in [
        (build(&swapped), "does not come after"),
        (build(&twice), "does not come after"),
        (clocks, "its record 3: the clock column has another clock"),
        (rotten, "its record 2: checksum mismatch in record"),
    ] {
        for seed in [Some(SEED), None] {
            let verified = check(built.bytes.clone(), None, seed).await;
            assert!(words(&verified).contains(says), "{says}: {}", words(&verified));
        }
    }
    // Under another seed the hashes are wrong, and only the seed shows it.
    let verified = check(build(&good).bytes, None, Some(SEED + 1)).await;
    assert!(words(&verified).contains("the clock column has another hash"), "{}", words(&verified));
}

#[tokio::test]
async fn a_manifest_that_says_otherwise_is_found() {
    let built = build(&sorted(5, 10));
    let good = SegmentEntry::of(NAME.to_owned(), &built);
    type Change = fn(&mut SegmentEntry);
    let wrong: [(&str, Change); 5] = [
        ("bytes", |entry| entry.bytes += 1),
        ("tail_offset", |entry| entry.tail_offset += 1),
        ("records", |entry| entry.records += 1),
        ("first", |entry| entry.first = KeyHash(0)),
        ("last", |entry| entry.last = KeyHash(u128::MAX)),
    ];
    for (field, change) in wrong {
        let mut entry = good.clone();
        change(&mut entry);
        let verified = check(built.bytes.clone(), Some(&entry), None).await;
        assert_eq!(verified.damages.len(), 1, "{}", words(&verified));
        assert!(words(&verified).contains(&format!("the manifest says {field} ")), "{}", words(&verified));
    }
}

#[tokio::test]
async fn much_damage_is_counted() {
    let mut records = sorted(100, 10);
    records.reverse();
    let verified = check(build(&records).bytes, None, Some(SEED)).await;
    assert_eq!(verified.damages.len(), MAX_DAMAGES);
    assert!(verified.more_damages > 50);
}

#[tokio::test]
async fn an_object_that_is_gone_is_not_damaged() {
    let gone = verify(&MemoryBucket::new(), NAME, 100, None, None).await;
    assert!(gone.is_err_and(|error| error.is_not_found()));
}

#[test]
fn segments_of_one_run_that_meet_are_found() {
    let entry = |run: &str, first, last| SegmentEntry {
        object: String::new(),
        bytes: 1,
        tail_offset: 0,
        records: 1,
        first: KeyHash(first),
        last: KeyHash(last),
        run: run.to_owned(),
        born_ms: 0,
        only: Vec::new(),
    };
    let apart = [entry("a", 5, 9), entry("b", 1, 9), entry("a", 1, 4)];
    assert!(overlaps(&apart).is_empty());
    let meet = [entry("a", 5, 9), entry("b", 1, 9), entry("a", 1, 5)];
    assert_eq!(overlaps(&meet), [(2, 0)]);
}
