//! What the tests of this crate share: a machine whose node is started and killed below the network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use cartwheel_bucket::{MemoryBucket, SharedBucket};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock::{Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value, Version};
use cartwheel_core::wire::{Precondition, Refusal};

use crate::disk::{Disk, MemoryDisk};
use crate::engine::{Buckets, Done, Engine, Found, Graved, Mint, MintRequest, Taking};
use crate::epoch::Incarnation;
use crate::flush::Flusher;
use crate::ledger::{Committed, Ledger};
use crate::memory::Budget;
use crate::memtable::RecordKey;
use crate::reap::Proofs;
use crate::recovery;
use crate::segments::SegmentError;
use crate::trees::TreeWriter;

pub(crate) mod upkeep;

/// The cluster's hash seed in these tests.
pub(crate) const SEED: u64 = 7;
/// Ids of the requests that [`Process::put`] makes, out of the way of those that tests choose.
static NEXT_REQUEST: AtomicU64 = AtomicU64::new(1 << 40);

pub(crate) fn namespace() -> Namespace {
    Namespace::new(b"carts").unwrap()
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(Bytes::copy_from_slice(name.as_bytes())).unwrap()
}

pub(crate) fn record_key(name: &str) -> RecordKey {
    RecordKey::new(hash(name), &namespace(), &key(name))
}

pub(crate) fn hash(name: &str) -> KeyHash {
    KeyHash::of(SEED, &namespace(), &key(name))
}

pub(crate) fn version(request: u128, context: &Clock, value: &[u8]) -> Version {
    Version {
        value: Value::Present(Bytes::copy_from_slice(value)),
        written_ms: 1,
        expires_ms: 0,
        request,
        context: context.clone(),
        content_type: Bytes::new(),
        meta: Vec::new(),
    }
}

pub(crate) fn mint_request(name: &str, version: Version, durability: Durability) -> MintRequest {
    MintRequest {
        namespace: namespace(),
        key: key(name),
        hash: hash(name),
        version,
        durability,
        precondition: Precondition::None,
        max_siblings: 100,
    }
}

/// A bucket and perhaps a disk: what outlives a process.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) bucket: SharedBucket,
    pub(crate) disk: Option<Arc<dyn Disk>>,
    pub(crate) flush_bytes: usize,
    /// Clock and randomness of its processes.
    pub(crate) seams: Seams,
    pub(crate) name: &'static str,
}

impl Machine {
    pub(crate) fn with_disk() -> Self {
        Self { disk: Some(Arc::new(MemoryDisk::default())), ..Self::without_disk() }
    }

    pub(crate) fn without_disk() -> Self {
        let (bucket, seams) = (Arc::new(MemoryBucket::new()), Seams::real());
        Self { bucket, disk: None, flush_bytes: 1 << 20, seams, name: "node-a" }
    }

    pub(crate) fn node(&self) -> NodeId {
        NodeId::new(self.name).unwrap()
    }

    /// Starts a process as `start` does, but for the network and the background work.
    pub(crate) async fn boot(&self) -> Process {
        let (node, seams) = (self.node(), self.seams.clone());
        let leased = Incarnation::lease(&node, &*self.bucket, &seams, self.disk.as_deref()).await.unwrap();
        self.boot_as(leased.me).await
    }

    pub(crate) async fn boot_as(&self, me: Incarnation) -> Process {
        let budget =
            Budget { flush_bytes: self.flush_bytes as u64, ..Budget::new(1 << 30, 1 << 20, 1 << 20) };
        let seams = self.seams.clone();
        let found = recovery::find_segments(&self.bucket, &seams, &me).await.unwrap();
        let (disk, bucket) = (self.disk.clone(), Arc::clone(&self.bucket));
        let recovered = crate::recover(
            &budget,
            true,
            &me,
            SEED,
            disk,
            Buckets { read: Arc::clone(&bucket), index: bucket },
            found,
        )
        .await
        .unwrap();
        let ledger = Ledger::new(
            Arc::clone(&self.bucket),
            seams.clone(),
            me.clone(),
            Arc::clone(&recovered.engine),
            &recovered.manifest,
            recovered.store_time,
            Arc::new(AtomicBool::new(true)),
        );
        let ledger = Arc::new(ledger);
        let flusher = Flusher {
            engine: Arc::clone(&recovered.engine),
            bucket: Arc::clone(&self.bucket),
            disk: self.disk.clone(),
            me: me.clone(),
            interval: Duration::from_secs(3600),
            ledger: Arc::clone(&ledger),
            flushed_one: Arc::default(),
            flushed: 0,
            trees: TreeWriter::new(Arc::clone(&self.bucket), me.clone()),
        };
        let (stop, stopped) = watch::channel(false);
        let engine = recovered.engine;
        let (bucket, proofs) = (Arc::clone(&self.bucket), Arc::new(Proofs::new(Duration::from_secs(60))));
        Process { me, engine, flusher, ledger, bucket, seams, proofs, stop, stopped }
    }
}

/// A running node without its network. Dropped, it is killed.
pub(crate) struct Process {
    pub(crate) me: Incarnation,
    pub(crate) engine: Arc<Engine>,
    pub(crate) flusher: Flusher,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) bucket: SharedBucket,
    pub(crate) seams: Seams,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) stopped: watch::Receiver<bool>,
}

impl Process {
    /// Everything in memory into the bucket.
    pub(crate) async fn flush(&mut self) {
        while let Some(table) = self.engine.freeze() {
            assert!(self.flusher.flush(&table, &self.stopped).await);
        }
    }

