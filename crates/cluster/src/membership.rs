//! The truth about who belongs: ring documents in the bucket. Each version is created once, by a conditional
//! put; everybody follows the newest.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use cartwheel_bucket::{Bucket, BucketError, Created, SharedBucket};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{Change, Member, MemberState, Ring, RingDocument, RingError};

use crate::seams::Seams;

/// What all ring documents' names start with.
const RING_PREFIX: &str = "ring/";
/// What the readiness marks of a pending change start with.
const READY_PREFIX: &str = "ring-ready/";
/// How many times a change is tried against others' changes.
const MAX_TRIES: usize = 64;

/// Why the membership could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A ring document in the bucket, or the one to be written, breaks a rule.
    #[error("ring document: {0}")]
    Ring(#[from] RingError),
    /// The node is not in the ring and may not add itself.
    #[error("{0} is not a member of the ring, and --join=never forbids adding it")]
    NotAMember(NodeId),
    /// Others kept changing the ring.
    #[error("the ring kept changing; gave up after {MAX_TRIES} tries")]
    Contended,
}

/// One version of the ring with its placements, worked out once.
#[derive(Debug)]
pub struct View {
    /// The document.
    pub document: RingDocument,
    /// Who holds what now.
    pub current: Ring,
    /// Who will hold what after the pending change; the same as `current` without one.
    pub next: Ring,
}

impl View {
    /// Works out the placements.
    #[must_use]
    pub fn new(document: RingDocument) -> Self {
        Self { current: Ring::current(&document), next: Ring::next(&document), document }
    }

    /// The ring version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.document.version
    }

    /// Must `node` hold `partition`, now or after the pending change?
    #[must_use]
    pub fn is_home(&self, node: &NodeId, partition: u32) -> bool {
        let holds =
            |ring: &Ring| ring.index_of(node).is_some_and(|index| ring.homes(partition).contains(&index));
        holds(&self.current) || (self.document.has_pending_change() && holds(&self.next))
    }
}

