//! What every answer says of itself must make sense: how its quorum was met, what stood in, and why it was refused. Pure.

use http::StatusCode;
use serde_json::Value;

use crate::client::Reply;

/// Replicas of a key, and how many of them a request waits for that says nothing else.
const REPLICAS: u64 = 3;
const REQUIRED: u64 = 2;

/// What a request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A value.
    Read,
    /// A write with this durability.
    Write(&'static str),
}

/// What is wrong with an answer, if anything is.
pub(crate) fn doubt(asked: Asked, reply: &Reply) -> Option<String> {
    let doubt = if reply.status.is_server_error() { failure(asked, reply) } else { success(asked, reply) };
    doubt.map(|why| format!("{asked:?} was answered with {} and {why}", reply.status))
}

fn success(asked: Asked, reply: &Reply) -> Option<String> {
    let read = matches!(reply.status, StatusCode::OK | StatusCode::MULTIPLE_CHOICES | StatusCode::NOT_FOUND);
    let answered = match asked {
        Asked::Read => read,
        Asked::Write(_) => reply.status.is_success(),
    };
    if !answered {
        // Refused for a reason of the client's.
        return None;
    }
    let Some(text) = reply.header("quorum") else { return Some("no Quorum".to_owned()) };
    let field = |name: &str| text.split(", ").find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str| field(name).and_then(|value| value.parse::<u64>().ok());
    let degraded = reply.header("cartwheel-degraded");
    let strange = || Some(format!("Quorum: {text}, Cartwheel-Degraded: {degraded:?}"));
    let figures = (number("n"), number("required"), number("answered"), number("home"), number("fallback"));
    let (Some(n), Some(required), Some(count), Some(home), Some(fallback)) = figures else {
        return strange();
    };
    let op = if asked == Asked::Read { "read" } else { "write" };
    let adds_up = field("op") == Some(op) && n == REPLICAS && required == REQUIRED;
    if !adds_up || count != home + fallback || home > n {
        return strange();
    }
    if count < required && degraded.is_none() {
        return strange();
    }
    if degraded.is_some_and(|degraded| !degraded.starts_with("bucket; as-of=\"")) {
        return strange();
    }
    let reached = field("durability");
    let kept = match asked {
        Asked::Read => true,
        Asked::Write("bucket") => reached == Some("bucket"),
        Asked::Write(_) => matches!(reached, Some("disk" | "bucket")),
    };
    if kept { None } else { strange() }
}

fn failure(asked: Asked, reply: &Reply) -> Option<String> {
    if !matches!(reply.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) {
        return Some("neither 503 nor 504".to_owned());
    }
    if reply.header("content-type") != Some("application/problem+json") {
        return Some("no problem document".to_owned());
    }
    let problem: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let applied = problem.get("applied").and_then(Value::as_str);
    let says = asked == Asked::Read || matches!(applied, Some("no" | "unknown"));
    let whole = problem.get("status") == Some(&reply.status.as_u16().into()) && says;
    if whole { None } else { Some(format!("this problem: {problem}")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    fn reply(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Reply {
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::from_iter(headers),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    fn met(asked: Asked, status: u16, quorum: &'static str) -> Option<String> {
        doubt(asked, &reply(status, &[("quorum", quorum)], ""))
    }

    const WRITE: Asked = Asked::Write("disk");

    #[test]
    fn a_quorum_that_adds_up_is_believed() {
        let read = "op=read, n=3, required=2, answered=2, home=2, fallback=0";
        assert_eq!([200, 300, 404].map(|status| met(Asked::Read, status, read)), [None, None, None]);
        let write = "op=write, n=3, required=2, answered=3, home=1, fallback=2, durability=disk";
        assert_eq!(met(WRITE, 204, write), None);
        assert_eq!(doubt(WRITE, &reply(409, &[], "")), None, "a refusal that is the client's doing");
    }

    #[test]
    fn a_quorum_that_does_not_add_up_is_not() {
        for wrong in [
            "op=write, n=3, required=2, answered=2, home=2, fallback=0",
            "op=read, n=4, required=2, answered=2, home=2, fallback=0",
            "op=read, n=3, required=1, answered=2, home=2, fallback=0",
            "op=read, n=3, required=2, answered=3, home=2, fallback=0",
            "op=read, n=3, required=2, answered=4, home=4, fallback=0",
            "op=read, n=3, required=2, answered=1, home=1, fallback=0",
            "op=read, n=3, required=2, answered=2, home=2",
        ] {
            assert!(met(Asked::Read, 200, wrong).is_some(), "{wrong}");
        }
        assert!(doubt(Asked::Read, &reply(200, &[], "")).is_some());
        let memory = "op=write, n=3, required=2, answered=2, home=2, fallback=0, durability=memory";
        assert!(met(WRITE, 204, memory).is_some());
        let disk = "op=write, n=3, required=2, answered=2, home=2, fallback=0, durability=disk";
        assert!(met(Asked::Write("bucket"), 204, disk).is_some());
    }

    #[test]
    fn too_few_answers_need_the_bucket() {
        let quorum = ("quorum", "op=read, n=3, required=2, answered=0, home=0, fallback=0");
        let degraded = ("cartwheel-degraded", "bucket; as-of=\"2026-11-22T10:00:00Z\"");
        assert_eq!(doubt(Asked::Read, &reply(404, &[quorum, degraded], "")), None);
        assert!(doubt(Asked::Read, &reply(404, &[quorum], "")).is_some());
        let odd = ("cartwheel-degraded", "disk");
        assert!(doubt(Asked::Read, &reply(404, &[quorum, odd], "")).is_some());
    }

    #[test]
    fn failures_say_what_became_of_it() {
        let problem = [("content-type", "application/problem+json")];
        assert_eq!(doubt(WRITE, &reply(503, &problem, r#"{"status":503,"applied":"unknown"}"#)), None);
        assert_eq!(doubt(Asked::Read, &reply(504, &problem, r#"{"status":504}"#)), None);
        assert!(doubt(WRITE, &reply(503, &problem, r#"{"status":503}"#)).is_some(), "applied or not?");
        assert!(doubt(Asked::Read, &reply(503, &problem, r#"{"status":504}"#)).is_some());
        assert!(doubt(Asked::Read, &reply(500, &problem, r#"{"status":500}"#)).is_some());
        assert!(doubt(Asked::Read, &reply(503, &[], r#"{"status":503}"#)).is_some());
    }
}
