//! Writes that this gateway made in the bucket lately, by their request: a request that comes again is the same write,
//! as it is at a storage node, whether or not its first answer said that it was done.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use cartwheel_core::clock::Dot;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::record::Record;

/// The most writes that are remembered, and the most bytes of their values. Older ones are forgotten first.
const MAX_WRITES: usize = 4096;
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// A key and a request id.
type Request = (KeyHash, u128);

/// Those writes.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    writes: HashMap<Request, (Dot, Record)>,
    order: VecDeque<Request>,
    bytes: u64,
}

impl Repeats {
    /// The write that this request was before.
    pub(super) fn find(&self, hash: KeyHash, request: u128) -> Option<(Dot, Record)> {
        self.0.lock().writes.get(&(hash, request)).cloned()
    }

    /// Remembers a write, before anything is sent; gives what the request is: that write, or another one if the same
    /// request came at the same time and was faster.
    pub(super) fn remember(&self, hash: KeyHash, request: u128, write: (Dot, Record)) -> (Dot, Record) {
        let state = &mut *self.0.lock();
        if let Some(before) = state.writes.get(&(hash, request)) {
            return before.clone();
        }
        state.writes.insert((hash, request), write.clone());
        state.order.push_back((hash, request));
        state.bytes += size(&write.1);
        while state.order.len() > MAX_WRITES || state.bytes > MAX_BYTES {
            let Some(oldest) = state.order.pop_front() else { break };
            if let Some((_, record)) = state.writes.remove(&oldest) {
                state.bytes = state.bytes.saturating_sub(size(&record));
            }
        }
        write
    }
}

fn size(record: &Record) -> u64 {
    record.container.siblings().iter().map(|sibling| sibling.version.value.size()).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use cartwheel_core::clock::{Actor, Clock};
    use cartwheel_core::container::Container;
    use cartwheel_core::names::{Key, Namespace};
    use cartwheel_core::record::{Value, Version};

    use super::*;

    fn record(dot: &Dot, value: Bytes) -> Record {
        let version = Version {
            value: Value::Present(value),
            written_ms: 1,
            expires_ms: 0,
            request: 7,
            context: Clock::new(),
            content_type: Bytes::new(),
            meta: Vec::new(),
        };
        Record {
            namespace: Namespace::new(b"carts").unwrap(),
            key: Key::new("k".into()).unwrap(),
            container: Container::delta(&Clock::new(), dot.clone(), version),
        }
    }

    fn dot(n: u64) -> Dot {
        Dot { actor: Actor::parse("gw-1.1").unwrap(), n }
    }

    #[test]
    fn a_request_is_known_by_its_key_and_id_and_the_oldest_go_first() {
        let repeats = Repeats::default();
        let hash = |n: usize| KeyHash(u128::try_from(n).unwrap());
        assert!(repeats.find(hash(0), 7).is_none());
        for n in 0..=MAX_WRITES {
            let dot = dot(n as u64 + 1);
            repeats.remember(hash(n), 7, (dot.clone(), record(&dot, Bytes::new())));
        }
        let late = repeats.remember(hash(5), 7, (dot(99_999), record(&dot(99_999), Bytes::new())));
        assert_eq!(late.0, dot(6), "who came first");
        assert!(repeats.find(hash(0), 7).is_none(), "one too many");
        assert_eq!(repeats.find(hash(1), 7).unwrap().0, dot(2));
        assert!(repeats.find(hash(1), 8).is_none());
        let large = Bytes::from(vec![0; usize::try_from(MAX_BYTES).unwrap()]);
        repeats.remember(hash(1), 9, (dot(9), record(&dot(9), large)));
        assert!(repeats.find(hash(MAX_WRITES), 7).is_some(), "an empty value takes no room");
        repeats.remember(hash(2), 9, (dot(9), record(&dot(9), Bytes::from_static(b"x"))));
        assert!(repeats.find(hash(1), 9).is_none() && repeats.find(hash(2), 9).is_some());
    }
}
