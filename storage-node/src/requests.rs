//! Requests that were carried out lately, and the dots that their versions got: a request that comes again is the same
//! write, also when something has replaced it since.

use std::collections::{HashMap, VecDeque};

use cartwheel_core::clock::Dot;
use cartwheel_core::hash::KeyHash;

/// How many are remembered; the oldest go first.
const REMEMBERED: usize = 65_536;

/// A key and a request id.
pub(crate) type Request = (KeyHash, u128);

/// Those requests.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    dots: HashMap<Request, Dot>,
    order: VecDeque<Request>,
}

impl Requests {
    /// The dot that this request got.
    pub(crate) fn dot(&self, request: &Request) -> Option<&Dot> {
        self.dots.get(request)
    }

    /// Remembers what a request got.
    pub(crate) fn remember(&mut self, request: Request, dot: Dot) {
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.dots.remove(&oldest);
        }
        self.order.push_back(request);
        self.dots.insert(request, dot);
    }
}
