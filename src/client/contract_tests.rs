//! The commands and the bench against a small in-process server that answers as the contract says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, Response, StatusCode};
use clap::Parser;
use serde_json::{Value, json};

use super::{Exit, Output};
use crate::cli::{Cli, run};

/// One sibling: the count of its dot, its content type, its bytes.
type Sibling = (u64, Option<String>, Vec<u8>);

/// One actor's store: a clock `node-a.1=N` covers every dot up to N.
#[derive(Default)]
struct Store {
    count: u64,
    keys: BTreeMap<(String, Vec<u8>), Vec<Sibling>>,
    /// Changes of the ring that were applied; the first is pending until it was looked at twice.
    applied: Vec<Value>,
    looked: usize,
    /// What is set for namespaces, each change kept.
    namespaces: BTreeMap<String, Vec<Value>>,
    requests: Vec<String>,
    /// How often the cluster is looked at until the home that was asked has compared; the other can't be asked.
    comparing: usize,
    alone: bool,
}

type Shared = Arc<Mutex<Store>>;

/// The server, on a thread and a port of its own; gone when dropped.
struct Server {
    url: String,
    store: Shared,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Server {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let store = Shared::default();
        let app = Router::new().fallback(answer).with_state(store.clone());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = std::future::IntoFuture::into_future(axum::serve(listener, app));
                tokio::select! { _ = server => {}, _ = stopped => {} }
            });
        });
        Server { url, store, stop: Some(stop), thread: Some(thread) }
    }

    /// Runs a command line against the server: exit status, standard output, standard error.
    fn run(&self, args: &[&str]) -> (Exit, String, String) {
        command(&[args, &["--gateway", &self.url]].concat())
    }

    fn last_request(&self) -> String {
        self.store.lock().unwrap().requests.last().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn command(args: &[&str]) -> (Exit, String, String) {
    let mut output = Output::memory();
    let exit = run(Cli::try_parse_from([&["cartwheel"], args].concat()).unwrap(), &mut output);
    let Output::Memory { out, err } = output else { unreachable!() };
    (exit, String::from_utf8_lossy(&out).into_owned(), String::from_utf8(err).unwrap())
}

fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let hex = std::str::from_utf8(&tail[..2]).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

fn reply(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(StatusCode::from_u16(status).unwrap()).body(body.into()).unwrap()
}

async fn answer(State(store): State<Shared>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let mut store = store.lock().unwrap();
    store.requests.push(format!("{} {} {:?}", parts.method, parts.uri, parts.headers));
    let path = parts.uri.path();
    let mut members = json!([
        {"id": "node-a", "address": "127.0.0.1:7101", "zone": "z1", "weight": 1, "state": "active",
         "reachable": true, "incarnation": "3-9f2c", "keys": 123, "memtable_bytes": 1536, "segments": 4,
         "partitions": 77, "share": 0.21, "fair_share": 0.2, "tokens": 64},
        {"id": "node-b", "address": "127.0.0.1:7102", "zone": "z2", "weight": 1, "state": "active",
         "reachable": false},
    ]);
    match path {
        "/v1/cluster/repair" => {
            let order: Value = serde_json::from_slice(&body).unwrap();
            if order["node"] == "node-z" {
                let problem = json!({"title": "No such member", "detail": "node-z is no member"});
                return reply(404, problem.to_string());
            }
            store.requests.push(order.to_string());
            store.comparing = 2;
            let unasked = if store.alone { json!([{"id": "node-b", "why": "not sent"}]) } else { json!([]) };
            let begun = json!({"ring_version": 3, "partition": order["partition"], "asked": ["node-a"],
                "unreachable": unasked});
            return reply(202, begun.to_string());
        }
        "/v1/cluster" => {
            if store.comparing > 0 {
                store.comparing -= 1;
                let running = store.comparing > 0;
                members[0]["repair"] = json!({"asked": 1, "answered": u64::from(!running), "running": running,
                    "round_pairs": 512, "round_compared": if running { 7 } else { 512 }, "unreachable": [],
                    "round_differing": 3, "round_pulled": 2, "round_pushed": 1, "round_bytes": 2048,
                    "compared": 512, "oldest_ms": 1000, "differing": 3, "repaired": 40});
            }
            store.looked += usize::from(!store.applied.is_empty());
            let waits = json!({"what": "node-a leaves", "step": "pending", "waits_for": ["node-b"]});
            let change = if store.looked == 1 { waits } else { Value::Null };
            let cluster = json!({"ring_version": 3 + store.applied.len() + store.looked / 2, "replicas": 3,
                "partitions": 256, "members": members, "pending_change": null, "change": change});
            return reply(200, cluster.to_string());
        }
        "/v1/cluster/ring" => {
            let ring = json!({"version": 3, "partitions": 2, "replicas": 3, "hash_seed": "00ff",
                "efficiency_permille": 985, "members": members,
                "pending_change": {"what": "node-b leaves", "step": "copied", "waits_for": []},
                "owners": [["node-a", "node-b"], ["node-b", "node-a"]]});
            return reply(200, ring.to_string());
        }
        "/v1/cluster/plan" | "/v1/cluster/apply" => {
            let asked: Value = serde_json::from_slice(&body).unwrap();
            let edit = asked["edits"][0].clone();
            if edit["leave"]["id"] == "node-x" {
                let problem = json!({"title": "No such member", "status": 404,
                    "detail": "edits[0].leave.id: node-x is not a member of the ring", "applied": "no"});
                return reply(404, problem.to_string());
            }
            let step = |step| {
                json!({"step": step, "least_to_write": 3, "least_to_read": 3, "below_quorum": 0,
                "newly_below": 0})
            };
            let mut planned = json!({"ring_version": 3, "change": "node-a leaves", "pending": true, "plan": {
                "partitions": 256, "replicas": 3, "partitions_changed": 200, "slots_moved": 210,
                "least_moved": 200, "ratio_permille": 1050, "keys_moved": 5, "bytes_from_bucket": null,
                "bytes_between_nodes": 0, "needed_to_write": 2, "needed_to_read": 2, "breaks_quorum": false,
                "efficiency_permille": {"before": 985, "after": 990},
                "steps": [step("now"), step("pending"), step("copied"), step("settled")],
                "members": [{"id": "node-a", "slots": {"before": 210, "after": 0}, "gained": 0, "lost": 210,
                    "fair_milli": 0}]}});
            if path == "/v1/cluster/apply" {
                if asked["ring_version"] != 3 {
                    return reply(409, json!({"title": "The ring has moved on", "detail": "3"}).to_string());
                }
                store.applied.push(asked);
                planned["ring_version"] = 4.into();
            }
            return reply(200, planned.to_string());
        }
        "/v1/cluster/locate" => {
            let location = json!({"namespace": "carts", "key": "alice", "hash": "ab".repeat(16),
                "partition": 17, "homes": ["node-a", "node-b"], "fallbacks": ["node-c"],
                "holders": [{"id": "node-a", "answer": "held", "clock": "node-a.1=3", "siblings": 1},
                            {"id": "node-c", "answer": "unreachable"}]});
            return reply(200, location.to_string());
        }
        _ => {}
    }
    if path == "/v1/namespaces" {
        let last = |(name, set): (&String, &Vec<Value>)| json!({"namespace": name, "version": set.len(), "settings": set.last()});
        let list: Vec<Value> = store.namespaces.iter().map(last).collect();
        return reply(200, json!({"namespaces": list, "more": false}).to_string());
    }
    if let Some(namespace) = path.strip_prefix("/v1/namespaces/") {
        let set = store.namespaces.entry(namespace.to_owned()).or_default();
        if parts.method == Method::PUT {
            let tag = format!("\"{}\"", set.len());
            if parts.headers.get("if-match").is_some_and(|wanted| *wanted != tag) {
                return reply(412, "");
            }
            set.push(serde_json::from_slice(&body).unwrap());
        }
        let defaults = json!({"n": 3, "r": 2, "w": 2, "ttl": null});
        let mut response = reply(200, set.last().unwrap_or(&defaults).to_string());
        response.headers_mut().insert("etag", format!("\"{}\"", set.len()).parse().unwrap());
        return response;
    }
    let Some((namespace, key)) = path.strip_prefix("/v1/kv/").and_then(|rest| rest.split_once('/')) else {
        return reply(404, "");
    };
    if namespace == "refused" {
        let problem = json!({"title": "Quorum not met", "status": 503, "detail": "1 of 2 answered",
            "applied": "unknown"});
        return reply(503, problem.to_string());
    }
    let id = (namespace.to_owned(), decode(key));
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let seen: u64 =
        header("vector-clock").map_or(0, |clock| clock.strip_prefix("node-a.1=").unwrap().parse().unwrap());
    let mut response = match parts.method {
        Method::PUT | Method::DELETE => {
            store.count += 1;
            let count = store.count;
            let siblings = store.keys.entry(id).or_default();
            siblings.retain(|(dot, _, _)| *dot > seen);
            if parts.method == Method::PUT {
                siblings.push((count, header("content-type"), body.to_vec()));
            } else {
                siblings.clear();
            }
            let mut response = reply(204, "");
            response.headers_mut().insert("dot", format!("node-a.1={count}").parse().unwrap());
            response
        }
        _ => match store.keys.get(&id).map(Vec::as_slice) {
            None => return reply(404, ""),
            Some([]) => {
                let mut response = reply(404, "");
                response.headers_mut().insert("cartwheel-deleted", "?1".parse().unwrap());
                response
            }
            Some([(_, content_type, value)]) => {
                let mut response = reply(200, value.clone());
                if let Some(content_type) = content_type {
                    response.headers_mut().insert("content-type", content_type.parse().unwrap());
                }
                response
            }
            Some(siblings) => {
                let list: Vec<Value> = siblings
                    .iter()
                    .map(|(dot, _, value)| {
                        json!({"dot": format!("node-a.1={dot}"), "etag": format!("\"{dot}\""),
                            "value": String::from_utf8_lossy(value)})
                    })
                    .collect();
                reply(300, Value::from(list).to_string())
            }
        },
    };
    let clock = format!("node-a.1={}", store.count);
    response.headers_mut().insert("vector-clock", clock.parse().unwrap());
    response.headers_mut().insert("quorum", "op=any, n=3, required=2, answered=2".parse().unwrap());
    response
}

#[test]
fn put_get_and_delete() {
    let server = Server::start();
    let (exit, out, err) = server.run(&["put", "carts", "alice", "--value", "milk"]);
    assert_eq!((exit, out.as_str()), (Exit::Done, "node-a.1=1\n"));
    assert!(err.contains("dot: node-a.1=1\n") && err.contains("quorum: op=any"), "{err}");

    let (exit, out, err) = server.run(&["get", "carts", "alice"]);
    assert_eq!((exit, out.as_str(), err.as_str()), (Exit::Done, "milk", "clock: node-a.1=1\n"));

    let (exit, out, _) = server.run(&["get", "carts", "alice", "-o", "json"]);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(exit, Exit::Done);
    assert_eq!(document["value"], "milk");
    assert_eq!(document["clock"], "node-a.1=1");
    assert_eq!(document["quorum"]["answered"], 2);
    assert_eq!(document["siblings"], json!([]));

    let (exit, out, _) = server.run(&["delete", "carts", "alice", "--clock", "node-a.1=1"]);
    assert_eq!((exit, out.as_str()), (Exit::Done, "node-a.1=2\n"));
    let (exit, out, err) = server.run(&["get", "carts", "alice"]);
    assert_eq!((exit, out.as_str()), (Exit::Failed, ""));
    assert_eq!(err, "not found: deleted\nclock: node-a.1=2\n");
}

#[test]
fn siblings_are_listed_and_end_with_four() {
    let server = Server::start();
    server.run(&["put", "carts", "alice", "--value", "milk"]);
    server.run(&["put", "carts", "alice", "--value", "beer"]);
    let (exit, out, err) = server.run(&["get", "carts", "alice"]);
    assert_eq!(exit, Exit::Conflict);
    assert!(out.contains("node-a.1=1") && out.contains("milk") && out.contains("beer"), "{out}");
    assert!(err.contains("2 siblings") && err.contains("clock: node-a.1=2"), "{err}");
    let (exit, out, _) = server.run(&["get", "carts", "alice", "-o", "json"]);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, document["siblings"][1]["value"].as_str()), (Exit::Conflict, Some("beer")));

    server.run(&["put", "carts", "alice", "--value", "both", "--clock", "node-a.1=2"]);
    let (exit, out, _) = server.run(&["get", "carts", "alice"]);
    assert_eq!((exit, out.as_str()), (Exit::Done, "both"));
}

