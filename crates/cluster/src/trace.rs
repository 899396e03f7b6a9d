//! The trace that the work at hand is part of: whoever traces says how to find it, and calls take it along.

use std::sync::OnceLock;

use cartwheel_core::trace::TraceContext;

static CURRENT: OnceLock<fn() -> Option<TraceContext>> = OnceLock::new();

/// From now on `current` tells what trace the calling task's work is part of. It is asked at each call to a storage
/// node and must not wait. The first one given counts for the whole process; `false` for any later one.
pub fn set(current: fn() -> Option<TraceContext>) -> bool {
    CURRENT.set(current).is_ok()
}

/// What the work at hand is part of; `None` where nothing is traced.
#[must_use]
pub fn current() -> Option<TraceContext> {
    CURRENT.get().and_then(|current| current())
}
