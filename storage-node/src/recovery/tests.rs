//! What a start finds after every kind of end, and two processes with one name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use bytes::Bytes;

use cartwheel_bucket::{MemoryBucket, SharedBucket, list_all};
use cartwheel_core::clock::{Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Version;
use cartwheel_core::wire::Refusal;

use crate::epoch::Incarnation;
use crate::ledger::Committed;
use crate::manifests;
use crate::testing::{Machine, Minted, mint_request, values, version};

/// P6.
#[tokio::test]
async fn after_kill_9_all_that_was_acknowledged_on_disk_is_there() {
    let machine = Machine::with_disk();
    let mut process = machine.boot().await;
    for i in 0..60 {
        // What was acknowledged in memory goes to the same log: it is there once a later write is.
        let durability = if i % 3 == 0 { Durability::Memory } else { Durability::Disk };
        process.put(&format!("k{}", i % 20), &i.to_string(), &Clock::new(), durability).await;
        match i {
            20 => process.flush().await,
            // Frozen, but never flushed: its records are in the log file before the newest.
            40 => drop(process.engine.freeze()),
            _ => {}
        }
    }
    drop(process);
    for loaded in [false, true] {
        let process = machine.boot().await;
        if loaded {
            process.load_index().await;
        }
        for i in 0..20 {
            let mut expected = [i, i + 20, i + 40].map(|i| i.to_string());
            expected.sort();
            assert_eq!(process.values(&format!("k{i}")).await, expected, "loaded: {loaded}");
        }
        assert!(process.values("never written").await.is_empty());
    }
}

/// P6.
#[tokio::test]
async fn without_its_disk_a_node_has_all_that_was_acknowledged_in_the_bucket() {
    let mut machine = Machine::with_disk();
    let process = machine.boot().await;
    let flushing = tokio::spawn(process.flusher.run(process.stopped.clone()));
    for i in 0..30 {
        let request =
            mint_request("k", version(i, &Clock::new(), i.to_string().as_bytes()), Durability::Bucket);
        let (sender, reached) = tokio::sync::oneshot::channel();
        let mut sender = Some(sender);
        loop {
            let done = |dot: Dot| -> crate::engine::Done {
                let sender = sender.take().unwrap();
                Box::new(move |reached| sender.send((dot, reached)).unwrap())
            };
            match process.engine.mint(&request, crate::engine::Graved::Unknown, done).unwrap() {
                crate::engine::Mint::Made => break,
                _ => process.engine.read_full(&crate::testing::record_key("k")).await.unwrap(),
            }
        }
        assert_eq!(reached.await.unwrap().1, Durability::Bucket);
    }
    flushing.abort();
    machine.disk = Machine::with_disk().disk;
    let process = machine.boot().await;
    assert_eq!(process.values("k").await.len(), 30);
}

#[tokio::test]
async fn segments_are_found_whether_or_not_a_manifest_names_them() {
    let machine = Machine::without_disk();
    let mut process = machine.boot().await;
    process.put("k", "named", &Clock::new(), Durability::Memory).await;
    process.flush().await;
    process.commit().await;
    process.put("k", "not named", &Clock::new(), Durability::Memory).await;
    process.flush().await;
    let manifest = manifests::newest(&*machine.bucket, &machine.node()).await.unwrap().unwrap();
    assert_eq!(manifest.segments.len(), 1);
    drop(process);
    let process = machine.boot().await;
    assert_eq!(process.values("k").await, ["named", "not named"]);
    process.commit().await;
    let manifest = manifests::newest(&*machine.bucket, &machine.node()).await.unwrap().unwrap();
    assert_eq!((manifest.segments.len(), manifest.epoch), (2, 3));
}

/// P3, and why the epoch changes: with the old one, the dot of a write that only the lost disk held, and that
/// another home has, is given to a second write; the home then takes the second for the first.
#[tokio::test]
async fn with_the_old_epoch_a_lost_disk_would_mean_a_dot_for_two_writes() {
    let mut machine = Machine::with_disk();
    let mut process = machine.boot().await;
    process.put("k", "flushed", &Clock::new(), Durability::Disk).await;
    process.flush().await;
    let lost = process.put("k", "on the disk and at another home", &Clock::new(), Durability::Disk).await;
    let other_home: Container<Version> = process.container("k").await;
    let old = process.me.clone();
    drop(process);
    machine.disk = Machine::with_disk().disk;

    let wrong = machine.boot_as(Incarnation { nonce: "0".repeat(16), ..old.clone() }).await;
    assert_eq!(wrong.put("k", "acknowledged", &Clock::new(), Durability::Disk).await, lost);
    let mut home = other_home.clone();
    home.sync(wrong.container("k").await);
    assert!(!values(&home).contains(&"acknowledged".to_owned()), "this is how P1 would break");
    drop(wrong);

    machine.disk = Machine::with_disk().disk;
    let right = machine.boot().await;
    assert!(right.me.epoch > old.epoch);
    let dot = right.put("k", "acknowledged", &Clock::new(), Durability::Disk).await;
    assert_ne!(dot, lost);
    let mut home = other_home;
    home.sync(right.container("k").await);
    assert_eq!(values(&home), ["acknowledged", "flushed", "on the disk and at another home"]);
}

/// The older of two processes with one name learns of it when it commits its manifest.
#[tokio::test]
async fn the_older_of_two_processes_steps_down_and_what_it_flushed_is_found() {
    for newer_commits in [1, 30] {
        let old_machine = Machine::with_disk();
        let new_machine = Machine { disk: Machine::with_disk().disk, ..old_machine.clone() };
        let mut old = old_machine.boot().await;
        old.put("before", "x", &Clock::new(), Durability::Disk).await;
        old.flush().await;
        old.commit().await;

        let mut new = new_machine.boot().await;
        assert_eq!((old.me.epoch, new.me.epoch), (1, 3));
        assert_eq!(new.values("before").await, ["x"]);
        for _ in 0..newer_commits {
            new.commit().await;
        }
        // It does not know yet: it accepts, and flushes beside the newer one without harm.
        let late = old.put("late", "from the older", &Clock::new(), Durability::Disk).await;
        let own = new.put("late", "from the newer", &Clock::new(), Durability::Disk).await;
        assert_ne!(late, own);
        old.flush().await;
        new.flush().await;
        assert_eq!(old.ledger.commit().await, Committed::TakenOver);
        assert!(old.engine.is_fenced());
        let request = mint_request("late", version(9, &Clock::new(), b"v"), Durability::Memory);
        let refused = old.mint(&request).await;
        assert_eq!(refused, Err(Refusal::Unable("another process has taken over node-a".to_owned())));
        new.commit().await;
        assert!(!new.engine.is_fenced());
        drop((old, new));

        let next = new_machine.boot().await;
        assert_eq!(next.values("late").await, ["from the newer", "from the older"]);
    }
}

/// A clean end says that all is in the bucket. Where that is not so, there is none.
#[tokio::test(start_paused = true)]
async fn the_flush_loop_knows_whether_everything_is_in_the_bucket() {
    use cartwheel_bucket::{Faults, FaultyBucket};
    for available in [true, false] {
        let faulty = Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), 1));
        let machine = Machine { bucket: faulty.clone(), ..Machine::with_disk() };
        let process = machine.boot().await;
        process.put("k", "v", &Clock::new(), Durability::Disk).await;
        faulty.set(Faults { unavailable: !available, ..Faults::default() });
        process.stop.send(true).unwrap();
        assert_eq!(process.flusher.run(process.stopped).await, available);
        faulty.set(Faults::default());
        assert_eq!(machine.boot().await.values("k").await, ["v"], "in the bucket or in the log");
    }
}

