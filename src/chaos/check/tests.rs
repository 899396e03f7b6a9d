//! Plants each kind of fault in a small history, and sees it found; and sees none where there is none.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::super::cart::{Answer, Item, Shown};
use super::super::dots::{Actors, Seen};
use super::super::history::{Cart, Change, Fate, WriteId};
use super::{Findings, Owed, check};

/// One cart under test.
#[derive(Default)]
struct Story {
    cart: Cart,
    actors: Actors,
}

fn item(n: u32) -> Item {
    Item { client: 1, n }
}

impl Story {
    fn seen(&mut self, clock: &str) -> Arc<Seen> {
        Arc::new(self.actors.clock(clock).unwrap())
    }

    /// A PUT of these items by somebody who had seen `clock`; it adds the item of its own number.
    fn put(&mut self, clock: &str, items: &[u32], removed: &[u32]) -> WriteId {
        let own = self.cart.next_id();
        let change = Change {
            adds: items.contains(&own).then_some(item(own)),
            items: items.iter().copied().map(item).collect(),
            removed: removed.iter().copied().map(item).collect(),
            seen: self.seen(clock),
            delete: false,
        };
        self.cart.begin(change)
    }

    fn delete(&mut self, clock: &str, removed: &[u32]) -> WriteId {
        let removed = removed.iter().copied().map(item).collect();
        let seen = self.seen(clock);
        self.cart.begin(Change { seen, removed, delete: true, ..Change::default() })
    }

    fn acknowledge(&mut self, id: WriteId, dot: &str) {
        let dot = self.actors.dot(dot).unwrap();
        self.cart.acknowledge(id, dot).unwrap();
    }

    /// An answer with this clock that shows these writes under these names.
    fn answer(&mut self, clock: &str, shown: &[(WriteId, &str)]) -> Answer {
        let shown = shown.iter().map(|(id, dot)| {
            let change = &self.cart.write(*id).unwrap().change;
            let dot = self.actors.dot(dot).ok();
            Shown { write: Some(*id), dot, items: change.items.clone(), deleted: change.delete }
        });
        let shown = shown.collect();
        Answer { clock: self.seen(clock), shown }
    }

    /// The answer to a read of a deleted cart: 404.
    fn gone(&mut self, clock: &str) -> Answer {
        let shown = vec![Shown { write: None, dot: None, items: Vec::new(), deleted: true }];
        Answer { clock: self.seen(clock), shown }
    }

    fn check(&self, answer: &Answer) -> Findings {
        check(&self.cart, Owed::All, answer)
    }

    /// Writes 0 and 1 are concurrent, 2 has seen 0; all are acknowledged.
    fn three() -> Self {
        let mut story = Self::default();
        for (clock, items, dot) in [("", &[0][..], "a.1=1"), ("", &[1], "a.1=2"), ("a.1=1", &[0, 2], "b.1=1")]
        {
            let id = story.put(clock, items, &[]);
            story.acknowledge(id, dot);
        }
        story
    }
}

const NOTHING: &str = "a.1=2, b.1=1";

#[test]
fn an_answer_that_shows_or_replaces_everything_is_fine() {
    let mut story = Story::three();
    let answer = story.answer(NOTHING, &[(1, "a.1=2"), (2, "b.1=1")]);
    assert_eq!(story.check(&answer), Findings::default());
}

#[test]
fn a_planted_loss_is_found() {
    let mut story = Story::three();
    // The store forgot write 1 altogether, or claims to have seen it and does not show it.
    for clock in ["a.1=1, b.1=1", NOTHING] {
        let answer = story.answer(clock, &[(2, "b.1=1")]);
        assert_eq!(story.check(&answer).lost, [1].into(), "{clock}");
    }
    let empty = story.answer("", &[]);
    assert_eq!(story.check(&empty).lost, [0, 1, 2].into());
    // In a read on the way, a claim without the value is a loss already.
    let answer = story.answer(NOTHING, &[(2, "b.1=1")]);
    assert_eq!(check(&story.cart, Owed::Before(3), &answer).lost, [1].into());
}

#[test]
fn an_item_that_a_later_write_dropped_is_lost_unless_it_removed_it() {
    let mut story = Story::three();
    let dropped = story.put(NOTHING, &[0, 2, 3], &[]);
    story.acknowledge(dropped, "c.1=1");
    let clock = "a.1=2, b.1=1, c.1=1";
    let answer = story.answer(clock, &[(3, "c.1=1")]);
    assert_eq!(story.check(&answer).lost, [1].into());
    // A removal of unknown fate may have been carried out.
    let unknown = story.put(NOTHING, &[0, 2], &[1]);
    story.cart.set_fate(unknown, Fate::Unknown);
    assert_eq!(story.check(&answer).lost, [].into());
    story.cart.set_fate(unknown, Fate::Refused);
    assert_eq!(story.check(&answer).lost, [1].into());
}

#[test]
fn a_planted_stale_read_is_found() {
    let mut story = Story::three();
    let answer = story.answer("a.1=2", &[(0, "a.1=1"), (1, "a.1=2")]);
    let found = |owed| check(&story.cart, Owed::Before(owed), &answer);
    assert_eq!(found(2), Findings::default(), "write 2 was acknowledged after the read began");
    assert_eq!(found(3), Findings { stale: [2].into(), ..Findings::default() });
}

