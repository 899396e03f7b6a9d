//! Times and events on their way into OpenTelemetry's histograms and counters.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use cartwheel_telemetry::record::Record;

/// Bounds of histograms of durations, seconds: what takes 0.2 ms and what takes 300 ms is to be told apart.
const SECONDS: [f64; 23] = [
    0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03,
    0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Bounds of the histogram of siblings.
const SIBLINGS: [f64; 8] = [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// The histograms and counters of a process.
#[derive(Debug, Clone)]
pub(super) struct Instruments {
    http: Histogram<f64>,
    operation: Histogram<f64>,
    siblings: Histogram<u64>,
    problems: Counter<u64>,
    fallback_answers: Counter<u64>,
    call: Histogram<f64>,
    bucket: Histogram<f64>,
}

impl Instruments {
    pub(super) fn new(meter: &Meter) -> Self {
        let durations = |name: &'static str, description: &'static str| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(description);
            histogram.with_boundaries(SECONDS.to_vec()).build()
        };
        let counter = |name: &'static str, description: &'static str| {
            meter.u64_counter(name).with_description(description).build()
        };
        Self {
            http: durations("http.server.request.duration", "Requests of clients, from head to answer"),
            operation: durations(
                "cartwheel.operation.duration",
                "From the first question to replicas to the quorum",
            ),
            siblings: meter
                .u64_histogram("cartwheel.read.siblings")
                .with_description("Versions in each answer to a read that found the key")
                .with_boundaries(SIBLINGS.to_vec())
                .build(),
            problems: counter("cartwheel.problems", "Error answers"),
            fallback_answers: counter(
                "cartwheel.fallback.answers",
                "Requests whose quorum counts fallbacks that stood in for homes",
            ),
            call: durations("cartwheel.call.duration", "Calls to a storage node, from arrival to answer"),
            bucket: durations(
                "cartwheel.bucket.request.duration",
                "Requests to the bucket, tries again included",
            ),
        }
    }
}

/// Takes down what happens in one part of the process.
pub(super) struct NodeRecorder {
    pub(super) node: KeyValue,
    pub(super) instruments: Instruments,
}

impl NodeRecorder {
    fn labels(&self, a: (&'static str, &'static str), b: (&'static str, &'static str)) -> [KeyValue; 3] {
        [self.node.clone(), KeyValue::new(a.0, a.1), KeyValue::new(b.0, b.1)]
    }
}

impl Record for NodeRecorder {
    fn http_request(&self, method: &'static str, route: Option<&'static str>, status: u16, took: Duration) {
        let method = KeyValue::new("http.request.method", method);
        let status = KeyValue::new("http.response.status_code", i64::from(status));
        let took = took.as_secs_f64();
        match route {
            Some(route) => {
                let route = KeyValue::new("http.route", route);
                self.instruments.http.record(took, &[self.node.clone(), method, route, status]);
            }
            None => self.instruments.http.record(took, &[self.node.clone(), method, status]),
        }
    }

    fn operation(&self, op: &'static str, outcome: &'static str, took: Duration) {
        self.instruments.operation.record(took.as_secs_f64(), &self.labels(("op", op), ("outcome", outcome)));
    }

    fn siblings(&self, count: usize) {
        self.instruments.siblings.record(count as u64, std::slice::from_ref(&self.node));
    }

    fn problem(&self, op: &'static str, reason: &'static str) {
        self.instruments.problems.add(1, &self.labels(("op", op), ("reason", reason)));
    }

    fn fallback_answer(&self, op: &'static str) {
        self.instruments.fallback_answers.add(1, &[self.node.clone(), KeyValue::new("op", op)]);
    }

    fn call(&self, call: &'static str, outcome: &'static str, took: Duration) {
        self.instruments.call.record(took.as_secs_f64(), &self.labels(("call", call), ("outcome", outcome)));
    }

    fn bucket_request(&self, op: &'static str, took: Duration) {
        self.instruments.bucket.record(took.as_secs_f64(), &[self.node.clone(), KeyValue::new("op", op)]);
    }
}
