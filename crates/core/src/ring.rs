//! The ring document, and the placement that follows from it.
//!
//! `ring/{version}.json` in the bucket is the only truth about membership; each version is created once and
//! never changed. Where every partition lives is a pure function of one document ([`Ring`]), so two
//! processes that hold the same version agree without a word. A change is staged: a member is `joining`,
//! `leaving` or `becomes` something else in one version, and [`Ring::current`] and [`Ring::next`] are its two
//! placements until the version that settles it. [`change`] makes the first of these versions out of what an
//! operator asks for, [`plan`] says beforehand what comes of it. Tokens, walks and the choice of homes are part of the format: they may never
//! give another answer for the same document.

mod assign;
pub mod change;
mod placement;
pub mod plan;
mod quota;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::names::NodeId;
pub use placement::{NodeIndex, PreferenceList, Ring, RingMember, Share};

/// The format this code reads and writes.
pub const RING_FORMAT: u32 = 1;
/// Most partitions (Q); Q is a power of two.
pub const MAX_PARTITIONS: u32 = 65_536;
/// Partitions of a cluster that does not choose.
pub const DEFAULT_PARTITIONS: u32 = 256;
/// Most tokens (T) for one unit of weight.
pub const MAX_TOKENS: u32 = 1024;
/// Tokens per unit of weight of a cluster that does not choose.
pub const DEFAULT_TOKENS: u32 = 64;
/// Most replicas (N).
pub const MAX_REPLICAS: u32 = 7;
/// Replicas of a cluster that does not choose.
pub const DEFAULT_REPLICAS: u32 = 3;
/// Largest weight of a member.
pub const MAX_WEIGHT: u32 = 1000;
/// Most members, in any state.
pub const MAX_MEMBERS: usize = 1024;
/// Most tokens on the circle: T times the sum of all weights.
pub const MAX_TOTAL_TOKENS: u64 = 1 << 20;
/// Most (partition, member) pairs; a placement keeps two bytes for each.
pub const MAX_CELLS: u64 = 1 << 22;
/// Last version: the object's name has ten digits.
pub const MAX_VERSION: u64 = 9_999_999_999;
/// Largest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// Why a ring document was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Not JSON, or not the shape of a ring document: the parser's words.
    #[error("ring document: {0}")]
    Json(String),
    /// A field is outside its limit.
    #[error("ring document: {field} is {found}; it must be {limit}")]
    Limit {
        /// The field's path, as `replicas` or `members[2].weight`.
        field: String,
        /// What the document holds.
        found: String,
        /// What is allowed.
        limit: String,
    },
}

fn limit(field: impl Into<String>, found: impl fmt::Display, limit: impl Into<String>) -> RingError {
    RingError::Limit { field: field.into(), found: found.to_string(), limit: limit.into() }
}

/// Where a member is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Takes over its partitions; not yet a home for reads.
    Joining,
    /// A full member.
    Active,
    /// Still a home, until the others hold what it holds.
    Leaving,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Leaving => "leaving",
        })
    }
}

/// One storage node as the document names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name for life.
    pub id: NodeId,
    /// `host:port` of its HTTP port: 1 to 255 visible ASCII characters.
    pub address: String,
    /// Its failure zone: 1 to 63 of a-z, A-Z, 0-9, '.', '_', '-'.
    pub zone: String,
    /// Its share, 1 to [`MAX_WEIGHT`], relative to the other members' weights.
    pub weight: u32,
    /// Where it is in its life.
    pub state: MemberState,
    /// Of an active member whose share or zone is to change: what it will be once the pending change is done. Until
    /// then what stands above holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub becomes: Option<Becomes>,
    /// An operator has declared it dead for good: it is leaving, and nobody waits for it. Until the change is settled
    /// it counts as one of the homes that it was. While a change is `copied`, a member that is not leaving may be
    /// dead too; it leaves as soon as that change is settled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dead: bool,
}

/// What an active member will be once the pending change is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Becomes {
    /// Its share, as [`Member::weight`].
    pub weight: u32,
    /// Its failure zone, as [`Member::zone`].
    pub zone: String,
}

