//! Each rule is taken away alone, in a world just large enough: the search finds what it is for. With the rule,
//! the same world is safe.

use super::rules::{DELETE, OTHER, Rules, Scenario, VALUE};
use super::search::search;
use super::steps::Action::{
    self, BeginCommit, BeginSweep, Compact, Flush, FlushAstray, Start, Step, Tick, Write,
};
use super::world::Wrong::{self, Lost, Stuck, TwoOwners};

const X: usize = 0;
const Y: usize = 1;
const Z: usize = 2;

/// X has claimed the name and serves.
const X_SERVES: &[Action] = &[Start(X), Step(X), Step(X), Step(X), Step(X)];
/// It has flushed twice, and its second manifest says so.
const X_HAS_TWO: &[Action] = &[
    Start(X),
    Step(X),
    Step(X),
    Step(X),
    Step(X),
    Write(X),
    Flush(X),
    Write(X),
    Flush(X),
    BeginCommit(X),
    Step(X),
    Step(X),
];

/// Asserts that `c` is safe, and that `broken` is not without the rule that `off` takes away.
fn needs(c: Scenario, off: impl Fn(&mut Rules), broken: Wrong) {
    let safe = search(&c);
    if let Some((kind, trace)) = safe.violation {
        panic!("{kind:?} with all rules, after {} states:\n{trace}", safe.states);
    }
    let mut rules = c.rules;
    off(&mut rules);
    let found = search(&Scenario { rules, ..c });
    let Some((kind, trace)) = found.violation else {
        panic!("{} states, and nothing is wrong without the rule; {} with it", found.states, safe.states);
    };
    assert_eq!(kind, broken, "\n{trace}");
    show(&format!(
        "{kind:?}; safe with the rule: {} states
{trace}",
        safe.states
    ));
}

/// For people, with `--nocapture`.
#[expect(clippy::print_stdout, reason = "what a rule is for, as a trace, is worth reading")]
fn show(text: &str) {
    println!("{text}");
}

#[test]
fn claim_before_serving() {
    let c = Scenario {
        prefix: X_HAS_TWO,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ticks: 1,
        versions: 5,
        ..Scenario::BASE
    };
    needs(c, |r| r.claim = false, Wrong::Missing);
}

/// The marks guard against that, too.
#[test]
fn look_for_unknown_flushes_after_the_manifest() {
    let c = Scenario {
        prefix: X_SERVES,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ticks: 1,
        versions: 6,
        ..Scenario::BASE
    };
    let c = Scenario { rules: Rules { marks: false, ..Rules::ALL }, ..c };
    needs(c, |r| r.list_last = false, Wrong::Missing);
}

#[test]
fn an_older_process_that_starts_late_steps_down() {
    needs(Scenario::BASE, |r| r.newer_epoch = false, Wrong::Backwards);
}

#[test]
fn the_put_id_tells_whose_a_manifest_is() {
    let c = Scenario { processes: 1, prefix: X_SERVES, writes: &[VALUE], strays: 1, ..Scenario::BASE };
    needs(c, |r| r.put_id = false, Wrong::Stuck);
}

#[test]
fn look_for_newer_versions_after_a_create() {
    let c = Scenario { prefix: X_SERVES, writes: &[VALUE, VALUE, VALUE], versions: 4, ..Scenario::BASE };
    needs(c, |r| r.verify = false, Wrong::TwoOwners);
}

/// Y has read the manifest that it wants to continue, and slept while Z wrote so many that the next name is free.
const Y_SLEPT: &[Action] = &[
    Start(X),
    Step(X),
    Step(X),
    Step(X),
    Step(X),
    Start(Y),
    Step(Y),
    Start(Z),
    Step(Z),
    Step(Z),
    Step(Z),
    Step(Z),
    Write(Z),
    Flush(Z),
    BeginCommit(Z),
    Step(Z),
    Step(Z),
    Write(Z),
    Flush(Z),
    BeginCommit(Z),
    Step(Z),
    Step(Z),
];

#[test]
fn look_for_newer_versions_after_a_claim_too() {
    let c =
        Scenario { processes: 3, prefix: Y_SLEPT, writes: &[VALUE, VALUE], versions: 5, ..Scenario::BASE };
    needs(c, |r| r.verify = false, Wrong::TwoOwners);
}

#[test]
fn dropped_objects_stay_for_their_readers() {
    let c = Scenario {
        processes: 1,
        prefix: X_HAS_TWO,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ticks: 1,
        versions: 5,
        readers: 1,
        ..Scenario::BASE
    };
    needs(c, |r| r.grace = false, Wrong::Unpinned);
}

/// So do the marks, for flushes.
#[test]
fn the_manifest_lists_what_was_dropped() {
    let c = Scenario {
        prefix: X_HAS_TWO,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ticks: 1,
        versions: 6,
        ..Scenario::BASE
    };
    let c = Scenario { rules: Rules { marks: false, ..Rules::ALL }, ..c };
    needs(c, |r| r.dropped_list = false, Wrong::Missing);
}

