//! Processes that die at a step of a ring change: each step shows in what the process asks of the bucket. It dies before
//! that is done, or when it is done and before it learns of that.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cartwheel_bucket::{Bucket, BucketError, Created, Listing, SharedBucket};

use crate::world::lock::Lock;

/// A step of a change, as the bucket sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It creates a ring version: it joins, or takes the change a step further.
    Creates,
    /// It has greeted all, and looks what it can borrow.
    Greeted,
    /// It pins what it borrows.
    Pins,
    /// Its manifest names what it borrowed.
    Borrowed,
    /// It looks for the hints of those that go: it has compared what it holds with the old homes.
    Compared,
    /// It puts into the bucket what came from the old homes.
    Flushes,
    /// It says that it is ready.
    Ready,
}

/// All of them.
pub const STEPS: [Step; 7] =
    [Step::Creates, Step::Greeted, Step::Pins, Step::Borrowed, Step::Compared, Step::Flushes, Step::Ready];

/// Where the next process dies.
#[derive(Debug, Clone, Copy)]
pub struct Trap {
    /// At which step.
    pub step: Step,
    /// Before what is asked for is done?
    pub before: bool,
    /// How many get past before.
    pub skips: u64,
}

/// Who dies, and what ring versions were made.
#[derive(Debug, Default)]
pub struct Doom {
    traps: Lock<Vec<Trap>>,
    /// Who has to die now, and at which step.
    dying: Lock<Vec<(String, Step)>>,
    /// How often each version of the ring was created.
    rings: Lock<BTreeMap<String, u32>>,
}

impl Doom {
    /// Sets traps in place of those that were there.
    pub fn set(&self, traps: Vec<Trap>) {
        *self.traps.lock() = traps;
    }

    /// Who has to die now.
    pub fn take_dying(&self) -> Vec<(String, Step)> {
        std::mem::take(&mut self.dying.lock())
    }

    /// Ring versions that were created more than once.
    pub fn made_twice(&self) -> Vec<String> {
        let rings = self.rings.lock();
        rings.iter().filter(|(_, times)| **times > 1).map(|(name, _)| name.clone()).collect()
    }

    fn springs(&self, who: &str, step: Step, before: bool) -> bool {
        let mut traps = self.traps.lock();
        let Some(at) = traps.iter().position(|trap| trap.step == step && trap.before == before) else {
            return false;
        };
        if traps[at].skips > 0 {
            traps[at].skips -= 1;
            return false;
        }
        traps.remove(at);
        self.dying.lock().push((who.to_owned(), step));
        true
    }
}

/// What a host is doing when it asks this of the bucket.
fn step(who: &str, writes: bool, key: &str) -> Option<Step> {
    let own = key.strip_prefix("nodes/").map(|rest| rest.strip_prefix(who).unwrap_or_default());
    match (writes, own) {
        (true, _) if key.starts_with("ring/") => Some(Step::Creates),
        (true, _) if key.starts_with("ring-ready/") => Some(Step::Ready),
        (true, _) if key.contains("/pins/") => Some(Step::Pins),
        (true, Some(own)) if own.starts_with("/manifest/") => Some(Step::Borrowed),
        (true, Some(own)) if own.starts_with("/f/") => Some(Step::Flushes),
        (false, Some("")) if key.contains("/manifest/") => Some(Step::Greeted),
        (false, _) if key.starts_with("hints/") => Some(Step::Compared),
        _ => None,
    }
}

/// The bucket of a host that may die.
#[derive(Debug)]
pub struct Doomed {
    inner: SharedBucket,
    who: String,
    doom: Arc<Doom>,
}

impl Doomed {
    /// The bucket of `who`.
    pub fn new(inner: SharedBucket, who: &str, doom: Arc<Doom>) -> Self {
        Self { inner, who: who.to_owned(), doom }
    }

    /// The process ends here, or goes on.
    async fn pass(&self, writes: bool, key: &str, before: bool) {
        if let Some(step) = step(&self.who, writes, key)
            && self.doom.springs(&self.who, step, before)
        {
            std::future::pending::<()>().await;
        }
    }

    async fn around<T>(&self, writes: bool, key: &str, work: impl Future<Output = T>) -> T {
        self.pass(writes, key, true).await;
        let done = work.await;
        self.pass(writes, key, false).await;
        done
    }
}

#[async_trait]
impl Bucket for Doomed {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.around(false, key, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.inner.get_range(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.around(true, key, self.inner.put(key, body)).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        let creating = async {
            let created = self.inner.create(key, body).await;
            if key.starts_with("ring/") && matches!(created, Ok(Created::New)) {
                *self.doom.rings.lock().entry(key.to_owned()).or_default() += 1;
            }
            created
        };
        self.around(true, key, creating).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        self.around(false, prefix, self.inner.list(prefix, after, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(key).await
    }
}
