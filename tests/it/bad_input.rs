//! Whatever a client sends, it gets a 4xx that names the field and the limit, nothing is stored, and others are
//! served on.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use cartwheel_gateway::GatewayConfig;
use http::Method;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::http::RawAnswer;
use crate::support::store::Kind;
use crate::support::{Client, Cluster, Dice, in_time, until};

async fn cluster() -> (Cluster, Client) {
    with(|_| {}).await
}

async fn with(change: impl FnOnce(&mut GatewayConfig)) -> (Cluster, Client) {
    let cluster = Cluster::nodes(3).store(Kind::Memory).configure(change).start().await;
    let client = cluster.gateway(0);
    (cluster, client)
}

/// No node holds any key, and the gateway still serves.
async fn nothing_is_stored(cluster: &Cluster) {
    let status = cluster.status(0).await;
    for member in status["members"].as_array().unwrap() {
        assert_eq!(member["keys"], 0, "{member}");
    }
    let client = cluster.gateway(0);
    client.put("after/all", "served").gives(204).await;
    assert_eq!(client.get("after/all").gives(200).await.text(), "served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_keys_and_namespaces() {
    let (cluster, client) = cluster().await;
    let long = "k".repeat(1025);
    let escaped = "%6b".repeat(1025);
    let namespace = "n".repeat(64);
    let table: &[(&str, u16, &[&str])] = &[
        ("ns/", 400, &["key", "empty"]),
        ("ns", 400, &["key", "empty"]),
        (&format!("ns/{long}"), 414, &["key", "1025", "1024"]),
        (&format!("ns/{escaped}"), 414, &["key", "1025", "1024"]),
        ("ns/%zz", 400, &["key", "%"]),
        ("ns/%4", 400, &["key", "%"]),
        ("ns/a%", 400, &["key", "%"]),
        ("%zz/a", 400, &["namespace", "%"]),
        ("/a", 400, &["namespace"]),
        ("NS/a", 400, &["namespace", "63"]),
        (".ns/a", 400, &["namespace"]),
        ("n%2Fs/a", 400, &["namespace"]),
        (&format!("{namespace}/a"), 400, &["namespace", "63"]),
    ];
    for (key, status, words) in table {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            client.key(method, key).send().await.refused(*status, words);
        }
        assert_eq!(client.head(key).send().await.status, *status);
    }
    nothing_is_stored(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_parameters() {
    let (cluster, client) = cluster().await;
    let table: &[(&str, &[&str])] = &[
        ("r=0", &["'r'", "1 to 3"]),
        ("r=4", &["'r'", "1 to 3"]),
        ("w=0", &["'w'", "1 to 3"]),
        ("w=4", &["'w'", "1 to 3"]),
        ("w=two", &["'w'", "two", "1 to 3"]),
        ("w=", &["'w'"]),
        ("w=99999999999999999999999", &["'w'"]),
        ("w=-1", &["'w'"]),
        ("durability=tape", &["'durability'", "memory, disk or bucket"]),
        ("sloppy=perhaps", &["'sloppy'", "true or false"]),
        ("deadline=0ms", &["'deadline'", "60s"]),
        ("deadline=61s", &["'deadline'", "60s"]),
        ("deadline=soon", &["'deadline'", "60s"]),
        ("x=1", &["'x'", "not known"]),
        ("w=1&w=1", &["'w'", "more than once"]),
        ("w=%zz", &["w", "%"]),
        ("w=%ff", &["'w'", "UTF-8"]),
    ];
    for (query, words) in table {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            client.key(method, "ns/a").query(query).send().await.refused(400, words);
        }
    }
    client.get("ns/a").query("return=value").send().await.refused(400, &["'return'"]);
    client.put("ns/a", "x").query("sibling=a").send().await.refused(400, &["'sibling'"]);
    client.put("ns/a", "x").query("return=all").send().await.refused(400, &["'return'", "value"]);
    nothing_is_stored(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_over_the_limit() {
    let (cluster, client) = with(|config| config.max_value = 300_000).await;
    let value = vec![b'v'; 300_001];
    // Clients that first send it all, and only then read.
    let mut announced =
        format!("PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", value.len());
    announced.push_str(std::str::from_utf8(&value).unwrap());
    let mut chunked = "PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    for chunk in value.chunks(10_000) {
        write!(chunked, "{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()).unwrap();
    }
    chunked.push_str("0\r\n\r\n");
    for request in [announced, chunked] {
        let answer = client.raw(request.as_bytes()).await;
        assert_eq!(answer.status, 413, "{answer:?}");
        assert!(answer.detail().contains("300000"), "{}", answer.detail());
    }
    client.put("ns/a", value.clone()).send().await.refused(413, &["300000 bytes"]);
    nothing_is_stored(&cluster).await;
    client.put("ns/a", Bytes::from(value).slice(1..)).gives(204).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_this_cluster_did_not_give_for_this_key() {
    let (_cluster, client) = cluster().await;
    let (other_cluster, stranger) = self::cluster().await;
    let foreign_key = client.put("other/key", "x").gives(204).await.clock().to_owned();
    let foreign_cluster = stranger.put("ns/a", "x").gives(204).await.clock().to_owned();
    drop(other_cluster);
    let mac = "mac=:AAAAAAAAAAAAAAAAAAAAAA==:";
    let raised = foreign_key.replace("=1,", "=999999,");
    let actors: String = (0..600).fold(String::new(), |mut text, n| {
        write!(text, "node-a.{}=1, ", n + 1).unwrap();
        text
    });
    let dots: String = (0..2100).fold("node-a.1=(0".to_owned(), |mut text, n| {
        write!(text, " {}", 2 * n + 2).unwrap();
        text
    });
    let long = format!("{}{mac}", "node-a.1=1, ".repeat(2000));
    let table: &[(&str, &[&str])] = &[
        (&foreign_key, &["not issued by this cluster for this key"]),
        (&foreign_cluster, &["not issued by this cluster for this key"]),
        (&raised, &["not issued"]),
        (mac, &["not issued"]),
        ("node-a.1=1", &["not issued"]),
        (&format!("node-a.1=99, {mac}"), &["not issued"]),
        ("", &["Vector-Clock is empty"]),
        ("nonsense", &["malformed", "nonsense"]),
        ("node-a.1=-1", &["malformed"]),
        ("node-a.1=01", &["malformed"]),
        ("node-a.1=(3 2)", &["malformed"]),
        ("node-a.1=99999999999999999999", &["malformed"]),
        ("node-a.1=1, node-a.1=2", &["malformed"]),
        ("mac=:x:", &["malformed"]),
        (&format!("{mac}, {mac}"), &["malformed"]),
        (&format!("{actors}{mac}"), &["512 actors"]),
        (&format!("{dots}), {mac}"), &["2048 single counts"]),
        (&long, &["Vector-Clock has", "16384"]),
    ];
    for (clock, words) in table {
        for method in [Method::PUT, Method::DELETE, Method::GET, Method::HEAD] {
            let answer = client.key(method.clone(), "ns/a").header("vector-clock", clock).send().await;
            if method == Method::HEAD {
                assert_eq!(answer.status, 400);
            } else {
                answer.refused(400, words);
            }
        }
    }
    // A million entries do not even get through the door.
    let million = "node-a.1=1, ".repeat(1_000_000);
    let request = format!("PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nVector-Clock: {million}\r\n\r\n");
    assert_eq!(client.raw(request.as_bytes()).await.status, 431);
    client.get("ns/a").gives(404).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_bombs() {
    let (cluster, client) = cluster().await;
    let many: String = (0..200).fold(String::new(), |mut text, n| {
        write!(text, "X-{n}: y\r\n").unwrap();
        text
    });
    let huge = format!("X: {}\r\n", "y".repeat(200_000));
    for headers in [many, huge] {
        let request = format!("PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 1\r\n\r\nv");
        assert_eq!(client.raw(request.as_bytes()).await.status, 431);
    }
    let put = || client.put("ns/a", "v");
    let long = "x".repeat(256);
    put().header("content-type", &long).send().await.refused(431, &["Content-Type", "256", "255"]);
    put().header("idempotency-key", &long).send().await.refused(400, &["Idempotency-Key", "256", "255"]);
    put().header("idempotency-key", "").send().await.refused(400, &["Idempotency-Key"]);
    for name in ["content-type", "idempotency-key"] {
        put().header(name, "a/b").header(name, "a/b").send().await.refused(400, &[name, "more than once"]);
    }
    put()
        .header("cartwheel-meta-a", &"x".repeat(4096))
        .send()
        .await
        .refused(431, &["Cartwheel-Meta-*", "4096"]);
    let mut pairs = put();
    for _ in 0..80 {
        pairs = pairs.header("cartwheel-meta-a", "x");
    }
    pairs.send().await.refused(431, &["Cartwheel-Meta-*", "80"]);
    let tags = (0..100).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ");
    for name in ["if-match", "if-none-match"] {
        put().header(name, &tags).send().await.refused(400, &[name, "100", "limit"]);
        put().header(name, "unquoted").send().await.refused(400, &[name, "double quotes"]);
        put().header(name, "").send().await.refused(400, &[name, "empty"]);
        put().header(name, "*, \"a\"").send().await.refused(400, &[name, "*"]);
    }
    nothing_is_stored(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_break_off_are_not_stored() {
    let (cluster, client) = cluster().await;
    let heads = [
        "PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nshort",
        "PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\na\r\nshort",
        "PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
        "PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nshort\r\n0\r\n\r\n",
        "PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nshort",
        "PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ];
    for request in heads {
        let mut stream = TcpStream::connect(client.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = RawAnswer::read(&mut stream).await;
        assert!(answer.status == 0 || answer.status == 400, "{request:?}: {answer:?}");
    }
    nothing_is_stored(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_no_requests() {
    let (cluster, client) = cluster().await;
    let raw = async |text: &str| client.raw(text.as_bytes()).await;
    let missing = raw("PUT /v1/kv/ns/a HTTP/1.1\r\nContent-Length: 1\r\n\r\nv").await;
    assert_eq!((missing.status, missing.detail().contains("0 Host")), (400, true), "{missing:?}");
    let doubled = raw("PUT /v1/kv/ns/a HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 1\r\n\r\nv").await;
    assert_eq!((doubled.status, doubled.detail().contains("2 Host")), (400, true), "{doubled:?}");
    for request in [
        "PUT\r\n\r\n",
        "PUT /v1/kv/ns/a\r\n\r\n",
        "PUT /v1/kv/ns/a HTTP/9.9\r\nHost: x\r\n\r\n",
        "PUT /v1/kv/ns/a b HTTP/1.1\r\nHost: x\r\n\r\n",
        "PUT /v1/kv/ns/a HTTP/1.1\r\nHost x\r\n\r\n",
        "PUT /v1/kv/ns/a HTTP/1.1\r\nHo\u{0}st: x\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}and more of a TLS hello\r\n\r\n",
    ] {
        assert_eq!(raw(request).await.status, 400, "{request:?}");
    }
    for method in ["POST", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = client.key(method, "ns/a").send().await;
        answer.problem(405);
        assert_eq!(answer.must("allow"), "GET, HEAD, PUT, DELETE");
    }
    let long = format!("GET /v1/kv/ns/{} HTTP/1.1\r\nHost: x\r\n\r\n", "k".repeat(66_000));
    let answer = raw(&long).await;
    assert!([414, 431].contains(&answer.status), "{answer:?}");
    nothing_is_stored(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_on_a_get_changes_nothing() {
    let (_cluster, client) = cluster().await;
    client.put("ns/a", "v").gives(204).await;
    let request = "GET /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nother";
    let answer = client.raw(request.as_bytes()).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"v"[..]));
    let request = "DELETE /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nother";
    assert_eq!(client.raw(request.as_bytes()).await.status, 204);
    client.get("ns/a").gives(404).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_stalled_bodies_hold_nobody_up() {
    // Ten requests are worked on at a time; a hundred clients, half of them with a body, do not get theirs done.
    let (cluster, client) = with(|config| config.in_flight = 10).await;
    let mut held = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(client.address()).await.unwrap();
        let said = match n % 4 {
            0 => "PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nbegun",
            1 => "PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
            2 => "PUT /v1/kv/ns/a HTTP/1.1\r\nHo",
            _ => "PRI * HTT",
        };
        stream.write_all(said.as_bytes()).await.unwrap();
        held.push(stream);
    }
    for n in 0..20 {
        client.put("ns/b", n.to_string()).gives(204).await;
    }
    let read = client.get("ns/b").gives(300).await;
    client.delete("ns/b").seen(&read).gives(204).await;
    client.get("ns/a").gives(404).await;
    drop(held);
    client.get("ns/a").gives(404).await;
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_end_is_hung_up_on() {
    let (_cluster, client) = with(|config| {
        config.limits.head = Duration::from_millis(200);
        config.limits.first_bytes = Duration::from_millis(200);
    })
    .await;
    for said in ["", "GET", "GET /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nX: "] {
        let answer = in_time("the gateway hangs up", client.raw(said.as_bytes())).await;
        assert!([0, 408, 400].contains(&answer.status), "{said:?}: {answer:?}");
    }
    client.get("ns/a").gives(404).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_beyond_what_memory_is_given_for_are_turned_away() {
    let (cluster, client) = with(|config| {
        config.max_value = 1 << 20;
        config.body_bytes = 2 << 20;
    })
    .await;
    // Three that stall one byte before their end do not fit together: one is refused, whichever is last.
    let mut begun = format!("PUT /v1/kv/ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 1 << 20);
    begun.push_str(&"v".repeat((1 << 20) - 1));
    let uploads = (0..3).map(|_| Box::pin(client.raw(begun.as_bytes())));
    let (refused, _, others) = futures_util::future::select_all(uploads).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.head.contains("retry-after: 1"), "{refused:?}");
    assert!(refused.detail().contains("bodies"), "{}", refused.detail());
    drop(others);
    until("there is room again", || async {
        (client.put("ns/b", "a little").send().await.status == 204).then_some(())
    })
    .await;
    client.get("ns/a").gives(404).await;
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mangled_requests_never_give_a_5xx_and_never_stop_the_gateway() {
    let (cluster, client) = cluster().await;
    let clock = client.put("ns/a", "v").gives(204).await.clock().to_owned();
    let mac = base64::engine::general_purpose::STANDARD.encode([7; 16]);
    let whole = [
        format!("PUT /v1/kv/ns/a?w=2&durability=disk HTTP/1.1\r\nHost: x\r\nVector-Clock: {clock}\r\nContent-Length: 3\r\n\r\nabc"),
        "GET /v1/kv/ns/a?r=2&deadline=2s HTTP/1.1\r\nHost: x\r\nIf-None-Match: \"a\", W/\"b\"\r\nAccept: application/json\r\n\r\n".to_owned(),
        format!("DELETE /v1/kv/ns/%61 HTTP/1.1\r\nHost: x\r\nVector-Clock: node-a.1=(0 7 9), mac=:{mac}:\r\n\r\n"),
        "PUT /v1/kv/ns/b HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nCartwheel-Meta-A: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_owned(),
        "GET /v1/cluster/locate?namespace=ns&key=a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
    ];
    let mut dice = Dice(2007);
    for round in 0..400 {
        let mut request = whole[dice.below(whole.len())].clone().into_bytes();
        for _ in 0..=dice.below(4) {
            let at = dice.below(request.len());
            let byte = u8::try_from(dice.below(256)).unwrap();
            match dice.below(4) {
                0 => request[at] = byte,
                1 => request.insert(at, byte),
                2 => drop(request.remove(at)),
                _ => request.truncate(at + 1),
            }
        }
        let mut stream = TcpStream::connect(client.address()).await.unwrap();
        let _ = stream.write_all(&request).await;
        let _ = stream.shutdown().await;
        let answer = RawAnswer::read(&mut stream).await;
        assert!(answer.status < 500, "round {round}: {:?}: {answer:?}", String::from_utf8_lossy(&request));
    }
    client.put("ns/c", "still here").gives(204).await;
    drop(cluster);
}
