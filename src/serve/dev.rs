//! `cartwheel dev`: a whole cluster in one process, object storage included, through the same code and the same
//! S3 client as in production. What was written is there again after a restart.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use cartwheel_bucket::{S3Options, Work};
use cartwheel_cluster::membership::{self, Founding};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Member, MemberState, RingDocument};
use cartwheel_gateway::{GatewayConfig, RunningGateway};
use cartwheel_s3_server::{RunningS3Server, S3Server, S3ServerConfig};
use cartwheel_storage_node::disk::{Disk, FileDisk};
use cartwheel_storage_node::{NodeConfig, RunningNode, StartError};

use super::metrics::Metrics;
use super::shutdown::Signals;
use super::telemetry::Telemetry;
use super::{LogArgs, Outside, PricesArgs, TelemetryArgs, check_exposure, runtime, storage_node, telemetry};
use crate::client::{Exit, Failure, Output};

const BUCKET: &str = "cartwheel";
const ACCESS_KEY: &str = "cartwheel";
const SECRET_KEY: &str = "cartwheel-dev";
/// Most replicas of a key; fewer where there are fewer nodes.
const REPLICAS: u32 = 3;

/// Options of `cartwheel dev`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cartwheel dev --nodes 3 --data-dir /tmp/carts")]
pub struct DevArgs {
    /// Storage nodes (1 to 26)
    #[arg(long, value_name = "COUNT", env = "CARTWHEEL_NODES", default_value_t = 5,
          value_parser = clap::value_parser!(u8).range(1..=26))]
    pub nodes: u8,
    /// Storage nodes that a new cluster is expected to grow to: that chooses the number of partitions (1 to 1024)
    #[arg(long, value_name = "COUNT", env = "CARTWHEEL_EXPECT_NODES",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub expect_nodes: Option<u32>,
    /// Gateways; each further one listens one port higher (1 to 16)
    #[arg(long, value_name = "COUNT", env = "CARTWHEEL_GATEWAYS", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=16))]
    pub gateways: u8,
    /// Where the first gateway listens
    #[arg(long, value_name = "HOST:PORT", env = "CARTWHEEL_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where object storage listens
    #[arg(long, value_name = "HOST:PORT", env = "CARTWHEEL_S3_LISTEN", default_value = "127.0.0.1:9000")]
    pub s3_listen: SocketAddr,
    /// Where everything is kept
    #[arg(long, value_name = "DIR", env = "CARTWHEEL_DATA_DIR", default_value = ".cartwheel")]
    pub data_dir: PathBuf,
    /// How long data may wait for the bucket (100ms to 1h)
    #[arg(long, value_name = "DURATION", env = "CARTWHEEL_FLUSH_INTERVAL", default_value = "10s",
          value_parser = crate::units::duration_between(Duration::from_millis(100), Duration::from_secs(3600)))]
    pub flush_interval: Duration,
    /// Listen beyond loopback without credentials
    #[arg(long, env = "CARTWHEEL_INSECURE")]
    pub insecure: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub prices: PricesArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub telemetry: TelemetryArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub log: LogArgs,
}

/// Runs a whole cluster until a signal.
///
/// # Errors
/// A [`Failure`] that names the flag to look at.
pub fn main(args: &DevArgs, output: &mut Output) -> Result<Exit, Failure> {
    telemetry::start(&args.log, "warn")?;
    for (flag, address) in [("--listen", args.listen), ("--s3-listen", args.s3_listen)] {
        check_exposure(flag, &address.to_string(), args.insecure, "dev is for one machine")?;
    }
    runtime()?.block_on(async {
        let signals = Signals::new()?;
        let cluster = DevCluster::start(args).await?;
        output.line(&cluster.greeting())?;
        signals.then_drain(cluster.shutdown()).await;
        Ok(Exit::Done)
    })
}

/// The parts of a running cluster.
#[derive(Debug)]
pub struct DevCluster {
    s3: RunningS3Server,
    nodes: Vec<RunningNode>,
    gateways: Vec<RunningGateway>,
    data_dir: PathBuf,
    telemetry: Telemetry,
}

