//! Committing this node's manifest, and finding out that another process took over.

use cartwheel_bucket::{Bucket, BucketError, Created};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::manifest::{Manifest, SegmentEntry};
use cartwheel_core::names::NodeId;
use cartwheel_segments::manifests::ManifestReadError;

pub use cartwheel_segments::manifests::newest;

use crate::epoch::Incarnation;

/// Superseded manifests that are kept, for people and for readers that are slow.
const KEPT: u64 = 8;

/// Why a manifest could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A manifest in the bucket can't be read.
    #[error(transparent)]
    Read(#[from] ManifestReadError),
    /// Another process, of a newer epoch, writes this node's manifest.
    #[error("another process has taken over {node} as epoch {epoch}")]
    TakenOver {
        /// The node.
        node: NodeId,
        /// The other process's epoch.
        epoch: u32,
    },
}

/// Writes the manifest version after `known` with these segments and returns the version written. A version
/// that an older incarnation wrote meanwhile is overtaken, and its segments are kept.
///
/// # Errors
/// [`ManifestsError::TakenOver`] if a newer incarnation wrote one: this process must stop.
pub async fn commit(
    bucket: &dyn Bucket,
    seams: &Seams,
    me: &Incarnation,
    known: u64,
    segments: &[SegmentEntry],
) -> Result<u64, ManifestsError> {
    let mut segments = segments.to_vec();
    let mut version = known + 1;
    loop {
        let put_id = format!("{}-{:016x}", me.nonce, seams.random.next_u64());
        let now_ms = seams.clock.now_ms();
        let manifest = Manifest {
            segments: segments.clone(),
            ..Manifest::new(me.node.clone(), version, me.epoch, put_id, now_ms)
        };
        let object = Manifest::object_name(&me.node, version);
        if bucket.create(&object, manifest.to_json().into()).await? == Created::New {
            // A name is free, too, where another process has long written newer versions and deleted this one.
            let newer = bucket.list(&Manifest::prefix(&me.node), Some(&object), 1).await?;
            if newer.objects.is_empty() {
                forget(bucket, &me.node, version.saturating_sub(KEPT)).await;
                return Ok(version);
            }
            forget(bucket, &me.node, version).await;
        }
        if let Some(theirs) = newest(bucket, &me.node).await? {
            if theirs.epoch > me.epoch {
                return Err(ManifestsError::TakenOver { node: me.node.clone(), epoch: theirs.epoch });
            }
            for segment in theirs.segments {
                if !segments.iter().any(|s| s.object == segment.object) {
                    segments.insert(0, segment);
                }
            }
            version = theirs.version.max(version);
        }
        version += 1;
    }
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

    fn segment(name: &str) -> SegmentEntry {
        let (first, last) = (KeyHash(0), KeyHash(u128::MAX));
        let object = name.to_owned();
        SegmentEntry {
            run: object.clone(),
            object,
            bytes: 1,
            tail_offset: 0,
            records: 1,
            first,
            last,
            born_ms: 0,
        }
    }

    #[tokio::test]
    async fn versions_follow_each_other_and_old_ones_go() {
        let bucket = MemoryBucket::new();
        let mut known = 0;
        for _ in 0..12 {
            known = commit(&bucket, &Seams::real(), &incarnation(1), known, &[segment("s")]).await.unwrap();
        }
        assert_eq!(known, 12);
        let listed = list_all(&bucket, "nodes/node-a/manifest/").await.unwrap();
        assert_eq!(listed.len() as u64, KEPT);
        assert_eq!(newest(&bucket, &incarnation(1).node).await.unwrap().unwrap().version, 12);
    }

    #[tokio::test]
    async fn the_newer_epoch_wins_and_keeps_the_olders_segments() {
        let bucket = MemoryBucket::new();
        let (old, new) = (incarnation(1), incarnation(2));
        commit(&bucket, &Seams::real(), &old, 0, &[segment("from-old")]).await.unwrap();
        let version = commit(&bucket, &Seams::real(), &new, 0, &[segment("from-new")]).await.unwrap();
        assert_eq!(version, 2);
        let names: Vec<String> = newest(&bucket, &new.node)
            .await
            .unwrap()
            .unwrap()
            .segments
            .into_iter()
            .map(|s| s.object)
            .collect();
        assert_eq!(names, ["from-old", "from-new"]);
        let refused = commit(&bucket, &Seams::real(), &old, 1, &[]).await;
        assert!(matches!(refused, Err(ManifestsError::TakenOver { epoch: 2, .. })));
    }

    /// A process that was suspended for long finds its next version free again: the newer process has
    /// written it and deleted it since.
    #[tokio::test]
    async fn a_process_that_slept_through_many_versions_is_fenced_too() {
        let bucket = MemoryBucket::new();
        let (old, new) = (incarnation(1), incarnation(2));
        let known = commit(&bucket, &Seams::real(), &old, 0, &[segment("from-old")]).await.unwrap();
        let mut newest_version = known;
        for _ in 0..2 * KEPT {
            newest_version =
                commit(&bucket, &Seams::real(), &new, newest_version, &[segment("from-new")]).await.unwrap();
        }
        let refused = commit(&bucket, &Seams::real(), &old, known, &[segment("late")]).await;
        assert!(matches!(refused, Err(ManifestsError::TakenOver { epoch: 2, .. })), "{refused:?}");
        assert_eq!(list_all(&bucket, "nodes/node-a/manifest/").await.unwrap().len() as u64, KEPT);
    }
}
