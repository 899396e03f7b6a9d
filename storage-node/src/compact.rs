//! Merging segments: joins what they hold of each key, drops what was replaced, lays deletions that every home may
//! forget into graves.
//!
//! What to merge is decided in `cartwheel_core::compaction`. The work is read outside the caches and paced; its outcome
//! is put piece by piece under names made from those of its inputs, so that a process that is killed leaves pieces that
//! the next one goes on from. Only the manifest makes them count (docs/manifest-protocol.md).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use cartwheel_bucket::{BucketError, Created, SharedBucket, list_all};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::compaction::{Amount, GROUPS, MAX_INPUTS, Picture, Plan, Run, Why, group_of, plan};
use cartwheel_core::container::Container;
use cartwheel_core::hash::{KeyHash, checksum};
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::merkle::{LeafSum, leaf};
use cartwheel_core::names::NodeId;
use cartwheel_core::record::{Brief, Record, Version};
use cartwheel_core::segment::{BuiltSegment, ClockColumn, SegmentBuilder, SegmentMeta};

use crate::engine::{Engine, Reaped};
use crate::give_away::GiveAway;
use crate::ledger::{Committed, Ledger, Working};
use crate::memtable::RecordKey;
use crate::pace::Pace;
use crate::reap::{EXPIRED_FOR, Proofs};
use crate::segments::{Cursor, Item, Segment, SegmentError};

/// The pause after a merge that failed.
const PAUSE: Duration = Duration::from_secs(5);
/// How often to look for something to merge when nothing calls for it.
const LOOK: Duration = Duration::from_secs(10);
/// Graves are merged when there are so many.
const MAX_GRAVES: usize = 8;

/// Merges segments.
pub(crate) struct Compactor {
    pub(crate) engine: Arc<Engine>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) bucket: SharedBucket,
    pub(crate) seams: Seams,
    pub(crate) node: NodeId,
    pub(crate) hash_seed: u64,
    pub(crate) pace: Arc<Pace>,
    pub(crate) proofs: Arc<Proofs>,
    /// Bytes of one piece of the outcome.
    pub(crate) piece_bytes: usize,
    /// Segments younger than this are not merged into large ones.
    pub(crate) settle: Duration,
    /// Rung when there may be something to merge.
    pub(crate) wake: Arc<Notify>,
    /// Forgets what others hold now, between merges.
    pub(crate) give_away: Option<Arc<GiveAway>>,
}

/// Why a merge did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompactError {
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A segment could not be read.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// What was built does not hold what was read. Nothing was changed.
    #[error("the outcome of a merge does not hold what went in: {0}")]
    Unequal(&'static str),
    /// This process has not the say any more, or the manifest could not be written yet.
    #[error("the manifest does not name the outcome yet")]
    Uncommitted,
}

/// The segments of one run.
#[derive(Debug, Default)]
struct RunOf {
    segments: Vec<Arc<Segment>>,
    amount: Amount,
    groups: Option<(u32, u32)>,
    settled: bool,
    borrowed: bool,
}

impl Compactor {
    /// Merges whenever that is worthwhile, until the process ends.
    pub(crate) async fn run(self) {
        loop {
            if let Some(give_away) = &self.give_away
                && let Err(why) = give_away.once().await
            {
                tracing::warn!(%why, "can't forget what others hold now yet");
            }
            let pause = match self.once().await {
                Ok(true) => continue,
                Ok(false) => LOOK.min(self.settle.max(Duration::from_millis(500))),
                Err(error) => {
                    tracing::warn!(%error, "a merge of segments failed; trying again");
                    PAUSE
                }
            };
            // Whoever rings, or nobody: there is something to merge, or a look finds nothing.
            drop(tokio::time::timeout(pause, self.wake.notified()).await);
        }
    }

