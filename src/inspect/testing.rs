//! A small cluster's bucket, built by hand: every state that an object can have is in it.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;

use cartwheel_bucket::{Bucket, MemoryBucket};
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::hash::{KeyHash, checksum};
use cartwheel_core::manifest::{Dropped, Manifest, SegmentEntry};
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::ranges::HashRange;
use cartwheel_core::record::{Brief, Record, Value, Version};
use cartwheel_core::ring::{Change, Member, MemberState, RingDocument};
use cartwheel_core::segment::{BuiltSegment, SegmentBuilder};
use cartwheel_segments::RecordKey;
use cartwheel_segments::manifests::newest;

/// The cluster's hash seed.
pub(super) const SEED: u64 = 7;

pub(super) fn dot(actor: &str, n: u64) -> Dot {
    Dot { actor: Actor::parse(actor).unwrap(), n }
}

fn version(dot: &Dot, value: Value) -> Version {
    Version {
        value,
        written_ms: 1_700_000_000_000,
        expires_ms: 0,
        request: checksum(dot.to_string().as_bytes()).into(),
        context: Clock::new(),
        content_type: Bytes::from_static(b"text/plain"),
        meta: Vec::new(),
    }
}

/// A write by a client that had seen nothing.
pub(super) fn value(actor: &str, n: u64, text: &'static str) -> Container<Version> {
    let dot = dot(actor, n);
    let version = version(&dot, Value::Present(Bytes::from_static(text.as_bytes())));
    Container::delta(&Clock::new(), dot, version)
}

/// A deletion by a client that had seen nothing.
pub(super) fn deletion(actor: &str, n: u64) -> Container<Version> {
    let dot = dot(actor, n);
    let version = version(&dot, Value::Deleted);
    Container::delta(&Clock::new(), dot, version)
}

/// A write by a client that had seen `seen`.
pub(super) fn replacing(seen: &[Dot], actor: &str, n: u64, text: &'static str) -> Container<Version> {
    let (dot, context) = (dot(actor, n), seen.iter().cloned().collect::<Clock>());
    let version = version(&dot, Value::Present(Bytes::from_static(text.as_bytes())));
    Container::delta(&context, dot, version)
}

pub(super) fn record(key: &str, container: Container<Version>) -> Record {
    let key = Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap();
    Record { namespace: Namespace::new(b"carts").unwrap(), key, container }
}

fn hash(record: &Record) -> KeyHash {
    KeyHash::of(SEED, &record.namespace, &record.key)
}

/// A segment of these records, in whatever order they come.
pub(super) fn build(records: &[Record]) -> BuiltSegment {
    let mut records: Vec<&Record> = records.iter().collect();
    records.sort_by_key(|r| RecordKey::new(hash(r), &r.namespace, &r.key));
    let mut builder = SegmentBuilder::new();
    for record in records {
        let brief = record.container.map(|version| Brief::from(version));
        builder.push(hash(record), &record.encode(), &brief);
    }
    builder.finish().unwrap()
}

/// The bucket, and the objects in it by what they are.
pub(super) struct World {
    pub(super) bucket: Arc<MemoryBucket>,
    pub(super) named: String,
    pub(super) unknown: String,
    pub(super) dropped: String,
    pub(super) grave: String,
    pub(super) orphan: String,
    pub(super) hint: String,
    pub(super) compacted: Vec<String>,
}

impl World {
    /// Three homes, of which `node-c` has nothing of its own. `carts/alice` is in every object of `node-a` that may
    /// hold it.
    pub(super) async fn new() -> Self {
        let world = Self {
            bucket: Arc::new(MemoryBucket::new()),
            named: "nodes/node-a/f/0000000001-00000000000000aa/0000000001.seg".to_owned(),
            unknown: "nodes/node-a/f/0000000001-00000000000000aa/0000000003.seg".to_owned(),
            dropped: "nodes/node-a/f/0000000001-00000000000000aa/0000000002.seg".to_owned(),
            grave: "nodes/node-a/g/0000000001-00000000000000aa/0000000001.seg".to_owned(),
            orphan: "nodes/node-a/c/00000000000000ff/0000000001.seg".to_owned(),
            hint: "hints/node-a/node-c-0000000002-00000000000000ab/0000000001.seg".to_owned(),
            compacted: (1..=2).map(|n| format!("nodes/node-a/c/00000000000000ee/{n:010}.seg")).collect(),
        };
        world.bucket.set_now_ms(1_700_000_000_000);
        world.put_ring(&["node-a", "node-b", "node-c"]).await;
        let alice = |container| vec![record("alice", container)];
        let mut segments = vec![world.put(&world.named, &alice(value("node-a.1", 1, "milk"))).await];
        segments.extend(world.put_run().await);
        world
            .put(&world.unknown, &alice(replacing(&[dot("node-a.1", 1)], "node-a.1", 2, "milk, eggs")))
            .await;
        world.put(&world.dropped, &alice(value("node-a.1", 9, "never again"))).await;
        world.put(&world.orphan, &alice(value("node-a.1", 8, "half done"))).await;
        world.put(&world.hint, &alice(value("node-c.2", 1, "bread"))).await;
        let grave = world.put(&world.grave, &[record("gone", deletion("node-a.1", 1))]).await;
        world.bucket.put("nodes/node-a/pins/node-b-00000000000000bb.json", "{}".into()).await.unwrap();

        let node = NodeId::new("node-a").unwrap();
        world.put_manifest(&Manifest::new(node.clone(), 2, 1, "cafe-2".to_owned(), 1_700_000_000_000)).await;
        let dropped = Dropped { object: world.dropped.clone(), bytes: 1, since_ms: Some(1_700_000_000_000) };
        let third = Manifest::new(node, 3, 1, "cafe-3".to_owned(), 1_700_000_001_000);
        world
            .put_manifest(&Manifest { segments, graves: vec![grave], dropped: vec![dropped], ..third })
            .await;

        let object = "nodes/node-b/f/0000000001-00000000000000bb/0000000001.seg";
        let segments = vec![world.put(object, &alice(value("node-a.1", 1, "milk"))).await];
        let b = Manifest::new(NodeId::new("node-b").unwrap(), 1, 1, "beef-1".to_owned(), 1_700_000_000_000);
        world.put_manifest(&Manifest { segments, ..b }).await;
        for node in ["node-a", "node-b", "node-c"] {
            let lease = format!("nodes/{node}/epochs/0000000001.json");
            world.bucket.put(&lease, "{}".into()).await.unwrap();
        }
        world
    }

