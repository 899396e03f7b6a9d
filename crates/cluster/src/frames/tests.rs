//! Callers and nodes of different versions, over real sockets.
#![allow(clippy::unwrap_used)]
use axum::Router;
use cartwheel_core::codec::DecodeError;
use cartwheel_core::wire::{Call, Request};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::*;
use crate::http_server::{Limits, serve as serve_http};
use crate::peer::{FRAMES_PATH, Peers};
use crate::seams::Seams;
use crate::secret::ClusterSecret;
use crate::trace;

/// Answers each call, and keeps what trace it said to be part of.
#[derive(Default)]
struct Listening(Mutex<Vec<Option<TraceContext>>>);

impl Handler for Listening {
    fn handle(&self, call: IncomingCall) {
        assert_eq!(Call::decode(call.payload).unwrap(), hello());
        self.0.lock().push(call.trace);
        call.reply.send(Answer { ring_version: 1, reply: Reply::Hello }.encode());
    }
}

fn hello() -> Call {
    Call { ring_version: 1, request: Request::Hello }
}

fn secret() -> ClusterSecret {
    ClusterSecret::given("s")
}

/// The trace of all calls in this process.
fn of_all() -> Option<TraceContext> {
    TraceContext::new([7; 16], [9; 8], 1)
}

/// A node that knows frames up to `newest`: its address, what it hears, and what ends it when dropped.
async fn node(newest: FrameVersion) -> (String, Arc<Listening>, watch::Sender<bool>) {
    let listener = Seams::real().net.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heard = Arc::new(Listening::default());
    let handler = Arc::clone(&heard);
    let token = secret().node_token();
    let route = axum::routing::get(move |request| async move { accept(request, &token, newest, handler) });
    let (stop, stopped) = watch::channel(false);
    let router = Router::new().route(FRAMES_PATH, route);
    tokio::spawn(async move { serve_http(listener, router, Limits::default(), stopped).await });
    (address, heard, stop)
}

#[tokio::test]
async fn callers_and_nodes_of_different_versions_understand_each_other() {
    use FrameVersion::{One, Two};
    trace::set(of_all);
    for (caller, callee) in [(One, One), (One, Two), (Two, One), (Two, Two)] {
        let (address, heard, _stop) = node(callee).await;
        let peers = Peers::speaking(caller, Seams::real(), secret().node_token());
        let deadline = Instant::now() + Duration::from_secs(60);
        let answer = peers.call(&address, &hello(), deadline).await.unwrap();
        assert_eq!(answer.reply, Reply::Hello, "{caller:?} calls {callee:?}");
        let told = if (caller, callee) == (Two, Two) { of_all() } else { None };
        assert_eq!(*heard.0.lock(), [told], "{caller:?} calls {callee:?}");
    }
}

/// Asks for frames as `offer` says, sends `frames`, and returns what comes back until the node hangs up.
async fn conversation(newest: FrameVersion, offer: &str, frames: &[Frame]) -> Vec<u8> {
    converse(newest, offer, frames).await.0
}

/// The same; and how many calls the node heard.
async fn converse(newest: FrameVersion, offer: &str, frames: &[Frame]) -> (Vec<u8>, usize) {
    let (address, calls, _stop) = node(newest).await;
    let token = secret().node_token().header();
    let request = format!(
        "GET {FRAMES_PATH} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: {offer}\r\n\
         authorization: {}\r\n\r\n",
        token.to_str().unwrap()
    );
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut heard = BytesMut::new();
    while !heard.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0);
    }
    for frame in frames {
        stream.write_all(&[&frame.header()[..], &frame.head].concat()).await.unwrap();
    }
    if frames.is_empty() {
        stream.shutdown().await.unwrap();
    }
    while stream.read_buf(&mut heard).await.unwrap_or(0) > 0 {}
    let calls = calls.0.lock().len();
    (heard.to_vec(), calls)
}

#[tokio::test]
async fn a_version_that_nobody_knows_is_refused_with_those_that_are_known() {
    let answer = conversation(FrameVersion::Two, "cartwheel-frames/3", &[]).await;
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 426"), "{answer}");
    assert!(answer.contains("upgrade: cartwheel-frames/2, cartwheel-frames/1\r\n"), "{answer}");
}

#[tokio::test]
async fn frames_of_a_newer_version_than_agreed_on_end_the_connection() {
    let call = hello().encode().0;
    let traced = Frame { head: of_all().unwrap().before(&call), ..Frame::bare(FrameKind::TracedCall) };
    let cut_short = Frame { head: Bytes::from_static(&[1; 24]), ..Frame::bare(FrameKind::TracedCall) };
    for (offer, frame) in [("cartwheel-frames/1", traced), ("cartwheel-frames/2", cut_short)] {
        let answer = conversation(FrameVersion::Two, offer, &[frame]).await;
        let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
        assert!(answer.contains(&format!("upgrade: {offer}\r\n")), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{offer}: an answer was sent: {answer:?}");
    }
}

#[test]
fn a_context_of_zeros_is_none() {
    let mut zeros = Bytes::from_static(&[0; 25]);
    assert_eq!(TraceContext::take(&mut zeros), Err(DecodeError::Malformed("trace context")));
}

#[tokio::test]
async fn a_call_that_comes_twice_is_handled_once() {
    let call = |turn| {
        let correlation = Correlation { slot: 3, turn }.to_u64();
        Frame { correlation, head: hello().encode().0, ..Frame::bare(FrameKind::Call) }
    };
    // The last of them ends the connection.
    let end = Frame { correlation: u64::MAX, ..call(0) };
    let frames = [call(1), call(1), call(2), call(1), call(2), end];
    let (_, calls) = converse(FrameVersion::Two, "cartwheel-frames/2", &frames).await;
    assert_eq!(calls, 2);
}
