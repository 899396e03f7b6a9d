//! How long a node that was killed takes to serve again, by how much it holds.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use cartwheel::client::{Failure, Output};
use cartwheel::units::human_size;
use cartwheel_core::names::Namespace;

use crate::cluster::{Cluster, total};
use crate::data::{self, VALUE_BYTES};
use crate::direct::{Answered, Direct, namespace};
use crate::load::{Target, fill};
use crate::report::{Report, asked_size, median, quantile};
use crate::{Common, RecoveryArgs};

/// How often the node is asked.
const POLL: Duration = Duration::from_millis(10);
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Keys that lie in the bucket, that were written just before the kill, and that are written to the node.
const BULK: &str = "bulk";
const TAIL: &str = "tail";
const PROBE: &str = "probe";

/// One restart.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// Seconds from the start of the process to the first read of a key in the bucket.
    read: f64,
    /// To the first read of a key written just before the kill.
    tail: f64,
    /// To the first write on the node's disk.
    write: f64,
}

/// What a figure is called, and how it is found.
type Column = (&'static str, &'static str, fn(&Times) -> f64);

const COLUMNS: [Column; 3] = [
    ("read", "first read", |times| times.read),
    ("tail", "first read of the newest", |times| times.tail),
    ("write", "first write", |times| times.write),
];

/// All restarts of one kind at one size.
struct Series {
    size: u64,
    wiped: bool,
    bucket_bytes: u64,
    objects: usize,
    times: Vec<Times>,
}

/// Measures it.
///
/// # Errors
/// If the cluster can't be run, or a node gives a wrong answer.
pub(crate) async fn run(args: &RecoveryArgs, common: &Common, output: &mut Output) -> Result<(), Failure> {
    let repetitions = if common.quick { args.repetitions.min(3) } else { args.repetitions };
    let mut sizes = args.sizes.clone();
    sizes.sort_unstable();
    let setup = common.setup(Vec::new())?;
    let settings = json!({
        "nodes": common.nodes, "value_size": VALUE_BYTES, "sizes": sizes, "repetitions": repetitions,
        "tail_keys": args.tail, "node_options": common.options_json(&setup),
    });
    let mut report = Report::begin("recovery", settings);
    let mut cluster = Cluster::start(&setup).await?;
    let bulk = Target {
        client: cluster.client.clone(),
        namespace: BULK,
        query: "?w=all&durability=memory&sloppy=false",
    };
    let mut measured: Vec<Series> = Vec::new();
    let mut keys = 0;
    let mut restarts = 0;
    for size in sizes {
        let wanted = (size / VALUE_BYTES).max(1);
        if wanted > keys {
            let loaded = fill(&bulk, keys..wanted).await?;
            output.note(&format!(
                "{}: {} keys written, {:.0}/s, {} sent again",
                asked_size(size),
                loaded.writes,
                loaded.per_second(),
                loaded.again
            ));
            keys = wanted;
        }
        for wiped in [false, true] {
            let mut series = Series { size, wiped, bucket_bytes: 0, objects: 0, times: Vec::new() };
            for _ in 0..repetitions {
                let settled = cluster.quiet().await?;
                if settled.unrest.is_some() {
                    output.note(&format!("{}: {}", asked_size(size), settled.words()));
                }
                let objects = cluster.objects().await?;
                series.bucket_bytes = total(&objects) / u64::from(common.nodes);
                series.objects = objects.len();
                let restart = Restart { number: restarts, wiped, keys, tail: args.tail };
                let times = restart.measure(&mut cluster, &mut report).await?;
                output.note(&format!(
                    "{}, {}: read {:.3} s, newest {:.3} s, write {:.3} s",
                    asked_size(size),
                    log_words(wiped),
                    times.read,
                    times.tail,
                    times.write
                ));
                series.times.push(times);
                restarts += 1;
            }
            measured.push(series);
        }
    }
    tell(&mut report, &measured, args.tail, repetitions);
    report.end(output)
}

/// A kill and what comes after it.
struct Restart {
    number: u64,
    wiped: bool,
    /// Keys in the bucket.
    keys: u64,
    /// Keys written just before.
    tail: u64,
}

