//! Claiming and committing this node's manifest, and finding out that another process took over
//! (docs/manifest-protocol.md).

use std::collections::BTreeMap;

use cartwheel_bucket::{Bucket, BucketError, Created};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::manifest::{Dropped, Manifest, Quarantined, SegmentEntry};
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::NodeId;
use cartwheel_core::ranges::HashRange;
use cartwheel_segments::manifests::{ManifestReadError, Readable, newest_readable};

pub use cartwheel_segments::manifests::newest;

use crate::epoch::Incarnation;

/// Superseded manifests that are kept, for people and for readers that are slow.
const KEPT: u64 = 8;
/// How many processes may race for the manifest before one gives up.
const MAX_TRIES: u32 = 64;

/// Why a manifest could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A manifest in the bucket can't be read.
    #[error(transparent)]
    Read(#[from] ManifestReadError),
    /// Another process writes this node's manifest.
    #[error("another process has taken over {node} as epoch {epoch}")]
    TakenOver {
        /// The node.
        node: NodeId,
        /// The other process's epoch.
        epoch: u32,
    },
}

/// What a manifest says of the node's objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// The segments, oldest first.
    pub segments: Vec<SegmentEntry>,
    /// Segments of deletions that are forgotten otherwise.
    pub graves: Vec<SegmentEntry>,
    /// What waits to be deleted.
    pub dropped: Vec<Dropped>,
    /// Flushes that were ever named ([`Manifest::taken`]).
    pub taken: BTreeMap<String, u64>,
    /// Up to when all that was acknowledged is in segments ([`Manifest::held_ms`]).
    pub held_ms: u64,
    /// The process ends, and nothing is missing ([`Manifest::ended`]).
    pub ended: bool,
    /// What is damaged or gone ([`Manifest::quarantined`]).
    pub quarantined: Vec<Quarantined>,
}

/// Is it this process that wrote the manifest?
#[must_use]
pub fn is_mine(manifest: &Manifest, me: &Incarnation) -> bool {
    manifest.epoch == me.epoch
        && manifest.put_id.strip_prefix(&me.nonce).is_some_and(|rest| rest.starts_with('-'))
}

/// Takes the manifest over from the process before, unchanged: from then on that one can't commit anything, and so
/// delete nothing, that this one does not know of. Called before the node's objects are looked for.
///
/// Where the newest can't be read, an older one is taken over in its place, and everything may be lost that the node had
/// acknowledged: [`Manifest::lost`]. So it may where there is no manifest and there are segments.
///
/// # Errors
/// [`ManifestsError::TakenOver`] if a newer incarnation has it.
pub async fn claim(bucket: &dyn Bucket, seams: &Seams, me: &Incarnation) -> Result<Manifest, ManifestsError> {
    for _ in 0..MAX_TRIES {
        let Readable { manifest: theirs, unreadable, version } = newest_readable(bucket, &me.node).await?;
        if let Some(theirs) = &theirs {
            if theirs.epoch > me.epoch {
                return Err(taken_over(me, theirs.epoch));
            }
            if is_mine(theirs, me) && unreadable.is_empty() {
                // An earlier try, whose answer was lost.
                return Ok(theirs.clone());
            }
        }
        let mut damaged: Vec<(String, u64)> = unreadable.into_iter().map(|m| (m.key, m.size)).collect();
        if version == 0 && has_segments(bucket, &me.node).await? {
            damaged.push((Manifest::object_name(&me.node, 0), 0));
        }
        if !damaged.is_empty()
            && let Some(epoch) = me.replaced_by(bucket).await?
        {
            return Err(taken_over(me, epoch));
        }
        let mut holdings = theirs.map_or_else(Holdings::default, |m| Holdings {
            segments: m.segments,
            graves: m.graves,
            dropped: m.dropped,
            taken: m.taken,
            held_ms: m.held_ms,
            // From now on there may be more.
            ended: false,
            quarantined: m.quarantined,
        });
        for (object, bytes) in damaged {
            tracing::error!(
                %object,
                "this manifest is damaged or gone; going on with what is found, and asking the other homes"
            );
            holdings.quarantined.retain(|quarantined| quarantined.object != object);
            holdings.quarantined.push(Quarantined { object, bytes, lost: vec![HashRange::ALL] });
        }
        let manifest = manifest(seams, me, version + 1, holdings);
        if put(bucket, me, &manifest).await? {
            return Ok(manifest);
        }
    }
    let detail = format!("{MAX_TRIES} other processes wrote manifests of {} at the same time", me.node);
    Err(BucketError::Unavailable { key: Manifest::prefix(&me.node), detail }.into())
}

