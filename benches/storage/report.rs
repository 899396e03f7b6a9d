//! What a part found: Markdown for documents, and JSON for programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};

use cartwheel::client::{Failure, Output};
use cartwheel::units::human_size;

use crate::machine::Machine;

/// A report that grows while its part runs.
#[derive(Debug)]
pub(crate) struct Report {
    part: &'static str,
    machine: Machine,
    commit: String,
    text: String,
    json: Map<String, Value>,
    wrong: Vec<String>,
}

impl Report {
    /// Looks at the machine; the part begins now.
    pub(crate) fn begin(part: &'static str, settings: Value) -> Self {
        let json = Map::from_iter([("settings".to_owned(), settings)]);
        let (text, wrong) = (String::new(), Vec::new());
        Self { part, machine: Machine::look(), commit: commit(), text, json, wrong }
    }

    /// A paragraph.
    pub(crate) fn say(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push_str("\n\n");
    }

    /// A Markdown table. All columns but the first are figures.
    pub(crate) fn table(&mut self, header: &[&str], rows: &[Vec<String>]) {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let titles: Vec<String> = header.iter().map(|title| (*title).to_owned()).collect();
        let rule = (0..header.len()).map(|at| if at == 0 { "---" } else { "---:" }.to_owned());
        self.text.push_str(&line(&titles));
        self.text.push_str(&line(&rule.collect::<Vec<_>>()));
        for row in rows {
            self.text.push_str(&line(row));
        }
        self.text.push('\n');
    }

    /// A figure or several for programs.
    pub(crate) fn set(&mut self, name: &str, value: Value) {
        self.json.insert(name.to_owned(), value);
    }

    /// Something that must not be: it is reported, and the tool ends with status 1.
    pub(crate) fn wrong(&mut self, what: String) {
        self.wrong.push(what);
    }

    /// Prints the report and writes `storage-PART.json` to the target directory.
    ///
    /// # Errors
    /// If that can't be done, and where something was wrong.
    pub(crate) fn end(mut self, output: &mut Output) -> Result<(), Failure> {
        let after = Machine::look().load;
        let Machine { cores, cpu, kernel, load } = &self.machine;
        let build = if cfg!(debug_assertions) { " (debug build: the figures mean nothing)" } else { "" };
        let path = target().join(format!("storage-{}.json", self.part));
        self.json.insert(
            "machine".to_owned(),
            json!({"cores": cores, "cpu": cpu, "kernel": kernel, "load_before": load, "load_after": after}),
        );
        self.json.insert("part".to_owned(), json!(self.part));
        self.json.insert("commit".to_owned(), json!(self.commit));
        self.json.insert("debug_build".to_owned(), json!(cfg!(debug_assertions)));
        self.json.insert("wrong".to_owned(), json!(self.wrong));
        let failed = |error| Failure::failed(format!("can't write {}: {error}", path.display()));
        let document = serde_json::to_vec_pretty(&Value::Object(self.json));
        let document = document.map_err(|error| Failure::failed(format!("can't write JSON: {error}")))?;
        fs::write(&path, document).map_err(failed)?;
        let text = format!(
            "## storage: {}\n\nCommit {}{build}; {cores} cores, {cpu}, Linux {kernel}; load average {load} before, \
             {after} after.\n\n{}",
            self.part, self.commit, self.text
        );
        output.raw(text.as_bytes())?;
        output.note(&format!("the same for programs: {}", path.display()));
        if self.wrong.is_empty() { Ok(()) } else { Err(Failure::failed(self.wrong.join("; "))) }
    }
}

/// Where cargo builds.
fn target() -> PathBuf {
    let inside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    inside.parent().unwrap_or(inside).to_owned()
}

/// The commit that is checked out, with a plus sign if files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let run =
            Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
        run.status.success().then(|| String::from_utf8_lossy(&run.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain"]).is_some_and(|files| !files.is_empty());
    if changed { format!("{commit}+") } else { commit }
}

/// The value below which `share` of all lie (0.5: the median); 0 of none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share.clamp(0.0, 1.0) * last as f64;
    // An index into a list in memory is far from the limits of both types.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as said")]
    let (low, part) = (place.floor() as usize, place.fract());
    let at = |index: usize| sorted.get(index.min(last)).copied().unwrap_or(0.0);
    at(low) + (at(low + 1) - at(low)) * part
}

/// The middle of the values.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// A figure in three digits or so; `-` where there is none.
pub(crate) fn short(figure: f64) -> String {
    match figure {
        f if !f.is_finite() => "-".to_owned(),
        0.0 => "0".to_owned(),
        f if f.abs() >= 100.0 => format!("{f:.0}"),
        f if f.abs() >= 1.0 => format!("{f:.2}"),
        f if f.abs() >= 0.001 => format!("{f:.4}"),
        f => format!("{f:.2e}"),
    }
}

/// A size as it was asked for: whole megabytes or gigabytes where it is some, else as sizes are printed elsewhere.
pub(crate) fn asked_size(bytes: u64) -> String {
    for (name, unit) in [("GB", 1_000_000_000), ("MB", 1_000_000)] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    human_size(bytes)
}