impl DevCluster {
    /// Starts object storage, storage nodes and gateways.
    ///
    /// # Errors
    /// A [`Failure`] that names the flag to look at.
    pub async fn start(args: &DevArgs) -> Result<Self, Failure> {
        let s3 = start_s3(args).await?;
        let options = S3Options {
            endpoint: Some(format!("http://{}", s3.local_addr())),
            credentials: Some((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())),
            region: Some("us-east-1".to_owned()),
        };
        // The bucket must exist before anything can be kept in it, the secret included.
        let url = cartwheel_bucket::BucketUrl::parse(&format!("s3://{BUCKET}"))
            .map_err(|e| Failure::failed(e.to_string()))?;
        let failed = |e: cartwheel_bucket::BucketError| Failure::failed(format!("object storage: {e}"));
        let bucket = cartwheel_bucket::S3Bucket::connect(&url, options.clone()).await.map_err(failed)?;
        bucket.ensure_exists().await.map_err(failed)?;
        let telemetry =
            Telemetry::start(&args.telemetry, &args.log, args.prices.list, "cartwheel-dev", None)?;
        let metrics = &telemetry.metrics;
        // What is done for all: it is no node's and no gateway's.
        let meter = metrics.meter("dev");
        let (outside, _) = Outside::connect(&format!("s3://{BUCKET}"), options, None, &meter).await?;

        let founding = Outside { bucket: meter.bucket(&outside.bucket, Work::Membership), ..outside.clone() };
        let configs = node_configs(args, &founding, metrics).await?;
        let starting = configs.into_iter().map(|config| start_node(config, args, outside.clone()));
        let nodes = futures_util::future::try_join_all(starting).await?;
        for node in &nodes {
            metrics.show_node(node.id().as_str(), node.watch());
        }
        let mut gateways = Vec::new();
        for number in 0..args.gateways {
            let gateway = start_gateway(args, number, &outside, metrics).await?;
            gateway.ready().await;
            gateways.push(gateway);
        }
        Ok(Self { s3, nodes, gateways, data_dir: args.data_dir.clone(), telemetry })
    }

    /// Where the gateways listen.
    pub fn gateways(&self) -> impl Iterator<Item = &str> {
        self.gateways.iter().map(RunningGateway::address)
    }

    /// Drains and stops everything, gateways first.
    pub async fn shutdown(self) {
        for gateway in self.gateways {
            gateway.shutdown().await;
        }
        futures_util::future::join_all(self.nodes.into_iter().map(RunningNode::shutdown)).await;
        self.s3.shutdown().await;
        self.telemetry.finish().await;
    }

    /// Where everything is, and what to try.
    fn greeting(&self) -> String {
        let gateway = self.gateways().next().unwrap_or_default();
        let others: String =
            self.gateways().skip(1).map(|address| format!("\n              http://{address}")).collect();
        let nodes: Vec<String> =
            self.nodes.iter().map(|node| format!("{} at {}", node.id(), node.address())).collect();
        let s3 = self.s3.local_addr();
        let key = format!("http://{gateway}/v1/kv/carts/alice");
        format!(
            "cartwheel serves.\n\n\
             gateway       http://{gateway}{others}\n\
             storage nodes {}\n\
             s3            http://{s3}  bucket {BUCKET}, access key {ACCESS_KEY}, secret key {SECRET_KEY}\n\
             data          {}\n\n\
             Try:\n  \
             curl -i -X PUT -d 'milk' -H 'Content-Type: text/plain' {key}\n  \
             curl -i {key}\n  \
             curl -s http://{gateway}/v1/cluster/locate'?namespace=carts&key=alice'\n",
            nodes.join(",\n              "),
            self.data_dir.display(),
        )
    }
}

async fn start_s3(args: &DevArgs) -> Result<RunningS3Server, Failure> {
    let config = S3ServerConfig {
        directory: args.data_dir.join("s3"),
        listen: args.s3_listen,
        credentials: Some((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())),
        sync: true,
    };
    S3Server::start(config).await.map_err(|e| {
        Failure::failed(format!("object storage (--s3-listen {}, --data-dir): {e}", args.s3_listen))
    })
}

