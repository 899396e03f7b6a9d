//! A write that too few replicas took goes to the bucket: into the inbox of each home, where the home finds it before
//! it counts again.

use std::collections::BTreeSet;

use tokio::time::Instant;

use cartwheel_core::clock::Dot;
use cartwheel_core::container::Container;
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::{Applied, Durability};
use cartwheel_core::record::{Brief, MAX_SIBLING_BYTES, Record, Version};
use cartwheel_core::wire::Precondition;

use super::{Short, Unwritten, Write, Written};
use crate::Shared;
use crate::coordinate::{Degraded, bucket_until};
use crate::last_resort::LastResortError;
use crate::problem::Problem;

/// Makes the write there, unless the request forbids it or there is no time left.
pub(super) async fn to_bucket(shared: &Shared, write: &Write, short: Short) -> Result<Written, Unwritten> {
    if !write.sloppy || short.late {
        let problem = Problem::quorum_missed(short.missed, short.late);
        return Err(Unwritten::Problem(problem.applied(short.applied)));
    }
    let asked = Instant::now();
    let (dot, record) = match &short.minted {
        // Minted already, by a node that could not bring it to enough others: the same version, not another one.
        Some(minted) => match Record::decode(&minted.delta) {
            Ok(record) => (minted.dot.clone(), record),
            Err(_) => return Err(failed(short, &LastResortError::Busy)),
        },
        None => match shared.last_resort.repeated(write.hash, write.version.request) {
            Some(before) => before,
            None => make(shared, write, &short).await?,
        },
    };
    let homes = &short.homes;
    homes.iter().for_each(|home| shared.trust.doubt(home));
    let until = bucket_until(write.deadline);
    let needed = needed(homes, short.n, write.w);
    match shared.last_resort.write(homes, &record, write.hash, needed, until).await {
        Ok(_) => {
            // Once more: a home may have looked, and found nothing yet.
            homes.iter().for_each(|home| shared.trust.doubt(home));
            Ok(Written {
                dot,
                n: short.n,
                tally: short.tally,
                reached: Durability::Bucket,
                degraded: Some(Degraded { as_of_ms: shared.seams.clock.now_ms(), took: asked.elapsed() }),
            })
        }
        Err(error) => Err(failed(short, &error)),
    }
}

/// A new version, if what the bucket knows of the key allows it.
async fn make(shared: &Shared, write: &Write, short: &Short) -> Result<(Dot, Record), Unwritten> {
    let known = known(shared, write, short).await?;
    let context = &write.version.context;
    let dot = shared.last_resort.next_dot(write.hash, &known, context);
    let container = Container::delta(context, dot.clone(), write.version.clone());
    let (namespace, key) = (write.namespace.clone(), write.key.clone());
    let record = Record { namespace, key, container };
    Ok(shared.last_resort.remember(write.hash, write.version.request, (dot, record)))
}

/// How many of these homes are to hold a write. While the ring changes they are those of both rings, and each ring must
/// hold it W times: so no more of all may lack it than each ring can do without.
fn needed(homes: &[NodeId], n: usize, w: usize) -> usize {
    let homes: BTreeSet<&NodeId> = homes.iter().collect();
    homes.len().saturating_sub(n.saturating_sub(w)).max(w)
}

/// What the bucket knows of the key, where the write depends on it.
async fn known(shared: &Shared, write: &Write, short: &Short) -> Result<Container<Version>, Unwritten> {
    if write.precondition == Precondition::None {
        return Ok(Container::default());
    }
    let (namespace, key) = (&write.namespace, &write.key);
    let until = bucket_until(write.deadline);
    let found = shared.last_resort.read(&short.homes, namespace, key, write.hash, until).await;
    let known = match found {
        Ok(found) => found.container,
        Err(error) => {
            let problem = Problem::quorum_missed(short.missed.clone(), false).and(error.to_string());
            return Err(Unwritten::Problem(problem.applied(short.applied)));
        }
    };
    let brief = known.map(|v| Brief::from(v));
    if !write.precondition.holds_at(&brief, shared.seams.clock.now_ms()) {
        return Err(Unwritten::Precondition(brief.into_parts().0, short.applied));
    }
    let bytes: u64 = brief.siblings().iter().map(|s| s.version.size).sum();
    let overfull = brief.siblings().len() >= write.max_siblings as usize || bytes > MAX_SIBLING_BYTES;
    let replaces_all = write.version.context.covers(brief.seen());
    if overfull && !replaces_all {
        return Err(Unwritten::TooManySiblings(brief.into_parts().0, short.applied));
    }
    Ok(known)
}

fn failed(short: Short, error: &LastResortError) -> Unwritten {
    let applied = match error {
        LastResortError::Busy => short.applied,
        LastResortError::Unreachable(_) => Applied::Unknown,
    };
    let problem = Problem::quorum_missed(short.missed, false).and(error.to_string());
    Unwritten::Problem(problem.applied(applied))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn while_the_ring_changes_both_rings_must_hold_a_write() {
        let homes = |names: &str| -> Vec<NodeId> {
            names.chars().map(|name| NodeId::new(&name.to_string()).unwrap()).collect()
        };
        // abc alone; abc and bcd; abc and cde: whichever two of five lack it, each ring has it twice or more.
        for (names, n, w, wanted) in [
            ("abc", 3, 2, 2),
            ("abcbcd", 3, 2, 3),
            ("abccde", 3, 2, 4),
            ("ab", 1, 1, 2),
            ("a", 3, 2, 2),
            ("abc", 3, 3, 3),
        ] {
            assert_eq!(needed(&homes(names), n, w), wanted, "{names}");
        }
    }
}
