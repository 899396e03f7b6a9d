//! The storage engine: takes in records, mints versions, answers reads.
//!
//! Write path: clock index → log → memtable. Read path: clock index says absent → memtable → row cache →
//! segments through the block cache. All that decides is done under one short lock; nothing under it waits.

mod adopt;
mod compare;
mod damage;
mod memory;
mod restrict;
mod rows;
pub(crate) mod rules;
mod scan;
mod swap;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use cartwheel_bucket::SharedBucket;
use cartwheel_core::clock::{Actor, Dot};
use cartwheel_core::clock_index::{ClockIndex, Known};
use cartwheel_core::codec::DecodeError;
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Brief, Record, Version, request_tag};
use cartwheel_core::wire::{Precondition, Refusal};

use crate::graves::Graves;
use crate::log::Log;
use crate::memtable::{Flushed, Memtable, RecordKey};
use crate::requests::Requests;
use crate::segments::{SegmentError, Segments, holds_all};
use damage::Noted;
use rows::{Row, Rows};
use rules::{check_precondition, is_overfull, log_takes, reached_by_log};
use tables::{Incoming, Tables, whole};

pub(crate) use damage::Report;
pub(crate) use memory::{Figures, Held};
pub(crate) use swap::Reaped;

/// Unflushed bytes at which writes are refused, as a multiple of the flush size.
pub(crate) const MAX_UNFLUSHED: usize = 4;

/// Bytes of the log at which writes are refused, as a multiple of the flush size. Writing one key again and again fills
/// the log and not the memtable.
const MAX_LOGGED: usize = 4 * LOGGED;
/// Bytes of one log file at which its memtable is flushed, as a multiple of the flush size.
const LOGGED: usize = 4;
/// Segments at which writes are refused until some are merged: reads look into all that may hold a key.
pub(crate) const MAX_SEGMENTS: usize = 8192;

/// How often a key is read before it is believed that something is missing.
const READS: usize = 3;

/// Called with the durability that a write has reached: the one asked, or less if the disk failed after the
/// write was taken in. It can't be a refusal any more, for that would say that nothing was applied.
pub(crate) type Done = Box<dyn FnOnce(Durability) + Send>;

/// Limits and sizes of an engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineConfig {
    /// Bytes at which a memtable is flushed.
    pub(crate) flush_bytes: usize,
    /// Segments at which writes are refused.
    pub(crate) max_segments: usize,
    /// Bytes of the row cache.
    pub(crate) row_cache_bytes: u64,
    /// Bytes of the block cache.
    pub(crate) block_cache_bytes: u64,
}

/// The bucket, counted apart by what it is for.
pub(crate) struct Buckets {
    /// Reads of keys.
    pub(crate) read: SharedBucket,
    /// The clock index and graves.
    pub(crate) index: SharedBucket,
}

/// A version to be minted.
#[derive(Debug, Clone)]
pub(crate) struct MintRequest {
    pub(crate) namespace: Namespace,
    pub(crate) key: Key,
    pub(crate) hash: KeyHash,
    pub(crate) version: Version,
    pub(crate) durability: Durability,
    pub(crate) precondition: Precondition,
    pub(crate) max_siblings: u32,
}

/// What came of a record that was to be taken in.
pub(crate) enum Taking {
    /// It is taken in.
    Taken,
    /// Nothing is known of its key, which may lie in a grave: look there first ([`Engine::exhume`]), then try again.
    /// `done` is given back.
    Buried(Done),
}

/// Were the graves looked at for the key of a write?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Graved {
    /// Not yet.
    Unknown,
    /// What lay there is in memory now.
    Exhumed,
}

/// What came of a mint, before its durability is reached.
#[derive(Debug)]
pub(crate) enum Mint {
    /// The version has this dot.
    Made,
    /// This request id was carried out before, under this dot.
    Repeated(Dot),
    /// The index does not know enough of the key: read it ([`Engine::read_full`]) and try again.
    Unknown,
}

