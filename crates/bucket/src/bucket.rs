//! The trait, and what its answers are made of.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::BucketError;

/// The most keys that one [`Bucket::list`] call may ask for.
pub const LIST_LIMIT: usize = 1000;

/// The most keys that [`list_all`] collects before it gives up.
pub const LIST_ALL_LIMIT: usize = 1_000_000;

/// A flat map from keys to immutable bodies, shared by every process of a cluster.
///
/// Reads see the last finished write (strong consistency, as S3 and its
/// relatives give). Every call is bounded in time by the implementation.
#[async_trait]
pub trait Bucket: Send + Sync + Debug + 'static {
    /// The whole object.
    ///
    /// # Errors
    /// [`BucketError::NotFound`] if there is no such object.
    async fn get(&self, key: &str) -> Result<Bytes, BucketError>;

    /// Exactly the bytes of the half-open `range`.
    ///
    /// # Errors
    /// [`BucketError::Range`] if the range is empty or reaches past the end;
    /// [`BucketError::NotFound`] if there is no such object.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError>;

    /// Writes the object whether or not it exists.
    ///
    /// # Errors
    /// After [`BucketError::Unavailable`] the write may or may not have happened.
    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError>;

    /// Writes the object if the key is free (`If-None-Match: *`).
    ///
    /// `body` must be unique to this caller (carry a nonce, the put-id): where
    /// an attempt's fate is unknown the object is read back and compared, so
    /// the answer is always about this very body. Calling again with the same
    /// bytes is safe and answers [`Created::New`] if they are the ones stored.
    ///
    /// # Errors
    /// After [`BucketError::Unavailable`] the fate is still unknown: call again
    /// with the same bytes to learn it.
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError>;

    /// Keys that start with `prefix`, in ascending byte order, strictly after
    /// `after`, at most `limit` of them (1 to [`LIST_LIMIT`]).
    ///
    /// # Errors
    /// [`BucketError::Refused`] if `limit` is out of bounds.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError>;

    /// Deletes the object; one that is absent is not an error.
    ///
    /// # Errors
    /// After [`BucketError::Unavailable`] the delete may or may not have happened.
    async fn delete(&self, key: &str) -> Result<(), BucketError>;
}

/// A bucket that many tasks share.
pub type SharedBucket = Arc<dyn Bucket>;

/// The answer of [`Bucket::create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The stored object is ours.
    New,
    /// The key was taken: the stored object is somebody else's.
    Exists,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The object's key.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written, in milliseconds since 1970, by the store's clock.
    pub modified_ms: u64,
}

/// One page of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The page, ascending by the bytes of the keys.
    pub objects: Vec<Listed>,
    /// Whether there are keys after the last one of this page.
    pub more: bool,
}

/// Every key that starts with `prefix`, page by page.
///
/// # Errors
/// Whatever [`Bucket::list`] answers, and [`BucketError::Refused`] if there are
/// more than [`LIST_ALL_LIMIT`] keys or if the store repeats itself.
pub async fn list_all(bucket: &dyn Bucket, prefix: &str) -> Result<Vec<Listed>, BucketError> {
    let mut all: Vec<Listed> = Vec::new();
    loop {
        let page = bucket.list(prefix, all.last().map(|last| last.key.as_str()), LIST_LIMIT).await?;
        let stuck = page.more && page.objects.is_empty();
        all.extend(page.objects);
        if stuck {
            return Err(refused_list(
                prefix,
                "the store says that there are more keys but gives none".to_owned(),
            ));
        }
        if all.len() > LIST_ALL_LIMIT {
            return Err(refused_list(prefix, format!("more than {LIST_ALL_LIMIT} keys")));
        }
        if !page.more {
            return Ok(all);
        }
    }
}

/// Refuses a page size that no store would serve.
pub(crate) fn check_limit(prefix: &str, limit: usize) -> Result<(), BucketError> {
    if (1..=LIST_LIMIT).contains(&limit) {
        return Ok(());
    }
    Err(refused_list(prefix, format!("limit is {limit}; it must be 1 to {LIST_LIMIT}")))
}

fn refused_list(prefix: &str, detail: String) -> BucketError {
    BucketError::Refused { key: prefix.to_owned(), status: 400, code: "InvalidArgument".to_owned(), detail }
}
