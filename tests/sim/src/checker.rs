//! What clients were told, and whether it can all be true.
//!
//! Every write has a number and says in its value which writes its client had seen, directly or through what
//! those had seen: its past. The past is tracked here too, apart from all clocks. What is checked:
//!
//! - an acknowledged write is never lost: in the end it shows, or a value with it in its past. A read that begins
//!   after the acknowledgement and shows neither is stale: counted while anything is amiss, wrong once nothing is;
//!   A read by r must show a write by w only where r + w is more than the homes; and none of which, by what its
//!   acknowledgement said, nothing is owed any more (`promised.rs`);
//! - whatever an answer's clock has seen it shows, or something that replaced it: at all times;
//! - a write that was answered "not applied" never shows;
//! - a dot names one write;
//! - a deletion is a write; what it replaced does not show again;
//! - no value is shown beside one that has it in its past, unless the older write was minted twice (its first
//!   mint's answer got lost, and another node minted it again);
//! - no answer but the expected ones, and none later than its deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::claims::N;
use crate::report::{Check, Violation};

/// The number of a write.
pub type WriteId = u64;
/// Writes that were seen.
pub type Past = BTreeSet<WriteId>;

#[derive(Debug)]
struct Write {
    key: String,
    past: Past,
    deletion: bool,
    refused: bool,
    /// Its past is at most that: a deletion without a clock replaces what some read saw, and its client does not know.
    vague: bool,
    /// The entity tags that it had: one per dot.
    tags: BTreeSet<String>,
}

/// Keys that are deleted without a clock: what is beside what there is not clear.
pub const VAGUE: &str = "vague";

/// A value in the answer to a read.
#[derive(Debug)]
pub struct Shown {
    /// Its entity tag.
    pub tag: String,
    /// Its dot, where the answer says it.
    pub dot: Option<String>,
    /// The value; `None` for a deletion.
    pub value: Option<String>,
}

/// What a read must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Must {
    /// Every write acknowledged before it began.
    All,
    /// The same, but something is amiss: what it misses is counted.
    Most,
    /// The same, and the bucket stood in, which says so.
    Some,
}

/// How much happened.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests sent.
    pub requests: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Writes refused, surely not applied.
    pub refused: u64,
    /// Writes whose fate the client does not know.
    pub unknown: u64,
    /// Reads answered with values or their absence.
    pub reads: u64,
    /// Reads that no quorum answered.
    pub unread: u64,
    /// Answers with siblings.
    pub conflicts: u64,
    /// Values shown beside a later one because they were minted twice.
    pub shown_again: u64,
    /// Reads that missed a write acknowledged before.
    pub stale: u64,
    /// Such reads answered by the bucket, which said so.
    pub stale_degraded: u64,
    /// Answers for which the bucket stood in.
    pub degraded: u64,
    /// Answers for which fallbacks were counted.
    pub fallbacks: u64,
    /// Requests that nobody should send, refused as they should be.
    pub nonsense: u64,
    /// Writes that were sent again under their names, later or through the other gateway, and acknowledged.
    pub again: u64,
    /// Writes that were where their answers said, as far as anybody can see.
    pub copies: u64,
    /// Writes that had to be accepted, and were.
    pub had_to: u64,
    /// Acknowledged writes of which nothing is owed any more.
    pub void: u64,
    /// Times that nodes were asked how they are.
    pub looks: u64,
    /// Versions of the ring that were settled.
    pub rings: u64,
}

/// All that is known of what happened.
#[derive(Debug, Default)]
pub struct Checker {
    writes: BTreeMap<WriteId, Write>,
    /// Acknowledged writes of a key, each with the most copies that it was acknowledged with.
    acknowledged: BTreeMap<String, BTreeMap<WriteId, usize>>,
    dots: BTreeMap<(String, String), WriteId>,
    /// Are deletions forgotten when every home knows of them? Then nothing at all may show instead of one.
    pub forgets: bool,
    /// Writes that the bucket took in place of nodes, and whose answers said so. Homes hear of them a moment later.
    pub by_bucket: BTreeSet<WriteId>,
    /// Writes that were minted twice under one actor: its name, and what was seen.
    pub twice: Vec<(String, String)>,
    /// Stale reads while something was amiss, for people.
    pub stale: Vec<String>,
    /// What can't be true.
    pub violations: Vec<Violation>,
    /// How much happened.
    pub counts: Counts,
}

