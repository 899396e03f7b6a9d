//! The truth about who belongs: ring documents in the bucket. Each version is created once, by a conditional
//! put; everybody follows the newest.

mod change;

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};

use cartwheel_bucket::{Bucket, BucketError, Created, SharedBucket};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{
    Change, DEFAULT_PARTITIONS, DEFAULT_REPLICAS, DEFAULT_TOKENS, MAX_CELLS, MAX_MEMBERS, MAX_PARTITIONS,
    Member, MemberState, Ring, RingDocument, RingError,
};

use crate::seams::Seams;
pub use change::{ApplyError, advance_change, apply, mark_ready, ready};

/// What all ring documents' names start with.
const RING_PREFIX: &str = "ring/";
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
    /// An operator declared the node dead, and the change that takes it out is not done.
    #[error(
        "{0} was declared dead (forget) and is being taken out of the ring; use another --id, or cancel the change"
    )]
    Forgotten(NodeId),
    /// A change is about to be settled, and nobody may join before that.
    #[error("a ring change is being settled; a node can join once that is done")]
    Settling,
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
    bytes: OnceLock<Bytes>,
}

impl View {
    /// Works out the placements.
    #[must_use]
    pub fn new(document: RingDocument) -> Self {
        let (current, next) = (Ring::current(&document), Ring::next(&document));
        Self { document, current, next, bytes: OnceLock::new() }
    }

    /// The document as it is in the bucket.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.bytes.get_or_init(|| self.document.to_json().into()).clone()
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
        Self { partitions: DEFAULT_PARTITIONS, tokens: DEFAULT_TOKENS, replicas: DEFAULT_REPLICAS }
    }
}

/// Partitions for each storage node that is expected: loads are then even to about 1 %, and one more node still finds
/// whole partitions to take over.
const PARTITIONS_PER_NODE: u64 = 32;