/// The engine of one storage node.
pub(crate) struct Engine {
    config: EngineConfig,
    node: NodeId,
    hash_seed: u64,
    tables: RwLock<Tables>,
    /// Who waits for the memtable of which log number to be flushed. Locked after `tables`.
    waiting: Mutex<Vec<(u64, Flushed)>>,
    log: Option<Arc<Log>>,
    pub(crate) segments: Segments,
    pub(crate) graves: Graves,
    index_bucket: SharedBucket,
    rows: Rows,
    /// Rung when a flush should start now.
    pub(crate) flush_now: Notify,
    /// Set when another process has taken over this node's name.
    fenced: AtomicBool,
    told_fenced: Notify,
    /// Set while the bucket does not take what is flushed.
    bucket_fails: AtomicBool,
    /// Set when the next memtable that is closed is to keep the Merkle tree.
    tree_wanted: AtomicBool,
    /// Objects whose taking up was begun and not brought to an end.
    half_taken_up: Mutex<HashSet<String>>,
    noted: Noted,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The record's bytes.
    Record(Bytes),
    /// The node has never heard of the key.
    Absent,
}

impl Engine {
    /// An engine that mints as `actor`, over segments in `bucket`; nothing in it yet.
    pub(crate) fn new(
        config: EngineConfig,
        actor: Actor,
        hash_seed: u64,
        buckets: Buckets,
        log: Option<Arc<Log>>,
        log_number: u64,
    ) -> Self {
        Self {
            segments: Segments::new(buckets.read, config.block_cache_bytes),
            graves: Graves::new(Arc::clone(&buckets.index), hash_seed),
            index_bucket: buckets.index,
            config,
            node: actor.node.clone(),
            hash_seed,
            tables: RwLock::new(Tables {
                actor,
                active: Memtable::new(log_number),
                frozen: None,
                index: ClockIndex::default(),
                index_number: 0,
                requests: Requests::default(),
                closed: false,
            }),
            waiting: Mutex::default(),
            log,
            rows: Rows::new(config.row_cache_bytes),
            flush_now: Notify::new(),
            fenced: AtomicBool::new(false),
            told_fenced: Notify::new(),
            bucket_fails: AtomicBool::new(false),
            tree_wanted: AtomicBool::new(true),
            half_taken_up: Mutex::default(),
            noted: Noted::default(),
        }
    }

