//! What lies in the bucket, read as a whole: segments by all who read them, snapshots of trees, pins, and the names
//! of objects.

use std::sync::Arc;

use bytes::Bytes;

use cartwheel_bucket::{BucketUrl, MemoryBucket, SharedBucket};
use cartwheel_core::hash::KeyHash;
use cartwheel_core::manifest::{Manifest, flush_of_object, owner_of_object};
use cartwheel_core::merkle::Tree;
use cartwheel_core::namespace::NamespaceDocument;
use cartwheel_core::ring::RingDocument;
use cartwheel_segments::hints::{hint_object, parse_hint_object};
use cartwheel_segments::inventory::Kind;
use cartwheel_segments::pins::Pin;
use cartwheel_segments::trees::{bucket_tree, decode_tree, encode_tree, flush_of_tree, tree_object};
use cartwheel_segments::verify::verify;
use cartwheel_segments::{Cursor, RecordKey, Segments, records_of};
use tokio::runtime::Runtime;

use crate::formats::{BINARY, JSON, mend_segment_tail, mend_sum};
use crate::harness::{Budget, Fate, Target, says_why, within};
use crate::samples::{self, HASH_SEED, golden};

/// Beside what is read: two Merkle trees and a snapshot of one, a block cache with nothing in it, a store that copies,
/// and runs of blocks read at once.
const OBJECT: Budget = Budget { fixed: 4 << 20, per_byte: 256 };

