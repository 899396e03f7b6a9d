//! The machine that the figures are of.

use std::fs;

/// What it is and how busy it was when the bench began.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    /// Load averages over one, five and fifteen minutes.
    pub(crate) load: String,
}

impl Machine {
    /// Looks at this one. What it does not tell is "unknown".
    pub(crate) fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let or_unknown = |text: Option<&str>| text.map_or("unknown", str::trim).to_owned();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find(|line| line.starts_with("model name")).and_then(|l| l.split_once(':'));
        let load = read("/proc/loadavg");
        let load: Vec<&str> = load.split_ascii_whitespace().take(3).collect();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: or_unknown(model.map(|(_, name)| name)),
            kernel: or_unknown(Some(read("/proc/sys/kernel/osrelease").as_str()).filter(|k| !k.is_empty())),
            load: or_unknown(Some(load.join(" ").as_str()).filter(|l| !l.is_empty())),
        }
    }
}
