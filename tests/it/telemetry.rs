//! What processes of the real binary say of themselves: metrics, traces, readiness.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use http::Method;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use tempfile::TempDir;

use crate::support::cluster::members;
use crate::support::fleet::ask;
use crate::support::process::{Process, run};
use crate::support::store::HttpStore;
use crate::support::{Client, Port, until};

/// Storage nodes; one more than a key has homes.
const NODES: usize = 4;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A few storage nodes and a gateway, each a process of its own.
struct Processes {
    store: HttpStore,
    directory: TempDir,
    /// The gateway's is the last.
    ports: Vec<Port>,
    running: Vec<Option<Process>>,
    more: Vec<String>,
}

impl Processes {
    /// Starts them with `more` arguments each, and waits until all nodes count.
    async fn start(more: &[&str]) -> Self {
        let mut processes = Self {
            store: HttpStore::start().await,
            directory: tempfile::tempdir().unwrap(),
            ports: (0..=NODES).map(|_| Port::reserve()).collect(),
            running: Vec::new(),
            more: more.iter().map(|more| (*more).to_owned()).collect(),
        };
        processes.running = (0..=NODES).map(|at| Some(processes.start_one(at))).collect();
        let gateway = &processes.gateway();
        until("the gateway reaches all nodes, and they count", || async move {
            let status = ask(gateway, "/v1/cluster").await?;
            let counting = members(&status).filter(|member| member["standing"] == "counting").count();
            (counting == NODES && status["pending_change"].is_null()).then_some(())
        })
        .await;
        processes
    }

    fn id(at: usize) -> String {
        format!("node-{}", char::from(b'a' + u8::try_from(at).unwrap()))
    }

    fn start_one(&self, at: usize) -> Process {
        let (address, id) = (self.ports[at].address(), Self::id(at));
        let data: PathBuf = self.directory.path().join(&id);
        let common = ["--bucket", &self.store.url, "--listen", &address];
        let more: Vec<&str> = self.more.iter().map(String::as_str).collect();
        let node =
            ["storage-node", "--id", &id, "--data-dir", data.to_str().unwrap(), "--repair-every", "1s"];
        let first = if at < NODES { &node[..] } else { &["gateway"] };
        let arguments = [first, &common, &more].concat();
        Process::start(&id, self.directory.path(), Some(&self.store), &arguments)
    }

    fn client(&self, at: usize) -> Client {
        Client::new(&self.ports[at].address())
    }

    fn gateway(&self) -> Client {
        self.client(NODES)
    }

    fn kill(&mut self, at: usize) {
        self.running[at].take().unwrap().kill();
    }
}

/// A span as it arrived, with the service that sent it.
#[derive(Debug, Clone)]
struct Arrived {
    service: String,
    instance: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    attributes: BTreeMap<String, String>,
}

/// A collector that keeps what arrives.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Arrived>>>,
    /// Services and the names of their metrics.
    metrics: Arc<Mutex<BTreeSet<(String, String)>>>,
}

impl Collector {
    /// Listens; returns where.
    async fn start(&self) -> String {
        let (of_spans, of_metrics) = (self.clone(), self.clone());
        let spans = move |body: Bytes| async move {
            of_spans.take(&body);
            ExportTraceServiceResponse::default().encode_to_vec()
        };
        let metrics = move |body: Bytes| async move {
            of_metrics.take_metrics(&body);
            ExportMetricsServiceResponse::default().encode_to_vec()
        };
        serve(Router::new().route("/v1/traces", post(spans)).route("/v1/metrics", post(metrics))).await
    }

    fn take(&self, body: &[u8]) {
        let sent = ExportTraceServiceRequest::decode(body).unwrap();
        for of_resource in sent.resource_spans {
            let said = texts(&of_resource.resource.unwrap().attributes);
            assert_eq!(said["service.version"], env!("CARGO_PKG_VERSION"));
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.spans.lock().unwrap().push(Arrived {
                    service: said["service.name"].clone(),
                    instance: said["service.instance.id"].clone(),
                    attributes: texts(&span.attributes),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                });
            }
        }
    }

    fn take_metrics(&self, body: &[u8]) {
        let sent = ExportMetricsServiceRequest::decode(body).unwrap();
        for of_resource in sent.resource_metrics {
            let service = texts(&of_resource.resource.unwrap().attributes)["service.name"].clone();
            let metrics = of_resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
            self.metrics.lock().unwrap().extend(metrics.map(|metric| (service.clone(), metric.name)));
        }
    }

    fn of_trace(&self, trace: &str) -> Vec<Arrived> {
        self.spans.lock().unwrap().iter().filter(|span| span.trace == trace).cloned().collect()
    }
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |said: &KeyValue| match said.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{}: {other:?}", said.key),
    };
    attributes.iter().map(|said| (said.key.clone(), text(said))).collect()
}

