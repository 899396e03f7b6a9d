//! Hints: what this node keeps for homes that can't be reached, until they take it (Dynamo, SOSP 2007,
//! section 4.6).
//!
//! A hint is a record and the home that it is meant for. It is taken in as any record is: in memory at once, on the
//! disk when the hints' log is synced, in the bucket when an object under `hints/{home}/` holds it; the home finds
//! it there even if this node never comes back. For each home this node knows whether it believes it `away`. Only
//! then new hints are kept without asking the home first; a home that says that it is back is believed.

mod epochs;
mod log_entry;
mod stored;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use cartwheel_bucket::SharedBucket;
use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock::{Actor, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::gossip::HintsHeld;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Brief, Record, Version};
use cartwheel_core::wire::Refusal;

use crate::disk::Disk;
use crate::engine::rules::{check_precondition, is_overfull, log_takes, reached_by_log};
use crate::engine::{Done, MintRequest};
use crate::epoch::{Incarnation, LeaseError};
use crate::log::{self, Log};
use crate::memtable::{Entry, Flushed, Memtable, RecordKey};
use crate::requests::Requests;
use log_entry::log_entry;
use stored::Stored;

/// How long a home that came back may take before it is told again.
const TAKING: Duration = Duration::from_secs(5);

/// Limits of the hints that a node keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HintsConfig {
    /// Bytes of hints, in memory and in the bucket; beyond it no more are taken.
    pub(crate) max_bytes: u64,
    /// Bytes of hints that are not in the bucket yet; beyond it no more are taken.
    pub(crate) unstored_bytes: u64,
    /// Bytes of hints in memory that are in the bucket too; beyond it the oldest stay in the bucket alone.
    pub(crate) memory_bytes: usize,
}

/// Hints for one home that came in between two uploads.
struct Table {
    generation: u64,
    log_number: u64,
    entries: Arc<Memtable>,
    /// Takes nothing more: it is being uploaded, or was.
    sealed: bool,
    /// The objects that hold it, once it is in the bucket.
    stored: Vec<Stored>,
    /// Who waits for it to be in the bucket.
    waiting: Vec<Flushed>,
}

impl Table {
    fn bytes(&self) -> u64 {
        let stored: u64 = self.stored.iter().map(|stored| stored.bytes).sum();
        stored.max(self.entries.bytes() as u64)
    }

    fn is_stored(&self) -> bool {
        !self.stored.is_empty()
    }
}

/// One home.
#[derive(Default)]
struct Target {
    away: bool,
    /// How often it came back.
    returns: u64,
    /// What comes in now belongs to this generation; raised each time that the home comes back.
    generation: u64,
    /// The generation that it was given when it came back last, and when that was.
    given: Option<(u64, Instant)>,
    /// The newest generation with a hint that the home may not hold.
    urgent: Option<u64>,
    /// Oldest first.
    tables: Vec<Table>,
    /// Objects whose records are not in memory any more, or never were in this process's; with their generation.
    only_stored: Vec<(u64, Stored)>,
    since: Option<Instant>,
}

impl Target {
    fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.only_stored.is_empty()
    }

    /// Does it lack something that it has not been given?
    fn is_urgent(&self) -> bool {
        self.away || self.urgent.is_some_and(|of| self.given.is_none_or(|(given, _)| of > given))
    }

    fn bytes(&self) -> u64 {
        let stored: u64 = self.only_stored.iter().map(|(_, stored)| stored.bytes).sum();
        stored + self.tables.iter().map(Table::bytes).sum::<u64>()
    }

    fn keys(&self) -> u64 {
        let stored: u64 = self.only_stored.iter().map(|(_, stored)| stored.keys.max(1)).sum();
        stored + self.tables.iter().map(|table| table.entries.len() as u64).sum::<u64>()
    }
}

