//! Holds replicas: memory, log, segments, manifest.
//!
//! A call comes in at `service`, is decided in `engine`, reaches the disk through `log` and the bucket
//! through `flush`. [`start`] is the whole life of a node: probe the store, join the ring, lease an epoch,
//! recover, serve.

#[doc(hidden)]
pub mod bench_support;
mod borrow;
mod catch_up;
mod compact;
mod config;
mod copier;
pub mod disk;
mod engine;
pub mod epoch;
mod figures;
mod flush;
mod give_away;
mod graves;
mod hints;
mod join;
mod ledger;
mod log;
mod loss;
pub mod manifests;
mod memory;
mod memtable;
mod offer;
mod pace;
mod port;
mod quarantine;
mod reap;
mod recovery;
mod repair;
mod requests;
mod service;
mod standing;
mod sweep;
mod takeover;
#[cfg(test)]
mod testing;
mod trees;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use cartwheel_bucket::{
    BucketError, PatientBucket, ProbeVerdict, SharedBucket, Work, probe_conditional_create,
};
use cartwheel_cluster::gossip::GossipHandle;
use cartwheel_cluster::http_server::{Limits, serve};
use cartwheel_cluster::membership::{self, Follower, MembershipError};
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::clock::Actor;
use cartwheel_core::gossip::Word;
use cartwheel_core::manifest::Manifest;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Member, MemberState};
use cartwheel_segments as segments;

pub use config::NodeConfig;
pub use figures::{CacheFigures, NodeFigures, NodeWatch, SyncFigures};

use borrow::Borrower;
use catch_up::CatchUp;
use compact::Compactor;
use copier::Copier;
use disk::Disk;
use engine::{Buckets, Engine, EngineConfig, Held};
use epoch::{Incarnation, LeaseError, Leased};
use flush::Flusher;
use give_away::GiveAway;
use hints::{Hints, HintsConfig};
use join::Joiner;
use ledger::Ledger;
use log::Log;
use manifests::ManifestsError;
use memory::{Budget, Governor};
use pace::Pace;
use quarantine::Quarantine;
use reap::{Proofs, Reaper};
use recovery::FoundSegment;
use repair::{RepairDesk, Repairer};
use segments::manifests::ManifestReadError;
use service::{Parts, Service};
use standing::Stand;
use sweep::Sweeper;
use takeover::Takeover;
use trees::TreeWriter;

/// How long a node waits for a bucket that does not answer at start.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// The pause before a step that the bucket failed is tried again.
const START_PAUSE: Duration = Duration::from_millis(500);

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
    /// There is another process of this name.
    #[error(transparent)]
    Lease(LeaseError),
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

impl StartError {
    /// May the same step work later?
    fn is_retryable(&self) -> bool {
        match self {
            Self::Bucket(error)
            | Self::Membership(MembershipError::Bucket(error))
            | Self::Manifest(ManifestsError::Bucket(error)) => error.is_retryable(),
            Self::Manifest(ManifestsError::Read(ManifestReadError::Bucket(error))) => error.is_retryable(),
            Self::Membership(MembershipError::Settling) => true,
            _ => false,
        }
    }
}

impl From<loss::LossError> for StartError {
    fn from(error: loss::LossError) -> Self {
        match error {
            loss::LossError::Bucket(error) => Self::Bucket(error),
            loss::LossError::Manifest(error) => Self::Manifest(ManifestsError::Read(error)),
            loss::LossError::Disk(error) => Self::Disk(error),
        }
    }
}

impl From<LeaseError> for StartError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Bucket(error) => Self::Bucket(error),
            error @ LeaseError::TakenOver(_) => Self::Lease(error),
        }
    }
}

impl From<hints::FindError> for StartError {
    fn from(error: hints::FindError) -> Self {
        match error {
            hints::FindError::Bucket(error) => Self::Bucket(error),
            hints::FindError::Disk(error) => Self::Disk(error),
        }
    }
}

/// A storage node that serves.
#[derive(Debug)]
pub struct RunningNode {
    id: NodeId,
    address: String,
    incarnation: Incarnation,
    engine: Arc<Engine>,
    watch: NodeWatch,
    draining: Arc<AtomicBool>,
    drain_wait: Duration,
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

