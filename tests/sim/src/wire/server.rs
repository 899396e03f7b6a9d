//! An S3 server in memory as a host of the simulation. Now and then it refuses before anything is done, fails when it
//! is done, breaks off a body, or takes its time, until all faults have ended; whatever it answers, what it did stays
//! done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cartwheel_bucket::{BucketError, Created, SharedBucket};
use cartwheel_cluster::seams::Random;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, ETag, GetObjectInput, GetObjectOutput, HeadBucketInput,
    HeadBucketOutput, ListObjectsV2Input, ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput,
    StreamingBlob, Timestamp,
};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use turmoil::Sim;

use super::{ACCESS, PORT, SECRET, SERVER};
use crate::cluster::Place;
use crate::options::Level;
use crate::world::{SeededRandom, pass};

/// One request in so many meets each kind of fault; one in a tenth of that is slow.
const RARE: u64 = 150;
/// The longest that a slow answer takes, in milliseconds.
const SLOWEST: u64 = 800;

/// Adds the server to the simulation, if it is one where hosts reach the bucket over the network. Objects outlive it.
pub fn add_server(sim: &mut Sim<'_>, place: &Place) {
    if place.level == Level::Memory {
        return;
    }
    let store = Arc::new(Store {
        objects: Arc::clone(&place.objects),
        random: SeededRandom::new(place.seed, "s3 server"),
        well: Arc::clone(&place.well),
    });
    sim.host(SERVER, move || {
        let mut builder = S3ServiceBuilder::new(Shared(Arc::clone(&store)));
        builder.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
        serve(builder.build())
    });
}

async fn serve(service: S3Service) -> turmoil::Result {
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let service = service.clone();
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new();
            // Who breaks off a connection is no concern of the server's.
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

struct Store {
    objects: SharedBucket,
    random: SeededRandom,
    well: Arc<AtomicBool>,
}

struct Shared(Arc<Store>);

impl Store {
    /// One time in so many, while the server is not well.
    fn once_in(&self, times: u64) -> bool {
        !self.well.load(Ordering::Relaxed) && self.random.below(times) == 0
    }

    fn rarely(&self) -> bool {
        self.once_in(RARE)
    }

    /// Before anything is done.
    async fn begin(&self) -> S3Result<()> {
        if self.once_in(RARE / 10) {
            pass(self.random.millis(0..SLOWEST)).await;
        }
        if self.rarely() {
            return Err(s3_error!(SlowDown, "please reduce your request rate"));
        }
        Ok(())
    }

    /// When it is done.
    fn end<T>(&self, output: T) -> S3Result<S3Response<T>> {
        if self.rarely() {
            return Err(s3_error!(InternalError, "we encountered an internal error"));
        }
        Ok(S3Response::new(output))
    }
}

fn refused(error: BucketError) -> S3Error {
    match error {
        BucketError::NotFound { .. } => s3_error!(NoSuchKey),
        BucketError::Refused { status: 416, .. } => s3_error!(InvalidRange),
        other => s3_error!(InternalError, "{other}"),
    }
}

fn tag(bytes: &Bytes) -> ETag {
    ETag::Strong(format!("{:x}-1", bytes.len()))
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let collected = Body::from(body).collect().await;
    Ok(collected.map_err(|_| s3_error!(IncompleteBody))?.to_bytes())
}

#[async_trait::async_trait]
impl S3 for Shared {
    async fn head_bucket(&self, _: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.0.begin().await?;
        self.0.end(HeadBucketOutput::default())
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let PutObjectInput { key, body, if_none_match, .. } = req.input;
        let body = collect(body).await?;
        self.0.begin().await?;
        let e_tag = Some(tag(&body));
        if if_none_match.is_some() {
            if self.0.objects.create(&key, body).await.map_err(refused)? == Created::Exists {
                return Err(s3_error!(PreconditionFailed, "the object exists"));
            }
        } else {
            self.0.objects.put(&key, body).await.map_err(refused)?;
        }
        self.0.end(PutObjectOutput { e_tag, ..PutObjectOutput::default() })
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.0.begin().await?;
        let whole = self.0.objects.get(&req.input.key).await.map_err(refused)?;
        let size = whole.len() as u64;
        let (part, content_range) = match req.input.range {
            None => (whole.clone(), None),
            Some(range) => {
                let range = range.check(size).map_err(|_| s3_error!(InvalidRange))?;
                let shown = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
                (whole.slice(at(range.start)..at(range.end)), Some(shown))
            }
        };
        let length = i64::try_from(part.len()).unwrap_or(i64::MAX);
        // As if the server died while it sent.
        let sent = if self.0.rarely() { part.len() / 2 } else { part.len() };
        let mut frames: Vec<std::io::Result<Bytes>> = vec![Ok(part.slice(..sent))];
        if sent < part.len() {
            frames.push(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        self.0.end(GetObjectOutput {
            body: Some(StreamingBlob::wrap(stream::iter(frames))),
            content_length: Some(length),
            content_range,
            e_tag: Some(tag(&whole)),
            ..GetObjectOutput::default()
        })
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.0.begin().await?;
        let ListObjectsV2Input { bucket, prefix, start_after, max_keys, .. } = req.input;
        let limit = max_keys.map_or(1000, |keys| usize::try_from(keys).unwrap_or(0).clamp(1, 1000));
        let prefix = prefix.unwrap_or_default();
        let page = self.0.objects.list(&prefix, start_after.as_deref(), limit).await.map_err(refused)?;
        let at = |ms: u64| -> SystemTime { UNIX_EPOCH + Duration::from_millis(ms) };
        let contents: Vec<Object> = page
            .objects
            .into_iter()
            .map(|listed| Object {
                key: Some(listed.key),
                size: i64::try_from(listed.size).ok(),
                last_modified: Some(Timestamp::from(at(listed.modified_ms))),
                ..Object::default()
            })
            .collect();
        self.0.end(ListObjectsV2Output {
            name: Some(bucket),
            prefix: Some(prefix),
            key_count: i32::try_from(contents.len()).ok(),
            is_truncated: Some(page.more),
            contents: Some(contents),
            ..ListObjectsV2Output::default()
        })
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.0.begin().await?;
        self.0.objects.delete(&req.input.key).await.map_err(refused)?;
        self.0.end(DeleteObjectOutput::default())
    }
}
