//! A cluster of real processes on loopback: an S3 server, storage nodes, a gateway; and what can be asked of it.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use cartwheel::client::{Client, Failure, Gateway};
use cartwheel_bucket::{BucketUrl, Listed, S3Bucket, S3Options, list_all};
use cartwheel_cluster::membership::{self, Founding};
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::{ClusterSecret, NodeToken};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Member, MemberState};
use cartwheel_core::wire::{Reply, Request};

use crate::direct::Direct;
use crate::metrics::Metrics;
use crate::process::{Options, Service};

const BUCKET: &str = "s3://storage";
const ACCESS_KEY: &str = "storage";
const SECRET_KEY: &str = "storage-secret";
const REGION: &str = "us-east-1";
/// Most replicas of a key.
const REPLICAS: u32 = 3;
/// Where ports for processes begin.
const FIRST_PORT: u16 = 10_000;
/// Where the kernel's ports for outgoing connections begin, unless it says otherwise.
const USUAL_OUTGOING: u16 = 32_768;
/// How many ports are tried before one is free.
const PORT_TRIES: u32 = 100;
/// How long processes may take to serve.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often something is looked at that shall come.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a request of this tool may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How a cluster is to be.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Where its directory is made.
    pub(crate) directory: PathBuf,
    /// Storage nodes.
    pub(crate) nodes: u8,
    /// Further options of every storage node and their values.
    pub(crate) node_options: Vec<(&'static str, String)>,
    /// And of the gateway.
    pub(crate) gateway_options: Vec<(&'static str, String)>,
    /// How long nothing may change in the bucket before it counts as quiet, and how long that is waited for.
    pub(crate) quiet_for: Duration,
    pub(crate) settle: Duration,
}

/// One storage node.
#[derive(Debug)]
pub(crate) struct Node {
    /// The process.
    pub(crate) service: Service,
    /// Where it listens.
    pub(crate) address: String,
    client: Client,
}

/// The processes. All of them end, and their files go, when this is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The storage nodes.
    pub(crate) nodes: Vec<Node>,
    /// Where the gateway is.
    pub(crate) url: Gateway,
    /// A client of it.
    pub(crate) client: Client,
    /// The bucket.
    pub(crate) bucket: S3Bucket,
    /// What it takes to call a node.
    pub(crate) seams: Seams,
    pub(crate) token: NodeToken,
    /// The version of the ring, which stays the first one.
    pub(crate) ring_version: u64,
    quiet_for: Duration,
    settle: Duration,
    gateway: Service,
    s3: Service,
    directory: TempDir,
}

/// What waiting for quiet came to.
#[derive(Debug, Clone)]
pub(crate) struct Settled {
    /// How long it took, the time for which nothing changed included.
    pub(crate) took: Duration,
    /// What was still going on, if it did not become quiet.
    pub(crate) unrest: Option<String>,
}

impl Settled {
    /// In words.
    pub(crate) fn words(&self) -> String {
        let seconds = self.took.as_secs_f64();
        match &self.unrest {
            None => format!("quiet after {seconds:.0} s"),
            Some(unrest) => format!("not quiet in {seconds:.0} s ({unrest})"),
        }
    }
}

