//! Which key an operation uses: uniform or Zipf, seeded.

use std::str::FromStr;

use rand::{Rng, RngExt};

/// How keys are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Every key is as likely as any other.
    Uniform,
    /// The key of rank k is chosen with a probability in proportion to 1 / k^exponent.
    Zipf(f64),
}

/// The usual exponent of key-value benchmarks.
const DEFAULT_EXPONENT: f64 = 0.99;

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Distribution, String> {
        let exponent = match text {
            "uniform" => return Ok(Distribution::Uniform),
            "zipf" => return Ok(Distribution::Zipf(DEFAULT_EXPONENT)),
            _ => text.strip_prefix("zipf:").and_then(|number| number.parse::<f64>().ok()),
        };
        match exponent {
            Some(exponent) if exponent > 0.0 && exponent <= 10.0 => Ok(Distribution::Zipf(exponent)),
            _ => {
                Err("write uniform, zipf, or zipf:EXPONENT with an exponent above 0 and up to 10".to_owned())
            }
        }
    }
}

impl std::fmt::Display for Distribution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Distribution::Uniform => f.write_str("uniform"),
            Distribution::Zipf(exponent) => write!(f, "zipf:{exponent}"),
        }
    }
}

/// Picks key numbers from 0 to one less than the number of keys.
#[derive(Debug, Clone)]
pub(crate) enum KeyPicker {
    Uniform(u32),
    Zipf(Zipf),
}

impl KeyPicker {
    /// A picker among `keys` keys (at least 1).
    pub(crate) fn new(distribution: Distribution, keys: u32) -> KeyPicker {
        let keys = keys.max(1);
        match distribution {
            Distribution::Uniform => KeyPicker::Uniform(keys),
            Distribution::Zipf(exponent) => KeyPicker::Zipf(Zipf::new(keys, exponent)),
        }
    }

    /// The next key's number.
    pub(crate) fn pick(&self, rng: &mut impl Rng) -> u32 {
        match self {
            KeyPicker::Uniform(keys) => rng.random_range(0..*keys),
            KeyPicker::Zipf(zipf) => zipf.rank(rng) - 1,
        }
    }
}

/// Zipf by rejection-inversion (Hörmann and Derflinger 1996): constant memory and, on average, less than two
/// draws for any number of keys.
#[derive(Debug, Clone)]
pub(crate) struct Zipf {
    keys: u32,
    exponent: f64,
    integral_first: f64,
    integral_last: f64,
    accept_below: f64,
}

impl Zipf {
    fn new(keys: u32, exponent: f64) -> Zipf {
        let mut zipf = Zipf { keys, exponent, integral_first: 0.0, integral_last: 0.0, accept_below: 0.0 };
        zipf.integral_first = zipf.integral(1.5) - 1.0;
        zipf.integral_last = zipf.integral(f64::from(keys) + 0.5);
        zipf.accept_below = 2.0 - zipf.integral_inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    /// 1 / x^exponent.
    fn density(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// The integral of the density; written with `exp_m1` so that an exponent near 1 loses no digits.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        let t = (1.0 - self.exponent) * log;
        let factor = if t.abs() > 1e-8 { t.exp_m1() / t } else { 1.0 + t / 2.0 };
        factor * log
    }

    fn integral_inverse(&self, y: f64) -> f64 {
        // Rounding may push this just below -1, where the logarithm ends.
        let t = (y * (1.0 - self.exponent)).max(-1.0);
        let factor = if t.abs() > 1e-8 { t.ln_1p() / t } else { 1.0 - t / 2.0 };
        (factor * y).exp()
    }

    /// A rank from 1 to the number of keys.
    fn rank(&self, rng: &mut impl Rng) -> u32 {
        loop {
            let u: f64 = rng.random();
            let y = self.integral_last + u * (self.integral_first - self.integral_last);
            let x = self.integral_inverse(y);
            let rank = x.round().clamp(1.0, f64::from(self.keys));
            if rank - x <= self.accept_below || y >= self.integral(rank + 0.5) - self.density(rank) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "clamped above"
                )]
                return rank as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    /// Pearson's chi-square of `draws` seeded draws against the exact probabilities.
    fn chi_square(distribution: Distribution, keys: u32, draws: u32) -> f64 {
        let picker = KeyPicker::new(distribution, keys);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        let mut counts = vec![0_u32; keys as usize];
        for _ in 0..draws {
            counts[picker.pick(&mut rng) as usize] += 1;
        }
        let exponent = match distribution {
            Distribution::Uniform => 0.0,
            Distribution::Zipf(exponent) => exponent,
        };
        let weights: Vec<f64> = (1..=keys).map(|rank| f64::from(rank).powf(-exponent)).collect();
        let total: f64 = weights.iter().sum();
        weights
            .iter()
            .zip(&counts)
            .map(|(weight, count)| {
                let expected = weight / total * f64::from(draws);
                (f64::from(*count) - expected).powi(2) / expected
            })
            .sum()
    }

    #[test]
    fn draws_follow_the_exact_probabilities() {
        // 99 degrees of freedom: above 149 once in a thousand honest runs, and the seed is fixed.
        for distribution in [
            Distribution::Uniform,
            Distribution::Zipf(0.5),
            Distribution::Zipf(0.99),
            Distribution::Zipf(1.0),
            Distribution::Zipf(1.5),
        ] {
            let statistic = chi_square(distribution, 100, 200_000);
            assert!(statistic < 149.0, "{distribution}: {statistic}");
        }
        // The check itself can tell 0.99 from uniform: a wrong sampler would not pass.
        let picker = KeyPicker::new(Distribution::Zipf(0.99), 100);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        let hits = (0..10_000).filter(|_| picker.pick(&mut rng) == 0).count();
        assert!((1_700..2_100).contains(&hits), "{hits}");
    }

    #[test]
    fn edges_stay_in_range() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        for exponent in [0.01, 0.99, 1.0, 10.0] {
            let one = KeyPicker::new(Distribution::Zipf(exponent), 1);
            let many = KeyPicker::new(Distribution::Zipf(exponent), 10_000_000);
            for _ in 0..2_000 {
                assert_eq!(one.pick(&mut rng), 0);
                assert!(many.pick(&mut rng) < 10_000_000);
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_keys() {
        let picker = KeyPicker::new(Distribution::Zipf(0.99), 1_000);
        let draw = |seed| {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            (0..50).map(|_| picker.pick(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn names_are_read() {
        assert_eq!("uniform".parse::<Distribution>().unwrap(), Distribution::Uniform);
        assert_eq!("zipf".parse::<Distribution>().unwrap(), Distribution::Zipf(0.99));
        assert_eq!("zipf:1.2".parse::<Distribution>().unwrap().to_string(), "zipf:1.2");
        for bad in ["", "zipf:", "zipf:0", "zipf:-1", "zipf:11", "zipf:NaN", "normal"] {
            assert!(bad.parse::<Distribution>().is_err(), "{bad}");
        }
    }
}
