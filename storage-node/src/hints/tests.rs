//! Hints by themselves: kept, uploaded, found again, handed over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use cartwheel_bucket::{
    Bucket, CERTAIN, Faults, FaultyBucket, MemoryBucket, OperationFaults, SharedBucket, list_all,
};
use cartwheel_core::clock::Clock;
use tokio::sync::{oneshot, watch};

use super::*;
use crate::disk::MemoryDisk;
use crate::epoch::Leased;
use crate::segments::hints::{hint_object, hint_prefix, holder_label};
use crate::segments::records_of;
use crate::testing::{SEED, key, mint_request, namespace, record_key, values, version};

const ROOMY: HintsConfig = HintsConfig { max_bytes: 1 << 20, unstored_bytes: 1 << 20, memory_bytes: 1 << 20 };
/// Whatever is in the bucket leaves memory.
const FORGETFUL: HintsConfig = HintsConfig { max_bytes: 1 << 20, unstored_bytes: 1 << 20, memory_bytes: 0 };

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn home() -> NodeId {
    id("node-home")
}

/// A write of somebody else: the nth of this key.
fn record(name: &str, n: u64) -> Record {
    let dot = Dot { actor: Actor::parse("node-m.1").unwrap(), n };
    let version = version(n.into(), &Clock::new(), format!("{name} {n}").as_bytes());
    Record {
        namespace: namespace(),
        key: key(name),
        container: Container::delta(&Clock::new(), dot, version),
    }
}

/// A machine that keeps hints, and the process that runs on it.
struct Holder {
    bucket: Arc<FaultyBucket>,
    disk: Option<Arc<dyn Disk>>,
    hints: Arc<Hints>,
}

impl Holder {
    async fn start(config: HintsConfig) -> Self {
        let bucket = Arc::new(FaultyBucket::new(Arc::new(MemoryBucket::new()), 1));
        Self::on(bucket, Some(Arc::new(MemoryDisk::default())), config).await
    }

    /// A new process, as `start` makes it.
    async fn on(bucket: Arc<FaultyBucket>, disk: Option<Arc<dyn Disk>>, config: HintsConfig) -> Self {
        let (me, shared): (_, SharedBucket) = (id("node-f"), bucket.clone());
        let leased = Incarnation::lease(&me, &*bucket, &Seams::real(), disk.as_deref()).await.unwrap();
        let Leased { me: incarnation, newest, .. } = leased;
        let found = find(&me, SEED, disk.as_deref(), &shared).await.unwrap();
        let hints = Hints::new(config, (incarnation, newest), shared, disk.clone(), Seams::real(), found);
        Self { bucket, disk, hints: Arc::new(hints) }
    }

    /// The process is killed; the next one runs on the same machine.
    async fn again(self) -> Self {
        Self::on(self.bucket, self.disk, self.hints.config).await
    }

    fn keep(&self, name: &str, n: u64, durability: Durability) -> oneshot::Receiver<Durability> {
        self.keep_for(&home(), &record(name, n), durability).unwrap()
    }

    fn keep_for(
        &self,
        home: &NodeId,
        record: &Record,
        durability: Durability,
    ) -> Result<oneshot::Receiver<Durability>, Refusal> {
        let (done, reached) = word();
        let hash = KeyHash::of(SEED, &record.namespace, &record.key);
        if let Presence::Present(seen) = self.hints.presence(home) {
            self.hints.believe_away(home, seen);
        }
        self.hints.keep(home, hash, record, false, durability, done).map(|kept| {
            assert!(kept, "it is believed away");
            reached
        })
    }

    async fn mint(&self, home: &NodeId, name: &str, request: u128) -> HintMint {
        let known = self.hints.read_stored(&record_key(name)).await.unwrap();
        self.mint_knowing(home, name, request, known)
    }

    fn mint_knowing(&self, home: &NodeId, name: &str, request: u128, known: Container<Version>) -> HintMint {
        let version = version(request, &Clock::new(), format!("{name} {request}").as_bytes());
        let request = mint_request(name, version, Durability::Memory);
        self.hints.mint(home, &request, known, word().0).unwrap()
    }

