//! Routes, and what every request gets: an id, a span, a guard against panics, one summary line.

use crate::app::App;
use crate::config::Platform;
use crate::error::{Error, Kind};
use crate::handler::{self, RequestId};
use crate::headers::workflow_id;
use crate::id::request_id;
use crate::response::json;
use crate::telemetry;
use crate::telemetry::summary::Summary;
use crate::telemetry::trace::Trace;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, HOST};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Version};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;
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
        .layer(CatchPanicLayer::custom(panic_response))
        .layer(from_fn_with_state(Arc::clone(&app), handle_request))
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

fn panic_response(_: Box<dyn Any + Send>) -> Response {
    Kind::Internal.because("The request could not be handled.").into_response()
}

/// The client's address, if the platform tells it.
#[derive(Debug, Clone, Copy)]
pub struct RemoteIp(pub IpAddr);

/// The steps of every request, whatever its route and outcome.
async fn handle_request(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request_id();
    let trace = Trace::from_headers(request.headers());
    let span = telemetry::request_span(
        &id,
        workflow_id(request.headers()).as_deref(),
        lambda_request_id(&request),
        trace.as_ref(),
        &app.config.project_id,
    );
    let remote_ip = remote_ip(&request, app.config.platform);
    let is_generation = request.uri().path() == GENERATE_IMAGE;
    let summary = Summary::new(span.clone(), &request, remote_ip, is_generation);
    request.extensions_mut().insert(RequestId(id.clone()));

    let mut response = match check_host(&request) {
        Ok(()) => next.run(request).instrument(span).await,
        Err(error) => error.into_response(),
    };
    let id = HeaderValue::from_str(&id).expect("an id is hex digits");
    response.headers_mut().insert(X_REQUEST_ID, id);
    summary.finish(&response);
    response
}

fn lambda_request_id(request: &Request) -> Option<&str> {
    request.extensions().get::<lambda_http::Context>().map(|context| context.request_id.as_str())
}

/// Behind Google's and AWS's front ends, the last address in `X-Forwarded-For` is the one that they saw.
fn remote_ip(request: &Request, platform: Platform) -> Option<IpAddr> {
    match platform {
        Platform::Plain => request.extensions().get::<RemoteIp>().map(|remote| remote.0),
        Platform::CloudRun | Platform::Lambda => {
            let forwarded = request.headers().get("x-forwarded-for")?.to_str().ok()?;
            forwarded.rsplit(',').next()?.trim().parse().ok()
        }
    }
}

/// HTTP/1.1 requires exactly one `Host`, with or without a port (RFC 9112, section 3.2).
fn check_host(request: &Request) -> Result<(), Error> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let is_from_socket = request.extensions().get::<RemoteIp>().is_some();
    match (hosts.next(), hosts.next()) {
        (None, _) if !is_from_socket || request.version() == Version::HTTP_10 => Ok(()),
        (Some(host), None) if is_authority(host.as_bytes()) => Ok(()),
        _ => Err(Kind::InvalidHost.because("The request needs one Host header with a host name.")),
    }
}

fn is_authority(host: &[u8]) -> bool {
    Authority::try_from(host)
        .is_ok_and(|host| !host.host().is_empty() && !host.as_str().contains('@'))
}

pub const GENERATE_IMAGE: &str = "/generate_image";
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
            Router::new().route("/", panics).layer(CatchPanicLayer::custom(panic_response));
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error_code"], "IGA_INTERNAL_SERVER_ERROR");
        assert!(!body.to_string().contains("a bug"), "{body}");
    }
}