#[test]
fn a_deleted_cart_accounts_for_what_the_deletion_saw() {
    let mut story = Story::three();
    let delete = story.delete(NOTHING, &[0, 1, 2]);
    let gone = story.gone("a.1=2, b.1=1, c.1=1");
    // It may have been carried out, though nobody said so.
    assert_eq!(story.check(&gone), Findings::default());
    story.acknowledge(delete, "c.1=1");
    assert_eq!(story.check(&gone), Findings::default());
    let late = story.put("", &[4], &[]);
    story.acknowledge(late, "a.1=3");
    assert_eq!(story.check(&gone).lost, [late].into());
    let claims = story.gone("a.1=3, b.1=1, c.1=1");
    assert_eq!(story.check(&claims).lost, [late].into());
    let beside = story.answer("a.1=3, b.1=1, c.1=1", &[(delete, "c.1=1"), (late, "a.1=3")]);
    assert_eq!(story.check(&beside), Findings::default());
}

#[test]
fn a_planted_resurrected_item_is_found() {
    let mut story = Story::three();
    let removal = story.put(NOTHING, &[0, 2], &[1]);
    story.acknowledge(removal, "c.1=1");
    let clock = "a.1=2, b.1=1, c.1=1";
    let fine = story.answer(clock, &[(removal, "c.1=1")]);
    assert_eq!(story.check(&fine), Findings::default());
    let back = story.answer(clock, &[(1, "a.1=2")]);
    assert_eq!(story.check(&back).resurrected, [item(1)].into());
    let unseen = story.answer(NOTHING, &[(1, "a.1=2"), (2, "b.1=1")]);
    assert_eq!(story.check(&unseen).resurrected, [].into(), "stale or lost, not resurrected");
    // Somebody who had seen the removal carries on with what he was wrongly shown: still no reason.
    let carried = story.put(clock, &[1, 4], &[]);
    let dot = story.actors.dot("c.1=2").unwrap();
    story.cart.learn(carried, dot).unwrap();
    assert_eq!(story.check(&back).resurrected, [item(1)].into());
    // A concurrent write that kept the item is a reason.
    story.put("a.1=2", &[1, 5], &[]);
    assert_eq!(story.check(&back).resurrected, [].into());
}

#[test]
fn an_item_that_a_second_mint_kept_is_not_resurrected() {
    let mut story = Story::three();
    let removal = story.put(NOTHING, &[0, 2], &[1]);
    story.acknowledge(removal, "c.1=1");
    let again = story.actors.dot("d.1=1").unwrap();
    story.cart.learn(1, again).unwrap();
    let both = story.answer("a.1=2, b.1=1, c.1=1, d.1=1", &[(removal, "c.1=1"), (1, "d.1=1")]);
    assert_eq!(story.check(&both), Findings { shown_again: [1].into(), ..Findings::default() });
}

#[test]
fn a_planted_needless_sibling_is_found() {
    let mut story = Story::three();
    let answer = story.answer(NOTHING, &[(0, "a.1=1"), (1, "a.1=2"), (2, "b.1=1")]);
    assert_eq!(story.check(&answer), Findings { needless: [0].into(), ..Findings::default() });
    let twice = story.answer(NOTHING, &[(1, "a.1=2"), (1, "c.1=9"), (2, "b.1=1")]);
    assert_eq!(story.check(&twice), Findings { needless: [1].into(), ..Findings::default() });
}

#[test]
fn a_version_minted_twice_beside_a_later_one_is_told_apart() {
    let mut story = Story::three();
    let answer = story.answer("a.1=2, b.1=1, c.1=9", &[(0, "c.1=9"), (1, "a.1=2"), (2, "b.1=1")]);
    assert_eq!(story.check(&answer), Findings { shown_again: [0].into(), ..Findings::default() });
}

#[test]
fn what_cannot_be_true_is_found() {
    let mut story = Story::three();
    story.cart.set_fate(2, Fate::Refused);
    let mut answer = story.answer(NOTHING, &[(1, "a.1=2"), (2, "b.1=1")]);
    assert_eq!(story.check(&answer).untrue.len(), 1);
    story.cart.set_fate(2, Fate::Acknowledged);
    answer.shown[0].items.push(item(9));
    assert_eq!(story.check(&answer).untrue.len(), 1);
    answer.shown[0].write = Some(77);
    assert_eq!(story.check(&answer).untrue.len(), 1);
    let taken = story.actors.dot("a.1=1").unwrap();
    assert!(story.cart.learn(2, taken).is_err(), "a dot names one write");
}

/// Every home held the deletion, and all have forgotten it: nothing is left to show, not even a clock.
#[test]
fn a_deletion_that_is_forgotten_accounts_for_what_it_had_seen_and_for_nothing_else() {
    let mut story = Story::three();
    let nothing = Answer { clock: story.seen(""), shown: Vec::new() };
    assert_eq!(story.check(&nothing).lost.len(), 3, "nobody has deleted anything");
    let deletion = story.delete("a.1=1, b.1=1", &[0, 2]);
    assert_eq!(story.check(&nothing).lost, [1].into(), "it had not seen the second");
    story.cart.set_fate(deletion, Fate::Refused);
    assert_eq!(story.check(&nothing).lost.len(), 3, "it was not carried out");
}
