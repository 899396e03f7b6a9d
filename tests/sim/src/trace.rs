//! What happened in a simulation, as bytes: two runs of one seed must write the same ones.

use std::io::Write;
use std::time::Duration;

use crate::world::lock::Lock;

/// The lines so far, and how many of them are bucket operations.
#[derive(Debug, Default)]
pub struct Trace(Lock<(Vec<u8>, u64)>);

impl Trace {
    /// Writes down what `who` did now; from inside a simulated host.
    pub fn line(&self, who: &str, what: &str) {
        self.line_at(turmoil::sim_elapsed().unwrap_or_default(), who, what);
    }

    /// Writes down what `who` did at `time`.
    pub fn line_at(&self, time: Duration, who: &str, what: &str) {
        writeln!(self.0.lock().0, "{:>9} {who}: {what}", time.as_micros()).unwrap();
    }

    /// Writes down a bucket operation.
    pub fn bucket(&self, who: &str, what: &str) {
        self.line(who, what);
        self.0.lock().1 += 1;
    }

    /// How many bucket operations there were.
    pub fn bucket_operations(&self) -> u64 {
        self.0.lock().1
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().0.clone()
    }
}
