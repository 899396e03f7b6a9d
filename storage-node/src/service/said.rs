//! What is said of a call to those who watch: what came of it, and how long that took.

use tokio::time::Instant;

use cartwheel_core::quorum::Durability;
use cartwheel_core::trace::TraceContext;
use cartwheel_core::wire::{Refusal, Reply, Request};
use cartwheel_telemetry::Recorder;
use cartwheel_telemetry::trace::{Kind, Span};

/// A call that is being answered. Dropped before, nobody waits for the answer any more.
#[derive(Debug)]
pub(super) struct Said {
    recorder: Recorder,
    call: &'static str,
    /// When it arrived, if somebody wants to know.
    arrived: Option<Instant>,
    span: Span,
    outcome: &'static str,
    refusal: Option<&'static str>,
}

impl Said {
    /// A call has arrived.
    pub(super) fn begin(
        recorder: &Recorder,
        node: &str,
        caller: Option<TraceContext>,
        request: &Request,
    ) -> Self {
        let (call, name) = match request {
            Request::Read { .. } => ("read", "storage read"),
            Request::Mint { .. } => ("mint", "storage mint"),
            Request::Replicate { .. } => ("replicate", "storage replicate"),
            Request::Confirm { .. } => ("confirm", "storage confirm"),
            _ => ("other", "storage other"),
        };
        let mut span = Span::of_call(caller, || name.into());
        if span.is_recorded() {
            span.set("rpc.method", call);
            span.set("cartwheel.node", node.to_owned());
        }
        let arrived = recorder.get().map(|_| Instant::now());
        Self { recorder: recorder.clone(), call, arrived, span, outcome: "given_up", refusal: None }
    }

    /// Its ids, for those who work on it.
    pub(super) fn context(&self) -> Option<TraceContext> {
        self.span.context()
    }

    /// It is answered.
    pub(super) fn answered(&mut self, reply: &Reply) {
        self.outcome = "answered";
        if let Reply::Refused(refusal) = reply {
            self.outcome = "refused";
            self.refusal = Some(name(refusal));
        }
    }
}

impl Drop for Said {
    fn drop(&mut self) {
        if let (Some(record), Some(arrived)) = (self.recorder.get(), self.arrived) {
            record.call(self.call, self.outcome, arrived.elapsed());
        }
        self.span.set("cartwheel.outcome", self.refusal.unwrap_or(self.outcome));
        if self.refusal == Some("unable") {
            self.span.fail("unable");
        }
    }
}

fn name(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::StaleRing => "stale ring",
        Refusal::NotAHome => "not a home",
        Refusal::CatchingUp => "catching up",
        Refusal::Overloaded => "overloaded",
        Refusal::Late => "late",
        Refusal::Precondition(_) => "precondition",
        Refusal::TooManySiblings(_) => "too many siblings",
        Refusal::Unable(_) => "unable",
        Refusal::Malformed(_) => "malformed",
    }
}

/// The wait of a write until it is as durable as asked, for whoever waits.
pub(super) fn waiting_for(durability: Durability) -> Span {
    match durability {
        Durability::Memory => Span::none(),
        Durability::Disk => Span::child(Kind::Internal, || "log sync".into()),
        Durability::Bucket => Span::child(Kind::Internal, || "flush".into()),
    }
}
