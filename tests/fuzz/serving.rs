//! Requests to a running gateway, calls and frames to a running storage node, log files that a node starts from.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cartwheel_bucket::{MemoryBucket, SharedBucket, list_all};
use cartwheel_cluster::peer::FRAMES_PATH;
use cartwheel_core::frame::{Frame, FrameKind, FrameVersion};
use cartwheel_core::hash::checksum;
use cartwheel_core::quorum::Durability;
use cartwheel_core::wire::{Call, Precondition, Refusal, Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::formats::mend_frames;
use crate::harness::{Fate, Run, Target, says_why};
use crate::running::{
    Answer, Cluster, Node, PATIENCE, exchange, mend_length, node_config, panicked, runtime,
};
use crate::samples;

/// What a call may wait for: some wait for others, or for a flush.
const CALL: Duration = Duration::from_millis(300);
/// What no request here may ever see.
const SECRET: &str = "what-is-in-another-namespace";

/// Their names: starting one takes longer than not running it.
pub(crate) const NAMES: [&str; 4] = ["http", "node-call", "node-frames", "log"];

type Start = fn() -> Target;

pub(crate) fn targets(run: &Run) -> Vec<Target> {
    let all: [(&str, Start); 4] =
        [(NAMES[0], http), (NAMES[1], node_call), (NAMES[2], node_frames), (NAMES[3], log)];
    all.iter().filter(|(name, _)| run.wants(name)).map(|(_, target)| target()).collect()
}

fn requests(clock: &str) -> Vec<String> {
    let body = |head: &str, body: &str| format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let host = "HTTP/1.1\r\nHost: x";
    vec![
        body(
            &format!("PUT /v1/kv/ns/a?w=1&durability=disk&return=value {host}\r\nVector-Clock: {clock}"),
            "abc",
        ),
        body(&format!("PUT /v1/kv/ns/b {host}\r\nContent-Type: text/plain\r\nCartwheel-Meta-By: me"), "milk"),
        body(&format!("PUT /v1/kv/ns/b?sloppy=true {host}\r\nIdempotency-Key: once\r\nIf-None-Match: *"), ""),
        format!("PUT /v1/kv/ns/c {host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        format!("GET /v1/kv/ns/a?r=1&deadline=2s {host}\r\nIf-None-Match: \"a\", W/\"b\"\r\n\r\n"),
        format!("GET /v1/kv/ns/a {host}\r\nAccept: application/json\r\nVector-Clock: {clock}\r\n\r\n"),
        format!("GET /v1/kv/ns/b?sibling=%22abc%22 {host}\r\nIf-Match: *\r\n\r\n"),
        format!("HEAD /v1/kv/ns/%00%ff {host}\r\n\r\n"),
        format!("DELETE /v1/kv/ns/a%2Fb {host}\r\nVector-Clock: {clock}\r\n\r\n"),
        body(
            &format!("PUT /v1/namespaces/ns {host}"),
            r#"{"r": 1, "w": "1", "ttl": "7d", "max_siblings": 100}"#,
        ),
        format!("GET /v1/namespaces/ns {host}\r\n\r\n"),
        format!("GET /v1/namespaces {host}\r\n\r\n"),
        format!("GET /v1/cluster {host}\r\n\r\n"),
        format!("GET /v1/cluster/ring {host}\r\n\r\n"),
        format!("GET /v1/cluster/hints {host}\r\n\r\n"),
        format!("GET /v1/cluster/locate?namespace=ns&key=a%2Fb {host}\r\n\r\n"),
        body(
            &format!("POST /v1/cluster/plan {host}\r\nContent-Type: application/json"),
            r#"{"edits": [{"weight": {"id": "node-a", "weight": 3}}, {"join": {"id": "node-z", "address":
            "127.0.0.1:9", "zone": "z", "weight": 1}}, {"zone": {"id": "node-a", "zone": "y"}}], "ring_version": 1}"#,
        ),
        body(
            &format!("POST /v1/cluster/plan {host}"),
            r#"{"edits": [{"leave": {"id": "node-a"}}], "force": false}"#,
        ),
        body(
            &format!("POST /v1/cluster/plan {host}"),
            r#"{"edits": [{"cancel": {}}, {"forget": {"id": "n"}}]}"#,
        ),
        body(
            &format!("POST /v1/cluster/members/nobody/weight {host}"),
            r#"{"weight": 2, "ring_version": 1}"#,
        ),
        body(&format!("POST /v1/cluster/repair {host}"), r#"{"partition": 0}"#),
        format!("GET /readyz {host}\r\n\r\n"),
        format!("GET /healthz {host}\r\n\r\n"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x05\x01\x05\0\0\0\x01\u{2}/x\u{3}\u{4}"
            .to_owned(),
    ]
}

