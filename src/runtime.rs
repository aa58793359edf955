//! Where the service runs: on a socket (Cloud Run, Docker, a plain machine) or under the Lambda runtime.

use crate::app::App;
use crate::config::{Config, Platform};
use crate::handler::PlatformDeadline;
use crate::router::router;
use crate::server::{listen, serve};
use axum::Router;
use axum::extract::Request;
use axum::middleware::map_request;
use lambda_http::lambda_runtime::LambdaEvent;
use lambda_http::request::LambdaRequest;
use lambda_http::tower::ServiceExt;
use lambda_http::{Adapter, Context};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Serves until the platform ends the process or a signal stops it.
///
/// # Errors
/// A sentence for the operator: the address is taken, the Lambda runtime gave up.
pub async fn run(app: Arc<App>) -> Result<(), String> {
    match app.config.platform {
        Platform::Lambda => {
            lambda_http::run(lambda_service(app)).await.map_err(|error| error.to_string())
        }
        Platform::CloudRun | Platform::Plain => {
            let address = SocketAddr::new(app.config.host, app.config.port);
            let listener = listen(address).map_err(|error| {
                format!(
                    "IGA cannot listen on {address}: {error}. Another process may use the port; set IGA_PORT to \
                     use another."
                )
            })?;
            let stop = stop_signal();
            started(&app.config, listener.local_addr().ok());
            serve(app, listener, stop).await;
            Ok(())
        }
    }
}

/// The line by which an operator sees what runs where, with which settings.
fn started(config: &Config, address: Option<SocketAddr>) {
    let targets = std::iter::once(&config.model).chain(&config.fallbacks);
    let targets: Vec<_> =
        targets.map(|target| format!("{}/{}", target.location, target.model.id)).collect();
    tracing::info!(
        address = address.map(|address| address.to_string()),
        version = env!("CARGO_PKG_VERSION"),
        platform = ?config.platform,
        project = config.project_id,
        models = targets.join(","),
        bucket = config.bucket,
        prefix = config.prefix,
        prompts_logged = config.debug,
        "listening"
    );
}

/// Answers one Lambda event, as JSON in and out, on the path that the Lambda runtime takes.
///
/// # Errors
/// A sentence that says what is wrong with the event.
pub async fn invoke(app: Arc<App>, event: &str) -> Result<Value, String> {
    let no_deadline = u64::MAX;
    invoke_until(app, event, no_deadline).await
}

/// The same, for a function that Lambda will end at `deadline`, in milliseconds since 1970.
pub async fn invoke_until(app: Arc<App>, event: &str, deadline: u64) -> Result<Value, String> {
    let event: LambdaRequest = serde_json::from_str(event)
        .map_err(|error| format!("This is no event that Lambda sends for HTTP: {error}."))?;
    let mut context = Context::default();
    context.deadline = deadline;
    let Ok(answer) =
        Adapter::from(lambda_service(app)).oneshot(LambdaEvent::new(event, context)).await;
    serde_json::to_value(answer).map_err(|error| error.to_string())
}

fn lambda_service(app: Arc<App>) -> Router {
    router(app).layer(map_request(with_lambda_deadline))
}

/// Lambda kills a function at its timeout without a word; everything must be over a little earlier.
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
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("a process may listen for signals");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a process may listen for signals");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

const LAMBDA_MARGIN: Duration = Duration::from_secs(1);

/// No function runs longer ("Lambda quotas").
const LONGEST_LAMBDA: Duration = Duration::from_secs(900);
