//! Taking over the partitions of a ring change: from the old homes' segments, without copying them, and what those do
//! not say from the old homes themselves.
//!
//! Which nodes to borrow segments from does not matter for what this node holds in the end: every old home that is not
//! dead is compared with afterwards, and of the dead ones what they left in the bucket is read. So every write that any
//! of them acknowledged before it knew the new ring is here; those after that come here by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::StreamExt;
use parking_lot::Mutex;

use cartwheel_bucket::{BucketError, SharedBucket, list_all};
use cartwheel_cluster::membership::{self, View};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::merkle::Span;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::ranges::HashRange;
use cartwheel_core::record::Record;
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{Repair, Reply, Request};

use crate::borrow::Borrower;
use crate::copier::Copier;
use crate::hints::Hints;
use crate::ledger::{Committed, Ledger};
use crate::repair::exchange::Exchange;
use crate::repair::image::Image;
use crate::repair::{RepairDesk, TakeoverFigures};
use crate::segments::hints::{hint_prefix, parse_hint_object};
use crate::segments::records_of;

/// How many objects with hints are given away before those that got them are asked to put them into the bucket.
const GIVEN_AT_ONCE: usize = 64;
/// Partitions that are compared with one home at once.
const AT_ONCE: usize = 16;

/// What taking over needs.
pub(crate) struct Takeover {
    pub(crate) me: NodeId,
    pub(crate) copier: Copier,
    /// `None` where the store can't be relied on: then everything is copied from the old homes.
    pub(crate) borrower: Option<Arc<Borrower>>,
    pub(crate) hints: Arc<Hints>,
    /// One that tries again: there are hundreds of hints, and more by the second, and of a dead node all is read here.
    pub(crate) bucket: SharedBucket,
    pub(crate) desk: Arc<RepairDesk>,
    pub(crate) ledger: Arc<Ledger>,
}

/// How far a takeover has come, so that it goes on where an earlier try failed.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<Done>);

#[derive(Debug, Default)]
struct Done {
    /// Old homes whose segments are borrowed as far as they can be.
    borrowed: BTreeSet<NodeId>,
    /// Partitions, and the old homes that they were compared with.
    compared: BTreeSet<(u32, NodeId)>,
    /// Objects with hints for those that go that were taken.
    hints: BTreeSet<String>,
    /// Bytes that went between nodes, and bytes of the objects that were borrowed.
    copied_bytes: u64,
    borrowed_bytes: u64,
}

impl Takeover {
    /// Takes over what the pending change gives this node, until all of it is in the bucket.
    ///
    /// # Errors
    /// What went wrong, as a sentence; call it again with the same progress.
    pub(crate) async fn take(&self, view: &View, progress: &Progress) -> Result<(), String> {
        let held = view.current.partitions_of(&self.me);
        let mut coming = view.next.partitions_of(&self.me);
        coming.retain(|partition| !held.contains(partition));
        if removed(Rule::CopyBeforeReady) {
            return Ok(());
        }
        self.borrow(view, &coming, progress).await?;
        if !self.copier.engine.index_complete() {
            return Err("the clock index is not loaded yet".to_owned());
        }
        // One that can't be asked yet holds up no other: what it has may be all that is damaged elsewhere.
        let mut outcome = Ok(());
        for (home, partitions) in old_homes(view, &coming, &self.me) {
            if let Err(why) = self.compare(view, &home, &partitions, progress).await {
                outcome = Err(why);
            }
        }
        outcome?;
        self.take_hints_of_the_gone(view, progress).await?;
        if !self.copier.engine.flushed().await {
            return Err("the bucket does not take what came from the old homes".to_owned());
        }
        // A node that is killed now and started again relies on its manifest, and says no more that it is not ready.
        if self.ledger.commit().await != Committed::Yes || self.copier.engine.is_fenced() {
            return Err("the manifest does not name what was taken over".to_owned());
        }
        if !coming.is_empty() {
            let figures = {
                let done = progress.0.lock();
                let partitions = coming.len() as u64;
                TakeoverFigures {
                    partitions,
                    borrowed_bytes: done.borrowed_bytes,
                    copied_bytes: done.copied_bytes,
                }
            };
            tracing::info!(?figures, "holds the partitions to come");
            self.desk.took_over(figures);
        }
        Ok(())
    }

