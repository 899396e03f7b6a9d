//! Dots of a gateway: an actor of its own for every boot, so that no dot is given twice (P3).

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use parking_lot::Mutex;

use cartwheel_cluster::seams::Seams;
use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::NodeId;
use cartwheel_core::record::Version;
use cartwheel_segments::Identity;

/// Keys whose last number is remembered. With more, a new actor starts from nothing.
const MAX_KEYS: usize = 65_536;

/// The epoch of every actor here: it is in the actor's name already that it is new.
pub(super) const EPOCH: u32 = 1;

/// An actor, and the last number that it gave each key.
#[derive(Debug)]
pub(super) struct Dots {
    seams: Seams,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    actor: Actor,
    last: HashMap<KeyHash, u64, BuildHasherDefault<Identity>>,
}

#[expect(clippy::expect_used, reason = "the name is made of 19 letters, digits and '-', whatever is drawn")]
fn new_actor(seams: &Seams) -> Actor {
    let name = format!("gw-{:016x}", seams.random.next_u64());
    Actor { node: NodeId::new(&name).expect("a node id"), epoch: EPOCH }
}

impl Dots {
    pub(super) fn new(seams: Seams) -> Self {
        let state = State { actor: new_actor(&seams), last: HashMap::default() };
        Self { seams, state: Mutex::new(state) }
    }

    /// The actor of now.
    pub(super) fn actor(&self) -> Actor {
        self.state.lock().actor.clone()
    }

    /// The next dot for a key of which `known` is known and whose writer has seen `context`.
    pub(super) fn next(&self, hash: KeyHash, known: &Container<Version>, context: &Clock) -> Dot {
        let mut state = self.state.lock();
        if state.last.len() >= MAX_KEYS && !state.last.contains_key(&hash) {
            // Forgetting a key's number would give it out again; under a new actor every number is free.
            state.actor = new_actor(&self.seams);
            state.last.clear();
        }
        let State { actor, last } = &mut *state;
        let last = last.entry(hash).or_default();
        let mut dot = known.next_dot(actor, context);
        dot.n = dot.n.max(*last + 1);
        *last = dot.n;
        dot
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::last_resort::tests::seams;

    #[test]
    fn a_dot_is_never_given_twice_even_when_keys_are_forgotten() {
        let dots = Dots::new(seams());
        let (nothing, no_context) = (Container::default(), Clock::new());
        let first_actor = dots.actor();
        let mut given = HashSet::new();
        for round in 0..3 {
            for key in 0..MAX_KEYS as u128 + 1 {
                let dot = dots.next(KeyHash(key), &nothing, &no_context);
                assert!(given.insert((key, dot.clone())), "{dot} of key {key} in round {round}");
            }
        }
        assert_ne!(dots.actor(), first_actor);
        assert_eq!(dots.state.lock().last.len(), 3, "bounded");
    }

    #[test]
    fn numbers_are_dense_and_above_all_that_is_known() {
        let dots = Dots::new(seams());
        let nothing = Container::default();
        let next = |known: &Container<Version>, context: &Clock| dots.next(KeyHash(1), known, context).n;
        assert_eq!([next(&nothing, &Clock::new()), next(&nothing, &Clock::new())], [1, 2]);
        let mut clock = Clock::new();
        clock.insert(&Dot { actor: dots.actor(), n: 7 });
        assert_eq!(next(&nothing, &clock), 8);
        clock.insert(&Dot { actor: dots.actor(), n: 20 });
        assert_eq!(next(&Container::from_parts(clock, Vec::new()), &Clock::new()), 21);
        assert_eq!(dots.next(KeyHash(2), &nothing, &Clock::new()).n, 1, "each key has its own");
    }
}
