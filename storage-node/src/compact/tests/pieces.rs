//! The pieces of a merge: how they are cut, and gone on from where it failed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use cartwheel_core::clock::Clock;
use cartwheel_core::compaction::{Plan, Why, group_of};

use super::crash::check_bucket;
use super::scenario::sweep;
use crate::compact::{MAX_GRAVES, check};
use crate::testing::upkeep::{
    GRACE, Model, StopBucket, Store, assert_equals, deletion, is_dead, names_in, wide_plan,
};
use crate::testing::{Process, hash, version};

/// Three flushes of keys in some groups, with deletions.
async fn scene(store: &Store) -> (Process, Model) {
    let mut process = store.machine(store.bucket(), None).boot().await;
    process.load_index().await;
    let mut model = Model::new();
    let names: Vec<String> = [2, 3, 9].iter().flat_map(|group| names_in(*group, 6)).collect();
    let mut request = 0;
    for value in ["one", "two", "three"] {
        for (n, name) in names.iter().enumerate() {
            request += 1;
            let seen = model.get(name).map(|c| c.seen().clone()).unwrap_or_default();
            let version = match value {
                "three" if n % 3 == 0 => deletion(request, &seen),
                "three" if n % 3 == 1 => version(request, &Clock::new(), &[b'x'; 40]),
                _ => version(request, &seen, value.as_bytes()),
            };
            let delta = process.write(name, version).await.unwrap();
            model.entry(name.clone()).or_default().sync(delta);
        }
        process.flush().await;
    }
    process.commit().await;
    (process, model)
}

fn prove(process: &Process, model: &Model) {
    model.iter().filter(|(_, c)| is_dead(c)).for_each(|(name, c)| process.prove_as(name, c.seen()));
}

fn split_plan() -> Plan {
    Plan { inputs: Vec::new(), split: true, why: Why::Split }
}

#[tokio::test(start_paused = true)]
async fn a_split_cuts_at_the_borders_of_groups_and_is_one_run_for_each() {
    let store = Store::new();
    let (process, model) = scene(&store).await;
    let mut compactor = process.compactor();
    compactor.piece_bytes = 300;
    let inputs = process.engine.segments.all();
    compactor.merge(&inputs, &split_plan()).await.unwrap();
    let manifest = store.manifest().await;
    assert!(manifest.segments.len() > 5, "{} pieces", manifest.segments.len());
    for entry in &manifest.segments {
        assert_eq!(group_of(entry.first), group_of(entry.last), "{}", entry.object);
    }
    for process in [process, store.machine(store.bucket(), None).boot().await] {
        let runs = process.compactor().runs(&process.engine.segments.all()).await.unwrap();
        let groups: Vec<_> = runs.iter().map(|run| run.seen().group).collect();
        assert_eq!(groups, [Some(2), Some(3), Some(9)]);
        assert_equals(&process, &model, "split").await;
        process.compact().await;
        assert_eq!(store.manifest().await.segments, manifest.segments, "there is nothing more to do");
    }
}

#[tokio::test(start_paused = true)]
async fn a_merge_that_is_not_split_is_one_run_across_all_groups() {
    let store = Store::new();
    let (process, model) = scene(&store).await;
    let mut compactor = process.compactor();
    compactor.piece_bytes = 300;
    compactor.merge(&process.engine.segments.all(), &wide_plan()).await.unwrap();
    let runs = compactor.runs(&process.engine.segments.all()).await.unwrap();
    assert_eq!((runs.len(), runs[0].seen().group), (1, None));
    assert!(runs[0].segments.len() > 3);
    assert_equals(&process, &model, "merged").await;
    let (segments, _) = store.scrub().await;
    assert_eq!(segments, model);
}

