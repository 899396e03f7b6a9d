//! Forgetting deletions: only on proof, only where all that is held of a key is merged, and never so that an older copy
//! brings it back or a dot is given twice (P3, P5).

use std::sync::Arc;

use cartwheel_core::clock::Clock;
use cartwheel_core::clock_index::Known;
use cartwheel_core::container::Container;
use cartwheel_core::record::{Record, Value, Version};

use crate::disk::{Disk, MemoryDisk};
use crate::engine::Reaped;
use crate::reap::EXPIRED_FOR;
use crate::segments::Segment;
use crate::testing::upkeep::{
    Model, StopBucket, Store, assert_equals, deletion, is_dead, names_in, wide_plan,
};
use crate::testing::{Process, hash, record_key, values, version};

/// A node with one deleted key and one that lives, all of it in segments.
struct Scene {
    store: Store,
    process: Process,
    name: String,
    /// What the key was before it was deleted, and with the deletion.
    old: Container<Version>,
    deleted: Container<Version>,
}

impl Scene {
    async fn new() -> Self {
        let store = Store::new();
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
        let mut process = store.machine(store.bucket(), Some(disk)).boot().await;
        process.load_index().await;
        let name = names_in(3, 1).remove(0);
        process.write("alive", version(1, &Clock::new(), b"here")).await.unwrap();
        let old = process.write(&name, version(2, &Clock::new(), b"old")).await.unwrap();
        process.flush().await;
        process.write(&name, deletion(3, old.seen())).await.unwrap();
        process.flush().await;
        process.commit().await;
        let deleted = process.container(&name).await;
        Self { store, process, name, old, deleted }
    }

    async fn merge(&self) {
        merge(&self.process, &self.process.engine.segments.all()).await;
    }

    /// A start from what is in the bucket alone.
    async fn elsewhere(&self, loaded: bool) -> Process {
        let store = self.store.copy().await;
        let process = store.machine(store.bucket(), None).boot().await;
        if loaded {
            process.load_index().await;
        }
        process
    }

    fn is_forgotten(&self) -> bool {
        self.process.engine.knows_nothing_of(hash(&self.name))
    }

    /// Does a segment hold anything of the key?
    async fn in_segments(&self) -> bool {
        self.store.scrub().await.0.contains_key(&self.name)
    }
}

