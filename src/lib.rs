//! The `cartwheel` process as a library, so that `main.rs` stays thin and the tests can call the same code.

pub mod bench;
pub mod chaos;
pub mod cli;
pub mod client;
pub mod inspect;
pub mod serve;
pub mod sim;
pub mod units;
