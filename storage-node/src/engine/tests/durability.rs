//! An acknowledgement is given at the level it names, and no earlier.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use cartwheel_bucket::{CERTAIN, Faults, FaultyBucket, MemoryBucket, OperationFaults};
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Record;
use cartwheel_core::wire::Refusal;

use crate::engine::Engine;
use crate::engine::Graved;
use crate::testing::{GatedDisk, Machine, Process, hash, key, mint_request, namespace, version};

/// The nth write of another node to this key.
fn record(name: &str, n: u64) -> Record {
    let dot = Dot { actor: Actor::parse("node-b.1").unwrap(), n };
    let container = Container::delta(&Clock::new(), dot, version(n.into(), &Clock::new(), b"value"));
    Record { namespace: namespace(), key: key(name), container }
}

fn unable(process: &Process, durability: Durability) -> String {
    match process.replicate(&record("refused", 1), durability) {
        Err(Refusal::Unable(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// Lets every task that can run do so until `done`.
async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn memory_is_acknowledged_at_once_and_disk_once_the_append_returned() {
    let (disk, gate) = GatedDisk::new();
    let machine = Machine { disk: Some(disk.clone()), ..Machine::without_disk() };
    let process = machine.boot().await;
    let mut in_memory = process.replicate(&record("k", 1), Durability::Memory).unwrap();
    assert_eq!(in_memory.try_recv(), Ok(Durability::Memory));
    let mut on_disk = process.replicate(&record("k", 2), Durability::Disk).unwrap();
    until(|| !disk.begun.lock().is_empty()).await;
    assert!(on_disk.try_recv().is_err(), "the append has begun, but not returned");
    assert_eq!(process.values("k").await.len(), 2, "both can be read already");
    gate.send(Ok(())).unwrap();
    gate.send(Ok(())).unwrap();
    assert_eq!(on_disk.await, Ok(Durability::Disk));
}

#[tokio::test(start_paused = true)]
async fn bucket_is_acknowledged_once_the_put_returned() {
    let faulty = Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), 1));
    let machine = Machine { bucket: faulty.clone(), ..Machine::with_disk() };
    let process = machine.boot().await;
    let engine = Arc::clone(&process.engine);
    let slow = OperationFaults { slow: CERTAIN, ..OperationFaults::default() };
    let slow_by = Duration::from_secs(3);
    faulty.set(Faults { put: slow, slow_by, ..Faults::default() });
    let before = Instant::now();
    let first = process.replicate(&record("k", 1), Durability::Bucket).unwrap();
    tokio::spawn(process.flusher.run(process.stopped));
    assert_eq!(first.await, Ok(Durability::Bucket));
    assert!(before.elapsed() >= slow_by);

    faulty.set(Faults { unavailable: true, ..Faults::default() });
    let (sender, mut second) = tokio::sync::oneshot::channel();
    let (record, injected) = (record("k", 2), faulty.injected());
    let done = Box::new(move |reached| sender.send(reached).unwrap());
    let hash = crate::testing::hash("k");
    engine.replicate(hash, &record, &record.encode(), Durability::Bucket, Graved::Unknown, done).unwrap();
    // Each failed PUT is followed by a pause.
    let fails = async |times: u64| {
        while faulty.injected() < injected + times {
            tokio::time::advance(Duration::from_secs(1)).await;
            tokio::task::yield_now().await;
        }
    };
    fails(2).await;
    assert!(second.try_recv().is_err(), "it may be over in a moment");
    fails(3).await;
    assert_eq!(second.await, Ok(Durability::Memory), "nobody waits for a bucket that does not answer");
    let refused = refusal(&engine, &record);
    assert!(matches!(refused, Some(Refusal::Unable(_))), "{refused:?}");
    faulty.set(Faults::default());
    while engine.bucket_fails() {
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(refusal(&engine, &record), None);
    drop(process.stop);
}

/// Why the engine does not take a record in that is to reach the bucket.
fn refusal(engine: &Engine, record: &Record) -> Option<Refusal> {
    let hash = crate::testing::hash("k");
    engine
        .replicate(hash, record, &record.encode(), Durability::Bucket, Graved::Unknown, Box::new(|_| {}))
        .err()
}

/// The flush that is under way holds what was written before it, and no more.
#[tokio::test]
async fn a_flush_acknowledges_only_what_it_holds() {
    let mut process = Machine::without_disk().boot().await;
    let before = process.replicate(&record("k", 1), Durability::Bucket).unwrap();
    let table = process.engine.freeze().unwrap();
    let mut after = process.replicate(&record("k", 2), Durability::Bucket).unwrap();
    assert!(process.flusher.flush(&table, &process.stopped).await);
    assert_eq!(before.await, Ok(Durability::Bucket));
    assert!(after.try_recv().is_err());
    process.flush().await;
    assert_eq!(after.await, Ok(Durability::Bucket));
}

#[tokio::test]
async fn a_node_without_a_disk_refuses_disk_and_says_so() {
    let process = Machine::without_disk().boot().await;
    assert_eq!(unable(&process, Durability::Disk), "this node has no disk");
    let request = mint_request("refused", version(1, &Clock::new(), b"v"), Durability::Disk);
    assert!(matches!(process.mint(&request).await, Err(Refusal::Unable(_))));
    assert!(process.values("refused").await.is_empty(), "nothing was applied");
}

#[tokio::test]
async fn after_a_disk_failure_disk_is_refused_and_the_rest_goes_on() {
    let (disk, gate) = GatedDisk::new();
    let machine = Machine { disk: Some(disk), ..Machine::without_disk() };
    let mut process = machine.boot().await;
    let in_flight = process.replicate(&record("k", 1), Durability::Disk).unwrap();
    gate.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
    // It was taken in: a refusal would say that it was not, and the write would be minted once more.
    assert_eq!(in_flight.await, Ok(Durability::Memory));
    assert!(unable(&process, Durability::Disk).contains("write-ahead log"));
    let in_memory = process.replicate(&record("k", 2), Durability::Memory).unwrap();
    assert_eq!(in_memory.await, Ok(Durability::Memory));
    let in_bucket = process.replicate(&record("k", 3), Durability::Bucket).unwrap();
    process.flush().await;
    assert_eq!(in_bucket.await, Ok(Durability::Bucket));
    assert_eq!(process.values("k").await.len(), 3);
}

#[tokio::test]
async fn too_much_that_is_not_flushed_is_refused_until_it_is() {
    let machine = Machine { flush_bytes: 1000, ..Machine::without_disk() };
    let mut process = machine.boot().await;
    let mut taken = 0;
    let refusal = loop {
        match process.replicate(&record(&format!("k{taken}"), 1), Durability::Memory) {
            Ok(_) => taken += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::Overloaded);
    assert!((10..40).contains(&taken), "{taken}");
    process.flush().await;
    process.replicate(&record("after", 1), Durability::Memory).unwrap();
}

/// What comes in after the end would be in no log and in no segment, and its dot would be minted again.
#[tokio::test]
async fn a_closed_engine_takes_nothing_in() {
    let process = Machine::with_disk().boot().await;
    process.put("k", "before", &Clock::new(), Durability::Disk).await;
    process.engine.close();
    assert_eq!(unable(&process, Durability::Memory), "the node is shutting down");
    let request = mint_request("k", version(1, &Clock::new(), b"late"), Durability::Memory);
    assert!(matches!(process.mint(&request).await, Err(Refusal::Unable(_))));
    assert_eq!(process.values("k").await, ["before"]);
}

#[tokio::test(start_paused = true)]
async fn a_version_is_confirmed_only_where_it_is_held_and_when_it_is_durable() {
    let faulty = Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), 1));
    let (disk, gate) = GatedDisk::new();
    let machine = Machine { bucket: faulty.clone(), disk: Some(disk), ..Machine::without_disk() };
    let mut process = machine.boot().await;
    let engine = Arc::clone(&process.engine);
    let held = record("k", 1);
    process.replicate(&held, Durability::Memory).unwrap().await.unwrap();
    let confirm = |n: u64, durability| {
        let (sender, confirmed) = tokio::sync::oneshot::channel();
        let dot = Dot { actor: Actor::parse("node-b.1").unwrap(), n };
        let done = Box::new(move |reached| sender.send(reached).unwrap());
        engine.confirm(hash("k"), &dot, durability, done).map(|()| confirmed)
    };
    assert!(matches!(confirm(2, Durability::Memory), Err(Refusal::Unable(_))), "it is not held");
    let mut on_disk = confirm(1, Durability::Disk).unwrap();
    assert!(on_disk.try_recv().is_err());
    gate.send(Ok(())).unwrap();
    assert_eq!(on_disk.await, Ok(Durability::Disk));
    let mut in_bucket = confirm(1, Durability::Bucket).unwrap();
    assert!(in_bucket.try_recv().is_err());
    process.flush().await;
    assert_eq!(in_bucket.await, Ok(Durability::Bucket));
    let flushed = confirm(1, Durability::Bucket).unwrap();
    assert_eq!(flushed.await, Ok(Durability::Bucket), "nothing is left to flush");
}

#[tokio::test]
async fn what_is_held_is_confirmed_even_when_nothing_more_is_taken_in() {
    let machine = Machine::with_disk();
    let process = machine.boot().await;
    let held = record("k", 1);
    process.replicate(&held, Durability::Memory).unwrap().await.unwrap();
    process.engine.close();
    assert!(process.replicate(&record("k", 2), Durability::Memory).is_err());
    let dot = held.container.siblings()[0].dot.clone();
    let confirm = || {
        let (sender, confirmed) = tokio::sync::oneshot::channel();
        let done = Box::new(move |reached| sender.send(reached).unwrap());
        process.engine.confirm(hash("k"), &dot, Durability::Disk, done).map(|()| confirmed)
    };
    assert_eq!(confirm().unwrap().await, Ok(Durability::Disk));
    process.engine.fence();
    assert!(matches!(confirm(), Err(Refusal::Unable(_))), "another process speaks for this node now");
}
