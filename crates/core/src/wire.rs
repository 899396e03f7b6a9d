//! What gateways and storage nodes say to each other, and its binary form inside frames.
//!
//! A request starts with a tag and the caller's ring version; records travel in their own form
//! ([`crate::record`]) as the last field, so that a value is never re-encoded or copied.

use bytes::{BufMut, Bytes, BytesMut};

use crate::clock::{Actor, Clock, Dot, decode_actors, encode_actors};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::hash::KeyHash;
use crate::names::{Key, Namespace, NodeId};
use crate::quorum::Durability;
use crate::record::{Version, decode_clock, decode_lone_version, encode_clock, encode_lone_version};

/// Most entity tags in one precondition.
pub const MAX_TAGS: usize = 64;

/// Which versions a precondition names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any value.
    Any,
    /// One of these entity tags, quotes included.
    List(Vec<String>),
}

/// What must hold at the minting replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    None,
    /// `If-Match`: the current set of versions is one of these.
    IfMatch(Tags),
    /// `If-None-Match`: it is none of these.
    IfNoneMatch(Tags),
}

/// A call to a storage node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Make a new version of a key: the node gives it a dot. `version.context` is what the writer has seen.
    Mint {
        /// The key's namespace.
        namespace: Namespace,
        /// The key.
        key: Key,
        /// The version.
        version: Version,
        /// When to answer.
        durability: Durability,
        /// What must hold.
        precondition: Precondition,
        /// Most siblings the key may have afterwards.
        max_siblings: u32,
        /// The home that a fallback stands in for.
        hint_for: Option<NodeId>,
    },
    /// Take in a delta or a whole record.
    Replicate {
        /// When to answer.
        durability: Durability,
        /// The home that a fallback keeps it for.
        hint_for: Option<NodeId>,
        /// The record's bytes.
        record: Bytes,
    },
    /// Do you hold this version? The answer comes when it is as durable as asked.
    Confirm {
        /// The key's namespace.
        namespace: Namespace,
        /// The key.
        key: Key,
        /// The version.
        dot: Dot,
        /// When to answer.
        durability: Durability,
    },
    /// What do you hold of this key?
    Read {
        /// The key's namespace.
        namespace: Namespace,
        /// The key.
        key: Key,
        /// With the values, or only their sizes?
        values: bool,
    },
    /// A page of the records of one partition, ascending by hash.
    Scan {
        /// The partition.
        partition: u32,
        /// Records after this hash and key.
        after: Option<(KeyHash, Bytes)>,
        /// About so many bytes.
        bytes: u32,
    },
    /// Do you know this ring version? (The version is in the envelope.)
    Hello,
    /// How are you?
    Status,
}

/// Why a node did not do as asked. Nothing was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The caller's ring is older than the node's.
    StaleRing,
    /// The key is not this node's.
    NotAHome,
    /// The node does not hold its range yet and can't vote.
    CatchingUp,
    /// A bounded queue is full.
    Overloaded,
    /// The deadline passed before the work began.
    Late,
    /// The precondition does not hold; the replica's clock.
    Precondition(Clock),
    /// The key would get too many siblings; the replica's clock.
    TooManySiblings(Clock),
    /// The node can't: what is wrong.
    Unable(String),
    /// The request makes no sense: what is wrong.
    Malformed(String),
}

/// An answer of a storage node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The version has this dot.
    Minted {
        /// Its dot.
        dot: Dot,
        /// How far it is.
        reached: Durability,
        /// Where the same request id was carried out before: that write's delta, to be replicated instead.
        repeated: Bytes,
    },
    /// The record is taken in.
    Acked {
        /// How far it is.
        reached: Durability,
    },
    /// The record held.
    Found(Bytes),
    /// Never heard of it.
    Absent,
    /// A page of records; `more` if there are others after it.
    Page {
        /// Are there others?
        more: bool,
        /// Length-prefixed records.
        records: Bytes,
    },
    /// The node knows this ring version.
    Hello,
    /// How the node is: JSON, for people.
    Status(Bytes),
    /// It did nothing.
    Refused(Refusal),
}

/// A request with what every request carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The caller's ring version.
    pub ring_version: u64,
    /// The request.
    pub request: Request,
}

