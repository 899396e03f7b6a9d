//! What happens when storage nodes are killed, frozen, wiped and started again.

use futures_util::stream::{StreamExt, iter};
use http::Method;
use serde_json::{Value, json};

use crate::support::store::Kind;
use crate::support::{Answer, Client, Cluster, in_time, until};

/// Requests at once.
const AT_ONCE: usize = 64;

fn key(n: usize) -> String {
    format!("load/key-{n}")
}

/// Writes keys at the same time; gives those that were acknowledged.
async fn write(cluster: &Cluster, keys: std::ops::Range<usize>, query: &str) -> Vec<usize> {
    let writing = keys.map(|n| async move {
        let gateway = cluster.gateway(n % 2);
        let answer = gateway.put(&key(n), format!("value {n}")).query(query).send().await;
        (answer.status == 204).then_some(n)
    });
    iter(writing).buffered(AT_ONCE).filter_map(async |written| written).collect().await
}

/// Every one of these writes is there, through every gateway, once.
async fn all_there(cluster: &Cluster, written: &[usize]) {
    for gateway in 0..2 {
        let client = &cluster.gateway(gateway);
        let reading = written.iter().map(|n| async move {
            let read = client.get(&key(*n)).gives(200).await;
            assert_eq!(read.text(), format!("value {n}"));
        });
        iter(reading).buffer_unordered(AT_ONCE).for_each(async |()| ()).await;
    }
}

