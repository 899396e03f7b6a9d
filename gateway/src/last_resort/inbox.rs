//! Writing records into the homes' inboxes: hint objects whose holder is this gateway. Records that arrive while
//! an upload to their home is under way go together into the next object.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};

use cartwheel_bucket::{BucketError, SharedBucket};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::names::NodeId;
use cartwheel_core::record::{Brief, Record};
use cartwheel_core::segment::{BuiltSegment, SegmentBuilder};
use cartwheel_segments::RecordKey;
use cartwheel_segments::hints::hint_object;

use super::LastResortError;
use super::breaker::Breaker;
use super::read::Reads;

/// Bytes of records that may wait or be under way.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;
/// What a record takes besides its bytes.
const RECORD_OVERHEAD: usize = 1024;
/// An object is closed once its records have so many bytes.
const OBJECT_BYTES: usize = 16 * 1024 * 1024;
/// The first pause after a failed upload; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// All that writing takes.
#[derive(Debug)]
pub(super) struct Inboxes {
    bucket: SharedBucket,
    seams: Seams,
    reads: Arc<Reads>,
    breaker: Arc<Breaker>,
    /// Holder, epoch and nonce: no other process writes under it.
    label: String,
    /// The number of the last object. One count for all homes, so that none need be remembered.
    last: AtomicU64,
    room: Arc<Semaphore>,
    /// What waits for each home. A home is in it while its uploader runs.
    waiting: Mutex<HashMap<NodeId, VecDeque<Arc<Letter>>>>,
}

/// A record on its way to its homes.
#[derive(Debug)]
struct Letter {
    key: RecordKey,
    record: Record,
    bytes: usize,
    deadline: Instant,
    /// Told once for each home: it is there, or why not.
    told: mpsc::Sender<Result<(), String>>,
    _room: OwnedSemaphorePermit,
}

impl Inboxes {
    pub(super) fn new(
        bucket: SharedBucket,
        seams: Seams,
        reads: Arc<Reads>,
        breaker: Arc<Breaker>,
        label: String,
    ) -> Arc<Self> {
        Arc::new(Self {
            bucket,
            seams,
            reads,
            breaker,
            label,
            last: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(MAX_WAITING_BYTES)),
            waiting: Mutex::default(),
        })
    }

    /// Puts the record into the inboxes of `homes`, and waits until `needed` of them hold it.
    pub(super) async fn write(
        self: &Arc<Self>,
        homes: &[NodeId],
        record: &Record,
        hash: KeyHash,
        needed: usize,
        deadline: Instant,
    ) -> Result<usize, LastResortError> {
        let mut homes = homes.to_vec();
        homes.sort();
        homes.dedup();
        if homes.len() < needed {
            let have = homes.len();
            let why = format!("{needed} homes are to hold the write; the key has {have}");
            return Err(LastResortError::Unreachable(why));
        }
        let bytes = record.encode().len();
        let charge = u32::try_from(bytes + RECORD_OVERHEAD).map_err(|_| LastResortError::Busy)?;
        let room =
            Arc::clone(&self.room).try_acquire_many_owned(charge).map_err(|_| LastResortError::Busy)?;
        let _pass = self.breaker.admit().ok_or(LastResortError::Busy)?;
        let (told, mut hear) = mpsc::channel(homes.len().max(1));
        let key = RecordKey::new(hash, &record.namespace, &record.key);
        let letter = Letter { key, record: record.clone(), bytes, deadline, told, _room: room };
        let letter = Arc::new(letter);
        for home in &homes {
            self.post(home, Arc::clone(&letter));
        }
        drop(letter);

        let (mut held, mut failed) = (0, 0);
        while held < needed {
            match timeout_at(deadline, hear.recv()).await {
                Ok(Some(Ok(()))) => held += 1,
                Ok(Some(Err(_))) if homes.len() - failed > needed => failed += 1,
                Ok(Some(Err(why))) => return Err(missed(needed, held, &why)),
                Ok(None) => return Err(missed(needed, held, "the process is shutting down")),
                Err(_) => return Err(missed(needed, held, "no answer before the deadline")),
            }
        }
        Ok(held)
    }

    fn post(self: &Arc<Self>, home: &NodeId, letter: Arc<Letter>) {
        let mut waiting = self.waiting.lock();
        if let Some(queue) = waiting.get_mut(home) {
            queue.push_back(letter);
        } else {
            waiting.insert(home.clone(), VecDeque::from([letter]));
            cartwheel_telemetry::trace::spawn(Arc::clone(self).upload_all(home.clone()));
        }
    }

    /// Uploads what waits for `home` until nothing does.
    async fn upload_all(self: Arc<Self>, home: NodeId) {
        while let Some(letters) = self.take(&home) {
            let outcome = self.upload(&home, &letters).await;
            for letter in letters {
                // Nobody listens any more once enough homes hold it.
                let _ = letter.told.try_send(outcome.clone());
            }
        }
    }

    /// The records of the next object; `None` if there are none, and then the uploader is gone.
    fn take(&self, home: &NodeId) -> Option<Vec<Arc<Letter>>> {
        let mut waiting = self.waiting.lock();
        let queue = waiting.get_mut(home)?;
        let (mut letters, mut bytes) = (Vec::new(), 0);
        while bytes < OBJECT_BYTES
            && let Some(letter) = queue.pop_front()
        {
            bytes += letter.bytes;
            letters.push(letter);
        }
        if letters.is_empty() {
            waiting.remove(home);
            return None;
        }
        Some(letters)
    }

    /// Puts one object with these records; tries until the last of their deadlines. The name is new and the
    /// bytes stay the same, so trying again is safe.
    async fn upload(&self, home: &NodeId, letters: &[Arc<Letter>]) -> Result<(), String> {
        let deadline = letters.iter().map(|letter| letter.deadline).max().unwrap_or_else(Instant::now);
        let Some(built) = build(letters) else { return Err("there is nothing to write".to_owned()) };
        let object = hint_object(home, &self.label, self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let mut pause = FIRST_PAUSE;
        loop {
            match timeout_at(deadline, self.bucket.put(&object, built.bytes.clone())).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) if error.is_retryable() && Instant::now() + pause < deadline => {
                    tracing::debug!(%error, %object, "can't write to an inbox; trying again");
                }
                Ok(Err(error)) => return Err(given_up(&object, &error)),
                Err(_) => return Err(format!("{object}: no answer before the deadline")),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        let known = SegmentEntry::of(object, &built);
        self.reads.homes.wrote(home, known, self.seams.clock.now_ms());
        for letter in letters {
            self.reads.outdate(&letter.key);
        }
        Ok(())
    }
}

fn given_up(object: &str, error: &BucketError) -> String {
    tracing::warn!(%error, %object, "can't write to an inbox");
    error.to_string()
}

fn missed(needed: usize, held: usize, why: &str) -> LastResortError {
    LastResortError::Unreachable(format!("{needed} inboxes are to hold the write, {held} do: {why}"))
}

/// A segment of these records, those of the same key merged.
fn build(letters: &[Arc<Letter>]) -> Option<BuiltSegment> {
    let mut records: BTreeMap<&RecordKey, Record> = BTreeMap::new();
    for letter in letters {
        match records.get_mut(&letter.key) {
            Some(record) => record.container.sync(letter.record.container.clone()),
            None => drop(records.insert(&letter.key, letter.record.clone())),
        }
    }
    let mut builder = SegmentBuilder::new();
    for (key, record) in records {
        builder.push(key.hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
    }
    builder.finish()
}
