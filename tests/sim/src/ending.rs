//! The end of a simulation: everybody counts, nobody keeps anything for others, all homes of a partition hold the same,
//! every write is there, and nothing is left in the bucket that nobody needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cartwheel_bucket::list_all;
use cartwheel_cluster::membership;
use cartwheel_cluster::peer::Peers;
use cartwheel_core::merkle::Span;
use cartwheel_core::ring::Ring;
use cartwheel_core::wire::{Call, Repair, Reply, Request};
use cartwheel_segments::pins::Pin;
use tokio::time::Instant;

use crate::claims::Ask;
use crate::client::{Client, Shared, now};
use crate::cluster::Place;
use crate::report::Check;
use crate::world::pass;

/// How long it may take until nobody keeps anything for others: a home looks at the bucket twice a minute.
const SETTLED: Duration = Duration::from_secs(45);
/// How long what was borrowed may take to be rewritten and let go of.
const LET_GO: Duration = Duration::from_secs(120);
/// How long a call may take.
const CALLED: Duration = Duration::from_secs(5);
/// The most manifests that a node may keep.
const MANIFESTS: usize = 64;
/// How long a key may take to be readable.
const READABLE: Duration = Duration::from_secs(10);

/// A simulation that comes to its end.
pub struct End {
    /// What all clients share.
    pub shared: Arc<Shared>,
    /// Where they are.
    pub place: Place,
    /// Do the homes compare what they hold by themselves?
    pub repairs: bool,
}

/// Looks at all of it.
pub async fn look(scene: &End) {
    let mut reader = Client::new("reader", scene.shared.clone());
    let peers = scene.place.peers("reader");
    let amiss = until(SETTLED, || unsettled(scene, &peers)).await;
    complain(scene, Check::Unsettled, "not settled", amiss);
    scene.shared.settled.lock().get_or_insert_with(now);
    if !scene.repairs {
        // Nobody has mended yet what the change left.
        read_all(scene, &mut reader, &Ask::default()).await;
        begin_to_repair(scene, &peers).await;
    }
    let amiss = until(SETTLED, || unequal(scene, &peers)).await;
    complain(scene, Check::Unequal, "homes of one partition hold different things", amiss);
    read_all(scene, &mut reader, &Ask::at_rest()).await;
    let amiss = until(LET_GO, || pins(scene)).await;
    complain(scene, Check::Objects, "pins are left", amiss);
    if scene.place.deletes_after() < LET_GO / 4 {
        let amiss = until(LET_GO, || async { left_over(scene) }).await;
        complain(scene, Check::Objects, "objects are left that nobody needs", amiss);
    }
}

async fn read_all(scene: &End, reader: &mut Client, ask: &Ask) {
    let keys = scene.shared.checker.lock().keys();
    for key in keys {
        let give_up = now() + READABLE;
        while reader.try_read(&key, ask).await.is_none() {
            if now() > give_up {
                complain(scene, Check::Answer, "can't be read", vec![format!("{key}{}", ask.of_read())]);
                break;
            }
            pass(Duration::from_millis(200)).await;
        }
    }
}

/// Has every node compare what it holds with the other homes.
async fn begin_to_repair(scene: &End, peers: &Peers) {
    let ring = membership::read_newest(&*scene.shared.objects, 0).await.unwrap().unwrap();
    for member in &ring.members {
        let begin = Request::Repair(Repair::Begin { partition: None });
        let reply = call(peers, &member.address, ring.version, begin).await;
        if reply != Some(Reply::Hello) {
            complain(
                scene,
                Check::Answer,
                "does not begin to compare",
                vec![format!("{}: {reply:?}", member.id)],
            );
        }
    }
}

fn complain(scene: &End, check: Check, what: &str, amiss: Vec<String>) {
    if !amiss.is_empty() {
        let many = amiss.len();
        let few: Vec<String> = amiss.into_iter().take(6).collect();
        let what = format!("{:.3} s: {what} ({many}): {few:?}", now().as_secs_f64());
        scene.shared.trace.line("reader", &format!("VIOLATION {what}"));
        scene.shared.checker.lock().violate(check, what);
    }
}

/// What is still amiss after so long.
async fn until<F: Future<Output = Vec<String>>>(patience: Duration, amiss: impl Fn() -> F) -> Vec<String> {
    let give_up = now() + patience;
    loop {
        let found = amiss().await;
        if found.is_empty() || now() > give_up {
            return found;
        }
        pass(Duration::from_millis(500)).await;
    }
}

async fn call(peers: &Peers, address: &str, version: u64, request: Request) -> Option<Reply> {
    let call = Call { ring_version: version, request };
    peers.call(address, &call, Instant::now() + CALLED).await.ok().map(|answer| answer.reply)
}

async fn unsettled(scene: &End, peers: &Peers) -> Vec<String> {
    let ring = membership::read_newest(&*scene.shared.objects, 0).await.unwrap().unwrap();
    let mut amiss = Vec::new();
    if ring.has_pending_change() {
        amiss.push("a change is pending".to_owned());
    }
    for member in &ring.members {
        let Some(Reply::Status(status)) = call(peers, &member.address, ring.version, Request::Status).await
        else {
            amiss.push(format!("{} does not answer", member.id));
            continue;
        };
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        for (name, wanted) in [
            ("standing", serde_json::json!("counting")),
            ("partitions_not_held", serde_json::json!(0)),
            ("hints", serde_json::json!([])),
            ("ring_version", serde_json::json!(ring.version)),
            ("index_complete", serde_json::json!(true)),
        ] {
            if status[name] != wanted {
                amiss.push(format!("{}: {name} is {}", member.id, status[name]));
            }
        }
    }
    let hints = list_all(&*scene.shared.objects, "hints/").await.unwrap();
    amiss.extend(hints.into_iter().map(|object| object.key));
    amiss
}

