//! The engine by itself: durability, idempotence, preconditions, damage, scans. Against a model: `model.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod concurrent;
mod damage;
mod durability;
mod mint;
mod model;
mod scan;
