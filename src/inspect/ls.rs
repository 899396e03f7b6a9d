//! `cartwheel inspect ls`: what each storage node has in the bucket.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use cartwheel_bucket::{Bucket, BucketError, list_all};
use cartwheel_cluster::membership::{self, MembershipError};
use cartwheel_core::names::NodeId;
use cartwheel_segments::hints::{hint_prefix, parse_hint_object};
use cartwheel_segments::inventory::{Inventory, Kind, State, names_below};

use super::BucketArgs;
use super::show::{utc, utc_value};
use crate::client::{Align, Exit, Failure, Format, Output, printable, table};
use crate::units::human_size;

/// Options of `cartwheel inspect ls`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel inspect ls --bucket s3://carts/prod\n  cartwheel inspect ls node-a -o json\n\nF, C and G count the flushed, compacted and grave segments that the newest manifest names. UNKNOWN are flushes that it has not heard of yet: they count as held. ORPHANS are left of unfinished compactions and count for nothing. DROPPED wait for deletion."
)]
pub struct LsArgs {
    /// Only this storage node
    #[arg(value_parser = super::node_id)]
    pub node: Option<NodeId>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub bucket: BucketArgs,
}

/// Objects and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

impl Count {
    pub(super) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    fn join(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }

    fn value(self) -> Value {
        json!({ "objects": self.objects, "bytes": self.bytes })
    }
}

/// Hints that one holder keeps for a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kept {
    count: Count,
    oldest_ms: u64,
}

/// The figures of one node, or of all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Figures {
    flushed: Count,
    compacted: Count,
    graves: Count,
    records: u64,
    unknown: Count,
    orphans: Count,
    dropped: Count,
    unclear: Count,
    quarantined: Count,
    missing: u64,
    pins: u64,
    hints: Count,
}

impl Figures {
    fn join(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.flushed, other.flushed),
            (&mut self.compacted, other.compacted),
            (&mut self.graves, other.graves),
            (&mut self.unknown, other.unknown),
            (&mut self.orphans, other.orphans),
            (&mut self.dropped, other.dropped),
            (&mut self.unclear, other.unclear),
            (&mut self.quarantined, other.quarantined),
            (&mut self.hints, other.hints),
        ] {
            mine.join(theirs);
        }
        self.records += other.records;
        self.missing += other.missing;
        self.pins += other.pins;
    }

    fn named_bytes(&self) -> u64 {
        self.flushed.bytes + self.compacted.bytes + self.graves.bytes
    }

    fn value(&self) -> Value {
        json!({
            "segments": {
                "f": self.flushed.value(),
                "c": self.compacted.value(),
                "g": self.graves.value(),
            },
            "bytes": self.named_bytes(),
            "records": self.records,
            "unknown": self.unknown.value(),
            "orphans": self.orphans.value(),
            "dropped": self.dropped.value(),
            "unclear": self.unclear.value(),
            "quarantined": self.quarantined.value(),
            "missing": self.missing,
            "pins": self.pins,
            "hints": self.hints.value(),
        })
    }
}

