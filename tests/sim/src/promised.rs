//! What is owed of what was acknowledged, to the letter: an acknowledgement says how many hold the write, and how safely.
//!
//! - `memory`: it may be lost once so many processes as hold it have died, if none of them had it on its disk or in
//!   the bucket by then;
//! - `disk`: it survives the death of every process; it may be lost once so many disks as hold it are lost, if it was
//!   not in the bucket by then;
//! - `bucket`: it may never be lost.
//!
//! The product may well keep more than it owes. What is kept is looked up at the moment of each death, so that what had
//! become safer by then stays owed.

use std::collections::{BTreeMap, BTreeSet};

use cartwheel_core::clock::Dot;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Record;

use crate::checker::WriteId;
use crate::sight::Held;

/// An acknowledgement.
#[derive(Debug, Clone)]
pub struct Promise {
    /// The namespace of the key.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// The version.
    pub dot: Dot,
    /// What all that counted had reached.
    pub level: Durability,
    /// How many counted.
    pub answered: usize,
    /// How many losses there had been when the request began.
    pub since: usize,
}

/// A process died, or a disk was lost with what was on it.
#[derive(Debug)]
enum Loss {
    Process(String),
    Disk,
}

#[derive(Debug)]
struct Open {
    promise: Promise,
    /// Whose processes died, and whose disks with the write on them were lost.
    dead: BTreeSet<String>,
    lost: usize,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Promises {
    losses: Vec<Loss>,
    /// Those that may still become void.
    open: BTreeMap<WriteId, Open>,
    void: BTreeSet<WriteId>,
}

fn is_it(promise: &Promise, record: &Record) -> bool {
    record.namespace == promise.namespace
        && record.key == promise.key
        && record.container.seen().contains(&promise.dot)
}

impl Promises {
    /// How many losses there were so far.
    pub fn moment(&self) -> usize {
        self.losses.len()
    }

    /// How many disks were lost since `moment`.
    pub fn disks_lost_since(&self, moment: usize) -> usize {
        self.losses[moment..].iter().filter(|loss| matches!(loss, Loss::Disk)).count()
    }

    /// Write `id` was acknowledged. One that is acknowledged again is owed as the better one says.
    pub fn promised(&mut self, id: WriteId, promise: Promise, everything: impl Fn() -> Vec<(Held, Record)>) {
        if promise.level == Durability::Bucket {
            self.open.remove(&id);
            self.void.remove(&id);
            return;
        }
        let better =
            |open: &Open| (open.promise.level, open.promise.answered) >= (promise.level, promise.answered);
        if self.open.get(&id).is_some_and(better) {
            return;
        }
        let since = &self.losses[promise.since..];
        let dead = since.iter().filter_map(|loss| match loss {
            Loss::Process(who) => Some(who.clone()),
            Loss::Disk => None,
        });
        // Whether the write was on a disk that was lost meanwhile nobody knows: it may have been.
        let open = Open { dead: dead.collect(), lost: self.disks_lost_since(promise.since), promise };
        let amiss = !open.dead.is_empty() || open.lost > 0;
        self.void.remove(&id);
        self.open.insert(id, open);
        if amiss {
            self.look(&everything());
        }
    }

    /// Is nothing owed of it any more?
    pub fn is_void(&self, id: WriteId) -> bool {
        self.void.contains(&id)
    }

    /// How many are void.
    pub fn voided(&self) -> usize {
        self.void.len()
    }

    /// The process of `who` died.
    pub fn process_died(&mut self, who: &str, everything: impl Fn() -> Vec<(Held, Record)>) {
        self.losses.push(Loss::Process(who.to_owned()));
        for open in self.open.values_mut() {
            open.dead.insert(who.to_owned());
        }
        if !self.open.is_empty() {
            self.look(&everything());
        }
    }

    /// A disk is lost on which there was this; and this is what there is now.
    pub fn disk_is_lost(&mut self, lost: &[(Held, Record)], everything: &[(Held, Record)]) {
        self.losses.push(Loss::Disk);
        for open in self.open.values_mut() {
            // A disk may hold it twice: its own, and for somebody else.
            let homes = lost.iter().filter(|(_, record)| is_it(&open.promise, record));
            let homes: BTreeSet<&str> = homes.map(|(held, _)| held.home.as_str()).collect();
            open.lost += homes.len();
        }
        self.look(everything);
    }

