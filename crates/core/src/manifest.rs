//! The manifest: which segments a storage node holds. An index for people and for a fast start; a flush is
//! durable when its own PUT returned, so what no manifest names yet is found by listing.
//!
//! An object of the node is in one of three states: *named* (it is read), *dropped* (its content is in others; it
//! waits to be deleted, and is never read or taken up again), or in no manifest (it was flushed lately, or by a
//! process that was thought dead: it is taken up).
//!
//! A manifest may name segments of other nodes as well, restricted to ranges of hashes: they are *borrowed*. Only their
//! owner, whose name theirs begins with, ever drops or deletes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::hash::{KeyHash, checksum};
use crate::names::NodeId;
use crate::ranges::{self, HashRange};
use crate::segment::BuiltSegment;

/// The format written.
pub const MANIFEST_FORMAT: u32 = 1;

/// `nodes/{id}/manifest/{version:010}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format of this document.
    pub format: u32,
    /// Its version; each exists once.
    pub version: u64,
    /// Whose it is.
    pub node: NodeId,
    /// The epoch of the process that wrote it.
    pub epoch: u32,
    /// Makes this attempt unlike any other (put-id).
    pub put_id: String,
    /// When it was written, milliseconds since 1970, by the writer's clock.
    pub written_ms: u64,
    /// The segments, oldest first.
    pub segments: Vec<SegmentEntry>,
    /// Segments of deletions that every home has forgotten otherwise: looked at before a key is believed new.
    pub graves: Vec<SegmentEntry>,
    /// Objects that are needed no longer and wait to be deleted.
    pub dropped: Vec<Dropped>,
    /// The highest number of a flush that was ever named here, by incarnation (`{epoch:010}-{nonce}`). One up to there
    /// that no manifest names has been merged and deleted, and came back: a PUT that was repeated, or late.
    pub taken: BTreeMap<String, u64>,
    /// All that the node had acknowledged before this time is in its segments: milliseconds since 1970 by the store's
    /// clock; 0 if that is not known.
    pub held_ms: u64,
    /// The process that wrote it has ended, and everything that the node had acknowledged is in these segments. The next
    /// process to claim it makes that false again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Objects that are damaged or gone: never read or taken up again, and kept for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<Quarantined>,
    /// Checksum of the document with this field empty, 16 hex digits.
    pub checksum: String,
}

/// One segment of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentEntry {
    /// The object's name.
    pub object: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// Where filter, index and footer begin.
    pub tail_offset: u64,
    /// How many records it holds.
    pub records: u64,
    /// The hash of its first record.
    pub first: KeyHash,
    /// The hash of its last record.
    pub last: KeyHash,
    /// The run that it is part of: segments of one run have no hash in common. A run is named by the first of the
    /// numbers that its process gave it, with the process's label.
    pub run: String,
    /// When the newest of its records was put into the bucket, milliseconds since 1970 by the store's clock; 0 if
    /// that is when the object was.
    pub born_ms: u64,
    /// The hashes that count, where the object is another node's: joined, at most one range for each partition. Empty:
    /// all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<HashRange>,
}

/// An object that waits to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// The object's name.
    pub object: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// When the manifest that dropped it was put, milliseconds since 1970 by the store's clock; `None` until a later
    /// manifest knows.
    pub since_ms: Option<u64>,
}

/// An object that can't be relied on any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantined {
    /// The object's name; empty where versions are missing and no object is known to be to blame.
    pub object: String,
    /// Its size, bytes, as far as that is known.
    pub bytes: u64,
    /// The hashes of which it may have held something, while the other homes have not been asked for that: joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<HashRange>,
}

impl SegmentEntry {
    /// A segment that was just built, to be put as `object`: a run of its own.
    #[must_use]
    pub fn of(object: String, built: &BuiltSegment) -> Self {
        Self {
            bytes: built.bytes.len() as u64,
            tail_offset: built.tail_offset,
            records: built.records,
            first: built.first,
            last: built.last,
            run: object.clone(),
            object,
            born_ms: 0,
            only: Vec::new(),
        }
    }

