//! Always writeable (Dynamo, SOSP 2007, sections 2.3, 4.5 and 4.6): others stand in for homes that are down, and
//! hand over what they kept; the slides' example of how a home that returns could serve a stale read, and why it
//! doesn't.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cartwheel_cluster::CallError;
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::gossip;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::wire::{Call, Reply, Request};
use futures_util::stream::{StreamExt, iter};
use http::Method;
use serde_json::Value;
use tokio::time::Instant;

use crate::support::cluster::members;
use crate::support::store::Kind;
use crate::support::{Answer, Client, Cluster, PATIENCE, in_time, until};

const CART: &str = "carts/alice";

/// Who says what about a cart: the clocks that its homes hold, `None` for one that can't say.
async fn held(cluster: &Cluster) -> Vec<Option<String>> {
    let location = cluster.locate("carts", "alice").await;
    let holders = location["holders"].as_array().unwrap();
    holders.iter().map(|holder| Some(holder["clock"].as_str()?.to_owned())).collect()
}

/// The write's quorum adds up, and says which part of it homes had.
fn adds_up(answer: &Answer, homes_up: usize) {
    let number = |name| answer.quorum(name).parse::<usize>().unwrap();
    let (home, fallback) = (number("home"), number("fallback"));
    assert_eq!(home + fallback, number("answered"), "{answer:?}");
    assert!(home + fallback >= number("required") && home <= homes_up, "{answer:?}");
    assert_eq!(answer.header("cartwheel-degraded"), None, "{answer:?}");
}

/// The nodes of the slides: the cart's homes B, C and D, and E and F, who keep it for C and D.
struct Slides {
    cluster: Cluster,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
    new: Answer,
}

/// "N = 3, W = R = 2; C and D are down": the old cart is at B, C and D, the new one at B, and at E and F with
/// hints for C and D. The hints are in the bucket.
async fn written_while_c_and_d_are_down(cluster: Cluster) -> Slides {
    let mut cluster = cluster;
    let [b, c, d] = cluster.homes("carts", "alice").await[..].try_into().unwrap();
    let writer = cluster.gateway(0);
    let old = writer.put(CART, "old").query("w=all").gives(204).await;
    cluster.kill(c).await;
    cluster.kill(d).await;
    let new = writer.put(CART, "new").seen(&old).gives(204).await;
    adds_up(&new, 1);
    assert!(new.quorum("fallback") >= "1", "{new:?}");
    assert!(new.dot().starts_with(cluster.id(b)), "the home that is left mints: {}", new.dot());
    let (e, f) = until("E and F keep the cart for C and D", || async {
        let hints = cluster.hints().await;
        let holder =
            |home: usize| hints.iter().find(|(_, target)| *target == home).map(|(holder, _)| *holder);
        Some((holder(c)?, holder(d)?)).filter(|_| hints.len() == 2)
    })
    .await;
    assert!(e != f && ![b, c, d].contains(&e) && ![b, c, d].contains(&f));
    until("the hints are in the bucket", || async {
        (cluster.hint_objects().await.len() == 2).then_some(())
    })
    .await;
    Slides { cluster, b, c, d, e, f, new }
}

/// C and D are back, and cut off from what was kept for them: B, E and F are down, and C and D wait for the bucket
/// to say what it holds for them. The second gateway has never had others stand in for anybody.
async fn c_and_d_return_before_their_hints(cluster: Cluster) -> Slides {
    let mut slides = written_while_c_and_d_are_down(cluster).await;
    let Slides { cluster, b, c, d, e, f, .. } = &mut slides;
    cluster.hold_hints_back(true);
    for node in [*b, *e, *f] {
        cluster.kill(node).await;
    }
    cluster.start_nodes(&[*c, *d]).await;
    cluster.gateway_reaches(1, 3).await;
    slides
}

