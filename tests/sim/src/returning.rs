//! The example of the slides: of a key's homes B, C and D, two are away; writes go to B and to the nodes that stand in
//! for C and D; then C and D return, and somebody reads from two homes through another gateway, which does not
//! reach B well or at all. No read may miss what was acknowledged before it began.
//!
//! Under every third seed all who took the writes die before C and D return, some time after the last write: what
//! C and D need lies in the bucket then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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

/// What happens when, drawn from the seed.
#[derive(Debug)]
struct Script {
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
        let read = (returns[0] + millis(0, 600)).saturating_sub(Duration::from_millis(300));
        let away = [homes[0], homes[1]];
        Self { b, away, dies, returns, written, holders_die, trouble, troubled, latency, apart, read }
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
    for name in NODES {
        Machine::add(&mut sim, &place, name, Duration::ZERO);
    }
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
    let faults = play(&mut sim, &script, &shared, options);
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
}

/// Plays the script to its end; how often each kind of fault began.
fn play(sim: &mut Sim<'_>, script: &Script, shared: &Shared, options: &Options) -> BTreeMap<String, u64> {
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
    steps.sort_by_key(|(at, _)| *at);
    let mut steps = steps.into_iter().peekable();
    let (b, reads) = (script.b, GATEWAYS[READS]);
    loop {
        while let Some((_, step)) = steps.next_if(|(at, _)| *at <= sim.elapsed()) {
            shared.trace.line_at(sim.elapsed(), "script", &format!("{step:?}"));
            let kind = match (step, script.trouble) {
                (Step::Dies(_), _) => Some("Crashed".to_owned()),
                (Step::TroubleBegins, trouble) if trouble != Trouble::None => Some(format!("{trouble:?}")),
                _ => None,
            };
            if let Some(kind) = kind {
                let kind = kind.split('(').next().unwrap_or_default().to_owned();
                *faults.entry(kind).or_default() += 1;
            }
            match (step, script.trouble) {
                (Step::Dies(node), _) => sim.crash(node),
                (Step::Returns(node), _) => {
                    sim.bounce(node);
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
