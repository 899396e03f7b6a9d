//! What gateways and storage nodes say to each other, and its binary form inside frames.
//!
//! A request starts with a tag and the caller's ring version; records travel in their own form
//! ([`crate::record`]) as the last field, so that a value is never re-encoded or copied.

mod answer;
mod call;
mod repair;

use bytes::{Bytes, BytesMut};

use crate::clock::{Clock, Dot};
use crate::codec::{DecodeError, Reader, put_bytes};
use crate::container::Container;
use crate::hash::KeyHash;
use crate::names::{Key, Namespace, NodeId};
use crate::quorum::Durability;
use crate::record::{Brief, Version, etag};
use crate::standing::Standing;
pub use call::since;
pub use repair::{MAX_FETCHED, MAX_SPANS, MAX_SUMS, Repair};

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

impl Precondition {
    /// Does it hold for a key of which this is known, whenever its versions end?
    #[must_use]
    pub fn holds(&self, known: &Container<Brief>) -> bool {
        self.holds_at(known, 0)
    }

    /// Does it hold at `now_ms` for a key of which this is known? A version that has ended by then is what a deletion
    /// is.
    #[must_use]
    pub fn holds_at(&self, known: &Container<Brief>, now_ms: u64) -> bool {
        let exists = known.siblings().iter().any(|s| !s.version.is_dead(now_ms));
        let matches = |tags: &Tags| {
            exists
                && match tags {
                    Tags::Any => true,
                    Tags::List(list) => list.contains(&etag(known.siblings().iter().map(|s| &s.dot))),
                }
        };
        match self {
            Self::None => true,
            Self::IfMatch(tags) => matches(tags),
            Self::IfNoneMatch(tags) => !matches(tags),
        }
    }
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
        /// Mint even if this home is catching up: no better one can be reached.
        insist: bool,
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
        /// The home that a fallback stands in for.
        stands_for: Option<NodeId>,
    },
    /// A page of the records of one partition, ascending by hash.
    Scan {
        /// The partition.
        partition: u32,
        /// Records after this hash and key.
        after: Option<(KeyHash, Bytes)>,
        /// About so many bytes.
        bytes: u32,
        /// At least what came in during the last so many milliseconds; `None` for everything.
        age_ms: Option<u64>,
    },
    /// Do you know this ring version? (The version is in the envelope.)
    Hello,
    /// How are you?
    Status,
    /// What I know of the members ([`crate::gossip`]); what do you know? Nothing, if a gateway asks.
    Gossip(Bytes),
    /// Do you count? `hinted`: the caller has let others stand in for you since it last asked.
    Probe {
        /// Were there stand-ins?
        hinted: bool,
    },
    /// `home` is back: keep no more hints for it, and hand over those that are kept.
    ComeBack {
        /// The caller.
        home: NodeId,
    },
    /// A page of the hints in memory for `home`, up to `generation`, ascending by hash.
    Hints {
        /// The caller.
        home: NodeId,
        /// As `ComeBack` was answered.
        generation: u64,
        /// Hints after this hash and key.
        after: Option<(KeyHash, Bytes)>,
        /// About so many bytes.
        bytes: u32,
    },
    /// `home` has persisted the hints up to `generation`: let go of them.
    TookHints {
        /// The caller.
        home: NodeId,
        /// As `ComeBack` was answered.
        generation: u64,
    },
    /// The caller keeps hints for you: come and take them.
    Offer {
        /// The caller.
        holder: NodeId,
        /// There are some that the node may not hold yet, so it must not count until it has them.
        urgent: bool,
    },
    /// May these deletions be forgotten, as far as you know?
    Attest {
        /// The partition that the keys are in.
        partition: u32,
        /// Its homes.
        homes: Vec<NodeId>,
        /// The keys, at most [`MAX_DECEASED`].
        keys: Vec<Deceased>,
    },
    /// All homes hold these deletions and nobody keeps anything older: forget them.
    Reap {
        /// The partition that the keys are in.
        partition: u32,
        /// The keys, at most [`MAX_DECEASED`].
        keys: Vec<Deceased>,
    },
    /// A home compares what it holds with what you hold.
    Repair(Repair),
    /// What is the newest ring document that you know?
    Ring,
}

/// Most keys of one [`Request::Attest`] or [`Request::Reap`].
pub const MAX_DECEASED: usize = 4096;

/// A key of which nothing but deletions is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deceased {
    /// The key's hash.
    pub hash: KeyHash,
    /// What is known of it ([`crate::merkle::leaf`]).
    pub leaf: u64,
}

