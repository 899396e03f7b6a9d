//! Verifies one whole segment, a few blocks at a time: every checksum, the order of the records, filter, index and
//! clock column, and what a manifest says of it.

use std::fmt;
use std::iter::Peekable;

use bytes::Bytes;

use cartwheel_bucket::{Bucket, BucketError};
use cartwheel_core::codec::DecodeError;
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::record::{Brief, Record};
use cartwheel_core::segment::{BlockEntry, ClockColumn, SegmentMeta, decode_block, tail_offset};

use crate::RecordKey;

/// What every segment begins with.
const HEADER: &[u8; 8] = b"CWSEGMT1";
/// Enough of the end of an object to hold any footer of this format.
const FOOTER_BYTES: u64 = 4096;
/// Blocks that lie next to each other are read together up to so many bytes.
const READ_AT_ONCE: u64 = 4 * 1024 * 1024;
/// The most damages of one segment that are told one by one.
pub const MAX_DAMAGES: usize = 32;

/// Where in a segment something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first bytes.
    Header,
    /// A block, by its place in the index.
    Block(usize),
    /// The clock column.
    Clocks,
    /// Filter, index and footer.
    Tail,
    /// What the manifest says.
    Manifest,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Block(number) => write!(f, "block {number}"),
            Self::Clocks => f.write_str("clock column"),
            Self::Tail => f.write_str("tail"),
            Self::Manifest => f.write_str("manifest entry"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where.
    pub part: Part,
    /// Where that begins in the object, bytes.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.part, self.offset, self.what)
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Records that could be read.
    pub records: u64,
    /// Siblings in them.
    pub siblings: u64,
    /// What is wrong, at most [`MAX_DAMAGES`].
    pub damages: Vec<Damage>,
    /// How many more there are.
    pub more_damages: u64,
}

impl Verified {
    /// Is nothing wrong?
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damages.is_empty()
    }
}

/// The figures of a segment, from its tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Where filter, index and footer begin.
    pub tail_offset: u64,
    /// Blocks.
    pub blocks: usize,
    /// Bytes of all blocks.
    pub block_bytes: u64,
    /// Where the clock column lies: offset and length in bytes.
    pub clocks: (u64, u64),
    /// Bytes of the filter.
    pub filter_bytes: u64,
    /// Records, as the footer says.
    pub records: u64,
    /// The hash of the first record.
    pub first: KeyHash,
    /// The hash of the last record.
    pub last: KeyHash,
}

/// A record that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Its hash, if the seed or the clock column tells it.
    pub hash: Option<KeyHash>,
    /// The block that it is in.
    pub block: usize,
    /// The record.
    pub record: Record,
}

/// Some blocks that were read.
#[derive(Debug, Default)]
pub struct Step {
    /// Bytes that were read.
    pub bytes: u64,
    /// Their records, in the order of the segment.
    pub records: Vec<Read>,
}

/// A verification under way. Memory: filter, index and clock column of the segment, and a few MiB of blocks.
#[derive(Debug)]
pub struct Verification {
    object: String,
    seed: Option<u64>,
    tail_offset: u64,
    meta: Option<SegmentMeta>,
    /// `None` once it can't be followed any more.
    column: Option<Peekable<ClockColumn>>,
    next_block: usize,
    last: Option<RecordKey>,
    /// Were all records so far read?
    whole: bool,
    found: Verified,
}

impl Verification {
    /// Reads header, tail and clock column of `object`, whose size is `size` bytes. `entry` is what a manifest says
    /// of it; `seed` the cluster's hash seed, without which the hashes are believed to be those of the clock column.
    ///
    /// # Errors
    /// Those of the bucket: [`BucketError::NotFound`] if the object is gone. Damage is no error.
    pub async fn open(
        bucket: &dyn Bucket,
        object: &str,
        size: u64,
        entry: Option<&SegmentEntry>,
        seed: Option<u64>,
    ) -> Result<Self, BucketError> {
        let mut this = Self {
            object: object.to_owned(),
            seed,
            tail_offset: size,
            meta: None,
            column: None,
            next_block: 0,
            last: None,
            whole: true,
            found: Verified::default(),
        };
        this.read_header(bucket, size).await?;
        match this.read_tail(bucket, size).await? {
            Ok((tail_offset, meta)) => {
                this.tail_offset = tail_offset;
                this.check_index(&meta);
                this.column = this.read_column(bucket, &meta).await?;
                this.meta = Some(meta);
            }
            Err(what) => this.damage(Part::Tail, size.saturating_sub(FOOTER_BYTES), what),
        }
        if let Some(entry) = entry {
            this.check_entry(entry, size);
        }
        Ok(this)
    }

