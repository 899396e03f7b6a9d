//! `GET /metrics`: how a part that serves shows figures without knowing how they are gathered.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::header::CONTENT_TYPE;

/// Where the figures are.
pub const METRICS_PATH: &str = "/metrics";

/// Version 0.0.4 of the Prometheus text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4";

/// Gives the figures of the process as they are now, in the Prometheus text format.
#[derive(Clone)]
pub struct MetricsText(Arc<dyn Fn() -> String + Send + Sync>);

impl MetricsText {
    /// `gather` is called for each request; it must not wait for anything.
    pub fn new(gather: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(gather))
    }

    /// The figures as they are now.
    #[must_use]
    pub fn gather(&self) -> String {
        (self.0)()
    }
}

impl fmt::Debug for MetricsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsText")
    }
}

/// `router`, and the figures at [`METRICS_PATH`]. Without figures that path stays what it is: not found.
pub fn with_metrics<S>(router: Router<S>, metrics: Option<MetricsText>) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let Some(metrics) = metrics else { return router };
    let answer = move || async move { ([(CONTENT_TYPE, TEXT_FORMAT)], metrics.gather()) };
    router.route(METRICS_PATH, get(answer))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::body::Body;
    use axum::extract::Request;
    use http::StatusCode;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: &Router) -> (StatusCode, Option<String>, String) {
        let request = Request::get(METRICS_PATH).body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        let kind = answer.headers().get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned());
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_request_gets_the_figures_of_its_moment() {
        let scrapes = AtomicU64::new(0);
        let text = MetricsText::new(move || format!("scrapes {}\n", scrapes.fetch_add(1, Ordering::Relaxed)));
        let router = with_metrics(Router::new(), Some(text));
        let kind = Some("text/plain; version=0.0.4".to_owned());
        assert_eq!(ask(&router).await, (StatusCode::OK, kind.clone(), "scrapes 0\n".to_owned()));
        assert_eq!(ask(&router).await, (StatusCode::OK, kind, "scrapes 1\n".to_owned()));
    }

    #[tokio::test]
    async fn without_figures_there_is_no_such_path() {
        assert_eq!(ask(&with_metrics(Router::new(), None)).await.0, StatusCode::NOT_FOUND);
    }
}
