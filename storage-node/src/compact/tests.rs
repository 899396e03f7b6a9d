//! Merging, against a model, killed at every step, and beside a process that was thought dead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crash;
mod model;
mod pieces;
mod reaping;
mod scenario;
mod zombie;
