//! The report of a bench, for people and for programs.

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::record::Record;
use super::run::Measured;
use super::{BenchArgs, ClockMode};
use crate::client::{Align, table};
use crate::units::{format_duration, format_size, human_micros, human_size};

/// The percentiles that are reported: the name and the quantile.
const PERCENTILES: [(&str, f64); 5] =
    [("p50", 0.50), ("p90", 0.90), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999)];

/// Successes per second of the measured time.
fn rate(count: u64, measured: &Measured) -> f64 {
    let seconds = measured.elapsed.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// The report as one JSON document; all times in microseconds unless the name says otherwise.
pub(crate) fn json(args: &BenchArgs, measured: &Measured) -> Value {
    let record = &measured.record;
    let latencies = |histogram: &Histogram<u64>| {
        let mut object = Map::new();
        for (name, quantile) in PERCENTILES {
            object.insert(format!("{name}_us"), json!(histogram.value_at_quantile(quantile)));
        }
        object.insert("max_us".to_owned(), json!(histogram.max()));
        object.insert("mean_us".to_owned(), json!(histogram.mean().round()));
        Value::Object(object)
    };
    let operations = |count: u64, histogram: &Histogram<u64>| json!({"count": count, "per_second": rate(count, measured), "latency": latencies(histogram)});
    let statuses: Map<String, Value> =
        record.statuses.iter().map(|(status, count)| (status.to_string(), json!(count))).collect();
    let unanswered: Map<String, Value> =
        record.broken.iter().map(|(broken, count)| (broken.name().to_owned(), json!(count))).collect();
    let cpu: Vec<Value> = measured
        .cpu
        .iter()
        .map(|(who, pid, used)| {
            json!({
                "who": who, "pid": pid, "cpu_seconds": used.as_secs_f64(),
                "us_per_operation": per_operation(record, used.as_secs_f64()),
            })
        })
        .collect();
    json!({
        "settings": settings(args),
        "seconds": measured.elapsed.as_secs_f64(),
        "operations": record.succeeded(),
        "per_second": rate(record.succeeded(), measured),
        "reads": operations(record.reads_ok, &record.reads),
        "writes": operations(record.writes_ok, &record.writes),
        "statuses": statuses,
        "refused": record.refused,
        "unanswered": unanswered,
        "sent_bytes": record.sent_bytes,
        "received_bytes": record.received_bytes,
        "lateness": latencies(&record.lateness),
        "unsent": measured.unsent,
        "crowded_writes": measured.crowded,
        "cpu": cpu,
    })
}

fn settings(args: &BenchArgs) -> Value {
    let gateways: Vec<String> = args.gateways.iter().map(ToString::to_string).collect();
    json!({
        "gateways": gateways,
        "namespace": args.namespace,
        "keys": args.keys,
        "value_size": args.value_size,
        "read_share": args.reads,
        "distribution": args.distribution.to_string(),
        "connections": args.connections,
        "threads": args.threads,
        "duration": format_duration(args.duration),
        "warmup": format_duration(args.warmup),
        "rate": args.rate,
        "r": args.r,
        "w": args.w,
        "durability": args.durability,
        "clock": clock_name(args.clock),
        "prefill": args.prefill,
        "seed": args.seed,
    })
}

fn clock_name(clock: ClockMode) -> &'static str {
    match clock {
        ClockMode::Follow => "follow",
        ClockMode::Blind => "blind",
    }
}

/// CPU microseconds per operation answered as meant; null if there was none.
fn per_operation(record: &Record, seconds: f64) -> Option<f64> {
    (record.succeeded() > 0).then(|| seconds * 1e6 / record.succeeded() as f64)
}

/// The report for people.
pub(crate) fn text(args: &BenchArgs, measured: &Measured) -> String {
    let record = &measured.record;
    let loop_kind = match args.rate {
        Some(rate) => format!("open loop at {rate}/s"),
        None => "closed loop".to_owned(),
    };
    let mut text = format!(
        "{} keys of {}, {}, {:.0}% reads, {} connections, {loop_kind}, clocks {}, seed {}\n",
        args.keys,
        format_size(args.value_size),
        args.distribution,
        args.reads * 100.0,
        args.connections,
        clock_name(args.clock),
        args.seed
    );
    text.push_str(&format!(
        "{} operations in {:.2} s: {:.0}/s\n\n",
        record.succeeded(),
        measured.elapsed.as_secs_f64(),
        rate(record.succeeded(), measured)
    ));
    text.push_str(&latency_table(measured, args.rate.is_some()));
    text.push('\n');
    let list = |pairs: Vec<String>| if pairs.is_empty() { "none".to_owned() } else { pairs.join(", ") };
    let statuses = record.statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
    let broken = record.broken.iter().map(|(why, count)| format!("{}: {count}", why.name())).collect();
    text.push_str(&format!("statuses    {}\n", list(statuses)));
    text.push_str(&format!("refused     {}\n", record.refused));
    text.push_str(&format!("unanswered  {}\n", list(broken)));
    text.push_str(&format!(
        "bytes       {} sent, {} received\n",
        human_size(record.sent_bytes),
        human_size(record.received_bytes)
    ));
    if measured.unsent > 0 {
        text.push_str(&format!(
            "unsent      {} operations were due but found no free connection: the true tail is worse\n",
            measured.unsent
        ));
    }
    if measured.crowded > 0 {
        text.push_str(&format!(
            "crowded     {} writes found every key they tried being written, and may have left siblings\n",
            measured.crowded
        ));
    }
    for (who, pid, used) in &measured.cpu {
        let seconds = used.as_secs_f64();
        let each = per_operation(record, seconds)
            .map_or_else(|| "-".to_owned(), |micros| format!("{micros:.1} µs per operation"));
        text.push_str(&format!("cpu         {seconds:.2} s, {each} ({who}, pid {pid})\n"));
    }
    text
}

fn latency_table(measured: &Measured, open_loop: bool) -> String {
    let record = &measured.record;
    let cells = |histogram: &Histogram<u64>| -> Vec<String> {
        if histogram.is_empty() {
            return vec!["-".to_owned(); PERCENTILES.len() + 1];
        }
        let quantiles = PERCENTILES.iter().map(|(_, quantile)| histogram.value_at_quantile(*quantile));
        quantiles.chain(std::iter::once(histogram.max())).map(human_micros).collect()
    };
    let row = |name: &str, count: Option<u64>, histogram: &Histogram<u64>| {
        let mut row = vec![name.to_owned()];
        row.push(count.map_or_else(String::new, |count| count.to_string()));
        row.push(count.map_or_else(String::new, |count| format!("{:.0}", rate(count, measured))));
        row.extend(cells(histogram));
        row
    };
    let mut rows = vec![
        row("reads", Some(record.reads_ok), &record.reads),
        row("writes", Some(record.writes_ok), &record.writes),
    ];
    if open_loop {
        rows.push(row("started late", None, &record.lateness));
    }
    let mut header = vec![("", Align::Left), ("COUNT", Align::Right), ("PER SECOND", Align::Right)];
    header.extend(PERCENTILES.iter().map(|(name, _)| (*name, Align::Right)));
    header.push(("max", Align::Right));
    table(&header, &rows)
}
