//! The decisions of one read: ask R homes, hedge, let fallbacks stand in for homes that can't be reached, merge,
//! answer, and say which homes were stale (Dynamo, SOSP 2007, sections 4.5 and 4.7).
//!
//! A home that is catching up does not count: what it holds is added to the answer, and another is asked for it.
//! Each home counts once, whether it answered itself or another stood in for it, and stand-ins alone never make a
//! quorum: they hold nothing from before the homes went away.

use crate::clock::Clock;
use crate::container::Container;
use crate::mutation::{Rule, removed};
use crate::quorum::{Fallbacks, Node, Tally, place_of};

/// What happened.
#[derive(Debug)]
pub enum GetEvent<T> {
    /// `node` answered with what it holds; an empty container if it has never heard of the key.
    Answered {
        /// The node.
        node: Node,
        /// What it holds.
        container: Container<T>,
    },
    /// `node` answered with what it holds, but it is catching up and may lack something.
    Partial {
        /// The home.
        node: Node,
        /// What it holds.
        container: Container<T>,
    },
    /// `node` did not answer, or can't.
    Failed {
        /// The node.
        node: Node,
    },
    /// An answer is slower than usual and the budget allows one more question.
    Hedge,
    /// The homes that have not answered yet are slow: others may stand in for them.
    Slow,
    /// The request's time is up.
    Deadline,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GetAction {
    /// Ask this node.
    Ask {
        /// The node.
        node: Node,
        /// The home that it stands in for.
        stands_for: Option<Node>,
    },
    /// R homes answered: call [`GetMachine::into_outcome`]. Given exactly once.
    Answer,
    /// R can't be reached any more. Given instead of `Answer`.
    Fail {
        /// Who answered.
        tally: Tally,
        /// Whether it was the deadline that ended it.
        late: bool,
    },
}

/// What those that answered know together.
#[derive(Debug)]
pub struct GetOutcome<T> {
    /// The merge of all answers.
    pub merged: Container<T>,
    /// Who counted.
    pub tally: Tally,
    /// Homes that answered and lack something of `merged`.
    pub stale: Vec<Node>,
    /// The answer does not cover the floor that the client asked for.
    pub below_floor: bool,
}

/// A node that was asked, and the home that it stands in for.
type Slot = (Node, Option<Node>);

/// One read.
#[derive(Debug)]
pub struct GetMachine<T> {
    homes: std::vec::IntoIter<Node>,
    /// All homes, asked or not.
    all_homes: Vec<Node>,
    fallbacks: Fallbacks,
    r: usize,
    floor: Clock,
    waiting: Vec<Slot>,
    /// Homes that can't answer and that nobody stands in for yet.
    missing: Vec<Node>,
    /// Homes that count.
    counted: Vec<Node>,
    tally: Tally,
    answers: Vec<(Slot, Container<T>)>,
    done: bool,
}

impl<T: Clone> GetMachine<T> {
    /// A read over `homes` in the order in which to ask, and `fallbacks` in walk order (empty where they may not
    /// be counted), to be answered by `r` of them and to cover `floor` if asking more of them can bring that about.
    #[must_use]
    pub fn new(homes: Vec<Node>, fallbacks: Vec<Node>, r: usize, floor: Clock) -> Self {
        Self {
            all_homes: homes.clone(),
            homes: homes.into_iter(),
            fallbacks: Fallbacks::new(fallbacks),
            r,
            floor,
            waiting: Vec::new(),
            missing: Vec::new(),
            counted: Vec::new(),
            tally: Tally::default(),
            answers: Vec::new(),
            done: false,
        }
    }

    /// The first actions.
    pub fn start(&mut self) -> Vec<GetAction> {
        let mut actions = Vec::new();
        for _ in 0..self.r {
            self.ask_one_more(&mut actions);
        }
        self.settle(false, &mut actions);
        actions
    }

