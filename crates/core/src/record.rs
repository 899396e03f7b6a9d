//! The record: one key with its container, and its one binary form. The same bytes travel on the wire and
//! lie in the log, in segments and in hints.
//!
//! ```text
//! u8 version | bytes namespace | bytes key | actor table | clock seen | varint siblings
//!   per sibling: varint actor | varint n | u8 kind | varint written_ms | varint expires_ms (0: never)
//!                u128 request | clock context
//!                bytes content_type | varint pairs, (bytes name, bytes value)… | bytes value (or varint size)
//! u64 checksum of all before it
//! ```
//! Equal records have equal bytes.

use bytes::{BufMut, Bytes, BytesMut};

use crate::clock::{Actor, Clock, Dot, MAX_COUNT, decode_actors, encode_actors};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::container::{Container, Sibling};
use crate::hash::{KeyHash, checksum};
use crate::names::{Key, Namespace};

/// The version written.
pub const RECORD_VERSION: u8 = 1;
/// Most `Cartwheel-Meta-*` headers of one version.
pub const MAX_META_PAIRS: usize = 64;
/// Most bytes of all siblings' values of one key: a mint that would make it more is refused. Concurrent mints at
/// several nodes can each add up to as much; frames have room for that.
pub const MAX_SIBLING_BYTES: u64 = 16 * 1024 * 1024;
/// Most bytes of all `Cartwheel-Meta-*` names and values of one version.
pub const MAX_META_BYTES: usize = 4096;

/// What a version holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// These bytes.
    Present(Bytes),
    /// So many bytes, left out of this copy (an answer to HEAD).
    Omitted(u64),
    /// Nothing: a deletion.
    Deleted,
}

impl Value {
    /// The size of the value in bytes; 0 for a deletion.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Present(bytes) => bytes.len() as u64,
            Self::Omitted(size) => *size,
            Self::Deleted => 0,
        }
    }

    /// Is it a deletion?
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        matches!(self, Self::Deleted)
    }
}

/// A version: the value and what the writer said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What was written.
    pub value: Value,
    /// Wall clock of the coordinating gateway, milliseconds since 1970. For people; decides nothing.
    pub written_ms: u64,
    /// When it ends by itself, milliseconds since 1970, as its gateway fixed it; 0 if never. From then on it is
    /// what a deletion is.
    pub expires_ms: u64,
    /// The write's request id: a repeated write with the same id is the same write.
    pub request: u128,
    /// What the writer had seen: the provenance of this version.
    pub context: Clock,
    /// `Content-Type` as given; empty if none.
    pub content_type: Bytes,
    /// `Cartwheel-Meta-*`: names without the prefix, in lower case, and values.
    pub meta: Vec<(Bytes, Bytes)>,
}

impl Version {
    /// The same version with its value left out.
    #[must_use]
    pub fn without_value(&self) -> Self {
        let value = match &self.value {
            Value::Present(bytes) => Value::Omitted(bytes.len() as u64),
            other => other.clone(),
        };
        Self { value, ..self.clone() }
    }

    /// The same version as it is at `now_ms`: a deletion once it has expired.
    #[must_use]
    pub fn as_of(self, now_ms: u64) -> Self {
        let expired = self.expires_ms != 0 && self.expires_ms <= now_ms;
        if expired { Self { value: Value::Deleted, ..self } } else { self }
    }
}

/// The part of a request id that tells repeated writes of one key apart.
#[must_use]
pub fn request_tag(request: u128) -> u64 {
    let (high, low) = KeyHash(request).halves();
    high ^ low
}

/// What the clock index keeps of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brief {
    /// Is it a deletion?
    pub deleted: bool,
    /// When it ends by itself, milliseconds since 1970; 0 if never.
    pub expires_ms: u64,
    /// The [`request_tag`] of its request id.
    pub request: u64,
    /// The size of its value in bytes.
    pub size: u64,
}

impl Brief {
    /// Is there nothing of it to be read at `now_ms`?
    #[must_use]
    pub fn is_dead(&self, now_ms: u64) -> bool {
        self.deleted || (self.expires_ms != 0 && self.expires_ms <= now_ms)
    }
}

impl From<&Version> for Brief {
    fn from(version: &Version) -> Self {
        Self {
            deleted: version.value.is_deleted(),
            expires_ms: version.expires_ms,
            request: request_tag(version.request),
            size: version.value.size(),
        }
    }
}

