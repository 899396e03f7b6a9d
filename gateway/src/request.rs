//! Reading a data request: path, query and headers into types that are within their limits. Pure.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Uri, Version, header};

use cartwheel_core::clock::Clock;
use cartwheel_core::header::ClockKey;
use cartwheel_core::names::{Key, NameError, Namespace};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{MAX_META_BYTES, MAX_META_PAIRS};
use cartwheel_core::wire::{MAX_TAGS, Precondition, Tags};

use crate::problem::Problem;

/// What all data paths start with.
pub const DATA_PREFIX: &str = "/v1/kv/";
/// The path of the list of namespaces.
pub(crate) const NAMESPACES_PATH: &str = "/v1/namespaces";
/// The longest deadline.
const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// Longest `Content-Type`, bytes.
const MAX_CONTENT_TYPE: usize = 255;
/// Longest `Idempotency-Key`, bytes.
const MAX_IDEMPOTENCY_KEY: usize = 255;
const META_PREFIX: &str = "cartwheel-meta-";

/// Namespace and key of a path.
///
/// # Errors
/// 400 or 414, naming the field and the limit.
pub fn parse_path(uri: &Uri) -> Result<(Namespace, Key), Problem> {
    let rest = uri.path().strip_prefix(DATA_PREFIX).unwrap_or_default();
    let (namespace, key) = rest.split_once('/').unwrap_or((rest, ""));
    let namespace = decode_namespace(namespace)?;
    let key = Key::new(percent_decode(key, "key")?.into()).map_err(|e| match e {
        NameError::LongKey(_) => Problem::key_too_long(e.to_string()),
        _ => Problem::bad_request(e.to_string()),
    })?;
    Ok((namespace, key))
}

/// The namespace of a path under [`NAMESPACES_PATH`].
///
/// # Errors
/// 400, naming the rule.
pub(crate) fn parse_namespace(uri: &Uri) -> Result<Namespace, Problem> {
    let rest = uri.path().strip_prefix(NAMESPACES_PATH).unwrap_or_default();
    decode_namespace(rest.strip_prefix('/').unwrap_or_default())
}

fn decode_namespace(text: &str) -> Result<Namespace, Problem> {
    Namespace::new(&percent_decode(text, "namespace")?).map_err(|e| Problem::bad_request(e.to_string()))
}

/// Decodes every `%XX` once; anything else after a `%` is an error.
fn percent_decode(text: &str, field: &str) -> Result<Vec<u8>, Problem> {
    let bad = || Problem::bad_request(format!("{field} has a '%' that is not followed by two hex digits"));
    let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let value = hex(bytes.next())? * 16 + hex(bytes.next())?;
            out.push(u8::try_from(value).map_err(|_| bad())?);
        } else {
            out.push(byte);
        }
    }
    Ok(out)
}

/// The query parameters of a data request. What is `None` is for the namespace to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Answers needed for a read.
    pub r: Option<usize>,
    /// Acknowledgements needed for a write.
    pub w: Option<usize>,
    /// What each counted acknowledgement must have reached.
    pub durability: Option<Durability>,
    /// May fallbacks be counted?
    pub sloppy: bool,
    /// How long the request may take.
    pub deadline: Duration,
    /// `return=value`: answer a write with the values.
    pub return_value: bool,
    /// `sibling=<etag>`: only this one.
    pub sibling: Option<String>,
}

/// Which parameters a request may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// GET and HEAD.
    Read,
    /// PUT and DELETE.
    Write,
}

