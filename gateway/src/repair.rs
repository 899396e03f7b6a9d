//! Read repair in the background: homes that answered with less than the others get what they lack.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use cartwheel_cluster::peer::Peers;
use cartwheel_core::quorum::Durability;
use cartwheel_core::wire::{Call, Request};

/// Repairs that may wait; more are dropped, as the next read finds the same.
const MAX_WAITING: usize = 1024;
/// Bytes of records that may wait.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;
/// How long one repair may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A record and the homes that lack something of it.
#[derive(Debug)]
pub(crate) struct Repair {
    pub(crate) ring_version: u64,
    pub(crate) record: Bytes,
    pub(crate) addresses: Vec<String>,
}

/// The bounded queue of repairs.
#[derive(Debug)]
pub(crate) struct Repairs {
    queue: mpsc::Sender<Repair>,
    bytes: Arc<AtomicUsize>,
    offered: AtomicU64,
}

impl Repairs {
    /// Starts the worker; it ends when the queue is dropped.
    pub(crate) fn start(peers: Peers) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Repair>(MAX_WAITING);
        let bytes = Arc::new(AtomicUsize::new(0));
        tokio::spawn({
            let bytes = Arc::clone(&bytes);
            async move {
                while let Some(repair) = receiver.recv().await {
                    let size = repair.record.len();
                    carry_out(&peers, repair).await;
                    bytes.fetch_sub(size, Ordering::Relaxed);
                }
            }
        });
        Self { queue: sender, bytes, offered: AtomicU64::new(0) }
    }

    /// Queues a repair, if there is room.
    pub(crate) fn offer(&self, repair: Repair) {
        let size = repair.record.len();
        let waiting = self.bytes.fetch_add(size, Ordering::Relaxed) + size;
        if waiting > MAX_WAITING_BYTES || self.queue.try_send(repair).is_err() {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            tracing::debug!("the repair queue is full; a repair was left to the next read");
            return;
        }
        self.offered.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were queued so far.
    pub(crate) fn offered(&self) -> u64 {
        self.offered.load(Ordering::Relaxed)
    }
}

async fn carry_out(peers: &Peers, repair: Repair) {
    for address in repair.addresses {
        let request = Request::Replicate {
            durability: Durability::Memory,
            hint_for: None,
            record: repair.record.clone(),
        };
        let call = Call { ring_version: repair.ring_version, request };
        if let Err(error) = peers.call(&address, &call, Instant::now() + TIMEOUT).await {
            tracing::debug!(%address, %error, "a read repair did not arrive");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn repairs_that_wait_are_bounded_in_bytes() {
        let (queue, mut waiting) = mpsc::channel(MAX_WAITING);
        let repairs = Repairs { queue, bytes: Arc::default(), offered: AtomicU64::new(0) };
        let record = Bytes::from(vec![0; MAX_WAITING_BYTES / 2]);
        for _ in 0..3 {
            let record = record.clone();
            repairs.offer(Repair { ring_version: 1, record, addresses: Vec::new() });
        }
        assert!(waiting.try_recv().is_ok() && waiting.try_recv().is_ok());
        assert!(waiting.try_recv().is_err(), "the third was left to the next read");
        assert_eq!(repairs.bytes.load(Ordering::Relaxed), MAX_WAITING_BYTES, "and is not counted");
        assert_eq!(repairs.offered(), 2);
    }
}