struct State {
    /// Whoever this node stands in for, it mints as this actor.
    actor: Actor,
    /// Was anything minted as this actor?
    minted: bool,
    /// What was minted lately: also what a home has taken over since, and something has replaced.
    requests: Requests,
    log_number: u64,
    next_object: u64,
    targets: BTreeMap<NodeId, Target>,
    /// About how many bytes there are: counted at each upload, and what came in since.
    bytes: u64,
    /// How many of them are not in the bucket yet, in the same way.
    unstored: u64,
    /// Hints that were refused because the cap was reached.
    refused: u64,
}

impl State {
    /// Counts anew how many bytes there are.
    fn count(&mut self) {
        self.bytes = self.targets.values().map(Target::bytes).sum();
        let tables = self.targets.values().flat_map(|target| &target.tables);
        self.unstored = tables.filter(|table| !table.is_stored()).map(|t| t.entries.bytes() as u64).sum();
    }
}

/// All hints of a node.
pub(crate) struct Hints {
    config: HintsConfig,
    incarnation: Incarnation,
    bucket: SharedBucket,
    disk: Option<Arc<dyn Disk>>,
    seams: Seams,
    log: Option<Arc<Log>>,
    /// The first generation of this process: what an earlier one handed over says nothing of what this one keeps.
    first_generation: u64,
    state: Mutex<State>,
    stored: stored::Reader,
    /// Rung when hints should be uploaded now.
    upload_now: Notify,
    /// Rung when there is somebody to offer hints to.
    pub(crate) offer_now: Notify,
}

impl std::fmt::Debug for Hints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hints")
    }
}

/// What came of a mint on behalf of a home.
#[derive(Debug)]
pub(crate) enum HintMint {
    /// The version has this dot, and this is its delta.
    Made(Dot, Record),
    /// This request id was carried out before, under this dot; all that is kept of the key.
    Repeated(Dot, Record),
}

/// Where a hint may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// The home is believed away: hints for it are kept.
    Away,
    /// It is not: ask it first. With how often it came back, to be given to [`Hints::keep`].
    Present(u64),
}

/// What a home that came back is to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handover {
    /// Up to which generation.
    pub(crate) generation: u64,
    /// How many keys there are, in memory and in the bucket.
    pub(crate) keys: u64,
    /// Is there something among them that the home may not hold?
    pub(crate) urgent: bool,
}

impl Hints {
    /// Starts with what earlier processes left: `replayed`, from the log, and `found`, in the bucket.
    pub(crate) fn new(
        config: HintsConfig,
        (incarnation, epoch): (Incarnation, u32),
        bucket: SharedBucket,
        disk: Option<Arc<dyn Disk>>,
        seams: Seams,
        found: FoundHints,
    ) -> Self {
        let log_number = found.newest + 1;
        let log = disk.clone().map(|disk| Log::start(disk, log::HINTS, log_number, 0));
        let hints = Self {
            config,
            first_generation: u64::from(epoch) << 32,
            state: Mutex::new(State {
                actor: Actor { node: incarnation.node.clone(), epoch },
                minted: false,
                requests: Requests::default(),
                log_number,
                next_object: 0,
                targets: BTreeMap::new(),
                bytes: 0,
                unstored: 0,
                refused: 0,
            }),
            stored: stored::Reader::new(Arc::clone(&bucket)),
            incarnation,
            bucket,
            disk,
            seams,
            log,
            upload_now: Notify::new(),
            offer_now: Notify::new(),
        };
        {
            let mut state = hints.state.lock();
            for (home, stored) in found.stored {
                let target = state.targets.entry(home).or_default();
                target.urgent = Some(0);
                target.only_stored.push((0, stored));
            }
            for (home, key, record, number) in found.replayed {
                let target = state.targets.entry(home).or_default();
                target.urgent = Some(0);
                put(target, key, &record, number);
                hints.upload_now.notify_one();
            }
            state.count();
        }
        hints
    }

