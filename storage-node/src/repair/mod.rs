//! Anti-entropy (Dynamo, SOSP 2007, section 4.7): homes of a partition compare what they hold and give each other what
//! is missing, always, whether anything was lost or not.
//!
//! Every node asks every other home in turn. A round in which nothing differs costs one call for each other home: the
//! roots of all partitions that both hold.

pub(crate) mod answer;
mod book;
pub(crate) mod exchange;
pub(crate) mod image;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt, iter};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use cartwheel_bucket::SharedBucket;
use cartwheel_cluster::membership::{Follower, View};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::merkle::Span;
use cartwheel_core::names::NodeId;

use crate::copier::Copier;
use book::{Book, BookFigures};
use exchange::{Exchange, Exchanged};

/// How often the book is written while nothing was repaired.
const WRITE_EVERY: Duration = Duration::from_secs(15 * 60);
/// The pause before what could not be done is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// And before the book is looked for again.
const BOOK_PAUSE: Duration = Duration::from_secs(5);
/// Partitions that are compared with one other home at the same time.
const AT_ONCE: usize = 16;
/// How long a round that was asked for waits for the clock index.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be compared, and how far that is.
#[derive(Debug, Default)]
struct Progress {
    /// Rounds that were asked for, and the partition of the last one.
    asked: u64,
    partition: Option<u32>,
    /// Rounds that were done for having been asked for.
    answered: u64,
    running: bool,
    /// Pairs of a partition and another home of this round, and those that are done.
    pairs: usize,
    compared: usize,
    /// Other homes that could not be asked in this round.
    unreachable: Vec<NodeId>,
    /// Of the last round, or this one.
    last: Exchanged,
    book: Book,
    takeover: TakeoverFigures,
}

/// What this process took over of ring changes so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct TakeoverFigures {
    /// Partitions.
    pub(crate) partitions: u64,
    /// Bytes of the objects of other nodes that were borrowed, whole.
    pub(crate) borrowed_bytes: u64,
    /// Bytes that went between nodes for it.
    pub(crate) copied_bytes: u64,
}

/// How repair is, for people.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct RepairFigures {
    /// Rounds that were asked for.
    asked: u64,
    /// And those of them that are done.
    answered: u64,
    running: bool,
    /// Pairs of a partition and another home of the last round, and those that were compared in it.
    round_pairs: usize,
    round_compared: usize,
    /// Other homes that could not be asked in it.
    unreachable: Vec<NodeId>,
    /// In the last round.
    round_differing: u64,
    round_pulled: u64,
    round_pushed: u64,
    round_bytes: u64,
    #[serde(flatten)]
    book: BookFigures,
    takeover: TakeoverFigures,
}

/// What others may ask of repair, and see of it.
#[derive(Debug, Default)]
pub(crate) struct RepairDesk {
    progress: Mutex<Progress>,
    wake: Notify,
}

impl RepairDesk {
    /// Asks for a round now: of one partition, or of all.
    pub(crate) fn begin(&self, partition: Option<u32>) {
        {
            let mut progress = self.progress.lock();
            // Two that were asked for together become one round of everything.
            let waits = progress.asked > progress.answered;
            progress.partition = if waits && progress.partition != partition { None } else { partition };
            progress.asked += 1;
        }
        self.wake.notify_one();
    }

    /// Notes what was taken over.
    pub(crate) fn took_over(&self, more: TakeoverFigures) {
        let mut progress = self.progress.lock();
        progress.takeover.partitions += more.partitions;
        progress.takeover.borrowed_bytes += more.borrowed_bytes;
        progress.takeover.copied_bytes += more.copied_bytes;
    }

    /// How the comparisons stand.
    pub(crate) fn book(&self) -> BookFigures {
        self.progress.lock().book.figures()
    }

    /// How it is.
    pub(crate) fn figures(&self) -> RepairFigures {
        let progress = self.progress.lock();
        RepairFigures {
            asked: progress.asked,
            answered: progress.answered,
            running: progress.running,
            round_pairs: progress.pairs,
            round_compared: progress.compared,
            unreachable: progress.unreachable.clone(),
            round_differing: progress.last.differing,
            round_pulled: progress.last.pulled,
            round_pushed: progress.last.pushed,
            round_bytes: progress.last.bytes,
            book: progress.book.figures(),
            takeover: progress.takeover,
        }
    }
}

/// Compares, round after round.
pub(crate) struct Repairer {
    pub(crate) me: NodeId,
    pub(crate) copier: Copier,
    pub(crate) follower: Follower,
    pub(crate) seams: Seams,
    pub(crate) bucket: SharedBucket,
    pub(crate) desk: Arc<RepairDesk>,
    /// How often each other home is compared with.
    pub(crate) every: Duration,
}

/// Another home, and the partitions that it has in common with this one.
struct Other {
    id: NodeId,
    address: String,
    partitions: Vec<u32>,
}

