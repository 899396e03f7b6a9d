//! P12: what an answer says of its quorum, of its durability and of what it has seen, compared with what was asked and
//! with what is so.

use std::collections::BTreeSet;

use cartwheel_core::clock::{Clock, Dot};
use cartwheel_core::header::ClockKey;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::quorum::Durability;

use crate::http::Answer;
use crate::sight::Held;

/// How many homes a key has.
pub const N: usize = 3;

/// What a request asks for besides its key; what is `None` is left to the namespace.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask {
    /// How many are to answer a read.
    pub r: Option<usize>,
    /// How many are to acknowledge a write.
    pub w: Option<usize>,
    /// What each of them must have reached.
    pub durability: Option<Durability>,
    /// May others stand in for homes?
    pub sloppy: Option<bool>,
    /// A read at the end of it all, when every home holds every write.
    pub at_rest: bool,
}

impl Ask {
    /// A read of all homes at the end.
    pub fn at_rest() -> Self {
        Self { r: Some(N), at_rest: true, ..Self::default() }
    }

    /// The most that a read can miss.
    pub fn read_quorum(&self) -> usize {
        self.r.unwrap_or(2)
    }

    /// How many acknowledgements a write needs.
    pub fn write_quorum(&self) -> usize {
        self.w.unwrap_or(2)
    }

    /// What each of them must have reached.
    pub fn level(&self) -> Durability {
        self.durability.unwrap_or(Durability::Disk)
    }

    /// May others stand in?
    pub fn is_sloppy(&self) -> bool {
        self.sloppy.unwrap_or(true)
    }

    /// The query of a read.
    pub fn of_read(&self) -> String {
        let r = self.r.map(|r| format!("&r={r}"));
        [r, self.of_both()].into_iter().flatten().collect()
    }

    /// The query of a write.
    pub fn of_write(&self) -> String {
        let w = self.w.map(|w| format!("&w={w}"));
        let durability = self.durability.map(|level| format!("&durability={level}"));
        [w, durability, self.of_both()].into_iter().flatten().collect()
    }

    fn of_both(&self) -> Option<String> {
        self.sloppy.map(|sloppy| format!("&sloppy={sloppy}"))
    }
}

/// The level that an answer to a write claims.
pub fn level(answer: &Answer) -> Option<Durability> {
    let said = answer.header("quorum").rsplit_once("durability=")?.1;
    said.parse().ok()
}

/// What is wrong with what an answer says of its quorum, given what was asked.
pub fn of_quorum(answer: &Answer, operation: &str, ask: &Ask) -> Vec<String> {
    let mut wrong: Vec<String> = answer.implausible(operation).into_iter().collect();
    let number = |field| answer.quorum(field).unwrap_or(usize::MAX);
    let mut must = |holds: bool, what: &str| {
        if !holds {
            wrong.push(format!("{what} ({ask:?}): {:?}", answer.headers));
        }
    };
    let writes = operation == "write";
    let required = if writes { ask.write_quorum() } else { ask.read_quorum() };
    must(number("n") == N, "n is not the number of homes");
    must(number("required") == required, "it is about another quorum than was asked");
    must(number("home") <= N, "more homes than there are");
    must(ask.is_sloppy() || number("fallback") == 0, "fallbacks were counted that may not be");
    must(ask.is_sloppy() || !answer.is_degraded(), "the bucket stood in though nobody may");
    if writes {
        let level = level(answer);
        must(level.is_some_and(|level| level >= ask.level()), "it is less durable than asked");
        must(!answer.is_degraded() || level == Some(Durability::Bucket), "the bucket is not the bucket");
        // The dot may be a gateway's though replicas acknowledge: it was minted for the bucket, its answer got lost, and
        // the home that has taken it from there since knows the request when it is repeated.
    }
    wrong
}

/// The clock of an answer; `Err` if nobody could use it.
pub fn clock(answer: &Answer, key: &ClockKey, of: (&Namespace, &Key)) -> Result<Clock, String> {
    match answer.header("vector-clock") {
        "" => Ok(Clock::new()),
        said => key.verify(of.0, of.1, said).map_err(|error| format!("{said}: {error}")),
    }
}

