//! One write.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use cartwheel_cluster::{CallError, ReplyTo};
use cartwheel_core::clock::{Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::put::{PutAction, PutEvent, PutMachine, PutOutcome};
use cartwheel_core::quorum::{Applied, Durability, Failure, Node, Tally};
use cartwheel_core::record::{Record, Version};
use cartwheel_core::wire::{Answer, Call, Pieces, Precondition, Refusal, Reply, Request};

use super::{RING_CHANGES, Targets, newer_view, usable_view};
use crate::Shared;
use crate::problem::Problem;

/// A mint gets this part of the time that is left, so that others can still be asked.
const MINT_SHARE: u32 = 3;
/// The longest that one mint is waited for.
const MAX_MINT_WAIT: Duration = Duration::from_secs(2);
/// Tags of replications; those of mints are the node's number alone.
const REPLICATION: u32 = 1 << 16;

/// A write to be made.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) namespace: Namespace,
    pub(crate) key: Key,
    pub(crate) hash: KeyHash,
    pub(crate) version: Version,
    pub(crate) w: usize,
    pub(crate) durability: Durability,
    pub(crate) precondition: Precondition,
    pub(crate) max_siblings: u32,
    pub(crate) deadline: Instant,
}

/// A write that was acknowledged.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) dot: Dot,
    pub(crate) n: usize,
    pub(crate) tally: Tally,
    pub(crate) reached: Durability,
}

/// Why a write was not acknowledged.
#[derive(Debug)]
pub(crate) enum Unwritten {
    /// Too few replicas.
    Problem(Problem),
    /// The precondition does not hold; the replica's clock, and whether another replica may have taken it.
    Precondition(Clock, Applied),
    /// Too many siblings; the replica's clock, and whether another replica may have taken it.
    TooManySiblings(Clock, Applied),
}

/// Makes the write.
pub(crate) async fn put(shared: &Shared, write: &Write) -> Result<Written, Unwritten> {
    let mut before = None;
    for _ in 0..RING_CHANGES {
        match Attempt::new(shared, write, before.take())?.run().await {
            Ended::Answer(answer) => return answer,
            Ended::NewerRing(version, begun) => {
                before = Some(begun);
                newer_view(shared, version, write.deadline).await;
            }
        }
    }
    let problem = Problem::not_ready("the ring kept changing under this request");
    Err(Unwritten::Problem(problem.applied(Applied::Unknown)))
}

enum Ended {
    Answer(Result<Written, Unwritten>),
    /// There is a newer ring; and what was begun under this one.
    NewerRing(u64, Option<Minted>),
}

/// A version that was minted.
#[derive(Debug, Clone)]
struct Minted {
    dot: Dot,
    delta: Bytes,
    reached: Durability,
}

/// The write under one ring version.
struct Attempt<'a> {
    shared: &'a Shared,
    write: &'a Write,
    targets: Targets,
    machine: PutMachine,
    sender: mpsc::UnboundedSender<cartwheel_cluster::Outcome>,
    answers: mpsc::UnboundedReceiver<cartwheel_cluster::Outcome>,
    mint: Pieces,
    /// The mint being waited for, and until when.
    minting: Option<(Node, Instant)>,
    minted: Option<Minted>,
    /// What an earlier ring's attempt left; `None` on the first.
    before: Option<Option<Minted>>,
    /// Another replica may have taken the write in: a refusal no longer means that nothing was applied.
    doubt: bool,
}

impl<'a> Attempt<'a> {
    fn new(shared: &'a Shared, write: &'a Write, before: Option<Option<Minted>>) -> Result<Self, Unwritten> {
        let applied = if before.is_some() { Applied::Unknown } else { Applied::No };
        let view = usable_view(shared).map_err(|p| Unwritten::Problem(p.applied(applied)))?;
        let targets = Targets::of(&view, write.hash);
        let machine = PutMachine::new(targets.homes.clone(), Vec::new(), write.w, write.durability)
            .with_next_homes(targets.next_homes.clone());
        let call = Call {
            ring_version: targets.ring_version,
            request: Request::Mint {
                namespace: write.namespace.clone(),
                key: write.key.clone(),
                version: write.version.clone(),
                // The dot is all that the others wait for; how durable it is there is asked for apart.
                durability: Durability::Memory,
                precondition: write.precondition.clone(),
                max_siblings: write.max_siblings,
                hint_for: None,
            },
        };
        let (sender, answers) = mpsc::unbounded_channel();
        let mint = call.encode();
        Ok(Self {
            shared,
            write,
            targets,
            machine,
            sender,
            answers,
            mint,
            minting: None,
            minted: None,
            doubt: before.is_some(),
            before,
        })
    }

