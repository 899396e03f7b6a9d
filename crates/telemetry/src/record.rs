//! Times and events, said as they happen. What is merely a number that somebody may look at is not here: parts keep
//! it in atomics and are asked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Takes down what happens in one part of a process. Called on the way of requests: it must not wait.
pub trait Record: Send + Sync + 'static {
    /// A client's HTTP request was answered. `route` is `None` where no path matched.
    fn http_request(&self, method: &'static str, route: Option<&'static str>, status: u16, took: Duration);
    /// An operation got what it asked replicas for, or did not.
    fn operation(&self, op: &'static str, outcome: &'static str, took: Duration);
    /// A read answered with so many versions.
    fn siblings(&self, count: usize);
    /// A request was answered with a problem.
    fn problem(&self, op: &'static str, reason: &'static str);
    /// A quorum counted fallbacks.
    fn fallback_answer(&self, op: &'static str);
    /// A storage node answered a call, or nobody waited for the answer any more.
    fn call(&self, call: &'static str, outcome: &'static str, took: Duration);
    /// A request to the bucket ended.
    fn bucket_request(&self, op: &'static str, took: Duration);
}

/// Somebody who takes down what happens, or nobody.
#[derive(Clone, Default)]
pub struct Recorder(Option<Arc<dyn Record>>);

impl Recorder {
    /// What happens is told to `record`.
    pub fn new(record: impl Record) -> Self {
        Self(Some(Arc::new(record)))
    }

    /// Who takes it down, if anybody does.
    #[must_use]
    pub fn get(&self) -> Option<&dyn Record> {
        self.0.as_deref()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Recorder(on)" } else { "Recorder(off)" })
    }
}
