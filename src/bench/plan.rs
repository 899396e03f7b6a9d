//! When operations start and how their latency counts: pure functions of times since the start.

use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// The instants at which an open loop starts its operations: number `i` at `i / rate` seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    rate: u64,
}

impl Schedule {
    /// A schedule of `rate` operations per second (at least 1).
    pub(crate) fn new(rate: u64) -> Schedule {
        Schedule { rate: rate.max(1) }
    }

    /// When operation `number` (from 0) should start.
    pub(crate) fn intended(&self, number: u64) -> Duration {
        // Rounded up, so that at this very instant the operation counts as due.
        let nanos = (u128::from(number) * NANOS).div_ceil(u128::from(self.rate));
        let (seconds, rest) = (nanos / NANOS, nanos % NANOS);
        Duration::new(u64::try_from(seconds).unwrap_or(u64::MAX), u32::try_from(rest).unwrap_or(u32::MAX))
    }

    /// How many operations are due at `elapsed`.
    pub(crate) fn due(&self, elapsed: Duration) -> u64 {
        let due = elapsed.as_nanos() * u128::from(self.rate) / NANOS + 1;
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    /// How many operations should start before `end`.
    pub(crate) fn before(&self, end: Duration) -> u64 {
        let count = (end.as_nanos() * u128::from(self.rate)).div_ceil(NANOS);
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

/// Which part of the run an operation belongs to, by the instant it should start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Warmup,
    Measured,
    Over,
}

/// The warm-up, then the measured time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Where the measurement begins.
    pub(crate) warmup: Duration,
    /// How long it takes.
    pub(crate) duration: Duration,
}

impl Window {
    /// Where the run ends.
    pub(crate) fn end(&self) -> Duration {
        self.warmup + self.duration
    }

    /// The phase of an operation that should start at `intended`.
    pub(crate) fn phase(&self, intended: Duration) -> Phase {
        if intended < self.warmup {
            Phase::Warmup
        } else if intended < self.end() {
            Phase::Measured
        } else {
            Phase::Over
        }
    }
}

/// One operation's instants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// When it should have started; in a closed loop, when it did.
    pub(crate) intended: Duration,
    /// When it was sent.
    pub(crate) sent: Duration,
    /// When its answer was complete, or the wait was given up.
    pub(crate) done: Duration,
}

impl Timing {
    /// What a client that wanted the operation at its intended instant would have waited: the time in the
    /// generator's own queue included, or a stall would count for one operation only.
    pub(crate) fn latency_micros(&self) -> u64 {
        micros(self.done.saturating_sub(self.intended))
    }

    /// How late the generator was.
    pub(crate) fn lateness_micros(&self) -> u64 {
        micros(self.sent.saturating_sub(self.intended))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_operation_is_due_at_its_intended_instant_and_not_before() {
        for rate in [1, 3, 7, 1_000, 999_983, 10_000_000] {
            let schedule = Schedule::new(rate);
            for number in [0, 1, 2, 1_000, 123_457] {
                let at = schedule.intended(number);
                assert!(schedule.due(at) > number, "rate {rate}, number {number}");
                if number > 0 {
                    let just_before = at - Duration::from_nanos(1);
                    assert!(schedule.due(just_before) <= number, "rate {rate}, number {number}");
                }
            }
        }
    }

    #[test]
    fn a_run_has_as_many_operations_as_its_rate_says() {
        assert_eq!(Schedule::new(1_000).before(ms(2_000)), 2_000);
        assert_eq!(Schedule::new(3).before(ms(1_000)), 3);
        assert_eq!(Schedule::new(10).before(ms(150)), 2);
        assert_eq!(Schedule::new(10).before(ms(0)), 0);
    }

    #[test]
    fn phases_follow_the_intended_instant() {
        let window = Window { warmup: ms(100), duration: ms(50) };
        assert_eq!(window.phase(ms(0)), Phase::Warmup);
        assert_eq!(window.phase(ms(100)), Phase::Measured);
        assert_eq!(window.phase(ms(149)), Phase::Measured);
        assert_eq!(window.phase(ms(150)), Phase::Over);
        let no_warmup = Window { warmup: ms(0), duration: ms(1) };
        assert_eq!(no_warmup.phase(ms(0)), Phase::Measured);
    }

    /// One connection, 100 operations per second, 1 ms each, and a server that stalls for a second: the 100
    /// operations that should have started meanwhile all show their share of the stall.
    #[test]
    fn a_stall_counts_for_every_operation_it_delays() {
        let schedule = Schedule::new(100);
        let mut free_at = Duration::ZERO;
        let mut slow_counted = 0;
        let mut slow_omitted = 0;
        for number in 0..300 {
            let intended = schedule.intended(number);
            let sent = intended.max(free_at);
            let service = if number == 100 { ms(1_000) } else { ms(1) };
            free_at = sent + service;
            let timing = Timing { intended, sent, done: free_at };
            assert_eq!(timing.latency_micros(), timing.lateness_micros() + micros(service));
            slow_counted += u32::from(timing.latency_micros() > 100_000);
            slow_omitted += u32::from(micros(timing.done - timing.sent) > 100_000);
        }
        assert_eq!(slow_omitted, 1, "measured from the send, one operation saw the stall");
        // The k-th operation after the stall waits 1000 - 9k ms: above 100 ms for k from 0 to 99.
        assert_eq!(slow_counted, 100, "measured from the intended start, all that it delayed did");
    }

    #[test]
    fn a_closed_loop_is_never_late() {
        let timing = Timing { intended: ms(5), sent: ms(5), done: ms(7) };
        assert_eq!((timing.latency_micros(), timing.lateness_micros()), (2_000, 0));
    }
}
