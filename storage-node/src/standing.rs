//! What this node counts for at the moment (`cartwheel_core::standing`), and who asks it to catch up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::quorum::Durability;
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::Reply;

/// How often a process notes that it is running.
const BEAT: Duration = Duration::from_millis(100);
/// A process that did not run for so long was away: others may have kept hints for it. Shorter than the time after
/// which anybody gives up on a node that does not answer.
const PAUSE: Duration = Duration::from_millis(600);

/// A node that has counted for so long is likely to go on: longer than anybody pauses before trying again to reach a node
/// that was down.
const SETTLED: Duration = Duration::from_secs(3);

/// The standing of this node.
#[derive(Debug)]
pub(crate) struct Stand {
    level: AtomicU8,
    /// How often it was asked to catch up. Locked while the level changes, so that none of them is missed.
    asked: Mutex<u64>,
    /// How often it was asked to take, at its leisure, what it holds already.
    wished: AtomicU64,
    /// How often it has caught up.
    rounds: AtomicU64,
    /// Since when it has counted; `None` while it does not.
    since: Mutex<Option<Instant>>,
    wake: Notify,
    /// Rung when a round ends.
    ended: Notify,
    beat: Mutex<Instant>,
    /// Partitions of which it may lack acknowledged writes that it lost with its disk.
    unheld: RwLock<BTreeSet<u32>>,
    /// And those of which it may lack some that it lost with a damaged object.
    lost: RwLock<BTreeSet<u32>>,
    /// Does being away take its votes away? Always, but in tests that show what that is for.
    strict: bool,
}

impl Stand {
    /// The standing of a process that starts: it was away.
    pub(crate) fn new(strict: bool) -> Arc<Self> {
        let strict = strict && !removed(Rule::CountingOnly);
        let level = if strict { Standing::Returning } else { Standing::Counting };
        Arc::new(Self {
            level: AtomicU8::new(level as u8),
            asked: Mutex::new(1),
            wished: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            since: Mutex::new((!strict).then(Instant::now)),
            wake: Notify::new(),
            ended: Notify::new(),
            beat: Mutex::new(Instant::now()),
            unheld: RwLock::default(),
            lost: RwLock::default(),
            strict,
        })
    }

    /// What it counts for, as of `now`; one that did not run for a while finds that out here.
    pub(crate) fn at(&self, now: Instant) -> Standing {
        if now.saturating_duration_since(*self.beat.lock()) > PAUSE {
            self.note_running(now);
        }
        self.level()
    }

    /// What it counts for.
    pub(crate) fn level(&self) -> Standing {
        Standing::from_u8(self.level.load(Ordering::Acquire)).unwrap_or(Standing::Returning)
    }

    /// May it answer for this partition?
    pub(crate) fn votes_on(&self, partition: u32, now: Instant) -> bool {
        self.at(now) == Standing::Counting
            && !self.unheld.read().contains(&partition)
            && !self.has_lost(partition)
    }

    /// May it lack something of this partition that it lost with a damaged object?
    pub(crate) fn has_lost(&self, partition: u32) -> bool {
        self.lost.read().contains(&partition)
    }

    /// The acknowledgement of a write that has reached so far.
    pub(crate) fn acknowledge(&self, reached: Durability) -> Reply {
        match self.at(Instant::now()) {
            Standing::Returning => Reply::Extra { reached },
            Standing::Absorbing | Standing::Counting => Reply::Acked { reached },
        }
    }

    /// It has been away, in somebody's eyes: it counts for nothing until it has caught up.
    pub(crate) fn demote(&self) {
        {
            let mut asked = self.asked.lock();
            *asked += 1;
            if self.strict {
                self.level.store(Standing::Returning as u8, Ordering::Release);
                *self.since.lock() = None;
            }
        }
        self.wake.notify_one();
    }

    /// Somebody keeps what it holds already: it may take that at its leisure, once what it is at is done.
    pub(crate) fn ask(&self) {
        self.wished.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// How often it was asked to take something at its leisure.
    pub(crate) fn wished(&self) -> u64 {
        self.wished.load(Ordering::Acquire)
    }

    /// How often it was asked to catch up so far.
    pub(crate) fn asked(&self) -> u64 {
        *self.asked.lock()
    }

    /// How often it has caught up.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Acquire)
    }

    /// Every live node knows that it is back. `false` if it was asked to begin anew since `asked` was noted.
    pub(crate) fn absorb(&self, asked: u64) -> bool {
        let now = self.asked.lock();
        if *now != asked {
            return false;
        }
        // One that counts, and only takes what it holds already, goes on counting.
        if self.level() == Standing::Returning {
            self.level.store(Standing::Absorbing as u8, Ordering::Release);
        }
        true
    }

    /// It holds all that was kept for it. `false` if it was asked to begin anew since `asked` was noted.
    pub(crate) fn count(&self, asked: u64) -> bool {
        {
            let now = self.asked.lock();
            if *now != asked {
                return false;
            }
            self.level.store(Standing::Counting as u8, Ordering::Release);
            self.since.lock().get_or_insert_with(Instant::now);
        }
        self.rounds.fetch_add(1, Ordering::AcqRel);
        self.ended.notify_waiters();
        true
    }

    /// Waits until it is asked to catch up.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Waits until it counts.
    pub(crate) async fn counting(&self) {
        loop {
            let ended = self.ended.notified();
            if self.level() == Standing::Counting {
                return;
            }
            ended.await;
        }
    }

    /// Has it counted for a while? Others may need that long to see that it is back, and have left something for it
    /// meanwhile, so that it has to catch up once more.
    pub(crate) fn is_settled(&self, now: Instant) -> bool {
        self.since.lock().is_some_and(|since| now.saturating_duration_since(since) >= SETTLED)
    }

