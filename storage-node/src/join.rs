//! Taking part in a ring change: pulling the partitions that this node will hold, and saying when it does.
//!
//! The order matters. First every member must know the new ring, so that no gateway with the old one can write
//! any more (nodes refuse it); from then on every write also goes to the homes to come. Only then what was
//! written before is copied, from every home that holds it. Once all are ready, anybody makes the version in which
//! the homes to come are read from, and once every member knows that one, the version that completes the change:
//! between neighbouring versions, what one acknowledges the other reads.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use cartwheel_bucket::SharedBucket;
use cartwheel_cluster::membership::{self, Follower, View};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::wire::{Reply, Request};

use crate::copier::Copier;

/// The pause before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// What taking part in a change needs.
pub(crate) struct Joiner {
    pub(crate) me: NodeId,
    pub(crate) copier: Copier,
    pub(crate) bucket: SharedBucket,
    pub(crate) seams: Seams,
    pub(crate) follower: Follower,
}

/// How far a copy has come.
#[derive(Debug, Default)]
struct Copied {
    /// The partitions, and the homes (by their number in the ring) that they were copied from.
    from: BTreeSet<(u32, u16)>,
    /// The record taken in last.
    last: Option<Bytes>,
}

impl Joiner {
    /// Takes part in every change until the follower ends.
    pub(crate) async fn run(self) {
        let mut version = 0;
        while let Some(view) = self.follower.newer_than(version).await {
            version = view.version();
            if view.document.has_pending_change() && view.next.index_of(&self.me).is_some() {
                tokio::select! {
                    biased;
                    _ = self.follower.newer_than(version) => {}
                    () = self.take_part(&view) => {}
                }
            }
        }
    }

    /// Retries each step until it is done; a newer ring ends it from outside.
    async fn take_part(&self, view: &View) {
        self.step("tell every member of the new ring", || self.greet(view)).await;
        if !view.document.copied {
            let copied = Mutex::new(Copied::default());
            self.step("copy the partitions to come", || self.pull(view, &copied)).await;
        }
        self.step("say that this node is ready", || async {
            let done = membership::mark_ready(&*self.bucket, &self.seams, view.version(), &self.me).await;
            done.map_err(|e| e.to_string())
        })
        .await;
        self.step("take the ring change a step further", || async {
            let done = membership::advance_change(&*self.bucket, &self.seams, &view.document, &self.me).await;
            match done {
                Ok(true) => Ok(()),
                Ok(false) => Err("not every member is ready".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        self.follower.nudge();
    }

    async fn step<F: Future<Output = Result<(), String>>>(&self, what: &str, work: impl Fn() -> F) {
        while let Err(why) = work().await {
            tracing::debug!(%why, "can't yet {what}");
            tokio::time::sleep(PAUSE).await;
            self.follower.nudge();
        }
    }

    async fn greet(&self, view: &View) -> Result<(), String> {
        for member in view.current.members() {
            match self.copier.call(&member.address, view.version(), Request::Hello).await? {
                Reply::Hello => {}
                other => return Err(format!("{} answered {other:?}", member.id)),
            }
        }
        Ok(())
    }

    /// Copies from every home of each partition to come, and waits until it is all in the bucket. Goes on
    /// where an earlier try failed.
    async fn pull(&self, view: &View, copied: &Mutex<Copied>) -> Result<(), String> {
        let held = view.current.partitions_of(&self.me);
        for partition in view.next.partitions_of(&self.me) {
            if held.contains(&partition) {
                continue;
            }
            for home in view.current.homes(partition) {
                let Some(member) = view.current.member(*home) else { continue };
                if copied.lock().from.contains(&(partition, *home)) {
                    continue;
                }
                let last = self.copier.pull(&member.address, view.version(), partition, None).await?;
                let mut copied = copied.lock();
                copied.last = last.or(copied.last.take());
                copied.from.insert((partition, *home));
            }
        }
        let last = copied.lock().last.clone();
        match last {
            None => Ok(()),
            Some(record) => self.copier.keep(&record, Durability::Bucket).await.map(drop),
        }
    }
}
