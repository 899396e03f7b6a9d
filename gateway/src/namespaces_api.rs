//! `/v1/namespaces` and `/v1/namespaces/{namespace}`: what is set for namespaces, for operators.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use futures_util::stream::{StreamExt, iter};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::time::timeout;

use cartwheel_core::names::Namespace;
use cartwheel_core::namespace::{NamespaceDocument, NamespaceSettings};
use cartwheel_core::quorum::Applied;
use cartwheel_core::wire::{Precondition, Tags};

use crate::Shared;
use crate::answer::{http_date, put_header};
use crate::cluster_api::answer;
use crate::coordinate::usable_view;
use crate::namespaces::{MAX_NAMESPACES, ReadError, WriteError};
use crate::problem::Problem;
use crate::request::{NAMESPACES_PATH, check_host, parse_namespace, parse_precondition};
use crate::settings::{from_json, to_json};

/// Largest body, bytes.
const MAX_BODY: usize = 16 * 1024;
/// How long the bucket may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Namespaces on a page: most, and where nothing is said.
const MAX_PAGE: usize = 1000;
const PAGE: usize = 100;
/// Documents read at once.
const READS_AT_ONCE: usize = 8;

/// Answers one request for a namespace's settings.
pub(crate) async fn handle(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let outcome = match parts.method {
        Method::GET | Method::HEAD => show(&shared, &parts).await,
        Method::PUT => set(&shared, &parts, body).await,
        _ => Err(Problem::method_not_allowed("GET, HEAD, PUT")),
    };
    outcome.unwrap_or_else(Problem::into_response)
}

/// Checks what every such request has; gives the namespace, the condition and N.
fn common(shared: &Shared, parts: &Parts) -> Result<(Namespace, Precondition, u32), Problem> {
    check_host(parts.version, &parts.headers)?;
    let namespace = parse_namespace(&parts.uri)?;
    if parts.uri.query().is_some_and(|query| !query.is_empty()) {
        return Err(Problem::bad_request("a namespace's settings take no query parameters"));
    }
    let precondition = parse_precondition(&parts.headers)?;
    Ok((namespace, precondition, usable_view(shared)?.document.replicas))
}

/// The entity tag of a version; 0 is that of the defaults, where nothing is set.
fn tag(version: u64) -> String {
    format!("\"{version}\"")
}

fn names(tags: &Tags, version: u64) -> bool {
    match tags {
        Tags::Any => version > 0,
        Tags::List(list) => list.contains(&tag(version)),
    }
}

fn unmet(newest: u64) -> Problem {
    Problem {
        detail: format!("the newest version of these settings has the ETag {}", tag(newest)),
        ..Problem::precondition_failed()
    }
}

async fn show(shared: &Shared, parts: &Parts) -> Result<Response<Body>, Problem> {
    let (namespace, precondition, n) = common(shared, parts)?;
    let read = timeout(TIMEOUT, shared.namespaces.read(&namespace)).await.map_err(|_| late())?;
    let document = read.map_err(|e| unreadable(&e))?;
    let version = document.as_ref().map_or(0, |document| document.version);
    match &precondition {
        Precondition::IfMatch(tags) if !names(tags, version) => return Err(unmet(version)),
        Precondition::IfNoneMatch(tags) if names(tags, version) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            put_header(response.headers_mut(), "etag", &tag(version));
            return Ok(response);
        }
        _ => {}
    }
    let defaults = NamespaceSettings::defaults(n);
    let settings = document.as_ref().map_or(&defaults, |document| &document.settings);
    Ok(described(answer(Ok(to_json(settings, n))), document.as_ref()))
}

/// An answer with what is said of settings in headers.
fn described(mut response: Response<Body>, document: Option<&NamespaceDocument>) -> Response<Body> {
    let headers: &mut HeaderMap = response.headers_mut();
    put_header(headers, "etag", &tag(document.map_or(0, |document| document.version)));
    if let Some(document) = document {
        put_header(headers, "last-modified", &http_date(document.written_ms));
    }
    response
}

