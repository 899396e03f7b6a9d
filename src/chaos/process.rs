//! Processes of this same binary: started, stopped, killed. None outlives its [`Service`].

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// One process of the cluster, whether it runs or not.
#[derive(Debug)]
pub(crate) struct Service {
    /// Its name in notes, and of its log.
    pub(crate) name: String,
    /// What its command begins with, where it does not begin with this binary.
    wrapper: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    log: PathBuf,
    child: Option<Child>,
    paused: bool,
}

impl Service {
    /// A process that is not running yet. What it says goes to `NAME.log` in `directory`.
    pub(crate) fn new(
        name: &str,
        directory: &Path,
        wrapper: Vec<String>,
        arguments: Vec<String>,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        let log = directory.join(format!("{name}.log"));
        Self { name: name.to_owned(), wrapper, arguments, environment, log, child: None, paused: false }
    }

    /// Where it was told to listen.
    pub(crate) fn listens(&self) -> Option<String> {
        let at = self.arguments.iter().position(|argument| argument == "--listen")?;
        self.arguments.get(at + 1).cloned()
    }

    /// Starts it, with nothing of this process's settings.
    ///
    /// # Errors
    /// If this binary can't be started again, or the log not be written.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        self.kill();
        let log = File::options().create(true).append(true).open(&self.log)?;
        let binary = std::env::current_exe()?;
        let mut command = match self.wrapper.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command.args(&self.arguments).env_clear().envs(self.environment.iter().map(|(k, v)| (*k, v)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// SIGKILL, and waits for the end. Nothing happens if it does not run.
    pub(crate) fn kill(&mut self) {
        self.paused = false;
        if let Some(mut child) = self.child.take() {
            // Not there any more is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// If the signal can't be sent.
    pub(crate) fn pause(&mut self) -> io::Result<()> {
        self.paused = true;
        self.signal("STOP")
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If the signal can't be sent.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        self.paused = false;
        self.signal("CONT")
    }

    /// Sends a signal by the shell's own `kill`. The process has not been waited for, so its id is still its own.
    fn signal(&self, signal: &str) -> io::Result<()> {
        let Some(child) = &self.child else { return Ok(()) };
        let line = format!("kill -{signal} {}", child.id());
        let status = Command::new("/bin/sh").args(["-c", &line]).stdin(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("{line}: {status}"))) }
    }

    /// Has it been started, and not been stopped or killed?
    pub(crate) fn runs(&self) -> bool {
        self.child.is_some() && !self.paused
    }

    /// Is it stopped?
    pub(crate) fn paused(&self) -> bool {
        self.paused
    }

    /// How it ended, if it ended by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        Some(status)
    }

    /// All that it said.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last line that it said.
    pub(crate) fn last_words(&self) -> String {
        self.log().lines().next_back().unwrap_or_default().to_owned()
    }

    /// How many panics its log tells of.
    pub(crate) fn panics(&self) -> usize {
        self.log().matches("panicked at").count()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Did a process fall, rather than end for a reason that it gave?
pub(crate) fn fell(status: ExitStatus) -> bool {
    status.signal().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_falls_is_told_from_one_that_ends() {
        assert!(fell(ExitStatus::from_raw(6)), "an abort");
        assert!(!fell(ExitStatus::from_raw(3 << 8)), "exit status 3");
    }
}
