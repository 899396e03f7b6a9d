//! Tests of changes of the ring: steps in their order, racers, and drivers that die.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use cartwheel_bucket::{Faults, FaultyBucket, Listing, MemoryBucket, OperationFaults, SharedBucket};
use cartwheel_core::ring::{Member, MemberState, Ring};

use super::super::{Founding, ensure_member, found};
use super::*;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn member(name: &str, port: u16) -> Member {
    Member {
        id: id(name),
        address: format!("127.0.0.1:{port}"),
        zone: "z1".into(),
        weight: 1,
        state: MemberState::Active,
        becomes: None,
        dead: false,
    }
}

async fn ensure(bucket: &dyn Bucket, id: &str, port: u16) -> RingDocument {
    ensure_member(bucket, &Seams::real(), member(id, port), Founding::default(), true).await.unwrap()
}

/// A bucket with a ring of these active members.
async fn founded(names: &[&str]) -> SharedBucket {
    let bucket: SharedBucket = Arc::new(MemoryBucket::new());
    let members = names.iter().map(|name| member(name, 7000)).collect();
    let founding = Founding { partitions: 16, tokens: 8, replicas: 3 };
    assert!(create(&*bucket, &found(&Seams::real(), founding, members, "test").unwrap()).await.unwrap());
    bucket
}

fn leave(name: &str) -> Edit {
    Edit::Leave { id: id(name) }
}

async fn newest(bucket: &dyn Bucket) -> RingDocument {
    read_newest(bucket, 0).await.unwrap().unwrap()
}

/// Applies edits where all live but those in `dead`.
async fn try_apply(
    bucket: &dyn Bucket,
    base: u64,
    edits: &[Edit],
    dead: &[&str],
) -> Result<RingDocument, ApplyError> {
    let alive = |id: &NodeId| !dead.contains(&id.as_str());
    apply(bucket, &Seams::real(), base, edits, Known { alive: &alive, force: false }, "ops").await
}

/// Does all that the members would do, until no change is pending.
async fn drive(bucket: &dyn Bucket) -> Result<RingDocument, MembershipError> {
    let seams = Seams::real();
    loop {
        let Some(document) = read_newest(bucket, 0).await? else { continue };
        if !document.has_pending_change() {
            return Ok(document);
        }
        for member in document.must_be_ready() {
            mark_ready(bucket, &seams, document.version, &member.id).await?;
        }
        advance_change(bucket, &seams, &document, &document.members[0].id).await?;
    }
}

/// All versions from the first to the newest one, each of which is there.
async fn versions(bucket: &dyn Bucket) -> Vec<RingDocument> {
    let mut all = Vec::new();
    for version in 1..=newest(bucket).await.version {
        let bytes = bucket.get(&RingDocument::object_name(version)).await.unwrap();
        all.push(RingDocument::parse(&bytes).unwrap());
    }
    all
}

#[tokio::test]
async fn a_change_completes_in_two_steps_that_every_member_is_ready_for() {
    let bucket = MemoryBucket::new();
    let seams = Seams::real();
    let mut document = ensure(&bucket, "a", 7000).await;
    for id in ["b", "c", "d"] {
        document = ensure(&bucket, id, 7000).await;
    }
    let by = NodeId::new("a").unwrap();
    for copied in [false, true] {
        assert_eq!((document.copied, document.has_pending_change()), (copied, true));
        for id in ["a", "b", "c"] {
            mark_ready(&bucket, &seams, document.version, &NodeId::new(id).unwrap()).await.unwrap();
            assert!(!advance_change(&bucket, &seams, &document, &by).await.unwrap());
        }
        mark_ready(&bucket, &seams, document.version, &NodeId::new("d").unwrap()).await.unwrap();
        assert!(advance_change(&bucket, &seams, &document, &by).await.unwrap());
        assert!(!advance_change(&bucket, &seams, &document, &by).await.unwrap(), "only once");
        document = read_newest(&bucket, 0).await.unwrap().unwrap();
    }
    assert!(!document.has_pending_change() && !document.copied);
}

