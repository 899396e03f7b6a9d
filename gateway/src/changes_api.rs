//! `POST /v1/cluster/plan`, `/v1/cluster/apply` and `/v1/cluster/members/{id}/…`: changes of the membership, for
//! operators. A plan changes nothing; it is applied to the version that it was made at, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use cartwheel_cluster::membership::{self, ApplyError};
use cartwheel_core::names::NodeId;
use cartwheel_core::quorum::Applied;
use cartwheel_core::ring::change::{Edit, EditError, Known, Refusal, describe, edit};
use cartwheel_core::ring::plan::{Figures, Plan, plan};
use cartwheel_core::ring::{Change, RingDocument};

use crate::Shared;
use crate::cluster_api::{answer, members};
use crate::edits::{Order, order, shorthand};
use crate::problem::Problem;
use crate::request::check_host;

/// The path of members.
const MEMBERS_PREFIX: &str = "/v1/cluster/members/";
/// Largest body, bytes.
const MAX_BODY: usize = 64 * 1024;
/// How long the bucket may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Who changes the ring through a gateway, as its documents say.
const BY: &str = "an operator, through a gateway";

/// A change that was worked out: the ring that it is for, and what comes of it.
struct Planned {
    base: RingDocument,
    after: RingDocument,
    order: Order,
    plan: Plan,
    alive: BTreeSet<NodeId>,
}

/// `POST /v1/cluster/plan`: what would come of a change.
pub(crate) async fn show_plan(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let planned = async {
        let (_, body) = posted(&shared, request).await?;
        let planned = work_out(&shared, order(&body, false)?).await?;
        Ok(said(&planned))
    };
    answer(planned.await)
}

/// `POST /v1/cluster/apply`: a change of the version that its plan was made at.
pub(crate) async fn apply(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let applied = async {
        let refused = |problem: Problem| problem.applied(Applied::No);
        let (_, body) = posted(&shared, request).await.map_err(refused)?;
        carry_out(&shared, order(&body, true).map_err(refused)?).await
    };
    answer(applied.await)
}

/// `POST /v1/cluster/members/{id}/leave`, `/weight`, `/zone` and `/forget`: a change of one member.
pub(crate) async fn member(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let applied = async {
        let refused = |problem: Problem| problem.applied(Applied::No);
        let (parts, body) = posted(&shared, request).await.map_err(refused)?;
        let path = parts.uri.path().strip_prefix(MEMBERS_PREFIX).and_then(|rest| rest.split_once('/'));
        let (id, name) = path.ok_or_else(|| refused(Problem::no_such_path()))?;
        let id = NodeId::new(id).map_err(|e| refused(Problem::bad_request(e.to_string())))?;
        carry_out(&shared, shorthand(name, id, &body).map_err(refused)?).await
    };
    answer(applied.await)
}

/// Checks what every such request has, and reads its body.
async fn posted(shared: &Shared, request: Request<Body>) -> Result<(Parts, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::POST {
        return Err(Problem::method_not_allowed("POST"));
    }
    // First of all: a connection whose request was not read to its end can't be used again.
    let (bytes, _held) = shared.bodies.read(&parts.headers, body, MAX_BODY).await.map_err(|problem| {
        if problem.status != StatusCode::PAYLOAD_TOO_LARGE {
            return problem;
        }
        let detail = format!("the change has more than {MAX_BODY} bytes of JSON");
        Problem { kind: "change-too-large", title: "Change too large", detail, ..problem }
    })?;
    check_host(parts.version, &parts.headers)?;
    if parts.uri.query().is_some_and(|query| !query.is_empty()) {
        return Err(Problem::bad_request("changes of the ring take no query parameters"));
    }
    Ok((parts, bytes))
}

