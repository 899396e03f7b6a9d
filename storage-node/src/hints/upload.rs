//! Hints become objects in the bucket: at once if nothing was uploaded just before, else within a second.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Record;

use super::{Hints, State, Stored, Table, merge};
use crate::epoch::Incarnation;
use crate::flush::build;
use crate::log;
use crate::memtable::Memtable;
use crate::segments::hints::{hint_object, holder_label};

/// The least time between two uploads while hints keep coming.
const PAUSE: Duration = Duration::from_millis(250);
/// The pause after a failed upload.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of one table in memory that is made of several that are in the bucket.
const MAX_JOINED: usize = 8 * 1024 * 1024;

/// A table on its way to the bucket.
struct Parcel {
    home: NodeId,
    entries: Arc<Memtable>,
}

impl Hints {
    /// Uploads hints until `shutdown`, and what is left then.
    pub(crate) async fn upload(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => {}
                () = self.upload_now.notified() => {}
            }
            let stopping = *shutdown.borrow();
            let stored = self.upload_all().await;
            if stopping {
                break;
            }
            if !stored {
                self.upload_now.notify_one();
            }
            let pause = if stored { PAUSE } else { RETRY };
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        if let Some(log) = &self.log {
            log.close().await;
        }
    }

    /// Seals what came in and uploads all that is not in the bucket; `false` if something has to be tried again.
    pub(super) async fn upload_all(&self) -> bool {
        let parcels = self.seal();
        let mut all = true;
        for parcel in parcels {
            all &= self.upload_one(&parcel).await;
        }
        self.forget_logs().await;
        self.join();
        if self.holds_too_much() {
            match self.renew_epoch().await {
                Ok(()) => self.evict(),
                Err(error) => tracing::warn!(%error, "more hints than usual stay in memory"),
            }
        }
        all
    }

    fn seal(&self) -> Vec<Parcel> {
        let mut state = self.state.lock();
        let mut parcels = Vec::new();
        for (home, target) in &mut state.targets {
            for table in target.tables.iter_mut().filter(|table| !table.is_stored()) {
                table.sealed = true;
                parcels.push(Parcel { home: home.clone(), entries: Arc::clone(&table.entries) });
            }
        }
        if !parcels.is_empty() {
            state.log_number += 1;
            if let Some(log) = &self.log {
                log.rotate(state.log_number);
            }
        }
        parcels
    }

    async fn upload_one(&self, parcel: &Parcel) -> bool {
        let Some(built) = build(&parcel.entries) else { return true };
        let object = {
            let mut state = self.state.lock();
            state.next_object += 1;
            let Incarnation { node, epoch, nonce } = &self.incarnation;
            let label = holder_label(node, *epoch, nonce);
            hint_object(&parcel.home, &label, state.next_object)
        };
        let bytes = built.bytes.len() as u64;
        if let Err(error) = self.bucket.put(&object, built.bytes).await {
            tracing::warn!(%error, %object, "can't put hints into the bucket; trying again");
            self.give_up_waiting(parcel);
            return false;
        }
        let stored = Stored { object: object.clone(), bytes, keys: built.records };
        let waiting = {
            let mut state = self.state.lock();
            let target = state.targets.get_mut(&parcel.home);
            let mut tables = target.into_iter().flat_map(|target| &mut target.tables);
            let table = tables.find(|table| Arc::ptr_eq(&table.entries, &parcel.entries));
            table.map(|table| {
                table.stored.push(stored);
                std::mem::take(&mut table.waiting)
            })
        };
        match waiting {
            Some(waiting) => waiting.into_iter().for_each(|flushed| flushed(Durability::Bucket)),
            // Taken meanwhile: the home has all of it in the bucket. One that is no member any more would never take
            // this object.
            None => {
                if let Err(error) = self.bucket.delete(&object).await {
                    tracing::warn!(%error, %object, "can't delete hints that were taken while they were put");
                }
            }
        }
        true
    }

    /// Tells who waits for these hints to be in the bucket that they are not, for now.
    fn give_up_waiting(&self, parcel: &Parcel) {
        let waiting = {
            let mut state = self.state.lock();
            let tables = state.targets.get_mut(&parcel.home).map(|target| &mut target.tables);
            let mut tables = tables.into_iter().flatten();
            let table = tables.find(|table| Arc::ptr_eq(&table.entries, &parcel.entries));
            table.map(|table| std::mem::take(&mut table.waiting)).unwrap_or_default()
        };
        waiting.into_iter().for_each(|flushed| flushed(Durability::Memory));
    }

    /// Joins tables that are in the bucket, so that a long absence leaves few of them.
    fn join(&self) {
        let mut state = self.state.lock();
        for target in state.targets.values_mut() {
            let mut at = 1;
            while at < target.tables.len() {
                let (older, newer) = (&target.tables[at - 1], &target.tables[at]);
                let alike = older.is_stored() && newer.is_stored() && older.generation == newer.generation;
                let shared = Arc::strong_count(&older.entries) > 1;
                if !alike || shared || older.entries.bytes() > MAX_JOINED {
                    at += 1;
                    continue;
                }
                let newer = target.tables.remove(at);
                let older = &mut target.tables[at - 1];
                older.stored.extend(newer.stored);
                if let Some(entries) = Arc::get_mut(&mut older.entries) {
                    for (key, entry) in newer.entries.iter() {
                        if let Ok(record) = Record::decode(&entry.record) {
                            merge(entries, key.clone(), &record);
                        }
                    }
                }
            }
        }
        state.count();
    }

    /// Deletes the files of the log that hold no hint that is in memory alone.
    pub(super) async fn forget_logs(&self) {
        let Some(disk) = &self.disk else { return };
        let needed = {
            let state = self.state.lock();
            let tables = state.targets.values().flat_map(|target| &target.tables);
            let unstored = tables.filter(|table| !table.is_stored()).map(|table| table.log_number);
            unstored.min().unwrap_or(state.log_number)
        };
        log::forget(&**disk, log::HINTS, needed.saturating_sub(1)).await;
        if let Some(log) = &self.log {
            log.forgot(needed.saturating_sub(1));
        }
    }

    fn holds_too_much(&self) -> bool {
        stored_in_memory(&self.state.lock()) > self.config.memory_bytes
    }

    /// Lets the oldest hints that are in the bucket go from memory, where there are too many. They were all minted
    /// before the epoch was renewed, so that no dot of the present one goes with them: what can be read of them is
    /// the home's to delete at any time.
    fn evict(&self) {
        let mut state = self.state.lock();
        let mut bytes = stored_in_memory(&state);
        for target in state.targets.values_mut() {
            while bytes > self.config.memory_bytes && target.tables.first().is_some_and(Table::is_stored) {
                let table = target.tables.remove(0);
                bytes -= table.entries.bytes();
                target.only_stored.extend(table.stored.into_iter().map(|stored| (table.generation, stored)));
            }
        }
    }
}

/// Bytes of hints in memory that are in the bucket too.
fn stored_in_memory(state: &State) -> usize {
    let tables = state.targets.values().flat_map(|target| &target.tables);
    tables.filter(|table| table.is_stored()).map(|table| table.entries.bytes()).sum()
}
