//! Puts keys through the gateway, many at a time over connections that stay open, and checks what comes back.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::task::JoinSet;
use tokio::time::Instant;

use cartwheel::client::{Client, Failure, Reply};

use crate::data;

/// Requests under way at once; the client keeps as many connections.
const IN_FLIGHT: u64 = 64;
/// How often a write is sent again that was refused or got no answer, and how long it waits before that.
const ATTEMPTS: u32 = 240;
const PAUSE: Duration = Duration::from_millis(250);
/// Wrong answers that are told of; all are counted.
const MAX_TOLD: usize = 5;

const VECTOR_CLOCK: HeaderName = HeaderName::from_static("vector-clock");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What writing took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Loaded {
    /// Writes that were acknowledged.
    pub(crate) writes: u64,
    /// Attempts that were refused or got no answer, and were made again.
    pub(crate) again: u64,
    /// How long all of it took.
    pub(crate) took: Duration,
}

impl Loaded {
    /// Writes per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.writes as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// Where and how keys are written.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The gateway.
    pub(crate) client: Client,
    /// The namespace.
    pub(crate) namespace: &'static str,
    /// The query of every write, with its question mark.
    pub(crate) query: &'static str,
}

impl Target {
    async fn send(
        &self,
        method: Method,
        number: u64,
        round: u64,
        clock: Option<HeaderValue>,
        again: &mut u64,
    ) -> Result<Option<HeaderValue>, Failure> {
        let path = format!("{}{}", data::path(self.namespace, number), self.query);
        let body = if method == Method::PUT { data::value(number, round) } else { Bytes::new() };
        let mut headers = HeaderMap::from_iter([(IDEMPOTENCY_KEY, data::write_id(number, round))]);
        headers.extend(clock.map(|clock| (VECTOR_CLOCK, clock)));
        let mut last = Failure::failed("no attempt was made");
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                *again += 1;
                tokio::time::sleep(PAUSE).await;
            }
            let sent = self.client.send(method.clone(), &path, headers.clone(), body.clone()).await;
            match sent {
                Ok(reply) if reply.status.is_success() => {
                    return Ok(reply.headers.get(VECTOR_CLOCK).cloned());
                }
                Ok(reply) if reply.status.is_client_error() => return Err(told(&path, reply.refusal())),
                Ok(reply) => last = reply.refusal(),
                Err(failure) => last = failure,
            }
        }
        Err(told(&path, last))
    }
}

fn told(path: &str, failure: Failure) -> Failure {
    Failure { message: format!("{path}: {}", failure.message), ..failure }
}

/// Writes each of the keys once. A write that is refused is sent again with the same idempotency key.
///
/// # Errors
/// A write that was refused for a minute.
pub(crate) async fn fill(target: &Target, keys: Range<u64>) -> Result<Loaded, Failure> {
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(keys.start));
    let mut tasks = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (target, next) = (target.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            let mut loaded = Loaded::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= keys.end {
                    return Ok(loaded);
                }
                target.send(Method::PUT, number, 0, None, &mut loaded.again).await?;
                loaded.writes += 1;
            }
        });
    }
    sum(tasks, began).await
}

/// Writes each of the keys `rounds` times (rounds 1 to `rounds`), each write with the clock of the one before, and
/// then deletes those with odd numbers.
///
/// # Errors
/// A write that was refused for a minute.
pub(crate) async fn overwrite(target: &Target, keys: Range<u64>, rounds: u64) -> Result<Loaded, Failure> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for first in 0..IN_FLIGHT {
        let target = target.clone();
        let own: Vec<u64> = keys.clone().filter(|number| number % IN_FLIGHT == first).collect();
        tasks.spawn(async move {
            let mut loaded = Loaded::default();
            let mut clocks: Vec<Option<HeaderValue>> = vec![None; own.len()];
            for round in 1..=rounds {
                for (number, clock) in own.iter().zip(&mut clocks) {
                    let answered =
                        target.send(Method::PUT, *number, round, clock.take(), &mut loaded.again).await?;
                    *clock = answered;
                    loaded.writes += 1;
                }
            }
            for (number, clock) in own.iter().zip(clocks).filter(|(number, _)| *number % 2 == 1) {
                target.send(Method::DELETE, *number, rounds + 1, clock, &mut loaded.again).await?;
                loaded.writes += 1;
            }
            Ok(loaded)
        });
    }
    sum(tasks, began).await
}

