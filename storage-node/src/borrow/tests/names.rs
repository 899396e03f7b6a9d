//! Objects of other nodes are read and nothing else; names that were used up are not used again.

use std::sync::Arc;

use cartwheel_bucket::Bucket;
use cartwheel_core::manifest::Dropped;

use super::*;
use crate::manifests;
use crate::segments::Segment;

/// Whatever is dropped by mistake: what is another node's is never listed, and never deleted.
#[tokio::test(start_paused = true)]
async fn an_object_of_another_node_is_neither_dropped_nor_deleted() {
    let store = Store::new();
    let owner = Owner::new(&store).await;
    let process = boot(&store, "node-b").await;
    borrower(&process).borrow(&node("node-a"), &ranges()).await.unwrap();
    let lent = foreign(&store, "node-b").await;
    // A merge drops its inputs.
    let inputs: Vec<Arc<Segment>> = process.engine.segments.all().to_vec();
    process.ledger.change(&inputs, || true).await;
    process.ledger.note_dropped(lent.iter().map(|object| (object.clone(), 1)));
    assert!(process.ledger.dropped().is_empty());
    rewrite(&process).await;
    assert!(foreign(&store, "node-b").await.is_empty());
    sweep(&store, &process).await;
    // Even if a manifest says so.
    let manifest = store.manifest_of("node-b").await;
    let dropped = lent.iter().map(|object| Dropped { object: object.clone(), bytes: 1, since_ms: Some(1) });
    let holdings = manifests::Holdings {
        segments: manifest.segments,
        graves: manifest.graves,
        dropped: dropped.collect(),
        taken: manifest.taken,
        ..manifests::Holdings::default()
    };
    manifests::commit(&*store.memory, &process.seams, &process.me, manifest.version, holdings).await.unwrap();
    drop(process);
    let process = boot(&store, "node-b").await;
    assert!(process.ledger.dropped().is_empty());
    sweep(&store, &process).await;
    for object in &lent {
        assert!(store.memory.get(object).await.is_ok(), "{object} is gone");
    }
    assert!(store.manifest_of("node-b").await.dropped.is_empty());
    store.scrub().await;
    assert_reads(&process, &owner.model, "in the end").await;
}

/// Which flushes of a node were taken up is its own to know.
#[tokio::test(start_paused = true)]
async fn flushes_that_are_borrowed_are_not_taken_up() {
    let store = Store::new();
    let owner = Owner::new(&store).await;
    let process = boot(&store, "node-b").await;
    borrower(&process).borrow(&node("node-a"), &ranges()).await.unwrap();
    assert!(foreign(&store, "node-b").await.iter().any(|object| object.contains("/f/")));
    assert!(store.manifest_of("node-b").await.taken.is_empty());
    drop(owner);
}

/// What this node had lent, and has merged since, is copied: its name waits for deletion here.
#[tokio::test(start_paused = true)]
async fn what_was_lent_comes_back_as_records() {
    let store = Store::new();
    let mut owner = Owner::new(&store).await;
    let process = boot(&store, "node-b").await;
    let lent = borrower(&process);
    lent.borrow(&node("node-a"), &ranges()).await.unwrap();
    // The owner merges them away; they stay in the bucket for as long as the other one needs them.
    owner.merge(false).await;
    owner.sweep(&store).await;
    let home = borrower(&owner.process);
    let names = store.manifest().await.segments;
    let _flushing = flushing(&owner.process);
    let back = home.borrow(&node("node-b"), &ranges()).await.unwrap();
    assert_eq!((back.objects, back.copied), (0, 0), "it holds all of it");
    for (n, name) in all_names().iter().enumerate().filter(|(_, name)| is_inside(name)) {
        let delta = process.write(name, version(500 + n as u128, &Clock::new(), b"new")).await.unwrap();
        owner.model.get_mut(name).unwrap().sync(delta);
    }
    let mut process = process;
    process.flush().await;
    process.commit().await;
    let back = home.borrow(&node("node-b"), &ranges()).await.unwrap();
    assert_eq!((back.objects, back.records), (1, 12));
    store.scrub().await;
    crate::testing::upkeep::assert_equals(&owner.process, &owner.model, "back again").await;
    for entry in names {
        assert!(entry.only.is_empty());
    }
    assert_eq!(foreign(&store, "node-a").await.len(), 1);
}

/// A merge that failed is not gone on with once there is more of what it merged.
#[tokio::test(start_paused = true)]
async fn with_more_ranges_a_merge_is_another_one() {
    let store = Store::new();
    let owner = Owner { pieces: 1 << 20, ..Owner::new(&store).await };
    owner.merge(false).await;
    let bucket = crate::testing::upkeep::StopBucket::new(store.bucket(), usize::MAX, true);
    let process =
        store.machine_of("node-b", Arc::<crate::testing::upkeep::StopBucket>::clone(&bucket)).boot().await;
    process.load_index().await;
    let borrower = borrower(&process);
    // What comes later lies before what was merged, and no grave does: nothing else is merged in between.
    let [other, one] = [0, 6].map(|partition| HashRange::of_partition(partition, 8));
    borrower.borrow(&node("node-a"), &[one]).await.unwrap();
    let mut compactor = process.compactor();
    compactor.piece_bytes = 300;
    // The merge puts a piece, and fails.
    let mut left = 1;
    while store.objects_of("node-b", "c").await.is_empty() {
        bucket.stop_after(left);
        {
            let mut merge = Box::pin(compactor.once());
            assert!(bucket.run(&mut merge).await.is_none());
        }
        bucket.revive();
        left += 1;
    }
    borrower.borrow(&node("node-a"), &[other]).await.unwrap();
    rewrite(&process).await;
    assert!(foreign(&store, "node-b").await.is_empty());
    let mut compared = 0;
    for (name, container) in owner.model.iter().filter(|(name, _)| contains(&join([one, other]), hash(name)))
    {
        assert_eq!(process.container(name).await, *container, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 8);
}