/// The slides' question: "What can happen?" Without the rule the two homes that returned make a quorum, and
/// neither has heard of the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_catching_up_the_slides_stale_read_happens() {
    let cluster = Cluster::nodes(6).gateways(2).store(Kind::HeldBack).without_catching_up().start().await;
    let slides = c_and_d_return_before_their_hints(cluster).await;
    let reader = slides.cluster.gateway(1);
    let stale = until("the gateway relies on C and D", || async {
        let read = reader.get(CART).query("r=2").gives(200).await;
        (read.quorum("home") == "2").then_some(read)
    })
    .await;
    assert_eq!((stale.text(), stale.header("stale")), ("old", None));
    let told = reader.get(CART).query("r=2").seen(&slides.new).gives(200).await;
    assert_eq!((told.text(), told.must("stale")), ("old", "?1"), "who has seen the write is told, at least");
    slides.cluster.hold_hints_back(false);
    until("the hints arrive all the same, only too late", || async {
        (reader.get(CART).query("r=2").gives(200).await.text() == "new").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_returns_serves_no_stale_read_before_it_has_its_hints() {
    let cluster = Cluster::nodes(6).gateways(2).store(Kind::HeldBack).start().await;
    let slides = c_and_d_return_before_their_hints(cluster).await;
    let Slides { mut cluster, b, e, f, new, .. } = slides;
    let reader = cluster.gateway(1);
    // The same read as above. The homes don't count; at best the bucket answers in their place.
    let read = reader.get(CART).query("r=2&deadline=2s").send().await;
    match read.status {
        200 => assert_eq!((read.text(), read.header("cartwheel-degraded").is_some()), ("new", true)),
        _ => drop(read.problem(503)),
    }
    let strict = reader.get(CART).query("r=2&sloppy=false&deadline=500ms").send().await;
    assert_eq!(strict.problem(503)["quorum"]["got"], 0, "{strict:?}");
    cluster.hold_hints_back(false);
    let read = until("C and D count", || async {
        let read = reader.get(CART).query("r=2&sloppy=false&deadline=500ms").send().await;
        (read.status == 200).then_some(read)
    })
    .await;
    assert_eq!((read.text(), read.quorum("home"), read.clock()), ("new", "2", new.clock()));
    cluster.start_nodes(&[b, e, f]).await;
    cluster.serves().await;
    cluster.no_hints_are_left().await;
    assert!(held(&cluster).await.iter().all(|clock| clock.is_some() && *clock == held_by(&new)));
}

/// The clock that a node which has seen exactly what this answer has seen holds.
fn held_by(answer: &Answer) -> Option<String> {
    answer.clock().split_once(", mac=").map(|(clock, _)| clock.to_owned())
}

/// The same with E and F there to hand over, as the slides have it, and read all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fallbacks_hand_over_when_the_homes_return_and_then_hold_nothing() {
    let cluster = Cluster::nodes(6).gateways(2).store(Kind::Memory).start().await;
    let Slides { mut cluster, b, c, d, new, .. } = written_while_c_and_d_are_down(cluster).await;
    cluster.kill(b).await;
    let reading = keep_reading(cluster.gateway(1), "sloppy=true", "new");
    cluster.start_nodes(&[c, d]).await;
    cluster.serves().await;
    let fresh = cluster.gateway(1).get(CART).query("r=2&sloppy=false").gives(200).await;
    assert_eq!((fresh.text(), fresh.quorum("home")), ("new", "2"));
    assert!(reading.stop().await > 0);
    cluster.no_hints_are_left().await;
    cluster.start_node(b).await;
    cluster.serves().await;
    cluster.no_hints_are_left().await;
    assert!(held(&cluster).await.iter().all(|clock| clock.is_some() && *clock == held_by(&new)));
}

/// A client that reads the cart over and over.
struct Reading {
    stop: Arc<AtomicBool>,
    reads: tokio::task::JoinHandle<usize>,
}

impl Reading {
    /// Ends it; gives how many reads were answered.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        in_time("the reader ends", self.reads).await.unwrap()
    }
}

