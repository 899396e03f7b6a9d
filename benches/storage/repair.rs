//! What it takes to find out in what two homes differ, and to mend that: bytes, time, and CPU where nothing differs.

use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use cartwheel::client::{Failure, Output};
use cartwheel::units::{format_duration, human_size};
use cartwheel_cluster::peer::Peers;
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::merkle::Span;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value as Stored, Version};
use cartwheel_core::wire::{Answer, Call, Refusal, Repair, Reply, Request};

use crate::cluster::{Cluster, known_options};
use crate::data;
use crate::direct::{Direct, namespace};
use crate::report::{Report, short};
use crate::{Common, RepairArgs};

const NAMESPACE: &str = "repair";
/// Two homes are compared, whatever `--nodes` says.
const NODES: u8 = 2;
/// The one that is asked to compare, and the one that alone gets what differs.
const ASKED: usize = 0;
const OTHER: usize = 1;
/// Calls under way at once while keys are written.
const IN_FLIGHT: usize = 64;
/// How long a call may take, and a round.
const PATIENCE: Duration = Duration::from_secs(20);
const ROUND_PATIENCE: Duration = Duration::from_secs(600);
/// The pause before a write that was refused for want of room is sent again.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a node is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Bytes of a page of clocks.
const PAGE_BYTES: u32 = 1024 * 1024;
/// No round but those that are asked for.
const NEVER: Duration = Duration::from_secs(86_400);
/// A quick run's keys and rounds.
const QUICK_KEYS: u64 = 20_000;
const QUICK_ROUNDS: u32 = 50;

/// One round in which something differed.
struct Round {
    /// Keys that only the other home had.
    keys: u64,
    bytes: u64,
    seconds: f64,
}

/// What rounds took in which nothing differed.
struct Idle {
    /// By node, CPU seconds of each round.
    cpu: Vec<f64>,
    bytes: u64,
}

/// Measures it.
///
/// # Errors
/// If the cluster can't be run, or the homes do not hold the same in the end.
pub(crate) async fn run(args: &RepairArgs, common: &Common, output: &mut Output) -> Result<(), Failure> {
    let (mut keys, mut rounds) = (args.keys, args.rounds);
    if common.quick {
        (keys, rounds) = (keys.min(QUICK_KEYS), rounds.min(QUICK_ROUNDS));
    }
    let mut setup = common.setup(known_options(vec![("--repair-every", format_duration(NEVER))])?)?;
    setup.nodes = NODES;
    let settings = json!({
        "nodes": NODES, "keys": keys, "differing": args.differing, "rounds": rounds,
        "node_options": common.options_json(&setup),
    });
    let mut report = Report::begin("repair", settings);
    let mut cluster = Cluster::start(&setup).await?;
    let partitions = partitions(&cluster).await?;
    for node in [ASKED, OTHER] {
        let took = fill(&cluster, node, 0..keys).await?;
        output.note(&format!("{keys} keys written to one home in {:.1} s", took.as_secs_f64()));
    }
    let settled = cluster.quiet().await?;
    output.note(&settled.words());

    let idle = idle(&cluster, rounds).await?;
    output.note(&format!("{rounds} rounds without a difference: {} bytes each", idle.bytes));
    let clocks = all_clocks(&cluster, partitions).await?;
    output.note(&format!("all clocks together: {}", human_size(clocks)));
    let (mut next, mut measured) = (keys, Vec::new());
    for wanted in &args.differing {
        fill(&cluster, OTHER, next..next + wanted).await?;
        next += wanted;
        let began = Instant::now();
        let repair = round(&cluster).await?;
        let seconds = began.elapsed().as_secs_f64();
        let figure = |name: &str| repair.get(name).and_then(Value::as_u64).unwrap_or_default();
        let bytes = figure("round_bytes");
        output.note(&format!("{wanted} differing: {} in {seconds:.2} s", human_size(bytes)));
        let found = [figure("round_differing"), figure("round_pulled"), figure("round_pushed")];
        if found != [*wanted, *wanted, 0] {
            report.wrong(format!("{wanted} keys differed, and this was found, pulled and pushed: {found:?}"));
        }
        measured.push(Round { keys: *wanted, bytes, seconds });
    }
    let after = round(&cluster).await?;
    if after.get("round_differing") != Some(&json!(0)) {
        report.wrong(format!("the homes differ after all: {after}"));
    }
    tell(&mut report, keys, partitions, clocks, &measured, &idle, rounds);
    report.end(output)
}

