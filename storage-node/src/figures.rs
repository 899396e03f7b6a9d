//! What a storage node says of itself when somebody looks.

use std::sync::Weak;
use std::time::Duration;

use cartwheel_core::gossip::HintsHeld;
use cartwheel_core::standing::Standing;

use crate::service::Service;

/// Asks a storage node for its figures, for as long as it runs.
#[derive(Debug, Clone)]
pub struct NodeWatch(pub(crate) Weak<Service>);

impl NodeWatch {
    /// How it is; `None` once it has ended.
    #[must_use]
    pub fn figures(&self) -> Option<NodeFigures> {
        Some(self.0.upgrade()?.figures())
    }
}

/// How a storage node is.
#[derive(Debug, Clone)]
pub struct NodeFigures {
    /// Does `/readyz` say 200?
    pub ready: bool,
    /// The newest ring it knows.
    pub ring_version: u64,
    /// Members that say they know another one.
    pub disagreeing: u64,
    /// What it counts for.
    pub standing: Standing,
    /// Partitions that it does not vote on because it lost data of them.
    pub partitions_not_held: u64,
    /// Keys held.
    pub keys: u64,
    /// Bytes of records that are not in the bucket yet.
    pub unflushed_bytes: u64,
    /// Age of the oldest of them; 0 without any.
    pub flush_lag: Duration,
    /// Do flushes fail?
    pub bucket_fails: bool,
    /// Segments in the bucket.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Objects that are damaged or gone.
    pub quarantined: u64,
    /// Bytes of memory, by use.
    pub memory: [(&'static str, u64); 6],
    /// The caches, by name.
    pub caches: [(&'static str, CacheFigures); 2],
    /// What is kept for other homes.
    pub hints: Vec<HintsHeld>,
    /// Hints that were not taken because there were too many.
    pub hints_refused: u64,
    /// How the comparisons with other homes stand.
    pub sync: SyncFigures,
}

/// How a cache is.
#[derive(Debug, Clone, Copy)]
pub struct CacheFigures {
    /// Lookups that found something.
    pub hits: u64,
    /// Those that did not.
    pub misses: u64,
    /// Bytes held.
    pub bytes: u64,
}

/// How the comparisons with other homes stand.
#[derive(Debug, Clone, Copy)]
pub struct SyncFigures {
    /// Pairs of a partition and another home that were compared.
    pub pairs: u64,
    /// Time since the one that was compared longest ago; `None` without any.
    pub age: Option<Duration>,
    /// Keys that differed when each was compared last.
    pub differing: u64,
    /// And those of them that were repaired.
    pub repaired: u64,
}
