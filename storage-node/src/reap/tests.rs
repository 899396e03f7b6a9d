//! What a proof is worth, and what a member says before there is one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use cartwheel_core::clock::Clock;
use cartwheel_core::record::Version;

use super::*;
use crate::testing::upkeep::{Store, deletion, names_in, wide_plan};
use crate::testing::{Process, hash, version};

fn deceased(process: &Process, name: &str) -> Deceased {
    Deceased { hash: hash(name), leaf: leaf(hash(name), &process.seen(name)) }
}

/// A key that was written and deleted, all of it flushed.
async fn deleted(process: &mut Process, name: &str, request: u128) {
    let old = process.write(name, version(request, &Clock::new(), b"old")).await.unwrap();
    process.write(name, deletion(request + 1, old.seen())).await.unwrap();
    process.flush().await;
}

async fn says(process: &Process, is_home: bool, key: &Deceased, now_ms: u64) -> bool {
    attest(&process.engine, is_home, std::slice::from_ref(key), now_ms).await.unwrap()[0]
}

#[tokio::test(start_paused = true)]
async fn a_home_agrees_to_what_it_holds_itself_in_segments() {
    let store = Store::new();
    let mut process = store.machine(store.bucket(), None).boot().await;
    let now = store.now_ms();
    process.load_index().await;
    deleted(&mut process, "k", 1).await;
    let key = deceased(&process, "k");
    assert!(says(&process, true, &key, now).await);
    let other = Deceased { leaf: key.leaf ^ 1, ..key };
    assert!(!says(&process, true, &other, now).await, "another clock");
    assert!(!says(&process, false, &key, now).await, "one that is no home must know nothing of it");
    let unknown = Deceased { hash: hash("unknown"), leaf: 7 };
    assert!(!says(&process, true, &unknown, now).await, "it may lack what the others have");
    assert!(says(&process, false, &unknown, now).await);

    // In a memtable it may be lost again.
    process.take("k", &process.container("k").await).await.unwrap();
    assert_eq!(deceased(&process, "k"), key);
    assert!(!says(&process, true, &key, now).await, "it is in the memtable");
    let table = process.engine.freeze().unwrap();
    assert!(!says(&process, true, &key, now).await, "it is being flushed");
    assert!(process.flusher.flush(&table, &process.stopped).await);
    assert!(says(&process, true, &key, now).await);

    process.write("k", version(5, &Clock::new(), b"sibling")).await.unwrap();
    process.flush().await;
    let key = deceased(&process, "k");
    assert!(!says(&process, true, &key, now).await, "one of its siblings lives");

    let next = store.machine(store.bucket(), None).boot().await;
    assert!(!says(&next, false, &unknown, now).await, "until it knows every key it knows nothing for sure");
    assert!(!says(&next, true, &key, now).await);
}

#[tokio::test(start_paused = true)]
async fn a_home_that_has_forgotten_it_already_agrees() {
    let store = Store::new();
    let mut process = store.machine(store.bucket(), None).boot().await;
    process.load_index().await;
    let now = store.now_ms();
    deleted(&mut process, "k", 1).await;
    let key = deceased(&process, "k");
    process.prove("k");
    process.compactor().merge(&process.engine.segments.all(), &wide_plan()).await.unwrap();
    assert!(process.engine.knows_nothing_of(key.hash));
    assert!(says(&process, true, &key, now).await);
    assert!(says(&process, false, &key, now).await, "and it is no home any more");
    let other = Deceased { leaf: key.leaf ^ 1, ..key };
    assert!(!says(&process, true, &other, now).await, "what it has forgotten is something else");
    // What comes back is not forgotten.
    process.write("k", version(9, &Clock::new(), b"new")).await.unwrap();
    process.flush().await;
    assert!(!says(&process, true, &key, now).await);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_expired_counts_as_deleted_when_every_clock_agrees() {
    let store = Store::new();
    let mut process = store.machine(store.bucket(), None).boot().await;
    process.load_index().await;
    let ends = store.now_ms() + 5000;
    process.write("k", Version { expires_ms: ends, ..version(1, &Clock::new(), b"x") }).await.unwrap();
    process.flush().await;
    let key = deceased(&process, "k");
    assert!(!says(&process, true, &key, ends + EXPIRED_FOR - 1).await);
    assert!(says(&process, true, &key, ends + EXPIRED_FOR).await);
}

#[tokio::test(start_paused = true)]
async fn a_proof_is_of_one_state_and_for_some_time() {
    let proofs = Proofs::new(Duration::from_secs(60));
    let key = Deceased { hash: hash("k"), leaf: 5 };
    proofs.add(std::slice::from_ref(&key));
    assert!(proofs.holds(key.hash, 5));
    assert!(!proofs.holds(key.hash, 6) && !proofs.holds(hash("other"), 5));
    proofs.add(&[Deceased { leaf: 6, ..key }]);
    assert!(proofs.holds(key.hash, 6) && !proofs.holds(key.hash, 5), "the newest counts");
    tokio::time::advance(KEPT_FOR).await;
    let other = Deceased { hash: hash("other"), leaf: 1 };
    proofs.add(std::slice::from_ref(&other));
    assert!(!proofs.holds(key.hash, 6) && proofs.holds(other.hash, 1));
    proofs.forget(std::iter::once(other.hash));
    assert_eq!(proofs.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_group_is_due_while_a_merge_may_forget_something_there() {
    let proofs = Proofs::new(Duration::from_secs(60));
    let due =
        |dead: bool| (0..GROUPS).filter(|group| proofs.due(|_, _| dead)[*group as usize]).collect::<Vec<_>>();
    assert!(due(true).is_empty());
    let [two, nine] = [2, 9].map(|group| hash(&names_in(group, 1)[0]));
    proofs.add(&[Deceased { hash: two, leaf: 1 }, Deceased { hash: nine, leaf: 1 }]);
    assert_eq!(due(true), [2, 9]);
    assert!(due(false).is_empty(), "what is gone, or was written again, calls for nothing");
    proofs.note_tried(2, std::iter::empty());
    assert_eq!(due(true), [9]);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(due(true), [2, 9]);
}