    /// Waits until another process has taken over this node's name; this one takes part in nothing any more, and is to
    /// be shut down.
    pub async fn taken_over(&self) {
        self.engine.fenced().await;
    }

    /// Who asks it for its figures.
    #[must_use]
    pub fn watch(&self) -> NodeWatch {
        self.watch.clone()
    }

    /// Is no longer ready, goes on serving for as long as it was told to, then drains, flushes and leaves a clean end
    /// behind.
    pub async fn shutdown(self) {
        self.draining.store(true, Ordering::Relaxed);
        if !self.engine.is_fenced() && !self.drain_wait.is_zero() {
            tokio::time::sleep(self.drain_wait).await;
        }
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
    let counted = |work| config.meter.bucket(&bucket, work);
    let (starting, membership_bucket) = (counted(Work::Start), counted(Work::Membership));
    probe(&starting, &seams, config.unsafe_no_cas).await?;
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
        becomes: None,
        dead: false,
    };
    let patience = Patience::new();
    let document = patience
        .with(|| async {
            let me = me.clone();
            Ok(membership::ensure_member(&*membership_bucket, &seams, me, config.founding, config.may_join)
                .await?)
        })
        .await?;
    let follower = Follower::start(Arc::clone(&membership_bucket), seams.clone(), config.ring_interval);
    let lease =
        || async { Ok(Incarnation::lease(&config.id, &*membership_bucket, &seams, disk.as_deref()).await?) };
    let leased = patience.with(lease).await?;
    let Leased { me: incarnation, last, resumed, newest } = leased;
    let assess = || async {
        Ok(loss::assess(&incarnation, last.as_ref(), resumed, disk.as_deref(), &starting).await?)
    };
    let loss = patience.with(assess).await?;
    let find = || async { Ok(recovery::find_segments(&starting, &seams, &incarnation).await?) };
    let found = patience.with(find).await?;
    let hash_seed = document.hash_seed;
    let flush_bytes = config.flush_bytes as u64;
    let buckets = Buckets { read: counted(Work::Read), index: counted(Work::Index) };
    let budget = Budget::new(config.memory_bytes, config.cache_bytes, flush_bytes);
    let recovered =
        recover(&budget, !config.unsafe_no_cas, &incarnation, hash_seed, disk.clone(), buckets, found)
            .await?;
    let Recovered { engine, log, manifest, store_time } = recovered;
    let whole = Arc::new(AtomicBool::new(false));
    let ledger = Arc::new(Ledger::new(
        counted(Work::Manifest),
        seams.clone(),
        incarnation.clone(),
        Arc::clone(&engine),
        &manifest,
        store_time,
        Arc::clone(&whole),
    ));
    let proofs = Arc::new(Proofs::new(config.delete_after * 2));
    let compact = Arc::new(Notify::new());
    let desk = Arc::new(RepairDesk::default());
    let governor = Arc::new(Governor::new(Arc::clone(&engine), budget));
    let find = || async { Ok(hints::find(&config.id, hash_seed, disk.as_deref(), &starting).await?) };
    let found = patience.with(find).await?;
    let limits = HintsConfig {
        max_bytes: config.hint_bytes,
        unstored_bytes: budget.flush_bytes * engine::MAX_UNFLUSHED as u64,
        memory_bytes: usize::try_from(budget.hints).unwrap_or(usize::MAX),
    };
    let whose = (incarnation.clone(), newest);
    let hints = Hints::new(limits, whose, counted(Work::Hints), disk.clone(), seams.clone(), found);
    let hints = Arc::new(hints);