async fn sum(mut tasks: JoinSet<Result<Loaded, Failure>>, began: Instant) -> Result<Loaded, Failure> {
    let mut all = Loaded::default();
    while let Some(ended) = tasks.join_next().await {
        let part = ended.map_err(|error| Failure::failed(format!("a task failed: {error}")))??;
        all.writes += part.writes;
        all.again += part.again;
    }
    all.took = began.elapsed();
    Ok(all)
}

/// What must come back of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The value of this round.
    Value(u64),
    /// 404.
    Nothing,
}

/// What reading came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Read {
    /// Right answers.
    pub(crate) right: u64,
    /// Wrong ones.
    pub(crate) wrong: u64,
    /// Refusals and reads without an answer.
    pub(crate) failed: u64,
    /// The first few of those that were not right.
    pub(crate) told: Vec<String>,
    /// How long right answers took, milliseconds.
    pub(crate) millis: Vec<f64>,
    /// How long all of it took.
    pub(crate) took: Duration,
}

impl Read {
    fn add(&mut self, path: &str, expected: (u64, Expected), answer: Result<Reply, Failure>, took: Duration) {
        let (number, expected) = expected;
        let what = match answer {
            Ok(reply) => {
                let right = match expected {
                    Expected::Value(round) => {
                        reply.status == StatusCode::OK && reply.body == data::value(number, round)
                    }
                    Expected::Nothing => reply.status == StatusCode::NOT_FOUND,
                };
                if right {
                    self.right += 1;
                    self.millis.push(took.as_secs_f64() * 1e3);
                    return;
                }
                if reply.status.is_server_error() {
                    self.failed += 1;
                } else {
                    self.wrong += 1;
                }
                format!("{path}: {} with {} bytes where {expected:?} was due", reply.status, reply.body.len())
            }
            Err(failure) => {
                self.failed += 1;
                format!("{path}: {}", failure.message)
            }
        };
        if self.told.len() < MAX_TOLD {
            self.told.push(what);
        }
    }

    fn merge(&mut self, other: Self) {
        self.right += other.right;
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.millis.extend(other.millis);
        self.told.extend(other.told);
        self.told.truncate(MAX_TOLD);
    }
}

/// Reads each of the keys once and compares.
///
/// # Errors
/// If a task fails.
pub(crate) async fn check(
    target: &Target,
    keys: Range<u64>,
    expected: fn(u64, u64) -> Expected,
    rounds: u64,
) -> Result<Read, Failure> {
    let next = Arc::new(AtomicU64::new(keys.start));
    let choose = move || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < keys.end);
    reading(target, |_| choose.clone(), move |number| expected(number, rounds)).await
}

/// Reads keys, each as likely as any other, for so long, and compares each with its only write.
///
/// # Errors
/// If a task fails.
pub(crate) async fn sample(target: &Target, keys: Range<u64>, duration: Duration) -> Result<Read, Failure> {
    let end = Instant::now() + duration;
    let count = keys.end.saturating_sub(keys.start);
    let chooser = |seed: u64| {
        let (start, mut state) = (keys.start, seed);
        move || (Instant::now() < end).then(|| start + data::below(&mut state, count))
    };
    reading(target, chooser, |_| Expected::Value(0)).await
}

async fn reading<C>(
    target: &Target,
    chooser: impl Fn(u64) -> C,
    expected: impl Fn(u64) -> Expected + Clone + Send + 'static,
) -> Result<Read, Failure>
where
    C: FnMut() -> Option<u64> + Send + 'static,
{
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for seed in 0..IN_FLIGHT {
        let (target, mut choose, expected) = (target.clone(), chooser(seed), expected.clone());
        tasks.spawn(async move {
            let mut read = Read::default();
            while let Some(number) = choose() {
                let path = format!("{}{}", data::path(target.namespace, number), target.query);
                let sent = Instant::now();
                let answer = target.client.get(&path).await;
                read.add(&path, (number, expected(number)), answer, sent.elapsed());
            }
            read
        });
    }
    let mut all = Read::default();
    while let Some(ended) = tasks.join_next().await {
        all.merge(ended.map_err(|error| Failure::failed(format!("a task failed: {error}")))?);
    }
    all.took = began.elapsed();
    Ok(all)
}