impl Cluster {
    /// Starts all of it, and waits until every node counts.
    ///
    /// # Errors
    /// What does not start.
    pub(crate) async fn start(setup: &Setup) -> Result<Self, Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Failure::failed(format!("{what}: {error}"));
        let directory = tempfile::Builder::new().prefix("storage-").tempdir_in(&setup.directory);
        let directory = directory.map_err(|e| failed(&setup.directory.display().to_string(), &e))?;
        let seams = Seams::real();
        let mut addresses = Vec::new();
        for _ in 0..usize::from(setup.nodes) + 2 {
            let port = free_port(&seams, &addresses).await?;
            addresses.push(port);
        }
        let (Some(s3_address), Some(gateway_address)) = (addresses.pop(), addresses.pop()) else {
            return Err(Failure::failed("no ports"));
        };
        let endpoint = format!("http://{s3_address}");
        let environment = vec![
            ("AWS_ENDPOINT_URL_S3", endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
        ];
        let service = |name: &str, arguments: &[&str]| {
            let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
            Service::new(name, directory.path(), arguments, environment.clone())
        };
        let path = |name: &str| directory.path().join(name).display().to_string();
        let s3_data = path("s3");
        let mut s3 = service(
            "s3-server",
            &["s3-server", "--listen", &s3_address, "--data-dir", &s3_data, "--no-sync"],
        );
        s3.start()?;
        let bucket = connect(&endpoint).await?;
        let secret = ClusterSecret::from_bucket(&bucket, &*seams.random).await;
        let token = secret.map_err(|e| failed("the cluster's secret", &e))?.node_token();

        let mut nodes = Vec::new();
        let mut members = Vec::new();
        for (address, letter) in addresses.iter().zip('a'..='z') {
            let id = format!("node-{letter}");
            let data = path(&id);
            let mut arguments = vec!["storage-node", "--id", &id, "--bucket", BUCKET, "--listen", address];
            arguments.extend(["--data-dir", &data, "--join", "never"]);
            for (option, value) in &setup.node_options {
                arguments.extend([*option, value.as_str()]);
            }
            let client = Client::new(url(address)?, TIMEOUT);
            nodes.push(Node { service: service(&id, &arguments), address: address.clone(), client });
            let id = NodeId::new(&id).map_err(|e| failed("a node's name", &e))?;
            let (address, zone) = (address.clone(), "default".to_owned());
            let state = MemberState::Active;
            members.push(Member { id, address, zone, weight: 1, state, becomes: None, dead: false });
        }
        let founding = Founding { replicas: replicas(setup.nodes), ..Founding::default() };
        let document = membership::found(&seams, founding, members, "cargo bench --bench storage");
        let document = document.map_err(|e| failed("the ring", &e))?;
        let ring_version = document.version;
        let created = membership::create(&bucket, &document).await.map_err(|e| failed("the ring", &e))?;
        if !created {
            return Err(Failure::failed("somebody else founded the cluster"));
        }
        let mut arguments = vec!["gateway", "--bucket", BUCKET, "--listen", &gateway_address];
        for (option, value) in &setup.gateway_options {
            arguments.extend([*option, value.as_str()]);
        }
        let gateway = service("gateway", &arguments);
        let url = url(&gateway_address)?;
        let client = Client::new(url.clone(), TIMEOUT);
        let (quiet_for, settle) = (setup.quiet_for, setup.settle);
        let mut cluster = Self {
            nodes,
            url,
            client,
            bucket,
            seams,
            token,
            ring_version,
            quiet_for,
            settle,
            gateway,
            s3,
            directory,
        };
        for node in &mut cluster.nodes {
            node.service.start()?;
        }
        cluster.gateway.start()?;
        cluster.until_whole().await?;
        Ok(cluster)
    }

    /// The directory, for files of the part that runs.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Calls that go straight to a node.
    pub(crate) fn direct(&self, node: usize) -> Option<Direct> {
        let address = self.nodes.get(node)?.address.clone();
        Some(Direct::new(self.seams.clone(), self.token.clone(), address, self.ring_version))
    }

    /// The name and process id of every storage node and of the gateway.
    pub(crate) fn processes(&self) -> Vec<(String, u32)> {
        let services = self.nodes.iter().map(|node| &node.service).chain([&self.gateway]);
        services.filter_map(|service| Some((service.name.clone(), service.pid()?))).collect()
    }

    /// Deletes the data directory of a node that was killed.
    ///
    /// # Errors
    /// If it can't be deleted.
    pub(crate) fn wipe(&self, node: usize) -> Result<(), Failure> {
        let Some(node) = self.nodes.get(node) else { return Ok(()) };
        let data = self.directory.path().join(&node.service.name);
        fs::remove_dir_all(&data).map_err(|e| Failure::failed(format!("{}: {e}", data.display())))
    }

