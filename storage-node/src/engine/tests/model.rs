//! The engine against a model: for every key one container that has taken in what the node was given. Whatever
//! the engine does with memtables, segments, caches, index and log, a read must give exactly the model's
//! container (P1, P2, P5), and a dot may never name two writes (P3).

use std::collections::BTreeMap;

use proptest::prelude::*;

use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value, Version};
use cartwheel_core::wire::Precondition;

use crate::engine::{Engine, MintRequest, whole};
use crate::log::{RECORDS, file_number};
use crate::memtable::Memtable;
use crate::testing::{Machine, Minted, Process, hash, key, mint_request, namespace, record_key, version};
use cartwheel_core::clock_index::Known;

const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const REMOTES: usize = 2;

/// What a writer has seen when it writes.
#[derive(Debug, Clone, Copy)]
enum Seen {
    Nothing,
    All,
    /// The nth clock that anybody read of this key.
    Earlier(usize),
}

#[derive(Debug, Clone)]
enum Step {
    Mint {
        key: usize,
        seen: Seen,
        big: bool,
        deletes: bool,
    },
    /// The nth mint of this key again.
    Again {
        key: usize,
        nth: usize,
    },
    /// Another home mints.
    Remote {
        key: usize,
        remote: usize,
        seen: Seen,
    },
    /// The nth delta of another home arrives here.
    Delta {
        key: usize,
        nth: usize,
        twice: bool,
    },
    /// Another home's whole record arrives here.
    Whole {
        key: usize,
        remote: usize,
    },
    /// Another home takes in what this one has.
    Pull {
        key: usize,
        remote: usize,
    },
    Read {
        key: usize,
    },
    /// A flush begins: the memtable is frozen, but still in memory.
    Freeze,
    /// The frozen memtable is in the bucket; then nothing is in memory but what came since.
    Flush,
    /// The background load of the clock index gets through one segment…
    LoadOne {
        nth: usize,
    },
    /// …or all of them.
    LoadAll,
    Commit,
    /// The process is killed and started again.
    Restart {
        keep_disk: bool,
        torn: usize,
    },
}

fn seen() -> impl Strategy<Value = Seen> {
    prop_oneof![Just(Seen::Nothing), Just(Seen::All), (0..20_usize).prop_map(Seen::Earlier)]
}

fn step() -> impl Strategy<Value = Step> {
    let k = || 0..KEYS.len();
    prop_oneof![
        6 => (k(), seen(), prop::bool::weighted(0.1), prop::bool::weighted(0.2))
            .prop_map(|(key, seen, big, deletes)| Step::Mint { key, seen, big, deletes }),
        1 => (k(), 0..10_usize).prop_map(|(key, nth)| Step::Again { key, nth }),
        3 => (k(), 0..REMOTES, seen()).prop_map(|(key, remote, seen)| Step::Remote { key, remote, seen }),
        4 => (k(), 0..20_usize, any::<bool>()).prop_map(|(key, nth, twice)| Step::Delta { key, nth, twice }),
        2 => (k(), 0..REMOTES).prop_map(|(key, remote)| Step::Whole { key, remote }),
        2 => (k(), 0..REMOTES).prop_map(|(key, remote)| Step::Pull { key, remote }),
        4 => k().prop_map(|key| Step::Read { key }),
        2 => Just(Step::Freeze),
        3 => Just(Step::Flush),
        1 => (0..8_usize).prop_map(|nth| Step::LoadOne { nth }),
        1 => Just(Step::LoadAll),
        1 => Just(Step::Commit),
        2 => (prop::bool::weighted(0.7), 0..40_usize)
            .prop_map(|(keep_disk, torn)| Step::Restart { keep_disk, torn }),
    ]
}

type Containers = BTreeMap<&'static str, Container<Version>>;

struct World {
    machine: Machine,
    process: Process,
    model: Containers,
    /// What the frozen memtable and all before it add up to.
    frozen: Option<Containers>,
    /// What is in the bucket.
    bucket: Containers,
    remotes: [Containers; REMOTES],
    deltas: BTreeMap<&'static str, Vec<Container<Version>>>,
    clocks: BTreeMap<&'static str, Vec<Clock>>,
    /// Mints of the present process, with what they got.
    minted: BTreeMap<&'static str, Vec<(MintRequest, Dot)>>,
    writes: BTreeMap<(&'static str, Dot), u128>,
    next_request: u128,
}

impl World {
    async fn new(with_disk: bool) -> Self {
        let machine = if with_disk { Machine::with_disk() } else { Machine::without_disk() };
        let process = machine.boot().await;
        Self {
            machine,
            process,
            model: Containers::new(),
            frozen: None,
            bucket: Containers::new(),
            remotes: Default::default(),
            deltas: BTreeMap::new(),
            clocks: BTreeMap::new(),
            minted: BTreeMap::new(),
            writes: BTreeMap::new(),
            next_request: 1,
        }
    }

    /// The strongest level that needs no flush: after it, the write must survive what the model says.
    fn durability(&self) -> Durability {
        if self.machine.disk.is_some() { Durability::Disk } else { Durability::Memory }
    }

