//! The epoch lease: which incarnation of its name this process is.
//!
//! An epoch is an object that is created once. A process takes the next one unless it can prove that it still
//! holds every dot minted under the last: the process before it ended cleanly with all it had minted in the
//! bucket, and nobody took an epoch, or this clean end, since. A second epoch is for versions that the process mints
//! on behalf of homes that it stands in for.

use serde::{Deserialize, Serialize};

use cartwheel_bucket::{Bucket, BucketError, Created, Listed, list_all};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::mutation::{Rule, removed};
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

/// The word that a clean end leaves on the disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CleanEnd {
    incarnation: Incarnation,
    /// The newest epoch that the process had leased: that of its hints.
    newest: u32,
}

/// Why no further epoch could be had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// Another process of this name took it: this one has been replaced.
    #[error("another process has taken over {0}")]
    TakenOver(NodeId),
}

/// What a lease's object holds.
#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    node: NodeId,
    epoch: u32,
    nonce: String,
    /// The epoch of the process's own records, where this one is for what it mints for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<u32>,
    at_ms: u64,
}

impl Lease {
    fn body(me: &Incarnation, epoch: u32, seams: &Seams) -> Vec<u8> {
        let (node, nonce) = (me.node.clone(), me.nonce.clone());
        let of = (me.epoch != 0 && me.epoch != epoch).then_some(me.epoch);
        let lease = Self { node, epoch, nonce, of, at_ms: seams.clock.now_ms() };
        serde_json::to_vec_pretty(&lease).unwrap_or_default()
    }
}

/// An incarnation with what is known of the process before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    /// This process's.
    pub me: Incarnation,
    /// The last process's, if there was one.
    pub last: Option<Incarnation>,
    /// That one ended cleanly: this process holds every dot that it minted.
    pub resumed: bool,
    /// The newest epoch leased: that under which this process mints for homes that it stands in for.
    pub newest: u32,
}

/// The object that says that the clean end of `incarnation` has been used. A disk can be copied or brought
/// back from a backup, and the word on it with it; in the bucket it counts once.
fn resumed_object(incarnation: &Incarnation) -> String {
    format!("nodes/{}/resumed/{:010}-{}.json", incarnation.node, incarnation.epoch, incarnation.nonce)
}

fn prefix(node: &NodeId) -> String {
    format!("nodes/{node}/epochs/")
}

