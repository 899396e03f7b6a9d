//! Breadth first through all states, so that the first violation found has the shortest trace.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};

use xxhash_rust::xxh3::xxh3_128;

use super::borrower::Stage;
use super::checks::wrong;
use super::rules::Scenario;
use super::steps::{Action, apply, successors};
use super::world::{Next, State, Wrong, facts_text, members, name_of, names, object_name};

/// What a search found.
#[derive(Debug)]
pub(crate) struct Found {
    /// States seen.
    pub(crate) states: usize,
    /// The first violation, and how it came about.
    pub(crate) violation: Option<(Wrong, String)>,
}

/// Keeps what is hashed, so that a fast hash can be taken of all of it.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// Tells states apart: 128 bits of a good hash.
fn fingerprint(s: &State, scratch: &mut Bytes) -> u128 {
    scratch.0.clear();
    s.hash(scratch);
    xxh3_128(&scratch.0)
}

/// Searches all that may happen in `c`, up to the first violation.
pub(crate) fn search(c: &Scenario) -> Found {
    let first = begin(c);
    let mut scratch = Bytes::default();
    let mut seen = HashSet::from([fingerprint(&first, &mut scratch)]);
    // Which state, by which step, each was first reached from.
    let mut came: Vec<(u32, Action)> = vec![(0, Action::Tick)];
    let mut waiting = VecDeque::from([(0_u32, first)]);
    let mut next = Vec::new();
    while let Some((from, s)) = waiting.pop_front() {
        successors(&s, c, &mut next);
        for (action, t) in &next {
            if !seen.insert(fingerprint(t, &mut scratch)) {
                continue;
            }
            let number = u32::try_from(came.len()).unwrap_or(u32::MAX);
            came.push((from, *action));
            if let Some(kind) = wrong(t, c) {
                return Found { states: seen.len(), violation: Some((kind, trace(c, &came, number))) };
            }
            waiting.push_back((number, *t));
        }
        assert!(seen.len() < c.most_states, "the world is too large: {} states and no end", seen.len());
    }
    Found { states: seen.len(), violation: None }
}

/// Follows `walks` random paths of up to `steps` steps each through `c`, from a seed: for worlds that are too large
/// to be searched. `states` are steps here.
pub(crate) fn wander(c: &Scenario, seed: u64, walks: usize, steps: usize) -> Found {
    let mut random = seed;
    let mut next = Vec::new();
    let mut taken = 0;
    for _ in 0..walks {
        let mut s = begin(c);
        let mut came = vec![(0, Action::Tick)];
        for step in 0..steps {
            successors(&s, c, &mut next);
            if next.is_empty() {
                break;
            }
            random = splitmix(random);
            let (action, t) = next[usize::try_from(random >> 33).unwrap_or(0) % next.len()];
            s = t;
            taken += 1;
            came.push((u32::try_from(step).unwrap_or(u32::MAX), action));
            if let Some(kind) = wrong(&s, c) {
                let last = u32::try_from(came.len() - 1).unwrap_or(u32::MAX);
                return Found { states: taken, violation: Some((kind, trace(c, &came, last))) };
            }
        }
    }
    Found { states: taken, violation: None }
}

/// The next of a row of numbers that look random.
fn splitmix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The state after the prefix.
fn begin(c: &Scenario) -> State {
    let mut first = State::default();
    for action in c.prefix {
        assert!(apply(&mut first, c, *action), "the prefix can't do {action:?}");
        assert_eq!(wrong(&first, c), None, "the prefix breaks a rule at {action:?}");
    }
    first
}

/// The steps to a state, one a line.
fn trace(c: &Scenario, came: &[(u32, Action)], to: u32) -> String {
    let mut steps = Vec::new();
    let mut at = to;
    while at != 0 {
        let (from, action) = came[at as usize];
        steps.push(action);
        at = from;
    }
    let mut s = State::default();
    let mut text = String::new();
    for (n, action) in c.prefix.iter().chain(steps.iter().rev()).enumerate() {
        let before = s;
        apply(&mut s, c, *action);
        let _ = writeln!(text, "{:>3}. {}", n + 1, describe(&before, *action, &s));
    }
    text
}