    fn context(&self, key: &'static str, seen: Seen, held: &Containers) -> Clock {
        match seen {
            Seen::Nothing => Clock::new(),
            Seen::All => held.get(key).map(|c| c.seen().clone()).unwrap_or_default(),
            Seen::Earlier(nth) => {
                let clocks = self.clocks.get(key).map(Vec::as_slice).unwrap_or_default();
                clocks.get(nth % clocks.len().max(1)).cloned().unwrap_or_default()
            }
        }
    }

    fn request(&mut self) -> u128 {
        self.next_request += 1;
        self.next_request
    }

    /// P3: a dot names one write of a key, for ever.
    fn name(&mut self, key: &'static str, dot: &Dot, request: u128) {
        let before = self.writes.insert((key, dot.clone()), request);
        assert!(before.is_none_or(|b| b == request), "{dot} of {key} names two writes");
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Mint { key, seen, big, deletes } => self.mint(KEYS[key], seen, big, deletes).await,
            Step::Again { key, nth } => self.again(KEYS[key], nth).await,
            Step::Remote { key, remote, seen } => self.remote(KEYS[key], remote, seen),
            Step::Delta { key, nth, twice } => {
                let key = KEYS[key];
                let deltas = self.deltas.get(key).map(Vec::as_slice).unwrap_or_default();
                let Some(delta) = deltas.get(nth % deltas.len().max(1)).cloned() else { return };
                self.replicate(key, &delta).await;
                if twice {
                    self.replicate(key, &delta).await;
                }
            }
            Step::Whole { key, remote } => {
                let held = self.remotes[remote].get(KEYS[key]).cloned().unwrap_or_default();
                if !held.seen().is_empty() {
                    self.replicate(KEYS[key], &held).await;
                }
            }
            Step::Pull { key, remote } => {
                let held = self.model.get(KEYS[key]).cloned().unwrap_or_default();
                self.remotes[remote].entry(KEYS[key]).or_default().sync(held);
            }
            Step::Read { key } => {
                let seen = self.check(KEYS[key]).await;
                self.clocks.entry(KEYS[key]).or_default().push(seen);
            }
            Step::Freeze => {
                if self.process.engine.freeze().is_some() {
                    self.frozen.get_or_insert_with(|| self.model.clone());
                }
            }
            Step::Flush => self.flush().await,
            Step::LoadOne { nth } => self.load_one(nth).await,
            Step::LoadAll => self.process.load_index().await,
            Step::Commit => self.process.commit().await,
            Step::Restart { keep_disk, torn } => self.restart(keep_disk, torn).await,
        }
    }

    async fn mint(&mut self, key: &'static str, seen: Seen, big: bool, deletes: bool) {
        let context = self.context(key, seen, &self.model);
        let id = self.request();
        let value = if big { vec![b'x'; 20_000] } else { id.to_string().into_bytes() };
        let mut version = version(id, &context, &value);
        if deletes {
            version.value = Value::Deleted;
        }
        let request = mint_request(key, version.clone(), self.durability());
        let minted = self.process.mint(&request).await.unwrap();
        let Minted::New(dot, reached) = minted else { panic!("{id} is new") };
        assert_eq!(reached, self.durability());
        self.name(key, &dot, id);
        let delta = Container::delta(&context, dot.clone(), version);
        self.model.entry(key).or_default().sync(delta.clone());
        self.deltas.entry(key).or_default().push(delta);
        self.minted.entry(key).or_default().push((request, dot));
    }

    async fn again(&self, key: &'static str, nth: usize) {
        let minted = self.minted.get(key).map(Vec::as_slice).unwrap_or_default();
        let Some((request, dot)) = minted.get(nth % minted.len().max(1)) else { return };
        // A precondition that can't hold: what was done before is not asked again.
        let precondition = Precondition::IfMatch(cartwheel_core::wire::Tags::List(Vec::new()));
        let request = MintRequest { precondition, ..request.clone() };
        assert_eq!(self.process.mint(&request).await.unwrap(), Minted::Repeated(dot.clone()));
    }

    fn remote(&mut self, key: &'static str, remote: usize, seen: Seen) {
        let context = self.context(key, seen, &self.remotes[remote]);
        let id = self.request();
        let actor = Actor::parse(&format!("node-r{remote}.1")).unwrap();
        let held = self.remotes[remote].entry(key).or_default();
        let dot = held.next_dot(&actor, &context);
        let delta = Container::delta(&context, dot.clone(), version(id, &context, b"remote"));
        held.sync(delta.clone());
        self.deltas.entry(key).or_default().push(delta);
        self.name(key, &dot, id);
    }

    async fn replicate(&mut self, name: &'static str, container: &Container<Version>) {
        let record = Record { namespace: namespace(), key: key(name), container: container.clone() };
        let durability = self.durability();
        assert_eq!(self.process.replicate(&record, durability).unwrap().await.unwrap(), durability);
        self.model.entry(name).or_default().sync(container.clone());
    }

