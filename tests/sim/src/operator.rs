//! Who changes the ring: one change after the other, each with its own trouble, and then the look at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cartwheel_cluster::membership;
use cartwheel_cluster::seams::Random;
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::change::pending;
use cartwheel_core::ring::{MemberState, RingDocument};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::changing::{NODES, Order, Scene};
use crate::cluster::GATEWAYS;
use crate::doom::{STEPS, Trap};
use crate::ending;
use crate::http::Http;
use crate::options::Options;
use crate::report::Check;
use crate::world::{SeededRandom, pass};

/// How many changes are made.
const CHANGES: usize = 4;
/// What can be left out of a change has numbers of its own: the change itself the first, then its traps, and the rest.
const NUMBERS: usize = 10;
const FIRST_TRAP: usize = 1;
const BLIND: usize = 5;
const CUT: usize = 6;
const DISTURBED: usize = 7;
/// How long a change may take with all that goes wrong meanwhile; nothing goes wrong for longer than 6 s.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an order may take to be accepted: gossip takes a while to call a node dead.
const ACCEPTED: Duration = Duration::from_secs(40);
/// How long an answer to an order may take.
const ANSWERED: Duration = Duration::from_secs(12);
/// Fewest active members that are left.
const LEAST: usize = 4;
/// From the last fault until nothing is amiss any more, and until writers stop.
const CALMING: Duration = Duration::from_secs(8);
const CALM: Duration = Duration::from_secs(2);

/// The members of a ring, and their weights.
type Members = BTreeMap<String, u32>;

/// A change.
#[derive(Debug, Clone)]
enum Deed {
    /// Those that are off and no members start, one or both.
    Join(Vec<usize>),
    Leave(usize),
    Weight(usize, u32),
    /// It dies for good, and is forgotten.
    Forget(usize),
    /// It leaves and another joins in its place.
    Swap(usize, usize),
    /// Its machine is replaced by one with an empty disk. No change of the ring.
    Replace(usize),
}

pub struct Operator {
    scene: Arc<Scene>,
    random: SeededRandom,
    http: Http,
    options: Options,
    /// The change under way.
    change: usize,
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

fn node_of(id: &str) -> usize {
    NODES.iter().position(|name| *name == id).unwrap()
}

fn members(document: &RingDocument) -> Members {
    document.members.iter().map(|m| (m.id.to_string(), m.weight)).collect()
}

impl Operator {
    /// The operator.
    pub fn new(scene: Arc<Scene>, options: Options) -> Self {
        let random = SeededRandom::new(scene.shared.seed, "operator");
        let http = Http::new(Arc::clone(&scene.shared.presence));
        Self { scene, random, http, options, change: 0 }
    }

    fn say(&self, what: &str) {
        self.scene.shared.trace.line("operator", what);
    }

    fn violate(&self, what: &str) {
        self.say(&format!("VIOLATION {what}"));
        self.scene
            .shared
            .checker
            .lock()
            .violate(Check::Ring, format!("{:.3} s operator: {what}", now().as_secs_f64()));
    }

    fn order(&self, order: Order) {
        self.scene.orders.lock().push(order);
    }

    /// Does this part of the change happen?
    fn has(&self, part: usize) -> bool {
        self.options.has(self.change * NUMBERS + part)
    }

    fn below(&self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).unwrap()
    }

    fn one_of(&self, all: &[usize]) -> Option<usize> {
        (!all.is_empty()).then(|| all[self.below(all.len())])
    }

    async fn ring(&self) -> RingDocument {
        membership::read_newest(&*self.scene.shared.objects, 0).await.unwrap().unwrap()
    }

    /// All changes, and the look at the end.
    pub async fn change_the_ring(mut self) {
        pass(Duration::from_secs(3)).await;
        for change in 0..CHANGES {
            self.change = change;
            if self.has(0) && !self.one_change().await {
                break;
            }
            pass(self.random.millis(200..2_500)).await;
        }
        self.order(Order::Heal);
        *self.scene.shared.calm.lock() = now() + CALMING;
        *self.scene.shared.stop.lock() = now() + CALMING + CALM;
        while *self.scene.shared.stopped.lock() < self.scene.shared.writers {
            pass(Duration::from_millis(100)).await;
        }
        ending::look(&self.scene.end()).await;
    }