/// The newest ring document after version `after`, if there is one.
///
/// # Errors
/// [`MembershipError`].
pub async fn read_newest(bucket: &dyn Bucket, after: u64) -> Result<Option<RingDocument>, MembershipError> {
    let mut last = (after > 0).then(|| RingDocument::object_name(after));
    if after > 0 {
        // Versions follow each other, and asking for one costs a tenth of a list.
        match bucket.get(&RingDocument::object_name(after.saturating_add(1))).await {
            Err(BucketError::NotFound { .. }) => return Ok(None),
            // There may be more of them.
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    loop {
        let page = bucket.list(RING_PREFIX, last.as_deref(), 1000).await?;
        let newest = page.objects.last().map(|o| o.key.clone());
        match (newest, page.more) {
            (Some(key), true) => last = Some(key),
            (Some(key), false) => return Ok(Some(RingDocument::parse(&bucket.get(&key).await?)?)),
            (None, _) => {
                let Some(key) = last.filter(|key| RingDocument::version_of_object(key) != Some(after)) else {
                    return Ok(None);
                };
                return Ok(Some(RingDocument::parse(&bucket.get(&key).await?)?));
            }
        }
    }
}

/// Creates a version of the ring; `false` if another process created that version first.
///
/// # Errors
/// [`MembershipError`].
pub async fn create(bucket: &dyn Bucket, document: &RingDocument) -> Result<bool, MembershipError> {
    let name = RingDocument::object_name(document.version);
    Ok(bucket.create(&name, document.to_json().into()).await? == Created::New)
}

/// How a new cluster is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Founding {
    /// Q: partitions, a power of two.
    pub partitions: u32,
    /// T: tokens per weight unit.
    pub tokens: u32,
    /// N: replicas of each partition.
    pub replicas: u32,
}

impl Default for Founding {
    fn default() -> Self {
        Self { partitions: 256, tokens: 64, replicas: 3 }
    }
}

/// A document for a cluster that does not exist yet, with these members active.
///
/// # Errors
/// [`MembershipError::Ring`].
pub fn found(
    seams: &Seams,
    founding: Founding,
    members: Vec<Member>,
    by: &str,
) -> Result<RingDocument, MembershipError> {
    Ok(RingDocument::found(
        format!("{:032x}", seams.random.next_u128()),
        seams.random.next_u64(),
        founding.partitions,
        founding.tokens,
        founding.replicas,
        members,
        change(seams, by, "found the cluster"),
        nonce(seams),
    )?)
}

/// Makes sure that `me` is in the ring at its address, zone and weight, and returns the ring document.
/// The first node founds the cluster. While fewer members than replicas are there, no data is, and a node
/// becomes active at once; later it joins, and counts once it holds its range.
///
/// # Errors
/// [`MembershipError`]; [`MembershipError::NotAMember`] if the node is unknown and `may_join` is false.
pub async fn ensure_member(
    bucket: &dyn Bucket,
    seams: &Seams,
    me: Member,
    founding: Founding,
    may_join: bool,
) -> Result<RingDocument, MembershipError> {
    for _ in 0..MAX_TRIES {
        let by = me.id.as_str();
        let wanted = match read_newest(bucket, 0).await? {
            None if !may_join => return Err(MembershipError::NotAMember(me.id)),
            None => found(seams, founding, vec![Member { state: MemberState::Active, ..me.clone() }], by)?,
            Some(newest) => match newest.member(&me.id).cloned() {
                Some(known) if known.address == me.address => return Ok(newest),
                Some(known) => {
                    let what = format!("{} moves from {} to {}", me.id, known.address, me.address);
                    let moved = Member { address: me.address.clone(), ..known };
                    newest.with_member(moved, change(seams, by, &what), nonce(seams))?
                }
                None if !may_join => return Err(MembershipError::NotAMember(me.id)),
                None => {
                    let state = if newest.is_forming() { MemberState::Active } else { MemberState::Joining };
                    let what = change(seams, by, &format!("{} joins", me.id));
                    newest.with_member(Member { state, ..me.clone() }, what, nonce(seams))?
                }
            },
        };
        if create(bucket, &wanted).await? {
            tracing::info!(version = wanted.version, change = %wanted.changed.what, "new ring version");
            return Ok(wanted);
        }
    }
    Err(MembershipError::Contended)
}

/// Says that `node` holds all that the pending change of ring `version` gives it.
///
/// # Errors
/// [`MembershipError`].
pub async fn mark_ready(
    bucket: &dyn Bucket,
    seams: &Seams,
    version: u64,
    node: &NodeId,
) -> Result<(), MembershipError> {
    let body = format!("{}\n", nonce(seams));
    bucket.create(&ready_object(version, node), body.into()).await?;
    Ok(())
}

fn ready_object(version: u64, node: &NodeId) -> String {
    format!("{READY_PREFIX}{version:010}/{node}")
}

/// Takes the pending change of `document` a step further if every member of the next ring has marked itself ready
/// for this version: first the homes to come are read from, and once every member knows that, the change is
/// complete. Anybody may call it; each step is made once.
///
/// # Errors
/// [`MembershipError`].
pub async fn advance_change(
    bucket: &dyn Bucket,
    seams: &Seams,
    document: &RingDocument,
    by: &NodeId,
) -> Result<bool, MembershipError> {
    let prefix = format!("{READY_PREFIX}{:010}/", document.version);
    let ready = cartwheel_bucket::list_all(bucket, &prefix).await?;
    let is_ready = |id: &NodeId| ready.iter().any(|o| o.key == ready_object(document.version, id));
    let all = document.members.iter().filter(|m| m.state != MemberState::Leaving).all(|m| is_ready(&m.id));
    if !all {
        return Ok(false);
    }
    let changed = |what| change(seams, by.as_str(), what);
    let next = if document.copied {
        document.settled(changed("the change is complete"), nonce(seams))?
    } else {
        document.with_copied(changed("the homes to come hold their partitions"), nonce(seams))?
    };
    create(bucket, &next).await
}

fn change(seams: &Seams, by: &str, what: &str) -> Change {
    Change { at_ms: seams.clock.now_ms(), by: by.to_owned(), what: what.to_owned() }
}

fn nonce(seams: &Seams) -> String {
    format!("{:016x}", seams.random.next_u64())
}

/// Follows the ring documents. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Follower {
    view: watch::Receiver<Option<Arc<View>>>,
    /// Rung after each new view. Who waits is woken in the order of arrival; `watch` itself wakes its
    /// receivers in a random one, and then no simulation repeats.
    changed: Arc<Notify>,
    nudge: Arc<Notify>,
}

