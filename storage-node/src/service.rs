//! What a storage node does with a call: checks ring, range and deadline, asks the engine, answers.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use cartwheel_cluster::frames::{Handler, IncomingCall, ReplyHandle};
use cartwheel_cluster::membership::{Follower, View};
use cartwheel_core::clock::Dot;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value};
use cartwheel_core::wire::{Answer, Call, Refusal, Reply, Request, push_to_page};

use crate::engine::{Engine, Found, Mint, MintRequest};
use crate::epoch::Incarnation;
use crate::memtable::RecordKey;

/// Calls at once that need the bucket.
const SLOW_CALLS: usize = 256;
/// How often a mint is tried again after its key was read.
const MINT_READS: usize = 4;
/// Largest page of a scan.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// A partition as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    /// It is a home.
    Home,
    /// It will be one when the pending change is complete.
    Coming,
    /// It will be one, and holds all that it will.
    Copied,
    /// Neither.
    Foreign,
}

/// The ring as this node sees it.
#[derive(Debug)]
struct Ranges {
    version: u64,
    by_partition: Vec<Range>,
}

impl Ranges {
    fn of(view: &View, me: &NodeId) -> Self {
        let (now, next) = (view.current.index_of(me), view.next.index_of(me));
        let by_partition = (0..view.current.partitions())
            .map(|partition| {
                if now.is_some_and(|index| view.current.homes(partition).contains(&index)) {
                    Range::Home
                } else if next.is_some_and(|index| view.next.homes(partition).contains(&index)) {
                    if view.document.copied { Range::Copied } else { Range::Coming }
                } else {
                    Range::Foreign
                }
            })
            .collect();
        Self { version: view.version(), by_partition }
    }

    fn range(&self, hash: KeyHash) -> Range {
        let partitions = u32::try_from(self.by_partition.len()).unwrap_or(1);
        let partition = usize::try_from(hash.partition(partitions)).unwrap_or(0);
        self.by_partition.get(partition).copied().unwrap_or(Range::Foreign)
    }
}

/// Answers the calls to one storage node.
#[derive(Debug)]
pub(crate) struct Service {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Arc<Engine>,
    me: Incarnation,
    follower: Follower,
    hash_seed: u64,
    ranges: RwLock<Arc<Ranges>>,
    slow: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(engine: Arc<Engine>, me: Incarnation, follower: Follower, view: &View) -> Self {
        let ranges = RwLock::new(Arc::new(Ranges::of(view, &me.node)));
        let hash_seed = view.document.hash_seed;
        let slow = Arc::new(Semaphore::new(SLOW_CALLS));
        Self { inner: Arc::new(Inner { engine, me, follower, hash_seed, ranges, slow }) }
    }
}

impl Handler for Service {
    fn handle(&self, call: IncomingCall) {
        let IncomingCall { payload, deadline, reply } = call;
        let inner = &self.inner;
        let reply = Replying { version: inner.ranges().version, handle: reply };
        if inner.engine.is_closed() {
            // The next process of this name may serve already; what is known here grows stale.
            return reply.refuse(Refusal::Unable("the node is shutting down".to_owned()));
        }
        let call = match Call::decode(payload) {
            Ok(call) => call,
            Err(error) => return reply.refuse(Refusal::Malformed(error.to_string())),
        };
        if call.ring_version <= reply.version {
            return Inner::carry_out(inner, call, deadline, reply);
        }
        let inner = Arc::clone(inner);
        tokio::spawn(async move {
            let newer = tokio::time::timeout_at(deadline, inner.follower.at_least(call.ring_version)).await;
            let reply = Replying { version: inner.ranges().version, ..reply };
            match newer {
                Ok(Some(_)) => Inner::carry_out(&inner, call, deadline, reply),
                _ => reply.refuse(Refusal::Late),
            }
        });
    }
}

/// A reply with the ring version that goes with it.
#[derive(Debug)]
struct Replying {
    version: u64,
    handle: ReplyHandle,
}

impl Replying {
    fn send(self, reply: Reply) {
        self.handle.send(Answer { ring_version: self.version, reply }.encode());
    }