#[test]
fn values_come_from_files_and_keys_keep_their_bytes() {
    use std::os::unix::ffi::OsStringExt;
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("value");
    std::fs::write(&path, b"\xff\x00").unwrap();
    let key = std::ffi::OsString::from_vec(b"a/b \xff%25".to_vec());
    let line = |words: &[&std::ffi::OsStr]| {
        let mut output = Output::memory();
        let exit = run(Cli::try_parse_from(words).unwrap(), &mut output);
        (exit, output)
    };
    let os = std::ffi::OsStr::new;
    let common = [os("--gateway"), os(&server.url), os("-o"), os("json")];
    let put = [os("cartwheel"), os("put"), os("carts"), &key, os("--file"), path.as_os_str()];
    assert_eq!(line(&[&put[..], &common[..]].concat()).0, Exit::Done);
    assert!(server.store.lock().unwrap().keys.contains_key(&("carts".to_owned(), b"a/b \xff%25".to_vec())));
    let get = [os("cartwheel"), os("get"), os("carts"), &key];
    let (exit, output) = line(&[&get[..], &common[..]].concat());
    let Output::Memory { out, .. } = output else { unreachable!() };
    let document: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(exit, Exit::Done);
    assert_eq!((document["value_base64"].as_str(), document["key"].as_str()), (Some("/wA="), None));
    assert!(document["key_base64"].is_string());
}