impl Member {
    /// Has it a part in the pending change?
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.state != MemberState::Active || self.becomes.is_some() || self.dead
    }

    /// The member as it is once the pending change is done; `None` if it is gone then. Who is dead and was not
    /// leaving yet leaves now.
    fn settled(&self) -> Option<Self> {
        let Becomes { weight, zone } =
            self.becomes.clone().unwrap_or_else(|| Becomes { weight: self.weight, zone: self.zone.clone() });
        let state = if self.dead { MemberState::Leaving } else { MemberState::Active };
        let stays = self.state != MemberState::Leaving;
        stays.then(|| Self { weight, zone, state, becomes: None, ..self.clone() })
    }

    /// The member in a version in which a copy begins anew; `None` if it has no part in it. Only a copy that is
    /// done lets the dead stay what they are.
    fn begins_anew(self) -> Option<Self> {
        match self.state {
            MemberState::Joining if self.dead => None,
            MemberState::Active if self.dead => {
                Some(Self { state: MemberState::Leaving, becomes: None, ..self })
            }
            _ => Some(self),
        }
    }
}

/// Who changed the document, when, and what for. For people; placement ignores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// A node id, or an operator's name: 1 to 200 characters, no control characters.
    pub by: String,
    /// One line: 1 to 500 characters, no control characters.
    pub what: String,
}

/// One version of the ring, as it lies in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingDocument {
    /// [`RING_FORMAT`].
    pub format: u32,
    /// 1 for a new cluster, then one more for each change.
    pub version: u64,
    /// The cluster's random id: 1 to 64 of a-z, 0-9, '-'.
    pub cluster: String,
    /// Seed of key hashes and token positions; 16 hex digits in JSON (JSON numbers lose bits).
    #[serde(with = "hex16")]
    pub hash_seed: u64,
    /// Q: a power of two up to [`MAX_PARTITIONS`].
    pub partitions: u32,
    /// T: tokens per unit of weight, 1 to [`MAX_TOKENS`].
    pub tokens: u32,
    /// N: 1 to [`MAX_REPLICAS`].
    pub replicas: u32,
    /// All members in all states, sorted by id.
    pub members: Vec<Member>,
    /// Of a pending change: the homes to come hold all that they will, and are read from. Writes still go to
    /// both rings, until every member knows this too: adjacent versions must never read and write past each
    /// other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copied: bool,
    /// What made this version.
    pub changed: Change,
    /// A random string of whoever wrote this version, so that it can tell its own write from another's
    /// after an unclear answer: 1 to 64 of a-z, A-Z, 0-9, '-', '_'.
    pub nonce: String,
}

impl RingDocument {
    /// Version 1 of a new cluster. `members` may come in any order.
    ///
    /// # Errors
    /// [`RingError::Limit`] for the first field outside its limit.
    #[expect(clippy::too_many_arguments, reason = "each is a field of the document, chosen once per cluster")]
    pub fn found(
        cluster: String,
        hash_seed: u64,
        partitions: u32,
        tokens: u32,
        replicas: u32,
        members: Vec<Member>,
        changed: Change,
        nonce: String,
    ) -> Result<Self, RingError> {
        let (format, version, copied) = (RING_FORMAT, 1, false);
        Self {
            format,
            version,
            cluster,
            hash_seed,
            partitions,
            tokens,
            replicas,
            members,
            copied,
            changed,
            nonce,
        }
        .sorted_and_checked()
    }