async fn merge(process: &Process, inputs: &[Arc<Segment>]) {
    process.compactor().merge(inputs, &wide_plan()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_proof_nothing_is_forgotten() {
    let scene = Scene::new().await;
    scene.merge().await;
    assert!(scene.in_segments().await && !scene.is_forgotten());
    // A proof of what it was before is none of what it is.
    scene.process.prove_as(&scene.name, scene.old.seen());
    scene.merge().await;
    assert!(scene.in_segments().await && !scene.is_forgotten());
    assert_eq!(scene.process.container(&scene.name).await, scene.deleted);
    // Nor is a live key forgotten, whatever was said.
    scene.process.prove("alive");
    scene.merge().await;
    assert_eq!(scene.process.values("alive").await, ["here"]);
}

#[tokio::test(start_paused = true)]
async fn with_a_proof_a_deletion_lies_in_a_grave_and_nowhere_else() {
    let scene = Scene::new().await;
    scene.process.prove(&scene.name);
    scene.merge().await;
    assert!(scene.is_forgotten() && !scene.in_segments().await);
    assert_eq!(scene.process.proofs.len(), 0);
    let graves = scene.store.scrub().await.1;
    assert_eq!(graves, Model::from([(scene.name.clone(), scene.deleted.clone())]));
    // No request to the bucket: memory tells.
    assert_eq!(scene.process.engine.read_fast(&record_key(&scene.name)), Some(crate::engine::Found::Absent));
    let process = scene.elsewhere(false).await;
    assert_eq!(process.container(&scene.name).await, scene.deleted, "until the index is complete");
    process.load_index().await;
    assert!(process.engine.knows_nothing_of(hash(&scene.name)));
    assert_eq!(process.values("alive").await, ["here"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_lies_outside_the_merge_is_not_forgotten() {
    let scene = Scene::new().await;
    scene.process.prove(&scene.name);
    let all = scene.process.engine.segments.all();
    merge(&scene.process, &all[1..]).await;
    assert!(scene.in_segments().await && !scene.is_forgotten(), "its old value is in the other segment");
    scene.merge().await;
    assert!(!scene.in_segments().await && scene.is_forgotten(), "now all of it was merged");
}

/// A segment that certainly does not hold the key does not keep it, though its range covers it.
#[tokio::test(start_paused = true)]
async fn other_segments_keep_only_what_they_hold() {
    let mut scene = Scene::new().await;
    let all = scene.process.engine.segments.all();
    for n in 0..40_u8 {
        scene.process.write(&format!("other-{n}"), version(100, &Clock::new(), b"x")).await.unwrap();
    }
    scene.process.flush().await;
    scene.process.prove(&scene.name);
    merge(&scene.process, &all).await;
    assert!(scene.is_forgotten());
}

#[tokio::test(start_paused = true)]
async fn writes_after_a_deletion_was_forgotten_go_on_counting() {
    for restarted in [None, Some(false), Some(true)] {
        let scene = Scene::new().await;
        scene.process.prove(&scene.name);
        scene.merge().await;
        let other;
        let process = match restarted {
            None => &scene.process,
            Some(loaded) => {
                other = scene.elsewhere(loaded).await;
                &other
            }
        };
        let new = process.write(&scene.name, version(9, &Clock::new(), b"new")).await.unwrap();
        assert!(!scene.deleted.seen().contains(&new.siblings()[0].dot));
        if restarted.is_none() {
            assert_eq!(new.siblings()[0].dot.n, 3, "the same actor goes on");
        }
        let mut expected = scene.deleted.clone();
        expected.sync(new);
        assert_eq!(process.container(&scene.name).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_copy_that_comes_late_is_no_news() {
    for restarted in [None, Some(false), Some(true)] {
        let scene = Scene::new().await;
        scene.process.prove(&scene.name);
        scene.merge().await;
        let other;
        let process = match restarted {
            None => &scene.process,
            Some(loaded) => {
                other = scene.elsewhere(loaded).await;
                &other
            }
        };
        process.take(&scene.name, &scene.old).await.unwrap();
        assert_eq!(process.container(&scene.name).await, scene.deleted);
        process.load_index().await;
        assert_eq!(process.container(&scene.name).await, scene.deleted);
    }
}

/// A log file that was not deleted in time is replayed once more.
#[tokio::test(start_paused = true)]
async fn a_replayed_log_brings_nothing_back() {
    let store = Store::new();
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let machine = store.machine(store.bucket(), Some(Arc::clone(&disk)));
    let mut process = machine.boot().await;
    process.load_index().await;
    let old = process.write("k", version(1, &Clock::new(), b"old")).await.unwrap();
    let file = disk.list().await.unwrap().remove(0);
    let kept = disk.read(&file).await.unwrap();
    process.write("k", deletion(2, old.seen())).await.unwrap();
    process.flush().await;
    let deleted = process.container("k").await;
    process.prove("k");
    merge(&process, &process.engine.segments.all()).await;
    assert!(process.engine.knows_nothing_of(hash("k")));
    drop(process);
    for name in disk.list().await.unwrap() {
        disk.delete(&name).await.unwrap();
    }
    disk.replace(&file, kept).await.unwrap();
    let process = machine.boot().await;
    assert_eq!(process.container("k").await, deleted, "before the index is loaded");
    process.load_index().await;
    assert_eq!(process.container("k").await, deleted);
}

/// What happens to the key while it is being forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Rewritten,
    Deleted,
    OldCopy,
    DeletionAgain,
    LateSegment,
}

/// Whenever it happens, in memory only or flushed at once, the key is what it should be, with the disk and without.
#[tokio::test(start_paused = true)]
async fn whatever_happens_to_a_key_while_it_is_forgotten() {
    use Meanwhile::{Deleted, DeletionAgain, LateSegment, OldCopy, Rewritten};
    for what in [Rewritten, Deleted, OldCopy, DeletionAgain, LateSegment] {
        for flushed in [false, true] {
            let mut nth = 0;
            while meanwhile(what, flushed, nth).await {
                nth += 1;
            }
            assert!(nth > 8, "the merge is {nth} requests long");
        }
    }
}

/// Did the merge come so far that it was stopped at its `nth` request?
async fn meanwhile(what: Meanwhile, flushed: bool, nth: usize) -> bool {
    let when = format!("{what:?} at request {nth}, flushed: {flushed}");
    let mut scene = Scene::new().await;
    scene.process.prove(&scene.name);
    let bucket = StopBucket::new(scene.store.bucket(), nth, false);
    let mut compactor = scene.process.compactor();
    compactor.bucket = Arc::<StopBucket>::clone(&bucket);
    // A process that was thought dead has put this, or is about to.
    let late = {
        let copy = Store::new();
        let mut other = copy.machine(copy.bucket(), None).boot().await;
        other.take(&scene.name, &scene.old).await.unwrap();
        other.flush().await;
        let object = copy.objects("f").await.pop_first().unwrap();
        let body = cartwheel_bucket::Bucket::get(&*copy.memory, &object).await.unwrap();
        let name = "nodes/node-a/f/0000000000-late/0000000001.seg".to_owned();
        cartwheel_bucket::Bucket::put(&*scene.store.memory, &name, body.clone()).await.unwrap();
        scene.process.engine.segments.open(name, body.len() as u64, None, None)
    };
    let inputs = scene.process.engine.segments.all();
    let plan = wide_plan();
    let mut merging = Box::pin(compactor.merge(&inputs, &plan));
    let stopped = bucket.run(&mut merging).await.is_none();
    let mut expected = scene.deleted.clone();
    match what {
        Meanwhile::Rewritten => {
            let new = version(9, scene.deleted.seen(), b"new");
            expected.sync(scene.process.write(&scene.name, new).await.unwrap());
        }
        Meanwhile::Deleted => {
            let new = deletion(9, scene.deleted.seen());
            expected.sync(scene.process.write(&scene.name, new).await.unwrap());
        }
        Meanwhile::OldCopy => scene.process.take(&scene.name, &scene.old).await.unwrap(),
        Meanwhile::DeletionAgain => scene.process.take(&scene.name, &scene.deleted).await.unwrap(),
        Meanwhile::LateSegment => scene.process.engine.adopt(late).await.unwrap(),
    }
    if flushed {
        scene.process.flush().await;
    }
    if stopped {
        bucket.go_on();
        merging.as_mut().await.unwrap();
    }
    drop(merging);
    let model = Model::from([(scene.name.clone(), expected.clone())]);
    assert_equals(&scene.process, &model, &when).await;
    check_pages(&scene.process, &model, &when).await;

    // Killed right then, without its disk.
    scene.process.commit().await;
    let is_kept = flushed || !matches!(what, Meanwhile::Rewritten | Meanwhile::Deleted);
    let in_bucket = if is_kept { expected.clone() } else { scene.deleted.clone() };
    let model = Model::from([(scene.name.clone(), in_bucket)]);
    let process = scene.elsewhere(false).await;
    assert_equals(&process, &model, &format!("{when}, elsewhere")).await;
    check_pages(&process, &model, &format!("{when}, elsewhere")).await;
    process.load_index().await;
    assert_equals(&process, &model, &format!("{when}, elsewhere, loaded")).await;
    check_pages(&process, &model, &when).await;

    // With it; and what is forgotten at last stays so.
    scene.process.flush().await;
    let model = Model::from([(scene.name.clone(), expected.clone())]);
    for _ in 0..2 {
        scene.process.prove_as(&scene.name, expected.seen());
        scene.merge().await;
        assert_equals(&scene.process, &model, &format!("{when}, merged again")).await;
    }
    assert_eq!(scene.is_forgotten(), is_dead(&expected), "{when}");
    scene.process.take(&scene.name, &scene.old).await.unwrap();
    assert_eq!(scene.process.container(&scene.name).await, expected, "{when}");
    stopped
}

/// What is handed to other nodes is no older than what is read.
async fn check_pages(process: &Process, model: &Model, when: &str) {
    let (first, last) = (cartwheel_core::hash::KeyHash(0), cartwheel_core::hash::KeyHash(u128::MAX));
    let (page, more) = process.engine.scan(first, last, None, 1 << 20, None).await.unwrap();
    assert!(!more);
    for record in page.iter().map(|bytes| Record::decode(bytes).unwrap()) {
        let name = String::from_utf8(record.key.as_bytes().to_vec()).unwrap();
        if let Some(expected) = model.get(&name) {
            assert_eq!(record.container, *expected, "{when}: handed out");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_expired_is_a_deletion_some_time_later() {
    let store = Store::new();
    let mut process = store.machine(store.bucket(), None).boot().await;
    process.load_index().await;
    let ends = store.now_ms() + 1000;
    let mortal = Version { expires_ms: ends, ..version(1, &Clock::new(), &[7; 500]) };
    let written = process.write("k", mortal).await.unwrap();
    process.flush().await;
    let value = |store: &Store| {
        let store = store.clone();
        async move { store.scrub().await.0["k"].siblings()[0].version.value.clone() }
    };
    process.commit().await;
    store.clock.advance(1000 + EXPIRED_FOR - 1);
    process.prove("k");
    merge(&process, &process.engine.segments.all()).await;
    assert!(matches!(value(&store).await, Value::Present(_)), "clocks differ");
    assert!(!process.engine.knows_nothing_of(hash("k")));
    // A value that a reader may still see is not lost with one that has ended.
    let kept = process.write("k", version(2, &Clock::new(), b"kept")).await.unwrap();
    process.flush().await;
    store.clock.advance(1);
    process.prove("k");
    merge(&process, &process.engine.segments.all()).await;
    assert!(value(&store).await.is_deleted(), "its bytes are gone");
    assert_eq!(values(&process.container("k").await).len(), 2);
    assert!(!process.engine.knows_nothing_of(hash("k")));
    let mut all = written.seen().clone();
    all.join(kept.seen());
    let gone = Version { expires_ms: ends, ..version(3, &all, b"") };
    process.write("k", gone).await.unwrap();
    process.flush().await;
    process.prove("k");
    merge(&process, &process.engine.segments.all()).await;
    assert!(process.engine.knows_nothing_of(hash("k")));
    process.take("k", &written).await.unwrap();
    assert!(is_dead(&process.container("k").await));
}

/// What was proven and can't be forgotten yet does not keep the node merging.
#[tokio::test(start_paused = true)]
async fn merging_comes_to_rest_with_proofs_of_no_use() {
    let mut scene = Scene::new().await;
    scene.process.compact().await;
    let young = names_in(9, 1).remove(0);
    let old = scene.process.write(&young, version(5, &Clock::new(), b"x")).await.unwrap();
    scene.process.write(&young, deletion(6, old.seen())).await.unwrap();
    scene.process.prove(&young);
    scene.process.prove_as("never heard of", old.seen());
    scene.process.compact().await;
    // Proven, in a segment that is too young for the merge that would reach it.
    let mut compactor = scene.process.compactor();
    compactor.settle = std::time::Duration::from_secs(50);
    tokio::time::advance(std::time::Duration::from_secs(100)).await;
    scene.process.flush().await;
    let mut merges = 0;
    while compactor.once().await.unwrap() {
        merges += 1;
        assert!(merges < 20, "it never comes to rest");
    }
    assert!(!scene.process.engine.knows_nothing_of(hash(&young)));
    tokio::time::advance(std::time::Duration::from_secs(100)).await;
    while compactor.once().await.unwrap() {
        merges += 1;
        assert!(merges < 40, "it never comes to rest");
    }
    assert!(scene.process.engine.knows_nothing_of(hash(&young)));
}

/// A segment that is found late is never seen without the deletion of what it holds.
#[tokio::test(start_paused = true)]
async fn what_is_taken_up_late_is_dead_from_the_start() {
    let mut nth = 0;
    loop {
        let store = Store::new();
        let bucket = StopBucket::new(store.bucket(), usize::MAX, false);
        let mut process = store.machine(Arc::<StopBucket>::clone(&bucket), None).boot().await;
        process.load_index().await;
        let old = process.write("k", version(1, &Clock::new(), b"old")).await.unwrap();
        process.flush().await;
        let late = process.engine.segments.all()[0].clone();
        let copy = "nodes/node-a/f/0000000000-late/0000000001.seg".to_owned();
        let body = cartwheel_bucket::Bucket::get(&*store.memory, &late.object).await.unwrap();
        cartwheel_bucket::Bucket::put(&*store.memory, &copy, body).await.unwrap();
        process.write("k", deletion(2, old.seen())).await.unwrap();
        process.flush().await;
        process.prove("k");
        merge(&process, &process.engine.segments.all()).await;
        assert!(process.engine.knows_nothing_of(hash("k")));
        bucket.stop_after(nth);
        let segment = process.engine.segments.open(copy, late.bytes, None, None);
        let mut adopting = Box::pin(process.engine.adopt(segment));
        let stopped = bucket.run(&mut adopting).await.is_none();
        let (Known::All(known) | Known::AtLeast(known)) = process.engine.known(hash("k"));
        assert!(known.siblings().iter().all(|sibling| sibling.version.deleted), "at request {nth}");
        if !stopped {
            break;
        }
        nth += 1;
    }
    assert!(nth > 3, "it takes {nth} requests");
}

/// Whatever a merge says, only a key that is as it was reaped is forgotten.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_as_it_was_reaped_is_not_forgotten() {
    for (container, is_forgotten) in [(false, false), (true, true)] {
        let scene = Scene::new().await;
        let container = if container { scene.deleted.clone() } else { scene.old.clone() };
        let key = record_key(&scene.name);
        let record = key.record(container).unwrap();
        let all = scene.process.engine.segments.all();
        assert!(scene.process.engine.swap(&all, all.to_vec(), &[Reaped { key, record }]));
        assert_eq!(scene.is_forgotten(), is_forgotten);
        if !is_forgotten {
            assert_eq!(scene.process.container(&scene.name).await, scene.deleted);
        }
    }
}
