//! What is borrowed is read as its owner reads it, whatever else happens.

use std::sync::Arc;

use cartwheel_bucket::Bucket;
use cartwheel_core::clock::Clock;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::quorum::Durability;
use cartwheel_core::ranges::HashRange;

use super::super::BorrowError;
use super::*;
use crate::testing::upkeep::{StopBucket, assert_equals};

/// All records of the ranges in order, page by page.
async fn scan(process: &Process) -> Vec<bytes::Bytes> {
    let mut records = Vec::new();
    for HashRange { first, last } in [HashRange::ALL] {
        let mut after = None;
        loop {
            let (page, more) = process.engine.scan(first, last, after.as_ref(), 200, None).await.unwrap();
            let last_of_page = page.last().map(|bytes| {
                let record = cartwheel_core::record::Record::decode(bytes).unwrap();
                let hash = KeyHash::of(SEED, &record.namespace, &record.key);
                crate::memtable::RecordKey::new(hash, &record.namespace, &record.key)
            });
            records.extend(page);
            after = last_of_page.or(after);
            if !more {
                break;
            }
        }
    }
    records
}

#[tokio::test(start_paused = true)]
async fn what_is_borrowed_is_read_like_the_owners_and_nothing_else_is() {
    let store = Store::new();
    let owner = Owner::new(&store).await;
    let process = boot(&store, "node-b").await;
    let borrower = borrower(&process);
    let borrowed = borrower.borrow(&node("node-a"), &ranges()).await.unwrap();
    assert!(borrowed.objects >= 5 && borrowed.bytes > 1000, "{borrowed:?}");
    assert!(borrowed.records >= 11 && borrowed.copied == 0 && !borrowed.ended, "{borrowed:?}");
    assert_reads(&process, &owner.model, "borrowed").await;
    // In memory as well: the index knows all of it, and nothing else.
    let inside = owner.model.keys().filter(|name| is_inside(name)).count();
    assert_eq!(process.engine.figures().keys, inside - 1, "one was forgotten");
    let all = scan(&owner.process).await;
    let name = |bytes: &bytes::Bytes| {
        let key = cartwheel_core::record::Record::decode(bytes).unwrap().key;
        String::from_utf8(key.as_bytes().to_vec()).unwrap()
    };
    let expected: Vec<_> = all.into_iter().filter(|bytes| is_inside(&name(bytes))).collect();
    assert_eq!(scan(&process).await, expected);
    // The manifest says whose it is, and how much of it.
    assert_eq!(foreign(&store, "node-b").await.len() as u64, borrowed.objects);
    for entry in store.manifest_of("node-b").await.segments {
        assert!(!entry.only.is_empty() && entry.born_ms > 0, "{}", entry.object);
    }
    let (segments, graves) = store.scrub_of("node-b").await;
    assert!(segments.keys().chain(graves.keys()).all(|name| is_inside(name)));
    assert_eq!(graves.len(), 1);

    // Once more: nothing happens.
    let again = borrower.borrow(&node("node-a"), &ranges()).await.unwrap();
    assert_eq!((again.objects, again.bytes, again.records, again.copied), (0, 0, 0, 0));
    assert_eq!(store.objects("pins").await.len(), 1);

    // And in the next process, before and after its index is loaded.
    drop(process);
    let process = store.machine_of("node-b", store.bucket()).boot().await;
    assert_reads(&process, &owner.model, "index not loaded").await;
    process.load_index().await;
    assert_reads(&process, &owner.model, "after a start").await;
    assert_eq!(scan(&process).await, expected);
}

