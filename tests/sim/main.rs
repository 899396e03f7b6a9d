//! The whole cluster under a simulated network, clock and disk, from a seed: five storage nodes, a sixth that joins
//! under every other seed, and two gateways run their production code; clients fill and empty carts while links,
//! processes, machines and the bucket fail, and a checker compares what clients were told with what can be true.
//! `returning.rs` plays one scene of it many times: homes that were away come back and are read from at once.
//! `changing.rs` changes the ring while processes die at every step of it.
//!
//! Each seed of the whole runs twice, each time in a process of its own, and both must do the same, byte by byte.
//! Replay a seed with `CARTWHEEL_SIM_SEED=7 cargo test --test sim`, with `CARTWHEEL_SIM_TRACE=file` to keep what
//! happened and `CARTWHEEL_SIM_LOG=cartwheel=debug` to see what the processes log, in simulated time; run more with
//! `CARTWHEEL_SIM_SEEDS=100`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod changing;
mod checker;
mod client;
mod cluster;
mod doom;
mod ending;
mod faults;
mod http;
mod log;
mod operator;
mod returning;
mod run;
mod trace;
mod world;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use world::{BUGS, Bug};

/// Runs one seed in this process.
const SEED: &str = "CARTWHEEL_SIM_SEED";
/// How many seeds to run.
const SEEDS: &str = "CARTWHEEL_SIM_SEEDS";
/// The bug to plant.
const BUG: &str = "CARTWHEEL_SIM_BUG";
/// Where to leave the trace.
const TRACE: &str = "CARTWHEEL_SIM_TRACE";
/// The test that a process of its own runs.
const TEST: &str = "seeds_keep_the_promises_and_repeat";

/// The same of the changing ring.
const CHANGES_TEST: &str = "the_ring_changes_and_nothing_is_lost";

/// How many seeds of the changing ring run if nobody says.
const DEFAULT_CHANGES: u64 = 8;
/// Seeds within which a planted bug must be seen.
const BUG_SEEDS: u64 = 10;
/// How many seeds run if nobody says.
const DEFAULT_SEEDS: u64 = 6;
/// How many seeds of returning homes run if nobody says.
const DEFAULT_RETURNS: u64 = 40;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Runs one seed here, leaves its trace, and fails on violations.
fn run_here(seed: u64) {
    let bug = std::env::var(BUG).map_or(Bug::None, |name| {
        BUGS.iter().find(|(known, _, _)| *known == name).unwrap_or_else(|| panic!("{BUG}={name}?")).1
    });
    log::start();
    let outcome = run::run(seed, bug);
    if let Ok(path) = std::env::var(TRACE) {
        fs::write(path, &outcome.trace).unwrap();
    }
    println!("{}", outcome.summary);
    assert!(
        outcome.violations.is_empty(),
        "seed {seed} broke promises:\n{}\nreplay: {SEED}={seed} {TRACE}=trace.txt cargo test --test sim",
        outcome.violations.join("\n")
    );
}

