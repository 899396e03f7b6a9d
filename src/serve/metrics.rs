//! The figures of this process, for Prometheus and for a collector. Only this folder knows OpenTelemetry: what runs
//! counts for itself, in atomics, and is asked when somebody looks (`figures`), or says what happens (`recorder`).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::{Instrument, MeterProviderBuilder, SdkMeterProvider, Stream};
use prometheus::{Registry, TextEncoder};
use tokio::time::Instant;

use cartwheel_bucket::{Meter, Prices, WorkUsage};
use cartwheel_cluster::metrics::MetricsText;
use cartwheel_gateway::GatewayWatch;
use cartwheel_storage_node::{NodeFigures, NodeWatch};
use cartwheel_telemetry::Recorder;

use super::otlp::{Collector, SpanCounts};
use super::recorder::{Instruments, NodeRecorder};
use crate::client::Failure;

/// The most series of one metric: six kinds of request for each kind of work of 26 storage nodes and 16 gateways in
/// one process are 3,276.
const SERIES: usize = 4096;
/// For how long the figures of a storage node are good: a look at all metrics asks for each of them.
const FRESH: Duration = Duration::from_millis(50);

/// The figures of all parts of this process.
#[derive(Debug, Clone)]
pub struct Metrics {
    parts: Parts,
    registry: Registry,
    instruments: Instruments,
    /// Figures are gathered for as long as a copy of it lives.
    provider: SdkMeterProvider,
}

/// One part of the process: a storage node, a gateway.
#[derive(Debug)]
struct Part {
    node: KeyValue,
    meter: Arc<Meter>,
}

/// All parts of the process.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    metered: Vec<Part>,
    gateways: Vec<(KeyValue, GatewayWatch)>,
    nodes: Vec<ShownNode>,
}

#[derive(Debug)]
struct ShownNode {
    label: KeyValue,
    watch: NodeWatch,
    last: Option<(Instant, NodeFigures)>,
}

impl ShownNode {
    /// How it is, or was a moment ago; `None` once it has ended.
    fn figures(&mut self) -> Option<&NodeFigures> {
        if self.last.as_ref().is_none_or(|(at, _)| at.elapsed() > FRESH) {
            self.last = self.watch.figures().map(|figures| (Instant::now(), figures));
        }
        self.last.as_ref().map(|(_, figures)| figures)
    }
}

impl Parts {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, node: &str, meter: Arc<Meter>) {
        let part = Part { node: label(node), meter };
        self.held().metered.push(part);
    }

    /// Shows each gateway, with its label.
    pub(super) fn gateways(&self, mut see: impl FnMut(&KeyValue, &GatewayWatch)) {
        self.held().gateways.iter().for_each(|(node, watch)| see(node, watch));
    }

    /// Shows how each storage node is, with its label.
    pub(super) fn nodes(&self, mut see: impl FnMut(&KeyValue, &NodeFigures)) {
        for node in &mut self.held().nodes {
            let label = node.label.clone();
            if let Some(figures) = node.figures() {
                see(&label, figures);
            }
        }
    }

    /// Shows what each part asked of the bucket for each kind of work, with the labels that say so.
    fn each(&self, mut see: impl FnMut([KeyValue; 2], &WorkUsage)) {
        for Part { node, meter } in &self.held().metered {
            for (work, used) in &meter.usage().works {
                see([node.clone(), KeyValue::new("work", work.name())], used);
            }
        }
    }
}

impl Metrics {
    /// No parts yet.
    ///
    /// # Errors
    /// A [`Failure`] if the figures can't be gathered at all.
    pub fn new(prices: Prices) -> Result<Self, Failure> {
        Self::build(prices, SdkMeterProvider::builder(), Arc::default())
    }

    /// No parts yet; and what there is to know is sent to a collector, too.
    pub(super) fn sent(prices: Prices, to: &Collector, spans: Arc<SpanCounts>) -> Result<Self, Failure> {
        let builder = SdkMeterProvider::builder().with_resource(to.resource()).with_reader(to.metrics()?);
        Self::build(prices, builder, spans)
    }

