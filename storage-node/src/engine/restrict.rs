//! Letting go of keys that this node is no home of any more.

use std::sync::Arc;

use cartwheel_core::clock_index::ClockIndex;
use cartwheel_core::merkle::Span;
use cartwheel_core::ranges::{self, HashRange};

use super::Engine;
use crate::segments::Segment;

/// Keys that go out of the index under one lock.
const AT_ONCE: usize = 256;

/// What restricting does to the segments.
#[derive(Debug, Default)]
pub(crate) struct Restriction {
    /// Those that hold nothing in the ranges that stay.
    pub(crate) needless: Vec<Arc<Segment>>,
    /// Those that hold something in them and something outside, and the same with less.
    narrower: Vec<(Arc<Segment>, Arc<Segment>)>,
}

impl Restriction {
    /// Is there nothing to be done?
    pub(crate) fn is_empty(&self) -> bool {
        self.needless.is_empty() && self.narrower.is_empty()
    }
}

impl Engine {
    /// Mints under this epoch from now on.
    pub(crate) fn mint_under(&self, epoch: u32) {
        self.tables.write().actor.epoch = epoch;
    }

    /// What it takes that segments count for these ranges alone. Every segment must be described.
    pub(crate) fn restriction(&self, mine: &[HashRange]) -> Restriction {
        let mut restriction = Restriction::default();
        for segment in self.segments.all().iter() {
            let Some(entry) = segment.known() else { continue };
            let all = [HashRange { first: entry.first, last: entry.last }];
            let held = if entry.only.is_empty() { &all[..] } else { &entry.only[..] };
            let kept = ranges::common(held, mine);
            if kept.is_empty() {
                restriction.needless.push(Arc::clone(segment));
            } else if kept != held {
                let mut entry = entry.clone();
                entry.only = kept;
                let narrow = self.segments.open(entry.object.clone(), entry.bytes, Some(entry), segment.born);
                restriction.narrower.push((Arc::clone(segment), narrow));
            }
        }
        restriction
    }

    /// Carries a restriction out; what is not there any more, because it was merged meanwhile, is left for the next one.
    pub(crate) fn restrict(&self, restriction: &Restriction) {
        for (wide, narrow) in &restriction.narrower {
            self.segments.replace(std::slice::from_ref(wide), vec![Arc::clone(narrow)]);
        }
        for needless in &restriction.needless {
            self.segments.replace(std::slice::from_ref(needless), Vec::new());
        }
    }

    /// How many keys of these spans the index knows, up to `most`.
    pub(crate) fn knows_keys_in(&self, spans: &[Span], most: usize) -> usize {
        let mut known = 0;
        for shard in ClockIndex::shards_of(spans) {
            known += self.tables.read().index.hashes_in(shard, spans, None).len();
            if known >= most {
                break;
            }
        }
        known
    }

    /// The index forgets the keys of these spans that no memtable holds, as long as `still` says so: it is asked under
    /// the lock that writes are taken in under.
    pub(crate) async fn forget_keys_in(&self, spans: &[Span], still: impl Fn() -> bool) {
        for shard in ClockIndex::shards_of(spans) {
            let hashes = self.tables.read().index.hashes_in(shard, spans, None);
            for chunk in hashes.chunks(AT_ONCE) {
                {
                    let mut tables = self.tables.write();
                    if !still() {
                        return;
                    }
                    for hash in chunk {
                        if tables.memtables().all(|table| table.holds(*hash) == 0) {
                            tables.index.remove(*hash);
                        }
                    }
                }
                chunk.iter().for_each(|hash| self.rows.raise(*hash));
                tokio::task::yield_now().await;
            }
        }
    }
}
