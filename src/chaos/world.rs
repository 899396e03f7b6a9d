//! What the clients, the faults and the checker share: the carts' histories, what happened when, and the counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::cart::Item;
use super::check::{Findings, Owed, check};
use super::dots::Actors;
use super::history::{Cart, Change, Fate, WriteId};
use super::{cart, dots};
use crate::client::Reply;

/// A cart with as many writes is put away, and another takes its place: clocks and histories stay short, and
/// the end of the run finds carts that nobody touched for long.
const CART_WRITES: usize = 250;
/// How long after a fault began or ended a read counts as near it.
const NEAR: Duration = Duration::from_secs(3);
/// How long a cluster may take to notice a fault.
const DETECTION: Duration = Duration::from_secs(5);
/// Most notes kept until somebody prints them.
const MAX_NOTES: usize = 100;

/// The how-many-eth cart of the run.
pub(crate) type CartId = usize;

/// How much of everything there was.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Reads and writes that came to an end, with their second attempts.
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    /// Of these: answered as meant.
    pub(crate) acknowledged: u64,
    pub(crate) acknowledged_writes: u64,
    /// Operations that were tried a second time.
    pub(crate) retried: u64,
    /// Operations that failed, by the status of the last attempt.
    pub(crate) failed: BTreeMap<String, u64>,
    /// Of these: with no fault begun within 5 s before.
    pub(crate) failed_settled: u64,
    /// Answers that said they came from the bucket.
    pub(crate) degraded: u64,
    pub(crate) stale: u64,
    pub(crate) stale_near_faults: u64,
    pub(crate) stale_degraded: u64,
    pub(crate) shown_again: u64,
    pub(crate) needless: u64,
    pub(crate) untrue: u64,
    /// Writes that failed although every gateway had long reached the bucket.
    pub(crate) refused: u64,
    /// Faults, by their word.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Processes that ended by themselves, and those of them that crashed.
    pub(crate) ended: u64,
    pub(crate) fell: u64,
    /// The longest time without an acknowledged write.
    pub(crate) longest_gap: Duration,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct World {
    started: Instant,
    state: Mutex<State>,
}

/// What the lock guards.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) carts: Vec<Cart>,
    pub(crate) counts: Counts,
    /// Acknowledged writes that are gone, and items that are back.
    pub(crate) lost: BTreeSet<(CartId, WriteId)>,
    pub(crate) resurrected: BTreeSet<(CartId, Item)>,
    /// Since when no write may be refused.
    pub(crate) writeable: Option<Duration>,
    actors: Actors,
    /// The cart in each place.
    places: Vec<CartId>,
    /// When faults began, and when they began or ended.
    begun: Vec<Duration>,
    edges: Vec<Duration>,
    /// Faults that have not ended under which two sides can't know of each other's writes.
    parted: usize,
    last_acknowledged: Duration,
    notes: Vec<String>,
}

/// A read under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    cart: CartId,
    owed: usize,
    began: Duration,
}

impl World {
    /// An empty world with so many places for carts. Its time starts now.
    pub(crate) fn new(places: usize) -> Self {
        let mut state = State::default();
        for place in 0..places {
            state.carts.push(Cart::new(format!("cart-{place}")));
            state.places.push(place);
        }
        Self { started: Instant::now(), state: Mutex::new(state) }
    }

    /// The time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The instant of a time since the start.
    pub(crate) fn instant(&self, at: Duration) -> Instant {
        self.started + at
    }

    /// Everything, for reading and counting.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A client that panicked has ended the run; its counts are as good as they were.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read of a cart begins.
    pub(crate) fn begin_read(&self, cart: CartId) -> Ticket {
        let began = self.now();
        Ticket { cart, owed: self.lock().carts[cart].acknowledged.len(), began }
    }

    /// A read was answered with 200, 300 or 404. Gives what it showed; `None` if that makes no sense.
    pub(crate) fn end_read(&self, ticket: Ticket, reply: &Reply) -> Option<cart::Answer> {
        let now = self.now();
        let mut state = self.lock();
        let degraded = reply.header("cartwheel-degraded").is_some();
        state.counts.degraded += u64::from(degraded);
        let (answer, findings) = state.judge(ticket.cart, Owed::Before(ticket.owed), reply)?;
        if !findings.stale.is_empty() {
            let near = state.near_fault(ticket.began, now);
            let counts = &mut state.counts;
            let counted = match () {
                () if degraded => &mut counts.stale_degraded,
                () if near => &mut counts.stale_near_faults,
                () => &mut counts.stale,
            };
            *counted += 1;
            if !degraded && !near {
                let key = state.carts[ticket.cart].key.clone();
                state.note(format!("a stale read of {key}: without {:?}", findings.stale));
            }
        }
        state.record(ticket.cart, findings);
        Some(answer)
    }

