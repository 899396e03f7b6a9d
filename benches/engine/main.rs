//! What the parts of the storage engine cost, each by itself: the clock index, the memtable, the log, point reads from
//! memory and from the caches, building, scanning and merging segments.
//!
//! ```text
//! cargo bench --bench engine
//! cargo bench --bench engine -- --quick
//! cargo bench --bench engine -- --rounds 9
//! ```
//! A round measures each part once, so that a slow minute of the machine meets all of them. It prints a Markdown table
//! of the rounds' medians.

mod data;
#[path = "../hop/machine.rs"]
mod machine;
mod parts;
mod report;
mod stopwatch;

use std::process::ExitCode;

use clap::Parser;

use cartwheel::client::{Failure, Output};

use machine::Machine;
use parts::Scale;
use report::Report;

/// The same allocator as the binary's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure what the parts of the storage engine cost
#[derive(Debug, Clone, Parser)]
#[command(name = "engine")]
struct Args {
    /// How often every part is measured; the medians are reported (1 to 99)
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// One small round: shows that everything runs; the figures mean little
    #[arg(long)]
    quick: bool,
    /// Given by `cargo bench`, and not by `cargo test`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut output = Output::Process;
    match measure(&args, &mut output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.note(&format!("engine: {}", failure.message));
            failure.exit.into()
        }
    }
}

fn measure(args: &Args, output: &mut Output) -> Result<(), Failure> {
    let quick = args.quick || !args.bench;
    let (rounds, scale) = if quick { (1, Scale::QUICK) } else { (args.rounds, Scale::FULL) };
    let mut report = Report::begin(Machine::look(), rounds);
    let failed = |error: std::io::Error| Failure::failed(format!("can't start: {error}"));
    // As the serving commands do.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let data = data::Data::of(scale.merged_records).map_err(Failure::failed)?;
        for round in 1..=rounds {
            output.progress(&format!("round {round} of {rounds}"));
            parts::run(&scale, &data, &mut report).await.map_err(Failure::failed)?;
        }
        Ok::<(), Failure>(())
    })?;
    output.progress_ends();
    output.raw(report.text().as_bytes())
}
