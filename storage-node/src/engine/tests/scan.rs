//! Pages of a scan: every record once, in order, whatever is flushed meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use cartwheel_bucket::MemoryBucket;
use cartwheel_core::clock::Clock;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Record;

use crate::memtable::RecordKey;
use crate::testing::{Machine, Process, hash, values};

const KEYS: usize = 400;
const PARTITIONS: u32 = 4;

fn name(i: usize) -> String {
    format!("key-{i:04}")
}

/// 1 KiB each, and now and then more than a block.
fn value(i: usize, round: usize) -> String {
    format!("{i}.{round}.{}", "x".repeat(if i.is_multiple_of(50) { 40_000 } else { 1_000 }))
}

struct Filled {
    process: Process,
    /// By key, what must be read.
    expected: BTreeMap<String, String>,
}

/// Writes each key of `range` anew over what is there.
async fn overwrite(filled: &mut Filled, keys: impl Iterator<Item = usize>, round: usize) {
    for i in keys {
        let seen = filled.process.container(&name(i)).await.seen().clone();
        filled.process.put(&name(i), &value(i, round), &seen, Durability::Memory).await;
        filled.expected.insert(name(i), value(i, round));
    }
}

/// Three segments of many blocks that overlap, and a memtable over them.
async fn filled() -> Filled {
    let process = Machine::without_disk().boot().await;
    process.load_index().await;
    let mut filled = Filled { process, expected: BTreeMap::new() };
    overwrite(&mut filled, 0..KEYS, 0).await;
    filled.process.flush().await;
    overwrite(&mut filled, (0..KEYS).step_by(3), 1).await;
    filled.process.flush().await;
    overwrite(&mut filled, (0..KEYS).step_by(5), 2).await;
    filled.process.flush().await;
    overwrite(&mut filled, (0..KEYS).step_by(7), 3).await;
    filled
}

struct Page {
    records: Vec<Record>,
    bytes: usize,
    more: bool,
}

async fn page(process: &Process, partition: u32, after: Option<&Record>, budget: usize) -> Page {
    let (first, last) = KeyHash::partition_range(partition, PARTITIONS);
    let after = after.map(|r| RecordKey::new(record_hash(r), &r.namespace, &r.key));
    let (page, more) = process.engine.scan(first, last, after.as_ref(), budget, None).await.unwrap();
    let bytes = page.iter().map(|b| b.len()).sum();
    Page { records: page.iter().map(|b| Record::decode(b).unwrap()).collect(), bytes, more }
}

fn record_hash(record: &Record) -> KeyHash {
    hash(&record_name(record))
}

fn record_name(record: &Record) -> String {
    String::from_utf8(record.key.as_bytes().to_vec()).unwrap()
}

fn names_of(expected: &BTreeMap<String, String>, partition: u32) -> Vec<String> {
    let mut names: Vec<String> =
        expected.keys().filter(|n| hash(n).partition(PARTITIONS) == partition).cloned().collect();
    names.sort_by_key(|n| hash(n));
    names
}

#[tokio::test]
async fn every_record_comes_once_in_order_and_pages_keep_their_budget() {
    let filled = filled().await;
    for budget in [1, 10_000, 300_000, usize::MAX] {
        for partition in 0..PARTITIONS {
            let mut found: Vec<Record> = Vec::new();
            loop {
                let page = page(&filled.process, partition, found.last(), budget).await;
                let without_last: usize = page.bytes - page.records.last().map_or(0, |r| r.encode().len());
                assert!(without_last < budget, "{without_last} bytes and another record");
                found.extend(page.records);
                if !page.more {
                    break;
                }
            }
            let names: Vec<String> = found.iter().map(record_name).collect();
            assert_eq!(names, names_of(&filled.expected, partition));
            for record in &found {
                assert_eq!(values(&record.container), [filled.expected[&record_name(record)].clone()]);
            }
        }
    }
}

#[tokio::test]
async fn flushes_and_writes_between_pages_change_nothing_of_that() {
    let mut filled = filled().await;
    let (partition, mut round) = (1, 4);
    let names = names_of(&filled.expected, partition);
    let mut found: Vec<Record> = Vec::new();
    loop {
        let page = page(&filled.process, partition, found.last(), 20_000).await;
        for record in &page.records {
            assert_eq!(values(&record.container), [filled.expected[&record_name(record)].clone()]);
        }
        found.extend(page.records);
        if !page.more {
            break;
        }
        // Some of what comes next moves into a segment, and some is written anew.
        match round % 3 {
            0 => filled.process.flush().await,
            1 => drop(filled.process.engine.freeze()),
            _ => {}
        }
        overwrite(&mut filled, (round % 11..KEYS).step_by(11), round).await;
        round += 1;
    }
    assert!(round > 8, "{round}: too few pages to prove anything");
    assert_eq!(found.iter().map(record_name).collect::<Vec<_>>(), names);
}

