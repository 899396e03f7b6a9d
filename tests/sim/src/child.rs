//! One seed in a process of its own: what ends it, however it ends, is a report.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::report::{Check, Report, Scene, Violation};
use crate::seed::{Less, Said, Setting};

/// How long a seed may take; those of today take seconds.
const LONGEST: Duration = Duration::from_secs(300);
/// How much of what a process says before it breaks off is kept, in bytes.
const LAST_WORDS: usize = 600;

/// A seed, and how it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What is simulated.
    pub scene: Scene,
    /// From which seed.
    pub seed: u64,
    /// In what world, and what is wrong on purpose.
    pub setting: Setting,
    /// How much of it happens.
    pub less: Less,
}

impl Spec {
    /// All that the seed draws.
    pub fn new(scene: Scene, seed: u64, setting: &Setting) -> Self {
        Self { scene, seed, setting: setting.clone(), less: Less::default() }
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["seed".to_owned(), self.seed.to_string()];
        arguments.extend(["--scene".to_owned(), self.scene.to_string()]);
        arguments.extend(self.setting.arguments());
        arguments.extend(self.less.arguments());
        arguments
    }

    /// What people type to run it again.
    pub fn replay(&self) -> String {
        let cargo = match self.setting.removed {
            Some(_) => "cargo run --profile sim -p cartwheel-sim --features mutations --",
            None => "cargo sim",
        };
        format!("{cargo} {}", self.arguments().join(" "))
    }

    /// Runs it; dropped before it ends, the process is killed.
    pub async fn run(&self) -> Said {
        let mut command = Command::new(this_program());
        command.args(self.arguments()).arg("--json").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // Who stops this program at a terminal does not stop the seeds apart from it.
        command.process_group(0);
        let output = match command.spawn() {
            Ok(child) => tokio::time::timeout(LONGEST, child.wait_with_output()).await,
            Err(error) => return self.broke(format!("it can't be run: {error}")),
        };
        match output {
            Ok(Ok(output)) => match serde_json::from_slice::<Said>(&output.stdout) {
                Ok(said) => said,
                Err(_) => {
                    let last = last_words(&output.stderr);
                    self.broke(format!("the process broke off ({}): {last}", output.status))
                }
            },
            Ok(Err(error)) => self.broke(format!("it can't be heard: {error}")),
            Err(_) => self.broke(format!("no end within {} s", LONGEST.as_secs())),
        }
    }

    fn broke(&self, what: String) -> Said {
        let Self { scene, seed, .. } = *self;
        let violations = vec![Violation { check: Check::Broke, what }];
        let (counts, faults, simulated) = (BTreeMap::new(), BTreeMap::new(), Duration::ZERO);
        let report = Report { scene, seed, simulated, counts, faults, violations };
        Said { report, numbers: Vec::new(), timeline: Vec::new() }
    }
}

/// This program: the very file that runs, also when another has been built in its place since.
fn this_program() -> PathBuf {
    let this = PathBuf::from("/proc/self/exe");
    if this.exists() { this } else { std::env::current_exe().unwrap() }
}

fn last_words(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let from = said.len().saturating_sub(LAST_WORDS);
    let from = (from..said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(said.len());
    said[from..].trim().replace('\n', " | ")
}

/// The processor time of this process and of all that it has waited for, in seconds, where the system tells it.
pub fn processor_seconds() -> Option<f64> {
    /// The unit of these figures is the same on every Linux.
    const PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may hold anything; after it come the fields from the third on.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let times: Vec<u32> = fields.get(11..15)?.iter().filter_map(|field| field.parse().ok()).collect();
    (times.len() == 4).then(|| times.into_iter().map(f64::from).sum::<f64>() / PER_SECOND)
}

/// A runtime for a program that waits for others.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Numbers;
    use crate::world::Bug;

    #[test]
    fn what_people_type_says_all_of_it() {
        let mut spec = Spec::new(Scene::Changes, 7, &Setting::default());
        assert_eq!(spec.replay(), "cargo sim seed 7 --scene changes");
        spec.setting.bug = Some(Bug::LyingDisk);
        spec.less.only = Some(Numbers(vec![3, 14]));
        spec.less.writers = Some(1);
        assert_eq!(
            spec.replay(),
            "cargo sim seed 7 --scene changes --bug lying-disk --only=3,14 --writers=1"
        );
        spec.setting.removed = Some("some-rule".to_owned());
        assert!(
            spec.replay()
                .starts_with("cargo run --profile sim -p cartwheel-sim --features mutations -- seed 7")
        );
    }

    #[test]
    fn last_words_are_the_last() {
        let long = format!("{}é the end\n", "x".repeat(2 * LAST_WORDS));
        assert!(last_words(long.as_bytes()).ends_with("é the end"));
        assert!(last_words(long.as_bytes()).len() <= LAST_WORDS);
        assert_eq!(last_words(b"one\ntwo\n"), "one | two");
    }
}
