//! Answers to homes that compare what they hold with this one.

use bytes::{Bytes, BytesMut};

use cartwheel_core::hash::KeyHash;
use cartwheel_core::quorum::Durability;
use cartwheel_core::wire::{Refusal, Repair, Reply, push_to_page};

use super::exchange::records_of;
use crate::engine::Engine;
use crate::ledger::{Committed, Ledger};

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
    let mut page = BytesMut::new();
    for hash in hashes {
        if page.len() >= bytes {
            return Ok(Reply::Page { more: true, records: page.freeze() });
        }
        let records: Vec<Bytes> = records_of(engine, *hash).await?;
        records.iter().for_each(|record| push_to_page(&mut page, record));
    }
    Ok(Reply::Page { more: false, records: page.freeze() })
}
