//! What a write must keep to, wherever it is taken.

use cartwheel_core::container::Container;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Brief, MAX_SIBLING_BYTES};
use cartwheel_core::wire::{Precondition, Refusal};

use super::MintRequest;
use crate::log::{Log, LogRefusal};

/// What a write has reached that the log has, or has failed to keep.
pub(crate) fn reached_by_log(synced: bool) -> Durability {
    if synced { Durability::Disk } else { Durability::Memory }
}

/// Does a log have room for another write, and can that reach `durability`?
pub(crate) fn log_takes(log: Option<&Log>, durability: Durability) -> Result<(), Refusal> {
    let Some(log) = log else {
        return match durability {
            Durability::Disk => Err(Refusal::Unable("this node has no disk".to_owned())),
            Durability::Memory | Durability::Bucket => Ok(()),
        };
    };
    match log.check() {
        Ok(()) => Ok(()),
        Err(LogRefusal::Full) => Err(Refusal::Overloaded),
        // Without its log the node can still keep what it is given in memory and in the bucket.
        Err(LogRefusal::Failed(why)) if durability == Durability::Disk => Err(Refusal::Unable(why)),
        Err(LogRefusal::Failed(_)) => Ok(()),
    }
}

/// Would the key get more siblings, or more bytes of them, than one may have?
pub(crate) fn is_overfull(known: &Container<Brief>, request: &MintRequest) -> bool {
    let context = &request.version.context;
    let kept = || known.siblings().iter().filter(|s| !context.contains(&s.dot));
    let bytes: u64 = kept().map(|s| s.version.size).sum();
    let count = kept().count();
    count >= request.max_siblings as usize
        || (count > 0 && bytes + request.version.value.size() > MAX_SIBLING_BYTES)
}

/// Does the precondition hold, as far as this node knows, at the time that the write's gateway gave it?
pub(crate) fn check_precondition(
    precondition: &Precondition,
    known: &Container<Brief>,
    now_ms: u64,
) -> Result<(), Refusal> {
    if precondition.holds_at(known, now_ms) {
        Ok(())
    } else {
        Err(Refusal::Precondition(known.seen().clone()))
    }
}