    /// One merge, if one is worthwhile.
    pub(crate) async fn once(&self) -> Result<bool, CompactError> {
        // Until the index knows every key, it can't be told what is forgotten.
        if !self.engine.index_complete() || self.engine.is_fenced() {
            return Ok(false);
        }
        let theirs = |grave: &&Arc<Segment>| !self.ledger.is_own(&grave.object) && !self.is_damaged(grave);
        let graves = self.engine.graves.segments.all();
        let borrowed: Vec<Arc<Segment>> = graves.iter().filter(theirs).take(MAX_INPUTS).cloned().collect();
        if !borrowed.is_empty() {
            self.merge_graves(&borrowed).await.inspect_err(|error| self.note_damage(error))?;
            return Ok(true);
        }
        let all = self.engine.segments.all();
        let runs = self.runs(&all).await?;
        let expired = self.seams.clock.now_ms().saturating_sub(EXPIRED_FOR);
        let (live, reapable) =
            (self.engine.live(), self.proofs.due(|hash, leaf| self.engine.is_dead_as(hash, leaf, expired)));
        let seen: Vec<Run> = runs.iter().map(RunOf::seen).collect();
        if let Some(plan) = plan(&Picture { runs: &seen, live: &live, reapable: &reapable }) {
            let inputs: Vec<Arc<Segment>> =
                plan.inputs.iter().flat_map(|at| &runs[*at].segments).cloned().collect();
            self.merge(&inputs, &plan).await.inspect_err(|error| self.note_damage(error))?;
            return Ok(true);
        }
        let graves = self.engine.graves.segments.all();
        let small = |grave: &&Arc<Segment>| grave.bytes < self.piece_bytes as u64 / 2;
        let small: Vec<Arc<Segment>> = graves.iter().filter(small).take(MAX_INPUTS).cloned().collect();
        if small.len() > MAX_GRAVES {
            self.merge_graves(&small).await.inspect_err(|error| self.note_damage(error))?;
            return Ok(true);
        }
        Ok(false)
    }

    fn is_damaged(&self, segment: &Segment) -> bool {
        self.engine.is_noted(&segment.object)
    }

    fn note_damage(&self, error: &CompactError) {
        let CompactError::Segment(error) = error else { return };
        let Some(object) = error.damaged_object() else { return };
        if self.ledger.names(object) {
            self.engine.note(error);
        } else {
            // A piece that an earlier try has put: it goes as an orphan, and the merge is begun under another name.
            tracing::error!(%error, "a piece of a merge is damaged; beginning anew");
            self.ledger.finish();
        }
    }

