//! The write-ahead log: what was accepted since the last flush, on the local disk.
//!
//! Group commit without a timer: whatever queued during the last sync is the next batch. Records that nobody waits
//! for do not start a sync by themselves: they go with the next one, or after a moment. A file per memtable,
//! `log-{number:010}`; a file goes when its memtable is in the bucket. Hints have a log of their own, of the same
//! form: `hints-{number:010}`.
//!
//! ```text
//! file   "CWLOG001", entries
//! entry  u32 length, u32 checksum of length and record, record bytes
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use cartwheel_core::hash::checksum;

use crate::disk::Disk;

const MAGIC: &[u8; 8] = b"CWLOG001";
const ENTRY_HEADER: usize = 8;
/// Bytes that may wait for the disk before writes are refused.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;

/// How long records that nobody waits for may wait for the disk…
const LAZY_TIME: Duration = Duration::from_millis(20);
/// …and how many bytes of them.
const LAZY_BYTES: usize = 1024 * 1024;

/// Turns that other tasks get between a sync and the next batch.
const YIELDS: usize = 3;

/// Called once the record is on disk, or with why it is not.
pub(crate) type Done = Box<dyn FnOnce(Result<(), &str>) + Send>;

enum Item {
    Record(Bytes, Option<Done>),
    /// Nothing to write: somebody asks when all before it is on disk.
    Confirm(Done),
    Rotate(u64),
}

#[derive(Default)]
struct Queue {
    items: Vec<Item>,
    bytes: usize,
    /// Somebody waits for what is queued.
    urgent: bool,
    failed: Option<String>,
    closed: bool,
    /// The files that there are, oldest first: number and bytes.
    files: Vec<(u64, usize)>,
}

impl Queue {
    fn grow(&mut self, bytes: usize) {
        if let Some((_, size)) = self.files.last_mut() {
            *size += bytes;
        }
    }
}

/// The appending end of the log.
pub(crate) struct Log {
    queue: Mutex<Queue>,
    wake: Notify,
    drained: Notify,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}

/// What the files of the log of records are called.
pub(crate) const RECORDS: &str = "log";
/// What the files of the log of hints are called.
pub(crate) const HINTS: &str = "hints";

/// The name of file `number` of a log.
fn file_name(files: &str, number: u64) -> String {
    format!("{files}-{number:010}")
}

/// The number of a file of a log.
pub(crate) fn file_number(files: &str, name: &str) -> Option<u64> {
    name.strip_prefix(files)?.strip_prefix('-')?.parse().ok()
}

/// Deletes the files of a log up to `number`; one that stays is replayed once more.
pub(crate) async fn forget(disk: &dyn Disk, files: &str, up_to: u64) {
    let names = match disk.list().await {
        Ok(names) => names,
        Err(error) => return tracing::warn!(%error, "can't list the data directory"),
    };
    for name in names.iter().filter(|name| file_number(files, name).is_some_and(|n| n <= up_to)) {
        if let Err(error) = disk.delete(name).await {
            tracing::warn!(%error, %name, "can't delete a log file; its records are replayed once more");
        }
    }
}

impl Log {
    /// Starts the committer, appending to file `number` of those called `files`. `older` is how many bytes the files
    /// before it have.
    pub(crate) fn start(disk: Arc<dyn Disk>, files: &'static str, number: u64, older: usize) -> Arc<Self> {
        let queue = Queue { files: vec![(number.saturating_sub(1), older), (number, 0)], ..Queue::default() };
        let log = Arc::new(Self { queue: queue.into(), wake: Notify::new(), drained: Notify::new() });
        tokio::spawn(commit(Arc::clone(&log), disk, files, number));
        log
    }

    /// Is there room for another write, and does the disk work? Says why not.
    pub(crate) fn check(&self) -> Result<(), LogRefusal> {
        let queue = self.queue.lock();
        match &queue.failed {
            Some(why) => Err(LogRefusal::Failed(why.clone())),
            None if queue.bytes > MAX_WAITING_BYTES => Err(LogRefusal::Full),
            None => Ok(()),
        }
    }

    /// Queues a record.
    pub(crate) fn push(&self, record: Bytes, done: Option<Done>) {
        let mut queue = self.queue.lock();
        let first = queue.items.is_empty();
        queue.bytes += record.len() + ENTRY_HEADER;
        queue.grow(record.len() + ENTRY_HEADER);
        let urgent = done.is_some() || queue.bytes > LAZY_BYTES;
        let newly_urgent = urgent && !queue.urgent;
        queue.urgent |= urgent;
        queue.items.push(Item::Record(record, done));
        drop(queue);
        if first || newly_urgent {
            self.wake.notify_one();
        }
    }

    /// Calls `done` once all that was queued before is on disk.
    pub(crate) fn confirm(&self, done: Done) {
        let mut queue = self.queue.lock();
        queue.items.push(Item::Confirm(done));
        queue.urgent = true;
        drop(queue);
        self.wake.notify_one();
    }

