//! The epoch lease: which incarnation of its name this process is.
//!
//! An epoch is an object that is created once. A process takes the next one unless it can prove that it still
//! holds every dot minted under the last: the process before it ended cleanly with all it had minted in the
//! bucket, and nobody took an epoch, or this clean end, since.

use serde::{Deserialize, Serialize};

use cartwheel_bucket::{Bucket, BucketError, Created, Listed, list_all};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::names::NodeId;

use crate::disk::Disk;

/// The file that a clean end leaves behind and the next start takes away.
const CLEAN_FILE: &str = "clean-shutdown.json";
/// How many processes may race for epochs before one gives up.
const MAX_TRIES: u32 = 64;

/// An incarnation of a node's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incarnation {
    /// Whose.
    pub node: NodeId,
    /// The epoch: part of the actor.
    pub epoch: u32,
    /// Different for every process, even under one epoch: part of object names.
    pub nonce: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    #[serde(flatten)]
    incarnation: Incarnation,
    at_ms: u64,
}

/// The object that says that the clean end of `incarnation` has been used. A disk can be copied or brought
/// back from a backup, and the word on it with it; in the bucket it counts once.
fn resumed_object(incarnation: &Incarnation) -> String {
    format!("nodes/{}/resumed/{:010}-{}.json", incarnation.node, incarnation.epoch, incarnation.nonce)
}

fn prefix(node: &NodeId) -> String {
    format!("nodes/{node}/epochs/")
}

impl Incarnation {
    /// What the objects of this incarnation's flushes start with.
    #[must_use]
    pub fn segment_prefix(&self) -> String {
        format!("nodes/{}/f/{:010}-{}/", self.node, self.epoch, self.nonce)
    }

    /// `epoch-nonce`, for people.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}-{}", self.epoch, self.nonce)
    }

    /// Leases an incarnation for a process that starts now.
    ///
    /// # Errors
    /// Those of the bucket.
    pub async fn lease(
        node: &NodeId,
        bucket: &dyn Bucket,
        seams: &Seams,
        disk: Option<&dyn Disk>,
    ) -> Result<Self, BucketError> {
        let clean = match disk {
            Some(disk) => take_clean_end(disk).await,
            None => None,
        };
        let nonce = format!("{:016x}", seams.random.next_u64());
        let leases = list_all(bucket, &prefix(node)).await?;
        let epoch_of = |o: &Listed| o.key.rsplit_once('/')?.1.strip_suffix(".json")?.parse::<u32>().ok();
        let newest = leases.iter().filter_map(epoch_of).max();
        let lease = |incarnation: &Self| {
            let lease = Lease { incarnation: incarnation.clone(), at_ms: seams.clock.now_ms() };
            serde_json::to_vec_pretty(&lease).unwrap_or_default()
        };
        if let (Some(clean), Some(newest)) = (clean, newest)
            && clean.node == *node
            && clean.epoch == newest
        {
            let resumed = Self { node: node.clone(), epoch: newest, nonce: nonce.clone() };
            if bucket.create(&resumed_object(&clean), lease(&resumed).into()).await? == Created::New {
                return Ok(resumed);
            }
        }
        let next = newest.map_or(1, |n| n.saturating_add(1));
        for epoch in next..next.saturating_add(MAX_TRIES) {
            let incarnation = Self { node: node.clone(), epoch, nonce: nonce.clone() };
            let body = lease(&incarnation);
            if bucket.create(&format!("{}{epoch:010}.json", prefix(node)), body.into()).await? == Created::New
            {
                return Ok(incarnation);
            }
        }
        Err(BucketError::Unavailable {
            key: prefix(node),
            detail: format!("{MAX_TRIES} other processes took epochs of {node} at the same time"),
        })
    }

    /// Leaves word that everything minted is in the bucket, and that this process mints no more.
    pub async fn leave_clean_end(&self, disk: &dyn Disk) -> std::io::Result<()> {
        disk.replace(CLEAN_FILE, serde_json::to_vec(self)?.into()).await
    }
}

/// The clean end of the last process, taken away so that it counts only once.
async fn take_clean_end(disk: &dyn Disk) -> Option<Incarnation> {
    let bytes = disk.read(CLEAN_FILE).await.ok()?;
    disk.delete(CLEAN_FILE).await.ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cartwheel_bucket::MemoryBucket;

    use super::*;
    use crate::disk::MemoryDisk;

    async fn lease(bucket: &MemoryBucket, disk: Option<&dyn Disk>) -> Incarnation {
        let node = NodeId::new("node-a").unwrap();
        Incarnation::lease(&node, bucket, &Seams::real(), disk).await.unwrap()
    }

    #[tokio::test]
    async fn every_unclean_start_takes_a_new_epoch() {
        let (bucket, disk) = (MemoryBucket::new(), MemoryDisk::default());
        assert_eq!(lease(&bucket, Some(&disk)).await.epoch, 1);
        assert_eq!(lease(&bucket, Some(&disk)).await.epoch, 2);
        assert_eq!(lease(&bucket, None).await.epoch, 3);
    }

    #[tokio::test]
    async fn a_clean_end_keeps_the_epoch_once() {
        let (bucket, disk) = (MemoryBucket::new(), MemoryDisk::default());
        let first = lease(&bucket, Some(&disk)).await;
        first.leave_clean_end(&disk).await.unwrap();
        let second = lease(&bucket, Some(&disk)).await;
        assert_eq!(second.epoch, 1);
        assert_ne!(second.nonce, first.nonce, "object names never meet");
        assert_eq!(lease(&bucket, Some(&disk)).await.epoch, 2, "the word counts only once");
    }

    /// A disk brought back from a backup, or copied to a second machine, brings the word along.
    #[tokio::test]
    async fn a_copied_clean_end_counts_once_all_the_same() {
        let (bucket, disk, copy) = (MemoryBucket::new(), MemoryDisk::default(), MemoryDisk::default());
        let first = lease(&bucket, Some(&disk)).await;
        first.leave_clean_end(&disk).await.unwrap();
        first.leave_clean_end(&copy).await.unwrap();
        assert_eq!(lease(&bucket, Some(&disk)).await.epoch, 1);
        assert_eq!(lease(&bucket, Some(&copy)).await.epoch, 2);
    }

    #[tokio::test]
    async fn a_strange_object_among_the_leases_is_passed_over() {
        let (bucket, disk) = (MemoryBucket::new(), MemoryDisk::default());
        bucket.put("nodes/node-a/epochs/zz-notes.txt", "x".into()).await.unwrap();
        assert_eq!(lease(&bucket, Some(&disk)).await.epoch, 1);
        assert_eq!(lease(&bucket, Some(&disk)).await.epoch, 2);
    }

    #[tokio::test]
    async fn a_clean_end_does_not_count_after_somebody_elses_epoch() {
        let (bucket, disk) = (MemoryBucket::new(), MemoryDisk::default());
        lease(&bucket, Some(&disk)).await.leave_clean_end(&disk).await.unwrap();
        assert_eq!(lease(&bucket, None).await.epoch, 2);
        assert_eq!(lease(&bucket, Some(&disk)).await.epoch, 3);
    }
}
