//! The time of simulated hosts: wall clocks that are wrong, drift and jump, and processes that stand still.

use std::time::Duration;

use cartwheel_cluster::seams::{Random, WallClock};
use tokio::sync::Notify;

use super::SeededRandom;
use super::lock::Lock;

/// What a wall clock shows that is right when a simulation begins: the first of January 2026.
const BASE_MS: u64 = 1_767_225_600_000;
/// The most that a wall clock is wrong: an hour.
pub const SKEW_MS: u64 = 3_600_000;
/// The most that it gains or loses, in parts per million: three seconds in a minute.
const DRIFT_PPM: u64 = 50_000;

/// Milliseconds since 1970 by a clock that is right, when `elapsed` of the simulation has passed.
pub fn right_ms(elapsed: Duration) -> u64 {
    BASE_MS + u64::try_from(elapsed.as_millis()).unwrap()
}

/// The wall clock of a host. It is shown to people and decides nothing: so it may be as wrong as it likes.
#[derive(Debug, Default)]
pub struct SimClock {
    wrong_ms: Lock<i64>,
    drift_ppm: i64,
}

/// A number from `-most` to `most`.
fn either_way(random: &SeededRandom, most: u64) -> i64 {
    i64::try_from(random.below(2 * most + 1)).unwrap() - i64::try_from(most).unwrap()
}

impl SimClock {
    /// The clock of `who`: one in three is right, and one in three drifts.
    pub fn of(seed: u64, who: &str) -> Self {
        let random = SeededRandom::new(seed, &format!("{who} clock"));
        let (is_wrong, wrong_ms) = (random.below(3) > 0, either_way(&random, SKEW_MS));
        let (drifts, drift_ppm) = (random.below(3) == 0, either_way(&random, DRIFT_PPM));
        Self {
            wrong_ms: Lock::new(if is_wrong { wrong_ms } else { 0 }),
            drift_ppm: if drifts { drift_ppm } else { 0 },
        }
    }

    /// Somebody sets it.
    pub fn jump(&self, by_ms: i64) {
        *self.wrong_ms.lock() += by_ms;
    }
}

impl WallClock for SimClock {
    fn now_ms(&self) -> u64 {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        let drifted = i64::try_from(elapsed.as_millis()).unwrap() * self.drift_ppm / 1_000_000;
        right_ms(elapsed).saturating_add_signed(*self.wrong_ms.lock() + drifted)
    }
}

/// Lets a process stand still, as far as anybody can tell: turmoil steps all hosts, so this one goes on inside, but
/// its links are held, its disk and its bucket do and say nothing, and when it goes on, its monotonic clock leaps by
/// what it missed before anything reaches it.
#[derive(Debug, Default)]
pub struct Freezer {
    frozen: Lock<bool>,
    thawed: Notify,
    missed: Lock<Duration>,
    leap: Notify,
}

impl Freezer {
    /// It stands still.
    pub fn freeze(&self) {
        *self.frozen.lock() = true;
    }

    /// It is about to go on, and finds that so much time has passed. One step later it can be thawed.
    pub fn leap(&self, missed: Duration) {
        *self.missed.lock() = missed;
        self.leap.notify_one();
    }

    /// It goes on.
    pub fn thaw(&self) {
        *self.frozen.lock() = false;
        self.thawed.notify_waiters();
    }

    /// Waits while it stands still.
    pub async fn pass(&self) {
        while *self.frozen.lock() {
            self.thawed.notified().await;
        }
    }

    /// Lets the clock of the host it runs on leap when told to, for ever.
    pub async fn leaps(&self) {
        loop {
            self.leap.notified().await;
            let missed = std::mem::take(&mut *self.missed.lock());
            tokio::time::advance(missed).await;
        }
    }
}
