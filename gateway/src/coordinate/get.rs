//! One read.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use cartwheel_cluster::{CallError, ReplyTo};
use cartwheel_core::clock::Clock;
use cartwheel_core::codec::DecodeError;
use cartwheel_core::container::Container;
use cartwheel_core::get::{GetAction, GetEvent, GetMachine, GetOutcome};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::quorum::{Node, Tally};
use cartwheel_core::record::{Record, Version};
use cartwheel_core::wire::{Answer, Call, Pieces, Refusal, Reply, Request};
use cartwheel_telemetry::trace;

use super::{
    CATCHING_UP_PAUSE, Degraded, RING_CHANGES, Targets, bucket_until, newer_view, slow_after, usable_view,
};
use crate::Shared;
use crate::last_resort::BucketFound;
use crate::problem::{Missed, Problem};
use crate::repair::Repair;

/// A read to be made.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) namespace: Namespace,
    pub(crate) key: Key,
    pub(crate) hash: KeyHash,
    pub(crate) r: usize,
    /// May others stand in for homes that can't be reached?
    pub(crate) sloppy: bool,
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
    pub(crate) tally: Tally,
    pub(crate) below_floor: bool,
    pub(crate) degraded: Option<Degraded>,
}

/// Makes the read. Stale homes are repaired in the background. Where too few replicas can be reached, the bucket
/// is read instead. What has ended by this gateway's clock is a deletion in what is seen.
pub(crate) async fn get(shared: &Shared, read: &Read) -> Result<Seen, Problem> {
    let seen = find(shared, read).await?;
    let container = as_of(seen.container, shared.seams.clock.now_ms());
    Ok(Seen { container, ..seen })
}

/// The same knowledge with its versions as they are at `now_ms`. For answers only: replicas keep what was written.
fn as_of(container: Container<Version>, now_ms: u64) -> Container<Version> {
    if container.siblings().iter().all(|s| s.version.expires_ms == 0) {
        return container;
    }
    container.map(|version| version.clone().as_of(now_ms))
}

async fn find(shared: &Shared, read: &Read) -> Result<Seen, Problem> {
    let mut ring_changes = 0;
    // Half of the time is left for the bucket.
    let now = Instant::now();
    let patience = now + read.deadline.saturating_duration_since(now) / 2;
    loop {
        match attempt(shared, read).await? {
            Ended::Seen(seen) => return Ok(seen),
            Ended::NewerRing(_) if ring_changes == RING_CHANGES => break,
            Ended::NewerRing(version) => {
                ring_changes += 1;
                newer_view(shared, version, read.deadline).await;
            }
            Ended::Short(short) => {
                // Homes that are catching up are done in a moment.
                let again = Instant::now() + CATCHING_UP_PAUSE;
                if short.catching_up && again < patience {
                    tokio::time::sleep_until(again).await;
                    continue;
                }
                return from_bucket(shared, read, short).await;
            }
        }
    }
    Err(Problem::not_ready("the ring kept changing under this request"))
}

enum Ended {
    Seen(Seen),
    NewerRing(u64),
    Short(Short),
}

/// A read that too few replicas answered.
struct Short {
    missed: Missed,
    late: bool,
    tally: Tally,
    n: usize,
    homes: Vec<NodeId>,
    /// What those that answered know.
    known: Container<Version>,
    catching_up: bool,
}

/// The replica of last resort: what the homes have put into the bucket, with what is known besides.
async fn from_bucket(shared: &Shared, read: &Read, short: Short) -> Result<Seen, Problem> {
    let Short { missed, late, tally, n, homes, known, .. } = short;
    if !read.sloppy || late {
        return Err(Problem::quorum_missed(missed, late));
    }
    let (asked, until) = (Instant::now(), bucket_until(read.deadline));
    let found = shared.last_resort.read(&homes, &read.namespace, &read.key, read.hash, until).await;
    let BucketFound { mut container, as_of_ms } = match found {
        Ok(found) => found,
        Err(error) => return Err(Problem::quorum_missed(missed, false).and(error.to_string())),
    };
    container.sync(known);
    if !read.values {
        container = container.map(Version::without_value);
    }
    let below_floor = !container.seen().covers(&read.floor);
    let degraded = Some(Degraded { as_of_ms, took: asked.elapsed() });
    Ok(Seen { container, n, tally, below_floor, degraded })
}

