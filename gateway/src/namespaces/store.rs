//! Namespace settings in the bucket: finding, reading and creating versions of their documents.

use std::collections::BTreeMap;

use cartwheel_bucket::{Bucket, BucketError, Created, list_all};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::names::Namespace;
use cartwheel_core::namespace::{NAMESPACES_PREFIX, NamespaceDocument, NamespaceError, NamespaceSettings};

/// Versions of one namespace's settings that stay.
const KEPT: u64 = 4;
/// How many times a change is tried against others' changes, and a creation of unknown fate is asked about.
const MAX_TRIES: usize = 8;

/// Why settings could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A document in the bucket can't be read.
    #[error("{object}: {error}")]
    Unreadable { object: String, error: NamespaceError },
}

/// Why settings could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The condition does not hold for this version, the newest; 0 if there is none.
    #[error("the newest version is {0}")]
    Condition(u64),
    /// The bucket failed before anything was written.
    #[error(transparent)]
    Before(BucketError),
    /// The bucket failed, and the settings may have been written.
    #[error(transparent)]
    Unsure(BucketError),
    /// Others kept changing the settings.
    #[error("the settings kept changing; gave up after {MAX_TRIES} tries")]
    Contended,
}

/// The newest version of every namespace that has settings.
pub(super) async fn all(bucket: &dyn Bucket) -> Result<BTreeMap<Namespace, u64>, BucketError> {
    let mut newest = BTreeMap::new();
    for object in list_all(bucket, NAMESPACES_PREFIX).await? {
        if let Some((namespace, version)) = NamespaceDocument::parse_object(&object.key) {
            let known: &mut u64 = newest.entry(namespace).or_default();
            *known = version.max(*known);
        }
    }
    Ok(newest)
}

/// The versions of a namespace's settings, ascending.
async fn versions(bucket: &dyn Bucket, namespace: &Namespace) -> Result<Vec<u64>, BucketError> {
    let objects = list_all(bucket, &NamespaceDocument::prefix(namespace)).await?;
    Ok(objects.iter().filter_map(|object| Some(NamespaceDocument::parse_object(&object.key)?.1)).collect())
}

/// One version.
pub(super) async fn read(
    bucket: &dyn Bucket,
    namespace: &Namespace,
    version: u64,
) -> Result<NamespaceDocument, ReadError> {
    let object = NamespaceDocument::object_name(namespace, version);
    let bytes = bucket.get(&object).await?;
    NamespaceDocument::parse(&bytes).map_err(|error| ReadError::Unreadable { object, error })
}

/// The newest version, if there is one.
pub(super) async fn newest(
    bucket: &dyn Bucket,
    namespace: &Namespace,
) -> Result<Option<NamespaceDocument>, ReadError> {
    loop {
        let Some(version) = versions(bucket, namespace).await?.pop() else { return Ok(None) };
        match read(bucket, namespace, version).await {
            // Superseded several times and deleted since it was listed.
            Err(ReadError::Bucket(error)) if error.is_not_found() => {}
            read => return read.map(Some),
        }
    }
}

/// Writes the next version, if `may_follow` the newest one (0: there is none), and deletes versions long superseded.
pub(super) async fn write(
    bucket: &dyn Bucket,
    seams: &Seams,
    namespace: &Namespace,
    settings: NamespaceSettings,
    may_follow: impl Fn(u64) -> bool + Send,
) -> Result<NamespaceDocument, WriteError> {
    for _ in 0..MAX_TRIES {
        let listed = versions(bucket, namespace).await.map_err(WriteError::Before)?;
        let newest = listed.last().copied().unwrap_or(0);
        if !may_follow(newest) {
            return Err(WriteError::Condition(newest));
        }
        let put_id = format!("{:032x}", seams.random.next_u128());
        let now_ms = seams.clock.now_ms();
        let document = NamespaceDocument::new(namespace.clone(), newest + 1, settings, put_id, now_ms);
        if create(bucket, &document).await.map_err(WriteError::Unsure)? == Created::Exists {
            continue;
        }
        let listed = versions(bucket, namespace).await.map_err(WriteError::Unsure)?;
        let newest = listed.last().copied().unwrap_or(0);
        // The name may have been free because that version was deleted long ago: then nobody ever reads this one.
        let late = newest >= document.version + KEPT;
        for version in listed.iter().filter(|version| **version + KEPT <= newest) {
            let object = NamespaceDocument::object_name(namespace, *version);
            if let Err(error) = bucket.delete(&object).await {
                tracing::warn!(%error, "can't delete superseded namespace settings; the next change does");
            }
        }
        if !late {
            tracing::info!(%namespace, version = document.version, "new namespace settings");
            return Ok(document);
        }
    }
    Err(WriteError::Contended)
}