/// Once the homes to come are read from they may not become others: who would join waits. Who only moves to another
/// address changes nobody's part.
#[tokio::test]
async fn nobody_joins_while_a_change_is_being_settled() {
    let bucket = MemoryBucket::new();
    let mut document = ensure(&bucket, "a", 7000).await;
    for id in ["b", "c", "d"] {
        document = ensure(&bucket, id, 7000).await;
    }
    let copied = document.with_copied(document.changed.clone(), "n".into()).unwrap();
    assert!(create(&bucket, &copied).await.unwrap());
    let joining = member("e", 7000);
    let refused = ensure_member(&bucket, &Seams::real(), joining, Founding::default(), true).await;
    assert!(matches!(refused, Err(MembershipError::Settling)), "{refused:?}");
    let moved = ensure(&bucket, "b", 7001).await;
    assert!(moved.copied && moved.version == copied.version + 1);
    assert_eq!(moved.member(&NodeId::new("b").unwrap()).unwrap().address, "127.0.0.1:7001");
    let settled = moved.settled(moved.changed.clone(), "n".into()).unwrap();
    assert!(create(&bucket, &settled).await.unwrap());
    assert!(ensure(&bucket, "e", 7000).await.has_pending_change());
}

#[tokio::test]
async fn of_two_who_apply_at_once_exactly_one_wins() {
    for _ in 0..20 {
        let bucket = founded(&["a", "b", "c", "d", "e"]).await;
        let mut appliers = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let bucket = Arc::clone(&bucket);
            appliers.push(tokio::spawn(async move { try_apply(&*bucket, 1, &[leave(name)], &[]).await }));
        }
        let (mut won, mut lost) = (Vec::new(), 0);
        for applier in appliers {
            match applier.await.unwrap() {
                Ok(document) => won.push(document),
                Err(ApplyError::MovedOn { base: 1, newest: 2 }) => lost += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!((won.len(), lost), (1, 3));
        assert_eq!(newest(&*bucket).await, won[0]);
    }
}

#[tokio::test]
async fn edits_are_for_the_version_that_was_looked_at() {
    let bucket = founded(&["a", "b", "c", "d"]).await;
    assert!(matches!(try_apply(&MemoryBucket::new(), 1, &[leave("a")], &[]).await, Err(ApplyError::NoRing)));
    let error = try_apply(&*bucket, 2, &[leave("a")], &[]).await.unwrap_err();
    assert!(matches!(error, ApplyError::MovedOn { base: 2, newest: 1 }), "{error}");
    let pending = try_apply(&*bucket, 1, &[leave("a")], &[]).await.unwrap();
    assert_eq!((pending.version, pending.changed.by.as_str()), (2, "ops"));
    assert_eq!(pending.changed.what, "a leaves");
    let error = try_apply(&*bucket, 1, &[leave("b")], &[]).await.unwrap_err();
    assert!(matches!(error, ApplyError::MovedOn { base: 1, newest: 2 }), "{error}");
    let error = try_apply(&*bucket, 2, &[leave("b")], &[]).await.unwrap_err();
    assert!(matches!(error, ApplyError::Edit(EditError::Pending { .. })), "{error}");
    assert_eq!(newest(&*bucket).await, pending);
}

#[tokio::test]
async fn nobody_waits_for_the_dead() {
    let bucket = founded(&["a", "b", "c", "d"]).await;
    let seams = Seams::real();
    let pending = try_apply(&*bucket, 1, &[Edit::Forget { id: id("d") }], &["d"]).await.unwrap();
    for name in ["a", "b"] {
        mark_ready(&*bucket, &seams, 2, &id(name)).await.unwrap();
    }
    assert_eq!(ready(&*bucket, 2).await.unwrap(), [id("a"), id("b")]);
    assert!(!advance_change(&*bucket, &seams, &pending, &id("a")).await.unwrap());
    mark_ready(&*bucket, &seams, 2, &id("c")).await.unwrap();
    assert!(advance_change(&*bucket, &seams, &pending, &id("a")).await.unwrap());

    // It does not come back under that name as long as it is being taken out.
    let back = ensure_member(&*bucket, &seams, member("d", 7000), Founding::default(), true).await;
    assert!(matches!(back, Err(MembershipError::Forgotten(who)) if who == id("d")));
    // One more dies when the homes to come are read from already; it goes after that change is done.
    let late = try_apply(&*bucket, 3, &[Edit::Forget { id: id("c") }], &["c"]).await;
    assert!(matches!(late, Err(ApplyError::Edit(EditError::TooFew { left: 2, .. }))));
    let settled = drive(&*bucket).await.unwrap();
    assert_eq!(settled.members.len(), 3);
}

#[tokio::test]
async fn a_change_that_cannot_go_on_is_cancelled() {
    let bucket = founded(&["a", "b", "c", "d"]).await;
    let before = newest(&*bucket).await;
    let join = Edit::Join { id: id("e"), address: "h:1".into(), zone: "z1".into(), weight: 1 };
    try_apply(&*bucket, 1, &[join, leave("a")], &[]).await.unwrap();
    let back = try_apply(&*bucket, 2, &[Edit::Cancel], &[]).await.unwrap();
    assert!(!back.has_pending_change());
    assert_eq!(Ring::current(&back), Ring::current(&before));
}

/// A bucket of a process that dies: the last call that it makes is carried out, and no answer ever comes.
#[derive(Debug)]
struct Dying {
    inner: SharedBucket,
    left: AtomicUsize,
}

impl Dying {
    async fn then<T>(&self, work: impl Future<Output = T> + Send) -> T {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if left.is_err() {
            return std::future::pending().await;
        }
        let answer = work.await;
        if left == Ok(1) { std::future::pending().await } else { answer }
    }
}

#[async_trait]
impl Bucket for Dying {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.then(self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.then(self.inner.get_range(key, range)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.then(self.inner.put(key, body)).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.then(self.inner.create(key, body)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.then(self.inner.list(prefix, after, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.then(self.inner.delete(key)).await
    }
}

/// What the versions of a ring were, in a word each.
fn steps(versions: &[RingDocument]) -> Vec<&'static str> {
    let step = |document: &RingDocument| match (document.has_pending_change(), document.copied) {
        (false, _) => "settled",
        (true, false) => "pending",
        (true, true) => "copied",
    };
    versions.iter().map(step).collect()
}

/// Whoever drives a change may die after any call; another one takes it from there, and no step is made twice.
#[tokio::test(start_paused = true)]
async fn whoever_dies_another_takes_the_change_on() {
    let mut finished = 0;
    for calls in 0..60 {
        let bucket = founded(&["a", "b", "c", "d", "e"]).await;
        let dying = Dying { inner: Arc::clone(&bucket), left: AtomicUsize::new(calls) };
        let life = async {
            let _ = try_apply(&dying, 1, &[leave("b")], &[]).await;
            let _ = drive(&dying).await;
        };
        finished += usize::from(tokio::time::timeout(Duration::from_secs(1), life).await.is_ok());
        // The operator looks, and asks again if nothing came of it.
        if newest(&*bucket).await.version == 1 {
            try_apply(&*bucket, 1, &[leave("b")], &[]).await.unwrap();
        }
        let settled = drive(&*bucket).await.unwrap();
        assert!(settled.member(&id("b")).is_none());
        assert_eq!(steps(&versions(&*bucket).await), ["settled", "pending", "copied", "settled"], "{calls}");
    }
    assert!((1..60).contains(&finished), "some died and some did not: {finished}");
}

/// Many drive one change through a store that loses answers: there is one document of each version.
#[tokio::test(start_paused = true)]
async fn many_drivers_and_lost_answers_make_each_version_once() {
    for seed in 0..30 {
        let inner = founded(&["a", "b", "c", "d", "e"]).await;
        let faulty = Arc::new(FaultyBucket::new(Arc::clone(&inner), seed));
        let chance = 65_536 / 5;
        let bad = OperationFaults { refuse: chance, mute: chance, slow: chance };
        faulty.set(Faults { slow_by: Duration::from_millis(3), ..Faults::everywhere(bad) });
        let mut drivers = Vec::new();
        for name in ["a", "b", "c"] {
            let bucket: SharedBucket = faulty.clone();
            drivers.push(tokio::spawn(async move {
                let applied = try_apply(&*bucket, 1, &[leave(name)], &[]).await.is_ok();
                while drive(&*bucket).await.is_err() {}
                applied
            }));
        }
        let mut applied = 0;
        for driver in drivers {
            applied += usize::from(driver.await.unwrap());
        }
        assert!(applied <= 1, "{applied} were told that theirs is the change");
        let versions = versions(&*inner).await;
        let expected = ["settled", "pending", "copied", "settled"];
        // Where no applier got through, nothing changed.
        assert_eq!(steps(&versions), expected[..versions.len()], "seed {seed}");
        assert!(versions.len() == 4 || (versions.len() == 1 && applied == 0));
    }
}