    /// Borrows segments of as few old homes as have all partitions to come.
    async fn borrow(&self, view: &View, coming: &[u32], progress: &Progress) -> Result<(), String> {
        let Some(borrower) = &self.borrower else { return Ok(()) };
        for (owner, partitions) in owners(view, coming, &self.me) {
            if progress.0.lock().borrowed.contains(&owner) {
                continue;
            }
            if let Some(member) = view.document.member(&owner).filter(|member| !member.dead) {
                // What is in its memory can't be borrowed; what comes in from now on comes here too.
                let settle = Request::Repair(Repair::Settle);
                if let Err(why) = self.copier.call(&member.address, view.version(), settle).await {
                    tracing::debug!(%owner, %why, "it does not put all it holds into the bucket");
                }
            }
            let count = view.next.partitions();
            let range = |partition: &u32| HashRange::of_partition(*partition, count);
            let ranges: Vec<HashRange> = partitions.iter().map(range).collect();
            match borrower.borrow(&owner, &ranges).await {
                Ok(borrowed) => {
                    tracing::info!(%owner, ?borrowed, "borrows its segments");
                    let mut done = progress.0.lock();
                    done.borrowed_bytes += borrowed.bytes;
                    done.borrowed.insert(owner);
                }
                // What can't be borrowed is copied. But half of a borrow is not to be relied on: the clock index may
                // know already what is not in the manifest yet.
                Err(error) if error.is_final() => {
                    tracing::warn!(%owner, %error, "can't borrow its segments; copying");
                    progress.0.lock().borrowed.insert(owner);
                }
                Err(error) => return Err(format!("can't borrow the segments of {owner} yet: {error}")),
            }
        }
        Ok(())
    }

    /// Brings this node up to what an old home holds of these partitions.
    async fn compare(
        &self,
        view: &View,
        home: &NodeId,
        partitions: &BTreeSet<u32>,
        progress: &Progress,
    ) -> Result<(), String> {
        let done = |partition: u32| {
            progress.0.lock().compared.insert((partition, home.clone()));
        };
        let is_done = |partition: u32| progress.0.lock().compared.contains(&(partition, home.clone()));
        let left: Vec<u32> = partitions.iter().copied().filter(|partition| !is_done(*partition)).collect();
        let count = view.current.partitions();
        let span = |partition: u32| Span::of_partition(partition, count);
        let Some(member) = view.document.member(home).filter(|_| !left.is_empty()) else { return Ok(()) };
        if member.dead {
            let image = Image::open(&self.bucket, home).await.map_err(|e| e.to_string())?;
            for partition in left {
                image.bring(&self.copier, span(partition)).await.map_err(|e| e.to_string())?;
                done(partition);
            }
            return Ok(());
        }
        // It may be taking what others kept for it; once it counts it has that.
        let probe = Request::Probe { hinted: false };
        match self.copier.call(&member.address, view.version(), probe).await? {
            Reply::Standing(Standing::Counting) => {}
            other => return Err(format!("{home} does not count yet: {other:?}")),
        }
        let exchange = || Exchange::new(&self.copier, &member.address, view.version());
        let spans: Vec<Span> = left.iter().map(|partition| span(*partition)).collect();
        let mut roots = exchange();
        let differing = roots.differing(&spans, 0).await;
        progress.0.lock().copied_bytes += roots.done.bytes;
        let differing = differing?;
        let (unlike, alike): (Vec<u32>, Vec<u32>) =
            left.into_iter().partition(|partition| differing.binary_search(&span(*partition)).is_ok());
        alike.into_iter().for_each(done);
        let repairs = unlike.into_iter().map(|partition| async move {
            let mut exchange = exchange();
            let outcome = exchange.repair(span(partition)).await;
            (partition, exchange.done.bytes, outcome)
        });
        // Most of the time each of them waits for writes in flight.
        let mut repairing = futures_util::stream::iter(repairs).buffer_unordered(AT_ONCE);
        while let Some((partition, bytes, outcome)) = repairing.next().await {
            progress.0.lock().copied_bytes += bytes;
            outcome?;
            done(partition);
        }
        Ok(())
    }

