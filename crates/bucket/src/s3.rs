//! Any S3-compatible store, over the AWS SDK.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::Builder as HttpClientBuilder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;

use crate::bucket::check_limit;
use crate::memory::slice;
use crate::settle::{self, Attempt, CreateOnce};
use crate::{Bucket, BucketError, BucketUrl, Created, Listed, Listing};

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an attempt may take, a large body's allowance aside.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a create may take to be settled, large bodies' allowances aside.
const CREATE_TIMEOUT: Duration = Duration::from_secs(45);
/// How many times an idempotent call is attempted, the first included.
const RETRY_ATTEMPTS: u32 = 3;
/// The slowest transfer we wait for; a body gets time on top at this rate.
const SLOWEST_BYTES_PER_SECOND: u64 = 1024 * 1024;
/// How long a body may stand still before the transfer is given up.
const STALL_GRACE: Duration = Duration::from_secs(5);
/// An idle connection is closed after this long, before most servers do it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// The region of stores that have none.
const DEFAULT_REGION: &str = "us-east-1";

/// What overrides the usual AWS environment, profile or instance role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    /// The store's URL; without it `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`
    /// or AWS itself.
    pub endpoint: Option<String>,
    /// Access key and secret key.
    pub credentials: Option<(String, String)>,
    /// The region; without it the environment's, else `us-east-1`.
    pub region: Option<String>,
}

/// One S3 bucket, or the part of it under a prefix.
#[derive(Debug, Clone)]
pub struct S3Bucket {
    client: Client,
    url: BucketUrl,
    spread: RandomState,
}

impl S3Bucket {
    /// Makes a client. Nothing is sent to the store yet.
    ///
    /// # Errors
    /// [`BucketError::Refused`] if the endpoint is not an `http://` or
    /// `https://` URL.
    pub async fn connect(url: &BucketUrl, options: S3Options) -> Result<Self, BucketError> {
        let http = HttpClientBuilder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::standard().with_max_attempts(RETRY_ATTEMPTS))
            .timeout_config(timeouts(0))
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled().grace_period(STALL_GRACE).build(),
            );
        if let Some(endpoint) = &options.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some((access, secret)) = options.credentials {
            loader = loader.credentials_provider(Credentials::new(access, secret, None, None, "options"));
        }
        if let Some(region) = options.region {
            loader = loader.region(Region::new(region));
        }
        let shared = loader.load().await;
        let mut config = aws_sdk_s3::config::Builder::from(&shared)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if shared.region().is_none() {
            config = config.region(Region::new(DEFAULT_REGION));
        }
        let endpoint = options.endpoint.or_else(|| environment_endpoint(&shared));
        if let Some(endpoint) = endpoint {
            check_endpoint(url, &endpoint)?;
            config = config.force_path_style(true);
        }
        Ok(Self::from_client(Client::from_conf(config.build()), url.clone()))
    }

    /// Uses a client that was configured elsewhere.
    #[must_use]
    pub fn from_client(client: Client, url: BucketUrl) -> Self {
        Self { client, url, spread: RandomState::new() }
    }

    /// Where the objects are.
    #[must_use]
    pub fn url(&self) -> &BucketUrl {
        &self.url
    }

    /// Creates the S3 bucket if it is missing.
    ///
    /// # Errors
    /// If the store refuses or can't be reached.
    pub async fn ensure_exists(&self) -> Result<(), BucketError> {
        let name = &self.url.name;
        let error = match self.client.head_bucket().bucket(name).send().await {
            Ok(_) => return Ok(()),
            Err(error) => classify(name, name, &error),
        };
        // A HEAD has no body, so a missing bucket has no code, only its 404.
        if !matches!(error, BucketError::NotFound { .. } | BucketError::Refused { status: 404, .. }) {
            return Err(error);
        }
        match self.client.create_bucket().bucket(name).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("BucketAlreadyOwnedByYou") => Ok(()),
            Err(error) => match self.client.head_bucket().bucket(name).send().await {
                Ok(_) => Ok(()),
                Err(_) => Err(classify(name, name, &error)),
            },
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.url.prefix)
    }

    async fn read(&self, key: &str, range: Option<String>) -> Result<(GetObjectOutput, Bytes), BucketError> {
        let mut last = BucketError::unavailable(key, "no attempt was made");
        // The SDK retries up to the headers; a body that breaks off is ours.
        for _ in 0..RETRY_ATTEMPTS {
            let request =
                self.client.get_object().bucket(&self.url.name).key(self.full(key)).set_range(range.clone());
            let mut output = request.send().await.map_err(|error| classify(key, &self.url.name, &error))?;
            let length = u64::try_from(output.content_length().unwrap_or(0)).unwrap_or(0);
            let body = std::mem::take(&mut output.body);
            match tokio::time::timeout(ATTEMPT_TIMEOUT + allowance(length), body.collect()).await {
                Ok(Ok(body)) => return Ok((output, body.into_bytes())),
                Ok(Err(error)) => {
                    let detail = format!("the body broke off: {}", describe(&error));
                    last = BucketError::unavailable(key, detail);
                }
                Err(_) => last = BucketError::unavailable(key, "the body did not arrive in time"),
            }
        }
        Err(last)
    }
}

