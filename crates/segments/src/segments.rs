//! Reading segments from the bucket: the list of them, what is kept of each, and the block cache.
//!
//! moka holds clean data only: everything in a cache here can be read again from the bucket.

use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::future::try_join_all;
use moka::future::Cache;
use parking_lot::RwLock;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use cartwheel_bucket::{BucketError, SharedBucket};
use cartwheel_core::codec::DecodeError;
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::{SegmentEntry, owner_of_object};
use cartwheel_core::ranges::{self, HashRange};
use cartwheel_core::record::{Brief, Record, Version};
use cartwheel_core::segment::{BlockEntry, SegmentMeta, decode_block, tail_offset};
use cartwheel_telemetry::trace;

use crate::{Clocks, Identity, RecordKey};

/// Enough of the end of an object to hold any footer of this format.
const FOOTER_BYTES: u64 = 4096;
/// Bytes of a cached block beside its content.
const BLOCK_OVERHEAD: usize = 256;
/// Filters and indexes that are read at once.
const METAS_AT_ONCE: usize = 16;

/// Why a segment could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SegmentError {
    /// The bucket did not give it.
    #[error("{0}")]
    Bucket(Arc<BucketError>),
    /// It is damaged.
    #[error("segment {object}: {error}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong.
        error: DecodeError,
    },
    /// A version that is known of a key is in none of the segments.
    #[error("a version that is known of the key of hash {hash} can't be found")]
    Incomplete {
        /// The key's.
        hash: KeyHash,
    },
}

impl SegmentError {
    /// Is there no such object?
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Bucket(error) if matches!(**error, BucketError::NotFound { .. }))
    }

    /// Is something missing that is known to be there?
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        matches!(self, Self::Incomplete { .. })
    }

    /// The object that is damaged, or gone; `None` if that is not what is wrong.
    #[must_use]
    pub fn damaged_object(&self) -> Option<&str> {
        match self {
            Self::Damaged { object, .. } => Some(object),
            Self::Bucket(error) => match &**error {
                // Shorter than it was.
                BucketError::NotFound { key } | BucketError::Range { key, .. } => Some(key),
                _ => None,
            },
            Self::Incomplete { .. } => None,
        }
    }
}

impl From<BucketError> for SegmentError {
    fn from(error: BucketError) -> Self {
        Self::Bucket(Arc::new(error))
    }
}

/// One segment in the bucket.
#[derive(Debug)]
pub struct Segment {
    /// Its number in this process; part of cache keys.
    number: u64,
    /// The object.
    pub object: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// What the manifest, or whoever made it, says of it. Read from the bucket if nobody told.
    entry: OnceCell<SegmentEntry>,
    /// When its newest record was put into the bucket, or at least not before; `None` if that is not known.
    pub born: Option<Instant>,
    meta: OnceCell<Arc<SegmentMeta>>,
}