fn lease_object(node: &NodeId, epoch: u32) -> String {
    format!("{}{epoch:010}.json", prefix(node))
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

    /// Leases an incarnation for a process that starts now, and an epoch for what it mints for others.
    ///
    /// # Errors
    /// Those of the bucket.
    pub async fn lease(
        node: &NodeId,
        bucket: &dyn Bucket,
        seams: &Seams,
        disk: Option<&dyn Disk>,
    ) -> Result<Leased, BucketError> {
        let clean = match disk {
            Some(disk) => take_clean_end(disk).await,
            None => None,
        };
        let newest = Self::newest_lease(node, bucket).await?;
        let last = match newest {
            0 => None,
            epoch => {
                let lease = serde_json::from_slice::<Lease>(&bucket.get(&lease_object(node, epoch)).await?);
                lease.ok().map(|Lease { node, epoch, nonce, of, .. }| Self {
                    node,
                    epoch: of.unwrap_or(epoch),
                    nonce,
                })
            }
        };
        let fresh = Self { node: node.clone(), epoch: 0, nonce: format!("{:016x}", seams.random.next_u64()) };
        if let Some(CleanEnd { incarnation: clean, newest: known }) = clean
            && clean.node == *node
            && known == newest
        {
            let me = Self { epoch: clean.epoch, ..fresh.clone() };
            let body = Lease::body(&me, me.epoch, seams).into();
            if bucket.create(&resumed_object(&clean), body).await? == Created::New {
                let newest = me.lease_next(bucket, seams, newest).await?;
                return Ok(Leased { me, last, resumed: true, newest });
            }
        }
        let epoch = match &last {
            Some(last) if removed(Rule::NewEpoch) => last.epoch,
            _ => fresh.lease_next(bucket, seams, newest).await?,
        };
        let me = Self { epoch, ..fresh };
        let newest = me.lease_next(bucket, seams, epoch.max(newest)).await?;
        Ok(Leased { me, last, resumed: false, newest })
    }

    /// Leases the first epoch after `known` that is free.
    async fn lease_next(&self, bucket: &dyn Bucket, seams: &Seams, known: u32) -> Result<u32, BucketError> {
        let next = known.saturating_add(1);
        for epoch in next..next.saturating_add(MAX_TRIES) {
            let body = Lease::body(self, epoch, seams);
            if bucket.create(&lease_object(&self.node, epoch), body.into()).await? == Created::New {
                return Ok(epoch);
            }
        }
        Err(BucketError::Unavailable {
            key: prefix(&self.node),
            detail: format!("{MAX_TRIES} other processes took epochs of {} at the same time", self.node),
        })
    }

    /// Leases the epoch under which this process mints for homes that it stands in for. It is another than that
    /// of its own records and a new one after hints were handed over: a node that has let go of records can't
    /// prove that it holds every dot minted under an epoch. `known` is the newest that this process has.
    ///
    /// # Errors
    /// [`LeaseError::TakenOver`] if a newer process of this name is there.
    pub async fn lease_for_hints(
        &self,
        bucket: &dyn Bucket,
        seams: &Seams,
        known: u32,
    ) -> Result<u32, LeaseError> {
        let epoch = known.saturating_add(1);
        let body = Lease::body(self, epoch, seams);
        match bucket.create(&lease_object(&self.node, epoch), body.into()).await? {
            Created::New => Ok(epoch),
            // Its own, if an earlier answer was lost.
            Created::Exists => {
                let lease = bucket.get(&lease_object(&self.node, epoch)).await?;
                match serde_json::from_slice::<Lease>(&lease) {
                    Ok(lease) if lease.nonce == self.nonce => Ok(epoch),
                    _ => Err(LeaseError::TakenOver(self.node.clone())),
                }
            }
        }
    }

    /// The newest epoch that any process of `node` has leased; 0 if none has.
    ///
    /// # Errors
    /// Those of the bucket.
    pub async fn newest_lease(node: &NodeId, bucket: &dyn Bucket) -> Result<u32, BucketError> {
        let leases = list_all(bucket, &prefix(node)).await?;
        Ok(leases.iter().filter_map(epoch_of).max().unwrap_or(0))
    }

    /// The epoch of another process of this name that leased one after this process; `None` if this one's is the newest.
    ///
    /// # Errors
    /// Those of the bucket.
    pub async fn replaced_by(&self, bucket: &dyn Bucket) -> Result<Option<u32>, BucketError> {
        let newest = Self::newest_lease(&self.node, bucket).await?;
        if newest == 0 || removed(Rule::Fence) {
            return Ok(None);
        }
        // It may be this process's own, whose answer it has not got yet.
        let lease = bucket.get(&lease_object(&self.node, newest)).await?;
        let mine = serde_json::from_slice::<Lease>(&lease).is_ok_and(|lease| lease.nonce == self.nonce);
        Ok((!mine && newest >= self.epoch).then_some(newest))
    }

    /// Leaves word that everything minted is in the bucket, and that this process mints no more. `newest` is the
    /// newest epoch that it has leased.
    pub async fn leave_clean_end(&self, disk: &dyn Disk, newest: u32) -> std::io::Result<()> {
        let word = CleanEnd { incarnation: self.clone(), newest };
        disk.replace(CLEAN_FILE, serde_json::to_vec(&word)?.into()).await
    }
}

fn epoch_of(lease: &Listed) -> Option<u32> {
    lease.key.rsplit_once('/')?.1.strip_suffix(".json")?.parse().ok()
}