    async fn flush(&mut self) {
        let table = self.process.engine.freeze();
        if let Some(table) = table {
            let frozen = self.frozen.take().unwrap_or_else(|| self.model.clone());
            assert!(self.process.flusher.flush(&table, &self.process.stopped).await);
            self.bucket = frozen;
        }
    }

    async fn load_one(&self, nth: usize) {
        let engine = &self.process.engine;
        let segments = engine.segments.all();
        let Some(segment) = segments.get(nth % segments.len().max(1)) else { return };
        for (hash, brief) in segment.clocks(engine.segments.bucket()).await.unwrap().map(Result::unwrap) {
            engine.tables.write().index.join(hash, brief, false);
        }
    }

    /// Kill -9. What was acknowledged is there again: from the disk, or, without it, from the bucket.
    async fn restart(&mut self, keep_disk: bool, torn: usize) {
        match &self.machine.disk {
            Some(disk) if keep_disk => {
                let names = disk.list().await.unwrap();
                // The end of a write that was cut off.
                if let Some(last) = names.iter().rfind(|n| file_number(RECORDS, n).is_some()) {
                    let file = disk.read(last).await.unwrap();
                    disk.append(last, file.slice(..torn.min(file.len()))).await.unwrap();
                }
            }
            _ => {
                if self.machine.disk.is_some() {
                    self.machine.disk = Machine::with_disk().disk;
                }
                self.model = self.bucket.clone();
            }
        }
        self.frozen = None;
        self.minted.clear();
        let before = self.process.me.epoch;
        self.process = self.machine.boot().await;
        assert!(self.process.me.epoch > before);
    }

    /// What is read is what the model says; returns its clock.
    async fn check(&self, key: &'static str) -> Clock {
        let got = self.process.container(key).await;
        let expected = self.model.get(key).cloned().unwrap_or_default();
        assert_eq!(got, expected, "{key}");
        got.seen().clone()
    }

    /// No entry claims to have seen a live sibling that it does not hold, and those that claim to be all
    /// there is are.
    fn check_memory(&self) {
        let tables = self.process.engine.tables.read();
        for name in KEYS {
            let model = self.model.get(name).cloned().unwrap_or_default();
            for entry in tables.memtables().filter_map(|t: &Memtable| t.get(&record_key(name))) {
                let held = Record::decode(&entry.record).unwrap().container;
                for live in model.siblings() {
                    let holds = held.siblings().iter().any(|s| s.dot == live.dot);
                    assert!(holds || !held.seen().contains(&live.dot), "{name} hides {}", live.dot);
                }
            }
            if let Some(entry) = tables.active.get(&record_key(name)).filter(|e| e.complete) {
                assert_eq!(Record::decode(&entry.record).unwrap().container, model, "{name}");
            }
            match tables.index.get(hash(name)) {
                Known::All(known) => assert!(known.same_as(&model), "{name}: {known:?}"),
                Known::AtLeast(known) => assert!(model.seen().covers(known.seen()), "{name}: {known:?}"),
            }
        }
    }

    async fn check_scan(&self) {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let engine: &Engine = &self.process.engine;
            let (first, last) = (cartwheel_core::hash::KeyHash(0), cartwheel_core::hash::KeyHash(u128::MAX));
            let (page, more) = engine.scan(first, last, after.as_ref(), 1, None).await.unwrap();
            for bytes in &page {
                let record = Record::decode(bytes).unwrap();
                after = Some(record_key(std::str::from_utf8(record.key.as_bytes()).unwrap()));
                found.push(record);
            }
            if !more {
                break;
            }
        }
        let mut expected: Vec<Record> = self
            .model
            .iter()
            .filter(|(_, c)| !c.seen().is_empty())
            .map(|(name, c)| Record { namespace: namespace(), key: key(name), container: c.clone() })
            .collect();
        expected.sort_by_key(|r| record_key(std::str::from_utf8(r.key.as_bytes()).unwrap()));
        assert_eq!(found, expected);
    }
}

async fn run(with_disk: bool, steps: &[Step]) {
    let mut world = World::new(with_disk).await;
    for step in steps {
        world.step(step).await;
        world.check_memory();
    }
    for key in KEYS {
        world.check(key).await;
        // Again, now perhaps from the row cache.
        world.check(key).await;
    }
    world.check_scan().await;
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(384) })]

    #[test]
    fn the_engine_knows_what_the_model_knows(
        with_disk: bool,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(with_disk, &steps));
    }
}

#[test]
fn a_record_is_whole_only_with_every_live_sibling() {
    let dot = |n| Dot { actor: Actor::parse("node-a.1").unwrap(), n };
    let blind = Clock::new();
    let one = Container::delta(&blind, dot(1), version(1, &blind, b"one"));
    let two = Container::delta(&blind, dot(2), version(2, &blind, b"two"));
    let mut both = one.clone();
    both.sync(two);
    let live = both.map(|v| cartwheel_core::record::Brief::from(v));
    assert_eq!(whole(&one, &live), None);
    assert_eq!(whole(&both, &live), Some(both));
}
