//! `cartwheel health`: is one process, a gateway or a storage node, alive and ready? For health checks of containers.

use ::http::StatusCode;
use clap::Args;
use serde_json::json;

use super::{Client, Common, Exit, Failure, Format, Gateway, Output, printable};

/// The longest part of a refusal that is shown.
const MAX_SHOWN: usize = 300;

/// Ask one process, a gateway or a storage node, whether it is ready
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel health\n  cartwheel health http://127.0.0.1:7101\n  cartwheel health --alive --timeout 2s\n\nAsks /readyz, or /healthz with --alive. Exit status 1 if the process says no, 3 if nobody answers."
)]
pub struct HealthArgs {
    /// Where the process listens [default: that of --gateway]
    #[arg(value_name = "URL")]
    pub process: Option<Gateway>,
    /// Ask whether it is alive, not whether it is ready
    #[arg(long)]
    pub alive: bool,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Runs `cartwheel health`.
///
/// # Errors
/// Exit status 1 if the process says no, 3 without an answer.
pub async fn run(args: &HealthArgs, output: &mut Output) -> Result<Exit, Failure> {
    let process = args.process.clone().unwrap_or_else(|| args.common.gateway.clone());
    let (path, good) = if args.alive { ("/healthz", "alive") } else { ("/readyz", "ready") };
    let reply = Client::new(process.clone(), args.common.timeout).get(path).await?;
    if reply.status != StatusCode::OK {
        let said: String = String::from_utf8_lossy(&reply.body).trim().chars().take(MAX_SHOWN).collect();
        let status = reply.status.as_u16();
        return Err(Failure::failed(format!("{process} is not {good}: {status} {}", printable(&said))));
    }
    match args.common.output {
        Format::Json => output.json(&json!({"process": process.to_string(), (good): true}))?,
        Format::Text => output.raw(format!("{process} is {good}\n").as_bytes())?,
    }
    Ok(Exit::Done)
}