fn tell(
    report: &mut Report,
    keys: u64,
    partitions: u32,
    clocks: u64,
    measured: &[Round],
    idle: &Idle,
    rounds: u32,
) {
    report.say(&format!(
        "Two homes of {partitions} partitions with the same {keys} keys, of one sibling each. Then so many keys are \
         written to one of them alone, and the other is asked to compare. Bytes are those of all calls and answers, the \
         records included. All clocks together, once, without any record, are {}.",
        human_size(clocks)
    ));
    let rows: Vec<Vec<String>> = measured
        .iter()
        .map(|round| {
            vec![
                round.keys.to_string(),
                human_size(round.bytes),
                short(round.bytes as f64 / round.keys.max(1) as f64),
                format!("1/{}", short(clocks as f64 / round.bytes.max(1) as f64)),
                format!("{:.2} s", round.seconds),
            ]
        })
        .collect();
    report.table(&["keys differing", "exchanged", "bytes per key", "of all clocks", "time"], &rows);
    report.say(&format!("Where nothing differs, over {rounds} rounds: {} bytes each.", idle.bytes));
    let rows: Vec<Vec<String>> = ["that asks", "that is asked"]
        .iter()
        .zip(&idle.cpu)
        .map(|(who, cpu)| {
            let micros = cpu * 1e6;
            vec![format!("the home {who}"), short(micros), short(micros / f64::from(partitions))]
        })
        .collect();
    report.table(&["CPU, µs", "a round", "a partition"], &rows);
    let rows = measured.iter().map(|r| json!({"keys": r.keys, "bytes": r.bytes, "seconds": r.seconds}));
    report.set("rounds", rows.collect());
    report.set("all_clocks_bytes", clocks.into());
    report.set("idle_round", json!({"bytes": idle.bytes, "cpu_s_by_node": idle.cpu}));
}

async fn partitions(cluster: &Cluster) -> Result<u32, Failure> {
    let ring = cluster.client.get("/v1/cluster/ring").await?.success()?.json()?;
    let partitions = ring.get("partitions").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    partitions.ok_or_else(|| Failure::failed("the ring does not say how many partitions it has"))
}

/// The only write of a key.
fn record(namespace: &Namespace, number: u64) -> Result<Record, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("key {number}: {error}"));
    let actor = ["node-a.1", "node-b.1", "node-c.1"][usize::try_from(number % 3).unwrap_or(0)];
    let dot = Dot { actor: Actor::parse(actor).ok_or_else(|| failed(&"its actor"))?, n: 1 + number % 100 };
    let version = Version {
        value: Stored::Present(Bytes::copy_from_slice(&number.to_le_bytes())),
        written_ms: 1,
        expires_ms: 0,
        request: number.into(),
        context: Clock::new(),
        content_type: Bytes::new(),
        meta: Vec::new(),
    };
    let key = Key::new(Bytes::from(data::key(number))).map_err(|e| failed(&e))?;
    Ok(Record { namespace: namespace.clone(), key, container: Container::delta(&Clock::new(), dot, version) })
}

/// Writes keys to one home alone, as if they had come from another.
async fn fill(cluster: &Cluster, node: usize, keys: Range<u64>) -> Result<Duration, Failure> {
    let began = Instant::now();
    let address = cluster.nodes.get(node).map(|node| node.address.clone());
    let address = Arc::new(address.ok_or_else(|| Failure::failed("no such node"))?);
    let peers = Peers::new(cluster.seams.clone(), cluster.token.clone());
    let (namespace, ring_version) = (namespace(NAMESPACE)?, cluster.ring_version);
    let next = Arc::new(AtomicU64::new(keys.start));
    let mut tasks = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (peers, address, next) = (peers.clone(), Arc::clone(&address), Arc::clone(&next));
        let namespace = namespace.clone();
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= keys.end {
                    return Ok(());
                }
                let record = record(&namespace, number)?.encode();
                let request = Request::Replicate { durability: Durability::Memory, hint_for: None, record };
                let call = Call { ring_version, request };
                loop {
                    let answer = peers.call(&address, &call, Instant::now() + PATIENCE).await;
                    match answer.map(|answer| answer.reply) {
                        Ok(Reply::Acked { .. }) => break,
                        Ok(Reply::Refused(Refusal::Overloaded)) => tokio::time::sleep(PAUSE).await,
                        other => return Err(Failure::failed(format!("key {number}: {other:?}"))),
                    }
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| Failure::failed(format!("a task failed: {error}")))??;
    }
    Ok(began.elapsed())
}

/// How repair is at the home that is asked.
async fn figures(direct: &mut Direct) -> Result<Value, Failure> {
    let Some(Reply::Status(bytes)) = direct.call(Request::Status).await else {
        return Err(Failure::failed("a node does not tell how it is"));
    };
    let status: Value =
        serde_json::from_slice(&bytes).map_err(|e| Failure::failed(format!("a node's status: {e}")))?;
    status.get("repair").cloned().ok_or_else(|| Failure::failed("a node's status says nothing of repair"))
}

