//! Is the node ready, and how is it, for those who watch it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use cartwheel_core::standing::Standing;

use super::{Inner, Service};
use crate::figures::{CacheFigures, NodeFigures, SyncFigures};

impl Service {
    /// Why it does not do its part in full, if it does not.
    pub(crate) fn readiness(&self) -> Result<(), &'static str> {
        let Inner { parts, .. } = &*self.inner;
        if parts.engine.is_fenced() {
            return Err("another process has taken over this node's name");
        }
        if parts.draining.load(Ordering::Relaxed) || parts.engine.is_closed() {
            return Err("the node is shutting down");
        }
        match parts.stand.at(Instant::now()) {
            Standing::Returning => Err("the node was away and has yet to catch up (standing: returning)"),
            Standing::Absorbing => Err("the node is catching up (standing: absorbing)"),
            Standing::Counting if !parts.stand.is_settled(Instant::now()) => {
                Err("the node counts, but has not done so for three seconds yet (standing: counting)")
            }
            Standing::Counting => Ok(()),
        }
    }

    /// How it is.
    pub(crate) fn figures(&self) -> NodeFigures {
        let inner = &self.inner;
        let (engine, held) = (inner.engine.figures(), inner.engine.held());
        let ring_version = inner.ranges().version;
        let others = inner.gossip.words().into_iter().filter(|word| word.node != inner.me.node);
        let book = inner.repair.book();
        let now_ms = inner.seams.clock.now_ms();
        let cache = |hits, misses, bytes| CacheFigures { hits, misses, bytes };
        NodeFigures {
            ready: self.readiness().is_ok(),
            ring_version,
            disagreeing: others.filter(|word| word.ring_version != ring_version).count() as u64,
            standing: inner.stand.level(),
            partitions_not_held: inner.stand.unheld() as u64,
            keys: engine.keys as u64,
            unflushed_bytes: engine.memtable_bytes as u64,
            flush_lag: inner.engine.unflushed_since().map_or(Duration::ZERO, |since| since.elapsed()),
            bucket_fails: inner.engine.bucket_fails(),
            segments: engine.segments as u64,
            segment_bytes: engine.segment_bytes,
            quarantined: inner.ledger.quarantined().iter().filter(|q| !q.object.is_empty()).count() as u64,
            memory: [
                ("index", held.index),
                ("metadata", held.metadata),
                ("unflushed", held.unflushed),
                ("log_queue", held.log_queue),
                ("caches", held.caches),
                ("hints", inner.hints.held_bytes()),
            ],
            caches: [
                ("rows", cache(engine.row_cache_hits, engine.row_cache_misses, engine.row_cache_bytes)),
                (
                    "blocks",
                    cache(engine.block_cache_hits, engine.block_cache_misses, engine.block_cache_bytes),
                ),
            ],
            hints: inner.hints.held(),
            hints_refused: inner.hints.refused(),
            sync: SyncFigures {
                pairs: book.compared as u64,
                age: (book.compared > 0)
                    .then(|| Duration::from_millis(now_ms.saturating_sub(book.oldest_ms))),
                differing: book.differing,
                repaired: book.repaired,
            },
        }
    }
}
