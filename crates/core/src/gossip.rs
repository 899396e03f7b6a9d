//! What storage nodes say of themselves and pass on: who is alive, what each counts for, for whom it keeps hints.
//!
//! Each node says one [`Word`] and raises its beat with every tick. Whoever exchanges words keeps the newest of
//! each member; a member whose word stays as it is for [`DEAD_AFTER_MS`] is dead. A gateway says nothing and
//! takes over the view of the storage node it asks. Gossip never changes ownership: members are those of the
//! ring document.
//!
//! ```text
//! u8 version | varint words
//!   per word: varint age_ms | bytes node | varint generation | varint beat | varint ring_version | u8 standing
//!             varint rounds | u8 flags: 1 bucket fails, 2 brief | varint unflushed_bytes
//!             unless brief: varint hints, (bytes target | varint keys | varint bytes | varint oldest_ms)…
//!                           varint away, bytes node…
//! ```
//! Times are milliseconds of a monotonic clock that the caller chooses.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::names::NodeId;
use crate::ring::MAX_MEMBERS;
use crate::standing::Standing;

/// The version written.
pub const GOSSIP_VERSION: u8 = 1;
/// Most bytes of an exchange's one direction.
pub const MAX_GOSSIP_BYTES: usize = 1 << 20;
/// Most entries in each list of a word; a ring has no more members.
pub const MAX_ENTRIES: usize = MAX_MEMBERS;
/// How often a storage node raises its beat and exchanges, in milliseconds.
pub const TICK_MS: u64 = 300;
/// A member whose word has not become newer for so long is dead, in milliseconds.
pub const DEAD_AFTER_MS: u64 = 3_000;
/// How many members that are not dead a storage node exchanges with per tick.
pub const FANOUT: usize = 3;

/// A process that has not ticked for so long was stopped: whoever did not listen has not heard silence.
const LATE_MS: u64 = TICK_MS + 1_000;
/// What a word takes at most without its lists.
const MAX_HEAD_BYTES: usize = 128;
const FLAG_BUCKET_FAILS: u8 = 1;
const FLAG_BRIEF: u8 = 2;

/// The hints that a node keeps for one home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HintsHeld {
    /// The home.
    pub target: NodeId,
    /// How many keys.
    pub keys: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The age of the oldest, in milliseconds.
    pub oldest_ms: u64,
}

/// What a storage node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Who says it.
    pub node: NodeId,
    /// The newest epoch that its process leased.
    pub generation: u64,
    /// Rises with each tick; [`Gossip::say`] sets it.
    pub beat: u64,
    /// The newest ring document it knows.
    pub ring_version: u64,
    /// What it counts for.
    pub standing: Standing,
    /// How often it has caught up.
    pub rounds: u64,
    /// It can't reach the bucket.
    pub bucket_fails: bool,
    /// Bytes that are not in the bucket yet.
    pub unflushed_bytes: u64,
    /// The hints it keeps, at most [`MAX_ENTRIES`].
    pub hints: Vec<HintsHeld>,
    /// Whom it keeps hints for and believes away, at most [`MAX_ENTRIES`].
    pub away: Vec<NodeId>,
}

impl Word {
    /// Which of two words of a node is newer.
    fn age_order(&self) -> (u64, u64) {
        (self.generation, self.beat)
    }
}

/// A word as one node passes it to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The word.
    pub word: Word,
    /// How long the teller has known nothing newer, in milliseconds.
    pub age_ms: u64,
    /// The word's lists were left out: they are empty here and say nothing.
    pub brief: bool,
}

