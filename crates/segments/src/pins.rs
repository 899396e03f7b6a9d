//! Pins: objects of a node that somebody else reads, and that must not be deleted meanwhile.
//!
//! Whoever pins puts the pin first and then reads the node's newest manifest: if that still names the objects, they
//! stay until the pin is let go of, for the node looks for pins after it has dropped an object and before it deletes it.
//!
//! A node may name objects of a third one that it has borrowed. They are pinned with their owner, the only one who may
//! delete them, and the manifest to read again is that of the node that borrowed them: while it names them its own pin
//! stands, and has stood since before they were dropped.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use cartwheel_bucket::{Bucket, BucketError, list_all};
use cartwheel_core::names::NodeId;

use crate::manifests::{ManifestReadError, newest};

/// How often pins are listed, if they come and go meanwhile.
const MAX_LISTS: usize = 16;

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
    pin_all(bucket, node, &[(node.clone(), pin.clone())]).await
}

/// Puts pins, each on objects of the node beside it, all of which were found in the manifest of `of`. `false` if that
/// does not name all of them any more: then nothing is pinned.
///
/// # Errors
/// [`ManifestReadError`]; the pins may stand then, and are to be let go of.
pub async fn pin_all(
    bucket: &dyn Bucket,
    of: &NodeId,
    pins: &[(NodeId, Pin)],
) -> Result<bool, ManifestReadError> {
    for (node, pin) in pins {
        let body = serde_json::to_vec_pretty(pin).unwrap_or_default();
        bucket.put(&pin.object_name(node), Bytes::from(body)).await?;
    }
    // After the last of them stands.
    let named: BTreeSet<String> = match newest(bucket, of).await? {
        Some(manifest) => {
            manifest.segments.into_iter().chain(manifest.graves).map(|entry| entry.object).collect()
        }
        None => BTreeSet::new(),
    };
    let held = pins.iter().all(|(_, pin)| pin.objects.is_subset(&named));
    if !held {
        for (node, pin) in pins {
            unpin(bucket, node, pin).await?;
        }
    }
    Ok(held)
}