#[test]
fn options_become_parameters_and_headers() {
    let server = Server::start();
    server.run(&[
        "put",
        "carts",
        "alice",
        "--value",
        "x",
        "--w",
        "all",
        "--durability",
        "bucket",
        "--deadline",
        "300ms",
        "--content-type",
        "text/plain",
        "--idempotency-key",
        "once",
        "--if-none-match",
        "*",
        "--meta",
        "owner=bob",
        "--r",
        "2",
    ]);
    let request = server.last_request();
    assert!(request.contains("?r=2&w=all&durability=bucket&deadline=300ms"), "{request}");
    for header in [
        "\"content-type\": \"text/plain\"",
        "\"idempotency-key\": \"once\"",
        "\"if-none-match\": \"*\"",
        "\"cartwheel-meta-owner\": \"bob\"",
    ] {
        assert!(request.contains(header), "{header} in {request}");
    }
}

#[test]
fn refusals_and_missing_gateways_have_their_exit_status() {
    let server = Server::start();
    let (exit, out, err) = server.run(&["put", "refused", "alice", "--value", "x", "-o", "json"]);
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("Quorum not met: 1 of 2 answered (the write may still become visible)"), "{err}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["error"]["problem"]["status"], 503);

    let (exit, _, err) = server.run(&["get", "carts", ""]);
    assert_eq!(exit, Exit::Usage);
    assert!(err.contains("1 to 1024 bytes"), "{err}");

    // A port that was free a moment ago: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    for words in [&["get", "carts", "alice"][..], &["status"], &["repair"], &["bench"]] {
        let (exit, _, err) = command(&[words, &["--gateway", &url]].concat());
        assert_eq!(exit, Exit::Unreachable, "{words:?}");
        assert!(err.contains("can't reach"), "{err}");
    }
    let parsed = Cli::try_parse_from(["cartwheel", "status", "--gateway", "https://127.0.0.1"]);
    assert!(parsed.unwrap_err().to_string().contains("https is not spoken"));
}

