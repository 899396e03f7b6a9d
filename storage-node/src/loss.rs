//! What a process that starts may have lost of what earlier processes of its name acknowledged, and how old that can
//! be at most.
//!
//! What may be lost came in after the time up to which, by the last manifest, all that was acknowledged is in segments,
//! or after the node last said that it holds everything, whichever is later; by the store's clock, for the node's own may
//! be anything.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use cartwheel_bucket::{BucketError, SharedBucket, list_all};
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::NodeId;

use crate::disk::Disk;
use crate::epoch::Incarnation;
use crate::segments::manifests::{ManifestReadError, newest};

/// The file that says whose disk it is.
const OWNER_FILE: &str = "incarnation.json";
/// How much later than another home a home may get a write: the longest deadline, and some.
const SPREAD: Duration = Duration::from_secs(70);

/// What may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Nothing.
    None,
    /// Something that came in during the last `age`.
    Some {
        /// How long ago it can have been.
        age: Duration,
        /// With the disk: acknowledged writes may be among it. Otherwise only what was never on the disk.
        disk: bool,
    },
}

/// What that file says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Owner {
    incarnation: Incarnation,
    /// Is everything on it that the node acknowledged? Not while what a lost disk held is not back yet.
    whole: bool,
}

/// Writes on the disk whose it is, and whether everything is on it.
pub(crate) async fn own(disk: &dyn Disk, me: &Incarnation, whole: bool) -> std::io::Result<()> {
    let owner = Owner { incarnation: me.clone(), whole };
    disk.replace(OWNER_FILE, serde_json::to_vec(&owner)?.into()).await
}

/// The object that says that an incarnation holds all that the node should.
pub(crate) fn held_object(me: &Incarnation) -> String {
    format!("{}{}", held_prefix(&me.node), label(me))
}

fn held_prefix(node: &NodeId) -> String {
    format!("nodes/{node}/held/")
}

fn label(me: &Incarnation) -> String {
    format!("{:010}-{}", me.epoch, me.nonce)
}

/// Finds out what may be lost, and writes on the disk that it is this incarnation's from now on. `resumed` says that
/// the last process ended cleanly. Called once the incarnation is leased.
///
/// # Errors
/// Those of the bucket; those of the disk as a sentence.
pub(crate) async fn assess(
    me: &Incarnation,
    last: Option<&Incarnation>,
    resumed: bool,
    disk: Option<&dyn Disk>,
    bucket: &SharedBucket,
) -> Result<Loss, LossError> {
    let loss = match last {
        Some(last) if !removed(Rule::AskBackLostDisk) => lost_since(me, last, resumed, disk, bucket).await?,
        _ => Loss::None,
    };
    // Only now: a start that fails before is tried again.
    if let Some(disk) = disk {
        let whole = !matches!(loss, Loss::Some { disk: true, .. });
        own(disk, me, whole).await.map_err(LossError::Disk)?;
    }
    Ok(loss)
}

/// What the processes before this one may have acknowledged and this one may not hold. A clean end leaves nothing
/// behind but what was missing before it.
async fn lost_since(
    me: &Incarnation,
    last: &Incarnation,
    resumed: bool,
    disk: Option<&dyn Disk>,
    bucket: &SharedBucket,
) -> Result<Loss, LossError> {
    let owner = match disk {
        Some(disk) => disk.read(OWNER_FILE).await.ok(),
        None => None,
    };
    let owner = owner.and_then(|bytes| serde_json::from_slice::<Owner>(&bytes).ok());
    let node = &me.node;
    let leases = list_all(&**bucket, &format!("nodes/{node}/epochs/")).await?;
    let marks = list_all(&**bucket, &held_prefix(node)).await?;
    let was_whole = marks.iter().any(|mark| mark.key == held_object(last));
    if resumed && was_whole {
        return Ok(Loss::None);
    }
    let now = leases.iter().map(|lease| lease.modified_ms).max().unwrap_or(0);
    let born = leases.iter().map(|lease| lease.modified_ms).min().unwrap_or(0);
    let since = match marks.iter().map(|mark| mark.modified_ms).max() {
        Some(marked) => {
            // Of one that can't be read nothing is known.
            let held_ms = match newest(&**bucket, node).await {
                Ok(manifest) => manifest.map_or(0, |manifest| manifest.held_ms),
                Err(ManifestReadError::Unreadable { .. }) => 0,
                Err(error) => return Err(error.into()),
            };
            held_ms.max(marked)
        }
        None => born,
    };
    // A disk of somebody else, or none; or one to which what was lost before had not come back.
    let kept = owner.is_some_and(|owner| owner.incarnation.nonce == last.nonce && owner.whole);
    let age = Duration::from_millis(now.saturating_sub(since)) + SPREAD;
    Ok(Loss::Some { age, disk: !kept })
}

/// Why it could not be found out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LossError {
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The manifest can't be read.
    #[error(transparent)]
    Manifest(#[from] ManifestReadError),
    /// The disk did not.
    #[error(transparent)]
    Disk(std::io::Error),
}

#[cfg(test)]
mod tests;
