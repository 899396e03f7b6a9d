//! Forgetting the partitions that a ring change gave to others.
//!
//! Once a change is settled, and some time after it, the clock index forgets their keys, and the manifest restricts the
//! segments to what stays; merges leave out the rest when they come by. A node that forgets keys can't prove any more
//! which dots it has minted for them, so it mints under a new epoch first, and ends its process as if it had not ended
//! cleanly, for the next one would go on with the old epoch.
//!
//! If the ring changes meanwhile, the partitions may come back. Index first, segments last: what is forgotten too
//! early then is taken over once more; the other way round the index would know of records that can't be read, and
//! nobody would send them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use cartwheel_cluster::membership::{Follower, View};
use cartwheel_core::merkle::Span;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::ranges::{self, HashRange};
use cartwheel_core::wire::{Repair, Reply, Request};

use crate::copier::Copier;
use crate::engine::Engine;
use crate::hints::Hints;
use crate::ledger::{Committed, Ledger};
use crate::repair::exchange::Exchange;

/// How often to look for keys of others where there were none.
const LOOK: Duration = Duration::from_secs(600);

/// What is to be kept, and from when on the rest can go.
#[derive(Debug, Clone)]
struct Kept {
    /// The version of the ring that says so.
    version: u64,
    mine: Vec<HashRange>,
    /// The partitions of others.
    others: Vec<Span>,
    due: Instant,
}

/// Forgets what this node gave away.
pub(crate) struct GiveAway {
    me: NodeId,
    engine: Arc<Engine>,
    copier: Copier,
    ledger: Arc<Ledger>,
    hints: Arc<Hints>,
    follower: Follower,
    /// How long after a change is settled.
    after: Duration,
    kept: Mutex<Option<Kept>>,
    /// Held while keys are being forgotten.
    forgetting: tokio::sync::Mutex<()>,
    /// Whether this process has forgotten anything.
    forgot: AtomicBool,
    /// The version of the ring by which there was nothing left to be forgotten, and when that was seen.
    clean: Mutex<Option<(u64, Instant)>>,
}

impl GiveAway {
    /// One that keeps everything until it is told otherwise.
    pub(crate) fn new(
        me: NodeId,
        copier: Copier,
        ledger: Arc<Ledger>,
        hints: Arc<Hints>,
        follower: Follower,
        after: Duration,
    ) -> Self {
        Self {
            me,
            engine: Arc::clone(&copier.engine),
            copier,
            ledger,
            hints,
            follower,
            after,
            kept: Mutex::default(),
            forgetting: tokio::sync::Mutex::default(),
            forgot: AtomicBool::new(false),
            clean: Mutex::default(),
        }
    }

    /// Has this process forgotten keys, so that the next one must not go on with its epoch?
    pub(crate) fn has_forgotten(&self) -> bool {
        self.forgot.load(Ordering::Acquire)
    }

    /// This ring is settled: what it gives to others can go after a while. A node that is no member forgets nothing by
    /// itself.
    pub(crate) fn settled(&self, view: &View) {
        if view.current.index_of(&self.me).is_none() {
            return;
        }
        let count = view.current.partitions();
        let held = view.current.partitions_of(&self.me);
        let of_others = (0..count).filter(|partition| held.binary_search(partition).is_err());
        let kept = Kept {
            version: view.version(),
            mine: ranges::join(held.iter().map(|partition| HashRange::of_partition(*partition, count))),
            others: of_others.map(|partition| Span::of_partition(partition, count)).collect(),
            due: Instant::now() + self.after,
        };
        *self.kept.lock() = Some(kept);
    }

    /// The ring is changing: nothing goes any more. Waits for what is going.
    pub(crate) async fn hold(&self) {
        *self.kept.lock() = None;
        drop(self.forgetting.lock().await);
    }