/// The owner merges, deletes and dies; the borrower rewrites all and lets go; what the owner may then delete is gone.
#[tokio::test(start_paused = true)]
async fn the_owner_may_merge_delete_and_die_and_in_the_end_nothing_is_borrowed() {
    for dies in [false, true] {
        let store = Store::new();
        let owner = Owner::new(&store).await;
        let process = boot(&store, "node-b").await;
        let borrower = borrower(&process);
        borrower.borrow(&node("node-a"), &ranges()).await.unwrap();
        let lent = foreign(&store, "node-b").await;
        owner.merge(false).await;
        owner.sweep(&store).await;
        let mut there = store.objects("c").await;
        there.extend(store.objects("f").await);
        there.extend(store.objects("g").await);
        assert!(lent.is_subset(&there), "what is pinned stays");
        let model = owner.model.clone();
        let owner = if dies { None } else { Some(owner) };
        assert_reads(&process, &model, "the owner has merged and deleted").await;
        assert_eq!(borrower.let_go().await.unwrap(), 0);
        rewrite(&process).await;
        assert!(foreign(&store, "node-b").await.is_empty());
        assert_reads(&process, &model, "rewritten").await;
        assert_eq!(borrower.let_go().await.unwrap(), 1);
        assert!(store.objects("pins").await.is_empty());
        assert_eq!(borrower.let_go().await.unwrap(), 0);
        if let Some(owner) = owner {
            owner.sweep(&store).await;
            assert_equals(&owner.process, &owner.model, "the owner").await;
            let manifest = store.manifest().await;
            let named: BTreeSet<String> =
                manifest.segments.iter().chain(&manifest.graves).map(|e| e.object.clone()).collect();
            let left: BTreeSet<String> =
                store.objects("c").await.into_iter().chain(store.objects("f").await).collect();
            assert!(left.is_subset(&named), "what was let go of is gone");
        }
        // The outcome is cut like a split, and young stays young.
        let (segments, graves) = store.scrub_of("node-b").await;
        assert!(segments.len() + graves.len() > 10);
        for entry in store.manifest_of("node-b").await.segments {
            let group = cartwheel_core::compaction::group_of;
            assert_eq!(group(entry.first), group(entry.last), "{}", entry.object);
            assert!(entry.only.is_empty() && entry.born_ms > 0);
        }
        drop(process);
        assert_reads(&boot(&store, "node-b").await, &model, "another start").await;
    }
}

/// Each object once, with all the ranges; the pin that stands is enough.
#[tokio::test(start_paused = true)]
async fn more_ranges_of_what_is_borrowed_widen_it() {
    let store = Store::new();
    let owner = Owner { pieces: 1 << 20, ..Owner::new(&store).await };
    owner.merge(false).await;
    let process = boot(&store, "node-b").await;
    let borrower = borrower(&process);
    let [one, other] = ranges();
    let first = borrower.borrow(&node("node-a"), &[one]).await.unwrap();
    let named = store.manifest_of("node-b").await.segments;
    let second = borrower.borrow(&node("node-a"), &[other]).await.unwrap();
    assert!(second.objects > 0 && second.records > 0 && first.objects > 0);
    let widened = store.manifest_of("node-b").await.segments;
    assert!(
        named.iter().any(|old| widened.iter().any(|new| new.object == old.object && new.only != old.only))
    );
    store.scrub_of("node-b").await;
    assert_reads(&process, &owner.model, "widened").await;
    drop(process);
    let process = boot(&store, "node-b").await;
    assert_reads(&process, &owner.model, "after a start").await;
    rewrite(&process).await;
    assert_reads(&process, &owner.model, "rewritten").await;
}

