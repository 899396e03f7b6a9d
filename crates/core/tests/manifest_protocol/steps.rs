//! What may happen next. One step is one request to the bucket with what the sender does before and after it;
//! everybody else may do anything between two of them. A process that is paused is one that takes no steps.

use super::borrower;
use super::compaction;
use super::rules::Scenario;
use super::world::{
    F, Facts, GRACE, KEPT, Lists, Manifest, Next, PROCESSES, Set, State, Stray, Wrong, flush_object,
    flushes_of, members,
};

/// Something that happens. Processes are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A process starts and leases the next epoch.
    Start(usize),
    /// It dies, with its memory.
    Kill(usize),
    /// Its next request.
    Step(usize),
    /// Its next request goes astray and will be repeated.
    StepAstray(usize),
    /// The client's next write comes in.
    Write(usize),
    /// Memory is put as the next flush; if it returns, its writes are acknowledged.
    Flush(usize),
    /// The same, but the request goes astray and will be repeated.
    FlushAstray(usize),
    /// Memory is to be flushed, but not yet (only where flushes need no order).
    Freeze(usize),
    /// A flush before the one that waits (only where flushes need no order).
    FlushAhead(usize),
    /// A manifest is due.
    BeginCommit(usize),
    /// Everything is to be merged.
    Compact(usize),
    /// The same, and the tombstone is left out.
    Reap(usize),
    /// Only what holds the tombstone is merged, without it (only where not all segments need be inputs).
    ReapFew(usize),
    /// Dropped objects are due.
    BeginSweep(usize),
    /// Lists c/ and g/: what nobody needs is dropped.
    FindOrphans(usize),
    /// Lists f/: flushes of older processes that came late are absorbed.
    Absorb(usize),
    /// The request that went astray arrives.
    Land,
    /// The other home takes the tombstone.
    HomeAgrees,
    /// The borrower's next step; the last is to let go.
    Borrow,
    /// It dies.
    BorrowerDies,
    /// A reader reads the newest manifest.
    Read,
    /// The store's clock goes on.
    Tick,
}

/// Everything that may happen in `s`, and what comes of it.
pub(crate) fn successors(s: &State, c: &Scenario, out: &mut Vec<(Action, State)>) {
    out.clear();
    let mut next = *s;
    let mut offer = |action: Action| {
        if apply(&mut next, c, action) {
            out.push((action, next));
            next = *s;
        }
    };
    for p in 0..c.processes.min(PROCESSES) {
        let process = &s.processes[p];
        match process.next {
            Next::Away => offer(Action::Start(p)),
            Next::Dead | Next::SteppedDown => {}
            _ => {
                offer(Action::Kill(p));
                if process.next != Next::Idle {
                    offer(Action::Step(p));
                    offer(Action::StepAstray(p));
                }
            }
        }
        if process.serves() {
            for action in [
                Action::Write,
                Action::Flush,
                Action::FlushAstray,
                Action::Freeze,
                Action::FlushAhead,
                Action::Absorb,
            ] {
                offer(action(p));
            }
        }
        if process.next == Next::Idle {
            for action in [
                Action::BeginCommit,
                Action::Compact,
                Action::Reap,
                Action::ReapFew,
                Action::BeginSweep,
                Action::FindOrphans,
            ] {
                offer(action(p));
            }
        }
    }
    for action in [Action::Land, Action::HomeAgrees, Action::Read, Action::Tick] {
        offer(action);
    }
    for action in [Action::Borrow, Action::BorrowerDies] {
        offer(action);
    }
}

/// Carries `action` out; `false`, with nothing changed, if it can't happen now.
pub(crate) fn apply(s: &mut State, c: &Scenario, action: Action) -> bool {
    match action {
        Action::Start(p) => start(s, c, p),
        Action::Kill(p) => kill(s, c, p),
        Action::Step(p) => step(s, c, p),
        Action::StepAstray(p) => step_astray(s, c, p),
        Action::Write(p) => write(s, c, p),
        Action::Flush(p) => flush(s, c, p),
        Action::FlushAstray(p) => flush_astray(s, c, p),
        Action::Freeze(p) => freeze(s, c, p),
        Action::FlushAhead(p) => flush_ahead(s, c, p),
        Action::BeginCommit(p) => begin_commit(s, c, p),
        Action::Compact(p) => compaction::begin(s, c, p, false, false),
        Action::Reap(p) => compaction::begin(s, c, p, true, false),
        Action::ReapFew(p) => compaction::begin(s, c, p, true, true),
        Action::BeginSweep(p) => begin_sweep(s, c, p),
        Action::FindOrphans(p) => compaction::find_orphans(s, p),
        Action::Absorb(p) => absorb(s, c, p),
        Action::Land => land(s),
        Action::HomeAgrees => home_agrees(s, c),
        Action::Borrow => borrower::step(s, c),
        Action::BorrowerDies => borrower::die(s, c),
        Action::Read => read(s, c),
        Action::Tick => tick(s, c),
    }
}

