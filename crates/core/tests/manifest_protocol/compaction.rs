//! Compaction: some segments are merged into one, and what it is made of is dropped.

use super::rules::Scenario;
use super::steps::remember;
use super::world::{C_AND_G, Facts, GRACE, Next, Set, State, grave_object, members, output_object};

/// What the tombstone's key is made of; none if the scenario has no tombstone.
fn reaped_dots(c: &Scenario) -> u8 {
    c.tombstone().map_or(0, |i| c.dots_of(c.writes[i].key))
}

/// Plans a compaction of all segments, or of `few`: those with the tombstone.
pub(crate) fn begin(s: &mut State, c: &Scenario, p: usize, reaps: bool, few: bool) -> bool {
    let process = &s.processes[p];
    if s.compactions >= c.compactions || process.version >= c.versions {
        return false;
    }
    let dots = reaped_dots(c);
    let mut inputs = process.lists.segments;
    if few {
        if c.rules.all_inputs {
            return false;
        }
        let tombstone = c.tombstone().map_or(0, |i| 1 << i);
        inputs = members(inputs).filter(|o| s.facts[*o].live & tombstone != 0).fold(0, |set, o| set | 1 << o);
    }
    if reaps {
        // What is left of the key is one tombstone.
        let left = s.merged(inputs).of(dots).live;
        let tombstone = c.tombstone().map_or(0, |i| 1 << i);
        if left == 0 || left != tombstone || (c.rules.proof && !s.home_agrees) {
            return false;
        }
        if s.exists & 1 << grave_object(p) != 0 {
            return false;
        }
    } else if inputs.count_ones() < 2 {
        return false;
    }
    if !c.rules.unique_outputs {
        // A name that waits to be deleted is not used.
        let Some(object) = plan_slot(s, inputs).and_then(|slot| output_object(0, u8::try_from(slot).ok()?))
        else {
            return false;
        };
        if s.processes[p].lists.dropped & (1 << object) != 0 {
            return false;
        }
    }
    s.compactions += 1;
    let pins = s.borrower.pin;
    let process = &mut s.processes[p];
    (process.inputs, process.reaps) = (inputs, reaps);
    if !c.rules.pins_last {
        process.early_pins = pins;
    }
    if !c.rules.unique_outputs
        && let Some(slot) = plan_slot(s, inputs)
    {
        s.plans[slot] = inputs;
    }
    s.processes[p].next = Next::PutOutput;
    if reaps && c.rules.grave_first {
        s.processes[p].next = Next::PutGrave;
    } else if !c.rules.outputs_first {
        swap(s, c, p);
    }
    true
}

/// Where the plan for these inputs is kept, or can be.
fn plan_slot(s: &State, inputs: Set) -> Option<usize> {
    s.plans.iter().position(|plan| *plan == inputs).or_else(|| s.plans.iter().position(|plan| *plan == 0))
}

/// The output of the running compaction; `None` if nothing is left.
pub(crate) fn output(s: &State, c: &Scenario, p: usize) -> Option<(usize, Facts)> {
    let process = &s.processes[p];
    let without = if process.reaps { reaped_dots(c) } else { 0 };
    let facts = s.merged(process.inputs).of(!without);
    let object = if c.rules.unique_outputs {
        output_object(p, process.outputs)?
    } else {
        output_object(0, u8::try_from(plan_slot(s, process.inputs)?).ok()?)?
    };
    (!facts.is_empty()).then_some((object, facts))
}

pub(crate) fn put_grave(s: &mut State, c: &Scenario, p: usize) {
    let buried = s.merged(s.processes[p].inputs).of(reaped_dots(c));
    s.put(grave_object(p), buried);
    if c.rules.grave_first {
        s.processes[p].next = Next::PutOutput;
    } else {
        s.processes[p].lists.graves |= 1 << grave_object(p);
        s.processes[p].dirty = true;
        done(s, p);
    }
}

pub(crate) fn put_output(s: &mut State, c: &Scenario, p: usize) -> bool {
    if c.rules.unique_outputs && output_object(p, s.processes[p].outputs).is_none() {
        return false;
    }
    if let Some((object, facts)) = output(s, c, p) {
        s.put(object, facts);
    }
    if c.rules.outputs_first {
        swap(s, c, p);
    } else {
        finish(s, c, p);
    }
    true
}

/// From here on the process reads the output, and its next manifest says so.
fn swap(s: &mut State, c: &Scenario, p: usize) {
    let output = output(s, c, p);
    let reaped = if s.processes[p].reaps { reaped_dots(c) } else { 0 };
    let tombstone = s.merged(s.processes[p].inputs).of(reaped);
    let process = &mut s.processes[p];
    process.lists.segments &= !process.inputs;
    process.lists.dropped |= process.inputs;
    if let Some((object, _)) = output {
        process.lists.segments |= 1 << object;
    }
    let elsewhere = s.view(p).seen & reaped != 0;
    if elsewhere && c.rules.look_at_swap {
        remember(s, c, p, tombstone);
    }
    let process = &mut s.processes[p];
    if c.rules.outputs_first {
        process.outputs += u8::from(output.is_some());
    }
    if process.reaps && c.rules.grave_first {
        process.lists.graves |= 1 << grave_object(p);
    }
    process.dirty = true;
    process.next = Next::Commit;
    if !c.rules.drop_first {
        (process.next, process.scratch) = (Next::Delete, process.inputs);
    }
}

/// The manifest is there: what should have come before it comes now, if a rule is taken away.
pub(crate) fn after_commit(s: &mut State, c: &Scenario, p: usize) {
    if s.processes[p].inputs != 0 && !c.rules.outputs_first {
        s.processes[p].next = Next::PutOutput;
    } else {
        finish(s, c, p);
    }
}

fn finish(s: &mut State, c: &Scenario, p: usize) {
    if s.processes[p].reaps && !c.rules.grave_first {
        s.processes[p].next = Next::PutGrave;
    } else {
        done(s, p);
    }
}

fn done(s: &mut State, p: usize) {
    let process = &mut s.processes[p];
    (process.inputs, process.reaps, process.next) = (0, false, Next::Idle);
}

/// All that was to be deleted is gone.
pub(crate) fn after_delete(s: &mut State, c: &Scenario, p: usize) {
    let process = &mut s.processes[p];
    process.next = if process.inputs != 0 && !c.rules.drop_first { Next::Commit } else { Next::Idle };
}

/// Outputs and graves that `p` does not know: of compactions that were not finished.
pub(crate) fn orphans(s: &State, p: usize) -> Set {
    let lists = s.processes[p].lists;
    s.exists & C_AND_G & !(lists.segments | lists.graves | lists.dropped)
}

/// Drops those that are old.
pub(crate) fn find_orphans(s: &mut State, p: usize) -> bool {
    let at = s.processes[p].at;
    let old = |o: &usize| s.born.get(*o).is_some_and(|born| born + GRACE <= at);
    let orphans = members(orphans(s, p)).filter(old).fold(0, |set, o| set | 1 << o);
    if orphans == 0 {
        return false;
    }
    let process = &mut s.processes[p];
    process.lists.dropped |= orphans;
    process.dirty = true;
    true
}
