//! Values that the corpus is made of: one of everything.

use bytes::{Bytes, BytesMut};

use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::{Container, Sibling};
use cartwheel_core::gossip::{Heard, HintsHeld, Word};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::{Dropped, Manifest, SegmentEntry};
use cartwheel_core::merkle::{Span, Tree};
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::quorum::Durability;
use cartwheel_core::ranges::HashRange;
use cartwheel_core::record::{Brief, Record, Value, Version};
use cartwheel_core::segment::{BuiltSegment, SegmentBuilder};
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{
    Answer, Call, Deceased, Precondition, Refusal, Repair, Reply, Request, Tags, push_to_page,
};

/// The seed of the hashes in [`segment`].
pub(crate) const HASH_SEED: u64 = 7;

/// A golden file of core.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/core/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn node(id: &str) -> NodeId {
    NodeId::new(id).unwrap()
}

pub(crate) fn actor(text: &str) -> Actor {
    Actor::parse(text).unwrap()
}

pub(crate) fn dot(by: &str, n: u64) -> Dot {
    Dot { actor: actor(by), n }
}

pub(crate) fn names(key: &str) -> (Namespace, Key) {
    (Namespace::new(b"carts").unwrap(), Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap())
}

pub(crate) fn clocks() -> Vec<Clock> {
    let mut gaps: Clock =
        [dot("node-a.1", 3), dot("node-a.1", 1), dot("node-b.7", 900)].into_iter().collect();
    gaps.insert_seen(actor("gw-0123456789abcdef.4294967295"), 999_999_999_999_998, vec![]);
    vec![Clock::new(), [dot("node-a.1", 1)].into_iter().collect(), gaps]
}

fn version(value: Value, context: Clock) -> Version {
    Version {
        value,
        written_ms: 1_700_000_000_000,
        expires_ms: 1_800_000_000_000,
        request: 0x1234_5678_9abc_def0_1234_5678_9abc_def0,
        context,
        content_type: Bytes::from_static(b"text/plain"),
        meta: vec![(Bytes::from_static(b"by"), Bytes::from_static(b"alice"))],
    }
}

/// Records with no, one and several siblings, with a value, without, and deleted.
pub(crate) fn records() -> Vec<Record> {
    let [none, one, gaps] = <[Clock; 3]>::try_from(clocks()).unwrap();
    let record = |key: &str, container| {
        let (namespace, key) = names(key);
        Record { namespace, key, container }
    };
    let sibling = |by: &str, n, value, context: &Clock| Sibling {
        dot: dot(by, n),
        version: version(value, context.clone()),
    };
    let present = |text: &'static str| Value::Present(Bytes::from_static(text.as_bytes()));
    vec![
        record("none", Container::from_parts(one.clone(), vec![])),
        record(
            "one",
            Container::from_parts(none.clone(), vec![sibling("node-a.1", 1, present("milk"), &none)]),
        ),
        record(
            "three",
            Container::from_parts(
                gaps,
                vec![
                    sibling("node-a.1", 5, present(""), &one),
                    sibling("node-b.7", 901, Value::Deleted, &none),
                    sibling("node-c.2", 2, Value::Omitted(1 << 20), &one),
                ],
            ),
        ),
    ]
}

pub(crate) fn brief_of(container: &Container<Version>) -> Container<Brief> {
    container.map(|version| Brief::from(version))
}

/// A segment of `count` records, at their hashes; with changes to the Merkle tree.
pub(crate) fn segment(count: u64, value_bytes: usize) -> BuiltSegment {
    let mut records: Vec<(KeyHash, Record)> = (0..count)
        .map(|n| {
            let (namespace, key) = names(&format!("key-{n}"));
            let value = Value::Present(vec![b'v'; value_bytes].into());
            let version = version(value, Clock::new());
            let container = Container::delta(&Clock::new(), dot("node-a.1", n + 1), version);
            (KeyHash::of(HASH_SEED, &namespace, &key), Record { namespace, key, container })
        })
        .collect();
    records.sort_by_key(|(hash, _)| *hash);
    let mut watched = cartwheel_core::merkle::Watched::default();
    watched.take_changes();
    let mut builder = SegmentBuilder::new();
    for (hash, record) in &records {
        builder.push(*hash, &record.encode(), &brief_of(&record.container));
        watched.change(*hash, 0, cartwheel_core::merkle::leaf(*hash, record.container.seen()));
    }
    builder.leaves(watched.take_changes().unwrap());
    builder.finish().unwrap()
}