/// Encodes words for an exchange, at most [`MAX_GOSSIP_BYTES`]. Where that does not hold all lists, the last
/// words travel brief: a full cluster must not look dead because its nodes have much to say. There are at most
/// [`MAX_MEMBERS`] words; those after them stay behind.
#[must_use]
pub fn encode(heard: &[Heard]) -> Bytes {
    let heard = &heard[..heard.len().min(MAX_MEMBERS)];
    let mut room = MAX_GOSSIP_BYTES.saturating_sub((heard.len() + 1) * MAX_HEAD_BYTES);
    let mut out = BytesMut::new();
    out.put_u8(GOSSIP_VERSION);
    put_varint(&mut out, heard.len() as u64);
    for Heard { word, age_ms, brief } in heard {
        let lists = Some(encode_lists(word)).filter(|lists| !brief && lists.len() <= room);
        put_varint(&mut out, *age_ms);
        put_bytes(&mut out, word.node.as_str().as_bytes());
        put_varint(&mut out, word.generation);
        put_varint(&mut out, word.beat);
        put_varint(&mut out, word.ring_version);
        out.put_u8(word.standing as u8);
        put_varint(&mut out, word.rounds);
        let fails = if word.bucket_fails { FLAG_BUCKET_FAILS } else { 0 };
        out.put_u8(fails | if lists.is_none() { FLAG_BRIEF } else { 0 });
        put_varint(&mut out, word.unflushed_bytes);
        if let Some(lists) = lists {
            room -= lists.len();
            out.put_slice(&lists);
        }
    }
    out.freeze()
}

fn encode_lists(word: &Word) -> BytesMut {
    let mut out = BytesMut::new();
    let (hints, away) = (word.hints.iter().take(MAX_ENTRIES), word.away.iter().take(MAX_ENTRIES));
    put_varint(&mut out, hints.len() as u64);
    for held in hints {
        put_bytes(&mut out, held.target.as_str().as_bytes());
        put_varint(&mut out, held.keys);
        put_varint(&mut out, held.bytes);
        put_varint(&mut out, held.oldest_ms);
    }
    put_varint(&mut out, away.len() as u64);
    for node in away {
        put_bytes(&mut out, node.as_str().as_bytes());
    }
    out
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`DecodeError`], also for more than [`MAX_GOSSIP_BYTES`], [`MAX_MEMBERS`] or [`MAX_ENTRIES`].
pub fn decode(bytes: Bytes) -> Result<Vec<Heard>, DecodeError> {
    if bytes.len() > MAX_GOSSIP_BYTES {
        return Err(DecodeError::Malformed("gossip: its length"));
    }
    let mut r = Reader::new(bytes);
    let version = r.u8("gossip version")?;
    if version != GOSSIP_VERSION {
        return Err(DecodeError::Version { what: "gossip", found: version, known: GOSSIP_VERSION });
    }
    let heard = (0..count(&mut r, MAX_MEMBERS, "gossip: words")?)
        .map(|_| decode_heard(&mut r))
        .collect::<Result<_, _>>()?;
    r.end("gossip")?;
    Ok(heard)
}

fn count(r: &mut Reader, most: usize, what: &'static str) -> Result<usize, DecodeError> {
    let n = r.count(2, what)?;
    if n > most { Err(DecodeError::Malformed(what)) } else { Ok(n) }
}

fn node(r: &mut Reader) -> Result<NodeId, DecodeError> {
    NodeId::new(&r.text("gossip: node")?).map_err(|_| DecodeError::Malformed("gossip: node"))
}

fn decode_heard(r: &mut Reader) -> Result<Heard, DecodeError> {
    let age_ms = r.varint("gossip: age")?;
    let mut word = Word {
        node: node(r)?,
        generation: r.varint("gossip: generation")?,
        beat: r.varint("gossip: beat")?,
        ring_version: r.varint("gossip: ring version")?,
        standing: Standing::from_u8(r.u8("gossip: standing")?)
            .ok_or(DecodeError::Malformed("gossip: standing"))?,
        rounds: r.varint("gossip: rounds")?,
        bucket_fails: false,
        unflushed_bytes: 0,
        hints: Vec::new(),
        away: Vec::new(),
    };
    let flags = r.u8("gossip: flags")?;
    if flags & !(FLAG_BUCKET_FAILS | FLAG_BRIEF) != 0 {
        return Err(DecodeError::Malformed("gossip: flags"));
    }
    word.bucket_fails = flags & FLAG_BUCKET_FAILS != 0;
    word.unflushed_bytes = r.varint("gossip: unflushed bytes")?;
    let brief = flags & FLAG_BRIEF != 0;
    if !brief {
        for _ in 0..count(r, MAX_ENTRIES, "gossip: hints")? {
            word.hints.push(HintsHeld {
                target: node(r)?,
                keys: r.varint("gossip: hinted keys")?,
                bytes: r.varint("gossip: hinted bytes")?,
                oldest_ms: r.varint("gossip: oldest hint")?,
            });
        }
        for _ in 0..count(r, MAX_ENTRIES, "gossip: away")? {
            word.away.push(node(r)?);
        }
    }
    Ok(Heard { word, age_ms, brief })
}