/// What was put is taken over, and not put again.
#[tokio::test(start_paused = true)]
async fn a_merge_that_failed_goes_on_from_the_pieces_that_are_there() {
    for reaping in [false, true] {
        let mut nth = 0;
        let mut taken_over = 0;
        loop {
            let store = Store::new();
            let (process, model) = scene(&store).await;
            let bucket = StopBucket::new(store.bucket(), nth, true);
            let mut compactor = process.compactor();
            (compactor.bucket, compactor.piece_bytes) = (Arc::<StopBucket>::clone(&bucket), 300);
            if reaping {
                prove(&process, &model);
            }
            let (inputs, plan) = (process.engine.segments.all(), split_plan());
            let stopped = {
                let mut merging = Box::pin(compactor.merge(&inputs, &plan));
                bucket.run(&mut merging).await.is_none()
            };
            if !stopped {
                break;
            }
            drop(compactor);
            let before = store.objects("c").await;
            let bucket = StopBucket::new(store.bucket(), usize::MAX, false);
            let mut compactor = process.compactor();
            (compactor.bucket, compactor.piece_bytes) = (Arc::<StopBucket>::clone(&bucket), 300);
            compactor.merge(&process.engine.segments.all(), &plan).await.unwrap();
            let put: Vec<String> = bucket
                .created
                .lock()
                .iter()
                .map(|(object, _)| object.clone())
                .filter(|o| o.contains("/c/"))
                .collect();
            assert!(put.iter().all(|object| !before.contains(object)), "{nth}: {put:?} after {before:?}");
            let named = store.manifest().await.segments.len();
            assert_eq!(before.len() + put.len(), named, "{nth}");
            taken_over += before.len();
            assert_equals(&process, &model, &format!("{nth}")).await;
            for _ in 0..2 {
                sweep(&store, &process).await;
            }
            check_bucket(&store, &model, &format!("{nth}")).await;
            nth += 1;
        }
        assert!(taken_over > 20, "{taken_over}");
    }
}

/// Two processes merge the same, and cut and reap it differently: the older may put what it has at any moment.
#[tokio::test(start_paused = true)]
async fn two_processes_at_the_same_merge_make_one_outcome() {
    for (old_proves, new_proves) in [(true, false), (false, true), (true, true)] {
        let mut nth = 0;
        loop {
            let when = format!("{nth}, {old_proves} {new_proves}");
            let store = Store::new();
            let (old, model) = scene(&store).await;
            let new = store.machine(store.bucket(), None).boot().await;
            new.load_index().await;
            if old_proves {
                prove(&old, &model);
            }
            if new_proves {
                prove(&new, &model);
            }
            let bucket = StopBucket::new(store.bucket(), nth, false);
            let mut compactor = new.compactor();
            (compactor.bucket, compactor.piece_bytes) = (Arc::<StopBucket>::clone(&bucket), 300);
            let (inputs, plan) = (new.engine.segments.all(), wide_plan());
            let stopped = {
                let mut merging = Box::pin(compactor.merge(&inputs, &plan));
                let stopped = bucket.run(&mut merging).await.is_none();
                if stopped {
                    let mut compactor = old.compactor();
                    compactor.piece_bytes = 450;
                    assert!(compactor.merge(&old.engine.segments.all(), &plan).await.is_err());
                    assert!(old.engine.is_fenced());
                    bucket.go_on();
                    merging.await.unwrap();
                }
                stopped
            };
            assert_equals(&new, &model, &when).await;
            for _ in 0..2 {
                sweep(&store, &new).await;
            }
            check_bucket(&store, &model, &when).await;
            for (name, container) in &model {
                let held = store.scrub().await.0.contains_key(name);
                assert_eq!(new.engine.knows_nothing_of(hash(name)), !held, "{when}: {name}");
                if !held {
                    assert!(is_dead(container), "{when}: {name}");
                }
            }
            if !stopped {
                break;
            }
            nth += 1;
        }
        assert!(nth > 10, "{nth}");
    }
}

