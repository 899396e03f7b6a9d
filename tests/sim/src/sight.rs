//! What is where: all disks and all objects as they really are, read with the product's own codecs and apart from its
//! processes. Those who check ask here; nobody who is simulated does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cartwheel_bucket::{Bucket, SharedBucket, list_all};
use cartwheel_core::clock::Dot;
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::Manifest;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::record::{Record, Version};
use cartwheel_core::ring::{Ring, RingDocument};
use cartwheel_segments::hints::parse_hint_object;
use cartwheel_segments::inventory::Kind;
use cartwheel_segments::records_of;
use cartwheel_storage_node::disk::Disk;
use futures_util::FutureExt;

use crate::bucket_watch::Watched;
use crate::limits::{Asked, Starts};
use crate::promised::Promises;
use crate::report::{Check, Violation};
use crate::world::lock::Lock;
use crate::world::{Objects, SimDisk};

/// What every file of a log begins with.
const LOG_MAGIC: &[u8] = b"CWLOG001";
/// What files of the log of hints are called.
const HINT_LOG: &str = "hints-";

/// How long a home may take to vote again once it has let go of hints: another round, mostly.
const CATCHING_UP: Duration = Duration::from_secs(1);

/// Where a record lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// Who holds it: a storage node, or the gateway that put it into an inbox.
    pub holder: String,
    /// Whose home's copy it is: the holder's own, or that of the home that it is kept for.
    pub home: String,
    /// In an object; otherwise on the holder's disk.
    pub in_bucket: bool,
}

/// All of it.
#[derive(Debug)]
pub struct Sight {
    objects: Arc<Objects>,
    /// By the machine that they are in; each is the disk of a storage node.
    disks: Lock<BTreeMap<String, (String, Arc<SimDisk>)>>,
    /// Objects never change: what was read of one stays right until it is deleted.
    records: Lock<BTreeMap<String, Arc<Vec<Record>>>>,
    /// The ring of a version, and the one to come.
    rings: Lock<BTreeMap<String, Arc<Rings>>>,
    /// What is owed of what was acknowledged.
    pub promises: Lock<Promises>,
    /// What it takes to start.
    pub starts: Lock<Starts>,
    /// When the last object with hints was deleted.
    hints_gone: Lock<Duration>,
    /// Storage nodes of which a process ended in an orderly way.
    orderly: Lock<BTreeSet<String>>,
    violations: Lock<Vec<Violation>>,
}

/// A ring document and what it means.
#[derive(Debug)]
pub struct Rings {
    /// The document.
    pub document: RingDocument,
    /// Who is home now.
    pub current: Ring,
    /// Who is home once the pending change is done.
    pub next: Ring,
}

impl Rings {
    /// The homes of a key that are read from. Those to come take over what they lack before it is their turn.
    pub fn homes(&self, namespace: &Namespace, key: &Key) -> BTreeSet<String> {
        let ring = if self.document.copied { &self.next } else { &self.current };
        let list = ring.preference_list(KeyHash::of(self.document.hash_seed, namespace, key));
        list.homes().iter().filter_map(|i| ring.member(*i)).map(|m| m.id.to_string()).collect()
    }
}

/// A process lives; dropped without [`Life::ended`], it died.
#[derive(Debug)]
pub struct Life {
    sight: Arc<Sight>,
    who: &'static str,
    ended: bool,
}

impl Life {
    /// It ended in an orderly way.
    pub fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if self.ended {
            self.sight.orderly.lock().insert(self.who.to_owned());
        } else {
            self.sight.died(self.who);
        }
    }
}

impl Sight {
    /// Of these objects, and of no disk yet.
    pub fn new(objects: Arc<Objects>) -> Arc<Self> {
        Arc::new(Self {
            objects,
            disks: Lock::default(),
            records: Lock::default(),
            rings: Lock::default(),
            promises: Lock::default(),
            starts: Lock::default(),
            hints_gone: Lock::default(),
            orderly: Lock::default(),
            violations: Lock::default(),
        })
    }

    /// An object was deleted.
    pub fn deleted(&self, name: &str) {
        if name.starts_with("hints/") {
            *self.hints_gone.lock() = turmoil::sim_elapsed().unwrap_or_default();
        }
    }

