//! CPU time of processes, read from `/proc`.

use std::time::Duration;

use crate::client::Failure;

/// The CPU time, user and system, that a process has used so far.
///
/// # Errors
/// Exit status 1 if there is no such process, or no `/proc` here.
pub(crate) fn used(pid: u32) -> Result<Duration, Failure> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Failure::failed(format!("can't read {path} (--pid): {error}")))?;
    let ticks = ticks(&text).ok_or_else(|| Failure::failed(format!("can't read {path} (--pid)")))?;
    Ok(Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / ticks_per_second())))
}

/// `utime + stime`, fields 14 and 15 of `/proc/PID/stat`. The name before them may hold blanks and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// Ticks per second as the kernel told this process; 100 on every Linux we know of.
fn ticks_per_second() -> u64 {
    std::fs::read("/proc/self/auxv").ok().and_then(|auxv| clock_ticks(&auxv)).unwrap_or(100)
}

/// `AT_CLKTCK` of an auxiliary vector: pairs of native words.
fn clock_ticks(auxv: &[u8]) -> Option<u64> {
    const AT_CLKTCK: usize = 17;
    const WORD: usize = size_of::<usize>();
    let word = |bytes: &[u8]| <[u8; WORD]>::try_from(bytes).map(usize::from_ne_bytes).ok();
    auxv.chunks_exact(2 * WORD)
        .find(|pair| word(&pair[..WORD]) == Some(AT_CLKTCK))
        .and_then(|pair| word(&pair[WORD..]))
        .and_then(|ticks| u64::try_from(ticks).ok())
        .filter(|ticks| (1..=1_000_000).contains(ticks))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fields_are_found_behind_an_odd_name() {
        let stat = "42 (a) b) c) S 1 42 42 0 -1 4194560 100 0 0 0 123 45 0 0 20 0 4 0 100 1000 10";
        assert_eq!(ticks(stat), Some(168));
        for bad in ["", "42 (a) S", "42 (a) S 1 2 3 4 5 6 7 8 9 10 x 12"] {
            assert_eq!(ticks(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_auxiliary_vector_tells_the_tick() {
        let vector: Vec<u8> =
            [6_usize, 4096, 17, 250, 0, 0].into_iter().flat_map(usize::to_ne_bytes).collect();
        assert_eq!(clock_ticks(&vector), Some(250));
        assert_eq!(clock_ticks(&vector[..16]), None);
    }

    #[test]
    fn this_process_can_be_read_and_a_missing_one_can_not() {
        assert!(used(std::process::id()).is_ok());
        assert!(used(u32::MAX).unwrap_err().message.contains("--pid"));
    }
}
