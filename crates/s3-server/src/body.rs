//! Bodies in and out of files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3Result, TrailingHeaders, s3_error};

use crate::service::blocking;
use crate::store::{Store, Temp};

/// The largest object or part: 5 GiB, as in S3.
const SIZE_LIMIT: u64 = 5 * 1024 * 1024 * 1024;
/// How much is gathered before it is written, and read before it is sent.
const BATCH: usize = 1024 * 1024;
/// How long a client may send nothing.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// What the client says that the body must add up to; base64, as in the headers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    pub(crate) length: Option<i64>,
    pub(crate) md5: Option<String>,
    pub(crate) crc32: Option<String>,
    pub(crate) crc32c: Option<String>,
    pub(crate) crc64nvme: Option<String>,
    pub(crate) sha1: Option<String>,
    pub(crate) sha256: Option<String>,
    /// The algorithm whose sum follows in a trailer, such as `CRC32`.
    pub(crate) trailer: Option<String>,
}

impl Claims {
    fn hasher(&self) -> ChecksumHasher {
        let wants = |claim: &Option<String>, name: &str| {
            claim.is_some()
                || self.trailer.as_deref().is_some_and(|trailer| trailer.eq_ignore_ascii_case(name))
        };
        ChecksumHasher {
            crc32: wants(&self.crc32, "CRC32").then(Crc32::new),
            crc32c: wants(&self.crc32c, "CRC32C").then(Crc32c::new),
            crc64nvme: wants(&self.crc64nvme, "CRC64NVME").then(Crc64Nvme::new),
            sha1: wants(&self.sha1, "SHA1").then(Sha1::new),
            sha256: wants(&self.sha256, "SHA256").then(Sha256::new),
        }
    }
}

/// Writes a request's body to a file, checks it against `claims`, and finishes it.
pub(crate) async fn receive(
    store: &Arc<Store>,
    body: Option<StreamingBlob>,
    claims: Claims,
    trailers: Option<TrailingHeaders>,
) -> S3Result<Temp> {
    let mut temp = blocking(store, |store| Ok(store.temp()?)).await?;
    let mut hasher = claims.hasher();
    let mut md5 = claims.md5.is_some().then(Md5::new);
    let (mut total, mut waiting, mut batch) = (0_u64, 0_usize, Vec::new());
    let mut body = body;
    while let Some(stream) = &mut body {
        let next = tokio::time::timeout(STALL_LIMIT, stream.next());
        let chunk = match next.await.map_err(|_| s3_error!(RequestTimeout, "the body stood still"))? {
            Some(chunk) => chunk.map_err(|error| s3_error!(IncompleteBody, "the body broke off: {error}"))?,
            None => break,
        };
        hasher.update(&chunk);
        if let Some(md5) = &mut md5 {
            md5.update(&chunk);
        }
        total += chunk.len() as u64;
        waiting += chunk.len();
        if total > SIZE_LIMIT {
            return Err(s3_error!(EntityTooLarge, "a body is limited to 5 GiB"));
        }
        batch.push(chunk);
        if waiting >= BATCH {
            temp = write(store, temp, std::mem::take(&mut batch)).await?;
            waiting = 0;
        }
    }
    if claims.length.is_some_and(|length| u64::try_from(length) != Ok(total)) {
        return Err(s3_error!(IncompleteBody, "the body is not as long as Content-Length says"));
    }
    if let (Some(md5), Some(claim)) = (md5, &claims.md5)
        && STANDARD.encode(md5.finalize()) != *claim
    {
        return Err(s3_error!(BadDigest, "the body does not match Content-MD5"));
    }
    check(&claims, hasher, trailers)?;
    let temp = write(store, temp, batch).await?;
    blocking(store, move |store| {
        store.finish(&temp)?;
        Ok(temp)
    })
    .await
}

fn check(claims: &Claims, hasher: ChecksumHasher, trailers: Option<TrailingHeaders>) -> S3Result<()> {
    let found = hasher.finalize();
    let pairs = [
        ("x-amz-checksum-crc32", &claims.crc32, found.checksum_crc32),
        ("x-amz-checksum-crc32c", &claims.crc32c, found.checksum_crc32c),
        ("x-amz-checksum-crc64nvme", &claims.crc64nvme, found.checksum_crc64nvme),
        ("x-amz-checksum-sha1", &claims.sha1, found.checksum_sha1),
        ("x-amz-checksum-sha256", &claims.sha256, found.checksum_sha256),
    ];
    let trailers = trailers.and_then(|trailers| trailers.take()).unwrap_or_default();
    for (header, claim, found) in pairs {
        let Some(found) = found else { continue };
        let trailer = trailers.get(header).and_then(|value| value.to_str().ok());
        let wrong = |claim: &str| claim != found;
        if claim.as_deref().is_some_and(wrong) || trailer.is_some_and(wrong) {
            return Err(s3_error!(BadDigest, "the body does not match its checksum header or trailer"));
        }
    }
    Ok(())
}

async fn write(store: &Arc<Store>, mut temp: Temp, batch: Vec<Bytes>) -> S3Result<Temp> {
    blocking(store, move |_| {
        for chunk in batch {
            temp.file.write_all(&chunk)?;
        }
        Ok(temp)
    })
    .await
}

/// Sends `length` bytes of a file from `start` on.
pub(crate) async fn send(
    store: &Arc<Store>,
    mut file: File,
    start: u64,
    length: u64,
) -> S3Result<StreamingBlob> {
    // The first batch is read at once: most objects need no other.
    let (file, first) = blocking(store, move |_| {
        file.seek(SeekFrom::Start(start))?;
        let first = read(&mut file, length)?;
        Ok((file, first))
    })
    .await?;
    let left = length - first.len() as u64;
    let rest = stream::try_unfold((file, left), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let task = tokio::task::spawn_blocking(move || read(&mut file, left).map(|chunk| (file, chunk)));
        let (file, chunk) = task.await.map_err(io::Error::other)??;
        let left = left - chunk.len() as u64;
        Ok::<_, io::Error>(Some((chunk, (file, left))))
    });
    Ok(StreamingBlob::wrap(stream::once(async move { Ok::<_, io::Error>(first) }).chain(rest)))
}

/// At most one batch; all of it, or an error, because objects do not shrink.
fn read(file: &mut File, left: u64) -> io::Result<Bytes> {
    let length = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
    let mut buffer = vec![0; length];
    file.read_exact(&mut buffer)?;
    Ok(buffer.into())
}

impl From<crate::store::StoreError> for S3Error {
    fn from(error: crate::store::StoreError) -> Self {
        use crate::store::StoreError;
        match error {
            StoreError::NoSuchBucket => s3_error!(NoSuchBucket, "the bucket does not exist"),
            StoreError::NoSuchKey => s3_error!(NoSuchKey, "the object does not exist"),
            StoreError::BucketNotEmpty => s3_error!(BucketNotEmpty, "the bucket is not empty"),
            StoreError::Precondition => {
                s3_error!(PreconditionFailed, "the condition of the request does not hold")
            }
            StoreError::KeyTooLong => s3_error!(KeyTooLongError, "a key is limited to 1024 bytes"),
            StoreError::Io(error) => {
                tracing::warn!(%error, "the file system failed a request");
                s3_error!(error, InternalError, "the file system failed")
            }
        }
    }
}
