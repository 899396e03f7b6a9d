//! The settings of a namespace, and the document that keeps them in the bucket. Each version of it is created once;
//! the newest is in force.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hash::checksum;
use crate::names::Namespace;
use crate::quorum::Durability;

/// The format written.
pub const NAMESPACE_FORMAT: u32 = 1;
/// What all documents' names start with.
pub const NAMESPACES_PREFIX: &str = "namespaces/";
/// The most siblings that a namespace may allow its keys.
pub const MAX_MAX_SIBLINGS: u32 = 1000;

const SECOND_MS: u64 = 1000;
const DAY_MS: u64 = 86_400 * SECOND_MS;
/// Milliseconds in each unit, largest first.
const UNITS: [(&str, u64); 5] =
    [("d", DAY_MS), ("h", 3600 * SECOND_MS), ("m", 60 * SECOND_MS), ("s", SECOND_MS), ("ms", 1)];

/// How long versions live: 1 s to 10 years. As text a whole number and a unit: `30m`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ttl(u64);

/// Why a text is no [`Ttl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a duration such as 30m or 7d (ms, s, m, h or d), from 1s to 3650d")]
pub struct TtlError;

impl Ttl {
    /// The shortest, in milliseconds.
    pub const MIN_MS: u64 = SECOND_MS;
    /// The longest, in milliseconds.
    pub const MAX_MS: u64 = 3650 * DAY_MS;

    /// One of so many milliseconds.
    ///
    /// # Errors
    /// [`TtlError`] outside the limits.
    pub fn from_millis(ms: u64) -> Result<Self, TtlError> {
        if (Self::MIN_MS..=Self::MAX_MS).contains(&ms) { Ok(Self(ms)) } else { Err(TtlError) }
    }

    /// In milliseconds.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        self.0
    }
}

impl FromStr for Ttl {
    type Err = TtlError;
    fn from_str(text: &str) -> Result<Self, TtlError> {
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or(TtlError)?;
        let (digits, unit) = text.split_at(end);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(TtlError)?;
        let number: u64 = digits.parse().map_err(|_| TtlError)?;
        Self::from_millis(number.checked_mul(*scale).ok_or(TtlError)?)
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, scale) =
            UNITS.iter().find(|(_, scale)| self.0.is_multiple_of(*scale)).unwrap_or(&("ms", 1));
        write!(f, "{}{name}", self.0 / scale)
    }
}

impl TryFrom<String> for Ttl {
    type Error = TtlError;
    fn try_from(text: String) -> Result<Self, TtlError> {
        text.parse()
    }
}

impl From<Ttl> for String {
    fn from(ttl: Ttl) -> Self {
        ttl.to_string()
    }
}

/// What becomes of a write whose client does not say what it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlindWrite {
    /// It is kept beside what it did not see.
    Sibling,
    /// It is refused.
    Reject,
}

impl BlindWrite {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sibling => "sibling",
            Self::Reject => "reject",
        }
    }
}

/// What is set for a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceSettings {
    /// Answers needed for a read.
    pub r: u32,
    /// Acknowledgements needed for a write.
    pub w: u32,
    /// What each counted acknowledgement must have reached.
    pub durability: Durability,
    /// Most siblings of a key.
    pub max_siblings: u32,
    /// What becomes of writes without a clock.
    pub on_blind_write: BlindWrite,
    /// How long values live that are written from now on; `None`: until they are replaced.
    pub ttl: Option<Ttl>,
}

impl NamespaceSettings {
    /// Those of a namespace for which nothing is set, in a cluster of `n` replicas: majorities.
    #[must_use]
    pub fn defaults(n: u32) -> Self {
        let majority = n / 2 + 1;
        Self {
            r: majority,
            w: majority,
            durability: Durability::Disk,
            max_siblings: 100,
            on_blind_write: BlindWrite::Sibling,
            ttl: None,
        }
    }
}

/// `namespaces/{namespace}/{version:010}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceDocument {
    /// Format of this document.
    pub format: u32,
    /// Its version, from 1; each is created once.
    pub version: u64,
    /// Whose settings they are.
    pub namespace: Namespace,
    /// The settings.
    pub settings: NamespaceSettings,
    /// When it was written, milliseconds since 1970, by the writer's clock.
    pub written_ms: u64,
    /// Makes this attempt unlike any other (put-id).
    pub put_id: String,
    /// Checksum of the document with this field empty, 16 hex digits.
    pub checksum: String,
}

/// Why a document could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceError {
    /// Not the JSON it should be.
    #[error("namespace settings are not readable: {0}")]
    Json(String),
    /// Of a format this build does not know.
    #[error("namespace settings have format {0}; this build reads {NAMESPACE_FORMAT}")]
    Format(u32),
    /// Damaged.
    #[error("the checksum of namespace settings does not match")]
    Checksum,
}

