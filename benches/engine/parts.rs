//! The measurements, each of one part of the engine by itself. What is not measured (making keys, filling memtables,
//! freeing them) happens while no watch runs.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_core::clock::Clock;
use cartwheel_core::clock_index::{ClockIndex, Known};
use cartwheel_core::container::Container;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::record::Brief;
use cartwheel_storage_node::bench_support::{Appender, Node, Table};
use cartwheel_storage_node::disk::{Disk, FileDisk};

use crate::data::{Data, Row, bytes_of, dot, hash, scramble};
use crate::report::{Figures, Report, Unit};
use crate::stopwatch::Stopwatch;

/// Segments that are merged at once.
const MERGED: usize = 4;
/// More than all that is cached here takes.
const ROOMY: u64 = 256 * 1024 * 1024;

/// How much of everything is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Keys of the clock index, and lookups in it.
    index_keys: u64,
    /// Memtables that are filled, and segments that are built and read.
    tables: usize,
    /// Point reads from memory and from the row cache.
    reads: u64,
    /// Point reads from the block cache.
    block_reads: u64,
    /// How long the log is appended to, for each number of writers.
    appending: Duration,
    /// Records that are merged. A quarter of them, 16 MiB, makes a memtable and a segment.
    pub(crate) merged_records: usize,
}

impl Scale {
    /// To measure.
    pub(crate) const FULL: Self = Self {
        index_keys: 1_000_000,
        tables: 32,
        reads: 1_000_000,
        block_reads: 50_000,
        appending: Duration::from_secs(2),
        merged_records: 4 * 15_000,
    };
    /// To see that all of it runs.
    pub(crate) const QUICK: Self = Self {
        index_keys: 10_000,
        tables: 1,
        reads: 10_000,
        block_reads: 1_000,
        appending: Duration::from_millis(100),
        merged_records: 4 * 1000,
    };
}

/// Measures every part once.
///
/// # Errors
/// Says what did not do what it was measured for.
pub(crate) async fn run(scale: &Scale, data: &Data, report: &mut Report) -> Result<(), String> {
    index(scale, report)?;
    let segment_rows = &data.rows[..data.rows.len() / MERGED];
    let table = memtable(scale, segment_rows, report);
    for (writers, part) in
        [(1, "log append, 1 writer"), (8, "log append, 8 writers"), (64, "log append, 64 writers")]
    {
        report.add(part, append(scale, writers, segment_rows).await?);
    }
    reads(scale, segment_rows, report).await?;
    build(scale, &table, segment_rows, report)?;
    scan(scale, segment_rows, report).await?;
    merge(data, report).await
}

fn index(scale: &Scale, report: &mut Report) -> Result<(), String> {
    let hashes: Vec<KeyHash> = (0..scale.index_keys).map(hash).collect();
    let known = |n: u64| -> Result<Known, String> {
        let brief = Brief { deleted: false, expires_ms: 0, request: scramble(n), size: 1024 };
        Ok(Known::All(Container::delta(&Clock::default(), dot(n)?, brief)))
    };
    let knowns = (0..1000).map(known).collect::<Result<Vec<_>, _>>()?;
    let mut index = ClockIndex::default();
    index.set_complete();
    let watch = Stopwatch::start();
    for (hash, known) in hashes.iter().zip(knowns.iter().cycle()) {
        index.set(*hash, known);
    }
    let took = watch.stop();
    let each = (index.bytes() as f64 / index.len() as f64, "bytes per key");
    let amount = hashes.len();
    report.add("clock index, insert", Figures { unit: Unit::Nanos, amount, took, besides: Some(each) });

    let wanted: Vec<KeyHash> = (0..scale.index_keys).map(|n| hash(scramble(n) % scale.index_keys)).collect();
    let watch = Stopwatch::start();
    let found = wanted.iter().filter(|hash| is_known(&index.get(**hash))).count();
    let took = watch.stop();
    report.add("clock index, lookup", Figures { unit: Unit::Nanos, amount, took, besides: None });
    if found == amount { Ok(()) } else { Err(format!("{found} of {amount} keys are in the index")) }
}

fn is_known(known: &Known) -> bool {
    matches!(known, Known::All(brief) if !brief.siblings().is_empty())
}

/// Fills memtables; gives one of them.
fn memtable(scale: &Scale, rows: &[Row], report: &mut Report) -> Table {
    let mut tables: Vec<Table> = (0..scale.tables).map(|_| Table::default()).collect();
    let watch = Stopwatch::start();
    for table in &mut tables {
        for row in rows {
            table.insert(&row.key, &row.record);
        }
    }
    let took = watch.stop();
    let amount = tables.len() * rows.len();
    report.add("memtable, insert", Figures { unit: Unit::Nanos, amount, took, besides: None });
    tables.pop().unwrap_or_default()
}

/// A disk that counts the syncs of what is appended.
#[derive(Debug)]
struct Counted {
    disk: FileDisk,
    syncs: Arc<AtomicUsize>,
}

#[async_trait]
impl Disk for Counted {
    async fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list().await
    }
    async fn read(&self, name: &str) -> io::Result<Bytes> {
        self.disk.read(name).await
    }
    async fn append(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.disk.append(name, bytes).await
    }
    async fn replace(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.disk.replace(name, bytes).await
    }
    async fn delete(&self, name: &str) -> io::Result<()> {
        self.disk.delete(name).await
    }
}