#[test]
fn the_cluster_is_shown_in_tables() {
    let server = Server::start();
    let (exit, out, _) = server.run(&["status"]);
    assert_eq!(exit, Exit::Done);
    assert!(out.starts_with("ring version 3, 256 partitions, 3 replicas, 1 of 2 storage nodes"), "{out}");
    assert!(out.contains("node-b  127.0.0.1:7102  z2         1  active  NO"), "{out}");
    assert!(out.contains("1.5 KiB"), "{out}");
    assert!(out.contains("repair: no homes were compared yet\n"), "{out}");
    let (_, out, _) = server.run(&["ring", "--owners"]);
    assert!(out.contains("21.00%  20.00%  +5.0%") && out.contains("1  node-b node-a"), "{out}");
    let (_, out, _) = server.run(&["locate", "carts", "a/b"]);
    assert!(out.contains("partition  17") && out.contains("node-c  fallback 1  unreachable"), "{out}");
    assert!(server.last_request().contains("/v1/cluster/locate?namespace=carts&key=a%2Fb"));
    for words in [&["status"][..], &["ring"], &["locate", "carts", "alice"]] {
        let (_, out, _) = server.run(&[words, &["-o", "json"]].concat());
        assert!(serde_json::from_str::<Value>(&out).unwrap().is_object());
    }
}

