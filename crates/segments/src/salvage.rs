//! What can still be read of a damaged segment: the blocks that are in order, if its index is.

use std::sync::Arc;

use bytes::Bytes;

use cartwheel_bucket::SharedBucket;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::record::Record;
use cartwheel_core::segment::{BlockEntry, decode_block};

use crate::{Segment, SegmentError};

/// The blocks of a segment that hold something that counts.
///
/// # Errors
/// [`SegmentError`], where filter, index or footer can't be read.
pub async fn blocks(bucket: &SharedBucket, segment: &Arc<Segment>) -> Result<Vec<BlockEntry>, SegmentError> {
    let meta = segment.meta(bucket).await?;
    Ok(segment.blocks_in(meta, KeyHash(0), KeyHash(u128::MAX)))
}

/// The records of one block that count. `hash_seed` is the cluster's.
///
/// # Errors
/// [`SegmentError`].
pub async fn records(
    bucket: &SharedBucket,
    segment: &Arc<Segment>,
    block: BlockEntry,
    hash_seed: u64,
) -> Result<Vec<Bytes>, SegmentError> {
    let range = block.offset..block.offset.saturating_add(block.length);
    let bytes = bucket.get_range(&segment.object, range).await?;
    let mut records = Vec::new();
    for record in decode_block(&bytes).map_err(|e| segment.damaged(e))? {
        let (namespace, key) = Record::decode_key(&record).map_err(|e| segment.damaged(e))?;
        if segment.counts(KeyHash::of(hash_seed, &namespace, &key)) {
            records.push(record);
        }
    }
    Ok(records)
}
