//! Writers, readers and the flush loop at once: what was acknowledged before a read began is in its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cartwheel_core::clock::{Actor, Clock, Dot};
use cartwheel_core::container::Container;
use cartwheel_core::quorum::Durability;
use cartwheel_core::record::Record;

use crate::engine::Engine;
use crate::engine::Graved;
use crate::testing::{Machine, hash, key, namespace, record_key, version};

const WRITES: u64 = 600;
const NAMES: [&str; 3] = ["a", "b", "c"];

fn dot(n: u64) -> Dot {
    Dot { actor: Actor::parse("node-b.1").unwrap(), n }
}

/// Overwrites a key again and again; `acked` is the last number acknowledged.
async fn write(engine: Arc<Engine>, name: &'static str, acked: Arc<AtomicU64>) {
    let mut context = Clock::new();
    for n in 1..=WRITES {
        let container = Container::delta(&context, dot(n), version(n.into(), &context, &[b'x'; 100]));
        let record = Record { namespace: namespace(), key: key(name), container };
        let bytes = record.encode();
        // Now and then a write waits for its flush, so that there are many of them however threads are run.
        let durability = if n % 50 == 0 { Durability::Bucket } else { Durability::Memory };
        let reached = loop {
            let (sender, reached) = tokio::sync::oneshot::channel();
            let done = Box::new(move |level| sender.send(level).unwrap());
            match engine.replicate(hash(name), &record, &bytes, durability, Graved::Unknown, done) {
                Ok(_) => break reached,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(reached.await, Ok(durability));
        acked.store(n, Ordering::Release);
        context.insert(&dot(n));
        if n % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn read(engine: Arc<Engine>, name: &'static str, acked: Arc<AtomicU64>) {
    loop {
        let before = acked.load(Ordering::Acquire);
        let found = engine.read(&record_key(name)).await.unwrap();
        if let crate::engine::Found::Record(bytes) = found {
            let container = Record::decode(&bytes).unwrap().container;
            let [only] = container.siblings() else { panic!("{:?}", container.seen()) };
            assert!(only.dot.n >= before, "{name}: {} after {before} was acknowledged", only.dot);
        } else {
            assert_eq!(before, 0, "{name} is gone");
        }
        if before == WRITES {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_never_fall_behind_what_was_acknowledged() {
    for loaded in [false, true] {
        let machine = Machine { flush_bytes: 400, ..Machine::without_disk() };
        let mut process = machine.boot().await;
        if loaded {
            process.load_index().await;
        }
        process.flusher.interval = Duration::from_millis(1);
        let engine = Arc::clone(&process.engine);
        let flushing = tokio::spawn(process.flusher.run(process.stopped));
        let mut tasks = Vec::new();
        for name in NAMES {
            let acked = Arc::new(AtomicU64::new(0));
            tasks.push(tokio::spawn(write(Arc::clone(&engine), name, Arc::clone(&acked))));
            tasks.push(tokio::spawn(read(Arc::clone(&engine), name, Arc::clone(&acked))));
        }
        for task in tasks {
            task.await.unwrap();
        }
        process.stop.send(true).unwrap();
        assert!(flushing.await.unwrap());
        assert!(engine.segments.all().len() as u64 >= WRITES / 50);
    }
}