    /// Draws a change that the ring as it is can take.
    fn draw(&self, ring: &RingDocument) -> Deed {
        let there: Vec<usize> = ring.members.iter().map(|m| node_of(m.id.as_str())).collect();
        let away: Vec<usize> = (0..NODES.len()).filter(|node| !there.contains(node)).collect();
        let some = there[self.below(there.len())];
        let can_go = there.len() > LEAST;
        loop {
            match self.below(8) {
                0 | 1 if away.len() > 1 && self.below(3) == 0 => return Deed::Join(away),
                0 | 1 if !away.is_empty() => return Deed::Join(vec![away[self.below(away.len())]]),
                2 if can_go => return Deed::Leave(some),
                3 | 4 if can_go => return Deed::Forget(some),
                5 => {
                    let weight = ring.members.iter().find(|m| m.id.as_str() == NODES[some]).unwrap().weight;
                    return Deed::Weight(some, if weight == 1 { [2, 3][self.below(2)] } else { 1 });
                }
                6 if !away.is_empty() => return Deed::Swap(some, away[self.below(away.len())]),
                7 if self.below(2) == 0 => return Deed::Replace(some),
                _ => {}
            }
        }
    }

    /// Makes one change, with trouble; `false` if it is never settled.
    async fn one_change(&mut self) -> bool {
        let before = self.ring().await;
        let deed = self.draw(&before);
        self.say(&format!("{deed:?} at ring {}", before.version));
        let mut after = vec![members(&before)];
        let trouble = self.trouble();
        let done = self.carry_out(&deed, &before, &mut after).await;
        if !done {
            return false;
        }
        let mut trouble = Some(trouble);
        loop {
            let settled = self.settled(&mut after).await;
            self.scene.place.doom.set(Vec::new());
            if let Some(trouble) = trouble.take() {
                self.end(trouble).await;
            }
            let Some(ring) = settled else { return false };
            let found = members(&ring);
            if !after.contains(&found) {
                self.violate(&format!("{deed:?} came to {found:?}, and not to one of {after:?}"));
            }
            if self.switch_off(&found).await {
                return true;
            }
        }
    }

    /// Traps, and hosts that do not reach each other or the bucket for a while.
    fn trouble(&self) -> Vec<(Duration, Order)> {
        let deaths = self.below(4);
        let trap = |_| {
            let step = STEPS[self.below(STEPS.len())];
            Trap { step, before: self.below(2) == 0, skips: self.random.below(4) }
        };
        let mut traps: Vec<Trap> = (0..deaths).map(trap).collect();
        let mut part = FIRST_TRAP..;
        traps.retain(|_| part.next().is_some_and(|part| self.has(part)));
        self.say(&format!("{traps:?}"));
        self.scene.place.doom.set(traps);
        let mut ends = Vec::new();
        if self.below(2) == 0 {
            // One gateway and some nodes go by an old ring.
            let gateway = self.below(GATEWAYS.len());
            let until = now() + self.random.millis(1_000..6_000);
            let mut blind =
                vec![(Order::GatewayBucket(gateway, false), until, Order::GatewayBucket(gateway, true))];
            for _ in 0..3 {
                let (node, until) = (self.below(NODES.len()), until + self.random.millis(0..1_000));
                blind.push((Order::NodeBucket(node, false), until, Order::NodeBucket(node, true)));
            }
            blind.retain(|_| self.has(BLIND));
            for (order, until, end) in blind {
                self.order(order);
                ends.push((until, end));
            }
        }
        if self.below(2) == 0 {
            let (node, gateway) = (self.below(NODES.len()), self.below(GATEWAYS.len()));
            let until = now() + self.random.millis(500..4_000);
            if self.has(CUT) {
                self.order(Order::Link(node, gateway, false));
                ends.push((until, Order::Link(node, gateway, true)));
            }
        }
        ends.sort_by_key(|(at, _)| *at);
        let orders = Arc::clone(&self.scene);
        let later = ends.clone();
        tokio::spawn(async move {
            for (at, order) in later {
                pass(at.saturating_sub(now())).await;
                orders.orders.lock().push(order);
            }
        });
        ends
    }

    /// Waits until the trouble is over.
    async fn end(&self, trouble: Vec<(Duration, Order)>) {
        let last = trouble.last().map_or(Duration::ZERO, |(at, _)| *at);
        pass(last.saturating_sub(now())).await;
    }

