//! What the bucket is asked for, and what that costs: under steady writes, under reads alone, and at rest.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use cartwheel::client::{Failure, Output};
use cartwheel::units::{format_duration, human_size};

use crate::cluster::{Cluster, known_options, replicas, total};
use crate::data::VALUE_BYTES;
use crate::metrics::{Metrics, is_put};
use crate::process::Service;
use crate::report::{Report, short};
use crate::{Common, CostArgs};

const NAMESPACE: &str = "cost";
const CONNECTIONS: &str = "64";
/// A quick run's phases and the rate of its writes.
const QUICK: Duration = Duration::from_secs(5);
const QUICK_RATE: u64 = 200;
/// How often the load generator is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const DAY: f64 = 86_400.0;
/// Days of the month that storage is billed by.
const MONTH_DAYS: f64 = 30.0;
/// The gigabyte that stores charge for.
const GIGABYTE: f64 = 1_073_741_824.0;

/// What was asked of the bucket in one phase.
struct Phase {
    name: &'static str,
    seconds: f64,
    /// Operations of clients that succeeded.
    operations: u64,
    /// By process: the storage nodes, then the gateway.
    grown: Vec<Metrics>,
}

impl Phase {
    fn all(&self) -> Metrics {
        let mut sum = Metrics::default();
        for metrics in &self.grown {
            sum.add(metrics);
        }
        sum
    }

    /// Of the storage nodes, each.
    fn per_node(&self, wanted: impl Fn(&str) -> bool) -> f64 {
        let nodes = self.grown.len().saturating_sub(1);
        let sum: f64 = self.grown.iter().take(nodes).map(|metrics| metrics.operations(&wanted)).sum();
        sum / nodes.max(1) as f64 / self.seconds
    }

    fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        for (sum, metrics) in self.grown.iter_mut().zip(&other.grown) {
            sum.add(metrics);
        }
    }
}

/// What the processes had counted at some instant.
struct Mark {
    at: Instant,
    counted: Vec<Metrics>,
}

impl Mark {
    async fn set(cluster: &Cluster) -> Result<Self, Failure> {
        let counted = cluster.metrics().await?;
        let counted = counted.ok_or_else(|| Failure::failed("the binary counts nothing: no GET /metrics"))?;
        Ok(Self { at: Instant::now(), counted })
    }

    /// The phase that ends now; this mark is set anew.
    async fn phase(
        &mut self,
        cluster: &Cluster,
        name: &'static str,
        operations: u64,
    ) -> Result<Phase, Failure> {
        let now = Self::set(cluster).await?;
        let grown = now.counted.iter().zip(&self.counted).map(|(now, then)| now.since(then)).collect();
        let seconds = (now.at - self.at).as_secs_f64();
        *self = now;
        Ok(Phase { name, seconds, operations, grown })
    }
}

/// Measures it.
///
/// # Errors
/// If the cluster can't be run, the load fails, or the binary has no metrics.
pub(crate) async fn run(args: &CostArgs, common: &Common, output: &mut Output) -> Result<(), Failure> {
    let (mut duration, mut each) = (args.duration, args.rate);
    if common.quick {
        (duration, each) = (duration.min(QUICK), each.min(QUICK_RATE));
    }
    let copies = u64::from(replicas(common.nodes));
    // Every write reaches N nodes.
    let rate = (each * u64::from(common.nodes) / copies).max(1);
    let prices = known_options(vec![("--prices", args.prices.to_string())])?;
    let mut setup = common.setup(prices.clone())?;
    setup.gateway_options = prices;
    let settings = json!({
        "nodes": common.nodes, "value_size": VALUE_BYTES, "keys": args.keys, "copies": copies,
        "writes_per_second_and_node": each, "client_writes_per_second": rate,
        "duration": format_duration(duration), "prices": args.prices.to_string(),
        "node_options": common.options_json(&setup),
    });
    let mut report = Report::begin("cost", settings);
    let mut cluster = Cluster::start(&setup).await?;
    cluster.quiet().await?;

    let mut mark = Mark::set(&cluster).await?;
    let load = Load { keys: args.keys, rate, duration, quorum: copies.min(2) };
    let written = load.put(&cluster, false, output).await?;
    let writes = mark.phase(&cluster, "writes", written.succeeded).await?;
    let settled = cluster.quiet().await?;
    let settling = mark.phase(&cluster, "until quiet", 0).await?;
    let read = load.put(&cluster, true, output).await?;
    let reads = mark.phase(&cluster, "reads", read.succeeded).await?;
    tokio::time::sleep(duration).await;
    let idle = mark.phase(&cluster, "idle", 0).await?;
    let bytes = total(&cluster.objects().await?);

    report.say(&format!(
        "{} storage nodes, {copies} copies, one gateway; {} writes/s of {VALUE_BYTES} bytes, so {each} per second and \
         node, `w={}`, `durability=disk`, open loop, {} keys; then as many reads; then nothing; {} each. After the \
         writes: {}.",
        common.nodes,
        rate,
        load.quorum,
        args.keys,
        format_duration(duration),
        settled.words()
    ));
    for (what, load) in [("writes", &written), ("reads", &read)] {
        if load.failed > 0 {
            report.wrong(format!("{} {what} failed or were not sent", load.failed));
        }
    }
    let live = read.found * args.keys as f64 * VALUE_BYTES as f64;
    let mut phases = vec![writes, settling, reads, idle];
    tell_phases(&mut report, &phases);
    tell_works(&mut report, &phases);
    let idle = phases.pop();
    tell_rest(&mut report, idle.as_ref(), &Rest { copies, bytes, live, price: args.prices.gb_month });
    // A write's cost is paid when its last segment is merged.
    let mut phases = phases.into_iter();
    if let (Some(mut writes), Some(settling)) = (phases.next(), phases.next()) {
        writes.add(&settling);
        tell_millions(&mut report, &writes);
    }
    report.end(output)
}

