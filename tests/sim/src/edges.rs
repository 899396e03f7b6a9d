//! Small stages for rules that protect a moment: one key or two, one client, and just the faults that lead to the
//! moment, one episode after the other by the seed (`edges/episodes.rs`). The big scenes meet these moments once in
//! thousands of seeds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cartwheel_cluster::membership::{self, View};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::ring::Ring;
use cartwheel_storage_node::NodeConfig;
use http::{Method, StatusCode};
use tokio::time::Instant;
use turmoil::Sim;

use crate::cluster::{GATEWAYS, Gateway, Machine, Place, Presence, add_gateway, bucket_faults};
use crate::http::{Answer, Http};
use crate::options::Options;
use crate::report::{Check, Outcome, Report, Scene, Violation};
use crate::trace::Trace;
use crate::world::lock::Lock;
use crate::world::{SeededRandom, pass};
use crate::{steps, wire};

mod episodes;

/// The storage nodes. The last is switched on when it is to join.
pub const NODES: [&str; 7] = ["node-a", "node-b", "node-c", "node-d", "node-e", "node-f", SPARE];
/// It founds no cluster.
pub const SPARE: &str = "node-g";
/// A machine that runs a process of some node's name.
pub const TWIN: &str = "twin";
/// The namespace of all keys.
const NAMESPACE: &str = "edges";
/// The deadline of requests, at first.
const DEADLINE: Duration = Duration::from_secs(2);
/// The longest that a message is on its way.
const LATENCY: Duration = Duration::from_millis(10);
/// The longest that a simulation may last.
const LONGEST: Duration = Duration::from_secs(180);