/// X has two flushes, and another node borrows them; it may die once.
const BORROWED: Scenario = Scenario {
    processes: 1,
    prefix: X_HAS_TWO,
    writes: &[VALUE, VALUE],
    compactions: 1,
    ticks: 1,
    versions: 5,
    adoptions: 1,
    borrower_deaths: 1,
    ..Scenario::BASE
};

#[test]
fn pins_are_listed_last() {
    let c = Scenario {
        processes: 1,
        prefix: X_HAS_TWO,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ticks: 1,
        versions: 5,
        adoptions: 1,
        overlook: Some(Stuck),
        ..Scenario::BASE
    };
    needs(c, |r| r.pins_last = false, Wrong::Unpinned);
}

#[test]
fn a_borrower_reads_the_manifest_again() {
    needs(BORROWED, |r| r.pin_reread = false, Wrong::Unpinned);
}

/// The borrower says that it holds something, and dies: nothing tells it what.
#[test]
fn what_is_borrowed_is_named_before_anybody_relies_on_it() {
    needs(BORROWED, |r| r.name_first = false, Lost);
}

/// The borrower reads its own objects already, but its manifest does not say so yet.
#[test]
fn a_borrower_lets_go_after_its_own_manifest() {
    needs(BORROWED, |r| r.release_last = false, Wrong::Unpinned);
}

#[test]
fn a_borrower_deletes_nothing_of_the_owners() {
    needs(BORROWED, |r| r.foreign_kept = false, Wrong::Missing);
}

/// It died between its pin and its manifest.
#[test]
fn pins_that_nothing_needs_go_at_a_start() {
    needs(BORROWED, |r| r.left_pins = false, Stuck);
}

#[test]
fn flushes_are_put_in_order() {
    let c = Scenario { processes: 1, prefix: X_SERVES, writes: &[VALUE, VALUE], ..Scenario::BASE };
    needs(c, |r| r.ordered = false, Wrong::Gap);
}

#[test]
fn outputs_come_before_the_manifest() {
    let c = Scenario {
        processes: 1,
        prefix: X_HAS_TWO,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ..Scenario::BASE
    };
    needs(c, |r| r.outputs_first = false, Wrong::Missing);
}

#[test]
fn deletes_come_after_the_manifest() {
    let c = Scenario {
        processes: 1,
        prefix: X_HAS_TWO,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ..Scenario::BASE
    };
    needs(c, |r| r.drop_first = false, Wrong::Missing);
}

#[test]
fn graves_come_before_the_manifest() {
    let c = Scenario {
        prefix: X_SERVES,
        writes: &[VALUE, DELETE],
        compactions: 1,
        versions: 4,
        overlook: Some(Lost),
        ..Scenario::BASE
    };
    needs(c, |r| r.grave_first = false, Wrong::Resurrected);
}

/// To compare all with the graves at a start and to look at the swap guard against the same.
#[test]
fn all_segments_with_the_key_are_merged() {
    let c = Scenario {
        processes: 1,
        prefix: X_HAS_TWO,
        writes: &[VALUE, DELETE],
        compactions: 1,
        ..Scenario::BASE
    };
    assert!(search(&Scenario { rules: Rules { all_inputs: false, ..Rules::ALL }, ..c }).violation.is_none());
    let rules = Rules { graves_for_named: false, look_at_swap: false, ..Rules::ALL };
    needs(Scenario { rules, ..c }, |r| r.all_inputs = false, Wrong::Resurrected);
}

#[test]
fn a_tombstone_stays_until_every_home_has_it() {
    let c = Scenario {
        processes: 1,
        prefix: X_HAS_TWO,
        writes: &[VALUE, DELETE],
        compactions: 1,
        ..Scenario::BASE
    };
    needs(c, |r| r.proof = false, Wrong::Resurrected);
}

#[test]
fn late_flushes_are_compared_with_graves() {
    let c = Scenario {
        prefix: X_SERVES,
        writes: &[VALUE, DELETE],
        compactions: 1,
        versions: 4,
        ..Scenario::BASE
    };
    needs(c, |r| r.graves = false, Wrong::Resurrected);
}

#[test]
fn a_late_flush_is_dropped_only_when_memory_was_flushed() {
    let c = Scenario { prefix: X_SERVES, writes: &[VALUE, VALUE], versions: 3, ..Scenario::BASE };
    let c = Scenario { rules: Rules { name_late: false, ..Rules::ALL }, ..c };
    needs(c, |r| r.absorb_flushed = false, Wrong::Lost);
}

/// A late flush may be named while a merge runs that leaves the tombstone out: it is not among the inputs.
const LATE: Scenario =
    Scenario { prefix: X_SERVES, writes: &[VALUE, DELETE], compactions: 1, versions: 4, ..Scenario::BASE };

#[test]
fn a_start_compares_all_with_the_graves() {
    needs(LATE, |r| r.graves_for_named = false, Wrong::Resurrected);
}

#[test]
fn a_tombstone_comes_back_if_its_key_lies_elsewhere_by_now() {
    needs(LATE, |r| r.look_at_swap = false, Wrong::Resurrected);
}