/// The load of one phase.
struct Load {
    keys: u64,
    rate: u64,
    duration: Duration,
    /// W and R.
    quorum: u64,
}

/// What came of it.
struct Done {
    succeeded: u64,
    /// Refused, unanswered, or never sent.
    failed: u64,
    /// The share of reads that found a value.
    found: f64,
}

impl Load {
    /// Runs `cartwheel bench` in a process of its own.
    async fn put(&self, cluster: &Cluster, reads: bool, output: &mut Output) -> Result<Done, Failure> {
        let (url, keys, rate) = (cluster.url.to_string(), self.keys.to_string(), self.rate.to_string());
        let (duration, quorum) = (format_duration(self.duration), self.quorum.to_string());
        let mut arguments = vec!["bench", "--gateway", &url, "--namespace", NAMESPACE, "--keys", &keys];
        let size = format!("{VALUE_BYTES}B");
        arguments.extend(["--value-size", &size, "--rate", &rate, "--connections", CONNECTIONS]);
        arguments.extend(["--duration", &duration, "--warmup", "0s", "--clock", "follow", "-o", "json"]);
        if reads {
            arguments.extend(["--reads", "100%", "--r", &quorum, "--seed", "2"]);
        } else {
            // Other choices than those of the reads, which would else find what these wrote.
            arguments.extend(["--reads", "0%", "--w", &quorum, "--durability", "disk", "--seed", "1"]);
        }
        let name = if reads { "bench-reads" } else { "bench-writes" };
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let mut bench = Service::new(name, cluster.directory(), arguments, Vec::new());
        bench.start()?;
        let success = loop {
            match bench.ended() {
                Some(success) => break success,
                None => tokio::time::sleep(LOOK_EVERY).await,
            }
        };
        if !success {
            return Err(Failure::failed(format!("{name}: {}", bench.last_words())));
        }
        let document: Value = serde_json::from_str(&bench.printed()?)
            .map_err(|error| Failure::failed(format!("{name} printed no JSON: {error}")))?;
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let unanswered = document["unanswered"].as_object().into_iter().flat_map(|reasons| reasons.values());
        let kind = if reads { "reads" } else { "writes" };
        let succeeded = count(&document[kind]["count"]);
        let failed =
            count(&document["refused"]) + count(&document["unsent"]) + unanswered.map(&count).sum::<u64>();
        output.note(&format!("{name}: {succeeded} succeeded, {failed} did not"));
        let found = count(&document["statuses"]["200"]) as f64 / succeeded.max(1) as f64;
        Ok(Done { succeeded, failed, found })
    }
}

