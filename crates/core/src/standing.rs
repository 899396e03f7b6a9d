//! What a storage node counts for after it was away (Dynamo, SOSP 2007, section 4.6, leaves it open).
//!
//! A home that was away lacks what others took in for it. It counts again in two steps, so that at every moment
//! each acknowledged write is where reads look:
//!
//! 1. `Returning`: other nodes may still keep new hints for it. Its acknowledgements do not count, its answers to
//!    reads are only added to those of others.
//! 2. `Absorbing`: every live node has been told and keeps no more hints for it. Its acknowledgements count; its
//!    answers to reads still do not, and whoever stands in for it passes reads and writes on to it.
//! 3. `Counting`: it holds all hints and all that it may have lost.

/// What a node counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Standing {
    /// For neither reads nor writes.
    Returning = 0,
    /// For writes.
    Absorbing = 1,
    /// For both.
    Counting = 2,
}

impl Standing {
    /// The standing with this number on the wire.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Self> {
        [Self::Returning, Self::Absorbing, Self::Counting].into_iter().find(|s| *s as u8 == n)
    }

    /// The standing's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Returning => "returning",
            Self::Absorbing => "absorbing",
            Self::Counting => "counting",
        }
    }
}
