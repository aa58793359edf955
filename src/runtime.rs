//! Where the service runs: on a socket (Cloud Run, Docker, a plain machine) or under the Lambda runtime.

use crate::app::App;
use crate::config::{Config, Platform};
use crate::handler::PlatformDeadline;
use crate::router::{GENERATE_IMAGE, router};
use crate::server::{listen, serve_router};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::map_request;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt as _;
use lambda_http::aws_lambda_events::alb::AlbTargetGroupRequest;
use lambda_http::aws_lambda_events::apigw::{ApiGatewayProxyRequest, ApiGatewayV2httpRequest};
use lambda_http::lambda_runtime::{self, LambdaEvent, service_fn};
use lambda_http::request::LambdaRequest;
use lambda_http::tower::{Service, ServiceExt};
use lambda_http::{Adapter, Context};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// Serves until the platform ends the process or a signal stops it.
///
/// # Errors
/// A sentence for the operator, if the address is in use or the Lambda runtime fails.
pub async fn run(app: Arc<App>) -> Result<(), String> {
    match app.config.platform {
        Platform::Lambda => {
            started(&app.config, None);
            let handler = |event: LambdaEvent<Value>| {
                answer_event(Arc::clone(&app), event.payload, event.context)
            };
            lambda_runtime::run(service_fn(handler)).await.map_err(|error| error.to_string())
        }
        Platform::CloudRun | Platform::Plain => {
            let listener = bind(&app.config)?;
            let router = router(Arc::clone(&app));
            serve(app, router, listener, stop_signal()).await;
            Ok(())
        }
    }
}

/// Listens on the address of the settings.
///
/// # Errors
/// A sentence for the operator.
pub fn bind(config: &Config) -> Result<TcpListener, String> {
    let address = SocketAddr::new(config.host, config.port);
    listen(address).map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => "Another process uses the port; set IGA_PORT to use another.",
            ErrorKind::AddrNotAvailable => "This machine does not have the address; set IGA_HOST.",
            ErrorKind::PermissionDenied => "This user may not use the port; set IGA_PORT.",
            _ => "Check IGA_HOST and IGA_PORT.",
        };
        format!("IGA cannot listen on {address}: {error}. {remedy}")
    })
}

/// Serves `router`, which contains the service's own, until `stop`.
pub async fn serve(
    app: Arc<App>,
    router: Router,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) {
    started(&app.config, listener.local_addr().ok());
    serve_router(app, router, listener, stop).await;
}

/// Logs what runs where, with which settings.
fn started(config: &Config, address: Option<SocketAddr>) {
    let targets: Vec<_> =
        config.targets().map(|target| format!("{}/{}", target.location, target.model.id)).collect();
    tracing::info!(
        address = address.as_ref().map(ToString::to_string),
        version = env!("CARGO_PKG_VERSION"),
        platform = ?config.platform,
        project = config.project_id,
        models = targets.join(","),
        prompt_locations = config.prompt_locations().join(","),
        bucket = config.bucket,
        prefix = config.prefix,
        prompts_logged = config.debug,
        "{}",
        if address.is_some() { "listening" } else { "waiting for events" }
    );
}

/// Answers one Lambda event, as JSON in and out, on the path that the Lambda runtime takes.
///
/// # Errors
/// A sentence that says which events IGA takes.
pub async fn invoke(app: Arc<App>, event: &str) -> Result<Value, String> {
    let no_deadline = u64::MAX;
    invoke_until(app, event, no_deadline).await
}

/// Like `invoke`, for a function that Lambda ends at `deadline`, in milliseconds since 1970.
pub async fn invoke_until(app: Arc<App>, event: &str, deadline: u64) -> Result<Value, String> {
    let event = serde_json::from_str(event).map_err(|_| NOT_AN_EVENT.to_owned())?;
    let mut context = Context::default();
    context.deadline = deadline;
    answer_event(app, event, context).await
}

/// Answers an event in the form that its sender expects.
async fn answer_event(app: Arc<App>, event: Value, context: Context) -> Result<Value, String> {
    let Some(empty) = empty_event(&event) else {
        let is_direct = event.get("requestContext").is_none() && event.get("prompt").is_some();
        return match is_direct {
            true => answer_directly(app, event, context).await,
            false => Err(NOT_AN_EVENT.to_owned()),
        };
    };
    // `lambda_http` refuses or panics on requests that the front ends of AWS let through, so it gets an empty
    // event, which decides the form of the response.
    let (method, uri) = (method(&event), uri(&event));
    let (headers, body) = (headers(&event), body(&event));
    let service = lambda_service(app).map_request(move |mut request: lambda_http::Request| {
        (*request.method_mut(), *request.uri_mut()) = (method.clone(), uri.clone());
        request.headers_mut().extend(headers.clone());
        request.map(|_| Body::from(body.clone()))
    });
    let mut adapter = Adapter::from(service);
    let Ok(ready) = adapter.ready().await;
    let Ok(response) = ready.call(LambdaEvent::new(empty, context)).await;
    serde_json::to_value(response).map_err(|error| error.to_string())
}

