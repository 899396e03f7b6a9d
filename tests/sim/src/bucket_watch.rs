//! P11: nothing is deleted from the bucket that a manifest, a pin, a hint or a recovery can need. Judged at the moment of
//! each deletion from the objects and disks as they are, by rules of its own:
//!
//! - a segment goes only if no node's newest manifest names it, no pin that took hold is on it, and its node, where it
//!   is home of a key in it, has all that it says of the key in other segments;
//! - a hint goes only if its home has it in segments or on its disk; if the home is no member any more, or no home of
//!   the key and has it not, so many homes of the key have it that each read quorum shows it;
//! - a manifest, and settings of a namespace, go only if there are newer ones; a tree only if another is there;
//! - a pin goes only if its holder's manifest does not name what it is on, or another pin of the holder is on it;
//! - nothing else goes.
//!
//! And a process writes no manifest after that of a newer process of its node: what that one has is not in it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cartwheel_bucket::{Bucket, BucketError, Created, Listing};
use cartwheel_core::manifest::Manifest;
use cartwheel_core::record::Record;
use cartwheel_segments::hints::parse_hint_object;
use cartwheel_segments::inventory::Kind;
use cartwheel_segments::pins::Pin;

use crate::report::Check;
use crate::sight::Sight;
use crate::world::Objects;
use crate::world::lock::Lock;

/// How many of three homes must have something for each read quorum to show it.
const QUORUM: usize = 2;

/// The bucket, watched.
#[derive(Debug)]
pub struct Watched {
    inner: Arc<Objects>,
    sight: Arc<Sight>,
    /// Pins, each with the objects on which it took hold: those that a manifest named when it was put.
    pins: Lock<BTreeSet<(String, String)>>,
}

impl Watched {
    /// Around `inner`.
    pub fn new(inner: Arc<Objects>, sight: Arc<Sight>) -> Self {
        Self { inner, sight, pins: Lock::default() }
    }

    /// A pin was put. It holds what some manifest names now; what is in none may be on its way out already, and whoever
    /// put the pin will see that.
    fn pinned(&self, name: &str, body: &Bytes) {
        let Some(pin) = pin(name, body) else { return };
        let named = named_by_any(&self.sight);
        let held = pin.objects.into_iter().filter(|object| named.iter().any(|(_, n)| n == object));
        self.pins.lock().extend(held.map(|object| (name.to_owned(), object)));
    }

    /// A manifest is to be created: who writes after the newest one must not be older than who wrote that.
    fn succeeds(&self, name: &str, body: &Bytes) {
        let ["nodes", node, "manifest", _] = name.split('/').collect::<Vec<_>>()[..] else { return };
        let newest = self.sight.manifest(node).filter(|newest| {
            let newest = Manifest::object_name(&newest.node, newest.version);
            newest.as_str() < name && self.sight.object(name).is_none()
        });
        if let (Some(newest), Ok(next)) = (newest, Manifest::parse(body))
            && next.epoch < newest.epoch
        {
            let (old, new) = (next.epoch, newest.epoch);
            self.sight.violate(Check::Objects, &format!("{name} is written under epoch {old}, after {new}"));
        }
    }

    fn look(&self, name: &str) {
        if self.sight.object(name).is_none() {
            return;
        }
        let pins = self.pins.lock().clone();
        for what in needed(&self.sight, name, &pins) {
            self.sight.violate(Check::Objects, &format!("{name} is deleted: {what}"));
        }
    }
}

fn pin(name: &str, body: &Bytes) -> Option<Pin> {
    name.contains("/pins/").then(|| serde_json::from_slice(body).ok())?
}

/// All that the newest manifests name: whose, and what.
fn named_by_any(sight: &Sight) -> Vec<(String, String)> {
    let manifests = sight.nodes().into_iter().filter_map(|node| Some((sight.manifest(&node)?, node)));
    let named = manifests.flat_map(|(manifest, node)| {
        let entries = manifest.segments.into_iter().chain(manifest.graves);
        entries.map(move |entry| (node.clone(), entry.object))
    });
    named.collect()
}

