//! Standing in for a home that a gateway can't reach.
//!
//! A node keeps nothing for a home that it can reach itself: it passes writes and reads on. Only a home that does not
//! answer here either is believed away, and then it is until it says that it is back. So each hint is kept by a node
//! that the home will ask before it counts again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_cluster::CallError;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Record;
use cartwheel_core::wire::{Call, Refusal, Reply, Request};

use super::{Inner, Range, reached};
use crate::engine::MintRequest;
use crate::hints::{HintMint, Presence};
use crate::memtable::RecordKey;

/// How long a home is waited for before it is believed away. Longer than a home that is stopped needs to notice that
/// it was ([`crate::standing`]).
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a hint is tried again because its home came and went.
const TRIES: usize = 4;

/// What came of asking a home itself.
enum Passed {
    Answer(Reply),
    /// It did not answer, though it was given the time.
    Gone,
    /// There was too little time.
    Late,
}

/// A read on behalf of a home.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) home: NodeId,
    pub(super) namespace: Namespace,
    pub(super) key: Key,
    pub(super) values: bool,
}

impl Inner {
    /// Asks the home itself.
    async fn pass_on(&self, home: &NodeId, version: u64, request: Request, deadline: Instant) -> Passed {
        let view = self.follower.view();
        let Some(member) = view.as_ref().and_then(|view| view.document.member(home)) else {
            return Passed::Gone;
        };
        let call = Call { ring_version: version, request };
        let patience = Instant::now() + PATIENCE;
        let until = deadline.min(patience);
        let mut answer = self.peers.call(&member.address, &call, until).await;
        // The connection broke: the home may have been started again a moment ago. All that is passed on can be
        // said twice.
        if matches!(answer, Err(CallError::Lost)) && Instant::now() < until {
            answer = self.peers.call(&member.address, &call, until).await;
        }
        match answer {
            Ok(answer) => Passed::Answer(answer.reply),
            // Somebody was in a hurry: that says nothing of the home.
            Err(CallError::Lost) if until < patience => Passed::Late,
            Err(_) => Passed::Gone,
        }
    }

    /// Keeps a record for `home`, unless the home takes it itself.
    pub(super) async fn keep_for(
        self: Arc<Self>,
        home: &NodeId,
        bytes: &Bytes,
        durability: Durability,
        ring_version: u64,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        let record = Record::decode(bytes).map_err(|e| Refusal::Malformed(e.to_string()))?;
        for _ in 0..TRIES {
            let Presence::Present(seen) = self.hints.presence(home) else {
                match self.keep(home, &record, false, durability, ring_version).await? {
                    Some(reached) => return Ok(Reply::Acked { reached }),
                    None => continue,
                }
            };
            let request = Request::Replicate { durability, hint_for: None, record: bytes.clone() };
            match self.pass_on(home, ring_version, request, deadline).await {
                Passed::Answer(Reply::Acked { reached }) => return Ok(Reply::Acked { reached }),
                // It has the record but does not count, and asks this node again before it does.
                Passed::Answer(Reply::Extra { .. }) => {
                    if let Some(reached) = self.keep(home, &record, true, durability, ring_version).await? {
                        return Ok(Reply::Acked { reached });
                    }
                }
                // It is there and decides for itself: to keep for it what it lacks would take its vote away, and
                // where all have no room, all votes.
                Passed::Answer(Reply::Refused(refusal)) => return Err(refusal),
                Passed::Answer(_) => return Err(Refusal::Unable(format!("{home} gave no sense"))),
                Passed::Late => return Err(Refusal::Late),
                Passed::Gone => self.hints.believe_away(home, seen),
            }
        }
        Err(Refusal::Overloaded)
    }

    /// Keeps a record; `None` if its home came back in this moment.
    async fn keep(
        &self,
        home: &NodeId,
        record: &Record,
        holds_it: bool,
        durability: Durability,
        ring_version: u64,
    ) -> Result<Option<Durability>, Refusal> {
        let hash = self.hash(&record.namespace, &record.key);
        let (sender, word) = tokio::sync::oneshot::channel();
        let done = Box::new(move |reached| {
            let _ = sender.send(reached);
        });
        let keep = || self.hints.keep(home, hash, record, holds_it, durability, done);
        let kept = self.kept(ring_version, hash, keep)?;
        Ok(if kept { Some(reached(word).await) } else { None })
    }

