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
/// all of them gets as many, with the same clocks, as the clock column says. Of a segment that is borrowed, only the
/// blocks that its ranges reach into are read, and only what is within them is given.
#[derive(Debug)]
pub struct Cursor {
    bucket: SharedBucket,
    segment: Arc<Segment>,
    meta: Arc<SegmentMeta>,
    hash_seed: u64,
    /// The blocks to read, the next one first.
    blocks: VecDeque<BlockEntry>,
    ready: VecDeque<Bytes>,
    /// Records up to here are passed over.
    after: Option<KeyHash>,
    last: Option<RecordKey>,
    /// What the clock column sums up to, and what was read; kept if all of it is read.
    check: Option<Check>,
}

/// What there is to be read, and what was read.
#[derive(Debug, Default)]
struct Check {
    told: LeafSum,
    read: LeafSum,
    /// Records that are still to come, less those that came too many.
    left: i64,
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
            let mut check = Check::default();
            for entry in segment.clocks(bucket).await? {
                let (hash, brief) = entry.map_err(|e| segment.damaged(e))?;
                check.told.add(hash, brief.seen());
                check.left += 1;
            }
            let all = segment.only().is_empty();
            if all && u64::try_from(check.left) != Ok(meta.records) {
                return Err(segment.damaged(DecodeError::Malformed("clock column: its length")));
            }
            Some(check)
        } else {
            None
        };
        // Equal hashes may spill over a block border: that of `after` is read with those after it.
        let first = if from_start { KeyHash(0) } else { after.unwrap_or(KeyHash(0)) };
        let blocks = segment.blocks_in(&meta, first, KeyHash(u128::MAX)).into();
        let (bucket, segment) = (Arc::clone(bucket), Arc::clone(segment));
        let (ready, last) = (VecDeque::new(), None);
        Ok(Self { bucket, segment, meta, hash_seed, blocks, ready, after, last, check })
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
                if self.blocks.is_empty() {
                    self.check_whole()?;
                    return Ok(None);
                }
                self.read_ahead().await?;
                continue;
            };
            let item = self.item(bytes)?;
            let is_after = self.after.is_none_or(|after| item.key.hash > after);
            if is_after && self.segment.counts(item.key.hash) {
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
        if self.segment.counts(hash)
            && let Some(check) = &mut self.check
        {
            check.read.add(hash, record.container.seen());
            check.left -= 1;
        }
        self.last = Some(key.clone());
        Ok(Item { key, record, bytes })
    }

    fn check_whole(&self) -> Result<(), SegmentError> {
        match &self.check {
            Some(check) if check.told != check.read || check.left != 0 => Err(self
                .segment
                .damaged(DecodeError::Malformed("clock column: it is not that of the records"))),
            _ => Ok(()),
        }
    }

    /// Reads some blocks in one piece.
    async fn read_ahead(&mut self) -> Result<(), SegmentError> {
        let end = |block: &BlockEntry| block.offset.saturating_add(block.length);
        let start = self.blocks.front().map_or(0, |block| block.offset);
        let mut piece: Vec<BlockEntry> = Vec::new();
        while let Some(block) = self.blocks.front() {
            let follows = piece.last().is_none_or(|last| end(last) == block.offset);
            let fits = piece.is_empty() || end(block).saturating_sub(start) <= AHEAD;
            if !follows || !fits {
                break;
            }
            piece.extend(self.blocks.pop_front());
        }
        let stop = piece.last().map_or(start, end);
        let bytes = self.bucket.get_range(&self.segment.object, start..stop).await?;
        for block in &piece {
            let range = |n: u64| usize::try_from(n.saturating_sub(start)).unwrap_or(usize::MAX);
            let block = bytes
                .get(range(block.offset)..range(end(block)))
                .ok_or(DecodeError::Truncated("segment block"))
                .map_err(|e| self.segment.damaged(e))?;
            let records = decode_block(&bytes.slice_ref(block)).map_err(|e| self.segment.damaged(e))?;
            self.ready.extend(records);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use cartwheel_bucket::{MemoryBucket, Meter, Work};
    use cartwheel_core::clock::{Actor, Clock, Dot};
    use cartwheel_core::container::Container;
    use cartwheel_core::manifest::SegmentEntry;
    use cartwheel_core::names::{Key, Namespace};
    use cartwheel_core::ranges::{self, HashRange};
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
        read_only(built, &[HashRange::ALL], after).await.map(|(keys, _)| keys)
    }

    fn read_bytes(meter: &Meter) -> u64 {
        meter.usage().works[&Work::Tools].bytes_out
    }

    /// What is read of these ranges, and from how many bytes.
    async fn read_only(
        built: &BuiltSegment,
        only: &[HashRange],
        after: Option<KeyHash>,
    ) -> Result<(Vec<RecordKey>, u64), SegmentError> {
        let meter = Meter::new();
        let memory: SharedBucket = Arc::new(MemoryBucket::new());
        let bucket = meter.bucket(&memory, Work::Tools);
        bucket.put("s", built.bytes.clone()).await.unwrap();
        let segments = Segments::new(Arc::clone(&bucket), 0);
        let mut entry = SegmentEntry::of("s".to_owned(), built);
        if only != [HashRange::ALL] {
            entry = entry.restricted_to(only).unwrap();
        }
        let segment = segments.open("s".to_owned(), entry.bytes, Some(entry), None);
        let mut cursor = Cursor::open(&bucket, &segment, SEED, after).await?;
        let mut keys = Vec::new();
        while let Some(item) = cursor.next().await? {
            assert_eq!(item.record.encode(), item.bytes);
            keys.push(item.key);
        }
        let clocks = segment.clocks(&bucket).await?.collect::<Result<Vec<_>, _>>().unwrap();
        let hashes: Vec<KeyHash> = clocks.into_iter().map(|(hash, _)| hash).collect();
        let inside: Vec<KeyHash> = keys.iter().map(|key| key.hash).collect();
        assert!(after.is_some() || hashes == inside, "the clocks are those of the records");
        Ok((keys, read_bytes(&meter)))
    }

    /// Of a segment that is restricted only what is inside is given, and blocks that are outside are not read.
    #[tokio::test]
    async fn only_what_is_within_the_ranges_is_read() {
        let records = records(600);
        let built = build(&records);
        let keys: Vec<RecordKey> = records.iter().map(|(key, _)| key.clone()).collect();
        let at = |n: usize, m: usize| HashRange { first: keys[n].hash, last: keys[m].hash };
        let (_, whole) = read_only(&built, &[HashRange::ALL], None).await.unwrap();
        for only in [
            vec![at(0, 0)],
            vec![at(599, 599)],
            vec![at(5, 9), at(11, 11), at(13, 40)],
            vec![at(0, 30), at(500, 599)],
            vec![HashRange { first: KeyHash(keys[300].hash.0 + 1), last: keys[310].hash }],
        ] {
            let inside: Vec<RecordKey> =
                keys.iter().filter(|key| ranges::contains(&only, key.hash)).cloned().collect();
            let (read, bytes) = read_only(&built, &only, None).await.unwrap();
            assert_eq!(read, inside);
            assert!(bytes < whole / 3, "{bytes} bytes of {whole}");
            for after in [inside[0].hash, keys[35].hash, keys[505].hash] {
                let left: Vec<RecordKey> = inside.iter().filter(|key| key.hash > after).cloned().collect();
                assert_eq!(read_only(&built, &only, Some(after)).await.unwrap().0, left);
            }
        }
        let none = HashRange { first: KeyHash(keys[7].hash.0 + 1), last: KeyHash(keys[8].hash.0 - 1) };
        assert_eq!(read_only(&built, &[none], None).await.unwrap().0, []);
    }

    /// Damage inside is found as it is in a whole segment.
    #[tokio::test]
    async fn damage_within_the_ranges_is_found() {
        let records = records(60);
        let mut builder = SegmentBuilder::new();
        for (n, (key, record)) in records.iter().enumerate() {
            let other = &records[(n + usize::from(n == 37)) % 60].1;
            builder.push(key.hash, &record.encode(), &other.container.map(|v| Brief::from(v)));
        }
        let odd = builder.finish().unwrap();
        let at = |n: usize, m: usize| [HashRange { first: records[n].0.hash, last: records[m].0.hash }];
        assert!(read_only(&odd, &at(30, 40), None).await.is_err(), "a clock of another record");
        assert!(read_only(&odd, &at(10, 30), None).await.is_ok(), "that is outside");
        let mut swapped = records.clone();
        swapped.swap(33, 34);
        let mut builder = SegmentBuilder::new();
        for (key, record) in &swapped {
            builder.push(key.hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
        }
        assert!(read_only(&builder.finish().unwrap(), &at(30, 40), None).await.is_err(), "out of order");
        let built = build(&records);
        let mut bad = built.clone();
        let mut bytes = built.bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bad.bytes = bytes.into();
        assert!(read_only(&bad, &at(20, 40), None).await.is_err(), "a byte");
        assert!(read_only(&bad, &at(0, 5), None).await.is_ok(), "in a block that is not read");
    }

    /// Points and pages see what is inside and nothing else.
    #[tokio::test]
    async fn reads_and_scans_keep_to_the_ranges() {
        let records = records(300);
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        let built = build(&records);
        bucket.put("s", built.bytes.clone()).await.unwrap();
        let segments = Segments::new(Arc::clone(&bucket), 1 << 20);
        let at = |n: usize, m: usize| HashRange { first: records[n].0.hash, last: records[m].0.hash };
        let only = [at(20, 29), at(31, 90), at(200, 210)];
        let entry = SegmentEntry::of("s".to_owned(), &built).restricted_to(&only).unwrap();
        segments.push(segments.open("s".to_owned(), entry.bytes, Some(entry.clone()), None));
        let is_inside = |n: usize| (20..30).contains(&n) || (31..91).contains(&n) || (200..211).contains(&n);
        for (n, (key, record)) in records.iter().enumerate() {
            let segment = &segments.all()[0];
            assert_eq!((segment.covers(key.hash), segment.may_hold(key.hash)), (is_inside(n), is_inside(n)));
            let found = segments.read(key, None).await.unwrap();
            assert_eq!(found == record.container, is_inside(n));
            assert_eq!(found.seen().is_empty(), !is_inside(n));
            assert_eq!(segments.find(key.hash, SEED).await.unwrap().len(), usize::from(is_inside(n)));
        }
        let expected: Vec<Bytes> = records
            .iter()
            .enumerate()
            .filter(|(n, _)| is_inside(*n))
            .map(|(_, (_, record))| record.encode())
            .collect();
        let (all, bound) =
            segments.scan(KeyHash(0), KeyHash(u128::MAX), None, 1000, (None, SEED)).await.unwrap();
        assert_eq!((all, bound), (expected.clone(), None));
        // Page by page: nothing before the bound is missed.
        let (mut from, mut pages) = (KeyHash(0), Vec::new());
        loop {
            let (page, bound) = segments.scan(from, KeyHash(u128::MAX), None, 2, (None, SEED)).await.unwrap();
            let before = |bytes: &Bytes| {
                let (namespace, key) = Record::decode_key(bytes).unwrap();
                let hash = KeyHash::of(SEED, &namespace, &key);
                hash >= from && bound.is_none_or(|bound| hash < bound)
            };
            pages.extend(page.into_iter().filter(before));
            match bound {
                Some(bound) => from = bound,
                None => break,
            }
        }
        assert_eq!(pages, expected);
        // Wider: the same object.
        let old = segments.all();
        let wider = SegmentEntry { only: vec![at(0, 250)], ..entry };
        assert!(segments.replace(&old, vec![old[0].with_entry(wider)]));
        assert_eq!(segments.read(&records[30].0, None).await.unwrap(), records[30].1.container);
        assert!(segments.read(&records[251].0, None).await.unwrap().seen().is_empty());
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
