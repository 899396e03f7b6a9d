//! What a mint must keep to, wherever it is made.

use cartwheel_core::container::Container;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Brief, MAX_SIBLING_BYTES};
use cartwheel_core::wire::{Precondition, Refusal};

use super::MintRequest;

/// What a write has reached that the log has, or has failed to keep.
pub(crate) fn reached_by_log(synced: bool) -> Durability {
    if synced { Durability::Disk } else { Durability::Memory }
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

/// Does the precondition hold, as far as this node knows?
pub(crate) fn check_precondition(
    precondition: &Precondition,
    known: &Container<Brief>,
) -> Result<(), Refusal> {
    if precondition.holds(known) { Ok(()) } else { Err(Refusal::Precondition(known.seen().clone())) }
}
