//! One axis: its range, its ticks, and where a value lies on it.

use super::{Frame, line, text};

/// Most ticks of an axis.
const MAX_TICKS: usize = 24;

/// An axis, linear or by powers of ten.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Axis {
    label: String,
    log: bool,
    /// Both as they lie on the axis: logarithms, if it has these.
    low: f64,
    high: f64,
    /// The value and what stands there.
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From `low` to `high`, with a tick every `step`, at most 24 of them.
    pub(in crate::sim) fn linear(label: &str, low: f64, high: f64, step: f64) -> Self {
        // Counted, not added up: sums of binary fractions drift.
        let values =
            (0..MAX_TICKS).map(|n| low + n as f64 * step).take_while(|value| *value <= high + step / 1e6);
        let decimals = (0..4).find(|d| (step * 10_f64.powi(*d)).fract().abs() < 1e-9).unwrap_or(4);
        let decimals = usize::try_from(decimals).unwrap_or(0);
        let ticks = values.map(|value| (value, format!("{value:.decimals$}"))).collect();
        Self { label: label.to_owned(), log: false, low, high, ticks }
    }

    /// Whole powers of ten around all `values` that are above 0, with a tick at each.
    pub(in crate::sim) fn decades(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let exponents: Vec<f64> = values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10).collect();
        let low = exponents.iter().copied().fold(f64::INFINITY, f64::min).floor();
        let high = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil();
        let (low, high) = if low.is_finite() { (low, high.max(low + 1.0)) } else { (0.0, 1.0) };
        let exponents = (0..MAX_TICKS).map(|n| low + n as f64).take_while(|e| *e <= high);
        let ticks = exponents.map(|e| (10_f64.powf(e), short(e))).collect();
        Self { label: label.to_owned(), log: true, low, high, ticks }
    }

    /// Where a value lies, from 0 to 1; the nearer end for what lies outside.
    pub(super) fn part(&self, value: f64) -> f64 {
        let at = if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value };
        ((at - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Draws it below the plot.
    pub(super) fn draw_below(&self, frame: Frame, out: &mut String) {
        for (value, words) in &self.ticks {
            let x = frame.x(self.part(*value));
            line(out, "grid", (x, frame.y(0.0)), (x, frame.y(1.0)));
            text(out, "dim", x, frame.y(0.0) + 18.0, "middle", words);
        }
        line(out, "frame", (frame.x(0.0), frame.y(0.0)), (frame.x(1.0), frame.y(0.0)));
        text(out, "dim", frame.x(0.5), frame.y(0.0) + 36.0, "middle", &self.label);
    }

    /// Draws it to the left of the plot.
    pub(super) fn draw_left(&self, frame: Frame, out: &mut String) {
        for (value, words) in &self.ticks {
            let y = frame.y(self.part(*value));
            line(out, "grid", (frame.x(0.0), y), (frame.x(1.0), y));
            text(out, "dim", frame.x(0.0) - 8.0, y + 4.0, "end", words);
        }
        line(out, "frame", (frame.x(0.0), frame.y(0.0)), (frame.x(0.0), frame.y(1.0)));
        let (x, y) = (frame.x(0.0) - 62.0, frame.y(0.5));
        let label = super::escaped(&self.label);
        out.push_str(&format!(
            "<text class=\"dim\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 {x:.1} {y:.1})\">{label}</text>\n"
        ));
    }
}

/// A power of ten as people write it: 0.1, 100, 10 k, 1 M.
fn short(exponent: f64) -> String {
    let (scale, unit) = [(12.0, " T"), (9.0, " G"), (6.0, " M"), (3.0, " k")]
        .into_iter()
        .find(|(scale, _)| exponent >= *scale && exponent > 3.5)
        .unwrap_or((0.0, ""));
    let value = 10_f64.powf(exponent - scale);
    let decimals =
        if exponent < 0.0 { usize::from(exponent > -1.5) + 2 * usize::from(exponent <= -1.5) } else { 0 };
    format!("{value:.decimals$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_enclose_their_values() {
        let axis = Axis::decades("bytes", [0.0, 30.0, 20_000.0, f64::NAN].into_iter());
        let ticks: Vec<&str> = axis.ticks.iter().map(|(_, words)| words.as_str()).collect();
        assert_eq!(ticks, ["10", "100", "1000", "10 k", "100 k"]);
        assert_eq!((axis.part(10.0), axis.part(100_000.0), axis.part(1000.0)), (0.0, 1.0, 0.5));
        assert_eq!((axis.part(0.0), axis.part(1e9)), (0.0, 1.0));
        assert_eq!(Axis::decades("", std::iter::empty()).ticks.len(), 2);
        assert_eq!([-2.0, -1.0, 0.0, 6.0, 8.0].map(short), ["0.01", "0.1", "1", "1 M", "100 M"]);
    }

    #[test]
    fn linear_ticks_do_not_drift() {
        let axis = Axis::linear("", 0.4, 1.0, 0.1);
        let ticks: Vec<&str> = axis.ticks.iter().map(|(_, words)| words.as_str()).collect();
        assert_eq!(ticks, ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]);
        assert_eq!((axis.part(0.4), axis.part(2.0)), (0.0, 1.0));
    }
}