/// An answer with what every answer carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The node's ring version.
    pub ring_version: u64,
    /// The reply.
    pub reply: Reply,
}

/// A message as two pieces: what was encoded, and bytes that are sent as they are.
pub type Pieces = (Bytes, Bytes);

const MINT: u8 = 1;
const REPLICATE: u8 = 2;
const READ: u8 = 3;
const SCAN: u8 = 4;
const HELLO: u8 = 5;
const STATUS: u8 = 6;
const CONFIRM: u8 = 7;

fn put_tags(out: &mut BytesMut, kind: u8, tags: &Tags) {
    out.put_u8(kind);
    match tags {
        Tags::Any => put_varint(out, 0),
        Tags::List(list) => {
            put_varint(out, list.len() as u64 + 1);
            for tag in list {
                put_bytes(out, tag.as_bytes());
            }
        }
    }
}

fn read_tags(reader: &mut Reader) -> Result<Tags, DecodeError> {
    let count = usize::try_from(reader.varint("tags")?).unwrap_or(usize::MAX);
    if count == 0 {
        return Ok(Tags::Any);
    }
    if count > MAX_TAGS + 1 {
        return Err(DecodeError::Malformed("tags"));
    }
    Ok(Tags::List((1..count).map(|_| reader.text("tag")).collect::<Result<_, _>>()?))
}

fn put_node(out: &mut BytesMut, node: Option<&NodeId>) {
    put_bytes(out, node.map_or(&[], |n| n.as_str().as_bytes()));
}

fn read_node(reader: &mut Reader) -> Result<Option<NodeId>, DecodeError> {
    let text = reader.text("node")?;
    if text.is_empty() {
        return Ok(None);
    }
    NodeId::new(&text).map(Some).map_err(|_| DecodeError::Malformed("node"))
}

fn read_durability(reader: &mut Reader) -> Result<Durability, DecodeError> {
    Durability::from_u8(reader.u8("durability")?).ok_or(DecodeError::Malformed("durability"))
}

fn read_key(reader: &mut Reader) -> Result<(Namespace, Key), DecodeError> {
    let namespace =
        Namespace::from_bytes(reader.bytes("namespace")?).map_err(|_| DecodeError::Malformed("namespace"))?;
    let key = Key::new(reader.bytes("key")?).map_err(|_| DecodeError::Malformed("key"))?;
    Ok((namespace, key))
}

fn put_lone_dot(out: &mut BytesMut, dot: &Dot) {
    encode_actors(out, std::slice::from_ref(&dot.actor));
    put_varint(out, dot.n);
}

fn read_lone_dot(reader: &mut Reader) -> Result<Dot, DecodeError> {
    let actors: Vec<Actor> = decode_actors(reader)?;
    let actor = actors.into_iter().next().ok_or(DecodeError::Malformed("dot"))?;
    Ok(Dot { actor, n: reader.varint("dot")? })
}

fn read_flag(reader: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
    match reader.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Malformed(what)),
    }
}

impl Call {
    /// The call's bytes.
    #[must_use]
    pub fn encode(&self) -> Pieces {
        let mut out = BytesMut::with_capacity(256);
        let mut body = Bytes::new();
        let tag = |out: &mut BytesMut, tag| {
            out.put_u8(tag);
            put_varint(out, self.ring_version);
        };
        match &self.request {
            Request::Mint { namespace, key, version, durability, precondition, max_siblings, hint_for } => {
                tag(&mut out, MINT);
                out.put_u8(*durability as u8);
                match precondition {
                    Precondition::None => out.put_u8(0),
                    Precondition::IfMatch(tags) => put_tags(&mut out, 1, tags),
                    Precondition::IfNoneMatch(tags) => put_tags(&mut out, 2, tags),
                }
                put_varint(&mut out, u64::from(*max_siblings));
                put_node(&mut out, hint_for.as_ref());
                put_bytes(&mut out, namespace.as_bytes());
                put_bytes(&mut out, key.as_bytes());
                encode_lone_version(&mut out, version);
            }
            Request::Replicate { durability, hint_for, record } => {
                tag(&mut out, REPLICATE);
                out.put_u8(*durability as u8);
                put_node(&mut out, hint_for.as_ref());
                body = record.clone();
            }
            Request::Confirm { namespace, key, dot, durability } => {
                tag(&mut out, CONFIRM);
                out.put_u8(*durability as u8);
                put_bytes(&mut out, namespace.as_bytes());
                put_bytes(&mut out, key.as_bytes());
                put_lone_dot(&mut out, dot);
            }
            Request::Read { namespace, key, values } => {
                tag(&mut out, READ);
                out.put_u8(u8::from(*values));
                put_bytes(&mut out, namespace.as_bytes());
                put_bytes(&mut out, key.as_bytes());
            }
            Request::Scan { partition, after, bytes } => {
                tag(&mut out, SCAN);
                put_varint(&mut out, u64::from(*partition));
                put_varint(&mut out, u64::from(*bytes));
                out.put_u8(u8::from(after.is_some()));
                if let Some((hash, key)) = after {
                    out.put_u128(hash.0);
                    put_bytes(&mut out, key);
                }
            }
            Request::Hello => tag(&mut out, HELLO),
            Request::Status => tag(&mut out, STATUS),
        }
        (out.freeze(), body)
    }

