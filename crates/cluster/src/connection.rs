//! The calling end of one connection: calls in flight, answers paired with them, keep-alive.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use cartwheel_core::frame::{Frame, FrameKind};
use cartwheel_core::wire::Pieces;

use crate::outbox::Outbox;
use crate::read_buffer::make_room;
use crate::seams::Stream;

/// Calls in flight on one connection.
const MAX_IN_FLIGHT: usize = 8192;
/// How often an open connection is looked at.
const TICK: Duration = Duration::from_secs(1);
/// A connection on which nothing arrived for so long, though it was pinged, is given up.
const SILENCE: Duration = Duration::from_secs(3);

/// Why a call brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was never sent; nothing can have been applied.
    #[error("not sent")]
    NotSent,
    /// It may have arrived; the answer did not.
    #[error("answer lost")]
    Lost,
}

/// What came of a call: its tag, and the answer's payload.
pub type Outcome = (u32, Result<Bytes, CallError>);

/// Where the answer to a call goes. One channel can take the answers of many calls, told apart by tag.
#[derive(Debug)]
pub struct ReplyTo {
    /// The channel. It never holds more than the calls of its operation.
    pub sender: mpsc::UnboundedSender<Outcome>,
    /// Which call it was.
    pub tag: u32,
}

impl ReplyTo {
    /// Delivers the outcome. An operation that has ended takes none; that is no error.
    pub(crate) fn send(self, outcome: Result<Bytes, CallError>) {
        let _ = self.sender.send((self.tag, outcome));
    }
}

#[derive(Debug)]
struct Pending {
    reply_to: ReplyTo,
    expires: Instant,
}

/// Calls in flight. A correlation is a slot and the slot's generation, so that a late answer finds nobody.
#[derive(Debug, Default)]
struct InFlight {
    slots: Vec<(u32, Option<Pending>)>,
    free: Vec<u32>,
    closed: bool,
}

impl InFlight {
    fn add(&mut self, pending: Pending) -> Result<u64, Pending> {
        if self.closed {
            return Err(pending);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < MAX_IN_FLIGHT => {
                self.slots.push((0, None));
                u32::try_from(self.slots.len() - 1).unwrap_or(0)
            }
            None => return Err(pending),
        };
        let entry = &mut self.slots[slot as usize];
        entry.0 = entry.0.wrapping_add(1);
        entry.1 = Some(pending);
        Ok(u64::from(entry.0) << 32 | u64::from(slot))
    }

    fn take(&mut self, correlation: u64) -> Option<Pending> {
        let slot = u32::try_from(correlation & u64::from(u32::MAX)).ok()?;
        let entry = self.slots.get_mut(slot as usize)?;
        if u64::from(entry.0) != correlation >> 32 {
            return None;
        }
        let pending = entry.1.take()?;
        self.free.push(slot);
        Some(pending)
    }

    fn take_expired(&mut self, now: Instant) -> Vec<Pending> {
        let mut expired = Vec::new();
        for (at, (_, pending)) in self.slots.iter_mut().enumerate() {
            if pending.as_ref().is_some_and(|p| p.expires <= now) {
                expired.extend(pending.take());
                self.free.extend(u32::try_from(at));
            }
        }
        expired
    }

    fn close(&mut self) -> Vec<Pending> {
        self.closed = true;
        self.slots.iter_mut().filter_map(|(_, pending)| pending.take()).collect()
    }
}

/// An open connection to a storage node.
#[derive(Debug)]
pub(crate) struct Connection {
    outbox: Outbox,
    in_flight: Mutex<InFlight>,
    heard: Mutex<Instant>,
}

impl Connection {
    /// Takes over an upgraded stream; `early` is what was read beyond the upgrade.
    pub(crate) fn start(stream: Stream, early: &[u8]) -> Arc<Self> {
        let connection = Arc::new(Self {
            outbox: Outbox::default(),
            in_flight: Mutex::default(),
            heard: Mutex::new(Instant::now()),
        });
        let (reader, writer) = tokio::io::split(stream);
        let buffer = BytesMut::from(early);
        let reading = tokio::spawn({
            let connection = Arc::clone(&connection);
            async move {
                connection.read(reader, buffer).await;
                connection.close();
            }
        });
        let writing = tokio::spawn({
            let connection = Arc::clone(&connection);
            async move {
                if let Err(error) = connection.outbox.write_to(writer).await {
                    tracing::debug!(%error, "connection to a storage node broke");
                }
                connection.close();
            }
        });
        tokio::spawn(keep_alive(Arc::clone(&connection), [reading.abort_handle(), writing.abort_handle()]));
        connection
    }

