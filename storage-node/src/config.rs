//! What a storage node is told at start.

use std::time::Duration;

use cartwheel_cluster::membership::Founding;
use cartwheel_core::names::NodeId;

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
    /// Bytes of the row and block caches together.
    pub cache_bytes: u64,
    /// A memtable is flushed when it is so old…
    pub flush_interval: Duration,
    /// …or holds so many bytes.
    pub flush_bytes: usize,
    /// Bytes of hints kept for other nodes, beyond which no more are taken.
    pub hint_bytes: u64,
    /// Does a node that was away count for nothing until it has caught up? Always; only a test that shows what the
    /// rule is for turns it off.
    pub catches_up: bool,
    /// How a new cluster is laid out, if this node founds it.
    pub founding: Founding,
    /// May the node add itself to the ring?
    pub may_join: bool,
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
            cache_bytes: 512 * 1024 * 1024,
            flush_interval: Duration::from_secs(10),
            flush_bytes: 64 * 1024 * 1024,
            hint_bytes: 1024 * 1024 * 1024,
            catches_up: true,
            founding: Founding::default(),
            may_join: true,
            unsafe_no_cas: false,
            ring_interval: Duration::from_secs(2),
        }
    }
}
