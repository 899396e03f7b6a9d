//! What a storage node finds when it starts: segments in the bucket, log files on its disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use cartwheel_bucket::{SharedBucket, list_all};
use cartwheel_core::names::NodeId;
use cartwheel_core::record::Record;

use crate::disk::Disk;
use crate::engine::Engine;
use crate::log::{self, file_number};
use crate::manifests::{self, ManifestsError};

/// Adds the segments of all incarnations of this node to the engine, oldest first: those that the newest
/// manifest names, and those that were flushed after it. Returns the manifest's version.
///
/// # Errors
/// [`ManifestsError`].
pub(crate) async fn find_segments(
    engine: &Engine,
    bucket: &SharedBucket,
    node: &NodeId,
) -> Result<u64, ManifestsError> {
    let manifest = manifests::newest(&**bucket, node).await?;
    let mut named = BTreeSet::new();
    for segment in manifest.iter().flat_map(|m| &m.segments) {
        let known = (segment.tail_offset, segment.records);
        engine.segments.push(segment.object.clone(), segment.bytes, Some(known));
        named.insert(segment.object.clone());
    }
    // A flush is durable once its PUT returned; the manifest may not have heard of it.
    for object in list_all(&**bucket, &format!("nodes/{node}/f/")).await? {
        if !named.contains(&object.key) {
            engine.segments.push(object.key, object.size, None);
        }
    }
    Ok(manifest.map_or(0, |m| m.version))
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
    let mut files: Vec<(u64, &String)> = names.iter().filter_map(|n| Some((file_number(n)?, n))).collect();
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
