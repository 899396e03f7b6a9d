//! `cartwheel chaos`: a whole cluster of real processes on this machine under shopping carts and faults; every
//! acknowledged write is checked.

mod ballast;
mod cart;
mod change;
mod check;
mod cluster;
mod dice;
mod dots;
mod faults;
mod history;
mod process;
mod report;
mod schedule;
mod settle;
mod shopper;
mod world;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Exit, Failure, Format, Output};
use crate::serve;
use crate::units;

use cluster::Cluster;
use report::Outcome;
use schedule::Schedule;
use shopper::Shopper;
use world::World;

pub use schedule::FaultKind;

/// Run a cluster of real processes, inject faults, and check every acknowledged write
///
/// Starts an S3 server, storage nodes and gateways as processes of this binary on loopback. Clients change
/// shopping carts through any gateway (read, merge siblings, write with the clock of the read; some writes are
/// blind, some are deletions) while processes are killed, stopped and wiped, as drawn from the seed. Then
/// everything is healed, and every cart is read from all of its homes through every gateway. Writes ask for
/// durability disk or bucket: an acknowledgement from memory promises nothing across kill -9.
///
/// A disk is wiped only while all nodes are up, 30 s after the last one was and 10 s after the bucket was down,
/// so that fewer than W copies of a write are destroyed at once; other faults rest up to 15 s for that. At least two nodes are left running, except when
/// all are killed at once (they are then started again, with their disks).
///
/// With --changes there are no faults but those of the changes: of five nodes that hold --size each, a sixth joins, one
/// leaves, one is replaced by a process with an empty disk, one gets twice its share, and one dies and is forgotten, while
/// the clients go on. Each change is measured; promised is that no request fails beyond one repetition, that nothing
/// is lost, that no read after it is stale, that 1 % of what gets a new home is copied between nodes at most, and that
/// no more than 1.2 times the fewest slots move.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel chaos --duration 10m --seed 7\n  cartwheel chaos --duration 1m --faults kill,pause -o json\n  cartwheel chaos --changes --size 1GB\n\nThe last line on standard output is the verdict; faults are told on standard error as they happen.\nExit status: 0 every promise was kept, 1 an acknowledged write was lost, a removed item came back, needless\nsiblings were shown, an answer was untrue, or a process crashed; 2 bad usage"
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
          default_values_t = [FaultKind::Kill, FaultKind::Pause, FaultKind::Wipe, FaultKind::Bucket, FaultKind::Gateway])]
    pub faults: Vec<FaultKind>,
    /// Change the ring, one change after the other, instead of injecting faults
    #[arg(long, conflicts_with_all = ["duration", "faults", "nodes"])]
    pub changes: bool,
    /// With --changes: bytes of values that each node holds before (1MB to 1TB)
    #[arg(long, value_name = "SIZE", default_value = "8MB", requires = "changes",
          value_parser = units::size_between(1_000_000, 1_000_000_000_000))]
    pub size: u64,
    /// Where disks, objects and logs lie, empty or new; kept. Without it a temporary directory, kept on failure
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Stale reads fail the run, too
    #[arg(long)]
    pub strict: bool,
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
        let directory = Directory::open(args)?;
        // Whichever way this ends, the processes end with the future that holds them.
        let ended = tokio::select! {
            ended = run(args, &directory.path, output) => ended,
            signal = told_to_end => Err(Failure::failed(format!("ended by {signal}"))),
        };
        match &ended {
            Ok(Exit::Done) => directory.remove()?,
            _ => output.note(&format!("disks, objects and logs are kept in {}", directory.path.display())),
        }
        ended
    })
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
    let nodes = if args.changes { change::NODES } else { args.nodes };
    let (nodes, gateways) = (usize::from(nodes), usize::from(args.gateways));
    let mut cluster = Cluster::start(directory, args.seed, nodes, gateways).await?;
    if args.changes {
        change::fill(&cluster, &World::new(0), output, args.size).await?;
    }
    let world = Arc::new(World::new(usize::from(args.carts)));
    faults::say(
        &world,
        output,
        &format!("{nodes} storage nodes and {gateways} gateways serve; the load begins"),
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
    drop(cluster);
    let outcome =
        Outcome { seed: args.seed, duration, settled: settled?, panics, strict: args.strict, changes };
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
