//! `cartwheel repair`: homes compare what they hold with each other now, and how far they are.

use std::time::Duration;

use ::http::{HeaderMap, Method};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use cartwheel_cluster::seams::Seams;

use super::status::read;
use super::{Align, Common, Exit, Failure, Format, Output};

/// How often the nodes are asked how far they are.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a node that was asked may be out of reach before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(30);

/// Have storage nodes compare what they hold with each other now, and repair what differs
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel repair\n  cartwheel repair --node node-a --no-wait\n  cartwheel repair --partition 17 -o json | jq '.nodes[].differing'\n\nStorage nodes do this by themselves, every --repair-every. Exit status 1 if a home could not be compared with."
)]
pub struct RepairArgs {
    /// Ask this storage node alone (default: all of them, or the homes of the partition)
    #[arg(long, value_name = "ID")]
    pub node: Option<String>,
    /// Compare this partition alone
    #[arg(long, value_name = "P")]
    pub partition: Option<u32>,
    /// Ask, and do not wait until it is done
    #[arg(long)]
    pub no_wait: bool,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// The answer of `POST /v1/cluster/repair`.
#[derive(Debug, Deserialize)]
struct Begun {
    asked: Vec<String>,
    #[serde(default)]
    unreachable: Vec<Unasked>,
}

/// A node that was not asked.
#[derive(Debug, Deserialize)]
struct Unasked {
    id: String,
    #[serde(default)]
    why: String,
}

/// `GET /v1/cluster`, as far as this command looks at it.
#[derive(Debug, Deserialize)]
struct Cluster {
    members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    id: String,
    #[serde(default)]
    reachable: bool,
    #[serde(default)]
    repair: Option<Repair>,
}

/// How repair is at a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Repair {
    asked: u64,
    answered: u64,
    running: bool,
    round_pairs: u64,
    round_compared: u64,
    unreachable: Vec<String>,
    round_differing: u64,
    round_pulled: u64,
    round_pushed: u64,
    round_bytes: u64,
    /// When the pair that was compared the longest ago was, milliseconds since 1970; 0 if none was ever.
    pub(super) oldest_ms: u64,
    /// Keys that differed when each pair was last compared.
    pub(super) differing: u64,
}

/// What came of it at a node that was asked.
#[derive(Debug, Serialize)]
struct Done {
    id: String,
    /// It has answered all that was asked of it.
    answered: bool,
    pairs: u64,
    compared: u64,
    differing: u64,
    pulled: u64,
    pushed: u64,
    bytes: u64,
    not_reached: Vec<String>,
    oldest_ms: u64,
}

impl Done {
    fn of(id: &str, answered: bool, repair: Repair) -> Self {
        Self {
            id: id.to_owned(),
            answered,
            pairs: repair.round_pairs,
            compared: repair.round_compared,
            differing: repair.round_differing,
            pulled: repair.round_pulled,
            pushed: repair.round_pushed,
            bytes: repair.round_bytes,
            not_reached: repair.unreachable,
            oldest_ms: repair.oldest_ms,
        }
    }

    fn is_whole(&self) -> bool {
        self.answered && self.not_reached.is_empty() && self.compared == self.pairs
    }
}

/// Runs `cartwheel repair`. Exit status 1 if a node could not be asked, or a home could not be compared with.
///
/// # Errors
/// Exit status 1 for a refusal or an unknown answer, 3 without an answer.
pub async fn run(args: &RepairArgs, output: &mut Output) -> Result<Exit, Failure> {
    let mut order = json!({});
    if let Some(node) = &args.node {
        order["node"] = node.as_str().into();
    }
    if let Some(partition) = args.partition {
        order["partition"] = partition.into();
    }
    let client = args.common.client();
    let body = order.to_string().into();
    let reply = client.send(Method::POST, "/v1/cluster/repair", HeaderMap::new(), body).await?;
    let mut document = reply.success()?.json()?;
    let begun: Begun = read(document.clone())?;
    let mut exit = if begun.unreachable.is_empty() { Exit::Done } else { Exit::Failed };
    for Unasked { id, why } in &begun.unreachable {
        output.note(&super::printable(&format!("{id} could not be asked: {why}")));
    }
    if args.no_wait {
        match args.common.output {
            Format::Json => output.json(&document)?,
            Format::Text => output.line(&super::printable(&format!("asked: {}", begun.asked.join(" "))))?,
        }
        return Ok(exit);
    }
    let nodes = follow(args, &begun.asked, output).await?;
    if !nodes.iter().all(Done::is_whole) {
        exit = Exit::Failed;
    }
    match args.common.output {
        Format::Json => {
            document["nodes"] = json!(nodes);
            output.json(&document)?;
        }
        Format::Text => output.raw(table(&nodes, Seams::real().clock.now_ms()).as_bytes())?,
    }
    Ok(exit)
}

