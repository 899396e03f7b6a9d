//! What an answer must show, and must not, given what was written. Pure, and exact: a finding can't be explained
//! by any legal order of events.

use std::collections::BTreeSet;

use super::cart::{Answer, Item, Shown};
use super::history::{Cart, Fate, Write, WriteId};

/// Which of the acknowledgements a read owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owed {
    /// The first so many: those that came before it began. What is missing may come yet.
    Before(usize),
    /// All, for good: what is missing now is lost.
    All,
}

/// What is wrong with one answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Acknowledged before the read began, and neither shown nor replaced.
    pub(crate) stale: BTreeSet<WriteId>,
    /// Acknowledged writes that are gone: the answer claims to have seen them, or it is the last one.
    pub(crate) lost: BTreeSet<WriteId>,
    /// Items shown although a removal that the answer has seen had seen every write that held them.
    pub(crate) resurrected: BTreeSet<Item>,
    /// Versions shown although another version shown had replaced them, or shown twice.
    pub(crate) needless: BTreeSet<WriteId>,
    /// Versions shown beside a later one because they were minted twice and it replaced the other.
    pub(crate) shown_again: BTreeSet<WriteId>,
    /// What can't be true at all: a value that nobody wrote, a write that was refused.
    pub(crate) untrue: Vec<String>,
}

/// Checks one answer about one cart.
pub(crate) fn check(cart: &Cart, owed: Owed, answer: &Answer) -> Findings {
    let mut found = Findings::default();
    let shown = recognise(cart, answer, &mut found);
    let (owed, last) = match owed {
        Owed::Before(count) => (count, false),
        Owed::All => (cart.acknowledged.len(), true),
    };
    let nameless_deletion = answer.shown.iter().any(|shown| shown.deleted && shown.write.is_none());
    // Once every home holds a deletion, all of them forget it, and with it what it replaced.
    let forgotten = answer.shown.is_empty();
    for ack in cart.acknowledged.iter().take(owed) {
        let replaced = |write: &Write| write.change.seen.covers(ack.dot);
        let accounts = |id: WriteId, write: &Write| id == ack.write || replaced(write);
        if forgotten && deletions(cart).any(|(id, write)| accounts(id, write)) {
            continue;
        }
        if !answer.clock.covers(ack.dot) {
            let missing = if last { &mut found.lost } else { &mut found.stale };
            missing.insert(ack.write);
            continue;
        }
        let named = shown.iter().any(|(id, write, _)| accounts(*id, write));
        let deleted = || nameless_deletion && deletions(cart).any(|(id, write)| accounts(id, write));
        if !(named || deleted()) {
            found.lost.insert(ack.write);
        }
    }
    siblings(&shown, &mut found);
    let merged = answer.merged();
    found.resurrected = resurrected(cart, owed, answer, &merged);
    if last {
        found.lost.extend(items_lost(cart, &merged));
    }
    found
}

/// The deletions that may have been carried out: a deleted cart does not say which it shows.
fn deletions(cart: &Cart) -> impl Iterator<Item = (WriteId, &Write)> {
    (0..).zip(&cart.writes).filter(|(_, write)| write.change.delete && write.possible())
}

/// The versions shown, each with its write.
fn recognise<'a>(
    cart: &'a Cart,
    answer: &'a Answer,
    found: &mut Findings,
) -> Vec<(WriteId, &'a Write, &'a Shown)> {
    let mut known = Vec::new();
    for shown in &answer.shown {
        let Some(id) = shown.write else { continue };
        match cart.write(id) {
            Some(write) if write.change.items == shown.items && write.change.delete == shown.deleted => {
                if write.fate == Fate::Refused {
                    found.untrue.push(format!("{}: write {id} is shown and was refused", cart.key));
                }
                known.push((id, write, shown));
            }
            _ => found.untrue.push(format!("{}: nobody wrote what is shown as write {id}", cart.key)),
        }
    }
    known
}

fn siblings(shown: &[(WriteId, &Write, &Shown)], found: &mut Findings) {
    for (at, (id, write, version)) in shown.iter().enumerate() {
        for (other_at, (other_id, other, _)) in shown.iter().enumerate() {
            if at == other_at {
                continue;
            }
            let replaced = version.dot.is_some_and(|dot| other.change.seen.covers(dot));
            if replaced || id == other_id {
                found.needless.insert(*id);
            } else if other.saw(write) {
                found.shown_again.insert(*id);
            }
        }
    }
}

/// Items that are back although nobody kept them: each write that held them was replaced by the removal, or was
/// made by somebody who had seen the removal. A write that was minted twice, and replaced under one name only,
/// keeps its items.
fn resurrected(cart: &Cart, owed: usize, answer: &Answer, merged: &BTreeSet<Item>) -> BTreeSet<Item> {
    let removals = |item: &Item| {
        let removers = cart.removers.get(item).map(Vec::as_slice).unwrap_or_default();
        let acknowledged = cart.acknowledged.iter().take(owed);
        acknowledged.filter(|ack| removers.contains(&ack.write) && answer.clock.covers(ack.dot))
    };
    let back = |item: &Item| {
        removals(item).any(|ack| {
            let Some(removal) = cart.write(ack.write) else { return false };
            let mut carriers = cart.writes.iter().filter(|write| write.possible() && write.carries(*item));
            carriers.all(|carrier| removal.replaced(carrier) || carrier.saw(removal))
        })
    };
    merged.iter().copied().filter(back).collect()
}

/// Acknowledged additions whose item is gone, and nobody can have removed it.
fn items_lost(cart: &Cart, merged: &BTreeSet<Item>) -> BTreeSet<WriteId> {
    let removed = |item: &Item| {
        let removers = cart.removers.get(item).into_iter().flatten();
        removers.filter_map(|id| cart.write(*id)).any(Write::possible)
    };
    let gone = |ack: &&super::history::Acknowledgement| {
        let adds = cart.write(ack.write).and_then(|write| write.change.adds);
        adds.is_some_and(|item| !merged.contains(&item) && !removed(&item))
    };
    cart.acknowledged.iter().filter(gone).map(|ack| ack.write).collect()
}

#[cfg(test)]
mod tests;