/// So many writers, each of which appends its next record when its last one is on the disk.
async fn append(scale: &Scale, writers: usize, rows: &[Row]) -> Result<Figures, String> {
    // On a real file system, beside what cargo builds: a temporary directory may be memory.
    let directory = tempfile::Builder::new().prefix("engine-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let directory = directory.map_err(|e| e.to_string())?;
    let disk = FileDisk::open(directory.path()).map_err(|e| e.to_string())?;
    let syncs = Arc::new(AtomicUsize::new(0));
    let log = Arc::new(Appender::start(Arc::new(Counted { disk, syncs: Arc::clone(&syncs) })));
    let records: Arc<[Bytes]> = rows.iter().map(|row| row.record.clone()).collect();
    let watch = Stopwatch::start();
    let until = Instant::now() + scale.appending;
    let running: Vec<_> = (0..writers)
        .map(|writer| {
            let (log, records) = (Arc::clone(&log), Arc::clone(&records));
            tokio::spawn(async move {
                let mut appended = 0;
                for record in records.iter().cycle().skip(writer) {
                    if Instant::now() >= until {
                        break;
                    }
                    if !log.append(record.clone()).await {
                        return Err("the disk failed".to_owned());
                    }
                    appended += 1;
                }
                Ok(appended)
            })
        })
        .collect();
    let mut amount: usize = 0;
    for writer in running {
        amount += writer.await.map_err(|e| e.to_string())??;
    }
    let took = watch.stop();
    let each = amount as f64 / syncs.load(Ordering::Relaxed).max(1) as f64;
    Ok(Figures { unit: Unit::Micros, amount, took, besides: Some((each, "records per sync")) })
}

/// A node that holds these records, in its memtable.
async fn node_with(row_cache: u64, block_cache: u64, rows: &[Row]) -> Result<Node, String> {
    let node = Node::start(row_cache, block_cache).await?;
    rows.iter().try_for_each(|row| node.take(&row.record))?;
    Ok(node)
}

async fn reads(scale: &Scale, rows: &[Row], report: &mut Report) -> Result<(), String> {
    let node = node_with(ROOMY, 0, rows).await?;
    report.add("point read, memtable", read(&node, rows, scale.reads, Unit::Nanos).await?);
    node.flush().await?;
    // Reads once over, so that the cache has settled.
    read(&node, rows, rows.len() as u64, Unit::Nanos).await?;
    report.add("point read, row cache", read(&node, rows, scale.reads, Unit::Nanos).await?);
    let size = bytes_of(rows) as u64;
    if node.cached().0 < size {
        return Err(format!("the row cache does not hold all: {:?}", node.cached()));
    }

    let node = node_with(0, ROOMY, rows).await?;
    node.flush().await?;
    for row in rows {
        node.read(&row.key).await?;
    }
    report.add("point read, block cache", read(&node, rows, scale.block_reads, Unit::Micros).await?);
    let cached = node.cached();
    if cached.0 > 0 || cached.1 < size {
        return Err(format!("the row cache holds something, or the block cache not all: {cached:?}"));
    }
    Ok(())
}

/// So many reads of random keys.
async fn read(node: &Node, rows: &[Row], count: u64, unit: Unit) -> Result<Figures, String> {
    let at = |n: u64| rows.get(usize::try_from(scramble(n) % rows.len() as u64).unwrap_or(0));
    let wanted: Vec<&Row> = (0..count).filter_map(at).collect();
    let watch = Stopwatch::start();
    let mut right = 0;
    for row in &wanted {
        let found = node.read(&row.key).await?;
        right += usize::from(found.is_some_and(|record| record.len() == row.record.len()));
    }
    let took = watch.stop();
    if right != wanted.len() {
        return Err(format!("{right} of {} reads were right", wanted.len()));
    }
    Ok(Figures { unit, amount: wanted.len(), took, besides: None })
}

fn build(scale: &Scale, table: &Table, rows: &[Row], report: &mut Report) -> Result<(), String> {
    let watch = Stopwatch::start();
    for _ in 0..scale.tables {
        let built = black_box(table.build()).map_or(0, |built| built.records);
        if built != rows.len() as u64 {
            return Err(format!("a segment of {} records has {built}", rows.len()));
        }
    }
    let took = watch.stop();
    let amount = bytes_of(rows) * scale.tables;
    report.add("segment, build", Figures { unit: Unit::Bytes, amount, took, besides: None });
    Ok(())
}

async fn scan(scale: &Scale, rows: &[Row], report: &mut Report) -> Result<(), String> {
    let node = node_with(0, 0, rows).await?;
    node.flush().await?;
    let watch = Stopwatch::start();
    let mut scanned = 0;
    for _ in 0..scale.tables {
        scanned += node.scan().await?;
    }
    let took = watch.stop();
    let amount = bytes_of(rows) * scale.tables;
    if scanned != amount {
        return Err(format!("segments of {amount} bytes of records gave {scanned}"));
    }
    report.add("segment, scan", Figures { unit: Unit::Bytes, amount, took, besides: None });
    Ok(())
}

async fn merge(data: &Data, report: &mut Report) -> Result<(), String> {
    let node = Node::start(0, 0).await?;
    for part in 0..MERGED {
        // Every segment has keys all over the range, as those have that a node flushes.
        for row in data.rows.iter().skip(part).step_by(MERGED) {
            node.take(&row.record)?;
        }
        node.flush().await?;
    }
    node.widen().await;
    let watch = Stopwatch::start();
    let (segments, pieces) = node.merge().await?;
    let took = watch.stop();
    let amount = bytes_of(&data.rows);
    let merged = node.scan().await?;
    if segments != MERGED || merged != amount {
        return Err(format!("{segments} segments of {amount} bytes of records became {merged} bytes"));
    }
    let pieces = (pieces as f64, "pieces");
    report.add("merge of 4 segments", Figures { unit: Unit::Bytes, amount, took, besides: Some(pieces) });
    Ok(())
}
