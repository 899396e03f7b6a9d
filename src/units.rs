//! Durations (`300ms`, `10s`) and sizes (`512MiB`) as people write them on the command line and in queries.
//!
//! Whole numbers with a unit, nothing else: `1.5s` is written `1500ms`, so that a value reads back as it was
//! written. Errors name the limit.

use std::time::Duration;

use thiserror::Error;

/// The longest duration that any option takes.
pub const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The largest size that any option takes (1 PiB).
pub const MAX_SIZE: u64 = 1 << 50;

/// Nanoseconds per unit, largest first, so that formatting finds the largest unit that fits exactly.
const DURATION_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Bytes per binary unit, largest first.
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Bytes per decimal unit: read, never written.
const DECIMAL_UNITS: [(&str, u64); 4] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];

/// Why a duration or a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// Not a whole number followed by a duration's unit.
    #[error("'{0}' is not a duration: write a whole number and one of ns, us, ms, s, m, h, d, such as 300ms")]
    NotADuration(String),
    /// Not a whole number followed by a size's unit.
    #[error("'{0}' is not a size: write a whole number and one of B, KiB, MiB, GiB, TiB, such as 512MiB")]
    NotASize(String),
    /// A duration outside its option's limits.
    #[error("{given} is out of range: from {min} to {max}")]
    OutOfRange {
        /// What was written.
        given: String,
        /// The smallest value allowed, formatted.
        min: String,
        /// The largest value allowed, formatted.
        max: String,
    },
    /// Not a share between 0 % and 100 %.
    #[error("'{0}' is not a share: write a number from 0 to 100, such as 50%")]
    NotAShare(String),
}

/// Splits `512MiB` into its number and its unit; `None` if there is no number or it does not fit 64 bits.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

/// Reads a duration such as `300ms` or `10s`.
///
/// # Errors
/// [`UnitError::NotADuration`] for anything but a whole number with a unit; [`UnitError::OutOfRange`] above
/// [`MAX_DURATION`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse_duration_between(text, Duration::ZERO, MAX_DURATION)
}

/// Reads a duration that must lie from `min` to `max`, both included.
///
/// # Errors
/// As [`parse_duration`], with the given limits.
pub fn parse_duration_between(text: &str, min: Duration, max: Duration) -> Result<Duration, UnitError> {
    let not = || UnitError::NotADuration(text.to_owned());
    let (number, unit) = split(text).ok_or_else(not)?;
    let (_, nanos) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(not)?;
    let total = u128::from(number) * nanos;
    if total < min.as_nanos() || total > max.as_nanos() {
        return Err(UnitError::OutOfRange {
            given: text.to_owned(),
            min: format_duration(min),
            max: format_duration(max),
        });
    }
    // Whole seconds and the rest apart: a u64 of nanoseconds would end after 584 years, above any limit here.
    let seconds = u64::try_from(total / 1_000_000_000).map_err(|_| not())?;
    let rest = u32::try_from(total % 1_000_000_000).map_err(|_| not())?;
    Ok(Duration::new(seconds, rest))
}

/// A parser for a command-line option that takes a duration from `min` to `max`.
pub fn duration_between(
    min: Duration,
    max: Duration,
) -> impl Fn(&str) -> Result<Duration, UnitError> + Clone + Send + Sync + 'static {
    move |text| parse_duration_between(text, min, max)
}

/// Writes a duration exactly, in the largest unit that divides it: `90s`, `300ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (name, unit) in DURATION_UNITS {
        if nanos.is_multiple_of(unit) {
            return format!("{}{name}", nanos / unit);
        }
    }
    format!("{nanos}ns")
}

/// Reads a size in bytes: `512MiB`, `64KB`, or a bare number of bytes.
///
/// # Errors
/// [`UnitError::NotASize`] for anything but a whole number with an optional unit; [`UnitError::OutOfRange`]
/// above [`MAX_SIZE`].
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    parse_size_between(text, 0, MAX_SIZE)
}

/// Reads a size in bytes that must lie from `min` to `max`, both included.
///
/// # Errors
/// As [`parse_size`], with the given limits.
pub fn parse_size_between(text: &str, min: u64, max: u64) -> Result<u64, UnitError> {
    let not = || UnitError::NotASize(text.to_owned());
    let (number, unit) = split(text).ok_or_else(not)?;
    let unit = if unit.is_empty() { "B" } else { unit };
    let (_, bytes) =
        SIZE_UNITS.iter().chain(&DECIMAL_UNITS).find(|(name, _)| *name == unit).ok_or_else(not)?;
    let total = number.checked_mul(*bytes).filter(|total| (min..=max).contains(total));
    total.ok_or_else(|| UnitError::OutOfRange {
        given: text.to_owned(),
        min: format_size(min),
        max: format_size(max),
    })
}

