//! The actors that a clock index has met, each under a small number.

use crate::clock::Actor;

/// Actors and their numbers, counted from 0. None is ever forgotten: an actor is one incarnation of a storage
/// node, so there are few.
#[derive(Debug, Default)]
pub(super) struct Actors {
    all: Vec<Actor>,
    /// The numbers, ascending by actor.
    sorted: Vec<usize>,
}

impl Actors {
    /// The actor's number; a new one if it was never met.
    pub(super) fn number(&mut self, actor: &Actor) -> usize {
        match self.sorted.binary_search_by(|&number| self.all[number].cmp(actor)) {
            Ok(at) => self.sorted[at],
            Err(at) => {
                let number = self.all.len();
                self.all.push(actor.clone());
                self.sorted.insert(at, number);
                number
            }
        }
    }

    /// The actor with a number that [`Actors::number`] gave.
    pub(super) fn actor(&self, number: usize) -> Option<&Actor> {
        self.all.get(number)
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<Actor>() + self.sorted.capacity() * size_of::<usize>()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_stay_whatever_the_order() {
        let mut actors = Actors::default();
        let names: Vec<Actor> =
            (1..500).map(|i| Actor::parse(&format!("n{}.{i}", i * 37 % 101)).unwrap()).collect();
        let numbers: Vec<usize> = names.iter().map(|a| actors.number(a)).collect();
        assert_eq!(numbers, (0..names.len()).collect::<Vec<_>>());
        for (actor, number) in names.iter().zip(numbers) {
            assert_eq!(actors.number(actor), number);
            assert_eq!(actors.actor(number), Some(actor));
        }
        assert_eq!(actors.actor(names.len()), None);
        assert!(actors.bytes() >= names.len() * (size_of::<Actor>() + size_of::<usize>()));
    }
}