impl Query {
    /// Reads the query of a request in a cluster of `n` replicas.
    ///
    /// # Errors
    /// 400 for an unknown, repeated or malformed parameter or one out of range, by name.
    pub fn parse(uri: &Uri, operation: Operation, n: usize, deadline: Duration) -> Result<Self, Problem> {
        let mut query = Self {
            r: None,
            w: None,
            durability: None,
            sloppy: true,
            deadline,
            return_value: false,
            sibling: None,
        };
        let mut seen: Vec<&str> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if seen.contains(&name) {
                return Err(Problem::bad_request(format!("parameter '{name}' is given more than once")));
            }
            let value = String::from_utf8(percent_decode(value, name)?)
                .map_err(|_| Problem::bad_request(format!("parameter '{name}' is not UTF-8")))?;
            let expects = |what: &str| {
                Problem::bad_request(format!("parameter '{name}' is '{value}'; it must be {what}"))
            };
            match (name, operation) {
                ("r", _) => {
                    query.r = Some(parse_count(&value, n).ok_or_else(|| expects(&counts(n)))?);
                }
                ("w", _) => {
                    query.w = Some(parse_count(&value, n).ok_or_else(|| expects(&counts(n)))?);
                }
                ("durability", _) => {
                    query.durability = Some(value.parse().map_err(|()| expects("memory, disk or bucket"))?);
                }
                ("sloppy", _) => {
                    query.sloppy = value.parse().map_err(|_| expects("true or false"))?;
                }
                ("deadline", _) => {
                    let parsed = parse_duration(&value).filter(|d| !d.is_zero() && *d <= MAX_DEADLINE);
                    query.deadline =
                        parsed.ok_or_else(|| expects("a duration such as 300ms or 2s, at most 60s"))?;
                }
                ("return", Operation::Write) => {
                    query.return_value =
                        (value == "value").then_some(true).ok_or_else(|| expects("value"))?;
                }
                ("sibling", Operation::Read) => {
                    let tag = value.trim_matches('"');
                    let fits = !tag.is_empty() && tag.len() <= 64;
                    query.sibling =
                        Some(fits.then(|| format!("\"{tag}\"")).ok_or_else(|| expects("an entity tag"))?);
                }
                _ => {
                    let known = match operation {
                        Operation::Read => "r, w, durability, sloppy, deadline, sibling",
                        Operation::Write => "r, w, durability, sloppy, deadline, return",
                    };
                    let name: String = name.chars().take(64).collect();
                    let text = format!("parameter '{name}' is not known here; there are {known}");
                    return Err(Problem::bad_request(text));
                }
            }
            seen.push(name);
        }
        Ok(query)
    }
}

fn counts(n: usize) -> String {
    format!("1 to {n} (the replicas), quorum or all")
}

fn parse_count(text: &str, n: usize) -> Option<usize> {
    match text {
        "quorum" => Some(n / 2 + 1),
        "all" => Some(n),
        _ => {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|count| digits && (1..=n).contains(count))
        }
    }
}

/// A whole number of `ms` or `s`.
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, scale) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s')?, 1000),
    };
    let digits = !number.is_empty() && number.len() <= 9 && number.bytes().all(|b| b.is_ascii_digit());
    let millis: u64 = number.parse().ok().filter(|_| digits)?;
    Some(Duration::from_millis(millis * scale))
}

/// Exactly one `Host`, as HTTP/1.1 asks for.
///
/// # Errors
/// 400.
pub fn check_host(version: Version, headers: &HeaderMap) -> Result<(), Problem> {
    let hosts = headers.get_all(header::HOST).iter().count();
    let fits = match version {
        Version::HTTP_11 => hosts == 1,
        _ => hosts <= 1,
    };
    if fits {
        Ok(())
    } else {
        Err(Problem::bad_request(format!("the request has {hosts} Host headers, not one")))
    }
}

/// The clock a client sent; empty without a header.
///
/// # Errors
/// 400, saying what is wrong with it.
pub fn parse_clock(
    headers: &HeaderMap,
    secret: &ClockKey,
    namespace: &Namespace,
    key: &Key,
) -> Result<Option<Clock>, Problem> {
    let mut text = String::new();
    for value in headers.get_all("vector-clock") {
        let value = value
            .to_str()
            .map_err(|_| Problem::bad_request("Vector-Clock holds bytes that are not visible ASCII"))?;
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(value);
    }
    if text.is_empty() {
        return if headers.contains_key("vector-clock") {
            Err(Problem::bad_request("Vector-Clock is empty; leave it out, or send back what an answer gave"))
        } else {
            Ok(None)
        };
    }
    secret.verify(namespace, key, &text).map(Some).map_err(|e| Problem::bad_request(e.to_string()))
}

/// `If-Match` or `If-None-Match`.
///
/// # Errors
/// 400 for a malformed one, or for both at once.
pub fn parse_precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let if_match = parse_tags(headers, &header::IF_MATCH)?;
    let if_none_match = parse_tags(headers, &header::IF_NONE_MATCH)?;
    match (if_match, if_none_match) {
        (None, None) => Ok(Precondition::None),
        (Some(tags), None) => Ok(Precondition::IfMatch(tags)),
        (None, Some(tags)) => Ok(Precondition::IfNoneMatch(tags)),
        (Some(_), Some(_)) => Err(Problem::bad_request("If-Match and If-None-Match exclude each other")),
    }
}