    /// Takes in an event.
    pub fn on(&mut self, event: GetEvent<T>) -> Vec<GetAction> {
        let mut actions = Vec::new();
        if self.done {
            return actions;
        }
        match event {
            GetEvent::Answered { node, container } => {
                let Some(slot) = self.heard(node) else { return actions };
                self.count(slot);
                self.answers.push((slot, container));
            }
            GetEvent::Partial { node, container } => {
                let Some(slot) = self.heard(node) else { return actions };
                self.answers.push((slot, container));
                self.lost(slot, &mut actions);
            }
            GetEvent::Failed { node } => {
                let Some(slot) = self.heard(node) else { return actions };
                self.lost(slot, &mut actions);
            }
            GetEvent::Hedge => {
                if let Some(node) = self.homes.next() {
                    self.ask((node, None), &mut actions);
                }
                return actions;
            }
            GetEvent::Slow => {
                let slow: Vec<Node> = self.waiting.iter().filter(|s| s.1.is_none()).map(|s| s.0).collect();
                for home in slow {
                    self.missing.push(home);
                    self.ask_one_more(&mut actions);
                }
                return actions;
            }
            GetEvent::Deadline => {
                self.settle(true, &mut actions);
                return actions;
            }
        }
        self.settle(false, &mut actions);
        actions
    }

    /// What to tell the client, after [`GetAction::Answer`]; or what is known all the same, after
    /// [`GetAction::Fail`].
    #[must_use]
    pub fn into_outcome(self) -> GetOutcome<T> {
        let tally = self.tally;
        let agree = self.answers.windows(2).all(|w| w[0].1.same_as(&w[1].1));
        let mut stale = Vec::new();
        let merged = if agree {
            self.answers.into_iter().next().map(|(_, c)| c).unwrap_or_default()
        } else {
            let merged = merge(&self.answers);
            let lacks = |(slot, c): &&(Slot, Container<T>)| slot.1.is_none() && !c.same_as(&merged);
            stale.extend(self.answers.iter().filter(lacks).map(|(slot, _)| slot.0));
            merged
        };
        let below_floor = !merged.seen().covers(&self.floor);
        GetOutcome { merged, tally, stale, below_floor }
    }

    fn heard(&mut self, node: Node) -> Option<Slot> {
        let at = self.waiting.iter().position(|(waiting, _)| *waiting == node)?;
        Some(self.waiting.swap_remove(at))
    }

    fn count(&mut self, (node, stands_for): Slot) {
        let home = stands_for.unwrap_or(node);
        if self.counted.contains(&home) {
            return;
        }
        self.counted.push(home);
        if stands_for.is_some() {
            self.tally.fallback += 1;
        } else {
            self.tally.home += 1;
        }
    }

    /// The slot has no answer that counts: somebody else is asked.
    fn lost(&mut self, (node, stands_for): Slot, actions: &mut Vec<GetAction>) {
        self.missing.push(stands_for.unwrap_or(node));
        self.ask_one_more(actions);
    }

    fn ask(&mut self, slot: Slot, actions: &mut Vec<GetAction>) {
        self.waiting.push(slot);
        actions.push(GetAction::Ask { node: slot.0, stands_for: slot.1 });
    }

    /// Asks the next home; if all were asked, the next fallback in place of one that can't answer.
    fn ask_one_more(&mut self, actions: &mut Vec<GetAction>) {
        if let Some(node) = self.homes.next() {
            return self.ask((node, None), actions);
        }
        let stood_in = |home: &Node| {
            self.counted.contains(home)
                || self.waiting.iter().any(|(_, stands_for)| *stands_for == Some(*home))
        };
        let Some(at) = self.missing.iter().position(|home| !stood_in(home)) else { return };
        if let Some(node) =
            self.missing.get(at).and_then(|home| self.fallbacks.take(place_of(*home, &self.all_homes)))
        {
            let home = self.missing.swap_remove(at);
            self.ask((node, Some(home)), actions);
        }
    }

    /// R answered, and a home among them.
    fn has_quorum(&self) -> bool {
        let needed = if removed(Rule::AskR) { self.r - 1 } else { self.r };
        self.tally.answered() >= needed && (self.tally.home > 0 || removed(Rule::HomeInQuorum))
    }

