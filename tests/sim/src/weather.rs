//! P7: when a write must be accepted, as far as the plan of faults tells for sure. It errs on the side of silence: a node
//! counts as reachable only if nothing touched it or its link to the gateway for a while, and what nobody here knows
//! touches everything.

use std::time::Duration;

use cartwheel_core::quorum::Durability;

use crate::claims::Ask;
use crate::cluster::GATEWAYS;
use crate::faults::{Event, Fault, GATEWAY_HOST, NODES};
use crate::world::GIVEN_UP;

/// How long nothing must have touched a link, or all of the cluster, so that who gave up somebody has noticed.
const CLEAR: Duration = Duration::from_secs(6);
/// How long nothing must have touched a node so that it surely counts though others are away, or the bucket: one that
/// came back takes what they keep for it, and can't count before that.
const LONG_CLEAR: Duration = Duration::from_secs(15);
/// How long a node must have been dead so that every gateway knows.
const KNOWN_DEAD: Duration = Duration::from_secs(3);

/// What a fault touches.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Touch {
    nodes: Vec<usize>,
    gateways: Vec<usize>,
    links: Vec<(usize, usize)>,
    /// The gateways' ways to the bucket.
    buckets: Vec<usize>,
    /// The bucket itself.
    bucket: bool,
    /// The ring says that a node is elsewhere; writes by who does not know yet are refused, and frames of the first
    /// version can't say it.
    ring: bool,
    /// The node is dead meanwhile, and nothing else.
    dead: bool,
    everything: bool,
}

fn node(node: usize) -> Touch {
    Touch { nodes: vec![node], ..Touch::default() }
}

fn gateway(gateway: usize) -> Touch {
    Touch { gateways: vec![gateway], ..Touch::default() }
}

fn host(host: usize) -> Touch {
    match host.checked_sub(GATEWAY_HOST) {
        None => node(host),
        Some(number) if number < GATEWAYS.len() => gateway(number),
        Some(_) => Touch::default(),
    }
}

fn link(one: usize, other: usize) -> Touch {
    let (a, b) = (one.min(other), one.max(other));
    let is_gateway = |host: usize| (GATEWAY_HOST..GATEWAY_HOST + GATEWAYS.len()).contains(&host);
    if b < GATEWAY_HOST {
        Touch { nodes: vec![a, b], ..Touch::default() }
    } else if a < GATEWAY_HOST && is_gateway(b) {
        Touch { links: vec![(a, b - GATEWAY_HOST)], ..Touch::default() }
    } else {
        // Between clients and a gateway, or among gateways: the quorum does not depend on it.
        Touch::default()
    }
}

fn bucket(of: Option<usize>) -> Touch {
    match of {
        None => Touch { bucket: true, ..Touch::default() },
        Some(one) if one < GATEWAY_HOST => node(one),
        Some(one) => Touch { buckets: vec![one - GATEWAY_HOST], ..Touch::default() },
    }
}

fn touch(fault: Fault) -> Touch {
    match fault {
        Fault::Cut(node, g) | Fault::Deaf(node, g) | Fault::Mute(node, g) | Fault::Stalled(node, g) => {
            link(node, GATEWAY_HOST + g)
        }
        Fault::Apart(one, other) | Fault::Unheard(one, other) => link(one, other),
        Fault::Crashed(n) | Fault::Wiped(n) => Touch { dead: true, ..node(n) },
        Fault::Paused(n)
        | Fault::Restarted(n)
        | Fault::Isolated(n)
        | Fault::DiskFull(n)
        | Fault::DiskFails(n)
        | Fault::DiskSlow(n)
        | Fault::DiskReadOnly(n)
        | Fault::CrashedAgain(n)
        | Fault::RolledOver(n)
        | Fault::NoBucket(n) => node(n),
        Fault::Twin(n, _) => Touch { ring: true, ..node(n) },
        Fault::GatewayCrashed(g) | Fault::GatewayAlone(g) => gateway(g),
        Fault::GatewayNoBucket(g) => bucket(Some(GATEWAY_HOST + g)),
        Fault::BucketGone => bucket(None),
        Fault::BucketSlow(of) | Fault::BucketErrors(of) | Fault::BucketMute(of) | Fault::BucketLate(of) => {
            bucket(of)
        }
        Fault::ClientsCut(_) | Fault::ClientsDeaf(_) => Touch::default(),
        Fault::SlowLink(one, other, _) | Fault::LossyLink(one, other, _) => link(one, other),
        Fault::FramesTwice(one) | Fault::ClockJumped(one, _) | Fault::Frozen(one) => host(one),
        _ => Touch { everything: true, ..Touch::default() },
    }
}

