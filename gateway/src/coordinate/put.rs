//! One write.

mod last_resort;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use cartwheel_cluster::{CallError, ReplyTo};
use cartwheel_core::clock::{Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::put::{PutAction, PutEvent, PutMachine, PutOutcome};
use cartwheel_core::quorum::{Applied, Durability, Failure, Node, Tally};
use cartwheel_core::record::{Record, Version};
use cartwheel_core::trace::TraceContext;
use cartwheel_core::wire::{Answer, Call, Pieces, Precondition, Refusal, Reply, Request};
use cartwheel_telemetry::trace;

use super::{CATCHING_UP_PAUSE, Degraded, RING_CHANGES, Targets, newer_view, slow_after, usable_view};
use crate::Shared;
use crate::problem::{Missed, Problem};

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
    /// May others stand in for homes that can't be reached?
    pub(crate) sloppy: bool,
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
    pub(crate) degraded: Option<Degraded>,
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

/// Makes the write. Where too few replicas can be reached, it goes to the bucket instead.
pub(crate) async fn put(shared: &Arc<Shared>, write: &Arc<Write>) -> Result<Written, Unwritten> {
    refuse_what_cannot_be(shared, write)?;
    let mut before = None;
    for _ in 0..RING_CHANGES {
        match Attempt::new(shared, write, before.take())?.run().await {
            Ended::Answer(answer) => return answer,
            Ended::Short(short) => return last_resort::to_bucket(shared, write, *short).await,
            Ended::NewerRing(version, begun) => {
                before = Some(begun);
                newer_view(shared, version, write.deadline).await;
            }
        }
    }
    let problem = Problem::not_ready("the ring kept changing under this request");
    Err(Unwritten::Problem(problem.applied(Applied::Unknown)))
}

/// A write that needs the bucket is refused at once where too many of its homes can't put anything there.
fn refuse_what_cannot_be(shared: &Shared, write: &Write) -> Result<(), Unwritten> {
    if write.durability != Durability::Bucket {
        return Ok(());
    }
    let view = usable_view(shared).map_err(|p| Unwritten::Problem(p.applied(Applied::No)))?;
    let targets = Targets::of(&view, write.hash, false);
    let fails = |node: &&Node| {
        let word = targets.id(**node).and_then(|id| shared.gossip.word(id));
        word.is_some_and(|word| word.bucket_fails)
    };
    let failing = targets.homes.iter().filter(fails).count();
    if targets.homes.len() - failing >= write.w {
        return Ok(());
    }
    let problem = Problem::bucket_fails(failing, targets.homes.len());
    Err(Unwritten::Problem(problem.applied(Applied::No)))
}

enum Ended {
    Answer(Result<Written, Unwritten>),
    /// Too few replicas took it.
    Short(Box<Short>),
    /// There is a newer ring; and what was begun under this one.
    NewerRing(u64, Option<Minted>),
}

/// A write that too few replicas took.
struct Short {
    tally: Tally,
    applied: Applied,
    late: bool,
    missed: Missed,
    n: usize,
    homes: Vec<NodeId>,
    minted: Option<Minted>,
}

/// Until when storage nodes are waited for: where the bucket may stand in, a quarter of the time is left for it. Nodes
/// that hang are no reason to refuse a write.
fn give_up(write: &Write) -> Instant {
    let left = write.deadline.saturating_duration_since(Instant::now());
    if write.sloppy { write.deadline - left / 4 } else { write.deadline }
}

/// A version that was minted.
#[derive(Debug, Clone)]
struct Minted {
    dot: Dot,
    delta: Bytes,
    reached: Durability,
}

/// The write under one ring version.
struct Attempt {
    shared: Arc<Shared>,
    write: Arc<Write>,
    targets: Targets,
    machine: PutMachine,
    sender: mpsc::UnboundedSender<cartwheel_cluster::Outcome>,
    answers: mpsc::UnboundedReceiver<cartwheel_cluster::Outcome>,
    /// The first mint, encoded: one of unknown fate is repeated as it was.
    mint: Option<(Asked, Pieces)>,
    /// Until when storage nodes are waited for.
    give_up: Instant,
    /// When replicas that have not answered are slow.
    slow_at: Option<Instant>,
    /// Homes that took the version but are catching up, to be asked again at this time.
    ask_again: Vec<(Node, Instant)>,
    /// Homes that are known to be catching up.
    extras: Vec<Node>,
    /// The mint being waited for, and until when.
    minting: Option<(Node, Instant)>,
    minted: Option<Minted>,
    /// What an earlier ring's attempt left; `None` on the first.
    before: Option<Option<Minted>>,
    /// Another replica may have taken the write in: a refusal no longer means that nothing was applied.
    doubt: bool,
}

impl Attempt {
    fn new(
        shared: &Arc<Shared>,
        write: &Arc<Write>,
        before: Option<Option<Minted>>,
    ) -> Result<Self, Unwritten> {
        let applied = if before.is_some() { Applied::Unknown } else { Applied::No };
        let view = usable_view(shared).map_err(|p| Unwritten::Problem(p.applied(applied)))?;
        let targets = Targets::of(&view, write.hash, write.sloppy);
        let (homes, fallbacks) = (targets.homes.clone(), targets.fallbacks.clone());
        let machine = PutMachine::new(homes, fallbacks, write.w, write.durability)
            .with_next_homes(targets.next_homes.clone());
        let (sender, answers) = mpsc::unbounded_channel();
        Ok(Self {
            shared: Arc::clone(shared),
            write: Arc::clone(write),
            targets,
            machine,
            sender,
            answers,
            mint: None,
            slow_at: Some(slow_after(write.deadline)).filter(|_| write.sloppy),
            give_up: give_up(write),
            ask_again: Vec::new(),
            extras: Vec::new(),
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
            if let Some(outcome) = self.carry_out(std::mem::take(&mut actions)) {
                let ended = self.answer(outcome);
                self.go_on();
                return ended;
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

    /// Does what the machine says; gives what the client is to be told, if it says that.
    fn carry_out(&mut self, actions: Vec<PutAction>) -> Option<PutOutcome> {
        let mut answer = None;
        for action in actions {
            match action {
                PutAction::Mint { node, hint_for, insist } => {
                    self.send_mint(Asked { node, hint_for, insist });
                }
                PutAction::Replicate { node, hint_for } => self.send_delta(node, hint_for),
                PutAction::Confirm { node } => self.send_confirm(node),
                PutAction::AskAgain { node } => {
                    self.ask_again.push((node, Instant::now() + CATCHING_UP_PAUSE));
                }
                PutAction::Answer(outcome) => answer = Some(outcome),
            }
        }
        answer
    }

    /// The client has its answer; the homes that have not answered still get the version, or somebody keeps it for
    /// them, within the request's time.
    fn go_on(mut self) {
        self.give_up = self.write.deadline;
        if self.machine.is_idle() || self.minted.is_none() {
            return;
        }
        // Beyond that many it is left to the next read.
        let Ok(place) = Arc::clone(&self.shared.going_on).try_acquire_owned() else { return };
        trace::spawn(async move {
            while !self.machine.is_idle() && Instant::now() < self.write.deadline {
                match self.next_event().await {
                    Next::Event(event) => {
                        let actions = self.machine.on(event);
                        self.carry_out(actions);
                    }
                    Next::Ignored => {}
                    Next::Ended(_) => break,
                }
            }
            drop(place);
        });
    }

    fn send(&self, node: Node, tag: u32, call: Pieces, context: Option<TraceContext>) {
        let reply_to = ReplyTo { sender: self.sender.clone(), tag: tag | u32::from(node) };
        let address = self.targets.address(node);
        let submit = || self.shared.peers.submit(address, call, self.write.deadline, reply_to);
        trace::within(context, submit);
    }

    /// Others stand in for this home: until it has taken what they keep, it is not relied on. One that says itself
    /// that it is catching up knows.
    fn doubt(&self, home: Option<Node>) -> Option<NodeId> {
        let node = home?;
        let id = self.targets.id(node)?.clone();
        if !self.extras.contains(&node) {
            self.shared.trust.doubt(&id);
        }
        Some(id)
    }

    fn send_mint(&mut self, asked: Asked) {
        let now = Instant::now();
        let left = self.write.deadline.saturating_duration_since(now);
        let wait = (left / MINT_SHARE).min(MAX_MINT_WAIT);
        self.minting = Some((asked.node, now + wait));
        let hint_for = self.doubt(asked.hint_for);
        let context = self.targets.ask(asked.node, "mint", hint_for.as_ref(), "asked to mint; no answer");
        let call = match &self.mint {
            Some((before, call)) if before.hint_for == asked.hint_for && before.insist == asked.insist => {
                call.clone()
            }
            _ => {
                let request = Request::Mint {
                    namespace: self.write.namespace.clone(),
                    key: self.write.key.clone(),
                    version: self.write.version.clone(),
                    // The dot is all that the others wait for; how durable it is there is asked for apart.
                    durability: Durability::Memory,
                    precondition: self.write.precondition.clone(),
                    max_siblings: self.write.max_siblings,
                    hint_for,
                    insist: asked.insist,
                };
                Call { ring_version: self.targets.ring_version, request }.encode()
            }
        };
        self.mint = Some((asked, call.clone()));
        self.send(asked.node, 0, call, context);
    }

    fn send_delta(&mut self, node: Node, hint_for: Option<Node>) {
        let hint_for = self.doubt(hint_for);
        let unanswered = "sent the version; no answer";
        let context = self.targets.ask(node, "replicate", hint_for.as_ref(), unanswered);
        let request = Request::Replicate {
            durability: self.write.durability,
            hint_for,
            record: self.minted.as_ref().map(|m| m.delta.clone()).unwrap_or_default(),
        };
        let call = Call { ring_version: self.targets.ring_version, request };
        self.send(node, REPLICATION, call.encode(), context);
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
        let context = self.targets.ask(node, "confirm", None, "minted; not yet as durable as asked");
        self.send(node, REPLICATION, call.encode(), context);
    }

    async fn next_event(&mut self) -> Next {
        let mint_until = self.minting.map(|(_, until)| until);
        let again = self.ask_again.iter().map(|(_, at)| *at).min();
        let until = [mint_until, self.slow_at, again].into_iter().flatten().min();
        let until = until.map_or(self.give_up, |until| until.min(self.give_up));
        let Ok(received) = tokio::time::timeout_at(until, self.answers.recv()).await else {
            return self.time_passed(until);
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

    /// Something was waited for until then.
    fn time_passed(&mut self, until: Instant) -> Next {
        if until >= self.give_up {
            return Next::Event(PutEvent::Deadline);
        }
        if let Some((node, _)) = self.minting.take_if(|(_, at)| *at <= until) {
            return Next::Event(PutEvent::MintFailed { node, failure: Failure::Unknown });
        }
        let due: Vec<_> = self.ask_again.extract_if(.., |(_, at)| *at <= until).collect();
        for (node, _) in due {
            self.send_confirm(node);
        }
        if self.slow_at.take_if(|at| *at <= until).is_some() && self.shared.hedging.may_hedge() {
            return Next::Event(PutEvent::Slow);
        }
        Next::Ignored
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
                let counts = !self.targets.is_doubted(node, &self.shared.trust);
                Next::Event(PutEvent::Minted { node, reached, counts })
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
            Reply::Refused(Refusal::CatchingUp) => {
                self.targets.note(node, "catching up");
                failed(Failure::Declined)
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
            Ok(Answer { reply: Reply::Acked { .. }, .. })
                if self.targets.is_doubted(node, &self.shared.trust) =>
            {
                // It holds this write, whatever else it may lack: no new reason to doubt it.
                self.extras.push(node);
                ("not relied on yet", PutEvent::Extra { node })
            }
            Ok(Answer { reply: Reply::Acked { reached }, .. }) if *reached < self.write.durability => {
                ("holds it, less durably than asked", PutEvent::Acked { node, reached: *reached })
            }
            Ok(Answer { reply: Reply::Acked { reached }, .. }) => {
                ("acknowledged", PutEvent::Acked { node, reached: *reached })
            }
            Ok(Answer { reply: Reply::Extra { .. }, .. }) => {
                self.extras.push(node);
                ("catching up", PutEvent::Extra { node })
            }
            Ok(Answer { reply: Reply::Refused(Refusal::StaleRing | Refusal::NotAHome), ring_version })
                if *ring_version > self.targets.ring_version =>
            {
                return Next::Ended(Ended::NewerRing(*ring_version, self.minted.take()));
            }
            Ok(Answer { reply: Reply::Refused(Refusal::Overloaded), .. })
                if !self.shared.hedging.may_hedge() =>
            {
                ("overloaded", PutEvent::NoRoom { node })
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

    fn answer(&mut self, outcome: PutOutcome) -> Ended {
        let n = self.targets.homes.len();
        match (outcome, self.minted.clone()) {
            (PutOutcome::Done { tally, reached }, Some(minted)) => {
                self.shared.hedging.earn();
                Ended::Answer(Ok(Written { dot: minted.dot, n, tally, reached, degraded: None }))
            }
            (PutOutcome::Done { tally, .. }, None) => {
                Ended::Short(Box::new(self.short(tally, Applied::Unknown, false, None)))
            }
            (PutOutcome::Failed { tally, applied, late }, minted) => {
                Ended::Short(Box::new(self.short(tally, applied, late, minted)))
            }
        }
    }

    fn short(&self, tally: Tally, applied: Applied, late: bool, minted: Option<Minted>) -> Short {
        Short {
            tally,
            applied,
            // Given up early: there is time for the bucket.
            late: late && Instant::now() >= self.write.deadline,
            missed: self.targets.missed(self.write.w, tally),
            n: self.targets.homes.len(),
            homes: self.targets.home_ids(),
            minted,
        }
    }
}

/// A mint as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    node: Node,
    hint_for: Option<Node>,
    insist: bool,
}

enum Next {
    Event(PutEvent),
    Ignored,
    Ended(Ended),
}
