//! Processes of the real binary: started with an environment of their own, killed when the test ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::in_time;
use super::store::{ACCESS_KEY, HttpStore, SECRET_KEY};

/// How much of what a process said is shown when its test fails.
const LAST_LINES: usize = 30;

/// A command line of the binary under test, with nothing of this process's settings.
pub(crate) fn cartwheel(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cartwheel"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) async fn run(arguments: &[&str]) -> Output {
    let mut command = cartwheel(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    /// What it says.
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts it; what it says goes to `NAME.log` in `directory`.
    pub(crate) fn start(name: &str, directory: &Path, store: Option<&HttpStore>, arguments: &[&str]) -> Self {
        let log = directory.join(format!("{name}.log"));
        let mut command = cartwheel(arguments);
        command.stdout(Stdio::null());
        command.stderr(File::options().create(true).append(true).open(&log).unwrap());
        if let Some(store) = store {
            command
                .env("AWS_ENDPOINT_URL_S3", &store.endpoint)
                .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
                .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
                .env("AWS_REGION", "us-east-1");
        }
        Self { name: name.to_owned(), log, child: command.spawn().unwrap() }
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, without waiting.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// A signal by its name, as `kill` takes it.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Waits for its exit status.
    pub(crate) async fn ends_with(mut self, status: i32) {
        let name = self.name.clone();
        let ended = tokio::task::spawn_blocking(move || self.child.wait().unwrap());
        let ended = in_time(&format!("the end of {name}"), ended).await.unwrap();
        assert_eq!(ended.code(), Some(status), "{name}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            eprintln!("==== the last that {} said:\n{}", self.name, last.join("\n"));
        }
        // Not there any more is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
