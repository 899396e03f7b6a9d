//! What is set for a namespace: shown, changed, refused, learned by other gateways, and kept to by data requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cartwheel_bucket::{Faults, list_all};
use cartwheel_cluster::seams::WallClock;
use http::Method;
use serde_json::{Value, json};

use crate::support::cluster::Builder;
use crate::support::http::Asking;
use crate::support::store::Kind;
use crate::support::{Answer, Client, Cluster, until};

const CARTS: &str = "/v1/namespaces/carts";

fn set(client: &Client, path: &str, settings: &Value) -> Asking {
    client.path(Method::PUT, path).body(settings.to_string())
}

fn show(client: &Client, path: &str) -> Asking {
    client.path(Method::GET, path)
}

fn builder() -> Builder {
    let soon = Duration::from_millis(60);
    Cluster::nodes(4).store(Kind::Faulty(1)).configure(|gateway| gateway.namespace_interval = soon)
}

async fn cluster(gateways: usize) -> Cluster {
    builder().gateways(gateways).start().await
}

/// A cluster whose gateways go by this clock.
async fn cluster_by(clock: &Arc<Hands>, gateways: usize) -> Cluster {
    let mut cluster = builder().found().await;
    cluster.start_nodes(&[0, 1, 2, 3]).await;
    for _ in 0..gateways {
        cluster.start_gateway_by(clock.clone()).await;
    }
    cluster.serves().await;
    cluster
}

/// A wall clock that tests set.
#[derive(Debug)]
struct Hands(AtomicU64);

