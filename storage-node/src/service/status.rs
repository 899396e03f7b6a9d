//! How a storage node is, as JSON for people and for gateways.

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_bucket::Usage;
use cartwheel_core::gossip::HintsHeld;

use super::Inner;
use crate::memory::MemoryFigures;
use crate::repair::RepairFigures;

/// How a node is.
#[derive(Debug, serde::Serialize)]
struct Status<'a> {
    id: &'a str,
    incarnation: String,
    ring_version: u64,
    standing: &'static str,
    rounds: u64,
    partitions_not_held: usize,
    /// Objects that are damaged or gone, and are never read again.
    quarantined: usize,
    steps_down: bool,
    bucket_fails: bool,
    hints: Vec<HintsFigures>,
    hints_refused: u64,
    /// Bytes per second that background work gets.
    background_rate: u64,
    /// Deletions that every home may forget, and this one has not yet.
    deletions_proven: usize,
    repair: RepairFigures,
    /// Reads and writes of keys, as gateways and other nodes ask for them.
    calls_per_second: f64,
    away: Vec<String>,
    /// What was asked of the bucket since the process started.
    bucket_usage: Usage,
    /// And what that cost.
    bucket_dollars: f64,
    memory: MemoryFigures,
    #[serde(flatten)]
    figures: crate::engine::Figures,
}

/// The hints kept for one home.
#[derive(Debug, serde::Serialize)]
struct HintsFigures {
    target: String,
    keys: u64,
    bytes: u64,
    oldest_ms: u64,
}

impl From<&HintsHeld> for HintsFigures {
    fn from(held: &HintsHeld) -> Self {
        let HintsHeld { target, keys, bytes, oldest_ms } = held.clone();
        Self { target: target.to_string(), keys, bytes, oldest_ms }
    }
}

impl Inner {
    /// How this node is.
    pub(super) fn status(&self) -> Bytes {
        let usage = self.meter.usage();
        let status = Status {
            id: self.me.node.as_str(),
            incarnation: self.me.label(),
            ring_version: self.ranges().version,
            standing: self.stand.level().as_str(),
            rounds: self.stand.rounds(),
            partitions_not_held: self.stand.unheld(),
            quarantined: self.ledger.quarantined().iter().filter(|q| !q.object.is_empty()).count(),
            steps_down: self.engine.is_fenced(),
            bucket_fails: self.engine.bucket_fails(),
            hints: self.hints.held().iter().map(HintsFigures::from).collect(),
            hints_refused: self.hints.refused(),
            background_rate: self.pace.rate(),
            deletions_proven: self.proofs.len(),
            repair: self.repair.figures(),
            calls_per_second: self.load.per_second(Instant::now()),
            away: self.hints.away().iter().map(ToString::to_string).collect(),
            bucket_dollars: self.prices.cost(&usage),
            bucket_usage: usage,
            memory: self.governor.figures(),
            figures: self.engine.figures(),
        };
        serde_json::to_vec(&status).unwrap_or_default().into()
    }
}
