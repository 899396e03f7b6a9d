//! Calls as bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Call, Deceased, MAX_DECEASED, MAX_TAGS, Pieces, Precondition, Repair, Request, Tags};
use crate::clock::{Actor, Dot, MAX_COUNT, decode_actors, encode_actors};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::frame::FrameVersion;
use crate::hash::KeyHash;
use crate::names::{Key, Namespace, NodeId};
use crate::quorum::Durability;
use crate::record::{decode_lone_version, encode_lone_version};

const MINT: u8 = 1;
const REPLICATE: u8 = 2;
const READ: u8 = 3;
const SCAN: u8 = 4;
const HELLO: u8 = 5;
const STATUS: u8 = 6;
const CONFIRM: u8 = 7;
const GOSSIP: u8 = 8;
const PROBE: u8 = 9;
const COME_BACK: u8 = 10;
const HINTS: u8 = 11;
const TOOK_HINTS: u8 = 12;
const OFFER: u8 = 13;
const ATTEST: u8 = 14;
const REAP: u8 = 15;
const REPAIR: u8 = 16;
const RING: u8 = 17;

/// The version of frames that the call of which `head` is the beginning came with: a connection of an older one does
/// not carry it.
#[must_use]
pub fn since(head: &[u8]) -> FrameVersion {
    if head.first() == Some(&RING) { FrameVersion::Two } else { FrameVersion::One }
}

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

pub(super) fn read_named_node(reader: &mut Reader) -> Result<NodeId, DecodeError> {
    read_node(reader)?.ok_or(DecodeError::Malformed("node"))
}

fn put_deceased(out: &mut BytesMut, partition: u32, keys: &[Deceased]) {
    put_varint(out, u64::from(partition));
    put_varint(out, keys.len() as u64);
    for key in keys {
        out.put_u128(key.hash.0);
        out.put_u64_le(key.leaf);
    }
}

fn read_deceased(r: &mut Reader) -> Result<(u32, Vec<Deceased>), DecodeError> {
    let partition = read_u32(r, "partition")?;
    let count = r.count(24, "keys")?;
    if count > MAX_DECEASED {
        return Err(DecodeError::Malformed("keys"));
    }
    let mut keys = Vec::with_capacity(count);
    for _ in 0..count {
        keys.push(Deceased { hash: KeyHash(r.u128("key")?), leaf: r.u64("leaf")? });
    }
    Ok((partition, keys))
}

fn put_cursor(out: &mut BytesMut, after: Option<&(KeyHash, Bytes)>) {
    out.put_u8(u8::from(after.is_some()));
    if let Some((hash, key)) = after {
        out.put_u128(hash.0);
        put_bytes(out, key);
    }
}

fn read_cursor(r: &mut Reader) -> Result<Option<(KeyHash, Bytes)>, DecodeError> {
    if read_flag(r, "after")? { Ok(Some((KeyHash(r.u128("after")?), r.bytes("after")?))) } else { Ok(None) }
}

fn read_u32(r: &mut Reader, what: &'static str) -> Result<u32, DecodeError> {
    u32::try_from(r.varint(what)?).map_err(|_| DecodeError::Malformed(what))
}

pub(super) fn read_durability(reader: &mut Reader) -> Result<Durability, DecodeError> {
    Durability::from_u8(reader.u8("durability")?).ok_or(DecodeError::Malformed("durability"))
}

fn read_key(reader: &mut Reader) -> Result<(Namespace, Key), DecodeError> {
    let namespace =
        Namespace::from_bytes(reader.bytes("namespace")?).map_err(|_| DecodeError::Malformed("namespace"))?;
    let key = Key::new(reader.bytes("key")?).map_err(|_| DecodeError::Malformed("key"))?;
    Ok((namespace, key))
}

pub(super) fn put_lone_dot(out: &mut BytesMut, dot: &Dot) {
    encode_actors(out, std::slice::from_ref(&dot.actor));
    put_varint(out, dot.n);
}

pub(super) fn read_lone_dot(reader: &mut Reader) -> Result<Dot, DecodeError> {
    let [actor] =
        <[Actor; 1]>::try_from(decode_actors(reader)?).map_err(|_| DecodeError::Malformed("dot"))?;
    let n = reader.varint("dot")?;
    if (1..=MAX_COUNT).contains(&n) { Ok(Dot { actor, n }) } else { Err(DecodeError::Malformed("dot")) }
}