/// An HTTP event of the same kind without content, or `None` for other events.
fn empty_event(event: &Value) -> Option<LambdaRequest> {
    let context = event.get("requestContext")?;
    if context["http"]["method"].is_string() {
        return Some(LambdaRequest::ApiGatewayV2(ApiGatewayV2httpRequest::default()));
    }
    event["httpMethod"].as_str()?;
    match (context["elb"].is_object(), context["httpMethod"].is_string()) {
        (true, _) => Some(LambdaRequest::Alb(AlbTargetGroupRequest::default())),
        (_, true) => Some(LambdaRequest::ApiGatewayV1(ApiGatewayProxyRequest::default())),
        (false, false) => None,
    }
}

/// A method that HTTP does not allow is one that no route allows.
fn method(event: &Value) -> Method {
    let given = event["requestContext"]["http"]["method"].as_str();
    let name = given.or(event["httpMethod"].as_str()).unwrap_or_default();
    let method = Method::from_bytes(name.as_bytes()).or(Method::from_bytes(b"INVALID"));
    method.expect("a word is a method")
}

/// The path, without API Gateway's stage, which is its first part. No route has a query.
fn uri(event: &Value) -> Uri {
    const ESCAPED: &AsciiSet = &CONTROLS
        .add(b' ')
        .add(b'"')
        .add(b'#')
        .add(b'<')
        .add(b'>')
        .add(b'?')
        .add(b'\\')
        .add(b'^')
        .add(b'`')
        .add(b'{')
        .add(b'|')
        .add(b'}');
    let path = event["rawPath"].as_str().or(event["path"].as_str()).unwrap_or_default();
    let stage = event["requestContext"]["stage"].as_str();
    let rest = stage.and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage));
    let path = rest.filter(|rest| rest.starts_with('/')).unwrap_or(path);
    let path = &path[..path.floor_char_boundary(MAX_PATH_BYTES)];
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path = format!("{slash}{}", utf8_percent_encode(path, ESCAPED));
    path.parse().expect("an escaped path is valid")
}

/// The headers, except those that HTTP does not allow.
fn headers(event: &Value) -> HeaderMap {
    let mut found = HeaderMap::new();
    // Where a name is in both, the first has all its values, and the second the last one.
    for member in ["multiValueHeaders", "headers"] {
        for (name, value) in event[member].as_object().into_iter().flatten() {
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
            if member == "headers" && found.contains_key(&name) {
                continue;
            }
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for text in values.iter().filter_map(Value::as_str) {
                if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
                    // It fails beyond 32,768 headers, which no front end lets through.
                    let _ = found.try_append(&name, value);
                }
            }
        }
    }
    found
}

/// The body. One that claims to be base64 and is not stays as it is, and is then refused as invalid JSON.
fn body(event: &Value) -> Bytes {
    let body = event["body"].as_str().unwrap_or_default();
    let decoded = (event["isBase64Encoded"] == true).then(|| BASE64_STANDARD.decode(body));
    match decoded {
        Some(Ok(bytes)) => bytes.into(),
        Some(Err(_)) | None => Bytes::copy_from_slice(body.as_bytes()),
    }
}

/// Answers a direct invocation: its payload is the request's body, and the result is the response's body.
async fn answer_directly(app: Arc<App>, body: Value, context: Context) -> Result<Value, String> {
    let request = Request::post(GENERATE_IMAGE)
        .header(CONTENT_TYPE, "application/json")
        .extension(context)
        .body(Body::from(body.to_string()))
        .map_err(|error| error.to_string())?;
    let Ok(response) = lambda_service(app).oneshot(request).await;
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
}

fn lambda_service(app: Arc<App>) -> Router {
    router(app).layer(map_request(with_lambda_deadline))
}

/// Adds the deadline of the request: a little before Lambda's timeout, at which the function is killed.
async fn with_lambda_deadline(mut request: Request) -> Request {
    if let Some(context) = request.extensions().get::<Context>() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let remaining = Duration::from_millis(context.deadline).saturating_sub(now + LAMBDA_MARGIN);
        let deadline = Instant::now() + remaining.min(LONGEST_LAMBDA);
        request.extensions_mut().insert(PlatformDeadline(deadline));
    }
    request
}

/// Returns on SIGTERM and on SIGINT, as PID 1 too.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("a process may listen for signals");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a process may listen for signals");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

const NOT_AN_EVENT: &str = "Not a Lambda HTTP event: IGA takes events of a function URL, of API Gateway (payload 1.0 and 2.0) and \
                            of a load balancer, and direct invocations with {\"prompt\": ...}.";
/// Longer than any route, and escaped shorter than the longest URI.
const MAX_PATH_BYTES: usize = 8192;
const LAMBDA_MARGIN: Duration = Duration::from_secs(1);

/// No function runs longer ("Lambda quotas").
const LONGEST_LAMBDA: Duration = Duration::from_secs(900);
