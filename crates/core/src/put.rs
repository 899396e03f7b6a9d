//! The decisions of one write: mint at one node, replicate the delta, answer at W
//! (Dynamo, SOSP 2007, sections 4.5 and 4.6).
//!
//! A pure machine: feed it events, carry out its actions. The rules that protect data:
//! a mint whose fate is unknown is repeated at the *same* node before any other (the same request id makes
//! it the same write); mints are never hedged; a replica counts only if it reached the durability asked; each home
//! counts once, whether it took the write or a fallback keeps it for that home, for reads ask homes; and while a
//! ring change is pending, W of the homes of *both* rings must hold the write, so that neither ring's reads can
//! miss it.

use crate::mutation::{Rule, removed};
use crate::quorum::{Applied, Durability, Failure, Fallbacks, Node, Tally, place_of};

/// How often a mint of unknown fate is sent to one node.
pub const MINT_TRIES_PER_NODE: u8 = 2;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutEvent {
    /// `node` minted the version; the delta is known from now on.
    Minted {
        /// The minter.
        node: Node,
        /// How far it is there.
        reached: Durability,
        /// May it count? A home that others stood in for is asked once more.
        counts: bool,
    },
    /// `node` did not mint, or did not say so.
    MintFailed {
        /// The node asked.
        node: Node,
        /// What is known of it.
        failure: Failure,
    },
    /// `node` took in the delta.
    Acked {
        /// The replica.
        node: Node,
        /// How far it is there.
        reached: Durability,
    },
    /// `node` took in the delta but does not count: it was away and is catching up.
    Extra {
        /// The home.
        node: Node,
    },
    /// `node` did not take in the delta, or did not say so.
    ReplicaFailed {
        /// The replica.
        node: Node,
    },
    /// `node` has no room, and there is no budget for others to stand in for it.
    NoRoom {
        /// The replica.
        node: Node,
    },
    /// The homes that have not answered yet are slow: others may stand in for them.
    Slow,
    /// The request's time is up.
    Deadline,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutAction {
    /// Ask `node` to mint; a fallback does it on behalf of `hint_for`.
    Mint {
        /// The node to ask.
        node: Node,
        /// The home it stands in for.
        hint_for: Option<Node>,
        /// Even if it is catching up: no better home can be reached.
        insist: bool,
    },
    /// Send the delta to `node`; a fallback keeps it for `hint_for`.
    Replicate {
        /// The replica.
        node: Node,
        /// The home it stands in for.
        hint_for: Option<Node>,
    },
    /// Ask the minter when its version is as durable as asked; its answer is an acknowledgement.
    Confirm {
        /// The minter.
        node: Node,
    },
    /// Ask this home, which does not count yet, again in a moment: nobody can stand in for it.
    AskAgain {
        /// The home.
        node: Node,
    },
    /// Answer the client. Given exactly once; replication may go on after it.
    Answer(PutOutcome),
}

/// What to tell the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// W acknowledgements, each of at least `reached`.
    Done {
        /// Who counted.
        tally: Tally,
        /// The lowest level among the counted.
        reached: Durability,
    },
    /// Fewer than W.
    Failed {
        /// Who counted.
        tally: Tally,
        /// Whether it may still become visible.
        applied: Applied,
        /// Whether it was the deadline that ended it.
        late: bool,
    },
}

/// A node that was asked to take the write, and the home that it stands in for.
type Slot = (Node, Option<Node>);

/// One write.
#[derive(Debug)]
pub struct PutMachine {
    homes: Vec<Node>,
    fallbacks: Fallbacks,
    /// The homes after the pending ring change; empty without one.
    next_homes: Vec<Node>,
    /// Homes that count: they hold the write, or a fallback keeps it for them.
    counted: Vec<Node>,
    w: usize,
    durability: Durability,
    next_home: usize,
    mint_tries: u8,
    minting: Option<(Slot, bool)>,
    minted: bool,
    maybe_applied: bool,
    /// Replicas asked and not yet heard of, each with the home it stands in for.
    waiting: Vec<Slot>,
    /// Homes found unreachable before the mint succeeded; replaced by fallbacks once there is a delta.
    unreachable: Vec<Node>,
    /// Homes that are catching up and left minting to others.
    declined: Vec<Node>,
    /// Homes that a fallback was asked to stand in for because they are slow.
    slow: Vec<Node>,
    tally: Tally,
    reached: Durability,
    answered: bool,
}

