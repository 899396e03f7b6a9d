//! What the bench last heard about each key, so that its writes replace what they saw.
//!
//! A write that carries an old clock leaves a sibling, and a bench that grows siblings measures them instead of
//! the store. So in `follow` mode a key has at most one write in flight, every write carries the clock of the
//! last answer, and a read's answer is kept only if no write finished while it was under way (it may be older
//! than that write).

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::HeaderValue;

#[derive(Debug, Default)]
struct Slot {
    clock: Option<HeaderValue>,
    writes: u32,
    writing: bool,
}

/// The clocks of all keys; empty (and useless) in `blind` mode.
#[derive(Debug)]
pub(crate) struct Clocks {
    slots: Vec<Mutex<Slot>>,
}

impl Clocks {
    /// A table for `keys` keys.
    pub(crate) fn new(keys: u32) -> Clocks {
        Clocks { slots: (0..keys).map(|_| Mutex::new(Slot::default())).collect() }
    }

    fn slot(&self, key: u32) -> Option<MutexGuard<'_, Slot>> {
        let slot = self.slots.get(key as usize)?;
        // A slot is valid after every single assignment, so a panicked holder has not spoilt it.
        Some(slot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Claims `key` for one write; `None` if another write of it is in flight.
    pub(crate) fn begin_write(&self, key: u32) -> Option<Option<HeaderValue>> {
        let Some(mut slot) = self.slot(key) else { return Some(None) };
        if slot.writing {
            return None;
        }
        slot.writing = true;
        Some(slot.clock.clone())
    }

    /// Ends a write with the clock of its answer. Without one (it was refused, or nobody answered) the old
    /// clock stays: it still covers all that was seen.
    pub(crate) fn end_write(&self, key: u32, clock: Option<HeaderValue>) {
        if let Some(mut slot) = self.slot(key) {
            slot.writing = false;
            slot.writes = slot.writes.wrapping_add(1);
            if clock.is_some() {
                slot.clock = clock;
            }
        }
    }

    /// What to hand to [`Clocks::end_read`] when the read that starts now is answered.
    pub(crate) fn begin_read(&self, key: u32) -> u32 {
        self.slot(key).map_or(0, |slot| slot.writes)
    }

    /// Ends a read with the clock of its answer.
    pub(crate) fn end_read(&self, key: u32, began: u32, clock: Option<HeaderValue>) {
        if let Some(mut slot) = self.slot(key)
            && slot.writes == began
            && clock.is_some()
        {
            slot.clock = clock;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(text: &'static str) -> Option<HeaderValue> {
        Some(HeaderValue::from_static(text))
    }

    #[test]
    fn a_key_has_one_write_in_flight() {
        let clocks = Clocks::new(2);
        assert_eq!(clocks.begin_write(0), Some(None));
        assert_eq!(clocks.begin_write(0), None);
        assert_eq!(clocks.begin_write(1), Some(None));
        clocks.end_write(0, clock("a=1"));
        assert_eq!(clocks.begin_write(0), Some(clock("a=1")));
        clocks.end_write(0, None);
        assert_eq!(clocks.begin_write(0), Some(clock("a=1")));
    }

    #[test]
    fn a_read_that_a_write_overtook_is_forgotten() {
        let clocks = Clocks::new(1);
        let began = clocks.begin_read(0);
        let _ = clocks.begin_write(0);
        clocks.end_write(0, clock("a=2"));
        clocks.end_read(0, began, clock("a=1"));
        assert_eq!(clocks.begin_write(0), Some(clock("a=2")));
        clocks.end_write(0, clock("a=3"));
        let began = clocks.begin_read(0);
        clocks.end_read(0, began, clock("a=3, b=1"));
        assert_eq!(clocks.begin_write(0), Some(clock("a=3, b=1")));
    }

    #[test]
    fn without_a_table_every_write_is_blind() {
        let clocks = Clocks::new(0);
        assert_eq!(clocks.begin_write(5), Some(None));
        assert_eq!(clocks.begin_write(5), Some(None));
        clocks.end_write(5, clock("a=1"));
        assert_eq!(clocks.begin_write(5), Some(None));
    }
}
