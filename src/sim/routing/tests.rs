//! The command as people call it: limits, agreement of text and JSON, repeatable bytes.
#![allow(clippy::unwrap_used, clippy::panic)]

use clap::Parser;
use serde_json::Value;

use super::*;
use crate::cli::{self, Cli};
use crate::sim::svg::tests::assert_well_formed;

fn parsed(words: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(["cartwheel", "sim", "routing"].into_iter().chain(words.split_whitespace()))
}

/// Runs `cartwheel sim routing` and gives its exit status, standard output and standard error.
fn ran(words: &str) -> (Exit, String, String) {
    let mut output = Output::memory();
    let exit = cli::run(parsed(words).unwrap(), &mut output);
    let Output::Memory { out, err } = output else { panic!("not in memory") };
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn fields_outside_their_limits_are_named() {
    for (words, field, limit) in [
        ("--nodes 1", "--nodes", "2..=1000000"),
        ("--nodes 10,1000001", "--nodes", "2..=1000000"),
        ("--lookups 0", "--lookups", "1..=1000000"),
        ("--lifetime 59s", "--lifetime", "from 1m to 365d"),
        ("--lifetime soon", "--lifetime", "not a duration"),
        ("--stabilise 2h", "--stabilise", "from 1s to 1h"),
        ("--rate 1000001", "--rate", "0..=1000000"),
        ("--seed x", "--seed", "invalid digit"),
    ] {
        let error = parsed(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{words}");
        let said = error.to_string();
        assert!(said.contains(field) && said.contains(limit), "{words}: {said}");
    }
    let (exit, out, err) = ran(&format!("--nodes 2{}", ",2".repeat(16)));
    assert_eq!((exit, out.as_str()), (Exit::Usage, ""));
    assert!(err.contains("--nodes has 17 sizes; the limit is 16"), "{err}");
}

#[test]
fn text_and_json_say_the_same_every_time() {
    let words = "--nodes 2,64,2000 --lookups 50 --lifetime 2h";
    let (exit, text, _) = ran(words);
    assert_eq!(exit, Exit::Done);
    assert_eq!(ran(words).1, text);
    assert_ne!(ran(&format!("{words} --seed 2")).1, text);
    let (_, json, _) = ran(&format!("{words} -o json"));
    let json: Value = serde_json::from_str(&json).unwrap();
    let sizes = json["sizes"].as_array().unwrap();
    assert_eq!(sizes.iter().map(|s| s["nodes"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 64, 2000]);
    // A document holds 1,024 members.
    assert!(sizes[1]["as_built"].is_object() && sizes[2]["as_built"].is_null());
    for size in sizes {
        let hops = size["chord"]["hops"]["mean"].as_f64().unwrap();
        let line = text.lines().find(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(&size["nodes"].to_string()) && words.next() == Some("Chord")
        });
        assert!(line.unwrap().contains(&format!("{hops:.2}")), "{line:?} {hops}");
    }
    // 1h, 2h, 24h, 30d, ever more nodes.
    let upkeep: Vec<f64> =
        json["crossovers"].as_array().unwrap().iter().map(|c| c["upkeep"].as_f64().unwrap()).collect();
    assert!(upkeep.len() == 4 && upkeep.windows(2).all(|pair| pair[0] < pair[1]), "{upkeep:?}");
    assert!(text.contains("Must every node know all key ranges? With nodes that stay 2h"), "{text}");
}

#[test]
fn pictures_are_well_formed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routing.svg");
    let words = format!("--nodes 2000,16 --lookups 5 --svg {}", file.display());
    assert_eq!(ran(&words).0, Exit::Done);
    let svg = std::fs::read_to_string(&file).unwrap();
    assert_well_formed(&svg);
    // Four, three and three lines.
    assert_eq!(svg.matches("<polyline").count(), 10);
}