    fn build(prices: Prices, builder: MeterProviderBuilder, spans: Arc<SpanCounts>) -> Result<Self, Failure> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|e| Failure::failed(format!("can't gather metrics: {e}")))?;
        let provider = builder
            .with_reader(exporter)
            .with_view(|_: &Instrument| Stream::builder().with_cardinality_limit(SERIES).build().ok())
            .build();
        let parts = Parts::default();
        observe(&provider, &parts, prices);
        observe_spans(&provider, spans);
        let meter = provider.meter("cartwheel");
        super::figures::observe(&meter, &parts);
        let instruments = Instruments::new(&meter);
        Ok(Self { parts, registry, instruments, provider })
    }

    /// A meter whose figures are shown under `node`.
    #[must_use]
    pub fn meter(&self, node: &str) -> Arc<Meter> {
        let meter = Meter::recording(node, self.recorder(node));
        self.parts.add(node, Arc::clone(&meter));
        meter
    }

    /// Takes down what happens in the part `node`.
    #[must_use]
    pub fn recorder(&self, node: &str) -> Recorder {
        Recorder::new(NodeRecorder { node: label(node), instruments: self.instruments.clone() })
    }

    /// Shows the figures of a gateway under `node`.
    pub fn show_gateway(&self, node: &str, gateway: GatewayWatch) {
        self.parts.held().gateways.push((label(node), gateway));
    }

    /// Shows the figures of a storage node under `node`.
    pub fn show_node(&self, node: &str, watch: NodeWatch) {
        self.parts.held().nodes.push(ShownNode { label: label(node), watch, last: None });
    }

    /// Sends what has not been sent yet. Waits for the collector, for some seconds at most.
    pub(super) fn send_rest(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the collector did not take metrics");
        }
    }

    /// What serves the figures. Those of all parts: in a process with several, each shows the same.
    #[must_use]
    pub fn text(&self) -> MetricsText {
        let Self { registry, provider, .. } = self.clone();
        MetricsText::new(move || {
            let _alive = &provider;
            TextEncoder::new().encode_to_string(&registry.gather()).unwrap_or_else(|error| {
                tracing::warn!(%error, "can't write the metrics");
                String::new()
            })
        })
    }
}

fn label(node: &str) -> KeyValue {
    KeyValue::new("node", node.to_owned())
}

fn observe_spans(provider: &SdkMeterProvider, spans: Arc<SpanCounts>) {
    provider
        .meter("cartwheel")
        .u64_observable_counter("cartwheel.spans")
        .with_description("Spans of traces, by what became of them")
        .with_callback(move |figures| {
            let outcomes =
                [("exported", &spans.exported), ("dropped", &spans.dropped), ("failed", &spans.failed)];
            for (outcome, count) in outcomes {
                figures.observe(count.load(Ordering::Relaxed), &[KeyValue::new("outcome", outcome)]);
            }
        })
        .build();
}

