//! Snapshots of a node's Merkle tree in the bucket, and what was flushed after them.
//!
//! `nodes/{id}/merkle/{epoch:010}-{nonce}/{n:010}.tree` is the tree as it was when the n-th flush of that incarnation
//! was closed. Each flush after it says what it changes, so snapshot and flushes together are the tree of all that the
//! node has in the bucket.

use bytes::{BufMut, Bytes, BytesMut};

use cartwheel_bucket::{Bucket, BucketError, Listed, SharedBucket, list_all};
use cartwheel_core::codec::{DecodeError, Reader};
use cartwheel_core::hash::checksum;
use cartwheel_core::merkle::Tree;
use cartwheel_core::names::NodeId;
use cartwheel_core::segment::decode_leaf_deltas;

use crate::manifests::{ManifestReadError, newest};
use crate::{SegmentError, Segments};

const MAGIC: &[u8; 8] = b"CWMERKL1";

/// What all snapshots of a node start with.
#[must_use]
pub fn tree_prefix(node: &NodeId) -> String {
    format!("nodes/{node}/merkle/")
}

/// The object of the snapshot that was taken with the n-th flush of the incarnation of this label.
#[must_use]
pub fn tree_object(node: &NodeId, label: &str, n: u64) -> String {
    format!("{}{label}/{n:010}.tree", tree_prefix(node))
}

/// The incarnation and the number of the flush that the name of a snapshot tells.
#[must_use]
pub fn flush_of_tree(node: &NodeId, object: &str) -> Option<(String, u64)> {
    let (label, file) = object.strip_prefix(&tree_prefix(node))?.split_once('/')?;
    Some((label.to_owned(), file.strip_suffix(".tree")?.parse().ok()?))
}

/// A snapshot's bytes: magic, leaves, u64 checksum.
#[must_use]
pub fn encode_tree(tree: &Tree) -> Bytes {
    let mut out = BytesMut::with_capacity(MAGIC.len() + Tree::BYTES + 8);
    out.put_slice(MAGIC);
    tree.encode(&mut out);
    let sum = checksum(&out);
    out.put_u64_le(sum);
    out.freeze()
}

/// Reads what [`encode_tree`] wrote.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_tree(bytes: &Bytes) -> Result<Tree, DecodeError> {
    let body = bytes.len().checked_sub(8).ok_or(DecodeError::Truncated("tree"))?;
    if checksum(&bytes[..body]) != Reader::new(bytes.slice(body..)).u64("tree")? {
        return Err(DecodeError::Checksum("tree"));
    }
    let mut reader = Reader::new(bytes.slice(..body));
    if reader.take(MAGIC.len(), "tree")? != MAGIC[..] {
        return Err(DecodeError::Malformed("tree"));
    }
    let tree = Tree::decode(&mut reader)?;
    reader.end("tree")?;
    Ok(tree)
}

/// The tree of what a node has in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketTree {
    /// The tree.
    pub tree: Tree,
    /// How many flushes it was brought up to date with.
    pub flushes: usize,
}