    fn look(&mut self, everything: &[(Held, Record)]) {
        let mut closed = Vec::new();
        for (id, open) in &self.open {
            let mut places = everything.iter().filter(|(_, record)| is_it(&open.promise, record));
            let Some((held, _)) = places.next() else {
                let may_be_lost = match open.promise.level {
                    Durability::Memory => open.dead.len() >= open.promise.answered,
                    Durability::Disk => open.lost >= open.promise.answered,
                    Durability::Bucket => false,
                };
                if may_be_lost {
                    closed.push(*id);
                    self.void.insert(*id);
                }
                continue;
            };
            if held.in_bucket || places.any(|(held, _)| held.in_bucket) {
                closed.push(*id);
            }
        }
        for id in closed {
            self.open.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use cartwheel_core::container::Container;
    use cartwheel_core::record::Version;

    use super::*;

    fn promise(level: Durability, answered: usize) -> Promise {
        let (namespace, key) = (Namespace::new(b"carts").unwrap(), Key::new("k".into()).unwrap());
        let dot = Dot { actor: cartwheel_core::clock::Actor::parse("node-a.1").unwrap(), n: 1 };
        Promise { namespace, key, dot, level, answered, since: 0 }
    }

    fn held(holder: &str, in_bucket: bool) -> (Held, Record) {
        let Promise { namespace, key, dot, .. } = promise(Durability::Memory, 1);
        let mut container: Container<Version> = Container::default();
        let mut seen = container.seen().clone();
        seen.insert(&dot);
        container = Container::from_parts(seen, Vec::new());
        let holder = holder.to_owned();
        (Held { home: holder.clone(), holder, in_bucket }, Record { namespace, key, container })
    }

    #[test]
    fn memory_is_owed_until_all_who_had_it_died_and_no_disk_has_it() {
        let mut promises = Promises::default();
        promises.promised(1, promise(Durability::Memory, 2), Vec::new);
        promises.process_died("node-a", Vec::new);
        promises.process_died("node-a", Vec::new);
        assert!(!promises.is_void(1), "the other one lives");
        promises.process_died("node-b", || vec![held("node-b", false)]);
        assert!(!promises.is_void(1), "it is on a disk");
        promises.disk_is_lost(&[held("node-b", false)], &[]);
        assert!(promises.is_void(1));
    }

    #[test]
    fn disk_is_owed_whoever_dies_until_so_many_disks_are_lost() {
        let mut promises = Promises::default();
        promises.promised(1, promise(Durability::Disk, 2), Vec::new);
        promises.promised(2, promise(Durability::Bucket, 2), Vec::new);
        for who in ["node-a", "node-b", "node-c"] {
            promises.process_died(who, Vec::new);
        }
        assert!(!promises.is_void(1));
        promises.disk_is_lost(&[held("node-a", false)], &[]);
        assert!(!promises.is_void(1), "one of two");
        promises.disk_is_lost(&[], &[]);
        assert!(!promises.is_void(1), "it was not on that one");
        promises.disk_is_lost(&[held("node-b", false)], &[]);
        assert_eq!((promises.is_void(1), promises.is_void(2)), (true, false));
    }

    #[test]
    fn what_came_into_the_bucket_is_owed_for_ever() {
        let mut promises = Promises::default();
        promises.promised(1, promise(Durability::Memory, 1), Vec::new);
        promises.process_died("node-b", || vec![held("node-c", true)]);
        promises.process_died("node-a", Vec::new);
        promises.disk_is_lost(&[held("node-a", false)], &[]);
        assert!(!promises.is_void(1));
    }

    #[test]
    fn who_died_while_the_answer_was_on_its_way_counts() {
        let mut promises = Promises::default();
        promises.process_died("node-z", Vec::new);
        let since = promises.moment();
        promises.process_died("node-a", Vec::new);
        let late = Promise { since, ..promise(Durability::Memory, 1) };
        promises.promised(1, late.clone(), || vec![held("node-b", false)]);
        assert!(!promises.is_void(1));
        promises.promised(2, late, Vec::new);
        assert!(promises.is_void(2));
    }
}
