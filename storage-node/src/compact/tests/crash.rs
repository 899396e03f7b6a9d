//! Killed at every request to the bucket, carried out or not, with the disk or without it: nothing that was
//! acknowledged is lost, nothing that was deleted comes back, and nothing is left lying about.

use std::collections::BTreeSet;
use std::sync::Arc;

use cartwheel_core::compaction::group_of;

use super::scenario::{Progress, merge_all, prove_dead, run, sweep};
use crate::disk::{Disk, MemoryDisk};
use crate::testing::upkeep::{Model, StopBucket, Store, assert_equals, differs, is_dead};

/// Kills the scenario at its `nth` request. Did it come so far?
async fn kill_at(nth: usize, carried_out: bool, keep_disk: bool) -> bool {
    let when = format!("killed at request {nth}, carried out: {carried_out}, disk kept: {keep_disk}");
    let store = Store::new();
    let bucket = StopBucket::new(store.bucket(), nth, carried_out);
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let machine = store.machine(Arc::<StopBucket>::clone(&bucket), Some(Arc::clone(&disk)));
    let mut progress = Progress::default();
    let killed = {
        let mut work = Box::pin(run(machine, store.clone(), &mut progress));
        bucket.run(&mut work).await.is_none()
    };
    let disk = if keep_disk { disk } else { Arc::new(MemoryDisk::default()) };
    let watched = StopBucket::new(store.bucket(), usize::MAX, false);
    let machine = store.machine(Arc::<StopBucket>::clone(&watched), Some(disk));
    let mut process = machine.boot().await;
    if !keep_disk {
        // A flush that was under way has come to be, or not.
        let flushing = progress.flushing.take();
        let as_before = differs(&process, &progress.flushed).await.is_none();
        progress.model = match flushing {
            Some(flushing) if !as_before => flushing,
            _ => progress.flushed.clone(),
        };
    }
    assert_equals(&process, &progress.model, &format!("{when}, index not loaded")).await;
    process.load_index().await;
    assert_equals(&process, &progress.model, &when).await;

    // The rest: what the first process has put of a merge is used, not put again.
    prove_dead(&process, &progress.model);
    merge_all(&process).await;
    for (object, there) in watched.created.lock().iter() {
        assert!(!there || !object.contains("/c/"), "{when}: {object} is made once more");
    }
    assert_equals(&process, &progress.model, &format!("{when}, after merging")).await;
    progress.flush(&mut process).await;
    process.commit().await;
    for _ in 0..2 {
        sweep(&store, &process).await;
    }
    check_bucket(&store, &progress.model, &when).await;

    // Copies that turn up late, and new writes.
    for (name, deltas) in progress.deltas.clone() {
        let Some(known) = progress.model.get(&name).cloned() else { continue };
        for delta in deltas {
            if known.includes(&delta) {
                process.take(&name, &delta).await.unwrap();
                assert_eq!(process.container(&name).await, known, "{when}: an old copy of {name}");
            }
        }
        progress.write(&process, &name, Some("new"), true).await;
        let dot = progress.deltas[&name].last().unwrap().siblings()[0].dot.clone();
        assert!(!known.seen().contains(&dot), "{when}: {dot} of {name} names two writes");
    }
    assert_equals(&process, &progress.model, &format!("{when}, after old copies")).await;
    drop(process);
    let process = machine.boot().await;
    process.load_index().await;
    assert_equals(&process, &progress.model, &format!("{when}, after another start")).await;
    killed
}

/// All that is named is there and in order, and holds what the model holds; nothing else lies about.
pub(super) async fn check_bucket(store: &Store, model: &Model, when: &str) {
    let (mut segments, graves) = store.scrub().await;
    for (name, container) in graves {
        if is_dead(&model[&name]) {
            segments.entry(name).or_default().sync(container);
        }
    }
    for (name, container) in model {
        assert_eq!(segments.get(name), Some(container), "{when}: {name} in the bucket");
    }
    let manifest = store.manifest().await;
    let named: BTreeSet<String> =
        manifest.segments.into_iter().chain(manifest.graves).map(|entry| entry.object).collect();
    for kind in ["c", "g"] {
        let orphans: Vec<String> = store.objects(kind).await.difference(&named).cloned().collect();
        assert!(orphans.is_empty(), "{when}: {orphans:?} lie about");
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_request_nothing_is_lost_and_nothing_comes_back() {
    for keep_disk in [true, false] {
        for carried_out in [false, true] {
            let mut nth = 0;
            while kill_at(nth, carried_out, keep_disk).await {
                nth += 1;
            }
            assert!(nth > 100, "the scenario is {nth} requests long");
        }
    }
}

/// The scenario is worth killing: everything happens in it.
#[tokio::test(start_paused = true)]
async fn everything_happens_in_the_scenario() {
    let store = Store::new();
    let bucket = StopBucket::new(store.bucket(), usize::MAX, false);
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let machine = store.machine(Arc::<StopBucket>::clone(&bucket), Some(disk));
    let mut progress = Progress::default();
    run(machine, store.clone(), &mut progress).await;
    assert!(progress.ended);
    let created = bucket.created.lock().clone();
    let merges = |kind: &str| -> BTreeSet<&str> {
        let objects =
            created.iter().filter_map(|(object, _)| object.strip_prefix("nodes/node-a/")?.strip_prefix(kind));
        objects.filter_map(|rest| rest.split('/').next()).collect()
    };
    assert!(merges("c/").len() >= 4, "{:?}", merges("c/"));
    assert!(merges("g/").len() >= 3, "{:?}", merges("g/"));
    let manifest = store.manifest().await;
    assert_eq!(manifest.graves.len(), 1, "the others were merged");
    let of_one =
        manifest.segments.iter().filter(|entry| group_of(entry.first) == group_of(entry.last)).count();
    assert!(of_one > 1, "some of it was split");
    let pieces = created.iter().filter(|(object, _)| object.contains("/c/")).count();
    assert!(
        store.objects("c").await.len() < pieces && store.objects("f").await.len() < 8,
        "much was deleted"
    );
}