/// The pins that `holder` has on objects of `node`. One that can't be read is passed over.
///
/// # Errors
/// Those of the bucket.
pub async fn pins_of(bucket: &dyn Bucket, node: &NodeId, holder: &NodeId) -> Result<Vec<Pin>, BucketError> {
    let mut pins = Vec::new();
    for listed in list_all(bucket, &format!("{}{holder}-", prefix(node))).await? {
        let bytes = match bucket.get(&listed.key).await {
            Ok(bytes) => bytes,
            Err(BucketError::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        // The name of another holder may begin with that of this one.
        let pin = serde_json::from_slice::<Pin>(&bytes).ok();
        pins.extend(pin.filter(|pin| pin.holder == *holder && pin.object_name(node) == listed.key));
    }
    Ok(pins)
}

/// The pins that `holder` has on objects of `node` and that can't be read.
///
/// # Errors
/// Those of the bucket.
pub async fn unreadable_pins_of(
    bucket: &dyn Bucket,
    node: &NodeId,
    holder: &NodeId,
) -> Result<Vec<String>, BucketError> {
    let own = format!("{}{holder}-", prefix(node));
    let mut unreadable = Vec::new();
    for listed in list_all(bucket, &own).await? {
        // The name of another holder may begin with that of this one; a nonce is 16 hex digits.
        let nonce = listed.key[own.len()..].strip_suffix(".json").unwrap_or_default();
        if nonce.len() != 16 || !nonce.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            continue;
        }
        match bucket.get(&listed.key).await {
            Ok(bytes) if serde_json::from_slice::<Pin>(&bytes).is_ok() => {}
            Ok(_) => unreadable.push(listed.key),
            Err(BucketError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(unreadable)
}

/// Puts a pin again that was damaged.
///
/// # Errors
/// Those of the bucket.
pub async fn put_again(bucket: &dyn Bucket, node: &NodeId, pin: &Pin) -> Result<(), BucketError> {
    let body = serde_json::to_vec_pretty(pin).unwrap_or_default();
    bucket.put(&pin.object_name(node), Bytes::from(body)).await
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
/// Those of the bucket; [`BucketError::Refused`] if a pin can't be read, for it may be about anything;
/// [`BucketError::Unavailable`] if pins come and go all the time.
pub async fn pinned(bucket: &dyn Bucket, node: &NodeId) -> Result<BTreeSet<String>, BucketError> {
    let names = || async {
        let listed = list_all(bucket, &prefix(node)).await?;
        Ok::<Vec<String>, BucketError>(listed.into_iter().map(|listed| listed.key).collect())
    };
    let mut listed = names().await?;
    for _ in 0..MAX_LISTS {
        let mut pinned = BTreeSet::new();
        for key in &listed {
            let bytes = match bucket.get(key).await {
                Ok(bytes) => bytes,
                Err(BucketError::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            };
            let pin: Pin = serde_json::from_slice(&bytes).map_err(|error| BucketError::Refused {
                key: key.clone(),
                status: 500,
                code: "UnreadablePin".to_owned(),
                detail: error.to_string(),
            })?;
            pinned.extend(pin.objects);
        }
        // Who borrows what another one has borrowed puts its pin before that one's goes: seen together, one of them is
        // there. One after the other, both may be missed.
        let again = names().await?;
        if again == listed {
            return Ok(pinned);
        }
        listed = again;
    }
    let detail = format!("pins on {node} changed {MAX_LISTS} times while they were read");
    Err(BucketError::Unavailable { key: prefix(node), detail })
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
            only: Vec::new(),
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

    /// What a borrower names is its owner's: pinned there, read again here.
    #[tokio::test]
    async fn what_is_borrowed_is_pinned_with_its_owner() {
        let bucket = MemoryBucket::new();
        let [owner, between, holder] = ["a", "b", "b-c"].map(|id| NodeId::new(id).unwrap());
        publish(&bucket, &owner, 1, &[]).await;
        publish(&bucket, &between, 1, &["nodes/a/x", "nodes/b/y"]).await;
        let on = |objects: &[&str]| Pin {
            holder: holder.clone(),
            nonce: "1".to_owned(),
            objects: objects.iter().map(|o| (*o).to_owned()).collect(),
        };
        let pins = [(owner.clone(), on(&["nodes/a/x"])), (between.clone(), on(&["nodes/b/y"]))];
        assert!(pin_all(&bucket, &between, &pins).await.unwrap());
        assert_eq!(pinned(&bucket, &owner).await.unwrap(), pins[0].1.objects);
        assert_eq!(pins_of(&bucket, &owner, &holder).await.unwrap(), [pins[0].1.clone()]);
        assert_eq!(pins_of(&bucket, &between, &holder).await.unwrap(), [pins[1].1.clone()]);
        assert_eq!(
            pins_of(&bucket, &owner, &between).await.unwrap(),
            [],
            "its name only begins like the other"
        );
        publish(&bucket, &between, 2, &["nodes/b/y"]).await;
        let more: Vec<_> = pins
            .iter()
            .map(|(node, pin)| (node.clone(), Pin { nonce: "2".to_owned(), ..pin.clone() }))
            .collect();
        assert!(!pin_all(&bucket, &between, &more).await.unwrap());
        assert_eq!(pins_of(&bucket, &between, &holder).await.unwrap().len(), 1, "and no half of it stays");
    }

    #[tokio::test]
    async fn a_pin_that_cannot_be_read_is_an_error() {
        let (bucket, node) = (MemoryBucket::new(), NodeId::new("a").unwrap());
        bucket.put("nodes/a/pins/b-1.json", Bytes::from_static(b"{")).await.unwrap();
        assert!(pinned(&bucket, &node).await.is_err());
    }
}