    async fn new_dot(&self, home: &NodeId, name: &str, request: u128) -> Dot {
        match self.mint(home, name, request).await {
            HintMint::Made(dot, delta) => {
                assert!(delta.container.seen().contains(&dot));
                dot
            }
            HintMint::Repeated(dot, _) => panic!("{dot} is no new write"),
        }
    }

    /// The values kept of a key, in order.
    async fn values(&self, name: &str) -> Vec<String> {
        values(&self.hints.read(&record_key(name)).await.unwrap())
    }

    /// `home` comes back and takes everything.
    async fn hand_over(&self, home: &NodeId) {
        let Handover { generation, .. } = self.hints.come_back(home);
        self.hints.took(home, generation).await.unwrap();
    }

    /// All pages for `home`, as values in order.
    fn pages(&self, generation: u64, budget: usize) -> Vec<String> {
        let mut after = None;
        let mut all = Vec::new();
        loop {
            let (page, more) = self.hints.page(&home(), generation, after.as_ref(), budget).unwrap();
            for bytes in &page {
                let record = Record::decode(bytes).unwrap();
                let next = key_of(&record);
                assert!(after.as_ref().is_none_or(|after| *after < next), "pages ascend");
                all.extend(values(&record.container));
                after = Some(next);
            }
            if !more {
                return all;
            }
            assert!(!page.is_empty(), "a page that has more after it holds something");
        }
    }

    /// The values in the bucket for `home`.
    async fn in_bucket(&self, home: &NodeId) -> Vec<String> {
        let mut all = Vec::new();
        for object in list_all(&*self.bucket, &hint_prefix(home)).await.unwrap() {
            for bytes in records_of(&self.bucket.get(&object.key).await.unwrap()).unwrap() {
                all.extend(values(&Record::decode(&bytes).unwrap().container));
            }
        }
        all.sort();
        all
    }

    /// The hints in the files of the log.
    async fn logged(&self) -> usize {
        let disk = self.disk.clone().unwrap();
        let mut entries = 0;
        for name in disk.list().await.unwrap() {
            if log::file_number(log::HINTS, &name).is_some() {
                entries += log::replay(&disk.read(&name).await.unwrap()).records.len();
            }
        }
        entries
    }

    fn fail_puts(&self) {
        let put = OperationFaults { refuse: CERTAIN, ..OperationFaults::default() };
        self.bucket.set(Faults { put, ..Faults::default() });
    }
}

/// Lets time pass until something is so.
async fn until(so: impl AsyncFn() -> bool) {
    for _ in 0..1_000 {
        if so().await {
            return;
        }
        tokio::time::advance(Duration::from_millis(50)).await;
        tokio::task::yield_now().await;
    }
    panic!("it never came to that");
}

fn key_of(record: &Record) -> RecordKey {
    RecordKey::new(KeyHash::of(SEED, &record.namespace, &record.key), &record.namespace, &record.key)
}

fn word() -> (Done, oneshot::Receiver<Durability>) {
    let (sender, reached) = oneshot::channel();
    let done = Box::new(move |reached| {
        // Not every test waits for it.
        let _ = sender.send(reached);
    });
    (done, reached)
}

#[tokio::test]
async fn a_hint_is_kept_until_it_is_taken_and_is_gone_then() {
    let holder = Holder::start(ROOMY).await;
    assert_eq!(holder.keep("k", 1, Durability::Disk).await, Ok(Durability::Disk));
    assert_eq!(holder.logged().await, 1);
    let held = holder.hints.held();
    assert_eq!((held.len(), &held[0].target, held[0].keys), (1, &home(), 1));
    assert_eq!(holder.hints.to_offer(), [(home(), true)]);
    let Handover { generation, keys, .. } = holder.hints.come_back(&home());
    assert_eq!((keys, holder.pages(generation, 100)), (1, vec!["k 1".to_owned()]));
    assert_eq!(holder.hints.held().len(), 1, "it was asked for, but not taken yet");

    holder.hints.took(&home(), generation).await.unwrap();
    assert!(holder.hints.held().is_empty() && holder.hints.is_idle());
    assert!(holder.pages(generation, 100).is_empty() && holder.values("k").await.is_empty());
    assert_eq!(holder.logged().await, 0);
    assert!(holder.hints.upload_all().await && holder.in_bucket(&home()).await.is_empty());
    assert!(holder.again().await.hints.is_idle());
}

