//! The ring document, and the placement that follows from it.
//!
//! `ring/{version}.json` in the bucket is the only truth about membership; each version is created once and
//! never changed. Where every partition lives is a pure function of one document ([`Ring`]), so two
//! processes that hold the same version agree without a word. A change is staged: a member is `joining` or
//! `leaving` in one version, and [`Ring::current`] and [`Ring::next`] are its two placements until the
//! version that settles it. Tokens, walks and the choice of homes are part of the format: they may never
//! give another answer for the same document.

mod assign;
mod placement;
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

    /// The next version, with `members` (in any order) in place of this one's.
    ///
    /// # Errors
    /// [`RingError::Limit`] for the first field outside its limit.
    pub fn next(&self, members: Vec<Member>, changed: Change, nonce: String) -> Result<Self, RingError> {
        let version = self.version.saturating_add(1);
        Self { version, members, copied: false, changed, nonce, ..self.clone() }.sorted_and_checked()
    }

    /// The next version, in which the homes to come are read from: they hold all that they will.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn with_copied(&self, changed: Change, nonce: String) -> Result<Self, RingError> {
        let next = self.next(self.members.clone(), changed, nonce)?;
        Ok(Self { copied: true, ..next })
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

    /// The next version, with the pending change done: who was joining is active, who was leaving is gone.
    /// Its current placement is this version's next one.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn settled(&self, changed: Change, nonce: String) -> Result<Self, RingError> {
        let stay = self.members.iter().filter(|m| m.state != MemberState::Leaving);
        let members = stay.map(|m| Member { state: MemberState::Active, ..m.clone() }).collect();
        self.next(members, changed, nonce)
    }

    /// Whether fewer members hold data than there are replicas: there is no placement to serve from yet.
    /// A leaving member counts, as it is a home until it is gone.
    #[must_use]
    pub fn is_forming(&self) -> bool {
        let holding = self.members.iter().filter(|m| m.state != MemberState::Joining).count();
        holding < self.replicas as usize
    }

    /// Whether any member is joining or leaving.
    #[must_use]
    pub fn has_pending_change(&self) -> bool {
        self.members.iter().any(|m| m.state != MemberState::Active)
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
            text(&format!("members[{i}].address"), &member.address, 255, "of visible ASCII", |c| {
                c.is_ascii_graphic()
            })?;
            text(&format!("members[{i}].zone"), &member.zone, 63, "of a-z, A-Z, 0-9, '.', '_', '-'", |c| {
                c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
            })?;
            in_range(&format!("members[{i}].weight"), member.weight.into(), 1, MAX_WEIGHT.into())?;
        }
        for (i, pair) in self.members.windows(2).enumerate() {
            if let [a, b] = pair
                && a.id >= b.id
            {
                return Err(limit(format!("members[{}].id", i + 1), &b.id, "unique, and sorted"));
            }
        }
        let weights: u64 = self.members.iter().map(|m| u64::from(m.weight)).sum();
        at_most("tokens times the sum of weights", weights * u64::from(self.tokens), MAX_TOTAL_TOKENS)?;
        let cells = u64::from(self.partitions) * self.members.len() as u64;
        at_most("partitions times members", cells, MAX_CELLS)
    }
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn valid() -> Value {
        json!({
            "format": 1, "version": 3, "cluster": "c-1", "hash_seed": "00000000000000ff",
            "partitions": 256, "tokens": 64, "replicas": 3,
            "members": [
                {"id": "a", "address": "10.0.0.1:7000", "zone": "z1", "weight": 1, "state": "active"},
                {"id": "b", "address": "10.0.0.2:7000", "zone": "z2", "weight": 2, "state": "joining"},
                {"id": "c", "address": "[::1]:7000", "zone": "z3", "weight": 1000, "state": "leaving"}
            ],
            "changed": {"at_ms": 1, "by": "ops", "what": "added b"}, "nonce": "n_-9"
        })
    }

    fn refusal(path: &str, value: Value) -> String {
        let mut doc = valid();
        *doc.pointer_mut(path).unwrap() = value;
        RingDocument::parse(doc.to_string().as_bytes()).unwrap_err().to_string()
    }

    fn change() -> Change {
        Change { at_ms: 2, by: "ops".into(), what: "test".into() }
    }

    fn states(doc: &RingDocument) -> Vec<(&str, MemberState)> {
        doc.members.iter().map(|m| (m.id.as_str(), m.state)).collect()
    }

    #[test]
    fn a_document_survives_its_own_json() {
        let doc = RingDocument::parse(valid().to_string().as_bytes()).unwrap();
        assert_eq!(doc.hash_seed, 255);
        let json = doc.to_json();
        assert!(json.ends_with(b"}\n"));
        assert_eq!(RingDocument::parse(&json).unwrap(), doc);
    }

    #[test]
    fn errors_name_the_field_and_the_limit() {
        let member = |i: usize, id: &str| json!({"id": id, "address": format!("h:{i}"), "zone": "z", "weight": 1000, "state": "active"});
        let many = |n: usize| Value::from_iter((0..n).map(|i| member(i, &format!("n{i:05}"))));
        let cases = [
            ("/format", json!(2), "format is 2; it must be 1"),
            ("/version", json!(0), "version is 0; it must be 1 to 9999999999"),
            ("/version", json!(10_000_000_000_u64), "version is 10000000000; it must be 1 to 9999999999"),
            ("/cluster", json!("C"), "cluster is \"C\"; it must be of a-z, 0-9, '-'"),
            ("/cluster", json!(""), "cluster is 0 characters long; it must be 1 to 64 characters"),
            ("/hash_seed", json!("FF"), "hash_seed must be 16 lowercase hex digits"),
            ("/hash_seed", json!("00000000000000FF"), "hash_seed must be 16 lowercase hex digits"),
            ("/hash_seed", json!("+0000000000000ff"), "hash_seed must be 16 lowercase hex digits"),
            ("/partitions", json!(0), "partitions is 0; it must be 1 to 65536"),
            ("/partitions", json!(131_072), "partitions is 131072; it must be 1 to 65536"),
            ("/partitions", json!(100), "partitions is 100; it must be a power of two"),
            ("/tokens", json!(0), "tokens is 0; it must be 1 to 1024"),
            ("/tokens", json!(1025), "tokens is 1025; it must be 1 to 1024"),
            ("/replicas", json!(0), "replicas is 0; it must be 1 to 7"),
            ("/replicas", json!(8), "replicas is 8; it must be 1 to 7"),
            ("/members/1/id", json!("B"), "node id must be"),
            ("/members/1/id", json!("a"), "members[1].id is a; it must be unique, and sorted"),
            ("/members/0/id", json!("d"), "members[1].id is b; it must be unique, and sorted"),
            ("/members/0/address", json!(""), "members[0].address is 0 characters long"),
            (
                "/members/0/address",
                json!("a b"),
                "members[0].address is \"a b\"; it must be of visible ASCII",
            ),
            ("/members/0/zone", json!("z/1"), "members[0].zone is \"z/1\""),
            ("/members/2/weight", json!(0), "members[2].weight is 0; it must be 1 to 1000"),
            ("/members/2/weight", json!(1001), "members[2].weight is 1001; it must be 1 to 1000"),
            ("/members/0/state", json!("gone"), "unknown variant `gone`"),
            ("/members", many(1025), "members is 1025; it must be at most 1024"),
            ("/members", many(17), "tokens times the sum of weights is 1088000; it must be at most 1048576"),
            ("/changed/by", json!("a\nb"), "changed.by is \"a\\nb\""),
            ("/changed/what", json!("x".repeat(501)), "changed.what is 501 characters long"),
            ("/changed/at_ms", json!(-1), "invalid value"),
            ("/nonce", json!("a b"), "nonce is \"a b\""),
        ];
        for (path, value, expected) in cases {
            let error = refusal(path, value);
            assert!(error.contains(expected), "{path}: {error}");
        }
    }

    #[test]
    fn partitions_times_members_has_a_limit() {
        let mut doc = valid();
        doc["partitions"] = json!(65_536);
        doc["tokens"] = json!(1);
        let member = |i| json!({"id": format!("n{i:03}"), "address": "h:1", "zone": "z", "weight": 1, "state": "active"});
        doc["members"] = (0..64).map(member).collect();
        assert!(RingDocument::parse(doc.to_string().as_bytes()).is_ok());
        doc["members"] = (0..65).map(member).collect();
        let error = RingDocument::parse(doc.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("partitions times members is 4259840; it must be at most 4194304"), "{error}");
    }

    #[test]
    fn unknown_and_missing_fields_are_refused() {
        let mut extra = valid();
        extra["colour"] = json!(1);
        let mut extra_in_member = valid();
        extra_in_member["members"][0]["rack"] = json!("r");
        let mut missing = valid();
        missing.as_object_mut().unwrap().remove("nonce");
        for (doc, name) in [(extra, "colour"), (extra_in_member, "rack"), (missing, "nonce")] {
            let error = RingDocument::parse(doc.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(matches!(RingDocument::parse(b"[1"), Err(RingError::Json(_))));
        assert!(matches!(RingDocument::parse(&[b' '; MAX_DOCUMENT_BYTES + 1]), Err(RingError::Limit { .. })));
    }

    #[test]
    fn object_names_go_both_ways() {
        assert_eq!(RingDocument::object_name(3), "ring/0000000003.json");
        for version in [1, 3, MAX_VERSION] {
            assert_eq!(RingDocument::version_of_object(&RingDocument::object_name(version)), Some(version));
        }
        for bad in ["ring/3.json", "ring/0000000000.json", "ring/000000000a.json", "ring/+000000003.json"] {
            assert_eq!(RingDocument::version_of_object(bad), None, "{bad}");
        }
        for bad in ["0000000003.json", "ring/0000000003", "x/ring/0000000003.json", "ring/00000000003.json"] {
            assert_eq!(RingDocument::version_of_object(bad), None, "{bad}");
        }
    }

    #[test]
    fn successors_count_up_and_stage_their_change() {
        let doc = RingDocument::parse(valid().to_string().as_bytes()).unwrap();
        assert!(doc.has_pending_change());
        let settled = doc.settled(change(), "m".into()).unwrap();
        assert_eq!(settled.version, 4);
        assert_eq!(states(&settled), [("a", MemberState::Active), ("b", MemberState::Active)]);
        assert!(!settled.has_pending_change());
        assert!(settled.is_forming(), "two members, three replicas");

        let mut member = settled.member(&NodeId::new("a").unwrap()).unwrap().clone();
        member.id = NodeId::new("aa").unwrap();
        member.state = MemberState::Joining;
        let joining = settled.with_member(member.clone(), change(), "m".into()).unwrap();
        assert!(joining.is_forming(), "a joining member holds nothing yet");
        assert_eq!(joining.members.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["a", "aa", "b"]);
        member.state = MemberState::Leaving;
        let leaving = joining.with_member(member, change(), "m".into()).unwrap();
        assert_eq!(leaving.version, 6);
        assert!(!leaving.is_forming(), "a leaving member is a home until it is gone");
        let error = joining.settled(change(), String::new()).unwrap_err().to_string();
        assert!(error.contains("nonce"), "{error}");
    }

    #[test]
    fn the_last_version_has_no_successor() {
        let mut doc = RingDocument::parse(valid().to_string().as_bytes()).unwrap();
        doc.version = MAX_VERSION;
        assert!(doc.next(doc.members.clone(), change(), "m".into()).is_err());
    }
}
