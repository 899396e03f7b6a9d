//! Segments: sorted, immutable objects of records.
//!
//! ```text
//! header   "CWSEGMT1"
//! blocks   per block: records, each varint length + record bytes; u64 checksum
//! clocks   per record: u128 hash, brief container; u64 checksum        (the clock column)
//! leaves   what the records changed in the node's Merkle tree (crate::merkle::LeafDeltas); u64 checksum; in flushes
//!          only, and only where all that the node held was known
//! filter   bits of a Bloom filter over the hashes; u64 checksum
//! index    per block: u128 first hash, varint offset, varint length; u64 checksum
//! footer   varint sections, per section: u8 kind, varint offset, varint length; varint records;
//!          u128 first hash, u128 last hash; u64 checksum; u32 footer length; "CWSEGEND"
//! ```
//! Records are ascending by (hash, namespace and key). A reader skips sections of kinds it does not know.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::container::Container;
use crate::hash::{KeyHash, checksum};
use crate::merkle::LeafDeltas;
use crate::record::{Brief, decode_brief, encode_brief};

/// A block is closed once it holds so many bytes.
pub const BLOCK_BYTES: usize = 32 * 1024;
const MAGIC: &[u8; 8] = b"CWSEGMT1";
const END_MAGIC: &[u8; 8] = b"CWSEGEND";
/// Bytes after the footer: its length and the end magic.
const TRAILER_BYTES: usize = 12;
/// About one in a thousand hashes that are not there passes.
const FILTER_BITS_PER_KEY: usize = 14;
const FILTER_PROBES: u32 = 10;

const SECTION_BLOCKS: u8 = 1;
const SECTION_CLOCKS: u8 = 2;
const SECTION_FILTER: u8 = 3;
const SECTION_INDEX: u8 = 4;
const SECTION_LEAVES: u8 = 5;

/// Builds one segment; push records in ascending order.
#[derive(Debug)]
pub struct SegmentBuilder {
    out: BytesMut,
    block_start: usize,
    blocks: Vec<BlockEntry>,
    clocks: BytesMut,
    hashes: Vec<KeyHash>,
    leaves: Option<LeafDeltas>,
}

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockEntry {
    /// Hash of its first record.
    pub first: KeyHash,
    /// Offset in the object, bytes.
    pub offset: u64,
    /// Length with checksum, bytes.
    pub length: u64,
}

/// A finished segment.
#[derive(Debug, Clone)]
pub struct BuiltSegment {
    /// The object's bytes.
    pub bytes: Bytes,
    /// Where the part that a reader keeps begins: filter, index and footer.
    pub tail_offset: u64,
    /// How many records.
    pub records: u64,
    /// The hash of the first record.
    pub first: KeyHash,
    /// The hash of the last record.
    pub last: KeyHash,
}

impl Default for SegmentBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl SegmentBuilder {
    /// An empty segment.
    #[must_use]
    pub fn new() -> Self {
        let mut out = BytesMut::with_capacity(BLOCK_BYTES * 4);
        out.put_slice(MAGIC);
        Self {
            block_start: out.len(),
            out,
            blocks: Vec::new(),
            clocks: BytesMut::new(),
            hashes: Vec::new(),
            leaves: None,
        }
    }

    /// Says what has changed in the node's Merkle tree since the flush before this one.
    pub fn leaves(&mut self, changes: LeafDeltas) {
        self.leaves = Some(changes);
    }

    /// Adds a record: its hash, its bytes, and its clock in brief.
    pub fn push(&mut self, hash: KeyHash, record: &[u8], brief: &Container<Brief>) {
        if self.out.len() == self.block_start {
            self.blocks.push(BlockEntry { first: hash, offset: self.block_start as u64, length: 0 });
        }
        put_bytes(&mut self.out, record);
        self.clocks.put_u128(hash.0);
        encode_brief(&mut self.clocks, brief);
        self.hashes.push(hash);
        if self.out.len() - self.block_start >= BLOCK_BYTES {
            self.close_block();
        }
    }

