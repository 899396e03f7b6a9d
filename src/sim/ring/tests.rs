//! The command as people call it: limits, agreement of text and JSON, repeatable bytes.
#![allow(clippy::unwrap_used, clippy::panic)]

use clap::Parser;
use serde_json::Value;

use super::*;
use crate::cli::{self, Cli};
use crate::sim::svg::tests::assert_well_formed;

fn args(words: &str) -> Result<RingArgs, clap::Error> {
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RingArgs,
    }
    Line::try_parse_from(std::iter::once("ring").chain(words.split_whitespace())).map(|line| line.args)
}

/// Runs `cartwheel sim ring` and gives its exit status, standard output and standard error.
fn ran(words: &str) -> (Exit, String, String) {
    let line = ["cartwheel", "sim", "ring"].into_iter().chain(words.split_whitespace());
    let mut output = Output::memory();
    let exit = cli::run(Cli::try_parse_from(line).unwrap(), &mut output);
    let Output::Memory { out, err } = output else { panic!("not in memory") };
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn fields_outside_their_limits_are_named() {
    for (words, field, limit) in [
        ("--nodes 1", "--nodes", "2..1024"),
        ("--nodes 1024", "--nodes", "2..1024"),
        ("--weights 1,0", "--weights", "1..=1000"),
        ("--weights 1001", "--weights", "1..=1000"),
        ("--zones 0", "--zones", "1"),
        ("--partitions 100", "--partitions", "power of two from 1 to 65536"),
        ("--partitions 131072", "--partitions", "power of two from 1 to 65536"),
        ("--tokens 0", "--tokens", "1..=1024"),
        ("--tokens 1025", "--tokens", "1..=1024"),
        ("--replicas 8", "--replicas", "1..=7"),
        ("--seeds 0", "--seeds", "1..=1000"),
        ("--seeds 1001", "--seeds", "1..=1000"),
        ("--keys 0", "--keys", "1..=10000000"),
        ("--sweep --tokens 3", "--tokens", "cannot be used with"),
    ] {
        let error = args(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{words}");
        let said = error.to_string();
        assert!(said.contains(field) && said.contains(limit), "{words}: {said}");
    }
}

#[test]
fn fields_that_do_not_fit_together_are_named() {
    for (words, said) in [
        ("--nodes 3", "--nodes is 3; it must be more than --replicas, which is 3"),
        ("--nodes 4 --zones 5", "--zones is 5; 4 nodes with 1 weights in turn fill at most 4"),
        ("--partitions 16", "--partitions is 16; it must be more than --nodes, which is 30"),
        (
            "--weights 1000 --tokens 1024",
            "tokens times the sum of weights is 31744000; it must be at most 1048576",
        ),
        ("--nodes 1000 --partitions 8192", "partitions times members is 8200192; it must be at most 4194304"),
    ] {
        let (exit, out, err) = ran(words);
        assert_eq!((exit, out.as_str()), (Exit::Usage, ""), "{words}");
        assert!(err.contains(said), "{words}: {err}");
    }
}

#[test]
fn weights_and_zones_go_around_apart() {
    let (cluster, newcomer) = cluster(&args("--nodes 9 --weights 1,1,2 --zones 3").unwrap()).unwrap();
    assert_eq!(cluster.nodes.iter().map(|n| n.weight).collect::<Vec<_>>(), [1, 1, 2, 1, 1, 2, 1, 1, 2]);
    assert_eq!(cluster.nodes.iter().map(|n| n.zone).collect::<Vec<_>>(), [0, 1, 2, 1, 2, 0, 2, 0, 1]);
    assert_eq!(newcomer, Node { number: 9, weight: 1, zone: 0 });
}

#[test]
fn text_and_json_say_the_same_every_time() {
    let words = "--nodes 8 --partitions 32 --tokens 8 --seeds 2";
    let (exit, text, _) = ran(words);
    assert_eq!(exit, Exit::Done);
    assert_eq!(ran(words).1, text);
    let (_, json, _) = ran(&format!("{words} -o json"));
    let json: Value = serde_json::from_str(&json).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let line = text.lines().find(|line| line.starts_with(row["strategy"].as_str().unwrap())).unwrap();
        let median = format!("{:.3}", row["efficiency"]["median"].as_f64().unwrap());
        assert!(line.contains(&median), "{line} {row}");
        assert!(line.contains(&row["bytes"]["kept"].to_string()), "{line} {row}");
    }
    let keys = ran(&format!("{words} --keys 1000")).1;
    assert_ne!(keys, text);
    assert!(keys.contains("loads by 1000 keys"));
}

#[test]
fn a_sweep_has_a_row_for_each_point_within_the_limits() {
    let (cluster, _) = cluster(&args("--nodes 200 --weights 1000,1000,500 --tokens 1").unwrap()).unwrap();
    let points = swept(&cluster);
    let of = |name: &str| points.iter().filter(|(strategy, _)| strategy.name().starts_with(name)).count();
    // 168,000 in weights leave room for three powers of two; 200 nodes leave out Q = 32, 64, 128 of strategy 3.
    assert_eq!((of("1"), of("2"), of("3"), of("Cartwheel")), (3, 3, 6, 9));
    for (strategy, cluster) in &points {
        let tokens = cluster.weight() * u64::from(cluster.tokens);
        assert!(tokens <= MAX_TOTAL_TOKENS && cluster.partitions <= MAX_PARTITIONS, "{}", strategy.name());
    }
}

#[test]
fn pictures_are_well_formed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ring.svg");
    let words = format!("--nodes 5 --partitions 16 --tokens 4 --seeds 1 --svg {}", file.display());
    assert_eq!(ran(&words).0, Exit::Done);
    let svg = std::fs::read_to_string(&file).unwrap();
    assert_well_formed(&svg);
    assert!(svg.contains("a node leaves") && svg.contains("Cartwheel"));
    let rows = |t: u32, efficiency: f64| {
        let parsed = args("--nodes 5 --partitions 16 --seeds 1").unwrap();
        let (mut cluster, newcomer) = cluster(&parsed).unwrap();
        cluster.tokens = t;
        Row { efficiency, ..measure(STRATEGIES[0], &cluster, newcomer, 1, None).unwrap() }
    };
    let svg = report::efficiency_picture(&args("--sweep").unwrap(), &[rows(1, 0.5), rows(2, 0.75)]);
    assert_well_formed(&svg);
    assert_eq!(svg.matches("<polyline").count(), 1);
}

#[test]
fn a_picture_that_can_not_be_written_is_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("none/ring.svg");
    let words = format!("--nodes 5 --partitions 16 --tokens 4 --seeds 1 -o json --svg {}", file.display());
    let (exit, out, err) = ran(&words);
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("--svg"), "{err}");
    // One document, and it says so.
    let said: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(said["error"]["exit"], 1);
}
