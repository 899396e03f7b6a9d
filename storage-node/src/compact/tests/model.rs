//! Random histories with merges at random, against one container for each key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cartwheel_cluster::seams::Random;
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::compaction::{Plan, Why, group_of};
use cartwheel_core::container::Container;
use cartwheel_core::record::{Brief, Version};
use cartwheel_core::segment::SegmentBuilder;

use super::scenario::sweep;
use crate::disk::{Disk, MemoryDisk};
use crate::reap::EXPIRED_FOR;
use crate::testing::upkeep::{Dice, Model, Store, deletion, is_dead, names_in};
use crate::testing::{Process, record_key, version};

struct World {
    dice: Dice,
    store: Store,
    process: Process,
    disk: Option<Arc<dyn Disk>>,
    names: Vec<String>,
    model: Model,
    flushed: Model,
    /// Deltas of two other homes that have not arrived yet, or may arrive again.
    remote: Vec<(String, Container<Version>)>,
    others: BTreeMap<(String, usize), Container<Version>>,
    clocks: BTreeMap<String, Vec<Clock>>,
    dots: BTreeMap<(String, Dot), u128>,
    request: u128,
}

/// What may have become of a container by a merge: values that have long expired are deletions.
fn settled(container: &Container<Version>, now_ms: u64) -> Container<Version> {
    container.map(|version| version.clone().as_of(now_ms.saturating_sub(EXPIRED_FOR)))
}

impl World {
    async fn new(seed: u64, with_disk: bool) -> Self {
        let store = Store::new();
        let disk: Option<Arc<dyn Disk>> = with_disk.then(|| Arc::new(MemoryDisk::default()) as _);
        let process = store.machine(store.bucket(), disk.clone()).boot().await;
        process.load_index().await;
        Self {
            dice: Dice::new(seed),
            store,
            process,
            disk,
            names: [0, 5, 5, 12]
                .iter()
                .zip([2, 5, 7, 4])
                .flat_map(|(g, n)| names_in(*g, n).split_off(n - 2))
                .collect(),
            model: Model::new(),
            flushed: Model::new(),
            remote: Vec::new(),
            others: BTreeMap::new(),
            clocks: BTreeMap::new(),
            dots: BTreeMap::new(),
            request: 0,
        }
    }

    fn name(&self) -> String {
        self.names[self.dice.below(self.names.len())].clone()
    }

    fn context(&self, name: &str, held: Option<&Container<Version>>) -> Clock {
        match self.dice.below(4) {
            0 => Clock::new(),
            1 => {
                let clocks = self.clocks.get(name).map(Vec::as_slice).unwrap_or_default();
                if clocks.is_empty() { Clock::new() } else { clocks[self.dice.below(clocks.len())].clone() }
            }
            _ => held.map(|c| c.seen().clone()).unwrap_or_default(),
        }
    }

    fn version(&mut self, context: &Clock) -> Version {
        self.request += 1;
        let expires_ms = self.store.now_ms() + self.dice.next_u64() % 3_000_000;
        let value = vec![b'v'; self.dice.below(400)];
        match self.dice.below(6) {
            0 | 1 => deletion(self.request, context),
            2 => Version { expires_ms, ..version(self.request, context, &value) },
            _ => version(self.request, context, &value),
        }
    }

    /// P3.
    fn note(&mut self, name: &str, delta: &Container<Version>) {
        let sibling = &delta.siblings()[0];
        let before = self.dots.insert((name.to_owned(), sibling.dot.clone()), sibling.version.request);
        assert_eq!(before, None, "{} of {name} names two writes", sibling.dot);
    }

    async fn step(&mut self) {
        let name = self.name();
        match self.dice.below(30) {
            0..=9 => {
                let context = self.context(&name, self.model.get(&name));
                let version = self.version(&context);
                let delta = self.process.write(&name, version).await.unwrap();
                self.note(&name, &delta);
                let container = self.model.entry(name.clone()).or_default();
                container.sync(delta);
                self.clocks.entry(name).or_default().push(container.seen().clone());
            }
            10..=12 => {
                let home = self.dice.below(2);
                let held = self.others.get(&(name.clone(), home)).cloned().unwrap_or_default();
                let context = self.context(&name, Some(&held));
                let version = self.version(&context);
                let dot = held.next_dot(&Actor::parse(&format!("node-r{home}.1")).unwrap(), &context);
                let delta = Container::delta(&context, dot, version);
                self.note(&name, &delta);
                self.others.entry((name.clone(), home)).or_default().sync(delta.clone());
                self.remote.push((name, delta));
            }
            13..=15 if !self.remote.is_empty() => {
                let (name, delta) = self.remote[self.dice.below(self.remote.len())].clone();
                self.process.take(&name, &delta).await.unwrap();
                self.model.entry(name).or_default().sync(delta);
            }
            16..=19 => self.flush().await,
            20 => self.store.clock.advance(600_000),
            21..=23 => {
                for name in self.names.clone() {
                    if self.dice.below(3) > 0 {
                        self.process.prove(&name);
                    }
                }
                self.merge().await;
            }
            24 | 25 => self.merge().await,
            26 => {
                tokio::time::advance(Duration::from_secs(100)).await;
                self.process.compact().await;
            }
            27 => sweep(&self.store, &self.process).await,
            28 => self.restart().await,
            _ => self.process.commit().await,
        }
    }

    async fn flush(&mut self) {
        self.process.flush().await;
        self.flushed = self.model.clone();
    }

