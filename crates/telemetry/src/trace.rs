//! Spans of traces: begun where work begins, ended when they are dropped, handed to the process's [`Sink`].
//!
//! A task works on one span at a time, its current one; spans begun meanwhile are its children. Only requests that
//! are traced have any: with tracing off, and for all other requests, a span is empty and costs a branch.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio::time::Instant;

use cartwheel_core::trace::TraceContext;

/// The flag of a context that says that its trace is recorded.
const SAMPLED: u8 = 1;

tokio::task_local! {
    static CURRENT: TraceContext;
}

static TRACING: OnceLock<Tracing> = OnceLock::new();

/// Where ended spans go. Called on the way of requests: it must not wait.
pub trait Sink: Send + Sync + 'static {
    /// Takes an ended span.
    fn ended(&self, span: EndedSpan);
}

struct Tracing {
    sink: Option<Box<dyn Sink>>,
    /// A new trace is recorded if the low 64 bits of its id are below this.
    below: u64,
    all: bool,
}

/// On which side of what a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answers what came from another process.
    Server,
    /// Asks another process.
    Client,
    /// Neither.
    Internal,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// A span that has ended.
#[derive(Debug)]
pub struct EndedSpan {
    /// Its own ids.
    pub context: TraceContext,
    /// The span that it is part of, if any.
    pub parent: Option<[u8; 8]>,
    /// Is that one of another process?
    pub parent_is_remote: bool,
    /// What it is.
    pub name: Cow<'static, str>,
    /// On which side it is.
    pub kind: Kind,
    /// When it began, by the wall clock.
    pub begun: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// More about it.
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong, if something did.
    pub error: Option<Cow<'static, str>>,
}

/// Turns tracing on for this process, for good. Without a sink requests get ids for their log lines, and no spans.
/// `ratio` is the share of requests that are recorded, of those that do not come with a context of their own.
/// Returns whether it was off before; if not, nothing has changed.
pub fn start(sink: Option<Box<dyn Sink>>, ratio: f64) -> bool {
    #[expect(clippy::cast_possible_truncation, reason = "a float becomes the nearest number there is")]
    let below = (ratio.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
    let below = if sink.is_some() { below } else { 0 };
    let all = sink.is_some() && ratio >= 1.0;
    TRACING.set(Tracing { sink, below, all }).is_ok()
}

/// Is tracing on?
#[must_use]
pub fn is_on() -> bool {
    TRACING.get().is_some()
}

/// What this task works on, recorded or not.
#[must_use]
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|context| *context).ok()
}

/// What this task works on, if it is recorded: what goes with calls to other processes.
#[must_use]
pub fn recorded() -> Option<TraceContext> {
    current().filter(TraceContext::is_sampled)
}

/// Starts a task that works on what this one works on.
pub fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match current() {
        Some(context) => tokio::spawn(CURRENT.scope(context, work)),
        None => tokio::spawn(work),
    }
}

/// Does `work` as part of `context`, if there is one.
pub fn within<T>(context: Option<TraceContext>, work: impl FnOnce() -> T) -> T {
    match context {
        Some(context) => CURRENT.sync_scope(context, work),
        None => work(),
    }
}

/// Does `work` as part of `context`.
pub fn scope<F: Future>(context: TraceContext, work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(context, work)
}

/// Some work that takes time. It ends when it is dropped.
#[derive(Default)]
pub struct Span {
    context: Option<TraceContext>,
    live: Option<Box<Live>>,
}

struct Live {
    span: EndedSpan,
    since: Instant,
}

impl Span {
    /// No span.
    #[must_use]
    pub const fn none() -> Self {
        Self { context: None, live: None }
    }

    /// The work on a request from outside: part of `parent` if it comes with that, else of a new trace, which is
    /// recorded or not. Empty while tracing is off.
    #[must_use]
    pub fn of_request(parent: Option<TraceContext>, name: impl FnOnce() -> Cow<'static, str>) -> Self {
        let Some(tracing) = TRACING.get() else { return Self::none() };
        let id: u128 = rand::random();
        let (trace_id, flags) = match parent {
            Some(parent) => (parent.trace_id(), parent.flags() & SAMPLED),
            None => {
                #[expect(clippy::cast_possible_truncation, reason = "these are the bits that decide")]
                let recorded = tracing.all || (id as u64) < tracing.below;
                (id.to_be_bytes(), u8::from(recorded))
            }
        };
        let Some(context) = TraceContext::new(trace_id, rand::random(), flags) else { return Self::none() };
        let live = || Live::begin(context, parent, true, name(), Kind::Server);
        let live = (tracing.sink.is_some() && context.is_sampled()).then(live);
        Self { context: Some(context), live }
    }

