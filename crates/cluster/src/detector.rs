//! What this process believes about a peer, and when it gives up a connection: decisions, without I/O.
//!
//! The verdict is local (section 4.8 of the Dynamo paper): it comes from this process's own calls and pings,
//! and holds for this process only.
//!
//! ```text
//!             first call            opened
//!   Unknown ------------> Opening ----------> Up --- broke once ---> Reopening
//!      ^                     | failed         | ^                       |   |
//!      | nobody asked        v                | +------- opened --------+   | failed, or late
//!      +------------------ Down <-------------+ silent, slow, broke again   |
//!                            ^----------------------------------------------+
//! ```
//! `Down` leads to `Up` once a probe succeeds, and to `Reopening` when the peer itself says that it is back; an orderly
//! end while idle leads from `Up` to `Unknown`.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause between probes; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between probes.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How long calls wait for a connection that broke to be opened again.
const REOPEN_PATIENCE: Duration = Duration::from_millis(100);
/// Trouble further apart than this is not the same trouble.
const TROUBLE_MEMORY: Duration = Duration::from_secs(10);
/// A peer that is down is probed for so long after somebody last asked for it.
const FORGET: Duration = Duration::from_secs(300);

/// How often an open connection is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// A connection on which nothing arrived for so long is pinged.
const QUIET: Duration = Duration::from_millis(500);
/// A connection on which nothing arrived for so long, though it was pinged, is given up.
const SILENCE: Duration = Duration::from_millis(1500);
/// A look that comes so long after the one before says more about this process than about its peer.
const LATE: Duration = Duration::from_secs(1);
/// So many calls in a row lost by their deadline: the peer is too slow to be of use.
const MAX_LOST: usize = 5;
/// A lost call that was given less time than this says nothing about the peer.
const FAIR_CHANCE: Duration = Duration::from_millis(100);

/// What is believed of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Belief {
    /// Nothing is known or under way: never tried, ended in an orderly way, or forgotten.
    #[default]
    Unknown,
    /// Its first connection is being opened; calls wait.
    Opening,
    /// Its connection broke and is being opened again; calls wait, not for long.
    Reopening,
    /// It has an open connection.
    Up,
    /// It failed; calls are refused, and it is probed.
    Down,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// In an orderly way, with no call in flight.
    Idle,
    /// It was cut, or calls were in flight.
    Broken,
    /// Nothing was heard although it was pinged.
    Silent,
    /// It answers pings, but no calls.
    Slow,
    /// Somebody else says that the peer is dead, and nothing was heard to the contrary.
    Suspected,
}

/// What becomes of a call to a peer without an open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It waits, and the peer's task must be started.
    WaitAndStart,
    /// It waits for the connection that is being opened.
    Wait,
    /// It fails at once.
    Refuse,
}

/// What the peer's task does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It ends; the next call starts another.
    Rest,
    /// It opens a connection; those who wait for it wait for so long, or for as long as opening may take.
    Open { patience: Option<Duration> },
    /// It opens one after a pause.
    OpenAfter(Duration),
}

/// The belief about one peer and what it rests on. A task tends the peer for as long as it is not `Unknown`.
#[derive(Debug, Default)]
pub(crate) struct Detector {
    belief: Belief,
    /// Failures in a row; see [`TROUBLE_MEMORY`].
    failures: u32,
    /// When the last of them was.
    trouble: Option<Instant>,
    /// When somebody last asked for the peer while it was down, or when it went down.
    wanted: Option<Instant>,
}