/// How long what a fault has done is there after its end: a process that starts may wait for a write that is late.
fn outlasts(fault: Fault) -> Duration {
    if let Fault::BucketLate(_) = fault { GIVEN_UP } else { Duration::ZERO }
}

/// What the plan of faults tells.
#[derive(Debug, Default)]
pub struct Weather {
    /// When each fault is there, and what it touches.
    faults: Vec<(Duration, Duration, Touch)>,
    /// When a node joins: until nothing is amiss any more, writes need it too.
    joins: Option<Duration>,
    known: bool,
}

impl Weather {
    /// Nothing is known: nothing must be accepted.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// As this plan says; the last node joins then.
    pub fn of(plan: &[Event], joins: Option<Duration>) -> Self {
        let mut faults = Vec::new();
        for (at, event) in plan.iter().enumerate().filter(|(_, event)| event.begins) {
            let end = plan[at..].iter().find(|other| !other.begins && other.fault == event.fault);
            let end = end.map_or(Duration::MAX, |end| end.at.saturating_add(outlasts(event.fault)));
            faults.push((event.at, end, touch(event.fault)));
        }
        Self { faults, joins, known: true }
    }

    /// What is, or was lately, amiss between these moments.
    fn between(&self, from: Duration, to: Duration, clear: Duration) -> impl Iterator<Item = &Touch> {
        let there = move |(begins, ends, _): &&(Duration, Duration, Touch)| {
            *begins <= to && ends.saturating_add(clear) >= from
        };
        self.faults.iter().filter(there).map(|(_, _, touch)| touch)
    }

