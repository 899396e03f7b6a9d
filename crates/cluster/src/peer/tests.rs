//! Peers against a network with one node that is gone, hangs, answers pings only, or is well.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::future::pending;
use std::io;

use async_trait::async_trait;
use cartwheel_core::wire::{Reply, Request};
use tokio::io::DuplexStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::*;
use crate::seams::{Listener, Net, Random, SystemClock};
use crate::secret::ClusterSecret;

const NODE: &str = "node:1";
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How the one node of these tests treats its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Nobody listens.
    Gone,
    /// Connections are taken, and nothing is answered: a process that was stopped.
    Hung,
    /// The upgrade is answered, nothing after it.
    Numb,
    /// Pings are answered, calls are not.
    Mute,
    /// All is answered.
    Well,
}

/// A network with one node.
#[derive(Debug)]
struct OneNode {
    mood: Mutex<Mood>,
    /// How often somebody connected, or tried to.
    connects: Mutex<u32>,
    /// The serving ends.
    serving: Mutex<JoinSet<()>>,
}

impl OneNode {
    fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn connects(&self) -> u32 {
        *self.connects.lock()
    }

    /// How many of its connections have not ended.
    fn open(&self) -> usize {
        let mut serving = self.serving.lock();
        while serving.try_join_next().is_some() {}
        serving.len()
    }

    /// Ends all connections.
    fn cut(&self) {
        self.serving.lock().abort_all();
    }
}

#[async_trait]
impl Net for Arc<OneNode> {
    async fn connect(&self, _: &str) -> io::Result<Stream> {
        *self.connects.lock() += 1;
        if *self.mood.lock() == Mood::Gone {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let node = Arc::clone(self);
        self.serving.lock().spawn(async move { serve(theirs, &node).await.unwrap() });
        Ok(Box::new(ours))
    }

    async fn listen(&self, _: &str) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The answering end, as far as a caller can tell. A node that hangs goes on where it stood once it is well.
async fn serve(mut stream: DuplexStream, node: &OneNode) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let mut upgraded = false;
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        while *node.mood.lock() == Mood::Hung {
            pass(10 * MS).await;
        }
        if !upgraded {
            let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let _ = buffer.split_to(end + 4);
            upgraded = true;
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: cartwheel-frames/1\r\n\r\n";
            stream.write_all(answer.as_bytes()).await?;
        }
        while let Some(frame) = Frame::take(&mut buffer).unwrap() {
            let mut answer = match frame.kind {
                _ if *node.mood.lock() == Mood::Numb => continue,
                FrameKind::Ping => Frame::bare(FrameKind::Pong),
                _ if *node.mood.lock() == Mood::Mute => continue,
                _ => Frame { correlation: frame.correlation, ..Frame::bare(FrameKind::Answer) },
            };
            if answer.kind == FrameKind::Answer {
                answer.head = Answer { ring_version: 1, reply: Reply::Hello }.encode().0;
            }
            stream.write_all(&[&answer.header()[..], &answer.head].concat()).await?;
        }
    }
}

#[derive(Debug)]
struct Dice(Mutex<u64>);

impl Random for Dice {
    fn next_u64(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 16
    }
}

fn cluster(mood: Mood) -> (Peers, Arc<OneNode>) {
    let node =
        Arc::new(OneNode { mood: Mutex::new(mood), connects: Mutex::new(0), serving: Mutex::default() });
    let seams = Seams {
        net: Arc::new(Arc::clone(&node)),
        clock: Arc::new(SystemClock),
        random: Arc::new(Dice(Mutex::new(1))),
    };
    (Peers::new(seams, ClusterSecret::given("s").node_token()), node)
}

/// Lets everything run for so long.
async fn pass(time: Duration) {
    let _ = tokio::time::timeout(time, pending::<()>()).await;
}

