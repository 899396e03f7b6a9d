//! Exchanges words with other members over the authenticated port for calls: who is alive, what each counts for, which
//! ring it knows. Who hears of a newer ring has it shown (`learn`).
//!
//! All that is decided is decided in [`cartwheel_core::gossip`]. Whoever does not have the cluster's secret gets
//! no connection for calls, and so can't read, join or poison the gossip.

mod learn;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use cartwheel_core::codec::DecodeError;
use cartwheel_core::gossip::{Gossip, Heard, Liveness, TICK_MS, Word, decode, encode};
use cartwheel_core::names::NodeId;
use cartwheel_core::wire::{Answer, Call, Reply, Request};

use crate::connection::{CallError, Outcome, ReplyTo};
use crate::membership::{Follower, View};
use crate::peer::Peers;
use crate::seams::Seams;

/// How often a gateway asks.
const GATEWAY_TICK_MS: u64 = 1_000;
/// How long an exchange may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// Makes a storage node's word of itself; `node` and `beat` in it need not be right.
pub type Own = Box<dyn Fn() -> Word + Send + Sync>;

/// What a process knows by gossip. Cheap to clone; the exchange ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct GossipHandle {
    shared: Arc<Shared>,
    /// Its end is the end of the exchanging task.
    _alive: watch::Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    peers: Peers,
    follower: Follower,
    start: Instant,
    state: Mutex<State>,
    changed: Notify,
    /// Rung when somebody knows a newer ring.
    newer: Notify,
}

#[derive(Debug)]
struct State {
    gossip: Gossip,
    /// How many times something changed.
    changes: u64,
    /// The newest ring version that the follower was told to look for.
    nudged: u64,
}

impl GossipHandle {
    /// A storage node's: it exchanges with a few members every [`TICK_MS`]. `own` is called with each tick and
    /// must not hold a handle, or the exchange never ends.
    #[must_use]
    pub fn start(peers: Peers, follower: Follower, seams: Seams, me: NodeId, own: Own) -> Self {
        let (handle, ended) = Self::new(peers, follower, &seams, Some(me));
        tokio::spawn(exchange(Arc::clone(&handle.shared), seams, own, ended));
        handle
    }

    /// A gateway's: it tells nothing, and once a second asks one storage node what that one knows.
    #[must_use]
    pub fn listen(peers: Peers, follower: Follower, seams: Seams) -> Self {
        let (handle, ended) = Self::new(peers, follower, &seams, None);
        tokio::spawn(ask(Arc::clone(&handle.shared), seams, ended));
        handle
    }

    fn new(peers: Peers, follower: Follower, seams: &Seams, me: Option<NodeId>) -> (Self, watch::Sender<()>) {
        let (ended, alive) = watch::channel(());
        let state = State { gossip: Gossip::new(me), changes: 0, nudged: 0 };
        let (start, changed, newer) = (Instant::now(), Notify::new(), Notify::new());
        let shared = Arc::new(Shared { peers, follower, start, state: Mutex::new(state), changed, newer });
        tokio::spawn(learn::learn(Arc::clone(&shared), seams.clone(), ended.clone()));
        (Self { shared, _alive: alive }, ended)
    }

    /// Answers the words of a [`Request::Gossip`] with those for a [`Reply::Gossip`].
    ///
    /// # Errors
    /// [`DecodeError`]; nothing was taken in.
    pub fn answer(&self, words: Bytes) -> Result<Bytes, DecodeError> {
        let heard = decode(words)?;
        // Who says nothing is a gateway.
        if !heard.is_empty() {
            self.shared.hear(heard);
        }
        Ok(self.shared.tell())
    }

    /// Whether a node lives, as far as this process knows.
    #[must_use]
    pub fn liveness(&self, node: &NodeId) -> Liveness {
        self.shared.state.lock().gossip.liveness(node, self.shared.now_ms())
    }

    /// Who is known to live, sorted; a storage node itself is among them.
    #[must_use]
    pub fn alive(&self) -> Vec<NodeId> {
        self.shared.state.lock().gossip.alive_members(self.shared.now_ms())
    }

    /// The newest word of a node.
    #[must_use]
    pub fn word(&self, node: &NodeId) -> Option<Word> {
        self.shared.state.lock().gossip.word(node).cloned()
    }

