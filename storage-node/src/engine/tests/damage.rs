//! An engine that goes on without a segment.

use cartwheel_core::clock::Clock;
use cartwheel_core::quorum::Durability;

use crate::engine::{Graved, Mint, Report};
use crate::testing::{Machine, Process, hash, mint_request, record_key, version};

/// Two siblings of a key, in a segment each, and one key that memory has as well.
async fn process() -> Process {
    let mut process = Machine::without_disk().boot().await;
    process.load_index().await;
    for n in ["1", "2"] {
        process.put("k", n, &Clock::new(), Durability::Memory).await;
        process.put(&format!("only {n}"), n, &Clock::new(), Durability::Memory).await;
        process.flush().await;
    }
    process
}

#[tokio::test]
async fn what_is_known_and_not_there_is_an_error_and_not_a_part_of_it() {
    let process = process().await;
    let first = process.engine.segments.all()[0].clone();
    process.engine.segments.replace(&[first], Vec::new());
    // The rows that were cached when they were flushed are right.
    process.engine.rows.raise_every();
    for name in ["k", "only 1"] {
        let error = process.try_container(name).await.unwrap_err();
        assert!(error.is_incomplete(), "{name}: {error}");
        assert_eq!(process.engine.report(), Some(Report::Key(hash(name))));
        process.engine.clear(&Report::Key(hash(name)));
    }
    assert_eq!(process.values("only 2").await, ["2"]);
    assert_eq!(process.engine.report(), None);
}

#[tokio::test]
async fn after_a_segment_was_given_up_nothing_of_it_is_known() {
    let process = process().await;
    process.put("in memory", "3", &Clock::new(), Durability::Memory).await;
    let before = process.engine.tables.read().index.tree().clone();
    let first = process.engine.segments.all()[0].clone();
    process.engine.give_up(Some(&first));
    // Neither a row of the cache nor a guess.
    assert!(!process.engine.index_complete());
    assert_eq!(process.values("k").await, ["2"]);
    assert!(process.container("only 1").await.siblings().is_empty());
    assert_eq!(process.values("in memory").await, ["3"]);
    process.load_index().await;
    assert_eq!(process.engine.figures().keys, 3);
    assert_ne!(*process.engine.tables.read().index.tree(), before);
    assert_eq!(process.values("k").await, ["2"]);
    assert!(process.container("only 1").await.siblings().is_empty());
    assert_eq!(process.values("in memory").await, ["3"]);
}

/// A key is read while the segment that it lies in is given up: what was read is not known any more.
#[tokio::test]
async fn what_was_read_before_is_not_believed_after() {
    let process = process().await;
    let first = process.engine.segments.all()[0].clone();
    process.engine.give_up(None);
    let (key, number) = (record_key("only 1"), process.engine.index_number());
    process.engine.read_full(&key).await.unwrap();
    let request = |n| mint_request("only 1", version(n, &Clock::new(), b"x"), Durability::Memory);
    let mint = |n| process.engine.mint(&request(n), Graved::Exhumed, |_| Box::new(|_| {})).unwrap();
    assert!(matches!(mint(77), Mint::Made), "it was read");
    let reading = process.engine.read_full_by(&key, number);
    process.engine.give_up(Some(&first));
    reading.await.unwrap();
    let other = record_key("only 2");
    process.engine.read_full_by(&other, number).await.unwrap();
    let request = mint_request("only 2", version(78, &Clock::new(), b"x"), Durability::Memory);
    let minted = process.engine.mint(&request, Graved::Exhumed, |_| Box::new(|_| {})).unwrap();
    assert!(matches!(minted, Mint::Unknown), "read by an index that is no more");
}

/// One that is taken up while the index begins anew is known to the new one.
#[tokio::test]
async fn a_segment_is_pushed_only_if_the_index_knows_it() {
    let process = process().await;
    let second = process.engine.segments.all()[1].clone();
    let number = process.engine.index_number();
    process.engine.segments.replace(std::slice::from_ref(&second), Vec::new());
    process.engine.give_up(None);
    assert!(!process.engine.push_by(&second, number));
    process.load_index().await;
    process.engine.adopt(second).await.unwrap();
    assert_eq!(process.values("k").await, ["1", "2"]);
    assert_eq!(process.values("only 2").await, ["2"]);
}
