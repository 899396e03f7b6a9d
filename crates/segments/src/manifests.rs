//! Finding a storage node's newest manifest.

use cartwheel_bucket::{Bucket, BucketError, Listed, list_all};
use cartwheel_core::manifest::{Manifest, ManifestError};
use cartwheel_core::names::NodeId;

/// Why a manifest could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestReadError {
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A manifest in the bucket can't be read.
    #[error("{object}: {error}")]
    Unreadable {
        /// The object.
        object: String,
        /// What is wrong.
        error: ManifestError,
    },
}

/// A manifest, and when the store took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated {
    /// The manifest.
    pub manifest: Manifest,
    /// Milliseconds since 1970, by the store's clock.
    pub modified_ms: u64,
}

/// The newest manifest of `node`, if there is one.
///
/// # Errors
/// [`ManifestReadError`].
pub async fn newest(bucket: &dyn Bucket, node: &NodeId) -> Result<Option<Manifest>, ManifestReadError> {
    Ok(newest_dated(bucket, node).await?.map(|dated| dated.manifest))
}

/// As [`newest`], with its time.
///
/// # Errors
/// [`ManifestReadError`].
pub async fn newest_dated(bucket: &dyn Bucket, node: &NodeId) -> Result<Option<Dated>, ManifestReadError> {
    loop {
        let Some(last) = list_all(bucket, &Manifest::prefix(node)).await?.pop() else { return Ok(None) };
        match bucket.get(&last.key).await {
            Ok(bytes) => {
                let modified_ms = last.modified_ms;
                return Manifest::parse(&bytes)
                    .map(|manifest| Some(Dated { manifest, modified_ms }))
                    .map_err(|error| ManifestReadError::Unreadable { object: last.key, error });
            }
            // Superseded and deleted since it was listed.
            Err(BucketError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The newest manifest that can be read, and those after it that can't.
#[derive(Debug, Default)]
pub struct Readable {
    /// `None` if not one of those that are there can be read, or there is none.
    pub manifest: Option<Manifest>,
    /// Oldest first.
    pub unreadable: Vec<Listed>,
    /// The highest version that is there, readable or not; 0 without any.
    pub version: u64,
}

/// The newest manifest of `node` that can be read: an older one, where those after it are damaged.
///
/// # Errors
/// Those of the bucket.
pub async fn newest_readable(bucket: &dyn Bucket, node: &NodeId) -> Result<Readable, BucketError> {
    loop {
        let mut listed = list_all(bucket, &Manifest::prefix(node)).await?;
        let last = listed.last().map(|last| last.key.clone());
        let version = last.as_deref().and_then(Manifest::version_of_object).unwrap_or(0);
        let mut readable = Readable { version, ..Readable::default() };
        let mut gone = false;
        while let Some(next) = listed.pop() {
            match bucket.get(&next.key).await {
                Ok(bytes) => match Manifest::parse(&bytes) {
                    Ok(manifest) => {
                        readable.manifest = Some(manifest);
                        break;
                    }
                    Err(_) => readable.unreadable.insert(0, next),
                },
                Err(BucketError::NotFound { .. }) => gone = true,
                Err(error) => return Err(error),
            }
        }
        // Superseded and deleted since it was listed.
        if !gone {
            return Ok(readable);
        }
    }
}
