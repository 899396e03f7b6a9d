//! Forgetting deletions, on proof only.
//!
//! A tombstone may go once every home holds it, in segments, with the same clock, and nobody keeps anything for these
//! homes that may be older: no hint, in memory or in the bucket. A home, mostly the first, asks every member, home
//! or not, and tells the homes what all agreed on; each lays it into a grave when it merges the segments that hold it
//! (`compact.rs`). Whoever does not answer keeps all tombstones where they are. A value that has expired is a deletion
//! here, some time later, for clocks differ.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use cartwheel_bucket::SharedBucket;
use cartwheel_cluster::membership::{Follower, View};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock_index::ClockIndex;
use cartwheel_core::compaction::{GROUPS, group_of};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::merkle::leaf;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::NodeId;
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{Deceased, MAX_DECEASED, Reply, Request};

use crate::copier::Copier;
use crate::engine::Engine;
use crate::hints::Hints;
use crate::segments::SegmentError;
use crate::segments::hints::hint_prefix;
use crate::standing::Stand;

/// How long a value must have expired before it is treated as a deletion for good, milliseconds: more than clocks
/// differ.
pub(crate) const EXPIRED_FOR: u64 = 10 * 60 * 1000;
/// Dead keys that are watched, and proofs that are kept, at most.
const MAX_WATCHED: usize = 256 * 1024;
/// How long a proof is kept that no merge has made use of.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// How long one member may take to answer.
const ASKING: Duration = Duration::from_secs(10);

/// Deletions that every home may forget.
#[derive(Debug)]
pub(crate) struct Proofs {
    state: Mutex<ProofState>,
    /// How long after a merge that was to forget them the next one is worthwhile.
    again: Duration,
}

#[derive(Debug, Default)]
struct ProofState {
    /// The leaf that all agreed on, and when.
    proven: HashMap<KeyHash, (u64, Instant)>,
    tried: [Option<Instant>; GROUPS as usize],
}

impl Proofs {
    pub(crate) fn new(again: Duration) -> Self {
        Self { state: Mutex::default(), again }
    }

    /// All homes agreed that these may go.
    pub(crate) fn add(&self, keys: &[Deceased]) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.proven.retain(|_, (_, since)| now.saturating_duration_since(*since) < KEPT_FOR);
        let room = MAX_WATCHED.saturating_sub(state.proven.len());
        for key in keys.iter().take(room) {
            state.proven.insert(key.hash, (key.leaf, now));
        }
    }

    /// May the key of this hash go, if this is its leaf?
    pub(crate) fn holds(&self, hash: KeyHash, leaf: u64) -> bool {
        self.state.lock().proven.get(&hash).is_some_and(|(proven, _)| *proven == leaf)
    }

    /// These are gone.
    pub(crate) fn forget(&self, keys: impl Iterator<Item = KeyHash>) {
        let mut state = self.state.lock();
        for hash in keys {
            state.proven.remove(&hash);
        }
    }

    /// A merge of these segments was to forget all it could, for the sake of `group`, whether they reach there or not.
    pub(crate) fn note_tried<'a>(&self, group: u32, segments: impl Iterator<Item = &'a SegmentEntry>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.tried[group as usize] = Some(now);
        for entry in segments {
            for group in group_of(entry.first)..=group_of(entry.last) {
                state.tried[group as usize] = Some(now);
            }
        }
    }

    /// The groups in which a merge may forget something. `is_dead` says whether a key still lies in segments as it was
    /// proven.
    pub(crate) fn due(&self, is_dead: impl Fn(KeyHash, u64) -> bool) -> [bool; GROUPS as usize] {
        let now = Instant::now();
        let again = |at: Instant| now.saturating_duration_since(at) >= self.again;
        // Looked at without the lock: each key takes that of the engine.
        let (proven, worthwhile) = {
            let state = self.state.lock();
            let worthwhile = state.tried.map(|tried| tried.is_none_or(again));
            let proven: Vec<(KeyHash, u64)> =
                state.proven.iter().map(|(hash, (leaf, _))| (*hash, *leaf)).collect();
            (proven, worthwhile)
        };
        let mut due = [false; GROUPS as usize];
        for (hash, leaf) in proven {
            let group = group_of(hash) as usize;
            due[group] = due[group] || (worthwhile[group] && is_dead(hash, leaf));
        }
        due
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().proven.len()
    }
}