/// Damage anywhere in a segment is an error or does no harm; it is never a panic, nor other data.
#[tokio::test]
async fn a_damaged_segment_gives_an_error_and_never_wrong_data() {
    let machine = Machine::without_disk();
    let mut process = machine.boot().await;
    let first = process.put("k", "one", &Clock::new(), Durability::Memory).await;
    process.put("k", "two", &Clock::new(), Durability::Memory).await;
    for i in 0..20 {
        process.put(&format!("other{i}"), "x", &Clock::new(), Durability::Memory).await;
    }
    process.flush().await;
    let whole = process.container("k").await;
    drop(process);
    let object = list_all(&*machine.bucket, "nodes/node-a/f/").await.unwrap().pop().unwrap().key;
    let good = machine.bucket.get(&object).await.unwrap();

    let mut bad: Vec<(String, Option<Bytes>)> = vec![("missing".into(), None)];
    for length in [0, 1, 7, 8, 100, good.len() / 2, good.len() - 13, good.len() - 1] {
        bad.push((format!("cut to {length}"), Some(good.slice(..length))));
    }
    for at in 0..good.len() {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0x10;
        bad.push((format!("byte {at}"), Some(bytes.into())));
    }
    let mut refused = 0;
    for (what, bytes) in bad {
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        // A missing object is one that the listing gave and that is gone when it is read.
        bucket.put(&object, bytes.clone().unwrap_or_else(|| good.clone())).await.unwrap();
        let machine = Machine { bucket, ..Machine::without_disk() };
        let process = machine.boot().await;
        if bytes.is_none() {
            machine.bucket.delete(&object).await.unwrap();
        }
        match process.try_container("k").await {
            Ok(container) => assert_eq!(container, whole, "{what}"),
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains(&object), "{what}: {error}");
                let request = mint_request("k", version(9, &Clock::new(), b"v"), Durability::Memory);
                let minted = process.mint(&request).await;
                assert!(matches!(minted, Err(Refusal::Unable(_))), "{what}: {minted:?}");
            }
        }
        if process.engine.load_index(&process.engine.segments.all()).await.is_ok() {
            // The clock column is whole: a mint needs nothing else of the segment.
            let request = mint_request("k", version(9, &Clock::new(), b"v"), Durability::Memory);
            let Ok(Minted::New(dot, _)) = process.mint(&request).await else { panic!("{what}") };
            assert!(!whole.seen().contains(&dot), "{what}");
            match process.try_container("k").await {
                Ok(container) => assert_eq!(values(&container), ["one", "two", "v"], "{what}"),
                Err(error) => assert!(error.to_string().contains(&object), "{what}: {error}"),
            }
        }
    }
    assert!(refused > good.len() / 2, "{refused} of {}", good.len());
    assert_eq!(first.n, 1);
}

