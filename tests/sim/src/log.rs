//! What the simulated processes log, for people who look into a seed: with the time of the simulation.

use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// What to log, in the form of `RUST_LOG`.
const LOG: &str = "CARTWHEEL_SIM_LOG";

struct SimTime;

impl FormatTime for SimTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{:>9}", turmoil::sim_elapsed().unwrap_or_default().as_micros())
    }
}

/// Logs to standard error if the environment asks for it.
pub fn start() {
    if let Ok(filter) = std::env::var(LOG) {
        let log = tracing_subscriber::fmt().with_timer(SimTime).with_ansi(false).with_writer(std::io::stderr);
        let _ = log.with_env_filter(EnvFilter::new(filter)).try_init();
    }
}
