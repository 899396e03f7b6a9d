//! `cartwheel delete`: deletes one key.

use std::ffi::OsString;

use bytes::Bytes;
use clap::Args;
use http::Method;

use super::{Common, Exit, Failure, Output, WriteArgs};

/// Delete one key
///
/// With --clock it deletes exactly what that read returned; without, what a quorum read sees at that moment.
/// Prints the new clock to standard output.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel delete carts alice\n\nExit status: 0 deleted, 1 refused or failed, 2 bad usage, 3 no gateway answered"
)]
pub struct DeleteArgs {
    /// The namespace
    #[arg(value_parser = super::namespace)]
    pub namespace: String,
    /// The key, 1 to 1024 bytes, taken as it is
    pub key: OsString,
    /// Options of a write
    #[command(flatten)]
    pub write: WriteArgs,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Runs `cartwheel delete`.
///
/// # Errors
/// Exit status 1 for a refusal, 2 for a bad key, 3 without an answer.
pub async fn run(args: &DeleteArgs, output: &mut Output) -> Result<Exit, Failure> {
    let key = super::key_bytes(&args.key)?;
    let path = super::key_path(&args.namespace, key) + args.write.query().as_str();
    let client = args.common.client();
    let reply = client.send(Method::DELETE, &path, args.write.headers(), Bytes::new()).await?.success()?;
    super::put::written(&args.namespace, key, &reply, args.common.output, output)?;
    Ok(Exit::Done)
}
