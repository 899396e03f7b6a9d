//! What another node has in the bucket, read without it: how a home is repaired while its peers are gone.
//!
//! Its Merkle tree in the bucket tells in which leaves the two differ, so that only those are read. Without one, all is.

use std::collections::BTreeMap;

use bytes::Bytes;

use cartwheel_bucket::{BucketError, SharedBucket};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::Manifest;
use cartwheel_core::merkle::{LEAF_BITS, MAX_DEPTH, Span, Tree};
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Record;
use cartwheel_segments::inventory::{Inventory, Kind, Object, State};
use cartwheel_segments::trees::bucket_tree;
use cartwheel_segments::{SegmentError, Segments};

use crate::copier::Copier;

/// Blocks of each segment that are read at once.
const BLOCKS: usize = 16;

/// Why a node's objects could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The bucket did not answer.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A segment, or a snapshot of the Merkle tree, can't be read.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A record that was read is refused here.
    #[error("{0}")]
    Refused(String),
}

/// What a node has in the bucket.
pub(crate) struct Image {
    segments: Segments,
    tree: Option<Tree>,
    /// The node ended cleanly: all that it acknowledged is here.
    pub(crate) is_whole: bool,
}

/// What was taken out of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Brought {
    /// Leaves that differed.
    pub(crate) leaves: u64,
    /// Records that were read.
    pub(crate) records: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Ranges that can't be read.
    pub(crate) damaged: u64,
}

impl std::ops::AddAssign for Brought {
    fn add_assign(&mut self, other: Self) {
        self.leaves += other.leaves;
        self.records += other.records;
        self.bytes += other.bytes;
        self.damaged += other.damaged;
    }
}

impl Image {
    /// Looks what `node` has in the bucket.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(crate) async fn open(bucket: &SharedBucket, node: &NodeId) -> Result<Self, ImageError> {
        // Before the segments: what is flushed in between is then read, and not believed to be known.
        let tree = match bucket_tree(bucket, node).await {
            Ok(read) => read.map(|read| read.tree),
            // Then all is read.
            Err(error) if error.damaged_object().is_some() => {
                tracing::error!(%node, %error, "its Merkle tree in the bucket can't be read");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let inventory = Inventory::read(&**bucket, node).await?;
        if let Some(error) = &inventory.unreadable {
            tracing::error!(%node, %error, "its manifest can't be read; taking whatever is there");
        }
        let segments = Segments::new(SharedBucket::clone(bucket), 0);
        // Of what no manifest tells apart, all is true that was ever written; it may have been replaced since.
        let counts = |o: &Object| (o.state.counts() || o.state == State::Unclear) && o.kind != Kind::Grave;
        for object in inventory.objects.into_iter().filter(counts) {
            segments.push(segments.open(object.name, object.bytes, object.entry, None));
        }
        for missing in &inventory.missing {
            tracing::error!(%node, object = %missing.object, "its manifest names what is not in the bucket");
        }
        let ended = |manifest: &Manifest| manifest.ended && manifest.lost().is_empty();
        let ended = inventory.manifest.is_some_and(|dated| ended(&dated.manifest));
        let is_whole = ended && inventory.missing.is_empty();
        Ok(Self { segments, tree, is_whole })
    }

    /// Takes in all that the node holds of a span above the tree's leaves and this one does not.
    ///
    /// # Errors
    /// [`ImageError`]; what was taken in until then stays.
    pub(crate) async fn bring(&self, copier: &Copier, span: Span) -> Result<Brought, ImageError> {
        let mut brought = Brought::default();
        for (first, last, leaves) in self.differing(copier, span).await {
            brought.leaves += leaves;
            self.take(copier, first, last, &mut brought).await?;
        }
        Ok(brought)
    }

    /// Where the two differ: ranges of neighbouring leaves, and how many leaves each has.
    async fn differing(&self, copier: &Copier, span: Span) -> Vec<(KeyHash, KeyHash, u64)> {
        let mut leaves = vec![span];
        while let Some(depth) = leaves.first().map(|s| LEAF_BITS.saturating_sub(s.bits())).filter(|d| *d > 0)
        {
            leaves = leaves.iter().flat_map(|span| span.parts(depth.min(MAX_DEPTH))).collect();
        }
        let ours = copier.engine.sums(&leaves, 0).await;
        let mut ranges: Vec<(KeyHash, KeyHash, u64)> = Vec::new();
        for (leaf, ours) in leaves.into_iter().zip(ours) {
            let theirs = self.tree.as_ref().and_then(|tree| tree.sum(leaf));
            // What this node does not know of yet is not compared with.
            if theirs == Some(ours) && copier.engine.index_complete() {
                continue;
            }
            match ranges.last_mut() {
                Some(range) if range.1.0.checked_add(1) == Some(leaf.first().0) => {
                    range.1 = leaf.last();
                    range.2 += 1;
                }
                _ => ranges.push((leaf.first(), leaf.last(), 1)),
            }
        }
        ranges
    }

    /// Reads a segment no more; `false` if there is none of this name.
    fn pass_over(&self, object: &str) -> bool {
        let all = self.segments.all();
        let segment = all.iter().find(|segment| segment.object == object);
        segment.is_some_and(|segment| self.segments.replace(std::slice::from_ref(segment), Vec::new()))
    }

    async fn take(
        &self,
        copier: &Copier,
        first: KeyHash,
        last: KeyHash,
        brought: &mut Brought,
    ) -> Result<(), ImageError> {
        let (mut first, mut blocks) = (first, BLOCKS);
        loop {
            let scanned = self.segments.scan(first, last, None, blocks, (None, copier.hash_seed)).await;
            let (records, bound) = match scanned {
                Ok(scanned) => scanned,
                // The rest is of use all the same.
                Err(error) => {
                    let Some(object) = error.damaged_object() else { return Err(error.into()) };
                    tracing::error!(%error, "what another node left in the bucket is damaged; passed over");
                    brought.damaged += 1;
                    if self.pass_over(object) {
                        continue;
                    }
                    return Ok(());
                }
            };
            if bound == Some(first) {
                // Many records of one hash.
                blocks = blocks.saturating_mul(2);
                continue;
            }
            let damaged = |error| SegmentError::Damaged { object: "a record".to_owned(), error };
            let mut found: BTreeMap<KeyHash, Vec<Bytes>> = BTreeMap::new();
            for record in records {
                let (namespace, key) = Record::decode_key(&record).map_err(damaged)?;
                let hash = KeyHash::of(copier.hash_seed, &namespace, &key);
                if (first..=last).contains(&hash) && bound.is_none_or(|bound| hash < bound) {
                    found.entry(hash).or_default().push(record);
                }
            }
            for record in found.into_values().flatten() {
                brought.records += 1;
                brought.bytes += record.len() as u64;
                copier.pace.turn(record.len()).await;
                copier.keep(&record, Durability::Memory).await.map_err(ImageError::Refused)?;
            }
            match bound {
                Some(bound) => first = bound,
                None => return Ok(()),
            }
        }
    }
}
