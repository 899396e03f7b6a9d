//! The layer around all routes: room for so many requests, the rest turned away at once; and each of them watched.
//!
//! It times nothing itself: a body, the wait for replicas and idle connections each have a limit of their own,
//! where it is known what was done when it ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::Semaphore;
use tower::{Layer, Service};
use tracing::Instrument;

use cartwheel_core::quorum::Applied;
use cartwheel_telemetry::trace;

use crate::observe::Watch;
use crate::problem::Problem;

/// Makes [`Edge`]s that share their room.
#[derive(Debug, Clone)]
pub(crate) struct EdgeLayer {
    room: Arc<Semaphore>,
    watch: Arc<Watch>,
}

impl EdgeLayer {
    /// Room for so many requests at once.
    pub(crate) fn new(room: usize, watch: Arc<Watch>) -> Self {
        Self { room: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))), watch }
    }
}

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge { inner, room: Arc::clone(&self.room), watch: Arc::clone(&self.watch) }
    }
}

/// Turns requests away when there is no room, and has all watched.
#[derive(Debug, Clone)]
pub(crate) struct Edge<S> {
    inner: S,
    room: Arc<Semaphore>,
    watch: Arc<Watch>,
}

impl<S> Service<Request<Body>> for Edge<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut watched = self.watch.begin(&request);
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            let problem = Problem::overloaded("too many requests are in flight");
            let problem = if request.method().is_safe() { problem } else { problem.applied(Applied::No) };
            let response = problem.into_response();
            watched.end(&response);
            return Box::pin(std::future::ready(Ok(response)));
        };
        let traceparent = request.headers().get("traceparent").and_then(|v| v.to_str().ok());
        let (method, path) = (request.method(), request.uri().path());
        let span = tracing::debug_span!("request", %method, path, traceparent);
        let answering = self.inner.call(request).instrument(span);
        let context = watched.context();
        let answering = async move {
            let Ok(response) = answering.await;
            watched.end(&response);
            drop(place);
            Ok(response)
        };
        match context {
            Some(context) => Box::pin(trace::scope(context, answering)),
            None => Box::pin(answering),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::Router;
    use axum::routing::any;
    use cartwheel_telemetry::Recorder;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tower::ServiceExt;

    use super::*;

    fn request(method: &str) -> Request<Body> {
        Request::builder().method(method).uri("/").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn without_room_requests_are_turned_away_and_room_comes_back() {
        let (go, gone) = tokio::sync::watch::channel(false);
        let slow = move || {
            let mut gone = gone.clone();
            async move { drop(gone.wait_for(|gone| *gone).await) }
        };
        let watch =
            Watch { node: "gateway".into(), recorder: Recorder::default(), active: AtomicU64::new(0) };
        let watch = Arc::new(watch);
        let router = Router::new().route("/", any(slow)).layer(EdgeLayer::new(1, Arc::clone(&watch)));
        let first = tokio::spawn(router.clone().oneshot(request("PUT")));
        let turned_away = loop {
            tokio::task::yield_now().await;
            // The first takes its place when it is first polled.
            let asking = tokio::spawn(router.clone().oneshot(request("PUT")));
            tokio::task::yield_now().await;
            if asking.is_finished() {
                break asking.await.unwrap().unwrap();
            }
            asking.abort();
        };
        assert_eq!(turned_away.status(), 503);
        assert!(turned_away.headers().contains_key("retry-after"));
        go.send(true).unwrap();
        assert_eq!(first.await.unwrap().unwrap().status(), 200);
        assert_eq!(router.oneshot(request("GET")).await.unwrap().status(), 200);
        assert_eq!(watch.active.load(Ordering::Relaxed), 0, "all have left the house");
    }
}