pub(crate) fn tree() -> Tree {
    let mut tree = Tree::default();
    for n in 0..100_u64 {
        tree.change(KeyHash(u128::from(n) << 121 | u128::from(n)), 0, n * 0x0123_4567_89ab_cdef);
    }
    tree
}

pub(crate) fn manifests() -> Vec<Manifest> {
    let empty = Manifest::new(node("node-a"), 1, 1, "cafe".to_owned(), 1_700_000_000_000);
    let mut full = Manifest { version: 9_999_999_999, held_ms: 5, ended: true, ..empty.clone() };
    let mut entry =
        SegmentEntry::of("nodes/node-a/f/0000000001-cafe/0000000001.seg".to_owned(), &segment(3, 10));
    full.segments.push(entry.clone());
    entry.only = vec![HashRange { first: entry.first, last: entry.first }];
    entry.object = "nodes/node-b/c/0123456789abcdef/0000000001.seg".to_owned();
    full.segments.push(entry.clone());
    entry.only.clear();
    entry.object = "nodes/node-a/g/0123456789abcdef/0000000001.seg".to_owned();
    full.graves.push(entry);
    full.dropped.push(Dropped { object: "nodes/node-a/f/x/1.seg".to_owned(), bytes: 9, since_ms: Some(4) });
    full.taken.insert("0000000001-cafe".to_owned(), 7);
    vec![empty, full]
}

pub(crate) fn heard() -> Vec<Vec<Heard>> {
    let word = |id: &str| Word {
        node: node(id),
        generation: 3,
        beat: 500,
        ring_version: 7,
        standing: Standing::Absorbing,
        rounds: 2,
        bucket_fails: true,
        unflushed_bytes: 1 << 30,
        hints: vec![HintsHeld { target: node("node-c"), keys: 4, bytes: 4096, oldest_ms: 60_000 }],
        away: vec![node("node-c"), node("node-d")],
    };
    let brief =
        Heard { word: Word { hints: vec![], away: vec![], ..word("node-b") }, age_ms: 3_001, brief: true };
    vec![vec![], vec![Heard { word: word("node-a"), age_ms: 0, brief: false }, brief]]
}