    /// Takes what lies in the bucket for members that will be no more and belongs to partitions of this node, and gives
    /// what this node keeps for them in memory to the homes to come.
    async fn take_hints_of_the_gone(&self, view: &View, progress: &Progress) -> Result<(), String> {
        let gone: Vec<NodeId> = view
            .document
            .members
            .iter()
            .map(|member| member.id.clone())
            .filter(|id| view.next.index_of(id).is_none() && *id != self.me)
            .collect();
        for home in gone {
            self.give(view, &home).await?;
            let objects = list_all(&*self.bucket, &hint_prefix(&home)).await.map_err(|e| e.to_string())?;
            let mut left: Vec<String> = objects.into_iter().map(|object| object.key).collect();
            left.retain(|object| !progress.0.lock().hints.contains(object));
            let taking = left.into_iter().map(|object| async move {
                let taken = self.take_hints(view, &object).await;
                (object, taken)
            });
            let mut taking = futures_util::stream::iter(taking).buffer_unordered(AT_ONCE);
            let mut outcome = Ok(());
            // More of them come while this goes on: one that can't be read holds up no other.
            while let Some((object, taken)) = taking.next().await {
                match taken {
                    Ok(()) => drop(progress.0.lock().hints.insert(object)),
                    Err(why) => outcome = Err(why),
                }
            }
            outcome?;
        }
        Ok(())
    }

    /// Takes what an object with hints holds of the partitions that this node will hold.
    async fn take_hints(&self, view: &View, object: &str) -> Result<(), String> {
        for record in self.hints_in(object).await?.unwrap_or_default() {
            if homes_to_come(view, &record, self.copier.hash_seed)?.contains(&self.me) {
                self.copier.keep(&record, Durability::Memory).await?;
            }
        }
        Ok(())
    }

    /// Gives what this node keeps in memory for `home` to those that will hold it, until they have it in the bucket;
    /// returns up to which generation.
    async fn give(&self, view: &View, home: &NodeId) -> Result<u64, String> {
        let generation = self.hints.close_generation(home);
        let (mut after, mut given) = (None, BTreeSet::new());
        loop {
            let page = self.hints.page(home, generation, after.as_ref(), 1 << 20);
            let (records, more) = page.map_err(|refusal| format!("{refusal:?}"))?;
            for record in &records {
                for target in homes_to_come(view, record, self.copier.hash_seed)? {
                    self.give_to(view, &target, record).await?;
                    given.insert(target);
                }
            }
            let Some(last) = records.last().filter(|_| more) else { break };
            after = Some(self.copier.key_of(last)?);
        }
        for target in given {
            self.settle(view, &target).await?;
        }
        Ok(generation)
    }

    /// The records of an object with hints, none if it is gone; `None` if it is damaged.
    async fn hints_in(&self, object: &str) -> Result<Option<Vec<Bytes>>, String> {
        let bytes = match self.bucket.get(object).await {
            Ok(bytes) => bytes,
            Err(BucketError::NotFound { .. }) => return Ok(Some(Vec::new())),
            Err(error) => return Err(error.to_string()),
        };
        let records = records_of(&bytes);
        Ok(records.inspect_err(|error| tracing::error!(%error, object, "these hints are damaged")).ok())
    }

    /// Gives what objects with hints hold to those that hold its keys now, and deletes them once these have it in the
    /// bucket. One that is damaged is left for people; one that can't be read now, for the next time.
    async fn give_objects(&self, view: &View, objects: &[String]) -> Result<(), String> {
        let (mut outcome, mut read, mut given) = (Ok(()), Vec::new(), BTreeSet::new());
        for object in objects {
            let records = match self.hints_in(object).await {
                Ok(Some(records)) => records,
                Ok(None) => continue,
                Err(why) => {
                    outcome = Err(why);
                    continue;
                }
            };
            for record in &records {
                for target in homes_to_come(view, record, self.copier.hash_seed)? {
                    self.give_to(view, &target, record).await?;
                    given.insert(target);
                }
            }
            read.push(object);
        }
        for target in given {
            self.settle(view, &target).await?;
        }
        for object in read {
            self.bucket.delete(object).await.map_err(|e| e.to_string())?;
        }
        outcome
    }

    async fn settle(&self, view: &View, target: &NodeId) -> Result<(), String> {
        if *target == self.me {
            let flushed = self.copier.engine.flushed().await;
            return if flushed { Ok(()) } else { Err("the bucket takes nothing".to_owned()) };
        }
        let Some(member) = view.document.member(target) else { return Ok(()) };
        let settle = Request::Repair(Repair::Settle);
        match self.copier.call(&member.address, view.version(), settle).await? {
            Reply::Acked { reached: Durability::Bucket } => Ok(()),
            other => Err(format!("{target} answered {other:?}")),
        }
    }

