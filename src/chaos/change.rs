//! `cartwheel chaos --changes`: the ring changes under load, one change after the other, and each is measured against
//! what is promised of it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::ballast;
use super::cluster::{Cluster, node_id};
use super::faults::{say, supervise};
use super::world::World;
use crate::client::{Align, Failure, Output, Reply, table};

/// Replicas of a key.
const REPLICAS: u64 = 3;
/// How long a change may take, by how much there is to read again.
const LEAST_PATIENCE: Duration = Duration::from_secs(90);
const PATIENCE_PER_GB: Duration = Duration::from_secs(300);
/// How long gossip may take to call a node dead.
const DEAD_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The load before the first change, and after each one: a moment where there is little data.
const REST: Duration = Duration::from_secs(4);
const SHORT_REST: Duration = Duration::from_secs(1);
const LITTLE: u64 = 50_000_000;
/// Keys of the ballast that are read after each change, and in the end from all of their homes, about.
const SAMPLED: u64 = 500;
const SAMPLED_LAST: u64 = 20_000;
/// What is promised: bytes that go between nodes, in thousandths of those that get a new home; slots that move, in
/// thousandths of the fewest.
const COPIED_PERMILLE: f64 = 10.0;
const MOVED_PERMILLE: u64 = 1200;

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// A new node adds itself.
    Join(usize),
    /// It hands over what it holds, and goes.
    Leave(usize),
    /// SIGKILL, its disk deleted; a process of the same name with an empty disk starts elsewhere.
    Replace(usize),
    /// It gets another share.
    Weight(usize, u32),
    /// SIGKILL for good; it is forgotten.
    Forget(usize),
}

/// All of them, in their order, for a cluster that begins with five nodes.
const SCRIPT: [Change; 5] =
    [Change::Join(5), Change::Leave(1), Change::Replace(2), Change::Weight(3, 2), Change::Forget(4)];
/// How many nodes that takes.
pub(crate) const NODES: u8 = 5;

impl Change {
    fn words(self) -> String {
        match self {
            Self::Join(node) => format!("{} joins", node_id(node)),
            Self::Leave(node) => format!("{} leaves", node_id(node)),
            Self::Replace(node) => format!("{} is replaced", node_id(node)),
            Self::Weight(node, weight) => format!("{} gets weight {weight}", node_id(node)),
            Self::Forget(node) => format!("{} dies and is forgotten", node_id(node)),
        }
    }

    /// As the API has it; `None` if the ring does not change.
    fn edit(self) -> Option<Value> {
        Some(match self {
            Self::Join(node) => {
                json!({"join": {"id": node_id(node), "address": "127.0.0.1:1", "zone": "default", "weight": 1}})
            }
            Self::Leave(node) => json!({"leave": {"id": node_id(node)}}),
            Self::Weight(node, weight) => json!({"weight": {"id": node_id(node), "weight": weight}}),
            Self::Forget(node) => json!({"forget": {"id": node_id(node)}}),
            Self::Replace(_) => return None,
        })
    }
}

/// What a change came to.
#[derive(Debug, Clone, Default)]
struct Measured {
    change: String,
    /// From its order, or the start of the new process, until it was settled.
    took: Duration,
    /// Carts' operations while it went on and in the rest after it, and those that failed for good.
    operations: u64,
    failed: u64,
    /// Stale reads while it went on, and after it.
    stale: u64,
    stale_after: u64,
    /// Acknowledged writes that are gone, of the carts and of the ballast.
    lost: u64,
    borrowed_bytes: u64,
    copied_bytes: u64,
    /// What the slots that moved hold.
    moved_bytes: u64,
    /// Slots that move, and the fewest that could.
    slots: Option<(u64, u64)>,
}

impl Measured {
    fn copied_permille(&self) -> f64 {
        1000.0 * self.copied_bytes as f64 / self.moved_bytes.max(1) as f64
    }

    fn moved_permille(&self) -> Option<u64> {
        self.slots.and_then(|(moved, least)| (moved * 1000).checked_div(least))
    }

