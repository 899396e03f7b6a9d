//! The one writer of this node's manifest: what it names, what was dropped, and whether this process still has the say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use cartwheel_bucket::SharedBucket;
use cartwheel_cluster::seams::Seams;
use cartwheel_core::manifest::{
    Dropped, Manifest, Quarantined, SegmentEntry, flush_of_object, owner_of_object,
};
use cartwheel_core::ranges::{self, HashRange};
use cartwheel_segments::manifests::newest_dated;

use crate::engine::Engine;
use crate::epoch::Incarnation;
use crate::manifests::{self, Holdings, ManifestsError, is_mine};
use crate::segments::{Segment, SegmentError};

/// What came of an attempt to write the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    /// It says what this process holds.
    Yes,
    /// The bucket failed; try again.
    NotYet,
    /// Another process has the say; this one is fenced.
    TakenOver,
}

/// A place in time, by the store's clock and, at the latest, by this process's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoreTime {
    /// Milliseconds since 1970.
    pub(crate) ms: u64,
    /// When that was over.
    pub(crate) at: Instant,
}

impl StoreTime {
    /// What the store's clock showed at `instant`, or a little before.
    pub(crate) fn ms_of(&self, instant: Instant) -> u64 {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let later = ms(instant.saturating_duration_since(self.at));
        let earlier = ms(self.at.saturating_duration_since(instant));
        self.ms.saturating_add(later).saturating_sub(earlier)
    }
}

/// What the ledger keeps beside the engine's lists.
#[derive(Debug)]
struct Books {
    dropped: Vec<Dropped>,
    taken: BTreeMap<String, u64>,
    held_ms: u64,
    store_time: StoreTime,
    named: Named,
    quarantined: Vec<Quarantined>,
}

/// What the newest manifest may name of other nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Named {
    /// How many manifests this process wrote, as far as it knows.
    pub(crate) written: u64,
    /// Objects of other nodes: in the last of these manifests, or in one put since of which nothing was heard.
    pub(crate) borrowed: Arc<BTreeSet<String>>,
}

/// The manifest of a running process.
pub(crate) struct Ledger {
    bucket: SharedBucket,
    seams: Seams,
    me: Incarnation,
    engine: Arc<Engine>,
    /// The version written last. Held while one is written, so that what it says is of one moment.
    version: tokio::sync::Mutex<u64>,
    books: Mutex<Books>,
    /// What is being merged: its pieces are no orphans.
    working: Arc<Mutex<Option<String>>>,
    /// The merge begun last, if it has not been carried out: what goes into it, summed up, and its name.
    unfinished: Mutex<Option<(u64, String)>>,
    /// Does this process hold all that earlier ones acknowledged?
    whole: Arc<AtomicBool>,
    /// How many names merges were given.
    named: AtomicU64,
    /// Rung when a manifest names less of other nodes than the one before.
    pub(crate) let_go: Notify,
}

/// While this lives, pieces of a merge of this name are left alone.
#[derive(Debug)]
pub(crate) struct Working {
    /// The name.
    pub(crate) label: String,
    working: Arc<Mutex<Option<String>>>,
}

impl Drop for Working {
    fn drop(&mut self) {
        *self.working.lock() = None;
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("books", &self.books).finish_non_exhaustive()
    }
}

impl Ledger {
    /// The ledger of a process that has claimed `manifest`.
    pub(crate) fn new(
        bucket: SharedBucket,
        seams: Seams,
        me: Incarnation,
        engine: Arc<Engine>,
        manifest: &Manifest,
        store_time: StoreTime,
        whole: Arc<AtomicBool>,
    ) -> Self {
        let books = Books {
            dropped: manifest.dropped.clone(),
            taken: manifest.taken.clone(),
            held_ms: manifest.held_ms,
            store_time,
            named: Named::default(),
            quarantined: manifest.quarantined.clone(),
        };
        Self {
            bucket,
            seams,
            me,
            engine,
            version: manifest.version.into(),
            books: books.into(),
            working: Arc::default(),
            unfinished: Mutex::default(),
            named: 0.into(),
            let_go: Notify::new(),
            whole,
        }
    }

