//! Taking in records in bulk: from other homes, page by page, and from anywhere else, as fast as the engine takes
//! them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use cartwheel_cluster::peer::Peers;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Record;
use cartwheel_core::wire::{Call, Refusal, Reply, Request, split_page};

use crate::engine::Engine;
use crate::memtable::RecordKey;
use crate::pace::Pace;

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before what was refused for want of room is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes of one page.
pub(crate) const PAGE_BYTES: u32 = 1024 * 1024;

/// Takes in records.
#[derive(Debug, Clone)]
pub(crate) struct Copier {
    pub(crate) engine: Arc<Engine>,
    pub(crate) peers: Peers,
    pub(crate) pace: Arc<Pace>,
    pub(crate) hash_seed: u64,
}

impl Copier {
    /// One call to the node at `address`.
    pub(crate) async fn call(&self, address: &str, version: u64, request: Request) -> Result<Reply, String> {
        self.call_within(address, version, request, CALL_TIMEOUT).await
    }

    /// One call that may take so long.
    pub(crate) async fn call_within(
        &self,
        address: &str,
        ring_version: u64,
        request: Request,
        time: Duration,
    ) -> Result<Reply, String> {
        let call = Call { ring_version, request };
        let answer = self.peers.call(address, &call, Instant::now() + time).await;
        Ok(answer.map_err(|e| format!("{address}: {e}"))?.reply)
    }

    /// Copies what the node at `address` holds of a partition, or what came in there during the last `age`; returns
    /// the last record.
    pub(crate) async fn pull(
        &self,
        address: &str,
        version: u64,
        partition: u32,
        age: Option<Duration>,
    ) -> Result<Option<Bytes>, String> {
        let age_ms = age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let page = |after| Request::Scan { partition, after, bytes: PAGE_BYTES, age_ms };
        self.pull_pages(address, version, page).await
    }

    /// Takes in page after page of what `page` asks for; returns the last record.
    pub(crate) async fn pull_pages(
        &self,
        address: &str,
        version: u64,
        page: impl Fn(Option<(KeyHash, Bytes)>) -> Request,
    ) -> Result<Option<Bytes>, String> {
        let mut after: Option<(KeyHash, Bytes)> = None;
        let mut last = None;
        loop {
            let (more, records) = match self.call(address, version, page(after.clone())).await? {
                Reply::Page { more, records } => (more, split_page(records).map_err(|e| e.to_string())?),
                Reply::Refused(Refusal::Overloaded) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                other => return Err(format!("{address} answered {other:?}")),
            };
            self.pace.turn(records.iter().map(Bytes::len).sum()).await;
            for bytes in records {
                let key = self.keep(&bytes, Durability::Memory).await?;
                after = Some((key.hash, key.name));
                last = Some(bytes);
            }
            if !more {
                return Ok(last);
            }
        }
    }

    /// The place of a record.
    pub(crate) fn key_of(&self, record: &Bytes) -> Result<RecordKey, String> {
        let (namespace, key) = Record::decode_key(record).map_err(|e| e.to_string())?;
        let hash = KeyHash::of(self.hash_seed, &namespace, &key);
        Ok(RecordKey::new(hash, &namespace, &key))
    }

    /// Takes in a record, waiting while there is no room for it.
    pub(crate) async fn keep(&self, bytes: &Bytes, durability: Durability) -> Result<RecordKey, String> {
        let record = Record::decode(bytes).map_err(|e| e.to_string())?;
        let hash = KeyHash::of(self.hash_seed, &record.namespace, &record.key);
        if durability == Durability::Memory && self.engine.includes(hash, &record.container) {
            // In memory or in segments already: writing it once more would only make the next flush larger.
            return Ok(RecordKey::new(hash, &record.namespace, &record.key));
        }
        let bytes = Bytes::copy_from_slice(bytes);
        loop {
            let (sender, reached) = oneshot::channel();
            let done = Box::new(move |reached| {
                let _ = sender.send(reached);
            });
            match self.engine.take(hash, &record, &bytes, durability, done).await {
                Ok(()) => {
                    let reached = reached.await.map_err(|_| "the node is shutting down".to_owned())?;
                    if reached < durability {
                        return Err(format!("only in {reached}"));
                    }
                    return Ok(RecordKey::new(hash, &record.namespace, &record.key));
                }
                Err(Refusal::Overloaded) => tokio::time::sleep(PAUSE).await,
                Err(refusal) => return Err(format!("{refusal:?}")),
            }
        }
    }
}
