//! The memory of processes, looked at ten times a second.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::report::{median, quantile};

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(100);

type Samples = Arc<Mutex<BTreeMap<String, Vec<f64>>>>;

/// Looks at processes until it is ended or dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    samples: Samples,
    task: JoinHandle<()>,
}

/// What one process took, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// The most.
    pub(crate) peak: f64,
    /// The median.
    pub(crate) median: f64,
}

impl Watch {
    /// Begins with these processes, by name and id.
    pub(crate) fn begin(processes: Vec<(String, u32)>) -> Self {
        let samples = Samples::default();
        let kept = Arc::clone(&samples);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            loop {
                ticks.tick().await;
                for (name, pid) in &processes {
                    if let Some(bytes) = resident(*pid) {
                        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                        kept.entry(name.clone()).or_default().push(bytes);
                    }
                }
            }
        });
        Self { samples, task }
    }

    /// Ends, and says what each process took.
    pub(crate) fn end(self) -> BTreeMap<String, Taken> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = |bytes: &Vec<f64>| Taken { peak: quantile(bytes, 1.0), median: median(bytes) };
        samples.iter().map(|(name, bytes)| (name.clone(), taken(bytes))).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `VmRSS` of a process, in bytes.
fn resident(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024.0)
}
