//! Pins: put in time, let go of in the end, and never one that is needed.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use cartwheel_bucket::{
    Bucket, BucketError, CERTAIN, Created, Faults, FaultyBucket, Listing, MemoryBucket, OperationFaults,
    SharedBucket,
};

use super::*;
use crate::ledger::Committed;
use crate::segments::pins::{Pin, pinned, pins_of};
use crate::testing::upkeep::StopBucket;

/// The owner merges, drops and deletes at any moment of a borrow: it begins anew, or has what it needs.
#[tokio::test(start_paused = true)]
async fn the_owner_may_delete_at_any_request() {
    for carried_out in [false, true] {
        let mut nth = 0;
        loop {
            let store = Store::new();
            let mut owner = Owner::new(&store).await;
            // And a flush that its manifest does not name.
            for name in &all_names()[4..7] {
                owner.write(name, Some("late"), false).await;
            }
            owner.process.flush().await;
            let bucket = StopBucket::new(store.bucket(), usize::MAX, carried_out);
            let process = store.machine_of("node-b", Arc::<StopBucket>::clone(&bucket)).boot().await;
            process.load_index().await;
            let _flushing = flushing(&process);
            let borrower = borrower(&process);
            let (from, wanted) = (node("node-a"), ranges());
            bucket.stop_after(nth);
            let mut work = Box::pin(borrower.borrow(&from, &wanted));
            let ended = bucket.run(&mut work).await;
            owner.merge(nth % 2 == 0).await;
            owner.sweep(&store).await;
            let stopped = ended.is_none();
            bucket.go_on();
            if stopped {
                work.await.unwrap();
            }
            let when = format!("deleted at request {nth}, carried out: {carried_out}");
            store.scrub_of("node-b").await;
            assert_reads(&process, &owner.model, &when).await;
            owner.sweep(&store).await;
            store.scrub_of("node-b").await;
            rewrite(&process).await;
            borrower.let_go().await.unwrap();
            assert_reads(&process, &owner.model, &format!("{when}, rewritten")).await;
            assert!(store.objects("pins").await.is_empty(), "{when}");
            if !stopped {
                break;
            }
            nth += 1;
        }
        assert!(nth > 15, "it takes {nth} requests");
    }
}

/// A third node borrows what the second has borrowed, while that one lets go and the owner deletes: at any request.
#[tokio::test(start_paused = true)]
async fn what_is_borrowed_can_be_lent_on() {
    let mut nth = 0;
    loop {
        let store = Store::new();
        let owner = Owner::new(&store).await;
        let second = boot(&store, "node-b").await;
        let lender = borrower(&second);
        lender.borrow(&node("node-a"), &ranges()).await.unwrap();
        // The owner names it no longer: only the second does.
        owner.merge(false).await;
        owner.sweep(&store).await;
        let bucket = StopBucket::new(store.bucket(), usize::MAX, nth % 2 == 0);
        let process = store.machine_of("node-c", Arc::<StopBucket>::clone(&bucket)).boot().await;
        process.load_index().await;
        let borrower = borrower(&process);
        let (from, wanted) = (node("node-b"), [HashRange::ALL]);
        bucket.stop_after(nth);
        let mut work = Box::pin(borrower.borrow(&from, &wanted));
        let ended = bucket.run(&mut work).await;
        rewrite(&second).await;
        lender.let_go().await.unwrap();
        owner.sweep(&store).await;
        let stopped = ended.is_none();
        bucket.go_on();
        if stopped {
            work.await.unwrap();
        }
        let when = format!("let go of at request {nth}");
        store.scrub_of("node-c").await;
        assert_reads(&process, &owner.model, &when).await;
        rewrite(&process).await;
        borrower.let_go().await.unwrap();
        assert!(
            foreign(&store, "node-c").await.is_empty() && store.objects("pins").await.is_empty(),
            "{when}"
        );
        assert!(store.objects_of("node-b", "pins").await.is_empty(), "{when}");
        assert_reads(&process, &owner.model, &format!("{when}, rewritten")).await;
        if !stopped {
            assert!(process.engine.figures().segments > 0);
            break;
        }
        nth += 1;
    }
    assert!(nth > 15, "it takes {nth} requests");
}

/// What a [`Meddler`] does.
#[derive(Debug, Default)]
enum Mode {
    #[default]
    Nothing,
    /// Just as the first of two pins is read, the other takes its place.
    HandOver(Pin, Pin),
    /// Creates are carried out, and not answered.
    Mute,
    /// Creates are neither.
    Refuse,
}

/// A bucket in which something comes in between.
#[derive(Debug)]
struct Meddler {
    inner: SharedBucket,
    mode: Mutex<Mode>,
}

