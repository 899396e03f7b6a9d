//! `cartwheel s3-proxy`: passes requests on to an S3 server as they are, signatures and `Host` included, but for what the
//! plan of faults says. The plan is a file that may be replaced at any time.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::plan::{Fate, Plan};
use super::socket::{Reset, Socket};
use crate::chaos::dice::Dice;
use crate::client::{Exit, Failure, Output};
use crate::serve;

/// Connections at a time, in and (idle) out.
const CONNECTIONS: usize = 1024;
const IDLE: usize = 64;
/// The largest body that is held back or looked at, bytes. A larger one passes.
const HELD: usize = 64 << 20;
/// How long the server may take to begin to answer, and a client for the head of a request.
const PATIENCE: Duration = Duration::from_secs(60);
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a line begins with that tells of a fault.
pub(crate) const LOG_PREFIX: &str = "s3-fault";

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Broken(String);

fn broken(why: impl fmt::Display) -> Broken {
    Broken(why.to_string())
}

type Body = BoxBody<Bytes, Broken>;

/// Where the S3 server is: `http://HOST:PORT`, or `unix:PATH`, behind which a relay is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// `HOST:PORT`.
    Tcp(String),
    /// A socket of this machine.
    Unix(PathBuf),
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let form = "an S3 server's URL is http://HOST[:PORT]";
        let rest = text.strip_prefix("http://").ok_or(form)?.trim_end_matches('/');
        let authority: http::uri::Authority = rest.parse().map_err(|_| form.to_owned())?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self::Tcp(format!("{}:{port}", authority.host())))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Options of `cartwheel s3-proxy`.
#[derive(Debug, Args)]
pub struct S3ProxyArgs {
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: SocketAddr,
    /// The S3 server: http://HOST:PORT or unix:PATH
    #[arg(long, value_name = "URL")]
    pub upstream: Upstream,
    /// The plan of faults, JSON; without the file there are none
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,
    /// The seed of the faults
    #[arg(long, value_name = "NUMBER")]
    pub seed: u64,
}

/// Runs the proxy until it is killed.
///
/// # Errors
/// If the address can't be bound.
pub fn main(args: &S3ProxyArgs, output: &mut Output) -> Result<Exit, Failure> {
    serve::runtime()?.block_on(async {
        let failed = |e: io::Error| Failure::failed(format!("--listen {}: {e}", args.listen));
        let listener = TcpListener::bind(args.listen).await.map_err(failed)?;
        output.note(&format!("s3-proxy serves at http://{}", args.listen));
        let (told, mut faults) = tokio::sync::mpsc::channel(CONNECTIONS);
        let proxy = Arc::new(Proxy {
            upstream: args.upstream.clone(),
            plan: args.plan.clone(),
            dice: Mutex::new(Dice::new(args.seed, 0)),
            idle: Mutex::new(Vec::new()),
            told,
        });
        tokio::spawn(serve_all(listener, proxy));
        while let Some(fault) = faults.recv().await {
            output.note(&fault);
        }
        Ok(Exit::Done)
    })
}

