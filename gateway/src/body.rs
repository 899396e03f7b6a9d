//! Taking in a request body: within its size, in time, and within what all bodies together may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use tokio::time::Instant;

use crate::problem::Problem;

/// How long any body may take, however small.
const BASE_TIME: Duration = Duration::from_secs(10);
/// The slowest rate of a larger one, bytes per second.
const SLOWEST_RATE: usize = 64 * 1024;

/// What all bodies that are held may take together.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    held: AtomicUsize,
    limit: usize,
}

/// A body, and its place in the budget for as long as the request lasts.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<BodyBudget>,
    counted: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl BodyBudget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), limit })
    }

    /// Reads a body of at most `max` bytes. Bytes count against the budget as they arrive, so that uploads that
    /// stall hold no room that they do not fill.
    ///
    /// # Errors
    /// 400 for one that breaks off, 408 for one that is too slow, 413 for one that is too large, 503 when all
    /// bodies together are too many.
    pub(crate) async fn read(
        self: &Arc<Self>,
        headers: &HeaderMap,
        mut body: Body,
        max: usize,
    ) -> Result<(Bytes, Held), Problem> {
        let declared = declared_length(headers);
        if declared.is_some_and(|length| length > max) {
            return Err(Problem::too_large(max));
        }
        let deadline = Instant::now() + BASE_TIME + Duration::from_secs((max / SLOWEST_RATE) as u64);
        let mut held = Held { budget: Arc::clone(self), counted: 0 };
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        loop {
            let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
                Err(_) => return Err(Problem::slow_body()),
                Ok(None) => break,
                Ok(Some(Err(_))) => return Err(Problem::bad_request("the request body broke off")),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            held.counted += data.len();
            let all = self.held.fetch_add(data.len(), Ordering::Relaxed) + data.len();
            if held.counted > max {
                return Err(Problem::too_large(max));
            }
            if all > self.limit {
                return Err(Problem::overloaded("too many request bodies are in memory"));
            }
            if first.is_empty() && rest.is_empty() {
                first = data;
                continue;
            }
            if rest.is_empty() {
                rest.reserve(declared.unwrap_or(0).max(first.len() + data.len()));
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
        Ok((if rest.is_empty() { first } else { rest.freeze() }, held))
    }
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
