//! `cartwheel sim routing`: must every node know all key ranges, or would finger tables do better?

mod chord;
mod model;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::draw::Draw;
use super::stats::{mean, percentile};
use super::write_picture;
use crate::client::{Exit, Failure, Format, Output};
use crate::units::duration_between;
use chord::Chord;
use model::{Assumed, Cost, Shape, as_built, chord as chord_cost, crossover, everyone, successors};

/// Most nodes of one size.
const MAX_NODES: u32 = 1_000_000;
/// Most sizes in one run.
const MAX_SIZES: usize = 16;
/// Most lookups per size.
const MAX_LOOKUPS: u32 = 1_000_000;
/// Most lookups per second and node.
const MAX_RATE: u32 = 1_000_000;
/// The lifetimes for which the crossover is shown besides the given one.
const LIFETIMES: [Duration; 3] =
    [Duration::from_secs(3600), Duration::from_secs(24 * 3600), Duration::from_secs(30 * 24 * 3600)];

/// Compare knowing every node with Chord's finger tables
///
/// Hops are simulated: nodes at random places, finger tables and successor lists as Chord builds them, random keys
/// looked up from random nodes. State and traffic per node follow from formulas: each node leaves once per
/// --lifetime and another joins; with everyone known, each change is told to all; with Chord, each --stabilise a
/// node looks after its neighbours and one finger. "Cartwheel as built" reads ring documents from the bucket and from
/// a node, and gossips whole views every 300 ms; it has at most 1024 members. No traffic is sent.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel sim routing\n  cartwheel sim routing --nodes 64,4096 --lifetime 1h --rate 10 -o json"
)]
pub struct RoutingArgs {
    /// Sizes of the cluster (2 to 1000000 nodes each, at most 16 sizes)
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_values_t = [100, 1000, 10_000, 100_000],
          value_parser = clap::value_parser!(u32).range(2..=i64::from(MAX_NODES)))]
    pub nodes: Vec<u32>,
    /// Lookups to simulate for each size (1 to 1000000)
    #[arg(long, value_name = "COUNT", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LOOKUPS)))]
    pub lookups: u32,
    /// After how long a node leaves and another joins (1m to 365d)
    #[arg(long, value_name = "DURATION", default_value = "24h",
          value_parser = duration_between(Duration::from_secs(60), crate::units::MAX_DURATION))]
    pub lifetime: Duration,
    /// How often a node looks after its neighbours and one finger (1s to 1h)
    #[arg(long, value_name = "DURATION", default_value = "30s",
          value_parser = duration_between(Duration::from_secs(1), Duration::from_secs(3600)))]
    pub stabilise: Duration,
    /// Lookups per second that each node makes (0 to 1000000)
    #[arg(long, value_name = "COUNT", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_RATE)))]
    pub rate: u32,
    /// The seed of places and keys
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Also draw traffic, hops and state into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// How to print the result
    #[arg(short, long, value_name = "FORMAT", env = "CARTWHEEL_OUTPUT", default_value = "text", value_enum)]
    pub output: Format,
}

impl RoutingArgs {
    fn assumed(&self) -> Assumed {
        Assumed { lifetime: self.lifetime, stabilise: self.stabilise, rate: f64::from(self.rate) }
    }
}

/// One size of the cluster.
#[derive(Debug, Clone, Copy)]
struct Size {
    nodes: u32,
    everyone: Cost,
    chord: Cost,
    /// `None` for more members than a ring document holds.
    as_built: Option<Cost>,
    /// Of Chord; where everyone is known, it is one hop.
    hops: f64,
    p99_hops: f64,
    fingers: f64,
}

/// From how many nodes on finger tables cost less.
#[derive(Debug, Clone, Copy)]
struct Crossover {
    lifetime: Duration,
    /// By what it takes to keep the tables right.
    upkeep: Option<f64>,
    /// With the traffic of lookups.
    traffic: Option<f64>,
}

/// Runs `cartwheel sim routing`.
///
/// # Errors
/// Exit status 2 for too many sizes, 1 if the picture can't be written.
pub(super) fn run(args: &RoutingArgs, output: &mut Output) -> Result<Exit, Failure> {
    if args.nodes.len() > MAX_SIZES {
        let found = args.nodes.len();
        return Err(Failure::usage(format!("--nodes has {found} sizes; the limit is {MAX_SIZES}")));
    }
    let sizes: Vec<Size> = args.nodes.iter().map(|nodes| size(*nodes, args)).collect::<Result<_, _>>()?;
    let mut lifetimes: Vec<Duration> = LIFETIMES.into_iter().chain([args.lifetime]).collect();
    lifetimes.sort_unstable();
    lifetimes.dedup();
    let crossovers: Vec<Crossover> = lifetimes
        .into_iter()
        .map(|lifetime| {
            let assumed = Assumed { lifetime, ..args.assumed() };
            let upkeep = crossover(&assumed, |cost| cost.upkeep);
            Crossover { lifetime, upkeep, traffic: crossover(&assumed, Cost::traffic) }
        })
        .collect();
    // First, so that a failure leaves standard output to its own JSON document.
    write_picture(args.svg.as_deref(), || report::routing_picture(args, &sizes))?;
    match args.output {
        Format::Json => output.json(&report::json(args, &sizes, &crossovers))?,
        Format::Text => output.raw(report::text(args, &sizes, &crossovers).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn size(nodes: u32, args: &RoutingArgs) -> Result<Size, Failure> {
    let count = nodes as usize;
    let mut draw = Draw::new(args.seed, u64::from(nodes));
    let circle = Chord::new(count, &mut draw);
    let (mut hops, mut known, mut fingers) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.lookups {
        let (from, key) = (draw.below(count), draw.next());
        hops.push(circle.route(from, key).hops as f64);
        known.push(circle.known(from) as f64);
        fingers.push(circle.fingers(from).len() as f64);
    }
    let assumed = args.assumed();
    let shape = Shape {
        known: mean(&known),
        fingers: mean(&fingers),
        successors: successors(count),
        hops: mean(&hops),
    };
    Ok(Size {
        nodes,
        everyone: everyone(f64::from(nodes), &assumed),
        chord: chord_cost(&shape, &assumed),
        as_built: as_built(count, &assumed).map_err(|error| Failure::failed(error.to_string()))?,
        hops: shape.hops,
        p99_hops: percentile(&hops, 99),
        fingers: shape.fingers,
    })
}

#[cfg(test)]
mod tests;