#[test]
fn a_change_of_the_ring_is_planned_and_applied_at_the_version_it_was_planned_at() {
    let server = Server::start();
    let applied = || server.store.lock().unwrap().applied.clone();
    let (exit, out, _) = server.run(&["plan", "leave", "node-a"]);
    assert_eq!(exit, Exit::Done);
    for part in [
        "ring version 3: node-a leaves",
        "210 of 768 slots, in 200 of 256 partitions; 200 have to, 1.05 times the least",
        "keys        5",
        "bytes       not known",
        "98.5% now, 99.0% afterwards",
        "node-a    210           0     0    210   0.0",
        "settled         3        3                 0",
    ] {
        assert!(out.contains(part), "{part} in {out}");
    }
    let bodies: [(&[&str], Value); 6] = [
        (&["weight", "node-b", "3"], json!({"weight": {"id": "node-b", "weight": 3}})),
        (&["zone", "node-b", "z9"], json!({"zone": {"id": "node-b", "zone": "z9"}})),
        (&["forget", "node-b", "--force"], json!({"forget": {"id": "node-b"}})),
        (
            &["join", "node-f", "h:1", "--zone", "z3", "--weight", "2"],
            json!({"join": {"id": "node-f", "address": "h:1", "zone": "z3", "weight": 2}}),
        ),
        (&["cancel"], json!({"cancel": {}})),
        (&["leave", "node-a"], json!({"leave": {"id": "node-a"}})),
    ];
    for (words, edit) in &bodies {
        let (exit, out, err) = server.run(&[&["plan"], *words, &["-o", "json"]].concat());
        assert_eq!(exit, Exit::Done, "{err}");
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["plan"]["slots_moved"], 210);
        assert!(applied().is_empty(), "a plan changes nothing");
        let (exit, _, err) = server.run(&[&["node"], *words, &["--yes"]].concat());
        assert_eq!(exit, Exit::Done, "{err}");
        let force = words.contains(&"--force");
        assert_eq!(applied(), [json!({"edits": [edit], "force": force, "ring_version": 3})]);
        server.store.lock().unwrap().applied.clear();
    }

    let (exit, _, err) = server.run(&["node", "leave", "node-a"]);
    assert_eq!((exit, err.contains("--yes")), (Exit::Usage, true), "{err}");
    let (exit, _, err) = server.run(&["node", "leave", "node-a", "--yes", "--at", "2"]);
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("the ring is at version 3, not 2 (--at)"), "{err}");
    let (exit, out, _) = server.run(&["node", "leave", "node-x", "--yes", "-o", "json"]);
    assert_eq!(exit, Exit::Failed);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["error"]["problem"]["status"], 404);
    assert!(applied().is_empty());
    for bad in [&["node", "leave", "A/"][..], &["plan", "weight", "a", "0"], &["node", "weight", "a", "1001"]]
    {
        assert!(Cli::try_parse_from([&["cartwheel"], bad].concat()).is_err(), "{bad:?}");
    }

    let words = ["node", "leave", "node-a", "--yes", "--at", "3", "--wait", "-o", "json"];
    let (exit, out, err) = server.run(&words);
    assert_eq!(exit, Exit::Done, "{err}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&document["settled"], &document["ring_version"]), (&json!(true), &json!(5)));
    assert!(err.contains("ring version 4: node-a leaves (step pending; waits for node-b)"), "{err}");
    let (_, out, _) = server.run(&["ring"]);
    assert!(
        out.contains("evenness 98.5%") && out.contains("node-b leaves (step copied; all are ready)"),
        "{out}"
    );
}