    /// Begins a merge of what `inputs` sums up. It gets a name that no merge had before, of this process or another: an
    /// object under a name that was used may still meet a DELETE that was sent long ago. But one that failed is gone on
    /// with, unless pieces of it were dropped.
    pub(crate) fn begin(&self, inputs: u64) -> Working {
        // Held all the while: what is dropped after this look is no piece of this merge.
        let mut working = self.working.lock();
        let mut unfinished = self.unfinished.lock();
        let label = match &*unfinished {
            Some((sum, label)) if *sum == inputs => label.clone(),
            _ => {
                let n = self.named.fetch_add(1, Ordering::Relaxed) + 1;
                format!("{:010}-{}-{n:06}", self.me.epoch, self.me.nonce)
            }
        };
        *unfinished = Some((inputs, label.clone()));
        *working = Some(label.clone());
        Working { label, working: Arc::clone(&self.working) }
    }

    /// The merge begun last is carried out, or of no use.
    pub(crate) fn finish(&self) {
        *self.unfinished.lock() = None;
    }

    /// Drops an object that no manifest knows, unless it is a piece of the merge that is going on, or was of one that
    /// is done by now.
    pub(crate) fn drop_orphan(&self, object: String, bytes: u64) -> bool {
        let working = self.working.lock();
        let is_made = working.as_ref().is_some_and(|label| is_piece(&object, label));
        if is_made || self.names(&object) {
            return false;
        }
        self.unfinished.lock().take_if(|(_, label)| is_piece(&object, label));
        self.note_dropped(std::iter::once((object, bytes)));
        true
    }

    /// Was this flush taken up before, so that it is none if nothing knows it?
    pub(crate) fn has_taken(&self, object: &str) -> bool {
        let books = self.books.lock();
        flush_of_object(object)
            .is_some_and(|(label, n)| books.taken.get(label).is_some_and(|taken| n <= *taken))
    }

    /// Does this process read this object, or keep it for people?
    pub(crate) fn names(&self, object: &str) -> bool {
        if self.books.lock().quarantined.iter().any(|quarantined| quarantined.object == object) {
            return true;
        }
        let (segments, graves) = (self.engine.segments.all(), self.engine.graves.segments.all());
        segments.iter().chain(graves.iter()).any(|segment| segment.object == object)
    }

    /// Is the object this node's? All others are only ever read.
    pub(crate) fn is_own(&self, object: &str) -> bool {
        owner_of_object(object) == Some(self.me.node.as_str())
    }

    /// What the newest manifest may name of other nodes.
    pub(crate) fn named(&self) -> Named {
        self.books.lock().named.clone()
    }

    /// Writes a manifest of what is held now.
    pub(crate) async fn commit(&self) -> Committed {
        let mut version = self.version.lock().await;
        self.write(&mut version, false).await
    }

    /// Writes the last manifest of a process that ends. It says so if nothing is missing: all that was taken in is in
    /// segments, nothing more comes in, and earlier processes had acknowledged nothing else.
    pub(crate) async fn commit_end(&self) -> Committed {
        let mut version = self.version.lock().await;
        let all = self.engine.is_closed() && self.engine.is_flushed() && self.whole.load(Ordering::Acquire);
        self.write(&mut version, all).await
    }

    /// Changes what is held with `change`, drops `dropped` if that was done, and writes the manifest: nobody sees one
    /// without the other. What is another node's is not dropped: it is just named no longer.
    pub(crate) async fn change(&self, dropped: &[Arc<Segment>], change: impl FnOnce() -> bool) -> Committed {
        let mut version = self.version.lock().await;
        if !change() {
            return Committed::NotYet;
        }
        self.note_dropped(dropped.iter().map(|segment| (segment.object.clone(), segment.bytes)));
        self.write(&mut version, false).await
    }

    /// What is quarantined.
    pub(crate) fn quarantined(&self) -> Vec<Quarantined> {
        self.books.lock().quarantined.clone()
    }

