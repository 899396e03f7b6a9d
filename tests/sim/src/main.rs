//! The whole cluster under a simulated network, clock and disk, from a seed: storage nodes and gateways run their
//! production code; clients fill and empty carts while links, processes, machines, disks and the bucket fail; and a
//! checker compares what clients were told with what can be true.
//!
//! `cargo sim --seeds 1000` runs many seeds, each in a process of its own; `cargo sim seed 7 --scene whole` runs one,
//! here, and the same seed does the same, byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod changing;
mod checker;
mod client;
mod cluster;
mod doom;
mod ending;
mod faults;
mod http;
mod log;
mod operator;
mod options;
mod report;
mod returning;
mod run;
mod seed;
mod trace;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Simulate a whole cluster from seeds, and check its promises
#[derive(Debug, Parser)]
#[command(name = "cargo sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one seed in this process; exit status 1 if a promise was broken
    Seed(seed::SeedArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Seed(args) => seed::main(&args),
    }
}