    /// Takes what a client knows of the end of an operation: its status, or why there was none.
    pub(crate) fn end_operation(&self, began: Duration, write: bool, failure: Option<String>) {
        let now = self.now();
        let mut state = self.lock();
        if write {
            state.counts.writes += 1;
        } else {
            state.counts.reads += 1;
        }
        let Some(status) = failure else {
            state.counts.acknowledged += 1;
            if write {
                state.counts.acknowledged_writes += 1;
                state.acknowledged_at(now);
            }
            return;
        };
        let promised = state.writeable.is_some_and(|since| since + DETECTION <= began);
        if write && promised {
            state.counts.refused += 1;
            state.note(format!(
                "REFUSED: a write failed with {status} while every gateway reached the bucket"
            ));
        }
        let recent = state.begun.iter().any(|at| *at <= now && began <= *at + DETECTION);
        if !recent {
            state.counts.failed_settled += 1;
        }
        *state.counts.failed.entry(status).or_default() += 1;
    }

    /// A fault of this kind begins. Does it part those who write from those who read, as long as it lasts?
    pub(crate) fn fault_begins(&self, word: &'static str, parts: bool) {
        let now = self.now();
        let mut state = self.lock();
        state.parted += usize::from(parts);
        state.begun.push(now);
        state.edges.push(now);
        *state.counts.faults.entry(word).or_default() += 1;
    }

    /// May a write be refused from now on?
    pub(crate) fn promise(&self, promised: bool) {
        let now = self.now();
        let mut state = self.lock();
        state.writeable = if promised { state.writeable.or(Some(now)) } else { None };
    }

    /// An answer said of itself what can't be.
    pub(crate) fn doubt(&self, doubt: Option<String>) {
        if let Some(doubt) = doubt {
            self.lock().untrue(&doubt);
        }
    }

    /// A fault ended.
    pub(crate) fn fault_ends(&self, parts: bool) {
        let now = self.now();
        let mut state = self.lock();
        state.parted = state.parted.saturating_sub(usize::from(parts));
        state.edges.push(now);
    }
}

impl State {
    /// The cart in a place; a new one if the old one has had its share of writes.
    pub(crate) fn cart_at(&mut self, place: usize) -> CartId {
        let cart = self.places[place];
        if self.carts[cart].writes.len() < CART_WRITES {
            return cart;
        }
        let next = self.carts.len();
        self.carts.push(Cart::new(format!("cart-{place}-{next}")));
        self.places[place] = next;
        next
    }

    /// A write is about to be sent; its number.
    pub(crate) fn begin_write(&mut self, cart: CartId, change: Change) -> WriteId {
        self.carts[cart].begin(change)
    }

    /// A write was acknowledged with this `Dot` header.
    pub(crate) fn acknowledge(&mut self, cart: CartId, id: WriteId, dot: Option<&str>) {
        let named = self.actors.dot(dot.unwrap_or_default());
        let learned = named.and_then(|dot: dots::Dot| self.carts[cart].acknowledge(id, dot));
        if let Err(strange) = learned {
            self.carts[cart].set_fate(id, Fate::Acknowledged);
            self.untrue(&strange);
        }
    }

    /// Reads and checks an answer, without recording what is found.
    pub(crate) fn judge(
        &mut self,
        cart: CartId,
        owed: Owed,
        reply: &Reply,
    ) -> Option<(cart::Answer, Findings)> {
        let key = self.carts[cart].key.clone();
        let answer = match cart::Answer::parse(reply, &key, &mut self.actors) {
            Ok(answer) => answer,
            Err(strange) => {
                self.untrue(&strange);
                return None;
            }
        };
        for shown in &answer.shown {
            if let (Some(id), Some(dot)) = (shown.write, shown.dot)
                && let Err(strange) = self.carts[cart].learn(id, dot)
            {
                self.untrue(&strange);
            }
        }
        let findings = check(&self.carts[cart], owed, &answer);
        Some((answer, findings))
    }

    /// Records what was found; a loss or a resurrected item once, however often it is seen.
    pub(crate) fn record(&mut self, cart: CartId, found: Findings) {
        let key = self.carts[cart].key.clone();
        for id in found.lost {
            if self.lost.insert((cart, id)) {
                self.note(format!("LOSS: {key}: the acknowledged write {id} is gone"));
            }
        }
        for item in found.resurrected {
            if self.resurrected.insert((cart, item)) {
                self.note(format!("RESURRECTED: {key}: {item} was removed and is shown again"));
            }
        }
        if !found.needless.is_empty() {
            self.counts.needless += 1;
            self.note(format!("NEEDLESS SIBLINGS: {key}: {:?} had been replaced", found.needless));
        }
        self.counts.shown_again += u64::from(!found.shown_again.is_empty());
        for strange in found.untrue {
            self.untrue(&strange);
        }
    }

    fn untrue(&mut self, strange: &str) {
        self.counts.untrue += 1;
        self.note(format!("UNTRUE: {strange}"));
    }

