//! Which segments to merge next: decisions only.
//!
//! Segments come in runs: one flush, or the outcome of one merge; no key is twice in a run. Runs are merged with others
//! of about their size (size-tiered, as in Bigtable and its heirs), so that a record is rewritten a logarithmic number
//! of times. The circle is cut into [`GROUPS`] equal groups of partitions. Runs that span several groups are *wide*:
//! flushes, and small merges of them. Once they are large, a merge splits them at the groups' borders, and from then
//! on each group is merged by itself: the work of one merge, and the room it takes in the bucket meanwhile, stay a
//! fraction of the node's data.
//!
//! Runs that are borrowed from another node come before all else, for that one can't delete them until they are let go
//! of: those of each group, then the wide ones, are rewritten into runs of this node's own, each record once.

use std::iter::Sum;

use crate::hash::KeyHash;
use crate::manifest::SegmentEntry;
use crate::ranges::{HashRange, share};

/// Groups of partitions that are merged apart from each other.
pub const GROUPS: u32 = 16;
/// Runs of about one size that make a merge worthwhile.
pub const FAN_IN: usize = 4;
/// Runs that go into one merge at most.
pub const MAX_INPUTS: usize = 32;
/// Wide runs of so many bytes together are split.
pub const SPLIT_BYTES: u64 = 16 * 1024 * 1024;
/// An unsettled merge stays wide up to so many bytes.
const MAX_WIDE_BYTES: u64 = 4 * SPLIT_BYTES;
/// Runs below this size count as equally small, bytes.
const SMALL: u64 = 64 * 1024;
/// What may be wasted in each group before it is rewritten for that alone.
const SLACK: Amount = Amount { bytes: 16 * 1024, records: 64 };

/// The group of a hash.
#[must_use]
pub fn group_of(hash: KeyHash) -> u32 {
    hash.partition(GROUPS)
}

/// So much of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes.
    pub bytes: u64,
    /// Records, of one key each.
    pub records: u64,
}

impl Amount {
    /// What counts of a segment: all of it, or so much as its ranges are of the hashes that it spans.
    #[must_use]
    pub fn of(entry: &SegmentEntry) -> Self {
        let whole = HashRange { first: entry.first, last: entry.last };
        let part = |amount| if entry.only.is_empty() { amount } else { share(amount, &entry.only, whole) };
        Self { bytes: part(entry.bytes), records: part(entry.records) }
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts
            .fold(Self::default(), |a, b| Self { bytes: a.bytes + b.bytes, records: a.records + b.records })
    }
}

/// A run as this decision sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How much is in its segments.
    pub amount: Amount,
    /// The group that it lies in; `None` if it is wide.
    pub group: Option<u32>,
    /// Is all of it older than what nodes ask each other for after they lost a disk? Merging younger runs into
    /// large ones would make the answers to that large.
    pub settled: bool,
    /// Is any of it another node's?
    pub borrowed: bool,
}

/// What there is to be merged.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// The runs, oldest first.
    pub runs: &'a [Run],
    /// What each group's keys would take at most if each were in one record.
    pub live: &'a [Amount; GROUPS as usize],
    /// Are there enough deletions in the group that every home may forget?
    pub reapable: &'a [bool; GROUPS as usize],
}

/// Why runs are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// They are another node's.
    Borrowed,
    /// There are several of one size.
    Tier,
    /// Wide ones have grown large.
    Split,
    /// Much of what they hold is dead.
    Waste,
    /// Deletions in this group can be forgotten.
    Reap(u32),
}

/// One merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The runs to merge, by their place in [`Picture::runs`], ascending.
    pub inputs: Vec<usize>,
    /// Is the outcome cut at the borders of groups?
    pub split: bool,
    /// Why.
    pub why: Why,
}

/// The next merge, if one is worthwhile.
#[must_use]
pub fn plan(picture: &Picture<'_>) -> Option<Plan> {
    borrowed(picture)
        .or_else(|| wide_tier(picture))
        .or_else(|| (0..GROUPS).find_map(|group| tier(picture, Some(group)).map(|i| merge(i, Why::Tier))))
        .or_else(|| split(picture))
        .or_else(|| (0..GROUPS).find_map(|group| waste(picture, group)))
        .or_else(|| wide_waste(picture))
        .or_else(|| (0..GROUPS).find_map(|group| reap(picture, group)))
}