impl Hands {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(1_700_000_000_000)))
    }

    fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl WallClock for Hands {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_shown_changed_and_listed() {
    let cluster = cluster(1).await;
    let client = cluster.gateway(0);
    let defaults = json!({"n": 3, "r": 2, "w": 2, "durability": "disk", "on_blind_write": "sibling",
        "conflicts": "siblings", "max_siblings": 100, "ttl": null, "sla": null});
    let shown = show(&client, CARTS).gives(200).await;
    assert_eq!((shown.json(), shown.etag()), (defaults.clone(), "\"0\""));
    assert_eq!(show(&client, "/v1/namespaces").gives(200).await.json()["namespaces"], json!([]));

    let first = set(&client, CARTS, &json!({"ttl": "168h", "r": 1})).gives(200).await;
    let mut wanted = defaults.clone();
    (wanted["ttl"], wanted["r"]) = ("7d".into(), 1.into());
    assert_eq!((first.json(), first.etag()), (wanted.clone(), "\"1\""));
    assert!(first.must("last-modified").ends_with(" GMT"));
    let shown = show(&client, CARTS).gives(200).await;
    assert_eq!((shown.json(), shown.etag()), (wanted.clone(), "\"1\""));
    show(&client, CARTS).header("if-none-match", "\"1\"").gives(304).await;

    // What was shown can be sent back; a version that is no longer the newest can't be replaced.
    let again = set(&client, CARTS, &wanted).header("if-match", "\"1\"").gives(200).await;
    assert_eq!((again.json(), again.etag()), (wanted, "\"2\""));
    let late = set(&client, CARTS, &json!({})).header("if-match", "\"1\"").send().await;
    late.refused(412, &["\"2\""]);
    set(&client, CARTS, &json!({})).header("if-none-match", "*").send().await.refused(412, &["\"2\""]);
    set(&client, "/v1/namespaces/a", &json!({}))
        .header("if-match", "*")
        .send()
        .await
        .refused(412, &["\"0\""]);
    set(&client, "/v1/namespaces/a", &json!({})).header("if-match", "\"0\"").gives(200).await;
    // A field that is left out has its default.
    assert_eq!(set(&client, CARTS, &json!({})).gives(200).await.json(), defaults);
    set(&client, CARTS, &json!({"w": 3})).gives(200).await;
    assert_eq!(set(&client, CARTS, &json!({"w": 1})).gives(200).await.etag(), "\"5\"");

    let list = show(&client, "/v1/namespaces").gives(200).await.json();
    assert_eq!(list["more"], false);
    let entry = |at: usize| (&list["namespaces"][at]["namespace"], &list["namespaces"][at]["version"]);
    assert_eq!((entry(0), entry(1)), ((&json!("a"), &json!(1)), (&json!("carts"), &json!(5))));
    assert_eq!(list["namespaces"][1]["settings"]["w"], 1);
    let page = show(&client, "/v1/namespaces").query("limit=1").gives(200).await.json();
    assert_eq!((&page["namespaces"][0]["namespace"], &page["more"]), (&json!("a"), &json!(true)));
    let page = show(&client, "/v1/namespaces").query("after=a").gives(200).await.json();
    assert_eq!((&page["namespaces"][0]["namespace"], &page["more"]), (&json!("carts"), &json!(false)));

    let objects = list_all(&*cluster.bucket().await, "namespaces/carts/").await.unwrap();
    let names: Vec<&str> = objects.iter().map(|object| object.key.rsplit_once('/').unwrap().1).collect();
    assert_eq!(names, ["0000000002.json", "0000000003.json", "0000000004.json", "0000000005.json"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_set_is_refused_by_name() {
    let cluster = cluster(1).await;
    let client = cluster.gateway(0);
    for (settings, words) in [
        (json!({"rr": 1}), &["'rr'"][..]),
        (json!({"r": 4}), &["'r'", "1 to 3"]),
        (json!({"n": 5}), &["'n'", "this build supports only 3"]),
        (json!({"conflicts": "last_write_wins"}), &["'conflicts'", "siblings"]),
        (json!({"on_blind_write": "replace"}), &["'on_blind_write'", "reject"]),
        (json!({"sla": {"percentile": 99.9}}), &["'sla'", "this build supports only null"]),
        (json!({"ttl": "10ms"}), &["'ttl'", "from 1s to 3650d"]),
        (json!([]), &["object"]),
    ] {
        set(&client, CARTS, &settings).send().await.refused(400, words);
    }
    let much = json!({ "x".repeat(20_000): 1 });
    set(&client, CARTS, &much).send().await.refused(413, &["16384"]);
    set(&client, "/v1/namespaces/Carts", &json!({})).send().await.refused(400, &["namespace"]);
    set(&client, CARTS, &json!({})).query("x=1").send().await.refused(400, &["query"]);
    show(&client, "/v1/namespaces").query("prefix=a").send().await.refused(400, &["after and limit"]);
    let deleted = client.path(Method::DELETE, CARTS).send().await;
    assert_eq!((deleted.status, deleted.must("allow")), (405, "GET, HEAD, PUT"));
    assert_eq!(show(&client, CARTS).gives(200).await.etag(), "\"0\"", "nothing was set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_requests_take_what_is_set_and_other_gateways_learn_it() {
    let cluster = cluster(2).await;
    let (client, other) = (cluster.gateway(0), cluster.gateway(1));
    set(&client, CARTS, &json!({"r": 1, "w": 3, "durability": "memory"})).gives(200).await;
    let required = |answer: &Answer| answer.quorum("required").to_owned();
    // Both use it at once: the one took it, the other meets the namespace for the first time.
    for gateway in [&client, &other] {
        let write = gateway.put("carts/alice", "milk").header("idempotency-key", "1").gives(204).await;
        assert_eq!((write.quorum("required"), write.quorum("durability")), ("3", "memory"));
        assert_eq!(required(&gateway.get("carts/alice").gives(200).await), "1");
        assert_eq!(
            required(&gateway.get("carts/alice").query("r=2").gives(200).await),
            "2",
            "a request says more"
        );
        assert_eq!(
            required(&gateway.put("plain/a", "x").gives(204).await),
            "2",
            "other namespaces are as before"
        );
    }
    set(&client, CARTS, &json!({"r": 3})).gives(200).await;
    assert_eq!(required(&client.get("carts/alice").gives(200).await), "3");
    until("the other gateway learns of the change", || async {
        (required(&other.get("carts/alice").gives(200).await) == "3").then_some(())
    })
    .await;

    // The cap on siblings is the namespace's, too.
    set(&client, CARTS, &json!({"max_siblings": 2})).gives(200).await;
    client.put("carts/bob", "milk").gives(204).await;
    client.put("carts/bob", "eggs").gives(204).await;
    client.put("carts/bob", "rice").send().await.refused(409, &["max_siblings = 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_can_refuse_blind_writes() {
    let cluster = cluster(1).await;
    let client = cluster.gateway(0);
    set(&client, CARTS, &json!({"on_blind_write": "reject"})).gives(200).await;
    let refused = client.put("carts/alice", "milk").send().await;
    refused.refused(428, &["Vector-Clock", "on_blind_write", "If-None-Match"]);
    client.delete("carts/alice").send().await.refused(428, &["Vector-Clock"]);
    client.get("carts/alice").gives(404).await;
    let first = client.put("carts/alice", "milk").header("if-none-match", "*").gives(204).await;
    client.put("carts/alice", "beer").header("if-match", first.etag()).send().await.refused(428, &[]);
    client.put("carts/alice", "eggs").seen(&first).gives(204).await;
    let read = client.get("carts/alice").gives(200).await;
    assert_eq!(read.text(), "eggs");
    client.delete("carts/alice").seen(&read).gives(204).await;
    client.get("carts/alice").gives(404).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_end_when_their_time_to_live_has_passed() {
    let clock = Hands::new();
    let cluster = cluster_by(&clock, 2).await;
    let (client, other) = (cluster.gateway(0), cluster.gateway(1));
    client.put("carts/before", "stays").gives(204).await;
    set(&client, CARTS, &json!({"ttl": "90s"})).gives(200).await;
    let write = client.put("carts/alice", "milk").query("return=value").gives(200).await;
    let ends = "Tue, 14 Nov 2023 22:14:50 GMT";
    assert_eq!((write.text(), write.must("expires")), ("milk", ends));

    clock.advance(89_999);
    for gateway in [&client, &other] {
        let read = gateway.get("carts/alice").gives(200).await;
        assert_eq!(
            (read.text(), read.must("expires"), read.must("cache-control")),
            ("milk", ends, "no-cache")
        );
        assert_eq!(gateway.head("carts/alice").gives(200).await.must("expires"), ends);
    }
    let fresh = client.put("carts/alice", "eggs").gives(204).await;
    let both = client.get("carts/alice").gives(300).await;
    assert_eq!(both.values(), [Some("eggs".to_owned()), Some("milk".to_owned())]);

    clock.advance(1);
    for gateway in [&client, &other] {
        let read = gateway.get("carts/alice").gives(300).await;
        assert_eq!(read.values(), [None, Some("eggs".to_owned())], "one has ended, and is a deletion now");
        let json = gateway.get("carts/alice").header("accept", "application/json").gives(300).await;
        assert_eq!(json.values(), read.values());
        assert_eq!((json.clock(), json.etag()), (both.clock(), both.etag()), "they are the same versions");
        let tag = write.etag().trim_matches('"').to_owned();
        let ended = gateway.get("carts/alice").query(&format!("sibling={tag}")).gives(200).await;
        assert_eq!((ended.must("cartwheel-deleted"), ended.body.len()), ("?1", 0));
        assert_eq!(ended.header("expires"), None);
    }

    clock.advance(90_000);
    for gateway in [&client, &other] {
        for gone in
            [gateway.get("carts/alice").gives(404).await, gateway.head("carts/alice").gives(404).await]
        {
            assert_eq!((gone.must("cartwheel-deleted"), gone.clock()), ("?1", both.clock()));
            assert_eq!(gone.header("expires"), None);
        }
        gateway.get("carts/alice").header("if-match", "*").gives(412).await;
        assert_eq!(gateway.get("carts/before").gives(200).await.header("expires"), None);
    }
    assert_ne!(fresh.etag(), both.etag());

    // With the clock of what has ended, a write replaces it; and a deletion stays one, whatever time it is.
    let gone = client.get("carts/alice").gives(404).await;
    let anew = client.put("carts/alice", "rice").seen(&gone).gives(204).await;
    assert_eq!(other.get("carts/alice").gives(200).await.text(), "rice");
    client.delete("carts/alice").seen(&anew).gives(204).await;
    set(&client, CARTS, &json!({})).gives(200).await;
    clock.advance(1_000_000);
    assert_eq!(client.get("carts/alice").gives(404).await.must("cartwheel-deleted"), "?1");
    assert_eq!(client.put("carts/bob", "x").query("return=value").gives(200).await.header("expires"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_end_in_answers_from_the_bucket_alone_too() {
    let clock = Hands::new();
    let mut cluster = cluster_by(&clock, 1).await;
    let client = cluster.gateway(0);
    set(&client, CARTS, &json!({"ttl": "1s"})).gives(200).await;
    let write = client.put("carts/alice", "milk").query("durability=bucket").gives(204).await;
    cluster.kill_all().await;
    let read = client.get("carts/alice").gives(200).await;
    assert!(read.header("cartwheel-degraded").is_some());
    client.put("carts/alice", "eggs").header("if-none-match", "*").gives(412).await;
    clock.advance(1000);
    let gone = client.get("carts/alice").gives(404).await;
    assert_eq!((gone.must("cartwheel-deleted"), gone.clock()), ("?1", write.clock()));
    assert!(gone.header("cartwheel-degraded").is_some());
    // There is nothing any more that the condition forbids to write over.
    client.put("carts/alice", "eggs").header("if-none-match", "*").seen(&gone).gives(204).await;
    assert_eq!(client.get("carts/alice").gives(200).await.text(), "eggs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_bucket_writes_are_taken_with_what_is_known() {
    let cluster = cluster(1).await;
    let client = cluster.gateway(0);
    for namespace in ["met", "unmet"] {
        let path = format!("/v1/namespaces/{namespace}");
        set(&client, &path, &json!({"w": 3})).gives(200).await;
    }
    assert_eq!(client.put("met/a", "x").gives(204).await.quorum("required"), "3");
    let mut cluster = cluster;
    cluster.start_gateway().await;
    cluster.gateway_reaches(1, 4).await;
    let other = cluster.gateway(1);
    assert_eq!(other.put("met/a", "x").gives(204).await.quorum("required"), "3");
    cluster.faults().set(Faults { unavailable: true, ..Faults::default() });
    assert_eq!(other.put("met/a", "x").gives(204).await.quorum("required"), "3", "the last known settings");
    assert_eq!(other.put("unmet/a", "x").gives(204).await.quorum("required"), "2", "the defaults");
    set(&other, CARTS, &json!({})).send().await.refused(503, &["unavailable"]);
    show(&other, CARTS).send().await.problem(503);
    show(&other, "/v1/namespaces").send().await.problem(503);

    cluster.faults().set(Faults::default());
    until("the settings are learned", || async {
        (other.put("unmet/a", "x").gives(204).await.quorum("required") == "3").then_some(())
    })
    .await;
}
