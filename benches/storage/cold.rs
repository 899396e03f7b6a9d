//! Reads of data that does not fit a node's memory: what they cost, and what memory the node takes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use cartwheel::client::{Failure, Output};
use cartwheel::units::{format_duration, format_size, human_size};

use crate::cluster::{Cluster, known_options, replicas, total};
use crate::data::VALUE_BYTES;
use crate::load::{Read, Target, fill, sample};
use crate::memory::{Taken, Watch};
use crate::metrics::{Metrics, is_range};
use crate::report::{Report, quantile, short};
use crate::{ColdArgs, Common};

const NAMESPACE: &str = "cold";
/// Keys of a quick run.
const QUICK_KEYS: u64 = 20_000;
const QUICK_SECONDS: u64 = 5;

/// Measures it.
///
/// # Errors
/// If the cluster can't be run, or a read brings a wrong value.
pub(crate) async fn run(args: &ColdArgs, common: &Common, output: &mut Output) -> Result<(), Failure> {
    let keys = if common.quick { args.keys.min(QUICK_KEYS) } else { args.keys };
    let quick = std::time::Duration::from_secs(QUICK_SECONDS);
    let duration = if common.quick { args.duration.min(quick) } else { args.duration };
    let memory = format_size(args.memory);
    let mut options = known_options(vec![("--memory", memory.clone())])?;
    if options.is_empty() {
        options = known_options(vec![("--cache", memory.clone())])?;
    }
    let limited = options.first().map_or("nothing", |(option, _)| *option);
    let setup = common.setup(options.clone())?;
    let settings = json!({
        "nodes": common.nodes, "value_size": VALUE_BYTES, "keys": keys, "memory": args.memory,
        "duration": format_duration(duration), "node_options": common.options_json(&setup),
    });
    let mut report = Report::begin("cold", settings);
    let mut cluster = Cluster::start(&setup).await?;
    let writes = Target {
        client: cluster.client.clone(),
        namespace: NAMESPACE,
        query: "?w=all&durability=memory&sloppy=false",
    };
    let reads = Target { query: "?r=1", ..writes.clone() };

    let watch = Watch::begin(cluster.processes());
    let loaded = fill(&writes, 0..keys).await?;
    output.note(&format!("{keys} keys written, {:.0}/s, {} sent again", loaded.per_second(), loaded.again));
    let settled = cluster.quiet().await?;
    let while_loading = watch.end();
    output.note(&settled.words());
    let bucket_bytes = total(&cluster.objects().await?);

    let before = cluster.metrics().await?;
    let watch = Watch::begin(cluster.processes());
    let read = sample(&reads, 0..keys, duration).await?;
    let while_reading = watch.end();
    let after = cluster.metrics().await?;
    let grown = before.zip(after).map(|(before, after)| grown(&before, &after, cluster.nodes.len()));

    let values = keys * VALUE_BYTES;
    let share = values * u64::from(replicas(common.nodes)) / u64::from(common.nodes);
    report.say(&format!(
        "{keys} keys of {VALUE_BYTES} bytes: {} of values per node, which has `{limited} {memory}`; {} in the bucket \
         per node; {} after loading. Then uniform reads with `r=1` through the gateway for {}.",
        human_size(share),
        human_size(bucket_bytes / u64::from(common.nodes)),
        settled.words(),
        format_duration(duration)
    ));
    tell_reads(&mut report, &read, grown.as_ref());
    tell_memory(&mut report, args.memory, &while_loading, &while_reading);
    report.set("bucket_bytes", json!(bucket_bytes));
    report.set("load", json!({"per_second": loaded.per_second(), "sent_again": loaded.again}));
    report.end(output)
}

/// What all storage nodes together counted meanwhile. The gateway, behind them, is left out.
fn grown(before: &[Metrics], after: &[Metrics], nodes: usize) -> Metrics {
    let mut sum = Metrics::default();
    for (before, after) in before.iter().zip(after).take(nodes) {
        sum.add(&after.since(before));
    }
    sum
}

fn tell_reads(report: &mut Report, read: &Read, grown: Option<&Metrics>) {
    let all = read.right + read.wrong + read.failed;
    let at = |share| quantile(&read.millis, share);
    let per_second = read.right as f64 / read.took.as_secs_f64().max(1e-9);
    let ranges = grown.map(|grown| grown.operations(is_range));
    let per_read = ranges.map_or(f64::NAN, |ranges| ranges / all.max(1) as f64);
    report.table(
        &[
            "reads",
            "right",
            "wrong",
            "failed",
            "per second",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "range GETs per read",
        ],
        &[vec![
            all.to_string(),
            read.right.to_string(),
            read.wrong.to_string(),
            read.failed.to_string(),
            short(per_second),
            short(at(0.5)),
            short(at(0.99)),
            short(at(0.999)),
            short(per_read),
        ]],
    );
    let caches = grown.map(Metrics::caches).unwrap_or_default();
    let mut cache_json = BTreeMap::new();
    if caches.is_empty() {
        report.say("The nodes count no hits of caches.");
    } else {
        let rows = caches.iter().map(|(name, (hits, misses))| {
            let share = hits / (hits + misses);
            cache_json.insert(name.clone(), json!({"hits": hits, "misses": misses}));
            vec![name.clone(), format!("{hits:.0}"), format!("{misses:.0}"), short(share * 100.0)]
        });
        let rows: Vec<Vec<String>> = rows.collect();
        report.table(&["cache", "hits", "misses", "hit rate %"], &rows);
    }
    let requests: Vec<Value> = grown
        .map(Metrics::requests)
        .unwrap_or_default()
        .into_iter()
        .map(|((work, op), count)| json!({"work": work, "op": op, "count": count}))
        .collect();
    report.set(
        "reads",
        json!({
            "right": read.right, "wrong": read.wrong, "failed": read.failed, "not_right": read.told,
            "per_second": per_second, "p50_ms": at(0.5), "p99_ms": at(0.99), "p99_9_ms": at(0.999),
            "range_gets": ranges, "caches": cache_json, "bucket_requests": requests,
        }),
    );
    if read.wrong + read.failed > 0 {
        report.wrong(format!(
            "{} reads were wrong and {} failed: {}",
            read.wrong,
            read.failed,
            read.told.join("; ")
        ));
    }
}

fn tell_memory(
    report: &mut Report,
    limit: u64,
    loading: &BTreeMap<String, Taken>,
    reading: &BTreeMap<String, Taken>,
) {
    let mut rows = Vec::new();
    let mut document = Vec::new();
    for (when, taken) in [("loading", loading), ("reading", reading)] {
        for (name, Taken { peak, median }) in taken {
            let mib = |bytes: f64| format!("{:.0}", bytes / f64::from(1 << 20));
            let ratio = if name == "gateway" { f64::NAN } else { peak / limit as f64 };
            rows.push(vec![name.clone(), when.to_owned(), mib(*median), mib(*peak), short(ratio)]);
            document.push(json!({"process": name, "while": when, "median": median, "peak": peak}));
        }
    }
    report.table(&["process", "while", "median RSS MiB", "peak RSS MiB", "peak / limit"], &rows);
    report.set("resident_bytes", json!(document));
}
