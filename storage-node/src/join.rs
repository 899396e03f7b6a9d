//! Taking part in a ring change: pulling the partitions that this node will hold, and saying when it does.
//!
//! The order matters. First every member must know the new ring, so that no gateway with the old one can write
//! any more (nodes refuse it); from then on every write also goes to the homes to come. Only then what was
//! written before is taken over ([`crate::takeover`]). Once all are ready, anybody makes the version in which
//! the homes to come are read from, and once every member knows that one, the version that completes the change:
//! between neighbouring versions, what one acknowledges the other reads. Nobody drives a change: each member does its
//! part, whoever was there when it began, and who is last takes it a step further.

use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::SharedBucket;
use cartwheel_cluster::membership::{self, Follower, View};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::names::NodeId;
use cartwheel_core::wire::{Reply, Request};

use crate::copier::Copier;
use crate::give_away::GiveAway;
use crate::takeover::{Progress, Takeover};

/// The pause before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// And at most, as long as it fails: a change may wait for a process that is started tomorrow.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How long after the look before it each look for what is kept for those that are gone begins: who has not heard of
/// the new ring may go on to leave them something for a while.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(60)];

/// What taking part in a change needs.
pub(crate) struct Joiner {
    pub(crate) me: NodeId,
    pub(crate) copier: Copier,
    pub(crate) bucket: SharedBucket,
    pub(crate) seams: Seams,
    pub(crate) follower: Follower,
    pub(crate) takeover: Arc<Takeover>,
    pub(crate) give_away: Arc<GiveAway>,
}

impl Joiner {
    /// Takes part in every change until the follower ends.
    pub(crate) async fn run(self) {
        let mut version = 0;
        while let Some(view) = self.follower.newer_than(version).await {
            version = view.version();
            let part = async {
                if !view.document.has_pending_change() {
                    self.give_away.settled(&view);
                    for pause in LOOKS {
                        tokio::time::sleep(pause).await;
                        self.step("let go of what is kept for those that are gone", || {
                            self.takeover.forget_the_gone(&view)
                        })
                        .await;
                    }
                } else {
                    self.give_away.hold().await;
                    if view.next.index_of(&self.me).is_some() {
                        self.take_part(&view).await;
                    }
                }
            };
            tokio::select! {
                biased;
                _ = self.follower.newer_than(version) => {}
                () = part => {}
            }
        }
    }

    /// Retries each step until it is done; a newer ring ends it from outside.
    async fn take_part(&self, view: &View) {
        self.step("tell every member of the new ring", || self.greet(view)).await;
        if !view.document.copied {
            let progress = Progress::default();
            self.step("take over the partitions to come", || self.takeover.take(view, &progress)).await;
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
        let mut pause = PAUSE;
        while let Err(why) = work().await {
            tracing::debug!(%why, "can't yet {what}");
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(MAX_PAUSE);
            self.follower.nudge();
        }
    }

    async fn greet(&self, view: &View) -> Result<(), String> {
        for member in view.document.must_know() {
            match self.copier.call(&member.address, view.version(), Request::Hello).await? {
                Reply::Hello => {}
                other => return Err(format!("{} answered {other:?}", member.id)),
            }
        }
        Ok(())
    }
}