/// Why an object is needed that is about to be deleted.
pub fn needed(sight: &Sight, name: &str, pins: &BTreeSet<(String, String)>) -> Vec<String> {
    let Some(ring) = sight.ring() else { return vec!["there is no ring yet".to_owned()] };
    let is_member = |id: &str| ring.document.members.iter().any(|m| m.id.as_str() == id);
    let parts: Vec<&str> = name.split('/').collect();
    let newer = |prefix: String| sight.names(&prefix).last().is_some_and(|last| last.as_str() > name);
    match parts.as_slice() {
        _ if parse_hint_object(name).is_some() => hint_is_needed(sight, name),
        ["nodes", node, ..] if Kind::of_object(name).is_some() => {
            let mut why: Vec<String> = Vec::new();
            for (by, object) in named_by_any(sight) {
                if object == name && is_member(&by) {
                    why.push(format!("the manifest of {by} names it"));
                }
            }
            let held = pins.iter().filter(|(pin, object)| object == name && sight.object(pin).is_some());
            why.extend(held.map(|(pin, _)| format!("{pin} is on it")));
            if is_member(node) {
                let records = sight.records_in(name);
                let lacks = records.iter().filter(|r| {
                    let held = sight.held_by(node, &r.namespace, &r.key, Some(name), false);
                    ring.homes(&r.namespace, &r.key).contains(*node) && !held.includes(&r.container)
                });
                why.extend(lacks.map(|record| format!("{node} has {} nowhere else", said(record))));
            }
            why
        }
        ["nodes", node, "pins", _] => {
            let Some(pin) = sight.object(name).and_then(|body| pin(name, &body)) else { return Vec::new() };
            let holder = pin.holder.to_string();
            let named = named_by_any(sight);
            let others = pins.iter().filter(|(other, _)| {
                other != name && other.starts_with(&format!("nodes/{node}/pins/{holder}-"))
            });
            let kept: BTreeSet<&String> =
                others.filter(|(other, _)| sight.object(other).is_some()).map(|(_, object)| object).collect();
            let bare = pin.objects.iter().filter(|object| {
                let uses = named.iter().any(|(by, n)| *by == holder && n == *object);
                is_member(&holder) && uses && !kept.contains(object)
            });
            bare.map(|object| format!("the manifest of {holder} names {object} still")).collect()
        }
        ["nodes", node, "manifest", _] if newer(format!("nodes/{node}/manifest/")) => Vec::new(),
        ["nodes", node, folder @ "merkle", ..] => {
            let others = sight.names(&format!("nodes/{node}/{folder}/"));
            let alone = others.iter().all(|other| other == name);
            if alone { vec!["it is the only tree".to_owned()] } else { Vec::new() }
        }
        ["namespaces", namespace, _] if newer(format!("namespaces/{namespace}/")) => Vec::new(),
        // Probes of what the store can do.
        ["probe", ..] => Vec::new(),
        _ => vec!["nothing may delete it".to_owned()],
    }
}

fn said(record: &Record) -> String {
    let key = String::from_utf8_lossy(record.key.as_bytes());
    format!("{}/{key} {}", record.namespace.as_str(), record.container.seen())
}