/// Partitions whose homes' sums differ.
async fn unequal(scene: &End, peers: &Peers) -> Vec<String> {
    let document = membership::read_newest(&*scene.shared.objects, 0).await.unwrap().unwrap();
    let ring = Ring::current(&document);
    let mut sums: BTreeMap<u32, Vec<(String, String)>> = BTreeMap::new();
    let mut amiss = Vec::new();
    for member in &document.members {
        let partitions = ring.partitions_of(&member.id);
        let spans = partitions.iter().map(|p| Span::of_partition(*p, ring.partitions())).collect();
        let asked = Request::Repair(Repair::Sums { spans, depth: 0 });
        match call(peers, &member.address, document.version, asked).await {
            Some(Reply::Sums(theirs)) => {
                for (partition, sum) in partitions.into_iter().zip(theirs) {
                    sums.entry(partition).or_default().push((member.id.to_string(), format!("{sum:?}")));
                }
            }
            other => amiss.push(format!("{} answers {other:?}", member.id)),
        }
    }
    let differ = |all: &Vec<(String, String)>| all.windows(2).any(|pair| pair[0].1 != pair[1].1);
    for (partition, all) in sums.into_iter().filter(|(_, all)| differ(all)) {
        let homes: BTreeSet<String> = all.into_iter().map(|(home, _)| home).collect();
        let members = document.members.iter().filter(|member| homes.contains(member.id.as_str()));
        // What each has that not all have.
        let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for member in members {
            let spans = vec![Span::of_partition(partition, ring.partitions())];
            let asked = Request::Repair(Repair::Clocks { spans, after: None, bytes: 1 << 20 });
            let reply = call(peers, &member.address, document.version, asked).await;
            let Some(Reply::Clocks { clocks, .. }) = reply else { continue };
            for (hash, clock) in clocks {
                seen.entry(format!("{hash} {clock}")).or_default().push(member.id.to_string());
            }
        }
        let odd = seen.into_iter().filter(|(_, holders)| holders.len() < homes.len());
        let odd: Vec<String> = odd.map(|(what, holders)| format!("{what} at {holders:?}")).collect();
        amiss.push(format!("partition {partition} of {homes:?}: {odd:?}"));
    }
    amiss
}

/// Pins of members on objects of members. Where a node died while it held some, or left before it let go of them, or the
/// owner of the objects did, they stay.
async fn pins(scene: &End) -> Vec<String> {
    let ring = membership::read_newest(&*scene.shared.objects, 0).await.unwrap().unwrap();
    let of_a_member = |key: &String| {
        let is_member = |id: &str| ring.members.iter().any(|member| member.id.as_str() == id);
        let (Some(owner), Some((_, file))) = (key.split('/').nth(1), key.split_once("/pins/")) else {
            return false;
        };
        is_member(owner) && is_member(file.rsplit_once('-').unwrap_or_default().0)
    };
    let objects = list_all(&*scene.shared.objects, "nodes/").await.unwrap();
    objects.into_iter().map(|object| object.key).filter(of_a_member).collect()
}

/// What members have in the bucket and no manifest names, though all is well for so long: segments of merges that came to
/// nothing, what was dropped, trees that were replaced.
///
/// What nodes leave that are no members any more stays, and so do the small marks that each epoch and each step of a ring
/// change leaves: nothing promises that they go.
fn left_over(scene: &End) -> Vec<String> {
    let sight = &scene.shared.sight;
    let Some(ring) = sight.ring() else { return vec!["there is no ring".to_owned()] };
    let mut named = BTreeSet::new();
    let mut left: Vec<String> = Vec::new();
    let pins = sight.names("nodes/").into_iter().filter(|name| name.contains("/pins/"));
    let pins = pins.filter_map(|name| serde_json::from_slice::<Pin>(&sight.object(&name)?).ok());
    let pinned: BTreeSet<String> = pins.flat_map(|pin| pin.objects).collect();
    for node in sight.nodes() {
        let Some(manifest) = sight.manifest(&node) else { continue };
        named.extend(manifest.segments.into_iter().chain(manifest.graves).map(|entry| entry.object));
        if ring.document.members.iter().any(|member| member.id.as_str() == node) {
            let dropped = manifest.dropped.into_iter().filter(|d| !pinned.contains(&d.object));
            left.extend(dropped.map(|d| format!("{} is dropped", d.object)));
        }
    }
    for member in &ring.document.members {
        let id = &member.id;
        for folder in ["c", "g"] {
            let there = sight.names(&format!("nodes/{id}/{folder}/"));
            left.extend(there.into_iter().filter(|o| !named.contains(o) && !pinned.contains(o)));
        }
        let trees = sight.names(&format!("nodes/{id}/merkle/"));
        if trees.len() > 2 {
            left.push(format!("{} trees of {id}", trees.len()));
        }
        let manifests = sight.names(&format!("nodes/{id}/manifest/"));
        if manifests.len() > MANIFESTS {
            left.push(format!("{} manifests of {id}", manifests.len()));
        }
    }
    left
}
