//! The calling end of one connection: calls in flight, answers paired with them, keep-alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use cartwheel_core::frame::{Correlation, Frame, FrameKind, FrameVersion, MAX_IN_FLIGHT};
use cartwheel_core::trace::TraceContext;
use cartwheel_core::wire::{self, Pieces};

use crate::detector::{End, Signs, TICK, Verdict, Watch, is_fresh, smooth};
use crate::outbox::Outbox;
use crate::read_buffer::make_room;
use crate::seams::Stream;

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
    sent: Instant,
    expires: Instant,
}

/// Calls in flight, by their [`Correlation`].
#[derive(Debug, Default)]
struct InFlight {
    /// The turn of each, and its call.
    slots: Vec<(u32, Option<Pending>)>,
    free: Vec<u32>,
    ended: Option<End>,
}

impl InFlight {
    fn add(&mut self, pending: Pending) -> Result<u64, Pending> {
        if self.ended.is_some() {
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
        Ok(Correlation { slot, turn: entry.0 }.to_u64())
    }

    fn take(&mut self, correlation: u64) -> Option<Pending> {
        let Correlation { slot, turn } = Correlation::from_u64(correlation);
        let entry = self.slots.get_mut(slot as usize).filter(|entry| entry.0 == turn)?;
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

    /// Takes no more calls. The first end counts; one is orderly only if no call was in flight.
    fn end(&mut self, end: End) {
        let idle = self.free.len() == self.slots.len();
        self.ended.get_or_insert(if end == End::Idle && !idle { End::Broken } else { end });
    }

    fn take_all(&mut self) -> Vec<Pending> {
        self.free.clear();
        std::mem::take(&mut self.slots).into_iter().filter_map(|(_, pending)| pending).collect()
    }
}

/// How long a peer's answers take, on average.
#[derive(Debug, Default)]
pub(crate) struct Latency(AtomicU64);

impl Latency {
    /// The average; `None` before the first answer.
    pub(crate) fn average(&self) -> Option<Duration> {
        Some(self.0.load(Ordering::Relaxed)).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    }

    /// Only the reader of the peer's one connection calls this.
    fn note(&self, sample: Duration) {
        let nanos = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(smooth(self.0.load(Ordering::Relaxed), nanos), Ordering::Relaxed);
    }
}

/// When something arrived last.
#[derive(Debug, Clone, Copy)]
struct Heard {
    anything: Instant,
    answer: Instant,
}

/// An open connection to a storage node.
#[derive(Debug)]
pub(crate) struct Connection {
    version: FrameVersion,
    outbox: Outbox,
    in_flight: Mutex<InFlight>,
    heard: Mutex<Heard>,
    latency: Arc<Latency>,
    over: Notify,
}

impl Connection {
    /// Takes over a stream that was upgraded to frames of `version`; `early` is what was read beyond the upgrade.
    /// Returns its reader and writer too, for [`Connection::watch`].
    pub(crate) fn start(
        stream: Stream,
        early: BytesMut,
        version: FrameVersion,
        latency: Arc<Latency>,
    ) -> (Arc<Self>, JoinSet<()>) {
        let now = Instant::now();
        let connection = Arc::new(Self {
            version,
            outbox: Outbox::default(),
            in_flight: Mutex::default(),
            heard: Mutex::new(Heard { anything: now, answer: now }),
            latency,
            over: Notify::new(),
        });
        let (reader, writer) = tokio::io::split(stream);
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let connection = Arc::clone(&connection);
            async move {
                let end = connection.read(reader, early).await;
                connection.end(end);
            }
        });
        tasks.spawn({
            let connection = Arc::clone(&connection);
            async move {
                if let Err(error) = connection.outbox.write_to(writer).await {
                    tracing::debug!(%error, "connection to a storage node broke");
                }
                connection.end(End::Broken);
            }
        });
        (connection, tasks)
    }

