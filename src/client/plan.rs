//! `cartwheel plan`: what would come of a change of the membership.

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use ::http::{Method, StatusCode};
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use cartwheel_core::names::NodeId;

use super::status::read;
use super::{Align, Client, Common, Exit, Failure, Format, Output, Reply};

/// Show what would come of a change of the membership; nothing is changed
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel plan leave node-a\n  cartwheel plan join node-f 10.0.0.6:7101 --zone z3 --weight 2\n\n\
                  A slot is one partition at one of its homes. `cartwheel node` applies what was planned."
)]
pub struct PlanArgs {
    /// The change
    #[command(subcommand)]
    pub change: PlanCommand,
}

/// The changes that can be planned.
#[derive(Debug, Clone, Subcommand)]
pub enum PlanCommand {
    /// A member hands over what it holds and goes
    Leave(MemberArgs),
    /// A member gets another share
    Weight(WeightArgs),
    /// A member is in another zone
    Zone(ZoneArgs),
    /// A member is dead for good
    Forget(ForgetArgs),
    /// A member is added before its process starts
    Join(JoinArgs),
    /// The pending change is taken back
    Cancel(CancelArgs),
}

/// Options that name a member.
#[derive(Debug, Clone, Args)]
pub struct MemberArgs {
    /// The member
    #[arg(value_parser = NodeId::new)]
    pub id: NodeId,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Options of a change of weight.
#[derive(Debug, Clone, Args)]
pub struct WeightArgs {
    /// The member
    #[arg(value_parser = NodeId::new)]
    pub id: NodeId,
    /// How much of the data it takes, relative to the others (1 to 1000)
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub weight: u32,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Options of a change of zone.
#[derive(Debug, Clone, Args)]
pub struct ZoneArgs {
    /// The member
    #[arg(value_parser = NodeId::new)]
    pub id: NodeId,
    /// Its zone
    pub zone: String,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Options of forgetting a member.
#[derive(Debug, Clone, Args)]
pub struct ForgetArgs {
    /// The member
    #[arg(value_parser = NodeId::new)]
    pub id: NodeId,
    /// Though it seems to live, or though some partition is left without a home that lives or without a quorum
    #[arg(long)]
    pub force: bool,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Options of a staged join.
#[derive(Debug, Clone, Args)]
pub struct JoinArgs {
    /// The member to come
    #[arg(value_parser = NodeId::new)]
    pub id: NodeId,
    /// Where others will call it (HOST:PORT)
    pub address: String,
    /// Its zone
    #[arg(long, value_name = "ZONE", default_value = "default")]
    pub zone: String,
    /// How much of the data it takes, relative to the others (1 to 1000)
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub weight: u32,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// Options of taking the pending change back.
#[derive(Debug, Clone, Args)]
pub struct CancelArgs {
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// A change as it is sent, and whom to.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    pub(super) edit: Value,
    pub(super) force: bool,
    pub(super) common: &'a Common,
}

impl<'a> Wanted<'a> {
    fn new(edit: Value, common: &'a Common) -> Self {
        Self { edit, force: false, common }
    }

    pub(super) fn leave(args: &'a MemberArgs) -> Self {
        Self::new(json!({"leave": {"id": args.id}}), &args.common)
    }

    pub(super) fn weight(args: &'a WeightArgs) -> Self {
        Self::new(json!({"weight": {"id": args.id, "weight": args.weight}}), &args.common)
    }

    pub(super) fn zone(args: &'a ZoneArgs) -> Self {
        Self::new(json!({"zone": {"id": args.id, "zone": args.zone}}), &args.common)
    }

    pub(super) fn forget(args: &'a ForgetArgs) -> Self {
        Self { force: args.force, ..Self::new(json!({"forget": {"id": args.id}}), &args.common) }
    }

    pub(super) fn join(args: &'a JoinArgs) -> Self {
        let JoinArgs { id, address, zone, weight, common } = args;
        let edit = json!({"join": {"id": id, "address": address, "zone": zone, "weight": weight}});
        Self::new(edit, common)
    }

    pub(super) fn cancel(args: &'a CancelArgs) -> Self {
        Self::new(json!({"cancel": {}}), &args.common)
    }

    /// The body of a plan.
    pub(super) fn body(&self) -> Value {
        json!({"edits": [self.edit], "force": self.force})
    }

    /// Asks the gateway for the plan.
    pub(super) async fn plan(&self, client: &Client) -> Result<Value, Failure> {
        post(client, "/v1/cluster/plan", &self.body()).await?.success()?.json()
    }
}

impl PlanArgs {
    /// Options of every client command.
    pub fn common(&self) -> &Common {
        self.wanted().common
    }

