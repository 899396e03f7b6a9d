//! Calls straight to one storage node, as gateways and nodes make them: nobody else can answer.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel::client::Failure;
use cartwheel_cluster::peer::Peers;
use cartwheel_cluster::seams::Seams;
use cartwheel_cluster::secret::NodeToken;
use cartwheel_core::clock::Clock;
use cartwheel_core::names::{Key, Namespace};
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::{Record, Value, Version};
use cartwheel_core::wire::{Call, Precondition, Refusal, Reply, Request};

use crate::data;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most siblings of a key that is written here.
const MAX_SIBLINGS: u32 = 100;

/// What a node made of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answered {
    /// It did what was asked, and the answer is right.
    Served,
    /// It can't be reached, or says itself that it does not count yet.
    NotYet,
    /// It answered, and the answer is wrong.
    Wrong(String),
}

/// A way to one node.
#[derive(Debug)]
pub(crate) struct Direct {
    seams: Seams,
    token: NodeToken,
    address: String,
    ring_version: u64,
    peers: Option<Peers>,
}

impl Direct {
    /// A way to the node at `address`, not open yet.
    pub(crate) fn new(seams: Seams, token: NodeToken, address: String, ring_version: u64) -> Self {
        Self { seams, token, address, ring_version, peers: None }
    }

    /// One call; `None` if there was no answer. The next one connects anew then, at once: waiting between
    /// attempts, as processes of the cluster do, would be measured too.
    pub(crate) async fn call(&mut self, request: Request) -> Option<Reply> {
        let open = || Peers::new(self.seams.clone(), self.token.clone());
        let peers = self.peers.take().unwrap_or_else(open);
        let call = Call { ring_version: self.ring_version, request };
        let answer = peers.call(&self.address, &call, Instant::now() + PATIENCE).await.ok()?;
        self.peers = Some(peers);
        Some(answer.reply)
    }

    /// Reads a key; right is the value of its only write.
    pub(crate) async fn read(&mut self, namespace: &Namespace, number: u64) -> Answered {
        let Ok(key) = Key::new(Bytes::from(data::key(number))) else { return Answered::NotYet };
        let request = Request::Read { namespace: namespace.clone(), key, values: true, stands_for: None };
        match self.call(request).await {
            Some(Reply::Found(bytes)) => check(&bytes, number),
            Some(Reply::Absent) => Answered::Wrong(format!("key {number} is absent")),
            Some(reply) => not_yet(&reply),
            None => Answered::NotYet,
        }
    }

    /// Writes a key, which the node is to mint and to have on its disk.
    pub(crate) async fn write(&mut self, namespace: &Namespace, number: u64) -> Answered {
        let Ok(key) = Key::new(Bytes::from(data::key(number))) else { return Answered::NotYet };
        let version = Version {
            value: Value::Present(data::value(number, 0)),
            written_ms: self.seams.clock.now_ms(),
            expires_ms: 0,
            request: self.seams.random.next_u128(),
            context: Clock::new(),
            content_type: Bytes::new(),
            meta: Vec::new(),
        };
        let request = Request::Mint {
            namespace: namespace.clone(),
            key,
            version,
            durability: Durability::Disk,
            precondition: Precondition::None,
            max_siblings: MAX_SIBLINGS,
            hint_for: None,
            insist: false,
        };
        match self.call(request).await {
            Some(Reply::Minted { reached, .. }) if reached >= Durability::Disk => Answered::Served,
            Some(Reply::Minted { reached, .. }) => {
                Answered::Wrong(format!("a write for the disk reached {reached:?}"))
            }
            Some(reply) => not_yet(&reply),
            None => Answered::NotYet,
        }
    }
}

/// Is this the record of a key's only write?
fn check(bytes: &Bytes, number: u64) -> Answered {
    let record = match Record::decode(bytes) {
        Ok(record) => record,
        Err(error) => return Answered::Wrong(format!("key {number}: {error}")),
    };
    match record.container.siblings() {
        [only] if only.version.value == Value::Present(data::value(number, 0)) => Answered::Served,
        [_] => Answered::Wrong(format!("key {number} has another value")),
        other => Answered::Wrong(format!("key {number} has {} versions", other.len())),
    }
}

/// A refusal for now, or one that no waiting mends?
fn not_yet(reply: &Reply) -> Answered {
    match reply {
        Reply::Partial(_)
        | Reply::Refused(
            Refusal::CatchingUp
            | Refusal::Overloaded
            | Refusal::Late
            | Refusal::StaleRing
            | Refusal::Unable(_),
        ) => Answered::NotYet,
        other => Answered::Wrong(format!("an answer that makes no sense: {other:?}")),
    }
}

/// A namespace by its name.
///
/// # Errors
/// If it may not be called so.
pub(crate) fn namespace(name: &str) -> Result<Namespace, Failure> {
    Namespace::new(name.as_bytes()).map_err(|e| Failure::failed(format!("namespace {name}: {e}")))
}
