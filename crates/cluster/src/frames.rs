//! The answering end: an upgraded connection's calls go to a handler, which answers now or later.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use cartwheel_core::codec::DecodeError;
use cartwheel_core::frame::{CallsHeard, Correlation, Frame, FrameKind, FrameVersion, MAX_IN_FLIGHT};
use cartwheel_core::trace::TraceContext;
use cartwheel_core::wire::{Answer, Pieces, Refusal, Reply};

use crate::http_server::take_stream;
use crate::outbox::{Full, Outbox};
use crate::read_buffer::make_room;
use crate::seams::Stream;
use crate::secret::NodeToken;

/// A caller that has not even pinged for so long is gone.
const SILENCE: Duration = Duration::from_secs(15);

/// Answers calls.
pub trait Handler: Send + Sync + 'static {
    /// Answers `call` through its handle, at once or later. Must not block.
    fn handle(&self, call: IncomingCall);
}

/// A call that arrived.
#[derive(Debug)]
pub struct IncomingCall {
    /// The encoded [`cartwheel_core::wire::Call`].
    pub payload: Bytes,
    /// What trace it is part of, if the caller says so.
    pub trace: Option<TraceContext>,
    /// Until when the caller waits.
    pub deadline: Instant,
    /// Where the answer goes.
    pub reply: ReplyHandle,
}

/// Where the answer to one call goes. Dropped without an answer, the caller waits in vain until its deadline.
#[derive(Debug)]
pub struct ReplyHandle {
    connection: Arc<Serving>,
    correlation: u64,
}

impl ReplyHandle {
    /// Sends the answer; one for which there is no room, or that is too long for a frame, becomes a refusal.
    pub fn send(self, answer: Pieces) {
        if self.push(answer) != Err(Full::Full) {
            return;
        }
        // Not `Overloaded`, which says that nothing was applied: the answer may be that of a mint.
        let refusal = Refusal::Unable("there is no room for the answer".to_owned());
        let answer = Answer { ring_version: 0, reply: Reply::Refused(refusal) };
        if self.push(answer.encode()).is_err() {
            // A caller that does not read its answers gets no more of them.
            self.connection.outbox.close();
        }
    }

    fn push(&self, (head, body): Pieces) -> Result<(), Full> {
        let correlation = self.correlation;
        self.connection.outbox.push(Frame {
            kind: FrameKind::Answer,
            correlation,
            deadline_ms: 0,
            head,
            body,
        })
    }
}

impl Drop for ReplyHandle {
    fn drop(&mut self) {
        self.connection.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Serving {
    version: FrameVersion,
    outbox: Outbox,
    in_flight: AtomicUsize,
}

/// Answers a request for [`crate::peer::FRAMES_PATH`]: checks the token, settles for the newest version of frames
/// that both ends know, up to `newest`, and serves the upgraded connection with `handler`.
pub fn accept<H: Handler>(
    mut request: axum::extract::Request,
    token: &NodeToken,
    newest: FrameVersion,
    handler: Arc<H>,
) -> Response<axum::body::Body> {
    let refuse = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(axum::body::Body::from(text));
        *response.status_mut() = status;
        response
    };
    if !token.admits(request.headers()) {
        return refuse(StatusCode::UNAUTHORIZED, "this cluster's secret is needed\n");
    }
    let Some(version) = choose(newest, request.headers()) else {
        let mut response = refuse(StatusCode::UPGRADE_REQUIRED, "frames of another version\n");
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(newest.offer()));
        return response;
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let Some((stream, early)) = take_stream(upgraded) else {
            tracing::error!("a connection for frames has an unexpected transport");
            return;
        };
        serve(stream, &early, version, handler).await;
    });
    let mut response = refuse(StatusCode::SWITCHING_PROTOCOLS, "");
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(version.name()));
    response
}

fn choose(newest: FrameVersion, headers: &HeaderMap) -> Option<FrameVersion> {
    headers.get(header::UPGRADE)?.to_str().ok().and_then(|offered| newest.choose(offered))
}

async fn serve<H: Handler>(stream: Stream, early: &[u8], version: FrameVersion, handler: Arc<H>) {
    let serving = Arc::new(Serving { version, outbox: Outbox::default(), in_flight: AtomicUsize::new(0) });
    let (reader, writer) = tokio::io::split(stream);
    let writing = tokio::spawn({
        let serving = Arc::clone(&serving);
        async move {
            if let Err(error) = serving.outbox.write_to(writer).await {
                tracing::debug!(%error, "a caller's connection broke");
            }
            serving.outbox.close();
        }
    });
    read(reader, BytesMut::from(early), &serving, &*handler).await;
    serving.outbox.close();
    // The writer ends by itself once the outbox is closed, or is stuck on a peer that reads nothing.
    writing.abort();
}

async fn read<H: Handler>(
    mut reader: impl AsyncRead + Unpin,
    mut buffer: BytesMut,
    serving: &Arc<Serving>,
    handler: &H,
) {
    let mut heard = CallsHeard::default();
    loop {
        loop {
            match Frame::take(&mut buffer) {
                Ok(Some(frame)) => match arrived(frame, &mut heard, serving, handler) {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!(%error, "a caller sent a call that can't be; closing its connection");
                        return;
                    }
                },
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a caller sent a damaged frame; closing its connection");
                    return;
                }
            }
        }
        make_room(&mut buffer);
        match tokio::time::timeout(SILENCE, reader.read_buf(&mut buffer)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return,
        }
    }
}

fn arrived<H: Handler>(
    mut frame: Frame,
    heard: &mut CallsHeard,
    serving: &Arc<Serving>,
    handler: &H,
) -> Result<(), DecodeError> {
    match frame.kind {
        FrameKind::Call | FrameKind::TracedCall => {
            let trace = match frame.kind {
                FrameKind::TracedCall if serving.version < FrameVersion::Two => {
                    return Err(DecodeError::Malformed("frame kind"));
                }
                FrameKind::TracedCall => Some(TraceContext::take(&mut frame.head)?),
                _ => None,
            };
            if !heard.is_new(Correlation::from_u64(frame.correlation))? {
                tracing::warn!("a call came twice; the second is passed over");
                return Ok(());
            }
            let before = serving.in_flight.fetch_add(1, Ordering::Relaxed);
            let reply = ReplyHandle { connection: Arc::clone(serving), correlation: frame.correlation };
            if before >= MAX_IN_FLIGHT {
                let answer = Answer { ring_version: 0, reply: Reply::Refused(Refusal::Overloaded) };
                reply.send(answer.encode());
                return Ok(());
            }
            let deadline = Instant::now() + Duration::from_millis(u64::from(frame.deadline_ms));
            handler.handle(IncomingCall { payload: frame.head, trace, deadline, reply });
        }
        FrameKind::Ping => {
            if serving.outbox.push(Frame::bare(FrameKind::Pong)).is_err() {
                serving.outbox.close();
            }
        }
        FrameKind::Answer | FrameKind::Pong => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