    fn settle(&mut self, late: bool, actions: &mut Vec<GetAction>) {
        if !self.has_quorum() {
            if late || self.waiting.is_empty() {
                self.done = true;
                actions.push(GetAction::Fail { tally: self.tally, late });
            }
            return;
        }
        if !late && !self.floor.is_empty() && !merge(&self.answers).seen().covers(&self.floor) {
            self.ask_one_more(actions);
            if !self.waiting.is_empty() {
                return;
            }
        }
        self.done = true;
        actions.push(GetAction::Answer);
    }
}

fn merge<T: Clone>(answers: &[(Slot, Container<T>)]) -> Container<T> {
    let mut merged = Container::default();
    for (_, container) in answers {
        merged.sync(container.clone());
    }
    merged
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::{Actor, Dot};

    fn dot(n: u64) -> Dot {
        Dot { actor: Actor::parse("a.1").unwrap(), n }
    }

    fn held(context: &[u64], n: u64) -> Container<u64> {
        Container::delta(&context.iter().map(|n| dot(*n)).collect(), dot(n), n)
    }

    fn machine(homes: Vec<Node>, floor: Clock) -> GetMachine<u64> {
        GetMachine::new(homes, Vec::new(), 2, floor)
    }

    fn sloppy(homes: Vec<Node>, fallbacks: Vec<Node>) -> GetMachine<u64> {
        GetMachine::new(homes, fallbacks, 2, Clock::new())
    }

    fn ask(node: Node) -> GetAction {
        GetAction::Ask { node, stands_for: None }
    }

    fn stand_in(node: Node, home: Node) -> GetAction {
        GetAction::Ask { node, stands_for: Some(home) }
    }

    fn fail(home: usize, fallback: usize, late: bool) -> GetAction {
        GetAction::Fail { tally: Tally { home, fallback }, late }
    }

    fn answered(node: Node, container: Container<u64>) -> GetEvent<u64> {
        GetEvent::Answered { node, container }
    }

    #[test]
    fn answers_at_r_and_names_stale_homes() {
        let mut m = machine(vec![4, 5, 6], Clock::new());
        assert_eq!(m.start(), [ask(4), ask(5)]);
        assert_eq!(m.on(answered(4, held(&[], 1))), []);
        assert_eq!(m.on(answered(5, held(&[1], 2))), [GetAction::Answer]);
        let outcome = m.into_outcome();
        assert_eq!(outcome.stale, [4]);
        assert_eq!(outcome.merged.siblings().len(), 1);
        assert_eq!(outcome.merged.siblings()[0].version, 2);
    }

    #[test]
    fn a_failed_home_is_replaced_until_none_is_left() {
        let mut m: GetMachine<u64> = machine(vec![4, 5, 6], Clock::new());
        m.start();
        assert_eq!(m.on(GetEvent::Failed { node: 4 }), [ask(6)]);
        assert_eq!(m.on(answered(5, Container::default())), []);
        assert_eq!(m.on(GetEvent::Failed { node: 6 }), [fail(1, 0, false)]);
    }

    #[test]
    fn a_hedge_asks_one_more_and_any_r_answers_do() {
        let mut m: GetMachine<u64> = machine(vec![4, 5, 6], Clock::new());
        m.start();
        assert_eq!(m.on(GetEvent::Hedge), [ask(6)]);
        m.on(answered(6, Container::default()));
        assert_eq!(m.on(answered(5, Container::default())), [GetAction::Answer]);
        assert!(m.into_outcome().stale.is_empty());
    }

    #[test]
    fn the_floor_asks_more_homes_and_else_says_stale() {
        let floor: Clock = [dot(1), dot(2)].into_iter().collect();
        let mut m = machine(vec![4, 5, 6], floor.clone());
        m.start();
        m.on(answered(4, held(&[], 1)));
        assert_eq!(m.on(answered(5, held(&[], 1))), [ask(6)]);
        assert_eq!(m.on(answered(6, held(&[1], 2))), [GetAction::Answer]);
        assert!(!m.into_outcome().below_floor);

        let mut m = machine(vec![4, 5], floor);
        m.start();
        m.on(answered(4, held(&[], 1)));
        assert_eq!(m.on(answered(5, held(&[], 1))), [GetAction::Answer]);
        assert!(m.into_outcome().below_floor);
    }

    #[test]
    fn the_deadline_answers_with_what_there_is_or_fails() {
        let mut m = machine(vec![4, 5], Clock::new());
        m.start();
        m.on(answered(4, held(&[], 1)));
        assert_eq!(m.on(GetEvent::Deadline), [fail(1, 0, true)]);
        assert_eq!(m.on(answered(5, held(&[], 1))), []);
    }

    #[test]
    fn too_few_homes_fail_at_once() {
        let mut m: GetMachine<u64> = machine(vec![4], Clock::new());
        m.start();
        assert_eq!(m.on(answered(4, Container::default())), [fail(1, 0, false)]);
    }

    #[test]
    fn a_home_that_is_catching_up_adds_what_it_has_but_does_not_count() {
        let mut m = machine(vec![4, 5, 6], Clock::new());
        m.start();
        let partial = GetEvent::Partial { node: 4, container: held(&[], 1) };
        assert_eq!(m.on(partial), [ask(6)]);
        assert_eq!(m.on(answered(5, Container::default())), []);
        assert_eq!(m.on(answered(6, Container::default())), [GetAction::Answer]);
        let outcome = m.into_outcome();
        assert_eq!((outcome.tally, outcome.merged.siblings().len()), (Tally { home: 2, fallback: 0 }, 1));
        assert_eq!(outcome.stale, [5, 6]);

        let mut m = machine(vec![4, 5], Clock::new());
        m.start();
        m.on(answered(5, Container::default()));
        let partial = GetEvent::Partial { node: 4, container: Container::default() };
        assert_eq!(m.on(partial), [fail(1, 0, false)], "it never votes \"not found\"");
    }

    #[test]
    fn fallbacks_stand_in_for_homes_that_fail() {
        let mut m = sloppy(vec![4, 5, 6], vec![7, 8]);
        m.start();
        assert_eq!(m.on(GetEvent::Failed { node: 4 }), [ask(6)]);
        assert_eq!(m.on(GetEvent::Failed { node: 5 }), [stand_in(7, 4)]);
        assert_eq!(m.on(GetEvent::Failed { node: 7 }), [stand_in(8, 5)]);
        assert_eq!(m.on(answered(6, Container::default())), []);
        assert_eq!(m.on(answered(8, held(&[], 1))), [GetAction::Answer]);
        let outcome = m.into_outcome();
        assert_eq!(outcome.tally, Tally { home: 1, fallback: 1 });
        assert_eq!(outcome.stale, [6], "a stand-in is no home and is not repaired");
    }

    /// They hold nothing from before the homes went away.
    #[test]
    fn stand_ins_alone_are_no_quorum() {
        let mut m = sloppy(vec![4, 5], vec![7, 8, 9]);
        m.start();
        assert_eq!(m.on(GetEvent::Failed { node: 4 }), [stand_in(7, 4)]);
        assert_eq!(m.on(GetEvent::Failed { node: 5 }), [stand_in(8, 5)]);
        assert_eq!(m.on(answered(7, held(&[], 1))), []);
        assert_eq!(m.on(answered(8, Container::default())), [fail(0, 2, false)]);
        assert_eq!(m.into_outcome().merged.siblings().len(), 1, "what they hold is not lost");
    }

    #[test]
    fn a_slow_home_and_its_stand_in_count_once() {
        let mut m = sloppy(vec![4, 5], vec![7, 8]);
        m.start();
        assert_eq!(m.on(answered(4, Container::default())), []);
        assert_eq!(m.on(GetEvent::Slow), [stand_in(8, 5)], "the second home's own");
        assert_eq!(m.on(GetEvent::Slow), [], "once is enough");
        assert_eq!(m.on(answered(8, Container::default())), [GetAction::Answer]);

        let mut m = sloppy(vec![4, 5, 6], vec![7]);
        m.start();
        m.on(GetEvent::Failed { node: 5 });
        m.on(GetEvent::Failed { node: 6 });
        assert_eq!(m.on(answered(7, Container::default())), [], "no home has answered");
        assert_eq!(m.on(answered(4, Container::default())), [GetAction::Answer]);
    }
}
