//! The clock as clients carry it: readable, and signed so that nobody can forge one.
//!
//! An RFC 9651 dictionary: `node-a.3=17, node-c.1=(0 4), mac=:n1Q…=:`. The MAC is keyed BLAKE3, cut to 16
//! bytes, over namespace, key and the readable clock: a clock belongs to one key of one cluster.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::clock::{Actor, Clock, MAX_COUNT};
use crate::mutation::{Rule, removed};
use crate::names::{Key, Namespace};

/// Longest `Vector-Clock` header taken, in bytes.
pub const MAX_CLOCK_HEADER_BYTES: usize = 16 * 1024;
/// Most actors in a clock that a client sends.
pub const MAX_CLOCK_ACTORS: usize = 512;
/// Most single dots, over all actors, in a clock that a client sends.
pub const MAX_CLOCK_DOTS: usize = 2048;
const MAC_BYTES: usize = 16;

/// Why a clock header was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockHeaderError {
    /// Too many bytes.
    #[error(
        "Vector-Clock has {0} bytes; the limit is {MAX_CLOCK_HEADER_BYTES}; read the key and write with the clock \
         of that read, which is compact"
    )]
    TooLong(usize),
    /// Too many actors or dots.
    #[error(
        "Vector-Clock has more than {MAX_CLOCK_ACTORS} actors or {MAX_CLOCK_DOTS} single counts; read the key and \
         write with the clock of that read, which is compact"
    )]
    TooMany,
    /// Not a dictionary of actors and counts.
    #[error("Vector-Clock is malformed near {0:?}; send back exactly what an answer gave")]
    Malformed(String),
    /// No `mac`, or one that does not fit.
    #[error("Vector-Clock was not issued by this cluster for this key (its mac does not match)")]
    Forged,
}

/// The cluster's key for signing clocks.
#[derive(Clone)]
pub struct ClockKey([u8; 32]);

impl std::fmt::Debug for ClockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClockKey(..)")
    }
}

impl ClockKey {
    /// Derives the key from the cluster's secret.
    #[must_use]
    pub fn derive(secret: &[u8]) -> Self {
        Self(blake3::derive_key("cartwheel 2026 vector clock mac v1", secret))
    }

    fn mac(&self, namespace: &Namespace, key: &Key, readable: &str) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        let lengths = [namespace.as_bytes().len() as u64, key.as_bytes().len() as u64];
        hasher.update(&lengths[0].to_le_bytes());
        hasher.update(namespace.as_bytes());
        hasher.update(&lengths[1].to_le_bytes());
        hasher.update(key.as_bytes());
        hasher.update(readable.as_bytes());
        let mut mac = [0; MAC_BYTES];
        hasher.finalize_xof().fill(&mut mac);
        mac
    }

    /// A number for separating the versions `dots` in one answer: the same at every gateway, and not to be
    /// guessed by who writes the values. Each `n` gives another.
    #[must_use]
    pub fn separator(&self, dots: &str, n: u32) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"separator");
        hasher.update(&n.to_le_bytes());
        hasher.update(dots.as_bytes());
        let mut number = [0; 8];
        hasher.finalize_xof().fill(&mut number);
        u64::from_le_bytes(number)
    }

    /// The header for `clock` as the context of this key.
    #[must_use]
    pub fn sign(&self, namespace: &Namespace, key: &Key, clock: &Clock) -> String {
        let mut text = clock.to_string();
        let mac = self.mac(namespace, key, &text);
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str("mac=:");
        BASE64.encode_string(mac, &mut text);
        text.push(':');
        text
    }

    /// Parses and authenticates a header.
    ///
    /// # Errors
    /// [`ClockHeaderError`]; nothing of a refused header is used.
    pub fn verify(&self, namespace: &Namespace, key: &Key, header: &str) -> Result<Clock, ClockHeaderError> {
        if header.len() > MAX_CLOCK_HEADER_BYTES {
            return Err(ClockHeaderError::TooLong(header.len()));
        }
        let (clock, mac) = parse(header)?;
        let mac = mac.ok_or(ClockHeaderError::Forged)?;
        let expected = self.mac(namespace, key, &clock.to_string());
        // Compares in constant time: `blake3::Hash` does, over 32 bytes.
        let widen = |half: [u8; MAC_BYTES]| {
            let mut whole = [0; 32];
            whole[..MAC_BYTES].copy_from_slice(&half);
            blake3::Hash::from_bytes(whole)
        };
        if widen(mac) == widen(expected) || removed(Rule::VerifyClock) {
            Ok(clock)
        } else {
            Err(ClockHeaderError::Forged)
        }
    }
}

fn malformed(near: &str) -> ClockHeaderError {
    ClockHeaderError::Malformed(near.chars().take(40).collect())
}

/// Splits the dictionary into the clock and its MAC. Strict: no parameters, no duplicates.
fn parse(header: &str) -> Result<(Clock, Option<[u8; MAC_BYTES]>), ClockHeaderError> {
    let mut clock = Clock::new();
    let mut mac = None;
    let (mut actors, mut dots) = (0, 0);
    if header.trim().is_empty() {
        return Ok((clock, None));
    }
    for member in header.split(',') {
        let member = member.trim_matches([' ', '\t']);
        let (name, value) = member.split_once('=').ok_or_else(|| malformed(member))?;
        if name == "mac" {
            if mac.is_some() {
                return Err(malformed(member));
            }
            mac = Some(parse_mac(value).ok_or_else(|| malformed(member))?);
            continue;
        }
        let actor = Actor::parse(name).ok_or_else(|| malformed(member))?;
        if clock.max(&actor) > 0 {
            return Err(malformed(member));
        }
        actors += 1;
        let (base, cloud) = parse_counts(value).ok_or_else(|| malformed(member))?;
        dots += cloud.len();
        if actors > MAX_CLOCK_ACTORS || dots > MAX_CLOCK_DOTS {
            return Err(ClockHeaderError::TooMany);
        }
        clock.insert_seen(actor, base, cloud);
    }
    Ok((clock, mac))
}