impl Detector {
    /// Somebody has a call, and there is no open connection.
    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        match self.belief {
            Belief::Unknown => {
                self.belief = Belief::Opening;
                Admission::WaitAndStart
            }
            Belief::Opening | Belief::Reopening => Admission::Wait,
            Belief::Up => Admission::Refuse,
            Belief::Down => {
                self.wanted = Some(now);
                Admission::Refuse
            }
        }
    }

    /// Somebody asks whether the peer is down. Whoever asks may want to call: it stays worth probing.
    pub(crate) fn is_down(&mut self, now: Instant) -> bool {
        let down = self.belief == Belief::Down;
        if down {
            self.wanted = Some(now);
        }
        down
    }

    /// Is the peer down? Nobody asks for it by that.
    pub(crate) fn believes_down(&self) -> bool {
        self.belief == Belief::Down
    }

    /// Do calls wait for a connection?
    pub(crate) fn is_opening(&self) -> bool {
        matches!(self.belief, Belief::Opening | Belief::Reopening)
    }

    /// A connection is open, and the peer answered a ping on it.
    pub(crate) fn opened(&mut self) {
        self.belief = Belief::Up;
    }

    /// No connection could be opened.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.count(now);
        self.go_down(now);
    }

    /// Opening takes longer than those who wait for it have patience. It goes on, as a probe.
    pub(crate) fn late(&mut self, now: Instant) {
        self.go_down(now);
    }

    /// The connection ended.
    pub(crate) fn ended(&mut self, end: End, now: Instant) {
        let was_up = self.belief == Belief::Up;
        if was_up && end == End::Idle {
            self.belief = Belief::Unknown;
            return;
        }
        self.count(now);
        if was_up && end == End::Broken && self.failures == 1 {
            self.belief = Belief::Reopening;
        } else {
            self.go_down(now);
        }
    }

    /// Somebody else says that the peer is dead, and nothing was heard to the contrary. Returns whether the
    /// peer's task must be started.
    pub(crate) fn suspected(&mut self, now: Instant) -> bool {
        let nobody_tends = self.belief == Belief::Unknown;
        self.go_down(now);
        nobody_tends
    }

    /// The peer itself says that it is back: what failed before says nothing any more. Returns whether it was down;
    /// calls wait for its connection now, and the peer's task must be told not to wait any longer.
    pub(crate) fn returned(&mut self) -> bool {
        self.failures = 0;
        let was_down = self.belief == Belief::Down;
        if was_down {
            self.belief = Belief::Reopening;
        }
        was_down
    }

    /// What the peer's task does next. `random` is for the jitter.
    pub(crate) fn next(&mut self, now: Instant, random: u64) -> Next {
        match self.belief {
            Belief::Unknown | Belief::Up => Next::Rest,
            Belief::Opening => Next::Open { patience: None },
            Belief::Reopening => Next::Open { patience: Some(REOPEN_PATIENCE) },
            Belief::Down if self.wanted.is_some_and(|at| now.duration_since(at) < FORGET) => {
                Next::OpenAfter(pause(self.failures, random))
            }
            Belief::Down => {
                *self = Self::default();
                Next::Rest
            }
        }
    }

    fn count(&mut self, now: Instant) {
        if self.trouble.is_some_and(|at| now.duration_since(at) > TROUBLE_MEMORY) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.trouble = Some(now);
    }

    fn go_down(&mut self, now: Instant) {
        if self.belief != Belief::Down {
            self.belief = Belief::Down;
            self.wanted = Some(now);
        }
    }
}

/// The pause after so many failures in a row: doubling, and between half and all of it at random.
fn pause(failures: u32, random: u64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX_PAUSE);
    let half = u64::try_from(doubled.as_micros() / 2).unwrap_or(0);
    Duration::from_micros(half + random % (half + 1))
}

/// What was seen of a connection by the time of a look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signs {
    /// When something last arrived.
    pub(crate) heard: Instant,
    /// When an answer last arrived, or the connection was opened.
    pub(crate) answered: Instant,
    /// A backlog of frames was being written since the last look, and it moved: the ping may be stuck in it.
    pub(crate) moved: bool,
    /// Calls lost by their deadline since the last look that [`Signs::tells`] something.
    pub(crate) lost: usize,
}

impl Signs {
    /// Does a lost call tell anything about a peer that last answered at `answered`?
    pub(crate) fn tells(sent: Instant, expired: Instant, answered: Instant) -> bool {
        expired > answered && expired.duration_since(sent) >= FAIR_CHANCE
    }
}

/// What to do about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Fine,
    /// Ping it.
    Ping,
    /// Give it up.
    GiveUp(End),
}

