//! Object storage for a test: an S3 server over HTTP, a bucket in memory, or one that misbehaves.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cartwheel_bucket::{
    Bucket, BucketError, BucketUrl, Created, FaultyBucket, Listing, MemoryBucket, S3Bucket, S3Options,
    SharedBucket,
};
use cartwheel_s3_server::{RunningS3Server, S3Server, S3ServerConfig};
use tempfile::TempDir;
use tokio::sync::watch;

use super::Port;

/// Names an S3 server that is not ours, such as `http://127.0.0.1:5000`, to test against.
pub(crate) const FOREIGN_S3: &str = "CARTWHEEL_CONFORMANCE_S3";
pub(crate) const ACCESS_KEY: &str = "test";
pub(crate) const SECRET_KEY: &str = "test-secret";

/// Which kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An S3 server over HTTP: the embedded one, or the one that [`FOREIGN_S3`] names.
    S3,
    Memory,
    /// In memory, with faults drawn from this seed once a test asks for them.
    Faulty(u64),
    /// In memory; what is kept for a storage node can be held back from it.
    HeldBack,
}

/// A store that outlives the processes using it.
#[derive(Debug)]
pub(crate) enum Store {
    Http(HttpStore),
    Memory(SharedBucket),
    Faulty(Arc<FaultyBucket>),
    HeldBack(Arc<HeldBack>),
}

impl Store {
    pub(crate) async fn start(kind: Kind) -> Self {
        match kind {
            Kind::S3 => Self::Http(HttpStore::start().await),
            Kind::Memory => Self::Memory(Arc::new(MemoryBucket::new())),
            Kind::Faulty(seed) => {
                Self::Faulty(Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), seed)))
            }
            Kind::HeldBack => Self::HeldBack(Arc::new(HeldBack::new(Arc::new(MemoryBucket::new())))),
        }
    }

    /// A client of its own, so that no connection is shared between processes that die apart.
    pub(crate) async fn connect(&self) -> SharedBucket {
        match self {
            Self::Http(store) => Arc::new(store.connect().await),
            Self::Memory(bucket) => Arc::clone(bucket),
            Self::Faulty(bucket) => Arc::clone(bucket) as SharedBucket,
            Self::HeldBack(bucket) => Arc::clone(&bucket.inner),
        }
    }

    /// The same for a storage node.
    pub(crate) async fn connect_node(&self) -> SharedBucket {
        match self {
            Self::HeldBack(bucket) => Arc::clone(bucket) as SharedBucket,
            _ => self.connect().await,
        }
    }
}

/// A bucket whose lists of what is kept for one home can be made to wait.
#[derive(Debug)]
pub(crate) struct HeldBack {
    inner: SharedBucket,
    held: watch::Sender<bool>,
}

impl HeldBack {
    fn new(inner: SharedBucket) -> Self {
        Self { inner, held: watch::Sender::new(false) }
    }

    /// From now on, such lists wait or wait no longer.
    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }
}

#[async_trait]
impl Bucket for HeldBack {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.inner.get_range(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        self.inner.put(key, body).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        self.inner.create(key, body).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        if prefix.strip_prefix("hints/").is_some_and(|home| !home.is_empty()) {
            let mut held = self.held.subscribe();
            held.wait_for(|held| !held).await.unwrap();
        }
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(key).await
    }
}

/// An S3 server, reached over HTTP.
#[derive(Debug)]
pub(crate) struct HttpStore {
    /// Its URL.
    pub(crate) endpoint: String,
    /// `s3://name`.
    pub(crate) url: String,
    /// Whether it is the embedded one.
    pub(crate) ours: bool,
    embedded: Option<Embedded>,
}

/// The embedded server: its place, and itself if it runs.
#[derive(Debug)]
struct Embedded {
    port: Port,
    directory: TempDir,
    server: Option<RunningS3Server>,
}

impl Embedded {
    async fn start(&mut self) {
        let config = S3ServerConfig {
            directory: self.directory.path().to_owned(),
            listen: self.port.address().parse().unwrap(),
            credentials: Some((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())),
            // Processes are killed here, machines are not.
            sync: false,
        };
        self.server = Some(S3Server::start(config).await.unwrap());
    }
}

impl HttpStore {
    /// The foreign server if one is named, with a new bucket in it; else the embedded one.
    pub(crate) async fn start() -> Self {
        let store = match std::env::var(FOREIGN_S3) {
            Ok(endpoint) => {
                let url = format!("s3://it-{:016x}", rand::random::<u64>());
                Self { endpoint, url, ours: false, embedded: None }
            }
            Err(_) => {
                let directory = tempfile::tempdir().unwrap();
                let mut embedded = Embedded { port: Port::reserve(), directory, server: None };
                embedded.start().await;
                Self {
                    endpoint: format!("http://{}", embedded.port.address()),
                    url: "s3://integration".to_owned(),
                    ours: true,
                    embedded: Some(embedded),
                }
            }
        };
        store.connect().await.ensure_exists().await.unwrap();
        store
    }

    /// Stops the embedded server: nobody listens at its address. `false` for a foreign one, which stays.
    pub(crate) async fn stop(&mut self) -> bool {
        match self.embedded.as_mut().and_then(|embedded| embedded.server.take()) {
            Some(server) => {
                server.shutdown().await;
                true
            }
            None => false,
        }
    }

    /// Starts the embedded server again.
    pub(crate) async fn start_again(&mut self) {
        self.embedded.as_mut().unwrap().start().await;
    }

    pub(crate) async fn connect(&self) -> S3Bucket {
        let options = S3Options {
            endpoint: Some(self.endpoint.clone()),
            credentials: Some((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())),
            region: Some("us-east-1".to_owned()),
        };
        S3Bucket::connect(&BucketUrl::parse(&self.url).unwrap(), options).await.unwrap()
    }
}