/// Why a node did not do as asked. Nothing was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The caller's ring is older than the node's.
    StaleRing,
    /// The key is not this node's.
    NotAHome,
    /// The node does not hold its range yet: it can't vote, and leaves minting to others.
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
    /// The record is taken in, by a home that does not count yet.
    Extra {
        /// How far it is.
        reached: Durability,
    },
    /// The record held.
    Found(Bytes),
    /// Never heard of it.
    Absent,
    /// What is held by a home that does not count yet; no bytes if that is nothing.
    Partial(Bytes),
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
    /// What the node knows of the members.
    Gossip(Bytes),
    /// What the node counts for.
    Standing(Standing),
    /// Hints that are kept for the home that came back.
    Handover {
        /// Up to which they are; what came before is not kept any more once it is taken.
        generation: u64,
        /// How many keys there are.
        keys: u64,
        /// Is there something among them that the home may not hold?
        urgent: bool,
        /// Which members the holder believes alive.
        alive: Vec<NodeId>,
    },
    /// What the node says of deletions that others want to forget.
    Attested {
        /// It keeps hints for one of the homes.
        keeps: bool,
        /// For each key: does it agree?
        agreed: Vec<bool>,
    },
    /// The sums asked for, in order ([`Repair::Sums`]).
    Sums(Vec<u64>),
    /// What was seen of keys ([`Repair::Clocks`]).
    Clocks {
        /// Are there others after them?
        more: bool,
        /// Ascending by hash.
        clocks: Vec<(KeyHash, Clock)>,
    },
    /// The newest ring document that the node knows, in the form that it has in the bucket.
    Ring(Bytes),
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
    use crate::clock::Actor;
    use crate::frame::FrameVersion;
    use crate::merkle::Span;
    use crate::record::Value;

    fn cursor() -> Option<(KeyHash, Bytes)> {
        Some((KeyHash(9), Bytes::from_static(b"k")))
    }

    fn calls() -> Vec<Call> {
        let deceased = vec![Deceased { hash: KeyHash(9), leaf: 8 }];
        let spans = vec![Span::of(KeyHash(5 << 108), 20), Span::of(KeyHash(7 << 108), 20)];
        let namespace = Namespace::new(b"carts").unwrap();
        let key = Key::new(Bytes::from_static(b"alice")).unwrap();
        let context: Clock = [Dot { actor: Actor::parse("node-a.1").unwrap(), n: 3 }].into_iter().collect();
        let version = Version {
            value: Value::Present(Bytes::from_static(b"v")),
            written_ms: 5,
            expires_ms: 0,
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
                insist: true,
            },
            Request::Replicate {
                durability: Durability::Disk,
                hint_for: Some(node.clone()),
                record: Bytes::from_static(b"record"),
            },
            Request::Confirm {
                namespace: namespace.clone(),
                key: key.clone(),
                dot: Dot { actor: Actor::parse("node-a.1").unwrap(), n: 4 },
                durability: Durability::Disk,
            },
            Request::Read { namespace, key, values: true, stands_for: Some(node.clone()) },
            Request::Scan { partition: 7, after: cursor(), bytes: 1024, age_ms: Some(60_000) },
            Request::Scan { partition: 7, after: None, bytes: 1024, age_ms: None },
            Request::Hello,
            Request::Status,
            Request::Gossip(Bytes::from_static(b"state")),
            Request::Probe { hinted: true },
            Request::ComeBack { home: node.clone() },
            Request::Hints { home: node.clone(), generation: 4, after: cursor(), bytes: 1024 },
            Request::TookHints { home: node.clone(), generation: 4 },
            Request::Offer { holder: node.clone(), urgent: true },
            Request::Attest { partition: 3, homes: vec![node], keys: deceased.clone() },
            Request::Reap { partition: 3, keys: deceased },
            Request::Repair(Repair::Sums { spans: spans.clone(), depth: 4 }),
            Request::Repair(Repair::Clocks { spans, after: Some(KeyHash(9)), bytes: 1024 }),
            Request::Repair(Repair::Fetch { hashes: vec![KeyHash(8), KeyHash(9)], bytes: 1024 }),
            Request::Repair(Repair::Settle),
            Request::Repair(Repair::Begin { partition: Some(0) }),
            Request::Repair(Repair::Begin { partition: None }),
        ]
        .into_iter()
        .map(|request| Call { ring_version: 42, request })
        .collect()
    }

    /// What came with version 2 of frames.
    fn later() -> (Call, Answer) {
        let document = Bytes::from_static(b"{}");
        let call = Call { ring_version: 42, request: Request::Ring };
        (call, Answer { ring_version: 42, reply: Reply::Ring(document) })
    }

    fn answers() -> Vec<Answer> {
        let dot = Dot { actor: Actor::parse("node-a.1").unwrap(), n: 3 };
        let clock: Clock = [dot.clone()].into_iter().collect();
        let mut replies = vec![
            Reply::Minted { dot, reached: Durability::Disk, repeated: Bytes::from_static(b"delta") },
            Reply::Acked { reached: Durability::Memory },
            Reply::Extra { reached: Durability::Disk },
            Reply::Found(Bytes::from_static(b"record")),
            Reply::Absent,
            Reply::Partial(Bytes::from_static(b"record")),
            Reply::Page { more: true, records: Bytes::from_static(b"records") },
            Reply::Hello,
            Reply::Status(Bytes::from_static(b"{}")),
            Reply::Gossip(Bytes::from_static(b"state")),
            Reply::Standing(Standing::Absorbing),
            Reply::Handover {
                generation: 4,
                keys: 7,
                urgent: true,
                alive: vec![NodeId::new("node-c").unwrap()],
            },
            Reply::Attested { keeps: true, agreed: vec![true, false] },
            Reply::Sums(vec![0, u64::MAX]),
            Reply::Clocks { more: true, clocks: vec![(KeyHash(9), clock.clone())] },
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
        let (call, answer) = later();
        for call in calls().into_iter().chain([call]) {
            assert_eq!(Call::decode(join(call.encode())).unwrap(), call);
        }
        for answer in answers().into_iter().chain([answer]) {
            assert_eq!(Answer::decode(join(answer.encode())).unwrap(), answer);
        }
    }

    #[test]
    fn every_call_says_which_version_of_frames_has_it() {
        assert!(calls().iter().all(|call| since(&call.encode().0) == FrameVersion::One));
        assert_eq!(since(&later().0.encode().0), FrameVersion::Two);
        assert_eq!(since(b""), FrameVersion::One);
    }

    #[test]
    fn golden_files() {
        let calls: Vec<u8> = calls().iter().flat_map(|c| join(c.encode()).to_vec()).collect();
        crate::golden::check("calls-v1.bin", &calls);
        let answers: Vec<u8> = answers().iter().flat_map(|a| join(a.encode()).to_vec()).collect();
        crate::golden::check("answers-v1.bin", &answers);
        let (call, answer) = later();
        crate::golden::check("calls-v2.bin", &join(call.encode()));
        crate::golden::check("answers-v2.bin", &join(answer.encode()));
    }

    #[test]
    fn preconditions_take_a_version_that_has_ended_for_a_deletion() {
        let brief = |deleted, expires_ms| {
            let dot = Dot { actor: Actor::parse("node-a.1").unwrap(), n: 1 };
            Container::delta(&Clock::new(), dot, Brief { deleted, expires_ms, request: 1, size: 1 })
        };
        let is_new = Precondition::IfNoneMatch(Tags::Any);
        let is_there = Precondition::IfMatch(Tags::Any);
        for (known, now_ms, exists) in [
            (brief(false, 0), u64::MAX, true),
            (brief(false, 100), 99, true),
            (brief(false, 100), 100, false),
            (brief(true, 0), 0, false),
            (Container::default(), 0, false),
        ] {
            assert_eq!(is_there.holds_at(&known, now_ms), exists, "{known:?}");
            assert_eq!(is_new.holds_at(&known, now_ms), !exists, "{known:?}");
            let tag = etag(known.siblings().iter().map(|s| &s.dot));
            let is_this = Precondition::IfMatch(Tags::List(vec![tag]));
            assert_eq!(is_this.holds_at(&known, now_ms), exists, "{known:?}");
        }
    }

    #[test]
    fn a_dot_alone_has_one_actor_and_a_number_within_the_limit() {
        let minted = |n| {
            let dot = Dot { actor: Actor::parse("node-a.1").unwrap(), n };
            let reply = Reply::Minted { dot, reached: Durability::Disk, repeated: Bytes::new() };
            join(Answer { ring_version: 42, reply }.encode())
        };
        let limit = crate::clock::MAX_COUNT;
        assert!(Answer::decode(minted(limit)).is_ok());
        for n in [0, limit + 1, u64::MAX] {
            assert_eq!(Answer::decode(minted(n)), Err(DecodeError::Malformed("dot")), "{n}");
        }
        let none = [&minted(1)[..3], &[0, 1][..]].concat();
        assert_eq!(Answer::decode(none.into()), Err(DecodeError::Malformed("dot")));
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