    fn refuse(self, refusal: Refusal) {
        self.send(Reply::Refused(refusal));
    }
}

impl Inner {
    /// The ranges of the newest view.
    fn ranges(&self) -> Arc<Ranges> {
        let known = Arc::clone(&self.ranges.read());
        match self.follower.view() {
            Some(view) if view.version() > known.version => {
                let newer = Arc::new(Ranges::of(&view, &self.me.node));
                let mut ranges = self.ranges.write();
                // Another thread may have gone further meanwhile.
                if newer.version > ranges.version {
                    *ranges = newer;
                }
                Arc::clone(&ranges)
            }
            _ => known,
        }
    }

    /// Carries out a write if the caller's ring is still the newest one known here and `takes` the key's
    /// range. The ring is locked meanwhile: once a node says that it knows a ring, every write under an
    /// older one is done or refused, so that a copy made after that misses none.
    fn write<T>(
        &self,
        ring_version: u64,
        hash: KeyHash,
        takes: impl FnOnce(Range) -> bool,
        write: impl FnOnce() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let ranges = self.ranges.read();
        if ring_version < ranges.version {
            return Err(Refusal::StaleRing);
        }
        if !takes(ranges.range(hash)) {
            return Err(Refusal::NotAHome);
        }
        write()
    }

    fn carry_out(inner: &Arc<Self>, call: Call, deadline: Instant, reply: Replying) {
        if Instant::now() >= deadline {
            return reply.refuse(Refusal::Late);
        }
        if call.ring_version < reply.version
            && !matches!(
                call.request,
                Request::Hello | Request::Status | Request::Scan { .. } | Request::Confirm { .. }
            )
        {
            return reply.refuse(Refusal::StaleRing);
        }
        match call.request {
            Request::Read { namespace, key, values } => {
                Self::read(inner, &namespace, &key, values, deadline, reply);
            }
            Request::Mint {
                namespace,
                key,
                version,
                durability,
                precondition,
                max_siblings,
                hint_for: _,
            } => {
                if let Value::Omitted(_) = version.value {
                    return reply.refuse(without_value());
                }
                let hash = inner.hash(&namespace, &key);
                let request =
                    MintRequest { namespace, key, hash, version, durability, precondition, max_siblings };
                Self::mint(inner, request, call.ring_version, deadline, reply);
            }
            Request::Replicate { durability, hint_for: _, record } => {
                inner.replicate(&record, durability, call.ring_version, reply);
            }
            Request::Confirm { namespace, key, dot, durability } => {
                inner.confirm(inner.hash(&namespace, &key), &dot, durability, reply);
            }
            Request::Scan { partition, after, bytes } => {
                Self::scan(inner, partition, after, bytes, deadline, reply);
            }
            Request::Hello => reply.send(Reply::Hello),
            Request::Status => reply.send(Reply::Status(inner.status())),
        }
    }

    fn hash(&self, namespace: &Namespace, key: &Key) -> KeyHash {
        KeyHash::of(self.hash_seed, namespace, key)
    }

    /// Runs work that may need the bucket or a while, if there is room for more of it.
    fn slowly(
        inner: &Arc<Self>,
        deadline: Instant,
        reply: Replying,
        work: impl Future<Output = Result<Reply, Refusal>> + Send + 'static,
    ) {
        let Ok(place) = Arc::clone(&inner.slow).try_acquire_owned() else {
            return reply.refuse(Refusal::Overloaded);
        };
        tokio::spawn(async move {
            let outcome = tokio::time::timeout_at(deadline, work).await;
            drop(place);
            match outcome {
                Ok(Ok(done)) => reply.send(done),
                Ok(Err(refusal)) => reply.refuse(refusal),
                // Nobody waits any more, and a refusal would say that nothing was applied: a mint may be.
                Err(_) => drop(reply),
            }
        });
    }

