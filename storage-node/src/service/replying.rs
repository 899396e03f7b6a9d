//! Answers on their way out.

use std::sync::Arc;

use cartwheel_cluster::frames::ReplyHandle;
use cartwheel_core::wire::{Answer, Refusal, Reply};

use super::said::Said;

/// A reply with the ring version that goes with it.
#[derive(Debug)]
pub(super) struct Replying {
    pub(super) version: u64,
    pub(super) handle: ReplyHandle,
    /// `None` before it is known what was asked.
    pub(super) said: Option<Said>,
}

impl Replying {
    pub(super) fn send(mut self, reply: Reply) {
        if let Some(said) = &mut self.said {
            said.answered(&reply);
        }
        self.handle.send(Answer { ring_version: self.version, reply }.encode());
    }

    pub(super) fn refuse(self, refusal: Refusal) {
        self.send(Reply::Refused(refusal));
    }
}

/// A reply that two places may give, and one does: whoever takes it first.
#[derive(Debug, Clone)]
pub(super) struct Once(Arc<parking_lot::Mutex<Option<Replying>>>);

impl Once {
    pub(super) fn new(reply: Replying) -> Self {
        Self(Arc::new(parking_lot::Mutex::new(Some(reply))))
    }

    pub(super) fn take(&self) -> Option<Replying> {
        self.0.lock().take()
    }

    pub(super) fn send(&self, reply: Reply) {
        if let Some(replying) = self.take() {
            replying.send(reply);
        }
    }
}