impl Founding {
    /// Q for a cluster that is expected to have so many storage nodes: the power of two that gives each at least 32
    /// partitions, and 256 at least. Less where the document's limits would not let the cluster grow to twice that.
    #[must_use]
    pub fn partitions_for(nodes: u32) -> u32 {
        let most_nodes = u64::from(nodes).saturating_mul(2).clamp(1, MAX_MEMBERS as u64);
        // The largest power of two that keeps within the limit.
        let fits = 1_u64 << (MAX_CELLS / most_nodes).max(1).ilog2();
        let wanted = (PARTITIONS_PER_NODE * u64::from(nodes)).next_power_of_two();
        let partitions = wanted.max(DEFAULT_PARTITIONS.into()).min(fits).min(MAX_PARTITIONS.into());
        u32::try_from(partitions).unwrap_or(MAX_PARTITIONS)
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

/// Makes sure that `me` is in the ring, at its address, and returns the ring document. A known member's zone and weight
/// are the document's: operators change them there.
/// The first node founds the cluster. While fewer members than replicas are there, no data is, and a node
/// becomes active at once; later it joins, and counts once it holds its range.
///
/// # Errors
/// [`MembershipError`]; [`MembershipError::NotAMember`] if the node is unknown and `may_join` is false,
/// [`MembershipError::Forgotten`] if it was declared dead, [`MembershipError::Settling`] if a node would join while a
/// change is about to be settled: it can a moment later.
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
                Some(known) if known.dead => return Err(MembershipError::Forgotten(me.id)),
                Some(known) if known.address == me.address => return Ok(newest),
                Some(known) => moved(seams, &newest, &known, &me.address)?,
                None if !may_join => return Err(MembershipError::NotAMember(me.id)),
                // The homes to come are read from: they may not become others any more.
                None if newest.copied => return Err(MembershipError::Settling),
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

/// Says once more where a member is, if the ring says otherwise: another process of its name may have said so before it
/// died. Only for the process that has the name now. Gives up when others write documents at the same time.
///
/// # Errors
/// [`MembershipError`].
pub async fn correct_address(
    bucket: &dyn Bucket,
    seams: &Seams,
    id: &NodeId,
    address: &str,
) -> Result<(), MembershipError> {
    let Some(newest) = read_newest(bucket, 0).await? else { return Ok(()) };
    let Some(known) = newest.member(id).filter(|known| known.address != address && !known.dead) else {
        return Ok(());
    };
    let wanted = moved(seams, &newest, known, address)?;
    if create(bucket, &wanted).await? {
        tracing::warn!(version = wanted.version, change = %wanted.changed.what, "new ring version");
    }
    Ok(())
}

/// The document in which a member is elsewhere.
fn moved(
    seams: &Seams,
    newest: &RingDocument,
    known: &Member,
    address: &str,
) -> Result<RingDocument, MembershipError> {
    let what = format!("{} moves from {} to {address}", known.id, known.address);
    Ok(newest.with_address(&known.id, address, change(seams, known.id.as_str(), &what), nonce(seams))?)
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
    heard: mpsc::Sender<RingDocument>,
}

impl Follower {
    /// Starts following: looks for a newer ring every `interval` (a little more or less at random), and at
    /// once when nudged; takes over what is offered. It ends when every clone is dropped.
    #[must_use]
    pub fn start(bucket: SharedBucket, seams: Seams, interval: Duration) -> Self {
        let (sender, view) = watch::channel(None);
        let (changed, nudge) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        // Who offers while one waits offers again, if that one was not enough.
        let (heard, offers) = mpsc::channel(1);
        let following = Following {
            bucket,
            seams,
            interval,
            sender,
            changed: Arc::clone(&changed),
            nudge: Arc::clone(&nudge),
        };
        tokio::spawn(following.run(offers));
        Self { view, changed, nudge, heard }
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

    /// Takes over a document that another process of the cluster has read from the bucket, if it is newer than the one
    /// known and of the same cluster.
    pub fn offer(&self, document: RingDocument) {
        let _ = self.heard.try_send(document);
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

/// How often the document that is known is looked at in the bucket.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Puts a document that is damaged right: each version is one document for ever, and a process that starts needs it.
/// One that is gone was taken away by somebody.
async fn restore(bucket: &dyn Bucket, known: &RingDocument) -> Result<(), BucketError> {
    let object = RingDocument::object_name(known.version);
    match bucket.get(&object).await {
        Ok(bytes) => match RingDocument::parse(&bytes) {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::error!(%object, %error, "the ring document is damaged; putting it again");
                bucket.put(&object, known.to_json().into()).await
            }
        },
        Err(BucketError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The task that follows; the only one that writes the view.
struct Following {
    bucket: SharedBucket,
    seams: Seams,
    interval: Duration,
    sender: watch::Sender<Option<Arc<View>>>,
    changed: Arc<Notify>,
    nudge: Arc<Notify>,
}

impl Following {
    async fn run(self, mut offers: mpsc::Receiver<RingDocument>) {
        let mut looked = tokio::time::Instant::now();
        loop {
            {
                let mut look = pin!(self.look(&mut looked));
                loop {
                    tokio::select! {
                        biased;
                        Some(document) = offers.recv() => self.take(document),
                        () = &mut look => break,
                    }
                }
            }
            let micros = u64::try_from(self.interval.as_micros()).unwrap_or(u64::MAX);
            let next = tokio::time::Instant::now()
                + Duration::from_micros(micros / 2 + self.seams.random.below(micros));
            loop {
                tokio::select! {
                    biased;
                    () = self.sender.closed() => return,
                    Some(document) = offers.recv() => self.take(document),
                    () = self.nudge.notified() => break,
                    () = tokio::time::sleep_until(next) => break,
                }
            }
        }
    }

    /// Looks into the bucket.
    async fn look(&self, looked: &mut tokio::time::Instant) {
        let view = self.sender.borrow().clone();
        if let Some(view) = view.filter(|_| looked.elapsed() >= LOOK_AGAIN) {
            *looked = tokio::time::Instant::now();
            if let Err(error) = restore(&*self.bucket, &view.document).await {
                tracing::debug!(%error, "can't look whether the ring document is in order");
            }
        }
        let known = self.sender.borrow().as_ref().map_or(0, |v| v.version());
        match read_newest(&*self.bucket, known).await {
            Ok(Some(document)) => self.take(document),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "can't read the ring document; keeping the one known"),
        }
    }

    fn take(&self, document: RingDocument) {
        let known = self.sender.borrow().clone();
        if let Some(known) = known {
            if document.version <= known.version() {
                return;
            }
            if document.cluster != known.document.cluster {
                tracing::error!(
                    version = document.version,
                    "a ring document is of another cluster; passing it over"
                );
                return;
            }
        }
        self.sender.send_replace(Some(Arc::new(View::new(document))));
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cartwheel_bucket::{CERTAIN, Faults, FaultyBucket, MemoryBucket, OperationFaults};

    use super::*;

    fn member(id: &str, port: u16) -> Member {
        Member {
            id: NodeId::new(id).unwrap(),
            address: format!("127.0.0.1:{port}"),
            zone: "z1".into(),
            weight: 1,
            state: MemberState::Joining,
            becomes: None,
            dead: false,
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

    /// A process that died said that it is elsewhere, and its word came late.
    #[tokio::test]
    async fn who_has_the_name_says_where_it_is() {
        let bucket = MemoryBucket::new();
        let (seams, a) = (Seams::real(), NodeId::new("a").unwrap());
        ensure(&bucket, "a", 7001).await;
        correct_address(&bucket, &seams, &a, "127.0.0.1:7001").await.unwrap();
        assert_eq!(read_newest(&bucket, 0).await.unwrap().unwrap().version, 1, "nothing to be corrected");
        ensure(&bucket, "a", 7009).await;
        correct_address(&bucket, &seams, &a, "127.0.0.1:7001").await.unwrap();
        let newest = read_newest(&bucket, 0).await.unwrap().unwrap();
        assert_eq!((newest.version, &*newest.member(&a).unwrap().address), (3, "127.0.0.1:7001"));
        let stranger = NodeId::new("b").unwrap();
        correct_address(&bucket, &seams, &stranger, "127.0.0.1:7002").await.unwrap();
        assert_eq!(read_newest(&bucket, 0).await.unwrap().unwrap().version, 3, "who is no member is nowhere");
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

    #[test]
    fn partitions_follow_the_expected_size() {
        let expected = [(1, 256), (8, 256), (9, 512), (16, 512), (30, 1024), (100, 4096), (250, 8192)];
        // Beyond that the limit on partitions times members decides.
        let bounded = [(1000, 4096), (1024, 4096), (u32::MAX, 4096)];
        for (nodes, partitions) in expected.into_iter().chain(bounded) {
            assert_eq!(Founding::partitions_for(nodes), partitions, "{nodes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn followers_see_new_versions() {
        let bucket: SharedBucket = Arc::new(MemoryBucket::new());
        let follower = Follower::start(Arc::clone(&bucket), Seams::real(), Duration::from_secs(5));
        let found = found(&Seams::real(), Founding::default(), vec![member("a", 1)], "test").unwrap();
        create(&*bucket, &found).await.unwrap();
        assert_eq!(follower.at_least(1).await.unwrap().version(), 1);
    }

    /// Lets so much of the paused time pass.
    async fn pass(time: Duration) {
        tokio::time::timeout(time, std::future::pending::<()>()).await.unwrap_err();
    }

    /// Offers it, and leaves time for it to be taken over.
    async fn offered(follower: &Follower, document: &RingDocument) -> RingDocument {
        follower.offer(document.clone());
        pass(Duration::from_millis(1)).await;
        follower.view().unwrap().document.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_offered_is_taken_over_if_it_is_newer_and_breaks_off_no_look() {
        let bucket = Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), 1));
        let first = found(&Seams::real(), Founding::default(), vec![member("a", 1)], "test").unwrap();
        create(&*bucket, &first).await.unwrap();
        let shared: SharedBucket = Arc::<FaultyBucket>::clone(&bucket);
        // It looks when it is nudged, and not by itself.
        let follower = Follower::start(shared, Seams::real(), Duration::from_secs(1 << 20));
        follower.at_least(1).await.unwrap();
        let with = |known: &RingDocument, id, port| {
            known.with_member(member(id, port), known.changed.clone(), "n".to_owned()).unwrap()
        };
        let second = with(&first, "b", 2);
        let third = with(&second, "c", 3);
        for document in [&second, &third] {
            create(&*bucket, document).await.unwrap();
        }
        let slow = OperationFaults { slow: CERTAIN, ..OperationFaults::default() };
        let slow_by = Duration::from_secs(20);
        bucket.set(Faults { get: slow, slow_by, ..Faults::default() });
        follower.nudge();
        pass(Duration::from_secs(1)).await;
        assert_eq!(offered(&follower, &second).await, second, "though the bucket has not answered");
        assert_eq!(offered(&follower, &first).await, second);
        let stranger = RingDocument { cluster: "other".to_owned(), ..third.clone() };
        assert_eq!(offered(&follower, &stranger).await, second);
        let looked = tokio::time::timeout(slow_by * 4, follower.newer_than(2)).await;
        assert_eq!(looked.unwrap().unwrap().document, third, "the look went on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_document_that_is_damaged_is_put_again_by_who_knows_it() {
        let bucket = Arc::new(MemoryBucket::new());
        let document = ensure(&bucket, "a", 1).await;
        let shared: SharedBucket = Arc::<MemoryBucket>::clone(&bucket);
        let follower = Follower::start(shared, Seams::real(), Duration::from_secs(1));
        follower.at_least(1).await.unwrap();
        let object = RingDocument::object_name(1);
        let before = bucket.get(&object).await.unwrap();
        bucket.put(&object, "{".into()).await.unwrap();
        assert!(read_newest(&*bucket, 0).await.is_err());
        pass(LOOK_AGAIN * 2).await;
        assert_eq!(bucket.get(&object).await.unwrap(), before);
        assert_eq!(read_newest(&*bucket, 0).await.unwrap(), Some(document));
        // Who took a cluster away does not find it again.
        bucket.delete(&object).await.unwrap();
        pass(LOOK_AGAIN * 2).await;
        assert!(bucket.get(&object).await.is_err());
    }
}
