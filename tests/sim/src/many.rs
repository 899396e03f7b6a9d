//! Many seeds, each in a process of its own, some of them at a time: what happened in all of them together, and for
//! each that broke a promise, how and how to see it again.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use cartwheel_cluster::seams::{OsSeeded, Random};
use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::time::Instant;

use crate::child::{Spec, processor_seconds, runtime};
use crate::report::{Scene, Violation};
use crate::seed::Setting;
use crate::tally::Tally;

/// Of every ten seeds four are of the whole, and two each of changes of the ring, returns and edges, in this order.
const MIX: [Scene; 10] = [
    Scene::Whole,
    Scene::Changes,
    Scene::Returns,
    Scene::Whole,
    Scene::Edges,
    Scene::Whole,
    Scene::Returns,
    Scene::Changes,
    Scene::Whole,
    Scene::Edges,
];
/// How often the progress is told.
const PROGRESS: Duration = Duration::from_secs(10);
/// How many violations of one seed are shown.
const SHOWN: usize = 4;
/// Below which number a fresh start is drawn: people read and type it.
const FRESH: u64 = 1_000_000_000;

/// How to print what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A table for people.
    Text,
    /// JSON.
    Json,
}

/// How many seeds of what.
#[derive(Debug, Clone, Args)]
pub struct ManyArgs {
    /// How many seeds; until the time is over without it
    #[arg(long)]
    pub seeds: Option<u64>,
    /// For how many minutes seeds are begun; until all were run without it
    #[arg(long)]
    pub minutes: Option<f64>,
    /// The first seed of each scene
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Begin at a seed that nobody chose, and say which
    #[arg(long, conflicts_with = "from")]
    fresh: bool,
    /// What is simulated; may be given several times. Without it of every ten seeds four are whole, two changes, two
    /// returns and two edges
    #[arg(long, value_enum)]
    scene: Vec<Scene>,
    /// How many seeds run at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=512))]
    jobs: u16,
    #[command(flatten)]
    setting: Setting,
    /// How to print what came of it
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// The seeds of these scenes, in turn, without an end: each scene counts from `from`.
pub fn mix(scenes: &[Scene], from: u64) -> impl Iterator<Item = (Scene, u64)> {
    let cycle: Vec<Scene> =
        MIX.into_iter().filter(|scene| scenes.is_empty() || scenes.contains(scene)).collect();
    let mut next = std::collections::BTreeMap::new();
    cycle.into_iter().cycle().map(move |scene| {
        let next = next.entry(scene).or_insert(from);
        let seed = *next;
        *next = next.wrapping_add(1);
        (scene, seed)
    })
}

/// A seed that broke a promise.
#[derive(Debug, Serialize)]
struct Failure {
    replay: String,
    violations: Vec<Violation>,
    timeline: Vec<String>,
}

/// What came of all.
#[derive(Debug, Serialize)]
struct Sum {
    from: u64,
    #[serde(flatten)]
    tally: Tally,
    wall_seconds: f64,
    /// `None` where the system does not tell.
    cpu_seconds: Option<f64>,
    interrupted: bool,
    failures: Vec<Failure>,
}

/// Runs them and says what came of it; exit status 1 if a promise was broken.
pub fn main(args: &ManyArgs) -> ExitCode {
    if args.seeds.is_none() && args.minutes.is_none() {
        eprintln!("say how many: --seeds N, --minutes M or both (`--help` tells what else there is)");
        return ExitCode::from(2);
    }
    let from = if args.fresh { OsSeeded.next_u64() % FRESH } else { args.from };
    if args.fresh {
        eprintln!("fresh seeds from {from}: --from {from} runs them again");
    }
    let sum = runtime().block_on(run(args, from));
    match args.output {
        Form::Text => println!("{}", text(&sum)),
        Form::Json => println!("{}", serde_json::to_string_pretty(&sum).unwrap()),
    }
    match (sum.failures.is_empty(), sum.interrupted) {
        (false, _) => ExitCode::from(1),
        (true, true) => ExitCode::from(130),
        (true, false) => ExitCode::SUCCESS,
    }
}

/// Ends when somebody wants this process to end.
pub async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn run(args: &ManyArgs, from: u64) -> Sum {
    let began = Instant::now();
    let last = args.minutes.map(|minutes| began + Duration::from_secs_f64(minutes.max(0.0) * 60.0));
    let count = args.seeds.map_or(usize::MAX, |seeds| usize::try_from(seeds).unwrap_or(usize::MAX));
    let specs = mix(&args.scene, from).take(count);
    let in_time = move |_: &(Scene, u64)| last.is_none_or(|last| Instant::now() < last);
    let running = specs.take_while(in_time).map(|(scene, seed)| async move {
        let spec = Spec::new(scene, seed, &args.setting);
        let said = spec.run().await;
        (spec, said)
    });
    let mut running = futures_util::stream::iter(running).buffer_unordered(args.jobs.into());
    let mut progress = tokio::time::interval_at(began + PROGRESS, PROGRESS);
    let end = told_to_end();
    tokio::pin!(end);
    let mut sum = Sum {
        from,
        tally: Tally::default(),
        wall_seconds: 0.0,
        cpu_seconds: None,
        interrupted: false,
        failures: Vec::new(),
    };
    loop {
        let (spec, said) = tokio::select! {
            biased;
            () = &mut end => {
                sum.interrupted = true;
                break;
            }
            _ = progress.tick() => {
                let (seconds, broken) = (began.elapsed().as_secs(), sum.failures.len());
                eprintln!("{seconds:>6} s: {} seeds, {broken} of them broke promises", sum.tally.seeds());
                continue;
            }
            done = running.next() => match done {
                Some(done) => done,
                None => break,
            },
        };
        sum.tally.add(&said.report);
        if !said.report.violations.is_empty() {
            eprintln!("{}: {}", spec.replay(), said.report.violations[0]);
            let (replay, violations, timeline) = (spec.replay(), said.report.violations, said.timeline);
            sum.failures.push(Failure { replay, violations, timeline });
        }
    }
    drop(running);
    sum.wall_seconds = began.elapsed().as_secs_f64();
    sum.cpu_seconds = processor_seconds();
    sum
}

fn text(sum: &Sum) -> String {
    let mut out = String::new();
    for Failure { replay, violations, timeline } in &sum.failures {
        let _ = writeln!(out, "{replay}");
        for violation in violations.iter().take(SHOWN) {
            let _ = writeln!(out, "  {violation}");
        }
        if violations.len() > SHOWN {
            let _ = writeln!(out, "  and {} more", violations.len() - SHOWN);
        }
        for line in timeline {
            let _ = writeln!(out, "    {line}");
        }
        let _ = writeln!(out);
    }
    let _ = write!(out, "{}", sum.tally);
    let cpu = sum.cpu_seconds.map_or_else(|| "unknown".to_owned(), |seconds| format!("{seconds:.0} s"));
    let _ = writeln!(out, "processor time {cpu}, wall time {:.0} s", sum.wall_seconds);
    let cut_short = if sum.interrupted { " (ended before its end)" } else { "" };
    let (seeds, broken) = (sum.tally.seeds(), sum.failures.len());
    let _ = write!(out, "{seeds} seeds from {}, {broken} of them broke promises{cut_short}", sum.from);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_ten_seeds_four_are_whole_and_two_each_of_the_others() {
        let ten: Vec<(Scene, u64)> = mix(&[], 8).take(20).collect();
        let of = |scene| ten.iter().filter(|(s, _)| *s == scene).map(|(_, seed)| *seed).collect::<Vec<_>>();
        assert_eq!(of(Scene::Whole), (8..16).collect::<Vec<_>>());
        assert_eq!(of(Scene::Returns), (8..12).collect::<Vec<_>>());
        assert_eq!(of(Scene::Changes), (8..12).collect::<Vec<_>>());
        assert_eq!(of(Scene::Edges), (8..12).collect::<Vec<_>>());
    }

    #[test]
    fn a_scene_alone_counts_on() {
        let three: Vec<(Scene, u64)> = mix(&[Scene::Changes], 1).take(3).collect();
        assert_eq!(three, [(Scene::Changes, 1), (Scene::Changes, 2), (Scene::Changes, 3)]);
    }
}
