//! What a gateway before this one may have left for homes in the bucket: it may have been killed before it could tell
//! them. Homes look there by themselves twice a minute; each is asked, once, to look now.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use cartwheel_cluster::membership::Follower;
use cartwheel_cluster::peer::Peers;
use cartwheel_core::mutation::{Rule, removed};
use cartwheel_core::names::NodeId;
use cartwheel_core::wire::{Call, Reply, Request};

/// How long a home may take to say that it has heard.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause before those that did not are asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// For how long they are. A home that was away for longer looks when it comes back.
const GIVE_UP: Duration = Duration::from_secs(120);

/// Asks every member, in the background.
pub(crate) fn start(peers: Peers, follower: Follower) {
    if removed(Rule::AskToLook) {
        return;
    }
    tokio::spawn(async move {
        let until = Instant::now() + GIVE_UP;
        // At the homes' leisure: whatever they lack of it they have lacked for long.
        let Ok(holder) = NodeId::new("gateway") else { return };
        let request = Request::Offer { holder, urgent: false };
        let mut told: BTreeSet<NodeId> = BTreeSet::new();
        let Some(mut view) = follower.at_least(1).await else { return };
        while Instant::now() < until {
            view = follower.view().unwrap_or(view);
            let version = view.version();
            let members = view.document.members.iter().filter(|member| !told.contains(&member.id));
            let calls: Vec<_> = members
                .map(|member| {
                    let call = Call { ring_version: version, request: request.clone() };
                    let (peers, id, address) = (&peers, member.id.clone(), &member.address);
                    async move {
                        let answer = peers.call(address, &call, Instant::now() + PATIENCE).await;
                        answer.is_ok_and(|answer| answer.reply == Reply::Hello).then_some(id)
                    }
                })
                .collect();
            if calls.is_empty() {
                return;
            }
            told.extend(join_all(calls).await.into_iter().flatten());
            tokio::time::sleep(PAUSE).await;
        }
    });
}
