//! A whole cluster of real processes on loopback: an S3 server, storage nodes, gateways.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpSocket;
use tokio::time::Instant;

use cartwheel_bucket::{BucketUrl, Meter, S3Bucket, S3Options};
use cartwheel_cluster::membership::{self, Founding};
use cartwheel_cluster::seams::{Random, Seams};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Member, MemberState};

use super::dice::Dice;
use super::process::{Service, fell};
use super::schedule::Target;
use crate::client::{Client, Failure, Gateway, Reply};
use crate::serve::Outside;

const BUCKET: &str = "s3://chaos";
const ACCESS_KEY: &str = "chaos";
const SECRET_KEY: &str = "chaos-secret";
const REGION: &str = "us-east-1";
/// How long data may wait for the bucket: short, so that what a wiped disk held alone is soon elsewhere.
const FLUSH_INTERVAL: &str = "2s";
/// Caches of a node: the carts are small.
const CACHE: &str = "32MiB";
/// How long a cluster may take to serve.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a cluster that starts is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a gateway may take to say how the cluster is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// The stream of the seed that the cluster is founded with.
const FOUNDING: u64 = u64::MAX - 1;
/// And to plan or to apply a change of the ring.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(20);

/// A loopback port that stays ours: bound but not listening, so that a process can listen there, go away and
/// come back.
#[derive(Debug)]
struct Port {
    _reserved: TcpSocket,
    address: SocketAddr,
}

impl Port {
    fn reserve() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = socket.local_addr()?;
        Ok(Self { _reserved: socket, address })
    }
}

/// The processes. All of them end when this is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    directory: PathBuf,
    bucket: Service,
    nodes: Vec<Service>,
    gateways: Vec<Service>,
    urls: Vec<Gateway>,
    clients: Vec<Client>,
    environment: Vec<(&'static str, String)>,
    /// Held for as long as the processes may need their ports.
    ports: Vec<Port>,
}

/// A process that ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What to say of it.
    pub(crate) note: String,
    /// By a signal: a crash.
    pub(crate) fell: bool,
}

fn local(error: &io::Error) -> Failure {
    Failure::failed(format!("can't run a cluster on this machine: {error}"))
}

