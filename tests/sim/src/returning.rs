//! The example of the slides: of a key's homes B, C and D, two are away; writes go to B and to the nodes that stand in
//! for C and D; then C and D return, and somebody reads from two homes through another gateway, which does not
//! reach B well or at all. No read may miss what was acknowledged before it began.
//!
//! Under every third seed all who took the writes die before C and D return, some time after the last write: what
//! C and D need lies in the bucket then. Under others C and D were not dead but stood still, and find no bucket when they
//! go on; or who took the writes reach neither the bucket nor, for a while, C and D.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::Faults;
use cartwheel_cluster::seams::Random;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::ring::{Ring, RingDocument};
use http::{Method, StatusCode};
use tokio::time::Instant;
use turmoil::Sim;

use crate::cluster::{GATEWAYS, Machine, Place, Presence, add_gateway};
use crate::http::{Answer, Http};
use crate::options::Options;
use crate::report::{Check, Outcome, Report, Scene, Violation};
use crate::trace::Trace;
use crate::vote::Ballot;
use crate::world::lock::Lock;
use crate::world::{SeededRandom, pass};
use crate::{steps, wire};

/// The storage nodes.
const NODES: [&str; 6] = ["node-a", "node-b", "node-c", "node-d", "node-e", "node-f"];
/// The key.
const PATH: &str = "/v1/kv/slides/cart";
/// The deadline of every request.
const DEADLINE: Duration = Duration::from_secs(2);
/// The gateway that writes go through, and the one that reads go through.
const WRITES: usize = 0;
const READS: usize = 1;
/// How long reads go on once C and D are to return.
const READING: Duration = Duration::from_secs(7);
/// The time between the last write and the death of those who took it: all of it is in the bucket by then.
const UPLOADED: Duration = Duration::from_millis(3_500);
/// The numbers of what goes wrong: the trouble, each of those that are away, and from where on each that took writes.
const TROUBLE: usize = 0;
const AWAY: [usize; 2] = [1, 2];
const HOLDERS: usize = 3;
/// The hurdle has the number of one who took writes: there is none where those die.
const HURDLE: usize = 3;
/// The longest that a simulation may last.
const LONGEST: Duration = Duration::from_secs(60);

/// What is between B and the gateway of the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    Slow(u64),
    Cut,
    Stalled,
}

/// What else keeps C and D from what they lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hurdle {
    None,
    /// They reach no bucket at first.
    NoBucket,
    /// Those who keep something for them reach no bucket, nor at first C and D.
    Apart,
}

