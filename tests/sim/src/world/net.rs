//! turmoil's network, as the host sees it that uses it, with frames that are delivered twice.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use cartwheel_cluster::seams::{Listener, Net, Random, Seams, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::lock::Lock;
use super::{Freezer, SeededRandom, SimClock};

/// The longest that the HTTP before the frames may be.
const LONGEST_HEAD: usize = 4096;
/// How many frames come at most between a frame and its repetition.
const LATEST: u64 = 8;
/// One frame of so many is repeated.
const ONE_OF: u64 = 4;

/// What a simulated host has that can be made to fail.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its outside world.
    pub seams: Seams,
    /// Its wall clock.
    pub clock: Arc<SimClock>,
    /// Which of the frames that it sends arrive twice.
    pub repeats: Arc<Repeats>,
    /// Whether the connections that it opened have broken.
    pub breaks: Arc<Breaks>,
    /// Does it stand still?
    pub freezer: Arc<Freezer>,
}

impl Host {
    /// The host `who`.
    pub fn new(seed: u64, who: &str) -> Self {
        let clock = Arc::new(SimClock::of(seed, who));
        let random = SeededRandom::new(seed, &format!("{who} repeats"));
        let repeats = Arc::new(Repeats { on: Lock::new(false), random, repeated: Lock::new(0) });
        let breaks = Arc::<Breaks>::default();
        let net = Arc::new(SimNet(Arc::clone(&repeats), Arc::clone(&breaks)));
        let seams = Seams { net, clock: clock.clone(), random: Arc::new(SeededRandom::new(seed, who)) };
        Self { seams, clock, repeats, breaks, freezer: Arc::default() }
    }
}

/// The seams of the host `who`.
pub fn seams(seed: u64, who: &str) -> Seams {
    Host::new(seed, who).seams
}

/// Which of the frames that a host sends arrive twice: none, or while it is on some.
#[derive(Debug)]
pub struct Repeats {
    on: Lock<bool>,
    random: SeededRandom,
    repeated: Lock<u64>,
}

impl Repeats {
    /// Switches it.
    pub fn set(&self, on: bool) {
        *self.on.lock() = on;
    }

    /// How many frames were repeated.
    pub fn repeated(&self) -> u64 {
        *self.repeated.lock()
    }

    fn is_on(&self) -> bool {
        *self.on.lock()
    }

    /// After how many more frames the one just written is to be repeated, if it is.
    fn draw(&self) -> Option<u64> {
        let (hit, after) = (self.random.below(ONE_OF) == 0, self.random.below(LATEST));
        *self.repeated.lock() += u64::from(hit);
        hit.then_some(after)
    }
}

/// The connections that a host has opened, and that break all at once.
#[derive(Debug, Default)]
pub struct Breaks {
    /// How often they broke.
    times: Lock<u64>,
    /// Who reads from them.
    readers: Lock<Vec<Waker>>,
}

impl Breaks {
    /// All that are open break: what was not received is lost, and both ends see that.
    pub fn all(&self) {
        *self.times.lock() += 1;
        std::mem::take(&mut *self.readers.lock()).into_iter().for_each(Waker::wake);
    }
}

/// A connection as whoever opened it sees it: whole, or broken.
struct Opened {
    breaks: Arc<Breaks>,
    /// How often connections had broken when it was opened.
    at: u64,
}

impl Opened {
    fn new(breaks: &Arc<Breaks>) -> Self {
        Self { at: *breaks.times.lock(), breaks: Arc::clone(breaks) }
    }

