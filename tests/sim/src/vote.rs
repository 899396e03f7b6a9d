//! Asks a storage node for its vote on a key over a connection that was opened long before, and that nobody gives up:
//! the question waits in the network while the node stands still, and is the first thing it hears when it goes on.

use bytes::{Bytes, BytesMut};
use cartwheel_cluster::peer::FRAMES_PATH;
use cartwheel_core::frame::{Frame, FrameKind, FrameVersion};
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::wire::{Answer, Call, Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::net::TcpStream;

use crate::cluster::{Place, address};

/// A connection for frames.
pub struct Ballot(TcpStream);

impl Ballot {
    /// Opens one to `node`; `None` if it is not there.
    pub async fn open(node: &str) -> Option<Self> {
        let mut stream = TcpStream::connect(address(node)).await.ok()?;
        let head = format!(
            "GET {FRAMES_PATH} HTTP/1.1\r\nhost: {node}\r\nconnection: upgrade\r\nupgrade: {}\r\n\
             authorization: {}\r\n\r\n",
            FrameVersion::One.offer(),
            Place::token().header().to_str().ok()?
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.ok()?);
        }
        answer.starts_with(b"HTTP/1.1 101").then_some(Self(stream))
    }

    /// Asks for what the node has of a key. `Some(true)` if it answered as one that counts, whatever it has; `None`
    /// if there was no answer.
    pub async fn votes(mut self, namespace: &str, key: &str, ring_version: u64) -> Option<bool> {
        let request = Request::Read {
            namespace: Namespace::new(namespace.as_bytes()).ok()?,
            key: Key::new(key.to_owned().into_bytes().into()).ok()?,
            values: false,
            stands_for: None,
        };
        let (head, body) = Call { ring_version, request }.encode();
        let call = Frame { kind: FrameKind::Call, correlation: 1, deadline_ms: 60_000, head, body };
        for bytes in [&call.header()[..], &call.head, &call.body] {
            self.0.write_all(bytes).await.ok()?;
        }
        let mut buffer = BytesMut::new();
        let answer: Bytes = loop {
            match Frame::take(&mut buffer).ok()? {
                Some(frame) if frame.kind == FrameKind::Answer => break frame.head,
                Some(_) => {}
                None if self.0.read_buf(&mut buffer).await.ok()? == 0 => return None,
                None => {}
            }
        };
        Some(matches!(Answer::decode(answer).ok()?.reply, Reply::Found(_) | Reply::Absent))
    }
}
