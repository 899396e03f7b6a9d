//! The outside world of the simulated processes: sockets, clock and randomness of turmoil's hosts, disks that
//! outlive a crash, and a bucket whose every operation is written down.

mod bucket;
mod clock;
mod disk;
mod listing;
mod net;

use std::ops::Range;
use std::time::Duration;

use cartwheel_cluster::seams::Random;
use lock::Lock;

pub use bucket::{GIVEN_UP, Landings, Objects, Road, TracedBucket, Way};
pub use clock::{Freezer, SimClock};
pub use disk::{DiskTrouble, SimDisk};
pub use net::{Host, seams};

/// Lets simulated time pass.
pub async fn pass(time: Duration) {
    // The time-out of something that never happens: in a simulation there is nothing real to wait for.
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// A mutex without poisoning: a simulation has one thread.
pub mod lock {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// The mutex.
    #[derive(Debug, Default)]
    pub struct Lock<T>(Mutex<T>);

    impl<T> Lock<T> {
        /// Around `value`.
        pub fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        /// Takes it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// A planted bug: what the checker must be able to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// None: the product as it is.
    None,
    /// A client writes with the clock of a read whose values it ignores, as if answers to writes carried the
    /// replica's whole clock.
    WholeClock,
    /// Disks say that a write is safe and forget it.
    LyingDisk,
    /// Disks lie, and the bucket hands out the first epoch again and again.
    SameEpoch,
    /// Homes that were away count at once (only where a home returns).
    CountsAtOnce,
    /// Hints are said to be in the bucket and are not (only where a home returns).
    DroppedHints,
}

/// The planted bugs by name.
pub const BUGS: [(&str, Bug); 5] = [
    ("whole-clock", Bug::WholeClock),
    ("lying-disk", Bug::LyingDisk),
    ("same-epoch", Bug::SameEpoch),
    ("counts-at-once", Bug::CountsAtOnce),
    ("dropped-hints", Bug::DroppedHints),
];

/// A repeatable stream of numbers (splitmix64); it goes on where it was when its host restarts.
#[derive(Debug)]
pub struct SeededRandom(Lock<u64>);

impl SeededRandom {
    /// The stream of `who` under `seed`.
    pub fn new(seed: u64, who: &str) -> Self {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for byte in who.bytes() {
            state = state.rotate_left(11).wrapping_add(u64::from(byte)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        }
        Self(Lock::new(state))
    }

    /// A number of milliseconds within `range`.
    pub fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.below(range.end - range.start))
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