    let view = membership::View::new(document);
    let token = secret.node_token();
    let peers = Peers::speaking(config.frames, seams.clone(), token.clone());
    let stand = Stand::new(config.catches_up);
    let gossip = GossipHandle::start(
        peers.clone(),
        follower.clone(),
        seams.clone(),
        config.id.clone(),
        word(&config.id, &stand, &hints, &engine, &follower),
    );
    let pace = Arc::new(Pace::new());
    let copier =
        Copier { engine: Arc::clone(&engine), peers: peers.clone(), pace: Arc::clone(&pace), hash_seed };
    let quarantine = Arc::new(Quarantine {
        me: incarnation.clone(),
        copier: copier.clone(),
        ledger: Arc::clone(&ledger),
        hints: Arc::clone(&hints),
        stand: Arc::clone(&stand),
        follower: follower.clone(),
        bucket: counted(Work::Repair),
        partitions: view.current.partitions(),
        forgot: AtomicBool::new(false),
        damaged_hints: parking_lot::Mutex::default(),
    });
    patience.with(|| async { Ok(quarantine.resume().await?) }).await?;
    let catch_up = Arc::new(CatchUp {
        me: incarnation.clone(),
        address: address.clone(),
        seams: seams.clone(),
        stand: Arc::clone(&stand),
        copier: copier.clone(),
        follower: follower.clone(),
        gossip: gossip.clone(),
        bucket: counted(Work::CatchUp),
        disk: disk.clone(),
        told: parking_lot::Mutex::default(),
        absorbed: parking_lot::Mutex::default(),
        damaged: parking_lot::Mutex::default(),
        hints: Arc::clone(&hints),
        whole: Arc::clone(&whole),
        loss,
        quarantine: Arc::clone(&quarantine),
    });
    let draining = Arc::new(AtomicBool::new(false));
    let parts = Parts {
        engine: Arc::clone(&engine),
        hints: Arc::clone(&hints),
        stand: Arc::clone(&stand),
        catch_up: Arc::clone(&catch_up),
        gossip,
        peers,
        pace: Arc::clone(&pace),
        proofs: Arc::clone(&proofs),
        repair: Arc::clone(&desk),
        ledger: Arc::clone(&ledger),
        governor: Arc::clone(&governor),
        meter: Arc::clone(&config.meter),
        prices: config.prices,
        seams: seams.clone(),
        compact: Arc::clone(&compact),
        me: incarnation.clone(),
        follower: follower.clone(),
        recorder: config.recorder.clone(),
        draining: Arc::clone(&draining),
    };
    let service = Arc::new(Service::new(parts, &view));
    let watch = NodeWatch(Arc::downgrade(&service));
    let router = port::router(service, token, config.frames, config.metrics.clone());
    let borrower = Arc::new(Borrower::new(borrow::Parts {
        engine: Arc::clone(&engine),
        ledger: Arc::clone(&ledger),
        bucket: PatientBucket::around(counted(Work::Repair)),
        seams: seams.clone(),
        me: config.id.clone(),
        hash_seed,
        pace: Arc::clone(&pace),
        compact: Arc::clone(&compact),
        unsafe_no_cas: config.unsafe_no_cas,
    }));
    let give_away = Arc::new(GiveAway::new(
        config.id.clone(),
        copier.clone(),
        Arc::clone(&ledger),
        Arc::clone(&hints),
        follower.clone(),
        config.delete_after,
    ));
    let takeover = Takeover {
        me: config.id.clone(),
        copier: copier.clone(),
        borrower: (!config.unsafe_no_cas).then(|| Arc::clone(&borrower)),
        hints: Arc::clone(&hints),
        bucket: PatientBucket::around(counted(Work::Repair)),
        desk: Arc::clone(&desk),
        ledger: Arc::clone(&ledger),
    };
    let joiner = Joiner {
        me: config.id.clone(),
        copier: copier.clone(),
        bucket: counted(Work::Membership),
        seams: seams.clone(),
        follower: follower.clone(),
        takeover: Arc::new(takeover),
        give_away: Arc::clone(&give_away),
    };
    let ring = follower.clone();
    let compactor = Compactor {
        engine: Arc::clone(&engine),
        ledger: Arc::clone(&ledger),
        bucket: counted(Work::Compaction),
        seams: seams.clone(),
        node: config.id.clone(),
        hash_seed,
        pace,
        proofs: Arc::clone(&proofs),
        piece_bytes: usize::try_from(budget.flush_bytes).unwrap_or(usize::MAX),
        settle: config.delete_after,
        wake: Arc::clone(&compact),
        give_away: Some(Arc::clone(&give_away)),
    };
    let sweeper = Sweeper {
        engine: Arc::clone(&engine),
        ledger: Arc::clone(&ledger),
        bucket: counted(Work::Sweep),
        me: incarnation.clone(),
        grace: config.delete_after,
        whole,
        wake: Arc::clone(&compact),
    };
    let repairer = Repairer {
        me: config.id.clone(),
        copier: copier.clone(),
        follower: follower.clone(),
        seams: seams.clone(),
        bucket: counted(Work::Repair),
        desk,
        every: config.repair_every,
    };
    let reaper = Reaper {
        me: config.id.clone(),
        engine: Arc::clone(&engine),
        proofs,
        copier: copier.clone(),
        follower: follower.clone(),
        stand: Arc::clone(&stand),
        hints: Arc::clone(&hints),
        bucket: counted(Work::Sweep),
        seams,
        after: config.reap_after,
        wake: Arc::clone(&compact),
    };
    let flusher = Flusher {
        engine: Arc::clone(&engine),
        bucket: counted(Work::Flush),
        disk: disk.clone(),
        me: incarnation.clone(),
        interval: config.flush_interval,
        ledger,
        flushed_one: compact,
        flushed: 0,
        trees: TreeWriter::new(counted(Work::Repair), incarnation.clone()),
    };