/// Starts a process for one run of a seed.
fn spawn(test: &str, seed: u64, bug: Option<&str>, trace: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(SEED, seed.to_string()).env(TRACE, trace);
    match bug {
        Some(bug) => command.env(BUG, bug),
        None => command.env_remove(BUG),
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for such a process: whether it found nothing wrong, and what it said.
fn wait(child: Child) -> (bool, String) {
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// The first line in which two traces differ.
fn first_difference(a: &[u8], b: &[u8]) -> String {
    let (a, b) = (String::from_utf8_lossy(a), String::from_utf8_lossy(b));
    let mut lines = a.lines().zip(b.lines()).enumerate();
    match lines.find(|(_, (a, b))| a != b) {
        Some((at, (a, b))) => format!("line {}:\n  {a}\n  {b}", at + 1),
        None => "one goes on where the other ends".to_owned(),
    }
}

#[test]
fn seeds_keep_the_promises_and_repeat() {
    if let Some(seed) = number(SEED) {
        return run_here(seed);
    }
    let directory = tempfile::tempdir().unwrap();
    let mut last: Option<Vec<u8>> = None;
    for seed in 1..=number(SEEDS).unwrap_or(DEFAULT_SEEDS) {
        let paths = ["first", "second"].map(|run| directory.path().join(run));
        let twins = [spawn(TEST, seed, None, &paths[0]), spawn(TEST, seed, None, &paths[1])];
        for (fine, said) in twins.map(wait) {
            assert!(fine, "{said}");
            println!("{}", said.lines().find(|line| line.contains("simulated")).unwrap_or_default());
        }
        let [first, second] = paths.map(|path| fs::read(path).unwrap());
        assert!(
            first == second,
            "two runs of seed {seed} differ ({SEED}={seed} cargo test --test sim), {}",
            first_difference(&first, &second)
        );
        assert!(last.as_ref() != Some(&first), "seed {seed} does what the seed before it did");
        last = Some(first);
    }
}

#[test]
fn planted_bugs_are_seen() {
    if number(SEED).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for (name, _, says) in BUGS {
        // What a bug breaks first need not be what it is known by.
        let mut others = Vec::new();
        let found = (1..=BUG_SEEDS).find(|seed| {
            let (fine, said) = wait(spawn(TEST, *seed, Some(name), &directory.path().join(name)));
            let seen = !fine && said.lines().any(|line| line.contains(says));
            if !fine && !seen {
                others.push(said);
            }
            seen
        });
        let others = others.join("\n");
        let Some(seed) = found else {
            panic!("{name} went unseen in {BUG_SEEDS} seeds; they said:\n{others}")
        };
        println!("{name}: seen with seed {seed}");
    }
}

/// Runs one seed of the changing ring here.
fn change_here(seed: u64) {
    log::start();
    let outcome = changing::run(seed);
    if let Ok(path) = std::env::var(TRACE) {
        fs::write(path, &outcome.trace).unwrap();
    }
    println!("{}", outcome.summary);
    assert!(
        outcome.violations.is_empty(),
        "seed {seed} broke promises:\n{}\nreplay: {SEED}={seed} {TRACE}=trace.txt cargo test --test sim {CHANGES_TEST}",
        outcome.violations.join("\n")
    );
}

#[test]
fn the_ring_changes_and_nothing_is_lost() {
    if let Some(seed) = number(SEED) {
        return change_here(seed);
    }
    let directory = tempfile::tempdir().unwrap();
    let seeds: Vec<u64> = (1..=number(SEEDS).unwrap_or(DEFAULT_CHANGES)).collect();
    // Two at a time, each in a process of its own.
    for pair in seeds.chunks(2) {
        let start = |seed: &u64| spawn(CHANGES_TEST, *seed, None, &directory.path().join(seed.to_string()));
        let running: Vec<Child> = pair.iter().map(start).collect();
        for (fine, said) in running.into_iter().map(wait) {
            assert!(fine, "{said}");
            println!("{}", said.lines().find(|line| line.contains("simulated")).unwrap_or_default());
        }
    }
}

/// The part of a trace that people follow: what clients did, and what happened to hosts.
fn timeline(trace: &[u8]) -> String {
    let text = String::from_utf8_lossy(trace);
    let own = |line: &&str| {
        ["script", "writer", "reader"].iter().any(|who| line.contains(&format!(" {who}: ")))
            || ["serves as", "can't start", "ended"].iter().any(|what| line.contains(what))
    };
    let lines: Vec<&str> = text.lines().filter(own).collect();
    let stale = lines.iter().position(|line| line.ends_with("STALE")).unwrap_or(lines.len());
    let few = &lines[stale.saturating_sub(60)..(stale + 5).min(lines.len())];
    few.iter().map(|line| line.chars().take(240).collect::<String>() + "\n").collect()
}

#[test]
fn no_read_is_stale_while_homes_return() {
    let only = number(SEED);
    log::start();
    let seeds = only.map_or(1..=number(SEEDS).unwrap_or(DEFAULT_RETURNS), |seed| seed..=seed);
    let (mut fresh, mut degraded, mut unanswered, mut hinted) = (0, 0, 0, 0);
    let mut broken = Vec::new();
    for seed in seeds {
        let outcome = returning::run(seed, Bug::None);
        if let (Some(_), Ok(path)) = (only, std::env::var(TRACE)) {
            fs::write(format!("{path}.returning"), &outcome.trace).unwrap();
        }
        fresh += outcome.reads.fresh;
        degraded += outcome.reads.stale_degraded;
        unanswered += outcome.reads.unanswered;
        hinted += outcome.written;
        if let Some(first) = outcome.violations.first() {
            println!("seed {seed}: {} stale reads, {first}", outcome.violations.len());
            broken.push((seed, timeline(&outcome.trace)));
        }
    }
    println!(
        "{fresh} fresh reads, {degraded} stale ones that said to be from the bucket, {unanswered} without an \
         answer; {hinted} writes with fallbacks"
    );
    assert!(fresh > 0 && hinted > 0, "nothing was looked at");
    let seeds: Vec<u64> = broken.iter().map(|(seed, _)| *seed).collect();
    assert!(broken.is_empty(), "stale reads under seeds {seeds:?}; the first:\n{}", broken[0].1);
}

#[test]
fn a_stale_read_is_seen_where_homes_count_at_once_or_hints_are_dropped() {
    if number(SEED).is_some() {
        return;
    }
    for bug in [Bug::CountsAtOnce, Bug::DroppedHints] {
        let seen = (1..=DEFAULT_RETURNS).find(|seed| !returning::run(*seed, bug).violations.is_empty());
        let Some(seed) = seen else { panic!("{bug:?} went unseen in {DEFAULT_RETURNS} seeds") };
        println!("{bug:?}: seen with seed {seed}");
    }
}