    /// Accepts no write any more: another process holds this node's name.
    pub(crate) fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
        self.told_fenced.notify_waiters();
    }

    /// Accepts no write any more: the process ends, and says so to the next one. A dot minted after that
    /// would be minted again.
    pub(crate) fn close(&self) {
        self.tables.write().closed = true;
    }

    /// Was it closed?
    pub(crate) fn is_closed(&self) -> bool {
        self.tables.read().closed
    }

    /// Was it fenced?
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Does the bucket not take what is flushed?
    pub(crate) fn bucket_fails(&self) -> bool {
        self.bucket_fails.load(Ordering::Relaxed)
    }

    /// Notes whether the bucket takes what is flushed. Who waits for it is told at once when it does not.
    pub(crate) fn set_bucket_fails(&self, fails: bool) {
        self.bucket_fails.store(fails, Ordering::Relaxed);
        if fails {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            waiting.into_iter().for_each(|(_, flushed)| flushed(Durability::Memory));
        }
    }

    // ---- writes ----

    /// May a write come in, and can it reach `durability`?
    fn check_write(&self, durability: Durability, tables: &Tables) -> Result<(), Refusal> {
        if self.is_fenced() {
            let why = format!("another process has taken over {}", self.node);
            return Err(Refusal::Unable(why));
        }
        if tables.closed {
            return Err(Refusal::Unable("the node is shutting down".to_owned()));
        }
        let (_, logged) = self.log.as_ref().map_or((0, 0), |log| log.sizes());
        if tables.unflushed_bytes() > MAX_UNFLUSHED * self.config.flush_bytes
            || logged > MAX_LOGGED * self.config.flush_bytes
            || self.segments.count() > self.config.max_segments
        {
            return Err(Refusal::Overloaded);
        }
        if durability == Durability::Bucket && self.bucket_fails() {
            return Err(Refusal::Unable("the bucket takes nothing at the moment".to_owned()));
        }
        log_takes(self.log.as_deref(), durability)
    }

    /// Takes in a record or delta; `done` is called when it is as durable as asked.
    ///
    /// # Errors
    /// A refusal; nothing was applied and `done` is not called.
    pub(crate) fn replicate(
        &self,
        hash: KeyHash,
        record: &Record,
        bytes: &Bytes,
        durability: Durability,
        graved: Graved,
        done: Done,
    ) -> Result<Taking, Refusal> {
        let mut tables = self.tables.write();
        self.check_write(durability, &tables)?;
        let known = tables.index.get(hash);
        if self.may_be_buried(hash, &known, graved) {
            return Ok(Taking::Buried(done));
        }
        self.apply(&mut tables, known, Incoming::new(hash, record, bytes), durability, done);
        self.after_write(&tables, durability);
        Ok(Taking::Taken)
    }

    /// As [`Engine::replicate`], after a look into the graves if need be.
    ///
    /// # Errors
    /// As there; and if the graves can't be read.
    pub(crate) async fn take(
        &self,
        hash: KeyHash,
        record: &Record,
        bytes: &Bytes,
        durability: Durability,
        done: Done,
    ) -> Result<(), Refusal> {
        match self.replicate(hash, record, bytes, durability, Graved::Unknown, done)? {
            Taking::Taken => Ok(()),
            Taking::Buried(done) => {
                self.exhume(hash).await.map_err(|e| Refusal::Unable(e.to_string()))?;
                self.replicate(hash, record, bytes, durability, Graved::Exhumed, done).map(drop)
            }
        }
    }

    /// Nothing is known of the key, but there may be a deletion of it.
    fn may_be_buried(&self, hash: KeyHash, known: &Known, graved: Graved) -> bool {
        let (Known::All(known) | Known::AtLeast(known)) = known;
        graved == Graved::Unknown && known.seen().is_empty() && self.graves.may_hold(hash)
    }

    /// Brings deletions of keys with this hash back from the graves into memory.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub(crate) async fn exhume(&self, hash: KeyHash) -> Result<(), SegmentError> {
        for record in self.graves.find(hash).await.inspect_err(|error| self.note(error))? {
            let bytes = record.encode();
            let mut tables = self.tables.write();
            let known = tables.index.get(hash);
            let incoming = Incoming::new(hash, &record, &bytes);
            self.apply(&mut tables, known, incoming, Durability::Memory, Box::new(|_| {}));
        }
        Ok(())
    }

    /// Makes a new version. `done` gets the outcome when it is as durable as asked; it is called only for
    /// [`Mint::Made`].
    ///
    /// # Errors
    /// A refusal; nothing was applied and `done` is not called.
    pub(crate) fn mint(
        &self,
        request: &MintRequest,
        graved: Graved,
        done: impl FnOnce(Dot) -> Done,
    ) -> Result<Mint, Refusal> {
        let mut tables = self.tables.write();
        self.check_write(request.durability, &tables)?;
        let known = tables.index.get(request.hash);
        if self.may_be_buried(request.hash, &known, graved) {
            return Ok(Mint::Unknown);
        }
        let Known::All(known) = known else { return Ok(Mint::Unknown) };
        let tag = request_tag(request.version.request);
        let same = known.siblings().iter().find(|s| s.version.request == tag);
        let remembered = tables.requests.dot(&(request.hash, request.version.request));
        if let Some(dot) = same.map(|s| &s.dot).or(remembered).filter(|_| !removed(Rule::KnowRequests)) {
            return Ok(Mint::Repeated(dot.clone()));
        }
        check_precondition(&request.precondition, &known, request.version.written_ms)?;
        let context = if removed(Rule::ReplaceSeenOnly) { known.seen() } else { &request.version.context };
        if is_overfull(&known, request) {
            return Err(Refusal::TooManySiblings(known.into_parts().0));
        }
        let dot = known.next_dot(&tables.actor, context);
        let delta = Record {
            namespace: request.namespace.clone(),
            key: request.key.clone(),
            container: Container::delta(context, dot.clone(), request.version.clone()),
        };
        let bytes = delta.encode();
        let done = done(dot.clone());
        let incoming = Incoming::new(request.hash, &delta, &bytes);
        self.apply(&mut tables, Known::All(known), incoming, request.durability, done);
        tables.requests.remember((request.hash, request.version.request), dot);
        self.after_write(&tables, request.durability);
        Ok(Mint::Made)
    }

    /// Calls `done` when a version that is held is as durable as asked.
    ///
    /// # Errors
    /// A refusal, if it is not held (another process may have minted it, and lost it) or can't get so far.
    pub(crate) fn confirm(
        &self,
        hash: KeyHash,
        dot: &Dot,
        durability: Durability,
        done: Done,
    ) -> Result<(), Refusal> {
        let tables = self.tables.read();
        // What is held needs no room; only a process that was taken over has no say any more.
        if self.is_fenced() {
            return Err(Refusal::Unable(format!("another process has taken over {}", self.node)));
        }
        let (Known::All(known) | Known::AtLeast(known)) = tables.index.get(hash);
        if !known.seen().contains(dot) {
            return Err(Refusal::Unable(format!("version {dot} is not held here")));
        }
        match (durability, &self.log) {
            (Durability::Memory, _) | (Durability::Disk, None) => done(Durability::Memory),
            (Durability::Disk, Some(log)) => {
                log.confirm(Box::new(move |result| done(reached_by_log(result.is_ok()))));
            }
            (Durability::Bucket, _) if self.bucket_fails() => done(Durability::Memory),
            (Durability::Bucket, _) => match tables.memtables().filter(|table| !table.is_empty()).last() {
                None => done(Durability::Bucket),
                Some(table) => {
                    self.waiting.lock().push((table.log_number, done));
                    self.flush_now.notify_one();
                }
            },
        }
        Ok(())
    }

    fn after_write(&self, tables: &Tables, durability: Durability) {
        if durability == Durability::Bucket || self.is_full(tables) {
            self.flush_now.notify_one();
        }
    }

    /// Index, memtable and log, in one step.
    fn apply(
        &self,
        tables: &mut Tables,
        known: Known,
        incoming: Incoming<'_>,
        durability: Durability,
        done: Done,
    ) {
        let bytes = incoming.bytes;
        tables.take_in(known, incoming);
        let log = |logged: Option<crate::log::Done>| {
            if let Some(log) = &self.log {
                log.push(bytes.clone(), logged);
            }
        };
        match durability {
            Durability::Disk if !removed(Rule::DiskBeforeAnswer) => {
                log(Some(Box::new(move |result| done(reached_by_log(result.is_ok())))));
            }
            Durability::Bucket if !removed(Rule::BucketBeforeAnswer) => {
                log(None);
                let number = tables.active.log_number;
                self.waiting.lock().push((number, done));
            }
            claimed => {
                log(None);
                done(claimed);
            }
        }
    }

    /// Takes in a record found in the log at start: it is on disk already.
    pub(crate) fn replay(&self, record: &Record, bytes: &Bytes) {
        let hash = KeyHash::of(self.hash_seed, &record.namespace, &record.key);
        let mut tables = self.tables.write();
        let known = tables.index.get(hash);
        tables.active.replayed = true;
        tables.take_in(known, Incoming::new(hash, record, bytes));
    }

    // ---- reads ----

    /// What the node knows of a key, if memory tells.
    pub(crate) fn read_fast(&self, key: &RecordKey) -> Option<Found> {
        let tables = self.tables.read();
        let entries = [tables.active.get(key), tables.frozen.as_deref().and_then(|table| table.get(key))];
        match entries.into_iter().flatten().next() {
            Some(entry) if entry.complete => return Some(Found::Record(entry.record.clone())),
            Some(_) => return None,
            None => {}
        }
        let absent = matches!(tables.index.get(key.hash), Known::All(known) if known.seen().is_empty());
        drop(tables);
        if absent {
            return Some(Found::Absent);
        }
        let row = self.rows.get(key, self.rows.sequence(key.hash))?;
        row.record.filter(|_| row.whole).map(Found::Record)
    }

    /// What the node knows of a key, from memory or from the bucket.
    ///
    /// # Errors
    /// [`SegmentError`] where the bucket was needed and did not answer right.
    pub(crate) async fn read(&self, key: &RecordKey) -> Result<Found, SegmentError> {
        let mut tries = READS;
        loop {
            tries -= 1;
            match self.read_once(key).await {
                // A merge has put others in the place of the segments that were being read, long ago; or the key was
                // written, or let go of, meanwhile.
                Err(error) if tries > 0 && (error.is_missing() || error.is_incomplete()) => {}
                found => return found.inspect_err(|error| self.note(error)),
            }
        }
    }

    async fn read_once(&self, key: &RecordKey) -> Result<Found, SegmentError> {
        if let Some(found) = self.read_fast(key) {
            return Ok(found);
        }
        let before = self.rows.sequence(key.hash);
        // Memory first: what a flush moves in between is then seen twice, never missed.
        let (mut merged, live) = self.in_memory(key);
        let container = match live {
            None => {
                merged.sync(self.segments.read(key, None).await?);
                if self.graves.may_hold(key.hash) {
                    merged.sync(self.graves.segments.read(key, None).await?);
                }
                merged
            }
            Some(live) => {
                if !holds_all(&merged, &live) {
                    merged.sync(self.row(key, &live, before).await?);
                }
                // A flush may have moved entries into a segment that the cached row does not know of.
                if !holds_all(&merged, &live) {
                    merged.sync(self.segments.read(key, None).await?);
                }
                // A part of what is known would look like all of it.
                whole(&merged, &live).ok_or(SegmentError::Incomplete { hash: key.hash })?
            }
        };
        Ok(match key.record(container) {
            Some(record) => Found::Record(record.encode()),
            None => Found::Absent,
        })
    }

    /// What the segments know of a key, through the row cache.
    async fn row(
        &self,
        key: &RecordKey,
        live: &Container<Brief>,
        sequence: u64,
    ) -> Result<Container<Version>, SegmentError> {
        if let Some(row) = self.rows.get(key, sequence) {
            return match row.record {
                Some(bytes) => Ok(decode(&bytes)?.container),
                None => Ok(Container::default()),
            };
        }
        self.rows.missed();
        let read = self.segments.read(key, Some(live)).await?;
        let truth = whole(&read, live);
        let row_whole = truth.is_some();
        let container = truth.unwrap_or(read);
        let record = key.record(container.clone()).map(|record| record.encode());
        self.rows.insert(key.clone(), Row { sequence, record, whole: row_whole });
        Ok(container)
    }

    /// Reads a key wholly, graves included, and lets the index know all of it.
    ///
    /// # Errors
    /// As [`Engine::read`].
    pub(crate) async fn read_full(&self, key: &RecordKey) -> Result<(), SegmentError> {
        self.read_full_by(key, self.index_number()).await
    }

    /// As [`Engine::read_full`], for the index of this number; another one learns nothing of it.
    async fn read_full_by(&self, key: &RecordKey, number: u64) -> Result<(), SegmentError> {
        if self.graves.may_hold(key.hash) {
            self.exhume(key.hash).await?;
        }
        let brief = match self.read(key).await? {
            Found::Record(bytes) => decode(&bytes)?.container.map(|v| Brief::from(v)),
            Found::Absent => Container::default(),
        };
        let mut tables = self.tables.write();
        // What was read may be of a segment that was given up since.
        if tables.index_number == number {
            tables.index.join(key.hash, brief, true);
        }
        Ok(())
    }

    /// All that memory holds of a key, and what the index says is live if it knows.
    fn in_memory(&self, key: &RecordKey) -> (Container<Version>, Option<Container<Brief>>) {
        let tables = self.tables.read();
        let live = match tables.index.get(key.hash) {
            Known::All(live) => Some(live),
            Known::AtLeast(_) => None,
        };
        (tables.held(key), live)
    }

    // ---- flush ----

    /// Closes the active memtable, if it holds anything, and returns the oldest that is to be flushed.
    pub(crate) fn freeze(&self) -> Option<Arc<Memtable>> {
        let mut tables = self.tables.write();
        if tables.frozen.is_none() && !tables.active.is_empty() {
            let next = tables.active.log_number + 1;
            let mut full = std::mem::replace(&mut tables.active, Memtable::new(next));
            full.leaves = tables.take_leaf_deltas();
            if tables.index.is_complete() && self.tree_wanted.swap(false, Ordering::Relaxed) {
                full.tree = Some(tables.index.tree().clone());
            }
            tables.frozen = Some(Arc::new(full));
            if let Some(log) = &self.log {
                log.rotate(next);
            }
        }
        tables.frozen.clone()
    }

    /// Makes a flushed memtable's segment visible, lets go of the memtable, and tells who waited.
    pub(crate) fn publish(&self, table: &Memtable, entry: SegmentEntry) {
        let (object, bytes) = (entry.object.clone(), entry.bytes);
        self.segments.push(self.segments.open(object, bytes, Some(entry), Some(Instant::now())));
        for (key, _) in table.iter() {
            self.rows.raise(key.hash);
        }
        // While memory has it still: whoever finds it there no more, and changes what segments say, does so later.
        let sequences: Vec<u64> = table.iter().map(|(key, _)| self.rows.sequence(key.hash)).collect();
        let flushed = {
            let mut tables = self.tables.write();
            tables.frozen = None;
            let mut waiting = self.waiting.lock();
            waiting.extract_if(.., |(number, _)| *number <= table.log_number).collect::<Vec<_>>()
        };
        for (_, flushed) in flushed {
            flushed(Durability::Bucket);
        }
        self.rows.warm(table, &sequences);
    }

    /// Is the active memtable to be flushed for its size, or that of its log?
    fn is_full(&self, tables: &Tables) -> bool {
        let (logged, _) = self.log.as_ref().map_or((0, 0), |log| log.sizes());
        tables.active.bytes() > self.config.flush_bytes || logged > LOGGED * self.config.flush_bytes
    }

    /// The log files up to this number are gone.
    pub(crate) fn forgot_logs(&self, up_to: u64) {
        if let Some(log) = &self.log {
            log.forgot(up_to);
        }
    }

    /// Does the index know every key?
    pub(crate) fn index_complete(&self) -> bool {
        self.tables.read().index.is_complete()
    }

    /// Waits until another process has taken over this node's name.
    pub(crate) async fn fenced(&self) {
        loop {
            let told = self.told_fenced.notified();
            if self.is_fenced() {
                return;
            }
            told.await;
        }
    }

    /// Is somebody waiting for a flush?
    pub(crate) fn flush_wanted(&self) -> bool {
        let tables = self.tables.read();
        !self.waiting.lock().is_empty() || self.is_full(&tables)
    }

    /// Is there nothing unflushed?
    pub(crate) fn is_flushed(&self) -> bool {
        let tables = self.tables.read();
        tables.frozen.is_none() && tables.active.is_empty()
    }
}

fn decode(bytes: &Bytes) -> Result<Record, SegmentError> {
    Record::decode(bytes).map_err(damaged)
}

fn damaged(error: DecodeError) -> SegmentError {
    SegmentError::Damaged { object: "a record".to_owned(), error }
}
