//! The command line: one variant per command, and what runs it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::bench;
use crate::chaos;
use crate::client::{self, Exit, Failure, Format, Output};
use crate::inspect;
use crate::serve;
use crate::sim;

/// Cartwheel: an always writeable key-value store behind plain HTTP
#[derive(Debug, Parser)]
#[command(name = "cartwheel", version, arg_required_else_help = true)]
#[command(
    after_help = "Example:\n  cartwheel dev\n  cartwheel put carts alice --value milk\n  cartwheel get carts alice\n\nExit status: 0 ok, 1 refused or failed, 2 bad usage, 3 not reachable, 4 conflict (siblings), 5 another process has this one's name"
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in one process, object storage included
    Dev(serve::dev::DevArgs),
    /// Run a storage node: it holds replicas
    StorageNode(Box<serve::storage_node::StorageNodeArgs>),
    /// Run a gateway: it serves clients
    Gateway(Box<serve::gateway::GatewayArgs>),
    /// Read one key
    Get(client::GetArgs),
    /// Write one key
    Put(Box<client::PutArgs>),
    /// Delete one key
    Delete(Box<client::DeleteArgs>),
    /// Show the cluster's members and their state
    Status(client::StatusArgs),
    /// Show how the partitions are spread over the members
    Ring(client::RingArgs),
    /// Show what would come of a change of the membership
    Plan(Box<client::PlanArgs>),
    /// Change the members of the cluster
    Node(Box<client::NodeArgs>),
    /// Show a key's partition, its homes and fallbacks, and who holds which clock
    Locate(client::LocateArgs),
    /// Ask one process whether it is ready
    Health(client::HealthArgs),
    /// Show the hints kept for storage nodes that were away
    Hints(client::HintsArgs),
    /// Have storage nodes compare what they hold with each other now, and repair what differs
    Repair(client::RepairArgs),
    /// Look into the bucket: what lies there, and why a read answers what it answers
    Inspect(Box<inspect::InspectArgs>),
    /// Verify every segment and hint in the bucket
    Scrub(Box<inspect::scrub::ScrubArgs>),
    /// Check the object store, this machine, and what lies in the bucket
    Doctor(Box<inspect::doctor::DoctorArgs>),
    /// Show and change what is set for namespaces
    Namespace(client::NamespaceArgs),
    /// Put load on a cluster and measure it
    Bench(Box<bench::BenchArgs>),
    /// Run a cluster of real processes, inject faults, and check every acknowledged write
    Chaos(Box<chaos::ChaosArgs>),
    /// Work out what placements and ways to route cost, without a cluster
    Sim(Box<sim::SimArgs>),
    /// Run the embedded S3 server alone
    #[command(hide = true)]
    S3Server(serve::s3_server::S3ServerArgs),
    /// Pass requests on to an S3 server, and inject faults
    #[command(hide = true)]
    S3Proxy(chaos::s3::S3ProxyArgs),
}

/// Parses the process's arguments, runs the command and gives its exit status.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => run(cli, &mut Output::Process).into(),
        Err(error) => {
            // Help goes to standard output and is no error; a closed pipe there is nobody's trouble.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage } else { Exit::Done }.into()
        }
    }
}

/// Runs one command and says on standard error why it failed, if it did.
pub fn run(cli: Cli, output: &mut Output) -> Exit {
    let format = format(&cli.command);
    match dispatch(cli.command, output) {
        Ok(exit) => exit,
        Err(failure) => {
            if !failure.message.is_empty() {
                output.note(&format!("cartwheel: {}", failure.message));
                if format == Format::Json {
                    // A program reads standard output: it finds one JSON document there in any case.
                    let _ = output.json(&failure.to_json());
                }
            }
            failure.exit
        }
    }
}

fn format(command: &Command) -> Format {
    match command {
        Command::Dev(_)
        | Command::StorageNode(_)
        | Command::Gateway(_)
        | Command::S3Server(_)
        | Command::S3Proxy(_) => Format::Text,
        Command::Get(args) => args.common.output,
        Command::Put(args) => args.common.output,
        Command::Delete(args) => args.common.output,
        Command::Status(args) => args.common.output,
        Command::Ring(args) => args.common.output,
        Command::Plan(args) => args.common().output,
        Command::Node(args) => args.common().output,
        Command::Locate(args) => args.common.output,
        Command::Health(args) => args.common.output,
        Command::Hints(args) => args.common.output,
        Command::Repair(args) => args.common.output,
        Command::Namespace(args) => args.common().output,
        Command::Inspect(args) => args.output(),
        Command::Scrub(args) => args.bucket.output,
        Command::Doctor(args) => args.bucket.output,
        Command::Bench(args) => args.output,
        Command::Chaos(args) => args.output,
        Command::Sim(args) => args.output(),
    }
}

fn dispatch(command: Command, output: &mut Output) -> Result<Exit, Failure> {
    match command {
        Command::Dev(args) => serve::dev::main(&args, output),
        Command::StorageNode(args) => serve::storage_node::main(*args, output),
        Command::Gateway(args) => serve::gateway::main(*args, output),
        Command::Get(args) => single()?.block_on(client::get(&args, output)),
        Command::Put(args) => single()?.block_on(client::put(&args, output)),
        Command::Delete(args) => single()?.block_on(client::delete(&args, output)),
        Command::Status(args) => single()?.block_on(client::status(&args, output)),
        Command::Ring(args) => single()?.block_on(client::ring(&args, output)),
        Command::Plan(args) => single()?.block_on(client::plan(&args, output)),
        Command::Node(args) => single()?.block_on(client::node(&args, output)),
        Command::Locate(args) => single()?.block_on(client::locate(&args, output)),
        Command::Health(args) => single()?.block_on(client::health(&args, output)),
        Command::Hints(args) => single()?.block_on(client::hints(&args, output)),
        Command::Repair(args) => single()?.block_on(client::repair(&args, output)),
        Command::Namespace(args) => single()?.block_on(client::namespaces(&args, output)),
        Command::Inspect(args) => single()?.block_on(inspect::run(&args, output)),
        Command::Scrub(args) => single()?.block_on(inspect::scrub::run(&args, output)),
        Command::Doctor(args) => single()?.block_on(inspect::doctor::run(&args, output)),
        Command::Bench(args) => bench::main(&args, output),
        Command::Chaos(args) => chaos::main(&args, output),
        Command::Sim(args) => sim::main(&args, output),
        Command::S3Server(args) => serve::s3_server::main(args, output),
        Command::S3Proxy(args) => chaos::s3::main(&args, output),
    }
}

/// A runtime on this one thread: enough for a command that sends a request or two.
fn single() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("can't start: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
