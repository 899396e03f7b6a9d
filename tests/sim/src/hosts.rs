//! The hosts of the scene `whole`, as faults reach them: what a fault does when it begins, and when it ends.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cartwheel_bucket::{CERTAIN, Faults};
use turmoil::Sim;

use crate::client::Shared;
use crate::cluster::{GATEWAYS, Gateway, Machine, Place, Presence, Reach, bucket_faults};
use crate::faults::{
    CLIENT_HOST, Event, FOUNDERS, Fault, GATEWAY_HOST, HEALED, HOSTS, Host, NODES, SERVERS, Seclusion, TWIN,
    TWIN_HOST,
};
use crate::links::Links;
use crate::report::Check;
use crate::steps;
use crate::world::{DiskTrouble, Freezer, Way};

/// The longest that a request to the bucket and its answer each take where nothing is amiss, in milliseconds.
const BUCKET_MS: u64 = 6;
/// How much a slow call of a slow bucket waits.
const SLOW_BUCKET: Duration = Duration::from_secs(2);
/// After how long a process that ended because it was taken over is started again, as supervisors do.
const SUPERVISED: Duration = Duration::from_secs(1);

/// All of them.
pub struct Hosts<'a> {
    /// The simulation.
    pub sim: Sim<'a>,
    /// The storage nodes' machines, and the second one for any of them.
    pub machines: Vec<Arc<Machine>>,
    /// The gateways.
    pub gateways: Vec<Gateway>,
    /// Which gateways are there.
    pub presence: Arc<Presence>,
    /// Where they are.
    pub place: Place,
    /// How many clients there are.
    pub clients: usize,
    state: State,
}

/// What is amiss.
#[derive(Debug, Default)]
struct State {
    links: Links,
    /// The faults that have begun and not ended.
    active: Vec<Fault>,
    /// Which nodes are told to end and start again when they have.
    ending: [bool; NODES.len()],
    /// Which nodes ended by themselves, and when they are started again.
    restarts: BTreeMap<usize, Duration>,
    /// Hosts that stand still: since when.
    frozen: BTreeMap<Host, Duration>,
    /// Hosts whose clocks have leapt, or do in this step: they go on after it.
    thawing: Vec<Host>,
}

impl<'a> Hosts<'a> {
    /// Nothing is amiss with them.
    pub fn new(
        sim: Sim<'a>,
        machines: Vec<Arc<Machine>>,
        gateways: Vec<Gateway>,
        presence: Arc<Presence>,
        place: Place,
        clients: usize,
    ) -> Self {
        Self { sim, machines, gateways, presence, place, clients, state: State::default() }
    }

    /// Steps until all clients have finished, with faults beginning and ending as planned; how many of each kind there were.
    pub fn drive(&mut self, plan: Vec<Event>, shared: &Shared) -> BTreeMap<String, u64> {
        let mut faults = BTreeMap::new();
        for event in plan.iter().filter(|event| event.begins) {
            *faults.entry(event.fault.kind()).or_default() += 1;
        }
        let mut plan = plan.into_iter().peekable();
        let mut healed = false;
        // It is switched on when it is needed.
        self.sim.crash(TWIN);
        self.set_buckets();
        loop {
            let now = self.sim.elapsed();
            while let Some(event) = plan.next_if(|event| event.at <= now) {
                let what = if event.begins { "begins" } else { "ends" };
                shared.trace.line_at(now, "fault", &format!("{:?} {what}", event.fault));
                self.apply(event);
            }
            if !healed && now >= HEALED {
                healed = true;
                shared.trace.line_at(now, "fault", "all have ended");
                self.heal();
            }
            self.start_again(now);
            self.place.store.at(now);
            self.place.landings.land(now);
            let thawing = std::mem::take(&mut self.state.thawing);
            match steps::step(&mut self.sim) {
                Ok(false) => {}
                Ok(true) => return faults,
                Err(error) => {
                    shared.checker.lock().violate(Check::Broke, format!("the simulation broke off: {error}"));
                    return faults;
                }
            }
            thawing.into_iter().for_each(|host| self.thaw(host));
        }
    }

    /// How many failures were injected into the bucket.
    pub fn injected(&self) -> u64 {
        self.reaches().map(|(_, reach)| reach.faults.injected()).sum()
    }

    /// How many frames were sent twice.
    pub fn repeated(&self) -> u64 {
        let machines = self.machines.iter().map(|machine| &machine.host);
        machines.chain(self.gateways.iter().map(|gateway| &gateway.host)).map(|h| h.repeats.repeated()).sum()
    }

