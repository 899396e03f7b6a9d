//! Learns a newer ring from a storage node that knows it. Where the bucket can't be read that is the only way, and a
//! process that does not know the ring is refused wherever it writes.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::ring::RingDocument;
use cartwheel_core::wire::{Answer, Call, Reply, Request};

use super::{DEADLINE, Shared, about};
use crate::seams::Seams;

/// About how long after all were asked in vain they are asked again.
const ASK_AGAIN_MS: u64 = 500;

/// Asks one node after the other, from the moment that one of them says it knows a newer ring until this process knows
/// it too, from whomever.
pub(super) async fn learn(shared: Arc<Shared>, seams: Seams, ended: watch::Sender<()>) {
    loop {
        tokio::select! {
            biased;
            () = ended.closed() => return,
            () = shared.newer.notified() => {}
        }
        if removed(Rule::LearnRing) {
            continue;
        }
        while let Some((known, addresses)) = who_knows_more(&shared, &seams) {
            tokio::select! {
                biased;
                () = ended.closed() => return,
                // The bucket may be faster.
                newer = shared.follower.newer_than(known) => {
                    if newer.is_none() {
                        return;
                    }
                }
                () = ask(&shared, &seams, known, &addresses) => {}
            }
        }
    }
}

/// The ring version known here, and where nodes are that live and know a newer one, from a random one on.
fn who_knows_more(shared: &Shared, seams: &Seams) -> Option<(u64, Vec<String>)> {
    let view = shared.follower.view()?;
    let ahead = shared.state.lock().gossip.ahead(view.version(), shared.now_ms());
    let members = ahead.iter().filter_map(|node| view.document.member(node));
    let mut addresses: Vec<_> = members.map(|member| member.address.clone()).collect();
    let first = seams.random.below(addresses.len() as u64);
    addresses.rotate_left(usize::try_from(first).unwrap_or(0));
    (!addresses.is_empty()).then(|| (view.version(), addresses))
}

/// Asks them until one gives a document, and leaves some time for it to be taken over.
async fn ask(shared: &Shared, seams: &Seams, known: u64, addresses: &[String]) {
    let call = Call { ring_version: known, request: Request::Ring };
    for address in addresses {
        let answer = shared.peers.call(address, &call, Instant::now() + DEADLINE).await;
        let Ok(Answer { reply: Reply::Ring(document), .. }) = answer else { continue };
        match RingDocument::parse(&document) {
            Ok(document) => {
                shared.follower.offer(document);
                break;
            }
            Err(error) => tracing::warn!(%address, %error, "a node's ring document makes no sense"),
        }
    }
    sleep(about(ASK_AGAIN_MS, seams)).await;
}
