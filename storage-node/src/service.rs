//! What a storage node does with a call: checks ring, range and deadline, asks the engine, answers.

mod load;
mod ranges;
mod repairing;
mod replying;
mod said;
mod stand_in;
mod status;
mod watch;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use cartwheel_bucket::{Meter, Prices};
use cartwheel_cluster::frames::{Handler, IncomingCall};
use cartwheel_cluster::gossip::GossipHandle;
use cartwheel_cluster::membership::{Follower, View};
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock::Dot;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value};
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{Call, Deceased, Refusal, Repair, Reply, Request, push_to_page};
use cartwheel_telemetry::{Recorder, trace};

use crate::catch_up::CatchUp;
use crate::engine::{Engine, Found, Graved, Mint, MintRequest, Taking};
use crate::epoch::Incarnation;
use crate::hints::Hints;
use crate::ledger::Ledger;
use crate::memory::Governor;
use crate::memtable::RecordKey;
use crate::pace::Pace;
use crate::reap::{Proofs, attest};
use crate::repair::RepairDesk;
use crate::standing::Stand;
use load::Load;
use ranges::{Range, Ranges};
use replying::{Once, Replying};
use said::{Said, waiting_for};

/// Calls at once that need the bucket.
const SLOW_CALLS: usize = 256;
/// Calls at once in place of a home, which may have to be waited for first.
const STANDING_IN: usize = 4096;
/// How often a mint is tried again after its key was read.
const MINT_READS: usize = 4;
/// Largest page of a scan.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Answers the calls to one storage node.
#[derive(Debug)]
pub(crate) struct Service {
    inner: Arc<Inner>,
}

/// What a service works with.
pub(crate) struct Parts {
    pub(crate) engine: Arc<Engine>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) stand: Arc<Stand>,
    pub(crate) catch_up: Arc<CatchUp>,
    pub(crate) gossip: GossipHandle,
    pub(crate) peers: Peers,
    pub(crate) pace: Arc<Pace>,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) repair: Arc<RepairDesk>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) governor: Arc<Governor>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) prices: Prices,
    pub(crate) seams: Seams,
    /// Rung when there may be something to merge.
    pub(crate) compact: Arc<Notify>,
    pub(crate) me: Incarnation,
    pub(crate) follower: Follower,
    pub(crate) recorder: Recorder,
    /// It was told to end.
    pub(crate) draining: Arc<AtomicBool>,
}

struct Inner {
    parts: Parts,
    hash_seed: u64,
    ranges: RwLock<Arc<Ranges>>,
    slow: Arc<Semaphore>,
    standing_in: Arc<Semaphore>,
    load: Load,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("node", &self.parts.me.node).finish_non_exhaustive()
    }
}