    /// What the tail says; `None` if it can't be read.
    #[must_use]
    pub fn figures(&self) -> Option<Figures> {
        let meta = self.meta.as_ref()?;
        let blocks = meta.blocks().len();
        let beside = size_of::<SegmentMeta>() + size_of_val(meta.blocks());
        Some(Figures {
            tail_offset: self.tail_offset,
            blocks,
            block_bytes: meta.blocks().iter().map(|block| block.length).sum(),
            clocks: meta.clock_column(),
            filter_bytes: meta.weight().saturating_sub(beside) as u64,
            records: meta.records,
            first: meta.first,
            last: meta.last,
        })
    }

    /// Bytes read so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.found.bytes_read
    }

    /// Reads and verifies the next blocks; `None` once all were.
    ///
    /// # Errors
    /// Those of the bucket.
    pub async fn step(&mut self, bucket: &dyn Bucket) -> Result<Option<Step>, BucketError> {
        let Some(meta) = self.meta.clone() else { return Ok(None) };
        let first = self.next_block;
        let Some(run) = next_run(meta.blocks(), first, self.tail_offset) else { return Ok(None) };
        self.next_block = run.end;
        let blocks = &meta.blocks()[first..run.end];
        let Some(range) = run.range else {
            let offset = blocks.first().map_or(0, |block| block.offset);
            self.damage(
                Part::Block(first),
                offset,
                "the index says that it reaches past the blocks".to_owned(),
            );
            self.lose(&meta, first);
            return Ok(Some(Step::default()));
        };
        let start = range.start;
        let mut step = Step { bytes: range.end - range.start, records: Vec::new() };
        let bytes = match self.read(bucket, range).await? {
            Ok(bytes) => bytes,
            Err(what) => {
                for (number, block) in (first..).zip(blocks) {
                    self.damage(Part::Block(number), block.offset, what.clone());
                    self.lose(&meta, number);
                }
                return Ok(Some(step));
            }
        };
        for (number, block) in (first..).zip(blocks) {
            let at = |n: u64| usize::try_from(n - start).unwrap_or(usize::MAX);
            self.block(
                &meta,
                number,
                &bytes.slice(at(block.offset)..at(block.offset + block.length)),
                &mut step,
            );
        }
        Ok(Some(step))
    }

    /// Everything that was found, once all steps were taken.
    #[must_use]
    pub fn finish(mut self) -> Verified {
        let (column_at, tail_at) = (self.column_offset(), self.tail_offset);
        if let Some(meta) = self.meta.take().filter(|_| self.whole) {
            if self.found.records != meta.records {
                let what =
                    format!("the footer says {} records, there are {}", meta.records, self.found.records);
                self.damage(Part::Tail, tail_at, what);
            }
            if self.last.as_ref().is_some_and(|last| last.hash != meta.last) {
                self.damage(
                    Part::Tail,
                    tail_at,
                    "the footer's last hash is not that of the last record".to_owned(),
                );
            }
            let rest = self.column.take().map_or(0, Iterator::count);
            if rest > 0 {
                let what = format!("it has {rest} entries more than there are records");
                self.damage(Part::Clocks, column_at, what);
            }
        }
        self.found
    }

    fn column_offset(&self) -> u64 {
        self.meta.as_ref().map_or(0, |meta| meta.clock_column().0)
    }

    fn damage(&mut self, part: Part, offset: u64, what: String) {
        if self.found.damages.len() < MAX_DAMAGES {
            self.found.damages.push(Damage { part, offset, what });
        } else {
            self.found.more_damages += 1;
        }
    }

    /// The bytes, or what is wrong if the object ends before.
    async fn read(
        &mut self,
        bucket: &dyn Bucket,
        range: std::ops::Range<u64>,
    ) -> Result<Result<Bytes, String>, BucketError> {
        match bucket.get_range(&self.object, range).await {
            Ok(bytes) => {
                self.found.bytes_read += bytes.len() as u64;
                Ok(Ok(bytes))
            }
            Err(error @ BucketError::Range { .. }) => Ok(Err(error.to_string())),
            Err(error) => Err(error),
        }
    }

    async fn read_header(&mut self, bucket: &dyn Bucket, size: u64) -> Result<(), BucketError> {
        let wanted = HEADER.len() as u64;
        // An empty object has no range: asking for a byte of it tells at least whether it is there.
        match self.read(bucket, 0..wanted.min(size).max(1)).await? {
            Ok(bytes) if bytes == HEADER[..] => {}
            Ok(_) => self.damage(Part::Header, 0, "it is not the header of a segment".to_owned()),
            Err(what) => self.damage(Part::Header, 0, what),
        }
        Ok(())
    }

    async fn read_tail(
        &mut self,
        bucket: &dyn Bucket,
        size: u64,
    ) -> Result<Result<(u64, SegmentMeta), String>, BucketError> {
        if size == 0 {
            return Ok(Err("the object is empty".to_owned()));
        }
        let end = match self.read(bucket, size.saturating_sub(FOOTER_BYTES)..size).await? {
            Ok(end) => end,
            Err(what) => return Ok(Err(what)),
        };
        let offset = match tail_offset(&end, size) {
            Ok(offset) => offset,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let tail = match self.read(bucket, offset..size).await? {
            Ok(tail) => tail,
            Err(what) => return Ok(Err(what)),
        };
        Ok(SegmentMeta::decode(&tail, offset).map(|meta| (offset, meta)).map_err(|error| error.to_string()))
    }

    async fn read_column(
        &mut self,
        bucket: &dyn Bucket,
        meta: &SegmentMeta,
    ) -> Result<Option<Peekable<ClockColumn>>, BucketError> {
        let (offset, length) = meta.clock_column();
        let end = offset.checked_add(length).filter(|end| length > 0 && *end <= self.tail_offset);
        let Some(end) = end else {
            self.damage(Part::Clocks, offset, "the footer names no place in the object for it".to_owned());
            return Ok(None);
        };
        let opened = match self.read(bucket, offset..end).await? {
            Ok(column) => ClockColumn::open(&column).map_err(|error| error.to_string()),
            Err(what) => Err(what),
        };
        match opened {
            Ok(column) => Ok(Some(column.peekable())),
            Err(what) => {
                self.damage(Part::Clocks, offset, what);
                Ok(None)
            }
        }
    }

    fn check_index(&mut self, meta: &SegmentMeta) {
        let tail_at = self.tail_offset;
        let blocks = meta.blocks();
        let mut expected = HEADER.len() as u64;
        for (number, block) in blocks.iter().enumerate() {
            if block.offset != expected {
                let what = format!(
                    "the index says that it begins at {}, the one before ends at {expected}",
                    block.offset
                );
                self.damage(Part::Block(number), block.offset, what);
            }
            expected = block.offset.saturating_add(block.length);
        }
        if blocks.windows(2).any(|pair| pair[0].first > pair[1].first) {
            self.damage(Part::Tail, tail_at, "the blocks of the index are not ascending".to_owned());
        }
        if blocks.first().is_none_or(|block| block.first != meta.first) || meta.first > meta.last {
            self.damage(Part::Tail, tail_at, "index and footer differ in the first hash".to_owned());
        }
    }

    fn check_entry(&mut self, entry: &SegmentEntry, size: u64) {
        let mut fields = vec![("bytes", entry.bytes.to_string(), size.to_string())];
        if let Some(is) = self.figures() {
            fields.push(("tail_offset", entry.tail_offset.to_string(), is.tail_offset.to_string()));
            fields.push(("records", entry.records.to_string(), is.records.to_string()));
            fields.push(("first", entry.first.to_string(), is.first.to_string()));
            fields.push(("last", entry.last.to_string(), is.last.to_string()));
        }
        for (field, said, is) in fields.into_iter().filter(|(_, said, is)| said != is) {
            self.damage(Part::Manifest, 0, format!("the manifest says {field} {said}, the object {is}"));
        }
    }

    fn block(&mut self, meta: &SegmentMeta, number: usize, bytes: &Bytes, step: &mut Step) {
        let Some(block) = meta.blocks().get(number).copied() else { return };
        let records = match decode_block(bytes) {
            Ok(records) => records,
            Err(error) => {
                self.damage(Part::Block(number), block.offset, error.to_string());
                self.lose(meta, number);
                return;
            }
        };
        for (at, bytes) in records.iter().enumerate() {
            match Record::decode(bytes) {
                Ok(record) => {
                    let hash = self.record(meta, number, at, &record);
                    step.records.push(Read { hash, block: number, record });
                }
                Err(error) => {
                    self.damage(Part::Block(number), block.offset, format!("its record {at}: {error}"));
                    self.whole = false;
                    // Its entry in the column is passed over.
                    self.column_entry();
                }
            }
        }
    }

    /// The records of a block can't be read: the clock column is followed on from the next block.
    fn lose(&mut self, meta: &SegmentMeta, number: usize) {
        self.whole = false;
        let next = meta.blocks().get(number + 1).map(|block| block.first);
        while let Some(Ok((hash, _))) = self.column.as_mut().and_then(Peekable::peek) {
            if next.is_some_and(|next| *hash >= next) {
                return;
            }
            self.column_entry();
        }
    }

    /// The next entry of the clock column, as long as there is one that can be read.
    fn column_entry(&mut self) -> Option<(KeyHash, Container<Brief>)> {
        let offset = self.column_offset();
        let entry: Option<Result<_, DecodeError>> = self.column.as_mut()?.next();
        match entry {
            Some(Ok(entry)) => Some(entry),
            Some(Err(error)) => {
                self.damage(Part::Clocks, offset, error.to_string());
                self.column = None;
                None
            }
            None => {
                self.damage(Part::Clocks, offset, "it has fewer entries than there are records".to_owned());
                self.column = None;
                None
            }
        }
    }

    fn record(&mut self, meta: &SegmentMeta, number: usize, at: usize, record: &Record) -> Option<KeyHash> {
        self.found.records += 1;
        self.found.siblings += record.container.siblings().len() as u64;
        let known = self.seed.map(|seed| KeyHash::of(seed, &record.namespace, &record.key));
        let entry = self.column_entry();
        let hash = known.or_else(|| entry.as_ref().map(|(hash, _)| *hash));
        let mut wrong: Vec<&str> = Vec::new();
        if let Some((in_column, brief)) = &entry {
            if known.is_some_and(|known| known != *in_column) {
                wrong.push("the clock column has another hash for it");
            }
            if *brief != record.container.map(|version| Brief::from(version)) {
                wrong.push("the clock column has another clock for it");
            }
        }
        if let Some(hash) = hash {
            let key = RecordKey::new(hash, &record.namespace, &record.key);
            if self.last.as_ref().is_some_and(|last| *last >= key) {
                wrong.push("it does not come after the one before it");
            }
            let block = meta.blocks().get(number).map(|block| block.first);
            if at == 0 && block != Some(hash) {
                wrong.push("the index has another first hash for its block");
            }
            if !(meta.first..=meta.last).contains(&hash) {
                wrong.push("its hash is outside the segment's range");
            } else if !meta.may_hold(hash) {
                wrong.push("the filter denies it");
            }
            self.last = Some(key);
        }
        let offset = meta.blocks().get(number).map_or(0, |block| block.offset);
        for what in wrong {
            self.damage(Part::Block(number), offset, format!("its record {at}: {what}"));
        }
        hash
    }
}

