//! `cartwheel chaos`: real processes under carts and faults keep their promises, and none is left behind.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::process::{Process, run};
use crate::support::until;

/// A seed whose first seconds hold many kinds of faults, and which.
const SEED_OF_CUTS: &str = "649";
const FAULTS_OF_CUTS: [&str; 4] = ["S3 storms", "one-way cuts", "slow links", "splits"];

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

/// The network namespaces that runs of `cartwheel chaos` have on this machine; nothing where there is no telling.
fn namespaces() -> Option<Vec<String>> {
    let listed = Command::new("ip").args(["netns", "list"]).output().ok().filter(|o| o.status.success())?;
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    Some(names.filter(|name| name.starts_with("cartwheel-chaos-")).map(str::to_owned).collect())
}

/// Can this process make network namespaces? If not, says in a line of its own what was not tested.
fn can_make_namespaces(untested: &str) -> bool {
    let name = format!("cartwheel-test-{}", std::process::id());
    let made = |what: &str| {
        let ended = Command::new("ip").args(["netns", what, &name]).output();
        ended.is_ok_and(|output| output.status.success())
    };
    let can = made("add") && made("del");
    if !can {
        // Straight to the stream: the test harness would swallow a print.
        let skipped = format!("SKIPPED: no network namespaces can be made: {untested}\n");
        std::io::stderr().write_all(skipped.as_bytes()).unwrap();
    }
    can
}

/// A run with these options that keeps all of its promises; gives its report.
async fn keeps_its_promises(options: &[&str]) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("chaos");
    let place = ["--data-dir", data.to_str().unwrap(), "-o", "json", "--clients", "4"];
    let output = run(&[&["chaos"][..], options, &place].concat()).await;
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!((output.status.code(), &report["verdict"]), (Some(0), &"PASS".into()), "{report}\n{said}");
    for none in [
        "losses",
        "resurrected",
        "needless_siblings",
        "untrue_answers",
        "crashes",
        "panics",
        "processes_ended",
    ] {
        assert_eq!(report[none], 0, "{none}: {report}\n{said}");
    }
    assert_eq!(report["not_at_rest"], serde_json::json!([]), "{report}\n{said}");
    assert!(report["acknowledged_writes"].as_u64().unwrap() > 50, "{report}");
    assert_eq!(left_behind(&data), Vec::<String>::new());
    report
}

fn faults(report: &Value) -> Vec<&str> {
    report["faults"].as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_pauses_lose_nothing() {
    let report = keeps_its_promises(&["--duration", "15s", "--seed", "3", "--faults", "kill,pause"]).await;
    assert_eq!(report["network"], "loopback");
    let faults = faults(&report);
    assert!(!faults.is_empty() && faults.iter().all(|kind| ["kills", "pauses"].contains(kind)), "{report}");
}

/// Packets disappear on their way between processes, and object storage answers what it likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_links_lose_nothing() {
    if !can_make_namespaces("cuts of single links") {
        return;
    }
    let what = ["--network", "namespaces", "--faults", "cut,split,slow,s3"];
    let report =
        keeps_its_promises(&[&what[..], &["--duration", "14s", "--seed", SEED_OF_CUTS]].concat()).await;
    assert!(report["network"].as_str().unwrap().starts_with("namespaces"), "{report}");
    assert_eq!(faults(&report), FAULTS_OF_CUTS, "{report}");
    let mine = format!("-{}-", report["network"].as_str().unwrap().split('-').nth(2).unwrap());
    assert!(!namespaces().unwrap().iter().any(|name| name.contains(&mine)), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_cut_by_proxies_lose_nothing() {
    let what = ["--network", "proxy", "--faults", "cut,split,slow,s3"];
    let report =
        keeps_its_promises(&[&what[..], &["--duration", "14s", "--seed", SEED_OF_CUTS]].concat()).await;
    assert!(report["network"].as_str().unwrap().starts_with("proxies"), "{report}");
    assert_eq!(faults(&report), FAULTS_OF_CUTS, "{report}");
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

/// Starts a run that would take an hour, tells it to end once it is at work, and sees that nothing is left of it.
async fn ends_when_it_is_told(network: &str, processes: usize) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("chaos");
    let place = ["--data-dir", data.to_str().unwrap(), "--network", network];
    let what =
        ["chaos", "--duration", "1h", "--nodes", "3", "--gateways", "1", "--clients", "1", "--seed", "1"];
    let process = Process::start("chaos", directory.path(), None, &[&what[..], &place].concat());
    let log = directory.path().join("chaos.log");
    let log = &log;
    until("the load begins", || async move {
        std::fs::read_to_string(log).unwrap().contains("the load begins").then_some(())
    })
    .await;
    // The gateway keeps nothing.
    assert_eq!(left_behind(&data).len(), processes);
    process.terminate();
    process.ends_with(1).await;
    assert_eq!(left_behind(&data), Vec::<String>::new());
    assert!(std::fs::read_to_string(log).unwrap().contains("ended by SIGTERM"));
}

/// The command itself, an S3 server, the proxy before it and three nodes name the directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_told_to_end_leaves_no_process_behind() {
    ends_when_it_is_told("proxy", 6).await;
}

/// There the command runs twice: outside of the namespaces, and inside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_told_to_end_leaves_no_namespace_behind() {
    if can_make_namespaces("that none is left behind") {
        ends_when_it_is_told("namespaces", 7).await;
        let alive = |name: &&String| {
            let pid = name.split('-').nth(2).unwrap();
            std::path::Path::new("/proc").join(pid).exists()
        };
        let left: Vec<_> = namespaces().unwrap();
        assert_eq!(left.iter().filter(|name| !alive(name)).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}
