//! `cartwheel doctor`: is everything that a cluster stands on as it must be?

mod cluster;
mod gateway;
mod machine;
mod store;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use cartwheel_cluster::seams::Seams;

use super::BucketArgs;
use crate::client::{Client, Exit, Failure, Format, Gateway, Output, printable};

/// How long a gateway may take for an answer.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// Check the object store, this machine, and what lies in the bucket
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel doctor --bucket s3://carts/prod\n  cartwheel doctor --gateway http://127.0.0.1:8080 --data-dir /var/lib/cartwheel/a -o json\n\nWrites a few small objects under probe/ and deletes them again. Exit status 1 if anything fails."
)]
pub struct DoctorArgs {
    /// Also ask this gateway how it is, and the storage nodes
    #[arg(long, value_name = "URL", env = "CARTWHEEL_GATEWAY")]
    pub gateway: Option<Gateway>,
    /// Also look at the room on the disk of this directory
    #[arg(long, value_name = "DIR", env = "CARTWHEEL_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub bucket: BucketArgs,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    level: Level,
    what: String,
    detail: String,
    /// What to do about it; empty if there is nothing to do.
    advice: String,
}

impl Check {
    fn ok(what: &str, detail: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.to_owned(), detail: detail.into(), advice: String::new() }
    }

    fn warn(what: &str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warn, what: what.to_owned(), detail: detail.into(), advice: advice.into() }
    }

    fn fail(what: &str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Fail, what: what.to_owned(), detail: detail.into(), advice: advice.into() }
    }
}

/// Runs `cartwheel doctor`.
///
/// # Errors
/// Exit status 1 if any check fails, 2 for a bad argument.
pub async fn run(args: &DoctorArgs, output: &mut Output) -> Result<Exit, Failure> {
    let bucket = args.bucket.connect().await?;
    let seams = Seams::real();
    let mut checks = store::checks(&*bucket, &seams).await;
    // A store that can't be reached would say the same to every question about what lies in it.
    let mut ring_version = None;
    if checks.iter().any(|check| check.what == store::REACH && check.level < Level::Fail) {
        let (found, version) = cluster::checks(&*bucket, seams.clock.now_ms()).await;
        checks.extend(found);
        ring_version = version;
    }
    checks.extend(machine::checks(args.data_dir.as_deref()));
    if let Some(gateway) = &args.gateway {
        let client = Client::new(gateway.clone(), GATEWAY_TIMEOUT);
        checks.extend(gateway::checks(&client, ring_version).await);
    }
    match args.bucket.output {
        Format::Json => output.json(&value(&checks))?,
        Format::Text => output.raw(text(&checks).as_bytes())?,
    }
    Ok(if worst(&checks) == Level::Fail { Exit::Failed } else { Exit::Done })
}

fn worst(checks: &[Check]) -> Level {
    checks.iter().map(|check| check.level).max().unwrap_or(Level::Ok)
}

fn value(checks: &[Check]) -> Value {
    let each = checks.iter().map(|check| {
        json!({
            "level": check.level.word(),
            "what": check.what,
            "detail": check.detail,
            "advice": check.advice,
        })
    });
    json!({ "level": worst(checks).word(), "checks": each.collect::<Vec<_>>() })
}

fn text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { level, what, detail, advice } in checks {
        let arrow = if advice.is_empty() { String::new() } else { format!("  → {}", printable(advice)) };
        let (what, detail) = (printable(what), printable(detail));
        text.push_str(&format!("{:<4}  {what:<width$}  {detail}{arrow}\n", level.word()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_check_and_the_worst_of_them() {
        let checks = [Check::ok("a", "is fine"), Check::warn("longer", "is slow", "make it fast")];
        assert_eq!(text(&checks), "ok    a       is fine\nwarn  longer  is slow  → make it fast\n");
        assert_eq!(value(&checks)["level"], "warn");
        assert_eq!(value(&checks)["checks"][1]["advice"], "make it fast");
        assert_eq!((worst(&[]), worst(&checks[..1])), (Level::Ok, Level::Ok));
        assert_eq!(worst(&[Check::fail("x", "", ""), Check::ok("y", "")]), Level::Fail);
    }
}
