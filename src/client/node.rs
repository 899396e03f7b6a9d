//! `cartwheel node`: changes the membership, at the version that was looked at, and follows the change.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use cartwheel_core::names::NodeId;

use super::plan::{
    CancelArgs, ForgetArgs, JoinArgs, MemberArgs, Planned, Wanted, WeightArgs, ZoneArgs, post, text,
};
use super::status::{cell, read};
use super::{Client, Common, Exit, Failure, Format, Output};

/// How often a pending change is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Change the members of the cluster
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel node leave node-a --wait\n  cartwheel node weight node-b 3 --at 7 --yes\n  \
                  cartwheel node forget node-c --yes -o json\n\n\
                  Each shows its plan first and applies it to the ring version that the plan was made at, or not at all."
)]
pub struct NodeArgs {
    /// What to do
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// The changes.
#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// Let a member hand over what it holds and go; keep its process running until that is done
    Leave {
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        change: MemberArgs,
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        how: How,
    },
    /// Give a member another share
    Weight {
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        change: WeightArgs,
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        how: How,
    },
    /// Say that a member is in another zone
    Zone {
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        change: ZoneArgs,
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        how: How,
    },
    /// Declare a member dead for good: nobody waits for it, others take its place
    Forget {
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        change: ForgetArgs,
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        how: How,
    },
    /// Add a member before its process starts (with --join=never)
    Join {
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        change: JoinArgs,
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        how: How,
    },
    /// Take the pending change back, as long as nothing is read from the homes to come
    Cancel {
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        change: CancelArgs,
        #[command(flatten)]
        #[allow(missing_docs, reason = "a doc comment here would become help text")]
        how: How,
    },
    /// Say what to run to put another machine in the place of a member that is gone; the ring stays as it is
    Replace(ReplaceArgs),
}

/// How a change is applied.
#[derive(Debug, Clone, Args)]
pub struct How {
    /// Only if the ring is at this version
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    pub at: Option<u64>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Wait until the change is settled, and say how far it is
    #[arg(long)]
    pub wait: bool,
}

/// Options of `cartwheel node replace`.
#[derive(Debug, Clone, Args)]
pub struct ReplaceArgs {
    /// The member
    #[arg(value_parser = NodeId::new)]
    pub id: NodeId,
    /// Though it seems to live
    #[arg(long)]
    pub force: bool,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

impl NodeArgs {
    /// Options of every client command.
    pub fn common(&self) -> &Common {
        match &self.command {
            NodeCommand::Leave { change, .. } => &change.common,
            NodeCommand::Weight { change, .. } => &change.common,
            NodeCommand::Zone { change, .. } => &change.common,
            NodeCommand::Forget { change, .. } => &change.common,
            NodeCommand::Join { change, .. } => &change.common,
            NodeCommand::Cancel { change, .. } => &change.common,
            NodeCommand::Replace(args) => &args.common,
        }
    }
}

/// Runs `cartwheel node`.
///
/// # Errors
/// Exit status 1 for a refusal, an unknown answer, or an answer "no"; 2 where nobody can be asked and --yes is missing;
/// 3 without an answer.
pub async fn run(args: &NodeArgs, output: &mut Output) -> Result<Exit, Failure> {
    match &args.command {
        NodeCommand::Leave { change, how } => apply(&Wanted::leave(change), how, output).await,
        NodeCommand::Weight { change, how } => apply(&Wanted::weight(change), how, output).await,
        NodeCommand::Zone { change, how } => apply(&Wanted::zone(change), how, output).await,
        NodeCommand::Forget { change, how } => apply(&Wanted::forget(change), how, output).await,
        NodeCommand::Join { change, how } => apply(&Wanted::join(change), how, output).await,
        NodeCommand::Cancel { change, how } => apply(&Wanted::cancel(change), how, output).await,
        NodeCommand::Replace(args) => replace(args, output).await,
    }
}

async fn apply(wanted: &Wanted<'_>, how: &How, output: &mut Output) -> Result<Exit, Failure> {
    if !how.yes && !output.can_ask() {
        return Err(Failure::usage("there is no terminal to ask on: give --yes to apply the change"));
    }
    let (client, format) = (wanted.common.client(), wanted.common.output);
    let planned: Planned = read(wanted.plan(&client).await?)?;
    if let Some(at) = how.at.filter(|at| *at != planned.ring_version) {
        return Err(Failure::failed(format!(
            "the ring is at version {}, not {at} (--at); look at the plan again",
            planned.ring_version
        )));
    }
    if format == Format::Text {
        output.raw(format!("{}\n", text(&planned)).as_bytes())?;
    }
    if !how.yes && !output.ask(&format!("Apply this to ring version {}?", planned.ring_version)) {
        return Err(Failure::failed("nothing was changed"));
    }
    let mut body = wanted.body();
    body["ring_version"] = planned.ring_version.into();
    let mut applied = post(&client, "/v1/cluster/apply", &body).await?.success()?.json()?;
    let Planned { ring_version, pending, .. } = read(applied.clone())?;
    if format == Format::Text {
        let what = if pending { "the change is pending" } else { "done" };
        output.line(&format!("ring version {ring_version}: {what}"))?;
    }
    if how.wait && pending {
        let settled = follow(&client, ring_version, output).await?;
        (applied["settled"], applied["ring_version"]) = (true.into(), settled.into());
        if format == Format::Text {
            output.line(&format!("ring version {settled}: the change is settled"))?;
        }
    }
    if format == Format::Json {
        output.json(&applied)?;
    }
    Ok(Exit::Done)
}

/// `GET /v1/cluster`, as far as a pending change is concerned.
#[derive(Debug, Deserialize)]
struct Cluster {
    ring_version: u64,
    #[serde(default)]
    change: Option<Pending>,
}

/// A pending change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Pending {
    #[serde(default)]
    pub(super) what: String,
    #[serde(default)]
    pub(super) step: String,
    #[serde(default)]
    pub(super) waits_for: Option<Vec<String>>,
}

