//! Clients of the simulated cluster: carts that are read, changed and written back, writes without a clock,
//! and in the end a reader that looks whether everything is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cartwheel_cluster::seams::Random;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;

use crate::checker::{Checker, Past, Shown, WriteId};
use crate::faults::{GATEWAY, HEALED, LATE, joins};
use crate::trace::Trace;
use crate::world::lock::Lock;
use crate::world::{Bug, SeededRandom, pass};

/// How many clients write.
pub const WRITERS: usize = 4;
/// The port of the gateway.
pub const PORT: u16 = 8080;
/// The keys that they share.
const KEYS: u64 = 6;
/// When they stop: a while after everything is whole again.
const STOP: Duration = Duration::from_secs(24);
/// The deadline of every request.
const DEADLINE: Duration = Duration::from_secs(2);
/// How much later than that an answer may come.
const SLACK: Duration = Duration::from_millis(500);
/// How long after that the late storage node may take to join, and then each key to be readable from all its
/// homes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What all clients share.
#[derive(Debug)]
pub struct Shared {
    /// The seed.
    pub seed: u64,
    /// The planted bug.
    pub bug: Bug,
    /// What happens.
    pub trace: Arc<Trace>,
    /// What it means.
    pub checker: Lock<Checker>,
    /// How many writers have stopped.
    pub stopped: Lock<usize>,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: BTreeMap<String, String>,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What a client knows of a key: a clock, and what it stands for.
#[derive(Debug, Clone, Default)]
struct Context {
    clock: Option<String>,
    past: Past,
}

/// One client.
pub struct Client {
    name: String,
    shared: Arc<Shared>,
    random: SeededRandom,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// The client `name`.
    pub fn new(name: &str, shared: Arc<Shared>) -> Self {
        let random = SeededRandom::new(shared.seed, name);
        Self { name: name.to_owned(), shared, random, connection: None }
    }

    fn violate(&self, what: &str) {
        self.shared.trace.line(&self.name, &format!("VIOLATION {what}"));
        self.shared.checker.lock().violate(format!("{}: {what}", self.name));
    }

    async fn connect(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, String> {
        if self.connection.as_ref().is_none_or(SendRequest::is_closed) {
            let stream =
                turmoil::net::TcpStream::connect((GATEWAY, PORT)).await.map_err(|e| e.to_string())?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            self.connection = Some(sender);
        }
        self.connection.as_mut().ok_or_else(|| "no connection".to_owned())
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let sender = self.connect().await?;
        sender.ready().await.map_err(|e| e.to_string())?;
        let (parts, body) = sender.send_request(request).await.map_err(|e| e.to_string())?.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        let mut headers = BTreeMap::new();
        for (name, value) in &parts.headers {
            // hyper reads the real clock for it.
            if name != header::DATE {
                headers.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned());
            }
        }
        Ok(Answer { status: parts.status, headers, body })
    }

