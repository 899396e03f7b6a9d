//! Commands that serve: `dev`, `storage-node`, `gateway`. Each builds its runtime, starts its parts, says where
//! they are, and waits for a signal.

pub mod dev;
pub mod gateway;
pub mod metrics;
pub mod s3_server;
pub mod storage_node;

mod figures;
mod otlp;
mod recorder;
mod shutdown;
mod supervisor;
mod telemetry;

use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use cartwheel_bucket::{BucketUrl, Meter, Prices, S3Bucket, S3Options, SharedBucket, Work};
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::frame::FrameVersion;

use crate::client::Failure;

pub use telemetry::{LogFormat, TelemetryArgs};

/// How long a process waits for a bucket that does not answer at start.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Options of every process of a cluster.
#[derive(Debug, Clone, Args)]
pub struct ProcessArgs {
    /// The bucket and prefix that hold everything. Endpoint, region and credentials come from the usual AWS
    /// settings (AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, profiles, roles)
    #[arg(long, value_name = "s3://NAME/PREFIX", env = "CARTWHEEL_BUCKET")]
    pub bucket: String,
    /// The cluster's secret: signs clocks, and lets gateways and storage nodes talk to each other. Without it
    /// one is made and kept in the bucket
    #[arg(long, value_name = "SECRET", env = "CARTWHEEL_CLUSTER_SECRET", hide_env_values = true)]
    pub cluster_secret: Option<String>,
    /// Listen beyond loopback without credentials
    #[arg(long, env = "CARTWHEEL_INSECURE")]
    pub insecure: bool,
    /// The newest version of frames that it speaks with other processes: 1 or 2. They settle for the newest that both
    /// know, so that a cluster can be replaced, and a replacement taken back, one process after the other. With 1 a process
    /// hears of a new ring from the bucket alone, and is in no trace that another began
    #[arg(long, value_name = "VERSION", env = "CARTWHEEL_FRAMES", default_value = "2", value_parser = frame_version)]
    pub frames: FrameVersion,
    /// How long it goes on serving after it is told to end, while /readyz says 503 (0s to 10m). Behind a load balancer:
    /// longer than that takes to notice
    #[arg(long, value_name = "DURATION", env = "CARTWHEEL_DRAIN_WAIT", default_value = "0s",
          value_parser = crate::units::duration_between(Duration::ZERO, Duration::from_secs(600)))]
    pub drain_wait: Duration,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub telemetry: TelemetryArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub prices: PricesArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub log: LogArgs,
}

fn frame_version(text: &str) -> Result<FrameVersion, String> {
    text.parse().ok().and_then(FrameVersion::from_number).ok_or_else(|| "it must be 1 or 2".to_owned())
}

/// What the bucket costs.
#[derive(Debug, Clone, Copy, Args)]
pub struct PricesArgs {
    /// What the store charges, in dollars: per 1,000 requests that write or list (put) and that read (get), per GB
    /// that lies there for a month (gb-month) and per GB read out of it (gb-out). What is left out costs what it
    /// does at S3 Standard in us-east-1
    #[arg(long = "prices", value_name = "PRICES", env = "CARTWHEEL_PRICES", default_value_t)]
    pub list: Prices,
}

/// How a process logs, to standard error.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to log: a level (error, warn, info, debug, trace) or directives such as
    /// cartwheel_storage_node=debug
    #[arg(long, value_name = "FILTER", env = "CARTWHEEL_LOG")]
    pub log: Option<String>,
    /// How to log
    #[arg(long, value_name = "FORMAT", env = "CARTWHEEL_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
}

/// What every part of a process needs.
#[derive(Debug, Clone)]
pub(crate) struct Outside {
    pub(crate) seams: Seams,
    pub(crate) bucket: SharedBucket,
    pub(crate) secret: ClusterSecret,
}

impl Outside {
    /// Connects to the bucket and finds the cluster's secret, waiting a while for a bucket that does not
    /// answer yet. Only what that takes is counted by `meter`: the bucket of the answer counts nothing yet.
    pub(crate) async fn connect(
        url: &str,
        options: S3Options,
        secret: Option<&str>,
        meter: &Arc<Meter>,
    ) -> Result<(Self, S3Bucket), Failure> {
        let url = BucketUrl::parse(url).map_err(|e| Failure::usage(format!("--bucket: {e}")))?;
        let failed = |e: cartwheel_bucket::BucketError| Failure::unreachable(format!("--bucket: {e}"));
        let s3 = S3Bucket::connect(&url, options).await.map_err(failed)?;
        let seams = Seams::real();
        let bucket: SharedBucket = Arc::new(s3.clone());
        let secret = match secret {
            Some(secret) => ClusterSecret::given(secret),
            None => {
                let bucket = meter.bucket(&bucket, Work::Membership);
                let give_up = tokio::time::Instant::now() + START_PATIENCE;
                loop {
                    match ClusterSecret::from_bucket(&*bucket, &*seams.random).await {
                        Ok(secret) => break secret,
                        Err(e) if e.is_retryable() && tokio::time::Instant::now() < give_up => {
                            tracing::warn!(error = %e, "the bucket does not answer yet; waiting for it");
                            tokio::time::sleep(Duration::from_millis(500)).await;
                        }
                        Err(e) => return Err(failed(e)),
                    }
                }
            }
        };
        Ok((Self { seams, bucket, secret }, s3))
    }
}

/// A runtime on all cores.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("can't start: {error}")))
}

/// Refuses to listen beyond loopback without credentials.
pub(crate) fn check_exposure(flag: &str, address: &str, protected: bool, needs: &str) -> Result<(), Failure> {
    let mut addresses = address
        .to_socket_addrs()
        .map_err(|e| Failure::usage(format!("{flag} {address}: {e}; it must be HOST:PORT")))?;
    if protected || addresses.all(|a| a.ip().is_loopback()) {
        return Ok(());
    }
    Err(Failure::usage(format!("{flag} {address} is reachable from other machines: {needs}, or --insecure")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_beyond_loopback_needs_credentials() {
        assert!(check_exposure("--listen", "127.0.0.1:1", false, "x").is_ok());
        assert!(check_exposure("--listen", "0.0.0.0:1", true, "x").is_ok());
        let refused = check_exposure("--listen", "0.0.0.0:1", false, "give --cluster-secret");
        assert!(refused.is_err_and(|f| f.message.contains("--listen") && f.message.contains("--insecure")));
        assert!(check_exposure("--listen", "nonsense", true, "x").is_err());
    }
}
