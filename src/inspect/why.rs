//! `cartwheel inspect why`: why a read of a key answers what it answers, as far as the bucket shows it.

use std::ffi::OsString;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use serde_json::{Value, json};

use cartwheel_bucket::{SharedBucket, list_all};
use cartwheel_cluster::membership::{self, MembershipError, View};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::{SegmentEntry, owner_of_object};
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::record::Version;
use cartwheel_core::ring::Ring;
use cartwheel_segments::hints::{hint_prefix, parse_hint_object};
use cartwheel_segments::inventory::{Inventory, State};
use cartwheel_segments::{RecordKey, Segment, SegmentError, Segments};

use super::BucketArgs;
use super::show::{answer, clock, container_value, name, put_name, sibling_line};
use crate::client::{Exit, Failure, Format, Output, printable};

/// The block cache: nothing here is read twice but blocks that hold several records of one hash.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// Objects that are looked into at once.
const AT_ONCE: usize = 16;
/// What this command can't see.
const BLIND: &str = "What storage nodes hold only in memory or in their logs is not seen here.";

/// Options of `cartwheel inspect why`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel inspect why carts alice\n  cartwheel inspect why carts alice -o json | jq .merged\n\nFilters and ranges tell which objects to look into; nothing is scanned."
)]
pub struct WhyArgs {
    /// The namespace
    #[arg(value_parser = crate::client::namespace)]
    pub namespace: String,
    /// The key, 1 to 1024 bytes, taken as it is
    pub key: OsString,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub bucket: BucketArgs,
}

/// An object that knows the key.
#[derive(Debug)]
struct Found {
    object: String,
    state: &'static str,
    counts: bool,
    container: Container<Version>,
}

/// One home.
#[derive(Debug)]
struct Home {
    id: NodeId,
    /// Is it a home only once the pending change is done?
    to_come: bool,
    manifest: Option<u64>,
    /// Objects that there are, hints for it included.
    objects: usize,
    /// Objects whose range holds the key's hash.
    in_range: usize,
    found: Vec<Found>,
    wrong: Vec<String>,
    merged: Container<Version>,
}

/// The whole answer.
#[derive(Debug)]
struct Why {
    namespace: Namespace,
    key: Key,
    hash: KeyHash,
    partition: u32,
    partitions: u32,
    ring_version: u64,
    homes: Vec<Home>,
    merged: Container<Version>,
    now_ms: u64,
}

/// Runs `cartwheel inspect why`.
///
/// # Errors
/// Exit status 1 if there is no ring document, or if something that had to be read could not be; 2 for a bad key; 3 if
/// the bucket does not answer.
pub(super) async fn run(args: &WhyArgs, output: &mut Output) -> Result<Exit, Failure> {
    let key = Bytes::copy_from_slice(crate::client::key_bytes(&args.key)?);
    let key = Key::new(key).map_err(|error| Failure::usage(error.to_string()))?;
    let namespace =
        Namespace::new(args.namespace.as_bytes()).map_err(|error| Failure::usage(error.to_string()))?;
    let bucket = args.bucket.connect().await?;
    let why = gather(&bucket, namespace, key, Seams::real().clock.now_ms()).await?;
    match args.bucket.output {
        Format::Json => output.json(&why.value())?,
        Format::Text => output.raw(why.text().as_bytes())?,
    }
    Ok(if why.homes.iter().all(|home| home.wrong.is_empty()) { Exit::Done } else { Exit::Failed })
}

async fn gather(bucket: &SharedBucket, namespace: Namespace, key: Key, now_ms: u64) -> Result<Why, Failure> {
    let document = match membership::read_newest(&**bucket, 0).await {
        Ok(Some(document)) => document,
        Ok(None) => return Err(Failure::failed("--bucket: there is no ring document: no cluster is here")),
        Err(MembershipError::Bucket(error)) => return Err(super::failure(&error)),
        Err(error) => return Err(Failure::failed(format!("--bucket: {error}"))),
    };
    let view = View::new(document);
    let hash = KeyHash::of(view.document.hash_seed, &namespace, &key);
    let record_key = RecordKey::new(hash, &namespace, &key);
    let segments = Segments::new(Arc::clone(bucket), CACHE_BYTES);
    let mut homes = Vec::new();
    let mut merged = Container::default();
    for (id, to_come) in homes_of(&view, hash) {
        let home = look(bucket, &segments, &record_key, id, to_come).await?;
        merged.sync(home.merged.clone());
        homes.push(home);
    }
    let (partitions, ring_version) = (view.document.partitions, view.version());
    let partition = hash.partition(partitions);
    Ok(Why { namespace, key, hash, partition, partitions, ring_version, homes, merged, now_ms })
}