impl Checker {
    /// A new write of `key` by a client that has seen `past`; its number and value.
    pub fn begin(&mut self, key: &str, past: &Past, deletion: bool) -> (WriteId, String) {
        let id = self.writes.len() as WriteId + 1;
        let mut value = id.to_string();
        for seen in past {
            let _ = write!(value, " {seen}");
        }
        let (key, past) = (key.to_owned(), past.clone());
        let write = Write { key, past, deletion, refused: false, vague: false, tags: BTreeSet::new() };
        self.writes.insert(id, write);
        (id, value)
    }

    /// A new deletion of `key` by a client that does not say what it has seen. It may replace whatever was written until it
    /// is [`Checker::ended`].
    pub fn begin_blind_deletion(&mut self, key: &str) -> WriteId {
        let (id, _) = self.begin(key, &Past::new(), true);
        self.writes.get_mut(&id).unwrap().vague = true;
        self.ended(id);
        id
    }

    /// The request is over, whatever came of it.
    pub fn ended(&mut self, id: WriteId) {
        let Some(write) = self.writes.get(&id).filter(|write| write.vague) else { return };
        let others =
            self.writes.iter().filter(|(other, w)| **other != id && w.key == write.key && !w.refused);
        let past: Past = others.map(|(other, _)| *other).collect();
        self.writes.get_mut(&id).unwrap().past = past;
    }

    /// A write was acknowledged, by so many.
    pub fn acknowledged(&mut self, id: WriteId, dot: &str, tag: &str, w: usize) {
        let key = self.writes[&id].key.clone();
        self.counts.acknowledged += 1;
        self.name(&key, id, dot);
        self.writes.get_mut(&id).unwrap().tags.insert(tag.to_owned());
        let most = self.acknowledged.entry(key).or_default().entry(id).or_default();
        *most = w.max(*most);
    }

    /// Does a write have two dots: was it minted twice?
    pub fn is_twice(&self, id: WriteId) -> bool {
        self.writes[&id].tags.len() > 1
    }

    /// Is it the newest of its key: has no other been sent since?
    pub fn is_last(&self, id: WriteId) -> bool {
        let key = &self.writes[&id].key;
        !self.writes.range(id + 1..).any(|(_, write)| write.key == *key)
    }

    /// The dots of a key that are known, and whose they are.
    pub fn dots_of(&self, key: &str) -> Vec<(String, WriteId)> {
        let range = (key.to_owned(), String::new())..;
        let of = self.dots.range(range).take_while(|((of, _), _)| of == key);
        of.map(|((_, dot), id)| (dot.clone(), *id)).collect()
    }

    /// What an answer has seen, by its clock, and neither shows nor shows anything that replaced it: that is lost to whoever
    /// writes with the clock.
    fn seen_and_not_shown(&mut self, who: &str, key: &str, clock: &Past, seen: &Past) {
        if key.ends_with(VAGUE) {
            // A deletion without a clock that is still under way may have replaced anything.
            return;
        }
        let mut lost: Vec<WriteId> = clock.difference(seen).copied().collect();
        // A deletion of which the client has not heard, or that is forgotten, may have replaced it.
        let deleted = self.deleted(key);
        lost.retain(|id| !deleted.contains(id));
        if !lost.is_empty() {
            self.violate(
                Check::Lost,
                format!("{who}: the clock of {key} has seen {lost:?}, and the answer shows nothing of them"),
            );
        }
    }

    /// A write was refused for certain.
    pub fn refused(&mut self, id: WriteId) {
        self.counts.refused += 1;
        self.writes.get_mut(&id).unwrap().refused = true;
    }

    /// What a read of `key` by so many that begins now must show: what was acknowledged by so many that one of them has it.
    pub fn owed(&self, key: &str, r: usize) -> Past {
        let acknowledged = self.acknowledged.get(key).into_iter().flatten();
        acknowledged.filter(|(_, w)| **w + r > N).map(|(id, _)| *id).collect()
    }