    fn read(
        inner: &Arc<Self>,
        namespace: &Namespace,
        key: &Key,
        values: bool,
        deadline: Instant,
        reply: Replying,
    ) {
        let hash = inner.hash(namespace, key);
        match inner.ranges().range(hash) {
            Range::Home | Range::Copied => {}
            Range::Coming => return reply.refuse(Refusal::CatchingUp),
            Range::Foreign => return reply.refuse(Refusal::NotAHome),
        }
        let key = RecordKey::new(hash, namespace, key);
        if let Some(found) = inner.engine.read_fast(&key) {
            return reply.send(found_reply(found, values));
        }
        let engine = Arc::clone(&inner.engine);
        Self::slowly(inner, deadline, reply, async move {
            let found = engine.read(&key).await.map_err(|e| Refusal::Unable(e.to_string()))?;
            Ok(found_reply(found, values))
        });
    }

    fn mint(inner: &Arc<Self>, request: MintRequest, ring_version: u64, deadline: Instant, reply: Replying) {
        let reply = Once::new(reply);
        let mint = || inner.engine.mint(&request, |dot| minted(dot, reply.clone()));
        match inner.write(ring_version, request.hash, |range| range == Range::Home, mint) {
            Ok(Mint::Made) => {}
            Ok(Mint::Repeated(_) | Mint::Unknown) => {
                let Some(reply) = reply.take() else { return };
                let minting = mint_slowly(Arc::clone(inner), request, ring_version);
                Self::slowly(inner, deadline, reply, minting);
            }
            Err(refusal) => reply.send(Reply::Refused(refusal)),
        }
    }

    fn replicate(&self, bytes: &Bytes, durability: Durability, ring_version: u64, reply: Replying) {
        let record = match Record::decode(bytes) {
            Ok(record) => record,
            Err(error) => return reply.refuse(Refusal::Malformed(error.to_string())),
        };
        if record.container.siblings().iter().any(|s| matches!(s.version.value, Value::Omitted(_))) {
            return reply.refuse(without_value());
        }
        let hash = self.hash(&record.namespace, &record.key);
        // Memory of its own: a slice would keep the whole read buffer alive.
        let bytes = Bytes::copy_from_slice(bytes);
        let reply = Once::new(reply);
        let done = {
            let reply = reply.clone();
            Box::new(move |reached| reply.send(Reply::Acked { reached }))
        };
        let replicate = || self.engine.replicate(hash, &record, &bytes, durability, done);
        if let Err(refusal) = self.write(ring_version, hash, |range| range != Range::Foreign, replicate) {
            reply.send(Reply::Refused(refusal));
        }
    }

    fn confirm(&self, hash: KeyHash, dot: &Dot, durability: Durability, reply: Replying) {
        let reply = Once::new(reply);
        let done = {
            let reply = reply.clone();
            Box::new(move |reached| reply.send(Reply::Acked { reached }))
        };
        if let Err(refusal) = self.engine.confirm(hash, dot, durability, done) {
            reply.send(Reply::Refused(refusal));
        }
    }

    fn scan(
        inner: &Arc<Self>,
        partition: u32,
        after: Option<(KeyHash, Bytes)>,
        bytes: u32,
        deadline: Instant,
        reply: Replying,
    ) {
        let partitions = u32::try_from(inner.ranges().by_partition.len()).unwrap_or(1);
        if partition >= partitions {
            return reply.refuse(Refusal::Malformed(format!("partition {partition} of {partitions}")));
        }
        let engine = Arc::clone(&inner.engine);
        Self::slowly(inner, deadline, reply, async move {
            let (first, last) = KeyHash::partition_range(partition, partitions);
            let after = after.map(|(hash, name)| RecordKey { hash, name });
            let budget = usize::try_from(bytes).unwrap_or(MAX_PAGE_BYTES).min(MAX_PAGE_BYTES);
            let scanned = engine.scan(first, last, after.as_ref(), budget).await;
            let (records, more) = scanned.map_err(|e| Refusal::Unable(e.to_string()))?;
            let mut page = BytesMut::new();
            for record in records {
                push_to_page(&mut page, &record);
            }
            Ok(Reply::Page { more, records: page.freeze() })
        });
    }