/// A home that is no member any more comes back for nothing.
#[tokio::test(start_paused = true)]
async fn hints_that_are_taken_while_they_are_put_leave_no_object() {
    let holder = Holder::start(ROOMY).await;
    assert_eq!(holder.keep("k", 1, Durability::Disk).await, Ok(Durability::Disk));
    let put = OperationFaults { slow: CERTAIN, ..OperationFaults::default() };
    holder.bucket.set(Faults { put, slow_by: Duration::from_secs(1), ..Faults::default() });
    let taking = async {
        let Handover { generation, .. } = holder.hints.come_back(&home());
        holder.hints.took(&home(), generation).await.unwrap();
        assert!(holder.in_bucket(&home()).await.is_empty(), "the object is on its way still");
    };
    let (stored, ()) = tokio::join!(biased; holder.hints.upload_all(), taking);
    assert!(stored);
    assert!(holder.in_bucket(&home()).await.is_empty());
}

#[tokio::test]
async fn a_hint_is_in_the_bucket_after_one_upload_and_not_acknowledged_there_before() {
    let holder = Holder::start(ROOMY).await;
    let mut reached = holder.keep("k", 1, Durability::Bucket);
    holder.keep_for(&id("node-other"), &record("k", 2), Durability::Memory).unwrap();
    assert!(reached.try_recv().is_err());
    assert!(holder.hints.upload_all().await);
    assert_eq!(reached.try_recv(), Ok(Durability::Bucket));
    assert_eq!(holder.in_bucket(&home()).await, ["k 1"], "and nobody else's");
    assert_eq!(holder.logged().await, 0, "what is in the bucket needs no log");
    assert_eq!(holder.values("k").await, ["k 1", "k 2"], "it can still be read from memory");
    assert!(holder.hints.upload_all().await);
    let objects = list_all(&*holder.bucket, &hint_prefix(&home())).await.unwrap();
    assert_eq!(objects.len(), 1, "it is not uploaded twice");
}

#[tokio::test]
async fn a_fresh_process_finds_its_hints_in_the_log_and_in_the_bucket() {
    let holder = Holder::start(ROOMY).await;
    holder.keep("stored", 1, Durability::Disk).await.unwrap();
    assert!(holder.hints.upload_all().await);
    holder.keep("logged", 2, Durability::Disk).await.unwrap();
    let holder = holder.again().await;
    assert_eq!(
        (holder.values("stored").await, holder.values("logged").await),
        (vec!["stored 1".to_owned()], vec!["logged 2".to_owned()])
    );
    assert_eq!(holder.hints.to_offer(), [(home(), true)], "the home may lack them");
    let Handover { generation, keys, .. } = holder.hints.come_back(&home());
    assert_eq!(keys, 2, "a home that is told of none does not say when it has taken them");
    assert_eq!(holder.pages(generation, 100), ["logged 2"], "the home finds the other in the bucket");

    // The disk is lost. What others keep is not this node's to hand over.
    let bucket = holder.bucket.clone();
    let theirs = hint_object(&id("node-other"), &holder_label(&id("gw-1"), 1, "00000000000000ab"), 1);
    bucket.put(&theirs, Bytes::from_static(b"not to be read")).await.unwrap();
    let holder = Holder::on(bucket, None, ROOMY).await;
    assert_eq!(holder.values("stored").await, ["stored 1"]);
    assert!(holder.values("logged").await.is_empty());
    holder.hand_over(&home()).await;
    assert!(holder.hints.is_idle());
}

/// Should its disk be lost next, the hint is not.
#[tokio::test(start_paused = true)]
async fn what_the_log_brought_back_is_uploaded_though_nothing_new_comes_in() {
    let holder = Holder::start(ROOMY).await;
    holder.keep("k", 1, Durability::Disk).await.unwrap();
    let holder = holder.again().await;
    let (stop, stopped) = watch::channel(false);
    let uploading = tokio::spawn(Arc::clone(&holder.hints).upload(stopped));
    until(async || !holder.in_bucket(&home()).await.is_empty()).await;
    stop.send(true).unwrap();
    uploading.await.unwrap();
}

