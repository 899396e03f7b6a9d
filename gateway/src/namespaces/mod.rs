//! What this gateway knows of the settings of namespaces. They lie in the bucket; a request hardly ever waits for it.
//!
//! One task looks at the bucket from time to time: one list of all settings, and a read of each document that is new
//! and belongs to a namespace in use. A request for a namespace that no request was for before waits for the next
//! look, shortly. Where the bucket does not answer, the last known settings hold, or else the defaults: a write is
//! taken in any case, if need be without the time to live or the refusal that its namespace asks for.

mod store;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt, iter};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use cartwheel_bucket::{BucketError, SharedBucket};
use cartwheel_cluster::seams::Seams;
use cartwheel_core::names::Namespace;
use cartwheel_core::namespace::{NamespaceDocument, NamespaceSettings};

pub(crate) use store::{ReadError, WriteError};

/// Most namespaces that have settings, and most of those without that are remembered.
pub(crate) const MAX_NAMESPACES: usize = 10_000;
/// How long the first request for a namespace waits for its settings.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long one list or one read of a look may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// The longest pause after a look that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(2);
/// Documents read at once.
const READS_AT_ONCE: usize = 8;

/// The settings of all namespaces, as far as they are known here; one for each gateway.
#[derive(Debug)]
pub(crate) struct Namespaces {
    inner: Arc<Inner>,
    looking: JoinHandle<()>,
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

#[derive(Debug)]
struct Inner {
    bucket: SharedBucket,
    seams: Seams,
    known: Mutex<Known>,
    /// Somebody waits for a look.
    wanted: Notify,
    /// A look has ended. Who waits is woken in the order of arrival, so that simulations repeat.
    ended: Notify,
}

#[derive(Debug, Default)]
struct Known {
    entries: HashMap<Namespace, Entry>,
    /// How many of them have no settings.
    unset: usize,
    /// Looks begun.
    begun: u64,
    /// The newest look that ended.
    ended: u64,
}

/// What is known of one namespace.
#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    /// The newest version heard of; 0 if it has no settings.
    listed: u64,
    /// The newest version read.
    read: Option<(u64, NamespaceSettings)>,
    /// Once a request was for it: the look that it waited for, and until when.
    used: Option<(u64, Instant)>,
}

impl Entry {
    fn settings(self) -> Option<NamespaceSettings> {
        self.read.map(|(_, settings)| settings)
    }

    /// Its newest version, if that is to be read.
    fn unread(self) -> Option<u64> {
        let read = self.read.map_or(0, |(version, _)| version);
        (self.used.is_some() && self.listed > read).then_some(self.listed)
    }
}

impl Known {
    /// The entry of a namespace that has settings.
    fn with_settings(&mut self, namespace: &Namespace) -> &mut Entry {
        let unset = self.entries.get(namespace).is_some_and(|entry| entry.listed == 0);
        self.unset -= usize::from(unset);
        self.entries.entry(namespace.clone()).or_default()
    }

    fn hear(&mut self, listed: BTreeMap<Namespace, u64>) {
        for (namespace, version) in
            listed.into_iter().take(MAX_NAMESPACES).filter(|(_, version)| *version > 0)
        {
            let entry = self.with_settings(&namespace);
            entry.listed = version.max(entry.listed);
        }
    }

    fn learn(&mut self, document: &NamespaceDocument) {
        let entry = self.with_settings(&document.namespace);
        entry.listed = document.version.max(entry.listed);
        if entry.read.is_none_or(|(version, _)| version < document.version) {
            entry.read = Some((document.version, document.settings));
        }
    }
}

impl Namespaces {
    /// Looks at the bucket at once, then every `interval` (a little more or less at random), until it is dropped.
    pub(crate) fn start(bucket: SharedBucket, seams: Seams, interval: Duration) -> Self {
        let (known, wanted, ended) = (Mutex::default(), Notify::new(), Notify::new());
        let inner = Arc::new(Inner { bucket, seams, known, wanted, ended });
        let looking = tokio::spawn(look_on_and_on(Arc::clone(&inner), interval));
        Self { inner, looking }
    }

    /// What is set for a namespace; `None` if nothing is or nothing is known. Waits for the bucket only if the first
    /// request for this namespace came a moment ago, and at most for `patience`.
    pub(crate) async fn settings(
        &self,
        namespace: &Namespace,
        patience: Duration,
    ) -> Option<NamespaceSettings> {
        let (look, until) = {
            let known = &mut *self.inner.known.lock();
            let next = known.begun + 1;
            let until = || Instant::now() + PATIENCE.min(patience);
            match known.entries.get_mut(namespace) {
                Some(entry) => match entry.used {
                    Some((look, _)) if look <= known.ended => return entry.settings(),
                    Some((_, at_most)) if at_most <= Instant::now() => return entry.settings(),
                    Some((look, at_most)) => (look, at_most.min(until())),
                    None => {
                        let until = until();
                        entry.used = Some((next, until));
                        self.inner.wanted.notify_one();
                        (next, until)
                    }
                },
                // So many that somebody makes them up: what the last look did not name has no settings.
                None if known.unset >= MAX_NAMESPACES => return None,
                None => {
                    let until = until();
                    known.unset += 1;
                    let entry = Entry { used: Some((next, until)), ..Entry::default() };
                    known.entries.insert(namespace.clone(), entry);
                    self.inner.wanted.notify_one();
                    (next, until)
                }
            }
        };
        // Late: what is known holds.
        let _ = timeout_at(until, self.inner.looked(look)).await;
        self.inner.known.lock().entries.get(namespace).copied().and_then(Entry::settings)
    }

