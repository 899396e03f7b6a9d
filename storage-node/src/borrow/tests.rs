//! Borrowing: read like the owner's, killed at every step, and let go of in the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crash;
mod names;
mod pinning;
mod reading;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use cartwheel_core::clock::Clock;
use cartwheel_core::container::Container;
use cartwheel_core::manifest::owner_of_object;
use cartwheel_core::names::NodeId;
use cartwheel_core::ranges::{HashRange, contains, join};

use super::{Borrower, Parts};
use crate::pace::Pace;
use crate::testing::upkeep::{GRACE, Model, Store, deletion, is_dead, names_in};
use crate::testing::{Process, SEED, hash, version};

pub(super) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// What is borrowed: two partitions of eight.
pub(super) fn ranges() -> [HashRange; 2] {
    [1, 6].map(|partition| HashRange::of_partition(partition, 8))
}

pub(super) fn is_inside(name: &str) -> bool {
    contains(&join(ranges()), hash(name))
}

pub(super) fn borrower(process: &Process) -> Arc<Borrower> {
    Arc::new(Borrower::new(parts(process)))
}

pub(super) fn parts(process: &Process) -> Parts {
    Parts {
        engine: Arc::clone(&process.engine),
        ledger: Arc::clone(&process.ledger),
        bucket: Arc::clone(&process.bucket),
        seams: process.seams.clone(),
        me: process.me.node.clone(),
        hash_seed: SEED,
        pace: Arc::new(Pace::new()),
        compact: Arc::default(),
        unsafe_no_cas: false,
    }
}

/// A task that ends with its owner.
pub(super) struct Task(JoinHandle<bool>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Flushes whenever somebody waits for it.
pub(super) fn flushing(process: &Process) -> Task {
    Task(tokio::spawn(process.another_flusher().run(process.stopped.clone())))
}

/// Keys in the groups 2, 3 and 12, which are borrowed, and in others.
pub(super) fn all_names() -> Vec<String> {
    [2, 3, 12, 0, 7].iter().flat_map(|group| names_in(*group, 4)).collect()
}

/// An owner with flushes, merged segments, siblings, deletions and one key that is forgotten, and what it holds.
pub(super) struct Owner {
    pub(super) process: Process,
    pub(super) model: Model,
    /// Bytes of the pieces of its merges.
    pub(super) pieces: usize,
    request: u128,
}

impl Owner {
    pub(super) async fn boot(store: &Store) -> Self {
        let process = store.machine(store.bucket(), None).boot().await;
        process.load_index().await;
        Self { process, model: Model::new(), pieces: 300, request: 0 }
    }

    pub(super) async fn new(store: &Store) -> Self {
        let mut this = Self::boot(store).await;
        let names = all_names();
        for name in &names {
            this.write(name, Some("one"), false).await;
        }
        this.process.flush().await;
        for (n, name) in names.iter().enumerate() {
            match n % 4 {
                0 => this.write(name, None, false).await,
                1 => this.write(name, Some("sibling"), true).await,
                _ => {}
            }
        }
        this.process.flush().await;
        // One of the deleted keys is forgotten: all that is left of it lies in a grave.
        this.process.prove(&names[0]);
        this.merge(true).await;
        assert!(this.process.engine.knows_nothing_of(hash(&names[0])));
        for (n, name) in names.iter().enumerate().skip(1) {
            if n % 3 == 0 {
                this.write(name, Some("two"), false).await;
            }
        }
        this.process.flush().await;
        this.process.commit().await;
        this
    }

    pub(super) async fn write(&mut self, name: &str, value: Option<&str>, blind: bool) {
        self.request += 1;
        let seen = self.model.get(name).map(|c| c.seen().clone()).filter(|_| !blind).unwrap_or_default();
        let version = match value {
            Some(value) => version(self.request, &seen, value.as_bytes()),
            None => deletion(self.request, &seen),
        };
        let delta = self.process.write(name, version).await.unwrap();
        self.model.entry(name.to_owned()).or_default().sync(delta);
    }

    /// Merges all segments, cut at the borders of groups or not.
    pub(super) async fn merge(&self, split: bool) {
        let mut compactor = self.process.compactor();
        compactor.piece_bytes = self.pieces;
        let all = self.process.engine.segments.all();
        let plan = cartwheel_core::compaction::Plan { split, ..crate::testing::upkeep::wide_plan() };
        compactor.merge(&all, &plan).await.unwrap();
    }

    /// Deletes what it can.
    pub(super) async fn sweep(&self, store: &Store) {
        sweep(store, &self.process).await;
    }
}

pub(super) async fn sweep(store: &Store, process: &Process) {
    for _ in 0..3 {
        process.sweeper(GRACE).round(true).await.unwrap();
        store.advance(GRACE);
    }
}

/// The node says of the keys inside the ranges what the model says, or nothing of those that may be forgotten; and of
/// all others nothing.
pub(super) async fn assert_reads(process: &Process, model: &Model, when: &str) {
    for (name, expected) in model {
        let got = process.container(name).await;
        if !is_inside(name) {
            assert!(got.seen().is_empty(), "{when}: {name} is outside");
        } else if got != *expected {
            let is_forgotten = got.seen().is_empty() && is_dead(expected);
            let values = (crate::testing::values(&got), crate::testing::values(expected));
            assert!(is_forgotten, "{when}: {name}: {values:?}");
            assert!(process.engine.graves.may_hold(hash(name)), "{when}: {name} has no grave");
        }
    }
}

/// The objects of other nodes that the newest manifest of this one names.
pub(super) async fn foreign(store: &Store, name: &str) -> BTreeSet<String> {
    let manifest = store.manifest_of(name).await;
    let entries = manifest.segments.into_iter().chain(manifest.graves);
    entries.map(|entry| entry.object).filter(|object| owner_of_object(object) != Some(name)).collect()
}

/// Everything that is borrowed is rewritten.
pub(super) async fn rewrite(process: &Process) {
    let mut compactor = process.compactor();
    compactor.piece_bytes = 300;
    let mut merges = 0;
    while compactor.once().await.unwrap() {
        merges += 1;
        assert!(merges < 60, "it never comes to rest");
    }
}

/// A node of this name that holds nothing yet.
pub(super) async fn boot(store: &Store, name: &'static str) -> Process {
    let process = store.machine_of(name, store.bucket()).boot().await;
    process.load_index().await;
    process
}

pub(super) fn seen(container: &Container<cartwheel_core::record::Version>) -> Clock {
    container.seen().clone()
}

/// Lets paused time pass.
pub(super) async fn pass(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}