/// What is wrong with the clock of an answer to a write: it is the client's own, and the new dot.
pub fn of_written_clock(answer: &Clock, before: &Clock, dot: &Dot) -> Option<String> {
    let mut expected = before.clone();
    expected.insert(dot);
    if before.contains(dot) {
        return Some(format!("{dot} is new, and the client had seen it: {before}"));
    }
    (*answer != expected).then(|| format!("the clock {answer} is not {before} and {dot}"))
}

/// What is wrong with the clock of an answer to a read that shows these dots, with what the client asked it to cover.
pub fn of_read_clock(answer: &Clock, shown: &[Dot], floor: &Clock, says_stale: bool) -> Option<String> {
    if let Some(dot) = shown.iter().find(|dot| !answer.contains(dot)) {
        return Some(format!("{dot} is shown, and the clock {answer} has not seen it"));
    }
    match (answer.covers(floor), says_stale) {
        (false, false) => Some(format!("{answer} does not cover {floor}, and does not say so")),
        (true, true) => Some(format!("{answer} covers {floor}, and is said not to")),
        _ => None,
    }
}

/// What a write's answer claims of where it is.
#[derive(Debug, Clone, Copy)]
pub struct Where {
    /// What all that counted have reached.
    pub level: Durability,
    /// How many counted.
    pub answered: usize,
    /// How many of them homes.
    pub home: usize,
    /// How many were to.
    pub required: usize,
    /// The bucket stood in.
    pub degraded: bool,
    /// How many disks were lost since it was asked: each may have been one of them.
    pub lost: usize,
}

