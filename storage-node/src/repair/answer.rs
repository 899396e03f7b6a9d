//! Answers to homes that compare what they hold with this one.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::stream::StreamExt;
use tokio::time::Instant;

use cartwheel_core::hash::KeyHash;
use cartwheel_core::quorum::Durability;
use cartwheel_core::wire::{Refusal, Repair, Reply, push_to_page};

use super::exchange::records_of;
use crate::engine::Engine;
use crate::ledger::{Committed, Ledger};

/// Keys that are read at once.
const AT_ONCE: usize = 16;
/// How long reading may take before what is there is sent: less than whoever asked waits.
const ENOUGH: Duration = Duration::from_secs(3);
/// Largest answer, bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// What this node answers to a question about keys that it may be asked for.
///
/// # Errors
/// A refusal: the node does not know all that it holds yet, or the bucket does not answer.
pub(crate) async fn answer(engine: &Engine, ledger: &Ledger, asked: Repair) -> Result<Reply, Refusal> {
    match asked {
        // What is not known yet would look as if it were not there.
        Repair::Sums { .. } | Repair::Clocks { .. } if !engine.index_complete() => Err(Refusal::CatchingUp),
        Repair::Sums { spans, depth } => Ok(Reply::Sums(engine.sums(&spans, depth).await)),
        Repair::Clocks { spans, after, bytes } => {
            let (clocks, more) = engine.clocks(&spans, after, at_most(bytes)).await;
            Ok(Reply::Clocks { more, clocks })
        }
        Repair::Fetch { hashes, bytes } => {
            fetch(engine, &hashes, at_most(bytes)).await.map_err(Refusal::Unable)
        }
        Repair::Settle => {
            let settled = engine.flushed().await && ledger.commit().await == Committed::Yes;
            Ok(Reply::Acked { reached: if settled { Durability::Bucket } else { Durability::Memory } })
        }
        Repair::Begin { .. } => Ok(Reply::Hello),
    }
}

fn at_most(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(MAX_BYTES).min(MAX_BYTES)
}

async fn fetch(engine: &Engine, hashes: &[KeyHash], bytes: usize) -> Result<Reply, String> {
    let (mut page, until) = (BytesMut::new(), Instant::now() + ENOUGH);
    let reading = hashes.iter().copied().map(|hash| records_of(engine, hash));
    // In order, for whoever asked goes on after the last one.
    let mut reading = futures_util::stream::iter(reading).buffered(AT_ONCE);
    while let Some(records) = reading.next().await {
        records?.iter().for_each(|record| push_to_page(&mut page, record));
        if page.len() >= bytes || (!page.is_empty() && Instant::now() >= until) {
            return Ok(Reply::Page { more: true, records: page.freeze() });
        }
    }
    Ok(Reply::Page { more: false, records: page.freeze() })
}