/// Looks at one open connection every [`TICK`].
#[derive(Debug)]
pub(crate) struct Watch {
    looked: Instant,
    /// When this process last came round after it had been stopped or starved, or the connection was opened.
    resumed: Instant,
    /// When the backlog last moved.
    moved: Instant,
    /// When the first ping of this quiet period was sent.
    pinged: Option<Instant>,
    /// Calls lost by their deadline since the last answer.
    lost: usize,
}

impl Watch {
    /// For a connection opened at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self { looked: now, resumed: now, moved: now, pinged: None, lost: 0 }
    }

    /// Judges the connection.
    pub(crate) fn look(&mut self, now: Instant, signs: Signs) -> Verdict {
        if signs.answered >= self.looked {
            self.lost = 0;
        }
        if now.duration_since(self.looked) > LATE {
            // The answers may be here, unread. Everything begins anew, with a full period of silence.
            self.resumed = now;
            self.pinged = None;
            self.lost = 0;
        } else {
            self.lost += signs.lost;
        }
        if signs.moved {
            self.moved = now;
        }
        self.looked = now;

        let quiet = now.duration_since(signs.heard.max(self.resumed).max(self.moved));
        if is_fresh(quiet) {
            self.pinged = None;
        } else {
            let pinged = *self.pinged.get_or_insert(now);
            if quiet >= SILENCE && now.duration_since(pinged) >= QUIET {
                return Verdict::GiveUp(End::Silent);
            }
        }
        let unanswered = now.duration_since(signs.answered.max(self.resumed));
        if self.lost >= MAX_LOST && !is_fresh(unanswered) {
            return Verdict::GiveUp(End::Slow);
        }
        if self.pinged.is_some() { Verdict::Ping } else { Verdict::Fine }
    }
}

/// Is a sign of life of this age proof that the peer is there?
pub(crate) fn is_fresh(age: Duration) -> bool {
    age < QUIET
}

