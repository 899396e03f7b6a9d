//! Telling homes that hints are kept for them, until they have taken them.

use std::sync::Arc;
use std::time::Duration;

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

/// Offers hints until the process ends.
pub(crate) async fn offer(me: NodeId, hints: Arc<Hints>, copier: Copier, follower: Follower) {
    loop {
        let due = hints.to_offer();
        if due.is_empty() {
            if hints.is_idle() {
                hints.offer_now.notified().await;
            } else {
                tokio::time::sleep(IDLE).await;
            }
            continue;
        }
        for (home, urgent) in due {
            let Some(view) = follower.view() else { continue };
            let Some(member) = view.document.member(&home) else { continue };
            let request = Request::Offer { holder: me.clone(), urgent };
            if let Err(error) = copier.call_within(&member.address, view.version(), request, PATIENCE).await {
                tracing::trace!(%error, %home, "hints can't be offered yet");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
