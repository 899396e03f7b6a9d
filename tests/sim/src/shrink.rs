//! Makes a seed that breaks a promise small: fewer faults, fewer clients and keys, an earlier end, as long as the same
//! check finds something. What is left is what people read.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use crate::child::{Spec, runtime};
use crate::many::told_to_end;
use crate::report::{Check, Scene};
use crate::seed::{Less, Numbers, Said, Setting};

/// The shortest time for which clients write that is tried, and the smallest step, in milliseconds.
const STEP_MS: u64 = 1_000;
/// From how many keys and clients on fewer are tried; there are never more.
const MANY: u64 = 64;

/// Which seed, and for how long.
#[derive(Debug, Clone, Args)]
pub struct ShrinkArgs {
    /// The seed
    seed: u64,
    /// What is simulated
    #[arg(long, value_enum, default_value_t = Scene::Whole)]
    scene: Scene,
    #[command(flatten)]
    setting: Setting,
    #[command(flatten)]
    less: Less,
    /// The check that has to find something, as violations name it; without it the one that finds the first
    #[arg(long)]
    check: Option<String>,
    /// For how many minutes to go on
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

/// Makes it small, and says how; exit status 1 if there was nothing to make small.
pub fn main(args: &ShrinkArgs) -> ExitCode {
    runtime().block_on(async {
        tokio::select! {
            biased;
            () = told_to_end() => ExitCode::from(130),
            status = shrink(args) => status,
        }
    })
}

/// The smallest so far.
struct Shrinking {
    spec: Spec,
    said: Said,
    check: Check,
    last: Instant,
    tried: u64,
    /// With what the check found nothing.
    needed: Vec<Less>,
}

async fn shrink(args: &ShrinkArgs) -> ExitCode {
    let last = Instant::now() + Duration::from_secs_f64(args.minutes.max(0.0) * 60.0);
    let spec = Spec { less: args.less.clone(), ..Spec::new(args.scene, args.seed, &args.setting) };
    println!("{}", spec.replay());
    let said = spec.run().await;
    let wanted = |check: Check| args.check.as_ref().is_none_or(|name| *name == format!("{check:?}"));
    let Some(violation) = said.report.violations.iter().find(|violation| wanted(violation.check)) else {
        println!("it breaks no promise that is looked for: {}", said.report);
        return ExitCode::from(1);
    };
    println!("  {violation}");
    let check = violation.check;
    let mut shrinking = Shrinking { spec, said, check, last, tried: 1, needed: Vec::new() };
    loop {
        let before = shrinking.spec.clone();
        shrinking.fewer_faults().await;
        // The others have one writer and few keys, and write while it matters.
        if matches!(args.scene, Scene::Whole | Scene::Changes) {
            shrinking.fewer_clients().await;
            shrinking.fewer_keys().await;
            shrinking.an_earlier_end().await;
        }
        // What was needed before may not be any more.
        if shrinking.spec == before || shrinking.is_over() {
            break;
        }
    }
    let Shrinking { spec, said, tried, .. } = shrinking;
    println!("\nthe smallest after {tried} runs: {}", said.report);
    for violation in said.report.violations.iter().filter(|violation| violation.check == check).take(3) {
        println!("  {violation}");
    }
    for line in &said.timeline {
        println!("    {line}");
    }
    println!("{}", spec.replay());
    ExitCode::SUCCESS
}

impl Shrinking {
    fn is_over(&self) -> bool {
        Instant::now() >= self.last
    }

    /// Tries it with less, and keeps it so if the check finds something still.
    async fn keeps(&mut self, what: &str, less: Less) -> bool {
        if self.is_over() || less == self.spec.less || self.needed.contains(&less) {
            return false;
        }
        let spec = Spec { less, ..self.spec.clone() };
        let said = spec.run().await;
        self.tried += 1;
        let keeps = said.report.violations.iter().any(|violation| violation.check == self.check);
        println!("{} {what}", if keeps { "  kept" } else { "needed" });
        if keeps {
            (self.spec, self.said) = (spec, said);
        } else {
            self.needed.push(spec.less);
        }
        keeps
    }

    /// The faults that happen now.
    fn faults(&self) -> Vec<usize> {
        let Numbers(all) = self.spec.less.only.clone().unwrap_or_else(|| Numbers(self.said.numbers.clone()));
        all
    }

