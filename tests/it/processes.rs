//! The real binary: a process per storage node and gateway, killed and started again, and its command line.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use http::Method;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::cluster::reachable;
use crate::support::fleet::{Fleet, NODES, ask};
use crate::support::http::RawAnswer;
use crate::support::process::{Process, cartwheel, run};
use crate::support::store::Kind;
use crate::support::{Client, Cluster, PATIENCE, Port, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_processes_survive_kill_9_and_the_loss_of_every_disk() {
    let mut fleet = Fleet::new(7).await;
    fleet.start().await;
    fleet.gateway(0).put("carts/alice", "milk").query("durability=bucket").gives(204).await;
    let read = fleet.gateway(1).get("carts/alice").gives(200).await;
    assert_eq!(read.text(), "milk");
    fleet.write(0..40, "disk").await;
    fleet.write(40..80, "bucket").await;

    fleet.kill_all();
    fleet.start().await;
    fleet.all_there(0..80).await;

    fleet.kill_all();
    for node in 0..NODES {
        std::fs::remove_dir_all(fleet.data(node)).unwrap();
    }
    fleet.new_ports();
    fleet.start().await;
    fleet.all_there(40..80).await;
    // The clock from before the loss is still good: the secret, too, is in the bucket.
    fleet.gateway(1).put("carts/alice", "bread").seen(&read).gives(204).await;
    assert_eq!(fleet.gateway(0).get("carts/alice").gives(200).await.text(), "bread");

    drains_and_ends(&mut fleet).await;
}

/// What systemd waits for with `Type=notify`.
#[test]
fn a_supervisor_hears_when_a_process_serves_and_when_it_ends() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hears = |word: &str| {
        let mut heard = [0; 64];
        let n = socket.recv(&mut heard).unwrap();
        assert_eq!(std::str::from_utf8(&heard[..n]).unwrap().trim_end(), word);
    };
    let secret = "a secret that this test alone knows";
    let arguments =
        ["gateway", "--bucket", "s3://none/here", "--listen", "127.0.0.1:0", "--cluster-secret", secret];
    let mut command = cartwheel(&arguments);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        .env("AWS_REGION", "x");
    command.env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "x").stderr(Stdio::null());
    let mut process = command.spawn().unwrap();
    hears("READY=1");
    assert!(Command::new("kill").args(["-s", "TERM", &process.id().to_string()]).status().unwrap().success());
    hears("STOPPING=1");
    assert!(process.wait().unwrap().success());
}

/// SIGTERM: a gateway finishes the request in flight, and everybody ends with status 0.
async fn drains_and_ends(fleet: &mut Fleet) {
    let mut stream = TcpStream::connect(fleet.gateway(0).address()).await.unwrap();
    let begun =
        b"PUT /v1/kv/carts/bob HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    stream.write_all(begun).await.unwrap();
    // The gateway asks for the body: the request is in flight.
    let mut asked = [0; 25];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    let gateway = fleet.take(NODES);
    gateway.terminate();
    until("the gateway takes no more connections", || async {
        TcpStream::connect(fleet.gateway(0).address()).await.is_err().then_some(())
    })
    .await;
    stream.write_all(b"bread").await.unwrap();
    assert_eq!(RawAnswer::read(&mut stream).await.status, 204);
    gateway.ends_with(0).await;
    assert_eq!(fleet.gateway(1).get("carts/bob").gives(200).await.text(), "bread");
    for process in fleet.take_all().into_iter().rev() {
        process.terminate();
        process.ends_with(0).await;
    }
}

struct Dev {
    directory: TempDir,
    gateway: Port,
    s3: Port,
}

impl Dev {
    async fn start(&self) -> Process {
        let data = self.directory.path().join("data");
        let arguments = [
            "dev",
            "--listen",
            &self.gateway.address(),
            "--s3-listen",
            &self.s3.address(),
            "--data-dir",
            data.to_str().unwrap(),
        ];
        let process = Process::start("dev", self.directory.path(), None, &arguments);
        let client = &self.client();
        until("dev serves", || async move {
            let status = ask(client, "/v1/cluster").await?;
            (reachable(&status) == 5).then_some(())
        })
        .await;
        process
    }

