//! What a storage node finds when it starts: segments in the bucket, log files on its disk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_bucket::{Listed, SharedBucket, list_all};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::manifest::{Manifest, Quarantined, SegmentEntry};
use cartwheel_core::record::Record;

use crate::disk::Disk;
use crate::epoch::Incarnation;
use crate::ledger::StoreTime;
use crate::log::{self, RECORDS, file_number};
use crate::manifests::{self, ManifestsError};

/// A segment of an earlier process.
#[derive(Debug)]
pub(crate) struct FoundSegment {
    pub(crate) object: String,
    pub(crate) bytes: u64,
    /// What the manifest says of it; `None` if it was put after that.
    pub(crate) entry: Option<SegmentEntry>,
    /// When its newest record was put, if that is known.
    pub(crate) born: Option<Instant>,
}

/// What earlier processes of a node left in the bucket.
#[derive(Debug)]
pub(crate) struct FoundSegments {
    /// Oldest first.
    pub(crate) segments: Vec<FoundSegment>,
    /// Graves that the manifest does not name, where it is not the newest there was.
    pub(crate) more_graves: Vec<Listed>,
    /// The manifest, which is this process's now.
    pub(crate) manifest: Manifest,
    /// What time it was, by the store's clock.
    pub(crate) store_time: StoreTime,
}

/// Claims the node's manifest and looks for the segments of all its incarnations: those that the manifest names, and
/// those that were flushed after it. What it drops, or has quarantined, is not taken up again.
///
/// Where a newer manifest was damaged, what it named is not known: then all that is there and was not dropped is taken up.
/// It is merged with what it was merged into before, and what one that was left over says is true as well.
///
/// # Errors
/// [`ManifestsError`].
pub(crate) async fn find_segments(
    bucket: &SharedBucket,
    seams: &Seams,
    me: &Incarnation,
) -> Result<FoundSegments, ManifestsError> {
    let node = &me.node;
    let manifest = manifests::claim(&**bucket, seams, me).await?;
    // By the store's clock, which the objects' times are of: the lease of this process was just written.
    let leases = list_all(&**bucket, &format!("nodes/{node}/epochs/")).await?;
    let (now, now_ms) = (Instant::now(), leases.iter().map(|lease| lease.modified_ms).max().unwrap_or(0));
    let born = |modified_ms: u64| now.checked_sub(Duration::from_millis(now_ms.saturating_sub(modified_ms)));
    let objects = list_all(&**bucket, &format!("nodes/{node}/f/")).await?;
    let is_unclear = |q: &Quarantined| !q.lost.is_empty() && manifests::is_manifest(node, &q.object);
    let (mut compacted, mut more_graves) = (Vec::new(), Vec::new());
    if manifest.quarantined.iter().any(is_unclear) {
        compacted = list_all(&**bucket, &format!("nodes/{node}/c/")).await?;
        more_graves = list_all(&**bucket, &format!("nodes/{node}/g/")).await?;
    }
    let mut named: BTreeSet<&str> = manifest.dropped.iter().map(|dropped| dropped.object.as_str()).collect();
    named.extend(manifest.quarantined.iter().map(|quarantined| quarantined.object.as_str()));
    named.extend(manifest.graves.iter().map(|grave| grave.object.as_str()));
    let mut segments = Vec::new();
    for entry in &manifest.segments {
        let listed = objects.binary_search_by(|object| object.key.cmp(&entry.object)).ok();
        let born_ms =
            if entry.born_ms > 0 { Some(entry.born_ms) } else { listed.map(|at| objects[at].modified_ms) };
        segments.push(FoundSegment {
            object: entry.object.clone(),
            bytes: entry.bytes,
            born: born_ms.and_then(born),
            entry: Some(entry.clone()),
        });
        named.insert(&entry.object);
    }
    // A flush is durable once its PUT returned; the manifest may not have heard of it.
    let unknown = |object: &Listed| !named.contains(object.key.as_str()) && !manifest.has_taken(&object.key);
    more_graves.retain(unknown);
    for object in compacted.into_iter().chain(objects).filter(unknown) {
        let born = born(object.modified_ms);
        segments.push(FoundSegment { object: object.key, bytes: object.size, entry: None, born });
    }
    Ok(FoundSegments { segments, more_graves, manifest, store_time: StoreTime { ms: now_ms, at: now } })
}

/// What the log files hold.
#[derive(Debug, Default)]
pub(crate) struct FoundLogs {
    /// Their records, oldest first.
    pub(crate) records: Vec<(Record, Bytes)>,
    /// The number of the newest file; 0 if there is none.
    pub(crate) newest: u64,
    /// Bytes of all files.
    pub(crate) bytes: usize,
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
        let file = disk.read(name).await?;
        found.bytes += file.len();
        let replayed = log::replay(&file);
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

#[cfg(test)]
mod tests;