    /// What the nodes count of themselves, in their order, and then the gateway; `None` where the binary counts
    /// nothing.
    ///
    /// # Errors
    /// If one does not answer.
    pub(crate) async fn metrics(&self) -> Result<Option<Vec<Metrics>>, Failure> {
        let mut all = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(mut metrics) = Metrics::of(&node.client, &self.token).await? else { return Ok(None) };
            metrics.add_status(&self.status(at).await.map_err(Failure::failed)?);
            all.push(metrics);
        }
        all.extend(Metrics::of(&self.client, &self.token).await?);
        Ok(Some(all))
    }

    /// Waits until the gateway reaches every node and every node counts.
    ///
    /// # Errors
    /// What is still missing after two minutes, or a process that ended.
    pub(crate) async fn until_whole(&mut self) -> Result<(), Failure> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let Err(missing) = self.whole().await else { return Ok(()) };
            self.check_alive()?;
            if Instant::now() > give_up {
                return Err(Failure::failed(format!("the cluster does not get ready: {missing}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Has a process ended by itself?
    fn check_alive(&mut self) -> Result<(), Failure> {
        let services = self.nodes.iter_mut().map(|node| &mut node.service);
        for service in services.chain([&mut self.gateway, &mut self.s3]) {
            if service.ended().is_some() {
                return Err(Failure::failed(format!("{} ended: {}", service.name, service.last_words())));
            }
        }
        Ok(())
    }

    async fn whole(&self) -> Result<(), String> {
        let reply = self.client.get("/v1/cluster").await.and_then(cartwheel::client::Reply::success);
        let status = reply.and_then(|reply| reply.json()).map_err(|failure| failure.message)?;
        let members = status.get("members").and_then(Value::as_array).ok_or("no members are shown")?;
        if members.iter().any(|member| member.get("reachable") != Some(&Value::Bool(true))) {
            return Err("the gateway does not reach every node".to_owned());
        }
        for node in 0..self.nodes.len() {
            self.at_rest(node, false).await?;
        }
        Ok(())
    }

    /// Does a node count for everything? If `flushed`: with all it holds in the bucket, its index whole and no
    /// hints for others.
    async fn at_rest(&self, node: usize, flushed: bool) -> Result<(), String> {
        let status = self.status(node).await?;
        let mut wanted = vec![("standing", Value::from("counting")), ("partitions_not_held", Value::from(0))];
        if flushed {
            wanted.extend([("memtable_keys", Value::from(0)), ("index_complete", Value::from(true))]);
            wanted.push(("hints", Value::Array(Vec::new())));
        }
        for (name, wanted) in wanted {
            if let Some(found) = status.get(name).filter(|found| **found != wanted) {
                let node = status.get("id").and_then(Value::as_str).unwrap_or_default();
                return Err(format!("{node}: {name} is {found}"));
            }
        }
        Ok(())
    }

    /// How a node says it is.
    async fn status(&self, node: usize) -> Result<Value, String> {
        let mut direct = self.direct(node).ok_or("no such node")?;
        match direct.call(Request::Status).await {
            Some(Reply::Status(bytes)) => serde_json::from_slice(&bytes).map_err(|e| e.to_string()),
            _ => Err("a node does not tell how it is".to_owned()),
        }
    }

    /// The objects of storage nodes.
    ///
    /// # Errors
    /// Those of the bucket.
    pub(crate) async fn objects(&self) -> Result<Vec<Listed>, Failure> {
        objects(&self.bucket).await
    }

    /// Waits until every node counts and has put all it holds into the bucket, and for so long as was asked for no
    /// segment there came, went or changed: flushes, compactions and deletions are done. Waits no longer than was
    /// asked for.
    ///
    /// # Errors
    /// If the bucket does not answer, or a process ended.
    pub(crate) async fn quiet(&mut self) -> Result<Settled, Failure> {
        let began = Instant::now();
        let mut last = segments(self.objects().await?);
        let mut since = Instant::now();
        let mut seen = Some("too short a wait".to_owned());
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.check_alive()?;
            let now = segments(self.objects().await?);
            let mut unrest = changed(&last, &now).map(|key| format!("{key} came, went or changed"));
            for node in 0..self.nodes.len() {
                unrest = unrest.or(self.at_rest(node, true).await.err());
            }
            if unrest.is_some() {
                since = Instant::now();
                seen = unrest;
            }
            last = now;
            let took = began.elapsed();
            if since.elapsed() >= self.quiet_for {
                return Ok(Settled { took, unrest: None });
            }
            if took >= self.settle {
                return Ok(Settled { took, unrest: seen });
            }
        }
    }
}

/// The segments among the objects. What keeps their books is rewritten now and then though nothing happens.
fn segments(mut objects: Vec<Listed>) -> Vec<Listed> {
    objects.retain(|object| object.key.ends_with(".seg"));
    objects
}

/// The first object that is in one list and not, or not the same, in the other.
fn changed<'a>(before: &'a [Listed], after: &'a [Listed]) -> Option<&'a str> {
    let odd = |all: &'a [Listed], others: &[Listed]| all.iter().find(|object| !others.contains(object));
    if before == after { None } else { odd(after, before).or(odd(before, after)).map(|o| o.key.as_str()) }
}

/// N of a cluster with so many nodes.
pub(crate) fn replicas(nodes: u8) -> u32 {
    u32::from(nodes).min(REPLICAS)
}

/// The objects of all storage nodes.
///
/// # Errors
/// Those of the bucket.
pub(crate) async fn objects(bucket: &S3Bucket) -> Result<Vec<Listed>, Failure> {
    list_all(bucket, "nodes/").await.map_err(|e| Failure::failed(format!("can't list the bucket: {e}")))
}

/// Their bytes by kind (the folder behind the node's name, or the file's name), over all nodes.
pub(crate) fn by_kind(objects: &[Listed]) -> std::collections::BTreeMap<String, u64> {
    let mut kinds = std::collections::BTreeMap::new();
    for object in objects {
        let kind = object.key.split('/').nth(2).unwrap_or_default();
        *kinds.entry(kind.to_owned()).or_default() += object.size;
    }
    kinds
}

/// The bytes of all of them.
pub(crate) fn total(objects: &[Listed]) -> u64 {
    objects.iter().map(|object| object.size).sum()
}

/// The options of a storage node that the binary knows, of those wanted.
///
/// # Errors
/// If it can't be asked.
pub(crate) fn known_options(
    wanted: Vec<(&'static str, String)>,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let options = Options::of("storage-node")?;
    Ok(wanted.into_iter().filter(|(option, _)| options.know(option)).collect())
}

fn url(address: &str) -> Result<Gateway, Failure> {
    format!("http://{address}").parse().map_err(Failure::failed)
}

/// Waits for the S3 server and makes the bucket.
async fn connect(endpoint: &str) -> Result<S3Bucket, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("the bucket: {error}"));
    let options = S3Options {
        endpoint: Some(endpoint.to_owned()),
        credentials: Some((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())),
        region: Some(REGION.to_owned()),
    };
    let url = BucketUrl::parse(BUCKET).map_err(|e| failed(&e))?;
    let bucket = S3Bucket::connect(&url, options).await.map_err(|e| failed(&e))?;
    let give_up = Instant::now() + PATIENCE;
    while let Err(error) = bucket.ensure_exists().await {
        if Instant::now() > give_up {
            return Err(failed(&error));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(bucket)
}

/// An address on loopback where nobody listens, below the ports that the kernel gives to outgoing connections: so
/// none of those takes it while its process is away.
async fn free_port(seams: &Seams, taken: &[String]) -> Result<String, Failure> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let low = range.split_ascii_whitespace().next().and_then(|low| low.parse().ok());
    let range: Range<u16> = FIRST_PORT..low.unwrap_or(USUAL_OUTGOING);
    for _ in 0..PORT_TRIES {
        let offset = seams.random.below(range.len() as u64);
        let port = u64::from(range.start) + offset;
        let address = format!("127.0.0.1:{port}");
        if !range.is_empty() && !taken.contains(&address) && seams.net.listen(&address).await.is_ok() {
            return Ok(address);
        }
    }
    Err(Failure::failed(format!("no free port from {} to {}", range.start, range.end)))
}
