//! Clients of the simulated cluster: carts that are read, changed, emptied and written back, writes without a clock,
//! and in the end a reader that looks whether everything is there and nobody keeps anything for others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cartwheel_bucket::SharedBucket;
use cartwheel_cluster::seams::Random;
use http::{Method, StatusCode};
use tokio::time::Instant;

use crate::checker::{Checker, Must, Past, Shown, WriteId};
use crate::cluster::{GATEWAYS, Presence};
use crate::faults::{LATE, NODES, joins};
use crate::http::{Answer, Http, NoAnswer};
use crate::report::Check;
use crate::trace::Trace;
use crate::world::lock::Lock;
use crate::world::{Bug, SeededRandom, pass};

/// How many clients write.
pub const WRITERS: usize = 4;
/// The keys that they share in the big simulation.
pub const KEYS: u64 = 6;
/// The deadline of every request.
const DEADLINE: Duration = Duration::from_secs(2);
/// How much later than that an answer may come.
const SLACK: Duration = Duration::from_millis(500);
/// How long after that the late storage node may take to join, and each key to be readable from all its homes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take until nobody keeps anything for others: a home looks at the bucket twice a minute.
const SETTLED: Duration = Duration::from_secs(40);

/// What all clients share.
#[derive(Debug)]
pub struct Shared {
    /// The seed.
    pub seed: u64,
    /// The planted bug.
    pub bug: Bug,
    /// Is no read stale that homes alone answered, whatever is amiss? So it is where no link between them fails.
    pub homes_are_fresh: bool,
    /// How many keys the writers share.
    pub keys: u64,
    /// From when on nothing is amiss any more, and when writers stop: a while after that.
    pub calm: Lock<Duration>,
    /// See `calm`.
    pub stop: Lock<Duration>,
    /// How many write.
    pub writers: usize,
    /// What happens.
    pub trace: Arc<Trace>,
    /// What it means.
    pub checker: Lock<Checker>,
    /// How many writers have stopped.
    pub stopped: Lock<usize>,
    /// Which gateways are there.
    pub presence: Arc<Presence>,
    /// All objects.
    pub objects: SharedBucket,
    /// How long it took until nobody kept anything for others.
    pub settled: Lock<Option<Duration>>,
}

/// What a client knows of a key: a clock, and what it stands for.
#[derive(Debug, Clone, Default)]
pub struct Context {
    clock: Option<String>,
    past: Past,
    /// The tag of what was read; empty if there was nothing.
    tag: String,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// PUT.
    Plainly,
    /// PUT, if what was read is still there.
    IfUnchanged,
    /// PUT, if nothing is there.
    IfNew,
    /// DELETE.
    Deleting,
}

enum Written {
    Acknowledged { clock: String, tag: String },
    Refused,
    Unknown,
}

/// One client.
pub struct Client {
    name: String,
    shared: Arc<Shared>,
    random: SeededRandom,
    http: Http,
}

impl Client {
    /// The client `name`.
    pub fn new(name: &str, shared: Arc<Shared>) -> Self {
        let random = SeededRandom::new(shared.seed, name);
        let http = Http::new(Arc::clone(&shared.presence));
        Self { name: name.to_owned(), shared, random, http }
    }

    /// Something happened that may not.
    pub fn violate(&self, check: Check, what: &str) {
        self.shared.trace.line(&self.name, &format!("VIOLATION {what}"));
        let what = format!("{:.3} s {}: {what}", now().as_secs_f64(), self.name);
        self.shared.checker.lock().violate(check, what);
    }

