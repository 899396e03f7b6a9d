//! What a serving process says of itself: log lines, metrics, traces.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::Instant;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::registry::LookupSpan;

use cartwheel_bucket::Prices;
use cartwheel_cluster::seams::Seams;
use cartwheel_telemetry::trace;

use super::LogArgs;
use super::metrics::Metrics;
use super::otlp::{Collector, Exporting, SpanCounts};
use crate::client::Failure;

/// How long a process that ends may take to send what is left.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Where OpenTelemetry says to look for a collector.
const STANDARD_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where traces and metrics go.
#[derive(Debug, Clone, Args)]
pub struct TelemetryArgs {
    /// A collector that takes traces and metrics by OTLP over HTTP with protobuf; if it is not given,
    /// OTEL_EXPORTER_OTLP_ENDPOINT; if it is empty, none
    #[arg(long, value_name = "http://HOST:PORT", env = "CARTWHEEL_OTLP")]
    pub otlp: Option<String>,
    /// The share of requests that are traced, of those that come without a traceparent (0 to 1)
    #[arg(long, value_name = "RATIO", env = "CARTWHEEL_TRACE_RATIO", default_value_t = 0.01, value_parser = ratio)]
    pub trace_ratio: f64,
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio: Option<f64> = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "it must be a number from 0 to 1".to_owned())
}

/// Starts logging to standard error, at `default` where no filter is given.
pub(crate) fn start(args: &LogArgs, default: &str) -> Result<(), Failure> {
    let filter = args.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter).map_err(|e| Failure::usage(format!("--log {filter}: {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match args.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().map_event_format(WithIds).try_init(),
    };
    started.map_err(|e| Failure::failed(format!("can't start logging: {e}")))
}

/// JSON lines that say, where a request is worked on, of which trace they are.
struct WithIds(Format<Json>);

impl<S> FormatEvent<S, JsonFields> for WithIds
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(ids) = trace::current() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let object = line.trim_end().strip_suffix('}').unwrap_or(&line);
        let (trace, span) = (u128::from_be_bytes(ids.trace_id()), u64::from_be_bytes(ids.span_id()));
        writeln!(writer, "{object},\"trace_id\":\"{trace:032x}\",\"span_id\":\"{span:016x}\"}}")
    }
}

/// The metrics of a process, and its traces on their way.
#[derive(Debug)]
pub(crate) struct Telemetry {
    pub(crate) metrics: Metrics,
    exporting: Option<Exporting>,
}

impl Telemetry {
    /// Starts gathering, and sending if somebody is to be told. `instance` tells this process from others of the same
    /// `service`; without it one is made up. Must be called on a runtime.
    pub(crate) fn start(
        args: &TelemetryArgs,
        log: &LogArgs,
        prices: Prices,
        service: &'static str,
        instance: Option<&str>,
    ) -> Result<Self, Failure> {
        let standard = || std::env::var(STANDARD_ENDPOINT).ok();
        let counts = Arc::new(SpanCounts::default());
        let mut exporting = None;
        let collector = args.otlp.clone().or_else(standard).filter(|url| !url.is_empty());
        let metrics = match collector {
            Some(url) => {
                let instance = instance
                    .map_or_else(|| format!("{:032x}", Seams::real().random.next_u128()), str::to_owned);
                let collector = Collector::new(&url, service, instance)?;
                let (queue, sending) = collector.spans(&counts)?;
                trace::start(Some(Box::new(queue)), args.trace_ratio);
                exporting = Some(sending);
                Metrics::sent(prices, &collector, counts)?
            }
            None => {
                if log.log_format == LogFormat::Json {
                    trace::start(None, 0.0);
                }
                Metrics::new(prices)?
            }
        };
        // Calls to storage nodes take along what they are part of.
        cartwheel_cluster::trace::set(trace::recorded);
        Ok(Self { metrics, exporting })
    }

    /// Sends what is left, for a short time.
    pub(crate) async fn finish(self) {
        let Some(exporting) = self.exporting else { return };
        let give_up = Instant::now() + LAST_WORDS;
        let (done, sent) = tokio::sync::oneshot::channel();
        // A thread of its own, which nothing waits for: it may take longer than that.
        std::thread::spawn(move || {
            self.metrics.send_rest();
            let _ = done.send(());
        });
        exporting.finish(give_up).await;
        if tokio::time::timeout_at(give_up, sent).await.is_err() {
            tracing::warn!("the collector did not take the last metrics in time");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{self, Write};
    use std::sync::Mutex;

    use cartwheel_core::trace::TraceContext;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_lines_of_a_request_carry_its_ids() {
        let written = Written::default();
        let writer = written.clone();
        let builder = tracing_subscriber::fmt().with_writer(move || writer.clone());
        let subscriber = builder.json().map_event_format(WithIds).finish();
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(brackets = "}", "before");
            let context = TraceContext::from_traceparent(parent.as_bytes());
            trace::within(context, || tracing::info!(brackets = "}}", "within"));
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let [before, within] = &lines[..] else { unreachable!("{text}") };
        assert_eq!(before["trace_id"], serde_json::Value::Null);
        assert_eq!(within["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(within["span_id"], "00f067aa0ba902b7");
        assert_eq!(within["fields"]["brackets"], "}}");
        assert_eq!(within["fields"]["message"], "within");
    }

    #[test]
    fn a_ratio_is_from_0_to_1() {
        assert_eq!(ratio("0.25"), Ok(0.25));
        for odd in ["-0.1", "1.01", "NaN", "all", ""] {
            assert!(ratio(odd).is_err(), "{odd}");
        }
    }
}
