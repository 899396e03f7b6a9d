//! Errors as clients see them: `application/problem+json` (RFC 9457).

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use cartwheel_core::quorum::{Applied, Tally};
use cartwheel_core::record::MAX_SIBLING_BYTES;

use crate::observe::Reason;

/// How a quorum was missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missed {
    /// Answers needed.
    pub wanted: usize,
    /// Answers that counted.
    pub got: usize,
    /// Whose they were.
    #[serde(skip)]
    pub tally: Tally,
    /// What each node that was asked did.
    pub nodes: Vec<NodeOutcome>,
}

/// What one node did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeOutcome {
    /// Its id.
    pub id: String,
    /// In a few words.
    pub outcome: String,
}

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// The last part of the problem's type.
    pub kind: &'static str,
    /// What kind of problem it is.
    pub title: &'static str,
    /// What is wrong this time, with the field and the limit.
    pub detail: String,
    /// How the quorum was missed, where it was.
    pub quorum: Option<Box<Missed>>,
    /// Of a write: whether it was carried out.
    pub applied: Option<Applied>,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
    /// The key's clock, signed, where the answer should carry it.
    pub clock: Option<String>,
    /// The methods that the path takes, of a 405.
    pub allow: Option<&'static str>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    quorum: Option<&'a Missed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<&'static str>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            title,
            detail: detail.into(),
            quorum: None,
            applied: None,
            retry_after: None,
            clock: None,
            allow: None,
        }
    }

    /// 400: the request makes no sense.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "Bad request", detail)
    }

    /// 404: there is nothing at this path.
    pub fn no_such_path() -> Self {
        let detail = "there is nothing here; data is at /v1/kv/{namespace}/{key}";
        Self::new(StatusCode::NOT_FOUND, "no-such-path", "No such path", detail)
    }

    /// 404: the key was never seen, or is deleted.
    pub fn not_found(deleted: bool) -> Self {
        let detail = if deleted { "the key is deleted" } else { "the key was never written" };
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    /// 404: none of the siblings has the entity tag asked for.
    pub fn no_such_sibling() -> Self {
        let detail = "no sibling of this key has this entity tag";
        Self::new(StatusCode::NOT_FOUND, "no-such-sibling", "No such sibling", detail)
    }

    /// 405: only the methods in `allow` are taken here.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let detail = format!("this path takes {allow}");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self { allow: Some(allow), ..Self::new(status, "method-not-allowed", "Method not allowed", detail) }
    }

    /// 408: the body came too slowly.
    pub fn slow_body() -> Self {
        let detail = "the request body did not arrive in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "slow-body", "Request timeout", detail)
    }

    /// 409: one more sibling would be too many.
    pub fn too_many_siblings(limit: u32) -> Self {
        let detail = format!(
            "the key has as many siblings as it may (max_siblings = {limit}, or {MAX_SIBLING_BYTES} bytes of \
             values); read it, resolve them, and write with the clock of the read"
        );
        Self::new(StatusCode::CONFLICT, "too-many-siblings", "Too many siblings", detail)
    }

    /// 412.
    pub fn precondition_failed() -> Self {
        let detail = "the key's current versions do not satisfy If-Match or If-None-Match";
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", "Precondition failed", detail)
    }

    /// 409: one more namespace with settings would be too many.
    pub fn too_many_namespaces(limit: usize) -> Self {
        let detail = format!("{limit} namespaces have settings, as many as may");
        Self::new(StatusCode::CONFLICT, "too-many-namespaces", "Too many namespaces", detail)
    }

    /// 428: the namespace refuses writes that don't say what they have seen.
    pub fn blind_write() -> Self {
        let detail = "the namespace takes no write without a Vector-Clock (on_blind_write = reject); read the key and \
                      give back the clock, or write a new key with If-None-Match: *";
        Self::new(StatusCode::PRECONDITION_REQUIRED, "blind-write", "Precondition required", detail)
    }

    /// 413: the value is too large.
    pub fn too_large(limit: usize) -> Self {
        let detail = format!("the value is larger than {limit} bytes (--max-value)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "value-too-large", "Value too large", detail)
    }

    /// 414: the key is too long.
    pub fn key_too_long(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::URI_TOO_LONG, "key-too-long", "Key too long", detail)
    }

    /// 431: headers are too large.
    pub fn headers_too_large(detail: impl Into<String>) -> Self {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Self::new(status, "headers-too-large", "Headers too large", detail)
    }

    /// 503: too much is going on.
    pub fn overloaded(what: &str) -> Self {
        let detail = format!("{what}; try again");
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Overloaded", detail);
        Self { retry_after: Some(1), ..problem }
    }

    /// 503: a write that is to reach the bucket, which takes nothing.
    pub fn bucket_fails(failing: usize, homes: usize) -> Self {
        let detail =
            format!("{failing} of {homes} homes can't put anything into the bucket; try a lower durability");
        let title = "The bucket takes nothing";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "bucket-unavailable", title, detail);
        Self { retry_after: Some(5), ..problem }
    }

    /// 503: the bucket, which holds the settings of namespaces, does not do its part.
    pub fn settings_unavailable(detail: impl Into<String>) -> Self {
        let title = "The settings can't be reached";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "settings-unavailable", title, detail);
        Self { retry_after: Some(5), ..problem }
    }

    /// 404: no member of the ring has that name.
    pub fn no_such_member(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "no-such-member", "No such member", detail)
    }

    /// 409: the ring as it is now stands in the way of a change.
    pub fn ring_conflict(kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, kind, title, detail)
    }

    /// 503: the bucket, which holds the ring documents, does not do its part.
    pub fn ring_unavailable(detail: impl Into<String>) -> Self {
        let title = "The ring documents can't be reached";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ring-unavailable", title, detail);
        Self { retry_after: Some(5), ..problem }
    }

    /// 503: the cluster can't serve yet.
    pub fn not_ready(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "Not ready", detail);
        Self { retry_after: Some(1), ..problem }
    }

    /// 503 or, if it was the deadline that ended it, 504: too few replicas answered.
    pub fn quorum_missed(missed: Missed, late: bool) -> Self {
        let detail = format!("{} of {} replicas needed answered", missed.got, missed.wanted);
        let problem = if late {
            let title = "Deadline passed";
            Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline-passed", title, format!("{detail} in time"))
        } else {
            let title = "Quorum not met";
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "quorum-not-met", title, detail)
        };
        Self { quorum: Some(Box::new(missed)), retry_after: (!late).then_some(1), ..problem }
    }

    /// The same problem of a write, with whether it was carried out.
    #[must_use]
    pub fn applied(self, applied: Applied) -> Self {
        Self { applied: Some(applied), ..self }
    }

    /// The same problem with more detail.
    #[must_use]
    pub fn and(self, more: impl AsRef<str>) -> Self {
        Self { detail: format!("{}; {}", self.detail, more.as_ref()), ..self }
    }

    /// The same problem with the key's clock.
    #[must_use]
    pub fn with_clock(self, clock: String) -> Self {
        Self { clock: Some(clock), ..self }
    }

    /// The answer.
    #[must_use]
    pub fn into_response(self) -> Response<Body> {
        let document = Document {
            r#type: format!("/problems/{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            quorum: self.quorum.as_deref(),
            applied: self.applied.map(|applied| match applied {
                Applied::No => "no",
                Applied::Unknown => "unknown",
            }),
        };
        let mut body = serde_json::to_vec(&document).unwrap_or_default();
        body.push(b'\n');
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        response.extensions_mut().insert(Reason(self.kind));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(clock) = self.clock.and_then(|clock| HeaderValue::from_str(&clock).ok()) {
            headers.insert("vector-clock", clock);
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
