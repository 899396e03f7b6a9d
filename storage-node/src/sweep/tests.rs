//! Nothing is deleted before its time, or by whom it does not belong to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use cartwheel_bucket::Bucket;
use cartwheel_core::clock::Clock;
use cartwheel_core::manifest::Quarantined;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;

use super::*;
use crate::engine::Found;
use crate::segments::Segments;
use crate::segments::pins::{Pin, pin, unpin};
use crate::testing::upkeep::{GRACE, StopBucket, Store, wide_plan};
use crate::testing::{Process, record_key};

/// A process that has merged five flushes into one segment, and says so.
async fn merged(store: &Store) -> (Process, BTreeSet<String>) {
    let mut process = store.machine(store.bucket(), None).boot().await;
    process.load_index().await;
    for n in 0..5 {
        process.put(&format!("k{n}"), "value", &Clock::new(), Durability::Memory).await;
        process.flush().await;
    }
    process.commit().await;
    let inputs = process.engine.segments.all();
    process.compactor().merge(&inputs, &wide_plan()).await.unwrap();
    (process, inputs.iter().map(|segment| segment.object.clone()).collect())
}

/// Lets other tasks run for so long, by this process's clock.
async fn pass(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// Rounds until what was dropped before could be deleted.
async fn rounds(store: &Store, process: &Process) -> usize {
    let mut deleted = 0;
    for _ in 0..2 {
        deleted += process.sweeper(GRACE).round(true).await.unwrap().deleted;
        store.advance(GRACE);
    }
    deleted + process.sweeper(GRACE).round(true).await.unwrap().deleted
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_stays_for_the_grace_by_the_stores_clock() {
    let store = Store::new();
    let (process, flushes) = merged(&store).await;
    let sweeper = process.sweeper(GRACE);
    assert_eq!(sweeper.round(true).await.unwrap(), Swept::default());
    // This process's own clock does not count.
    tokio::time::advance(GRACE * 10).await;
    store.clock.advance(10_000_000);
    assert_eq!(sweeper.round(true).await.unwrap(), Swept::default());
    store.advance(GRACE / 2);
    assert_eq!(sweeper.round(true).await.unwrap(), Swept::default());
    assert_eq!(store.objects("f").await, flushes);
    store.advance(GRACE / 2);
    assert_eq!(sweeper.round(true).await.unwrap().deleted, flushes.len());
    assert!(store.objects("f").await.is_empty());
    assert_eq!(rounds(&store, &process).await, 0);
    let manifest = store.manifest().await;
    assert_eq!((manifest.dropped.len(), manifest.segments.len()), (0, 1));
    let next = store.machine(store.bucket(), None).boot().await;
    next.load_index().await;
    for n in 0..5 {
        assert_eq!(next.values(&format!("k{n}")).await, ["value"]);
    }
}

/// The time that counts is that of a manifest which is known to drop it.
#[tokio::test(start_paused = true)]
async fn the_grace_begins_with_the_manifest_that_drops_it() {
    let store = Store::new();
    let (process, flushes) = merged(&store).await;
    let object = "nodes/node-a/c/0123456789abcdef/0000000001.seg".to_owned();
    store.memory.put(&object, "x".into()).await.unwrap();
    let sweeper = process.sweeper(GRACE);
    sweeper.round(true).await.unwrap();
    store.advance(GRACE);
    let swept = sweeper.round(true).await.unwrap();
    assert_eq!(swept, Swept { deleted: flushes.len(), orphans: 1, adopted: 0 });
    store.advance(GRACE / 2);
    assert_eq!(sweeper.round(true).await.unwrap().deleted, 0, "it was dropped, but not said to be until now");
    store.advance(GRACE / 2);
    assert_eq!(sweeper.round(true).await.unwrap().deleted, 0);
    assert!(store.objects("c").await.contains(&object));
    store.advance(GRACE / 2);
    assert_eq!(sweeper.round(true).await.unwrap().deleted, 1);
    assert!(!store.objects("c").await.contains(&object));
}

#[tokio::test(start_paused = true)]
async fn a_young_orphan_may_be_somebodys() {
    let store = Store::new();
    let (process, _) = merged(&store).await;
    store.advance(GRACE);
    let object = "nodes/node-a/g/0123456789abcdef/0000000001.seg".to_owned();
    store.memory.put(&object, "x".into()).await.unwrap();
    assert_eq!(process.sweeper(GRACE).round(true).await.unwrap().orphans, 0);
    store.advance(GRACE);
    assert_eq!(process.sweeper(GRACE).round(false).await.unwrap().orphans, 0, "it was not to look");
    assert_eq!(process.sweeper(GRACE).round(true).await.unwrap().orphans, 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_pinned_stays_until_it_is_let_go_of() {
    let store = Store::new();
    let mut process = store.machine(store.bucket(), None).boot().await;
    process.load_index().await;
    let node = process.me.node.clone();
    for n in 0..5 {
        process.put(&format!("k{n}"), "value", &Clock::new(), Durability::Memory).await;
        process.flush().await;
    }
    process.commit().await;
    let inputs = process.engine.segments.all();
    let held = Pin {
        holder: NodeId::new("reader").unwrap(),
        nonce: "1".to_owned(),
        objects: BTreeSet::from([inputs[1].object.clone()]),
    };
    assert!(pin(&*store.memory, &node, &held).await.unwrap());
    process.compactor().merge(&inputs, &wide_plan()).await.unwrap();
    assert_eq!(rounds(&store, &process).await, 4);
    assert!(store.objects("f").await.contains(&inputs[1].object));
    // One that can't be read may be about anything.
    let unreadable = "nodes/node-a/pins/other-1.json";
    store.memory.put(unreadable, "{".into()).await.unwrap();
    unpin(&*store.memory, &node, &held).await.unwrap();
    store.advance(GRACE);
    assert!(process.sweeper(GRACE).round(true).await.is_err());
    assert!(store.objects("f").await.contains(&inputs[1].object));
    store.memory.delete(unreadable).await.unwrap();
    assert_eq!(process.sweeper(GRACE).round(true).await.unwrap().deleted, 1);
    assert!(!store.objects("f").await.contains(&inputs[1].object));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_replaced_deletes_and_drops_nothing() {
    let store = Store::new();
    let (old, flushes) = merged(&store).await;
    old.sweeper(GRACE).round(true).await.unwrap();
    store.advance(GRACE);
    let new = store.machine(store.bucket(), None).boot().await;
    new.load_index().await;
    let before = store.manifest().await;
    assert_eq!(old.sweeper(GRACE).round(true).await.unwrap(), Swept::default());
    assert!(old.engine.is_fenced());
    assert_eq!(store.objects("f").await, flushes);
    assert_eq!(store.manifest().await, before);
    // Who has the say now does it.
    assert_eq!(rounds(&store, &new).await, flushes.len());
}

/// Another process takes over between the manifest and the look at it.
#[tokio::test(start_paused = true)]
async fn a_process_finds_out_that_it_was_replaced_when_it_reads_its_manifest_back() {
    let store = Store::new();
    let bucket = StopBucket::new(store.bucket(), usize::MAX, false);
    let machine = store.machine(Arc::<StopBucket>::clone(&bucket), None);
    let mut old = machine.boot().await;
    old.load_index().await;
    for n in 0..5 {
        old.put(&format!("k{n}"), "value", &Clock::new(), Durability::Memory).await;
        old.flush().await;
    }
    old.commit().await;
    old.compactor().merge(&old.engine.segments.all(), &wide_plan()).await.unwrap();
    let sweeper = old.sweeper(GRACE);
    sweeper.round(true).await.unwrap();
    store.advance(GRACE);
    // A manifest is created, and nothing newer is found; then it is read back.
    bucket.stop_after(2);
    let mut round = Box::pin(sweeper.round(true));
    assert!(bucket.run(&mut round).await.is_none());
    let new = store.machine(store.bucket(), None).boot().await;
    bucket.go_on();
    assert_eq!(round.await.unwrap(), Swept::default());
    assert!(old.engine.is_fenced());
    assert_eq!(store.objects("f").await.len(), 5);
    drop(new);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_before_the_node_is_whole() {
    let store = Store::new();
    let (process, flushes) = merged(&store).await;
    let mut sweeper = process.sweeper(GRACE);
    sweeper.whole = Arc::new(AtomicBool::new(false));
    let whole = Arc::clone(&sweeper.whole);
    let running = tokio::spawn(sweeper.run());
    for _ in 0..4 {
        pass(GRACE).await;
        store.advance(GRACE);
    }
    assert_eq!(store.objects("f").await, flushes);
    whole.store(true, Ordering::Release);
    for _ in 0..4 {
        pass(GRACE).await;
        store.advance(GRACE);
    }
    assert!(store.objects("f").await.is_empty());
    running.abort();
}

/// What this process reads is not deleted, whatever the list of what was dropped says.
#[tokio::test(start_paused = true)]
async fn what_is_read_is_never_deleted() {
    let store = Store::new();
    let (process, _) = merged(&store).await;
    let piece = process.engine.segments.all()[0].object.clone();
    process.ledger.note_dropped(std::iter::once((piece.clone(), 1)));
    assert!(!process.ledger.drop_orphan(piece.clone(), 1));
    rounds(&store, &process).await;
    assert!(store.objects("c").await.contains(&piece));
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_the_old_segments_reads_on_for_the_grace() {
    let store = Store::new();
    let (process, flushes) = merged(&store).await;
    process.sweeper(GRACE).round(true).await.unwrap();
    let segments = Segments::new(store.bucket(), 0);
    let mut old = Vec::new();
    for object in &flushes {
        let bytes = store.memory.get(object).await.unwrap().len() as u64;
        old.push(segments.open(object.clone(), bytes, None, None));
    }
    store.advance(GRACE / 2);
    process.sweeper(GRACE).round(true).await.unwrap();
    let found = segments.read_in(&old, &record_key("k0"), None).await.unwrap();
    assert_eq!(found.siblings().len(), 1, "all of it is still there");
    store.advance(GRACE / 2);
    assert_eq!(process.sweeper(GRACE).round(true).await.unwrap().deleted, 5);
    assert!(segments.read_in(&old, &record_key("k0"), None).await.is_err_and(|error| error.is_missing()));
}

/// A read that was under way for longer than the grace looks again, at what has taken the old segments' place.
#[tokio::test(start_paused = true)]
async fn a_read_whose_segments_have_gone_takes_the_new_ones() {
    let store = Store::new();
    let (process, _) = merged(&store).await;
    drop(process);
    let bucket = StopBucket::new(store.bucket(), usize::MAX, false);
    let process = store.machine(Arc::<StopBucket>::clone(&bucket), None).boot().await;
    process.load_index().await;
    bucket.stop_after(0);
    let key = record_key("k0");
    let mut reading = Box::pin(process.engine.read(&key));
    assert!(bucket.run(&mut reading).await.is_none());
    let old = process.engine.segments.all();
    let moved = "nodes/node-a/c/0123456789abcdef/0000000001.seg".to_owned();
    store.memory.put(&moved, store.memory.get(&old[0].object).await.unwrap()).await.unwrap();
    store.memory.delete(&old[0].object).await.unwrap();
    let with = process.engine.segments.open(moved, old[0].bytes, None, None);
    assert!(process.engine.swap(&old, vec![with], &[]));
    bucket.go_on();
    assert!(matches!(reading.await.unwrap(), Found::Record(_)));
}

/// Flushes of a process that was thought dead are taken up once, whenever they come.
#[tokio::test(start_paused = true)]
async fn what_was_put_late_is_taken_up() {
    let store = Store::new();
    let (mut old, _) = merged(&store).await;
    let new = store.machine(store.bucket(), None).boot().await;
    new.load_index().await;
    assert_eq!(new.values("k0").await, ["value"]);
    old.put("k0", "late", &Clock::new(), Durability::Memory).await;
    old.put("only here", "late", &Clock::new(), Durability::Memory).await;
    assert!(new.values("only here").await.is_empty());
    old.flush().await;
    assert_eq!(new.sweeper(GRACE).round(false).await.unwrap().adopted, 0);
    assert_eq!(new.sweeper(GRACE).round(true).await.unwrap().adopted, 1);
    assert_eq!(new.values("k0").await, ["late", "value"], "not the row that was cached");
    assert_eq!(new.values("only here").await, ["late"]);
    assert_eq!(new.sweeper(GRACE).round(true).await.unwrap().adopted, 0);
    let named = store.manifest().await.segments;
    assert!(named.iter().any(|entry| entry.object.starts_with(&old.me.segment_prefix())));
}

/// What was dropped waits for its end, also in the next process: it is not read again.
#[tokio::test(start_paused = true)]
async fn what_was_dropped_is_not_taken_up_again() {
    let store = Store::new();
    let (process, flushes) = merged(&store).await;
    drop(process);
    let next = store.machine(store.bucket(), None).boot().await;
    let read: Vec<String> = next.engine.segments.all().iter().map(|s| s.object.clone()).collect();
    assert!(read.iter().all(|object| !flushes.contains(object)), "{read:?}");
    next.load_index().await;
    assert_eq!(next.sweeper(GRACE).round(true).await.unwrap().adopted, 0);
    assert_eq!(next.values("k0").await, ["value"]);
}

/// A PUT of a flush that was repeated lands after the flush was merged and deleted: it is dropped again, by the process
/// that runs and by the next, and never taken up, for its DELETE may have been repeated too.
#[tokio::test(start_paused = true)]
async fn a_flush_that_comes_back_is_not_taken_up_again() {
    for next_process in [false, true] {
        let store = Store::new();
        let mut process = store.machine(store.bucket(), None).boot().await;
        process.load_index().await;
        let mut copies = Vec::new();
        for value in ["one", "two", "three", "four"] {
            process.put("k", value, &Clock::new(), Durability::Memory).await;
            process.flush().await;
        }
        process.commit().await;
        for segment in process.engine.segments.all().iter() {
            let bytes = store.bucket().get(&segment.object).await.unwrap();
            copies.push((segment.object.clone(), bytes));
        }
        let compactor = process.compactor();
        while compactor.once().await.unwrap() {}
        for _ in 0..3 {
            store.advance(GRACE);
            process.sweeper(GRACE).round(true).await.unwrap();
        }
        let (object, bytes) = copies.swap_remove(0);
        assert!(store.bucket().get(&object).await.is_err(), "it was merged and deleted");
        store.bucket().put(&object, bytes).await.unwrap();
        if next_process {
            process = store.machine(store.bucket(), None).boot().await;
            process.load_index().await;
        }
        assert!(!process.ledger.names(&object));
        for _ in 0..4 {
            store.advance(GRACE);
            let swept = process.sweeper(GRACE).round(true).await.unwrap();
            assert_eq!(swept.adopted, 0);
        }
        assert!(!process.ledger.names(&object));
        assert!(store.bucket().get(&object).await.is_err(), "and deleted once more");
        assert_eq!(process.values("k").await.len(), 4);
    }
}

/// The manifest says up to when all that was acknowledged is in segments: never later than a record that is not.
#[tokio::test(start_paused = true)]
async fn the_manifest_says_up_to_when_everything_is_in_segments() {
    let store = Store::new();
    let disk: std::sync::Arc<dyn crate::disk::Disk> = std::sync::Arc::new(crate::disk::MemoryDisk::default());
    let mut process = store.machine(store.bucket(), Some(disk.clone())).boot().await;
    let begun = held_ms(&store, &process).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    let idle = held_ms(&store, &process).await;
    assert!(idle >= begun + 60_000, "nothing waits: {idle} after {begun}");
    process.put("k", "v", &Clock::new(), Durability::Disk).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    let waiting = held_ms(&store, &process).await;
    assert!(waiting < idle + 1000, "the record waits since then: {waiting}");
    drop(process);
    process = store.machine(store.bucket(), Some(disk)).boot().await;
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(held_ms(&store, &process).await < idle + 1000, "and still does, replayed from the log");
    process.flush().await;
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(held_ms(&store, &process).await > idle + 1000);
}

async fn held_ms(store: &Store, process: &Process) -> u64 {
    process.commit().await;
    store.manifest().await.held_ms
}

/// A segment that an earlier process put late has more of a key than memory believes to be all: both are read at once,
/// and after the next flush.
#[tokio::test(start_paused = true)]
async fn what_is_taken_up_late_joins_what_memory_holds() {
    let store = Store::new();
    let mut old = store.machine(store.bucket(), None).boot().await;
    old.load_index().await;
    let mut new = store.machine(store.bucket(), None).boot().await;
    new.load_index().await;
    new.put("k", "from the newer", &Clock::new(), Durability::Memory).await;
    old.put("k", "from the older", &Clock::new(), Durability::Memory).await;
    old.flush().await;
    assert_eq!(new.values("k").await, ["from the newer"]);
    assert_eq!(new.sweeper(GRACE).round(true).await.unwrap().adopted, 1);
    let both = ["from the newer", "from the older"];
    assert_eq!(new.values("k").await, both);
    new.flush().await;
    assert_eq!(new.values("k").await, both);
}

/// One damaged flush of an earlier process does not keep the manifest from being written.
#[tokio::test(start_paused = true)]
async fn the_manifest_is_written_without_a_damaged_segment() {
    let store = Store::new();
    let mut first = store.machine(store.bucket(), None).boot().await;
    first.load_index().await;
    for n in 0..6 {
        first.put(&format!("k{n}"), "value", &Clock::new(), Durability::Memory).await;
        first.flush().await;
    }
    let damaged = store.objects("f").await.into_iter().nth(2).unwrap();
    let mut bytes = store.bucket().get(&damaged).await.unwrap().to_vec();
    let end = bytes.len() - 20;
    bytes[end] ^= 1;
    store.bucket().put(&damaged, bytes.into()).await.unwrap();
    drop(first);
    let process = store.machine(store.bucket(), None).boot().await;
    process.commit().await;
    let manifest = store.manifest().await;
    assert_eq!(manifest.segments.len(), 5);
    assert!(!manifest.has_taken(&damaged), "it is still there to be looked at");
}

/// What is damaged is kept for people, and is no flush that turned up late.
#[tokio::test(start_paused = true)]
async fn what_is_quarantined_is_neither_deleted_nor_taken_up() {
    let store = Store::new();
    let mut process = store.machine(store.bucket(), None).boot().await;
    process.load_index().await;
    for n in 0..2 {
        process.put(&format!("k{n}"), "value", &Clock::new(), Durability::Memory).await;
        process.flush().await;
    }
    process.commit().await;
    let flushes = store.objects("f").await;
    let damaged = process.engine.segments.all()[0].clone();
    let entry = |object: String| Quarantined { object, bytes: damaged.bytes, lost: Vec::new() };
    process.ledger.quarantine(entry(damaged.object.clone()), || process.engine.give_up(Some(&damaged))).await;
    let piece = "nodes/node-a/c/0123456789abcdef/0000000001.seg".to_owned();
    store.memory.put(&piece, "x".into()).await.unwrap();
    process.ledger.quarantine(entry(piece.clone()), || {}).await;
    process.load_index().await;
    assert_eq!(rounds(&store, &process).await, 0);
    assert_eq!((store.objects("f").await, store.objects("c").await), (flushes.clone(), [piece].into()));
    assert!(process.engine.segments.all().iter().all(|segment| segment.object != damaged.object));
    assert!(process.container("k0").await.siblings().is_empty());
    // One that follows neither, and one of another incarnation sees flushes of this one as late.
    let next = store.machine(store.bucket(), None).boot().await;
    next.load_index().await;
    assert_eq!(rounds(&store, &next).await, 0);
    assert!(next.engine.segments.all().iter().all(|segment| segment.object != damaged.object));
    assert_eq!(store.objects("f").await, flushes);
    assert_eq!(next.values("k1").await, ["value"]);
}
