//! What every HTTP listener wraps its routes in.

use std::any::Any;

use axum::{
    Router,
    extract::{MatchedPath, Request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use crate::{
    error::{ErrorKind, Problem},
    telemetry,
};

/// Continues the caller's trace, records a span and metrics for each request, and answers a panic with status 500.
pub fn stack(router: Router) -> Router {
    router
        .layer(CatchPanicLayer::custom(panic_response))
        .layer(middleware::from_fn(observe))
}

/// The fallback of a listener: names the path that does not exist.
#[expect(clippy::unused_async, reason = "the shape of a handler")]
pub async fn not_found(request: Request) -> Problem {
    let detail = format!(
        "there is no {} {}: the API is described at /api/v1/openapi.json",
        request.method(),
        request.uri().path()
    );
    Problem::new(ErrorKind::NotFound, "ROUTE_NOT_FOUND", detail)
}

async fn observe(request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let method = request.method().clone();
    let span = tracing::info_span!("http.request", http.request.method = %method, http.route = route);
    telemetry::continue_trace(&span, request.headers());
    let started = std::time::Instant::now();
    let response = next.run(request).instrument(span).await;
    let labels = [
        ("method", method.to_string()),
        ("route", route),
        ("status", response.status().as_str().to_owned()),
    ];
    metrics::histogram!(telemetry::HTTP_DURATION, &labels).record(started.elapsed().as_secs_f64());
    response
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that tower-http asks for")]
fn panic_response(panic: Box<dyn Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text, "a handler panicked");
    Problem::new(
        ErrorKind::Internal,
        "INTERNAL",
        "internal error: the server's log has the details",
    )
    .into_response()
}

/// Answers a probe: 200 and `body`, as plain text.
pub fn plain(status: StatusCode, body: impl Into<String>) -> Response {
    let mut response = (status, body.into()).into_response();
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