    /// Reads a call.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let tag = r.u8("request tag")?;
        let ring_version = r.varint("ring version")?;
        let request = match tag {
            MINT => {
                let durability = read_durability(&mut r)?;
                let precondition = match r.u8("precondition")? {
                    0 => Precondition::None,
                    1 => Precondition::IfMatch(read_tags(&mut r)?),
                    2 => Precondition::IfNoneMatch(read_tags(&mut r)?),
                    _ => return Err(DecodeError::Malformed("precondition")),
                };
                let max_siblings = u32::try_from(r.varint("max siblings")?)
                    .map_err(|_| DecodeError::Malformed("max siblings"))?;
                let hint_for = read_node(&mut r)?;
                let (namespace, key) = read_key(&mut r)?;
                let version = decode_lone_version(&mut r)?;
                r.end("mint")?;
                Request::Mint { namespace, key, version, durability, precondition, max_siblings, hint_for }
            }
            REPLICATE => {
                let durability = read_durability(&mut r)?;
                let hint_for = read_node(&mut r)?;
                Request::Replicate { durability, hint_for, record: r.rest() }
            }
            CONFIRM => {
                let durability = read_durability(&mut r)?;
                let (namespace, key) = read_key(&mut r)?;
                let dot = read_lone_dot(&mut r)?;
                r.end("confirm")?;
                Request::Confirm { namespace, key, dot, durability }
            }
            READ => {
                let values = read_flag(&mut r, "values")?;
                let (namespace, key) = read_key(&mut r)?;
                r.end("read")?;
                Request::Read { namespace, key, values }
            }
            SCAN => {
                let narrow = |n| u32::try_from(n).map_err(|_| DecodeError::Malformed("scan"));
                let partition = narrow(r.varint("partition")?)?;
                let bytes = narrow(r.varint("bytes")?)?;
                let after = if read_flag(&mut r, "after")? {
                    Some((KeyHash(r.u128("after")?), r.bytes("after")?))
                } else {
                    None
                };
                r.end("scan")?;
                Request::Scan { partition, after, bytes }
            }
            HELLO => {
                r.end("hello")?;
                Request::Hello
            }
            STATUS => {
                r.end("status")?;
                Request::Status
            }
            _ => return Err(DecodeError::Malformed("request tag")),
        };
        Ok(Self { ring_version, request })
    }
}

const MINTED: u8 = 1;
const ACKED: u8 = 2;
const FOUND: u8 = 3;
const ABSENT: u8 = 4;
const PAGE: u8 = 5;
const HELLO_TOO: u8 = 6;
const REFUSED: u8 = 7;
const STATUS_IS: u8 = 8;

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
            FOUND => Reply::Found(r.rest()),
            ABSENT => Reply::Absent,
            PAGE => Reply::Page { more: read_flag(&mut r, "more")?, records: r.rest() },
            HELLO_TOO => Reply::Hello,
            STATUS_IS => Reply::Status(r.rest()),
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

/// Appends one record to the bytes of a page.
pub fn push_to_page(page: &mut BytesMut, record: &[u8]) {
    put_bytes(page, record);
}