    /// An acknowledged write, or the end of the load: how long there was none.
    pub(crate) fn acknowledged_at(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.last_acknowledged);
        self.counts.longest_gap = self.counts.longest_gap.max(gap);
        self.last_acknowledged = self.last_acknowledged.max(now);
    }

    /// Did a fault begin or end during this time, or in the 3 s before it, or are links cut or slow?
    fn near_fault(&self, from: Duration, to: Duration) -> bool {
        self.parted > 0 || self.edges.iter().any(|edge| *edge <= to && from <= *edge + NEAR)
    }

    /// Keeps a remark for who prints.
    pub(crate) fn note(&mut self, text: String) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(text);
        }
    }

    /// The remarks since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;

    fn nothing(headers: &[(&'static str, &'static str)]) -> Reply {
        let headers = headers.iter().map(|(name, value)| (*name, HeaderValue::from_static(value)));
        let headers = headers.map(|(name, value)| (http::HeaderName::from_static(name), value));
        Reply { status: StatusCode::NOT_FOUND, headers: HeaderMap::from_iter(headers), body: Bytes::new() }
    }

    fn with_one_write() -> World {
        let world = World::new(2);
        let id = world.lock().begin_write(1, Change::default());
        world.lock().acknowledge(1, id, Some("a.1=1"));
        world
    }

    #[tokio::test(start_paused = true)]
    async fn stale_reads_are_sorted_by_where_they_happen() {
        let world = with_one_write();
        let read = |headers: &[_]| world.end_read(world.begin_read(1), &nothing(headers)).unwrap();
        read(&[]);
        assert_eq!(world.lock().counts.stale, 1);
        world.fault_begins("kills", false);
        tokio::time::advance(NEAR).await;
        read(&[]);
        read(&[("cartwheel-degraded", "bucket")]);
        tokio::time::advance(Duration::from_millis(1)).await;
        read(&[]);
        let state = world.lock();
        let counts = &state.counts;
        assert_eq!((counts.stale, counts.stale_near_faults, counts.stale_degraded), (2, 1, 1));
        assert_eq!((counts.degraded, state.lost.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn reads_while_links_are_cut_are_near_a_fault() {
        let world = with_one_write();
        let read = || world.end_read(world.begin_read(1), &nothing(&[])).unwrap();
        world.fault_begins("cuts", true);
        tokio::time::advance(NEAR * 2).await;
        read();
        world.fault_ends(true);
        tokio::time::advance(NEAR * 2).await;
        let counted = || {
            let state = world.lock();
            (state.counts.stale, state.counts.stale_near_faults)
        };
        assert_eq!(counted(), (0, 1));
        read();
        assert_eq!(counted(), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_is_counted_once() {
        let world = with_one_write();
        let claims = nothing(&[("vector-clock", "a.1=1")]);
        world.end_read(world.begin_read(1), &claims);
        world.end_read(world.begin_read(1), &claims);
        assert_eq!(world.lock().lost, [(1, 0)].into());
        assert!(world.lock().take_notes()[0].starts_with("LOSS"));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_gaps_are_measured() {
        let world = World::new(1);
        world.fault_begins("kills", false);
        tokio::time::advance(DETECTION).await;
        world.end_operation(world.now(), true, Some("503".to_owned()));
        tokio::time::advance(Duration::from_secs(1)).await;
        world.end_operation(world.now(), true, Some("503".to_owned()));
        world.end_operation(world.now(), true, None);
        world.end_operation(world.now(), false, None);
        let state = world.lock();
        assert_eq!((state.counts.failed["503"], state.counts.failed_settled), (2, 1));
        assert_eq!((state.counts.writes, state.counts.reads, state.counts.acknowledged), (3, 1, 2));
        assert_eq!(state.counts.longest_gap, Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_was_promised_may_not_fail() {
        let world = World::new(1);
        let fail = |write| world.end_operation(world.now(), write, Some("503".to_owned()));
        fail(true);
        world.promise(true);
        tokio::time::advance(DETECTION / 2).await;
        world.promise(true);
        fail(true);
        tokio::time::advance(DETECTION / 2).await;
        fail(false);
        assert_eq!(world.lock().counts.refused, 0, "not yet, and no read");
        fail(true);
        assert_eq!(world.lock().counts.refused, 1);
        world.promise(false);
        fail(true);
        assert_eq!(world.lock().counts.refused, 1);
        world.doubt(None);
        world.doubt(Some("strange".to_owned()));
        assert_eq!(world.lock().counts.untrue, 1);
    }

    #[test]
    fn a_cart_with_many_writes_makes_room() {
        let mut state = World::new(2).state.into_inner().unwrap();
        for _ in 0..CART_WRITES {
            assert_eq!(state.cart_at(1), 1);
            state.begin_write(1, Change::default());
        }
        assert_eq!((state.cart_at(1), state.cart_at(0)), (2, 0));
        assert_eq!(state.carts[2].key, "cart-1-2");
    }
}
