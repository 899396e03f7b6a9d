//! What the engine holds, in the forms that homes compare: sums of the Merkle tree, and clocks.

use std::sync::atomic::Ordering;

use cartwheel_core::clock::Clock;
use cartwheel_core::clock_index::ClockIndex;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::merkle::{DeepSums, LEAF_BITS, Span, Tree};

use super::Engine;

/// Keys that are looked up under one lock.
const AT_ONCE: usize = 256;
/// Bytes of a key and its clock in a page, about, beside its actors.
const CLOCK_BYTES: usize = 18;

impl Engine {
    /// The sums of the parts `depth` levels below these spans, which ascend and have the same number of bits. Right as
    /// of a moment for each, as writes go on meanwhile.
    pub(crate) async fn sums(&self, spans: &[Span], depth: u8) -> Vec<u64> {
        let bits = spans.first().map_or(0, |span| span.bits());
        if bits + depth <= LEAF_BITS {
            let tables = self.tables.read();
            let tree = tables.index.tree();
            let parts = spans.iter().flat_map(|span| span.parts(depth));
            return parts.filter_map(|part| tree.sum(part)).collect();
        }
        let mut sums = DeepSums::new(spans, depth);
        for shard in ClockIndex::shards_of(spans) {
            let hashes = self.tables.read().index.hashes_in(shard, spans, None);
            for chunk in hashes.chunks(AT_ONCE) {
                {
                    let tables = self.tables.read();
                    chunk.iter().for_each(|hash| sums.add(*hash, tables.index.leaf(*hash)));
                }
                tokio::task::yield_now().await;
            }
        }
        sums.into_sums()
    }

    /// What was seen of the keys in these ascending spans and after `after`, ascending: about `bytes` bytes of them,
    /// and whether there are more.
    pub(crate) async fn clocks(
        &self,
        spans: &[Span],
        after: Option<KeyHash>,
        bytes: usize,
    ) -> (Vec<(KeyHash, Clock)>, bool) {
        let (mut found, mut size, bytes) = (Vec::new(), 0, bytes.max(1));
        let first = after.map_or(0, |after| after.partition(ClockIndex::SHARDS));
        for shard in ClockIndex::shards_of(spans).range(first..) {
            let hashes = self.hashes_in(*shard, spans, after);
            for chunk in hashes.chunks(AT_ONCE) {
                if size >= bytes {
                    return (found, true);
                }
                let tables = self.tables.read();
                for (hash, seen) in chunk.iter().filter_map(|hash| Some((*hash, tables.index.seen(*hash)?))) {
                    let names = seen.entries().iter().map(|e| e.actor.node.as_str().len() + 8).sum::<usize>();
                    size += CLOCK_BYTES + names;
                    found.push((hash, seen));
                }
            }
            tokio::task::yield_now().await;
        }
        (found, false)
    }

    fn hashes_in(&self, shard: u32, spans: &[Span], after: Option<KeyHash>) -> Vec<KeyHash> {
        let tables = self.tables.read();
        if spans.iter().any(|span| span.bits() < 128) {
            return tables.index.hashes_in(shard, spans, after);
        }
        // Single keys need no look at all the others.
        let hashes = spans.iter().map(|span| span.first());
        let is_asked = |hash: &KeyHash| {
            hash.partition(ClockIndex::SHARDS) == shard && after.is_none_or(|after| *hash > after)
        };
        hashes.filter(is_asked).collect()
    }

    /// All that was seen of a key; nothing if it is not known.
    pub(crate) fn seen(&self, hash: KeyHash) -> Clock {
        self.tables.read().index.seen(hash).unwrap_or_default()
    }

    /// The Merkle tree, if all is in segments, the index knows every key, and the tree does not sum up to `written`.
    /// Flushes say from here on what changes.
    pub(crate) fn tree_of_segments(&self, written: Option<u64>) -> Option<Tree> {
        let mut tables = self.tables.write();
        let in_segments = tables.frozen.is_none() && tables.active.is_empty();
        if !in_segments || !tables.index.is_complete() {
            return None;
        }
        let tree = tables.index.tree();
        if tree.sum(Span::of_partition(0, 1)) == written {
            return None;
        }
        let tree = tree.clone();
        tables.take_leaf_deltas();
        Some(tree)
    }

    /// The next memtable that is closed keeps the Merkle tree as it is then.
    pub(crate) fn want_tree(&self) {
        self.tree_wanted.store(true, Ordering::Relaxed);
    }
}
