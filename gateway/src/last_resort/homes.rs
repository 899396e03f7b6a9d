//! What lies in the bucket for each home: its segments, and the hints for it. Lists are fetched at most once a
//! second, once for all who read; what is known of a segment stays while its home is asked for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use cartwheel_bucket::{SharedBucket, list_all};
use cartwheel_core::manifest::{Manifest, SegmentEntry};
use cartwheel_core::names::NodeId;
use cartwheel_segments::hints::{hint_prefix, parse_hint_object};
use cartwheel_segments::manifests::{ManifestReadError, newest_dated};
use cartwheel_segments::{Segment, Segments};

/// How long a list may be used.
const LIST_AGE: Duration = Duration::from_secs(1);
/// A home that nobody asked for in this time is forgotten.
const IDLE: Duration = Duration::from_secs(60);
/// Most bytes of filters and indexes that are kept; beyond, the homes asked longest ago are forgotten.
const MAX_KEPT_BYTES: u64 = 256 * 1024 * 1024;

/// The lists of all homes asked for lately.
#[derive(Debug)]
pub(super) struct Homes {
    bucket: SharedBucket,
    segments: Arc<Segments>,
    known: Mutex<HashMap<NodeId, Known>>,
}

#[derive(Debug)]
struct Known {
    asked: Instant,
    home: Arc<Home>,
}

/// One home.
#[derive(Debug, Default)]
struct Home {
    /// Held while the list is fetched, so that all who need it wait for one fetch.
    listed: tokio::sync::Mutex<Option<Listed>>,
    /// What this gateway itself put there since the last list was begun.
    written: Mutex<Vec<Object>>,
    kept_bytes: std::sync::atomic::AtomicU64,
}

#[derive(Debug)]
struct Listed {
    number: u64,
    at: Instant,
    objects: Vec<Arc<Segment>>,
    as_of_ms: u64,
}

#[derive(Debug)]
struct Object {
    segment: Arc<Segment>,
    modified_ms: u64,
}

/// What is in the bucket for a home.
#[derive(Debug)]
pub(super) struct View {
    /// Which list it is from.
    pub(super) number: u64,
    /// All objects, of any kind.
    pub(super) objects: Vec<Arc<Segment>>,
    /// When the newest object was written, or the manifest; 0 if there is nothing.
    pub(super) as_of_ms: u64,
}

impl Homes {
    pub(super) fn new(bucket: SharedBucket, segments: Arc<Segments>) -> Self {
        Self { bucket, segments, known: Mutex::default() }
    }

    /// What is in the bucket for `home`; from a list later than number `after`, if that is given.
    pub(super) async fn view(&self, id: &NodeId, after: Option<u64>) -> Result<View, ManifestReadError> {
        let home = self.home(id);
        let mut listed = home.listed.lock().await;
        let usable = listed
            .as_ref()
            .is_some_and(|l| l.at.elapsed() < LIST_AGE && after.is_none_or(|number| l.number > number));
        if !usable {
            let (before, reusable) = {
                let written = home.written.lock();
                (written.len(), reusable(listed.as_ref(), &written))
            };
            let mut fresh = self.fetch(id, &reusable).await?;
            fresh.number = listed.as_ref().map_or(0, |l| l.number) + 1;
            // What was written before the list was begun is in it, or its home has taken it over.
            home.written.lock().drain(..before);
            *listed = Some(fresh);
        }
        let listed = listed.as_ref();
        let mut view = View {
            number: listed.map_or(0, |l| l.number),
            objects: listed.map_or_else(Vec::new, |l| l.objects.clone()),
            as_of_ms: listed.map_or(0, |l| l.as_of_ms),
        };
        for object in home.written.lock().iter() {
            view.objects.push(Arc::clone(&object.segment));
            view.as_of_ms = view.as_of_ms.max(object.modified_ms);
        }
        let kept = view.objects.iter().map(|segment| segment.kept_bytes()).sum();
        home.kept_bytes.store(kept, std::sync::atomic::Ordering::Relaxed);
        Ok(view)
    }

    /// Adds an object that was just put for `home`. A home that is not known is listed before it is read, and
    /// then has it.
    pub(super) fn wrote(&self, id: &NodeId, known: SegmentEntry, now_ms: u64) {
        let (object, bytes) = (known.object.clone(), known.bytes);
        let mut homes = self.known.lock();
        forget_idle(&mut homes);
        if let Some(known_home) = homes.get(id) {
            let segment = self.segments.open(object, bytes, Some(known), None);
            known_home.home.written.lock().push(Object { segment, modified_ms: now_ms });
        }
    }

