//! What operators ask of the membership, and the ring document that it makes. Pure.
//!
//! A change is staged: [`edit`] makes a version in which it is pending; the members carry it out and settle it. While
//! one is pending there are only two edits: [`Edit::Forget`], so that a member that died does not hold it up, and
//! [`Edit::Cancel`], until the homes to come are read from.

use std::collections::BTreeSet;
use std::fmt;

use super::{
    Becomes, Change, MAX_MEMBERS, Member, MemberState, Ring, RingDocument, RingError, check_address,
    check_weight, check_zone,
};
use crate::names::NodeId;

/// Most edits in one change.
pub const MAX_EDITS: usize = 128;
/// Most characters of what a document says of its change.
const MAX_WHAT: usize = 500;

/// One thing that an operator asks of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// A member is added before its process starts; the change waits for the process.
    Join {
        /// Its name; nobody else's.
        id: NodeId,
        /// `host:port`, as [`Member::address`]. The process corrects it when it starts elsewhere.
        address: String,
        /// Its failure zone.
        zone: String,
        /// Its share.
        weight: u32,
    },
    /// An active member hands over what it holds and goes. Its process must run until the change is settled.
    Leave {
        /// Who.
        id: NodeId,
    },
    /// An active member gets another share.
    Weight {
        /// Whose.
        id: NodeId,
        /// 1 to [`super::MAX_WEIGHT`].
        weight: u32,
    },
    /// An active member is in another failure zone.
    Zone {
        /// Who.
        id: NodeId,
        /// As [`Member::zone`].
        zone: String,
    },
    /// A member is dead for good: nobody waits for it any more, and it goes. What only it held is lost.
    Forget {
        /// Who.
        id: NodeId,
    },
    /// The pending change is taken back: who was joining goes, who was leaving stays, nobody becomes anything.
    Cancel,
}

impl Edit {
    /// The name that requests and commands have for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Join { .. } => "join",
            Self::Leave { .. } => "leave",
            Self::Weight { .. } => "weight",
            Self::Zone { .. } => "zone",
            Self::Forget { .. } => "forget",
            Self::Cancel => "cancel",
        }
    }

    /// Whom it is about.
    #[must_use]
    pub fn id(&self) -> Option<&NodeId> {
        match self {
            Self::Join { id, .. }
            | Self::Leave { id }
            | Self::Weight { id, .. }
            | Self::Zone { id, .. }
            | Self::Forget { id } => Some(id),
            Self::Cancel => None,
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join { id, zone, weight, .. } => {
                write!(f, "{id} is to join in zone {zone} with weight {weight}")
            }
            Self::Leave { id } => write!(f, "{id} leaves"),
            Self::Weight { id, weight } => write!(f, "{id} gets weight {weight}"),
            Self::Zone { id, zone } => write!(f, "{id} goes to zone {zone}"),
            Self::Forget { id } => write!(f, "{id} is dead and forgotten"),
            Self::Cancel => f.write_str("the pending change is cancelled"),
        }
    }
}

/// The edits in one line, cut to what a document may say of its change.
#[must_use]
pub fn describe(edits: &[Edit]) -> String {
    let all = edits.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if all.chars().count() <= MAX_WHAT {
        return all;
    }
    let cut: String = all.chars().take(MAX_WHAT - 1).collect();
    format!("{cut}…")
}

/// What the caller knows, and how far it will go.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Who lives, as far as the caller can tell.
    pub alive: &'a (dyn Fn(&NodeId) -> bool + Sync),
    /// Forget members though they seem to live, or though no home of some partition does.
    pub force: bool,
}

impl fmt::Debug for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("force", &self.force).finish_non_exhaustive()
    }
}