fn merge(inputs: Vec<usize>, why: Why) -> Plan {
    Plan { inputs, split: false, why }
}

/// Runs of other nodes, of one area, become this node's own. Those that are settled apart from those that are not, so
/// that nobody who asks for what is young gets what is old.
fn borrowed(picture: &Picture<'_>) -> Option<Plan> {
    let of = |settled: bool, group: Option<u32>| {
        let runs = runs_of(picture, group).filter(|(_, run)| run.borrowed && run.settled == settled);
        let inputs: Vec<usize> = runs.map(|(at, _)| at).take(MAX_INPUTS).collect();
        (!inputs.is_empty()).then_some(Plan { inputs, split: true, why: Why::Borrowed })
    };
    let areas = || (0..GROUPS).map(Some).chain([None]);
    areas().find_map(|group| of(true, group)).or_else(|| areas().find_map(|group| of(false, group)))
}

/// The runs of one group, or the wide ones.
fn runs_of<'a>(picture: &'a Picture<'_>, group: Option<u32>) -> impl Iterator<Item = (usize, &'a Run)> {
    picture.runs.iter().enumerate().filter(move |(_, run)| run.group == group)
}

fn sum_of(picture: &Picture<'_>, inputs: &[usize]) -> Amount {
    inputs.iter().map(|at| picture.runs[*at].amount).sum()
}

/// Four times the size, one tier up.
fn tier_of(bytes: u64) -> u32 {
    (bytes / SMALL).checked_ilog(4).map_or(0, |tier| tier + 1)
}

/// The runs of the lowest tier that has enough of them, with all below it.
fn tier(picture: &Picture<'_>, group: Option<u32>) -> Option<Vec<usize>> {
    let mut runs: Vec<(u32, usize)> = runs_of(picture, group)
        // Small ones make nothing large of each other.
        .filter(|(_, run)| group.is_none() || run.settled || run.amount.bytes < SMALL)
        .map(|(at, run)| (tier_of(run.amount.bytes), at))
        .collect();
    runs.sort_unstable();
    let full = runs.iter().map(|(tier, _)| *tier).find(|tier| {
        let in_tier = runs.iter().filter(|(other, _)| other == tier).count();
        in_tier >= FAN_IN
    })?;
    let mut inputs: Vec<usize> =
        runs.iter().filter(|(tier, _)| *tier <= full).map(|(_, at)| *at).take(MAX_INPUTS).collect();
    inputs.sort_unstable();
    Some(inputs)
}

/// Wide runs of one size, while they stay small.
fn wide_tier(picture: &Picture<'_>) -> Option<Plan> {
    let inputs = tier(picture, None)?;
    let bytes = sum_of(picture, &inputs).bytes;
    let settled = inputs.iter().all(|at| picture.runs[*at].settled);
    if settled && bytes >= SPLIT_BYTES {
        return Some(Plan { inputs, split: true, why: Why::Split });
    }
    (bytes <= MAX_WIDE_BYTES).then(|| merge(inputs, Why::Tier))
}

/// Wide runs that have grown large go to their groups.
fn split(picture: &Picture<'_>) -> Option<Plan> {
    let inputs: Vec<usize> =
        runs_of(picture, None).filter(|(_, run)| run.settled).map(|(at, _)| at).take(MAX_INPUTS).collect();
    (sum_of(picture, &inputs).bytes >= SPLIT_BYTES).then_some(Plan { inputs, split: true, why: Why::Split })
}

/// Is more than about a quarter of it dead?
fn is_wasteful(held: Amount, live: Amount) -> bool {
    let beyond = |held: u64, live: u64, slack: u64| held > (live + live / 3).saturating_add(slack);
    beyond(held.bytes, live.bytes, SLACK.bytes) || beyond(held.records, live.records, SLACK.records)
}

/// A group most of which is dead is merged into one run.
fn waste(picture: &Picture<'_>, group: u32) -> Option<Plan> {
    let inputs: Vec<usize> = runs_of(picture, Some(group))
        .filter(|(_, run)| run.settled)
        .map(|(at, _)| at)
        .take(MAX_INPUTS)
        .collect();
    let live = picture.live[group as usize];
    (inputs.len() > 1 && is_wasteful(sum_of(picture, &inputs), live)).then(|| merge(inputs, Why::Waste))
}