/// A merge that fails is tried again by the same process, with the same proofs.
#[tokio::test(start_paused = true)]
async fn a_merge_that_is_tried_again_forgets_for_good() {
    let mut nth = 0;
    loop {
        let store = Store::new();
        let (process, model) = scene(&store).await;
        prove(&process, &model);
        let bucket = StopBucket::new(store.bucket(), nth, true);
        let mut compactor = process.compactor();
        (compactor.bucket, compactor.piece_bytes) = (Arc::<StopBucket>::clone(&bucket), 300);
        let (inputs, plan) = (process.engine.segments.all(), wide_plan());
        let stopped = bucket.run(&mut Box::pin(compactor.merge(&inputs, &plan))).await.is_none();
        if stopped {
            compactor.bucket = store.bucket();
            compactor.merge(&inputs, &plan).await.unwrap();
        }
        for (name, container) in &model {
            assert_eq!(process.engine.knows_nothing_of(hash(name)), is_dead(container), "{nth}: {name}");
        }
        assert!(process.engine.is_flushed(), "{nth}: nothing came back into memory");
        let (segments, graves) = store.scrub().await;
        assert!(segments.keys().all(|name| !graves.contains_key(name)), "{nth}");
        if !stopped {
            break;
        }
        nth += 1;
    }
    assert!(nth > 10, "{nth}");
}

/// Whoever looks for orphans while a merge is going on, however long it takes, finds none of its pieces.
#[tokio::test(start_paused = true)]
async fn pieces_of_the_merge_that_goes_on_are_no_orphans() {
    let mut nth = 0;
    loop {
        let store = Store::new();
        let (process, model) = scene(&store).await;
        prove(&process, &model);
        let bucket = StopBucket::new(store.bucket(), nth, true);
        let mut compactor = process.compactor();
        (compactor.bucket, compactor.piece_bytes) = (Arc::<StopBucket>::clone(&bucket), 300);
        let (inputs, plan) = (process.engine.segments.all(), wide_plan());
        let mut merging = Box::pin(compactor.merge(&inputs, &plan));
        let stopped = bucket.run(&mut merging).await.is_none();
        if stopped {
            store.advance(GRACE);
            process.sweeper(GRACE).round(true).await.unwrap();
            assert!(process.ledger.dropped().is_empty(), "{nth}");
            bucket.go_on();
            merging.as_mut().await.unwrap();
        }
        drop(merging);
        for _ in 0..2 {
            sweep(&store, &process).await;
        }
        check_bucket(&store, &model, &format!("{nth}")).await;
        if !stopped {
            break;
        }
        nth += 1;
    }
    assert!(nth > 10, "{nth}");
}

/// A name under which a piece was dropped is used for no merge again, not even once the piece is gone: its DELETE may
/// have been sent twice.
#[tokio::test(start_paused = true)]
async fn pieces_that_wait_for_their_end_are_not_taken_over() {
    let store = Store::new();
    let (process, model) = scene(&store).await;
    let (inputs, plan) = (process.engine.segments.all(), wide_plan());
    let bucket = StopBucket::new(store.bucket(), usize::MAX, false);
    let mut compactor = process.compactor();
    (compactor.bucket, compactor.piece_bytes) = (Arc::<StopBucket>::clone(&bucket), 300);
    let outcome = compactor.write(&compactor.begin(&inputs, false).label, &inputs, false).await.unwrap();
    store.advance(GRACE);
    let swept = process.sweeper(GRACE).round(true).await.unwrap();
    assert_eq!(swept.orphans, outcome.pieces.len());
    for _ in 0..3 {
        store.advance(GRACE);
        process.sweeper(GRACE).round(true).await.unwrap();
    }
    assert!(process.ledger.dropped().is_empty(), "forgotten");
    compactor.merge(&inputs, &plan).await.unwrap();
    let manifest = store.manifest().await;
    assert!(manifest.segments.iter().all(|e| outcome.pieces.iter().all(|p| p.object != e.object)));
    for _ in 0..2 {
        sweep(&store, &process).await;
    }
    check_bucket(&store, &model, "salted").await;
}

