//! Clients of the simulated cluster: carts that are read, changed, emptied and written back, writes without a clock,
//! and in the end a reader that looks whether everything is there and nobody keeps anything for others.

mod carts;
mod settling;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cartwheel_bucket::SharedBucket;
use cartwheel_cluster::seams::Random;
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::header::ClockKey;
use cartwheel_core::names::{Key, Namespace};
use http::{Method, StatusCode};
use tokio::time::Instant;

use crate::checker::{Checker, Must, Past, Shown, WriteId};
use crate::claims::{self, Ask, N};
use crate::cluster::{GATEWAYS, Place, Presence};
use crate::http::{Answer, Http, NoAnswer};
use crate::promised::Promise;
use crate::report::Check;
use crate::sight::Sight;
use crate::trace::Trace;
use crate::weather::Weather;
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
/// The key that everybody writes.
pub const HOT: &str = "hot";
/// How many writes of unknown fate a client remembers.
const UNSURE: usize = 4;
/// When it sends one of them again.
const LATER_MS: std::ops::Range<u64> = 1_000..15_000;

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
    /// What is where.
    pub sight: Arc<Sight>,
    /// When which nodes can surely be reached.
    pub weather: Weather,
    /// How long it took until nobody kept anything for others.
    pub settled: Lock<Option<Duration>>,
}

/// What a client knows of a key: a clock, and what it stands for.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// As it was read or written.
    pub clock: Option<String>,
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
    /// DELETE, of what is there.
    DeletingBlindly,
}

impl How {
    fn deletes(self) -> bool {
        matches!(self, Self::Deleting | Self::DeletingBlindly)
    }
}

/// A write as it was sent, to be sent again.
#[derive(Debug, Clone)]
struct Sent {
    key: String,
    context: Context,
    id: WriteId,
    value: String,
    how: How,
    ask: Ask,
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
    /// What requests ask for besides.
    taste: SeededRandom,
    http: Http,
    signs: ClockKey,
    /// The gateway of the next request, if not any.
    gateway: Option<usize>,
    /// The gateway of the last one.
    asked: usize,
    /// Writes whose fate is not known, and when they are sent again.
    unsure: Vec<(Duration, Sent)>,
}

impl Client {
    /// The client `name`.
    pub fn new(name: &str, shared: Arc<Shared>) -> Self {
        let random = SeededRandom::new(shared.seed, name);
        let taste = SeededRandom::new(shared.seed, &format!("{name} taste"));
        let http = Http::new(Arc::clone(&shared.presence));
        let signs = Place::clock_key();
        let (name, gateway, asked, unsure) = (name.to_owned(), None, 0, Vec::new());
        Self { name, shared, random, taste, http, signs, gateway, asked, unsure }
    }

    /// How many keys there are.
    pub fn keys(&self) -> u64 {
        self.shared.keys
    }

    /// Have all writers stopped?
    pub fn others_have_stopped(&self) -> bool {
        *self.shared.stopped.lock() >= self.shared.writers
    }

    /// Was nothing amiss any more then?
    pub fn is_calm(&self, then: Duration) -> bool {
        then > *self.shared.calm.lock()
    }

    /// A request that makes no sense was refused as it should be.
    pub fn count_nonsense(&self) {
        self.shared.checker.lock().counts.nonsense += 1;
    }

    /// Something happened that may not.
    pub fn violate(&self, check: Check, what: &str) {
        self.shared.trace.line(&self.name, &format!("VIOLATION {what}"));
        let what = format!("{:.3} s {}: {what}", now().as_secs_f64(), self.name);
        self.shared.checker.lock().violate(check, what);
    }