// ---- the life of a process ----

fn start(s: &mut State, c: &Scenario, p: usize) -> bool {
    if s.processes[p].next != Next::Away || (p > 0 && s.processes[p - 1].next == Next::Away) {
        return false;
    }
    s.leases += 1;
    s.processes[p].epoch = s.leases;
    s.processes[p].next = Next::ClaimRead;
    if !c.rules.list_last {
        s.processes[p].scratch = s.exists & F;
    }
    true
}

fn kill(s: &mut State, c: &Scenario, p: usize) -> bool {
    if s.kills >= c.kills {
        return false;
    }
    s.kills += 1;
    end(s, p, Next::Dead);
    true
}

fn end(s: &mut State, p: usize, how: Next) {
    let epoch = s.processes[p].epoch;
    s.processes[p] = super::world::Process { next: how, epoch, ..Default::default() };
}

/// Stops taking writes. Nobody does that whose manifest is the newest.
fn step_down(s: &mut State, p: usize) {
    if s.newest.version > 0 && usize::from(s.newest.process) == p {
        s.wrong = Some(Wrong::Stuck);
    }
    end(s, p, Next::SteppedDown);
}

fn step(s: &mut State, c: &Scenario, p: usize) -> bool {
    match s.processes[p].next {
        Next::ClaimRead => claim_read(s, c, p),
        Next::ClaimPut | Next::Commit => return create(s, c, p),
        Next::ClaimCheck | Next::Check => check(s, c, p),
        Next::TakeUp => take_up(s, c, p),
        Next::PutGrave => compaction::put_grave(s, c, p),
        Next::PutOutput => return compaction::put_output(s, c, p),
        Next::Reread => reread(s, c, p),
        Next::Pins => list_pins(s, p),
        Next::Delete => delete(s, c, p),
        Next::Away | Next::Dead | Next::SteppedDown | Next::Idle => return false,
    }
    true
}

/// The request is on its way; its sender hears nothing and will repeat it.
fn step_astray(s: &mut State, c: &Scenario, p: usize) -> bool {
    if s.strays >= c.strays || s.stray != Stray::None {
        return false;
    }
    let process = &s.processes[p];
    s.stray = match process.next {
        Next::ClaimPut | Next::Commit if process.version < c.versions => Stray::Create(manifest(s, c, p)),
        Next::Delete => match members(process.scratch).next() {
            Some(object) => Stray::Delete(object),
            None => return false,
        },
        Next::PutOutput => match compaction::output(s, c, p) {
            Some((object, facts)) => Stray::Put(object, facts),
            None => return false,
        },
        _ => return false,
    };
    s.processes[p].tried = matches!(s.stray, Stray::Create(_));
    s.strays += 1;
    true
}

fn land(s: &mut State) -> bool {
    match std::mem::take(&mut s.stray) {
        Stray::None => return false,
        Stray::Put(object, facts) => s.put(object, facts),
        Stray::Create(manifest) => {
            if s.manifest_of(manifest.version).is_none() {
                s.create(manifest);
            }
        }
        Stray::Delete(object) => s.delete(object),
    }
    true
}

// ---- manifests ----

/// The next manifest of a process.
fn manifest(s: &State, c: &Scenario, p: usize) -> Manifest {
    let process = &s.processes[p];
    let mut lists = process.lists;
    if !c.rules.dropped_list {
        (lists.dropped, lists.since) = (0, Default::default());
    }
    let number = u8::try_from(p).unwrap_or(u8::MAX);
    Manifest { version: process.version + 1, process: number, epoch: process.epoch, at: 0, lists }
}

/// Notes when the objects were dropped that a manifest put `at` lists without a time: they were dropped with it,
/// or earlier.
fn note_since(lists: &mut Lists, dropped: Set, at: u8) {
    for object in members(dropped & lists.dropped) {
        if lists.since.get(object).is_none() {
            lists.since.set(object, Some(at));
        }
    }
}

