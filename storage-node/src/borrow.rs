//! Borrowing: what another node has put into the bucket becomes readable here, without a byte of it being copied
//! between nodes (docs/decisions/0016).
//!
//! The objects are pinned, taken up restricted to the ranges that were asked for, and named in this node's manifest.
//! `compact.rs` rewrites them into this node's own before anything else; when no manifest names them any more, the pins
//! are let go of. No object of another node is ever dropped or deleted here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use cartwheel_bucket::{BucketError, Listed, SharedBucket, list_all};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::{Manifest, SegmentEntry};
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::ranges::{self, HashRange};
use cartwheel_core::record::Record;
use cartwheel_core::wire::Refusal;
use cartwheel_segments::manifests::{ManifestReadError, newest};

use crate::engine::Engine;
use crate::ledger::{Committed, Ledger};
use crate::pace::Pace;
use crate::segments::pins::{Pin, pin_all, pins_of, put_again, unpin, unreadable_pins_of};
use crate::segments::{Cursor, Segment, SegmentError, Segments};

/// How often a borrow begins anew because its owner has merged what was to be borrowed.
const MAX_TRIES: usize = 16;
/// The pause before a record that was refused for want of room is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// How often to look for pins that can go when nothing calls for it.
const LOOK: Duration = Duration::from_secs(30);
/// How often to list pins that earlier processes of this node may have left.
const LIST: Duration = Duration::from_secs(600);
/// When to list them once more after the first time, and after a pin of which it is not known whether it stands: what
/// was on its way into the bucket may have come to stand since.
const LIST_AGAIN: Duration = Duration::from_secs(60);

/// What was borrowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Borrowed {
    /// Objects that are borrowed now and were not before, or not so much of them.
    pub(crate) objects: u64,
    /// Their bytes, whole.
    pub(crate) bytes: u64,
    /// Records that they have in their ranges.
    pub(crate) records: u64,
    /// Records that were taken in as writes are, from objects that can't be borrowed.
    pub(crate) copied: u64,
    /// Did the owner end cleanly, with all that it had acknowledged in what was borrowed?
    pub(crate) ended: bool,
}

/// Why nothing, or not all, was borrowed. What was borrowed stays so; asking again goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BorrowError {
    /// The store can't be relied on.
    #[error("--unsafe-no-cas: nothing is borrowed, for pins and manifests need conditional creates")]
    UnsafeStore,
    /// A node has no need to borrow from itself.
    #[error("{0} can't borrow from itself")]
    Itself(NodeId),
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The owner's manifest can't be read.
    #[error(transparent)]
    Manifest(#[from] ManifestReadError),
    /// A segment can't be read.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The manifest names what is no segment of any node.
    #[error("the manifest of {node} names {object}, which belongs to no node")]
    Stray {
        /// Whose manifest.
        node: NodeId,
        /// The object.
        object: String,
    },
    /// The owner merged its segments again and again meanwhile.
    #[error("{0} merged its segments {MAX_TRIES} times while they were to be borrowed")]
    Moving(NodeId),
    /// Records were not taken in.
    #[error("a record was refused: {0:?}")]
    Refused(Refusal),
    /// The bucket does not take what was copied.
    #[error("what was copied is not in the bucket yet")]
    Unflushed,
    /// This process has not the say any more, or the manifest could not be written yet.
    #[error("the manifest does not name what is borrowed yet")]
    Uncommitted,
}

impl BorrowError {
    /// Will it be the same when it is tried again?
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::UnsafeStore | Self::Itself(_) | Self::Stray { .. } => true,
            // What is pinned can't be gone because its owner has merged it.
            Self::Segment(error) => error.damaged_object().is_some(),
            Self::Manifest(error) => !matches!(error, ManifestReadError::Bucket(_)),
            _ => false,
        }
    }
}

/// A pin of this node.
#[derive(Debug)]
struct Held {
    /// On objects of this node.
    owner: NodeId,
    pin: Pin,
    /// It is known to be needless only by a manifest after so many that this process wrote.
    since: u64,
}

/// Borrows, and lets go.
#[derive(Debug)]
pub(crate) struct Borrower {
    engine: Arc<Engine>,
    ledger: Arc<Ledger>,
    bucket: SharedBucket,
    seams: Seams,
    me: NodeId,
    hash_seed: u64,
    pace: Arc<Pace>,
    /// Rung when there is something to merge.
    compact: Arc<Notify>,
    unsafe_no_cas: bool,
    /// All pins that this node may have. Locked while something is borrowed, so that nothing is let go of meanwhile.
    pins: Mutex<Vec<Held>>,
    /// A pin was put lately, and it is not known whether it stands.
    astray: AtomicBool,
}

