//! Another node, which borrows what this one's manifest names: it pins, names it in a manifest of its own, rewrites it
//! and lets go. It may die and start again.

use super::rules::Scenario;
use super::world::{Set, State, members};

/// What the borrower does next: one request to the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) enum Stage {
    /// Nothing is borrowed. It reads the owner's manifest.
    #[default]
    Idle,
    /// It puts its pin.
    Pin,
    /// It reads the owner's manifest again.
    Reread,
    /// It creates a manifest that names what is borrowed.
    Name,
    /// It puts what it has made of it.
    Rewrite,
    /// It creates a manifest that names that instead.
    Rename,
    /// It deletes its pin.
    Unpin,
    /// It has died. It starts, and looks for pins that it has left.
    Down,
}

/// The borrower, and what it has in the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Borrower {
    pub(crate) stage: Stage,
    /// What it found in the owner's manifest.
    pub(crate) wants: Set,
    /// What its pin in the bucket names.
    pub(crate) pin: Set,
    /// What its process reads.
    pub(crate) reads: Set,
    /// What its newest manifest names.
    pub(crate) named: Set,
    /// What is in objects of its own that its manifest names.
    pub(crate) own: Set,
    /// What it has said that it holds.
    pub(crate) relied_on: Set,
}

/// The borrower's next step; `false` if there is nothing for it to do.
pub(crate) fn step(s: &mut State, c: &Scenario) -> bool {
    let newest = s.newest.lists.segments;
    let adoptions_left = s.adoptions < c.adoptions;
    let b = &mut s.borrower;
    match b.stage {
        Stage::Idle if adoptions_left && newest != 0 => {
            s.adoptions += 1;
            (b.wants, b.stage) = (newest, Stage::Pin);
        }
        Stage::Idle => return false,
        Stage::Pin => {
            (b.pin, b.stage) = (b.wants, Stage::Reread);
            if !c.rules.pin_reread {
                (b.reads, b.stage) = (b.wants, Stage::Name);
            }
        }
        Stage::Reread if b.wants & !newest == 0 => {
            (b.reads, b.stage) = (b.wants, Stage::Name);
            if !c.rules.name_first {
                b.relied_on |= b.wants;
            }
        }
        Stage::Reread => b.stage = Stage::Unpin,
        Stage::Name => {
            (b.named, b.stage) = (b.reads, Stage::Rewrite);
            b.relied_on |= b.reads;
        }
        Stage::Rewrite => {
            (b.reads, b.stage) = (0, Stage::Rename);
            if !c.rules.release_last {
                b.pin = 0;
            }
        }
        Stage::Rename => {
            b.own |= b.named;
            (b.named, b.stage) = (0, Stage::Unpin);
        }
        Stage::Unpin => {
            let lent = b.wants & b.own;
            *b = Borrower { own: b.own, relied_on: b.relied_on, ..Borrower::default() };
            if !c.rules.foreign_kept {
                members(lent).for_each(|object| s.delete(object));
            }
        }
        Stage::Down => {
            (b.reads, b.wants) = (b.named, b.named);
            b.stage = match (b.named, b.pin) {
                (0, 0) => Stage::Idle,
                (0, _) if c.rules.left_pins => Stage::Unpin,
                (0, _) => Stage::Idle,
                _ => Stage::Rewrite,
            };
        }
    }
    true
}

/// It dies, with its memory.
pub(crate) fn die(s: &mut State, c: &Scenario) -> bool {
    if s.borrower_deaths >= c.borrower_deaths || matches!(s.borrower.stage, Stage::Idle | Stage::Down) {
        return false;
    }
    s.borrower_deaths += 1;
    let b = &mut s.borrower;
    (b.reads, b.wants, b.stage) = (0, 0, Stage::Down);
    true
}
