//! Keeps a node within the memory that it was given: what must be held is counted, and the caches get the rest.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::engine::{Engine, Held};

/// What a process takes before it holds anything: code, stacks, connections, what the allocator keeps back.
const BASE: u64 = 48 * 1024 * 1024;
/// The caches' least size, bytes.
const FLOOR: u64 = 2 * 1024 * 1024;
/// What one merge reads ahead, bytes.
const MERGE: u64 = 8 * 1024 * 1024;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// A size that differs by less than one part in so many is left as it is.
const STEP: u64 = 8;

/// How a node's memory is divided up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// All of it, bytes.
    pub(crate) memory: u64,
    /// The most that caches may have, bytes.
    pub(crate) max_caches: u64,
    /// At which a memtable is flushed, bytes.
    pub(crate) flush_bytes: u64,
    /// Hints that are in the bucket too, bytes.
    pub(crate) hints: u64,
}

impl Budget {
    /// Divides `memory` up; `flush_bytes` is the most that is wanted for a memtable.
    pub(crate) fn new(memory: u64, max_caches: u64, flush_bytes: u64) -> Self {
        let flush_bytes = flush_bytes.min(memory / 32).max(64 * 1024);
        Self { memory, max_caches, flush_bytes, hints: (memory / 16).min(64 * 1024 * 1024) }
    }

    /// What the caches may have while so much is held.
    pub(crate) fn caches(&self, held: &Held, hints: u64) -> u64 {
        // A memtable that fills, one that is being flushed with the segment made of it, one piece of a merge.
        let flushing = held.unflushed.max(2 * self.flush_bytes) + self.flush_bytes;
        let merging = 2 * self.flush_bytes + MERGE;
        let fixed = BASE + held.index + held.metadata + held.log_queue + hints + flushing + merging;
        // A fifth for what is not counted.
        let room = (self.memory - self.memory / 5).saturating_sub(fixed);
        room.clamp(FLOOR, self.max_caches.max(FLOOR))
    }
}

/// Figures of a node's memory.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(crate) struct MemoryFigures {
    /// What it was given, bytes.
    pub(crate) given: u64,
    /// What the caches may have, bytes.
    pub(crate) for_caches: u64,
    /// What must be held is more than was given.
    pub(crate) over: bool,
    #[serde(flatten)]
    pub(crate) held: Held,
}

/// Watches over a node's memory.
pub(crate) struct Governor {
    engine: Arc<Engine>,
    budget: Budget,
    figures: Mutex<MemoryFigures>,
}

impl std::fmt::Debug for Governor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Governor").field("figures", &self.figures).finish_non_exhaustive()
    }
}

impl Governor {
    pub(crate) fn new(engine: Arc<Engine>, budget: Budget) -> Self {
        let figures = MemoryFigures { given: budget.memory, ..MemoryFigures::default() };
        Self { engine, budget, figures: figures.into() }
    }

    /// Adjusts the caches now and then, until the process ends. `hints` tells the bytes of hints in memory.
    pub(crate) async fn run(self: Arc<Self>, hints: impl Fn() -> u64 + Send) {
        let mut size = 0;
        loop {
            size = self.look(size, hints());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One look; gives the size of the caches from now on.
    fn look(&self, size: u64, hints: u64) -> u64 {
        let held = self.engine.held();
        let room = self.budget.caches(&held, hints);
        let must = held.index + held.metadata + BASE;
        let over = must > self.budget.memory;
        let before = std::mem::replace(
            &mut *self.figures.lock(),
            MemoryFigures { given: self.budget.memory, for_caches: room, over, held },
        );
        if over && !before.over {
            tracing::warn!(
                index = held.index,
                metadata = held.metadata,
                "the clock index and what is kept of segments need more than --memory; give this node more, or add nodes"
            );
        }
        if size.abs_diff(room) <= size / STEP {
            return size;
        }
        self.engine.resize_caches(room / 2, room - room / 2);
        room
    }

    /// What it saw last.
    pub(crate) fn figures(&self) -> MemoryFigures {
        *self.figures.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn what_is_held_comes_out_of_the_caches() {
        let budget = Budget::new(1024 * MIB, u64::MAX, 64 * MIB);
        let empty = budget.caches(&Held::default(), 0);
        assert!(empty > 550 * MIB && empty < 750 * MIB, "{} MiB", empty / MIB);
        let held = Held { index: 100 * MIB, metadata: 20 * MIB, ..Held::default() };
        assert_eq!(empty - budget.caches(&held, 5 * MIB), 125 * MIB);
        let full = Held { index: 2000 * MIB, ..Held::default() };
        assert_eq!(budget.caches(&full, 0), FLOOR);
        let capped = Budget { max_caches: 10 * MIB, ..budget };
        assert_eq!(capped.caches(&Held::default(), 0), 10 * MIB);
    }

    #[test]
    fn little_memory_makes_small_memtables() {
        let budget = Budget::new(200 * MIB, u64::MAX, 64 * MIB);
        assert_eq!(budget.flush_bytes, 200 * MIB / 32);
        let million = Held { index: 45 * MIB, metadata: 3 * MIB, ..Held::default() };
        let room = budget.caches(&million, 0);
        assert!(room > 20 * MIB, "{} MiB for caches over a million keys", room / MIB);
        assert_eq!(Budget::new(1024 * MIB, u64::MAX, MIB).flush_bytes, MIB, "as told, if that is less");
    }
}
