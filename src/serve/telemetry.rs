//! Logging of the serving commands.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::LogArgs;
use crate::client::Failure;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error, at `default` where no filter is given.
pub(crate) fn start(args: &LogArgs, default: &str) -> Result<(), Failure> {
    let filter = args.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter).map_err(|e| Failure::usage(format!("--log {filter}: {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match args.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|e| Failure::failed(format!("can't start logging: {e}")))
}
