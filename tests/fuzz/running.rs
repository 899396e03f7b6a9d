//! A storage node and a gateway in this process, over loopback, and what all that runs here is held to.

use std::path::Path;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use bytes::Bytes;
use cartwheel_bucket::{Bucket, MemoryBucket, SharedBucket};
use cartwheel_cluster::http_server::Limits;
use cartwheel_cluster::membership::Founding;
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::ClusterSecret;
use cartwheel_cluster::{CallError, ReplyTo};
use cartwheel_core::ring::RingDocument;
use cartwheel_core::wire::{Call, Request};
use cartwheel_gateway::{GatewayConfig, RunningGateway};
use cartwheel_storage_node::disk::FileDisk;
use cartwheel_storage_node::{NodeConfig, RunningNode};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::samples::node;

/// How long anything may take that is sure to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long an answer is waited for before the sending end is closed, where the request may not be whole.
const MOMENT: Duration = Duration::from_millis(250);
/// What all threads of what is fuzzed are called.
const THREADS: &str = "fuzzed";

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static HOOK: Once = Once::new();

/// A runtime whose panics are noticed.
pub(crate) fn runtime() -> Runtime {
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name().is_some_and(|name| name.starts_with(THREADS)) {
                PANICS.lock().unwrap().push(info.to_string());
            } else {
                others(info);
            }
        }));
    });
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).thread_name(THREADS).enable_all().build().unwrap()
}

/// Did any task of what is fuzzed panic?
pub(crate) fn panicked() -> Result<(), String> {
    match PANICS.lock().unwrap().pop() {
        None => Ok(()),
        Some(words) => Err(format!("a panic in a task: {words}")),
    }
}

/// What a node is told.
pub(crate) fn node_config() -> NodeConfig {
    NodeConfig {
        founding: Founding { partitions: 8, tokens: 4, replicas: 1 },
        cache_bytes: 16 << 20,
        flush_interval: Duration::from_millis(50),
        ring_interval: Duration::from_millis(50),
        repair_every: Duration::from_secs(86_400),
        ..NodeConfig::new(node("node-a"), "127.0.0.1:0".to_owned())
    }
}

/// A node that serves, with a disk of its own.
pub(crate) struct Node {
    pub(crate) running: RunningNode,
    pub(crate) bucket: SharedBucket,
    pub(crate) secret: ClusterSecret,
    pub(crate) address: String,
    pub(crate) peers: Peers,
}

impl Node {
    /// Starts one that founds its cluster, or goes on in that of the bucket. Says why it can't.
    pub(crate) async fn start(config: NodeConfig, bucket: SharedBucket, disk: &Path) -> Result<Self, String> {
        let seams = Seams::real();
        let secret = ClusterSecret::from_bucket(&*bucket, &*seams.random).await.unwrap();
        let disk = Arc::new(FileDisk::open(disk).unwrap());
        let id = config.id.clone();
        let (given, at) = (secret.clone(), Arc::clone(&bucket));
        // In a task, so that a panic in it is one of the node's threads.
        let starting = tokio::spawn(async move {
            cartwheel_storage_node::start(config, Seams::real(), Some(disk), at, &given).await
        });
        let running = starting.await.map_err(|e| format!("the start ended in a panic: {e}"))?;
        let running = running.map_err(|e| e.to_string())?;
        let newest = newest_ring(&*bucket).await;
        let address = newest.member(&id).unwrap().address.clone();
        let peers = Peers::new(seams, secret.node_token());
        Ok(Self { running, bucket, secret, address, peers })
    }

    /// Sends the bytes of a call.
    pub(crate) async fn call(&self, call: Vec<u8>, wait: Duration) -> Result<Bytes, CallError> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let deadline = Instant::now() + wait;
        let pieces = (Bytes::from(call), Bytes::new());
        self.peers.submit(&self.address, pieces, deadline, ReplyTo { sender, tag: 0 });
        match tokio::time::timeout_at(deadline, receiver.recv()).await {
            Ok(Some((_, outcome))) => outcome,
            Ok(None) | Err(_) => Err(CallError::Lost),
        }
    }

    /// It still answers.
    pub(crate) async fn answers(&self) -> Result<(), String> {
        let call = Call { ring_version: 1, request: Request::Status };
        let answer = self.peers.call(&self.address, &call, Instant::now() + PATIENCE).await;
        panicked()?;
        answer.map(drop).map_err(|e| format!("the node answers no more: {e}"))
    }
}

async fn newest_ring(bucket: &dyn Bucket) -> RingDocument {
    cartwheel_cluster::membership::read_newest(bucket, 0).await.unwrap().unwrap()
}