/// Where late flushes are merged into memory, there is no need for either.
#[test]
fn late_flushes_that_are_merged_need_less() {
    let rules = Rules { name_late: false, graves_for_named: false, look_at_swap: false, ..Rules::ALL };
    needs(Scenario { rules, ..LATE }, |r| r.name_late = true, Wrong::Resurrected);
}

/// X is about to delete what it has dropped; it has flushed twice, and the PUT of the first was repeated.
const X_IS_ABOUT_TO_DELETE: &[Action] = &[
    Start(X),
    Step(X),
    Step(X),
    Step(X),
    Step(X),
    Write(X),
    FlushAstray(X),
    Flush(X),
    Write(X),
    Flush(X),
    Compact(X),
    Step(X),
    Step(X),
    Step(X),
    Tick,
    BeginCommit(X),
    Step(X),
    Step(X),
    BeginSweep(X),
    Step(X),
    Step(X),
];

/// Y deletes it, too. Then the first PUT arrives, and then the delete of X. To merge late flushes into memory is not
/// enough: what is unknown at a start is named.
#[test]
fn a_flush_is_taken_up_once() {
    let c = Scenario {
        prefix: X_IS_ABOUT_TO_DELETE,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ticks: 1,
        versions: 5,
        strays: 1,
        ..Scenario::BASE
    };
    needs(c, |r| r.marks = false, Wrong::Missing);
    let rules = Rules { name_late: false, ..Rules::ALL };
    let c = Scenario { rules, processes: 3, versions: 6, ..c };
    needs(c, |r| r.marks = false, Wrong::Missing);
}

#[test]
fn ones_own_flush_that_comes_back_is_absorbed() {
    let c = Scenario {
        processes: 1,
        prefix: X_SERVES,
        writes: &[VALUE, VALUE],
        compactions: 1,
        strays: 1,
        ticks: 1,
        versions: 7,
        ..Scenario::BASE
    };
    needs(c, |r| r.absorb_own = false, Wrong::Stuck);
}

#[test]
fn flushes_of_two_processes_have_different_names() {
    let c = Scenario { prefix: X_SERVES, writes: &[VALUE, OTHER], overlook: Some(Stuck), ..Scenario::BASE };
    needs(c, |r| r.unique_flushes = false, Wrong::Lost);
}

/// X has put an output, and then lost the name to Y.
const X_LEFT_AN_ORPHAN: &[Action] = &[
    Start(X),
    Step(X),
    Step(X),
    Step(X),
    Step(X),
    Write(X),
    Flush(X),
    Write(X),
    Flush(X),
    BeginCommit(X),
    Step(X),
    Step(X),
    Compact(X),
    Step(X),
    Start(Y),
    Step(Y),
    Step(Y),
    Step(Y),
    Step(Y),
    Step(X),
];

/// Even for a process that does not use a name while that waits to be deleted.
#[test]
fn outputs_of_two_compactions_have_different_names() {
    let c = Scenario {
        prefix: X_LEFT_AN_ORPHAN,
        writes: &[VALUE, VALUE],
        compactions: 2,
        ticks: 2,
        versions: 7,
        strays: 1,
        overlook: Some(Stuck),
        ..Scenario::BASE
    };
    needs(c, |r| r.unique_outputs = false, Wrong::Missing);
}

/// X has slept while Y, the newer process, wrote so many manifests that X finds its next two versions free.
const X_SLEPT: &[Action] = &[
    Start(X),
    Step(X),
    Step(X),
    Step(X),
    Step(X),
    Write(X),
    Flush(X),
    Write(X),
    Flush(X),
    BeginCommit(X),
    Step(X),
    Step(X),
    Start(Y),
    Step(Y),
    Step(Y),
    Step(Y),
    Step(Y),
    Write(Y),
    Flush(Y),
    BeginCommit(Y),
    Step(Y),
    Step(Y),
    Write(Y),
    Flush(Y),
    BeginCommit(Y),
    Step(Y),
    Step(Y),
    Write(Y),
    Flush(Y),
    BeginCommit(Y),
    Step(Y),
    Step(Y),
];

/// To look for newer versions after a create and to read the newest manifest again before a delete guard against
/// the same: each is enough to keep what is named. Without both, a process that slept deletes it.
#[test]
fn read_the_newest_manifest_again_before_a_delete() {
    let c = Scenario {
        prefix: X_SLEPT,
        writes: &[VALUE, VALUE, VALUE, VALUE, VALUE],
        compactions: 1,
        ticks: 1,
        versions: 6,
        overlook: Some(TwoOwners),
        ..Scenario::BASE
    };
    let only_verify = Rules { reread: false, ..Rules::ALL };
    needs(Scenario { rules: only_verify, ..c }, |r| r.verify = false, Wrong::Missing);
    let only_reread = Rules { verify: false, ..Rules::ALL };
    needs(Scenario { rules: only_reread, ..c }, |r| r.reread = false, Wrong::Missing);
}
