//! The links between hosts as several faults leave them: each that cuts or holds a link is counted, and a link is whole
//! when none is left.

use std::collections::BTreeMap;
use std::time::Duration;

use turmoil::Sim;

use crate::faults::{HOSTS, Host};
use crate::run::LATENCY;

/// What is amiss with which link, from one host to another.
#[derive(Debug, Default)]
pub struct Links {
    /// How many faults cut it, in one direction.
    cut: BTreeMap<(Host, Host), u32>,
    /// How many hold all that passes on it, by the lower host and the higher.
    held: BTreeMap<(Host, Host), u32>,
}

fn pair(a: Host, b: Host) -> (Host, Host) {
    (a.min(b), a.max(b))
}

/// Counts one fault more or less; was it the first, or the last?
fn count<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K, begins: bool) -> bool {
    let count = counts.entry(key).or_default();
    if begins {
        *count += 1;
        *count == 1
    } else {
        *count = count.saturating_sub(1);
        *count == 0
    }
}

impl Links {
    fn is_held(&self, a: Host, b: Host) -> bool {
        self.held.get(&pair(a, b)).is_some_and(|n| *n > 0)
    }

    /// What the first sends to the second is lost, or not for this reason any more.
    pub fn cut_one_way(&mut self, sim: &Sim<'_>, from: Host, to: Host, begins: bool) {
        if from == to || !count(&mut self.cut, (from, to), begins) || self.is_held(from, to) {
            return;
        }
        if begins {
            sim.partition_oneway(HOSTS[from], HOSTS[to]);
        } else {
            sim.repair_oneway(HOSTS[from], HOSTS[to]);
        }
    }

    /// Nothing passes between the two, or not for this reason any more.
    pub fn cut(&mut self, sim: &Sim<'_>, a: Host, b: Host, begins: bool) {
        self.cut_one_way(sim, a, b, begins);
        self.cut_one_way(sim, b, a, begins);
    }

    /// All that passes between the two comes late, or not for this reason any more.
    pub fn hold(&mut self, sim: &Sim<'_>, a: Host, b: Host, begins: bool) {
        if a == b || !count(&mut self.held, pair(a, b), begins) {
            return;
        }
        if begins {
            return sim.hold(HOSTS[a], HOSTS[b]);
        }
        sim.release(HOSTS[a], HOSTS[b]);
        for (from, to) in [(a, b), (b, a)] {
            if self.cut.get(&(from, to)).is_some_and(|n| *n > 0) {
                sim.partition_oneway(HOSTS[from], HOSTS[to]);
            }
        }
    }

    /// Every message between the two takes so long, or as long as any.
    pub fn slow(sim: &Sim<'_>, a: Host, b: Host, latency: Option<Duration>) {
        if a != b {
            sim.set_link_latency(HOSTS[a], HOSTS[b], latency.unwrap_or_default());
            if latency.is_none() {
                sim.set_link_max_message_latency(HOSTS[a], HOSTS[b], LATENCY);
            }
        }
    }

    /// One message of so many between the two is lost with all that is under way, or none.
    ///
    /// Nothing is sent again here: what comes later on the same connection waits for ever for what was lost, so that it is
    /// silent in one direction until somebody gives it up, as one is whose way was cut and mended.
    pub fn lose(sim: &mut Sim<'_>, a: Host, b: Host, one_of: Option<u32>) {
        if a != b {
            let rate = one_of.map_or(0.0, |many| 1.0 / f64::from(many));
            sim.set_link_fail_rate(HOSTS[a], HOSTS[b], rate);
        }
    }

    /// Everything is whole between the first so many hosts.
    pub fn mend(&mut self, sim: &mut Sim<'_>, hosts: usize) {
        (self.cut, self.held) = Default::default();
        for (a, name) in HOSTS[..hosts].iter().enumerate() {
            for (b, other) in HOSTS[..hosts].iter().enumerate().skip(a + 1) {
                Self::lose(sim, a, b, None);
                Self::slow(sim, a, b, None);
                sim.release(*name, *other);
                sim.repair(*name, *other);
            }
        }
    }
}
