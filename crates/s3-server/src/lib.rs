//! An S3 server over a directory, for one machine: `cartwheel dev` and tests.
//!
//! | file | duty |
//! |---|---|
//! | `names.rs` | keys as file names |
//! | `store.rs` | the directory, changed in single steps |
//! | `list.rs` | keys in order |
//! | `body.rs` | bodies in and out of files, checksums |
//! | `multipart.rs` | uploads in parts |
//! | `service.rs` | the S3 operations |
//! | `server.rs` | connections |
//!
//! What differs from S3: an `ETag` is unique to each write but not a hash of
//! the body (it ends in `-1`, as those of multipart uploads do); content types
//! and user metadata are not kept; there are no versions and no ACLs.

mod body;
mod list;
mod multipart;
mod names;
mod server;
mod service;
mod store;

pub use server::{RunningS3Server, S3Server, S3ServerConfig};