impl Segment {
    /// How many bytes of it are kept in memory beside the block cache: filter and index, once they were needed.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.meta.get().map_or(0, |meta| meta.weight() as u64)
    }

    /// May it hold this hash, as far as is known without asking the bucket? What is outside the ranges of a segment
    /// that is borrowed is not held.
    #[must_use]
    pub fn covers(&self, hash: KeyHash) -> bool {
        self.entry.get().is_none_or(|entry| entry.covers(hash))
    }

    /// The hashes that count, if not all of them do.
    #[must_use]
    pub fn only(&self) -> &[HashRange] {
        self.entry.get().map_or(&[], |entry| &entry.only)
    }

    /// The node that made it; `None` if that is no node's segment.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        owner_of_object(&self.object)
    }

    /// The same object with what `entry` says of it: other ranges.
    #[must_use]
    pub fn with_entry(&self, entry: SegmentEntry) -> Arc<Self> {
        let meta = self.meta.get().map_or_else(OnceCell::new, |meta| OnceCell::new_with(Some(meta.clone())));
        let entry = OnceCell::new_with(Some(entry));
        Arc::new(Self { number: self.number, object: self.object.clone(), entry, meta, ..*self })
    }

    /// Does a record of this hash count?
    pub(crate) fn counts(&self, hash: KeyHash) -> bool {
        self.only().is_empty() || ranges::contains(self.only(), hash)
    }

    /// The blocks that can hold records of `first..=last` that count, ascending.
    pub(crate) fn blocks_in(&self, meta: &SegmentMeta, first: KeyHash, last: KeyHash) -> Vec<BlockEntry> {
        if self.only().is_empty() {
            return meta.blocks_in(first, last).to_vec();
        }
        let mut blocks: Vec<BlockEntry> = Vec::new();
        for range in ranges::common(self.only(), &[HashRange { first, last }]) {
            // Two ranges may meet in one block.
            let next = blocks.last().map_or(0, |block| block.offset + 1);
            let more = meta.blocks_in(range.first, range.last);
            blocks.extend(more.iter().filter(|block| block.offset >= next));
        }
        blocks
    }

    /// May it hold this hash, as far as is known without asking the bucket? Its filter is looked at if it is here.
    #[must_use]
    pub fn may_hold(&self, hash: KeyHash) -> bool {
        self.covers(hash) && self.meta.get().is_none_or(|meta| meta.may_hold(hash))
    }

    /// What is known of it without asking the bucket.
    #[must_use]
    pub fn known(&self) -> Option<&SegmentEntry> {
        self.entry.get()
    }

    pub(crate) fn damaged(&self, error: DecodeError) -> SegmentError {
        SegmentError::Damaged { object: self.object.clone(), error }
    }

    /// Filter and index; read from the bucket once and kept, out of reach of any cache's eviction.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn meta(&self, bucket: &SharedBucket) -> Result<&Arc<SegmentMeta>, SegmentError> {
        self.meta
            .get_or_try_init(|| async {
                let offset = match self.entry.get() {
                    Some(entry) => entry.tail_offset,
                    None => self.find_tail(bucket).await?,
                };
                let tail = bucket.get_range(&self.object, offset..self.bytes).await?;
                let meta = SegmentMeta::decode(&tail, offset).map_err(|e| self.damaged(e))?;
                let _ = self.entry.set(self.described(offset, &meta));
                Ok(Arc::new(meta))
            })
            .await
    }

    async fn find_tail(&self, bucket: &SharedBucket) -> Result<u64, SegmentError> {
        let from = self.bytes.saturating_sub(FOOTER_BYTES);
        let end = bucket.get_range(&self.object, from..self.bytes).await?;
        tail_offset(&end, self.bytes).map_err(|e| self.damaged(e))
    }

    /// What a manifest says of it; one that nobody described is a run of its own.
    fn described(&self, tail_offset: u64, meta: &SegmentMeta) -> SegmentEntry {
        SegmentEntry {
            object: self.object.clone(),
            bytes: self.bytes,
            tail_offset,
            records: meta.records,
            first: meta.first,
            last: meta.last,
            run: self.object.clone(),
            born_ms: 0,
            only: Vec::new(),
        }
    }

    /// What the manifest says of it. Asks the bucket if it is not known yet.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn entry(&self, bucket: &SharedBucket) -> Result<&SegmentEntry, SegmentError> {
        if let Some(entry) = self.entry.get() {
            return Ok(entry);
        }
        let meta = self.meta(bucket).await?;
        // Whoever read the end of it has set this.
        self.entry.get_or_try_init(|| async { Ok(self.described(self.find_tail(bucket).await?, meta)) }).await
    }

    /// The clock column, read outside the caches: what counts of it.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn clocks(&self, bucket: &SharedBucket) -> Result<Clocks, SegmentError> {
        let (offset, length) = self.meta(bucket).await?.clock_column();
        let column = bucket.get_range(&self.object, offset..offset + length).await?;
        Clocks::open(column, self.only()).map_err(|e| self.damaged(e))
    }
}

/// Awaits one of moka's futures. moka does its upkeep by the real clock, inside whichever call comes then, and
/// wakes that call's task once for nothing; here such a wake goes nowhere, so that what tasks do and in which
/// order never depends on how fast the machine is.
pub async fn quietly<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => future.as_mut().poll(cx),
        ready => ready,
    })
    .await
}

