//! Holds replicas: memory, log, segments, manifest.
//!
//! A call comes in at `service`, is decided in `engine`, reaches the disk through `log` and the bucket
//! through `flush`. [`start`] is the whole life of a node: probe the store, join the ring, lease an epoch,
//! recover, serve.

mod config;
pub mod disk;
mod engine;
pub mod epoch;
mod flush;
mod index;
mod join;
mod log;
pub mod manifests;
mod memtable;
mod recovery;
mod segments;
mod service;
#[cfg(test)]
mod testing;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::routing::get;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use cartwheel_bucket::{BucketError, ProbeVerdict, SharedBucket, probe_conditional_create};
use cartwheel_cluster::frames;
use cartwheel_cluster::http_server::{Limits, serve};
use cartwheel_cluster::membership::{self, Follower, MembershipError};
use cartwheel_cluster::peer::{FRAMES_PATH, Peers};
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::clock::Actor;
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Member, MemberState};

pub use config::NodeConfig;

use disk::Disk;
use engine::{Engine, EngineConfig};
use epoch::Incarnation;
use flush::Flusher;
use join::Joiner;
use log::Log;
use manifests::ManifestsError;
use service::Service;

/// How long a node waits for a bucket that does not answer at start.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// The share of the cache that holds rows; the rest holds blocks.
const ROW_SHARE: u64 = 2;

/// Why a storage node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bucket did not do its part.
    #[error("--bucket: {0}")]
    Bucket(#[from] BucketError),
    /// The store lets two processes create the same object.
    #[error(
        "--bucket: this store does not honour conditional creates (If-None-Match: *): {0} of 8 racing \
         creates succeeded; ring changes and epochs would not be safe. Use another store, or \
         --unsafe-no-cas if no two processes ever change the ring or share a node id"
    )]
    NoConditionalCreate(u32),
    /// The ring could not be read or joined.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The node's manifest is of no use.
    #[error(transparent)]
    Manifest(#[from] ManifestsError),
    /// The data directory is of no use.
    #[error("--data-dir: {0}")]
    Disk(io::Error),
    /// The address is of no use.
    #[error("--listen {address}: {error}")]
    Listen {
        /// The address.
        address: String,
        /// What is wrong with it.
        error: io::Error,
    },
}

/// A storage node that serves.
#[derive(Debug)]
pub struct RunningNode {
    id: NodeId,
    address: String,
    incarnation: Incarnation,
    stop: watch::Sender<bool>,
    ended: JoinHandle<()>,
}

impl RunningNode {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// The address that others call.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Which incarnation of its name it is.
    #[must_use]
    pub fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// Drains, flushes and leaves a clean end behind.
    pub async fn shutdown(self) {
        let _ = self.stop.send(true);
        if self.ended.await.is_err() {
            tracing::error!(node = %self.id, "the storage node ended in a panic");
        }
    }
}

/// Starts a storage node. Without a `disk` it reaches the durabilities `memory` and `bucket` only.
///
/// # Errors
/// [`StartError`], in a sentence that names the flag to look at.
pub async fn start(
    config: NodeConfig,
    seams: Seams,
    disk: Option<Arc<dyn Disk>>,
    bucket: SharedBucket,
    secret: &ClusterSecret,
) -> Result<RunningNode, StartError> {
    probe(&bucket, &seams, config.unsafe_no_cas).await?;
    let listening = |error| StartError::Listen { address: config.listen.clone(), error };
    let listener = seams.net.listen(&config.listen).await.map_err(listening)?;
    let bound = listener.local_addr().map_err(listening)?.to_string();
    let address = config.advertise.clone().unwrap_or(bound);

    let me = Member {
        id: config.id.clone(),
        address: address.clone(),
        zone: config.zone.clone(),
        weight: config.weight,
        state: MemberState::Joining,
    };
    let document = membership::ensure_member(&*bucket, &seams, me, config.founding, config.may_join).await?;
    let follower = Follower::start(Arc::clone(&bucket), seams.clone(), config.ring_interval);
    let incarnation = Incarnation::lease(&config.id, &*bucket, &seams, disk.as_deref()).await?;
    let recovered =
        recover(&config, &incarnation, document.hash_seed, disk.clone(), Arc::clone(&bucket)).await?;
    let Recovered { engine, log, manifest_version } = recovered;

    let view = membership::View::new(document);
    let token = secret.node_token();
    let service = Service::new(Arc::clone(&engine), incarnation.clone(), follower.clone(), &view);
    let router = router(Arc::new(service), token.clone());
    let joiner = Joiner {
        me: config.id.clone(),
        engine: Arc::clone(&engine),
        peers: Peers::new(seams.clone(), token),
        bucket: Arc::clone(&bucket),
        seams: seams.clone(),
        follower,
    };
    let flusher = Flusher {
        engine: Arc::clone(&engine),
        bucket,
        disk: disk.clone(),
        seams,
        me: incarnation.clone(),
        interval: config.flush_interval,
        manifest_version,
        flushed: 0,
    };

    let (stop, stopped) = watch::channel(false);
    let ended = tokio::spawn({
        let incarnation = incarnation.clone();
        async move {
            let loading = tokio::spawn(recovery::load_index(Arc::clone(&engine)));
            let joining = tokio::spawn(joiner.run());
            let (flush_stop, flush_stopped) = watch::channel(false);
            let flushing = tokio::spawn(flusher.run(flush_stopped));
            serve(listener, router, Limits::default(), stopped).await;
            // Connections that were upgraded to frames live on; they get no more writes in.
            engine.close();
            joining.abort();
            loading.abort();
            let _ = flush_stop.send(true);
            let flushed = flushing.await.unwrap_or(false);
            let logged = match &log {
                Some(log) => log.close().await,
                None => false,
            };
            if let (true, Some(disk)) = (flushed && logged && !engine.is_fenced(), &disk)
                && let Err(error) = incarnation.leave_clean_end(&**disk).await
            {
                tracing::warn!(%error, "can't leave a clean end; the next start takes a new epoch");
            }
        }
    });
    tracing::info!(node = %config.id, %address, incarnation = %incarnation.label(), "storage node serves");
    Ok(RunningNode { id: config.id, address, incarnation, stop, ended })
}

