//! Routes, and what every request gets: an id, a span, a guard against panics, one summary line.

use crate::app::App;
use crate::error::{Error, Kind};
use crate::handler::{self, RequestId, workflow_id};
use crate::id::request_id;
use crate::response::json;
use crate::telemetry::trace::Trace;
use crate::telemetry::{self, metrics};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::ALLOW;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

/// The whole service, for a socket and for Lambda alike.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route(
            GENERATE_IMAGE,
            post(handler::generate_image).fallback(|| method_not_allowed("POST")),
        )
        .route("/health", get(health).fallback(|| method_not_allowed("GET, HEAD")))
        .route("/", get(index).fallback(|| method_not_allowed("GET, HEAD")))
        .fallback(not_found)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

async fn health() -> Response {
    json(200, &json!({"status": "ok"}))
}

async fn index() -> Response {
    let routes = json!(["POST /generate_image", "GET /health", "GET /"]);
    json(200, &json!({"service": "iga", "version": env!("CARGO_PKG_VERSION"), "routes": routes}))
}

async fn not_found() -> Error {
    Kind::NotFound.because("The endpoints are POST /generate_image, GET /health and GET /.")
}

async fn method_not_allowed(allowed: &'static str) -> Response {
    let mut response =
        Kind::MethodNotAllowed.because(format!("Allowed: {allowed}.")).into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    Kind::Internal.because("The request could not be handled.").into_response()
}

/// Everything that happens once a request, whatever its route and outcome.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let trace = Trace::from_headers(request.headers());
    let span = telemetry::request_span(
        &id,
        workflow_id(request.headers()),
        trace.as_ref(),
        &app.config.project_id,
    );
    request.extensions_mut().insert(RequestId(id.clone()));

    let mut response = next.run(request).instrument(span.clone()).await;
    span.in_scope(|| summary(&method, &path, &response, start));
    let id = HeaderValue::from_str(&id).expect("an id is hex digits");
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// The one line that says how a request went, and its metrics.
fn summary(method: &Method, path: &str, response: &Response, start: Instant) {
    let status = response.status().as_u16();
    let latency_ms = start.elapsed().as_millis() as u64;
    let error = response.extensions().get::<Arc<Error>>();
    match error {
        None if path == GENERATE_IMAGE => {
            tracing::info!(status, latency_ms, "{method} {path} {status}")
        }
        None => tracing::debug!(status, latency_ms, "{method} {path} {status}"),
        Some(error) => {
            let (code, details, causes) =
                (error.kind.row().code, error.to_string(), error.causes());
            if needs_someone(error.kind) {
                tracing::error!(
                    status,
                    latency_ms,
                    code,
                    details,
                    causes,
                    "{method} {path} {status} {code}"
                );
            } else {
                tracing::info!(
                    status,
                    latency_ms,
                    code,
                    details,
                    causes,
                    "{method} {path} {status} {code}"
                );
            }
        }
    }
    if path == GENERATE_IMAGE {
        metrics::request_done(
            error.map_or("success", |error| error.kind.row().tag),
            start.elapsed(),
        );
    }
}

/// Whether someone should look: the service or its settings are at fault, not the request or the hour.
fn needs_someone(kind: Kind) -> bool {
    match kind {
        Kind::PermissionDenied
        | Kind::VertexApi
        | Kind::ModelNotFound
        | Kind::FileSave
        | Kind::Internal => true,
        Kind::PromptMissing
        | Kind::MalformedJson
        | Kind::InvalidPayload
        | Kind::InvalidIdempotencyKey
        | Kind::IdempotencyKeyReused
        | Kind::SafetyBlocked
        | Kind::InvalidArgument
        | Kind::UnsupportedParameter
        | Kind::NotFound
        | Kind::MethodNotAllowed
        | Kind::PayloadTooLarge
        | Kind::UnsupportedMediaType
        | Kind::ResourceExhausted
        | Kind::VertexUnavailable
        | Kind::EmptyImage
        | Kind::Overloaded => false,
    }
}

const GENERATE_IMAGE: &str = "/generate_image";
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_panic_becomes_the_contracts_500() {
        let panics = get(async || -> Response { panic!("a bug") });
        let router: Router =
            Router::new().route("/", panics).layer(CatchPanicLayer::custom(panicked));
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error_code"], "IGA_INTERNAL_SERVER_ERROR");
        assert!(!body.to_string().contains("a bug"), "{body}");
    }
}