#[tokio::test]
async fn a_page_without_a_budget_still_makes_way() {
    let filled = filled().await;
    let first = page(&filled.process, 0, None, 0).await;
    assert_eq!(first.records.len(), 1);
    let second = page(&filled.process, 0, first.records.last(), 0).await;
    assert_ne!(record_name(&first.records[0]), record_name(&second.records[0]));
}

/// The lock is held for about a page, not for all that memory holds.
#[tokio::test]
async fn a_page_takes_no_more_from_memory_than_it_needs() {
    let filled = filled().await;
    let (first, last) = (KeyHash(0), KeyHash(u128::MAX));
    let (held, bound) = filled.process.engine.scan_memory(first, last, None, 5_000);
    assert!(held.len() <= 5, "{}", held.len());
    assert!(held.iter().all(|(hash, _)| *hash < bound.unwrap()));
}

#[tokio::test]
async fn an_empty_range_is_an_empty_page() {
    let process = Machine::without_disk().boot().await;
    let page = page(&process, 2, None, 1000).await;
    assert_eq!((page.records.len(), page.bytes, page.more), (0, 0, false));
}

#[tokio::test]
async fn siblings_that_lie_in_different_segments_come_together() {
    let mut process = Machine::without_disk().boot().await;
    for text in ["one", "two", "three"] {
        process.put("k", text, &Clock::new(), Durability::Memory).await;
        process.flush().await;
    }
    let page = page(&process, hash("k").partition(PARTITIONS), None, 1000).await;
    assert_eq!(values(&page.records[0].container), ["one", "three", "two"]);
}

/// What a home that lost its disk asks for: what it has in the bucket already it need not be told again.
#[tokio::test(start_paused = true)]
async fn a_scan_of_what_is_young_leaves_out_what_went_into_the_bucket_before() {
    let mut process = Machine::without_disk().boot().await;
    process.put("old", "a", &Clock::new(), Durability::Memory).await;
    process.put("both", "b", &Clock::new(), Durability::Memory).await;
    process.flush().await;
    tokio::time::advance(Duration::from_secs(10)).await;
    process.put("both", "c", &Clock::new(), Durability::Memory).await;
    process.flush().await;
    process.put("unflushed", "d", &Clock::new(), Durability::Memory).await;
    for (age, expected) in [(5, vec!["c", "d"]), (15, vec!["a", "b", "c", "d"])] {
        assert_eq!(young(&process, Duration::from_secs(age)).await, expected, "{age} s");
    }
}

/// By the store's clock: that of this machine may be wrong.
#[tokio::test]
async fn what_earlier_processes_flushed_is_as_old_as_the_store_says() {
    let store = Arc::new(MemoryBucket::new());
    let machine = Machine { bucket: store.clone(), ..Machine::without_disk() };
    store.set_now_ms(1_000_000);
    let mut process = machine.boot().await;
    process.put("old", "a", &Clock::new(), Durability::Memory).await;
    process.flush().await;
    process.commit().await;
    store.set_now_ms(1_040_000);
    process.put("young", "b", &Clock::new(), Durability::Memory).await;
    process.flush().await;
    drop(process);
    store.set_now_ms(1_060_000);
    let process = machine.boot().await;
    assert_eq!(young(&process, Duration::from_secs(40)).await, ["b"]);
    assert_eq!(young(&process, Duration::from_secs(80)).await, ["a", "b"]);
}

/// The values of a scan of what came in during the last `age`, in order.
async fn young(process: &Process, age: Duration) -> Vec<String> {
    let since = Instant::now().checked_sub(age);
    let (first, last) = (KeyHash(0), KeyHash(u128::MAX));
    let (page, more) = process.engine.scan(first, last, None, 1 << 20, since).await.unwrap();
    assert!(!more);
    let mut found: Vec<String> =
        page.iter().flat_map(|bytes| values(&Record::decode(bytes).unwrap().container)).collect();
    found.sort();
    found
}
