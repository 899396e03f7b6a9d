//! Calls of homes that compare what they hold with this node, or that want it to.

use std::sync::Arc;

use tokio::time::Instant;

use cartwheel_core::hash::KeyHash;
use cartwheel_core::wire::{Refusal, Repair};

use super::Inner;
use super::ranges::Range;
use super::replying::Replying;
use crate::repair::answer::answer;

impl Inner {
    /// Another home compares what it holds with this one.
    pub(super) fn repair(inner: &Arc<Self>, asked: Repair, deadline: Instant, reply: Replying) {
        let ranges = inner.ranges();
        let is_held = |hash: KeyHash| ranges.range(hash) != Range::Foreign;
        let held = match &asked {
            Repair::Sums { spans, .. } | Repair::Clocks { spans, .. } => {
                // A span is in one partition, or this node is asked for what it can't know.
                let bits = ranges.partitions().trailing_zeros();
                spans.iter().all(|span| u32::from(span.bits()) >= bits && is_held(span.first()))
            }
            Repair::Fetch { hashes, .. } => hashes.iter().all(|hash| is_held(*hash)),
            Repair::Settle => true,
            Repair::Begin { partition } => {
                if partition.is_some_and(|partition| partition >= ranges.partitions()) {
                    let wrong = format!("partition: there are {}", ranges.partitions());
                    return reply.refuse(Refusal::Malformed(wrong));
                }
                inner.repair.begin(*partition);
                true
            }
        };
        if !held {
            return reply.refuse(Refusal::NotAHome);
        }
        let answering = Arc::clone(inner);
        Self::within(&inner.slow, deadline, reply, async move {
            answer(&answering.engine, &answering.ledger, asked).await
        });
    }
}
