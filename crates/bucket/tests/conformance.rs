//! Every bucket passes the same cases: in memory, faulty, and S3 over HTTP.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cartwheel_bucket::{
    Bucket, BucketError, BucketUrl, Created, Faults, FaultyBucket, MemoryBucket, OperationFaults,
    ProbeVerdict, S3Bucket, S3Options, conformance, probe_conditional_create,
};
use cartwheel_s3_server::{RunningS3Server, S3Server, S3ServerConfig};

/// The suite's own number: a case that falls out of it must not go unnoticed.
const CASES: u32 = 34;

async fn serve(directory: &Path, sync: bool) -> RunningS3Server {
    let config = S3ServerConfig {
        directory: directory.to_path_buf(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        credentials: Some(("access".into(), "secret".into())),
        sync,
    };
    S3Server::start(config).await.unwrap()
}

async fn connect(endpoint: String, url: &str) -> S3Bucket {
    let options = S3Options {
        endpoint: Some(endpoint),
        credentials: Some(("access".into(), "secret".into())),
        region: Some("us-east-1".into()),
    };
    S3Bucket::connect(&BucketUrl::parse(url).unwrap(), options).await.unwrap()
}

async fn connect_to(server: &RunningS3Server, url: &str) -> S3Bucket {
    let bucket = connect(format!("http://{}", server.local_addr()), url).await;
    bucket.ensure_exists().await.unwrap();
    bucket
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory() {
    assert_eq!(conformance::run(Arc::new(MemoryBucket::new())).await, Ok(CASES));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn faulty_without_faults() {
    let bucket = FaultyBucket::new(Arc::new(MemoryBucket::new()), 1);
    assert_eq!(conformance::run(Arc::new(bucket)).await, Ok(CASES));
}

/// Creates settle whatever happens to their attempts, so all cases still hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn faulty_creates_that_lose_requests_and_answers() {
    let bucket = Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), 7));
    let create = OperationFaults { refuse: 4_000, mute: 30_000, slow: 0 };
    bucket.set(Faults { create, ..Faults::default() });
    assert_eq!(conformance::run(bucket.clone()).await, Ok(CASES));
    assert!(bucket.injected() > 100, "the faults did happen");
}

/// The suite must be able to fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_ignores_conditions_does_not_pass() {
    let bucket = FaultyBucket::new(Arc::new(MemoryBucket::new()), 1);
    bucket.set(Faults { ignore_conditions: true, ..Faults::default() });
    let why = conformance::run(Arc::new(bucket)).await.unwrap_err();
    assert!(why.starts_with("create_of_a_taken_key: "), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn embedded_server_over_http() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), false).await;
    let bucket = connect_to(&server, "s3://conformance").await;
    assert_eq!(conformance::run(Arc::new(bucket)).await, Ok(CASES));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn embedded_server_that_syncs_under_a_prefix() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), true).await;
    let outside = connect_to(&server, "s3://conformance").await;
    outside.put("a/cluster-2/conformance/x", Bytes::from_static(b"not ours")).await.unwrap();
    let bucket = connect_to(&server, "s3://conformance/a/cluster").await;
    assert_eq!(conformance::run(Arc::new(bucket.clone())).await, Ok(CASES));
    bucket.put("k", Bytes::from_static(b"v")).await.unwrap();
    assert_eq!(outside.get("a/cluster/k").await.unwrap(), "v", "keys are stored under the prefix");
    assert_eq!(bucket.list("", None, 10).await.unwrap().objects.len(), 1, "and listed without it");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn creates_settle_over_http_too() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), false).await;
    let inner = connect_to(&server, "s3://conformance").await;
    let bucket = FaultyBucket::new(Arc::new(inner), 3);
    let create = OperationFaults { refuse: 0, mute: 65_536, slow: 0 };
    bucket.set(Faults { create, ..Faults::default() });
    assert_eq!(bucket.create("a", Bytes::from_static(b"mine")).await, Ok(Created::New));
    assert_eq!(bucket.create("a", Bytes::from_static(b"theirs")).await, Ok(Created::Exists));
    assert_eq!(probe_conditional_create(&bucket, 5).await, Ok(ProbeVerdict::Sound));
    server.shutdown().await;
}

#[tokio::test]
async fn errors_say_what_would_help() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), false).await;
    let endpoint = format!("http://{}", server.local_addr());
    let missing = connect(endpoint.clone(), "s3://missing").await;
    let error = missing.get("k").await.unwrap_err();
    assert!(matches!(&error, BucketError::Refused { code, .. } if code == "NoSuchBucket"), "{error}");
    assert!(matches!(missing.put("k", Bytes::new()).await, Err(BucketError::Refused { status: 404, .. })));

    let options = S3Options {
        endpoint: Some(endpoint.clone()),
        credentials: Some(("access".into(), "wrong".into())),
        region: None,
    };
    let url = BucketUrl::parse("s3://missing").unwrap();
    let stranger = S3Bucket::connect(&url, options).await.unwrap();
    let error = stranger.get("k").await.unwrap_err();
    assert!(matches!(error, BucketError::Refused { status: 403, .. }), "{error}");
    assert!(error.to_string().contains("access key"), "{error}");
    let error = stranger.create("k", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, BucketError::Refused { status: 403, .. }), "{error}");

    server.shutdown().await;
    let error = missing.get("k").await.unwrap_err();
    assert!(error.is_retryable(), "nobody listens any more: {error}");
}

/// A server that nobody here wrote: set `CARTWHEEL_CONFORMANCE_S3` to its URL.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn foreign_server() {
    let Some(endpoint) = std::env::var("CARTWHEEL_CONFORMANCE_S3").ok().filter(|url| !url.is_empty()) else {
        // Straight to the stream: the test harness would swallow a print.
        let skipped =
            "SKIPPED: no foreign S3 server was tested; set CARTWHEEL_CONFORMANCE_S3=http://HOST:PORT\n";
        std::io::stderr().write_all(skipped.as_bytes()).unwrap();
        return;
    };
    let bucket = connect(endpoint, "s3://cartwheel-conformance/run").await;
    bucket.ensure_exists().await.unwrap();
    assert_eq!(conformance::run(Arc::new(bucket)).await, Ok(CASES));
}
