//! Integration tests over real sockets: gateways, storage nodes and object storage talk HTTP and frames on
//! loopback, in this process (`support::cluster`) or in processes of their own (`processes`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs, clippy::print_stderr, reason = "test code")]

mod always_writeable;
mod api;
mod bad_input;
mod chaos;
mod cut_off;
mod dynamo_paper;
mod failures;
mod inspect;
mod metrics;
mod namespaces;
mod processes;
mod repair;
mod ring_changes;
mod storage_engine;
mod support;
mod telemetry;
mod under_fire;
