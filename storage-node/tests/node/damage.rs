//! Objects in the bucket that are damaged, cut short or gone: nothing wrong is ever answered, what can't be read is
//! quarantined, and what it held comes from the other homes (docs/decisions/0020).

use std::time::Duration;

use bytes::Bytes;

use cartwheel_core::clock::{Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::manifest::{Manifest, SegmentEntry};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Brief, Record};
use cartwheel_core::segment::SegmentBuilder;
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{Refusal, Reply, Request};
use cartwheel_segments::manifests::newest;
use cartwheel_segments::trees::tree_prefix;
use cartwheel_segments::verify::Verification;

use crate::away::World;
use crate::repairing::{NAMES, deletion, held, is_whole, put, sums, write};
use crate::rigged::Operation;
use crate::support::{hash_of, id, mint, read, status_of, values, version};

/// What is done to a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// One byte of it is another one.
    Block,
    Clocks,
    Footer,
    /// Its second half is missing.
    Cut,
    Gone,
}

async fn overwrite(world: &World, object: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = world.cluster.bucket.get(object).await.unwrap().to_vec();
    change(&mut bytes);
    world.cluster.bucket.put(object, bytes.into()).await.unwrap();
}

async fn flip(world: &World, object: &str, at: u64) {
    overwrite(world, object, |bytes| bytes[usize::try_from(at).unwrap()] ^= 0x10).await;
}

async fn harm(world: &World, object: &str, harm: Harm) {
    let bucket = &world.cluster.bucket;
    let size = bucket.get(object).await.unwrap().len() as u64;
    let verification = Verification::open(&**bucket, object, size, None, None).await.unwrap();
    let figures = verification.figures().unwrap();
    match harm {
        Harm::Block => flip(world, object, figures.block_bytes / 2).await,
        Harm::Clocks => flip(world, object, figures.clocks.0 + figures.clocks.1 / 2).await,
        Harm::Footer => flip(world, object, size - 5).await,
        Harm::Cut => overwrite(world, object, |bytes| bytes.truncate(bytes.len() / 2)).await,
        Harm::Gone => bucket.delete(object).await.unwrap(),
    }
}

async fn manifest(world: &World, node: &str) -> Manifest {
    newest(&*world.cluster.bucket, &id(node)).await.unwrap().unwrap()
}

/// What the newest manifest of node-a names, oldest first.
async fn segments(world: &World) -> Vec<String> {
    manifest(world, "node-a").await.segments.into_iter().map(|entry| entry.object).collect()
}

/// Keys that all three homes hold in two segments each; some of them with siblings, in one segment or in both.
async fn fill(world: &World) -> Vec<(String, Vec<&'static str>)> {
    let mut keys = Vec::new();
    for half in 0..2 {
        for i in 0..40 {
            let name = format!("k{}", half * 30 + i);
            for home in NAMES {
                put(world, home, &write(&name, 1 + half), Durability::Disk).await;
            }
        }
        settle(world).await;
    }
    for i in 0..70 {
        keys.push((
            format!("k{i}"),
            [&["1"][..], &["1", "2"], &["2"]][usize::from(i >= 30) + usize::from(i >= 40)].to_vec(),
        ));
    }
    keys
}

/// All that the homes hold is in segments that their manifests name.
async fn settle(world: &World) {
    for home in NAMES {
        let settle = Request::Repair(cartwheel_core::wire::Repair::Settle);
        assert_eq!(world.call(home, settle).await, Reply::Acked { reached: Durability::Bucket });
    }
}

