//! The storage nodes one can call: a connection each, opened when needed. A node that fails is down, and is
//! probed in the background until it answers again; no call waits for it meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use cartwheel_core::frame::{Frame, FrameKind, FrameVersion, HEADER_BYTES};
use cartwheel_core::trace::TraceContext;
use cartwheel_core::wire::{Answer, Call, Pieces};

use crate::connection::{CallError, Connection, Latency, ReplyTo};
use crate::detector::{Admission, Detector, End, Next};
use crate::seams::{Seams, Stream};
use crate::secret::NodeToken;
use crate::trace;

/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Calls that may wait for a connection to open.
const MAX_WAITING: usize = 1024;
/// The path on a storage node's HTTP port where frames begin.
pub const FRAMES_PATH: &str = "/internal/frames";

/// A call that waits for the connection.
#[derive(Debug)]
struct Waiting {
    call: Pieces,
    trace: Option<TraceContext>,
    deadline: Instant,
    reply_to: ReplyTo,
}

/// What leads to a peer. There is a connection exactly while the detector believes the peer to be up; while it
/// believes anything but "unknown", one task tends the peer; see [`tend`].
#[derive(Debug, Default)]
struct Link {
    detector: Detector,
    connection: Option<Arc<Connection>>,
    waiting: Vec<Waiting>,
}

/// Told the address of each node that is lost.
type OnLost = Box<dyn Fn(&str) + Send + Sync>;

/// Who is told, once there is somebody.
#[derive(Default)]
struct Listener(OnceLock<OnLost>);

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

/// One storage node, by address.
#[derive(Debug)]
struct Peer {
    address: String,
    listener: Arc<Listener>,
    latency: Arc<Latency>,
    link: Mutex<Link>,
    /// Rung when the peer, believed to be down, says that it is back.
    back: Arc<Notify>,
}

/// All storage nodes that this process calls. The connections end with the last clone.
#[derive(Debug, Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    way: Arc<Way>,
    listener: Arc<Listener>,
    peers: Mutex<BTreeMap<String, Arc<Peer>>>,
}

/// What it takes to connect.
#[derive(Debug)]
struct Way {
    seams: Seams,
    token: NodeToken,
    /// The newest version of frames that is offered.
    newest: FrameVersion,
}

impl Peers {
    /// Nobody yet; `token` proves to nodes that the caller belongs to the cluster.
    #[must_use]
    pub fn new(seams: Seams, token: NodeToken) -> Self {
        Self::speaking(FrameVersion::NEWEST, seams, token)
    }

    /// As [`Peers::new`], with frames of version `newest` at most.
    #[must_use]
    pub fn speaking(newest: FrameVersion, seams: Seams, token: NodeToken) -> Self {
        let way = Arc::new(Way { seams, token, newest });
        let (listener, peers) = (Arc::default(), Mutex::default());
        Self { inner: Arc::new(Inner { way, listener, peers }) }
    }

    /// Calls `lost` with the address of each node whose connection ended, or to which none could be opened: before
    /// any call can find that out, and before the node is reached again. Takes one listener; more are ignored.
    pub fn on_lost(&self, lost: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.inner.listener.0.set(Box::new(lost));
    }

    /// Sends a call to the node at `address`; its outcome goes to `reply_to`, whatever it is. Never blocks. A
    /// call waits for a node's first connection (1 s at most) and for one that broke (100 ms at most); to a
    /// node that is down it is not sent. The trace that the caller's work is part of goes with it.
    pub fn submit(&self, address: &str, call: Pieces, deadline: Instant, reply_to: ReplyTo) {
        let peer = self.peer(address);
        let (now, trace) = (Instant::now(), trace::current());
        let mut link = peer.link.lock();
        if let Some(connection) = &link.connection {
            let connection = Arc::clone(connection);
            drop(link);
            return connection.submit(call, trace, now, deadline.saturating_duration_since(now), reply_to);
        }
        match link.detector.admit(now) {
            Admission::WaitAndStart => {
                link.waiting.push(Waiting { call, trace, deadline, reply_to });
                drop(link);
                self.start(&peer);
            }
            Admission::Wait if link.waiting.len() < MAX_WAITING => {
                link.waiting.push(Waiting { call, trace, deadline, reply_to });
            }
            Admission::Wait | Admission::Refuse => {
                drop(link);
                reply_to.send(Err(CallError::NotSent));
            }
        }
    }

