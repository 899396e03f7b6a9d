//! Reading what an operator asks of the membership out of a request body, strictly. Pure.
//!
//! `{"edits": [{"leave": {"id": "node-a"}}, {"weight": {"id": "node-b", "weight": 3}}], "ring_version": 7}`

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use cartwheel_core::names::NodeId;
use cartwheel_core::ring::change::{Edit, MAX_EDITS};
use cartwheel_core::ring::{MAX_VERSION, MAX_WEIGHT};

use crate::problem::Problem;

/// The edits, as people are told of them.
const EDITS: &str = "join, leave, weight, zone, forget, cancel";
/// Most characters of a name that are repeated in an error.
const SHOWN: usize = 64;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// In their order; at least one.
    pub(crate) edits: Vec<Edit>,
    /// The version that they are for; without one, whichever is the newest.
    pub(crate) ring_version: Option<u64>,
    /// Forget members whatever speaks against it.
    pub(crate) force: bool,
}

/// The body of a plan, or, with the version that it was made at, of its application.
///
/// # Errors
/// 400, naming the field and what it may be.
pub(crate) fn order(body: &[u8], applies: bool) -> Result<Order, Problem> {
    let known: &[&str] = if applies { &["edits", "ring_version", "force"] } else { &["edits", "force"] };
    let fields = Fields::of(String::new(), parse(body)?, known)?;
    let list = match fields.get("edits") {
        Some(Value::Array(list)) if (1..=MAX_EDITS).contains(&list.len()) => list,
        found => return Err(fields.refuse("edits", found, &format!("a list of 1 to {MAX_EDITS} edits"))),
    };
    let edits = list.iter().enumerate().map(|(at, value)| edit(&format!("edits[{at}]"), value));
    let edits = edits.collect::<Result<_, _>>()?;
    let ring_version = fields.version()?;
    if applies && ring_version.is_none() {
        return Err(fields.refuse("ring_version", None, "the version that the plan was made at"));
    }
    Ok(Order { edits, ring_version, force: fields.force()? })
}

/// The body of a shorthand for one edit of the member `id`; it may be empty where the edit has no other field.
///
/// # Errors
/// 400, naming the field and what it may be; 404 for an edit that has no shorthand.
pub(crate) fn shorthand(name: &str, id: NodeId, body: &[u8]) -> Result<Order, Problem> {
    let own: &[&str] = match name {
        "leave" => &["ring_version"],
        "forget" => &["ring_version", "force"],
        "weight" => &["weight", "ring_version"],
        "zone" => &["zone", "ring_version"],
        _ => return Err(Problem::no_such_path()),
    };
    let value = if body.is_empty() { Value::Object(Map::new()) } else { parse(body)? };
    let fields = Fields::of(String::new(), value, own)?;
    let edit = match name {
        "leave" => Edit::Leave { id },
        "forget" => Edit::Forget { id },
        "weight" => Edit::Weight { id, weight: fields.weight()? },
        _ => Edit::Zone { id, zone: fields.text("zone")? },
    };
    Ok(Order { edits: vec![edit], ring_version: fields.version()?, force: fields.force()? })
}

fn edit(path: &str, value: &Value) -> Result<Edit, Problem> {
    let one = format!("an object with one of {EDITS}");
    let refused = || Problem::bad_request(format!("field '{path}' is {}; it must be {one}", shown(value)));
    let Some((name, inner)) = value.as_object().filter(|o| o.len() == 1).and_then(|o| o.iter().next()) else {
        return Err(refused());
    };
    let known: &[&str] = match name.as_str() {
        "join" => &["id", "address", "zone", "weight"],
        "leave" | "forget" => &["id"],
        "weight" => &["id", "weight"],
        "zone" => &["id", "zone"],
        "cancel" => &[],
        _ => return Err(refused()),
    };
    let fields = Fields::of(format!("{path}.{name}."), inner.clone(), known)?;
    Ok(match name.as_str() {
        "join" => Edit::Join {
            id: fields.id()?,
            address: fields.text("address")?,
            zone: fields.text("zone")?,
            weight: fields.weight()?,
        },
        "leave" => Edit::Leave { id: fields.id()? },
        "weight" => Edit::Weight { id: fields.id()?, weight: fields.weight()? },
        "zone" => Edit::Zone { id: fields.id()?, zone: fields.text("zone")? },
        "forget" => Edit::Forget { id: fields.id()? },
        _ => Edit::Cancel,
    })
}

fn parse(body: &[u8]) -> Result<Value, Problem> {
    let Strict(value) = serde_json::from_slice(body)
        .map_err(|e| Problem::bad_request(format!("the body must be a JSON object: {e}")))?;
    Ok(value)
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(SHOWN).collect()
}

