//! `cartwheel put`: writes one key.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use http::Method;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde_json::json;

use super::{Common, Exit, Failure, Format, Output, Reply, WriteArgs};

/// The largest value that is read before it is sent. The gateway's own limit (`--max-value`) is usually lower.
const MAX_VALUE: u64 = 64 << 20;

/// Write one key
///
/// The value is --value, the content of --file, or else standard input. Prints the new clock to standard
/// output. A write without --clock keeps whatever it did not see, as a sibling.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel put carts alice --value '[\"milk\"]' --content-type application/json\n  clock=$(cartwheel get carts alice -o json | jq -r .clock)\n  cartwheel put carts alice --file cart.json --clock \"$clock\"\n\nExit status: 0 written, 1 refused or failed, 2 bad usage, 3 no gateway answered"
)]
pub struct PutArgs {
    /// The namespace
    #[arg(value_parser = super::namespace)]
    pub namespace: String,
    /// The key, 1 to 1024 bytes, taken as it is
    pub key: OsString,
    /// The value
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    pub value: Option<OsString>,
    /// The file that holds the value; - is standard input
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// The value's media type, returned with it
    #[arg(long, value_name = "TYPE", value_parser = super::header_value)]
    pub content_type: Option<HeaderValue>,
    /// Metadata to keep with the value (repeatable)
    #[arg(long = "meta", value_name = "NAME=VALUE", value_parser = meta)]
    pub meta: Vec<(HeaderName, HeaderValue)>,
    /// Options of a write
    #[command(flatten)]
    pub write: WriteArgs,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Reads `NAME=VALUE` as a `Cartwheel-Meta-NAME` header.
fn meta(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once('=').ok_or("metadata is NAME=VALUE")?;
    if name.is_empty() {
        return Err("metadata is NAME=VALUE, and NAME is not empty".to_owned());
    }
    let header = format!("cartwheel-meta-{name}");
    let header = HeaderName::from_bytes(header.as_bytes())
        .map_err(|_| format!("'{name}' can't be part of a header's name"))?;
    Ok((header, super::header_value(value)?))
}

/// Runs `cartwheel put`.
///
/// # Errors
/// Exit status 1 for a refusal or an unreadable file, 2 for a bad key or too large a value, 3 without an
/// answer.
pub async fn run(args: &PutArgs, output: &mut Output) -> Result<Exit, Failure> {
    let key = super::key_bytes(&args.key)?;
    let value = value(args, output)?;
    let path = super::key_path(&args.namespace, key) + args.write.query().as_str();
    let mut headers = args.write.headers();
    super::add_header(&mut headers, CONTENT_TYPE.as_str(), args.content_type.as_ref());
    for (name, value) in &args.meta {
        headers.insert(name.clone(), value.clone());
    }
    let reply = args.common.client().send(Method::PUT, &path, headers, value).await?.success()?;
    written(&args.namespace, key, &reply, args.common.output, output)?;
    Ok(Exit::Done)
}

/// Prints the answer to a write: the clock to standard output, the rest to standard error; or all as JSON.
pub(super) fn written(
    namespace: &str,
    key: &[u8],
    reply: &Reply,
    format: Format,
    output: &mut Output,
) -> Result<(), Failure> {
    if format == Format::Json {
        let mut document = json!({"namespace": namespace, "status": reply.status.as_u16()});
        super::put_bytes(&mut document, "key", key);
        super::get::add_context(&mut document, reply);
        return output.json(&document);
    }
    if let Some(clock) = reply.header("vector-clock") {
        output.line(clock)?;
    }
    for (label, header) in
        [("dot", "dot"), ("etag", "etag"), ("quorum", "quorum"), ("degraded", "cartwheel-degraded")]
    {
        if let Some(value) = reply.header(header) {
            output.note(&format!("{label}: {value}"));
        }
    }
    Ok(())
}

/// The bytes to write.
fn value(args: &PutArgs, output: &mut Output) -> Result<Bytes, Failure> {
    use std::os::unix::ffi::OsStrExt;
    if let Some(value) = &args.value {
        return Ok(Bytes::copy_from_slice(value.as_bytes()));
    }
    match &args.file {
        Some(path) if path != Path::new("-") => {
            let failed = |error| Failure::failed(format!("can't read {} (--file): {error}", path.display()));
            let file = std::fs::File::open(path).map_err(failed)?;
            bounded(file, "--file", failed)
        }
        _ => {
            let stdin = std::io::stdin().lock();
            if stdin.is_terminal() {
                output.note("reading the value from the terminal; Ctrl-D ends it");
            }
            bounded(stdin, "standard input", |error| {
                Failure::failed(format!("can't read standard input: {error}"))
            })
        }
    }
}

/// Reads to the end, refusing more than [`MAX_VALUE`] bytes.
fn bounded(
    source: impl Read,
    name: &str,
    failed: impl FnOnce(std::io::Error) -> Failure,
) -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    source.take(MAX_VALUE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_VALUE {
        let limit = crate::units::format_size(MAX_VALUE);
        return Err(Failure::usage(format!("the value from {name} is larger than {limit}")));
    }
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn metadata_is_a_header() {
        let (name, value) = meta("Owner=a=b").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("cartwheel-meta-owner", "a=b"));
        for bad in ["", "owner", "=x", "a b=c", "a=line\nbreak"] {
            assert!(meta(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_have_a_limit() {
        let failed = |_| Failure::failed("");
        assert_eq!(bounded(&b"abc"[..], "--file", failed).unwrap(), Bytes::from_static(b"abc"));
        let error = bounded(std::io::repeat(0), "--file", failed).unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert_eq!(error.message, "the value from --file is larger than 64MiB");
    }
}