    fn wanted(&self) -> Wanted<'_> {
        match &self.change {
            PlanCommand::Leave(args) => Wanted::leave(args),
            PlanCommand::Weight(args) => Wanted::weight(args),
            PlanCommand::Zone(args) => Wanted::zone(args),
            PlanCommand::Forget(args) => Wanted::forget(args),
            PlanCommand::Join(args) => Wanted::join(args),
            PlanCommand::Cancel(args) => Wanted::cancel(args),
        }
    }
}

/// Sends a JSON document.
pub(super) async fn post(client: &Client, path: &str, body: &Value) -> Result<Reply, Failure> {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("content-type"), HeaderValue::from_static("application/json"));
    let reply = client.send(Method::POST, path, headers, body.to_string().into()).await?;
    if reply.status == StatusCode::METHOD_NOT_ALLOWED {
        return Err(Failure::failed("this gateway is older and can't change the ring"));
    }
    Ok(reply)
}

/// Runs `cartwheel plan`.
///
/// # Errors
/// Exit status 1 for a refusal or an unknown answer, 3 without an answer.
pub async fn run(args: &PlanArgs, output: &mut Output) -> Result<Exit, Failure> {
    let wanted = args.wanted();
    let document = wanted.plan(&wanted.common.client()).await?;
    match wanted.common.output {
        Format::Json => output.json(&document)?,
        Format::Text => output.raw(text(&read(document)?).as_bytes())?,
    }
    Ok(Exit::Done)
}

/// `POST /v1/cluster/plan`, and what an application answers.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Planned {
    pub(super) ring_version: u64,
    #[serde(default)]
    pub(super) change: String,
    #[serde(default)]
    pub(super) pending: bool,
    plan: Plan,
}

#[derive(Debug, Clone, Deserialize)]
struct Plan {
    partitions: u64,
    replicas: u64,
    partitions_changed: u64,
    slots_moved: u64,
    least_moved: u64,
    ratio_permille: Option<u64>,
    keys_moved: Option<u64>,
    bytes_from_bucket: Option<u64>,
    needed_to_write: u64,
    needed_to_read: u64,
    steps: Vec<Step>,
    breaks_quorum: bool,
    efficiency_permille: Pair,
    members: Vec<MemberPlan>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Pair {
    before: u64,
    after: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct Step {
    step: String,
    least_to_write: u64,
    least_to_read: u64,
    below_quorum: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct MemberPlan {
    id: String,
    slots: Pair,
    gained: u64,
    lost: u64,
    fair_milli: u64,
}

/// The plan for people.
pub(super) fn text(planned: &Planned) -> String {
    let plan = &planned.plan;
    let percent = |permille: u64| format!("{}.{}%", permille / 10, permille % 10);
    let ratio = plan.ratio_permille.map_or_else(String::new, |ratio| {
        format!(", {}.{:02} times the least", ratio / 1000, ratio % 1000 / 10)
    });
    let known = |figure: Option<String>| figure.unwrap_or_else(|| "not known".to_owned());
    let bytes = plan.bytes_from_bucket.map(|bytes| {
        let size = crate::units::human_size(bytes);
        format!("{size} from the bucket; between nodes only what came in since the last flush")
    });
    let mut text = format!(
        "ring version {}: {}\n\nmoves       {} of {} slots, in {} of {} partitions; {} have to{ratio}\nkeys        {}\n\
         bytes       {}\n\
         evenness    {} now, {} afterwards\n\n",
        planned.ring_version,
        super::printable(&planned.change),
        plan.slots_moved,
        plan.partitions * plan.replicas,
        plan.partitions_changed,
        plan.partitions,
        plan.least_moved,
        known(plan.keys_moved.map(|keys| keys.to_string())),
        known(bytes),
        percent(plan.efficiency_permille.before),
        percent(plan.efficiency_permille.after),
    );
    let rows = plan.members.iter().map(|member| {
        vec![
            member.id.clone(),
            member.slots.before.to_string(),
            member.slots.after.to_string(),
            member.gained.to_string(),
            member.lost.to_string(),
            format!("{}.{}", member.fair_milli / 1000, member.fair_milli % 1000 / 100),
        ]
    });
    let header = [
        ("ID", Align::Left),
        ("SLOTS", Align::Right),
        ("AFTERWARDS", Align::Right),
        ("GETS", Align::Right),
        ("GIVES", Align::Right),
        ("FAIR", Align::Right),
    ];
    text.push_str(&super::table(&header, &rows.collect::<Vec<_>>()));
    text.push_str(&format!(
        "\nhomes that are alive, of the partition that has the fewest (writes need {}, reads {}):\n",
        plan.needed_to_write, plan.needed_to_read
    ));
    let rows = plan.steps.iter().map(|step| {
        vec![
            step.step.clone(),
            step.least_to_write.to_string(),
            step.least_to_read.to_string(),
            step.below_quorum.to_string(),
        ]
    });
    let header = [
        ("STEP", Align::Left),
        ("TO WRITE", Align::Right),
        ("TO READ", Align::Right),
        ("PARTITIONS BELOW", Align::Right),
    ];
    text.push_str(&super::table(&header, &rows.collect::<Vec<_>>()));
    if plan.breaks_quorum {
        text.push_str("\nThis change brings partitions below their quorum: it is refused, unless a member is forgotten with --force.\n");
    }
    text
}