/// A call that waits for an answer for so long; its outcome, and how long it took.
async fn call_within(peers: &Peers, patience: Duration) -> (Result<(), CallError>, Duration) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let began = Instant::now();
    let call = Call { ring_version: 1, request: Request::Hello }.encode();
    peers.submit(NODE, call, began + patience, ReplyTo { sender, tag: 0 });
    let (_, outcome) = receiver.recv().await.unwrap();
    (outcome.map(drop), began.elapsed())
}

async fn call(peers: &Peers) -> (Result<(), CallError>, Duration) {
    call_within(peers, 10 * SECOND).await
}

const REFUSED: (Result<(), CallError>, Duration) = (Err(CallError::NotSent), Duration::ZERO);

#[tokio::test(start_paused = true)]
async fn a_refused_peer_is_down_and_probed_without_a_storm() {
    let (peers, node) = cluster(Mood::Gone);
    assert!(!peers.is_down(NODE), "never tried");
    assert_eq!(call(&peers).await, REFUSED);
    assert!(peers.is_down(NODE));
    let until = Instant::now() + 60 * SECOND;
    while Instant::now() < until {
        assert_eq!(call(&peers).await, REFUSED);
        pass(5 * MS).await;
    }
    let connects = node.connects();
    assert!((30..=70).contains(&connects), "{connects} connects");
    assert_eq!(peers.latency(NODE), None);
}

