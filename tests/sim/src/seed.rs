//! One seed in this process: for people who look into it, and for whoever runs many.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::options::{Level, Options};
use crate::report::{Outcome, Report, Scene};
use crate::world::{BUGS, Bug};
use crate::{changing, edges, log, removal, returning, run, steps, timeline, versions};

/// In what world a seed is run, and what is wrong with it on purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Setting {
    /// How the bucket is reached
    #[arg(long, value_enum, default_value_t = Level::Memory)]
    pub level: Level,
    /// The bug to plant: an environment that lies, to see that a check notices
    #[arg(long, value_parser = planted)]
    pub bug: Option<Bug>,
    /// The rule of the protocol to take out, to see that a check notices (built with `--features mutations`)
    #[arg(long, value_name = "RULE", value_parser = removal::known)]
    pub removed: Option<String>,
}

impl Setting {
    /// The same, as arguments.
    pub fn arguments(&self) -> Vec<String> {
        let level = self.level.to_possible_value().filter(|_| self.level != Level::default());
        let level = level.map(|level| ["--level".to_owned(), level.get_name().to_owned()]);
        let bug = self.bug.and_then(|bug| BUGS.iter().find(|(_, known)| *known == bug));
        let bug = bug.map(|(name, _)| ["--bug".to_owned(), (*name).to_owned()]);
        let removed = self.removed.clone().map(|rule| ["--removed".to_owned(), rule]);
        level.into_iter().chain(bug).chain(removed).flatten().collect()
    }
}

/// How much of what a seed draws happens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Less {
    /// The faults that happen, by their number; all without it, none if empty
    #[arg(long, value_name = "NUMBERS", value_parser = numbers)]
    pub only: Option<Numbers>,
    /// How many clients write, at most
    #[arg(long)]
    pub writers: Option<usize>,
    /// How many keys are written, at most
    #[arg(long)]
    pub keys: Option<u64>,
    /// When clients stop to write, in milliseconds, at the latest
    #[arg(long, value_name = "MS")]
    pub until: Option<u64>,
}

/// Numbers of faults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers(pub Vec<usize>);

impl Less {
    /// The same, as arguments.
    pub fn arguments(&self) -> Vec<String> {
        let only = self.only.as_ref().map(|Numbers(only)| {
            let only: Vec<String> = only.iter().map(ToString::to_string).collect();
            format!("--only={}", only.join(","))
        });
        let writers = self.writers.map(|n| format!("--writers={n}"));
        let keys = self.keys.map(|n| format!("--keys={n}"));
        let until = self.until.map(|ms| format!("--until={ms}"));
        [only, writers, keys, until].into_iter().flatten().collect()
    }
}

/// Which seed, and how much of what it draws happens.
#[derive(Debug, Clone, Args)]
pub struct SeedArgs {
    /// The seed
    pub seed: u64,
    /// What is simulated
    #[arg(long, value_enum, default_value_t = Scene::Whole)]
    pub scene: Scene,
    #[command(flatten)]
    setting: Setting,
    #[command(flatten)]
    less: Less,
    /// Where to leave all that happened
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The report.
    #[serde(flatten)]
    pub report: Report,
    /// The faults that could be left out, by their number.
    pub numbers: Vec<usize>,
    /// What led to the first violation; empty if there is none.
    pub timeline: Vec<String>,
}

fn planted(name: &str) -> Result<Bug, String> {
    let known = BUGS.iter().find(|(known, _)| *known == name);
    known.map(|(_, bug)| *bug).ok_or_else(|| {
        let names: Vec<&str> = BUGS.iter().map(|(name, _)| *name).collect();
        format!("no such bug; there are {}", names.join(", "))
    })
}

fn numbers(list: &str) -> Result<Numbers, String> {
    let numbers = list.split(',').filter(|number| !number.is_empty()).map(str::parse);
    numbers.collect::<Result<_, _>>().map(Numbers).map_err(|error| format!("numbers with commas: {error}"))
}

impl SeedArgs {
    fn options(&self) -> Options {
        let Less { only, writers, keys, until } = self.less.clone();
        Options {
            only: only.map(|Numbers(only)| only),
            level: self.setting.level,
            writers,
            keys,
            until: until.map(Duration::from_millis),
            ..Options::new(self.seed, self.setting.bug.unwrap_or(Bug::None))
        }
    }
}

/// Runs the scene.
fn play(scene: Scene, options: &Options) -> Outcome {
    match scene {
        Scene::Whole => run::run(options),
        Scene::Changes => changing::run(options),
        Scene::Returns => returning::run(options),
        Scene::Edges => edges::run(options),
    }
}

/// Runs the seed, says what came of it, and leaves its trace.
pub fn main(args: &SeedArgs) -> ExitCode {
    log::start();
    if let Some(rule) = &args.setting.removed {
        removal::remove(rule);
    }
    let options = args.options();
    steps::begin(args.seed);
    versions::trace_calls();
    let Outcome { report, trace } = play(args.scene, &options);
    let first = report.violations.first();
    let timeline = first.map_or_else(Vec::new, |violation| timeline::of(&trace, violation));
    if let Some(path) = &args.trace {
        std::fs::write(path, trace).unwrap();
    }
    let fine = report.violations.is_empty();
    if args.json {
        let said = Said { report, numbers: options.asked(), timeline };
        println!("{}", serde_json::to_string(&said).unwrap());
    } else {
        println!("{report}");
        for violation in &report.violations {
            println!("{violation}");
        }
        for line in timeline {
            println!("  {line}");
        }
    }
    ExitCode::from(u8::from(!fine))
}
