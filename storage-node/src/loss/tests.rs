//! What a start may lack, after each kind of end.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use cartwheel_bucket::MemoryBucket;
use cartwheel_cluster::seams::Seams;
use cartwheel_core::manifest::Manifest;

use super::*;
use crate::disk::MemoryDisk;
use crate::epoch::Leased;

struct Machine {
    store: Arc<MemoryBucket>,
    bucket: SharedBucket,
    disk: MemoryDisk,
}

impl Machine {
    fn new() -> Self {
        let store = Arc::new(MemoryBucket::new());
        Self { bucket: store.clone(), store, disk: MemoryDisk::default() }
    }

    /// A process starts with this disk; the last one's end was clean if it said so.
    async fn start_with(&self, disk: Option<&dyn Disk>) -> (Leased, Loss) {
        let node = NodeId::new("node-a").unwrap();
        let leased = Incarnation::lease(&node, &*self.bucket, &Seams::real(), disk).await.unwrap();
        let Leased { me, last, resumed, .. } = &leased;
        let loss = assess(me, last.as_ref(), *resumed, disk, &self.bucket).await.unwrap();
        (leased, loss)
    }

    async fn start(&self) -> (Leased, Loss) {
        self.start_with(Some(&self.disk)).await
    }

    async fn holds_everything(&self, leased: &Leased) {
        own(&self.disk, &leased.me, true).await.unwrap();
        self.bucket.create(&held_object(&leased.me), "\n".into()).await.unwrap();
    }

    async fn ends_cleanly(&self, leased: &Leased) {
        leased.me.leave_clean_end(&self.disk, leased.newest).await.unwrap();
    }

    /// Its manifest says that all that it acknowledged before this time is in segments.
    async fn says_held(&self, leased: &Leased, version: u64, held_ms: u64) {
        let me = &leased.me;
        let manifest =
            Manifest { held_ms, ..Manifest::new(me.node.clone(), version, me.epoch, "x".into(), 0) };
        let object = Manifest::object_name(&me.node, version);
        self.bucket.put(&object, manifest.to_json().into()).await.unwrap();
    }

    /// How old what may be lost can be, for a process that starts at this time; without the spread.
    async fn age_at(&self, at_ms: u64) -> u64 {
        // Two leases come first, a millisecond each.
        self.store.set_now_ms(at_ms - 1);
        let Loss::Some { age, .. } = self.start().await.1 else { return 0 };
        u64::try_from((age - SPREAD).as_millis()).unwrap()
    }
}

fn disk_lost(loss: Loss) -> Option<bool> {
    match loss {
        Loss::None => None,
        Loss::Some { disk, .. } => Some(disk),
    }
}

#[tokio::test]
async fn the_first_process_and_one_after_a_clean_end_have_lost_nothing() {
    let machine = Machine::new();
    let (first, loss) = machine.start().await;
    assert_eq!(loss, Loss::None);
    machine.holds_everything(&first).await;
    machine.ends_cleanly(&first).await;
    let (second, loss) = machine.start().await;
    assert!(second.resumed);
    assert_eq!(loss, Loss::None);
}

/// What was missing before it is missing after it.
#[tokio::test]
async fn the_clean_end_of_a_process_that_did_not_hold_everything_makes_nothing_whole() {
    let machine = Machine::new();
    let (first, _) = machine.start().await;
    machine.holds_everything(&first).await;
    let new_disk = Machine { disk: MemoryDisk::default(), store: machine.store.clone(), ..machine };
    let (second, loss) = new_disk.start().await;
    assert_eq!(disk_lost(loss), Some(true));
    new_disk.ends_cleanly(&second).await;
    let (third, loss) = new_disk.start().await;
    assert!(third.resumed);
    assert_eq!(disk_lost(loss), Some(true));
}

#[tokio::test]
async fn with_its_disk_a_process_lacks_only_what_was_never_on_it() {
    let machine = Machine::new();
    let (first, _) = machine.start().await;
    machine.holds_everything(&first).await;
    let (second, loss) = machine.start().await;
    assert_eq!((second.last, disk_lost(loss)), (Some(first.me), Some(false)));
    assert_eq!(disk_lost(machine.start().await.1), Some(false), "killed before it could say anything");
}

#[tokio::test]
async fn without_the_last_processs_disk_acknowledged_writes_may_be_lost() {
    let machine = Machine::new();
    let (first, _) = machine.start().await;
    machine.holds_everything(&first).await;
    assert_eq!(disk_lost(machine.start_with(None).await.1), Some(true), "no disk");

    let machine = Machine::new();
    let (first, _) = machine.start().await;
    machine.holds_everything(&first).await;
    let other =
        Machine { disk: MemoryDisk::default(), store: machine.store.clone(), bucket: machine.bucket.clone() };
    assert_eq!(disk_lost(other.start().await.1), Some(true), "another disk");
    let (third, loss) = other.start().await;
    assert_eq!(disk_lost(loss), Some(true), "what was lost has not come back to it");
    other.holds_everything(&third).await;
    assert_eq!(disk_lost(other.start().await.1), Some(false));
    assert_eq!(disk_lost(machine.start().await.1), Some(true), "the disk of a process before the last");
}

#[tokio::test]
async fn what_may_be_lost_came_in_after_what_the_manifest_says_is_held() {
    let machine = Machine::new();
    machine.store.set_now_ms(1_000);
    let (first, _) = machine.start().await;
    machine.store.set_now_ms(10_000);
    machine.holds_everything(&first).await;
    assert_eq!(machine.age_at(100_000).await, 90_000, "since it held everything");
    machine.says_held(&first, 1, 0).await;
    assert_eq!(machine.age_at(100_000).await, 90_000, "nothing is said");
    machine.says_held(&first, 2, 30_000).await;
    assert_eq!(machine.age_at(100_000).await, 70_000);
    machine.store.set_now_ms(45_000);
    let (later, _) = machine.start().await;
    machine.says_held(&later, 3, 30_000).await;
    assert_eq!(
        machine.age_at(100_000).await,
        70_000,
        "a process that lacks something says what the last one said"
    );
    machine.store.set_now_ms(70_000);
    machine.holds_everything(&later).await;
    assert_eq!(machine.age_at(100_000).await, 30_000);
}

#[tokio::test]
async fn a_node_that_never_held_everything_may_lack_whatever_came_in_since_it_was_born() {
    let machine = Machine::new();
    machine.store.set_now_ms(5_000);
    let (first, _) = machine.start().await;
    machine.says_held(&first, 1, 50_000).await;
    assert_eq!(machine.age_at(100_000).await, 95_000);
}