#[tokio::test]
async fn what_came_in_after_the_home_came_back_is_not_dropped_with_what_came_before() {
    let holder = Holder::start(ROOMY).await;
    holder.keep("k", 1, Durability::Memory);
    assert!(holder.hints.upload_all().await);
    holder.keep("k", 2, Durability::Memory);
    let Handover { generation, .. } = holder.hints.come_back(&home());
    holder.keep("k", 3, Durability::Memory);
    assert_eq!(holder.pages(generation, 100), ["k 1", "k 2"], "the bucket may be out of the home's reach");
    assert!(holder.hints.upload_all().await);
    holder.hints.took(&home(), generation).await.unwrap();
    assert_eq!(holder.values("k").await, ["k 3"]);
    assert_eq!(holder.hints.to_offer(), [(home(), true)], "the home may lack it");
    holder.hand_over(&home()).await;
    assert!(holder.hints.is_idle());
}

/// The generations of a process that is gone say nothing of what the next one keeps.
#[tokio::test]
async fn what_an_earlier_process_handed_over_is_not_dropped_by_the_next() {
    let holder = Holder::start(ROOMY).await;
    for _ in 0..3 {
        holder.hints.come_back(&home());
    }
    holder.keep("k", 1, Durability::Disk).await.unwrap();
    let Handover { generation, .. } = holder.hints.come_back(&home());
    let holder = holder.again().await;
    holder.keep("k", 2, Durability::Memory);
    holder.hints.took(&home(), generation).await.unwrap();
    assert_eq!(holder.values("k").await, ["k 1", "k 2"]);
    let refused = holder.hints.page(&home(), generation, None, 100);
    assert!(matches!(refused, Err(Refusal::Unable(_))), "an empty page would say that there is nothing");
}

/// P3: the fallback can't know any more which dots it has given to this key.
#[tokio::test]
async fn after_hints_were_taken_the_same_key_is_minted_under_another_epoch() {
    let holder = Holder::start(ROOMY).await;
    let first = holder.new_dot(&home(), "k", 1).await;
    holder.hand_over(&home()).await;
    assert!(holder.hints.is_idle());
    let second = holder.new_dot(&home(), "k", 2).await;
    assert_ne!(first, second);
    assert!(second.actor.epoch > first.actor.epoch);
    assert_eq!(holder.hints.newest_epoch(), second.actor.epoch);
    let third = holder.new_dot(&home(), "k", 3).await;
    assert_eq!((third.actor.epoch, third.n), (second.actor.epoch, 2), "no epoch for each write");
    // Whoever minted nothing needs no other epoch.
    holder.hand_over(&home()).await;
    let epoch = holder.hints.newest_epoch();
    holder.keep("k", 4, Durability::Memory);
    holder.hand_over(&home()).await;
    assert_eq!(holder.hints.newest_epoch(), epoch);
}

#[tokio::test]
async fn without_the_bucket_nothing_is_let_go_of() {
    let holder = Holder::start(ROOMY).await;
    let first = holder.new_dot(&home(), "k", 1).await;
    holder.bucket.set(Faults { unavailable: true, ..Faults::default() });
    let Handover { generation, .. } = holder.hints.come_back(&home());
    assert!(matches!(holder.hints.took(&home(), generation).await, Err(LeaseError::Bucket(_))));
    assert_eq!(holder.values("k").await, ["k 1"]);
    assert_ne!(holder.new_dot(&home(), "k", 2).await, first);
    holder.bucket.set(Faults::default());
    holder.hints.took(&home(), generation).await.unwrap();
    assert_eq!(holder.values("k").await, ["k 2"]);
}