#[tokio::test(start_paused = true)]
async fn recovery_is_noticed_without_a_call_that_tries() {
    for mood in [Mood::Gone, Mood::Hung] {
        let (peers, node) = cluster(mood);
        assert_eq!(call(&peers).await.0, Err(CallError::NotSent));
        pass(30 * SECOND).await;
        assert!(peers.is_down(NODE));
        node.set(Mood::Well);
        pass(2 * SECOND + 20 * MS).await;
        assert!(!peers.is_down(NODE), "{mood:?}");
        let connects = node.connects();
        assert_eq!(call(&peers).await.0, Ok(()));
        assert_eq!(node.connects(), connects, "on the probe's connection");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_peer_is_down_soon_and_keeps_no_call_waiting() {
    let (peers, node) = cluster(Mood::Well);
    assert_eq!(call(&peers).await.0, Ok(()));
    node.set(Mood::Hung);
    let (outcome, took) = call(&peers).await;
    assert_eq!(outcome, Err(CallError::Lost));
    assert!(took >= 1250 * MS && took <= 1750 * MS, "{took:?}");
    // In pauses and while the kernel of the hung process takes connections.
    for _ in 0..10_000 {
        assert!(peers.is_down(NODE));
        assert_eq!(call(&peers).await, REFUSED);
        pass(MS).await;
    }
    assert!(node.connects() > 3);
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_the_first_connection_of_a_hung_peer_only() {
    let (peers, _node) = cluster(Mood::Hung);
    assert_eq!(call(&peers).await, (Err(CallError::NotSent), CONNECT_TIMEOUT));
    for _ in 0..1000 {
        assert_eq!(call(&peers).await, REFUSED);
        pass(3 * MS).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_pong_proves_a_peer() {
    let (peers, node) = cluster(Mood::Numb);
    assert_eq!(call(&peers).await, (Err(CallError::NotSent), CONNECT_TIMEOUT));
    for _ in 0..1000 {
        assert_eq!(call(&peers).await, REFUSED);
        pass(10 * MS).await;
    }
    assert!(node.connects() > 3);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_was_restarted_is_reopened_at_once() {
    let (peers, node) = cluster(Mood::Well);
    assert_eq!(call(&peers).await.0, Ok(()));
    node.set(Mood::Mute);
    let calling = tokio::spawn({
        let peers = peers.clone();
        async move { call(&peers).await.0 }
    });
    pass(MS).await;
    node.cut();
    assert_eq!(calling.await.unwrap(), Err(CallError::Lost));
    node.set(Mood::Well);
    assert!(!peers.is_down(NODE));
    let (outcome, took) = call(&peers).await;
    assert_eq!(outcome, Ok(()));
    assert!(took < 100 * MS, "{took:?}");
    assert_eq!(node.connects(), 2);
}

#[tokio::test(start_paused = true)]
async fn calls_wait_a_short_time_for_a_connection_that_broke() {
    let (peers, node) = cluster(Mood::Well);
    assert_eq!(call(&peers).await.0, Ok(()));
    node.set(Mood::Hung);
    let calling = tokio::spawn({
        let peers = peers.clone();
        async move { call(&peers).await.0 }
    });
    pass(MS).await;
    node.cut();
    assert_eq!(calling.await.unwrap(), Err(CallError::Lost));
    let (outcome, took) = call(&peers).await;
    assert_eq!(outcome, Err(CallError::NotSent));
    assert!(took <= 100 * MS && took > 90 * MS, "{took:?}");
    assert!(peers.is_down(NODE));
    assert_eq!(call(&peers).await, REFUSED);
}

#[tokio::test(start_paused = true)]
async fn an_idle_end_is_no_failure() {
    let (peers, node) = cluster(Mood::Well);
    assert_eq!(call(&peers).await.0, Ok(()));
    node.cut();
    pass(SECOND).await;
    assert!(!peers.is_down(NODE));
    assert_eq!(node.connects(), 1, "nobody asked for another");
    assert_eq!(call(&peers).await.0, Ok(()));
    // Its address is taken over by nobody: the call that finds out waits for no timeout.
    node.cut();
    node.set(Mood::Gone);
    pass(SECOND).await;
    assert_eq!(call(&peers).await, REFUSED);
    assert!(peers.is_down(NODE));
}

#[tokio::test(start_paused = true)]
async fn five_lost_calls_make_it_down_although_pongs_come() {
    let (peers, node) = cluster(Mood::Well);
    assert_eq!(call(&peers).await.0, Ok(()));
    node.set(Mood::Mute);
    for n in 0..5 {
        assert!(!peers.is_down(NODE), "after {n}");
        assert_eq!(call_within(&peers, 300 * MS).await.0, Err(CallError::Lost));
    }
    pass(MS).await;
    assert!(peers.is_down(NODE));
    assert_eq!(call(&peers).await, REFUSED);
    node.set(Mood::Well);
    pass(SECOND).await;
    assert_eq!(call(&peers).await.0, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_stopped_caller_condemns_nobody() {
    let (peers, node) = cluster(Mood::Well);
    assert_eq!(call(&peers).await.0, Ok(()));
    for n in 0..20 {
        // With and without a ping under way.
        pass(300 * MS + n * 70 * MS).await;
        // All of this process is stopped: its clock goes on, nothing runs.
        tokio::time::advance(60 * SECOND).await;
        assert!(!peers.is_down(NODE));
        assert_eq!(call(&peers).await.0, Ok(()));
    }
    assert_eq!(node.connects(), 1);
}

#[tokio::test(start_paused = true)]
async fn suspicion_counts_only_against_who_is_silent() {
    let (peers, node) = cluster(Mood::Well);
    peers.suspect(NODE);
    assert!(!peers.is_down(NODE), "never called");
    assert_eq!(call(&peers).await.0, Ok(()));
    peers.suspect(NODE);
    assert!(!peers.is_down(NODE), "heard just now");

    node.set(Mood::Hung);
    let calling = tokio::spawn({
        let peers = peers.clone();
        async move { call(&peers).await }
    });
    pass(600 * MS).await;
    peers.suspect(NODE);
    assert!(peers.is_down(NODE));
    assert_eq!(call(&peers).await, REFUSED);
    let (outcome, took) = calling.await.unwrap();
    assert_eq!(outcome, Err(CallError::Lost));
    assert!(took < 700 * MS, "{took:?}");
    node.set(Mood::Well);
    pass(3 * SECOND).await;
    assert!(!peers.is_down(NODE), "the probe decides");
}

#[tokio::test(start_paused = true)]
async fn a_suspected_peer_without_a_connection_is_probed_and_keeps_no_call_waiting() {
    let (peers, node) = cluster(Mood::Hung);
    let calling = tokio::spawn({
        let peers = peers.clone();
        async move { call(&peers).await }
    });
    pass(10 * MS).await;
    peers.suspect(NODE);
    let (outcome, took) = calling.await.unwrap();
    assert_eq!(outcome, Err(CallError::NotSent));
    assert!(took < 20 * MS, "{took:?}");
    node.set(Mood::Well);
    pass(3 * SECOND).await;
    node.cut();
    pass(SECOND).await;
    let connects = node.connects();
    peers.suspect(NODE);
    peers.suspect(NODE);
    assert!(peers.is_down(NODE));
    pass(SECOND).await;
    assert!(!peers.is_down(NODE));
    assert_eq!(node.connects(), connects + 1, "one task tends it");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_it_is_back_is_called_at_once() {
    let (peers, node) = cluster(Mood::Gone);
    peers.expect_back(NODE);
    assert!(!peers.is_down(NODE), "never called");
    for mood in [Mood::Gone, Mood::Hung] {
        node.set(mood);
        assert_eq!(call(&peers).await.0, Err(CallError::NotSent));
        pass(30 * SECOND + 300 * MS).await;
        node.set(Mood::Well);
        assert_eq!(call(&peers).await, REFUSED, "nobody knows yet");
        peers.expect_back(NODE);
        let (outcome, took) = call(&peers).await;
        assert_eq!(outcome, Ok(()));
        assert!(took < 100 * MS, "{took:?}");
        node.set(Mood::Gone);
        node.cut();
        pass(SECOND).await;
    }
    // It said so and can't be reached: nothing waits for long.
    node.set(Mood::Hung);
    assert_eq!(call(&peers).await.0, Err(CallError::NotSent));
    peers.expect_back(NODE);
    let (outcome, took) = call(&peers).await;
    assert_eq!(outcome, Err(CallError::NotSent));
    assert!(took <= 100 * MS, "{took:?}");
    assert!(peers.is_down(NODE));
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_to_a_peer_that_is_back_is_replaced() {
    let (peers, node) = cluster(Mood::Well);
    assert_eq!(call(&peers).await.0, Ok(()));
    peers.expect_back(NODE);
    assert_eq!((call(&peers).await.0, node.connects()), (Ok(()), 1), "heard just now");
    node.set(Mood::Hung);
    pass(600 * MS).await;
    peers.expect_back(NODE);
    node.set(Mood::Well);
    pass(MS).await;
    assert_eq!((call(&peers).await.0, node.connects()), (Ok(()), 2));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_nobody_asks_for_is_let_go() {
    let (peers, node) = cluster(Mood::Gone);
    assert_eq!(call(&peers).await, REFUSED);
    pass(400 * SECOND).await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    let connects = node.connects();
    pass(400 * SECOND).await;
    assert_eq!(node.connects(), connects);
    node.set(Mood::Well);
    assert_eq!(call(&peers).await.0, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn every_task_ends_with_the_last_of_the_peers() {
    for (called, mood) in [
        (Some(Mood::Well), Mood::Well),
        (Some(Mood::Well), Mood::Hung),
        (Some(Mood::Gone), Mood::Gone),
        (Some(Mood::Hung), Mood::Hung),
        (None, Mood::Well),
        (None, Mood::Hung),
    ] {
        let (peers, node) = cluster(called.unwrap_or(mood));
        if called.is_some() {
            let _ = call(&peers).await;
        }
        node.set(mood);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let hello = Call { ring_version: 1, request: Request::Hello }.encode();
        peers.submit(NODE, hello, Instant::now() + 60 * SECOND, ReplyTo { sender, tag: 0 });
        pass(Duration::ZERO).await;
        let connects = node.connects();
        drop(peers);
        assert!(receiver.recv().await.is_some(), "every call has an outcome");
        pass(3 * SECOND).await;
        let alive = Handle::current().metrics().num_alive_tasks();
        assert_eq!(alive, node.open(), "{called:?} then {mood:?}: only the node's own tasks are left");
        assert_eq!(node.connects(), connects);
        node.set(Mood::Well);
        pass(SECOND).await;
        assert_eq!(node.open(), 0, "its callers are gone");
    }
}
