//! The figures of this process, for Prometheus. The only file that knows OpenTelemetry: what runs counts for
//! itself, in atomics, and is asked when somebody looks.

use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream};
use prometheus::{Registry, TextEncoder};

use cartwheel_bucket::{Meter, Prices, WorkUsage};
use cartwheel_cluster::metrics::MetricsText;

use crate::client::Failure;

/// The most series of one metric: six kinds of request for each kind of work of 26 storage nodes and 16 gateways in
/// one process are 3,276.
const SERIES: usize = 4096;

/// The figures of all parts of this process.
#[derive(Debug, Clone)]
pub struct Metrics {
    parts: Parts,
    registry: Registry,
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
struct Parts(Arc<Mutex<Vec<Part>>>);

impl Parts {
    fn add(&self, node: &str, meter: Arc<Meter>) {
        let part = Part { node: KeyValue::new("node", node.to_owned()), meter };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    }

    /// Shows what each part asked of the bucket for each kind of work, with the labels that say so.
    fn each(&self, mut see: impl FnMut([KeyValue; 2], &WorkUsage)) {
        for Part { node, meter } in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
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
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .without_units()
            .build()
            .map_err(|e| Failure::failed(format!("can't gather metrics: {e}")))?;
        let provider = SdkMeterProvider::builder()
            .with_reader(exporter)
            .with_view(|_: &Instrument| Stream::builder().with_cardinality_limit(SERIES).build().ok())
            .build();
        let parts = Parts::default();
        observe(&provider, &parts, prices);
        Ok(Self { parts, registry, provider })
    }

    /// A meter whose figures are shown under `node`.
    #[must_use]
    pub fn meter(&self, node: &str) -> Arc<Meter> {
        let meter = Meter::new();
        self.parts.add(node, Arc::clone(&meter));
        meter
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
        .with_description("Bytes sent to the bucket (in) and read out of it (out)")
        .with_unit("By")
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
        assert_eq!(text.gather(), expected);
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