impl Cluster {
    /// Starts all of it in `directory`, and waits until every gateway reaches every node.
    ///
    /// # Errors
    /// What does not start within a minute.
    pub(crate) async fn start(
        directory: &Path,
        seed: u64,
        nodes: usize,
        gateways: usize,
    ) -> Result<Self, Failure> {
        let ports: Vec<Port> = (0..=nodes + gateways)
            .map(|_| Port::reserve())
            .collect::<io::Result<_>>()
            .map_err(|e| local(&e))?;
        let address = |at: usize| ports[at].address.to_string();
        let endpoint = format!("http://{}", address(0));
        let environment = vec![
            ("AWS_ENDPOINT_URL_S3", endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
        ];
        let service = |name: &str, arguments: &[&str]| {
            let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
            Service::new(name, directory, arguments, environment.clone())
        };
        let path = |name: &str| directory.join(name).display().to_string();
        let s3 = ["s3-server", "--listen", &address(0), "--data-dir", &path("s3"), "--no-sync"];
        let node = |at: usize| {
            let id = node_id(at);
            let arguments = node_arguments(&id, &address(1 + at), &path(&id), "never");
            Service::new(&id, directory, arguments, environment.clone())
        };
        let gateway = |at: usize| {
            let listen = address(1 + nodes + at);
            service(&format!("gateway-{}", at + 1), &["gateway", "--bucket", BUCKET, "--listen", &listen])
        };
        let url = |at: usize| format!("http://{}", address(1 + nodes + at)).parse().map_err(Failure::failed);
        let urls: Vec<Gateway> = (0..gateways).map(url).collect::<Result<_, _>>()?;
        let members: Vec<_> = (0..nodes).map(|at| (node_id(at), address(1 + at))).collect();
        let mut cluster = Self {
            directory: directory.to_owned(),
            bucket: service("s3-server", &s3),
            nodes: (0..nodes).map(node).collect(),
            gateways: (0..gateways).map(gateway).collect(),
            clients: urls.iter().map(|url| Client::new(url.clone(), STATUS_TIMEOUT)).collect(),
            urls,
            environment: environment.clone(),
            ports,
        };
        cluster.bucket.start().map_err(|e| local(&e))?;
        found(&endpoint, seed, members).await?;
        for service in cluster.nodes.iter_mut().chain(&mut cluster.gateways) {
            service.start().map_err(|e| local(&e))?;
        }
        cluster.until_whole(PATIENCE).await?;
        Ok(cluster)
    }

    /// A client of each gateway.
    pub(crate) fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// Where the gateways are.
    pub(crate) fn gateways(&self) -> &[Gateway] {
        &self.urls
    }

    fn service(&mut self, target: Target) -> Option<&mut Service> {
        match target {
            Target::Bucket => Some(&mut self.bucket),
            Target::Node(at) => self.nodes.get_mut(at),
            Target::Gateway(at) => self.gateways.get_mut(at),
        }
    }

    /// The name of a process.
    pub(crate) fn name(&mut self, target: Target) -> String {
        self.service(target).map(|service| service.name.clone()).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, target: Target) {
        if let Some(service) = self.service(target) {
            service.kill();
        }
    }

    /// Starts a process again.
    ///
    /// # Errors
    /// If it can't be started.
    pub(crate) fn start_again(&mut self, target: Target) -> Result<(), Failure> {
        self.service(target).map_or(Ok(()), Service::start).map_err(|e| local(&e))
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// If the signal can't be sent.
    pub(crate) fn pause(&mut self, target: Target) -> Result<(), Failure> {
        self.service(target).map_or(Ok(()), Service::pause).map_err(|e| local(&e))
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If the signal can't be sent.
    pub(crate) fn resume(&mut self, target: Target) -> Result<(), Failure> {
        self.service(target).map_or(Ok(()), Service::resume).map_err(|e| local(&e))
    }

    /// Deletes the data directory of a node that was killed.
    ///
    /// # Errors
    /// If it can't be deleted.
    pub(crate) fn wipe(&mut self, node: usize) -> Result<(), Failure> {
        let data = self.directory.join(node_id(node));
        std::fs::remove_dir_all(&data).map_err(|e| Failure::failed(format!("{}: {e}", data.display())))
    }

    /// A client of a gateway for changes of the ring.
    pub(crate) fn admin(&self) -> Client {
        let first = self.urls.first().cloned();
        first.map_or_else(|| self.clients[0].clone(), |url| Client::new(url, ADMIN_TIMEOUT))
    }

    /// Where a node listens.
    pub(crate) fn address(&self, node: usize) -> Option<String> {
        self.nodes.iter().find(|service| service.name == node_id(node)).and_then(Service::listens)
    }

    /// Starts a further node, which adds itself to the ring.
    ///
    /// # Errors
    /// If it can't be started.
    pub(crate) fn add(&mut self, node: usize) -> Result<(), Failure> {
        let id = node_id(node);
        self.start_elsewhere(&id, &id, "auto")
    }

    /// Kills a node, deletes its disk, and starts a process of the same name in another directory at another port.
    ///
    /// # Errors
    /// If that can't be done.
    pub(crate) fn replace(&mut self, node: usize) -> Result<(), Failure> {
        self.remove(node);
        self.wipe(node)?;
        let id = node_id(node);
        self.start_elsewhere(&id, &format!("{id}-again"), "never")
    }

    /// Kills a node for good.
    pub(crate) fn remove(&mut self, node: usize) {
        // It is killed when it is dropped.
        self.nodes.retain(|service| service.name != node_id(node));
    }

    fn start_elsewhere(&mut self, id: &str, data: &str, join: &str) -> Result<(), Failure> {
        let port = Port::reserve().map_err(|e| local(&e))?;
        let data = self.directory.join(data).display().to_string();
        let arguments = node_arguments(id, &port.address.to_string(), &data, join);
        let mut service = Service::new(id, &self.directory, arguments, self.environment.clone());
        service.start().map_err(|e| local(&e))?;
        self.ports.push(port);
        self.nodes.push(service);
        Ok(())
    }

    /// Lets everything go on that is stopped, and starts everything that is not running.
    ///
    /// # Errors
    /// If that can't be done.
    pub(crate) fn heal(&mut self) -> Result<(), Failure> {
        let services = std::iter::once(&mut self.bucket).chain(&mut self.nodes).chain(&mut self.gateways);
        for service in services {
            let healed = match () {
                () if service.paused() => service.resume(),
                () if !service.runs() => service.start(),
                () => Ok(()),
            };
            healed.map_err(|e| local(&e))?;
        }
        Ok(())
    }

    /// Finds processes that ended by themselves, and starts them again, as a supervisor would.
    ///
    /// # Errors
    /// If one can't be started.
    pub(crate) fn supervise(&mut self) -> Result<Vec<Ended>, Failure> {
        let mut found = Vec::new();
        let services = std::iter::once(&mut self.bucket).chain(&mut self.nodes).chain(&mut self.gateways);
        for service in services {
            let Some(status) = service.ended() else { continue };
            let note = format!("{} ended by itself, {status}: {}", service.name, service.last_words());
            found.push(Ended { note, fell: fell(status) });
            service.start().map_err(|e| local(&e))?;
        }
        Ok(found)
    }

    /// How many panics the logs tell of.
    pub(crate) fn panics(&self) -> usize {
        let services = std::iter::once(&self.bucket).chain(&self.nodes).chain(&self.gateways);
        services.map(Service::panics).sum()
    }

    /// Does every gateway reach every node? Gives the hints that are still to be handed over.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) async fn whole(&self) -> Result<u64, String> {
        let mut hints = 0;
        for client in &self.clients {
            hints = hints.max(look(client).await?);
        }
        Ok(hints)
    }

    /// Does some gateway reach every node?
    ///
    /// # Errors
    /// What is missing, as the last gateway sees it.
    pub(crate) async fn nodes_up(&self) -> Result<(), String> {
        let mut missing = String::new();
        for client in &self.clients {
            match look(client).await {
                Ok(_) => return Ok(()),
                Err(seen) => missing = seen,
            }
        }
        Err(missing)
    }

    /// Waits for [`Cluster::whole`], starting what ended by itself meanwhile.
    ///
    /// # Errors
    /// What is still missing after `patience`.
    pub(crate) async fn until_whole(&mut self, patience: Duration) -> Result<(), Failure> {
        let give_up = Instant::now() + patience;
        loop {
            let Err(missing) = self.whole().await else { return Ok(()) };
            self.supervise()?;
            if Instant::now() > give_up {
                return Err(Failure::failed(format!("the cluster does not get ready: {missing}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn node_arguments(id: &str, listen: &str, data: &str, join: &str) -> Vec<String> {
    let place = ["storage-node", "--id", id, "--bucket", BUCKET, "--listen", listen, "--data-dir", data];
    let how = ["--flush-interval", FLUSH_INTERVAL, "--cache", CACHE, "--join", join];
    place.iter().chain(&how).map(|argument| (*argument).to_owned()).collect()
}

/// The name of a node.
pub(crate) fn node_id(at: usize) -> String {
    let letter = u8::try_from(at).map_or('z', |at| char::from(b'a'.saturating_add(at)));
    format!("node-{letter}")
}

async fn look(client: &Client) -> Result<u64, String> {
    let reply = client.get("/v1/cluster").await.and_then(Reply::success);
    let status = reply.and_then(|reply| reply.json()).map_err(|failure| failure.message)?;
    all_reachable(&status)
}

/// What `GET /v1/cluster` says: are all members reachable, and how many hints do they keep?
fn all_reachable(status: &Value) -> Result<u64, String> {
    let members = status.get("members").and_then(Value::as_array).ok_or("no members are shown")?;
    let mut kept = 0;
    for member in members {
        if member.get("reachable") != Some(&Value::Bool(true)) {
            let id = member.get("id").and_then(Value::as_str).unwrap_or_default();
            return Err(format!("{id} is not reachable"));
        }
        let hints = member.get("hints").and_then(Value::as_array).into_iter().flatten();
        kept += hints.filter_map(|hints| hints.get("keys")?.as_u64()).sum::<u64>();
    }
    Ok(kept)
}

/// The seed's own randomness: where partitions lie follows from it.
#[derive(Debug)]
struct Drawn(Mutex<Dice>);

impl Random for Drawn {
    fn next_u64(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

/// Waits for object storage, makes the bucket, and founds the cluster with all of its members, so that none has
/// to join.
async fn found(endpoint: &str, seed: u64, members: Vec<(String, String)>) -> Result<(), Failure> {
    let options = S3Options {
        endpoint: Some(endpoint.to_owned()),
        credentials: Some((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())),
        region: Some(REGION.to_owned()),
    };
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("can't found the cluster: {error}"));
    let url = BucketUrl::parse(BUCKET).map_err(|e| failed(&e))?;
    let bucket = S3Bucket::connect(&url, options.clone()).await.map_err(|e| failed(&e))?;
    let give_up = Instant::now() + PATIENCE;
    while let Err(error) = bucket.ensure_exists().await {
        if Instant::now() > give_up {
            return Err(failed(&error));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let (outside, _) = Outside::connect(BUCKET, options, None, &Meter::new()).await?;
    let member = |(id, address): (String, String)| {
        let id = NodeId::new(&id).map_err(|e| failed(&e))?;
        let zone = "default".to_owned();
        let state = MemberState::Active;
        Ok(Member { id, address, zone, weight: 1, state, becomes: None, dead: false })
    };
    let members = members.into_iter().map(member).collect::<Result<_, Failure>>()?;
    let random = Arc::new(Drawn(Mutex::new(Dice::new(seed, FOUNDING))));
    let seams = Seams { random, ..outside.seams };
    let document = membership::found(&seams, Founding::default(), members, "cartwheel chaos");
    let document = document.map_err(|e| failed(&e))?;
    match membership::create(&*outside.bucket, &document).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(failed(&"somebody else founded it")),
        Err(error) => Err(failed(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_whole_once_all_are_reachable() {
        let status = |reachable: bool, hints: u64| {
            let members = [
                serde_json::json!({"id": "node-a", "reachable": true, "hints": []}),
                serde_json::json!({"id": "node-b", "reachable": reachable, "hints": [{"keys": hints}, {"keys": 1}]}),
            ];
            all_reachable(&serde_json::json!({ "members": members }))
        };
        assert_eq!(status(true, 3), Ok(4));
        assert_eq!(status(false, 0), Err("node-b is not reachable".to_owned()));
        assert!(all_reachable(&serde_json::json!({})).is_err());
    }
}
