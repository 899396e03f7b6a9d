//! Time that passed, and CPU time that this process used meanwhile.

use std::fs;
use std::time::Duration;

use tokio::time::Instant;

/// CPU time is counted in such steps on every Linux we know of.
const TICK: Duration = Duration::from_millis(10);

/// What one measurement took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) wall: Duration,
    /// User and system time of all threads.
    pub(crate) cpu: Duration,
}

/// Runs from its making on.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    began: Instant,
    ticks: u32,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let ticks = ticks();
        Self { began: Instant::now(), ticks }
    }

    pub(crate) fn stop(&self) -> Took {
        let wall = self.began.elapsed();
        Took { wall, cpu: TICK * ticks().saturating_sub(self.ticks) }
    }
}

/// `utime + stime`, fields 14 and 15. The name before them may hold blanks and brackets. 0 where there is no `/proc`.
fn ticks() -> u32 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum()
}
