//! The whole cluster under a simulated network, clock and disk, from a seed: storage nodes and gateways run their
//! production code; clients fill and empty carts while links, processes, machines, disks and the bucket fail; and a
//! checker compares what clients were told with what can be true.
//!
//! `cargo sim --seeds 1000` runs many seeds, each in a process of its own; `cargo sim seed 7 --scene whole` runs one,
//! here, and the same seed does the same, byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bucket_watch;
mod changing;
mod checker;
mod child;
mod claims;
mod client;
mod cluster;
mod doom;
mod edges;
mod ending;
mod faults;
mod hosts;
mod http;
mod limits;
mod links;
mod log;
mod many;
mod mischief;
#[cfg(feature = "mutations")]
mod mutations;
mod operator;
mod options;
mod promised;
mod removal;
mod report;
mod returning;
mod run;
mod seed;
mod shrink;
mod sight;
mod steps;
mod tally;
mod timeline;
mod trace;
mod versions;
mod vote;
mod weather;
mod wire;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Simulate a whole cluster from seeds, and check its promises
#[derive(Debug, Parser)]
#[command(name = "cargo sim", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    many: many::ManyArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one seed in this process; exit status 1 if a promise was broken
    Seed(seed::SeedArgs),
    /// Make a seed that breaks a promise small: fewer faults, clients and keys, as long as the same check notices
    Shrink(shrink::ShrinkArgs),
    /// Take the rules of the protocol out, one after the other, and see which check notices
    #[cfg(feature = "mutations")]
    Mutations(mutations::MutationsArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => many::main(&cli.many),
        Some(Command::Seed(args)) => seed::main(&args),
        Some(Command::Shrink(args)) => shrink::main(&args),
        #[cfg(feature = "mutations")]
        Some(Command::Mutations(args)) => mutations::main(&args),
    }
}
