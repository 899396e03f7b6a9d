//! The dotted causal container: all that a replica knows of one key.
//!
//! `seen` is every dot ever heard of; `siblings` are the versions among them that nothing has replaced. A dot
//! in `seen` without a sibling is a version that was overwritten. Because of that, one operation, [`sync`],
//! serves replication, read repair, anti-entropy, hints and recovery: it is commutative, associative and
//! idempotent (Gonçalves et al., 2017, section 4; Dynamo, SOSP 2007, section 4.4 for what it is for).
//!
//! A delta is itself a container: the new sibling, and as `seen` only the writer's context and the new dot.
//! It must never claim to have seen a dot whose sibling it leaves out, or that sibling would be dropped.
//!
//! [`sync`]: Container::sync

use crate::clock::{Actor, Clock, Dot};
use crate::mutation::{Rule, removed};

/// A version that nothing has replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling<T> {
    /// Which write made it.
    pub dot: Dot,
    /// What it holds.
    pub version: T,
}

/// What one replica knows of one key, with versions of type `T`: whole ones in records, brief ones in the
/// clock index. Siblings are sorted by dot, and every sibling's dot is in `seen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container<T> {
    seen: Clock,
    siblings: Vec<Sibling<T>>,
}

impl<T> Default for Container<T> {
    fn default() -> Self {
        Self { seen: Clock::new(), siblings: Vec::new() }
    }
}

impl<T> Container<T> {
    /// A container from its parts; sorts the siblings and adds their dots to `seen`.
    #[must_use]
    pub fn from_parts(mut seen: Clock, mut siblings: Vec<Sibling<T>>) -> Self {
        siblings.sort_by(|a, b| a.dot.cmp(&b.dot));
        siblings.dedup_by(|a, b| a.dot == b.dot);
        for s in &siblings {
            seen.insert(&s.dot);
        }
        Self { seen, siblings }
    }

    /// The delta of one write: `version` under `dot`, written by a client that had seen `context`.
    #[must_use]
    pub fn delta(context: &Clock, dot: Dot, version: T) -> Self {
        Self::from_parts(context.clone(), vec![Sibling { dot, version }])
    }

    /// Every dot heard of.
    #[must_use]
    pub fn seen(&self) -> &Clock {
        &self.seen
    }

    /// The versions that nothing has replaced, ascending by dot.
    #[must_use]
    pub fn siblings(&self) -> &[Sibling<T>] {
        &self.siblings
    }

    /// Takes the container apart.
    #[must_use]
    pub fn into_parts(self) -> (Clock, Vec<Sibling<T>>) {
        (self.seen, self.siblings)
    }

    /// The number that `actor`'s next write of this key gets, given the writer's context. The context counts
    /// too: an authentic one may hold a dot of ours that a damaged log no longer shows.
    #[must_use]
    pub fn next_dot(&self, actor: &Actor, context: &Clock) -> Dot {
        let n = self.seen.max(actor).max(context.max(actor)) + 1;
        Dot { actor: actor.clone(), n }
    }

    /// Takes in all that `other` knows. A sibling stays if both have it, or if the other has never heard of
    /// its dot; `seen` becomes the union.
    pub fn sync(&mut self, other: Self) {
        if other.siblings.is_empty() && other.seen.is_empty() {
            return;
        }
        let has = |list: &[Sibling<T>], dot: &Dot| list.binary_search_by(|s| s.dot.cmp(dot)).is_ok();
        let unheard = |dot: &Dot| !other.seen.contains(dot) && !removed(Rule::SyncKeepsUnheard);
        self.siblings.retain(|s| has(&other.siblings, &s.dot) || unheard(&s.dot));
        for theirs in other.siblings {
            if !self.seen.contains(&theirs.dot) {
                let at = self.siblings.partition_point(|s| s.dot < theirs.dot);
                self.siblings.insert(at, theirs);
            }
        }
        self.seen.join(&other.seen);
    }

