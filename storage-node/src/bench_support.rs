//! What the bench `engine` needs of this crate's insides: a memtable, a log, and a node without its network and its
//! background work. No interface: it changes with what it shows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use cartwheel_bucket::{MemoryBucket, SharedBucket};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock::Actor;
use cartwheel_core::compaction::{Plan, Why};
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::names::NodeId;
use cartwheel_core::record::Record;
use cartwheel_core::segment::BuiltSegment;

use crate::compact::Compactor;
use crate::disk::Disk;
use crate::engine::{Buckets, Engine, EngineConfig, Found};
use crate::epoch::Incarnation;
use crate::flush::build;
use crate::ledger::Ledger;
use crate::log::{self, Log};
use crate::memtable::{Entry, Memtable, RecordKey};
use crate::pace::Pace;
use crate::reap::Proofs;
use crate::recovery;
use crate::segments::Cursor;

/// The cluster's hash seed here.
pub const SEED: u64 = 7;
/// Bytes at which a memtable of [`Node`] would be flushed by itself; also those of one piece of a merge.
const FLUSH_BYTES: usize = 16 * 1024 * 1024;

/// A memtable.
#[derive(Debug, Default)]
pub struct Table(Memtable);

impl Table {
    /// Puts a record, which is all that is known of its key, into the memtable.
    pub fn insert(&mut self, key: &RecordKey, record: &Bytes) {
        self.0.insert(key.clone(), Entry { record: record.clone(), complete: true });
    }

    /// The segment of it, as a flush builds it; `None` if it is empty.
    #[must_use]
    pub fn build(&self) -> Option<BuiltSegment> {
        build(&self.0)
    }
}

/// A write-ahead log.
#[derive(Debug)]
pub struct Appender(Arc<Log>);

impl Appender {
    /// Starts the committer of an empty log on this disk.
    pub fn start(disk: Arc<dyn Disk>) -> Self {
        Self(Log::start(disk, log::RECORDS, 1, 0))
    }

    /// Appends a record and waits until it is on the disk. `false` if the disk failed.
    pub async fn append(&self, record: Bytes) -> bool {
        let (sender, done) = oneshot::channel();
        let tell = move |result: Result<(), &str>| {
            let _ = sender.send(result.is_ok());
        };
        self.0.push(record, Some(Box::new(tell)));
        done.await.unwrap_or(false)
    }
}

/// A node over an empty bucket in memory, without a disk.
pub struct Node {
    me: Incarnation,
    compactor: Compactor,
}

impl Node {
    /// A node whose index is complete and which holds nothing, with caches of so many bytes.
    ///
    /// # Errors
    /// Says what failed.
    pub async fn start(row_cache_bytes: u64, block_cache_bytes: u64) -> Result<Self, String> {
        let (bucket, seams): (SharedBucket, _) = (Arc::new(MemoryBucket::new()), Seams::real());
        let node = NodeId::new("node-a").map_err(|e| e.to_string())?;
        let me = Incarnation::lease(&node, &*bucket, &seams, None).await.map_err(|e| e.to_string())?.me;
        let found = recovery::find_segments(&bucket, &seams, &me).await.map_err(|e| e.to_string())?;
        let config = EngineConfig {
            flush_bytes: FLUSH_BYTES,
            max_segments: usize::MAX,
            row_cache_bytes,
            block_cache_bytes,
        };
        let actor = Actor { node: node.clone(), epoch: me.epoch };
        let buckets = Buckets { read: Arc::clone(&bucket), index: Arc::clone(&bucket) };
        let engine = Arc::new(Engine::new(config, actor, SEED, buckets, None, 1));
        engine.load_index(&[]).await.map_err(|e| e.to_string())?;
        let ledger = Ledger::new(
            Arc::clone(&bucket),
            seams.clone(),
            me.clone(),
            Arc::clone(&engine),
            &found.manifest,
            found.store_time,
            Arc::new(true.into()),
        );
        let compactor = Compactor {
            engine,
            ledger: Arc::new(ledger),
            bucket,
            seams,
            node,
            hash_seed: SEED,
            pace: Arc::new(Pace::new()),
            proofs: Arc::new(Proofs::new(Duration::from_secs(60))),
            piece_bytes: FLUSH_BYTES,
            settle: Duration::ZERO,
            wake: Arc::default(),
            give_away: None,
        };
        Ok(Self { me, compactor })
    }

    /// Takes a record in, as one from the log.
    ///
    /// # Errors
    /// Says why it is none.
    pub fn take(&self, record: &Bytes) -> Result<(), String> {
        self.compactor.engine.replay(&Record::decode(record).map_err(|e| e.to_string())?, record);
        Ok(())
    }

    /// Puts all that is in the memtable into the bucket, as one segment.
    ///
    /// # Errors
    /// Says what failed.
    pub async fn flush(&self) -> Result<(), String> {
        let engine = &self.compactor.engine;
        let table = engine.freeze().ok_or("the memtable is empty")?;
        let built = build(&table).ok_or("the memtable has no record")?;
        let object = format!("{}{:010}.seg", self.me.segment_prefix(), engine.segments.count() + 1);
        self.compactor.bucket.put(&object, built.bytes.clone()).await.map_err(|e| e.to_string())?;
        engine.publish(&table, SegmentEntry::of(object, &built));
        Ok(())
    }

    /// A point read; `None` if the node has never heard of the key.
    ///
    /// # Errors
    /// Says what failed.
    pub async fn read(&self, key: &RecordKey) -> Result<Option<Bytes>, String> {
        match self.compactor.engine.read(key).await.map_err(|e| e.to_string())? {
            Found::Record(bytes) => Ok(Some(bytes)),
            Found::Absent => Ok(None),
        }
    }

    /// Bytes in the row cache and in the block cache.
    #[must_use]
    pub fn cached(&self) -> (u64, u64) {
        let figures = self.compactor.engine.figures();
        (figures.row_cache_bytes, figures.block_cache_bytes)
    }

    /// Reads every segment from end to end; gives the bytes of their records.
    ///
    /// # Errors
    /// Says what failed.
    pub async fn scan(&self) -> Result<usize, String> {
        let mut bytes = 0;
        for segment in self.compactor.engine.segments.all().iter() {
            let cursor = Cursor::open(&self.compactor.bucket, segment, SEED, None).await;
            let mut cursor = cursor.map_err(|e| e.to_string())?;
            while let Some(item) = cursor.next().await.map_err(|e| e.to_string())? {
                bytes += item.bytes.len();
            }
        }
        Ok(bytes)
    }

    /// Waits until merges go as fast as they may where nobody writes.
    pub async fn widen(&self) {
        let mut before = 0;
        while self.compactor.pace.rate() > before {
            before = self.compactor.pace.rate();
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.compactor.pace.turn(1).await;
        }
    }

    /// Merges all segments; gives how many there were and how many came of them.
    ///
    /// # Errors
    /// Says what failed.
    pub async fn merge(&self) -> Result<(usize, usize), String> {
        let inputs = self.compactor.engine.segments.all();
        let plan = Plan { inputs: (0..inputs.len()).collect(), split: false, why: Why::Tier };
        self.compactor.merge(&inputs, &plan).await.map_err(|e| e.to_string())?;
        Ok((inputs.len(), self.compactor.engine.segments.count()))
    }
}
