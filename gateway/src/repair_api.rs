//! `POST /v1/cluster/repair`: homes compare what they hold now, and not only when their time comes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use futures_util::future::join_all;
use http::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use cartwheel_cluster::membership::View;
use cartwheel_core::names::NodeId;
use cartwheel_core::ring::Member;
use cartwheel_core::wire::{Call, Repair, Reply, Request as NodeRequest};

use crate::Shared;
use crate::cluster_api::answer;
use crate::coordinate::usable_view;
use crate::problem::Problem;
use crate::request::check_host;

/// Largest body, bytes.
const MAX_BODY: usize = 4 * 1024;
/// How long a node may take to say that it begins.
const ASKING: Duration = Duration::from_secs(5);
/// Most characters of a value that are repeated in an error.
const SHOWN: usize = 64;

/// The body; what is left out means all.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    node: Option<Value>,
    #[serde(default)]
    partition: Option<Value>,
}

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    /// Only this node compares.
    node: Option<NodeId>,
    /// Only this partition is compared.
    partition: Option<u32>,
}

/// Asks one node, or all of them, to compare what they hold with the other homes now. Answers 202 with those that were
/// asked; how far they are, `GET /v1/cluster` tells.
pub(crate) async fn begin(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let begun = begun(&shared, request).await;
    let accepted = begun.is_ok();
    let mut response = answer(begun);
    if accepted {
        *response.status_mut() = StatusCode::ACCEPTED;
    }
    response
}

async fn begun(shared: &Shared, request: Request<Body>) -> Result<Value, Problem> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::POST {
        return Err(Problem::method_not_allowed("POST"));
    }
    check_host(parts.version, &parts.headers)?;
    if parts.uri.query().is_some_and(|query| !query.is_empty()) {
        return Err(Problem::bad_request("repair takes no query parameters, but a JSON body"));
    }
    let (bytes, _held) = shared.bodies.read(&parts.headers, body, MAX_BODY).await.map_err(|problem| {
        if problem.status != StatusCode::PAYLOAD_TOO_LARGE {
            return problem;
        }
        let detail = format!("the body has more than {MAX_BODY} bytes");
        Problem { kind: "body-too-large", title: "Body too large", detail, ..problem }
    })?;
    let order = parse(&bytes)?;
    let view = usable_view(shared)?;
    let wanted = members(&view, &order)?;
    let (mut asked, mut unreachable) = (Vec::new(), Vec::new());
    let calls = wanted.iter().map(|member| ask(shared, view.version(), &member.address, order.partition));
    for (member, outcome) in wanted.iter().zip(join_all(calls).await) {
        match outcome {
            Ok(()) => asked.push(member.id.as_str()),
            Err(why) => unreachable.push(json!({ "id": member.id, "why": why })),
        }
    }
    Ok(json!({
        "ring_version": view.version(),
        "partition": order.partition,
        "asked": asked,
        "unreachable": unreachable,
    }))
}

/// The nodes that are to compare: the homes of the partition, or those of any, or the one that was named.
fn members(view: &View, order: &Order) -> Result<Vec<Member>, Problem> {
    let ring = &view.current;
    if let Some(partition) = order.partition.filter(|partition| *partition >= ring.partitions()) {
        let detail = format!(
            "field 'partition' is {partition}; it must be a number from 0 to {}",
            ring.partitions().saturating_sub(1)
        );
        return Err(Problem::bad_request(detail));
    }
    let held = |id: &NodeId| match (ring.index_of(id), order.partition) {
        (Some(index), Some(partition)) => ring.homes(partition).contains(&index),
        (at, _) => at.is_some(),
    };
    let all = &view.document.members;
    let Some(node) = &order.node else { return Ok(all.iter().filter(|m| held(&m.id)).cloned().collect()) };
    let Some(member) = view.document.member(node) else {
        return Err(Problem::no_such_member(format!("field 'node': {node} is no member of the ring")));
    };
    match order.partition {
        Some(partition) if !held(node) => Err(Problem::bad_request(format!(
            "field 'node' is {node}; it must be a home of partition {partition}"
        ))),
        _ => Ok(vec![member.clone()]),
    }
}

async fn ask(
    shared: &Shared,
    ring_version: u64,
    address: &str,
    partition: Option<u32>,
) -> Result<(), String> {
    let call = Call { ring_version, request: NodeRequest::Repair(Repair::Begin { partition }) };
    let answer = shared.peers.call(address, &call, Instant::now() + ASKING).await;
    match answer.map_err(|error| error.to_string())?.reply {
        Reply::Hello => Ok(()),
        Reply::Refused(refusal) => Err(format!("it refused: {refusal:?}")),
        other => Err(format!("an answer that makes no sense: {other:?}")),
    }
}