    /// Keeps something for others, if this node still may.
    fn kept<T>(
        &self,
        ring_version: u64,
        hash: KeyHash,
        keep: impl FnOnce() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        if self.engine.is_fenced() || self.engine.is_closed() {
            return Err(Refusal::Unable("this process keeps nothing any more".to_owned()));
        }
        self.write(ring_version, hash, |_: Range| true, keep)
    }

    /// Mints on behalf of `home`. A home that can be reached after all gets the version before the answer is given.
    pub(super) async fn mint_for(
        self: Arc<Self>,
        home: NodeId,
        request: MintRequest,
        ring_version: u64,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        let key = RecordKey::new(request.hash, &request.namespace, &request.key);
        let known = self.hints.read_stored(&key).await.map_err(Refusal::Unable)?;
        let (sender, word) = tokio::sync::oneshot::channel();
        let done = Box::new(move |reached| {
            let _ = sender.send(reached);
        });
        let mint = || self.hints.mint(&home, &request, known, done);
        let (dot, reached, record, repeated) = match self.kept(ring_version, request.hash, mint)? {
            HintMint::Made(dot, delta) => (dot, reached(word).await, delta, false),
            HintMint::Repeated(dot, record) => (dot, Durability::Memory, record, true),
        };
        let bytes = record.encode();
        if let Presence::Present(seen) = self.hints.presence(&home) {
            let durability = Durability::Memory;
            let request = Request::Replicate { durability, hint_for: None, record: bytes.clone() };
            // Whatever a home that is there says: it is told what is kept for it.
            if let Passed::Gone = self.pass_on(&home, ring_version, request, deadline).await {
                self.hints.believe_away(&home, seen);
            }
        }
        Ok(Reply::Minted { dot, reached, repeated: if repeated { bytes } else { Bytes::new() } })
    }

    /// Answers a read on behalf of `home`: what the home says if it can be reached, with what is kept for it.
    pub(super) async fn read_for(
        self: Arc<Self>,
        question: Question,
        ring_version: u64,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        for _ in 0..TRIES {
            let before = self.hints.presence(&question.home);
            let answer = self.read_once(&question, before, ring_version, deadline).await?;
            // Otherwise it came back meanwhile, and took what was looked for here.
            if self.hints.presence(&question.home) == before {
                return Ok(answer);
            }
        }
        Err(Refusal::Overloaded)
    }

    async fn read_once(
        &self,
        question: &Question,
        presence: Presence,
        ring_version: u64,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        let Question { home, namespace, key, values } = question;
        let mut known = None;
        if presence != Presence::Away {
            let (namespace, key) = (namespace.clone(), key.clone());
            let request = Request::Read { namespace, key, values: *values, stands_for: None };
            match self.pass_on(home, ring_version, request, deadline).await {
                Passed::Answer(reply @ (Reply::Found(_) | Reply::Absent)) => return Ok(reply),
                Passed::Answer(Reply::Refused(Refusal::StaleRing)) => return Err(Refusal::StaleRing),
                Passed::Answer(Reply::Partial(record)) if !record.is_empty() => {
                    known = Some(Record::decode(&record).map_err(|e| Refusal::Unable(e.to_string()))?);
                }
                _ => {}
            }
        }
        let at = RecordKey::new(self.hash(namespace, key), namespace, key);
        let mut kept = self.hints.read(&at).await.map_err(Refusal::Unable)?;
        if let Some(known) = known {
            kept.sync(known.container);
        }
        Ok(match at.record(kept) {
            None => Reply::Absent,
            Some(record) if *values => Reply::Found(record.encode()),
            Some(record) => Reply::Found(record.without_values().encode()),
        })
    }

    /// `home` has everything up to `generation` in the bucket.
    pub(super) async fn let_go_of_hints(&self, home: &NodeId, generation: u64) -> Result<Reply, Refusal> {
        match self.hints.took(home, generation).await {
            Ok(()) => Ok(Reply::Acked { reached: Durability::Bucket }),
            Err(error) => {
                if let crate::epoch::LeaseError::TakenOver(_) = error {
                    tracing::error!(%error, "this process steps down; it accepts no more writes");
                    self.engine.fence();
                }
                Err(Refusal::Unable(error.to_string()))
            }
        }
    }
}
