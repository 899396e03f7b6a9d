//! Runs a bench: opens the connections, fills the keys, drives the load, and adds up what was measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::clocks::Clocks;
use super::keys::KeyPicker;
use super::link::{Answer, Broken, Link};
use super::plan::{Phase, Schedule, Timing, Window};
use super::record::{Kind, Record};
use super::{BenchArgs, ClockMode, cpu};
use crate::client::{Failure, Format, Output, Query, key_path};

/// Random bytes beyond one value's size: values are windows into one buffer, so that none is copied.
const VALUE_SLACK: usize = 64 * 1024;

/// How often a write looks for another key when its key has a write in flight. With fewer keys than
/// connections there may be none, and then the write goes out with no clock of its own to wait for.
const REDRAWS: u32 = 16;

/// What a bench measured.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) record: Record,
    /// From the start of the measured time to the last answer.
    pub(crate) elapsed: Duration,
    /// Operations of an open loop whose turn never came.
    pub(crate) unsent: u64,
    /// Writes that had no key free of writes, and may have left siblings.
    pub(crate) crowded: u64,
    /// CPU time used meanwhile: who, process id, how much.
    pub(crate) cpu: Vec<(&'static str, u32, Duration)>,
}

/// What all connections share.
struct Shared {
    start: Instant,
    window: Window,
    schedule: Option<Schedule>,
    /// Open loop: a permit for every operation that is due.
    due: Semaphore,
    /// Open loop: the number of the next operation.
    next: AtomicU64,
    crowded: AtomicU64,
    picker: KeyPicker,
    clocks: Clocks,
    read_share: f64,
    paths: Paths,
    values: Values,
}

/// Runs the bench that `args` describe.
///
/// # Errors
/// As [`super::main`].
pub(crate) async fn run(args: &BenchArgs, output: &mut Output) -> Result<Measured, Failure> {
    let mut links = open(args).await?;
    let clocks = Clocks::new(if args.clock == ClockMode::Follow { args.keys } else { 0 });
    let mut shared = Shared {
        start: Instant::now(),
        window: Window { warmup: args.warmup, duration: args.duration },
        schedule: args.rate.map(Schedule::new),
        due: Semaphore::new(0),
        next: AtomicU64::new(0),
        crowded: AtomicU64::new(0),
        picker: KeyPicker::new(args.distribution, args.keys),
        clocks,
        read_share: args.reads,
        paths: Paths::new(args),
        values: Values::new(args)?,
    };
    if args.prefill {
        let begun = Instant::now();
        let filled = Arc::new(shared);
        links = prefill(args, &filled, links).await?;
        shared = Arc::into_inner(filled).ok_or_else(|| Failure::failed("the prefill did not end"))?;
        if args.output == Format::Text {
            output.note(&format!("prefilled {} keys in {:.1} s", args.keys, begun.elapsed().as_secs_f64()));
        }
    }
    // A process that can't be read is found before the load, not after it.
    for pid in &args.pids {
        cpu::used(*pid)?;
    }
    measure(args, shared, links).await
}

async fn open(args: &BenchArgs) -> Result<Vec<Link>, Failure> {
    let mut links = Vec::new();
    for gateway in args.gateways.iter().cycle().take(args.connections as usize) {
        links.push(Link::open(gateway, args.timeout).await?);
    }
    Ok(links)
}

async fn measure(args: &BenchArgs, mut shared: Shared, links: Vec<Link>) -> Result<Measured, Failure> {
    shared.start = Instant::now();
    let shared = Arc::new(shared);
    let pacer = match shared.schedule {
        Some(schedule) => Some(spawn_pacer(schedule, &shared)?),
        None => None,
    };
    let mut tasks = JoinSet::new();
    for (number, link) in links.into_iter().enumerate() {
        tasks.spawn(drive(shared.clone(), link, rng(args.seed, number as u64)));
    }
    let warm = shared.start + shared.window.warmup;
    tokio::time::sleep_until(warm.into()).await;
    let before = cpu_times(args)?;
    let began = Instant::now();

    let mut record = Record::new()?;
    while let Some(ended) = tasks.join_next().await {
        let part =
            ended.map_err(|error| Failure::failed(format!("a connection's task failed: {error}")))??;
        record.merge(&part);
    }
    let elapsed = began.elapsed();
    let after = cpu_times(args)?;
    if let Some(pacer) = pacer {
        pacer.join().map_err(|_| Failure::failed("the pacer failed"))?;
    }
    let cpu = before
        .into_iter()
        .zip(after)
        .map(|((who, pid, before), (_, _, after))| (who, pid, after.saturating_sub(before)))
        .collect();
    let planned = shared.schedule.map_or(0, |schedule| schedule.before(shared.window.end()));
    let unsent = planned.saturating_sub(shared.next.load(Ordering::Relaxed));
    Ok(Measured { record, elapsed, unsent, crowded: shared.crowded.load(Ordering::Relaxed), cpu })
}