/// Hints of a home are taken once they are where the home, or whoever is home instead, finds them after any crash. A
/// member that is no home of the key any more gives what it has to those that are before it forgets it.
fn hint_is_needed(sight: &Sight, name: &str) -> Vec<String> {
    let (Some(hint), Some(ring)) = (parse_hint_object(name), sight.ring()) else { return Vec::new() };
    let home = hint.home.to_string();
    let is_member = ring.document.members.iter().any(|member| member.id == hint.home);
    let mut why = Vec::new();
    for record in sight.records_in(name).iter() {
        let has = |node: &String| {
            let held = sight.held_by(node, &record.namespace, &record.key, None, true);
            // Or it finds it in another object that is kept for it.
            let kept = sight.names(&format!("hints/{node}/"));
            let mut kept = kept.iter().filter(|other| *other != name);
            let same = |other: &Record| other.namespace == record.namespace && other.key == record.key;
            held.includes(&record.container)
                || kept.any(|other| {
                    let records = sight.records_in(other);
                    records.iter().any(|other| same(other) && other.container.includes(&record.container))
                })
        };
        let homes = ring.homes(&record.namespace, &record.key);
        if is_member && (homes.contains(&home) || has(&home)) {
            if !has(&home) {
                why.push(format!("{home} does not have {}", said(record)));
            }
            continue;
        }
        // A home that learns only now that it is none any more may have taken it: every read quorum must show it.
        let (have, lack): (Vec<_>, Vec<_>) = homes.iter().partition(|node| has(node));
        if have.len() < QUORUM {
            why.extend(lack.iter().map(|node| format!("{node} does not have {}", said(record))));
        }
    }
    why
}

