//! Signals: the first SIGTERM or SIGINT drains, the second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::supervisor;
use crate::client::Failure;

/// The exit status of a process that was told twice to end.
const IMPATIENT: i32 = 130;

/// Waits for the signals that ask a process to end.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts listening; from now on signals do not end the process by themselves.
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|e| Failure::failed(format!("can't listen for signals: {e}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the first signal, then runs `drain`; a second signal ends the process at once.
    pub(crate) async fn then_drain(self, drain: impl Future<Output = ()>) {
        self.first().await.drain(drain).await;
    }

    /// Waits for the first signal.
    pub(crate) async fn first(mut self) -> Self {
        self.next().await;
        self
    }

    /// Runs `drain`; a signal ends the process at once.
    pub(crate) async fn drain(mut self, drain: impl Future<Output = ()>) {
        supervisor::stopping();
        tracing::info!("draining; a second signal ends the process at once");
        tokio::select! {
            () = drain => {}
            () = self.next() => std::process::exit(IMPATIENT),
        }
    }
}