/// The tree of all that a node has put into the bucket; `None` if that can't be told, because there is no snapshot or a
/// flush after it does not say what it changes, or is gone. The node may flush more meanwhile, if it lives.
///
/// # Errors
/// Those of the bucket; damage of what was read.
pub async fn bucket_tree(bucket: &SharedBucket, node: &NodeId) -> Result<Option<BucketTree>, SegmentError> {
    let snapshots = list_all(&**bucket, &tree_prefix(node)).await?;
    let told =
        |listed: &Listed| Some((listed.modified_ms, flush_of_tree(node, &listed.key)?, listed.key.clone()));
    let Some((taken_ms, (label, mut n), object)) = snapshots.iter().filter_map(told).max() else {
        return Ok(None);
    };
    let damaged = |object: &str, error| SegmentError::Damaged { object: object.to_owned(), error };
    let mut tree = decode_tree(&bucket.get(&object).await?).map_err(|e| damaged(&object, e))?;
    let flush_prefix = format!("nodes/{node}/f/");
    let incarnation = format!("{flush_prefix}{label}/");
    let mut flushes = 0;
    let segments = Segments::new(SharedBucket::clone(bucket), 0);
    for flush in list_all(&**bucket, &flush_prefix).await? {
        let number =
            flush.key.strip_prefix(&incarnation).and_then(|file| file.strip_suffix(".seg")?.parse().ok());
        match number {
            Some(number) if number <= n => continue,
            Some(number) if number == n + 1 => n = number,
            // An earlier process's: in the tree.
            None if flush.modified_ms < taken_ms => continue,
            // One of a later process, or one that comes after one that is not there.
            _ => return Ok(None),
        }
        let segment = segments.open(flush.key, flush.size, None, None);
        let Some((offset, length)) = segment.meta(bucket).await?.leaf_deltas() else { return Ok(None) };
        let section = bucket.get_range(&segment.object, offset..offset + length).await?;
        tree.apply(&decode_leaf_deltas(&section).map_err(|e| segment.damaged(e))?);
        flushes += 1;
    }
    // What was flushed after that and merged since is gone, and nothing tells what it changed.
    match newest(&**bucket, node).await {
        Ok(Some(manifest)) if manifest.taken.get(&label).is_some_and(|taken| *taken > n) => Ok(None),
        Ok(_) => Ok(Some(BucketTree { tree, flushes })),
        Err(ManifestReadError::Bucket(error)) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// Deletes all snapshots of a node that `keep` replaces: those of its own process and of earlier ones. A process that
/// does not know yet that it was replaced leaves its successor's alone.
///
/// # Errors
/// Those of the bucket.
pub async fn delete_older_trees(bucket: &dyn Bucket, node: &NodeId, keep: &str) -> Result<(), BucketError> {
    for listed in list_all(bucket, &tree_prefix(node)).await? {
        if listed.key != keep && epoch_of(node, &listed.key) <= epoch_of(node, keep) {
            bucket.delete(&listed.key).await?;
        }
    }
    Ok(())
}

/// The epoch that the label of a snapshot begins with; nothing, which is less than all others, if it has none.
fn epoch_of(node: &NodeId, object: &str) -> Option<u32> {
    let (label, _) = flush_of_tree(node, object)?;
    label.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use cartwheel_bucket::MemoryBucket;
    use cartwheel_core::clock::{Actor, Clock, Dot};
    use cartwheel_core::container::Container;
    use cartwheel_core::hash::KeyHash;
    use cartwheel_core::manifest::Manifest;
    use cartwheel_core::merkle::Watched;
    use cartwheel_core::record::Brief;
    use cartwheel_core::segment::SegmentBuilder;

    use super::*;

    const LABEL: &str = "0000000002-cafe";

    fn node() -> NodeId {
        NodeId::new("a").unwrap()
    }

    /// A node that changes one leaf with each flush.
    struct Writer {
        bucket: Arc<MemoryBucket>,
        watched: Watched,
        flushes: u64,
    }

    impl Writer {
        async fn flush(&mut self, says: bool) {
            self.flushes += 1;
            let hash = KeyHash(u128::from(self.flushes) << 112);
            self.watched.change(hash, 0, self.flushes * 1000);
            let changes = self.watched.take_changes().unwrap();
            let mut builder = SegmentBuilder::new();
            let dot = Dot { actor: Actor::parse("a.2").unwrap(), n: 1 };
            let brief = Brief { deleted: false, expires_ms: 0, request: 1, size: 1 };
            builder.push(hash, b"record", &Container::delta(&Clock::new(), dot, brief));
            if says {
                builder.leaves(changes);
            }
            let object = self.object(self.flushes);
            self.bucket.put(&object, builder.finish().unwrap().bytes).await.unwrap();
        }

        fn object(&self, n: u64) -> String {
            format!("nodes/a/f/{LABEL}/{n:010}.seg")
        }

        async fn snapshot(&self) -> String {
            let object = tree_object(&node(), LABEL, self.flushes);
            self.bucket.put(&object, encode_tree(self.watched.tree())).await.unwrap();
            object
        }

        async fn read(&self) -> Option<BucketTree> {
            let bucket: SharedBucket = Arc::<MemoryBucket>::clone(&self.bucket);
            bucket_tree(&bucket, &node()).await.unwrap()
        }
    }

    fn writer() -> Writer {
        let mut watched = Watched::default();
        watched.take_changes();
        Writer { bucket: Arc::new(MemoryBucket::new()), watched, flushes: 0 }
    }

    #[tokio::test]
    async fn a_snapshot_and_the_flushes_after_it_are_the_tree() {
        let mut writer = writer();
        writer.flush(true).await;
        assert_eq!(writer.read().await, None, "no snapshot");
        let first = writer.snapshot().await;
        for _ in 0..3 {
            writer.flush(true).await;
        }
        let read = writer.read().await.unwrap();
        assert_eq!((&read.tree, read.flushes), (writer.watched.tree(), 3));
        // What came before the snapshot may have been merged and deleted.
        writer.bucket.delete(&writer.object(1)).await.unwrap();
        assert_eq!(writer.read().await, Some(read));
        let second = writer.snapshot().await;
        delete_older_trees(&*writer.bucket, &node(), &second).await.unwrap();
        assert!(matches!(writer.bucket.get(&first).await, Err(BucketError::NotFound { .. })));
        assert_eq!(writer.read().await.unwrap().flushes, 0);
    }

    #[tokio::test]
    async fn a_tree_with_a_hole_in_its_history_is_none() {
        let mut writer = writer();
        writer.flush(true).await;
        writer.snapshot().await;
        for says in [true, true, false] {
            writer.flush(says).await;
        }
        assert_eq!(writer.read().await, None, "the last flush does not say what it changes");
        writer.snapshot().await;
        assert!(writer.read().await.is_some());
        writer.flush(true).await;
        writer.flush(true).await;
        assert_eq!(writer.read().await.unwrap().flushes, 2);
        writer.bucket.delete(&writer.object(5)).await.unwrap();
        assert_eq!(writer.read().await, None, "one flush is gone");
        writer.bucket.delete(&writer.object(6)).await.unwrap();
        assert!(writer.read().await.is_some());
        let taken = |n| Manifest {
            taken: [(LABEL.to_owned(), n)].into(),
            ..Manifest::new(node(), n, 2, "x".into(), 0)
        };
        for n in [4, 6] {
            let object = Manifest::object_name(&node(), n);
            writer.bucket.put(&object, taken(n).to_json().into()).await.unwrap();
            assert_eq!(writer.read().await.is_some(), n == 4, "flush 6 was merged and deleted");
        }
        writer.bucket.delete(&Manifest::object_name(&node(), 6)).await.unwrap();
        let later = "nodes/a/f/0000000003-beef/0000000001.seg";
        let any = writer.bucket.get(&writer.object(4)).await.unwrap();
        writer.bucket.put(later, any).await.unwrap();
        assert_eq!(writer.read().await, None, "a later process has flushed");
    }

    /// It does not know yet that it was replaced.
    #[tokio::test]
    async fn an_older_process_leaves_its_successors_snapshot_alone() {
        let bucket = MemoryBucket::new();
        let of = |label: &str, n| tree_object(&node(), label, n);
        let (before, mine) = (of("0000000001-f00d", 9), of(LABEL, 3));
        let (earlier, next) = (of(LABEL, 2), of("0000000004-0bad", 1));
        for object in [&before, &earlier, &mine, &next] {
            bucket.put(object, "tree".into()).await.unwrap();
        }
        delete_older_trees(&bucket, &node(), &mine).await.unwrap();
        let left = list_all(&bucket, &tree_prefix(&node())).await.unwrap();
        let left: Vec<String> = left.into_iter().map(|listed| listed.key).collect();
        assert_eq!(left, [mine, next]);
    }

    #[test]
    fn damage_is_found() {
        let tree = encode_tree(writer().watched.tree());
        assert!(decode_tree(&tree).is_ok());
        for at in [0, 8, 100, tree.len() - 1] {
            let mut bad = tree.to_vec();
            bad[at] ^= 1;
            assert!(decode_tree(&bad.into()).is_err(), "byte {at}");
        }
        assert!(decode_tree(&tree.slice(..20)).is_err());
        assert_eq!(flush_of_tree(&node(), &tree_object(&node(), LABEL, 7)), Some((LABEL.to_owned(), 7)));
    }
}
