//! Is it safe to delete the disk of a node? Only if the others, or the bucket, hold everything that it has acknowledged.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::Value;

use super::cluster::{Cluster, node_id};
use super::schedule::{Fault, How, Target, WIPE_GAP, WIPE_REST};
use crate::client::{Client, Reply, key_path};

/// Where the probes lie, and how many keys are tried until one has the node among its homes.
const NAMESPACE: &str = "probes";
const KEYS: usize = 64;

/// How long it may take to find out.
const PATIENCE: Duration = Duration::from_secs(10);

/// What happened so far, as far as it matters. The schedule knows when it should have; a machine that stood still for a
/// while makes up for it at once.
#[derive(Debug, Default)]
pub(crate) struct Past {
    wiped: Option<Duration>,
    /// Until when links and object storage were unwell.
    unwell: Option<Duration>,
}

impl Past {
    /// A fault begins, or it would have until `end`.
    pub(crate) fn note(&mut self, fault: &Fault, now: Duration, end: Duration) {
        if fault.how == How::Wipe {
            self.wiped = Some(now);
        }
        let links = matches!(fault.how, How::Cut(_) | How::Slow | How::Storm(_));
        if links || fault.targets.contains(&Target::Bucket) {
            self.unwell = self.unwell.max(Some(end));
        }
    }

    /// Is it long enough ago?
    ///
    /// # Errors
    /// What is not.
    pub(crate) fn allows(&self, now: Duration) -> Result<(), String> {
        match () {
            () if self.wiped.is_some_and(|at| now < at + WIPE_GAP) => {
                Err("another was wiped lately".to_owned())
            }
            () if self.unwell.is_some_and(|until| now < until + WIPE_REST) => {
                Err("links or object storage were unwell lately".to_owned())
            }
            () => Ok(()),
        }
    }
}

/// Has this node put into the bucket all that it acknowledged until now? A node flushes in order: once a write of this
/// moment is in the bucket at all of its homes, this node among them, everything older is.
///
/// # Errors
/// Why that is not certain.
pub(crate) async fn safe(cluster: &Cluster, node: usize) -> Result<(), String> {
    let found = tokio::time::timeout(PATIENCE, flushed(cluster, node)).await;
    found.unwrap_or_else(|_| Err(format!("it is not known in time what {} holds", node_id(node))))
}

async fn flushed(cluster: &Cluster, node: usize) -> Result<(), String> {
    cluster.nodes_up().await?;
    let id = node_id(node);
    let mut why = String::new();
    for client in cluster.clients() {
        match probe(client, &id).await {
            Ok(()) => return Ok(()),
            Err(failed) => why = failed,
        }
    }
    Err(format!("{id} may hold what is not in the bucket: {why}"))
}

async fn probe(client: &Client, id: &str) -> Result<(), String> {
    for number in 0..KEYS {
        let key = format!("probe-{number}");
        let path = format!("/v1/cluster/locate?namespace={NAMESPACE}&key={key}");
        let said = client.get(&path).await.and_then(Reply::success).and_then(|reply| reply.json());
        if !is_home(&said.map_err(|failure| failure.message)?, id) {
            continue;
        }
        let path = key_path(NAMESPACE, key.as_bytes()) + "?w=all&durability=bucket&sloppy=false&deadline=4s";
        let sent = client.send(Method::PUT, &path, HeaderMap::new(), Bytes::from_static(b"probe")).await;
        return sent.and_then(Reply::success).map(drop).map_err(|failure| failure.message);
    }
    Err("no key was found that it is a home of".to_owned())
}

fn is_home(located: &Value, id: &str) -> bool {
    let homes = located.get("homes").and_then(Value::as_array);
    homes.is_some_and(|homes| homes.iter().any(|home| home == id))
}

#[cfg(test)]
mod tests {
    use super::super::schedule::{FaultKind, Schedule};
    use super::*;

    #[test]
    fn wipes_keep_their_distance() {
        let seconds = Duration::from_secs;
        let mut schedule = Schedule::new(1, 5, 2, &[FaultKind::Wipe, FaultKind::Bucket]);
        let mut next = |how| schedule.find(|fault| (fault.how == How::Wipe) == how).into_iter();
        let (wipes, outages) = (next(true), next(false));
        let mut past = Past::default();
        assert!(past.allows(seconds(0)).is_ok());
        outages.for_each(|fault| past.note(&fault, seconds(0), seconds(5)));
        assert!(past.allows(seconds(14)).is_err() && past.allows(seconds(15)).is_ok());
        wipes.for_each(|fault| past.note(&fault, seconds(20), seconds(22)));
        assert!(past.allows(seconds(49)).is_err() && past.allows(seconds(50)).is_ok());
    }

    #[test]
    fn homes_are_found_in_what_locate_says() {
        let located = serde_json::json!({"homes": ["node-a", "node-c"], "fallbacks": ["node-b"]});
        assert!(is_home(&located, "node-c") && !is_home(&located, "node-b"));
        assert!(!is_home(&serde_json::json!({}), "node-a"));
    }
}
