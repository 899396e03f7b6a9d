//! `cartwheel inspect manifest`: which segments a storage node holds.

use clap::Args;
use serde_json::{Value, json};

use cartwheel_bucket::Bucket;
use cartwheel_core::manifest::{Manifest, SegmentEntry};
use cartwheel_core::names::NodeId;
use cartwheel_segments::manifests::{ManifestReadError, newest};

use super::BucketArgs;
use super::show::{utc, utc_value};
use crate::client::{Align, Exit, Failure, Format, Output, printable, table};
use crate::units::human_size;

/// Options of `cartwheel inspect manifest`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  cartwheel inspect manifest node-a\n  cartwheel inspect manifest node-a --version 17 -o json\n\nHashes are shown by their first 8 digits; -o json has all of them. BORN is when the newest of its records was put into the bucket; '-' is when the object was. Objects that are shown with the name of another node are borrowed from it: only the hashes shown count. The last eight versions stay."
)]
pub struct ManifestArgs {
    /// The storage node
    #[arg(value_parser = super::node_id)]
    pub node: NodeId,
    /// This version rather than the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub version: Option<u64>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would become help text")]
    pub bucket: BucketArgs,
}

/// Runs `cartwheel inspect manifest`.
///
/// # Errors
/// Exit status 1 if there is no such manifest or it can't be read, 3 if the bucket does not answer.
pub(super) async fn run(args: &ManifestArgs, output: &mut Output) -> Result<Exit, Failure> {
    let bucket = args.bucket.connect().await?;
    let manifest = gather(&*bucket, &args.node, args.version).await?;
    match args.bucket.output {
        Format::Json => output.json(&value(&manifest))?,
        Format::Text => output.raw(text(&manifest).as_bytes())?,
    }
    Ok(Exit::Done)
}

async fn gather(bucket: &dyn Bucket, node: &NodeId, version: Option<u64>) -> Result<Manifest, Failure> {
    let Some(version) = version else {
        return match newest(bucket, node).await {
            Ok(Some(manifest)) => Ok(manifest),
            Ok(None) => Err(Failure::failed(format!("{node} has no manifest in this bucket"))),
            Err(ManifestReadError::Bucket(error)) => Err(super::failure(&error)),
            Err(error) => Err(Failure::failed(error.to_string())),
        };
    };
    let object = Manifest::object_name(node, version);
    let bytes = bucket.get(&object).await.map_err(|error| super::failure(&error))?;
    Manifest::parse(&bytes).map_err(|error| Failure::failed(format!("{object}: {error}")))
}

fn value(manifest: &Manifest) -> Value {
    let entries = |entries: &[SegmentEntry]| -> Vec<Value> {
        let entry = |e: &SegmentEntry| {
            json!({
                "object": e.object,
                "owner": e.owner(),
                "only": e.only,
                "run": e.run,
                "first": e.first,
                "last": e.last,
                "records": e.records,
                "bytes": e.bytes,
                "tail_offset": e.tail_offset,
                "born": utc_value(e.born_ms),
            })
        };
        entries.iter().map(entry).collect()
    };
    let dropped: Vec<Value> = manifest
        .dropped
        .iter()
        .map(|d| json!({ "object": d.object, "bytes": d.bytes, "since": utc_value(d.since_ms.unwrap_or(0)) }))
        .collect();
    json!({
        "node": manifest.node,
        "version": manifest.version,
        "format": manifest.format,
        "epoch": manifest.epoch,
        "put_id": manifest.put_id,
        "written": utc_value(manifest.written_ms),
        "ended": manifest.ended,
        "segments": entries(&manifest.segments),
        "graves": entries(&manifest.graves),
        "dropped": dropped,
    })
}

fn text(manifest: &Manifest) -> String {
    let m = manifest;
    let mut text = format!(
        "{} manifest {}, epoch {}, written {}, put-id {}\n",
        m.node,
        m.version,
        m.epoch,
        utc(m.written_ms),
        printable(&m.put_id)
    );
    if m.ended {
        text.push_str("the process that wrote it has ended; all that the node had acknowledged is here\n");
    }
    for (title, entries) in [("segments, oldest first", &m.segments), ("graves", &m.graves)] {
        if entries.is_empty() {
            text.push_str(&format!("\nno {}\n", title.split(',').next().unwrap_or(title)));
            continue;
        }
        let (records, bytes): (u64, u64) =
            entries.iter().fold((0, 0), |(r, b), e| (r.saturating_add(e.records), b.saturating_add(e.bytes)));
        let count = entries.len();
        let header = [
            ("OBJECT", Align::Left),
            ("RUN", Align::Left),
            ("HASHES", Align::Left),
            ("RECORDS", Align::Right),
            ("BYTES", Align::Right),
            ("BORN", Align::Left),
        ];
        let rows: Vec<Vec<String>> = entries.iter().map(|entry| row(m, entry)).collect();
        let theirs = entries.iter().filter(|e| e.owner() != Some(m.node.as_str())).count();
        let borrowed = if theirs > 0 { format!("; {theirs} borrowed") } else { String::new() };
        let sums = format!("{count} objects, {records} records, {}{borrowed}", human_size(bytes));
        text.push_str(&format!("\n{title}: {sums}\n{}", table(&header, &rows)));
    }
    if !m.dropped.is_empty() {
        let rows: Vec<Vec<String>> = m
            .dropped
            .iter()
            .map(|d| vec![short(m, &d.object), human_size(d.bytes), utc(d.since_ms.unwrap_or(0))])
            .collect();
        let header = [("OBJECT", Align::Left), ("BYTES", Align::Right), ("SINCE", Align::Left)];
        text.push_str(&format!(
            "\ndropped, waiting for deletion: {}\n{}",
            m.dropped.len(),
            table(&header, &rows)
        ));
    }
    text
}

