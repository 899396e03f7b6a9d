//! Clock and randomness of a process that is simulated: what libraries ask the operating system for, past all seams.
//!
//! hyper dates its answers, the S3 SDK signs by the time of day and draws jitter, hash tables are keyed at random: with
//! these the same seed would not do the same. This crate defines `clock_gettime` and `getrandom` for the whole process
//! it is linked into. Until [`freeze`] is called they ask the kernel, as always.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

static FROZEN: AtomicBool = AtomicBool::new(false);
/// Nanoseconds since 1970 when the clock was frozen.
static BASE: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds since then.
static ELAPSED: AtomicU64 = AtomicU64::new(0);
/// The state of the stream of random numbers (splitmix64).
static RANDOM: AtomicU64 = AtomicU64::new(0);

/// What the monotonic clock shows when the clock is frozen: not zero, for some subtract from it.
const UPTIME: u64 = 1_000_000_000_000;

/// From now on the clocks stand still at `since_1970`, and random bytes follow from `seed`.
pub fn freeze(since_1970: Duration, seed: u64) {
    BASE.store(nanos(since_1970), Ordering::Relaxed);
    RANDOM.store(seed, Ordering::Relaxed);
    FROZEN.store(true, Ordering::Release);
}

/// The clocks show that `elapsed` has passed since they were frozen.
pub fn set_elapsed(elapsed: Duration) {
    ELAPSED.store(nanos(elapsed), Ordering::Relaxed);
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn next_random() -> u64 {
    let step = 0x9E37_79B9_7F4A_7C15;
    let mut z = RANDOM.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// As the C library's.
///
/// # Safety
/// `out` must point to a `timespec` that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, out: *mut libc::timespec) -> libc::c_int {
    if !FROZEN.load(Ordering::Acquire) {
        // SAFETY: the kernel's own call, with the arguments that the caller vouches for.
        let status = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, out) };
        return libc::c_int::try_from(status).unwrap_or(-1);
    }
    let elapsed = ELAPSED.load(Ordering::Relaxed);
    let now = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => BASE.load(Ordering::Relaxed) + elapsed,
        _ => UPTIME + elapsed,
    };
    let (seconds, rest) = (now / 1_000_000_000, now % 1_000_000_000);
    let shown = libc::timespec {
        tv_sec: libc::time_t::try_from(seconds).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::try_from(rest).unwrap_or(0),
    };
    // SAFETY: the caller vouches for `out`.
    unsafe { out.write(shown) };
    0
}

/// As the C library's.
///
/// # Safety
/// `out` must point to `length` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    out: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    if !FROZEN.load(Ordering::Acquire) {
        // SAFETY: the kernel's own call, with the arguments that the caller vouches for.
        let status = unsafe { libc::syscall(libc::SYS_getrandom, out, length, flags) };
        return libc::ssize_t::try_from(status).unwrap_or(-1);
    }
    // SAFETY: the caller vouches for `out` and `length`.
    let bytes = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        let random = next_random().to_le_bytes();
        chunk.copy_from_slice(&random[..chunk.len()]);
    }
    libc::ssize_t::try_from(length).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use super::*;

    /// One test: what is frozen is the whole process.
    #[test]
    fn the_process_sees_the_clock_and_the_numbers_that_it_is_shown() {
        assert!(SystemTime::now().duration_since(UNIX_EPOCH).unwrap() > Duration::from_secs(1_700_000_000));
        freeze(Duration::from_secs(1_000), 7);
        let began = Instant::now();
        set_elapsed(Duration::from_millis(1_500));
        assert_eq!(SystemTime::now().duration_since(UNIX_EPOCH).unwrap(), Duration::from_millis(1_001_500));
        assert_eq!(began.elapsed(), Duration::from_millis(1_500));
        let hash = || std::thread::spawn(|| RandomState::new().hash_one(1)).join().unwrap();
        let first = hash();
        freeze(Duration::from_secs(1_000), 7);
        assert_eq!(hash(), first, "a new thread keys its tables anew, from the same numbers");
        assert_ne!(hash(), first);
    }
}