    /// Were there hints in the bucket at `time`, or are there some? A home that finds some catches up, and others stand in
    /// for it as long as that takes.
    pub fn had_hints_since(&self, time: Duration) -> bool {
        *self.hints_gone.lock() + CATCHING_UP >= time || !self.names("hints/").is_empty()
    }

    /// Did a process of this storage node end in an orderly way?
    pub fn ended_orderly(&self, node: &str) -> bool {
        self.orderly.lock().contains(node)
    }

    /// The bucket in which nothing is deleted unseen.
    pub fn watched(self: &Arc<Self>) -> SharedBucket {
        Arc::new(Watched::new(Arc::clone(&self.objects), Arc::clone(self)))
    }

    /// Counts what `who` asks of the bucket.
    pub fn asked(&self, who: &str) -> Arc<Lock<Asked>> {
        self.starts.lock().asked(who)
    }

    /// The machine has this disk from now on, that of the storage node `id`; if it had another, that is gone with all that
    /// is on it.
    pub fn has_disk(&self, machine: &str, id: &str, disk: &Arc<SimDisk>) {
        let before = self.disks.lock().insert(machine.to_owned(), (id.to_owned(), Arc::clone(disk)));
        if let Some((of, before)) = before.filter(|(_, before)| !Arc::ptr_eq(before, disk)) {
            self.is_lost(&of, &before);
        }
    }

    /// The machine is gone for good, and its disk with it.
    pub fn has_no_disk(&self, machine: &str) {
        let before = self.disks.lock().remove(machine);
        if let Some((of, before)) = before {
            self.is_lost(&of, &before);
        }
    }

    fn is_lost(&self, of: &str, disk: &SimDisk) {
        let lost = records_on(of, disk);
        if !lost.is_empty() {
            self.promises.lock().disk_is_lost(&lost, &self.everything());
        }
    }

    /// A process of `who` begins.
    pub fn begins(self: &Arc<Self>, who: &'static str) -> Life {
        Life { sight: Arc::clone(self), who, ended: false }
    }

    /// It tries to start, once more perhaps.
    pub fn starts(&self, who: &str) {
        self.starts.lock().begins(who);
    }

    /// It serves.
    pub fn serves(&self, who: &str) {
        let taken = self.starts.lock().serves(who);
        if let Some(what) = taken.and_then(|taken| taken.too_much()) {
            self.violate(Check::Limit, &format!("{who} serves after {what}"));
        }
    }

    fn died(&self, who: &str) {
        self.promises.lock().process_died(who, || self.everything());
    }