/// Looks at the newest ring and at who lives, and works out what would come of the change.
async fn work_out(shared: &Shared, order: Order) -> Result<Planned, Problem> {
    let read =
        timeout(TIMEOUT, membership::read_newest(&*shared.ring_bucket, 0)).await.map_err(|_| late())?;
    let base = read.map_err(|e| Problem::ring_unavailable(e.to_string()))?;
    let base = base.ok_or_else(|| Problem::not_ready("no ring document was found in the bucket yet"))?;
    if let Some(wanted) = order.ring_version.filter(|wanted| *wanted != base.version) {
        return Err(moved_on(wanted, base.version));
    }
    let (mut figures, mut alive) = (BTreeMap::new(), BTreeSet::new());
    for (member, said) in base.members.iter().zip(members(shared, &base).await) {
        let number = |field: &str| said[field].as_u64();
        figures.insert(member.id.clone(), Figures { keys: number("keys"), bytes: number("segment_bytes") });
        // Who can't be reached from here may be alive all the same.
        if said["reachable"] == true || said["liveness"] == "alive" {
            alive.insert(member.id.clone());
        }
    }
    let lives = |id: &NodeId| alive.contains(id);
    let known = Known { alive: &lives, force: order.force };
    let changed =
        Change { at_ms: shared.seams.clock.now_ms(), by: BY.to_owned(), what: describe(&order.edits) };
    let after = edit(&base, &order.edits, known, changed, "plan".to_owned()).map_err(|e| cannot_be(&e))?;
    let plan = plan(&base, &after, &figures, &lives);
    Ok(Planned { base, after, order, plan, alive })
}

async fn carry_out(shared: &Shared, order: Order) -> Result<Value, Problem> {
    let refused = |problem: Problem| problem.applied(Applied::No);
    let planned = work_out(shared, order).await.map_err(refused)?;
    let Planned { base, order, plan, alive, .. } = &planned;
    let only_forgets = order.edits.iter().all(|edit| matches!(edit, Edit::Forget { .. }));
    if plan.breaks_quorum && !(order.force && only_forgets) {
        let worst = plan.steps.iter().max_by_key(|step| step.newly_below);
        let (step, partitions) = worst.map_or(("", 0), |worst| (worst.step, worst.newly_below));
        return Err(refused(Problem::ring_conflict(
            "quorum-at-risk",
            "A quorum is at risk",
            format!(
                "{partitions} partitions would have fewer than {} homes alive at the step '{step}' of this change; \
                 start those that are down, or make the change in parts",
                plan.needed_to_write
            ),
        )));
    }
    let lives = |id: &NodeId| alive.contains(id);
    let known = Known { alive: &lives, force: order.force };
    let applying =
        membership::apply(&*shared.ring_bucket, &shared.seams, base.version, &order.edits, known, BY);
    let applied = timeout(TIMEOUT, applying).await.map_err(|_| late().applied(Applied::Unknown))?;
    let document = applied.map_err(|error| match error {
        ApplyError::MovedOn { base, newest } => refused(moved_on(base, newest)),
        ApplyError::NoRing => refused(Problem::not_ready(error.to_string())),
        ApplyError::Edit(error) => refused(cannot_be(&error)),
        ApplyError::Before(error) => refused(Problem::ring_unavailable(error.to_string())),
        ApplyError::Unsure(error) => Problem::ring_unavailable(error.to_string()).applied(Applied::Unknown),
    })?;
    shared.follower.nudge();
    let mut said = said(&planned);
    said["ring_version"] = document.version.into();
    Ok(said)
}

/// A plan as the API shows it; `ring_version` is the one that it was made at.
fn said(planned: &Planned) -> Value {
    let Planned { base, after, order, plan, .. } = planned;
    json!({
        "ring_version": base.version,
        "change": describe(&order.edits),
        "pending": after.has_pending_change(),
        "plan": plan,
    })
}

fn cannot_be(error: &EditError) -> Problem {
    match error.refusal() {
        Refusal::Malformed => Problem::bad_request(error.to_string()),
        Refusal::Unknown => Problem::no_such_member(error.to_string()),
        Refusal::Conflict => {
            let (kind, title) = match error {
                EditError::Pending { .. } => ("change-pending", "A change is pending"),
                _ => ("change-refused", "The change can't be"),
            };
            Problem::ring_conflict(kind, title, error.to_string())
        }
    }
}

fn moved_on(wanted: u64, newest: u64) -> Problem {
    Problem::ring_conflict(
        "ring-moved-on",
        "The ring has moved on",
        format!("the ring is at version {newest}, not {wanted}; plan the change anew"),
    )
}

fn late() -> Problem {
    Problem::ring_unavailable(format!("the bucket did not answer within {} s", TIMEOUT.as_secs()))
}
