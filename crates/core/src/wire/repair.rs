//! What homes ask each other when they compare what they hold (Dynamo, SOSP 2007, section 4.7), as bytes.

use bytes::{BufMut, BytesMut};

use crate::clock::Clock;
use crate::codec::{DecodeError, Reader, put_varint};
use crate::hash::KeyHash;
use crate::merkle::{MAX_DEPTH, Span};
use crate::record::{decode_clock, encode_clock};

/// Most spans of one question.
pub const MAX_SPANS: usize = 4096;
/// Most sums of one answer.
pub const MAX_SUMS: usize = 65_536;
/// Most keys that are fetched at once.
pub const MAX_FETCHED: usize = 4096;

/// A question of one home to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// What do the parts of these spans sum up to ([`crate::merkle`])? At most [`MAX_SPANS`] spans and [`MAX_SUMS`]
    /// sums.
    Sums {
        /// Ascending, each of the same number of bits, each within a partition.
        spans: Vec<Span>,
        /// How many levels below the spans, at most [`MAX_DEPTH`].
        depth: u8,
    },
    /// What have you seen of the keys in these spans? The keys ascend by hash.
    Clocks {
        /// As in [`Repair::Sums`].
        spans: Vec<Span>,
        /// Keys after this hash.
        after: Option<KeyHash>,
        /// About so many bytes.
        bytes: u32,
    },
    /// What do you hold of these keys? At least one record, if there is one.
    Fetch {
        /// Ascending, at most [`MAX_FETCHED`].
        hashes: Vec<KeyHash>,
        /// About so many bytes.
        bytes: u32,
    },
    /// Put all you hold into the bucket, and name it in your manifest.
    Settle,
    /// Compare this partition, or all of them, with the other homes now.
    Begin {
        /// Which one.
        partition: Option<u32>,
    },
}

const SUMS: u8 = 1;
const CLOCKS: u8 = 2;
const FETCH: u8 = 3;
const SETTLE: u8 = 4;
const BEGIN: u8 = 5;

fn put_spans(out: &mut BytesMut, spans: &[Span]) {
    put_varint(out, spans.len() as u64);
    let bits = spans.first().map_or(0, |span| span.bits());
    out.put_u8(bits);
    for span in spans {
        out.put_slice(&span.first().0.to_be_bytes()[..usize::from(bits.div_ceil(8))]);
    }
}

fn read_spans(r: &mut Reader) -> Result<Vec<Span>, DecodeError> {
    let count = r.count(0, "spans")?;
    let bits = r.u8("bits of spans")?;
    if count > MAX_SPANS || bits > 128 {
        return Err(DecodeError::Malformed("spans"));
    }
    let mut spans: Vec<Span> = Vec::with_capacity(count);
    for _ in 0..count {
        let mut first = [0; 16];
        for byte in first.iter_mut().take(usize::from(bits.div_ceil(8))) {
            *byte = r.u8("span")?;
        }
        let hash = KeyHash(u128::from_be_bytes(first));
        let span = Span::of(hash, bits);
        if span.first() != hash || spans.last().is_some_and(|last| *last >= span) {
            return Err(DecodeError::Malformed("span"));
        }
        spans.push(span);
    }
    Ok(spans)
}

impl Repair {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Sums { spans, depth } => {
                out.put_u8(SUMS);
                out.put_u8(*depth);
                put_spans(out, spans);
            }
            Self::Clocks { spans, after, bytes } => {
                out.put_u8(CLOCKS);
                put_spans(out, spans);
                out.put_u8(u8::from(after.is_some()));
                after.iter().for_each(|hash| out.put_u128(hash.0));
                out.put_u32_le(*bytes);
            }
            Self::Fetch { hashes, bytes } => {
                out.put_u8(FETCH);
                put_varint(out, hashes.len() as u64);
                hashes.iter().for_each(|hash| out.put_u128(hash.0));
                out.put_u32_le(*bytes);
            }
            Self::Settle => out.put_u8(SETTLE),
            Self::Begin { partition } => {
                out.put_u8(BEGIN);
                put_varint(out, partition.map_or(0, |partition| u64::from(partition) + 1));
            }
        }
    }

    pub(super) fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let asked = match r.u8("repair")? {
            SUMS => {
                let depth = r.u8("depth")?;
                let spans = read_spans(r)?;
                if depth > MAX_DEPTH || spans.len() << depth > MAX_SUMS {
                    return Err(DecodeError::Malformed("depth"));
                }
                Self::Sums { spans, depth }
            }
            CLOCKS => {
                let spans = read_spans(r)?;
                let after = match r.u8("after")? {
                    0 => None,
                    1 => Some(KeyHash(r.u128("after")?)),
                    _ => return Err(DecodeError::Malformed("after")),
                };
                Self::Clocks { spans, after, bytes: r.u32("bytes")? }
            }
            FETCH => {
                let count = r.count(16, "keys")?;
                if count > MAX_FETCHED {
                    return Err(DecodeError::Malformed("keys"));
                }
                let mut hashes: Vec<KeyHash> = Vec::with_capacity(count);
                for _ in 0..count {
                    let hash = KeyHash(r.u128("key")?);
                    if hashes.last().is_some_and(|last| *last >= hash) {
                        return Err(DecodeError::Malformed("keys"));
                    }
                    hashes.push(hash);
                }
                Self::Fetch { hashes, bytes: r.u32("bytes")? }
            }
            SETTLE => Self::Settle,
            BEGIN => {
                let partition = match r.varint("partition")?.checked_sub(1) {
                    None => None,
                    Some(partition) => {
                        Some(u32::try_from(partition).map_err(|_| DecodeError::Malformed("partition"))?)
                    }
                };
                Self::Begin { partition }
            }
            _ => return Err(DecodeError::Malformed("repair")),
        };
        r.end("repair")?;
        Ok(asked)
    }
}

pub(super) fn put_sums(out: &mut BytesMut, sums: &[u64]) {
    put_varint(out, sums.len() as u64);
    sums.iter().for_each(|sum| out.put_u64_le(*sum));
}

pub(super) fn read_sums(r: &mut Reader) -> Result<Vec<u64>, DecodeError> {
    let count = r.count(8, "sums")?;
    let sums = (0..count).map(|_| r.u64("sum")).collect::<Result<_, _>>()?;
    r.end("sums")?;
    Ok(sums)
}

pub(super) fn put_clocks(out: &mut BytesMut, clocks: &[(KeyHash, Clock)]) {
    put_varint(out, clocks.len() as u64);
    for (hash, clock) in clocks {
        out.put_u128(hash.0);
        encode_clock(out, clock);
    }
}

pub(super) fn read_clocks(r: &mut Reader) -> Result<Vec<(KeyHash, Clock)>, DecodeError> {
    let count = r.count(17, "clocks")?;
    let clock = |r: &mut Reader| Ok((KeyHash(r.u128("key")?), decode_clock(r)?));
    let clocks = (0..count).map(|_| clock(r)).collect::<Result<_, _>>()?;
    r.end("clocks")?;
    Ok(clocks)
}