    fn start(&mut self) -> Vec<PutAction> {
        let Some(before) = self.before.take() else { return self.machine.start() };
        let minter = before.map(|minted| {
            let node = self.targets.node(&minted.dot.actor.node);
            let reached = minted.reached;
            self.minted = Some(minted);
            (node, reached)
        });
        self.machine.resume(minter)
    }

    async fn run(mut self) -> Ended {
        let mut actions = self.start();
        loop {
            for action in std::mem::take(&mut actions) {
                match action {
                    PutAction::Mint { node, .. } => self.send_mint(node),
                    PutAction::Replicate { node, .. } => self.send_delta(node),
                    PutAction::Confirm { node } => self.send_confirm(node),
                    PutAction::Answer(outcome) => return Ended::Answer(self.answer(outcome)),
                }
            }
            let event = match self.next_event().await {
                Next::Event(event) => event,
                Next::Ignored => continue,
                Next::Ended(ended) => return ended,
            };
            self.doubt |= matches!(event, PutEvent::MintFailed { failure: Failure::Unknown, .. });
            actions = self.machine.on(event);
        }
    }

    fn send(&self, node: Node, tag: u32, call: Pieces, deadline: Instant) {
        let reply_to = ReplyTo { sender: self.sender.clone(), tag: tag | u32::from(node) };
        self.shared.peers.submit(self.targets.address(node), call, deadline, reply_to);
    }

    fn send_mint(&mut self, node: Node) {
        let now = Instant::now();
        let left = self.write.deadline.saturating_duration_since(now);
        let wait = (left / MINT_SHARE).min(MAX_MINT_WAIT);
        self.minting = Some((node, now + wait));
        self.targets.note(node, "asked to mint; no answer");
        self.send(node, 0, self.mint.clone(), self.write.deadline);
    }

    fn send_delta(&mut self, node: Node) {
        let request = Request::Replicate {
            durability: self.write.durability,
            hint_for: None,
            record: self.minted.as_ref().map(|m| m.delta.clone()).unwrap_or_default(),
        };
        let call = Call { ring_version: self.targets.ring_version, request };
        self.targets.note(node, "sent the version; no answer");
        self.send(node, REPLICATION, call.encode(), self.write.deadline);
    }

    fn send_confirm(&mut self, node: Node) {
        let Some(minted) = &self.minted else { return };
        let request = Request::Confirm {
            namespace: self.write.namespace.clone(),
            key: self.write.key.clone(),
            dot: minted.dot.clone(),
            durability: self.write.durability,
        };
        let call = Call { ring_version: self.targets.ring_version, request };
        self.targets.note(node, "minted; not yet as durable as asked");
        self.send(node, REPLICATION, call.encode(), self.write.deadline);
    }

    async fn next_event(&mut self) -> Next {
        let until = self.minting.map_or(self.write.deadline, |(_, until)| until.min(self.write.deadline));
        let Ok(received) = tokio::time::timeout_at(until, self.answers.recv()).await else {
            return match self.minting.take() {
                Some((node, until)) if until < self.write.deadline => {
                    Next::Event(PutEvent::MintFailed { node, failure: Failure::Unknown })
                }
                _ => Next::Event(PutEvent::Deadline),
            };
        };
        // The machine keeps a sender, so the channel never ends.
        let Some((tag, outcome)) = received else { return Next::Event(PutEvent::Deadline) };
        let node = Node::try_from(tag & u32::from(Node::MAX)).unwrap_or(Node::MAX);
        let answer = match outcome {
            Ok(bytes) => Answer::decode(bytes).map_err(|_| CallError::Lost),
            Err(error) => Err(error),
        };
        if tag & REPLICATION == 0 {
            self.mint_answered(node, answer)
        } else {
            self.delta_answered(node, &answer)
        }
    }

