//! The verdict: one line, or one JSON object.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::change::Changes;
use super::history::Cart;
use super::settle::Settled;
use super::world::State;

/// A run that is over.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) duration: Duration,
    /// From the end of the load until nothing was missing.
    pub(crate) settled: Settled,
    /// Panics that the logs tell of.
    pub(crate) panics: usize,
    /// Requests to object storage that went wrong, by how.
    pub(crate) s3_faults: BTreeMap<String, u64>,
    /// What the network was.
    pub(crate) network: String,
    /// Are stale reads and refused writes a failure?
    pub(crate) strict: bool,
    /// What the changes of the ring came to, if there were any.
    pub(crate) changes: Option<Changes>,
}

impl Outcome {
    /// Was every promise kept?
    pub(crate) fn passed(&self, state: &State) -> bool {
        let counts = &state.counts;
        let kept = state.lost.is_empty() && state.resurrected.is_empty();
        let true_answers = counts.needless == 0 && counts.untrue == 0;
        let whole =
            counts.fell == 0 && counts.ended == 0 && self.panics == 0 && self.settled.unrest.is_empty();
        let fresh = !self.strict || counts.stale + counts.stale_near_faults + counts.refused == 0;
        let changed = self.changes.as_ref().is_none_or(|changes| changes.broken().is_empty());
        kept && true_answers && whole && fresh && changed && counts.acknowledged_writes > 0
    }

