//! Homes that hold different things compare what they hold, and a home that lost its disk is made whole from what the
//! others left in the bucket.

use bytes::Bytes;
use serde_json::Value as Json;

use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::merkle::{MAX_DEPTH, Span};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value, Version};
use cartwheel_core::wire::{MAX_SPANS, Refusal, Repair, Reply, Request};

use crate::away::World;
use crate::rigged::Operation;
use crate::support::{hash_of, key, namespace, read, status_of, values, version};

pub(crate) const NAMES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// Partitions of these clusters.
pub(crate) const PARTITIONS: u32 = 16;

pub(crate) fn dot(n: u64) -> Dot {
    Dot { actor: Actor::parse("node-m.1").unwrap(), n }
}

pub(crate) fn record(name: &str, context: &Clock, n: u64, version: Version) -> Record {
    Record { namespace: namespace(), key: key(name), container: Container::delta(context, dot(n), version) }
}

/// The n-th write of a key, by somebody who has seen none of it.
pub(crate) fn write(name: &str, n: u64) -> Record {
    record(name, &Clock::new(), n, version(n.into(), &Clock::new(), &n.to_string()))
}

/// A deletion by somebody who has seen the first write.
pub(crate) fn deletion(name: &str, n: u64) -> Record {
    let context: Clock = [dot(1)].into_iter().collect();
    let version = Version { value: Value::Deleted, ..version(n.into(), &context, "") };
    record(name, &context, n, version)
}

/// Puts a record into one home, past all the others.
pub(crate) async fn put(world: &World, home: &str, record: &Record, durability: Durability) {
    let request = Request::Replicate { durability, hint_for: None, record: record.encode() };
    match world.call(home, request).await {
        // One that was stopped for a moment takes it all the same.
        Reply::Acked { reached } | Reply::Extra { reached } => assert_eq!(reached, durability),
        other => panic!("{home}: {other:?}"),
    }
}

/// What a home holds of a key, whether it votes at that moment or not.
pub(crate) async fn held(world: &World, home: &str, name: &str) -> Option<Bytes> {
    match world.call(home, read(name)).await {
        Reply::Found(record) | Reply::Partial(record) => Some(record).filter(|record| !record.is_empty()),
        Reply::Absent => None,
        other => panic!("{name} at {home}: {other:?}"),
    }
}

/// The values of a key that a home holds.
async fn values_at(world: &World, home: &str, name: &str) -> Vec<String> {
    let record = held(world, home, name).await;
    values(Reply::Found(record.unwrap_or_else(|| panic!("{home} holds nothing of {name}"))))
}

fn ask(asked: Repair) -> Request {
    Request::Repair(asked)
}

/// The sums of the parts of every partition, as a home says them.
pub(crate) async fn sums(world: &World, home: &str) -> Vec<u64> {
    let spans = (0..PARTITIONS).map(|partition| Span::of_partition(partition, PARTITIONS)).collect();
    match world.call(home, ask(Repair::Sums { spans, depth: MAX_DEPTH })).await {
        Reply::Sums(sums) => sums,
        other => panic!("{home}: {other:?}"),
    }
}

/// Has these homes compare with the others, all at the same time; gives what each says of it.
pub(crate) async fn repaired(world: &World, homes: &[&str], partition: Option<u32>) -> Vec<Json> {
    for home in homes {
        assert_eq!(world.call(home, ask(Repair::Begin { partition })).await, Reply::Hello);
    }
    let mut said = Vec::new();
    for home in homes {
        let done = |reply: &Reply| {
            let repair = &status_of(reply.clone())["repair"];
            repair["answered"] == repair["asked"] && repair["running"] == false
        };
        let mut status = status_of(world.until(home, Request::Status, done).await);
        said.push(status["repair"].take());
    }
    said
}

fn number(repair: &Json, field: &str) -> u64 {
    repair[field].as_u64().unwrap_or_else(|| panic!("{field} of {repair}"))
}