    fn client(&self) -> Client {
        Client::new(&self.gateway.address())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_finds_everything_again_after_kill_9_and_after_a_clean_end() {
    let dev = Dev { directory: tempfile::tempdir().unwrap(), gateway: Port::reserve(), s3: Port::reserve() };
    let process = dev.start().await;
    dev.client().put("carts/alice", "milk").header("content-type", "text/plain").gives(204).await;
    let read = dev.client().get("carts/alice").gives(200).await;
    dev.client().put("carts/bob", "gone").gives(204).await;
    dev.client().delete("carts/bob").gives(204).await;
    process.kill();
    let process = dev.start().await;
    let again = dev.client().get("carts/alice").gives(200).await;
    assert_eq!((again.text(), again.clock(), again.etag()), ("milk", read.clock(), read.etag()));
    assert_eq!(again.must("content-type"), "text/plain");
    assert_eq!(dev.client().get("carts/bob").gives(404).await.must("cartwheel-deleted"), "?1");
    process.terminate();
    process.ends_with(0).await;
    let process = dev.start().await;
    assert_eq!(dev.client().get("carts/alice").gives(200).await.text(), "milk");
    assert_eq!(dev.client().get("carts/bob").gives(404).await.must("cartwheel-deleted"), "?1");
    process.kill();
}

/// The exit status, and standard output as text.
fn ended(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8(output.stdout.clone()).unwrap())
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_reads_writes_and_says_how_it_went() {
    let cluster = Cluster::nodes(4).store(Kind::Memory).start().await;
    let url = format!("http://{}", cluster.gateway(0).address());
    let cli = async |arguments: &[&str]| run(&[arguments, &["--gateway", &url]].concat()).await;

    let put = cli(&["put", "carts", "alice", "--value", "milk", "--content-type", "text/plain"]).await;
    let (status, clock) = ended(&put);
    assert_eq!(status, 0, "{put:?}");
    let got = cli(&["get", "carts", "alice"]).await;
    assert_eq!(ended(&got), (0, "milk".to_owned()), "the bytes as they are");
    assert!(String::from_utf8_lossy(&got.stderr).contains(clock.trim()), "{got:?}");
    let got = json(&cli(&["get", "carts", "alice", "-o", "json"]).await);
    assert_eq!((&got["value"], &got["clock"]), (&"milk".into(), &clock.trim().into()), "{got}");

    // 4: siblings; one with the clock settles them.
    assert_eq!(ended(&cli(&["put", "carts", "alice", "--value", "bread"]).await).0, 0);
    let siblings = cli(&["get", "carts", "alice", "-o", "json"]).await;
    assert_eq!(ended(&siblings).0, 4, "{siblings:?}");
    let siblings = json(&siblings);
    assert_eq!(siblings["siblings"].as_array().unwrap().len(), 2, "{siblings}");
    let both = siblings["clock"].as_str().unwrap();
    assert_eq!(ended(&cli(&["put", "carts", "alice", "--value", "both", "--clock", both]).await).0, 0);
    assert_eq!(ended(&cli(&["get", "carts", "alice"]).await), (0, "both".to_owned()));

    // 1: refused or not found.
    assert_eq!(ended(&cli(&["delete", "carts", "alice"]).await).0, 0);
    let gone = cli(&["get", "carts", "alice", "-o", "json"]).await;
    assert_eq!((ended(&gone).0, &json(&gone)["deleted"]), (1, &true.into()));
    assert_eq!(ended(&cli(&["get", "carts", "never"]).await), (1, String::new()));
    let refused = cli(&["put", "carts", "bob", "--value", "x", "--w", "9", "-o", "json"]).await;
    let problem = &json(&refused)["error"];
    assert_eq!(
        (ended(&refused).0, &problem["exit"], &problem["problem"]["applied"]),
        (1, &1.into(), &"no".into())
    );
    let exists = ["put", "carts", "eve", "--value", "x", "--if-none-match", "*"];
    assert_eq!((ended(&cli(&exists).await).0, ended(&cli(&exists).await).0), (0, 1));

    // 2: bad usage; nothing was sent.
    let bad: [&[&str]; 5] = [
        &["put", "Carts", "bob"],
        &["get", "carts", ""],
        &["get", "carts"],
        &["status", "--no-such"],
        &["fly"],
    ];
    for arguments in bad {
        let output = if arguments == ["fly"] { run(arguments).await } else { cli(arguments).await };
        assert_eq!(ended(&output), (2, String::new()), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }

    // 3: not reachable.
    let nobody = Port::reserve();
    let lost = run(&["get", "carts", "alice", "--gateway", &format!("http://{}", nobody.address())]).await;
    assert_eq!(ended(&lost).0, 3);
    assert!(String::from_utf8_lossy(&lost.stderr).contains("--gateway"), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_the_cluster() {
    let mut cluster = Cluster::nodes(4).store(Kind::Memory).start().await;
    let url = format!("http://{}", cluster.gateway(0).address());
    let cli = async |arguments: &[&str]| run(&[arguments, &["--gateway", &url]].concat()).await;
    cluster.gateway(0).put("carts/a%2Fb", "x").query("w=all").gives(204).await;
    let homes = cluster.homes("carts", "a%2Fb").await;
    cluster.kill(homes[2]).await;
    cluster.gateway_reaches(0, 3).await;

    for (command, path) in [("status", "/v1/cluster"), ("ring", "/v1/cluster/ring")] {
        let output = cli(&[command, "-o", "json"]).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let asked = cluster.gateway(0).path(Method::GET, path).gives(200).await.json();
        assert_eq!(
            json(&output)["members"].as_array().unwrap().len(),
            asked["members"].as_array().unwrap().len()
        );
        let (status, text) = ended(&cli(&[command]).await);
        assert_eq!(status, 0);
        assert!((0..4).all(|node| text.contains(cluster.id(node))), "{text}");
    }
    let (_, text) = ended(&cli(&["status"]).await);
    assert!(text.contains("3 of 4 storage nodes reachable"), "{text}");

    let located = json(&cli(&["locate", "carts", "a/b", "-o", "json"]).await);
    assert_eq!(located["homes"][0], cluster.id(homes[0]));
    let (status, text) = ended(&cli(&["locate", "carts", "a/b"]).await);
    assert_eq!(
        (status, text.matches("held").count(), text.matches("unreachable").count()),
        (0, 2, 1),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_cannot_start_names_the_flag() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let file = directory.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let free = Port::reserve();
    let dev = async |listen: &str, data: &Path| {
        let data = data.to_str().unwrap();
        run(&["dev", "--nodes", "1", "--listen", listen, "--s3-listen", "127.0.0.1:0", "--data-dir", data])
            .await
    };
    let says = |output: Output, status: i32, flag: &str| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert!(text.contains(flag), "{flag}: {text}");
    };
    says(dev(&address, &data).await, 1, "--listen");
    says(dev(&free.address(), &file).await, 1, "--data-dir");
    says(dev("0.0.0.0:0", &data).await, 2, "--insecure");
    says(run(&["gateway", "--bucket", "nonsense", "--listen", &free.address()]).await, 2, "--bucket");
    says(run(&["storage-node", "--id", "A", "--bucket", "s3://x"]).await, 2, "--id");
    says(run(&["gateway"]).await, 2, "--bucket");
}