    /// Something is wrong.
    pub fn violate(&self, check: Check, what: &str) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let what = format!("{:.3} s: {what}", at.as_secs_f64());
        self.violations.lock().push(Violation { check, what });
    }

    /// What was found wrong so far, taken.
    pub fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut self.violations.lock())
    }

    /// The names of all objects below `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let listed = list_all(&*self.objects, prefix).now_or_never().unwrap().unwrap();
        listed.into_iter().map(|listed| listed.key).collect()
    }

    /// An object as it is.
    pub fn object(&self, name: &str) -> Option<Bytes> {
        self.objects.get(name).now_or_never().unwrap().ok()
    }

    /// An object is gone.
    pub fn forget(&self, name: &str) {
        self.records.lock().remove(name);
    }

    /// All records of a segment; none if it can't be read.
    pub fn records_in(&self, name: &str) -> Arc<Vec<Record>> {
        if let Some(known) = self.records.lock().get(name) {
            return Arc::clone(known);
        }
        let bytes = self.object(name).unwrap_or_default();
        let records = records_of(&bytes).unwrap_or_default();
        let records: Arc<Vec<Record>> =
            Arc::new(records.iter().filter_map(|bytes| Record::decode(bytes).ok()).collect());
        self.records.lock().insert(name.to_owned(), Arc::clone(&records));
        records
    }

    /// The newest ring.
    pub fn ring(&self) -> Option<Arc<Rings>> {
        let name = self.names("ring/").pop()?;
        if let Some(known) = self.rings.lock().get(&name) {
            return Some(Arc::clone(known));
        }
        let document = RingDocument::parse(&self.object(&name)?).ok()?;
        let (current, next) = (Ring::current(&document), Ring::next(&document));
        let rings = Arc::new(Rings { document, current, next });
        self.rings.lock().insert(name, Arc::clone(&rings));
        Some(rings)
    }

    /// The newest manifest of a node.
    pub fn manifest(&self, node: &str) -> Option<Manifest> {
        let name = self.names(&format!("nodes/{node}/manifest/")).pop()?;
        Manifest::parse(&self.object(&name)?).ok()
    }

    /// All nodes that have anything in the bucket.
    pub fn nodes(&self) -> BTreeSet<String> {
        let names = self.names("nodes/");
        names.iter().filter_map(|name| Some(name.split('/').nth(1)?.to_owned())).collect()
    }

    /// The segments of `node` that count: those that its manifest names, parts of others' among them, and flushes that no
    /// manifest has heard of.
    pub fn counted(&self, node: &str) -> Vec<String> {
        let manifest = self.manifest(node);
        let mut counted = BTreeSet::new();
        let mut dropped = BTreeSet::new();
        if let Some(manifest) = &manifest {
            counted.extend(manifest.segments.iter().chain(&manifest.graves).map(|e| e.object.clone()));
            dropped.extend(manifest.dropped.iter().map(|d| d.object.clone()));
        }
        let unknown = |name: &String| {
            let taken = manifest.as_ref().is_some_and(|m| m.has_taken(name));
            Kind::of_object(name) == Some(Kind::Flushed) && !dropped.contains(name) && !taken
        };
        counted.extend(self.names(&format!("nodes/{node}/f/")).into_iter().filter(unknown));
        counted.into_iter().collect()
    }

    /// What `node` holds of a key, in its segments that count but `without`, and on its disk.
    pub fn held_by(
        &self,
        node: &str,
        namespace: &Namespace,
        key: &Key,
        without: Option<&str>,
        disk: bool,
    ) -> Container<Version> {
        let mut held = Container::default();
        let is_it = |record: &&Record| record.namespace == *namespace && record.key == *key;
        for name in self.counted(node).iter().filter(|name| Some(name.as_str()) != without) {
            for record in self.records_in(name).iter().filter(is_it) {
                held.sync(record.container.clone());
            }
        }
        for (id, on) in self.disks.lock().values().filter(|_| disk) {
            for (place, record) in &records_on(id, on) {
                if place.home == node && is_it(&record) {
                    held.sync(record.container.clone());
                }
            }
        }
        held
    }

    /// Every record there is, and where.
    pub fn everything(&self) -> Vec<(Held, Record)> {
        self.all(|_| true)
    }

    /// Where a version lies, or something that has seen it.
    pub fn holders(&self, namespace: &Namespace, key: &Key, dot: &Dot) -> BTreeSet<Held> {
        let is_it =
            |r: &Record| r.namespace == *namespace && r.key == *key && r.container.seen().contains(dot);
        self.all(is_it).into_iter().map(|(held, _)| held).collect()
    }

    fn all(&self, wanted: impl Fn(&Record) -> bool) -> Vec<(Held, Record)> {
        let mut all = Vec::new();
        for (id, disk) in self.disks.lock().values() {
            all.extend(records_on(id, disk).into_iter().filter(|(_, record)| wanted(record)));
        }
        for name in self.names("nodes/").iter().chain(&self.names("hints/")) {
            let Some(held) = place_of(name) else { continue };
            let records = self.records_in(name);
            let found = records.iter().filter(|record| wanted(record));
            all.extend(found.map(|record| (held.clone(), record.clone())));
        }
        all
    }
}

/// Whose copy the content of an object is; `None` if it is no segment, or counts for nothing.
fn place_of(name: &str) -> Option<Held> {
    if let Some(hint) = parse_hint_object(name) {
        let (holder, home) = (hint.holder.to_string(), hint.home.to_string());
        return Some(Held { holder, home, in_bucket: true });
    }
    let kind = Kind::of_object(name)?;
    let node = name.split('/').nth(1)?.to_owned();
    (kind != Kind::Grave).then(|| Held { holder: node.clone(), home: node, in_bucket: true })
}