    /// The machine of a host that runs a storage node.
    fn machine(&self, host: Host) -> Option<&Machine> {
        match host {
            TWIN_HOST => self.machines.last().map(|machine| &**machine),
            node if node < NODES.len() => Some(&self.machines[node]),
            _ => None,
        }
    }

    fn reaches(&self) -> impl Iterator<Item = (Host, &Reach)> {
        let gateways = self.gateways.iter().enumerate();
        let gateways = gateways.map(|(number, gateway)| (GATEWAY_HOST + number, &gateway.reach));
        let nodes = (0..NODES.len()).chain([TWIN_HOST]);
        nodes.filter_map(|host| Some((host, &self.machine(host)?.reach))).chain(gateways)
    }

    fn host(&self, host: Host) -> Option<&crate::world::Host> {
        match self.machine(host) {
            Some(machine) => Some(&machine.host),
            None => self.gateways.get(host - GATEWAY_HOST).map(|gateway| &gateway.host),
        }
    }

    fn freezer(&self, host: Host) -> Option<&Arc<Freezer>> {
        self.host(host).map(|host| &host.freezer)
    }

    /// All hosts that there are links between.
    fn everybody(&self) -> impl Iterator<Item = Host> + use<> {
        0..CLIENT_HOST + self.clients
    }

    /// Starts those that have ended as they were told to, or by themselves.
    fn start_again(&mut self, now: Duration) {
        for (node, name) in NODES.into_iter().enumerate() {
            let stepped_down = self.machines[node].take_stepped_down();
            if std::mem::take(&mut self.state.ending[node]) {
                if self.sim.is_host_running(name) {
                    self.state.ending[node] = true;
                } else {
                    self.sim.bounce(name);
                }
            } else if stepped_down && !self.has_twin(node) {
                self.state.restarts.insert(node, now + SUPERVISED);
            }
        }
        while let Some(node) = self.state.restarts.iter().find(|(_, at)| **at <= now).map(|(node, _)| *node) {
            self.state.restarts.remove(&node);
            if !self.sim.is_host_running(NODES[node]) {
                self.sim.bounce(NODES[node]);
            }
        }
    }

    fn has_twin(&self, node: usize) -> bool {
        self.state.active.iter().any(|fault| matches!(fault, Fault::Twin(of, _) if *of == node))
    }

    /// Tells every way to the bucket what is amiss with it.
    fn set_buckets(&self) {
        for (host, reach) in self.reaches() {
            let (mut faults, mut way) =
                (bucket_faults(false), Way { latency_ms: BUCKET_MS, late: 0, outlives: true });
            for fault in &self.state.active {
                afflict(*fault, host, &mut faults, &mut way);
            }
            reach.faults.set(faults);
            reach.road.set(way);
        }
    }

    /// Whatever is left of any fault goes.
    fn heal(&mut self) {
        self.place.well.store(true, Ordering::Relaxed);
        let hosts: Vec<Host> = self.state.frozen.keys().copied().collect();
        hosts.into_iter().for_each(|host| self.thaw(host));
        self.state.active.clear();
        self.state.links.mend(&mut self.sim, CLIENT_HOST + self.clients);
        for (_, reach) in self.reaches() {
            reach.faults.set(Faults::default());
            reach.road.set(Way { latency_ms: BUCKET_MS, ..Way::default() });
        }
        for host in 0..=TWIN_HOST {
            self.host(host).into_iter().for_each(|host| host.repeats.set(false));
        }
    }

    fn thaw(&mut self, host: Host) {
        if self.state.frozen.remove(&host).is_some() {
            if let Some(freezer) = self.freezer(host) {
                freezer.thaw();
            }
            for other in self.everybody() {
                self.state.links.hold(&self.sim, host, other, false);
            }
        }
    }

    fn cut(&mut self, a: Host, b: Host, begins: bool) {
        self.state.links.cut(&self.sim, a, b, begins);
    }

    fn cut_one_way(&mut self, from: Host, to: Host, begins: bool) {
        self.state.links.cut_one_way(&self.sim, from, to, begins);
    }

    fn hold(&mut self, a: Host, b: Host, begins: bool) {
        self.state.links.hold(&self.sim, a, b, begins);
    }

