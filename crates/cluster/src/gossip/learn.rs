//! Learns a newer ring from a storage node that knows it. Where the bucket can't be read that is the only way, and a
//! process that does not know the ring is refused wherever it writes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::ring::RingDocument;
use cartwheel_core::wire::{Answer, Call, Reply, Request};

use super::{DEADLINE, Shared, about};
use crate::connection::{CallError, Outcome, ReplyTo};
use crate::seams::Seams;

/// How long one node may take before the next is asked too.
const PATIENCE: Duration = Duration::from_millis(100);
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

/// Asks them until one gives a document, and leaves some time for it to be taken over. Who does not answer soon may be
/// gone, or elsewhere by now: the next is asked beside it.
async fn ask(shared: &Shared, seams: &Seams, known: u64, addresses: &[String]) {
    let call = Call { ring_version: known, request: Request::Ring }.encode();
    // It never holds more than one outcome for each address.
    let (sender, mut answers) = mpsc::unbounded_channel::<Outcome>();
    let (mut left, mut waits_for) = (addresses.iter(), 0);
    let mut next = Instant::now();
    while left.len() > 0 || waits_for > 0 {
        tokio::select! {
            biased;
            Some((_, outcome)) = answers.recv() => {
                waits_for -= 1;
                if let Some(document) = read(outcome) {
                    shared.follower.offer(document);
                    break;
                }
                next = Instant::now();
            }
            () = sleep_until(next), if left.len() > 0 => {
                let Some(address) = left.next() else { continue };
                let reply_to = ReplyTo { sender: sender.clone(), tag: 0 };
                shared.peers.submit(address, call.clone(), next + DEADLINE, reply_to);
                waits_for += 1;
                next += PATIENCE;
            }
        }
    }
    sleep(about(ASK_AGAIN_MS, seams)).await;
}

fn read(answer: Result<Bytes, CallError>) -> Option<RingDocument> {
    let Ok(Answer { reply: Reply::Ring(document), .. }) = Answer::decode(answer.ok()?) else { return None };
    RingDocument::parse(&document)
        .inspect_err(|error| tracing::warn!(%error, "a node's ring document makes no sense"))
        .ok()
}
