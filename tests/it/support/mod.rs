//! What the tests share: clusters, clients, and waiting for conditions.

pub(crate) mod cluster;
pub(crate) mod fleet;
pub(crate) mod http;
pub(crate) mod process;
pub(crate) mod store;
pub(crate) mod wire;

use std::time::Duration;

use tokio::time::MissedTickBehavior;

pub(crate) use cluster::Cluster;
pub(crate) use http::{Answer, Client};

/// How long anything that a test waits for may take. Reached only by a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// Waits until `check` gives something, and fails the test if it never does.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            looks.tick().await;
            if let Some(found) = check().await {
                return found;
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// Bounds what must not hang.
pub(crate) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// A generator with a fixed seed: the same choices in every run.
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    /// In some other order.
    pub(crate) fn shuffle<T>(&mut self, mut items: Vec<T>) -> Vec<T> {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
        items
    }
}

/// A loopback port that stays this test's for as long as the value lives: bound but not listening, so that a
/// server can listen there, go away and come back.
#[derive(Debug)]
pub(crate) struct Port {
    _reserved: tokio::net::TcpSocket,
    address: std::net::SocketAddr,
}

impl Port {
    pub(crate) fn reserve() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        Self { _reserved: socket, address }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}
