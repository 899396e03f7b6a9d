//! The accept loop of every HTTP port: HTTP/1.1 and h2c, with the limits that `axum::serve` lacks.
//!
//! A connection must show its first bytes within [`Limits::first_bytes`], each HTTP/1.1 head within
//! [`Limits::head`], and an h2c peer must answer pings. Bodies are the handlers' to time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, watch};
use tokio::time::Sleep;

use crate::seams::{Listener, Stream};

/// Bytes within which the HTTP version is decided (the h2c preface's length).
const DECIDING_BYTES: usize = 24;
/// Longest HTTP/1.1 head, bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long a peer may leave what is written to it unread.
const WRITE_STALL: Duration = Duration::from_secs(30);
/// Most header fields of a request.
const MAX_HEADERS: usize = 100;

/// Limits of a listening port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// How long a connection may take to its first bytes.
    pub first_bytes: Duration,
    /// How long an HTTP/1.1 head may take, idle time before it included.
    pub head: Duration,
    /// How often an h2c peer is pinged, and how long it may take to answer.
    pub ping: Duration,
    /// h2c streams at once on one connection.
    pub streams: u32,
    /// How long requests in flight may take after shutdown was asked for.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            first_bytes: Duration::from_secs(10),
            head: Duration::from_secs(60),
            ping: Duration::from_secs(20),
            streams: 256,
            drain: Duration::from_secs(10),
        }
    }
}

/// Serves `router` until `shutdown` turns true, then drains.
pub async fn serve(
    mut listener: Box<dyn Listener>,
    router: Router,
    limits: Limits,
    mut shutdown: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.ping)
        .keep_alive_timeout(limits.ping)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX));
    let builder = Arc::new(builder);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => break,
            accepted = accept(&mut *listener, &places) => accepted,
        };
        let Some((place, stream, from)) = accepted else { continue };
        let stream = TokioIo::new(FirstBytes::new(stream, limits.first_bytes));
        let connection = builder.serve_connection_with_upgrades(stream, service.clone()).into_owned();
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = watched.await {
                tracing::debug!(%from, %error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight when the drain time ended");
    }
}

async fn accept(
    listener: &mut dyn Listener,
    places: &Arc<Semaphore>,
) -> Option<(tokio::sync::OwnedSemaphorePermit, Stream, SocketAddr)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, from)) => Some((place, stream, from)),
        Err(error) => {
            // Out of file descriptors, most likely: give connections a moment to end.
            tracing::warn!(%error, "can't accept a connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// A stream that fails unless its first bytes arrive in time, and unless what is written to it is read in time:
/// nothing above it times either.
pub(crate) struct FirstBytes {
    stream: Stream,
    seen: usize,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Runs while a write waits for the peer.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl FirstBytes {
    fn new(stream: Stream, patience: Duration) -> Self {
        Self { stream, seen: 0, deadline: Some(Box::pin(tokio::time::sleep(patience))), stalled: None }
    }

    /// Fails a write that has waited too long.
    fn bound<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }

    /// The stream itself.
    pub(crate) fn into_inner(self) -> Stream {
        self.stream
    }
}

impl AsyncRead for FirstBytes {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.deadline.is_none() {
            return polled;
        }
        if polled.is_ready() {
            self.seen += buf.filled().len() - before;
            if self.seen >= DECIDING_BYTES {
                self.deadline = None;
            }
            return polled;
        }
        if let Some(deadline) = &mut self.deadline {
            ready!(deadline.as_mut().poll(cx));
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request arrived in time")))
    }
}

impl AsyncWrite for FirstBytes {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bound(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bound(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Takes the transport out of a connection that [`serve`] upgraded: the stream, and what was read beyond the
/// upgrade.
pub(crate) fn take_stream(upgraded: hyper::upgrade::Upgraded) -> Option<(Stream, bytes::Bytes)> {
    let parts = auto::upgrade::downcast::<TokioIo<FirstBytes>>(upgraded).ok()?;
    Some((parts.io.into_inner().into_inner(), parts.read_buf))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::seams::{Net, Tcp};

    async fn start() -> (SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let listener = Tcp.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "hello" }));
        let limits = Limits { first_bytes: Duration::from_millis(50), ..Limits::default() };
        let (stop, stopped) = watch::channel(false);
        (address, stop, tokio::spawn(serve(listener, router, limits, stopped)))
    }

    #[tokio::test]
    async fn serves_and_drains() {
        let (address, stop, serving) = start().await;
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
        let mut got = [0; 15];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"HTTP/1.1 200 OK");
        stop.send(true).unwrap();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn silent_and_half_spoken_connections_are_closed() {
        let (address, _stop, _serving) = start().await;
        for said in [&b""[..], b"PRI * HTTP"] {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(said).await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"), "{rest:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (ours, theirs) = tokio::io::duplex(16);
        let mut stream = FirstBytes::new(Box::new(ours), Duration::from_secs(600));
        let stalled = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(stalled.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }
}
