//! What goes wrong between a client and its S3 server: a plan of chances, and what is drawn for one request. Pure.

use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};

use crate::chaos::dice::Dice;

/// Chances are out of this.
const CERTAIN: u32 = 10_000;
/// How late a request is carried out whose client has been told nothing.
const LATE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
/// How long a slow request waits.
const SLOW: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(4));
/// How long a request that stalls is held.
const STALL: Duration = Duration::from_secs(30);

/// The chance of each fault. What is left over passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Plan {
    /// 503 SlowDown or 500 InternalError, and nothing is done.
    pub(crate) refuse: u32,
    /// The connection is reset, and nothing is done.
    pub(crate) reset: u32,
    /// It is done, and the connection is reset instead of an answer.
    pub(crate) mute: u32,
    /// The connection is reset, and it is done seconds later.
    pub(crate) late: u32,
    /// It is done after a wait.
    pub(crate) slow: u32,
    /// The body of an answer breaks off.
    pub(crate) truncate: u32,
    /// Nothing is done, and no answer comes.
    pub(crate) stall: u32,
}

/// The plans that a run chooses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storm {
    /// A little of everything.
    Mixed,
    /// Half of all requests are refused.
    Refusing,
    /// Answers are lost, or what they promised comes late.
    Mute,
    /// Most requests wait.
    Slow,
    /// Answers break off or never come.
    Broken,
    /// Every connection is reset.
    Unreachable,
}

impl Storm {
    /// All of them.
    pub(crate) const ALL: [Self; 6] =
        [Self::Mixed, Self::Refusing, Self::Mute, Self::Slow, Self::Broken, Self::Unreachable];

    /// Its chances.
    pub(crate) fn plan(self) -> Plan {
        let calm = Plan::default();
        match self {
            Self::Mixed => {
                Plan { refuse: 400, reset: 300, mute: 400, late: 400, slow: 600, truncate: 300, stall: 60 }
            }
            Self::Refusing => Plan { refuse: CERTAIN / 2, ..calm },
            Self::Mute => Plan { mute: 2000, late: 2000, ..calm },
            Self::Slow => Plan { slow: 6000, ..calm },
            Self::Broken => Plan { reset: 1000, truncate: 3000, stall: 500, ..calm },
            Self::Unreachable => Plan { reset: CERTAIN, ..calm },
        }
    }

    /// How it is told.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Mixed => "a little of everything",
            Self::Refusing => "half of the requests refused",
            Self::Mute => "answers lost and requests late",
            Self::Slow => "slow",
            Self::Broken => "answers broken off or missing",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing.
    Pass,
    /// It is answered with this status, and not carried out.
    Refuse(u16),
    /// Its connection is reset, and it is not carried out.
    Reset,
    /// It is carried out, and its connection is reset.
    Mute,
    /// Its connection is reset, and it is carried out after a while.
    Late(Duration),
    /// It is carried out after a while, and answered.
    Slow(Duration),
    /// The body of the answer breaks off after so many hundredths.
    Truncate(usize),
    /// It is held for so long, and its connection is reset.
    Stall(Duration),
}

impl Fate {
    /// The word that reports count it under.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pass => "passed",
            Self::Refuse(_) => "refused",
            Self::Reset => "reset",
            Self::Mute => "mute",
            Self::Late(_) => "late",
            Self::Slow(_) => "slow",
            Self::Truncate(_) => "truncated",
            Self::Stall(_) => "stalled",
        }
    }
}

impl Plan {
    /// Draws what happens to a request with this method. Only changes can be late, only what is read can break off; such
    /// a request is reset instead, or passes.
    pub(crate) fn draw(&self, dice: &mut Dice, method: &Method) -> Fate {
        let changes = matches!(*method, Method::PUT | Method::POST | Method::DELETE);
        let mut drawn = u32::try_from(dice.below(CERTAIN as usize)).unwrap_or(CERTAIN);
        let mut hit = |chance: u32| {
            let hit = drawn < chance;
            drawn = if hit { CERTAIN } else { drawn - chance };
            hit
        };
        match () {
            () if hit(self.refuse) => Fate::Refuse(if dice.one_in(3) { 500 } else { 503 }),
            () if hit(self.reset) => Fate::Reset,
            () if hit(self.mute) => Fate::Mute,
            () if hit(self.late) && changes => Fate::Late(dice.between(LATE.0, LATE.1)),
            () if hit(self.slow) => Fate::Slow(dice.between(SLOW.0, SLOW.1)),
            () if hit(self.truncate) && *method == Method::GET => Fate::Truncate(dice.below(100)),
            () if hit(self.stall) => Fate::Stall(STALL),
            () => Fate::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn drawn(plan: Plan, method: &Method) -> BTreeMap<&'static str, usize> {
        let mut dice = Dice::new(5, 5);
        let mut counts = BTreeMap::new();
        for _ in 0..CERTAIN {
            *counts.entry(plan.draw(&mut dice, method).word()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn every_fault_comes_as_often_as_it_should() {
        let counts = drawn(Storm::Mixed.plan(), &Method::PUT);
        let words: Vec<_> = counts.keys().copied().collect();
        assert_eq!(words, ["late", "mute", "passed", "refused", "reset", "slow", "stalled"]);
        assert!((300..500).contains(&counts["late"]) && (30..90).contains(&counts["stalled"]), "{counts:?}");
        let counts = drawn(Storm::Mixed.plan(), &Method::GET);
        assert!((200..400).contains(&counts["truncated"]) && !counts.contains_key("late"), "{counts:?}");
    }

    #[test]
    fn calm_passes_and_unreachable_does_not() {
        let all = BTreeMap::from([("passed", CERTAIN as usize)]);
        assert_eq!(drawn(Plan::default(), &Method::PUT), all);
        let none = BTreeMap::from([("reset", CERTAIN as usize)]);
        assert_eq!(drawn(Storm::Unreachable.plan(), &Method::GET), none);
    }

    #[test]
    fn chances_leave_nothing_over_and_read_back() {
        for storm in Storm::ALL {
            let plan = storm.plan();
            let Plan { refuse, reset, mute, late, slow, truncate, stall } = plan;
            let sum = refuse + reset + mute + late + slow + truncate + stall;
            assert!(sum > 0 && sum <= CERTAIN, "{storm:?}");
            let text = serde_json::to_string(&plan).unwrap_or_default();
            assert_eq!(serde_json::from_str::<Plan>(&text).ok(), Some(plan));
        }
    }
}
