//! The end of a run: everything is healed, and every cart is read from all of its homes through every gateway,
//! until nothing acknowledged is missing or the cluster has had its time.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::calm::Rest;
use super::check::{Findings, Owed};
use super::cluster::Cluster;
use super::faults::supervise;
use super::shopper::{NAMESPACE, accept_json, is_read};
use super::world::{CartId, World};
use crate::client::{Client, Failure, Output, key_path};
use bytes::Bytes;
use http::Method;

/// How long all processes may take to be there again: as long as a start waits for the bucket, and some.
const WHOLE_WITHIN: Duration = Duration::from_secs(90);
/// How long what is missing may then take to arrive, and hints to go, and homes to agree.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// Between two rounds of reads.
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// Reads under way at once.
const AT_ONCE: usize = 16;

/// How the cluster settled.
#[derive(Debug, Clone)]
pub(crate) struct Settled {
    /// How long it took.
    pub(crate) after: Duration,
    /// What was not as it should be even then: hints, standings, differences between homes.
    pub(crate) unrest: Vec<String>,
}

/// Heals the cluster, waits for it, reads every cart, and records what is wrong for good.
///
/// # Errors
/// If a process can't be started, or the cluster does not get whole again, or a cart can't be read in the end.
pub(crate) async fn settle(
    cluster: &mut Cluster,
    world: &World,
    output: &mut Output,
) -> Result<Settled, Failure> {
    let began = Instant::now();
    cluster.heal()?;
    cluster.until_whole(WHOLE_WITHIN).await?;
    let give_up = Instant::now() + SETTLED_WITHIN;
    let mut rest = Rest::default();
    loop {
        supervise(cluster, world, output)?;
        let round = read_all(cluster.clients(), world).await;
        let clean = round.iter().all(|read| matches!(read, Read::Checked(_, found) if is_clean(found)));
        let unrest = rest.look(&cluster.admin()).await.unwrap_or_else(|failure| vec![failure.message]);
        if clean && unrest.is_empty() || Instant::now() > give_up {
            let settled = Settled { after: began.elapsed(), unrest };
            conclude(round, world)?;
            return Ok(settled);
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

/// One of the last reads.
enum Read {
    Checked(CartId, Findings),
    Failed(String),
}

fn is_clean(found: &Findings) -> bool {
    *found == Findings { shown_again: found.shown_again.clone(), ..Findings::default() }
}

fn conclude(round: Vec<Read>, world: &World) -> Result<(), Failure> {
    let mut state = world.lock();
    let mut unread = Vec::new();
    for read in round {
        match read {
            Read::Checked(cart, found) => state.record(cart, found),
            Read::Failed(why) => unread.push(why),
        }
    }
    match unread.first() {
        None => Ok(()),
        Some(why) => Err(Failure::failed(format!("{} last reads failed, such as: {why}", unread.len()))),
    }
}

async fn read_all(gateways: &[Client], world: &World) -> Vec<Read> {
    let carts = world.lock().carts.len();
    let reads = gateways.iter().flat_map(|gateway| (0..carts).map(move |cart| (gateway, cart)));
    let reads = reads.map(|(gateway, cart)| read_last(gateway, cart, world));
    stream::iter(reads).buffer_unordered(AT_ONCE).collect().await
}

async fn read_last(gateway: &Client, cart: CartId, world: &World) -> Read {
    let key = world.lock().carts[cart].key.clone();
    let path = format!("{}?r=all", key_path(NAMESPACE, key.as_bytes()));
    match gateway.send(Method::GET, &path, accept_json(), Bytes::new()).await {
        Ok(reply) if is_read(&reply) && reply.header("cartwheel-degraded").is_none() => {
            match world.lock().judge(cart, Owed::All, &reply) {
                Some((_, found)) => Read::Checked(cart, found),
                None => Read::Failed(format!("{key} shows what nobody wrote")),
            }
        }
        Ok(reply) => Read::Failed(format!("{key}: {}", reply.refusal().message)),
        Err(failure) => Read::Failed(failure.message),
    }
}