/// A node that takes itself for another steps down for no reason.
#[tokio::test]
async fn an_epoch_whose_answer_was_lost_is_still_its_own() {
    let holder = Holder::start(ROOMY).await;
    holder.new_dot(&home(), "k", 1).await;
    let mute = OperationFaults { mute: CERTAIN, ..OperationFaults::default() };
    let refuse = OperationFaults { refuse: CERTAIN, ..OperationFaults::default() };
    holder.bucket.set(Faults { create: mute, get: refuse, ..Faults::default() });
    let Handover { generation, .. } = holder.hints.come_back(&home());
    assert!(matches!(holder.hints.took(&home(), generation).await, Err(LeaseError::Bucket(_))));
    holder.bucket.set(Faults::default());
    holder.hints.took(&home(), generation).await.unwrap();
}

/// P3, and no process takes itself for another.
#[tokio::test(start_paused = true)]
async fn homes_that_take_their_hints_together_do_not_get_in_each_others_way() {
    let holder = Holder::start(ROOMY).await;
    let first = holder.new_dot(&home(), "k", 1).await;
    let slow = OperationFaults { slow: CERTAIN, ..OperationFaults::default() };
    holder.bucket.set(Faults { create: slow, slow_by: Duration::from_secs(1), ..Faults::default() });
    let other = id("node-other");
    let Handover { generation, .. } = holder.hints.come_back(&other);
    let hints = Arc::clone(&holder.hints);
    let slowly = tokio::spawn(async move { hints.took(&other, generation).await });
    tokio::task::yield_now().await;
    holder.bucket.set(Faults::default());
    holder.hand_over(&home()).await;
    let second = holder.new_dot(&home(), "k", 2).await;
    assert!(second.actor.epoch > first.actor.epoch);
    slowly.await.unwrap().unwrap();
    holder.hand_over(&home()).await;
    assert_ne!(holder.new_dot(&home(), "k", 3).await, second);
}

#[tokio::test(start_paused = true)]
async fn a_failed_upload_is_tried_again_and_the_log_stays_until_it_worked() {
    let holder = Holder::start(ROOMY).await;
    holder.keep("k", 1, Durability::Disk).await.unwrap();
    holder.fail_puts();
    let (stop, stopped) = watch::channel(false);
    let uploading = tokio::spawn(Arc::clone(&holder.hints).upload(stopped));
    let injected = holder.bucket.injected();
    until(async || holder.bucket.injected() >= injected + 3).await;
    let reached = holder.keep("k", 2, Durability::Bucket);
    let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
    assert_eq!(reached, Ok(Ok(Durability::Memory)), "nobody waits for a bucket that does not answer");
    assert!(holder.in_bucket(&home()).await.is_empty());
    assert_eq!(holder.logged().await, 2);
    holder.bucket.set(Faults::default());
    until(async || holder.in_bucket(&home()).await.len() == 2).await;
    stop.send(true).unwrap();
    uploading.await.unwrap();
    assert_eq!(holder.logged().await, 0);
    assert_eq!(holder.in_bucket(&home()).await, ["k 1", "k 2"]);
}

#[tokio::test]
async fn what_is_left_at_the_end_of_a_process_is_uploaded() {
    let holder = Holder::start(ROOMY).await;
    let (stop, stopped) = watch::channel(false);
    stop.send(true).unwrap();
    holder.keep("k", 1, Durability::Memory);
    Arc::clone(&holder.hints).upload(stopped).await;
    assert_eq!(holder.in_bucket(&home()).await, ["k 1"]);
}

#[tokio::test]
async fn beyond_the_cap_hints_are_refused_and_counted() {
    let holder = Holder::start(HintsConfig { max_bytes: 300, ..ROOMY }).await;
    let mut kept = 0;
    while holder.keep_for(&home(), &record("k", kept + 1), Durability::Memory).is_ok() {
        kept += 1;
        assert!(kept < 100, "there is a cap");
    }
    let refused = holder.keep_for(&home(), &record("k", 99), Durability::Memory);
    assert!(matches!(refused, Err(Refusal::Overloaded)));
    let request = mint_request("k", version(1, &Clock::new(), b"v"), Durability::Memory);
    let minted = holder.hints.mint(&home(), &request, Container::default(), word().0);
    assert!(matches!(minted, Err(Refusal::Overloaded)));
    assert_eq!(holder.hints.refused(), 3);
    assert_eq!(holder.values("k").await.len(), usize::try_from(kept).unwrap());
    // In the bucket they take room all the same, also for the next process.
    assert!(holder.hints.upload_all().await);
    assert!(holder.keep_for(&home(), &record("k", 99), Durability::Memory).is_err());
    let holder = holder.again().await;
    assert!(holder.keep_for(&home(), &record("k", 99), Durability::Memory).is_err());
    holder.hand_over(&home()).await;
    assert!(holder.keep_for(&home(), &record("k", 99), Durability::Memory).is_ok());
}