    /// A read of `key` by `who` showed this. Returns all that its client has seen now, if that is clear.
    ///
    /// `clock` is what its clock has seen, of which dots are known.
    pub fn shown(
        &mut self,
        who: &str,
        key: &str,
        values: &[Shown],
        owed: &Past,
        clock: &Past,
        must: Must,
    ) -> Option<Past> {
        let mut ids = Vec::new();
        let mut seen = Past::new();
        let mut unclear = false;
        for shown in values {
            let id = match &shown.value {
                Some(value) => self.recognise(key, value),
                None => self.deletion(key, &shown.tag),
            };
            let Some(id) = id else {
                match &shown.value {
                    Some(value) => self
                        .violate(Check::Strange, format!("{who} read a strange value of {key}: {value:?}")),
                    None => unclear = true,
                }
                continue;
            };
            if let Some(dot) = &shown.dot {
                self.name(key, id, dot);
            }
            let write = self.writes.get_mut(&id).unwrap();
            write.tags.insert(shown.tag.clone());
            if write.refused {
                self.violate(
                    Check::Strange,
                    format!("{who} read write {id} of {key}, which was refused as not applied"),
                );
            }
            ids.push(id);
            seen.insert(id);
            seen.extend(&self.writes[&id].past);
        }
        // Whoever saw a deletion without a clock did not know yet all that it may have replaced.
        let vague: Vec<WriteId> = seen.iter().copied().filter(|id| self.writes[id].vague).collect();
        vague.iter().for_each(|id| seen.extend(&self.writes[id].past));
        if unclear {
            // Some deletion or several, by somebody who does not know whether it was applied: any of them.
            seen.extend(self.deleted(key));
        }
        self.counts.conflicts += u64::from(ids.len() > 1);
        self.check_concurrency(who, key, &ids);
        self.seen_and_not_shown(who, key, clock, &seen);
        let mut lost: Vec<WriteId> = owed.difference(&seen).copied().collect();
        if self.forgets {
            let deleted = self.deleted(key);
            lost.retain(|id| !deleted.contains(id));
            if values.is_empty() {
                seen.extend(&deleted);
            }
            let back = |id: &&WriteId| {
                let replaces =
                    |gone: &WriteId| self.writes[gone].deletion && self.writes[gone].past.contains(id);
                let replaces = |gone: &WriteId| !self.writes[gone].vague && replaces(gone);
                self.writes[id].tags.len() == 1 && owed.iter().any(replaces)
            };
            // Of a key that is deleted without a clock it is not known what anybody had seen, only what he may have.
            let back = |id: &&WriteId| !key.ends_with(VAGUE) && back(id);
            // What was deleted and is shown is what a read lacks that shows what was replaced.
            lost.extend(ids.iter().filter(back));
        }
        match must {
            _ if lost.is_empty() => {}
            Must::All => {
                self.violate(
                    Check::Lost,
                    format!("{who} read {ids:?} of {key}: acknowledged writes {lost:?} are lost"),
                );
            }
            Must::Most => {
                self.counts.stale += 1;
                self.stale.push(format!("{who} read {ids:?} of {key}, without {lost:?}"));
            }
            Must::Some => self.counts.stale_degraded += 1,
        }
        (!unclear).then_some(seen)
    }

    fn check_concurrency(&mut self, who: &str, key: &str, ids: &[WriteId]) {
        for (at, older) in ids.iter().enumerate() {
            let beside = |(other, newer): (usize, &WriteId)| {
                other != at && (newer == older && other > at || self.writes[newer].past.contains(older))
            };
            if !ids.iter().enumerate().any(beside) {
                continue;
            }
            // One home has forgotten a deletion, and another has not yet.
            let forgotten = self.forgets && self.writes[older].deletion;
            if key.ends_with(VAGUE) {
                continue;
            }
            if self.writes[older].tags.len() > 1 || forgotten {
                self.counts.shown_again += 1;
            } else {
                self.violate(
                    Check::Beside,
                    format!("{who} read {ids:?} of {key}: {older} stands beside a later write"),
                );
            }
        }
    }

    /// Which write made this value, if one of this key did.
    fn recognise(&self, key: &str, value: &str) -> Option<WriteId> {
        let mut numbers = value.split(' ').map(str::parse::<WriteId>);
        let id = numbers.next()?.ok()?;
        let past: Past = numbers.collect::<Result<_, _>>().ok()?;
        let write = self.writes.get(&id)?;
        (write.key == key && write.past == past).then_some(id)
    }

    /// The deletions of a key, and what they replaced.
    fn deleted(&self, key: &str) -> Past {
        let all = self.writes.iter().filter(|(_, w)| w.key == key && w.deletion && !w.refused);
        all.flat_map(|(id, w)| w.past.iter().chain([id])).copied().collect()
    }

    /// Which deletion has this tag.
    fn deletion(&self, key: &str, tag: &str) -> Option<WriteId> {
        let mut writes = self.writes.iter();
        writes.find(|(_, w)| w.key == key && w.deletion && w.tags.contains(tag)).map(|(id, _)| *id)
    }

    /// A dot was said to be that of write `id`.
    fn name(&mut self, key: &str, id: WriteId, dot: &str) {
        let named = (key.to_owned(), dot.to_owned());
        match self.dots.get(&named).copied() {
            Some(known) if known != id => {
                self.violate(Check::Dot, format!("{dot} of {key} names two writes, {known} and {id}"));
            }
            Some(_) => {}
            None => {
                self.dots.insert(named, id);
                self.look_for_a_second_mint(key, id, dot);
            }
        }
    }

