//! What must hold in every state.

use super::borrower::Stage;
use super::rules::Scenario;
use super::steps::{Action, apply};
use super::world::{F, Facts, Next, State, Stray, Wrong, flush_object};

/// What is wrong with `s`.
pub(crate) fn wrong(s: &State, c: &Scenario) -> Option<Wrong> {
    let checks = [broken_step, missing, borrowed, lost_or_back, cleaned];
    checks.iter().find_map(|check| check(s, c).filter(|kind| c.overlook != Some(*kind)))
}

fn broken_step(s: &State, _: &Scenario) -> Option<Wrong> {
    s.wrong
}

/// Objects that somebody needs.
fn missing(s: &State, c: &Scenario) -> Option<Wrong> {
    let missing = |set| set & !s.exists != 0;
    if missing(s.newest.lists.segments | s.newest.lists.graves) {
        return Some(Wrong::Missing);
    }
    if let Some(p) = serving(s).map(|p| &s.processes[p]) {
        let early = if p.inputs != 0 && !c.rules.outputs_first { s.exists } else { !0 };
        if missing((p.lists.segments | p.lists.graves) & early) {
            return Some(Wrong::Missing);
        }
    }
    if missing(s.reader) {
        return Some(Wrong::Unpinned);
    }
    if missing(s.borrower.reads | s.borrower.named) {
        return Some(Wrong::Unpinned);
    }
    None
}

/// The borrower holds what it has said that it holds, whenever it starts again, and leaves no pin behind.
fn borrowed(s: &State, _: &Scenario) -> Option<Wrong> {
    let b = &s.borrower;
    if b.relied_on & !(b.named | b.own) != 0 {
        return Some(Wrong::Lost);
    }
    (b.stage == Stage::Idle && b.pin != 0).then_some(Wrong::Stuck)
}

/// Facts that a restart would lose, or bring back.
fn lost_or_back(s: &State, c: &Scenario) -> Option<Wrong> {
    let buried = s.buried(s.newest.lists.graves);
    let found = restarted(s, c);
    let gone = c.replaced_by(found.seen | buried);
    if c.overlook != Some(Wrong::Lost) && s.acked & !(found.live | gone | buried) != 0 {
        return Some(Wrong::Lost);
    }
    let values = c.writes.iter().enumerate().fold(0, |set, (i, w)| set | u8::from(!w.tombstone) << i);
    let replaced = c.replaced_by(s.acked) & values;
    if found.merge(other_home(s, c)).live & replaced != 0 {
        return Some(Wrong::Resurrected);
    }
    if let Some(p) = serving(s) {
        let buried = s.buried(s.processes[p].lists.graves);
        if s.view(p).live & buried & values != 0 {
            return Some(Wrong::Resurrected);
        }
    }
    None
}

/// The process that serves last. Who served before it may look for what is gone: nobody believes it any more.
fn serving(s: &State) -> Option<usize> {
    s.processes.iter().position(|p| p.serves() && p.epoch == s.served)
}

/// What a process that starts now would find: what the newest manifest names, and unknown flushes.
fn restarted(s: &State, c: &Scenario) -> Facts {
    let lists = s.newest.lists;
    let named = s.merged(lists.segments);
    let repeats = if c.rules.marks && c.rules.unique_flushes { lists.repeats() } else { 0 };
    let unknown = s.merged(s.exists & F & !(lists.segments | lists.dropped | repeats));
    let found = named.merge(unknown);
    if !c.rules.graves {
        return found;
    }
    let compared = if c.rules.graves_for_named { found } else { unknown };
    found.merge(s.exhumed(lists.graves, compared, c))
}

/// The other home of the first key: it has the values that the client wrote before it deleted them, until it takes
/// the deletion. A reader asks it, too, and it knows nothing of graves.
fn other_home(s: &State, c: &Scenario) -> Facts {
    let Some(tombstone) = c.tombstone() else { return Facts::default() };
    if s.home_agrees {
        return Facts::default();
    }
    let issued = (1_u8 << s.issued) - 1;
    let before = c.dots_of(c.writes[tombstone].key) & ((1 << tombstone) - 1) & issued;
    let newest = (0..tombstone).rev().map(|i| 1_u8 << i).find(|dot| before & dot != 0).unwrap_or(0);
    Facts { seen: before, live: newest }
}

/// With one process left, which does nothing at the moment: left alone with the bucket it gets rid of everything
/// that is not needed.
fn cleaned(s: &State, c: &Scenario) -> Option<Wrong> {
    let mut left = None;
    for (p, process) in s.processes.iter().enumerate() {
        match process.next {
            Next::Idle if left.is_none() => left = Some(p),
            Next::Away | Next::Dead | Next::SteppedDown => {}
            _ => return None,
        }
    }
    let p = left?;
    let quiet = s.stray == Stray::None && s.borrower.stage == Stage::Idle && s.reader == 0;
    // It may have to flush twice, memory and what it absorbs, and the world is small.
    let process = &s.processes[p];
    let unknown = s.exists & F & !(s.newest.lists.segments | s.newest.lists.dropped | process.lists.segments);
    let flushes = u8::from(process.memory.seen | process.frozen.seen != 0) + u8::from(unknown != 0);
    let full = flushes > 0 && flush_object(p, process.flushes + flushes - 1).is_none();
    if !quiet || full || usize::from(s.newest.process) != p {
        return None;
    }
    let mut s = *s;
    let alone = Scenario { ticks: c.ticks + 6, versions: u8::MAX, strays: 0, ..*c };
    for _ in 0..6 {
        if is_clean(&s, p) {
            return None;
        }
        apply(&mut s, &alone, Action::Flush(p));
        apply(&mut s, &alone, Action::Absorb(p));
        apply(&mut s, &alone, Action::Flush(p));
        apply(&mut s, &alone, Action::FindOrphans(p));
        for begin in [Action::BeginCommit(p), Action::BeginSweep(p)] {
            if apply(&mut s, &alone, begin) {
                while s.processes[p].next != Next::Idle {
                    if !apply(&mut s, &alone, Action::Step(p)) || s.wrong == Some(Wrong::Stuck) {
                        return Some(Wrong::Stuck);
                    }
                }
            }
        }
        apply(&mut s, &alone, Action::Tick);
    }
    (!is_clean(&s, p)).then_some(Wrong::Stuck)
}

/// Everything in the bucket is named.
fn is_clean(s: &State, p: usize) -> bool {
    s.newest.lists.dropped == 0
        && s.exists == s.newest.lists.segments | s.newest.lists.graves
        && s.processes[p].next == Next::Idle
}
