//! An entry of the hints' log: the home's name with its length before it, and the record.

use bytes::{BufMut, Bytes, BytesMut};

use cartwheel_core::names::NodeId;
use cartwheel_core::record::Record;

/// An entry of the hints' log: the home's name with its length before it, and the record.
pub(super) fn log_entry(home: &NodeId, record: &Bytes) -> Bytes {
    let name = home.as_str().as_bytes();
    let mut entry = BytesMut::with_capacity(1 + name.len() + record.len());
    entry.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    entry.put_slice(name);
    entry.put_slice(record);
    entry.freeze()
}

/// Reads an entry of the hints' log.
pub(super) fn read_log_entry(entry: &Bytes) -> Option<(NodeId, Record)> {
    let length = usize::from(*entry.first()?);
    let home = NodeId::new(std::str::from_utf8(entry.get(1..=length)?).ok()?).ok()?;
    // Memory of its own: a slice would keep the whole file alive.
    let record = Bytes::copy_from_slice(entry.get(1 + length..)?);
    Some((home, Record::decode(&record).ok()?))
}
