//! The contract for data requests, row by row: statuses, headers, forms.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use cartwheel_bucket::{CERTAIN, Faults, OperationFaults, list_all};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::store::Kind;
use crate::support::{Answer, Client, Cluster};

async fn cluster() -> (Cluster, Client) {
    let cluster = Cluster::nodes(4).store(Kind::Memory).start().await;
    let client = cluster.gateway(0);
    (cluster, client)
}

fn values(answer: &Answer) -> Vec<Option<String>> {
    answer.values()
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_says_what_it_made_and_a_read_returns_it_whole() {
    let (_cluster, client) = cluster().await;
    let write = client
        .put("carts/alice", "milk")
        .header("content-type", "text/x-cart; v=1")
        .header("cartwheel-meta-colour", "red")
        .header("cartwheel-meta-shop", "7")
        .gives(204)
        .await;
    assert!(write.body.is_empty());
    let (actor, n) = write.dot().split_once('=').unwrap();
    assert!(actor.starts_with("node-") && actor.ends_with(".1") && n == "1", "{}", write.dot());
    assert!(write.clock().starts_with(&format!("{}, mac=:", write.dot())), "{}", write.clock());
    assert_eq!((write.quorum("op"), write.quorum("n"), write.quorum("required")), ("write", "3", "2"));
    assert_eq!((write.quorum("fallback"), write.quorum("durability")), ("0", "disk"));
    assert!(["2", "3"].contains(&write.quorum("answered")));
    assert!(write.must("server-timing").contains("gateway;dur="));
    assert!(write.must("server-timing").contains("replicas;dur="));

    let read = client.get("carts/alice").gives(200).await;
    assert_eq!(read.text(), "milk");
    assert_eq!(read.must("content-type"), "text/x-cart; v=1");
    assert_eq!((read.must("cartwheel-meta-colour"), read.must("cartwheel-meta-shop")), ("red", "7"));
    assert_eq!((read.etag(), read.clock()), (write.etag(), write.clock()));
    assert!(read.must("last-modified").ends_with(" GMT"));
    assert_eq!(read.must("content-length"), "4");
    assert_eq!((read.quorum("op"), read.quorum("n"), read.quorum("required")), ("read", "3", "2"));
    assert!(read.must("server-timing").contains("replicas;dur="));
    assert_eq!(read.header("dot"), None, "dots are of writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_any_bytes_from_none_to_the_limit() {
    let (_cluster, client) = cluster().await;
    client.put("bytes/none", "").gives(204).await;
    let read = client.get("bytes/none").gives(200).await;
    assert!(read.body.is_empty());
    assert_eq!(read.must("content-type"), "application/octet-stream", "nothing was said of its type");
    let all: Bytes = (0..1024 * 1024).map(|n: usize| n.to_le_bytes()[n % 3]).collect();
    client.put("bytes/all", all.clone()).gives(204).await;
    assert_eq!(client.get("bytes/all").gives(200).await.body, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_any_bytes_decoded_once() {
    let (_cluster, client) = cluster().await;
    let keys = [
        "a",
        "a/b",
        "a//b",
        "a/",
        "/a",
        "%00",
        "%ff%fe",
        "%25zz",
        "%2500",
        ".",
        "..%2Fa",
        "%20",
        "+",
        "%C3%A4",
        "a%3Fb",
        "a%23b",
        "~!$&'()*,;=:@",
    ];
    for (at, key) in keys.iter().enumerate() {
        client.put(&format!("keys/{key}"), at.to_string()).gives(204).await;
    }
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(client.get(&format!("keys/{key}")).gives(200).await.text(), at.to_string(), "{key}");
    }
    for (same, key) in [("a%2Fb", "a/b"), ("%61", "a"), ("%2e", "."), ("%c3%a4", "%C3%A4"), ("%2B", "+")] {
        let (one, other) = (client.get(&format!("keys/{same}")), client.get(&format!("keys/{key}")));
        assert_eq!(one.gives(200).await.body, other.gives(200).await.body, "{same} is {key}");
    }
    let longest = "k".repeat(1024);
    client.put(&format!("keys/{longest}"), "long").gives(204).await;
    assert_eq!(client.get(&format!("keys/{}", "%6b".repeat(1024))).gives(200).await.text(), "long");
    client.get("other/a").gives(404).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_says_what_get_says_without_the_value() {
    let (_cluster, client) = cluster().await;
    client.put("head/one", "milk").header("content-type", "text/plain").gives(204).await;
    client.put("head/two", "milk").gives(204).await;
    client.put("head/two", "a longer one").gives(204).await;
    for (key, status) in [("head/one", 200), ("head/two", 300), ("head/none", 404)] {
        let (get, head) = (client.get(key).gives(status).await, client.head(key).gives(status).await);
        assert!(head.body.is_empty(), "{key}");
        for name in ["etag", "vector-clock", "content-type", "last-modified", "cartwheel-deleted"] {
            // The boundary of a multipart body is free.
            let plain = |answer: &Answer| {
                answer.header(name).map(|v| v.split("; boundary").next().unwrap().to_owned())
            };
            assert_eq!(plain(&get), plain(&head), "{name} of {key}");
        }
        let length = head.header("content-length");
        assert!(length.is_none() || length == get.header("content-length"), "{key}: {length:?}");
    }
    assert_eq!(client.head("head/one").gives(200).await.must("content-length"), "4");
    client.delete("head/one").gives(204).await;
    assert_eq!(client.head("head/one").gives(404).await.must("cartwheel-deleted"), "?1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn siblings_come_as_multipart_or_json_and_only_accept_decides() {
    let (_cluster, client) = cluster().await;
    let first = client
        .put("carts/alice", "milk\r\n--x")
        .header("content-type", "text/plain")
        .header("cartwheel-meta-from", "phone")
        .gives(204)
        .await;
    let second = client.put("carts/alice", "bread").header("content-type", "text/html").gives(204).await;
    let multipart = client.get("carts/alice").gives(300).await;
    assert!(multipart.must("content-type").starts_with("multipart/mixed; boundary="));
    let json = client.get("carts/alice").header("accept", "application/json").gives(300).await;
    assert_eq!(json.must("content-type"), "application/json");
    assert_eq!((multipart.etag(), multipart.clock()), (json.etag(), json.clock()));
    assert!(![first.etag(), second.etag()].contains(&json.etag()), "the tag is the whole set's");
    for answer in [&multipart, &json] {
        assert_eq!(values(answer), [text("bread"), text("milk\r\n--x")]);
        for part in answer.siblings() {
            let write = if part.value == text("bread") { &second } else { &first };
            assert_eq!(
                (part.headers["dot"].as_str(), part.headers["etag"].as_str()),
                (write.dot(), write.etag())
            );
            assert!(part.headers["last-modified"].ends_with(" GMT"));
            let is_first = write.dot() == first.dot();
            assert_eq!(part.headers["content-type"], if is_first { "text/plain" } else { "text/html" });
            assert_eq!(part.headers.contains_key("cartwheel-meta-from"), is_first);
        }
    }
    client.put("carts/bob", "[1]").gives(204).await;
    let one = client.get("carts/bob").header("accept", "application/json").gives(200).await;
    assert_eq!(one.text(), "[1]", "a single value comes as it was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binary_siblings_are_base64_in_json() {
    let (_cluster, client) = cluster().await;
    client.put("bin/a", Bytes::from_static(&[0xff, 0x00])).gives(204).await;
    client.put("bin/a", "text").gives(204).await;
    let json = client.get("bin/a").header("accept", "application/json").gives(300).await.json();
    let list = json.as_array().unwrap();
    let encoded: Vec<_> = list.iter().filter_map(|s| s.get("value_base64")?.as_str()).collect();
    let plain: Vec<_> = list.iter().filter_map(|s| s.get("value")?.as_str()).collect();
    assert_eq!((encoded, plain), (vec!["/wA="], vec!["text"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sibling_can_be_picked_and_comes_with_the_whole_sets_clock() {
    let (_cluster, client) = cluster().await;
    let milk = client.put("carts/alice", "milk").gives(204).await;
    client.put("carts/alice", "bread").gives(204).await;
    let all = client.get("carts/alice").gives(300).await;
    let quoted = milk.etag().replace('"', "%22");
    for tag in [quoted.as_str(), milk.etag().trim_matches('"')] {
        let one = client.get("carts/alice").query(&format!("sibling={tag}")).gives(200).await;
        assert_eq!((one.text(), one.etag()), ("milk", milk.etag()));
        assert_eq!(one.clock(), all.clock());
    }
    client.get("carts/alice").query("sibling=nobody").send().await.problem(404);
    // Written with that clock, it replaces the set.
    let one = client.get("carts/alice").query(&format!("sibling={quoted}")).gives(200).await;
    client.put("carts/alice", "milk it is").seen(&one).gives(204).await;
    assert_eq!(client.get("carts/alice").gives(200).await.text(), "milk it is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_concurrent_with_a_value_is_shown_with_it() {
    let (_cluster, client) = cluster().await;
    let milk = client.put("carts/alice", "milk").gives(204).await;
    client.put("carts/alice", "bread").gives(204).await;
    let gone = client.delete("carts/alice").seen(&milk).gives(204).await;
    for accept in ["*/*", "application/json"] {
        let both = client.get("carts/alice").header("accept", accept).gives(300).await;
        assert_eq!(values(&both), [None, text("bread")]);
        let deleted = both.siblings().into_iter().find(|part| part.value.is_none()).unwrap();
        assert_eq!(
            (deleted.headers["cartwheel-deleted"].as_str(), deleted.headers["dot"].as_str()),
            ("?1", gone.dot())
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_and_never_seen_are_told_apart() {
    let (_cluster, client) = cluster().await;
    let never = client.get("carts/alice").gives(404).await;
    never.problem(404);
    assert_eq!((never.header("vector-clock"), never.header("cartwheel-deleted")), (None, None));
    assert_eq!(never.quorum("op"), "read");

    client.put("carts/alice", "milk").gives(204).await;
    let read = client.get("carts/alice").gives(200).await;
    let gone = client.delete("carts/alice").seen(&read).gives(204).await;
    assert!(gone.body.is_empty());
    assert_ne!(gone.dot(), "");
    let deleted = client.get("carts/alice").gives(404).await;
    deleted.problem(404);
    assert_eq!(deleted.must("cartwheel-deleted"), "?1");
    client.put("carts/alice", "again").seen(&deleted).gives(204).await;
    assert_eq!(client.get("carts/alice").gives(200).await.text(), "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_without_a_clock_deletes_what_is_there() {
    let (_cluster, client) = cluster().await;
    client.put("carts/alice", "milk").gives(204).await;
    client.put("carts/alice", "bread").gives(204).await;
    client.delete("carts/alice").gives(204).await;
    assert_eq!(client.get("carts/alice").gives(404).await.must("cartwheel-deleted"), "?1");
    client.delete("carts/never").gives(204).await;
    client.get("carts/never").gives(404).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blind_write_after_a_deletion_lives_beside_it_until_merged() {
    let (_cluster, client) = cluster().await;
    client.put("carts/alice", "milk").gives(204).await;
    client.delete("carts/alice").gives(204).await;
    client.put("carts/alice", "bread").gives(204).await;
    let both = client.get("carts/alice").gives(300).await;
    assert_eq!(values(&both), [None, text("bread")]);
    client.put("carts/alice", "bread").seen(&both).gives(204).await;
    assert_eq!(client.get("carts/alice").gives(200).await.text(), "bread");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_honour_preconditions() {
    let (_cluster, client) = cluster().await;
    let write = client.put("carts/alice", "milk").gives(204).await;
    for tags in [write.etag().to_owned(), format!("\"other\", W/{}", write.etag()), "*".to_owned()] {
        let same = client.get("carts/alice").header("if-none-match", &tags).gives(304).await;
        assert!(same.body.is_empty());
        assert_eq!((same.etag(), same.clock()), (write.etag(), write.clock()));
        client.head("carts/alice").header("if-none-match", &tags).gives(304).await;
        client.get("carts/alice").header("if-match", &tags).gives(200).await;
    }
    client.get("carts/alice").header("if-none-match", "\"other\"").gives(200).await;
    client.get("carts/alice").header("if-match", "\"other\"").send().await.problem(412);
    client.put("carts/alice", "bread").gives(204).await;
    let set = client.get("carts/alice").header("if-none-match", write.etag()).gives(300).await;
    client.get("carts/alice").header("if-none-match", set.etag()).gives(304).await;
    client.get("carts/never").header("if-none-match", "*").gives(404).await;
    client.get("carts/never").header("if-match", "*").send().await.problem(412);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_honour_preconditions() {
    let (_cluster, client) = cluster().await;
    let refused = |answer: Answer| {
        answer.refused(412, &["If-Match or If-None-Match"]);
        assert_eq!((answer.quorum("op"), answer.quorum("answered")), ("write", "0"));
        assert!(answer.header("server-timing").is_some());
        answer
    };
    refused(client.put("carts/alice", "x").header("if-match", "*").send().await);
    client.get("carts/alice").gives(404).await;
    let milk = client.put("carts/alice", "milk").header("if-none-match", "*").gives(204).await;
    let told = refused(client.put("carts/alice", "x").header("if-none-match", "*").send().await);
    assert_eq!(told.clock(), milk.clock(), "the clock to go on from");
    let bread =
        client.put("carts/alice", "bread").seen(&milk).header("if-match", milk.etag()).gives(204).await;
    refused(client.put("carts/alice", "x").seen(&milk).header("if-match", milk.etag()).send().await);
    refused(client.delete("carts/alice").seen(&bread).header("if-match", milk.etag()).send().await);
    assert_eq!(client.get("carts/alice").gives(200).await.text(), "bread", "what was refused left no trace");
    client.delete("carts/alice").seen(&bread).header("if-match", bread.etag()).gives(204).await;
    let again = client.put("carts/alice", "again").header("if-none-match", "*").gives(204).await;
    assert_ne!(again.dot(), milk.dot());
    let both = client.put("carts/alice", "x").header("if-match", "*").header("if-none-match", "*");
    both.send().await.refused(400, &["If-Match and If-None-Match"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racing_creates_of_a_new_key_one_wins() {
    let cluster = Cluster::nodes(4).gateways(2).store(Kind::Memory).start().await;
    let create = |n: usize| {
        let client = cluster.gateway(n % 2);
        async move { client.put("lock/a", n.to_string()).header("if-none-match", "*").send().await }
    };
    let answers = futures_util::future::join_all((0..12).map(create)).await;
    let won: Vec<_> = answers.iter().filter(|a| a.status == 204).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    for lost in answers.iter().filter(|a| a.status != 204) {
        lost.refused(412, &[]);
    }
    assert_eq!(cluster.gateway(0).get("lock/a").gives(200).await.etag(), won[0].etag());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn siblings_are_capped_and_nothing_is_dropped() {
    let (_cluster, client) = cluster().await;
    for n in 0..100 {
        client.put("cap/a", n.to_string()).gives(204).await;
    }
    let full = client.put("cap/a", "one too many").send().await;
    full.refused(409, &["max_siblings = 100"]);
    assert_eq!(full.quorum("op"), "write");
    let all = client.get("cap/a").header("accept", "application/json").gives(300).await;
    assert_eq!(all.siblings().len(), 100);
    // The refusal carries the context that makes the next write possible.
    client.put("cap/a", "settled").seen(&full).gives(204).await;
    assert_eq!(client.get("cap/a").gives(200).await.text(), "settled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_idempotency_key_is_the_same_write() {
    let cluster = Cluster::nodes(4).gateways(2).store(Kind::Memory).start().await;
    let (one, other) = (cluster.gateway(0), cluster.gateway(1));
    let put =
        |client: &Client, key: &str, name: &str| client.put(key, "milk").header("idempotency-key", name);
    let first = put(&one, "carts/alice", "order-1").gives(204).await;
    let again = put(&other, "carts/alice", "order-1").gives(204).await;
    assert_eq!((first.dot(), first.clock(), first.etag()), (again.dot(), again.clock(), again.etag()));
    one.get("carts/alice").gives(200).await;
    let third = put(&one, "carts/alice", "order-2").gives(204).await;
    assert_ne!(third.dot(), first.dot());
    assert_eq!(one.get("carts/alice").gives(300).await.siblings().len(), 2);
    put(&one, "carts/bob", "order-1").gives(204).await;
    one.get("carts/bob").gives(200).await;
    // Deletions too.
    let delete = || other.delete("carts/bob").header("idempotency-key", "gone-1").gives(204);
    assert_eq!(delete().await.dot(), delete().await.dot());
    // Another value, or a deletion, under the same name is another write: it must not be lost.
    let bread = one.put("carts/carol", "bread").header("idempotency-key", "order-3").gives(204).await;
    let rice =
        one.put("carts/carol", "rice").header("idempotency-key", "order-3").seen(&bread).gives(204).await;
    assert_eq!(one.get("carts/carol").gives(200).await.text(), "rice");
    one.delete("carts/carol").header("idempotency-key", "order-3").seen(&rice).gives(204).await;
    one.get("carts/carol").gives(404).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_value_answers_a_write_with_what_is_there_now() {
    let (_cluster, client) = cluster().await;
    let milk = client.put("carts/alice", "milk").query("return=value").gives(200).await;
    assert_eq!(milk.text(), "milk");
    assert_eq!(milk.quorum("op"), "write");
    assert!(milk.clock().starts_with(milk.dot()));
    let both = client.put("carts/alice", "bread").query("return=value&r=1&w=1");
    let both = both.header("accept", "application/json").gives(200).await;
    let dots: BTreeSet<&str> = [milk.dot(), both.dot()].into();
    let json = both.json();
    let seen: BTreeSet<&str> = json.as_array().unwrap().iter().map(|s| s["dot"].as_str().unwrap()).collect();
    assert_eq!(seen, dots, "both siblings, the new one in any case");
    let all = client.get("carts/alice").gives(300).await;
    assert_eq!(both.clock(), all.clock(), "the clock is of all that was returned");
    let gone = client.delete("carts/alice").seen(&all).query("return=value").gives(204).await;
    assert!(gone.body.is_empty());
    assert_eq!(gone.must("cartwheel-deleted"), "?1");
    client.get("carts/alice").gives(404).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_of_a_read_is_a_floor_under_the_answer() {
    let mut cluster = Cluster::nodes(4).store(Kind::Memory).start().await;
    let client = cluster.gateway(0);
    let old = client.put("carts/alice", "old").query("w=all").gives(204).await;
    let homes = cluster.homes("carts", "alice").await;
    // Nobody stands in, and a clean end leaves nothing to ask for: the home can't know what it missed.
    cluster.stop(homes[0]).await;
    let new = client.put("carts/alice", "new").seen(&old).query("sloppy=false").gives(204).await;
    cluster.start_node(homes[0]).await;
    cluster.serves().await;
    // The first home holds the old value; asked for at least the new clock, the read goes on to the others.
    // A HEAD, because it repairs nothing.
    let read = client.head("carts/alice").query("r=1").seen(&new).gives(200).await;
    assert_eq!((read.etag(), read.header("stale")), (new.etag(), None));
    for home in &homes[1..] {
        cluster.kill(*home).await;
    }
    let read = client.get("carts/alice").query("r=1").seen(&new).gives(200).await;
    assert_eq!((read.text(), read.must("stale")), ("old", "?1"), "said, as nobody else can be asked");
    let read = client.get("carts/alice").query("r=1").seen(&old).gives(200).await;
    assert_eq!((read.text(), read.header("stale")), ("old", None), "this floor is covered");
}

/// Behind a balancer that has not noticed a restart: what comes before the ring is known waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_has_just_started_answers_once_it_knows_the_ring() {
    let mut cluster = Cluster::nodes(3).store(Kind::Faulty(1)).start().await;
    let list = OperationFaults { slow: CERTAIN, ..OperationFaults::default() };
    cluster.faults().set(Faults { list, slow_by: Duration::from_millis(300), ..Faults::default() });
    cluster.start_gateway().await;
    cluster.gateway(1).put("carts/alice", "milk").gives(204).await;
    assert_eq!(cluster.gateway(0).get("carts/alice").gives(200).await.text(), "milk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durability_is_stated_as_reached() {
    let cluster = Cluster::nodes(4).store(Kind::Faulty(1)).start().await;
    let client = cluster.gateway(0);
    let bucket = cluster.bucket().await;
    let segments = async || {
        list_all(&*bucket, "nodes/").await.unwrap().iter().filter(|o| o.key.ends_with(".seg")).count()
    };
    let at = |level: &str| client.put("levels/a", "x").query(&format!("durability={level}"));
    let memory = at("memory").gives(204).await;
    assert!(["memory", "disk"].contains(&memory.quorum("durability")), "{memory:?}");
    assert_eq!(at("disk").gives(204).await.quorum("durability"), "disk");
    assert_eq!(segments().await, 0, "nobody has asked for the bucket");
    assert_eq!(at("bucket").gives(204).await.quorum("durability"), "bucket");
    assert!(segments().await >= 2, "two acknowledgements counted");

    // Without a bucket the lower levels are served, and the highest is not claimed.
    cluster.faults().set(Faults { unavailable: true, ..Faults::default() });
    assert_eq!(at("disk").gives(204).await.quorum("durability"), "disk");
    // The bucket was asked to stand in, in the last quarter of the time.
    let problem = at("bucket").query("deadline=300ms").send().await.problem(503);
    assert_eq!(problem["applied"], "unknown", "it is in memory and may get there: {problem}");
    cluster.faults().set(Faults::default());
    assert_eq!(at("bucket").gives(204).await.quorum("durability"), "bucket");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_with_prior_knowledge_works() {
    let (_cluster, client) = cluster().await;
    let stream = tokio::net::TcpStream::connect(client.address()).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let uri = |n: usize| format!("http://{}/v1/kv/h2/{n}", client.address());
    let write = |n: usize| {
        let mut sender = sender.clone();
        let request = Request::put(uri(n)).body(Full::new(Bytes::from(n.to_string()))).unwrap();
        async move { sender.send_request(request).await.unwrap().status() }
    };
    let statuses = futures_util::future::join_all((0..50).map(write)).await;
    assert!(statuses.iter().all(|status| *status == 204), "{statuses:?}");
    for n in 0..50 {
        let request = Request::get(uri(n)).body(Full::new(Bytes::new())).unwrap();
        let answer = sender.clone().send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), n.to_string());
    }
    assert_eq!(client.get("h2/7").gives(200).await.text(), "7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_paths_answer() {
    let (cluster, client) = cluster().await;
    let path = |path: &str| client.path(Method::GET, path);
    assert_eq!(path("/healthz").gives(200).await.text(), "ok\n");
    assert_eq!(path("/readyz").gives(200).await.text(), "ready\n");
    let status = path("/v1/cluster").gives(200).await.json();
    assert_eq!((status["replicas"].as_u64(), status["partitions"].as_u64()), (Some(3), Some(64)));
    for member in status["members"].as_array().unwrap() {
        assert_eq!((&member["state"], &member["reachable"]), (&"active".into(), &true.into()), "{member}");
        assert!(member["incarnation"].as_str().unwrap().starts_with("1-"), "{member}");
    }
    client.put("carts/a%2Fb", "x").query("w=all").gives(204).await;
    let location = cluster.locate("carts", "a%2Fb").await;
    assert_eq!(location["key"], "a/b");
    for holder in location["holders"].as_array().unwrap() {
        assert_eq!((&holder["answer"], &holder["siblings"]), (&"held".into(), &1.into()), "{holder}");
    }
    for bad in ["", "?namespace=a", "?key=a", "?namespace=a&key=b&key=c", "?namespace=a&key=b&x=1"] {
        path(&format!("/v1/cluster/locate{bad}")).send().await.problem(400);
    }
    for nowhere in ["/", "/v1", "/v1/kv/", "/v2/kv/a/b", "/v1/kv"] {
        path(nowhere).send().await.problem(404);
    }
    for path in ["/v1/cluster", "/v1/cluster/ring", "/v1/cluster/locate", "/readyz", "/healthz"] {
        let answer = client.path(Method::DELETE, path).send().await;
        answer.problem(405);
        assert!(answer.must("allow").contains("GET"), "{path}");
    }
}
