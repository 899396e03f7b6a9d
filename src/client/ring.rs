//! `cartwheel ring`: who owns how much of the ring.

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::node::Pending;
use super::status::{cell, read};
use super::{Align, Common, Exit, Failure, Format, Output};

/// Show how the partitions are spread over the members
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  cartwheel ring\n  cartwheel ring --owners | grep node-a")]
pub struct RingArgs {
    /// Also list the preference list of every partition
    #[arg(long)]
    pub owners: bool,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// `GET /v1/cluster/ring`.
#[derive(Debug, Deserialize)]
struct Ring {
    version: u64,
    partitions: u64,
    replicas: u64,
    #[serde(default)]
    hash_seed: Value,
    #[serde(default)]
    efficiency_permille: Option<u64>,
    #[serde(default)]
    pending_change: Option<Pending>,
    members: Vec<Member>,
    #[serde(default)]
    owners: Vec<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Member {
    id: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    weight: Value,
    #[serde(default)]
    state: String,
    #[serde(default)]
    partitions: u64,
    #[serde(default)]
    share: f64,
    #[serde(default)]
    fair_share: f64,
    #[serde(default)]
    tokens: Option<u64>,
    #[serde(default)]
    keys: Option<u64>,
    #[serde(default)]
    key_share: Option<f64>,
    #[serde(default)]
    load_share: Option<f64>,
    #[serde(default)]
    next_partitions: Option<u64>,
}

/// Runs `cartwheel ring`.
///
/// # Errors
/// Exit status 1 for a refusal or an unknown answer, 3 without an answer.
pub async fn run(args: &RingArgs, output: &mut Output) -> Result<Exit, Failure> {
    let reply = args.common.client().get("/v1/cluster/ring").await?.success()?;
    let document = reply.json()?;
    match args.common.output {
        Format::Json => output.json(&document)?,
        Format::Text => output.raw(text(&read(document)?, args.owners).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn text(ring: &Ring, owners: bool) -> String {
    let percent = |share: f64| format!("{:.2}%", share * 100.0);
    let rows: Vec<Vec<String>> = ring
        .members
        .iter()
        .map(|member| {
            let off = if member.fair_share > 0.0 {
                format!("{:+.1}%", (member.share / member.fair_share - 1.0) * 100.0)
            } else {
                "-".to_owned()
            };
            vec![
                member.id.clone(),
                member.zone.clone(),
                cell(&member.weight),
                member.state.clone(),
                member.tokens.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string()),
                member.partitions.to_string(),
                percent(member.share),
                percent(member.fair_share),
                off,
                member.keys.map_or_else(|| "-".to_owned(), |keys| keys.to_string()),
                member.key_share.map_or_else(|| "-".to_owned(), percent),
                member.load_share.map_or_else(|| "-".to_owned(), percent),
                member.next_partitions.map_or_else(|| "-".to_owned(), |next| next.to_string()),
            ]
        })
        .collect();
    let header = [
        ("ID", Align::Left),
        ("ZONE", Align::Left),
        ("WEIGHT", Align::Right),
        ("STATE", Align::Left),
        ("TOKENS", Align::Right),
        ("PARTITIONS", Align::Right),
        ("SHARE", Align::Right),
        ("FAIR", Align::Right),
        ("OFF", Align::Right),
        ("KEYS", Align::Right),
        ("KEY SHARE", Align::Right),
        ("LOAD SHARE", Align::Right),
        ("NEXT", Align::Right),
    ];
    let mut text = format!(
        "ring version {}, {} partitions, {} replicas, hash seed {}{}\n\n{}",
        ring.version,
        ring.partitions,
        ring.replicas,
        super::printable(&cell(&ring.hash_seed)),
        ring.efficiency_permille.map_or_else(String::new, |permille| format!(
            ", evenness {}.{}%",
            permille / 10,
            permille % 10
        )),
        super::table(&header, &rows)
    );
    if let Some(change) = &ring.pending_change {
        text.push_str(&format!("\npending change: {}\n", change.line()));
    }
    if owners {
        let rows: Vec<Vec<String>> = ring
            .owners
            .iter()
            .enumerate()
            .map(|(partition, homes)| vec![partition.to_string(), homes.join(" ")])
            .collect();
        text.push('\n');
        text.push_str(&super::table(&[("PARTITION", Align::Right), ("HOMES", Align::Left)], &rows));
    }
    text
}
