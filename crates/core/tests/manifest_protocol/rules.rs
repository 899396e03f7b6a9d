//! The rules of the protocol as switches, and how large a world is searched.

use super::steps::Action;
use super::world::Wrong;

/// The rules. Each can be taken away alone, to see what it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// A process creates a manifest of its own before it serves.
    pub(crate) claim: bool,
    /// It looks for unknown flushes after it has read the manifest that it continues, not before.
    pub(crate) list_last: bool,
    /// A process that starts steps down when the newest manifest is of a newer epoch.
    pub(crate) newer_epoch: bool,
    /// "The name is taken" may be one's own earlier attempt: the put-id tells.
    pub(crate) put_id: bool,
    /// After a create: is there a newer version? (A name is free again once its manifest was forgotten.)
    pub(crate) verify: bool,
    /// The newest manifest is read again before objects are deleted.
    pub(crate) reread: bool,
    /// A dropped object stays for a while, by the store's clock.
    pub(crate) grace: bool,
    /// The manifest lists what was dropped until it is gone.
    pub(crate) dropped_list: bool,
    /// Pins are listed after the manifest that drops, before the delete.
    pub(crate) pins_last: bool,
    /// A borrower reads the manifest again after its pin was put.
    pub(crate) pin_reread: bool,
    /// It names what is borrowed in its own manifest before anybody relies on it.
    pub(crate) name_first: bool,
    /// It lets go when its own newest manifest names it no longer, not before.
    pub(crate) release_last: bool,
    /// It deletes no object of the owner's.
    pub(crate) foreign_kept: bool,
    /// When it starts it lets go of pins that nothing needs.
    pub(crate) left_pins: bool,
    /// A flush is not begun before the one before it returned.
    pub(crate) ordered: bool,
    /// Outputs are put before the manifest that names them.
    pub(crate) outputs_first: bool,
    /// Inputs are deleted after the manifest that drops them.
    pub(crate) drop_first: bool,
    /// A grave is put and named no later than the output that lacks the tombstone.
    pub(crate) grave_first: bool,
    /// A tombstone is left out only if every segment with its key is an input.
    pub(crate) all_inputs: bool,
    /// A tombstone is left out only if every other home holds it.
    pub(crate) proof: bool,
    /// What unknown flushes hold is compared with the graves: a deletion that it lacks comes back into memory.
    pub(crate) graves: bool,
    /// A start compares what the manifest names with the graves, too.
    pub(crate) graves_for_named: bool,
    /// When outputs take the place of inputs, a tombstone whose key lies elsewhere by now comes back into memory.
    pub(crate) look_at_swap: bool,
    /// The manifest says up to which number flushes of each incarnation were taken up: one of those that turns up
    /// again, from a PUT that was repeated, is dropped and not taken up again.
    pub(crate) marks: bool,
    /// Late flushes are named as they are. Else they are merged into memory, and dropped.
    pub(crate) name_late: bool,
    /// A flush that was merged into memory is dropped after what memory held then was flushed.
    pub(crate) absorb_flushed: bool,
    /// An unknown flush of one's own incarnation (a PUT that was repeated arrives late) is dropped, too.
    pub(crate) absorb_own: bool,
    /// Flushes have the incarnation in their names.
    pub(crate) unique_flushes: bool,
    /// Outputs of compactions have it, too; else they are named after what was merged.
    pub(crate) unique_outputs: bool,
}

impl Rules {
    /// The protocol.
    pub(crate) const ALL: Self = Self {
        claim: true,
        list_last: true,
        newer_epoch: true,
        put_id: true,
        verify: true,
        reread: true,
        grace: true,
        dropped_list: true,
        pins_last: true,
        pin_reread: true,
        name_first: true,
        release_last: true,
        foreign_kept: true,
        left_pins: true,
        ordered: true,
        outputs_first: true,
        drop_first: true,
        grave_first: true,
        all_inputs: true,
        proof: true,
        graves: true,
        graves_for_named: true,
        look_at_swap: true,
        marks: true,
        name_late: true,
        absorb_flushed: true,
        absorb_own: true,
        unique_flushes: true,
        unique_outputs: true,
    };
}

/// A write of the client. Each replaces all earlier ones of its key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Write {
    /// 0 or 1.
    pub(crate) key: u8,
    /// A deletion.
    pub(crate) tombstone: bool,
}

/// A value for the first key.
pub(crate) const VALUE: Write = Write { key: 0, tombstone: false };
/// A deletion of the first key.
pub(crate) const DELETE: Write = Write { key: 0, tombstone: true };
/// A value for the second key.
pub(crate) const OTHER: Write = Write { key: 1, tombstone: false };

/// What is searched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) rules: Rules,
    /// What the client writes, in this order, at any process that serves. At most four.
    pub(crate) writes: &'static [Write],
    /// What happens first, in this order; the search begins after it.
    pub(crate) prefix: &'static [Action],
    /// Processes that may exist: 1 to 3.
    pub(crate) processes: usize,
    /// How far the store's clock may go.
    pub(crate) ticks: u8,
    /// The newest manifest version that may come.
    pub(crate) versions: u8,
    /// Compactions of all processes together.
    pub(crate) compactions: u8,
    /// Processes that may be killed.
    pub(crate) kills: u8,
    /// Requests that go astray: the sender tries again, and they may land at any time, or never.
    pub(crate) strays: u8,
    /// Readers of a manifest.
    pub(crate) readers: u8,
    /// Times that the borrower tries.
    pub(crate) adoptions: u8,
    /// How often it may die.
    pub(crate) borrower_deaths: u8,
    /// A violation that is let pass, to see what comes of it.
    pub(crate) overlook: Option<Wrong>,
    /// Fail the search beyond so many states.
    pub(crate) most_states: usize,
}

impl Scenario {
    /// Two processes, all rules, nothing else may happen.
    pub(crate) const BASE: Self = Self {
        rules: Rules::ALL,
        writes: &[],
        prefix: &[],
        processes: 2,
        ticks: 0,
        versions: 3,
        compactions: 0,
        kills: 0,
        strays: 0,
        readers: 0,
        adoptions: 0,
        borrower_deaths: 0,
        overlook: None,
        most_states: 150_000,
    };

    /// The dots of `key`: bit i is write i.
    pub(crate) fn dots_of(&self, key: u8) -> u8 {
        self.writes.iter().enumerate().filter(|(_, w)| w.key == key).fold(0, |dots, (i, _)| dots | 1 << i)
    }

    /// The deletion, if there is one.
    pub(crate) fn tombstone(&self) -> Option<usize> {
        self.writes.iter().position(|w| w.tombstone)
    }

    /// The writes that `replaced` by one of `by`.
    pub(crate) fn replaced_by(&self, by: u8) -> u8 {
        let mut replaced = 0;
        for i in 0..self.writes.len() {
            if by & (1 << i) != 0 {
                replaced |= self.dots_of(self.writes[i].key) & ((1 << i) - 1);
            }
        }
        replaced
    }
}
