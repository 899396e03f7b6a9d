//! How much a storage node is asked: reads and writes of keys, per second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The time over which a rate is taken at least.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts calls about keys.
#[derive(Debug)]
pub(super) struct Load {
    calls: AtomicU64,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    /// Calls until then.
    calls: u64,
    /// Of the window before this one.
    per_second: Option<f64>,
}

impl Load {
    /// Nothing yet, as of `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { calls: AtomicU64::new(0), window: Window { since: now, calls: 0, per_second: None }.into() }
    }

    /// One call more.
    pub(super) fn count(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls per second: of the time since somebody last looked, if that is ten seconds or more, or of the window
    /// before.
    pub(super) fn per_second(&self, now: Instant) -> f64 {
        let calls = self.calls.load(Ordering::Relaxed);
        let mut window = self.window.lock();
        let passed = now.saturating_duration_since(window.since);
        let rate = calls.saturating_sub(window.calls) as f64 / passed.as_secs_f64().max(0.001);
        if passed < WINDOW {
            return window.per_second.unwrap_or(rate);
        }
        *window = Window { since: now, calls, per_second: Some(rate) };
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_a_whole_window() {
        let start = Instant::now();
        let load = Load::new(start);
        (0..100).for_each(|_| load.count());
        let near = |found: f64, wanted: f64| (found - wanted).abs() < 1e-6;
        assert!(
            near(load.per_second(start + Duration::from_secs(5)), 20.0),
            "there is no window before the first"
        );
        assert!(near(load.per_second(start + Duration::from_secs(20)), 5.0));
        (0..100).for_each(|_| load.count());
        assert!(near(load.per_second(start + Duration::from_secs(25)), 5.0), "too early for another");
        assert!(near(load.per_second(start + Duration::from_secs(30)), 10.0));
        assert!(near(load.per_second(start + Duration::from_secs(60)), 0.0));
    }
}