fn claim_read(s: &mut State, c: &Scenario, p: usize) {
    let newest = s.newest;
    if newest.epoch > s.processes[p].epoch && c.rules.newer_epoch {
        return step_down(s, p);
    }
    let process = &mut s.processes[p];
    (process.version, process.at, process.lists) = (newest.version, newest.at, newest.lists);
    note_since(&mut process.lists, newest.lists.dropped, newest.at);
    // The first process has nobody to take the name from.
    process.next = if c.rules.claim || p == 0 { Next::ClaimPut } else { Next::TakeUp };
}

/// If-None-Match on the next version.
fn create(s: &mut State, c: &Scenario, p: usize) -> bool {
    let claims = s.processes[p].next == Next::ClaimPut;
    let version = s.processes[p].version + 1;
    if version > c.versions {
        return false;
    }
    match s.manifest_of(version) {
        None => {
            if s.newest.version > version && !c.rules.verify {
                s.wrong = Some(Wrong::TwoOwners);
            }
            s.create(manifest(s, c, p));
        }
        Some(by) if c.rules.put_id && s.processes[p].tried && usize::from(by) == p => {}
        Some(_) => {
            s.processes[p].tried = false;
            if claims {
                s.processes[p].next = Next::ClaimRead;
            } else {
                step_down(s, p);
            }
            return true;
        }
    }
    s.processes[p].tried = false;
    s.processes[p].next = if claims { Next::ClaimCheck } else { Next::Check };
    true
}

/// Is there a newer version than the one just put?
fn check(s: &mut State, c: &Scenario, p: usize) {
    let claims = s.processes[p].next == Next::ClaimCheck;
    let version = s.processes[p].version + 1;
    if s.newest.version > version && c.rules.verify {
        s.forget(version);
        if claims {
            s.processes[p].next = Next::ClaimRead;
        } else {
            step_down(s, p);
        }
        return;
    }
    let mut newest = s.newest;
    if newest.version != version || usize::from(newest.process) != p {
        // It believes that its own is the newest.
        newest = Manifest { at: s.now, ..manifest(s, c, p) };
    }
    s.forget(version.saturating_sub(KEPT));
    let process = &mut s.processes[p];
    (process.version, process.at) = (version, newest.at);
    let dropped = if c.rules.dropped_list { newest.lists.dropped } else { process.lists.dropped };
    note_since(&mut process.lists, dropped, newest.at);
    process.dirty = if c.rules.dropped_list {
        process.lists != newest.lists
    } else {
        (process.lists.segments, process.lists.graves) != (newest.lists.segments, newest.lists.graves)
    };
    if claims {
        process.next = Next::TakeUp;
    } else {
        compaction::after_commit(s, c, p);
    }
}

fn begin_commit(s: &mut State, c: &Scenario, p: usize) -> bool {
    // To learn the time, too, if something waits for it.
    let waits = s.processes[p].lists.dropped != 0 || compaction::orphans(s, p) != 0;
    let process = &mut s.processes[p];
    let due = process.dirty || (waits && s.now > process.at);
    if !due || process.version >= c.versions {
        return false;
    }
    process.next = Next::Commit;
    true
}

// ---- flushes ----

/// Flushes that are in none of the process's lists, and not being put by it.
fn unknown_flushes(s: &State, c: &Scenario, p: usize) -> Set {
    let me = &s.processes[p];
    let known = me.lists.segments | me.lists.dropped | me.absorbed;
    let mut unknown = 0;
    for (q, other) in s.processes.iter().enumerate() {
        if other.epoch < me.epoch && q != p {
            unknown |= flushes_of(q);
        }
    }
    if c.rules.absorb_own {
        let begun = (0..me.flushes).filter_map(|n| flush_object(p, n));
        unknown |= begun.fold(0, |set, object| set | 1 << object);
    }
    if !c.rules.unique_flushes {
        unknown = flushes_of(0);
    }
    s.exists & unknown & !known
}

/// At the start: unknown flushes are named as they are, and all is compared with the graves.
fn take_up(s: &mut State, c: &Scenario, p: usize) {
    let lists = s.processes[p].lists;
    let listed = if c.rules.list_last { s.exists & F } else { s.processes[p].scratch };
    let unknown = listed & !(lists.segments | lists.dropped);
    for object in members(unknown) {
        name(s, c, p, object);
    }
    if c.rules.graves && c.rules.graves_for_named {
        exhume(s, c, p, s.merged(s.processes[p].lists.segments));
    }
    if !c.rules.unique_flushes {
        let there = members(s.exists & flushes_of(0)).count();
        s.processes[p].flushes = u8::try_from(there).unwrap_or(u8::MAX);
    }
    let process = &mut s.processes[p];
    (process.scratch, process.next) = (0, Next::Idle);
    s.served = s.served.max(process.epoch);
}

