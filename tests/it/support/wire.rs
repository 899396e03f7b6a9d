//! The wire to a storage node, which can be cut: the node goes on as if nothing were, and nobody reaches it.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Port;

/// Hands on connections until it is dropped.
#[derive(Debug)]
pub(crate) struct Wire {
    cut: watch::Sender<bool>,
    handing_on: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// From the port where others call to the address where the node listens.
    pub(crate) fn new(from: &Port, to: &Port) -> Self {
        let (cut, seen) = watch::channel(false);
        Self { cut, handing_on: tokio::spawn(hand_on(from.address(), to.address(), seen)) }
    }

    /// Breaks all connections, and refuses new ones; or no longer.
    pub(crate) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.handing_on.abort();
    }
}

async fn hand_on(from: String, to: String, mut cut: watch::Receiver<bool>) {
    loop {
        cut.wait_for(|cut| !cut).await.unwrap();
        let listener = TcpListener::bind(&from).await.unwrap();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = cut.wait_for(|cut| *cut) => break,
                accepted = listener.accept() => accepted,
            };
            let (mut outer, _) = accepted.unwrap();
            let to = to.clone();
            connections.spawn(async move {
                // Without the node, its caller sees a connection that ends.
                if let Ok(mut inner) = TcpStream::connect(to).await {
                    let _ = copy_bidirectional(&mut outer, &mut inner).await;
                }
            });
        }
        drop(listener);
        connections.shutdown().await;
    }
}
