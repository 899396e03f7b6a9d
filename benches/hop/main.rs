//! What an operation costs beside what the hop alone would cost: CPU time, latency and throughput of a bare
//! HTTP answer, of a fan-out without storage, and of a whole cluster, measured in one run on one machine.
//!
//! ```text
//! cargo bench --bench hop
//! cargo bench --bench hop -- --quick
//! cargo bench --bench hop -- --rounds 5 --duration 20s -o json
//! ```
//! Every server runs in a process of its own, whose CPU time is read from `/proc`; the load comes from this
//! process. A round measures each step once, so that a slow minute of the machine meets all of them.

mod child;
mod load;
mod machine;
mod report;
mod server;
mod steps;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use cartwheel::client::{Failure, Format, Output};
use cartwheel::units::{duration_between, format_duration};

use child::Child;
use machine::Machine;
use report::Report;
use server::Role;
use steps::{STEPS, System};

/// The same allocator as the binary's, so that the systems differ in what they do, not in how they allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure what an operation costs beside a bare HTTP answer and a fan-out without storage
#[derive(Debug, Clone, Parser)]
#[command(name = "hop")]
struct Args {
    /// How often every step is measured; the medians are reported (1 to 99)
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// How long a step is measured (100ms to 1h)
    #[arg(long, value_name = "DURATION", default_value = "10s",
          value_parser = duration_between(Duration::from_millis(100), Duration::from_secs(3600)))]
    duration: Duration,
    /// How long a step runs before it is measured (0s to 1h)
    #[arg(long, value_name = "DURATION", default_value = "1s",
          value_parser = duration_between(Duration::ZERO, Duration::from_secs(3600)))]
    warmup: Duration,
    /// The flush interval of the cluster that flushes while it is measured (100ms to 1h)
    #[arg(long, value_name = "DURATION", default_value = "10s",
          value_parser = duration_between(Duration::from_millis(100), Duration::from_secs(3600)))]
    flush_interval: Duration,
    /// One short round: shows that everything runs; the figures mean little
    #[arg(long)]
    quick: bool,
    /// How to print the report
    #[arg(short, long, value_name = "FORMAT", default_value = "text", value_enum)]
    output: Format,
    /// Be one of the servers; used by the bench itself
    #[arg(long, value_name = "ROLE", hide = true, value_enum)]
    serve: Option<Role>,
    /// Given by `cargo bench`, and not by `cargo test`
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    /// Short where it was asked for, and where `cargo test` only wants to know that the bench runs.
    fn settled(self) -> Self {
        if !self.quick && self.bench {
            return self;
        }
        let second = Duration::from_secs(1);
        let warmup = Duration::from_millis(300);
        Self { rounds: 1, duration: second, warmup, flush_interval: second, ..self }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut output = Output::Process;
    let done = match args.serve {
        Some(role) => server::main(role, &mut output),
        None => measure(&args.settled(), &mut output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.note(&format!("hop: {}", failure.message));
            failure.exit.into()
        }
    }
}

fn measure(args: &Args, output: &mut Output) -> Result<(), Failure> {
    let mut report = Report::new(Machine::look(), args);
    for round in 1..=args.rounds {
        // A cluster is founded afresh in each round: what one left behind would slow the next.
        let mut running: Option<(System, Child)> = None;
        for (number, step) in STEPS.iter().enumerate() {
            let child = match running.take() {
                Some((system, child)) if system == step.system => child,
                other => {
                    drop(other);
                    Child::start(step.system, args.flush_interval)?
                }
            };
            let figures = load::measure(step, &child, args)?;
            output.note(&format!(
                "round {round} of {}: {} {}: {:.1} CPU µs per operation",
                args.rounds, step.system, step.name, figures.cpu_us
            ));
            report.add(number, figures);
            running = Some((step.system, child));
        }
    }
    match args.output {
        Format::Json => output.json(&report.json()),
        Format::Text => output.raw(report.text().as_bytes()),
    }
}

impl Args {
    /// The settings in a line.
    fn summary(&self) -> String {
        format!(
            "{} keys of 1KiB, {} connections, closed loop, medians of {} rounds of {} after {}",
            load::KEYS,
            load::CONNECTIONS,
            self.rounds,
            format_duration(self.duration),
            format_duration(self.warmup)
        )
    }
}
