//! Dynamo itself, without I/O: ring, clocks, quorum state machines, codecs.
//!
//! Nothing here reads a clock, draws a random number, or touches a socket or a file: time and randomness
//! are arguments, decisions are return values. Start with [`container`] (versions) and [`ring`] (placement).

pub mod clock;
pub mod clock_index;
pub mod codec;
pub mod compaction;
pub mod container;
pub mod frame;
pub mod get;
#[cfg(test)]
mod golden;
pub mod gossip;
pub mod hash;
pub mod header;
pub mod manifest;
pub mod merkle;
pub mod mutation;
pub mod names;
pub mod namespace;
pub mod put;
pub mod quorum;
pub mod ranges;
pub mod record;
pub mod ring;
pub mod segment;
pub mod standing;
pub mod trace;
pub mod wire;