    /// Reads a document and checks every limit.
    ///
    /// # Errors
    /// [`RingError::Json`] for what is not a ring document, [`RingError::Limit`] for a field outside its
    /// limit.
    pub fn parse(bytes: &[u8]) -> Result<Self, RingError> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(limit("size", bytes.len(), format!("at most {MAX_DOCUMENT_BYTES} bytes")));
        }
        let doc: Self = serde_json::from_slice(bytes).map_err(|e| RingError::Json(e.to_string()))?;
        doc.check()?;
        Ok(doc)
    }

    /// Indented JSON that ends in a newline; people read it.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, integers and vectors of them: this serialisation has no way to fail.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// The bucket's name of a version: `ring/0000000003.json`.
    #[must_use]
    pub fn object_name(version: u64) -> String {
        format!("ring/{version:010}.json")
    }

    /// The version in an object's name; `None` for any name [`Self::object_name`] does not make.
    #[must_use]
    pub fn version_of_object(name: &str) -> Option<u64> {
        let digits = name.strip_prefix("ring/")?.strip_suffix(".json")?;
        if digits.len() != 10 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        digits.parse().ok().filter(|version| *version > 0)
    }

    /// The member of that name, in any state.
    #[must_use]
    pub fn member(&self, id: &NodeId) -> Option<&Member> {
        self.members.binary_search_by(|m| m.id.cmp(id)).ok().and_then(|i| self.members.get(i))
    }

    /// The next version, with `members` (in any order) in place of this one's. A copy that was done begins anew.
    ///
    /// # Errors
    /// [`RingError::Limit`] for the first field outside its limit.
    pub fn next(&self, members: Vec<Member>, changed: Change, nonce: String) -> Result<Self, RingError> {
        let members = members.into_iter().filter_map(Member::begins_anew).collect();
        self.successor(members, false, changed, nonce)
    }

    /// The next version, as it is said.
    fn successor(
        &self,
        members: Vec<Member>,
        copied: bool,
        changed: Change,
        nonce: String,
    ) -> Result<Self, RingError> {
        let version = self.version.saturating_add(1);
        Self { version, members, copied, changed, nonce, ..self.clone() }.sorted_and_checked()
    }

    /// The next version, in which the homes to come are read from: they hold all that they will.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn with_copied(&self, changed: Change, nonce: String) -> Result<Self, RingError> {
        self.successor(self.members.clone(), true, changed, nonce)
    }

    /// The next version, in which `id` is at another address. Nobody's part in a pending change is another for that.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn with_address(
        &self,
        id: &NodeId,
        address: &str,
        changed: Change,
        nonce: String,
    ) -> Result<Self, RingError> {
        let moved = |m: &Member| match m.id == *id {
            true => Member { address: address.to_owned(), ..m.clone() },
            false => m.clone(),
        };
        self.successor(self.members.iter().map(moved).collect(), self.copied, changed, nonce)
    }

    /// The next version, with `member` added, or put in place of the one with its id.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn with_member(&self, member: Member, changed: Change, nonce: String) -> Result<Self, RingError> {
        let mut members: Vec<_> = self.members.iter().filter(|m| m.id != member.id).cloned().collect();
        members.push(member);
        self.next(members, changed, nonce)
    }

    /// The next version, with the pending change done: who was joining is active, who was leaving is gone, who was
    /// to become something else is. Its current placement is this version's next one. Who was declared dead on the
    /// way is leaving in it: then the next change is pending.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn settled(&self, changed: Change, nonce: String) -> Result<Self, RingError> {
        let members = self.members.iter().filter_map(Member::settled).collect();
        self.successor(members, false, changed, nonce)
    }

    /// Whether fewer members hold data than there are replicas: there is no placement to serve from yet.
    /// A leaving member counts, as it is a home until it is gone.
    #[must_use]
    pub fn is_forming(&self) -> bool {
        let holding = self.members.iter().filter(|m| m.state != MemberState::Joining).count();
        holding < self.replicas as usize
    }

    /// Whether any member is joining or leaving, will become something else, or was declared dead.
    #[must_use]
    pub fn has_pending_change(&self) -> bool {
        self.members.iter().any(Member::is_changing)
    }

    /// Who must know a new version before anybody may rely on it: all who serve the current ring. The dead need
    /// not; who is joining knows the version for which it says that it is ready.
    pub fn must_know(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| !m.dead && m.state != MemberState::Joining)
    }

    /// Who must be ready for this version before the pending change goes a step further: all of the next ring but
    /// the dead.
    pub fn must_be_ready(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| !m.dead && m.state != MemberState::Leaving)
    }

    fn sorted_and_checked(mut self) -> Result<Self, RingError> {
        self.members.sort_by(|a, b| a.id.cmp(&b.id));
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), RingError> {
        if self.format != RING_FORMAT {
            return Err(limit("format", self.format, RING_FORMAT.to_string()));
        }
        in_range("version", self.version, 1, MAX_VERSION)?;
        text("cluster", &self.cluster, 64, "of a-z, 0-9, '-'", |c| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
        })?;
        in_range("partitions", self.partitions.into(), 1, MAX_PARTITIONS.into())?;
        if !self.partitions.is_power_of_two() {
            return Err(limit("partitions", self.partitions, "a power of two"));
        }
        in_range("tokens", self.tokens.into(), 1, MAX_TOKENS.into())?;
        in_range("replicas", self.replicas.into(), 1, MAX_REPLICAS.into())?;
        self.check_members()?;
        let line = |c: char| !c.is_control();
        text("changed.by", &self.changed.by, 200, "without control characters", line)?;
        text("changed.what", &self.changed.what, 500, "without control characters", line)?;
        text("nonce", &self.nonce, 64, "of a-z, A-Z, 0-9, '-', '_'", |c| {
            c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
        })
    }

    fn check_members(&self) -> Result<(), RingError> {
        if self.members.len() > MAX_MEMBERS {
            return Err(limit("members", self.members.len(), format!("at most {MAX_MEMBERS}")));
        }
        for (i, member) in self.members.iter().enumerate() {
            check_address(&format!("members[{i}].address"), &member.address)?;
            check_zone(&format!("members[{i}].zone"), &member.zone)?;
            check_weight(&format!("members[{i}].weight"), member.weight)?;
            self.check_pending(i, member)?;
        }
        for (i, pair) in self.members.windows(2).enumerate() {
            if let [a, b] = pair
                && a.id >= b.id
            {
                return Err(limit(format!("members[{}].id", i + 1), &b.id, "unique, and sorted"));
            }
        }
        let becomes = |m: &Member| m.becomes.as_ref().map_or(m.weight, |becomes| becomes.weight);
        for weight in [|m: &Member| m.weight, becomes] {
            let weights: u64 = self.members.iter().map(|m| u64::from(weight(m))).sum();
            at_most("tokens times the sum of weights", weights * u64::from(self.tokens), MAX_TOTAL_TOKENS)?;
        }
        let cells = u64::from(self.partitions) * self.members.len() as u64;
        at_most("partitions times members", cells, MAX_CELLS)
    }

    /// What is said of a member's part in the pending change.
    fn check_pending(&self, i: usize, member: &Member) -> Result<(), RingError> {
        if let Some(Becomes { weight, zone }) = &member.becomes {
            check_weight(&format!("members[{i}].becomes.weight"), *weight)?;
            check_zone(&format!("members[{i}].becomes.zone"), zone)?;
            if member.state != MemberState::Active {
                let field = format!("members[{i}].becomes");
                return Err(limit(field, "that of a member that is not active", "of an active member"));
            }
        }
        if member.dead && member.state != MemberState::Leaving && !self.copied {
            let limits = "false, unless the member is leaving or the change is copied";
            return Err(limit(format!("members[{i}].dead"), true, limits));
        }
        Ok(())
    }
}

