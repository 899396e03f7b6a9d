//! One home compares what it holds with another (Dynamo, SOSP 2007, section 4.7): sums from the root down, then clocks,
//! then records, each way.
//!
//! Writes in flight look like damage for a moment. So each level is looked at twice, and what differs only once is left
//! alone; of a key only what the other still lacks the second time is sent.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use cartwheel_core::clock::Clock;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::merkle::{LEAF_BITS, MAX_DEPTH, Span, find};
use cartwheel_core::quorum::Durability;
use cartwheel_core::wire::{
    Answer, Call, MAX_FETCHED, MAX_SPANS, MAX_SUMS, Refusal, Repair, Reply, Request, split_page,
};

use crate::copier::{Copier, PAGE_BYTES};

/// How long a write may be on its way from one home to the other.
const IN_FLIGHT: Duration = Duration::from_millis(300);
/// How often a call is made again that was refused for want of room.
const MAX_TRIES: usize = 20;
/// Keys in a span that are listed rather than summed up once more.
const FEW: u64 = 8;
/// Keys that are looked at twice and then sent before others are looked at: no more than one question may name.
const BATCH: usize = MAX_SPANS;

/// What came of an exchange.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Exchanged {
    /// Keys that one of the two lacked something of.
    pub(crate) differing: u64,
    /// Records taken in.
    pub(crate) pulled: u64,
    /// Records sent.
    pub(crate) pushed: u64,
    /// Bytes of all calls and answers.
    pub(crate) bytes: u64,
}

impl std::ops::AddAssign for Exchanged {
    fn add_assign(&mut self, other: Self) {
        self.differing += other.differing;
        self.pulled += other.pulled;
        self.pushed += other.pushed;
        self.bytes += other.bytes;
    }
}

/// A comparison with one other home.
pub(crate) struct Exchange<'a> {
    copier: &'a Copier,
    /// Where the other is called.
    address: &'a str,
    ring_version: u64,
    /// Takes nothing.
    only_gives: bool,
    pub(crate) done: Exchanged,
}

/// A key, what the other has seen of it, and what this node has.
type Differing = (KeyHash, Clock, Clock);

impl<'a> Exchange<'a> {
    pub(crate) fn new(copier: &'a Copier, address: &'a str, ring_version: u64) -> Self {
        Self { copier, address, ring_version, only_gives: false, done: Exchanged::default() }
    }

    /// One in which this node takes nothing: it is no home of what is compared, and is about to forget it.
    pub(crate) fn giving(copier: &'a Copier, address: &'a str, ring_version: u64) -> Self {
        Self { only_gives: true, ..Self::new(copier, address, ring_version) }
    }

    /// Which of these spans the two differ in, now and a moment later. They ascend and have the same number of bits.
    ///
    /// # Errors
    /// The other's, as a sentence.
    pub(crate) async fn differing(&mut self, spans: &[Span], depth: u8) -> Result<Vec<Span>, String> {
        let now = self.differing_now(spans, depth).await?;
        if now.is_empty() {
            return Ok(now);
        }
        let parent = |part: &Span| find(spans, part.first()).map(|at| spans[at]);
        let mut parents: Vec<Span> = now.iter().filter_map(parent).collect();
        parents.dedup();
        tokio::time::sleep(IN_FLIGHT).await;
        let later = self.differing_now(&parents, depth).await?;
        Ok(later.into_iter().filter(|part| now.binary_search(part).is_ok()).collect())
    }

    async fn differing_now(&mut self, spans: &[Span], depth: u8) -> Result<Vec<Span>, String> {
        let at_once = (MAX_SUMS >> depth).clamp(1, MAX_SPANS);
        let mut differing = Vec::new();
        for spans in spans.chunks(at_once) {
            let asked = Repair::Sums { spans: spans.to_vec(), depth };
            let Reply::Sums(theirs) = self.ask(asked).await? else { return Err(self.odd("sums")) };
            let ours = self.copier.engine.sums(spans, depth).await;
            if theirs.len() != ours.len() {
                return Err(self.odd("sums"));
            }
            let parts = spans.iter().flat_map(|span| span.parts(depth));
            let pairs = parts.zip(theirs.into_iter().zip(ours));
            differing.extend(pairs.filter(|(_, (theirs, ours))| theirs != ours).map(|(part, _)| part));
        }
        Ok(differing)
    }

