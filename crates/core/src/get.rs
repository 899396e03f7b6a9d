//! The decisions of one read: ask R homes, hedge, merge, answer, and say which homes were stale
//! (Dynamo, SOSP 2007, sections 4.5 and 4.7).

use crate::clock::Clock;
use crate::container::Container;
use crate::quorum::Node;

/// What happened.
#[derive(Debug)]
pub enum GetEvent<T> {
    /// `node` answered with what it holds; an empty container if it has never heard of the key.
    Answered {
        /// The home.
        node: Node,
        /// What it holds.
        container: Container<T>,
    },
    /// `node` did not answer, or can't vote (it does not hold its range yet).
    Failed {
        /// The home.
        node: Node,
    },
    /// An answer is slower than usual and the budget allows one more question.
    Hedge,
    /// The request's time is up.
    Deadline,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GetAction {
    /// Ask this home.
    Ask(Node),
    /// R homes answered: call [`GetMachine::into_outcome`]. Given exactly once.
    Answer,
    /// R can't be reached any more. Given instead of `Answer`.
    Fail {
        /// Homes that answered.
        answered: usize,
        /// Whether it was the deadline that ended it.
        late: bool,
    },
}

/// What the homes that answered know together.
#[derive(Debug)]
pub struct GetOutcome<T> {
    /// The merge of all answers.
    pub merged: Container<T>,
    /// How many answered.
    pub answered: usize,
    /// Homes that answered and lack something of `merged`.
    pub stale: Vec<Node>,
    /// The answer does not cover the floor that the client asked for.
    pub below_floor: bool,
}

/// One read.
#[derive(Debug)]
pub struct GetMachine<T> {
    homes: std::vec::IntoIter<Node>,
    r: usize,
    floor: Clock,
    waiting: Vec<Node>,
    answers: Vec<(Node, Container<T>)>,
    done: bool,
}

impl<T: Clone> GetMachine<T> {
    /// A read over `homes` in the order in which to ask, to be answered by `r` of them and to cover `floor`
    /// if asking more of them can bring that about.
    #[must_use]
    pub fn new(homes: Vec<Node>, r: usize, floor: Clock) -> Self {
        Self { homes: homes.into_iter(), r, floor, waiting: Vec::new(), answers: Vec::new(), done: false }
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
                if self.heard(node) {
                    self.answers.push((node, container));
                    self.settle(false, &mut actions);
                }
            }
            GetEvent::Failed { node } => {
                if self.heard(node) {
                    self.ask_one_more(&mut actions);
                    self.settle(false, &mut actions);
                }
            }
            GetEvent::Hedge => self.ask_one_more(&mut actions),
            GetEvent::Deadline => self.settle(true, &mut actions),
        }
        actions
    }

    /// What to tell the client, after [`GetAction::Answer`].
    #[must_use]
    pub fn into_outcome(self) -> GetOutcome<T> {
        let answered = self.answers.len();
        let agree = self.answers.windows(2).all(|w| w[0].1.same_as(&w[1].1));
        let mut stale = Vec::new();
        let merged = if agree {
            self.answers.into_iter().next().map(|(_, c)| c).unwrap_or_default()
        } else {
            let merged = merge(&self.answers);
            stale.extend(self.answers.iter().filter(|(_, c)| !c.same_as(&merged)).map(|(n, _)| *n));
            merged
        };
        let below_floor = !merged.seen().covers(&self.floor);
        GetOutcome { merged, answered, stale, below_floor }
    }

    fn heard(&mut self, node: Node) -> bool {
        let at = self.waiting.iter().position(|waiting| *waiting == node);
        at.map(|at| self.waiting.swap_remove(at)).is_some()
    }

    fn ask_one_more(&mut self, actions: &mut Vec<GetAction>) {
        if let Some(node) = self.homes.next() {
            self.waiting.push(node);
            actions.push(GetAction::Ask(node));
        }
    }

    fn settle(&mut self, late: bool, actions: &mut Vec<GetAction>) {
        let answered = self.answers.len();
        if answered < self.r {
            if late || (self.waiting.is_empty() && self.homes.len() == 0) {
                self.done = true;
                actions.push(GetAction::Fail { answered, late });
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

fn merge<T: Clone>(answers: &[(Node, Container<T>)]) -> Container<T> {
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

    fn answered(node: Node, container: Container<u64>) -> GetEvent<u64> {
        GetEvent::Answered { node, container }
    }

    #[test]
    fn answers_at_r_and_names_stale_homes() {
        let mut m = GetMachine::new(vec![4, 5, 6], 2, Clock::new());
        assert_eq!(m.start(), [GetAction::Ask(4), GetAction::Ask(5)]);
        assert_eq!(m.on(answered(4, held(&[], 1))), []);
        assert_eq!(m.on(answered(5, held(&[1], 2))), [GetAction::Answer]);
        let outcome = m.into_outcome();
        assert_eq!(outcome.stale, [4]);
        assert_eq!(outcome.merged.siblings().len(), 1);
        assert_eq!(outcome.merged.siblings()[0].version, 2);
    }

    #[test]
    fn a_failed_home_is_replaced_until_none_is_left() {
        let mut m: GetMachine<u64> = GetMachine::new(vec![4, 5, 6], 2, Clock::new());
        m.start();
        assert_eq!(m.on(GetEvent::Failed { node: 4 }), [GetAction::Ask(6)]);
        assert_eq!(m.on(answered(5, Container::default())), []);
        assert_eq!(m.on(GetEvent::Failed { node: 6 }), [GetAction::Fail { answered: 1, late: false }]);
    }

    #[test]
    fn a_hedge_asks_one_more_and_any_r_answers_do() {
        let mut m: GetMachine<u64> = GetMachine::new(vec![4, 5, 6], 2, Clock::new());
        m.start();
        assert_eq!(m.on(GetEvent::Hedge), [GetAction::Ask(6)]);
        m.on(answered(6, Container::default()));
        assert_eq!(m.on(answered(5, Container::default())), [GetAction::Answer]);
        assert!(m.into_outcome().stale.is_empty());
    }

    #[test]
    fn the_floor_asks_more_homes_and_else_says_stale() {
        let floor: Clock = [dot(1), dot(2)].into_iter().collect();
        let mut m = GetMachine::new(vec![4, 5, 6], 2, floor.clone());
        m.start();
        m.on(answered(4, held(&[], 1)));
        assert_eq!(m.on(answered(5, held(&[], 1))), [GetAction::Ask(6)]);
        assert_eq!(m.on(answered(6, held(&[1], 2))), [GetAction::Answer]);
        assert!(!m.into_outcome().below_floor);

        let mut m = GetMachine::new(vec![4, 5], 2, floor);
        m.start();
        m.on(answered(4, held(&[], 1)));
        assert_eq!(m.on(answered(5, held(&[], 1))), [GetAction::Answer]);
        assert!(m.into_outcome().below_floor);
    }

    #[test]
    fn the_deadline_answers_with_what_there_is_or_fails() {
        let mut m = GetMachine::new(vec![4, 5], 2, Clock::new());
        m.start();
        m.on(answered(4, held(&[], 1)));
        assert_eq!(m.on(GetEvent::Deadline), [GetAction::Fail { answered: 1, late: true }]);
        assert_eq!(m.on(answered(5, held(&[], 1))), []);
    }

    #[test]
    fn too_few_homes_fail_at_once() {
        let mut m: GetMachine<u64> = GetMachine::new(vec![4], 2, Clock::new());
        m.start();
        assert_eq!(m.on(answered(4, Container::default())), [GetAction::Fail { answered: 1, late: false }]);
    }
}