/// One key and all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key's namespace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// Its versions.
    pub container: Container<Version>,
}

const KIND_PRESENT: u8 = 0;
const KIND_DELETED: u8 = 1;
const KIND_OMITTED: u8 = 2;

fn actors_of<T>(container: &Container<T>, context: impl Fn(&T) -> Option<&Clock>) -> Vec<Actor> {
    let mut actors: Vec<Actor> = container.seen().entries().iter().map(|e| e.actor.clone()).collect();
    let known = actors.len();
    for s in container.siblings() {
        for e in context(&s.version).into_iter().flat_map(Clock::entries) {
            if actors[..known].binary_search(&e.actor).is_err() {
                actors.push(e.actor.clone());
            }
        }
    }
    if actors.len() > known {
        actors.sort();
        actors.dedup();
    }
    actors
}

fn put_dot(out: &mut impl BufMut, dot: &Dot, actors: &[Actor]) {
    put_varint(out, actors.binary_search(&dot.actor).unwrap_or(usize::MAX) as u64);
    put_varint(out, dot.n);
}

fn read_dot(reader: &mut Reader, actors: &[Actor]) -> Result<Dot, DecodeError> {
    let at = usize::try_from(reader.varint("dot")?).unwrap_or(usize::MAX);
    let actor = actors.get(at).ok_or(DecodeError::Malformed("dot"))?.clone();
    let n = reader.varint("dot")?;
    if (1..=MAX_COUNT).contains(&n) { Ok(Dot { actor, n }) } else { Err(DecodeError::Malformed("dot")) }
}

/// Checks what [`Container::from_parts`] would otherwise mend: order, and that `seen` covers the siblings.
fn checked<T>(seen: Clock, siblings: Vec<Sibling<T>>) -> Result<Container<T>, DecodeError> {
    let sorted = siblings.windows(2).all(|w| w[0].dot < w[1].dot);
    if !sorted || !siblings.iter().all(|s| seen.contains(&s.dot)) {
        return Err(DecodeError::Malformed("siblings"));
    }
    Ok(Container::from_parts(seen, siblings))
}

impl Record {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let values: usize = self
            .container
            .siblings()
            .iter()
            .map(|s| match &s.version.value {
                Value::Present(bytes) => bytes.len(),
                _ => 0,
            })
            .sum();
        let mut out = BytesMut::with_capacity(values + 256 + self.key.as_bytes().len());
        self.encode_into(&mut out);
        out.freeze()
    }

    /// Appends the record's bytes to `out`.
    pub fn encode_into(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u8(RECORD_VERSION);
        put_bytes(out, self.namespace.as_bytes());
        put_bytes(out, self.key.as_bytes());
        let actors = actors_of(&self.container, |v| Some(&v.context));
        encode_actors(out, &actors);
        self.container.seen().encode(out, &actors);
        put_varint(out, self.container.siblings().len() as u64);
        for s in self.container.siblings() {
            put_dot(out, &s.dot, &actors);
            encode_version(out, &s.version, &actors);
        }
        let sum = checksum(&out[start..]);
        out.put_u64_le(sum);
    }

    /// Reads a record; values share the memory of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`]; the checksum is verified first.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let body = bytes.len().checked_sub(8).ok_or(DecodeError::Truncated("record"))?;
        if checksum(&bytes[..body]) != Reader::new(bytes.slice(body..)).u64("record checksum")? {
            return Err(DecodeError::Checksum("record"));
        }
        let mut reader = Reader::new(bytes.slice(..body));
        let (namespace, key) = decode_names(&mut reader)?;
        let actors = decode_actors(&mut reader)?;
        let seen = Clock::decode(&mut reader, &actors)?;
        let count = reader.count(8, "siblings")?;
        let mut siblings = Vec::with_capacity(count);
        for _ in 0..count {
            let dot = read_dot(&mut reader, &actors)?;
            siblings.push(Sibling { dot, version: decode_version(&mut reader, &actors)? });
        }
        reader.end("record")?;
        Ok(Self { namespace, key, container: checked(seen, siblings)? })
    }

    /// Reads only whose record it is, without verifying the rest.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode_key(bytes: &Bytes) -> Result<(Namespace, Key), DecodeError> {
        decode_names(&mut Reader::new(bytes.clone()))
    }

    /// The same record without its values: what HEAD needs.
    #[must_use]
    pub fn without_values(&self) -> Self {
        let container = self.container.map(Version::without_value);
        Self { namespace: self.namespace.clone(), key: self.key.clone(), container }
    }
}