    /// The work on a call of another process of the cluster. Empty unless that one records it and tracing is on.
    #[must_use]
    pub fn of_call(caller: Option<TraceContext>, name: impl FnOnce() -> Cow<'static, str>) -> Self {
        match caller.filter(TraceContext::is_sampled) {
            Some(caller) if is_on() => Self::of_request(Some(caller), name),
            _ => Self::none(),
        }
    }

    /// A part of what this task works on. Empty unless that is recorded.
    #[must_use]
    pub fn child(kind: Kind, name: impl FnOnce() -> Cow<'static, str>) -> Self {
        let Some(parent) = recorded() else { return Self::none() };
        let Some(Tracing { sink: Some(_), .. }) = TRACING.get() else {
            // What is asked of others is still part of the trace.
            return Self { context: Some(parent), live: None };
        };
        let context = TraceContext::new(parent.trace_id(), rand::random(), parent.flags());
        let live = context.map(|context| Live::begin(context, Some(parent), false, name(), kind));
        Self { context, live }
    }

    /// Its ids, for those who work on it.
    #[must_use]
    pub fn context(&self) -> Option<TraceContext> {
        self.context
    }

    /// Is it recorded, so that attributes are worth the while?
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.live.is_some()
    }

    /// Says more about it.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(live) = &mut self.live {
            live.span.attributes.push((name, value.into()));
        }
    }

    /// Something went wrong.
    pub fn fail(&mut self, error: impl Into<Cow<'static, str>>) {
        if let Some(live) = &mut self.live {
            live.span.error = Some(error.into());
        }
    }
}

impl Live {
    fn begin(
        context: TraceContext,
        parent: Option<TraceContext>,
        parent_is_remote: bool,
        name: Cow<'static, str>,
        kind: Kind,
    ) -> Box<Self> {
        let span = EndedSpan {
            context,
            parent: parent.map(|parent| parent.span_id()),
            parent_is_remote: parent_is_remote && parent.is_some(),
            name,
            kind,
            begun: SystemTime::now(),
            took: Duration::ZERO,
            attributes: Vec::new(),
            error: None,
        };
        Box::new(Self { span, since: Instant::now() })
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(live) = self.live.take() else { return };
        let Live { span, since } = *live;
        if let Some(Tracing { sink: Some(sink), .. }) = TRACING.get() {
            sink.ended(EndedSpan { took: since.elapsed(), ..span });
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.live.as_ref().map(|live| &live.span.name);
        f.debug_struct("Span").field("name", &name).field("context", &self.context).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<EndedSpan>>>);

    impl Sink for Kept {
        fn ended(&self, span: EndedSpan) {
            self.0.lock().unwrap().push(span);
        }
    }

    /// One test, because tracing is turned on once for the whole process.
    #[tokio::test]
    async fn spans_nest_across_calls_and_tasks_and_only_where_they_are_recorded() {
        assert!(!Span::of_request(None, || unreachable!("tracing is off")).is_recorded());
        assert_eq!(current(), None);
        let kept = Kept::default();
        assert!(start(Some(Box::new(kept.clone())), 0.0));
        assert!(!start(None, 1.0), "it is on for good");

        let silent = Span::of_request(None, || unreachable!("the ratio is 0"));
        assert!(!silent.is_recorded());
        let context = silent.context().unwrap();
        scope(context, async {
            assert_eq!((current(), recorded()), (Some(context), None));
            assert_eq!(Span::child(Kind::Client, || unreachable!("not recorded")).context(), None);
        })
        .await;
        assert_eq!(Span::of_call(Some(context), || unreachable!("not recorded")).context(), None);

        let client = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let client = TraceContext::from_traceparent(client).unwrap();
        let mut request = Span::of_request(Some(client), || "request".into());
        request.set("status", 204_u16);
        let context = request.context().unwrap();
        let asked = scope(context, async {
            spawn(async {
                let call = Span::child(Kind::Client, || "call".into());
                let asked = within(call.context(), recorded).unwrap();
                drop(call);
                asked
            })
            .await
            .unwrap()
        })
        .await;
        let mut answering = Span::of_call(Some(asked), || "answer".into());
        answering.fail("nothing there");
        drop(answering);
        drop(request);

        let spans = std::mem::take(&mut *kept.0.lock().unwrap());
        let names: Vec<_> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["call", "answer", "request"]);
        let [call, answer, request] = &spans[..] else { unreachable!() };
        assert!(spans.iter().all(|span| span.context.trace_id() == client.trace_id()));
        assert_eq!((request.parent, request.parent_is_remote), (Some(client.span_id()), true));
        assert_eq!((call.parent, call.parent_is_remote), (Some(request.context.span_id()), false));
        assert_eq!((answer.parent, answer.kind), (Some(call.context.span_id()), Kind::Server));
        assert_eq!(request.attributes, [("status", Value::Number(204))]);
        assert_eq!(answer.error.as_deref(), Some("nothing there"));
    }
}
