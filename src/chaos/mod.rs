//! `cartwheel chaos`: a whole cluster of real processes on this machine under shopping carts and faults; every
//! acknowledged write is checked.

mod ballast;
mod calm;
mod cart;
mod change;
mod check;
mod cluster;
mod dice;
mod dots;
mod faults;
mod history;
mod honest;
mod network;
mod process;
mod reach;
mod report;
pub mod s3;
mod schedule;
mod settle;
mod shopper;
mod wipe;
mod world;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Exit, Failure, Format, Output};
use crate::serve;
use crate::units;

use cluster::{Cluster, Parts};
use network::namespaces::{Made, Namespaces};
use network::{Network, Size};
use report::Outcome;
use schedule::Schedule;
use shopper::Shopper;
use world::World;

pub use network::NetworkKind;
pub use schedule::FaultKind;

/// Run a cluster of real processes, inject faults, and check every acknowledged write
///
/// Starts an S3 server, storage nodes and gateways as processes of this binary. Clients change shopping carts through any
/// gateway (read, merge siblings, write with the clock of the read; some writes are blind, some are deletions) while
/// processes are killed, stopped and wiped, links are cut, one-way or both ways, or slow, and requests to object storage
/// go wrong, as drawn from the seed. Then everything is healed, every cart is read from all of its homes through every
/// gateway, and the cluster has to come to rest: no hint left, every home counting, no difference between homes. Writes
/// ask for durability disk or bucket: an acknowledgement from memory promises nothing across kill -9.
///
/// A disk is wiped only while all nodes are up, 30 s after the last one was, 10 s after the bucket was down and any link
/// was cut, and once the node has put into the bucket all that it acknowledged, so that fewer than W copies of a write
/// are destroyed at once; other faults rest up to 25 s for that. At least two nodes are left running, except when all
/// are killed at once (they are then started again, with their disks).
///
/// Where network namespaces can be made (as root, on Linux), each process has one; else proxies on loopback take their
/// place. With --s3 objects go to an S3 server that is there already.
///
/// With --changes there are no faults but those of the changes: of five nodes that hold --size each, a sixth joins, one
/// leaves, one is replaced by a process with an empty disk, one gets twice its share, and one dies and is forgotten, while
/// the clients go on. Each change is measured; promised is that no request fails beyond one repetition, that nothing
/// is lost, that no read after it is stale, that 1 % of what gets a new home is copied between nodes at most, and that
/// no more than 1.2 times the fewest slots move.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel chaos --duration 10m --seed 7\n  cartwheel chaos --duration 1m --faults kill,pause -o json\n  cartwheel chaos --duration 5m --faults cut,split,s3 --s3 http://127.0.0.1:8333\n  cartwheel chaos --changes --size 1GB\n\nThe last line on standard output is the verdict; faults are told on standard error as they happen.\nExit status: 0 every promise was kept, 1 an acknowledged write was lost, a removed item came back, needless\nsiblings were shown, an answer was untrue, a process ended by itself, or the cluster did not come to rest; 2 bad usage"
)]
pub struct ChaosArgs {
    /// How long to inject faults (1s to 7d)
    #[arg(long, value_name = "DURATION", default_value = "1m",
          value_parser = units::duration_between(Duration::from_secs(1), Duration::from_secs(7 * 24 * 3600)))]
    pub duration: Duration,
    /// The seed of faults and clients
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Storage nodes (3 to 26)
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(3..=26))]
    pub nodes: u8,
    /// Gateways (1 to 16)
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub gateways: u8,
    /// Clients (1 to 256)
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub clients: u16,
    /// Carts in use at a time; one with many writes makes room for another (1 to 10000)
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub carts: u16,
    /// Operations per second over all clients, at most (1 to 100000)
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// Which faults
    #[arg(long, value_name = "KIND", value_enum, value_delimiter = ',',
          default_values_t = FaultKind::value_variants().to_vec())]
    pub faults: Vec<FaultKind>,
    /// The network between the processes
    #[arg(long, value_name = "KIND", value_enum, default_value = "auto")]
    pub network: NetworkKind,
    /// Somebody else's S3 server (http://HOST:PORT) instead of our own; keys are read from AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY. A bucket is made for the run, and left there
    #[arg(long, value_name = "URL")]
    pub s3: Option<s3::Upstream>,
    /// Change the ring, one change after the other, instead of injecting faults
    #[arg(long, conflicts_with_all = ["duration", "faults", "nodes", "network", "s3"])]
    pub changes: bool,
    /// With --changes: bytes of values that each node holds before (1MB to 1TB)
    #[arg(long, value_name = "SIZE", default_value = "8MB", requires = "changes",
          value_parser = units::size_between(1_000_000, 1_000_000_000_000))]
    pub size: u64,
    /// Where disks, objects and logs lie, empty or new; kept. Without it a temporary directory, kept on failure
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Stale reads, and writes refused while every gateway reaches the bucket, fail the run, too
    #[arg(long)]
    pub strict: bool,
    /// The namespaces that this process runs in
    #[arg(long, value_name = "NAME", hide = true)]
    pub inside: Option<String>,
    /// What leads to --s3 from inside
    #[arg(long, value_name = "unix:PATH", hide = true)]
    pub relay: Option<String>,
    /// How to print the verdict
    #[arg(short, long, value_name = "FORMAT", env = "CARTWHEEL_OUTPUT", default_value = "text", value_enum)]
    pub output: Format,
}

