//! `cartwheel inspect segment`: the figures of one segment, its records, and whether it is sound.

use clap::Args;
use serde_json::{Value, json};

use cartwheel_bucket::{Bucket, BucketError, Listed};
use cartwheel_cluster::membership::{self, MembershipError};
use cartwheel_core::manifest::SegmentEntry;
use cartwheel_core::names::NodeId;
use cartwheel_segments::hints::parse_hint_object;
use cartwheel_segments::inventory::{Inventory, find};
use cartwheel_segments::verify::{Figures, Read, Verification, Verified};

use super::BucketArgs;
use super::show::{clock, container_value, name, put_name, sibling_line, utc, utc_value};
use crate::client::{Exit, Failure, Format, Output, printable};
use crate::units::human_size;

/// Options of `cartwheel inspect segment`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel inspect segment nodes/node-a/f/0000000001-6f1c2a9be07d4a35/0000000001.seg\n  cartwheel inspect segment hints/node-a/node-c-0000000002-6f1c2a9be07d4a35/0000000001.seg --records --limit 5\n\nThe whole object is read and verified: checksums, order, filter, clock column, and what the manifest says of it. Exit status 1 if anything is wrong."
)]
pub struct SegmentArgs {
    /// The object, without the bucket's prefix, as `inspect ls` and `inspect manifest -o json` name it
    pub object: String,
    /// Also show the records
    #[arg(long)]
    pub records: bool,
    /// Show at most so many records (1 to 100000)
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub bucket: BucketArgs,
}

/// What was found.
#[derive(Debug)]
struct Looked {
    listed: Listed,
    state: &'static str,
    figures: Option<Figures>,
    records: Vec<Read>,
    verified: Verified,
}

/// Runs `cartwheel inspect segment`.
///
/// # Errors
/// Exit status 1 if there is no such object or it is damaged, 3 if the bucket does not answer.
pub(super) async fn run(args: &SegmentArgs, output: &mut Output) -> Result<Exit, Failure> {
    let bucket = args.bucket.connect().await?;
    let limit = if args.records { usize::try_from(args.limit).unwrap_or(usize::MAX) } else { 0 };
    let looked = gather(&*bucket, &args.object, limit).await.map_err(|error| super::failure(&error))?;
    match args.bucket.output {
        Format::Json => output.json(&looked.value(args.records))?,
        Format::Text => output.raw(looked.text().as_bytes())?,
    }
    Ok(if looked.verified.is_sound() { Exit::Done } else { Exit::Failed })
}