/// Says what is asked when somebody looks.
fn observe(provider: &SdkMeterProvider, parts: &Parts, prices: Prices) {
    let bucket = provider.meter("cartwheel.bucket");
    let asked = parts.clone();
    bucket
        .u64_observable_counter("cartwheel.bucket.requests")
        .with_description("Requests to the bucket, those that failed included")
        .with_callback(move |figures| {
            asked.each(|[node, work], used| {
                for (op, count) in used.requests() {
                    figures.observe(count, &[node.clone(), work.clone(), KeyValue::new("op", op)]);
                }
            });
        })
        .build();
    let asked = parts.clone();
    bucket
        .u64_observable_counter("cartwheel.bucket.failures")
        .with_description("Requests to the bucket that brought nothing")
        .with_callback(move |figures| asked.each(|labels, used| figures.observe(used.failed, &labels)))
        .build();
    let asked = parts.clone();
    bucket
        .u64_observable_counter("cartwheel.bucket.bytes")
        // Without its unit, which would be added to the name again.
        .with_description("Bytes sent to the bucket (in) and read out of it (out)")
        .with_callback(move |figures| {
            asked.each(|[node, work], used| {
                for (direction, bytes) in [("in", used.bytes_in), ("out", used.bytes_out)] {
                    let direction = KeyValue::new("direction", direction);
                    figures.observe(bytes, &[node.clone(), work.clone(), direction]);
                }
            });
        })
        .build();
    let asked = parts.clone();
    bucket
        .f64_observable_counter("cartwheel.bucket.cost.dollars")
        .with_description("What the requests to the bucket cost by --prices, without what lies in it")
        .with_callback(move |figures| {
            asked.each(|labels, used| figures.observe(prices.cost_of(used), &labels));
        })
        .build();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use cartwheel_bucket::{MemoryBucket, SharedBucket, Work};

    use super::*;

    #[tokio::test]
    async fn every_part_shows_what_it_asked_and_what_that_cost() {
        let prices = "put=2000,get=500,gb-month=0,gb-out=0".parse().unwrap();
        let metrics = Metrics::new(prices).unwrap();
        let (a, b) = (metrics.meter("node-a"), metrics.meter("node-b"));
        let text = metrics.text();
        // What serves them must not depend on this handle.
        drop(metrics);
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        a.bucket(&bucket, Work::Flush).put("k", Bytes::from_static(b"body")).await.unwrap();
        b.bucket(&bucket, Work::Read).get("k").await.unwrap();
        b.bucket(&bucket, Work::Read).get_range("k", 9..10).await.unwrap_err();
        let expected = r#"# HELP cartwheel_bucket_bytes_total Bytes sent to the bucket (in) and read out of it (out)
# TYPE cartwheel_bucket_bytes_total counter
cartwheel_bucket_bytes_total{direction="in",node="node-a",work="flush"} 4
cartwheel_bucket_bytes_total{direction="in",node="node-b",work="read"} 0
cartwheel_bucket_bytes_total{direction="out",node="node-a",work="flush"} 0
cartwheel_bucket_bytes_total{direction="out",node="node-b",work="read"} 4
# HELP cartwheel_bucket_cost_dollars_total What the requests to the bucket cost by --prices, without what lies in it
# TYPE cartwheel_bucket_cost_dollars_total counter
cartwheel_bucket_cost_dollars_total{node="node-a",work="flush"} 2
cartwheel_bucket_cost_dollars_total{node="node-b",work="read"} 1
# HELP cartwheel_bucket_failures_total Requests to the bucket that brought nothing
# TYPE cartwheel_bucket_failures_total counter
cartwheel_bucket_failures_total{node="node-a",work="flush"} 0
cartwheel_bucket_failures_total{node="node-b",work="read"} 1
# HELP cartwheel_bucket_requests_total Requests to the bucket, those that failed included
# TYPE cartwheel_bucket_requests_total counter
cartwheel_bucket_requests_total{node="node-a",op="create",work="flush"} 0
cartwheel_bucket_requests_total{node="node-a",op="delete",work="flush"} 0
cartwheel_bucket_requests_total{node="node-a",op="get",work="flush"} 0
cartwheel_bucket_requests_total{node="node-a",op="get_range",work="flush"} 0
cartwheel_bucket_requests_total{node="node-a",op="list",work="flush"} 0
cartwheel_bucket_requests_total{node="node-a",op="put",work="flush"} 1
cartwheel_bucket_requests_total{node="node-b",op="create",work="read"} 0
cartwheel_bucket_requests_total{node="node-b",op="delete",work="read"} 0
cartwheel_bucket_requests_total{node="node-b",op="get",work="read"} 1
cartwheel_bucket_requests_total{node="node-b",op="get_range",work="read"} 1
cartwheel_bucket_requests_total{node="node-b",op="list",work="read"} 0
cartwheel_bucket_requests_total{node="node-b",op="put",work="read"} 0
"#;
        let metrics = ["bytes", "cost_dollars", "failures", "requests"];
        let metrics = metrics.map(|what| format!("cartwheel_bucket_{what}_total"));
        let all = text.gather();
        let of_these = |line: &&str| metrics.iter().any(|metric| line.contains(metric));
        let shown: String = all.lines().filter(of_these).map(|line| format!("{line}\n")).collect();
        assert_eq!(shown, expected);
        // Counters only rise.
        a.bucket(&bucket, Work::Flush).put("k", Bytes::new()).await.unwrap();
        let again = text.gather();
        assert!(again.contains(r#"requests_total{node="node-a",op="put",work="flush"} 2"#), "{again}");
    }

    #[tokio::test]
    async fn no_series_is_folded_into_another_in_the_largest_process() {
        let metrics = Metrics::new(Prices::default()).unwrap();
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        for part in 0..26 + 16 {
            let meter = metrics.meter(&format!("part-{part}"));
            for work in Work::ALL {
                meter.bucket(&bucket, work).delete("k").await.unwrap();
            }
        }
        let text = metrics.text().gather();
        let deletes = text.lines().filter(|line| line.contains(r#"op="delete""#) && line.ends_with(" 1"));
        assert_eq!(deletes.count(), (26 + 16) * Work::ALL.len());
        assert!(!text.contains("overflow"), "{text}");
    }
}