    /// Sends a request to one of the gateways and waits for its answer; `None`, and a violation unless the gateway
    /// is gone, if there is none in time.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        self.shared.checker.lock().counts.requests += 1;
        let any = usize::try_from(self.random.below(2)).unwrap();
        let gateway = self.gateway.take().unwrap_or(any);
        self.asked = gateway;
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
    fn look_at_quorum(&self, answer: &Answer, operation: &str, ask: &Ask, began: Duration) {
        for what in claims::of_quorum(answer, operation, ask) {
            self.violate(Check::Claim, &format!("an answer makes no sense: {what}"));
        }
        let fallbacks = answer.quorum("fallback").unwrap_or(0);
        {
            let counts = &mut self.shared.checker.lock().counts;
            counts.degraded += u64::from(answer.is_degraded());
            counts.fallbacks += u64::from(fallbacks > 0);
        }
        let stood_in = answer.is_degraded() || fallbacks > 0;
        if began > *self.shared.calm.lock() && stood_in && !self.shared.sight.had_hints_since(began) {
            let headers = &answer.headers;
            self.violate(
                Check::Claim,
                &format!("somebody stands in for a home though nothing is amiss: {headers:?}"),
            );
        }
    }

    /// What this client knows of a key, as a clock.
    fn clock_of(&self, key: &str, context: &Context) -> Clock {
        let (namespace, name) = names(key);
        let said = context.clock.as_deref().unwrap_or_default();
        self.signs.verify(&namespace, &name, said).unwrap_or_default()
    }

