//! `cartwheel scrub`: reads everything that counts in the bucket and verifies it.

use std::collections::HashSet;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;

use cartwheel_bucket::{Bucket, BucketError, list_all};
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::names::NodeId;
use cartwheel_segments::hints::{hint_prefix, parse_hint_object};
use cartwheel_segments::inventory::{Inventory, State};
use cartwheel_segments::verify::{Damage, Verification, overlaps};

use super::BucketArgs;
use crate::client::{Exit, Failure, Format, Output, printable};
use crate::units::human_size;

/// How often a terminal is told how far it is, and how often anything else is.
const TERMINAL_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Verify every segment and hint in the bucket
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel scrub --bucket s3://carts/prod\n  cartwheel scrub --node node-a --bytes-per-second 20MiB -o json\n\nReads what the newest manifests name, the flushes that they have not heard of, and the hints; verifies checksums, order, ranges, filters and clock columns, and that manifests say what is so. Nothing is changed. Exit status 1 if anything is wrong or missing."
)]
pub struct ScrubArgs {
    /// Only this storage node, and the hints for it
    #[arg(long, value_name = "ID", value_parser = super::node_id)]
    pub node: Option<NodeId>,
    /// Read at most so fast, in bytes per second (64KiB to 1TiB); as fast as the store gives it if not told
    #[arg(long, value_name = "SIZE", value_parser = crate::units::size_between(64 << 10, 1 << 40))]
    pub bytes_per_second: Option<u64>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub bucket: BucketArgs,
}

/// What is wrong with one object, or with a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wrong {
    node: NodeId,
    /// An object, or the manifest.
    object: String,
    /// One word: `damaged`, `missing`, `overlap` or `manifest`.
    kind: &'static str,
    what: Vec<String>,
    /// How much more is wrong with it.
    more: u64,
}

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Report {
    nodes: u64,
    objects: u64,
    bytes: u64,
    records: u64,
    /// Objects that went while the scrub ran, as their nodes merged them or took them over.
    gone: u64,
    wrong: Vec<Wrong>,
}

/// Who is told how far the scrub is.
trait Watcher {
    /// So much was read of this node.
    fn read(&mut self, node: &NodeId, report: &Report);
    /// The node is done.
    fn done(&mut self, node: &NodeId, report: &Report);
}

/// Holds reading back to a rate.
#[derive(Debug)]
struct Pace {
    bytes_per_second: Option<u64>,
    paid: Instant,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, paid: Instant::now() }
    }

    /// Waits until `bytes` that were read are paid for. Time in which nothing was read is not saved up.
    async fn pay(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let price = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        self.paid = self.paid.max(Instant::now()) + price;
        tokio::time::sleep_until(self.paid).await;
    }
}

/// Runs `cartwheel scrub`.
///
/// # Errors
/// Exit status 1 if anything is wrong, 3 if the bucket does not answer.
pub async fn run(args: &ScrubArgs, output: &mut Output) -> Result<Exit, Failure> {
    let bucket = args.bucket.connect().await?;
    let mut scrub = Scrub {
        bucket: &*bucket,
        seed: super::segment::hash_seed(&*bucket).await.map_err(|error| super::failure(&error))?,
        pace: Pace::new(args.bytes_per_second),
        watcher: Progress { output, told: Instant::now() },
        report: Report::default(),
        read: HashSet::new(),
    };
    let done = scrub.all(args.node.as_ref()).await;
    let report = scrub.report;
    output.progress_ends();
    if let Err(error) = done {
        if !report.wrong.is_empty() {
            output.note(report.text().trim_end());
        }
        return Err(super::failure(&error));
    }
    match args.bucket.output {
        Format::Json => output.json(&report.value())?,
        Format::Text => output.raw(report.text().as_bytes())?,
    }
    Ok(if report.wrong.is_empty() { Exit::Done } else { Exit::Failed })
}

