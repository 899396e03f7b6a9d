//! `GET /v1/cluster/ring`: who holds what, how even that is, and how far a pending change has come.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use http::Response;
use serde_json::{Value, json};
use tokio::time::timeout;

use cartwheel_cluster::membership::{self, View};
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::change::pending;
use cartwheel_core::ring::{Ring, Share};

use crate::Shared;
use crate::cluster_api::{answer, members};
use crate::coordinate::usable_view;
use crate::problem::Problem;

/// How long the bucket may take to say who is ready.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Answers with members, their shares, and the homes of every partition.
pub(crate) async fn ring(State(shared): State<Arc<Shared>>) -> Response<Body> {
    answer(value(&shared).await)
}

async fn value(shared: &Shared) -> Result<Value, Problem> {
    let view = usable_view(shared)?;
    let (document, ring) = (&view.document, &view.current);
    let said = members(shared, document).await;
    let calls = |said: &Value| said["calls_per_second"].as_f64();
    let all_calls: f64 = said.iter().filter_map(calls).sum();
    let all_keys: u64 = said.iter().filter_map(|m| m["keys"].as_u64()).sum();
    let members: Vec<Value> = document
        .members
        .iter()
        .zip(said)
        .map(|(member, said)| {
            let held = share(ring, &member.id);
            let mut value = json!({
                "id": member.id,
                "zone": member.zone,
                "weight": member.weight,
                "state": member.state,
                "reachable": said["reachable"],
                "partitions": held.map_or(0, |s| s.slots),
                "share": held.map_or(0.0, |s| f64::from(s.slots) / slots(ring)),
                "fair_share": held.map_or(0.0, |s| s.fair_milli as f64 / 1000.0 / slots(ring)),
                "tokens": document.tokens * member.weight,
                "keys": said["keys"],
                "key_share": said["keys"].as_u64().filter(|_| all_keys > 0).map(|keys| keys as f64 / all_keys as f64),
                "calls_per_second": calls(&said),
                "load_share": calls(&said).filter(|_| all_calls > 0.0).map(|calls| calls / all_calls),
            });
            for field in ["becomes", "dead", "segment_bytes", "memtable_bytes"] {
                if !said[field].is_null() {
                    value[field] = said[field].clone();
                }
            }
            if document.has_pending_change() {
                value["next_partitions"] = share(&view.next, &member.id).map_or(0, |s| s.slots).into();
            }
            value
        })
        .collect();
    let id = |index: &u16| ring.member(*index).map(|m| m.id.as_str()).unwrap_or_default();
    let owners: Vec<Vec<&str>> =
        (0..ring.partitions()).map(|p| ring.homes(p).iter().map(id).collect()).collect();
    Ok(json!({
        "version": view.version(),
        "partitions": ring.partitions(),
        "replicas": ring.replicas(),
        "hash_seed": format!("{:016x}", document.hash_seed),
        "efficiency_permille": ring.efficiency_permille(),
        "pending_change": pending_change(shared, &view).await,
        "members": members,
        "owners": owners,
    }))
}

fn slots(ring: &Ring) -> f64 {
    f64::from(ring.partitions()) * ring.replicas() as f64
}

fn share<'a>(ring: &'a Ring, id: &NodeId) -> Option<&'a Share> {
    ring.shares().get(usize::from(ring.index_of(id)?))
}

/// The pending change: what it is, its step, and who holds it up; null without one.
pub(crate) async fn pending_change(shared: &Shared, view: &View) -> Value {
    let document = &view.document;
    if !document.has_pending_change() {
        return Value::Null;
    }
    let mut value = json!({
        "what": pending(document),
        "step": if document.copied { "copied" } else { "pending" },
        "at_ms": document.changed.at_ms,
        "efficiency_permille": view.next.efficiency_permille(),
    });
    let read = timeout(TIMEOUT, membership::ready(&*shared.ring_bucket, document.version)).await;
    match read {
        Ok(Ok(ready)) => {
            let (done, waits): (Vec<_>, Vec<_>) =
                document.must_be_ready().map(|m| &m.id).partition(|id| ready.contains(id));
            value["ready"] = json!(done);
            value["waits_for"] = json!(waits);
        }
        Ok(Err(error)) => value["bucket_error"] = error.to_string().into(),
        Err(_) => value["bucket_error"] = "the bucket did not answer in time".into(),
    }
    value
}
