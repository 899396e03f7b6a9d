//! The names of hint objects: records kept for a home by somebody else, the holder, until the home takes them.
//!
//! ```text
//! hints/{home}/{holder}-{epoch:010}-{nonce}/{n:010}.seg
//! ```
//! The content is an ordinary segment. The holder is a storage node, or a gateway that found too few of them.

use cartwheel_core::names::NodeId;

/// What the name of a hint object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HintName {
    /// Whom the records are for.
    pub home: NodeId,
    /// Who put them there.
    pub holder: NodeId,
    /// The holder's incarnation, as [`holder_label`] gives it.
    pub label: String,
    /// Which of its objects for this home.
    pub n: u64,
}

/// What all hints for `home` begin with.
#[must_use]
pub fn hint_prefix(home: &NodeId) -> String {
    format!("hints/{home}/")
}

/// One incarnation of a holder. The nonce, 16 digits of `0-9a-f`, keeps two processes of one name apart.
#[must_use]
pub fn holder_label(holder: &NodeId, epoch: u32, nonce: &str) -> String {
    format!("{holder}-{epoch:010}-{nonce}")
}

/// The name of a holder's n-th object for `home`.
#[must_use]
pub fn hint_object(home: &NodeId, holder_label: &str, n: u64) -> String {
    format!("{}{holder_label}/{n:010}.seg", hint_prefix(home))
}

/// Reads a name; `None` if it is not exactly what [`hint_object`] writes.
#[must_use]
pub fn parse_hint_object(name: &str) -> Option<HintName> {
    let (home, rest) = name.strip_prefix("hints/")?.split_once('/')?;
    let (label, file) = rest.split_once('/')?;
    let home = NodeId::new(home).ok()?;
    let n: u64 = file.strip_suffix(".seg")?.parse().ok()?;
    // A node id may hold '-', so its end is found from the right.
    let (holder_and_epoch, nonce) = label.rsplit_once('-')?;
    let (holder, epoch) = holder_and_epoch.rsplit_once('-')?;
    let holder = NodeId::new(holder).ok()?;
    let is_nonce = nonce.len() == 16 && nonce.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let canonical = holder_label(&holder, epoch.parse().ok()?, nonce);
    let known = is_nonce && canonical == label && hint_object(&home, label, n) == name;
    known.then_some(HintName { home, holder, label: canonical, n })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn names_round_trip_even_with_dashes_in_ids() {
        for holder in ["gw-0123456789abcdef", "node-a-0000000001", "b", "b-"] {
            let label = holder_label(&id(holder), 7, "000000000000cafe");
            for n in [1, 9_999_999_999, u64::MAX] {
                let name = hint_object(&id("home-1"), &label, n);
                let (home, holder) = (id("home-1"), id(holder));
                assert_eq!(
                    parse_hint_object(&name),
                    Some(HintName { home, holder, label: label.clone(), n })
                );
            }
        }
        let name = hint_object(&id("home-1"), &holder_label(&id("gw-1"), 1, "00000000000000ab"), 3);
        assert_eq!(name, "hints/home-1/gw-1-0000000001-00000000000000ab/0000000003.seg");
        assert!(name.starts_with(&hint_prefix(&id("home-1"))));
    }

    #[test]
    fn other_names_are_not_hints() {
        let good = "hints/h/g-0000000001-00000000000000ab/0000000003.seg";
        assert!(parse_hint_object(good).is_some());
        for (from, to) in [
            ("hints/", "nodes/"),
            ("/h/", "/H/"),
            ("/h/", "//"),
            ("/g-", "/-"),
            ("0000000001-", "1-"),
            ("0000000001-", "4294967296-"),
            ("00ab", "00AB"),
            ("00ab", "+0ab"),
            ("0000000003", "3"),
            ("0000000003", "+000000003"),
            (".seg", ".json"),
            ("0000000003.seg", "0000000003.seg/more"),
            ("g-0000000001-00000000000000ab/", ""),
        ] {
            assert_eq!(parse_hint_object(&good.replacen(from, to, 1)), None, "{from} as {to}");
        }
    }
}