fn decode_names(reader: &mut Reader) -> Result<(Namespace, Key), DecodeError> {
    let version = reader.u8("record")?;
    if version != RECORD_VERSION {
        return Err(DecodeError::Version { what: "record", found: version, known: RECORD_VERSION });
    }
    let namespace =
        Namespace::from_bytes(reader.bytes("namespace")?).map_err(|_| DecodeError::Malformed("namespace"))?;
    let key = Key::new(reader.bytes("key")?).map_err(|_| DecodeError::Malformed("key"))?;
    Ok((namespace, key))
}

fn encode_version(out: &mut BytesMut, v: &Version, actors: &[Actor]) {
    out.put_u8(match v.value {
        Value::Present(_) => KIND_PRESENT,
        Value::Deleted => KIND_DELETED,
        Value::Omitted(_) => KIND_OMITTED,
    });
    put_varint(out, v.written_ms);
    put_varint(out, v.expires_ms);
    out.put_u128(v.request);
    v.context.encode(out, actors);
    put_bytes(out, &v.content_type);
    put_varint(out, v.meta.len() as u64);
    for (name, value) in &v.meta {
        put_bytes(out, name);
        put_bytes(out, value);
    }
    match &v.value {
        Value::Present(bytes) => put_bytes(out, bytes),
        Value::Omitted(size) => put_varint(out, *size),
        Value::Deleted => {}
    }
}

fn decode_version(reader: &mut Reader, actors: &[Actor]) -> Result<Version, DecodeError> {
    let kind = reader.u8("version kind")?;
    let written_ms = reader.varint("written_ms")?;
    let expires_ms = reader.varint("expires_ms")?;
    let request = reader.u128("request")?;
    let context = Clock::decode(reader, actors)?;
    let content_type = reader.bytes("content type")?;
    let pairs = reader.count(2, "meta")?;
    if pairs > MAX_META_PAIRS {
        return Err(DecodeError::Malformed("meta"));
    }
    let mut meta = Vec::with_capacity(pairs);
    for _ in 0..pairs {
        meta.push((reader.bytes("meta name")?, reader.bytes("meta value")?));
    }
    let value = match kind {
        KIND_PRESENT => Value::Present(reader.bytes("value")?),
        KIND_OMITTED => Value::Omitted(reader.varint("value size")?),
        KIND_DELETED => Value::Deleted,
        _ => return Err(DecodeError::Malformed("version kind")),
    };
    Ok(Version { value, written_ms, expires_ms, request, context, content_type, meta })
}

/// The brief form of a container, as the clock index and the clock column of a segment keep it:
/// `actor table | clock seen | varint siblings, (varint actor, varint n, u8 deleted, varint expires_ms,
/// u64 request tag, varint size)…`.
pub fn encode_brief(out: &mut impl BufMut, brief: &Container<Brief>) {
    let actors = actors_of(brief, |_| None);
    encode_actors(out, &actors);
    brief.seen().encode(out, &actors);
    put_varint(out, brief.siblings().len() as u64);
    for s in brief.siblings() {
        put_dot(out, &s.dot, &actors);
        out.put_u8(u8::from(s.version.deleted));
        put_varint(out, s.version.expires_ms);
        out.put_u64_le(s.version.request);
        put_varint(out, s.version.size);
    }
}

/// Reads what [`encode_brief`] wrote.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_brief(reader: &mut Reader) -> Result<Container<Brief>, DecodeError> {
    let actors = decode_actors(reader)?;
    let seen = Clock::decode(reader, &actors)?;
    let count = reader.count(13, "siblings")?;
    let mut siblings = Vec::with_capacity(count);
    for _ in 0..count {
        let dot = read_dot(reader, &actors)?;
        let deleted = reader.u8("deleted")? == 1;
        let expires_ms = reader.varint("expires_ms")?;
        let (request, size) = (reader.u64("request")?, reader.varint("size")?);
        siblings.push(Sibling { dot, version: Brief { deleted, expires_ms, request, size } });
    }
    checked(seen, siblings)
}

/// A clock alone: `actor table | clock`.
pub fn encode_clock(out: &mut impl BufMut, clock: &Clock) {
    let actors: Vec<Actor> = clock.entries().iter().map(|e| e.actor.clone()).collect();
    encode_actors(out, &actors);
    clock.encode(out, &actors);
}