/// A step, in words.
fn describe(before: &State, action: Action, after: &State) -> String {
    let mut text = match action {
        Action::Start(p) => format!("{} starts, epoch {}", name_of(p), after.processes[p].epoch),
        Action::Kill(p) => format!("{} dies", name_of(p)),
        Action::Step(p) => format!("{} {}", name_of(p), request(before, p)),
        Action::StepAstray(p) => {
            format!("{} {}; no answer, it will repeat that", name_of(p), request(before, p))
        }
        Action::Write(p) => format!("{} takes write w{}", name_of(p), after.issued),
        Action::Flush(p) => format!("{} flushes", name_of(p)),
        Action::FlushAstray(p) => format!("{} flushes; no answer, it will repeat that", name_of(p)),
        Action::Freeze(p) => format!("{} closes a memtable", name_of(p)),
        Action::FlushAhead(p) => format!("{} flushes the next memtable first", name_of(p)),
        Action::BeginCommit(p) => format!("{} is about to commit", name_of(p)),
        Action::Compact(p) | Action::Reap(p) | Action::ReapFew(p) => format!(
            "{} begins to merge {}{}",
            name_of(p),
            names(if after.processes[p].inputs != 0 { after.processes[p].inputs } else { 0 }),
            if matches!(action, Action::Compact(_)) { "" } else { ", without the tombstone" },
        ),
        Action::BeginSweep(p) => format!("{} is about to delete what was dropped", name_of(p)),
        Action::FindOrphans(p) => {
            let found = after.processes[p].lists.dropped & !before.processes[p].lists.dropped;
            format!("{} finds orphans: {}", name_of(p), names(found))
        }
        Action::Absorb(p) => {
            let all = |s: &State| {
                let (process, lists) = (&s.processes[p], &s.processes[p].lists);
                process.absorbed | lists.dropped | lists.segments
            };
            format!("{} finds late flushes: {}", name_of(p), names(all(after) & !all(before)))
        }
        Action::Land => "the lost request arrives".to_owned(),
        Action::HomeAgrees => "the other home takes the tombstone".to_owned(),
        Action::Borrow => borrows(before, after),
        Action::BorrowerDies => "the borrower dies".to_owned(),
        Action::Read => format!("a reader reads the manifest: {}", names(after.reader)),
        Action::Tick => format!("the store's clock: {}", after.now),
    };
    for object in members(after.exists) {
        if after.facts[object] != before.facts[object] {
            let _ = write!(text, " | put {} {}", object_name(object), facts_text(after.facts[object]));
        }
    }
    if before.exists & !after.exists != 0 {
        let _ = write!(text, " | deleted {}", names(before.exists & !after.exists));
    }
    if before.newest != after.newest {
        let (m, l) = (after.newest, after.newest.lists);
        let _ = write!(
            text,
            " | manifest {} of {}: [{}]",
            m.version,
            name_of(m.process.into()),
            names(l.segments)
        );
        if l.graves != 0 {
            let _ = write!(text, " graves [{}]", names(l.graves));
        }
        if l.dropped != 0 {
            let _ = write!(text, " dropped [{}]", names(l.dropped));
        }
    }
    if before.older != after.older {
        let versions = after.older.iter().filter(|(v, _)| *v > 0).map(|(v, _)| v.to_string());
        let _ = write!(text, " | older manifests: {}", versions.collect::<Vec<_>>().join(" "));
    }
    if before.acked != after.acked {
        let dots = (0..8).filter(|i| after.acked & !before.acked & (1 << i) != 0);
        let _ = write!(
            text,
            " | acknowledged: {}",
            dots.map(|i| format!("w{}", i + 1)).collect::<Vec<_>>().join(" ")
        );
    }
    for (p, process) in after.processes.iter().enumerate() {
        if process.next == Next::SteppedDown && before.processes[p].next != Next::SteppedDown {
            let _ = write!(text, " | {} steps down", name_of(p));
        }
    }
    text
}

fn borrows(before: &State, after: &State) -> String {
    let (b, a) = (before.borrower, after.borrower);
    match b.stage {
        Stage::Idle => format!("the borrower reads the manifest: {}", names(a.wants)),
        Stage::Pin => format!("the borrower pins {}", names(a.pin)),
        Stage::Reread => "the borrower reads the manifest again".to_owned(),
        Stage::Name => format!("the borrower names {}", names(a.named)),
        Stage::Rewrite => "the borrower puts what it has made of that".to_owned(),
        Stage::Rename => "the borrower names that instead".to_owned(),
        Stage::Unpin => "the borrower lets go".to_owned(),
        Stage::Down => format!("the borrower starts, and reads {}", names(a.reads)),
    }
}

fn request(s: &State, p: usize) -> String {
    let process = &s.processes[p];
    match process.next {
        Next::ClaimRead => format!("reads manifest {}", s.newest.version),
        Next::ClaimPut => format!("creates manifest {} to claim the name", process.version + 1),
        Next::Commit => format!("creates manifest {}", process.version + 1),
        Next::ClaimCheck | Next::Check => format!("looks for manifests after {}", process.version + 1),
        Next::TakeUp => "takes up unknown flushes and serves".to_owned(),
        Next::PutGrave => "puts a grave".to_owned(),
        Next::PutOutput => "puts what it merged".to_owned(),
        Next::Reread => format!("reads the newest manifest again: {}", s.newest.version),
        Next::Pins => format!("lists pins: {}", names(s.borrower.pin)),
        Next::Delete => format!("deletes the first of {}", names(process.scratch)),
        Next::Away | Next::Dead | Next::SteppedDown | Next::Idle => "does nothing".to_owned(),
    }
}
