//! Reading a range of records in order: what a node that joins copies, or one that lost its disk.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_core::clock::Dot;
use cartwheel_core::clock_index::Known;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::record::Record;

use super::{Engine, damaged, decode};
use crate::memtable::RecordKey;
use crate::segments::SegmentError;

impl Engine {
    /// A page of the records with hashes `first..=last` after `after`: at least one if there is one, about
    /// `budget` bytes, and whether there are more. What went into the bucket before `since` is left out.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub(crate) async fn scan(
        &self,
        first: KeyHash,
        last: KeyHash,
        after: Option<&RecordKey>,
        budget: usize,
        since: Option<Instant>,
    ) -> Result<(Vec<Bytes>, bool), SegmentError> {
        match self.scan_once(first, last, after, budget, since).await {
            // A merge has put others in the place of the segments that were being read.
            Err(error) if error.is_missing() => self.scan_once(first, last, after, budget, since).await,
            scanned => scanned,
        }
        .inspect_err(|error| self.note(error))
    }

    async fn scan_once(
        &self,
        first: KeyHash,
        last: KeyHash,
        after: Option<&RecordKey>,
        budget: usize,
        since: Option<Instant>,
    ) -> Result<(Vec<Bytes>, bool), SegmentError> {
        let (mut blocks, mut bytes) = (4_usize, budget.max(1));
        loop {
            // Memory first: what a flush moves in between is then seen twice, never missed.
            let mut found: BTreeMap<RecordKey, Record> = BTreeMap::new();
            let mut add = |hash: KeyHash, bytes: &Bytes| -> Result<(), SegmentError> {
                let record = decode(bytes)?;
                let key = RecordKey::new(hash, &record.namespace, &record.key);
                match found.get_mut(&key) {
                    Some(held) => held.container.sync(record.container),
                    None => drop(found.insert(key, record)),
                }
                Ok(())
            };
            let (held, held_bound) = self.scan_memory(first, last, after, bytes);
            for (hash, bytes) in &held {
                add(*hash, bytes)?;
            }
            let (records, bound) =
                self.segments.scan(first, last, after, blocks, (since, self.hash_seed)).await?;
            let bound = [bound, held_bound].into_iter().flatten().min();
            for bytes in records {
                let (namespace, key) = Record::decode_key(&bytes).map_err(damaged)?;
                let hash = KeyHash::of(self.hash_seed, &namespace, &key);
                if (first..=last).contains(&hash) {
                    add(hash, &bytes)?;
                }
            }
            if !self.index_complete() {
                // What was put late, or replayed, may be older than a deletion that was forgotten since.
                self.add_buried(&mut found).await?;
            }
            let mut page = Vec::new();
            let (mut size, mut cut) = (0, false);
            let within =
                |key: &RecordKey| after.is_none_or(|a| key > a) && bound.is_none_or(|b| key.hash < b);
            for (key, record) in &found {
                if !within(key) {
                    continue;
                }
                if !page.is_empty() && size >= budget {
                    cut = true;
                    break;
                }
                let bytes = record.encode();
                size += bytes.len();
                page.push(bytes);
            }
            let more = cut || bound.is_some();
            if !page.is_empty() || !more {
                return Ok((page, more));
            }
            (blocks, bytes) = (blocks.saturating_mul(2), bytes.saturating_mul(2));
        }
    }

    /// Does the index know of a version of this key that is neither in memory nor in a segment?
    ///
    /// # Errors
    /// [`SegmentError`].
    pub(crate) async fn lacks(&self, hash: KeyHash) -> Result<bool, SegmentError> {
        let known = self.tables.read().index.get(hash);
        let Known::All(live) = known else { return Ok(false) };
        let (records, _) = self.scan(hash, hash, None, usize::MAX / 2, None).await?;
        let mut held: BTreeSet<Dot> = BTreeSet::new();
        for record in &records {
            held.extend(decode(record)?.container.siblings().iter().map(|sibling| sibling.dot.clone()));
        }
        Ok(live.siblings().iter().any(|sibling| !held.contains(&sibling.dot)))
    }

    /// Adds what lies in graves of these keys.
    async fn add_buried(&self, found: &mut BTreeMap<RecordKey, Record>) -> Result<(), SegmentError> {
        for (key, record) in found.iter_mut().filter(|(key, _)| self.graves.may_hold(key.hash)) {
            for buried in self.graves.find(key.hash).await? {
                if RecordKey::new(key.hash, &buried.namespace, &buried.key) == *key {
                    record.container.sync(buried.container);
                }
            }
        }
        Ok(())
    }

    /// About the first `bytes` bytes that each memtable holds of a range, and the hash before which that is
    /// all they hold; `None` if that is the end of the range.
    pub(super) fn scan_memory(
        &self,
        first: KeyHash,
        last: KeyHash,
        after: Option<&RecordKey>,
        bytes: usize,
    ) -> (Vec<(KeyHash, Bytes)>, Option<KeyHash>) {
        let mut found = Vec::new();
        let mut bound: Option<KeyHash> = None;
        for table in self.tables.read().memtables() {
            let mut size = 0;
            for (key, entry) in table.range(first, last, after) {
                if size >= bytes {
                    bound = Some(bound.map_or(key.hash, |b| b.min(key.hash)));
                    break;
                }
                size += entry.record.len();
                found.push((key.hash, entry.record.clone()));
            }
        }
        (found, bound)
    }
}