    async fn carry_out(&mut self, deed: &Deed, before: &RingDocument, after: &mut Vec<Members>) -> bool {
        let leave = |node: usize| json!({"leave": {"id": NODES[node]}});
        let mut come_to = members(before);
        let edit = match deed {
            Deed::Join(nodes) => {
                for node in nodes {
                    if self.below(3) == 0 {
                        self.order(Order::Wipe(*node));
                    }
                    self.order(Order::Start(*node));
                    // Each of them may be settled before a cancellation takes the others back.
                    for mut members in after.clone() {
                        members.insert(NODES[*node].to_owned(), 1);
                        after.push(members);
                    }
                }
                let all: BTreeSet<&str> = nodes.iter().map(|node| NODES[*node]).collect();
                let began = now();
                while !all.iter().all(|name| members(&self.ring_now()).contains_key(*name)) {
                    if now() > began + ACCEPTED {
                        self.violate(&format!("{all:?} do not add themselves"));
                        return false;
                    }
                    pass(Duration::from_millis(50)).await;
                }
                self.maybe_disturb(nodes[0], after).await;
                return true;
            }
            Deed::Replace(node) => {
                self.order(Order::Crash(*node));
                pass(self.random.millis(100..4_000)).await;
                self.order(Order::Wipe(*node));
                self.order(Order::Start(*node));
                return true;
            }
            Deed::Leave(node) => {
                come_to.remove(NODES[*node]);
                leave(*node)
            }
            Deed::Weight(node, weight) => {
                come_to.insert(NODES[*node].to_owned(), *weight);
                json!({"weight": {"id": NODES[*node], "weight": weight}})
            }
            Deed::Forget(node) => {
                self.order(Order::Crash(*node));
                pass(self.random.millis(0..4_000)).await;
                come_to.remove(NODES[*node]);
                json!({"forget": {"id": NODES[*node]}})
            }
            Deed::Swap(node, other) => {
                come_to.remove(NODES[*node]);
                come_to.insert(NODES[*other].to_owned(), 1);
                leave(*node)
            }
        };
        after.push(come_to.clone());
        let mut edits = vec![edit];
        if let Deed::Swap(_, other) = deed {
            self.order(Order::Start(*other));
            // It adds itself; where the order comes first, both are one change.
            let address = crate::cluster::address(NODES[*other]);
            let join =
                json!({"join": {"id": NODES[*other], "address": address, "zone": "default", "weight": 1}});
            edits.push(join);
            let mut only = members(before);
            only.insert(NODES[*other].to_owned(), 1);
            after.push(only);
        }
        match self.apply(Value::Array(edits), deed).await {
            Ok(()) => {}
            Err(why) if matches!(deed, Deed::Swap(..)) => {
                self.say(&format!("it has joined by itself: {why}"));
            }
            Err(why) => {
                self.violate(&format!("{deed:?} is not accepted: {why}"));
                return false;
            }
        }
        let (Deed::Leave(node) | Deed::Weight(node, _) | Deed::Forget(node) | Deed::Swap(node, _)) = deed
        else {
            return true;
        };
        self.maybe_disturb(*node, after).await;
        true
    }

    fn ring_now(&self) -> RingDocument {
        futures_util::FutureExt::now_or_never(self.ring()).unwrap()
    }

    /// While the change is pending it may be cancelled, or another member may die for good and be forgotten.
    async fn maybe_disturb(&mut self, subject: usize, after: &mut [Members]) {
        match self.below(6) {
            0 | 1 if !self.has(DISTURBED) => {}
            0 => {
                pass(self.random.millis(0..4_000)).await;
                let outcome = self.apply(json!([{"cancel": {}}]), &Deed::Replace(0)).await;
                self.say(&format!("cancelled: {outcome:?}"));
                if outcome.is_ok() && !self.scene.on.lock()[subject] {
                    // It was not dead after all.
                    self.order(Order::Start(subject));
                }
            }
            1 => {
                let ring = self.ring().await;
                let active = ring.members.iter().filter(|m| m.state == MemberState::Active && !m.dead);
                let others: Vec<usize> = active.map(|m| node_of(m.id.as_str())).collect();
                let others: Vec<usize> = others.into_iter().filter(|node| *node != subject).collect();
                if others.len() <= LEAST {
                    return;
                }
                let Some(victim) = self.one_of(&others) else { return };
                pass(self.random.millis(0..2_000)).await;
                self.order(Order::Crash(victim));
                let deed = Deed::Forget(victim);
                match self.apply(json!([{"forget": {"id": NODES[victim]}}]), &deed).await {
                    Ok(()) => {
                        for members in after.iter_mut() {
                            members.remove(NODES[victim]);
                        }
                    }
                    Err(why) => self.violate(&format!("{deed:?} is not accepted: {why}")),
                }
            }
            _ => {}
        }
    }