/// Writes that came before, come meanwhile, at any request, or come after, are all there.
#[tokio::test(start_paused = true)]
async fn writes_meanwhile_join_what_is_borrowed() {
    let mut nth = 0;
    loop {
        let store = Store::new();
        let owner = Owner::new(&store).await;
        let bucket = StopBucket::new(store.bucket(), usize::MAX, nth % 2 == 0);
        let mut process = store.machine_of("node-b", Arc::<StopBucket>::clone(&bucket)).boot().await;
        process.load_index().await;
        let borrower = borrower(&process);
        let mut model = owner.model.clone();
        let mut names = all_names();
        names.retain(|name| is_inside(name));
        let newer = |name: &str, value: &str, request: u128| {
            // From another home, which has seen what the owner has, or not.
            let context = if request.is_multiple_of(2) { seen(&owner.model[name]) } else { Clock::new() };
            let dot = cartwheel_core::clock::Dot {
                actor: cartwheel_core::clock::Actor::parse("node-z.1").unwrap(),
                n: u64::try_from(request).unwrap(),
            };
            Container::delta(&context, dot, version(request, &context, value.as_bytes()))
        };
        for (n, name) in names.iter().enumerate().filter(|(n, _)| n % 3 == 0) {
            let delta = newer(name, "before", 1000 + n as u128);
            process.take(name, &delta).await.unwrap();
            model.get_mut(name).unwrap().sync(delta);
        }
        bucket.stop_after(nth);
        let wanted = ranges();
        let (from, mut stopped) = (node("node-a"), false);
        {
            let mut work = Box::pin(borrower.borrow(&from, &wanted));
            if bucket.run(&mut work).await.is_none() {
                stopped = true;
                // What waits in the bucket waits; these need nothing of it.
                for (n, name) in names.iter().enumerate().filter(|(n, _)| n % 3 == 1) {
                    let delta = newer(name, "meanwhile", 2000 + n as u128);
                    let record = crate::testing::record_key(name).record(delta.clone()).unwrap();
                    match process.engine.replicate(
                        hash(name),
                        &record,
                        &record.encode(),
                        Durability::Memory,
                        crate::engine::Graved::Unknown,
                        Box::new(|_| {}),
                    ) {
                        Ok(crate::engine::Taking::Taken) => model.get_mut(name).unwrap().sync(delta),
                        Ok(crate::engine::Taking::Buried(_)) => {}
                        Err(refused) => panic!("{refused:?}"),
                    }
                }
                if nth % 3 == 0 {
                    // As a flush shows its segment and lets go of its memtable.
                    let table = process.engine.freeze();
                    assert!(table.is_some());
                }
                bucket.go_on();
                work.await.unwrap();
            }
        }
        bucket.go_on();
        for (n, name) in names.iter().enumerate().filter(|(n, _)| n % 3 == 2) {
            let delta = newer(name, "after", 3000 + n as u128);
            process.take(name, &delta).await.unwrap();
            model.get_mut(name).unwrap().sync(delta);
        }
        assert_reads(&process, &model, &format!("request {nth}")).await;
        process.flush().await;
        assert_reads(&process, &model, &format!("request {nth}, flushed")).await;
        rewrite(&process).await;
        assert_reads(&process, &model, &format!("request {nth}, rewritten")).await;
        process.commit().await;
        drop(process);
        assert_reads(&boot(&store, "node-b").await, &model, &format!("request {nth}, restarted")).await;
        if !stopped {
            break;
        }
        nth += 1;
    }
    assert!(nth > 15, "it takes {nth} requests");
}

/// A key that was deleted, and forgotten on proof, stays so at the node that takes over.
#[tokio::test(start_paused = true)]
async fn what_was_forgotten_stays_deleted() {
    for rewritten in [false, true] {
        let store = Store::new();
        let mut owner = Owner::boot(&store).await;
        let name = all_names().remove(0);
        owner.write(&name, Some("old"), true).await;
        let old = owner.model[&name].clone();
        owner.process.flush().await;
        owner.write(&name, None, false).await;
        owner.process.flush().await;
        owner.process.prove(&name);
        owner.merge(false).await;
        let process = boot(&store, "node-b").await;
        // One that had an old copy, and one that gets it later.
        let early = boot(&store, "node-c").await;
        early.take(&name, &old).await.unwrap();
        for process in [&process, &early] {
            borrower(process).borrow(&node("node-a"), &ranges()).await.unwrap();
            if rewritten {
                rewrite(process).await;
                owner.sweep(&store).await;
            }
        }
        assert_eq!(early.container(&name).await, owner.model[&name]);
        process.take(&name, &old).await.unwrap();
        assert_eq!(process.container(&name).await, owner.model[&name], "rewritten: {rewritten}");
        // No dot is given twice.
        let delta = process.write(&name, version(99, &Clock::new(), b"new")).await.unwrap();
        let mut expected = owner.model[&name].clone();
        expected.sync(delta);
        assert_eq!(process.container(&name).await, expected);
        drop(process);
        let process = boot(&store, "node-b").await;
        process.take(&name, &old).await.unwrap();
        assert_eq!(process.container(&name).await, owner.model[&name], "after a start");
    }
}

