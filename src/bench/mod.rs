//! `cartwheel bench`: puts load on a cluster through its gateways and measures the answers.
//!
//! A closed loop (the default) keeps every connection busy; an open loop (`--rate`) starts operations by the
//! clock and counts their latency from the instant they should have started, so that a stalled server can't
//! hide its stall by keeping the load away. The client is kept cheap: one task and one HTTP/1.1 connection
//! each, one operation in flight per connection.

mod clocks;
mod cpu;
mod keys;
mod link;
mod plan;
mod record;
mod report;
mod run;

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::client::{self, Exit, Failure, Format, Gateway, Output};
use crate::units;

pub use keys::Distribution;

/// The most connections that one bench opens.
const MAX_CONNECTIONS: u32 = 4096;

/// The most keys that one bench uses: the table of clocks takes some 60 bytes a key.
const MAX_KEYS: u32 = 10_000_000;

/// The longest warm-up or measurement.
const MAX_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// Put load on a cluster and measure it
///
/// Without --rate every connection sends its next operation as soon as the last was answered. With --rate
/// operations start by the clock, and latency counts from the instant an operation should have started.
/// Latencies cover what was answered as meant (2xx, 300, 404 to a read) and what got no answer at all; refusals
/// are counted by status only.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel bench --namespace load --keys 10000 --prefill --reads 90% --duration 30s\n  cartwheel bench --rate 2000 --connections 64 --distribution zipf:0.99 -o json\n\nExit status: 0 measured, 1 nothing succeeded or the prefill was refused, 2 bad usage, 3 no gateway answered"
)]
pub struct BenchArgs {
    /// A gateway to load (repeatable: connections are dealt out in turn)
    #[arg(
        long = "gateway",
        value_name = "URL",
        env = "CARTWHEEL_GATEWAY",
        default_value = "http://127.0.0.1:8080"
    )]
    pub gateways: Vec<Gateway>,
    /// The namespace to use
    #[arg(long, value_name = "NAME", default_value = "bench", value_parser = client::namespace)]
    pub namespace: String,
    /// How many keys to use (1 to 10000000)
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_KEYS)))]
    pub keys: u32,
    /// The size of every value (0B to 64MiB)
    #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = units::size_between(0, 64 << 20))]
    pub value_size: u64,
    /// The share of reads (0% to 100%)
    #[arg(long, value_name = "SHARE", default_value = "50%", value_parser = units::parse_share)]
    pub reads: f64,
    /// How keys are chosen: uniform, zipf, or zipf:EXPONENT
    #[arg(long, value_name = "NAME", default_value = "uniform")]
    pub distribution: Distribution,
    /// Connections, each with one operation in flight (1 to 4096)
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CONNECTIONS)))]
    pub connections: u32,
    /// Threads of the load generator (1 to 64)
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub threads: u8,
    /// How long to measure (1ms to 1d)
    #[arg(long, value_name = "DURATION", default_value = "10s",
          value_parser = units::duration_between(Duration::from_millis(1), MAX_WINDOW))]
    pub duration: Duration,
    /// How long to run before measuring (0s to 1d)
    #[arg(long, value_name = "DURATION", default_value = "2s",
          value_parser = units::duration_between(Duration::ZERO, MAX_WINDOW))]
    pub warmup: Duration,
    /// Operations to start per second over all connections (1 to 10000000); absent: as fast as they are answered
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,
    /// Replicas that must answer a read: a number, quorum or all (default: the namespace's)
    #[arg(long, value_name = "R", value_parser = client::replica_count)]
    pub r: Option<String>,
    /// Replicas that must acknowledge a write: a number, quorum or all (default: the namespace's)
    #[arg(long, value_name = "W", value_parser = client::replica_count)]
    pub w: Option<String>,
    /// What each acknowledgement of a write must have reached (default: the namespace's)
    #[arg(long, value_name = "LEVEL", value_parser = ["memory", "disk", "bucket"])]
    pub durability: Option<String>,
    /// Whether writes carry the clock of the key's last answer (and so leave no siblings) or none
    #[arg(long, value_name = "HOW", default_value = "follow", value_enum)]
    pub clock: ClockMode,
    /// Write every key once before the warm-up
    #[arg(long)]
    pub prefill: bool,
    /// The seed of keys, values and the order of operations
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Also report the CPU time of this process (repeatable, at most 64)
    #[arg(long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// How long an operation may take (1ms to 10m)
    #[arg(long, value_name = "DURATION", default_value = "10s", env = "CARTWHEEL_TIMEOUT",
          value_parser = units::duration_between(Duration::from_millis(1), client::MAX_TIMEOUT))]
    pub timeout: Duration,
    /// How to print the report
    #[arg(short, long, value_name = "FORMAT", env = "CARTWHEEL_OUTPUT", default_value = "text", value_enum)]
    pub output: Format,
}

/// Whether writes carry a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClockMode {
    /// Writes carry the clock of the last answer about their key, and a key has one write in flight at most.
    Follow,
    /// Writes carry no clock: each leaves what it did not see as a sibling.
    Blind,
}

/// Runs `cartwheel bench` on a runtime of its own.
///
/// # Errors
/// Exit status 1 if the prefill is refused or a `--pid` can't be read, 2 for too many of them, 3 if a
/// connection can't be opened at the start.
pub fn main(args: &BenchArgs, output: &mut Output) -> Result<Exit, Failure> {
    if args.pids.len() > 64 {
        return Err(Failure::usage(format!("--pid is given {} times: at most 64", args.pids.len())));
    }
    let mut builder = if args.threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = builder
        .worker_threads(usize::from(args.threads))
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("can't start: {error}")))?;
    let measured = runtime.block_on(run::run(args, output))?;
    match args.output {
        Format::Json => output.json(&report::json(args, &measured))?,
        Format::Text => output.raw(report::text(args, &measured).as_bytes())?,
    }
    Ok(if measured.record.succeeded() > 0 { Exit::Done } else { Exit::Failed })
}
