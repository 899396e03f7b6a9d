//! HTTP for clients; drives one request's quorum. Keeps nothing: a gateway needs only the bucket to start.
//!
//! A data request goes `router` → `data` → `request` (parsing) → `coordinate` (the quorum) → `answer`.

pub mod answer;
mod body;
mod changes_api;
mod cluster_api;
mod config;
mod coordinate;
mod data;
mod edge;
mod edits;
mod figures;
mod hints_api;
mod last_resort;
mod latency;
mod namespaces;
mod namespaces_api;
mod observe;
mod predecessors;
pub mod problem;
mod repair;
mod repair_api;
pub mod request;
mod ring_api;
mod router;
pub mod settings;
mod trust;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;

use cartwheel_bucket::{SharedBucket, Work};
use cartwheel_cluster::gossip::GossipHandle;
use cartwheel_cluster::http_server::serve;
use cartwheel_cluster::membership::Follower;
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::header::ClockKey;

pub use config::GatewayConfig;
pub use figures::{GatewayFigures, GatewayWatch, Partitions, state_name};

use body::BodyBudget;
use last_resort::LastResort;
use latency::Hedging;
use namespaces::Namespaces;
use observe::Watch;
use problem::Problem;
use repair::Repairs;
use trust::Trust;

/// Writes that were answered and still go on, to the homes that have not taken them.
const GOING_ON: usize = 4096;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: GatewayConfig,
    seams: Seams,
    follower: Follower,
    /// Where ring documents lie.
    ring_bucket: SharedBucket,
    peers: Peers,
    clock_key: ClockKey,
    hedging: Hedging,
    repairs: Repairs,
    /// What a storage node says of the others.
    gossip: GossipHandle,
    trust: Trust,
    namespaces: Namespaces,
    last_resort: LastResort,
    bodies: Arc<BodyBudget>,
    in_flight: Semaphore,
    /// Room for writes that were answered and still go on.
    going_on: Arc<Semaphore>,
    watch: Arc<Watch>,
    /// It was told to end.
    draining: AtomicBool,
}

impl Shared {
    /// A place among the requests worked on.
    fn permit(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.in_flight.try_acquire().map_err(|_| Problem::overloaded("too many requests are being worked on"))
    }
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
#[error("--listen {address}: {error}")]
pub struct StartError {
    address: String,
    error: io::Error,
}

/// A gateway that serves.
#[derive(Debug)]
pub struct RunningGateway {
    address: String,
    follower: Follower,
    watch: GatewayWatch,
    drain_wait: Duration,
    stop: watch::Sender<bool>,
    ended: JoinHandle<()>,
}

impl RunningGateway {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits until a ring document is found; from then on data is served. The caller bounds the time.
    pub async fn ready(&self) {
        self.follower.at_least(1).await;
    }

    /// Who asks it for its figures.
    #[must_use]
    pub fn watch(&self) -> GatewayWatch {
        self.watch.clone()
    }

    /// Is no longer ready, goes on serving for as long as it was told to, then stops accepting and waits for the
    /// requests in flight.
    pub async fn shutdown(self) {
        if let Some(shared) = self.watch.0.upgrade() {
            shared.draining.store(true, Ordering::Relaxed);
        }
        if !self.drain_wait.is_zero() {
            tokio::time::sleep(self.drain_wait).await;
        }
        let _ = self.stop.send(true);
        if self.ended.await.is_err() {
            tracing::error!("the gateway ended in a panic");
        }
    }
}

/// Starts a gateway. It serves at once; data requests get 503 until a ring document is found.
///
/// # Errors
/// [`StartError`] if it can't listen.
pub async fn start(
    config: GatewayConfig,
    seams: Seams,
    bucket: SharedBucket,
    secret: &ClusterSecret,
) -> Result<RunningGateway, StartError> {
    let failed = |error| StartError { address: config.listen.clone(), error };
    let listener = seams.net.listen(&config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?.to_string();
    let peers = Peers::speaking(config.frames, seams.clone(), secret.node_token());
    let counted = |work| config.meter.bucket(&bucket, work);
    let ring_bucket = counted(Work::Membership);
    let follower = Follower::start(Arc::clone(&ring_bucket), seams.clone(), config.ring_interval);
    predecessors::start(peers.clone(), follower.clone());
    let shared = Arc::new(Shared {
        repairs: Repairs::start(peers.clone()),
        gossip: GossipHandle::listen(peers.clone(), follower.clone(), seams.clone()),
        trust: Trust::start(peers.clone(), follower.clone()),
        namespaces: Namespaces::start(counted(Work::Namespaces), seams.clone(), config.namespace_interval),
        last_resort: LastResort::new(counted(Work::LastResort), seams.clone()),
        follower,
        ring_bucket,
        peers,
        clock_key: secret.clock_key(),
        hedging: Hedging::default(),
        bodies: BodyBudget::new(config.body_bytes),
        in_flight: Semaphore::new(config.in_flight),
        going_on: Arc::new(Semaphore::new(GOING_ON)),
        watch: Arc::new(Watch {
            node: config.name.clone(),
            recorder: config.recorder.clone(),
            active: AtomicU64::new(0),
        }),
        draining: AtomicBool::new(false),
        seams,
        config,
    });
    let (limits, follower) = (shared.config.limits, shared.follower.clone());
    let (watch, drain_wait) = (GatewayWatch(Arc::downgrade(&shared)), shared.config.drain_wait);
    let (stop, stopped) = watch::channel(false);
    let ended = tokio::spawn(serve(listener, router::router(shared), limits, stopped));
    tracing::info!(%address, "gateway serves");
    Ok(RunningGateway { address, follower, watch, drain_wait, stop, ended })
}