    /// The promises that it broke.
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let none = [
            (self.failed, "requests failed"),
            (self.lost, "acknowledged writes are lost"),
            (self.stale_after, "reads after it were stale"),
        ];
        let some = none.iter().filter(|(count, _)| *count > 0);
        broken.extend(some.map(|(count, what)| format!("{}: {count} {what}", self.change)));
        if self.copied_permille() > COPIED_PERMILLE {
            let percent = self.copied_permille() / 10.0;
            broken.push(format!("{}: {percent:.2} % of what moved was copied between nodes", self.change));
        }
        if let Some(permille) = self.moved_permille().filter(|permille| *permille > MOVED_PERMILLE) {
            let ratio = permille as f64 / 1000.0;
            broken.push(format!("{}: {ratio:.2} times the fewest slots move", self.change));
        }
        broken
    }

    fn row(&self) -> Vec<String> {
        let slots = |f: fn((u64, u64)) -> String| self.slots.map_or("-".to_owned(), f);
        vec![
            self.change.clone(),
            format!("{:.1}", self.took.as_secs_f64()),
            self.operations.to_string(),
            self.failed.to_string(),
            self.lost.to_string(),
            format!("{}, {}", self.stale, self.stale_after),
            crate::units::human_size(self.moved_bytes),
            crate::units::human_size(self.borrowed_bytes),
            crate::units::human_size(self.copied_bytes),
            format!("{:.3}", self.copied_permille() / 10.0),
            slots(|(moved, least)| format!("{moved} of {least}")),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "change": self.change,
            "seconds": self.took.as_secs_f64(),
            "operations": self.operations,
            "failed": self.failed,
            "lost": self.lost,
            "stale_during": self.stale,
            "stale_after": self.stale_after,
            "moved_bytes": self.moved_bytes,
            "borrowed_bytes": self.borrowed_bytes,
            "copied_bytes": self.copied_bytes,
            "copied_permille": self.copied_permille(),
            "slots_moved": self.slots.map(|(moved, _)| moved),
            "slots_least": self.slots.map(|(_, least)| least),
            "broken": self.broken(),
        })
    }
}

/// All changes, measured.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    size: u64,
    all: Vec<Measured>,
    /// Ballast that was wrong in the end.
    wrong: u64,
}

impl Changes {
    /// Promises that were broken.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken: Vec<String> = self.all.iter().flat_map(Measured::broken).collect();
        if self.wrong > 0 {
            broken.push(format!("in the end: {} values are not what was written", self.wrong));
        }
        broken
    }

    /// A table, and what was broken.
    pub(crate) fn text(&self) -> String {
        let left = ("change", Align::Left);
        let figures = [
            "seconds",
            "operations",
            "failed",
            "lost",
            "stale: during, after",
            "moved",
            "borrowed",
            "copied",
            "copied %",
            "slots, fewest",
        ];
        let header: Vec<_> = [left].into_iter().chain(figures.map(|name| (name, Align::Right))).collect();
        let rows: Vec<Vec<String>> = self.all.iter().map(Measured::row).collect();
        let mut text = table(&header, &rows);
        for broken in self.broken() {
            text.push_str(&format!("BROKEN: {broken}\n"));
        }
        text
    }

    /// Reads the ballast from all of its homes, once the load has ended.
    ///
    /// # Errors
    /// A key that can't be read.
    pub(crate) async fn look_at_the_end(&mut self, cluster: &Cluster) -> Result<(), Failure> {
        let keys = keys(self.size);
        self.wrong = ballast::wrong(cluster.clients(), keys, keys / SAMPLED_LAST, "?r=all").await?;
        Ok(())
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> Value {
        let all: Vec<Value> = self.all.iter().map(Measured::json).collect();
        json!({"bytes_per_node": self.size, "changes": all, "wrong_in_the_end": self.wrong})
    }
}

/// Counters of the load and of the cluster at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    operations: u64,
    failed: u64,
    stale: u64,
    lost: u64,
    borrowed: u64,
    copied: u64,
}

/// How many keys of ballast make so many bytes of values per node.
fn keys(size: u64) -> u64 {
    size * u64::from(NODES) / REPLICAS / ballast::VALUE_BYTES
}

fn rest(size: u64) -> Duration {
    if size < LITTLE { SHORT_REST } else { REST }
}

fn patience(size: u64) -> Duration {
    LEAST_PATIENCE + PATIENCE_PER_GB.mul_f64(size as f64 / 1e9)
}