    async fn give_to(&self, view: &View, target: &NodeId, record: &Bytes) -> Result<(), String> {
        if *target == self.me {
            return self.copier.keep(record, Durability::Memory).await.map(drop);
        }
        let Some(member) = view.document.member(target) else { return Ok(()) };
        let durability = Durability::Memory;
        let request = Request::Replicate { durability, hint_for: None, record: record.clone() };
        match self.copier.call(&member.address, view.version(), request).await? {
            Reply::Acked { .. } | Reply::Extra { .. } => Ok(()),
            other => Err(format!("{target} answered {other:?}")),
        }
    }

    /// Lets go of what is kept for nodes that are no members any more, once those that hold it now have it, and of
    /// their hints in the bucket: what counted of them was taken before the change was done.
    ///
    /// # Errors
    /// What is left, as a sentence; call it again.
    pub(crate) async fn forget_the_gone(&self, view: &View) -> Result<(), String> {
        for held in self.hints.held() {
            if view.document.member(&held.target).is_none() {
                let generation = self.give(view, &held.target).await?;
                self.hints.took(&held.target, generation).await.map_err(|e| e.to_string())?;
                tracing::info!(home = %held.target, keys = held.keys, "gave away the hints of one that is gone");
            }
        }
        let mut outcome = Ok(());
        let objects = list_all(&*self.bucket, "hints/").await.map_err(|e| e.to_string())?;
        // After the list: nothing in it is for one that has come back since.
        if membership::read_newest(&*self.bucket, view.version()).await.map_err(|e| e.to_string())?.is_some()
        {
            return Err("there is a newer ring".to_owned());
        }
        // Those of another member are its own to give away; those of a gateway, or of a holder that is gone too, are
        // nobody's.
        let is_left = |object: &String| {
            parse_hint_object(object).is_some_and(|name| {
                let is_theirs = name.holder != self.me && view.document.member(&name.holder).is_some();
                view.document.member(&name.home).is_none() && !is_theirs
            })
        };
        let left: Vec<String> = objects.into_iter().map(|object| object.key).filter(is_left).collect();
        // What was put, or left memory, after the homes to come had looked is in no other place. Many at a time: who is
        // given something has to put it into the bucket before they go.
        for some in left.chunks(GIVEN_AT_ONCE) {
            if let Err(why) = self.give_objects(view, some).await {
                outcome = Err(why);
            }
        }
        outcome
    }
}

/// The homes of a record's key once the pending change is done.
fn homes_to_come(view: &View, record: &Bytes, hash_seed: u64) -> Result<Vec<NodeId>, String> {
    let (namespace, key) = Record::decode_key(record).map_err(|e| e.to_string())?;
    let partition = KeyHash::of(hash_seed, &namespace, &key).partition(view.next.partitions());
    let homes = view.next.homes(partition).iter().filter_map(|home| view.next.member(*home));
    Ok(homes.map(|member| member.id.clone()).collect())
}

/// The old homes of these partitions but `me`, and which of them each has.
fn old_homes(view: &View, coming: &[u32], me: &NodeId) -> BTreeMap<NodeId, BTreeSet<u32>> {
    let mut of: BTreeMap<NodeId, BTreeSet<u32>> = BTreeMap::new();
    for partition in coming {
        for home in view.current.homes(*partition).iter().filter_map(|home| view.current.member(*home)) {
            if home.id != *me {
                of.entry(home.id.clone()).or_default().insert(*partition);
            }
        }
    }
    of
}

/// Whom to borrow which partitions from: as few nodes as have all of them, those that live first.
fn owners(view: &View, coming: &[u32], me: &NodeId) -> Vec<(NodeId, Vec<u32>)> {
    let of = old_homes(view, coming, me);
    let lives = |id: &NodeId| view.document.member(id).is_some_and(|member| !member.dead);
    let mut chosen = Vec::new();
    let mut left: BTreeSet<u32> = coming.iter().copied().collect();
    while !left.is_empty() {
        let has = |id: &NodeId| of[id].intersection(&left).count();
        // Of two that have as many the first by name: every try makes the same choice.
        let best =
            of.keys().max_by_key(|id| (has(id) > 0, lives(id), has(id), std::cmp::Reverse(*id))).cloned();
        let Some(best) = best.filter(|id| has(id) > 0) else { break };
        let partitions: Vec<u32> = of[&best].intersection(&left).copied().collect();
        left.retain(|partition| !partitions.contains(partition));
        chosen.push((best, partitions));
    }
    chosen
}
