//! The settings of a namespace. Every namespace has the defaults.

use cartwheel_core::quorum::Durability;

/// What requests to a namespace get where they ask for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Replicas.
    pub n: usize,
    /// Answers needed for a read.
    pub r: usize,
    /// Acknowledgements needed for a write.
    pub w: usize,
    /// What each counted acknowledgement must have reached.
    pub durability: Durability,
    /// Most siblings of a key.
    pub max_siblings: u32,
}

impl Settings {
    /// The defaults in a cluster of `n` replicas: majorities.
    #[must_use]
    pub fn defaults(n: usize) -> Self {
        let majority = n / 2 + 1;
        Self { n, r: majority, w: majority, durability: Durability::Disk, max_siblings: 100 }
    }
}
