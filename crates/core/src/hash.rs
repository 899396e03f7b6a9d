//! Where a key lives on the circle: one 128-bit hash whose top bits are the partition.
//!
//! Dynamo (SOSP 2007, section 4.2) hashes keys with MD5 onto a ring. Here the hash is xxh3-128 under the
//! cluster's seed; partition, Merkle leaf and block order are all prefixes of the same number, so each of
//! them is one contiguous range wherever records are sorted by hash.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::names::{Key, Namespace};

/// The 128-bit position of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub u128);

impl KeyHash {
    /// Hashes namespace and key under the cluster's `seed`. The namespace's length comes first, so that no
    /// two (namespace, key) pairs feed the same bytes.
    #[must_use]
    pub fn of(seed: u64, namespace: &Namespace, key: &Key) -> Self {
        let mut input = [0_u8; 1 + crate::names::MAX_NAMESPACE_BYTES + crate::names::MAX_KEY_BYTES];
        let (ns, key) = (namespace.as_bytes(), key.as_bytes());
        let total = 1 + ns.len() + key.len();
        input[0] = u8::try_from(ns.len()).unwrap_or(u8::MAX);
        input[1..=ns.len()].copy_from_slice(ns);
        input[1 + ns.len()..total].copy_from_slice(key);
        let mut hasher = Xxh3::with_seed(seed);
        hasher.update(&input[..total]);
        Self(hasher.digest128())
    }

    /// The partition: the top bits. `partitions` is a power of two.
    #[must_use]
    pub fn partition(self, partitions: u32) -> u32 {
        let bits = partitions.trailing_zeros();
        if bits == 0 { 0 } else { u32::try_from(self.0 >> (128 - bits)).unwrap_or(0) }
    }

    /// The upper and the lower 64 bits.
    #[must_use]
    pub fn halves(self) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0.to_be_bytes();
        (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes(rest))
    }

    /// Where in the partition's homes this key's preference list starts, so that minting is spread evenly
    /// over them. Mixed from the low half, which the partition does not use.
    #[must_use]
    pub fn rotation(self, homes: usize) -> usize {
        if homes == 0 {
            return 0;
        }
        let (_, low) = self.halves();
        let mixed = xxh3_64_with_seed(&low.to_be_bytes(), 0x726f_7461_7465);
        usize::try_from(mixed % homes as u64).unwrap_or(0)
    }

    /// The first and last hash of a partition, both inclusive.
    #[must_use]
    pub fn partition_range(partition: u32, partitions: u32) -> (Self, Self) {
        let bits = partitions.trailing_zeros();
        if bits == 0 {
            return (Self(0), Self(u128::MAX));
        }
        let first = u128::from(partition) << (128 - bits);
        (Self(first), Self(first | (u128::MAX >> bits)))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let parsed = hex.then(|| u128::from_str_radix(&text, 16).ok()).flatten();
        parsed.map(Self).ok_or_else(|| D::Error::custom("a hash is 32 hex digits"))
    }
}

/// The request id of a write that a client named: the same name for the same key is the same write.
#[must_use]
pub fn request_id(namespace: &Namespace, key: &Key, name: &[u8]) -> u128 {
    let mut hasher = Xxh3::with_seed(0x6964_656d);
    for part in [namespace.as_bytes(), key.as_bytes(), name] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest128()
}

/// The checksum of every codec here: 64-bit xxh3, unseeded. It finds damage, not forgery.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;

    fn hash(seed: u64, ns: &str, key: &str) -> KeyHash {
        KeyHash::of(
            seed,
            &Namespace::new(ns.as_bytes()).unwrap(),
            &Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap(),
        )
    }

    #[test]
    fn golden_vectors() {
        assert_eq!(hash(0, "carts", "alice").to_string(), "70bf04cf10993abe6850d97e04c99290");
    }

    #[test]
    fn namespace_and_key_do_not_run_together() {
        assert_ne!(hash(7, "ab", "c"), hash(7, "a", "bc"));
    }

    #[test]
    fn partition_ranges_tile_the_circle() {
        let mut next = 0_u128;
        for p in 0..8 {
            let (first, last) = KeyHash::partition_range(p, 8);
            assert_eq!(first.0, next);
            assert_eq!(first.partition(8), p);
            assert_eq!(last.partition(8), p);
            next = last.0.wrapping_add(1);
        }
        assert_eq!(next, 0);
    }

    #[test]
    fn rotation_is_even() {
        let mut counts = [0; 3];
        for i in 0..3000 {
            counts[hash(1, "n", &format!("k{i}")).rotation(3)] += 1;
        }
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
    }
}
