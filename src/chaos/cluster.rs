//! A whole cluster of real processes on this machine: an S3 server, storage nodes, gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use cartwheel_bucket::{BucketUrl, Meter, S3Bucket, S3Options};
use cartwheel_cluster::membership::{self, Founding};
use cartwheel_cluster::seams::{Random, Seams};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Member, MemberState};

use super::dice::Dice;
use super::network::{Network, Size, namespaces};
use super::process::{Service, fell};
use super::s3::{LOG_PREFIX, Plan};
use super::schedule::{Fault, Link, Target};
use crate::client::{Client, Failure, Gateway, Reply};
use crate::serve::Outside;

const ACCESS_KEY: &str = "chaos";
const SECRET_KEY: &str = "chaos-secret";
const REGION: &str = "us-east-1";
/// The name of the proxy before object storage, and the files of its plan.
const S3_PROXY: &str = "s3-proxy";
const PLAN: &str = "s3-plan.json";
const NEXT_PLAN: &str = "s3-plan.json.next";
/// How long data may wait for the bucket: short, so that what a wiped disk held alone is soon elsewhere.
const FLUSH_INTERVAL: &str = "2s";
/// How nodes are told to hurry. What was dropped stays for longer than any fault lasts: readers may be that slow.
const HURRY: &[&str] = &["--delete-after", "45s", "--reap-after", "20s", "--repair-every", "15s"];
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

/// The processes. All of them end when this is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    directory: PathBuf,
    network: Network,
    store: Store,
    /// The S3 server, if it is ours, and the proxy before it, if there is one.
    bucket: Vec<Service>,
    nodes: Vec<Service>,
    gateways: Vec<Service>,
    urls: Vec<Gateway>,
    clients: Vec<Client>,
}

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) seed: u64,
    pub(crate) size: Size,
    /// Is there a proxy of faults before object storage?
    pub(crate) proxied: bool,
    /// Somebody else's S3 server, instead of our own.
    pub(crate) foreign: Option<String>,
    /// Do nodes forget, delete and compare within seconds, so that a run of minutes sees much of it?
    pub(crate) hurried: bool,
}

/// Where objects lie, and who may write them.
#[derive(Debug, Clone)]
struct Store {
    bucket: String,
    access_key: String,
    secret_key: String,
    region: String,
}