    /// The node that made the object: the only one that may ever delete it. `None` if that is no segment of a node.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        owner_of_object(&self.object)
    }

    /// May it hold this hash, and does that count?
    #[must_use]
    pub fn covers(&self, hash: KeyHash) -> bool {
        (self.first..=self.last).contains(&hash)
            && (self.only.is_empty() || ranges::contains(&self.only, hash))
    }

    /// The hashes that count, joined: never none.
    #[must_use]
    pub fn ranges(&self) -> Vec<HashRange> {
        if self.only.is_empty() {
            vec![HashRange { first: self.first, last: self.last }]
        } else {
            self.only.clone()
        }
    }

    /// What is left of it within `wanted`, which is joined; `None` if that is nothing.
    #[must_use]
    pub fn restricted_to(&self, wanted: &[HashRange]) -> Option<Self> {
        let only = ranges::common(&self.ranges(), wanted);
        (!only.is_empty()).then(|| Self { only, ..self.clone() })
    }
}

/// The node that an object under `nodes/{id}/` belongs to.
#[must_use]
pub fn owner_of_object(object: &str) -> Option<&str> {
    object.strip_prefix("nodes/")?.split_once('/').map(|(owner, _)| owner)
}

/// The incarnation and the number that the name of a flush tells: `nodes/{id}/f/{epoch:010}-{nonce}/{n:010}.seg`.
#[must_use]
pub fn flush_of_object(object: &str) -> Option<(&str, u64)> {
    let mut parts = object.strip_prefix("nodes/")?.split('/').skip(1);
    let (kind, label, file) = (parts.next()?, parts.next()?, parts.next()?);
    let n = file.strip_suffix(".seg")?.parse().ok()?;
    (kind == "f" && parts.next().is_none()).then_some((label, n))
}

/// Why a manifest could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON it should be.
    #[error("manifest is not readable: {0}")]
    Json(String),
    /// Of a format this build does not know.
    #[error("manifest has format {0}; this build reads {MANIFEST_FORMAT}")]
    Format(u32),
    /// Damaged.
    #[error("manifest checksum does not match")]
    Checksum,
    /// The ranges of an entry are not in order.
    #[error("manifest entry of {0}: field only: its ranges are not ascending, apart and within the segment")]
    Ranges(String),
    /// The ranges of what is quarantined are not in order.
    #[error("manifest entry of {0}: field lost: its ranges are not ascending and apart")]
    Lost(String),
}

impl Manifest {
    /// A manifest that names nothing yet.
    #[must_use]
    pub fn new(node: NodeId, version: u64, epoch: u32, put_id: String, written_ms: u64) -> Self {
        Self {
            format: MANIFEST_FORMAT,
            version,
            node,
            epoch,
            put_id,
            written_ms,
            segments: Vec::new(),
            graves: Vec::new(),
            dropped: Vec::new(),
            taken: BTreeMap::new(),
            held_ms: 0,
            ended: false,
            quarantined: Vec::new(),
            checksum: String::new(),
        }
    }

    /// Was this flush taken up before? It is not to be taken up again.
    #[must_use]
    pub fn has_taken(&self, object: &str) -> bool {
        flush_of_object(object)
            .is_some_and(|(label, n)| self.taken.get(label).is_some_and(|taken| n <= *taken))
    }

    /// Is this object never to be read again?
    #[must_use]
    pub fn has_quarantined(&self, object: &str) -> bool {
        self.quarantined.iter().any(|quarantined| quarantined.object == object)
    }

    /// The hashes of which the node may lack something that it had acknowledged, joined.
    #[must_use]
    pub fn lost(&self) -> Vec<HashRange> {
        ranges::join(self.quarantined.iter().flat_map(|quarantined| quarantined.lost.iter().copied()))
    }

    /// The object that holds `version` of `node`'s manifest.
    #[must_use]
    pub fn object_name(node: &NodeId, version: u64) -> String {
        format!("{}{version:010}.json", Self::prefix(node))
    }

    /// What all of `node`'s manifests start with.
    #[must_use]
    pub fn prefix(node: &NodeId) -> String {
        format!("nodes/{node}/manifest/")
    }