/// Flushes of older processes that turn up later.
fn absorb(s: &mut State, c: &Scenario, p: usize) -> bool {
    let unknown = unknown_flushes(s, c, p);
    if unknown == 0 || !s.processes[p].frozen.is_empty() {
        return false;
    }
    for object in members(unknown) {
        if c.rules.name_late {
            name(s, c, p, object);
        } else {
            merge(s, c, p, object);
        }
    }
    if !c.rules.absorb_flushed {
        drop_absorbed(s, p);
    }
    settle_absorbed(s, p);
    true
}

/// The next manifest names the object.
fn name(s: &mut State, c: &Scenario, p: usize, object: usize) {
    if is_repeat(s, c, p, object) {
        return;
    }
    s.processes[p].lists.take(object);
    s.processes[p].lists.segments |= 1 << object;
    s.processes[p].dirty = true;
    if c.rules.graves {
        exhume(s, c, p, s.facts[object]);
    }
}

/// A flush that was taken up before is dropped: what it says is in others.
fn is_repeat(s: &mut State, c: &Scenario, p: usize, object: usize) -> bool {
    let lists = &mut s.processes[p].lists;
    if !c.rules.marks || !c.rules.unique_flushes || lists.repeats() & (1 << object) == 0 {
        return false;
    }
    lists.dropped |= 1 << object;
    s.processes[p].dirty = true;
    true
}

/// Brings deletions of keys that `found` speaks of back from the graves into memory, unless they are known.
fn exhume(s: &mut State, c: &Scenario, p: usize, found: Facts) {
    let buried = s.exhumed(s.processes[p].lists.graves, found, c);
    remember(s, c, p, buried);
}

/// Merges what an object says into memory.
fn merge(s: &mut State, c: &Scenario, p: usize, object: usize) {
    if is_repeat(s, c, p, object) {
        return;
    }
    let mut found = s.facts[object];
    if c.rules.graves {
        found = found.merge(s.exhumed(s.processes[p].lists.graves, found, c));
    }
    remember(s, c, p, found);
    s.processes[p].absorbed |= 1 << object;
}

/// Merges facts into memory if they are news: whole records, as a write would.
pub(crate) fn remember(s: &mut State, c: &Scenario, p: usize, facts: Facts) {
    let view = s.view(p);
    for key in 0..2 {
        let dots = c.dots_of(key);
        let merged = view.merge(facts).of(dots);
        if merged != view.of(dots) {
            s.processes[p].memory = s.processes[p].memory.merge(merged);
        }
    }
}

/// With nothing in memory, all that was absorbed is in the bucket otherwise.
fn settle_absorbed(s: &mut State, p: usize) {
    if s.processes[p].memory.is_empty() && s.processes[p].frozen.is_empty() {
        drop_absorbed(s, p);
    }
}

fn drop_absorbed(s: &mut State, p: usize) {
    let process = &mut s.processes[p];
    process.dirty |= process.absorbed != 0;
    process.lists.dropped |= process.absorbed;
    members(process.absorbed).for_each(|object| process.lists.take(object));
    process.absorbed = 0;
}

fn write(s: &mut State, c: &Scenario, p: usize) -> bool {
    let Some(write) = c.writes.get(usize::from(s.issued)) else { return false };
    let dot = 1 << s.issued;
    let before = c.dots_of(write.key) & (dot - 1);
    let record = Facts { seen: before | dot, live: dot };
    s.processes[p].memory = s.processes[p].memory.merge(record);
    s.processes[p].minted |= dot;
    s.issued += 1;
    true
}

/// The object of the next flush; without the incarnation in it, all processes count in one row.
fn next_flush(s: &State, c: &Scenario, p: usize) -> Option<usize> {
    flush_object(if c.rules.unique_flushes { p } else { 0 }, s.processes[p].flushes)
}

fn flush(s: &mut State, c: &Scenario, p: usize) -> bool {
    let Some(object) = next_flush(s, c, p) else { return false };
    if s.processes[p].frozen.is_empty() {
        if !c.rules.ordered {
            return false;
        }
        s.processes[p].frozen = std::mem::take(&mut s.processes[p].memory);
    }
    let facts = s.processes[p].frozen;
    if facts.is_empty() {
        return false;
    }
    s.put(object, facts);
    let process = &mut s.processes[p];
    process.frozen = Facts::default();
    process.flushes += 1;
    process.lists.segments |= 1 << object;
    process.lists.take(object);
    process.dirty = true;
    s.acked |= facts.seen & process.minted;
    settle_absorbed(s, p);
    true
}

