//! The single handler function: `POST /generate_image`.

use crate::app::App;
use crate::error::{Error, Kind};
use crate::flight::Deadlines;
use crate::generate::Origin;
use crate::request::{GenerateRequest, idempotency_key};
use crate::response;
use crate::telemetry::{self, metrics};
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use http_body_util::BodyExt;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// `iga_req_` and eight hex digits: on every answer, on every log line.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// When the platform ends the request, where it says so.
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
    check_content_type(&headers, &body)?;
    let request = GenerateRequest::parse(&body, &app.config)?;
    let key = idempotency_key(&headers)?;
    telemetry::prompt_received(&request.prompt, &request.prompt_sha256);

    let origin = Origin { request_id, workflow_id: workflow_id(&headers).map(str::to_owned) };
    let platform_deadline = platform_deadline.map(|Extension(PlatformDeadline(end))| end);
    let deadlines = Deadlines::new(app.config.generation_deadline, platform_deadline);
    let prompt = request.prompt.clone();
    let generated = app.flights.answer(request, key, origin, deadlines).await?;
    metrics::image_delivered();
    let body = AnswerBody {
        image_url: format!("gs://{}/{}", app.config.bucket, generated.object),
        prompt_used: prompt,
        model_version: format!("vertex-ai-{}", generated.model),
    };
    Ok(response::json(200, &body))
}

#[derive(Serialize)]
struct AnswerBody {
    image_url: String,
    prompt_used: String,
    model_version: String,
}

/// The caller's name for the work that this request is part of, if it can go into a log.
pub fn workflow_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("x-workflow-id")?.to_str().ok()?;
    (1..=MAX_WORKFLOW_ID_CHARS).contains(&text.len()).then_some(text)
}

/// Reads a body of bounded size. One that is too large is read on, and thrown away, for a while: a
/// caller that is still sending would otherwise see a broken connection instead of the answer.
async fn whole_body(mut body: Body) -> Result<Bytes, Error> {
    let mut held = Vec::new();
    let mut received = 0;
    let reading = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err(Kind::MalformedJson
                    .because(format!("The body ended early, at line 1 column {received}.")));
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
        true => {
            Err(Kind::PayloadTooLarge.because(format!("The body may have {MAX_BODY_BYTES} bytes.")))
        }
        false => Ok(held.into()),
    }
}

/// An empty body is a missing prompt, whatever its type.
fn check_content_type(headers: &HeaderMap, body: &[u8]) -> Result<(), Error> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = given.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match body.is_empty() || essence.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(Kind::UnsupportedMediaType.because(match given {
            Some(given) => format!("The request's Content-Type is {given:?}."),
            None => "The request has no Content-Type.".to_owned(),
        })),
    }
}

const MAX_BODY_BYTES: usize = 1 << 20;
const MAX_DISCARDED_BYTES: usize = 32 << 20;
const MAX_WORKFLOW_ID_CHARS: usize = 255;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