/// What the client has done to machines and links, between two steps of the simulation.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// A process dies; its disk stays.
    Crash(&'static str),
    /// It starts.
    Start(&'static str),
    /// Another machine, with an empty disk, runs a process of this name.
    Replace(&'static str),
    /// Nothing passes between the two.
    Cut(&'static str, &'static str),
    /// It passes again.
    Mend(&'static str, &'static str),
    /// The connections that a gateway has opened break.
    Reset(usize),
    /// A gateway does not reach the bucket any more.
    Blind(usize),
}

/// What the client and the loop share.
struct Shared {
    place: Place,
    presence: Arc<Presence>,
    trace: Arc<Trace>,
    orders: Lock<Vec<Order>>,
    violations: Lock<Vec<Violation>>,
    counts: Lock<BTreeMap<String, u64>>,
}

/// The one client, who has a hand in everything.
pub struct Hand {
    shared: Arc<Shared>,
    http: Http,
    /// What it draws from.
    pub random: SeededRandom,
    /// The deadline of its requests.
    pub deadline: Duration,
    requests: u64,
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

fn name_of(id: &NodeId) -> &'static str {
    NODES.iter().find(|name| **name == id.as_str()).unwrap()
}

fn names(ring: &Ring, hash: KeyHash) -> Vec<&'static str> {
    ring.preference_list(hash).homes().iter().map(|index| name_of(&ring.member(*index).unwrap().id)).collect()
}

impl Hand {
    /// Says what it does, for those who read the trace.
    pub fn say(&self, what: &str) {
        self.shared.trace.line("client", what);
    }

    /// Has something done, before the simulation goes on.
    pub fn order(&self, order: Order) {
        self.shared.orders.lock().push(order);
    }

    /// The same for all of these nodes.
    pub fn each(&self, nodes: &[&'static str], order: impl Fn(&'static str) -> Order) {
        nodes.iter().for_each(|node| self.order(order(node)));
    }

    /// A promise was not kept.
    pub fn violate(&self, check: Check, what: &str) {
        let what = format!("{:.6} s: {what}", now().as_secs_f64());
        self.say(&format!("VIOLATION {what}"));
        self.shared.violations.lock().push(Violation { check, what });
    }

    fn count(&self, what: &str) {
        *self.shared.counts.lock().entry(what.to_owned()).or_default() += 1;
    }

    /// The newest ring.
    pub async fn ring(&self) -> View {
        let newest = membership::read_newest(&*self.shared.place.objects, 0).await;
        View::new(newest.unwrap().unwrap())
    }

    /// The homes of a key, in the order of its preference list.
    pub async fn homes(&self, key: &str) -> Vec<&'static str> {
        homes_now_and_then(&self.ring().await, key).0
    }

    async fn send(
        &mut self,
        gateway: usize,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        self.requests += 1;
        let number = self.requests;
        self.say(&format!("{number}: {} {method} {path} {body}", GATEWAYS[gateway]));
        let until = Instant::now() + self.deadline + DEADLINE;
        let answer = self.http.send(gateway, method, path, headers, body, until).await.ok();
        match &answer {
            Some(answer) => self.say(&format!(
                "{number}: {} {} {} {}",
                answer.status,
                answer.header("dot"),
                answer.header("quorum"),
                String::from_utf8_lossy(&answer.body)
            )),
            None => self.say(&format!("{number}: no answer")),
        }
        answer
    }

    /// Writes, once; the answer if the write was acknowledged.
    pub async fn put(
        &mut self,
        gateway: usize,
        key: &str,
        query: &str,
        clock: Option<&str>,
        value: &str,
    ) -> Option<Answer> {
        let path = format!("/v1/kv/{NAMESPACE}/{key}?deadline={}ms{query}", self.deadline.as_millis());
        let headers: Vec<_> = clock.map(|clock| ("vector-clock", clock)).into_iter().collect();
        let answer = self.send(gateway, Method::PUT, &path, &headers, value).await;
        let answer = answer.filter(|answer| answer.status == StatusCode::NO_CONTENT);
        self.count(if answer.is_some() { "writes acknowledged" } else { "writes refused" });
        answer
    }

    /// Deletes, once; the answer if that was acknowledged.
    pub async fn delete(&mut self, gateway: usize, key: &str, query: &str, clock: &str) -> Option<Answer> {
        let path = format!("/v1/kv/{NAMESPACE}/{key}?deadline={}ms{query}", self.deadline.as_millis());
        let answer = self.send(gateway, Method::DELETE, &path, &[("vector-clock", clock)], "").await;
        answer.filter(|answer| answer.status == StatusCode::NO_CONTENT)
    }

    /// Reads, once: the clock and the values, if there is an answer that is not the bucket's.
    pub async fn get(&mut self, gateway: usize, key: &str, query: &str) -> Option<(String, Vec<String>)> {
        let path = format!("/v1/kv/{NAMESPACE}/{key}?deadline={}ms{query}", self.deadline.as_millis());
        let json = [("accept", "application/json")];
        let answer = self.send(gateway, Method::GET, &path, &json, "").await?;
        if answer.status.is_server_error() || answer.is_degraded() {
            self.count("reads without a quorum");
            return None;
        }
        self.count("reads");
        Some((answer.header("vector-clock").to_owned(), values(&answer)))
    }
}

/// Where in the ring a key is.
fn hash(view: &View, key: &str) -> KeyHash {
    let namespace = Namespace::new(NAMESPACE.as_bytes()).unwrap();
    let key = Key::new(key.to_owned().into_bytes().into()).unwrap();
    KeyHash::of(view.document.hash_seed, &namespace, &key)
}

/// The homes of a key in the ring as it is, and as it is to be.
pub fn homes_now_and_then(view: &View, key: &str) -> (Vec<&'static str>, Vec<&'static str>) {
    let hash = hash(view, key);
    (names(&view.current, hash), names(&view.next, hash))
}

/// The values in an answer; none where the key is unknown or deleted.
fn values(answer: &Answer) -> Vec<String> {
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    match answer.status {
        StatusCode::OK => vec![text],
        StatusCode::MULTIPLE_CHOICES => {
            let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
            let value = |sibling: &serde_json::Value| sibling["value"].as_str().map(str::to_owned);
            list.iter().filter_map(value).collect()
        }
        _ => Vec::new(),
    }
}

fn configure(_: u64, config: &mut NodeConfig) {
    config.flush_interval = Duration::from_secs(1);
    config.reap_after = Duration::from_secs(1);
    config.delete_after = Duration::from_secs(2);
    // What is missing stays missing.
    config.repair_every = Duration::from_secs(86_400);
}

