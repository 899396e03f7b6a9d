//! Numbers drawn from a seed (splitmix64): the same seed draws the same numbers.

use std::time::Duration;

/// One stream of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The stream `stream` of a seed; streams of one seed have nothing to do with each other.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed);
        let mixed = dice.next();
        Self(mixed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }

    /// 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 where `bound` is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let drawn = self.next().checked_rem(bound as u64).unwrap_or(0);
        usize::try_from(drawn).unwrap_or(0)
    }

    /// True one time in `times`.
    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// A duration from `least` to `most`, in whole milliseconds.
    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = most.saturating_sub(least).as_millis();
        let drawn = self.below(usize::try_from(span).unwrap_or(usize::MAX).saturating_add(1));
        least + Duration::from_millis(drawn as u64)
    }

    /// One of `choices`; `None` where there are none.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        choices.get(self.below(choices.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, stream| -> Vec<u64> {
            let mut dice = Dice::new(seed, stream);
            (0..4).map(|_| dice.next()).collect()
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn numbers_keep_to_their_limits() {
        let mut dice = Dice::new(1, 0);
        let (least, most) = (Duration::from_secs(1), Duration::from_millis(1003));
        let drawn: std::collections::BTreeSet<_> = (0..200).map(|_| dice.between(least, most)).collect();
        assert_eq!(drawn.len(), 4, "{drawn:?}");
        assert!(drawn.iter().all(|d| (least..=most).contains(d)));
        assert_eq!((dice.below(0), dice.pick::<u8>(&[])), (0, None));
    }
}
