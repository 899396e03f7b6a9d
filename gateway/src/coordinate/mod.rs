//! Driving one request's quorum: the machines of `cartwheel_core` decide, this sends and waits.

pub(crate) mod get;
pub(crate) mod put;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use cartwheel_cluster::membership::View;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::{Node, Tally};
use cartwheel_core::ring::RingMember;
use cartwheel_core::trace::TraceContext;
use cartwheel_telemetry::trace::{Kind, Span};

use crate::Shared;
use crate::problem::{Missed, NodeOutcome, Problem};
use crate::trust::Trust;

/// What is said of a target that no call was sent to.
const NOT_ASKED: &str = "not asked";
/// Outcomes of calls that failed, rather than being answered or refused.
const FAILURES: [&str; 4] = ["not reachable", "answer lost", "unable", "sent a damaged record"];
/// The pause before homes that are catching up are asked again.
pub(crate) const CATCHING_UP_PAUSE: Duration = Duration::from_millis(30);

/// When homes that have not answered are slow: others are asked to stand in for them.
pub(crate) fn slow_after(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + (deadline.saturating_duration_since(now) / 2).min(MAX_PATIENCE)
}

/// The bucket stood in for too few replicas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Degraded {
    /// As of when, milliseconds since 1970.
    pub(crate) as_of_ms: u64,
    /// How long that took.
    pub(crate) took: Duration,
}

/// Until when the bucket is waited for where it is to stand in: a bucket that is gone, too, is said to be soon.
pub(crate) fn bucket_until(deadline: Instant) -> Instant {
    deadline.min(Instant::now() + BUCKET_PATIENCE)
}

/// The longest that the bucket is waited for in place of replicas.
const BUCKET_PATIENCE: Duration = Duration::from_secs(2);

/// The longest that homes are waited for before others are asked to stand in.
const MAX_PATIENCE: Duration = Duration::from_secs(1);

/// How often an operation starts again because the ring changed under it.
pub(crate) const RING_CHANGES: usize = 4;

/// The number of the first fallback; far beyond those of homes.
const FIRST_FALLBACK: Node = 1024;

/// Who is to be asked, by number: homes first (rotated), then homes to come; fallbacks have numbers of their own.
#[derive(Debug)]
pub(crate) struct Targets {
    /// The ring version that they are from.
    pub(crate) ring_version: u64,
    nodes: Vec<Target>,
    /// The fallbacks, worked out when the first of them is needed.
    stand_ins: Vec<Target>,
    view: Arc<View>,
    hash: KeyHash,
    /// The homes.
    pub(crate) homes: Vec<Node>,
    /// The homes after the pending change; empty without one.
    pub(crate) next_homes: Vec<Node>,
    /// Who may stand in for a home, in walk order; nobody where fallbacks may not be counted.
    pub(crate) fallbacks: Vec<Node>,
    /// Are the homes to come the ones to read from?
    copied: bool,
}

#[derive(Debug)]
struct Target {
    id: NodeId,
    address: Arc<str>,
    outcome: &'static str,
    /// The call that it has not answered.
    span: Span,
}

impl Target {
    fn new(member: &RingMember) -> Self {
        Self {
            id: member.id.clone(),
            address: Arc::clone(&member.address),
            outcome: NOT_ASKED,
            span: Span::none(),
        }
    }
}

impl Targets {
    /// The targets of a key; `sloppy` says whether fallbacks may be counted.
    pub(crate) fn of(view: &Arc<View>, hash: KeyHash, sloppy: bool) -> Self {
        let mut nodes = Vec::with_capacity(4);
        let list = view.current.preference_list(hash);
        let mut homes = Vec::with_capacity(4);
        for member in list.homes().iter().filter_map(|index| view.current.member(*index)) {
            homes.push(number(&mut nodes, member));
        }
        let mut next_homes = Vec::new();
        if view.document.has_pending_change() {
            let list = view.next.preference_list(hash);
            for member in list.homes().iter().filter_map(|index| view.next.member(*index)) {
                next_homes.push(number(&mut nodes, member));
            }
        }
        let copied = view.document.copied && !next_homes.is_empty();
        // Who they are is worked out only when one is needed; most requests need none.
        let others = view.current.members().len().saturating_sub(homes.len());
        let others = if sloppy { Node::try_from(others).unwrap_or(0) } else { 0 };
        let (ring_version, view) = (view.version(), Arc::clone(view));
        let (stand_ins, fallbacks) = (Vec::new(), Vec::new());
        let mut targets =
            Self { ring_version, nodes, stand_ins, view, hash, homes, next_homes, fallbacks, copied };
        let others = if targets.next_homes.is_empty() {
            others
        } else {
            // Homes to come are no fallbacks.
            targets.find_stand_ins();
            others.min(Node::try_from(targets.stand_ins.len()).unwrap_or(0))
        };
        targets.fallbacks = (FIRST_FALLBACK..FIRST_FALLBACK.saturating_add(others)).collect();
        targets
    }

    fn target(&self, node: Node) -> Option<&Target> {
        match node.checked_sub(FIRST_FALLBACK) {
            Some(at) => self.stand_ins.get(usize::from(at)),
            None => self.nodes.get(usize::from(node)),
        }
    }

