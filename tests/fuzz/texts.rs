//! Texts that clients and operators write: clock headers, paths, queries, headers, settings, durations, sizes.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use cartwheel::units;
use cartwheel_bucket::Prices;
use cartwheel_core::clock::{Actor, Clock};
use cartwheel_core::header::ClockKey;
use cartwheel_core::names::{Key, Namespace, NodeId};
use cartwheel_core::namespace::Ttl;
use cartwheel_gateway::problem::Problem;
use cartwheel_gateway::request::{
    Operation, Query, parse_clock, parse_described, parse_path, parse_precondition, wants_json,
};
use cartwheel_gateway::settings;

use crate::harness::{Budget, Fate, Target, guarded, says_why, within};
use crate::samples;

/// Texts are short; what an error repeats of them is no longer than they are.
const TEXT: Budget = Budget { fixed: 64 * 1024, per_byte: 64 };
/// Replicas of the cluster that requests are read for.
const REPLICAS: u32 = 3;

pub(crate) fn targets() -> Vec<Target> {
    vec![
        clock_header(),
        path(),
        query(),
        headers(),
        namespace_settings(),
        duration(),
        size(),
        share(),
        prices(),
        ttl(),
        names(),
    ]
}

fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn utf8(input: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(input).map_err(|e| format!("not UTF-8: {e}"))
}

/// A problem that the client caused: it has the status of one, and words.
fn refused(problem: &Problem) -> Result<Fate, String> {
    if !problem.status.is_client_error() {
        return Err(format!("status {} for what a client sent: {}", problem.status, problem.detail));
    }
    says_why(&problem.detail)
}

/// `namespace, key and clock that were signed` → header. White space and the order of members are not what is
/// signed; what the header says is.
fn clock_header() -> Target {
    let secret = ClockKey::derive(b"a secret");
    let (namespace, key) = samples::names("alice");
    let signed: Vec<Clock> = samples::clocks();
    let headers = signed.iter().map(|clock| secret.sign(&namespace, &key, clock));
    let corpus: Vec<Vec<u8>> = headers.map(String::into_bytes).collect();
    Target::new("clock-header", corpus, move |input| {
        let Ok(text) = std::str::from_utf8(input) else { return Ok(Fate::Refused) };
        let clock = match within(TEXT, input.len(), || secret.verify(&namespace, &key, text))? {
            Ok(clock) => clock,
            Err(error) => return says_why(&error.to_string()),
        };
        if !signed.contains(&clock) {
            return Err(format!("forged: {clock} was never signed"));
        }
        // What is authentic here is authentic nowhere else.
        let (other_namespace, other_key) =
            (Namespace::new(b"cart").unwrap(), Key::new("salice".into()).unwrap());
        for (namespace, key) in
            [(&namespace, &other_key), (&other_namespace, &key), (&other_namespace, &other_key)]
        {
            if secret.verify(namespace, key, text).is_ok() {
                return Err("authentic for another key".to_owned());
            }
        }
        if ClockKey::derive(b"another secret").verify(&namespace, &key, text).is_ok() {
            return Err("authentic under another secret".to_owned());
        }
        Ok(Fate::Taken)
    })
}

/// A path; what is taken is what the path says, decoded once.
fn path() -> Target {
    let corpus = texts(&["/v1/kv/carts/alice", "/v1/kv/0a.b_c-d/a%2Fb/%00%ff", "/v1/kv/carts/%25zz//..//x"]);
    Target::new("path", corpus, |input| {
        let Some(uri) = uri(input) else { return Ok(Fate::Refused) };
        let (namespace, key) = match within(TEXT, input.len(), || parse_path(&uri))? {
            Ok(names) => names,
            Err(problem) => return refused(&problem),
        };
        let encoded: String = key.as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
        let again = Uri::try_from(format!("/v1/kv/{namespace}/{encoded}")).unwrap();
        match guarded("reading it again", || parse_path(&again))? {
            Ok(names) if names == (namespace.clone(), key.clone()) => Ok(Fate::Taken),
            other => Err(format!("{namespace}/{key:?} reads back as {other:?}")),
        }
    })
}

/// What hyper lets through as a path.
fn uri(input: &[u8]) -> Option<Uri> {
    Uri::try_from(input).ok().filter(|uri| uri.path().starts_with("/v1/kv/"))
}

fn query() -> Target {
    let corpus = texts(&[
        "/v1/kv/n/k?r=1&w=quorum&durability=bucket&sloppy=false&deadline=300ms",
        "/v1/kv/n/k?sibling=%22abc%22&r=all",
        "/v1/kv/n/k",
    ]);
    Target::new("query", corpus, |input| {
        let Some(uri) = uri(input) else { return Ok(Fate::Refused) };
        let mut fate = Fate::Refused;
        for operation in [Operation::Read, Operation::Write] {
            let replicas = REPLICAS as usize;
            let read = || Query::parse(&uri, operation, replicas, Duration::from_secs(5));
            match within(TEXT, input.len(), read)? {
                Err(problem) => drop(refused(&problem)?),
                Ok(query) => {
                    let counts = query.r.into_iter().chain(query.w).all(|n| (1..=replicas).contains(&n));
                    let deadline = !query.deadline.is_zero() && query.deadline <= Duration::from_secs(60);
                    if !counts || !deadline {
                        return Err(format!("outside its limits: {query:?}"));
                    }
                    fate = Fate::Taken;
                }
            }
        }
        Ok(fate)
    })
}

