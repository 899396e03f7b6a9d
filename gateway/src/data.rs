//! `/v1/kv/{namespace}/{key}`: the four methods, from request to answer.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use tokio::time::Instant;

use cartwheel_core::clock::Clock;
use cartwheel_core::hash::{KeyHash, checksum, request_id};
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::namespace::BlindWrite;
use cartwheel_core::quorum::{Applied, Tally};
use cartwheel_core::record::{Value, Version};
use cartwheel_core::wire::{Precondition, Tags};

use crate::Shared;
use crate::answer::{Form, QuorumMet, put_degraded, put_header, read_answer, server_timing, write_answer};
use crate::coordinate::get::{Read, Seen, get};
use crate::coordinate::put::{Unwritten, Write, Written, put};
use crate::coordinate::usable_view;
use crate::problem::Problem;
use crate::request::{
    Described, Operation, Query, check_host, parse_clock, parse_described, parse_path, parse_precondition,
    wants_json,
};
use crate::settings::Settings;

/// How long requests wait at most where the ring is not known yet.
const RING_PATIENCE: Duration = Duration::from_secs(2);

/// Answers one data request.
pub(crate) async fn handle(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let outcome = match parts.method {
        Method::GET | Method::HEAD => read(&shared, &parts, arrived).await,
        Method::PUT => write(&shared, &parts, Some(body), arrived).await,
        Method::DELETE => write(&shared, &parts, None, arrived).await,
        _ => Err(Problem::method_not_allowed("GET, HEAD, PUT, DELETE")),
    };
    outcome.unwrap_or_else(Problem::into_response)
}

/// What every data request has, checked.
struct Common {
    namespace: Namespace,
    key: Key,
    hash: KeyHash,
    query: Query,
    settings: Settings,
    context: Option<Clock>,
}

/// A gateway that has just started knows the ring in a moment: requests that are there already wait for it, for half of
/// their time at most. Returns for how long.
async fn await_ring(shared: &Shared, uri: &Uri, operation: Operation) -> Result<Duration, Problem> {
    if shared.follower.view().is_some() {
        return Ok(Duration::ZERO);
    }
    // How many replicas there are is not known yet.
    let query = Query::parse(uri, operation, usize::MAX, shared.config.deadline)?;
    let began = Instant::now();
    let patience = RING_PATIENCE.min(query.deadline / 2);
    let _ = tokio::time::timeout(patience, shared.follower.at_least(1)).await;
    Ok(began.elapsed())
}

async fn common(shared: &Shared, parts: &Parts, operation: Operation) -> Result<Common, Problem> {
    check_host(parts.version, &parts.headers)?;
    let (namespace, key) = parse_path(&parts.uri)?;
    let waited = await_ring(shared, &parts.uri, operation).await?;
    let view = usable_view(shared)?;
    let n = view.document.replicas;
    let mut query = Query::parse(&parts.uri, operation, n as usize, shared.config.deadline)?;
    query.deadline = query.deadline.saturating_sub(waited);
    let context = parse_clock(&parts.headers, &shared.clock_key, &namespace, &key)?;
    let hash = KeyHash::of(view.document.hash_seed, &namespace, &key);
    // Half of the time is left for the replicas.
    let settings = Settings::of(shared.namespaces.settings(&namespace, query.deadline / 2).await, n);
    Ok(Common { namespace, key, hash, query, settings, context })
}

async fn read(shared: &Shared, parts: &Parts, arrived: Instant) -> Result<Response<Body>, Problem> {
    let Common { namespace, key, hash, query, settings, context } =
        common(shared, parts, Operation::Read).await?;
    let precondition = parse_precondition(&parts.headers)?;
    let form =
        Form { key: &shared.clock_key, json: wants_json(&parts.headers), head: parts.method == Method::HEAD };
    let _permit = shared.permit()?;
    let read = Read {
        namespace,
        key,
        hash,
        r: query.r.unwrap_or(settings.r),
        sloppy: query.sloppy,
        values: !form.head,
        floor: context.unwrap_or_default(),
        deadline: arrived + query.deadline,
    };
    let asked = Instant::now();
    let seen = match get(shared, &read).await {
        Ok(seen) => seen,
        Err(problem) => {
            asked_replicas(shared, "get", "unavailable", asked, 0);
            let missed = problem.quorum.as_ref().map(|missed| read_met(settings.n, read.r, missed.tally));
            return Ok(refusal(problem, missed, arrived, asked));
        }
    };
    let waited = asked.elapsed();
    let outcome = if seen.degraded.is_some() { "degraded" } else { "ok" };
    asked_replicas(shared, "get", outcome, asked, seen.tally.fallback);
    let mut response = match read_answer(&seen.container, form, &precondition, query.sibling.as_deref()) {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    };
    finish_read(shared, &read, &seen, &mut response);
    if let Some(record) = shared.watch.recorder.get()
        && response.status().as_u16() < 400
    {
        record.siblings(seen.container.siblings().len());
    }
    response.headers_mut().insert("server-timing", server_timing(arrived.elapsed(), waited, seen.degraded));
    Ok(response)
}