    fn verdict(&self, state: &State) -> &'static str {
        if self.passed(state) { "PASS" } else { "FAIL" }
    }

    /// The verdict in one line.
    pub(crate) fn line(&self, state: &State) -> String {
        let counts = &state.counts;
        let kinds: Vec<String> = counts.faults.iter().map(|(word, n)| format!("{n} {word}")).collect();
        let kinds = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
        let beyond: String = [
            ("untrue answers", counts.untrue),
            ("crashes", counts.fell),
            ("processes that ended by themselves", counts.ended.saturating_sub(counts.fell)),
            ("panics", self.panics as u64),
            ("things not at rest in the end", self.settled.unrest.len() as u64),
        ]
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(word, n)| format!(", {n} {word}"))
        .collect();
        format!(
            "chaos: seed {}, {} s: {} operations, {} acknowledged, {} faults ({kinds}), {} losses, {} stale reads \
             ({} near faults), {} needless siblings, {} resurrected{beyond}: {}",
            self.seed,
            self.duration.as_secs(),
            counts.reads + counts.writes,
            counts.acknowledged,
            counts.faults.values().sum::<u64>(),
            state.lost.len(),
            counts.stale + counts.stale_near_faults,
            counts.stale_near_faults,
            counts.needless,
            state.resurrected.len(),
            self.verdict(state),
        )
    }

    /// What the line has no room for, a line each.
    pub(crate) fn details(&self, state: &State) -> String {
        let counts = &state.counts;
        let failed: Vec<String> = counts.failed.iter().map(|(status, n)| format!("{n} x {status}")).collect();
        let failed = if failed.is_empty() { "none".to_owned() } else { failed.join(", ") };
        let twice: usize = state.carts.iter().map(Cart::minted_twice).sum();
        let s3: Vec<String> = self.s3_faults.iter().map(|(word, n)| format!("{n} {word}")).collect();
        let s3 = if s3.is_empty() { "none".to_owned() } else { s3.join(", ") };
        let unrest: String =
            self.settled.unrest.iter().map(|what| format!("not at rest: {what}\n")).collect();
        format!(
            "{unrest}requests to object storage that went wrong: {s3}\n\
             reads {}, writes {} ({} acknowledged), attempts repeated {}\n\
             failed: {failed}; {} of these more than 5 s after a fault began; writes refused while every \
             gateway reached the bucket {}\n\
             degraded answers {}, stale among them {}; writes minted twice {twice}, seen beside a later write {}\n\
             longest time without an acknowledged write {:.1} s; settled {:.1} s after the load; {} carts; \
             processes that ended by themselves {}\n",
            counts.reads,
            counts.writes,
            counts.acknowledged_writes,
            counts.retried,
            counts.failed_settled,
            counts.refused,
            counts.degraded,
            counts.stale_degraded,
            counts.shown_again,
            counts.longest_gap.as_secs_f64(),
            self.settled.after.as_secs_f64(),
            state.carts.len(),
            counts.ended,
        )
    }

    /// Everything as JSON.
    pub(crate) fn json(&self, state: &State) -> Value {
        let counts = &state.counts;
        json!({
            "verdict": self.verdict(state),
            "seed": self.seed,
            "seconds": self.duration.as_secs_f64(),
            "operations": counts.reads + counts.writes,
            "acknowledged": counts.acknowledged,
            "reads": counts.reads,
            "writes": counts.writes,
            "acknowledged_writes": counts.acknowledged_writes,
            "attempts_repeated": counts.retried,
            "failed": counts.failed,
            "failed_settled": counts.failed_settled,
            "degraded": counts.degraded,
            "faults": counts.faults,
            "losses": state.lost.len(),
            "resurrected": state.resurrected.len(),
            "needless_siblings": counts.needless,
            "shown_again": counts.shown_again,
            "minted_twice": state.carts.iter().map(Cart::minted_twice).sum::<usize>(),
            "stale_reads": counts.stale + counts.stale_near_faults,
            "stale_near_faults": counts.stale_near_faults,
            "stale_degraded": counts.stale_degraded,
            "untrue_answers": counts.untrue,
            "crashes": counts.fell,
            "panics": self.panics,
            "processes_ended": counts.ended,
            "longest_gap_seconds": counts.longest_gap.as_secs_f64(),
            "settled_seconds": self.settled.after.as_secs_f64(),
            "not_at_rest": self.settled.unrest,
            "refused_writes": counts.refused,
            "s3_faults": self.s3_faults,
            "network": self.network,
            "carts": state.carts.len(),
            "changes": self.changes.as_ref().map(Changes::json),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::cart::Item;
    use super::*;

    fn outcome(strict: bool) -> Outcome {
        let settled = Settled { after: Duration::from_millis(2500), unrest: Vec::new() };
        let (s3_faults, network) = (BTreeMap::new(), "loopback".to_owned());
        let duration = Duration::from_secs(60);
        Outcome { seed: 7, duration, settled, panics: 0, s3_faults, network, strict, changes: None }
    }

    fn state() -> State {
        let mut state = State::default();
        state.counts.reads = 60;
        state.counts.writes = 40;
        state.counts.acknowledged = 98;
        state.counts.acknowledged_writes = 39;
        state.counts.faults = [("kills", 2), ("pauses", 1)].into();
        state.counts.stale_near_faults = 3;
        state
    }

    #[test]
    fn a_good_run_is_one_line() {
        assert_eq!(
            outcome(false).line(&state()),
            "chaos: seed 7, 60 s: 100 operations, 98 acknowledged, 3 faults (2 kills, 1 pauses), 0 losses, 3 stale \
             reads (3 near faults), 0 needless siblings, 0 resurrected: PASS"
        );
        assert_eq!(outcome(false).json(&state())["verdict"], "PASS");
        assert!(outcome(true).line(&state()).ends_with("FAIL"), "stale reads count where they are told to");
    }

    #[test]
    fn each_broken_promise_fails_the_run() {
        type Break = fn(&mut State);
        let breaks: [Break; 7] = [
            |state| state.lost = [(0, 0)].into(),
            |state| state.resurrected = [(0, Item { client: 0, n: 0 })].into(),
            |state| state.counts.needless = 1,
            |state| state.counts.untrue = 1,
            |state| state.counts.fell = 1,
            |state| state.counts.ended = 1,
            |state| state.counts.acknowledged_writes = 0,
        ];
        for broken in breaks {
            let mut state = state();
            broken(&mut state);
            assert!(!outcome(false).passed(&state), "{}", outcome(false).line(&state));
        }
        assert!(!Outcome { panics: 1, ..outcome(false) }.passed(&state()));
        let settled = Settled { after: Duration::ZERO, unrest: vec!["hints are left".to_owned()] };
        let restless = Outcome { settled, ..outcome(false) };
        assert!(
            !restless.passed(&state()) && restless.details(&state()).contains("not at rest: hints are left")
        );
        let mut refused = state();
        (refused.counts.stale_near_faults, refused.counts.refused) = (0, 1);
        assert!(outcome(false).passed(&refused) && !outcome(true).passed(&refused));
    }
}