/// As [`quietly`], for a future that is ready at once.
fn quietly_now<F: Future>(future: F) {
    let mut future = std::pin::pin!(future);
    let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

type BlockKey = (u64, u64);
type Blocks = Cache<BlockKey, Bytes, BuildHasherDefault<Identity>>;

/// A block cache of about `bytes` bytes.
fn blocks_of(bytes: u64) -> Blocks {
    Cache::builder()
        .max_capacity(bytes)
        .weigher(|_, block: &Bytes| weight(block))
        .build_with_hasher(BuildHasherDefault::default())
}

fn weight(block: &Bytes) -> u32 {
    u32::try_from(block.len() + BLOCK_OVERHEAD).unwrap_or(u32::MAX)
}

/// All segments of a node, oldest first, and the block cache in front of them.
#[derive(Debug)]
pub struct Segments {
    bucket: SharedBucket,
    list: RwLock<Arc<Vec<Arc<Segment>>>>,
    blocks: RwLock<Blocks>,
    next_number: AtomicU64,
    /// Blocks asked for, and those that had to be read from the bucket.
    asked: AtomicU64,
    loaded: AtomicU64,
}

impl Segments {
    /// No segments yet, and a block cache of about `cache_bytes` bytes.
    #[must_use]
    pub fn new(bucket: SharedBucket, cache_bytes: u64) -> Self {
        let blocks = RwLock::new(blocks_of(cache_bytes));
        Self {
            bucket,
            list: RwLock::default(),
            blocks,
            next_number: 0.into(),
            asked: 0.into(),
            loaded: 0.into(),
        }
    }

    /// A segment that can be read with [`Segments::read_in`] and does not join the list. `bytes` is the size of
    /// the object; `known` what a manifest or its maker says of it; `born` when its newest record was put into the
    /// bucket, if that matters.
    #[must_use]
    pub fn open(
        &self,
        object: String,
        bytes: u64,
        known: Option<SegmentEntry>,
        born: Option<Instant>,
    ) -> Arc<Segment> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let entry = known.map_or_else(OnceCell::new, |entry| OnceCell::new_with(Some(entry)));
        Arc::new(Segment { number, object, bytes, entry, born, meta: OnceCell::new() })
    }

    /// Adds a segment: the newest.
    pub fn push(&self, segment: Arc<Segment>) {
        let mut list = self.list.write();
        let mut grown = (**list).clone();
        grown.push(segment);
        *list = Arc::new(grown);
    }

    /// Puts `with` in the place of the newest of `merged`, whose content they hold, in one step. `false`, and nothing
    /// is changed, if one of those is not there any more.
    pub fn replace(&self, merged: &[Arc<Segment>], with: Vec<Arc<Segment>>) -> bool {
        let mut list = self.list.write();
        let is_merged = |segment: &Arc<Segment>| merged.iter().any(|m| Arc::ptr_eq(m, segment));
        if list.iter().filter(|segment| is_merged(segment)).count() != merged.len() {
            return false;
        }
        let at = list.iter().rposition(is_merged).map_or(list.len(), |at| at + 1);
        let (older, newer) = list.split_at(at);
        let older = older.iter().filter(|segment| !is_merged(segment)).cloned();
        let changed = older.chain(with).chain(newer.iter().cloned()).collect();
        *list = Arc::new(changed);
        true
    }

    /// The bucket that they lie in.
    #[must_use]
    pub fn bucket(&self) -> &SharedBucket {
        &self.bucket
    }

    /// The segments as they are now.
    #[must_use]
    pub fn all(&self) -> Arc<Vec<Arc<Segment>>> {
        Arc::clone(&self.list.read())
    }

    /// Bytes in the block cache.
    #[must_use]
    pub fn cached_bytes(&self) -> u64 {
        self.blocks.read().weighted_size()
    }

    /// How many blocks were asked for so far, and how many of them had to be read from the bucket.
    #[must_use]
    pub fn cache_use(&self) -> (u64, u64) {
        (self.asked.load(Ordering::Relaxed), self.loaded.load(Ordering::Relaxed))
    }

    /// Gives the block cache another size, keeping what fits.
    pub fn resize_cache(&self, bytes: u64) {
        // Without the lock, for it takes a while; blocks that are put meanwhile are read again.
        let blocks = self.blocks.read().clone();
        let (resized, mut kept) = (blocks_of(bytes), 0);
        for (key, block) in blocks.iter() {
            kept += u64::from(weight(&block));
            if kept > bytes {
                break;
            }
            // Never pending: nobody else has this cache yet.
            quietly_now(resized.insert(*key, block));
        }
        *self.blocks.write() = resized;
    }

    /// How many segments there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.read().len()
    }

    /// What the segments know of a key: newest first, until every dot of `live` is found (all segments if
    /// `live` is `None`).
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn read(
        &self,
        key: &RecordKey,
        live: Option<&Container<Brief>>,
    ) -> Result<Container<Version>, SegmentError> {
        self.read_in(&self.all(), key, live).await
    }

    /// As [`Segments::read`], of these segments alone.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn read_in(
        &self,
        segments: &[Arc<Segment>],
        key: &RecordKey,
        live: Option<&Container<Brief>>,
    ) -> Result<Container<Version>, SegmentError> {
        let mut merged = Container::default();
        let covering: Vec<&Arc<Segment>> = segments.iter().rev().filter(|s| s.covers(key.hash)).collect();
        if live.is_none() {
            // All of them are needed: their filters and indexes at once.
            for some in covering.chunks(METAS_AT_ONCE) {
                try_join_all(some.iter().map(|segment| segment.meta(&self.bucket))).await?;
            }
        }
        for segment in covering {
            if live.is_some_and(|live| holds_all(&merged, live)) {
                break;
            }
            let meta = segment.meta(&self.bucket).await?;
            if !meta.may_hold(key.hash) {
                continue;
            }
            for block in meta.blocks_in(key.hash, key.hash) {
                let bytes = self.block(segment, *block).await?;
                for bytes in decode_block(&bytes).map_err(|e| segment.damaged(e))? {
                    let (namespace, name) = Record::decode_key(&bytes).map_err(|e| segment.damaged(e))?;
                    if RecordKey::new(key.hash, &namespace, &name) == *key {
                        let record = Record::decode(&bytes).map_err(|e| segment.damaged(e))?;
                        merged.sync(record.container);
                    }
                }
            }
        }
        Ok(merged)
    }

    /// The records of a hash, each segment's own; more than one key may have it.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn find(&self, hash: KeyHash, hash_seed: u64) -> Result<Vec<Record>, SegmentError> {
        let mut found = Vec::new();
        for segment in self.all().iter() {
            if !segment.covers(hash) || !segment.meta(&self.bucket).await?.may_hold(hash) {
                continue;
            }
            for block in segment.meta(&self.bucket).await?.blocks_in(hash, hash) {
                let bytes = self.block(segment, *block).await?;
                for bytes in decode_block(&bytes).map_err(|e| segment.damaged(e))? {
                    let (namespace, key) = Record::decode_key(&bytes).map_err(|e| segment.damaged(e))?;
                    if KeyHash::of(hash_seed, &namespace, &key) == hash {
                        found.push(Record::decode(&bytes).map_err(|e| segment.damaged(e))?);
                    }
                }
            }
        }
        Ok(found)
    }

    /// What a manifest says of these segments.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn entries(&self, segments: &[Arc<Segment>]) -> Result<Vec<SegmentEntry>, SegmentError> {
        let mut entries = Vec::with_capacity(segments.len());
        for segment in segments {
            entries.push(segment.entry(&self.bucket).await?.clone());
        }
        Ok(entries)
    }

    /// One block through the cache. The loader runs in a task of its own: a caller that gives up does not
    /// undo it, and callers that want the same block wait for the same load.
    async fn block(&self, segment: &Arc<Segment>, block: BlockEntry) -> Result<Bytes, SegmentError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let load = async {
            self.loaded.fetch_add(1, Ordering::Relaxed);
            let (bucket, segment) = (Arc::clone(&self.bucket), Arc::clone(segment));
            let range = block.offset..block.offset + block.length;
            let loading = trace::spawn(async move {
                let bytes = bucket.get_range(&segment.object, range).await?;
                // Memory of its own: a slice may keep a larger buffer alive.
                Ok(Bytes::copy_from_slice(&bytes))
            });
            match loading.await {
                Ok(loaded) => loaded.map_err(|e: BucketError| SegmentError::from(e)),
                Err(_) => Err(SegmentError::from(BucketError::Unavailable {
                    key: String::new(),
                    detail: "the process is shutting down".to_owned(),
                })),
            }
        };
        let key = (segment.number, block.offset);
        let blocks = self.blocks.read().clone();
        quietly(blocks.try_get_with(key, load)).await.map_err(|e: Arc<SegmentError>| (*e).clone())
    }

    /// The records of hashes `first..=last` after `after`, read outside the cache in ascending order, up to
    /// about `blocks` blocks of each segment. With them comes the hash before which they are all there are;
    /// `None` if that is the end of the range. Segments put into
    /// the bucket before `since` are left out. `hash_seed` is the cluster's.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn scan(
        &self,
        first: KeyHash,
        last: KeyHash,
        after: Option<&RecordKey>,
        blocks: usize,
        (since, hash_seed): (Option<Instant>, u64),
    ) -> Result<(Vec<Bytes>, Option<KeyHash>), SegmentError> {
        let from = after.map_or(first, |key| key.hash);
        let mut records = Vec::new();
        let mut bound: Option<KeyHash> = None;
        let all = self.all();
        let young = |s: &&Arc<Segment>| since.is_none_or(|since| s.born.is_none_or(|born| born >= since));
        for segment in all.iter().filter(young) {
            if segment.known().is_some_and(|known| known.last < from || known.first > last) {
                continue;
            }
            let meta = segment.meta(&self.bucket).await?;
            if meta.last < from || meta.first > last || (first == last && !meta.may_hold(first)) {
                continue;
            }
            let in_range = segment.blocks_in(meta, from, last);
            let take = in_range.len().min(blocks);
            for block in &in_range[..take] {
                let range = block.offset..block.offset + block.length;
                let bytes = self.bucket.get_range(&segment.object, range).await?;
                for record in decode_block(&bytes).map_err(|e| segment.damaged(e))? {
                    if segment.only().is_empty() || segment.counts(hash_of(segment, &record, hash_seed)?) {
                        records.push(record);
                    }
                }
            }
            if let Some(next) = in_range.get(take) {
                bound = Some(bound.map_or(next.first, |b| b.min(next.first)));
            }
        }
        Ok((records, bound))
    }
}