/// Bytes that a client may send to a gateway.
fn http() -> Target {
    let runtime = runtime();
    let cluster = runtime.block_on(async {
        let cluster = Cluster::start().await;
        let hidden = format!(
            "PUT /v1/kv/zz9/hidden HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{SECRET}",
            SECRET.len()
        );
        assert_eq!(exchange(cluster.gateway(), hidden.as_bytes()).await.unwrap().status, 204);
        cluster
    });
    let (namespace, key) = (cartwheel_core::names::Namespace::new(b"ns").unwrap(), samples::names("a").1);
    let clock = [samples::dot("node-a.1", 1)].into_iter().collect();
    let clock = cluster.node.secret.clock_key().sign(&namespace, &key, &clock);
    let corpus = requests(&clock).into_iter().map(String::into_bytes).collect();
    Target::new("http", corpus, move |input| {
        runtime.block_on(async {
            let answer = exchange(cluster.gateway(), input).await;
            panicked()?;
            let answer = answer?;
            let fate = judge(input, &answer)?;
            let whole =
                exchange(cluster.gateway(), b"GET /v1/kv/zz9/hidden HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            if whole.status != 200 || whole.body != SECRET.as_bytes() {
                return Err(format!("another namespace's value is not as it was: {whole:?}"));
            }
            Ok(fate)
        })
    })
    .mended(mend_length)
    .costs(30)
}

/// What a gateway may say.
fn judge(request: &[u8], answer: &Answer) -> Result<Fate, String> {
    let shown = String::from_utf8_lossy(&answer.body).into_owned();
    if shown.contains(SECRET) || answer.head.contains(SECRET) {
        return Err(format!("it tells what another namespace holds: {answer:?}"));
    }
    // A client may ask for less time than it takes.
    let hurried = request.windows(8).any(|w| w.eq_ignore_ascii_case(b"deadline"));
    match answer.status {
        503 | 504 if hurried => {}
        500.. => return Err(format!("status {}: {shown}", answer.status)),
        _ => {}
    }
    if answer.status < 400 {
        // What was not understood at all is taken for what it may have been: the end of a connection.
        return Ok(Fate::Taken);
    }
    // hyper answers what is no request at all by itself, without a body.
    let hypers = answer.header("content-type").is_none() && answer.body.is_empty();
    if hypers && matches!(answer.status, 400 | 414 | 431) {
        return Ok(Fate::Taken);
    }
    if answer.header("content-type") != Some("application/problem+json") {
        return Err(format!("status {} without a problem: {answer:?}", answer.status));
    }
    if request.starts_with(b"HEAD") {
        return Ok(Fate::Taken);
    }
    let problem: serde_json::Value =
        serde_json::from_slice(&answer.body).map_err(|e| format!("the problem is no JSON: {e}: {shown}"))?;
    let text =
        |field: &str| problem[field].as_str().map(str::to_owned).ok_or(format!("no {field}: {problem}"));
    if problem["status"] != answer.status {
        return Err(format!("another status than {}: {problem}", answer.status));
    }
    says_why(&text("title")?)?;
    says_why(&text("detail")?)?;
    text("type")?;
    let data = [&b"PUT /v1/kv/"[..], b"DELETE /v1/kv/"].iter().any(|start| request.starts_with(start));
    if data && problem["applied"].as_str().is_none() && answer.status != 405 {
        return Err(format!("a write is refused without a word on whether it was applied: {problem}"));
    }
    Ok(Fate::Taken)
}

/// Bytes that another process of the cluster may send as a call.
fn node_call() -> Target {
    let runtime = runtime();
    let cluster = runtime.block_on(Cluster::start());
    Target::new("node-call", samples::calls(), move |input| {
        runtime.block_on(async {
            let answered = cluster.node.call(input.to_vec(), CALL).await;
            panicked()?;
            let readable = Call::decode(Bytes::copy_from_slice(input)).is_ok();
            let fate = match answered {
                Ok(bytes) => {
                    let answer = cartwheel_core::wire::Answer::decode(bytes);
                    let answer = answer.map_err(|e| format!("its answer can't be read: {e}"))?;
                    match answer.reply {
                        Reply::Refused(Refusal::Malformed(why) | Refusal::Unable(why)) => {
                            says_why(&why)?;
                            Fate::Taken
                        }
                        _ if !readable => return Err(format!("what can't be read is answered {answer:?}")),
                        _ => Fate::Taken,
                    }
                }
                Err(_) if !readable => return Err("what can't be read is not answered".to_owned()),
                // It waits for what does not come.
                Err(_) => Fate::Taken,
            };
            cluster.node.answers().await?;
            Ok(fate)
        })
    })
    .costs(20)
}