#[test]
fn a_member_is_replaced_only_once_it_is_gone() {
    let server = Server::start();
    let (exit, out, err) = server.run(&["node", "replace", "node-a"]);
    assert_eq!((exit, out.as_str()), (Exit::Failed, ""));
    assert!(err.contains("node-a seems to be alive at 127.0.0.1:7101"), "{err}");
    let (exit, out, _) = server.run(&["node", "replace", "node-a", "--force"]);
    assert_eq!((exit, out.contains("storage-node --id node-a")), (Exit::Done, true), "{out}");
    let (exit, out, _) = server.run(&["node", "replace", "node-b", "-o", "json"]);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, &document["alive"], &document["zone"]), (Exit::Done, &json!(false), &json!("z2")));
    let (exit, _, err) = server.run(&["node", "replace", "node-x"]);
    assert_eq!((exit, err.contains("node-x is not a member")), (Exit::Failed, true), "{err}");
    assert!(server.last_request().starts_with("GET "), "the ring stays as it is");
}

#[test]
fn a_repair_is_followed_to_its_end() {
    let server = Server::start();
    let (exit, out, err) = server.run(&["repair"]);
    assert_eq!(exit, Exit::Done, "{err}");
    assert!(server.store.lock().unwrap().requests.contains(&"{}".to_owned()));
    assert!(
        err.contains("0 of 1 nodes are done; 7 of 512 pairs compared, 3 keys differed, 2.0 KiB"),
        "{err}"
    );
    assert!(out.contains("node-a   512/512          3       2       1  2.0 KiB  -"), "{out}");
    let (exit, out, _) = server.run(&["repair", "--node", "node-a", "--partition", "17", "-o", "json"]);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, &document["partition"]), (Exit::Done, &json!(17)));
    let node = json!({"id": "node-a", "answered": true, "pairs": 512, "compared": 512, "differing": 3,
        "pulled": 2, "pushed": 1, "bytes": 2048, "not_reached": [], "oldest_ms": 1000});
    assert_eq!(document["nodes"], json!([node]));
    let order = json!({"node": "node-a", "partition": 17}).to_string();
    assert!(server.store.lock().unwrap().requests.contains(&order));

    let (exit, out, _) = server.run(&["repair", "--no-wait"]);
    assert_eq!((exit, out.as_str()), (Exit::Done, "asked: node-a\n"));
    assert!(server.last_request().starts_with('{'), "nothing was asked after that");
    let (_, out, _) = server.run(&["status"]);
    assert!(out.contains("\nrepair: the oldest comparison of two homes was"), "{out}");
    assert!(out.contains("(by node-a); 3 keys differed"), "{out}");

    server.store.lock().unwrap().alone = true;
    let (exit, _, err) = server.run(&["repair"]);
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("node-b could not be asked: not sent"), "{err}");
    let (exit, _, err) = server.run(&["repair", "--node", "node-z"]);
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("No such member: node-z is no member"), "{err}");
}