/// Reads what [`encode_clock`] wrote.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_clock(reader: &mut Reader) -> Result<Clock, DecodeError> {
    let actors = decode_actors(reader)?;
    Clock::decode(reader, &actors)
}

/// A version alone, its context's actors in a table before it.
pub fn encode_lone_version(out: &mut BytesMut, version: &Version) {
    let actors: Vec<Actor> = version.context.entries().iter().map(|e| e.actor.clone()).collect();
    encode_actors(out, &actors);
    encode_version(out, version, &actors);
}

/// Reads what [`encode_lone_version`] wrote.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_lone_version(reader: &mut Reader) -> Result<Version, DecodeError> {
    let actors = decode_actors(reader)?;
    decode_version(reader, &actors)
}

/// The strong entity tag of a set of versions: equal tags mean the same versions of the same key.
#[must_use]
pub fn etag<'a>(dots: impl IntoIterator<Item = &'a Dot>) -> String {
    let mut text = String::with_capacity(64);
    for dot in dots {
        text.push_str(&dot.to_string());
        text.push(',');
    }
    format!("\"{:016x}\"", checksum(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        let dot = |a: &str, n| Dot { actor: Actor::parse(a).unwrap(), n };
        let context: Clock = [dot("node-a.1", 1), dot("node-c.2", 5)].into_iter().collect();
        let version = |value| Version {
            value,
            written_ms: 1_700_000_000_000,
            expires_ms: 1_900_000_000_000,
            request: 7,
            context: context.clone(),
            content_type: Bytes::from_static(b"text/plain"),
            meta: vec![(Bytes::from_static(b"colour"), Bytes::from_static(b"red"))],
        };
        let mut container = Container::delta(
            &context,
            dot("node-a.1", 2),
            version(Value::Present(Bytes::from_static(b"hello"))),
        );
        container.sync(Container::delta(&Clock::new(), dot("node-b.1", 1), version(Value::Deleted)));
        Record {
            namespace: Namespace::new(b"carts").unwrap(),
            key: Key::new(Bytes::from_static(b"alice")).unwrap(),
            container,
        }
    }

    #[test]
    fn round_trips_with_and_without_values() {
        let r = record();
        assert_eq!(Record::decode(&r.encode()).unwrap(), r);
        let head = r.without_values();
        assert_eq!(Record::decode(&head.encode()).unwrap(), head);
        assert!(head.encode().len() < r.encode().len());
        assert_eq!(Record::decode_key(&r.encode()).unwrap(), (r.namespace, r.key));
    }

    /// The format is frozen: change it only with a new version number and a new golden file.
    #[test]
    fn golden_file() {
        let golden = crate::golden::check("record-v1.bin", &record().encode());
        assert_eq!(Record::decode(&golden.into()).unwrap(), record());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = record().encode();
        for at in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(Record::decode(&bad.into()).is_err(), "bit {at}");
        }
        for len in 0..good.len() {
            assert!(Record::decode(&good.slice(..len)).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = record().encode().to_vec();
        bytes[0] = 9;
        let body = bytes.len() - 8;
        let sum = checksum(&bytes[..body]);
        bytes[body..].copy_from_slice(&sum.to_le_bytes());
        let want = DecodeError::Version { what: "record", found: 9, known: 1 };
        assert_eq!(Record::decode(&bytes.into()), Err(want));
    }

    proptest! {
        /// Past the checksum too, no bytes make the decoder panic or reserve without bound.
        #[test]
        fn no_bytes_panic(mut bytes: Vec<u8>) {
            bytes.insert(0, RECORD_VERSION);
            let sum = checksum(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            let _ = Record::decode(&bytes.clone().into());
            let _ = decode_brief(&mut Reader::new(bytes.into()));
        }
    }

    #[test]
    fn brief_forms_round_trip() {
        let brief = record().container.map(|v| Brief::from(v));
        let mut out = Vec::new();
        encode_brief(&mut out, &brief);
        assert_eq!(decode_brief(&mut Reader::new(out.into())).unwrap(), brief);
    }

    #[test]
    fn etags_name_sets_of_versions() {
        let r = record();
        let dots: Vec<&Dot> = r.container.siblings().iter().map(|s| &s.dot).collect();
        assert_ne!(etag([dots[0]]), etag([dots[1]]));
        assert_ne!(etag([dots[0]]), etag(dots.clone()));
        assert_eq!(etag(dots.clone()).len(), 18);
    }
}
