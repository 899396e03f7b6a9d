//! Routes and the layers around them.

use std::sync::Arc;
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::routing::{any, get};
use axum::{BoxError, Router};
use http::{Method, Request};
use tower::ServiceBuilder;
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::{LoadShedLayer, error::Overloaded};
use tower::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

use cartwheel_core::quorum::Applied;

use crate::Shared;
use crate::problem::Problem;
use crate::{cluster_api, data};

/// Longer than any request's own limits: the body's time and the longest deadline. What comes here is a fault.
const BACKSTOP: Duration = Duration::from_secs(180);
/// Requests in the house at once, those whose bodies still arrive included, as a multiple of those worked on.
const ROOM: usize = 8;

/// The whole HTTP surface of a gateway.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let span = |request: &Request<axum::body::Body>| {
        let traceparent = request.headers().get("traceparent").and_then(|v| v.to_str().ok());
        tracing::debug_span!("request", method = %request.method(), path = request.uri().path(), traceparent)
    };
    let room = shared.config.in_flight.saturating_mul(ROOM);
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .layer(HandleErrorLayer::new(|method: Method, error: BoxError| async move {
            turned_away(&method, &error).into_response()
        }))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(room))
        .layer(TimeoutLayer::new(BACKSTOP));
    Router::new()
        .route("/v1/kv/{*rest}", any(data::handle))
        .route("/v1/cluster", get(cluster_api::cluster))
        .route("/v1/cluster/ring", get(cluster_api::ring))
        .route("/v1/cluster/locate", get(cluster_api::locate))
        .route("/readyz", get(cluster_api::ready))
        .fallback(|| async { Problem::no_such_path().into_response() })
        .layer(layers)
        // Alive even when all room is taken.
        .route("/healthz", get(cluster_api::healthy))
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed("GET, HEAD").into_response() })
        .with_state(shared)
}

/// What a request gets that the layers ended: there was no room for it, or it outlived all its own limits.
fn turned_away(method: &Method, error: &BoxError) -> Problem {
    let (problem, applied) = if error.is::<Overloaded>() {
        (Problem::overloaded("too many requests are in flight"), Applied::No)
    } else {
        (Problem::overloaded("the request took too long"), Applied::Unknown)
    };
    if method.is_safe() { problem } else { problem.applied(applied) }
}