    /// The version that an object's name tells.
    #[must_use]
    pub fn version_of_object(name: &str) -> Option<u64> {
        name.rsplit_once('/')?.1.strip_suffix(".json")?.parse().ok()
    }

    /// The document, checksum included.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut sealed = self.clone();
        sealed.checksum = self.sum();
        let mut text = serde_json::to_vec_pretty(&sealed).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| ManifestError::Json(e.to_string()))?;
        if manifest.format != MANIFEST_FORMAT {
            return Err(ManifestError::Format(manifest.format));
        }
        if manifest.checksum != manifest.sum() {
            return Err(ManifestError::Checksum);
        }
        // Whoever looks a hash up in them relies on it.
        let in_order = |e: &&SegmentEntry| {
            let within = e.only.iter().all(|r| e.first <= r.first && r.last <= e.last);
            within && ranges::is_joined(&e.only)
        };
        if let Some(entry) = manifest.segments.iter().chain(&manifest.graves).find(|entry| !in_order(entry)) {
            return Err(ManifestError::Ranges(entry.object.clone()));
        }
        match manifest.quarantined.iter().find(|quarantined| !ranges::is_joined(&quarantined.lost)) {
            Some(quarantined) => Err(ManifestError::Lost(quarantined.object.clone())),
            None => Ok(manifest),
        }
    }

    fn sum(&self) -> String {
        let mut bare = self.clone();
        bare.checksum = String::new();
        format!("{:016x}", checksum(&serde_json::to_vec(&bare).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A segment of node-b of which the second and the last quarter are borrowed.
    fn borrowed() -> SegmentEntry {
        let range = |partition| HashRange::of_partition(partition, 4);
        SegmentEntry {
            object: "nodes/node-b/c/0000000004-beef-000001/0000000001.seg".into(),
            born_ms: 1_699_999_997_000,
            first: KeyHash(0),
            only: vec![range(1), range(3)],
            ..manifest().segments.remove(0)
        }
    }

    fn manifest() -> Manifest {
        let node = NodeId::new("node-a").unwrap();
        Manifest {
            segments: vec![SegmentEntry {
                object: "nodes/node-a/f/0000000002-cafe/0000000001.seg".into(),
                bytes: 1000,
                tail_offset: 900,
                records: 3,
                first: KeyHash(1),
                last: KeyHash(u128::MAX),
                run: "0000000002-cafe/0000000001".into(),
                born_ms: 0,
                only: Vec::new(),
            }],
            dropped: vec![Dropped {
                object: "nodes/node-a/f/0000000001-beef/0000000007.seg".into(),
                bytes: 10,
                since_ms: Some(1_699_999_999_000),
            }],
            taken: [("0000000001-beef".to_owned(), 7)].into(),
            held_ms: 1_699_999_998_000,
            ..Manifest::new(node, 3, 2, "cafe".into(), 1_700_000_000_000)
        }
    }

    /// One that the other homes have been asked about, and one that they have not.
    fn quarantined() -> Vec<Quarantined> {
        let of = |n: u32, lost| Quarantined {
            object: format!("nodes/node-a/f/0000000001-beef/{n:010}.seg"),
            bytes: 10,
            lost,
        };
        vec![of(5, Vec::new()), of(6, vec![HashRange::of_partition(1, 4), HashRange::of_partition(3, 4)])]
    }

    #[test]
    fn what_is_lost_is_of_all_that_is_quarantined() {
        let mut manifest = manifest();
        assert!(manifest.lost().is_empty());
        manifest.quarantined = quarantined();
        assert_eq!(manifest.lost(), quarantined()[1].lost);
        manifest.quarantined[0].lost = vec![HashRange::of_partition(2, 4)];
        let joined = HashRange {
            first: HashRange::of_partition(1, 4).first,
            last: HashRange::of_partition(3, 4).last,
        };
        assert_eq!(manifest.lost(), [joined]);
        assert!(manifest.has_quarantined(&quarantined()[1].object));
        assert!(!manifest.has_quarantined("nodes/node-a/f/0000000001-beef/0000000007.seg"));
        manifest.quarantined[1].lost.reverse();
        let object = quarantined()[1].object.clone();
        assert_eq!(Manifest::parse(&manifest.to_json()), Err(ManifestError::Lost(object)));
    }

    #[test]
    fn golden_file() {
        let mut manifest = manifest();
        manifest.segments.push(borrowed());
        manifest.ended = true;
        manifest.quarantined = quarantined();
        let golden = crate::golden::check("manifest-v1.json", &manifest.to_json());
        let parsed = Manifest::parse(&golden).unwrap();
        assert_eq!((parsed.segments, parsed.ended), (manifest.segments, true));
        assert_eq!(parsed.quarantined, manifest.quarantined);
    }

    #[test]
    fn what_is_the_case_of_most_takes_no_room() {
        let text = String::from_utf8(manifest().to_json()).unwrap();
        assert!(!text.contains("only") && !text.contains("ended") && !text.contains("quar"), "{text}");
        assert!(!Manifest::parse(text.as_bytes()).unwrap().ended);
    }

    #[test]
    fn a_borrowed_segment_counts_within_its_ranges() {
        let (own, entry) = (manifest().segments.remove(0), borrowed());
        assert_eq!((own.owner(), entry.owner()), (Some("node-a"), Some("node-b")));
        assert_eq!(owner_of_object("hints/a/b/1.seg"), None);
        let quarter = |n: u128| KeyHash(n * (u128::MAX / 4) + 99);
        assert_eq!([0, 1, 2, 3].map(|n| entry.covers(quarter(n))), [false, true, false, true]);
        assert!([0, 1, 2, 3].iter().all(|n| own.covers(quarter(*n))));
        assert!(!own.covers(KeyHash(0)), "before its first record");
        let half = [HashRange::of_partition(0, 2)];
        let part = entry.restricted_to(&half).unwrap();
        assert_eq!(part.only, [HashRange::of_partition(1, 4)]);
        assert_eq!(part.restricted_to(&[HashRange::of_partition(1, 2)]), None, "nothing is not all");
        let whole = own.restricted_to(&[HashRange::ALL]).unwrap();
        assert_eq!(whole.only, own.ranges());
    }

    #[test]
    fn ranges_that_are_not_in_order_are_refused() {
        let all = borrowed().only;
        let outside = HashRange { first: KeyHash(0), last: KeyHash(5) };
        for (first, only) in [(1, vec![outside]), (0, vec![all[1], all[0]]), (0, vec![all[0], all[0]])] {
            let entry = SegmentEntry { first: KeyHash(first), only, ..borrowed() };
            let bad = Manifest { graves: vec![entry.clone()], ..manifest() };
            assert_eq!(Manifest::parse(&bad.to_json()), Err(ManifestError::Ranges(entry.object)));
        }
    }

    #[test]
    fn damage_and_newer_formats_are_named() {
        let text = String::from_utf8(manifest().to_json()).unwrap();
        let parse = |text: &str| Manifest::parse(text.as_bytes());
        assert_eq!(parse(&text.replace("1000", "1001")), Err(ManifestError::Checksum));
        assert_eq!(parse(&text.replace("\"format\": 1", "\"format\": 9")), Err(ManifestError::Format(9)));
        assert!(matches!(parse(&text[..50]), Err(ManifestError::Json(_))));
    }

    #[test]
    fn a_flush_is_taken_up_once() {
        let flush = |label: &str, n: u64| format!("nodes/node-a/f/{label}/{n:010}.seg");
        assert!(manifest().has_taken(&flush("0000000001-beef", 7)));
        assert!(!manifest().has_taken(&flush("0000000001-beef", 8)));
        assert!(!manifest().has_taken(&flush("0000000002-cafe", 1)));
        for other in
            ["nodes/node-a/c/0000000001-beef/0000000001.seg", "hints/a/f/x/1.seg", "nodes/a/f/x/y.seg"]
        {
            assert!(!manifest().has_taken(other) && flush_of_object(other).is_none());
        }
    }

    #[test]
    fn names_sort_by_version() {
        let node = NodeId::new("node-a").unwrap();
        let name = Manifest::object_name(&node, 12);
        assert_eq!(name, "nodes/node-a/manifest/0000000012.json");
        assert_eq!(Manifest::version_of_object(&name), Some(12));
    }
}