/// Whether a member lives, as far as one knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// Its word became newer a short time ago.
    Alive,
    /// It did not.
    Dead,
    /// Nothing was ever heard of it.
    Unknown,
}

impl Liveness {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Debug)]
struct Known {
    word: Word,
    /// Which word the lists are of. It is an older one if newer ones came brief.
    lists_of: (u64, u64),
    /// When the word last became newer. Before the clock's beginning, perhaps.
    newer_ms: i64,
}

impl Known {
    /// Takes over what is newer than what is known.
    fn take(&mut self, mut word: Word, brief: bool) {
        let order = word.age_order();
        if !brief && order > self.lists_of && word.generation >= self.word.generation {
            self.lists_of = order;
            self.word.hints = std::mem::take(&mut word.hints);
            self.word.away = std::mem::take(&mut word.away);
        }
        if order > self.word.age_order() {
            // Lists of a process that has ended say nothing of the one that runs.
            if self.lists_of.0 == word.generation {
                word.hints = std::mem::take(&mut self.word.hints);
                word.away = std::mem::take(&mut self.word.away);
            }
            self.word = word;
        }
    }
}

/// What [`Gossip::notice`] compares.
#[derive(Debug, Default, PartialEq, Eq)]
struct Noticed {
    members: BTreeMap<NodeId, (Liveness, Standing, u64)>,
    away_from_me: Vec<NodeId>,
}

/// What has become different since the last [`Gossip::notice`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Some member's liveness, standing or generation did, or who says that this node is away.
    pub any: bool,
    /// Who is dead and was not.
    pub died: Vec<NodeId>,
}