    /// Sends a call; its outcome goes to `reply_to`, whatever it is. An answer that takes longer than
    /// `patience` from `now` counts as lost. The other end hears of `trace` if it knows of traces; a call that it does
    /// not know is not sent.
    pub(crate) fn submit(
        &self,
        (head, body): Pieces,
        trace: Option<TraceContext>,
        now: Instant,
        patience: Duration,
        reply_to: ReplyTo,
    ) {
        if wire::since(&head) > self.version {
            return reply_to.send(Err(CallError::NotSent));
        }
        let pending = Pending { reply_to, sent: now, expires: now + patience };
        let added = self.in_flight.lock().add(pending);
        let correlation = match added {
            Ok(correlation) => correlation,
            Err(pending) => return pending.reply_to.send(Err(CallError::NotSent)),
        };
        let deadline_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).max(1);
        let (kind, head) = match trace {
            Some(trace) if self.version >= FrameVersion::Two => (FrameKind::TracedCall, trace.before(&head)),
            _ => (FrameKind::Call, head),
        };
        let frame = Frame { kind, correlation, deadline_ms, head, body };
        if self.outbox.push(frame).is_err()
            && let Some(pending) = self.in_flight.lock().take(correlation)
        {
            pending.reply_to.send(Err(CallError::NotSent));
        }
    }

    /// Was something heard so recently that the peer must be there?
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        is_fresh(now.duration_since(self.heard.lock().anything))
    }

    /// Ends the connection: it takes no more calls. Those in flight are left to [`Connection::lose_calls`].
    pub(crate) fn end(&self, end: End) {
        self.in_flight.lock().end(end);
        self.outbox.close();
        self.over.notify_one();
    }

    /// Gives up the calls in flight.
    pub(crate) fn lose_calls(&self) {
        let lost = self.in_flight.lock().take_all();
        for pending in lost {
            pending.reply_to.send(Err(CallError::Lost));
        }
    }

    /// Pings the connection when it has gone quiet, expires calls without answer, and gives the connection up
    /// when the time has come. Returns how it ended, and ends reader and writer, which would otherwise hold a
    /// silent socket until the kernel gives it up.
    pub(crate) async fn watch(&self, tasks: JoinSet<()>) -> End {
        let mut watch = Watch::new(Instant::now());
        let mut progress = None;
        loop {
            // Either is a reason to look.
            let _ = tokio::time::timeout(TICK, self.over.notified()).await;
            if let Some(end) = self.in_flight.lock().ended {
                drop(tasks);
                return end;
            }
            let now = Instant::now();
            let heard = *self.heard.lock();
            let lost = self.expire_calls(now, heard.answer);
            let before = std::mem::replace(&mut progress, self.outbox.progress());
            let moved = before.is_some() && progress.is_some() && progress != before;
            let signs = Signs { heard: heard.anything, answered: heard.answer, moved, lost };
            match watch.look(now, signs) {
                Verdict::Fine => {}
                // Where there is no room for a ping, silence decides as well.
                Verdict::Ping => {
                    let _ = self.outbox.push(Frame::bare(FrameKind::Ping));
                }
                Verdict::GiveUp(end) => self.end(end),
            }
        }
    }

    /// Gives up calls whose time is over; how many of them say something about the peer.
    fn expire_calls(&self, now: Instant, answered: Instant) -> usize {
        let expired = self.in_flight.lock().take_expired(now);
        let telling = expired.iter().filter(|p| Signs::tells(p.sent, p.expires, answered)).count();
        for pending in expired {
            pending.reply_to.send(Err(CallError::Lost));
        }
        telling
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin, mut buffer: BytesMut) -> End {
        let mut now = Instant::now();
        loop {
            let mut answered = false;
            loop {
                match Frame::take(&mut buffer) {
                    Ok(Some(frame)) => answered |= self.arrived(frame, now),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "a storage node sent a damaged frame; closing the connection");
                        return End::Broken;
                    }
                }
            }
            {
                let mut heard = self.heard.lock();
                heard.anything = now;
                if answered {
                    heard.answer = now;
                }
            }
            make_room(&mut buffer);
            match reader.read_buf(&mut buffer).await {
                Ok(0) if buffer.is_empty() => return End::Idle,
                Ok(0) | Err(_) => return End::Broken,
                Ok(_) => now = Instant::now(),
            }
        }
    }

    /// Hands an answer to whoever waits for it. A late one, for which nobody does, is an answer too.
    fn arrived(&self, frame: Frame, now: Instant) -> bool {
        if frame.kind != FrameKind::Answer {
            return false;
        }
        let pending = self.in_flight.lock().take(frame.correlation);
        if let Some(pending) = pending {
            self.latency.note(now.duration_since(pending.sent));
            pending.reply_to.send(Ok(frame.head));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn pending(tag: u32) -> (Pending, mpsc::UnboundedReceiver<Outcome>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let now = Instant::now();
        (Pending { reply_to: ReplyTo { sender, tag }, sent: now, expires: now }, receiver)
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
    async fn calls_in_flight_are_bounded_and_ended_connections_take_none() {
        let mut in_flight = InFlight::default();
        let first = in_flight.add(pending(0).0).unwrap();
        for _ in 1..MAX_IN_FLIGHT {
            in_flight.add(pending(0).0).unwrap();
        }
        assert!(in_flight.add(pending(0).0).is_err());
        in_flight.end(End::Silent);
        in_flight.end(End::Idle);
        assert_eq!(in_flight.ended, Some(End::Silent), "the first end counts");
        assert_eq!(in_flight.take_all().len(), MAX_IN_FLIGHT);
        assert!(in_flight.add(pending(0).0).is_err());
        assert!(in_flight.take(first).is_none());
    }

    #[tokio::test]
    async fn an_end_is_orderly_only_without_a_call_in_flight() {
        let mut busy = InFlight::default();
        let call = busy.add(pending(0).0).unwrap();
        let mut idle = InFlight::default();
        let answered = idle.add(pending(0).0).unwrap();
        idle.take(answered).unwrap();
        for in_flight in [&mut busy, &mut idle] {
            in_flight.end(End::Idle);
        }
        assert_eq!((busy.ended, idle.ended), (Some(End::Broken), Some(End::Idle)));
        assert!(busy.take(call).is_some(), "an answer that was read already still counts");
    }

    /// A connection, its reader and writer, the other end, and where answers to calls go.
    struct Rig {
        connection: Arc<Connection>,
        tasks: JoinSet<()>,
        theirs: DuplexStream,
        sender: mpsc::UnboundedSender<Outcome>,
        outcomes: mpsc::UnboundedReceiver<Outcome>,
    }

    fn rig() -> Rig {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (connection, tasks) =
            Connection::start(Box::new(ours), BytesMut::new(), FrameVersion::NEWEST, Arc::default());
        let (sender, outcomes) = mpsc::unbounded_channel();
        Rig { connection, tasks, theirs, sender, outcomes }
    }

    impl Rig {
        fn submit(&self, tag: u32, patience: Duration) {
            let reply_to = ReplyTo { sender: self.sender.clone(), tag };
            let call = (Bytes::from_static(b"call"), Bytes::new());
            self.connection.submit(call, None, Instant::now(), patience, reply_to);
        }
    }

    /// Reads frames and answers each ping, and each call if `answers`.
    async fn serve(theirs: DuplexStream, answers: bool) {
        let (mut reader, mut writer) = tokio::io::split(theirs);
        let mut buffer = BytesMut::new();
        while reader.read_buf(&mut buffer).await.unwrap() > 0 {
            while let Some(frame) = Frame::take(&mut buffer).unwrap() {
                let kind = if frame.kind == FrameKind::Ping { FrameKind::Pong } else { FrameKind::Answer };
                if answers || kind == FrameKind::Pong {
                    let answer = Frame { correlation: frame.correlation, ..Frame::bare(kind) };
                    writer.write_all(&answer.header()).await.unwrap();
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_given_up_and_its_calls_are_lost() {
        let mut rig = rig();
        let began = Instant::now();
        rig.submit(7, PATIENCE);
        assert_eq!(rig.connection.watch(rig.tasks).await, End::Silent);
        assert!(began.elapsed() <= Duration::from_millis(1750), "{:?}", began.elapsed());
        rig.connection.lose_calls();
        assert_eq!(rig.outcomes.recv().await, Some((7, Err(CallError::Lost))));
        let reply_to = ReplyTo { sender: rig.sender, tag: 8 };
        rig.connection.submit((Bytes::new(), Bytes::new()), None, Instant::now(), PATIENCE, reply_to);
        assert_eq!(rig.outcomes.recv().await, Some((8, Err(CallError::NotSent))));
        // The socket is let go of: the other end reads what was written, then the end.
        let mut rest = Vec::new();
        rig.theirs.read_to_end(&mut rest).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_answers_pings_only_is_given_up_after_five_lost_calls() {
        let mut rig = rig();
        for tag in 0..4 {
            rig.submit(tag, Duration::from_millis(300));
        }
        let connection = Arc::clone(&rig.connection);
        let mut watching = tokio::spawn(async move { connection.watch(rig.tasks).await });
        tokio::spawn(serve(rig.theirs, false));
        for tag in 0..4 {
            assert_eq!(rig.outcomes.recv().await, Some((tag, Err(CallError::Lost))));
        }
        // Four are not enough, however long it takes.
        assert!(tokio::time::timeout(PATIENCE, &mut watching).await.is_err());
        let reply_to = ReplyTo { sender: rig.sender, tag: 4 };
        let call = (Bytes::new(), Bytes::new());
        rig.connection.submit(call, None, Instant::now(), Duration::from_millis(300), reply_to);
        assert_eq!(watching.await.unwrap(), End::Slow);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_keep_a_connection_and_make_its_average() {
        let mut rig = rig();
        let latency = Arc::clone(&rig.connection.latency);
        assert_eq!(latency.average(), None);
        rig.submit(1, PATIENCE);
        let connection = Arc::clone(&rig.connection);
        let watching = tokio::spawn(async move { connection.watch(rig.tasks).await });
        tokio::time::advance(Duration::from_millis(40)).await;
        let serving = tokio::spawn(serve(rig.theirs, true));
        assert_eq!(rig.outcomes.recv().await, Some((1, Ok(Bytes::new()))));
        assert_eq!(latency.average(), Some(Duration::from_millis(40)));
        assert!(rig.connection.is_fresh(Instant::now()));
        serving.abort();
        assert_eq!(watching.await.unwrap(), End::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_gives_up_no_connection() {
        let mut rig = rig();
        for tag in 0..6 {
            rig.submit(tag, Duration::from_secs(5));
        }
        let connection = Arc::clone(&rig.connection);
        let mut watching = tokio::spawn(async move { connection.watch(rig.tasks).await });
        tokio::task::yield_now().await;
        // Nothing ran for a minute, and the other end is served only after that.
        tokio::time::advance(PATIENCE).await;
        for _ in 0..6 {
            assert!(matches!(rig.outcomes.recv().await, Some((_, Err(CallError::Lost)))));
        }
        tokio::spawn(serve(rig.theirs, false));
        assert!(tokio::time::timeout(PATIENCE, &mut watching).await.is_err(), "it lives");
    }

    #[tokio::test(start_paused = true)]
    async fn late_answers_are_answers() {
        let mut rig = rig();
        let connection = Arc::clone(&rig.connection);
        let mut watching = tokio::spawn(async move { connection.watch(rig.tasks).await });
        let (mut reader, mut writer) = tokio::io::split(rig.theirs);
        let mut buffer = BytesMut::new();
        for tag in 0..20 {
            let call = (Bytes::new(), Bytes::new());
            let reply_to = ReplyTo { sender: rig.sender.clone(), tag };
            rig.connection.submit(call, None, Instant::now(), Duration::from_millis(200), reply_to);
            assert_eq!(rig.outcomes.recv().await, Some((tag, Err(CallError::Lost))));
            let call = loop {
                match Frame::take(&mut buffer).unwrap() {
                    Some(frame) if frame.kind == FrameKind::Call => break frame,
                    Some(_) => {}
                    None => drop(reader.read_buf(&mut buffer).await.unwrap()),
                }
            };
            let answer = Frame { correlation: call.correlation, ..Frame::bare(FrameKind::Answer) };
            writer.write_all(&answer.header()).await.unwrap();
        }
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut watching).await.is_err(), "it lives");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_call_on_its_way_is_no_silence() {
        let mut rig = rig();
        let connection = Arc::clone(&rig.connection);
        let mut watching = tokio::spawn(async move { connection.watch(rig.tasks).await });
        let reply_to = ReplyTo { sender: rig.sender, tag: 0 };
        let call = (Bytes::new(), Bytes::from(vec![0; 16 * 1024 * 1024]));
        rig.connection.submit(call, None, Instant::now(), PATIENCE, reply_to);
        // 5 MB/s, and the ping waits behind it all.
        let mut part = vec![0; 1024 * 1024];
        for _ in 0..16 {
            rig.theirs.read_exact(&mut part).await.unwrap();
            let pause = tokio::time::timeout(Duration::from_millis(200), &mut watching);
            assert!(pause.await.is_err(), "it lives");
        }
        // From here on nothing moves.
        assert_eq!(watching.await.unwrap(), End::Silent);
    }
}
