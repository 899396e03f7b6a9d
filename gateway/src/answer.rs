//! Successful answers to data requests: status, headers and body from what the quorum said. Pure.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use cartwheel_core::clock::Dot;
use cartwheel_core::container::{Container, Sibling};
use cartwheel_core::header::ClockKey;
use cartwheel_core::quorum::{Durability, Tally};
use cartwheel_core::record::{Value, Version, etag};
use cartwheel_core::wire::{Precondition, Tags};

use crate::coordinate::Degraded;
use crate::problem::Problem;

/// How the answer is to look.
#[derive(Debug, Clone, Copy)]
pub struct Form<'a> {
    /// Makes the separators of multipart bodies.
    pub key: &'a ClockKey,
    /// Siblings as JSON rather than multipart.
    pub json: bool,
    /// No body: HEAD.
    pub head: bool,
}

/// How the quorum was met.
#[derive(Debug, Clone, Copy)]
pub struct QuorumMet {
    /// `read` or `write`.
    pub op: &'static str,
    /// Replicas.
    pub n: usize,
    /// Answers needed.
    pub required: usize,
    /// Answers counted.
    pub tally: Tally,
    /// What all counted acknowledgements reached; for reads what they were asked of.
    pub durability: Option<Durability>,
}

impl QuorumMet {
    /// The `Quorum` header.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        let Self { op, n, required, tally, durability } = self;
        let (answered, home, fallback) = (tally.answered(), tally.home, tally.fallback);
        let mut text = format!(
            "op={op}, n={n}, required={required}, answered={answered}, home={home}, fallback={fallback}"
        );
        if let Some(durability) = durability {
            let _ = write!(text, ", durability={durability}");
        }
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

/// `Server-Timing`, in milliseconds: the gateway's own work, and, of the time `waited` for others, what replicas and
/// what the bucket took.
#[must_use]
pub(crate) fn server_timing(total: Duration, waited: Duration, degraded: Option<Degraded>) -> HeaderValue {
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let bucket = degraded.map_or(Duration::ZERO, |degraded| degraded.took);
    let (gateway, replicas) = (total.saturating_sub(waited), waited.saturating_sub(bucket));
    let mut text = format!("gateway;dur={:.3}, replicas;dur={:.3}", ms(gateway), ms(replicas));
    if degraded.is_some() {
        let _ = write!(text, ", bucket;dur={:.3}", ms(bucket));
    }
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Says that the bucket stood in for too few replicas, and as of when it was read.
pub(crate) fn put_degraded(headers: &mut HeaderMap, degraded: Option<Degraded>) {
    if let Some(Degraded { as_of_ms, .. }) = degraded {
        put_header(headers, "cartwheel-degraded", &format!("bucket; as-of=\"{}\"", utc(as_of_ms)));
    }
}

/// A time in UTC, to the second, as RFC 3339 writes it.
pub(crate) fn utc(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Days since 1 March of the year 0 (Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Puts a header in, if its value can be one.
pub fn put_header(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The answer to a read whose precondition holds: 200, 300, 304 or 404.
///
/// # Errors
/// 404 if `sibling` names none, 412 if `If-Match` fails.
pub fn read_answer(
    container: &Container<Version>,
    form: Form<'_>,
    precondition: &Precondition,
    sibling: Option<&str>,
) -> Result<Response<Body>, Problem> {
    let set_tag = etag(container.siblings().iter().map(|s| &s.dot));
    let siblings = distinct(container.siblings());
    let exists = siblings.iter().any(|s| !s.version.value.is_deleted());
    let matches = |tags: &Tags| match tags {
        Tags::Any => exists,
        Tags::List(list) => exists && list.contains(&set_tag),
    };
    match precondition {
        Precondition::IfMatch(tags) if !matches(tags) => return Err(Problem::precondition_failed()),
        Precondition::IfNoneMatch(tags) if matches(tags) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            put_header(response.headers_mut(), "etag", &set_tag);
            if let [only] = siblings.as_slice()
                && let Some(expires) = expires(&only.version)
            {
                put_header(response.headers_mut(), "expires", &expires);
            }
            forbid_copies(response.headers_mut());
            return Ok(response);
        }
        _ => {}
    }
    if let Some(wanted) = sibling {
        let found = container
            .siblings()
            .iter()
            .find(|s| etag([&s.dot]) == wanted)
            .ok_or_else(Problem::no_such_sibling)?;
        return Ok(one(found, form));
    }
    Ok(match siblings.as_slice() {
        _ if !exists => gone(&siblings, &set_tag),
        [only] => {
            let mut response = one(only, form);
            put_header(response.headers_mut(), "etag", &set_tag);
            response
        }
        several => many(several, &set_tag, form),
    })
}

/// The siblings, each write once: one whose minter fell silent may have been minted by two nodes. The clock
/// and the entity tag of the set hold both.
fn distinct(siblings: &[Sibling<Version>]) -> Vec<&Sibling<Version>> {
    let mut distinct: Vec<&Sibling<Version>> = Vec::with_capacity(siblings.len());
    for sibling in siblings {
        if distinct.iter().all(|s| s.version.request != sibling.version.request) {
            distinct.push(sibling);
        }
    }
    distinct
}

/// 404: never seen, or deleted.
fn gone(siblings: &[&Sibling<Version>], set_tag: &str) -> Response<Body> {
    let mut response = Problem::not_found(!siblings.is_empty()).into_response();
    if !siblings.is_empty() {
        put_header(response.headers_mut(), "cartwheel-deleted", "?1");
        put_header(response.headers_mut(), "etag", set_tag);
    }
    response
}

/// 200 with one version's value. A deletion asked for by its tag has no body and says so.
fn one(sibling: &Sibling<Version>, form: Form<'_>) -> Response<Body> {
    let body = match &sibling.version.value {
        Value::Present(bytes) if !form.head => Body::from(bytes.clone()),
        _ => Body::empty(),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    describe(headers, sibling);
    forbid_copies(headers);
    if form.head {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(sibling.version.value.size()));
    }
    response
}

/// What is said of a version in headers.
fn describe(headers: &mut HeaderMap, sibling: &Sibling<Version>) {
    let version = &sibling.version;
    put_header(headers, "etag", &etag([&sibling.dot]));
    put_header(headers, "last-modified", &http_date(version.written_ms));
    if version.value.is_deleted() {
        put_header(headers, "cartwheel-deleted", "?1");
        return;
    }
    if let Some(expires) = expires(version) {
        put_header(headers, "expires", &expires);
    }
    let content_type: &[u8] =
        if version.content_type.is_empty() { b"application/octet-stream" } else { &version.content_type };
    if let Ok(value) = HeaderValue::from_bytes(content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    // A browser must not guess another type and run what somebody stored.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in &version.meta {
        let name = HeaderName::from_bytes(&[b"cartwheel-meta-", &name[..]].concat());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
}

/// When a value ends by itself, if it does.
fn expires(version: &Version) -> Option<String> {
    let ends = version.expires_ms != 0 && !version.value.is_deleted();
    ends.then(|| http_date(version.expires_ms))
}

/// `Expires` says when the value ends, not until when it stays as it is: nobody may answer with a copy unasked.
fn forbid_copies(headers: &mut HeaderMap) {
    if headers.contains_key(header::EXPIRES) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
}

/// A time as HTTP writes it; milliseconds since 1970.
pub(crate) fn http_date(ms: u64) -> String {
    // Year 9999 is the last that the format can say.
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(ms.min(253_402_300_799_000)))
}

/// 300 with all siblings, in the form that the client asked for.
fn many(siblings: &[&Sibling<Version>], set_tag: &str, form: Form<'_>) -> Response<Body> {
    let (content_type, body) = if form.json { as_json(siblings) } else { as_multipart(siblings, form.key) };
    // Without the values the length is not known, and none is better than a wrong one.
    let unsaid = || Body::from_stream(stream::empty::<Result<Bytes, Infallible>>());
    let mut response = Response::new(if form.head { unsaid() } else { Body::from(body) });
    *response.status_mut() = StatusCode::MULTIPLE_CHOICES;
    put_header(response.headers_mut(), "content-type", &content_type);
    put_header(response.headers_mut(), "etag", set_tag);
    response
}

fn as_multipart(siblings: &[&Sibling<Version>], key: &ClockKey) -> (String, Bytes) {
    let boundary = boundary(siblings, key);
    let mut body = BytesMut::new();
    for sibling in siblings {
        let mut headers = HeaderMap::new();
        describe(&mut headers, sibling);
        put_header(&mut headers, "dot", &sibling.dot.to_string());
        body.put_slice(format!("--{boundary}\r\n").as_bytes());
        for (name, value) in &headers {
            body.put_slice(name.as_str().as_bytes());
            body.put_slice(b": ");
            body.put_slice(value.as_bytes());
            body.put_slice(b"\r\n");
        }
        body.put_slice(b"\r\n");
        if let Value::Present(bytes) = &sibling.version.value {
            body.put_slice(bytes);
        }
        body.put_slice(b"\r\n");
    }
    body.put_slice(format!("--{boundary}--\r\n").as_bytes());
    (format!("multipart/mixed; boundary={boundary}"), body.freeze())
}

/// A boundary that stands in none of the values. Writers can't guess it, so that nobody can fill values with the
/// boundaries to come.
fn boundary(siblings: &[&Sibling<Version>], key: &ClockKey) -> String {
    let dots: String = siblings.iter().map(|s| format!("{},", s.dot)).collect();
    let mut n = 0;
    loop {
        let boundary = format!("cartwheel-{:016x}", key.separator(&dots, n));
        let stands_in = |s: &&Sibling<Version>| match &s.version.value {
            Value::Present(bytes) => bytes.windows(boundary.len()).any(|w| w == boundary.as_bytes()),
            _ => false,
        };
        if !siblings.iter().any(stands_in) {
            return boundary;
        }
        n += 1;
    }
}

#[derive(Serialize)]
struct JsonSibling {
    dot: String,
    etag: String,
    last_modified: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    meta: serde_json::Map<String, serde_json::Value>,
    deleted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

fn as_json(siblings: &[&Sibling<Version>]) -> (String, Bytes) {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let list: Vec<JsonSibling> = siblings
        .iter()
        .map(|sibling| {
            let Sibling { dot, version } = *sibling;
            let (value, value_base64) = match &version.value {
                Value::Present(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) => (Some(text.to_owned()), None),
                    Err(_) => (None, Some(BASE64.encode(bytes))),
                },
                _ => (None, None),
            };
            JsonSibling {
                dot: dot.to_string(),
                etag: etag([dot]),
                last_modified: http_date(version.written_ms),
                expires: expires(version),
                content_type: (!version.content_type.is_empty()).then(|| text(&version.content_type)),
                meta: version.meta.iter().map(|(name, value)| (text(name), text(value).into())).collect(),
                deleted: version.value.is_deleted(),
                value,
                value_base64,
            }
        })
        .collect();
    ("application/json".to_owned(), serde_json::to_vec(&list).unwrap_or_default().into())
}

/// 204 for a write: its dot and entity tag.
#[must_use]
pub fn write_answer(dot: &Dot) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    put_header(response.headers_mut(), "dot", &dot.to_string());
    put_header(response.headers_mut(), "etag", &etag([dot]));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cartwheel_core::clock::{Actor, Clock};
    use http_body_util::BodyExt;

    use std::sync::LazyLock;

    use super::*;

    static KEY: LazyLock<ClockKey> = LazyLock::new(|| ClockKey::derive(b"secret"));

    fn form() -> Form<'static> {
        Form { key: &KEY, json: false, head: false }
    }

    fn container(values: &[Option<&'static str>]) -> Container<Version> {
        let mut all = Container::default();
        for (at, value) in values.iter().enumerate() {
            let dot = Dot { actor: Actor::parse("a.1").unwrap(), n: at as u64 + 1 };
            let version = Version {
                value: value.map_or(Value::Deleted, |v| Value::Present(Bytes::from_static(v.as_bytes()))),
                written_ms: 1_700_000_000_000,
                expires_ms: 0,
                request: at as u128,
                context: Clock::new(),
                content_type: Bytes::from_static(b"text/plain"),
                meta: vec![(Bytes::from_static(b"n"), Bytes::from(at.to_string()))],
            };
            all.sync(Container::delta(&Clock::new(), dot, version));
        }
        all
    }

    fn status(values: &[Option<&'static str>], form: Form<'_>) -> u16 {
        read_answer(&container(values), form, &Precondition::None, None).unwrap().status().as_u16()
    }

    async fn text(response: Response<Body>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_373_999_999), "2026-11-22T18:59:59Z");
        assert_eq!(utc(4_107_542_399_000), "2100-02-28T23:59:59Z");
    }

    #[test]
    fn values_that_end_say_when_and_are_not_to_be_copied() {
        let ending = container(&[Some("x")]).map(|v| Version { expires_ms: 1_700_000_001_500, ..v.clone() });
        let shown = |container: &Container<Version>, precondition: &Precondition| {
            let response = read_answer(container, form(), precondition, None).unwrap();
            let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
            (response.status().as_u16(), header("expires"), header("cache-control"))
        };
        let expires = Some("Tue, 14 Nov 2023 22:13:21 GMT".to_owned());
        let said = (200, expires.clone(), Some("no-cache".to_owned()));
        assert_eq!(shown(&ending, &Precondition::None), said);
        assert_eq!(shown(&ending, &Precondition::IfNoneMatch(Tags::Any)), (304, said.1, said.2));
        assert_eq!(shown(&container(&[Some("x")]), &Precondition::None), (200, None, None));
        let ended = ending.map(|v| v.clone().as_of(1_700_000_001_500));
        assert_eq!(shown(&ended, &Precondition::None), (404, None, None));
        let (_, json) = as_json(&ending.siblings().iter().collect::<Vec<_>>());
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json[0]["expires"].as_str(), expires.as_deref());
    }

    #[test]
    fn the_status_says_what_there_is() {
        assert_eq!(status(&[], form()), 404);
        assert_eq!(status(&[None], form()), 404);
        assert_eq!(status(&[None, None], form()), 404);
        assert_eq!(status(&[Some("x")], form()), 200);
        assert_eq!(status(&[Some("x"), Some("y")], form()), 300);
        assert_eq!(status(&[Some("x"), None], form()), 300);
    }

    #[tokio::test]
    async fn siblings_as_multipart_and_json() {
        let c = container(&[Some("one"), None, Some("three")]);
        let response = read_answer(&c, form(), &Precondition::None, None).unwrap();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let boundary = kind.strip_prefix("multipart/mixed; boundary=").unwrap();
        let body = text(response).await;
        assert_eq!(body.matches(&format!("--{boundary}\r\n")).count(), 3);
        assert!(body.contains("dot: a.1=3") && body.contains("\r\n\r\nthree\r\n"), "{body}");
        assert_eq!(body.matches("cartwheel-deleted: ?1").count(), 1);

        let json = Form { json: true, ..form() };
        let response = read_answer(&c, json, &Precondition::None, None).unwrap();
        assert_eq!(response.headers()["content-type"], "application/json");
        let list: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(list[0]["value"], "one");
        assert_eq!(list[1]["deleted"], true);
        assert_eq!(list[2]["meta"]["n"], "2");
    }

    #[tokio::test]
    async fn one_sibling_can_be_asked_for_by_its_tag() {
        let c = container(&[Some("one"), Some("two")]);
        let tag = etag([&c.siblings()[1].dot]);
        let response = read_answer(&c, form(), &Precondition::None, Some(&tag)).unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(text(response).await, "two");
        let missing = read_answer(&c, form(), &Precondition::None, Some("\"no\"")).unwrap_err();
        assert_eq!(missing.status, 404);
    }

    #[test]
    fn a_boundary_never_stands_in_a_value() {
        let plain = container(&[Some("x"), Some("y")]);
        let first = boundary(&distinct(plain.siblings()), &KEY);
        let value: &'static str = Box::leak(first.clone().into_boxed_str());
        let awkward = container(&[Some(value), Some("y")]);
        assert_ne!(boundary(&distinct(awkward.siblings()), &KEY), first);
    }

    #[test]
    fn a_write_minted_twice_is_shown_once() {
        let mut twice = container(&[Some("one")]);
        let version = twice.siblings()[0].version.clone();
        let dot = Dot { actor: Actor::parse("b.1").unwrap(), n: 1 };
        twice.sync(Container::delta(&Clock::new(), dot, version));
        let response = read_answer(&twice, form(), &Precondition::None, None).unwrap();
        assert_eq!(response.status(), 200);
        let set_tag = etag(twice.siblings().iter().map(|s| &s.dot));
        assert_eq!(response.headers()["etag"], set_tag.as_str(), "what a replica compares If-Match with");
    }

    #[test]
    fn preconditions_of_reads() {
        let c = container(&[Some("one")]);
        let tag = Tags::List(vec![etag([&c.siblings()[0].dot])]);
        let other = Tags::List(vec!["\"x\"".into()]);
        let status = |p: Precondition| match read_answer(&c, form(), &p, None) {
            Ok(response) => response.status().as_u16(),
            Err(problem) => problem.status.as_u16(),
        };
        assert_eq!(status(Precondition::IfNoneMatch(tag.clone())), 304);
        assert_eq!(status(Precondition::IfNoneMatch(other.clone())), 200);
        assert_eq!(status(Precondition::IfMatch(tag)), 200);
        assert_eq!(status(Precondition::IfMatch(other)), 412);
    }
}