/// Reads until it is stopped. A quorum may be missed meanwhile; but no answer is older than `newest`, and a cart that
/// is there is never "not found".
fn keep_reading(client: Client, query: &'static str, newest: &'static str) -> Reading {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let reads = tokio::spawn(async move {
        let mut answered = 0;
        while !stopped.load(Ordering::Relaxed) {
            let read = client.get(CART).query("r=2&deadline=1s").query(query).send().await;
            match read.status {
                200 => {
                    assert_eq!(read.text(), newest, "{read:?}");
                    answered += 1;
                }
                503 | 504 => {}
                _ => panic!("{read:?}"),
            }
        }
        answered
    });
    Reading { stop, reads }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_reach_the_home_from_the_bucket_when_their_holder_is_lost_for_good() {
    let mut cluster = Cluster::nodes(5).start().await;
    let homes = cluster.homes("carts", "alice").await;
    let client = cluster.gateway(0);
    let old = client.put(CART, "old").query("w=all").gives(204).await;
    cluster.kill(homes[1]).await;
    let new = client.put(CART, "new").seen(&old).query("w=3").gives(204).await;
    assert_eq!((new.quorum("home"), new.quorum("fallback")), ("2", "1"));
    let [(holder, target)] = cluster.hints().await[..].try_into().unwrap();
    assert_eq!((target, homes.contains(&holder)), (homes[1], false));
    until("the hint is in the bucket", || async { (!cluster.hint_objects().await.is_empty()).then_some(()) })
        .await;
    // All who know the new cart are gone, the holder with its disk.
    for node in [holder, homes[0], homes[2]] {
        cluster.kill(node).await;
    }
    cluster.wipe(holder);
    cluster.start_node(homes[1]).await;
    until("the home has its hint", || async { (held(&cluster).await[1] == held_by(&new)).then_some(()) })
        .await;
    assert_eq!(client.get(CART).query("r=1&sloppy=false").gives(200).await.text(), "new");
    cluster.start_nodes(&[holder, homes[0], homes[2]]).await;
    cluster.serves().await;
    cluster.no_hints_are_left().await;
}

/// Waits until all storage nodes are down, in the eyes of both gateways.
async fn lose_all_nodes(cluster: &mut Cluster) {
    cluster.kill_all().await;
    for gateway in 0..2 {
        cluster.gateway_reaches(gateway, 0).await;
    }
}

/// An answer for which the bucket stood in.
fn from_bucket(answer: &Answer) {
    let degraded = answer.must("cartwheel-degraded");
    let as_of = degraded.strip_prefix("bucket; as-of=\"").and_then(|rest| rest.strip_suffix('"')).unwrap();
    assert_eq!((as_of.len(), as_of.ends_with('Z')), (20, true), "{degraded}");
    assert_eq!(answer.quorum("answered"), "0", "{answer:?}");
    assert!(answer.must("server-timing").contains(", bucket;dur="), "{answer:?}");
    if let Some(dot) = answer.header("dot") {
        assert!(dot.starts_with("gw-"), "no storage node made {dot}");
        assert_eq!(answer.quorum("durability"), "bucket");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_storage_node_dead_the_bucket_takes_writes_and_answers_reads() {
    let mut cluster = Cluster::nodes(5).gateways(2).start().await;
    let (one, other) = (cluster.gateway(0), cluster.gateway(1));
    for key in ["carts/alice", "carts/bob", "carts/carol"] {
        one.put(key, "before").query("durability=bucket").gives(204).await;
    }
    one.put("carts/disk", "on disks only").gives(204).await;
    until("every partition has a quorum", || async { (cluster.quorums(0) == 64).then_some(()) }).await;
    lose_all_nodes(&mut cluster).await;
    until("the gateway shows that none has", || async { (cluster.quorums(0) == 0).then_some(()) }).await;

    // Read, modify and write, twice, through one gateway.
    for value in ["during", "later"] {
        let read = one.get("carts/alice").gives(200).await;
        from_bucket(&read);
        let write = one.put("carts/alice", value).seen(&read).gives(204).await;
        from_bucket(&write);
        assert_eq!(one.get("carts/alice").gives(200).await.text(), value, "a gateway sees its own writes");
    }
    let gone = other.delete("carts/bob").gives(204).await;
    from_bucket(&gone);
    let read = other.get("carts/bob").gives(404).await;
    assert_eq!(read.must("cartwheel-deleted"), "?1");
    from_bucket(&read);
    from_bucket(&one.get("carts/nobody").gives(404).await);
    // The same request is the same write, whatever became of its first answer.
    let again = || one.put("carts/eve", "tea").header("idempotency-key", "order-1").gives(204);
    assert_eq!(again().await.dot(), again().await.dot());
    // Its precondition held when it was made.
    let first = || {
        let put = one.put("carts/frank", "tea").header("idempotency-key", "order-2");
        put.header("if-none-match", "*").gives(204)
    };
    assert_eq!(first().await.dot(), first().await.dot());
    // Two that know nothing of each other, nor of what is on the disks.
    from_bucket(&one.put("carts/dave", "milk").gives(204).await);
    from_bucket(&other.put("carts/dave", "bread").gives(204).await);
    from_bucket(&other.put("carts/disk", "meanwhile").gives(204).await);
    until("each gateway sees the other's writes", || async {
        let seen = [one.get("carts/dave").send().await, other.get("carts/dave").send().await];
        (seen[0].values().len() == 2 && seen[1].values().len() == 2).then_some(())
    })
    .await;
    assert_eq!(other.get("carts/alice").gives(200).await.text(), "later");
    let strict = one.put("carts/alice", "x").query("sloppy=false").send().await;
    assert_eq!(strict.problem(503)["applied"], "no");
    let many =
        |n: usize| (if n.is_multiple_of(2) { &one } else { &other }).put(&format!("many/{n}"), n.to_string());
    iter((0..60).map(|n| many(n).gives(204))).buffer_unordered(16).for_each(async |w| from_bucket(&w)).await;

    cluster.start_nodes(&[0, 1, 2, 3, 4]).await;
    cluster.serves().await;
    let values = async |key: &str| {
        let read = other.get(key).query("r=all&sloppy=false").send().await;
        assert_eq!(read.header("cartwheel-degraded"), None);
        read.values().into_iter().map(Option::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(values("carts/alice").await, ["later"], "no sibling: each write had seen the one before");
    assert_eq!(values("carts/carol").await, ["before"]);
    assert_eq!(values("carts/dave").await, ["bread", "milk"]);
    assert_eq!(values("carts/disk").await, ["meanwhile", "on disks only"], "truly concurrent");
    let gone = other.get("carts/bob").query("r=all&sloppy=false").gives(404).await;
    assert_eq!(gone.must("cartwheel-deleted"), "?1");
    for n in 0..60 {
        assert_eq!(values(&format!("many/{n}")).await, [n.to_string()]);
    }
    cluster.no_hints_are_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_bucket_gone_too_nothing_is_claimed() {
    let mut cluster = Cluster::nodes(3).gateways(2).store(Kind::Faulty(5)).start().await;
    let client = cluster.gateway(0);
    client.put(CART, "before").query("durability=bucket").gives(204).await;
    lose_all_nodes(&mut cluster).await;
    cluster.faults().set(cartwheel_bucket::Faults { unavailable: true, ..Default::default() });
    // What was sent to the bucket may have arrived there; what was not sent has not.
    let mut certain = false;
    while !certain {
        let write = client.put(CART, "never").query("deadline=1s").send().await;
        let problem = write.problem(503);
        assert!(write.must("retry-after").parse::<u32>().is_ok());
        assert!(problem["detail"].as_str().unwrap().contains("bucket"), "{problem}");
        certain = problem["applied"] == "no";
        assert!(certain || problem["applied"] == "unknown", "{problem}");
    }
    for answer in
        [client.get(CART).send().await, cluster.gateway(1).get(CART).query("deadline=1s").send().await]
    {
        assert!(answer.must("retry-after").parse::<u32>().is_ok());
        assert!(answer.problem(503)["detail"].as_str().unwrap().contains("bucket"), "{answer:?}");
    }
    let delete = client.delete(CART).query("deadline=1s").send().await;
    assert_eq!(delete.problem(503)["applied"], "no", "what it deletes was not read, so nothing was sent");
    cluster.faults().set(cartwheel_bucket::Faults::default());
    let read = until("the bucket is asked again", || async {
        let read = client.get(CART).send().await;
        (read.status == 200).then_some(read)
    })
    .await;
    from_bucket(&read);
    assert_eq!(read.text(), "before", "what was refused was not applied");
}

/// One home's word in `GET /v1/cluster`.
fn word<'a>(status: &'a Value, id: &str) -> &'a Value {
    members(status).find(|member| member["id"] == id).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_bucket_disks_take_writes_and_everything_drains_when_it_is_back() {
    // On a machine that is busy nodes stand still now and then, and without the bucket, with a member away, they would
    // not count again before it is back.
    let mut cluster = Cluster::nodes(5).gateways(2).without_catching_up().start().await;
    let client = cluster.gateway(0);
    client.put("levels/a", "x").query("durability=bucket").gives(204).await;
    if !cluster.server().stop().await {
        return;
    }
    let keys = |range: std::ops::Range<usize>| range.map(|n| format!("load/{n}"));
    let write = async |client: &Client, key: &str| {
        let write = client.put(key, key.to_owned()).gives(204).await;
        assert_eq!((write.quorum("durability"), write.header("cartwheel-degraded")), ("disk", None));
    };
    for key in keys(0..40) {
        write(&client, &key).await;
    }
    // The first who need the bucket wait for it; once it is known to fail, nobody does.
    let problem = until("the bucket is known to fail", || async {
        let refused = client.put("levels/a", "y").query("durability=bucket&deadline=3s").send().await;
        assert!([503, 504].contains(&refused.status), "{refused:?}");
        (refused.json()["type"] == "/problems/bucket-unavailable").then_some(refused)
    })
    .await;
    assert_eq!(problem.json()["applied"], "no");
    assert!(problem.must("retry-after").parse::<u32>().is_ok());
    // A home goes away now: what is kept for it stays on the fallbacks' disks for the time being.
    let away = cluster.homes("load", "0").await[0];
    cluster.kill(away).await;
    for key in keys(40..80) {
        write(&client, &key).await;
    }
    for key in keys(0..80) {
        assert_eq!(cluster.gateway(1).get(&key).gives(200).await.text(), key);
    }
    assert!(!cluster.hints().await.is_empty());
    let status = cluster.status(1).await;
    for member in members(&status).filter(|member| member["reachable"] == true) {
        assert_eq!(member["steps_down"], false, "{member}");
    }

    cluster.server().start_again().await;
    until("the bucket takes writes again", || async {
        let write = client.put("levels/b", "z").query("durability=bucket&deadline=3s").send().await;
        (write.status == 204).then_some(())
    })
    .await;
    cluster.start_node(away).await;
    cluster.serves().await;
    cluster.no_hints_are_left().await;
    // All that was on disks only is in the bucket now: nobody needs the disks.
    for node in 0..5 {
        cluster.stop(node).await;
        cluster.wipe(node);
    }
    cluster.start_nodes(&[0, 1, 2, 3, 4]).await;
    cluster.serves().await;
    iter(keys(0..80))
        .map(|key| {
            let client = cluster.gateway(1);
            async move {
                let read = client.get(&key).query("r=all&sloppy=false").gives(200).await;
                assert_eq!(read.text(), key);
            }
        })
        .buffer_unordered(16)
        .for_each(async |()| ())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_lost_its_disk_has_no_vote_before_it_holds_everything_again() {
    let mut cluster = Cluster::nodes(4).start().await;
    let homes = cluster.homes("carts", "alice").await;
    let client = cluster.gateway(0);
    // A clean end: the home knows that it lost nothing, and nobody keeps anything for it.
    cluster.stop(homes[1]).await;
    let write = client.put(CART, "milk").query("sloppy=false").gives(204).await;
    assert_eq!(write.quorum("home"), "2");
    cluster.start_node(homes[1]).await;
    cluster.serves().await;
    let clocks = held(&cluster).await;
    assert_eq!(clocks[1], None, "the home that was away has not heard of the write: {clocks:?}");
    cluster.kill(homes[0]).await;
    cluster.wipe(homes[0]);
    cluster.kill(homes[2]).await;
    cluster.start_node(homes[0]).await;
    until("the home is back, and lacks what only the third could give it", || async {
        let status = cluster.status(0).await;
        let home = word(&status, cluster.id(homes[0]));
        (home["standing"] == "counting" && home["partitions_not_held"] != 0).then_some(())
    })
    .await;
    // The two homes that don't have it would make a quorum.
    let strict = || client.get(CART).query("r=2&sloppy=false&deadline=500ms").send();
    until("the one that was not wiped has a vote, and the other none", || async {
        let got = strict().await.problem(503)["quorum"]["got"].clone();
        (got == 1).then_some(())
    })
    .await;
    let reading = keep_reading(cluster.gateway(0), "sloppy=false", "milk");
    cluster.start_node(homes[2]).await;
    until("the home holds everything again", || async {
        let status = cluster.status(0).await;
        let home = word(&status, cluster.id(homes[0]));
        (home["standing"] == "counting" && home["partitions_not_held"] == 0).then_some(())
    })
    .await;
    assert_eq!(client.get(CART).query("r=2&sloppy=false").gives(200).await.text(), "milk");
    reading.stop().await;
    assert_eq!(held(&cluster).await[0].as_deref(), Some(write.dot()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_starts_with_any_node_down() {
    let mut cluster = Cluster::nodes(5).start().await;
    for node in 0..5 {
        cluster.kill(node).await;
        cluster.start_gateway().await;
        let client = cluster.gateway(1 + node);
        client.is_ready().await;
        for n in 0..10 {
            let key = format!("start/{node}-{n}");
            adds_up(&client.put(&key, key.clone()).gives(204).await, 3);
            assert_eq!(client.get(&key).gives(200).await.text(), key);
        }
        cluster.start_node(node).await;
        cluster.serves().await;
    }
    cluster.no_hints_are_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_five_nodes_down_no_request_fails_and_the_answers_say_who_stood_in() {
    let mut cluster = Cluster::nodes(5).gateways(2).start().await;
    let clients = [cluster.gateway(0), cluster.gateway(1)];
    let key = |n: usize| format!("spread/{n}");
    for n in 0..100 {
        clients[n % 2].put(&key(n), "before").query("w=all").gives(204).await;
    }
    let mut homes = Vec::new();
    for n in 0..100 {
        homes.push(cluster.homes("spread", &n.to_string()).await);
    }
    let up_of = |homes: &[usize], down: [usize; 2]| homes.iter().filter(|home| !down.contains(home)).count();
    // Some keys have one home up, some two, some all three; where keys lie, the order of the joins decides.
    let every_case = |down| (1..=3).all(|up| homes.iter().any(|homes| up_of(homes, down) == up));
    let mut pairs = (0..5).flat_map(|one| (0..one).map(move |other| [other, one]));
    let down = pairs.find(|&down| every_case(down)).expect("two nodes that leave every case");
    for node in down {
        cluster.kill(node).await;
    }
    for gateway in 0..2 {
        cluster.gateway_reaches(gateway, 3).await;
    }
    let homes_up: Vec<usize> = homes.iter().map(|homes| up_of(homes, down)).collect();
    let round = |n: usize| {
        let (writer, reader, up, key) = (&clients[n % 2], &clients[(n + 1) % 2], homes_up[n], key(n));
        async move {
            let read = reader.get(&key).gives(200).await;
            adds_up(&read, up);
            assert!(read.quorum("home") >= "1", "stand-ins alone are no quorum: {read:?}");
            let write = writer.put(&key, "during").seen(&read).gives(204).await;
            adds_up(&write, up);
            if up == 3 {
                assert_eq!((write.quorum("fallback"), read.quorum("fallback")), ("0", "0"));
            }
            let all = writer.put(&key, "all").seen(&write).query("w=all").gives(204).await;
            assert_eq!(
                (all.quorum("home"), all.quorum("fallback")),
                (&*up.to_string(), &*(3 - up).to_string())
            );
            let again = reader.get(&key).gives(200).await;
            assert_eq!(again.text(), "all");
            // Homes alone: they are enough, or the answer says how many there were.
            let strict = writer.put(&key, "strict").seen(&again).query("sloppy=false").send().await;
            if up >= 2 {
                assert_eq!((strict.status, strict.quorum("fallback")), (204, "0"));
            } else {
                let problem = strict.problem(503);
                assert_eq!((&problem["quorum"]["got"], &problem["applied"]), (&1.into(), &"unknown".into()));
                let read = reader.get(&key).query("sloppy=false").send().await;
                assert_eq!(read.problem(503)["quorum"]["got"], 1, "{read:?}");
            }
        }
    };
    iter((0..100).map(round)).buffer_unordered(8).for_each(async |()| ()).await;
    cluster.start_nodes(&down).await;
    cluster.serves().await;
    cluster.no_hints_are_left().await;
    for n in 0..100 {
        let read = clients[0].get(&key(n)).query("r=all&sloppy=false").gives(200).await;
        assert_eq!(read.text(), "strict", "what was applied at one home only became visible, as it was said");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_with_another_secret_hears_takes_and_reads_nothing() {
    let mut cluster = Cluster::nodes(4).start().await;
    let homes = cluster.homes("carts", "alice").await;
    cluster.kill(homes[0]).await;
    let client = cluster.gateway(0);
    client.put(CART, "milk").query("w=all").gives(204).await;
    let [(holder, _)] = cluster.hints().await[..].try_into().unwrap();
    let home = NodeId::new(cluster.id(homes[0])).unwrap();
    let read = Request::Read {
        namespace: Namespace::new(b"carts").unwrap(),
        key: Key::new(b"alice".as_slice().into()).unwrap(),
        values: true,
        stands_for: None,
    };
    let take = Request::Hints { home: home.clone(), generation: u64::MAX, after: None, bytes: 1 << 20 };
    let forget = Request::TookHints { home, generation: u64::MAX };
    let ask = async |secret: &ClusterSecret, node: usize, request: Request| {
        let peers = Peers::new(Seams::real(), secret.node_token());
        let call = Call { ring_version: 1, request };
        peers.call(&cluster.address(node), &call, Instant::now() + PATIENCE).await.map(|answer| answer.reply)
    };
    let wrong = ClusterSecret::given("somebody else's");
    let (listen, ring) = (Request::Gossip(gossip::encode(&[])), Request::Ring);
    for request in [listen, read.clone(), take.clone(), forget, Request::Status, ring] {
        for node in [homes[1], holder] {
            assert_eq!(ask(&wrong, node, request.clone()).await, Err(CallError::NotSent), "{request:?}");
        }
    }
    assert_eq!(cluster.hints().await, [(holder, homes[0])], "nothing was let go of");
    // With the right one, the same questions are answered.
    let right = ClusterSecret::from_bucket(&*cluster.bucket().await, &*Seams::real().random).await.unwrap();
    assert!(matches!(ask(&right, homes[1], read).await, Ok(Reply::Found(_))));
    assert!(matches!(ask(&right, holder, take).await, Ok(Reply::Page { .. })));

    cluster.start_gateway_with(&wrong).await;
    let stranger = cluster.gateway(1);
    stranger.is_ready().await;
    let refused = stranger.get(CART).query("sloppy=false").send().await;
    assert_eq!(refused.problem(503)["quorum"]["got"], 0);
    let status = stranger.path(Method::GET, "/v1/cluster").gives(200).await.json();
    assert!(members(&status).all(|member| member["reachable"] == false), "{status}");
}
