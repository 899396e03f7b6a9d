//! Five storage nodes and two gateways, each a process of the real binary, over one S3 server.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tempfile::TempDir;

use super::cluster::{members, reachable};
use super::process::Process;
use super::store::HttpStore;
use super::{Client, Dice, Port, until};

/// Storage nodes; their numbers come first.
pub(crate) const NODES: usize = 5;
pub(crate) const GATEWAYS: usize = 2;

/// The processes, with the disks and the bucket that outlive them.
#[derive(Debug)]
pub(crate) struct Fleet {
    store: HttpStore,
    directory: TempDir,
    dice: Dice,
    /// Nodes first.
    ports: Vec<Port>,
    running: Vec<Option<Process>>,
}

impl Fleet {
    pub(crate) async fn new(seed: u64) -> Self {
        let store = HttpStore::start().await;
        eprintln!(
            "==== processes run against {} S3 server at {}",
            if store.ours { "the EMBEDDED" } else { "a FOREIGN" },
            store.endpoint
        );
        let directory = tempfile::tempdir().unwrap();
        let mut fleet = Self { store, directory, dice: Dice(seed), ports: Vec::new(), running: Vec::new() };
        fleet.new_ports();
        fleet
    }

    /// Addresses as other machines would have them.
    pub(crate) fn new_ports(&mut self) {
        self.ports = (0..NODES + GATEWAYS).map(|_| Port::reserve()).collect();
        self.running = self.ports.iter().map(|_| None).collect();
    }

    pub(crate) fn data(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("data-{node}"))
    }

    /// Starts all seven in some order, and waits until both gateways reach all five nodes.
    pub(crate) async fn start(&mut self) {
        for at in self.dice.shuffle((0..NODES + GATEWAYS).collect()) {
            self.start_one(at);
        }
        self.is_whole().await;
    }

    /// Starts one process.
    pub(crate) fn start_one(&mut self, at: usize) {
        let (address, data) = (self.ports[at].address(), self.data(at));
        let bucket = ["--bucket", &self.store.url, "--listen", &address];
        let process = |name: &str, arguments: &[&str]| {
            let arguments = [arguments, &bucket].concat();
            Process::start(name, self.directory.path(), Some(&self.store), &arguments)
        };
        self.running[at] = Some(if at < NODES {
            let id = format!("node-{}", char::from(b'a' + u8::try_from(at).unwrap()));
            let data = data.to_str().unwrap();
            // Nothing gets into the bucket that is not asked to be there.
            process(&id, &["storage-node", "--id", &id, "--data-dir", data, "--flush-interval", "1h"])
        } else {
            process(&format!("gateway-{at}"), &["gateway"])
        });
    }

    /// Waits until both gateways reach all five nodes.
    pub(crate) async fn is_whole(&self) {
        for gateway in 0..GATEWAYS {
            let client = &self.gateway(gateway);
            until("a gateway process reaches all nodes", || async move {
                let status = ask(client, "/v1/cluster").await?;
                let counting = members(&status).filter(|m| m["standing"] == "counting").count();
                (counting == NODES && status["pending_change"].is_null()).then_some(())
            })
            .await;
        }
    }

    /// Waits until both gateways reach so many nodes.
    pub(crate) async fn gateways_reach(&self, nodes: usize) {
        for gateway in 0..GATEWAYS {
            let client = &self.gateway(gateway);
            until("a gateway process reaches so many nodes", || async move {
                (reachable(&ask(client, "/v1/cluster").await?) == nodes).then_some(())
            })
            .await;
        }
    }

    pub(crate) fn gateway(&self, number: usize) -> Client {
        Client::new(&self.ports[NODES + number].address())
    }

    /// SIGKILL to one.
    pub(crate) fn kill(&mut self, at: usize) {
        self.take(at).kill();
    }

    /// Any other signal to one.
    pub(crate) fn signal(&self, at: usize, signal: &str) {
        self.running[at].as_ref().unwrap().signal(signal);
    }

    /// One that runs, to be ended by the caller.
    pub(crate) fn take(&mut self, at: usize) -> Process {
        self.running[at].take().unwrap()
    }

    /// All that run, nodes first.
    pub(crate) fn take_all(&mut self) -> Vec<Process> {
        self.running.iter_mut().filter_map(Option::take).collect()
    }

    /// SIGKILL to all seven.
    pub(crate) fn kill_all(&mut self) {
        for process in self.take_all() {
            process.kill();
        }
    }

    pub(crate) async fn write(&self, keys: std::ops::Range<usize>, durability: &str) {
        let clients: Vec<Client> = (0..GATEWAYS).map(|n| self.gateway(n)).collect();
        let writing = keys.map(|n| {
            let put = clients[n % GATEWAYS].put(&format!("load/{n}"), format!("value {n}"));
            put.query(&format!("durability={durability}&deadline=30s")).gives(204)
        });
        join_all(writing).await;
    }

    /// Reads each through the gateway that did not write it.
    pub(crate) async fn all_there(&self, keys: std::ops::Range<usize>) {
        let clients: Vec<Client> = (0..GATEWAYS).map(|n| self.gateway(n)).collect();
        let reading = keys.map(|n| {
            let get = clients[(n + 1) % GATEWAYS].get(&format!("load/{n}"));
            async move { assert_eq!(get.gives(200).await.text(), format!("value {n}")) }
        });
        join_all(reading).await;
    }
}

/// A JSON document of a gateway that may not serve yet.
pub(crate) async fn ask(client: &Client, path: &str) -> Option<Value> {
    let gateway = format!("http://{}", client.address()).parse().unwrap();
    let http = cartwheel::client::Client::new(gateway, Duration::from_secs(5));
    let reply = http.get(path).await.ok().filter(|reply| reply.status == 200)?;
    Some(reply.json().unwrap())
}