impl Follower {
    /// Starts following: looks for a newer ring every `interval` (a little more or less at random), and at
    /// once when nudged. It ends when every clone is dropped.
    #[must_use]
    pub fn start(bucket: SharedBucket, seams: Seams, interval: Duration) -> Self {
        let (sender, view) = watch::channel(None);
        let (changed, nudge) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        tokio::spawn(follow(bucket, seams, interval, sender, Arc::clone(&changed), Arc::clone(&nudge)));
        Self { view, changed, nudge }
    }

    /// The newest view; `None` before the first ring document was read.
    #[must_use]
    pub fn view(&self) -> Option<Arc<View>> {
        self.view.borrow().clone()
    }

    /// Looks for a newer ring now.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Waits for a view of at least `version`, nudging once. The caller bounds the time.
    pub async fn at_least(&self, version: u64) -> Option<Arc<View>> {
        let enough = |view: &View| view.version() >= version;
        if !self.view().is_some_and(|view| enough(&view)) {
            self.nudge();
        }
        self.wait_for(enough).await
    }

    /// Waits for a view newer than `version`.
    pub async fn newer_than(&self, version: u64) -> Option<Arc<View>> {
        self.wait_for(|view| view.version() > version).await
    }

    async fn wait_for(&self, enough: impl Fn(&View) -> bool) -> Option<Arc<View>> {
        loop {
            // Made before the look, so that no change in between is missed.
            let changed = self.changed.notified();
            if let Some(view) = self.view().filter(|view| enough(view)) {
                return Some(view);
            }
            if self.view.has_changed().is_err() {
                return None;
            }
            changed.await;
        }
    }
}

