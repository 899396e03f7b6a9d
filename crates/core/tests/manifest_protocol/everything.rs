//! All rules hold, and much may happen: nothing goes wrong.

use super::rules::{DELETE, OTHER, Scenario, VALUE};
use super::search::{Found, search, wander};
use super::steps::Action::{self, BeginCommit, Flush, Start, Step, Write};

const X: usize = 0;

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

/// Asserts that `found` saw more than `least` states, and nothing wrong.
fn is_safe(found: &Found, least: usize) {
    if let Some((kind, trace)) = &found.violation {
        panic!("{kind:?} after {} states:\n{trace}", found.states);
    }
    assert!(found.states > least, "only {} states", found.states);
}

/// Three processes want the name; two writes; one process may die.
#[test]
fn a_name_changes_hands() {
    let c = Scenario { processes: 3, writes: &[VALUE, VALUE], kills: 1, versions: 4, ..Scenario::BASE };
    is_safe(&search(&c), 40_000);
}

/// A value and its deletion, at either of two processes; all is merged once, with the tombstone or without.
#[test]
fn a_deleted_value_stays_deleted() {
    let c = Scenario { prefix: X_SERVES, writes: &[VALUE, DELETE], compactions: 1, ..Scenario::BASE };
    is_safe(&search(&Scenario { ticks: 1, versions: 5, ..c }), 30_000);
    is_safe(&search(&Scenario { strays: 1, versions: 4, ..c }), 20_000);
}

/// The key that was deleted is written again.
#[test]
fn a_key_lives_again() {
    let c = Scenario {
        prefix: X_SERVES,
        writes: &[VALUE, DELETE, VALUE],
        compactions: 1,
        versions: 4,
        ..Scenario::BASE
    };
    is_safe(&search(&c), 20_000);
}

/// Two flushes are there; then anything may happen once: a compaction, a borrower, a death, a request that
/// goes astray, and a second process.
#[test]
fn everything_may_happen() {
    let c = Scenario {
        prefix: X_HAS_TWO,
        writes: &[VALUE, DELETE],
        compactions: 1,
        ticks: 1,
        versions: 4,
        kills: 1,
        strays: 1,
        adoptions: 1,
        most_states: 400_000,
        ..Scenario::BASE
    };
    is_safe(&search(&c), 100_000);
}

/// Another node borrows twice, and dies; this one merges, deletes and is replaced.
#[test]
fn what_is_borrowed_stays_for_as_long_as_it_is_needed() {
    let c = Scenario {
        prefix: X_HAS_TWO,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ticks: 1,
        versions: 5,
        adoptions: 2,
        borrower_deaths: 1,
        most_states: 400_000,
        ..Scenario::BASE
    };
    is_safe(&search(&c), 20_000);
}

/// Readers are not disturbed by any of that.
#[test]
fn readers_find_what_they_look_for() {
    let c = Scenario {
        prefix: X_HAS_TWO,
        writes: &[VALUE, VALUE],
        compactions: 1,
        ticks: 2,
        versions: 5,
        readers: 2,
        ..Scenario::BASE
    };
    is_safe(&search(&c), 10_000);
}

/// A world too large to be searched: random paths through it.
#[test]
fn long_ways_through_a_large_world() {
    let c = Scenario {
        processes: 3,
        prefix: X_SERVES,
        writes: &[VALUE, DELETE, OTHER, VALUE],
        compactions: 4,
        ticks: 5,
        versions: 14,
        strays: 3,
        readers: 2,
        adoptions: 2,
        borrower_deaths: 2,
        ..Scenario::BASE
    };
    is_safe(&wander(&c, 1, 4_000, 200), 130_000);
    is_safe(&wander(&Scenario { prefix: X_HAS_TWO, kills: 1, ..c }, 2, 4_000, 200), 100_000);
}
