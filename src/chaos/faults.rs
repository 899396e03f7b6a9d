//! Carries out the schedule: hits processes and links when it is time, and lets go of them again.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::cluster::Cluster;
use super::reach::promised;
use super::s3::Plan;
use super::schedule::{Fault, How, Link, Schedule, Shape, Target};
use super::wipe::{self, Past};
use super::world::World;
use crate::client::{Failure, Output};

/// How often processes that ended by themselves are looked for, and notes are printed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Prints one line with the time since the start before it.
pub(crate) fn say(world: &World, output: &mut Output, text: &str) {
    output.note(&format!("{:>7.1} s  {text}", world.now().as_secs_f64()));
}

/// Prints what the others had to say.
pub(crate) fn say_notes(world: &World, output: &mut Output) {
    let notes = world.lock().take_notes();
    for note in notes {
        say(world, output, &note);
    }
}

/// Injects faults until the load has lasted `duration`. What is broken then is left to whoever calls.
///
/// # Errors
/// If a process of this machine can't be started or signalled.
pub(crate) async fn inject(
    cluster: &mut Cluster,
    schedule: &mut Schedule,
    world: &World,
    duration: Duration,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut open: Vec<(Duration, Fault)> = Vec::new();
    let mut upcoming = schedule.next();
    world.promise(true);
    let mut past = Past::default();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let begin = upcoming.as_ref().map(|fault| fault.at);
        let end = open.iter().map(|(end, _)| *end).min();
        let next = begin.into_iter().chain(end).min().unwrap_or(duration).min(duration);
        tokio::select! {
            () = tokio::time::sleep_until(world.instant(next)) => {}
            _ = looks.tick() => {
                supervise(cluster, world, output)?;
                continue;
            }
        }
        if next >= duration {
            return Ok(());
        }
        if end == Some(next) {
            let (over, still): (Vec<_>, Vec<_>) = open.into_iter().partition(|(end, _)| *end <= next);
            open = still;
            disturb(cluster, &open)?;
            for (_, fault) in over {
                finish(cluster, &fault, world, output)?;
            }
        } else if let Some(fault) = upcoming.take() {
            upcoming = schedule.next();
            if strike(cluster, &fault, &past, world, output).await? {
                // A fault may have been late: it lasts as long as it should all the same.
                let end = fault.at.max(world.now()) + fault.lasting;
                past.note(&fault, world.now(), end);
                open.push((end, fault));
                disturb(cluster, &open)?;
            }
        }
        world.promise(promised(schedule.size(), open.iter().map(|(_, fault)| fault)));
    }
}

/// Has the links and object storage as the faults want them that have not ended.
fn disturb(cluster: &mut Cluster, open: &[(Duration, Fault)]) -> Result<(), Failure> {
    let cuts: BTreeSet<Link> = open.iter().flat_map(|(_, fault)| cluster.links(fault)).collect();
    let slow = open.iter().filter(|(_, fault)| fault.how == How::Slow);
    let slow: BTreeSet<Target> = slow.flat_map(|(_, fault)| fault.targets.iter().copied()).collect();
    let storm = open.iter().find_map(|(_, fault)| match fault.how {
        How::Storm(storm) => Some(storm.plan()),
        _ => None,
    });
    cluster.disturb(&cuts, &slow, storm.unwrap_or(Plan::default()))
}

/// Starts again what ended by itself, and prints notes.
pub(crate) fn supervise(cluster: &mut Cluster, world: &World, output: &mut Output) -> Result<(), Failure> {
    for ended in cluster.supervise()? {
        let mut state = world.lock();
        state.counts.ended += 1;
        state.counts.fell += u64::from(ended.fell);
        state.note(ended.note);
    }
    say_notes(world, output);
    Ok(())
}

fn names(cluster: &mut Cluster, targets: &[Target]) -> String {
    let names: Vec<String> = targets.iter().map(|target| cluster.name(*target)).collect();
    names.join(", ")
}

async fn may_wipe(cluster: &Cluster, node: usize, past: Result<(), String>) -> Result<(), String> {
    past?;
    wipe::safe(cluster, node).await
}

/// Does it part those who write from those who read? What one side acknowledges the other can't know.
fn parts(fault: &Fault) -> bool {
    matches!(fault.how, How::Cut(_) | How::Slow)
}

/// Begins a fault. Gives `false` for a wipe that would not be safe now.
async fn strike(
    cluster: &mut Cluster,
    fault: &Fault,
    past: &Past,
    world: &World,
    output: &mut Output,
) -> Result<bool, Failure> {
    let names = names(cluster, &fault.targets);
    let lasting = fault.lasting.as_secs_f64();
    if let (How::Wipe, [Target::Node(node)]) = (fault.how, fault.targets.as_slice())
        && let Err(why) = may_wipe(cluster, *node, past.allows(world.now())).await
    {
        say(world, output, &format!("no wipe of {names}: {why}"));
        return Ok(false);
    }
    world.fault_begins(fault.word(), parts(fault));
    let what = match fault.how {
        How::Kill => format!("kill {names}"),
        How::Pause => format!("pause {names}"),
        How::Wipe => format!("kill and wipe {names}"),
        How::Cut(Shape::OneWay) => format!("cut one way: {names}"),
        How::Cut(Shape::TwoWay) => format!("cut both ways: {names}"),
        How::Cut(Shape::Isolation) => format!("cut off {names}"),
        How::Cut(Shape::Split) => format!("split: {names} from the others"),
        How::Slow => format!("slow links of {names}"),
        How::Storm(storm) => format!("{names}: {}", storm.words()),
    };
    say(world, output, &format!("{what}, for {lasting:.1} s"));
    for target in &fault.targets {
        match fault.how {
            How::Pause => cluster.pause(*target)?,
            How::Kill | How::Wipe => cluster.kill(*target),
            How::Cut(_) | How::Slow | How::Storm(_) => {}
        }
        if let (How::Wipe, Target::Node(node)) = (fault.how, *target) {
            cluster.wipe(node)?;
        }
    }
    Ok(true)
}

/// Ends a fault.
fn finish(cluster: &mut Cluster, fault: &Fault, world: &World, output: &mut Output) -> Result<(), Failure> {
    let names = names(cluster, &fault.targets);
    for target in &fault.targets {
        match fault.how {
            How::Pause => cluster.resume(*target)?,
            How::Kill | How::Wipe => cluster.start_again(*target)?,
            How::Cut(_) | How::Slow | How::Storm(_) => {}
        }
    }
    world.fault_ends(parts(fault));
    let what = match fault.how {
        How::Pause => "goes on",
        How::Kill | How::Wipe => "started again",
        How::Cut(_) => "linked again",
        How::Slow => "fast again",
        How::Storm(_) => "well again",
    };
    say(world, output, &format!("{names} {what}"));
    Ok(())
}