/// The fields of one object; `path` is what stands before their names.
struct Fields {
    path: String,
    fields: Map<String, Value>,
}

impl Fields {
    fn of(path: String, value: Value, known: &[&str]) -> Result<Self, Problem> {
        let place = path.trim_end_matches('.');
        let Value::Object(fields) = value else {
            let what = if place.is_empty() { "the body".to_owned() } else { format!("field '{place}'") };
            return Err(Problem::bad_request(format!("{what} is {}; it must be an object", shown(&value))));
        };
        match fields.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(Self { path, fields }),
            Some(name) => {
                let name: String = name.chars().take(SHOWN).collect();
                let there = if known.is_empty() { "no fields".to_owned() } else { known.join(", ") };
                Err(Problem::bad_request(format!(
                    "field '{path}{name}' is not known here; there are {there}"
                )))
            }
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    fn refuse(&self, name: &str, found: Option<&Value>, must_be: &str) -> Problem {
        let found = found.map_or_else(|| "missing".to_owned(), shown);
        Problem::bad_request(format!("field '{}{name}' is {found}; it must be {must_be}", self.path))
    }

    fn text(&self, name: &str) -> Result<String, Problem> {
        match self.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            found => Err(self.refuse(name, found, "a text")),
        }
    }

    fn id(&self) -> Result<NodeId, Problem> {
        let found = self.get("id");
        let id = self.text("id")?;
        NodeId::new(&id).map_err(|e| self.refuse("id", found, &format!("a node's name ({e})")))
    }

    fn weight(&self) -> Result<u32, Problem> {
        let found = self.get("weight");
        let number = found.and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
        let fits = number.filter(|number| (1..=MAX_WEIGHT).contains(number));
        fits.ok_or_else(|| self.refuse("weight", found, &format!("a number from 1 to {MAX_WEIGHT}")))
    }

    fn version(&self) -> Result<Option<u64>, Problem> {
        let Some(found) = self.get("ring_version") else { return Ok(None) };
        let version = found.as_u64().filter(|version| (1..=MAX_VERSION).contains(version));
        let refused =
            || self.refuse("ring_version", Some(found), &format!("a number from 1 to {MAX_VERSION}"));
        version.map(Some).ok_or_else(refused)
    }

    fn force(&self) -> Result<bool, Problem> {
        match self.get("force") {
            None => Ok(false),
            Some(Value::Bool(force)) => Ok(*force),
            found => Err(self.refuse("force", found, "true or false")),
        }
    }
}

