//! The epoch under which a node mints for homes that it stands in for, and when that changes.

use cartwheel_core::mutation::{Rule, removed};

use super::Hints;
use crate::epoch::LeaseError;

impl Hints {
    /// Mints under a new epoch from now on, if anything was minted under this one: of what memory lets go of can't be
    /// known any more which dots it holds.
    pub(super) async fn renew_epoch(&self) -> Result<(), LeaseError> {
        let minted = {
            let state = self.state.lock();
            (state.minted && !removed(Rule::EpochOfHints)).then_some(state.actor.epoch)
        };
        let Some(known) = minted else { return Ok(()) };
        let epoch = self.incarnation.lease_for_hints(&*self.bucket, &self.seams, known).await?;
        let mut state = self.state.lock();
        // Another may have been faster, and something minted since.
        if state.actor.epoch == known {
            state.actor.epoch = epoch;
            state.minted = false;
        }
        Ok(())
    }

    /// Leases an epoch for this node's own writes, with another one for what it mints for others from then on: neither
    /// may mint what the other has.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) async fn lease_apart(&self) -> Result<u32, LeaseError> {
        loop {
            let known = self.newest_epoch();
            let own = self.incarnation.lease_for_hints(&*self.bucket, &self.seams, known).await?;
            let others = self.incarnation.lease_for_hints(&*self.bucket, &self.seams, own).await?;
            let mut state = self.state.lock();
            // Unless the epoch was renewed meanwhile: then `own` is that of hints now.
            if state.actor.epoch == known {
                state.actor.epoch = others;
                state.minted = false;
                return Ok(own);
            }
        }
    }
}
