//! The network between the processes of a run, and how it is cut: a namespace for each process, or proxies on loopback, or
//! nothing but loopback.

mod gates;
pub(crate) mod namespaces;
mod plain;

use std::collections::BTreeSet;

use clap::ValueEnum;

use super::schedule::{FaultKind, Link, Target};
use crate::client::Failure;

use gates::Gates;
use namespaces::Namespaces;
use plain::Ports;

/// Which network to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkKind {
    /// Namespaces where they can be made, proxies else; plain loopback where no fault needs a network
    Auto,
    /// A namespace for each process, on a bridge of its own: any link can be cut, one-way or both ways. Needs root
    Namespaces,
    /// A TCP proxy before each storage node and gateway, and between each process and the bucket: a process is cut off
    /// from all of its callers, or from the bucket
    Proxy,
}

/// Do these faults need a network that can be cut?
pub(crate) fn needed(kinds: &[FaultKind]) -> bool {
    kinds.iter().any(|kind| matches!(kind, FaultKind::Cut | FaultKind::Split | FaultKind::Slow))
}

/// How many processes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) gateways: usize,
}

impl Size {
    /// All that has an address of its own.
    pub(crate) fn targets(self) -> impl Iterator<Item = Target> {
        let nodes = (0..self.nodes).map(Target::Node);
        nodes.chain((0..self.gateways).map(Target::Gateway)).chain([Target::Bucket, Target::Clients])
    }
}

/// The network of a run.
#[derive(Debug)]
pub(crate) enum Network {
    /// Loopback, and nothing that can be cut.
    Plain(Ports),
    /// Loopback with proxies.
    Gates(Box<Gates>),
    /// Namespaces that the parent of this process made.
    Namespaces(Namespaces),
}

impl Network {
    /// Loopback.
    ///
    /// # Errors
    /// If no ports are free.
    pub(crate) fn plain(size: Size) -> Result<Self, Failure> {
        Ok(Self::Plain(Ports::reserve(size)?))
    }

    /// Loopback with proxies, which serve from now on.
    ///
    /// # Errors
    /// If no ports are free.
    pub(crate) fn gates(size: Size) -> Result<Self, Failure> {
        Ok(Self::Gates(Box::new(Gates::open(size)?)))
    }

    /// What comes before the command of a process.
    pub(crate) fn command(&self, target: Target) -> Vec<String> {
        match self {
            Self::Plain(_) | Self::Gates(_) => Vec::new(),
            Self::Namespaces(namespaces) => namespaces.command(target),
        }
    }

    /// Must processes be told that it is fine to listen here?
    pub(crate) fn insecure(&self) -> bool {
        matches!(self, Self::Namespaces(_))
    }

    /// Where a process listens.
    pub(crate) fn listens(&self, target: Target) -> String {
        match self {
            Self::Plain(ports) => ports.listens(target),
            Self::Gates(gates) => gates.listens(target),
            Self::Namespaces(namespaces) => namespaces.address(target),
        }
    }

    /// Where others call it.
    pub(crate) fn called(&self, target: Target) -> String {
        match self {
            Self::Plain(ports) => ports.listens(target),
            Self::Gates(gates) => gates.called(target),
            Self::Namespaces(namespaces) => namespaces.address(target),
        }
    }

    /// Where a process finds the bucket.
    pub(crate) fn bucket_of(&self, target: Target) -> String {
        match self {
            Self::Plain(ports) => ports.listens(Target::Bucket),
            Self::Gates(gates) => gates.bucket_of(target),
            Self::Namespaces(namespaces) => namespaces.address(Target::Bucket),
        }
    }

    /// Where the S3 server listens that stands behind the proxy of faults.
    pub(crate) fn s3_server(&self) -> String {
        match self {
            Self::Plain(ports) => ports.s3_server(),
            Self::Gates(gates) => gates.s3_server(),
            Self::Namespaces(namespaces) => namespaces.s3_server(),
        }
    }

    /// A further port on loopback, kept until the end, for a process that comes later.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn another(&mut self) -> Result<String, Failure> {
        match self {
            Self::Plain(ports) => ports.another(),
            Self::Gates(_) | Self::Namespaces(_) => {
                Err(Failure::failed("this network has no room for another process"))
            }
        }
    }

    /// Can each link be cut by itself, or only all calls of one process?
    pub(crate) fn cuts_single_links(&self) -> bool {
        !matches!(self, Self::Gates(_))
    }

    /// From now on exactly these links carry nothing.
    ///
    /// # Errors
    /// If the system does not let us.
    pub(crate) fn cut(&mut self, cuts: &BTreeSet<Link>) -> Result<(), Failure> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Gates(gates) => {
                gates.cut(cuts);
                Ok(())
            }
            Self::Namespaces(namespaces) => namespaces.cut(cuts),
        }
    }

    /// From now on exactly the links of these are slow.
    ///
    /// # Errors
    /// If the system does not let us.
    pub(crate) fn slow(&mut self, slow: &BTreeSet<Target>) -> Result<(), Failure> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Gates(gates) => {
                gates.slow(slow);
                Ok(())
            }
            Self::Namespaces(namespaces) => namespaces.slow(slow),
        }
    }

    /// What it is, in words.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Plain(_) => "loopback".to_owned(),
            Self::Gates(_) => {
                "proxies on loopback; a cut storage node or gateway is cut off from all of its callers"
                    .to_owned()
            }
            Self::Namespaces(namespaces) => namespaces.words(),
        }
    }
}
