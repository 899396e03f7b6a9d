//! Object storage for a test: an S3 server over HTTP, a bucket in memory, or one that misbehaves.

use std::sync::Arc;

use cartwheel_bucket::{BucketUrl, FaultyBucket, MemoryBucket, S3Bucket, S3Options, SharedBucket};
use cartwheel_s3_server::{RunningS3Server, S3Server, S3ServerConfig};
use tempfile::TempDir;

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
}

/// A store that outlives the processes using it.
#[derive(Debug)]
pub(crate) enum Store {
    Http(HttpStore),
    Memory(SharedBucket),
    Faulty(Arc<FaultyBucket>),
}

impl Store {
    pub(crate) async fn start(kind: Kind) -> Self {
        match kind {
            Kind::S3 => Self::Http(HttpStore::start().await),
            Kind::Memory => Self::Memory(Arc::new(MemoryBucket::new())),
            Kind::Faulty(seed) => {
                Self::Faulty(Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), seed)))
            }
        }
    }

    /// A client of its own, so that no connection is shared between processes that die apart.
    pub(crate) async fn connect(&self) -> SharedBucket {
        match self {
            Self::Http(store) => Arc::new(store.connect().await),
            Self::Memory(bucket) => Arc::clone(bucket),
            Self::Faulty(bucket) => Arc::clone(bucket) as SharedBucket,
        }
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
    _server: Option<(RunningS3Server, TempDir)>,
}

impl HttpStore {
    /// The foreign server if one is named, with a new bucket in it; else the embedded one.
    pub(crate) async fn start() -> Self {
        let store = match std::env::var(FOREIGN_S3) {
            Ok(endpoint) => {
                let url = format!("s3://it-{:016x}", rand::random::<u64>());
                Self { endpoint, url, ours: false, _server: None }
            }
            Err(_) => {
                let directory = tempfile::tempdir().unwrap();
                let config = S3ServerConfig {
                    directory: directory.path().to_owned(),
                    listen: "127.0.0.1:0".parse().unwrap(),
                    credentials: Some((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())),
                    // Processes are killed here, machines are not.
                    sync: false,
                };
                let server = S3Server::start(config).await.unwrap();
                let endpoint = format!("http://{}", server.local_addr());
                Self {
                    endpoint,
                    url: "s3://integration".to_owned(),
                    ours: true,
                    _server: Some((server, directory)),
                }
            }
        };
        store.connect().await.ensure_exists().await.unwrap();
        store
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