fn parse_tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Problem> {
    let bad = |what: &str| Problem::bad_request(format!("{name} {what}"));
    let mut tags = Vec::new();
    let mut any = false;
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_| bad("holds bytes that are not visible ASCII"))?;
        for tag in text.split(',').map(|tag| tag.trim_matches([' ', '\t'])).filter(|tag| !tag.is_empty()) {
            if tag == "*" {
                any = true;
                continue;
            }
            let strong = tag.strip_prefix("W/").unwrap_or(tag);
            if strong.len() < 2 || strong.len() > 66 || !strong.starts_with('"') || !strong.ends_with('"') {
                return Err(bad("must be * or entity tags in double quotes"));
            }
            tags.push(strong.to_owned());
        }
    }
    match (any, tags.len()) {
        (true, 0) => Ok(Some(Tags::Any)),
        (true, _) => Err(bad("mixes * with entity tags")),
        (false, 0) if headers.contains_key(name) => Err(bad("is empty")),
        (false, 0) => Ok(None),
        (false, n) if n > MAX_TAGS => Err(bad(&format!("has {n} entity tags; the limit is {MAX_TAGS}"))),
        (false, _) => Ok(Some(Tags::List(tags))),
    }
}

/// What a writer says of a value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Described {
    /// `Content-Type`; empty if none.
    pub content_type: Bytes,
    /// `Cartwheel-Meta-*`: names without the prefix.
    pub meta: Vec<(Bytes, Bytes)>,
    /// `Idempotency-Key`.
    pub idempotency_key: Option<Bytes>,
}

