//! `cartwheel gateway`.

use std::time::Duration;

use clap::Args;

use cartwheel_bucket::S3Options;
use cartwheel_gateway::GatewayConfig;

use super::shutdown::Signals;
use super::telemetry::Telemetry;
use super::{Outside, ProcessArgs, check_exposure, runtime, supervisor, telemetry};
use crate::client::{Exit, Failure, Output};

/// What a gateway is called in figures.
const NAME: &str = "gateway";

/// Options of `cartwheel gateway`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cartwheel gateway --bucket s3://carts/prod --listen 127.0.0.1:8080")]
pub struct GatewayArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub process: ProcessArgs,
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", env = "CARTWHEEL_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: String,
    /// Largest value (1KiB to 16MiB)
    #[arg(long, value_name = "SIZE", env = "CARTWHEEL_MAX_VALUE", default_value = "1MiB",
          value_parser = crate::units::size_between(1 << 10, 16 << 20))]
    pub max_value: u64,
    /// Requests worked on at once; more are refused with 503 (1 to 65536)
    #[arg(long, value_name = "COUNT", env = "CARTWHEEL_IN_FLIGHT", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub in_flight: u32,
    /// How long a request may take that names no deadline (1ms to 60s)
    #[arg(long, value_name = "DURATION", env = "CARTWHEEL_DEADLINE", default_value = "5s",
          value_parser = crate::units::duration_between(Duration::from_millis(1), Duration::from_secs(60)))]
    pub deadline: Duration,
}

/// Runs a gateway until a signal.
///
/// # Errors
/// A [`Failure`] that names the flag to look at.
pub fn main(args: GatewayArgs, output: &mut Output) -> Result<Exit, Failure> {
    telemetry::start(&args.process.log, "info")?;
    let needs = "clients need no credentials in this version";
    check_exposure("--listen", &args.listen, args.process.insecure, needs)?;
    runtime()?.block_on(run(args, output))
}

async fn run(args: GatewayArgs, output: &mut Output) -> Result<Exit, Failure> {
    let signals = Signals::new()?;
    let secret = args.process.cluster_secret.as_deref();
    let ProcessArgs { prices, log, .. } = &args.process;
    let telemetry = Telemetry::start(&args.process.telemetry, log, prices.list, "cartwheel-gateway", None)?;
    let metrics = &telemetry.metrics;
    let meter = metrics.meter(NAME);
    let (outside, _) = Outside::connect(&args.process.bucket, S3Options::default(), secret, &meter).await?;
    let config = GatewayConfig {
        max_value: usize::try_from(args.max_value).unwrap_or(usize::MAX),
        in_flight: usize::try_from(args.in_flight).unwrap_or(usize::MAX),
        deadline: args.deadline,
        meter,
        metrics: Some(metrics.text()),
        name: NAME.to_owned(),
        recorder: metrics.recorder(NAME),
        drain_wait: args.process.drain_wait,
        frames: args.process.frames,
        ..GatewayConfig::new(args.listen)
    };
    let Outside { seams, bucket, secret } = outside;
    let started = cartwheel_gateway::start(config, seams, bucket, &secret).await;
    let gateway = started.map_err(|e| Failure::failed(e.to_string()))?;
    output.note(&format!("gateway serves at http://{}", gateway.address()));
    metrics.show_gateway(NAME, gateway.watch());
    supervisor::ready();
    signals
        .then_drain(async {
            gateway.shutdown().await;
            telemetry.finish().await;
        })
        .await;
    Ok(Exit::Done)
}
