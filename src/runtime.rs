//! Where the service runs: on a socket (Cloud Run, Docker, a plain machine) or under the Lambda runtime.

use crate::app::App;
use crate::config::{Config, Platform};
use crate::handler::PlatformDeadline;
use crate::router::{GENERATE_IMAGE, router};
use crate::server::{listen, serve_router};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::map_request;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt as _;
use lambda_http::lambda_runtime::{self, LambdaEvent, service_fn};
use lambda_http::request::{LambdaRequest, RequestContext};
use lambda_http::tower::{Service, ServiceExt};
use lambda_http::{Adapter, Context, RequestExt as _};
use serde_json::Value;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
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
    let is_http = event.get("requestContext").is_some();
    if !is_http && event.get("prompt").is_some() {
        return answer_directly(app, event, context).await;
    }
    let mut event = with_readable_body(event);
    let headers = take_odd_headers(&mut event);
    let event: LambdaRequest =
        serde_json::from_value(event).map_err(|_| NOT_AN_EVENT.to_owned())?;
    let service = lambda_service(app).map_request(move |request| {
        let mut request = without_stage(request);
        request.headers_mut().extend(headers.clone());
        request
    });
    let mut adapter = Adapter::from(service);
    let Ok(ready) = adapter.ready().await;
    // `lambda_http` panics if the Host header of the event is not a valid host.
    let response = AssertUnwindSafe(|| ready.call(LambdaEvent::new(event, context)));
    let Ok(response) = catch_unwind(response).map_err(|_| BAD_HOST.to_owned())?.await;
    serde_json::to_value(response).map_err(|error| error.to_string())
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

/// Corrects an event whose body claims to be base64 and is not, because `lambda_http` would panic. The
/// body is then refused as invalid JSON.
fn with_readable_body(mut event: Value) -> Value {
    let is_base64 = event.get("isBase64Encoded") == Some(&Value::Bool(true));
    let body = event.get("body").and_then(Value::as_str).unwrap_or_default();
    if is_base64 && BASE64_STANDARD.decode(body).is_err() {
        event["isBase64Encoded"] = Value::Bool(false);
    }
    event
}

/// Takes the headers out of an event that are not ASCII, because `lambda_http` would refuse the event.
fn take_odd_headers(event: &mut Value) -> HeaderMap {
    let mut odd = HeaderMap::new();
    let mut is_plain = |name: &str, value: &Value| {
        let Some(text) = value.as_str().filter(|text| HeaderValue::from_str(text).is_err()) else {
            return true;
        };
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(text.as_bytes())) {
            odd.insert(name, value);
        }
        false
    };
    for member in ["headers", "multiValueHeaders"] {
        if let Some(headers) = event.get_mut(member).and_then(Value::as_object_mut) {
            headers.retain(|name, value| match value {
                Value::Array(values) => {
                    values.retain(|value| is_plain(name, value));
                    !values.is_empty()
                }
                value => is_plain(name, value),
            });
        }
    }
    odd
}

/// Removes API Gateway's stage, which is the first part of the path; IGA's routes have no stages.
fn without_stage(mut request: lambda_http::Request) -> lambda_http::Request {
    let stage = match request.request_context_ref() {
        Some(RequestContext::ApiGatewayV1(context)) => context.stage.as_deref(),
        Some(RequestContext::ApiGatewayV2(context)) => context.stage.as_deref(),
        Some(_) | None => None,
    };
    let path = request.uri().path();
    let rest = stage.and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage));
    if let Some(uri) = rest.filter(|rest| rest.starts_with('/')).and_then(|rest| rest.parse().ok())
    {
        *request.uri_mut() = uri;
    }
    request
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

const BAD_HOST: &str = "The event names a host or a path that cannot be part of a URL.";
const NOT_AN_EVENT: &str = "Not a Lambda HTTP event: IGA takes events of a function URL, of API Gateway (payload 1.0 and 2.0) and \
                            of a load balancer, and direct invocations with {\"prompt\": ...}.";
const LAMBDA_MARGIN: Duration = Duration::from_secs(1);

/// No function runs longer ("Lambda quotas").
const LONGEST_LAMBDA: Duration = Duration::from_secs(900);
