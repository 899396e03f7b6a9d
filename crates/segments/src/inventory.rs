//! What a storage node has in the bucket, object by object, and what each of them counts for.

use std::collections::BTreeMap;

use cartwheel_bucket::{Bucket, BucketError, Listed, list_all};
use cartwheel_core::manifest::{Manifest, SegmentEntry};
use cartwheel_core::names::NodeId;

use crate::manifests::{Dated, ManifestReadError, newest_dated};

/// How often a node is listed if its objects go while that is done.
const MAX_READS: usize = 4;
/// The most names that [`names_below`] collects.
const MAX_NAMES: usize = 10_000;

/// Where a segment comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A memtable that was flushed.
    Flushed,
    /// Others, merged.
    Compacted,
    /// Deletions that were reaped.
    Grave,
}

impl Kind {
    /// The folder under the node's name: `f`, `c` or `g`.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Flushed => "f",
            Self::Compacted => "c",
            Self::Grave => "g",
        }
    }

    /// The kind that an object's name tells; `None` if it is no segment of a node.
    #[must_use]
    pub fn of_object(name: &str) -> Option<Self> {
        let (_, rest) = name.strip_prefix("nodes/")?.split_once('/')?;
        let (folder, _) = rest.split_once('/')?;
        [Self::Flushed, Self::Compacted, Self::Grave].into_iter().find(|kind| kind.folder() == folder)
    }
}

/// What an object counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The newest manifest names it: it is read.
    Named,
    /// The newest manifest names it as a grave: looked at before a key is believed new.
    Grave,
    /// A flush that no manifest has heard of: it counts as held.
    Unknown,
    /// Its content is in others and it waits to be deleted: it is never read again.
    Dropped,
    /// Left by a compaction that was not finished: it counts for nothing.
    Orphan,
    /// The newest manifest can't be read, so nobody can say.
    Unclear,
    /// Damaged: it is kept for people, and never read again.
    Quarantined,
}

impl State {
    /// Does its content belong to what the node holds?
    #[must_use]
    pub fn counts(self) -> bool {
        matches!(self, Self::Named | Self::Grave | Self::Unknown)
    }

    /// One word, as people and programs see it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Grave => "grave",
            Self::Unknown => "unknown",
            Self::Dropped => "dropped",
            Self::Orphan => "orphan",
            Self::Unclear => "unclear",
            Self::Quarantined => "quarantined",
        }
    }
}

/// A segment that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// Its size as the store says, bytes.
    pub bytes: u64,
    /// When the store took it, milliseconds since 1970.
    pub modified_ms: u64,
    /// Where it comes from.
    pub kind: Kind,
    /// What it counts for.
    pub state: State,
    /// What the newest manifest says of it, if it names it.
    pub entry: Option<SegmentEntry>,
}

/// All that a node has in the bucket.
#[derive(Debug)]
pub struct Inventory {
    /// Whose.
    pub node: NodeId,
    /// The newest manifest, if there is one that can be read.
    pub manifest: Option<Dated>,
    /// Why the newest manifest can't be read, if that is so.
    pub unreadable: Option<ManifestReadError>,
    /// Its segments, by name.
    pub objects: Vec<Object>,
    /// What the manifest names and the bucket does not have.
    pub missing: Vec<SegmentEntry>,
    /// Who forbids deleting, and since when.
    pub pins: Vec<Listed>,
    /// The epochs that its processes leased.
    pub leases: Vec<Listed>,
}

impl Inventory {
    /// Lists what `node` has.
    ///
    /// # Errors
    /// Those of the bucket. A manifest that can't be read is no error: see [`Inventory::unreadable`].
    pub async fn read(bucket: &dyn Bucket, node: &NodeId) -> Result<Self, BucketError> {
        for _ in 1..MAX_READS {
            let inventory = Self::read_once(bucket, node).await?;
            // An object may go between the manifest and the list, once a newer manifest has dropped it.
            if inventory.missing.is_empty() || !inventory.is_outdated(bucket).await? {
                return Ok(inventory);
            }
        }
        Self::read_once(bucket, node).await
    }

