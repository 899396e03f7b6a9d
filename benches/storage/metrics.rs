//! What a process counts of itself: the text of `GET /metrics`, as Prometheus reads it.

use std::collections::BTreeMap;

use http::{HeaderMap, Method, StatusCode, header};
use serde_json::Value;

use cartwheel::client::{Client, Failure};
use cartwheel_cluster::secret::NodeToken;

/// Requests to the bucket, by `work` and `op`.
const REQUESTS: &str = "cartwheel_bucket_requests_total";
/// What they cost.
const DOLLARS: &str = "cartwheel_bucket_cost_dollars_total";

/// A series: its name and its labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
}

/// The figures of one process, or of several together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    series: BTreeMap<Series, f64>,
}

impl Metrics {
    /// Asks a process; `None` if it has no such page.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    pub(crate) async fn of(client: &Client, token: &NodeToken) -> Result<Option<Self>, Failure> {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, token.header())]);
        let reply = client.send(Method::GET, "/metrics", headers, bytes::Bytes::new()).await?;
        if reply.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = reply.success()?.body;
        Ok(Some(Self::parse(&String::from_utf8_lossy(&body))))
    }

    /// The figures about caches that a node's status tells, unless there are such already.
    pub(crate) fn add_status(&mut self, status: &Value) {
        if !self.caches().is_empty() {
            return;
        }
        for (name, value) in status.as_object().into_iter().flatten() {
            if let (true, Some(figure)) = (name.contains("cache"), value.as_f64()) {
                self.series.insert(Series { name: name.clone(), labels: BTreeMap::new() }, figure);
            }
        }
    }

    /// Reads the text form. Lines that are none of it are skipped.
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self { series: lines.filter_map(line).collect() }
    }

    /// How much each figure grew since `before`. One that shrank began anew, with its process.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let grown = |(series, now): (&Series, &f64)| {
            let then = before.series.get(series).copied().unwrap_or(0.0);
            (series.clone(), if *now < then { *now } else { now - then })
        };
        Self { series: self.series.iter().map(grown).collect() }
    }

    /// Adds another process's figures.
    pub(crate) fn add(&mut self, other: &Self) {
        for (series, figure) in &other.series {
            *self.series.entry(series.clone()).or_default() += figure;
        }
    }

    /// Requests to the bucket by work and operation; those that were not made are left out.
    pub(crate) fn requests(&self) -> BTreeMap<(String, String), f64> {
        let mut by = BTreeMap::new();
        for (series, figure) in self.series.iter().filter(|(s, f)| s.name == REQUESTS && **f > 0.0) {
            let label = |name: &str| series.labels.get(name).cloned().unwrap_or_default();
            *by.entry((label("work"), label("op"))).or_default() += figure;
        }
        by
    }

    /// How many requests of operations that `wanted` chooses there were.
    pub(crate) fn operations(&self, wanted: impl Fn(&str) -> bool) -> f64 {
        self.requests().iter().filter(|((_, op), _)| wanted(op)).map(|(_, count)| count).sum()
    }

    /// What the requests cost, in dollars.
    pub(crate) fn dollars(&self) -> f64 {
        self.series.iter().filter(|(series, _)| series.name == DOLLARS).map(|(_, figure)| figure).sum()
    }

    /// Hits and misses of each cache. A cache is what the label `cache` names, or else the metric's name; hits and
    /// misses are told apart by name or label.
    pub(crate) fn caches(&self) -> BTreeMap<String, (f64, f64)> {
        let mut caches: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (series, figure) in self.series.iter().filter(|(s, _)| s.name.contains("cache")) {
            let mut words = vec![series.name.as_str()];
            words.extend(series.labels.values().map(String::as_str));
            let says = |word: &str| words.iter().any(|said| said.contains(word));
            let by_name = ["row", "block", "index"].into_iter().find(|kind| says(kind));
            let name = series.labels.get("cache").map_or(by_name.unwrap_or(&series.name), String::as_str);
            let (hits, misses) = (says("hit"), says("miss"));
            if hits != misses {
                let cache = caches.entry(name.to_owned()).or_default();
                *(if hits { &mut cache.0 } else { &mut cache.1 }) += figure;
            }
        }
        caches
    }
}

/// Is it one of the writes that a store bills as such?
pub(crate) fn is_put(op: &str) -> bool {
    matches!(op, "put" | "create")
}

/// Is it a read of part of an object?
pub(crate) fn is_range(op: &str) -> bool {
    op.contains("range")
}

/// `name{label="value",…} figure`, perhaps with a time behind it.
fn line(text: &str) -> Option<(Series, f64)> {
    let (name, labels, rest) = match text.split_once('{') {
        None => {
            let (name, rest) = text.split_once(' ')?;
            (name, BTreeMap::new(), rest)
        }
        Some((name, rest)) => {
            let (labels, rest) = labels(rest)?;
            (name, labels, rest)
        }
    };
    let figure = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some((Series { name: name.trim().to_owned(), labels }, figure))
}

/// Labels up to the closing brace, and what follows it.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, value) = rest.split_once("=\"")?;
        let mut escaped = false;
        let end = value.char_indices().find(|(_, c)| {
            let closes = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            closes
        });
        let (end, _) = end?;
        labels.insert(name.to_owned(), value.get(..end)?.to_owned());
        rest = value.get(end + 1..)?;
    }
}
