//! What the outside world is to a process: network, wall clock, randomness. A simulation puts its own in.
//!
//! Monotonic time is `tokio::time`, which a simulation pauses; nothing else in the workspace reads a clock,
//! draws a random number or opens a socket.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection.
pub type Stream = Box<dyn Io>;

/// The network.
#[async_trait]
pub trait Net: Send + Sync + Debug {
    /// Opens a connection to `host:port`. The caller bounds the time.
    async fn connect(&self, address: &str) -> io::Result<Stream>;
    /// Listens at `host:port`.
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>>;
}

/// A listening socket.
#[async_trait]
pub trait Listener: Send + Sync {
    /// The next connection and where it comes from.
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)>;
    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Wall-clock time. It is shown to people and decides nothing.
pub trait WallClock: Send + Sync + Debug {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// Randomness: ids, nonces, jitter.
pub trait Random: Send + Sync + Debug {
    /// 64 random bits.
    fn next_u64(&self) -> u64;
    /// 128 random bits.
    fn next_u128(&self) -> u128 {
        u128::from(self.next_u64()) << 64 | u128::from(self.next_u64())
    }
    /// A number below `bound`; 0 where `bound` is 0.
    fn below(&self, bound: u64) -> u64 {
        self.next_u64().checked_rem(bound).unwrap_or(0)
    }
}

/// The outside world of one process.
#[derive(Debug, Clone)]
pub struct Seams {
    /// The network.
    pub net: Arc<dyn Net>,
    /// Wall-clock time.
    pub clock: Arc<dyn WallClock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
}

impl Seams {
    /// The real ones.
    #[must_use]
    pub fn real() -> Self {
        Self { net: Arc::new(Tcp), clock: Arc::new(SystemClock), random: Arc::new(OsSeeded) }
    }
}

/// TCP sockets of the operating system, without delay.
#[derive(Debug, Clone, Copy)]
pub struct Tcp;

#[async_trait]
impl Net for Tcp {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpListener::bind(address).await?))
    }
}

#[async_trait]
impl Listener for TcpListener {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, from) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl WallClock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A generator per thread, seeded by the operating system.
#[derive(Debug, Clone, Copy)]
pub struct OsSeeded;

impl Random for OsSeeded {
    fn next_u64(&self) -> u64 {
        rand::random()
    }
}