/// A log file damaged in its middle loses what comes after; the files after it are read all the same.
#[tokio::test]
async fn a_damaged_log_file_does_not_take_the_others_with_it() {
    let machine = Machine::with_disk();
    let process = machine.boot().await;
    process.put("first", "a", &Clock::new(), Durability::Disk).await;
    drop(process.engine.freeze());
    process.put("second", "b", &Clock::new(), Durability::Disk).await;
    drop(process);
    let disk = machine.disk.clone().unwrap();
    let name = disk.list().await.unwrap()[0].clone();
    let mut bytes = disk.read(&name).await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    disk.replace(&name, bytes.into()).await.unwrap();
    let process = machine.boot().await;
    assert!(process.values("first").await.is_empty());
    assert_eq!(process.values("second").await, ["b"]);
    assert_eq!(process.me.epoch, 3, "a node that lost dots mints as another actor");
}

/// Log files go once their memtable is in the bucket, and no earlier.
#[tokio::test]
async fn a_log_file_goes_once_its_records_are_in_the_bucket() {
    let machine = Machine::with_disk();
    let mut process = machine.boot().await;
    let disk = machine.disk.clone().unwrap();
    process.put("k", "a", &Clock::new(), Durability::Disk).await;
    let table = process.engine.freeze().unwrap();
    process.put("k", "b", &Clock::new(), Durability::Disk).await;
    assert_eq!(disk.list().await.unwrap().len(), 2);
    assert!(process.flusher.flush(&table, &process.stopped).await);
    assert_eq!(disk.list().await.unwrap().len(), 1);
    drop(process);
    assert_eq!(machine.boot().await.values("k").await, ["a", "b"]);
}
