//! What the clients wrote to one cart, and what became of it as far as they know.

use std::collections::HashMap;
use std::sync::Arc;

use super::cart::Item;
use super::dots::{Dot, Seen};

/// A write, by its number within its cart.
pub(crate) type WriteId = u32;

/// What a client knows of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is under way.
    Open,
    /// It was acknowledged.
    Acknowledged,
    /// It was certainly not carried out.
    Refused,
    /// It may have been carried out.
    Unknown,
}

/// What a write does to a cart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Change {
    /// The item that it adds.
    pub(crate) adds: Option<Item>,
    /// All items of the new value, in order. Empty for a deletion.
    pub(crate) items: Vec<Item>,
    /// The items that its writer saw and left out.
    pub(crate) removed: Vec<Item>,
    /// What its writer had seen: the clock that it sent.
    pub(crate) seen: Arc<Seen>,
    /// A DELETE rather than a PUT.
    pub(crate) delete: bool,
}

/// One write.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) change: Change,
    pub(crate) fate: Fate,
    /// The names that it was seen under; more than one if it was minted again because its minter fell silent.
    pub(crate) dots: Vec<Dot>,
}

impl Write {
    /// May it have been carried out?
    pub(crate) fn possible(&self) -> bool {
        self.fate != Fate::Refused
    }

    /// Had its writer seen `other`, under any of the names that are known of it?
    pub(crate) fn saw(&self, other: &Write) -> bool {
        other.dots.iter().any(|dot| self.change.seen.covers(*dot))
    }

    /// Does it replace `other` altogether: under all of the names that are known of it, and at least one?
    pub(crate) fn replaced(&self, other: &Write) -> bool {
        !other.dots.is_empty() && other.dots.iter().all(|dot| self.change.seen.covers(*dot))
    }

    /// Does its value hold `item`?
    pub(crate) fn carries(&self, item: Item) -> bool {
        self.change.items.binary_search(&item).is_ok()
    }
}

/// An acknowledgement, in the order in which they came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledgement {
    /// What was acknowledged.
    pub(crate) write: WriteId,
    /// The dot that the answer named.
    pub(crate) dot: Dot,
}

/// All writes of one cart.
#[derive(Debug, Default)]
pub(crate) struct Cart {
    /// Its key.
    pub(crate) key: String,
    /// By [`WriteId`].
    pub(crate) writes: Vec<Write>,
    /// A read that begins now must reflect all of these.
    pub(crate) acknowledged: Vec<Acknowledgement>,
    /// Who removed an item.
    pub(crate) removers: HashMap<Item, Vec<WriteId>>,
    names: HashMap<Dot, WriteId>,
}

impl Cart {
    /// An empty cart.
    pub(crate) fn new(key: String) -> Self {
        Self { key, ..Self::default() }
    }

    /// One write.
    pub(crate) fn write(&self, id: WriteId) -> Option<&Write> {
        self.writes.get(usize::try_from(id).ok()?)
    }

    /// The number of the next write.
    pub(crate) fn next_id(&self) -> WriteId {
        WriteId::try_from(self.writes.len()).unwrap_or(WriteId::MAX)
    }

    /// A write is about to be sent.
    pub(crate) fn begin(&mut self, mut change: Change) -> WriteId {
        let id = self.next_id();
        change.items.sort_unstable();
        for item in &change.removed {
            self.removers.entry(*item).or_default().push(id);
        }
        self.writes.push(Write { change, fate: Fate::Open, dots: Vec::new() });
        id
    }

    /// A write was acknowledged under this name.
    ///
    /// # Errors
    /// As [`Cart::learn`].
    pub(crate) fn acknowledge(&mut self, id: WriteId, dot: Dot) -> Result<(), String> {
        self.acknowledged.push(Acknowledgement { write: id, dot });
        self.set_fate(id, Fate::Acknowledged);
        self.learn(id, dot)
    }

    /// A write ended without an acknowledgement.
    pub(crate) fn set_fate(&mut self, id: WriteId, fate: Fate) {
        if let Some(write) = usize::try_from(id).ok().and_then(|id| self.writes.get_mut(id)) {
            write.fate = fate;
        }
    }

    /// An answer gave a write this name.
    ///
    /// # Errors
    /// If the name is that of another write.
    pub(crate) fn learn(&mut self, id: WriteId, dot: Dot) -> Result<(), String> {
        let known = *self.names.entry(dot).or_insert(id);
        if known != id {
            return Err(format!("{}: one dot names the writes {known} and {id}", self.key));
        }
        if let Some(write) = usize::try_from(id).ok().and_then(|id| self.writes.get_mut(id))
            && !write.dots.contains(&dot)
        {
            write.dots.push(dot);
        }
        Ok(())
    }

    /// How many writes are known under more than one name.
    pub(crate) fn minted_twice(&self) -> usize {
        self.writes.iter().filter(|write| write.dots.len() > 1).count()
    }
}
