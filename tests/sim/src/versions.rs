//! Processes of two versions: one process in three knows only the first version of frames, so that a restart moves a
//! node from one to the other; every other call is part of a trace, which only the second version can say.

use std::sync::atomic::{AtomicU64, Ordering};

use cartwheel_cluster::seams::Random;
use cartwheel_cluster::trace;
use cartwheel_core::frame::FrameVersion;
use cartwheel_core::trace::TraceContext;

use crate::world::SeededRandom;

/// What the processes of one host speak.
#[derive(Debug)]
pub struct Versions(SeededRandom);

impl Versions {
    /// For the host `who`.
    pub fn of(seed: u64, who: &str) -> Self {
        Self(SeededRandom::new(seed, &format!("{who} versions")))
    }

    /// The newest version of frames that the next process knows.
    pub fn next(&self) -> FrameVersion {
        if self.0.next_u64().is_multiple_of(3) { FrameVersion::One } else { FrameVersion::NEWEST }
    }
}

/// From now on every other call of this process is part of a trace.
pub fn trace_calls() {
    trace::set(|| {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let call = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        let id = u128::from(call).to_be_bytes();
        call.is_multiple_of(2).then(|| TraceContext::new(id, call.to_be_bytes(), 1)).flatten()
    });
}
