//! How times, keys, clocks and siblings are shown, to people and to programs.

use serde_json::{Value, json};

use cartwheel_core::container::{Container, Sibling};
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::record::Version;

use crate::client::put_bytes;

/// A time in UTC, to the second, as RFC 3339 writes it; `-` for 0, which stands for none.
pub(super) fn utc(ms: u64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Days since 1 March of the year 0 (Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A time as programs see it: text, or null for none.
pub(super) fn utc_value(ms: u64) -> Value {
    if ms == 0 { Value::Null } else { Value::from(utc(ms)) }
}

/// Any bytes as one printable word: text as it is, everything else as `\xNN`.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str("\\\\"),
                c if c.is_control() || c.is_whitespace() && c != ' ' => {
                    let mut buffer = [0; 4];
                    c.encode_utf8(&mut buffer).bytes().for_each(|b| shown.push_str(&format!("\\x{b:02x}")));
                }
                c => shown.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| shown.push_str(&format!("\\x{b:02x}")));
    }
    shown
}

/// `namespace/key`, printable.
pub(super) fn name(namespace: &Namespace, key: &Key) -> String {
    format!("{namespace}/{}", escaped(key.as_bytes()))
}

/// Puts namespace and key into a JSON object: the key as `key`, or as `key_base64` if it is no text.
pub(super) fn put_name(object: &mut Value, namespace: &Namespace, key: &Key) {
    object["namespace"] = Value::from(namespace.as_str());
    put_bytes(object, "key", key.as_bytes());
}

/// A clock, or `-` for one that has seen nothing.
pub(super) fn clock(container: &Container<Version>) -> String {
    let text = container.seen().to_string();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// A container as JSON: the clock as text, and the siblings.
pub(super) fn container_value(container: &Container<Version>) -> Value {
    let siblings: Vec<Value> = container.siblings().iter().map(sibling_value).collect();
    json!({ "clock": container.seen().to_string(), "siblings": siblings })
}

fn sibling_value(sibling: &Sibling<Version>) -> Value {
    let version = &sibling.version;
    let mut value = json!({
        "dot": sibling.dot.to_string(),
        "deleted": version.value.is_deleted(),
        "size": version.value.size(),
        "written": utc_value(version.written_ms),
        "expires": utc_value(version.expires_ms),
        "context": version.context.to_string(),
    });
    put_bytes(&mut value, "content_type", &version.content_type);
    value
}

/// A sibling as one line.
pub(super) fn sibling_line(sibling: &Sibling<Version>) -> String {
    let version = &sibling.version;
    let mut line = if version.value.is_deleted() {
        format!("{} deleted", sibling.dot)
    } else {
        format!("{} {}", sibling.dot, crate::units::human_size(version.value.size()))
    };
    line.push_str(&format!(", written {}", utc(version.written_ms)));
    if version.expires_ms != 0 {
        line.push_str(&format!(", expires {}", utc(version.expires_ms)));
    }
    line
}

/// What a read that found this would answer at `now_ms`: the status and words for it.
pub(super) fn answer(container: &Container<Version>, now_ms: u64) -> (u16, String) {
    // A write whose minter fell silent may stand there twice, under one request id; clients see it once.
    let mut writes: Vec<(u128, bool)> = Vec::new();
    for sibling in container.siblings() {
        let (request, version) = (sibling.version.request, sibling.version.clone().as_of(now_ms));
        if writes.iter().all(|(known, _)| *known != request) {
            writes.push((request, version.value.is_deleted()));
        }
    }
    let deletions = writes.iter().filter(|(_, deleted)| *deleted).count();
    match writes.len() {
        0 if container.seen().is_empty() => (404, "404: never seen".to_owned()),
        live if live == deletions => (404, "404: deleted or expired".to_owned()),
        1 => (200, "200: one value".to_owned()),
        siblings if deletions == 0 => (300, format!("300: {siblings} siblings")),
        siblings => (300, format!("300: {siblings} siblings, {deletions} of them deleted or expired")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::{deletion, value};
    use super::*;

    #[test]
    fn times_are_utc() {
        assert_eq!(utc(0), "-");
        assert_eq!(utc(1_700_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(utc(951_782_400_999), "2000-02-29T00:00:00Z");
    }

    #[test]
    fn any_key_is_one_printable_word() {
        assert_eq!(escaped("schön a/b".as_bytes()), "schön a/b");
        assert_eq!(escaped(b"\x00\xff\n\\"), "\\x00\\xff\\x0a\\\\");
        assert_eq!(escaped("\u{85}".as_bytes()), "\\xc2\\x85");
    }

    #[test]
    fn answers_are_those_of_a_gateway() {
        let status = |container: &Container<Version>| answer(container, 1000).0;
        assert_eq!(answer(&Container::default(), 1000), (404, "404: never seen".to_owned()));
        assert_eq!(status(&value("a.1", 1, "milk")), 200);
        assert_eq!(answer(&deletion("a.1", 1), 1000), (404, "404: deleted or expired".to_owned()));
        let mut both = value("a.1", 1, "milk");
        both.sync(deletion("b.1", 1));
        assert_eq!(answer(&both, 1000), (300, "300: 2 siblings, 1 of them deleted or expired".to_owned()));
        let expired = value("a.1", 1, "milk").map(|v| Version { expires_ms: 1000, ..v.clone() });
        assert_eq!((status(&expired), answer(&expired, 999).0), (404, 200));
        // One write that two nodes minted.
        let mut twice = value("a.1", 1, "milk");
        twice.sync(value("b.1", 1, "milk").map(|v| Version { request: 1, ..v.clone() }));
        let twice = twice.map(|v| Version { request: 1, ..v.clone() });
        assert_eq!(status(&twice), 200);
    }
}