/// Blocks that are read together.
struct Run {
    end: usize,
    /// `None` if the block lies where no block can.
    range: Option<std::ops::Range<u64>>,
}

/// The blocks from `first` on that lie next to each other, up to [`READ_AT_ONCE`] bytes, but at least one.
fn next_run(blocks: &[BlockEntry], first: usize, limit: u64) -> Option<Run> {
    let end_of = |block: &BlockEntry| block.offset.checked_add(block.length).filter(|end| *end <= limit);
    let block = blocks.get(first)?;
    let Some(mut end) = end_of(block).filter(|_| block.length > 0) else {
        return Some(Run { end: first + 1, range: None });
    };
    let mut next = first + 1;
    while let Some(block) = blocks.get(next) {
        match end_of(block) {
            Some(after)
                if block.offset == end && after > end && after - blocks[first].offset <= READ_AT_ONCE =>
            {
                end = after;
            }
            _ => break,
        }
        next += 1;
    }
    Some(Run { end: next, range: Some(block.offset..end) })
}

/// Verifies a segment from one end to the other.
///
/// # Errors
/// As [`Verification::open`].
pub async fn verify(
    bucket: &dyn Bucket,
    object: &str,
    size: u64,
    entry: Option<&SegmentEntry>,
    seed: Option<u64>,
) -> Result<Verified, BucketError> {
    let mut verification = Verification::open(bucket, object, size, entry, seed).await?;
    while verification.step(bucket).await?.is_some() {}
    Ok(verification.finish())
}

/// The pairs of segments of one run that have hashes in common, by their places in `entries`.
#[must_use]
pub fn overlaps(entries: &[SegmentEntry]) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    let place = |at: usize| (entries[at].run.as_str(), entries[at].first, entries[at].last);
    order.sort_by(|a, b| place(*a).cmp(&place(*b)));
    let overlap =
        |a: usize, b: usize| entries[a].run == entries[b].run && entries[b].first <= entries[a].last;
    order.windows(2).filter(|pair| overlap(pair[0], pair[1])).map(|pair| (pair[0], pair[1])).collect()
}

#[cfg(test)]
mod tests;
