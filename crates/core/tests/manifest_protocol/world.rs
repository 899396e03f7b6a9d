//! The world: a bucket, processes of one node name, a borrower, a reader. Small enough to be hashed.

use std::fmt::Write as _;

use super::borrower::Borrower;
use super::rules::Scenario;

/// A set of objects, by number.
pub(crate) type Set = u32;

/// Processes: X, Y, Z.
pub(crate) const PROCESSES: usize = 3;
/// Flushes and outputs that a process may put.
const FLUSHES: usize = 3;
const OUTPUTS: usize = 2;
const FIRST_OUTPUT: usize = PROCESSES * FLUSHES;
const FIRST_GRAVE: usize = FIRST_OUTPUT + PROCESSES * OUTPUTS;
/// All objects beside manifests.
pub(crate) const OBJECTS: usize = FIRST_GRAVE + PROCESSES;
/// The objects under f/.
pub(crate) const F: Set = (1 << FIRST_OUTPUT) - 1;
/// The objects under c/ and g/.
pub(crate) const C_AND_G: Set = ((1 << OBJECTS) - 1) & !F;
/// How many manifests are kept: fewer than in the real store, so that a name is soon free again.
pub(crate) const KEPT: u8 = 2;
/// How long dropped objects stay, in ticks. A reader is done when its tick is over.
pub(crate) const GRACE: u8 = 1;

/// The number of a flush; `None` if the world is too small for it.
pub(crate) fn flush_object(process: usize, n: u8) -> Option<usize> {
    (usize::from(n) < FLUSHES).then(|| process * FLUSHES + usize::from(n))
}

/// The number of an output.
pub(crate) fn output_object(process: usize, n: u8) -> Option<usize> {
    (usize::from(n) < OUTPUTS).then(|| FIRST_OUTPUT + process * OUTPUTS + usize::from(n))
}

/// The number of a process's grave; one each is enough here.
pub(crate) fn grave_object(process: usize) -> usize {
    FIRST_GRAVE + process
}

/// All flushes of a process.
pub(crate) fn flushes_of(process: usize) -> Set {
    ((1 << FLUSHES) - 1) << (process * FLUSHES)
}

/// The members of a set.
pub(crate) fn members(set: Set) -> impl Iterator<Item = usize> {
    let mut left = set;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let next = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(next)
    })
}

/// What a segment says: which writes were seen, and which of them are not replaced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Facts {
    pub(crate) seen: u8,
    pub(crate) live: u8,
}

impl Facts {
    /// The merge of dotted containers: what one has seen and does not hold is replaced.
    pub(crate) fn merge(self, other: Self) -> Self {
        let both = self.live & other.live;
        let live = both | (self.live & !other.seen) | (other.live & !self.seen);
        Self { seen: self.seen | other.seen, live }
    }

    /// Only these dots.
    pub(crate) fn of(self, dots: u8) -> Self {
        Self { seen: self.seen & dots, live: self.live & dots }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.seen == 0
    }
}

/// A time of the store for each object, if known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Times(u128);

impl Times {
    pub(crate) fn get(self, object: usize) -> Option<u8> {
        let bits = (self.0 >> (4 * object)) & 15;
        u8::try_from(bits).ok()?.checked_sub(1)
    }

    pub(crate) fn set(&mut self, object: usize, time: Option<u8>) {
        let bits = time.map_or(0, |t| u128::from(t) + 1);
        assert!(bits < 16, "the clock went too far for this world");
        self.0 = self.0 & !(15 << (4 * object)) | bits << (4 * object);
    }
}

/// What a manifest says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Lists {
    pub(crate) segments: Set,
    pub(crate) graves: Set,
    pub(crate) dropped: Set,
    pub(crate) since: Times,
    /// How many flushes of each process were taken up.
    pub(crate) taken: [u8; PROCESSES],
}

impl Lists {
    /// The flushes that were taken up before, whether they are there or not.
    pub(crate) fn repeats(&self) -> Set {
        let row = |(p, n): (usize, &u8)| ((1 << n) - 1) << (p * FLUSHES);
        self.taken.iter().enumerate().map(row).fold(0, |set, row| set | row)
    }

    /// Notes that a flush is taken up.
    pub(crate) fn take(&mut self, flush: usize) {
        let taken = &mut self.taken[flush / FLUSHES];
        *taken = (*taken).max(u8::try_from(flush % FLUSHES + 1).unwrap_or(u8::MAX));
    }
}