    /// Two compacted segments of one run.
    async fn put_run(&self) -> Vec<SegmentEntry> {
        let mut records: Vec<Record> =
            (0..40).map(|n| record(&format!("key-{n}"), value("node-a.1", 1, "x"))).collect();
        records.sort_by_key(hash);
        let mut entries = Vec::new();
        for (object, half) in self.compacted.iter().zip(records.chunks(20)) {
            let entry = self.put(object, half).await;
            entries.push(SegmentEntry {
                run: "nodes/node-a/c/run-1".to_owned(),
                born_ms: 1_699_999_999_000,
                ..entry
            });
        }
        entries
    }

    /// Puts a segment and gives what a manifest would say of it.
    pub(super) async fn put(&self, object: &str, records: &[Record]) -> SegmentEntry {
        let built = build(records);
        self.bucket.put(object, built.bytes.clone()).await.unwrap();
        SegmentEntry::of(object.to_owned(), &built)
    }

    pub(super) async fn put_manifest(&self, manifest: &Manifest) {
        let object = Manifest::object_name(&manifest.node, manifest.version);
        self.bucket.put(&object, manifest.to_json().into()).await.unwrap();
    }

    /// `node` borrows the lower half of the first merged segment of node-a; gives its name and what is said of it.
    pub(super) async fn lend(&self, node: &str) -> (String, SegmentEntry) {
        let lent = self.manifest("node-a", 3).await.segments;
        let entry = lent.into_iter().find(|entry| entry.object == self.compacted[0]).unwrap();
        let middle = KeyHash(entry.first.0 + (entry.last.0 - entry.first.0) / 2);
        let part = entry.restricted_to(&[HashRange { first: KeyHash(0), last: middle }]).unwrap();
        let newest = newest(&*self.bucket, &NodeId::new(node).unwrap()).await.unwrap();
        let mut manifest =
            newest.unwrap_or_else(|| Manifest::new(NodeId::new(node).unwrap(), 0, 1, "x".to_owned(), 0));
        manifest.version += 1;
        manifest.segments.push(part.clone());
        self.put_manifest(&manifest).await;
        (part.object.clone(), part)
    }

    /// The manifest of `node`, to be changed and put again.
    pub(super) async fn manifest(&self, node: &str, version: u64) -> Manifest {
        let object = Manifest::object_name(&NodeId::new(node).unwrap(), version);
        Manifest::parse(&self.bucket.get(&object).await.unwrap()).unwrap()
    }

    /// A ring of these members, three replicas.
    pub(super) async fn put_ring(&self, members: &[&str]) {
        let member = |id: &&str| Member {
            id: NodeId::new(id).unwrap(),
            address: format!("{id}:7101"),
            zone: "default".to_owned(),
            weight: 1,
            state: MemberState::Active,
            becomes: None,
            dead: false,
        };
        let members = members.iter().map(member).collect();
        let changed = Change { at_ms: 1, by: "a test".to_owned(), what: "found the cluster".to_owned() };
        let document = RingDocument::found("c1".to_owned(), SEED, 16, 8, 3, members, changed, "n".to_owned());
        self.bucket.put(&RingDocument::object_name(1), document.unwrap().to_json().into()).await.unwrap();
    }

    /// Flips one bit of an object.
    pub(super) async fn flip(&self, object: &str, byte: usize) {
        let mut bytes = self.bucket.get(object).await.unwrap().to_vec();
        let at = byte % bytes.len();
        bytes[at] ^= 1 << (byte % 8);
        self.bucket.put(object, bytes.into()).await.unwrap();
    }
}
