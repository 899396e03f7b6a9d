//! Takes the rules of the protocol out, one after the other, and looks which check notices: a table for people.

use std::collections::BTreeSet;
use std::process::ExitCode;

use cartwheel_core::mutation::Rule;
use clap::Args;
use futures_util::StreamExt;

use crate::child::{Spec, processor_seconds, runtime};
use crate::many::{mix, told_to_end};
use crate::removal;
use crate::report::Scene;
use crate::seed::{Said, Setting};

/// The scenes that notice a rule's removal first, if not the mixture of all does.
const NOTICED_BY: &[(&str, Scene)] = &[
    ("counting-only", Scene::Returns),
    ("retry-mint-there", Scene::Edges),
    ("epoch-of-hints", Scene::Edges),
    ("notice-pauses", Scene::Returns),
    ("tell-all", Scene::Returns),
    ("pull-hints", Scene::Returns),
    ("pull-hint-objects", Scene::Returns),
    ("ask-to-look", Scene::Edges),
    ("fence", Scene::Edges),
    ("write-both-rings", Scene::Edges),
    ("copy-before-ready", Scene::Changes),
    ("refuse-stale-ring", Scene::Edges),
    ("learn-ring", Scene::Edges),
    ("ask-back-lost-disk", Scene::Edges),
    ("keep-hints", Scene::Edges),
    ("tombstone-proof", Scene::Edges),
    ("ask-graves", Scene::Changes),
    ("heed-pins", Scene::Changes),
];

/// Which rules, and how many seeds.
#[derive(Debug, Clone, Args)]
pub struct MutationsArgs {
    /// How many seeds of each scene may pass before a rule's removal counts as unseen
    #[arg(long, default_value_t = 100)]
    within: u64,
    /// The rule to take out; may be given several times. All of them without it
    #[arg(long, value_name = "RULE", value_parser = removal::known)]
    rule: Vec<String>,
    /// What is simulated first; without it the scene that is known to notice, or a mixture of all
    #[arg(long, value_enum)]
    scene: Option<Scene>,
    /// How many seeds run at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=512))]
    jobs: u16,
}

/// Prints the table; exit status 1 if a rule's removal went unseen.
pub fn main(args: &MutationsArgs) -> ExitCode {
    runtime().block_on(async {
        tokio::select! {
            biased;
            () = told_to_end() => ExitCode::from(130),
            status = table(args) => status,
        }
    })
}

async fn table(args: &MutationsArgs) -> ExitCode {
    println!("| rule | what is taken out | scene | found by | seed (seeds run) | processor time |");
    println!("|---|---|---|---|---|---|");
    let mut unseen = Vec::new();
    let all =
        Rule::ALL.iter().filter(|rule| args.rule.is_empty() || args.rule.iter().any(|r| r == rule.name()));
    for rule in all {
        let before = processor_seconds();
        let Noticed { by, ran } = notice(args, *rule).await;
        let took = before.zip(processor_seconds()).map(|(before, after)| format!("{:.0} s", after - before));
        let took = took.unwrap_or_default();
        let (name, says) = (rule.name(), rule.says());
        match by {
            Some((spec, said)) => {
                let checks: BTreeSet<String> =
                    said.report.violations.iter().map(|violation| format!("{:?}", violation.check)).collect();
                let checks = checks.into_iter().collect::<Vec<_>>().join(", ");
                println!(
                    "| `{name}` | {says} | {} | {checks} | {} ({ran}) | {took} |",
                    spec.scene, spec.seed
                );
                eprintln!("{}: {}", spec.replay(), said.report.violations[0]);
            }
            None => {
                println!("| `{name}` | {says} | all | **unseen** | ({ran}) | {took} |");
                unseen.push(name);
            }
        }
    }
    if unseen.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("taken out and unseen: {}", unseen.join(", "));
    ExitCode::from(1)
}

/// Who noticed, and after how many seeds.
struct Noticed {
    by: Option<(Spec, Said)>,
    ran: u64,
}

/// Runs seeds without the rule until a check finds something that it does not find with the rule.
async fn notice(args: &MutationsArgs, rule: Rule) -> Noticed {
    let setting = Setting { removed: Some(rule.name().to_owned()), ..Setting::default() };
    let known = NOTICED_BY.iter().find(|(name, _)| *name == rule.name()).map(|(_, scene)| *scene);
    let mut specs = Vec::new();
    let first = args.scene.or(known);
    if let Some(scene) = first {
        specs.extend((1..=args.within).map(|seed| Spec::new(scene, seed, &setting)));
    }
    if args.scene.is_none() {
        let of_each = mix(&[], 1).take_while(|(_, seed)| *seed <= args.within);
        let others = of_each.filter(|(scene, _)| Some(*scene) != first);
        specs.extend(others.map(|(scene, seed)| Spec::new(scene, seed, &setting)));
    }
    let running = specs.into_iter().map(|spec| async move {
        let said = spec.run().await;
        (spec, said)
    });
    // In order, so that the table does not depend on who is faster.
    let mut running = futures_util::stream::iter(running).buffered(args.jobs.into());
    let mut ran = 0;
    while let Some((spec, said)) = running.next().await {
        ran += 1;
        if said.report.violations.is_empty() {
            continue;
        }
        let kept = Spec { setting: Setting::default(), ..spec.clone() };
        if kept.run().await.report.violations.is_empty() {
            return Noticed { by: Some((spec, said)), ran };
        }
        eprintln!("{}: a promise is broken with all rules kept", kept.replay());
    }
    Noticed { by: None, ran }
}
