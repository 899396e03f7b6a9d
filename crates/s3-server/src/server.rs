//! Connections: a bounded number, each with time limits.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::service::Directory;
use crate::store::Store;

/// How many connections are served at a time; others wait to be accepted.
const CONNECTION_LIMIT: usize = 512;
/// How long a client may take for a request's head, or keep a connection idle.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// How long open requests may go on after a shutdown began.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait after a failed accept (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How to serve a directory.
#[derive(Debug, Clone)]
pub struct S3ServerConfig {
    /// Where the objects are; made if it is missing. One server at a time.
    pub directory: PathBuf,
    /// The address to listen on; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Access key and secret key that requests must be signed with. Without
    /// them requests must be unsigned, and everybody may do everything.
    pub credentials: Option<(String, String)>,
    /// Whether a write is on the disk before it is answered. Without it writes
    /// survive a killed process but not a power cut.
    pub sync: bool,
}

/// Starts servers.
#[derive(Debug)]
pub struct S3Server;

impl S3Server {
    /// Opens the directory, binds the address and serves until shutdown or drop.
    ///
    /// # Errors
    /// If the directory can't be used or another server uses it, or if the
    /// address can't be bound.
    pub async fn start(config: S3ServerConfig) -> io::Result<RunningS3Server> {
        let S3ServerConfig { directory, listen, credentials, sync } = config;
        let opened = tokio::task::spawn_blocking(move || Store::open(&directory, sync));
        let store = Arc::new(opened.await.map_err(io::Error::other)??);
        let mut builder = S3ServiceBuilder::new(Directory::new(store));
        if let Some((access, secret)) = credentials {
            builder.set_auth(SimpleAuth::from_single(access, secret));
        }
        let listener = TcpListener::bind(listen).await?;
        let local_addr = listener.local_addr()?;
        let (stop, stopped) = watch::channel(());
        let task = tokio::spawn(accept(listener, builder.build(), stopped));
        Ok(RunningS3Server { local_addr, stop: Some(stop), task: Some(task) })
    }
}

/// A server at work. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct RunningS3Server {
    local_addr: SocketAddr,
    stop: Option<watch::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl RunningS3Server {
    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting, lets open requests finish for a few seconds, and
    /// releases the directory.
    pub async fn shutdown(mut self) {
        self.stop = None;
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::warn!(%error, "the S3 server ended badly");
        }
    }
}

impl Drop for RunningS3Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, service: S3Service, mut stopped: watch::Receiver<()>) {
    let permits = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>((stream, permit))
        };
        tokio::select! {
            // The sender was dropped.
            _ = stopped.changed() => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            accepted = next => match accepted {
                Ok((stream, permit)) => {
                    let (service, stopped) = (service.clone(), stopped.clone());
                    connections.spawn(async move {
                        serve(stream, service, stopped).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the S3 server could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
        connections.shutdown().await;
    }
}

async fn serve(stream: TcpStream, service: S3Service, mut stopped: watch::Receiver<()>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_LIMIT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection to the S3 server ended early");
    }
}