    /// May a hint come in, and can it reach `durability`?
    fn check(&self, state: &mut State, durability: Durability) -> Result<(), Refusal> {
        let bytes = state.bytes;
        if bytes > self.config.max_bytes {
            state.refused += 1;
            if state.refused.is_power_of_two() {
                let (limit, refused) = (self.config.max_bytes, state.refused);
                tracing::error!(bytes, limit, refused, "the hints kept for others are at their limit");
            }
            return Err(Refusal::Overloaded);
        }
        if state.unstored > self.config.unstored_bytes {
            return Err(Refusal::Overloaded);
        }
        log_takes(self.log.as_deref(), durability)
    }

    /// Is `home` believed away?
    pub(crate) fn presence(&self, home: &NodeId) -> Presence {
        match self.state.lock().targets.get(home) {
            Some(target) if target.away => Presence::Away,
            target => Presence::Present(target.map_or(0, |target| target.returns)),
        }
    }

    /// Believes from now on that `home` is away, unless it came back since `seen` was noted.
    pub(crate) fn believe_away(&self, home: &NodeId, seen: u64) {
        let mut state = self.state.lock();
        let target = state.targets.entry(home.clone()).or_default();
        if target.returns == seen {
            target.away = true;
            self.offer_now.notify_one();
        }
    }

    /// Keeps a record for `home`, which `holds_it` already or is believed away; `done` is called when it is as durable
    /// as asked. `false` if the home came back in this moment, and is to be asked.
    ///
    /// # Errors
    /// A refusal. After it, and after `false`, nothing was kept and `done` is not called.
    pub(crate) fn keep(
        &self,
        home: &NodeId,
        hash: KeyHash,
        record: &Record,
        holds_it: bool,
        durability: Durability,
        done: Done,
    ) -> Result<bool, Refusal> {
        let mut state = self.state.lock();
        self.check(&mut state, durability)?;
        if !holds_it {
            let target = state.targets.entry(home.clone()).or_default();
            if !target.away {
                return Ok(false);
            }
            target.urgent = Some(target.generation);
        }
        self.take_in(&mut state, home, hash, record, durability, done);
        Ok(true)
    }

    /// Makes a version on behalf of `home`. `known` is what the bucket alone holds of the key for others.
    ///
    /// # Errors
    /// A refusal; nothing was kept and `done` is not called.
    pub(crate) fn mint(
        &self,
        home: &NodeId,
        request: &MintRequest,
        known: Container<Version>,
        done: Done,
    ) -> Result<HintMint, Refusal> {
        let mut state = self.state.lock();
        self.check(&mut state, request.durability)?;
        let key = RecordKey::new(request.hash, &request.namespace, &request.key);
        let mut held = known;
        held.sync(held_in(&state, &key));
        let record =
            |container| Record { namespace: request.namespace.clone(), key: request.key.clone(), container };
        let same = held.siblings().iter().find(|s| s.version.request == request.version.request);
        if let Some(dot) = same.map(|s| s.dot.clone()) {
            return Ok(HintMint::Repeated(dot, record(held)));
        }
        let asked = (request.hash, request.version.request);
        if let Some(dot) = state.requests.dot(&asked).filter(|_| !removed(Rule::KnowRequests)).cloned() {
            if held.seen().contains(&dot) {
                return Ok(HintMint::Repeated(dot, record(held)));
            }
            return Err(Refusal::Unable(format!("{dot} was handed over")));
        }
        let brief = held.map(|v| Brief::from(v));
        check_precondition(&request.precondition, &brief, request.version.written_ms)?;
        let context = &request.version.context;
        if is_overfull(&brief, request) {
            return Err(Refusal::TooManySiblings(brief.into_parts().0));
        }
        let dot = brief.next_dot(&state.actor, context);
        let delta = record(Container::delta(context, dot.clone(), request.version.clone()));
        state.minted = true;
        state.requests.remember(asked, dot.clone());
        let target = state.targets.entry(home.clone()).or_default();
        target.urgent = Some(target.generation);
        self.take_in(&mut state, home, request.hash, &delta, request.durability, done);
        Ok(HintMint::Made(dot, delta))
    }

