//! Answers as bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::call::{put_lone_dot, read_durability, read_flag, read_lone_dot, read_named_node};
use super::repair::{put_clocks, put_sums, read_clocks, read_sums};
use super::{Answer, Pieces, Refusal, Reply};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::record::{decode_clock, encode_clock};
use crate::standing::Standing;

const MINTED: u8 = 1;
const ACKED: u8 = 2;
const FOUND: u8 = 3;
const ABSENT: u8 = 4;
const PAGE: u8 = 5;
const HELLO_TOO: u8 = 6;
const REFUSED: u8 = 7;
const STATUS_IS: u8 = 8;
const EXTRA: u8 = 9;
const PARTIAL: u8 = 10;
const GOSSIP: u8 = 11;
const STANDING: u8 = 12;
const HANDOVER: u8 = 13;
const ATTESTED: u8 = 14;
const SUMS: u8 = 15;
const CLOCKS: u8 = 16;
const RING: u8 = 17;

impl Answer {
    /// The answer's bytes.
    #[must_use]
    pub fn encode(&self) -> Pieces {
        let mut out = BytesMut::with_capacity(64);
        let mut body = Bytes::new();
        let tag = |out: &mut BytesMut, tag| {
            out.put_u8(tag);
            put_varint(out, self.ring_version);
        };
        match &self.reply {
            Reply::Minted { dot, reached, repeated } => {
                tag(&mut out, MINTED);
                out.put_u8(*reached as u8);
                put_lone_dot(&mut out, dot);
                body = repeated.clone();
            }
            Reply::Acked { reached } => {
                tag(&mut out, ACKED);
                out.put_u8(*reached as u8);
            }
            Reply::Extra { reached } => {
                tag(&mut out, EXTRA);
                out.put_u8(*reached as u8);
            }
            Reply::Partial(record) => {
                tag(&mut out, PARTIAL);
                body = record.clone();
            }
            Reply::Gossip(state) => {
                tag(&mut out, GOSSIP);
                body = state.clone();
            }
            Reply::Standing(standing) => {
                tag(&mut out, STANDING);
                out.put_u8(*standing as u8);
            }
            Reply::Handover { generation, keys, urgent, alive } => {
                tag(&mut out, HANDOVER);
                out.put_u8(u8::from(*urgent));
                put_varint(&mut out, *generation);
                put_varint(&mut out, *keys);
                put_varint(&mut out, alive.len() as u64);
                for node in alive {
                    put_bytes(&mut out, node.as_str().as_bytes());
                }
            }
            Reply::Found(record) => {
                tag(&mut out, FOUND);
                body = record.clone();
            }
            Reply::Absent => tag(&mut out, ABSENT),
            Reply::Page { more, records } => {
                tag(&mut out, PAGE);
                out.put_u8(u8::from(*more));
                body = records.clone();
            }
            Reply::Hello => tag(&mut out, HELLO_TOO),
            Reply::Status(json) => {
                tag(&mut out, STATUS_IS);
                body = json.clone();
            }
            Reply::Attested { keeps, agreed } => {
                tag(&mut out, ATTESTED);
                out.put_u8(u8::from(*keeps));
                put_varint(&mut out, agreed.len() as u64);
                agreed.iter().for_each(|agreed| out.put_u8(u8::from(*agreed)));
            }
            Reply::Sums(sums) => {
                tag(&mut out, SUMS);
                put_sums(&mut out, sums);
            }
            Reply::Clocks { more, clocks } => {
                tag(&mut out, CLOCKS);
                out.put_u8(u8::from(*more));
                put_clocks(&mut out, clocks);
            }
            Reply::Ring(document) => {
                tag(&mut out, RING);
                body = document.clone();
            }
            Reply::Refused(refusal) => {
                tag(&mut out, REFUSED);
                encode_refusal(&mut out, refusal);
            }
        }
        (out.freeze(), body)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let tag = r.u8("reply tag")?;
        let ring_version = r.varint("ring version")?;
        let reply = match tag {
            MINTED => {
                let reached = read_durability(&mut r)?;
                let dot = read_lone_dot(&mut r)?;
                Reply::Minted { dot, reached, repeated: r.rest() }
            }
            ACKED => Reply::Acked { reached: read_durability(&mut r)? },
            EXTRA => Reply::Extra { reached: read_durability(&mut r)? },
            PARTIAL => Reply::Partial(r.rest()),
            GOSSIP => Reply::Gossip(r.rest()),
            STANDING => {
                let standing = Standing::from_u8(r.u8("standing")?);
                Reply::Standing(standing.ok_or(DecodeError::Malformed("standing"))?)
            }
            HANDOVER => {
                let urgent = read_flag(&mut r, "urgent")?;
                let (generation, keys) = (r.varint("generation")?, r.varint("keys")?);
                let count = r.count(1, "alive")?;
                let alive = (0..count).map(|_| read_named_node(&mut r)).collect::<Result<_, _>>()?;
                r.end("handover")?;
                Reply::Handover { generation, keys, urgent, alive }
            }
            ATTESTED => {
                let keeps = read_flag(&mut r, "keeps")?;
                let count = r.count(1, "agreed")?;
                let agreed = (0..count).map(|_| read_flag(&mut r, "agreed")).collect::<Result<_, _>>()?;
                r.end("attested")?;
                Reply::Attested { keeps, agreed }
            }
            SUMS => Reply::Sums(read_sums(&mut r)?),
            CLOCKS => {
                let more = read_flag(&mut r, "more")?;
                Reply::Clocks { more, clocks: read_clocks(&mut r)? }
            }
            FOUND => Reply::Found(r.rest()),
            ABSENT => Reply::Absent,
            PAGE => Reply::Page { more: read_flag(&mut r, "more")?, records: r.rest() },
            HELLO_TOO => Reply::Hello,
            STATUS_IS => Reply::Status(r.rest()),
            RING => Reply::Ring(r.rest()),
            REFUSED => Reply::Refused(decode_refusal(&mut r)?),
            _ => return Err(DecodeError::Malformed("reply tag")),
        };
        Ok(Self { ring_version, reply })
    }
}

fn encode_refusal(out: &mut BytesMut, refusal: &Refusal) {
    match refusal {
        Refusal::StaleRing => out.put_u8(1),
        Refusal::NotAHome => out.put_u8(2),
        Refusal::CatchingUp => out.put_u8(3),
        Refusal::Overloaded => out.put_u8(4),
        Refusal::Late => out.put_u8(5),
        Refusal::Precondition(clock) => {
            out.put_u8(6);
            encode_clock(out, clock);
        }
        Refusal::TooManySiblings(clock) => {
            out.put_u8(7);
            encode_clock(out, clock);
        }
        Refusal::Unable(why) => {
            out.put_u8(8);
            put_bytes(out, why.as_bytes());
        }
        Refusal::Malformed(why) => {
            out.put_u8(9);
            put_bytes(out, why.as_bytes());
        }
    }
}

fn decode_refusal(r: &mut Reader) -> Result<Refusal, DecodeError> {
    Ok(match r.u8("refusal")? {
        1 => Refusal::StaleRing,
        2 => Refusal::NotAHome,
        3 => Refusal::CatchingUp,
        4 => Refusal::Overloaded,
        5 => Refusal::Late,
        6 => Refusal::Precondition(decode_clock(r)?),
        7 => Refusal::TooManySiblings(decode_clock(r)?),
        8 => Refusal::Unable(r.text("refusal")?),
        9 => Refusal::Malformed(r.text("refusal")?),
        _ => return Err(DecodeError::Malformed("refusal")),
    })
}
