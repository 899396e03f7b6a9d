//! The order of records in memtables and segments.

use bytes::{BufMut, Bytes, BytesMut};

use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::record::{Record, Version};

/// What records are sorted by: the hash, then namespace and key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// The key's position on the circle.
    pub hash: KeyHash,
    /// Length of the namespace, namespace, key.
    pub name: Bytes,
}

impl RecordKey {
    /// The place of this key, whose hash is `hash`.
    #[must_use]
    pub fn new(hash: KeyHash, namespace: &Namespace, key: &Key) -> Self {
        let (ns, key) = (namespace.as_bytes(), key.as_bytes());
        let mut name = BytesMut::with_capacity(1 + ns.len() + key.len());
        name.put_u8(u8::try_from(ns.len()).unwrap_or(u8::MAX));
        name.put_slice(ns);
        name.put_slice(key);
        Self { hash, name: name.freeze() }
    }

    /// The record of this key with what is known of it; `None` if that is nothing.
    #[must_use]
    pub fn record(&self, container: Container<Version>) -> Option<Record> {
        if container.seen().is_empty() {
            return None;
        }
        let length = usize::from(*self.name.first()?);
        let namespace = Namespace::new(self.name.get(1..=length)?).ok()?;
        let key = Key::new(self.name.slice(1 + length..)).ok()?;
        Some(Record { namespace, key, container })
    }
}