/// All records in the logs on a disk, up to where they are torn.
fn records_on(who: &str, disk: &SimDisk) -> Vec<(Held, Record)> {
    let files = disk.files();
    let mut all = Vec::new();
    for name in files.list().now_or_never().unwrap().unwrap() {
        let bytes = files.read(&name).now_or_never().unwrap().unwrap_or_default();
        for entry in entries(&bytes) {
            let read = if name.starts_with(HINT_LOG) {
                hint(&entry)
            } else {
                Record::decode(&entry).ok().map(|record| (who.to_owned(), record))
            };
            let place = |home| Held { holder: who.to_owned(), home, in_bucket: false };
            all.extend(read.map(|(home, record)| (place(home), record)));
        }
    }
    all
}

/// The entries of a file of a log; none if it is not one.
fn entries(file: &Bytes) -> Vec<Bytes> {
    let mut found = Vec::new();
    let mut at = LOG_MAGIC.len();
    if !file.starts_with(LOG_MAGIC) {
        return found;
    }
    let number = |at: usize| {
        let bytes: [u8; 4] = file.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    while let (Some(length), Some(_)) = (number(at), number(at + 4)) {
        let end = at + 8 + usize::try_from(length).unwrap();
        let Some(record) = file.get(at + 8..end) else { break };
        found.push(file.slice_ref(record));
        at = end;
    }
    found
}

/// An entry of the log of hints: whom it is for, and the record.
fn hint(entry: &Bytes) -> Option<(String, Record)> {
    let length = usize::from(*entry.first()?);
    let home = NodeId::new(std::str::from_utf8(entry.get(1..=length)?).ok()?).ok()?;
    let record = Record::decode(&entry.slice(1 + length..)).ok()?;
    Some((home.to_string(), record))
}

#[cfg(test)]
mod tests {
    use cartwheel_core::clock::Actor;

    use super::*;

    fn record(n: u64) -> Record {
        let mut container: Container<Version> = Container::default();
        let mut seen = container.seen().clone();
        seen.insert(&Dot { actor: Actor::parse("node-a.1").unwrap(), n });
        container = Container::from_parts(seen, Vec::new());
        Record { namespace: Namespace::new(b"carts").unwrap(), key: Key::new("k".into()).unwrap(), container }
    }

    fn append(disk: &SimDisk, file: &str, entry: &[u8]) {
        let length = u32::try_from(entry.len()).unwrap().to_le_bytes();
        let bytes = [&length[..], &[0; 4], entry].concat();
        disk.files().append(file, bytes.into()).now_or_never().unwrap().unwrap();
    }

    #[test]
    fn what_is_on_a_disk_is_found_by_whose_it_is_up_to_where_it_is_torn() {
        let disk = Arc::new(SimDisk::new(1, "node-a", crate::world::Bug::None, Arc::default()));
        for file in ["log-0000000001", "hints-0000000001"] {
            disk.files().append(file, Bytes::from_static(LOG_MAGIC)).now_or_never().unwrap().unwrap();
        }
        append(&disk, "log-0000000001", &record(1).encode());
        append(&disk, "hints-0000000001", &[b"\x06node-b", &record(2).encode()[..]].concat());
        let torn = record(3).encode();
        append(&disk, "log-0000000001", &torn);
        let whole = disk.files().read("log-0000000001").now_or_never().unwrap().unwrap();
        let cut = whole.slice(..whole.len() - 1);
        disk.files().replace("log-0000000001", cut).now_or_never().unwrap().unwrap();

        let sight = Sight::new(Arc::default());
        sight.has_disk("node-a", "node-a", &disk);
        let Record { namespace, key, .. } = record(1);
        let homes = |n: u64| -> Vec<(String, String)> {
            let dot = Dot { actor: Actor::parse("node-a.1").unwrap(), n };
            sight.holders(&namespace, &key, &dot).into_iter().map(|held| (held.holder, held.home)).collect()
        };
        let a = "node-a".to_owned();
        // A clock that has seen the second has not seen the first.
        assert_eq!(homes(1), [(a.clone(), a.clone())]);
        assert_eq!(homes(2), [(a, "node-b".to_owned())]);
        assert_eq!(homes(3), []);
    }
}