    /// One that flushes beside the test, under numbers of its own.
    pub(crate) fn another_flusher(&self) -> Flusher {
        Flusher {
            engine: Arc::clone(&self.engine),
            bucket: Arc::clone(&self.bucket),
            disk: self.flusher.disk.clone(),
            me: self.me.clone(),
            interval: Duration::from_secs(3600),
            ledger: Arc::clone(&self.ledger),
            flushed_one: Arc::default(),
            flushed: 1000,
            trees: TreeWriter::new(Arc::clone(&self.bucket), self.me.clone()),
        }
    }

    pub(crate) async fn load_index(&self) {
        self.engine.load_index(&self.engine.segments.all()).await.unwrap();
    }

    /// A manifest of what is held now.
    pub(crate) async fn commit(&self) {
        assert_eq!(self.ledger.commit().await, Committed::Yes);
    }

    /// A mint as the service does it: reads the key where the index does not know enough.
    pub(crate) async fn mint(&self, request: &MintRequest) -> Result<Minted, Refusal> {
        let mut graved = Graved::Unknown;
        for _ in 0..2 {
            let (sender, reached) = oneshot::channel();
            let done = |dot: Dot| -> Done { Box::new(move |reached| sender.send((dot, reached)).unwrap()) };
            match self.engine.mint(request, graved, done)? {
                Mint::Made => {
                    let (dot, reached) = reached.await.unwrap();
                    return Ok(Minted::New(dot, reached));
                }
                Mint::Repeated(dot) => return Ok(Minted::Repeated(dot)),
                Mint::Unknown => {
                    let full = self.engine.read_full(&record_key_of(request)).await;
                    full.map_err(|e| Refusal::Unable(e.to_string()))?;
                    graved = Graved::Exhumed;
                }
            }
        }
        panic!("a key that was read is unknown");
    }

    /// A blind or informed write that must be new.
    pub(crate) async fn put(&self, name: &str, value: &str, context: &Clock, durability: Durability) -> Dot {
        let request = NEXT_REQUEST.fetch_add(1, Ordering::Relaxed).into();
        let request = mint_request(name, version(request, context, value.as_bytes()), durability);
        match self.mint(&request).await.unwrap() {
            Minted::New(dot, reached) => {
                assert_eq!(reached, durability);
                dot
            }
            Minted::Repeated(dot) => panic!("{dot} is no new write"),
        }
    }

    pub(crate) fn replicate(
        &self,
        record: &Record,
        durability: Durability,
    ) -> Result<oneshot::Receiver<Durability>, Refusal> {
        let (sender, reached) = oneshot::channel();
        let hash = KeyHash::of(SEED, &record.namespace, &record.key);
        let done = Box::new(move |reached| {
            let _ = sender.send(reached);
        });
        let bytes = record.encode();
        match self.engine.replicate(hash, record, &bytes, durability, Graved::Unknown, done)? {
            Taking::Taken => Ok(reached),
            Taking::Buried(_) => panic!("there may be a grave of it"),
        }
    }

    pub(crate) async fn container(&self, name: &str) -> Container<Version> {
        self.try_container(name).await.unwrap()
    }

    pub(crate) async fn try_container(&self, name: &str) -> Result<Container<Version>, SegmentError> {
        Ok(match self.engine.read(&record_key(name)).await? {
            Found::Absent => Container::default(),
            Found::Record(bytes) => Record::decode(&bytes).unwrap().container,
        })
    }

    /// The values of a key, in order.
    pub(crate) async fn values(&self, name: &str) -> Vec<String> {
        values(&self.container(name).await)
    }
}

fn record_key_of(request: &MintRequest) -> RecordKey {
    RecordKey::new(request.hash, &request.namespace, &request.key)
}

pub(crate) fn values(container: &Container<Version>) -> Vec<String> {
    let text = |version: &Version| match &version.value {
        Value::Present(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    };
    let mut values: Vec<String> = container.siblings().iter().map(|s| text(&s.version)).collect();
    values.sort();
    values
}

/// What came of a mint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Minted {
    New(Dot, Durability),
    Repeated(Dot),
}

/// A disk whose appends wait for permission, and fail if told so.
#[derive(Debug)]
pub(crate) struct GatedDisk {
    pub(crate) inner: MemoryDisk,
    gate: tokio::sync::Mutex<mpsc::UnboundedReceiver<io::Result<()>>>,
    /// Names of the files appended to, before the append waits.
    pub(crate) begun: Mutex<Vec<String>>,
}

impl GatedDisk {
    pub(crate) fn new() -> (Arc<Self>, mpsc::UnboundedSender<io::Result<()>>) {
        let (open, gate) = mpsc::unbounded_channel();
        let disk = Self { inner: MemoryDisk::default(), gate: gate.into(), begun: Mutex::default() };
        (Arc::new(disk), open)
    }
}

#[async_trait]
impl Disk for GatedDisk {
    async fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list().await
    }
    async fn read(&self, name: &str) -> io::Result<Bytes> {
        self.inner.read(name).await
    }
    async fn append(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.begun.lock().push(name.to_owned());
        match self.gate.lock().await.recv().await {
            Some(Ok(())) => self.inner.append(name, bytes).await,
            Some(Err(error)) => Err(error),
            None => std::future::pending().await,
        }
    }
    async fn replace(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.inner.replace(name, bytes).await
    }
    async fn delete(&self, name: &str) -> io::Result<()> {
        self.inner.delete(name).await
    }
}