impl PutMachine {
    /// A write over `homes` (in the order in which to try minting) and `fallbacks` (in walk order; empty
    /// where they may not be counted), to be acknowledged by `w` nodes at `durability`.
    #[must_use]
    pub fn new(homes: Vec<Node>, fallbacks: Vec<Node>, w: usize, durability: Durability) -> Self {
        Self {
            homes,
            fallbacks: Fallbacks::new(fallbacks),
            next_homes: Vec::new(),
            counted: Vec::new(),
            w,
            durability,
            next_home: 0,
            mint_tries: 0,
            minting: None,
            minted: false,
            maybe_applied: false,
            waiting: Vec::new(),
            unreachable: Vec::new(),
            declined: Vec::new(),
            slow: Vec::new(),
            tally: Tally::default(),
            reached: Durability::Bucket,
            answered: false,
        }
    }

    /// The same write while a ring change is pending, after which `next_homes` are the homes.
    #[must_use]
    pub fn with_next_homes(mut self, next_homes: Vec<Node>) -> Self {
        self.next_homes = next_homes;
        self
    }

    /// The first actions.
    pub fn start(&mut self) -> Vec<PutAction> {
        let mut actions = Vec::new();
        self.mint_somewhere(&mut actions);
        actions
    }

    /// The first actions of a write that was begun under another ring: where `minted` says by whom and how far
    /// it is there, it is not minted again but replicated; otherwise it is unknown whether it was minted.
    pub fn resume(&mut self, minted: Option<(Option<Node>, Durability)>) -> Vec<PutAction> {
        self.maybe_applied = true;
        let Some((minter, reached)) = minted else { return self.start() };
        let mut actions = Vec::new();
        self.minted = true;
        if let Some(minter) = minter {
            self.minted_at((minter, None), reached, false, &mut actions);
        }
        self.replicate_except(minter, &mut actions);
        self.settle(&mut actions);
        actions
    }

    /// Takes in an event.
    pub fn on(&mut self, event: PutEvent) -> Vec<PutAction> {
        let mut actions = Vec::new();
        match event {
            PutEvent::Minted { node, reached, counts } => self.minted(node, reached, counts, &mut actions),
            PutEvent::MintFailed { node, failure } => self.mint_failed(node, failure, &mut actions),
            PutEvent::Acked { node, reached } => {
                if let Some(slot) = self.heard(node) {
                    self.count(slot, reached);
                    self.settle(&mut actions);
                }
            }
            PutEvent::Extra { node } => {
                if let Some(slot) = self.heard(node) {
                    let home = slot.1.unwrap_or(node);
                    if !self.replace(home, &mut actions) && !self.is_taken_care_of(home) {
                        self.waiting.push(slot);
                        actions.push(PutAction::AskAgain { node });
                    }
                    self.settle(&mut actions);
                }
            }
            PutEvent::ReplicaFailed { node } => {
                if let Some((node, hint_for)) = self.heard(node) {
                    self.replace(hint_for.unwrap_or(node), &mut actions);
                    self.settle(&mut actions);
                }
            }
            PutEvent::NoRoom { node } => {
                if self.heard(node).is_some() {
                    self.settle(&mut actions);
                }
            }
            PutEvent::Slow => self.stand_in_for_slow_homes(&mut actions),
            PutEvent::Deadline => {
                self.maybe_applied |= self.minting.is_some();
                self.answer_failed(true, &mut actions);
            }
        }
        actions
    }