    fn status(&self) -> Bytes {
        let status = Status {
            id: self.me.node.as_str(),
            incarnation: self.me.label(),
            ring_version: self.ranges().version,
            steps_down: self.engine.is_fenced(),
            figures: self.engine.figures(),
        };
        serde_json::to_vec(&status).unwrap_or_default().into()
    }
}

/// How a node is.
#[derive(Debug, serde::Serialize)]
struct Status<'a> {
    id: &'a str,
    incarnation: String,
    ring_version: u64,
    steps_down: bool,
    #[serde(flatten)]
    figures: crate::engine::Figures,
}

/// A reply that two places may give, and one does: whoever takes it first.
#[derive(Debug, Clone)]
struct Once(Arc<parking_lot::Mutex<Option<Replying>>>);

impl Once {
    fn new(reply: Replying) -> Self {
        Self(Arc::new(parking_lot::Mutex::new(Some(reply))))
    }

    fn take(&self) -> Option<Replying> {
        self.0.lock().take()
    }

    fn send(&self, reply: Reply) {
        if let Some(replying) = self.take() {
            replying.send(reply);
        }
    }
}

fn minted(dot: Dot, reply: Once) -> crate::engine::Done {
    Box::new(move |reached| reply.send(Reply::Minted { dot, reached, repeated: Bytes::new() }))
}

/// A version without its value would stand in for the version itself, and in time replace it everywhere.
fn without_value() -> Refusal {
    Refusal::Malformed("a version that leaves out its value".to_owned())
}

/// What a write has reached. Without word of it, its fate is unknown and there is no answer.
async fn reached<T>(word: tokio::sync::oneshot::Receiver<T>) -> T {
    match word.await {
        Ok(reached) => reached,
        Err(_) => std::future::pending().await,
    }
}

/// A mint that needs the key read first, or whose request was carried out before.
async fn mint_slowly(inner: Arc<Inner>, request: MintRequest, ring_version: u64) -> Result<Reply, Refusal> {
    let unable = |e: crate::segments::SegmentError| Refusal::Unable(e.to_string());
    let key = RecordKey::new(request.hash, &request.namespace, &request.key);
    for _ in 0..MINT_READS {
        let (sender, word) = tokio::sync::oneshot::channel();
        let done = |dot: Dot| -> crate::engine::Done {
            // Nobody waits any more: no error.
            Box::new(move |reached| drop(sender.send((dot, reached))))
        };
        let mint = || inner.engine.mint(&request, done);
        match inner.write(ring_version, request.hash, |range| range == Range::Home, mint)? {
            Mint::Made => {
                let (dot, reached) = reached(word).await;
                return Ok(Reply::Minted { dot, reached, repeated: Bytes::new() });
            }
            Mint::Repeated(dot) => return repeat(&inner.engine, &key, dot, &request).await,
            Mint::Unknown => inner.engine.read_full(&key).await.map_err(unable)?,
        }
    }
    Err(Refusal::Overloaded)
}

/// The answer to a mint that was carried out before: all that is known of the key now, as durable as asked.
async fn repeat(engine: &Engine, key: &RecordKey, dot: Dot, request: &MintRequest) -> Result<Reply, Refusal> {
    let Found::Record(bytes) = engine.read(key).await.map_err(|e| Refusal::Unable(e.to_string()))? else {
        return Err(Refusal::Unable("a version that was minted is gone".to_owned()));
    };
    let record = Record::decode(&bytes).map_err(|e| Refusal::Unable(e.to_string()))?;
    let (sender, word) = tokio::sync::oneshot::channel();
    let done = Box::new(move |reached| {
        let _ = sender.send(reached);
    });
    engine.replicate(request.hash, &record, &bytes, request.durability, done)?;
    Ok(Reply::Minted { dot, reached: reached(word).await, repeated: bytes })
}

fn found_reply(found: Found, values: bool) -> Reply {
    match found {
        Found::Absent => Reply::Absent,
        Found::Record(bytes) if values => Reply::Found(bytes),
        Found::Record(bytes) => match Record::decode(&bytes) {
            Ok(record) => Reply::Found(record.without_values().encode()),
            Err(error) => Reply::Refused(Refusal::Unable(error.to_string())),
        },
    }
}
