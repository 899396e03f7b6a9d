//! What a storage node answers on its port: frames, and how it is.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::routing::get;

use cartwheel_cluster::frames;
use cartwheel_cluster::metrics::{MetricsText, with_metrics};
use cartwheel_cluster::peer::FRAMES_PATH;
use cartwheel_cluster::secret::NodeToken;
use cartwheel_core::frame::FrameVersion;

use crate::service::Service;

/// The whole port.
pub(crate) fn router(
    service: Arc<Service>,
    token: NodeToken,
    newest: FrameVersion,
    metrics: Option<MetricsText>,
) -> Router {
    let asked = Arc::clone(&service);
    let frames = move |request: Request| {
        let (service, token) = (Arc::clone(&service), token.clone());
        async move { frames::accept(request, &token, newest, service) }
    };
    let ready = move || async move {
        match asked.readiness() {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        }
    };
    let router = Router::new()
        .route(FRAMES_PATH, get(frames))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready));
    with_metrics(router, metrics)
}
