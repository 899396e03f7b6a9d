//! Dots and clocks as a client reads them in headers. Read here anew, so that the checker does not trust the
//! code that it checks.

use std::collections::HashMap;

/// The name of one write of one key: an actor, by its number in [`Actors`], and a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Dot {
    actor: u32,
    n: u64,
}

/// The actors met so far: clocks hold their numbers rather than their names.
#[derive(Debug, Default)]
pub(crate) struct Actors(HashMap<String, u32>);

impl Actors {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.0.get(name) {
            return *number;
        }
        let number = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.insert(name.to_owned(), number);
        number
    }

    /// Reads `node-a.3=17`.
    ///
    /// # Errors
    /// What does not look like a dot.
    pub(crate) fn dot(&mut self, text: &str) -> Result<Dot, String> {
        let parsed = text.split_once('=').and_then(|(actor, n)| Some((actor, n.parse().ok()?)));
        let (actor, n) = parsed.ok_or_else(|| format!("no dot: {text:?}"))?;
        Ok(Dot { actor: self.number(actor), n })
    }

    /// Reads a `Vector-Clock` header: `node-a.3=17, node-c.1=(0 4), mac=:…:`.
    ///
    /// # Errors
    /// What does not look like a clock.
    pub(crate) fn clock(&mut self, text: &str) -> Result<Seen, String> {
        let strange = || format!("no clock: {text:?}");
        let mut entries = Vec::new();
        for member in text.split(',').map(str::trim).filter(|member| !member.is_empty()) {
            let (actor, value) = member.split_once('=').ok_or_else(strange)?;
            if actor == "mac" {
                continue;
            }
            let actor = self.number(actor);
            let counts = value.trim_start_matches('(').trim_end_matches(')').split(' ');
            // The first count covers all up to it; those after a gap stand for themselves.
            for (at, count) in counts.enumerate() {
                let n = count.parse().map_err(|_| strange())?;
                entries.push(Entry { dot: Dot { actor, n }, up_to: at == 0 });
            }
        }
        entries.sort_by_key(|entry| entry.dot);
        Ok(Seen(entries.into()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    dot: Dot,
    /// Does it cover every count up to it, or its own only?
    up_to: bool,
}

/// A set of dots: what an answer, or the writer of a version, had seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen(Box<[Entry]>);

impl Seen {
    /// Does it hold `dot`?
    pub(crate) fn covers(&self, dot: Dot) -> bool {
        let first = self.0.partition_point(|entry| entry.dot.actor < dot.actor);
        let of_actor = self.0.iter().skip(first).take_while(|entry| entry.dot.actor == dot.actor);
        of_actor.into_iter().any(|entry| entry.dot == dot || entry.up_to && dot.n <= entry.dot.n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn clocks_cover_what_they_say() {
        let mut actors = Actors::default();
        let seen = actors.clock("node-c.1=(2 4 7), node-a.3=17, mac=:n1Q/a+=:").unwrap();
        for covered in ["node-a.3=1", "node-a.3=17", "node-c.1=1", "node-c.1=2", "node-c.1=4", "node-c.1=7"] {
            assert!(seen.covers(actors.dot(covered).unwrap()), "{covered}");
        }
        for not in ["node-a.3=18", "node-a.4=1", "node-c.1=3", "node-c.1=5", "node-c.1=8", "node-b.1=1"] {
            assert!(!seen.covers(actors.dot(not).unwrap()), "{not}");
        }
        assert_eq!(actors.clock("").unwrap(), Seen::default());
        let only_later = actors.clock("node-a.1=(0 4)").unwrap();
        assert!(!only_later.covers(actors.dot("node-a.1=1").unwrap()));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut actors = Actors::default();
        for text in ["node-a", "node-a.1=x", "node-a.1=(1 x)"] {
            assert!(actors.clock(text).is_err() && actors.dot(text).is_err(), "{text}");
        }
    }
}
