//! One read.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use cartwheel_cluster::{CallError, ReplyTo};
use cartwheel_core::clock::Clock;
use cartwheel_core::container::Container;
use cartwheel_core::get::{GetAction, GetEvent, GetMachine, GetOutcome};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::quorum::Node;
use cartwheel_core::record::{Record, Version};
use cartwheel_core::wire::{Answer, Call, Pieces, Refusal, Reply, Request};

use super::{RING_CHANGES, Targets, newer_view, usable_view};
use crate::Shared;
use crate::problem::Problem;
use crate::repair::Repair;

/// A read to be made.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) namespace: Namespace,
    pub(crate) key: Key,
    pub(crate) hash: KeyHash,
    pub(crate) r: usize,
    pub(crate) values: bool,
    /// What the answer should cover.
    pub(crate) floor: Clock,
    pub(crate) deadline: Instant,
}

/// What a read found.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) container: Container<Version>,
    pub(crate) n: usize,
    pub(crate) answered: usize,
    pub(crate) below_floor: bool,
}

/// Makes the read. Stale homes are repaired in the background.
pub(crate) async fn get(shared: &Shared, read: &Read) -> Result<Seen, Problem> {
    for _ in 0..RING_CHANGES {
        match attempt(shared, read).await {
            Ok(seen) => return Ok(seen),
            Err(Unread::Problem(problem)) => return Err(problem),
            Err(Unread::NewerRing(version)) => newer_view(shared, version, read.deadline).await,
        }
    }
    Err(Problem::not_ready("the ring kept changing under this request"))
}

enum Unread {
    Problem(Problem),
    NewerRing(u64),
}

async fn attempt(shared: &Shared, read: &Read) -> Result<Seen, Unread> {
    let view = usable_view(shared).map_err(Unread::Problem)?;
    let mut targets = Targets::of(&view, read.hash);
    let started = Instant::now();
    let call = Call {
        ring_version: targets.ring_version,
        request: Request::Read {
            namespace: read.namespace.clone(),
            key: read.key.clone(),
            values: read.values,
        },
    }
    .encode();
    let (sender, mut answers) = mpsc::unbounded_channel();
    let ask = |targets: &Targets, node: Node, call: Pieces| {
        let reply_to = ReplyTo { sender: sender.clone(), tag: u32::from(node) };
        shared.peers.submit(targets.address(node), call, read.deadline, reply_to);
    };

    let mut machine = GetMachine::new(targets.readable().to_vec(), read.r, read.floor.clone());
    let mut hedge_at = Some(started + shared.hedging.pause());
    let mut actions = machine.start();
    loop {
        for action in std::mem::take(&mut actions) {
            match action {
                GetAction::Ask(node) => {
                    targets.note(node, "asked; no answer");
                    ask(&targets, node, call.clone());
                }
                GetAction::Answer => {
                    shared.hedging.took(started.elapsed());
                    return Ok(settle(shared, read, &targets, machine.into_outcome()));
                }
                GetAction::Fail { answered, late } => {
                    let missed = targets.missed(read.r, answered);
                    return Err(Unread::Problem(Problem::quorum_missed(missed, late)));
                }
            }
        }
        let until = hedge_at.map_or(read.deadline, |at| at.min(read.deadline));
        let event = match tokio::time::timeout_at(until, answers.recv()).await {
            Ok(Some((tag, outcome))) => {
                let node = Node::try_from(tag).unwrap_or(Node::MAX);
                answered(&mut targets, node, outcome)?
            }
            Err(_) if until < read.deadline => {
                hedge_at = None;
                if !shared.hedging.may_hedge() {
                    continue;
                }
                GetEvent::Hedge
            }
            Ok(None) | Err(_) => GetEvent::Deadline,
        };
        actions = machine.on(event);
    }
}

/// What one home's answer means to the machine.
fn answered(
    targets: &mut Targets,
    node: Node,
    outcome: Result<Bytes, CallError>,
) -> Result<GetEvent<Version>, Unread> {
    let answer = outcome.and_then(|bytes| Answer::decode(bytes).map_err(|_| CallError::Lost));
    let (what, container) = match answer {
        Ok(Answer { reply: Reply::Absent, .. }) => ("answered", Some(Container::default())),
        Ok(Answer { reply: Reply::Found(bytes), .. }) => match Record::decode(&bytes) {
            Ok(record) => ("answered", Some(record.container)),
            Err(error) => {
                tracing::error!(%error, "a storage node sent a damaged record");
                ("sent a damaged record", None)
            }
        },
        Ok(Answer { reply: Reply::Refused(Refusal::StaleRing | Refusal::NotAHome), ring_version })
            if ring_version > targets.ring_version =>
        {
            return Err(Unread::NewerRing(ring_version));
        }
        Ok(Answer { reply: Reply::Refused(Refusal::CatchingUp), .. }) => ("catching up", None),
        Ok(Answer { reply: Reply::Refused(Refusal::Overloaded), .. }) => ("overloaded", None),
        Ok(Answer { reply: Reply::Refused(Refusal::Unable(_)), .. }) => ("unable", None),
        Ok(_) => ("refused", None),
        Err(CallError::NotSent) => ("not reachable", None),
        Err(CallError::Lost) => ("answer lost", None),
    };
    targets.note(node, what);
    Ok(match container {
        Some(container) => GetEvent::Answered { node, container },
        None => GetEvent::Failed { node },
    })
}

fn settle(shared: &Shared, read: &Read, targets: &Targets, outcome: GetOutcome<Version>) -> Seen {
    let GetOutcome { merged, answered, stale, below_floor } = outcome;
    // Without the values there is nothing to repair with.
    if !stale.is_empty() && read.values {
        let (namespace, key) = (read.namespace.clone(), read.key.clone());
        let record = Record { namespace, key, container: merged.clone() }.encode();
        let addresses = stale.iter().map(|node| targets.address(*node).to_owned()).collect();
        shared.repairs.offer(Repair { ring_version: targets.ring_version, record, addresses });
    }
    Seen { container: merged, n: targets.readable().len(), answered, below_floor }
}