pub(super) fn read_flag(reader: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
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
            Request::Mint {
                namespace,
                key,
                version,
                durability,
                precondition,
                max_siblings,
                hint_for,
                insist,
            } => {
                tag(&mut out, MINT);
                out.put_u8(*durability as u8);
                out.put_u8(u8::from(*insist));
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
            Request::Read { namespace, key, values, stands_for } => {
                tag(&mut out, READ);
                out.put_u8(u8::from(*values));
                put_node(&mut out, stands_for.as_ref());
                put_bytes(&mut out, namespace.as_bytes());
                put_bytes(&mut out, key.as_bytes());
            }
            Request::Scan { partition, after, bytes, age_ms } => {
                tag(&mut out, SCAN);
                put_varint(&mut out, u64::from(*partition));
                put_varint(&mut out, u64::from(*bytes));
                put_varint(&mut out, age_ms.map_or(0, |age| age.saturating_add(1)));
                put_cursor(&mut out, after.as_ref());
            }
            Request::Hello => tag(&mut out, HELLO),
            Request::Status => tag(&mut out, STATUS),
            Request::Gossip(state) => {
                tag(&mut out, GOSSIP);
                body = state.clone();
            }
            Request::Probe { hinted } => {
                tag(&mut out, PROBE);
                out.put_u8(u8::from(*hinted));
            }
            Request::ComeBack { home } => {
                tag(&mut out, COME_BACK);
                put_node(&mut out, Some(home));
            }
            Request::Hints { home, generation, after, bytes } => {
                tag(&mut out, HINTS);
                put_node(&mut out, Some(home));
                put_varint(&mut out, *generation);
                put_varint(&mut out, u64::from(*bytes));
                put_cursor(&mut out, after.as_ref());
            }
            Request::TookHints { home, generation } => {
                tag(&mut out, TOOK_HINTS);
                put_node(&mut out, Some(home));
                put_varint(&mut out, *generation);
            }
            Request::Offer { holder, urgent } => {
                tag(&mut out, OFFER);
                out.put_u8(u8::from(*urgent));
                put_node(&mut out, Some(holder));
            }
            Request::Attest { partition, homes, keys } => {
                tag(&mut out, ATTEST);
                put_varint(&mut out, homes.len() as u64);
                homes.iter().for_each(|home| put_node(&mut out, Some(home)));
                put_deceased(&mut out, *partition, keys);
            }
            Request::Reap { partition, keys } => {
                tag(&mut out, REAP);
                put_deceased(&mut out, *partition, keys);
            }
            Request::Repair(asked) => {
                tag(&mut out, REPAIR);
                asked.encode(&mut out);
            }
            Request::Ring => tag(&mut out, RING),
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
                let insist = read_flag(&mut r, "insist")?;
                let precondition = match r.u8("precondition")? {
                    0 => Precondition::None,
                    1 => Precondition::IfMatch(read_tags(&mut r)?),
                    2 => Precondition::IfNoneMatch(read_tags(&mut r)?),
                    _ => return Err(DecodeError::Malformed("precondition")),
                };
                let max_siblings = read_u32(&mut r, "max siblings")?;
                let hint_for = read_node(&mut r)?;
                let (namespace, key) = read_key(&mut r)?;
                let version = decode_lone_version(&mut r)?;
                r.end("mint")?;
                Request::Mint {
                    namespace,
                    key,
                    version,
                    durability,
                    precondition,
                    max_siblings,
                    hint_for,
                    insist,
                }
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
                let stands_for = read_node(&mut r)?;
                let (namespace, key) = read_key(&mut r)?;
                r.end("read")?;
                Request::Read { namespace, key, values, stands_for }
            }
            SCAN => {
                let (partition, bytes) = (read_u32(&mut r, "partition")?, read_u32(&mut r, "bytes")?);
                let age_ms = r.varint("age")?.checked_sub(1);
                let after = read_cursor(&mut r)?;
                r.end("scan")?;
                Request::Scan { partition, after, bytes, age_ms }
            }
            HELLO => {
                r.end("hello")?;
                Request::Hello
            }
            STATUS => {
                r.end("status")?;
                Request::Status
            }
            GOSSIP => Request::Gossip(r.rest()),
            PROBE => {
                let hinted = read_flag(&mut r, "hinted")?;
                r.end("probe")?;
                Request::Probe { hinted }
            }
            COME_BACK => {
                let home = read_named_node(&mut r)?;
                r.end("come back")?;
                Request::ComeBack { home }
            }
            HINTS => {
                let (home, generation) = (read_named_node(&mut r)?, r.varint("generation")?);
                let (bytes, after) = (read_u32(&mut r, "bytes")?, read_cursor(&mut r)?);
                r.end("hints")?;
                Request::Hints { home, generation, after, bytes }
            }
            TOOK_HINTS => {
                let (home, generation) = (read_named_node(&mut r)?, r.varint("generation")?);
                r.end("took hints")?;
                Request::TookHints { home, generation }
            }
            OFFER => {
                let urgent = read_flag(&mut r, "urgent")?;
                let holder = read_named_node(&mut r)?;
                r.end("offer")?;
                Request::Offer { holder, urgent }
            }
            ATTEST => {
                let count = r.count(2, "homes")?;
                let homes = (0..count).map(|_| read_named_node(&mut r)).collect::<Result<_, _>>()?;
                let (partition, keys) = read_deceased(&mut r)?;
                r.end("attest")?;
                Request::Attest { partition, homes, keys }
            }
            REAP => {
                let (partition, keys) = read_deceased(&mut r)?;
                r.end("reap")?;
                Request::Reap { partition, keys }
            }
            REPAIR => Request::Repair(Repair::decode(&mut r)?),
            RING => {
                r.end("ring")?;
                Request::Ring
            }
            _ => return Err(DecodeError::Malformed("request tag")),
        };
        Ok(Self { ring_version, request })
    }
}
