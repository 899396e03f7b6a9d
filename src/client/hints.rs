//! `cartwheel hints`: what is kept for storage nodes that were away.

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::status::{cell, read};
use super::{Align, Common, Exit, Failure, Format, Output};

/// Show the hints kept for storage nodes that were away, by whom and where
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel hints\n  cartwheel hints -o json | jq '.homes[].home'\n\nA hint goes once its home has it in segments of its own. Hints of gateways, and of storage nodes that are gone, show in the bucket alone."
)]
pub struct HintsArgs {
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// `GET /v1/cluster/hints`, as far as the table shows it.
#[derive(Debug, Deserialize)]
struct Hints {
    homes: Vec<Home>,
    #[serde(default)]
    bucket_error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Home {
    home: String,
    #[serde(default)]
    at_nodes: Vec<AtNode>,
    #[serde(default)]
    in_bucket: Vec<InBucket>,
}

#[derive(Debug, Deserialize)]
struct AtNode {
    holder: String,
    keys: u64,
    bytes: u64,
    #[serde(default)]
    oldest_ms: u64,
}

#[derive(Debug, Deserialize)]
struct InBucket {
    holder: String,
    #[serde(default)]
    objects: Value,
    bytes: u64,
    #[serde(default)]
    oldest: String,
}

/// Runs `cartwheel hints`.
///
/// # Errors
/// Exit status 1 for a refusal or an unknown answer, 3 without an answer.
pub async fn run(args: &HintsArgs, output: &mut Output) -> Result<Exit, Failure> {
    let document = args.common.client().get("/v1/cluster/hints").await?.success()?.json()?;
    match args.common.output {
        Format::Json => output.json(&document)?,
        Format::Text => output.raw(text(&read(document)?).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn text(hints: &Hints) -> String {
    let mut rows = Vec::new();
    for home in &hints.homes {
        for kept in &home.at_nodes {
            rows.push(vec![
                home.home.clone(),
                kept.holder.clone(),
                "memory".to_owned(),
                format!("{} keys", kept.keys),
                crate::units::human_size(kept.bytes),
                format!("{} s", kept.oldest_ms / 1000),
            ]);
        }
        for kept in &home.in_bucket {
            rows.push(vec![
                home.home.clone(),
                kept.holder.clone(),
                "bucket".to_owned(),
                format!("{} objects", cell(&kept.objects)),
                crate::units::human_size(kept.bytes),
                format!("since {}", kept.oldest),
            ]);
        }
    }
    let mut text = if rows.is_empty() {
        "no hints are kept for anybody\n".to_owned()
    } else {
        let header = [
            ("FOR", Align::Left),
            ("KEPT BY", Align::Left),
            ("WHERE", Align::Left),
            ("HOW MANY", Align::Right),
            ("BYTES", Align::Right),
            ("AGE", Align::Left),
        ];
        super::table(&header, &rows)
    };
    if let Some(error) = &hints.bucket_error {
        text.push_str(&format!("\nthe bucket was not looked at: {}\n", super::printable(error)));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn hints_are_shown_where_they_are() {
        let nothing = text(&read(json!({ "homes": [] })).unwrap());
        assert_eq!(nothing, "no hints are kept for anybody\n");
        let document = json!({
            "homes": [{
                "home": "node-c",
                "at_nodes": [{ "holder": "node-e", "keys": 3, "bytes": 2048, "oldest_ms": 61_000 }],
                "in_bucket": [{ "holder": "gw-1", "objects": 2, "bytes": 10, "oldest": "2026-11-22T10:00:00Z" }],
            }],
            "bucket_error": "it is away",
        });
        let text = text(&read(document).unwrap());
        for part in ["node-c", "node-e", "3 keys", "61 s", "gw-1", "2 objects", "since 2026", "it is away"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
