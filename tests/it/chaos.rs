//! `cartwheel chaos`: real processes under carts and faults keep their promises, and none is left behind.

use std::path::Path;

use serde_json::Value;

use crate::support::process::{Process, run};
use crate::support::until;

/// The processes of this machine that were started for a cluster in `directory`.
fn left_behind(directory: &Path) -> Vec<String> {
    let wanted = directory.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(wanted))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_pauses_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("chaos");
    let place = ["--data-dir", data.to_str().unwrap(), "-o", "json"];
    let what = ["chaos", "--duration", "15s", "--seed", "3", "--faults", "kill,pause", "--clients", "4"];
    let output = run(&[&what[..], &place].concat()).await;
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!((output.status.code(), &report["verdict"]), (Some(0), &"PASS".into()), "{report}\n{said}");
    for none in ["losses", "resurrected", "needless_siblings", "untrue_answers", "crashes", "panics"] {
        assert_eq!(report[none], 0, "{none}: {report}\n{said}");
    }
    assert!(report["acknowledged_writes"].as_u64().unwrap() > 50, "{report}");
    let faults = report["faults"].as_object().unwrap();
    assert!(!faults.is_empty() && faults.keys().all(|kind| kind == "kills" || kind == "pauses"), "{report}");
    assert_eq!(left_behind(&data), Vec::<String>::new());
}

/// A node joins, one leaves, one is replaced, one gets another share, one dies and is forgotten, under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ring_changes_and_nobody_notices() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("chaos");
    let place = ["--data-dir", data.to_str().unwrap(), "-o", "json"];
    let what = ["chaos", "--changes", "--size", "2MB", "--seed", "3", "--clients", "4", "--rate", "100"];
    let output = run(&[&what[..], &place].concat()).await;
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!((output.status.code(), &report["verdict"]), (Some(0), &"PASS".into()), "{report}\n{said}");
    let changes = report["changes"]["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 5, "{report}");
    for change in changes {
        assert_eq!(change["broken"], serde_json::json!([]), "{change}");
        // Replacing a machine is no change of the ring: what it held lies in its own objects.
        let moves = change["slots_moved"].as_u64();
        let borrowed = change["borrowed_bytes"].as_u64().unwrap();
        assert_eq!(moves.is_some(), borrowed > 0, "{change}");
        assert!(moves.is_none_or(|moved| moved >= change["slots_least"].as_u64().unwrap()), "{change}");
        assert!(change["operations"].as_u64().unwrap() > 10, "{change}");
    }
    assert_eq!(report["changes"]["wrong_in_the_end"], 0);
    assert_eq!(left_behind(&data), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_told_to_end_leaves_no_process_behind() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("chaos");
    let place = ["--data-dir", data.to_str().unwrap()];
    let what =
        ["chaos", "--duration", "1h", "--nodes", "3", "--gateways", "1", "--clients", "1", "--seed", "1"];
    let process = Process::start("chaos", directory.path(), None, &[&what[..], &place].concat());
    let log = directory.path().join("chaos.log");
    let log = &log;
    until("the load begins", || async move {
        std::fs::read_to_string(log).unwrap().contains("the load begins").then_some(())
    })
    .await;
    // The command itself, an S3 server and three nodes name the directory; the gateway keeps nothing.
    assert_eq!(left_behind(&data).len(), 5);
    process.terminate();
    process.ends_with(1).await;
    assert_eq!(left_behind(&data), Vec::<String>::new());
    assert!(std::fs::read_to_string(log).unwrap().contains("ended by SIGTERM"));
}
