//! One life of a node in which everything happens: writes, flushes, merges that split and that reap, deleting, merging
//! of graves. Whoever runs it may stop it at any request to the bucket.

use std::collections::BTreeMap;

use cartwheel_core::clock::Clock;
use cartwheel_core::container::Container;
use cartwheel_core::record::Version;

use crate::testing::upkeep::{GRACE, Model, Store, deletion, names_in};
use crate::testing::{Machine, Process, version};

/// What was done so far, as far as it was acknowledged.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) model: Model,
    /// What is in the bucket for sure.
    pub(super) flushed: Model,
    /// What a flush is about to put there.
    pub(super) flushing: Option<Model>,
    /// All that was ever minted, by key.
    pub(super) deltas: BTreeMap<String, Vec<Container<Version>>>,
    /// The scenario came to its end.
    pub(super) ended: bool,
    request: u128,
}

impl Progress {
    pub(super) fn seen(&self, name: &str) -> Clock {
        self.model.get(name).map(|container| container.seen().clone()).unwrap_or_default()
    }

    /// A write that has seen what this progress has seen of the key, or nothing. One that is refused is none: the
    /// process has been replaced.
    pub(super) async fn write(&mut self, process: &Process, name: &str, value: Option<&str>, blind: bool) {
        self.request += 1;
        // Different for every process.
        let request = (u128::from(process.me.epoch) << 64) + self.request;
        let context = if blind { Clock::new() } else { self.seen(name) };
        let version = match value {
            Some(value) => version(request, &context, value.as_bytes()),
            None => deletion(request, &context),
        };
        match process.write(name, version).await {
            Ok(delta) => {
                self.model.entry(name.to_owned()).or_default().sync(delta.clone());
                self.deltas.entry(name.to_owned()).or_default().push(delta);
            }
            Err(refused) => assert!(is_replaced(process, &format!("{refused:?}")), "{name}: {refused:?}"),
        }
    }

    pub(super) async fn flush(&mut self, process: &mut Process) {
        self.flushing = Some(self.model.clone());
        process.flush().await;
        self.flushed = self.flushing.take().unwrap_or_default();
    }
}

/// The keys: some that lie in one group, some anywhere.
pub(super) struct Names {
    pub(super) grouped: Vec<String>,
    pub(super) wide: Vec<String>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            grouped: names_in(3, 5),
            wide: [1, 3, 8, 14].iter().flat_map(|group| names_in(*group, 7).split_off(5)).collect(),
        }
    }
}

/// Has another process taken over, and deleted what this one held?
fn is_replaced(process: &Process, error: &str) -> bool {
    process.engine.is_fenced() || error.contains("does not exist") || error.contains("NotFound")
}

/// Merges while there is something to merge; a process that was replaced may fail at it.
pub(super) async fn merge_all(process: &Process) {
    let mut compactor = process.compactor();
    compactor.piece_bytes = 700;
    for _ in 0..50 {
        match compactor.once().await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                assert!(is_replaced(process, &error.to_string()), "{error}");
                return;
            }
        }
    }
    panic!("it never comes to rest");
}

/// Forgets all keys that are dead in this model.
pub(super) fn prove_dead(process: &Process, model: &Model) {
    for (name, container) in model {
        if container.siblings().iter().all(|sibling| sibling.version.value.is_deleted()) {
            process.prove_as(name, container.seen());
        }
    }
}

/// Two rounds, with the grace between them.
pub(super) async fn sweep(store: &Store, process: &Process) {
    for _ in 0..2 {
        process.sweeper(GRACE).round(true).await.unwrap();
        store.advance(GRACE);
    }
}

pub(super) async fn run(machine: Machine, store: Store, progress: &mut Progress) {
    let Names { grouped, wide } = Names::new();
    let mut process = machine.boot().await;
    process.load_index().await;
    for name in grouped.iter().chain(&wide) {
        progress.write(&process, name, Some("first"), true).await;
    }
    progress.flush(&mut process).await;
    // Of one group alone, with siblings.
    for name in &grouped[..4] {
        progress.write(&process, name, Some("second"), name == &grouped[0]).await;
    }
    progress.flush(&mut process).await;
    for name in [&grouped[3], &wide[0], &wide[1], &wide[2]] {
        progress.write(&process, name, None, false).await;
    }
    progress.write(&process, &wide[5], Some("second"), false).await;
    progress.flush(&mut process).await;
    process.ledger.commit().await;
    for name in &wide[3..] {
        progress.write(&process, name, Some("third"), name == &wide[6]).await;
    }
    progress.write(&process, &grouped[4], None, false).await;
    progress.flush(&mut process).await;
    progress.write(&process, &wide[4], Some("fourth"), false).await;
    progress.write(&process, &wide[7], None, false).await;
    progress.flush(&mut process).await;
    prove_dead(&process, &progress.model);
    merge_all(&process).await;
    process.ledger.commit().await;
    sweep(&store, &process).await;

    // One that was forgotten comes back, and goes again.
    progress.write(&process, &wide[0], Some("anew"), false).await;
    progress.write(&process, &wide[1], Some("anew"), true).await;
    progress.write(&process, &grouped[0], None, false).await;
    progress.flush(&mut process).await;
    progress.write(&process, &wide[0], None, false).await;
    progress.write(&process, &wide[6], None, false).await;
    progress.flush(&mut process).await;
    prove_dead(&process, &progress.model);
    merge_all(&process).await;
    let graves: Vec<_> = process.engine.graves.segments.all().to_vec();
    if graves.len() > 1 {
        let merged = process.compactor().merge_graves(&graves).await;
        assert!(merged.is_ok() || is_replaced(&process, &format!("{merged:?}")), "{merged:?}");
    }
    sweep(&store, &process).await;
    // What was acknowledged in memory is still to be put.
    progress.write(&process, &wide[5], Some("last"), false).await;
    progress.flush(&mut process).await;
    progress.ended = true;
}
