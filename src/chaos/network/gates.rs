//! TCP proxies on loopback that can stop passing bytes, one way or both ways, or pass them late. Those of storage nodes and
//! gateways stand before the process, whoever calls; those of the bucket stand between it and one process each.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::Size;
use super::plain::Ports;
use crate::chaos::schedule::{Link, Target};
use crate::client::Failure;

/// Bytes on their way through one direction of one connection.
const BUFFER: usize = 16 * 1024;
/// How late a slow link is, each way.
const LATE: Duration = Duration::from_millis(150);
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a gate lets through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Way {
    /// Holds what the caller sends.
    requests_held: bool,
    /// Holds what the one called sends.
    answers_held: bool,
    /// Both are late.
    slow: bool,
}

/// One proxy.
#[derive(Debug)]
struct Gate {
    address: String,
    way: watch::Sender<Way>,
}

impl Gate {
    fn open(behind: String) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let listener = TcpListener::from_std(listener)?;
        let (way, watched) = watch::channel(Way::default());
        tokio::spawn(serve(listener, behind, watched));
        Ok(Self { address, way })
    }

    fn set(&self, change: impl FnOnce(&mut Way)) {
        self.way.send_if_modified(|way| {
            let before = *way;
            change(way);
            *way != before
        });
    }
}

/// All proxies of a run. They end with this.
#[derive(Debug)]
pub(crate) struct Gates {
    ports: Ports,
    /// Before each storage node and gateway.
    callees: BTreeMap<Target, Gate>,
    /// Between a process and the bucket.
    buckets: BTreeMap<Target, Gate>,
}

impl Gates {
    pub(super) fn open(size: Size) -> Result<Self, Failure> {
        let ports = Ports::reserve(size)?;
        let failed = |e: io::Error| Failure::failed(format!("can't open a proxy: {e}"));
        let (mut callees, mut buckets) = (BTreeMap::new(), BTreeMap::new());
        for target in size.targets().filter(|target| *target != Target::Bucket) {
            let gate = Gate::open(ports.listens(Target::Bucket)).map_err(failed)?;
            buckets.insert(target, gate);
            if target != Target::Clients {
                callees.insert(target, Gate::open(ports.listens(target)).map_err(failed)?);
            }
        }
        Ok(Self { ports, callees, buckets })
    }

    pub(super) fn listens(&self, target: Target) -> String {
        self.ports.listens(target)
    }

    pub(super) fn s3_server(&self) -> String {
        self.ports.s3_server()
    }

    pub(super) fn called(&self, target: Target) -> String {
        self.callees.get(&target).map(|gate| gate.address.clone()).unwrap_or_default()
    }

    pub(super) fn bucket_of(&self, target: Target) -> String {
        self.buckets.get(&target).map(|gate| gate.address.clone()).unwrap_or_default()
    }

    pub(super) fn cut(&self, cuts: &BTreeSet<Link>) {
        for (target, gate) in &self.callees {
            let (requests_held, answers_held) = held(*target, cuts);
            gate.set(|way| (way.requests_held, way.answers_held) = (requests_held, answers_held));
        }
        for (target, gate) in &self.buckets {
            let requests_held = cuts.contains(&Link { from: *target, to: Target::Bucket });
            let answers_held = cuts.contains(&Link { from: Target::Bucket, to: *target });
            gate.set(|way| (way.requests_held, way.answers_held) = (requests_held, answers_held));
        }
    }

    pub(super) fn slow(&self, slow: &BTreeSet<Target>) {
        for (target, gate) in &self.callees {
            gate.set(|way| way.slow = slow.contains(target));
        }
        for (target, gate) in &self.buckets {
            gate.set(|way| way.slow = slow.contains(target) || slow.contains(&Target::Bucket));
        }
    }
}

/// Are the requests to `callee` held, and its answers? They are for all callers if they are for one. Nobody but clients
/// calls a gateway.
fn held(callee: Target, cuts: &BTreeSet<Link>) -> (bool, bool) {
    let calls = |caller: Target| match callee {
        Target::Gateway(_) => caller == Target::Clients,
        _ => caller != Target::Bucket,
    };
    let requests = cuts.iter().any(|link| link.to == callee && calls(link.from));
    let answers = cuts.iter().any(|link| link.from == callee && calls(link.to));
    (requests, answers)
}

async fn serve(listener: TcpListener, behind: String, way: watch::Receiver<Way>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed(way.clone()) => return,
        };
        let Ok((near, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (behind, way) = (behind.clone(), way.clone());
        tokio::spawn(async move {
            // Whoever is not there is not reached: the connection ends.
            let Ok(far) = TcpStream::connect(&behind).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            let requests = pass(near_in, far_out, way.clone(), |way| way.requests_held);
            let answers = pass(far_in, near_out, way.clone(), |way| way.answers_held);
            let both = async { tokio::join!(requests, answers) };
            tokio::select! {
                _ = both => {}
                () = closed(way) => {}
            }
        });
    }
}

/// Waits for the end of the run.
async fn closed(mut way: watch::Receiver<Way>) {
    while way.changed().await.is_ok() {}
}

/// Passes bytes on while they may pass; what came meanwhile is held, and goes on afterwards, as it would on a line that
/// was cut.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut way: watch::Receiver<Way>,
    held: fn(&Way) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if way.borrow().slow {
            tokio::time::sleep(LATE).await;
        }
        if way.wait_for(|way| !held(way)).await.is_err() {
            return Ok(());
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_gate_holds_one_way_and_lets_go() {
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = Gate::open(behind.local_addr().unwrap().to_string()).unwrap();
        let mut near = TcpStream::connect(&gate.address).await.unwrap();
        let (mut far, _) = behind.accept().await.unwrap();
        gate.set(|way| way.requests_held = true);
        near.write_all(b"request").await.unwrap();
        far.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        near.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer", "the other way is open");
        let mut request = [0; 7];
        assert!(far.try_read(&mut request).is_err(), "nothing has come");
        gate.set(|way| way.requests_held = false);
        far.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"request", "nothing was lost");
        drop(gate);
        assert_eq!(near.read(&mut request).await.unwrap_or(0), 0, "connections end with their gate");
    }

    #[test]
    fn a_callee_is_cut_off_from_all_and_the_bucket_from_one() {
        let (a, b) = (Target::Node(0), Target::Node(1));
        let cuts = BTreeSet::from([Link { from: a, to: b }, Link { from: b, to: Target::Bucket }]);
        assert_eq!(held(b, &cuts), (true, false));
        assert_eq!(held(a, &cuts), (false, true));
        assert_eq!(held(Target::Node(2), &cuts), (false, false));
        let gateway = Target::Gateway(0);
        let cuts = BTreeSet::from([Link { from: a, to: gateway }, Link { from: gateway, to: a }]);
        assert_eq!((held(gateway, &cuts), held(a, &cuts)), ((false, false), (true, true)));
        let cuts = BTreeSet::from([Link { from: gateway, to: Target::Clients }]);
        assert_eq!(held(gateway, &cuts), (false, true));
    }
}