/// A parser for a command-line option that takes a size from `min` to `max` bytes.
pub fn size_between(
    min: u64,
    max: u64,
) -> impl Fn(&str) -> Result<u64, UnitError> + Clone + Send + Sync + 'static {
    move |text| parse_size_between(text, min, max)
}

/// Writes a size exactly, in the largest binary unit that divides it: `512MiB`, `1000B`, `0B`.
pub fn format_size(bytes: u64) -> String {
    if bytes == 0 {
        return "0B".to_owned();
    }
    for (name, unit) in SIZE_UNITS {
        if bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    format!("{bytes}B")
}

/// Writes a size for people, rounded to one decimal: `1.4 MiB`, `17 B`.
pub fn human_size(bytes: u64) -> String {
    for (name, unit) in SIZE_UNITS {
        if bytes >= unit && unit > 1 {
            return format!("{:.1} {name}", bytes as f64 / unit as f64);
        }
    }
    format!("{bytes} B")
}

/// Writes a latency for people, in three digits or so: `843 µs`, `12.3 ms`, `4.56 s`. Takes microseconds.
pub fn human_micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.2} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// Reads a share such as `50%` or `12.5`; the answer is from 0.0 to 1.0.
///
/// # Errors
/// [`UnitError::NotAShare`] for anything but a number from 0 to 100.
pub fn parse_share(text: &str) -> Result<f64, UnitError> {
    let number = text.strip_suffix('%').unwrap_or(text);
    let value: f64 = number.parse().map_err(|_| UnitError::NotAShare(text.to_owned()))?;
    // A NaN is in no range, so it is refused here too.
    if !(0.0..=100.0).contains(&value) {
        return Err(UnitError::NotAShare(text.to_owned()));
    }
    Ok(value / 100.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_read_and_write_back() {
        for text in ["300ms", "10s", "5m", "2h", "7d", "250us", "1ns", "0s", "90s", "365d"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("60s").unwrap(), Duration::from_secs(60));
        assert_eq!(format_duration(Duration::from_millis(60_000)), "1m");
    }

    #[test]
    fn odd_durations_are_refused() {
        for text in ["", "10", "s", "1.5s", "-1s", "10 s", "10S", "99999999999999999999s", "+1s", "１s"] {
            assert!(matches!(parse_duration(text), Err(UnitError::NotADuration(_))), "{text}");
        }
    }

    #[test]
    fn a_duration_out_of_range_names_the_limits() {
        let error = parse_duration_between("61s", Duration::from_millis(1), Duration::from_secs(60));
        assert_eq!(error.unwrap_err().to_string(), "61s is out of range: from 1ms to 1m");
        assert!(parse_duration_between("60s", Duration::from_millis(1), Duration::from_secs(60)).is_ok());
        assert!(parse_duration_between("0ms", Duration::from_millis(1), Duration::from_secs(60)).is_err());
        assert!(parse_duration("18446744073709551615d").is_err());
    }

    #[test]
    fn sizes_read_and_write_back() {
        for text in ["512MiB", "1KiB", "64MiB", "3GiB", "2TiB", "1000B", "0B"] {
            assert_eq!(format_size(parse_size(text).unwrap()), text);
        }
        assert_eq!(parse_size("17").unwrap(), 17);
        assert_eq!(parse_size("64KB").unwrap(), 64_000);
    }

    #[test]
    fn odd_sizes_are_refused() {
        for text in ["", "MiB", "1.5MiB", "-1", "1 MiB", "1mib", "1K"] {
            assert!(matches!(parse_size(text), Err(UnitError::NotASize(_))), "{text}");
        }
        let error = parse_size_between("2MiB", 0, 1 << 20).unwrap_err();
        assert_eq!(error.to_string(), "2MiB is out of range: from 0B to 1MiB");
        // The product does not fit 64 bits: still an error about the range, not a wrapped small size.
        assert!(matches!(parse_size("18446744073709551615TiB"), Err(UnitError::OutOfRange { .. })));
    }

    #[test]
    fn shares() {
        assert_eq!(parse_share("50%").unwrap(), 0.5);
        assert_eq!(parse_share("12.5").unwrap(), 0.125);
        for text in ["", "%", "101", "-1", "NaN", "inf", "50%%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_get_rounded_figures() {
        assert_eq!(human_micros(843), "843 µs");
        assert_eq!(human_micros(1_234), "1.23 ms");
        assert_eq!(human_micros(12_345), "12.3 ms");
        assert_eq!(human_micros(4_560_000), "4.56 s");
        assert_eq!(human_size(17), "17 B");
        assert_eq!(human_size(1_500_000), "1.4 MiB");
    }
}
