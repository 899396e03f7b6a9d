//! Validated names: namespaces, keys, node ids. What exists as one of these types is within its limits.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest namespace name, in bytes.
pub const MAX_NAMESPACE_BYTES: usize = 63;
/// Longest node id, in bytes.
pub const MAX_NODE_ID_BYTES: usize = 40;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The namespace breaks `[a-z0-9][a-z0-9._-]{0,62}`.
    #[error(
        "namespace must be 1 to {MAX_NAMESPACE_BYTES} of a-z, 0-9, '.', '_', '-', starting with a letter or digit"
    )]
    Namespace,
    /// The key has no bytes.
    #[error("key must not be empty")]
    EmptyKey,
    /// The key has more than [`MAX_KEY_BYTES`] bytes.
    #[error("key has {0} bytes; the limit is {MAX_KEY_BYTES}")]
    LongKey(usize),
    /// The node id breaks `[a-z][a-z0-9_-]{0,39}`.
    #[error("node id must be 1 to {MAX_NODE_ID_BYTES} of a-z, 0-9, '_', '-', starting with a letter")]
    NodeId,
}

/// A group of keys that shares settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(Bytes);

impl Namespace {
    /// Checks `name` against `[a-z0-9][a-z0-9._-]{0,62}`.
    ///
    /// # Errors
    /// [`NameError::Namespace`] where it does not match.
    pub fn new(name: &[u8]) -> Result<Self, NameError> {
        Self::check(name)?;
        Ok(Self(Bytes::copy_from_slice(name)))
    }

    pub(crate) fn from_bytes(name: Bytes) -> Result<Self, NameError> {
        Self::check(&name)?;
        Ok(Self(name))
    }

    fn check(name: &[u8]) -> Result<(), NameError> {
        let head = name.first().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let tail = name
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
        if head && tail && name.len() <= MAX_NAMESPACE_BYTES { Ok(()) } else { Err(NameError::Namespace) }
    }

    /// The name's bytes (ASCII).
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl TryFrom<String> for Namespace {
    type Error = NameError;
    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(name.as_bytes())
    }
}

impl From<Namespace> for String {
    fn from(name: Namespace) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key: 1 to [`MAX_KEY_BYTES`] bytes of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Bytes);

impl Key {
    /// Takes the bytes as they are.
    ///
    /// # Errors
    /// [`NameError::EmptyKey`] or [`NameError::LongKey`].
    pub fn new(bytes: Bytes) -> Result<Self, NameError> {
        match bytes.len() {
            0 => Err(NameError::EmptyKey),
            n if n > MAX_KEY_BYTES => Err(NameError::LongKey(n)),
            _ => Ok(Self(bytes)),
        }
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The name of one storage node; it outlives processes, disks and machines.
///
/// Kept inline, as clocks are full of them: decoding or copying one allocates nothing.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId {
    /// Padded with zeros, which no id holds: the order of the arrays is the order of the ids.
    bytes: [u8; MAX_NODE_ID_BYTES],
    length: u8,
}

impl NodeId {
    /// Checks `id` against `[a-z][a-z0-9_-]{0,39}`. No dots: an actor is written `node-id.epoch`.
    ///
    /// # Errors
    /// [`NameError::NodeId`] where it does not match.
    pub fn new(id: &str) -> Result<Self, NameError> {
        let bytes = id.as_bytes();
        let head = bytes.first().is_some_and(u8::is_ascii_lowercase);
        let tail =
            bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'));
        let fits = head && tail && bytes.len() <= MAX_NODE_ID_BYTES;
        let length = u8::try_from(bytes.len()).ok().filter(|_| fits).ok_or(NameError::NodeId)?;
        let mut padded = [0; MAX_NODE_ID_BYTES];
        padded[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { bytes: padded, length })
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl TryFrom<String> for NodeId {
    type Error = NameError;
    fn try_from(id: String) -> Result<Self, NameError> {
        Self::new(&id)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn namespaces_are_checked_at_both_ends() {
        assert!(Namespace::new(b"carts").is_ok());
        assert!(Namespace::new(b"0a.b_c-d").is_ok());
        assert!(Namespace::new(&[b'a'; 63]).is_ok());
        for bad in [&b""[..], b"-a", b".a", b"A", b"a b", b"a/b", &[b'a'; 64]] {
            assert_eq!(Namespace::new(bad), Err(NameError::Namespace), "{bad:?}");
        }
    }

    #[test]
    fn keys_are_any_bytes_up_to_the_limit() {
        assert!(Key::new(Bytes::from_static(b"\x00\xff")).is_ok());
        assert_eq!(Key::new(Bytes::new()), Err(NameError::EmptyKey));
        assert!(Key::new(Bytes::from(vec![1; MAX_KEY_BYTES])).is_ok());
        assert_eq!(Key::new(Bytes::from(vec![1; MAX_KEY_BYTES + 1])), Err(NameError::LongKey(1025)));
    }

    #[test]
    fn node_ids_have_no_dots() {
        assert!(NodeId::new("node-a_1").is_ok());
        for bad in ["", "a.b", "1a", "A", "a b", &"a".repeat(41)] {
            assert_eq!(NodeId::new(bad), Err(NameError::NodeId), "{bad:?}");
        }
    }

    #[test]
    fn node_ids_sort_as_their_text() {
        let mut ids = ["b", "a-b", "a", "ab", "a_b", "aa"].map(|id| NodeId::new(id).unwrap());
        ids.sort();
        assert_eq!(ids.map(|id| id.to_string()), ["a", "a-b", "a_b", "aa", "ab", "b"]);
    }
}
