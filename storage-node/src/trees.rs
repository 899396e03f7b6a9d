//! Writing snapshots of this node's Merkle tree into the bucket.

use std::time::Duration;

use tokio::time::Instant;

use cartwheel_bucket::SharedBucket;
use cartwheel_core::merkle::{Span, Tree};
use cartwheel_segments::trees::{delete_older_trees, encode_tree, tree_object};

use crate::epoch::Incarnation;

/// How often one is taken while there is something to flush.
const EVERY: Duration = Duration::from_secs(60);

/// Takes snapshots now and then.
pub(crate) struct TreeWriter {
    bucket: SharedBucket,
    me: Incarnation,
    written: Option<Instant>,
    /// The sum of the tree written last.
    root: Option<u64>,
}

impl TreeWriter {
    /// One that has written nothing yet.
    pub(crate) fn new(bucket: SharedBucket, me: Incarnation) -> Self {
        Self { bucket, me, written: None, root: None }
    }

    /// Is it time for another?
    pub(crate) fn is_due(&self) -> bool {
        self.written.is_none_or(|at| at.elapsed() >= EVERY)
    }

    /// The sum of the tree that was written last.
    pub(crate) fn root(&self) -> Option<u64> {
        self.root
    }

    /// Writes the tree as it was when the n-th flush was closed, and deletes all others. Nothing depends on that:
    /// what fails is done by the next one.
    pub(crate) async fn put(&mut self, tree: &Tree, n: u64) {
        let label = format!("{:010}-{}", self.me.epoch, self.me.nonce);
        let object = tree_object(&self.me.node, &label, n);
        if let Err(error) = self.bucket.put(&object, encode_tree(tree)).await {
            tracing::warn!(%error, %object, "can't write a snapshot of the Merkle tree");
            return;
        }
        self.written = Some(Instant::now());
        self.root = tree.sum(Span::of_partition(0, 1));
        if let Err(error) = delete_older_trees(&*self.bucket, &self.me.node, &object).await {
            tracing::debug!(%error, "can't delete older snapshots of the Merkle tree");
        }
    }
}
