//! Commands that read the bucket alone: no node and no gateway is needed.

pub mod doctor;
mod ls;
mod manifest;
pub mod scrub;
mod segment;
mod show;
#[cfg(test)]
mod testing;
mod why;

use std::sync::Arc;

use clap::{Args, Subcommand};

use cartwheel_bucket::{BucketError, BucketUrl, S3Bucket, S3Options, SharedBucket};
use cartwheel_core::names::NodeId;

use crate::client::{Exit, Failure, Format, Output};

pub use ls::LsArgs;
pub use manifest::ManifestArgs;
pub use segment::SegmentArgs;
pub use why::WhyArgs;

/// Look into the bucket; no node or gateway is needed
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// What to look at
    #[command(subcommand)]
    pub what: What,
}

/// What to look at.
#[derive(Debug, Subcommand)]
pub enum What {
    /// List what each storage node has in the bucket
    Ls(LsArgs),
    /// Show a storage node's manifest
    Manifest(ManifestArgs),
    /// Show and verify one segment
    Segment(SegmentArgs),
    /// Show why a read of a key answers what it answers
    Why(WhyArgs),
}

/// Options of every command that reads the bucket.
#[derive(Debug, Clone, Args)]
pub struct BucketArgs {
    /// The bucket and prefix that hold everything. Endpoint, region and credentials come from the usual AWS
    /// settings (AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, profiles, roles)
    #[arg(long, value_name = "s3://NAME/PREFIX", env = "CARTWHEEL_BUCKET")]
    pub bucket: String,
    /// How to print the result
    #[arg(short, long, value_name = "FORMAT", env = "CARTWHEEL_OUTPUT", default_value = "text", value_enum)]
    pub output: Format,
}

impl BucketArgs {
    /// A client of the bucket. Nothing is sent yet.
    ///
    /// # Errors
    /// Exit status 2 for a URL that is none.
    pub(crate) async fn connect(&self) -> Result<SharedBucket, Failure> {
        let url = BucketUrl::parse(&self.bucket).map_err(|e| Failure::usage(format!("--bucket: {e}")))?;
        let bucket = S3Bucket::connect(&url, S3Options::default());
        Ok(Arc::new(bucket.await.map_err(|e| Failure::usage(format!("--bucket: {e}")))?))
    }
}

impl InspectArgs {
    /// How to print the result.
    pub fn output(&self) -> Format {
        match &self.what {
            What::Ls(args) => args.bucket.output,
            What::Manifest(args) => args.bucket.output,
            What::Segment(args) => args.bucket.output,
            What::Why(args) => args.bucket.output,
        }
    }
}

/// Runs `cartwheel inspect`.
///
/// # Errors
/// Exit status 1 for a refusal, 2 for a bad argument, 3 if the bucket does not answer.
pub async fn run(args: &InspectArgs, output: &mut Output) -> Result<Exit, Failure> {
    match &args.what {
        What::Ls(args) => ls::run(args, output).await,
        What::Manifest(args) => manifest::run(args, output).await,
        What::Segment(args) => segment::run(args, output).await,
        What::Why(args) => why::run(args, output).await,
    }
}

/// A bucket's error with the exit status that fits.
fn failure(error: &BucketError) -> Failure {
    if error.is_retryable() {
        Failure::unreachable(format!("--bucket: {error}"))
    } else {
        Failure::failed(format!("--bucket: {error}"))
    }
}

/// Reads a node's id from the command line.
fn node_id(text: &str) -> Result<NodeId, String> {
    NodeId::new(text).map_err(|error| error.to_string())
}