/// All that one process knows of the members.
#[derive(Debug)]
pub struct Gossip {
    me: Option<NodeId>,
    own: Option<Word>,
    /// The newest word under this node's own name that others have.
    heard_of_me: (u64, u64),
    others: BTreeMap<NodeId, Known>,
    ticked_ms: u64,
    merged_ms: u64,
    noticed: Noticed,
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl Gossip {
    /// Knows nothing yet. A gateway is nobody: it only listens.
    #[must_use]
    pub fn new(me: Option<NodeId>) -> Self {
        Self {
            me,
            own: None,
            heard_of_me: (0, 0),
            others: BTreeMap::new(),
            ticked_ms: 0,
            merged_ms: 0,
            noticed: Noticed::default(),
        }
    }

    /// Sets the own word, with a higher beat than any that others may have: a process that goes on with the
    /// generation of the one before it takes its beat up too. Lists are cut to [`MAX_ENTRIES`].
    pub fn say(&mut self, mut word: Word) {
        let Some(me) = &self.me else { return };
        let said = self.own.as_ref().map_or((0, 0), Word::age_order);
        let of_this = |(generation, beat)| if generation == word.generation { beat } else { 0 };
        word.beat = of_this(said).max(of_this(self.heard_of_me)).saturating_add(1);
        word.node = me.clone();
        word.hints.truncate(MAX_ENTRIES);
        word.away.truncate(MAX_ENTRIES);
        self.own = Some(word);
    }

    /// Takes in others' words: of each member the one with the larger generation and beat stays. Words under
    /// this node's own name and of those who are no members are left out.
    pub fn merge(&mut self, heard: Vec<Heard>, now_ms: u64, is_member: impl Fn(&NodeId) -> bool) {
        self.merged_ms = now_ms;
        let now = self.counted(now_ms);
        for Heard { word, age_ms, brief } in heard {
            let order = word.age_order();
            if self.me.as_ref() == Some(&word.node) {
                self.heard_of_me = self.heard_of_me.max(order);
                continue;
            }
            if !is_member(&word.node) {
                continue;
            }
            let told_ms = now.saturating_sub(signed(age_ms));
            let Some(known) = self.others.get_mut(&word.node) else {
                let lists_of = if brief { (0, 0) } else { order };
                self.others.insert(word.node.clone(), Known { word, lists_of, newer_ms: told_ms });
                continue;
            };
            let seen = known.word.age_order();
            if self.me.is_none() && order >= seen || age_ms >= DEAD_AFTER_MS && order > seen {
                // A gateway sees as its teller does; and whom the teller holds dead is not alive.
                known.newer_ms = known.newer_ms.max(told_ms);
            } else if order > seen {
                known.newer_ms = now;
            }
            known.take(word, brief);
        }
    }

    /// A storage node's exchanging task runs now. If it comes more than a second late, it was stopped, and heard
    /// nothing because it did not listen: the lost time counts against nobody.
    pub fn tick(&mut self, now_ms: u64) {
        let gap = now_ms.saturating_sub(self.ticked_ms);
        if gap > LATE_MS {
            self.skip(gap - TICK_MS);
        }
        self.ticked_ms = now_ms;
    }

    /// Leaves so many milliseconds out of everyone's silence.
    pub fn skip(&mut self, ms: u64) {
        for known in self.others.values_mut() {
            known.newer_ms = known.newer_ms.saturating_add(signed(ms));
        }
    }

    /// Lets go of who is no member any more.
    pub fn forget_non_members(&mut self, is_member: impl Fn(&NodeId) -> bool) {
        self.others.retain(|node, _| is_member(node));
    }

    /// The time up to which silence counts. For a gateway that is its teller's last answer; for a storage node
    /// now, unless it was stopped: then it is what the next [`Self::tick`] will make of it.
    fn counted(&self, now_ms: u64) -> i64 {
        let until = match self.me {
            None => self.merged_ms,
            Some(_) if now_ms.saturating_sub(self.ticked_ms) > LATE_MS => self.ticked_ms + TICK_MS,
            Some(_) => now_ms,
        };
        signed(now_ms.min(until))
    }

    fn silent_ms(&self, known: &Known, now_ms: u64) -> u64 {
        u64::try_from(self.counted(now_ms).saturating_sub(known.newer_ms)).unwrap_or(0)
    }

    /// Whether a node lives; this node itself always does.
    #[must_use]
    pub fn liveness(&self, node: &NodeId, now_ms: u64) -> Liveness {
        if self.me.as_ref() == Some(node) {
            return Liveness::Alive;
        }
        match self.others.get(node) {
            None => Liveness::Unknown,
            Some(known) if self.silent_ms(known, now_ms) < DEAD_AFTER_MS => Liveness::Alive,
            Some(_) => Liveness::Dead,
        }
    }

    /// Is it known to live?
    #[must_use]
    pub fn alive(&self, node: &NodeId, now_ms: u64) -> bool {
        self.liveness(node, now_ms) == Liveness::Alive
    }

    /// Who is known to live and knows a newer ring than `version`, sorted.
    #[must_use]
    pub fn ahead(&self, version: u64, now_ms: u64) -> Vec<NodeId> {
        let ahead = self.others.iter().filter(|(_, known)| known.word.ring_version > version);
        ahead.map(|(node, _)| node).filter(|node| self.alive(node, now_ms)).cloned().collect()
    }

    /// Who is known to live, this node among them, sorted.
    #[must_use]
    pub fn alive_members(&self, now_ms: u64) -> Vec<NodeId> {
        let others = self.others.keys().filter(|node| self.alive(node, now_ms));
        let alive: BTreeSet<_> = others.chain(&self.me).cloned().collect();
        alive.into_iter().collect()
    }

    /// The newest word of a node; the own one too.
    #[must_use]
    pub fn word(&self, node: &NodeId) -> Option<&Word> {
        let own = self.own.as_ref().filter(|own| own.node == *node);
        own.or_else(|| self.others.get(node).map(|known| &known.word))
    }

    /// All words, the own one first, then sorted by node.
    pub fn words(&self) -> impl Iterator<Item = &Word> {
        self.own.iter().chain(self.others.values().map(|known| &known.word))
    }

    /// All words as they are told to others, the own one first. Who follows rotates, so that each word comes
    /// with its lists in its turn even if there is no room for all.
    #[must_use]
    pub fn tell(&self, now_ms: u64) -> Vec<Heard> {
        let heard = |known: &Known| Heard {
            age_ms: self.silent_ms(known, now_ms),
            brief: known.lists_of != known.word.age_order(),
            word: known.word.clone(),
        };
        let first = self.own.as_ref().map_or(0, |own| own.beat) % (self.others.len() as u64).max(1);
        let first = usize::try_from(first).unwrap_or(0);
        let (before, from) = (self.others.values().take(first), self.others.values().skip(first));
        let own = self.own.iter().map(|word| Heard { word: word.clone(), age_ms: 0, brief: false });
        own.chain(from.chain(before).map(heard)).collect()
    }

    /// Who keeps hints for this node and believes it away, sorted.
    #[must_use]
    pub fn away_from_me(&self) -> Vec<NodeId> {
        let Some(me) = &self.me else { return Vec::new() };
        let says_so = |known: &&Known| known.word.away.contains(me);
        self.others.values().filter(says_so).map(|known| known.word.node.clone()).collect()
    }

    /// What has become different since this was last called.
    pub fn notice(&mut self, now_ms: u64) -> Changes {
        let look = |known: &Known| {
            let node = known.word.node.clone();
            let seen = (self.liveness(&node, now_ms), known.word.standing, known.word.generation);
            (node, seen)
        };
        let noticed =
            Noticed { members: self.others.values().map(look).collect(), away_from_me: self.away_from_me() };
        let dead = |members: &BTreeMap<NodeId, (Liveness, Standing, u64)>, node: &NodeId| {
            members.get(node).is_some_and(|(liveness, ..)| *liveness == Liveness::Dead)
        };
        let newly = |node: &&NodeId| dead(&noticed.members, node) && !dead(&self.noticed.members, node);
        let died = noticed.members.keys().filter(newly).cloned().collect();
        let changes = Changes { any: noticed != self.noticed, died };
        self.noticed = noticed;
        changes
    }

    /// Whom a storage node exchanges with in this tick: [`FANOUT`] members at random that are not dead, and one
    /// that is, as a healed network shows no other way; all, if there are no more than that. `below(n)` draws a
    /// number below n.
    #[must_use]
    pub fn partners(
        &self,
        members: &[NodeId],
        now_ms: u64,
        mut below: impl FnMut(u64) -> u64,
    ) -> Vec<NodeId> {
        let others = members.iter().filter(|node| self.me.as_ref() != Some(node));
        let (mut dead, mut rest): (Vec<_>, Vec<_>) =
            others.partition(|node| self.liveness(node, now_ms) == Liveness::Dead);
        let all = dead.len() + rest.len() <= FANOUT;
        let mut partners = draw(&mut rest, FANOUT, &mut below);
        partners.extend(draw(&mut dead, if all { FANOUT } else { 1 }, &mut below));
        partners
    }

    /// Whom a gateway asks next. It stays with who answered last, and leaves who did not. Of a node that
    /// believes most others dead, every fourth time on average it gets a second opinion: that one may be cut off.
    #[must_use]
    pub fn source(
        &self,
        members: &[NodeId],
        last: Option<(&NodeId, bool)>,
        now_ms: u64,
        mut below: impl FnMut(u64) -> u64,
    ) -> Option<NodeId> {
        if let Some((node, true)) = last
            && members.contains(node)
        {
            let alive = members.iter().filter(|node| self.alive(node, now_ms)).count();
            if alive * 2 >= members.len() || below(4) > 0 {
                return Some(node.clone());
            }
        }
        let others = members.iter().filter(|node| last.is_none_or(|(asked, _)| asked != *node));
        let (mut dead, mut rest): (Vec<_>, Vec<_>) =
            others.partition(|node| self.liveness(node, now_ms) == Liveness::Dead);
        let other = draw(&mut rest, 1, &mut below).pop().or_else(|| draw(&mut dead, 1, &mut below).pop());
        other.or_else(|| members.first().cloned())
    }
}

/// Up to `n` of `nodes` at random.
fn draw(nodes: &mut Vec<&NodeId>, n: usize, below: &mut impl FnMut(u64) -> u64) -> Vec<NodeId> {
    let mut drawn = Vec::new();
    while drawn.len() < n && !nodes.is_empty() {
        let at = usize::try_from(below(nodes.len() as u64)).unwrap_or(0).min(nodes.len() - 1);
        drawn.push(nodes.swap_remove(at).clone());
    }
    drawn
}

#[cfg(test)]
mod tests;
