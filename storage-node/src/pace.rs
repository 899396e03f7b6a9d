//! How fast background work may go: as fast as the foreground does not feel it (Dynamo, SOSP 2007, section 6.5).
//!
//! Writes in the foreground say how long they took. While they take about as long as they usually do, background work
//! gets wider; when they take much longer, it gets narrower, down to a floor, so that debt always shrinks.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Bytes per second that background work gets at least.
const FLOOR: u64 = 1024 * 1024;
/// And at most.
const CEILING: u64 = 512 * 1024 * 1024;
/// Bytes per second that it begins with.
const FIRST: u64 = 64 * 1024 * 1024;
/// How many times the usual is much longer…
const STRAINED: u64 = 2;
/// …and how long a write must take for that to matter, in microseconds.
const NOTICEABLE: u64 = 2_000;
/// How often the rate changes.
const STEP: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct State {
    /// How long writes take lately, and usually: moving averages over about 16 and 1,024 of them, in microseconds.
    lately: u64,
    usually: u64,
    rate: u64,
    changed: Instant,
    /// When what was let through so far is paid for.
    paid: Instant,
}

/// The pace of background work.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

impl Pace {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(State { lately: 0, usually: 0, rate: FIRST, changed: now, paid: now }))
    }

    /// A write in the foreground took so long.
    pub(crate) fn foreground(&self, took: Duration) {
        // With sixteen binary places, so that small steps are not lost.
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(1 << 32) << 16;
        let mut state = self.0.lock();
        if state.usually == 0 {
            (state.lately, state.usually) = (micros, micros);
        }
        state.lately = state.lately - state.lately / 16 + micros / 16;
        state.usually = state.usually - state.usually / 1024 + micros / 1024;
    }

    /// Waits until so many bytes of background work may be done.
    pub(crate) async fn turn(&self, bytes: usize) {
        let until = self.0.lock().take(bytes, Instant::now());
        if until > Instant::now() {
            tokio::time::sleep_until(until).await;
        } else {
            // A timer would round up to the next millisecond; others get their turn all the same.
            tokio::task::yield_now().await;
        }
    }

    /// Bytes per second that background work gets now.
    pub(crate) fn rate(&self) -> u64 {
        self.0.lock().rate
    }
}

impl State {
    /// Takes so many bytes; gives the time at which they may be done.
    fn take(&mut self, bytes: usize, now: Instant) -> Instant {
        if now.saturating_duration_since(self.changed) >= STEP {
            self.changed = now;
            let (lately, usually) = (self.lately >> 16, self.usually >> 16);
            let strained = lately > NOTICEABLE && lately > usually.saturating_mul(STRAINED);
            let rate = if strained { self.rate / 2 } else { self.rate + self.rate / 4 };
            self.rate = rate.clamp(FLOOR, CEILING);
        }
        let start = self.paid.max(now);
        let micros = (bytes as u64).saturating_mul(1_000_000) / self.rate;
        self.paid = start + Duration::from_micros(micros);
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate_after(pace: &Pace, turns: u32) -> u64 {
        let mut now = pace.0.lock().changed;
        for _ in 0..turns {
            now += STEP;
            pace.0.lock().take(1, now);
        }
        pace.rate()
    }

    #[test]
    fn it_narrows_while_writes_are_slow_and_widens_again() {
        let pace = Pace::new();
        (0..2000).for_each(|_| pace.foreground(Duration::from_micros(1500)));
        let wide = rate_after(&pace, 20);
        assert_eq!(wide, CEILING);
        (0..50).for_each(|_| pace.foreground(Duration::from_millis(40)));
        assert_eq!(rate_after(&pace, 20), FLOOR, "never below the floor");
        (0..200).for_each(|_| pace.foreground(Duration::from_micros(1500)));
        assert!(rate_after(&pace, 60) > FIRST);
    }

    #[test]
    fn quick_writes_strain_nobody_however_much_they_vary() {
        let pace = Pace::new();
        (0..2000).for_each(|_| pace.foreground(Duration::from_micros(50)));
        (0..50).for_each(|_| pace.foreground(Duration::from_micros(900)));
        assert_eq!(rate_after(&pace, 20), CEILING);
    }

    #[test]
    fn work_waits_for_what_was_let_through_before_it() {
        let pace = Pace::new();
        let now = Instant::now();
        let rate = usize::try_from(pace.rate()).unwrap_or(usize::MAX);
        let first = pace.0.lock().take(rate, now);
        let second = pace.0.lock().take(1, now);
        assert!(first <= now + Duration::from_millis(1), "whoever comes first does not wait");
        let waits = second.saturating_duration_since(first);
        assert!(waits > Duration::from_millis(900) && waits < Duration::from_millis(1100), "{waits:?}");
    }
}
