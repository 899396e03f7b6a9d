//! Telling homes that hints are kept for them, until they have taken them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use cartwheel_cluster::membership::Follower;
use cartwheel_core::names::NodeId;
use cartwheel_core::wire::Request;

use crate::copier::Copier;
use crate::hints::Hints;

/// How long a home may take to take note.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pause before homes are told again.
const PAUSE: Duration = Duration::from_millis(250);
/// The pause before hints that a home is taking are looked at again.
const IDLE: Duration = Duration::from_secs(1);
/// The same where there are none.
const LONG: Duration = Duration::from_secs(60);

/// Offers hints until the process ends.
pub(crate) async fn offer(me: NodeId, hints: Arc<Hints>, copier: Copier, follower: Follower) {
    loop {
        let due = hints.to_offer();
        if due.is_empty() {
            let pause = if hints.is_idle() { LONG } else { IDLE };
            let _ = tokio::time::timeout(pause, hints.offer_now.notified()).await;
            continue;
        }
        let offers = due.into_iter().map(|(home, urgent)| {
            let (view, copier, request) =
                (follower.view(), copier.clone(), Request::Offer { holder: me.clone(), urgent });
            async move {
                let Some(view) = view else { return };
                let Some(member) = view.document.member(&home) else { return };
                let offered = copier.call_within(&member.address, view.version(), request, PATIENCE).await;
                if let Err(error) = offered {
                    tracing::trace!(%error, %home, "hints can't be offered yet");
                }
            }
        });
        join_all(offers).await;
        tokio::time::sleep(PAUSE).await;
    }
}