/// Is every round done that was asked for?
fn is_done(repair: &Value) -> bool {
    repair.get("answered") == repair.get("asked") && repair.get("running") == Some(&Value::Bool(false))
}

/// One round, asked for through the gateway; how repair is after it.
async fn round(cluster: &Cluster) -> Result<Value, Failure> {
    let body = json!({"node": "node-a"}).to_string().into();
    let asked = cluster.client.send(Method::POST, "/v1/cluster/repair", HeaderMap::new(), body).await?;
    asked.success()?;
    let mut direct = cluster.direct(ASKED).ok_or_else(|| Failure::failed("no such node"))?;
    let give_up = Instant::now() + ROUND_PATIENCE;
    loop {
        let repair = figures(&mut direct).await?;
        if is_done(&repair) {
            return Ok(repair);
        }
        if Instant::now() > give_up {
            return Err(Failure::failed(format!("a round does not end: {repair}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// CPU of rounds in which nothing differs. Asking and looking cost some too: that is measured without the rounds and
/// taken off.
async fn idle(cluster: &Cluster, rounds: u32) -> Result<Idle, Failure> {
    let mut direct = cluster.direct(ASKED).ok_or_else(|| Failure::failed("no such node"))?;
    let (mut looks, mut bytes) = (0_u64, 0);
    let (before, began) = (cpu(cluster)?, Instant::now());
    for _ in 0..rounds {
        let begin = Request::Repair(Repair::Begin { partition: None });
        if direct.call(begin).await != Some(Reply::Hello) {
            return Err(Failure::failed("a node does not begin to compare"));
        }
        loop {
            looks += 1;
            let repair = figures(&mut direct).await?;
            if is_done(&repair) {
                if repair.get("round_differing") != Some(&json!(0)) {
                    return Err(Failure::failed(format!("the homes are to hold the same: {repair}")));
                }
                bytes = repair.get("round_bytes").and_then(Value::as_u64).unwrap_or_default();
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let (with, took) = (cpu(cluster)?, began.elapsed());
    let began = Instant::now();
    for _ in 0..rounds {
        direct.call(Request::Hello).await;
    }
    for _ in 0..looks {
        figures(&mut direct).await?;
    }
    // As long as the rounds, for what the nodes do besides.
    tokio::time::sleep(took.saturating_sub(began.elapsed())).await;
    let without = cpu(cluster)?;
    let each = |node: usize| {
        let at = |all: &[f64]| all.get(node).copied().unwrap_or_default();
        (2.0 * at(&with) - at(&before) - at(&without)) / f64::from(rounds)
    };
    Ok(Idle { cpu: [ASKED, OTHER].map(each).to_vec(), bytes })
}

/// CPU seconds that each storage node took since its start: the threads' times, in nanoseconds, from `/proc`.
fn cpu(cluster: &Cluster) -> Result<Vec<f64>, Failure> {
    let of_thread = |path: std::path::PathBuf| -> Option<f64> {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<f64>().ok()
    };
    let of_process = |pid: u32| -> Option<f64> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        Some(threads.flatten().filter_map(|thread| of_thread(thread.path())).sum::<f64>() / 1e9)
    };
    let pids = cluster.nodes.iter().map(|node| node.service.pid());
    let times = pids.map(|pid| pid.and_then(of_process)).collect::<Option<Vec<f64>>>();
    times.ok_or_else(|| Failure::failed("/proc does not tell the CPU time of the storage nodes"))
}

/// The bytes of all clocks that a home holds, as one home would tell another, page by page.
async fn all_clocks(cluster: &Cluster, partitions: u32) -> Result<u64, Failure> {
    let mut direct = cluster.direct(OTHER).ok_or_else(|| Failure::failed("no such node"))?;
    let spans: Vec<Span> =
        (0..partitions).map(|partition| Span::of_partition(partition, partitions)).collect();
    let (mut total, mut after) = (0, None);
    loop {
        let asked = Repair::Clocks { spans: spans.clone(), after, bytes: PAGE_BYTES };
        let Some(reply) = direct.call(Request::Repair(asked)).await else {
            return Err(Failure::failed("a node does not list its clocks"));
        };
        let Reply::Clocks { more, clocks } = &reply else {
            return Err(Failure::failed(format!("instead of clocks came {reply:?}")));
        };
        let (more, last) = (*more, clocks.last().map(|(hash, _)| *hash));
        let (head, body) = Answer { ring_version: cluster.ring_version, reply }.encode();
        total += (head.len() + body.len()) as u64;
        if !more || last.is_none() {
            return Ok(total);
        }
        after = last;
    }
}