/// The spans of this name.
fn named<'a>(spans: &'a [Arrived], name: &str) -> Vec<&'a Arrived> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// The span that this one is part of.
fn parent<'a>(spans: &'a [Arrived], span: &Arrived) -> &'a Arrived {
    spans.iter().find(|other| other.id == span.parent).unwrap_or_else(|| panic!("{span:?} of {spans:#?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_one_trace_from_the_client_to_the_bucket() {
    let collector = Collector::default();
    let url = collector.start().await;
    let mut processes = Processes::start(&["--otlp", &url, "--trace-ratio", "0"]).await;
    let gateway = processes.gateway();
    // Not traced: nothing of it may arrive.
    gateway.put("carts/bob", "milk").gives(204).await;
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let put = gateway.put("carts/alice", "milk").header("traceparent", &traceparent);
    put.query("durability=bucket&w=all&sloppy=false&deadline=30s").gives(204).await;

    // All three homes were waited for: one was asked to mint and to confirm, two to take the version.
    let spans = until("the trace has arrived", || async {
        let spans = collector.of_trace(TRACE);
        let storage = spans.iter().filter(|span| span.name.starts_with("storage ")).count();
        let whole = storage == 4 && named(&spans, "flush").len() == 3 && spans.len() == 12;
        whole.then_some(spans)
    })
    .await;
    let [request] = named(&spans, "PUT /v1/kv/{namespace}/{key}")[..] else { panic!("{spans:#?}") };
    assert_eq!((request.parent.as_str(), request.service.as_str()), (CALLER, "cartwheel-gateway"));
    assert_eq!(request.attributes["http.response.status_code"], "204");
    assert_eq!(request.attributes["http.route"], "/v1/kv/{namespace}/{key}");
    for call in ["mint", "replicate", "confirm"] {
        let answering = named(&spans, &format!("storage {call}"));
        assert_eq!(answering.len(), if call == "replicate" { 2 } else { 1 }, "{spans:#?}");
        for storage in answering {
            let asking = parent(&spans, storage);
            assert_eq!(asking.name, format!("{call} {}", storage.instance), "{spans:#?}");
            assert_eq!(asking.service, "cartwheel-gateway");
            assert_eq!(asking.attributes["cartwheel.outcome"], "acknowledged");
            assert_eq!(storage.service, "cartwheel-storage-node");
            assert_eq!(storage.attributes["cartwheel.outcome"], "answered");
            assert_eq!(parent(&spans, asking).id, request.id);
        }
    }
    for flush in named(&spans, "flush") {
        let of = &parent(&spans, flush).name;
        assert!(["storage confirm", "storage replicate"].contains(&of.as_str()), "{spans:#?}");
    }

    // Nodes that have nothing in memory read a value from the bucket.
    for node in 0..NODES {
        let process = processes.running[node].take().unwrap();
        process.terminate();
        process.ends_with(0).await;
        processes.running[node] = Some(processes.start_one(node));
    }
    let cold = TRACE.replace("4bf9", "6d1b");
    until("the nodes answer, and what they read has arrived", || async {
        let get = gateway.get("carts/alice").header("traceparent", &format!("00-{cold}-{CALLER}-01"));
        get.query("r=all&sloppy=false").send().await;
        let spans = collector.of_trace(&cold);
        let bucket = named(&spans, "bucket GET_RANGE");
        let storage =
            |span: &Arrived| spans.iter().any(|of| of.id == span.parent && of.name == "storage read");
        bucket.iter().any(|span| storage(span)).then_some(())
    })
    .await;

    // Without the nodes the gateway reads what they left in the bucket.
    (0..NODES).for_each(|node| processes.kill(node));
    let other = TRACE.replace("4bf9", "5c0a");
    let get = gateway.get("carts/alice").header("traceparent", &format!("00-{other}-{CALLER}-01"));
    assert_eq!(get.gives(200).await.text(), "milk");
    until("the bucket's part has arrived", || async {
        let spans = collector.of_trace(&other);
        let request = *named(&spans, "GET /v1/kv/{namespace}/{key}").first()?;
        let bucket: Vec<_> = spans.iter().filter(|span| span.name.starts_with("bucket ")).collect();
        assert!(bucket.iter().all(|span| span.parent == request.id), "{spans:#?}");
        assert!(bucket.iter().all(|span| span.attributes["cartwheel.work"] == "last_resort"), "{spans:#?}");
        (!bucket.is_empty()).then_some(())
    })
    .await;
    // What is left goes out at the end, metrics too.
    let process = processes.running[NODES].take().unwrap();
    process.terminate();
    process.ends_with(0).await;
    let metrics = collector.metrics.lock().unwrap().clone();
    for name in ["http.server.request.duration", "cartwheel.operation.duration", "cartwheel.bucket.requests"]
    {
        assert!(
            metrics.contains(&("cartwheel-gateway".to_owned(), name.to_owned())),
            "{name} of {metrics:?}"
        );
    }
    let traces: BTreeSet<_> = collector.spans.lock().unwrap().iter().map(|span| span.trace.clone()).collect();
    assert_eq!(traces, [TRACE.to_owned(), cold, other].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_holds_up_nothing() {
    let hang = || async { std::future::pending::<()>().await };
    let router = Router::new().route("/v1/traces", post(hang)).route("/v1/metrics", post(hang));
    let url = serve(router).await;
    let directory = tempfile::tempdir().unwrap();
    let (gateway, s3) = (Port::reserve(), Port::reserve());
    let data = directory.path().join("data");
    let (listen, s3_listen) = (gateway.address(), s3.address());
    let arguments = [
        &["dev", "--nodes", "1", "--listen", &listen, "--s3-listen", &s3_listen][..],
        &["--data-dir", data.to_str().unwrap(), "--otlp", &url, "--trace-ratio", "1"],
    ];
    let process = Process::start("dev", directory.path(), None, &arguments.concat());
    let client = Client::new(&listen);
    until("dev listens", || async { tokio::net::TcpStream::connect(client.address()).await.ok() }).await;
    client.is_ready().await;
    let dropped = || async {
        let text = client.path(Method::GET, "/metrics").gives(200).await.text().to_owned();
        let line =
            text.lines().find_map(|line| line.strip_prefix("cartwheel_spans_total{outcome=\"dropped\"} "));
        line.unwrap_or_else(|| panic!("{text}")).parse::<u64>().unwrap()
    };
    // More spans than may wait, and each request is answered as ever.
    let mut requests = 0;
    while dropped().await == 0 {
        let puts = (0..64).map(|n| client.put(&format!("load/{n}"), "value").gives(204));
        futures_util::future::join_all(puts).await;
        requests += 64;
        assert!(requests < 20_000, "nothing was dropped");
    }
    process.terminate();
    process.ends_with(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_drains_says_so_and_goes_on_serving() {
    let processes = Processes::start(&["--drain-wait", "10m"]).await;
    let gateway = processes.gateway();
    for (at, why) in [(0, "the node is shutting down"), (NODES, "the gateway is shutting down")] {
        let client = processes.client(at);
        until("it is ready", || async {
            let answer = client.path(Method::GET, "/readyz").send().await;
            (answer.status == 200).then(|| assert_eq!(answer.text(), "ready\n"))
        })
        .await;
        let url = format!("http://{}", client.address());
        let health = async |arguments: &[&str]| {
            let ended = run(&[&["health", &url], arguments].concat()).await;
            let said = [ended.stdout, ended.stderr].concat();
            (ended.status.code().unwrap(), String::from_utf8(said).unwrap())
        };
        assert_eq!(health(&[]).await, (0, format!("{url} is ready\n")));
        processes.running[at].as_ref().unwrap().terminate();
        let answer = until("it is not ready any more", || async {
            let answer = client.path(Method::GET, "/readyz").send().await;
            (answer.status == 503).then_some(answer)
        })
        .await;
        assert!(answer.text().contains(why), "{answer:?}");
        assert_eq!(client.path(Method::GET, "/healthz").gives(200).await.text(), "ok\n");
        let (status, said) = health(&[]).await;
        assert!(status == 1 && said.contains("is not ready: 503") && said.contains(why), "{said}");
        let alive = format!("{{\n  \"alive\": true,\n  \"process\": \"{url}\"\n}}\n");
        assert_eq!(health(&["--alive", "-o", "json"]).await, (0, alive));
        gateway.put("carts/alice", "milk").query("w=all&sloppy=false").gives(204).await;
    }
    let nobody = run(&["health", &format!("http://{}", Port::reserve().address())]).await;
    assert_eq!(nobody.status.code(), Some(3));
    // A second signal ends what waits.
    for mut process in processes.running.into_iter().rev().take(1) {
        let process = process.take().unwrap();
        process.terminate();
        process.ends_with(130).await;
    }
}

#[tokio::test]
async fn odd_collectors_and_ratios_are_refused_by_the_flag() {
    let table: [(&[&str], &str); 4] = [
        (&["--otlp", "https://collector:4318"], "--otlp"),
        (&["--otlp", "collector"], "--otlp"),
        (&["--trace-ratio", "1.5"], "--trace-ratio"),
        (&["--trace-ratio", "many"], "--trace-ratio"),
    ];
    for (flags, word) in table {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().to_str().unwrap();
        let dev = ["dev", "--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0", "--data-dir", data];
        let output = run(&[&dev, flags].concat()).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains(word), "{flags:?}: {said}");
    }
}

/// A metric: its kind and its labels.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// The tables of docs/telemetry.md: the metrics of gateways, of storage nodes, of both.
fn documented() -> [Metrics; 3] {
    let text = include_str!("../../docs/telemetry.md");
    ["### Of gateways", "### Of storage nodes", "### Of both"].map(|heading| {
        let section = text.split_once(heading).unwrap().1.split_once("\n#").unwrap().0;
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let labels = cells[3].split(", ").map(|label| label.trim_matches('`').to_owned());
            let labels = labels.filter(|label| !label.is_empty()).collect();
            (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), labels))
        })
        .collect()
    })
}