/// Connects a socket of this machine with a server that can only be reached from here.
///
/// # Errors
/// If the socket can't be made.
pub(crate) fn relay(path: &Path, server: Upstream) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    let listener = UnixListener::bind(path)?;
    Ok(async move {
        loop {
            let Ok((mut near, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Upstream::Tcp(address) = server.clone() else { return };
            tokio::spawn(async move {
                if let Ok(mut far) = TcpStream::connect(&address).await {
                    let _ = far.set_nodelay(true);
                    // However it ends, both ends see it.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    })
}

struct Proxy {
    upstream: Upstream,
    plan: PathBuf,
    dice: Mutex<Dice>,
    idle: Mutex<Vec<SendRequest<Body>>>,
    told: tokio::sync::mpsc::Sender<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve_all(listener: TcpListener, proxy: Arc<Proxy>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let proxy = Arc::clone(&proxy);
        tokio::spawn(async move {
            let reset = Reset::default();
            let socket = TokioIo::new(Socket::new(stream, reset.clone()));
            let answer = service_fn(|request| {
                let (proxy, reset) = (Arc::clone(&proxy), reset.clone());
                async move { proxy.answer(request, &reset).await }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // It ends with an error whenever a fault is injected.
            let _ = builder.serve_connection(socket, answer).await;
            drop(permit);
        });
    }
}

impl Proxy {
    async fn answer(&self, request: Request<Incoming>, reset: &Reset) -> Result<Response<Body>, Broken> {
        let plan = match tokio::fs::read(&self.plan).await {
            Ok(text) => serde_json::from_slice(&text).map_err(broken)?,
            Err(_) => Plan::default(),
        };
        let fate = plan.draw(&mut lock(&self.dice), request.method());
        if fate != Fate::Pass {
            // A line more or less is no reason to wait.
            let line = format!("{LOG_PREFIX} {} {} {}", fate.word(), request.method(), request.uri());
            let _ = self.told.try_send(line);
        }
        let ended = self.undergo(request, fate).await;
        if ended.is_err() {
            reset.ask();
        }
        let reset = reset.clone();
        ended.map(|response| {
            response.map(|body| {
                let noted = body.map_err(move |error| {
                    reset.ask();
                    error
                });
                noted.boxed()
            })
        })
    }

    async fn undergo(&self, request: Request<Incoming>, fate: Fate) -> Result<Response<Body>, Broken> {
        match fate {
            Fate::Pass => self.pass(request).await,
            Fate::Refuse(status) => Ok(refusal(status)),
            Fate::Reset => Err(broken("reset")),
            Fate::Stall(held) => {
                tokio::time::sleep(held).await;
                Err(broken("stalled"))
            }
            Fate::Slow(wait) => {
                tokio::time::sleep(wait).await;
                self.pass(request).await
            }
            Fate::Mute => {
                let response = self.pass(request).await?;
                // It is done once all of the answer is there.
                let _ = response.into_body().collect().await;
                Err(broken("mute"))
            }
            Fate::Late(wait) => {
                let (parts, body) = request.into_parts();
                let body = hold(body).await?;
                let request = Request::from_parts(parts, full(body));
                let connection = self.connect().await?;
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    let mut connection = connection;
                    if let Ok(response) = connection.send_request(request).await {
                        // Nobody waits for this answer.
                        let _ = response.into_body().collect().await;
                    }
                });
                Err(broken("late"))
            }
            Fate::Truncate(hundredths) => {
                let response = self.pass(request).await?;
                let length = response.headers().get(header::CONTENT_LENGTH);
                let length = length.and_then(|l| l.to_str().ok()?.parse::<usize>().ok()).unwrap_or(0);
                if length == 0 || length > HELD {
                    return Ok(response);
                }
                let (parts, body) = response.into_parts();
                let bytes = hold(body).await?;
                let kept = bytes.slice(..bytes.len() * hundredths / 100);
                let frames = [Ok(Frame::data(kept)), Err(broken("truncated"))];
                Ok(Response::from_parts(parts, BodyExt::boxed(StreamBody::new(stream::iter(frames)))))
            }
        }
    }

    /// Passes a request on, and its answer back.
    async fn pass(&self, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
        let head = request.method() == Method::HEAD;
        let request = request.map(|body| body.map_err(broken).boxed());
        let mut connection = match self.idle_connection() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let response = tokio::time::timeout(PATIENCE, connection.send_request(request));
        let response = response.await.map_err(broken)?.map_err(broken)?;
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE {
            idle.push(connection);
        }
        drop(idle);
        let response = response.map(|body| body.map_err(broken).boxed());
        Ok(if head { response.map(|_| full(Bytes::new())) } else { response })
    }

    /// A connection whose last answer has been read.
    fn idle_connection(&self) -> Option<SendRequest<Body>> {
        let mut idle = lock(&self.idle);
        idle.retain(|connection| !connection.is_closed());
        let at = idle.iter().position(SendRequest::is_ready)?;
        Some(idle.swap_remove(at))
    }

    async fn connect(&self) -> Result<SendRequest<Body>, Broken> {
        match &self.upstream {
            Upstream::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(broken)?;
                stream.set_nodelay(true).map_err(broken)?;
                handshake(stream).await
            }
            Upstream::Unix(path) => handshake(UnixStream::connect(path).await.map_err(broken)?).await,
        }
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<SendRequest<Body>, Broken> {
    let mut builder = hyper::client::conn::http1::Builder::new();
    let (sender, connection) =
        builder.preserve_header_case(true).handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    Ok(sender)
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

/// All of a body, if it is not too large.
async fn hold<B>(body: B) -> Result<Bytes, Broken>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Ok(Limited::new(body, HELD).collect().await.map_err(broken)?.to_bytes())
}

/// What S3 says when it is asked too much, or is at a loss.
fn refusal(status: u16) -> Response<Body> {
    let (code, words) = match status {
        503 => ("SlowDown", "Please reduce your request rate."),
        _ => ("InternalError", "We encountered an internal error. Please try again."),
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{words}</Message></Error>"
    );
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

#[cfg(test)]
mod tests;