    /// One call and its answer.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Lost`] too for an answer that makes no sense, or none by `deadline`.
    pub async fn call(&self, address: &str, call: &Call, deadline: Instant) -> Result<Answer, CallError> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        self.submit(address, call.encode(), deadline, ReplyTo { sender, tag: 0 });
        match tokio::time::timeout_at(deadline, receiver.recv()).await {
            Ok(Some((_, Ok(bytes)))) => Answer::decode(bytes).map_err(|_| CallError::Lost),
            Ok(Some((_, Err(error)))) => Err(error),
            Ok(None) | Err(_) => Err(CallError::Lost),
        }
    }

    /// Did the node at `address` fail, so that calls to it are not sent until a probe finds it again? `false`
    /// for one that was never called.
    #[must_use]
    pub fn is_down(&self, address: &str) -> bool {
        self.known(address).is_some_and(|peer| peer.link.lock().detector.is_down(Instant::now()))
    }

    /// Somebody else says that the node at `address` is dead. If nothing was heard from it in the last 500 ms,
    /// it is down until a probe finds it: its connection is closed and calls in flight are lost. No effect
    /// on a node that was never called.
    pub fn suspect(&self, address: &str) {
        let Some(peer) = self.known(address) else { return };
        let now = Instant::now();
        let (nobody_tends, closed) = peer.change(|link| {
            if link.connection.as_ref().is_some_and(|connection| connection.is_fresh(now)) {
                return (false, None);
            }
            (link.detector.suspected(now), link.connection.take())
        });
        if let Some(connection) = closed {
            connection.end(End::Suspected);
        }
        if nobody_tends {
            self.start(&peer);
        }
    }

    /// The node at `address` says itself that it is back. If it was down it is tried at once, and calls wait for that
    /// as for a connection that broke; a connection on which nothing was heard in the last 500 ms may lead to who
    /// was there before, and is closed. No effect on a node that was never called.
    pub fn expect_back(&self, address: &str) {
        let Some(peer) = self.known(address) else { return };
        let now = Instant::now();
        let (was_down, old) = peer.change(|link| {
            let old = link.connection.clone().filter(|connection| !connection.is_fresh(now));
            (link.detector.returned(), old)
        });
        if let Some(connection) = old {
            connection.end(End::Broken);
        }
        if was_down {
            peer.back.notify_one();
        }
    }

    /// How long the node at `address` takes to answer, on a moving average over its last calls; `None` before
    /// the first answer. Calls without an answer in time are not in it.
    #[must_use]
    pub fn latency(&self, address: &str) -> Option<Duration> {
        self.known(address)?.latency.average()
    }

    fn known(&self, address: &str) -> Option<Arc<Peer>> {
        self.inner.peers.lock().get(address).map(Arc::clone)
    }

    fn peer(&self, address: &str) -> Arc<Peer> {
        let mut peers = self.inner.peers.lock();
        if let Some(peer) = peers.get(address) {
            return Arc::clone(peer);
        }
        let peer = Arc::new(Peer {
            address: address.to_owned(),
            listener: Arc::clone(&self.inner.listener),
            latency: Arc::default(),
            link: Mutex::default(),
            back: Arc::default(),
        });
        peers.insert(address.to_owned(), Arc::clone(&peer));
        peer
    }

    fn start(&self, peer: &Arc<Peer>) {
        tokio::spawn(tend(Arc::downgrade(peer), peer.address.clone(), Arc::clone(&self.inner.way)));
    }
}

impl Peer {
    /// Changes what is believed of the peer. Calls that need no longer wait after that are sent or fail.
    fn change<T>(&self, event: impl FnOnce(&mut Link) -> T) -> T {
        let mut link = self.link.lock();
        let before = (link.connection.is_some(), link.detector.believes_down());
        let outcome = event(&mut link);
        let ended = before.0 && link.connection.is_none();
        if (ended || (!before.1 && link.detector.believes_down()))
            && let Some(lost) = self.listener.0.get()
        {
            // Under the lock: nobody is told that the node is there in between.
            lost(&self.address);
        }
        if link.detector.is_opening() {
            return outcome;
        }
        let (waiting, connection) = (std::mem::take(&mut link.waiting), link.connection.clone());
        drop(link);
        let now = Instant::now();
        for Waiting { call, trace, deadline, reply_to } in waiting {
            match &connection {
                Some(connection) if deadline > now => {
                    connection.submit(call, trace, now, deadline - now, reply_to);
                }
                _ => reply_to.send(Err(CallError::NotSent)),
            }
        }
        outcome
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let link = self.link.get_mut();
        if let Some(connection) = link.connection.take() {
            connection.end(End::Idle);
        }
        for waiting in link.waiting.drain(..) {
            waiting.reply_to.send(Err(CallError::NotSent));
        }
    }
}