    fn take_in(
        &self,
        state: &mut State,
        home: &NodeId,
        hash: KeyHash,
        record: &Record,
        durability: Durability,
        done: Done,
    ) {
        let bytes = record.encode();
        let number = state.log_number;
        state.bytes += bytes.len() as u64;
        state.unstored += bytes.len() as u64;
        let target = state.targets.entry(home.clone()).or_default();
        if !removed(Rule::LeaveHints) {
            put(target, RecordKey::new(hash, &record.namespace, &record.key), record, number);
        }
        let entry = self.log.as_ref().map(|log| (log, log_entry(home, &bytes)));
        match (durability, entry) {
            (Durability::Disk, Some((log, entry))) => {
                log.push(entry, Some(Box::new(move |result| done(reached_by_log(result.is_ok())))));
            }
            (Durability::Bucket, entry) => {
                if let Some((log, entry)) = entry {
                    log.push(entry, None);
                }
                if let Some(table) = target.tables.last_mut() {
                    table.waiting.push(done);
                }
            }
            (_, entry) => {
                if let Some((log, entry)) = entry {
                    log.push(entry, None);
                }
                done(Durability::Memory);
            }
        }
        self.upload_now.notify_one();
        self.offer_now.notify_one();
    }

    /// Calls `done` when a version that is kept is as durable as asked.
    ///
    /// # Errors
    /// A refusal, if it is not kept (any more).
    pub(crate) fn confirm(
        &self,
        key: &RecordKey,
        dot: &Dot,
        durability: Durability,
        done: Done,
    ) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        let holds = |table: &&mut Table| {
            let entry = table.entries.get(key).and_then(|entry| Record::decode(&entry.record).ok());
            entry.is_some_and(|record| record.container.seen().contains(dot))
        };
        let mut tables = state.targets.values_mut().flat_map(|target| target.tables.iter_mut());
        let Some(table) = tables.find(holds) else {
            return Err(Refusal::Unable(format!("version {dot} is not held here")));
        };
        match (durability, &self.log) {
            _ if table.is_stored() => done(Durability::Bucket),
            (Durability::Bucket, _) => {
                table.waiting.push(done);
                self.upload_now.notify_one();
            }
            (Durability::Disk, Some(log)) => {
                log.confirm(Box::new(move |result| done(reached_by_log(result.is_ok()))));
            }
            _ => done(Durability::Memory),
        }
        Ok(())
    }

    /// All that is kept of a key, for whomever.
    ///
    /// # Errors
    /// What went wrong where the bucket was needed.
    pub(crate) async fn read(&self, key: &RecordKey) -> Result<Container<Version>, String> {
        let (mut held, stored) = {
            let state = self.state.lock();
            (held_in(&state, key), only_stored_in(&state))
        };
        if !stored.is_empty() {
            held.sync(self.stored.read(&stored, key).await?);
        }
        Ok(held)
    }

    /// What only the bucket holds of a key; nothing, without asking it, where all hints are in memory.
    ///
    /// # Errors
    /// As [`Hints::read`].
    pub(crate) async fn read_stored(&self, key: &RecordKey) -> Result<Container<Version>, String> {
        let stored = only_stored_in(&self.state.lock());
        self.stored.read(&stored, key).await
    }

    // ---- handing over ----

    /// `home` is back: it is asked before any new hint is kept for it.
    pub(crate) fn come_back(&self, home: &NodeId) -> Handover {
        let mut state = self.state.lock();
        let target = state.targets.entry(home.clone()).or_default();
        let urgent = target.is_urgent() && !target.is_empty();
        target.away = false;
        target.returns += 1;
        let generation = self.first_generation + target.generation;
        let handover = Handover { generation, keys: target.keys(), urgent };
        if removed(Rule::KeepHints) {
            target.tables.clear();
        }
        target.given = Some((target.generation, Instant::now()));
        target.generation += 1;
        handover
    }

    /// Hints for `home` that are kept from now on are of another generation than the one returned, or older ones.
    pub(crate) fn close_generation(&self, home: &NodeId) -> u64 {
        let mut state = self.state.lock();
        let target = state.targets.entry(home.clone()).or_default();
        let generation = self.first_generation + target.generation;
        target.generation += 1;
        generation
    }

    /// A page of the hints for `home` up to `generation` that are in memory, ascending, after `after`: at
    /// least one if there is one, about `budget` bytes, and whether there are more.
    ///
    /// # Errors
    /// A refusal, if another process named `generation`: the home has to come back once more.
    pub(crate) fn page(
        &self,
        home: &NodeId,
        generation: u64,
        after: Option<&RecordKey>,
        budget: usize,
    ) -> Result<(Vec<Bytes>, bool), Refusal> {
        let Some(generation) = generation.checked_sub(self.first_generation) else {
            return Err(Refusal::Unable("this process was not asked to hand over yet".to_owned()));
        };
        let budget = budget.max(1);
        let mut state = self.state.lock();
        // It is at it: no need to tell it again.
        if let Some((_, at)) = state.targets.get_mut(home).and_then(|target| target.given.as_mut()) {
            *at = Instant::now();
        }
        let mut found: BTreeMap<RecordKey, Record> = BTreeMap::new();
        let mut bound: Option<RecordKey> = None;
        let tables = state.targets.get(home).into_iter().flat_map(|target| &target.tables);
        for table in tables.filter(|table| table.generation <= generation) {
            let mut size = 0;
            for (key, entry) in table.entries.range(KeyHash(0), KeyHash(u128::MAX), after) {
                if size >= budget {
                    bound = Some(bound.map_or_else(|| key.clone(), |b| b.min(key.clone())));
                    break;
                }
                size += entry.record.len();
                let Ok(record) = Record::decode(&entry.record) else { continue };
                match found.get_mut(key) {
                    Some(held) => held.container.sync(record.container),
                    None => drop(found.insert(key.clone(), record)),
                }
            }
        }
        let more = bound.is_some();
        let within = found.into_iter().filter(|(key, _)| bound.as_ref().is_none_or(|b| key < b));
        Ok((within.map(|(_, record)| record.encode()).collect(), more))
    }

    /// `home` has persisted the hints up to `generation`: they are let go of. What is minted from now on is under a
    /// new epoch. Hints that another process named are kept.
    ///
    /// # Errors
    /// [`LeaseError`]: the hints are kept.
    pub(crate) async fn took(&self, home: &NodeId, generation: u64) -> Result<(), LeaseError> {
        let Some(generation) = generation.checked_sub(self.first_generation) else { return Ok(()) };
        self.renew_epoch().await?;
        {
            let mut state = self.state.lock();
            let Some(target) = state.targets.get_mut(home) else { return Ok(()) };
            let taken = target.tables.extract_if(.., |table| table.generation <= generation);
            let waiting: Vec<Flushed> = taken.flat_map(|table| table.waiting).collect();
            target.only_stored.retain(|(of, _)| *of > generation);
            target.since = (!target.is_empty()).then(Instant::now);
            self.rotate_emptied_log(&mut state);
            state.count();
            drop(state);
            // The home has them in the bucket: that is what was waited for.
            waiting.into_iter().for_each(|flushed| flushed(Durability::Bucket));
        }
        self.forget_logs().await;
        Ok(())
    }

    /// Ends the file of the log that is written to if nothing in it is needed any more.
    fn rotate_emptied_log(&self, state: &mut State) {
        let mut tables = state.targets.values().flat_map(|target| &target.tables);
        if tables.all(|table| table.log_number != state.log_number) {
            state.log_number += 1;
            if let Some(log) = &self.log {
                log.rotate(state.log_number);
            }
        }
    }

    /// The newest epoch that this process has leased.
    pub(crate) fn newest_epoch(&self) -> u32 {
        self.state.lock().actor.epoch
    }

    /// Bytes of hints in memory.
    pub(crate) fn held_bytes(&self) -> u64 {
        let state = self.state.lock();
        let tables = state.targets.values().flat_map(|target| &target.tables);
        tables.map(|table| table.entries.bytes() as u64).sum()
    }

    /// Is anything kept for one of these homes?
    pub(crate) fn keeps_any_for(&self, homes: &[NodeId]) -> bool {
        let state = self.state.lock();
        state.targets.iter().any(|(home, target)| !target.is_empty() && homes.contains(home))
    }

    /// The homes that hints are kept for, with how many and how old they are.
    pub(crate) fn held(&self) -> Vec<HintsHeld> {
        let state = self.state.lock();
        let targets = state.targets.iter().filter(|(_, target)| !target.is_empty());
        targets
            .map(|(home, target)| HintsHeld {
                target: home.clone(),
                keys: target.keys(),
                bytes: target.bytes(),
                oldest_ms: target
                    .since
                    .map_or(0, |since| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)),
            })
            .collect()
    }

    /// The homes to be told that hints are kept for them, and whether they may lack some. A home that has come back
    /// is left some time to take them; one that is believed away is told so even if nothing came of it.
    pub(crate) fn to_offer(&self) -> Vec<(NodeId, bool)> {
        let state = self.state.lock();
        let targets = state.targets.iter().filter(|(_, target)| target.away || !target.is_empty());
        let due = targets.filter(|(_, target)| {
            target.is_urgent() || target.given.is_none_or(|(_, at)| at.elapsed() > TAKING)
        });
        due.map(|(home, target)| (home.clone(), target.is_urgent())).collect()
    }

    /// Is there nobody to offer anything to, now or later?
    pub(crate) fn is_idle(&self) -> bool {
        self.state.lock().targets.values().all(|target| target.is_empty() && !target.away)
    }

    /// The homes that are believed away.
    pub(crate) fn away(&self) -> Vec<NodeId> {
        let state = self.state.lock();
        state.targets.iter().filter(|(_, target)| target.away).map(|(home, _)| home.clone()).collect()
    }

    /// How many hints were refused because of the cap.
    pub(crate) fn refused(&self) -> u64 {
        self.state.lock().refused
    }
}