#[async_trait]
impl Bucket for Meddler {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        let node = super::node("node-a");
        let mode = std::mem::take(&mut *self.mode.lock());
        match mode {
            Mode::HandOver(first, second) if key == first.object_name(&node) => {
                let body = serde_json::to_vec(&second).unwrap();
                self.inner.put(&second.object_name(&node), body.into()).await?;
                self.inner.delete(key).await?;
            }
            mode => *self.mode.lock() = mode,
        }
        self.inner.get(key).await
    }
    async fn get_range(&self, key: &str, range: std::ops::Range<u64>) -> Result<Bytes, BucketError> {
        self.inner.get_range(key, range).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.inner.put(key, body).await
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        let (mute, refuse) = {
            let mode = self.mode.lock();
            (matches!(*mode, Mode::Mute), matches!(*mode, Mode::Refuse))
        };
        if !refuse {
            let created = self.inner.create(key, body).await?;
            if !mute {
                return Ok(created);
            }
        }
        Err(BucketError::Unavailable { key: key.to_owned(), detail: "no answer".to_owned() })
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.inner.list(prefix, after, limit).await
    }
    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(key).await
    }
}

#[tokio::test]
async fn a_pin_that_takes_the_place_of_another_is_seen() {
    let node = node("node-a");
    let pin = |holder: &str| Pin {
        holder: super::node(holder),
        nonce: "1".to_owned(),
        objects: BTreeSet::from(["nodes/node-a/x".to_owned()]),
    };
    // Before the other one in the list, and after it.
    for holder in ["b", "d"] {
        let (first, second) = (pin("c"), pin(holder));
        let inner: SharedBucket = Arc::new(MemoryBucket::new());
        let body = serde_json::to_vec(&first).unwrap();
        inner.put(&first.object_name(&node), body.into()).await.unwrap();
        let mode = Mode::HandOver(first.clone(), second).into();
        let pinned = pinned(&Meddler { inner, mode }, &node).await.unwrap();
        assert_eq!(pinned, first.objects);
    }
}

/// A manifest that names something may be there although no answer came: the pin stays until a later one says otherwise.
#[tokio::test(start_paused = true)]
async fn a_manifest_of_which_nothing_was_heard_may_need_the_pin() {
    let store = Store::new();
    let owner = Owner::new(&store).await;
    let bucket = Arc::new(Meddler { inner: store.bucket(), mode: Mode::Nothing.into() });
    let process = store.machine_of("node-b", Arc::<Meddler>::clone(&bucket)).boot().await;
    process.load_index().await;
    let stop = StopBucket::new(store.bucket(), usize::MAX, false);
    let borrower = Borrower::new(Parts { bucket: Arc::<StopBucket>::clone(&stop), ..parts(&process) });
    {
        let (from, wanted) = (node("node-a"), ranges());
        let mut work = Box::pin(borrower.borrow(&from, &wanted));
        stop.stop_after(4);
        assert!(stop.run(&mut work).await.is_none());
        assert_eq!(store.objects("pins").await.len(), 1, "it is pinned, and not read yet");
        // A manifest that does not name it; then one that does.
        process.commit().await;
        *bucket.mode.lock() = Mode::Mute;
        stop.go_on();
        assert!(work.await.is_err());
    }
    assert!(!foreign(&store, "node-b").await.is_empty(), "it is there");
    // Memory reads it no longer, and no manifest says so.
    *bucket.mode.lock() = Mode::Refuse;
    let all = process.engine.segments.all();
    assert_eq!(
        process.ledger.change(&all, || process.engine.segments.replace(&all, Vec::new())).await,
        Committed::NotYet
    );
    let graves = process.engine.graves.segments.all();
    assert!(process.engine.graves.segments.replace(&graves, Vec::new()));
    assert_eq!(borrower.let_go().await.unwrap(), 0);
    assert_eq!(store.objects("pins").await.len(), 1);
    owner.merge(false).await;
    owner.sweep(&store).await;
    store.scrub_of("node-b").await;
    // Now one does.
    *bucket.mode.lock() = Mode::Nothing;
    assert_eq!(borrower.let_go().await.unwrap(), 1);
}

/// A borrow that failed half way: what it has taken up is read, though no manifest says so yet.
#[tokio::test(start_paused = true)]
async fn what_is_read_stays_pinned_though_the_borrow_failed() {
    let store = Store::new();
    let owner = Owner::new(&store).await;
    let process = boot(&store, "node-b").await;
    let stop = StopBucket::new(store.bucket(), usize::MAX, false);
    let borrower = Borrower::new(Parts { bucket: Arc::<StopBucket>::clone(&stop), ..parts(&process) });
    let (from, wanted) = (node("node-a"), ranges());
    let lost = store.manifest().await.segments.pop().unwrap().object;
    let body = store.memory.get(&lost).await.unwrap();
    {
        let mut work = Box::pin(borrower.borrow(&from, &wanted));
        stop.stop_after(4);
        assert!(stop.run(&mut work).await.is_none());
        process.commit().await;
        store.memory.delete(&lost).await.unwrap();
        stop.go_on();
        assert!(work.await.is_err());
    }
    assert!(process.engine.figures().segments > 0);
    assert_eq!(borrower.let_go().await.unwrap(), 0);
    store.memory.put(&lost, body).await.unwrap();
    owner.merge(false).await;
    owner.sweep(&store).await;
    process.commit().await;
    store.scrub_of("node-b").await;
    borrower.borrow(&from, &wanted).await.unwrap();
    assert_reads(&process, &owner.model, "borrowed in the end").await;
}

