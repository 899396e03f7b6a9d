//! The medians of all rounds, as a Markdown table.

use std::collections::BTreeMap;

use crate::machine::Machine;
use crate::stopwatch::Took;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Operations, told in nanoseconds each.
    Nanos,
    /// Operations, told in microseconds each.
    Micros,
    /// Bytes, told in megabytes per second.
    Bytes,
}

impl Unit {
    /// The figure for so many of them in so many seconds.
    fn figure(self, amount: f64, seconds: f64) -> f64 {
        match self {
            Self::Nanos => seconds * 1e9 / amount,
            Self::Micros => seconds * 1e6 / amount,
            Self::Bytes => amount / seconds.max(f64::MIN_POSITIVE) / 1e6,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nanos => "ns/op",
            Self::Micros => "µs/op",
            Self::Bytes => "MB/s",
        }
    }
}

/// One part in one round.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) unit: Unit,
    /// How many operations or bytes.
    pub(crate) amount: usize,
    pub(crate) took: Took,
    /// Another figure, and what it is of.
    pub(crate) besides: Option<(f64, &'static str)>,
}

/// What was measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    rounds: u32,
    /// The parts in order; each round's figures.
    parts: Vec<&'static str>,
    figures: BTreeMap<&'static str, Vec<Figures>>,
}

/// The middle of the values; between the middle two of an even number. 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) }
}

/// A figure in three digits or so.
fn short(figure: f64) -> String {
    match figure {
        f if f >= 100.0 => format!("{f:.0}"),
        f if f >= 10.0 => format!("{f:.1}"),
        f => format!("{f:.2}"),
    }
}

impl Report {
    pub(crate) fn begin(machine: Machine, rounds: u32) -> Self {
        Self { machine, rounds, parts: Vec::new(), figures: BTreeMap::new() }
    }

    /// Adds what one round measured of a part.
    pub(crate) fn add(&mut self, part: &'static str, figures: Figures) {
        if !self.parts.contains(&part) {
            self.parts.push(part);
        }
        self.figures.entry(part).or_default().push(figures);
    }

    fn row(part: &str, rounds: &[Figures]) -> String {
        let Some(unit) = rounds.first().map(|f| f.unit) else { return String::new() };
        let by = |seconds: fn(&Took) -> f64| -> Vec<f64> {
            rounds.iter().map(|f| unit.figure(f.amount as f64, seconds(&f.took))).collect()
        };
        let wall = by(|took| took.wall.as_secs_f64());
        // CPU time is told per operation, or per megabyte.
        let cpu: Vec<f64> = rounds
            .iter()
            .map(|f| match unit {
                Unit::Bytes => Unit::Micros.figure(f.amount as f64 / 1e6, f.took.cpu.as_secs_f64()),
                _ => unit.figure(f.amount as f64, f.took.cpu.as_secs_f64()),
            })
            .collect();
        let cpu_unit = if unit == Unit::Bytes { "µs/MB" } else { unit.name() };
        let (least, most) =
            wall.iter().fold((f64::INFINITY, 0.0_f64), |(l, m), figure| (l.min(*figure), m.max(*figure)));
        let extra: Vec<f64> = rounds.iter().filter_map(|f| f.besides).map(|(figure, _)| figure).collect();
        let besides = rounds.iter().find_map(|f| f.besides).map(|(_, of)| of);
        let besides = besides.map_or(String::new(), |of| format!("{} {of}", short(median(&extra))));
        let (wall, cpu) = (short(median(&wall)), short(median(&cpu)));
        let (least, most, name) = (short(least), short(most), unit.name());
        format!("| {part} | {wall} {name} | {least}-{most} | {cpu} {cpu_unit} | {besides} |\n")
    }

    /// For people, and for documents.
    pub(crate) fn text(&self) -> String {
        let Machine { cores, cpu, kernel, load } = &self.machine;
        let after = Machine::look().load;
        let build = if cfg!(debug_assertions) { "; debug build: the figures mean nothing" } else { "" };
        let mut text = format!(
            "{cores} cores, {cpu}, Linux {kernel}; load average {load} before, {after} after; rounds: {}\
             {build}.\n\n| part | median | least-most | CPU | besides |\n|---|---:|---:|---:|---:|\n",
            self.rounds
        );
        for part in &self.parts {
            text.push_str(&Self::row(part, self.figures.get(part).map_or(&[], Vec::as_slice)));
        }
        text
    }
}