/// What happens when, drawn from the seed.
#[derive(Debug)]
struct Script {
    /// The version of the ring.
    version: u64,
    /// Do C and D stand still, rather than die?
    freezes: bool,
    hurdle: Hurdle,
    /// How long it is there once the second of them returns.
    hurdle_lasts: Duration,
    b: &'static str,
    away: [&'static str; 2],
    /// When each of them dies and comes back.
    dies: [Duration; 2],
    returns: [Duration; 2],
    /// When writing ends.
    written: Duration,
    /// Do all who took the writes die?
    holders_die: bool,
    trouble: Trouble,
    /// When there is trouble, from and until.
    troubled: (Duration, Duration),
    /// The longest that a message is on its way, and one between C or D and another node once they return.
    latency: Duration,
    apart: Duration,
    /// When reading begins: before that, the reader's gateway knows nobody.
    read: Duration,
}

impl Script {
    fn draw(seed: u64, document: &RingDocument) -> Self {
        let random = SeededRandom::new(seed, "script");
        let ring = Ring::current(document);
        let (namespace, key) = (Namespace::new(b"slides").unwrap(), Key::new("cart".into()).unwrap());
        let list = ring.preference_list(KeyHash::of(document.hash_seed, &namespace, &key));
        let name = |index: &u16| {
            let id = ring.member(*index).unwrap().id.as_str();
            *NODES.iter().find(|name| **name == id).unwrap()
        };
        let mut homes: Vec<&str> = list.homes().iter().map(name).collect();
        let b = homes.remove(usize::try_from(random.below(3)).unwrap());
        let millis = |from: u64, to: u64| random.millis(from..to);
        let dies = [millis(1_000, 2_000), millis(1_000, 2_000)];
        let holders_die = seed.is_multiple_of(3);
        let first = dies[0].max(dies[1]) + millis(2_500, 5_000);
        let returns = [first, first + millis(0, 1_500)];
        let (written, returns) = if holders_die {
            (first, returns.map(|at| at + UPLOADED + Duration::from_secs(1)))
        } else {
            // Under some seeds nobody writes any more when they return, under others it goes on.
            (first - Duration::from_millis(500) + millis(0, 2) * 4_000, returns)
        };
        let trouble = match random.below(4) {
            0 => Trouble::None,
            1 => Trouble::Slow(200 + random.below(800)),
            2 => Trouble::Cut,
            _ => Trouble::Stalled,
        };
        let from = first.saturating_sub(millis(0, 3_000));
        let troubled = (from, from + millis(3_000, 9_000));
        let latency = millis(1, 40);
        let apart = if random.below(2) == 0 { latency } else { millis(50, 400) };
        let reads_after = millis(0, 600);
        let away = [homes[0], homes[1]];
        let more = SeededRandom::new(seed, "hurdles");
        let (freezes, hurdle) = match seed % 6 {
            2 => (true, Hurdle::None),
            4 => (true, Hurdle::NoBucket),
            5 => (more.below(2) == 0, Hurdle::Apart),
            _ => (false, Hurdle::None),
        };
        // Long enough to count without the bucket, or shorter than anybody waits for those that are apart.
        let hurdle_lasts =
            if hurdle == Hurdle::NoBucket { more.millis(3_500..6_000) } else { more.millis(500..3_000) };
        // Long enough for the writer's gateway to give them up, and too short for anybody else to say so.
        let (returns, written) = if freezes && hurdle == Hurdle::None {
            let first = dies[0].max(dies[1]) + more.millis(1_500..2_500);
            ([first, first + more.millis(0..300)], first + more.millis(0..300))
        } else if hurdle == Hurdle::NoBucket {
            // Who goes on first would wait for the bucket until the other can be told.
            ([returns[0]; 2], first - Duration::from_millis(500))
        } else {
            (returns, written)
        };
        // A read brings C and D what it finds elsewhere. So where there is more to it, nobody reads before the moment, and
        // then from C and D alone.
        let moment = match seed % 6 {
            2 => Some(more.millis(0..80)),
            4 => Some(more.millis(2_100..3_500)),
            5 => Some(more.millis(0..2_000)),
            _ => None,
        };
        let (trouble, troubled) = match moment {
            Some(_) => (Trouble::Cut, (Duration::ZERO, LONGEST)),
            None => (trouble, troubled),
        };
        let read = match moment {
            Some(after) => returns[1] + after,
            None => (returns[0] + reads_after).saturating_sub(Duration::from_millis(300)),
        };
        Self {
            version: document.version,
            freezes,
            hurdle,
            hurdle_lasts,
            b,
            away,
            dies,
            returns,
            written,
            holders_die,
            trouble,
            troubled,
            latency,
            apart,
            read,
        }
    }
}

/// How the reads went.
#[derive(Debug, Default, Clone, Copy)]
pub struct Reads {
    /// Answers that held all that was acknowledged before.
    pub fresh: u64,
    /// Answers of the bucket, saying so, that did not.
    pub stale_degraded: u64,
    /// Requests that got no such answer.
    pub unanswered: u64,
}

/// What writer and reader share.
#[derive(Debug)]
struct Shared {
    trace: Arc<Trace>,
    /// The last write acknowledged: each has seen the one before.
    acknowledged: Lock<u64>,
    reads: Lock<Reads>,
    violations: Lock<Vec<Violation>>,
    written: Lock<u64>,
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

async fn send(
    http: &mut Http,
    gateway: usize,
    method: Method,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<Answer> {
    let query = if method == Method::GET { "&r=2" } else { "&w=2" };
    let path = format!("{PATH}?deadline={}ms{query}", DEADLINE.as_millis());
    let deadline = Instant::now() + DEADLINE + DEADLINE;
    http.send(gateway, method, &path, headers, body, deadline).await.ok()
}

/// Writes 1, 2, 3… one after the other, each with the clock of the last acknowledged one.
async fn write(mut http: Http, shared: Arc<Shared>, random: SeededRandom, script: Arc<Script>) {
    let mut clock: Option<String> = None;
    let mut number = 0;
    pass(Duration::from_millis(300)).await;
    while now() < script.written {
        pass(random.millis(10..150)).await;
        number += 1;
        let body = number.to_string();
        let name = format!("\"write-{number}\"");
        let mut headers = vec![("idempotency-key", name.as_str())];
        headers.extend(clock.as_ref().map(|clock| ("vector-clock", clock.as_str())));
        shared.trace.line("writer", &format!("writes {number}"));
        let Some(answer) = send(&mut http, WRITES, Method::PUT, &headers, &body).await else { continue };
        let quorum = answer.header("quorum");
        shared
            .trace
            .line("writer", &format!("{number}: {} {} {quorum}", answer.status, answer.header("dot")));
        if answer.status == StatusCode::NO_CONTENT {
            clock = Some(answer.header("vector-clock").to_owned());
            *shared.acknowledged.lock() = number;
            *shared.written.lock() += u64::from(answer.quorum("fallback").is_some_and(|n| n > 0));
        }
    }
}

/// Reads on and on.
async fn read(mut http: Http, shared: Arc<Shared>, random: SeededRandom, script: Arc<Script>) {
    pass(script.read).await;
    while now() < script.returns[1] + READING {
        pass(random.millis(1..40)).await;
        let owed = *shared.acknowledged.lock();
        let began = now();
        let json = [("accept", "application/json")];
        let answer = send(&mut http, READS, Method::GET, &json, "").await;
        let Some(answer) = answer.filter(|a| !a.status.is_server_error()) else {
            shared.reads.lock().unanswered += 1;
            continue;
        };
        let newest = newest(&answer);
        let said = format!(
            "{} {newest} ({owed} were acknowledged at {}): {}",
            answer.status,
            began.as_micros(),
            answer.header("quorum"),
        );
        if newest >= owed {
            shared.reads.lock().fresh += 1;
            shared.trace.line("reader", &said);
        } else if answer.is_degraded() {
            shared.reads.lock().stale_degraded += 1;
            shared.trace.line("reader", &format!("{said}, from the bucket"));
        } else {
            shared.trace.line("reader", &format!("{said} STALE"));
            let what = format!("{:.6} s: {said}", now().as_secs_f64());
            shared.violations.lock().push(Violation { check: Check::Stale, what });
        }
    }
}

/// Asks a node that stands still for its vote: the first that it hears when it goes on. It was away for longer than
/// anybody waits, and can't have caught up yet.
async fn vote(node: &str, stands_still: Duration, shared: Arc<Shared>, ring_version: u64) {
    pass(Duration::from_millis(500)).await;
    let Some(ballot) = Ballot::open(node).await else { return };
    // It stands still, and hears nothing of this.
    pass((stands_still + Duration::from_millis(50)).saturating_sub(now())).await;
    let answer = ballot.votes("slides", "cart", ring_version).await;
    shared.trace.line("voter", &format!("{node}: {answer:?}"));
    if answer == Some(true) {
        let what = format!("{:.6} s: {node} stood still for long, and votes at once", now().as_secs_f64());
        shared.violations.lock().push(Violation { check: Check::Stale, what });
    }
}

/// The newest write in an answer; 0 if there is none.
fn newest(answer: &Answer) -> u64 {
    let text = String::from_utf8_lossy(&answer.body);
    match answer.status {
        StatusCode::OK => text.parse().unwrap(),
        StatusCode::MULTIPLE_CHOICES => {
            let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
            list.iter().map(|sibling| sibling["value"].as_str().unwrap().parse().unwrap()).max().unwrap_or(0)
        }
        _ => 0,
    }
}

/// Runs the seed.
pub fn run(options: &Options) -> Outcome {
    let (seed, bug) = (options.seed, options.bug);
    let place = Place { level: options.level, ..Place::new(seed, bug) };
    let trace = Arc::clone(&place.trace);
    let presence = Arc::new(Presence::default());
    let script = Arc::new(Script::draw(seed, &place.found(&NODES)));
    trace.line_at(Duration::ZERO, "script", &format!("{script:?}"));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(LONGEST)
        .max_message_latency(script.latency)
        .build();
    wire::add_server(&mut sim, &place);
    let machines = NODES.map(|name| Machine::add(&mut sim, &place, name, Duration::ZERO));
    for gateway in 0..GATEWAYS.len() {
        add_gateway(&mut sim, &place, gateway, &presence);
    }
    let shared = Arc::new(Shared {
        trace: Arc::clone(&trace),
        acknowledged: Lock::new(0),
        reads: Lock::default(),
        violations: Lock::default(),
        written: Lock::new(0),
    });
    let http = || Http::new(Arc::clone(&presence));
    let (random, part) = (SeededRandom::new(seed, "writer"), (Arc::clone(&shared), Arc::clone(&script)));
    let writing = write(http(), part.0, random, part.1);
    sim.client("writer", async move {
        writing.await;
        Ok(())
    });
    let (random, part) = (SeededRandom::new(seed, "reader"), (Arc::clone(&shared), Arc::clone(&script)));
    let reading = read(http(), part.0, random, part.1);
    sim.client("reader", async move {
        reading.await;
        Ok(())
    });
    if script.freezes {
        for (away, dies) in script.away.into_iter().zip(script.dies) {
            let part = (Arc::clone(&shared), script.version);
            sim.client(format!("voter of {away}"), async move {
                vote(away, dies, part.0, part.1).await;
                Ok(())
            });
        }
    }
    let faults = play(&mut sim, &script, &shared, &machines, options);
    let simulated = sim.elapsed();
    drop(sim);
    let (reads, written) = (*shared.reads.lock(), *shared.written.lock());
    let counts = [
        ("reads", reads.fresh),
        ("stale reads said to be the bucket's", reads.stale_degraded),
        ("reads without a quorum", reads.unanswered),
        ("answers with fallbacks", written),
        ("bucket operations", trace.bucket_operations()),
    ];
    let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    let mut violations = std::mem::take(&mut *shared.violations.lock());
    violations.extend(place.sight.take_violations());
    let report = Report { scene: Scene::Returns, seed, simulated, counts, faults, violations };
    Outcome { trace: trace.bytes(), report }
}

/// A step of the script.
#[derive(Debug, Clone, Copy)]
enum Step {
    Dies(&'static str),
    Returns(&'static str),
    TroubleBegins,
    TroubleEnds,
    HurdleBegins,
    HurdleEnds,
}

/// Is the bucket there for a machine?
fn set_bucket(machine: &Machine, there: bool) {
    machine.reach.faults.set(Faults { unavailable: !there, ..Faults::default() });
}

/// Makes a process stand still, or go on: what is on its way to it or from it waits.
fn stand_still(sim: &Sim<'_>, machine: &Machine, name: &str, still: bool) {
    if still {
        machine.host.freezer.freeze();
    } else {
        machine.host.freezer.thaw();
    }
    let voter = format!("voter of {name}");
    let others = NODES.into_iter().chain(GATEWAYS).chain([voter.as_str()]);
    for other in others.filter(|other| *other != name) {
        if still {
            sim.hold(name, other);
        } else {
            sim.release(name, other);
        }
    }
}

/// Plays the script to its end; how often each kind of fault began.
fn play(
    sim: &mut Sim<'_>,
    script: &Script,
    shared: &Shared,
    machines: &[Arc<Machine>],
    options: &Options,
) -> BTreeMap<String, u64> {
    let mut faults = BTreeMap::new();
    let mut steps: Vec<(Duration, Step)> = Vec::new();
    for (at, node) in script.away.iter().enumerate().filter(|(at, _)| options.has(AWAY[*at])) {
        steps.push((script.dies[at], Step::Dies(node)));
        steps.push((script.returns[at], Step::Returns(node)));
    }
    if script.holders_die {
        let mut others: Vec<_> = NODES.into_iter().filter(|node| !script.away.contains(node)).collect();
        let mut number = HOLDERS..;
        others.retain(|_| number.next().is_some_and(|number| options.has(number)));
        steps.extend(others.into_iter().map(|node| (script.written + UPLOADED, Step::Dies(node))));
    } else if options.has(TROUBLE) {
        steps.push((script.troubled.0, Step::TroubleBegins));
        steps.push((script.troubled.1, Step::TroubleEnds));
    }
    if script.hurdle != Hurdle::None && options.has(HURDLE) {
        steps.push((script.dies[0], Step::HurdleBegins));
        steps.push((script.returns[1] + script.hurdle_lasts, Step::HurdleEnds));
    }
    steps.sort_by_key(|(at, _)| *at);
    let mut steps = steps.into_iter().peekable();
    let (b, reads) = (script.b, GATEWAYS[READS]);
    let machine = |name: &str| &machines[NODES.iter().position(|node| *node == name).unwrap()];
    let holders = || NODES.into_iter().filter(|node| *node != b && !script.away.contains(node));
    let mut thawing: Vec<&str> = Vec::new();
    loop {
        while let Some((_, step)) = steps.next_if(|(at, _)| *at <= sim.elapsed()) {
            shared.trace.line_at(sim.elapsed(), "script", &format!("{step:?}"));
            let kind = match (step, script.trouble) {
                (Step::Dies(_), _) if script.freezes => Some("Frozen".to_owned()),
                (Step::Dies(_), _) => Some("Crashed".to_owned()),
                (Step::HurdleBegins, _) => Some(format!("{:?}", script.hurdle)),
                (Step::TroubleBegins, trouble) if trouble != Trouble::None => Some(format!("{trouble:?}")),
                _ => None,
            };
            if let Some(kind) = kind {
                let kind = kind.split('(').next().unwrap_or_default().to_owned();
                *faults.entry(kind).or_default() += 1;
            }
            match (step, script.trouble) {
                (Step::Dies(node), _) if script.freezes => stand_still(sim, machine(node), node, true),
                (Step::Dies(node), _) => sim.crash(node),
                (Step::HurdleBegins | Step::HurdleEnds, _) => {
                    let ends = matches!(step, Step::HurdleEnds);
                    match script.hurdle {
                        Hurdle::NoBucket => {
                            script.away.iter().for_each(|node| set_bucket(machine(node), ends));
                        }
                        _ => holders().for_each(|node| set_bucket(machine(node), ends)),
                    }
                    if ends && script.hurdle == Hurdle::Apart {
                        for node in script.away {
                            holders().for_each(|other| sim.repair(node, other));
                        }
                    }
                }
                (Step::Returns(node), _) => {
                    if script.freezes {
                        let died = script.dies[script.away.iter().position(|away| *away == node).unwrap()];
                        machine(node).host.freezer.leap(sim.elapsed().saturating_sub(died));
                        thawing.push(node);
                    } else {
                        sim.bounce(node);
                    }
                    if script.hurdle == Hurdle::Apart && options.has(HURDLE) {
                        holders().for_each(|other| sim.partition(node, other));
                    }
                    for other in NODES.into_iter().filter(|other| *other != node) {
                        sim.set_link_max_message_latency(node, other, script.apart);
                    }
                }
                (_, Trouble::None) => {}
                (Step::TroubleBegins, Trouble::Slow(ms)) => {
                    sim.set_link_latency(b, reads, Duration::from_millis(ms));
                }
                (Step::TroubleEnds, Trouble::Slow(_)) => sim.set_link_latency(b, reads, script.latency),
                (Step::TroubleBegins, Trouble::Cut) => sim.partition(b, reads),
                (Step::TroubleEnds, Trouble::Cut) => sim.repair(b, reads),
                (Step::TroubleBegins, Trouble::Stalled) => sim.hold(b, reads),
                (Step::TroubleEnds, Trouble::Stalled) => sim.release(b, reads),
            }
        }
        let standing = std::mem::take(&mut thawing);
        match steps::step(sim) {
            Ok(false) => {}
            Ok(true) => return faults,
            Err(error) => {
                let what = format!("the simulation broke off: {error}");
                shared.violations.lock().push(Violation { check: Check::Broke, what });
                return faults;
            }
        }
        // Their clocks have leapt by now.
        for node in standing {
            stand_still(sim, machine(node), node, false);
            if script.hurdle == Hurdle::Apart && options.has(HURDLE) {
                holders().for_each(|other| sim.partition(node, other));
            }
        }
    }
}
