//! Medians and percentiles of a few numbers, for reports.

/// The median; the mean of the middle two where their number is even. 0 of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), middle.checked_sub(1).and_then(|at| sorted.get(at))) {
        (Some(high), Some(low)) if sorted.len().is_multiple_of(2) => f64::midpoint(*low, *high),
        (Some(high), _) => *high,
        (None, _) => 0.0,
    }
}

/// The mean. 0 of nothing.
pub(super) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The smallest value that at least `percent` of 100 of all do not exceed (nearest rank). 0 of nothing.
pub(super) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

/// The smallest value. 0 of nothing.
pub(super) fn least(values: &[f64]) -> f64 {
    values.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0)
}

/// The largest value. 0 of nothing.
pub(super) fn most(values: &[f64]) -> f64 {
    values.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0)
}

/// A number with `decimals` of them, as a number again: JSON does not show the noise of binary fractions.
pub(super) fn rounded(value: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_small_cases() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!((median(&values), median(&values[..3]), median(&[])), (2.5, 3.0, 0.0));
        assert_eq!((mean(&values), mean(&[])), (2.5, 0.0));
        assert_eq!((least(&values), most(&values)), (1.0, 4.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&hundred, 99), percentile(&hundred, 0)), (99.0, 1.0));
        assert_eq!((percentile(&values, 99), percentile(&[], 50)), (4.0, 0.0));
        assert_eq!(rounded(1.0 / 3.0, 3), 0.333);
    }
}