    let (stop, stopped) = watch::channel(false);
    let ended = tokio::spawn({
        let incarnation = incarnation.clone();
        let (engine, holding) = (Arc::clone(&engine), Arc::clone(&hints));
        async move {
            let offering = offer::offer(incarnation.node.clone(), Arc::clone(&hints), copier, follower);
            let mut background = vec![
                tokio::spawn(Arc::clone(&quarantine).run()),
                tokio::spawn(joiner.run()),
                tokio::spawn(governor.run(move || holding.held_bytes())),
                tokio::spawn(stand.run()),
                tokio::spawn(Arc::clone(&catch_up).listen()),
                tokio::spawn(catch_up.run()),
                tokio::spawn(offering),
                tokio::spawn(repairer.run()),
            ];
            // Objects are deleted, and what they held is believed to be elsewhere, only where the store can be relied on.
            if !config.unsafe_no_cas {
                background.push(tokio::spawn(compactor.run()));
                background.push(tokio::spawn(sweeper.run()));
                let members = move || {
                    let of = |view: Arc<membership::View>| {
                        view.document.members.iter().map(|m| m.id.clone()).collect()
                    };
                    ring.view().map_or_else(Vec::new, of)
                };
                background.push(tokio::spawn(borrower.run(members)));
                background.push(tokio::spawn(reaper.run()));
            }
            // One each: a channel wakes those who share it in a random order, and then no simulation repeats.
            let (flush_stop, flush_stopped) = watch::channel(false);
            let (upload_stop, upload_stopped) = watch::channel(false);
            let uploading = tokio::spawn(Arc::clone(&hints).upload(upload_stopped));
            let flushing = tokio::spawn(flusher.run(flush_stopped));
            serve(listener, router, Limits::default(), stopped).await;
            // Connections that were upgraded to frames live on; they get no more writes in.
            engine.close();
            background.iter().for_each(JoinHandle::abort);
            let _ = upload_stop.send(true);
            let _ = flush_stop.send(true);
            let flushed = flushing.await.unwrap_or(false);
            if uploading.await.is_err() {
                tracing::error!("the hints were not brought to an end");
            }
            let logged = match &log {
                Some(log) => log.close().await,
                None => false,
            };
            let forgot = give_away.has_forgotten() || quarantine.has_forgotten();
            let keeps_epoch = !engine.is_fenced() && !forgot;
            if let (true, Some(disk)) = (flushed && logged && keeps_epoch, &disk)
                && let Err(error) = incarnation.leave_clean_end(&**disk, hints.newest_epoch()).await
            {
                tracing::warn!(%error, "can't leave a clean end; the next start takes a new epoch");
            }
        }
    });
    tracing::info!(node = %config.id, %address, incarnation = %incarnation.label(), "storage node serves");
    let (id, drain_wait) = (config.id, config.drain_wait);
    Ok(RunningNode { id, address, incarnation, engine, watch, draining, drain_wait, stop, ended })
}

/// Makes sure that the store can be relied on.
async fn probe(bucket: &SharedBucket, seams: &Seams, unsafe_no_cas: bool) -> Result<(), StartError> {
    let verdict = Patience::new()
        .with(|| async { Ok(probe_conditional_create(&**bucket, seams.random.next_u128()).await?) })
        .await?;
    match verdict {
        ProbeVerdict::Sound => Ok(()),
        ProbeVerdict::IgnoresConditions { winners } if unsafe_no_cas => {
            tracing::warn!(winners, "the store does not honour conditional creates; going on as told");
            Ok(())
        }
        ProbeVerdict::IgnoresConditions { winners } => Err(StartError::NoConditionalCreate(winners)),
    }
}