    /// What is queued from now on goes to file `number`.
    pub(crate) fn rotate(&self, number: u64) {
        let mut queue = self.queue.lock();
        queue.items.push(Item::Rotate(number));
        queue.files.push((number, 0));
        queue.urgent = true;
        drop(queue);
        self.wake.notify_one();
    }

    /// Bytes of the file that is written to, and of all files.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let queue = self.queue.lock();
        let newest = queue.files.last().map_or(0, |(_, size)| *size);
        (newest, queue.files.iter().map(|(_, size)| size).sum())
    }

    /// The files up to `number` are gone.
    pub(crate) fn forgot(&self, up_to: u64) {
        self.queue.lock().files.retain(|(number, _)| *number > up_to);
    }

    /// Bytes that wait for the disk.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    /// Waits until all that is queued is on disk, then ends the committer. `false` if the disk failed.
    pub(crate) async fn close(&self) -> bool {
        self.queue.lock().closed = true;
        self.wake.notify_one();
        self.drained.notified().await;
        self.queue.lock().failed.is_none()
    }

    /// Waits for items: at once for urgent ones, a moment for others.
    async fn take(&self) -> Option<Vec<Item>> {
        let mut lazy_until = None;
        loop {
            {
                let mut queue = self.queue.lock();
                let now = Instant::now();
                let due = queue.urgent || queue.closed || lazy_until.is_some_and(|until| now >= until);
                if due && !queue.items.is_empty() {
                    queue.bytes = 0;
                    queue.urgent = false;
                    return Some(std::mem::take(&mut queue.items));
                }
                if queue.closed {
                    return None;
                }
                if !queue.items.is_empty() && lazy_until.is_none() {
                    lazy_until = Some(now + LAZY_TIME);
                }
            }
            match lazy_until {
                // Rung by an urgent one, or the moment is over; the loop tells which.
                Some(until) => drop(tokio::time::timeout_at(until, self.wake.notified()).await),
                None => self.wake.notified().await,
            }
        }
    }
}

/// Why the log takes nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogRefusal {
    /// Too much waits for the disk.
    Full,
    /// The disk failed.
    Failed(String),
}

async fn commit(log: Arc<Log>, disk: Arc<dyn Disk>, files: &'static str, first: u64) {
    let mut number = first;
    let mut fresh = true;
    let mut batch = BytesMut::new();
    let mut waiting: Vec<Done> = Vec::new();
    while let Some(items) = log.take().await {
        for item in items {
            match item {
                Item::Record(record, done) => {
                    if std::mem::take(&mut fresh) {
                        batch.put_slice(MAGIC);
                    }
                    put_entry(&mut batch, &record);
                    waiting.extend(done);
                }
                Item::Confirm(done) => waiting.push(done),
                Item::Rotate(next) => {
                    sync(&log, &*disk, &file_name(files, number), &mut batch, &mut waiting).await;
                    (number, fresh) = (next, true);
                }
            }
        }
        sync(&log, &*disk, &file_name(files, number), &mut batch, &mut waiting).await;
        // Whoever can run now, the senders of the answers just given among them, may add to the next batch.
        for _ in 0..YIELDS {
            tokio::task::yield_now().await;
        }
    }
    log.drained.notify_one();
}

async fn sync(log: &Log, disk: &dyn Disk, file: &str, batch: &mut BytesMut, waiting: &mut Vec<Done>) {
    if batch.is_empty() && waiting.is_empty() {
        return;
    }
    let bytes = batch.split().freeze();
    let failed = log.queue.lock().failed.clone();
    // After one failed sync nothing that follows can be believed: what the kernel dropped stays dropped.
    let result = match failed {
        Some(why) => Err(why),
        // All that came before was synced when it was written.
        None if bytes.is_empty() => Ok(()),
        None => match disk.append(file, bytes).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let why = format!("write-ahead log: {error}");
                tracing::error!(%why, "the local disk failed; writes that need it are refused until a restart");
                log.queue.lock().failed = Some(why.clone());
                Err(why)
            }
        },
    };
    for done in waiting.drain(..) {
        done(result.as_ref().copied().map_err(String::as_str));
    }
}

fn put_entry(out: &mut BytesMut, record: &[u8]) {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes();
    out.put_slice(&length);
    out.put_slice(&entry_sum(length, record).to_le_bytes());
    out.put_slice(record);
}

fn entry_sum(length: [u8; 4], record: &[u8]) -> u32 {
    let sum = checksum(record) ^ checksum(&length);
    u32::try_from((sum >> 32) ^ (sum & 0xffff_ffff)).unwrap_or(0)
}

/// What a log file holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// Its records, in order.
    pub(crate) records: Vec<Bytes>,
    /// Bytes at its end that are no whole entry: a write cut off by a crash, or damage.
    pub(crate) torn: usize,
}

