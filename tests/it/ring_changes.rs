//! Changes of the membership by operators: planned, applied at the version that was planned, refused by name, and
//! carried out while clients go on.

use std::sync::Arc;

use cartwheel_bucket::{Faults, FaultyBucket};
use http::Method;
use serde_json::{Value, json};

use crate::support::cluster::members;
use crate::support::http::Asking;
use crate::support::store::Kind;
use crate::support::{Client, Cluster, until};

const PLAN: &str = "/v1/cluster/plan";
const APPLY: &str = "/v1/cluster/apply";

fn post(client: &Client, path: &str, body: &Value) -> Asking {
    client.path(Method::POST, path).body(body.to_string())
}

async fn ring(client: &Client) -> Value {
    client.path(Method::GET, "/v1/cluster/ring").gives(200).await.json()
}

/// The ring once it is at least at this version and no change is pending.
async fn settled(client: &Client, version: u64) -> Value {
    until("the change is settled", || async {
        let ring = ring(client).await;
        let there = ring["version"].as_u64().unwrap() >= version && ring["pending_change"].is_null();
        there.then_some(ring)
    })
    .await
}

fn member<'a>(ring: &'a Value, id: &str) -> &'a Value {
    members(ring).find(|m| m["id"] == id).unwrap_or_else(|| panic!("{id} is not in {ring}"))
}

async fn fill(client: &Client) {
    for number in 0..40 {
        client.put(&format!("carts/{number}"), format!("value {number}")).query("w=all").gives(204).await;
    }
}

