//! A small HTTP client over hyper: one gateway, pooled connections, a time limit for every request.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;

use super::exit::Failure;

/// The largest answer that is read. A hundred siblings of 1 MiB in base64 fit with room to spare.
const MAX_ANSWER: usize = 256 << 20;

/// Idle connections kept.
const MAX_IDLE: usize = 64;

/// Where a gateway listens: `http://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    authority: String,
    host: String,
    port: u16,
}

impl Gateway {
    /// `HOST:PORT` or `HOST`, as written: the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The name or address to connect to, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port to connect to (80 if the URL names none).
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl FromStr for Gateway {
    type Err = String;

    fn from_str(text: &str) -> Result<Gateway, String> {
        let form = "a gateway's URL is http://HOST[:PORT], such as http://127.0.0.1:8080";
        let uri: Uri = text.parse().map_err(|_| form.to_owned())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err("https is not spoken here: use http:// on a trusted network, or a local proxy \
                            that adds TLS"
                    .to_owned());
            }
            _ => return Err(form.to_owned()),
        }
        let authority = uri.authority().ok_or(form)?.as_str();
        if authority.contains('@') {
            return Err("a gateway's URL can't carry a user name or password".to_owned());
        }
        if uri.path_and_query().is_some_and(|rest| rest.as_str() != "/") || text.contains('#') {
            return Err(format!("{form}: nothing may follow the port"));
        }
        let bracketed = uri.host().unwrap_or("");
        let host = bracketed.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(form.to_owned());
        }
        // Read here because `Uri::port` shows a port above 65535 as none.
        let port = match authority.get(bracketed.len()..).unwrap_or("") {
            "" => 80,
            port => port.trim_start_matches(':').parse().unwrap_or(0),
        };
        if port == 0 {
            return Err("the port must be a number from 1 to 65535".to_owned());
        }
        Ok(Gateway { authority: authority.to_owned(), host: host.to_owned(), port })
    }
}

/// Appends bytes percent-encoded: everything but letters, digits, `-`, `.`, `_` and `~`.
///
/// `/` is encoded too, so that a key is one path segment that no proxy merges; `.` and `..` alone are encoded
/// because URL libraries resolve them away.
pub fn percent_encode(bytes: &[u8], into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let dots = matches!(bytes, b"." | b"..");
    for &byte in bytes {
        if (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) && !dots {
            into.push(char::from(byte));
        } else {
            into.push('%');
            into.push(char::from(HEX[usize::from(byte >> 4)]));
            into.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// One answer, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Reply {
    /// A header's value as text; `None` if it is missing or not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// Exit status 1 if it is not JSON: this is no Cartwheel gateway.
    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::failed(format!("the answer is not the JSON of a Cartwheel gateway: {error}"))
        })
    }

    /// This answer as a failure: the problem document's words where there are some.
    pub fn refusal(&self) -> Failure {
        let problem = serde_json::from_slice::<Value>(&self.body).ok().filter(Value::is_object);
        let mut message = self.status.to_string();
        if let Some(problem) = &problem {
            let text = |name: &str| problem.get(name).and_then(Value::as_str);
            // The title usually repeats the status's own words.
            if let Some(title) = text("title").filter(|title| !message.ends_with(title)) {
                message.push_str(": ");
                message.push_str(title);
            }
            if let Some(detail) = text("detail") {
                message.push_str(": ");
                message.push_str(detail);
            }
            match text("applied") {
                Some("no") => message.push_str(" (nothing was written)"),
                Some(_) => message.push_str(" (the write may still become visible)"),
                None => {}
            }
        }
        if let Some(after) = self.header("retry-after") {
            message.push_str(&format!(" (try again after {after} s)"));
        }
        Failure { problem, ..Failure::failed(super::output::printable(&message)) }
    }

    /// This answer if its status is a success.
    ///
    /// # Errors
    /// Else [`Reply::refusal`].
    pub fn success(self) -> Result<Reply, Failure> {
        if self.status.is_success() { Ok(self) } else { Err(self.refusal()) }
    }
}

/// A client of one gateway. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
    gateway: Gateway,
    timeout: Duration,
}