/// Reads a body; an empty one is an empty object.
fn parse(body: &[u8]) -> Result<Order, Problem> {
    let text = body.trim_ascii();
    let fields = if text.is_empty() {
        Fields::default()
    } else {
        let malformed = |why: &str| {
            Problem::bad_request(format!(
                "the body must be a JSON object with node, partition, both or neither: {why}"
            ))
        };
        // A list would be read by the order of the fields.
        if !text.starts_with(b"{") {
            return Err(malformed("it is no object"));
        }
        serde_json::from_slice(text).map_err(|error| malformed(&error.to_string()))?
    };
    let refuse = |name: &str, value: &Value, what: &str| {
        let shown: String = value.to_string().chars().take(SHOWN).collect();
        Problem::bad_request(format!("field '{name}' is {shown}; it must be {what}"))
    };
    let mut order = Order::default();
    if let Some(value) = &fields.node {
        let node = value.as_str().and_then(|text| NodeId::new(text).ok());
        order.node = Some(node.ok_or_else(|| refuse("node", value, "the name of a storage node"))?);
    }
    if let Some(value) = &fields.partition {
        let partition = value.as_u64().and_then(|number| u32::try_from(number).ok());
        order.partition = Some(partition.ok_or_else(|| refuse("partition", value, "a number from 0"))?);
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use cartwheel_cluster::membership::{Founding, found};
    use cartwheel_cluster::seams::Seams;
    use cartwheel_core::ring::MemberState;

    use super::*;

    fn order(node: Option<&str>, partition: Option<u32>) -> Order {
        Order { node: node.map(|id| NodeId::new(id).unwrap()), partition }
    }

    #[test]
    fn what_is_left_out_means_all() {
        for (body, expected) in [
            ("", order(None, None)),
            (" {} ", order(None, None)),
            (r#"{"node": null}"#, order(None, None)),
            (r#"{"node": "node-a"}"#, order(Some("node-a"), None)),
            (r#"{"partition": 17, "node": "node-a"}"#, order(Some("node-a"), Some(17))),
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn a_wrong_body_is_told_which_field_is_wrong() {
        for (body, word) in [
            (r#"{"nodes": "node-a"}"#, "`nodes`"),
            (r#"{"node": "node-a", "node": "node-b"}"#, "`node`"),
            (r#"{"node": "Node A"}"#, "'node' is \"Node A\""),
            (r#"{"node": 7}"#, "'node' is 7"),
            (r#"{"partition": -1}"#, "'partition' is -1"),
            (r#"{"partition": "17"}"#, "'partition' is \"17\""),
            (r#"{"partition": 4294967296}"#, "'partition' is 4294967296"),
            (r#"["node-a", 17]"#, "no object"),
            ("{", "JSON object"),
        ] {
            let problem = parse(body.as_bytes()).unwrap_err();
            assert_eq!(problem.status, StatusCode::BAD_REQUEST);
            assert!(problem.detail.contains(word), "{body}: {}", problem.detail);
        }
    }

    #[test]
    fn who_is_asked_follows_from_the_ring() {
        let member = |id: &str| Member {
            id: NodeId::new(id).unwrap(),
            address: format!("{id}:1"),
            zone: "z".to_owned(),
            weight: 1,
            state: MemberState::Active,
            becomes: None,
            dead: false,
        };
        let all = ["node-a", "node-b", "node-c"].map(member).to_vec();
        let founding = Founding { partitions: 16, tokens: 16, replicas: 2 };
        let view = View::new(found(&Seams::real(), founding, all, "a test").unwrap());
        let asked = |node, partition| {
            let ids = |members: Vec<Member>| members.iter().map(|m| m.id.to_string()).collect::<Vec<_>>();
            members(&view, &order(node, partition)).map(ids)
        };
        assert_eq!(asked(None, None).unwrap(), ["node-a", "node-b", "node-c"]);
        assert_eq!(asked(Some("node-b"), None).unwrap(), ["node-b"]);
        let homes = asked(None, Some(15)).unwrap();
        assert_eq!(homes.len(), 2);
        assert_eq!(asked(Some(&homes[1]), Some(15)).unwrap(), homes[1..]);
        let other = ["node-a", "node-b", "node-c"].into_iter().find(|id| !homes.iter().any(|h| h == id));
        let problem = asked(other, Some(15)).unwrap_err();
        assert!(problem.detail.contains("'node'") && problem.detail.contains("partition 15"));
        let problem = asked(None, Some(16)).unwrap_err();
        assert!(problem.detail.contains("'partition' is 16") && problem.detail.contains("0 to 15"));
        assert_eq!(problem.status, StatusCode::BAD_REQUEST);
        assert_eq!(asked(Some("node-z"), None).unwrap_err().status, StatusCode::NOT_FOUND);
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>, text: String) {
            let _ = parse(&body);
            let _ = parse(text.as_bytes());
        }
    }
}
