//! What homes compare, without a network: sums against clocks, and the tree in the bucket against the one in memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use cartwheel_core::clock::Clock;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::merkle::{LEAF_BITS, Span, leaf};
use cartwheel_core::quorum::Durability;
use cartwheel_segments::trees::bucket_tree;

use crate::testing::{Machine, Process, hash};

const KEYS: usize = 300;

async fn filled() -> (Machine, Process) {
    let machine = Machine::without_disk();
    let process = machine.boot().await;
    process.load_index().await;
    for i in 0..KEYS {
        process.put(&format!("k{i}"), "v", &Clock::new(), Durability::Memory).await;
    }
    (machine, process)
}

/// The sums of these spans, added up from clocks that are paged through.
async fn sums_of_clocks(process: &Process, spans: &[Span], bytes: usize) -> Vec<u64> {
    let mut sums: BTreeMap<Span, u64> = spans.iter().map(|span| (*span, 0)).collect();
    let mut after = None;
    loop {
        let (clocks, more) = process.engine.clocks(spans, after, bytes).await;
        for (hash, seen) in &clocks {
            assert!(after.is_none_or(|after| *hash > after), "{hash} comes twice, or out of order");
            let span = spans.iter().find(|span| span.contains(*hash)).expect("a key outside the spans");
            *sums.get_mut(span).unwrap() = sums[span].wrapping_add(leaf(*hash, seen));
        }
        after = clocks.last().map(|(hash, _)| *hash).or(after);
        if !more {
            return sums.into_values().collect();
        }
        assert!(!clocks.is_empty(), "a page of nothing that says there is more");
    }
}

#[tokio::test]
async fn sums_at_every_level_are_those_of_the_clocks() {
    let (_machine, process) = filled().await;
    let all = [Span::of_partition(0, 1)];
    let quarters: Vec<Span> = all[0].parts(2).collect();
    let leaves: Vec<Span> = (0..9).map(|i| Span::of(hash(&format!("k{i}")), LEAF_BITS)).collect();
    let mut leaves: Vec<Span> = leaves.into_iter().collect();
    leaves.sort_unstable();
    leaves.dedup();
    for (spans, depth) in [(&all[..], 0), (&all, 8), (&quarters, 7), (&leaves, 0), (&leaves, 3), (&leaves, 8)]
    {
        let parts: Vec<Span> = spans.iter().flat_map(|span| span.parts(depth)).collect();
        let sums = process.engine.sums(spans, depth).await;
        for bytes in [1, 5000, usize::MAX] {
            assert_eq!(
                sums,
                sums_of_clocks(&process, &parts, bytes).await,
                "{depth} below {} spans",
                spans.len()
            );
        }
        assert!(sums.iter().any(|sum| *sum != 0));
    }
    let none = [Span::of(KeyHash(1), 128)];
    assert_eq!(process.engine.sums(&none, 8).await, [0]);
}

#[tokio::test]
async fn the_tree_in_the_bucket_is_that_of_what_was_flushed() {
    let (machine, mut process) = filled().await;
    let root = [Span::of_partition(0, 1)];
    let node = machine.node();
    let in_bucket = || async { bucket_tree(&machine.bucket, &node).await.unwrap() };
    assert_eq!(in_bucket().await, None, "nothing is flushed yet");
    for round in 0..3 {
        for i in 0..40 {
            let name = format!("k{}", i * 7 + round);
            let seen = process.container(&name).await.seen().clone();
            process.put(&name, "newer", &seen, Durability::Memory).await;
        }
        process.flush().await;
        let read = in_bucket().await.expect("a snapshot, and each flush says what it changes");
        assert_eq!(read.flushes, round, "the first flush came with a snapshot");
        for depth in [0, 8] {
            let by_bucket: Vec<_> = root[0].parts(depth).map(|part| read.tree.sum(part)).collect();
            let by_memory: Vec<_> = process.engine.sums(&root, depth).await.into_iter().map(Some).collect();
            assert_eq!(by_bucket, by_memory);
        }
        process.put("later", "not flushed", &Clock::new(), Durability::Memory).await;
    }
    drop(process);
    // A process that does not know all it holds can't say what its flushes change, and its tree is none.
    let mut process = machine.boot().await;
    process.put("k1", "unknowing", &Clock::new(), Durability::Memory).await;
    process.flush().await;
    assert_eq!(in_bucket().await, None);
    process.load_index().await;
    process.put("k2", "knowing", &Clock::new(), Durability::Memory).await;
    process.flush().await;
    let read = in_bucket().await.expect("a snapshot by the new process");
    assert_eq!(read.tree.sum(root[0]), Some(process.engine.sums(&root, 0).await[0]));
}