/// A cluster of one node and one gateway.
pub(crate) struct Cluster {
    pub(crate) node: Node,
    gateway: RunningGateway,
    _disk: TempDir,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let (disk, bucket) = (tempfile::tempdir().unwrap(), Arc::new(MemoryBucket::new()));
        let node = Node::start(node_config(), bucket, disk.path()).await.unwrap();
        let limits =
            Limits { first_bytes: Duration::from_secs(2), head: Duration::from_secs(2), ..Limits::default() };
        let config = GatewayConfig {
            limits,
            ring_interval: Duration::from_millis(50),
            deadline: PATIENCE,
            ..GatewayConfig::new("127.0.0.1:0".to_owned())
        };
        let bucket = Arc::clone(&node.bucket);
        let gateway = cartwheel_gateway::start(config, Seams::real(), bucket, &node.secret).await.unwrap();
        let cluster = Self { node, gateway, _disk: disk };
        let write = b"PUT /v1/kv/warm/up HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1";
        let serves = async {
            let mut looks = tokio::time::interval(Duration::from_millis(20));
            loop {
                looks.tick().await;
                if exchange(cluster.gateway.address(), write).await.is_ok_and(|answer| answer.status == 204) {
                    break;
                }
            }
        };
        timeout(PATIENCE, serves).await.expect("the cluster serves");
        cluster
    }

    pub(crate) fn gateway(&self) -> &str {
        self.gateway.address()
    }
}

/// What a server said.
#[derive(Debug)]
pub(crate) struct Answer {
    /// 0 if it said nothing that begins as an answer does.
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    fn parse(got: &[u8]) -> Option<Self> {
        let end = got.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&got[..end]).to_ascii_lowercase();
        let status = head.strip_prefix("http/1.")?.split(' ').nth(1)?.parse().ok()?;
        let mut answer = Self { status, head, body: got[end + 4..].to_vec() };
        // What comes after it answers another request, or what was taken for one.
        if let Some(length) = answer.length() {
            answer.body.truncate(length);
        }
        Some(answer)
    }

    fn length(&self) -> Option<usize> {
        self.header("content-length")?.parse().ok()
    }

    fn is_whole(&self, of_head: bool) -> bool {
        let bodiless = of_head || matches!(self.status, 100..200 | 204 | 304);
        let chunked = self.header("transfer-encoding").is_some() && self.body.ends_with(b"0\r\n\r\n");
        bodiless || chunked || self.length() == Some(self.body.len())
    }
}

/// Sends bytes as they are on a connection of their own, and reads the first answer. If none comes for a moment the
/// request is not whole: then the sending end is closed, and what comes then is read.
pub(crate) async fn exchange(address: &str, request: &[u8]) -> Result<Answer, String> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.map_err(|e| format!("can't connect: {e}"))?;
        // Who has seen enough may close while more is sent.
        let _ = stream.write_all(request).await;
        let of_head = request.starts_with(b"HEAD");
        let (mut got, mut closed) = (Vec::new(), false);
        loop {
            if let Some(answer) = Answer::parse(&got).filter(|answer| answer.is_whole(of_head)) {
                return Ok(answer);
            }
            let mut buffer = [0; 4096];
            match timeout(MOMENT, stream.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(n)) => got.extend_from_slice(&buffer[..n]),
                Err(_) if closed => {}
                Err(_) => {
                    closed = true;
                    let _ = stream.shutdown().await;
                }
            }
        }
        let nothing = Answer { status: 0, head: String::new(), body: Vec::new() };
        Ok(Answer::parse(&got).unwrap_or(nothing))
    };
    timeout(PATIENCE, talk).await.map_err(|_| "no answer and no end".to_owned())?
}

/// Makes `Content-Length` that of the body, where a request has both.
pub(crate) fn mend_length(input: &mut Vec<u8>) {
    let Some(end) = input.windows(4).position(|w| w == b"\r\n\r\n") else { return };
    let length = input.len() - end - 4;
    let name = b"content-length:";
    let Some(start) = input[..end].windows(name.len()).position(|w| w.eq_ignore_ascii_case(name)) else {
        return;
    };
    let from = start + name.len();
    let to = input[from..end].iter().position(|b| *b == b'\r').map_or(end, |at| from + at);
    input.splice(from..to, format!(" {length}").into_bytes());
}

/// Is the body of this request shorter than it says?
pub(crate) fn breaks_off(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") else { return true };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let body = &request[end + 4..];
    let chunked = head.contains("transfer-encoding:") && !body.ends_with(b"0\r\n\r\n");
    chunked || length.is_some_and(|length| body.len() < length)
}