/// Writes the manifest after version `known`, which this process wrote, and returns the version written.
///
/// # Errors
/// [`ManifestsError::TakenOver`] if another process wrote one since: this one must stop.
pub async fn commit(
    bucket: &dyn Bucket,
    seams: &Seams,
    me: &Incarnation,
    known: u64,
    holdings: Holdings,
) -> Result<u64, ManifestsError> {
    let mut manifest = manifest(seams, me, known + 1, holdings);
    for _ in 0..MAX_TRIES {
        if put(bucket, me, &manifest).await? {
            return Ok(manifest.version);
        }
        match newest(bucket, &me.node).await {
            // An earlier try, whose answer was lost.
            Ok(Some(newest)) if is_mine(&newest, me) || removed(Rule::Fence) => {
                manifest.version = newest.version + 1;
            }
            Ok(Some(newest)) => return Err(taken_over(me, newest.epoch)),
            // Whoever had the name has deleted it since.
            Ok(None) => {}
            // Whose it was can't be told; who takes over has leased an epoch before.
            Err(ManifestReadError::Unreadable { object, error }) => {
                if let Some(epoch) = me.replaced_by(bucket).await? {
                    return Err(taken_over(me, epoch));
                }
                tracing::error!(%object, %error, "this manifest is damaged; writing a newer one");
                let damaged = Manifest::version_of_object(&object).unwrap_or(0);
                manifest.version = manifest.version.max(damaged) + 1;
            }
            Err(error) => return Err(error.into()),
        }
        manifest.put_id = put_id(seams, me);
    }
    let detail = format!("{MAX_TRIES} tries to write a manifest of {} found the name taken", me.node);
    Err(BucketError::Unavailable { key: Manifest::prefix(&me.node), detail }.into())
}

