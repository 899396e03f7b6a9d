//! The client side of the binary: commands that talk to a gateway over HTTP, as any other client would.

mod delete;
mod exit;
mod get;
mod health;
mod hints;
pub mod http;
mod locate;
mod namespace;
mod node;
mod output;
mod plan;
mod put;
mod repair;
mod ring;
mod status;

#[cfg(test)]
pub(crate) mod contract_tests;

use std::time::Duration;

use ::http::HeaderMap;
use ::http::header::{HeaderName, HeaderValue};
use clap::Args;

pub use delete::DeleteArgs;
pub use exit::{Exit, Failure};
pub use get::GetArgs;
pub use health::HealthArgs;
pub use hints::HintsArgs;
pub use http::{Client, Gateway, Reply};
pub use locate::LocateArgs;
pub use namespace::NamespaceArgs;
pub use node::NodeArgs;
pub use output::{Align, Format, Output, base64, printable, put_bytes, table};
pub use plan::PlanArgs;
pub use put::PutArgs;
pub use repair::RepairArgs;
pub use ring::RingArgs;
pub use status::StatusArgs;

pub use delete::run as delete;
pub use get::run as get;
pub use health::run as health;
pub use hints::run as hints;
pub use locate::run as locate;
pub use namespace::run as namespaces;
pub use node::run as node;
pub use plan::run as plan;
pub use put::run as put;
pub use repair::run as repair;
pub use ring::run as ring;
pub use status::run as status;

/// The longest time that a command waits for one answer.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(600);

/// The longest deadline that a request can carry.
pub const MAX_DEADLINE: Duration = Duration::from_secs(60);

/// The longest clock taken from the command line, in bytes. Gateways refuse long headers anyway.
const MAX_CLOCK: usize = 32 * 1024;

/// Options that every client command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The gateway to ask
    #[arg(long, value_name = "URL", env = "CARTWHEEL_GATEWAY", default_value = "http://127.0.0.1:8080")]
    pub gateway: Gateway,
    /// How to print the result
    #[arg(short, long, value_name = "FORMAT", env = "CARTWHEEL_OUTPUT", default_value = "text", value_enum)]
    pub output: Format,
    /// How long to wait for an answer (1ms to 10m)
    #[arg(long, value_name = "DURATION", env = "CARTWHEEL_TIMEOUT", default_value = "10s",
          value_parser = crate::units::duration_between(Duration::from_millis(1), MAX_TIMEOUT))]
    pub timeout: Duration,
}

impl Common {
    /// A client for the chosen gateway.
    pub fn client(&self) -> Client {
        Client::new(self.gateway.clone(), self.timeout)
    }
}

/// Options of a write (`put`, `delete`).
#[derive(Debug, Clone, Args)]
pub struct WriteArgs {
    /// The clock of the read that this write replaces; without it, what it did not see is kept as a sibling
    #[arg(long, value_name = "CLOCK", value_parser = header_value)]
    pub clock: Option<HeaderValue>,
    /// Replicas that must answer the read a write may need: a number, quorum or all
    #[arg(long, value_name = "R", value_parser = replica_count)]
    pub r: Option<String>,
    /// Replicas that must acknowledge: a number, quorum or all (default: the namespace's)
    #[arg(long, value_name = "W", value_parser = replica_count)]
    pub w: Option<String>,
    /// What each acknowledgement must have reached (default: the namespace's)
    #[arg(long, value_name = "LEVEL", value_parser = ["memory", "disk", "bucket"])]
    pub durability: Option<String>,
    /// Give up after this time (1ms to 60s)
    #[arg(long, value_name = "DURATION",
          value_parser = crate::units::duration_between(Duration::from_millis(1), MAX_DEADLINE))]
    pub deadline: Option<Duration>,
    /// Write only if the key's ETag is this one
    #[arg(long, value_name = "ETAG", value_parser = header_value)]
    pub if_match: Option<HeaderValue>,
    /// Write only if the key's ETag is not this one; '*' means: only if the key does not exist
    #[arg(long, value_name = "ETAG", value_parser = header_value)]
    pub if_none_match: Option<HeaderValue>,
    /// A name for this write: sent again with the same name it stays one write
    #[arg(long, value_name = "NAME", value_parser = header_value)]
    pub idempotency_key: Option<HeaderValue>,
}

impl WriteArgs {
    /// The query parameters, in the order of the contract.
    fn query(&self) -> Query {
        let mut query = Query::default();
        query.add("r", self.r.as_deref());
        query.add("w", self.w.as_deref());
        query.add("durability", self.durability.as_deref());
        query.add("deadline", self.deadline.map(crate::units::format_duration).as_deref());
        query
    }

    /// The request headers.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        add_header(&mut headers, "vector-clock", self.clock.as_ref());
        add_header(&mut headers, "if-match", self.if_match.as_ref());
        add_header(&mut headers, "if-none-match", self.if_none_match.as_ref());
        add_header(&mut headers, "idempotency-key", self.idempotency_key.as_ref());
        headers
    }
}