/// Reads a log file up to the first entry that is not whole.
pub(crate) fn replay(file: &Bytes) -> Replayed {
    let mut records = Vec::new();
    if file.len() < MAGIC.len() || file[..MAGIC.len()] != MAGIC[..] {
        return Replayed { records, torn: file.len() };
    }
    let mut at = MAGIC.len();
    while let Some(header) = file.get(at..at + ENTRY_HEADER) {
        let length = [header[0], header[1], header[2], header[3]];
        let sum = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let end = at + ENTRY_HEADER + u32::from_le_bytes(length) as usize;
        match file.get(at + ENTRY_HEADER..end) {
            Some(record) if entry_sum(length, record) == sum => {
                records.push(file.slice(at + ENTRY_HEADER..end));
                at = end;
            }
            _ => break,
        }
    }
    Replayed { records, torn: file.len() - at }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::disk::MemoryDisk;

    fn record(n: u8) -> Bytes {
        Bytes::from(vec![n; 10])
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_replayed_and_rotation_splits_files() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
        let log = Log::start(Arc::clone(&disk), RECORDS, 3, 0);
        let (sender, mut acked) = tokio::sync::mpsc::unbounded_channel();
        for n in 0..5 {
            let sender = sender.clone();
            log.push(record(n), Some(Box::new(move |r| sender.send(r.is_ok()).unwrap())));
            if n == 2 {
                log.rotate(4);
            }
        }
        for _ in 0..5 {
            assert!(acked.recv().await.unwrap());
        }
        let first = replay(&disk.read("log-0000000003").await.unwrap());
        assert_eq!(first, Replayed { records: vec![record(0), record(1), record(2)], torn: 0 });
        let second = replay(&disk.read("log-0000000004").await.unwrap());
        assert_eq!(second.records, [record(3), record(4)]);
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_nobody_waits_for_go_with_the_next_sync_or_after_a_moment() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
        let log = Log::start(Arc::clone(&disk), RECORDS, 1, 0);
        log.push(record(1), None);
        tokio::task::yield_now().await;
        assert!(disk.list().await.unwrap().is_empty());
        tokio::time::advance(LAZY_TIME).await;
        while disk.list().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        log.push(record(2), None);
        let (sender, synced) = tokio::sync::oneshot::channel();
        log.push(record(3), Some(Box::new(move |r| sender.send(r.is_ok()).unwrap())));
        assert!(synced.await.unwrap());
        let replayed = replay(&disk.read("log-0000000001").await.unwrap());
        assert_eq!(replayed.records, [record(1), record(2), record(3)]);
    }

    #[tokio::test]
    async fn a_confirmation_comes_after_all_that_was_queued_before_it() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
        let log = Log::start(Arc::clone(&disk), RECORDS, 1, 0);
        for n in 0..2 {
            log.push(record(n), None);
            let (sender, confirmed) = tokio::sync::oneshot::channel();
            log.confirm(Box::new(move |r| sender.send(r.is_ok()).unwrap()));
            assert!(confirmed.await.unwrap());
            let replayed = replay(&disk.read("log-0000000001").await.unwrap());
            assert_eq!(replayed.records.len(), usize::from(n) + 1);
        }
    }

    #[tokio::test]
    async fn a_torn_tail_ends_the_replay_at_the_last_whole_entry() {
        let mut file = BytesMut::from(&MAGIC[..]);
        put_entry(&mut file, &record(1));
        put_entry(&mut file, &record(2));
        let file = file.freeze();
        let whole = MAGIC.len() + ENTRY_HEADER + 10;
        for cut in whole..file.len() {
            let got = replay(&file.slice(..cut));
            assert_eq!(got, Replayed { records: vec![record(1)], torn: cut - whole });
        }
        for at in whole..file.len() {
            let mut bad = file.to_vec();
            bad[at] ^= 1;
            assert_eq!(replay(&bad.into()).records, [record(1)], "byte {at}");
        }
        assert_eq!(replay(&Bytes::from_static(b"what")), Replayed { records: vec![], torn: 4 });
    }

    /// A disk whose first append fails.
    #[derive(Debug, Default)]
    struct FailingOnce(AtomicUsize, MemoryDisk);

    #[async_trait]
    impl Disk for FailingOnce {
        async fn list(&self) -> io::Result<Vec<String>> {
            self.1.list().await
        }
        async fn read(&self, name: &str) -> io::Result<Bytes> {
            self.1.read(name).await
        }
        async fn append(&self, name: &str, bytes: Bytes) -> io::Result<()> {
            if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.1.append(name, bytes).await
        }
        async fn replace(&self, name: &str, bytes: Bytes) -> io::Result<()> {
            self.1.replace(name, bytes).await
        }
        async fn delete(&self, name: &str) -> io::Result<()> {
            self.1.delete(name).await
        }
    }

    #[tokio::test]
    async fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
        let disk: Arc<dyn Disk> = Arc::new(FailingOnce::default());
        let log = Log::start(disk, RECORDS, 1, 0);
        for n in 0..2 {
            let (sender, acked) = tokio::sync::oneshot::channel();
            log.push(record(n), Some(Box::new(move |r| sender.send(r.is_ok()).unwrap())));
            assert!(!acked.await.unwrap(), "write {n}");
        }
        let (sender, confirmed) = tokio::sync::oneshot::channel();
        log.confirm(Box::new(move |r| sender.send(r.is_ok()).unwrap()));
        assert!(!confirmed.await.unwrap());
        assert!(matches!(log.check(), Err(LogRefusal::Failed(_))));
    }
}