/// Runs `cartwheel chaos`.
///
/// # Errors
/// Exit status 1 if the cluster does not start or does not heal, or on a signal.
pub fn main(args: &ChaosArgs, output: &mut Output) -> Result<Exit, Failure> {
    serve::runtime()?.block_on(async {
        let told_to_end = told_to_end()?;
        if let Some(made) = namespaces(args, output)? {
            return outside(args, made, told_to_end, output).await;
        }
        let directory = Directory::open(args)?;
        // Whichever way this ends, the processes end with the future that holds them.
        let ended = tokio::select! {
            ended = run(args, &directory.path, output) => ended,
            signal = told_to_end => Err(Failure::failed(format!("ended by {signal}"))),
            cause = orphaned(args) => Err(Failure::failed(format!("ended by {cause}"))),
        };
        match &ended {
            Ok(Exit::Done) => directory.remove()?,
            _ => output.note(&format!("disks, objects and logs are kept in {}", directory.path.display())),
        }
        ended
    })
}

/// Makes namespaces, if this run is to have some and is not inside of them yet.
fn namespaces(args: &ChaosArgs, output: &mut Output) -> Result<Option<Made>, Failure> {
    let wanted = match args.network {
        NetworkKind::Auto => network::needed(&args.faults) && !args.changes,
        NetworkKind::Namespaces => true,
        NetworkKind::Proxy => false,
    };
    if !wanted || args.inside.is_some() {
        return Ok(None);
    }
    match Made::make(size(args)) {
        Ok(made) => Ok(Some(made)),
        Err(why) if args.network == NetworkKind::Auto => {
            output.note(&format!("no network namespaces can be made here, proxies take their place: {why}"));
            Ok(None)
        }
        Err(why) => Err(Failure::failed(format!("--network namespaces: {why}"))),
    }
}

/// Runs this command inside of namespaces, and leads its requests to somebody else's S3 server.
async fn outside(
    args: &ChaosArgs,
    made: Made,
    told_to_end: impl Future<Output = &'static str>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let Some(upstream) = &args.s3 else { return made.run(None, told_to_end, output).await };
    let path = std::env::temp_dir().join(format!("cartwheel-chaos-{}.sock", std::process::id()));
    let relay = s3::relay(&path, upstream.clone());
    let relay = relay.map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    let inside = format!("unix:{}", path.display());
    let ended = tokio::select! {
        ended = made.run(Some(inside), told_to_end, output) => ended,
        () = relay => Err(Failure::failed("the way to --s3 has ended")),
    };
    // It is of no use to anybody now.
    let _ = std::fs::remove_file(&path);
    ended
}

/// Ends when the process that made the namespaces has ended; never without one.
async fn orphaned(args: &ChaosArgs) -> String {
    match &args.inside {
        Some(prefix) => Namespaces::orphaned(prefix).await,
        None => std::future::pending().await,
    }
}

fn size(args: &ChaosArgs) -> Size {
    let nodes = if args.changes { change::NODES } else { args.nodes };
    Size { nodes: usize::from(nodes), gateways: usize::from(args.gateways) }
}

fn open_network(args: &ChaosArgs) -> Result<Network, Failure> {
    let size = size(args);
    match (&args.inside, args.network) {
        (Some(prefix), _) => Ok(Network::Namespaces(Namespaces::inside(prefix))),
        (None, NetworkKind::Proxy) => Network::gates(size),
        (None, _) if network::needed(&args.faults) && !args.changes => Network::gates(size),
        (None, _) => Network::plain(size),
    }
}

/// Ends with the name of the first signal that asks this process to end.
fn told_to_end() -> Result<impl Future<Output = &'static str>, Failure> {
    let listen = |kind| signal(kind).map_err(|e| Failure::failed(format!("can't listen for signals: {e}")));
    let (mut interrupt, mut terminate, mut hangup) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        }
    })
}

