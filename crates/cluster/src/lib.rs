//! Who is in the cluster, and how to call them.
//!
//! [`membership`] is the truth about members (ring documents in the bucket), [`gossip`] says which of them live,
//! and that there is a newer ring;
//! [`peer`] and [`frames`] are the two ends of a call; [`http_server`] is the accept loop of every port, and
//! [`metrics`] what it shows of the process; [`trace`] is what goes along with calls; [`seams`] is what a simulation
//! replaces.

mod connection;
mod detector;
pub mod frames;
pub mod gossip;
pub mod http_server;
pub mod membership;
pub mod metrics;
mod outbox;
pub mod peer;
mod read_buffer;
pub mod seams;
pub mod secret;
pub mod trace;

pub use connection::{CallError, Outcome, ReplyTo};
