//! What storage takes: how long a killed node takes to serve again, what reads cost that do not fit the memory, how
//! much of the bucket dead versions take, what the bucket bills, and what it takes to compare two homes; measured on a
//! cluster of real processes.
//!
//! ```text
//! cargo bench --bench storage -- recovery --sizes 10MB,100MB
//! cargo bench --bench storage -- cold --memory 200MiB
//! cargo bench --bench storage -- space --quick
//! cargo bench --bench storage -- cost
//! cargo bench --bench storage -- repair --keys 1000000 --differing 1,100,10000
//! ```
//! Each part prints Markdown tables and writes `storage-PART.json` to the target directory.

mod cluster;
mod cold;
mod cost;
mod data;
mod direct;
mod load;
#[path = "../hop/machine.rs"]
mod machine;
mod memory;
mod metrics;
mod process;
mod recovery;
mod repair;
mod report;
mod space;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use cartwheel::client::{Failure, Output};
use cartwheel::units::{duration_between, format_duration, parse_size, size_between};
use cartwheel_bucket::Prices;

use cluster::{Setup, known_options};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Measure what storage takes, on a cluster of real processes on this machine
#[derive(Debug, Parser)]
#[command(name = "storage")]
struct Cli {
    /// What to measure
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    common: Common,
    /// Given by `cargo bench`
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// How long a killed node takes to serve again, by how much it holds
    Recovery(RecoveryArgs),
    /// What reads cost that do not fit the memory, and what memory a node takes
    Cold(ColdArgs),
    /// How much of the bucket overwritten and deleted keys take, and that none reads wrongly
    Space(SpaceArgs),
    /// What is asked of the bucket, and what that costs
    Cost(CostArgs),
    /// What it takes to find out in what two homes differ, and to mend that (two storage nodes, whatever --nodes says)
    Repair(RepairArgs),
}

/// Options of every part.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Small and short: shows that everything runs; the figures mean little
    #[arg(long, global = true)]
    quick: bool,
    /// Storage nodes (1 to 26); each key has three copies, or as many as there are nodes
    #[arg(long, global = true, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=26))]
    nodes: u8,
    /// The storage nodes' flush interval (default: their own; quick: 1s)
    #[arg(long, global = true, value_name = "DURATION",
          value_parser = duration_between(Duration::from_millis(100), HOUR))]
    flush_interval: Option<Duration>,
    /// How long no segment may change in the bucket before it counts as quiet (1s to 1h; default: 10s, quick: 3s; of
    /// space: --delete-after and --reap-after longer)
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration_between(SECOND, HOUR))]
    quiet_for: Option<Duration>,
    /// How long to wait at most until it is quiet (1s to 1h)
    #[arg(long, global = true, value_name = "DURATION", default_value = "10m", value_parser = duration_between(SECOND, HOUR))]
    settle: Duration,
    /// Where the cluster's temporary directory is made; on a real file system
    #[arg(long, global = true, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
}

impl Common {
    /// The cluster to start, whose storage nodes get these options besides.
    fn setup(&self, mut node_options: Vec<(&'static str, String)>) -> Result<Setup, Failure> {
        let quick = self.quick.then_some(SECOND);
        let interval =
            self.flush_interval.or(quick).map(|every| ("--flush-interval", format_duration(every)));
        node_options.extend(known_options(interval.into_iter().collect())?);
        Ok(Setup {
            directory: self.directory.clone(),
            nodes: self.nodes,
            node_options,
            gateway_options: Vec::new(),
            quiet_for: self.quiet_for.unwrap_or(if self.quick { 3 * SECOND } else { 10 * SECOND }),
            settle: self.settle,
        })
    }

    /// The storage nodes' options as JSON.
    fn options_json(&self, setup: &Setup) -> Value {
        setup.node_options.iter().map(|(option, value)| json!(format!("{option} {value}"))).collect()
    }
}

#[derive(Debug, Clone, Args)]
struct RecoveryArgs {
    /// Bytes of values per node
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', default_value = "10MB,100MB,1GB,5GB", value_parser = parse_size)]
    sizes: Vec<u64>,
    /// Restarts per size, with the log kept and again with the disk lost (1 to 99; quick: at most 3)
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    repetitions: u32,
    /// Keys that are written just before each kill, and so may lie in the log alone (1 to 1000000)
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    tail: u64,
}

#[derive(Debug, Clone, Args)]
struct ColdArgs {
    /// Keys to write (1 to 100000000; quick: at most 20000)
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// What each storage node may take: --memory where the binary knows it, else --cache
    #[arg(long, value_name = "SIZE", default_value = "200MiB", value_parser = size_between(1 << 20, 1 << 40))]
    memory: u64,
    /// How long to read (1s to 1h; quick: at most 5s)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration_between(SECOND, HOUR))]
    duration: Duration,
}

#[derive(Debug, Clone, Args)]
struct SpaceArgs {
    /// Keys to write (1 to 10000000; quick: at most 2000)
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: u64,
    /// How often each is written (1 to 10000; quick: at most 10)
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rounds: u64,
    /// The storage nodes' --delete-after, where the binary knows it (1s to 1h)
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration_between(SECOND, HOUR))]
    delete_after: Duration,
    /// The storage nodes' --reap-after, where the binary knows it (1s to 1h)
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration_between(SECOND, HOUR))]
    reap_after: Duration,
}

#[derive(Debug, Clone, Args)]
struct CostArgs {
    /// Writes per second that reach each storage node (1 to 100000; quick: at most 200)
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Keys that are written (1 to 10000000)
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: u64,
    /// How long to write, to read, and to do nothing (1s to 1h; quick: at most 5s)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration_between(SECOND, HOUR))]
    duration: Duration,
    /// The store's prices in dollars, as the storage nodes' --prices: such as put=0.005,get=0.0004,gb-month=0.023
    #[arg(long, value_name = "PRICES", default_value_t)]
    prices: Prices,
}

#[derive(Debug, Clone, Args)]
struct RepairArgs {
    /// Keys that both homes hold (1 to 100000000; quick: at most 20000)
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// Keys that one home alone holds, one round for each number (1 to 1000000)
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', default_value = "1,100,10000", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    differing: Vec<u64>,
    /// Rounds without a difference (1 to 1000000; quick: at most 50)
    #[arg(long, value_name = "COUNT", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: u32,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut output = Output::Process;
    match measure(&cli, &mut output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.note(&format!("storage: {}", failure.message));
            failure.exit.into()
        }
    }
}

fn measure(cli: &Cli, output: &mut Output) -> Result<(), Failure> {
    let Some(part) = &cli.part else {
        // `cargo bench` runs every bench; one that takes an hour waits to be asked for by name.
        return output.raw(Cli::command().render_help().to_string().as_bytes());
    };
    let failed = |error: std::io::Error| Failure::failed(format!("can't start: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let common = &cli.common;
        let measuring = async {
            match part {
                Part::Recovery(args) => Box::pin(recovery::run(args, common, output)).await,
                Part::Cold(args) => Box::pin(cold::run(args, common, output)).await,
                Part::Space(args) => Box::pin(space::run(args, common, output)).await,
                Part::Cost(args) => Box::pin(cost::run(args, common, output)).await,
                Part::Repair(args) => Box::pin(repair::run(args, common, output)).await,
            }
        };
        // What was started ends, and its files go, with `measuring`.
        tokio::select! {
            done = measuring => done,
            _ = interrupt.recv() => Err(Failure::failed("interrupted")),
            _ = terminate.recv() => Err(Failure::failed("terminated")),
        }
    })
}
