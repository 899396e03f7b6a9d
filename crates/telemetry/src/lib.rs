//! What the parts of a process say of their work, without knowing who listens: [`trace`] has spans, [`record`] has
//! times and events for histograms and counters. Where nobody listens, either costs a branch.

pub mod record;
pub mod trace;

pub use record::Recorder;