/// One node.
#[derive(Debug)]
struct Node {
    id: NodeId,
    /// Version, epoch, and when the store took it.
    manifest: Option<(u64, u32, u64)>,
    unreadable: Option<String>,
    missing: Vec<String>,
    pins: Vec<String>,
    hints: BTreeMap<String, Kept>,
    figures: Figures,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Listing {
    nodes: Vec<Node>,
}

/// Runs `cartwheel inspect ls`.
///
/// # Errors
/// Exit status 1 if a manifest is damaged or an object is missing, 3 if the bucket does not answer.
pub(super) async fn run(args: &LsArgs, output: &mut Output) -> Result<Exit, Failure> {
    let bucket = args.bucket.connect().await?;
    let listing = gather(&*bucket, args.node.as_ref()).await.map_err(|e| super::failure(&e))?;
    match args.bucket.output {
        Format::Json => output.json(&listing.value())?,
        Format::Text => output.raw(listing.text().as_bytes())?,
    }
    let sound = listing.nodes.iter().all(|node| node.unreadable.is_none() && node.missing.is_empty());
    Ok(if sound { Exit::Done } else { Exit::Failed })
}

/// Every node that has anything in the bucket, has hints kept for it, or is a member.
///
/// # Errors
/// Those of the bucket.
pub(super) async fn nodes(bucket: &dyn Bucket) -> Result<Vec<NodeId>, BucketError> {
    let mut names = names_below(bucket, "nodes/").await?;
    names.extend(names_below(bucket, "hints/").await?);
    let mut ids: Vec<NodeId> = names.iter().filter_map(|name| NodeId::new(name).ok()).collect();
    match membership::read_newest(bucket, 0).await {
        Ok(document) => ids.extend(document.into_iter().flat_map(|d| d.members).map(|member| member.id)),
        Err(MembershipError::Bucket(error)) => return Err(error),
        // `doctor` tells of a ring document that can't be read; what lies there is listed all the same.
        Err(_) => {}
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

async fn gather(bucket: &dyn Bucket, only: Option<&NodeId>) -> Result<Listing, BucketError> {
    let ids = match only {
        Some(id) => vec![id.clone()],
        None => nodes(bucket).await?,
    };
    let mut nodes = Vec::with_capacity(ids.len());
    for id in ids {
        let inventory = Inventory::read(bucket, &id).await?;
        let mut hints: BTreeMap<String, Kept> = BTreeMap::new();
        for object in list_all(bucket, &hint_prefix(&id)).await? {
            let holder = parse_hint_object(&object.key).map_or_else(|| "?".to_owned(), |name| name.label);
            let kept = hints.entry(holder).or_insert(Kept { oldest_ms: u64::MAX, ..Kept::default() });
            kept.count.add(object.size);
            kept.oldest_ms = kept.oldest_ms.min(object.modified_ms);
        }
        nodes.push(Node::of(&inventory, hints));
    }
    Ok(Listing { nodes })
}

impl Node {
    fn of(inventory: &Inventory, hints: BTreeMap<String, Kept>) -> Self {
        let mut figures = Figures {
            missing: inventory.missing.len() as u64,
            pins: inventory.pins.len() as u64,
            ..Figures::default()
        };
        hints.values().for_each(|kept| figures.hints.join(kept.count));
        for object in &inventory.objects {
            let count = match (object.state, object.kind) {
                (State::Named, Kind::Flushed) => &mut figures.flushed,
                (State::Named, Kind::Compacted) => &mut figures.compacted,
                (State::Named | State::Grave, _) => &mut figures.graves,
                (State::Unknown, _) => &mut figures.unknown,
                (State::Orphan, _) => &mut figures.orphans,
                (State::Dropped, _) => &mut figures.dropped,
                (State::Unclear, _) => &mut figures.unclear,
                (State::Quarantined, _) => &mut figures.quarantined,
            };
            count.add(object.bytes);
            figures.records += object.entry.as_ref().map_or(0, |entry| entry.records);
        }
        let manifest = inventory.manifest.as_ref();
        Self {
            id: inventory.node.clone(),
            manifest: manifest.map(|d| (d.manifest.version, d.manifest.epoch, d.modified_ms)),
            unreadable: inventory.unreadable.as_ref().map(ToString::to_string),
            missing: inventory.missing.iter().map(|entry| entry.object.clone()).collect(),
            pins: inventory.pins.iter().map(|pin| pin.key.clone()).collect(),
            hints,
            figures,
        }
    }

    fn value(&self) -> Value {
        let hints = self.hints.iter().map(|(holder, kept)| {
            json!({
                "holder": holder,
                "objects": kept.count.objects,
                "bytes": kept.count.bytes,
                "oldest": utc_value(kept.oldest_ms),
            })
        });
        let mut value = self.figures.value();
        value["id"] = Value::from(self.id.as_str());
        value["manifest"] = self.manifest.map_or(Value::Null, |(version, epoch, at_ms)| {
            json!({ "version": version, "epoch": epoch, "written": utc_value(at_ms) })
        });
        value["manifest_error"] = self.unreadable.clone().map_or(Value::Null, Value::from);
        value["missing_objects"] = Value::from(self.missing.clone());
        value["pin_objects"] = Value::from(self.pins.clone());
        value["hints_by_holder"] = hints.collect();
        value
    }
}

impl Listing {
    fn total(&self) -> Figures {
        let mut total = Figures::default();
        self.nodes.iter().for_each(|node| total.join(&node.figures));
        total
    }

    fn value(&self) -> Value {
        let nodes: Vec<Value> = self.nodes.iter().map(Node::value).collect();
        json!({ "nodes": nodes, "total": self.total().value() })
    }

    fn text(&self) -> String {
        let mut rows: Vec<Vec<String>> = self
            .nodes
            .iter()
            .map(|node| {
                let [version, epoch, at] = match node.manifest {
                    Some((version, epoch, at_ms)) => [version.to_string(), epoch.to_string(), utc(at_ms)],
                    None if node.unreadable.is_some() => {
                        ["DAMAGED".to_owned(), "-".to_owned(), "-".to_owned()]
                    }
                    None => ["-".to_owned(), "-".to_owned(), "-".to_owned()],
                };
                row([node.id.to_string(), version, epoch, at], &node.figures)
            })
            .collect();
        let total = self.total();
        rows.push(row(["total".to_owned(), String::new(), String::new(), String::new()], &total));
        let (left, right) = (Align::Left, Align::Right);
        let header = [
            ("NODE", left),
            ("MANIFEST", right),
            ("EPOCH", right),
            ("WRITTEN", left),
            ("F", right),
            ("C", right),
            ("G", right),
            ("BYTES", right),
            ("RECORDS", right),
            ("UNKNOWN", right),
            ("ORPHANS", right),
            ("DROPPED", right),
            ("PINS", right),
            ("HINTS", right),
        ];
        let mut text = table(&header, &rows);
        let hints: Vec<Vec<String>> = self.nodes.iter().flat_map(hint_rows).collect();
        if !hints.is_empty() {
            let header = [
                ("HINTS FOR", left),
                ("KEPT BY", left),
                ("OBJECTS", right),
                ("BYTES", right),
                ("OLDEST", left),
            ];
            text.push('\n');
            text.push_str(&table(&header, &hints));
        }
        let mut wrong = String::new();
        for node in &self.nodes {
            if let Some(error) = &node.unreadable {
                let objects = node.figures.unclear.objects;
                let line =
                    format!("{}: {error}; nobody can say what its {objects} objects count for", node.id);
                wrong.push_str(&format!("{}\n", printable(&line)));
            }
            for object in &node.missing {
                wrong.push_str(&format!("{}: {} is named and missing\n", node.id, printable(object)));
            }
        }
        if !wrong.is_empty() {
            text.push('\n');
            text.push_str(&wrong);
        }
        text
    }
}

fn hint_rows(node: &Node) -> Vec<Vec<String>> {
    let row = |(holder, kept): (&String, &Kept)| {
        let count = kept.count;
        vec![
            node.id.to_string(),
            holder.clone(),
            count.objects.to_string(),
            human_size(count.bytes),
            utc(kept.oldest_ms),
        ]
    };
    node.hints.iter().map(row).collect()
}

fn row(first: [String; 4], figures: &Figures) -> Vec<String> {
    let mut row = Vec::from(first);
    row.extend([
        figures.flushed.objects.to_string(),
        figures.compacted.objects.to_string(),
        figures.graves.objects.to_string(),
        human_size(figures.named_bytes()),
        figures.records.to_string(),
        figures.unknown.objects.to_string(),
        figures.orphans.objects.to_string(),
        figures.dropped.objects.to_string(),
        figures.pins.to_string(),
        figures.hints.objects.to_string(),
    ]);
    row
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::World;
    use super::*;

    #[tokio::test]
    async fn every_object_is_counted_once() {
        let world = World::new().await;
        let listing = gather(&*world.bucket, None).await.unwrap();
        let ids: Vec<&str> = listing.nodes.iter().map(|node| node.id.as_str()).collect();
        assert_eq!(ids, ["node-a", "node-b", "node-c"]);
        let a = &listing.nodes[0];
        assert_eq!(a.manifest.map(|(version, epoch, _)| (version, epoch)), Some((3, 1)));
        let objects = |count: Count| count.objects;
        let f = &a.figures;
        assert_eq!([objects(f.flushed), objects(f.compacted), objects(f.graves)], [1, 2, 1]);
        assert_eq!([objects(f.unknown), objects(f.orphans), objects(f.dropped)], [1, 1, 1]);
        assert_eq!((f.pins, f.missing, objects(f.hints)), (1, 0, 1));
        assert!(f.named_bytes() > 0 && f.records > 0);
        let value = listing.value();
        assert_eq!(value["nodes"][0]["hints_by_holder"][0]["holder"], "node-c-0000000002-00000000000000ab");
        assert_eq!(value["total"]["segments"]["c"]["objects"], 2);
        let text = listing.text();
        assert!(text.lines().any(|l| l.starts_with("total")) && text.contains("KEPT BY"), "{text}");

        let one = gather(&*world.bucket, Some(&NodeId::new("node-b").unwrap())).await.unwrap();
        assert_eq!((one.nodes.len(), one.nodes[0].figures.flushed.objects), (1, 1));
    }

    #[tokio::test]
    async fn what_is_missing_or_damaged_is_said() {
        let world = World::new().await;
        world.bucket.delete(&world.compacted[0]).await.unwrap();
        world.bucket.put("nodes/node-b/manifest/0000000009.json", "{".into()).await.unwrap();
        let listing = gather(&*world.bucket, None).await.unwrap();
        assert_eq!(listing.nodes[0].missing, [world.compacted[0].clone()]);
        assert_eq!(listing.nodes[1].figures.unclear.objects, 1);
        let text = listing.text();
        assert!(text.contains("is named and missing") && text.contains("DAMAGED"), "{text}");
    }
}
