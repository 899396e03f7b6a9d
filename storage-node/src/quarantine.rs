//! What becomes of damage (docs/decisions/0020): an object that can't be read right, or is gone, is quarantined, and what
//! it held is fetched from the other homes.
//!
//! The order matters: first this node has no vote on the hashes that the object held, then it mints under a new epoch,
//! then it forgets. It votes again once so many other homes have been compared with that every acknowledged write is among
//! what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{StreamExt, iter};
use parking_lot::Mutex;

use cartwheel_bucket::{BucketError, SharedBucket};
use cartwheel_cluster::membership::{Follower, View};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::{Quarantined, SegmentEntry};
use cartwheel_core::merkle::Span;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::ranges::{self, HashRange};
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{Reply, Request};
use cartwheel_segments::verify::Verification;

use crate::catch_up::{needed, other_homes};
use crate::copier::Copier;
use crate::engine::Report;
use crate::epoch::{Incarnation, LeaseError};
use crate::hints::Hints;
use crate::ledger::{Committed, Ledger};
use crate::repair::exchange::Exchange;
use crate::repair::image::Image;
use crate::segments::{Segment, salvage};
use crate::standing::Stand;

/// The pause before what could not be done is tried again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How often a partition is compared with a home in one go until nothing differs: what is given may bring back a deletion
/// there, which is to be fetched then.
const PASSES: usize = 8;
/// Partitions that are compared with one home at the same time.
const AT_ONCE: usize = 16;
/// How often a key is looked for that seems to lack something, and the pause in between: it may be on its way from one
/// place to another.
const LOOKS: usize = 3;
const LOOK_PAUSE: Duration = Duration::from_millis(300);

/// What quarantining needs.
pub(crate) struct Quarantine {
    pub(crate) me: Incarnation,
    pub(crate) copier: Copier,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) stand: Arc<Stand>,
    pub(crate) follower: Follower,
    pub(crate) bucket: SharedBucket,
    /// How many there are in this cluster.
    pub(crate) partitions: u32,
    /// Has this process forgotten anything, so that the next one must not go on with its epoch?
    pub(crate) forgot: AtomicBool,
    /// Hints for this node that are damaged, and what was read of them.
    pub(crate) damaged_hints: Mutex<BTreeMap<String, Bytes>>,
}

impl std::fmt::Debug for Quarantine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quarantine").field("node", &self.me.node).finish_non_exhaustive()
    }
}

/// The other homes that were compared with, per partition.
type Compared = BTreeMap<u32, BTreeSet<NodeId>>;

/// How far the index is loaded.
#[derive(Debug)]
struct Loading {
    segments: Vec<Arc<Segment>>,
    done: usize,
    is_complete: bool,
    /// Of these it is taken what can still be read, once it is known what is not held anyway.
    salvage: Vec<Arc<Segment>>,
}