/// What one member says of deletions that others want to forget.
pub(crate) async fn attest(
    engine: &Engine,
    is_home: bool,
    keys: &[Deceased],
    now_ms: u64,
) -> Result<Vec<bool>, SegmentError> {
    let mut agreed = Vec::with_capacity(keys.len());
    for Deceased { hash, leaf: told } in keys {
        let yes = if !is_home {
            // What it holds from when it was one would come back with the next change of the ring.
            engine.knows_nothing_of(*hash)
        } else if engine.is_dead_as(*hash, *told, now_ms.saturating_sub(EXPIRED_FOR)) {
            true
        } else {
            // Or it has forgotten it already.
            engine.knows_nothing_of(*hash)
                && engine.graves.may_hold(*hash)
                && engine.graves.find(*hash).await?.iter().any(|r| leaf(*hash, r.container.seen()) == *told)
        };
        agreed.push(yes);
    }
    Ok(agreed)
}

fn homes_of(view: &View, partition: u32) -> Vec<NodeId> {
    let homes = view.current.homes(partition).iter().filter_map(|home| view.current.member(*home));
    homes.map(|member| member.id.clone()).collect()
}

/// Asks for proofs.
pub(crate) struct Reaper {
    pub(crate) me: NodeId,
    pub(crate) engine: Arc<Engine>,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) copier: Copier,
    pub(crate) follower: Follower,
    pub(crate) stand: Arc<Stand>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) bucket: SharedBucket,
    pub(crate) seams: Seams,
    /// How long a key must have been dead, unchanged, before anybody is asked.
    pub(crate) after: Duration,
    /// Rung when there is something new to forget.
    pub(crate) wake: Arc<Notify>,
}

impl Reaper {
    /// Looks for dead keys and asks for proofs, until the process ends.
    pub(crate) async fn run(self) {
        let mut watched: HashMap<KeyHash, (u64, Instant)> = HashMap::new();
        let mut first_shard = 0;
        loop {
            tokio::time::sleep((self.after / 2).max(Duration::from_millis(500))).await;
            // Begun elsewhere each time: keys that can't be forgotten must not take all places for good.
            first_shard = (first_shard + ClockIndex::SHARDS / 4 + 1) % ClockIndex::SHARDS;
            if let Err(why) = self.round(&mut watched, first_shard).await {
                tracing::debug!(%why, "deletions are kept for now");
            }
        }
    }

    async fn round(
        &self,
        watched: &mut HashMap<KeyHash, (u64, Instant)>,
        first_shard: u32,
    ) -> Result<(), String> {
        let Some(view) = self.follower.view() else { return Ok(()) };
        if view.document.has_pending_change() {
            watched.clear();
            return Err("the ring is changing".to_owned());
        }
        if self.stand.level() != Standing::Counting || !self.engine.index_complete() {
            return Err("this node does not count".to_owned());
        }
        let ripe = self.watch(&view, watched, first_shard).await;
        let mut chunks: Vec<(u32, &[Deceased])> = Vec::new();
        for (partition, keys) in &ripe {
            for keys in keys.chunks(MAX_DECEASED) {
                chunks.push((*partition, keys));
            }
        }
        let (mut agreed, mut asked) = (Vec::new(), Ok(()));
        for (partition, keys) in chunks {
            match self.ask(&view, partition, keys).await {
                Ok(keys) if keys.is_empty() => {}
                Ok(keys) => agreed.push((partition, keys)),
                // Whoever does not answer, or keeps hints, is mostly asked about the next partition too.
                Err(why) => {
                    asked = Err(why);
                    break;
                }
            }
        }
        // Last: a hint that was handed to the bucket while the members were asked is found here.
        let mut hinted: BTreeMap<NodeId, bool> = BTreeMap::new();
        for (partition, proven) in agreed {
            let homes = homes_of(&view, partition);
            let mut any = false;
            for home in &homes {
                if !hinted.contains_key(home) {
                    let listed = self.bucket.list(&hint_prefix(home), None, 1).await;
                    let some = !listed.map_err(|e| e.to_string())?.objects.is_empty();
                    hinted.insert(home.clone(), some);
                }
                any |= hinted.get(home).is_none_or(|some| *some);
            }
            if any {
                asked = Err(format!("hints for one of {homes:?} lie in the bucket"));
                continue;
            }
            for key in &proven {
                watched.remove(&key.hash);
            }
            self.tell(&view, partition, &proven).await;
            self.proofs.add(&proven);
            self.wake.notify_one();
        }
        asked
    }