/// Has the node any segments in the bucket?
async fn has_segments(bucket: &dyn Bucket, node: &NodeId) -> Result<bool, BucketError> {
    for kind in ["c", "f"] {
        if !bucket.list(&format!("nodes/{node}/{kind}/"), None, 1).await?.objects.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Is this what a manifest names that is damaged or gone?
pub(crate) fn is_manifest(me: &NodeId, object: &str) -> bool {
    object.starts_with(&Manifest::prefix(me))
}

fn taken_over(me: &Incarnation, epoch: u32) -> ManifestsError {
    ManifestsError::TakenOver { node: me.node.clone(), epoch }
}

/// Makes an attempt unlike any other, and tells whose it is.
fn put_id(seams: &Seams, me: &Incarnation) -> String {
    format!("{}-{:016x}", me.nonce, seams.random.next_u64())
}

fn manifest(seams: &Seams, me: &Incarnation, version: u64, holdings: Holdings) -> Manifest {
    let Holdings { segments, graves, dropped, taken, held_ms, ended, quarantined } = holdings;
    Manifest {
        segments,
        graves,
        dropped,
        taken,
        held_ms,
        ended,
        quarantined,
        ..Manifest::new(me.node.clone(), version, me.epoch, put_id(seams, me), seams.clock.now_ms())
    }
}

/// Creates a manifest; `false` if its version is taken, or if there is a newer one.
async fn put(bucket: &dyn Bucket, me: &Incarnation, manifest: &Manifest) -> Result<bool, BucketError> {
    let object = Manifest::object_name(&me.node, manifest.version);
    if bucket.create(&object, manifest.to_json().into()).await? == Created::Exists {
        return Ok(false);
    }
    // A name is free, too, where another process has long written newer versions and deleted this one.
    let newer = bucket.list(&Manifest::prefix(&me.node), Some(&object), 1).await?;
    if newer.objects.is_empty() {
        let superseded = manifest.version.saturating_sub(KEPT);
        // One that is damaged is kept for people.
        if !manifest.has_quarantined(&Manifest::object_name(&me.node, superseded)) {
            forget(bucket, &me.node, superseded).await;
        }
        return Ok(true);
    }
    forget(bucket, &me.node, manifest.version).await;
    Ok(false)
}

/// Deletes a superseded manifest. One that stays is read by nobody.
async fn forget(bucket: &dyn Bucket, node: &NodeId, version: u64) {
    if version > 0
        && let Err(error) = bucket.delete(&Manifest::object_name(node, version)).await
    {
        tracing::warn!(%error, version, "can't delete a superseded manifest");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cartwheel_bucket::{MemoryBucket, list_all};
    use cartwheel_core::hash::KeyHash;

    use super::*;

    fn incarnation(epoch: u32) -> Incarnation {
        Incarnation { node: NodeId::new("node-a").unwrap(), epoch, nonce: format!("{epoch:016x}") }
    }

    fn holding(name: &str) -> Holdings {
        let (first, last) = (KeyHash(0), KeyHash(u128::MAX));
        let object = name.to_owned();
        let entry = SegmentEntry {
            run: object.clone(),
            object,
            bytes: 1,
            tail_offset: 0,
            records: 1,
            first,
            last,
            born_ms: 0,
            only: Vec::new(),
        };
        Holdings { segments: vec![entry], ..Holdings::default() }
    }

    #[tokio::test]
    async fn versions_follow_each_other_and_old_ones_go() {
        let bucket = MemoryBucket::new();
        let mut known = 0;
        for _ in 0..12 {
            known = commit(&bucket, &Seams::real(), &incarnation(1), known, holding("s")).await.unwrap();
        }
        assert_eq!(known, 12);
        let listed = list_all(&bucket, "nodes/node-a/manifest/").await.unwrap();
        assert_eq!(listed.len() as u64, KEPT);
        assert_eq!(newest(&bucket, &incarnation(1).node).await.unwrap().unwrap().version, 12);
    }

    #[tokio::test]
    async fn who_claims_has_all_that_was_there_and_shuts_the_older_out() {
        let bucket = MemoryBucket::new();
        let (old, new) = (incarnation(1), incarnation(2));
        assert_eq!(claim(&bucket, &Seams::real(), &old).await.unwrap().version, 1);
        assert_eq!(commit(&bucket, &Seams::real(), &old, 1, holding("from-old")).await.unwrap(), 2);
        let claimed = claim(&bucket, &Seams::real(), &new).await.unwrap();
        assert_eq!((claimed.version, claimed.segments), (3, holding("from-old").segments));
        let refused = commit(&bucket, &Seams::real(), &old, 2, holding("late")).await;
        assert!(matches!(refused, Err(ManifestsError::TakenOver { epoch: 2, .. })));
        let refused = claim(&bucket, &Seams::real(), &old).await;
        assert!(matches!(refused, Err(ManifestsError::TakenOver { epoch: 2, .. })));
        assert_eq!(claim(&bucket, &Seams::real(), &new).await.unwrap().version, 3, "its own already");
    }

    /// That a process has ended is not said of the next one.
    #[tokio::test]
    async fn an_end_holds_until_the_next_claim() {
        let bucket = MemoryBucket::new();
        let known = claim(&bucket, &Seams::real(), &incarnation(1)).await.unwrap().version;
        let last = Holdings { ended: true, ..holding("s") };
        commit(&bucket, &Seams::real(), &incarnation(1), known, last).await.unwrap();
        assert!(newest(&bucket, &incarnation(1).node).await.unwrap().unwrap().ended);
        let claimed = claim(&bucket, &Seams::real(), &incarnation(2)).await.unwrap();
        assert_eq!((claimed.ended, claimed.segments), (false, holding("s").segments));
        assert!(!newest(&bucket, &incarnation(1).node).await.unwrap().unwrap().ended);
    }

    /// After a clean end the next process has the same epoch.
    #[tokio::test]
    async fn another_process_of_the_same_epoch_is_another() {
        let bucket = MemoryBucket::new();
        let old = incarnation(1);
        let new = Incarnation { nonce: "cafe".to_owned(), ..old.clone() };
        claim(&bucket, &Seams::real(), &old).await.unwrap();
        assert_eq!(claim(&bucket, &Seams::real(), &new).await.unwrap().version, 2);
        let refused = commit(&bucket, &Seams::real(), &old, 1, holding("late")).await;
        assert!(matches!(refused, Err(ManifestsError::TakenOver { epoch: 1, .. })));
    }

    /// A try whose answer was lost takes the name; the next one is this process's own all the same.
    #[tokio::test]
    async fn an_earlier_try_of_its_own_is_no_other_process() {
        let bucket = MemoryBucket::new();
        let me = incarnation(1);
        let known = commit(&bucket, &Seams::real(), &me, 0, holding("a")).await.unwrap();
        commit(&bucket, &Seams::real(), &me, known, holding("lost answer")).await.unwrap();
        assert_eq!(commit(&bucket, &Seams::real(), &me, known, holding("b")).await.unwrap(), 3);
        assert_eq!(newest(&bucket, &me.node).await.unwrap().unwrap().segments, holding("b").segments);
    }

    /// A process that was suspended for long finds its next version free again: the newer process has
    /// written it and deleted it since.
    #[tokio::test]
    async fn a_process_that_slept_through_many_versions_is_fenced_too() {
        let bucket = MemoryBucket::new();
        let (old, new) = (incarnation(1), incarnation(2));
        let known = commit(&bucket, &Seams::real(), &old, 0, holding("from-old")).await.unwrap();
        let mut version = claim(&bucket, &Seams::real(), &new).await.unwrap().version;
        for _ in 0..2 * KEPT {
            version = commit(&bucket, &Seams::real(), &new, version, holding("from-new")).await.unwrap();
        }
        let refused = commit(&bucket, &Seams::real(), &old, known, holding("late")).await;
        assert!(matches!(refused, Err(ManifestsError::TakenOver { epoch: 2, .. })), "{refused:?}");
        assert_eq!(list_all(&bucket, "nodes/node-a/manifest/").await.unwrap().len() as u64, KEPT);
    }
}
