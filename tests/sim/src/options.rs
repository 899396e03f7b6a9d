//! What a run is made from: the seed draws everything; the rest makes less of it happen.

use std::time::Duration;

use crate::world::Bug;

/// How to run one seed.
#[derive(Debug, Clone)]
pub struct Options {
    /// What everything is drawn from.
    pub seed: u64,
    /// The planted bug.
    pub bug: Bug,
    /// The faults that happen, by their number in the plan; all of them without it.
    pub only: Option<Vec<usize>>,
    /// How many clients write, at most.
    pub writers: Option<usize>,
    /// When clients stop to write, at the latest.
    pub until: Option<Duration>,
}

impl Options {
    /// All that the seed draws.
    pub fn new(seed: u64, bug: Bug) -> Self {
        Self { seed, bug, only: None, writers: None, until: None }
    }

    /// Does the fault of this number happen?
    pub fn has(&self, fault: usize) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&fault))
    }
}
