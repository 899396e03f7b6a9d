//! What a segment's clock column says of the hashes that count.

use bytes::Bytes;

use cartwheel_core::codec::DecodeError;
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::ranges::{self, HashRange};
use cartwheel_core::record::Brief;
use cartwheel_core::segment::ClockColumn;

/// Each record's hash and clock, ascending; of a segment that is borrowed, those within its ranges.
#[derive(Debug)]
pub struct Clocks {
    bytes: Bytes,
    column: ClockColumn,
    only: Vec<HashRange>,
}

impl Clocks {
    /// Opens a column of which `only` counts; all of it if that is empty.
    ///
    /// # Errors
    /// [`DecodeError`]; the column's checksum is verified.
    pub(crate) fn open(bytes: Bytes, only: &[HashRange]) -> Result<Self, DecodeError> {
        let column = ClockColumn::open(&bytes)?;
        Ok(Self { bytes, column, only: only.to_vec() })
    }

    /// The same from the start, without another look at the bucket.
    ///
    /// # Errors
    /// [`DecodeError`]; not where it could be read once.
    pub fn again(&self) -> Result<Self, DecodeError> {
        Self::open(self.bytes.clone(), &self.only)
    }

    /// Bytes of the whole column.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl Iterator for Clocks {
    type Item = Result<(KeyHash, Container<Brief>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let only = &self.only;
        // They ascend: nothing comes after the last range.
        let end = only.last().map_or(KeyHash(u128::MAX), |range| range.last);
        let counts = |hash: KeyHash| only.is_empty() || hash > end || ranges::contains(only, hash);
        let next = self.column.find(|entry| entry.as_ref().map_or(true, |(hash, _)| counts(*hash)))?;
        if next.as_ref().is_ok_and(|(hash, _)| *hash > end) { None } else { Some(next) }
    }
}