/// What a borrower is made of.
pub(crate) struct Parts {
    pub(crate) engine: Arc<Engine>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) bucket: SharedBucket,
    pub(crate) seams: Seams,
    pub(crate) me: NodeId,
    pub(crate) hash_seed: u64,
    pub(crate) pace: Arc<Pace>,
    pub(crate) compact: Arc<Notify>,
    pub(crate) unsafe_no_cas: bool,
}

/// What is to be done with one object.
struct Want {
    entry: SegmentEntry,
    /// The same object with fewer ranges, if some of it is borrowed already.
    instead: Option<Arc<Segment>>,
    is_grave: bool,
}

/// What is to be borrowed by one manifest.
#[derive(Default)]
struct Wants {
    borrow: Vec<Want>,
    /// What can't be borrowed is copied.
    copy: Vec<SegmentEntry>,
}

impl Borrower {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { engine, ledger, bucket, seams, me, hash_seed, pace, compact, unsafe_no_cas } = parts;
        let pins = Mutex::default();
        let astray = AtomicBool::new(false);
        Self { engine, ledger, bucket, seams, me, hash_seed, pace, compact, unsafe_no_cas, pins, astray }
    }

    /// Borrows what `owner` has in the bucket of these ranges, one for each partition. When it returns, the manifest of
    /// this node names all of it, and it is read. What is borrowed already is left as it is.
    ///
    /// # Errors
    /// [`BorrowError`].
    pub(crate) async fn borrow(&self, owner: &NodeId, ranges: &[HashRange]) -> Result<Borrowed, BorrowError> {
        if self.unsafe_no_cas {
            return Err(BorrowError::UnsafeStore);
        }
        if *owner == self.me {
            return Err(BorrowError::Itself(owner.clone()));
        }
        let ranges = ranges::join(ranges.iter().copied().filter(|range| range.first <= range.last));
        let mut pins = self.pins.lock().await;
        let mut borrowed = Borrowed::default();
        for _ in 0..MAX_TRIES {
            if self.try_borrow(owner, &ranges, &mut pins, &mut borrowed).await? {
                // Nobody may rely on it before.
                if self.ledger.commit().await != Committed::Yes {
                    return Err(BorrowError::Uncommitted);
                }
                self.compact.notify_one();
                tracing::info!(%owner, ?borrowed, "borrowed");
                return Ok(borrowed);
            }
        }
        Err(BorrowError::Moving(owner.clone()))
    }

    /// One try by the owner's newest manifest; `false` if that was outdated before all was pinned and read.
    async fn try_borrow(
        &self,
        owner: &NodeId,
        ranges: &[HashRange],
        pins: &mut Vec<Held>,
        borrowed: &mut Borrowed,
    ) -> Result<bool, BorrowError> {
        let manifest = newest(&*self.bucket, owner).await?;
        let manifest = manifest.unwrap_or_else(|| Manifest::new(owner.clone(), 0, 0, String::new(), 0));
        // After the manifest: what it does not know of is in no other object.
        let flushes = list_all(&*self.bucket, &format!("nodes/{owner}/f/")).await?;
        let wants = self.wants(&manifest, ranges, &flushes)?;
        if !self.pin(owner, &wants.borrow, pins).await? {
            return Ok(false);
        }
        let bytes: u64 = wants.borrow.iter().map(|want| want.entry.bytes).sum();
        for want in wants.borrow.iter().filter(|want| want.is_grave) {
            // Before the segments: an older value of what was deleted must not be read.
            let graves = &self.engine.graves.segments;
            self.engine.take_up_grave(&self.open(graves, want), want.instead.as_ref()).await?;
        }
        for want in wants.borrow.iter().filter(|want| !want.is_grave) {
            let segment = self.open(&self.engine.segments, want);
            borrowed.records += self.engine.take_up(&segment, want.instead.as_ref()).await?;
            let (_, column) = segment.meta(&self.bucket).await?.clock_column();
            self.pace.turn(usize::try_from(column).unwrap_or(usize::MAX)).await;
        }
        borrowed.objects += wants.borrow.len() as u64;
        borrowed.bytes += bytes;
        borrowed.ended = manifest.ended;
        self.copy_all(&manifest, ranges, flushes, wants.copy, borrowed).await
    }

    /// What the manifest names in these ranges and this node does not read yet.
    fn wants(
        &self,
        manifest: &Manifest,
        ranges: &[HashRange],
        flushes: &[Listed],
    ) -> Result<Wants, BorrowError> {
        let mut wants = Wants::default();
        let (segments, graves) = (self.engine.segments.all(), self.engine.graves.segments.all());
        let by_name = |held: &[Arc<Segment>]| -> BTreeMap<String, Arc<Segment>> {
            held.iter().map(|segment| (segment.object.clone(), Arc::clone(segment))).collect()
        };
        let (held, buried) = (by_name(&segments), by_name(&graves));
        let all = manifest.segments.iter().map(|entry| (entry, false));
        for (entry, is_grave) in all.chain(manifest.graves.iter().map(|entry| (entry, true))) {
            let Some(mut part) = entry.restricted_to(ranges) else { continue };
            if part.owner().is_none() {
                let (node, object) = (manifest.node.clone(), part.object);
                return Err(BorrowError::Stray { node, object });
            }
            let instead = if is_grave { buried.get(&part.object) } else { held.get(&part.object) };
            match instead.and_then(|segment| segment.known().map(|known| (segment, known))) {
                Some((_, known))
                    if ranges::includes(&known.ranges(), &part.only)
                        && !self.engine.is_half_taken_up(&part.object) => {}
                // Lent by this node, and merged here since: no name is used again after it was dropped.
                None if self.ledger.is_own(&part.object) => wants.copy.push(part),
                Some((segment, known)) => {
                    let only = ranges::join(known.ranges().into_iter().chain(part.only));
                    let entry = SegmentEntry { only, ..known.clone() };
                    wants.borrow.push(Want { entry, instead: Some(Arc::clone(segment)), is_grave });
                }
                None => {
                    if part.born_ms == 0 {
                        // "When the object was put": nobody but its owner lists that.
                        let put = flushes.binary_search_by(|listed| listed.key.cmp(&part.object));
                        part.born_ms = put.ok().map_or(0, |at| flushes[at].modified_ms);
                    }
                    wants.borrow.push(Want { entry: part, instead: None, is_grave });
                }
            }
        }
        Ok(wants)
    }

    /// Pins what is not borrowed yet with the nodes that it belongs to; `false` if `of` does not name it any more.
    async fn pin(&self, of: &NodeId, wants: &[Want], held: &mut Vec<Held>) -> Result<bool, BorrowError> {
        let mut by_owner: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for want in wants.iter().filter(|want| want.instead.is_none()) {
            let owner = want.entry.owner().unwrap_or_default();
            by_owner.entry(owner).or_default().insert(want.entry.object.clone());
        }
        let mut pins = Vec::new();
        for (owner, objects) in by_owner {
            let stray = || BorrowError::Stray { node: of.clone(), object: format!("nodes/{owner}/") };
            let owner = NodeId::new(owner).map_err(|_| stray())?;
            let nonce = format!("{:016x}", self.seams.random.next_u64());
            pins.push((owner, Pin { holder: self.me.clone(), nonce, objects }));
        }
        if pins.is_empty() {
            return Ok(true);
        }
        // Noted before they are put: whatever becomes of this, they are let go of in the end.
        let (since, before) = (self.ledger.named().written, held.len());
        held.extend(pins.iter().map(|(owner, pin)| Held { owner: owner.clone(), pin: pin.clone(), since }));
        let pinned = pin_all(&*self.bucket, of, &pins).await;
        if pinned.is_err() {
            self.astray.store(true, Ordering::Relaxed);
        }
        let pinned = pinned?;
        if !pinned {
            held.truncate(before);
        }
        Ok(pinned)
    }

    fn open(&self, segments: &Segments, want: &Want) -> Arc<Segment> {
        if let Some(old) = &want.instead {
            return old.with_entry(want.entry.clone());
        }
        let (entry, now) = (want.entry.clone(), Instant::now());
        let age = self.ledger.store_time().ms_of(now).saturating_sub(entry.born_ms);
        let born = (entry.born_ms > 0).then(|| now.checked_sub(Duration::from_millis(age))).flatten();
        segments.open(entry.object.clone(), entry.bytes, Some(entry), born)
    }

    /// Copies what can't be borrowed: `dropped`, and flushes that the manifest has not heard of, which nobody can pin.
    /// `false` if one of them is gone: a newer manifest names what it went into.
    async fn copy_all(
        &self,
        manifest: &Manifest,
        ranges: &[HashRange],
        flushes: Vec<Listed>,
        dropped: Vec<SegmentEntry>,
        borrowed: &mut Borrowed,
    ) -> Result<bool, BorrowError> {
        let known: BTreeSet<&str> = manifest
            .segments
            .iter()
            .map(|entry| entry.object.as_str())
            .chain(manifest.dropped.iter().map(|dropped| dropped.object.as_str()))
            .chain(manifest.quarantined.iter().map(|quarantined| quarantined.object.as_str()))
            .collect();
        let mut copied = Ok(());
        let mut any = false;
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        for entry in dropped {
            segments.push(self.engine.segments.open(entry.object.clone(), entry.bytes, Some(entry), None));
        }
        let unknown = |flush: &Listed| !known.contains(flush.key.as_str()) && !manifest.has_taken(&flush.key);
        for flush in flushes.into_iter().filter(unknown) {
            segments.push(self.engine.segments.open(flush.key, flush.size, None, None));
        }
        for segment in segments {
            copied = async {
                let Some(part) = segment.entry(&self.bucket).await?.restricted_to(ranges) else {
                    return Ok(());
                };
                any = true;
                borrowed.copied += self.copy(&segment.with_entry(part)).await?;
                Ok(())
            }
            .await;
            if copied.is_err() {
                break;
            }
        }
        match copied {
            Err(BorrowError::Segment(error)) if error.is_missing() => return Ok(false),
            copied => copied?,
        }
        // What was acknowledged in the bucket is there again before anybody may rely on this node.
        if any && !self.engine.flushed().await {
            return Err(BorrowError::Unflushed);
        }
        Ok(true)
    }

    /// Takes in the records of a segment that are not held yet, as writes are; gives how many.
    async fn copy(&self, segment: &Arc<Segment>) -> Result<u64, BorrowError> {
        let mut cursor = Cursor::open(&self.bucket, segment, self.hash_seed, None).await?;
        let mut taken = 0;
        while let Some(item) = cursor.next().await? {
            self.pace.turn(item.bytes.len()).await;
            taken += u64::from(self.take(item.key.hash, &item.record).await?);
        }
        Ok(taken)
    }

    /// Takes in a record, waiting while there is no room for it; `false` if it is held already.
    async fn take(&self, hash: KeyHash, record: &Record) -> Result<bool, BorrowError> {
        if self.engine.includes(hash, &record.container) {
            return Ok(false);
        }
        let bytes: Bytes = record.encode();
        loop {
            match self.engine.take(hash, record, &bytes, Durability::Memory, Box::new(|_| {})).await {
                Ok(()) => return Ok(true),
                Err(Refusal::Overloaded) => tokio::time::sleep(PAUSE).await,
                Err(refusal) => return Err(BorrowError::Refused(refusal)),
            }
        }
    }

    // ---- letting go ----

    /// Lets go of pins as soon as no manifest needs them, until the process ends. `members` gives the nodes of the ring.
    pub(crate) async fn run(self: Arc<Self>, members: impl Fn() -> Vec<NodeId>) {
        let (mut next, mut pause) = (Instant::now(), LIST_AGAIN);
        loop {
            if self.astray.swap(false, Ordering::Relaxed) {
                next = next.min(Instant::now() + LIST_AGAIN);
            }
            if Instant::now() >= next {
                let members = members();
                match self.find_pins(&members).await {
                    // Before the ring is known there is nowhere to look.
                    Ok(()) if members.is_empty() => {}
                    Ok(()) => (next, pause) = (Instant::now() + pause, LIST),
                    Err(error) => tracing::warn!(%error, "can't look for pins yet"),
                }
            }
            if let Err(error) = self.let_go().await {
                tracing::warn!(%error, "can't let go of a pin yet");
            }
            // Whoever rings, or nobody: a look finds nothing then.
            drop(tokio::time::timeout(LOOK, self.ledger.let_go.notified()).await);
        }
    }

    /// Finds the pins that earlier processes of this node have put on objects of these nodes, or of those whose objects
    /// are borrowed.
    ///
    /// # Errors
    /// Those of the bucket.
    pub(crate) async fn find_pins(&self, members: &[NodeId]) -> Result<(), BucketError> {
        if self.unsafe_no_cas {
            return Ok(());
        }
        let mut pins = self.pins.lock().await;
        let mut nodes: BTreeSet<NodeId> = members.iter().filter(|node| **node != self.me).cloned().collect();
        nodes.extend(self.lenders());
        for node in nodes {
            let found = pins_of(&*self.bucket, &node, &self.me).await?;
            // Another process of this name may have put one and be relied on. If it has, no manifest that this process
            // begins to write from now on comes to be: not the next one, which may be on its way, but the one after it.
            let since = self.ledger.named().written + 1;
            for pin in found {
                if !pins.iter().any(|held| held.owner == node && held.pin == pin) {
                    pins.push(Held { owner: node.clone(), pin, since });
                }
            }
            self.mend_pins(&node, &mut pins).await?;
        }
        Ok(())
    }

    /// Puts pins of this node right that can't be read, for as long as there is one its owner deletes nothing at all.
    async fn mend_pins(&self, owner: &NodeId, pins: &mut Vec<Held>) -> Result<(), BucketError> {
        for damaged in unreadable_pins_of(&*self.bucket, owner, &self.me).await? {
            tracing::error!(object = %damaged, "this pin is damaged; putting another one");
            if let Some(held) = pins.iter().find(|held| held.pin.object_name(owner) == damaged) {
                put_again(&*self.bucket, owner, &held.pin).await?;
                continue;
            }
            // An earlier process's: what of that owner's is needed is what this process reads, or its manifest names.
            let named = self.ledger.named();
            let is_theirs =
                |object: &String| cartwheel_core::manifest::owner_of_object(object) == Some(owner.as_str());
            let all = self.borrowed_objects().chain(named.borrowed.iter().cloned());
            let objects: BTreeSet<String> = all.filter(is_theirs).collect();
            if !objects.is_empty() {
                let nonce = format!("{:016x}", self.seams.random.next_u64());
                let pin = Pin { holder: self.me.clone(), nonce, objects };
                pins.push(Held { owner: owner.clone(), pin: pin.clone(), since: named.written });
                put_again(&*self.bucket, owner, &pin).await?;
            }
            // Only who has the say knows what is needed.
            if self.ledger.commit().await == Committed::Yes {
                self.bucket.delete(&damaged).await?;
            }
        }
        Ok(())
    }

    /// Lets go of the pins that no manifest needs; gives how many.
    ///
    /// # Errors
    /// Those of the bucket; what could not be let go of stays for the next time.
    pub(crate) async fn let_go(&self) -> Result<usize, BucketError> {
        let mut pins = self.pins.lock().await;
        let read: BTreeSet<String> = self.borrowed_objects().collect();
        let is_idle = |held: &Held| held.pin.objects.is_disjoint(&read);
        let is_needless = |held: &Held| {
            let named = self.ledger.named();
            is_idle(held) && named.written > held.since && held.pin.objects.is_disjoint(&named.borrowed)
        };
        // Those that were found want to see two.
        for _ in 0..2 {
            let waits = pins.iter().any(|held| is_idle(held) && !is_needless(held));
            if waits && self.ledger.commit().await != Committed::Yes {
                break;
            }
        }
        let (mut at, mut gone, mut failed) = (0, 0, Ok(()));
        while let Some(held) = pins.get(at) {
            if is_needless(held) {
                match unpin(&*self.bucket, &held.owner, &held.pin).await {
                    Ok(()) => {
                        pins.remove(at);
                        gone += 1;
                        continue;
                    }
                    Err(error) => failed = Err(error),
                }
            }
            at += 1;
        }
        failed.map(|()| gone)
    }

    /// The objects of other nodes that this process reads.
    fn borrowed_objects(&self) -> impl Iterator<Item = String> {
        let (segments, graves) = (self.engine.segments.all(), self.engine.graves.segments.all());
        let objects: Vec<String> =
            segments.iter().chain(graves.iter()).map(|segment| segment.object.clone()).collect();
        objects.into_iter().filter(|object| !self.ledger.is_own(object))
    }

    /// The nodes that these belong to.
    fn lenders(&self) -> BTreeSet<NodeId> {
        let owner = |object: String| {
            let owner = cartwheel_core::manifest::owner_of_object(&object)?;
            NodeId::new(owner).ok()
        };
        self.borrowed_objects().filter_map(owner).collect()
    }
}

#[cfg(test)]
mod tests;
