//! When a request waits for the bucket, and when it learns what is set there.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use cartwheel_bucket::{Bucket, Created, Listing, MemoryBucket};

use super::*;

const INTERVAL: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(5);

/// A bucket that can be away, and counts how often it was listed.
#[derive(Debug)]
struct Away {
    inner: MemoryBucket,
    away: watch::Sender<bool>,
    lists: AtomicUsize,
}

impl Away {
    fn new() -> Arc<Self> {
        Arc::new(Self { inner: MemoryBucket::new(), away: watch::Sender::new(false), lists: 0.into() })
    }

    /// Nothing is answered while it is away.
    async fn back(&self) {
        self.away.subscribe().wait_for(|away| !away).await.unwrap();
    }

    fn lists(&self) -> usize {
        self.lists.load(Ordering::Relaxed)
    }

    /// Settings from another gateway.
    async fn set(&self, name: &str, r: u32) {
        let settings = NamespaceSettings { r, ..NamespaceSettings::defaults(3) };
        store::write(&self.inner, &Seams::real(), &namespace(name), settings, |_| true).await.unwrap();
    }
}

#[async_trait]
impl Bucket for Away {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.back().await;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.inner.get_range(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.inner.put(key, body).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.inner.create(key, body).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        self.back().await;
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(key).await
    }
}

fn namespace(name: &str) -> Namespace {
    Namespace::new(name.as_bytes()).unwrap()
}

fn start(bucket: &Arc<Away>) -> Namespaces {
    Namespaces::start(Arc::clone(bucket) as SharedBucket, Seams::real(), INTERVAL)
}

async fn r(namespaces: &Namespaces, name: &str) -> Option<u32> {
    namespaces.settings(&namespace(name), LONG).await.map(|settings| settings.r)
}

#[tokio::test(start_paused = true)]
async fn the_first_request_for_a_namespace_sees_what_was_set_before_it() {
    let bucket = Away::new();
    let namespaces = start(&bucket);
    assert_eq!(r(&namespaces, "other").await, None);
    bucket.set("carts", 1).await;
    assert_eq!(r(&namespaces, "carts").await, Some(1));
    let lists = bucket.lists();
    for _ in 0..100 {
        assert_eq!((r(&namespaces, "carts").await, r(&namespaces, "other").await), (Some(1), None));
    }
    assert_eq!(bucket.lists(), lists, "later ones ask the bucket for nothing");
}

#[tokio::test(start_paused = true)]
async fn those_who_come_together_wait_for_one_look() {
    let bucket = Away::new();
    bucket.set("carts", 1).await;
    let namespaces = Arc::new(start(&bucket));
    // The look at the start has ended.
    r(&namespaces, "other").await;
    let lists = bucket.lists();
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let namespaces = Arc::clone(&namespaces);
            tokio::spawn(async move { r(&namespaces, "carts").await })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.unwrap(), Some(1));
    }
    assert_eq!(bucket.lists(), lists + 1);
}

#[tokio::test(start_paused = true)]
async fn without_the_bucket_a_namespace_is_waited_for_once_and_shortly() {
    let bucket = Away::new();
    bucket.set("carts", 1).await;
    bucket.away.send_replace(true);
    let namespaces = start(&bucket);
    let began = Instant::now();
    assert_eq!(r(&namespaces, "carts").await, None, "the defaults hold");
    assert_eq!(began.elapsed(), PATIENCE);
    assert_eq!(r(&namespaces, "carts").await, None);
    assert_eq!(began.elapsed(), PATIENCE, "nobody waits for it again");
    let soon = Duration::from_millis(50);
    assert_eq!(namespaces.settings(&namespace("other"), soon).await, None);
    assert_eq!(began.elapsed(), PATIENCE + soon, "who has little time waits less");

    bucket.away.send_replace(false);
    tokio::time::advance(CALL_LIMIT + FAILED_PAUSE).await;
    // What was under way ends in the turns that this look takes.
    r(&namespaces, "another").await;
    assert_eq!(r(&namespaces, "carts").await, Some(1), "it is learned once the bucket is back");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_learned_within_the_interval_and_outlives_the_bucket() {
    let bucket = Away::new();
    bucket.set("carts", 1).await;
    let namespaces = start(&bucket);
    assert_eq!(r(&namespaces, "carts").await, Some(1));
    bucket.set("carts", 3).await;
    let lists = bucket.lists();
    // Time passes only while the looks' own pause is what is waited for.
    tokio::time::timeout(INTERVAL, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(r(&namespaces, "carts").await, Some(3));
    assert!((1..=2).contains(&(bucket.lists() - lists)), "constant work");

    bucket.away.send_replace(true);
    tokio::time::timeout(INTERVAL * 3, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(r(&namespaces, "carts").await, Some(3), "the last known settings hold");
}

#[tokio::test(start_paused = true)]
async fn what_is_written_here_is_in_force_here_at_once() {
    let bucket = Away::new();
    let namespaces = start(&bucket);
    assert_eq!(r(&namespaces, "carts").await, None);
    let settings = NamespaceSettings { r: 1, ..NamespaceSettings::defaults(3) };
    namespaces.write(&namespace("carts"), settings, |_| true).await.unwrap();
    bucket.away.send_replace(true);
    assert_eq!(r(&namespaces, "carts").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn damaged_settings_leave_those_known_in_force() {
    let bucket = Away::new();
    bucket.set("carts", 1).await;
    let namespaces = start(&bucket);
    assert_eq!(r(&namespaces, "carts").await, Some(1));
    let object = NamespaceDocument::object_name(&namespace("carts"), 2);
    bucket.inner.put(&object, Bytes::from_static(b"{}")).await.unwrap();
    tokio::time::timeout(INTERVAL, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(r(&namespaces, "carts").await, Some(1));
    bucket.set("carts", 3).await;
    tokio::time::timeout(INTERVAL, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(r(&namespaces, "carts").await, Some(3), "a sound version follows");
}

#[tokio::test(start_paused = true)]
async fn made_up_namespaces_take_a_bounded_room_and_settings_hold_beside_them() {
    let bucket = Away::new();
    bucket.set("carts", 1).await;
    let namespaces = start(&bucket);
    r(&namespaces, "first").await;
    {
        let mut known = namespaces.inner.known.lock();
        for n in known.unset..MAX_NAMESPACES {
            known.entries.insert(namespace(&format!("n{n}")), Entry::default());
            known.unset += 1;
        }
    }
    let lists = bucket.lists();
    assert_eq!(r(&namespaces, "made-up").await, None);
    assert_eq!(bucket.lists(), lists, "it is not looked for");
    assert_eq!(namespaces.inner.known.lock().entries.len(), MAX_NAMESPACES + 1);
    assert_eq!(r(&namespaces, "carts").await, Some(1), "the last list named it");
    assert!(
        namespaces.has_room_for(&namespace("made-up")),
        "those without settings take no room from others"
    );
}