    async fn read_once(bucket: &dyn Bucket, node: &NodeId) -> Result<Self, BucketError> {
        // The manifest first: what is named was put before.
        let (manifest, unreadable) = match newest_dated(bucket, node).await {
            Ok(manifest) => (manifest, None),
            Err(ManifestReadError::Bucket(error)) => return Err(error),
            Err(error) => (None, Some(error)),
        };
        let mut inventory = Self {
            node: node.clone(),
            manifest,
            unreadable,
            objects: Vec::new(),
            missing: Vec::new(),
            pins: Vec::new(),
            leases: Vec::new(),
        };
        let mut named = inventory.said();
        let prefix = format!("nodes/{node}/");
        for listed in list_all(bucket, &prefix).await? {
            if let Some(kind) = Kind::of_object(&listed.key) {
                let said = named.remove(&listed.key);
                inventory.objects.push(inventory.object(listed, kind, said));
            } else if listed.key[prefix.len()..].starts_with("pins/") {
                inventory.pins.push(listed);
            } else if listed.key[prefix.len()..].starts_with("epochs/") {
                inventory.leases.push(listed);
            }
        }
        // What was dropped and is gone is as it should be.
        for (name, (state, entry)) in named {
            let Some(entry) = entry else { continue };
            // A manifest may name what lies elsewhere.
            match if name.starts_with(&prefix) { None } else { find(bucket, &name).await? } {
                Some(listed) => {
                    let kind = Kind::of_object(&name).unwrap_or(Kind::Compacted);
                    inventory.objects.push(inventory.object(listed, kind, Some((state, Some(entry)))));
                }
                None => inventory.missing.push(entry),
            }
        }
        Ok(inventory)
    }

    /// Is there a newer manifest than the one that this was read by?
    ///
    /// # Errors
    /// Those of the bucket.
    pub async fn is_outdated(&self, bucket: &dyn Bucket) -> Result<bool, BucketError> {
        let newest = list_all(bucket, &Manifest::prefix(&self.node)).await?.pop();
        let newest = newest.and_then(|listed| Manifest::version_of_object(&listed.key)).unwrap_or(0);
        Ok(newest > self.manifest.as_ref().map_or(0, |dated| dated.manifest.version))
    }

    /// What the manifest says, by the objects' names.
    fn said(&self) -> BTreeMap<String, (State, Option<SegmentEntry>)> {
        let mut said = BTreeMap::new();
        let Some(Dated { manifest, .. }) = &self.manifest else { return said };
        said.extend(manifest.dropped.iter().map(|d| (d.object.clone(), (State::Dropped, None))));
        said.extend(manifest.quarantined.iter().map(|q| (q.object.clone(), (State::Quarantined, None))));
        let entry = |state, e: &SegmentEntry| (e.object.clone(), (state, Some(e.clone())));
        said.extend(manifest.graves.iter().map(|e| entry(State::Grave, e)));
        said.extend(manifest.segments.iter().map(|e| entry(State::Named, e)));
        said
    }

    fn object(&self, listed: Listed, kind: Kind, said: Option<(State, Option<SegmentEntry>)>) -> Object {
        let (state, entry) = said.unwrap_or_else(|| {
            let state = match kind {
                _ if self.unreadable.is_some() => State::Unclear,
                // One that was taken up before and came back counts no more than pieces that no manifest names.
                Kind::Flushed if !self.has_taken(&listed.key) => State::Unknown,
                Kind::Flushed | Kind::Compacted | Kind::Grave => State::Orphan,
            };
            (state, None)
        });
        Object { name: listed.key, bytes: listed.size, modified_ms: listed.modified_ms, kind, state, entry }
    }

    fn has_taken(&self, object: &str) -> bool {
        self.manifest.as_ref().is_some_and(|dated| dated.manifest.has_taken(object))
    }

    /// The newest epoch that any process of the node leased; 0 if none has.
    #[must_use]
    pub fn newest_lease(&self) -> u32 {
        let epoch = |lease: &Listed| lease.key.rsplit_once('/')?.1.strip_suffix(".json")?.parse().ok();
        self.leases.iter().filter_map(epoch).max().unwrap_or(0)
    }
}

/// One object as a list shows it; `None` if it is not there.
///
/// # Errors
/// Those of the bucket.
pub async fn find(bucket: &dyn Bucket, name: &str) -> Result<Option<Listed>, BucketError> {
    let mut page = bucket.list(name, None, 1).await?;
    Ok(page.objects.pop().filter(|listed| listed.key == name))
}

