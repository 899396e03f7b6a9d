//! The proxy before a server that counts what it was asked, over real sockets.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const CERTAIN: u32 = 10_000;

/// A server that answers every request with ten bytes, and a proxy before it.
struct Pair {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    plan: PathBuf,
    _directory: tempfile::TempDir,
    /// Ends with the test.
    _told: tokio::sync::mpsc::Receiver<String>,
}

impl Pair {
    async fn start() -> Self {
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream::Tcp(behind.local_addr().unwrap().to_string());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (stream, _) = behind.accept().await.unwrap();
                let counted = Arc::clone(&counted);
                let answer = service_fn(move |request: Request<Incoming>| {
                    let counted = Arc::clone(&counted);
                    async move {
                        assert_eq!(request.headers()["host"], "bucket.example:1");
                        counted.fetch_add(1, Ordering::SeqCst);
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"0123456789"))))
                    }
                });
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), answer));
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let plan = directory.path().join("plan.json");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, _told) = tokio::sync::mpsc::channel(8);
        let (dice, idle) = (Mutex::new(Dice::new(1, 1)), Mutex::new(Vec::new()));
        let proxy = Proxy { upstream, plan: plan.clone(), dice, idle, told };
        tokio::spawn(serve_all(listener, Arc::new(proxy)));
        Self { address, asked, plan, _directory: directory, _told }
    }

    /// What one connection gets to a request of this method under a plan, and how it ends.
    async fn ask(&self, method: &str, plan: Plan) -> (String, io::Result<usize>) {
        std::fs::write(&self.plan, serde_json::to_vec(&plan).unwrap()).unwrap();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{method} /b/k HTTP/1.1\r\nHost: bucket.example:1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer).await;
        (String::from_utf8(answer).unwrap(), ended)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn is_reset(ended: &io::Result<usize>) -> bool {
    ended.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn what_passes_is_untouched_and_what_is_refused_is_not_done() {
    let pair = Pair::start().await;
    let (answer, ended) = pair.ask("PUT", Plan::default()).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("0123456789") && ended.is_ok(),
        "{answer}"
    );
    assert_eq!(pair.asked(), 1);
    let (answer, _) = pair.ask("PUT", Plan { refuse: CERTAIN, ..Plan::default() }).await;
    assert!(
        answer.contains("<Code>SlowDown</Code>") || answer.contains("<Code>InternalError</Code>"),
        "{answer}"
    );
    let (answer, ended) = pair.ask("PUT", Plan { reset: CERTAIN, ..Plan::default() }).await;
    assert!(answer.is_empty() && is_reset(&ended), "{answer} {ended:?}");
    assert_eq!(pair.asked(), 1, "nothing was done");
}

#[tokio::test]
async fn answers_get_lost_and_break_off() {
    let pair = Pair::start().await;
    let (answer, ended) = pair.ask("PUT", Plan { mute: CERTAIN, ..Plan::default() }).await;
    assert!(answer.is_empty() && is_reset(&ended), "{answer} {ended:?}");
    assert_eq!(pair.asked(), 1, "but it was done");
    let (answer, ended) = pair.ask("GET", Plan { truncate: CERTAIN, ..Plan::default() }).await;
    assert!(is_reset(&ended) && !answer.ends_with("0123456789"), "{answer} {ended:?}");
    assert_eq!(pair.asked(), 2);
}

#[tokio::test]
async fn a_late_request_is_done_after_its_client_has_gone() {
    let pair = Pair::start().await;
    let (answer, ended) = pair.ask("PUT", Plan { late: CERTAIN, ..Plan::default() }).await;
    assert!(answer.is_empty() && is_reset(&ended), "{answer} {ended:?}");
    assert_eq!(pair.asked(), 0, "not yet");
    tokio::time::pause();
    while pair.asked() == 0 {
        tokio::time::advance(Duration::from_millis(100)).await;
        tokio::task::yield_now().await;
    }
}
