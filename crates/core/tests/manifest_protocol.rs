//! The manifest protocol of a storage node (docs/manifest-protocol.md) as a model: a small world of processes, a bucket
//! and a client, and every order in which their steps can come. With all rules nothing goes wrong; without any one of
//! them something does, and the shortest way there is printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "manifest_protocol/borrower.rs"]
mod borrower;
#[path = "manifest_protocol/checks.rs"]
mod checks;
#[path = "manifest_protocol/compaction.rs"]
mod compaction;
#[path = "manifest_protocol/each_rule.rs"]
mod each_rule;
#[path = "manifest_protocol/everything.rs"]
mod everything;
#[path = "manifest_protocol/rules.rs"]
mod rules;
#[path = "manifest_protocol/search.rs"]
mod search;
#[path = "manifest_protocol/steps.rs"]
mod steps;
#[path = "manifest_protocol/world.rs"]
mod world;