/// Makes sure that the store can be relied on, waiting a while for one that does not answer yet.
async fn probe(bucket: &SharedBucket, seams: &Seams, unsafe_no_cas: bool) -> Result<(), StartError> {
    let give_up = Instant::now() + START_PATIENCE;
    loop {
        match probe_conditional_create(&**bucket, seams.random.next_u128()).await {
            Ok(ProbeVerdict::Sound) => return Ok(()),
            Ok(ProbeVerdict::IgnoresConditions { winners }) if unsafe_no_cas => {
                tracing::warn!(winners, "the store does not honour conditional creates; going on as told");
                return Ok(());
            }
            Ok(ProbeVerdict::IgnoresConditions { winners }) => {
                return Err(StartError::NoConditionalCreate(winners));
            }
            Err(error) if error.is_retryable() && Instant::now() < give_up => {
                tracing::warn!(%error, "the bucket does not answer yet; waiting for it");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

struct Recovered {
    engine: Arc<Engine>,
    log: Option<Arc<Log>>,
    manifest_version: u64,
}

/// Finds what earlier processes left: segments in the bucket, records in the log.
async fn recover(
    config: &NodeConfig,
    incarnation: &Incarnation,
    hash_seed: u64,
    disk: Option<Arc<dyn Disk>>,
    bucket: SharedBucket,
) -> Result<Recovered, StartError> {
    let found = match &disk {
        Some(disk) => recovery::read_logs(disk).await.map_err(StartError::Disk)?,
        None => recovery::FoundLogs::default(),
    };
    // What is replayed belongs to the newest old file; new writes go to one of their own.
    let log_number = found.newest + 1;
    let log = disk.map(|disk| Log::start(disk, log_number));
    let actor = Actor { node: config.id.clone(), epoch: incarnation.epoch };
    let engine_config = EngineConfig {
        flush_bytes: config.flush_bytes,
        row_cache_bytes: config.cache_bytes / ROW_SHARE,
        block_cache_bytes: config.cache_bytes - config.cache_bytes / ROW_SHARE,
    };
    let engine = Engine::new(engine_config, actor, hash_seed, Arc::clone(&bucket), log.clone(), log_number);
    let manifest_version = recovery::find_segments(&engine, &bucket, &config.id).await?;
    let replayed = found.records.len();
    for (record, bytes) in found.records {
        engine.replay(&record, &bytes);
    }
    tracing::info!(segments = engine.segments.all().len(), replayed, "recovered");
    Ok(Recovered { engine: Arc::new(engine), log, manifest_version })
}

fn router(service: Arc<Service>, token: cartwheel_cluster::secret::NodeToken) -> Router {
    let frames = move |request: Request| {
        let (service, token) = (Arc::clone(&service), token.clone());
        async move { frames::accept(request, &token, service) }
    };
    Router::new().route(FRAMES_PATH, get(frames)).route("/healthz", get(|| async { "ok\n" }))
}