    /// A merge of some runs, split or not.
    async fn merge(&self) {
        let mut compactor = self.process.compactor();
        compactor.piece_bytes = [200, 1000, 1 << 20][self.dice.below(3)];
        let runs = compactor.runs(&self.process.engine.segments.all()).await.unwrap();
        let all = self.dice.below(2) == 0;
        let inputs: Vec<_> = runs
            .iter()
            .filter(|_| all || self.dice.below(3) > 0)
            .flat_map(|run| run.segments.clone())
            .collect();
        if inputs.is_empty() {
            return;
        }
        let split = self.dice.below(2) == 0;
        compactor.merge(&inputs, &Plan { inputs: Vec::new(), split, why: Why::Tier }).await.unwrap();
        let graves = self.process.engine.graves.segments.all();
        if graves.len() > 3 {
            compactor.merge_graves(&graves).await.unwrap();
        }
        if split {
            let inputs: BTreeSet<&String> = inputs.iter().map(|segment| &segment.object).collect();
            let before: BTreeSet<String> =
                runs.iter().flat_map(|run| &run.segments).map(|segment| segment.object.clone()).collect();
            for segment in self.process.engine.segments.all().iter() {
                let entry = segment.known().unwrap();
                let is_new = !before.contains(&segment.object);
                assert!(!inputs.contains(&segment.object));
                assert!(!is_new || group_of(entry.first) == group_of(entry.last), "{}", segment.object);
            }
        }
    }

    async fn restart(&mut self) {
        if self.disk.is_none() {
            self.flush().await;
        }
        self.process = self.store.machine(self.store.bucket(), self.disk.clone()).boot().await;
        self.check(&self.process, &self.model, "after a start").await;
        self.process.load_index().await;
    }

    async fn check(&self, process: &Process, model: &Model, when: &str) {
        let now = self.store.now_ms();
        for name in &self.names {
            let expected = settled(&model.get(name).cloned().unwrap_or_default(), now);
            let got = settled(&process.container(name).await, now);
            if got != expected {
                assert!(
                    got.seen().is_empty() && is_dead(&expected),
                    "{when}: {name}: {got:?}, not {expected:?}"
                );
                assert!(process.engine.graves.may_hold(crate::testing::hash(name)), "{when}: {name} is gone");
            }
        }
    }

    /// Memory, then the bucket alone: nothing that was put there has lost a sibling or a dot.
    async fn check_all(&self) {
        self.check(&self.process, &self.model, "from memory").await;
        let now = self.store.now_ms();
        for name in &self.names {
            let mut held = self.process.engine.segments.read(&record_key(name), None).await.unwrap();
            held.sync(self.process.engine.graves.segments.read(&record_key(name), None).await.unwrap());
            let expected = self.flushed.get(name).cloned().unwrap_or_default();
            let (held, mut both) = (settled(&held, now), settled(&expected, now));
            both.sync(held.clone());
            assert_eq!(both, held, "{name} in segments");
        }
    }

    async fn check_elsewhere(&self) {
        self.process.commit().await;
        self.store.scrub().await;
        let store = self.store.copy().await;
        let process = store.machine(store.bucket(), None).boot().await;
        self.check(&process, &self.flushed, "from the bucket, index not loaded").await;
        process.load_index().await;
        self.check(&process, &self.flushed, "from the bucket").await;
    }
}

async fn run(seed: u64, steps: usize, with_disk: bool) -> usize {
    let mut world = World::new(seed, with_disk).await;
    let mut reaped = 0;
    for step in 0..steps {
        world.step().await;
        world.check_all().await;
        if step % 12 == 0 {
            world.check_elsewhere().await;
        }
        reaped = reaped.max(world.process.engine.graves.segments.all().len());
    }
    world.check_elsewhere().await;
    reaped
}

#[tokio::test(start_paused = true)]
async fn however_segments_are_merged_every_key_stays_what_it_is() {
    let mut reaped = 0;
    for seed in 0..24 {
        reaped += run(seed, 120, seed % 2 == 0).await;
    }
    assert!(reaped > 24, "{reaped} graves");
}

/// With many overwrites the bucket holds little more than one copy of everything, and each byte was written a few times.
#[tokio::test(start_paused = true)]
async fn the_bucket_holds_little_more_than_what_is_alive() {
    let store = Store::new();
    let mut process = store.machine(store.bucket(), None).boot().await;
    process.load_index().await;
    let (dice, mut model, mut request) = (Dice::new(5), Model::new(), 0);
    for flush in 0..60 {
        for _ in 0..40 {
            request += 1;
            // Some keys are written again and again, most once.
            let n = if dice.below(2) == 0 { dice.below(20) } else { 20 + dice.below(200) };
            let name = format!("k{n}");
            let seen = model.get(&name).map(Container::seen).cloned().unwrap_or_default();
            let delta = process.write(&name, version(request, &seen, &vec![b'x'; 3000])).await.unwrap();
            model.entry(name).or_default().sync(delta);
        }
        process.flush().await;
        process.compact().await;
        if flush % 20 == 19 {
            let mut live = SegmentBuilder::new();
            let mut records: Vec<_> = model.iter().map(|(name, c)| (record_key(name), c)).collect();
            records.sort_by(|a, b| a.0.cmp(&b.0));
            for (key, container) in records {
                let record = key.record(container.clone()).unwrap();
                live.push(key.hash, &record.encode(), &record.container.map(|v| Brief::from(v)));
            }
            let live = live.finish().unwrap().bytes.len() as u64;
            let named: u64 = process.engine.segments.all().iter().map(|segment| segment.bytes).sum();
            assert!(named * 2 <= live * 3, "{named} bytes for {live}");
        }
    }
    process.commit().await;
    let (segments, _) = store.scrub().await;
    assert_eq!(segments, model);
}
