//! A server in a process of its own, so that its CPU time can be told from the load's.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{self, ChildStdout, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use cartwheel::client::{Client, Failure, Gateway};
use cartwheel::units::format_duration;

use crate::steps::System;

/// A flush interval that no measurement lives to see.
const NEVER: Duration = Duration::from_secs(3600);
/// How often a server is started: a port that was free when a cluster looked for one may be taken when it
/// listens there.
const STARTS: u32 = 5;
/// How long a cluster may take from its first word to its first answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server that runs; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    process: process::Child,
    /// Where it takes requests.
    pub(crate) gateway: Gateway,
    /// Kept open: a server that can't print ends.
    _stdout: BufReader<ChildStdout>,
    /// On a real file system, beside what cargo builds: a temporary directory may be memory.
    _data: Option<TempDir>,
}

impl Child {
    /// Starts a server and waits until it says where it is.
    ///
    /// # Errors
    /// Exit status 1 if it does not start.
    pub(crate) fn start(system: System, flush_interval: Duration) -> Result<Self, Failure> {
        let mut started = Self::try_start(system, flush_interval);
        for _ in 1..STARTS {
            if started.is_ok() {
                break;
            }
            started = Self::try_start(system, flush_interval);
        }
        started
    }

    fn try_start(system: System, flush_interval: Duration) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::failed(format!("can't start {system}: {error}"));
        let (mut command, data) = match system {
            System::Hello => (own("hello").map_err(failed)?, None),
            System::FanOut => (own("fan-out").map_err(failed)?, None),
            System::Cluster => cluster(NEVER).map_err(failed)?,
            System::Flushing => cluster(flush_interval).map_err(failed)?,
        };
        // Its input stays open as long as this process lives, whatever ends it.
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let silent = || Failure::failed(format!("{system} ended without saying where it serves"));
        let mut stdout = BufReader::new(process.stdout.take().ok_or_else(silent)?);
        let mut line = String::new();
        let url = loop {
            line.clear();
            if stdout.read_line(&mut line).map_err(failed)? == 0 {
                let _ = process.wait();
                return Err(silent());
            }
            if let Some(url) = line.strip_prefix("gateway") {
                break url.trim();
            }
        };
        let gateway: Gateway = url.parse().map_err(Failure::failed)?;
        let child = Self { process, gateway, _stdout: stdout, _data: data };
        if matches!(system, System::Cluster | System::Flushing) {
            wait_until_ready(&child.gateway)?;
        }
        Ok(child)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until the gateway has found the ring: before that it refuses data.
fn wait_until_ready(gateway: &Gateway) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("can't wait: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let client = Client::new(gateway.clone(), PATIENCE);
    let ready = async {
        while !client.get("/readyz").await?.status.is_success() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    let late = || Failure::failed(format!("{gateway} was not ready within {}", format_duration(PATIENCE)));
    runtime.block_on(async { tokio::time::timeout(PATIENCE, ready).await }).map_err(|_| late())?
}

/// This program as one of the servers.
fn own(role: &str) -> std::io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--serve", role]);
    Ok(command)
}

/// Three storage nodes, a gateway and object storage in one process.
fn cluster(flush_interval: Duration) -> std::io::Result<(Command, Option<TempDir>)> {
    let data = tempfile::Builder::new().prefix("hop-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_cartwheel"));
    command
        .args(["dev", "--nodes", "3", "--gateways", "1"])
        .args(["--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0"])
        .args(["--flush-interval", &format_duration(flush_interval), "--data-dir"])
        .arg(data.path());
    // Settings of whoever runs the bench must not become the cluster's.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARTWHEEL_")) {
        command.env_remove(name);
    }
    Ok((command, Some(data)))
}