/// Memory is bounded though the bucket takes nothing.
#[tokio::test]
async fn beyond_what_may_wait_for_the_bucket_hints_are_refused_until_it_has_taken_some() {
    let holder = Holder::start(HintsConfig { unstored_bytes: 300, ..ROOMY }).await;
    holder.fail_puts();
    for kept in 1.. {
        let name = format!("k{kept}");
        match holder.keep_for(&home(), &record(&name, kept), Durability::Disk) {
            Ok(reached) => assert_eq!(reached.await, Ok(Durability::Disk)),
            Err(_) => break,
        }
        assert!(kept < 100, "there is a cap");
        assert!(!holder.hints.upload_all().await);
    }
    let refused = |holder: &Holder| {
        let kept = holder.keep_for(&home(), &record("k", 99), Durability::Memory);
        matches!(kept, Err(Refusal::Overloaded))
    };
    assert!(refused(&holder));
    let (bucket, disk) = (holder.bucket.clone(), holder.disk.clone());
    let again = Holder::on(bucket, disk, holder.hints.config).await;
    assert!(refused(&again), "what the log brought back waits as well");
    holder.bucket.set(Faults::default());
    assert!(holder.hints.upload_all().await && !refused(&holder));
}

#[tokio::test]
async fn a_confirmation_comes_when_the_version_is_as_durable_as_asked() {
    let holder = Holder::start(ROOMY).await;
    let dot = holder.new_dot(&home(), "k", 1).await;
    let confirm = |dot: &Dot, durability| {
        let (done, reached) = word();
        holder.hints.confirm(&record_key("k"), dot, durability, done).map(|()| reached)
    };
    assert_eq!(confirm(&dot, Durability::Memory).unwrap().await, Ok(Durability::Memory));
    assert_eq!(holder.logged().await, 0, "nobody has waited for the disk yet");
    assert_eq!(confirm(&dot, Durability::Disk).unwrap().await, Ok(Durability::Disk));
    assert_eq!(holder.logged().await, 1);
    let mut in_bucket = confirm(&dot, Durability::Bucket).unwrap();
    assert!(in_bucket.try_recv().is_err());
    assert!(holder.hints.upload_all().await);
    assert_eq!(in_bucket.await, Ok(Durability::Bucket));
    assert_eq!(confirm(&dot, Durability::Disk).unwrap().await, Ok(Durability::Bucket));
    let other = Dot { n: 2, ..dot };
    assert!(matches!(confirm(&other, Durability::Memory), Err(Refusal::Unable(_))));
}

#[tokio::test]
async fn a_request_that_was_carried_out_is_not_carried_out_again() {
    for config in [ROOMY, FORGETFUL] {
        let holder = Holder::start(config).await;
        let first = holder.new_dot(&home(), "k", 1).await;
        holder.new_dot(&home(), "k", 2).await;
        for upload in [false, true] {
            assert!(!upload || holder.hints.upload_all().await);
            let again = holder.mint(&home(), "k", 1).await;
            let HintMint::Repeated(dot, record) = again else { panic!("{again:?}") };
            assert_eq!(dot, first);
            assert_eq!(values(&record.container), ["k 1", "k 2"], "all that is known of the key");
        }
        assert_eq!(holder.values("k").await, ["k 1", "k 2"]);
    }
}