    /// Sends a request and waits for its answer; `None`, and a violation, if there is none in time.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        self.shared.checker.lock().counts.requests += 1;
        self.shared.trace.line(&self.name, &format!("{method} {path} {headers:?} {body}"));
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, GATEWAY);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        let outcome = tokio::time::timeout(DEADLINE + SLACK, self.exchange(request)).await;
        let answer = match outcome {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.violate(&format!("{path}: the connection to the gateway broke: {error}"));
                self.connection = None;
                return None;
            }
            Err(_) => {
                self.violate(&format!("{path}: no answer by the deadline"));
                self.connection = None;
                return None;
            }
        };
        let text = String::from_utf8_lossy(&answer.body);
        self.shared.trace.line(&self.name, &format!("{} {:?} {text}", answer.status, answer.headers));
        Some(answer)
    }

    /// Waits until the gateway can serve.
    async fn ready(&mut self) {
        loop {
            let answer = self.send(Method::GET, "/readyz", &[], "").await;
            if answer.is_some_and(|a| a.status == StatusCode::OK) {
                return;
            }
            pass(Duration::from_millis(100)).await;
        }
    }

    /// Reads a key; `None` if no quorum answered.
    async fn read(&mut self, key: &str, query: &str) -> Option<Context> {
        let owed = self.shared.checker.lock().owed(key);
        let path = format!("/v1/kv/carts/{key}?deadline={}ms{query}", DEADLINE.as_millis());
        let answer = self.send(Method::GET, &path, &[("accept", "application/json")], "").await?;
        let values = match answer.status {
            StatusCode::NOT_FOUND => Vec::new(),
            StatusCode::OK => vec![Shown {
                tag: answer.header("etag").to_owned(),
                dot: None,
                value: String::from_utf8_lossy(&answer.body).into_owned(),
            }],
            StatusCode::MULTIPLE_CHOICES => siblings(&answer.body),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                self.shared.checker.lock().counts.unread += 1;
                return None;
            }
            other => {
                self.violate(&format!("GET {key} was answered {other}"));
                return None;
            }
        };
        let past = {
            let mut checker = self.shared.checker.lock();
            checker.counts.reads += 1;
            checker.shown(&self.name, key, &values, &owed)
        };
        Some(Context { clock: answer.headers.get("vector-clock").cloned(), past })
    }

    /// Writes a key; what the client knows of it then, if the write was acknowledged.
    async fn write(&mut self, key: &str, context: &Context) -> Option<Context> {
        let (id, value) = self.shared.checker.lock().begin(key, &context.past);
        let tries = 1 + self.random.below(2);
        let mut surely_refused = true;
        for _ in 0..tries {
            match self.try_write(key, context, id, &value).await {
                Written::Acknowledged(clock) => {
                    let mut past = context.past.clone();
                    past.insert(id);
                    return Some(Context { clock: Some(clock), past });
                }
                Written::Refused => {}
                Written::Unknown => surely_refused = false,
            }
        }
        let mut checker = self.shared.checker.lock();
        if surely_refused {
            checker.refused(id);
        } else {
            checker.counts.unknown += 1;
        }
        None
    }

    async fn try_write(&mut self, key: &str, context: &Context, id: WriteId, value: &str) -> Written {
        let path = format!("/v1/kv/carts/{key}?deadline={}ms", DEADLINE.as_millis());
        let name = format!("\"write-{id}\"");
        let mut headers = vec![("content-type", "text/plain"), ("idempotency-key", name.as_str())];
        headers.extend(context.clock.as_ref().map(|clock| ("vector-clock", clock.as_str())));
        let Some(answer) = self.send(Method::PUT, &path, &headers, value).await else {
            return Written::Unknown;
        };
        match answer.status {
            StatusCode::NO_CONTENT => {
                let (dot, tag) = (answer.header("dot"), answer.header("etag"));
                self.shared.checker.lock().acknowledged(id, dot, tag);
                Written::Acknowledged(answer.header("vector-clock").to_owned())
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                match problem["applied"].as_str() {
                    Some("no") => Written::Refused,
                    Some("unknown") => Written::Unknown,
                    other => {
                        self.violate(&format!("PUT {key} failed with applied = {other:?}"));
                        Written::Unknown
                    }
                }
            }
            other => {
                self.violate(&format!("PUT {key} was answered {other}"));
                Written::Unknown
            }
        }
    }

    /// Fills carts until it is time to stop.
    pub async fn fill_carts(mut self) {
        self.ready().await;
        let mut last: BTreeMap<String, Context> = BTreeMap::new();
        while turmoil::sim_elapsed().unwrap_or_default() < STOP {
            pass(self.random.millis(10..150)).await;
            let key = format!("cart-{}", self.random.below(KEYS));
            let written = match self.random.below(10) {
                // Somebody who knows nothing.
                0 => self.write(&key, &Context::default()).await,
                // Somebody who goes on from their own last write, unaware of all others.
                1 | 2 => {
                    let mut context = last.get(&key).cloned().unwrap_or_default();
                    if self.shared.bug == Bug::WholeClock
                        && let Some(read) = self.read(&key, "").await
                    {
                        context.clock = read.clock;
                    }
                    self.write(&key, &context).await
                }
                _ => match self.read(&key, "").await {
                    Some(context) => self.write(&key, &context).await,
                    None => None,
                },
            };
            last.extend(written.map(|context| (key, context)));
        }
        *self.shared.stopped.lock() += 1;
    }

    /// Waits until the late storage node holds its share.
    async fn see_the_join(&mut self, give_up: tokio::time::Instant) {
        loop {
            let answer = self.send(Method::GET, "/v1/cluster/ring", &[], "").await;
            let ring: serde_json::Value =
                answer.and_then(|a| serde_json::from_slice(&a.body).ok()).unwrap_or_default();
            let mut members = ring["members"].as_array().into_iter().flatten();
            if members.any(|member| member["id"] == LATE) {
                return;
            }
            if tokio::time::Instant::now() > give_up {
                return self.violate(&format!("{LATE} has not joined though all faults have ended"));
            }
            pass(Duration::from_millis(500)).await;
        }
    }

    /// Once all writers have stopped, reads every key from all its homes.
    pub async fn look_at_the_end(mut self) {
        while *self.shared.stopped.lock() < WRITERS {
            pass(Duration::from_millis(100)).await;
        }
        let now = || turmoil::sim_elapsed().unwrap_or_default();
        assert!(now() > HEALED, "the writers stopped before the faults did");
        if joins(self.shared.seed).is_some() {
            self.see_the_join(tokio::time::Instant::now() + PATIENCE).await;
        }
        let give_up = now() + PATIENCE;
        let keys = self.shared.checker.lock().keys();
        for key in keys {
            while self.read(&key, "&r=3").await.is_none() {
                if now() > give_up {
                    self.violate(&format!("{key} can't be read from all homes though all faults have ended"));
                    break;
                }
                pass(Duration::from_millis(200)).await;
            }
        }
    }
}

enum Written {
    Acknowledged(String),
    Refused,
    Unknown,
}

/// The values of a 300 answer.
fn siblings(body: &Bytes) -> Vec<Shown> {
    let list: Vec<serde_json::Value> = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    list.iter()
        .map(|s| Shown { tag: text(&s["etag"]), dot: Some(text(&s["dot"])), value: text(&s["value"]) })
        .collect()
}
