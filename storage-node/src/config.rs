//! What a storage node is told at start.

use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::{Meter, Prices};
use cartwheel_cluster::membership::Founding;
use cartwheel_cluster::metrics::MetricsText;
use cartwheel_core::frame::FrameVersion;
use cartwheel_core::names::NodeId;
use cartwheel_telemetry::Recorder;

/// Configuration of one storage node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name.
    pub id: NodeId,
    /// Where to listen, `host:port`; port 0 picks one.
    pub listen: String,
    /// The address others call, if not the one listened at.
    pub advertise: Option<String>,
    /// Its zone.
    pub zone: String,
    /// Its weight: how much of the data it takes, relative to the others.
    pub weight: u32,
    /// Bytes of memory that the node is to keep within.
    pub memory_bytes: u64,
    /// The most of it that the row and block caches may have together, bytes.
    pub cache_bytes: u64,
    /// A memtable is flushed when it is so old…
    pub flush_interval: Duration,
    /// …or holds so many bytes.
    pub flush_bytes: usize,
    /// How long an object that is needed no longer stays in the bucket, for readers that are slow; and how old segments
    /// must be before they are merged into large ones.
    pub delete_after: Duration,
    /// How long a key must have been deleted before the homes are asked whether they can forget it.
    pub reap_after: Duration,
    /// How often this node compares what it holds with each other home.
    pub repair_every: Duration,
    /// Bytes of hints kept for other nodes, beyond which no more are taken.
    pub hint_bytes: u64,
    /// Does a node that was away count for nothing until it has caught up? Always; only a test that shows what the
    /// rule is for turns it off.
    pub catches_up: bool,
    /// How a new cluster is laid out, if this node founds it.
    pub founding: Founding,
    /// May the node add itself to the ring?
    pub may_join: bool,
    /// Counts what is asked of the bucket.
    pub meter: Arc<Meter>,
    /// What the bucket costs.
    pub prices: Prices,
    /// What `GET /metrics` answers; `None` if nothing does.
    pub metrics: Option<MetricsText>,
    /// Who takes down what happens.
    pub recorder: Recorder,
    /// How long it goes on serving after it is told to end, while `/readyz` says 503.
    pub drain_wait: Duration,
    /// The newest version of frames to speak with others.
    pub frames: FrameVersion,
    /// Go on with a store that does not honour conditional creates.
    pub unsafe_no_cas: bool,
    /// How often to look for a newer ring document.
    pub ring_interval: Duration,
}

impl NodeConfig {
    /// The defaults for node `id`, listening at `listen`.
    #[must_use]
    pub fn new(id: NodeId, listen: String) -> Self {
        Self {
            id,
            listen,
            advertise: None,
            zone: "default".to_owned(),
            weight: 1,
            memory_bytes: 1024 * 1024 * 1024,
            cache_bytes: u64::MAX,
            flush_interval: Duration::from_secs(10),
            flush_bytes: 64 * 1024 * 1024,
            delete_after: Duration::from_secs(300),
            reap_after: Duration::from_secs(600),
            repair_every: Duration::from_secs(60),
            hint_bytes: 1024 * 1024 * 1024,
            catches_up: true,
            founding: Founding::default(),
            may_join: true,
            meter: Meter::new(),
            prices: Prices::default(),
            metrics: None,
            recorder: Recorder::default(),
            drain_wait: Duration::ZERO,
            frames: FrameVersion::NEWEST,
            unsafe_no_cas: false,
            ring_interval: Duration::from_secs(2),
        }
    }
}
