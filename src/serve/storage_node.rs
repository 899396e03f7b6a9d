//! `cartwheel storage-node`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use cartwheel_bucket::S3Options;
use cartwheel_cluster::membership::Founding;
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{DEFAULT_TOKENS, MAX_PARTITIONS};
use cartwheel_storage_node::disk::{Disk, FileDisk};
use cartwheel_storage_node::{NodeConfig, StartError};

use super::shutdown::Signals;
use super::telemetry::Telemetry;
use super::{Outside, ProcessArgs, check_exposure, runtime, supervisor, telemetry};
use crate::client::{Exit, Failure, Output};

/// Options of `cartwheel storage-node`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  cartwheel storage-node --id node-a --bucket s3://carts/prod --listen 127.0.0.1:7101 \
                  --data-dir /var/lib/cartwheel"
)]
pub struct StorageNodeArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub process: ProcessArgs,
    /// The node's name; it outlives processes, disks and machines (a-z, 0-9, '-', '_')
    #[arg(long, value_name = "ID", env = "CARTWHEEL_ID", value_parser = NodeId::new)]
    pub id: NodeId,
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", env = "CARTWHEEL_LISTEN", default_value = "127.0.0.1:7101")]
    pub listen: String,
    /// The address that others call, if it is another
    #[arg(long, value_name = "HOST:PORT", env = "CARTWHEEL_ADVERTISE")]
    pub advertise: Option<String>,
    /// The node's zone: no two replicas of a key in one zone, where there are enough zones
    #[arg(long, value_name = "ZONE", env = "CARTWHEEL_ZONE", default_value = "default")]
    pub zone: String,
    /// How much of the data it takes, relative to the others (1 to 1000)
    #[arg(long, value_name = "W", env = "CARTWHEEL_WEIGHT", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub weight: u32,
    /// Where the write-ahead log lies
    #[arg(long, value_name = "DIR", env = "CARTWHEEL_DATA_DIR", default_value = "cartwheel-data")]
    pub data_dir: PathBuf,
    /// Keep no log: the node then reaches the durabilities memory and bucket only
    #[arg(long, env = "CARTWHEEL_NO_DISK")]
    pub no_disk: bool,
    /// Memory that the node is to keep within: the clock index, what waits for the bucket and buffers come first, caches
    /// get the rest (64MiB to 1TiB)
    #[arg(long, value_name = "SIZE", env = "CARTWHEEL_MEMORY", default_value = "1GiB",
          value_parser = crate::units::size_between(64 << 20, 1 << 40))]
    pub memory: u64,
    /// The most of it that caches may have (1MiB to 1TiB)
    #[arg(long, value_name = "SIZE", env = "CARTWHEEL_CACHE",
          value_parser = crate::units::size_between(1 << 20, 1 << 40))]
    pub cache: Option<u64>,
    /// How long data may wait for the bucket (100ms to 1h)
    #[arg(long, value_name = "DURATION", env = "CARTWHEEL_FLUSH_INTERVAL", default_value = "10s",
          value_parser = crate::units::duration_between(Duration::from_millis(100), Duration::from_secs(3600)))]
    pub flush_interval: Duration,
    /// How much data may wait for the bucket, and at most a thirty-second of the memory (64KiB to 1GiB)
    #[arg(long, value_name = "SIZE", env = "CARTWHEEL_FLUSH_BYTES", default_value = "64MiB",
          value_parser = crate::units::size_between(64 << 10, 1 << 30))]
    pub flush_bytes: u64,
    /// Bytes of hints kept for other nodes; beyond it no more are taken (1MiB to 1TiB)
    #[arg(long, value_name = "SIZE", env = "CARTWHEEL_HINT_BYTES", default_value = "1GiB",
          value_parser = crate::units::size_between(1 << 20, 1 << 40))]
    pub hint_bytes: u64,
    /// How long what is needed no longer stays in the bucket, for readers that are slow (1s to 7d)
    #[arg(long, value_name = "DURATION", env = "CARTWHEEL_DELETE_AFTER", default_value = "5m",
          value_parser = crate::units::duration_between(Duration::from_secs(1), Duration::from_secs(7 * 86_400)))]
    pub delete_after: Duration,
    /// How long a key must have been deleted before its homes are asked whether they can forget it (1s to 365d)
    #[arg(long, value_name = "DURATION", env = "CARTWHEEL_REAP_AFTER", default_value = "10m",
          value_parser = crate::units::duration_between(Duration::from_secs(1), Duration::from_secs(365 * 86_400)))]
    pub reap_after: Duration,
    /// How often it compares what it holds with each other home (1s to 7d)
    #[arg(long, value_name = "DURATION", env = "CARTWHEEL_REPAIR_EVERY", default_value = "1m",
          value_parser = crate::units::duration_between(Duration::from_secs(1), Duration::from_secs(7 * 86_400)))]
    pub repair_every: Duration,
    /// May the node add itself to the ring?
    #[arg(long, value_name = "WHEN", env = "CARTWHEEL_JOIN", default_value = "auto", value_enum)]
    pub join: Join,
    /// Replicas of each key, if this node founds the cluster (1 to 7)
    #[arg(long, value_name = "N", env = "CARTWHEEL_REPLICAS", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=7))]
    pub replicas: u32,
    /// Storage nodes that the cluster is expected to grow to, if this node founds it: that chooses --partitions (1 to
    /// 1024)
    #[arg(long, value_name = "COUNT", env = "CARTWHEEL_EXPECT_NODES", conflicts_with = "partitions",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub expect_nodes: Option<u32>,
    /// Partitions, if this node founds the cluster: a power of two (at most 65536), for good [default: 256]
    #[arg(long, value_name = "Q", env = "CARTWHEEL_PARTITIONS", value_parser = partitions)]
    pub partitions: Option<u32>,
    /// Tokens for each unit of weight, if this node founds the cluster (1 to 1024)
    #[arg(long, value_name = "T", env = "CARTWHEEL_TOKENS", default_value_t = DEFAULT_TOKENS,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub tokens: u32,
    /// Go on with a store that does not honour conditional creates
    #[arg(long, env = "CARTWHEEL_UNSAFE_NO_CAS")]
    pub unsafe_no_cas: bool,
}

