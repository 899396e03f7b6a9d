//! The hasher of tables whose keys are uniform already.

use std::hash::Hasher;

/// The hash is uniform already: its halves together are the table's hash.
#[derive(Debug, Default, Clone, Copy)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(b);
        }
    }
    fn write_u128(&mut self, n: u128) {
        let folded = (n ^ (n >> 64)) & u128::from(u64::MAX);
        self.0 = u64::try_from(folded).unwrap_or(0);
    }
}