/// Adds a record to the newest table of a home.
fn put(target: &mut Target, key: RecordKey, record: &Record, log_number: u64) {
    target.since.get_or_insert_with(Instant::now);
    let generation = target.generation;
    let open = target.tables.last().is_some_and(|table| {
        !table.sealed && table.generation == generation && table.log_number == log_number
    });
    if !open {
        target.tables.push(Table {
            generation,
            log_number,
            entries: Arc::default(),
            sealed: false,
            stored: Vec::new(),
            waiting: Vec::new(),
        });
    }
    // An open table is held by nobody else.
    let Some(entries) = target.tables.last_mut().and_then(|table| Arc::get_mut(&mut table.entries)) else {
        return;
    };
    merge(entries, key, record);
}

/// Adds a record to what a memtable holds of its key.
fn merge(entries: &mut Memtable, key: RecordKey, record: &Record) {
    let mut container = record.container.clone();
    if let Some(held) = entries.get(&key).and_then(|entry| Record::decode(&entry.record).ok()) {
        container.sync(held.container);
    }
    let record = Record { namespace: record.namespace.clone(), key: record.key.clone(), container }.encode();
    entries.insert(key, Entry { record, complete: false });
}

fn only_stored_in(state: &State) -> Vec<Stored> {
    let targets = state.targets.values();
    targets.flat_map(|target| target.only_stored.iter().map(|(_, stored)| stored.clone())).collect()
}

fn held_in(state: &State, key: &RecordKey) -> Container<Version> {
    let mut held = Container::default();
    for table in state.targets.values().flat_map(|target| &target.tables) {
        let entry = table.entries.get(key).and_then(|entry| Record::decode(&entry.record).ok());
        if let Some(record) = entry {
            held.sync(record.container);
        }
    }
    held
}

pub(crate) use stored::{FindError, FoundHints, find};

#[cfg(test)]
mod tests;
