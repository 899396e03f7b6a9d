//! Frames: how calls and answers lie on a connection.
//!
//! ```text
//! u32 length of the rest | u32 checksum of the rest after it | u8 kind | u64 correlation | u32 deadline_ms | payload
//! ```
//! All numbers little endian. `correlation` pairs an answer with its call ([`Correlation`]); `deadline_ms` is the time
//! that the caller will still wait (0 in answers).
//!
//! Whoever opens a connection names the versions of frames that it speaks in `Upgrade`, the newest first; the other
//! end takes the newest that it knows too, and says which. So processes of two versions work together, and a cluster
//! is replaced one process after the other.

use bytes::{Buf, Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

use crate::codec::DecodeError;

/// A version of frames. Each holds all that the one before held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameVersion {
    /// Calls, answers, pings.
    One = 1,
    /// Calls may say what trace they are part of ([`FrameKind::TracedCall`]), and nodes hand out the ring document
    /// ([`crate::wire::Request::Ring`]).
    Two = 2,
}

impl FrameVersion {
    /// The newest.
    pub const NEWEST: Self = Self::Two;
    /// All, the newest first.
    const ALL: [Self; 2] = [Self::Two, Self::One];

    /// The version of this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|version| *version as u8 == number)
    }

    /// Its name in `Upgrade`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "cartwheel-frames/1",
            Self::Two => "cartwheel-frames/2",
        }
    }

    /// What a caller that knows versions up to this one offers in `Upgrade`.
    #[must_use]
    pub fn offer(self) -> &'static str {
        match self {
            Self::One => "cartwheel-frames/1",
            Self::Two => "cartwheel-frames/2, cartwheel-frames/1",
        }
    }

    /// The newest of the versions in `offered` that is not newer than this one. `None` if there is none.
    #[must_use]
    pub fn choose(self, offered: &str) -> Option<Self> {
        let offers = |version: &Self| offered.split(',').any(|name| name.trim() == version.name());
        Self::ALL.into_iter().filter(|version| *version <= self).find(offers)
    }
}
/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 21;
/// Longest payload: a record with all the siblings that concurrent minters may give it, and pages of a scan.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024 * 1024;
/// Calls that a connection may have in flight; [`Correlation`]'s slots are below it.
pub const MAX_IN_FLIGHT: usize = 8192;

/// Pairs an answer with its call: a slot of the caller's, and the turn of that slot, which grows by one with each call
/// and wraps. So an answer that comes too late finds nobody, and a call that comes twice is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correlation {
    /// Which slot, below [`MAX_IN_FLIGHT`].
    pub slot: u32,
    /// Which call of the slot.
    pub turn: u32,
}

impl Correlation {
    /// As it lies in a frame.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        u64::from(self.turn) << 32 | u64::from(self.slot)
    }

    /// As it lay in a frame.
    #[must_use]
    pub fn from_u64(n: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = n.to_le_bytes();
        Self { slot: u32::from_le_bytes([a, b, c, d]), turn: u32::from_le_bytes([e, f, g, h]) }
    }
}

/// The calls that came over one connection, by the last turn of each slot.
///
/// A stream delivers each frame once; whatever lies between two machines and sends one again must not have a write made
/// that was refused when it came the first time, and answered so.
#[derive(Debug, Default)]
pub struct CallsHeard(Vec<Option<u32>>);

impl CallsHeard {
    /// Notes a call; `false` if it, or a later one of its slot, has come before.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`]: there is no such slot.
    pub fn is_new(&mut self, call: Correlation) -> Result<bool, DecodeError> {
        let slot = call.slot as usize;
        if slot >= MAX_IN_FLIGHT {
            return Err(DecodeError::Malformed("correlation"));
        }
        if self.0.len() <= slot {
            self.0.resize(slot + 1, None);
        }
        let last = &mut self.0[slot];
        let is_new = last.is_none_or(|last| (1..1 << 31).contains(&call.turn.wrapping_sub(last)));
        if is_new {
            *last = Some(call.turn);
        }
        Ok(is_new)
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A call; the payload is a [`crate::wire::Request`].
    Call = 1,
    /// The answer to a call; the payload is a [`crate::wire::Reply`].
    Answer = 2,
    /// Are you there? No payload.
    Ping = 3,
    /// Yes. No payload.
    Pong = 4,
    /// A call with a [`crate::trace::TraceContext`] before the request. From version 2 on.
    TracedCall = 5,
}

impl FrameKind {
    fn from_u8(n: u8) -> Option<Self> {
        [Self::Call, Self::Answer, Self::Ping, Self::Pong, Self::TracedCall]
            .into_iter()
            .find(|k| *k as u8 == n)
    }
}

/// One frame. The payload is two pieces so that a value is never copied to stand behind its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Pairs an answer with its call: a [`Correlation`].
    pub correlation: u64,
    /// How long the caller will still wait, in milliseconds.
    pub deadline_ms: u32,
    /// First piece of the payload.
    pub head: Bytes,
    /// Second piece of the payload; empty in received frames.
    pub body: Bytes,
}

impl Frame {
    /// A frame without payload.
    #[must_use]
    pub fn bare(kind: FrameKind) -> Self {
        Self { kind, correlation: 0, deadline_ms: 0, head: Bytes::new(), body: Bytes::new() }
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        HEADER_BYTES + self.head.len() + self.body.len()
    }

    /// Is it too long to be sent?
    #[must_use]
    pub fn is_oversized(&self) -> bool {
        self.head.len() + self.body.len() > MAX_PAYLOAD_BYTES
    }

