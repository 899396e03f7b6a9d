//! `GET /metrics`: what a process says of itself to Prometheus.

use cartwheel::serve::metrics::Metrics;
use cartwheel_bucket::Prices;
use http::Method;

use crate::support::process::{Process, run};
use crate::support::store::Kind;
use crate::support::{Client, Cluster, Port, until};

/// One scrape.
#[derive(Debug)]
struct Figures(String);

impl Figures {
    async fn of(gateway: &Client) -> Self {
        let answer = gateway.path(Method::GET, "/metrics").gives(200).await;
        assert_eq!(answer.must("content-type"), "text/plain; version=0.0.4");
        Self(answer.text().to_owned())
    }

    /// The sum of the series of a metric whose labels hold all of `labels`, such as `op="put"`; `None` without any.
    fn sum(&self, metric: &str, labels: &[&str]) -> Option<f64> {
        let figure = |line: &str| {
            let (said, rest) = line.strip_prefix(metric)?.strip_prefix('{')?.split_once("} ")?;
            let said: Vec<&str> = said.split(',').collect();
            labels.iter().all(|label| said.contains(label)).then(|| rest.parse::<f64>().unwrap())
        };
        let figures: Vec<f64> = self.0.lines().filter_map(figure).collect();
        (!figures.is_empty()).then(|| figures.iter().sum())
    }

    fn requests(&self, labels: &[&str]) -> Option<f64> {
        self.sum("cartwheel_bucket_requests_total", labels)
    }

    /// Requests of the last resort that write or list.
    fn charged(&self, node: &str) -> f64 {
        let ops = [r#"op="put""#, r#"op="create""#, r#"op="list""#];
        ops.iter().map(|op| self.requests(&[node, LAST_RESORT, op]).unwrap()).sum()
    }
}

const LAST_RESORT: &str = r#"work="last_resort""#;
const MEMBERSHIP: &str = r#"work="membership""#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_shows_what_it_asks_of_the_bucket_and_what_that_costs() {
    let prices: Prices = "put=1000,get=0".parse().unwrap();
    let metrics = Metrics::new(prices).unwrap();
    let configured = Cluster::nodes(3).store(Kind::Memory).configure(|config| {
        config.meter = metrics.meter("the-gateway");
        config.metrics = Some(metrics.text());
    });
    let mut cluster = configured.start().await;
    let gateway = cluster.gateway(0);
    gateway.put("carts/alice", "milk").gives(204).await;
    assert_eq!(gateway.get("carts/alice").gives(200).await.text(), "milk");

    let figures = Figures::of(&gateway).await;
    let node = r#"node="the-gateway""#;
    // It found the ring document by one list, and goes on asking for the next version by its name.
    assert!(figures.requests(&[node, MEMBERSHIP, r#"op="get""#]) >= Some(1.0), "{figures:?}");
    assert_eq!(figures.requests(&[node, MEMBERSHIP, r#"op="list""#]), Some(1.0), "{figures:?}");
    let read = figures.sum("cartwheel_bucket_bytes_total", &[MEMBERSHIP, r#"direction="out""#]);
    assert!(read > Some(0.0), "{figures:?}");
    assert_eq!(figures.requests(&[LAST_RESORT]), None, "with all nodes there, no data goes to the bucket");
    assert_eq!(figures.sum("cartwheel_bucket_failures_total", &[]), Some(0.0), "{figures:?}");

    cluster.kill_all().await;
    gateway.put("carts/alice", "bread").gives(204).await;
    let figures = Figures::of(&gateway).await;
    assert!(figures.requests(&[node, LAST_RESORT, r#"op="put""#]) >= Some(1.0), "{figures:?}");
    let sent = figures.sum("cartwheel_bucket_bytes_total", &[LAST_RESORT, r#"direction="in""#]);
    assert!(sent > Some(5.0), "{figures:?}");
    // At a dollar for each request that writes or lists, and nothing for the others. Some may go on meanwhile.
    let at_least = figures.charged(node);
    let cost = Figures::of(&gateway).await.sum("cartwheel_bucket_cost_dollars_total", &[node, LAST_RESORT]);
    let at_most = Figures::of(&gateway).await.charged(node);
    let cost = cost.unwrap();
    assert!(at_least > 0.0 && (at_least..=at_most).contains(&cost), "{at_least} <= {cost} <= {at_most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_given_no_figures_has_no_such_path() {
    let cluster = Cluster::nodes(1).quorum(1, 1, 1).store(Kind::Memory).start().await;
    cluster.gateway(0).path(Method::GET, "/metrics").send().await.problem(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_shows_each_of_its_gateways_by_the_prices_that_it_was_given() {
    let directory = tempfile::tempdir().unwrap();
    let (gateway, s3) = (Port::reserve(), Port::reserve());
    let data = directory.path().join("data");
    let (listen, s3_listen) = (gateway.address(), s3.address());
    let arguments = [
        &["dev", "--nodes", "1", "--listen", &listen, "--s3-listen", &s3_listen][..],
        &["--data-dir", data.to_str().unwrap(), "--prices", "put=0,get=1000"],
    ];
    let process = Process::start("dev", directory.path(), None, &arguments.concat());
    let client = Client::new(&listen);
    let node = r#"node="gateway-1""#;
    // The gateway reads the ring document and asks for newer ones, a dollar each; a scrape may fall between a request
    // and its price, and the next one then does not.
    let figures = until("dev serves, and requests cost what was said", || async {
        tokio::net::TcpStream::connect(client.address()).await.ok()?;
        let figures = Figures::of(&client).await;
        let asked = figures.requests(&[node, MEMBERSHIP, r#"op="get""#])?;
        let cost = figures.sum("cartwheel_bucket_cost_dollars_total", &[node, MEMBERSHIP])?;
        (asked >= 1.0 && cost == asked).then_some(figures)
    })
    .await;
    // Founding the cluster is nobody's alone: it wrote the secret and the ring document.
    let created = figures.requests(&[r#"node="dev""#, MEMBERSHIP, r#"op="create""#]);
    assert_eq!(created, Some(2.0), "{figures:?}");
    process.terminate();
    process.ends_with(0).await;
}

#[tokio::test]
async fn odd_prices_are_refused_by_the_field() {
    let table = [
        ("gb-out=-1", "'gb-out' is '-1'"),
        ("put=1,put=2", "'put' is given more than once"),
        ("post=1", "there is no price 'post'"),
    ];
    for command in ["dev", "gateway", "storage-node"] {
        for (prices, words) in table {
            let output = run(&[command, "--prices", prices]).await;
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command} {prices}: {said}");
            assert!(said.contains("--prices") && said.contains(words), "{command} {prices}: {said}");
        }
    }
}
