//! What clients do all day: carts that are read, changed, emptied and written back, writes without a clock, one key that
//! everybody wants, several requests at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use cartwheel_cluster::seams::Random;
use cartwheel_core::quorum::Durability;
use futures_util::future::join_all;

use super::{Client, Context, HOT, How, now};
use crate::checker::VAGUE;
use crate::claims::{Ask, N};
use crate::world::{Bug, pass};

/// How many requests a client has under way at once, now and then.
const LANES: usize = 3;

impl Client {
    /// What a request asks for besides its key: mostly nothing.
    fn draw_ask(&self) -> Ask {
        let some = |one_in: u64| self.taste.below(one_in) == 0;
        let count = || usize::try_from(1 + self.taste.below(N as u64)).unwrap();
        let (r, w) = (some(3).then(count), some(3).then(count));
        let durability = match self.taste.below(12) {
            0 => Some(Durability::Memory),
            1 => Some(Durability::Disk),
            2 => Some(Durability::Bucket),
            _ => None,
        };
        let sloppy = match self.taste.below(8) {
            0 => Some(true),
            1 => Some(false),
            _ => None,
        };
        Ask { r, w, durability, sloppy, at_rest: false }
    }

    /// The key that the draw means, or another: that which all write, one that is deleted blindly, or the same in another
    /// namespace.
    fn draw_key(&self, drawn: u64) -> String {
        match self.taste.below(16) {
            0 | 1 => format!("carts/{HOT}"),
            2 => format!("carts/{VAGUE}"),
            3..=5 => format!("wishes/cart-{drawn}"),
            _ => format!("carts/cart-{drawn}"),
        }
    }

    /// Requests for several keys at once, each over a connection of its own.
    async fn at_once(&mut self, lanes: &mut [Client]) {
        let keys: Vec<u64> = lanes.iter().map(|_| self.taste.below(self.shared.keys)).collect();
        let work = lanes.iter_mut().zip(keys).map(|(lane, drawn)| async move {
            let (key, ask) = (lane.draw_key(drawn), lane.draw_ask());
            let context = lane.read(&key, &ask, None).await;
            if let Some(context) = context.filter(|_| !key.ends_with(VAGUE)) {
                lane.write(&key, &context, How::Plainly, ask).await;
            }
        });
        join_all(work).await;
    }

    /// Fills carts until it is time to stop.
    pub async fn fill_carts(mut self) {
        self.ready().await;
        let mut last: BTreeMap<String, Context> = BTreeMap::new();
        let lane = |number: usize| Client::new(&format!("{}/{number}", self.name), Arc::clone(&self.shared));
        let mut lanes: Vec<Client> = (0..LANES).map(lane).collect();
        while now() < *self.shared.stop.lock() {
            pass(self.random.millis(10..250)).await;
            self.write_later().await;
            if self.taste.below(12) == 0 {
                self.at_once(&mut lanes).await;
            }
            let drawn = self.random.below(self.shared.keys);
            let (key, ask) = (self.draw_key(drawn), self.draw_ask());
            let nothing = Context::default();
            let written = match self.random.below(12) {
                0..=2 if key.ends_with(VAGUE) => self.write(&key, &nothing, How::DeletingBlindly, ask).await,
                // Somebody who knows nothing.
                0 => self.write(&key, &nothing, How::Plainly, ask).await,
                1 => self.write(&key, &nothing, How::IfNew, ask).await,
                // Somebody who goes on from their own last write, unaware of all others.
                2 | 3 => {
                    let mut context = last.get(&key).cloned().unwrap_or_default();
                    if self.shared.bug == Bug::WholeClock
                        && let Some(read) = self.read(&key, &ask, None).await
                    {
                        context.clock = read.clock;
                    }
                    self.write(&key, &context, How::Plainly, ask).await
                }
                choice => match self.read(&key, &ask, last.get(&key).filter(|_| choice > 8)).await {
                    Some(context) => {
                        let how = match choice {
                            4 if context.clock.is_some() => How::Deleting,
                            5 | 6 if !context.tag.is_empty() => How::IfUnchanged,
                            _ => How::Plainly,
                        };
                        self.write(&key, &context, how, ask).await
                    }
                    None => None,
                },
            };
            last.extend(written.map(|context| (key, context)));
        }
        *self.shared.stopped.lock() += 1;
    }
}