    /// What an answer to a write claims, looked at.
    fn look_at_written(&self, answer: &Answer, sent: &Sent, began: Duration, moment: usize) {
        self.look_at_quorum(answer, "write", &sent.ask, began);
        let (namespace, key) = names(&sent.key);
        let Some(dot) = dot(answer.header("dot")) else {
            return self.violate(Check::Claim, &format!("an answer has no dot: {:?}", answer.headers));
        };
        match claims::clock(answer, &self.signs, (&namespace, &key)) {
            Err(what) => self.violate(Check::Claim, &format!("a clock is of no use: {what}")),
            // What a deletion without a clock has seen is what was there.
            Ok(clock) if sent.how == How::DeletingBlindly && clock.contains(&dot) => {}
            Ok(clock) => {
                let before = self.clock_of(&sent.key, &sent.context);
                if let Some(what) = claims::of_written_clock(&clock, &before, &dot) {
                    self.violate(Check::Claim, &format!("write {}: {what}", sent.id));
                }
            }
        }
        let (Some(level), Some(answered)) = (claims::level(answer), answer.quorum("answered")) else {
            return;
        };
        let sight = &self.shared.sight;
        let claim = claims::Where {
            level,
            answered,
            home: answer.quorum("home").unwrap_or(usize::MAX),
            required: sent.ask.write_quorum(),
            degraded: answer.is_degraded(),
            lost: sight.promises.lock().disks_lost_since(moment),
        };
        if let Some(what) = claims::of_holders(&claim, &sight.holders(&namespace, &key, &dot)) {
            self.violate(Check::Claim, &format!("write {} of {} ({dot}): {what}", sent.id, sent.key));
        } else {
            self.shared.checker.lock().counts.copies += 1;
        }
        let answered = if answer.is_degraded() { sent.ask.write_quorum() } else { answered };
        let promise = Promise { namespace, key, dot, level, answered, since: moment };
        sight.promises.lock().promised(sent.id, promise, || sight.everything());
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
    async fn read(&mut self, key: &str, ask: &Ask, floor: Option<&Context>) -> Option<Context> {
        self.read_above(key, ask, floor).await?
    }

    /// Reads a key; `None` if no quorum answered.
    pub async fn try_read(&mut self, key: &str, ask: &Ask) -> Option<Option<Context>> {
        self.read_above(key, ask, None).await
    }

    /// Reads a key, and asks that the answer covers what the client knows.
    async fn read_above(&mut self, key: &str, ask: &Ask, floor: Option<&Context>) -> Option<Option<Context>> {
        // At rest every home holds every write, however few acknowledged it.
        let r = if ask.at_rest { N } else { ask.read_quorum() };
        let owed = self.shared.checker.lock().owed(key, r);
        let began = now();
        let path = format!("/v1/kv/{key}?deadline={}ms{}", DEADLINE.as_millis(), ask.of_read());
        let mut headers = vec![("accept", "application/json")];
        let below = floor.and_then(|context| context.clock.as_deref());
        headers.extend(below.map(|clock| ("vector-clock", clock)));
        let answer = self.send(Method::GET, &path, &headers, "").await?;
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
        self.look_at_quorum(&answer, "read", ask, began);
        let known = floor.map(|context| self.clock_of(key, context)).unwrap_or_default();
        let covered = self.look_at_read_clock(key, &answer, &values, &known);
        let by_homes = self.shared.homes_are_fresh && answer.quorum("fallback") == Some(0);
        let whole = began > *self.shared.calm.lock();
        let must = match (whole || (by_homes && !answer.is_degraded()), answer.is_degraded()) {
            (true, _) => Must::All,
            (false, true) => Must::Some,
            (false, false) => Must::Most,
        };
        let promises = self.shared.sight.promises.lock();
        let by_bucket = if whole { Past::new() } else { self.shared.checker.lock().by_bucket.clone() };
        let is_due = |id: &WriteId| !promises.is_void(*id) && !by_bucket.contains(id);
        let still = |ids: Past| -> Past { ids.into_iter().filter(is_due).collect() };
        let (owed, covered) = (still(owed), still(covered));
        drop(promises);
        let past = {
            let quorum = answer.header("quorum");
            let who = format!("{:.3} s {} ({quorum})", began.as_secs_f64(), self.name);
            let mut checker = self.shared.checker.lock();
            checker.counts.reads += 1;
            checker.shown(&who, key, &values, &owed, &covered, must)
        };
        Some(past.map(|past| Context { clock: answer.headers.get("vector-clock").cloned(), past, tag }))
    }

    /// What the clock of an answer to a read claims, looked at; the writes that it has seen, as far as they are known.
    fn look_at_read_clock(&self, key: &str, answer: &Answer, values: &[Shown], floor: &Clock) -> Past {
        let (namespace, name) = names(key);
        let clock = match claims::clock(answer, &self.signs, (&namespace, &name)) {
            Ok(clock) => clock,
            Err(what) => {
                self.violate(Check::Claim, &format!("a clock is of no use: {what}"));
                return Past::new();
            }
        };
        let shown: Vec<Dot> = values.iter().filter_map(|shown| dot(shown.dot.as_deref()?)).collect();
        let stale = answer.header("stale") == "?1";
        if let Some(what) = claims::of_read_clock(&clock, &shown, floor, stale) {
            self.violate(Check::Claim, &format!("a read of {key}: {what}"));
        }
        let known = self.shared.checker.lock().dots_of(key);
        let seen = known.into_iter().filter(|(text, _)| dot(text).is_some_and(|dot| clock.contains(&dot)));
        seen.map(|(_, id)| id).collect()
    }

    /// Writes a key; what the client knows of it then, if the write was acknowledged.
    async fn write(&mut self, key: &str, context: &Context, how: How, ask: Ask) -> Option<Context> {
        let (id, value) = {
            let mut checker = self.shared.checker.lock();
            if how == How::DeletingBlindly {
                (checker.begin_blind_deletion(key), String::new())
            } else {
                checker.begin(key, &context.past, how == How::Deleting)
            }
        };
        let (key, context) = (key.to_owned(), context.clone());
        let sent = Sent { key, context, id, value, how, ask };
        let tries = 1 + self.random.below(2);
        let mut surely_refused = true;
        for _ in 0..tries {
            match self.try_write(&sent).await {
                Written::Acknowledged { clock, tag } => {
                    let mut past = sent.context.past.clone();
                    past.insert(id);
                    if self.taste.below(8) == 0 {
                        self.write_again(&sent).await;
                    }
                    // What a deletion without a clock replaced the client does not know.
                    let known = how != How::DeletingBlindly;
                    return known.then_some(Context { clock: Some(clock), past, tag });
                }
                Written::Refused => {}
                Written::Unknown => surely_refused = false,
            }
        }
        if surely_refused {
            self.shared.checker.lock().refused(id);
            return None;
        }
        self.shared.checker.lock().counts.unknown += 1;
        if self.unsure.len() < UNSURE && self.taste.below(3) == 0 {
            self.unsure.push((now() + self.taste.millis(LATER_MS), sent));
        }
        None
    }

    /// The same request once more, under the same name, through the other gateway: it is the same write.
    async fn write_again(&mut self, sent: &Sent) {
        let began = now();
        self.gateway = Some(1 - self.asked);
        let Written::Acknowledged { .. } = self.try_write(sent).await else { return };
        let calm = began > *self.shared.calm.lock();
        let mut checker = self.shared.checker.lock();
        checker.counts.again += 1;
        // Nothing is amiss, and nobody has replaced it: whoever minted it is asked again, and knows it.
        let twice = checker.is_twice(sent.id) && checker.is_last(sent.id);
        drop(checker);
        if calm && twice {
            let what = format!("write {} of {}, sent again under its name, is another", sent.id, sent.key);
            self.violate(Check::Dot, &what);
        }
    }

    /// Sends again what is due of the writes whose fate is not known.
    async fn write_later(&mut self) {
        let Some(at) = self.unsure.iter().position(|(due, _)| *due <= now()) else { return };
        let (_, sent) = self.unsure.remove(at);
        if let Written::Acknowledged { .. } = self.try_write(&sent).await {
            self.shared.checker.lock().counts.again += 1;
        }
    }

    async fn try_write(&mut self, sent: &Sent) -> Written {
        let written = self.try_to_write(sent).await;
        self.shared.checker.lock().ended(sent.id);
        written
    }

    async fn try_to_write(&mut self, sent: &Sent) -> Written {
        let Sent { key, context, id, value, how, ask } = sent;
        let (began, moment) = (now(), self.shared.sight.promises.lock().moment());
        let path = format!("/v1/kv/{key}?deadline={}ms{}", DEADLINE.as_millis(), ask.of_write());
        let name = format!("\"write-{id}\"");
        let mut headers = vec![("idempotency-key", name.as_str())];
        headers.extend(context.clock.as_ref().map(|clock| ("vector-clock", clock.as_str())));
        let (method, value) =
            if how.deletes() { (Method::DELETE, "") } else { (Method::PUT, value.as_str()) };
        match how {
            How::Plainly => headers.push(("content-type", "text/plain")),
            How::IfUnchanged => headers.push(("if-match", context.tag.as_str())),
            How::IfNew => headers.push(("if-none-match", "*")),
            How::Deleting | How::DeletingBlindly => {}
        }
        let Some(answer) = self.send(method, &path, &headers, value).await else {
            return Written::Unknown;
        };
        let conditional = matches!(how, How::IfUnchanged | How::IfNew);
        match answer.status {
            StatusCode::NO_CONTENT => {
                let (dot, tag) = (answer.header("dot"), answer.header("etag"));
                {
                    let mut checker = self.shared.checker.lock();
                    checker.acknowledged(*id, dot, tag, ask.write_quorum());
                    if answer.is_degraded() {
                        checker.by_bucket.insert(*id);
                    }
                    checker.counts.had_to +=
                        u64::from(self.shared.weather.owes(self.asked, began, now(), ask));
                }
                self.look_at_written(&answer, sent, began, moment);
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
                if answer.status != StatusCode::PRECONDITION_FAILED
                    && *how != How::DeletingBlindly
                    && self.shared.weather.owes(self.asked, began, now(), ask)
                {
                    let said = String::from_utf8_lossy(&answer.body);
                    let what = format!("write {id} of {key} had to be accepted, sent at {began:?}: {said}");
                    self.violate(Check::Refused, &what);
                }
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
            // As many siblings as there may be: only where everybody writes without looking.
            StatusCode::CONFLICT if key.ends_with(HOT) => Written::Refused,
            other => {
                self.violate(Check::Answer, &format!("a write of {key} was answered {other}"));
                Written::Unknown
            }
        }
    }
}

/// A namespace and a key.
fn names(key: &str) -> (Namespace, Key) {
    let (namespace, key) = key.split_once('/').unwrap();
    (Namespace::new(namespace.as_bytes()).unwrap(), Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap())
}

/// A dot as an answer says it.
fn dot(said: &str) -> Option<Dot> {
    let (actor, n) = said.split_once('=')?;
    Some(Dot { actor: Actor::parse(actor)?, n: n.parse().ok()? })
}

/// The time of the simulation.
pub fn now() -> Duration {
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