    /// All words, the own one first, then sorted by node.
    #[must_use]
    pub fn words(&self) -> Vec<Word> {
        self.shared.state.lock().gossip.words().cloned().collect()
    }

    /// Who keeps hints for this node and believes it away, sorted.
    #[must_use]
    pub fn away_from_me(&self) -> Vec<NodeId> {
        self.shared.state.lock().gossip.away_from_me()
    }

    /// Waits until some member's liveness, standing or generation has changed, or who believes this node away,
    /// more than `seen` times since the start, and returns how many times. Begin with 0 and pass on what came
    /// back: no change is missed then.
    pub async fn changed(&self, seen: u64) -> u64 {
        loop {
            // Made before the look, so that no change in between is missed.
            let changed = self.shared.changed.notified();
            let changes = self.shared.state.lock().changes;
            if changes > seen {
                return changes;
            }
            changed.await;
        }
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// All words, encoded outside the lock.
    fn tell(&self) -> Bytes {
        let heard = {
            let state = self.state.lock();
            state.gossip.tell(self.now_ms())
        };
        encode(&heard)
    }

    fn hear(&self, heard: Vec<Heard>) {
        let Some(view) = self.follower.view() else { return };
        let newest = heard.iter().map(|h| h.word.ring_version).max().unwrap_or(0);
        let nudge = self.update(&view, |state, now| {
            state.gossip.merge(heard, now, |node| view.document.member(node).is_some());
            // Once for each version: a bucket that fails is not asked ever more often.
            let nudge = newest > view.version().max(state.nudged);
            state.nudged = state.nudged.max(newest);
            nudge
        });
        if nudge {
            self.follower.nudge();
        }
        if newest > view.version() {
            self.newer.notify_one();
        }
    }

    /// What came of an exchange; was it an answer?
    fn heard_back(&self, outcome: Result<Bytes, CallError>) -> bool {
        let answer = outcome.ok().and_then(|bytes| Answer::decode(bytes).ok());
        let Some(Reply::Gossip(words)) = answer.map(|answer| answer.reply) else { return false };
        match decode(words) {
            Ok(heard) => {
                self.hear(heard);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a storage node's gossip makes no sense");
                false
            }
        }
    }

    /// Changes what is known, and says so to those who wait for it.
    fn update<T>(&self, view: &View, change: impl FnOnce(&mut State, u64) -> T) -> T {
        let (result, changes) = {
            let mut state = self.state.lock();
            let now = self.now_ms();
            let result = change(&mut state, now);
            let changes = state.gossip.notice(now);
            state.changes += u64::from(changes.any);
            (result, changes)
        };
        for node in &changes.died {
            tracing::info!(%node, "gossip says that a storage node is dead");
            if let Some(member) = view.document.member(node) {
                self.peers.suspect(&member.address);
            }
        }
        if changes.any {
            self.changed.notify_waiters();
        }
        result
    }

    fn submit(&self, view: &View, to: &NodeId, words: Bytes, reply_to: ReplyTo) {
        let Some(member) = view.document.member(to) else { return };
        let call = Call { ring_version: view.version(), request: Request::Gossip(words) };
        self.peers.submit(&member.address, call.encode(), Instant::now() + DEADLINE, reply_to);
    }
}

fn members(view: &View) -> Vec<NodeId> {
    view.document.members.iter().map(|member| member.id.clone()).collect()
}

/// About `ms` milliseconds: a tenth more or less at random, so that ticks do not fall together.
fn about(ms: u64, seams: &Seams) -> Duration {
    Duration::from_millis(ms - ms / 10 + seams.random.below(ms / 5 + 1))
}

/// A storage node's task.
async fn exchange(shared: Arc<Shared>, seams: Seams, own: Own, ended: watch::Sender<()>) {
    // It never holds more than the exchanges of the last few ticks: each ends soon after its deadline.
    let (sender, mut answers) = mpsc::unbounded_channel::<Outcome>();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = ended.closed() => return,
            Some((_, outcome)) = answers.recv() => {
                shared.heard_back(outcome);
            }
            () = tokio::time::sleep_until(next) => {
                next = Instant::now() + about(TICK_MS, &seams);
                let word = own();
                // Nobody is a member before the first ring document was read.
                let Some(view) = shared.follower.view() else { continue };
                let partners = shared.update(&view, |State { gossip, .. }, now| {
                    gossip.tick(now);
                    gossip.say(word);
                    gossip.forget_non_members(|node| view.document.member(node).is_some());
                    gossip.partners(&members(&view), now, |n| seams.random.below(n))
                });
                let words = shared.tell();
                for partner in &partners {
                    let reply_to = ReplyTo { sender: sender.clone(), tag: 0 };
                    shared.submit(&view, partner, words.clone(), reply_to);
                }
            }
        }
    }
}

