//! What a call is part of: the trace context that goes with it from process to process (W3C Trace Context, level 1).

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::DecodeError;

/// Bytes of an encoded context.
pub const CONTEXT_BYTES: usize = 25;
/// Characters of a `traceparent` of version 00; later versions may add more behind a `-`.
const PARENT_CHARS: usize = 55;
/// The flag that says that the trace is recorded.
const SAMPLED: u8 = 1;

/// A span of a trace, as the process that made it tells others about it. Neither id is all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

impl TraceContext {
    /// `None` if one of the ids is all zeros, which stands for none.
    #[must_use]
    pub fn new(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Option<Self> {
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(Self { trace_id, span_id, flags })
    }

    /// The trace.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The span within it.
    #[must_use]
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// The eight flags of `traceparent`.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Is the trace recorded by who began it?
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Reads the value of a `traceparent` header. `None` for whatever the specification says to ignore: other shapes,
    /// capitals, ids of zeros, version ff. Later versions are read as far as version 00 goes.
    #[must_use]
    pub fn from_traceparent(text: &[u8]) -> Option<Self> {
        let (parent, more) = text.split_at_checked(PARENT_CHARS)?;
        let mut fields = parent.split(|byte| *byte == b'-');
        let [version] = hex(fields.next()?)?;
        let context = Self::new(hex(fields.next()?)?, hex(fields.next()?)?, hex::<1>(fields.next()?)?[0])?;
        let ends_here = more.is_empty() || (version > 0 && more[0] == b'-');
        (version != 0xff && ends_here && fields.next().is_none()).then_some(context)
    }

    /// The context as it lies before the call in a frame.
    #[must_use]
    pub fn encode(&self) -> [u8; CONTEXT_BYTES] {
        let mut bytes = [0; CONTEXT_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(&self.trace_id);
        out.put_slice(&self.span_id);
        out.put_u8(self.flags);
        bytes
    }

    /// Takes a context off the front of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] if there is none.
    pub fn take(bytes: &mut Bytes) -> Result<Self, DecodeError> {
        if bytes.len() < CONTEXT_BYTES {
            return Err(DecodeError::Malformed("trace context"));
        }
        let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
        bytes.copy_to_slice(&mut trace_id);
        bytes.copy_to_slice(&mut span_id);
        Self::new(trace_id, span_id, bytes.get_u8()).ok_or(DecodeError::Malformed("trace context"))
    }

    /// `call` with the context before it.
    #[must_use]
    pub fn before(&self, call: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(CONTEXT_BYTES + call.len());
        bytes.put_slice(&self.encode());
        bytes.put_slice(call);
        bytes.freeze()
    }
}

/// As the value of a `traceparent` header.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace_id), u64::from_be_bytes(self.span_id));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", self.flags)
    }
}

/// Exactly `N` bytes in lower-case hexadecimal digits.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_parent_is_read_and_written() {
        let context = TraceContext::from_traceparent(PARENT.as_bytes()).unwrap();
        assert_eq!(context.to_string(), PARENT);
        assert!(context.is_sampled());
        assert_eq!(context.trace_id()[..2], [0x4b, 0xf9]);
        assert_eq!(context.span_id()[6..], [0x02, 0xb7]);
    }

    #[test]
    fn what_the_specification_says_to_ignore_is_ignored() {
        let zeros = "0".repeat(32);
        let ignored = [
            String::new(),
            PARENT.to_uppercase(),
            PARENT[1..].to_owned(),
            format!("{PARENT}0"),
            format!("{PARENT}-more"),
            PARENT.replacen("00", "ff", 1),
            PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &zeros),
            PARENT.replace("00f067aa0ba902b7", &zeros[..16]),
            PARENT.replace('-', "_"),
            PARENT.replacen("00-4bf", "004-bf", 1),
        ];
        for text in ignored {
            assert_eq!(TraceContext::from_traceparent(text.as_bytes()), None, "{text}");
        }
        let later = format!("{}-more", PARENT.replacen("00", "cc", 1));
        assert_eq!(TraceContext::from_traceparent(later.as_bytes()).unwrap().to_string(), PARENT);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1..=u128::MAX, span in 1..=u64::MAX, flags: u8, call: Vec<u8>) {
            let context = TraceContext::new(trace.to_be_bytes(), span.to_be_bytes(), flags).unwrap();
            prop_assert_eq!(TraceContext::from_traceparent(context.to_string().as_bytes()), Some(context));
            let mut bytes = context.before(&call);
            prop_assert_eq!(TraceContext::take(&mut bytes), Ok(context));
            prop_assert_eq!(bytes, call);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = TraceContext::from_traceparent(&bytes);
            let _ = TraceContext::take(&mut Bytes::from(bytes));
        }
    }
}
