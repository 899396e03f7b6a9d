//! `cartwheel get`: reads one key.

use std::ffi::OsString;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{ACCEPT, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{Align, Common, Exit, Failure, Format, MAX_DEADLINE, Output, Query, Reply};

/// Read one key
///
/// Prints the value as it is to standard output, and the clock to give back with the next write to standard
/// error. If the key has siblings it lists them and ends with exit status 4; --sibling reads one of them.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel get carts alice > cart.json\n  cartwheel get carts alice -o json | jq -r .clock\n\nExit status: 0 one value, 1 not found or refused, 2 bad usage, 3 no gateway answered, 4 siblings"
)]
pub struct GetArgs {
    /// The namespace
    #[arg(value_parser = super::namespace)]
    pub namespace: String,
    /// The key, 1 to 1024 bytes, taken as it is
    pub key: OsString,
    /// A clock that the answer must cover (else it is marked stale)
    #[arg(long, value_name = "CLOCK", value_parser = super::header_value)]
    pub clock: Option<HeaderValue>,
    /// Replicas that must answer: a number, quorum or all (default: the namespace's)
    #[arg(long, value_name = "R", value_parser = super::replica_count)]
    pub r: Option<String>,
    /// Give up after this time (1ms to 60s)
    #[arg(long, value_name = "DURATION",
          value_parser = crate::units::duration_between(Duration::from_millis(1), MAX_DEADLINE))]
    pub deadline: Option<Duration>,
    /// Read only the sibling with this ETag
    #[arg(long, value_name = "ETAG")]
    pub sibling: Option<String>,
    /// Answer only if the key's ETag is not this one
    #[arg(long, value_name = "ETAG", value_parser = super::header_value)]
    pub if_none_match: Option<HeaderValue>,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Runs `cartwheel get`.
///
/// # Errors
/// Exit status 1 for any refusal but 404 (which is reported here), 2 for a bad key, 3 without an answer.
pub async fn run(args: &GetArgs, output: &mut Output) -> Result<Exit, Failure> {
    let key = super::key_bytes(&args.key)?;
    let mut query = Query::default();
    query.add("r", args.r.as_deref());
    query.add("deadline", args.deadline.map(crate::units::format_duration).as_deref());
    query.add("sibling", args.sibling.as_deref());
    let path = super::key_path(&args.namespace, key) + query.as_str();
    let mut headers = HeaderMap::new();
    // JSON is wanted for siblings; a single value comes as whatever it was stored as.
    headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*;q=0.5"));
    super::add_header(&mut headers, "vector-clock", args.clock.as_ref());
    super::add_header(&mut headers, "if-none-match", args.if_none_match.as_ref());
    let reply = args.common.client().send(Method::GET, &path, headers, Bytes::new()).await?;

    let exit = match reply.status {
        StatusCode::OK | StatusCode::NOT_MODIFIED => Exit::Done,
        StatusCode::MULTIPLE_CHOICES => Exit::Conflict,
        StatusCode::NOT_FOUND => Exit::Failed,
        _ => return Err(reply.refusal()),
    };
    match args.common.output {
        Format::Json => output.json(&document(&args.namespace, key, &reply)?)?,
        Format::Text => text(&reply, output)?,
    }
    Ok(exit)
}

/// Prints an answer for people and pipes.
fn text(reply: &Reply, output: &mut Output) -> Result<(), Failure> {
    match reply.status {
        StatusCode::OK => output.raw(&reply.body)?,
        StatusCode::MULTIPLE_CHOICES => {
            let siblings = siblings(reply)?;
            let rows: Vec<Vec<String>> = siblings.iter().map(sibling_row).collect();
            let header = [
                ("DOT", Align::Left),
                ("ETAG", Align::Left),
                ("MODIFIED", Align::Left),
                ("TYPE", Align::Left),
                ("VALUE", Align::Left),
            ];
            output.raw(super::table(&header, &rows).as_bytes())?;
            output.note(&format!(
                "{} siblings: read one with --sibling ETAG, or settle them with put --clock and the clock below",
                siblings.len()
            ));
        }
        StatusCode::NOT_FOUND if deleted(reply) => output.note("not found: deleted"),
        StatusCode::NOT_FOUND => output.note("not found"),
        _ => output.note("not modified"),
    }
    remarks(reply, output);
    Ok(())
}

/// Writes what an answer's headers say about the read to standard error.
fn remarks(reply: &Reply, output: &mut Output) {
    if let Some(clock) = reply.header("vector-clock") {
        output.note(&format!("clock: {clock}"));
    }
    if let Some(how) = reply.header("cartwheel-degraded") {
        output.note(&format!("degraded: {how}"));
    }
    if reply.header("stale") == Some("?1") {
        output.note("stale: the answer does not cover the clock that was given");
    }
}