    /// Applies edits at whatever version is the newest; refusals that may pass are tried again.
    async fn apply(&mut self, edits: Value, deed: &Deed) -> Result<(), String> {
        let give_up = now() + ACCEPTED;
        let first = self.ring().await.version;
        let mut unsure = false;
        loop {
            let ring = self.ring().await;
            if unsure && ring.version > first && self.is_applied(&ring, deed) {
                return Ok(());
            }
            let body = json!({"edits": edits, "ring_version": ring.version}).to_string();
            let gateway = self.below(GATEWAYS.len());
            let path = "/v1/cluster/apply";
            let deadline = Instant::now() + ANSWERED;
            self.say(&format!("{} {body}", GATEWAYS[gateway]));
            let sent = self.http.send(gateway, Method::POST, path, &[], &body, deadline).await;
            let why = match sent {
                Ok(answer) => {
                    let said = String::from_utf8_lossy(&answer.body).into_owned();
                    if answer.status == StatusCode::OK {
                        return Ok(());
                    }
                    unsure |= answer.status.is_server_error();
                    for last in ["read from already", "no change is pending", "a change is pending"] {
                        if said.contains(last) {
                            return Err(said);
                        }
                    }
                    said
                }
                Err(_) => {
                    unsure = true;
                    "no answer".to_owned()
                }
            };
            self.say(&why);
            if now() > give_up {
                return Err(why);
            }
            pass(Duration::from_millis(300)).await;
        }
    }

    fn is_applied(&self, ring: &RingDocument, deed: &Deed) -> bool {
        let member = |node: usize| ring.member(&NodeId::new(NODES[node]).unwrap());
        match deed {
            Deed::Leave(node) | Deed::Swap(node, _) => {
                member(*node).is_none_or(|m| m.state == MemberState::Leaving)
            }
            Deed::Weight(node, weight) => member(*node).is_some_and(|m| {
                m.weight == *weight || m.becomes.as_ref().is_some_and(|to| to.weight == *weight)
            }),
            Deed::Forget(node) => member(*node).is_none_or(|m| m.dead),
            Deed::Join(_) | Deed::Replace(_) => !ring.has_pending_change(),
        }
    }

    /// Waits until no change is pending; who joins while this waits is part of what may come of it.
    async fn settled(&mut self, after: &mut Vec<Members>) -> Option<RingDocument> {
        let give_up = now() + PATIENCE;
        let mut quiet_since = None;
        loop {
            let ring = self.ring().await;
            if ring.has_pending_change() {
                quiet_since = None;
            } else if now() > *quiet_since.get_or_insert(now()) + Duration::from_millis(1_500) {
                // Nobody who was started before wants to add itself any more.
                let on = *self.scene.on.lock();
                let outside = (0..NODES.len()).filter(|node| on[*node]);
                let waiting: Vec<&str> = outside
                    .map(|node| NODES[node])
                    .filter(|name| !members(&ring).contains_key(*name))
                    .collect();
                if waiting.len() < 2 || now() > give_up {
                    *self.scene.settled.lock() += 1;
                    for name in &waiting {
                        self.say(&format!("{name} runs and is no member"));
                    }
                    let found = members(&ring);
                    // A process that was cancelled, and started again, has joined after all.
                    if on.iter().zip(NODES).all(|(on, name)| !on || found.contains_key(name)) {
                        after.push(found);
                    }
                    return Some(ring);
                }
            }
            if now() > give_up && ring.has_pending_change() {
                let ready = membership::ready(&*self.scene.shared.objects, ring.version).await.unwrap();
                let waits: Vec<&NodeId> =
                    ring.must_be_ready().map(|m| &m.id).filter(|id| !ready.contains(id)).collect();
                self.violate(&format!(
                    "ring {} is not settled ({}); it waits for {waits:?}",
                    ring.version,
                    pending(&ring)
                ));
                return None;
            }
            pass(Duration::from_millis(100)).await;
        }
    }

    /// Processes that are no members are switched off, as people do; `false` if one has joined at that moment, and runs
    /// again.
    async fn switch_off(&mut self, found: &Members) -> bool {
        let on = *self.scene.on.lock();
        let gone: Vec<usize> =
            (0..NODES.len()).filter(|n| on[*n] && !found.contains_key(NODES[*n])).collect();
        for node in &gone {
            // Not at once: it may hold what others lack.
            pass(self.random.millis(0..1_500)).await;
            self.order(Order::Crash(*node));
        }
        pass(Duration::from_millis(500)).await;
        let ring = self.ring().await;
        let joined: Vec<usize> =
            gone.into_iter().filter(|n| members(&ring).contains_key(NODES[*n])).collect();
        for node in &joined {
            self.order(Order::Start(*node));
        }
        joined.is_empty()
    }
}
