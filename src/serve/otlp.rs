//! Spans and metrics on their way to an OpenTelemetry collector, over OTLP with HTTP and protobuf.
//!
//! What ends goes into a bounded queue, from which a task sends batches; what finds the queue full is dropped and
//! counted. So a collector that is slow or gone costs spans, and never a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::PeriodicReader;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use cartwheel_telemetry::trace::{EndedSpan, Kind, Sink, Value};

use crate::client::Failure;

/// Spans that may wait.
const QUEUE: usize = 2048;
/// Spans in one request to the collector.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long one request to the collector may take, tries again included.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of spans.
#[derive(Debug, Default)]
pub(super) struct SpanCounts {
    pub(super) exported: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// A collector, as it was said on the command line.
#[derive(Debug)]
pub(super) struct Collector {
    base: String,
    client: Arc<dyn HttpClient>,
    resource: Resource,
}

impl Collector {
    /// `url` is where it listens; `service` and `instance` say who tells it. Must be called on a runtime.
    pub(super) fn new(url: &str, service: &'static str, instance: String) -> Result<Self, Failure> {
        let wrong = |what: &str| Failure::usage(format!("--otlp {url}: {what}"));
        let parsed: http::Uri =
            url.parse().map_err(|_| wrong("it must be a URL such as http://127.0.0.1:4318"))?;
        if parsed.scheme_str() != Some("http") || parsed.host().is_none() || parsed.query().is_some() {
            return Err(wrong(
                "it must be such as http://127.0.0.1:4318, with http; a collector beside this process can send on \
                 over TLS",
            ));
        }
        let client = Arc::new(HyperClient::with_default_connector(PATIENCE, None));
        let client = Arc::new(OnRuntime { runtime: Handle::current(), client });
        let base = url.trim_end_matches('/').to_owned();
        Ok(Self { base, client, resource: resource(service, instance) })
    }

    /// Who tells it.
    pub(super) fn resource(&self) -> Resource {
        self.resource.clone()
    }

    /// Sends metrics to it now and then.
    pub(super) fn metrics(&self) -> Result<PeriodicReader<MetricExporter>, Failure> {
        let exporter = MetricExporter::builder()
            .with_http()
            .with_shared_http_client(Arc::clone(&self.client))
            .with_endpoint(format!("{}/v1/metrics", self.base))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(PATIENCE)
            .build();
        Ok(PeriodicReader::builder(exporter.map_err(|e| failed(&e))?).build())
    }

    /// Starts sending it spans.
    pub(super) fn spans(&self, counts: &Arc<SpanCounts>) -> Result<(SpanQueue, Exporting), Failure> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_shared_http_client(Arc::clone(&self.client))
            .with_endpoint(format!("{}/v1/traces", self.base))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(PATIENCE)
            .build();
        let mut exporter = exporter.map_err(|e| failed(&e))?;
        exporter.set_resource(&self.resource);
        let (sender, queue) = mpsc::channel(QUEUE);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(export(exporter, queue, stopped, Arc::clone(counts)));
        let scope =
            InstrumentationScope::builder("cartwheel").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok((SpanQueue { sender, counts: Arc::clone(counts), scope }, Exporting { stop, task }))
    }
}

fn failed(error: &opentelemetry_otlp::ExporterBuildError) -> Failure {
    Failure::failed(format!("can't export telemetry: {error}"))
}

/// Who tells the collector. What the environment says counts more than what is known here.
fn resource(service: &'static str, instance: String) -> Resource {
    let resource = Resource::builder_empty()
        .with_attribute(KeyValue::new("service.name", service))
        .with_attribute(KeyValue::new("service.instance.id", instance))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}

/// Sends requests on the process's runtime, whoever asks: metrics are sent by a thread that has none.
#[derive(Debug)]
struct OnRuntime {
    runtime: Handle,
    client: Arc<HyperClient>,
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = Arc::clone(&self.client);
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Where ended spans wait.
pub(super) struct SpanQueue {
    sender: mpsc::Sender<SpanData>,
    counts: Arc<SpanCounts>,
    scope: InstrumentationScope,
}

impl Sink for SpanQueue {
    fn ended(&self, span: EndedSpan) {
        if self.sender.try_send(data(span, self.scope.clone())).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The task that sends spans.
#[derive(Debug)]
pub(super) struct Exporting {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Exporting {
    /// Sends what is left, until `give_up`.
    pub(super) async fn finish(self, give_up: Instant) {
        let _ = self.stop.send(());
        let abort = self.task.abort_handle();
        if tokio::time::timeout_at(give_up, self.task).await.is_err() {
            abort.abort();
            tracing::warn!("the collector did not take the last spans in time");
        }
    }
}

async fn export(
    exporter: SpanExporter,
    mut queue: mpsc::Receiver<SpanData>,
    mut stopped: oneshot::Receiver<()>,
    counts: Arc<SpanCounts>,
) {
    let mut stopping = false;
    loop {
        let mut batch = Vec::new();
        let mut due = None;
        while batch.len() < BATCH {
            let linger = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = &mut stopped, if !stopping => {
                    stopping = true;
                    queue.close();
                }
                taken = queue.recv() => match taken {
                    Some(span) => {
                        batch.push(span);
                        due.get_or_insert_with(|| Instant::now() + LINGER);
                    }
                    None => break,
                },
                () = linger => break,
            }
        }
        if batch.is_empty() {
            return;
        }
        let size = batch.len() as u64;
        let sent = exporter.export(batch).await;
        let count = if sent.is_ok() { &counts.exported } else { &counts.failed };
        count.fetch_add(size, Ordering::Relaxed);
        if let Err(error) = sent {
            tracing::debug!(%error, spans = size, "the collector did not take spans");
        }
    }
}

/// A span as OpenTelemetry knows it.
fn data(span: EndedSpan, instrumentation_scope: InstrumentationScope) -> SpanData {
    let EndedSpan { context, parent, parent_is_remote, name, kind, begun, took, attributes, error } = span;
    let (trace_id, span_id) =
        (TraceId::from_bytes(context.trace_id()), SpanId::from_bytes(context.span_id()));
    let flags = TraceFlags::new(context.flags());
    let value = |value| match value {
        Value::Text(text) => opentelemetry::Value::from(text),
        Value::Number(number) => opentelemetry::Value::from(number),
    };
    SpanData {
        span_context: SpanContext::new(trace_id, span_id, flags, false, TraceState::NONE),
        parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: parent_is_remote,
        span_kind: match kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Internal => SpanKind::Internal,
        },
        name,
        start_time: begun,
        end_time: begun + took,
        attributes: attributes.into_iter().map(|(name, said)| KeyValue::new(name, value(said))).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: match error {
            Some(error) => Status::Error { description: error },
            None => Status::Unset,
        },
        instrumentation_scope,
    }
}
