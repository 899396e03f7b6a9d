//! What a storage node finds when it starts: segments in the bucket, log files on its disk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_bucket::{SharedBucket, list_all};
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::names::NodeId;
use cartwheel_core::record::Record;

use crate::disk::Disk;
use crate::engine::Engine;
use crate::log::{self, RECORDS, file_number};
use crate::manifests::{self, ManifestsError};

/// A segment of an earlier process: its object, its size, where its tail is and how many records it has if the
/// manifest told, and when it was put if that is known.
type FoundSegment = (String, u64, Option<SegmentEntry>, Option<Instant>);

/// What earlier processes of a node left in the bucket.
#[derive(Debug, Default)]
pub(crate) struct FoundSegments {
    /// Oldest first.
    pub(crate) segments: Vec<FoundSegment>,
    /// The newest manifest's version; 0 if there is none.
    pub(crate) manifest_version: u64,
}

/// Looks for the segments of all incarnations of this node: those that the newest manifest names, and those that
/// were flushed after it.
///
/// # Errors
/// [`ManifestsError`].
pub(crate) async fn find_segments(
    bucket: &SharedBucket,
    node: &NodeId,
) -> Result<FoundSegments, ManifestsError> {
    let mut found = FoundSegments::default();
    let manifest = manifests::newest(&**bucket, node).await?;
    // By the store's clock, which the objects' times are of: the lease of this process was just written.
    let leases = list_all(&**bucket, &format!("nodes/{node}/epochs/")).await?;
    let (now, now_ms) = (Instant::now(), leases.iter().map(|lease| lease.modified_ms).max().unwrap_or(0));
    let born = |modified_ms: u64| now.checked_sub(Duration::from_millis(now_ms.saturating_sub(modified_ms)));
    let objects = list_all(&**bucket, &format!("nodes/{node}/f/")).await?;
    let mut named = BTreeSet::new();
    for segment in manifest.iter().flat_map(|m| &m.segments) {
        let listed = objects.binary_search_by(|object| object.key.cmp(&segment.object)).ok();
        let born = listed.and_then(|at| born(objects[at].modified_ms));
        found.segments.push((segment.object.clone(), segment.bytes, Some(segment.clone()), born));
        named.insert(segment.object.clone());
    }
    // A flush is durable once its PUT returned; the manifest may not have heard of it.
    for object in objects {
        if !named.contains(&object.key) {
            let born = born(object.modified_ms);
            found.segments.push((object.key, object.size, None, born));
        }
    }
    found.manifest_version = manifest.map_or(0, |m| m.version);
    Ok(found)
}

/// What the log files hold.
#[derive(Debug, Default)]
pub(crate) struct FoundLogs {
    /// Their records, oldest first.
    pub(crate) records: Vec<(Record, Bytes)>,
    /// The number of the newest file; 0 if there is none.
    pub(crate) newest: u64,
}

/// Reads the log files. A torn end is what a crash leaves and is cut off; damage elsewhere is reported.
///
/// # Errors
/// Those of the disk.
pub(crate) async fn read_logs(disk: &Arc<dyn Disk>) -> std::io::Result<FoundLogs> {
    let mut found = FoundLogs::default();
    let names = disk.list().await?;
    let mut files: Vec<(u64, &String)> =
        names.iter().filter_map(|n| Some((file_number(RECORDS, n)?, n))).collect();
    files.sort_unstable();
    for (number, name) in files {
        let replayed = log::replay(&disk.read(name).await?);
        if replayed.torn > 0 {
            tracing::warn!(file = %name, bytes = replayed.torn, "log ends in a write that was not finished");
        }
        for bytes in replayed.records {
            // Its own memory: a slice would keep the whole file alive.
            let bytes = Bytes::copy_from_slice(&bytes);
            match Record::decode(&bytes) {
                Ok(record) => found.records.push((record, bytes)),
                Err(error) => {
                    tracing::error!(%error, file = %name, "a record of the log is damaged; skipped");
                }
            }
        }
        found.newest = number;
    }
    Ok(found)
}

/// Fills the clock index in the background, however long the bucket takes.
pub(crate) async fn load_index(engine: Arc<Engine>) {
    let segments = engine.segments.all();
    let mut pause = std::time::Duration::from_millis(100);
    while let Err(error) = engine.load_index(&segments).await {
        tracing::warn!(%error, "can't load the clock index yet; reads and writes look keys up instead");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(std::time::Duration::from_secs(10));
    }
    tracing::debug!(segments = segments.len(), "the clock index is complete");
}

#[cfg(test)]
mod tests;