/// Fills the cluster until each node holds so many bytes, and waits until they are in the bucket.
///
/// # Errors
/// If writes are refused, or do not reach the bucket.
pub(crate) async fn fill(
    cluster: &Cluster,
    world: &World,
    output: &mut Output,
    size: u64,
) -> Result<(), Failure> {
    let began = Instant::now();
    ballast::fill(cluster.clients(), keys(size)).await?;
    let give_up = Instant::now() + patience(size);
    loop {
        let status = look(cluster, "/v1/cluster").await?;
        let rest = members(&status).filter(|m| m.get("memtable_keys") != Some(&json!(0)));
        let waits: Vec<&str> = rest.filter_map(|m| m.get("id")?.as_str()).collect();
        if waits.is_empty() {
            let took = began.elapsed().as_secs_f64();
            say(world, output, &format!("{} keys of 4 KiB are in the bucket after {took:.1} s", keys(size)));
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(Failure::failed(format!("{waits:?} do not put all they hold into the bucket")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Makes all changes while the carts go on.
///
/// # Errors
/// If a change is refused or does not end.
pub(crate) async fn change(
    cluster: &mut Cluster,
    world: &World,
    output: &mut Output,
    size: u64,
) -> Result<Changes, Failure> {
    let mut changer = Changer { cluster, world, output, size, took_over: BTreeMap::new() };
    let mut changes = Changes { size, ..Changes::default() };
    tokio::time::sleep(rest(size)).await;
    for change in SCRIPT {
        let measured = changer.measure(change).await?;
        changes.all.push(measured);
    }
    Ok(changes)
}

async fn look(cluster: &Cluster, path: &str) -> Result<Value, Failure> {
    cluster.admin().get(path).await.and_then(Reply::success)?.json()
}

/// Changes the ring of a cluster under load.
struct Changer<'a> {
    cluster: &'a mut Cluster,
    world: &'a World,
    output: &'a mut Output,
    /// Bytes of values per node.
    size: u64,
    /// What each process has taken over: bytes borrowed, bytes copied.
    took_over: BTreeMap<String, (u64, u64)>,
}

impl Changer<'_> {
    async fn measure(&mut self, change: Change) -> Result<Measured, Failure> {
        let words = change.words();
        let before = self.counters().await?;
        let slots = match change.edit() {
            Some(edit) => Some(self.plan(edit).await?),
            None => None,
        };
        say(self.world, self.output, &format!("{words} …"));
        let base = self.look("/v1/cluster/ring").await?;
        let began = self.begin(change).await?;
        self.until_settled(change, version(&base)).await?;
        let took = began.elapsed();
        let done = self.counters().await?;
        if let Change::Leave(node) = change {
            // Nothing is asked of it any more.
            self.cluster.remove(node);
        }
        say(self.world, self.output, &format!("{words}: settled after {:.1} s", took.as_secs_f64()));
        let wrong =
            ballast::wrong(self.cluster.clients(), keys(self.size), keys(self.size) / SAMPLED, "").await?;
        tokio::time::sleep(rest(self.size)).await;
        supervise(self.cluster, self.world, self.output)?;
        let after = self.counters().await?;
        let all_slots = u64::from(PARTITIONS) * REPLICAS;
        let moved = match slots {
            Some((moved, _)) => keys(self.size) * REPLICAS * ballast::VALUE_BYTES * moved / all_slots,
            None => self.size,
        };
        Ok(Measured {
            change: words,
            took,
            operations: after.operations - before.operations,
            failed: after.failed - before.failed,
            stale: done.stale - before.stale,
            stale_after: after.stale - done.stale,
            lost: after.lost - before.lost + wrong,
            borrowed_bytes: after.borrowed - before.borrowed,
            copied_bytes: after.copied - before.copied,
            moved_bytes: moved,
            slots,
        })
    }

    /// Orders the change; gives when it began.
    async fn begin(&mut self, change: Change) -> Result<Instant, Failure> {
        match change {
            Change::Join(node) => {
                let began = Instant::now();
                self.cluster.add(node)?;
                let id = node_id(node);
                self.until(&format!("{id} does not add itself"), |ring, _| {
                    members(ring).any(|m| m.get("id") == Some(&json!(id)))
                })
                .await?;
                Ok(began)
            }
            Change::Replace(node) => {
                self.world.fault_begins("kills", false);
                self.cluster.replace(node)?;
                self.world.fault_ends(false);
                Ok(Instant::now())
            }
            Change::Leave(_) | Change::Weight(..) => {
                let began = Instant::now();
                self.apply(change, LEAST_PATIENCE).await?;
                Ok(began)
            }
            Change::Forget(node) => {
                self.world.fault_begins("kills", false);
                self.cluster.remove(node);
                self.apply(change, DEAD_WITHIN).await?;
                Ok(Instant::now())
            }
        }
    }

    /// Asks for the change until it is accepted.
    async fn apply(&mut self, change: Change, patience: Duration) -> Result<(), Failure> {
        let (client, give_up) = (self.cluster.admin(), Instant::now() + patience);
        loop {
            let base = version(&self.look("/v1/cluster/ring").await?);
            let body = json!({"edits": [change.edit()], "ring_version": base}).to_string();
            let sent = client.send(Method::POST, "/v1/cluster/apply", HeaderMap::new(), body.into()).await;
            match sent.and_then(Reply::success) {
                Ok(_) => return Ok(()),
                Err(failure) if Instant::now() > give_up => return Err(failure),
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    async fn until_settled(&mut self, change: Change, base: u64) -> Result<(), Failure> {
        let what = format!("{} is not settled", change.words());
        let replaced = match change {
            Change::Replace(node) => Some((node_id(node), self.cluster.address(node))),
            _ => None,
        };
        self.until(&what, |ring, status| {
            let pending = ring.get("pending_change").is_some_and(|pending| !pending.is_null());
            let there = members(status).all(|member| {
                let is = |name: &str, wanted: Value| member.get(name) == Some(&wanted);
                let moved = replaced
                    .as_ref()
                    .is_none_or(|(id, address)| !is("id", json!(id)) || is("address", json!(address)));
                let counts = is("standing", json!("counting")) && is("partitions_not_held", json!(0));
                moved && counts && is("reachable", json!(true))
            });
            // Each of them makes a version at least; this gateway may not know it yet.
            version(ring) > base && !pending && there
        })
        .await
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Value, &Value) -> bool) -> Result<(), Failure> {
        let give_up = Instant::now() + patience(self.size);
        loop {
            supervise(self.cluster, self.world, self.output)?;
            let (ring, status) = (self.look("/v1/cluster/ring").await?, self.look("/v1/cluster").await?);
            if done(&ring, &status) {
                return Ok(());
            }
            if Instant::now() > give_up {
                let pending = ring.get("pending_change").unwrap_or(&Value::Null);
                return Err(Failure::failed(format!("{what}: {pending}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, path: &str) -> Result<Value, Failure> {
        look(self.cluster, path).await
    }

    /// Slots that move, and the fewest that could.
    async fn plan(&self, edit: Value) -> Result<(u64, u64), Failure> {
        // A member that lives is not forgotten, but what comes of it can be asked.
        let force = edit.get("forget").is_some();
        let body = Bytes::from(json!({"edits": [edit], "force": force}).to_string());
        let sent = self.cluster.admin().send(Method::POST, "/v1/cluster/plan", HeaderMap::new(), body).await;
        let said = sent.and_then(Reply::success)?.json()?;
        let figure = |name: &str| said.get("plan")?.get(name)?.as_u64();
        figure("slots_moved")
            .zip(figure("least_moved"))
            .ok_or_else(|| Failure::failed(format!("a plan without figures: {said}")))
    }

    async fn counters(&mut self) -> Result<Counters, Failure> {
        let status = self.look("/v1/cluster").await?;
        for member in members(&status) {
            let takeover = member.get("repair").and_then(|repair| repair.get("takeover"));
            let figure = |name: &str| takeover.and_then(|t| t.get(name)?.as_u64());
            let process = member.get("incarnation").and_then(Value::as_str);
            if let (Some(process), Some(borrowed), Some(copied)) =
                (process, figure("borrowed_bytes"), figure("copied_bytes"))
            {
                self.took_over.insert(process.to_owned(), (borrowed, copied));
            }
        }
        let state = self.world.lock();
        let counts = &state.counts;
        Ok(Counters {
            operations: counts.reads + counts.writes,
            failed: counts.failed.values().sum(),
            stale: counts.stale + counts.stale_near_faults,
            lost: (state.lost.len() + state.resurrected.len()) as u64,
            borrowed: self.took_over.values().map(|(borrowed, _)| borrowed).sum(),
            copied: self.took_over.values().map(|(_, copied)| copied).sum(),
        })
    }
}

/// Q of the cluster.
const PARTITIONS: u32 = cartwheel_core::ring::DEFAULT_PARTITIONS;

fn version(ring: &Value) -> u64 {
    ring.get("version").and_then(Value::as_u64).unwrap_or_default()
}

fn members(status: &Value) -> impl Iterator<Item = &Value> {
    status.get("members").and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        Measured {
            change: "node-f joins".to_owned(),
            moved_bytes: 1_000_000,
            copied_bytes: 10_000,
            slots: Some((120, 100)),
            ..Measured::default()
        }
    }

    #[test]
    fn each_promise_can_be_broken() {
        assert_eq!(measured().broken(), Vec::<String>::new());
        let breaks: [fn(&mut Measured); 5] = [
            |m| m.failed = 1,
            |m| m.lost = 1,
            |m| m.stale_after = 1,
            |m| m.copied_bytes = 10_001,
            |m| m.slots = Some((121, 100)),
        ];
        for one in breaks {
            let mut broken = measured();
            one(&mut broken);
            assert_eq!(broken.broken().len(), 1, "{broken:?}");
        }
        let stale = Measured { stale: 5, ..measured() };
        assert_eq!(stale.broken(), Vec::<String>::new(), "nothing is promised of reads meanwhile");
        let changes = Changes { wrong: 1, ..Changes::default() };
        assert_eq!(changes.broken().len(), 1);
    }

    #[test]
    fn a_table_has_a_line_for_each_change() {
        let changes =
            Changes { all: vec![measured(), Measured { failed: 2, ..measured() }], ..Changes::default() };
        let text = changes.text();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("1.000") && text.contains("120 of 100"), "{text}");
        assert!(text.ends_with("BROKEN: node-f joins: 2 requests failed\n"), "{text}");
    }
}