pub(crate) fn targets() -> Vec<Target> {
    vec![segment(), tree(), pin(), object_names(), bucket_url()]
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A segment of a node: also what a hint object is.
fn segment() -> Target {
    let mut corpus: Vec<Vec<u8>> = [(1, 0), (20, 10), (60, 2000)]
        .iter()
        .map(|(records, bytes)| samples::segment(*records, *bytes).bytes.to_vec())
        .collect();
    corpus.push(golden("segment-v1.bin"));
    let runtime = runtime();
    let target = Target::new("segment", corpus, move |input| {
        let object = Bytes::copy_from_slice(input);
        within(OBJECT, input.len(), || runtime.block_on(read_all(object)))?
    });
    target.mended(mend_segment).costs(4).up_to(192 * 1024)
}

/// Mends the tail and, as far as the footer can be followed, all other checksums.
fn mend_segment(input: &mut Vec<u8>) {
    mend_segment_tail(input, 0);
}

/// Everybody who reads segments reads this one.
async fn read_all(object: Bytes) -> Result<Fate, String> {
    let (name, size) = ("nodes/node-a/f/0000000001-cafe/0000000001.seg".to_owned(), object.len() as u64);
    let bucket: SharedBucket = Arc::new(MemoryBucket::new());
    bucket.put(&name, object.clone()).await.unwrap();
    let snapshot = tree_object(&samples::node("node-a"), "0000000001-cafe", 0);
    bucket.put(&snapshot, encode_tree(&Tree::default())).await.unwrap();

    let records = records_of(&object);
    let verified = verify(&*bucket, &name, size, None, Some(HASH_SEED)).await.map_err(|e| e.to_string())?;
    let segments = Segments::new(Arc::clone(&bucket), 1 << 20);
    let segment = segments.open(name, size, None, None);
    segments.push(Arc::clone(&segment));
    let mut errors: Vec<String> = Vec::new();
    let (namespace, key) = samples::names("key-0");
    let place = RecordKey::new(KeyHash::of(HASH_SEED, &namespace, &key), &namespace, &key);
    errors.extend(segments.read(&place, None).await.err().map(|e| e.to_string()));
    errors.extend(segments.find(place.hash, HASH_SEED).await.err().map(|e| e.to_string()));
    let all = (KeyHash(0), KeyHash(u128::MAX));
    errors.extend(segments.scan(all.0, all.1, None, 2, (None, HASH_SEED)).await.err().map(|e| e.to_string()));
    errors.extend(segments.entries(&segments.all()).await.err().map(|e| e.to_string()));
    for after in [None, Some(place.hash)] {
        let mut read = 0;
        let outcome = async {
            let mut cursor = Cursor::open(&bucket, &segment, HASH_SEED, after).await?;
            while cursor.next().await?.is_some() {
                read += 1;
            }
            Ok::<_, cartwheel_segments::SegmentError>(())
        };
        match outcome.await {
            // Whoever reads all of it without an error has what the verification calls sound.
            Ok(()) if after.is_none() && records.as_ref().is_ok_and(|records| records.len() != read) => {
                return Err(format!("a cursor gave {read} records of {:?}", records.map(|r| r.len())));
            }
            Ok(()) => {}
            Err(error) => errors.push(error.to_string()),
        }
    }
    if let Err(error) = &records {
        errors.push(error.to_string());
    }
    if verified.is_sound() && !errors.is_empty() && records.is_ok() {
        // The golden segment's records are no records of ours; the verification says so too.
        return Err(format!("sound, but not readable: {}", errors.join("; ")));
    }
    // The verification does not look at the changes to the Merkle tree: a segment may be sound without them.
    errors.extend(bucket_tree(&bucket, &samples::node("node-a")).await.err().map(|e| e.to_string()));
    for error in &errors {
        says_why(error)?;
    }
    Ok(if records.is_ok() { Fate::Taken } else { Fate::Refused })
}

fn tree() -> Target {
    let corpus = vec![encode_tree(&samples::tree()).to_vec()];
    fn read(input: &[u8]) -> Result<Tree, cartwheel_core::codec::DecodeError> {
        decode_tree(&Bytes::copy_from_slice(input))
    }
    Target::codec("tree-snapshot", BINARY, corpus, (read, |tree| encode_tree(tree).to_vec(), |_| {}))
        .mended(mend_sum)
        .costs(100)
        .up_to(2 * Tree::BYTES)
}

fn pin() -> Target {
    let pin = Pin {
        holder: samples::node("node-b"),
        nonce: "cafe".to_owned(),
        objects: ["nodes/node-a/f/x/1.seg".to_owned(), String::new()].into(),
    };
    fn read(input: &[u8]) -> Result<Pin, serde_json::Error> {
        serde_json::from_slice(input)
    }
    fn put_to_use(pin: &Pin) {
        let _ = pin.object_name(&samples::node("node-a"));
    }
    let corpus = vec![serde_json::to_vec_pretty(&pin).unwrap()];
    Target::codec("pin", JSON, corpus, (read, |pin| serde_json::to_vec(pin).unwrap(), put_to_use))
}

/// What a listing of the bucket brings: a name is one of ours only if we would write it so.
fn object_names() -> Target {
    let corpus = [
        "ring/0000000003.json",
        "namespaces/carts/0000000003.json",
        "nodes/node-a/f/0000000001-cafe/0000000001.seg",
        "nodes/node-a/c/0123456789abcdef/0000000001.seg",
        "nodes/node-a/g/0123456789abcdef/0000000001.seg",
        "nodes/node-a/manifest/0000000001.json",
        "nodes/node-a/merkle/0000000001-cafe/0000000009.tree",
        "hints/node-a/node-b-0000000007-0123456789abcdef/0000000001.seg",
    ];
    Target::new("object-name", corpus.iter().map(|name| name.as_bytes().to_vec()).collect(), |input| {
        let Ok(name) = std::str::from_utf8(input) else { return Ok(Fate::Refused) };
        let is = |written: String, what: &str| {
            if written == name { Ok(()) } else { Err(format!("{what}: read {name:?}, writes {written:?}")) }
        };
        let mut known = Kind::of_object(name).is_some() || owner_of_object(name).is_some();
        known |= flush_of_object(name).is_some() || Manifest::version_of_object(name).is_some();
        if let Some(version) = RingDocument::version_of_object(name) {
            is(RingDocument::object_name(version), "ring document")?;
            known = true;
        }
        if let Some((namespace, version)) = NamespaceDocument::parse_object(name) {
            is(NamespaceDocument::object_name(&namespace, version), "namespace document")?;
            known = true;
        }
        if let Some(hint) = parse_hint_object(name) {
            is(hint_object(&hint.home, &hint.label, hint.n), "hint")?;
            known = true;
        }
        known |= flush_of_tree(&samples::node("node-a"), name).is_some();
        Ok(if known { Fate::Taken } else { Fate::Refused })
    })
}

fn bucket_url() -> Target {
    let corpus = ["s3://name", "s3://my.bucket-1/", "s3://name/some/pre_fix/"];
    fn read(input: &[u8]) -> Result<BucketUrl, String> {
        let text = std::str::from_utf8(input).map_err(|e| format!("not UTF-8: {e}"))?;
        BucketUrl::parse(text).map_err(|e| e.to_string())
    }
    let corpus = corpus.iter().map(|url| url.as_bytes().to_vec()).collect();
    Target::codec("bucket-url", JSON, corpus, (read, |url| url.to_string().into_bytes(), |_| {}))
}
