//! `GET /v1/cluster/hints`: what is kept for homes that were away, by whom, in memory and in the bucket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use http::Response;
use serde_json::{Value, json};
use tokio::time::Instant;

use cartwheel_core::names::NodeId;

use crate::Shared;
use crate::answer::utc;
use crate::cluster_api::{answer, members};
use crate::problem::Problem;

/// How long the bucket may take to list the hints.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Answers with a list of homes, each with the holders of its hints. Holders that are dead or gateways show in the
/// bucket alone.
pub(crate) async fn hints(State(shared): State<Arc<Shared>>) -> Response<Body> {
    answer(value(&shared).await)
}

async fn value(shared: &Shared) -> Result<Value, Problem> {
    let view = shared.follower.view().ok_or_else(|| Problem::not_ready("no ring document was found yet"))?;
    let mut by_home: BTreeMap<String, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for member in members(shared, &view.document).await {
        let holder = member["id"].clone();
        for kept in member["hints"].as_array().into_iter().flatten() {
            let Some(home) = kept["target"].as_str() else { continue };
            by_home.entry(home.to_owned()).or_default().0.push(json!({
                "holder": holder,
                "keys": kept["keys"],
                "bytes": kept["bytes"],
                "oldest_ms": kept["oldest_ms"],
            }));
        }
    }
    let stored = shared.last_resort.stored_hints(Instant::now() + TIMEOUT).await;
    let bucket_error = match stored {
        Ok(stored) => {
            for ((home, holder), kept) in stored {
                by_home.entry(home.to_string()).or_default().1.push(json!({
                    "holder": holder,
                    "objects": kept.objects,
                    "bytes": kept.bytes,
                    "oldest": utc(kept.oldest_ms),
                }));
            }
            Value::Null
        }
        Err(error) => error.to_string().into(),
    };
    let homes: Vec<Value> = by_home
        .into_iter()
        .map(|(home, (nodes, bucket))| json!({ "home": home, "at_nodes": nodes, "in_bucket": bucket }))
        .collect();
    Ok(json!({ "ring_version": view.version(), "homes": homes, "bucket_error": bucket_error }))
}

/// Hints in the bucket: for whom and by whom.
pub(crate) type Whose = (NodeId, NodeId);

/// How many hints lie in the bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StoredHints {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    /// When the oldest of them was put, milliseconds since 1970, by the store's clock.
    pub(crate) oldest_ms: u64,
}
