//! Object storage, as Cartwheel needs it: one small trait and what stands behind it.
//!
//! | file | duty |
//! |---|---|
//! | `error.rs` | what can go wrong, and whether trying again may help |
//! | `url.rs` | `s3://name/prefix` |
//! | `settle.rs` | finds out whose body a create-if-absent left behind |
//! | `s3.rs` | any S3-compatible store |
//! | `memory.rs` | a deterministic store in memory |
//! | `faulty.rs` | a store that misbehaves from a seed |
//! | `patient.rs` | tries reads again, for work that would begin anew |
//! | `metered.rs` | counts requests by the work they are for |
//! | `prices.rs` | what these cost |
//! | `probe.rs` | asks a store whether its conditional writes can be relied on |
//! | `conformance.rs` | the cases that every bucket passes |
//!
//! This crate knows nothing of rings, clocks or segments.

mod bucket;
pub mod conformance;
mod error;
mod faulty;
mod memory;
mod metered;
mod patient;
mod prices;
mod probe;
mod s3;
mod settle;
mod splitmix;
mod url;

pub use bucket::{Bucket, Created, LIST_ALL_LIMIT, LIST_LIMIT, Listed, Listing, SharedBucket, list_all};
pub use error::BucketError;
pub use faulty::{CERTAIN, Faults, FaultyBucket, OperationFaults};
pub use memory::MemoryBucket;
pub use metered::{Meter, Usage, Work, WorkUsage};
pub use patient::PatientBucket;
pub use prices::{Prices, PricesError};
pub use probe::{ProbeVerdict, probe_conditional_create};
pub use s3::{S3Bucket, S3Options};
pub use url::{BucketUrl, BucketUrlError};
