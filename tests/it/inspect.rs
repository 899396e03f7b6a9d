//! The commands that read the bucket alone, as processes of the real binary against an S3 server.

use std::process::Output;

use serde_json::Value;

use crate::support::process::cartwheel;
use crate::support::store::{ACCESS_KEY, SECRET_KEY};
use crate::support::{Cluster, in_time};

/// What the binary is told of the store.
struct Store {
    endpoint: String,
    url: String,
}

impl Store {
    fn of(cluster: &mut Cluster) -> Self {
        let server = cluster.server();
        Self { endpoint: server.endpoint.clone(), url: server.url.clone() }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = cartwheel(arguments);
        command
            .env("AWS_ENDPOINT_URL_S3", &self.endpoint)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_REGION", "us-east-1")
            .env("CARTWHEEL_BUCKET", &self.url);
        let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
        in_time(&format!("cartwheel {}", arguments.join(" ")), ended).await.unwrap()
    }

    /// Standard output as text, of a command that ends with this status.
    async fn text(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, status: i32, arguments: &[&str]) -> Value {
        let text = self.text(status, &[arguments, &["-o", "json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn dots(merged: &Value) -> Vec<&str> {
    list(&merged["siblings"]).iter().map(|sibling| sibling["dot"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bucket_alone_tells_what_is_there_and_why_and_whether_it_is_sound() {
    let mut cluster = Cluster::nodes(4).start().await;
    let store = Store::of(&mut cluster);
    let gateway = cluster.gateway(0);
    let all = "w=all&durability=bucket";
    for value in ["milk", "bread"] {
        gateway.put("carts/alice", value).query(all).gives(204).await;
    }
    let read = gateway.get("carts/alice").gives(300).await;
    gateway.put("carts/bob", "eggs").query(all).gives(204).await;
    gateway.delete("carts/bob").query(all).gives(204).await;
    let homes: Vec<String> =
        cluster.homes("carts", "alice").await.into_iter().map(|home| cluster.id(home).to_owned()).collect();

    // Why: every home has both, and so says the gateway.
    let why = store.json(0, &["inspect", "why", "carts", "alice"]).await;
    assert_eq!(why["preference_list"], Value::from(homes.clone()), "{why}");
    assert_eq!((&why["merged"]["status"], dots(&why["merged"]).len()), (&300.into(), 2), "{why}");
    let mut read: Vec<String> =
        read.siblings().into_iter().map(|sibling| sibling.headers["dot"].clone()).collect();
    read.sort();
    assert_eq!(dots(&why["merged"]), read);
    assert!(list(&why["homes"]).iter().all(|home| !list(&home["found"]).is_empty()), "{why}");
    let text = store.text(0, &["inspect", "why", "carts", "alice"]).await;
    assert!(text.contains("all homes together: 300: 2 siblings") && text.contains("not seen here"), "{text}");
    let never = store.json(0, &["inspect", "why", "carts", "nobody"]).await;
    assert_eq!(never["merged"]["answer"], "404: never seen");
    let gone = store.json(0, &["inspect", "why", "carts", "bob"]).await;
    assert_eq!(gone["merged"]["answer"], "404: deleted or expired");

    // The doctor asks store, bucket and gateway, and leaves nothing behind.
    let url = format!("http://{}", gateway.address());
    let data = tempfile::tempdir().unwrap();
    let doctor =
        store.json(0, &["doctor", "--gateway", &url, "--data-dir", data.path().to_str().unwrap()]).await;
    let checks = list(&doctor["checks"]);
    for (what, level) in
        [("conditional creates", "ok"), ("range reads", "ok"), ("manifests", "ok"), ("gateway", "ok")]
    {
        let check = checks.iter().find(|check| check["what"] == what).unwrap();
        assert_eq!(check["level"], level, "{check}");
    }
    assert_eq!(checks.iter().filter(|c| c["detail"].as_str().unwrap().contains("counting")).count(), 4);
    assert!(cluster.bucket().await.list("probe/", None, 1).await.unwrap().objects.is_empty());

    // From here on there are no nodes.
    for node in 0..4 {
        cluster.stop(node).await;
    }
    let listing = store.json(0, &["inspect", "ls"]).await;
    assert_eq!(list(&listing["nodes"]).len(), 4);
    let total = &listing["total"];
    assert_eq!((&total["missing"], &total["orphans"]["objects"]), (&0.into(), &0.into()), "{total}");
    assert!(total["records"].as_u64().unwrap() >= 6, "three homes hold two keys: {total}");
    let text = store.text(0, &["inspect", "ls", &homes[0]]).await;
    assert!(text.lines().nth(1).unwrap().starts_with(&homes[0]) && text.contains("MANIFEST"), "{text}");

    let manifest = store.json(0, &["inspect", "manifest", &homes[0]]).await;
    let object = manifest["segments"][0]["object"].as_str().unwrap().to_owned();
    let version = manifest["version"].to_string();
    let text = store.text(0, &["inspect", "manifest", &homes[0], "--version", &version]).await;
    assert!(text.contains("segments, oldest first"), "{text}");
    let segment = store.json(0, &["inspect", "segment", &object, "--records", "--limit", "1"]).await;
    assert_eq!((&segment["sound"], list(&segment["records"]).len()), (&true.into(), 1));
    assert_eq!(segment["records"][0]["namespace"], "carts");
    let scrub = store.json(0, &["scrub"]).await;
    assert_eq!((&scrub["sound"], &scrub["records"]), (&true.into(), &total["records"]), "{scrub}");

    // One flipped bit.
    let bucket = cluster.bucket().await;
    let mut bytes = bucket.get(&object).await.unwrap().to_vec();
    bytes[30] ^= 1;
    bucket.put(&object, bytes.into()).await.unwrap();
    let damaged = store.text(1, &["inspect", "segment", &object]).await;
    assert!(damaged.contains("block 0 at byte 8: checksum mismatch"), "{damaged}");
    let scrub = store.json(1, &["scrub", "--node", &homes[0], "--bytes-per-second", "1GiB"]).await;
    assert_eq!((list(&scrub["wrong"]).len(), &scrub["wrong"][0]["object"]), (1, &object.clone().into()));
    bucket.delete(&object).await.unwrap();
    assert!(store.text(1, &["scrub"]).await.contains("missing"));
    assert!(store.text(1, &["doctor"]).await.contains("fail  segments of"));

    // Bad usage, nothing there, nobody there.
    for bad in [
        &["inspect", "why", "Carts", "x"][..],
        &["inspect", "ls", "A"],
        &["scrub", "--bytes-per-second", "1"],
    ] {
        store.text(2, bad).await;
    }
    store.text(1, &["inspect", "segment", "nodes/node-a/f/1/1.seg"]).await;
    store.text(1, &["inspect", "manifest", "node-z"]).await;
    if cluster.server().stop().await {
        for command in [&["inspect", "ls"][..], &["inspect", "why", "carts", "alice"], &["scrub"]] {
            store.text(3, command).await;
        }
        assert!(store.text(1, &["doctor"]).await.starts_with("fail  object store"));
    }
}