/// A manifest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Manifest {
    /// 0 if there is none.
    pub(crate) version: u8,
    pub(crate) process: u8,
    pub(crate) epoch: u8,
    /// By the store's clock.
    pub(crate) at: u8,
    pub(crate) lists: Lists,
}

/// What a process does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, PartialOrd, Ord)]
pub(crate) enum Next {
    /// It has not started.
    #[default]
    Away,
    Dead,
    SteppedDown,
    /// Reads the newest manifest.
    ClaimRead,
    /// Creates the next version.
    ClaimPut,
    /// Looks for newer versions.
    ClaimCheck,
    /// Lists f/.
    TakeUp,
    /// From here on it serves.
    Idle,
    PutGrave,
    PutOutput,
    /// Creates the next version.
    Commit,
    /// Looks for newer versions.
    Check,
    /// Reads the newest manifest before it deletes.
    Reread,
    /// Lists pins.
    Pins,
    Delete,
}

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Process {
    pub(crate) next: Next,
    pub(crate) epoch: u8,
    /// The newest manifest version known, and its time.
    pub(crate) version: u8,
    pub(crate) at: u8,
    /// What its next manifest will say.
    pub(crate) lists: Lists,
    /// They differ from the manifest known.
    pub(crate) dirty: bool,
    pub(crate) memory: Facts,
    /// What is being flushed.
    pub(crate) frozen: Facts,
    /// Writes that it took.
    pub(crate) minted: u8,
    /// Unknown flushes whose facts are in memory.
    pub(crate) absorbed: Set,
    pub(crate) flushes: u8,
    pub(crate) outputs: u8,
    /// The running compaction: what it merges; whether it leaves the tombstone out.
    pub(crate) inputs: Set,
    pub(crate) reaps: bool,
    /// The create under way was tried before.
    pub(crate) tried: bool,
    /// What is to be deleted, or what was listed.
    pub(crate) scratch: Set,
    /// Pins that were listed too early.
    pub(crate) early_pins: Set,
}

impl Process {
    pub(crate) fn serves(&self) -> bool {
        self.next >= Next::Idle
    }
}

/// A request on its way that its sender has given up and repeated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) enum Stray {
    #[default]
    None,
    Put(usize, Facts),
    Create(Manifest),
    Delete(usize),
}

/// What must never be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Wrong {
    /// S1: an object that the newest manifest, or the process that serves last, names is missing.
    Missing,
    /// S2: an acknowledged write would be lost by a restart, of this node or of the borrower.
    Lost,
    /// S3: a value that an acknowledged write replaced is back.
    Resurrected,
    /// S4: an object went away under a borrower or a reader.
    Unpinned,
    /// S5: a process believes that its manifest is the newest, and it was not when it was put.
    TwoOwners,
    /// S6: something can't be got rid of, or a process steps down though nobody has taken over.
    Stuck,
    /// S7: a flush is in the bucket before an earlier one.
    Gap,
    /// S8: the name went back to an older process.
    Backwards,
}

/// A state of everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct State {
    /// The store's clock.
    pub(crate) now: u8,
    pub(crate) exists: Set,
    /// Flushes that were in the bucket at any time.
    pub(crate) ever: Set,
    pub(crate) facts: [Facts; OBJECTS],
    pub(crate) born: Times,
    pub(crate) newest: Manifest,
    /// Version and process of older manifests: only their names matter.
    pub(crate) older: [(u8, u8); 8],
    pub(crate) processes: [Process; PROCESSES],
    pub(crate) stray: Stray,
    pub(crate) borrower: Borrower,
    /// What a reader may still read.
    pub(crate) reader: Set,
    /// Writes that the client has sent; writes that were acknowledged.
    pub(crate) issued: u8,
    pub(crate) acked: u8,
    /// The other home holds the tombstone.
    pub(crate) home_agrees: bool,
    /// The newest epoch that has served.
    pub(crate) served: u8,
    /// Used up of what the scenario grants.
    pub(crate) leases: u8,
    pub(crate) compactions: u8,
    pub(crate) kills: u8,
    pub(crate) strays: u8,
    pub(crate) readers: u8,
    pub(crate) adoptions: u8,
    pub(crate) borrower_deaths: u8,
    /// What the outputs merged, where they are named after that.
    pub(crate) plans: [Set; OUTPUTS],
    /// A rule was seen to be broken in the step that led here.
    pub(crate) wrong: Option<Wrong>,
}

