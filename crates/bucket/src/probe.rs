//! Asks a store whether create-if-absent can be relied on.

use bytes::Bytes;

use crate::{Bucket, BucketError, Created};

/// What the probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeVerdict {
    /// Racing creates had exactly one winner, and its body is the one stored.
    Sound,
    /// The store lets more than one create win, or forgets the winner.
    IgnoresConditions {
        /// How many of the nine creates were told that they had won.
        winners: u32,
    },
}

/// Races eight creates of `probe/{nonce}` with distinct bodies, then tries a
/// late one, compares the stored body with the winner's, and deletes the object.
///
/// `nonce` must be fresh: two probes with the same nonce would disturb each other.
///
/// # Errors
/// If the store could not be asked. The object may then be left behind.
pub async fn probe_conditional_create(bucket: &dyn Bucket, nonce: u128) -> Result<ProbeVerdict, BucketError> {
    let key = format!("probe/{nonce:032x}");
    let body = |who: u8| Bytes::from(format!("cartwheel probe {nonce:032x} {who}"));
    let racer = |who: u8| bucket.create(&key, body(who));
    let (a, b, c, d, e, f, g, h) =
        tokio::join!(racer(0), racer(1), racer(2), racer(3), racer(4), racer(5), racer(6), racer(7));
    let late = racer(8).await;
    let mut winners = Vec::new();
    for (who, answer) in (0..).zip([a, b, c, d, e, f, g, h, late]) {
        if answer? == Created::New {
            winners.push(who);
        }
    }
    let stored = bucket.get(&key).await?;
    bucket.delete(&key).await?;
    match winners.as_slice() {
        [winner] if stored == body(*winner) => Ok(ProbeVerdict::Sound),
        _ => {
            Ok(ProbeVerdict::IgnoresConditions { winners: u32::try_from(winners.len()).unwrap_or(u32::MAX) })
        }
    }
}
