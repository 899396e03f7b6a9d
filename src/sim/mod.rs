//! `cartwheel sim`: what a ring and a way to route cost, worked out from a seed on one machine, without a cluster.

mod draw;
mod ring;
mod routing;
mod stats;
mod svg;

use std::path::Path;

use clap::{Args, Subcommand};

use crate::client::{Exit, Failure, Format, Output};

pub use ring::RingArgs;
pub use routing::RoutingArgs;

/// Work out what placements and ways to route cost, without a cluster
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel sim ring --nodes 30 --zones 3\n  cartwheel sim routing --lifetime 1h"
)]
pub struct SimArgs {
    /// What to simulate
    #[command(subcommand)]
    pub what: What,
}

/// What can be simulated.
#[derive(Debug, Clone, Subcommand)]
pub enum What {
    /// Compare this ring's placement with the three strategies of the Dynamo paper (section 6.2)
    Ring(RingArgs),
    /// Compare knowing every node with Chord's finger tables
    Routing(RoutingArgs),
}

impl SimArgs {
    /// How to print the result.
    pub fn output(&self) -> Format {
        match &self.what {
            What::Ring(args) => args.output,
            What::Routing(args) => args.output,
        }
    }
}

/// Runs `cartwheel sim`.
///
/// # Errors
/// Exit status 2 for options that do not fit together, 1 if the picture can't be written.
pub fn main(args: &SimArgs, output: &mut Output) -> Result<Exit, Failure> {
    match &args.what {
        What::Ring(args) => ring::run(args, output),
        What::Routing(args) => routing::run(args, output),
    }
}

/// Writes a picture to the file of `--svg`, if there is one.
fn write_picture(file: Option<&Path>, picture: impl FnOnce() -> String) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, picture())
        .map_err(|error| Failure::failed(format!("--svg {}: {error}", file.display())))
}