    /// Partitions that it can't vote on yet.
    pub(crate) fn set_unheld(&self, partitions: BTreeSet<u32>) {
        *self.unheld.write() = partitions;
    }

    /// Partitions of which it lost something.
    pub(crate) fn set_lost(&self, partitions: BTreeSet<u32>) {
        *self.lost.write() = partitions;
    }

    /// It lost something of these, too.
    pub(crate) fn add_lost(&self, partitions: impl IntoIterator<Item = u32>) {
        self.lost.write().extend(partitions);
    }

    /// How many partitions it can't vote on yet.
    pub(crate) fn unheld(&self) -> usize {
        self.unheld.read().union(&self.lost.read()).count()
    }

    fn note_running(&self, now: Instant) {
        let away = {
            let mut beat = self.beat.lock();
            let away = now.saturating_duration_since(*beat);
            if away > PAUSE && !removed(Rule::NoticePauses) {
                // Before anybody can see that it runs again.
                self.demote();
            }
            *beat = (*beat).max(now);
            away
        };
        if away > PAUSE {
            tracing::warn!(millis = away.as_millis(), "this process did not run for a while; catching up");
        }
    }

    /// Notes that the process runs, until it ends.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            self.note_running(Instant::now());
            tokio::time::sleep(BEAT).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_counts_for_nothing_until_it_has_caught_up() {
        let stand = Stand::new(true);
        assert_eq!(stand.level(), Standing::Returning);
        let asked = stand.asked();
        assert!(stand.absorb(asked) && stand.count(asked));
        assert!(stand.votes_on(0, Instant::now()));
        tokio::time::advance(PAUSE * 2).await;
        assert!(!stand.votes_on(0, Instant::now()), "nobody told it, and no task of its own ran");
        assert!(!stand.count(asked), "what it held before says nothing");
        assert_eq!(stand.level(), Standing::Returning);
    }

    #[tokio::test(start_paused = true)]
    async fn who_runs_all_the_time_goes_on_counting() {
        let stand = Stand::new(true);
        assert!(stand.count(stand.asked()));
        let running = tokio::spawn(Arc::clone(&stand).run());
        for _ in 0..600 {
            tokio::time::advance(BEAT).await;
            tokio::task::yield_now().await;
        }
        assert!(stand.votes_on(0, Instant::now()));
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_is_not_held_has_no_vote() {
        let stand = Stand::new(true);
        stand.set_unheld([3].into());
        assert!(stand.count(stand.asked()));
        assert!(stand.votes_on(2, Instant::now()) && !stand.votes_on(3, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn acknowledgements_count_unless_others_may_still_keep_hints() {
        let extra = Reply::Extra { reached: Durability::Disk };
        let acked = Reply::Acked { reached: Durability::Disk };
        let stand = Stand::new(true);
        assert_eq!(stand.acknowledge(Durability::Disk), extra);
        assert!(stand.absorb(stand.asked()));
        assert_eq!(stand.acknowledge(Durability::Disk), acked);
        assert!(!stand.votes_on(0, Instant::now()), "it may lack what others kept");
        assert!(stand.count(stand.asked()));
        assert_eq!(stand.acknowledge(Durability::Disk), acked);
        tokio::time::advance(PAUSE * 2).await;
        assert_eq!(stand.acknowledge(Durability::Disk), extra, "others may have given up on it meanwhile");
    }

    #[tokio::test]
    async fn what_is_asked_for_while_it_catches_up_comes_first() {
        let stand = Stand::new(true);
        let asked = stand.asked();
        stand.demote();
        assert!(!stand.absorb(asked) && !stand.count(asked));
        assert_eq!((stand.level(), stand.rounds()), (Standing::Returning, 0));
        assert!(stand.absorb(stand.asked()) && stand.count(stand.asked()));
        let asked = stand.asked();
        stand.ask();
        assert_eq!((stand.level(), stand.wished()), (Standing::Counting, 1), "it lacks nothing");
        assert!(stand.absorb(asked) && stand.count(asked), "and goes on with what it is at");
        assert_eq!((stand.level(), stand.rounds()), (Standing::Counting, 2));
        stand.demote();
        assert_eq!(stand.level(), Standing::Returning);
    }

    /// In whatever order the two come, a node that was told that it lacks something does not count.
    #[test]
    fn a_demotion_is_never_missed_by_a_round_that_ends_at_the_same_time() {
        const ROUNDS: u64 = 20_000;
        let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        let reach = |what: &AtomicU64, round| {
            while what.load(Ordering::Acquire) < round {
                std::thread::yield_now();
            }
        };
        let stand = Stand::new(true);
        let missed = std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    reach(&begun, round);
                    stand.demote();
                    ended.store(round, Ordering::Release);
                }
            });
            let mut missed = 0;
            for round in 1..=ROUNDS {
                // Every other time it counts already, and only takes what it holds.
                if round % 2 == 0 {
                    stand.count(stand.asked());
                }
                let asked = stand.asked();
                begun.store(round, Ordering::Release);
                stand.count(asked);
                reach(&ended, round);
                missed += u64::from(stand.level() != Standing::Returning);
            }
            missed
        });
        assert_eq!(missed, 0);
    }

    #[tokio::test]
    async fn who_waits_until_it_counts_is_told() {
        let stand = Stand::new(true);
        let waiting = tokio::spawn({
            let stand = Arc::clone(&stand);
            async move { stand.counting().await }
        });
        tokio::task::yield_now().await;
        assert!(stand.absorb(stand.asked()));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert!(stand.count(stand.asked()));
        assert!(waiting.await.is_ok());
    }
}