/// Runs the seed.
pub fn run(options: &Options) -> Outcome {
    let (seed, bug) = (options.seed, options.bug);
    let place = Place { configure, level: options.level, ..Place::new(seed, bug) };
    let trace = Arc::clone(&place.trace);
    let presence = Arc::new(Presence::default());
    place.found(&NODES[..NODES.len() - 1]);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(LONGEST)
        .max_message_latency(LATENCY)
        .build();
    wire::add_server(&mut sim, &place);
    let machines: Vec<_> =
        NODES.iter().map(|name| Machine::add(&mut sim, &place, name, Duration::ZERO)).collect();
    let twin = Machine::add(&mut sim, &place, TWIN, Duration::ZERO);
    sim.crash(SPARE);
    sim.crash(TWIN);
    let gateways: Vec<_> =
        (0..GATEWAYS.len()).map(|gateway| add_gateway(&mut sim, &place, gateway, &presence)).collect();
    let shared = Arc::new(Shared {
        place: place.clone(),
        presence: Arc::clone(&presence),
        trace: Arc::clone(&trace),
        orders: Lock::default(),
        violations: Lock::default(),
        counts: Lock::default(),
    });
    let hand = Hand {
        shared: Arc::clone(&shared),
        http: Http::new(presence),
        random: SeededRandom::new(seed, "client"),
        deadline: DEADLINE,
        requests: 0,
    };
    sim.client("client", async move {
        pass(Duration::from_millis(500)).await;
        episodes::play(seed, hand).await;
        Ok(())
    });
    let faults = drive(&mut sim, &shared, &gateways, &twin, options);
    let simulated = sim.elapsed();
    drop((sim, machines, twin));
    let counts = std::mem::take(&mut *shared.counts.lock());
    let mut violations = std::mem::take(&mut *shared.violations.lock());
    violations.extend(place.sight.take_violations());
    let report = Report { scene: Scene::Edges, seed, simulated, counts, faults, violations };
    Outcome { trace: trace.bytes(), report }
}

/// Steps until the client has finished, and does what it orders; how often it ordered what.
fn drive(
    sim: &mut Sim<'_>,
    shared: &Shared,
    gateways: &[Gateway],
    twin: &Machine,
    options: &Options,
) -> BTreeMap<String, u64> {
    let (mut faults, mut numbers) = (BTreeMap::new(), 0..);
    loop {
        let orders = std::mem::take(&mut *shared.orders.lock());
        for order in orders {
            let number = numbers.next().unwrap();
            shared.trace.line_at(sim.elapsed(), "order", &format!("{order:?}"));
            let kind = match order {
                Order::Crash(_) => Some("crashed"),
                Order::Cut(..) => Some("cut"),
                Order::Reset(_) => Some("reset"),
                Order::Blind(_) => Some("without bucket"),
                Order::Start(_) | Order::Replace(_) | Order::Mend(..) => None,
            };
            if let Some(kind) = kind {
                if !options.has(number) {
                    continue;
                }
                *faults.entry(kind.to_owned()).or_default() += 1;
            }
            match order {
                Order::Crash(host) => {
                    let gateway = GATEWAYS.iter().position(|gateway| *gateway == host);
                    gateway.into_iter().for_each(|gateway| shared.presence.lost(gateway));
                    sim.crash(host);
                }
                Order::Start(node) => sim.bounce(node),
                Order::Replace(node) => {
                    twin.becomes(node);
                    sim.bounce(TWIN);
                }
                Order::Cut(a, b) => sim.partition(a, b),
                Order::Mend(a, b) => sim.repair(a, b),
                Order::Reset(gateway) => gateways[gateway].host.breaks.all(),
                Order::Blind(gateway) => gateways[gateway].reach.faults.set(bucket_faults(true)),
            }
        }
        match steps::step(sim) {
            Ok(false) => {}
            Ok(true) => return faults,
            Err(error) => {
                let what = format!("the simulation broke off: {error}");
                shared.violations.lock().push(Violation { check: Check::Broke, what });
                return faults;
            }
        }
    }
}
