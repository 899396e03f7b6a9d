//! Hints that lie in the bucket: finding this node's own at start, and reading those that memory does not hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use cartwheel_bucket::{BucketError, SharedBucket, list_all};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::NodeId;
use cartwheel_core::record::{Record, Version};

use super::log_entry::read_log_entry;
use crate::disk::Disk;
use crate::log::{self, file_number};
use crate::memtable::RecordKey;
use crate::segments::hints::parse_hint_object;
use crate::segments::{Segment, Segments};

/// Bytes of the block cache for hints read back.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
/// Objects of which filter and index are kept.
const MAX_OPEN: usize = 4096;

/// One object of hints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(super) object: String,
    pub(super) bytes: u64,
    /// How many records it holds; 0 if that is not known.
    pub(super) keys: u64,
}

/// Reads objects of hints.
pub(super) struct Reader {
    segments: Segments,
    open: Mutex<BTreeMap<String, Arc<Segment>>>,
}

impl Reader {
    pub(super) fn new(bucket: SharedBucket) -> Self {
        Self { segments: Segments::new(bucket, CACHE_BYTES), open: Mutex::default() }
    }

    /// What these objects know of a key. One that its home has taken and deleted meanwhile holds nothing.
    pub(super) async fn read(
        &self,
        stored: &[Stored],
        key: &RecordKey,
    ) -> Result<Container<Version>, String> {
        let mut merged = Container::default();
        for stored in stored {
            let segment = self.segment(stored);
            match self.segments.read_in(std::slice::from_ref(&segment), key, None).await {
                Ok(found) => merged.sync(found),
                Err(error) if error.is_missing() => drop(self.open.lock().remove(&stored.object)),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(merged)
    }

    fn segment(&self, stored: &Stored) -> Arc<Segment> {
        let mut open = self.open.lock();
        if let Some(segment) = open.get(&stored.object) {
            return Arc::clone(segment);
        }
        if open.len() >= MAX_OPEN {
            open.pop_first();
        }
        let segment = self.segments.open(stored.object.clone(), stored.bytes, None, None);
        open.insert(stored.object.clone(), Arc::clone(&segment));
        segment
    }
}

/// What earlier processes of this node left.
#[derive(Debug, Default)]
pub(crate) struct FoundHints {
    /// In the bucket: for whom, and which object.
    pub(super) stored: Vec<(NodeId, Stored)>,
    /// In the log: for whom, the record, and in which file.
    pub(super) replayed: Vec<(NodeId, RecordKey, Record, u64)>,
    /// The number of the newest file of the log; 0 if there is none.
    pub(super) newest: u64,
}

/// Looks for hints that earlier processes of `me` kept for others.
///
/// # Errors
/// Those of the bucket; those of the disk as a sentence.
pub(crate) async fn find(
    me: &NodeId,
    hash_seed: u64,
    disk: Option<&dyn Disk>,
    bucket: &SharedBucket,
) -> Result<FoundHints, FindError> {
    let mut found = FoundHints::default();
    for object in list_all(&**bucket, "hints/").await? {
        if let Some(name) = parse_hint_object(&object.key).filter(|name| name.holder == *me) {
            let stored = Stored { object: object.key, bytes: object.size, keys: 0 };
            found.stored.push((name.home, stored));
        }
    }
    let Some(disk) = disk else { return Ok(found) };
    let names = disk.list().await.map_err(FindError::Disk)?;
    let mut files: Vec<(u64, &String)> =
        names.iter().filter_map(|name| Some((file_number(log::HINTS, name)?, name))).collect();
    files.sort_unstable();
    for (number, name) in files {
        for entry in log::replay(&disk.read(name).await.map_err(FindError::Disk)?).records {
            match read_log_entry(&entry) {
                Some((home, record)) => {
                    let hash = KeyHash::of(hash_seed, &record.namespace, &record.key);
                    let key = RecordKey::new(hash, &record.namespace, &record.key);
                    found.replayed.push((home, key, record, number));
                }
                None => tracing::error!(file = %name, "a hint in the log is damaged; skipped"),
            }
        }
        found.newest = number;
    }
    Ok(found)
}

/// Why hints of earlier processes could not be looked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The disk did not.
    #[error(transparent)]
    Disk(std::io::Error),
}