/// Replicas were asked for something, and it came to that.
fn asked_replicas(
    shared: &Shared,
    op: &'static str,
    outcome: &'static str,
    asked: Instant,
    fallbacks: usize,
) {
    let Some(record) = shared.watch.recorder.get() else { return };
    record.operation(op, outcome, asked.elapsed());
    if fallbacks > 0 {
        record.fallback_answer(op);
    }
}

fn read_met(n: usize, required: usize, tally: Tally) -> QuorumMet {
    QuorumMet { op: "read", n, required, tally, durability: None }
}

/// A refusal, with what every answer has that replicas had a part in.
fn refusal(problem: Problem, met: Option<QuorumMet>, arrived: Instant, asked: Instant) -> Response<Body> {
    let mut response = problem.into_response();
    if let Some(met) = met {
        let headers = response.headers_mut();
        headers.insert("quorum", met.header());
        headers.insert("server-timing", server_timing(arrived.elapsed(), asked.elapsed(), None));
    }
    response
}

/// The headers that every answer to a read has.
fn finish_read(shared: &Shared, read: &Read, seen: &Seen, response: &mut Response<Body>) {
    let headers = response.headers_mut();
    if !seen.container.seen().is_empty() {
        let clock = shared.clock_key.sign(&read.namespace, &read.key, seen.container.seen());
        put_header(headers, "vector-clock", &clock);
    }
    headers.insert("quorum", read_met(seen.n, read.r, seen.tally).header());
    put_degraded(headers, seen.degraded);
    if seen.below_floor {
        headers.insert("stale", HeaderValue::from_static("?1"));
    }
}

/// PUT with a body, DELETE without.
async fn write(
    shared: &Arc<Shared>,
    parts: &Parts,
    body: Option<Body>,
    arrived: Instant,
) -> Result<Response<Body>, Problem> {
    let refused = |problem: Problem| problem.applied(Applied::No);
    let Common { namespace, key, hash, query, settings, context } =
        common(shared, parts, Operation::Write).await.map_err(refused)?;
    let precondition = parse_precondition(&parts.headers).map_err(refused)?;
    if context.is_none() && settings.on_blind_write == BlindWrite::Reject && !is_for_new_keys(&precondition) {
        return Err(refused(Problem::blind_write()));
    }
    let described = parse_described(&parts.headers).map_err(refused)?;
    let (value, _held) = match body {
        Some(body) => {
            let read = shared.bodies.read(&parts.headers, body, shared.config.max_value).await;
            let (bytes, held) = read.map_err(refused)?;
            (Value::Present(bytes), Some(held))
        }
        None => (Value::Deleted, None),
    };
    // Only now: requests whose body has not arrived hold no place.
    let _permit = shared.permit().map_err(refused)?;
    // The time that a body takes is not the cluster's.
    let deadline = Instant::now() + query.deadline;
    let read = Read {
        namespace: namespace.clone(),
        key: key.clone(),
        hash,
        r: query.r.unwrap_or(settings.r),
        sloppy: query.sloppy,
        values: false,
        floor: Clock::new(),
        deadline,
    };
    let asked = Instant::now();
    let context = match context {
        Some(context) => context,
        // A deletion without a clock deletes what a quorum read sees now, no more.
        None if value.is_deleted() => get(shared, &read).await.map_err(refused)?.container.into_parts().0,
        None => Clock::new(),
    };
    let op = if value.is_deleted() { "delete" } else { "put" };
    let version = version(shared, settings, &namespace, &key, value, context.clone(), described);
    let write = Arc::new(Write {
        namespace,
        key,
        hash,
        version,
        w: query.w.unwrap_or(settings.w),
        sloppy: query.sloppy,
        durability: query.durability.unwrap_or(settings.durability),
        precondition,
        max_siblings: settings.max_siblings,
        deadline,
    });
    let written = match put(shared, &write).await {
        Ok(written) => written,
        Err(unwritten) => {
            let problem = explain(shared, &write, unwritten);
            let outcome = if problem.status.is_server_error() { "unavailable" } else { "refused" };
            asked_replicas(shared, op, outcome, asked, 0);
            // A refusal by the replica that was to mint counts nobody.
            let tally = problem.quorum.as_ref().map(|missed| missed.tally).unwrap_or_default();
            let met = QuorumMet { op: "write", n: settings.n, required: write.w, tally, durability: None };
            let reached = problem.quorum.is_some() || problem.clock.is_some();
            return Ok(refusal(problem, reached.then_some(met), arrived, asked));
        }
    };
    let waited = asked.elapsed();
    let outcome = if written.degraded.is_some() { "degraded" } else { "ok" };
    asked_replicas(shared, op, outcome, asked, written.tally.fallback);
    let mut seen = context;
    seen.insert(&written.dot);
    let mut response = if query.return_value {
        // What is returned holds this write, however few replicas are read.
        let read = Read { values: true, floor: seen.clone(), ..read };
        return_value(shared, parts, read, &written).await?
    } else {
        write_answer(&written.dot)
    };
    let headers = response.headers_mut();
    if !headers.contains_key("vector-clock") {
        put_header(headers, "vector-clock", &shared.clock_key.sign(&write.namespace, &write.key, &seen));
    }
    let Written { n, tally, reached, degraded, .. } = written;
    put_degraded(headers, degraded);
    let met = QuorumMet { op: "write", n, required: write.w, tally, durability: Some(reached) };
    headers.insert("quorum", met.header());
    headers.insert("server-timing", server_timing(arrived.elapsed(), waited, degraded));
    Ok(response)
}