fn cpu_times(args: &BenchArgs) -> Result<Vec<(&'static str, u32, Duration)>, Failure> {
    let own = std::process::id();
    let mut times = vec![("bench", own, cpu::used(own)?)];
    for pid in &args.pids {
        times.push(("server", *pid, cpu::used(*pid)?));
    }
    Ok(times)
}

/// The generator of one connection's choices: seeds that differ in one bit give unrelated sequences.
fn rng(seed: u64, connection: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed.wrapping_add(connection.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

/// Hands out a permit for each operation when it is due. A thread of its own because the runtime's timer ticks
/// in milliseconds, and that would count as latency.
fn spawn_pacer(schedule: Schedule, shared: &Arc<Shared>) -> Result<std::thread::JoinHandle<()>, Failure> {
    let shared = shared.clone();
    let end = shared.window.end();
    let pace = move || {
        let total = schedule.before(end);
        let mut issued = 0;
        while issued < total {
            let wait = schedule.intended(issued).saturating_sub(shared.start.elapsed());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            let due = schedule.due(shared.start.elapsed()).min(total);
            let fresh = usize::try_from(due.saturating_sub(issued)).unwrap_or(usize::MAX);
            // Far below the semaphore's limit even if this thread slept for an hour.
            shared.due.add_permits(fresh.min(Semaphore::MAX_PERMITS >> 1));
            issued = issued.max(due);
        }
        let rest = end.saturating_sub(shared.start.elapsed());
        std::thread::sleep(rest);
        // Whoever waits or comes later is told that the run is over; what is in flight ends by itself.
        shared.due.close();
    };
    std::thread::Builder::new()
        .name("bench-pacer".to_owned())
        .spawn(pace)
        .map_err(|error| Failure::failed(format!("can't start a thread: {error}")))
}

/// One connection's life: an operation at a time until the time is over.
async fn drive(shared: Arc<Shared>, mut link: Link, mut rng: Xoshiro256PlusPlus) -> Result<Record, Failure> {
    let mut record = Record::new()?;
    let mut scratch = BytesMut::new();
    loop {
        let intended = match &shared.schedule {
            None => shared.start.elapsed(),
            Some(schedule) => {
                let Ok(permit) = shared.due.acquire().await else { break };
                permit.forget();
                schedule.intended(shared.next.fetch_add(1, Ordering::Relaxed))
            }
        };
        let phase = shared.window.phase(intended);
        if phase == Phase::Over {
            break;
        }
        let read = rng.random::<f64>() < shared.read_share;
        let kind = if read { Kind::Read } else { Kind::Write };
        let sent = shared.start.elapsed();
        let result = match kind {
            Kind::Read => shared.read(&mut link, &mut rng, &mut scratch).await,
            Kind::Write => shared.write(&mut link, &mut rng, &mut scratch).await,
        };
        let timing = Timing { intended, sent, done: shared.start.elapsed() };
        if phase == Phase::Measured {
            let sent = if read { 0 } else { shared.values.size as u64 };
            record.add(kind, &timing, sent, &result);
        }
        if matches!(result, Err(Broken::Connect)) {
            link.rest().await;
        }
    }
    Ok(record)
}

impl Shared {
    async fn read(
        &self,
        link: &mut Link,
        rng: &mut Xoshiro256PlusPlus,
        scratch: &mut BytesMut,
    ) -> Result<Answer, Broken> {
        let key = self.picker.pick(rng);
        let began = self.clocks.begin_read(key);
        let path = self.paths.read(key, scratch);
        let answer = link.send(Method::GET, path, None, Bytes::new()).await?;
        self.clocks.end_read(key, began, answer.clock.clone());
        Ok(answer)
    }

    async fn write(
        &self,
        link: &mut Link,
        rng: &mut Xoshiro256PlusPlus,
        scratch: &mut BytesMut,
    ) -> Result<Answer, Broken> {
        let mut claimed = None;
        let mut key = self.picker.pick(rng);
        for _ in 0..REDRAWS {
            if let Some(clock) = self.clocks.begin_write(key) {
                claimed = Some(clock);
                break;
            }
            key = self.picker.pick(rng);
        }
        let path = self.paths.write(key, scratch);
        let body = self.values.next(rng);
        let Some(clock) = claimed else {
            self.crowded.fetch_add(1, Ordering::Relaxed);
            return link.send(Method::PUT, path, None, body).await;
        };
        let result = link.send(Method::PUT, path, clock, body).await;
        let seen = result.as_ref().ok().filter(|answer| answer.status.is_success());
        self.clocks.end_write(key, seen.and_then(|answer| answer.clock.clone()));
        result
    }
}

/// Writes every key once. In `follow` mode each write first asks for the key's clock, so that a second bench
/// over the same keys replaces the values of the first.
async fn prefill(args: &BenchArgs, shared: &Arc<Shared>, links: Vec<Link>) -> Result<Vec<Link>, Failure> {
    let mut tasks = JoinSet::new();
    for (first, link) in (0..args.connections).zip(links) {
        let (keys, step) = (args.keys, args.connections as usize);
        let follow = args.clock == ClockMode::Follow;
        let shared = shared.clone();
        let mut rng = rng(!args.seed, u64::from(first));
        tasks.spawn(async move {
            let mut link = link;
            let mut scratch = BytesMut::new();
            for key in (first..keys).step_by(step) {
                let clock =
                    if follow { known_clock(&shared, &mut link, key, &mut scratch).await? } else { None };
                let path = shared.paths.write(key, &mut scratch);
                let body = shared.values.next(&mut rng);
                let _ = shared.clocks.begin_write(key);
                let result = link.send(Method::PUT, path, clock, body).await;
                let answer = result.map_err(|broken| unanswered(broken, "PUT"))?;
                if !answer.status.is_success() {
                    return Err(Failure::failed(format!("the prefill was refused: {}", answer.status)));
                }
                shared.clocks.end_write(key, answer.clock);
            }
            Ok(link)
        });
    }
    let mut links = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        links.push(ended.map_err(|error| Failure::failed(format!("a connection's task failed: {error}")))??);
    }
    Ok(links)
}

async fn known_clock(
    shared: &Shared,
    link: &mut Link,
    key: u32,
    scratch: &mut BytesMut,
) -> Result<Option<HeaderValue>, Failure> {
    let path = shared.paths.read(key, scratch);
    let result = link.send(Method::HEAD, path, None, Bytes::new()).await;
    let answer = result.map_err(|broken| unanswered(broken, "HEAD"))?;
    match answer.status {
        StatusCode::OK | StatusCode::MULTIPLE_CHOICES | StatusCode::NOT_FOUND => Ok(answer.clock),
        status => Err(Failure::failed(format!("the prefill's HEAD was refused: {status}"))),
    }
}

fn unanswered(broken: Broken, method: &str) -> Failure {
    Failure::unreachable(format!("the prefill's {method} got no answer: {}", broken.name()))
}

/// The paths of all keys, built on demand.
struct Paths {
    prefix: String,
    read_query: String,
    write_query: String,
}

impl Paths {
    fn new(args: &BenchArgs) -> Paths {
        let mut read_query = Query::default();
        read_query.add("r", args.r.as_deref());
        let mut write_query = Query::default();
        write_query.add("w", args.w.as_deref());
        write_query.add("durability", args.durability.as_deref());
        Paths {
            prefix: key_path(&args.namespace, b"key-"),
            read_query: read_query.as_str().to_owned(),
            write_query: write_query.as_str().to_owned(),
        }
    }

    fn read(&self, key: u32, scratch: &mut BytesMut) -> PathAndQuery {
        build(&self.prefix, key, &self.read_query, scratch)
    }

    fn write(&self, key: u32, scratch: &mut BytesMut) -> PathAndQuery {
        build(&self.prefix, key, &self.write_query, scratch)
    }
}

/// `prefix`, the key's number in eight digits, `query`. The scratch buffer's memory is used again as soon as
/// the request that held it is gone.
fn build(prefix: &str, key: u32, query: &str, scratch: &mut BytesMut) -> PathAndQuery {
    let mut digits = [b'0'; 8];
    let mut rest = key;
    for place in digits.iter_mut().rev() {
        *place = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    scratch.reserve(prefix.len() + digits.len() + query.len());
    scratch.put_slice(prefix.as_bytes());
    scratch.put_slice(&digits);
    scratch.put_slice(query.as_bytes());
    let path = scratch.split().freeze();
    // Prefix and query are percent-encoded, so this can't be refused; "/" would show as 404s in the report.
    PathAndQuery::from_maybe_shared(path).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}

/// Pseudo-random values of one size.
struct Values {
    pool: Bytes,
    size: usize,
}

impl Values {
    fn new(args: &BenchArgs) -> Result<Values, Failure> {
        let size = usize::try_from(args.value_size)
            .map_err(|_| Failure::usage("--value-size does not fit this machine's memory"))?;
        let mut pool = vec![0; size + VALUE_SLACK];
        Xoshiro256PlusPlus::seed_from_u64(args.seed).fill_bytes(&mut pool);
        Ok(Values { pool: Bytes::from(pool), size })
    }

    fn next(&self, rng: &mut Xoshiro256PlusPlus) -> Bytes {
        let from = rng.random_range(0..=VALUE_SLACK);
        self.pool.slice(from..from + self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_hold_the_key_in_eight_digits() {
        let mut scratch = BytesMut::new();
        let path = build("/v1/kv/bench/key-", 9_999_999, "?r=2", &mut scratch);
        assert_eq!(path.as_str(), "/v1/kv/bench/key-09999999?r=2");
        assert_eq!(build("/p/", 0, "", &mut scratch).as_str(), "/p/00000000");
    }

    #[test]
    fn connections_draw_unrelated_sequences() {
        let first = |seed, connection| rng(seed, connection).next_u64();
        assert_eq!(first(1, 0), first(1, 0));
        assert_ne!(first(1, 0), first(1, 1));
        assert_ne!(first(1, 0), first(2, 0));
    }
}