/// Splits the bytes of a page into records.
///
/// # Errors
/// [`DecodeError`].
pub fn split_page(records: Bytes) -> Result<Vec<Bytes>, DecodeError> {
    let mut reader = Reader::new(records);
    let mut out = Vec::new();
    while reader.remaining() > 0 {
        out.push(reader.bytes("page")?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::record::Value;

    fn calls() -> Vec<Call> {
        let namespace = Namespace::new(b"carts").unwrap();
        let key = Key::new(Bytes::from_static(b"alice")).unwrap();
        let context: Clock = [Dot { actor: Actor::parse("node-a.1").unwrap(), n: 3 }].into_iter().collect();
        let version = Version {
            value: Value::Present(Bytes::from_static(b"v")),
            written_ms: 5,
            request: 6,
            context,
            content_type: Bytes::new(),
            meta: Vec::new(),
        };
        let node = NodeId::new("node-b").unwrap();
        [
            Request::Mint {
                namespace: namespace.clone(),
                key: key.clone(),
                version,
                durability: Durability::Bucket,
                precondition: Precondition::IfMatch(Tags::List(vec!["\"x\"".into(), "\"y\"".into()])),
                max_siblings: 100,
                hint_for: None,
            },
            Request::Replicate {
                durability: Durability::Disk,
                hint_for: Some(node),
                record: Bytes::from_static(b"record"),
            },
            Request::Confirm {
                namespace: namespace.clone(),
                key: key.clone(),
                dot: Dot { actor: Actor::parse("node-a.1").unwrap(), n: 4 },
                durability: Durability::Disk,
            },
            Request::Read { namespace, key, values: true },
            Request::Scan { partition: 7, after: Some((KeyHash(9), Bytes::from_static(b"k"))), bytes: 1024 },
            Request::Scan { partition: 7, after: None, bytes: 1024 },
            Request::Hello,
            Request::Status,
        ]
        .into_iter()
        .map(|request| Call { ring_version: 42, request })
        .collect()
    }

    fn answers() -> Vec<Answer> {
        let dot = Dot { actor: Actor::parse("node-a.1").unwrap(), n: 3 };
        let clock: Clock = [dot.clone()].into_iter().collect();
        let mut replies = vec![
            Reply::Minted { dot, reached: Durability::Disk, repeated: Bytes::from_static(b"delta") },
            Reply::Acked { reached: Durability::Memory },
            Reply::Found(Bytes::from_static(b"record")),
            Reply::Absent,
            Reply::Page { more: true, records: Bytes::from_static(b"records") },
            Reply::Hello,
            Reply::Status(Bytes::from_static(b"{}")),
        ];
        replies.extend(
            [
                Refusal::StaleRing,
                Refusal::NotAHome,
                Refusal::CatchingUp,
                Refusal::Overloaded,
                Refusal::Late,
                Refusal::Precondition(clock.clone()),
                Refusal::TooManySiblings(clock),
                Refusal::Unable("disk".into()),
                Refusal::Malformed("no".into()),
            ]
            .map(Reply::Refused),
        );
        replies.into_iter().map(|reply| Answer { ring_version: 42, reply }).collect()
    }

    fn join((head, body): Pieces) -> Bytes {
        [head, body].concat().into()
    }

    #[test]
    fn everything_round_trips() {
        for call in calls() {
            assert_eq!(Call::decode(join(call.encode())).unwrap(), call);
        }
        for answer in answers() {
            assert_eq!(Answer::decode(join(answer.encode())).unwrap(), answer);
        }
    }

    #[test]
    fn golden_files() {
        let calls: Vec<u8> = calls().iter().flat_map(|c| join(c.encode()).to_vec()).collect();
        crate::golden::check("calls-v1.bin", &calls);
        let answers: Vec<u8> = answers().iter().flat_map(|a| join(a.encode()).to_vec()).collect();
        crate::golden::check("answers-v1.bin", &answers);
    }

    #[test]
    fn pages_split_as_they_were_joined() {
        let mut page = BytesMut::new();
        push_to_page(&mut page, b"one");
        push_to_page(&mut page, b"");
        assert_eq!(split_page(page.freeze()).unwrap(), ["one", ""]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Call::decode(bytes.clone().into());
            let _ = Answer::decode(bytes.clone().into());
            let _ = split_page(bytes.into());
        }
    }
}
