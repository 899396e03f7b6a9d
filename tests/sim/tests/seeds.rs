//! Seeds of each scene, each in a process of its own: no promise is broken, and the same seed does the same.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Starts one run of a seed of a scene, with these options besides.
fn start(scene: &str, seed: u64, options: &[&str], trace: Option<&Path>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cartwheel-sim"));
    command.args(["seed", &seed.to_string(), "--scene", scene]).args(options);
    if let Some(trace) = trace {
        command.arg("--trace").arg(trace);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for it: whether it found nothing wrong, and what it said.
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

/// Runs each seed twice, at once.
fn keeps_its_promises_and_repeats(scene: &str, seeds: u64) {
    let directory = tempfile::tempdir().unwrap();
    let mut last: Option<Vec<u8>> = None;
    for seed in 1..=seeds {
        let paths = ["first", "second"].map(|run| directory.path().join(run));
        let twins = paths.each_ref().map(|path| start(scene, seed, &[], Some(path)));
        for (fine, said) in twins.map(wait) {
            assert!(fine, "{said}\nreplay: cargo sim seed {seed} --scene {scene}");
        }
        let [first, second] = paths.map(|path| fs::read(path).unwrap());
        let differ = || first_difference(&first, &second);
        assert!(first == second, "two runs of seed {seed} of {scene} differ, {}", differ());
        assert!(last.as_ref() != Some(&first), "seed {seed} does what the seed before it did");
        last = Some(first);
    }
}

#[test]
fn everything_goes_wrong_and_nothing_is_lost() {
    keeps_its_promises_and_repeats("whole", 6);
}

#[test]
fn the_ring_changes_and_nothing_is_lost() {
    keeps_its_promises_and_repeats("changes", 5);
}

#[test]
fn no_read_is_stale_while_homes_return() {
    keeps_its_promises_and_repeats("returns", 30);
}

/// Seeds within which a planted bug must be seen.
const PLANTED_WITHIN: u64 = 40;

/// The environment lies as `bug` says; the report must name the check that is there for it.
fn is_seen(scene: &str, bug: &str, check: &str) {
    // What a bug breaks first need not be what it is known by.
    let mut others = Vec::new();
    for seed in 1..=PLANTED_WITHIN {
        let (fine, said) = wait(start(scene, seed, &["--bug", bug], None));
        if !fine && said.contains(&format!("{check}: ")) {
            return;
        }
        others.extend((!fine).then_some(said));
    }
    panic!("{bug} went unseen by {check} in {PLANTED_WITHIN} seeds; they said:\n{}", others.join("\n"));
}

#[test]
fn an_environment_that_lies_is_seen() {
    is_seen("whole", "whole-clock", "Lost");
    is_seen("whole", "lying-disk", "Lost");
    is_seen("whole", "same-epoch", "Dot");
    is_seen("returns", "counts-at-once", "Stale");
    is_seen("returns", "dropped-hints", "Stale");
}