/// Creates a version. Where its fate is unknown the same bytes are sent again, which tells.
async fn create(bucket: &dyn Bucket, document: &NamespaceDocument) -> Result<Created, BucketError> {
    let object = NamespaceDocument::object_name(&document.namespace, document.version);
    let body = document.to_json();
    let mut tries = 1;
    loop {
        match bucket.create(&object, body.clone().into()).await {
            Err(error) if error.is_retryable() && tries < MAX_TRIES => tries += 1,
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use cartwheel_bucket::MemoryBucket;

    use super::*;

    fn carts() -> Namespace {
        Namespace::new(b"carts").unwrap()
    }

    fn settings(r: u32) -> NamespaceSettings {
        NamespaceSettings { r, ..NamespaceSettings::defaults(3) }
    }

    async fn set(bucket: &MemoryBucket, r: u32) -> Result<NamespaceDocument, WriteError> {
        write(bucket, &Seams::real(), &carts(), settings(r), |_| true).await
    }

    #[tokio::test]
    async fn versions_follow_each_other_and_the_last_four_stay() {
        let bucket = MemoryBucket::new();
        assert!(newest(&bucket, &carts()).await.unwrap().is_none());
        for version in 1..=6 {
            assert_eq!(set(&bucket, 1).await.unwrap().version, version);
        }
        assert_eq!(versions(&bucket, &carts()).await.unwrap(), [3, 4, 5, 6]);
        assert_eq!(all(&bucket).await.unwrap(), BTreeMap::from([(carts(), 6)]));
        assert_eq!(newest(&bucket, &carts()).await.unwrap().unwrap().version, 6);
    }

    #[tokio::test]
    async fn those_who_write_at_the_same_time_get_a_version_each() {
        let bucket = Arc::new(MemoryBucket::new());
        let writing: Vec<_> = (1..=3)
            .map(|r| {
                let bucket = Arc::clone(&bucket);
                tokio::spawn(async move { set(&bucket, r).await.unwrap().version })
            })
            .collect();
        let mut versions = Vec::new();
        for write in writing {
            versions.push(write.await.unwrap());
        }
        versions.sort_unstable();
        assert_eq!(versions, [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_condition_on_the_newest_version_is_kept() {
        let bucket = MemoryBucket::new();
        let if_version = |wanted| {
            let bucket = &bucket;
            async move {
                let seams = Seams::real();
                write(bucket, &seams, &carts(), settings(1), |newest| newest == wanted).await
            }
        };
        assert!(matches!(if_version(1).await, Err(WriteError::Condition(0))));
        assert_eq!(if_version(0).await.unwrap().version, 1);
        assert!(matches!(if_version(0).await, Err(WriteError::Condition(1))));
        assert_eq!(if_version(1).await.unwrap().version, 2);
    }

    /// A bucket whose first list is old news by the time that its caller gets it.
    #[derive(Debug)]
    struct Slept {
        inner: MemoryBucket,
        changes: u32,
        slept: std::sync::atomic::AtomicBool,
    }

    #[async_trait::async_trait]
    impl Bucket for Slept {
        async fn get(&self, key: &str) -> Result<bytes::Bytes, BucketError> {
            self.inner.get(key).await
        }

        async fn get_range(
            &self,
            key: &str,
            range: std::ops::Range<u64>,
        ) -> Result<bytes::Bytes, BucketError> {
            self.inner.get_range(key, range).await
        }

        async fn put(&self, key: &str, body: bytes::Bytes) -> Result<(), BucketError> {
            self.inner.put(key, body).await
        }

        async fn create(&self, key: &str, body: bytes::Bytes) -> Result<Created, BucketError> {
            self.inner.create(key, body).await
        }

        async fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            limit: usize,
        ) -> Result<cartwheel_bucket::Listing, BucketError> {
            let listing = self.inner.list(prefix, after, limit).await;
            if !self.slept.swap(true, std::sync::atomic::Ordering::Relaxed) {
                for _ in 0..self.changes {
                    set(&self.inner, 3).await.unwrap();
                }
            }
            listing
        }

        async fn delete(&self, key: &str) -> Result<(), BucketError> {
            self.inner.delete(key).await
        }
    }

    #[tokio::test]
    async fn a_writer_that_slept_while_its_version_came_and_went_writes_the_newest_after_all() {
        for changes in 1..=8 {
            let inner = MemoryBucket::new();
            set(&inner, 2).await.unwrap();
            let bucket = Slept { inner, changes, slept: false.into() };
            let written = write(&bucket, &Seams::real(), &carts(), settings(1), |_| true).await.unwrap();
            let found = newest(&bucket.inner, &carts()).await.unwrap().unwrap();
            assert_eq!((found.version, found.settings.r), (written.version, 1), "{changes} changes");
            assert!(versions(&bucket.inner, &carts()).await.unwrap().len() <= 4, "{changes} changes");
        }
    }
}