/// An older process of the name lists the pin of the newer one: it does not know what for, and leaves it.
#[tokio::test(start_paused = true)]
async fn a_process_that_was_replaced_lets_go_of_nothing_that_the_next_one_needs() {
    let store = Store::new();
    let owner = Owner::new(&store).await;
    // So many manifests that a commit ends with a request that nothing depends on.
    let bucket = StopBucket::new(store.bucket(), usize::MAX, false);
    let old = store.machine_of("node-b", Arc::<StopBucket>::clone(&bucket)).boot().await;
    old.load_index().await;
    for _ in 0..10 {
        old.commit().await;
    }
    let janitor = Borrower::new(Parts { bucket: store.bucket(), ..parts(&old) });
    // It has looked for newer manifests, and will soon know that its own is there.
    bucket.stop_after(2);
    let mut commit = Box::pin(old.ledger.commit());
    assert!(bucket.run(&mut commit).await.is_none());
    let new = boot(&store, "node-b").await;
    borrower(&new).borrow(&node("node-a"), &ranges()).await.unwrap();
    janitor.find_pins(&[node("node-a")]).await.unwrap();
    bucket.go_on();
    assert_eq!(commit.await, Committed::Yes);
    assert_eq!(janitor.let_go().await.unwrap(), 0);
    assert_eq!(old.ledger.commit().await, Committed::TakenOver);
    assert_eq!(janitor.let_go().await.unwrap(), 0);
    assert_eq!(pins_of(&*store.memory, &node("node-a"), &node("node-b")).await.unwrap().len(), 1);
    owner.merge(false).await;
    owner.sweep(&store).await;
    store.scrub_of("node-b").await;
    assert_reads(&new, &owner.model, "the newer one").await;
}

/// Nothing is let go of while something is borrowed, whatever the manifests say.
#[tokio::test(start_paused = true)]
async fn nothing_is_let_go_of_while_something_is_borrowed() {
    let mut nth = 0;
    loop {
        let store = Store::new();
        let owner = Owner::new(&store).await;
        let bucket = StopBucket::new(store.bucket(), usize::MAX, true);
        let process = store.machine_of("node-b", store.bucket()).boot().await;
        process.load_index().await;
        let borrower = Borrower::new(Parts { bucket: Arc::<StopBucket>::clone(&bucket), ..parts(&process) });
        let (from, wanted) = (node("node-a"), ranges());
        bucket.stop_after(nth);
        let mut work = Box::pin(borrower.borrow(&from, &wanted));
        let stopped = bucket.run(&mut work).await.is_none();
        if stopped {
            // Manifests that do not name it yet.
            process.commit().await;
            process.commit().await;
            let letting = tokio::time::timeout(Duration::from_secs(5), borrower.let_go()).await;
            assert!(letting.is_err(), "it waits for its turn");
            owner.merge(false).await;
            owner.sweep(&store).await;
            bucket.go_on();
            work.await.unwrap();
        }
        bucket.go_on();
        assert_eq!(borrower.let_go().await.unwrap(), 0);
        owner.sweep(&store).await;
        store.scrub_of("node-b").await;
        assert_reads(&process, &owner.model, &format!("request {nth}")).await;
        if !stopped {
            break;
        }
        nth += 1;
    }
    assert!(nth > 4, "it takes {nth} requests");
}

