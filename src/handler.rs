//! The single handler function: `POST /generate_image`.

use crate::app::App;
use crate::budget::{Budget, Reservation};
use crate::error::{Error, Kind};
use crate::flight::Deadlines;
use crate::generate::Origin;
use crate::headers::{check_content, idempotency_key, percent_encoded, workflow_id};
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

/// The id of a request: `iga_req_` and eight hex digits, on every response and every log line.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// The time at which the platform ends the request; absent if the platform does not tell.
#[derive(Debug, Clone, Copy)]
pub struct PlatformDeadline(pub Instant);

/// Generates and stores an image for a prompt and returns the image's URI.
pub async fn generate_image(
    State(app): State<Arc<App>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    platform_deadline: Option<Extension<PlatformDeadline>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let (body, memory) = whole_body(body, &app.budget).await?;
    check_content(&headers, &body)?;
    let request = GenerateRequest::parse(&body, &app.config)?;
    drop(body);
    request.prompt.hold(memory);
    let key = idempotency_key(&headers)?;
    telemetry::prompt_received(&request.prompt, &request.prompt_sha256);

    let workflow_id = workflow_id(&headers).map(|id| percent_encoded(&id));
    let origin = Origin { request_id, workflow_id };
    let platform_deadline = platform_deadline.map(|Extension(PlatformDeadline(end))| end);
    let deadlines = Deadlines::new(app.config.generation_deadline, platform_deadline);
    let (generated, prompt) = app.flights.answer(request, key, origin, deadlines).await?;
    let image_url = format!("gs://{}/{}", app.config.bucket, generated.object);
    metrics::image_delivered(&image_url, &generated.model);
    let body = ResponseBody {
        image_url,
        prompt_used: &prompt,
        model_version: format!("vertex-ai-{}", generated.model),
    };
    Ok(response::json(200, &body))
}

#[derive(Serialize)]
struct ResponseBody<'a> {
    image_url: String,
    prompt_used: &'a str,
    model_version: String,
}

/// Reads a body of bounded size, while there is memory for it. A refused body is read for a while and
/// discarded, because a caller that is still sending would see a broken connection instead of the
/// response.
async fn whole_body(mut body: Body, budget: &Budget) -> Result<(Bytes, Reservation), Error> {
    let mut memory = budget.request();
    let mut held = Vec::new();
    let mut received = 0;
    let mut is_refused = false;
    let reading = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err(
                    Kind::MalformedJson.because(format!("The body ended after {received} bytes."))
                );
            };
            let chunk = frame.into_data().unwrap_or_default();
            received += chunk.len();
            if received > MAX_DISCARDED_BYTES {
                break;
            }
            is_refused = is_refused || received <= MAX_BODY_BYTES && !memory.try_grow_to(received);
            match received > MAX_BODY_BYTES || is_refused {
                // Others may use the memory. Otherwise bodies that arrive side by side would all be refused.
                true => (held, memory) = (Vec::new(), budget.request()),
                false => append(&mut held, &chunk),
            }
        }
        Ok(())
    };
    match timeout(BODY_TIMEOUT, reading).await {
        Ok(result) => result?,
        Err(_) => return Err(Kind::MalformedJson.because("The body did not arrive in time.")),
    }
    if received > MAX_BODY_BYTES {
        let details = format!("The body must not exceed {MAX_BODY_BYTES} bytes.");
        return Err(Kind::PayloadTooLarge.because(details));
    }
    if is_refused {
        return Err(Kind::Overloaded.because("Other requests use the memory of this instance."));
    }
    Ok((held.into(), memory))
}

/// Appends without allocating more than an eighth in advance.
fn append(held: &mut Vec<u8>, chunk: &[u8]) {
    if held.capacity() - held.len() < chunk.len() {
        held.reserve_exact(chunk.len() + held.len() / 8);
    }
    held.extend_from_slice(chunk);
}

const MAX_BODY_BYTES: usize = 1 << 20;
const MAX_DISCARDED_BYTES: usize = 32 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
