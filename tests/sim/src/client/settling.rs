//! A client that waits until nothing is amiss any more, and reads everything.

use std::time::Duration;

use http::Method;

use super::{Client, now};
use crate::claims::Ask;
use crate::faults::{LATE, NODES, joins};
use crate::report::Check;
use crate::world::pass;

/// How long after all faults have ended the late storage node may take to join, and each key to be readable from all its
/// homes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take until nobody keeps anything for others: a home looks at the bucket twice a minute.
const SETTLED: Duration = Duration::from_secs(40);

impl Client {
    /// The members, as a gateway tells of them.
    pub async fn members(&mut self) -> Vec<serde_json::Value> {
        let answer = self.send(Method::GET, "/v1/cluster", &[], "").await;
        let cluster: serde_json::Value =
            answer.and_then(|a| serde_json::from_slice(&a.body).ok()).unwrap_or_default();
        cluster["members"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the late storage node holds its share.
    async fn see_the_join(&mut self) {
        let give_up = now() + PATIENCE;
        while !self.members().await.iter().any(|m| m["id"] == LATE && m["state"] == "active") {
            if now() > give_up {
                return self
                    .violate(Check::Ring, &format!("{LATE} has not joined though all faults have ended"));
            }
            pass(Duration::from_millis(500)).await;
        }
    }

    /// What keeps the cluster from being settled: nodes that do not count, or that keep something for others.
    async fn unsettled(&mut self) -> Vec<String> {
        let mut amiss = Vec::new();
        let members = self.members().await;
        let expected = NODES.len() - usize::from(joins(self.shared.seed).is_none());
        if members.len() != expected {
            amiss.push(format!("{} members of {expected}", members.len()));
        }
        for member in members {
            let id = member["id"].as_str().unwrap_or_default();
            let standing = member["standing"].as_str().unwrap_or("unknown");
            if member["reachable"] != true || standing != "counting" || member["partitions_not_held"] != 0 {
                let (reachable, not_held) = (&member["reachable"], &member["partitions_not_held"]);
                amiss.push(format!("{id} is {standing}, reachable: {reachable}, not held: {not_held}"));
            }
            if member["hints"].as_array().is_none_or(|hints| !hints.is_empty()) {
                amiss.push(format!("{id} keeps hints: {}", member["hints"]));
            }
        }
        let listing = self.shared.objects.list("hints/", None, 100).await.unwrap();
        amiss.extend(listing.objects.into_iter().map(|object| object.key));
        amiss
    }

    async fn see_it_settle(&mut self) {
        let began = now();
        loop {
            let amiss = self.unsettled().await;
            self.shared.trace.line(&self.name, &format!("amiss: {amiss:?}"));
            if amiss.is_empty() {
                *self.shared.settled.lock() = Some(now());
                return;
            }
            if now() > began + SETTLED {
                return self.violate(
                    Check::Unsettled,
                    &format!("not settled long after all faults have ended: {amiss:?}"),
                );
            }
            pass(Duration::from_millis(500)).await;
        }
    }

    /// Once all writers have stopped, looks whether the cluster settles, and reads every key from all its homes.
    pub async fn look_at_the_end(mut self) {
        while *self.shared.stopped.lock() < self.shared.writers {
            pass(Duration::from_millis(100)).await;
        }
        // Where they are told to stop early.
        let calm = *self.shared.calm.lock();
        while now() <= calm {
            pass(calm.saturating_sub(now()) + Duration::from_millis(1)).await;
        }
        if joins(self.shared.seed).is_some() {
            self.see_the_join().await;
        }
        self.see_it_settle().await;
        let give_up = now() + PATIENCE;
        let keys = self.shared.checker.lock().keys();
        for key in keys {
            while self.try_read(&key, &Ask::at_rest()).await.is_none() {
                if now() > give_up {
                    self.violate(
                        Check::Answer,
                        &format!("{key} can't be read from all homes though all faults have ended"),
                    );
                    break;
                }
                pass(Duration::from_millis(200)).await;
            }
        }
    }
}
