//! Which homes this gateway has had others stand in for, and may not rely on until they have taken what was kept for
//! them.
//!
//! A home that this gateway could not reach may not know that it was away, whoever stood in for it. So the gateway
//! asks it to ask around, and until the home says that it counts, its answers are only added to those of others.
//! Homes that are not reachable at all are not asked: the connection to them is what is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use cartwheel_cluster::membership::Follower;
use cartwheel_cluster::peer::Peers;
use cartwheel_core::names::NodeId;
use cartwheel_core::standing::Standing;
use cartwheel_core::wire::{Call, Reply, Request};

/// How long a home may take to catch up before it is asked again.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between looks at homes that are not relied on.
const PAUSE: Duration = Duration::from_millis(100);

/// The homes that this gateway does not rely on.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// How many there are, to be looked at first.
    count: AtomicUsize,
    /// Each with how often others stood in for it.
    doubted: Mutex<BTreeMap<NodeId, u64>>,
}

impl Trust {
    /// Relies on everybody; asks those that it comes to doubt, until it is dropped.
    pub(crate) fn start(peers: Peers, follower: Follower) -> Self {
        let shared = Arc::new(Shared::default());
        peers.on_lost({
            let (shared, follower) = (Arc::downgrade(&shared), follower.clone());
            move |address| {
                let (Some(shared), Some(view)) = (shared.upgrade(), follower.view()) else { return };
                let members = view.document.members.iter();
                members.filter(|member| member.address == address).for_each(|member| shared.lose(&member.id));
            }
        });
        tokio::spawn(ask_around(Arc::downgrade(&shared), peers, follower));
        Self { shared }
    }

    /// May answers of this home count?
    pub(crate) fn relies_on(&self, home: &NodeId) -> bool {
        self.shared.count.load(Ordering::Acquire) == 0 || !self.shared.doubted.lock().contains_key(home)
    }

    /// Others stand in for this home.
    pub(crate) fn doubt(&self, home: &NodeId) {
        let mut doubted = self.shared.doubted.lock();
        *doubted.entry(home.clone()).or_default() += 1;
        self.shared.count.store(doubted.len(), Ordering::Release);
    }
}

impl Shared {
    /// This home is out of reach: others may stand in for it, here or elsewhere.
    fn lose(&self, home: &NodeId) {
        let mut doubted = self.doubted.lock();
        *doubted.entry(home.clone()).or_default() += 1;
        self.count.store(doubted.len(), Ordering::Release);
    }

    /// The home counts: it is relied on again, unless others stood in for it since it was asked.
    fn settle(&self, home: &NodeId, stood_in: u64) {
        let mut doubted = self.doubted.lock();
        if doubted.get(home) == Some(&stood_in) {
            doubted.remove(home);
        }
        self.count.store(doubted.len(), Ordering::Release);
    }
}

async fn ask_around(shared: Weak<Shared>, peers: Peers, follower: Follower) {
    let asking: Arc<Mutex<BTreeSet<NodeId>>> = Arc::default();
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let Some(view) = follower.view() else {
            drop(shared);
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let doubted: Vec<(NodeId, u64)> =
            shared.doubted.lock().iter().map(|(home, stood_in)| (home.clone(), *stood_in)).collect();
        for (home, stood_in) in doubted {
            let Some(member) = view.document.member(&home) else {
                // It is no member any more: nobody asks it.
                shared.settle(&home, stood_in);
                continue;
            };
            if peers.is_down(&member.address) || !asking.lock().insert(home.clone()) {
                continue;
            }
            let (shared, peers, asking) = (Arc::clone(&shared), peers.clone(), Arc::clone(&asking));
            let address = member.address.clone();
            let call = Call { ring_version: view.version(), request: Request::Probe { hinted: true } };
            tokio::spawn(async move {
                let answer = peers.call(&address, &call, Instant::now() + PATIENCE).await;
                if let Ok(Reply::Standing(Standing::Counting)) = answer.map(|answer| answer.reply) {
                    tracing::debug!(%home, "this home has caught up");
                    shared.settle(&home, stood_in);
                }
                asking.lock().remove(&home);
            });
        }
        drop(shared);
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_home_is_relied_on_again_only_if_nobody_stood_in_since_it_was_asked() {
        let trust = Trust { shared: Arc::default() };
        let home = NodeId::new("node-a").unwrap();
        assert!(trust.relies_on(&home));
        trust.doubt(&home);
        assert!(!trust.relies_on(&home));
        trust.doubt(&home);
        trust.shared.settle(&home, 1);
        assert!(!trust.relies_on(&home), "another write went elsewhere meanwhile");
        trust.shared.settle(&home, 2);
        assert!(trust.relies_on(&home));
    }
}