/// Waits a while for a bucket that does not answer.
struct Patience {
    until: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { until: Instant::now() + START_PATIENCE }
    }

    /// Does one step of a start, again if the bucket fails that may not fail the next time.
    async fn with<T, F>(&self, step: impl Fn() -> F) -> Result<T, StartError>
    where
        F: Future<Output = Result<T, StartError>>,
    {
        loop {
            match step().await {
                Err(error) if error.is_retryable() && Instant::now() < self.until => {
                    tracing::warn!(%error, "can't start yet; trying again");
                    tokio::time::sleep(START_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }
}

struct Recovered {
    engine: Arc<Engine>,
    log: Option<Arc<Log>>,
    /// The manifest, claimed.
    manifest: Manifest,
    store_time: ledger::StoreTime,
}

/// Puts together what earlier processes left: segments in the bucket, records in the log.
async fn recover(
    budget: &Budget,
    merges: bool,
    incarnation: &Incarnation,
    hash_seed: u64,
    disk: Option<Arc<dyn Disk>>,
    buckets: Buckets,
    found_segments: recovery::FoundSegments,
) -> Result<Recovered, StartError> {
    let found = match &disk {
        Some(disk) if !removed(Rule::ReplayLog) => {
            recovery::read_logs(disk).await.map_err(StartError::Disk)?
        }
        _ => recovery::FoundLogs::default(),
    };
    // What is replayed belongs to the newest old file; new writes go to one of their own.
    let log_number = found.newest + 1;
    let log = disk.map(|disk| Log::start(disk, log::RECORDS, log_number, found.bytes));
    let actor = Actor { node: incarnation.node.clone(), epoch: incarnation.epoch };
    // The governor gives the caches what there is room for.
    let caches = budget.caches(&Held::default(), 0);
    let engine_config = EngineConfig {
        flush_bytes: usize::try_from(budget.flush_bytes).unwrap_or(usize::MAX),
        // Where nothing is merged, waiting for it would be in vain.
        max_segments: if merges { engine::MAX_SEGMENTS } else { usize::MAX },
        row_cache_bytes: caches / 2,
        block_cache_bytes: caches - caches / 2,
    };
    let engine = Engine::new(engine_config, actor, hash_seed, buckets, log.clone(), log_number);
    let recovery::FoundSegments { segments, more_graves, manifest, store_time } = found_segments;
    for FoundSegment { object, bytes, entry, born } in segments {
        engine.segments.push(engine.segments.open(object, bytes, entry, born));
    }
    for grave in &manifest.graves {
        engine.graves.segments.push(engine.graves.open(grave.clone()));
    }
    for grave in more_graves {
        let graves = &engine.graves.segments;
        graves.push(graves.open(grave.key, grave.size, None, None));
    }
    let replayed = found.records.len();
    for (record, bytes) in found.records {
        engine.replay(&record, &bytes);
    }
    tracing::info!(segments = engine.segments.all().len(), replayed, "recovered");
    Ok(Recovered { engine: Arc::new(engine), log, manifest, store_time })
}

/// What this node says of itself to the others.
fn word(
    me: &NodeId,
    stand: &Arc<Stand>,
    hints: &Arc<Hints>,
    engine: &Arc<Engine>,
    follower: &Follower,
) -> Box<dyn Fn() -> Word + Send + Sync> {
    let (me, stand, hints) = (me.clone(), Arc::clone(stand), Arc::clone(hints));
    let (engine, follower) = (Arc::clone(engine), follower.clone());
    Box::new(move || Word {
        node: me.clone(),
        generation: u64::from(hints.newest_epoch()),
        beat: 0,
        ring_version: follower.view().map_or(0, |view| view.version()),
        standing: stand.level(),
        rounds: stand.rounds(),
        bucket_fails: engine.bucket_fails(),
        unflushed_bytes: engine.figures().memtable_bytes as u64,
        hints: hints.held(),
        away: hints.away(),
    })
}
