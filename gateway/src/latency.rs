//! How long reads usually take, and how many more questions a slow one may ask
//! (Dean and Barroso, "The Tail at Scale", 2013: hedged requests under a budget).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Shortest time before a hedge: below it a hedge costs more than it saves.
const MIN_PAUSE: Duration = Duration::from_millis(2);
/// Longest time before a hedge.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Hedges per read, in hundredths.
const BUDGET_PERCENT: u32 = 5;
/// Hedges that may be saved up, in hundredths.
const MAX_SAVED: u32 = 10 * 100;
/// The quantile that is followed, in hundredths.
const QUANTILE: u64 = 95;

#[derive(Debug)]
struct State {
    p95_micros: u64,
    saved: u32,
}

/// The running estimate and the budget.
#[derive(Debug)]
pub(crate) struct Hedging {
    state: Mutex<State>,
    hedges: AtomicU64,
}

impl Default for Hedging {
    fn default() -> Self {
        Self { state: Mutex::new(State { p95_micros: 20_000, saved: 100 }), hedges: AtomicU64::new(0) }
    }
}

impl Hedging {
    /// How long a read waits before it asks one more home.
    pub(crate) fn pause(&self) -> Duration {
        Duration::from_micros(self.state.lock().p95_micros).clamp(MIN_PAUSE, MAX_PAUSE)
    }

    /// A request was answered: it adds its share to the budget.
    pub(crate) fn earn(&self) {
        let mut state = self.state.lock();
        state.saved = (state.saved + BUDGET_PERCENT).min(MAX_SAVED);
    }

    /// Takes one hedge out of the budget, if there is one.
    pub(crate) fn may_hedge(&self) -> bool {
        let mut state = self.state.lock();
        match state.saved.checked_sub(100) {
            Some(left) => {
                state.saved = left;
                self.hedges.fetch_add(1, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }

    /// How many were taken so far.
    pub(crate) fn hedges(&self) -> u64 {
        self.hedges.load(Ordering::Relaxed)
    }

    /// A read took so long. The estimate steps up by 95 parts for a slower one and down by 5 for a faster one,
    /// so that it settles where 5 % are slower; a step is a sixteenth of a hundredth of it per part.
    pub(crate) fn took(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        let part = (state.p95_micros / 1600).max(1);
        state.p95_micros = if micros > state.p95_micros {
            state.p95_micros.saturating_add(part * QUANTILE).min(2_000_000)
        } else {
            state.p95_micros.saturating_sub(part * (100 - QUANTILE)).max(100)
        };
        state.saved = (state.saved + BUDGET_PERCENT).min(MAX_SAVED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_settles_near_the_quantile() {
        let hedging = Hedging::default();
        for i in 0..20_000_u64 {
            // 90 % take 5 ms, 10 % take 5 to 15 ms: the 95th percentile is 10 ms.
            let micros = if i % 10 == 0 { 5000 + (i / 10 * 7919) % 10_000 } else { 5000 };
            hedging.took(Duration::from_micros(micros));
        }
        let pause = hedging.pause().as_micros();
        assert!((8000..12_000).contains(&pause), "{pause}");
    }

    #[test]
    fn hedges_are_five_in_a_hundred() {
        let hedging = Hedging::default();
        while hedging.may_hedge() {}
        let mut hedges = 0;
        for _ in 0..1000 {
            hedging.took(Duration::from_millis(1));
            hedges += u32::from(hedging.may_hedge());
        }
        assert_eq!(hedges, 50);
        assert_eq!(hedging.hedges(), 51, "those that were saved up count, too");
    }
}