    /// The newest settings in the bucket, if there are some.
    pub(crate) async fn read(&self, namespace: &Namespace) -> Result<Option<NamespaceDocument>, ReadError> {
        let newest = store::newest(&*self.inner.bucket, namespace).await?;
        if let Some(document) = &newest {
            self.inner.known.lock().learn(document);
        }
        Ok(newest)
    }

    /// One version of the settings.
    pub(crate) async fn read_version(
        &self,
        namespace: &Namespace,
        version: u64,
    ) -> Result<NamespaceDocument, ReadError> {
        store::read(&*self.inner.bucket, namespace, version).await
    }

    /// The newest version of all namespaces that have settings.
    pub(crate) async fn list(&self) -> Result<BTreeMap<Namespace, u64>, BucketError> {
        let listed = store::all(&*self.inner.bucket).await?;
        self.inner.known.lock().hear(listed.clone());
        Ok(listed)
    }

    /// May this namespace get settings, beside all that have some?
    pub(crate) fn has_room_for(&self, namespace: &Namespace) -> bool {
        let known = self.inner.known.lock();
        let has_some = known.entries.get(namespace).is_some_and(|entry| entry.listed > 0);
        has_some || known.entries.len() - known.unset < MAX_NAMESPACES
    }

    /// Writes new settings, in force here at once, if they `may_follow` the newest version (0: there is none).
    pub(crate) async fn write(
        &self,
        namespace: &Namespace,
        settings: NamespaceSettings,
        may_follow: impl Fn(u64) -> bool + Send,
    ) -> Result<NamespaceDocument, WriteError> {
        let Inner { bucket, seams, known, .. } = &*self.inner;
        let document = store::write(&**bucket, seams, namespace, settings, may_follow).await?;
        known.lock().learn(&document);
        Ok(document)
    }
}

impl Inner {
    /// Waits until the look of this number has ended.
    async fn looked(&self, look: u64) {
        loop {
            // Made before the check, so that no end in between is missed.
            let ended = self.ended.notified();
            if self.known.lock().ended >= look {
                return;
            }
            ended.await;
        }
    }

    /// Finds out what is new. `false` if that could not be seen whole.
    async fn look(&self) -> bool {
        let listed = match timeout(CALL_LIMIT, store::all(&*self.bucket)).await {
            Ok(Ok(listed)) => listed,
            Ok(Err(error)) => {
                tracing::warn!(%error, "can't list namespace settings; those known stay in force");
                return false;
            }
            Err(_) => {
                tracing::warn!("the bucket does not list namespace settings; those known stay in force");
                return false;
            }
        };
        if listed.len() > MAX_NAMESPACES {
            tracing::warn!(found = listed.len(), limit = MAX_NAMESPACES, "too many namespaces have settings");
        }
        let mut unread: Vec<(Namespace, u64)> = {
            let mut known = self.known.lock();
            known.hear(listed);
            let entries = known.entries.iter();
            entries.filter_map(|(namespace, entry)| Some((namespace.clone(), entry.unread()?))).collect()
        };
        unread.sort_unstable();
        let reads = iter(unread).map(|(namespace, version)| self.take_in(namespace, version));
        reads.buffer_unordered(READS_AT_ONCE).fold(true, |all, one| async move { all && one }).await
    }

    async fn take_in(&self, namespace: Namespace, version: u64) -> bool {
        match timeout(CALL_LIMIT, store::read(&*self.bucket, &namespace, version)).await {
            Ok(Ok(document)) => self.known.lock().learn(&document),
            Ok(Err(error)) => {
                tracing::warn!(%namespace, %error, "can't read namespace settings; those known stay in force");
                return false;
            }
            Err(_) => return false,
        }
        true
    }
}

async fn look_on_and_on(inner: Arc<Inner>, interval: Duration) {
    loop {
        let look = {
            let mut known = inner.known.lock();
            known.begun += 1;
            known.begun
        };
        let whole = inner.look().await;
        inner.known.lock().ended = look;
        inner.ended.notify_waiters();
        let interval = if whole { interval } else { interval.min(FAILED_PAUSE) };
        let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        let pause = Duration::from_micros(micros / 2 + inner.seams.random.below(micros / 2));
        tokio::select! {
            biased;
            () = inner.wanted.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests;