/// Reads a number of partitions.
fn partitions(text: &str) -> Result<u32, String> {
    let number: Option<u32> = text.parse().ok();
    let fits = number.filter(|q| q.is_power_of_two() && *q <= MAX_PARTITIONS);
    fits.ok_or_else(|| format!("a power of two from 1 to {MAX_PARTITIONS}"))
}

/// How a cluster is founded that is expected to grow to so many nodes; Q can also be said.
pub(crate) fn founding(partitions: Option<u32>, expected: Option<u32>) -> Founding {
    let default = Founding::default();
    let partitions = partitions.or(expected.map(Founding::partitions_for)).unwrap_or(default.partitions);
    Founding { partitions, ..default }
}

/// May a node add itself to the ring?
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Join {
    /// Yes.
    Auto,
    /// No: somebody stages changes.
    Never,
}

/// Runs a storage node until a signal.
///
/// # Errors
/// A [`Failure`] that names the flag to look at.
pub fn main(args: StorageNodeArgs, output: &mut Output) -> Result<Exit, Failure> {
    telemetry::start(&args.process.log, "info")?;
    let protected = args.process.insecure || args.process.cluster_secret.is_some();
    check_exposure("--listen", &args.listen, protected, "give --cluster-secret")?;
    runtime()?.block_on(run(args, output))
}

