//! What came of a run: counted, judged, and readable by whoever runs many.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scene {
    /// A bit of everything goes wrong: links, processes, machines, disks, the bucket.
    Whole,
    /// The ring changes, and whoever takes part dies at any step of it.
    Changes,
    /// Homes that were away come back and are read from at once.
    Returns,
    /// Small stages for rules that protect a moment.
    Edges,
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "whole",
            Self::Changes => "changes",
            Self::Returns => "returns",
            Self::Edges => "edges",
        })
    }
}

/// Which of the checks found something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// P1, P5, P6: an acknowledged write or deletion is lost.
    Lost,
    /// P8: a read misses what was acknowledged before it began, where it may not.
    Stale,
    /// P2: a value is shown beside one whose writer had seen it.
    Beside,
    /// P3: a dot names two writes.
    Dot,
    /// A value that nobody wrote, or that was refused, is shown.
    Strange,
    /// P10: an answer that is none of those expected, or none in time.
    Answer,
    /// P12: an answer claims more than was done, or what can't be.
    Claim,
    /// P7: a write is refused that had to be accepted.
    Refused,
    /// P4: homes of a partition hold different things at rest.
    Unequal,
    /// Somebody keeps something for others, or does not count, long after all is whole again.
    Unsettled,
    /// P11: something was deleted from the bucket that is needed, or is left for ever.
    Objects,
    /// A ring change does not come to its end, or to a wrong one.
    Ring,
    /// P9, and limits: a start takes too long, a queue grows beyond its bound.
    Limit,
    /// The simulation itself broke off.
    Broke,
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Which check found it.
    pub check: Check,
    /// What was seen, when and by whom.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.check, self.what)
    }
}

/// What came of one seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What was simulated.
    pub scene: Scene,
    /// From which seed.
    pub seed: u64,
    /// How much time passed in it.
    pub simulated: Duration,
    /// How much happened, by what it was.
    pub counts: BTreeMap<String, u64>,
    /// How often each kind of fault began.
    pub faults: BTreeMap<String, u64>,
    /// What can't be true.
    pub violations: Vec<Violation>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scene, seed, simulated, .. } = self;
        write!(f, "{scene} {seed}: {:.1} s simulated", simulated.as_secs_f64())?;
        for (name, count) in self.counts.iter().filter(|(_, count)| **count > 0) {
            write!(f, ", {count} {name}")?;
        }
        let faults: u64 = self.faults.values().sum();
        write!(f, ", {faults} faults, {} violations", self.violations.len())
    }
}

/// A report, and all that happened, byte by byte.
#[derive(Debug)]
pub struct Outcome {
    /// The report.
    pub report: Report,
    /// All that happened.
    pub trace: Vec<u8>,
}