/// A moving average in which each sample weighs an eighth. 0 stands for none yet, and only for that.
pub(crate) fn smooth(average: u64, sample: u64) -> u64 {
    let smoothed = if average == 0 { sample } else { average - average / 8 + sample / 8 };
    smoothed.max(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn up() -> Detector {
        let mut peer = Detector::default();
        assert_eq!(peer.admit(Instant::now()), Admission::WaitAndStart);
        peer.opened();
        peer
    }

    #[test]
    fn pauses_double_with_jitter_up_to_the_limit() {
        for (failures, longest) in [(0, 50), (1, 50), (2, 100), (3, 200), (7, 2000), (4_000_000, 2000)] {
            for random in [0, 1 << 40, u64::MAX] {
                let pause = pause(failures, random).as_millis();
                assert!((longest / 2..=longest).contains(&pause), "{failures}: {pause}");
            }
        }
    }

    #[test]
    fn calls_wait_for_a_first_connection_and_for_none_of_a_peer_that_failed() {
        let now = Instant::now();
        let mut peer = Detector::default();
        assert!(!peer.is_down(now));
        assert_eq!(peer.admit(now), Admission::WaitAndStart);
        assert_eq!(peer.next(now, 0), Next::Open { patience: None });
        assert_eq!(peer.admit(now), Admission::Wait);
        assert!(peer.is_opening() && !peer.is_down(now));
        peer.failed(now);
        assert_eq!(peer.admit(now), Admission::Refuse);
        assert!(!peer.is_opening() && peer.is_down(now));
        assert_eq!(peer.next(now, 0), Next::OpenAfter(25 * MS));
        peer.failed(now);
        assert_eq!(peer.next(now, 0), Next::OpenAfter(50 * MS));
        peer.opened();
        assert!(!peer.is_down(now));
    }

    #[test]
    fn an_orderly_end_while_idle_is_no_failure() {
        let now = Instant::now();
        let mut peer = up();
        peer.ended(End::Idle, now);
        assert!(!peer.is_down(now));
        assert_eq!(peer.next(now, 0), Next::Rest);
        assert_eq!(peer.admit(now), Admission::WaitAndStart);
    }

    #[test]
    fn one_break_is_forgiven_and_two_in_a_short_time_are_not() {
        let now = Instant::now();
        let mut peer = up();
        peer.ended(End::Broken, now);
        assert_eq!(peer.next(now, 0), Next::Open { patience: Some(REOPEN_PATIENCE) });
        assert_eq!(peer.admit(now), Admission::Wait);
        peer.opened();
        peer.ended(End::Broken, now + TROUBLE_MEMORY);
        assert!(peer.is_down(now));
        peer.opened();
        peer.ended(End::Broken, now + 2 * TROUBLE_MEMORY + MS);
        assert!(!peer.is_down(now) && peer.is_opening());
    }

    #[test]
    fn a_reopening_that_takes_long_goes_on_as_a_probe() {
        let now = Instant::now();
        let mut peer = up();
        peer.ended(End::Broken, now);
        peer.late(now);
        assert_eq!(peer.admit(now), Admission::Refuse);
        peer.opened();
        assert!(!peer.is_down(now));
    }

    #[test]
    fn every_other_end_is_a_failure() {
        for end in [End::Silent, End::Slow, End::Suspected] {
            let now = Instant::now();
            let mut peer = up();
            peer.ended(end, now);
            assert!(peer.is_down(now), "{end:?}");
        }
    }

    #[test]
    fn suspicion_decides_nothing_but_who_probes() {
        let now = Instant::now();
        let mut ended = up();
        ended.ended(End::Idle, now);
        assert!(ended.suspected(now), "nobody tends it yet");
        assert!(ended.is_down(now));
        assert!(!ended.suspected(now), "somebody does already");
        // The connection's end was noticed by the reader at the same time.
        for end in [End::Idle, End::Broken, End::Suspected] {
            let mut peer = up();
            assert!(!peer.suspected(now));
            peer.ended(end, now);
            assert!(peer.is_down(now), "{end:?}");
        }
    }

    #[test]
    fn a_peer_that_nobody_asks_for_is_forgotten() {
        let now = Instant::now();
        let mut peer = Detector::default();
        peer.admit(now);
        peer.failed(now);
        assert_eq!(peer.admit(now + FORGET / 2), Admission::Refuse);
        peer.failed(now + FORGET);
        assert_ne!(peer.next(now + FORGET, 0), Next::Rest, "called since");
        assert!(peer.is_down(now + FORGET));
        assert_ne!(peer.next(now + FORGET * 3 / 2, 0), Next::Rest, "asked about since");
        assert_eq!(peer.next(now + FORGET * 2, 0), Next::Rest);
        assert!(!peer.is_down(now + FORGET * 2));
        assert_eq!(peer.admit(now + FORGET * 2), Admission::WaitAndStart);
    }

    /// Looks every tick up to `until` after `start`; the verdicts other than `Fine`, with their time in ms.
    fn looks(until: u64, tick: u64, signs: impl Fn(u64, Instant) -> Signs) -> Vec<(u64, Verdict)> {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let mut found = Vec::new();
        for at in (1..=until / tick).map(|n| n * tick) {
            let verdict = watch.look(start + Duration::from_millis(at), signs(at, start));
            if verdict != Verdict::Fine {
                found.push((at, verdict));
            }
        }
        found
    }

    fn nothing(start: Instant) -> Signs {
        Signs { heard: start, answered: start, moved: false, lost: 0 }
    }

    #[test]
    fn silence_is_pinged_and_then_given_up() {
        let found = looks(1500, 250, |_, start| nothing(start));
        assert_eq!(found[0], (500, Verdict::Ping));
        assert_eq!(found.last(), Some(&(1500, Verdict::GiveUp(End::Silent))));
        assert!(found[..found.len() - 1].iter().all(|(_, v)| *v == Verdict::Ping));
    }

    #[test]
    fn pongs_keep_an_idle_connection() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let (mut heard, mut pings) = (start, 0);
        for now in (1..=240).map(|n| start + n * TICK) {
            match watch.look(now, Signs { heard, ..nothing(start) }) {
                Verdict::Fine => {}
                Verdict::Ping => (heard, pings) = (now + 10 * MS, pings + 1),
                Verdict::GiveUp(end) => panic!("{end:?}"),
            }
        }
        assert!((60..=120).contains(&pings), "{pings} pings in a minute");
    }

    #[test]
    fn a_process_that_came_late_judges_nobody() {
        assert_eq!(looks(60_000, 1001, |_, start| nothing(start)), []);
        // One late look gives a full period; then the silence counts.
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let late = start + Duration::from_secs(60);
        assert_eq!(watch.look(late, Signs { lost: 100, ..nothing(start) }), Verdict::Fine);
        for n in 1..6 {
            let verdict = watch.look(late + n * TICK, nothing(start));
            assert!(!matches!(verdict, Verdict::GiveUp(_)), "{n}: {verdict:?}");
        }
        assert_eq!(watch.look(late + 6 * TICK, nothing(start)), Verdict::GiveUp(End::Silent));
    }

    #[test]
    fn a_ping_gets_its_time_however_odd_the_looks() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        assert_eq!(watch.look(start + 400 * MS, nothing(start)), Verdict::Fine);
        assert_eq!(watch.look(start + 1350 * MS, nothing(start)), Verdict::Ping);
        assert_eq!(watch.look(start + 1600 * MS, nothing(start)), Verdict::Ping);
        assert_eq!(watch.look(start + 1850 * MS, nothing(start)), Verdict::GiveUp(End::Silent));
    }

    #[test]
    fn a_backlog_that_moves_is_no_silence() {
        let found = looks(10_000, 250, |at, start| Signs { moved: at < 5_000, ..nothing(start) });
        assert_eq!(found[0].0, 4750 + 500);
        assert_eq!(found.iter().find(|(_, v)| *v != Verdict::Ping).unwrap().0, 4750 + 1500);
    }

    #[test]
    fn five_lost_calls_without_an_answer_end_it() {
        let slow = Verdict::GiveUp(End::Slow);
        let pongs = |at: u64, start: Instant| start + Duration::from_millis(at);
        let one_each =
            looks(3000, 250, |at, start| Signs { heard: pongs(at, start), lost: 1, ..nothing(start) });
        assert_eq!(one_each.first(), Some(&(1250, slow)));
        // All at once, but answers were here a moment ago: not before 500 ms have passed without one.
        let at_once = looks(3000, 250, |at, start| Signs {
            heard: pongs(at, start),
            lost: if at == 250 { 100 } else { 0 },
            ..nothing(start)
        });
        assert_eq!(at_once.first(), Some(&(500, slow)));
        let four =
            |at, start| Signs { heard: pongs(at, start), lost: usize::from(at <= 1000), ..nothing(start) };
        assert_eq!(looks(60_000, 250, four), []);
        let answered_in_between = |at, start| Signs {
            heard: pongs(at, start),
            answered: start + Duration::from_millis(at / 1000 * 1000),
            lost: 1,
            ..nothing(start)
        };
        assert_eq!(looks(60_000, 250, answered_in_between), []);
    }

    #[test]
    fn a_call_without_a_fair_chance_tells_nothing() {
        let now = Instant::now();
        assert!(Signs::tells(now, now + FAIR_CHANCE, now));
        assert!(!Signs::tells(now, now + FAIR_CHANCE - MS, now));
        assert!(!Signs::tells(now, now + FAIR_CHANCE, now + FAIR_CHANCE), "there was an answer after it");
    }

    #[test]
    fn the_average_follows_and_is_never_none_again() {
        assert_eq!(smooth(0, 800), 800);
        assert_eq!(smooth(800, 1600), 900);
        assert_eq!(smooth(0, 0), 1);
        assert_eq!(smooth(1, 0), 1);
        let settled = (0..100).fold(1, |average, _| smooth(average, 1_000_000));
        assert!((990_000..=1_000_000).contains(&settled), "{settled}");
        assert_eq!(smooth(u64::MAX, u64::MAX), u64::MAX);
    }
}