/// Why an edit was refused. `at` is its place in the list, from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// No edits, or too many.
    #[error("edits has {0} entries; it must have 1 to {MAX_EDITS}")]
    Count(usize),
    /// There is no such member.
    #[error("edits[{at}].{name}.id: {id} is not a member of the ring")]
    Unknown {
        /// Its place.
        at: usize,
        /// [`Edit::name`].
        name: &'static str,
        /// Who was meant.
        id: NodeId,
    },
    /// There is such a member already.
    #[error("edits[{at}].join.id: {id} is a member of the ring already")]
    AlreadyThere {
        /// Its place.
        at: usize,
        /// Who was meant.
        id: NodeId,
    },
    /// A change is pending.
    #[error(
        "edits[{at}].{name}: a change is pending ({what}); until it is settled only forget and cancel are possible"
    )]
    Pending {
        /// Its place.
        at: usize,
        /// [`Edit::name`].
        name: &'static str,
        /// What the pending change is.
        what: String,
    },
    /// There is no change to cancel.
    #[error("edits[{at}].cancel: no change is pending")]
    NothingPending {
        /// Its place.
        at: usize,
    },
    /// The change has gone too far to be cancelled.
    #[error("edits[{at}].cancel: the homes to come are read from already; the change can only be completed")]
    Copied {
        /// Its place.
        at: usize,
    },
    /// A cancellation among other edits.
    #[error("edits[{at}].cancel must be the only edit")]
    NotAlone {
        /// Its place.
        at: usize,
    },
    /// A second edit of the same kind, or one that another edit rules out.
    #[error("edits[{at}].{name}.id: another edit is about {id} too")]
    Repeated {
        /// Its place.
        at: usize,
        /// [`Edit::name`].
        name: &'static str,
        /// Who was meant.
        id: NodeId,
    },
    /// A member that has been forgotten already.
    #[error("edits[{at}].forget.id: {id} is forgotten already")]
    Forgotten {
        /// Its place.
        at: usize,
        /// Who was meant.
        id: NodeId,
    },
    /// What is asked for is so already.
    #[error("edits[{at}].{name}.{name}: {id} has it already")]
    Same {
        /// Its place.
        at: usize,
        /// [`Edit::name`].
        name: &'static str,
        /// Who was meant.
        id: NodeId,
    },
    /// Who is to be forgotten lives.
    #[error("edits[{at}].forget.id: {id} seems to be alive; let it leave, or force it")]
    Alive {
        /// Its place.
        at: usize,
        /// Who was meant.
        id: NodeId,
    },
    /// Too few members would be left.
    #[error(
        "edits: {left} members would be left, fewer than the {replicas} replicas of each key; let others join first"
    )]
    TooFew {
        /// Members after the change.
        left: usize,
        /// N.
        replicas: u32,
    },
    /// Nobody who lives would hold some partition.
    #[error(
        "edits: no home that is alive would be left for {partitions} partitions (the first is {first}); what only the \
         bucket holds of them is read from there alone; force it if the others are lost for good"
    )]
    NoLiveHome {
        /// How many.
        partitions: u32,
        /// The first of them.
        first: u32,
    },
    /// A field is outside its limit.
    #[error("{field} is {found}; it must be {limit}")]
    Limit {
        /// The field's path, as `edits[0].weight.weight`.
        field: String,
        /// What was asked for.
        found: String,
        /// What is allowed.
        limit: String,
    },
}

/// What kind of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It can't be meant: no cluster would take it.
    Malformed,
    /// It is about a member that is not there.
    Unknown,
    /// The cluster as it is now stands in the way.
    Conflict,
}

impl EditError {
    /// What kind of refusal it is.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Count(_) | Self::NotAlone { .. } | Self::Repeated { .. } | Self::Limit { .. } => {
                Refusal::Malformed
            }
            Self::Unknown { .. } => Refusal::Unknown,
            _ => Refusal::Conflict,
        }
    }
}

