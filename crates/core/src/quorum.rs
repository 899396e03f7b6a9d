//! What an operation asks of how many replicas, and how it was met.

use std::fmt;
use std::str::FromStr;

/// What an acknowledgement has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Durability {
    /// Held by the process.
    Memory = 0,
    /// In the write-ahead log, synced.
    Disk = 1,
    /// Inside an object of the bucket.
    Bucket = 2,
}

impl Durability {
    /// The level with this number on the wire.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Self> {
        [Self::Memory, Self::Disk, Self::Bucket].into_iter().find(|d| *d as u8 == n)
    }

    /// The level's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Bucket => "bucket",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Durability {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "memory" => Ok(Self::Memory),
            "disk" => Ok(Self::Disk),
            "bucket" => Ok(Self::Bucket),
            _ => Err(()),
        }
    }
}

/// A storage node as the quorum machines see it: its place in the ring's member list.
pub type Node = u16;

/// What is known of a call that brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It never reached the node, or the node refused it untouched.
    NotApplied,
    /// It may have been carried out: the answer was lost or late.
    Unknown,
    /// The node is there but catching up, and leaves it to others.
    Declined,
}

/// Was a failed write carried out?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Certainly nowhere.
    No,
    /// It may still become visible.
    Unknown,
}

/// How a quorum stood when the answer was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Counted answers or acknowledgements of homes.
    pub home: usize,
    /// Counted acknowledgements of fallbacks.
    pub fallback: usize,
}

impl Tally {
    /// All that count.
    #[must_use]
    pub fn answered(self) -> usize {
        self.home + self.fallback
    }
}