impl NamespaceDocument {
    /// A document to be created.
    #[must_use]
    pub fn new(
        namespace: Namespace,
        version: u64,
        settings: NamespaceSettings,
        put_id: String,
        written_ms: u64,
    ) -> Self {
        let checksum = String::new();
        Self { format: NAMESPACE_FORMAT, version, namespace, settings, written_ms, put_id, checksum }
    }

    /// The object that holds `version` of a namespace's settings.
    #[must_use]
    pub fn object_name(namespace: &Namespace, version: u64) -> String {
        format!("{}{version:010}.json", Self::prefix(namespace))
    }

    /// What the names of all versions of a namespace's settings start with.
    #[must_use]
    pub fn prefix(namespace: &Namespace) -> String {
        format!("{NAMESPACES_PREFIX}{namespace}/")
    }

    /// Namespace and version that an object's name tells.
    #[must_use]
    pub fn parse_object(name: &str) -> Option<(Namespace, u64)> {
        let (namespace, file) = name.strip_prefix(NAMESPACES_PREFIX)?.split_once('/')?;
        let version = file.strip_suffix(".json").filter(|digits| digits.len() == 10)?.parse().ok()?;
        Some((Namespace::new(namespace.as_bytes()).ok()?, version))
    }

    /// The document, checksum included.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut sealed = self.clone();
        sealed.checksum = self.sum();
        let mut text = serde_json::to_vec_pretty(&sealed).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`NamespaceError`]. A newer format is named as such, whatever else it holds.
    pub fn parse(bytes: &[u8]) -> Result<Self, NamespaceError> {
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let json = |e: serde_json::Error| NamespaceError::Json(e.to_string());
        let Form { format } = serde_json::from_slice(bytes).map_err(json)?;
        if format != NAMESPACE_FORMAT {
            return Err(NamespaceError::Format(format));
        }
        let document: Self = serde_json::from_slice(bytes).map_err(json)?;
        if document.checksum != document.sum() {
            return Err(NamespaceError::Checksum);
        }
        Ok(document)
    }

    fn sum(&self) -> String {
        let mut bare = self.clone();
        bare.checksum = String::new();
        format!("{:016x}", checksum(&serde_json::to_vec(&bare).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn document() -> NamespaceDocument {
        let settings = NamespaceSettings {
            r: 1,
            w: 3,
            durability: Durability::Bucket,
            max_siblings: 20,
            on_blind_write: BlindWrite::Reject,
            ttl: Some("7d".parse().unwrap()),
        };
        let namespace = Namespace::new(b"carts").unwrap();
        NamespaceDocument::new(namespace, 3, settings, "cafe".into(), 1_700_000_000_000)
    }

    #[test]
    fn golden_file() {
        let golden = crate::golden::check("namespace-v1.json", &document().to_json());
        let read = NamespaceDocument::parse(&golden).unwrap();
        assert_eq!(NamespaceDocument { checksum: String::new(), ..read }, document());
    }

    #[test]
    fn damage_and_newer_formats_are_named() {
        let text = String::from_utf8(document().to_json()).unwrap();
        let parse = |text: &str| NamespaceDocument::parse(text.as_bytes());
        assert_eq!(parse(&text.replace("20", "21")), Err(NamespaceError::Checksum));
        let newer = text.replace("\"format\": 1", "\"format\": 9, \"more\": 1");
        assert_eq!(parse(&newer), Err(NamespaceError::Format(9)));
        assert!(matches!(parse(&text.replace("7d", "7 days")), Err(NamespaceError::Json(_))));
        assert!(matches!(parse(&text[..50]), Err(NamespaceError::Json(_))));
    }

    #[test]
    fn object_names_tell_namespace_and_version() {
        let namespace = Namespace::new(b"a.b-c").unwrap();
        let name = NamespaceDocument::object_name(&namespace, 12);
        assert_eq!(name, "namespaces/a.b-c/0000000012.json");
        assert_eq!(NamespaceDocument::parse_object(&name), Some((namespace, 12)));
        for bad in
            ["namespaces/a/12.json", "namespaces/A/0000000012.json", "namespaces/a/0000000012", "ring/a"]
        {
            assert_eq!(NamespaceDocument::parse_object(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_to_live_read_and_write_back() {
        for text in ["1s", "1500ms", "90s", "30m", "36h", "7d", "3650d"] {
            assert_eq!(text.parse::<Ttl>().unwrap().to_string(), text);
        }
        assert_eq!("120m".parse::<Ttl>().unwrap().to_string(), "2h");
        assert_eq!("7d".parse::<Ttl>().unwrap().as_millis(), 604_800_000);
        for bad in
            ["", "7", "d", "-1d", "1.5d", "7 d", "999ms", "0s", "3651d", "99999999999999999999d", "7w", "+7d"]
        {
            assert_eq!(bad.parse::<Ttl>(), Err(TtlError), "{bad}");
        }
        assert_eq!(format!("{}d", u64::MAX).parse::<Ttl>(), Err(TtlError), "no overflow");
    }
}