/// The version after `doc`, in which the edits are pending; they are taken in their order.
///
/// # Errors
/// [`EditError`] for the first edit that can't be.
pub fn edit(
    doc: &RingDocument,
    edits: &[Edit],
    known: Known<'_>,
    changed: Change,
    nonce: String,
) -> Result<RingDocument, EditError> {
    if edits.is_empty() || edits.len() > MAX_EDITS {
        return Err(EditError::Count(edits.len()));
    }
    let mut members = doc.members.clone();
    let mut done: BTreeSet<(NodeId, &str)> = BTreeSet::new();
    for (at, edit) in edits.iter().enumerate() {
        let name = edit.name();
        if doc.has_pending_change() && !matches!(edit, Edit::Forget { .. } | Edit::Cancel) {
            return Err(EditError::Pending { at, name, what: pending(doc) });
        }
        if let Some(id) = edit.id() {
            let others = ["join", "leave", "weight", "zone", "forget"].into_iter();
            // Share and zone of one member may change together; all else rules the rest out.
            let both = |other: &&str| !matches!((name, *other), ("weight", "zone") | ("zone", "weight"));
            if others.filter(both).any(|other| done.contains(&(id.clone(), other))) {
                return Err(EditError::Repeated { at, name, id: id.clone() });
            }
            done.insert((id.clone(), name));
        }
        apply_one(doc, &mut members, at, edit, edits.len() == 1, known)?;
    }
    let limited = |error| named("edits", error);
    // The dead hold up nothing that is copied; all else begins the copy anew.
    let next = if doc.copied {
        doc.successor(members, true, changed, nonce).map_err(limited)?
    } else {
        doc.next(members, changed, nonce).map_err(limited)?
    };
    check_what_is_left(doc, &next, edits, known)?;
    Ok(next)
}

fn apply_one(
    doc: &RingDocument,
    members: &mut Vec<Member>,
    at: usize,
    edit: &Edit,
    alone: bool,
    known: Known<'_>,
) -> Result<(), EditError> {
    let name = edit.name();
    let field = |what: &str| format!("edits[{at}].{name}.{what}");
    let limited = |what: &str, error| named(&field(what), error);
    let place = |members: &[Member]| match edit.id() {
        Some(id) => members.iter().position(|m| m.id == *id).ok_or_else(|| EditError::Unknown {
            at,
            name,
            id: id.clone(),
        }),
        None => Ok(0),
    };
    match edit {
        Edit::Cancel if !alone => Err(EditError::NotAlone { at }),
        Edit::Cancel if !doc.has_pending_change() => Err(EditError::NothingPending { at }),
        Edit::Cancel if doc.copied => Err(EditError::Copied { at }),
        Edit::Cancel => {
            members.retain(|m| m.state != MemberState::Joining);
            for member in members {
                (member.state, member.becomes, member.dead) = (MemberState::Active, None, false);
            }
            Ok(())
        }
        Edit::Join { id, address, zone, weight } => {
            if members.iter().any(|m| m.id == *id) {
                return Err(EditError::AlreadyThere { at, id: id.clone() });
            }
            check_address(&field("address"), address).map_err(|e| limited("address", e))?;
            check_zone(&field("zone"), zone).map_err(|e| limited("zone", e))?;
            check_weight(&field("weight"), *weight).map_err(|e| limited("weight", e))?;
            // While the cluster forms it holds nothing that there would be to copy.
            let state = if doc.is_forming() { MemberState::Active } else { MemberState::Joining };
            members.push(Member {
                id: id.clone(),
                address: address.clone(),
                zone: zone.clone(),
                weight: *weight,
                state,
                becomes: None,
                dead: false,
            });
            if members.len() > MAX_MEMBERS {
                let (found, limit) = (members.len().to_string(), format!("at most {MAX_MEMBERS}"));
                return Err(EditError::Limit { field: "members".to_owned(), found, limit });
            }
            Ok(())
        }
        Edit::Leave { .. } => {
            let at = place(members)?;
            set(members, at, |m| m.state = MemberState::Leaving);
            Ok(())
        }
        Edit::Weight { id, weight } => {
            check_weight(&field("weight"), *weight).map_err(|e| limited("weight", e))?;
            let to = place(members)?;
            if members.get(to).is_some_and(|m| m.weight == *weight) {
                return Err(EditError::Same { at, name, id: id.clone() });
            }
            set(members, to, |m| becomes(m).weight = *weight);
            Ok(())
        }
        Edit::Zone { id, zone } => {
            check_zone(&field("zone"), zone).map_err(|e| limited("zone", e))?;
            let to = place(members)?;
            if members.get(to).is_some_and(|m| m.zone == *zone) {
                return Err(EditError::Same { at, name, id: id.clone() });
            }
            set(members, to, |m| becomes(m).zone.clone_from(zone));
            Ok(())
        }
        Edit::Forget { id } => {
            let to = place(members)?;
            if members.get(to).is_some_and(|m| m.dead) {
                return Err(EditError::Forgotten { at, id: id.clone() });
            }
            if !known.force && (known.alive)(id) {
                return Err(EditError::Alive { at, id: id.clone() });
            }
            // Where a copy is not done, `begins_anew` takes it from here.
            set(members, to, |m| m.dead = true);
            Ok(())
        }
    }
}

