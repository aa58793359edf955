//! The single handler function: `POST /generate_image`.

use crate::app::App;
use crate::error::{Error, Kind};
use crate::flight::Deadlines;
use crate::generate::Origin;
use crate::headers::{check_content, escaped, idempotency_key, workflow_id};
use crate::request::GenerateRequest;
use crate::response;
use crate::telemetry::{self, metrics};
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use http_body_util::BodyExt;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// `iga_req_` and eight hex digits: on every response and every log line.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// When the platform ends the request, if it tells.
#[derive(Debug, Clone, Copy)]
pub struct PlatformDeadline(pub Instant);

/// Prompt in, image stored, its URI out.
pub async fn generate_image(
    State(app): State<Arc<App>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    platform_deadline: Option<Extension<PlatformDeadline>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let body = whole_body(body).await?;
    check_content(&headers, &body)?;
    let request = GenerateRequest::parse(&body, &app.config)?;
    let key = idempotency_key(&headers)?;
    telemetry::prompt_received(&request.prompt, &request.prompt_sha256);

    let workflow_id = workflow_id(&headers).map(|id| escaped(&id));
    let origin = Origin { request_id, workflow_id };
    let platform_deadline = platform_deadline.map(|Extension(PlatformDeadline(end))| end);
    let deadlines = Deadlines::new(app.config.generation_deadline, platform_deadline);
    let prompt = request.prompt.clone();
    let generated = app.flights.answer(request, key, origin, deadlines).await?;
    let image_url = format!("gs://{}/{}", app.config.bucket, generated.object);
    metrics::image_delivered(&image_url, &generated.model);
    let body = ResponseBody {
        image_url,
        prompt_used: prompt,
        model_version: format!("vertex-ai-{}", generated.model),
    };
    Ok(response::json(200, &body))
}

#[derive(Serialize)]
struct ResponseBody {
    image_url: String,
    prompt_used: String,
    model_version: String,
}

/// Reads a body of bounded size. A larger one is read on for a while and discarded, because a caller that is still
/// sending would see a broken connection instead of the response.
async fn whole_body(mut body: Body) -> Result<Bytes, Error> {
    let mut held = Vec::new();
    let mut received = 0;
    let reading = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err(
                    Kind::MalformedJson.because(format!("The body ended after {received} bytes."))
                );
            };
            let chunk = frame.into_data().unwrap_or_default();
            received += chunk.len();
            if received <= MAX_BODY_BYTES {
                held.extend_from_slice(&chunk);
            } else if received <= MAX_DISCARDED_BYTES {
                held = Vec::new();
            } else {
                break;
            }
        }
        Ok(())
    };
    match timeout(BODY_TIMEOUT, reading).await {
        Ok(result) => result?,
        Err(_) => return Err(Kind::MalformedJson.because("The body did not arrive in time.")),
    }
    match received > MAX_BODY_BYTES {
        true => Err(Kind::PayloadTooLarge
            .because(format!("The body must not exceed {MAX_BODY_BYTES} bytes."))),
        false => Ok(held.into()),
    }
}

const MAX_BODY_BYTES: usize = 1 << 20;
const MAX_DISCARDED_BYTES: usize = 32 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