impl State {
    /// All that these objects say.
    pub(crate) fn merged(&self, set: Set) -> Facts {
        members(set).fold(Facts::default(), |all, object| all.merge(self.facts[object]))
    }

    /// Writes that the graves know as replaced.
    pub(crate) fn buried(&self, graves: Set) -> u8 {
        self.merged(graves & self.exists).seen
    }

    /// The deletions that the graves hold of keys that `facts` speaks of.
    pub(crate) fn exhumed(&self, graves: Set, facts: Facts, c: &Scenario) -> Facts {
        let buried = self.merged(graves & self.exists);
        (0..2)
            .map(|key| c.dots_of(key))
            .filter(|dots| facts.seen & dots != 0)
            .fold(Facts::default(), |all, dots| all.merge(buried.of(dots)))
    }

    /// What a process serves.
    pub(crate) fn view(&self, p: usize) -> Facts {
        let process = &self.processes[p];
        self.merged(process.lists.segments).merge(process.frozen).merge(process.memory)
    }

    /// The process that put `version`, if it is there.
    pub(crate) fn manifest_of(&self, version: u8) -> Option<u8> {
        if self.newest.version == version {
            return Some(self.newest.process);
        }
        self.older.iter().find(|(v, _)| *v == version).map(|(_, process)| *process)
    }

    /// Puts an object.
    pub(crate) fn put(&mut self, object: usize, facts: Facts) {
        self.exists |= 1 << object;
        self.facts[object] = facts;
        self.born.set(object, Some(self.now));
        if F & (1 << object) != 0 {
            self.ever |= 1 << object;
            let before = members(flushes_of(object / FLUSHES)).filter(|o| *o < object);
            if before.fold(0, |set, o| set | 1 << o) & !self.ever != 0 {
                self.wrong = Some(Wrong::Gap);
            }
        }
    }

    /// Deletes an object.
    pub(crate) fn delete(&mut self, object: usize) {
        self.exists &= !(1 << object);
        self.facts[object] = Facts::default();
        self.born.set(object, None);
    }

    /// Creates a manifest whose name is free.
    pub(crate) fn create(&mut self, mut manifest: Manifest) {
        manifest.at = self.now;
        let old = if manifest.version > self.newest.version {
            if manifest.epoch < self.newest.epoch {
                self.wrong = Some(Wrong::Backwards);
            }
            std::mem::replace(&mut self.newest, manifest)
        } else {
            manifest
        };
        if old.version > 0 {
            let at = self.older.iter().position(|(v, _)| *v == 0);
            assert!(at.is_some(), "too many manifests for this world");
            if let Some(at) = at {
                self.older[at] = (old.version, old.process);
                self.older.sort_unstable();
            }
        }
    }

    /// Deletes an older manifest.
    pub(crate) fn forget(&mut self, version: u8) {
        if let Some(entry) = self.older.iter_mut().find(|(v, _)| *v == version && version > 0) {
            *entry = (0, 0);
            self.older.sort_unstable();
        }
    }
}

/// X, Y or Z.
pub(crate) fn name_of(process: usize) -> char {
    ['X', 'Y', 'Z'][process]
}

/// The object's name, as in the bucket.
pub(crate) fn object_name(object: usize) -> String {
    let (directory, process, n) = if object < FIRST_OUTPUT {
        ('f', object / FLUSHES, object % FLUSHES)
    } else if object < FIRST_GRAVE {
        ('c', (object - FIRST_OUTPUT) / OUTPUTS, (object - FIRST_OUTPUT) % OUTPUTS)
    } else {
        ('g', object - FIRST_GRAVE, 0)
    };
    format!("{directory}/{}/{}", name_of(process), n + 1)
}

/// The names of a set's members.
pub(crate) fn names(set: Set) -> String {
    members(set).map(object_name).collect::<Vec<_>>().join(" ")
}

/// Facts, for people: writes seen, those not replaced with a star.
pub(crate) fn facts_text(facts: Facts) -> String {
    let mut text = String::from("{");
    for dot in (0..8).filter(|dot| facts.seen & (1 << dot) != 0) {
        let star = if facts.live & (1 << dot) != 0 { "*" } else { "" };
        let comma = if text.len() > 1 { " " } else { "" };
        let _ = write!(text, "{comma}w{}{star}", dot + 1);
    }
    text + "}"
}