    fn apply(&mut self, event: Event) {
        let Event { fault, begins, .. } = event;
        if begins {
            self.state.active.push(fault);
        } else if let Some(at) = self.state.active.iter().position(|active| *active == fault) {
            self.state.active.remove(at);
        } else {
            // It was healed before.
            return;
        }
        match fault {
            Fault::Cut(node, gateway) => self.cut(node, GATEWAY_HOST + gateway, begins),
            Fault::Deaf(node, gateway) => self.cut_one_way(GATEWAY_HOST + gateway, node, begins),
            Fault::Mute(node, gateway) => self.cut_one_way(node, GATEWAY_HOST + gateway, begins),
            Fault::Stalled(node, gateway) => self.hold(node, GATEWAY_HOST + gateway, begins),
            Fault::Apart(node, other) => self.cut(node, other, begins),
            Fault::Unheard(node, other) => self.cut_one_way(node, other, begins),
            Fault::Paused(node) => (0..=TWIN_HOST).for_each(|other| self.hold(node, other, begins)),
            Fault::Isolated(node) => (0..=TWIN_HOST).for_each(|other| self.cut(node, other, begins)),
            Fault::Halves(half) => {
                let pairs = (0..SERVERS).flat_map(|a| (a + 1..SERVERS).map(move |b| (a, b)));
                let is_in = |host: Host| half >> host & 1 == 1;
                pairs.filter(|(a, b)| is_in(*a) != is_in(*b)).for_each(|(a, b)| self.cut(a, b, begins));
            }
            Fault::RingOfCuts => {
                (0..FOUNDERS).for_each(|node| self.cut_one_way(node, (node + 1) % FOUNDERS, begins));
            }
            Fault::GatewayAlone(gateway) => {
                (0..NODES.len()).for_each(|node| self.cut(GATEWAY_HOST + gateway, node, begins));
            }
            Fault::ClientsCut(gateway) | Fault::ClientsDeaf(gateway) => {
                self.presence.trouble(gateway, begins);
                for client in CLIENT_HOST..CLIENT_HOST + self.clients {
                    self.cut_one_way(GATEWAY_HOST + gateway, client, begins);
                    if matches!(fault, Fault::ClientsCut(_)) {
                        self.cut_one_way(client, GATEWAY_HOST + gateway, begins);
                    }
                }
            }
            Fault::SlowLink(a, b, ms) => {
                Links::slow(&self.sim, a, b, begins.then_some(Duration::from_millis(ms)));
            }
            Fault::LossyLink(a, b, one_of) => Links::lose(&mut self.sim, a, b, begins.then_some(one_of)),
            Fault::FramesTwice(host) => {
                let still = self.state.active.contains(&fault);
                self.host(host).into_iter().for_each(|host| host.repeats.set(still));
            }
            Fault::ClockJumped(host, seconds) => {
                let by = if begins { seconds } else { -seconds };
                self.host(host).into_iter().for_each(|host| host.clock.jump(by * 1_000));
            }
            Fault::Crashed(_)
            | Fault::CrashedAgain(_)
            | Fault::Wiped(_)
            | Fault::Restarted(_)
            | Fault::RolledOver(_)
            | Fault::GatewayCrashed(_)
            | Fault::Frozen(_)
            | Fault::Twin(..) => self.apply_to_process(fault, begins),
            Fault::DiskFull(node)
            | Fault::DiskFails(node)
            | Fault::DiskSlow(node)
            | Fault::DiskReadOnly(node) => {
                self.apply_to_disk(fault, node, begins);
            }
            Fault::NoBucket(_)
            | Fault::GatewayNoBucket(_)
            | Fault::BucketGone
            | Fault::BucketSlow(_)
            | Fault::BucketErrors(_)
            | Fault::BucketMute(_)
            | Fault::BucketLate(_) => self.set_buckets(),
        }
    }

    fn apply_to_process(&mut self, fault: Fault, begins: bool) {
        match fault {
            Fault::Crashed(node) | Fault::CrashedAgain(node) | Fault::Wiped(node) if begins => {
                self.crash(node);
                if let Fault::Wiped(_) = fault {
                    self.machines[node].wipe();
                }
            }
            Fault::Crashed(node) | Fault::CrashedAgain(node) | Fault::Wiped(node) => {
                self.sim.bounce(NODES[node]);
            }
            Fault::Restarted(node) | Fault::RolledOver(node) if begins => self.restart(node),
            Fault::GatewayCrashed(gateway) if begins => {
                self.presence.lost(gateway);
                self.sim.crash(GATEWAYS[gateway]);
            }
            Fault::GatewayCrashed(gateway) => self.sim.bounce(GATEWAYS[gateway]),
            Fault::Frozen(host) => self.apply_frozen(host, begins),
            Fault::Twin(node, seclusion) => self.apply_twin(node, seclusion, begins),
            // It starts again when it has ended.
            _ => {}
        }
    }