fn set(members: &mut [Member], at: usize, change: impl FnOnce(&mut Member)) {
    if let Some(member) = members.get_mut(at) {
        change(member);
    }
}

fn becomes(member: &mut Member) -> &mut Becomes {
    let Member { becomes, weight, zone, .. } = member;
    becomes.get_or_insert_with(|| Becomes { weight: *weight, zone: zone.clone() })
}

/// The same refusal under the name that the request has for the field.
fn named(field: &str, error: RingError) -> EditError {
    match error {
        RingError::Limit { field: own, found, limit } if own.starts_with(field) => {
            EditError::Limit { field: own, found, limit }
        }
        RingError::Limit { field: own, found, limit } => {
            EditError::Limit { field: format!("{field}: {own}"), found, limit }
        }
        RingError::Json(found) => EditError::Limit {
            field: field.to_owned(),
            found,
            limit: "what a ring document can hold".to_owned(),
        },
    }
}

/// After members went: are there enough, and does somebody live who holds each partition?
fn check_what_is_left(
    doc: &RingDocument,
    next: &RingDocument,
    edits: &[Edit],
    known: Known<'_>,
) -> Result<(), EditError> {
    let goes = |edit: &&Edit| matches!(edit, Edit::Leave { .. } | Edit::Forget { .. });
    if !edits.iter().any(|edit| goes(&edit)) {
        return Ok(());
    }
    let left = next.must_be_ready().count();
    // Who was leaving is not held up by what is left without it: that was looked at when it began to.
    let fewer = left < doc.must_be_ready().count();
    if fewer && left < next.replicas as usize {
        return Err(EditError::TooFew { left, replicas: next.replicas });
    }
    let forgotten: Vec<&NodeId> =
        edits.iter().filter(|e| matches!(e, Edit::Forget { .. })).filter_map(Edit::id).collect();
    if known.force || forgotten.is_empty() {
        return Ok(());
    }
    let ring = if next.copied { Ring::next(next) } else { Ring::current(next) };
    let without = |partition: &u32| {
        let homes = || ring.homes(*partition).iter().filter_map(|home| ring.member(*home));
        homes().any(|m| forgotten.contains(&&m.id)) && !homes().any(|m| !m.dead && (known.alive)(&m.id))
    };
    let lost: Vec<u32> = (0..ring.partitions()).filter(without).collect();
    match lost.first() {
        Some(first) => Err(EditError::NoLiveHome {
            partitions: u32::try_from(lost.len()).unwrap_or(u32::MAX),
            first: *first,
        }),
        None => Ok(()),
    }
}

/// The pending change of a document in one line, for people; empty without one.
#[must_use]
pub fn pending(doc: &RingDocument) -> String {
    let words = doc.members.iter().filter(|m| m.is_changing()).map(|m| match (m.state, &m.becomes) {
        _ if m.dead => format!("{} is dead", m.id),
        (MemberState::Joining, _) => format!("{} joins", m.id),
        (MemberState::Leaving, _) => format!("{} leaves", m.id),
        (MemberState::Active, Some(to)) if to.zone == m.zone => format!("{} gets weight {}", m.id, to.weight),
        (MemberState::Active, Some(to)) if to.weight == m.weight => {
            format!("{} goes to zone {}", m.id, to.zone)
        }
        (MemberState::Active, Some(to)) => {
            format!("{} gets weight {} and goes to zone {}", m.id, to.weight, to.zone)
        }
        (MemberState::Active, None) => m.id.to_string(),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
