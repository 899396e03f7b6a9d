//! `cartwheel status`: the members of the cluster and how they are.

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use cartwheel_cluster::seams::Seams;

use super::node::Pending;
use super::repair::{Repair, age};
use super::{Align, Common, Exit, Failure, Format, Output};

/// Show the cluster's members and their state
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel status\n  cartwheel status -o json | jq '.members[] | select(.reachable | not) | .id'"
)]
pub struct StatusArgs {
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// `GET /v1/cluster`, as far as the table shows it.
#[derive(Debug, Deserialize)]
struct Cluster {
    ring_version: u64,
    replicas: u64,
    partitions: u64,
    members: Vec<Member>,
    #[serde(default)]
    pending_change: Value,
    #[serde(default)]
    change: Option<Pending>,
}

#[derive(Debug, Deserialize)]
struct Member {
    id: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    weight: Value,
    #[serde(default)]
    state: String,
    #[serde(default)]
    dead: bool,
    #[serde(default)]
    reachable: bool,
    #[serde(default)]
    standing: Option<String>,
    #[serde(default)]
    hints: Vec<Kept>,
    #[serde(default)]
    incarnation: Option<String>,
    #[serde(default)]
    keys: Option<u64>,
    #[serde(default)]
    memtable_bytes: Option<u64>,
    #[serde(default)]
    segments: Option<u64>,
    #[serde(default)]
    repair: Option<Repair>,
}

/// Hints that a member keeps for another.
#[derive(Debug, Deserialize)]
struct Kept {
    #[serde(default)]
    keys: u64,
}

/// Runs `cartwheel status`.
///
/// # Errors
/// Exit status 1 for a refusal or an unknown answer, 3 without an answer.
pub async fn run(args: &StatusArgs, output: &mut Output) -> Result<Exit, Failure> {
    let reply = args.common.client().get("/v1/cluster").await?.success()?;
    let document = reply.json()?;
    match args.common.output {
        Format::Json => output.json(&document)?,
        Format::Text => {
            output.raw(text(&read(document)?, Seams::real().clock.now_ms()).as_bytes())?;
        }
    }
    Ok(Exit::Done)
}

/// Reads an answer of the cluster's API.
///
/// # Errors
/// Exit status 1 if it lacks what the contract names.
pub(super) fn read<T: serde::de::DeserializeOwned>(document: Value) -> Result<T, Failure> {
    serde_json::from_value(document)
        .map_err(|error| Failure::failed(format!("the answer is not one of a Cartwheel gateway: {error}")))
}

/// A JSON number or text as a cell.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// When the homes last compared what they hold, and what differed then.
fn repair(members: &[Member], now_ms: u64) -> String {
    let known =
        || members.iter().filter_map(|m| Some((m, m.repair.as_ref()?))).filter(|(_, r)| r.oldest_ms > 0);
    let Some((member, oldest)) = known().min_by_key(|(_, repair)| repair.oldest_ms) else {
        return "repair: no homes were compared yet\n".to_owned();
    };
    let differing: u64 = known().map(|(_, repair)| repair.differing).sum();
    format!(
        "repair: the oldest comparison of two homes was {} (by {}); {differing} keys differed in the last ones\n",
        age(now_ms, oldest.oldest_ms),
        super::printable(&member.id)
    )
}

fn text(cluster: &Cluster, now_ms: u64) -> String {
    let reachable = cluster.members.iter().filter(|member| member.reachable).count();
    let dash = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let rows: Vec<Vec<String>> = cluster
        .members
        .iter()
        .map(|member| {
            vec![
                member.id.clone(),
                member.address.clone(),
                member.zone.clone(),
                cell(&member.weight),
                if member.dead { "forgotten".to_owned() } else { member.state.clone() },
                if member.reachable { "yes" } else { "NO" }.to_owned(),
                member.standing.clone().filter(|_| member.reachable).unwrap_or_else(|| "-".to_owned()),
                dash(member.reachable.then(|| member.hints.iter().map(|kept| kept.keys).sum())),
                dash(member.keys),
                member.memtable_bytes.map_or_else(|| "-".to_owned(), crate::units::human_size),
                dash(member.segments),
                member.incarnation.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    let header = [
        ("ID", Align::Left),
        ("ADDRESS", Align::Left),
        ("ZONE", Align::Left),
        ("WEIGHT", Align::Right),
        ("STATE", Align::Left),
        ("REACHABLE", Align::Left),
        ("STANDING", Align::Left),
        ("HINTS", Align::Right),
        ("KEYS", Align::Right),
        ("MEMTABLE", Align::Right),
        ("SEGMENTS", Align::Right),
        ("INCARNATION", Align::Left),
    ];
    let mut text = format!(
        "ring version {}, {} partitions, {} replicas, {reachable} of {} storage nodes reachable\n\n{}",
        cluster.ring_version,
        cluster.partitions,
        cluster.replicas,
        cluster.members.len(),
        super::table(&header, &rows)
    );
    text.push_str(&format!("\n{}", repair(&cluster.members, now_ms)));
    if let Some(change) = &cluster.change {
        text.push_str(&format!("\npending change: {}\n", change.line()));
    } else if !cluster.pending_change.is_null() {
        text.push_str(&format!("\npending change: {}\n", super::printable(&cell(&cluster.pending_change))));
    }
    text
}