/// (P4, P5)
#[tokio::test]
async fn homes_that_differ_are_equal_after_a_round_and_the_next_one_finds_nothing() {
    let world = World::of(3, &NAMES).await;
    let at = |i: usize| NAMES[i % 3];
    let mut keys: Vec<String> = Vec::new();
    for i in 0..100 {
        let name = format!("k{i}");
        match i {
            // At one home alone.
            0..60 => put(&world, at(i), &write(&name, 1), Durability::Memory).await,
            // Siblings, each at a home of its own.
            60..80 => {
                put(&world, at(i), &write(&name, 1), Durability::Memory).await;
                put(&world, at(i + 1), &write(&name, 2), Durability::Memory).await;
            }
            // Deleted at one home, where the others still show the value.
            80..95 => {
                for home in NAMES {
                    put(&world, home, &write(&name, 1), Durability::Memory).await;
                }
                put(&world, at(i), &deletion(&name, 2), Durability::Memory).await;
            }
            // Written and deleted where the others never heard of it.
            _ => {
                put(&world, at(i), &write(&name, 1), Durability::Memory).await;
                put(&world, at(i), &deletion(&name, 2), Durability::Memory).await;
            }
        }
        keys.push(name);
    }
    assert_ne!(sums(&world, "node-a").await, sums(&world, "node-b").await);
    let first = repaired(&world, &NAMES, None).await;
    for repair in &first {
        assert_eq!((&repair["round_pairs"], &repair["round_compared"]), (&32.into(), &32.into()), "{repair}");
        assert_eq!(repair["unreachable"], serde_json::json!([]));
        assert!(number(repair, "oldest_ms") > 0 && number(repair, "compared") == 32, "{repair}");
    }
    let moved = |repair: &Json| number(repair, "round_pulled") + number(repair, "round_pushed");
    assert!(first.iter().map(moved).sum::<u64>() >= 200, "{first:?}");

    let sums_of_a = sums(&world, "node-a").await;
    assert!(sums_of_a.iter().any(|sum| *sum != 0));
    for home in ["node-b", "node-c"] {
        assert_eq!(sums(&world, home).await, sums_of_a, "{home}");
    }
    for name in &keys {
        let record = held(&world, "node-a", name).await;
        assert!(record.is_some(), "{name}");
        for home in ["node-b", "node-c"] {
            assert_eq!(held(&world, home, name).await, record, "{name} at {home}");
        }
    }
    assert_eq!(values_at(&world, "node-c", "k61").await, ["1", "2"]);
    let deleted = Record::decode(&held(&world, "node-b", "k97").await.unwrap()).unwrap();
    assert!(deleted.container.siblings().iter().all(|sibling| sibling.version.value.is_deleted()));

    for repair in repaired(&world, &NAMES, None).await {
        assert_eq!((number(&repair, "round_differing"), moved(&repair)), (0, 0), "{repair}");
        let bytes = number(&repair, "round_bytes");
        assert!((1..1000).contains(&bytes), "the roots alone: {repair}");
    }
}

#[tokio::test]
async fn one_partition_is_repaired_when_only_that_is_asked_for() {
    let world = World::of(3, &NAMES).await;
    let view = world.view().await;
    let partition_of = |name: &String| hash_of(&view, name).partition(PARTITIONS);
    let keys: Vec<String> = (0..80).map(|i| format!("k{i}")).collect();
    for name in &keys {
        put(&world, "node-b", &write(name, 1), Durability::Memory).await;
    }
    let chosen = partition_of(&keys[0]);
    let inside = keys.iter().filter(|name| partition_of(name) == chosen).count() as u64;
    assert!(inside < 80);
    let repair = repaired(&world, &["node-a"], Some(chosen)).await.remove(0);
    assert_eq!((number(&repair, "round_pairs"), number(&repair, "round_compared")), (2, 2));
    assert_eq!(number(&repair, "round_pulled"), inside, "{repair}");
    for name in &keys {
        let wanted = partition_of(name) == chosen;
        assert_eq!(held(&world, "node-a", name).await.is_some(), wanted, "{name}");
        // What it took from one home it gave to the other.
        assert_eq!(held(&world, "node-c", name).await.is_some(), wanted, "{name}");
    }
    let beyond = world.call("node-a", ask(Repair::Begin { partition: Some(PARTITIONS) })).await;
    assert!(matches!(beyond, Reply::Refused(Refusal::Malformed(_))), "{beyond:?}");
    assert_eq!(world.status("node-a").await["repair"]["asked"], 1, "what is refused is not asked");
}

#[tokio::test]
async fn a_home_that_is_gone_is_named_and_the_others_are_repaired() {
    let mut world = World::of(3, &NAMES).await;
    put(&world, "node-b", &write("k", 1), Durability::Memory).await;
    world.kill("node-c").await;
    let repair = repaired(&world, &["node-a"], None).await.remove(0);
    assert_eq!(repair["unreachable"], serde_json::json!(["node-c"]));
    assert_eq!((number(&repair, "round_pairs"), number(&repair, "round_compared")), (32, 16));
    assert_eq!(values_at(&world, "node-a", "k").await, ["1"]);
}

