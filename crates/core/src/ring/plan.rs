//! What comes of a change of the ring: what moves, against the least that could, and how near to its quorum each
//! partition is brought on the way. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{NodeIndex, Ring, RingDocument};
use crate::names::NodeId;

/// Of a key or a byte: partitions may hold less than one on average.
const FRACTION: u128 = 1 << 16;

/// What a member says that it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Keys, if it said so.
    pub keys: Option<u64>,
    /// Bytes in its segments, if it said so.
    pub bytes: Option<u64>,
}

/// What comes of a change. A slot is one partition at one of its homes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Q.
    pub partitions: u32,
    /// N.
    pub replicas: u32,
    /// Partitions that get a home they did not have.
    pub partitions_changed: u32,
    /// Slots that get a new home.
    pub slots_moved: u64,
    /// The fewest that any placement with the same shares would move: what members gain, all together.
    pub least_moved: u64,
    /// Moved over least, in thousandths; `None` where nothing would have to move.
    pub ratio_permille: Option<u64>,
    /// Keys in the slots that move, as far as members said.
    pub keys_moved: Option<u64>,
    /// Bytes of segments that new homes take up by reference and read from the bucket, as far as members said.
    pub bytes_from_bucket: Option<u64>,
    /// Bytes of segments that go from node to node: none; only what came in since the last flush does.
    pub bytes_between_nodes: u64,
    /// Homes that a write by quorum needs (W).
    pub needed_to_write: u32,
    /// Homes that a read by quorum needs (R).
    pub needed_to_read: u32,
    /// How it stands now, and while and after the change is carried out.
    pub steps: Vec<Step>,
    /// Does some partition fall below its quorum on the way that is above it now?
    pub breaks_quorum: bool,
    /// How even the load is now and afterwards, as [`Ring::efficiency_permille`].
    pub efficiency_permille: Pair,
    /// All members, now and afterwards, sorted by id.
    pub members: Vec<MemberPlan>,
}

/// A figure now and after the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Now.
    pub before: u32,
    /// After the change.
    pub after: u32,
}

/// What becomes of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberPlan {
    /// Who.
    pub id: NodeId,
    /// Slots now and afterwards.
    pub slots: Pair,
    /// Slots that it gets.
    pub gained: u32,
    /// Slots that it gives away.
    pub lost: u32,
    /// Its fair number of slots afterwards, in thousandths.
    pub fair_milli: u64,
}

/// How the quorums stand at one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `now`, `pending`, `copied` or `settled`.
    pub step: &'static str,
    /// The fewest homes that live, of any partition, of those that a write needs W of. While the change is carried out
    /// a write needs W of the homes that were and W of those to come.
    pub least_to_write: u32,
    /// The fewest homes that live, of any partition, of those that are read from.
    pub least_to_read: u32,
    /// Partitions with fewer than W or R.
    pub below_quorum: u32,
    /// Those among them that are not below it now.
    pub newly_below: u32,
}

/// Compares the ring as it is, `before`, with a version in which a change is pending, `after`.
///
/// `alive` says who lives. That members who are to join run is taken for granted once the change is `copied`: without
/// them it does not get there.
#[must_use]
pub fn plan(
    before: &RingDocument,
    after: &RingDocument,
    figures: &BTreeMap<NodeId, Figures>,
    alive: &dyn Fn(&NodeId) -> bool,
) -> Plan {
    let (old, new) = (Ring::current(before), Ring::next(after));
    let mut members: BTreeMap<&NodeId, MemberPlan> = BTreeMap::new();
    let blank = |id: &NodeId| MemberPlan {
        id: id.clone(),
        slots: Pair { before: 0, after: 0 },
        gained: 0,
        lost: 0,
        fair_milli: 0,
    };
    for (member, share) in old.members().iter().zip(old.shares()) {
        members.entry(&member.id).or_insert_with(|| blank(&member.id)).slots.before = share.slots;
    }
    for (member, share) in new.members().iter().zip(new.shares()) {
        let plan = members.entry(&member.id).or_insert_with(|| blank(&member.id));
        (plan.slots.after, plan.fair_milli) = (share.slots, share.fair_milli);
    }
    let (mut partitions_changed, mut slots_moved) = (0, 0);
    let (mut keys, mut bytes) = (Some(0_u128), Some(0_u128));
    for partition in 0..old.partitions().max(new.partitions()) {
        let (was, will_be) = (ids(&old, partition), ids(&new, partition));
        let gained: Vec<&NodeId> = will_be.iter().filter(|id| !was.contains(id)).copied().collect();
        for id in &gained {
            members.entry(id).and_modify(|m| m.gained += 1);
        }
        for id in was.iter().filter(|id| !will_be.contains(id)) {
            members.entry(id).and_modify(|m| m.lost += 1);
        }
        if gained.is_empty() {
            continue;
        }
        partitions_changed += 1;
        slots_moved += gained.len() as u64;
        let of_one = |figure: fn(&Figures) -> Option<u64>| average_slot(&old, partition, figures, figure);
        let add = |sum: Option<u128>, one: Option<u128>| {
            sum.zip(one).map(|(sum, one)| sum.saturating_add(one.saturating_mul(gained.len() as u128)))
        };
        keys = add(keys, of_one(|f| f.keys));
        bytes = add(bytes, of_one(|f| f.bytes));
    }
    let gains = members.values().map(|m| u64::from(m.slots.after.saturating_sub(m.slots.before)));
    let least_moved: u64 = gains.sum();
    let whole = |sum: u128| u64::try_from((sum + FRACTION / 2) / FRACTION).unwrap_or(u64::MAX);
    let steps = steps(before, after, alive);
    let needed = quorum(after.replicas);
    Plan {
        partitions: after.partitions,
        replicas: after.replicas,
        partitions_changed,
        slots_moved,
        least_moved,
        ratio_permille: (slots_moved * 1000).checked_div(least_moved),
        keys_moved: keys.map(whole),
        bytes_from_bucket: bytes.map(whole),
        bytes_between_nodes: 0,
        needed_to_write: needed,
        needed_to_read: needed,
        breaks_quorum: steps.iter().any(|step| step.newly_below > 0),
        steps,
        efficiency_permille: Pair { before: old.efficiency_permille(), after: new.efficiency_permille() },
        members: members.into_values().collect(),
    }
}

