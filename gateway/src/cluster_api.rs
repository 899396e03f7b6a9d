//! `/v1/cluster`, `/v1/cluster/locate`, `/healthz`, `/readyz`: what operators look at.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Response, StatusCode, Uri, header};
use serde_json::{Value, json};
use tokio::time::Instant;

use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::NodeId;
use cartwheel_core::record::Record;
use cartwheel_core::ring::{Member, RingDocument};
use cartwheel_core::wire::{Call, Reply, Request};

use crate::Shared;
use crate::coordinate::usable_view;
use crate::problem::Problem;
use crate::request::{DATA_PREFIX, parse_path};
use crate::ring_api::pending_change;

/// How long a node may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) fn answer(outcome: Result<Value, Problem>) -> Response<Body> {
    match outcome {
        Ok(value) => {
            let mut body = serde_json::to_vec_pretty(&value).unwrap_or_default();
            body.push(b'\n');
            let mut response = Response::new(Body::from(body));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(problem) => problem.into_response(),
    }
}

/// `GET /v1/cluster`: members, and how they are.
pub(crate) async fn cluster(State(shared): State<Arc<Shared>>) -> Response<Body> {
    answer(cluster_value(&shared).await)
}

async fn cluster_value(shared: &Shared) -> Result<Value, Problem> {
    let view = shared.follower.view().ok_or_else(|| Problem::not_ready("no ring document was found yet"))?;
    let document = &view.document;
    let members = members(shared, document).await;
    let pending: Vec<&str> =
        document.members.iter().filter(|m| m.is_changing()).map(|m| m.id.as_str()).collect();
    Ok(json!({
        "ring_version": document.version,
        "replicas": document.replicas,
        "partitions": document.partitions,
        "forming": document.is_forming(),
        "members": members,
        "pending_change": if pending.is_empty() { Value::Null } else { json!(pending) },
        "change": pending_change(shared, &view).await,
    }))
}

/// Every member, and how it says it is.
pub(crate) async fn members(shared: &Shared, document: &RingDocument) -> Vec<Value> {
    join_all(document.members.iter().map(|m| member_status(shared, document.version, m))).await
}

async fn member_status(shared: &Shared, ring_version: u64, member: &Member) -> Value {
    let mut value = json!({
        "id": member.id,
        "address": member.address,
        "zone": member.zone,
        "weight": member.weight,
        "state": member.state,
        "reachable": false,
        "liveness": shared.gossip.liveness(&member.id).as_str(),
    });
    if let Some(becomes) = &member.becomes {
        value["becomes"] = json!(becomes);
    }
    if member.dead {
        value["dead"] = true.into();
    }
    if let Some(word) = shared.gossip.word(&member.id) {
        value["standing"] = word.standing.as_str().into();
        value["rounds"] = word.rounds.into();
    }
    let call = Call { ring_version, request: Request::Status };
    let deadline = Instant::now() + STATUS_TIMEOUT;
    let Ok(answer) = shared.peers.call(&member.address, &call, deadline).await else { return value };
    let Reply::Status(bytes) = answer.reply else { return value };
    value["reachable"] = true.into();
    if let Ok(Value::Object(said)) = serde_json::from_slice(&bytes) {
        for (name, figure) in said {
            value[name] = figure;
        }
    }
    value
}

/// `GET /v1/cluster/locate?namespace=&key=`: where a key is.
pub(crate) async fn locate(State(shared): State<Arc<Shared>>, uri: Uri) -> Response<Body> {
    answer(locate_value(&shared, &uri).await)
}

async fn locate_value(shared: &Shared, uri: &Uri) -> Result<Value, Problem> {
    let (mut namespace, mut name) = (None, None);
    for pair in uri.query().unwrap_or_default().split('&') {
        let (field, value) = pair.split_once('=').unwrap_or((pair, ""));
        let slot = match field {
            "namespace" => &mut namespace,
            "key" => &mut name,
            _ => return Err(Problem::bad_request("locate takes the parameters namespace and key")),
        };
        if slot.replace(value).is_some() {
            return Err(Problem::bad_request(format!("parameter '{field}' is given more than once")));
        }
    }
    let (Some(namespace), Some(name)) = (namespace, name) else {
        return Err(Problem::bad_request("locate needs the parameters namespace and key"));
    };
    let path = format!("{DATA_PREFIX}{namespace}/{name}");
    let path = path.parse().map_err(|_| Problem::bad_request("namespace or key is not percent-encoded"))?;
    let (namespace, key) = parse_path(&path)?;
    let view = usable_view(shared)?;
    let hash = KeyHash::of(view.document.hash_seed, &namespace, &key);
    let list = view.current.preference_list(hash);
    let homes: Vec<_> = list.homes().iter().filter_map(|index| view.current.member(*index)).collect();
    let fallbacks = view.current.fallbacks(hash);
    let fallbacks: Vec<_> = fallbacks.iter().filter_map(|index| view.current.member(*index)).collect();
    let ask = homes.iter().map(|home| {
        let request =
            Request::Read { namespace: namespace.clone(), key: key.clone(), values: false, stands_for: None };
        let call = Call { ring_version: view.version(), request };
        async move {
            let deadline = Instant::now() + STATUS_TIMEOUT;
            let answer = shared.peers.call(&home.address, &call, deadline).await;
            match answer.map(|a| a.reply) {
                Ok(Reply::Absent) => json!({"id": home.id, "answer": "absent"}),
                Ok(Reply::Found(bytes)) => held(&home.id, &bytes, "held"),
                Ok(Reply::Partial(bytes)) if bytes.is_empty() => {
                    json!({"id": home.id, "answer": "catching up"})
                }
                Ok(Reply::Partial(bytes)) => held(&home.id, &bytes, "catching up"),
                Ok(other) => json!({"id": home.id, "answer": "refused", "detail": format!("{other:?}")}),
                Err(_) => json!({"id": home.id, "answer": "unreachable"}),
            }
        }
    });
    let holders = join_all(ask).await;
    Ok(json!({
        "namespace": namespace.as_str(),
        "key": String::from_utf8_lossy(key.as_bytes()),
        "hash": hash.to_string(),
        "partition": list.partition(),
        "homes": homes.iter().map(|m| &m.id).collect::<Vec<_>>(),
        "fallbacks": fallbacks.iter().map(|m| &m.id).collect::<Vec<_>>(),
        "holders": holders,
    }))
}

fn held(home: &NodeId, record: &Bytes, answer: &str) -> Value {
    match Record::decode(record) {
        Ok(record) => json!({
            "id": home,
            "answer": answer,
            "clock": record.container.seen().to_string(),
            "siblings": record.container.siblings().len(),
        }),
        Err(error) => json!({"id": home, "answer": "damaged", "detail": error.to_string()}),
    }
}

/// `GET /readyz`: can data be served now?
pub(crate) async fn ready(State(shared): State<Arc<Shared>>) -> Response<Body> {
    match readiness(&shared) {
        Ok(()) => Response::new(Body::from("ready\n")),
        Err(problem) => problem.into_response(),
    }
}

/// Why data can't be served, or will not be for long.
pub(crate) fn readiness(shared: &Shared) -> Result<(), Problem> {
    if shared.draining.load(Ordering::Relaxed) {
        return Err(Problem::not_ready("the gateway is shutting down"));
    }
    usable_view(shared).map(drop)
}

/// `GET /healthz`: is the process alive?
pub(crate) async fn healthy() -> (StatusCode, &'static str) {
    (StatusCode::OK, "ok\n")
}