/// Does the client say that it takes the key for new? Its clock would be empty.
fn is_for_new_keys(precondition: &Precondition) -> bool {
    matches!(precondition, Precondition::IfNoneMatch(Tags::Any))
}

fn version(
    shared: &Shared,
    settings: Settings,
    namespace: &Namespace,
    key: &Key,
    value: Value,
    context: Clock,
    described: Described,
) -> Version {
    let Described { content_type, meta, idempotency_key } = described;
    let request = match &idempotency_key {
        Some(name) => request_id(namespace, key, &identity(name, &value)),
        None => shared.seams.random.next_u128(),
    };
    let now_ms = shared.seams.clock.now_ms();
    Version {
        written_ms: now_ms,
        // Fixed here, once for all replicas. A deletion does not end.
        expires_ms: if value.is_deleted() { 0 } else { settings.expiry(now_ms) },
        value,
        request,
        context,
        content_type,
        meta,
    }
}

/// What makes a named write the same write: its name, and what it writes. Another value under the same name is
/// another write, and must not be answered as if it had been made.
fn identity(name: &[u8], value: &Value) -> Vec<u8> {
    let body = match value {
        Value::Present(bytes) => checksum(bytes),
        Value::Omitted(_) | Value::Deleted => 0,
    };
    [name, &[u8::from(value.is_deleted())], &body.to_le_bytes()].concat()
}

/// `return=value`: 200 with what a quorum read sees after the write, and that read's clock. Where nothing but
/// deletions is left, 204.
async fn return_value(
    shared: &Shared,
    parts: &Parts,
    read: Read,
    written: &Written,
) -> Result<Response<Body>, Problem> {
    let seen = get(shared, &read).await.map_err(|problem| problem.applied(Applied::Unknown))?;
    let mut response = if seen.container.siblings().iter().all(|s| s.version.value.is_deleted()) {
        let mut response = write_answer(&written.dot);
        put_header(response.headers_mut(), "cartwheel-deleted", "?1");
        response
    } else {
        let form = Form { key: &shared.clock_key, json: wants_json(&parts.headers), head: false };
        let mut response = read_answer(&seen.container, form, &Precondition::None, None)?;
        *response.status_mut() = StatusCode::OK;
        response
    };
    finish_read(shared, &read, &seen, &mut response);
    put_header(response.headers_mut(), "dot", &written.dot.to_string());
    Ok(response)
}

fn explain(shared: &Shared, write: &Write, unwritten: Unwritten) -> Problem {
    let sign = |clock: &Clock| shared.clock_key.sign(&write.namespace, &write.key, clock);
    match unwritten {
        Unwritten::Problem(problem) => problem,
        Unwritten::Precondition(clock, applied) => {
            Problem::precondition_failed().applied(applied).with_clock(sign(&clock))
        }
        Unwritten::TooManySiblings(clock, applied) => {
            Problem::too_many_siblings(write.max_siblings).applied(applied).with_clock(sign(&clock))
        }
    }
}
