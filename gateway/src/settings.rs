//! The settings of a namespace: what requests get where they ask for nothing else, and their JSON. Pure.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Value, json};

use cartwheel_core::namespace::{BlindWrite, MAX_MAX_SIBLINGS, NamespaceSettings, Ttl};
use cartwheel_core::quorum::Durability;

use crate::problem::Problem;

/// The fields, as people are told of them.
const FIELDS: &str = "n, r, w, durability, on_blind_write, conflicts, max_siblings, ttl, sla";

/// What requests to a namespace get where they ask for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Replicas.
    pub n: usize,
    /// Answers needed for a read.
    pub r: usize,
    /// Acknowledgements needed for a write.
    pub w: usize,
    /// What each counted acknowledgement must have reached.
    pub durability: Durability,
    /// Most siblings of a key.
    pub max_siblings: u32,
    /// What becomes of writes without a clock.
    pub on_blind_write: BlindWrite,
    /// How long values live.
    pub ttl: Option<Ttl>,
}

impl Settings {
    /// Those that are set, or the defaults, in a cluster of `n` replicas.
    #[must_use]
    pub fn of(set: Option<NamespaceSettings>, n: u32) -> Self {
        let set = set.unwrap_or_else(|| NamespaceSettings::defaults(n));
        let count = |wanted: u32| wanted.clamp(1, n.max(1)) as usize;
        Self {
            n: n as usize,
            r: count(set.r),
            w: count(set.w),
            durability: set.durability,
            max_siblings: set.max_siblings,
            on_blind_write: set.on_blind_write,
            ttl: set.ttl,
        }
    }

    /// When a value ends that is written at `now_ms`, milliseconds since 1970; 0 if never.
    #[must_use]
    pub fn expiry(&self, now_ms: u64) -> u64 {
        self.ttl.map_or(0, |ttl| now_ms.saturating_add(ttl.as_millis()))
    }
}

/// All fields, those that can't be chosen included: what this returns can be sent back.
#[must_use]
pub fn to_json(set: &NamespaceSettings, n: u32) -> Value {
    json!({
        "n": n,
        "r": set.r,
        "w": set.w,
        "durability": set.durability,
        "on_blind_write": set.on_blind_write,
        "conflicts": "siblings",
        "max_siblings": set.max_siblings,
        "ttl": set.ttl,
        "sla": null,
    })
}

/// Reads settings from a request body; fields left out get their defaults in a cluster of `n` replicas.
///
/// # Errors
/// 400, naming the field and what it may be.
pub fn from_json(body: &[u8], n: u32) -> Result<NamespaceSettings, Problem> {
    let Fields(fields) = serde_json::from_slice(body)
        .map_err(|e| Problem::bad_request(format!("the body must be a JSON object of settings: {e}")))?;
    let mut set = NamespaceSettings::defaults(n);
    for (name, value) in &fields {
        let expects = |what: &str| refuse(name, value, &format!("it must be {what}"));
        let count = |max: u32| {
            let within = value.as_u64().and_then(|count| u32::try_from(count).ok());
            within.filter(|count| (1..=max).contains(count))
        };
        let only = |wanted: Value| {
            let what = format!("this build supports only {wanted}");
            if *value == wanted { Ok(()) } else { Err(refuse(name, value, &what)) }
        };
        let replicas = || expects(&format!("a number from 1 to {n}, the replicas"));
        match name.as_str() {
            "n" => only(n.into())?,
            "r" => set.r = count(n).ok_or_else(replicas)?,
            "w" => set.w = count(n).ok_or_else(replicas)?,
            "durability" => {
                let level = value.as_str().and_then(|text| text.parse().ok());
                set.durability = level.ok_or_else(|| expects("\"memory\", \"disk\" or \"bucket\""))?;
            }
            "on_blind_write" => {
                set.on_blind_write = match value.as_str() {
                    Some("sibling") => BlindWrite::Sibling,
                    Some("reject") => BlindWrite::Reject,
                    _ => {
                        return Err(refuse(
                            name,
                            value,
                            "this build supports only \"sibling\" and \"reject\"",
                        ));
                    }
                };
            }
            "conflicts" => only("siblings".into())?,
            "max_siblings" => {
                let limit = || expects(&format!("a number from 1 to {MAX_MAX_SIBLINGS}"));
                set.max_siblings = count(MAX_MAX_SIBLINGS).ok_or_else(limit)?;
            }
            "ttl" => {
                set.ttl = match value {
                    Value::Null => None,
                    Value::String(text) => Some(
                        text.parse::<Ttl>().map_err(|e| refuse(name, value, &format!("it {e}, or null")))?,
                    ),
                    _ => return Err(expects("null or a duration such as \"30m\" or \"7d\"")),
                };
            }
            "sla" => only(Value::Null)?,
            _ => {
                let name: String = name.chars().take(64).collect();
                let text = format!("field '{name}' is not known here; there are {FIELDS}");
                return Err(Problem::bad_request(text));
            }
        }
    }
    Ok(set)
}

