//! Reading a segment from one end to the other, outside the caches: what merges and checks need.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use cartwheel_bucket::SharedBucket;
use cartwheel_core::codec::DecodeError;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::merkle::LeafSum;
use cartwheel_core::record::Record;
use cartwheel_core::segment::{BlockEntry, SegmentMeta, decode_block};

use crate::{RecordKey, Segment, SegmentError};

/// Bytes that are read ahead.
const AHEAD: u64 = 256 * 1024;

/// A record of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its place.
    pub key: RecordKey,
    /// What it says.
    pub record: Record,
    /// Its bytes, in memory shared with its neighbours.
    pub bytes: Bytes,
}

/// A place in a segment that moves forward. Every checksum is verified, that records ascend, and that whoever reads
/// all of them gets as many, with the same clocks, as the clock column says.
#[derive(Debug)]
pub struct Cursor {
    bucket: SharedBucket,
    segment: Arc<Segment>,
    meta: Arc<SegmentMeta>,
    hash_seed: u64,
    next_block: usize,
    ready: VecDeque<Bytes>,
    /// Records up to here are passed over.
    after: Option<KeyHash>,
    last: Option<RecordKey>,
    /// What the clock column sums up to, and what was read; kept if all of it is read.
    check: Option<(LeafSum, LeafSum, u64)>,
}

