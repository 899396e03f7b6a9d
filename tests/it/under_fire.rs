//! Load on real processes while storage nodes are killed, stopped and started again (section 6 of the Dynamo paper:
//! "applications have received successful responses ... for 99.9995% of requests").

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::stream::{StreamExt, iter};
use tokio::task::JoinHandle;

use crate::support::fleet::{Fleet, GATEWAYS, NODES};
use crate::support::{Answer, Client, in_time, until};

/// Clients that write and read at the same time.
const CLIENTS: usize = 6;
/// Rounds of all clients together in each phase of the test.
const ROUNDS: usize = 150;

/// Clients at work.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<usize>>,
}

fn key(client: usize, round: usize) -> String {
    format!("load/{client}-{round}")
}

fn last_value(client: usize, round: usize) -> String {
    format!("second {client}-{round}")
}

/// One round: a new key, read through the other gateway, and written again with the clock of the read. No request may
/// fail, whatever happens to storage nodes meanwhile.
async fn round(writer: &Client, reader: &Client, client: usize, round: usize) {
    let key = key(client, round);
    let well = |answer: &Answer, status: u16| assert_eq!(answer.status, status, "{answer:?}");
    well(&writer.put(&key, "first").query("deadline=10s").send().await, 204);
    let read = reader.get(&key).query("deadline=10s").send().await;
    well(&read, 200);
    assert_eq!(read.text(), "first", "what was acknowledged is read: {read:?}");
    let put = writer.put(&key, last_value(client, round)).seen(&read);
    well(&put.query("deadline=10s").send().await, 204);
}

impl Load {
    fn start(fleet: &Fleet) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..CLIENTS).map(|client| {
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            let (writer, reader) = (fleet.gateway(client % GATEWAYS), fleet.gateway((client + 1) % GATEWAYS));
            tokio::spawn(async move {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    round(&writer, &reader, client, done).await;
                    done += 1;
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                done
            })
        });
        Self { clients: clients.collect(), stop, rounds }
    }

    /// Waits until a good many more rounds are done.
    async fn goes_on(&self) {
        let enough = self.rounds.load(Ordering::Relaxed) + ROUNDS;
        until("the load goes on", || async {
            let failed = self.clients.iter().any(JoinHandle::is_finished);
            (failed || self.rounds.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
        assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client has met a failure");
    }

    /// Ends it; gives how many rounds each client has done.
    async fn stop(self) -> Vec<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut rounds = Vec::new();
        for client in self.clients {
            rounds.push(in_time("a client ends", client).await.unwrap());
        }
        rounds
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_and_no_write_is_lost_while_nodes_are_killed_and_stopped() {
    let mut fleet = Fleet::new(11).await;
    fleet.start().await;
    let load = Load::start(&fleet);
    load.goes_on().await;
    // Two at once: with N = 3, some keys have one home left.
    for node in [1, 3] {
        fleet.kill(node);
    }
    load.goes_on().await;
    fleet.gateways_reach(NODES - 2).await;
    load.goes_on().await;
    for node in [1, 3] {
        fleet.start_one(node);
    }
    fleet.is_whole().await;
    load.goes_on().await;
    // One that hangs: its connections stay open and say nothing, for longer than it takes to give it up.
    fleet.signal(0, "STOP");
    load.goes_on().await;
    fleet.gateways_reach(NODES - 1).await;
    load.goes_on().await;
    fleet.signal(0, "CONT");
    fleet.is_whole().await;
    load.goes_on().await;
    let rounds = load.stop().await;

    let all =
        rounds.into_iter().enumerate().flat_map(|(client, rounds)| (0..rounds).map(move |n| (client, n)));
    let reading = all.map(|(client, n)| {
        let read = fleet.gateway(n % GATEWAYS).get(&key(client, n)).query("r=all&sloppy=false&deadline=30s");
        async move {
            let read = read.send().await;
            // A node that hung may carry out late what another was asked instead: beside it, never in its place.
            let values = read.values();
            assert!(values.contains(&Some(last_value(client, n))), "{read:?}");
            assert!(values.len() <= 2, "{read:?}");
        }
    });
    iter(reading).buffer_unordered(64).for_each(async |()| ()).await;
}
