//! What an operation asks of how many replicas, and how it was met.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an acknowledgement has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// The nodes that may stand in for a key's homes, in walk order; each is taken once.
///
/// Each home has its own among them, by its place: so reads and writes through different gateways choose the same one
/// for the same home, and a read that counts it finds what a write left there.
#[derive(Debug)]
pub(crate) struct Fallbacks(Vec<Option<Node>>);

impl Fallbacks {
    pub(crate) fn new(walk: Vec<Node>) -> Self {
        Self(walk.into_iter().map(Some).collect())
    }

    /// The one for the home at this place, or the next one that is left.
    pub(crate) fn take(&mut self, place: usize) -> Option<Node> {
        let count = self.0.len();
        let mut places = (0..count).map(|step| (place + step) % count);
        let at = places.find(|at| self.0.get(*at).is_some_and(Option::is_some))?;
        self.0.get_mut(at)?.take()
    }
}

/// The place of a home among all homes.
pub(crate) fn place_of(home: Node, homes: &[Node]) -> usize {
    homes.iter().position(|other| *other == home).unwrap_or(0)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_home_has_its_own_fallback_and_takes_the_next_where_that_is_gone() {
        let mut fallbacks = Fallbacks::new(vec![7, 8, 9]);
        assert_eq!(fallbacks.take(place_of(2, &[1, 2, 3])), Some(8));
        assert_eq!(fallbacks.take(place_of(2, &[1, 2, 3])), Some(9));
        assert_eq!(fallbacks.take(place_of(3, &[1, 2, 3])), Some(7));
        assert_eq!(fallbacks.take(0), None);
        assert_eq!(Fallbacks::new(Vec::new()).take(2), None);
        let mut few = Fallbacks::new(vec![7]);
        assert_eq!(few.take(2), Some(7));
    }
}