    /// Brings what both hold of a partition, or of another span above the tree's leaves, together. Its own sums are not
    /// compared: they were seen to differ.
    ///
    /// # Errors
    /// As [`Exchange::differing`]; what was exchanged until then stays.
    pub(crate) async fn repair(&mut self, span: Span) -> Result<(), String> {
        let mut spans = vec![span];
        while let Some(first) = spans.first() {
            let keys = self.copier.engine.figures().keys as u64;
            // Hashes are spread evenly, but over the partitions that this node holds: an estimate is enough.
            let each = keys.checked_shr(first.bits().into()).unwrap_or(0);
            if each <= FEW {
                return self.keys(&spans).await;
            }
            let wanted = u8::try_from((each / FEW).ilog2() + 1).unwrap_or(MAX_DEPTH).min(MAX_DEPTH);
            // The tree's own sums cost nothing; those below its leaves are taken from the clocks.
            let to_leaves = LEAF_BITS.saturating_sub(first.bits());
            let depth = if to_leaves > 0 { wanted.min(to_leaves) } else { wanted };
            spans = self.differing(&spans, depth).await?;
        }
        Ok(())
    }

    /// Compares the keys in these spans one by one.
    async fn keys(&mut self, spans: &[Span]) -> Result<(), String> {
        for spans in spans.chunks(MAX_SPANS) {
            let mut after = None;
            loop {
                let (differing, cut) = self.page_of_keys(spans, after).await?;
                for batch in differing.chunks(BATCH) {
                    self.mend(batch).await?;
                }
                let Some(cut) = cut else { break };
                after = Some(cut);
            }
        }
        Ok(())
    }

    /// The keys after `after` that differ, up to a hash that is returned, or to the end.
    async fn page_of_keys(
        &mut self,
        spans: &[Span],
        after: Option<KeyHash>,
    ) -> Result<(Vec<Differing>, Option<KeyHash>), String> {
        let (theirs, theirs_more) = self.clocks(spans, after).await?;
        let budget = usize::try_from(PAGE_BYTES).unwrap_or(usize::MAX);
        let (ours, ours_more) = self.copier.engine.clocks(spans, after, budget).await;
        let end =
            |clocks: &[(KeyHash, Clock)], more: bool| clocks.last().filter(|_| more).map(|(hash, _)| *hash);
        let cut = [end(&theirs, theirs_more), end(&ours, ours_more)].into_iter().flatten().min();
        let mut both: BTreeMap<KeyHash, (Clock, Clock)> = BTreeMap::new();
        let within = |hash: &KeyHash| cut.is_none_or(|cut| *hash <= cut);
        for (hash, seen) in theirs.into_iter().filter(|(hash, _)| within(hash)) {
            both.entry(hash).or_default().0 = seen;
        }
        for (hash, seen) in ours.into_iter().filter(|(hash, _)| within(hash)) {
            both.entry(hash).or_default().1 = seen;
        }
        let differing = both.into_iter().filter(|(_, (theirs, ours))| theirs != ours);
        Ok((differing.map(|(hash, (theirs, ours))| (hash, theirs, ours)).collect(), cut))
    }

    async fn clocks(
        &mut self,
        spans: &[Span],
        after: Option<KeyHash>,
    ) -> Result<(Vec<(KeyHash, Clock)>, bool), String> {
        let asked = Repair::Clocks { spans: spans.to_vec(), after, bytes: PAGE_BYTES };
        let Reply::Clocks { more, clocks } = self.ask(asked).await? else { return Err(self.odd("clocks")) };
        let ascending = clocks.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let fresh = clocks.first().is_none_or(|(first, _)| after.is_none_or(|after| *first > after));
        if !ascending || !fresh || (more && clocks.is_empty()) {
            return Err(self.odd("clocks"));
        }
        Ok((clocks, more))
    }

    /// Sends each what it lacks of these keys, and still lacks after a moment.
    async fn mend(&mut self, keys: &[Differing]) -> Result<(), String> {
        tokio::time::sleep(IN_FLIGHT).await;
        let spans: Vec<Span> = keys.iter().map(|(hash, ..)| Span::of(*hash, 128)).collect();
        let mut theirs_now = BTreeMap::new();
        for spans in spans.chunks(MAX_SPANS) {
            let mut after = None;
            loop {
                let (clocks, more) = self.clocks(spans, after).await?;
                after = clocks.last().map(|(hash, _)| *hash);
                theirs_now.extend(clocks);
                if !more {
                    break;
                }
            }
        }
        let (mut lacking, mut lacked) = (Vec::new(), Vec::new());
        let nothing = Clock::new();
        for (hash, theirs, ours) in keys {
            let theirs_now = theirs_now.get(hash).unwrap_or(&nothing);
            let wants = !self.only_gives
                && !self.copier.engine.seen(*hash).covers(theirs)
                && !self.is_buried(*hash, theirs).await?;
            // Of a key that the other has nothing of only the other knows whether it has forgotten its deletion.
            let forgotten = !self.only_gives && theirs_now.is_empty() && self.copier.engine.is_dead(*hash);
            let gives = !theirs_now.covers(ours) && !forgotten;
            self.done.differing += u64::from(wants || gives);
            if wants {
                lacking.push(*hash);
            }
            if gives {
                lacked.push(*hash);
            }
        }
        self.pull(lacking).await?;
        self.push(lacked).await
    }