    /// A process knows the requests that it has minted: it mints none twice. One that goes on with the epoch of another that
    /// ended in order does not know that one's.
    fn look_for_a_second_mint(&mut self, key: &str, id: WriteId, dot: &str) {
        let actor = |dot: &str| dot.split_once('=').map(|(actor, _)| actor.to_owned());
        let mine = actor(dot);
        let of = self.dots_of(key);
        let other = of.iter().find(|(other, of)| *of == id && other != dot && actor(other) == mine);
        if let (Some((other, _)), Some(actor)) = (other, mine) {
            let what = format!("write {id} of {key} was minted twice by one process: {other}, {dot}");
            self.twice.push((actor, what));
        }
    }

    /// Something happened that may not.
    pub fn violate(&mut self, check: Check, what: String) {
        self.violations.push(Violation { check, what });
    }

    /// Writes that were minted more than once.
    pub fn minted_twice(&self) -> usize {
        self.writes.values().filter(|w| w.tags.len() > 1).count()
    }

    /// The keys that were written.
    pub fn keys(&self) -> BTreeSet<String> {
        self.writes.values().map(|w| w.key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tag: &str, value: &str) -> Shown {
        Shown { tag: tag.to_owned(), dot: Some(tag.to_owned()), value: Some(value.to_owned()) }
    }

    fn said(checker: &Checker) -> Vec<String> {
        checker.violations.iter().map(ToString::to_string).collect()
    }

    /// Two concurrent acknowledged writes, and one that has seen the first.
    fn history() -> (Checker, [String; 3]) {
        let mut checker = Checker::default();
        let (a, first) = checker.begin("k", &Past::new(), false);
        let (b, second) = checker.begin("k", &Past::new(), false);
        let (c, third) = checker.begin("k", &Past::from([a]), false);
        for (id, dot) in [(a, "n.1=1"), (b, "n.1=2"), (c, "n.1=3")] {
            checker.acknowledged(id, dot, dot, 2);
        }
        (checker, [first, second, third])
    }

    #[test]
    fn a_replaced_write_is_not_lost_and_a_missing_one_is() {
        let (mut checker, [_, second, third]) = history();
        let owed = checker.owed("k", 2);
        let both = [shown("n.1=2", &second), shown("n.1=3", &third)];
        assert_eq!(
            checker.shown("me", "k", &both, &owed, &Past::new(), Must::All),
            Some(Past::from([1, 2, 3]))
        );
        assert_eq!(said(&checker), Vec::<String>::new());
        checker.shown("me", "k", &both[1..], &owed, &Past::new(), Must::Most);
        checker.shown("me", "k", &both[1..], &owed, &Past::new(), Must::Some);
        assert_eq!((checker.counts.stale, checker.counts.stale_degraded), (1, 1));
        assert_eq!(said(&checker), Vec::<String>::new());
        checker.shown("me", "k", &both[1..], &owed, &Past::new(), Must::All);
        assert_eq!(said(&checker), ["Lost: me read [3] of k: acknowledged writes [2] are lost"]);
    }

    #[test]
    fn a_value_beside_a_later_one_is_seen_unless_it_was_minted_twice() {
        let (mut checker, [first, _, third]) = history();
        let both = [shown("n.1=1", &first), shown("n.1=3", &third)];
        checker.shown("me", "k", &both, &Past::new(), &Past::new(), Must::All);
        assert_eq!(checker.violations.len(), 1);
        let again = [shown("m.1=1", &first), shown("n.1=3", &third)];
        checker.shown("me", "k", &again, &Past::new(), &Past::new(), Must::All);
        assert_eq!((checker.violations.len(), checker.counts.shown_again), (1, 1));
    }

    #[test]
    fn a_dot_of_two_writes_a_refused_write_and_a_strange_value_are_seen() {
        let (mut checker, [first, second, _]) = history();
        checker.shown("me", "k", &[shown("n.1=2", &first)], &Past::new(), &Past::new(), Must::All);
        checker.refused(2);
        checker.shown("me", "k", &[shown("n.1=2", &second)], &Past::new(), &Past::new(), Must::All);
        checker.shown("me", "k", &[shown("n.1=9", "9 1")], &Past::new(), &Past::new(), Must::All);
        assert_eq!(checker.violations.len(), 3, "{:?}", checker.violations);
    }

    #[test]
    fn what_was_deleted_stays_deleted() {
        let (mut checker, [first, second, _]) = history();
        let (gone, _) = checker.begin("k", &Past::from([1, 2, 3]), true);
        let deleted = |tag: &str| Shown { tag: tag.to_owned(), dot: None, value: None };
        // Nobody knows yet whether it was applied.
        assert_eq!(
            checker.shown("me", "k", &[deleted("d")], &Past::from([1, 2, 3]), &Past::new(), Must::All),
            None
        );
        checker.acknowledged(gone, "n.1=4", "d", 2);
        let owed = checker.owed("k", 2);
        let seen = checker.shown("me", "k", &[deleted("d")], &owed, &Past::new(), Must::All);
        assert_eq!((seen, checker.violations.len()), (Some(Past::from([1, 2, 3, 4])), 0));
        checker.shown(
            "me",
            "k",
            &[shown("n.1=1", &first), shown("n.1=2", &second)],
            &owed,
            &Past::new(),
            Must::All,
        );
        assert_eq!(said(&checker), ["Lost: me read [1, 2] of k: acknowledged writes [3, 4] are lost"]);
    }

    #[test]
    fn what_a_clock_has_seen_must_be_shown() {
        let (mut checker, [_, second, third]) = history();
        let both = [shown("n.1=2", &second), shown("n.1=3", &third)];
        let all = Past::from([1, 2, 3]);
        checker.shown("me", "k", &both, &Past::new(), &all, Must::Some);
        assert_eq!(said(&checker), Vec::<String>::new());
        checker.shown("me", "k", &both[1..], &Past::new(), &all, Must::Some);
        assert_eq!(said(&checker).len(), 1, "the clock has seen the second");
        // Somebody has deleted it, and nobody knows whether that came to anything.
        checker.begin("k", &Past::from([2]), true);
        checker.shown("me", "k", &both[1..], &Past::new(), &all, Must::Some);
        assert_eq!(said(&checker).len(), 1);
    }

    #[test]
    fn what_few_acknowledged_few_need_not_show() {
        let mut checker = Checker::default();
        for w in 1..=3 {
            let (id, _) = checker.begin("k", &Past::new(), false);
            checker.acknowledged(id, &format!("n.1={w}"), "", w);
        }
        let owed = |r| checker.owed("k", r).into_iter().collect::<Vec<_>>();
        assert_eq!([owed(1), owed(2), owed(3)], [vec![3], vec![2, 3], vec![1, 2, 3]]);
        checker.acknowledged(1, "n.1=1", "", 3);
        assert_eq!(checker.owed("k", 1), Past::from([1, 3]));
        let dots: Vec<String> = checker.dots_of("k").into_iter().map(|(dot, _)| dot).collect();
        assert_eq!(dots, ["n.1=1", "n.1=2", "n.1=3"]);
        assert!(checker.is_last(3) && !checker.is_last(2));
    }

    #[test]
    fn a_deletion_without_a_clock_may_replace_what_was_there() {
        let (mut checker, [first, _, _]) = history();
        let gone = checker.begin_blind_deletion("k");
        let (fourth, _) = checker.begin("k", &Past::new(), false);
        checker.ended(gone);
        let (fifth, _) = checker.begin("k", &Past::new(), false);
        checker.acknowledged(gone, "n.1=4", "d", 2);
        checker.acknowledged(fourth, "n.1=5", "", 2);
        checker.acknowledged(fifth, "n.1=6", "", 2);
        let owed = checker.owed("k", 2);
        let deleted = Shown { tag: "d".to_owned(), dot: None, value: None };
        checker.shown("me", "k", &[deleted], &owed, &Past::new(), Must::All);
        assert_eq!(said(&checker), ["Lost: me read [4] of k: acknowledged writes [6] are lost"]);
        checker.shown("me", "k", &[shown("n.1=1", &first)], &Past::new(), &Past::new(), Must::All);
        assert_eq!(said(&checker).len(), 1, "it may have come before");
    }

    #[test]
    fn where_deletions_have_no_clock_a_late_repetition_is_none_that_came_back() {
        for (key, found) in [("carts/vague", 0), ("carts/k", 1)] {
            let mut checker = Checker { forgets: true, ..Checker::default() };
            let (late, value) = checker.begin(key, &Past::new(), false);
            let (gone, _) = checker.begin(key, &Past::from([late]), true);
            checker.acknowledged(gone, "n.1=1", "d", 2);
            let owed = checker.owed(key, 2);
            let both = [Shown { tag: "d".to_owned(), dot: None, value: None }, shown("n.1=2", &value)];
            checker.shown("me", key, &both, &owed, &Past::new(), Must::All);
            let lost = checker.violations.iter().filter(|violation| violation.check == Check::Lost).count();
            assert_eq!(lost, found, "{key}");
        }
    }
}