    /// Bytes of the records so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.out.len()
    }

    fn close_block(&mut self) {
        if self.out.len() > self.block_start {
            seal(&mut self.out, self.block_start);
            if let Some(block) = self.blocks.last_mut() {
                block.length = self.out.len() as u64 - block.offset;
            }
            self.block_start = self.out.len();
        }
    }

    /// The finished segment; `None` if nothing was pushed.
    #[must_use]
    pub fn finish(mut self) -> Option<BuiltSegment> {
        self.close_block();
        let (first, last) = (*self.hashes.first()?, *self.hashes.last()?);
        let mut sections = vec![(SECTION_BLOCKS, MAGIC.len(), self.out.len())];
        let mut section = |out: &mut BytesMut, kind, write: &dyn Fn(&mut BytesMut)| {
            let start = out.len();
            write(out);
            seal(out, start);
            sections.push((kind, start, out.len()));
        };
        section(&mut self.out, SECTION_CLOCKS, &|out| out.put_slice(&self.clocks));
        if let Some(leaves) = &self.leaves {
            section(&mut self.out, SECTION_LEAVES, &|out| leaves.encode(out));
        }
        let tail_offset = self.out.len() as u64;
        section(&mut self.out, SECTION_FILTER, &|out| out.put_slice(&Filter::build(&self.hashes).bits));
        section(&mut self.out, SECTION_INDEX, &|out| {
            for block in &self.blocks {
                out.put_u128(block.first.0);
                put_varint(out, block.offset);
                put_varint(out, block.length);
            }
        });
        let footer = self.out.len();
        put_varint(&mut self.out, sections.len() as u64);
        for (kind, start, end) in sections {
            self.out.put_u8(kind);
            put_varint(&mut self.out, start as u64);
            put_varint(&mut self.out, (end - start) as u64);
        }
        put_varint(&mut self.out, self.hashes.len() as u64);
        self.out.put_u128(first.0);
        self.out.put_u128(last.0);
        seal(&mut self.out, footer);
        let length = u32::try_from(self.out.len() - footer).ok()?;
        self.out.put_u32_le(length);
        self.out.put_slice(END_MAGIC);
        let records = self.hashes.len() as u64;
        Some(BuiltSegment { bytes: self.out.freeze(), tail_offset, records, first, last })
    }
}

/// Appends the checksum of what was written since `start`.
fn seal(out: &mut BytesMut, start: usize) {
    let sum = checksum(&out[start..]);
    out.put_u64_le(sum);
}

/// Checks and strips a checksum that [`seal`] wrote.
fn unseal(bytes: &Bytes, what: &'static str) -> Result<Bytes, DecodeError> {
    let body = bytes.len().checked_sub(8).ok_or(DecodeError::Truncated(what))?;
    if checksum(&bytes[..body]) != Reader::new(bytes.slice(body..)).u64(what)? {
        return Err(DecodeError::Checksum(what));
    }
    Ok(bytes.slice(..body))
}

/// A Bloom filter over key hashes; the hash is uniform already, so its halves make the probes
/// (Kirsch and Mitzenmacher, 2006).
#[derive(Debug, Clone)]
struct Filter {
    bits: Bytes,
}

impl Filter {
    fn build(hashes: &[KeyHash]) -> Self {
        let mut bits = vec![0_u8; (hashes.len() * FILTER_BITS_PER_KEY).div_ceil(8).max(8)];
        for hash in hashes {
            for (byte, mask) in Self::probes(*hash, bits.len()) {
                bits[byte] |= mask;
            }
        }
        Self { bits: bits.into() }
    }

    fn may_hold(&self, hash: KeyHash) -> bool {
        Self::probes(hash, self.bits.len()).all(|(byte, mask)| self.bits[byte] & mask != 0)
    }

    fn probes(hash: KeyHash, bytes: usize) -> impl Iterator<Item = (usize, u8)> {
        let (high, low) = hash.halves();
        let low = low | 1;
        let bits = bytes as u64 * 8;
        (0..u64::from(FILTER_PROBES)).map(move |i| {
            let bit = high.wrapping_add(i.wrapping_mul(low)) % bits;
            (usize::try_from(bit / 8).unwrap_or(0), 1 << (bit % 8))
        })
    }
}