impl Pending {
    /// The change in one line.
    pub(super) fn line(&self) -> String {
        let waits = match self.waits_for.as_deref() {
            None => "who is ready is not known".to_owned(),
            Some([]) => "all are ready".to_owned(),
            Some(ids) => format!("waits for {}", ids.join(", ")),
        };
        super::printable(&format!("{} (step {}; {waits})", self.what, self.step))
    }
}

/// Says how far the change is that version `from` began, until none is pending; gives the version then.
async fn follow(client: &Client, from: u64, output: &mut Output) -> Result<u64, Failure> {
    let mut said = String::new();
    loop {
        let document = client.get("/v1/cluster").await?.success()?.json()?;
        let cluster: Cluster = read(document)?;
        // A gateway may not know the new version yet.
        if cluster.ring_version >= from {
            let Some(pending) = cluster.change else {
                output.progress_ends();
                return Ok(cluster.ring_version);
            };
            let line = format!("ring version {}: {}", cluster.ring_version, pending.line());
            if line != said {
                output.progress(&line);
                said = line;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn replace(args: &ReplaceArgs, output: &mut Output) -> Result<Exit, Failure> {
    let cluster = args.common.client().get("/v1/cluster").await?.success()?.json()?;
    let members = cluster["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(member) = members.iter().find(|member| member["id"] == args.id.as_str()) else {
        return Err(Failure::failed(format!("{} is not a member of the ring", args.id)));
    };
    if member["dead"] == true {
        return Err(Failure::failed(format!(
            "{} was declared dead (forget): cancel that, or let another member join",
            args.id
        )));
    }
    let alive = member["reachable"] == true || member["liveness"] == "alive";
    if alive && !args.force {
        return Err(Failure::failed(format!(
            "{} seems to be alive at {}: stop its process first (or --force, if you know better)",
            args.id,
            cell(&member["address"])
        )));
    }
    let command = format!(
        "cartwheel storage-node --id {} --bucket s3://NAME/PREFIX --listen HOST:PORT --data-dir DIR",
        args.id
    );
    match args.common.output {
        Format::Json => output.json(&json!({
            "id": args.id, "alive": alive, "address": member["address"], "zone": member["zone"],
            "weight": member["weight"], "run": command,
        }))?,
        Format::Text => output.raw(instructions(&args.id, member, &command).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn instructions(id: &NodeId, member: &Value, command: &str) -> String {
    let shown = |field: &str| super::printable(&cell(&member[field]));
    format!(
        "Run on the new machine:\n\n  {command}\n\n\
         It takes over the name {id}, and with it zone {} and weight {} (the ring's, not the command line's). It puts its \
         address in place of {} by itself, and counts once it has from the bucket and from the other homes what it held. \
         Nothing moves. Is the new machine in another zone, say so afterwards: cartwheel node zone {id} ZONE.\n",
        shown("zone"),
        shown("weight"),
        shown("address"),
    )
}