    fn home(&self, id: &NodeId) -> Arc<Home> {
        let mut homes = self.known.lock();
        forget_idle(&mut homes);
        forget_beyond(&mut homes, MAX_KEPT_BYTES);
        let now = Instant::now();
        let known = homes.entry(id.clone()).or_insert_with(|| Known { asked: now, home: Arc::default() });
        known.asked = now;
        Arc::clone(&known.home)
    }

    async fn fetch(
        &self,
        id: &NodeId,
        reusable: &HashMap<String, Arc<Segment>>,
    ) -> Result<Listed, ManifestReadError> {
        // Hints first: a home puts what it takes over into a segment before it deletes the hint, so that a
        // record is in this list or in the next.
        let hints = list_all(&*self.bucket, &hint_prefix(id)).await?;
        let prefix = format!("nodes/{id}/f/");
        let flushed = async { Ok(list_all(&*self.bucket, &prefix).await?) };
        let (manifest, flushed) = tokio::try_join!(newest_dated(&*self.bucket, id), flushed)?;

        let mut listed = Listed { number: 0, at: Instant::now(), objects: Vec::new(), as_of_ms: 0 };
        let open = |object: String, bytes, known: Option<SegmentEntry>| match reusable.get(&object) {
            // A home may have borrowed more of an object meanwhile.
            Some(segment) if known.as_ref().is_none_or(|entry| segment.only() == entry.only) => {
                Arc::clone(segment)
            }
            _ => self.segments.open(object, bytes, known, None),
        };
        let mut named = HashSet::new();
        let mut taken = None;
        if let Some(dated) = manifest {
            taken = Some(Manifest { segments: Vec::new(), ..dated.manifest.clone() });
            listed.as_of_ms = dated.modified_ms;
            // What was dropped is in others, and what lies in a grave was deleted: an object that turns up late must
            // not bring it back.
            named.extend(dated.manifest.dropped.into_iter().map(|dropped| dropped.object));
            // What is damaged can't be read; other homes have it.
            named.extend(dated.manifest.quarantined.into_iter().map(|quarantined| quarantined.object));
            for entry in dated.manifest.graves.into_iter().chain(dated.manifest.segments) {
                named.insert(entry.object.clone());
                listed.objects.push(open(entry.object.clone(), entry.bytes, Some(entry)));
            }
        }
        let hints = hints.into_iter().filter(|object| parse_hint_object(&object.key).is_some());
        for object in flushed.into_iter().chain(hints) {
            listed.as_of_ms = listed.as_of_ms.max(object.modified_ms);
            let came_back = taken.as_ref().is_some_and(|manifest| manifest.has_taken(&object.key));
            if !named.contains(&object.key) && !came_back {
                listed.objects.push(open(object.key, object.size, None));
            }
        }
        Ok(listed)
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.known.lock().len()
    }
}

/// The segments known of a home, by name.
fn reusable(listed: Option<&Listed>, written: &[Object]) -> HashMap<String, Arc<Segment>> {
    let listed = listed.into_iter().flat_map(|l| &l.objects);
    let all = listed.chain(written.iter().map(|object| &object.segment));
    all.map(|segment| (segment.object.clone(), Arc::clone(segment))).collect()
}

fn forget_idle(homes: &mut HashMap<NodeId, Known>) {
    homes.retain(|_, known| known.asked.elapsed() < IDLE);
}

fn forget_beyond(homes: &mut HashMap<NodeId, Known>, limit: u64) {
    let kept = |known: &Known| known.home.kept_bytes.load(std::sync::atomic::Ordering::Relaxed);
    let mut total: u64 = homes.values().map(kept).sum();
    while total > limit {
        let oldest = homes.iter().filter(|(_, k)| kept(k) > 0).min_by_key(|(_, k)| k.asked);
        let Some((id, bytes)) = oldest.map(|(id, k)| (id.clone(), kept(k))) else { return };
        homes.remove(&id);
        total -= bytes;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_homes_asked_longest_ago_go_first() {
        let mut homes = HashMap::new();
        for (name, kept) in [("a", 0), ("b", 40), ("c", 40), ("d", 40)] {
            let home = Home { kept_bytes: kept.into(), ..Home::default() };
            let known = Known { asked: Instant::now(), home: Arc::new(home) };
            homes.insert(NodeId::new(name).unwrap(), known);
            tokio::time::advance(IDLE / 4).await;
        }
        let names = |homes: &HashMap<NodeId, Known>| {
            let mut names: Vec<String> = homes.keys().map(ToString::to_string).collect();
            names.sort();
            names.concat()
        };
        forget_idle(&mut homes);
        assert_eq!(names(&homes), "bcd", "a was asked for a minute ago");
        forget_beyond(&mut homes, 120);
        assert_eq!(names(&homes), "bcd");
        forget_beyond(&mut homes, 119);
        assert_eq!(names(&homes), "cd");
        forget_beyond(&mut homes, 0);
        assert_eq!(names(&homes), "");
    }
}
