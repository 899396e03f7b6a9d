//! Deleting what nothing needs any more, and taking up what was found late (docs/manifest-protocol.md).
//!
//! An object may go once a manifest of this process dropped it, that manifest has been the truth for a while by the
//! store's clock, so that readers of the one before are done, the newest manifest is still this process's, and nobody
//! has pinned it (P11).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use cartwheel_bucket::{BucketError, Listed, SharedBucket, list_all};
use cartwheel_core::manifest::{Dropped, flush_of_object};
use cartwheel_core::mutation::{Rule, removed};

use crate::engine::Engine;
use crate::epoch::Incarnation;
use crate::ledger::{Ledger, StoreTime};
use crate::segments::{SegmentError, pins};

/// How often to look for objects that no manifest knows, at most.
const LOOK: Duration = Duration::from_secs(600);

/// Deletes and takes up objects of this node.
pub(crate) struct Sweeper {
    pub(crate) engine: Arc<Engine>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) bucket: SharedBucket,
    pub(crate) me: Incarnation,
    /// How long what was dropped stays, and how old what no manifest knows must be.
    pub(crate) grace: Duration,
    /// Does this process hold all that earlier ones acknowledged? Until then their segments' ages matter.
    pub(crate) whole: Arc<AtomicBool>,
    /// Rung when a segment was taken up.
    pub(crate) wake: Arc<Notify>,
}

/// What one round did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Objects deleted.
    pub(crate) deleted: usize,
    /// Late segments taken up.
    pub(crate) adopted: usize,
    /// Orphans that were dropped.
    pub(crate) orphans: usize,
}

impl Sweeper {
    /// Sweeps now and then, until the process ends.
    pub(crate) async fn run(self) {
        let mut looked: Option<Instant> = None;
        loop {
            tokio::time::sleep((self.grace / 2).clamp(Duration::from_millis(200), LOOK)).await;
            if !self.whole.load(Ordering::Acquire) || !self.engine.index_complete() {
                continue;
            }
            let look = looked.is_none_or(|at| at.elapsed() >= LOOK.min(self.grace * 4));
            if self.engine.is_fenced() || (!look && self.ledger.dropped().is_empty()) {
                continue;
            }
            match self.round(look).await {
                Ok(swept) if swept != Swept::default() => tracing::info!(?swept, "swept the bucket"),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "can't sweep the bucket yet"),
            }
            if look {
                looked = Some(Instant::now());
            }
        }
    }

    /// One round; `look` says whether to look for objects that no manifest knows.
    pub(crate) async fn round(&self, look: bool) -> Result<Swept, BucketError> {
        let mut swept = Swept::default();
        // Says what was dropped, what time it is, and that this process still has the say.
        let Some(now) = self.ledger.commit_and_look().await else { return Ok(swept) };
        if look {
            self.look(now, &mut swept).await?;
        }
        let due = self.due(now);
        if due.is_empty() {
            return Ok(swept);
        }
        // After the manifest that dropped them: whoever pins later finds them in no manifest.
        let pinned = pins::pinned(&*self.bucket, &self.me.node).await?;
        let mut deleted = Vec::new();
        for object in due.into_iter().filter(|object| !pinned.contains(object) || removed(Rule::HeedPins)) {
            match self.bucket.delete(&object).await {
                Ok(()) => deleted.push(object),
                Err(error) => {
                    tracing::debug!(%error, %object, "can't delete it yet");
                    break;
                }
            }
        }
        swept.deleted = deleted.len();
        self.ledger.note_deleted(&deleted);
        Ok(swept)
    }

    /// What has been dropped for long enough.
    fn due(&self, now: StoreTime) -> Vec<String> {
        let grace = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX);
        let dropped = self.ledger.dropped();
        let is_due = |dropped: &Dropped| {
            (dropped.since_ms.is_some_and(|since| since.saturating_add(grace) <= now.ms)
                || removed(Rule::LookAgain))
                && self.ledger.is_own(&dropped.object)
                && !self.ledger.names(&dropped.object)
        };
        dropped.into_iter().filter(is_due).map(|dropped| dropped.object).collect()
    }

    /// Looks for objects that no manifest knows: orphans of merges that came to nothing, and flushes of processes that
    /// were thought dead.
    async fn look(&self, now: StoreTime, swept: &mut Swept) -> Result<(), BucketError> {
        let node = &self.me.node;
        let mut listed: Vec<Listed> = Vec::new();
        for kind in ["c", "g", "f"] {
            listed.extend(list_all(&*self.bucket, &format!("nodes/{node}/{kind}/")).await?);
        }
        // Made after the list: what was put or dropped meanwhile is in one of these.
        let (segments, graves) = (self.engine.segments.all(), self.engine.graves.segments.all());
        let mut known: BTreeSet<String> =
            segments.iter().chain(graves.iter()).map(|segment| segment.object.clone()).collect();
        known.extend(self.ledger.dropped().into_iter().map(|dropped| dropped.object));
        known.extend(self.ledger.quarantined().into_iter().map(|quarantined| quarantined.object));
        let grace = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX);
        let mut unreadable: Vec<String> = Vec::new();
        let (flushed, own) = (format!("nodes/{node}/f/"), self.me.segment_prefix());
        for object in listed {
            if known.contains(&object.key) {
                continue;
            }
            if !object.key.starts_with(&flushed) {
                let old = object.modified_ms.saturating_add(grace) <= now.ms;
                swept.orphans += usize::from(old && self.ledger.drop_orphan(object.key, object.size));
            } else if self.ledger.has_taken(&object.key) {
                // It was merged and deleted, and a PUT that was repeated has brought it back.
                swept.orphans += usize::from(self.ledger.drop_orphan(object.key, object.size));
            } else if !object.key.starts_with(&own)
                && !unreadable.iter().any(|label| object.key.contains(label))
            {
                let segment = self.engine.segments.open(object.key, object.size, None, None);
                match self.engine.adopt(Arc::clone(&segment)).await {
                    Ok(()) => {
                        tracing::info!(object = %segment.object, "took up a segment that an earlier process put late");
                        swept.adopted += 1;
                        self.wake.notify_one();
                    }
                    Err(error) => {
                        tracing::error!(%error, "a segment found late can't be taken up");
                        if matches!(error, SegmentError::Damaged { .. }) {
                            self.engine.note_late(&segment);
                        }
                        // Those after it would make it one that was taken up before.
                        let label = flush_of_object(&segment.object).map(|(label, _)| format!("/{label}/"));
                        unreadable.extend(label);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