    /// The runs, oldest first.
    async fn runs(&self, all: &[Arc<Segment>]) -> Result<Vec<RunOf>, CompactError> {
        let now = Instant::now();
        let mut runs: Vec<(String, RunOf)> = Vec::new();
        let mut damaged = BTreeSet::new();
        for segment in all {
            let entry = match segment.entry(&self.bucket).await {
                Ok(entry) => entry,
                Err(error) if error.damaged_object().is_some() => {
                    self.engine.note(&error);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if self.is_damaged(segment) {
                damaged.insert(entry.run.clone());
            }
            let (first, last) = match &*entry.only {
                [] => (entry.first, entry.last),
                [first, .., last] => (first.first, last.last),
                [one] => (one.first, one.last),
            };
            let groups = (group_of(first), group_of(last));
            let settled = segment.born.is_none_or(|born| now.saturating_duration_since(born) >= self.settle);
            let at = match runs.iter().position(|(run, _)| *run == entry.run) {
                Some(at) => at,
                None => {
                    runs.push((entry.run.clone(), RunOf { settled: true, ..RunOf::default() }));
                    runs.len() - 1
                }
            };
            let run = &mut runs[at].1;
            run.segments.push(Arc::clone(segment));
            // Of its own what is not needed any more takes room all the same.
            let amount = match self.ledger.is_own(&segment.object) {
                true => Amount { bytes: entry.bytes, records: entry.records },
                false => Amount::of(entry),
            };
            run.amount = [run.amount, amount].into_iter().sum();
            run.settled &= settled;
            run.borrowed |= !self.ledger.is_own(&segment.object);
            run.groups = Some(match run.groups {
                Some((low, high)) => (low.min(groups.0), high.max(groups.1)),
                None => groups,
            });
        }
        // A run is merged as a whole or not at all.
        Ok(runs.into_iter().filter(|(run, _)| !damaged.contains(run)).map(|(_, run)| run).collect())
    }

    /// Carries a plan out with these segments.
    pub(crate) async fn merge(&self, inputs: &[Arc<Segment>], plan: &Plan) -> Result<(), CompactError> {
        let began = Instant::now();
        // Until it is done, for its pieces are no orphans.
        let working = self.begin(inputs, plan.split);
        let outcome = self.write(&working.label, inputs, plan.split).await?;
        let Outcome { pieces, graves, reaped, records } = outcome;
        let reaped: Vec<Reaped> = reaped.into_iter().map(|(key, record)| Reaped { key, record }).collect();
        // Of one whose age is not known, nothing is known of the whole.
        let born = inputs.iter().map(|segment| segment.born).collect::<Option<Vec<_>>>();
        let born = born.and_then(|all| all.into_iter().max());
        let born_ms = self.born_ms(inputs);
        let bytes: u64 = pieces.iter().map(|entry| entry.bytes).sum();
        let with = pieces.into_iter().map(|entry| {
            let entry = SegmentEntry { born_ms, ..entry };
            self.engine.segments.open(entry.object.clone(), entry.bytes, Some(entry), born)
        });
        let with: Vec<Arc<Segment>> = with.collect();
        let pieces = with.len();
        let graves: Vec<Arc<Segment>> =
            graves.into_iter().map(|grave| self.engine.graves.open(grave)).collect();
        for grave in &graves {
            grave.meta(&self.bucket).await?;
        }
        if !reaped.is_empty() {
            // What was flushed meanwhile is looked at when the keys are forgotten: with its filter, that is exact.
            self.load_filters(&self.engine.segments.all()).await?;
        }
        graves.into_iter().for_each(|grave| self.engine.graves.segments.push(grave));
        let done = self.ledger.change(inputs, || self.engine.swap(inputs, with, &reaped)).await;
        self.ledger.finish();
        self.proofs.forget(reaped.iter().map(|reaped| reaped.key.hash));
        if let Why::Reap(group) = plan.why
            && !plan.split
        {
            self.proofs.note_tried(group, inputs.iter().filter_map(|segment| segment.known()));
        }
        tracing::info!(
            why = ?plan.why,
            segments = inputs.len(),
            pieces,
            records,
            reaped = reaped.len(),
            read = inputs.iter().map(|segment| segment.bytes).sum::<u64>(),
            written = bytes,
            millis = began.elapsed().as_millis(),
            "merged segments"
        );
        match done {
            Committed::Yes => Ok(()),
            Committed::NotYet | Committed::TakenOver => Err(CompactError::Uncommitted),
        }
    }

    /// When the newest record of these was put, by the store's clock; 0 if that is not known.
    fn born_ms(&self, inputs: &[Arc<Segment>]) -> u64 {
        let time = self.ledger.store_time();
        let known = |segment: &Arc<Segment>| match segment.known() {
            Some(entry) if entry.born_ms > 0 => Some(entry.born_ms),
            // A little later than it was: what is taken for younger is only given to others once more.
            _ => segment.born.map(|born| time.ms_of(born).saturating_add(5000)),
        };
        inputs
            .iter()
            .map(known)
            .collect::<Option<Vec<u64>>>()
            .and_then(|all| all.into_iter().max())
            .unwrap_or(0)
    }

    /// Reads the inputs and puts what comes of them, going on from what an earlier try has put.
    async fn write(
        &self,
        label: &str,
        inputs: &[Arc<Segment>],
        split: bool,
    ) -> Result<Outcome, CompactError> {
        let others = self.others(inputs);
        if self.proofs.len() > 0 {
            self.load_filters(&others).await?;
        }
        'resume: loop {
            let mut outcome = self.resume(label, split).await?;
            let resumed = !outcome.graves.is_empty();
            let after = outcome.pieces.last().map(|piece| piece.last);
            let mut sources = Sources::open(&self.bucket, inputs, self.hash_seed, after).await?;
            while let Some(built) = self.build(&mut sources, split, &others, after).await? {
                let Piece { segment, grave, reaped, records, last: _ } = built;
                // Before the piece that leaves its records out. One that an earlier try has put may do.
                let buried = reaped.iter().all(|r| outcome.reaped.get(&r.key) == Some(&r.record));
                if let Some(grave) = grave.filter(|_| !buried) {
                    let n = outcome.graves.last().and_then(|last| number_of(&last.object)).unwrap_or(0) + 1;
                    let object = format!("nodes/{}/g/{label}/{n:010}.seg", self.node);
                    let Some(entry) = self.put(object, &grave).await? else { continue 'resume };
                    outcome.graves.push(SegmentEntry { run: run_of(label, false, &entry), ..entry });
                }
                outcome.reaped.extend(reaped.into_iter().map(|Reaped { key, record }| (key, record)));
                outcome.records += records;
                let Some(segment) = segment else { continue };
                let n = outcome.pieces.len() + 1;
                let object = format!("nodes/{}/c/{label}/{n:010}.seg", self.node);
                // Where another process has put one of that name, cut elsewhere perhaps, it counts, with the graves
                // that belong to it.
                let Some(entry) = self.put(object, &segment).await? else { continue 'resume };
                outcome.pieces.push(SegmentEntry { run: run_of(label, split, &entry), ..entry });
            }
            if resumed {
                self.spare(&mut outcome).await?;
            }
            return Ok(outcome);
        }
    }

    /// What an earlier try has put of this merge, if it is in order.
    async fn resume(&self, label: &str, split: bool) -> Result<Outcome, CompactError> {
        let mut outcome = Outcome::default();
        for piece in list_all(&*self.bucket, &format!("nodes/{}/c/{label}/", self.node)).await? {
            let n = outcome.pieces.len() + 1;
            if piece.key != format!("nodes/{}/c/{label}/{n:010}.seg", self.node) {
                break;
            }
            let segment = self.engine.segments.open(piece.key, piece.size, None, None);
            let entry = segment.entry(&self.bucket).await?.clone();
            outcome.records += entry.records;
            outcome.pieces.push(SegmentEntry { run: run_of(label, split, &entry), ..entry });
        }
        // After the pieces: what these leave out was laid into graves before.
        for grave in list_all(&*self.bucket, &format!("nodes/{}/g/{label}/", self.node)).await? {
            let segment = self.engine.graves.segments.open(grave.key, grave.size, None, None);
            let entry = segment.entry(&self.bucket).await?.clone();
            outcome.graves.push(SegmentEntry { run: run_of(label, false, &entry), ..entry });
            let mut cursor = Cursor::open(&self.bucket, &segment, self.hash_seed, None).await?;
            while let Some(Item { key, record, .. }) = cursor.next().await? {
                outcome.reaped.insert(key, record);
            }
        }
        if !outcome.pieces.is_empty() {
            tracing::info!(pieces = outcome.pieces.len(), "going on with a merge that failed");
        }
        Ok(outcome)
    }

    /// Keys that an earlier try has laid into a grave, but that a piece holds all the same, are not forgotten.
    async fn spare(&self, outcome: &mut Outcome) -> Result<(), CompactError> {
        for piece in &outcome.pieces {
            let segment =
                self.engine.segments.open(piece.object.clone(), piece.bytes, Some(piece.clone()), None);
            let mut kept = HashSet::new();
            for entry in segment.clocks(&self.bucket).await? {
                kept.insert(entry.map_err(|_| CompactError::Unequal("it can't be read"))?.0);
            }
            outcome.reaped.retain(|key, _| !kept.contains(&key.hash));
        }
        Ok(())
    }

    /// Begins a merge. With other ranges of a segment that is borrowed it is another one: the pieces of an earlier try
    /// lack what was outside.
    fn begin(&self, inputs: &[Arc<Segment>], split: bool) -> Working {
        let name = |segment: &Arc<Segment>| match segment.only() {
            [] => segment.object.clone(),
            only => format!("{} {only:?}", segment.object),
        };
        let mut names: Vec<String> = inputs.iter().map(name).collect();
        names.sort_unstable();
        self.ledger.begin(checksum(format!("{}\n{split}", names.join("\n")).as_bytes()))
    }

    /// Puts a piece; `None` if another one lies there.
    async fn put(&self, object: String, built: &BuiltSegment) -> Result<Option<SegmentEntry>, CompactError> {
        Ok(match self.bucket.create(&object, built.bytes.clone()).await? {
            Created::New => Some(SegmentEntry::of(object, built)),
            Created::Exists => None,
        })
    }

    async fn load_filters(&self, segments: &[Arc<Segment>]) -> Result<(), CompactError> {
        for segment in segments {
            segment.meta(&self.bucket).await?;
        }
        Ok(())
    }

    /// The segments that are not merged now.
    fn others(&self, inputs: &[Arc<Segment>]) -> Vec<Arc<Segment>> {
        let all = self.engine.segments.all();
        all.iter().filter(|segment| !inputs.iter().any(|i| Arc::ptr_eq(i, segment))).cloned().collect()
    }

    /// Builds the next piece; `None` at the end.
    async fn build(
        &self,
        sources: &mut Sources,
        split: bool,
        others: &[Arc<Segment>],
        after: Option<KeyHash>,
    ) -> Result<Option<Piece>, CompactError> {
        let (mut builder, mut grave) = (SegmentBuilder::new(), SegmentBuilder::new());
        let mut piece = Piece::default();
        let (mut kept, mut buried) = (LeafSum::default(), LeafSum::default());
        let expired = self.seams.clock.now_ms().saturating_sub(EXPIRED_FOR);
        let mut unpaid = 0;
        while let Some(hash) = sources.next_hash() {
            let full = builder.bytes() + grave.bytes() >= self.piece_bytes;
            let crossing = split && piece.last.is_some_and(|last| group_of(last) != group_of(hash));
            if piece.last.is_some_and(|last| last != hash) && (full || crossing) {
                break;
            }
            let Some(merged) = sources.next(expired).await? else { break };
            debug_assert!(after.is_none_or(|after| hash > after), "cursors begin after what was put");
            piece.last = Some(hash);
            piece.records += 1;
            unpaid += merged.read;
            if unpaid > PAID_AT_ONCE {
                self.pace.turn(std::mem::take(&mut unpaid)).await;
            }
            let Merged { key, record, brief, .. } = merged;
            let seen = record.container.seen();
            let is_dead = brief.siblings().iter().all(|s| s.version.is_dead(expired));
            let reap = is_dead
                && self.proofs.holds(hash, leaf(hash, seen))
                && !others.iter().any(|segment| segment.may_hold(hash));
            if reap {
                buried.add(hash, brief.seen());
                grave.push(hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
                piece.reaped.push(Reaped { key, record });
            } else {
                kept.add(hash, brief.seen());
                builder.push(hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
            }
        }
        if piece.last.is_none() {
            return Ok(None);
        }
        self.pace.turn(unpaid).await;
        piece.segment = builder.finish();
        piece.grave = grave.finish();
        check(piece.segment.as_ref(), kept)?;
        check(piece.grave.as_ref(), buried)?;
        Ok(Some(piece))
    }

    /// Merges graves.
    async fn merge_graves(&self, graves: &[Arc<Segment>]) -> Result<(), CompactError> {
        let working = self.begin(graves, false);
        let mut sources = Sources::open(&self.bucket, graves, self.hash_seed, None).await?;
        let mut merged = Vec::new();
        while sources.next_hash().is_some() {
            let mut builder = SegmentBuilder::new();
            let mut kept = LeafSum::default();
            while builder.bytes() < self.piece_bytes
                && let Some(Merged { key, record, brief, read }) = sources.next(0).await?
            {
                kept.add(key.hash, brief.seen());
                builder.push(key.hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
                self.pace.turn(read).await;
            }
            let Some(built) = builder.finish() else { break };
            check(Some(&built), kept)?;
            let object = format!("nodes/{}/g/{}/{:010}.seg", self.node, working.label, merged.len() + 1);
            // One cut elsewhere is of no use; it goes as an orphan, and then this is done under another name.
            let entry =
                self.put(object, &built).await?.ok_or(CompactError::Unequal("graves cut elsewhere"))?;
            let entry = SegmentEntry { run: run_of(&working.label, false, &entry), ..entry };
            let grave = self.engine.graves.open(entry);
            grave.meta(&self.bucket).await?;
            merged.push(grave);
        }
        let merge = || self.engine.graves.segments.replace(graves, merged);
        match self.ledger.change(graves, merge).await {
            Committed::Yes => Ok(()),
            Committed::NotYet | Committed::TakenOver => Err(CompactError::Uncommitted),
        }
    }
}

/// The run that a piece of a merge is part of: where the outcome is split, each group's pieces are one.
fn run_of(label: &str, split: bool, piece: &SegmentEntry) -> String {
    if split { format!("{label}/{}", group_of(piece.first)) } else { format!("{label}/") }
}

/// The number at the end of an object's name.
fn number_of(object: &str) -> Option<u64> {
    object.rsplit_once('/')?.1.strip_suffix(".seg")?.parse().ok()
}

/// Bytes read before the pace is asked for more.
const PAID_AT_ONCE: usize = 256 * 1024;

/// What has been put of a merge.
#[derive(Debug, Default)]
struct Outcome {
    pieces: Vec<SegmentEntry>,
    graves: Vec<SegmentEntry>,
    reaped: BTreeMap<RecordKey, Record>,
    records: u64,
}

/// What one piece holds.
#[derive(Debug, Default)]
struct Piece {
    segment: Option<BuiltSegment>,
    grave: Option<BuiltSegment>,
    reaped: Vec<Reaped>,
    records: u64,
    last: Option<KeyHash>,
}

/// Reads back the clocks of what was built: they sum up to what the inputs' clocks come to (P1).
fn check(built: Option<&BuiltSegment>, told: LeafSum) -> Result<(), CompactError> {
    let Some(built) = built else {
        return if told == LeafSum::default() {
            Ok(())
        } else {
            Err(CompactError::Unequal("nothing was built"))
        };
    };
    let unreadable = |_| CompactError::Unequal("it can't be read");
    let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let tail = built.bytes.slice(at(built.tail_offset)..);
    let meta = SegmentMeta::decode(&tail, built.tail_offset).map_err(unreadable)?;
    let (offset, length) = meta.clock_column();
    let column = built.bytes.slice(at(offset)..at(offset + length));
    let mut found = LeafSum::default();
    for entry in ClockColumn::open(&column).map_err(unreadable)? {
        let (hash, brief) = entry.map_err(unreadable)?;
        found.add(hash, brief.seen());
    }
    if found == told { Ok(()) } else { Err(CompactError::Unequal("the sums of the clocks differ")) }
}

/// All that the inputs hold of one key.
struct Merged {
    key: RecordKey,
    record: Record,
    /// The same, joined from briefs alone: what the outcome is checked against.
    brief: Container<Brief>,
    /// Bytes that were read for it.
    read: usize,
}

/// The segments of one run, read one after the other: no key is in two of them.
struct Chain {
    /// Those to come, the next one last.
    segments: Vec<Arc<Segment>>,
    cursor: Option<Cursor>,
}

/// The inputs of a merge, read side by side.
struct Sources {
    bucket: SharedBucket,
    hash_seed: u64,
    after: Option<KeyHash>,
    chains: Vec<Chain>,
    /// The next record of each, by its place.
    heads: BTreeMap<(crate::memtable::RecordKey, usize), Item>,
}

impl Sources {
    async fn open(
        bucket: &SharedBucket,
        inputs: &[Arc<Segment>],
        hash_seed: u64,
        after: Option<KeyHash>,
    ) -> Result<Self, SegmentError> {
        let mut runs: BTreeMap<&str, Vec<(KeyHash, &Arc<Segment>)>> = BTreeMap::new();
        for segment in inputs {
            let entry = segment.entry(bucket).await?;
            runs.entry(&entry.run).or_default().push((entry.first, segment));
        }
        let mut sources =
            Self { bucket: Arc::clone(bucket), hash_seed, after, chains: Vec::new(), heads: BTreeMap::new() };
        for (_, mut segments) in runs {
            segments.sort_by_key(|(first, _)| std::cmp::Reverse(*first));
            let segments = segments.into_iter().map(|(_, segment)| Arc::clone(segment)).collect();
            sources.chains.push(Chain { segments, cursor: None });
        }
        for at in 0..sources.chains.len() {
            sources.advance(at).await?;
        }
        Ok(sources)
    }

    async fn advance(&mut self, at: usize) -> Result<(), SegmentError> {
        let chain = &mut self.chains[at];
        loop {
            if let Some(cursor) = &mut chain.cursor {
                if let Some(item) = cursor.next().await? {
                    self.heads.insert((item.key.clone(), at), item);
                    return Ok(());
                }
                chain.cursor = None;
            }
            let Some(segment) = chain.segments.pop() else { return Ok(()) };
            let is_done =
                self.after.is_some_and(|after| segment.known().is_some_and(|known| known.last <= after));
            if !is_done {
                let cursor = Cursor::open(&self.bucket, &segment, self.hash_seed, self.after).await?;
                chain.cursor = Some(cursor);
            }
        }
    }

    fn next_hash(&self) -> Option<KeyHash> {
        self.heads.first_key_value().map(|((key, _), _)| key.hash)
    }

    /// The next key with all that the inputs hold of it; values that expired before `expired` are left out.
    async fn next(&mut self, expired: u64) -> Result<Option<Merged>, SegmentError> {
        let Some(((key, at), Item { mut record, bytes, .. })) = self.heads.pop_first() else {
            return Ok(None);
        };
        let mut read = bytes.len();
        let mut brief = record.container.map(|v| Brief::from(v));
        self.advance(at).await?;
        while let Some(entry) = self.heads.first_entry()
            && entry.key().0 == key
        {
            let ((_, at), item) = entry.remove_entry();
            read += item.bytes.len();
            brief.sync(item.record.container.map(|v| Brief::from(v)));
            record.container.sync(item.record.container);
            self.advance(at).await?;
        }
        if record.container.siblings().iter().any(|s| Brief::from(&s.version).is_dead(expired)) {
            record.container = record.container.map(|version| Version::as_of(version.clone(), expired));
        }
        Ok(Some(Merged { key, record, brief, read }))
    }
}

impl RunOf {
    fn seen(&self) -> Run {
        let group = self.groups.filter(|(low, high)| low == high).map(|(group, _)| group);
        let group = group.filter(|group| *group < GROUPS);
        Run { amount: self.amount, group, settled: self.settled, borrowed: self.borrowed }
    }
}

#[cfg(test)]
mod tests;
