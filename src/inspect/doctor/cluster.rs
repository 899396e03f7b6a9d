//! Does what lies in the bucket fit together, and can this build read it?

use cartwheel_bucket::{Bucket, BucketError, list_all};
use cartwheel_cluster::membership::{self, MembershipError};
use cartwheel_core::manifest::MANIFEST_FORMAT;
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::{RING_FORMAT, RingDocument};
use cartwheel_segments::hints::hint_prefix;
use cartwheel_segments::inventory::Inventory;

use super::Check;
use crate::inspect::ls;
use crate::inspect::show::utc;

const HOUR_MS: u64 = 3_600_000;
/// So many epochs leased within an hour are those of a process that ends and starts over and over; a start leases
/// two.
const MANY_LEASES: usize = 20;

/// All checks of what lies in the bucket, and the ring's version.
pub(super) async fn checks(bucket: &dyn Bucket, now_ms: u64) -> (Vec<Check>, Option<u64>) {
    let mut checks = Vec::new();
    let mut document = None;
    match membership::read_newest(bucket, 0).await {
        Ok(None) => checks.push(Check::ok("ring document", "none: no cluster lives in this bucket yet")),
        Ok(Some(found)) => {
            checks.push(ring(&found));
            document = Some(found);
        }
        Err(MembershipError::Bucket(error)) => checks.push(unread("ring document", &error)),
        Err(error) => {
            let advice =
                format!("this build reads ring format {RING_FORMAT}: use a newer one, or restore the object");
            // The error begins with the same words, once for each layer.
            let error = error.to_string();
            checks.push(Check::fail("ring document", error.trim_start_matches("ring document: "), advice));
        }
    }
    match nodes(bucket, document.as_ref(), now_ms).await {
        Ok(found) => checks.extend(found),
        Err(error) => checks.push(unread("manifests", &error)),
    }
    (checks, document.map(|d| d.version))
}

fn unread(what: &str, error: &BucketError) -> Check {
    Check::fail(what, error.to_string(), "look at the object store")
}

fn ring(document: &RingDocument) -> Check {
    const WHAT: &str = "ring document";
    let detail = format!(
        "version {}, format {}, {} members",
        document.version,
        document.format,
        document.members.len()
    );
    if document.is_forming() {
        let advice = format!("start more storage nodes: it takes {}", document.replicas);
        return Check::warn(WHAT, format!("{detail}, still forming"), advice);
    }
    if document.has_pending_change() {
        let since = utc(document.changed.at_ms);
        return Check::warn(
            WHAT,
            format!("{detail}, a change pending since {since}"),
            "see `cartwheel status`",
        );
    }
    Check::ok(WHAT, detail)
}

async fn nodes(
    bucket: &dyn Bucket,
    document: Option<&RingDocument>,
    now_ms: u64,
) -> Result<Vec<Check>, BucketError> {
    let (mut checks, mut manifests) = (Vec::new(), 0);
    for id in ls::nodes(bucket).await? {
        let inventory = Inventory::read(bucket, &id).await?;
        manifests += usize::from(inventory.manifest.is_some());
        checks.extend(node(&inventory, document.map(|d| d.member(&id).is_some()), now_ms));
        let hints = list_all(bucket, &hint_prefix(&id)).await?;
        let oldest = hints.iter().map(|hint| hint.modified_ms).min();
        checks.extend(oldest.and_then(|oldest_ms| hint(&id, hints.len(), oldest_ms, document, now_ms)));
    }
    let readable = format!("{manifests} newest manifests can be read, format {MANIFEST_FORMAT}");
    checks.insert(0, Check::ok("manifests", readable));
    Ok(checks)
}

/// What is odd about one node. `member` is `None` if nobody knows who is a member.
fn node(inventory: &Inventory, member: Option<bool>, now_ms: u64) -> Vec<Check> {
    let id = &inventory.node;
    let mut checks = Vec::new();
    if let Some(error) = &inventory.unreadable {
        let advice = format!(
            "this build reads manifest format {MANIFEST_FORMAT}: use a newer one; if it is damaged, the one before it \
             is `cartwheel inspect manifest {id} --version N`"
        );
        checks.push(Check::fail(&format!("manifest of {id}"), error.to_string(), advice));
    }
    if let Some(first) = inventory.missing.first() {
        let detail =
            format!("{} named objects are missing, such as {}", inventory.missing.len(), first.object);
        let advice = "restore them, or let the other homes' copies repair it; see `cartwheel scrub`";
        checks.push(Check::fail(&format!("segments of {id}"), detail, advice));
    }
    let quarantined = inventory.manifest.as_ref().map_or(&[][..], |dated| &dated.manifest.quarantined);
    if let Some(first) = quarantined.first() {
        let lost = quarantined.iter().filter(|quarantined| !quarantined.lost.is_empty()).count();
        let detail = format!(
            "{} damaged objects are quarantined, such as {}; what {lost} of them held is not repaired yet",
            quarantined.len(),
            first.object
        );
        let advice = "find out what damaged them; nothing reads them any more";
        checks.push(Check::warn(&format!("segments of {id}"), detail, advice));
    }
    match member {
        Some(false) if !inventory.objects.is_empty() => {
            let detail = format!("has {} segments and is no member of the ring", inventory.objects.len());
            let advice = format!("nobody reads them; `cartwheel inspect ls {id}` shows them");
            checks.push(Check::warn(&format!("node {id}"), detail, advice));
        }
        Some(true) if inventory.leases.is_empty() => {
            let detail = "is a member and never leased an epoch";
            checks.push(Check::warn(&format!("node {id}"), detail, "was it ever started with this bucket?"));
        }
        _ => {}
    }
    let (newest, leases) = (inventory.newest_lease(), &inventory.leases);
    if let Some(dated) = inventory.manifest.as_ref().filter(|dated| dated.manifest.epoch > newest) {
        let detail =
            format!("its manifest is of epoch {}, the newest lease of {newest}", dated.manifest.epoch);
        let advice =
            "leases were deleted: restore them before it starts again, or it mints dots a second time";
        checks.push(Check::fail(&format!("epochs of {id}"), detail, advice));
    }
    let lately = leases.iter().filter(|lease| lease.modified_ms.saturating_add(HOUR_MS) > now_ms).count();
    if lately >= MANY_LEASES {
        let detail = format!("leased {lately} within an hour");
        let advice = "it ends and starts over and over, or runs twice: look at its log";
        checks.push(Check::warn(&format!("epochs of {id}"), detail, advice));
    }
    checks
}