fn deleted(reply: &Reply) -> bool {
    reply.header("cartwheel-deleted") == Some("?1")
}

/// The siblings of a 300.
fn siblings(reply: &Reply) -> Result<Vec<Value>, Failure> {
    match reply.json()? {
        Value::Array(siblings) => Ok(siblings),
        _ => Err(Failure::failed("the answer with siblings is not a JSON array")),
    }
}

/// One line of the table of siblings.
fn sibling_row(sibling: &Value) -> Vec<String> {
    /// Characters of a value that are shown.
    const PREVIEW: usize = 40;
    let field = |name: &str| sibling.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let value = if sibling.get("deleted").and_then(Value::as_bool) == Some(true) {
        "(deleted)".to_owned()
    } else if let Some(text) = sibling.get("value").and_then(Value::as_str) {
        let short: String = text.chars().take(PREVIEW).collect();
        if short.len() < text.len() { short + "…" } else { short }
    } else {
        "(binary)".to_owned()
    };
    vec![field("dot"), field("etag"), field("last_modified"), field("content_type"), value]
}

/// An answer as one JSON document.
fn document(namespace: &str, key: &[u8], reply: &Reply) -> Result<Value, Failure> {
    let mut document = json!({
        "namespace": namespace,
        "status": reply.status.as_u16(),
        "found": reply.status != StatusCode::NOT_FOUND,
        "deleted": deleted(reply),
    });
    super::put_bytes(&mut document, "key", key);
    add_context(&mut document, reply);
    match reply.status {
        StatusCode::OK => {
            super::put_bytes(&mut document, "value", &reply.body);
            document["siblings"] = json!([]);
        }
        StatusCode::MULTIPLE_CHOICES => document["siblings"] = Value::Array(siblings(reply)?),
        _ => document["siblings"] = json!([]),
    }
    Ok(document)
}

/// Adds what the headers say: clock, dot, quorum, ETag, metadata and so on, each only if it is there.
pub(super) fn add_context(document: &mut Value, reply: &Reply) {
    for (field, header) in [
        ("clock", "vector-clock"),
        ("dot", "dot"),
        ("etag", "etag"),
        ("last_modified", "last-modified"),
        ("degraded", "cartwheel-degraded"),
        ("resolved", "cartwheel-resolved"),
    ] {
        if let Some(value) = reply.header(header) {
            document[field] = Value::from(value);
        }
    }
    if let Some(quorum) = reply.header("quorum") {
        document["quorum"] = dictionary(quorum);
    }
    if reply.header("stale") == Some("?1") {
        document["stale"] = Value::from(true);
    }
    if reply.status != StatusCode::OK {
        return;
    }
    if let Some(content_type) = reply.header("content-type") {
        document["content_type"] = Value::from(content_type);
    }
    let meta: Map<String, Value> = reply
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("cartwheel-meta-")?;
            Some((name.to_owned(), Value::from(String::from_utf8_lossy(value.as_bytes()).as_ref())))
        })
        .collect();
    if !meta.is_empty() {
        document["meta"] = Value::Object(meta);
    }
}

/// A flat dictionary of RFC 9651 as a JSON object; the text itself if it is anything richer.
fn dictionary(text: &str) -> Value {
    let mut object = Map::new();
    for member in text.split(',') {
        let Some((name, value)) = member.trim().split_once('=') else { return Value::from(text) };
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/*".contains(c);
        if name.is_empty() || value.is_empty() || !value.chars().all(plain) {
            return Value::from(text);
        }
        let value = value.parse::<i64>().map_or_else(|_| Value::from(value), Value::from);
        object.insert(name.to_owned(), value);
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_become_objects() {
        assert_eq!(
            dictionary("op=read, n=3, durability=disk"),
            json!({"op": "read", "n": 3, "durability": "disk"})
        );
        for rich in ["a", "a=(1 2)", "a=\"x\"", "a=1;p=2", ""] {
            assert_eq!(dictionary(rich), json!(rich));
        }
    }

    #[test]
    fn siblings_show_what_they_are() {
        let long = "x".repeat(50);
        let row = sibling_row(&json!({"dot": "node-a.1=3", "etag": "\"e\"", "value": long}));
        assert_eq!(row[0], "node-a.1=3");
        assert_eq!(row[4], "x".repeat(40) + "…");
        assert_eq!(sibling_row(&json!({"deleted": true}))[4], "(deleted)");
        assert_eq!(sibling_row(&json!({"value_base64": "/w=="}))[4], "(binary)");
    }
}