fn tell_phases(report: &mut Report, phases: &[Phase]) {
    let rows: Vec<Vec<String>> = phases
        .iter()
        .map(|phase| {
            let all = phase.all();
            vec![
                phase.name.to_owned(),
                format!("{:.1}", phase.seconds),
                phase.operations.to_string(),
                short(phase.per_node(is_put)),
                short(phase.per_node(|op| op.contains("get"))),
                short(phase.per_node(|op| op == "list")),
                short(phase.per_node(|op| op == "delete")),
                short(all.dollars()),
            ]
        })
        .collect();
    report.table(
        &[
            "phase",
            "seconds",
            "operations",
            "PUT/s per node",
            "GET/s per node",
            "LIST/s per node",
            "DELETE/s per node",
            "dollars, all",
        ],
        &rows,
    );
    let document = phases.iter().map(|phase| {
        let processes = phase.grown.iter().map(|metrics| {
            let requests = metrics.requests().into_iter();
            let requests = requests.map(|((work, op), count)| json!({"work": work, "op": op, "count": count}));
            json!({"requests": requests.collect::<Vec<Value>>(), "dollars": metrics.dollars()})
        });
        json!({
            "phase": phase.name, "seconds": phase.seconds, "operations": phase.operations,
            "puts_per_second_and_node": phase.per_node(is_put), "processes": processes.collect::<Vec<Value>>(),
        })
    });
    report.set("phases", document.collect());
}

fn tell_works(report: &mut Report, phases: &[Phase]) {
    let mut rows: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for (at, phase) in phases.iter().enumerate() {
        for (kind, count) in phase.all().requests() {
            let row = rows.entry(kind).or_insert_with(|| vec![0.0; phases.len()]);
            if let Some(cell) = row.get_mut(at) {
                *cell = count;
            }
        }
    }
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|((work, op), counts)| {
            let counts = counts.into_iter().map(|count| format!("{count:.0}"));
            std::iter::once(format!("{work}, {op}")).chain(counts).collect()
        })
        .collect();
    let mut header = vec!["requests of all processes"];
    header.extend(phases.iter().map(|phase| phase.name));
    report.table(&header, &rows);
}

fn tell_millions(report: &mut Report, writes: &Phase) {
    let all = writes.all();
    let million = 1e6 / writes.operations.max(1) as f64;
    let ops = ["put", "create", "get", "range", "list", "delete"];
    let count = |name: &str| match name {
        "range" => all.operations(|op| op.contains("range")),
        exact => all.operations(|op| op == exact),
    };
    let mut header = vec!["per million writes of clients"];
    header.extend(ops);
    header.push("dollars");
    let mut row = vec!["requests, until quiet".to_owned()];
    row.extend(ops.iter().map(|op| short(count(op) * million)));
    row.push(short(all.dollars() * million));
    report.table(&header, &[row]);
    report.set("dollars_per_million_writes", json!(all.dollars() * million));
}

/// What lies in the bucket.
struct Rest {
    copies: u64,
    /// Of all storage nodes.
    bytes: u64,
    /// Bytes of values that reads find, one copy.
    live: f64,
    /// Dollars per gigabyte and month.
    price: f64,
}

fn tell_rest(report: &mut Report, idle: Option<&Phase>, rest: &Rest) {
    let Some(idle) = idle else { return };
    let all = idle.all();
    let days = DAY / idle.seconds;
    let requests = all.dollars() * days;
    let daily = rest.price / MONTH_DAYS;
    let per_gigabyte = rest.copies as f64 * daily;
    let stored = rest.bytes as f64 / GIGABYTE * daily;
    report.table(
        &["at rest, per day", "dollars"],
        &[
            vec![
                format!("requests of the idle cluster ({:.0})", all.operations(|_| true) * days),
                short(requests),
            ],
            vec![format!("1 GB of values, {} copies without waste", rest.copies), short(per_gigabyte)],
            vec![
                format!(
                    "this cluster's {} in the bucket, for {} of values",
                    human_size(rest.bytes),
                    human_live(rest.live)
                ),
                short(stored),
            ],
            vec!["1 GB of values and the idle requests".to_owned(), short(per_gigabyte + requests)],
        ],
    );
    report.set(
        "at_rest_per_day",
        json!({
            "requests_dollars": requests, "requests": all.operations(|_| true) * days,
            "gigabyte_dollars": per_gigabyte, "stored_bytes": rest.bytes, "live_bytes": rest.live,
            "stored_dollars": stored,
        }),
    );
}

fn human_live(bytes: f64) -> String {
    // What a bench wrote is far from the limits of both types.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as said")]
    let whole = bytes.round().max(0.0) as u64;
    human_size(whole)
}
