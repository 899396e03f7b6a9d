//! What is said of each request to those who watch: how it was answered and how long that took; and its span.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::Instant;

use axum::body::Body;
use axum::extract::MatchedPath;
use http::{Method, Request, Response};

use cartwheel_core::trace::TraceContext;
use cartwheel_telemetry::Recorder;
use cartwheel_telemetry::trace::Span;

/// The route of data requests, as the router writes it.
const DATA_ROUTE: &str = "/v1/kv/{*rest}";

/// The routes as they are shown, by how the router writes them.
const ROUTES: [(&str, &str); 13] = [
    (DATA_ROUTE, "/v1/kv/{namespace}/{key}"),
    ("/v1/namespaces", "/v1/namespaces"),
    ("/v1/namespaces/{namespace}", "/v1/namespaces/{namespace}"),
    ("/v1/cluster", "/v1/cluster"),
    ("/v1/cluster/ring", "/v1/cluster/ring"),
    ("/v1/cluster/plan", "/v1/cluster/plan"),
    ("/v1/cluster/apply", "/v1/cluster/apply"),
    ("/v1/cluster/members/{id}/{change}", "/v1/cluster/members/{id}/{change}"),
    ("/v1/cluster/locate", "/v1/cluster/locate"),
    ("/v1/cluster/hints", "/v1/cluster/hints"),
    ("/v1/cluster/repair", "/v1/cluster/repair"),
    ("/v1/batch", "/v1/batch"),
    ("/readyz", "/readyz"),
];

/// Whom requests are told to.
#[derive(Debug)]
pub(crate) struct Watch {
    /// What the gateway is called in figures.
    pub(crate) node: String,
    pub(crate) recorder: Recorder,
    /// Requests in the house.
    pub(crate) active: AtomicU64,
}

/// What kind of problem an answer tells of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reason(pub(crate) &'static str);

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Watched {
    watch: Arc<Watch>,
    method: &'static str,
    route: Option<&'static str>,
    op: &'static str,
    since: Instant,
    span: Span,
}

impl Watch {
    /// A request has arrived.
    pub(crate) fn begin(self: &Arc<Self>, request: &Request<Body>) -> Watched {
        self.active.fetch_add(1, Ordering::Relaxed);
        let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let route = matched.and_then(shown);
        let method = method(request.method());
        let op = if matched == Some(DATA_ROUTE) { operation(request.method()) } else { "other" };
        let parent = || TraceContext::from_traceparent(request.headers().get("traceparent")?.as_bytes());
        let mut span = if cartwheel_telemetry::trace::is_on() {
            let name = || route.map_or(method.into(), |route| format!("{method} {route}").into());
            Span::of_request(parent(), name)
        } else {
            Span::none()
        };
        if span.is_recorded() {
            span.set("http.request.method", method);
            if let Some(route) = route {
                span.set("http.route", route);
            }
            span.set("cartwheel.node", self.node.clone());
        }
        Watched { watch: Arc::clone(self), method, route, op, since: Instant::now(), span }
    }
}

impl Watched {
    /// Its ids, for those who work on it; `None` while tracing is off.
    pub(crate) fn context(&self) -> Option<TraceContext> {
        self.span.context()
    }

    /// It is answered.
    pub(crate) fn end(&mut self, response: &Response<Body>) {
        let status = response.status();
        if let Some(record) = self.watch.recorder.get() {
            record.http_request(self.method, self.route, status.as_u16(), self.since.elapsed());
            if let Some(Reason(reason)) = response.extensions().get() {
                record.problem(self.op, reason);
            }
        }
        if self.span.is_recorded() {
            self.span.set("http.response.status_code", status.as_u16());
            if status.is_server_error() {
                self.span.fail(response.extensions().get().map_or("", |Reason(reason)| reason));
            }
        }
    }
}

/// Answered or given up by the client, it has left the house.
impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.active.fetch_sub(1, Ordering::Relaxed);
    }
}

fn shown(matched: &str) -> Option<&'static str> {
    ROUTES.iter().find(|(route, _)| *route == matched).map(|(_, shown)| *shown)
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        // So that nobody can make up as many names as they like.
        _ => "_OTHER",
    }
}

/// What a data request with this method is.
pub(crate) fn operation(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::PUT => "put",
        Method::DELETE => "delete",
        _ => "other",
    }
}