/// Hints that nobody takes.
fn hint(
    id: &NodeId,
    count: usize,
    oldest_ms: u64,
    document: Option<&RingDocument>,
    now_ms: u64,
) -> Option<Check> {
    let what = format!("hints for {id}");
    if document.is_some_and(|document| document.member(id).is_none()) {
        let detail = format!("{count} objects, and it is no member of the ring");
        return Some(Check::warn(
            &what,
            detail,
            "nobody takes them; `cartwheel scrub` tells whether they can be read",
        ));
    }
    if oldest_ms.saturating_add(HOUR_MS) < now_ms {
        let detail = format!("{count} objects wait since {}", utc(oldest_ms));
        return Some(Check::warn(&what, detail, format!("is {id} away? It takes them when it is back")));
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cartwheel_core::manifest::Manifest;

    use super::super::Level;
    use super::*;
    use crate::inspect::testing::World;

    const NOW: u64 = 1_700_000_100_000;

    async fn of(world: &World) -> Vec<Check> {
        checks(&*world.bucket, NOW).await.0
    }

    fn words(checks: &[Check], level: Level) -> String {
        let chosen = checks.iter().filter(|check| check.level == level);
        chosen.map(|check| format!("{}: {} → {}\n", check.what, check.detail, check.advice)).collect()
    }

    #[tokio::test]
    async fn a_healthy_cluster_and_an_empty_bucket_pass() {
        let world = World::new().await;
        let (checks, version) = checks(&*world.bucket, NOW).await;
        assert_eq!(
            (words(&checks, Level::Warn), words(&checks, Level::Fail)),
            (String::new(), String::new())
        );
        assert!(words(&checks, Level::Ok).contains("2 newest manifests can be read, format 1"), "{checks:?}");
        assert_eq!(version, Some(1));
        let (checks, version) = super::checks(&cartwheel_bucket::MemoryBucket::new(), NOW).await;
        assert!(version.is_none() && checks.iter().all(|check| check.level == Level::Ok), "{checks:?}");
    }

    #[tokio::test]
    async fn what_can_not_be_read_fails() {
        let world = World::new().await;
        let node = NodeId::new("node-b").unwrap();
        let newer = String::from_utf8(world.manifest("node-b", 1).await.to_json()).unwrap();
        let newer = newer.replace("\"format\": 1", "\"format\": 2");
        world.bucket.put(&Manifest::object_name(&node, 2), newer.into()).await.unwrap();
        let ring = String::from_utf8(world.bucket.get(&RingDocument::object_name(1)).await.unwrap().to_vec())
            .unwrap();
        world
            .bucket
            .put(&RingDocument::object_name(2), ring.replace("\"format\": 1", "\"format\": 2").into())
            .await
            .unwrap();
        world.bucket.delete(&world.compacted[0]).await.unwrap();
        let words = words(&of(&world).await, Level::Fail);
        for part in [
            "ring document: format is 2",
            "manifest has format 2; this build reads 1",
            "1 named objects are missing",
        ] {
            assert!(words.contains(part), "{part}: {words}");
        }
    }

    #[tokio::test]
    async fn strangers_and_odd_epochs_are_told() {
        let world = World::new().await;
        world.put_ring(&["node-a", "node-c", "node-d"]).await;
        world.bucket.delete("nodes/node-a/epochs/0000000001.json").await.unwrap();
        for epoch in 2..30 {
            world.bucket.put(&format!("nodes/node-c/epochs/{epoch:010}.json"), "{}".into()).await.unwrap();
        }
        let hint = "hints/node-z/node-c-0000000002-00000000000000ab/0000000001.seg";
        world.bucket.put(hint, "x".into()).await.unwrap();
        let checks = of(&world).await;
        let fails = words(&checks, Level::Fail);
        assert!(fails.contains("its manifest is of epoch 1, the newest lease of 0"), "{fails}");
        let warns = words(&checks, Level::Warn);
        for part in [
            "node node-b: has 1 segments and is no member",
            "node node-d: is a member and never leased",
            "epochs of node-c: leased 29 within an hour",
            "hints for node-z: 1 objects, and it is no member",
        ] {
            assert!(warns.contains(part), "{part}: {warns}");
        }
        let late = words(&super::checks(&*world.bucket, NOW + 2 * HOUR_MS).await.0, Level::Warn);
        assert!(late.contains("hints for node-a: 1 objects wait since 2023-11-14"), "{late}");
    }
}