impl Quarantine {
    /// Takes up what earlier processes found out and could not make good. Called before this one answers or mints anything.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) async fn resume(&self) -> Result<(), LeaseError> {
        let lost = self.ledger.lost();
        if lost.is_empty() {
            return Ok(());
        }
        self.stand.set_lost(self.partitions_in(&lost));
        self.renew_epoch().await
    }

    /// Is this process to end as if it had not ended cleanly?
    pub(crate) fn has_forgotten(&self) -> bool {
        self.forgot.load(Ordering::Acquire)
    }

    /// An object with hints for this node can't be read: whatever it held, this node may lack.
    pub(crate) fn lose_hints(&self, object: String, bytes: Bytes) {
        {
            let mut hints = self.damaged_hints.lock();
            hints.insert(object, bytes);
            // Under the lock: what was mended just now must not take that back.
            self.stand.add_lost(0..self.partitions);
        }
        self.copier.engine.ring();
    }

    /// Loads the clock index, deals with what is found to be damaged, and fetches what was lost, until the process ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let engine = Arc::clone(&self.copier.engine);
        let mut loading = self.load_anew(Vec::new());
        let mut compared = Compared::new();
        let mut pause = FIRST_PAUSE;
        let mut said = String::new();
        loop {
            let before = loading.done;
            let wait = match self.once(&mut loading, &mut compared).await {
                Ok(true) => {
                    pause = FIRST_PAUSE;
                    continue;
                }
                Ok(false) => Duration::MAX,
                Err(why) => {
                    if why == said {
                        tracing::debug!(%why, "not all that this node holds can be read or made good yet");
                    } else {
                        tracing::warn!(%why, "not all that this node holds can be read or made good yet");
                        said = why;
                    }
                    // A bucket that answers now and then is not left alone for long.
                    pause = if loading.done > before { FIRST_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
                    pause
                }
            };
            if engine.is_fenced() {
                return;
            }
            drop(tokio::time::timeout(wait, engine.rung()).await);
        }
    }

    /// One step; `false` if there is nothing to be done.
    ///
    /// # Errors
    /// What has to be tried again, as a sentence.
    async fn once(&self, loading: &mut Loading, compared: &mut Compared) -> Result<bool, String> {
        let engine = &self.copier.engine;
        let hints = self.damaged_hints.lock().first_key_value().map(|(object, _)| object.clone());
        if let Some(object) = hints {
            self.give_up_hints(&object).await?;
            compared.clear();
            return Ok(true);
        }
        if let Some(report) = engine.report() {
            let given_up = match &report {
                Report::Object { object, bytes } => self.look_at(object, *bytes).await?,
                Report::Key(hash) => self.look_for(*hash).await?,
            };
            engine.clear(&report);
            compared.clear();
            // Also if nothing is wrong with it: the index may not be loaded from it.
            loading.salvage.extend(given_up);
            if !engine.index_complete() {
                *loading = self.load_anew(std::mem::take(&mut loading.salvage));
            }
            return Ok(true);
        }
        if !loading.is_complete {
            match engine.go_on_loading(&loading.segments, &mut loading.done).await {
                Ok(()) => {
                    loading.is_complete = true;
                    tracing::debug!(segments = loading.segments.len(), "the clock index is complete");
                }
                Err(_) if engine.report().is_some() => {}
                Err(error) => return Err(format!("the clock index: {error}")),
            }
            return Ok(true);
        }
        if let Some(segment) = loading.salvage.pop() {
            self.salvage(&segment).await;
            return Ok(true);
        }
        if !self.ledger.lost().is_empty() {
            self.mend(compared).await?;
            return Ok(true);
        }
        Ok(false)
    }

    fn load_anew(&self, salvage: Vec<Arc<Segment>>) -> Loading {
        let segments = self.copier.engine.segments.all().to_vec();
        Loading { segments, done: 0, is_complete: false, salvage }
    }

    fn partitions_in(&self, lost: &[HashRange]) -> BTreeSet<u32> {
        let touches = |partition: &u32| {
            !ranges::common(lost, &[HashRange::of_partition(*partition, self.partitions)]).is_empty()
        };
        (0..self.partitions).filter(touches).collect()
    }

    /// Looks whether an object is damaged in the bucket, or was on its way only. Gives the segment that is given up.
    async fn look_at(&self, object: &str, bytes: u64) -> Result<Option<Arc<Segment>>, String> {
        let engine = &self.copier.engine;
        let found = engine.find(object);
        if found.is_none() && !self.ledger.is_own(object) {
            return Ok(None);
        }
        let entry = found.as_ref().and_then(|segment| segment.known());
        let wrong = match self.verify(object, bytes, entry).await {
            Ok(wrong) => wrong,
            Err(error @ BucketError::NotFound { .. }) => Some(error.to_string()),
            Err(error) => return Err(format!("{object}: {error}")),
        };
        let Some(wrong) = wrong else {
            tracing::warn!(%object, "what was read of it was damaged, but it is not");
            if let Some(segment) = &found {
                engine.reopen(segment);
            }
            return Ok(None);
        };
        // A merge may have taken its place while it was read, and a sweep deleted it.
        let Some(segment) =
            engine.find(object).filter(|now| found.as_ref().is_some_and(|f| Arc::ptr_eq(f, now)))
        else {
            if found.is_none() && !self.ledger.names(object) {
                // One that turned up late: what it held was acknowledged by another process of this name.
                let lost = vec![HashRange::ALL];
                self.quarantine(Quarantined { object: object.to_owned(), bytes, lost }, &wrong, || {})
                    .await?;
            }
            return Ok(None);
        };
        let is_grave = engine.is_grave(&segment);
        let lost = match segment.known() {
            _ if is_grave => Vec::new(),
            Some(entry) => entry.ranges(),
            None => vec![HashRange::ALL],
        };
        let give_up =
            || if is_grave { engine.give_up_grave(&segment) } else { engine.give_up(Some(&segment)) };
        self.quarantine(Quarantined { object: object.to_owned(), bytes, lost }, &wrong, give_up).await?;
        Ok(Some(segment))
    }

    /// Reads an object from one end to the other; gives the first thing that is wrong.
    async fn verify(
        &self,
        object: &str,
        bytes: u64,
        entry: Option<&SegmentEntry>,
    ) -> Result<Option<String>, BucketError> {
        let (bucket, seed) = (&*self.bucket, Some(self.copier.hash_seed));
        let mut verification = Verification::open(bucket, object, bytes, entry, seed).await?;
        while let Some(step) = verification.step(bucket).await? {
            self.copier.pace.turn(usize::try_from(step.bytes).unwrap_or(usize::MAX)).await;
        }
        Ok(verification.finish().damages.first().map(ToString::to_string))
    }

    /// Looks for what hides a version that the index knows of. Gives the segment that is given up.
    async fn look_for(&self, hash: KeyHash) -> Result<Option<Arc<Segment>>, String> {
        let engine = &self.copier.engine;
        for _ in 0..LOOKS {
            match engine.lacks(hash).await {
                Ok(true) => tokio::time::sleep(LOOK_PAUSE).await,
                Ok(false) => return Ok(None),
                // What is damaged is noted, and comes first.
                Err(error) if error.damaged_object().is_some() => return Ok(None),
                Err(error) => return Err(format!("the key of hash {hash}: {error}")),
            }
        }
        for segment in engine.segments.all().iter().filter(|segment| segment.covers(hash)) {
            if let Some(segment) = self.look_at(&segment.object, segment.bytes).await? {
                return Ok(Some(segment));
            }
        }
        let lost = vec![HashRange { first: hash, last: hash }];
        let why = format!("a version of the key of hash {hash} is in no segment");
        let nameless = Quarantined { object: String::new(), bytes: 0, lost };
        self.quarantine(nameless, &why, || engine.give_up(None)).await?;
        Ok(None)
    }

    /// Quarantines an object: with `give_up` nothing of it is read any more.
    async fn quarantine(&self, object: Quarantined, why: &str, give_up: impl FnOnce()) -> Result<(), String> {
        if self.me.replaced_by(&*self.bucket).await.map_err(|e| e.to_string())?.is_some() {
            self.copier.engine.fence();
            return Err("another process has taken over".to_owned());
        }
        self.stand.add_lost(self.partitions_in(&object.lost));
        self.renew_epoch().await.map_err(|e| e.to_string())?;
        tracing::error!(
            object = %object.object,
            bytes = object.bytes,
            %why,
            "quarantined; the other homes are asked for what it held"
        );
        match self.ledger.quarantine(object, give_up).await {
            // The next manifest names it so; until then a process that starts finds out for itself.
            Committed::Yes | Committed::NotYet => Ok(()),
            Committed::TakenOver => Err("another process has taken over".to_owned()),
        }
    }

    /// A dot names one write for ever (P3), and is counted from what this node knows of the key: who forgets mints under
    /// another epoch from then on.
    async fn renew_epoch(&self) -> Result<(), LeaseError> {
        let epoch = self.hints.lease_apart().await?;
        self.forgot.store(true, Ordering::Release);
        self.copier.engine.mint_under(epoch);
        Ok(())
    }

    /// Takes what can still be read of a segment that was given up, as writes are taken.
    async fn salvage(&self, segment: &Arc<Segment>) {
        let (bucket, seed) = (&self.bucket, self.copier.hash_seed);
        let Ok(blocks) = salvage::blocks(bucket, segment).await else { return };
        let mut taken = 0;
        for block in blocks {
            let Ok(records) = salvage::records(bucket, segment, block, seed).await else { continue };
            for record in records {
                self.copier.pace.turn(record.len()).await;
                match self.copier.keep(&record, Durability::Memory).await {
                    Ok(_) => taken += 1,
                    // The other homes have it.
                    Err(error) => tracing::debug!(%error, "a record of a damaged segment was not taken"),
                }
            }
        }
        tracing::info!(object = %segment.object, records = taken, "took what can still be read of it");
    }

    /// Notes in the manifest that hints were lost, and moves what is there of them out of the way of later ones.
    async fn give_up_hints(&self, object: &str) -> Result<(), String> {
        let Some(bytes) = self.damaged_hints.lock().get(object).cloned() else { return Ok(()) };
        let kept = format!("nodes/{}/quarantine/{object}", self.me.node);
        let lost = vec![HashRange::ALL];
        let entry = Quarantined { object: kept.clone(), bytes: bytes.len() as u64, lost };
        // Also where an earlier process has come so far: it may not have moved them.
        if self.ledger.quarantine(entry, || {}).await != Committed::Yes {
            return Err("the manifest does not say yet that hints are damaged".to_owned());
        }
        self.bucket.put(&kept, bytes).await.map_err(|e| e.to_string())?;
        if self.me.replaced_by(&*self.bucket).await.map_err(|e| e.to_string())?.is_none() {
            self.bucket.delete(object).await.map_err(|e| e.to_string())?;
        }
        self.damaged_hints.lock().remove(object);
        Ok(())
    }

    /// Compares what is left with the other homes of what was lost, until enough of them have given what they hold.
    async fn mend(&self, compared: &mut Compared) -> Result<(), String> {
        let Some(view) = self.follower.view() else { return Err("no ring is known yet".to_owned()) };
        let mut homes: BTreeMap<NodeId, (String, Vec<u32>)> = BTreeMap::new();
        let mut held = view.current.partitions_of(&self.me.node);
        held.extend(view.next.partitions_of(&self.me.node));
        let lost: BTreeSet<u32> =
            self.partitions_in(&self.ledger.lost()).into_iter().filter(|p| held.contains(p)).collect();
        for partition in &lost {
            let known = compared.entry(*partition).or_default();
            for (node, address) in other_homes(&view, *partition, &self.me.node) {
                if !known.contains(&node) {
                    homes.entry(node).or_insert((address, Vec::new())).1.push(*partition);
                }
            }
        }
        let comparing = homes.iter().map(|(node, (address, partitions))| {
            let view = &view;
            async move { (node, self.compare(view, node, address, partitions).await) }
        });
        let mut wrong = Vec::new();
        for (node, (partitions, outcome)) in join_all(comparing).await {
            for partition in partitions {
                compared.entry(partition).or_default().insert(node.clone());
            }
            wrong.extend(outcome.err().map(|why| format!("{node}: {why}")));
        }
        let lacks = |partition: &u32| {
            compared.get(partition).map_or(0, BTreeSet::len) < needed(&view, *partition, &self.me.node)
        };
        let left: BTreeSet<u32> = lost.iter().copied().filter(lacks).collect();
        let is_done = left.is_empty();
        {
            let hints = self.damaged_hints.lock();
            if !hints.is_empty() {
                return Ok(());
            }
            self.stand.set_lost(left);
        }
        if !is_done {
            return Err(format!("other homes can't be compared with yet: {}", wrong.join("; ")));
        }
        if !self.copier.engine.flushed().await {
            return Err("the bucket does not take what came from the other homes".to_owned());
        }
        match self.ledger.note_mended().await {
            Committed::Yes => {
                tracing::info!(partitions = lost.len(), "what was lost with damaged objects is here again");
                Ok(())
            }
            Committed::NotYet | Committed::TakenOver => Err("the manifest does not say so yet".to_owned()),
        }
    }

    /// Compares these partitions with a home; gives those that it has nothing more of. What it left in the bucket answers
    /// for one that ended in good order.
    async fn compare(
        &self,
        view: &View,
        node: &NodeId,
        address: &str,
        partitions: &[u32],
    ) -> (Vec<u32>, Result<(), String>) {
        let mut done = Vec::new();
        let outcome = self.exchange(view, address, partitions, &mut done).await;
        let Err(why) = outcome else { return (done, Ok(())) };
        let left: Vec<u32> = partitions.iter().copied().filter(|p| !done.contains(p)).collect();
        match self.bring(node, &left).await {
            Ok(true) => {
                done.extend(left);
                (done, Ok(()))
            }
            Ok(false) => (done, Err(why)),
            Err(error) => (done, Err(format!("{why}; {error}"))),
        }
    }

    async fn exchange(
        &self,
        view: &View,
        address: &str,
        partitions: &[u32],
        done: &mut Vec<u32>,
    ) -> Result<(), String> {
        // It may be taking what others kept for it; once it counts it has that.
        let probe = Request::Probe { hinted: false };
        match self.copier.call(address, view.version(), probe).await? {
            Reply::Standing(Standing::Counting) => {}
            other => return Err(format!("it does not count yet: {other:?}")),
        }
        let mut left = partitions.to_vec();
        for _ in 0..PASSES {
            let mut roots = Exchange::new(&self.copier, address, view.version());
            let spans: Vec<Span> = left.iter().map(|p| Span::of_partition(*p, self.partitions)).collect();
            let differing = roots.differing(&spans, 0).await?;
            let (unlike, alike): (Vec<_>, Vec<_>) =
                left.into_iter().zip(spans).partition(|(_, span)| differing.binary_search(span).is_ok());
            done.extend(alike.into_iter().map(|(partition, _)| partition));
            let repairs = unlike.into_iter().map(|(partition, span)| async move {
                let mut exchange = Exchange::new(&self.copier, address, view.version());
                let outcome = exchange.repair(span).await;
                (partition, exchange.done.differing, outcome)
            });
            // Most of the time each of them waits for writes in flight.
            let mut repairing = iter(repairs).buffer_unordered(AT_ONCE);
            left = Vec::new();
            while let Some((partition, differing, outcome)) = repairing.next().await {
                outcome?;
                let list = if differing > 0 { &mut left } else { &mut *done };
                list.push(partition);
            }
            if left.is_empty() {
                return Ok(());
            }
            left.sort_unstable();
        }
        Err(format!("it still differs in {} partitions", left.len()))
    }

    /// Takes what a home that can't be asked has in the bucket; was that all it acknowledged?
    async fn bring(&self, node: &NodeId, partitions: &[u32]) -> Result<bool, String> {
        let image = Image::open(&self.bucket, node).await.map_err(|e| e.to_string())?;
        if !image.is_whole {
            return Ok(false);
        }
        let mut whole = true;
        for partition in partitions {
            let span = Span::of_partition(*partition, self.partitions);
            let brought = image.bring(&self.copier, span).await.map_err(|e| e.to_string())?;
            whole &= brought.damaged == 0;
        }
        Ok(whole)
    }
}
