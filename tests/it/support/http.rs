//! A client as tests want it: one line per request, and answers that read themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use cartwheel::client;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{in_time, until};

/// A client of one gateway.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    address: String,
    http: client::Client,
}

impl Client {
    pub(crate) fn new(address: &str) -> Self {
        let gateway = format!("http://{address}").parse().unwrap();
        Self { address: address.to_owned(), http: client::Client::new(gateway, Duration::from_secs(60)) }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A request for `namespace/key`, percent-encoded already.
    pub(crate) fn key(&self, method: Method, key: &str) -> Asking {
        self.path(method, &format!("/v1/kv/{key}"))
    }

    pub(crate) fn path(&self, method: Method, path: &str) -> Asking {
        Asking {
            client: self.clone(),
            method,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Asking {
        self.key(Method::GET, key)
    }

    pub(crate) fn head(&self, key: &str) -> Asking {
        self.key(Method::HEAD, key)
    }

    pub(crate) fn put(&self, key: &str, value: impl Into<Bytes>) -> Asking {
        Asking { body: value.into(), ..self.key(Method::PUT, key) }
    }

    pub(crate) fn delete(&self, key: &str) -> Asking {
        self.key(Method::DELETE, key)
    }

    /// Waits until the gateway has found the ring document.
    pub(crate) async fn is_ready(&self) {
        until("the gateway is ready", || async {
            (self.path(Method::GET, "/readyz").send().await.status == 200).then_some(())
        })
        .await;
    }

    /// Sends bytes as they are and reads until the gateway closes or the answer is complete.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> RawAnswer {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        // A gateway that has seen enough may close while we still send.
        let _ = stream.write_all(bytes).await;
        RawAnswer::read(&mut stream).await
    }
}

/// A request under construction.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    client: Client,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Asking {
    /// Adds to the query string.
    pub(crate) fn query(mut self, pair: &str) -> Self {
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        self.path.push_str(pair);
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        self
    }

    pub(crate) fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// The clock of an answer, given back.
    pub(crate) fn seen(self, answer: &Answer) -> Self {
        self.header("vector-clock", answer.clock())
    }

    pub(crate) async fn send(self) -> Answer {
        let what = format!("{} {}", self.method, self.path);
        let sent = self.client.http.send(self.method, &self.path, self.headers, self.body).await;
        let reply = sent.unwrap_or_else(|failure| panic!("{what}: {}", failure.message));
        Answer { what, status: reply.status.as_u16(), headers: reply.headers, body: reply.body }
    }

    /// Sends it and expects this status.
    pub(crate) async fn gives(self, status: u16) -> Answer {
        let answer = self.send().await;
        assert_eq!(answer.status, status, "{answer:?}");
        answer
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    what: String,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// A header that may be missing.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// A header that must be there, once.
    pub(crate) fn must(&self, name: &str) -> &str {
        assert_eq!(self.headers.get_all(name).iter().count(), 1, "one {name} of {}: {self:?}", self.what);
        self.header(name).unwrap()
    }

    pub(crate) fn clock(&self) -> &str {
        self.must("vector-clock")
    }

    pub(crate) fn dot(&self) -> &str {
        self.must("dot")
    }

    pub(crate) fn etag(&self) -> &str {
        self.must("etag")
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// One entry of the `Quorum` header.
    pub(crate) fn quorum(&self, name: &str) -> &str {
        let mut entries = self.must("quorum").split(", ").filter_map(|entry| entry.split_once('='));
        entries.find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{name} of the quorum: {self:?}")).1
    }

    /// Its values, sorted: of one version, or of siblings in either form. A deletion is `None`.
    pub(crate) fn values(&self) -> Vec<Option<String>> {
        let mut values: Vec<_> = match self.status {
            200 => vec![Some(self.text().to_owned())],
            300 => self.siblings().into_iter().map(|sibling| sibling.value).collect(),
            404 => Vec::new(),
            _ => panic!("no values: {self:?}"),
        };
        values.sort();
        values
    }

    /// The siblings of a 300.
    pub(crate) fn siblings(&self) -> Vec<Part> {
        assert_eq!(self.status, 300, "{self:?}");
        match self.must("content-type") {
            "application/json" => self.json().as_array().unwrap().iter().map(Part::of_json).collect(),
            multipart => {
                let boundary = multipart.strip_prefix("multipart/mixed; boundary=").unwrap();
                parse_multipart(&self.body, boundary)
            }
        }
    }

    /// A problem document with this status; returns it.
    pub(crate) fn problem(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.must("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        for field in ["type", "title", "detail"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {problem}");
        }
        problem
    }

    /// A refusal of a request: the problem's words hold all of `words`, and a write was certainly not applied.
    pub(crate) fn refused(&self, status: u16, words: &[&str]) {
        let problem = self.problem(status);
        let detail = problem["detail"].as_str().unwrap();
        for word in words {
            assert!(detail.contains(word), "{}: '{word}' is not in: {detail}", self.what);
        }
        if self.what.starts_with("PUT") || self.what.starts_with("DELETE") {
            assert_eq!(problem["applied"], "no", "{}: {problem}", self.what);
        }
    }
}

/// One sibling.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// By lower-case name; for JSON the fields' names with `-`.
    pub(crate) headers: BTreeMap<String, String>,
    /// `None` for a deletion.
    pub(crate) value: Option<String>,
}

impl Part {
    fn of_json(value: &Value) -> Self {
        let object = value.as_object().unwrap();
        let mut headers: BTreeMap<String, String> = object
            .iter()
            .filter_map(|(name, value)| Some((name.replace('_', "-"), value.as_str()?.to_owned())))
            .collect();
        for (name, value) in object.get("meta").and_then(Value::as_object).into_iter().flatten() {
            headers.insert(format!("cartwheel-meta-{name}"), value.as_str().unwrap().to_owned());
        }
        let deleted = object["deleted"].as_bool().unwrap();
        if deleted {
            headers.insert("cartwheel-deleted".to_owned(), "?1".to_owned());
        }
        let text = headers.remove("value").or_else(|| {
            let encoded = headers.remove("value-base64")?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        });
        assert_eq!(text.is_none(), deleted, "{value}");
        Self { headers, value: text }
    }
}

/// Reads `multipart/mixed` by the letter of RFC 2046.
fn parse_multipart(body: &[u8], boundary: &str) -> Vec<Part> {
    let text = String::from_utf8_lossy(body).into_owned();
    let delimiter = format!("\r\n--{boundary}");
    let text = format!("\r\n{text}");
    let mut pieces = text.split(delimiter.as_str());
    assert_eq!(pieces.next(), Some(""), "nothing stands before the first part");
    let pieces: Vec<&str> = pieces.collect();
    let (last, parts) = pieces.split_last().unwrap();
    assert_eq!(*last, "--\r\n", "the last boundary closes");
    let part = |piece: &&str| {
        let (head, value) = piece.strip_prefix("\r\n").unwrap().split_once("\r\n\r\n").unwrap();
        let headers: BTreeMap<String, String> = head
            .split("\r\n")
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let deleted = headers.get("cartwheel-deleted").is_some_and(|v| v == "?1");
        assert!(!deleted || value.is_empty());
        Part { headers, value: (!deleted).then(|| value.to_owned()) }
    };
    parts.iter().map(part).collect()
}

/// What a gateway said to bytes of any kind.
#[derive(Debug)]
pub(crate) struct RawAnswer {
    /// 0 if there was no status line.
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl RawAnswer {
    /// Reads one answer, or what there is until the other side closes.
    pub(crate) async fn read(stream: &mut TcpStream) -> Self {
        in_time("a raw answer", async {
            let mut got = Vec::new();
            let mut buffer = vec![0; 4096];
            loop {
                if let Some(answer) = Self::parse(&got, false) {
                    return answer;
                }
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => got.extend_from_slice(&buffer[..n]),
                }
            }
            let nothing = Self { status: 0, head: String::new(), body: Vec::new() };
            Self::parse(&got, true).unwrap_or(nothing)
        })
        .await
    }

    fn parse(got: &[u8], ended: bool) -> Option<Self> {
        let end = got.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&got[..end]).to_ascii_lowercase();
        let body = got[end + 4..].to_vec();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let bodiless = [204, 304].contains(&status);
        if !ended && !bodiless && length.is_none_or(|length| body.len() < length) {
            return None;
        }
        Some(Self { status, head, body })
    }

    /// The problem document's detail.
    pub(crate) fn detail(&self) -> String {
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        problem["detail"].as_str().unwrap().to_owned()
    }
}
