//! How much of the bucket the same keys take that are overwritten and deleted, and whether they read right then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use cartwheel::client::{Failure, Output};
use cartwheel::units::{format_duration, human_size};
use cartwheel_bucket::Listed;

use crate::cluster::{Cluster, by_kind, known_options, objects, replicas, total};
use crate::data::{VALUE_BYTES, key};
use crate::load::{Expected, Read, Target, check, overwrite};
use crate::report::{Report, short};
use crate::{Common, SpaceArgs};

const NAMESPACE: &str = "space";
/// Keys and rounds of a quick run.
const QUICK_KEYS: u64 = 2_000;
const QUICK_ROUNDS: u64 = 10;
/// How often the bucket is looked at for the most that it held.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Measures it.
///
/// # Errors
/// If the cluster can't be run, or a key does not read as it was left.
pub(crate) async fn run(args: &SpaceArgs, common: &Common, output: &mut Output) -> Result<(), Failure> {
    let (mut keys, mut rounds) = (args.keys, args.rounds);
    if common.quick {
        (keys, rounds) = (keys.min(QUICK_KEYS), rounds.min(QUICK_ROUNDS));
    }
    let wanted = vec![
        ("--delete-after", format_duration(args.delete_after)),
        ("--reap-after", format_duration(args.reap_after)),
    ];
    let known = known_options(wanted)?;
    let mut setup = common.setup(known.clone())?;
    if common.quiet_for.is_none() && !known.is_empty() {
        // Nothing happens either while dropped objects and reaped tombstones wait for their time.
        setup.quiet_for += args.delete_after + args.reap_after;
    }
    let settings = json!({
        "nodes": common.nodes, "value_size": VALUE_BYTES, "keys": keys, "rounds": rounds,
        "node_options": common.options_json(&setup), "quiet_for": format_duration(setup.quiet_for),
    });
    let mut report = Report::begin("space", settings);
    let mut cluster = Cluster::start(&setup).await?;
    let target = Target { client: cluster.client.clone(), namespace: NAMESPACE, query: "" };

    let most = Arc::new(AtomicU64::new(0));
    let (seen, bucket) = (Arc::clone(&most), cluster.bucket.clone());
    let watch = async move {
        loop {
            if let Ok(objects) = objects(&bucket).await {
                seen.fetch_max(total(&objects), Ordering::Relaxed);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let work = async {
        let loaded = overwrite(&target, 0..keys, rounds).await?;
        output.note(&format!(
            "{} writes and deletes, {:.0}/s, {} sent again",
            loaded.writes,
            loaded.per_second(),
            loaded.again
        ));
        let settled = cluster.quiet().await?;
        output.note(&settled.words());
        Ok::<_, Failure>((loaded, settled))
    };
    let (loaded, settled) = tokio::select! {
        done = work => done?,
        () = watch => return Err(Failure::failed("the bucket is looked at no more")),
    };
    let objects = cluster.objects().await?;
    let before = check(&target, 0..keys, expected, rounds).await?;
    output.note(&format!("{} keys read rightly", before.right));
    for node in &mut cluster.nodes {
        node.service.kill();
    }
    for node in &mut cluster.nodes {
        node.service.start()?;
    }
    cluster.until_whole().await?;
    output.note("all nodes were killed and serve again");
    let after = check(&target, 0..keys, expected, rounds).await?;
    output.note(&format!("{} keys read rightly", after.right));
    let restarted = cluster.quiet().await?;
    let objects_after = cluster.objects().await?;

    let copies = u64::from(replicas(common.nodes));
    let live = keys.div_ceil(2) * (VALUE_BYTES + key(0).len() as u64);
    report.say(&format!(
        "{keys} keys of {VALUE_BYTES} bytes, each written {rounds} times, then every other one deleted: {} writes, \
         {:.0} per second, of which {} had to be sent again. {}. {} of live keys and values; {copies} copies.",
        loaded.writes,
        loaded.per_second(),
        loaded.again,
        options_words(&setup.node_options),
        human_size(live)
    ));
    let row = |when: &str, bytes: u64, note: String| {
        let each = bytes / copies;
        vec![when.to_owned(), human_size(bytes), human_size(each), short(each as f64 / live as f64), note]
    };
    let most = most.load(Ordering::Relaxed);
    report.table(
        &["when", "bucket", "per replica", "per replica / live", "remark"],
        &[
            row("the most", most, String::new()),
            row("at rest", total(&objects), settled.words()),
            row("after a restart", total(&objects_after), restarted.words()),
        ],
    );
    tell_kinds(&mut report, &objects);
    tell_checks(&mut report, &[("before the restart", &before), ("after it", &after)]);
    report.set(
        "space",
        json!({
            "live_bytes": live, "copies": copies, "most": most, "at_rest": total(&objects),
            "after_restart": total(&objects_after), "unrest": settled.unrest,
            "settled_after_s": settled.took.as_secs_f64(), "by_kind": by_kind(&objects),
        }),
    );
    report.end(output)
}

/// Odd keys are deleted.
fn expected(number: u64, rounds: u64) -> Expected {
    if number % 2 == 1 { Expected::Nothing } else { Expected::Value(rounds) }
}

fn options_words(options: &[(&'static str, String)]) -> String {
    if options.is_empty() {
        return "Storage nodes with their defaults".to_owned();
    }
    let words: Vec<String> = options.iter().map(|(option, value)| format!("`{option} {value}`")).collect();
    format!("Storage nodes with {}", words.join(", "))
}

fn tell_kinds(report: &mut Report, objects: &[Listed]) {
    let count =
        |kind: &str| objects.iter().filter(|object| object.key.split('/').nth(2) == Some(kind)).count();
    let kinds = by_kind(objects);
    let rows: Vec<Vec<String>> = kinds
        .iter()
        .map(|(kind, bytes)| vec![format!("`nodes/*/{kind}`"), count(kind).to_string(), human_size(*bytes)])
        .collect();
    report.table(&["at rest, all nodes", "objects", "bytes"], &rows);
}

fn tell_checks(report: &mut Report, checks: &[(&str, &Read)]) {
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|(when, read)| {
            let mut row = vec![(*when).to_owned()];
            row.extend([read.right, read.wrong, read.failed].map(|count| count.to_string()));
            row
        })
        .collect();
    report.table(&["every key read", "right", "wrong", "failed"], &rows);
    for (when, read) in checks {
        if read.wrong + read.failed > 0 {
            report.wrong(format!("{when}: {}", read.told.join("; ")));
        }
    }
    let checks = checks.iter().map(|(when, read)| {
        json!({"when": when, "right": read.right, "wrong": read.wrong, "failed": read.failed, "told": read.told})
    });
    report.set("checks", checks.collect());
}
