//! `cartwheel namespace`: what is set for namespaces.

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use ::http::{Method, StatusCode};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::status::cell;
use super::{Align, Common, Exit, Failure, Format, Output, Reply};

/// How many times a change is made again because somebody else changed the settings meanwhile.
const MAX_TRIES: usize = 8;
/// Namespaces asked for at once.
const PAGE: usize = 1000;

/// Show and change what is set for namespaces
#[derive(Debug, Clone, Args)]
pub struct NamespaceArgs {
    /// What to do
    #[command(subcommand)]
    pub command: NamespaceCommand,
}

impl NamespaceArgs {
    /// Options of every client command.
    pub fn common(&self) -> &Common {
        match &self.command {
            NamespaceCommand::Get(args) => &args.common,
            NamespaceCommand::Set(args) => &args.common,
            NamespaceCommand::List(args) => &args.common,
        }
    }
}

/// The commands about namespaces.
#[derive(Debug, Clone, Subcommand)]
pub enum NamespaceCommand {
    /// Show the settings of a namespace
    Get(GetArgs),
    /// Change settings of a namespace; those not named stay as they are
    Set(Box<SetArgs>),
    /// List the namespaces that have settings
    List(ListArgs),
}

/// Show the settings of a namespace
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  cartwheel namespace get carts -o json")]
pub struct GetArgs {
    /// The namespace
    #[arg(value_parser = super::namespace)]
    pub namespace: String,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Change settings of a namespace; those not named stay as they are
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel namespace set carts --ttl 7d --r 2\n  cartwheel namespace set carts --ttl none\n\nA time to live holds for values written from now on. Other gateways learn of a change within 30 s."
)]
pub struct SetArgs {
    /// The namespace
    #[arg(value_parser = super::namespace)]
    pub namespace: String,
    /// Replicas that must answer a read
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u8).range(1..))]
    pub r: Option<u8>,
    /// Replicas that must acknowledge a write
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u8).range(1..))]
    pub w: Option<u8>,
    /// What each acknowledgement must have reached
    #[arg(long, value_name = "LEVEL", value_parser = ["memory", "disk", "bucket"])]
    pub durability: Option<String>,
    /// Most siblings of a key (1 to 1000)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_siblings: Option<u16>,
    /// What becomes of a write without a clock: kept beside what it did not see, or refused
    #[arg(long, value_name = "WHAT", value_parser = ["sibling", "reject"])]
    pub on_blind_write: Option<String>,
    /// How long values live (1s to 3650d); none: until they are replaced
    #[arg(long, value_name = "DURATION", value_parser = time_to_live)]
    pub ttl: Option<Value>,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// List the namespaces that have settings
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  cartwheel namespace list")]
pub struct ListArgs {
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Reads a time to live: a duration such as `7d`, or `none`. The gateway checks the limits.
fn time_to_live(text: &str) -> Result<Value, String> {
    if text == "none" {
        return Ok(Value::Null);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    match text.split_at(end) {
        ("", _) => {}
        (_, "ms" | "s" | "m" | "h" | "d") => return Ok(text.into()),
        _ => {}
    }
    Err("a whole number and one of ms, s, m, h, d, such as 30m or 7d; or none".to_owned())
}

impl SetArgs {
    /// The fields to change.
    fn changes(&self) -> Map<String, Value> {
        let named = [
            ("r", self.r.map(Value::from)),
            ("w", self.w.map(Value::from)),
            ("durability", self.durability.clone().map(Value::from)),
            ("max_siblings", self.max_siblings.map(Value::from)),
            ("on_blind_write", self.on_blind_write.clone().map(Value::from)),
            ("ttl", self.ttl.clone()),
        ];
        named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

fn path(namespace: &str) -> String {
    let mut path = String::from("/v1/namespaces/");
    super::http::percent_encode(namespace.as_bytes(), &mut path);
    path
}

/// Runs `cartwheel namespace`.
///
/// # Errors
/// Exit status 1 for a refusal or an unknown answer, 2 for a change that names no setting, 3 without an answer.
pub async fn run(args: &NamespaceArgs, output: &mut Output) -> Result<Exit, Failure> {
    match &args.command {
        NamespaceCommand::Get(args) => {
            let reply = args.common.client().get(&path(&args.namespace)).await?.success()?;
            show(&args.namespace, &reply, args.common.output, output)
        }
        NamespaceCommand::Set(args) => set(args, output).await,
        NamespaceCommand::List(args) => list(args, output).await,
    }
}

async fn set(args: &SetArgs, output: &mut Output) -> Result<Exit, Failure> {
    let changes = args.changes();
    if changes.is_empty() {
        return Err(Failure::usage(
            "nothing to set: name at least one of --r, --w, --durability, --max-siblings, --on-blind-write, --ttl",
        ));
    }
    let (client, path) = (args.common.client(), path(&args.namespace));
    let mut tries = 1;
    loop {
        let current = client.get(&path).await?.success()?;
        let Value::Object(mut settings) = current.json()? else {
            return Err(Failure::failed("the answer is not the settings of a namespace"));
        };
        settings.extend(changes.clone());
        let mut headers = HeaderMap::new();
        if let Some(tag) = current.headers.get("etag") {
            headers.insert(HeaderName::from_static("if-match"), tag.clone());
        }
        let json = HeaderValue::from_static("application/json");
        headers.insert(HeaderName::from_static("content-type"), json);
        let body = Value::Object(settings).to_string().into();
        let reply = client.send(Method::PUT, &path, headers, body).await?;
        if reply.status == StatusCode::PRECONDITION_FAILED && tries < MAX_TRIES {
            tries += 1;
            continue;
        }
        return show(&args.namespace, &reply.success()?, args.common.output, output);
    }
}

/// Prints the settings of one namespace.
fn show(namespace: &str, reply: &Reply, format: Format, output: &mut Output) -> Result<Exit, Failure> {
    let document = reply.json()?;
    let version = reply.header("etag").and_then(|tag| tag.trim_matches('"').parse::<u64>().ok());
    match format {
        Format::Json => {
            output.json(&json!({ "namespace": namespace, "version": version, "settings": document }))?;
        }
        Format::Text => {
            let mut rows =
                vec![vec!["version".to_owned(), version.map_or_else(|| "-".to_owned(), |v| v.to_string())]];
            let fields = document.as_object().into_iter().flatten();
            rows.extend(fields.map(|(name, value)| vec![name.clone(), cell(value)]));
            output
                .raw(super::table(&[("SETTING", Align::Left), ("VALUE", Align::Left)], &rows).as_bytes())?;
        }
    }
    Ok(Exit::Done)
}

async fn list(args: &ListArgs, output: &mut Output) -> Result<Exit, Failure> {
    let client = args.common.client();
    let mut all: Vec<Value> = Vec::new();
    loop {
        let mut path = format!("/v1/namespaces?limit={PAGE}");
        if let Some(last) = all.last().and_then(|last| last["namespace"].as_str()) {
            path.push_str("&after=");
            super::http::percent_encode(last.as_bytes(), &mut path);
        }
        let page = client.get(&path).await?.success()?.json()?;
        let Some(namespaces) = page["namespaces"].as_array() else {
            return Err(Failure::failed("the answer is not a list of namespaces"));
        };
        all.extend(namespaces.iter().cloned());
        if page["more"] != true || namespaces.is_empty() {
            break;
        }
    }
    match args.common.output {
        Format::Json => output.json(&json!({ "namespaces": all }))?,
        Format::Text => output.raw(text(&all).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn text(all: &[Value]) -> String {
    if all.is_empty() {
        return "no namespace has settings: all have the defaults\n".to_owned();
    }
    let header = [
        ("NAMESPACE", Align::Left),
        ("VERSION", Align::Right),
        ("R", Align::Right),
        ("W", Align::Right),
        ("DURABILITY", Align::Left),
        ("MAX SIBLINGS", Align::Right),
        ("BLIND WRITES", Align::Left),
        ("TTL", Align::Left),
    ];
    let row = |entry: &Value| {
        let mut row = vec![cell(&entry["namespace"]), cell(&entry["version"])];
        if let Some(error) = entry["error"].as_str() {
            row.push(format!("unreadable: {error}"));
            return row;
        }
        let fields = ["r", "w", "durability", "max_siblings", "on_blind_write", "ttl"];
        row.extend(fields.map(|field| cell(&entry["settings"][field])));
        row
    };
    super::table(&header, &all.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live_are_read() {
        assert_eq!(time_to_live("7d"), Ok("7d".into()));
        assert_eq!(time_to_live("none"), Ok(Value::Null));
        for bad in ["", "d", "7", "7w", "-7d", "1.5d", "7 d"] {
            assert!(time_to_live(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn namespaces_are_listed_with_their_settings() {
        assert!(text(&[]).contains("defaults"));
        let text = text(&[
            json!({"namespace": "carts", "version": 3, "settings": {"r": 1, "w": 3, "durability": "bucket",
                "max_siblings": 20, "on_blind_write": "reject", "ttl": null}}),
            json!({"namespace": "damaged", "version": 1, "error": "checksum"}),
        ]);
        for part in ["carts", "bucket", "20", "reject", "unreadable: checksum"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