#[tokio::test]
async fn only_what_a_node_is_a_home_of_is_compared_and_only_so_much() {
    let world = World::of(1, &["node-a", "node-b"]).await;
    let view = world.view().await;
    let (own, foreign) = (world.key_at("node-a").await, world.key_at("node-b").await);
    let (own, foreign) = (hash_of(&view, &own), hash_of(&view, &foreign));
    let partition = |hash: KeyHash| Span::of_partition(hash.partition(PARTITIONS), PARTITIONS);
    let about = |spans: &[Span]| {
        let (spans, after) = (spans.to_vec(), None);
        let sums = ask(Repair::Sums { spans: spans.clone(), depth: 1 });
        [sums, ask(Repair::Clocks { spans, after, bytes: 1000 })]
    };
    for asked in about(&[partition(own)]) {
        let answer = world.call("node-a", asked).await;
        assert!(matches!(answer, Reply::Sums(_) | Reply::Clocks { .. }), "{answer:?}");
    }
    let mut both = [partition(own), partition(foreign)];
    both.sort_unstable();
    // Half the circle begins in a partition that it has, or does not: what lies behind counts.
    let above = [Span::of(own, 3), Span::of(own, 1), Span::of_partition(0, 1)];
    let refused = above.iter().flat_map(|span| about(&[*span])).chain(about(&both));
    let fetch = |hashes: &[KeyHash]| ask(Repair::Fetch { hashes: hashes.to_vec(), bytes: 1000 });
    for asked in refused.chain(about(&[Span::of(foreign, 128)])).chain([fetch(&[foreign])]) {
        let answer = world.call("node-a", asked.clone()).await;
        assert_eq!(answer, Reply::Refused(Refusal::NotAHome), "{asked:?}");
    }
    assert!(matches!(world.call("node-a", fetch(&[own])).await, Reply::Page { more: false, .. }));

    let many: Vec<Span> = (0..=MAX_SPANS as u128).map(|i| Span::of(KeyHash(i), 128)).collect();
    let bits = Span::of(own, 16);
    let wide: Vec<Span> = partition(own).parts(8).collect();
    let wider: Vec<Span> = wide.iter().flat_map(|span| span.parts(4)).collect();
    for asked in [
        Repair::Sums { spans: vec![bits], depth: MAX_DEPTH + 1 },
        Repair::Sums { spans: wider, depth: 5 },
        Repair::Sums { spans: many.clone(), depth: 0 },
        Repair::Clocks { spans: many, after: None, bytes: 1000 },
        Repair::Clocks { spans: vec![wide[1], wide[0]], after: None, bytes: 1000 },
        Repair::Sums { spans: vec![wide[0], wide[0]], depth: 0 },
        Repair::Fetch { hashes: vec![own, own], bytes: 1000 },
        Repair::Fetch { hashes: (0..5000).map(KeyHash).collect(), bytes: 1000 },
    ] {
        let answer = world.call("node-a", ask(asked)).await;
        assert!(matches!(answer, Reply::Refused(Refusal::Malformed(_))), "{answer:?}");
    }
}

/// What a home does not know of yet would look as if it were not there.
#[tokio::test]
async fn a_home_compares_nothing_before_it_knows_all_that_it_holds() {
    let mut world = World::of(1, &["node-a"]).await;
    put(&world, "node-a", &write("k", 1), Durability::Bucket).await;
    let before = sums(&world, "node-a").await;
    world.kill("node-a").await;
    world.bucket("node-a").hold(Operation::Get, "nodes/node-a/f/");
    world.boot("node-a").await;
    world.counts("node-a").await;
    assert_eq!(world.status("node-a").await["index_complete"], false);
    let span = Span::of_partition(0, PARTITIONS);
    for asked in [
        Repair::Sums { spans: vec![span], depth: 0 },
        Repair::Clocks { spans: vec![span], after: None, bytes: 1000 },
    ] {
        assert_eq!(world.call("node-a", ask(asked)).await, Reply::Refused(Refusal::CatchingUp));
    }
    // A round that it is asked for waits as well.
    assert_eq!(world.call("node-a", ask(Repair::Begin { partition: None })).await, Reply::Hello);
    let repair = world.status("node-a").await["repair"].take();
    assert_eq!((number(&repair, "asked"), number(&repair, "answered")), (1, 0));
    world.bucket("node-a").relent();
    let answered = |reply: &Reply| status_of(reply.clone())["repair"]["answered"] == 1;
    world.until("node-a", Request::Status, answered).await;
    assert_eq!(sums(&world, "node-a").await, before);
}