/// The problem of a quorum that was missed, with who did what.
fn missed(answer: &Answer, status: u16, wanted: usize, got: usize) -> Value {
    let problem = answer.problem(status);
    assert_eq!(
        (&problem["quorum"]["wanted"], &problem["quorum"]["got"]),
        (&json!(wanted), &json!(got)),
        "{problem}"
    );
    let nodes = problem["quorum"]["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3, "{problem}");
    assert_eq!(
        (answer.quorum("required"), answer.quorum("answered")),
        (&*wanted.to_string(), &*got.to_string())
    );
    problem
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_under_load_is_not_noticed() {
    let mut cluster = Cluster::nodes(5).gateways(2).start().await;
    let client = cluster.gateway(0);
    let loading = tokio::spawn(async move {
        for n in 0..150 {
            client.put(&key(n), format!("value {n}")).gives(204).await;
            assert_eq!(client.get(&key(n)).gives(200).await.text(), format!("value {n}"));
        }
    });
    let status = || async { (keys_held(&cluster.status(1).await) >= 60).then_some(()) };
    until("the load is under way", status).await;
    cluster.kill(1).await;
    in_time("the load goes on", loading).await.unwrap();
    assert_eq!(write(&cluster, 150..200, "w=2").await.len(), 50);
    all_there(&cluster, &(0..200).collect::<Vec<_>>()).await;
    cluster.start_node(1).await;
    cluster.serves().await;
    all_there(&cluster, &(0..200).collect::<Vec<_>>()).await;
}

fn keys_held(status: &Value) -> u64 {
    status["members"].as_array().unwrap().iter().filter_map(|m| m["keys"].as_u64()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_three_homes_down_the_missed_quorum_is_told_as_it_is() {
    let mut cluster = Cluster::nodes(3).store(Kind::Memory).start().await;
    let client = cluster.gateway(0);
    client.put("ns/a", "before").query("w=all").gives(204).await;
    cluster.kill(0).await;
    cluster.kill(1).await;
    cluster.gateway_reaches(0, 1).await;
    // Only homes: fallbacks have no part in this.
    let problem = missed(&client.get("ns/a").query("sloppy=false").send().await, 503, 2, 1);
    let outcomes: Vec<_> =
        problem["quorum"]["nodes"].as_array().unwrap().iter().map(|n| &n["outcome"]).collect();
    assert_eq!(outcomes.iter().filter(|o| **o == "answered").count(), 1, "{problem}");
    assert_eq!(outcomes.iter().filter(|o| **o == "not reachable").count(), 2, "{problem}");
    assert_eq!(problem.get("applied"), None, "a read applies nothing");
    let answer = client.put("ns/a", "one home only").query("sloppy=false").send().await;
    assert_eq!(missed(&answer, 503, 2, 1)["applied"], "unknown");
    assert!(answer.must("retry-after").parse::<u32>().is_ok());
    // And it was in truth taken in by that home: "unknown" was right.
    assert_eq!(client.get("ns/a").query("r=1").gives(300).await.siblings().len(), 2);
    client.put("ns/b", "x").query("w=1").gives(204).await;
    // With nobody left, nothing can have been applied.
    cluster.kill(2).await;
    cluster.gateway_reaches(0, 0).await;
    let answer = client.put("ns/c", "x").query("sloppy=false").send().await;
    assert_eq!(missed(&answer, 503, 2, 0)["applied"], "no");
    cluster.start_nodes(&[0, 1, 2]).await;
    cluster.serves().await;
    client.get("ns/c").query("r=all").gives(404).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_hang_cost_a_request_its_deadline_and_no_more() {
    let cluster = Cluster::nodes(3).store(Kind::Memory).start().await;
    let client = cluster.gateway(0);
    let before = client.put("ns/a", "before").query("w=all").gives(204).await;
    let homes = cluster.homes("ns", "a").await;
    {
        let _frozen = cluster.freeze(homes[0]);
        // The other two are enough, even though the one that hangs is the first to be asked.
        client.get("ns/a").query("deadline=2s").gives(200).await;
        let write = client.put("ns/a", "around it").seen(&before).query("deadline=3s").gives(204).await;
        assert_eq!(write.quorum("answered"), "2");
        assert!(!write.dot().starts_with(cluster.id(homes[0])), "{}", write.dot());
        let _frozen_too = cluster.freeze(homes[1]);
        for request in [client.get("ns/a"), client.put("ns/b", "x"), client.delete("ns/b")] {
            let answer = in_time("the deadline", request.query("deadline=300ms&sloppy=false").send()).await;
            assert!([503, 504].contains(&answer.status), "{answer:?}");
            let problem = answer.problem(answer.status);
            assert_eq!(problem["quorum"]["wanted"], 2);
            assert!(problem["quorum"]["got"].as_u64().unwrap() < 2, "{problem}");
        }
    }
    cluster.serves().await;
    // The node that hung carries out late what it was asked; the write is still one write.
    let read = client.get("ns/a").query("r=all").gives(200).await;
    assert_eq!(read.text(), "around it");
    client.put("ns/a", "after").seen(&read).gives(204).await;
    assert_eq!(client.get("ns/a").query("r=all").gives(200).await.text(), "after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_may_start_before_any_node() {
    let mut cluster = Cluster::nodes(5).found().await;
    cluster.start_gateway().await;
    let client = cluster.gateway(0);
    assert_eq!(client.path(Method::GET, "/healthz").gives(200).await.text(), "ok\n");
    cluster.gateway_reaches(0, 0).await;
    let answer = client.put("ns/a", "x").query("sloppy=false").send().await;
    assert_eq!(missed(&answer, 503, 2, 0)["applied"], "no");
    missed(&client.get("ns/a").query("sloppy=false").send().await, 503, 2, 0);
    // Unless the request forbids it, the bucket stands in for all of them.
    let early = client.put("ns/early", "y").gives(204).await;
    assert!(early.must("cartwheel-degraded").starts_with("bucket; as-of="), "{early:?}");
    assert_eq!((early.quorum("answered"), early.quorum("durability")), ("0", "bucket"));
    for node in [3, 0, 4, 2, 1] {
        cluster.start_node(node).await;
    }
    cluster.serves().await;
    let read = client.get("ns/early").query("r=all&sloppy=false").gives(200).await;
    assert_eq!((read.text(), read.header("cartwheel-degraded")), ("y", None));
    client.put("ns/a", "x").query("w=all").gives(204).await;
    assert_eq!(client.get("ns/a").gives(200).await.text(), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_founds_itself_and_grows_under_its_writes() {
    let mut cluster = Cluster::nodes(5).unfounded().found().await;
    cluster.start_gateway().await;
    cluster.start_gateway().await;
    let client = cluster.gateway(0);
    client.path(Method::GET, "/readyz").send().await.problem(503);
    let early = client.put("ns/a", "x").send().await;
    early.refused(503, &[]);
    assert!(early.header("retry-after").is_some());
    for node in [3, 0, 4] {
        cluster.start_node(node).await;
    }
    cluster.serves().await;
    let mut written = write(&cluster, 0..40, "w=2").await;
    for (turn, node) in [2, 1].into_iter().enumerate() {
        cluster.start_node(node).await;
        // While the node takes over its share.
        let first = 40 + 20 * turn;
        written.extend(write(&cluster, first..first + 20, "w=2").await);
        let client = &client;
        until("the node holds its share", || async move {
            let status = client.path(Method::GET, "/v1/cluster").gives(200).await.json();
            let known = status["members"].as_array().unwrap().len() == 4 + turn;
            (known && status["pending_change"].is_null()).then_some(())
        })
        .await;
    }
    cluster.serves().await;
    assert_eq!(written.len(), 80, "no write was refused");
    all_there(&cluster, &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_of_all_nodes_every_write_acknowledged_on_disk_is_there() {
    let mut cluster = Cluster::nodes(5).gateways(2).start().await;
    let written = write(&cluster, 0..120, "durability=disk").await;
    assert_eq!(written.len(), 120);
    cluster.kill_all().await;
    cluster.start_nodes(&[4, 2, 0, 1, 3]).await;
    cluster.serves().await;
    all_there(&cluster, &written).await;
    for node in 0..5 {
        // Every process leases two: its own, and one for what it mints on behalf of others.
        assert!(cluster.epoch(node) >= 3, "what was not proven whole mints under a new epoch");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_the_middle_of_writes_loses_none_that_was_acknowledged() {
    let mut cluster = Cluster::nodes(3).gateways(2).start().await;
    let clients: Vec<Client> = (0..6).map(|n| cluster.gateway(n % 2)).collect();
    let writing: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(writer, client)| {
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in (writer..10_000).step_by(6) {
                    // Only what storage nodes took: the bucket would take writes for ever.
                    let put = client.put(&key(n), format!("value {n}")).query("deadline=2s&sloppy=false");
                    match put.send().await.status {
                        204 => acknowledged.push(n),
                        503 | 504 => return acknowledged,
                        other => panic!("status {other}"),
                    }
                }
                acknowledged
            })
        })
        .collect();
    until("the writes are under way", || async {
        (keys_held(&cluster.status(0).await) >= 300).then_some(())
    })
    .await;
    cluster.kill_all().await;
    let mut acknowledged = Vec::new();
    for writer in writing {
        acknowledged.extend(in_time("a writer ends", writer).await.unwrap());
    }
    assert!(acknowledged.len() >= 60, "{}", acknowledged.len());
    cluster.start_nodes(&[1, 0, 2]).await;
    cluster.serves().await;
    all_there(&cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_loss_of_every_disk_every_write_acknowledged_in_the_bucket_is_there() {
    let mut cluster = Cluster::nodes(5).gateways(2).start().await;
    let written = write(&cluster, 0..60, "durability=bucket").await;
    assert_eq!(written.len(), 60);
    let read = cluster.gateway(0).get(&key(0)).gives(200).await;
    cluster.gateway(0).delete(&key(0)).seen(&read).query("durability=bucket").gives(204).await;
    cluster.kill_all().await;
    for node in 0..5 {
        cluster.wipe(node);
    }
    cluster.start_nodes(&[0, 1, 2, 3, 4]).await;
    cluster.serves().await;
    all_there(&cluster, &written[1..]).await;
    let gone = cluster.gateway(1).get(&key(0)).gives(404).await;
    assert_eq!(gone.must("cartwheel-deleted"), "?1", "and what was deleted stays deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_lasts_over_clean_ends_only() {
    let mut cluster = Cluster::nodes(3).start().await;
    let client = cluster.gateway(0);
    let minter = cluster.homes("ns", "a").await[0];
    let mut dots = Vec::new();
    // One write by the minter's process as it is now; gives the epoch it minted under.
    let mut mint = async |cluster: &Cluster| {
        let read = client.get("ns/a").query("r=all").send().await;
        let put = client.put("ns/a", "x").query("w=all");
        let put = if read.header("vector-clock").is_some() { put.seen(&read) } else { put };
        let write = put.gives(204).await;
        let epoch = cluster.epoch(minter);
        let actor = format!("{}.{epoch}=", cluster.id(minter));
        assert!(write.dot().starts_with(&actor), "{} is not {actor}", write.dot());
        assert!(!dots.contains(&write.dot().to_owned()), "a dot names one write, for ever: {}", write.dot());
        dots.push(write.dot().to_owned());
        epoch
    };
    let first = mint(&cluster).await;
    cluster.stop(minter).await;
    cluster.start_node(minter).await;
    cluster.serves().await;
    assert_eq!(mint(&cluster).await, first, "a clean end keeps it");
    cluster.kill(minter).await;
    cluster.start_node(minter).await;
    cluster.serves().await;
    let second = mint(&cluster).await;
    assert!(second >= first + 2, "{second} after {first}: each process leases two");
    cluster.stop(minter).await;
    cluster.wipe(minter);
    cluster.start_node(minter).await;
    cluster.serves().await;
    let third = mint(&cluster).await;
    assert!(third >= second + 2, "{third} after {second}");
    assert_eq!(client.get("ns/a").query("r=all").gives(200).await.text(), "x");
}
