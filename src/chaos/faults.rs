//! Carries out the schedule: hits processes when it is time, and lets go of them again.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::cluster::Cluster;
use super::schedule::{Fault, How, Schedule, Target};
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

/// Injects faults until the load has lasted `duration`. What is broken then stays broken.
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
            for (_, fault) in over {
                finish(cluster, &fault, world, output)?;
            }
        } else if let Some(fault) = upcoming.take() {
            upcoming = schedule.next();
            if strike(cluster, &fault, world, output).await? {
                open.push((fault.at + fault.lasting, fault));
            }
        }
    }
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

/// Begins a fault. Gives `false` for a wipe that would not be safe now.
async fn strike(
    cluster: &mut Cluster,
    fault: &Fault,
    world: &World,
    output: &mut Output,
) -> Result<bool, Failure> {
    let names = names(cluster, &fault.targets);
    let lasting = fault.lasting.as_secs_f64();
    if fault.how == How::Wipe
        && let Err(missing) = cluster.nodes_up().await
    {
        // The schedule knows when a node was started, not how long it took.
        say(world, output, &format!("no wipe of {names}: {missing}"));
        return Ok(false);
    }
    world.fault_begins(fault.word());
    let verb = match fault.how {
        How::Kill => "kill",
        How::Pause => "pause",
        How::Wipe => "kill and wipe",
    };
    say(world, output, &format!("{verb} {names} for {lasting:.1} s"));
    for target in &fault.targets {
        match fault.how {
            How::Pause => cluster.pause(*target)?,
            How::Kill | How::Wipe => cluster.kill(*target),
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
        }
    }
    world.fault_ends();
    let what = if fault.how == How::Pause { "goes on" } else { "started again" };
    say(world, output, &format!("{names} {what}"));
    Ok(())
}