    fn check(&self, reader: Option<&Waker>) -> io::Result<()> {
        if *self.breaks.times.lock() > self.at {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if let Some(reader) = reader {
            let mut readers = self.breaks.readers.lock();
            if !readers.iter().any(|known| known.will_wake(reader)) {
                readers.push(reader.clone());
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SimNet(Arc<Repeats>, Arc<Breaks>);

struct SimListener(turmoil::net::TcpListener, Arc<Repeats>);

#[async_trait]
impl Net for SimNet {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        let stream = turmoil::net::TcpStream::connect(address).await?;
        Ok(Box::new(Repeating::new(stream, &self.0, Some(Opened::new(&self.1)))))
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(SimListener(turmoil::net::TcpListener::bind(address).await?, Arc::clone(&self.0))))
    }
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        Ok((Box::new(Repeating::new(stream, &self.1, None)), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Where in the bytes written a stream is.
#[derive(Debug)]
enum At {
    /// In the HTTP before the frames, if there are to be any.
    Head(Vec<u8>),
    /// In something that is no frames.
    Else,
    /// In a frame: the bytes of it so far (only its length unless it may be repeated), and how many are missing, once
    /// that is known.
    Frame { bytes: Vec<u8>, missing: Option<usize>, kept: bool },
}

impl At {
    fn frame(kept: bool) -> Self {
        Self::Frame { bytes: Vec::new(), missing: None, kept }
    }
}

/// A stream that writes some frames twice, the second time a little later.
struct Repeating {
    stream: turmoil::net::TcpStream,
    /// At the end that opened it.
    opened: Option<Opened>,
    repeats: Arc<Repeats>,
    at: At,
    /// Frames to be written again, and after how many others.
    later: Vec<(u64, Vec<u8>)>,
    /// What is to be written before anything else.
    owed: BytesMut,
}

impl Repeating {
    fn new(stream: turmoil::net::TcpStream, repeats: &Arc<Repeats>, opened: Option<Opened>) -> Self {
        let repeats = Arc::clone(repeats);
        Self { stream, opened, repeats, at: At::Head(Vec::new()), later: Vec::new(), owed: BytesMut::new() }
    }

    /// How much of `bytes` may be written at once: where frames may have to come between, up to the end of one.
    fn at_most(&self, bytes: &[u8]) -> usize {
        let busy = self.repeats.is_on() || !self.later.is_empty();
        match &self.at {
            At::Frame { missing: Some(missing), .. } if busy => bytes.len().min(*missing),
            At::Frame { bytes: length, missing: None, .. } if busy => bytes.len().min(4 - length.len()),
            _ => bytes.len(),
        }
    }

    /// Notes what was written.
    fn wrote(&mut self, mut written: &[u8]) {
        if let At::Head(head) = &mut self.at {
            let before = head.len();
            head.extend_from_slice(written);
            let end = head.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
            match end {
                Some(end) if is_about_frames(&head[..end]) => {
                    written = &written[end - before..];
                    self.at = At::frame(self.repeats.is_on());
                }
                None if head.len() < LONGEST_HEAD => return,
                _ => self.at = At::Else,
            }
        }
        while let At::Frame { bytes, missing, kept } = &mut self.at {
            if written.is_empty() {
                return;
            }
            let Some(left) = missing else {
                let n = written.len().min(4 - bytes.len());
                bytes.extend_from_slice(&written[..n]);
                written = &written[n..];
                if let Ok(length) = <[u8; 4]>::try_from(bytes.as_slice()) {
                    *missing = Some(usize::try_from(u32::from_le_bytes(length)).unwrap());
                }
                continue;
            };
            let n = written.len().min(*left);
            if *kept {
                bytes.extend_from_slice(&written[..n]);
            }
            written = &written[n..];
            *left -= n;
            if *left == 0 {
                let whole = kept.then(|| std::mem::take(bytes));
                self.ended(whole);
                self.at = At::frame(self.repeats.is_on());
            }
        }
    }

    /// A frame has ended: others may have to be written again now.
    fn ended(&mut self, whole: Option<Vec<u8>>) {
        for (after, _) in &mut self.later {
            *after = after.saturating_sub(1);
        }
        if let Some(whole) = whole
            && let Some(after) = self.repeats.draw()
        {
            self.later.push((after, whole));
        }
        for (_, frame) in self.later.extract_if(.., |(after, _)| *after == 0) {
            self.owed.extend_from_slice(&frame);
        }
    }

    fn poll_owed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.owed.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.owed))?;
            self.owed.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

/// Is this a request for frames, or the answer that they come now?
fn is_about_frames(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.contains("upgrade: cartwheel-frames")
        && (head.starts_with("get ") || head.starts_with("http/1.1 101"))
}

impl AsyncRead for Repeating {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(opened) = &this.opened {
            opened.check(Some(cx.waker()))?;
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Repeating {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(opened) = &this.opened {
            opened.check(None)?;
        }
        ready!(this.poll_owed(cx))?;
        let most = this.at_most(buf);
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, &buf[..most]))?;
        this.wrote(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_owed(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_owed(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