    /// Must a write be accepted that was sent to `gateway` and answered between these moments?
    pub fn owes(&self, gateway: usize, from: Duration, to: Duration, ask: &Ask) -> bool {
        if !self.known || from < CLEAR {
            return false;
        }
        let lately: Vec<&Touch> = self.between(from, to, CLEAR).collect();
        let has_joined = self.joins.is_none_or(|at| from > at + LONG_CLEAR || to < at);
        if lately.is_empty() && has_joined {
            return true;
        }
        let of_gateway = |touch: &&Touch| touch.everything || touch.gateways.contains(&gateway);
        if lately.iter().any(of_gateway) || !ask.is_sloppy() || ask.level() == Durability::Bucket {
            return false;
        }
        let no_bucket = lately.iter().any(|touch| touch.bucket);
        let own_bucket = !no_bucket && !lately.iter().any(|touch| touch.buckets.contains(&gateway));
        if !own_bucket && self.between(from, to, LONG_CLEAR).any(|touch| touch.ring) {
            return false;
        }
        let founders = if has_joined { NODES.len() - 1 } else { NODES.len() };
        let reached = |node: &usize| {
            let cut = lately.iter().any(|touch| touch.links.contains(&(*node, gateway)));
            let mut faults = self.between(from, to, LONG_CLEAR);
            !cut && !faults.any(|touch| touch.nodes.contains(node))
        };
        let all: Vec<usize> = (0..founders).filter(reached).collect();
        // While it joins, the newcomer is among the homes to come.
        let newcomer = has_joined || all.contains(&(NODES.len() - 1));
        let old = all.iter().filter(|node| **node < NODES.len() - 1).count();
        if old >= ask.write_quorum() && newcomer {
            return true;
        }
        // The bucket alone, where every node can be reached or is known to be dead.
        let dead = |node: usize| {
            let whole = |(begins, ends, touch): &(Duration, Duration, Touch)| {
                touch.dead && touch.nodes.contains(&node) && *begins + KNOWN_DEAD <= from && *ends >= to
            };
            self.faults.iter().any(whole)
        };
        own_bucket && has_joined && (0..founders).all(|node| reached(&node) || dead(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Seclusion;

    fn weather(faults: &[(Fault, u64, u64)]) -> Weather {
        let event = |fault, at, begins| Event { at: Duration::from_secs(at), fault, begins };
        let mut plan: Vec<Event> = faults
            .iter()
            .flat_map(|(fault, from, to)| [event(*fault, *from, true), event(*fault, *to, false)])
            .collect();
        plan.sort_by_key(|event| event.at);
        Weather::of(&plan, None)
    }

    fn owes(weather: &Weather, gateway: usize, at: u64, ask: Ask) -> bool {
        weather.owes(gateway, Duration::from_secs(at), Duration::from_secs(at + 1), &ask)
    }

    #[test]
    fn a_write_is_owed_where_enough_can_be_reached() {
        let plain = Ask::default();
        assert!(!owes(&Weather::unknown(), 0, 50, plain));
        let two = weather(&[(Fault::Crashed(0), 20, 30), (Fault::Cut(1, 0), 20, 30)]);
        assert!(owes(&two, 0, 25, plain) && owes(&two, 0, 25, Ask { w: Some(3), ..plain }));
        assert!(!owes(&two, 0, 25, Ask { sloppy: Some(false), ..plain }));
        assert!(!owes(&two, 0, 25, Ask { durability: Some(Durability::Bucket), ..plain }));
        assert!(owes(&two, 0, 40, Ask { sloppy: Some(false), ..plain }), "all is well again");
        let three = [(Fault::Cut(0, 0), 20, 30), (Fault::Cut(1, 0), 20, 30), (Fault::Cut(2, 0), 20, 30)];
        let three = weather(&three);
        assert!(owes(&three, 0, 25, plain) && !owes(&three, 0, 25, Ask { w: Some(3), ..plain }));
        assert!(owes(&three, 1, 25, Ask { w: Some(3), ..plain }), "the other gateway reaches all");
        assert!(!owes(&three, 0, 33, Ask { w: Some(3), ..plain }), "only just");
        let unknown = weather(&[(Fault::RingOfCuts, 20, 30)]);
        assert!(!owes(&unknown, 0, 25, plain));
    }

    #[test]
    fn a_node_that_starts_may_wait_for_a_late_write() {
        let late = weather(&[(Fault::BucketLate(None), 20, 30)]);
        let strict = Ask { sloppy: Some(false), ..Ask::default() };
        assert!(!owes(&late, 0, 42, strict) && owes(&late, 0, 44, strict));
    }

    #[test]
    fn a_gateway_without_bucket_may_not_have_heard_of_a_new_ring() {
        let slow = (Fault::BucketSlow(Some(GATEWAY_HOST)), 20, 30);
        let both = weather(&[slow, (Fault::Twin(3, Seclusion::None), 18, 22)]);
        assert!(!owes(&both, 0, 25, Ask::default()) && owes(&both, 1, 25, Ask::default()));
        assert!(owes(&weather(&[slow]), 0, 25, Ask::default()));
    }

    #[test]
    fn the_bucket_alone_is_enough() {
        let mut faults: Vec<_> = (0..NODES.len()).map(|node| (Fault::Crashed(node), 20, 30)).collect();
        let dead = weather(&faults);
        assert!(owes(&dead, 0, 25, Ask::default()));
        assert!(!owes(&dead, 0, 21, Ask::default()), "who knows yet");
        assert!(!owes(&dead, 0, 32, Ask::default()));
        faults.push((Fault::GatewayNoBucket(0), 24, 26));
        let blind = weather(&faults);
        assert!(!owes(&blind, 0, 25, Ask::default()) && owes(&blind, 1, 25, Ask::default()));
    }
}