impl std::ops::Deref for Inner {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Service {
    pub(crate) fn new(parts: Parts, view: &View) -> Self {
        let ranges = RwLock::new(Arc::new(Ranges::of(view, &parts.me.node)));
        let hash_seed = view.document.hash_seed;
        let slow = Arc::new(Semaphore::new(SLOW_CALLS));
        let standing_in = Arc::new(Semaphore::new(STANDING_IN));
        let load = Load::new(Instant::now());
        Self { inner: Arc::new(Inner { parts, hash_seed, ranges, slow, standing_in, load }) }
    }
}

impl Handler for Service {
    fn handle(&self, call: IncomingCall) {
        let IncomingCall { payload, trace: caller, deadline, reply } = call;
        let inner = &self.inner;
        let mut reply = Replying { version: inner.ranges().version, handle: reply, said: None };
        if inner.engine.is_fenced() {
            let why = format!("another process has taken over {}", inner.me.node);
            return reply.refuse(Refusal::Unable(why));
        }
        if inner.engine.is_closed() {
            // The next process of this name may serve already; what is known here grows stale.
            return reply.refuse(Refusal::Unable("the node is shutting down".to_owned()));
        }
        let call = match Call::decode(payload) {
            Ok(call) => call,
            Err(error) => return reply.refuse(Refusal::Malformed(error.to_string())),
        };
        if let Request::Read { .. } | Request::Mint { .. } | Request::Replicate { .. } = call.request {
            inner.load.count();
        }
        let said = Said::begin(&inner.recorder, inner.me.node.as_str(), caller, &call.request);
        let context = said.context();
        reply.said = Some(said);
        if call.ring_version <= reply.version || !is_about_keys(&call.request) {
            return trace::within(context, || Inner::carry_out(inner, call, deadline, reply));
        }
        let inner = Arc::clone(inner);
        let wait = async move {
            let newer = tokio::time::timeout_at(deadline, inner.follower.at_least(call.ring_version)).await;
            let reply = Replying { version: inner.ranges().version, ..reply };
            match newer {
                Ok(Some(_)) => Inner::carry_out(&inner, call, deadline, reply),
                _ => reply.refuse(Refusal::Late),
            }
        };
        trace::within(context, || trace::spawn(wait));
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
        if ring_version < ranges.version && !removed(Rule::RefuseStaleRing) {
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
        let stale = call.ring_version < reply.version && !removed(Rule::RefuseStaleRing);
        if stale && is_about_keys(&call.request) && !matches!(call.request, Request::Confirm { .. }) {
            return reply.refuse(Refusal::StaleRing);
        }
        let ring_version = call.ring_version;
        match call.request {
            Request::Read { namespace, key, values, stands_for: None } => {
                Self::read(inner, &namespace, &key, values, deadline, reply);
            }
            Request::Read { namespace, key, values, stands_for: Some(home) } => {
                let question = stand_in::Question { home, namespace, key, values };
                let (inner, answering) = (Arc::clone(inner), Arc::clone(inner));
                Self::within(&inner.standing_in, deadline, reply, async move {
                    answering.read_for(question, ring_version, deadline).await
                });
            }
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
                if let Value::Omitted(_) = version.value {
                    return reply.refuse(without_value());
                }
                let hash = inner.hash(&namespace, &key);
                let request =
                    MintRequest { namespace, key, hash, version, durability, precondition, max_siblings };
                match hint_for {
                    None => Self::mint(inner, request, ring_version, insist, deadline, reply),
                    Some(home) => {
                        let (inner, minting) = (Arc::clone(inner), Arc::clone(inner));
                        Self::within(&inner.standing_in, deadline, reply, async move {
                            minting.mint_for(home, request, ring_version, deadline).await
                        });
                    }
                }
            }
            Request::Replicate { durability, hint_for, record } => {
                Self::replicate(inner, &record, durability, hint_for, ring_version, deadline, reply);
            }
            Request::Confirm { namespace, key, dot, durability } => {
                let hash = inner.hash(&namespace, &key);
                inner.confirm(&RecordKey::new(hash, &namespace, &key), &dot, durability, reply);
            }
            Request::Scan { partition, after, bytes, age_ms } => {
                let scan = Scan { partition, after, bytes, age: age_ms.map(Duration::from_millis) };
                Self::scan(inner, scan, deadline, reply);
            }
            Request::Hello => reply.send(Reply::Hello),
            Request::Status => reply.send(Reply::Status(inner.status())),
            Request::Ring => match inner.follower.view() {
                Some(view) => reply.send(Reply::Ring(view.bytes())),
                None => reply.refuse(Refusal::Unable("no ring document was found yet".to_owned())),
            },
            Request::Gossip(words) => match inner.gossip.answer(words) {
                Ok(words) => reply.send(Reply::Gossip(words)),
                Err(error) => reply.refuse(Refusal::Malformed(error.to_string())),
            },
            Request::Probe { hinted } => {
                let catch_up = Arc::clone(&inner.catch_up);
                Self::within(&inner.slow, deadline, reply, async move {
                    Ok(Reply::Standing(catch_up.probe(hinted).await))
                });
            }
            Request::ComeBack { home } => {
                // Whoever asks this home on behalf of others must find it, or would believe it away again.
                if let Some(member) = inner.follower.view().as_ref().and_then(|v| v.document.member(&home)) {
                    inner.peers.expect_back(&member.address);
                }
                let handover = inner.hints.come_back(&home);
                let alive = inner.gossip.alive();
                let crate::hints::Handover { generation, keys, urgent } = handover;
                reply.send(Reply::Handover { generation, keys, urgent, alive });
            }
            Request::Hints { home, generation, after, bytes } => {
                let after = after.map(|(hash, name)| RecordKey { hash, name });
                let budget = usize::try_from(bytes).unwrap_or(MAX_PAGE_BYTES).min(MAX_PAGE_BYTES);
                match inner.hints.page(&home, generation, after.as_ref(), budget) {
                    Ok((records, more)) => reply.send(page(&records, more)),
                    Err(refusal) => reply.refuse(refusal),
                }
            }
            Request::TookHints { home, generation } => {
                let inner = Arc::clone(inner);
                let letting_go = Arc::clone(&inner);
                Self::within(&inner.slow, deadline, reply, async move {
                    letting_go.let_go_of_hints(&home, generation).await
                });
            }
            Request::Offer { holder, urgent } => {
                if urgent {
                    tracing::info!(%holder, "hints are kept for this node; catching up");
                    inner.stand.demote();
                } else {
                    inner.stand.ask();
                }
                reply.send(Reply::Hello);
            }
            Request::Attest { partition, homes, keys } => {
                if stale {
                    return reply.refuse(Refusal::StaleRing);
                }
                let inner = Arc::clone(inner);
                let attesting = Arc::clone(&inner);
                Self::within(&inner.slow, deadline, reply, async move {
                    attesting.attest(partition, &homes, &keys).await
                });
            }
            Request::Repair(asked) => Self::repair(inner, asked, deadline, reply),
            Request::Reap { partition, keys } => {
                if stale || inner.ranges().of_partition(partition) != Range::Home {
                    return reply.refuse(Refusal::NotAHome);
                }
                inner.proofs.add(&keys);
                inner.compact.notify_one();
                reply.send(Reply::Hello);
            }
        }
    }

