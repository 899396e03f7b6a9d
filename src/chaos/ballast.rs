//! Data that lies in the cluster while its ring changes: keys and values by number, so that whoever knows a key's number
//! knows what must come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{HeaderMap, Method};
use tokio::task::JoinSet;

use super::dice::Dice;
use crate::client::{Client, Failure, key_path};

/// Where it lies.
const NAMESPACE: &str = "ballast";
/// Bytes of a value.
pub(crate) const VALUE_BYTES: u64 = 4096;
/// Requests under way at once.
const IN_FLIGHT: usize = 64;
/// How often a request is sent again that was refused or got no answer, and how long it waits before that.
const ATTEMPTS: u32 = 120;
const PAUSE: Duration = Duration::from_millis(250);

fn path(number: u64, query: &str) -> String {
    key_path(NAMESPACE, format!("b{number:09}").as_bytes()) + query
}

fn value(number: u64) -> Bytes {
    let mut dice = Dice::new(number, number);
    let mut bytes = format!("{number} ").into_bytes();
    while (bytes.len() as u64) < VALUE_BYTES {
        bytes.push(u8::try_from(dice.below(256)).unwrap_or_default());
    }
    bytes.into()
}

/// Writes so many keys, each to all of its homes.
///
/// # Errors
/// A write that is refused for long.
pub(crate) async fn fill(clients: &[Client], keys: u64) -> Result<(), Failure> {
    let next = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for client in clients.iter().cycle().take(IN_FLIGHT) {
        let (client, next) = (client.clone(), Arc::clone(&next));
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= keys {
                    return Ok(());
                }
                write(&client, number).await?;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.map_err(|error| Failure::failed(format!("a writer failed: {error}")))??;
    }
    Ok(())
}

async fn write(client: &Client, number: u64) -> Result<(), Failure> {
    let (path, body) = (path(number, "?w=all&durability=memory"), value(number));
    let mut last = Failure::failed("no attempt was made");
    for _ in 0..ATTEMPTS {
        match client.send(Method::PUT, &path, HeaderMap::new(), body.clone()).await {
            Ok(reply) if reply.status.is_success() => return Ok(()),
            Ok(reply) => last = reply.refusal(),
            Err(failure) => last = failure,
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(last)
}

/// Reads every `step`th key, with this query; gives how many were not what was written.
///
/// # Errors
/// A key that can't be read for long.
pub(crate) async fn wrong(clients: &[Client], keys: u64, step: u64, query: &str) -> Result<u64, Failure> {
    let step = usize::try_from(step.max(1)).unwrap_or(usize::MAX);
    let reads = (0..keys).step_by(step).zip(clients.iter().cycle());
    let reads = reads.map(|(number, client)| is_wrong(client, number, query));
    let mut reads = stream::iter(reads).buffer_unordered(IN_FLIGHT);
    let mut wrong = 0;
    while let Some(read) = reads.next().await {
        wrong += u64::from(read?);
    }
    Ok(wrong)
}

async fn is_wrong(client: &Client, number: u64, query: &str) -> Result<bool, Failure> {
    let path = path(number, query);
    let mut last = Failure::failed("no attempt was made");
    for _ in 0..ATTEMPTS {
        match client.get(&path).await {
            Ok(reply) if reply.status.is_server_error() => last = reply.refusal(),
            Ok(reply) => return Ok(!reply.status.is_success() || reply.body != value(number)),
            Err(failure) => last = failure,
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_of_one_size_and_unlike_the_others() {
        let (one, other) = (value(1), value(2));
        assert_eq!((one.len() as u64, other.len() as u64), (VALUE_BYTES, VALUE_BYTES));
        assert_ne!(one[8..], other[8..]);
        assert_eq!(one, value(1));
    }
}
