//! The flush loop: memtables become segment objects, strictly in order, and later a manifest names them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use cartwheel_bucket::SharedBucket;
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::record::{Brief, Record};
use cartwheel_core::segment::{BuiltSegment, SegmentBuilder};

use crate::disk::Disk;
use crate::engine::Engine;
use crate::epoch::Incarnation;
use crate::ledger::{Committed, Ledger};
use crate::log;
use crate::memtable::Memtable;
use crate::trees::TreeWriter;

/// The first pause after a failed upload; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Failed uploads in a row after which writes that need the bucket are refused.
const PATIENCE: u32 = 3;

/// What flushing needs.
pub(crate) struct Flusher {
    pub(crate) engine: Arc<Engine>,
    pub(crate) bucket: SharedBucket,
    pub(crate) disk: Option<Arc<dyn Disk>>,
    pub(crate) me: Incarnation,
    pub(crate) interval: Duration,
    pub(crate) ledger: Arc<Ledger>,
    /// Rung after each flush: there may be something to merge.
    pub(crate) flushed_one: Arc<Notify>,
    /// How many segments were flushed so far: the last one's number.
    pub(crate) flushed: u64,
    pub(crate) trees: TreeWriter,
}

impl Flusher {
    /// Flushes whenever the interval has passed, the memtable is full or somebody waits, until `shutdown`;
    /// then flushes what is left. Returns whether everything is in the bucket.
    pub(crate) async fn run(mut self, mut shutdown: watch::Receiver<bool>) -> bool {
        let mut manifest_due = Instant::now();
        let mut uncommitted = true;
        loop {
            if !self.engine.flush_wanted() {
                tokio::select! {
                    biased;
                    _ = shutdown.wait_for(|stop| *stop) => {}
                    () = self.engine.flush_now.notified() => {}
                    () = tokio::time::sleep(self.interval) => {}
                }
            }
            let stopping = *shutdown.borrow();
            if stopping || self.trees.is_due() {
                self.engine.want_tree();
            }
            if let Some(table) = self.engine.freeze() {
                if !self.flush(&table, &shutdown).await {
                    return false;
                }
                uncommitted = true;
            } else if self.trees.is_due()
                && let Some(tree) = self.engine.tree_of_segments(self.trees.root())
            {
                // Nothing more came in but what other nodes' segments hold.
                self.trees.put(&tree, self.flushed).await;
            }
            if stopping && self.engine.is_flushed() {
                self.ledger.commit_end().await;
                return true;
            }
            if uncommitted && (stopping || Instant::now() >= manifest_due) {
                uncommitted = self.ledger.commit().await == Committed::NotYet;
                manifest_due = Instant::now() + self.interval;
            }
        }
    }

    /// Uploads one memtable, however long it takes; gives up only when the process is to stop and the bucket
    /// does not answer (the log still has it all).
    pub(crate) async fn flush(&mut self, table: &Arc<Memtable>, shutdown: &watch::Receiver<bool>) -> bool {
        let Some(built) = build(table) else { return true };
        if removed(Rule::KeepLog) {
            self.forget_logs(table.log_number).await;
        }
        self.flushed += 1;
        let object = format!("{}{:010}.seg", self.me.segment_prefix(), self.flushed);
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        while let Err(error) = self.bucket.put(&object, built.bytes.clone()).await {
            tracing::warn!(%error, %object, "can't flush to the bucket; trying again");
            if *shutdown.borrow() {
                return false;
            }
            tries += 1;
            if tries >= PATIENCE {
                self.engine.set_bucket_fails(true);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        self.engine.set_bucket_fails(false);
        let size = built.bytes.len() as u64;
        tracing::debug!(%object, records = built.records, bytes = size, "flushed");
        self.engine.publish(table, SegmentEntry::of(object, &built));
        if let Some(tree) = &table.tree {
            self.trees.put(tree, self.flushed).await;
        }
        self.forget_logs(table.log_number).await;
        self.flushed_one.notify_one();
        true
    }

    /// Deletes the log files of what is in the bucket now.
    async fn forget_logs(&self, up_to: u64) {
        if let Some(disk) = &self.disk {
            log::forget(&**disk, log::RECORDS, up_to).await;
            self.engine.forgot_logs(up_to);
        }
    }
}

/// The segment of a memtable.
pub(crate) fn build(table: &Memtable) -> Option<BuiltSegment> {
    let mut builder = SegmentBuilder::new();
    for (key, entry) in table.iter() {
        match Record::decode(&entry.record) {
            Ok(record) => {
                builder.push(key.hash, &entry.record, &record.container.map(|v| Brief::from(v)));
            }
            Err(error) => {
                tracing::error!(%error, hash = %key.hash, "a record in memory is damaged; left out");
            }
        }
    }
    if let Some(leaves) = &table.leaves {
        builder.leaves(leaves.clone());
    }
    builder.finish()
}