    /// The hashes of which this node may lack something that it had acknowledged, joined.
    pub(crate) fn lost(&self) -> Vec<HashRange> {
        let books = self.books.lock();
        ranges::join(books.quarantined.iter().flat_map(|quarantined| quarantined.lost.iter().copied()))
    }

    /// Quarantines an object, together with `change`, and writes the manifest: nobody sees one without the other. One that
    /// is known already may have lost more.
    pub(crate) async fn quarantine(&self, object: Quarantined, change: impl FnOnce()) -> Committed {
        let mut version = self.version.lock().await;
        {
            let mut books = self.books.lock();
            books.dropped.retain(|dropped| dropped.object != object.object);
            match books.quarantined.iter_mut().find(|known| known.object == object.object) {
                Some(known) => known.lost = ranges::join(known.lost.iter().copied().chain(object.lost)),
                None => books.quarantined.push(object),
            }
        }
        change();
        self.write(&mut version, false).await
    }

    /// The other homes have given all that was lost. What is quarantined stays so, but what no object is to blame for.
    pub(crate) async fn note_mended(&self) -> Committed {
        let mut version = self.version.lock().await;
        {
            let mut books = self.books.lock();
            books.quarantined.retain(|quarantined| !quarantined.object.is_empty());
            books.quarantined.iter_mut().for_each(|quarantined| quarantined.lost.clear());
        }
        self.write(&mut version, false).await
    }

    /// Objects that no manifest needs to name wait for their end from the next one on. Those of other nodes are passed
    /// over: whether anybody needs them is not this node's to say.
    pub(crate) fn note_dropped(&self, objects: impl Iterator<Item = (String, u64)>) {
        let mut books = self.books.lock();
        for (object, bytes) in objects.filter(|(object, _)| self.is_own(object)) {
            if !books.dropped.iter().any(|dropped| dropped.object == object) {
                books.dropped.push(Dropped { object, bytes, since_ms: None });
            }
        }
    }

    /// What waits for its end: of this node alone, whatever an earlier manifest may have said.
    pub(crate) fn dropped(&self) -> Vec<Dropped> {
        let books = self.books.lock();
        books.dropped.iter().filter(|dropped| self.is_own(&dropped.object)).cloned().collect()
    }

    /// These are deleted.
    pub(crate) fn note_deleted(&self, objects: &[String]) {
        self.books.lock().dropped.retain(|dropped| !objects.contains(&dropped.object));
    }