/// Wide runs that hold more than all that lives, or that replace much of what the groups hold.
fn wide_waste(picture: &Picture<'_>) -> Option<Plan> {
    let inputs: Vec<usize> =
        runs_of(picture, None).filter(|(_, run)| run.settled).map(|(at, _)| at).take(MAX_INPUTS).collect();
    let all: Amount = picture.runs.iter().map(|run| run.amount).sum();
    let live: Amount = picture.live.iter().copied().chain(std::iter::repeat_n(SLACK, GROUPS as usize)).sum();
    if !is_wasteful(all, live) {
        return None;
    }
    let wide = sum_of(picture, &inputs);
    let grouped = picture.runs.iter().any(|run| run.group.is_some());
    if grouped {
        // Small ones can't have replaced much.
        return (wide.bytes > all.bytes / 16).then_some(Plan { inputs, split: true, why: Why::Waste });
    }
    (inputs.len() > 1).then(|| merge(inputs, Why::Waste))
}

/// Deletions are forgotten where all segments that may hold their keys are merged.
fn reap(picture: &Picture<'_>, group: u32) -> Option<Plan> {
    if !picture.reapable[group as usize] {
        return None;
    }
    let own: Vec<usize> = runs_of(picture, Some(group))
        .filter(|(_, run)| run.settled)
        .map(|(at, _)| at)
        .take(MAX_INPUTS)
        .collect();
    let wide: Vec<usize> =
        runs_of(picture, None).filter(|(_, run)| run.settled).map(|(at, _)| at).take(MAX_INPUTS).collect();
    match (own.is_empty(), wide.is_empty()) {
        (true, true) => None,
        (_, true) => Some(merge(own, Why::Reap(group))),
        (true, false) => Some(merge(wide, Why::Reap(group))),
        // The wide ones first: then the group's are all there are.
        (false, false) => Some(Plan { inputs: wide, split: true, why: Why::Reap(group) }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const LIVE: [Amount; GROUPS as usize] = [Amount { bytes: 1 << 40, records: 1 << 30 }; GROUPS as usize];
    const NONE: [bool; GROUPS as usize] = [false; GROUPS as usize];

    fn run(bytes: u64, group: Option<u32>) -> Run {
        Run { amount: Amount { bytes, records: 1 }, group, settled: true, borrowed: false }
    }

    fn plan_of(runs: &[Run], live: u64) -> Option<Plan> {
        let live = Amount { bytes: live, records: 1 << 30 };
        plan(&Picture { runs, live: &[live; GROUPS as usize], reapable: &NONE })
    }

    #[test]
    fn four_of_a_size_are_merged_with_all_that_are_smaller() {
        let wide = |bytes| run(bytes, None);
        assert_eq!(plan_of(&[wide(1000), wide(2000), wide(9000)], 1 << 40), None);
        let runs = [wide(1 << 20), wide(1000), wide(2000), wide(1), wide(50_000)];
        let plan = plan_of(&runs, 1 << 40).unwrap();
        assert_eq!((plan.inputs, plan.split), (vec![1, 2, 3, 4], false), "the large one stays");
        let runs = [wide(1 << 20), wide(1 << 20), wide(2000), wide(1 << 20), wide(1 << 20)];
        assert_eq!(plan_of(&runs, 1 << 40).unwrap().inputs, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn large_wide_runs_go_to_their_groups_once_settled() {
        let mut runs = [run(SPLIT_BYTES / 2, None); 2];
        let plan = plan_of(&runs, 1 << 40).unwrap();
        assert_eq!((plan.inputs.len(), plan.split, plan.why), (2, true, Why::Split));
        runs[1].settled = false;
        assert_eq!(plan_of(&runs, 1 << 40), None);
        let unsettled = [Run { settled: false, ..run(SPLIT_BYTES, None) }; 4];
        let plan = plan_of(&unsettled, 1 << 40).unwrap();
        assert!(!plan.split, "small enough to be merged as they are");
        let large = [Run { settled: false, ..run(SPLIT_BYTES * 4, None) }; 4];
        assert_eq!(plan_of(&large, 1 << 40), None, "merging these would make scans of what is young large");
    }

    #[test]
    fn groups_are_merged_apart() {
        let runs =
            [run(1 << 20, Some(3)), run(1 << 20, Some(4)), run(1 << 20, Some(3)), run(1 << 20, Some(3))];
        assert_eq!(plan_of(&runs, 1 << 40), None);
        let mut more = runs.to_vec();
        more.push(run(1 << 20, Some(3)));
        assert_eq!(plan_of(&more, 1 << 40).unwrap().inputs, [0, 2, 3, 4]);
    }

    #[test]
    fn what_is_mostly_dead_is_rewritten() {
        let runs = [run(8 << 20, Some(3)), run(4 << 20, Some(3))];
        assert_eq!(plan_of(&runs, 10 << 20), None, "a fifth may be dead");
        let plan = plan_of(&runs, 6 << 20).unwrap();
        assert_eq!((plan.inputs, plan.why), (vec![0, 1], Why::Waste));
        assert_eq!(plan_of(&runs[..1], 1), None, "one run has no key twice");
        let wide = [run(9 << 20, None), run(6 << 20, None)];
        assert_eq!(plan_of(&wide, 1 << 20), None, "16 groups of a MiB each are alive");
        assert_eq!(plan_of(&wide, 1 << 15).unwrap().inputs, [0, 1]);
        let alive = [Amount { bytes: 1 << 30, records: 1000 }; GROUPS as usize];
        let mut many = runs;
        many[0].amount.records = 1300;
        let plan_of_many = |runs: &[Run]| super::plan(&Picture { runs, live: &alive, reapable: &NONE });
        assert_eq!(plan_of_many(&many), None);
        many[1].amount.records = 1000;
        assert_eq!(plan_of_many(&many).unwrap().why, Why::Waste, "many records of few keys");
        let mixed = [run(9 << 20, Some(2)), run(6 << 20, None)];
        let plan = plan_of(&mixed, 1 << 15).unwrap();
        assert_eq!((plan.inputs, plan.split), (vec![1], true));
    }

    #[test]
    fn deletions_are_reaped_with_all_runs_that_may_hold_them() {
        let mut reapable = NONE;
        reapable[3] = true;
        let plan_of = |runs: &[Run]| plan(&Picture { runs, live: &LIVE, reapable: &reapable });
        assert_eq!(plan_of(&[run(9, Some(2))]), None);
        assert_eq!(plan_of(&[run(9, Some(3)), run(9, Some(4))]).unwrap().inputs, [0]);
        assert_eq!(plan_of(&[run(9, None)]).unwrap(), merge(vec![0], Why::Reap(3)));
        let plan = plan_of(&[run(9, None), run(9, Some(3))]).unwrap();
        assert_eq!((plan.inputs, plan.split), (vec![0], true), "first down to the group");
        let young = [Run { settled: false, ..run(9, None) }, run(9, Some(3))];
        assert_eq!(plan_of(&young).unwrap().inputs, [1]);
    }

    /// Whatever else there is to do, and however much: what is borrowed goes first, each run once.
    #[test]
    fn what_is_borrowed_is_rewritten_first_and_all_of_it() {
        let borrowed = |group, settled| Run { settled, borrowed: true, ..run(1 << 20, group) };
        let mut runs = vec![run(1000, None); 8];
        runs.extend((0..70).map(|n| borrowed([Some(3), None, Some(9)][n % 3], n % 2 == 0)));
        let reapable = [true; GROUPS as usize];
        let (mut merges, mut written) = (0, 0);
        loop {
            let plan = plan(&Picture { runs: &runs, live: &LIVE, reapable: &reapable }).unwrap();
            if plan.why != Why::Borrowed {
                break;
            }
            assert!(plan.split && plan.inputs.iter().all(|at| runs[*at].borrowed));
            merges += 1;
            written += carry_out(&mut runs, &plan);
            // More comes in all the while.
            runs.extend([run(1000, None); 4]);
        }
        assert!(runs.iter().all(|run| !run.borrowed));
        assert!(merges <= 6, "{merges} merges");
        assert_eq!(written, 70 << 20, "each byte once");
    }

    #[test]
    fn a_borrowed_segment_counts_for_its_share() {
        let only = vec![HashRange::of_partition(5, 16), HashRange::of_partition(7, 16)];
        let entry = SegmentEntry {
            object: "nodes/b/c/x/1.seg".to_owned(),
            bytes: 16_000,
            tail_offset: 1,
            records: 160,
            first: KeyHash(0),
            last: KeyHash(u128::MAX),
            run: "x".to_owned(),
            born_ms: 0,
            only: Vec::new(),
        };
        assert_eq!(Amount::of(&entry), Amount { bytes: 16_000, records: 160 });
        let part = Amount::of(&SegmentEntry { only, ..entry });
        assert!((2000..2003).contains(&part.bytes) && (20..23).contains(&part.records), "{part:?}");
    }

    /// What a merge makes of runs that are all alive.
    fn carry_out(runs: &mut Vec<Run>, plan: &Plan) -> u64 {
        let bytes: u64 = plan.inputs.iter().map(|at| runs[*at].amount.bytes).sum();
        let group = plan.inputs.iter().map(|at| runs[*at].group).next().flatten();
        for at in plan.inputs.iter().rev() {
            runs.remove(*at);
        }
        if plan.split {
            runs.extend((0..GROUPS).map(|group| run(bytes / u64::from(GROUPS), Some(group))));
        } else {
            runs.push(run(bytes, group));
        }
        bytes
    }

    /// However flushes come, merging comes to rest, with few runs for any key to be in, and no record is rewritten
    /// more often than the logarithm of the number of flushes asks for.
    #[test]
    fn merging_comes_to_rest_with_few_runs_and_little_rewriting() {
        for flush in [10_000_u64, 300_000, 3 << 20, 64 << 20] {
            let (mut runs, mut written, mut flushed) = (Vec::new(), 0, 0);
            for _ in 0..2000 {
                runs.push(run(flush, None));
                flushed += flush;
                while let Some(plan) = plan_of(&runs, flushed) {
                    written += carry_out(&mut runs, &plan);
                }
                let of_a_key = (0..GROUPS)
                    .map(|group| runs.iter().filter(|run| run.group.is_none_or(|g| g == group)).count());
                assert!(of_a_key.max().unwrap() <= 40, "{flush}: {} runs", runs.len());
            }
            assert!(written / flushed <= 12, "{flush}: every byte was written {} times", written / flushed);
        }
    }

    proptest! {
        /// A plan names existing runs, each once, of one area, and comes only with something to gain.
        #[test]
        fn plans_are_sound(
            runs in prop::collection::vec(
                (0..1_u64 << 30, prop::option::of(0..GROUPS), any::<bool>(), prop::bool::weighted(0.02)), 0..80,
            ),
            live in 0..1_u64 << 32, reapable: [bool; GROUPS as usize],
        ) {
            let runs: Vec<Run> = runs
                .into_iter()
                .map(|(bytes, group, settled, borrowed)| Run { settled, borrowed, ..run(bytes, group) })
                .collect();
            let live = Amount { bytes: live, records: 20 };
            let picture = Picture { runs: &runs, live: &[live; GROUPS as usize], reapable: &reapable };
            if let Some(plan) = plan(&picture) {
                prop_assert!(!plan.inputs.is_empty() && plan.inputs.len() <= MAX_INPUTS);
                prop_assert!(plan.inputs.windows(2).all(|w| w[0] < w[1]));
                let groups: Vec<_> = plan.inputs.iter().map(|at| runs[*at].group).collect();
                prop_assert!(groups.windows(2).all(|w| w[0] == w[1]));
                prop_assert!(plan.inputs.len() > 1 || plan.split || matches!(plan.why, Why::Reap(_)));
                let borrowed: Vec<_> = plan.inputs.iter().map(|at| runs[*at].borrowed).collect();
                prop_assert_eq!(plan.why == Why::Borrowed, runs.iter().any(|run| run.borrowed));
                prop_assert!(borrowed.iter().all(|borrowed| *borrowed == (plan.why == Why::Borrowed)));
                if plan.why == Why::Borrowed {
                    let ages: Vec<_> = plan.inputs.iter().map(|at| runs[*at].settled).collect();
                    prop_assert!(plan.split && ages.windows(2).all(|w| w[0] == w[1]));
                    return Ok(());
                }
                prop_assert!(!plan.split || groups[0].is_none());
                let young = plan.inputs.iter().any(|at| !runs[*at].settled);
                let small = plan.inputs.iter().all(|at| runs[*at].settled || runs[*at].amount.bytes < SMALL);
                prop_assert!(!young || (groups[0].is_none() && !plan.split) || small);
            }
        }
    }
}
