//! Commutative sums over what is known: the leaves of Merkle trees (Dynamo, SOSP 2007, section 4.7).
//!
//! What a replica knows of a key is summed up in 64 bits; the sum over many keys does not depend on their order, so it
//! is kept up at each write and can be taken again from any list of clocks. With the dotted container equal `seen`
//! means equal siblings, so `seen` is all that goes in.

use crate::clock::Clock;
use crate::hash::{KeyHash, checksum};
use crate::record::encode_clock;

/// What one key adds to the sum of its leaf; 0 for a key of which nothing is known.
#[must_use]
pub fn leaf(hash: KeyHash, seen: &Clock) -> u64 {
    if seen.is_empty() {
        return 0;
    }
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&hash.0.to_be_bytes());
    encode_clock(&mut bytes, seen);
    // Zero stands for nothing.
    checksum(&bytes).max(1)
}

/// A sum of leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeafSum(pub u64);

impl LeafSum {
    /// Adds a key.
    pub fn add(&mut self, hash: KeyHash, seen: &Clock) {
        self.0 = self.0.wrapping_add(leaf(hash, seen));
    }

    /// Takes a key away that was added with the same clock.
    pub fn remove(&mut self, hash: KeyHash, seen: &Clock) {
        self.0 = self.0.wrapping_sub(leaf(hash, seen));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::{Actor, Dot};

    fn clock(dots: &[(&str, u64)]) -> Clock {
        dots.iter().map(|(a, n)| Dot { actor: Actor::parse(a).unwrap(), n: *n }).collect()
    }

    #[test]
    fn sums_do_not_depend_on_order_and_undo() {
        let keys = [(KeyHash(1), clock(&[("a.1", 1)])), (KeyHash(2), clock(&[("a.1", 1), ("b.1", 3)]))];
        let (mut there, mut back) = (LeafSum::default(), LeafSum::default());
        keys.iter().for_each(|(hash, seen)| there.add(*hash, seen));
        keys.iter().rev().for_each(|(hash, seen)| back.add(*hash, seen));
        assert_eq!(there, back);
        keys.iter().for_each(|(hash, seen)| back.remove(*hash, seen));
        assert_eq!(back, LeafSum::default());
    }

    #[test]
    fn every_difference_counts() {
        let one = leaf(KeyHash(1), &clock(&[("a.1", 1)]));
        assert_ne!(one, leaf(KeyHash(2), &clock(&[("a.1", 1)])));
        assert_ne!(one, leaf(KeyHash(1), &clock(&[("a.1", 1), ("a.1", 2)])));
        assert_ne!(one, leaf(KeyHash(1), &clock(&[("a.2", 1)])));
        assert_eq!(leaf(KeyHash(1), &Clock::new()), 0);
    }

    /// Frozen: nodes of different builds compare these.
    #[test]
    fn golden_vector() {
        assert_eq!(
            format!("{:016x}", leaf(KeyHash(7), &clock(&[("node-a.3", 1), ("node-a.3", 2)]))),
            "0841fdd4be1e4639"
        );
    }
}
