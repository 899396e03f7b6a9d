//! The bucket over the simulated network: hosts use the production S3 client, and an S3 server is a host like others.
//!
//! | file | duty |
//! |---|---|
//! | `client.rs` | the AWS SDK over simulated sockets |
//! | `server.rs` | an S3 server in memory, which fails now and then |

mod client;
mod server;

pub use client::bucket;
pub use server::add_server;

/// The host of the S3 server, and its port.
pub const SERVER: &str = "s3";
const PORT: u16 = 9000;
/// The S3 bucket.
const BUCKET: &str = "simulation";
/// What requests are signed with.
const ACCESS: &str = "simulated-access";
const SECRET: &str = "simulated-secret";