impl Repairer {
    /// Compares with every other home every so often, and when asked, until the process ends.
    pub(crate) async fn run(self) {
        loop {
            match Book::read(&*self.bucket, &self.me).await {
                Ok(book) => {
                    self.desk.progress.lock().book = book;
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "can't read the book of comparisons yet");
                    tokio::time::sleep(BOOK_PAUSE).await;
                }
            }
        }
        let mut written = Instant::now();
        loop {
            let asked = self.wait().await;
            if !self.index_ready(asked.is_some()).await {
                continue;
            }
            let done = self.round(asked.and_then(|asked| asked.1)).await;
            let book = {
                let mut progress = self.desk.progress.lock();
                if let Some((asked, _)) = asked {
                    progress.answered = asked;
                }
                progress.book.clone()
            };
            if done.pulled + done.pushed > 0 || written.elapsed() >= WRITE_EVERY {
                match book.write(&*self.bucket, &self.me).await {
                    Ok(()) => written = Instant::now(),
                    Err(error) => tracing::debug!(%error, "can't write the book of comparisons"),
                }
            }
        }
    }

    /// Waits until it is time, or somebody asks; then it is the number of that round, and its partition.
    async fn wait(&self) -> Option<(u64, Option<u32>)> {
        let micros = u64::try_from(self.every.as_micros()).unwrap_or(u64::MAX);
        // Not all nodes at once.
        let pause = Duration::from_micros(micros / 2 + self.seams.random.below(micros.max(1)));
        let until = Instant::now() + pause;
        loop {
            {
                let progress = self.desk.progress.lock();
                if progress.asked > progress.answered {
                    return Some((progress.asked, progress.partition));
                }
            }
            tokio::select! {
                biased;
                () = self.desk.wake.notified() => {}
                () = tokio::time::sleep_until(until) => return None,
            }
        }
    }

    async fn index_ready(&self, was_asked: bool) -> bool {
        let until = Instant::now() + PATIENCE;
        while !self.copier.engine.index_complete() {
            if !was_asked || Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
        true
    }

    /// Compares one partition, or all, with every other home.
    async fn round(&self, partition: Option<u32>) -> Exchanged {
        let Some(view) = self.follower.view() else { return Exchanged::default() };
        let others = others(&view, &self.me, partition);
        {
            let mut progress = self.desk.progress.lock();
            progress.running = true;
            progress.pairs = others.iter().map(|other| other.partitions.len()).sum();
            progress.compared = 0;
            progress.unreachable.clear();
            progress.last = Exchanged::default();
            if partition.is_none() {
                let is_pair = |peer: &NodeId, partition: u32| {
                    others.iter().any(|o| o.id == *peer && o.partitions.binary_search(&partition).is_ok())
                };
                progress.book.retain(is_pair);
            }
        }
        for other in &others {
            if let Err(why) = self.compare(&view, other).await {
                tracing::debug!(node = %other.id, %why, "can't compare with this home");
                self.desk.progress.lock().unreachable.push(other.id.clone());
            }
        }
        let mut progress = self.desk.progress.lock();
        progress.running = false;
        let done = progress.last;
        if done.differing > 0 {
            let Exchanged { differing, pulled, pushed, bytes } = done;
            tracing::info!(differing, pulled, pushed, bytes, "repaired what differed from other homes");
        }
        done
    }

    async fn compare(&self, view: &View, other: &Other) -> Result<(), String> {
        let count = view.current.partitions();
        let span = |partition: &u32| Span::of_partition(*partition, count);
        let spans: Vec<Span> = other.partitions.iter().map(span).collect();
        let mut roots = Exchange::new(&self.copier, &other.address, view.version());
        let differing = roots.differing(&spans, 0).await;
        self.desk.progress.lock().last += roots.done;
        let differing = differing?;
        let pairs = other.partitions.iter().map(|partition| (*partition, span(partition)));
        let pairs: Vec<(u32, Option<Span>)> = pairs
            .map(|(partition, span)| (partition, differing.binary_search(&span).is_ok().then_some(span)))
            .collect();
        let pairs =
            pairs.into_iter().map(|(partition, span)| self.compare_pair(view, other, partition, span));
        // Most of the time each of them waits for writes in flight.
        let mut comparing = iter(pairs).buffer_unordered(AT_ONCE);
        let mut all = Ok(());
        while let Some(outcome) = comparing.next().await {
            // One that can't be repaired holds up no other.
            all = outcome.and(all);
        }
        all
    }

    /// Repairs a partition, if its span is given, and notes that it was compared.
    async fn compare_pair(
        &self,
        view: &View,
        other: &Other,
        partition: u32,
        span: Option<Span>,
    ) -> Result<(), String> {
        let mut exchange = Exchange::new(&self.copier, &other.address, view.version());
        let outcome = match span {
            Some(span) => exchange.repair(span).await,
            None => Ok(()),
        };
        let now_ms = self.seams.clock.now_ms();
        let mut progress = self.desk.progress.lock();
        progress.last += exchange.done;
        outcome?;
        progress.compared += 1;
        progress.book.note(&other.id, partition, now_ms, exchange.done);
        Ok(())
    }
}

/// The other homes of the partitions that this node is a home of.
fn others(view: &View, me: &NodeId, only: Option<u32>) -> Vec<Other> {
    let mut others: BTreeMap<NodeId, Other> = BTreeMap::new();
    let partitions = view.current.partitions_of(me).into_iter();
    for partition in partitions.filter(|partition| only.is_none_or(|only| only == *partition)) {
        let homes = view.current.homes(partition).iter().filter_map(|home| view.current.member(*home));
        for member in homes.filter(|member| member.id != *me) {
            let (id, address) = (member.id.clone(), member.address.to_string());
            let other = others.entry(id.clone());
            other.or_insert(Other { id, address, partitions: Vec::new() }).partitions.push(partition);
        }
    }
    others.into_values().collect()
}