async fn follow(
    bucket: SharedBucket,
    seams: Seams,
    interval: Duration,
    sender: watch::Sender<Option<Arc<View>>>,
    changed: Arc<Notify>,
    nudge: Arc<Notify>,
) {
    loop {
        let known = sender.borrow().as_ref().map_or(0, |v| v.version());
        match read_newest(&*bucket, known).await {
            Ok(Some(document)) if document.version > known => {
                sender.send_replace(Some(Arc::new(View::new(document))));
                changed.notify_waiters();
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "can't read the ring document; keeping the one known"),
        }
        let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        let pause = Duration::from_micros(micros / 2 + seams.random.below(micros));
        tokio::select! {
            biased;
            () = sender.closed() => return,
            () = nudge.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cartwheel_bucket::MemoryBucket;

    use super::*;

    fn member(id: &str, port: u16) -> Member {
        Member {
            id: NodeId::new(id).unwrap(),
            address: format!("127.0.0.1:{port}"),
            zone: "z1".into(),
            weight: 1,
            state: MemberState::Joining,
        }
    }

    async fn ensure(bucket: &MemoryBucket, id: &str, port: u16) -> RingDocument {
        ensure_member(bucket, &Seams::real(), member(id, port), Founding::default(), true).await.unwrap()
    }

    #[tokio::test]
    async fn the_first_n_found_the_cluster_and_later_ones_join() {
        let bucket = MemoryBucket::new();
        assert!(read_newest(&bucket, 0).await.unwrap().is_none());
        for (at, id) in ["a", "b", "c", "d"].iter().enumerate() {
            let document = ensure(&bucket, id, 7000).await;
            assert_eq!(document.version, at as u64 + 1);
            assert_eq!(document.is_forming(), at < 2);
            let state = document.member(&NodeId::new(id).unwrap()).unwrap().state;
            assert_eq!(state == MemberState::Active, at < 3);
        }
        assert_eq!(ensure(&bucket, "a", 7000).await.version, 4, "a known member changes nothing");
        let moved = ensure(&bucket, "a", 7001).await;
        assert_eq!(moved.version, 5);
        assert_eq!(moved.member(&NodeId::new("a").unwrap()).unwrap().address, "127.0.0.1:7001");
        assert!(read_newest(&bucket, 5).await.unwrap().is_none());
        assert_eq!(read_newest(&bucket, 3).await.unwrap().unwrap().version, 5);
    }

    #[tokio::test]
    async fn never_joining_is_refused_by_name() {
        let bucket = MemoryBucket::new();
        let refused =
            ensure_member(&bucket, &Seams::real(), member("a", 1), Founding::default(), false).await;
        assert!(matches!(refused, Err(MembershipError::NotAMember(id)) if id.as_str() == "a"));
    }

    #[tokio::test]
    async fn nodes_that_start_together_all_get_in() {
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        let mut starting = Vec::new();
        for i in 0..8_u16 {
            let bucket = Arc::clone(&bucket);
            starting.push(tokio::spawn(async move {
                let me = member(&format!("n{i}"), 7000 + i);
                ensure_member(&*bucket, &Seams::real(), me, Founding::default(), true).await.unwrap();
            }));
        }
        for start in starting {
            start.await.unwrap();
        }
        let document = read_newest(&*bucket, 0).await.unwrap().unwrap();
        assert_eq!((document.version, document.members.len()), (8, 8));
    }

    #[tokio::test]
    async fn a_change_completes_in_two_steps_that_every_member_is_ready_for() {
        let bucket = MemoryBucket::new();
        let seams = Seams::real();
        let mut document = ensure(&bucket, "a", 7000).await;
        for id in ["b", "c", "d"] {
            document = ensure(&bucket, id, 7000).await;
        }
        let by = NodeId::new("a").unwrap();
        for copied in [false, true] {
            assert_eq!((document.copied, document.has_pending_change()), (copied, true));
            for id in ["a", "b", "c"] {
                mark_ready(&bucket, &seams, document.version, &NodeId::new(id).unwrap()).await.unwrap();
                assert!(!advance_change(&bucket, &seams, &document, &by).await.unwrap());
            }
            mark_ready(&bucket, &seams, document.version, &NodeId::new("d").unwrap()).await.unwrap();
            assert!(advance_change(&bucket, &seams, &document, &by).await.unwrap());
            assert!(!advance_change(&bucket, &seams, &document, &by).await.unwrap(), "only once");
            document = read_newest(&bucket, 0).await.unwrap().unwrap();
        }
        assert!(!document.has_pending_change() && !document.copied);
    }

    /// What another change interrupts is not read from: the homes to come may be others now.
    #[tokio::test]
    async fn a_further_change_begins_the_copy_anew() {
        let bucket = MemoryBucket::new();
        let mut document = ensure(&bucket, "a", 7000).await;
        for id in ["b", "c", "d"] {
            document = ensure(&bucket, id, 7000).await;
        }
        let copied = document.with_copied(document.changed.clone(), "n".into()).unwrap();
        assert!(create(&bucket, &copied).await.unwrap());
        assert!(!ensure(&bucket, "e", 7000).await.copied);
    }

    #[tokio::test(start_paused = true)]
    async fn followers_see_new_versions() {
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        let follower = Follower::start(Arc::clone(&bucket), Seams::real(), Duration::from_secs(5));
        let found = found(&Seams::real(), Founding::default(), vec![member("a", 1)], "test").unwrap();
        create(&*bucket, &found).await.unwrap();
        assert_eq!(follower.at_least(1).await.unwrap().version(), 1);
    }
}