async fn all_is_there(client: &Client) {
    for number in 0..40 {
        let value = client.get(&format!("carts/{number}")).gives(200).await;
        assert_eq!(value.text(), format!("value {number}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_changes_nothing_and_a_weight_moves_what_was_planned() {
    let cluster = Cluster::nodes(4).store(Kind::Memory).start().await;
    let client = cluster.gateway(0);
    fill(&client).await;
    let before = ring(&client).await;
    assert_eq!((&before["version"], &before["pending_change"]), (&json!(1), &Value::Null));
    assert!(before["efficiency_permille"].as_u64().unwrap() > 900);
    // Every key has three copies; w=all waited for all of them.
    let keys: u64 = members(&before).map(|m| m["keys"].as_u64().unwrap()).sum();
    assert_eq!(keys, 120);
    let shares: f64 = members(&before).map(|m| m["key_share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");

    let edits = json!([{"weight": {"id": "node-a", "weight": 3}}]);
    let planned = post(&client, PLAN, &json!({ "edits": edits })).gives(200).await.json();
    assert_eq!((&planned["ring_version"], &planned["change"]), (&json!(1), &json!("node-a gets weight 3")));
    let plan = &planned["plan"];
    assert_eq!(plan["breaks_quorum"], false);
    let a = members(plan).find(|m| m["id"] == "node-a").unwrap();
    // Three replicas at four nodes: a heavy one holds nearly every partition once, and none twice.
    let after = a["slots"]["after"].as_u64().unwrap();
    assert_eq!((&a["slots"]["before"], after.clamp(60, 64)), (&json!(48), after));
    assert!(plan["slots_moved"].as_u64() >= plan["least_moved"].as_u64());
    assert_eq!(plan["least_moved"], after - 48);
    assert!(plan["keys_moved"].as_u64().unwrap() > 0);
    let still = ring(&client).await;
    for field in ["version", "owners", "pending_change"] {
        assert_eq!(still[field], before[field], "a plan changes nothing");
    }

    let applied = post(&client, APPLY, &json!({ "edits": edits, "ring_version": 1 })).gives(200).await;
    assert_eq!(applied.json()["ring_version"], 2);
    let late = post(&client, APPLY, &json!({ "edits": edits, "ring_version": 1 })).send().await;
    late.refused(409, &["not 1", "plan the change anew"]);
    assert_eq!(late.json()["applied"], "no");

    let ring = settled(&client, 2).await;
    assert_eq!((&member(&ring, "node-a")["weight"], &ring["version"]), (&json!(3), &json!(4)));
    assert_eq!(member(&ring, "node-a")["partitions"], after, "as it was planned");
    all_is_there(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_leaves_and_nothing_is_missing() {
    let mut cluster = Cluster::nodes(4).store(Kind::Memory).start().await;
    let client = cluster.gateway(0);
    fill(&client).await;
    let left =
        post(&client, "/v1/cluster/members/node-b/leave", &json!({"ring_version": 1})).gives(200).await;
    assert_eq!((&left.json()["ring_version"], &left.json()["pending"]), (&json!(2), &json!(true)));
    let after = settled(&client, 2).await;
    let ids: Vec<&str> = members(&after).map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["node-a", "node-c", "node-d"]);
    cluster.kill(1).await;
    all_is_there(&client).await;
    // No more may go: each key has three homes.
    post(&client, "/v1/cluster/members/node-a/leave", &json!({}))
        .send()
        .await
        .refused(409, &["2 members", "3 replicas"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_staged_join_waits_for_its_process_and_can_be_cancelled() {
    let cluster = Cluster::nodes(3).store(Kind::Memory).start().await;
    let client = cluster.gateway(0);
    let join =
        |id: &str| json!({"join": {"id": id, "address": "127.0.0.1:1", "zone": "default", "weight": 1}});
    let edits = json!([join("node-x")]);
    post(&client, APPLY, &json!({"edits": edits, "ring_version": 1})).gives(200).await;
    let ring = until("the three that run are ready", || async {
        let ring = ring(&client).await;
        (ring["pending_change"]["waits_for"] == json!(["node-x"])).then_some(ring)
    })
    .await;
    let pending = &ring["pending_change"];
    assert_eq!((&pending["what"], &pending["step"]), (&json!("node-x joins"), &json!("pending")));
    let x = member(&ring, "node-x");
    assert_eq!((&x["partitions"], &x["next_partitions"]), (&json!(0), &json!(48)));
    assert_eq!((&x["state"], &x["reachable"]), (&json!("joining"), &json!(false)));
    let status = cluster.status(0).await;
    assert_eq!(status["change"]["waits_for"], json!(["node-x"]));

    for (edit, word) in [
        (json!({"leave": {"id": "node-a"}}), "node-x joins"),
        (json!({"weight": {"id": "node-a", "weight": 2}}), "forget and cancel"),
        (join("node-y"), "forget and cancel"),
    ] {
        let body = json!({"edits": [edit], "ring_version": 2});
        post(&client, APPLY, &body).send().await.refused(409, &["a change is pending", word]);
    }
    let cancel = json!({"edits": [{"cancel": {}}]});
    let plan = post(&client, PLAN, &cancel).gives(200).await.json();
    assert_eq!((&plan["plan"]["slots_moved"], &plan["pending"]), (&json!(0), &json!(false)));
    post(&client, APPLY, &json!({"edits": [{"cancel": {}}], "ring_version": 2})).gives(200).await;
    assert_eq!(members(&settled(&client, 3).await).count(), 3);

    // Two that do not run would take some partitions' quorums away.
    let edits = json!([join("node-x"), join("node-y")]);
    let plan = post(&client, PLAN, &json!({ "edits": edits })).gives(200).await.json();
    assert_eq!(plan["plan"]["breaks_quorum"], true);
    let body = json!({"edits": edits, "ring_version": 3, "force": true});
    post(&client, APPLY, &body).send().await.refused(409, &["fewer than 2 homes alive", "'pending'"]);
    assert_eq!(ring_version(&client).await, 3);
}

async fn ring_version(client: &Client) -> u64 {
    ring(client).await["version"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_dead_are_forgotten() {
    let mut cluster = Cluster::nodes(4).store(Kind::Memory).start().await;
    let client = cluster.gateway(0);
    fill(&client).await;
    let forget = "/v1/cluster/members/node-d/forget";
    post(&client, forget, &json!({})).send().await.refused(409, &["node-d seems to be alive", "force"]);
    cluster.kill(3).await;
    // Gossip takes a moment to call it dead.
    let applied = until("the killed node is forgotten", || async {
        let answer = post(&client, forget, &json!({})).send().await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    assert_eq!(applied["change"], "node-d is dead and forgotten");
    // Nobody waits for it: the others take its place among themselves.
    let after = settled(&client, 2).await;
    assert_eq!(members(&after).count(), 3);
    all_is_there(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_by_name() {
    let cluster = Cluster::nodes(3).store(Kind::Memory).start().await;
    let client = cluster.gateway(0);
    for path in [PLAN, APPLY, "/v1/cluster/members/node-a/leave"] {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let answer = client.path(method, path).send().await;
            assert_eq!((answer.status, answer.must("allow")), (405, "POST"), "{path}");
        }
        post(&client, path, &json!({}))
            .query("force=true")
            .send()
            .await
            .refused(400, &["no query parameters"]);
        client.path(Method::POST, path).body("{").send().await.refused(400, &["JSON"]);
        // A request that is not read to its end costs its connection.
        let once = cluster.gateway(0);
        once.path(Method::POST, path).body(vec![b' '; 70_000]).send().await.refused(413, &["65536 bytes"]);
    }
    let table: &[(&str, Value, u16, &[&str])] = &[
        (PLAN, json!({}), 400, &["'edits' is missing", "1 to 128"]),
        (PLAN, json!({"edits": [{"leave": {"id": "node-a"}}], "ring_version": 1}), 400, &["'ring_version'"]),
        (APPLY, json!({"edits": [{"leave": {"id": "node-a"}}]}), 400, &["'ring_version' is missing"]),
        (APPLY, json!({"edits": [{"drop": {"id": "node-a"}}], "ring_version": 1}), 400, &["'edits[0]'"]),
        (APPLY, json!({"edits": [{"leave": {"id": "node-x"}}], "ring_version": 1}), 404, &["node-x"]),
        (
            APPLY,
            json!({"edits": [{"leave": {"id": "node-a"}}], "ring_version": 9}),
            409,
            &["version 1, not 9"],
        ),
        (PLAN, json!({"edits": [{"leave": {"id": "node-a"}}]}), 409, &["2 members", "3 replicas"]),
        (PLAN, json!({"edits": [{"cancel": {}}]}), 409, &["no change is pending"]),
        (
            PLAN,
            json!({"edits": [{"zone": {"id": "node-a", "zone": "a b"}}]}),
            400,
            &["edits[0].zone.zone", "a-z"],
        ),
        (
            PLAN,
            json!({"edits": [{"weight": {"id": "node-a", "weight": 1001}}]}),
            400,
            &["'edits[0].weight.weight'", "1 to 1000"],
        ),
        ("/v1/cluster/members/node-x/leave", json!({}), 404, &["node-x"]),
        ("/v1/cluster/members/A/leave", json!({}), 400, &["node id"]),
        ("/v1/cluster/members/node-a/dance", json!({}), 404, &["nothing here"]),
        ("/v1/cluster/members/node-a/weight", json!({}), 400, &["'weight' is missing"]),
        ("/v1/cluster/members/node-a/weight", json!({"weight": 1}), 409, &["node-a has it already"]),
        ("/v1/cluster/members/node-a/zone", json!({"zone": "z", "x": 1}), 400, &["'x' is not known"]),
    ];
    for (path, body, status, words) in table {
        let answer = post(&client, path, body).send().await;
        answer.refused(*status, words);
        if *path != PLAN {
            assert_eq!(answer.json()["applied"], "no", "{path} {body}");
        }
    }
    assert_eq!(ring_version(&client).await, 1);
}

/// Nodes refuse what is sent as an older ring was; a gateway that can't look into the bucket has them show it the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_the_bucket_goes_on_through_a_change() {
    let mut cluster = Cluster::nodes(4).store(Kind::Memory).start().await;
    let way = Arc::new(FaultyBucket::new(cluster.bucket().await, 1));
    cluster.start_gateway_at(way.clone()).await;
    cluster.gateway_reaches(1, 4).await;
    let (sees, blind) = (cluster.gateway(0), cluster.gateway(1));
    way.set(Faults { unavailable: true, ..Faults::default() });
    let edits = json!([{"weight": {"id": "node-a", "weight": 3}}]);
    post(&sees, APPLY, &json!({ "edits": edits, "ring_version": 1 })).gives(200).await;
    // Whatever step of the change is the last that it was shown.
    for number in 0..40 {
        blind
            .put(&format!("carts/{number}"), format!("value {number}"))
            .query("deadline=20s")
            .gives(204)
            .await;
    }
    let shown = settled(&sees, 2).await;
    let heard = settled(&blind, shown["version"].as_u64().unwrap()).await;
    assert_eq!((&heard["version"], &heard["owners"]), (&shown["version"], &shown["owners"]));
    all_is_there(&sees).await;
    all_is_there(&blind).await;
}
