//! Routes and the layers around them.

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, get};

use cartwheel_cluster::metrics::with_metrics;

use crate::Shared;
use crate::edge::EdgeLayer;
use crate::problem::Problem;
use crate::{changes_api, cluster_api, data, hints_api, namespaces_api, repair_api, ring_api};

/// Requests in the house at once, those whose bodies still arrive included, as a multiple of those worked on.
const ROOM: usize = 8;

/// The whole HTTP surface of a gateway.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let edge = EdgeLayer::new(shared.config.in_flight.saturating_mul(ROOM), Arc::clone(&shared.watch));
    let metrics = shared.config.metrics.clone();
    let router = Router::new()
        .route("/v1/kv/{*rest}", any(data::handle))
        .route("/v1/namespaces", get(namespaces_api::list))
        .route("/v1/namespaces/{namespace}", any(namespaces_api::handle))
        .route("/v1/cluster", get(cluster_api::cluster))
        .route("/v1/cluster/ring", get(ring_api::ring))
        .route("/v1/cluster/plan", any(changes_api::show_plan))
        .route("/v1/cluster/apply", any(changes_api::apply))
        .route("/v1/cluster/members/{id}/{change}", any(changes_api::member))
        .route("/v1/cluster/locate", get(cluster_api::locate))
        .route("/v1/cluster/hints", get(hints_api::hints))
        .route("/v1/cluster/repair", any(repair_api::begin))
        .route("/readyz", get(cluster_api::ready))
        .fallback(|| async { Problem::no_such_path().into_response() })
        .layer(edge)
        // Alive, and seen to be busy, even when all room is taken.
        .route("/healthz", get(cluster_api::healthy));
    with_metrics(router, metrics)
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed("GET, HEAD").into_response() })
        .with_state(shared)
}