fn refuse(name: &str, value: &Value, what: &str) -> Problem {
    let shown: String = value.to_string().chars().take(64).collect();
    Problem::bad_request(format!("field '{name}' is {shown}; {what}"))
}

/// The fields of an object, in order; none of them twice.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields: Vec<(String, Value)> = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if fields.iter().any(|(known, _)| *known == name) {
                let name: String = name.chars().take(64).collect();
                return Err(A::Error::custom(format!("field '{name}' is given more than once")));
            }
            fields.push((name, value));
        }
        Ok(Fields(fields))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<NamespaceSettings, Problem> {
        from_json(text.as_bytes(), 3)
    }

    #[test]
    fn what_is_left_out_has_its_default_and_what_is_shown_can_be_sent_back() {
        assert_eq!(parse("{}").unwrap(), NamespaceSettings::defaults(3));
        let text = r#"{"n": 3, "r": 1, "w": 3, "durability": "bucket", "on_blind_write": "reject",
            "conflicts": "siblings", "max_siblings": 20, "ttl": "168h", "sla": null}"#;
        let set = parse(text).unwrap();
        let shown = to_json(&set, 3);
        assert_eq!((shown["ttl"].as_str(), shown["durability"].as_str()), (Some("7d"), Some("bucket")));
        assert_eq!(parse(&shown.to_string()).unwrap(), set);
        assert_eq!(shown.as_object().unwrap().len(), FIELDS.split(", ").count());
        assert!(shown.as_object().unwrap().keys().all(|name| FIELDS.split(", ").any(|field| field == name)));
    }

    #[test]
    fn refusals_name_the_field_and_what_it_may_be() {
        for (bad, words) in [
            (r#"{"rr": 1}"#, &["'rr'", "max_siblings"][..]),
            (r#"{"r": 0}"#, &["'r'", "1 to 3"]),
            (r#"{"r": 4}"#, &["'r'", "1 to 3"]),
            (r#"{"r": 4294967298}"#, &["'r'", "1 to 3"]),
            (r#"{"w": "2"}"#, &["'w'", "1 to 3"]),
            (r#"{"w": 1.5}"#, &["'w'", "1 to 3"]),
            (r#"{"durability": "tape"}"#, &["'durability'", "bucket"]),
            (r#"{"max_siblings": 0}"#, &["'max_siblings'", "1 to 1000"]),
            (r#"{"max_siblings": 1001}"#, &["'max_siblings'", "1 to 1000"]),
            (
                r#"{"on_blind_write": "replace"}"#,
                &["'on_blind_write'", "this build supports", "sibling", "reject"],
            ),
            (r#"{"n": 5}"#, &["'n'", "this build supports only 3"]),
            (
                r#"{"conflicts": "last_write_wins"}"#,
                &["'conflicts'", "this build supports only \"siblings\""],
            ),
            (r#"{"sla": {"get": "50ms"}}"#, &["'sla'", "this build supports only null"]),
            (r#"{"ttl": "999ms"}"#, &["'ttl'", "1s to 3650d", "null"]),
            (r#"{"ttl": "3651d"}"#, &["'ttl'", "1s to 3650d"]),
            (r#"{"ttl": 60}"#, &["'ttl'", "7d"]),
            (r#"{"r": 1, "r": 2}"#, &["'r'", "more than once"]),
            ("[]", &["an object"]),
            ("", &["JSON object"]),
        ] {
            let problem = parse(bad).unwrap_err();
            assert_eq!(problem.status.as_u16(), 400, "{bad}");
            for word in words {
                assert!(problem.detail.contains(word), "'{word}' is not in: {}", problem.detail);
            }
        }
    }

    #[test]
    fn a_time_to_live_is_counted_from_the_write() {
        let set = |text| Settings::of(Some(parse(text).unwrap()), 3);
        assert_eq!(set(r#"{"ttl": "1s"}"#).expiry(5000), 6000);
        assert_eq!(set("{}").expiry(5000), 0);
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>) {
            let _ = from_json(&body, 3);
        }
    }
}
