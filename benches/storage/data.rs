//! Keys and values by number: whoever knows a key's number knows what must come back.

use bytes::Bytes;
use http::HeaderValue;

use cartwheel::client::key_path;

/// Bytes of a value.
pub(crate) const VALUE_BYTES: u64 = 1024;

/// The next number of a sequence, and its state moved on (splitmix64).
pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number below `bound`; 0 where `bound` is 0.
pub(crate) fn below(state: &mut u64, bound: u64) -> u64 {
    next(state).checked_rem(bound).unwrap_or(0)
}

/// The key with this number.
pub(crate) fn key(number: u64) -> String {
    format!("k{number:09}")
}

/// The path of a key, without a query.
pub(crate) fn path(namespace: &str, number: u64) -> String {
    key_path(namespace, key(number).as_bytes())
}

/// What write `round` of key `number` writes: bytes that no other write has, and that can't be compressed.
pub(crate) fn value(number: u64, round: u64) -> Bytes {
    let mut state = number.wrapping_mul(0x0000_0100_0000_01B3) ^ round.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < VALUE_BYTES {
        bytes.extend_from_slice(&next(&mut state).to_le_bytes());
    }
    bytes.into()
}

/// The idempotency key of write `round` of key `number`: sent again, it is the same write.
pub(crate) fn write_id(number: u64, round: u64) -> HeaderValue {
    let text = format!("{number}-{round}");
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static("write"))
}