#[test]
fn settings_of_namespaces_are_changed_one_by_one() {
    let server = Server::start();
    let (exit, out, _) = server.run(&["namespace", "get", "carts"]);
    assert_eq!(exit, Exit::Done);
    assert!(out.contains("version  0\n") && out.contains("ttl      -\n"), "{out}");
    let (exit, out, _) = server.run(&["namespace", "set", "carts", "--ttl", "7d", "--r", "1"]);
    assert_eq!(exit, Exit::Done);
    assert!(out.contains("version  1\n") && out.contains("ttl      7d\n"), "{out}");
    assert!(server.last_request().contains("\"if-match\": \"\\\"0\\\"\""), "{}", server.last_request());
    let (_, out, _) = server.run(&["namespace", "set", "carts", "--w", "3", "-o", "json"]);
    let wanted = json!({"n": 3, "r": 1, "w": 3, "ttl": "7d"});
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document, json!({"namespace": "carts", "version": 2, "settings": wanted}));
    server.run(&["namespace", "set", "carts", "--ttl", "none"]);
    let (_, out, _) = server.run(&["namespace", "list", "-o", "json"]);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["namespaces"][0]["settings"]["ttl"], Value::Null);
    let (_, out, _) = server.run(&["namespace", "list"]);
    assert!(out.contains("carts            3  1  3"), "{out}");
    let (exit, _, err) = server.run(&["namespace", "set", "carts"]);
    assert_eq!(exit, Exit::Usage);
    assert!(err.contains("--ttl"), "{err}");
}

/// Follow mode over keys that an earlier bench wrote leaves no siblings; blind mode does.
#[test]
fn a_closed_loop_measures_and_leaves_no_siblings() {
    let server = Server::start();
    let bench = |more: &[&str]| {
        let words = [
            "bench",
            "--keys",
            "50",
            "--connections",
            "4",
            "--duration",
            "100ms",
            "--warmup",
            "10ms",
            "--value-size",
            "100B",
            "--prefill",
            "--distribution",
            "zipf",
            "-o",
            "json",
        ];
        let (exit, out, err) = server.run(&[&words[..], more].concat());
        assert_eq!(exit, Exit::Done, "{err}");
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let pid = std::process::id().to_string();
    let first = bench(&["--pid", &pid]);
    let count = |report: &Value, path: &str| report.pointer(path).and_then(Value::as_u64).unwrap();
    assert_eq!(count(&first, "/operations"), count(&first, "/reads/count") + count(&first, "/writes/count"));
    assert_eq!(count(&first, "/sent_bytes"), 100 * count(&first, "/writes/count"));
    assert_eq!(count(&first, "/statuses/204"), count(&first, "/writes/count"));
    assert_eq!(first["cpu"].as_array().unwrap().len(), 2);
    bench(&["--seed", "2"]);
    let most = |store: &Store| store.keys.values().map(Vec::len).max().unwrap();
    assert_eq!(server.store.lock().unwrap().keys.len(), 50);
    assert_eq!(most(&server.store.lock().unwrap()), 1);
    bench(&["--clock", "blind", "--reads", "0"]);
    assert!(most(&server.store.lock().unwrap()) > 1);
}

#[test]
fn an_open_loop_accounts_for_every_operation_it_planned() {
    let server = Server::start();
    let (exit, out, err) = server.run(&[
        "bench",
        "--keys",
        "10",
        "--connections",
        "2",
        "--rate",
        "500",
        "--duration",
        "200ms",
        "--warmup",
        "100ms",
        "-o",
        "json",
    ]);
    assert_eq!(exit, Exit::Done, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let done = report["operations"].as_u64().unwrap();
    // 500/s for 200 ms: each of the hundred was done, or is reported as never sent.
    assert!(done <= 100, "{report}");
    assert!(done + report["unsent"].as_u64().unwrap() >= 100, "{report}");
    assert!(report["lateness"]["max_us"].is_u64());
    let (_, text, _) = server.run(&["bench", "--rate", "500", "--duration", "50ms", "--warmup", "0s"]);
    assert!(text.contains("started late") && text.contains("open loop at 500/s"), "{text}");
}

#[test]
fn a_bench_that_is_refused_fails_and_says_by_which_status() {
    let server = Server::start();
    let words = ["bench", "--namespace", "refused", "--duration", "20ms", "--warmup", "0s", "-o", "json"];
    let (exit, out, _) = server.run(&words);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(exit, Exit::Failed);
    assert_eq!(report["operations"], 0);
    assert_eq!(report["statuses"]["503"], report["refused"]);
    let (exit, _, err) = server.run(&[&words[..], &["--prefill"]].concat());
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("the prefill's HEAD was refused: 503"), "{err}");
}