    /// Would taking in `other` change nothing here?
    #[must_use]
    pub fn includes<U>(&self, other: &Container<U>) -> bool {
        let live = |dot: &Dot| self.siblings.binary_search_by(|s| s.dot.cmp(dot)).is_ok();
        self.seen.covers(&other.seen)
            && self.siblings.iter().all(|s| {
                !other.seen.contains(&s.dot) || other.siblings.binary_search_by(|o| o.dot.cmp(&s.dot)).is_ok()
            })
            && other.siblings.iter().all(|s| live(&s.dot) || self.seen.contains(&s.dot))
    }

    /// Do both know the same? With this container equal `seen` and equal dots mean equal values.
    #[must_use]
    pub fn same_as<U>(&self, other: &Container<U>) -> bool {
        self.seen == other.seen
            && self.siblings.len() == other.siblings.len()
            && self.siblings.iter().zip(&other.siblings).all(|(a, b)| a.dot == b.dot)
    }

    /// The same knowledge with other versions in it.
    #[must_use]
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Container<U> {
        Container {
            seen: self.seen.clone(),
            siblings: self
                .siblings
                .iter()
                .map(|s| Sibling { dot: s.dot.clone(), version: f(&s.version) })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::names::NodeId;

    fn actor(i: usize) -> Actor {
        Actor { node: NodeId::new(["a", "b", "c"][i]).unwrap(), epoch: 1 }
    }

    /// One step of a history over three replicas and three clients.
    #[derive(Debug, Clone)]
    enum Step {
        Write { replica: usize, client: usize },
        Read { replica: usize, client: usize },
        Sync { from: usize, to: usize },
        Deliver { to: usize, nth: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..3_usize, 0..3_usize).prop_map(|(replica, client)| Step::Write { replica, client }),
            (0..3_usize, 0..3_usize).prop_map(|(replica, client)| Step::Read { replica, client }),
            (0..3_usize, 0..3_usize).prop_map(|(from, to)| Step::Sync { from, to }),
            (0..3_usize, 0..20_usize).prop_map(|(to, nth)| Step::Deliver { to, nth }),
        ];
        prop::collection::vec(step, 0..40)
    }

    struct World {
        replicas: Vec<Container<Dot>>,
        deltas: Vec<Container<Dot>>,
        clients: Vec<Clock>,
        /// Each write with the dots its client had truly seen.
        writes: Vec<(Dot, Clock)>,
    }

    fn run(steps: &[Step]) -> World {
        let mut w = World {
            replicas: vec![Container::default(); 3],
            deltas: Vec::new(),
            clients: vec![Clock::new(); 3],
            writes: Vec::new(),
        };
        for step in steps {
            match *step {
                Step::Write { replica, client } => {
                    let context = w.clients[client].clone();
                    let dot = w.replicas[replica].next_dot(&actor(replica), &context);
                    let delta = Container::delta(&context, dot.clone(), dot.clone());
                    w.replicas[replica].sync(delta.clone());
                    w.deltas.push(delta);
                    w.clients[client].insert(&dot);
                    w.writes.push((dot, context));
                }
                Step::Read { replica, client } => {
                    let seen = w.replicas[replica].seen().clone();
                    w.clients[client].join(&seen);
                }
                Step::Sync { from, to } => {
                    let other = w.replicas[from].clone();
                    w.replicas[to].sync(other);
                }
                Step::Deliver { to, nth } => {
                    if let Some(delta) = w.deltas.get(nth) {
                        let delta = delta.clone();
                        w.replicas[to].sync(delta);
                    }
                }
            }
        }
        w
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// P1 and P2: once everything is exchanged, what stands is exactly the writes that no other write's
        /// client had seen; every two of them are truly concurrent.
        #[test]
        fn exactly_the_unseen_writes_remain(steps in steps()) {
            let w = run(&steps);
            let mut all = Container::default();
            for c in w.replicas.iter().chain(&w.deltas) {
                all.sync(c.clone());
            }
            let expected: BTreeSet<&Dot> = w.writes.iter().map(|(d, _)| d)
                .filter(|d| !w.writes.iter().any(|(_, seen)| seen.contains(d))).collect();
            let got: BTreeSet<&Dot> = all.siblings().iter().map(|s| &s.dot).collect();
            prop_assert_eq!(got, expected);
        }

        /// P3: no dot is minted twice.
        #[test]
        fn a_dot_names_one_write(steps in steps()) {
            let w = run(&steps);
            let dots: BTreeSet<&Dot> = w.writes.iter().map(|(d, _)| d).collect();
            prop_assert_eq!(dots.len(), w.writes.len());
        }

        #[test]
        fn sync_is_commutative_associative_idempotent(steps in steps()) {
            let w = run(&steps);
            let [a, b, c] = [&w.replicas[0], &w.replicas[1], &w.replicas[2]];
            let join = |x: &Container<Dot>, y: &Container<Dot>| { let mut z = x.clone(); z.sync(y.clone()); z };
            prop_assert_eq!(join(a, b), join(b, a));
            prop_assert_eq!(join(&join(a, b), c), join(a, &join(b, c)));
            prop_assert_eq!(&join(a, a), a);
            prop_assert!(join(a, b).includes(a) && join(a, b).includes(b));
            prop_assert_eq!(a.includes(b), &join(a, b) == a);
        }

        /// Siblings are in `seen`; equal `seen` at quiescence means equal siblings (what Merkle trees rest on).
        #[test]
        fn equal_seen_means_equal_siblings(steps in steps()) {
            let w = run(&steps);
            for r in &w.replicas {
                prop_assert!(r.siblings().iter().all(|s| r.seen().contains(&s.dot)));
                for other in &w.replicas {
                    if r.seen() == other.seen() {
                        prop_assert!(r.same_as(other));
                    }
                }
            }
        }

        /// The brief form in the clock index goes through the same states as the whole record.
        #[test]
        fn brief_and_whole_agree(steps in steps()) {
            let w = run(&steps);
            let mut whole = w.replicas[0].clone();
            let mut brief = whole.map(|_| ());
            whole.sync(w.replicas[1].clone());
            brief.sync(w.replicas[1].map(|_| ()));
            prop_assert!(whole.same_as(&brief));
        }
    }

    #[test]
    fn a_write_replaces_exactly_what_its_client_saw() {
        let mut c: Container<&str> = Container::default();
        let blind = Clock::new();
        let d1 = c.next_dot(&actor(0), &blind);
        c.sync(Container::delta(&blind, d1.clone(), "one"));
        let d2 = c.next_dot(&actor(0), &blind);
        c.sync(Container::delta(&blind, d2, "two"));
        assert_eq!(c.siblings().len(), 2);
        let saw_one: Clock = [d1].into_iter().collect();
        let d3 = c.next_dot(&actor(1), &saw_one);
        c.sync(Container::delta(&saw_one, d3, "three"));
        let values: Vec<_> = c.siblings().iter().map(|s| s.version).collect();
        assert_eq!(values, ["two", "three"]);
    }

    /// The convenience that loses writes: had the answer to a PUT been the replica's whole clock, the
    /// client's next write would have replaced a sibling it never saw.
    #[test]
    fn the_answer_to_a_write_is_not_the_replicas_clock() {
        let mut c: Container<&str> = Container::default();
        let blind = Clock::new();
        let other = c.next_dot(&actor(0), &blind);
        c.sync(Container::delta(&blind, other.clone(), "somebody else's"));
        let mine = c.next_dot(&actor(0), &blind);
        c.sync(Container::delta(&blind, mine.clone(), "mine"));
        let mut answer = blind;
        answer.insert(&mine);
        let next = c.next_dot(&actor(0), &answer);
        c.sync(Container::delta(&answer, next, "mine again"));
        assert!(c.siblings().iter().any(|s| s.dot == other));
    }
}