#[async_trait]
impl CreateOnce for S3Bucket {
    async fn create_once(&self, key: &str, body: Bytes) -> Attempt {
        let overrides = aws_sdk_s3::config::Builder::new()
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts(body.len() as u64));
        let sent = self
            .client
            .put_object()
            .bucket(&self.url.name)
            .key(self.full(key))
            .if_none_match("*")
            .body(ByteStream::from(body))
            .customize()
            .config_override(overrides)
            .send()
            .await;
        let Err(error) = sent else { return Attempt::Stored };
        let status = error.raw_response().map(|response| response.status().as_u16());
        match (status, classify(key, &self.url.name, &error)) {
            (Some(412), _) => Attempt::Taken,
            (Some(409), error) => Attempt::Again(error),
            (_, error) if error.is_retryable() => Attempt::Unknown(error),
            (_, error) => Attempt::Refused(error),
        }
    }

    async fn read_back(&self, key: &str) -> Result<Bytes, BucketError> {
        self.get(key).await
    }

    fn jitter(&self) -> u64 {
        // Each hasher of `RandomState::new()` has other keys.
        RandomState::new().hash_one(self.spread.hash_one(0))
    }
}

#[async_trait]
impl Bucket for S3Bucket {
    async fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.read(key, None).await.map(|(_, body)| body)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        if range.is_empty() {
            return Err(BucketError::range(key, &range));
        }
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let (output, body) = match self.read(key, Some(header)).await {
            Err(BucketError::Refused { status: 416, .. }) => return Err(BucketError::range(key, &range)),
            answer => answer?,
        };
        if output.content_range().is_none() {
            // Some stores answer with the whole object.
            return slice(key, &body, &range);
        }
        // A store cuts a range that reaches past the end; we asked for all of it.
        if body.len() as u64 != range.end - range.start {
            return Err(BucketError::range(key, &range));
        }
        Ok(body)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        let overrides = aws_sdk_s3::config::Builder::new().timeout_config(timeouts(body.len() as u64));
        self.client
            .put_object()
            .bucket(&self.url.name)
            .key(self.full(key))
            .body(ByteStream::from(body))
            .customize()
            .config_override(overrides)
            .send()
            .await
            .map_err(|error| classify(key, &self.url.name, &error))?;
        Ok(())
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, BucketError> {
        let limit = CREATE_TIMEOUT + allowance(body.len() as u64) * settle::ATTEMPTS;
        let settled = tokio::time::timeout(limit, settle::create(self, key, &body)).await;
        settled.unwrap_or_else(|_| Err(BucketError::unavailable(key, "the create was not settled in time")))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, BucketError> {
        check_limit(prefix, limit)?;
        let page = self
            .client
            .list_objects_v2()
            .bucket(&self.url.name)
            .prefix(self.full(prefix))
            .set_start_after(after.map(|after| self.full(after)))
            .max_keys(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| classify(prefix, &self.url.name, &error))?;
        let mut objects: Vec<Listed> = Vec::with_capacity(page.contents().len());
        for object in page.contents() {
            let full = object.key().unwrap_or_default();
            let Some(key) = full.strip_prefix(&self.url.prefix) else {
                return Err(odd_listing(
                    prefix,
                    &format!("it listed {full:?}, which is not under our prefix"),
                ));
            };
            if objects.last().is_some_and(|last| last.key.as_str() >= key)
                || after.is_some_and(|after| after >= key)
            {
                return Err(odd_listing(prefix, &format!("it listed {key:?} out of ascending byte order")));
            }
            objects.push(Listed {
                key: key.to_owned(),
                size: u64::try_from(object.size().unwrap_or(0)).unwrap_or(0),
                modified_ms: object
                    .last_modified()
                    .and_then(|at| at.to_millis().ok())
                    .and_then(|at| u64::try_from(at).ok())
                    .unwrap_or(0),
            });
        }
        Ok(Listing { objects, more: page.is_truncated().unwrap_or(false) })
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let sent = self.client.delete_object().bucket(&self.url.name).key(self.full(key)).send().await;
        match sent.map_err(|error| classify(key, &self.url.name, &error)) {
            Ok(_) | Err(BucketError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Limits for a call that sends `size` bytes.
fn timeouts(size: u64) -> TimeoutConfig {
    let attempt = ATTEMPT_TIMEOUT + allowance(size);
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(attempt)
        .operation_attempt_timeout(attempt)
        .operation_timeout(attempt * RETRY_ATTEMPTS + Duration::from_secs(5))
        .build()
}

/// The extra time for a body, at the slowest rate that we put up with.
fn allowance(size: u64) -> Duration {
    Duration::from_secs(size / SLOWEST_BYTES_PER_SECOND)
}

/// The endpoint that the environment or profile names, if any.
fn environment_endpoint(shared: &aws_config::SdkConfig) -> Option<String> {
    let specific = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|url| !url.is_empty());
    specific.or_else(|| shared.endpoint_url().map(str::to_owned))
}

fn check_endpoint(url: &BucketUrl, endpoint: &str) -> Result<(), BucketError> {
    if endpoint.starts_with("http://") || endpoint.starts_with("https://") {
        return Ok(());
    }
    Err(BucketError::Refused {
        key: url.to_string(),
        status: 400,
        code: "InvalidEndpoint".to_owned(),
        detail: format!("the endpoint {endpoint:?} must start with http:// or https://"),
    })
}

fn odd_listing(prefix: &str, what: &str) -> BucketError {
    BucketError::Refused {
        key: prefix.to_owned(),
        status: 200,
        code: "OddListing".to_owned(),
        detail: format!("this store can't be used: {what}"),
    }
}

/// Turns an SDK error into ours.
fn classify<E>(key: &str, bucket: &str, error: &SdkError<E, HttpResponse>) -> BucketError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let Some(status) = status else {
        return match error {
            SdkError::ConstructionFailure(_) => refused(key, 400, "InvalidRequest", describe(error)),
            _ => BucketError::unavailable(key, describe(error)),
        };
    };
    let code = error.code().unwrap_or_default().to_owned();
    let message = error.message().unwrap_or_default().to_owned();
    verdict(key, bucket, status, &code, message, || describe(error))
}

/// What an HTTP answer means. Pure, so that the table below can be tested.
fn verdict(
    key: &str,
    bucket: &str,
    status: u16,
    code: &str,
    message: String,
    describe: impl FnOnce() -> String,
) -> BucketError {
    let help = |help: &str| if message.is_empty() { help.to_owned() } else { format!("{message}; {help}") };
    match (status, code) {
        (_, "NoSuchBucket") => refused(
            key,
            status,
            code,
            help(&format!("the bucket {bucket:?} does not exist: create it first")),
        ),
        (404, _) => BucketError::not_found(key),
        (_, "RequestTimeTooSkewed") => {
            refused(key, status, code, help("this machine's clock differs too much from the store's"))
        }
        (_, "SlowDown" | "RequestTimeout" | "OperationAborted" | "ConditionalRequestConflict")
        | (408 | 409 | 425 | 429, _) => BucketError::unavailable(key, format!("{status} {code}: {message}")),
        (400..=499, _) => {
            let code = if code.is_empty() { default_code(status) } else { code };
            let detail = match status {
                401 | 403 => help(&format!(
                    "check the access key and secret, and that they may read, write, list and delete in bucket \
                     {bucket:?}"
                )),

                _ if message.is_empty() => describe(),
                _ => message,
            };
            refused(key, status, code, detail)
        }
        (300..=399, _) => refused(
            key,
            status,
            if code.is_empty() { default_code(status) } else { code },
            help(&format!("the bucket {bucket:?} is elsewhere: check the region and the endpoint")),
        ),
        // 5xx, and a 2xx that could not be read.
        _ if message.is_empty() => BucketError::unavailable(key, format!("{status} {code} {}", describe())),
        _ => BucketError::unavailable(key, format!("{status} {code}: {message}")),
    }
}

fn default_code(status: u16) -> &'static str {
    match status {
        300..=399 => "Redirect",
        401 | 403 => "AccessDenied",
        412 => "PreconditionFailed",
        416 => "InvalidRange",
        501 => "NotImplemented",
        _ => "Refused",
    }
}

fn refused(key: &str, status: u16, code: &str, detail: String) -> BucketError {
    BucketError::Refused { key: key.to_owned(), status, code: code.to_owned(), detail }
}

/// The error and its causes in one line, without the SDK's debug print.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if part.contains("no credentials found in chain") {
            return "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an \
                    instance role"
                .to_owned();
        }
        text = format!("{text}: {part}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::{allowance, check_endpoint, describe, timeouts, verdict};
    use crate::{BucketError, BucketUrl};

    fn table(status: u16, code: &str) -> BucketError {
        verdict("k", "b", status, code, String::new(), || "described".to_owned())
    }

    #[test]
    fn only_what_may_pass_is_retryable() {
        let passing = [
            (500, "InternalError"),
            (503, "SlowDown"),
            (429, ""),
            (409, ""),
            (408, ""),
            (400, "RequestTimeout"),
            (200, ""),
        ];
        for (status, code) in passing {
            assert!(table(status, code).is_retryable(), "{status} {code}");
        }
        for (status, code) in
            [(400, "InvalidArgument"), (403, ""), (412, ""), (416, ""), (301, ""), (404, "NoSuchBucket")]
        {
            assert!(matches!(table(status, code), BucketError::Refused { .. }), "{status} {code}");
        }
        assert_eq!(table(404, "NoSuchKey"), BucketError::not_found("k"));
        assert_eq!(table(404, ""), BucketError::not_found("k"));
    }

    #[test]
    fn refusals_say_what_would_help() {
        assert!(table(403, "").to_string().contains("access key"));
        assert!(table(404, "NoSuchBucket").to_string().contains("create it first"));
        assert!(table(403, "RequestTimeTooSkewed").to_string().contains("clock"));
    }

    #[test]
    fn large_bodies_get_more_time_and_every_call_has_an_end() {
        assert_eq!(allowance(0), Duration::ZERO);
        assert_eq!(allowance(64 * 1024 * 1024), Duration::from_secs(64));
        assert_eq!(timeouts(0).operation_attempt_timeout(), Some(Duration::from_secs(10)));
        assert_eq!(timeouts(0).operation_timeout(), Some(Duration::from_secs(35)));
    }

    #[test]
    fn missing_credentials_are_told_in_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("dispatch failure")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Inner(&'static str);
        let text =
            describe(&Outer(Inner("not enabled: no credentials found in chain. Attempted:\n  Environment")));
        assert!(text.contains("AWS_ACCESS_KEY_ID") && !text.contains('\n'), "{text}");
        assert_eq!(describe(&Outer(Inner("connection refused"))), "dispatch failure: connection refused");
    }

    #[test]
    fn an_endpoint_has_a_scheme() {
        let url = BucketUrl::parse("s3://name/").unwrap();
        assert!(check_endpoint(&url, "http://127.0.0.1:9000").is_ok());
        assert!(check_endpoint(&url, "127.0.0.1:9000").unwrap_err().to_string().contains("http://"));
    }
}
