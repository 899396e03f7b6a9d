//! What happened in many seeds, together.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::report::{Check, Report, Scene};

/// How many names of one kind stand in a line.
const IN_A_LINE: usize = 6;

/// The sums.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// The simulated time.
    simulated_hours: f64,
    /// Seeds run.
    seeds: BTreeMap<Scene, u64>,
    /// What happened, and how often; of durations and of the most of something the largest.
    counts: BTreeMap<String, u64>,
    /// How often each kind of fault began.
    faults: BTreeMap<String, u64>,
    /// What was found, by check.
    violations: BTreeMap<Check, u64>,
}

/// A duration, or the most of something, is not summed.
fn is_most(name: &str) -> bool {
    name.starts_with("ms ") || name.starts_with("most ")
}

impl Tally {
    /// One more seed.
    pub fn add(&mut self, report: &Report) {
        self.simulated_hours += report.simulated.as_secs_f64() / 3_600.0;
        *self.seeds.entry(report.scene).or_default() += 1;
        for (name, count) in &report.counts {
            let sum = self.counts.entry(name.clone()).or_default();
            *sum = if is_most(name) { (*sum).max(*count) } else { *sum + count };
        }
        for (kind, count) in &report.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        for violation in &report.violations {
            *self.violations.entry(violation.check).or_default() += 1;
        }
    }

    /// How many seeds there were.
    pub fn seeds(&self) -> u64 {
        self.seeds.values().sum()
    }
}

/// `5 whole, 3 returns`, in lines of a few.
fn list<K>(f: &mut fmt::Formatter<'_>, title: &str, all: &[(K, u64)]) -> fmt::Result
where
    K: fmt::Display,
{
    let sum: u64 = all.iter().map(|(_, count)| count).sum();
    writeln!(f, "{title}: {sum}")?;
    for line in all.chunks(IN_A_LINE) {
        let line: Vec<String> = line.iter().map(|(name, count)| format!("{count} {name}")).collect();
        writeln!(f, "  {}", line.join(", "))?;
    }
    Ok(())
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "simulated: {:.2} h", self.simulated_hours)?;
        let seeds: Vec<_> = self.seeds.iter().map(|(scene, count)| (scene, *count)).collect();
        list(f, "seeds", &seeds)?;
        for (name, count) in &self.counts {
            let most = if is_most(name) { "at most " } else { "" };
            writeln!(f, "{name}: {most}{count}")?;
        }
        let faults: Vec<_> = self.faults.iter().map(|(kind, count)| (kind, *count)).collect();
        list(f, "faults", &faults)?;
        let violations: Vec<_> =
            self.violations.iter().map(|(check, count)| (format!("{check:?}"), *count)).collect();
        list(f, "violations", &violations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Violation;
    use std::time::Duration;

    #[test]
    fn counts_are_summed_and_durations_are_not() {
        let report = |scene, reads, settled| Report {
            scene,
            seed: 1,
            simulated: Duration::from_secs(1_800),
            counts: BTreeMap::from([("reads".to_owned(), reads), ("ms until settled".to_owned(), settled)]),
            faults: BTreeMap::from([("Cut".to_owned(), 2)]),
            violations: vec![Violation { check: Check::Lost, what: "a write".to_owned() }],
        };
        let mut tally = Tally::default();
        tally.add(&report(Scene::Whole, 3, 50));
        tally.add(&report(Scene::Returns, 4, 20));
        let said = tally.to_string();
        for part in ["1.00 h", "seeds: 2", "1 whole, 1 returns", "reads: 7", "at most 50", "4 Cut", "2 Lost"]
        {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
    }
}
