//! The borrower is killed at every request, carried out or not: nothing that its manifest names is missing, nothing that
//! it could be relied on for is lost, and no pin stays for ever.

use std::sync::Arc;

use super::*;
use crate::testing::Machine;
use crate::testing::upkeep::{StopBucket, assert_equals};

/// A node takes over what the owner has, rewrites it and lets go, while that one goes on.
async fn run(machine: Machine, store: &Store, owner: &Owner, relied_on: &mut bool) {
    let process = machine.boot().await;
    process.load_index().await;
    let _flushing = flushing(&process);
    let borrower = borrower(&process);
    let [one, other] = ranges();
    borrower.find_pins(&[node("node-a")]).await.unwrap();
    borrower.borrow(&node("node-a"), &[one]).await.unwrap();
    borrower.borrow(&node("node-a"), &[one, other]).await.unwrap();
    *relied_on = true;
    owner.merge(false).await;
    owner.sweep(store).await;
    rewrite(&process).await;
    borrower.let_go().await.unwrap();
    owner.sweep(store).await;
    assert_reads(&process, &owner.model, "in the end").await;
}

async fn kill_at(nth: usize, carried_out: bool) -> bool {
    let when = format!("killed at request {nth}, carried out: {carried_out}");
    let store = Store::new();
    let mut owner = Owner::new(&store).await;
    // And a flush that no manifest names.
    for name in &all_names()[4..7] {
        owner.write(name, Some("late"), false).await;
    }
    owner.process.flush().await;
    let bucket = StopBucket::new(store.bucket(), nth, carried_out);
    let machine = store.machine_of("node-b", Arc::<StopBucket>::clone(&bucket));
    let mut relied_on = false;
    let killed = {
        let mut work = Box::pin(run(machine, &store, &owner, &mut relied_on));
        bucket.run(&mut work).await.is_none()
    };
    owner.merge(true).await;
    owner.sweep(&store).await;

    let process = store.machine_of("node-b", store.bucket()).boot().await;
    store.scrub_of("node-b").await;
    if relied_on {
        assert_reads(&process, &owner.model, &format!("{when}, index not loaded")).await;
    }
    process.load_index().await;
    if relied_on {
        assert_reads(&process, &owner.model, &when).await;
    }
    let _flushing = flushing(&process);
    let borrower = borrower(&process);
    borrower.find_pins(&[node("node-a")]).await.unwrap();
    borrower.let_go().await.unwrap();
    owner.sweep(&store).await;
    store.scrub_of("node-b").await;
    borrower.borrow(&node("node-a"), &ranges()).await.unwrap();
    assert_reads(&process, &owner.model, &format!("{when}, borrowed again")).await;
    owner.merge(false).await;
    owner.sweep(&store).await;
    rewrite(&process).await;
    borrower.let_go().await.unwrap();
    assert!(foreign(&store, "node-b").await.is_empty(), "{when}");
    assert_eq!(store.objects("pins").await, BTreeSet::new(), "{when}");
    owner.sweep(&store).await;
    let named: BTreeSet<String> = store.manifest().await.segments.into_iter().map(|e| e.object).collect();
    let mut left = store.objects("f").await;
    left.extend(store.objects("c").await);
    assert_eq!(left, named, "{when}: the owner's");
    assert_reads(&process, &owner.model, &format!("{when}, rewritten")).await;
    assert_equals(&owner.process, &owner.model, &when).await;
    store.scrub_of("node-b").await;
    drop(process);
    assert_reads(&boot(&store, "node-b").await, &owner.model, &format!("{when}, another start")).await;
    killed
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_request_nothing_is_lost_and_no_pin_stays() {
    for carried_out in [false, true] {
        let mut nth = 0;
        while kill_at(nth, carried_out).await {
            nth += 1;
        }
        assert!(nth > 60, "it takes {nth} requests");
    }
}