    /// Works out the fallbacks: those of the walk that are no homes to come.
    fn find_stand_ins(&mut self) {
        let walk = self.view.current.fallbacks(self.hash);
        let members = walk.iter().filter_map(|index| self.view.current.member(*index));
        let others = members.filter(|member| self.nodes.iter().all(|t| t.id != member.id));
        self.stand_ins = others.map(Target::new).collect();
    }

    /// The name of a target.
    pub(crate) fn id(&self, node: Node) -> Option<&NodeId> {
        self.target(node).map(|t| &t.id)
    }

    /// Is it a home that others stood in for, and that has not said since that it counts?
    pub(crate) fn is_doubted(&self, node: Node, trust: &Trust) -> bool {
        let home = self.homes.contains(&node) || self.next_homes.contains(&node);
        home && self.id(node).is_some_and(|id| !trust.relies_on(id))
    }

    /// The names of the homes of both rings.
    pub(crate) fn home_ids(&self) -> Vec<NodeId> {
        let coming = self.next_homes.iter().filter(|node| !self.homes.contains(node));
        self.homes.iter().chain(coming).filter_map(|node| self.id(*node).cloned()).collect()
    }

    /// The homes to read from.
    pub(crate) fn readable(&self) -> &[Node] {
        if self.copied { &self.next_homes } else { &self.homes }
    }

    /// The number of the target with this id.
    pub(crate) fn node(&self, id: &NodeId) -> Option<Node> {
        self.nodes.iter().position(|t| t.id == *id).and_then(|at| Node::try_from(at).ok())
    }

    /// Where to call a target.
    pub(crate) fn address(&self, node: Node) -> &str {
        self.target(node).map_or("", |t| &t.address)
    }

    /// A target is about to be asked: notes what is said of it while it does not answer, and gives the span of the
    /// call to be sent with it.
    pub(crate) fn ask(
        &mut self,
        node: Node,
        call: &'static str,
        stands_for: Option<&NodeId>,
        unanswered: &'static str,
    ) -> Option<TraceContext> {
        let target = self.target_mut(node)?;
        target.outcome = unanswered;
        let mut span = Span::child(Kind::Client, || format!("{call} {}", target.id).into());
        if span.is_recorded() {
            span.set("rpc.method", call);
            span.set("server.address", target.address.to_string());
            span.set("cartwheel.peer", target.id.to_string());
            if let Some(home) = stands_for {
                span.set("cartwheel.hint_for", home.to_string());
            }
        }
        let context = span.context();
        target.span = span;
        context
    }

    /// Notes what a target did, for the error text and its span.
    pub(crate) fn note(&mut self, node: Node, outcome: &'static str) {
        let Some(target) = self.target_mut(node) else { return };
        target.outcome = outcome;
        let mut span = std::mem::take(&mut target.span);
        span.set("cartwheel.outcome", outcome);
        if FAILURES.contains(&outcome) {
            span.fail(outcome);
        }
    }

    fn target_mut(&mut self, node: Node) -> Option<&mut Target> {
        match node.checked_sub(FIRST_FALLBACK) {
            Some(at) => {
                if self.stand_ins.is_empty() {
                    self.find_stand_ins();
                }
                self.stand_ins.get_mut(usize::from(at))
            }
            None => self.nodes.get_mut(usize::from(node)),
        }
    }

    /// What came of the quorum.
    pub(crate) fn missed(&self, wanted: usize, tally: Tally) -> Missed {
        let stand_ins = self.stand_ins.iter().filter(|t| t.outcome != NOT_ASKED);
        let nodes = self
            .nodes
            .iter()
            .chain(stand_ins)
            .map(|t| NodeOutcome { id: t.id.to_string(), outcome: t.outcome.to_owned() })
            .collect();
        Missed { wanted, got: tally.answered(), tally, nodes }
    }
}

/// The number of a node, added if it has none yet.
fn number(nodes: &mut Vec<Target>, member: &RingMember) -> Node {
    let at = nodes.iter().position(|t| t.id == member.id).unwrap_or_else(|| {
        nodes.push(Target::new(member));
        nodes.len() - 1
    });
    Node::try_from(at).unwrap_or(Node::MAX)
}

/// The newest view in which the cluster can hold data.
pub(crate) fn usable_view(shared: &Shared) -> Result<Arc<View>, Problem> {
    let Some(view) = shared.follower.view() else {
        return Err(Problem::not_ready("no ring document was found in the bucket yet"));
    };
    if view.document.is_forming() {
        let (have, need) = (view.document.members.len(), view.document.replicas);
        return Err(Problem::not_ready(format!(
            "the cluster is forming: {have} of {need} storage nodes are there"
        )));
    }
    Ok(view)
}

/// Waits for a ring newer than `version`, at most until `deadline`.
pub(crate) async fn newer_view(shared: &Shared, version: u64, deadline: Instant) {
    // No newer ring in time: the operation goes on with the old one and ends as it must.
    let _ = tokio::time::timeout_at(deadline, shared.follower.at_least(version)).await;
}
