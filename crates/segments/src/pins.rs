//! Pins: objects of a node that somebody else reads, and that must not be deleted meanwhile.
//!
//! Whoever pins puts the pin first and then reads the node's newest manifest: if that still names the objects, they
//! stay until the pin is let go of, for the node looks for pins after it has dropped an object and before it deletes it.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use cartwheel_bucket::{Bucket, BucketError, list_all};
use cartwheel_core::names::NodeId;

use crate::manifests::{ManifestReadError, newest};

/// `nodes/{id}/pins/{holder}-{nonce}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Who reads them.
    pub holder: NodeId,
    /// Makes this pin unlike any other of the holder's.
    pub nonce: String,
    /// The objects.
    pub objects: BTreeSet<String>,
}

impl Pin {
    /// The object that holds this pin on objects of `node`.
    #[must_use]
    pub fn object_name(&self, node: &NodeId) -> String {
        format!("{}{}-{}.json", prefix(node), self.holder, self.nonce)
    }
}

fn prefix(node: &NodeId) -> String {
    format!("nodes/{node}/pins/")
}

/// Pins objects of `node`. `false` if its newest manifest does not name all of them any more: then nothing is pinned.
///
/// # Errors
/// [`ManifestReadError`]; the pin may stand then, and is to be let go of.
pub async fn pin(bucket: &dyn Bucket, node: &NodeId, pin: &Pin) -> Result<bool, ManifestReadError> {
    let object = pin.object_name(node);
    let body = serde_json::to_vec_pretty(pin).unwrap_or_default();
    bucket.put(&object, Bytes::from(body)).await?;
    let named: BTreeSet<String> = match newest(bucket, node).await? {
        Some(manifest) => manifest.segments.into_iter().map(|entry| entry.object).collect(),
        None => BTreeSet::new(),
    };
    let held = pin.objects.is_subset(&named);
    if !held {
        bucket.delete(&object).await?;
    }
    Ok(held)
}

/// Lets go of a pin.
///
/// # Errors
/// Those of the bucket; it stands then.
pub async fn unpin(bucket: &dyn Bucket, node: &NodeId, pin: &Pin) -> Result<(), BucketError> {
    bucket.delete(&pin.object_name(node)).await
}

/// All objects of `node` that anybody has pinned.
///
/// # Errors
/// Those of the bucket; [`BucketError::Refused`] if a pin can't be read, for it may be about anything.
pub async fn pinned(bucket: &dyn Bucket, node: &NodeId) -> Result<BTreeSet<String>, BucketError> {
    let mut pinned = BTreeSet::new();
    for listed in list_all(bucket, &prefix(node)).await? {
        let bytes = match bucket.get(&listed.key).await {
            Ok(bytes) => bytes,
            Err(BucketError::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        let pin: Pin = serde_json::from_slice(&bytes).map_err(|error| BucketError::Refused {
            key: listed.key,
            status: 500,
            code: "UnreadablePin".to_owned(),
            detail: error.to_string(),
        })?;
        pinned.extend(pin.objects);
    }
    Ok(pinned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cartwheel_bucket::MemoryBucket;
    use cartwheel_core::hash::KeyHash;
    use cartwheel_core::manifest::{Manifest, SegmentEntry};

    use super::*;

    async fn publish(bucket: &MemoryBucket, node: &NodeId, version: u64, objects: &[&str]) {
        let entry = |object: &&str| SegmentEntry {
            object: (*object).to_owned(),
            bytes: 1,
            tail_offset: 0,
            records: 1,
            first: KeyHash(0),
            last: KeyHash(1),
            run: String::new(),
            born_ms: 0,
        };
        let segments = objects.iter().map(entry).collect();
        let manifest = Manifest { segments, ..Manifest::new(node.clone(), version, 1, "x".into(), 0) };
        bucket.put(&Manifest::object_name(node, version), manifest.to_json().into()).await.unwrap();
    }

    #[tokio::test]
    async fn a_pin_holds_only_what_the_newest_manifest_names() {
        let (bucket, node) = (MemoryBucket::new(), NodeId::new("a").unwrap());
        publish(&bucket, &node, 1, &["one", "two"]).await;
        let on = |nonce: &str, objects: &[&str]| Pin {
            holder: NodeId::new("b").unwrap(),
            nonce: nonce.to_owned(),
            objects: objects.iter().map(|o| (*o).to_owned()).collect(),
        };
        let (both, one) = (on("1", &["one", "two"]), on("2", &["one"]));
        assert!(pin(&bucket, &node, &both).await.unwrap());
        publish(&bucket, &node, 2, &["two", "three"]).await;
        assert!(!pin(&bucket, &node, &one).await.unwrap(), "it was dropped meanwhile");
        assert_eq!(pinned(&bucket, &node).await.unwrap(), both.objects, "what was pinned before stays so");
        unpin(&bucket, &node, &both).await.unwrap();
        assert!(pinned(&bucket, &node).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_pin_that_cannot_be_read_is_an_error() {
        let (bucket, node) = (MemoryBucket::new(), NodeId::new("a").unwrap());
        bucket.put("nodes/a/pins/b-1.json", Bytes::from_static(b"{")).await.unwrap();
        assert!(pinned(&bucket, &node).await.is_err());
    }
}
