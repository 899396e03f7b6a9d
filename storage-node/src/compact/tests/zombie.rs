//! A process that is suspended at any request, thought dead and replaced, and that goes on when the other has long
//! worked, merged, forgotten and deleted.

use std::sync::Arc;

use super::scenario::{Names, Progress, merge_all, prove_dead, run, sweep};
use crate::disk::{Disk, MemoryDisk};
use crate::testing::upkeep::{StopBucket, Store, assert_equals};

fn disk() -> Option<Arc<dyn Disk>> {
    Some(Arc::new(MemoryDisk::default()))
}

/// Suspends the scenario at its `nth` request. Did it come so far?
async fn suspend_at(nth: usize, carried_out: bool) -> bool {
    let when = format!("suspended at request {nth}, carried out: {carried_out}");
    let store = Store::new();
    let bucket = StopBucket::new(store.bucket(), nth, carried_out);
    let machine = store.machine(Arc::<StopBucket>::clone(&bucket), disk());
    let mut old = Progress::default();
    let mut work = Box::pin(run(machine, store.clone(), &mut old));
    if bucket.run(&mut work).await.is_some() {
        return false;
    }
    if store.objects("f").await.is_empty() {
        // It has done nothing yet: it may not come to be, or be the newer of the two.
        return true;
    }

    let mut new = Progress::default();
    let mut process = store.machine(store.bucket(), disk()).boot().await;
    process.load_index().await;
    let Names { grouped, wide } = Names::new();
    // It goes on from what it finds.
    for name in grouped.iter().chain(&wide) {
        let found = process.container(name).await;
        if !found.seen().is_empty() {
            new.model.insert(name.clone(), found);
        }
    }
    for (name, value) in [(&grouped[0], Some("new")), (&grouped[1], None), (&wide[0], None), (&wide[3], None)]
    {
        new.write(&process, name, value, false).await;
    }
    new.write(&process, &wide[6], Some("new"), true).await;
    new.flush(&mut process).await;
    process.commit().await;
    prove_dead(&process, &new.model);
    merge_all(&process).await;
    for _ in 0..2 {
        sweep(&store, &process).await;
    }
    new.write(&process, &wide[1], Some("newest"), false).await;
    new.write(&process, &wide[2], None, false).await;
    new.flush(&mut process).await;
    prove_dead(&process, &new.model);
    merge_all(&process).await;
    process.commit().await;

    bucket.go_on();
    work.await;
    assert!(old.ended, "{when}");
    store.scrub().await;

    // What the older flushed before it knew better is found, and nothing that it acknowledged is lost.
    sweep(&store, &process).await;
    let mut model = new.model.clone();
    for (name, container) in &old.model {
        model.entry(name.clone()).or_default().sync(container.clone());
    }
    assert_equals(&process, &model, &when).await;
    prove_dead(&process, &model);
    merge_all(&process).await;
    assert_equals(&process, &model, &format!("{when}, merged")).await;
    new.flush(&mut process).await;
    for _ in 0..2 {
        sweep(&store, &process).await;
    }
    super::crash::check_bucket(&store, &model, &when).await;
    let process = store.machine(store.bucket(), disk()).boot().await;
    assert_equals(&process, &model, &format!("{when}, index not loaded")).await;
    process.load_index().await;
    assert_equals(&process, &model, &format!("{when}, after another start")).await;
    true
}

#[tokio::test(start_paused = true)]
async fn a_process_thought_dead_loses_nothing_and_brings_nothing_back() {
    for carried_out in [false, true] {
        let mut nth = 0;
        while suspend_at(nth, carried_out).await {
            nth += 1;
        }
        assert!(nth > 100, "the scenario is {nth} requests long");
    }
}

/// The older process merges, deletes and flushes while the newer one starts: wherever that is, the newer one finds
/// all there is, and nothing that has gone.
async fn start_beside(nth: usize) -> bool {
    let when = format!("started until request {nth}");
    let store = Store::new();
    let mut old = store.machine(store.bucket(), disk()).boot().await;
    old.load_index().await;
    let mut progress = Progress::default();
    let Names { grouped, wide } = Names::new();
    for name in &wide {
        progress.write(&old, name, Some("first"), false).await;
        progress.write(&old, &grouped[1], Some("again"), false).await;
        progress.flush(&mut old).await;
    }
    old.commit().await;
    let bucket = StopBucket::new(store.bucket(), nth, false);
    let machine = store.machine(Arc::<StopBucket>::clone(&bucket), disk());
    let mut starting = Box::pin(machine.boot());
    let started = bucket.run(&mut starting).await;
    let stopped = started.is_none();
    merge_all(&old).await;
    for _ in 0..2 {
        sweep(&store, &old).await;
    }
    // What it has deleted, it knows no longer.
    old.ledger.commit().await;
    assert!(old.engine.is_fenced() || store.objects("f").await.len() < 6, "{when}");
    progress.write(&old, &grouped[0], Some("late"), false).await;
    progress.flush(&mut old).await;
    bucket.go_on();
    let new = match started {
        Some(new) => new,
        None => starting.await,
    };
    new.load_index().await;
    sweep(&store, &new).await;
    assert_equals(&new, &progress.model, &when).await;
    assert_eq!(old.ledger.commit().await, crate::ledger::Committed::TakenOver, "{when}");
    for _ in 0..2 {
        sweep(&store, &new).await;
    }
    super::crash::check_bucket(&store, &progress.model, &when).await;
    stopped
}

#[tokio::test(start_paused = true)]
async fn a_start_beside_a_process_that_still_deletes() {
    let mut nth = 0;
    while start_beside(nth).await {
        nth += 1;
    }
    assert!(nth > 8, "a start is {nth} requests long");
}
