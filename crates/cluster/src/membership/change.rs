//! Changing the ring: an operator's edits become a version in which they are pending, every member says when it is
//! ready, and whoever sees that all are makes the next version. Each version is created once, so it does not matter
//! who does it, how many try, or who dies in between.

use cartwheel_bucket::{Bucket, BucketError, Created};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::RingDocument;
use cartwheel_core::ring::change::{Edit, EditError, Known, describe, edit};

use super::{MembershipError, change, create, nonce, read_newest};
use crate::seams::Seams;

/// What the readiness marks of a pending change start with.
const READY_PREFIX: &str = "ring-ready/";
/// How often a creation of unknown fate is asked about.
const MAX_ASKED: usize = 4;

/// Why edits were not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The ring is not at the version that the edits were meant for.
    #[error("the ring is at version {newest}, not {base}; look at it again and plan anew")]
    MovedOn {
        /// The version that was meant.
        base: u64,
        /// The newest one.
        newest: u64,
    },
    /// There is no ring yet.
    #[error("no ring document was found yet")]
    NoRing,
    /// The edits can't be.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The bucket failed before anything was written.
    #[error(transparent)]
    Before(MembershipError),
    /// The bucket failed, and the edits may have been applied.
    #[error(transparent)]
    Unsure(MembershipError),
}

/// Makes the version after `base`, in which the edits are pending. `by` says who wants it.
///
/// # Errors
/// [`ApplyError`]; [`ApplyError::MovedOn`] if `base` is not the newest version, or no longer when it is to be followed.
pub async fn apply(
    bucket: &dyn Bucket,
    seams: &Seams,
    base: u64,
    edits: &[Edit],
    known: Known<'_>,
    by: &str,
) -> Result<RingDocument, ApplyError> {
    let newest = read_newest(bucket, 0).await.map_err(ApplyError::Before)?.ok_or(ApplyError::NoRing)?;
    if newest.version != base {
        return Err(ApplyError::MovedOn { base, newest: newest.version });
    }
    let next = edit(&newest, edits, known, change(seams, by, &describe(edits)), nonce(seams))?;
    if create_surely(bucket, &next).await? == Created::New {
        tracing::info!(version = next.version, change = %next.changed.what, by, "new ring version");
        return Ok(next);
    }
    let newest = read_newest(bucket, 0).await.map_err(ApplyError::Before)?;
    Err(ApplyError::MovedOn { base, newest: newest.map_or(next.version, |newest| newest.version) })
}

/// Creates a version. Where its fate is unknown the same bytes are sent again, which tells.
async fn create_surely(bucket: &dyn Bucket, document: &RingDocument) -> Result<Created, ApplyError> {
    let (name, body) = (RingDocument::object_name(document.version), document.to_json());
    let mut asked = 1;
    loop {
        match bucket.create(&name, body.clone().into()).await {
            Err(error) if error.is_retryable() && asked < MAX_ASKED => asked += 1,
            Err(error) => return Err(ApplyError::Unsure(error.into())),
            Ok(created) => return Ok(created),
        }
    }
}

/// Says that `node` is ready for the next step of the pending change of ring `version`: it holds all that it will,
/// and every member knows that version.
///
/// # Errors
/// [`MembershipError`].
pub async fn mark_ready(
    bucket: &dyn Bucket,
    seams: &Seams,
    version: u64,
    node: &NodeId,
) -> Result<(), MembershipError> {
    let body = format!("{}\n", nonce(seams));
    bucket.create(&ready_object(version, node), body.into()).await?;
    Ok(())
}

/// Who has said that it is ready for the next step of the pending change of ring `version`, sorted.
///
/// # Errors
/// [`BucketError`].
pub async fn ready(bucket: &dyn Bucket, version: u64) -> Result<Vec<NodeId>, BucketError> {
    let prefix = format!("{READY_PREFIX}{version:010}/");
    let marks = cartwheel_bucket::list_all(bucket, &prefix).await?;
    Ok(marks.iter().filter_map(|mark| NodeId::new(mark.key.strip_prefix(&prefix)?).ok()).collect())
}

fn ready_object(version: u64, node: &NodeId) -> String {
    format!("{READY_PREFIX}{version:010}/{node}")
}

/// Takes the pending change of `document` a step further if every member of the next ring, the dead excepted, has
/// marked itself ready for this version: first the homes to come are read from, and once every member knows that, the
/// change is complete. Anybody may call it; each step is made once.
///
/// # Errors
/// [`MembershipError`].
pub async fn advance_change(
    bucket: &dyn Bucket,
    seams: &Seams,
    document: &RingDocument,
    by: &NodeId,
) -> Result<bool, MembershipError> {
    let ready = ready(bucket, document.version).await?;
    if !document.must_be_ready().all(|m| ready.contains(&m.id)) {
        return Ok(false);
    }
    let changed = |what| change(seams, by.as_str(), what);
    let next = if document.copied {
        document.settled(changed("the change is complete"), nonce(seams))?
    } else {
        document.with_copied(changed("the homes to come hold their partitions"), nonce(seams))?
    };
    create(bucket, &next).await
}

#[cfg(test)]
mod tests;