    /// Sends a request to one of the gateways and waits for its answer; `None`, and a violation unless the gateway
    /// is gone, if there is none in time.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        self.shared.checker.lock().counts.requests += 1;
        let gateway = usize::try_from(self.random.below(2)).unwrap();
        let to = GATEWAYS[gateway];
        self.shared.trace.line(&self.name, &format!("{to} {method} {path} {headers:?} {body}"));
        let deadline = Instant::now() + DEADLINE + SLACK;
        match self.http.send(gateway, method, path, headers, body, deadline).await {
            Ok(answer) => {
                // What caches hold depends on the real clock; who asks for it writes down the rest.
                let said = if path.starts_with("/v1/cluster") {
                    String::new()
                } else {
                    format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body))
                };
                self.shared.trace.line(&self.name, &format!("{} {said}", answer.status));
                return Some(answer);
            }
            Err(NoAnswer::Gone) => self.shared.trace.line(&self.name, &format!("{to} is gone")),
            Err(NoAnswer::Late) => {
                self.violate(Check::Answer, &format!("{path}: no answer of {to} by the deadline"));
            }
            Err(NoAnswer::Broke(error)) => {
                self.violate(Check::Answer, &format!("{path}: the connection to {to} broke: {error}"));
            }
        }
        None
    }

    /// What an answer says of its quorum, counted and looked at.
    fn look_at_quorum(&self, answer: &Answer, operation: &str, began: Duration) {
        if let Some(what) = answer.implausible(operation) {
            self.violate(Check::Claim, &format!("an answer makes no sense: {what}"));
        }
        let fallbacks = answer.quorum("fallback").unwrap_or(0);
        {
            let counts = &mut self.shared.checker.lock().counts;
            counts.degraded += u64::from(answer.is_degraded());
            counts.fallbacks += u64::from(fallbacks > 0);
        }
        if began > *self.shared.calm.lock() && (answer.is_degraded() || fallbacks > 0) {
            let headers = &answer.headers;
            self.violate(
                Check::Claim,
                &format!("somebody stands in for a home though nothing is amiss: {headers:?}"),
            );
        }
    }

    /// Waits until a gateway can serve.
    pub async fn ready(&mut self) {
        loop {
            let answer = self.send(Method::GET, "/readyz", &[], "").await;
            if answer.is_some_and(|a| a.status == StatusCode::OK) {
                return;
            }
            pass(Duration::from_millis(100)).await;
        }
    }

    /// Reads a key; `None` if no quorum answered, or with what is not clear.
    async fn read(&mut self, key: &str, query: &str) -> Option<Context> {
        self.try_read(key, query).await?
    }

    /// Reads a key; `None` if no quorum answered.
    pub async fn try_read(&mut self, key: &str, query: &str) -> Option<Option<Context>> {
        let owed = self.shared.checker.lock().owed(key);
        let began = now();
        let path = format!("/v1/kv/carts/{key}?deadline={}ms{query}", DEADLINE.as_millis());
        let answer = self.send(Method::GET, &path, &[("accept", "application/json")], "").await?;
        let tag = answer.header("etag").to_owned();
        let deleted = answer.header("cartwheel-deleted") == "?1";
        let values = match answer.status {
            StatusCode::NOT_FOUND if deleted => vec![Shown { tag: tag.clone(), dot: None, value: None }],
            StatusCode::NOT_FOUND => Vec::new(),
            StatusCode::OK => vec![Shown {
                tag: tag.clone(),
                dot: None,
                value: Some(String::from_utf8_lossy(&answer.body).into_owned()),
            }],
            StatusCode::MULTIPLE_CHOICES => siblings(&answer.body),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                self.shared.checker.lock().counts.unread += 1;
                return None;
            }
            other => {
                self.violate(Check::Answer, &format!("GET {key} was answered {other}"));
                return None;
            }
        };
        self.look_at_quorum(&answer, "read", began);
        let by_homes = self.shared.homes_are_fresh && answer.quorum("fallback") == Some(0);
        let whole = began > *self.shared.calm.lock();
        let must = match (whole || (by_homes && !answer.is_degraded()), answer.is_degraded()) {
            (true, _) => Must::All,
            (false, true) => Must::Some,
            (false, false) => Must::Most,
        };
        let past = {
            let quorum = answer.header("quorum");
            let who = format!("{:.3} s {} ({quorum})", began.as_secs_f64(), self.name);
            let mut checker = self.shared.checker.lock();
            checker.counts.reads += 1;
            checker.shown(&who, key, &values, &owed, must)
        };
        Some(past.map(|past| Context { clock: answer.headers.get("vector-clock").cloned(), past, tag }))
    }

    /// Writes a key; what the client knows of it then, if the write was acknowledged.
    async fn write(&mut self, key: &str, context: &Context, how: How) -> Option<Context> {
        let deletion = how == How::Deleting;
        let (id, value) = self.shared.checker.lock().begin(key, &context.past, deletion);
        let tries = 1 + self.random.below(2);
        let mut surely_refused = true;
        for _ in 0..tries {
            match self.try_write(key, context, id, &value, how).await {
                Written::Acknowledged { clock, tag } => {
                    let mut past = context.past.clone();
                    past.insert(id);
                    return Some(Context { clock: Some(clock), past, tag });
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

    async fn try_write(
        &mut self,
        key: &str,
        context: &Context,
        id: WriteId,
        value: &str,
        how: How,
    ) -> Written {
        let began = now();
        let path = format!("/v1/kv/carts/{key}?deadline={}ms", DEADLINE.as_millis());
        let name = format!("\"write-{id}\"");
        let mut headers = vec![("idempotency-key", name.as_str())];
        headers.extend(context.clock.as_ref().map(|clock| ("vector-clock", clock.as_str())));
        let (method, value) = match how {
            How::Deleting => (Method::DELETE, ""),
            _ => (Method::PUT, value),
        };
        match how {
            How::Plainly => headers.push(("content-type", "text/plain")),
            How::IfUnchanged => headers.push(("if-match", context.tag.as_str())),
            How::IfNew => headers.push(("if-none-match", "*")),
            How::Deleting => {}
        }
        let Some(answer) = self.send(method, &path, &headers, value).await else {
            return Written::Unknown;
        };
        let conditional = matches!(how, How::IfUnchanged | How::IfNew);
        match answer.status {
            StatusCode::NO_CONTENT => {
                self.look_at_quorum(&answer, "write", began);
                let (dot, tag) = (answer.header("dot"), answer.header("etag"));
                self.shared.checker.lock().acknowledged(id, dot, tag);
                Written::Acknowledged { clock: answer.header("vector-clock").to_owned(), tag: tag.to_owned() }
            }
            StatusCode::PRECONDITION_FAILED if !conditional => {
                self.violate(
                    Check::Answer,
                    &format!("a write of {key} without a precondition was answered 412"),
                );
                Written::Unknown
            }
            StatusCode::PRECONDITION_FAILED
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                match problem["applied"].as_str() {
                    Some("no") => Written::Refused,
                    Some("unknown") => Written::Unknown,
                    other => {
                        self.violate(
                            Check::Answer,
                            &format!("a write of {key} failed with applied = {other:?}"),
                        );
                        Written::Unknown
                    }
                }
            }
            other => {
                self.violate(Check::Answer, &format!("a write of {key} was answered {other}"));
                Written::Unknown
            }
        }
    }

    /// Fills carts until it is time to stop.
    pub async fn fill_carts(mut self) {
        self.ready().await;
        let mut last: BTreeMap<String, Context> = BTreeMap::new();
        while now() < *self.shared.stop.lock() {
            pass(self.random.millis(10..250)).await;
            let key = format!("cart-{}", self.random.below(self.shared.keys));
            let written = match self.random.below(12) {
                // Somebody who knows nothing.
                0 => self.write(&key, &Context::default(), How::Plainly).await,
                1 => self.write(&key, &Context::default(), How::IfNew).await,
                // Somebody who goes on from their own last write, unaware of all others.
                2 | 3 => {
                    let mut context = last.get(&key).cloned().unwrap_or_default();
                    if self.shared.bug == Bug::WholeClock
                        && let Some(read) = self.read(&key, "").await
                    {
                        context.clock = read.clock;
                    }
                    self.write(&key, &context, How::Plainly).await
                }
                choice => match self.read(&key, "").await {
                    Some(context) => {
                        let how = match choice {
                            4 if context.clock.is_some() => How::Deleting,
                            5 | 6 if !context.tag.is_empty() => How::IfUnchanged,
                            _ => How::Plainly,
                        };
                        self.write(&key, &context, how).await
                    }
                    None => None,
                },
            };
            last.extend(written.map(|context| (key, context)));
        }
        *self.shared.stopped.lock() += 1;
    }

    /// The members, as a gateway tells of them.
    pub async fn members(&mut self) -> Vec<serde_json::Value> {
        let answer = self.send(Method::GET, "/v1/cluster", &[], "").await;
        let cluster: serde_json::Value =
            answer.and_then(|a| serde_json::from_slice(&a.body).ok()).unwrap_or_default();
        cluster["members"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the late storage node holds its share.
    async fn see_the_join(&mut self) {
        let give_up = now() + PATIENCE;
        while !self.members().await.iter().any(|m| m["id"] == LATE && m["state"] == "active") {
            if now() > give_up {
                return self
                    .violate(Check::Ring, &format!("{LATE} has not joined though all faults have ended"));
            }
            pass(Duration::from_millis(500)).await;
        }
    }

    /// What keeps the cluster from being settled: nodes that do not count, or that keep something for others.
    async fn unsettled(&mut self) -> Vec<String> {
        let mut amiss = Vec::new();
        let members = self.members().await;
        let expected = NODES.len() - usize::from(joins(self.shared.seed).is_none());
        if members.len() != expected {
            amiss.push(format!("{} members of {expected}", members.len()));
        }
        for member in members {
            let id = member["id"].as_str().unwrap_or_default();
            let standing = member["standing"].as_str().unwrap_or("unknown");
            if member["reachable"] != true || standing != "counting" || member["partitions_not_held"] != 0 {
                let (reachable, not_held) = (&member["reachable"], &member["partitions_not_held"]);
                amiss.push(format!("{id} is {standing}, reachable: {reachable}, not held: {not_held}"));
            }
            if member["hints"].as_array().is_none_or(|hints| !hints.is_empty()) {
                amiss.push(format!("{id} keeps hints: {}", member["hints"]));
            }
        }
        let listing = self.shared.objects.list("hints/", None, 100).await.unwrap();
        amiss.extend(listing.objects.into_iter().map(|object| object.key));
        amiss
    }

    async fn see_it_settle(&mut self) {
        let began = now();
        loop {
            let amiss = self.unsettled().await;
            self.shared.trace.line(&self.name, &format!("amiss: {amiss:?}"));
            if amiss.is_empty() {
                *self.shared.settled.lock() = Some(now());
                return;
            }
            if now() > began + SETTLED {
                return self.violate(
                    Check::Unsettled,
                    &format!("not settled long after all faults have ended: {amiss:?}"),
                );
            }
            pass(Duration::from_millis(500)).await;
        }
    }

    /// Once all writers have stopped, looks whether the cluster settles, and reads every key from all its homes.
    pub async fn look_at_the_end(mut self) {
        while *self.shared.stopped.lock() < self.shared.writers {
            pass(Duration::from_millis(100)).await;
        }
        assert!(now() > *self.shared.calm.lock(), "the writers stopped before the faults did");
        if joins(self.shared.seed).is_some() {
            self.see_the_join().await;
        }
        self.see_it_settle().await;
        let give_up = now() + PATIENCE;
        let keys = self.shared.checker.lock().keys();
        for key in keys {
            while self.try_read(&key, "&r=3").await.is_none() {
                if now() > give_up {
                    self.violate(
                        Check::Answer,
                        &format!("{key} can't be read from all homes though all faults have ended"),
                    );
                    break;
                }
                pass(Duration::from_millis(200)).await;
            }
        }
    }
}

/// The time of the simulation.
fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// The values of a 300 answer.
fn siblings(body: &Bytes) -> Vec<Shown> {
    let list: Vec<serde_json::Value> = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    list.iter()
        .map(|s| Shown {
            tag: text(&s["etag"]),
            dot: Some(text(&s["dot"])),
            value: s["value"].as_str().map(str::to_owned),
        })
        .collect()
}