fn hash_of(segment: &Segment, record: &Bytes, hash_seed: u64) -> Result<KeyHash, SegmentError> {
    let (namespace, key) = Record::decode_key(record).map_err(|e| segment.damaged(e))?;
    Ok(KeyHash::of(hash_seed, &namespace, &key))
}

/// All records of a segment, given the whole object.
///
/// # Errors
/// [`DecodeError`].
pub fn records_of(object: &Bytes) -> Result<Vec<Bytes>, DecodeError> {
    let size = object.len() as u64;
    let offset = tail_offset(object, size)?;
    let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let tail = object.get(at(offset)..).ok_or(DecodeError::Truncated("segment"))?;
    let meta = SegmentMeta::decode(&object.slice_ref(tail), offset)?;
    let mut records = Vec::new();
    for block in meta.blocks_in(KeyHash(0), KeyHash(u128::MAX)) {
        let range = at(block.offset)..at(block.offset.saturating_add(block.length));
        let block = object.get(range).ok_or(DecodeError::Truncated("segment"))?;
        records.extend(decode_block(&object.slice_ref(block))?);
    }
    Ok(records)
}

/// Does `merged` hold every sibling that is live according to the index?
#[must_use]
pub fn holds_all(merged: &Container<Version>, live: &Container<Brief>) -> bool {
    live.siblings().iter().all(|s| merged.siblings().binary_search_by(|m| m.dot.cmp(&s.dot)).is_ok())
}