/// The nodes, at the addresses they had before where those are free. A new cluster is founded with all of them,
/// so that none has to join.
async fn node_configs(
    args: &DevArgs,
    outside: &Outside,
    metrics: &Metrics,
) -> Result<Vec<NodeConfig>, Failure> {
    let failed = |e: membership::MembershipError| Failure::failed(e.to_string());
    let known = membership::read_newest(&*outside.bucket, 0).await.map_err(failed)?;
    let mut configs = Vec::new();
    for letter in (b'a'..=b'z').take(usize::from(args.nodes)) {
        let id = NodeId::new(&format!("node-{}", char::from(letter)))
            .map_err(|e| Failure::failed(e.to_string()))?;
        let before = known.as_ref().and_then(|ring| ring.member(&id)).map(|member| member.address.clone());
        let listen = free_address(before.as_deref())?;
        let config = NodeConfig::new(id, listen);
        configs.push(NodeConfig {
            flush_interval: args.flush_interval,
            meter: metrics.meter(config.id.as_str()),
            recorder: metrics.recorder(config.id.as_str()),
            prices: args.prices.list,
            metrics: Some(metrics.text()),
            ..config
        });
    }
    if known.is_none() {
        let document = found(&configs, args.expect_nodes, outside).map_err(failed)?;
        membership::create(&*outside.bucket, &document).await.map_err(failed)?;
    }
    Ok(configs)
}

fn found(
    configs: &[NodeConfig],
    expected: Option<u32>,
    outside: &Outside,
) -> Result<RingDocument, membership::MembershipError> {
    let count = u32::try_from(configs.len()).unwrap_or(1);
    let founding = Founding { replicas: count.min(REPLICAS), ..storage_node::founding(None, expected) };
    let members = configs
        .iter()
        .map(|config| Member {
            id: config.id.clone(),
            address: config.listen.clone(),
            zone: config.zone.clone(),
            weight: config.weight,
            state: MemberState::Active,
            becomes: None,
            dead: false,
        })
        .collect();
    membership::found(&outside.seams, founding, members, "cartwheel dev")
}

/// `before` if one can listen there, else a free port on loopback.
fn free_address(before: Option<&str>) -> Result<String, Failure> {
    let address = |listener: TcpListener| listener.local_addr().map(|a| a.to_string());
    if let Some(found) = before.and_then(|before| TcpListener::bind(before).and_then(address).ok()) {
        return Ok(found);
    }
    let found = TcpListener::bind("127.0.0.1:0").and_then(address);
    found.map_err(|e| Failure::failed(format!("no free port on 127.0.0.1: {e}")))
}

/// Starts a node; if its port was taken meanwhile, at another one, which it tells the ring.
async fn start_node(
    mut config: NodeConfig,
    args: &DevArgs,
    outside: Outside,
) -> Result<RunningNode, Failure> {
    let directory = args.data_dir.join(config.id.as_str());
    let failed = |e| Failure::failed(format!("--data-dir {}: {e}", directory.display()));
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(&directory).map_err(failed)?);
    let Outside { seams, bucket, secret } = outside;
    let start = |config| {
        let (seams, disk, bucket) = (seams.clone(), Arc::clone(&disk), Arc::clone(&bucket));
        cartwheel_storage_node::start(config, seams, Some(disk), bucket, &secret)
    };
    let started = match start(config.clone()).await {
        Err(StartError::Listen { .. }) => {
            config.listen = "127.0.0.1:0".to_owned();
            start(config).await
        }
        other => other,
    };
    started.map_err(|e| storage_node::explain(&e))
}

async fn start_gateway(
    args: &DevArgs,
    number: u8,
    outside: &Outside,
    metrics: &Metrics,
) -> Result<RunningGateway, Failure> {
    let mut listen = args.listen;
    if listen.port() != 0 {
        let port = listen.port().checked_add(u16::from(number));
        listen
            .set_port(port.ok_or_else(|| Failure::usage("--listen: too high a port for so many gateways"))?);
    }
    let name = format!("gateway-{}", number + 1);
    let config = GatewayConfig {
        meter: metrics.meter(&name),
        metrics: Some(metrics.text()),
        recorder: metrics.recorder(&name),
        name: name.clone(),
        ..GatewayConfig::new(listen.to_string())
    };
    let Outside { seams, bucket, secret } = outside.clone();
    let started = cartwheel_gateway::start(config, seams, bucket, &secret).await;
    let gateway = started.map_err(|e| Failure::failed(e.to_string()))?;
    metrics.show_gateway(&name, gateway.watch());
    Ok(gateway)
}
