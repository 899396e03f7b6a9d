//! What storage nodes leave in the bucket, for all who read it: segments, the manifest that lists them, what
//! each object counts for, and the names of hint objects. Nothing here writes to the bucket, but pins and the
//! deletion of old snapshots.

mod clocks;
mod cursor;
pub mod hints;
mod identity;
pub mod inventory;
pub mod manifests;
pub mod pins;
mod record_key;
pub mod salvage;
mod segments;
pub mod trees;
pub mod verify;

pub use clocks::Clocks;
pub use cursor::{Cursor, Item};
pub use identity::Identity;
pub use record_key::RecordKey;
pub use segments::{Segment, SegmentError, Segments, holds_all, quietly, records_of};