struct Progress<'a> {
    output: &'a mut Output,
    told: Instant,
}

impl Watcher for Progress<'_> {
    fn read(&mut self, node: &NodeId, report: &Report) {
        let every = if self.output.has_terminal() { TERMINAL_EVERY } else { LINE_EVERY };
        if self.told.elapsed() >= every {
            self.told = Instant::now();
            self.output.progress(&format!("{node}: {}", report.line()));
        }
    }

    fn done(&mut self, node: &NodeId, report: &Report) {
        if !self.output.has_terminal() {
            self.output.note(&format!("{node} is done: {}", report.line()));
        }
    }
}

/// A scrub under way.
struct Scrub<'a, W> {
    bucket: &'a dyn Bucket,
    seed: Option<u64>,
    pace: Pace,
    watcher: W,
    report: Report,
    /// Objects that were read: what one node has borrowed from another is read once.
    read: HashSet<String>,
}

impl<W: Watcher> Scrub<'_, W> {
    async fn all(&mut self, only: Option<&NodeId>) -> Result<(), BucketError> {
        let nodes = match only {
            Some(node) => vec![node.clone()],
            None => super::ls::nodes(self.bucket).await?,
        };
        for node in nodes {
            self.node(&node).await?;
            self.report.nodes += 1;
            self.watcher.done(&node, &self.report);
        }
        Ok(())
    }

    async fn node(&mut self, node: &NodeId) -> Result<(), BucketError> {
        let hints = list_all(self.bucket, &hint_prefix(node)).await?;
        let inventory = Inventory::read(self.bucket, node).await?;
        if let Some(error) = &inventory.unreadable {
            self.wrong(node, "its newest manifest", "manifest", vec![error.to_string()], 0);
        }
        for entry in &inventory.missing {
            self.missing(node, &entry.object);
        }
        if let Some(dated) = &inventory.manifest {
            for entries in [&dated.manifest.segments, &dated.manifest.graves] {
                for (a, b) in overlaps(entries) {
                    let (a, b): (&SegmentEntry, &SegmentEntry) = (&entries[a], &entries[b]);
                    let what = format!("it shares hashes with {}, and both are of run {}", a.object, a.run);
                    self.wrong(node, &b.object, "overlap", vec![what], 0);
                }
            }
        }
        for object in &inventory.objects {
            let is_new = !self.read.contains(&object.name);
            if is_new && (object.state.counts() || object.state == State::Unclear) {
                let entry = object.entry.as_ref();
                if !self.object(node, &object.name, object.bytes, entry).await? {
                    let named = entry.is_some() && !inventory.is_outdated(self.bucket).await?;
                    if named { self.missing(node, &object.name) } else { self.report.gone += 1 }
                }
            }
        }
        for hint in hints.into_iter().filter(|hint| parse_hint_object(&hint.key).is_some()) {
            if !self.object(node, &hint.key, hint.size, None).await? {
                self.report.gone += 1;
            }
        }
        Ok(())
    }

    /// Verifies one object; `false` if it is not there any more.
    async fn object(
        &mut self,
        node: &NodeId,
        name: &str,
        size: u64,
        entry: Option<&SegmentEntry>,
    ) -> Result<bool, BucketError> {
        let opened = Verification::open(self.bucket, name, size, entry, self.seed).await;
        let mut verification = match opened {
            Err(BucketError::NotFound { .. }) => return Ok(false),
            opened => opened?,
        };
        let mut read = verification.bytes_read();
        self.read(node, read).await;
        loop {
            match verification.step(self.bucket).await {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(BucketError::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
            self.read(node, verification.bytes_read() - read).await;
            read = verification.bytes_read();
        }
        let verified = verification.finish();
        self.read.insert(name.to_owned());
        self.report.objects += 1;
        self.report.records += verified.records;
        if !verified.is_sound() {
            let what = verified.damages.iter().map(Damage::to_string).collect();
            self.wrong(node, name, "damaged", what, verified.more_damages);
        }
        Ok(true)
    }

    async fn read(&mut self, node: &NodeId, bytes: u64) {
        self.report.bytes += bytes;
        self.pace.pay(bytes).await;
        self.watcher.read(node, &self.report);
    }

    fn missing(&mut self, node: &NodeId, object: &str) {
        let what = "the newest manifest names it, and it is not there".to_owned();
        self.wrong(node, object, "missing", vec![what], 0);
    }

    fn wrong(&mut self, node: &NodeId, object: &str, kind: &'static str, what: Vec<String>, more: u64) {
        let (node, object) = (node.clone(), object.to_owned());
        self.report.wrong.push(Wrong { node, object, kind, what, more });
    }
}

impl Report {
    fn line(&self) -> String {
        format!(
            "{} objects, {} records, {}, {} wrong",
            self.objects,
            self.records,
            human_size(self.bytes),
            self.wrong.len()
        )
    }

    fn value(&self) -> Value {
        let wrong: Vec<Value> = self
            .wrong
            .iter()
            .map(|w| {
                json!({ "node": w.node, "object": w.object, "kind": w.kind, "what": w.what, "more": w.more })
            })
            .collect();
        json!({
            "nodes": self.nodes,
            "objects": self.objects,
            "records": self.records,
            "bytes": self.bytes,
            "gone_meanwhile": self.gone,
            "sound": self.wrong.is_empty(),
            "wrong": wrong,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for wrong in &self.wrong {
            text.push_str(&format!("{}  {}: {}\n", wrong.kind, wrong.node, printable(&wrong.object)));
            for what in &wrong.what {
                text.push_str(&format!("    {}\n", printable(what)));
            }
            if wrong.more > 0 {
                text.push_str(&format!("    and {} more\n", wrong.more));
            }
        }
        let gone = match self.gone {
            0 => String::new(),
            gone => format!("; {gone} went while this ran"),
        };
        let verdict = if self.wrong.is_empty() { "all is sound" } else { "NOT all is sound" };
        text.push_str(&format!("{verdict}: {} nodes, {}{gone}\n", self.nodes, self.line()));
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cartwheel_core::manifest::Manifest;

    use super::super::testing::{SEED, World, record, value};
    use super::*;

    struct Nobody;

    impl Watcher for Nobody {
        fn read(&mut self, _: &NodeId, _: &Report) {}
        fn done(&mut self, _: &NodeId, _: &Report) {}
    }

    async fn scrub_at(world: &World, rate: Option<u64>) -> Report {
        let (pace, report) = (Pace::new(rate), Report::default());
        let read = HashSet::new();
        let mut scrub =
            Scrub { bucket: &*world.bucket, seed: Some(SEED), pace, watcher: Nobody, report, read };
        scrub.all(None).await.unwrap();
        scrub.report
    }

    async fn scrub(world: &World) -> Report {
        scrub_at(world, None).await
    }

    /// The same choices in every run.
    fn dice(seed: &mut u64) -> usize {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*seed >> 33).unwrap()
    }

    #[tokio::test]
    async fn a_sound_bucket_is_sound_and_what_does_not_count_is_left_alone() {
        let world = World::new().await;
        for object in [&world.dropped, &world.orphan] {
            world.flip(object, 20).await;
        }
        let report = scrub(&world).await;
        assert_eq!(report.wrong, []);
        // Named: one flush, two of a run, one grave; an unknown flush, a hint; and node-b's flush.
        assert_eq!((report.nodes, report.objects, report.records), (3, 7, 45));
        assert!(
            report.text().starts_with("all is sound: 3 nodes, 7 objects, 45 records"),
            "{}",
            report.text()
        );
        assert_eq!(report.value()["sound"], true);
    }

    /// Once, whoever names it; and as long as anybody does.
    #[tokio::test]
    async fn what_is_borrowed_is_read_once() {
        let world = World::new().await;
        let before = scrub(&world).await;
        let (object, _) = world.lend("node-b").await;
        let report = scrub(&world).await;
        assert_eq!(
            (report.objects, report.records, report.bytes),
            (before.objects, before.records, before.bytes)
        );
        world.flip(&object, 20).await;
        assert_eq!(scrub(&world).await.wrong.len(), 1);
        let mut manifest = world.manifest("node-a", 3).await;
        manifest.version = 4;
        manifest.segments.retain(|entry| entry.object != object);
        world.put_manifest(&manifest).await;
        let wrong = scrub(&world).await.wrong;
        assert_eq!((wrong.len(), wrong[0].node.as_str()), (1, "node-b"));
    }

    #[tokio::test]
    async fn every_flipped_byte_of_an_object_is_found() {
        let world = World::new().await;
        let size = world.bucket.get(&world.named).await.unwrap().len();
        for byte in 0..size {
            world.flip(&world.named, byte).await;
            let report = scrub(&world).await;
            assert_eq!((report.wrong.len(), report.objects), (1, 7), "byte {byte}");
            assert_eq!(
                (report.wrong[0].object.as_str(), report.wrong[0].kind),
                (world.named.as_str(), "damaged")
            );
            world.flip(&world.named, byte).await;
        }
        assert_eq!(scrub(&world).await.wrong, []);
    }

    #[tokio::test]
    async fn damage_at_random_places_of_any_object_is_found() {
        let world = World::new().await;
        let objects = [&world.compacted[0], &world.compacted[1], &world.unknown, &world.grave, &world.hint];
        let mut seed = 3;
        for round in 0..200 {
            let (object, byte) = (objects[dice(&mut seed) % objects.len()], dice(&mut seed));
            world.flip(object, byte).await;
            let report = scrub(&world).await;
            let found: Vec<&str> = report.wrong.iter().map(|w| w.object.as_str()).collect();
            assert_eq!(found, [object.as_str()], "round {round}, byte {byte}");
            world.flip(object, byte).await;
        }
    }

    #[tokio::test]
    async fn manifests_that_do_not_fit_are_found() {
        let world = World::new().await;
        world.bucket.delete(&world.compacted[1]).await.unwrap();
        let mut manifest = world.manifest("node-a", 3).await;
        manifest.version = 4;
        manifest.segments[0].records += 1;
        // Of one run with the first of the two, and with the same hashes.
        let object = "nodes/node-a/c/00000000000000ee/0000000009.seg";
        let keys: Vec<_> = (0..40).map(|n| record(&format!("key-{n}"), value("node-a.1", 1, "x"))).collect();
        let entry = world.put(object, &keys).await;
        manifest.segments.push(SegmentEntry { run: manifest.segments[1].run.clone(), ..entry });
        world.put_manifest(&manifest).await;
        world
            .bucket
            .put(&Manifest::object_name(&NodeId::new("node-b").unwrap(), 2), "{".into())
            .await
            .unwrap();
        let report = scrub(&world).await;
        let kinds: Vec<&str> = report.wrong.iter().map(|w| w.kind).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == "missing").count(), 1, "{report:?}");
        assert_eq!(kinds.iter().filter(|kind| **kind == "damaged").count(), 1, "{report:?}");
        assert!(kinds.contains(&"overlap") && kinds.contains(&"manifest"), "{report:?}");
        let text = report.text();
        for part in
            ["NOT all is sound", "the manifest says records 2", "it shares hashes with", "is not there"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept() {
        let world = World::new().await;
        let begun = Instant::now();
        let report = scrub_at(&world, Some(1000)).await;
        let wanted = Duration::from_secs_f64(report.bytes as f64 / 1000.0);
        assert!(begun.elapsed() >= wanted && begun.elapsed() < wanted + Duration::from_secs(1));
    }
}