/// Reads what a writer says of a value.
///
/// # Errors
/// 400 or 431, naming the header and the limit.
pub fn parse_described(headers: &HeaderMap) -> Result<Described, Problem> {
    let mut described = Described::default();
    if let Some(value) = single(headers, &header::CONTENT_TYPE)? {
        if value.len() > MAX_CONTENT_TYPE {
            let text = format!("Content-Type has {} bytes; the limit is {MAX_CONTENT_TYPE}", value.len());
            return Err(Problem::headers_too_large(text));
        }
        described.content_type = Bytes::copy_from_slice(value);
    }
    if let Some(value) = single(headers, &HeaderName::from_static("idempotency-key"))? {
        if value.is_empty() || value.len() > MAX_IDEMPOTENCY_KEY {
            let text =
                format!("Idempotency-Key has {} bytes; it must have 1 to {MAX_IDEMPOTENCY_KEY}", value.len());
            return Err(Problem::bad_request(text));
        }
        described.idempotency_key = Some(Bytes::copy_from_slice(value));
    }
    let mut total = 0;
    for (name, value) in headers {
        if let Some(short) = name.as_str().strip_prefix(META_PREFIX) {
            total += short.len() + value.len();
            let pair = (Bytes::copy_from_slice(short.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
            described.meta.push(pair);
        }
    }
    if total > MAX_META_BYTES || described.meta.len() > MAX_META_PAIRS {
        return Err(Problem::headers_too_large(format!(
            "Cartwheel-Meta-* headers: {} with {total} bytes; the limits are {MAX_META_PAIRS} and {MAX_META_BYTES}",
            described.meta.len()
        )));
    }
    Ok(described)
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|v| v.as_bytes());
    if values.next().is_some() {
        return Err(Problem::bad_request(format!("{name} is given more than once")));
    }
    Ok(first)
}

/// Does the client ask for siblings as JSON rather than multipart? Only `Accept` decides.
#[must_use]
pub fn wants_json(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',').any(|range| {
                let range = range.split(';').next().unwrap_or_default().trim();
                range.eq_ignore_ascii_case("application/json")
            })
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Result<(String, Vec<u8>), u16> {
        parse_path(&text.parse().unwrap())
            .map(|(ns, key)| (ns.to_string(), key.as_bytes().to_vec()))
            .map_err(|p| p.status.as_u16())
    }

    fn query(text: &str) -> Result<Query, Problem> {
        let uri = format!("/v1/kv/a/b?{text}").parse().unwrap();
        Query::parse(&uri, Operation::Write, 3, Duration::from_secs(5))
    }

    #[test]
    fn keys_are_decoded_once_and_strictly() {
        assert_eq!(path("/v1/kv/carts/alice"), Ok(("carts".into(), b"alice".to_vec())));
        assert_eq!(path("/v1/kv/carts/a%2Fb"), path("/v1/kv/carts/a/b"));
        assert_eq!(path("/v1/kv/carts/%25zz"), Ok(("carts".into(), b"%zz".to_vec())));
        assert_eq!(path("/v1/kv/carts/%00%ff"), Ok(("carts".into(), vec![0, 255])));
        for bad in ["%zz", "%", "%4", "a%2"] {
            assert_eq!(path(&format!("/v1/kv/carts/{bad}")), Err(400), "{bad}");
        }
        assert_eq!(path("/v1/kv/carts/"), Err(400));
        assert_eq!(path("/v1/kv/carts"), Err(400));
        assert_eq!(path("/v1/kv/Carts/a"), Err(400));
        assert_eq!(path(&format!("/v1/kv/carts/{}", "k".repeat(1024))).map(|_| ()), Ok(()));
        assert_eq!(path(&format!("/v1/kv/carts/{}", "k".repeat(1025))), Err(414));
        assert_eq!(path(&format!("/v1/kv/carts/{}", "%6b".repeat(1025))), Err(414));
    }

    #[test]
    fn queries_are_checked_by_name() {
        let q = query("r=1&w=all&durability=bucket&sloppy=false&deadline=300ms&return=value").unwrap();
        assert_eq!((q.r, q.w, q.durability), (Some(1), Some(3), Some(Durability::Bucket)));
        assert!(!q.sloppy);
        assert_eq!((q.deadline, q.return_value), (Duration::from_millis(300), true));
        assert_eq!(query("").unwrap().w, None);
        for bad in [
            "r=0",
            "r=4",
            "w=two",
            "w=",
            "w=+1",
            "r",
            "durability=tape",
            "sloppy=maybe",
            "deadline=0s",
            "deadline=61s",
            "deadline=5",
            "deadline=-1s",
            "deadline=99999999999s",
            "x=1",
            "w=1&w=1",
            "return=all",
            "sibling=x",
            "w=%zz",
            "w=%ff",
        ] {
            let problem = query(bad).unwrap_err();
            assert_eq!(problem.status.as_u16(), 400, "{bad}");
            let name = bad.split('=').next().unwrap();
            assert!(problem.detail.contains(name), "{bad}: {}", problem.detail);
        }
    }

    #[test]
    fn preconditions_are_parsed_strictly() {
        let parse = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
            parse_precondition(&headers)
        };
        assert_eq!(parse("if-match", "*"), Ok(Precondition::IfMatch(Tags::Any)));
        let list = Tags::List(vec!["\"a\"".into(), "\"b\"".into()]);
        assert_eq!(parse("if-none-match", "\"a\", W/\"b\""), Ok(Precondition::IfNoneMatch(list)));
        for bad in ["a", "\"", "", "*, \"a\"", "\"a", &format!("\"{}\"", "x".repeat(70))] {
            assert!(parse("if-match", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_host_and_no_more() {
        let mut headers = HeaderMap::new();
        assert!(check_host(Version::HTTP_11, &headers).is_err());
        assert!(check_host(Version::HTTP_2, &headers).is_ok());
        headers.append(header::HOST, HeaderValue::from_static("a"));
        assert!(check_host(Version::HTTP_11, &headers).is_ok());
        headers.append(header::HOST, HeaderValue::from_static("b"));
        assert!(check_host(Version::HTTP_11, &headers).is_err());
    }

    #[test]
    fn meta_headers_are_kept_and_bounded() {
        let mut headers = HeaderMap::new();
        headers.insert("cartwheel-meta-colour", HeaderValue::from_static("red"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let described = parse_described(&headers).unwrap();
        assert_eq!(described.meta, [(Bytes::from("colour"), Bytes::from("red"))]);
        assert_eq!(described.content_type, "text/plain");
        headers.insert("cartwheel-meta-big", HeaderValue::from_str(&"x".repeat(MAX_META_BYTES)).unwrap());
        assert_eq!(parse_described(&headers).unwrap_err().status.as_u16(), 431);
    }

    #[test]
    fn accept_decides_the_form() {
        let accept = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(text));
            wants_json(&headers)
        };
        assert!(accept("application/json, */*;q=0.5"));
        assert!(!accept("*/*"));
        assert!(!accept("multipart/mixed"));
        assert!(!wants_json(&HeaderMap::new()));
    }

    proptest! {
        #[test]
        fn no_query_panics(text in "[ -~]{0,80}") {
            if let Ok(uri) = format!("/v1/kv/a/b?{text}").parse::<Uri>() {
                let _ = Query::parse(&uri, Operation::Read, 3, Duration::from_secs(1));
            }
        }
    }
}