/// The home has it, and may have what replaced it: this node can't answer for it any more, and mints it no second time.
#[tokio::test]
async fn a_request_whose_version_was_handed_over_is_not_carried_out_again() {
    let holder = Holder::start(ROOMY).await;
    holder.new_dot(&home(), "k", 1).await;
    let generation = holder.hints.come_back(&home()).generation;
    holder.hints.took(&home(), generation).await.unwrap();
    let request = mint_request("k", version(1, &Clock::new(), b"k 1"), Durability::Memory);
    let again = holder.hints.mint(&home(), &request, Container::default(), word().0);
    assert!(matches!(again, Err(Refusal::Unable(_))), "{again:?}");
    assert_ne!(holder.new_dot(&home(), "k", 2).await.n, 0, "others it takes");
}

/// P3: what left memory may be deleted from the bucket by its home at any moment, before this node hears of it.
#[tokio::test]
async fn a_key_that_left_memory_is_minted_under_another_epoch() {
    let holder = Holder::start(FORGETFUL).await;
    let known = holder.hints.read_stored(&record_key("k")).await.unwrap();
    let first = holder.new_dot(&home(), "k", 1).await;
    assert!(holder.hints.upload_all().await);
    // It looked before the key left memory.
    let HintMint::Made(second, _) = holder.mint_knowing(&home(), "k", 2, known) else { panic!("not made") };
    assert_ne!(first, second);
    assert!(holder.hints.upload_all().await);
    for object in list_all(&*holder.bucket, &hint_prefix(&home())).await.unwrap() {
        holder.bucket.delete(&object.key).await.unwrap();
    }
    let third = holder.new_dot(&home(), "k", 3).await;
    assert!(third != first && third != second);
}

#[tokio::test]
async fn without_another_epoch_nothing_leaves_memory() {
    let holder = Holder::start(FORGETFUL).await;
    let first = holder.new_dot(&home(), "k", 1).await;
    let refuse = OperationFaults { refuse: CERTAIN, ..OperationFaults::default() };
    holder.bucket.set(Faults { create: refuse, ..Faults::default() });
    assert!(holder.hints.upload_all().await);
    assert_eq!(holder.in_bucket(&home()).await, ["k 1"]);
    let known = Container::default();
    let HintMint::Made(second, _) = holder.mint_knowing(&home(), "k", 2, known) else { panic!("not made") };
    assert_ne!(first, second);
}

#[tokio::test]
async fn tables_that_were_joined_or_have_left_memory_are_read_all_the_same() {
    for config in [ROOMY, FORGETFUL] {
        let holder = Holder::start(config).await;
        for n in 1..=5 {
            holder.keep("k", n, Durability::Memory);
            holder.keep(&format!("k{n}"), n, Durability::Memory);
            assert!(holder.hints.upload_all().await);
        }
        {
            let state = holder.hints.state.lock();
            let target = &state.targets[&home()];
            let tables = (target.tables.len(), target.only_stored.len());
            assert_eq!(tables, if config.memory_bytes == 0 { (0, 5) } else { (1, 0) });
        }
        assert_eq!(holder.values("k").await, ["k 1", "k 2", "k 3", "k 4", "k 5"]);
        assert_eq!(holder.values("k4").await, ["k4 4"]);
        assert_eq!(holder.in_bucket(&home()).await.len(), 10);
        holder.hand_over(&home()).await;
        assert!(holder.hints.is_idle() && holder.values("k").await.is_empty());
    }
}

/// The home deletes what it took before it says so.
#[tokio::test]
async fn an_object_that_its_home_deleted_holds_nothing() {
    let holder = Holder::start(ROOMY).await;
    for n in 1..=2 {
        holder.keep("k", n, Durability::Memory);
        assert!(holder.hints.upload_all().await);
    }
    let holder = Holder::on(holder.bucket.clone(), None, ROOMY).await;
    let objects = list_all(&*holder.bucket, &hint_prefix(&home())).await.unwrap();
    assert_eq!(objects.len(), 2);
    holder.bucket.delete(&objects[0].key).await.unwrap();
    assert_eq!(holder.values("k").await, ["k 2"]);
    holder.bucket.set(Faults { unavailable: true, ..Faults::default() });
    let read = holder.hints.read(&record_key("k")).await;
    assert!(read.is_err(), "no answer does not say that there is nothing");
}