/// The key's homes in the order of its preference list, then those that a pending change will make.
fn homes_of(view: &View, hash: KeyHash) -> Vec<(NodeId, bool)> {
    let ids = |ring: &Ring| -> Vec<NodeId> {
        let list = ring.preference_list(hash);
        list.homes().iter().filter_map(|index| Some(ring.member(*index)?.id.clone())).collect()
    };
    let now = ids(&view.current);
    let next = if view.document.has_pending_change() { ids(&view.next) } else { Vec::new() };
    let to_come: Vec<NodeId> = next.into_iter().filter(|id| !now.contains(id)).collect();
    let now = now.into_iter().map(|id| (id, false));
    now.chain(to_come.into_iter().map(|id| (id, true))).collect()
}

async fn look(
    bucket: &SharedBucket,
    segments: &Segments,
    key: &RecordKey,
    id: NodeId,
    to_come: bool,
) -> Result<Home, Failure> {
    // Hints first: a home puts what it takes over into a segment of its own before it deletes the hint.
    let hints = list_all(&**bucket, &hint_prefix(&id)).await.map_err(|error| super::failure(&error))?;
    let inventory = Inventory::read(&**bucket, &id).await.map_err(|error| super::failure(&error))?;
    let mut objects: Vec<(Arc<Segment>, &'static str, bool, bool)> = Vec::new();
    for object in inventory.objects {
        let expected = matches!(object.state, State::Named | State::Grave);
        let counts = object.state.counts();
        let segment = segments.open(object.name, object.bytes, object.entry, None);
        objects.push((segment, object.state.word(), counts, expected));
    }
    for object in hints.into_iter().filter(|object| parse_hint_object(&object.key).is_some()) {
        objects.push((segments.open(object.key, object.size, None, None), "hint", true, false));
    }
    let mut home = Home {
        id,
        to_come,
        manifest: inventory.manifest.map(|dated| dated.manifest.version),
        objects: objects.len(),
        in_range: 0,
        found: Vec::new(),
        wrong: Vec::new(),
        merged: Container::default(),
    };
    home.wrong.extend(inventory.unreadable.map(|error| error.to_string()));
    let covers = |entry: &&SegmentEntry| entry.covers(key.hash);
    let missing = inventory.missing.iter().filter(covers);
    home.wrong.extend(missing.map(|entry| format!("{} is named and missing", entry.object)));
    objects.retain(|(segment, ..)| segment.covers(key.hash));
    home.in_range = objects.len();
    let looks = iter(objects).map(|(segment, state, counts, expected)| async move {
        let read = segments.read_in(&[Arc::clone(&segment)], key, None).await;
        // What was not known of it before is now.
        let in_range = segment.covers(key.hash);
        match read {
            Ok(container) => {
                Ok((Ok(Found { object: segment.object.clone(), state, counts, container }), in_range))
            }
            // Its home has taken it over, or it was dropped and deleted.
            Err(error) if error.is_missing() && !expected => Ok((Err(None), false)),
            Err(error) if error.is_missing() => Ok((Err(Some(error.to_string())), in_range)),
            Err(SegmentError::Bucket(error)) if error.is_retryable() => Err(super::failure(&error)),
            Err(error) => Ok((Err(Some(error.to_string())), in_range)),
        }
    });
    let looked: Vec<(Result<Found, Option<String>>, bool)> = looks.buffered(AT_ONCE).try_collect().await?;
    home.in_range = looked.iter().filter(|(_, in_range)| *in_range).count();
    for (found, _) in looked {
        match found {
            Ok(found) if found.container.seen().is_empty() => {}
            Ok(found) => {
                if found.counts {
                    home.merged.sync(found.container.clone());
                }
                home.found.push(found);
            }
            Err(wrong) => home.wrong.extend(wrong),
        }
    }
    Ok(home)
}

impl Home {
    fn value(&self, now_ms: u64) -> Value {
        let found = self.found.iter().map(|found| {
            let mut value = container_value(&found.container);
            value["object"] = Value::from(found.object.clone());
            value["owner"] = Value::from(owner_of_object(&found.object));
            value["state"] = Value::from(found.state);
            value["counts"] = Value::from(found.counts);
            value
        });
        json!({
            "id": self.id,
            "to_come": self.to_come,
            "manifest_version": self.manifest,
            "objects": self.objects,
            "objects_in_range": self.in_range,
            "found": found.collect::<Vec<_>>(),
            "errors": self.wrong,
            "merged": merged_value(&self.merged, now_ms),
        })
    }

    fn text(&self, number: usize, now_ms: u64) -> String {
        let role = if self.to_come { "home to come".to_owned() } else { format!("home {number}") };
        let manifest = self.manifest.map_or_else(|| "no manifest".to_owned(), |v| format!("manifest {v}"));
        let mut text = format!(
            "\n{role}: {}, {manifest}; {} objects, {} with the key's hash in their range, {} with the key\n",
            self.id,
            self.objects,
            self.in_range,
            self.found.len()
        );
        for wrong in &self.wrong {
            text.push_str(&format!("  NOT READ  {}\n", printable(wrong)));
        }
        for found in &self.found {
            let leaves = match owner_of_object(&found.object) {
                Some(owner) if owner != self.id.as_str() => format!(" (borrowed from {owner})"),
                _ if found.counts => String::new(),
                _ => " (does not count)".to_owned(),
            };
            text.push_str(&format!(
                "  {:<8}  {}{leaves}\n            clock {}\n",
                found.state,
                found.object,
                clock(&found.container)
            ));
            for sibling in found.container.siblings() {
                text.push_str(&format!("            {}\n", sibling_line(sibling)));
            }
        }
        text.push_str(&merged_text("  this home alone", &self.merged, now_ms));
        text
    }
}

impl Why {
    fn value(&self) -> Value {
        let homes: Vec<Value> = self.homes.iter().map(|home| home.value(self.now_ms)).collect();
        let mut value = json!({
            "hash": self.hash,
            "partition": self.partition,
            "partitions": self.partitions,
            "ring_version": self.ring_version,
            "preference_list": self.homes.iter().filter(|h| !h.to_come).map(|h| h.id.as_str()).collect::<Vec<_>>(),
            "homes": homes,
            "merged": merged_value(&self.merged, self.now_ms),
            "note": BLIND,
        });
        put_name(&mut value, &self.namespace, &self.key);
        value
    }

    fn text(&self) -> String {
        let homes: Vec<&str> = self.homes.iter().filter(|h| !h.to_come).map(|h| h.id.as_str()).collect();
        let mut text = format!(
            "key        {}\nhash       {}\npartition  {} of {}, ring version {}\nhomes      {}\n",
            name(&self.namespace, &self.key),
            self.hash,
            self.partition,
            self.partitions,
            self.ring_version,
            homes.join(" ")
        );
        for (at, home) in self.homes.iter().enumerate() {
            text.push_str(&home.text(at + 1, self.now_ms));
        }
        text.push('\n');
        text.push_str(&merged_text("all homes together", &self.merged, self.now_ms));
        for sibling in self.merged.siblings() {
            text.push_str(&format!("  {}\n", sibling_line(sibling)));
        }
        text.push_str(&format!("\n{BLIND}\n"));
        text
    }
}

fn merged_value(merged: &Container<Version>, now_ms: u64) -> Value {
    let (status, words) = answer(merged, now_ms);
    let mut value = container_value(merged);
    value["status"] = Value::from(status);
    value["answer"] = Value::from(words);
    value
}

fn merged_text(title: &str, merged: &Container<Version>, now_ms: u64) -> String {
    let (_, words) = answer(merged, now_ms);
    let mut text = format!("{title}: {words}");
    if !merged.seen().is_empty() {
        text.push_str(&format!("; clock {}", clock(merged)));
        let dots: Vec<String> = merged.siblings().iter().map(|s| s.dot.to_string()).collect();
        if !dots.is_empty() {
            text.push_str(&format!("; siblings {}", dots.join(", ")));
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use cartwheel_bucket::Bucket;

    use super::super::testing::World;
    use super::*;

    const NOW: u64 = 1_700_000_100_000;

    async fn why(world: &World, key: &str) -> Why {
        let bucket: SharedBucket = world.bucket.clone();
        let key = Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap();
        gather(&bucket, Namespace::new(b"carts").unwrap(), key, NOW).await.unwrap()
    }

    fn home<'a>(why: &'a Why, id: &str) -> &'a Home {
        why.homes.iter().find(|home| home.id.as_str() == id).unwrap()
    }

    fn dots(container: &Container<Version>) -> Vec<String> {
        container.siblings().iter().map(|s| s.dot.to_string()).collect()
    }

    #[tokio::test]
    async fn every_object_that_knows_the_key_is_shown_and_what_counts_is_merged() {
        let world = World::new().await;
        let why = why(&world, "alice").await;
        assert_eq!(why.homes.len(), 3);
        let a = home(&why, "node-a");
        let states: BTreeSet<(&str, bool)> = a.found.iter().map(|f| (f.state, f.counts)).collect();
        let wanted =
            [("dropped", false), ("hint", true), ("named", true), ("orphan", false), ("unknown", true)];
        assert_eq!(states, BTreeSet::from(wanted));
        assert_eq!(
            dots(&a.merged),
            ["node-a.1=2", "node-c.2=1"],
            "eggs replaced milk; bread waits as a hint"
        );
        assert_eq!(dots(&home(&why, "node-b").merged), ["node-a.1=1"]);
        assert_eq!(answer(&home(&why, "node-c").merged, NOW).0, 404);
        assert_eq!(dots(&why.merged), ["node-a.1=2", "node-c.2=1"]);
        let text = why.text();
        for part in ["300: 2 siblings", "404: never seen", "(does not count)", BLIND, "ring version 1"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let value = why.value();
        assert_eq!((&value["merged"]["status"], &value["key"]), (&300.into(), &"alice".into()));
        assert_eq!(value["preference_list"].as_array().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn graves_and_keys_that_nobody_knows() {
        let world = World::new().await;
        let gone = why(&world, "gone").await;
        let a = home(&gone, "node-a");
        assert_eq!(a.found.iter().map(|f| (f.state, f.counts)).collect::<Vec<_>>(), [("grave", true)]);
        assert_eq!(answer(&gone.merged, NOW).1, "404: deleted or expired");
        let never = why(&world, "nobody").await;
        assert!(never.homes.iter().all(|home| home.found.is_empty() && home.wrong.is_empty()));
        assert_eq!(answer(&never.merged, NOW).1, "404: never seen");
        assert!(home(&never, "node-a").in_range < home(&never, "node-a").objects, "ranges leave some out");
    }

    #[tokio::test]
    async fn what_is_borrowed_counts_within_its_ranges() {
        let world = World::new().await;
        let (object, part) = world.lend("node-b").await;
        let mut shown = [0, 0];
        for n in 0..40 {
            let why = why(&world, &format!("key-{n}")).await;
            let b = home(&why, "node-b");
            let is_shown = b.found.iter().any(|found| found.object == object);
            let is_in = home(&why, "node-a").found.iter().any(|found| found.object == object);
            assert_eq!(is_shown, is_in && part.covers(why.hash), "key-{n}");
            assert_eq!(is_shown, why.text().contains("(borrowed from node-a)"));
            shown[usize::from(is_shown)] += 1;
        }
        assert!(shown[0] > 20 && shown[1] > 3, "{shown:?}");
    }

    #[tokio::test]
    async fn what_can_not_be_read_is_said() {
        let world = World::new().await;
        world.flip(&world.named, 20).await;
        world.bucket.delete(&world.compacted[0]).await.unwrap();
        let text = why(&world, "alice").await.text();
        assert!(text.contains("NOT READ") && text.contains("checksum mismatch in segment block"), "{text}");
        let lost: Vec<bool> =
            [why(&world, "key-1").await, why(&world, "key-2").await, why(&world, "key-3").await]
                .iter()
                .map(|why| why.text().contains("is named and missing"))
                .collect();
        assert!(lost.contains(&true), "{lost:?}");
    }

    #[tokio::test]
    async fn without_a_ring_there_are_no_homes() {
        let bucket: SharedBucket = Arc::new(cartwheel_bucket::MemoryBucket::new());
        let key = Key::new(Bytes::from_static(b"alice")).unwrap();
        let failed = gather(&bucket, Namespace::new(b"carts").unwrap(), key, NOW).await.unwrap_err();
        assert!(failed.message.contains("no ring document"), "{failed:?}");
    }
}