/// What a reader keeps of a segment: filter and index.
#[derive(Debug, Clone)]
pub struct SegmentMeta {
    filter: Filter,
    index: Vec<BlockEntry>,
    clocks: (u64, u64),
    leaves: Option<(u64, u64)>,
    /// How many records.
    pub records: u64,
    /// The hash of the first record.
    pub first: KeyHash,
    /// The hash of the last record.
    pub last: KeyHash,
}

impl SegmentMeta {
    /// Reads the end of an object, from its `tail_offset` on.
    ///
    /// # Errors
    /// [`DecodeError`]; every checksum is verified.
    pub fn decode(tail: &Bytes, tail_offset: u64) -> Result<Self, DecodeError> {
        let footer_end =
            tail.len().checked_sub(TRAILER_BYTES).ok_or(DecodeError::Truncated("segment trailer"))?;
        let mut trailer = Reader::new(tail.slice(footer_end..));
        let length = trailer.u32("segment trailer")? as usize;
        if trailer.rest() != END_MAGIC[..] {
            return Err(DecodeError::Malformed("segment end"));
        }
        let start = footer_end.checked_sub(length).ok_or(DecodeError::Truncated("segment footer"))?;
        let mut footer = Reader::new(unseal(&tail.slice(start..footer_end), "segment footer")?);
        // Readers add these numbers up: what reaches past the footer is refused once, here.
        let footer_offset =
            tail_offset.checked_add(start as u64).ok_or(DecodeError::Malformed("section bounds"))?;
        let reaches_past = |offset: u64, length: u64, end: u64| {
            offset.checked_add(length).is_none_or(|reached| reached > end)
        };
        let (mut filter, mut index, mut clocks, mut leaves) = (None, None, (0, 0), None);
        for _ in 0..footer.count(3, "sections")? {
            let kind = footer.u8("section")?;
            let (offset, length) = (footer.varint("section")?, footer.varint("section")?);
            if reaches_past(offset, length, footer_offset) {
                return Err(DecodeError::Malformed("section bounds"));
            }
            let inside = || {
                let from = offset.checked_sub(tail_offset).and_then(|n| usize::try_from(n).ok());
                let end = from.and_then(|n| n.checked_add(usize::try_from(length).ok()?));
                match (from, end) {
                    (Some(from), Some(end)) if end <= start => Ok(tail.slice(from..end)),
                    _ => Err(DecodeError::Malformed("section bounds")),
                }
            };
            match kind {
                SECTION_FILTER => filter = Some(unseal(&inside()?, "segment filter")?),
                SECTION_INDEX => index = Some(unseal(&inside()?, "segment index")?),
                SECTION_CLOCKS => clocks = (offset, length),
                SECTION_LEAVES => leaves = Some((offset, length)),
                _ => {}
            }
        }
        let records = footer.varint("records")?;
        let first = KeyHash(footer.u128("first hash")?);
        let last = KeyHash(footer.u128("last hash")?);
        let filter = filter.filter(|f| !f.is_empty()).ok_or(DecodeError::Malformed("segment filter"))?;
        let mut reader = Reader::new(index.ok_or(DecodeError::Malformed("segment index"))?);
        let mut index = Vec::new();
        while reader.remaining() > 0 {
            let first = KeyHash(reader.u128("block")?);
            let (offset, length) = (reader.varint("block")?, reader.varint("block")?);
            if reaches_past(offset, length, tail_offset) {
                return Err(DecodeError::Malformed("block bounds"));
            }
            index.push(BlockEntry { first, offset, length });
        }
        // Memory of its own: a slice would keep the whole tail alive.
        let filter = Filter { bits: Bytes::copy_from_slice(&filter) };
        Ok(Self { filter, index, clocks, leaves, records, first, last })
    }

    /// May the segment hold this hash? `false` is certain.
    #[must_use]
    pub fn may_hold(&self, hash: KeyHash) -> bool {
        (self.first..=self.last).contains(&hash) && self.filter.may_hold(hash)
    }