/// A gateway's task.
async fn ask(shared: Arc<Shared>, seams: Seams, ended: watch::Sender<()>) {
    tokio::select! {
        biased;
        () = ended.closed() => return,
        _ = shared.follower.newer_than(0) => {}
    }
    let (sender, mut answers) = mpsc::unbounded_channel::<Outcome>();
    let (mut tag, mut answered) = (0, false);
    let mut asked: Option<NodeId> = None;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = ended.closed() => return,
            Some((of, outcome)) = answers.recv() => {
                // A late answer is older than it says.
                if of == tag {
                    answered = shared.heard_back(outcome);
                }
            }
            () = tokio::time::sleep_until(next) => {
                next = Instant::now() + about(GATEWAY_TICK_MS, &seams);
                let Some(view) = shared.follower.view() else { continue };
                let last = asked.as_ref().map(|node| (node, answered));
                let source = shared.update(&view, |State { gossip, .. }, now| {
                    gossip.forget_non_members(|node| view.document.member(node).is_some());
                    gossip.source(&members(&view), last, now, |n| seams.random.below(n))
                });
                (asked, answered, tag) = (source, false, tag.wrapping_add(1));
                if let Some(source) = &asked {
                    shared.submit(&view, source, encode(&[]), ReplyTo { sender: sender.clone(), tag });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use axum::Router;
    use tokio::runtime::{Builder, Runtime};

    use cartwheel_bucket::{MemoryBucket, SharedBucket};
    use cartwheel_core::frame::FrameVersion;
    use cartwheel_core::ring::{Member, MemberState, RingDocument};
    use cartwheel_core::standing::Standing;

    use super::*;
    use crate::frames::{Handler, IncomingCall, accept};
    use crate::http_server::{Limits, serve};
    use crate::membership::{Founding, create, found, read_newest};
    use crate::peer::FRAMES_PATH;
    use crate::seams::Listener;
    use crate::secret::ClusterSecret;

    /// The part of a storage node's service that answers gossip.
    struct Service(GossipHandle);

    impl Handler for Service {
        fn handle(&self, call: IncomingCall) {
            let reply = match Call::decode(call.payload).unwrap().request {
                Request::Gossip(words) => Reply::Gossip(self.0.answer(words).unwrap()),
                Request::Ring => Reply::Ring(self.0.shared.follower.view().unwrap().bytes()),
                _ => return,
            };
            call.reply.send(Answer { ring_version: 1, reply }.encode());
        }
    }

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn word(generation: u64, standing: Standing, away: Vec<NodeId>) -> Word {
        Word {
            node: id("unset"),
            generation,
            beat: 0,
            ring_version: 1,
            standing,
            rounds: 0,
            bucket_fails: false,
            unflushed_bytes: 0,
            hints: Vec::new(),
            away,
        }
    }

    fn peers(secret: &str) -> Peers {
        Peers::new(Seams::real(), ClusterSecret::given(secret).node_token())
    }

    fn follow(bucket: &SharedBucket) -> Follower {
        Follower::start(Arc::clone(bucket), Seams::real(), Duration::from_secs(1))
    }

    /// A process: all that runs in it ends with it, and its sockets are closed.
    struct Process {
        runtime: Runtime,
        gossip: GossipHandle,
    }

    impl Process {
        fn kill(self) {
            self.runtime.shutdown_background();
        }
    }

    struct Cluster {
        bucket: SharedBucket,
        nodes: BTreeMap<NodeId, Process>,
        addresses: BTreeMap<NodeId, String>,
    }

    /// Three nodes in processes of their own; what `c` says of itself is `c_says`.
    async fn cluster(c_says: Word) -> Cluster {
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        let runtime = || Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (mut members, mut bound) = (Vec::new(), Vec::new());
        for name in ["a", "b", "c"] {
            let runtime = runtime();
            let listen = runtime.spawn(async { Seams::real().net.listen("127.0.0.1:0").await.unwrap() });
            let listener: Box<dyn Listener> = listen.await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let (zone, weight, state) = ("z".to_owned(), 1, MemberState::Active);
            members.push(Member {
                id: id(name),
                address: address.clone(),
                zone,
                weight,
                state,
                becomes: None,
                dead: false,
            });
            bound.push((id(name), address, listener, runtime));
        }
        let document = found(&Seams::real(), Founding::default(), members, "test").unwrap();
        assert!(create(&*bucket, &document).await.unwrap());
        let (mut nodes, mut addresses) = (BTreeMap::new(), BTreeMap::new());
        for (name, address, listener, runtime) in bound {
            let says = if name == id("c") { c_says.clone() } else { word(1, Standing::Counting, vec![]) };
            let _inside = runtime.enter();
            let follower = follow(&bucket);
            let knows = follower.clone();
            let own: Own = Box::new(move || Word {
                ring_version: knows.view().map_or(0, |view| view.version()),
                ..says.clone()
            });
            let gossip = GossipHandle::start(peers("right"), follower, Seams::real(), name.clone(), own);
            let service = Arc::new(Service(gossip.clone()));
            let token = ClusterSecret::given("right").node_token();
            let route = axum::routing::get(move |request| async move {
                accept(request, &token, FrameVersion::NEWEST, service)
            });
            let router = Router::new().route(FRAMES_PATH, route);
            runtime.spawn(async move {
                let (_stop, stopped) = watch::channel(false);
                serve(listener, router, Limits::default(), stopped).await;
            });
            addresses.insert(name.clone(), address);
            nodes.insert(name, Process { runtime, gossip });
        }
        Cluster { bucket, nodes, addresses }
    }

    async fn until(gossip: &GossipHandle, what: impl Fn(&GossipHandle) -> bool) {
        let mut seen = 0;
        while !what(gossip) {
            seen = tokio::time::timeout(Duration::from_secs(60), gossip.changed(seen)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_killed_node_is_seen_dead_by_nodes_and_gateways() {
        let mut cluster = cluster(word(1, Standing::Absorbing, vec![id("a")])).await;
        let gateway = GossipHandle::listen(peers("right"), follow(&cluster.bucket), Seams::real());
        let all = ["a", "b", "c"].map(id);
        assert_eq!(gateway.liveness(&all[0]), Liveness::Unknown);
        let seen_by: Vec<_> = all.iter().map(|name| cluster.nodes[name].gossip.clone()).collect();
        for gossip in seen_by.iter().chain([&gateway]) {
            until(gossip, |gossip| gossip.alive() == all).await;
            let of_c = |gossip: &GossipHandle| gossip.word(&id("c")).map(|word| word.standing);
            assert_eq!(of_c(gossip), Some(Standing::Absorbing));
        }
        assert_eq!(seen_by[0].away_from_me(), [id("c")]);
        assert_eq!(seen_by[1].away_from_me(), []);
        cluster.nodes.remove(&all[1]).unwrap().kill();
        for gossip in [&seen_by[0], &seen_by[2], &gateway] {
            until(gossip, |gossip| gossip.alive() == [id("a"), id("c")]).await;
            assert_eq!(gossip.liveness(&id("b")), Liveness::Dead);
        }
        for (_, process) in cluster.nodes {
            process.kill();
        }
    }

    #[tokio::test]
    async fn without_the_secret_nothing_is_told_or_taken() {
        let cluster = cluster(word(1, Standing::Counting, vec![])).await;
        let gossip = &cluster.nodes[&id("a")].gossip;
        until(gossip, |gossip| gossip.alive().len() == 3).await;
        let forged = Word { node: id("b"), ..word(900, Standing::Returning, vec![]) };
        let words = encode(&[Heard { word: forged, age_ms: 0, brief: false }]);
        let call = Call { ring_version: 1, request: Request::Gossip(words) };
        let address = &cluster.addresses[&id("a")];
        let tell = |secret| {
            let (peers, call) = (peers(secret), &call);
            async move { peers.call(address, call, Instant::now() + Duration::from_secs(60)).await }
        };
        assert_eq!(tell("wrong").await, Err(CallError::NotSent));
        assert_eq!(gossip.word(&id("b")).unwrap().generation, 1);
        let mut stream = Seams::real().net.connect(address).await.unwrap();
        let token = ClusterSecret::given("wrong").node_token();
        let token = token.header().to_str().unwrap().to_owned();
        let head = format!("GET {FRAMES_PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 401");
        // The same words from someone who knows the secret are taken in.
        assert!(matches!(tell("right").await, Ok(Answer { reply: Reply::Gossip(_), .. })));
        assert_eq!(gossip.word(&id("b")).unwrap().generation, 900);
        for (_, process) in cluster.nodes {
            process.kill();
        }
    }

    #[tokio::test]
    async fn who_is_not_shown_a_new_ring_by_the_bucket_hears_it_from_nodes() {
        let cluster = cluster(word(1, Standing::Counting, vec![])).await;
        let first = read_newest(&*cluster.bucket, 0).await.unwrap().unwrap();
        let shown: SharedBucket = Arc::new(MemoryBucket::new());
        create(&*shown, &first).await.unwrap();
        let follower = follow(&shown);
        let speaking = |newest| {
            let token = ClusterSecret::given("right").node_token();
            let peers = Peers::speaking(newest, Seams::real(), token);
            GossipHandle::listen(peers, follower.clone(), Seams::real())
        };
        let _old = speaking(FrameVersion::One);
        let moved = |document: &RingDocument, to: &str| {
            document.with_address(&id("c"), to, document.changed.clone(), "n".to_owned()).unwrap()
        };
        let second = moved(&first, "127.0.0.1:1");
        create(&*cluster.bucket, &second).await.unwrap();
        let soon =
            |after, seconds| tokio::time::timeout(Duration::from_secs(seconds), follower.newer_than(after));
        assert!(soon(1, 4).await.is_err(), "a node is not asked what its frames do not have");
        let _new = speaking(FrameVersion::Two);
        assert_eq!(soon(1, 60).await.unwrap().unwrap().document, second);
        let third = moved(&second, "127.0.0.1:2");
        create(&*cluster.bucket, &third).await.unwrap();
        assert_eq!(soon(2, 60).await.unwrap().unwrap().document, third);
        for (_, process) in cluster.nodes {
            process.kill();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_exchange_ends_with_the_last_handle() {
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        let (held, watched) = watch::channel(());
        let own: Own = Box::new(move || {
            let _ = &watched;
            word(1, Standing::Counting, vec![])
        });
        let handle = GossipHandle::start(peers("s"), follow(&bucket), Seams::real(), id("a"), own);
        let clone = handle.clone();
        drop(handle);
        assert!(tokio::time::timeout(Duration::from_secs(9), held.closed()).await.is_err());
        drop(clone);
        held.closed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_ring_in_a_word_is_looked_for() {
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        let member = |name| Member {
            id: id(name),
            address: "127.0.0.1:1".to_owned(),
            zone: "z".to_owned(),
            weight: 1,
            state: MemberState::Active,
            becomes: None,
            dead: false,
        };
        let first = found(&Seams::real(), Founding::default(), vec![member("a")], "test").unwrap();
        create(&*bucket, &first).await.unwrap();
        let follower = Follower::start(Arc::clone(&bucket), Seams::real(), Duration::from_secs(1 << 20));
        follower.newer_than(0).await.unwrap();
        let own: Own = Box::new(|| word(1, Standing::Counting, vec![]));
        let handle = GossipHandle::start(peers("s"), follower.clone(), Seams::real(), id("a"), own);
        let second = first.with_member(member("b"), first.changed.clone(), "n".to_owned()).unwrap();
        create(&*bucket, &second).await.unwrap();
        // Of a stranger, so far: that is the case that matters.
        let heard = Word { node: id("b"), ring_version: 2, ..word(1, Standing::Returning, vec![]) };
        handle.answer(encode(&[Heard { word: heard, age_ms: 0, brief: false }])).unwrap();
        let found = tokio::time::timeout(Duration::from_secs(60), follower.newer_than(1)).await;
        assert_eq!(found.unwrap().unwrap().version(), 2);
    }
}
