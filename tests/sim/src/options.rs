//! What a run is made from: the seed draws everything; the rest makes less of it happen.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;

use crate::world::Bug;
use crate::world::lock::Lock;

/// How hosts reach the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Level {
    /// By calls within the process: quick.
    #[default]
    Memory,
    /// With the production S3 client, over simulated sockets, at a server that is a host of its own.
    Wire,
}

/// How to run one seed.
#[derive(Debug, Clone)]
pub struct Options {
    /// What everything is drawn from.
    pub seed: u64,
    /// How the bucket is reached.
    pub level: Level,
    /// The planted bug.
    pub bug: Bug,
    /// The faults that happen, by their number in the plan; all of them without it.
    pub only: Option<Vec<usize>>,
    /// How many clients write, at most.
    pub writers: Option<usize>,
    /// When clients stop to write, at the latest.
    pub until: Option<Duration>,
    /// How many keys they write, at most.
    pub keys: Option<u64>,
    /// The numbers that were asked for: what can be left out.
    pub asked: Arc<Lock<BTreeSet<usize>>>,
}

impl Options {
    /// All that the seed draws.
    pub fn new(seed: u64, bug: Bug) -> Self {
        Self {
            seed,
            level: Level::Memory,
            bug,
            only: None,
            writers: None,
            until: None,
            keys: None,
            asked: Arc::default(),
        }
    }

    /// Does the fault of this number happen?
    pub fn has(&self, fault: usize) -> bool {
        self.asked.lock().insert(fault);
        self.only.as_ref().is_none_or(|only| only.contains(&fault))
    }

    /// How many keys of `keys` are written.
    pub fn keys(&self, keys: u64) -> u64 {
        self.keys.unwrap_or(keys).clamp(1, keys)
    }

    /// How many clients of `writers` write.
    pub fn writers(&self, writers: usize) -> usize {
        self.writers.unwrap_or(writers).clamp(1, writers)
    }

    /// The faults that could be left out, by their number: all that the run asked for.
    pub fn asked(&self) -> Vec<usize> {
        self.asked.lock().iter().copied().collect()
    }
}