    /// The blocks that can hold records of `first..=last`.
    #[must_use]
    pub fn blocks_in(&self, first: KeyHash, last: KeyHash) -> &[BlockEntry] {
        let end = self.index.partition_point(|b| b.first <= last);
        // Equal hashes may spill over a block border, so the block before an equal first hash counts too.
        let start = self.index[..end].partition_point(|b| b.first < first).saturating_sub(1);
        &self.index[start..end]
    }

    /// All blocks, in order.
    #[must_use]
    pub fn blocks(&self) -> &[BlockEntry] {
        &self.index
    }

    /// Where the clock column lies: offset and length in bytes.
    #[must_use]
    pub fn clock_column(&self) -> (u64, u64) {
        self.clocks
    }

    /// Where the changes to the Merkle tree lie: offset and length in bytes; `None` if it does not say.
    #[must_use]
    pub fn leaf_deltas(&self) -> Option<(u64, u64)> {
        self.leaves
    }

    /// Bytes of memory that this takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.filter.bits.len() + self.index.len() * size_of::<BlockEntry>()
    }
}

/// Reads the tail offset from the last bytes of an object (for objects that no manifest names). `end` must
/// hold at least the footer; `object_size` is the size of the whole object.
///
/// # Errors
/// [`DecodeError`].
pub fn tail_offset(end: &Bytes, object_size: u64) -> Result<u64, DecodeError> {
    let footer_end = end.len().checked_sub(TRAILER_BYTES).ok_or(DecodeError::Truncated("segment trailer"))?;
    let length = Reader::new(end.slice(footer_end..)).u32("segment trailer")? as usize;
    let start = footer_end.checked_sub(length).ok_or(DecodeError::Truncated("segment footer"))?;
    let mut footer = Reader::new(unseal(&end.slice(start..footer_end), "segment footer")?);
    for _ in 0..footer.count(3, "sections")? {
        let kind = footer.u8("section")?;
        let (offset, _) = (footer.varint("section")?, footer.varint("section")?);
        if kind == SECTION_FILTER && offset < object_size {
            return Ok(offset);
        }
    }
    Err(DecodeError::Malformed("segment footer"))
}

/// The records of one block.
///
/// # Errors
/// [`DecodeError`]; the block's checksum is verified first.
pub fn decode_block(block: &Bytes) -> Result<Vec<Bytes>, DecodeError> {
    let mut reader = Reader::new(unseal(block, "segment block")?);
    let mut records = Vec::new();
    while reader.remaining() > 0 {
        records.push(reader.bytes("segment record")?);
    }
    Ok(records)
}

/// The changes to the Merkle tree that a segment says it makes.
///
/// # Errors
/// [`DecodeError`]; the section's checksum is verified.
pub fn decode_leaf_deltas(section: &Bytes) -> Result<LeafDeltas, DecodeError> {
    let mut reader = Reader::new(unseal(section, "leaf deltas")?);
    let deltas = LeafDeltas::decode(&mut reader)?;
    reader.end("leaf deltas")?;
    Ok(deltas)
}

/// The clock column: each record's hash and clock, decoded one by one. An entry that can't be read is the last.
#[derive(Debug)]
pub struct ClockColumn(Reader);

impl ClockColumn {
    /// Opens a column.
    ///
    /// # Errors
    /// [`DecodeError`]; the column's checksum is verified.
    pub fn open(column: &Bytes) -> Result<Self, DecodeError> {
        Ok(Self(Reader::new(unseal(column, "clock column")?)))
    }

    fn entry(&mut self) -> Result<(KeyHash, Container<Brief>), DecodeError> {
        Ok((KeyHash(self.0.u128("clock column")?), decode_brief(&mut self.0)?))
    }
}

