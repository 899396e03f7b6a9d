//! The shopping cart of the Dynamo paper: its value, the merge of siblings, and what a client does to it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dice::Dice;
use super::dots::{Actors, Dot, Seen};
use super::history::{Change, WriteId};
use crate::client::Reply;

/// The header that a deletion carries its number in, and its name among a sibling's `meta`.
pub(crate) const WRITE_HEADER: &str = "cartwheel-meta-write";
const WRITE_META: &str = "write";
/// A cart with as many items is paid for: all its items are removed.
const FULL: usize = 40;

/// An item: `c{client}-{n}`, added once in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Item {
    /// Who added it.
    pub(crate) client: u16,
    /// The how-many-eth of that client.
    pub(crate) n: u32,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}-{}", self.client, self.n)
    }
}

impl FromStr for Item {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.strip_prefix('c').and_then(|rest| rest.split_once('-'));
        let item =
            parts.and_then(|(client, n)| Some(Self { client: client.parse().ok()?, n: n.parse().ok()? }));
        item.ok_or_else(|| format!("no item: {text:?}"))
    }
}

/// The value of a cart, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    cart: String,
    write: WriteId,
    items: Vec<String>,
}

/// The value that a write of a cart stores.
pub(crate) fn encode(key: &str, id: WriteId, items: &[Item]) -> Vec<u8> {
    let items = items.iter().map(Item::to_string).collect();
    serde_json::to_vec(&Stored { cart: key.to_owned(), write: id, items }).unwrap_or_default()
}

/// One version in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Which write made it; `None` for a deletion that does not say.
    pub(crate) write: Option<WriteId>,
    /// Its name, where the answer says it.
    pub(crate) dot: Option<Dot>,
    /// Its items, in order.
    pub(crate) items: Vec<Item>,
    /// Is it a deletion?
    pub(crate) deleted: bool,
}

/// What a read of a cart showed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    /// All that the answer has seen.
    pub(crate) clock: Arc<Seen>,
    /// The versions. A cart that is deleted altogether shows one deletion without a name.
    pub(crate) shown: Vec<Shown>,
}

impl Answer {
    /// The items of all siblings together.
    pub(crate) fn merged(&self) -> BTreeSet<Item> {
        self.shown.iter().flat_map(|shown| shown.items.iter().copied()).collect()
    }

    /// Reads the answer to a GET of `key`: status 200, 300 or 404.
    ///
    /// # Errors
    /// What can't be the answer to a read of this cart.
    pub(crate) fn parse(reply: &Reply, key: &str, actors: &mut Actors) -> Result<Self, String> {
        let clock = Arc::new(actors.clock(reply.header("vector-clock").unwrap_or_default())?);
        let json =
            || serde_json::from_slice::<Value>(&reply.body).map_err(|e| format!("{key}: no JSON: {e}"));
        let shown = match reply.status.as_u16() {
            200 => vec![value(&reply.body, key, None)?],
            300 => {
                let siblings = json()?;
                let siblings = siblings.as_array().ok_or_else(|| format!("{key}: siblings are no list"))?;
                siblings.iter().map(|one| sibling(one, key, actors)).collect::<Result<_, _>>()?
            }
            404 if reply.header("cartwheel-deleted") == Some("?1") => {
                vec![Shown { write: None, dot: None, items: Vec::new(), deleted: true }]
            }
            404 => Vec::new(),
            status => return Err(format!("{key}: status {status} to a read")),
        };
        Ok(Self { clock, shown })
    }
}

fn value(body: &[u8], key: &str, dot: Option<Dot>) -> Result<Shown, String> {
    let stored: Stored = serde_json::from_slice(body).map_err(|e| format!("{key}: a strange value: {e}"))?;
    if stored.cart != key {
        return Err(format!("{key}: shows a value of {}", stored.cart));
    }
    let mut items = stored.items.iter().map(|item| item.parse()).collect::<Result<Vec<Item>, _>>()?;
    items.sort_unstable();
    Ok(Shown { write: Some(stored.write), dot, items, deleted: false })
}

fn sibling(json: &Value, key: &str, actors: &mut Actors) -> Result<Shown, String> {
    let text = |name: &str| json.get(name).and_then(Value::as_str);
    let dot = actors.dot(text("dot").unwrap_or_default())?;
    if json.get("deleted") == Some(&Value::Bool(true)) {
        let said = json.get("meta").and_then(|meta| meta.get(WRITE_META)).and_then(Value::as_str);
        let write = said.and_then(|id| id.parse().ok());
        return Ok(Shown { write, dot: Some(dot), items: Vec::new(), deleted: true });
    }
    let body = text("value").ok_or_else(|| format!("{key}: a sibling without a value"))?;
    value(body.as_bytes(), key, Some(dot))
}