async fn run(args: StorageNodeArgs, output: &mut Output) -> Result<Exit, Failure> {
    let signals = Signals::new()?;
    let disk: Option<Arc<dyn Disk>> = if args.no_disk {
        None
    } else {
        let failed = |e| Failure::failed(format!("--data-dir {}: {e}", args.data_dir.display()));
        Some(Arc::new(FileDisk::open(&args.data_dir).map_err(failed)?))
    };
    let secret = args.process.cluster_secret.as_deref();
    let ProcessArgs { prices, log, .. } = &args.process;
    let (service, instance) = ("cartwheel-storage-node", Some(args.id.as_str()));
    let telemetry = Telemetry::start(&args.process.telemetry, log, prices.list, service, instance)?;
    let metrics = &telemetry.metrics;
    let meter = metrics.meter(args.id.as_str());
    let (outside, _) = Outside::connect(&args.process.bucket, S3Options::default(), secret, &meter).await?;
    let config = NodeConfig {
        advertise: args.advertise,
        zone: args.zone,
        weight: args.weight,
        memory_bytes: args.memory,
        cache_bytes: args.cache.unwrap_or(u64::MAX),
        meter,
        prices: args.process.prices.list,
        metrics: Some(metrics.text()),
        recorder: metrics.recorder(args.id.as_str()),
        drain_wait: args.process.drain_wait,
        frames: args.process.frames,
        delete_after: args.delete_after,
        reap_after: args.reap_after,
        repair_every: args.repair_every,
        flush_interval: args.flush_interval,
        hint_bytes: args.hint_bytes,
        flush_bytes: usize::try_from(args.flush_bytes).unwrap_or(usize::MAX),
        founding: Founding {
            replicas: args.replicas,
            tokens: args.tokens,
            ..founding(args.partitions, args.expect_nodes)
        },
        may_join: args.join == Join::Auto,
        unsafe_no_cas: args.unsafe_no_cas,
        ..NodeConfig::new(args.id, args.listen)
    };
    let Outside { seams, bucket, secret } = outside;
    let node = cartwheel_storage_node::start(config, seams, disk, bucket, &secret).await;
    let node = node.map_err(|e| explain(&e))?;
    output.note(&format!("storage node {} serves at {}", node.id(), node.address()));
    let id = node.id().clone();
    metrics.show_node(id.as_str(), node.watch());
    supervisor::ready();
    tokio::select! {
        signals = signals.first() => {
            let end = async {
                node.shutdown().await;
                telemetry.finish().await;
            };
            signals.drain(end).await;
            Ok(Exit::Done)
        }
        () = node.taken_over() => {
            // What it holds and the bucket does not goes there; the other process takes it up.
            node.shutdown().await;
            telemetry.finish().await;
            Err(Failure::taken_over(format!(
                "--id {id}: another process has taken over this name; this one has put what it held into the bucket \
                 and ends"
            )))
        }
    }
}

/// A failure with the exit status that fits.
pub(crate) fn explain(error: &StartError) -> Failure {
    match error {
        StartError::Bucket(_) => Failure::unreachable(error.to_string()),
        _ => Failure::failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn founded(flags: &[&str]) -> Result<u32, String> {
        let words = ["cartwheel", "storage-node", "--id", "a", "--bucket", "s3://b"];
        let cli = Cli::try_parse_from([&words, flags].concat()).map_err(|e| e.to_string())?;
        let Command::StorageNode(args) = cli.command else { unreachable!() };
        Ok(founding(args.partitions, args.expect_nodes).partitions)
    }

    #[test]
    fn partitions_are_said_or_follow_from_the_expected_size() {
        assert_eq!(founded(&[]), Ok(256));
        assert_eq!(founded(&["--partitions", "1024"]), Ok(1024));
        assert_eq!(founded(&["--expect-nodes", "30"]), Ok(1024));
        for (bad, word) in [
            (&["--partitions", "100"][..], "a power of two"),
            (&["--partitions", "131072"], "65536"),
            (&["--expect-nodes", "0"], "--expect-nodes"),
            (&["--expect-nodes", "1025"], "--expect-nodes"),
            (&["--tokens", "1025"], "--tokens"),
            (&["--partitions", "64", "--expect-nodes", "8"], "cannot be used with"),
        ] {
            let error = founded(bad).unwrap_err();
            assert!(error.contains(word), "{bad:?}: {error}");
        }
    }
}