    /// What this node says of deletions that others want to forget.
    async fn attest(&self, partition: u32, homes: &[NodeId], keys: &[Deceased]) -> Result<Reply, Refusal> {
        let ranges = self.ranges();
        if self.stand.at(Instant::now()) != Standing::Counting || !self.engine.index_complete() {
            return Err(Refusal::CatchingUp);
        }
        if keys.iter().any(|key| key.hash.partition(ranges.partitions()) != partition) {
            return Err(Refusal::Malformed("keys: one is not of the partition".to_owned()));
        }
        let is_home = ranges.of_partition(partition) == Range::Home;
        let agreed = attest(&self.engine, is_home, keys, self.seams.clock.now_ms()).await;
        let agreed = agreed.map_err(|e| Refusal::Unable(e.to_string()))?;
        // After the keys: a hint that was handed over meanwhile is in memory now, and none of them is dead as told.
        Ok(Reply::Attested { keeps: self.hints.keeps_any_for(homes), agreed })
    }

    fn hash(&self, namespace: &Namespace, key: &Key) -> KeyHash {
        KeyHash::of(self.hash_seed, namespace, key)
    }

    /// Runs work that may take a while, if there is room for more of it: `slow` for what may need the bucket,
    /// `standing_in` for what is done in place of a home.
    fn within(
        room: &Arc<Semaphore>,
        deadline: Instant,
        reply: Replying,
        work: impl Future<Output = Result<Reply, Refusal>> + Send + 'static,
    ) {
        let Ok(place) = Arc::clone(room).try_acquire_owned() else {
            return reply.refuse(Refusal::Overloaded);
        };
        trace::spawn(async move {
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
        let ranges = inner.ranges();
        match ranges.range(hash) {
            Range::Home | Range::Copied => {}
            Range::Coming => return reply.refuse(Refusal::CatchingUp),
            Range::Foreign => return reply.refuse(Refusal::NotAHome),
        }
        let partition = hash.partition(ranges.partitions());
        let key = RecordKey::new(hash, namespace, key);
        // As it stands before the key is read: a node that comes to count meanwhile may have read it before.
        let votes = inner.stand.votes_on(partition, Instant::now());
        if let Some(found) = inner.engine.read_fast(&key) {
            return reply.send(found_reply(found, values, votes));
        }
        let reading = Arc::clone(inner);
        Self::within(&inner.slow, deadline, reply, async move {
            let found = reading.engine.read(&key).await.map_err(|e| Refusal::Unable(e.to_string()))?;
            // And still afterwards: it may have been stopped for long in between.
            let votes = votes && reading.stand.votes_on(partition, Instant::now());
            Ok(found_reply(found, values, votes))
        });
    }

    /// May this home mint? One that is catching up leaves it to others, unless there is nobody else.
    fn may_mint(&self, hash: KeyHash, insist: bool) -> Result<(), Refusal> {
        let partition = hash.partition(self.ranges.read().partitions());
        if insist || self.stand.votes_on(partition, Instant::now()) {
            return Ok(());
        }
        Err(Refusal::CatchingUp)
    }

    fn mint(
        inner: &Arc<Self>,
        request: MintRequest,
        ring_version: u64,
        insist: bool,
        deadline: Instant,
        reply: Replying,
    ) {
        if let Err(refusal) = inner.may_mint(request.hash, insist) {
            return reply.refuse(refusal);
        }
        let reply = Once::new(reply);
        let mint = || inner.engine.mint(&request, Graved::Unknown, |dot| minted(dot, reply.clone()));
        match inner.write(ring_version, request.hash, |range| range == Range::Home, mint) {
            Ok(Mint::Made) => {}
            Ok(Mint::Repeated(_) | Mint::Unknown) => {
                let Some(reply) = reply.take() else { return };
                let minting = mint_slowly(Arc::clone(inner), request, ring_version);
                Self::within(&inner.slow, deadline, reply, minting);
            }
            Err(refusal) => reply.send(Reply::Refused(refusal)),
        }
    }

    fn replicate(
        inner: &Arc<Self>,
        bytes: &Bytes,
        durability: Durability,
        hint_for: Option<NodeId>,
        ring_version: u64,
        deadline: Instant,
        reply: Replying,
    ) {
        let record = match Record::decode(bytes) {
            Ok(record) => record,
            Err(error) => return reply.refuse(Refusal::Malformed(error.to_string())),
        };
        if record.container.siblings().iter().any(|s| matches!(s.version.value, Value::Omitted(_))) {
            return reply.refuse(without_value());
        }
        // Memory of its own: a slice would keep the whole read buffer alive.
        let bytes = Bytes::copy_from_slice(bytes);
        if let Some(home) = hint_for {
            let keeping = Arc::clone(inner);
            return Self::within(&inner.standing_in, deadline, reply, async move {
                keeping.keep_for(&home, &bytes, durability, ring_version, deadline).await
            });
        }
        let hash = inner.hash(&record.namespace, &record.key);
        let reply = Once::new(reply);
        let done = inner.acknowledging(&reply, durability);
        let takes = |range| range != Range::Foreign;
        let replicate = || inner.engine.replicate(hash, &record, &bytes, durability, Graved::Unknown, done);
        match inner.write(ring_version, hash, takes, replicate) {
            Ok(Taking::Taken) => {}
            Ok(Taking::Buried(done)) => {
                let Some(reply) = reply.take() else { return };
                let (inner, taking) = (Arc::clone(inner), Arc::clone(inner));
                Self::within(&inner.slow, deadline, reply, async move {
                    let exhumed = taking.engine.exhume(hash).await;
                    exhumed.map_err(|e| Refusal::Unable(e.to_string()))?;
                    // Given back unused; what it would say is said here.
                    drop(done);
                    let (sender, word) = tokio::sync::oneshot::channel();
                    let done = Box::new(move |reached| {
                        let _ = sender.send(reached);
                    });
                    let (engine, graved) = (&taking.engine, Graved::Exhumed);
                    let replicate = || engine.replicate(hash, &record, &bytes, durability, graved, done);
                    taking.write(ring_version, hash, takes, replicate)?;
                    Ok(taking.stand.acknowledge(reached(word).await))
                });
            }
            Err(refusal) => reply.send(Reply::Refused(refusal)),
        }
    }

    /// Answers once a write is as durable as asked, and says whether this node counts by then.
    fn acknowledging(&self, reply: &Once, durability: Durability) -> crate::engine::Done {
        let (reply, stand, pace) = (reply.clone(), Arc::clone(&self.stand), Arc::clone(&self.pace));
        let arrived = Instant::now();
        let waiting = waiting_for(durability);
        Box::new(move |reached| {
            drop(waiting);
            // What waits for the bucket takes as long as that takes.
            if reached < Durability::Bucket {
                pace.foreground(arrived.elapsed());
            }
            reply.send(stand.acknowledge(reached));
        })
    }

    /// The version may be this node's own, or one that it minted or keeps for others.
    fn confirm(&self, key: &RecordKey, dot: &Dot, durability: Durability, reply: Replying) {
        let reply = Once::new(reply);
        if self.engine.confirm(key.hash, dot, durability, self.acknowledging(&reply, durability)).is_ok() {
            return;
        }
        let kept = {
            let reply = reply.clone();
            Box::new(move |reached| reply.send(Reply::Acked { reached }))
        };
        if let Err(refusal) = self.hints.confirm(key, dot, durability, kept) {
            reply.send(Reply::Refused(refusal));
        }
    }

    fn scan(inner: &Arc<Self>, scan: Scan, deadline: Instant, reply: Replying) {
        let partitions = inner.ranges().partitions();
        if scan.partition >= partitions {
            let wrong = format!("partition {} of {partitions}", scan.partition);
            return reply.refuse(Refusal::Malformed(wrong));
        }
        // A node that joins, or lost its disk, relies on what it is given here; one that was away may lack what
        // others keep for it. Two that lost their disks have only each other.
        let counts = match scan.age {
            None => inner.stand.votes_on(scan.partition, Instant::now()),
            Some(_) => {
                inner.stand.at(Instant::now()) == Standing::Counting && !inner.stand.has_lost(scan.partition)
            }
        };
        if !counts {
            return reply.refuse(Refusal::CatchingUp);
        }
        let engine = Arc::clone(&inner.engine);
        Self::within(&inner.slow, deadline, reply, async move {
            let (first, last) = KeyHash::partition_range(scan.partition, partitions);
            let after = scan.after.map(|(hash, name)| RecordKey { hash, name });
            let budget = usize::try_from(scan.bytes).unwrap_or(MAX_PAGE_BYTES).min(MAX_PAGE_BYTES);
            let since = scan.age.and_then(|age| Instant::now().checked_sub(age));
            let scanned = engine.scan(first, last, after.as_ref(), budget, since).await;
            let (records, more) = scanned.map_err(|e| Refusal::Unable(e.to_string()))?;
            Ok(page(&records, more))
        });
    }
}

/// Is it about keys, so that both sides must know the same ring?
fn is_about_keys(request: &Request) -> bool {
    match request {
        Request::Mint { .. } | Request::Replicate { .. } | Request::Confirm { .. } | Request::Read { .. } => {
            true
        }
        // These say that they know a ring, or ask what is to be known of it.
        Request::Hello | Request::Scan { .. } => true,
        Request::Repair(Repair::Sums { .. } | Repair::Clocks { .. } | Repair::Fetch { .. }) => true,
        Request::Repair(Repair::Settle | Repair::Begin { .. })
        | Request::Status
        | Request::Ring
        | Request::Gossip(_)
        | Request::Probe { .. }
        | Request::ComeBack { .. }
        | Request::Hints { .. }
        | Request::TookHints { .. }
        | Request::Offer { .. }
        | Request::Attest { .. }
        | Request::Reap { .. } => false,
    }
}

/// A page of a partition to be read.
struct Scan {
    partition: u32,
    after: Option<(KeyHash, Bytes)>,
    bytes: u32,
    age: Option<Duration>,
}

fn page(records: &[Bytes], more: bool) -> Reply {
    let mut page = BytesMut::new();
    for record in records {
        push_to_page(&mut page, record);
    }
    Reply::Page { more, records: page.freeze() }
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
    let mut graved = Graved::Unknown;
    for _ in 0..MINT_READS {
        let (sender, word) = tokio::sync::oneshot::channel();
        let done = |dot: Dot| -> crate::engine::Done {
            // Nobody waits any more: no error.
            Box::new(move |reached| drop(sender.send((dot, reached))))
        };
        let mint = || inner.engine.mint(&request, graved, done);
        match inner.write(ring_version, request.hash, |range| range == Range::Home, mint)? {
            Mint::Made => {
                let (dot, reached) = reached(word).await;
                return Ok(Reply::Minted { dot, reached, repeated: Bytes::new() });
            }
            Mint::Repeated(dot) => return repeat(&inner.engine, &key, dot, &request).await,
            Mint::Unknown => {
                inner.engine.read_full(&key).await.map_err(unable)?;
                graved = Graved::Exhumed;
            }
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
    // It may have been lost with a damaged object.
    if !record.container.seen().contains(&dot) {
        return Err(Refusal::Unable("a version that was minted is gone".to_owned()));
    }
    let (sender, word) = tokio::sync::oneshot::channel();
    let done = Box::new(move |reached| {
        let _ = sender.send(reached);
    });
    engine.take(request.hash, &record, &bytes, request.durability, done).await?;
    Ok(Reply::Minted { dot, reached: reached(word).await, repeated: bytes })
}

/// What was found, as the answer of a node that may or may not vote.
fn found_reply(found: Found, values: bool, votes: bool) -> Reply {
    match found {
        Found::Absent if !votes => Reply::Partial(Bytes::new()),
        Found::Absent => Reply::Absent,
        Found::Record(bytes) if values => held_reply(bytes, votes),
        Found::Record(bytes) => match Record::decode(&bytes) {
            Ok(record) => held_reply(record.without_values().encode(), votes),
            Err(error) => Reply::Refused(Refusal::Unable(error.to_string())),
        },
    }
}

fn held_reply(record: Bytes, votes: bool) -> Reply {
    if votes { Reply::Found(record) } else { Reply::Partial(record) }
}