/// W and R of a cluster that does not choose: a majority of N.
fn quorum(replicas: u32) -> u32 {
    replicas / 2 + 1
}

fn ids(ring: &Ring, partition: u32) -> Vec<&NodeId> {
    ring.homes(partition).iter().filter_map(|home| ring.member(*home)).map(|m| &m.id).collect()
}

/// What one home of the partition holds of it, in 1/[`FRACTION`]: the average over its homes, each of which is taken to
/// hold the same of all its partitions. `None` if no home said.
fn average_slot(
    ring: &Ring,
    partition: u32,
    figures: &BTreeMap<NodeId, Figures>,
    figure: fn(&Figures) -> Option<u64>,
) -> Option<u128> {
    let of = |home: &NodeIndex| {
        let member = ring.member(*home)?;
        let slots = ring.shares().get(usize::from(*home))?.slots;
        (u128::from(figure(figures.get(&member.id)?)?) * FRACTION).checked_div(slots.into())
    };
    let said: Vec<u128> = ring.homes(partition).iter().filter_map(of).collect();
    said.iter().sum::<u128>().checked_div(said.len() as u128)
}

/// The homes of one partition that live: those to write to, and those to read from.
type Living = (u32, u32);

fn steps(before: &RingDocument, after: &RingDocument, alive: &dyn Fn(&NodeId) -> bool) -> Vec<Step> {
    let dead = |id: &NodeId| after.member(id).is_some_and(|m| m.dead);
    let lives = |id: &NodeId| alive(id) && !dead(id);
    // The change is not copied before all that are to join were ready.
    let joins =
        |id: &NodeId| after.member(id).is_some_and(|m| m.state == super::MemberState::Joining) && !dead(id);
    let will_live = |id: &NodeId| lives(id) || joins(id);
    let living = |ring: &Ring, partition: u32, lives: &dyn Fn(&NodeId) -> bool| {
        u32::try_from(ids(ring, partition).into_iter().filter(|id| lives(id)).count()).unwrap_or(u32::MAX)
    };
    let each = |of: &dyn Fn(u32) -> Living| (0..after.partitions).map(of).collect::<Vec<Living>>();
    let (was, would_be) = (Ring::current(before), Ring::next(before));
    let (current, next) = (Ring::current(after), Ring::next(after));
    let now = each(&|p| {
        let (old, new) = (living(&was, p, alive), living(&would_be, p, alive));
        let write = if before.has_pending_change() { old.min(new) } else { old };
        (write, if before.copied { new } else { old })
    });
    let both = |lives: &dyn Fn(&NodeId) -> bool, copied: bool| {
        each(&|p| {
            let (old, new) = (living(&current, p, lives), living(&next, p, lives));
            (old.min(new), if copied { new } else { old })
        })
    };
    let settled = each(&|p| {
        let new = living(&next, p, &will_live);
        (new, new)
    });
    let mut all = vec![("now", now.clone())];
    if after.has_pending_change() {
        if !after.copied {
            all.push(("pending", both(&lives, false)));
        }
        all.push(("copied", both(&will_live, true)));
    }
    all.push(("settled", settled));
    let needed = quorum(after.replicas);
    let is_below = |(write, read): &Living| *write < needed || *read < needed;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    all.into_iter()
        .map(|(step, living)| {
            let newly = now.iter().zip(&living).filter(|(now, then)| !is_below(now) && is_below(then));
            Step {
                step,
                least_to_write: living.iter().map(|l| l.0).min().unwrap_or(0),
                least_to_read: living.iter().map(|l| l.1).min().unwrap_or(0),
                below_quorum: count(living.iter().filter(|l| is_below(l)).count()),
                newly_below: count(newly.count()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
