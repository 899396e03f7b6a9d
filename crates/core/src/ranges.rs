//! Ranges of hashes: which part of the circle somebody speaks of.
//!
//! A list of ranges is *joined* if it is sorted, no two have a hash in common, and no two could be one.

use serde::{Deserialize, Serialize};

use crate::hash::KeyHash;

/// The hashes `first..=last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashRange {
    /// The first one.
    pub first: KeyHash,
    /// The last one; not less than the first.
    pub last: KeyHash,
}

impl HashRange {
    /// The whole circle.
    pub const ALL: Self = Self { first: KeyHash(0), last: KeyHash(u128::MAX) };

    /// The hashes of a partition. `partitions` is a power of two.
    #[must_use]
    pub fn of_partition(partition: u32, partitions: u32) -> Self {
        let (first, last) = KeyHash::partition_range(partition, partitions);
        Self { first, last }
    }

    /// Is the hash one of these?
    #[must_use]
    pub fn contains(self, hash: KeyHash) -> bool {
        (self.first..=self.last).contains(&hash)
    }

    /// How many hashes there are, less one.
    fn span(self) -> u128 {
        self.last.0.saturating_sub(self.first.0)
    }
}

/// Makes one joined list of any ranges.
#[must_use]
pub fn join(ranges: impl IntoIterator<Item = HashRange>) -> Vec<HashRange> {
    let mut all: Vec<HashRange> = ranges.into_iter().collect();
    all.sort_unstable();
    let mut joined: Vec<HashRange> = Vec::with_capacity(all.len());
    for range in all {
        match joined.last_mut() {
            Some(last) if range.first.0 <= last.last.0.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Is the list joined, and no range in it without a hash?
#[must_use]
pub fn is_joined(ranges: &[HashRange]) -> bool {
    ranges.iter().all(|range| range.first <= range.last)
        && ranges.windows(2).all(|w| w[0].last.0.checked_add(1).is_some_and(|next| next < w[1].first.0))
}

/// What two joined lists have in common, joined.
#[must_use]
pub fn common(a: &[HashRange], b: &[HashRange]) -> Vec<HashRange> {
    let (mut a, mut b) = (a.iter().copied().peekable(), b.iter().copied().peekable());
    let mut common = Vec::new();
    while let (Some(x), Some(y)) = (a.peek().copied(), b.peek().copied()) {
        let both = HashRange { first: x.first.max(y.first), last: x.last.min(y.last) };
        if both.first <= both.last {
            common.push(both);
        }
        if x.last <= y.last {
            a.next()
        } else {
            b.next()
        };
    }
    join(common)
}

/// Is the hash in one of these ranges? They are joined.
#[must_use]
pub fn contains(ranges: &[HashRange], hash: KeyHash) -> bool {
    let at = ranges.partition_point(|range| range.last < hash);
    ranges.get(at).is_some_and(|range| range.contains(hash))
}

/// Are all of `part` in `all`? Both are joined.
#[must_use]
pub fn includes(all: &[HashRange], part: &[HashRange]) -> bool {
    common(all, part) == part
}

/// So much of `amount` as `part` is of `whole`, rounded up.
#[must_use]
pub fn share(amount: u64, part: &[HashRange], whole: HashRange) -> u64 {
    // In steps large enough that nothing overflows.
    let shift = (128 - whole.span().leading_zeros()).saturating_sub(48);
    let width = |range: &HashRange| (range.span() >> shift) + 1;
    let (part, whole) = (part.iter().map(width).sum::<u128>(), width(&whole));
    let share = (u128::from(amount) * part.min(whole)).div_ceil(whole);
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn range(first: u128, last: u128) -> HashRange {
        HashRange { first: KeyHash(first), last: KeyHash(last) }
    }

    #[test]
    fn adjacent_ranges_become_one() {
        let joined = join([range(10, 19), range(30, 40), range(20, 29), range(50, 60), range(55, 56)]);
        assert_eq!(joined, [range(10, 40), range(50, 60)]);
        let halves = join((0..4).rev().map(|p| HashRange::of_partition(p, 4)));
        assert_eq!(halves, [HashRange::ALL]);
        assert_eq!(join([HashRange::ALL, range(u128::MAX, u128::MAX)]), [HashRange::ALL]);
    }

    #[test]
    fn a_share_is_about_what_it_covers() {
        let quarter = HashRange::of_partition(1, 4);
        assert!((250..=251).contains(&share(1000, &[quarter], HashRange::ALL)));
        assert_eq!(share(1000, &[quarter], quarter), 1000);
        assert_eq!(share(u64::MAX, &[HashRange::ALL], HashRange::ALL), u64::MAX);
        assert_eq!(share(7, &[range(5, 5)], range(5, 5)), 7);
        assert_eq!(share(10, &[range(5, 5)], range(5, 14)), 1);
        assert_eq!(share(10, &[], range(5, 14)), 0);
        assert_eq!(share(1, &[range(5, 5)], HashRange::ALL), 1, "never nothing of something");
    }

    proptest! {
        /// Against sets of small numbers.
        #[test]
        fn ranges_are_sets(
            a in prop::collection::vec((0..40_u128, 0..6_u128), 0..8),
            b in prop::collection::vec((0..40_u128, 0..6_u128), 0..8),
        ) {
            let list = |pairs: &[(u128, u128)]| join(pairs.iter().map(|(first, more)| range(*first, first + more)));
            let set = |list: &[HashRange]| -> Vec<u128> { (0..50).filter(|n| contains(list, KeyHash(*n))).collect() };
            let (x, y) = (list(&a), list(&b));
            let plain: Vec<u128> =
                (0..50).filter(|n| a.iter().any(|(first, more)| (*first..=first + more).contains(n))).collect();
            prop_assert!(is_joined(&x) && is_joined(&y) && is_joined(&common(&x, &y)));
            prop_assert_eq!(set(&x), plain);
            let both: Vec<u128> = set(&x).into_iter().filter(|n| set(&y).contains(n)).collect();
            prop_assert_eq!(set(&common(&x, &y)), both);
            prop_assert_eq!(includes(&x, &y), set(&y).iter().all(|n| set(&x).contains(n)));
        }
    }
}