async fn set(shared: &Shared, parts: &Parts, body: Body) -> Result<Response<Body>, Problem> {
    let refused = |problem: Problem| problem.applied(Applied::No);
    let (namespace, precondition, n) = common(shared, parts).map_err(refused)?;
    let read = shared.bodies.read(&parts.headers, body, MAX_BODY).await;
    let (bytes, _held) = read.map_err(|problem| refused(sized(problem)))?;
    let settings = from_json(&bytes, n).map_err(refused)?;
    if !shared.namespaces.has_room_for(&namespace) {
        return Err(refused(Problem::too_many_namespaces(MAX_NAMESPACES)));
    }
    let may_follow = |newest: u64| match &precondition {
        Precondition::None => true,
        Precondition::IfMatch(tags) => names(tags, newest),
        Precondition::IfNoneMatch(tags) => !names(tags, newest),
    };
    let writing = shared.namespaces.write(&namespace, settings, may_follow);
    let written = timeout(TIMEOUT, writing).await.map_err(|_| late().applied(Applied::Unknown))?;
    let document = written.map_err(|error| match error {
        WriteError::Condition(newest) => refused(unmet(newest)),
        WriteError::Before(error) => refused(Problem::settings_unavailable(error.to_string())),
        WriteError::Unsure(error) => {
            Problem::settings_unavailable(error.to_string()).applied(Applied::Unknown)
        }
        WriteError::Contended => refused(Problem::overloaded(&error.to_string())),
    })?;
    Ok(described(answer(Ok(to_json(&document.settings, n))), Some(&document)))
}

/// The body's limit is not that of values.
fn sized(problem: Problem) -> Problem {
    if problem.status != StatusCode::PAYLOAD_TOO_LARGE {
        return problem;
    }
    let detail = format!("the settings have more than {MAX_BODY} bytes of JSON");
    Problem { kind: "settings-too-large", title: "Settings too large", detail, ..problem }
}

fn late() -> Problem {
    Problem::settings_unavailable(format!("the bucket did not answer within {} s", TIMEOUT.as_secs()))
}

fn unreadable(error: &ReadError) -> Problem {
    Problem::settings_unavailable(error.to_string())
}

/// `GET /v1/namespaces?after=&limit=`: a page of the namespaces that have settings, by name.
pub(crate) async fn list(State(shared): State<Arc<Shared>>, uri: Uri) -> Response<Body> {
    answer(match timeout(TIMEOUT, page(&shared, &uri)).await {
        Ok(page) => page,
        Err(_) => Err(late()),
    })
}

async fn page(shared: &Shared, uri: &Uri) -> Result<Value, Problem> {
    let (after, limit) = parse_page(uri)?;
    let n = usable_view(shared)?.document.replicas;
    let listed = shared.namespaces.list().await;
    let listed = listed.map_err(|e| Problem::settings_unavailable(e.to_string()))?;
    let mut rest =
        listed.into_iter().filter(|(namespace, _)| after.as_ref().is_none_or(|after| namespace > after));
    let page: Vec<(Namespace, u64)> = rest.by_ref().take(limit).collect();
    let more = rest.next().is_some();
    let reads = iter(page).map(|(namespace, version)| async move {
        let mut entry = json!({ "namespace": namespace.as_str(), "version": version });
        match shared.namespaces.read_version(&namespace, version).await {
            Ok(document) => entry["settings"] = to_json(&document.settings, n),
            Err(error) => entry["error"] = error.to_string().into(),
        }
        entry
    });
    let namespaces: Vec<Value> = reads.buffered(READS_AT_ONCE).collect().await;
    Ok(json!({ "namespaces": namespaces, "more": more }))
}

fn parse_page(uri: &Uri) -> Result<(Option<Namespace>, usize), Problem> {
    let (mut after, mut limit) = (None, None);
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let slot = match name {
            "after" => &mut after,
            "limit" => &mut limit,
            _ => {
                return Err(Problem::bad_request(format!(
                    "{NAMESPACES_PATH} takes the parameters after and limit"
                )));
            }
        };
        if slot.replace(value).is_some() {
            return Err(Problem::bad_request(format!("parameter '{name}' is given more than once")));
        }
    }
    let after = after.map(|name| {
        Namespace::new(name.as_bytes()).map_err(|e| Problem::bad_request(format!("parameter 'after': {e}")))
    });
    let limit = limit.map(|text| {
        let number = text.parse().ok().filter(|number| (1..=MAX_PAGE).contains(number));
        number.ok_or_else(|| {
            Problem::bad_request(format!("parameter 'limit' must be a number from 1 to {MAX_PAGE}"))
        })
    });
    Ok((after.transpose()?, limit.transpose()?.unwrap_or(PAGE)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pages_are_asked_for_strictly() {
        let parse = |query: &str| parse_page(&format!("{NAMESPACES_PATH}?{query}").parse().unwrap());
        assert_eq!(parse("").unwrap(), (None, PAGE));
        let (after, limit) = parse("after=carts&limit=7").unwrap();
        assert_eq!((after.unwrap().as_str(), limit), ("carts", 7));
        for (bad, word) in [
            ("limit=0", "1 to 1000"),
            ("limit=1001", "1 to 1000"),
            ("limit=x", "1 to 1000"),
            ("after=A", "'after'"),
            ("x=1", "after and limit"),
            ("limit=1&limit=1", "more than once"),
        ] {
            let problem = parse(bad).unwrap_err();
            assert!(problem.detail.contains(word), "{bad}: {}", problem.detail);
        }
    }
}
