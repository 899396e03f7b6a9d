//! The primitives of every binary format: varints, length-prefixed bytes, and a reader that never panics.

use bytes::{Buf, BufMut, Bytes};

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ended inside `0`.
    #[error("truncated {0}")]
    Truncated(&'static str),
    /// `0` holds something that can't be.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// The checksum of `0` does not match its bytes.
    #[error("checksum mismatch in {0}")]
    Checksum(&'static str),
    /// `what` has a version that this build does not know.
    #[error("{what} has format version {found}; this build reads up to {known}")]
    Version {
        /// What was read.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The newest version known.
        known: u8,
    },
}

/// Writes `value` as LEB128, 1 to 10 bytes.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8((value & 0x7f) as u8);
}

/// Writes a length and the bytes.
pub fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// The bytes a varint of `value` takes.
#[must_use]
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Reads from a [`Bytes`]; slices share its memory.
#[derive(Debug, Clone)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Starts at the beginning of `bytes`.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet read.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// All that is left.
    #[must_use]
    pub fn rest(self) -> Bytes {
        self.rest
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        if self.rest.is_empty() {
            return Err(DecodeError::Truncated(what));
        }
        Ok(self.rest.get_u8())
    }

    /// Four bytes, little endian.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        if self.rest.len() < 4 {
            return Err(DecodeError::Truncated(what));
        }
        Ok(self.rest.get_u32_le())
    }

    /// Eight bytes, little endian.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        if self.rest.len() < 8 {
            return Err(DecodeError::Truncated(what));
        }
        Ok(self.rest.get_u64_le())
    }

    /// Sixteen bytes, big endian (so that byte order is number order).
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u128(&mut self, what: &'static str) -> Result<u128, DecodeError> {
        if self.rest.len() < 16 {
            return Err(DecodeError::Truncated(what));
        }
        Ok(self.rest.get_u128())
    }

    /// One varint.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], or [`DecodeError::Malformed`] past 64 bits.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                return Err(DecodeError::Malformed(what));
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed(what))
    }

    /// A count of things that take at least `least` bytes each, so that a forged count can't reserve memory.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] where the rest could not hold them.
    pub fn count(&mut self, least: usize, what: &'static str) -> Result<usize, DecodeError> {
        let n = usize::try_from(self.varint(what)?).map_err(|_| DecodeError::Malformed(what))?;
        if n.saturating_mul(least.max(1)) > self.rest.len() {
            return Err(DecodeError::Truncated(what));
        }
        Ok(n)
    }

    /// Exactly `n` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn take(&mut self, n: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        if self.rest.len() < n {
            return Err(DecodeError::Truncated(what));
        }
        Ok(self.rest.split_to(n))
    }

    /// Length-prefixed bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] or [`DecodeError::Malformed`].
    pub fn bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let n = self.count(1, what)?;
        self.take(n, what)
    }

    /// Length-prefixed UTF-8.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    pub fn text(&mut self, what: &'static str) -> Result<String, DecodeError> {
        String::from_utf8(self.bytes(what)?.to_vec()).map_err(|_| DecodeError::Malformed(what))
    }

    /// Fails unless everything was read.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`].
    pub fn end(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Malformed(what)) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_round_trip(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            let mut reader = Reader::new(out.into());
            prop_assert_eq!(reader.varint("v").unwrap(), value);
            prop_assert!(reader.end("v").is_ok());
        }

        #[test]
        fn the_reader_never_panics(bytes: Vec<u8>) {
            let mut reader = Reader::new(bytes.into());
            let _ = reader.varint("v");
            let _ = reader.bytes("b");
            let _ = reader.text("t");
            let _ = reader.u128("u");
        }
    }

    #[test]
    fn a_forged_length_is_refused_before_it_is_believed() {
        let mut out = Vec::new();
        put_varint(&mut out, u64::MAX);
        assert_eq!(Reader::new(out.into()).bytes("b"), Err(DecodeError::Truncated("b")));
    }

    #[test]
    fn an_overlong_varint_is_malformed() {
        let mut reader = Reader::new(Bytes::from_static(&[0xff; 11]));
        assert_eq!(reader.varint("v"), Err(DecodeError::Malformed("v")));
    }
}