/// Where the cluster keeps everything.
struct Directory {
    path: PathBuf,
    temporary: bool,
}

impl Directory {
    fn open(args: &ChaosArgs) -> Result<Self, Failure> {
        let (path, temporary) = match &args.data_dir {
            Some(path) => (path.clone(), false),
            None => {
                let name = format!("cartwheel-chaos-{}-{}", args.seed, std::process::id());
                (std::env::temp_dir().join(name), true)
            }
        };
        let failed = |e: io::Error| Failure::failed(format!("--data-dir {}: {e}", path.display()));
        std::fs::create_dir_all(&path).map_err(failed)?;
        if std::fs::read_dir(&path).map_err(failed)?.next().is_some() {
            return Err(Failure::usage(format!("--data-dir {} is not empty", path.display())));
        }
        let path = path.canonicalize().map_err(failed)?;
        Ok(Self { path, temporary })
    }

    fn remove(&self) -> Result<(), Failure> {
        if !self.temporary {
            return Ok(());
        }
        let removed = std::fs::remove_dir_all(&self.path);
        removed.map_err(|e| Failure::failed(format!("{}: {e}", self.path.display())))
    }
}

async fn run(args: &ChaosArgs, directory: &Path, output: &mut Output) -> Result<Exit, Failure> {
    let network = open_network(args)?;
    let plain = matches!(network, Network::Plain(_));
    let storms = args.faults.contains(&FaultKind::S3) && !args.changes;
    let foreign = args.s3.as_ref().map(|server| args.relay.clone().unwrap_or_else(|| server.to_string()));
    let parts = Parts {
        seed: args.seed,
        size: size(args),
        proxied: storms || foreign.is_some() || !plain,
        foreign,
        hurried: !args.changes,
    };
    let Size { nodes, gateways } = parts.size;
    let mut cluster = Cluster::start(directory, network, &parts).await?;
    if args.changes {
        change::fill(&cluster, &World::new(0), output, args.size).await?;
    }
    let world = Arc::new(World::new(usize::from(args.carts)));
    faults::say(
        &world,
        output,
        &format!(
            "{nodes} storage nodes and {gateways} gateways serve; network: {}; the load begins",
            cluster.network_words()
        ),
    );

    let (stop, stopped) = watch::channel(false);
    let mut shoppers = JoinSet::new();
    // A change is a read and a write.
    let pace = Duration::from_secs(2 * u64::from(args.clients)) / args.rate;
    for number in 0..args.clients {
        let urls = cluster.gateways();
        let shopper = Shopper::new(number, args.seed, Arc::clone(&world), urls, usize::from(args.carts));
        shoppers.spawn(shopper.shop(pace, stopped.clone()));
    }
    let began = world.now();
    let mut changes = if args.changes {
        Some(change::change(&mut cluster, &world, output, args.size).await?)
    } else {
        let mut schedule = Schedule::new(args.seed, nodes, gateways, &args.faults);
        faults::inject(&mut cluster, &mut schedule, &world, args.duration, output).await?;
        None
    };
    let duration = if args.changes { world.now().saturating_sub(began) } else { args.duration };
    let _ = stop.send(true);
    // What is under way need not run into faults that nobody would end.
    cluster.heal()?;
    while let Some(ended) = shoppers.join_next().await {
        ended.map_err(|error| Failure::failed(format!("a client failed: {error}")))?;
    }
    let now = world.now();
    world.lock().acknowledged_at(now);
    faults::say(&world, output, "the load has ended; everything is healed");

    let settled = settle::settle(&mut cluster, &world, output).await;
    if let Some(changes) = &mut changes {
        changes.look_at_the_end(&cluster).await?;
    }
    faults::say_notes(&world, output);
    let panics = cluster.panics();
    let (s3_faults, network) = (cluster.s3_faults(), cluster.network_words());
    drop(cluster);
    let (seed, settled, strict) = (args.seed, settled?, args.strict);
    let outcome = Outcome { seed, duration, settled, panics, s3_faults, network, strict, changes };
    let state = world.lock();
    match args.output {
        Format::Json => output.json(&outcome.json(&state))?,
        Format::Text => {
            output.note(outcome.details(&state).trim_end());
            if let Some(changes) = &outcome.changes {
                output.raw(changes.text().as_bytes())?;
            }
            output.line(&outcome.line(&state))?;
        }
    }
    Ok(if outcome.passed(&state) { Exit::Done } else { Exit::Failed })
}