/// The names right below `prefix`, which ends in `/`, that have objects below them: one list call for each.
///
/// # Errors
/// Those of the bucket, and [`BucketError::Refused`] beyond 10,000 names.
pub async fn names_below(bucket: &dyn Bucket, prefix: &str) -> Result<Vec<String>, BucketError> {
    let mut names: Vec<String> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = bucket.list(prefix, after.as_deref(), 1).await?;
        let Some(listed) = page.objects.first() else { return Ok(names) };
        match listed.key.get(prefix.len()..).and_then(|rest| rest.split_once('/')) {
            Some((name, _)) => {
                // '0' comes right after '/': this is past all that lies below the name. An object of just that
                // name is passed over: nothing lies below it.
                after = Some(format!("{prefix}{name}0"));
                names.push(name.to_owned());
            }
            None => after = Some(listed.key.clone()),
        }
        if names.len() > MAX_NAMES {
            return Err(BucketError::Refused {
                key: prefix.to_owned(),
                status: 400,
                code: "TooManyNames".to_owned(),
                detail: format!("more than {MAX_NAMES} names"),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use cartwheel_bucket::MemoryBucket;
    use cartwheel_core::hash::KeyHash;
    use cartwheel_core::manifest::Dropped;

    use super::*;

    fn entry(object: &str) -> SegmentEntry {
        SegmentEntry {
            object: object.to_owned(),
            bytes: 3,
            tail_offset: 1,
            records: 1,
            first: KeyHash(1),
            last: KeyHash(1),
            run: object.to_owned(),
            born_ms: 0,
            only: Vec::new(),
        }
    }

    async fn put(bucket: &MemoryBucket, names: &[&str]) {
        for name in names {
            bucket.put(name, Bytes::from_static(b"abc")).await.unwrap();
        }
    }

    #[tokio::test]
    async fn every_object_has_its_state() {
        let bucket = MemoryBucket::new();
        let node = NodeId::new("a").unwrap();
        let (f, c, g) =
            ("nodes/a/f/0000000001-ab/0000000001.seg", "nodes/a/c/ef/0000000001.seg", "nodes/a/g/x/1.seg");
        let (new, old, gone) =
            ("nodes/a/f/0000000002-ab/0000000001.seg", "nodes/a/f/0/1.seg", "nodes/a/f/0/2.seg");
        put(&bucket, &[f, c, g, new, old, "nodes/a/c/half/1.seg", "nodes/a/g/half/1.seg"]).await;
        put(&bucket, &["nodes/b/f/1/1.seg", "nodes/a/pins/b-1.json", "nodes/a/epochs/0000000007.json"]).await;
        put(&bucket, &["nodes/b/c/shared/1.seg"]).await;
        let mut manifest = Manifest::new(node.clone(), 4, 1, "x".to_owned(), 5);
        manifest.segments = [f, c, "nodes/a/c/lost/1.seg", "nodes/b/c/shared/1.seg"].map(entry).to_vec();
        manifest.graves = vec![entry(g)];
        let dropped = |object: &str| Dropped { object: object.to_owned(), bytes: 3, since_ms: None };
        manifest.dropped = [old, gone].map(dropped).to_vec();
        bucket.put(&Manifest::object_name(&node, 4), manifest.to_json().into()).await.unwrap();

        let inventory = Inventory::read(&bucket, &node).await.unwrap();
        let state = |name: &str| {
            let object = inventory.objects.iter().find(|o| o.name == name).unwrap();
            (object.kind, object.state, object.entry.is_some())
        };
        assert_eq!(state(f), (Kind::Flushed, State::Named, true));
        assert_eq!(state(c), (Kind::Compacted, State::Named, true));
        assert_eq!(state(g), (Kind::Grave, State::Grave, true));
        assert_eq!(state(new), (Kind::Flushed, State::Unknown, false));
        assert_eq!(state(old), (Kind::Flushed, State::Dropped, false));
        assert_eq!(state("nodes/a/c/half/1.seg"), (Kind::Compacted, State::Orphan, false));
        assert_eq!(state("nodes/a/g/half/1.seg"), (Kind::Grave, State::Orphan, false));
        assert_eq!(state("nodes/b/c/shared/1.seg"), (Kind::Compacted, State::Named, true), "of another node");
        assert_eq!(inventory.objects.len(), 8);
        assert_eq!(inventory.missing, [entry("nodes/a/c/lost/1.seg")]);
        assert_eq!((inventory.pins.len(), inventory.newest_lease()), (1, 7));
        assert!(!inventory.is_outdated(&bucket).await.unwrap());
    }

    #[tokio::test]
    async fn under_a_damaged_manifest_nothing_is_certain() {
        let bucket = MemoryBucket::new();
        let node = NodeId::new("a").unwrap();
        put(&bucket, &["nodes/a/f/1/1.seg", "nodes/a/c/1/1.seg", &Manifest::object_name(&node, 1)]).await;
        let inventory = Inventory::read(&bucket, &node).await.unwrap();
        assert!(inventory.unreadable.is_some_and(|e| e.to_string().contains("manifest is not readable")));
        assert!(inventory.objects.iter().all(|o| o.state == State::Unclear));
        let empty = Inventory::read(&bucket, &NodeId::new("b").unwrap()).await.unwrap();
        assert!(empty.manifest.is_none() && empty.unreadable.is_none() && empty.objects.is_empty());
    }

    #[tokio::test]
    async fn names_are_found_without_listing_what_is_below() {
        let bucket = MemoryBucket::new();
        put(
            &bucket,
            &["n/a/1", "n/a/2", "n/a-b/1", "n/a0/1", "n/a0b/1", "n/b/c/d", "n/plain", "m/z/1", "o/z/1"],
        )
        .await;
        assert_eq!(names_below(&bucket, "n/").await.unwrap(), ["a-b", "a", "a0", "a0b", "b"]);
        assert!(names_below(&bucket, "none/").await.unwrap().is_empty());
    }
}
