//! What the cluster is compared with: a bare answer, and a fan-out to three backends that keep nothing. Both
//! over the accept loop, the frames and the connections that gateway and storage nodes use.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::get;
use bytes::Bytes;
use clap::ValueEnum;
use http::{StatusCode, Uri};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use cartwheel::client::{Failure, Output};
use cartwheel_cluster::ReplyTo;
use cartwheel_cluster::frames::{self, Handler, IncomingCall};
use cartwheel_cluster::http_server::{Limits, serve};
use cartwheel_cluster::peer::{FRAMES_PATH, Peers};
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_core::frame::FrameVersion;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::quorum::Durability;
use cartwheel_core::wire::{Answer, Call, Refusal, Reply, Request as Asked};

use crate::load::VALUE_BYTES;

/// Where the load generator sends its requests.
const PATH: &str = "/v1/kv/{namespace}/{key}";
const LOOPBACK: &str = "127.0.0.1:0";
const BACKENDS: usize = 3;
/// Answers that a request waits for.
const NEEDED: usize = 2;
const DEADLINE: Duration = Duration::from_secs(5);
/// Every value.
static VALUE: [u8; VALUE_BYTES] = [b'x'; VALUE_BYTES];

/// A server to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Answers 1 KiB.
    Hello,
    /// Asks three backends and answers after two answers.
    FanOut,
}

/// Serves until standard input ends.
///
/// # Errors
/// Exit status 1 if it can't listen.
pub(crate) fn main(role: Role, output: &mut Output) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("can't serve: {error}"));
    // As the serving commands do.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let address = runtime.block_on(start(role)).map_err(failed)?;
    output.line(&format!("gateway http://{address}"))?;
    let mut ignored = Vec::new();
    std::io::stdin().read_to_end(&mut ignored).map(drop).map_err(failed)
}

async fn start(role: Role) -> std::io::Result<String> {
    let hello = || async { Bytes::from_static(&VALUE) };
    match role {
        Role::Hello => listen(Router::new().route(PATH, get(hello))).await,
        Role::FanOut => {
            let secret = ClusterSecret::given("bench");
            let mut backends = Vec::new();
            for _ in 0..BACKENDS {
                let token = secret.node_token();
                let accept = move |request: Request| {
                    let token = token.clone();
                    async move { frames::accept(request, &token, FrameVersion::NEWEST, Arc::new(Backend)) }
                };
                backends.push(listen(Router::new().route(FRAMES_PATH, get(accept))).await?);
            }
            let gateway = Gateway { peers: Peers::new(Seams::real(), secret.node_token()), backends };
            listen(Router::new().route(PATH, get(read).put(write)).with_state(Arc::new(gateway))).await
        }
    }
}

/// Serves `router` on a free port for as long as the process lives.
async fn listen(router: Router) -> std::io::Result<String> {
    let listener = Seams::real().net.listen(LOOPBACK).await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        let (_running, stop) = watch::channel(false);
        serve(listener, router, Limits::default(), stop).await;
    });
    Ok(address)
}

/// Answers every call at once.
struct Backend;

impl Handler for Backend {
    fn handle(&self, call: IncomingCall) {
        let reply = match Call::decode(call.payload).map(|call| call.request) {
            Ok(Asked::Read { .. }) => Reply::Found(Bytes::from_static(&VALUE)),
            Ok(Asked::Replicate { .. }) => Reply::Acked { reached: Durability::Memory },
            _ => Reply::Refused(Refusal::Malformed("not of this bench".to_owned())),
        };
        call.reply.send(Answer { ring_version: 1, reply }.encode());
    }
}

struct Gateway {
    peers: Peers,
    backends: Vec<String>,
}

impl Gateway {
    /// Asks every backend; the last value that came when enough have answered.
    async fn ask(&self, request: Asked) -> Result<Bytes, StatusCode> {
        let deadline = Instant::now() + DEADLINE;
        let call = Call { ring_version: 1, request }.encode();
        let (sender, mut answers) = mpsc::unbounded_channel();
        for (tag, address) in (0..).zip(&self.backends) {
            let reply_to = ReplyTo { sender: sender.clone(), tag };
            self.peers.submit(address, call.clone(), deadline, reply_to);
        }
        let mut value = Bytes::new();
        for _ in 0..NEEDED {
            let Ok(Some((_, Ok(bytes)))) = timeout_at(deadline, answers.recv()).await else {
                return Err(StatusCode::SERVICE_UNAVAILABLE);
            };
            match Answer::decode(bytes).map(|answer| answer.reply) {
                Ok(Reply::Found(found)) => value = found,
                Ok(Reply::Acked { .. }) => {}
                _ => return Err(StatusCode::BAD_GATEWAY),
            }
        }
        Ok(value)
    }
}

async fn read(State(gateway): State<Arc<Gateway>>, uri: Uri) -> Result<Bytes, StatusCode> {
    let namespace = Namespace::new(b"hop").map_err(|_| StatusCode::BAD_REQUEST)?;
    let key = Key::new(Bytes::copy_from_slice(uri.path().as_bytes())).map_err(|_| StatusCode::BAD_REQUEST)?;
    gateway.ask(Asked::Read { namespace, key, values: true, stands_for: None }).await
}

async fn write(State(gateway): State<Arc<Gateway>>, record: Bytes) -> Result<StatusCode, StatusCode> {
    let durability = Durability::Memory;
    gateway.ask(Asked::Replicate { durability, hint_for: None, record }).await.map(|_| StatusCode::NO_CONTENT)
}
