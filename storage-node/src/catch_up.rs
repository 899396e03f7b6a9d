//! Catching up: how a home that was away comes to count again.
//!
//! Every process that starts was away; so was one that did not run for a while, or for which somebody kept hints. The
//! order matters:
//!
//! 1. Every live node is told that this one is back. From then on it keeps no new hint without asking here first.
//! 2. What live nodes keep in memory is taken, then what lies under `hints/{me}/` in the bucket: memory first, for
//!    what is uploaded in between is then seen twice, never missed. Holders that are dead left theirs there.
//! 3. A process that lost its disk asks the other homes for what came in since it last held everything. It has no
//!    vote on a partition until so many of them have answered that every acknowledged write is among what they hold.
//!    For a home that can't be asked, what it has in the bucket answers: all of it, if it ended cleanly.
//! 4. Now it counts. Only once everything is in its own segments the hints are let go of. A process that kept its
//!    disk, but did not end cleanly, asks the other homes now: it may lack what was acknowledged from memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use cartwheel_bucket::{BucketError, SharedBucket, list_all};
use cartwheel_cluster::gossip::GossipHandle;
use cartwheel_cluster::membership::{self, Follower, View};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::merkle::Span;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::ring::Member;
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{Reply, Request};

use crate::copier::{Copier, PAGE_BYTES};
use crate::disk::Disk;
use crate::epoch::Incarnation;
use crate::hints::Hints;
use crate::loss::{Loss, held_object, own};
use crate::quarantine::Quarantine;
use crate::repair::image::{Brought, Image, ImageError};
use crate::segments::hints::hint_prefix;
use crate::segments::records_of;
use crate::standing::Stand;

/// How long a node may take to take note that this one is back.
const GREETING: Duration = Duration::from_secs(1);
/// How long a word of a node may be on its way.
const HEARSAY: Duration = Duration::from_secs(2);
/// The pause before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(250);
/// How often the bucket is looked at for hints that nobody spoke of: a gateway that reaches no node leaves some.
const LOOK: Duration = Duration::from_secs(30);
/// How long one object of hints may take to read.
const GETTING: Duration = Duration::from_secs(20);
/// How many objects of hints are looked at then.
const LOOKED_AT: usize = 1000;
/// How long a process that lost nothing waits for the bucket before it counts without having looked there.
const BUCKET_PATIENCE: Duration = Duration::from_secs(2);
/// How long the ring may say that this node is elsewhere: a process that takes the name over says so first, and then
/// leases an epoch.
const ELSEWHERE: Duration = Duration::from_secs(10);
/// How long one look into the bucket may take for such a process.
const LOOKING: Duration = Duration::from_secs(1);

/// What catching up needs.
pub(crate) struct CatchUp {
    pub(crate) me: Incarnation,
    /// Where this process is called.
    pub(crate) address: String,
    pub(crate) seams: Seams,
    pub(crate) stand: Arc<Stand>,
    pub(crate) copier: Copier,
    pub(crate) follower: Follower,
    pub(crate) gossip: GossipHandle,
    pub(crate) bucket: SharedBucket,
    pub(crate) disk: Option<Arc<dyn Disk>>,
    /// When each node was last told that this one is back.
    pub(crate) told: Mutex<BTreeMap<NodeId, Instant>>,
    /// Hints in the bucket that this process holds, and has not let go of yet.
    pub(crate) absorbed: Mutex<BTreeSet<String>>,
    /// Hints in the bucket that can't be read.
    pub(crate) damaged: Mutex<BTreeSet<String>>,
    /// What this node keeps for others; here for the newest epoch that it has leased.
    pub(crate) hints: Arc<Hints>,
    /// Set once this process holds everything that was promised, and has said so.
    pub(crate) whole: Arc<AtomicBool>,
    pub(crate) loss: Loss,
    pub(crate) quarantine: Arc<Quarantine>,
}

/// A node that was told, up to which generation it hands over, and how many keys.
#[derive(Debug, Clone)]
struct Told {
    address: String,
    generation: u64,
    keys: u64,
    urgent: bool,
}

/// What a round took in and is to let go of.
#[derive(Debug, Default)]
struct Taken {
    holders: Vec<Told>,
    objects: Vec<String>,
    /// The bucket could not be looked at.
    without_bucket: bool,
    /// The record taken in last.
    last: Option<Bytes>,
}

