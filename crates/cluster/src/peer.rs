//! The storage nodes one can call: a connection each, opened when needed, reopened with backoff.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use cartwheel_core::frame::PROTOCOL;
use cartwheel_core::wire::{Answer, Call, Pieces};

use crate::connection::{CallError, Connection, ReplyTo};
use crate::seams::{Seams, Stream};
use crate::secret::NodeToken;

/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The first pause after a failed connect; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between connects.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Calls that may wait for a connection to open.
const MAX_WAITING: usize = 1024;
/// The path on a storage node's HTTP port where frames begin.
pub const FRAMES_PATH: &str = "/internal/frames";

/// A call that waits for the connection.
type Waiting = (Pieces, Instant, ReplyTo);

#[derive(Debug)]
enum State {
    Closed,
    Opening(Vec<Waiting>),
    Open(Arc<Connection>),
    Pausing { until: Instant },
}

/// One storage node, by address.
#[derive(Debug)]
struct Peer {
    address: String,
    state: Mutex<State>,
    failures: Mutex<u32>,
}

/// All storage nodes that this process calls.
#[derive(Debug, Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    seams: Seams,
    token: NodeToken,
    peers: Mutex<BTreeMap<String, Arc<Peer>>>,
}

impl Peers {
    /// Nobody yet; `token` proves to nodes that the caller belongs to the cluster.
    #[must_use]
    pub fn new(seams: Seams, token: NodeToken) -> Self {
        Self { inner: Arc::new(Inner { seams, token, peers: Mutex::default() }) }
    }

    /// Sends a call to the node at `address`; its outcome goes to `reply_to`, whatever it is. Never blocks:
    /// without a connection the call waits for one in the background, at most until `deadline`.
    pub fn submit(&self, address: &str, call: Pieces, deadline: Instant, reply_to: ReplyTo) {
        let peer = self.peer(address);
        let mut state = peer.state.lock();
        let patience = deadline.saturating_duration_since(Instant::now());
        match &mut *state {
            State::Open(connection) if !connection.is_closed() => {
                let connection = Arc::clone(connection);
                drop(state);
                connection.submit(call, patience, reply_to);
            }
            State::Opening(waiting) if waiting.len() < MAX_WAITING => {
                waiting.push((call, deadline, reply_to));
            }
            State::Opening(_) => {
                drop(state);
                reply_to.send(Err(CallError::NotSent));
            }
            State::Pausing { until } if Instant::now() < *until => {
                drop(state);
                reply_to.send(Err(CallError::NotSent));
            }
            State::Open(_) | State::Closed | State::Pausing { .. } => {
                *state = State::Opening(vec![(call, deadline, reply_to)]);
                drop(state);
                tokio::spawn(open(Arc::clone(&self.inner), peer));
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

    fn peer(&self, address: &str) -> Arc<Peer> {
        let mut peers = self.inner.peers.lock();
        if let Some(peer) = peers.get(address) {
            return Arc::clone(peer);
        }
        let peer = Arc::new(Peer {
            address: address.to_owned(),
            state: Mutex::new(State::Closed),
            failures: Mutex::new(0),
        });
        peers.insert(address.to_owned(), Arc::clone(&peer));
        peer
    }
}

/// Opens the connection and sends what waited for it.
async fn open(inner: Arc<Inner>, peer: Arc<Peer>) {
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, upgrade(&inner, &peer.address)).await;
    let result = opened.unwrap_or_else(|_| Err("timed out".to_owned()));
    let next = match &result {
        Ok(connection) => {
            *peer.failures.lock() = 0;
            State::Open(Arc::clone(connection))
        }
        Err(error) => {
            let failures = {
                let mut failures = peer.failures.lock();
                *failures = failures.saturating_add(1);
                *failures
            };
            tracing::debug!(address = %peer.address, %error, failures, "can't connect to a storage node");
            State::Pausing { until: Instant::now() + pause(failures, inner.seams.random.next_u64()) }
        }
    };
    let before = std::mem::replace(&mut *peer.state.lock(), next);
    let State::Opening(waiting) = before else { return };
    for (call, deadline, reply_to) in waiting {
        match &result {
            Ok(connection) => {
                let patience = deadline.saturating_duration_since(Instant::now());
                connection.submit(call, patience, reply_to);
            }
            Err(_) => reply_to.send(Err(CallError::NotSent)),
        }
    }
}

/// The pause after so many failures in a row: doubling, and between half and all of it at random.
fn pause(failures: u32, random: u64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX_PAUSE);
    let half = u64::try_from(doubled.as_micros() / 2).unwrap_or(0);
    Duration::from_micros(half + random % (half + 1))
}

/// Connects and asks the node's HTTP port for frames.
async fn upgrade(inner: &Inner, address: &str) -> Result<Arc<Connection>, String> {
    let stream = inner.seams.net.connect(address).await.map_err(|e| e.to_string())?;
    let (mut sender, http) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(http.with_upgrades());
    let request = http::Request::get(FRAMES_PATH)
        .header(HOST, address)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, PROTOCOL)
        .header(AUTHORIZATION, inner.token.header())
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("the node answered {} to the upgrade", response.status()));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| e.to_string())?;
    let parts = upgraded.downcast::<TokioIo<Stream>>().map_err(|_| "unexpected transport".to_owned())?;
    Ok(Connection::start(parts.io.into_inner(), &parts.read_buf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_jitter_up_to_the_limit() {
        for (failures, longest) in [(1, 50), (2, 100), (3, 200), (7, 2000), (4_000_000, 2000)] {
            for random in [0, 1 << 40, u64::MAX] {
                let pause = pause(failures, random).as_millis();
                assert!((longest / 2..=longest).contains(&pause), "{failures}: {pause}");
            }
        }
    }
}