impl Cursor {
    /// A place before the first record whose hash is greater than `after`, or before all. `hash_seed` is the
    /// cluster's.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn open(
        bucket: &SharedBucket,
        segment: &Arc<Segment>,
        hash_seed: u64,
        after: Option<KeyHash>,
    ) -> Result<Self, SegmentError> {
        let meta = Arc::clone(segment.meta(bucket).await?);
        let from_start = after.is_none_or(|after| after < meta.first);
        let check = if from_start {
            let mut told = LeafSum::default();
            for entry in segment.clocks(bucket).await? {
                let (hash, brief) = entry.map_err(|e| segment.damaged(e))?;
                told.add(hash, brief.seen());
            }
            Some((told, LeafSum::default(), 0))
        } else {
            None
        };
        let next_block = match after {
            Some(after) if !from_start => {
                // Equal hashes may spill over a block border.
                meta.blocks().partition_point(|block| block.first <= after).saturating_sub(1)
            }
            _ => 0,
        };
        let (bucket, segment) = (Arc::clone(bucket), Arc::clone(segment));
        let (ready, last) = (VecDeque::new(), None);
        Ok(Self { bucket, segment, meta, hash_seed, next_block, ready, after, last, check })
    }

    /// The segment read.
    #[must_use]
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn next(&mut self) -> Result<Option<Item>, SegmentError> {
        loop {
            let Some(bytes) = self.ready.pop_front() else {
                if self.next_block == self.meta.blocks().len() {
                    self.check_whole()?;
                    return Ok(None);
                }
                self.read_ahead().await?;
                continue;
            };
            let item = self.item(bytes)?;
            if self.after.is_none_or(|after| item.key.hash > after) {
                return Ok(Some(item));
            }
        }
    }

    fn item(&mut self, bytes: Bytes) -> Result<Item, SegmentError> {
        let record = Record::decode(&bytes).map_err(|e| self.segment.damaged(e))?;
        let hash = KeyHash::of(self.hash_seed, &record.namespace, &record.key);
        let key = RecordKey::new(hash, &record.namespace, &record.key);
        let in_range = (self.meta.first..=self.meta.last).contains(&hash);
        if !in_range || self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err(self.segment.damaged(DecodeError::Malformed("order of records")));
        }
        if let Some((_, read, count)) = &mut self.check {
            read.add(hash, record.container.seen());
            *count += 1;
        }
        self.last = Some(key.clone());
        Ok(Item { key, record, bytes })
    }

    fn check_whole(&self) -> Result<(), SegmentError> {
        match self.check {
            Some((told, read, count)) if told != read || count != self.meta.records => Err(self
                .segment
                .damaged(DecodeError::Malformed("clock column: it is not that of the records"))),
            _ => Ok(()),
        }
    }

    /// Reads some blocks in one piece.
    async fn read_ahead(&mut self) -> Result<(), SegmentError> {
        let blocks = &self.meta.blocks()[self.next_block..];
        let start = blocks[0].offset;
        let end = |block: &BlockEntry| block.offset.saturating_add(block.length);
        let more = blocks.iter().take_while(|block| end(block).saturating_sub(start) <= AHEAD).count().max(1);
        let bytes = self.bucket.get_range(&self.segment.object, start..end(&blocks[more - 1])).await?;
        for block in &blocks[..more] {
            let range = |n: u64| usize::try_from(n.saturating_sub(start)).unwrap_or(usize::MAX);
            let block = bytes
                .get(range(block.offset)..range(end(block)))
                .ok_or(DecodeError::Truncated("segment block"))
                .map_err(|e| self.segment.damaged(e))?;
            let records = decode_block(&bytes.slice_ref(block)).map_err(|e| self.segment.damaged(e))?;
            self.ready.extend(records);
        }
        self.next_block += more;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use cartwheel_bucket::MemoryBucket;
    use cartwheel_core::clock::{Actor, Clock, Dot};
    use cartwheel_core::container::Container;
    use cartwheel_core::manifest::SegmentEntry;
    use cartwheel_core::names::{Key, Namespace};
    use cartwheel_core::record::{Brief, Value, Version};
    use cartwheel_core::segment::{BuiltSegment, SegmentBuilder};

    use super::*;
    use crate::Segments;

    const SEED: u64 = 3;

    fn records(count: u32) -> Vec<(RecordKey, Record)> {
        let namespace = Namespace::new(b"n").unwrap();
        let version = |n: u32| Version {
            value: Value::Present(vec![n as u8; 3000].into()),
            written_ms: 0,
            expires_ms: 0,
            request: u128::from(n),
            context: Clock::new(),
            content_type: Bytes::new(),
            meta: Vec::new(),
        };
        let mut records: Vec<_> = (0..count)
            .map(|n| {
                let key = Key::new(n.to_be_bytes().to_vec().into()).unwrap();
                let dot = Dot { actor: Actor::parse("a.1").unwrap(), n: u64::from(n) + 1 };
                let container = Container::delta(&Clock::new(), dot, version(n));
                let place = RecordKey::new(KeyHash::of(SEED, &namespace, &key), &namespace, &key);
                (place, Record { namespace: namespace.clone(), key, container })
            })
            .collect();
        records.sort_by(|a, b| a.0.cmp(&b.0));
        records
    }

    fn build(records: &[(RecordKey, Record)]) -> BuiltSegment {
        let mut builder = SegmentBuilder::new();
        for (key, record) in records {
            builder.push(key.hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
        }
        builder.finish().unwrap()
    }

    async fn read(built: &BuiltSegment, after: Option<KeyHash>) -> Result<Vec<RecordKey>, SegmentError> {
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        bucket.put("s", built.bytes.clone()).await.unwrap();
        let segments = Segments::new(Arc::clone(&bucket), 0);
        let entry = SegmentEntry::of("s".to_owned(), built);
        let segment = segments.open("s".to_owned(), entry.bytes, Some(entry), None);
        let mut cursor = Cursor::open(&bucket, &segment, SEED, after).await?;
        let mut keys = Vec::new();
        while let Some(item) = cursor.next().await? {
            assert_eq!(item.record.encode(), item.bytes);
            keys.push(item.key);
        }
        Ok(keys)
    }

    #[tokio::test]
    async fn all_records_come_in_order_from_any_place() {
        let records = records(300);
        let built = build(&records);
        let keys: Vec<RecordKey> = records.iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(read(&built, None).await.unwrap(), keys);
        for at in [0, 1, 9, 10, 11, 150, 298, 299] {
            assert_eq!(read(&built, Some(keys[at].hash)).await.unwrap(), keys[at + 1..]);
        }
        assert_eq!(read(&built, Some(KeyHash(0))).await.unwrap(), keys);
    }

    #[tokio::test]
    async fn a_segment_whose_parts_do_not_fit_together_is_damaged() {
        let records = records(30);
        let mut builder = SegmentBuilder::new();
        for (n, (key, record)) in records.iter().enumerate() {
            let other = &records[(n + usize::from(n == 7)) % 30].1;
            builder.push(key.hash, &record.encode(), &other.container.map(|v| Brief::from(v)));
        }
        assert!(read(&builder.finish().unwrap(), None).await.is_err(), "a clock of another record");
        let mut swapped = records.clone();
        swapped.swap(3, 4);
        assert!(read(&build(&swapped), None).await.is_err(), "out of order");
        let built = build(&records);
        for at in (8..built.tail_offset as usize).step_by(997) {
            let mut bad = built.clone();
            let mut bytes = built.bytes.to_vec();
            bytes[at] ^= 1;
            bad.bytes = bytes.into();
            assert!(read(&bad, None).await.is_err(), "byte {at}");
        }
    }
}