/// Headers of a request, one a line.
fn headers() -> Target {
    let secret = ClockKey::derive(b"a secret");
    let (namespace, key) = samples::names("alice");
    let clock = secret.sign(&namespace, &key, &samples::clocks()[2]);
    let clock = format!("vector-clock: {clock}\ncontent-type: text/plain\ncartwheel-meta-by: alice");
    let mut corpus = vec![clock.into_bytes()];
    corpus.extend(texts(&[
        "if-match: \"0123456789abcdef\", W/\"x\"\nidempotency-key: once",
        "if-none-match: *\naccept: text/plain;q=0.5, application/json",
    ]));
    Target::new("headers", corpus, move |input| {
        let mut headers = HeaderMap::new();
        for line in input.split(|byte| *byte == b'\n') {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) =
                (HeaderName::try_from(&line[..colon]), HeaderValue::try_from(&line[colon + 1..]));
            if let (Ok(name), Ok(value)) = (name, value) {
                // hyper takes the blanks around it off.
                let trimmed = value.as_bytes().trim_ascii().to_vec();
                headers.append(name, HeaderValue::try_from(trimmed).unwrap());
            }
        }
        let read = || {
            let clock = parse_clock(&headers, &secret, &namespace, &key);
            (clock, parse_precondition(&headers), parse_described(&headers), wants_json(&headers))
        };
        let (clock, precondition, described, _) = within(TEXT, input.len(), read)?;
        let problems = [clock.err(), precondition.err(), described.err()];
        let mut fate = Fate::Taken;
        for problem in problems.into_iter().flatten() {
            fate = refused(&problem)?;
        }
        Ok(fate)
    })
}

fn namespace_settings() -> Target {
    let corpus = texts(&[
        r#"{"n": 3, "r": 1, "w": 3, "durability": "bucket", "max_siblings": 1000}"#,
        r#"{"on_blind_write": "reject", "conflicts": "siblings", "ttl": "7d", "sla": null}"#,
        "{}",
    ]);
    Target::new("namespace-settings", corpus, |input| {
        let set = match within(TEXT, input.len(), || settings::from_json(input, REPLICAS))? {
            Ok(set) => set,
            Err(problem) => return refused(&problem),
        };
        let shown = settings::to_json(&set, REPLICAS).to_string();
        match guarded("reading it again", || settings::from_json(shown.as_bytes(), REPLICAS))? {
            Ok(again) if again == set => Ok(Fate::Taken),
            other => Err(format!("{set:?} reads back as {other:?}")),
        }
    })
}

/// A text that reads back as it is written.
fn text<T: PartialEq + std::fmt::Debug + 'static, E: Display + 'static>(
    name: &'static str,
    corpus: &[&str],
    read: fn(&str) -> Result<T, E>,
    write: fn(&T) -> String,
) -> Target {
    Target::new(name, texts(corpus), move |input| {
        let Ok(text) = utf8(input) else { return Ok(Fate::Refused) };
        let value = match within(TEXT, input.len(), || read(text))? {
            Ok(value) => value,
            Err(error) => return says_why(&error.to_string()),
        };
        let again = write(&value);
        match guarded("reading it again", || read(&again))? {
            Ok(back) if back == value => Ok(Fate::Taken),
            Ok(back) => Err(format!("{value:?} is written {again:?} and reads back as {back:?}")),
            Err(error) => Err(format!("{value:?} is written {again:?} and is refused: {error}")),
        }
    })
}

fn duration() -> Target {
    let corpus = ["300ms", "10s", "365d", "0s", "7ns"];
    text("duration", &corpus, units::parse_duration, |d| units::format_duration(*d))
}

fn size() -> Target {
    text("size", &["512MiB", "64KB", "17", "0B"], units::parse_size, |size| units::format_size(*size))
}

fn share() -> Target {
    text("share", &["50%", "12.5", "0", "100"], units::parse_share, |share| {
        assert!((0.0..=1.0).contains(share), "{share}");
        // Shares are not written anywhere; what is checked is their range.
        format!("{}", share * 100.0)
    })
}

fn prices() -> Target {
    text(
        "prices",
        &["put=0.005,get=0.0004", "gb-month=1e2,gb-out=0"],
        str::parse::<Prices>,
        Prices::to_string,
    )
}

fn ttl() -> Target {
    text("ttl", &["30m", "7d", "1000ms"], str::parse::<Ttl>, Ttl::to_string)
}

/// Names, from text and from bytes.
fn names() -> Target {
    Target::new("names", texts(&["node-a.17", "carts", "a"]), |input| {
        let text = String::from_utf8_lossy(input);
        let known = guarded("reading", || {
            let actor = Actor::parse(&text).is_some_and(|actor| {
                assert_eq!(actor.to_string(), text);
                true
            });
            let node = NodeId::new(&text).is_ok_and(|id| {
                assert_eq!(id.as_str(), text);
                true
            });
            let key = Key::new(Bytes::copy_from_slice(input)).is_ok();
            let namespace = Namespace::new(input).is_ok_and(|namespace| {
                assert_eq!(namespace.as_bytes(), input);
                true
            });
            actor | node | key | namespace
        })?;
        Ok(if known { Fate::Taken } else { Fate::Refused })
    })
}