fn check_weight(field: &str, weight: u32) -> Result<(), RingError> {
    in_range(field, weight.into(), 1, MAX_WEIGHT.into())
}

fn check_zone(field: &str, zone: &str) -> Result<(), RingError> {
    text(field, zone, 63, "of a-z, A-Z, 0-9, '.', '_', '-'", |c| {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
    })
}

fn check_address(field: &str, address: &str) -> Result<(), RingError> {
    text(field, address, 255, "of visible ASCII", |c| c.is_ascii_graphic())
}

fn in_range(field: &str, found: u64, least: u64, most: u64) -> Result<(), RingError> {
    if (least..=most).contains(&found) {
        Ok(())
    } else {
        Err(limit(field, found, format!("{least} to {most}")))
    }
}

fn at_most(field: &str, found: u64, most: u64) -> Result<(), RingError> {
    if found <= most { Ok(()) } else { Err(limit(field, found, format!("at most {most}"))) }
}

fn text(
    field: &str,
    found: &str,
    most: usize,
    kind: &str,
    allowed: impl Fn(char) -> bool,
) -> Result<(), RingError> {
    let length = found.chars().count();
    if length == 0 || length > most {
        return Err(limit(field, format!("{length} characters long"), format!("1 to {most} characters")));
    }
    if found.chars().all(allowed) { Ok(()) } else { Err(limit(field, format!("{found:?}"), kind)) }
}

/// A u64 as exactly 16 lowercase hex digits.
mod hex16 {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&format!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match u64::from_str_radix(&text, 16) {
            Ok(value) if digits && text.len() == 16 => Ok(value),
            _ => Err(D::Error::custom("hash_seed must be 16 lowercase hex digits")),
        }
    }
}

#[cfg(test)]
mod tests;
