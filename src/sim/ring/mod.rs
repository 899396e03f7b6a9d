//! `cartwheel sim ring`: this ring's placement beside the three strategies of the Dynamo paper (SOSP 2007,
//! section 6.2, Figure 8).

mod cluster;
mod first;
mod measure;
mod ours;
mod report;
mod second;
mod third;
mod tokens;

use std::collections::BTreeSet;
use std::path::PathBuf;

use cartwheel_core::ring::{
    DEFAULT_PARTITIONS, DEFAULT_REPLICAS, DEFAULT_TOKENS, MAX_CELLS, MAX_MEMBERS, MAX_PARTITIONS,
    MAX_REPLICAS, MAX_TOKENS, MAX_TOTAL_TOKENS, MAX_WEIGHT, RingError,
};
use clap::Args;

use super::write_picture;
use crate::client::{Exit, Failure, Format, Output};
use cluster::{Cluster, Node, Strategy};
use measure::{Row, measure};

/// Most seeds of one run.
const MAX_SEEDS: u64 = 1000;
/// Most keys drawn per seed.
const MAX_KEYS: u32 = 10_000_000;
/// What is compared.
const STRATEGIES: [&dyn Strategy; 4] = [&first::First, &second::Second, &third::Third, &ours::Ours];
/// What `--sweep` gives T.
const SWEPT_TOKENS: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// What `--sweep` gives Q.
const SWEPT_PARTITIONS: [u32; 9] = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// Compare this ring's placement with the three strategies of the Dynamo paper (section 6.2)
///
/// Strategy 1 has T random tokens per node and partitions from token to token; 2 has the same tokens and Q equal
/// partitions; 3 has Q equal partitions and Q/S of their tokens for each of S nodes. In all three, a partition's
/// homes are the first N distinct nodes clockwise, whatever their zones.
///
/// Efficiency is mean load over greatest load, by weight: what part of the cluster can be used before one node is
/// full. MOVES is what part of all replicas moves when one node joins or leaves, LEAST is what must, and TIMES the
/// one over the other. Everything follows from the options; the seeds are 0, 1, 2 and so on.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel sim ring --nodes 36 --weights 1,1,2 --zones 3\n  cartwheel sim ring --sweep --svg efficiency.svg"
)]
pub struct RingArgs {
    /// Storage nodes before one joins or leaves (2 to 1023, more than --replicas)
    #[arg(long, value_name = "COUNT", default_value_t = 30,
          value_parser = clap::value_parser!(u16).range(2..MAX_MEMBERS as i64))]
    pub nodes: u16,
    /// Weights of the nodes (1 to 1000), repeated as often as needed
    #[arg(long, value_name = "WEIGHTS", value_delimiter = ',', default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WEIGHT)))]
    pub weights: Vec<u32>,
    /// Zones that the nodes are spread over (1 to --nodes)
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub zones: u16,
    /// Q: equal partitions, a power of two (1 to 65536)
    #[arg(long, value_name = "Q", default_value_t = DEFAULT_PARTITIONS, value_parser = power_of_two)]
    pub partitions: u32,
    /// T: tokens per unit of weight (1 to 1024)
    #[arg(long, value_name = "T", default_value_t = DEFAULT_TOKENS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOKENS)))]
    pub tokens: u32,
    /// N: homes of each partition (1 to 7)
    #[arg(long, value_name = "N", default_value_t = DEFAULT_REPLICAS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REPLICAS)))]
    pub replicas: u32,
    /// Clusters to look at (1 to 1000)
    #[arg(long, value_name = "COUNT", default_value_t = 12,
          value_parser = clap::value_parser!(u64).range(1..=MAX_SEEDS))]
    pub seeds: u64,
    /// Measure loads by so many random keys (1 to 10000000) in place of parts of the circle
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_KEYS)))]
    pub keys: Option<u32>,
    /// Vary T from 1 to 256, and Q from 32 to 8192, in place of --tokens and --partitions
    #[arg(long, conflicts_with_all = ["tokens", "partitions"])]
    pub sweep: bool,
    /// Also draw it into this file: what moves, or with --sweep, how efficiency grows with metadata
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// How to print the result
    #[arg(short, long, value_name = "FORMAT", env = "CARTWHEEL_OUTPUT", default_value = "text", value_enum)]
    pub output: Format,
}

fn power_of_two(text: &str) -> Result<u32, String> {
    let known = text.parse().ok().filter(|q: &u32| q.is_power_of_two() && *q <= MAX_PARTITIONS);
    known.ok_or_else(|| format!("Q is a power of two from 1 to {MAX_PARTITIONS}"))
}

/// Runs `cartwheel sim ring`.
///
/// # Errors
/// Exit status 2 for options that do not fit together, 1 if the picture can't be written.
pub(super) fn run(args: &RingArgs, output: &mut Output) -> Result<Exit, Failure> {
    let (cluster, newcomer) = cluster(args)?;
    let points = if args.sweep { swept(&cluster) } else { single(&cluster) };
    let measured = points.iter().map(|(strategy, cluster)| {
        measure(*strategy, cluster, newcomer, args.seeds, args.keys)
            .map_err(|e| Failure::usage(e.to_string()))
    });
    let rows: Vec<Row> = measured.collect::<Result<_, Failure>>()?;
    // First, so that a failure leaves standard output to its own JSON document.
    write_picture(args.svg.as_deref(), || {
        if args.sweep {
            report::efficiency_picture(args, &rows)
        } else {
            report::movement_picture(args, &rows)
        }
    })?;
    match args.output {
        Format::Json => output.json(&report::json(args, &rows))?,
        Format::Text => output.raw(report::text(args, &rows).as_bytes())?,
    }
    Ok(Exit::Done)
}