    /// Leaves out ever smaller parts of the faults until each one that is left is needed.
    async fn fewer_faults(&mut self) {
        let mut parts = Parts::new(self.faults());
        while let Some(rest) = parts.next() {
            let what = format!("{} faults of {}", rest.len(), parts.left().len());
            let less = Less { only: Some(Numbers(rest)), ..self.spec.less.clone() };
            if self.keeps(&what, less).await {
                parts.is_enough();
            } else if self.is_over() {
                return;
            }
        }
    }

    async fn fewer_clients(&mut self) {
        for writers in 1..self.spec.less.writers.unwrap_or(4) {
            let less = Less { writers: Some(writers), ..self.spec.less.clone() };
            if self.keeps(&format!("{writers} clients that write"), less).await {
                return;
            }
        }
    }

    async fn fewer_keys(&mut self) {
        let mut keys = 1;
        while keys < self.spec.less.keys.unwrap_or(MANY) {
            let less = Less { keys: Some(keys), ..self.spec.less.clone() };
            if self.keeps(&format!("{keys} keys"), less).await {
                return;
            }
            keys *= 2;
        }
    }

    /// Halves the time for which clients write, and then looks between.
    async fn an_earlier_end(&mut self) {
        let simulated = u64::try_from(self.said.report.simulated.as_millis()).unwrap_or(u64::MAX);
        let (mut too_early, mut enough) = (0, self.spec.less.until.unwrap_or(simulated));
        while enough - too_early > STEP_MS {
            let until = too_early.midpoint(enough);
            let less = Less { until: Some(until), ..self.spec.less.clone() };
            if self.keeps(&format!("writing until {until} ms"), less).await {
                enough = until;
            } else {
                too_early = until;
            }
            if self.is_over() {
                return;
            }
        }
    }
}

/// Which parts of a list to leave out next: none at all is tried first, then halves, quarters and so on.
struct Parts {
    left: Vec<usize>,
    /// How long a part is that is left out; longer than the list: all of it.
    length: usize,
    /// Where the part begins that was left out last.
    at: usize,
    begun: bool,
}

impl Parts {
    fn new(left: Vec<usize>) -> Self {
        let length = left.len().max(1);
        Self { left, length, at: 0, begun: false }
    }

    fn left(&self) -> &[usize] {
        &self.left
    }

    fn without(&self) -> Vec<usize> {
        let part = self.at..(self.at + self.length).min(self.left.len());
        self.left.iter().enumerate().filter(|(at, _)| !part.contains(at)).map(|(_, number)| *number).collect()
    }

    /// The list without the next part; `None` once each single one is needed.
    fn next(&mut self) -> Option<Vec<usize>> {
        if self.begun {
            self.at += self.length;
        }
        self.begun = true;
        if self.at >= self.left.len() {
            if self.length <= 1 || self.left.is_empty() {
                return None;
            }
            (self.at, self.length) = (0, self.length.min(self.left.len()).div_ceil(2));
        }
        Some(self.without())
    }

    /// What the last part was left out of is enough: go on with it.
    fn is_enough(&mut self) {
        self.left = self.without();
        self.begun = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of `count` numbers if `enough` says what is.
    fn shrunk(count: usize, enough: impl Fn(&[usize]) -> bool) -> (Vec<usize>, usize) {
        let mut parts = Parts::new((0..count).collect());
        let mut tries = 0;
        while let Some(rest) = parts.next() {
            tries += 1;
            assert!(rest.len() < parts.left().len());
            if enough(&rest) {
                parts.is_enough();
            }
        }
        (parts.left, tries)
    }

    #[test]
    fn what_is_needed_is_left_and_nothing_else() {
        assert_eq!(shrunk(56, |_| true), (vec![], 1));
        assert_eq!(shrunk(56, |rest| rest.contains(&3) && rest.contains(&40)).0, [3, 40]);
        assert_eq!(shrunk(7, |rest| rest.len() >= 5).0.len(), 5);
        assert_eq!(shrunk(4, |_| false).0, [0, 1, 2, 3]);
        assert_eq!(shrunk(0, |_| true), (vec![], 0));
        let (_, tries) = shrunk(64, |rest| rest.contains(&63));
        assert!(tries <= 16, "{tries} tries");
    }
}
