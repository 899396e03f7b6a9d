//! One HTTP/1.1 connection of the bench: no pool, no copy of bodies, reconnects when it broke.

use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::client::{Failure, Gateway};

/// How long a connection rests after it could not be opened, so that a dead gateway is not hammered.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

const VECTOR_CLOCK: HeaderName = HeaderName::from_static("vector-clock");

/// Why an operation got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Broken {
    /// The connection could not be opened.
    Connect,
    /// The connection broke.
    Connection,
    /// The time limit passed.
    Timeout,
}

impl Broken {
    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Broken::Connect => "connect",
            Broken::Connection => "connection",
            Broken::Timeout => "timeout",
        }
    }
}

/// What the bench keeps of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) clock: Option<HeaderValue>,
    /// Bytes of the body.
    pub(crate) bytes: u64,
}

/// One connection to one gateway.
#[derive(Debug)]
pub(crate) struct Link {
    gateway: Gateway,
    host: HeaderValue,
    timeout: Duration,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Link {
    /// Opens the connection.
    ///
    /// # Errors
    /// Exit status 3 if the gateway can't be reached in time.
    pub(crate) async fn open(gateway: &Gateway, timeout: Duration) -> Result<Link, Failure> {
        let host = HeaderValue::from_str(gateway.authority())
            .map_err(|error| Failure::usage(format!("{gateway} (--gateway): {error}")))?;
        let mut link = Link { gateway: gateway.clone(), host, timeout, sender: None };
        let unreachable =
            |why: String| Failure::unreachable(format!("can't reach {gateway} (--gateway): {why}"));
        match tokio::time::timeout(timeout, connect(gateway)).await {
            Ok(Ok(sender)) => link.sender = Some(sender),
            Ok(Err(error)) => return Err(unreachable(error)),
            Err(_) => return Err(unreachable("no answer in time (--timeout)".to_owned())),
        }
        Ok(link)
    }

    /// Sends one request and reads its whole answer, within the time limit.
    ///
    /// # Errors
    /// The reason why there was no answer; the next call reconnects.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: PathAndQuery,
        clock: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<Answer, Broken> {
        let result = match tokio::time::timeout(self.timeout, self.exchange(method, path, clock, body)).await
        {
            Ok(result) => result,
            Err(_) => Err(Broken::Timeout),
        };
        if result.is_err() {
            self.sender = None;
        }
        result
    }

    /// Rests after a connection that could not be opened. Apart from [`Link::send`], so that the rest does not
    /// count as the operation's latency.
    pub(crate) async fn rest(&self) {
        tokio::time::sleep(RETRY_PAUSE).await;
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: PathAndQuery,
        clock: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<Answer, Broken> {
        // A gateway may close a connection between two requests: that is no failed operation.
        let mut kept = self.sender.take();
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => connect(&self.gateway).await.map_err(|_| Broken::Connect)?,
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(path);
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(HOST, self.host.clone());
        if let Some(clock) = clock {
            headers.insert(VECTOR_CLOCK, clock);
        }
        *request.headers_mut() = headers;
        let mut response = sender.send_request(request).await.map_err(|_| Broken::Connection)?;
        let mut bytes = 0;
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|_| Broken::Connection)?;
            bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        self.sender = Some(sender);
        Ok(Answer { status: response.status(), clock: response.headers_mut().remove(VECTOR_CLOCK), bytes })
    }
}

async fn connect(gateway: &Gateway) -> Result<SendRequest<Full<Bytes>>, String> {
    let text = |error: std::io::Error| error.to_string();
    let stream = TcpStream::connect((gateway.host(), gateway.port())).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Ends by itself when the sender is dropped or the peer closes; errors reach the sender's caller.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