/// Bytes of the ring document and of the placement's tables of so many nodes in three zones: Q is the default, or
/// the next power of two above eight per node, as far as the limits allow.
///
/// # Errors
/// More members than a ring document holds.
pub(super) fn bytes_as_built(nodes: usize) -> Result<(u64, u64), RingError> {
    let room = MAX_CELLS / nodes.max(1) as u64;
    let wanted = u32::try_from(nodes * 8).unwrap_or(MAX_PARTITIONS).next_power_of_two();
    let mut partitions = wanted.clamp(DEFAULT_PARTITIONS, MAX_PARTITIONS);
    while u64::from(partitions) > room && partitions > 1 {
        partitions /= 2;
    }
    let node = |number| Node { number, weight: 1, zone: number % 3 };
    let cluster = Cluster {
        nodes: (0..u16::try_from(nodes).unwrap_or(u16::MAX)).map(node).collect(),
        replicas: DEFAULT_REPLICAS as usize,
        tokens: DEFAULT_TOKENS,
        partitions,
        seed: 0,
    };
    let bytes = ours::Ours.bytes(&cluster)?;
    Ok((bytes.kept, bytes.worked_out))
}

/// The cluster of the options, and the node that joins it.
fn cluster(args: &RingArgs) -> Result<(Cluster, Node), Failure> {
    if u32::from(args.nodes) <= args.replicas {
        return Err(Failure::usage(format!(
            "--nodes is {}; it must be more than --replicas, which is {}",
            args.nodes, args.replicas
        )));
    }
    // Strategy 3 has at least a token for each node.
    if !args.sweep && args.partitions <= u32::from(args.nodes) {
        return Err(Failure::usage(format!(
            "--partitions is {}; it must be more than --nodes, which is {}",
            args.partitions, args.nodes
        )));
    }
    // Zones go around within each weight of the cycle, so that no zone gets all the heavy nodes.
    let node = |number: u16| {
        let (round, place) =
            (usize::from(number) / args.weights.len(), usize::from(number) % args.weights.len());
        let zone = u16::try_from((round + place) % usize::from(args.zones)).unwrap_or(0);
        Node { number, weight: args.weights.get(place).copied().unwrap_or(1), zone }
    };
    let nodes: Vec<Node> = (0..args.nodes).map(node).collect();
    let filled = nodes.iter().map(|node| node.zone).collect::<BTreeSet<_>>().len();
    if filled < usize::from(args.zones) {
        return Err(Failure::usage(format!(
            "--zones is {}; {} nodes with {} weights in turn fill at most {filled}",
            args.zones,
            args.nodes,
            args.weights.len()
        )));
    }
    let cluster = Cluster {
        nodes,
        replicas: args.replicas as usize,
        tokens: args.tokens,
        partitions: args.partitions,
        seed: 0,
    };
    let newcomer = node(args.nodes);
    // Checked before anything is worked out, and for the strategies too that have no ring document.
    ours::document(&cluster.with(newcomer)).map_err(|error| Failure::usage(error.to_string()))?;
    Ok((cluster, newcomer))
}

/// Every strategy, with the T and Q of the options.
fn single(cluster: &Cluster) -> Vec<(&'static dyn Strategy, Cluster)> {
    STRATEGIES.into_iter().map(|strategy| (strategy, cluster.clone())).collect()
}

/// Every strategy, with what `--sweep` gives T and Q, as far as the limits allow.
fn swept(cluster: &Cluster) -> Vec<(&'static dyn Strategy, Cluster)> {
    let nodes = cluster.nodes.len() as u64;
    // One node joins, so a limit must hold for one more of the heaviest.
    let heaviest = cluster.nodes.iter().map(|node| u64::from(node.weight)).max().unwrap_or(1);
    let weight = cluster.weight() + heaviest;
    let tokens = SWEPT_TOKENS.into_iter().filter(|t| u64::from(*t) * weight <= MAX_TOTAL_TOKENS);
    // The paper wants many more partitions than tokens; we have a limit.
    let enough = |t: u32| {
        let wanted = u32::try_from(nodes * u64::from(t) * 4).unwrap_or(u32::MAX).clamp(1, MAX_PARTITIONS);
        wanted.next_power_of_two()
    };
    let partitions = SWEPT_PARTITIONS.into_iter().filter(move |q| u64::from(*q) * (nodes + 1) <= MAX_CELLS);
    let [first, second, third, ours] = STRATEGIES;
    let with_tokens = |t: u32| Cluster { tokens: t, ..cluster.clone() };
    let with_partitions = |q: u32| Cluster { partitions: q, ..cluster.clone() };
    let mut points: Vec<(&'static dyn Strategy, Cluster)> = Vec::new();
    points.extend(tokens.clone().map(|t| (first, with_tokens(t))));
    points.extend(tokens.map(|t| (second, Cluster { partitions: enough(t), ..with_tokens(t) })));
    let third_has = partitions.clone().filter(|q| u64::from(*q) > nodes);
    points.extend(third_has.map(|q| (third, with_partitions(q))));
    points.extend(partitions.map(|q| (ours, with_partitions(q))));
    points
}

#[cfg(test)]
mod tests;
