//! The decisions of one write: mint at one node, replicate the delta, answer at W
//! (Dynamo, SOSP 2007, sections 4.5 and 4.6).
//!
//! A pure machine: feed it events, carry out its actions. It holds three rules that protect data:
//! a mint whose fate is unknown is repeated at the *same* node before any other (the same request id makes
//! it the same write); mints are never hedged; a replica counts only if it reached the durability asked; and
//! while a ring change is pending, W of the homes of *both* rings must hold the write, so that neither ring's
//! reads can miss it.

use crate::quorum::{Applied, Durability, Failure, Node, Tally};

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
    /// `node` did not take in the delta, or did not say so.
    ReplicaFailed {
        /// The replica.
        node: Node,
    },
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

/// One write.
#[derive(Debug)]
pub struct PutMachine {
    homes: Vec<Node>,
    fallbacks: std::vec::IntoIter<Node>,
    /// The homes after the pending ring change; empty without one.
    next_homes: Vec<Node>,
    acked: Vec<Node>,
    w: usize,
    durability: Durability,
    next_home: usize,
    mint_tries: u8,
    minting: Option<(Node, Option<Node>)>,
    minted: bool,
    maybe_applied: bool,
    /// Replicas asked and not yet heard of, each with the home it stands in for.
    waiting: Vec<(Node, Option<Node>)>,
    /// Homes found unreachable before the mint succeeded; replaced by fallbacks once there is a delta.
    unreachable: Vec<Node>,
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
            fallbacks: fallbacks.into_iter(),
            next_homes: Vec::new(),
            acked: Vec::new(),
            w,
            durability,
            next_home: 0,
            mint_tries: 0,
            minting: None,
            minted: false,
            maybe_applied: false,
            waiting: Vec::new(),
            unreachable: Vec::new(),
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
            self.minted_at(minter, None, reached, &mut actions);
        }
        self.replicate_except(minter, &mut actions);
        self.settle(&mut actions);
        actions
    }

    /// Takes in an event.
    pub fn on(&mut self, event: PutEvent) -> Vec<PutAction> {
        let mut actions = Vec::new();
        match event {
            PutEvent::Minted { node, reached } => self.minted(node, reached, &mut actions),
            PutEvent::MintFailed { node, failure } => self.mint_failed(node, failure, &mut actions),
            PutEvent::Acked { node, reached } => {
                if let Some(hint_for) = self.heard(node) {
                    self.count(node, hint_for.is_some(), reached);
                    self.settle(&mut actions);
                }
            }
            PutEvent::ReplicaFailed { node } => {
                if let Some(hint_for) = self.heard(node) {
                    let home = hint_for.unwrap_or(node);
                    if self.homes.contains(&home) {
                        self.replace(home, &mut actions);
                    }
                    self.settle(&mut actions);
                }
            }
            PutEvent::Deadline => {
                let in_flight = self.minting.is_some();
                self.maybe_applied |= in_flight;
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
            Some((home, None))
        } else {
            let stands_for = self.unreachable.first().copied();
            self.fallbacks.next().map(|node| (node, stands_for))
        };
        match self.minting {
            Some((node, hint_for)) => actions.push(PutAction::Mint { node, hint_for }),
            None => self.answer_failed(false, actions),
        }
    }

    fn mint_failed(&mut self, node: Node, failure: Failure, actions: &mut Vec<PutAction>) {
        let Some((minter, hint_for)) = self.minting.filter(|(minter, _)| *minter == node) else { return };
        if failure == Failure::Unknown {
            self.maybe_applied = true;
            if self.mint_tries < MINT_TRIES_PER_NODE && !self.answered {
                self.mint_tries += 1;
                actions.push(PutAction::Mint { node: minter, hint_for });
                return;
            }
        }
        self.minting = None;
        if hint_for.is_none() {
            self.unreachable.push(minter);
        }
        if !self.answered {
            self.mint_somewhere(actions);
        }
    }

    fn minted(&mut self, node: Node, reached: Durability, actions: &mut Vec<PutAction>) {
        let Some((minter, hint_for)) = self.minting.filter(|(minter, _)| *minter == node) else { return };
        self.minting = None;
        self.minted = true;
        self.minted_at(minter, hint_for, reached, actions);
        self.replicate_except(hint_for.or(Some(minter)), actions);
        self.settle(actions);
    }

    /// The minter answers as soon as there is a dot, so that the delta travels while its own log or flush is
    /// still under way; it counts once it is as durable as asked, like any replica.
    fn minted_at(
        &mut self,
        minter: Node,
        hint_for: Option<Node>,
        reached: Durability,
        actions: &mut Vec<PutAction>,
    ) {
        if reached >= self.durability {
            self.count(minter, hint_for.is_some(), reached);
        } else {
            self.waiting.push((minter, hint_for));
            actions.push(PutAction::Confirm { node: minter });
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

    fn heard(&mut self, node: Node) -> Option<Option<Node>> {
        let at = self.waiting.iter().position(|(waiting, _)| *waiting == node)?;
        Some(self.waiting.swap_remove(at).1)
    }

    fn count(&mut self, node: Node, fallback: bool, reached: Durability) {
        if reached < self.durability {
            return;
        }
        self.acked.push(node);
        if fallback {
            self.tally.fallback += 1;
        } else if self.homes.contains(&node) {
            self.tally.home += 1;
        }
        self.reached = self.reached.min(reached);
    }

    /// Sends the delta to the next fallback, if there is one.
    fn replace(&mut self, home: Node, actions: &mut Vec<PutAction>) -> bool {
        let Some(node) = self.fallbacks.next() else { return false };
        self.waiting.push((node, Some(home)));
        actions.push(PutAction::Replicate { node, hint_for: Some(home) });
        true
    }

    fn settle(&mut self, actions: &mut Vec<PutAction>) {
        if self.answered {
            return;
        }
        let next = self.acked.iter().filter(|node| self.next_homes.contains(node)).count();
        let next_hold_it = self.next_homes.is_empty() || next + self.tally.fallback >= self.w;
        if self.tally.answered() >= self.w && next_hold_it {
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
        PutAction::Mint { node, hint_for: None }
    }

    fn replicate(node: Node) -> PutAction {
        PutAction::Replicate { node, hint_for: None }
    }

    #[test]
    fn answers_at_w_and_sends_to_all_n() {
        let mut m = machine(&[]);
        assert_eq!(m.start(), [mint(0)]);
        assert_eq!(m.on(PutEvent::Minted { node: 0, reached: Disk }), [replicate(1), replicate(2)]);
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
        let sent = m.on(PutEvent::Minted { node: 0, reached: Memory });
        assert_eq!(sent, [PutAction::Confirm { node: 0 }, replicate(1), replicate(2)]);
        assert_eq!(m.on(PutEvent::Acked { node: 1, reached: Disk }), []);
        let tally = Tally { home: 2, fallback: 0 };
        let done = PutAction::Answer(PutOutcome::Done { tally, reached: Disk });
        assert_eq!(m.on(PutEvent::Acked { node: 0, reached: Disk }), [done]);

        let mut m = machine(&[]);
        m.start();
        m.on(PutEvent::Minted { node: 0, reached: Memory });
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
        m.on(PutEvent::Minted { node: 0, reached: Disk });
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
        let hinted = |node, home| PutAction::Replicate { node, hint_for: Some(home) };
        assert_eq!(m.on(PutEvent::Minted { node: 1, reached: Disk }), [hinted(7, 0), replicate(2)]);
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
        let sent = m.on(PutEvent::Minted { node: 1, reached: Disk });
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
        assert_eq!(last, [PutAction::Mint { node: 7, hint_for: Some(0) }]);
        let actions = m.on(PutEvent::Minted { node: 7, reached: Disk });
        assert_eq!(actions, [PutAction::Replicate { node: 8, hint_for: Some(1) }, replicate(2)]);
    }

    #[test]
    fn during_a_ring_change_both_rings_must_hold_the_write() {
        let mut m = machine(&[]).with_next_homes(vec![1, 5, 6]);
        m.start();
        let sent = m.on(PutEvent::Minted { node: 0, reached: Disk });
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
        m.on(PutEvent::Minted { node: 0, reached: Disk });
        m.on(PutEvent::Acked { node: 1, reached: Disk });
        for event in [
            PutEvent::Acked { node: 1, reached: Disk },
            PutEvent::Minted { node: 0, reached: Disk },
            PutEvent::MintFailed { node: 0, failure: Failure::Unknown },
            PutEvent::Deadline,
        ] {
            assert_eq!(m.on(event), []);
        }
    }
}
