//! Driving one request's quorum: the machines of `cartwheel_core` decide, this sends and waits.

pub(crate) mod get;
pub(crate) mod put;

use std::sync::Arc;

use tokio::time::Instant;

use cartwheel_cluster::membership::View;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Node;
use cartwheel_core::ring::RingMember;

use crate::Shared;
use crate::problem::{Missed, NodeOutcome, Problem};

/// How often an operation starts again because the ring changed under it.
pub(crate) const RING_CHANGES: usize = 4;

/// Who is to be asked, by number: homes first (rotated), then homes to come.
#[derive(Debug)]
pub(crate) struct Targets {
    /// The ring version that they are from.
    pub(crate) ring_version: u64,
    nodes: Vec<Target>,
    /// The homes.
    pub(crate) homes: Vec<Node>,
    /// The homes after the pending change; empty without one.
    pub(crate) next_homes: Vec<Node>,
    /// Are the homes to come the ones to read from?
    copied: bool,
}

#[derive(Debug)]
struct Target {
    id: NodeId,
    address: Arc<str>,
    outcome: &'static str,
}

impl Targets {
    /// The targets of a key.
    pub(crate) fn of(view: &View, hash: KeyHash) -> Self {
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
        Self { ring_version: view.version(), nodes, homes, next_homes, copied }
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
        self.nodes.get(usize::from(node)).map_or("", |t| &t.address)
    }

    /// Notes what a target did, for the error text.
    pub(crate) fn note(&mut self, node: Node, outcome: &'static str) {
        if let Some(target) = self.nodes.get_mut(usize::from(node)) {
            target.outcome = outcome;
        }
    }

    /// What came of the quorum.
    pub(crate) fn missed(&self, wanted: usize, got: usize) -> Missed {
        let nodes = self
            .nodes
            .iter()
            .map(|t| NodeOutcome { id: t.id.to_string(), outcome: t.outcome.to_owned() })
            .collect();
        Missed { wanted, got, nodes }
    }
}

/// The number of a node, added if it has none yet.
fn number(nodes: &mut Vec<Target>, member: &RingMember) -> Node {
    let at = nodes.iter().position(|t| t.id == member.id).unwrap_or_else(|| {
        let (id, address) = (member.id.clone(), Arc::clone(&member.address));
        nodes.push(Target { id, address, outcome: "not asked" });
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