    /// The bytes before the payload.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let length = u32::try_from(self.wire_len() - 4).unwrap_or(u32::MAX);
        header[0..4].copy_from_slice(&length.to_le_bytes());
        header[8] = self.kind as u8;
        header[9..17].copy_from_slice(&self.correlation.to_le_bytes());
        header[17..21].copy_from_slice(&self.deadline_ms.to_le_bytes());
        let mut hasher = Xxh3::new();
        hasher.update(&header[8..]);
        hasher.update(&self.head);
        hasher.update(&self.body);
        header[4..8].copy_from_slice(&fold(hasher.digest()).to_le_bytes());
        header
    }

    /// Takes one frame off the front of `buffer`; `None` while it is not all there. The payload shares the
    /// buffer's memory.
    ///
    /// # Errors
    /// [`DecodeError`]; the connection can't be trusted after one.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, DecodeError> {
        let Some(length) = buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if !(HEADER_BYTES - 4..=HEADER_BYTES - 4 + MAX_PAYLOAD_BYTES).contains(&length) {
            return Err(DecodeError::Malformed("frame length"));
        }
        if buffer.len() < 4 + length {
            return Ok(None);
        }
        let mut frame = buffer.split_to(4 + length).freeze();
        frame.advance(4);
        let sum = frame.get_u32_le();
        if fold(xxhash_rust::xxh3::xxh3_64(&frame)) != sum {
            return Err(DecodeError::Checksum("frame"));
        }
        let kind = FrameKind::from_u8(frame.get_u8()).ok_or(DecodeError::Malformed("frame kind"))?;
        let correlation = frame.get_u64_le();
        let deadline_ms = frame.get_u32_le();
        Ok(Some(Self { kind, correlation, deadline_ms, head: frame, body: Bytes::new() }))
    }
}

fn fold(sum: u64) -> u32 {
    let [a, b, c, d, e, f, g, h] = sum.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) ^ u32::from_le_bytes([e, f, g, h])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn frame() -> Frame {
        Frame {
            kind: FrameKind::Call,
            correlation: 77,
            deadline_ms: 1500,
            head: Bytes::from_static(b"head"),
            body: Bytes::from_static(b"and body"),
        }
    }

    fn bytes(frame: &Frame) -> Vec<u8> {
        [&frame.header()[..], &frame.head, &frame.body].concat()
    }

    #[test]
    fn golden_file() {
        crate::golden::check("frame-v1.bin", &bytes(&frame()));
    }

    #[test]
    fn golden_file_of_version_two() {
        let context = crate::trace::TraceContext::new([0x11; 16], [0x22; 8], 1).unwrap();
        let traced = Frame { kind: FrameKind::TracedCall, head: context.before(b"head"), ..frame() };
        crate::golden::check("frame-v2.bin", &bytes(&traced));
    }

    #[test]
    fn a_call_that_comes_again_is_known_also_when_its_slot_has_had_others() {
        let mut heard = CallsHeard::default();
        let mut is_new = |slot, turn| heard.is_new(Correlation { slot, turn });
        for (slot, turn, new) in [
            (0, 1, true),
            (0, 1, false),
            (7, 1, true),
            (0, 2, true),
            (0, 1, false),
            (7, 1, false),
            (3, u32::MAX, true),
            (3, 0, true),
            (3, u32::MAX, false),
        ] {
            assert_eq!(is_new(slot, turn), Ok(new), "turn {turn} of slot {slot}");
        }
        let beyond = u32::try_from(MAX_IN_FLIGHT).unwrap();
        assert_eq!(is_new(beyond, 1), Err(DecodeError::Malformed("correlation")));
        let call = Correlation { slot: 5, turn: 9 };
        assert_eq!(Correlation::from_u64(call.to_u64()), call);
    }

    #[test]
    fn two_ends_take_the_newest_version_that_both_know() {
        use FrameVersion::{One, Two};
        for (caller, callee, both) in [(One, One, One), (One, Two, One), (Two, One, One), (Two, Two, Two)] {
            assert_eq!(callee.choose(caller.offer()), Some(both), "{caller:?} calls {callee:?}");
        }
        assert_eq!(Two.choose("cartwheel-frames/3, websocket"), None);
        assert_eq!(Two.choose("cartwheel-frames/3,cartwheel-frames/1"), Some(One));
        assert_eq!(Two.choose(""), None);
        for version in FrameVersion::ALL {
            assert_eq!(FrameVersion::from_number(version as u8), Some(version));
            assert_eq!(FrameVersion::NEWEST.choose(version.name()), Some(version));
        }
        assert_eq!(FrameVersion::from_number(3), None);
    }

    #[test]
    fn arrives_in_any_pieces() {
        let wire = [bytes(&frame()), bytes(&Frame::bare(FrameKind::Ping))].concat();
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        for byte in wire {
            buffer.extend_from_slice(&[byte]);
            while let Some(frame) = Frame::take(&mut buffer).unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got.len(), 2);
        assert_eq!(&got[0].head[..], b"headand body");
        assert_eq!((got[0].correlation, got[0].deadline_ms), (77, 1500));
        assert_eq!(got[1].kind, FrameKind::Ping);
    }

    #[test]
    fn damage_is_found() {
        let good = bytes(&frame());
        for at in 4..good.len() {
            let mut bad = BytesMut::from(&good[..]);
            bad[at] ^= 0x10;
            assert!(Frame::take(&mut bad).is_err(), "byte {at}");
        }
        let mut huge = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert_eq!(Frame::take(&mut huge), Err(DecodeError::Malformed("frame length")));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Frame::take(&mut BytesMut::from(&bytes[..]));
        }
    }
}