/// Looks at the cluster until every node that was asked has answered, or is out of reach for long.
async fn follow(args: &RepairArgs, asked: &[String], output: &mut Output) -> Result<Vec<Done>, Failure> {
    let client = args.common.client();
    let mut said = String::new();
    let mut reached_at = vec![Instant::now(); asked.len()];
    loop {
        let document: Value = client.get("/v1/cluster").await?.success()?.json()?;
        let Cluster { members } = read(document)?;
        let mut waits = false;
        let mut nodes = Vec::new();
        for (id, reached_at) in asked.iter().zip(&mut reached_at) {
            let member = members.iter().find(|member| member.id == *id && member.reachable);
            let Some(repair) = member.and_then(|member| member.repair.clone()) else {
                waits |= reached_at.elapsed() < PATIENCE;
                nodes.push(Done::of(id, false, Repair::default()));
                continue;
            };
            *reached_at = Instant::now();
            // A node that was started anew knows of nothing that it was asked, and never will.
            let forgot = repair.asked == 0;
            let answered = !forgot && !repair.running && repair.answered >= repair.asked;
            waits |= !answered && !forgot;
            nodes.push(Done::of(id, answered, repair));
        }
        if !waits {
            output.progress_ends();
            return Ok(nodes);
        }
        let words = progress(&nodes);
        if words != said {
            output.progress(&words);
            said = words;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn progress(nodes: &[Done]) -> String {
    let sum = |of: fn(&Done) -> u64| nodes.iter().map(of).sum::<u64>();
    format!(
        "{} of {} nodes are done; {} of {} pairs compared, {} keys differed, {} moved",
        nodes.iter().filter(|node| node.answered).count(),
        nodes.len(),
        sum(|node| node.compared),
        sum(|node| node.pairs),
        sum(|node| node.differing),
        crate::units::human_size(sum(|node| node.bytes)),
    )
}

fn table(nodes: &[Done], now_ms: u64) -> String {
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            let not_reached = match (node.answered, node.not_reached.as_slice()) {
                (false, _) => "it did not answer".to_owned(),
                (true, []) => "-".to_owned(),
                (true, homes) => homes.join(" "),
            };
            vec![
                node.id.clone(),
                format!("{}/{}", node.compared, node.pairs),
                node.differing.to_string(),
                node.pulled.to_string(),
                node.pushed.to_string(),
                crate::units::human_size(node.bytes),
                not_reached,
                age(now_ms, node.oldest_ms),
            ]
        })
        .collect();
    let header = [
        ("NODE", Align::Left),
        ("COMPARED", Align::Right),
        ("DIFFERING", Align::Right),
        ("PULLED", Align::Right),
        ("PUSHED", Align::Right),
        ("BYTES", Align::Right),
        ("NOT REACHED", Align::Left),
        ("OLDEST", Align::Right),
    ];
    super::table(&header, &rows)
}

/// How long ago something was, for people; `never` for 0.
pub(super) fn age(now_ms: u64, then_ms: u64) -> String {
    if then_ms == 0 {
        return "never".to_owned();
    }
    // By two clocks, which may differ a little.
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7_200 => format!("{}m ago", seconds / 60),
        7_200..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_rounded_down() {
        let ages = [0, 119, 120, 7_199, 7_200, 172_800]
            .map(|seconds| age(1_000_000_000 + seconds * 1000, 1_000_000_000));
        assert_eq!(ages, ["0s ago", "119s ago", "2m ago", "119m ago", "2h ago", "2d ago"]);
        assert_eq!((age(5, 0).as_str(), age(5, 9).as_str()), ("never", "0s ago"));
    }

    #[test]
    fn a_node_is_whole_once_it_compared_all_with_all() {
        let whole = Repair { asked: 1, answered: 1, round_pairs: 2, round_compared: 2, ..Repair::default() };
        assert!(Done::of("a", true, whole.clone()).is_whole());
        assert!(!Done::of("a", false, whole.clone()).is_whole());
        assert!(!Done::of("a", true, Repair { round_compared: 1, ..whole.clone() }).is_whole());
        let alone = Done::of("a", true, Repair { unreachable: vec!["b".to_owned()], ..whole });
        assert!(!alone.is_whole());
        let table = table(&[alone, Done::of("c", false, Repair::default())], 0);
        assert!(table.contains("a          2/2          0       0       0    0 B  b  "), "{table}");
        assert!(table.contains("it did not answer"), "{table}");
    }
}