    /// Notes which keys are dead; gives those that have been for long enough, by partition.
    async fn watch(
        &self,
        view: &View,
        watched: &mut HashMap<KeyHash, (u64, Instant)>,
        first_shard: u32,
    ) -> BTreeMap<u32, Vec<Deceased>> {
        let now = Instant::now();
        let expired = self.seams.clock.now_ms().saturating_sub(EXPIRED_FOR);
        let partitions = view.current.partitions();
        let mut still: HashMap<KeyHash, (u64, Instant)> = HashMap::new();
        let mut ripe: BTreeMap<u32, Vec<Deceased>> = BTreeMap::new();
        for shard in (first_shard..ClockIndex::SHARDS).chain(0..first_shard) {
            for (hash, leaf) in self.engine.dead_in(shard, expired) {
                let partition = hash.partition(partitions);
                let place = view
                    .current
                    .index_of(&self.me)
                    .and_then(|me| view.current.homes(partition).iter().position(|home| *home == me));
                let Some(place) = place else { continue };
                if self.proofs.holds(hash, leaf) || still.len() >= MAX_WATCHED {
                    continue;
                }
                let since =
                    watched.get(&hash).filter(|(before, _)| *before == leaf).map_or(now, |(_, at)| *at);
                still.insert(hash, (leaf, since));
                // The first home asks; the others do where that one could not, or did not reach them.
                let patience = self.after * (1 + 3 * u32::try_from(place).unwrap_or(1));
                if now.saturating_duration_since(since) >= patience {
                    ripe.entry(partition).or_default().push(Deceased { hash, leaf });
                }
            }
            tokio::task::yield_now().await;
        }
        *watched = still;
        ripe
    }

    /// Those of these keys that every member agrees on.
    async fn ask(&self, view: &View, partition: u32, keys: &[Deceased]) -> Result<Vec<Deceased>, String> {
        if removed(Rule::TombstoneProof) {
            return Ok(keys.to_vec());
        }
        let homes = homes_of(view, partition);
        let now_ms = self.seams.clock.now_ms();
        let own = attest(&self.engine, true, keys, now_ms).await.map_err(|e| e.to_string())?;
        if self.hints.keeps_any_for(&homes) {
            return Err("this node keeps hints".to_owned());
        }
        let others = view.document.members.iter().filter(|member| member.id != self.me);
        let calls = others.map(|member| {
            let request = Request::Attest { partition, homes: homes.clone(), keys: keys.to_vec() };
            let call = self.copier.call_within(&member.address, view.version(), request, ASKING);
            async move { (&member.id, call.await) }
        });
        let mut agreed = own;
        for (member, answer) in join_all(calls).await {
            match answer? {
                Reply::Attested { keeps: false, agreed: theirs } if theirs.len() == keys.len() => {
                    agreed.iter_mut().zip(theirs).for_each(|(all, one)| *all &= one);
                }
                Reply::Attested { keeps: true, .. } => return Err(format!("{member} keeps hints")),
                other => return Err(format!("{member} answered {other:?}")),
            }
        }
        let proven = keys.iter().zip(agreed).filter(|(_, agreed)| *agreed).map(|(key, _)| *key);
        Ok(proven.collect())
    }

    /// Tells the other homes. Who does not hear of it keeps its tombstones, and asks for itself later.
    async fn tell(&self, view: &View, partition: u32, proven: &[Deceased]) {
        let homes = view.current.homes(partition).iter().filter_map(|home| view.current.member(*home));
        let calls = homes.filter(|member| member.id != self.me).map(|member| {
            let request = Request::Reap { partition, keys: proven.to_vec() };
            self.copier.call_within(&member.address, view.version(), request, ASKING)
        });
        for answer in join_all(calls).await {
            if let Err(error) = answer {
                tracing::debug!(%error, "a home was not told what it may forget");
            }
        }
    }
}

#[cfg(test)]
mod tests;