    /// Is there anything still to hear of?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.minting.is_none() && self.waiting.is_empty()
    }

    fn mint_somewhere(&mut self, actions: &mut Vec<PutAction>) {
        self.mint_tries = 1;
        self.minting = if let Some(&home) = self.homes.get(self.next_home) {
            self.next_home += 1;
            Some(((home, None), false))
        } else if !self.declined.is_empty() {
            Some(((self.declined.remove(0), None), true))
        } else {
            let stands_for = self.unreachable.first().copied();
            let at = stands_for.map_or(0, |home| place_of(home, &self.homes));
            self.fallbacks.take(at).map(|node| ((node, stands_for), false))
        };
        match self.minting {
            Some(((node, hint_for), insist)) => actions.push(PutAction::Mint { node, hint_for, insist }),
            None => self.answer_failed(false, actions),
        }
    }

    fn mint_failed(&mut self, node: Node, failure: Failure, actions: &mut Vec<PutAction>) {
        let Some(((minter, hint_for), insist)) = self.minting.filter(|((minter, _), _)| *minter == node)
        else {
            return;
        };
        if failure == Failure::Unknown {
            self.maybe_applied = true;
            if self.mint_tries < MINT_TRIES_PER_NODE && !self.answered && !removed(Rule::RetryMintThere) {
                self.mint_tries += 1;
                actions.push(PutAction::Mint { node: minter, hint_for, insist });
                return;
            }
        }
        self.minting = None;
        match (hint_for, failure) {
            (None, Failure::Declined) if !insist => self.declined.push(minter),
            (None, _) => self.unreachable.push(minter),
            (Some(_), _) => {}
        }
        if !self.answered {
            self.mint_somewhere(actions);
        }
    }

    fn minted(&mut self, node: Node, reached: Durability, counts: bool, actions: &mut Vec<PutAction>) {
        let Some((slot, insist)) = self.minting.filter(|((minter, _), _)| *minter == node) else { return };
        self.minting = None;
        self.minted = true;
        self.minted_at(slot, reached, insist || !counts, actions);
        self.replicate_except(slot.1.or(Some(slot.0)), actions);
        self.settle(actions);
    }

    /// The minter answers as soon as there is a dot, so that the delta travels while its own log or flush is
    /// still under way; it counts once it is as durable as asked, like any replica. One that is catching up is
    /// asked, for it may not count at all.
    fn minted_at(
        &mut self,
        slot: Slot,
        reached: Durability,
        catching_up: bool,
        actions: &mut Vec<PutAction>,
    ) {
        if (reached >= self.durability && !catching_up) || removed(Rule::ConfirmMint) {
            self.count(slot, reached);
        } else {
            self.waiting.push(slot);
            actions.push(PutAction::Confirm { node: slot.0 });
        }
    }

    /// Sends the delta to all homes of both rings but the one that has it, or is stood in for by who has it.
    fn replicate_except(&mut self, done: Option<Node>, actions: &mut Vec<PutAction>) {
        let coming = self.next_homes.iter().filter(|home| !self.homes.contains(home));
        let all: Vec<Node> = self.homes.iter().chain(coming).copied().collect();
        for home in all.into_iter().filter(|home| Some(*home) != done) {
            // A home that did not mint may still take the delta, where nobody can stand in for it.
            if !(self.unreachable.contains(&home) && self.replace(home, actions)) {
                self.waiting.push((home, None));
                actions.push(PutAction::Replicate { node: home, hint_for: None });
            }
        }
    }

    fn heard(&mut self, node: Node) -> Option<Slot> {
        let at = self.waiting.iter().position(|(waiting, _)| *waiting == node)?;
        Some(self.waiting.swap_remove(at))
    }

    fn count(&mut self, (node, hint_for): Slot, reached: Durability) {
        let home = hint_for.unwrap_or(node);
        if (reached < self.durability && !removed(Rule::CountAsAsked)) || self.counted.contains(&home) {
            return;
        }
        self.counted.push(home);
        if self.homes.contains(&home) {
            if hint_for.is_some() {
                self.tally.fallback += 1;
            } else {
                self.tally.home += 1;
            }
        }
        self.reached = self.reached.min(reached);
    }

    /// Sends the delta to the next fallback, if there is one and the home is not replaced already.
    fn replace(&mut self, home: Node, actions: &mut Vec<PutAction>) -> bool {
        if self.is_taken_care_of(home) || !self.homes.contains(&home) {
            return false;
        }
        let Some(node) = self.fallbacks.take(place_of(home, &self.homes)) else { return false };
        self.waiting.push((node, Some(home)));
        actions.push(PutAction::Replicate { node, hint_for: Some(home) });
        true
    }

    /// Does the home count, or does somebody stand in for it?
    fn is_taken_care_of(&self, home: Node) -> bool {
        self.counted.contains(&home) || self.waiting.iter().any(|(_, hint_for)| *hint_for == Some(home))
    }

    /// What a slow home may still say counts too, but each home only once.
    fn stand_in_for_slow_homes(&mut self, actions: &mut Vec<PutAction>) {
        if self.answered || !self.minted {
            return;
        }
        let slow: Vec<Node> =
            self.waiting.iter().filter(|(_, hint)| hint.is_none()).map(|(n, _)| *n).collect();
        for home in slow {
            if !self.slow.contains(&home) && self.replace(home, actions) {
                self.slow.push(home);
            }
        }
    }

    fn settle(&mut self, actions: &mut Vec<PutAction>) {
        if self.answered {
            return;
        }
        let next = self.counted.iter().filter(|home| self.next_homes.contains(home)).count();
        let next_hold_it = self.next_homes.is_empty() || next >= self.w || removed(Rule::WriteBothRings);
        let needed = if removed(Rule::AnswerAtW) { self.w - 1 } else { self.w };
        if self.tally.answered() >= needed && next_hold_it {
            self.answered = true;
            let outcome = PutOutcome::Done { tally: self.tally, reached: self.reached };
            actions.push(PutAction::Answer(outcome));
        } else if self.is_idle() {
            self.answer_failed(false, actions);
        }
    }

    fn answer_failed(&mut self, late: bool, actions: &mut Vec<PutAction>) {
        if self.answered {
            return;
        }
        self.answered = true;
        let applied = if self.minted || self.maybe_applied { Applied::Unknown } else { Applied::No };
        actions.push(PutAction::Answer(PutOutcome::Failed { tally: self.tally, applied, late }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Durability::{Disk, Memory};

    fn machine(fallbacks: &[Node]) -> PutMachine {
        PutMachine::new(vec![0, 1, 2], fallbacks.to_vec(), 2, Disk)
    }

    fn mint(node: Node) -> PutAction {
        PutAction::Mint { node, hint_for: None, insist: false }
    }

    fn hinted(node: Node, home: Node) -> PutAction {
        PutAction::Replicate { node, hint_for: Some(home) }
    }

    fn done(home: usize, fallback: usize) -> PutAction {
        PutAction::Answer(PutOutcome::Done { tally: Tally { home, fallback }, reached: Disk })
    }

    fn replicate(node: Node) -> PutAction {
        PutAction::Replicate { node, hint_for: None }
    }

    #[test]
    fn answers_at_w_and_sends_to_all_n() {
        let mut m = machine(&[]);
        assert_eq!(m.start(), [mint(0)]);
        assert_eq!(
            m.on(PutEvent::Minted { node: 0, reached: Disk, counts: true }),
            [replicate(1), replicate(2)]
        );
        let tally = Tally { home: 2, fallback: 0 };
        let done = PutAction::Answer(PutOutcome::Done { tally, reached: Disk });
        assert_eq!(m.on(PutEvent::Acked { node: 2, reached: Disk }), [done]);
        assert_eq!(m.on(PutEvent::Acked { node: 1, reached: Disk }), []);
        assert!(m.is_idle());
    }

    #[test]
    fn the_minter_counts_once_it_is_as_durable_as_asked() {
        let mut m = machine(&[]);
        m.start();
        let sent = m.on(PutEvent::Minted { node: 0, reached: Memory, counts: true });
        assert_eq!(sent, [PutAction::Confirm { node: 0 }, replicate(1), replicate(2)]);
        assert_eq!(m.on(PutEvent::Acked { node: 1, reached: Disk }), []);
        let tally = Tally { home: 2, fallback: 0 };
        let done = PutAction::Answer(PutOutcome::Done { tally, reached: Disk });
        assert_eq!(m.on(PutEvent::Acked { node: 0, reached: Disk }), [done]);

        let mut m = machine(&[]);
        m.start();
        m.on(PutEvent::Minted { node: 0, reached: Memory, counts: true });
        m.on(PutEvent::ReplicaFailed { node: 0 });
        m.on(PutEvent::Acked { node: 1, reached: Disk });
        assert_eq!(m.on(PutEvent::Acked { node: 2, reached: Disk }), [done], "the others are enough");
    }

    #[test]
    fn a_mint_of_unknown_fate_is_repeated_at_the_same_node_first() {
        let mut m = machine(&[]);
        m.start();
        let lost = PutEvent::MintFailed { node: 0, failure: Failure::Unknown };
        assert_eq!(m.on(lost), [mint(0)]);
        assert_eq!(m.on(lost), [mint(1)]);
        let refused = PutEvent::MintFailed { node: 1, failure: Failure::NotApplied };
        assert_eq!(m.on(refused), [mint(2)], "a node that never saw it is not asked twice");
    }

    #[test]
    fn an_acknowledgement_below_the_durability_asked_does_not_count() {
        let mut m = machine(&[]);
        m.start();
        m.on(PutEvent::Minted { node: 0, reached: Disk, counts: true });
        assert_eq!(m.on(PutEvent::Acked { node: 1, reached: Memory }), []);
        let failed = m.on(PutEvent::ReplicaFailed { node: 2 });
        let tally = Tally { home: 1, fallback: 0 };
        let outcome = PutOutcome::Failed { tally, applied: Applied::Unknown, late: false };
        assert_eq!(failed, [PutAction::Answer(outcome)]);
    }

    #[test]
    fn applied_no_is_said_only_when_certain() {
        let mut m = machine(&[]);
        m.start();
        let mut last = Vec::new();
        for node in 0..3 {
            last = m.on(PutEvent::MintFailed { node, failure: Failure::NotApplied });
        }
        let outcome = PutOutcome::Failed { tally: Tally::default(), applied: Applied::No, late: false };
        assert_eq!(last, [PutAction::Answer(outcome)]);

        let mut m = machine(&[]);
        m.start();
        let outcome = PutOutcome::Failed { tally: Tally::default(), applied: Applied::Unknown, late: true };
        assert_eq!(m.on(PutEvent::Deadline), [PutAction::Answer(outcome)], "a mint was in flight");
    }

    #[test]
    fn fallbacks_stand_in_for_homes_with_a_hint() {
        let mut m = machine(&[7, 8]);
        m.start();
        assert_eq!(m.on(PutEvent::MintFailed { node: 0, failure: Failure::NotApplied }), [mint(1)]);
        assert_eq!(
            m.on(PutEvent::Minted { node: 1, reached: Disk, counts: true }),
            [hinted(7, 0), replicate(2)]
        );
        assert_eq!(m.on(PutEvent::ReplicaFailed { node: 2 }), [hinted(8, 2)]);
        let tally = Tally { home: 1, fallback: 1 };
        let done = PutAction::Answer(PutOutcome::Done { tally, reached: Disk });
        assert_eq!(m.on(PutEvent::Acked { node: 7, reached: Disk }), [done]);
    }

    #[test]
    fn a_home_that_did_not_mint_still_gets_the_version() {
        let mut m = machine(&[]);
        m.start();
        m.on(PutEvent::MintFailed { node: 0, failure: Failure::NotApplied });
        let sent = m.on(PutEvent::Minted { node: 1, reached: Disk, counts: true });
        assert_eq!(sent, [replicate(0), replicate(2)]);
        m.on(PutEvent::ReplicaFailed { node: 2 });
        let tally = Tally { home: 2, fallback: 0 };
        let done = PutAction::Answer(PutOutcome::Done { tally, reached: Disk });
        assert_eq!(m.on(PutEvent::Acked { node: 0, reached: Disk }), [done]);
    }

    #[test]
    fn a_fallback_mints_when_no_home_can() {
        let mut m = machine(&[7, 8]);
        m.start();
        let mut last = Vec::new();
        for node in 0..3 {
            last = m.on(PutEvent::MintFailed { node, failure: Failure::NotApplied });
        }
        assert_eq!(last, [PutAction::Mint { node: 7, hint_for: Some(0), insist: false }]);
        let actions = m.on(PutEvent::Minted { node: 7, reached: Disk, counts: true });
        assert_eq!(actions, [PutAction::Replicate { node: 8, hint_for: Some(1) }, replicate(2)]);
    }

    #[test]
    fn during_a_ring_change_both_rings_must_hold_the_write() {
        let mut m = machine(&[]).with_next_homes(vec![1, 5, 6]);
        m.start();
        let sent = m.on(PutEvent::Minted { node: 0, reached: Disk, counts: true });
        assert_eq!(sent, [replicate(1), replicate(2), replicate(5), replicate(6)]);
        assert_eq!(m.on(PutEvent::Acked { node: 2, reached: Disk }), [], "only the old ring holds it");
        assert_eq!(m.on(PutEvent::Acked { node: 5, reached: Disk }), []);
        let tally = Tally { home: 3, fallback: 0 };
        let done = PutAction::Answer(PutOutcome::Done { tally, reached: Disk });
        assert_eq!(m.on(PutEvent::Acked { node: 1, reached: Disk }), [done]);
    }

    #[test]
    fn a_write_that_was_minted_is_not_minted_again_under_a_newer_ring() {
        let mut m = machine(&[]);
        assert_eq!(m.resume(Some((Some(1), Disk))), [replicate(0), replicate(2)]);
        let tally = Tally { home: 2, fallback: 0 };
        let done = PutAction::Answer(PutOutcome::Done { tally, reached: Disk });
        assert_eq!(m.on(PutEvent::Acked { node: 0, reached: Disk }), [done]);

        let mut m = machine(&[]);
        let sent = m.resume(Some((None, Disk)));
        assert_eq!(sent, [replicate(0), replicate(1), replicate(2)], "the minter is no home any more");

        let mut m = machine(&[]);
        assert_eq!(m.resume(None), [mint(0)]);
        let mut last = Vec::new();
        for node in 0..3 {
            last = m.on(PutEvent::MintFailed { node, failure: Failure::NotApplied });
        }
        let outcome = PutOutcome::Failed { tally: Tally::default(), applied: Applied::Unknown, late: false };
        assert_eq!(last, [PutAction::Answer(outcome)], "the first try may have been applied");
    }

    #[test]
    fn late_and_doubled_events_change_nothing() {
        let mut m = machine(&[]);
        m.start();
        m.on(PutEvent::Minted { node: 0, reached: Disk, counts: true });
        m.on(PutEvent::Acked { node: 1, reached: Disk });
        for event in [
            PutEvent::Acked { node: 1, reached: Disk },
            PutEvent::Minted { node: 0, reached: Disk, counts: true },
            PutEvent::MintFailed { node: 0, failure: Failure::Unknown },
            PutEvent::Deadline,
        ] {
            assert_eq!(m.on(event), []);
        }
    }

    #[test]
    fn a_home_that_is_catching_up_mints_only_when_no_other_home_can() {
        let mut m = machine(&[7]);
        m.start();
        let declined = |node| PutEvent::MintFailed { node, failure: Failure::Declined };
        assert_eq!(m.on(declined(0)), [mint(1)]);
        let sent = m.on(PutEvent::Minted { node: 1, reached: Disk, counts: true });
        assert_eq!(sent, [replicate(0), replicate(2)], "it can take the version all the same");

        let mut m = machine(&[7]);
        m.start();
        m.on(declined(0));
        m.on(PutEvent::MintFailed { node: 1, failure: Failure::NotApplied });
        let insisted = m.on(PutEvent::MintFailed { node: 2, failure: Failure::NotApplied });
        assert_eq!(insisted, [PutAction::Mint { node: 0, hint_for: None, insist: true }]);
        let sent = m.on(PutEvent::Minted { node: 0, reached: Disk, counts: true });
        assert_eq!(sent, [PutAction::Confirm { node: 0 }, hinted(7, 1), replicate(2)], "it may not count");
    }

    #[test]
    fn a_minter_that_others_stood_in_for_is_asked_whether_it_counts() {
        let mut m = machine(&[7]);
        m.start();
        let sent = m.on(PutEvent::Minted { node: 0, reached: Disk, counts: false });
        assert_eq!(sent, [PutAction::Confirm { node: 0 }, replicate(1), replicate(2)]);
        assert_eq!(m.on(PutEvent::Extra { node: 0 }), [hinted(7, 0)]);
        assert_eq!(m.on(PutEvent::Acked { node: 1, reached: Disk }), []);
        assert_eq!(m.on(PutEvent::Acked { node: 7, reached: Disk }), [done(1, 1)]);
    }

    #[test]
    fn a_home_that_does_not_count_yet_is_an_extra_and_a_fallback_stands_in() {
        let mut m = machine(&[7]);
        m.start();
        m.on(PutEvent::Minted { node: 0, reached: Disk, counts: true });
        assert_eq!(m.on(PutEvent::Extra { node: 1 }), [hinted(7, 1)]);
        assert_eq!(m.on(PutEvent::Extra { node: 2 }), [PutAction::AskAgain { node: 2 }], "nobody is left");
        assert_eq!(m.on(PutEvent::Acked { node: 7, reached: Disk }), [done(1, 1)]);
        assert_eq!(m.on(PutEvent::Acked { node: 2, reached: Disk }), [], "it counts by now");
    }

    /// Standing in for homes that are overloaded is more load; where all are, it would be the end of all.
    #[test]
    fn a_home_without_room_is_not_replaced_beyond_the_budget() {
        let mut m = machine(&[7]);
        m.start();
        m.on(PutEvent::Minted { node: 0, reached: Disk, counts: true });
        assert_eq!(m.on(PutEvent::NoRoom { node: 1 }), []);
        assert_eq!(m.on(PutEvent::Acked { node: 2, reached: Disk }), [done(2, 0)]);
    }

    /// Reads ask homes: a write that one home and its own stand-in hold is known to one home only.
    #[test]
    fn a_home_and_its_stand_in_count_once() {
        let mut m = machine(&[7, 8]);
        m.start();
        m.on(PutEvent::Minted { node: 0, reached: Memory, counts: true });
        assert_eq!(m.on(PutEvent::Slow), [hinted(7, 0), hinted(8, 1)]);
        assert_eq!(m.on(PutEvent::Slow), [], "once is enough");
        assert_eq!(m.on(PutEvent::Acked { node: 7, reached: Disk }), []);
        assert_eq!(m.on(PutEvent::Acked { node: 0, reached: Disk }), [], "the same home again");
        assert_eq!(m.on(PutEvent::Acked { node: 1, reached: Disk }), [done(1, 1)]);
    }

    #[test]
    fn a_fallback_that_fails_is_replaced_by_the_next() {
        let mut m = machine(&[7, 8]);
        m.start();
        m.on(PutEvent::Minted { node: 0, reached: Disk, counts: true });
        assert_eq!(m.on(PutEvent::ReplicaFailed { node: 1 }), [hinted(8, 1)], "the second home's own");
        assert_eq!(m.on(PutEvent::ReplicaFailed { node: 2 }), [hinted(7, 2)]);
        assert_eq!(m.on(PutEvent::ReplicaFailed { node: 8 }), [], "no third fallback");
        assert_eq!(m.on(PutEvent::Acked { node: 7, reached: Disk }), [done(1, 1)]);
    }
}
