//! The whole cluster under a simulated network, clock and disk, from a seed: three storage nodes and a gateway
//! run their production code, clients fill carts while links, processes, machines and the bucket fail, and a
//! checker compares what clients were told with what can be true.
//!
//! Each seed runs twice, each time in a process of its own, and both must do the same, byte by byte. Replay a
//! seed with `CARTWHEEL_SIM_SEED=7 cargo test --test sim`; run more with `CARTWHEEL_SIM_SEEDS=100`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod checker;
mod client;
mod faults;
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

/// Seeds within which a planted bug must be seen.
const BUG_SEEDS: u64 = 10;
/// How many seeds run if nobody says.
const DEFAULT_SEEDS: u64 = 8;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Runs one seed here, leaves its trace, and fails on violations.
fn run_here(seed: u64) {
    let bug = std::env::var(BUG).map_or(Bug::None, |name| {
        BUGS.iter().find(|(known, _, _)| *known == name).unwrap_or_else(|| panic!("{BUG}={name}?")).1
    });
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
fn spawn(seed: u64, bug: Option<&str>, trace: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env(SEED, seed.to_string()).env(TRACE, trace);
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
        let twins = [spawn(seed, None, &paths[0]), spawn(seed, None, &paths[1])];
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
        let found = (1..=BUG_SEEDS).find_map(|seed| {
            let (fine, said) = wait(spawn(seed, Some(name), &directory.path().join(name)));
            (!fine).then_some((seed, said))
        });
        let Some((seed, said)) = found else { panic!("{name} went unseen in {BUG_SEEDS} seeds") };
        assert!(said.lines().any(|line| line.contains(says)), "{name} was not recognised:\n{said}");
        println!("{name}: seen with seed {seed}");
    }
}
