//! What is known of earlier comparisons: when each partition was last compared with each other home, and what differed.
//! It lies in the bucket, so that a restart does not forget it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use cartwheel_bucket::{Bucket, BucketError};
use cartwheel_core::names::NodeId;

use super::exchange::Exchanged;

/// The last comparison of a partition with one other home.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compared {
    /// When it ended, milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Keys that differed then.
    pub(crate) differing: u64,
    /// Records that went one way or the other, since ever.
    pub(crate) repaired: u64,
}

/// All comparisons of this node: by the other home, by partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Book(BTreeMap<NodeId, BTreeMap<u32, Compared>>);

/// Figures of a book, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct BookFigures {
    /// Pairs of a partition and another home that were compared.
    pub(crate) compared: usize,
    /// When the one was that was compared the longest ago, milliseconds since 1970; 0 if there is none.
    pub(crate) oldest_ms: u64,
    /// Keys that differed when each was compared last.
    pub(crate) differing: u64,
    /// Records that went one way or the other, since ever.
    pub(crate) repaired: u64,
}

impl Book {
    /// The object that holds the book of `node`.
    pub(crate) fn object(node: &NodeId) -> String {
        format!("nodes/{node}/repair.json")
    }

    /// Reads a node's book; an empty one if there is none, or none that can be read.
    ///
    /// # Errors
    /// Those of the bucket.
    pub(crate) async fn read(bucket: &dyn Bucket, node: &NodeId) -> Result<Self, BucketError> {
        match bucket.get(&Self::object(node)).await {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "the book of comparisons can't be read; beginning a new one");
                Self::default()
            })),
            Err(BucketError::NotFound { .. }) => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the bucket.
    pub(crate) async fn write(&self, bucket: &dyn Bucket, node: &NodeId) -> Result<(), BucketError> {
        let mut json = serde_json::to_vec(self).unwrap_or_default();
        json.push(b'\n');
        bucket.put(&Self::object(node), json.into()).await
    }

    /// Notes a comparison.
    pub(crate) fn note(&mut self, peer: &NodeId, partition: u32, at_ms: u64, done: Exchanged) {
        let entry = self.0.entry(peer.clone()).or_default().entry(partition).or_default();
        entry.at_ms = at_ms;
        entry.differing = done.differing;
        entry.repaired = entry.repaired.saturating_add(done.pulled + done.pushed);
    }

    /// Forgets pairs that are no more.
    pub(crate) fn retain(&mut self, is_pair: impl Fn(&NodeId, u32) -> bool) {
        for (peer, partitions) in &mut self.0 {
            partitions.retain(|partition, _| is_pair(peer, *partition));
        }
        self.0.retain(|_, partitions| !partitions.is_empty());
    }

    /// Figures for people.
    pub(crate) fn figures(&self) -> BookFigures {
        let mut figures = BookFigures::default();
        for compared in self.0.values().flat_map(BTreeMap::values) {
            figures.compared += 1;
            figures.oldest_ms = match figures.oldest_ms {
                0 => compared.at_ms,
                oldest => oldest.min(compared.at_ms),
            };
            figures.differing += compared.differing;
            figures.repaired += compared.repaired;
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cartwheel_bucket::MemoryBucket;

    use super::*;

    #[tokio::test]
    async fn a_book_survives_its_process() {
        let (bucket, me, peer) = (MemoryBucket::new(), NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        assert_eq!(Book::read(&bucket, &me).await.unwrap(), Book::default());
        let mut book = Book::default();
        book.note(&peer, 7, 1000, Exchanged { differing: 3, pulled: 2, pushed: 1, bytes: 0 });
        book.note(&peer, 8, 3000, Exchanged::default());
        book.note(&peer, 7, 2000, Exchanged { differing: 1, pulled: 0, pushed: 1, bytes: 0 });
        book.write(&bucket, &me).await.unwrap();
        let mut read = Book::read(&bucket, &me).await.unwrap();
        assert_eq!(read, book);
        let figures = BookFigures { compared: 2, oldest_ms: 2000, differing: 1, repaired: 4 };
        assert_eq!(read.figures(), figures);
        read.retain(|_, partition| partition == 8);
        assert_eq!(read.figures().compared, 1);
        bucket.put(&Book::object(&me), "{".into()).await.unwrap();
        assert_eq!(Book::read(&bucket, &me).await.unwrap(), Book::default());
    }
}
