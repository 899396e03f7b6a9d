//! The AWS SDK over simulated sockets: the production client in all but the TCP connector.

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, HttpClient, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedHttpClient,
};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use cartwheel_bucket::{BucketUrl, S3Bucket, SharedBucket};
use http_body_util::BodyExt;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;

use super::{ACCESS, BUCKET, PORT, SECRET, SERVER};
use crate::world::lock::Lock;

/// How long a connection may take to open, as in production.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
/// How long an attempt may take; shorter than in production, for a simulation has no large bodies.
const ATTEMPT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(4);

/// The bucket as one host reaches it. Connections are those of the host that polls it.
pub fn bucket() -> SharedBucket {
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let config = aws_sdk_s3::config::Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .http_client(SharedHttpClient::new(Sockets::default()))
        .timeout_config(timeouts)
        .endpoint_url(format!("http://{SERVER}:{PORT}"))
        .force_path_style(true)
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(ACCESS, SECRET, None, None, "simulation"))
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    let url = BucketUrl { name: BUCKET.to_owned(), prefix: String::new() };
    Arc::new(S3Bucket::from_client(Client::from_conf(config), url))
}

type Connection = SendRequest<SdkBody>;

/// Connections that are open and idle. Those of a host that crashed are closed: their tasks died with it.
#[derive(Debug, Clone, Default)]
struct Sockets(Arc<Lock<Vec<Connection>>>);

impl HttpClient for Sockets {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Sockets {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let sockets = self.clone();
        HttpConnectorFuture::new(async move { sockets.exchange(request).await })
    }
}

impl Sockets {
    async fn connection(&self) -> Result<Connection, ConnectorError> {
        while let Some(mut idle) = self.take() {
            if !idle.is_closed() && idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let connecting = turmoil::net::TcpStream::connect((SERVER, PORT));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        let stream = stream.map_err(|e| ConnectorError::timeout(e.into()))?;
        let stream = stream.map_err(|e| ConnectorError::io(e.into()))?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|e| ConnectorError::io(e.into()))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn take(&self) -> Option<Connection> {
        self.0.lock().pop()
    }

    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let mut request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let host = format!("{SERVER}:{PORT}").parse().map_err(|_| ConnectorError::user("host".into()))?;
        request.headers_mut().entry(http::header::HOST).or_insert(host);
        *request.uri_mut() = path.parse().map_err(|_| ConnectorError::user("path".into()))?;
        let mut connection = self.connection().await?;
        let sent = connection.send_request(request).await;
        let (parts, body) = sent.map_err(|e| ConnectorError::io(e.into()))?.into_parts();
        // Read here: the connection is free again after it. A body that breaks off is an error of its own.
        let body = match body.collect().await {
            Ok(body) => SdkBody::from(body.to_bytes()),
            Err(error) => return Err(ConnectorError::io(error.into())),
        };
        self.0.lock().push(connection);
        let response = http::Response::from_parts(parts, body);
        HttpResponse::try_from(response).map_err(|e| ConnectorError::other(e.into(), None))
    }
}
