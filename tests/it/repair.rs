//! Homes that were damaged behind everybody's back, and the command that mends them.

use serde_json::{Value, json};

use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::merkle::{MAX_DEPTH, Span};
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value as Stored, Version};
use cartwheel_core::wire::{Repair, Reply, Request};
use http::Method;

use crate::support::process::run;
use crate::support::{Cluster, in_time};

/// Partitions of these clusters.
const PARTITIONS: u32 = 64;

/// A write that only one home hears of.
fn lonely(key: &str, value: &str) -> Request {
    let dot = Dot { actor: Actor::parse("node-m.1").unwrap(), n: 1 };
    let version = Version {
        value: Stored::Present(value.to_owned().into()),
        written_ms: 1,
        expires_ms: 0,
        request: 1,
        context: Clock::new(),
        content_type: "text/plain".into(),
        meta: Vec::new(),
    };
    let record = Record {
        namespace: Namespace::new(b"carts").unwrap(),
        key: Key::new(key.to_owned().into()).unwrap(),
        container: Container::delta(&Clock::new(), dot, version),
    };
    Request::Replicate { durability: Durability::Memory, hint_for: None, record: record.encode() }
}

/// What every home of every partition says that it holds.
async fn sums(cluster: &Cluster) -> Vec<(u32, String, Vec<u64>)> {
    let ring = cluster.gateway(0).path(Method::GET, "/v1/cluster/ring").gives(200).await.json();
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        for owner in ring["owners"][partition as usize].as_array().unwrap() {
            let spans = vec![Span::of_partition(partition, PARTITIONS)];
            let asked = Request::Repair(Repair::Sums { spans, depth: MAX_DEPTH });
            let node = cluster.number(owner.as_str().unwrap());
            let Reply::Sums(sums) = cluster.call(node, asked).await else { panic!("{owner} of {partition}") };
            all.push((partition, owner.as_str().unwrap().to_owned(), sums));
        }
    }
    all
}

/// The partitions of which the homes do not hold the same.
fn differing(sums: &[(u32, String, Vec<u64>)]) -> Vec<u32> {
    let mut differing: Vec<u32> =
        sums.windows(2).filter(|w| w[0].0 == w[1].0 && w[0].2 != w[1].2).map(|w| w[0].0).collect();
    differing.dedup();
    differing
}

/// Runs `cartwheel repair` against the first gateway; its exit status, and what it printed.
async fn repair(cluster: &Cluster, arguments: &[&str]) -> (i32, String) {
    let gateway = format!("http://{}", cluster.gateway(0).address());
    let output =
        in_time("cartwheel repair", run(&[&["repair", "--gateway", &gateway], arguments].concat())).await;
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// (P4)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_makes_all_homes_equal() {
    let mut cluster = Cluster::nodes(4).start().await;
    let client = cluster.gateway(0);
    for n in 0..60 {
        client.put(&format!("carts/k{n}"), "milk").query("w=all").gives(204).await;
    }
    for n in 0..60 {
        let key = if n % 2 == 0 { format!("k{n}") } else { format!("new{n}") };
        let homes = cluster.homes("carts", &key).await;
        let reply = cluster.call(homes[n % 3], lonely(&key, "beer")).await;
        assert!(matches!(reply, Reply::Acked { .. } | Reply::Extra { .. }), "{reply:?}");
    }
    let damaged = differing(&sums(&cluster).await);
    assert!(damaged.len() > 10, "{damaged:?}");

    // One partition, by its homes alone.
    let (status, out) = repair(&cluster, &["--partition", &damaged[0].to_string(), "-o", "json"]).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, document["asked"].as_array().unwrap().len()), (0, 3), "{document}");
    assert_eq!(differing(&sums(&cluster).await), damaged[1..]);

    let (status, out) = repair(&cluster, &["-o", "json"]).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &document["unreachable"]), (0, &json!([])), "{document}");
    let nodes = document["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 4);
    assert!(nodes.iter().all(|node| node["pairs"] == node["compared"] && node["not_reached"] == json!([])));
    assert_eq!(differing(&sums(&cluster).await), [0_u32; 0]);
    for n in 0..60 {
        if n % 2 == 0 {
            let read = client.get(&format!("carts/k{n}")).query("r=1").header("accept", "application/json");
            let values: Vec<_> = read.gives(300).await.values().into_iter().flatten().collect();
            assert_eq!(values, ["beer", "milk"]);
        } else {
            let read = client.get(&format!("carts/new{n}")).query("r=1").gives(200).await;
            assert_eq!(read.text(), "beer");
        }
    }
    let (_, out) = repair(&cluster, &["-o", "json"]).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    for node in document["nodes"].as_array().unwrap() {
        assert_eq!([&node["differing"], &node["pulled"], &node["pushed"]], [0, 0, 0], "{node}");
    }

    // Whoever can't be compared with is named, and the command fails.
    let gone = cluster.id(3).to_owned();
    cluster.kill(3).await;
    let (status, out) = repair(&cluster, &["--node", cluster.id(0)]).await;
    assert_eq!(status, 1);
    assert!(out.contains(&gone), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_makes_no_sense_is_refused() {
    let cluster = Cluster::nodes(3).start().await;
    let client = cluster.gateway(0);
    let ask = |body: &str| client.path(Method::POST, "/v1/cluster/repair").body(body.to_owned());
    for (status, body, word) in [
        (400, r#"{"nodes": "node-a"}"#, "nodes"),
        (400, r#"{"partition": 64}"#, "'partition' is 64"),
        (400, r#"{"partition": "1"}"#, "'partition'"),
        (400, r#"{"node": "no such name"}"#, "'node'"),
        (404, r#"{"node": "node-z"}"#, "node-z"),
        (400, "[]", "object"),
    ] {
        let problem = ask(body).send().await.problem(status);
        assert!(problem["detail"].as_str().unwrap().contains(word), "{body}: {problem}");
    }
    ask(&" ".repeat(5000)).send().await.problem(413);
    ask("{}").query("node=node-a").send().await.problem(400);
    let refused = client.path(Method::GET, "/v1/cluster/repair").send().await;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("POST")));
    let begun = ask(r#"{"node": "node-b"}"#).gives(202).await.json();
    assert_eq!((&begun["asked"], &begun["partition"]), (&json!(["node-b"]), &Value::Null));
    let status = cluster.status(0).await;
    let asked: Vec<&Value> =
        status["members"].as_array().unwrap().iter().map(|member| &member["repair"]["asked"]).collect();
    assert_eq!(asked, [0, 1, 0], "nobody else was asked");
    let (status, _) = repair(&cluster, &["--node", "node-z"]).await;
    assert_eq!(status, 1);
}
