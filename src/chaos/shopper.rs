//! A client with a shopping cart: reads it, merges what it finds, changes it, and writes it back, through any
//! gateway.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::cart::{self, Answer, Item, WRITE_HEADER};
use super::dice::Dice;
use super::history::{Change, Fate, WriteId};
use super::honest::{Asked, doubt};
use super::world::{CartId, World};
use crate::client::{Client, Gateway, Reply, key_path};

/// The namespace of the carts.
pub(crate) const NAMESPACE: &str = "carts";
/// How long the cluster may take for a request.
const DEADLINE: &str = "3s";
/// How long a client waits for an answer: longer, so that the cluster can say that it is late.
const TIMEOUT: Duration = Duration::from_secs(6);
/// Before a request is repeated.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));
/// How an operation failed that no attempt got an answer to.
const NO_ANSWER: &str = "no answer";
/// Attempts at one operation.
const ATTEMPTS: usize = 2;
/// One read in so many is of any cart there ever was, and one change in so many is blind; one write in so many
/// waits for the bucket; one choice in so many is of the first two carts, where clients meet.
const ELSEWHERE: usize = 20;
const BLIND: usize = 20;
const IN_BUCKET: usize = 16;
const MEET: usize = 4;

/// One client.
pub(crate) struct Shopper {
    number: u16,
    items: u32,
    dice: Dice,
    world: Arc<World>,
    gateways: Vec<Client>,
    places: usize,
}

impl Shopper {
    /// The client of this number, with connections of its own.
    pub(crate) fn new(
        number: u16,
        seed: u64,
        world: Arc<World>,
        gateways: &[Gateway],
        places: usize,
    ) -> Self {
        let dice = Dice::new(seed, u64::from(number));
        let gateways = gateways.iter().map(|gateway| Client::new(gateway.clone(), TIMEOUT)).collect();
        Self { number, items: 0, dice, world, gateways, places }
    }

    /// Changes carts, one every `pace`, until told to stop.
    pub(crate) async fn shop(mut self, pace: Duration, mut stop: watch::Receiver<bool>) {
        let mut turns = tokio::time::interval(pace);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                _ = turns.tick() => {}
            }
            self.turn().await;
        }
    }

    async fn turn(&mut self) {
        let places = if self.dice.one_in(MEET) { self.places.min(2) } else { self.places };
        let place = self.dice.below(places);
        let cart = self.world.lock().cart_at(place);
        if self.dice.one_in(ELSEWHERE) {
            let carts = self.world.lock().carts.len();
            let any = self.dice.below(carts);
            self.read(any).await;
            return;
        }
        let new = Item { client: self.number, n: self.items };
        let (change, clock) = if self.dice.one_in(BLIND) {
            (Change { adds: Some(new), items: vec![new], ..Change::default() }, None)
        } else {
            let Some((answer, clock)) = self.read(cart).await else { return };
            (cart::decide(&mut self.dice, &answer, new), clock)
        };
        self.items += u32::from(change.adds.is_some());
        self.write(cart, change, clock).await;
    }

    /// Reads a cart: what it shows, and the clock to give back.
    async fn read(&mut self, cart: CartId) -> Option<(Answer, Option<HeaderValue>)> {
        let key = self.world.lock().carts[cart].key.clone();
        let path = format!("{}?deadline={DEADLINE}", key_path(NAMESPACE, key.as_bytes()));
        let began = self.world.now();
        let mut failure = NO_ANSWER.to_owned();
        let first = self.dice.below(self.gateways.len());
        for attempt in 0..ATTEMPTS {
            self.pause_before(attempt).await;
            let gateway = &self.gateways[(first + attempt) % self.gateways.len()];
            let ticket = self.world.begin_read(cart);
            let sent = gateway.send(Method::GET, &path, accept_json(), Bytes::new()).await;
            if let Ok(reply) = &sent {
                self.world.doubt(doubt(Asked::Read, reply));
            }
            match sent {
                Ok(reply) if is_read(&reply) => {
                    let answer = self.world.end_read(ticket, &reply);
                    self.world.end_operation(began, false, None);
                    return answer.map(|answer| (answer, reply.headers.get("vector-clock").cloned()));
                }
                Ok(reply) => failure = reply.status.as_u16().to_string(),
                Err(_) => {}
            }
        }
        self.world.end_operation(began, false, Some(failure));
        None
    }

    async fn pause_before(&mut self, attempt: usize) {
        if attempt > 0 {
            self.world.lock().counts.retried += 1;
            tokio::time::sleep(self.dice.between(PAUSE.0, PAUSE.1)).await;
        }
    }

    async fn write(&mut self, cart: CartId, change: Change, clock: Option<HeaderValue>) {
        let delete = change.delete;
        let (id, key, body) = {
            let mut state = self.world.lock();
            let items = change.items.clone();
            let id = state.begin_write(cart, change);
            let key = state.carts[cart].key.clone();
            let body = if delete { Vec::new() } else { cart::encode(&key, id, &items) };
            (id, key, Bytes::from(body))
        };
        let durability = if self.dice.one_in(IN_BUCKET) { "bucket" } else { "disk" };
        let query = format!("?durability={durability}&deadline={DEADLINE}");
        let path = key_path(NAMESPACE, key.as_bytes()) + &query;
        let method = if delete { Method::DELETE } else { Method::PUT };
        let headers = write_headers(id, clock);
        let began = self.world.now();
        let (mut failure, mut refused) = (NO_ANSWER.to_owned(), true);
        let first = self.dice.below(self.gateways.len());
        for attempt in 0..ATTEMPTS {
            self.pause_before(attempt).await;
            let gateway = &self.gateways[(first + attempt) % self.gateways.len()];
            let sent = gateway.send(method.clone(), &path, headers.clone(), body.clone()).await;
            if let Ok(reply) = &sent {
                self.world.doubt(doubt(Asked::Write(durability), reply));
            }
            match sent {
                Ok(reply) if reply.status.is_success() => {
                    let mut state = self.world.lock();
                    state.counts.degraded += u64::from(reply.header("cartwheel-degraded").is_some());
                    state.acknowledge(cart, id, reply.header("dot"));
                    drop(state);
                    self.world.end_operation(began, true, None);
                    return;
                }
                Ok(reply) => {
                    refused &= certainly_not_applied(&reply);
                    failure = reply.status.as_u16().to_string();
                }
                Err(_) => refused = false,
            }
        }
        let fate = if refused { Fate::Refused } else { Fate::Unknown };
        self.world.lock().carts[cart].set_fate(id, fate);
        self.world.end_operation(began, true, Some(failure));
    }
}

/// The headers of a read: siblings as JSON.
pub(crate) fn accept_json() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))])
}

/// Is this an answer that a read gives?
pub(crate) fn is_read(reply: &Reply) -> bool {
    matches!(reply.status, StatusCode::OK | StatusCode::MULTIPLE_CHOICES | StatusCode::NOT_FOUND)
}

fn write_headers(id: WriteId, clock: Option<HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let number = HeaderValue::from(id);
    // A deletion has no value to say whose it is. The key is part of a request's name already.
    headers.insert(HeaderName::from_static(WRITE_HEADER), number.clone());
    headers.insert(HeaderName::from_static("idempotency-key"), number);
    if let Some(clock) = clock {
        headers.insert(HeaderName::from_static("vector-clock"), clock);
    }
    headers
}

/// Does the answer promise that the write was not carried out?
fn certainly_not_applied(reply: &Reply) -> bool {
    let problem = serde_json::from_slice::<Value>(&reply.body).unwrap_or_default();
    problem.get("applied").and_then(Value::as_str) == Some("no")
}
