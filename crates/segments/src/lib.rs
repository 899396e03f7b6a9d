//! What storage nodes leave in the bucket, for all who read it: segments, the manifest that lists them, and
//! the names of hint objects. Nothing here writes to the bucket.

pub mod hints;
mod identity;
pub mod manifests;
mod record_key;
mod segments;

pub use identity::Identity;
pub use record_key::RecordKey;
pub use segments::{Segment, SegmentError, Segments, holds_all, quietly, records_of};