/// What a process shows.
async fn shown(client: &Client) -> Metrics {
    let text = client.path(Method::GET, "/metrics").gives(200).await.text().to_owned();
    let mut metrics = Metrics::new();
    for line in text.lines() {
        if let Some(said) = line.strip_prefix("# TYPE ") {
            let (name, kind) = said.split_once(' ').unwrap();
            metrics.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((series, _)) = line.split_once("} ").filter(|_| !line.starts_with('#')) {
            let (name, labels) = series.split_once('{').unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let name = base.filter(|base| metrics.contains_key(*base)).unwrap_or(name);
            let names = labels.split("\",").map(|label| label.split_once('=').unwrap().0.to_owned());
            metrics.get_mut(name).unwrap().1.extend(names.filter(|name| name != "le"));
        }
    }
    metrics
}

fn joined(all: &[Metrics]) -> Metrics {
    let mut joined = Metrics::new();
    for (name, (kind, labels)) in all.iter().flatten() {
        let entry = joined.entry(name.clone()).or_insert_with(|| (kind.clone(), BTreeSet::new()));
        entry.1.extend(labels.iter().cloned());
    }
    joined
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_show_the_metrics_that_are_documented_and_no_others() {
    let [of_gateways, of_nodes, of_both] = documented();
    let mut processes = Processes::start(&[]).await;
    let gateway = processes.gateway();
    for n in 0..20 {
        gateway.put(&format!("carts/{n}"), "milk").gives(204).await;
    }
    gateway.get("carts/0").gives(200).await;
    gateway.get("carts/nobody").send().await.problem(404);
    gateway.path(Method::GET, "/nowhere").send().await.problem(404);
    // With a home away, another node stands in and keeps what is written for it.
    processes.kill(0);
    until("a node keeps hints, and a comparison was made", || async {
        for n in 0..20 {
            gateway.put(&format!("carts/{n}"), "bread").query("w=all").gives(204).await;
        }
        let mut nodes = Vec::new();
        for node in 1..NODES {
            nodes.push(shown(&processes.client(node)).await);
        }
        let joined = joined(&nodes);
        (joined.contains_key("cartwheel_hints") && joined.contains_key("cartwheel_sync_age_seconds"))
            .then_some(())
    })
    .await;

    let mut nodes = Vec::new();
    for node in 1..NODES {
        nodes.push(shown(&processes.client(node)).await);
    }
    assert_eq!(joined(&nodes), joined(&[of_nodes, of_both.clone()]), "of storage nodes");
    assert_eq!(shown(&gateway).await, joined(&[of_gateways, of_both]), "of gateways");
}
