//! The steps of a simulation: what libraries see of the clock follows it.

use std::time::Duration;

use turmoil::Sim;

/// What the process's own clock shows at the beginning: the first of January 2026.
const BEGINNING: Duration = Duration::from_millis(1_767_225_600_000);

/// From now on the process sees simulated time, and random bytes that follow from the seed.
pub fn begin(seed: u64) {
    cartwheel_interpose::freeze(BEGINNING, seed);
}

/// One step; whether all clients have finished.
pub fn step(sim: &mut Sim<'_>) -> turmoil::Result<bool> {
    cartwheel_interpose::set_elapsed(sim.elapsed());
    sim.step()
}