#[tokio::test]
async fn pages_hold_everything_once_and_in_order() {
    let holder = Holder::start(ROOMY).await;
    let mut expected = Vec::new();
    for n in 1..=40 {
        holder.keep(&format!("k{n}"), n, Durability::Memory);
        expected.push(format!("k{n} {n}"));
    }
    // A failed upload leaves several tables, which overlap.
    holder.fail_puts();
    assert!(!holder.hints.upload_all().await);
    for n in 41..=60 {
        holder.keep(&format!("k{n}"), n, Durability::Memory);
        expected.push(format!("k{n} {n}"));
    }
    holder.keep("k7", 61, Durability::Memory);
    expected.push("k7 61".to_owned());
    expected.sort();
    let Handover { generation, keys, .. } = holder.hints.come_back(&home());
    assert_eq!(keys, 61);
    for budget in [0, 1, 200, 1 << 20] {
        let mut found = holder.pages(generation, budget);
        found.sort();
        assert_eq!(found, expected, "{budget} bytes");
    }
    let (page, more) = holder.hints.page(&home(), generation, None, 200).unwrap();
    assert!(more && page.len() < 10, "{} records in a page of 200 bytes", page.len());
}

/// What is uploaded between two pages is not on the next page any more, but in the bucket, where the home looks after
/// the last page.
#[tokio::test]
async fn pages_hold_everything_in_memory_though_an_upload_comes_between() {
    for uploaded_after in [1, 5, 20] {
        let holder = Holder::start(ROOMY).await;
        let mut expected: Vec<String> = (1..=40).map(|n| format!("k{n} {n}")).collect();
        expected.sort();
        for n in 1..=40 {
            holder.keep(&format!("k{n}"), n, Durability::Memory);
        }
        let Handover { generation, .. } = holder.hints.come_back(&home());
        let (mut after, mut found) = (None, Vec::new());
        for page in 1.. {
            let (records, more) = holder.hints.page(&home(), generation, after.as_ref(), 1).unwrap();
            for record in records.iter().map(|bytes| Record::decode(bytes).unwrap()) {
                after = Some(key_of(&record));
                found.extend(values(&record.container));
            }
            if page == uploaded_after {
                assert!(holder.hints.upload_all().await);
            }
            if !more {
                break;
            }
        }
        found.sort();
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn a_home_is_away_until_it_comes_back_and_an_older_belief_does_not_count() {
    let holder = Holder::start(ROOMY).await;
    let Presence::Present(seen) = holder.hints.presence(&home()) else { panic!("it is not away yet") };
    holder.hints.come_back(&home());
    holder.hints.believe_away(&home(), seen);
    let Presence::Present(seen) = holder.hints.presence(&home()) else { panic!("it came back since") };
    assert!(holder.hints.to_offer().is_empty());
    holder.hints.believe_away(&home(), seen);
    assert_eq!(holder.hints.presence(&home()), Presence::Away);
    assert_eq!(holder.hints.to_offer(), [(home(), true)], "it must hear of it, though nothing is kept");
    assert!(!holder.hints.is_idle());
    holder.hints.come_back(&home());
    assert!(holder.hints.to_offer().is_empty() && holder.hints.is_idle());
}

/// Between the look at whether a home is away and the keeping, it may have come back.
#[tokio::test]
async fn nothing_is_kept_for_a_home_that_came_back_in_this_moment() {
    let holder = Holder::start(ROOMY).await;
    let kept = record("k", 1);
    let hash = KeyHash::of(SEED, &kept.namespace, &kept.key);
    let keep = |holds_it| holder.hints.keep(&home(), hash, &kept, holds_it, Durability::Memory, word().0);
    let Presence::Present(seen) = holder.hints.presence(&home()) else { panic!("it is not away yet") };
    holder.hints.believe_away(&home(), seen);
    holder.hints.come_back(&home());
    assert!(!keep(false).unwrap());
    assert!(holder.hints.held().is_empty());
    assert!(keep(true).unwrap(), "what it holds already may be kept all the same");
    assert_eq!(holder.hints.come_back(&home()).keys, 1);
    assert!(!holder.hints.come_back(&home()).urgent, "it lacks nothing");
}