    fn crash(&mut self, node: usize) {
        self.state.ending[node] = false;
        self.state.restarts.remove(&node);
        self.sim.crash(NODES[node]);
    }

    /// Tells the node's process to end; it is started when it has.
    fn restart(&mut self, node: usize) {
        self.state.ending[node] = true;
        self.machines[node].end.notify_one();
    }

    fn apply_frozen(&mut self, host: Host, begins: bool) {
        if let Some(gateway) = host.checked_sub(GATEWAY_HOST) {
            self.presence.trouble(gateway, begins);
        }
        let now = self.sim.elapsed();
        if !begins {
            if let Some(since) = self.state.frozen.get(&host) {
                let missed = now.saturating_sub(*since);
                self.freezer(host).into_iter().for_each(|freezer| freezer.leap(missed));
                self.state.thawing.push(host);
            }
        } else if let Entry::Vacant(entry) = self.state.frozen.entry(host) {
            entry.insert(now);
            self.freezer(host).into_iter().for_each(|freezer| freezer.freeze());
            for other in self.everybody() {
                self.hold(host, other, true);
            }
        }
    }

    fn apply_twin(&mut self, node: usize, seclusion: Seclusion, begins: bool) {
        if matches!(seclusion, Seclusion::Nodes | Seclusion::BucketAndNodes) {
            (0..NODES.len()).for_each(|other| self.cut(node, other, begins));
        }
        self.set_buckets();
        if begins {
            if let Some(machine) = self.machines.last() {
                machine.becomes(NODES[node]);
            }
            self.sim.bounce(TWIN);
        } else {
            self.sim.crash(TWIN);
            self.crash(node);
            self.machines[node].has_its_own_disk_again();
            self.sim.bounce(NODES[node]);
        }
    }

    fn apply_to_disk(&mut self, fault: Fault, node: usize, begins: bool) {
        let trouble = match fault {
            Fault::DiskFull(_) => DiskTrouble::Full,
            Fault::DiskFails(_) => DiskTrouble::Failing,
            Fault::DiskReadOnly(_) => DiskTrouble::ReadOnly,
            _ => DiskTrouble::Slow,
        };
        self.machines[node].set_disk(begins.then_some(trouble));
        match (fault, begins) {
            (Fault::DiskReadOnly(_), true) | (Fault::DiskFails(_), false) => {
                self.crash(node);
                self.sim.bounce(NODES[node]);
            }
            (Fault::DiskReadOnly(_) | Fault::DiskFull(_), false) => self.restart(node),
            _ => {}
        }
    }
}

/// What a fault does to the way of a host to the bucket.
fn afflict(fault: Fault, host: Host, faults: &mut Faults, way: &mut Way) {
    let hits = |whose: Option<Host>| whose.is_none_or(|whose| whose == host);
    let each = &mut [
        &mut faults.get,
        &mut faults.get_range,
        &mut faults.put,
        &mut faults.create,
        &mut faults.list,
        &mut faults.delete,
    ];
    match fault {
        Fault::BucketGone => faults.unavailable = true,
        Fault::NoBucket(node) if node == host => faults.unavailable = true,
        Fault::GatewayNoBucket(gateway) if GATEWAY_HOST + gateway == host => faults.unavailable = true,
        Fault::Twin(node, Seclusion::Bucket | Seclusion::BucketAndNodes) if node == host => {
            faults.unavailable = true;
        }
        Fault::BucketSlow(whose) if hits(whose) => {
            each.iter_mut().for_each(|each| each.slow = CERTAIN / 4 * 3);
            faults.slow_by = SLOW_BUCKET;
        }
        Fault::BucketErrors(whose) if hits(whose) => {
            each.iter_mut().for_each(|each| each.refuse = CERTAIN / 2);
        }
        Fault::BucketMute(whose) if hits(whose) => each.iter_mut().for_each(|each| each.mute = CERTAIN / 3),
        Fault::BucketLate(whose) if hits(whose) => way.late = CERTAIN / 2,
        _ => {}
    }
}

/// A name that a client host has.
pub fn client(number: usize) -> &'static str {
    HOSTS[CLIENT_HOST + number]
}