    fn mint_answered(&mut self, node: Node, answer: Result<Answer, CallError>) -> Next {
        // The late answer of a node that was given up: its dot is not the one that the others will hold.
        if self.minting.is_none_or(|(asked, _)| asked != node) {
            return Next::Ignored;
        }
        let failed = |failure| Next::Event(PutEvent::MintFailed { node, failure });
        let applied = if self.doubt { Applied::Unknown } else { Applied::No };
        let answer = match answer {
            Ok(answer) => answer,
            Err(CallError::NotSent) => {
                self.targets.note(node, "not reachable");
                return failed(Failure::NotApplied);
            }
            Err(CallError::Lost) => return failed(Failure::Unknown),
        };
        match answer.reply {
            Reply::Minted { dot, reached, repeated } => {
                self.targets.note(node, "acknowledged");
                self.minting = None;
                let delta = if repeated.is_empty() { self.encode_delta(&dot) } else { repeated };
                self.minted = Some(Minted { dot, delta, reached });
                Next::Event(PutEvent::Minted { node, reached })
            }
            Reply::Refused(Refusal::Precondition(clock)) => {
                Next::Ended(Ended::Answer(Err(Unwritten::Precondition(clock, applied))))
            }
            Reply::Refused(Refusal::TooManySiblings(clock)) => {
                Next::Ended(Ended::Answer(Err(Unwritten::TooManySiblings(clock, applied))))
            }
            Reply::Refused(Refusal::StaleRing | Refusal::NotAHome)
                if answer.ring_version > self.targets.ring_version =>
            {
                Next::Ended(Ended::NewerRing(answer.ring_version, self.minted.take()))
            }
            // Unable comes from a disk that failed after the version was made.
            Reply::Refused(Refusal::Unable(_)) => {
                self.targets.note(node, "unable");
                failed(Failure::Unknown)
            }
            Reply::Refused(Refusal::Overloaded) => {
                self.targets.note(node, "overloaded");
                failed(Failure::NotApplied)
            }
            _ => {
                self.targets.note(node, "refused");
                failed(Failure::NotApplied)
            }
        }
    }

    fn delta_answered(&mut self, node: Node, answer: &Result<Answer, CallError>) -> Next {
        let (outcome, event) = match answer {
            Ok(Answer { reply: Reply::Acked { reached }, .. }) => {
                ("acknowledged", PutEvent::Acked { node, reached: *reached })
            }
            Ok(Answer { reply: Reply::Refused(Refusal::StaleRing | Refusal::NotAHome), ring_version })
                if *ring_version > self.targets.ring_version =>
            {
                return Next::Ended(Ended::NewerRing(*ring_version, self.minted.take()));
            }
            Ok(Answer { reply: Reply::Refused(Refusal::Overloaded), .. }) => {
                ("overloaded", PutEvent::ReplicaFailed { node })
            }
            Ok(_) => ("refused", PutEvent::ReplicaFailed { node }),
            Err(CallError::NotSent) => ("not reachable", PutEvent::ReplicaFailed { node }),
            Err(CallError::Lost) => ("answer lost", PutEvent::ReplicaFailed { node }),
        };
        self.targets.note(node, outcome);
        Next::Event(event)
    }

    fn encode_delta(&self, dot: &Dot) -> Bytes {
        let version = self.write.version.clone();
        let container = Container::delta(&self.write.version.context, dot.clone(), version);
        let (namespace, key) = (self.write.namespace.clone(), self.write.key.clone());
        Record { namespace, key, container }.encode()
    }

    fn answer(&mut self, outcome: PutOutcome) -> Result<Written, Unwritten> {
        let n = self.targets.homes.len();
        match (outcome, self.minted.take()) {
            (PutOutcome::Done { tally, reached }, Some(minted)) => {
                Ok(Written { dot: minted.dot, n, tally, reached })
            }
            (PutOutcome::Done { tally, .. }, None) => Err(self.unwritten(tally, Applied::Unknown, false)),
            (PutOutcome::Failed { tally, applied, late }, _) => Err(self.unwritten(tally, applied, late)),
        }
    }

    fn unwritten(&self, tally: Tally, applied: Applied, late: bool) -> Unwritten {
        let missed = self.targets.missed(self.write.w, tally.answered());
        Unwritten::Problem(Problem::quorum_missed(missed, late).applied(applied))
    }
}

enum Next {
    Event(PutEvent),
    Ignored,
    Ended(Ended),
}