/// Adds a header if there is a value for it.
fn add_header(headers: &mut HeaderMap, name: &'static str, value: Option<&HeaderValue>) {
    if let Some(value) = value {
        headers.insert(HeaderName::from_static(name), value.clone());
    }
}

/// A query string under construction; empty until the first parameter.
#[derive(Debug, Default)]
pub struct Query(String);

impl Query {
    /// Adds `name=value`, percent-encoded, if there is a value.
    pub fn add(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.0.push(if self.0.is_empty() { '?' } else { '&' });
            self.0.push_str(name);
            self.0.push('=');
            http::percent_encode(value.as_bytes(), &mut self.0);
        }
    }

    /// The string to append to a path: empty, or `?name=value&…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The path of one key: `/v1/kv/{namespace}/{key}`, the key percent-encoded.
pub fn key_path(namespace: &str, key: &[u8]) -> String {
    let mut path = String::from("/v1/kv/");
    http::percent_encode(namespace.as_bytes(), &mut path);
    path.push('/');
    http::percent_encode(key, &mut path);
    path
}

/// Reads a namespace's name: `[a-z0-9][a-z0-9._-]{0,62}`.
///
/// # Errors
/// A text that names the rule.
pub fn namespace(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let first = text.bytes().next().is_some_and(plain);
    if first && text.len() <= 63 && text.bytes().all(|b| plain(b) || b"._-".contains(&b)) {
        return Ok(text.to_owned());
    }
    Err("a namespace is 1 to 63 of a-z, 0-9, '.', '_' and '-', and starts with a letter or a digit"
        .to_owned())
}

/// The longest key, in bytes.
pub const MAX_KEY: usize = 1024;

/// The bytes of a key given on the command line.
///
/// # Errors
/// Exit status 2 for an empty key or one above [`MAX_KEY`].
pub fn key_bytes(key: &std::ffi::OsStr) -> Result<&[u8], Failure> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = key.as_bytes();
    match bytes.len() {
        0 => Err(Failure::usage("KEY is empty: a key has 1 to 1024 bytes")),
        1..=MAX_KEY => Ok(bytes),
        length => Err(Failure::usage(format!("KEY has {length} bytes: a key has 1 to {MAX_KEY}"))),
    }
}

/// Reads a number of replicas: a number from 1, `quorum` or `all`. The gateway checks it against N.
///
/// # Errors
/// A text that names what is allowed.
pub fn replica_count(text: &str) -> Result<String, String> {
    let number = text.parse::<u8>().is_ok_and(|n| n >= 1);
    if number || text == "quorum" || text == "all" {
        return Ok(text.to_owned());
    }
    Err("a number from 1 to 255, 'quorum' or 'all'".to_owned())
}

/// Reads the value of a request header.
///
/// # Errors
/// A text that names the limit or the character that a header can't carry.
pub fn header_value(text: &str) -> Result<HeaderValue, String> {
    if text.len() > MAX_CLOCK {
        return Err(format!("{} bytes are too many: at most {MAX_CLOCK}", text.len()));
    }
    HeaderValue::from_str(text.trim())
        .map_err(|_| "a header can't carry line breaks, control characters or non-ASCII text".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_of_any_bytes_become_one_path_segment() {
        assert_eq!(key_path("carts", b"a/b"), "/v1/kv/carts/a%2Fb");
        assert_eq!(key_path("carts", b"%25zz"), "/v1/kv/carts/%2525zz");
        assert_eq!(key_path("carts", b"\x00\xff ?#"), "/v1/kv/carts/%00%FF%20%3F%23");
        assert_eq!(key_path("carts", b"A-z_0.9~"), "/v1/kv/carts/A-z_0.9~");
        // Dot segments are what proxies and URL libraries resolve away.
        assert_eq!(key_path("carts", b".."), "/v1/kv/carts/%2E%2E");
        assert_eq!(key_path("carts", b"."), "/v1/kv/carts/%2E");
    }

    #[test]
    fn namespaces_follow_the_rule() {
        for good in ["a", "0", "carts", "a.b_c-d", &"x".repeat(63)] {
            assert_eq!(namespace(good).unwrap(), good);
        }
        for bad in ["", ".a", "-a", "A", "a/b", "a b", &"x".repeat(64), "é"] {
            assert!(namespace(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn replica_counts() {
        for good in ["1", "3", "quorum", "all"] {
            assert_eq!(replica_count(good).unwrap(), good);
        }
        for bad in ["0", "-1", "256", "most", ""] {
            assert!(replica_count(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        let mut query = Query::default();
        assert_eq!(query.as_str(), "");
        query.add("r", Some("2"));
        query.add("w", None);
        query.add("sibling", Some("\"a b\""));
        assert_eq!(query.as_str(), "?r=2&sibling=%22a%20b%22");
    }
}