/// Bytes on a connection for frames.
fn node_frames() -> Target {
    let runtime = runtime();
    let cluster = runtime.block_on(Cluster::start());
    let frame = |kind, payload: Vec<u8>| {
        let frame =
            Frame { kind, correlation: 77, deadline_ms: 300, head: payload.into(), body: Bytes::new() };
        [&frame.header()[..], &frame.head].concat()
    };
    let mut corpus: Vec<Vec<u8>> =
        [FrameKind::Ping, FrameKind::Pong, FrameKind::Answer].map(|kind| frame(kind, vec![])).to_vec();
    corpus.extend(samples::calls().into_iter().map(|call| frame(FrameKind::Call, call)));
    corpus.push(frame(FrameKind::TracedCall, [&[7; 25], &samples::calls()[0][..]].concat()));
    corpus.push([&corpus[0][..], &corpus[5], &corpus[0]].concat());
    Target::new("node-frames", corpus, move |input| {
        runtime.block_on(async {
            let token = cluster.node.secret.node_token().header();
            let head = format!(
                "GET {FRAMES_PATH} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: {}\r\nAuthorization: {}\r\n\r\n",
                FrameVersion::NEWEST.offer(),
                token.to_str().unwrap()
            );
            let mut stream = TcpStream::connect(&cluster.node.address).await.map_err(|e| e.to_string())?;
            stream.write_all(head.as_bytes()).await.map_err(|e| e.to_string())?;
            let mut buffer = [0; 4096];
            let read = timeout(PATIENCE, stream.read(&mut buffer)).await;
            let n = read.map_err(|_| "no answer to the upgrade")?.map_err(|e| e.to_string())?;
            if !buffer[..n].starts_with(b"HTTP/1.1 101") {
                return Err(format!("no upgrade: {}", String::from_utf8_lossy(&buffer[..n])));
            }
            let _ = stream.write_all(input).await;
            let _ = stream.shutdown().await;
            // Until it hangs up, or has nothing more to say.
            while let Ok(Ok(1..)) = timeout(Duration::from_millis(20), stream.read(&mut buffer)).await {}
            cluster.node.answers().await?;
            Ok(Fate::Taken)
        })
    })
    .mended(mend_frames)
    .costs(30)
}

/// The first log file that a node finds on its disk.
fn log() -> Target {
    let runtime = runtime();
    let (log, files, objects) = runtime.block_on(written_log());
    let corpus = vec![log, b"CWLOG001".to_vec()];
    Target::new("log", corpus, move |input| {
        runtime.block_on(async {
            let disk = tempfile::tempdir().unwrap();
            let bucket: SharedBucket = Arc::new(MemoryBucket::new());
            for (name, bytes) in &objects {
                bucket.put(name, bytes.clone()).await.unwrap();
            }
            for (name, bytes) in &files {
                std::fs::write(disk.path().join(name), bytes).unwrap();
            }
            std::fs::write(disk.path().join(LOG), input).unwrap();
            // The same as hints, which have a log of the same form.
            std::fs::write(disk.path().join("hints-0000000001"), input).unwrap();
            let started = Node::start(node_config(), bucket, disk.path()).await;
            panicked()?;
            match started {
                Ok(node) => {
                    node.answers().await?;
                    node.running.shutdown().await;
                    panicked()?;
                    Ok(Fate::Taken)
                }
                Err(why) => says_why(&why),
            }
        })
    })
    .mended(mend_log)
    .costs(250)
}

const LOG: &str = "log-0000000001";

/// A log that a node wrote before it was killed; what else was on its disk; what was in the bucket.
type Left = (Vec<u8>, Vec<(String, Vec<u8>)>, Vec<(String, Bytes)>);

async fn written_log() -> Left {
    let disk = tempfile::tempdir().unwrap();
    let bucket: SharedBucket = Arc::new(MemoryBucket::new());
    let config = cartwheel_storage_node::NodeConfig { flush_interval: PATIENCE * 1000, ..node_config() };
    let node = Node::start(config, Arc::clone(&bucket), disk.path()).await.unwrap();
    for record in samples::records().into_iter().skip(1) {
        let version = record.container.siblings()[0].version.clone();
        let request = Request::Mint {
            namespace: record.namespace,
            key: record.key,
            version,
            durability: Durability::Disk,
            precondition: Precondition::None,
            max_siblings: 100,
            hint_for: None,
            insist: true,
        };
        let call = samples::call(&Call { ring_version: 1, request });
        let answer = node.call(call, PATIENCE).await.unwrap();
        let answer = cartwheel_core::wire::Answer::decode(answer).unwrap();
        assert!(matches!(answer.reply, Reply::Minted { .. }), "{answer:?}");
    }
    // Copied while it runs: as a kill leaves it.
    let mut files = Vec::new();
    for entry in std::fs::read_dir(disk.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        files.push((name.clone(), std::fs::read(disk.path().join(name)).unwrap()));
    }
    let mut objects = Vec::new();
    for listed in list_all(&*bucket, "").await.unwrap() {
        objects.push((listed.key.clone(), bucket.get(&listed.key).await.unwrap()));
    }
    let at = files.iter().position(|(name, _)| name == LOG).expect("a log file");
    let (_, log) = files.remove(at);
    files.retain(|(name, _)| name != "lock");
    node.running.shutdown().await;
    (log, files, objects)
}

/// Makes the checksums of the entries good, as far as their lengths can be followed.
fn mend_log(input: &mut Vec<u8>) {
    let mut at = 8;
    while let Some(length) = input.get(at..at + 4) {
        let length = [length[0], length[1], length[2], length[3]];
        let end = at + 8 + u32::from_le_bytes(length) as usize;
        let Some(record) = input.get(at + 8..end) else { return };
        let sum = (checksum(record) ^ checksum(&length)).to_le_bytes();
        for i in 0..4 {
            input[at + 4 + i] = sum[i] ^ sum[4 + i];
        }
        at = end;
    }
}
