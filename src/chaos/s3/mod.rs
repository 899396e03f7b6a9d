//! A proxy between Cartwheel's processes and an S3 server that injects faults.

mod plan;
mod proxy;
mod socket;

pub(crate) use plan::{Plan, Storm};
pub(crate) use proxy::{LOG_PREFIX, relay};
pub use proxy::{S3ProxyArgs, Upstream, main};