/// Flushes that the owner's manifest has not heard of can't be pinned: what they say is taken in.
#[tokio::test(start_paused = true)]
async fn flushes_that_no_manifest_names_are_copied() {
    let store = Store::new();
    let mut owner = Owner::new(&store).await;
    for (n, name) in all_names().iter().enumerate().skip(1) {
        owner.write(name, Some("late"), n % 2 == 0).await;
    }
    owner.process.flush().await;
    let model = owner.model.clone();
    drop(owner);
    let process = boot(&store, "node-b").await;
    let _flushing = flushing(&process);
    let borrowed = borrower(&process).borrow(&node("node-a"), &ranges()).await.unwrap();
    assert_eq!(borrowed.copied, 11);
    assert_reads(&process, &model, "copied").await;
    drop((process, _flushing));
    // Without its memory: it was in the bucket when the borrow was done.
    let process = boot(&store, "node-b").await;
    assert_reads(&process, &model, "after a start").await;
    assert_eq!(borrower(&process).borrow(&node("node-a"), &ranges()).await.unwrap().copied, 0);
}

/// An owner that has put flushes, and no manifest yet.
#[tokio::test(start_paused = true)]
async fn without_a_manifest_all_is_copied() {
    let store = Store::new();
    let mut owner = Owner::boot(&store).await;
    for name in all_names() {
        owner.write(&name, Some("one"), false).await;
    }
    owner.process.flush().await;
    for manifest in store.objects("manifest").await {
        store.memory.delete(&manifest).await.unwrap();
    }
    let process = boot(&store, "node-b").await;
    let _flushing = flushing(&process);
    let borrowed = borrower(&process).borrow(&node("node-a"), &ranges()).await.unwrap();
    assert_eq!((borrowed.objects, borrowed.copied), (0, 12));
    assert_reads(&process, &owner.model, "copied").await;
    let nobody = borrower(&process).borrow(&node("node-z"), &ranges()).await.unwrap();
    assert_eq!((nobody.objects, nobody.copied, nobody.ended), (0, 0, false));
}

/// That an owner has ended cleanly, with everything, is told.
#[tokio::test(start_paused = true)]
async fn a_clean_end_is_told() {
    let store = Store::new();
    let mut owner = Owner::new(&store).await;
    // Not while writes may still come in.
    assert!(owner.process.engine.is_flushed());
    assert_eq!(owner.process.ledger.commit_end().await, crate::ledger::Committed::Yes);
    assert!(!store.manifest().await.ended);
    owner.write(&all_names()[1], Some("last"), false).await;
    let model = owner.model.clone();
    owner.process.engine.close();
    owner.process.ledger.commit_end().await;
    assert!(!store.manifest().await.ended, "something is only in memory");
    owner.process.stop.send(true).unwrap();
    assert!(owner.process.flusher.run(owner.process.stopped.clone()).await);
    assert!(store.manifest().await.ended);
    let process = boot(&store, "node-b").await;
    let borrowed = borrower(&process).borrow(&node("node-a"), &ranges()).await.unwrap();
    assert!(borrowed.ended && borrowed.copied == 0);
    assert_reads(&process, &model, "ended").await;
    let next = store.machine(store.bucket(), None).boot().await;
    assert!(!store.manifest().await.ended, "another one has claimed it");
    drop(next);
}

/// One that may lack what an earlier process had acknowledged does not say so.
#[tokio::test(start_paused = true)]
async fn who_has_not_caught_up_ends_without_saying_so() {
    let store = Store::new();
    let owner = Owner::new(&store).await;
    owner.process.engine.close();
    owner.process.ledger.set_whole(false);
    owner.process.ledger.commit_end().await;
    assert!(!store.manifest().await.ended);
    owner.process.ledger.set_whole(true);
    owner.process.ledger.commit_end().await;
    assert!(store.manifest().await.ended);
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_borrowed_is_refused() {
    let store = Store::new();
    let _owner = Owner::new(&store).await;
    let process = boot(&store, "node-b").await;
    let itself = borrower(&process).borrow(&node("node-b"), &ranges()).await;
    assert!(matches!(itself, Err(BorrowError::Itself(_))), "{itself:?}");
    let careless = Borrower::new(Parts { unsafe_no_cas: true, ..parts(&process) });
    let refused = careless.borrow(&node("node-a"), &ranges()).await.unwrap_err();
    assert!(refused.to_string().contains("--unsafe-no-cas"), "{refused}");
    assert!(store.objects("pins").await.is_empty());
}