/// What earlier processes left goes, what is needed stays, and what fails is tried again.
#[tokio::test(start_paused = true)]
async fn pins_that_were_left_go_in_the_background() {
    let store = Store::new();
    let owner = Owner::new(&store).await;
    let first = boot(&store, "node-b").await;
    borrower(&first).borrow(&node("node-a"), &ranges()).await.unwrap();
    let needed = store.objects("pins").await;
    drop(first);
    let left = |owner: &str, nonce: &str, holder: &str| {
        let pin = Pin {
            holder: node(holder),
            nonce: nonce.to_owned(),
            objects: BTreeSet::from([format!("nodes/{owner}/c/x/0000000001.seg")]),
        };
        (pin.object_name(&node(owner)), serde_json::to_vec(&pin).unwrap())
    };
    for (object, body) in
        [left("node-a", "1", "node-b"), left("node-d", "2", "node-b"), left("node-d", "3", "node-b-x")]
    {
        store.memory.put(&object, body.into()).await.unwrap();
    }
    let faulty = Arc::new(FaultyBucket::new(store.bucket(), 1));
    let refuse = OperationFaults { refuse: CERTAIN, ..OperationFaults::default() };
    faulty.set(Faults { delete: refuse, ..Faults::default() });
    let process = boot(&store, "node-b").await;
    let borrower =
        Arc::new(Borrower::new(Parts { bucket: Arc::<FaultyBucket>::clone(&faulty), ..parts(&process) }));
    let members = || ["node-a", "node-b", "node-c", "node-d"].map(node).to_vec();
    let running = tokio::spawn(Arc::clone(&borrower).run(members));
    pass(Duration::from_secs(1)).await;
    assert_eq!(store.objects("pins").await.len(), 2);
    faulty.set(Faults::default());
    pass(Duration::from_secs(60)).await;
    assert_eq!(store.objects("pins").await, needed);
    assert_eq!(store.objects_of("node-d", "pins").await.len(), 1, "somebody else's");
    rewrite(&process).await;
    // At once: the manifest that names less rings.
    pass(Duration::from_secs(1)).await;
    assert!(store.objects("pins").await.is_empty());
    assert_reads(&process, &owner.model, "in the end").await;
    running.abort();
}

/// A put whose sender has died, or has given it up, may come to stand when the pins were listed already.
#[tokio::test(start_paused = true)]
async fn pins_that_land_late_go_within_two_minutes() {
    let store = Store::new();
    let _owner = Owner::new(&store).await;
    let faulty = Arc::new(FaultyBucket::new(store.bucket(), 1));
    let process = boot(&store, "node-b").await;
    let borrower =
        Arc::new(Borrower::new(Parts { bucket: Arc::<FaultyBucket>::clone(&faulty), ..parts(&process) }));
    let running = tokio::spawn(Arc::clone(&borrower).run(|| vec![node("node-a")]));
    let land = async |nonce: &str| {
        pass(Duration::from_secs(5)).await;
        let objects = BTreeSet::from(["nodes/node-a/c/x/0000000001.seg".to_owned()]);
        let pin = Pin { holder: node("node-b"), nonce: nonce.to_owned(), objects };
        let body = serde_json::to_vec(&pin).unwrap();
        store.memory.put(&pin.object_name(&node("node-a")), body.into()).await.unwrap();
        pass(Duration::from_secs(115)).await;
    };
    land("1").await;
    assert!(store.objects("pins").await.is_empty(), "an earlier process sent it");

    let refuse = OperationFaults { refuse: CERTAIN, ..OperationFaults::default() };
    faulty.set(Faults { put: refuse, ..Faults::default() });
    borrower.borrow(&node("node-a"), &ranges()).await.unwrap_err();
    faulty.set(Faults::default());
    land("2").await;
    assert!(store.objects("pins").await.is_empty(), "this process sent it");
    running.abort();
}

/// An owner deletes nothing while there is a pin that it can't read: whoever put it puts it right.
#[tokio::test(start_paused = true)]
async fn a_pin_that_is_damaged_is_put_again_by_its_holder() {
    let store = Store::new();
    let owner = Owner::new(&store).await;
    let first = boot(&store, "node-b").await;
    let holder = borrower(&first);
    holder.borrow(&node("node-a"), &ranges()).await.unwrap();
    let pins = || async { pins_of(&*store.memory, &node("node-a"), &node("node-b")).await.unwrap() };
    let put = pins().await;
    assert_eq!(put.len(), 1);
    let object = put[0].object_name(&node("node-a"));
    let another = "nodes/node-a/pins/node-b-c-0123456789abcdef.json";
    store.memory.put(another, Bytes::from_static(b"{")).await.unwrap();
    store.memory.put(&object, Bytes::from_static(b"{")).await.unwrap();
    holder.find_pins(&[node("node-a")]).await.unwrap();
    assert_eq!(pins().await, put, "the same");
    // The next process does not know what it said.
    store.memory.put(&object, Bytes::from_static(b"{")).await.unwrap();
    let second = boot(&store, "node-b").await;
    let next = borrower(&second);
    next.find_pins(&[node("node-a")]).await.unwrap();
    let instead = pins().await;
    assert_eq!(instead.iter().map(|pin| &pin.objects).collect::<Vec<_>>(), [&put[0].objects]);
    assert!(store.memory.get(&object).await.is_err());
    assert!(store.memory.get(another).await.is_ok(), "another holder's");
    store.memory.delete(another).await.unwrap();
    owner.merge(true).await;
    owner.sweep(&store).await;
    assert_reads(&second, &owner.model, "it is pinned still").await;
    rewrite(&second).await;
    next.let_go().await.unwrap();
    assert!(pins().await.is_empty());
}