    /// Makes sure that the homes of what is to be forgotten hold all of it: a write that came here while the ring
    /// changed, from a hint or an inbox, may have been in no other place when they compared.
    async fn give(&self, kept: &Kept) -> Result<(), String> {
        let Some(view) = self.follower.view().filter(|view| view.version() == kept.version) else {
            return Err("there is a newer ring".to_owned());
        };
        let mut spans: BTreeMap<NodeId, Vec<Span>> = BTreeMap::new();
        for span in &kept.others {
            if self.engine.knows_keys_in(&[*span], 1) == 0 {
                continue;
            }
            let partition = span.first().partition(view.current.partitions());
            for home in view.current.homes(partition).iter().filter_map(|home| view.current.member(*home)) {
                spans.entry(home.id.clone()).or_default().push(*span);
            }
        }
        for (home, spans) in spans {
            let Some(member) = view.document.member(&home) else { continue };
            let mut exchange = Exchange::giving(&self.copier, &member.address, view.version());
            for span in exchange.differing(&spans, 0).await? {
                exchange.repair(span).await?;
            }
            if exchange.done.pushed > 0 {
                let settle = Request::Repair(Repair::Settle);
                match self.copier.call(&member.address, view.version(), settle).await? {
                    Reply::Acked { reached: Durability::Bucket } => {}
                    other => return Err(format!("{home} answered {other:?}")),
                }
                tracing::info!(%home, records = exchange.done.pushed, "gave it what it lacked");
            }
        }
        Ok(())
    }

    /// Forgets what can go by now. `true` if there was something. Not to be called while a merge goes on.
    ///
    /// # Errors
    /// What went wrong, as a sentence; it is tried again.
    pub(crate) async fn once(&self) -> Result<bool, String> {
        let _forgetting = self.forgetting.lock().await;
        let Some(kept) = self.kept.lock().clone().filter(|kept| Instant::now() >= kept.due) else {
            return Ok(false);
        };
        if !self.engine.index_complete() || self.engine.is_fenced() {
            return Ok(false);
        }
        if (*self.clean.lock()).is_some_and(|(version, at)| version == kept.version && at.elapsed() < LOOK) {
            return Ok(false);
        }
        let known = self.engine.knows_keys_in(&kept.others, 1);
        if known == 0 && self.engine.restriction(&kept.mine).is_empty() {
            *self.clean.lock() = Some((kept.version, Instant::now()));
            return Ok(false);
        }
        self.give(&kept).await?;
        if !self.engine.flushed().await {
            return Err("the bucket does not take what is to be forgotten".to_owned());
        }
        if known > 0 {
            // Each time: what was forgotten before may have come back since, and new versions of it been minted.
            let epoch = self.hints.lease_apart().await.map_err(|e| e.to_string())?;
            self.forgot.store(true, Ordering::Release);
            self.engine.mint_under(epoch);
        }
        let still = || self.follower.view().is_some_and(|view| view.version() == kept.version);
        self.engine.forget_keys_in(&kept.others, still).await;
        if self.engine.knows_keys_in(&kept.others, 1) > 0 {
            // The ring is another now, or some have not been flushed.
            return Ok(false);
        }
        let mut restriction = None;
        // What is flushed after this look may be of another ring.
        if still() {
            restriction = Some(self.engine.restriction(&kept.mine));
        }
        let Some(restriction) = restriction.filter(|_| still()) else { return Ok(false) };
        let change = || {
            // Something may have come in late; the index must not know of what can't be read.
            let none = self.engine.index_complete() && self.engine.knows_keys_in(&kept.others, 1) == 0;
            if none {
                self.engine.restrict(&restriction);
            }
            none
        };
        match self.ledger.change(&restriction.needless, change).await {
            Committed::Yes => {
                tracing::info!(version = kept.version, "forgot the partitions that others hold now");
                Ok(true)
            }
            Committed::NotYet | Committed::TakenOver => Err("the manifest could not be written".to_owned()),
        }
    }
}