/// What a client that saw `answer` does to the cart: mostly it adds `new`, one time in eight it removes an
/// item, rarely it deletes the cart; a full cart is paid for.
pub(crate) fn decide(dice: &mut Dice, answer: &Answer, new: Item) -> Change {
    let seen = Arc::clone(&answer.clock);
    let merged = answer.merged();
    let drawn = dice.below(64);
    if drawn == 0 && !answer.shown.is_empty() {
        return Change { seen, removed: merged.into_iter().collect(), delete: true, ..Change::default() };
    }
    let all: Vec<Item> = merged.into_iter().collect();
    if all.len() >= FULL {
        return Change { adds: Some(new), items: vec![new], removed: all, seen, delete: false };
    }
    if drawn <= 8
        && let Some(gone) = dice.pick(&all).copied()
    {
        let items = all.into_iter().filter(|item| *item != gone).collect();
        return Change { adds: None, items, removed: vec![gone], seen, delete: false };
    }
    let mut items = all;
    items.push(new);
    Change { adds: Some(new), items, removed: Vec::new(), seen, delete: false }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;

    fn item(text: &str) -> Item {
        text.parse().unwrap()
    }

    fn reply(status: u16, headers: &[(&'static str, &str)], body: Vec<u8>) -> Reply {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        Reply { status: StatusCode::from_u16(status).unwrap(), headers: map, body: Bytes::from(body) }
    }

    #[test]
    fn items_read_and_write_back() {
        assert_eq!(item("c3-17"), Item { client: 3, n: 17 });
        assert_eq!(item("c3-17").to_string(), "c3-17");
        for bad in ["", "c3", "3-17", "c-17", "c3-x", "c3-17-1"] {
            assert!(bad.parse::<Item>().is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_are_read_and_merged() {
        let mut actors = Actors::default();
        let one = encode("k", 4, &[item("c1-1"), item("c0-2")]);
        let read =
            Answer::parse(&reply(200, &[("vector-clock", "a.1=2, mac=:x:")], one.clone()), "k", &mut actors);
        let read = read.unwrap();
        assert_eq!(read.shown[0].write, Some(4));
        assert_eq!(read.merged(), BTreeSet::from([item("c0-2"), item("c1-1")]));
        assert!(read.clock.covers(actors.dot("a.1=2").unwrap()));
        assert!(Answer::parse(&reply(200, &[], one.clone()), "other", &mut actors).is_err());
        assert!(Answer::parse(&reply(200, &[], b"milk".to_vec()), "k", &mut actors).is_err());

        let siblings = serde_json::json!([
            {"dot": "a.1=2", "deleted": false, "value": String::from_utf8(one).unwrap()},
            {"dot": "b.1=1", "deleted": false, "value": r#"{"cart":"k","write":5,"items":["c2-9"]}"#},
            {"dot": "c.1=1", "deleted": true, "meta": {"write": "6"}},
        ]);
        let read =
            Answer::parse(&reply(300, &[], siblings.to_string().into_bytes()), "k", &mut actors).unwrap();
        assert_eq!(read.shown.iter().map(|s| s.write).collect::<Vec<_>>(), [Some(4), Some(5), Some(6)]);
        assert_eq!(read.shown[1].dot, Some(actors.dot("b.1=1").unwrap()));
        assert!(read.shown[2].deleted);
        assert_eq!(read.merged().len(), 3);

        let gone =
            Answer::parse(&reply(404, &[("cartwheel-deleted", "?1")], vec![]), "k", &mut actors).unwrap();
        assert!(gone.shown[0].deleted);
        assert!(Answer::parse(&reply(404, &[], vec![]), "k", &mut actors).unwrap().shown.is_empty());
        assert!(Answer::parse(&reply(503, &[], vec![]), "k", &mut actors).is_err());
    }

    #[test]
    fn clients_change_only_what_they_saw() {
        let full: Vec<Item> = (0..).map(|n| Item { client: 1, n }).take(FULL).collect();
        let shows = |items: &[Item]| Answer {
            clock: Arc::default(),
            shown: vec![Shown { write: Some(0), dot: None, items: items.to_vec(), deleted: false }],
        };
        let (mut dice, new) = (Dice::new(1, 1), item("c9-9"));
        let (mut added, mut removed, mut deleted) = (0, 0, 0);
        for _ in 0..640 {
            let change = decide(&mut dice, &shows(&full[..3]), new);
            let kept = full[..3].iter().filter(|item| change.items.contains(item)).count();
            assert_eq!(kept + change.removed.len(), 3, "{change:?}");
            assert_eq!(change.adds.is_some(), change.items.contains(&new));
            added += u32::from(change.adds.is_some());
            removed += u32::from(change.removed.len() == 1);
            deleted += u32::from(change.delete);
        }
        assert!(added > 500 && (40..130).contains(&removed) && (1..40).contains(&deleted));
        let paid =
            (0..64).map(|_| decide(&mut dice, &shows(&full), new)).find(|change| !change.delete).unwrap();
        assert_eq!((paid.items, paid.removed), (vec![new], full));
        let first = decide(&mut dice, &Answer::default(), new);
        assert_eq!((first.items, first.delete), (vec![new], false), "nothing seen, nothing to remove");
    }
}