impl Restart {
    async fn measure(&self, cluster: &mut Cluster, report: &mut Report) -> Result<Times, Failure> {
        let first = self.number * self.tail;
        let tail = Target {
            client: cluster.client.clone(),
            namespace: TAIL,
            query: "?w=all&durability=disk&sloppy=false",
        };
        fill(&tail, first..first + self.tail).await?;
        // Each node has its turn.
        let place = usize::try_from(self.number).unwrap_or(0) % cluster.nodes.len().max(1);
        let calls = || cluster.direct(place).ok_or_else(|| Failure::failed("no such node"));
        let (mut reader, mut newest, mut writer) = (calls()?, calls()?, calls()?);
        let Some(node) = cluster.nodes.get_mut(place) else { return Err(Failure::failed("no such node")) };
        node.service.kill();
        if self.wiped {
            cluster.wipe(place)?;
        }
        let Some(node) = cluster.nodes.get_mut(place) else { return Err(Failure::failed("no such node")) };
        let started = Instant::now();
        node.service.start()?;
        let (bulk, tail, probe) = (namespace(BULK)?, namespace(TAIL)?, namespace(PROBE)?);
        let keys = self.keys;
        let mut seed = self.number;
        let read = first_served(started, async |_| reader.read(&bulk, data::below(&mut seed, keys)).await);
        let (count, mut other_seed) = (self.tail, !self.number);
        let newest = first_served(started, async |_| {
            newest.read(&tail, first + data::below(&mut other_seed, count)).await
        });
        let write =
            first_served(started, async |attempt| write_one(&mut writer, &probe, self.number, attempt).await);
        let (read, newest, write) = tokio::join!(read, newest, write);
        let (read, newest, write) = (read?, newest?, write?);
        for what in [&read, &newest, &write].into_iter().flat_map(|served| &served.wrong) {
            report.wrong(format!("restart {} ({}): {what}", self.number, log_words(self.wiped)));
        }
        cluster.until_whole().await?;
        Ok(Times { read: read.seconds, tail: newest.seconds, write: write.seconds })
    }
}

/// A key that nobody wrote before.
async fn write_one(writer: &mut Direct, probe: &Namespace, restart: u64, attempt: u64) -> Answered {
    writer.write(probe, restart * 1_000_000 + attempt).await
}

/// When a node first did what was asked, and what it answered wrongly before.
struct Served {
    seconds: f64,
    wrong: Vec<String>,
}

/// Asks every 10 ms until it is done.
async fn first_served(
    started: Instant,
    mut attempt: impl AsyncFnMut(u64) -> Answered,
) -> Result<Served, Failure> {
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wrong = Vec::new();
    let mut number = 0;
    while started.elapsed() < PATIENCE {
        ticks.tick().await;
        match attempt(number).await {
            Answered::Served => return Ok(Served { seconds: started.elapsed().as_secs_f64(), wrong }),
            Answered::NotYet => {}
            Answered::Wrong(what) if wrong.is_empty() => wrong.push(what),
            Answered::Wrong(_) => {}
        }
        number += 1;
    }
    let said = wrong.first().map(|what| format!(": {what}")).unwrap_or_default();
    Err(Failure::failed(format!("a restarted node did not serve within {} s{said}", PATIENCE.as_secs())))
}

fn log_words(wiped: bool) -> &'static str {
    if wiped { "disk lost" } else { "log kept" }
}

fn figures(series: &Series, of: fn(&Times) -> f64) -> Vec<f64> {
    series.times.iter().map(of).collect()
}

/// Milliseconds: the median, and the least and the most.
fn cell(values: &[f64]) -> String {
    let at = |share| quantile(values, share) * 1e3;
    format!("{:.0} ({:.0}-{:.0})", at(0.5), at(0.0), at(1.0))
}

fn tell(report: &mut Report, measured: &[Series], tail: u64, repetitions: u32) {
    report.say(&format!(
        "Milliseconds from the start of a killed node's process to what it first served by itself: medians of \
         {repetitions} restarts (least-most). {tail} keys were written just before each kill."
    ));
    let mut rows = Vec::new();
    for series in measured {
        let mut row = vec![asked_size(series.size), log_words(series.wiped).to_owned()];
        row.extend(COLUMNS.iter().map(|(_, _, of)| cell(&figures(series, *of))));
        row.extend([human_size(series.bucket_bytes), series.objects.to_string()]);
        rows.push(row);
    }
    for wiped in [false, true] {
        let of_kind: Vec<&Series> = measured.iter().filter(|series| series.wiped == wiped).collect();
        if let [least, .., most] = of_kind.as_slice() {
            let ratio = |of: fn(&Times) -> f64| median(&figures(most, of)) / median(&figures(least, of));
            let mut row = vec!["largest / smallest".to_owned(), log_words(wiped).to_owned()];
            row.extend(COLUMNS.iter().map(|(_, _, of)| format!("x {:.2}", ratio(*of))));
            row.extend(["".to_owned(), "".to_owned()]);
            rows.push(row);
        }
    }
    let mut header = vec!["values per node", "disk"];
    header.extend(COLUMNS.iter().map(|(_, title, _)| *title));
    header.extend(["bucket per node", "objects"]);
    report.table(&header, &rows);
    let series: Vec<Value> = measured.iter().map(series_json).collect();
    report.set("restarts", json!(series));
}

fn series_json(series: &Series) -> Value {
    let mut document = json!({
        "size": series.size, "disk_lost": series.wiped,
        "bucket_bytes_per_node": series.bucket_bytes, "objects": series.objects,
    });
    for (name, _, of) in COLUMNS {
        let seconds = figures(series, of);
        document[name] = json!({"median_s": median(&seconds), "seconds": seconds});
    }
    document
}
