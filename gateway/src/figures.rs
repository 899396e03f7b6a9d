//! What a gateway says of itself when somebody looks.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use cartwheel_core::gossip::Liveness;
use cartwheel_core::ring::MemberState;

use crate::Shared;
use crate::cluster_api::readiness;

/// Asks a gateway for its figures, for as long as it runs.
#[derive(Debug, Clone)]
pub struct GatewayWatch(pub(crate) Weak<Shared>);

/// How a gateway is.
#[derive(Debug, Clone)]
pub struct GatewayFigures {
    /// Does `/readyz` say 200?
    pub ready: bool,
    /// The newest ring it knows; 0 before the first.
    pub ring_version: u64,
    /// Members that say they know another one.
    pub disagreeing: u64,
    /// Requests in the house.
    pub active: u64,
    /// Further replicas asked because the first were slow.
    pub hedges: u64,
    /// Reads that found stale homes and sent them the newer record.
    pub read_repairs: u64,
    /// How many members have each state and liveness, for all that there are.
    pub members: Vec<(MemberState, Liveness, u64)>,
}

/// Partitions by whether most of their homes are alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partitions {
    /// Those of which most are.
    pub reachable: u64,
    /// The others.
    pub unreachable: u64,
}

const STATES: [MemberState; 3] = [MemberState::Joining, MemberState::Active, MemberState::Leaving];
const LIVENESS: [Liveness; 3] = [Liveness::Alive, Liveness::Dead, Liveness::Unknown];

impl GatewayWatch {
    fn shared(&self) -> Option<Arc<Shared>> {
        self.0.upgrade()
    }

    /// How it is; `None` once it has ended.
    #[must_use]
    pub fn figures(&self) -> Option<GatewayFigures> {
        let shared = self.shared()?;
        let view = shared.follower.view();
        let ring_version = view.as_ref().map_or(0, |view| view.version());
        let words = shared.gossip.words();
        let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for member in view.iter().flat_map(|view| &view.document.members) {
            let liveness = shared.gossip.liveness(&member.id);
            *counts.entry((state_name(member.state), liveness.as_str())).or_default() += 1;
        }
        let pairs = STATES.into_iter().flat_map(|state| LIVENESS.map(|liveness| (state, liveness)));
        let count = |(state, liveness): (MemberState, Liveness)| {
            let count = counts.get(&(state_name(state), liveness.as_str())).copied().unwrap_or(0);
            (state, liveness, count)
        };
        Some(GatewayFigures {
            ready: readiness(&shared).is_ok(),
            ring_version,
            disagreeing: words.iter().filter(|word| word.ring_version != ring_version).count() as u64,
            active: shared.watch.active.load(Ordering::Relaxed),
            hedges: shared.hedging.hedges(),
            read_repairs: shared.repairs.offered(),
            members: pairs.map(count).collect(),
        })
    }

    /// Whether its partitions have a quorum; `None` once it has ended. Looks at every partition.
    #[must_use]
    pub fn partitions(&self) -> Option<Partitions> {
        let shared = self.shared()?;
        let mut found = Partitions { reachable: 0, unreachable: 0 };
        let Some(view) = shared.follower.view() else { return Some(found) };
        let ring = &view.current;
        // Where nobody answers, nobody says either that the others are dead.
        let alive: Vec<bool> = ring
            .members()
            .iter()
            .map(|member| {
                shared.gossip.liveness(&member.id) == Liveness::Alive
                    && !shared.peers.is_down(&member.address)
            })
            .collect();
        let most = ring.replicas() / 2 + 1;
        for partition in 0..ring.partitions() {
            let homes = ring.homes(partition).iter();
            let alive = homes.filter(|home| alive.get(usize::from(**home)).copied().unwrap_or(false));
            if alive.count() >= most {
                found.reachable += 1;
            } else {
                found.unreachable += 1;
            }
        }
        Some(found)
    }
}

/// The name of a state in figures.
#[must_use]
pub fn state_name(state: MemberState) -> &'static str {
    match state {
        MemberState::Joining => "joining",
        MemberState::Active => "active",
        MemberState::Leaving => "leaving",
    }
}