#[async_trait]
impl Bucket for Watched {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.inner.get_range(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        let outcome = self.inner.put(key, body.clone()).await;
        if outcome.is_ok() {
            self.sight.forget(key);
            self.pinned(key, &body);
        }
        outcome
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.succeeds(key, &body);
        self.inner.create(key, body).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.look(key);
        let outcome = self.inner.delete(key).await;
        self.sight.forget(key);
        self.sight.deleted(key);
        self.pins.lock().retain(|(pin, _)| pin != key);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use cartwheel_core::clock::{Actor, Clock, Dot};
    use cartwheel_core::container::Container;
    use cartwheel_core::hash::KeyHash;
    use cartwheel_core::manifest::SegmentEntry;
    use cartwheel_core::names::{Key, Namespace, NodeId};
    use cartwheel_core::record::Brief;
    use cartwheel_core::segment::SegmentBuilder;
    use futures_util::FutureExt;

    use super::*;
    use crate::cluster::Place;
    use crate::world::Bug;

    /// A cluster of three, each of them home of every key.
    fn place() -> Place {
        let place = Place::new(1, Bug::None);
        place.found(&["node-a", "node-b", "node-c"]);
        place
    }

    fn put(place: &Place, name: &str, body: Bytes) {
        place.objects.put(name, body).now_or_never().unwrap().unwrap();
    }

    /// A segment with one record that has seen the first `n` writes.
    fn segment(place: &Place, name: &str, n: u64) -> SegmentEntry {
        let mut seen = Clock::new();
        (1..=n).for_each(|n| seen.insert(&Dot { actor: Actor::parse("node-a.1").unwrap(), n }));
        let (namespace, key) = (Namespace::new(b"carts").unwrap(), Key::new("k".into()).unwrap());
        let seed = place.sight.ring().unwrap().document.hash_seed;
        let hash = KeyHash::of(seed, &namespace, &key);
        let record = Record { namespace, key, container: Container::from_parts(seen, Vec::new()) };
        let mut builder = SegmentBuilder::new();
        builder.push(hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
        let built = builder.finish().unwrap();
        put(place, name, built.bytes.clone());
        SegmentEntry::of(name.to_owned(), &built)
    }

    fn manifest(place: &Place, node: &str, version: u64, segments: &[&SegmentEntry]) {
        let node = NodeId::new(node).unwrap();
        let mut manifest = Manifest::new(node.clone(), version, 1, "x".to_owned(), 0);
        manifest.segments = segments.iter().map(|entry| (*entry).clone()).collect();
        put(place, &Manifest::object_name(&node, version), manifest.to_json().into());
    }

    fn delete(place: &Place, name: &str) -> Vec<String> {
        place.objects.delete(name).now_or_never().unwrap().unwrap();
        place.sight.take_violations().into_iter().map(|violation| violation.what).collect()
    }

    #[test]
    fn a_segment_that_is_named_or_pinned_or_alone_is_needed() {
        let place = place();
        let (old, new) = ("nodes/node-a/c/01/0000000001.seg", "nodes/node-a/c/02/0000000001.seg");
        let less = segment(&place, old, 1);
        manifest(&place, "node-a", 1, &[&less]);
        assert!(delete(&place, old)[0].contains("names it"));
        let less = segment(&place, old, 2);
        let more = segment(&place, new, 2);
        manifest(&place, "node-a", 2, &[&less, &more]);
        let pin = Pin {
            holder: NodeId::new("node-b").unwrap(),
            nonce: "n".to_owned(),
            objects: BTreeSet::from([old.to_owned()]),
        };
        let named = pin.object_name(&NodeId::new("node-a").unwrap());
        put(&place, &named, serde_json::to_vec(&pin).unwrap().into());
        manifest(&place, "node-a", 3, &[&more]);
        assert!(delete(&place, old)[0].contains("is on it"));
        assert_eq!(delete(&place, &named), Vec::<String>::new());
        // Whoever pins what is in no manifest sees that, and the object may go.
        let less = segment(&place, old, 2);
        put(&place, &named, serde_json::to_vec(&pin).unwrap().into());
        assert_eq!(delete(&place, old), Vec::<String>::new());
        // A borrower's pin goes only after its manifest does not name the object.
        manifest(&place, "node-b", 1, &[&less]);
        assert!(delete(&place, &named)[0].contains("names nodes/node-a"));
        // What it says is nowhere else.
        segment(&place, old, 3);
        assert!(delete(&place, old).iter().any(|what| what.contains("nowhere else")));
    }

    #[test]
    fn a_hint_is_needed_until_its_home_has_it() {
        let place = place();
        let hint = "hints/node-b/node-c-0000000001-00000000000000aa/0000000001.seg";
        segment(&place, hint, 2);
        assert!(delete(&place, hint)[0].contains("node-b does not have"));
        segment(&place, hint, 2);
        segment(&place, "nodes/node-b/f/0000000001-aa/0000000001.seg", 1);
        assert!(delete(&place, hint)[0].contains("node-b does not have"));
        segment(&place, hint, 2);
        segment(&place, "nodes/node-b/f/0000000001-aa/0000000002.seg", 2);
        assert_eq!(delete(&place, hint), Vec::<String>::new());
        let gone = "hints/node-z/node-c-0000000001-00000000000000aa/0000000001.seg";
        segment(&place, gone, 2);
        assert!(delete(&place, gone)[0].contains("node-a does not have"));
    }

    #[test]
    fn a_process_that_was_replaced_writes_no_manifest() {
        let place = place();
        let node = NodeId::new("node-a").unwrap();
        let create = |version, epoch| {
            let manifest = Manifest::new(node.clone(), version, epoch, "x".to_owned(), 0);
            let name = Manifest::object_name(&node, version);
            let created = place.objects.create(&name, manifest.to_json().into()).now_or_never();
            created.unwrap().unwrap();
            place.sight.take_violations().len()
        };
        assert_eq!([create(1, 1), create(2, 3), create(3, 3), create(4, 2)], [0, 0, 0, 1]);
        assert_eq!(create(3, 1), 0, "that name is taken");
    }

    #[test]
    fn the_newest_of_each_kind_is_needed_and_nothing_else_goes() {
        let place = place();
        manifest(&place, "node-a", 1, &[]);
        manifest(&place, "node-a", 2, &[]);
        let name = |n| Manifest::object_name(&NodeId::new("node-a").unwrap(), n);
        assert_eq!(delete(&place, &name(1)), Vec::<String>::new());
        assert_eq!(delete(&place, &name(2)).len(), 1);
        for tree in ["nodes/node-a/merkle/1", "nodes/node-a/merkle/2"] {
            put(&place, tree, Bytes::new());
        }
        assert_eq!(delete(&place, "nodes/node-a/merkle/1"), Vec::<String>::new());
        assert_eq!(delete(&place, "nodes/node-a/merkle/2").len(), 1);
        let ring = place.sight.names("ring/").pop().unwrap();
        assert_eq!(delete(&place, &ring).len(), 1);
        assert_eq!(delete(&place, "nodes/node-a/merkle/9"), Vec::<String>::new(), "it is not there");
    }
}
