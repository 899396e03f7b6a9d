//! One seed in this process: for people who look into it, and for whoever runs many.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::options::Options;
use crate::report::{Outcome, Scene};
use crate::world::{BUGS, Bug};
use crate::{changing, log, returning, run};

/// Which seed, and how much of what it draws happens.
#[derive(Debug, Clone, Args)]
pub struct SeedArgs {
    /// The seed
    pub seed: u64,
    /// What is simulated
    #[arg(long, value_enum, default_value_t = Scene::Whole)]
    pub scene: Scene,
    /// The bug to plant: an environment that lies, to see that a check notices
    #[arg(long, value_parser = planted)]
    pub bug: Option<Bug>,
    /// The faults that happen, by their number; all without it
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    pub only: Option<Vec<usize>>,
    /// How many clients write, at most
    #[arg(long)]
    pub writers: Option<usize>,
    /// When clients stop to write, in milliseconds, at the latest
    #[arg(long, value_name = "MS")]
    pub until: Option<u64>,
    /// Where to leave all that happened
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

fn planted(name: &str) -> Result<Bug, String> {
    let known = BUGS.iter().find(|(known, _)| *known == name);
    known.map(|(_, bug)| *bug).ok_or_else(|| {
        let names: Vec<&str> = BUGS.iter().map(|(name, _)| *name).collect();
        format!("no such bug; there are {}", names.join(", "))
    })
}

impl SeedArgs {
    fn options(&self) -> Options {
        Options {
            only: self.only.clone(),
            writers: self.writers,
            until: self.until.map(Duration::from_millis),
            ..Options::new(self.seed, self.bug.unwrap_or(Bug::None))
        }
    }
}

/// Runs the scene.
pub fn play(scene: Scene, options: &Options) -> Outcome {
    match scene {
        Scene::Whole => run::run(options),
        Scene::Changes => changing::run(options),
        Scene::Returns => returning::run(options),
    }
}

/// Runs the seed, says what came of it, and leaves its trace.
pub fn main(args: &SeedArgs) -> ExitCode {
    log::start();
    let Outcome { report, trace } = play(args.scene, &args.options());
    if let Some(path) = &args.trace {
        std::fs::write(path, trace).unwrap();
    }
    if args.json {
        println!("{}", serde_json::to_string(&report).unwrap());
    } else {
        println!("{report}");
        for violation in &report.violations {
            println!("{violation}");
        }
    }
    ExitCode::from(u8::from(!report.violations.is_empty()))
}