/// The clean end of the last process, taken away so that it counts only once.
async fn take_clean_end(disk: &dyn Disk) -> Option<CleanEnd> {
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

    async fn lease(bucket: &MemoryBucket, disk: Option<&dyn Disk>) -> Leased {
        let node = NodeId::new("node-a").unwrap();
        Incarnation::lease(&node, bucket, &Seams::real(), disk).await.unwrap()
    }

    #[tokio::test]
    async fn every_unclean_start_takes_a_new_epoch() {
        let (bucket, disk) = (MemoryBucket::new(), MemoryDisk::default());
        let first = lease(&bucket, Some(&disk)).await;
        assert_eq!((first.me.epoch, first.newest, first.last), (1, 2, None));
        let second = lease(&bucket, Some(&disk)).await;
        assert_eq!((second.me.epoch, second.newest, second.resumed), (3, 4, false));
        assert_eq!(second.last, Some(first.me), "under its own epoch, not that of its hints");
        assert_eq!(lease(&bucket, None).await.me.epoch, 5);
    }

    #[tokio::test]
    async fn a_clean_end_keeps_the_epoch_once() {
        let (bucket, disk) = (MemoryBucket::new(), MemoryDisk::default());
        let first = lease(&bucket, Some(&disk)).await;
        first.me.leave_clean_end(&disk, first.newest).await.unwrap();
        let second = lease(&bucket, Some(&disk)).await;
        assert!(second.resumed && second.me.epoch == 1);
        assert_eq!(second.newest, 3, "what it mints for others is under a new one");
        assert_ne!(second.me.nonce, first.me.nonce, "object names never meet");
        assert_eq!(lease(&bucket, Some(&disk)).await.me.epoch, 4, "the word counts only once");
    }

    /// A disk brought back from a backup, or copied to a second machine, brings the word along.
    #[tokio::test]
    async fn a_copied_clean_end_counts_once_all_the_same() {
        let (bucket, disk, copy) = (MemoryBucket::new(), MemoryDisk::default(), MemoryDisk::default());
        let first = lease(&bucket, Some(&disk)).await;
        first.me.leave_clean_end(&disk, first.newest).await.unwrap();
        first.me.leave_clean_end(&copy, first.newest).await.unwrap();
        assert_eq!(lease(&bucket, Some(&disk)).await.me.epoch, 1);
        assert_eq!(lease(&bucket, Some(&copy)).await.me.epoch, 4);
    }

    #[tokio::test]
    async fn a_strange_object_among_the_leases_is_passed_over() {
        let (bucket, disk) = (MemoryBucket::new(), MemoryDisk::default());
        bucket.put("nodes/node-a/epochs/zz-notes.txt", "x".into()).await.unwrap();
        assert_eq!(lease(&bucket, Some(&disk)).await.me.epoch, 1);
        assert_eq!(lease(&bucket, Some(&disk)).await.me.epoch, 3);
    }

    #[tokio::test]
    async fn a_clean_end_does_not_count_after_somebody_elses_epoch() {
        let (bucket, disk) = (MemoryBucket::new(), MemoryDisk::default());
        let first = lease(&bucket, Some(&disk)).await;
        first.me.leave_clean_end(&disk, first.newest).await.unwrap();
        assert_eq!(lease(&bucket, None).await.me.epoch, 3);
        assert_eq!(lease(&bucket, Some(&disk)).await.me.epoch, 5);
    }

    #[tokio::test]
    async fn who_was_replaced_gets_no_further_epoch() {
        let (bucket, disk) = (MemoryBucket::new(), MemoryDisk::default());
        let first = lease(&bucket, Some(&disk)).await;
        let next = first.me.lease_for_hints(&bucket, &Seams::real(), first.newest).await.unwrap();
        assert_eq!(next, 3);
        assert_eq!(first.me.replaced_by(&bucket).await.unwrap(), None, "its own, whether or not it knows");
        assert_eq!(lease(&bucket, None).await.me.epoch, 4);
        let refused = first.me.lease_for_hints(&bucket, &Seams::real(), next).await;
        assert!(matches!(refused, Err(LeaseError::TakenOver(_))));
        assert_eq!(first.me.replaced_by(&bucket).await.unwrap(), Some(5));
    }
}
