//! Keys and records, the same in every run.

use bytes::Bytes;

use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::record::{Record, Value, Version};
use cartwheel_segments::RecordKey;
use cartwheel_storage_node::bench_support::SEED;

/// Bytes of a value.
const VALUE_BYTES: usize = 1024;

/// Scrambles a number (the finish of splitmix64): each gives another, all over the range.
pub(crate) fn scramble(n: u64) -> u64 {
    let z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The hash of key number `n` where there need be no key.
pub(crate) fn hash(n: u64) -> KeyHash {
    KeyHash(u128::from(scramble(n)) << 64 | u128::from(scramble(!n)))
}

/// The first dot of one of three nodes.
///
/// # Errors
/// Says why a name is none.
pub(crate) fn dot(n: u64) -> Result<Dot, String> {
    let node = ["node-a", "node-b", "node-c"][usize::from(n.to_le_bytes()[0] % 3)];
    let node = NodeId::new(node).map_err(|e| e.to_string())?;
    Ok(Dot { actor: Actor { node, epoch: 1 }, n: 1 + n })
}

/// One key's record, its place and its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) key: RecordKey,
    pub(crate) record: Bytes,
}

/// Records of as many keys, one version of 1 KiB each.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) rows: Vec<Row>,
}

impl Data {
    /// So many of them.
    ///
    /// # Errors
    /// Says why a name is none.
    pub(crate) fn of(records: usize) -> Result<Self, String> {
        let rows = (0..).take(records).map(row).collect::<Result<_, _>>()?;
        Ok(Self { rows })
    }
}

/// Bytes of these records.
pub(crate) fn bytes_of(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.record.len()).sum()
}

fn row(n: u64) -> Result<Row, String> {
    let namespace = Namespace::new(b"engine").map_err(|e| e.to_string())?;
    let key = Key::new(Bytes::from(format!("key-{n:012}"))).map_err(|e| e.to_string())?;
    let value: Vec<u8> =
        (0..).flat_map(|at| scramble(n << 16 | at).to_le_bytes()).take(VALUE_BYTES).collect();
    let version = Version {
        value: Value::Present(value.into()),
        written_ms: 1,
        expires_ms: 0,
        request: u128::from(scramble(n)),
        context: Clock::default(),
        content_type: Bytes::new(),
        meta: Vec::new(),
    };
    let place = RecordKey::new(KeyHash::of(SEED, &namespace, &key), &namespace, &key);
    let container = Container::delta(&Clock::default(), dot(n)?, version);
    Ok(Row { key: place, record: Record { namespace, key, container }.encode() })
}