async fn attempt(shared: &Shared, read: &Read) -> Result<Ended, Problem> {
    let view = usable_view(shared)?;
    let mut targets = Targets::of(&view, read.hash, read.sloppy);
    let started = Instant::now();
    let call = |stands_for: Option<NodeId>| {
        let request = Request::Read {
            namespace: read.namespace.clone(),
            key: read.key.clone(),
            values: read.values,
            stands_for,
        };
        Call { ring_version: view.version(), request }.encode()
    };
    let to_homes = call(None);
    let (sender, mut answers) = mpsc::unbounded_channel();
    let ask = |targets: &mut Targets, node: Node, stands_for: Option<&NodeId>, call: Pieces| {
        let reply_to = ReplyTo { sender: sender.clone(), tag: u32::from(node) };
        let context = targets.ask(node, "read", stands_for, "asked; no answer");
        let submit = || shared.peers.submit(targets.address(node), call, read.deadline, reply_to);
        trace::within(context, submit);
    };

    let (homes, fallbacks) = (targets.readable().to_vec(), targets.fallbacks.clone());
    let mut machine = GetMachine::new(homes, fallbacks, read.r, read.floor.clone());
    let mut hedge_at = Some(started + shared.hedging.pause());
    let mut slow_at = Some(slow_after(read.deadline)).filter(|_| read.sloppy);
    let mut catching_up = false;
    let mut actions = machine.start();
    loop {
        for action in std::mem::take(&mut actions) {
            match action {
                GetAction::Ask { node, stands_for } => {
                    let home = stands_for.and_then(|home| targets.id(home).cloned());
                    let call = if stands_for.is_some() { call(home.clone()) } else { to_homes.clone() };
                    ask(&mut targets, node, home.as_ref(), call);
                }
                GetAction::Answer => {
                    shared.hedging.took(started.elapsed());
                    return Ok(Ended::Seen(settle(shared, read, &targets, machine.into_outcome())));
                }
                GetAction::Fail { tally, late } => {
                    return Ok(Ended::Short(Short {
                        missed: targets.missed(read.r, tally),
                        late,
                        tally,
                        n: targets.readable().len(),
                        homes: targets.home_ids(),
                        known: machine.into_outcome().merged,
                        catching_up,
                    }));
                }
            }
        }
        let next = [hedge_at, slow_at].into_iter().flatten().min();
        let until = next.map_or(read.deadline, |at| at.min(read.deadline));
        let event = match tokio::time::timeout_at(until, answers.recv()).await {
            Ok(Some((tag, outcome))) => {
                let node = Node::try_from(tag).unwrap_or(Node::MAX);
                match answered(shared, &mut targets, node, outcome) {
                    Ok(event) => event,
                    Err(version) => return Ok(Ended::NewerRing(version)),
                }
            }
            Err(_) if hedge_at.is_some_and(|at| at <= until) && until < read.deadline => {
                hedge_at = None;
                if !shared.hedging.may_hedge() {
                    continue;
                }
                GetEvent::Hedge
            }
            Err(_) if slow_at.is_some_and(|at| at <= until) && until < read.deadline => {
                slow_at = None;
                GetEvent::Slow
            }
            Ok(None) | Err(_) => GetEvent::Deadline,
        };
        catching_up |= matches!(event, GetEvent::Partial { .. });
        actions = machine.on(event);
    }
}

/// What one answer means to the machine; or the newer ring that it speaks of.
fn answered(
    shared: &Shared,
    targets: &mut Targets,
    node: Node,
    outcome: Result<Bytes, CallError>,
) -> Result<GetEvent<Version>, u64> {
    let answer = outcome.and_then(|bytes| Answer::decode(bytes).map_err(|_| CallError::Lost));
    let (what, container) = match answer {
        Ok(Answer { reply: Reply::Absent, .. }) => ("answered", Some(Container::default())),
        Ok(Answer { reply: Reply::Partial(bytes), .. }) if bytes.is_empty() => {
            targets.note(node, "catching up");
            return Ok(GetEvent::Partial { node, container: Container::default() });
        }
        Ok(Answer { reply: Reply::Partial(bytes), .. }) => match Record::decode(&bytes) {
            Ok(record) => {
                targets.note(node, "catching up");
                return Ok(GetEvent::Partial { node, container: record.container });
            }
            Err(error) => damaged(&error),
        },
        Ok(Answer { reply: Reply::Found(bytes), .. }) => match Record::decode(&bytes) {
            Ok(record) => ("answered", Some(record.container)),
            Err(error) => damaged(&error),
        },
        Ok(Answer { reply: Reply::Refused(Refusal::StaleRing | Refusal::NotAHome), ring_version })
            if ring_version > targets.ring_version =>
        {
            return Err(ring_version);
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
        // A home that others stood in for may lack what they keep for it, and not know that.
        Some(container) if targets.is_doubted(node, &shared.trust) => GetEvent::Partial { node, container },
        Some(container) => GetEvent::Answered { node, container },
        None => GetEvent::Failed { node },
    })
}

fn damaged(error: &DecodeError) -> (&'static str, Option<Container<Version>>) {
    tracing::error!(%error, "a storage node sent a damaged record");
    ("sent a damaged record", None)
}

fn settle(shared: &Shared, read: &Read, targets: &Targets, outcome: GetOutcome<Version>) -> Seen {
    let GetOutcome { merged, tally, stale, below_floor } = outcome;
    // Without the values there is nothing to repair with.
    if !stale.is_empty() && read.values {
        let (namespace, key) = (read.namespace.clone(), read.key.clone());
        let record = Record { namespace, key, container: merged.clone() }.encode();
        let addresses = stale.iter().map(|node| targets.address(*node).to_owned()).collect();
        shared.repairs.offer(Repair { ring_version: targets.ring_version, record, addresses });
    }
    Seen { container: merged, n: targets.readable().len(), tally, below_floor, degraded: None }
}