#[tokio::test(start_paused = true)]
async fn many_small_graves_become_one_and_large_ones_stay() {
    let store = Store::new();
    let mut process = store.machine(store.bucket(), None).boot().await;
    process.load_index().await;
    let mut model = Model::new();
    let mut compactor = process.compactor();
    compactor.piece_bytes = 1000;
    for n in 0..40_u32 {
        for name in [format!("k{n}"), "again".to_owned()] {
            let seen = model.get(&name).map(|c: &_| cartwheel_core::container::Container::seen(c).clone());
            let seen = seen.unwrap_or_default();
            let request = u128::from(n) * 10;
            let old = process.write(&name, version(request + 1, &seen, b"old")).await.unwrap();
            let container = model.entry(name.clone()).or_default();
            container.sync(old);
            let gone = process.write(&name, deletion(request + 2, container.seen())).await.unwrap();
            container.sync(gone);
        }
        process.flush().await;
        prove(&process, &model);
        compactor.merge(&process.engine.segments.all(), &wide_plan()).await.unwrap();
        while compactor.once().await.unwrap() {}
    }
    let graves = process.engine.graves.segments.all();
    let small = graves.iter().filter(|grave| grave.bytes < 500).count();
    assert!(graves.len() > small && small <= MAX_GRAVES, "{} graves, {small} small", graves.len());
    assert!(graves.len() < 30, "{} graves", graves.len());
    let (segments, buried) = store.scrub().await;
    assert!(segments.is_empty());
    assert_eq!(buried, model);
    for name in model.keys() {
        process.engine.exhume(hash(name)).await.unwrap();
        assert_eq!(process.container(name).await, model[name]);
    }
}

/// A merge of segments of which one has no age has none either: its records may be younger than the others'.
#[tokio::test(start_paused = true)]
async fn what_is_of_unknown_age_stays_so() {
    let store = Store::new();
    let (process, _) = scene(&store).await;
    let all = process.engine.segments.all();
    let known = |n: usize| {
        let entry = all[n].known().unwrap().clone();
        process.engine.segments.open(entry.object.clone(), entry.bytes, Some(entry), None)
    };
    assert!(all[0].born.is_some());
    assert!(process.engine.segments.replace(&all[..1], vec![known(0)]));
    let inputs = process.engine.segments.all();
    process.compactor().merge(&inputs, &wide_plan()).await.unwrap();
    assert_eq!(process.engine.segments.all()[0].born, None);
    let entry = process.engine.segments.all()[0].known().unwrap().clone();
    assert_eq!(entry.born_ms, 0);

    // Of known ages, the youngest counts, in this process and in the next.
    let store = Store::new();
    let (process, _) = scene(&store).await;
    process.sweeper(GRACE).round(false).await.unwrap();
    tokio::time::advance(Duration::from_secs(5)).await;
    let inputs = process.engine.segments.all();
    process.compactor().merge(&inputs, &wide_plan()).await.unwrap();
    let born = process.engine.segments.all()[0].born.unwrap();
    assert_eq!(born, inputs.last().unwrap().born.unwrap());
    store.advance(Duration::from_secs(100));
    let next = store.machine(store.bucket(), None).boot().await;
    let again = next.engine.segments.all()[0].born.unwrap();
    let (age, now) = (Instant::now() - again, Duration::from_secs(100));
    assert!(age > now && age < now + Duration::from_secs(15), "{age:?}");
}

/// P1: what was built must hold what was read.
#[tokio::test(start_paused = true)]
async fn an_outcome_that_does_not_hold_what_went_in_is_refused() {
    let store = Store::new();
    let (process, _) = scene(&store).await;
    let entry = process.engine.segments.all()[0].known().unwrap().clone();
    let mut told = cartwheel_core::merkle::LeafSum::default();
    let mut builder = cartwheel_core::segment::SegmentBuilder::new();
    for (name, container) in store.read(&entry).await {
        told.add(hash(&name), container.seen());
        let record = crate::testing::record_key(&name).record(container).unwrap();
        let brief = record.container.map(|v| cartwheel_core::record::Brief::from(v));
        builder.push(hash(&name), &record.encode(), &brief);
    }
    let built = builder.finish().unwrap();
    assert!(check(Some(&built), told).is_ok());
    assert!(check(None, cartwheel_core::merkle::LeafSum::default()).is_ok());
    assert!(check(None, told).is_err());
    told.add(hash("one more"), &["node-a.1"].iter().map(|a| dot(a)).collect());
    assert!(check(Some(&built), told).is_err());
}

fn dot(actor: &str) -> cartwheel_core::clock::Dot {
    cartwheel_core::clock::Dot { actor: cartwheel_core::clock::Actor::parse(actor).unwrap(), n: 1 }
}