/// The object's name without what all of this node begin with.
fn short(manifest: &Manifest, object: &str) -> String {
    object.strip_prefix(&format!("nodes/{}/", manifest.node)).unwrap_or(object).to_owned()
}

fn row(manifest: &Manifest, entry: &SegmentEntry) -> Vec<String> {
    let digits = |hash: &cartwheel_core::hash::KeyHash| hash.to_string()[..8].to_owned();
    let ranges = entry.ranges();
    let ranges: Vec<String> =
        ranges.iter().map(|range| format!("{}-{}", digits(&range.first), digits(&range.last))).collect();
    let run = if entry.run == entry.object { "itself".to_owned() } else { short(manifest, &entry.run) };
    vec![
        short(manifest, &entry.object),
        run,
        ranges.join(","),
        entry.records.to_string(),
        human_size(entry.bytes),
        utc(entry.born_ms),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::World;
    use super::*;
    use crate::client::Exit;

    #[tokio::test]
    async fn the_manifest_is_shown_in_both_forms() {
        let world = World::new().await;
        let node = NodeId::new("node-a").unwrap();
        let manifest = gather(&*world.bucket, &node, None).await.unwrap();
        let text = text(&manifest);
        for part in
            ["node-a manifest 3, epoch 1", "segments, oldest first: 3 objects", "graves: 1 objects", "itself"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("dropped, waiting for deletion: 1") && text.contains("c/run-1"), "{text}");
        let value = value(&manifest);
        assert_eq!(value["segments"].as_array().unwrap().len(), 3);
        assert_eq!(value["segments"][0]["first"].as_str().unwrap().len(), 32);
        assert_eq!(value["segments"][0]["born"], Value::Null);

        let second = gather(&*world.bucket, &node, Some(2)).await.unwrap();
        assert_eq!((second.version, second.segments.len()), (2, 0));
    }

    #[tokio::test]
    async fn what_is_borrowed_is_shown_with_its_owner_and_its_ranges() {
        let world = World::new().await;
        let (object, part) = world.lend("node-b").await;
        let manifest = gather(&*world.bucket, &NodeId::new("node-b").unwrap(), None).await.unwrap();
        let text = text(&manifest);
        let shown = part.only.iter().map(|range| range.first.to_string()[..8].to_owned());
        for part in shown.chain([object.clone(), "; 1 borrowed".to_owned()]) {
            assert!(text.contains(&part), "{part}: {text}");
        }
        let value = value(&manifest);
        let entries = value["segments"].as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["object"] == object.as_str()).unwrap();
        assert_eq!((&entry["owner"], entry["only"].as_array().unwrap().len()), (&"node-a".into(), 1));
    }

    #[tokio::test]
    async fn what_is_not_there_or_not_readable_is_said() {
        let world = World::new().await;
        let gone = gather(&*world.bucket, &NodeId::new("node-z").unwrap(), None).await.unwrap_err();
        assert!(gone.exit == Exit::Failed && gone.message.contains("node-z has no manifest"), "{gone:?}");
        let node = NodeId::new("node-a").unwrap();
        let gone = gather(&*world.bucket, &node, Some(99)).await.unwrap_err();
        assert!(gone.message.contains("0000000099.json"), "{gone:?}");
        let object = Manifest::object_name(&node, 3);
        let bytes = String::from_utf8(world.bucket.get(&object).await.unwrap().to_vec()).unwrap();
        world.bucket.put(&object, bytes.replace("\"epoch\": 1", "\"epoch\": 2").into()).await.unwrap();
        for version in [None, Some(3)] {
            let damaged = gather(&*world.bucket, &node, version).await.unwrap_err();
            assert!(damaged.message.contains("checksum does not match"), "{damaged:?}");
        }
    }
}