    /// Has this node forgotten a deletion that says as much?
    async fn is_buried(&self, hash: KeyHash, theirs: &Clock) -> Result<bool, String> {
        if !self.copier.engine.knows_nothing_of(hash) {
            return Ok(false);
        }
        let buried = self.copier.engine.graves.find(hash).await.map_err(|e| e.to_string())?;
        Ok(buried.iter().any(|record| record.container.seen().covers(theirs)))
    }

    /// Takes what the other holds of these keys.
    async fn pull(&mut self, mut hashes: Vec<KeyHash>) -> Result<(), String> {
        while !hashes.is_empty() {
            let asked: Vec<KeyHash> = hashes.iter().copied().take(MAX_FETCHED).collect();
            let fetch = Repair::Fetch { hashes: asked.clone(), bytes: PAGE_BYTES };
            let Reply::Page { more, records } = self.ask(fetch).await? else {
                return Err(self.odd("records"));
            };
            let records = split_page(records).map_err(|e| e.to_string())?;
            if more && records.is_empty() {
                return Err(self.odd("records"));
            }
            let mut last = None;
            for record in records {
                last = Some(self.copier.keep(&record, Durability::Memory).await?.hash).max(last);
                self.done.pulled += 1;
            }
            // Of a key that it has nothing of any more there is no record.
            let upto = if more { last } else { asked.last().copied() };
            hashes.retain(|hash| Some(*hash) > upto);
        }
        Ok(())
    }

    /// Sends all that this node holds of these keys.
    async fn push(&mut self, hashes: Vec<KeyHash>) -> Result<(), String> {
        for hash in hashes {
            for record in records_of(&self.copier.engine, hash).await? {
                let request = Request::Replicate { durability: Durability::Memory, hint_for: None, record };
                match self.call(request).await? {
                    Reply::Acked { .. } | Reply::Extra { .. } => self.done.pushed += 1,
                    other => return Err(format!("{} answered {other:?}", self.address)),
                }
            }
        }
        Ok(())
    }

    async fn ask(&mut self, asked: Repair) -> Result<Reply, String> {
        self.call(Request::Repair(asked)).await
    }

    async fn call(&mut self, request: Request) -> Result<Reply, String> {
        for _ in 0..MAX_TRIES {
            let call = Call { ring_version: self.ring_version, request: request.clone() };
            let reply = self.copier.call(self.address, self.ring_version, request.clone()).await?;
            let answer = Answer { ring_version: 0, reply };
            let bytes = length(&call.encode()) + length(&answer.encode());
            self.done.bytes += bytes as u64;
            self.copier.pace.turn(bytes).await;
            match answer.reply {
                Reply::Refused(Refusal::Overloaded) => tokio::time::sleep(IN_FLIGHT).await,
                Reply::Refused(refusal) => return Err(format!("{} refused: {refusal:?}", self.address)),
                reply => return Ok(reply),
            }
        }
        Err(format!("{} is overloaded", self.address))
    }

    fn odd(&self, what: &str) -> String {
        format!("{} did not answer with {what} as asked", self.address)
    }
}

fn length((head, body): &(Bytes, Bytes)) -> usize {
    head.len() + body.len()
}

/// All that this node holds of the keys of one hash.
pub(crate) async fn records_of(engine: &crate::engine::Engine, hash: KeyHash) -> Result<Vec<Bytes>, String> {
    let mut records = Vec::new();
    let mut after = None;
    loop {
        let page = engine.scan(hash, hash, after.as_ref(), usize::MAX / 2, None).await;
        let (page, more) = page.map_err(|e| e.to_string())?;
        records.extend(page);
        let Some(last) = records.last().filter(|_| more) else { return Ok(records) };
        let (namespace, key) = cartwheel_core::record::Record::decode_key(last).map_err(|e| e.to_string())?;
        after = Some(crate::memtable::RecordKey::new(hash, &namespace, &key));
    }
}

#[cfg(test)]
mod tests;
