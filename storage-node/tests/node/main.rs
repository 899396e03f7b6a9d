//! Whole storage nodes on real sockets, called as a gateway calls them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod away;
mod change_order;
mod damage;
mod repairing;
mod rigged;
mod serving;
mod support;
mod taking_over;