fn flush_astray(s: &mut State, c: &Scenario, p: usize) -> bool {
    if s.strays >= c.strays || s.stray != Stray::None || !c.rules.ordered {
        return false;
    }
    let Some(object) = next_flush(s, c, p) else { return false };
    let process = &mut s.processes[p];
    if process.frozen.is_empty() {
        process.frozen = std::mem::take(&mut process.memory);
    }
    if process.frozen.is_empty() {
        return false;
    }
    s.stray = Stray::Put(object, process.frozen);
    s.strays += 1;
    true
}

fn freeze(s: &mut State, c: &Scenario, p: usize) -> bool {
    let process = &mut s.processes[p];
    if c.rules.ordered || process.memory.is_empty() || !process.frozen.is_empty() {
        return false;
    }
    process.frozen = std::mem::take(&mut process.memory);
    true
}

fn flush_ahead(s: &mut State, c: &Scenario, p: usize) -> bool {
    let process = &s.processes[p];
    if c.rules.ordered || process.memory.is_empty() || process.frozen.is_empty() {
        return false;
    }
    let Some(object) = flush_object(p, process.flushes + 1) else { return false };
    let facts = process.memory;
    s.put(object, facts);
    s.acked |= facts.seen & s.processes[p].minted;
    s.processes[p].memory = Facts::default();
    true
}

// ---- deletes ----

/// Those of `lists.dropped` whose time is over.
fn due(lists: &Lists, at: u8, c: &Scenario) -> Set {
    let wait = if c.rules.grace { GRACE } else { 0 };
    members(lists.dropped)
        .filter(|o| lists.since.get(*o).is_some_and(|since| since + wait <= at))
        .fold(0, |set, o| set | 1 << o)
}

fn begin_sweep(s: &mut State, c: &Scenario, p: usize) -> bool {
    let process = &mut s.processes[p];
    if due(&process.lists, process.at, c) == 0 {
        return false;
    }
    process.next = Next::Reread;
    if !c.rules.reread {
        reread(s, c, p);
    }
    true
}

fn reread(s: &mut State, c: &Scenario, p: usize) {
    let (newest, process) = (s.newest, &s.processes[p]);
    let (version, at) = (process.version, process.at);
    if c.rules.reread && (usize::from(newest.process) != p || newest.version != version) {
        return step_down(s, p);
    }
    let lists = if c.rules.dropped_list && c.rules.reread { newest.lists } else { process.lists };
    let process = &mut s.processes[p];
    process.scratch = due(&lists, at, c) & process.lists.dropped;
    process.next = Next::Pins;
    if !c.rules.pins_last {
        process.scratch &= !process.early_pins;
        process.next = Next::Delete;
    }
    if process.scratch == 0 {
        process.next = Next::Idle;
    }
}

fn list_pins(s: &mut State, p: usize) {
    let pinned = s.borrower.pin;
    let process = &mut s.processes[p];
    process.scratch &= !pinned;
    process.next = if process.scratch == 0 { Next::Idle } else { Next::Delete };
}

fn delete(s: &mut State, c: &Scenario, p: usize) {
    if let Some(object) = members(s.processes[p].scratch).next() {
        s.delete(object);
        let process = &mut s.processes[p];
        process.scratch &= !(1 << object);
        process.lists.dropped &= !(1 << object);
        process.lists.since.set(object, None);
        process.dirty = true;
    }
    if s.processes[p].scratch == 0 {
        compaction::after_delete(s, c, p);
    }
}

// ---- everybody else ----

fn home_agrees(s: &mut State, c: &Scenario) -> bool {
    let issued = c.tombstone().is_some_and(|i| i < usize::from(s.issued));
    if !issued || s.home_agrees {
        return false;
    }
    s.home_agrees = true;
    true
}

fn read(s: &mut State, c: &Scenario) -> bool {
    if s.readers >= c.readers || s.reader != 0 || s.newest.lists.segments == 0 {
        return false;
    }
    s.readers += 1;
    s.reader = s.newest.lists.segments;
    true
}

fn tick(s: &mut State, c: &Scenario) -> bool {
    if s.now >= c.ticks {
        return false;
    }
    s.now += 1;
    s.reader = 0;
    true
}