/// One of each request.
pub(crate) fn calls() -> Vec<Vec<u8>> {
    let (namespace, key) = names("alice");
    let record = records().pop().unwrap();
    let version = version(Value::Present(Bytes::from_static(b"v")), clocks().pop().unwrap());
    let home = node("node-b");
    let deceased = vec![Deceased { hash: KeyHash(9), leaf: 8 }, Deceased { hash: KeyHash(10), leaf: 1 }];
    let spans = vec![Span::of(KeyHash(5 << 108), 20), Span::of(KeyHash(7 << 108), 20)];
    let after = Some((KeyHash(9), Bytes::from_static(b"k")));
    let mint = |precondition, durability| Request::Mint {
        namespace: namespace.clone(),
        key: key.clone(),
        version: version.clone(),
        durability,
        precondition,
        max_siblings: 100,
        hint_for: None,
        insist: true,
    };
    let tags = vec!["\"0123456789abcdef\"".to_owned(), "\"y\"".to_owned()];
    let requests = vec![
        mint(Precondition::None, Durability::Memory),
        mint(Precondition::IfMatch(Tags::List(tags)), Durability::Disk),
        mint(Precondition::IfNoneMatch(Tags::Any), Durability::Disk),
        Request::Replicate { durability: Durability::Memory, hint_for: None, record: record.encode() },
        Request::Replicate {
            durability: Durability::Disk,
            hint_for: Some(home.clone()),
            record: records()[1].encode(),
        },
        Request::Confirm {
            namespace: namespace.clone(),
            key: key.clone(),
            dot: dot("node-a.1", 4),
            durability: Durability::Disk,
        },
        Request::Read { namespace: namespace.clone(), key: key.clone(), values: true, stands_for: None },
        Request::Read { namespace, key, values: false, stands_for: Some(home.clone()) },
        Request::Scan { partition: 7, after: after.clone(), bytes: 1024, age_ms: Some(60_000) },
        Request::Scan { partition: 0, after: None, bytes: 1 << 20, age_ms: None },
        Request::Hello,
        Request::Status,
        Request::Gossip(cartwheel_core::gossip::encode(&heard()[1])),
        Request::Probe { hinted: true },
        Request::ComeBack { home: home.clone() },
        Request::Hints { home: home.clone(), generation: 4, after, bytes: 1024 },
        Request::TookHints { home: home.clone(), generation: 4 },
        Request::Offer { holder: home.clone(), urgent: true },
        Request::Attest { partition: 3, homes: vec![home], keys: deceased.clone() },
        Request::Reap { partition: 3, keys: deceased },
        Request::Repair(Repair::Sums { spans: spans.clone(), depth: 4 }),
        Request::Repair(Repair::Sums { spans: vec![Span::of(KeyHash(0), 0)], depth: 8 }),
        Request::Repair(Repair::Clocks { spans, after: Some(KeyHash(9)), bytes: 1024 }),
        Request::Repair(Repair::Fetch { hashes: vec![KeyHash(8), KeyHash(9)], bytes: 1024 }),
        Request::Repair(Repair::Settle),
        Request::Repair(Repair::Begin { partition: Some(0) }),
        Request::Repair(Repair::Begin { partition: None }),
        Request::Ring,
    ];
    requests.into_iter().map(|request| call(&Call { ring_version: 1, request })).collect()
}

pub(crate) fn call(call: &Call) -> Vec<u8> {
    let (head, body) = call.encode();
    [head, body].concat()
}

pub(crate) fn answer(answer: &Answer) -> Vec<u8> {
    let (head, body) = answer.encode();
    [head, body].concat()
}

/// The bytes of a page of records.
pub(crate) fn page() -> Vec<u8> {
    let mut page = BytesMut::new();
    records().iter().for_each(|record| push_to_page(&mut page, &record.encode()));
    page.to_vec()
}

/// One of each answer.
pub(crate) fn answers() -> Vec<Vec<u8>> {
    let clock = clocks().pop().unwrap();
    let record = records().pop().unwrap().encode();
    let mut replies = vec![
        Reply::Minted { dot: dot("node-a.1", 3), reached: Durability::Disk, repeated: record.clone() },
        Reply::Acked { reached: Durability::Memory },
        Reply::Extra { reached: Durability::Bucket },
        Reply::Found(record.clone()),
        Reply::Absent,
        Reply::Partial(record),
        Reply::Page { more: true, records: page().into() },
        Reply::Hello,
        Reply::Status(Bytes::from_static(b"{}")),
        Reply::Gossip(cartwheel_core::gossip::encode(&heard()[1])),
        Reply::Standing(Standing::Absorbing),
        Reply::Handover { generation: 4, keys: 7, urgent: true, alive: vec![node("node-c")] },
        Reply::Attested { keeps: true, agreed: vec![true, false] },
        Reply::Sums(vec![0, u64::MAX]),
        Reply::Clocks { more: true, clocks: vec![(KeyHash(9), clock.clone()), (KeyHash(10), Clock::new())] },
        Reply::Ring(Bytes::from_static(b"{}")),
    ];
    let refusals = [
        Refusal::StaleRing,
        Refusal::NotAHome,
        Refusal::CatchingUp,
        Refusal::Overloaded,
        Refusal::Late,
        Refusal::Precondition(clock.clone()),
        Refusal::TooManySiblings(clock),
        Refusal::Unable("disk".to_owned()),
        Refusal::Malformed("no".to_owned()),
    ];
    replies.extend(refusals.map(Reply::Refused));
    replies.into_iter().map(|reply| answer(&Answer { ring_version: 42, reply })).collect()
}