    /// Writes a manifest, reads it back, and notes since when what it drops has been dropped, by the store's clock.
    /// Gives the time it was written; `None` if that has to be tried again or this process has not the say any more.
    pub(crate) async fn commit_and_look(&self) -> Option<StoreTime> {
        if self.commit().await != Committed::Yes {
            return None;
        }
        let at = Instant::now();
        match newest_dated(&*self.bucket, &self.me.node).await {
            Ok(Some(newest)) if is_mine(&newest.manifest, &self.me) => {
                let time = StoreTime { ms: newest.modified_ms, at };
                let mut books = self.books.lock();
                books.store_time = time;
                let named = |object: &str| newest.manifest.dropped.iter().any(|d| d.object == object);
                for dropped in books.dropped.iter_mut().filter(|dropped| dropped.since_ms.is_none()) {
                    dropped.since_ms = named(&dropped.object).then_some(time.ms);
                }
                Some(time)
            }
            Ok(Some(newest)) => {
                let (node, epoch) = (self.me.node.clone(), newest.manifest.epoch);
                self.step_down(&ManifestsError::TakenOver { node, epoch });
                None
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "can't read the manifest back");
                None
            }
        }
    }

    /// The store's clock as it was seen last.
    pub(crate) fn store_time(&self) -> StoreTime {
        self.books.lock().store_time
    }

    async fn write(&self, version: &mut u64, ended: bool) -> Committed {
        let holdings = match self.holdings(ended).await {
            Ok(holdings) => holdings,
            Err(error) => {
                tracing::warn!(%error, "can't describe the segments for the manifest");
                return Committed::NotYet;
            }
        };
        let entries = holdings.segments.iter().chain(&holdings.graves);
        let foreign = entries.map(|entry| entry.object.clone()).filter(|object| !self.is_own(object));
        let borrowed: BTreeSet<String> = foreign.collect();
        {
            // It may be there although no answer comes.
            let named = &mut self.books.lock().named;
            named.borrowed = Arc::new(named.borrowed.union(&borrowed).cloned().collect());
        }
        match manifests::commit(&*self.bucket, &self.seams, &self.me, *version, holdings).await {
            Ok(written) => {
                *version = written;
                let named = &mut self.books.lock().named;
                if named.borrowed.len() > borrowed.len() {
                    self.let_go.notify_one();
                }
                *named = Named { written: named.written + 1, borrowed: Arc::new(borrowed) };
                Committed::Yes
            }
            Err(error @ ManifestsError::TakenOver { .. }) => {
                self.step_down(&error);
                Committed::TakenOver
            }
            Err(error) => {
                tracing::warn!(%error, "can't write the manifest; the segments are found without it");
                Committed::NotYet
            }
        }
    }

    async fn holdings(&self, ended: bool) -> Result<Holdings, SegmentError> {
        // Before the lists are made: what is in segments by then is in them.
        let held = self.engine.held_since();
        let segments = self.engine.segments.all();
        let graves = self.engine.graves.segments.all();
        let (taken, held_ms, quarantined) = {
            let mut books = self.books.lock();
            let Books { dropped, taken, .. } = &mut *books;
            // One that was merged before any manifest named it is among the dropped.
            let dropped = dropped.iter().map(|dropped| dropped.object.as_str());
            let objects = segments.iter().map(|segment| segment.object.as_str()).chain(dropped);
            for (label, n) in objects.filter(|object| self.is_own(object)).filter_map(flush_of_object) {
                let highest = taken.entry(label.to_owned()).or_default();
                *highest = n.max(*highest);
            }
            let taken = taken.clone();
            if let Some(held) = held.filter(|_| self.whole.load(Ordering::Acquire)) {
                books.held_ms = books.held_ms.max(books.store_time.ms_of(held));
            }
            (taken, books.held_ms, books.quarantined.clone())
        };
        let (segments, mut taken) = (self.described(&segments).await?, taken);
        for (label, n) in segments.1.iter().filter_map(|object| flush_of_object(object)) {
            // Those after it are named all the same; it is not to be taken for one that was merged and deleted.
            taken.entry(label.to_owned()).and_modify(|taken| *taken = n.saturating_sub(1).min(*taken));
        }
        Ok(Holdings {
            taken,
            held_ms,
            ended: ended && segments.1.is_empty() && quarantined.iter().all(|q| q.lost.is_empty()),
            quarantined,
            segments: segments.0,
            graves: self.described(&graves).await?.0,
            dropped: self.dropped(),
        })
    }

    /// What the manifest says of these, and the names of those that can't be read: no manifest names what is damaged.
    async fn described(
        &self,
        segments: &[Arc<Segment>],
    ) -> Result<(Vec<SegmentEntry>, Vec<String>), SegmentError> {
        let (mut entries, mut damaged) = (Vec::with_capacity(segments.len()), Vec::new());
        for segment in segments {
            match segment.entry(self.engine.segments.bucket()).await {
                Ok(entry) => entries.push(entry.clone()),
                Err(error) if error.damaged_object().is_some() => {
                    self.engine.note(&error);
                    damaged.push(segment.object.clone());
                }
                Err(error) => return Err(error),
            }
        }
        Ok((entries, damaged))
    }

    #[cfg(test)]
    pub(crate) fn set_whole(&self, whole: bool) {
        self.whole.store(whole, Ordering::Release);
    }

    fn step_down(&self, error: &ManifestsError) {
        tracing::error!(%error, "this process steps down; it accepts no more writes");
        self.engine.fence();
    }
}

/// Is this a piece of the merge of this name?
fn is_piece(object: &str, label: &str) -> bool {
    object.contains(&format!("/{label}/"))
}
