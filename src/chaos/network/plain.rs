//! Ports on loopback that stay ours while processes come and go.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use tokio::net::TcpSocket;

use super::Size;
use crate::chaos::schedule::Target;
use crate::client::Failure;

/// A loopback port that stays ours: bound but not listening, so that a process can listen there, go away and
/// come back.
#[derive(Debug)]
struct Port {
    _reserved: TcpSocket,
    address: SocketAddr,
}

impl Port {
    fn reserve() -> Result<Self, Failure> {
        let reserve = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            let address = socket.local_addr()?;
            Ok(Self { _reserved: socket, address })
        };
        reserve().map_err(|e: io::Error| Failure::failed(format!("no port on loopback is free: {e}")))
    }
}

/// A port for each process.
#[derive(Debug)]
pub(crate) struct Ports {
    all: BTreeMap<Target, Port>,
    s3_server: Port,
    later: Vec<Port>,
}

impl Ports {
    pub(super) fn reserve(size: Size) -> Result<Self, Failure> {
        let all = size.targets().map(|target| Ok((target, Port::reserve()?)));
        Ok(Self { all: all.collect::<Result<_, Failure>>()?, s3_server: Port::reserve()?, later: Vec::new() })
    }

    pub(super) fn listens(&self, target: Target) -> String {
        self.all.get(&target).map(|port| port.address.to_string()).unwrap_or_default()
    }

    pub(super) fn s3_server(&self) -> String {
        self.s3_server.address.to_string()
    }

    pub(super) fn another(&mut self) -> Result<String, Failure> {
        let port = Port::reserve()?;
        let address = port.address.to_string();
        self.later.push(port);
        Ok(address)
    }
}
