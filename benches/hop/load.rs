//! Puts the load of one step on a server, with the load generator of `cartwheel bench`.

use std::time::Duration;

use serde_json::Value;

use cartwheel::bench::{self, BenchArgs, ClockMode, Distribution};
use cartwheel::client::{Exit, Failure, Format, Output};

use crate::Args;
use crate::child::Child;
use crate::steps::{Operation, Step};

/// Keys that the load uses.
pub(crate) const KEYS: u32 = 10_000;
/// Connections that are kept busy.
pub(crate) const CONNECTIONS: u32 = 32;
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 1024;
/// How long a flush may take after its time has come.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// The percentiles that are kept.
pub(crate) const PERCENTILES: [&str; 4] = ["p50", "p90", "p99", "p99.9"];

/// What one measurement gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    /// CPU time of the server's process, microseconds per operation.
    pub(crate) cpu_us: f64,
    /// Operations per second.
    pub(crate) per_second: f64,
    /// Latencies, microseconds, as [`PERCENTILES`] names them.
    pub(crate) latency_us: [f64; PERCENTILES.len()],
}

/// Measures one step.
///
/// # Errors
/// Exit status 1 if an operation was refused or got no answer, or a value did not come back whole: then the
/// figures are not those of the step.
pub(crate) fn measure(step: &Step, child: &Child, args: &Args) -> Result<Figures, Failure> {
    let mut collected = Output::memory();
    let exit = bench::main(&bench_args(step, child, args), &mut collected)?;
    let report = match collected {
        Output::Memory { out, .. } if exit == Exit::Done => serde_json::from_slice(&out).ok(),
        _ => None,
    };
    let broken = |why: String| Failure::failed(format!("{} {}: {why}", step.system, step.name));
    let report: Value = report.ok_or_else(|| broken("nothing was measured".to_owned()))?;
    check(&report, step.operation).map_err(broken)?;
    figures(&report, step.operation)
        .ok_or_else(|| broken("the load generator's report lacks figures".to_owned()))
}

fn bench_args(step: &Step, child: &Child, args: &Args) -> BenchArgs {
    let (reads, w, durability) = match step.operation {
        Operation::Get => (1.0, None, None),
        Operation::Put(durability) => (0.0, Some("2".to_owned()), Some(durability.to_owned())),
    };
    let wait = if step.flushed { args.flush_interval + FLUSH_TIME } else { Duration::ZERO };
    BenchArgs {
        gateways: vec![child.gateway.clone()],
        namespace: "hop".to_owned(),
        keys: KEYS,
        value_size: VALUE_BYTES as u64,
        reads,
        distribution: Distribution::Uniform,
        connections: CONNECTIONS,
        threads: 1,
        duration: args.duration,
        warmup: args.warmup + wait,
        rate: None,
        r: (step.operation == Operation::Get).then(|| "2".to_owned()),
        w,
        durability,
        clock: if step.prefill { ClockMode::Follow } else { ClockMode::Blind },
        prefill: step.prefill,
        seed: 1,
        pids: vec![child.pid()],
        timeout: Duration::from_secs(10),
        output: Format::Json,
    }
}

/// Did every operation do what it was measured for?
fn check(report: &Value, operation: Operation) -> Result<(), String> {
    let refused = report["refused"].as_u64().unwrap_or(u64::MAX);
    let unanswered = report["unanswered"].as_object().is_none_or(|reasons| !reasons.is_empty());
    if refused > 0 || unanswered {
        return Err(format!(
            "operations failed: {}, unanswered {}",
            report["statuses"], report["unanswered"]
        ));
    }
    let reads = report["reads"]["count"].as_u64().unwrap_or(0);
    let received = report["received_bytes"].as_u64().unwrap_or(0);
    if operation == Operation::Get && received != reads * VALUE_BYTES as u64 {
        return Err(format!("{reads} reads brought {received} bytes: not one value each"));
    }
    Ok(())
}

fn figures(report: &Value, operation: Operation) -> Option<Figures> {
    let server = report["cpu"].as_array()?.iter().find(|process| process["who"] == "server")?;
    let latency = match operation {
        Operation::Get => &report["reads"]["latency"],
        Operation::Put(_) => &report["writes"]["latency"],
    };
    let mut latency_us = [0.0; PERCENTILES.len()];
    for (figure, name) in latency_us.iter_mut().zip(PERCENTILES) {
        *figure = latency[format!("{name}_us")].as_f64()?;
    }
    Some(Figures {
        cpu_us: server["us_per_operation"].as_f64()?,
        per_second: report["per_second"].as_f64()?,
        latency_us,
    })
}