    /// Is it of no more use?
    pub(crate) fn is_closed(&self) -> bool {
        self.in_flight.lock().closed
    }

    /// Sends a call; its outcome goes to `reply_to`, whatever it is. An answer that takes longer than
    /// `patience` counts as lost.
    pub(crate) fn submit(&self, (head, body): Pieces, patience: Duration, reply_to: ReplyTo) {
        let pending = Pending { reply_to, expires: Instant::now() + patience };
        let added = self.in_flight.lock().add(pending);
        let correlation = match added {
            Ok(correlation) => correlation,
            Err(pending) => return pending.reply_to.send(Err(CallError::NotSent)),
        };
        let deadline_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).max(1);
        let frame = Frame { kind: FrameKind::Call, correlation, deadline_ms, head, body };
        if self.outbox.push(frame).is_err()
            && let Some(pending) = self.in_flight.lock().take(correlation)
        {
            pending.reply_to.send(Err(CallError::NotSent));
        }
    }

    fn close(&self) {
        self.outbox.close();
        let lost = self.in_flight.lock().close();
        for pending in lost {
            pending.reply_to.send(Err(CallError::Lost));
        }
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin, mut buffer: BytesMut) {
        loop {
            loop {
                match Frame::take(&mut buffer) {
                    Ok(Some(frame)) => self.arrived(frame),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "a storage node sent a damaged frame; closing the connection");
                        return;
                    }
                }
            }
            make_room(&mut buffer);
            match reader.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => *self.heard.lock() = Instant::now(),
            }
            if self.is_closed() {
                return;
            }
        }
    }

    fn arrived(&self, frame: Frame) {
        if frame.kind == FrameKind::Answer {
            let pending = self.in_flight.lock().take(frame.correlation);
            if let Some(pending) = pending {
                pending.reply_to.send(Ok(frame.head));
            }
        }
    }
}

/// Pings a connection that has gone quiet, gives up one that stays so, and expires calls without answer. At the
/// end it ends reader and writer too, which would otherwise hold a silent socket until the kernel gives it up.
async fn keep_alive(connection: Arc<Connection>, ends: [AbortHandle; 2]) {
    loop {
        tokio::time::sleep(TICK).await;
        if connection.is_closed() {
            break;
        }
        let now = Instant::now();
        let expired = connection.in_flight.lock().take_expired(now);
        for pending in expired {
            pending.reply_to.send(Err(CallError::Lost));
        }
        let quiet = now.duration_since(*connection.heard.lock());
        let unheard = quiet >= SILENCE;
        if unheard || (quiet >= TICK && connection.outbox.push(Frame::bare(FrameKind::Ping)).is_err()) {
            connection.close();
            break;
        }
    }
    ends.iter().for_each(AbortHandle::abort);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pending(tag: u32) -> (Pending, mpsc::UnboundedReceiver<Outcome>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Pending { reply_to: ReplyTo { sender, tag }, expires: Instant::now() }, receiver)
    }

    #[tokio::test]
    async fn a_late_answer_to_a_reused_slot_finds_nobody() {
        let mut in_flight = InFlight::default();
        let first = in_flight.add(pending(1).0).unwrap();
        assert_eq!(in_flight.take(first).unwrap().reply_to.tag, 1);
        let second = in_flight.add(pending(2).0).unwrap();
        assert!(in_flight.take(first).is_none());
        assert_eq!(in_flight.take(second).unwrap().reply_to.tag, 2);
    }

    #[tokio::test]
    async fn calls_in_flight_are_bounded_and_closed_ones_refused() {
        let mut in_flight = InFlight::default();
        for _ in 0..MAX_IN_FLIGHT {
            in_flight.add(pending(0).0).unwrap();
        }
        assert!(in_flight.add(pending(0).0).is_err());
        assert_eq!(in_flight.close().len(), MAX_IN_FLIGHT);
        assert!(in_flight.add(pending(0).0).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_given_up_and_its_calls_are_lost() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let connection = Connection::start(Box::new(ours), &[]);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let to = |tag| ReplyTo { sender: sender.clone(), tag };
        connection.submit((Bytes::from_static(b"call"), Bytes::new()), Duration::from_secs(60), to(7));
        assert_eq!(receiver.recv().await, Some((7, Err(CallError::Lost))));
        connection.submit((Bytes::new(), Bytes::new()), Duration::from_secs(60), to(8));
        assert_eq!(receiver.recv().await, Some((8, Err(CallError::NotSent))));
        // The socket is let go of: the other end reads what was written, then the end.
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
    }
}