fn parse_mac(value: &str) -> Option<[u8; MAC_BYTES]> {
    let inner = value.strip_prefix(':')?.strip_suffix(':')?;
    BASE64.decode(inner).ok()?.try_into().ok()
}

fn parse_count(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !(canonical && digits) {
        return None;
    }
    text.parse().ok().filter(|&n| n <= MAX_COUNT)
}

fn parse_counts(value: &str) -> Option<(u64, Vec<u64>)> {
    let Some(list) = value.strip_prefix('(') else {
        return parse_count(value).filter(|&n| n > 0).map(|n| (n, Vec::new()));
    };
    let mut counts = list.strip_suffix(')')?.split(' ').map(parse_count);
    let base = counts.next()??;
    let cloud: Vec<u64> = counts.take(MAX_CLOCK_DOTS + 1).collect::<Option<_>>()?;
    let ascending = cloud.first().is_some_and(|&n| n > base + 1) && cloud.is_sorted_by(|a, b| a < b);
    ascending.then_some((base, cloud))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Dot;

    fn names(key: &'static str) -> (Namespace, Key) {
        (Namespace::new(b"carts").unwrap(), Key::new(Bytes::from_static(key.as_bytes())).unwrap())
    }

    fn clock(dots: &[(&str, u64)]) -> Clock {
        dots.iter().map(|(a, n)| Dot { actor: Actor::parse(a).unwrap(), n: *n }).collect()
    }

    #[test]
    fn golden_form() {
        let (ns, key) = names("alice");
        let secret = ClockKey::derive(b"secret");
        let c = clock(&[("node-a.3", 1), ("node-a.3", 2), ("node-b.1", 7), ("node-b.1", 9)]);
        let header = secret.sign(&ns, &key, &c);
        assert_eq!(header, "node-a.3=2, node-b.1=(0 7 9), mac=:mpKU236kuXbD1A6NERAEKA==:");
        assert_eq!(secret.verify(&ns, &key, &header), Ok(c));
    }

    #[test]
    fn forged_foreign_and_altered_clocks_are_refused() {
        let (ns, key) = names("alice");
        let secret = ClockKey::derive(b"secret");
        let header = secret.sign(&ns, &key, &clock(&[("node-a.3", 1)]));
        let forged = Err(ClockHeaderError::Forged);
        assert_eq!(secret.verify(&ns, &names("bob").1, &header), forged);
        assert_eq!(secret.verify(&Namespace::new(b"other").unwrap(), &key, &header), forged);
        assert_eq!(ClockKey::derive(b"else").verify(&ns, &key, &header), forged);
        assert_eq!(secret.verify(&ns, &key, &header.replace("=1,", "=2,")), forged);
        assert_eq!(secret.verify(&ns, &key, "node-a.3=1"), forged);
        assert_eq!(secret.verify(&ns, &key, ""), forged);
    }

    #[test]
    fn malformed_clocks_are_named() {
        let (ns, key) = names("alice");
        let secret = ClockKey::derive(b"secret");
        for bad in [
            "x",
            "node-a.3",
            "node-a.3=",
            "node-a.3=0",
            "node-a.3=-1",
            "node-a.3=1.5",
            "node-a.3=01",
            "node-a=1",
            "node-a.3=(1 2)",
            "node-a.3=(0)",
            "node-a.3=(0 5 4)",
            "node-a.3=(0 5",
            "node-a.3=1;x=2",
            "node-a.3=1, node-a.3=2",
            "node-a.3=9999999999999999",
            "mac=::, mac=::",
            "mac=abc",
            "mac=:abc:",
            "node-a.3=1,,",
            "é=1",
        ] {
            let got = secret.verify(&ns, &key, bad);
            assert!(matches!(got, Err(ClockHeaderError::Malformed(_))), "{bad}: {got:?}");
        }
        let long = "a".repeat(MAX_CLOCK_HEADER_BYTES + 1);
        assert_eq!(secret.verify(&ns, &key, &long), Err(ClockHeaderError::TooLong(long.len())));
        let many: Vec<String> = (0..600).map(|i| format!("n{i}.1=1")).collect();
        assert_eq!(secret.verify(&ns, &key, &many.join(",")), Err(ClockHeaderError::TooMany));
    }

    proptest! {
        #[test]
        fn every_clock_round_trips(dots in prop::collection::vec((0..4_u32, 1..60_u64), 0..30)) {
            let (ns, key) = names("k");
            let secret = ClockKey::derive(b"s");
            let c: Clock = dots.iter()
                .map(|(a, n)| Dot { actor: Actor::parse(&format!("node-{a}.{}", a + 1)).unwrap(), n: *n })
                .collect();
            prop_assert_eq!(secret.verify(&ns, &key, &secret.sign(&ns, &key, &c)), Ok(c));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let (ns, key) = names("k");
            let _ = ClockKey::derive(b"s").verify(&ns, &key, &text);
        }
    }
}