/// Reads all keys at node-a once: a vote is the truth. How many votes there were.
async fn read_all(world: &World, keys: &[(String, Vec<&str>)]) -> usize {
    let mut votes = 0;
    for (name, truth) in keys {
        match world.call("node-a", read(name)).await {
            reply @ Reply::Found(_) => {
                assert_eq!(values(reply), *truth, "{name}");
                votes += 1;
            }
            Reply::Partial(_) | Reply::Refused(_) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    votes
}

/// Waits until node-a has quarantined so much and holds everything, reading all the while.
async fn healed(world: &World, keys: &[(String, Vec<&str>)], quarantined: u64) {
    let healing = async {
        loop {
            read_all(world, keys).await;
            let status = world.status("node-a").await;
            let has = status["quarantined"] == quarantined && status["partitions_not_held"] == 0;
            let is_done = status["standing"] == "counting" && status["index_complete"] == true;
            let is_said = manifest(world, "node-a").await.lost().is_empty();
            if has && is_done && is_said {
                return;
            }
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(60), healing).await;
    assert!(outcome.is_ok(), "{}", world.status("node-a").await);
    assert_eq!(read_all(world, keys).await, keys.len());
    assert!(sums(world, "node-a").await == sums(world, "node-b").await);
}

/// A mint at node-a of a key of its own.
async fn minted(world: &World, request: u128) -> Dot {
    let name = world.key_at("node-a").await;
    // Not one of those that the records here were made by.
    let write = mint(&name, version(1_000_000 + request, &Clock::new(), "own"), Durability::Memory);
    let made = |reply: &Reply| matches!(reply, Reply::Minted { .. });
    match world.until("node-a", write, made).await {
        Reply::Minted { dot, .. } => dot,
        other => panic!("{other:?}"),
    }
}

/// One segment of node-a is harmed, while the node runs or before it starts.
async fn harmed(harm_done: Harm, while_it_runs: bool, at: usize) {
    let mut world = World::of(3, &NAMES).await;
    let keys = fill(&world).await;
    world.kill("node-a").await;
    if while_it_runs {
        world.boot("node-a").await;
        is_whole(&world, "node-a").await;
        let complete = |reply: &Reply| status_of(reply.clone())["index_complete"] == true;
        world.until("node-a", Request::Status, complete).await;
    }
    let object = segments(&world).await.remove(at);
    let harmed = format!("{harm_done:?} {object} {while_it_runs}");
    harm(&world, &object, harm_done).await;
    let left = world.cluster.bucket.get(&object).await;
    if !while_it_runs {
        world.boot("node-a").await;
        world.counts("node-a").await;
    }
    healed(&world, &keys, 1).await;
    assert!(sums(&world, "node-a").await == sums(&world, "node-c").await);
    let epoch = minted(&world, 1).await.actor.epoch;
    let first = world.status("node-a").await["incarnation"].as_str().unwrap().to_owned();
    let first: u32 = first.split_once('-').unwrap().0.parse().unwrap();
    assert!(epoch > first, "{harmed}: what it forgot it must not mint again");
    assert_eq!(world.cluster.bucket.get(&object).await, left, "{harmed}: it is kept for people");
    let said = manifest(&world, "node-a").await;
    assert!(said.has_quarantined(&object) && said.segments.iter().all(|entry| entry.object != object));
    // The next process knows, does not look at it again, and does not go on with the epoch of one that forgot.
    settle(&world).await;
    world.stop("node-a").await;
    let before = world.bucket("node-a").journal().len();
    world.boot("node-a").await;
    world.counts("node-a").await;
    is_whole(&world, "node-a").await;
    for (name, truth) in &keys {
        if *name != world.key_at("node-a").await {
            assert_eq!(values(world.call("node-a", read(name)).await), *truth, "{harmed} {name}");
        }
    }
    assert!(minted(&world, 2).await.actor.epoch > epoch);
    let looked = |done: &crate::rigged::Done| done.is(Operation::Get, &object);
    assert!(!world.bucket("node-a").journal()[before..].iter().any(looked), "{harmed}");
    assert_eq!(world.status("node-a").await["quarantined"], 1);
}

#[tokio::test]
async fn a_segment_with_a_block_that_is_damaged_is_quarantined() {
    harmed(Harm::Block, true, 0).await;
    harmed(Harm::Block, false, 1).await;
}

#[tokio::test]
async fn a_segment_with_a_clock_column_that_is_damaged_is_quarantined() {
    harmed(Harm::Clocks, false, 0).await;
}

#[tokio::test]
async fn a_segment_with_a_footer_that_is_damaged_is_quarantined() {
    harmed(Harm::Footer, false, 1).await;
}

#[tokio::test]
async fn a_segment_that_was_cut_short_is_quarantined() {
    harmed(Harm::Cut, false, 0).await;
    harmed(Harm::Cut, true, 1).await;
}

#[tokio::test]
async fn a_segment_that_is_gone_is_quarantined() {
    harmed(Harm::Gone, true, 0).await;
    harmed(Harm::Gone, false, 1).await;
}

/// A flush that no manifest has heard of, of which nothing tells what it held.
#[tokio::test]
async fn all_segments_at_once_and_one_that_no_manifest_names() {
    let mut world = World::of(3, &NAMES).await;
    let keys = fill(&world).await;
    world.kill("node-a").await;
    for object in segments(&world).await {
        harm(&world, &object, Harm::Footer).await;
    }
    let unknown = "nodes/node-a/f/0000000001-00000000000000ab/0000000001.seg";
    world.cluster.bucket.put(unknown, Bytes::from_static(b"no segment")).await.unwrap();
    world.boot("node-a").await;
    world.counts("node-a").await;
    healed(&world, &keys, 3).await;
    assert!(manifest(&world, "node-a").await.has_quarantined(unknown));
    // The next process does not find it once more.
    world.kill("node-a").await;
    let before = world.bucket("node-a").journal().len();
    world.boot("node-a").await;
    world.counts("node-a").await;
    healed(&world, &keys, 3).await;
    let looked = |done: &crate::rigged::Done| done.is(Operation::Get, unknown);
    assert!(!world.bucket("node-a").journal()[before..].iter().any(looked));
}

/// (P8) One of two other homes may not have what was acknowledged.
#[tokio::test]
async fn it_has_no_vote_until_so_many_homes_were_compared_with_that_one_has_every_write() {
    let mut world = World::of(3, &NAMES).await;
    let keys = fill(&world).await;
    for home in ["node-a", "node-b"] {
        put(&world, home, &write("new", 1), Durability::Disk).await;
    }
    settle(&world).await;
    world.kill("node-b").await;
    world.kill("node-a").await;
    harm(&world, &segments(&world).await[2], Harm::Footer).await;
    world.boot("node-a").await;
    world.counts("node-a").await;
    let quarantined = |reply: &Reply| {
        let status = status_of(reply.clone());
        status["quarantined"] == 1 && status["index_complete"] == true
    };
    world.until("node-a", Request::Status, quarantined).await;
    let none = Reply::Partial(Bytes::new());
    assert_eq!(world.call("node-a", read("new")).await, none);
    // And so it is with the next process.
    world.stop("node-a").await;
    assert!(!manifest(&world, "node-a").await.ended, "something is missing");
    world.boot("node-a").await;
    assert_eq!(world.call("node-a", read("new")).await, none);
    world.counts("node-a").await;
    assert_eq!(world.call("node-a", read("new")).await, none);
    let view = world.view().await;
    let (partition, version) = (hash_of(&view, "new").partition(16), view.version());
    let scan = Request::Scan { partition, after: None, bytes: 1000, age_ms: Some(1_000_000) };
    let answer = world.cluster.call(world.address("node-a"), version, scan).await;
    assert_eq!(answer, Reply::Refused(Refusal::CatchingUp), "a home that lost its disk must not rely on it");
    world.boot("node-b").await;
    world.counts("node-b").await;
    healed(&world, &keys, 1).await;
    assert_eq!(values(world.call("node-a", read("new")).await), ["1"]);
}

/// A home that ended in good order answers with what it has in the bucket.
#[tokio::test]
async fn what_was_lost_comes_from_homes_that_are_stopped() {
    let mut world = World::of(3, &NAMES).await;
    let keys = fill(&world).await;
    world.kill("node-a").await;
    world.stop("node-b").await;
    world.stop("node-c").await;
    harm(&world, &segments(&world).await[0], Harm::Gone).await;
    // Their trees can't be read: then all of their segments is.
    for tree in world.objects(&tree_prefix(&id("node-b"))).await {
        flip(&world, &tree, 100).await;
    }
    world.boot("node-a").await;
    world.counts("node-a").await;
    is_whole(&world, "node-a").await;
    let votes = |reply: &Reply| matches!(reply, Reply::Found(_));
    for (name, truth) in &keys {
        assert_eq!(values(world.until("node-a", read(name), votes).await), *truth, "{name}");
    }
}

/// The index knows of a version that is in no block: the others of the key are no answer.
#[tokio::test]
async fn a_version_that_is_known_and_can_not_be_found_is_missed() {
    let mut world = World::of(3, &NAMES).await;
    let keys = fill(&world).await;
    let name = "half";
    for home in &NAMES[1..] {
        put(&world, home, &write(name, 1), Durability::Disk).await;
        put(&world, home, &write(name, 2), Durability::Disk).await;
    }
    settle(&world).await;
    world.kill("node-a").await;
    let (one, two) = (write(name, 1), write(name, 2));
    let mut both: Container<Brief> = one.container.map(|version| Brief::from(version));
    both.sync(two.container.map(|version| Brief::from(version)));
    let mut builder = SegmentBuilder::new();
    builder.push(hash_of(&*world.view().await, name), &one.encode(), &both);
    let object = "nodes/node-a/f/0000000001-00000000000000ab/0000000001.seg";
    world.cluster.bucket.put(object, builder.finish().unwrap().bytes).await.unwrap();
    world.boot("node-a").await;
    is_whole(&world, "node-a").await;
    let complete = |reply: &Reply| status_of(reply.clone())["index_complete"] == true;
    world.until("node-a", Request::Status, complete).await;
    let reply = world.call("node-a", read(name)).await;
    assert!(matches!(reply, Reply::Refused(Refusal::Unable(_))), "{reply:?}");
    healed(&world, &keys, 1).await;
    assert_eq!(values(world.call("node-a", read(name)).await), ["1", "2"]);
}

/// (P5) The deletion was in the damaged segment, its value is in another one.
#[tokio::test]
async fn a_deletion_that_was_lost_comes_back_before_its_value_is_read() {
    let mut world = World::of(3, &NAMES).await;
    for home in NAMES {
        put(&world, home, &write("gone", 1), Durability::Disk).await;
    }
    settle(&world).await;
    for home in NAMES {
        put(&world, home, &deletion("gone", 2), Durability::Disk).await;
    }
    settle(&world).await;
    world.kill("node-a").await;
    harm(&world, &segments(&world).await[1], Harm::Cut).await;
    world.boot("node-a").await;
    loop {
        match world.call("node-a", read("gone")).await {
            Reply::Found(bytes) => {
                let record = Record::decode(&bytes).unwrap();
                assert!(record.container.siblings().iter().all(|s| s.version.value.is_deleted()));
                break;
            }
            Reply::Partial(_) | Reply::Refused(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// (P5) All homes had forgotten the deletion otherwise, and this one had it in a segment still.
#[tokio::test]
async fn a_deletion_that_the_others_have_in_graves_is_fetched_from_there() {
    let mut world = World::of(3, &NAMES).await;
    let name = "gone";
    put(&world, "node-a", &write(name, 1), Durability::Disk).await;
    settle(&world).await;
    put(&world, "node-a", &deletion(name, 2), Durability::Disk).await;
    settle(&world).await;
    for node in ["node-b", "node-c"] {
        world.stop(node).await;
        let mut record = write(name, 1);
        record.container.sync(deletion(name, 2).container);
        let mut builder = SegmentBuilder::new();
        let brief = record.container.map(|version| Brief::from(version));
        builder.push(hash_of(&*world.view().await, name), &record.encode(), &brief);
        let (built, object) = (builder.finish().unwrap(), format!("nodes/{node}/g/x/0000000001.seg"));
        let mut manifest = manifest(&world, node).await;
        manifest.version += 1;
        manifest.graves.push(SegmentEntry::of(object.clone(), &built));
        world.cluster.bucket.put(&object, built.bytes).await.unwrap();
        let at = Manifest::object_name(&id(node), manifest.version);
        world.cluster.bucket.put(&at, manifest.to_json().into()).await.unwrap();
        world.boot(node).await;
        is_whole(&world, node).await;
        assert_eq!(held(&world, node, name).await, None);
    }
    world.kill("node-a").await;
    harm(&world, &segments(&world).await[1], Harm::Footer).await;
    world.boot("node-a").await;
    loop {
        match world.call("node-a", read(name)).await {
            Reply::Found(bytes) => {
                let record = Record::decode(&bytes).unwrap();
                assert!(record.container.siblings().iter().all(|s| s.version.value.is_deleted()));
                break;
            }
            Reply::Partial(_) | Reply::Refused(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A grave can't be looked at any more: new keys are taken in all the same.
#[tokio::test]
async fn a_grave_that_is_damaged_is_quarantined() {
    let mut world = World::of(1, &["node-a"]).await;
    put(&world, "node-a", &write("k", 1), Durability::Bucket).await;
    world.stop("node-a").await;
    let object = "nodes/node-a/g/x/0000000001.seg";
    let mut builder = SegmentBuilder::new();
    let record = write("buried", 1);
    let brief = record.container.map(|version| Brief::from(version));
    builder.push(hash_of(&*world.view().await, "buried"), &record.encode(), &brief);
    let built = builder.finish().unwrap();
    let mut said = manifest(&world, "node-a").await;
    said.version += 1;
    said.graves.push(SegmentEntry::of(object.to_owned(), &built));
    world.cluster.bucket.put(object, built.bytes).await.unwrap();
    let at = Manifest::object_name(&id("node-a"), said.version);
    world.cluster.bucket.put(&at, said.to_json().into()).await.unwrap();
    harm(&world, object, Harm::Footer).await;
    world.boot("node-a").await;
    is_whole(&world, "node-a").await;
    let complete = |reply: &Reply| {
        let status = status_of(reply.clone());
        status["index_complete"] == true && status["quarantined"] == 1
    };
    world.until("node-a", Request::Status, complete).await;
    put(&world, "node-a", &write("new", 1), Durability::Bucket).await;
    assert_eq!(values(world.call("node-a", read("new")).await), ["1"]);
    assert_eq!(values(world.call("node-a", read("k")).await), ["1"]);
    assert!(manifest(&world, "node-a").await.has_quarantined(object));
}

#[tokio::test]
async fn a_node_whose_manifests_are_damaged_or_gone_starts_and_is_repaired() {
    for (how_many, gone) in [(1, false), (100, false), (100, true)] {
        let mut world = World::of(3, &NAMES).await;
        let keys = fill(&world).await;
        world.stop("node-a").await;
        world.kill("node-b").await;
        let manifests = world.objects(&Manifest::prefix(&id("node-a"))).await;
        let newest = manifests.last().unwrap().clone();
        for object in manifests.iter().rev().take(how_many) {
            if gone {
                world.cluster.bucket.delete(object).await.unwrap();
            } else {
                flip(&world, object, 200).await;
            }
        }
        world.boot("node-a").await;
        world.counts("node-a").await;
        assert_eq!(read_all(&world, &keys).await, 0, "node-b may have what is not named here any more");
        world.boot("node-b").await;
        world.counts("node-b").await;
        let quarantined = if gone { 1 } else { how_many.min(manifests.len()) as u64 };
        healed(&world, &keys, quarantined).await;
        let said = manifest(&world, "node-a").await;
        if gone {
            assert_eq!(said.quarantined[0].object, Manifest::object_name(&id("node-a"), 0));
        } else {
            assert!(
                said.has_quarantined(&newest) && Manifest::version_of_object(&newest) < Some(said.version)
            );
        }
        let incarnation = world.status("node-a").await["incarnation"].as_str().unwrap().to_owned();
        let first: u32 = incarnation.split_once('-').unwrap().0.parse().unwrap();
        assert!(minted(&world, 1).await.actor.epoch > first);
    }
}

/// A process that runs writes its next manifest past one that was damaged.
#[tokio::test]
async fn a_manifest_that_is_damaged_under_a_running_node_is_followed_by_another() {
    let world = World::of(1, &["node-a"]).await;
    put(&world, "node-a", &write("k", 1), Durability::Bucket).await;
    let next = manifest(&world, "node-a").await.version + 1;
    let object = Manifest::object_name(&id("node-a"), next);
    world.cluster.bucket.put(&object, Bytes::from_static(b"{")).await.unwrap();
    put(&world, "node-a", &write("k", 2), Durability::Memory).await;
    let settle = Request::Repair(cartwheel_core::wire::Repair::Settle);
    assert_eq!(world.call("node-a", settle).await, Reply::Acked { reached: Durability::Bucket });
    assert!(manifest(&world, "node-a").await.version > next);
    assert_eq!(world.status("node-a").await["steps_down"], false);
}

/// (P8) A fallback acknowledged a write for this home, and its hint can't be read.
#[tokio::test]
async fn a_home_whose_hints_are_damaged_asks_the_other_homes_before_it_votes() {
    let mut world = World::of(3, &NAMES).await;
    world.kill("node-a").await;
    put(&world, "node-c", &write("new", 1), Durability::Disk).await;
    let object = world.leave_object("node-a", "node-gone", Bytes::from_static(b"no segment")).await;
    world.kill("node-c").await;
    world.boot("node-a").await;
    let reply = world.call("node-a", Request::Probe { hinted: false }).await;
    assert_eq!(reply, Reply::Standing(Standing::Counting));
    assert_eq!(world.call("node-a", read("new")).await, Reply::Partial(Bytes::new()), "node-c may have it");
    let kept = format!("nodes/node-a/quarantine/{object}");
    let moved = |reply: &Reply| status_of(reply.clone())["quarantined"] == 1;
    world.until("node-a", Request::Status, moved).await;
    world.boot("node-c").await;
    is_whole(&world, "node-a").await;
    assert_eq!(values(world.call("node-a", read("new")).await), ["1"]);
    assert_eq!(world.objects("nodes/node-a/quarantine/").await, [kept]);
    assert_eq!(world.objects("hints/node-a/").await, [""; 0], "deletions are not kept for its sake");
}

/// The bucket gives wrong bytes for a while; what it holds is in order.
#[tokio::test]
async fn what_was_damaged_on_its_way_is_read_again() {
    let mut world = World::of(3, &NAMES).await;
    let keys = fill(&world).await;
    world.kill("node-a").await;
    world.boot("node-a").await;
    is_whole(&world, "node-a").await;
    let complete = |reply: &Reply| status_of(reply.clone())["index_complete"] == true;
    world.until("node-a", Request::Status, complete).await;
    world.bucket("node-a").garble_once(&segments(&world).await[0]);
    assert!(read_all(&world, &keys).await < keys.len());
    healed(&world, &keys, 0).await;
}