/// The cluster's hash seed, if there is a ring document that can be read.
///
/// # Errors
/// Those of the bucket.
pub(super) async fn hash_seed(bucket: &dyn Bucket) -> Result<Option<u64>, BucketError> {
    match membership::read_newest(bucket, 0).await {
        Ok(document) => Ok(document.map(|d| d.hash_seed)),
        Err(MembershipError::Bucket(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// What the object counts for, and what its node's newest manifest says of it.
async fn standing(
    bucket: &dyn Bucket,
    object: &str,
) -> Result<(&'static str, Option<SegmentEntry>), BucketError> {
    if parse_hint_object(object).is_some() {
        return Ok(("hint", None));
    }
    let owner = object.strip_prefix("nodes/").and_then(|rest| rest.split_once('/'));
    let Some(node) = owner.and_then(|(id, _)| NodeId::new(id).ok()) else { return Ok(("unknown", None)) };
    let found = Inventory::read(bucket, &node).await?.objects.into_iter().find(|o| o.name == object);
    Ok(found.map_or(("unknown", None), |object| (object.state.word(), object.entry)))
}

async fn gather(bucket: &dyn Bucket, object: &str, limit: usize) -> Result<Looked, BucketError> {
    let missing = || BucketError::NotFound { key: object.to_owned() };
    let listed = find(bucket, object).await?.ok_or_else(missing)?;
    let (state, entry) = standing(bucket, object).await?;
    let seed = hash_seed(bucket).await?;
    let mut verification = Verification::open(bucket, object, listed.size, entry.as_ref(), seed).await?;
    let mut records = Vec::new();
    while let Some(step) = verification.step(bucket).await? {
        let room = limit.saturating_sub(records.len());
        records.extend(step.records.into_iter().take(room));
    }
    Ok(Looked { listed, state, figures: verification.figures(), records, verified: verification.finish() })
}

impl Looked {
    fn value(&self, with_records: bool) -> Value {
        let damages: Vec<Value> = self
            .verified
            .damages
            .iter()
            .map(|d| json!({ "part": d.part.to_string(), "offset": d.offset, "what": d.what }))
            .collect();
        let figures = self.figures.map_or(Value::Null, |f| {
            json!({
                "records": f.records,
                "first": f.first,
                "last": f.last,
                "blocks": f.blocks,
                "block_bytes": f.block_bytes,
                "clock_column": { "offset": f.clocks.0, "bytes": f.clocks.1 },
                "filter_bytes": f.filter_bytes,
                "tail_offset": f.tail_offset,
            })
        });
        let mut value = json!({
            "object": self.listed.key,
            "state": self.state,
            "bytes": self.listed.size,
            "put": utc_value(self.listed.modified_ms),
            "figures": figures,
            "records_read": self.verified.records,
            "siblings": self.verified.siblings,
            "sound": self.verified.is_sound(),
            "damages": damages,
            "more_damages": self.verified.more_damages,
        });
        if with_records {
            value["records"] = self.records.iter().map(record_value).collect();
        }
        value
    }

    fn text(&self) -> String {
        let mut text = format!(
            "object   {}\nstate    {}\nsize     {} bytes ({}), put {}\n",
            printable(&self.listed.key),
            self.state,
            self.listed.size,
            human_size(self.listed.size),
            utc(self.listed.modified_ms)
        );
        if let Some(f) = &self.figures {
            text.push_str(&format!(
                "records  {}, with {} siblings\nhashes   {} to {}\nblocks   {}, {}\nclocks   {} at byte {}\n\
                 filter   {}\ntail     {} at byte {}\n",
                f.records,
                self.verified.siblings,
                f.first,
                f.last,
                f.blocks,
                human_size(f.block_bytes),
                human_size(f.clocks.1),
                f.clocks.0,
                human_size(f.filter_bytes),
                human_size(self.listed.size.saturating_sub(f.tail_offset)),
                f.tail_offset
            ));
        }
        text.push_str(&verdict(&self.verified));
        for read in &self.records {
            text.push_str(&record_text(read));
        }
        text
    }
}

/// Is it sound, and if not, what is wrong where?
fn verdict(verified: &Verified) -> String {
    if verified.is_sound() {
        return "verdict  sound: checksums, order, filter, clock column and manifest agree\n".to_owned();
    }
    let mut text = format!("verdict  DAMAGED; {} records could be read\n", verified.records);
    for damage in &verified.damages {
        text.push_str(&format!("  {damage}\n"));
    }
    if verified.more_damages > 0 {
        text.push_str(&format!("  and {} more\n", verified.more_damages));
    }
    text
}

fn record_text(read: &Read) -> String {
    let record = &read.record;
    let hash = read.hash.map_or_else(|| "-".to_owned(), |hash| hash.to_string());
    let name = name(&record.namespace, &record.key);
    let mut text =
        format!("\n{name}\n  hash {hash}, block {}, clock {}\n", read.block, clock(&record.container));
    for sibling in record.container.siblings() {
        text.push_str(&format!("  {}\n", sibling_line(sibling)));
    }
    text
}

fn record_value(read: &Read) -> Value {
    let mut value = container_value(&read.record.container);
    put_name(&mut value, &read.record.namespace, &read.record.key);
    value["hash"] = read.hash.map_or(Value::Null, |hash| Value::from(hash.to_string()));
    value["block"] = Value::from(read.block);
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::World;
    use super::*;

    #[tokio::test]
    async fn figures_records_and_verdict() {
        let world = World::new().await;
        let looked = gather(&*world.bucket, &world.compacted[0], 3).await.unwrap();
        assert_eq!((looked.state, looked.records.len(), looked.verified.records), ("named", 3, 20));
        let text = looked.text();
        for part in
            ["records  20, with 20 siblings", "verdict  sound", "carts/key-", "node-a.1=1 1 B, written 2023"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let value = looked.value(true);
        assert_eq!((&value["sound"], &value["figures"]["blocks"]), (&true.into(), &1.into()));
        assert_eq!(value["records"][0]["siblings"][0]["dot"], "node-a.1=1");
        assert_eq!(looked.value(false).get("records"), None);

        for (object, state) in
            [(&world.hint, "hint"), (&world.unknown, "unknown"), (&world.dropped, "dropped")]
        {
            let looked = gather(&*world.bucket, object, 0).await.unwrap();
            assert_eq!((looked.state, looked.verified.is_sound()), (state, true));
        }
    }

    #[tokio::test]
    async fn damage_is_told_with_its_place() {
        let world = World::new().await;
        world.flip(&world.named, 20).await;
        let looked = gather(&*world.bucket, &world.named, 9).await.unwrap();
        let text = looked.text();
        assert!(text.contains("DAMAGED") && text.contains("block 0 at byte 8: checksum mismatch"), "{text}");
        assert_eq!(looked.value(true)["damages"][0]["part"], "block 0");
        world.bucket.put(&world.named, "".into()).await.unwrap();
        assert!(
            gather(&*world.bucket, &world.named, 9).await.unwrap().text().contains("the object is empty")
        );
        let gone = gather(&*world.bucket, "nodes/node-a/f/1/1.seg", 0).await;
        assert!(gone.is_err_and(|error| error.is_not_found()));
    }
}