impl Iterator for ClockColumn {
    type Item = Result<(KeyHash, Container<Brief>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = (self.0.remaining() > 0).then(|| self.entry())?;
        if entry.is_err() {
            // Nothing can be read after it, and whoever goes on must come to an end.
            self.0 = Reader::new(Bytes::new());
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Actor, Clock, Dot};

    fn brief(n: u64) -> Container<Brief> {
        let dot = Dot { actor: Actor::parse("node-a.1").unwrap(), n };
        Container::delta(&Clock::new(), dot, Brief { deleted: false, expires_ms: 0, request: 1, size: 10 })
    }

    fn build(count: u64, size: usize) -> (BuiltSegment, Vec<(KeyHash, Vec<u8>)>) {
        let mut builder = SegmentBuilder::new();
        let mut pushed = Vec::new();
        for i in 0..count {
            let hash = KeyHash(u128::from(i + 1) * (u128::MAX / u128::from(count + 2)));
            let record = vec![i as u8; size];
            builder.push(hash, &record, &brief(i + 1));
            pushed.push((hash, record));
        }
        (builder.finish().unwrap(), pushed)
    }

    fn meta(built: &BuiltSegment) -> SegmentMeta {
        let tail = built.bytes.slice(built.tail_offset as usize..);
        SegmentMeta::decode(&tail, built.tail_offset).unwrap()
    }

    #[test]
    fn golden_file() {
        crate::golden::check("segment-v1.bin", &build(3, 10).0.bytes);
    }

    #[test]
    fn every_record_is_found_through_the_index() {
        let (built, pushed) = build(500, 700);
        let meta = meta(&built);
        assert_eq!(meta.records, 500);
        assert!(meta.index.len() > 5);
        for (hash, record) in &pushed {
            assert!(meta.may_hold(*hash));
            let found = meta.blocks_in(*hash, *hash).iter().any(|b| {
                let block = built.bytes.slice(b.offset as usize..(b.offset + b.length) as usize);
                decode_block(&block).unwrap().iter().any(|r| r == record)
            });
            assert!(found);
        }
        let (offset, length) = meta.clock_column();
        let column = built.bytes.slice(offset as usize..(offset + length) as usize);
        let clocks: Vec<_> = ClockColumn::open(&column).unwrap().map(Result::unwrap).collect();
        assert_eq!(clocks.len(), 500);
        assert_eq!(clocks[7], (pushed[7].0, brief(8)));
    }

    #[test]
    fn what_a_flush_changes_in_the_tree_is_found() {
        let (built, pushed) = build(3, 10);
        assert_eq!(meta(&built).leaf_deltas(), None);
        let mut watched = crate::merkle::Watched::default();
        watched.take_changes();
        watched.change(pushed[0].0, 0, 7);
        let changes = watched.take_changes().unwrap();
        let mut builder = SegmentBuilder::new();
        builder.push(pushed[0].0, &pushed[0].1, &brief(1));
        builder.leaves(changes.clone());
        let built = builder.finish().unwrap();
        let (offset, length) = meta(&built).leaf_deltas().unwrap();
        let section = built.bytes.slice(offset as usize..(offset + length) as usize);
        assert_eq!(decode_leaf_deltas(&section).unwrap(), changes);
        let mut damaged = section.to_vec();
        damaged[1] ^= 1;
        assert!(decode_leaf_deltas(&damaged.into()).is_err());
    }

    /// Readers add offsets and lengths up.
    #[test]
    fn what_reaches_past_its_place_is_refused() {
        let tail = |sections: &[(u8, u64, u64)], block: (u64, u64)| {
            let mut out = BytesMut::new();
            out.put_slice(&[1; 8]);
            seal(&mut out, 0);
            let index = out.len();
            out.put_u128(1);
            put_varint(&mut out, block.0);
            put_varint(&mut out, block.1);
            seal(&mut out, index);
            let (footer, offset) = (out.len(), 1000);
            let filled =
                [(SECTION_FILTER, 1000, index as u64), (SECTION_INDEX, offset + 16, (footer - index) as u64)];
            put_varint(&mut out, (sections.len() + 2) as u64);
            for (kind, from, length) in filled.iter().chain(sections) {
                out.put_u8(*kind);
                put_varint(&mut out, *from);
                put_varint(&mut out, *length);
            }
            put_varint(&mut out, 1);
            out.put_u128(1);
            out.put_u128(1);
            seal(&mut out, footer);
            let length = (out.len() - footer) as u32;
            out.put_u32_le(length);
            out.put_slice(END_MAGIC);
            SegmentMeta::decode(&out.freeze(), 1000).map(drop)
        };
        assert_eq!(tail(&[(SECTION_CLOCKS, 8, 992), (SECTION_LEAVES, 900, 50)], (8, 992)), Ok(()));
        for (kind, offset, length) in
            [(SECTION_CLOCKS, 8, 10_000), (SECTION_LEAVES, u64::MAX, 2), (SECTION_BLOCKS, 2, u64::MAX)]
        {
            let refused = Err(DecodeError::Malformed("section bounds"));
            assert_eq!(tail(&[(kind, offset, length)], (8, 992)), refused, "{kind}");
        }
        for block in [(8, 993), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(tail(&[], block), Err(DecodeError::Malformed("block bounds")), "{block:?}");
        }
    }

    #[test]
    fn a_clock_column_ends_with_the_first_entry_that_cannot_be_read() {
        let mut column = BytesMut::new();
        column.put_u128(1);
        encode_brief(&mut column, &brief(1));
        column.put_slice(b"no hash");
        seal(&mut column, 0);
        let entries: Vec<bool> =
            ClockColumn::open(&column.freeze()).unwrap().take(9).map(|e| e.is_ok()).collect();
        assert_eq!(entries, [true, false]);
    }

    #[test]
    fn records_of_one_hash_are_found_across_a_block_border() {
        let mut builder = SegmentBuilder::new();
        let hash = KeyHash(1 << 100);
        for i in 0..4 {
            builder.push(hash, &vec![i; BLOCK_BYTES / 2 + 1], &brief(1));
        }
        let built = builder.finish().unwrap();
        assert_eq!(meta(&built).blocks_in(hash, hash).len(), 2);
    }

    #[test]
    fn the_filter_is_wrong_about_one_in_a_thousand() {
        let meta = meta(&build(2000, 4).0);
        let mut wrong = 0;
        for i in 0..10_000_u64 {
            let hash = KeyHash::of(
                1,
                &crate::names::Namespace::new(b"n").unwrap(),
                &crate::names::Key::new(i.to_be_bytes().to_vec().into()).unwrap(),
            );
            wrong += u32::from(meta.may_hold(hash));
        }
        assert!(wrong < 40, "{wrong} of 10,000");
    }

    #[test]
    fn the_tail_is_found_from_the_end_of_the_object() {
        let (built, _) = build(50, 100);
        let size = built.bytes.len();
        let end = built.bytes.slice(size - 200..);
        assert_eq!(tail_offset(&end, size as u64).unwrap(), built.tail_offset);
    }

    #[test]
    fn damage_is_found() {
        let (built, _) = build(20, 50);
        let tail = built.tail_offset as usize;
        for at in tail..built.bytes.len() {
            let mut bad = built.bytes[tail..].to_vec();
            bad[at - tail] ^= 1;
            assert!(SegmentMeta::decode(&bad.into(), built.tail_offset).is_err(), "byte {at}");
        }
        let block = meta(&built).index[0];
        for at in 0..block.length as usize {
            let from = block.offset as usize;
            let mut bad = built.bytes[from..from + block.length as usize].to_vec();
            bad[at] ^= 1;
            assert!(decode_block(&bad.into()).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, sealed: bool) {
            let mut bytes = BytesMut::from(&bytes[..]);
            if sealed {
                seal(&mut bytes, 0);
                let length = bytes.len() as u32;
                bytes.put_u32_le(length);
                bytes.put_slice(END_MAGIC);
            }
            let bytes = bytes.freeze();
            let _ = SegmentMeta::decode(&bytes, 0);
            let _ = tail_offset(&bytes, 100);
            let _ = decode_block(&bytes);
            let _ = ClockColumn::open(&bytes).map(|column| column.take_while(Result::is_ok).count());
        }
    }

    #[test]
    fn an_empty_segment_is_none() {
        assert!(SegmentBuilder::new().finish().is_none());
    }
}
