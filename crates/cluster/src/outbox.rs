//! The frames that wait to be written to one connection. Whatever queued during the last write is written
//! together in the next.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use cartwheel_core::frame::Frame;

/// Bytes that may wait for one connection.
const MAX_WAITING_BYTES: usize = 128 * 1024 * 1024;
/// Pieces up to this size are copied together into one write; larger ones are written as they lie.
const COPY_BYTES: usize = 16 * 1024;
/// The most that is written between two signs of progress.
const STEP_BYTES: usize = 1024 * 1024;

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
    /// Frames were taken and are being written.
    writing: bool,
    closed: bool,
}

/// A bounded queue of frames with one writer.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
    steps: AtomicU64,
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

    /// How far the writing of a backlog has come, as a number that grows; `None` where everything is written.
    pub(crate) fn progress(&self) -> Option<u64> {
        let backlog = {
            let waiting = self.waiting.lock();
            waiting.writing || !waiting.frames.is_empty()
        };
        backlog.then(|| self.steps.load(Ordering::Relaxed))
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
                    waiting.writing = true;
                    return true;
                }
                waiting.writing = false;
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
                        self.write(&mut io, &buffer).await?;
                        buffer.clear();
                        self.write(&mut io, &piece).await?;
                    } else {
                        buffer.put_slice(&piece);
                    }
                }
                if buffer.len() > 4 * COPY_BYTES {
                    self.write(&mut io, &buffer).await?;
                    buffer.clear();
                }
            }
            self.write(&mut io, &buffer).await?;
            io.flush().await?;
            buffer.clear();
        }
        io.shutdown().await
    }

    async fn write(&self, io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
        for step in bytes.chunks(STEP_BYTES) {
            io.write_all(step).await?;
            self.steps.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use bytes::Bytes;
    use cartwheel_core::frame::FrameKind;
    use tokio::io::AsyncReadExt;

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

    #[tokio::test(start_paused = true)]
    async fn progress_is_told_while_a_backlog_is_written() {
        let outbox = Arc::new(Outbox::default());
        assert_eq!(outbox.progress(), None);
        let body = Bytes::from(vec![0; 2 * STEP_BYTES]);
        outbox.push(Frame { body, ..Frame::bare(FrameKind::Call) }).unwrap();
        assert_eq!(outbox.progress(), Some(0), "it waits");
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let writing = tokio::spawn({
            let outbox = Arc::clone(&outbox);
            async move { outbox.write_to(ours).await }
        });
        let mut arrived = vec![0; STEP_BYTES + STEP_BYTES / 2];
        theirs.read_exact(&mut arrived).await.unwrap();
        let halfway = outbox.progress();
        assert!(halfway > Some(0), "{halfway:?}");
        theirs
            .read_exact(&mut arrived[..STEP_BYTES / 2 + Frame::bare(FrameKind::Call).wire_len()])
            .await
            .unwrap();
        // Everything has arrived; the writer comes round to say so.
        tokio::task::yield_now().await;
        assert_eq!(outbox.progress(), None);
        outbox.close();
        writing.await.unwrap().unwrap();
    }
}
