//! Processes of the release binary: started, killed, looked at. None outlives its [`Service`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cartwheel::client::Failure;

/// The binary that is measured.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_cartwheel");

/// One process, whether it runs or not.
#[derive(Debug)]
pub(crate) struct Service {
    /// Its name in notes, and of its log.
    pub(crate) name: String,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    directory: PathBuf,
    child: Option<Child>,
}

impl Service {
    /// A process that is not running yet. What it says goes to `NAME.log` and `NAME.out` in `directory`.
    pub(crate) fn new(
        name: &str,
        directory: &Path,
        arguments: Vec<String>,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        Self { name: name.to_owned(), arguments, environment, directory: directory.to_owned(), child: None }
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.directory.join(format!("{}.{ending}", self.name))
    }

    /// Starts it, with nothing of this process's settings. One that ran is killed before.
    ///
    /// # Errors
    /// If the binary can't be started, or its log not be written.
    pub(crate) fn start(&mut self) -> Result<(), Failure> {
        self.kill();
        let failed = |error| Failure::failed(format!("can't start {}: {error}", self.name));
        let log = File::options().create(true).append(true).open(self.path("log")).map_err(failed)?;
        let out = File::create(self.path("out")).map_err(failed)?;
        let mut command = Command::new(BINARY);
        command.args(&self.arguments).env_clear().envs(self.environment.iter().map(|(k, v)| (*k, v)));
        command.stdin(Stdio::null()).stdout(out).stderr(log);
        self.child = Some(command.spawn().map_err(failed)?);
        Ok(())
    }

    /// SIGKILL, and waits for the end. Nothing happens if it does not run.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Not there any more is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its process id; `None` if it does not run.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Did it end by itself, and was it a success?
    pub(crate) fn ended(&mut self) -> Option<bool> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        Some(status.success())
    }

    /// What it printed.
    ///
    /// # Errors
    /// If that can't be read.
    pub(crate) fn printed(&self) -> Result<String, Failure> {
        fs::read_to_string(self.path("out"))
            .map_err(|error| Failure::failed(format!("can't read what {} printed: {error}", self.name)))
    }

    /// The last line that it said.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read(self.path("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().next_back().unwrap_or_default().to_owned()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The options that `cartwheel COMMAND` knows, as its help names them.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    known: Vec<String>,
}

impl Options {
    /// Asks the binary.
    ///
    /// # Errors
    /// If it can't be run.
    pub(crate) fn of(command: &str) -> Result<Self, Failure> {
        let failed = |error| Failure::failed(format!("can't run {BINARY}: {error}"));
        let run = Command::new(BINARY).args([command, "--help"]).env_clear().stdin(Stdio::null()).output();
        let help = run.map_err(failed)?.stdout;
        let words = String::from_utf8_lossy(&help);
        let words = words.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        Ok(Self { known: words.filter(|word| word.starts_with("--")).map(str::to_owned).collect() })
    }

    /// Is there such an option?
    pub(crate) fn know(&self, option: &str) -> bool {
        self.known.iter().any(|known| known == option)
    }
}
