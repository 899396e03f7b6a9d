//! `cartwheel s3-server`: the embedded S3 server as a process of its own, for `cartwheel chaos`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use cartwheel_s3_server::{S3Server, S3ServerConfig};

use super::shutdown::Signals;
use super::{LogArgs, check_exposure, runtime, telemetry};
use crate::client::{Exit, Failure, Output};

/// Options of `cartwheel s3-server`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cartwheel s3-server --listen 127.0.0.1:9000 --data-dir /tmp/objects")]
pub struct S3ServerArgs {
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9000")]
    pub listen: SocketAddr,
    /// Where the objects lie
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The key that requests must be signed with
    #[arg(long, value_name = "KEY", env = "AWS_ACCESS_KEY_ID")]
    pub access_key: String,
    /// The secret of that key
    #[arg(long, value_name = "SECRET", env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub secret_key: String,
    /// Answer before a write is on the disk: it survives a killed process, not a power cut
    #[arg(long)]
    pub no_sync: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub log: LogArgs,
}

/// Runs an S3 server until a signal.
///
/// # Errors
/// A [`Failure`] that names the flag to look at.
pub fn main(args: S3ServerArgs, output: &mut Output) -> Result<Exit, Failure> {
    telemetry::start(&args.log, "warn")?;
    check_exposure("--listen", &args.listen.to_string(), false, "it is for one machine")?;
    runtime()?.block_on(async {
        let signals = Signals::new()?;
        let config = S3ServerConfig {
            directory: args.data_dir.clone(),
            listen: args.listen,
            credentials: Some((args.access_key, args.secret_key)),
            sync: !args.no_sync,
        };
        let started = S3Server::start(config).await;
        let server = started.map_err(|e| {
            Failure::failed(format!("--listen {}, --data-dir {}: {e}", args.listen, args.data_dir.display()))
        })?;
        output.note(&format!("s3 serves at http://{}", server.local_addr()));
        signals.then_drain(server.shutdown()).await;
        Ok(Exit::Done)
    })
}