/// What is wrong with it, given who really holds the write.
pub fn of_holders(claim: &Where, holders: &BTreeSet<Held>) -> Option<String> {
    let Where { level, answered, home, required, degraded, lost } = *claim;
    if level == Durability::Memory {
        // What a process has in memory nobody sees from outside.
        return None;
    }
    let counts = |held: &&Held| level == Durability::Disk || held.in_bucket;
    let homes: BTreeSet<&String> = holders.iter().filter(counts).map(|held| &held.home).collect();
    let own = holders.iter().filter(counts).filter(|held| held.home == held.holder);
    let own: BTreeSet<&String> = own.map(|held| &held.home).collect();
    // What the bucket stood in for is in the inboxes of as many homes.
    let lost = if level == Durability::Bucket { 0 } else { lost };
    let claimed = if degraded { required } else { answered };
    if homes.len() + lost < claimed {
        return Some(format!("{claimed} copies are claimed at {level}, and there are {holders:?}"));
    }
    if own.len() + lost < home && !degraded {
        return Some(format!("{home} homes are claimed to have it at {level}: {holders:?}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use http::StatusCode;

    use super::*;

    fn dot(text: &str) -> Dot {
        let (actor, n) = text.split_once('=').unwrap();
        Dot { actor: cartwheel_core::clock::Actor::parse(actor).unwrap(), n: n.parse().unwrap() }
    }

    fn clock_of(dots: &[&str]) -> Clock {
        let mut clock = Clock::new();
        dots.iter().for_each(|text| clock.insert(&dot(text)));
        clock
    }

    fn answer(headers: &[(&str, &str)]) -> Answer {
        let headers: BTreeMap<String, String> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Answer { status: StatusCode::NO_CONTENT, headers, body: Bytes::new() }
    }

    const FINE: &str = "op=write, n=3, required=2, answered=2, home=1, fallback=1, durability=disk";

    #[test]
    fn a_quorum_that_is_not_what_was_asked_is_seen() {
        let quorum = |text: &str| answer(&[("quorum", text), ("dot", "node-a.1=1")]);
        let wrong = |answer: &Answer, ask: Ask| of_quorum(answer, "write", &ask).len();
        let plain = Ask::default();
        assert_eq!(of_quorum(&quorum(FINE), "write", &plain), Vec::<String>::new());
        assert_eq!(wrong(&quorum(FINE), Ask { w: Some(1), ..plain }), 1);
        assert_eq!(wrong(&quorum(FINE), Ask { sloppy: Some(false), ..plain }), 1);
        assert_eq!(wrong(&quorum(FINE), Ask { durability: Some(Durability::Bucket), ..plain }), 1);
        assert_eq!(wrong(&quorum(&FINE.replace("disk", "memory")), plain), 1);
        assert_eq!(wrong(&quorum(&FINE.replace("n=3", "n=4")), plain), 1);
        assert_eq!(wrong(&quorum(&FINE.replace("answered=2", "answered=3")), plain), 1);
        let by_bucket = [
            ("quorum", "op=write, n=3, required=2, answered=0, home=0, fallback=0, durability=bucket"),
            ("dot", "gw-0011=1"),
            ("cartwheel-degraded", "bucket"),
        ];
        assert_eq!(of_quorum(&answer(&by_bucket), "write", &plain), Vec::<String>::new());
        assert_eq!(wrong(&answer(&by_bucket), Ask { sloppy: Some(false), ..plain }), 1);
        assert_eq!(wrong(&answer(&by_bucket[..2]), plain), 1, "the bucket stood in, and it does not say so");
    }

    #[test]
    fn a_clock_that_has_seen_too_much_or_too_little_is_seen() {
        let (before, new) = (clock_of(&["a.1=1"]), dot("b.1=4"));
        assert_eq!(of_written_clock(&clock_of(&["a.1=1", "b.1=4"]), &before, &new), None);
        for wrong in [&["a.1=1", "b.1=4", "b.1=3"][..], &["b.1=4"], &["a.1=1"]] {
            assert!(of_written_clock(&clock_of(wrong), &before, &new).is_some());
        }
        assert!(of_written_clock(&before, &before, &dot("a.1=1")).is_some(), "not new");

        let shown = [dot("a.1=1")];
        assert_eq!(of_read_clock(&clock_of(&["a.1=1", "b.1=4"]), &shown, &before, false), None);
        assert!(of_read_clock(&clock_of(&["b.1=4"]), &shown, &Clock::new(), false).is_some());
        let floor = clock_of(&["c.1=1"]);
        assert!(of_read_clock(&before, &shown, &floor, false).is_some());
        assert_eq!(of_read_clock(&before, &shown, &floor, true), None);
        assert!(of_read_clock(&before, &shown, &before, true).is_some());
    }

    #[test]
    fn copies_that_are_claimed_and_not_there_are_seen() {
        let held = |holder: &str, home: &str, in_bucket| Held {
            holder: holder.to_owned(),
            home: home.to_owned(),
            in_bucket,
        };
        let disk =
            Where { level: Durability::Disk, answered: 2, home: 1, required: 2, degraded: false, lost: 0 };
        let here = |list: &[Held]| list.iter().cloned().collect::<BTreeSet<_>>();
        let (a, for_b) = (held("a", "a", false), held("d", "b", false));
        assert_eq!(of_holders(&disk, &here(&[a.clone(), for_b.clone()])), None);
        assert!(of_holders(&disk, &here(std::slice::from_ref(&a))).is_some());
        assert!(of_holders(&disk, &here(&[a.clone(), held("d", "a", true)])).is_some(), "one home twice");
        assert_eq!(of_holders(&Where { lost: 1, ..disk }, &here(std::slice::from_ref(&a))), None);
        assert!(of_holders(&Where { home: 2, ..disk }, &here(&[a.clone(), for_b])).is_some());
        let bucket = Where { level: Durability::Bucket, lost: 9, ..disk };
        assert!(of_holders(&bucket, &here(&[a, held("d", "b", true)])).is_some());
        assert_eq!(of_holders(&bucket, &here(&[held("a", "a", true), held("d", "b", true)])), None);
        let degraded = Where { degraded: true, answered: 0, home: 0, ..bucket };
        let inboxes = [held("gw-1", "a", true), held("gw-1", "c", true)];
        assert_eq!(of_holders(&degraded, &here(&inboxes)), None);
        assert!(of_holders(&degraded, &here(&inboxes[..1])).is_some());
        assert_eq!(of_holders(&Where { level: Durability::Memory, ..disk }, &here(&[])), None);
    }
}