/// What catching up remembers between rounds.
#[derive(Debug, Default)]
struct Progress {
    /// The bucket was looked at since the process started.
    looked: bool,
    /// Other homes that have said what they hold, per partition.
    consulted: BTreeMap<u32, BTreeSet<NodeId>>,
    /// The bucket has been told that this process holds everything that was promised.
    told: bool,
    /// All that may have been lost is here again.
    whole: bool,
    /// When the objects of homes that could not be asked were last looked at.
    looked_at: BTreeMap<NodeId, Instant>,
}

impl CatchUp {
    /// Catches up whenever that is needed, until the process ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut progress = Progress::default();
        // Whoever knows no ring can tell nobody that it is back.
        if self.follower.at_least(1).await.is_none() {
            return;
        }
        let (mut done, mut fulfilled) = (0, 0);
        let mut look_at = Instant::now() + LOOK;
        loop {
            let (asked, wished) = (self.stand.asked(), self.stand.wished());
            if asked != done || wished != fulfilled || self.stand.level() != Standing::Counting {
                if let Some(taken) = self.round(asked, &mut progress).await {
                    (done, fulfilled) = (asked, wished);
                    self.let_go(asked, taken).await;
                }
                continue;
            }
            let pause = if progress.whole { LOOK } else { PAUSE };
            tokio::select! {
                biased;
                () = self.stand.woken() => {}
                () = tokio::time::sleep_until(look_at.min(Instant::now() + pause)) => {
                    tokio::select! {
                        biased;
                        () = self.asked_again(done) => {}
                        () = self.replace_lost(&mut progress) => {}
                    }
                    if Instant::now() >= look_at {
                        look_at = Instant::now() + LOOK;
                        if !self.absorbed.lock().is_empty() {
                            // What could not be deleted when it was taken.
                            self.stand.ask();
                        }
                        self.look().await;
                    }
                }
            }
        }
    }

    /// Listens to what the others say, until the process ends: who keeps hints for this node tells it himself, but
    /// may not reach it; and a node that reached nobody does not know what was kept for it meanwhile.
    pub(crate) async fn listen(self: Arc<Self>) {
        let (mut seen, mut alone, mut looked) = (0, false, 0);
        let mut elsewhere_since: Option<Instant> = None;
        loop {
            // Looked at again after a while: what is said now may be hearsay, or come while this node catches up.
            if let Ok(changes) = tokio::time::timeout(HEARSAY, self.gossip.changed(seen)).await {
                seen = changes;
            }
            let Some(view) = self.follower.view() else { continue };
            let others = self.gossip.alive().iter().filter(|node| **node != self.me.node).count();
            let elsewhere = |member: &Member| member.address != self.address;
            let moved = view.document.member(&self.me.node).is_some_and(elsewhere);
            if view.version() > looked && (!moved || self.step_down_if_replaced().await) {
                looked = view.version();
            }
            elsewhere_since = elsewhere_since.or(Some(Instant::now())).filter(|_| moved);
            if elsewhere_since.is_some_and(|since| since.elapsed() > ELSEWHERE) {
                elsewhere_since = None;
                self.correct_address().await;
            }
            let was_alone = std::mem::replace(&mut alone, others == 0 && view.document.members.len() > 1);
            let believed_away = self.gossip.away_from_me().into_iter().any(|node| {
                // Its word may be from before it was told.
                self.told.lock().get(&node).is_none_or(|told| told.elapsed() > HEARSAY)
            });
            if (believed_away || (was_alone && !alone)) && self.stand.level() == Standing::Counting {
                tracing::info!(
                    believed_away,
                    was_alone,
                    "others may have stood in for this node; catching up"
                );
                self.stand.demote();
            }
        }
    }

    /// Does the node count? `hinted`: the caller had others stand in for it, so it asks around first.
    pub(crate) async fn probe(&self, hinted: bool) -> Standing {
        if hinted && self.stand.level() == Standing::Counting {
            let (told, alive, missing) = self.tell_all(&BTreeMap::new()).await;
            // Who could not be asked may keep something, and who keeps it may have been asked by another before.
            if told.values().any(|told| told.urgent) || missing.iter().any(|node| alive.contains(node)) {
                self.stand.demote();
            } else if told.values().any(|told| told.keys > 0) {
                self.stand.ask();
            }
            self.look().await;
        }
        self.stand.counting().await;
        self.stand.level()
    }

    /// Is this node a member, or to be one? Nobody reads from one that is not: hints that are left for it are for those to
    /// give away that are.
    fn is_member(&self) -> bool {
        self.follower.view().is_some_and(|view| view.document.member(&self.me.node).is_some())
    }

    /// Catches up if the bucket holds hints.
    async fn look(&self) {
        if !self.is_member() {
            return;
        }
        let listed = in_brief(self.bucket.list(&hint_prefix(&self.me.node), None, LOOKED_AT)).await;
        match listed {
            Ok(Ok(page)) => {
                let unknown = {
                    let (absorbed, damaged) = (self.absorbed.lock(), self.damaged.lock());
                    let known = |key: &String| absorbed.contains(key) || damaged.contains(key);
                    page.objects.iter().any(|object| !known(&object.key))
                };
                if unknown {
                    self.stand.demote();
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "can't look for hints in the bucket"),
            Err(error) => tracing::debug!(%error, "can't look for hints in the bucket"),
        }
    }

    /// One round; `None` if it has to begin anew.
    async fn round(&self, asked: u64, progress: &mut Progress) -> Option<Taken> {
        // Who was stopped for long may have been given up.
        self.step_down_if_replaced().await;
        if self.copier.engine.is_fenced() {
            std::future::pending::<()>().await;
        }
        let told = self.come_back(asked).await?;
        if !self.stand.absorb(asked) {
            return None;
        }
        let mut taken = Taken { holders: told.into_values().collect(), ..Taken::default() };
        let view = self.follower.view()?;
        for holder in taken.holders.iter().filter(|holder| holder.keys > 0 && !removed(Rule::PullHints)) {
            match self.take_from(holder, view.version()).await {
                Ok(last) => taken.last = last.or(taken.last.take()),
                Err(error) => {
                    tracing::warn!(%error, "can't take hints yet; trying again");
                    tokio::time::sleep(PAUSE).await;
                    return None;
                }
            }
        }
        // Who could not be told may be gone, and have left hints in the bucket alone.
        let all_told = taken.holders.len() + 1 >= view.document.members.len();
        self.take_from_bucket(&mut taken, progress, all_told).await;
        // What was never on the disk was promised to nobody; it can come back later.
        if let Loss::Some { disk: true, .. } = self.loss {
            self.replace_lost(progress).await;
        } else {
            // Before it counts: who is killed before this is said is taken for one that lost its disk.
            self.tell_whole(progress).await;
        }
        if !self.stand.count(asked) {
            return None;
        }
        tracing::info!(
            rounds = self.stand.rounds(),
            holders = taken.holders.iter().filter(|holder| holder.keys > 0).count(),
            objects = taken.objects.len(),
            "caught up"
        );
        Some(taken)
    }

    /// Tells every live node that this one is back, until all know it; `None` if asked to begin anew meanwhile.
    async fn come_back(&self, asked: u64) -> Option<BTreeMap<NodeId, Told>> {
        let mut told: BTreeMap<NodeId, Told> = BTreeMap::new();
        let mut waited = 0;
        loop {
            let (more, alive, missing) = self.tell_all(&told).await;
            told.extend(more);
            let missing: Vec<NodeId> = missing.into_iter().filter(|node| alive.contains(node)).collect();
            if missing.is_empty() || removed(Rule::TellAll) {
                return Some(told);
            }
            if self.stand.asked() != asked {
                return None;
            }
            waited += 1;
            if waited % 20 == 0 {
                tracing::warn!(?missing, "these nodes live but can't be told that this one is back");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Tells all that were not told yet; with that come the nodes that anybody believes alive, and those that could
    /// not be told.
    async fn tell_all(
        &self,
        told: &BTreeMap<NodeId, Told>,
    ) -> (BTreeMap<NodeId, Told>, BTreeSet<NodeId>, Vec<NodeId>) {
        let mut alive: BTreeSet<NodeId> = self.gossip.alive().into_iter().collect();
        let Some(view) = self.follower.view() else { return (BTreeMap::new(), alive, Vec::new()) };
        let others: Vec<_> = view
            .document
            .members
            .iter()
            .filter(|member| member.id != self.me.node && !told.contains_key(&member.id))
            .collect();
        let request = || Request::ComeBack { home: self.me.node.clone() };
        let calls = others
            .iter()
            .map(|member| self.copier.call_within(&member.address, view.version(), request(), GREETING));
        let (mut more, mut missing) = (BTreeMap::new(), Vec::new());
        for (member, answer) in others.iter().zip(join_all(calls).await) {
            match answer {
                Ok(Reply::Handover { generation, keys, urgent, alive: others }) => {
                    self.told.lock().insert(member.id.clone(), Instant::now());
                    let told = Told { address: member.address.clone(), generation, keys, urgent };
                    more.insert(member.id.clone(), told);
                    alive.extend(others);
                }
                Ok(other) => {
                    tracing::debug!(node = %member.id, ?other, "not told that this node is back");
                    missing.push(member.id.clone());
                }
                Err(_) => missing.push(member.id.clone()),
            }
        }
        (more, alive, missing)
    }

    /// Takes what a holder keeps in memory.
    async fn take_from(&self, holder: &Told, version: u64) -> Result<Option<Bytes>, String> {
        let (home, generation) = (&self.me.node, holder.generation);
        let page = |after| Request::Hints { home: home.clone(), generation, after, bytes: PAGE_BYTES };
        self.copier.pull_pages(&holder.address, version, page).await
    }

    /// Takes what lies in the bucket, trying until it answers; but a process that has looked before, lost nothing,
    /// and took what every other member has in memory does not stop counting for a bucket that is out of reach.
    async fn take_from_bucket(&self, taken: &mut Taken, progress: &mut Progress, all_told: bool) {
        let give_up = Instant::now() + BUCKET_PATIENCE;
        loop {
            let taking = self.take_objects(taken, progress.looked);
            match taking.await {
                Ok(()) => {
                    progress.looked = true;
                    return;
                }
                Err(error) if all_told && progress.looked && Instant::now() >= give_up => {
                    tracing::warn!(%error, "the bucket can't be looked at for hints; counting without");
                    taken.without_bucket = true;
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "can't take hints from the bucket yet; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn take_objects(&self, taken: &mut Taken, brief: bool) -> Result<(), String> {
        if !self.is_member() {
            return Ok(());
        }
        let prefix = hint_prefix(&self.me.node);
        let listing = list_all(&*self.bucket, &prefix);
        let listed = if brief { in_brief(listing).await? } else { listing.await };
        let mut objects = listed.map_err(|e| e.to_string())?;
        if removed(Rule::PullHintObjects) {
            objects.clear();
        }
        for object in objects {
            if taken.objects.contains(&object.key) {
                continue;
            }
            if self.absorbed.lock().contains(&object.key) {
                taken.objects.push(object.key);
                continue;
            }
            let getting = tokio::time::timeout(GETTING, self.bucket.get(&object.key));
            let bytes = match getting.await.map_err(|_| "the bucket did not answer in time".to_owned())? {
                Ok(bytes) => bytes,
                Err(BucketError::NotFound { .. }) => continue,
                Err(error) => return Err(error.to_string()),
            };
            self.copier.pace.turn(bytes.len()).await;
            match records_of(&bytes) {
                Ok(records) => {
                    for record in records {
                        self.copier.keep(&record, Durability::Memory).await?;
                        taken.last = Some(record);
                    }
                    self.absorbed.lock().insert(object.key.clone());
                    taken.objects.push(object.key);
                }
                // Its records are at other homes, or their holders: those are asked before this node votes.
                Err(error) => {
                    if self.damaged.lock().insert(object.key.clone()) {
                        tracing::error!(%error, object = %object.key, "these hints are damaged");
                        self.quarantine.lose_hints(object.key, bytes);
                    }
                }
            }
        }
        Ok(())
    }

    /// Asks the other homes for what this process may have lost, and says on which partitions it has no vote yet.
    async fn replace_lost(&self, progress: &mut Progress) {
        let disk_lost = matches!(self.loss, Loss::Some { disk: true, .. });
        if progress.whole || (!disk_lost && !self.tell_whole(progress).await) {
            return;
        }
        if let (Loss::Some { age, disk }, Some(view)) = (&self.loss, self.follower.view()) {
            // Those to come too: what it holds of them counts for the ring that is next, and is read from it soon.
            let mut partitions = view.current.partitions_of(&self.me.node);
            partitions.extend(view.next.partitions_of(&self.me.node));
            partitions.sort_unstable();
            partitions.dedup();
            let mut work: BTreeMap<NodeId, (String, Vec<u32>)> = BTreeMap::new();
            for partition in &partitions {
                let asked = progress.consulted.entry(*partition).or_default();
                for member in other_homes(&view, *partition, &self.me.node) {
                    if !asked.contains(&member.0) {
                        work.entry(member.0).or_insert((member.1, Vec::new())).1.push(*partition);
                    }
                }
            }
            let pulls = work.into_iter().map(|(node, (address, partitions))| {
                let view = &view;
                async move {
                    let pulled = self.pull_all(&address, view.version(), &partitions, *age).await;
                    (node, partitions, pulled)
                }
            });
            for (node, asked, mut pulled) in join_all(pulls).await {
                let rest: Vec<u32> = asked.into_iter().filter(|p| !pulled.contains(p)).collect();
                if *disk && !rest.is_empty() && self.bring(&node, &rest, &view, progress).await {
                    pulled.extend(rest);
                }
                for partition in pulled {
                    progress.consulted.entry(partition).or_default().insert(node.clone());
                }
            }
            let lacks = |partition: &u32| {
                let needed = needed(&view, *partition, &self.me.node);
                progress.consulted.get(partition).map_or(0, BTreeSet::len) < needed
            };
            let unheld: BTreeSet<u32> = partitions.into_iter().filter(|p| *disk && lacks(p)).collect();
            if !unheld.is_empty() {
                tracing::debug!(partitions = unheld.len(), "not all of what the disk held is here again");
            }
            let waits = !unheld.is_empty();
            self.stand.set_unheld(unheld);
            if waits {
                return;
            }
        }
        progress.whole = self.tell_whole(progress).await;
    }

    /// Takes in what a home that can't be asked has in the bucket of these partitions; was that all it acknowledged?
    async fn bring(&self, node: &NodeId, partitions: &[u32], view: &View, progress: &mut Progress) -> bool {
        let lately = progress.looked_at.get(node).is_some_and(|at| at.elapsed() < LOOK);
        // Before the index is complete all of it would be read, and not only what differs.
        if lately || !self.copier.engine.index_complete() {
            return false;
        }
        progress.looked_at.insert(node.clone(), Instant::now());
        let bringing = async {
            let image = Image::open(&self.bucket, node).await?;
            let mut brought = Brought::default();
            for partition in partitions {
                let span = Span::of_partition(*partition, view.current.partitions());
                brought += image.bring(&self.copier, span).await?;
            }
            Ok::<_, ImageError>((image.is_whole, brought))
        };
        match bringing.await {
            Ok((whole, Brought { leaves, records, bytes, damaged })) => {
                tracing::info!(%node, whole, leaves, records, bytes, damaged, "took in what it has in the bucket");
                whole && damaged == 0
            }
            Err(error) => {
                tracing::warn!(%node, %error, "can't take in what it has in the bucket");
                false
            }
        }
    }

    /// Says in the bucket that everything promised is held here; `false` if that has to be tried again.
    async fn tell_whole(&self, progress: &mut Progress) -> bool {
        // What came from the log, or from other homes, has to be in the bucket first: who loses the disk after this asks
        // nobody for it.
        if !progress.told && in_brief(self.copier.engine.flushed()).await == Ok(true) {
            let object = held_object(&self.me);
            let creating = self.bucket.create(&object, Bytes::from_static(b"\n"));
            progress.told = matches!(in_brief(creating).await, Ok(Ok(_)));
            if let Some(disk) = self.disk.as_deref().filter(|_| progress.told)
                && let Err(error) = own(disk, &self.me, true).await
            {
                tracing::warn!(%error, "can't say on the disk that it holds everything");
            }
        }
        self.whole.fetch_or(progress.told, Ordering::AcqRel);
        progress.told
    }

    /// Copies what came in at the node during the last `age`; returns the partitions that were copied.
    async fn pull_all(&self, address: &str, version: u64, partitions: &[u32], age: Duration) -> Vec<u32> {
        let mut pulled = Vec::new();
        for partition in partitions {
            if let Err(error) = self.copier.pull(address, version, *partition, Some(age)).await {
                tracing::debug!(%error, "can't ask this home what it holds");
                break;
            }
            pulled.push(*partition);
        }
        pulled
    }

    /// Makes sure that what was taken is in this node's own segments, then lets go of it. What stays because that
    /// fails, or because a new round comes first, is taken once more.
    async fn let_go(&self, asked: u64, taken: Taken) {
        let letting_go = async {
            let waits = !removed(Rule::DeleteHintsLater);
            if let Some(last) = taken.last.as_ref().filter(|_| waits) {
                // All that came in before it is in the same memtable or an earlier one.
                while let Err(error) = self.copier.keep(last, Durability::Bucket).await {
                    tracing::warn!(%error, "the hints taken are not in the bucket yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            // What an earlier round took of them may not be there yet either.
            while waits && !taken.objects.is_empty() && !self.copier.engine.flushed().await {
                tokio::time::sleep(PAUSE).await;
            }
            if !taken.objects.is_empty() && self.is_replaced().await {
                return tracing::warn!("another process may have this node's name; its hints are left to it");
            }
            if !taken.objects.is_empty() && self.is_left_out().await {
                return tracing::warn!(
                    "this node may be no member any more; its hints are left to those that are"
                );
            }
            for object in &taken.objects {
                match self.bucket.delete(object).await {
                    Ok(()) => drop(self.absorbed.lock().remove(object)),
                    Err(error) => tracing::warn!(%error, %object, "can't delete hints that were taken"),
                }
            }
            // What holders have in the bucket alone was not seen.
            if taken.without_bucket {
                return;
            }
            let version = self.follower.view().map_or(0, |view| view.version());
            for holder in taken.holders.iter().filter(|holder| holder.keys > 0) {
                let (home, generation) = (self.me.node.clone(), holder.generation);
                let request = Request::TookHints { home, generation };
                if let Err(error) = self.copier.call(&holder.address, version, request).await {
                    tracing::debug!(%error, "a holder was not told that its hints were taken");
                }
            }
        };
        tokio::select! {
            biased;
            () = self.asked_again(asked) => {}
            () = letting_go => {}
        }
    }

    /// Takes part in nothing any more if a newer process has taken this node's name; `false` if that can't be known.
    async fn step_down_if_replaced(&self) -> bool {
        match in_brief(self.me.replaced_by(&*self.bucket)).await {
            Ok(Ok(None)) => true,
            Ok(Ok(Some(epoch))) => {
                tracing::error!(node = %self.me.node, epoch, "another process has taken over; this one steps down");
                self.copier.engine.fence();
                true
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// The ring says that this node is elsewhere. If no newer process has its name, one that is gone said so, and nobody
    /// finds this node until it says where it is.
    async fn correct_address(&self) {
        if !matches!(in_brief(self.me.replaced_by(&*self.bucket)).await, Ok(Ok(None))) {
            return;
        }
        let id = &self.me.node;
        let correcting = membership::correct_address(&*self.bucket, &self.seams, id, &self.address).await;
        match correcting {
            Ok(()) => self.follower.nudge(),
            Err(error) => {
                tracing::warn!(%error, "the ring says that this node is elsewhere, and can't be corrected yet");
            }
        }
    }

    /// Has a newer process taken this node's name, or can that not be known?
    async fn is_replaced(&self) -> bool {
        let newest = Incarnation::newest_lease(&self.me.node, &*self.bucket).await;
        // Looked up after the list was made: this process may lease another epoch meanwhile.
        newest.map_or(true, |newest| newest > self.hints.newest_epoch()) && !removed(Rule::Fence)
    }

    /// Has the newest ring left this node out, or can that not be known? The view that it follows may be seconds old.
    async fn is_left_out(&self) -> bool {
        let Some(view) = self.follower.view() else { return true };
        match membership::read_newest(&*self.bucket, view.version()).await {
            Ok(Some(newest)) => newest.member(&self.me.node).is_none(),
            Ok(None) => !self.is_member(),
            Err(_) => true,
        }
    }

    /// Waits until this node is asked to catch up once more.
    async fn asked_again(&self, asked: u64) {
        while self.stand.asked() == asked {
            self.stand.woken().await;
        }
    }
}

/// A step in the bucket that others must not wait for: a store that hangs would keep this node from catching up.
async fn in_brief<T>(step: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(LOOKING, step).await.map_err(|_| "the bucket did not answer in time".to_owned())
}

pub(crate) fn other_homes(view: &View, partition: u32, me: &NodeId) -> Vec<(NodeId, String)> {
    let homes = view.current.homes(partition).iter().filter_map(|home| view.current.member(*home));
    homes.filter(|member| member.id != *me).map(|m| (m.id.clone(), m.address.to_string())).collect()
}

/// How many of the other homes hold, together, every write that a majority has acknowledged: `N - W + 1`.
pub(crate) fn needed(view: &View, partition: u32, me: &NodeId) -> usize {
    let n = view.current.homes(partition).len();
    let w = n / 2 + 1;
    (n + 1 - w).min(other_homes(view, partition, me).len())
}