#[tokio::test]
async fn what_is_known_of_comparisons_survives_the_process() {
    let mut world = World::of(3, &NAMES).await;
    put(&world, "node-b", &write("k", 1), Durability::Memory).await;
    let before = repaired(&world, &["node-a"], None).await.remove(0);
    assert_eq!((number(&before, "differing"), number(&before, "repaired")), (2, 2), "from one, to the other");
    let written = |done: &[crate::rigged::Done]| {
        done.iter().any(|done| done.is(Operation::Put, "nodes/node-a/repair.json"))
    };
    world.bucket("node-a").until("the book is written", written).await;
    world.kill("node-a").await;
    world.boot("node-a").await;
    let read = |reply: &Reply| status_of(reply.clone())["repair"]["compared"] == 32;
    let mut status = status_of(world.until("node-a", Request::Status, read).await);
    let after = status["repair"].take();
    for field in ["oldest_ms", "differing", "repaired"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!((number(&after, "asked"), number(&after, "round_bytes")), (0, 0));
}

// ---- a lost disk ----

/// Keys that all acknowledged in memory, and that only the others did; some are in the bucket already.
async fn fill(world: &World) -> Vec<String> {
    let mut keys = Vec::new();
    for i in 0..60 {
        let name = format!("k{i}");
        let durability = if i % 10 == 0 { Durability::Bucket } else { Durability::Disk };
        for home in if i < 30 { &NAMES[..] } else { &NAMES[1..] } {
            put(world, home, &write(&name, 1), durability).await;
        }
        keys.push(name);
    }
    keys
}

pub(crate) async fn is_whole(world: &World, name: &str) {
    let whole = |reply: &Reply| {
        let status = status_of(reply.clone());
        status["standing"] == "counting" && status["partitions_not_held"] == 0
    };
    world.until(name, Request::Status, whole).await;
}

/// (P6, P9)
#[tokio::test]
async fn a_home_that_lost_its_disk_is_whole_again_with_every_other_home_stopped() {
    let mut world = World::of(3, &NAMES).await;
    let keys = fill(&world).await;
    world.kill("node-a").await;
    world.stop("node-b").await;
    world.stop("node-c").await;
    world.wipe("node-a");
    world.boot("node-a").await;
    is_whole(&world, "node-a").await;
    for name in &keys {
        assert_eq!(values_at(&world, "node-a", name).await, ["1"], "{name}");
    }
}

#[tokio::test]
async fn what_a_killed_home_left_in_the_bucket_is_brought_but_stands_for_no_vote() {
    let mut world = World::of(3, &NAMES).await;
    let keys = fill(&world).await;
    put(&world, "node-b", &write("flushed", 1), Durability::Bucket).await;
    put(&world, "node-b", &write("on its disk", 1), Durability::Disk).await;
    put(&world, "node-c", &write("of another", 1), Durability::Disk).await;
    world.kill("node-a").await;
    world.kill("node-b").await;
    world.stop("node-c").await;
    world.wipe("node-a");
    world.boot("node-a").await;
    world.counts("node-a").await;
    for name in ["flushed", "of another"] {
        let brought = |reply: &Reply| matches!(reply, Reply::Partial(record) if !record.is_empty());
        world.until("node-a", read(name), brought).await;
    }
    for name in &keys {
        // Those that both had only on their disks are at the home that ended in good order.
        let Reply::Partial(record) = world.call("node-a", read(name)).await else {
            panic!("{name}: it votes")
        };
        assert_eq!(values(Reply::Found(record)), ["1"], "{name}");
    }
    let unheld = world.status("node-a").await["partitions_not_held"].take();
    assert_eq!(unheld, PARTITIONS, "the killed one may have acknowledged more");
    assert_eq!(world.call("node-a", read("on its disk")).await, Reply::Partial(Bytes::new()));

    world.boot("node-b").await;
    world.counts("node-b").await;
    is_whole(&world, "node-a").await;
    assert_eq!(values_at(&world, "node-a", "on its disk").await, ["1"]);
}