/// Opens a peer's connection, watches over it and opens it again, until nothing is to be done for the peer or
/// nobody holds it any more. What is next is decided in the same step as what has happened, so that a peer
/// that is left alone can be taken up again by another task at once.
async fn tend(peer: Weak<Peer>, address: String, way: Arc<Way>) {
    let decide = |link: &mut Link| link.detector.next(Instant::now(), way.seams.random.next_u64());
    let begun = peer.upgrade().map(|held| (held.change(decide), Arc::clone(&held.back)));
    let Some((mut next, back)) = begun else { return };
    loop {
        let (pause, patience) = match next {
            Next::Rest => return,
            Next::Open { patience } => (None, patience),
            Next::OpenAfter(pause) => (Some(pause), None),
        };
        let opening = async {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            if peer.strong_count() == 0 {
                return Err("nobody asks for it".to_owned());
            }
            open_patiently(&peer, &address, &way, patience).await
        };
        let opened = tokio::select! {
            biased;
            () = back.notified() => None,
            opened = opening => Some(opened),
        };
        let Some(held) = peer.upgrade() else { return };
        let Some(opened) = opened else {
            // What was begun before it was back leads nowhere.
            next = held.change(decide);
            continue;
        };
        let Opened { stream, early, version } = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(%address, %error, "can't connect to a storage node");
                next = held.change(|link| {
                    link.detector.failed(Instant::now());
                    decide(link)
                });
                continue;
            }
        };
        let (connection, tasks) = Connection::start(stream, early, version, Arc::clone(&held.latency));
        held.change(|link| {
            link.detector.opened();
            link.connection = Some(Arc::clone(&connection));
        });
        drop(held);
        let end = connection.watch(tasks).await;
        tracing::debug!(%address, ?end, "the connection to a storage node ended");
        let decided = peer.upgrade().map(|held| {
            held.change(|link| {
                link.connection = None;
                link.detector.ended(end, Instant::now());
                decide(link)
            })
        });
        // Only now: whoever tries again at once finds the connection gone.
        connection.lose_calls();
        let Some(decided) = decided else { return };
        next = decided;
    }
}

/// Opens a connection. If that takes longer than `patience`, calls wait no longer, and it goes on.
async fn open_patiently(
    peer: &Weak<Peer>,
    address: &str,
    way: &Way,
    patience: Option<Duration>,
) -> Result<Opened, String> {
    let mut opening = Box::pin(tokio::time::timeout(CONNECT_TIMEOUT, open(way, address)));
    let opened = match patience {
        None => opening.await,
        Some(patience) => match tokio::time::timeout(patience, &mut opening).await {
            Ok(opened) => opened,
            Err(_) => {
                if let Some(peer) = peer.upgrade() {
                    peer.change(|link| link.detector.late(Instant::now()));
                }
                opening.await
            }
        },
    };
    opened.unwrap_or_else(|_| Err("timed out".to_owned()))
}

/// A connection on which the node has answered a ping.
struct Opened {
    stream: Stream,
    /// What was read beyond that answer.
    early: BytesMut,
    version: FrameVersion,
}

async fn open(way: &Way, address: &str) -> Result<Opened, String> {
    let (mut stream, early, version) = upgrade(way, address).await?;
    stream.write_all(&Frame::bare(FrameKind::Ping).header()).await.map_err(|e| e.to_string())?;
    stream.flush().await.map_err(|e| e.to_string())?;
    let mut buffer = BytesMut::from(&early[..]);
    while buffer.len() < HEADER_BYTES {
        if stream.read_buf(&mut buffer).await.map_err(|e| e.to_string())? == 0 {
            return Err("the node closed the connection".to_owned());
        }
    }
    match Frame::take(&mut buffer) {
        Ok(Some(frame)) if frame.kind == FrameKind::Pong => Ok(Opened { stream, early: buffer, version }),
        _ => Err("the node did not answer the ping".to_owned()),
    }
}

/// Connects and asks the node's HTTP port for frames: the stream, what was read beyond the answer, and the version
/// that the node has chosen.
async fn upgrade(way: &Way, address: &str) -> Result<(Stream, Bytes, FrameVersion), String> {
    let stream = way.seams.net.connect(address).await.map_err(|e| e.to_string())?;
    let (mut sender, http) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Ends with `sender`, should this future be dropped halfway.
    tokio::spawn(http.with_upgrades());
    let request = http::Request::get(FRAMES_PATH)
        .header(HOST, address)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, way.newest.offer())
        .header(AUTHORIZATION, way.token.header())
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("the node answered {} to the upgrade", response.status()));
    }
    let chosen = response.headers().get(UPGRADE).and_then(|name| name.to_str().ok());
    let version = chosen.and_then(|name| way.newest.choose(name)).ok_or("the node speaks other frames")?;
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| e.to_string())?;
    let parts = upgraded.downcast::<TokioIo<Stream>>().map_err(|_| "unexpected transport".to_owned())?;
    Ok((parts.io.into_inner(), parts.read_buf, version))
}

#[cfg(test)]
mod tests;
