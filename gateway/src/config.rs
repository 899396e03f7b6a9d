//! What a gateway is told at start.

use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::Meter;
use cartwheel_cluster::http_server::Limits;
use cartwheel_cluster::metrics::MetricsText;
use cartwheel_core::frame::FrameVersion;
use cartwheel_telemetry::Recorder;

/// Configuration of one gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where to listen, `host:port`; port 0 picks one.
    pub listen: String,
    /// Largest value, bytes.
    pub max_value: usize,
    /// Requests worked on at once; more are refused.
    pub in_flight: usize,
    /// Bytes of request bodies held at once; more are refused.
    pub body_bytes: usize,
    /// How long a request may take that names no deadline.
    pub deadline: Duration,
    /// How often to look for a newer ring document.
    pub ring_interval: Duration,
    /// How often to look for newer settings of namespaces, at least.
    pub namespace_interval: Duration,
    /// Limits of the listening port.
    pub limits: Limits,
    /// Counts what is asked of the bucket. A copy of the configuration counts with the same.
    pub meter: Arc<Meter>,
    /// What is shown at `/metrics`, if anything.
    pub metrics: Option<MetricsText>,
    /// What it is called in figures and traces.
    pub name: String,
    /// Who takes down what happens.
    pub recorder: Recorder,
    /// How long it goes on serving after it is told to end, while `/readyz` says 503.
    pub drain_wait: Duration,
    /// The newest version of frames to speak with storage nodes.
    pub frames: FrameVersion,
}

impl GatewayConfig {
    /// The defaults, listening at `listen`.
    #[must_use]
    pub fn new(listen: String) -> Self {
        Self {
            listen,
            max_value: 1024 * 1024,
            in_flight: 1024,
            body_bytes: 512 * 1024 * 1024,
            deadline: Duration::from_secs(5),
            ring_interval: Duration::from_secs(2),
            namespace_interval: Duration::from_secs(30),
            limits: Limits::default(),
            meter: Meter::new(),
            metrics: None,
            name: "gateway".to_owned(),
            recorder: Recorder::default(),
            drain_wait: Duration::ZERO,
            frames: FrameVersion::NEWEST,
        }
    }
}
