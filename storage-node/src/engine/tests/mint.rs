//! Minting: repeated requests, preconditions, the cap on siblings.

use cartwheel_core::clock::Clock;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Value, etag};
use cartwheel_core::wire::{Precondition, Refusal, Tags};

use crate::engine::MintRequest;
use crate::testing::{Machine, Minted, Process, mint_request, version};

fn request(id: u128, context: &Clock, value: &str) -> MintRequest {
    mint_request("k", version(id, context, value.as_bytes()), Durability::Memory)
}

async fn seen(process: &Process) -> Clock {
    process.container("k").await.seen().clone()
}

#[tokio::test]
async fn a_repeated_request_is_the_same_write() {
    let mut process = Machine::without_disk().boot().await;
    let first = request(1, &Clock::new(), "one");
    let Minted::New(dot, _) = process.mint(&first).await.unwrap() else { panic!("new") };
    assert_eq!(process.mint(&first).await.unwrap(), Minted::Repeated(dot.clone()));
    assert_eq!(process.values("k").await, ["one"]);
    // Once replaced and flushed, it is known only by its request id; the repeat must not bring it back.
    process.put("k", "two", &seen(&process).await, Durability::Memory).await;
    process.flush().await;
    assert_eq!(process.mint(&first).await.unwrap(), Minted::Repeated(dot));
    assert_eq!(process.values("k").await, ["two"]);
}

#[tokio::test]
async fn a_repeated_request_is_known_after_a_restart_while_its_version_is_live() {
    for (flushed, loaded) in [(false, false), (false, true), (true, false), (true, true)] {
        let machine = Machine::with_disk();
        let mut process = machine.boot().await;
        let mut first = request(1, &Clock::new(), "one");
        first.durability = Durability::Disk;
        let Minted::New(dot, _) = process.mint(&first).await.unwrap() else { panic!("new") };
        if flushed {
            process.flush().await;
        }
        let process = machine.boot().await;
        if loaded {
            process.load_index().await;
        }
        assert_eq!(process.mint(&first).await.unwrap(), Minted::Repeated(dot), "{flushed} {loaded}");
        assert_eq!(process.values("k").await, ["one"]);
    }
}

#[tokio::test]
async fn preconditions_hold_or_nothing_happens() {
    let tags = |list: &[&str]| Tags::List(list.iter().map(|t| (*t).to_owned()).collect());
    // Before anything, with one version, and after a deletion.
    for state in ["absent", "present", "deleted"] {
        for restarted in [false, true] {
            let machine = Machine::without_disk();
            let mut process = machine.boot().await;
            if state != "absent" {
                process.put("k", "one", &Clock::new(), Durability::Memory).await;
            }
            if state == "deleted" {
                let mut deletion = request(77, &seen(&process).await, "");
                deletion.version.value = Value::Deleted;
                process.mint(&deletion).await.unwrap();
            }
            let tag = etag(process.container("k").await.siblings().iter().map(|s| &s.dot));
            if restarted {
                // The index knows nothing yet: the decision needs the key to be read.
                process.flush().await;
                process = machine.boot().await;
            }
            let there = state == "present";
            let before = seen(&process).await;
            let cases = [
                (Precondition::IfMatch(Tags::Any), there),
                (Precondition::IfMatch(tags(&["\"x\"", &tag])), there),
                (Precondition::IfMatch(tags(&["\"x\""])), false),
                (Precondition::IfNoneMatch(Tags::Any), !there),
                (Precondition::IfNoneMatch(tags(&["\"x\"", &tag])), !there),
                (Precondition::IfNoneMatch(tags(&["\"x\""])), true),
            ];
            // Those that fail first: they must not change what the others see.
            for (precondition, _) in cases.iter().filter(|(_, holds)| !holds) {
                let asked = MintRequest { precondition: precondition.clone(), ..request(5, &before, "no") };
                let refused = process.mint(&asked).await.unwrap_err();
                assert_eq!(refused, Refusal::Precondition(before.clone()), "{state} {precondition:?}");
            }
            assert_eq!(seen(&process).await, before);
            let (precondition, _) = cases.into_iter().find(|(_, holds)| *holds).unwrap();
            let asked = MintRequest { precondition: precondition.clone(), ..request(6, &before, "yes") };
            let done = process.mint(&asked).await.unwrap();
            assert!(matches!(done, Minted::New(..)), "{state} {precondition:?}");
            assert_eq!(process.values("k").await, ["yes"]);
        }
    }
}

#[tokio::test]
async fn siblings_beyond_the_cap_are_refused_and_none_is_dropped() {
    let process = Machine::without_disk().boot().await;
    process.load_index().await;
    for id in 1..=3 {
        let asked = MintRequest { max_siblings: 3, ..request(id, &Clock::new(), &id.to_string()) };
        process.mint(&asked).await.unwrap();
    }
    let one_more = MintRequest { max_siblings: 3, ..request(4, &Clock::new(), "4") };
    let refused = process.mint(&one_more).await.unwrap_err();
    assert_eq!(refused, Refusal::TooManySiblings(seen(&process).await));
    assert_eq!(process.values("k").await, ["1", "2", "3"]);
    // A repeat makes no sibling, and a write that has seen them makes room.
    let first = MintRequest { max_siblings: 3, ..request(1, &Clock::new(), "1") };
    assert!(matches!(process.mint(&first).await.unwrap(), Minted::Repeated(_)));
    let merged = MintRequest { max_siblings: 3, ..request(5, &seen(&process).await, "merged") };
    process.mint(&merged).await.unwrap();
    assert_eq!(process.values("k").await, ["merged"]);
}

/// A client may bring a dot of ours that we no longer know: the next one lies beyond it.
#[tokio::test]
async fn the_context_counts_for_the_next_dot() {
    let process = Machine::without_disk().boot().await;
    let mut ahead = Clock::new();
    let actor = process.put("other", "x", &Clock::new(), Durability::Memory).await.actor;
    ahead.insert_seen(actor, 0, vec![9]);
    assert_eq!(process.put("k", "x", &ahead, Durability::Memory).await.n, 10);
}
