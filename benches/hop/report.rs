//! The medians of all rounds, and how they compare.

use serde_json::{Map, Value, json};

use cartwheel::client::{Align, table};
use cartwheel::units::{format_duration, human_micros};

use crate::Args;
use crate::load::{CONNECTIONS, Figures, KEYS, PERCENTILES, VALUE_BYTES};
use crate::machine::Machine;
use crate::steps::{STEPS, System};

/// What was measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    args: Args,
    /// By step, then by round.
    figures: [Vec<Figures>; STEPS.len()],
}

/// One step's row.
struct Row {
    cpu_us: f64,
    least: f64,
    most: f64,
    per_second: f64,
    latency_us: [f64; PERCENTILES.len()],
    /// CPU time as a multiple of that of the step it is compared with, and the aim.
    ratio: Option<(f64, f64)>,
}

/// The middle of the values; between the middle two of an even number. 0 of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { at(middle) } else { (at(middle.saturating_sub(1)) + at(middle)) / 2.0 }
}

impl Report {
    pub(crate) fn new(machine: Machine, args: &Args) -> Self {
        Self { machine, args: args.clone(), figures: [const { Vec::new() }; STEPS.len()] }
    }

    /// Adds what one round measured of step number `step`.
    pub(crate) fn add(&mut self, step: usize, figures: Figures) {
        if let Some(rounds) = self.figures.get_mut(step) {
            rounds.push(figures);
        }
    }

    fn rounds(&self, step: usize) -> &[Figures] {
        self.figures.get(step).map_or(&[], Vec::as_slice)
    }

    fn cpu_us(&self, step: usize) -> f64 {
        median(self.rounds(step).iter().map(|f| f.cpu_us))
    }

    fn row(&self, step: usize) -> Row {
        let rounds = self.rounds(step);
        let cpu = || rounds.iter().map(|f| f.cpu_us);
        let aim = STEPS.get(step).and_then(|step| step.aim);
        Row {
            cpu_us: self.cpu_us(step),
            least: cpu().fold(f64::INFINITY, f64::min),
            most: cpu().fold(0.0, f64::max),
            per_second: median(rounds.iter().map(|f| f.per_second)),
            latency_us: std::array::from_fn(|at| median(rounds.iter().map(|f| f.latency_us[at]))),
            ratio: aim.map(|aim| (self.cpu_us(step) / self.cpu_us(aim.of), aim.times)),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Machine { cores, cpu, kernel, load } = &self.machine;
        let mut text = format!(
            "{cores} cores, {cpu}, Linux {kernel}, load average {load} at the start\n{}\n\n",
            self.args.summary()
        );
        let mut header = vec![("SYSTEM", Align::Left), ("OPERATION", Align::Left)];
        header.extend(["CPU µs/OP", "LEAST-MOST", "OPS/S"].map(|title| (title, Align::Right)));
        header.extend(PERCENTILES.map(|name| (name, Align::Right)));
        header.extend(["x FAN-OUT", "AIM"].map(|title| (title, Align::Right)));
        let rows = STEPS.iter().enumerate().map(|(at, step)| {
            let row = self.row(at);
            let mut cells = vec![step.system.to_string(), step.name.to_owned()];
            cells.push(format!("{:.1}", row.cpu_us));
            cells.push(format!("{:.1}-{:.1}", row.least, row.most));
            cells.push(format!("{:.0}", row.per_second));
            cells.extend(row.latency_us.map(whole_micros));
            if let Some((ratio, aim)) = row.ratio {
                let verdict = if ratio <= aim { "met" } else { "missed" };
                cells.extend([format!("{ratio:.2}"), format!("{aim:.1} {verdict}")]);
            }
            cells
        });
        let rows: Vec<Vec<String>> = rows.collect();
        text.push_str(&table(&header, &rows));
        text.push_str(&format!(
            "\nCPU is user and system time of the server's process. {} never flushes while it is measured; \
             {} does every {}, and its process is the object storage too.\n",
            System::Cluster,
            System::Flushing,
            format_duration(self.args.flush_interval)
        ));
        text
    }

    /// For programs; times in microseconds.
    pub(crate) fn json(&self) -> Value {
        let steps = STEPS.iter().enumerate().map(|(at, step)| {
            let row = self.row(at);
            let latency: Map<String, Value> = PERCENTILES
                .iter()
                .zip(row.latency_us)
                .map(|(name, figure)| (format!("{name}_us"), json!(figure)))
                .collect();
            let cpu: Vec<f64> = self.rounds(at).iter().map(|f| f.cpu_us).collect();
            json!({
                "system": step.system.to_string(),
                "operation": step.name,
                "cpu_us_per_operation": row.cpu_us,
                "cpu_us_per_operation_by_round": cpu,
                "per_second": row.per_second,
                "latency": latency,
                "times_fan_out": row.ratio.map(|(ratio, _)| ratio),
                "aim": row.ratio.map(|(_, aim)| aim),
            })
        });
        let Machine { cores, cpu, kernel, load } = &self.machine;
        json!({
            "machine": {"cores": cores, "cpu": cpu, "kernel": kernel, "load_average": load},
            "settings": {
                "keys": KEYS, "value_size": VALUE_BYTES, "connections": CONNECTIONS,
                "rounds": self.args.rounds,
                "duration": format_duration(self.args.duration),
                "warmup": format_duration(self.args.warmup),
                "flush_interval": format_duration(self.args.flush_interval),
            },
            "steps": steps.collect::<Vec<Value>>(),
        })
    }
}

fn whole_micros(figure: f64) -> String {
    // A latency in a bench is far from the limits of both types.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as said")]
    let micros = figure.round().max(0.0) as u64;
    human_micros(micros)
}
