//! Disks that outlive their hosts, take their time, fill up, fail, and are left with half of what was under way.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cartwheel_cluster::seams::Random;
use cartwheel_storage_node::disk::{Disk, MemoryDisk};
use futures_util::FutureExt;

use super::lock::Lock;
use super::{Bug, Freezer, SeededRandom, pass};

/// The longest that a disk takes for one append, in milliseconds.
const SLOWEST_APPEND_MS: u64 = 4;
/// How long a slow disk takes for anything, in milliseconds.
const SLOW_MS: Range<u64> = 200..3_000;

/// What is wrong with a disk for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskTrouble {
    /// There is no room: an append leaves a part, and fails.
    Full,
    /// Every other operation says that it failed, whether all, a part or nothing of it was done.
    Failing,
    /// Everything takes seconds.
    Slow,
    /// Nothing can be written.
    ReadOnly,
}

/// A disk. What an operation did that nobody heard the end of (the process died, or an error was said) may be there
/// whole, in part, as so many zeros, or not at all; what was acknowledged is there.
#[derive(Debug)]
pub struct SimDisk {
    files: MemoryDisk,
    random: SeededRandom,
    /// For what is left of what was under way, and for troubles.
    tears: SeededRandom,
    freezer: Arc<Freezer>,
    trouble: Lock<Option<DiskTrouble>>,
    lies: bool,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64, who: &str, bug: Bug, freezer: Arc<Freezer>) -> Self {
        Self {
            files: MemoryDisk::default(),
            random: SeededRandom::new(seed, &format!("{who} disk")),
            tears: SeededRandom::new(seed, &format!("{who} disk tears")),
            freezer,
            trouble: Lock::new(None),
            lies: matches!(bug, Bug::LyingDisk | Bug::SameEpoch),
        }
    }

    /// What is on it, for whoever looks from outside.
    pub fn files(&self) -> &MemoryDisk {
        &self.files
    }

    /// What is wrong with it from now on.
    pub fn set(&self, trouble: Option<DiskTrouble>) {
        *self.trouble.lock() = trouble;
    }

    /// Takes the time that an operation takes before it is done, or some of it; then what is wrong with the disk.
    async fn begin(&self) -> Option<DiskTrouble> {
        self.freezer.pass().await;
        let trouble = *self.trouble.lock();
        if trouble == Some(DiskTrouble::Slow) {
            pass(self.tears.millis(SLOW_MS)).await;
        }
        trouble
    }

    /// What came of an operation that goes wrong, if it does: the error, and whether it was done all the same.
    fn goes_wrong(&self, trouble: Option<DiskTrouble>) -> Option<(io::Error, bool)> {
        match trouble? {
            DiskTrouble::Slow => None,
            DiskTrouble::Full => Some((io::ErrorKind::StorageFull.into(), false)),
            DiskTrouble::ReadOnly => Some((io::ErrorKind::ReadOnlyFilesystem.into(), false)),
            DiskTrouble::Failing => {
                let (fails, done) = (self.tears.below(2) == 0, self.tears.below(2) == 0);
                fails.then(|| (io::Error::other("injected: the sync failed"), done))
            }
        }
    }

    /// Leaves on the disk what is left of an append that did not end.
    fn tear(&self, name: &str, bytes: &Bytes, part: usize) {
        let zeros = if self.tears.below(4) == 0 { bytes.len() - part } else { 0 };
        let torn = [&bytes[..part], &vec![0; zeros]].concat();
        let written = self.files.append(name, torn.into()).now_or_never();
        assert!(matches!(written, Some(Ok(()))), "a disk in memory never waits");
    }
}

/// An append under way; dropped before it is done, it leaves a part of it behind.
struct Appending<'a> {
    disk: &'a SimDisk,
    name: &'a str,
    bytes: Bytes,
    done: bool,
}

impl Drop for Appending<'_> {
    fn drop(&mut self) {
        if !self.done {
            let part = self.disk.random.below(self.bytes.len() as u64 + 1);
            self.disk.tear(self.name, &self.bytes, usize::try_from(part).unwrap());
        }
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn list(&self) -> io::Result<Vec<String>> {
        self.files.list().await
    }

    async fn read(&self, name: &str) -> io::Result<Bytes> {
        self.files.read(name).await
    }

    async fn append(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        if self.lies {
            return Ok(());
        }
        let mut appending = Appending { disk: self, name, bytes, done: false };
        let trouble = self.begin().await;
        pass(self.random.millis(0..SLOWEST_APPEND_MS)).await;
        match self.goes_wrong(trouble) {
            Some((error, false)) => {
                // Dropped as it is: a part of it is there.
                appending.done = trouble == Some(DiskTrouble::ReadOnly);
                return Err(error);
            }
            Some((error, true)) => {
                appending.done = true;
                self.files.append(name, appending.bytes.clone()).await?;
                return Err(error);
            }
            None => {}
        }
        appending.done = true;
        self.files.append(name, appending.bytes.clone()).await?;
        self.freezer.pass().await;
        Ok(())
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let trouble = self.begin().await;
        pass(self.tears.millis(0..SLOWEST_APPEND_MS)).await;
        let wrong = self.goes_wrong(trouble);
        if wrong.as_ref().is_none_or(|(_, done)| *done) {
            self.files.replace(name, bytes).await?;
        }
        pass(self.tears.millis(0..SLOWEST_APPEND_MS)).await;
        self.freezer.pass().await;
        wrong.map_or(Ok(()), |(error, _)| Err(error))
    }

    async fn delete(&self, name: &str) -> io::Result<()> {
        let trouble = self.begin().await;
        // There is always room for a deletion.
        let wrong = self.goes_wrong(trouble.filter(|trouble| *trouble != DiskTrouble::Full));
        if wrong.as_ref().is_none_or(|(_, done)| *done) {
            self.files.delete(name).await?;
        }
        pass(self.tears.millis(0..SLOWEST_APPEND_MS)).await;
        wrong.map_or(Ok(()), |(error, _)| Err(error))
    }
}
