//! The frames that wait to be written to one connection. Whatever queued during the last write is written
//! together in the next.

use std::io;

use bytes::{BufMut, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use cartwheel_core::frame::Frame;

/// Bytes that may wait for one connection.
const MAX_WAITING_BYTES: usize = 128 * 1024 * 1024;
/// Pieces up to this size are copied together into one write; larger ones are written as they lie.
const COPY_BYTES: usize = 16 * 1024;

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// Too much waits already, or the frame is longer than any may be.
    Full,
    /// The connection has ended.
    Closed,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: Vec<Frame>,
    bytes: usize,
    closed: bool,
}

/// A bounded queue of frames with one writer.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

impl Outbox {
    /// Queues a frame.
    pub(crate) fn push(&self, frame: Frame) -> Result<(), Full> {
        let first = {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(Full::Closed);
            }
            // Small frames, refusals among them, find room where large ones no longer do.
            let small = frame.wire_len() <= COPY_BYTES;
            let room = if small { 2 * MAX_WAITING_BYTES } else { MAX_WAITING_BYTES };
            if waiting.bytes > room || frame.is_oversized() {
                return Err(Full::Full);
            }
            waiting.bytes += frame.wire_len();
            waiting.frames.push(frame);
            waiting.frames.len() == 1
        };
        if first {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Ends the queue: nothing more is taken, and the writer stops.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.frames.clear();
        drop(waiting);
        self.wake.notify_one();
    }

    /// Waits for frames and swaps them into `frames`; `false` once closed.
    async fn take(&self, frames: &mut Vec<Frame>) -> bool {
        loop {
            {
                let mut waiting = self.waiting.lock();
                if waiting.closed {
                    return false;
                }
                if !waiting.frames.is_empty() {
                    std::mem::swap(&mut waiting.frames, frames);
                    waiting.bytes = 0;
                    return true;
                }
            }
            self.wake.notified().await;
        }
    }

    /// Writes what is queued until the queue is closed.
    ///
    /// # Errors
    /// Those of the connection.
    pub(crate) async fn write_to(&self, mut io: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut frames = Vec::new();
        let mut buffer = BytesMut::new();
        while self.take(&mut frames).await {
            for frame in frames.drain(..) {
                buffer.put_slice(&frame.header());
                for piece in [frame.head, frame.body] {
                    if piece.len() > COPY_BYTES {
                        io.write_all(&buffer).await?;
                        buffer.clear();
                        io.write_all(&piece).await?;
                    } else {
                        buffer.put_slice(&piece);
                    }
                }
                if buffer.len() > 4 * COPY_BYTES {
                    io.write_all(&buffer).await?;
                    buffer.clear();
                }
            }
            io.write_all(&buffer).await?;
            io.flush().await?;
            buffer.clear();
        }
        io.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use cartwheel_core::frame::FrameKind;

    use super::*;

    #[test]
    fn where_large_frames_find_no_room_small_ones_still_do() {
        let outbox = Outbox::default();
        let half = Bytes::from(vec![0; MAX_WAITING_BYTES / 2]);
        let large = || Frame { body: half.clone(), ..Frame::bare(FrameKind::Answer) };
        outbox.push(large()).unwrap();
        outbox.push(large()).unwrap();
        assert_eq!(outbox.push(large()), Err(Full::Full));
        outbox.push(Frame::bare(FrameKind::Answer)).unwrap();
        outbox.close();
        assert_eq!(outbox.push(Frame::bare(FrameKind::Answer)), Err(Full::Closed));
    }
}