impl Store {
    fn new(parts: &Parts) -> Self {
        let own = parts.foreign.is_none();
        let setting = |name: &str, default: &str| {
            let given = if own { None } else { std::env::var(name).ok() };
            given.unwrap_or_else(|| default.to_owned())
        };
        let bucket = format!("s3://chaos-{}-{}", parts.seed, std::process::id());
        Self {
            bucket: if own { "s3://chaos".to_owned() } else { bucket },
            access_key: setting("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            secret_key: setting("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            region: setting("AWS_REGION", REGION),
        }
    }

    /// The settings of a process that finds object storage here.
    fn environment(&self, address: &str) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL_S3", format!("http://{address}")),
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("AWS_REGION", self.region.clone()),
            ("PATH", namespaces::PATH.to_owned()),
        ]
    }

    fn options(&self, address: &str) -> S3Options {
        S3Options {
            endpoint: Some(format!("http://{address}")),
            credentials: Some((self.access_key.clone(), self.secret_key.clone())),
            region: Some(self.region.clone()),
        }
    }
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
    pub(crate) async fn start(directory: &Path, network: Network, parts: &Parts) -> Result<Self, Failure> {
        let Size { nodes, gateways } = parts.size;
        let url = |at| format!("http://{}", network.called(Target::Gateway(at))).parse();
        let urls: Vec<Gateway> = (0..gateways).map(url).collect::<Result<_, _>>().map_err(Failure::failed)?;
        let members: Vec<_> = (0..nodes).map(|at| (node_id(at), network.called(Target::Node(at)))).collect();
        let mut cluster = Self {
            directory: directory.to_owned(),
            store: Store::new(parts),
            bucket: Vec::new(),
            nodes: Vec::new(),
            gateways: Vec::new(),
            clients: urls.iter().map(|url| Client::new(url.clone(), STATUS_TIMEOUT)).collect(),
            urls,
            network,
        };
        cluster.bucket = cluster.object_storage(parts);
        let hurry = if parts.hurried { HURRY } else { &[] };
        cluster.nodes = (0..nodes).map(|at| cluster.node(at, hurry)).collect();
        cluster.gateways = (0..gateways).map(|at| cluster.gateway(at)).collect();
        cluster.start_again(Target::Bucket)?;
        found(&cluster.store, &cluster.network.bucket_of(Target::Clients), parts.seed, members).await?;
        for service in cluster.nodes.iter_mut().chain(&mut cluster.gateways) {
            service.start().map_err(|e| local(&e))?;
        }
        cluster.until_whole(PATIENCE).await?;
        Ok(cluster)
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn process(&self, name: &str, target: Target, arguments: Vec<String>) -> Service {
        let environment = self.store.environment(&self.network.bucket_of(target));
        Service::new(name, &self.directory, self.network.command(target), arguments, environment)
    }

    fn object_storage(&self, parts: &Parts) -> Vec<Service> {
        let (outside, inside) = (self.network.listens(Target::Bucket), self.network.s3_server());
        let service = |name: &str, arguments: &[&str]| {
            self.process(name, Target::Bucket, arguments.iter().map(|a| (*a).to_owned()).collect())
        };
        let mut services = Vec::new();
        if parts.foreign.is_none() {
            let listen = if parts.proxied { &inside } else { &outside };
            let arguments = ["s3-server", "--listen", listen, "--data-dir", &self.path("s3"), "--no-sync"];
            services.push(service("s3-server", &arguments));
        }
        if parts.proxied {
            let own = format!("http://{inside}");
            let upstream = parts.foreign.as_deref().unwrap_or(&own);
            let (plan, seed) = (self.path(PLAN), parts.seed.to_string());
            let what = ["s3-proxy", "--listen", &outside, "--upstream", upstream];
            services.push(service(S3_PROXY, &[&what[..], &["--plan", &plan, "--seed", &seed]].concat()));
        }
        services
    }

    fn node(&self, at: usize, hurry: &[&str]) -> Service {
        let (id, target) = (node_id(at), Target::Node(at));
        let mut arguments =
            node_arguments(&self.store.bucket, &id, &self.network.listens(target), &self.path(&id), "never");
        arguments.extend(["--advertise".to_owned(), self.network.called(target)]);
        arguments.extend(hurry.iter().map(|argument| (*argument).to_owned()));
        arguments.extend(self.network.insecure().then(|| "--insecure".to_owned()));
        self.process(&id, target, arguments)
    }

    fn gateway(&self, at: usize) -> Service {
        let listen = self.network.listens(Target::Gateway(at));
        let arguments = ["gateway", "--bucket", &self.store.bucket, "--listen", &listen];
        let mut arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        arguments.extend(self.network.insecure().then(|| "--insecure".to_owned()));
        self.process(&format!("gateway-{}", at + 1), Target::Gateway(at), arguments)
    }

    /// What the network is, in words.
    pub(crate) fn network_words(&self) -> String {
        self.network.words()
    }

    /// The links that a fault takes here.
    pub(crate) fn links(&self, fault: &Fault) -> BTreeSet<Link> {
        if self.network.cuts_single_links() { fault.links.clone() } else { fault.coarse_links() }
    }

    /// From now on exactly these links carry nothing, the links of these are slow, and this is what goes wrong with
    /// requests to object storage.
    ///
    /// # Errors
    /// If the system does not let us.
    pub(crate) fn disturb(
        &mut self,
        cuts: &BTreeSet<Link>,
        slow: &BTreeSet<Target>,
        plan: Plan,
    ) -> Result<(), Failure> {
        self.network.cut(cuts)?;
        self.network.slow(slow)?;
        let text = serde_json::to_vec(&plan).unwrap_or_default();
        let (next, path) = (self.directory.join(NEXT_PLAN), self.directory.join(PLAN));
        // The proxy reads the old plan or the new one, and never half of one.
        std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &path)).map_err(|e| local(&e))
    }

    /// What the proxy before object storage did to requests, by kind.
    pub(crate) fn s3_faults(&self) -> BTreeMap<String, u64> {
        let proxy = self.bucket.iter().find(|service| service.name == S3_PROXY);
        let mut counts = BTreeMap::new();
        for line in proxy.map(Service::log).unwrap_or_default().lines() {
            if let Some(word) = line.strip_prefix(LOG_PREFIX).and_then(|rest| rest.split_whitespace().next())
            {
                *counts.entry(word.to_owned()).or_default() += 1;
            }
        }
        counts
    }

    /// A client of each gateway.
    pub(crate) fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// Where the gateways are.
    pub(crate) fn gateways(&self) -> &[Gateway] {
        &self.urls
    }

    /// The processes that a target stands for, in the order in which they are started.
    fn services(&mut self, target: Target) -> &mut [Service] {
        fn one(services: &mut [Service], at: usize) -> &mut [Service] {
            services.get_mut(at..=at).unwrap_or_default()
        }
        match target {
            Target::Bucket => &mut self.bucket,
            Target::Node(at) => one(&mut self.nodes, at),
            Target::Gateway(at) => one(&mut self.gateways, at),
            Target::Clients => &mut [],
        }
    }

    /// The name of a process.
    pub(crate) fn name(&mut self, target: Target) -> String {
        match target {
            Target::Bucket => "object storage".to_owned(),
            Target::Clients => "the clients".to_owned(),
            Target::Node(_) | Target::Gateway(_) => {
                self.services(target).first().map(|service| service.name.clone()).unwrap_or_default()
            }
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, target: Target) {
        self.services(target).iter_mut().for_each(Service::kill);
    }

    /// Starts a process again.
    ///
    /// # Errors
    /// If it can't be started.
    pub(crate) fn start_again(&mut self, target: Target) -> Result<(), Failure> {
        self.services(target).iter_mut().try_for_each(Service::start).map_err(|e| local(&e))
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// If the signal can't be sent.
    pub(crate) fn pause(&mut self, target: Target) -> Result<(), Failure> {
        self.services(target).iter_mut().try_for_each(Service::pause).map_err(|e| local(&e))
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If the signal can't be sent.
    pub(crate) fn resume(&mut self, target: Target) -> Result<(), Failure> {
        self.services(target).iter_mut().try_for_each(Service::resume).map_err(|e| local(&e))
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
        let listen = self.network.another()?;
        let arguments = node_arguments(&self.store.bucket, id, &listen, &self.path(data), join);
        let mut service = self.process(id, Target::Clients, arguments);
        service.start().map_err(|e| local(&e))?;
        self.nodes.push(service);
        Ok(())
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Service> {
        self.bucket.iter_mut().chain(&mut self.nodes).chain(&mut self.gateways)
    }

    /// Mends every link, lets everything go on that is stopped, and starts everything that is not running.
    ///
    /// # Errors
    /// If that can't be done.
    pub(crate) fn heal(&mut self) -> Result<(), Failure> {
        self.disturb(&BTreeSet::new(), &BTreeSet::new(), Plan::default())?;
        for service in self.all() {
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
        for service in self.all() {
            let Some(status) = service.ended() else { continue };
            let note = format!("{} ended by itself, {status}: {}", service.name, service.last_words());
            found.push(Ended { note, fell: fell(status) });
            service.start().map_err(|e| local(&e))?;
        }
        Ok(found)
    }

    /// How many panics the logs tell of.
    pub(crate) fn panics(&self) -> usize {
        let services = self.bucket.iter().chain(&self.nodes).chain(&self.gateways);
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

fn node_arguments(bucket: &str, id: &str, listen: &str, data: &str, join: &str) -> Vec<String> {
    let place = ["storage-node", "--id", id, "--bucket", bucket, "--listen", listen, "--data-dir", data];
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
async fn found(
    store: &Store,
    address: &str,
    seed: u64,
    members: Vec<(String, String)>,
) -> Result<(), Failure> {
    let options = store.options(address);
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("can't found the cluster: {error}"));
    let url = BucketUrl::parse(&store.bucket).map_err(|e| failed(&e))?;
    let bucket = S3Bucket::connect(&url, options.clone()).await.map_err(|e| failed(&e))?;
    let give_up = Instant::now() + PATIENCE;
    while let Err(error) = bucket.ensure_exists().await {
        if Instant::now() > give_up {
            return Err(failed(&error));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let (outside, _) = Outside::connect(&store.bucket, options, None, &Meter::new()).await?;
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