impl Client {
    /// A client that waits at most `timeout` for each answer, connecting included. Connects when first used.
    pub fn new(gateway: Gateway, timeout: Duration) -> Client {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(MAX_IDLE)
            .build(connector);
        Client { pool, gateway, timeout }
    }

    /// Asks for `path`, which carries its own query string and is percent-encoded already.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get(&self, path: &str) -> Result<Reply, Failure> {
        self.send(Method::GET, path, HeaderMap::new(), Bytes::new()).await
    }

    /// Sends one request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// Exit status 3 if no gateway answered in time, 2 if the path is no path, 1 if the answer is above
    /// 256 MiB.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, Failure> {
        let uri: Uri = format!("{}{path}", self.gateway)
            .parse()
            .map_err(|error| Failure::usage(format!("'{path}' is no request path: {error}")))?;
        let write = method != Method::GET && method != Method::HEAD;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request
            .headers_mut()
            .entry(http::header::USER_AGENT)
            .or_insert(HeaderValue::from_static(concat!("cartwheel/", env!("CARGO_PKG_VERSION"))));
        match tokio::time::timeout(self.timeout, self.exchange(request, write)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::unreachable(format!(
                "no answer from {} within {} (--timeout){}",
                self.gateway,
                crate::units::format_duration(self.timeout),
                doubt(write)
            ))),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, write: bool) -> Result<Reply, Failure> {
        let response = self.pool.request(request).await.map_err(|error| {
            let cause = root_cause(&error);
            if error.is_connect() {
                Failure::unreachable(format!("can't reach {} (--gateway): {cause}", self.gateway))
            } else {
                Failure::unreachable(format!("no answer from {}: {cause}{}", self.gateway, doubt(write)))
            }
        })?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Failure::failed(format!(
                    "the answer is larger than {}",
                    crate::units::format_size(MAX_ANSWER as u64)
                ))
            } else {
                let text = format!("the answer of {} broke off: {error}", self.gateway);
                Failure::unreachable(text + doubt(write))
            }
        })?;
        Ok(Reply { status: parts.status, headers: parts.headers, body: body.to_bytes() })
    }
}

/// What has to be said when a write got no answer.
fn doubt(write: bool) -> &'static str {
    if write { "; the write may still become visible" } else { "" }
}

/// The innermost reason of an error: "Connection refused" rather than "client error (Connect)".
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn gateways_are_read() {
        let gateway: Gateway = "http://127.0.0.1:8080/".parse().unwrap();
        assert_eq!((gateway.host(), gateway.port()), ("127.0.0.1", 8080));
        assert_eq!(gateway.to_string(), "http://127.0.0.1:8080");
        let gateway: Gateway = "http://[::1]:81".parse().unwrap();
        assert_eq!((gateway.host(), gateway.port(), gateway.authority()), ("::1", 81, "[::1]:81"));
        let gateway: Gateway = "http://name".parse().unwrap();
        assert_eq!((gateway.host(), gateway.port()), ("name", 80));
    }

    #[test]
    fn other_gateways_are_refused() {
        for bad in [
            "",
            "name",
            "name:80",
            "ftp://name",
            "http://",
            "http://a@b",
            "http://a/b",
            "http://a/?x",
            "http://a#f",
            "http://a:0",
            "http://a:65536",
            "http://a b",
        ] {
            assert!(bad.parse::<Gateway>().is_err(), "{bad}");
        }
        let error = "https://127.0.0.1".parse::<Gateway>().unwrap_err();
        assert!(error.contains("https is not spoken"), "{error}");
    }

    #[test]
    fn a_problem_document_becomes_one_line() {
        let reply = |body: &str| Reply {
            status: StatusCode::SERVICE_UNAVAILABLE,
            headers: HeaderMap::from_iter([(http::header::RETRY_AFTER, HeaderValue::from_static("2"))]),
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        let full = r#"{"title":"Quorum not met","detail":"1 of 2\u001b[2J","applied":"unknown"}"#;
        let failure = reply(full).refusal();
        assert_eq!(
            failure.message,
            "503 Service Unavailable: Quorum not met: 1 of 2\\u{1b}[2J (the write may still become visible) \
             (try again after 2 s)"
        );
        assert!(failure.problem.is_some());
        assert_eq!(reply("oops").refusal().message, "503 Service Unavailable (try again after 2 s)");
    }
}