/// Any JSON in which no object has a field twice: which of the two would be meant?
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((name, Strict(value))) = map.next_entry::<String, Strict>()? {
            if fields.contains_key(&name) {
                let name: String = name.chars().take(SHOWN).collect();
                return Err(A::Error::custom(format!("field '{name}' is given more than once")));
            }
            fields.insert(name, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn wrong(problem: &Problem, body: &str, words: &[&str]) {
        assert_eq!(problem.status.as_u16(), 400, "{body}");
        for word in words {
            assert!(problem.detail.contains(word), "'{word}' is not in: {}", problem.detail);
        }
    }

    #[test]
    fn all_edits_are_read_in_their_order() {
        let body = r#"{"edits": [
            {"join": {"id": "node-d", "address": "h:1", "zone": "z1", "weight": 2}},
            {"leave": {"id": "node-a"}}, {"weight": {"id": "node-b", "weight": 1000}},
            {"zone": {"id": "node-b", "zone": "z2"}}, {"forget": {"id": "node-c"}}, {"cancel": {}}
        ], "ring_version": 7, "force": true}"#;
        let read = order(body.as_bytes(), true).unwrap();
        let names: Vec<&str> = read.edits.iter().map(Edit::name).collect();
        assert_eq!(names.join(", "), "join, leave, weight, zone, forget, cancel");
        assert_eq!((read.ring_version, read.force), (Some(7), true));
        assert_eq!(read.edits[2], Edit::Weight { id: id("node-b"), weight: 1000 });
        let plan = order(br#"{"edits": [{"leave": {"id": "node-a"}}]}"#, false).unwrap();
        let edits = vec![Edit::Leave { id: id("node-a") }];
        assert_eq!(plan, Order { edits, ring_version: None, force: false });
    }

    #[test]
    fn refusals_name_the_field_and_what_it_may_be() {
        let edit = |edit: &str| format!(r#"{{"edits": [{edit}], "ring_version": 1}}"#);
        let long = format!("[{}]", vec![r#"{"cancel": {}}"#; 129].join(","));
        for (bad, words) in [
            (String::new(), &["JSON object"][..]),
            ("[]".to_owned(), &["the body is []", "an object"]),
            ("{}".to_owned(), &["'edits'", "missing", "1 to 128"]),
            (r#"{"edits": []}"#.to_owned(), &["'edits' is []", "1 to 128"]),
            (format!(r#"{{"edits": {long}}}"#), &["'edits'", "1 to 128"]),
            (r#"{"edit": []}"#.to_owned(), &["'edit' is not known", "edits, ring_version, force"]),
            (r#"{"edits": [{"cancel": {}}]}"#.to_owned(), &["'ring_version' is missing"]),
            (
                r#"{"edits": [{"cancel": {}}], "ring_version": 0}"#.to_owned(),
                &["'ring_version' is 0", "1 to 9999999999"],
            ),
            (
                r#"{"edits": [{"cancel": {}}], "ring_version": 1, "force": 1}"#.to_owned(),
                &["'force' is 1", "true or false"],
            ),
            (edit("1"), &["'edits[0]' is 1", "join, leave, weight, zone, forget, cancel"]),
            (edit("{}"), &["'edits[0]' is {}"]),
            (edit(r#"{"drop": {"id": "a"}}"#), &["'edits[0]'", "join, leave"]),
            (edit(r#"{"cancel": {}, "leave": {"id": "a"}}"#), &["'edits[0]'", "one of"]),
            (edit(r#"{"cancel": null}"#), &["'edits[0].cancel' is null", "an object"]),
            (edit(r#"{"cancel": {"id": "a"}}"#), &["'edits[0].cancel.id' is not known", "no fields"]),
            (edit(r#"{"leave": {}}"#), &["'edits[0].leave.id' is missing"]),
            (edit(r#"{"leave": {"id": 1}}"#), &["'edits[0].leave.id' is 1", "a text"]),
            (edit(r#"{"leave": {"id": "A/"}}"#), &["'edits[0].leave.id' is \"A/\""]),
            (edit(r#"{"leave": {"id": "a", "x": 1}}"#), &["'edits[0].leave.x' is not known"]),
            (edit(r#"{"leave": {"id": "a", "id": "b"}}"#), &["'id'", "more than once"]),
            (
                edit(r#"{"weight": {"id": "a", "weight": 0}}"#),
                &["'edits[0].weight.weight' is 0", "1 to 1000"],
            ),
            (edit(r#"{"weight": {"id": "a", "weight": 4294967297}}"#), &["1 to 1000"]),
            (edit(r#"{"weight": {"id": "a", "weight": "3"}}"#), &["1 to 1000"]),
            (edit(r#"{"weight": {"id": "a"}}"#), &["'edits[0].weight.weight' is missing"]),
            (edit(r#"{"zone": {"id": "a", "zone": 1}}"#), &["'edits[0].zone.zone' is 1"]),
            (
                edit(r#"{"join": {"id": "a", "zone": "z", "weight": 1}}"#),
                &["'edits[0].join.address' is missing"],
            ),
        ] {
            wrong(&order(bad.as_bytes(), true).unwrap_err(), &bad, words);
        }
        let body = r#"{"edits": [{"cancel": {}}], "ring_version": 1}"#;
        wrong(&order(body.as_bytes(), false).unwrap_err(), body, &["'ring_version' is not known"]);
    }

    #[test]
    fn shorthands_take_what_their_edit_needs() {
        let read = |name: &str, body: &str| shorthand(name, id("node-a"), body.as_bytes());
        let order = read("leave", "").unwrap();
        assert_eq!((order.edits, order.ring_version), (vec![Edit::Leave { id: id("node-a") }], None));
        let order = read("weight", r#"{"weight": 3, "ring_version": 9}"#).unwrap();
        assert_eq!(order.edits, [Edit::Weight { id: id("node-a"), weight: 3 }]);
        assert_eq!(order.ring_version, Some(9));
        assert!(read("forget", r#"{"force": true}"#).unwrap().force);
        let zone = Edit::Zone { id: id("node-a"), zone: "z9".to_owned() };
        assert_eq!(read("zone", r#"{"zone": "z9"}"#).unwrap().edits, [zone]);
        for (name, body, words) in [
            ("leave", r#"{"id": "b"}"#, &["'id' is not known", "ring_version"][..]),
            ("leave", r#"{"force": true}"#, &["'force' is not known"]),
            ("leave", "null", &["the body is null"]),
            ("weight", "", &["'weight' is missing", "1 to 1000"]),
            ("zone", "{}", &["'zone' is missing", "a text"]),
            ("forget", r#"{"ring_version": "7"}"#, &["'ring_version' is \"7\""]),
        ] {
            wrong(&read(name, body).unwrap_err(), body, words);
        }
        assert_eq!(read("dance", "").unwrap_err().status.as_u16(), 404);
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>, text: String) {
            let _ = order(&body, true);
            let _ = order(text.as_bytes(), false);
            let _ = shorthand("weight", id("a"), &body);
        }
    }
}
