//! Vertex AI over HTTP: the address of a model, the meaning of its responses and errors, and when to retry.

use crate::budget::{Budget, Reservation};
use crate::config::{RequestType, Target};
use crate::error::{Error, Kind};
use crate::extract::{ExtractError, Extracted, ImageExtractor, Limits, Unusable};
use crate::google::client::{Client, SendError};
use crate::google::http::{next_chunk, text};
use crate::google::rpc_error::{GoogleError, support_codes};
use crate::image::Image;
use crate::model::{Outcome, Params, elements};
use crate::retry::{self, Failure, within};
use crate::telemetry::metrics;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// A client of Vertex AI's image models.
pub struct Vertex {
    pub client: Arc<Client>,
    /// Replaces Google's hosts.
    pub endpoint: Option<String>,
    pub project_id: String,
    pub budget: Budget,
    pub first_wait: Duration,
    pub labels: BTreeMap<String, String>,
    pub request_type: Option<RequestType>,
    /// No call begins if less time is left.
    pub call_time: Duration,
}

/// How long the fastest image takes.
pub const CALL_TIME: Duration = Duration::from_secs(5);

/// An image that a model has made.
pub struct Paid {
    pub image: Image,
    /// The id of the model that made it: the requested one, unless the response names another.
    pub model: String,
}

/// Whether the model may be called now. An error says why not.
pub type MayPay<'a> = &'a (dyn Fn() -> Result<(), Error> + Sync);

/// Why a model cannot be used, by what an operator must fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeError {
    /// The model is retired, or not served in the location.
    ModelGone,
    NoSuchLocation,
    Permission,
    ApiDisabled,
    BillingDisabled,
    /// Too many requests at this moment.
    Busy,
    /// The project's quota is zero.
    NoQuota,
    /// The request got no response.
    Unreachable,
    Other,
}

impl Vertex {
    /// Generates one paid image, read while the response arrives.
    ///
    /// Retries only failures that cost nothing: 429, 503, and no connection. `may_pay` decides right before each
    /// request is sent; its error ends the attempts.
    pub async fn image(
        &self,
        target: &Target,
        prompt: &str,
        params: &Params,
        may_pay: MayPay<'_>,
        deadline: Instant,
    ) -> Result<Paid, Error> {
        let url = self.url(target);
        // Built for each try, so that it is held only while it is sent.
        let body = || Bytes::from(target.model.family.body(prompt, params, &self.labels));
        let last_start = deadline.checked_sub(self.call_time).unwrap_or(deadline);
        let may_begin: MayPay<'_> = &|| match Instant::now() < last_start {
            true => may_pay(),
            false => Err(no_time_left()),
        };
        retry::until(last_start, self.first_wait, |attempt| {
            let (url, body) = (&url, &body);
            async move {
                let start = Instant::now();
                let result = self.attempt(target, url, body, may_begin, deadline).await;
                let outcome = match &result {
                    Ok(_) => "ok",
                    Err(failure) => failure.error.kind.row().error_type,
                };
                metrics::vertex_called(target.model.id, attempt, outcome, start.elapsed());
                result.inspect_err(|_| metrics::vertex_failed(outcome))
            }
        })
        .await
    }

    /// Checks that a model can be used, with a generating request that has no prompt and so costs nothing.
    ///
    /// The request has the same host, project, location, model and permission as a real one, in both families;
    /// a 400 about the missing prompt shows that all of these are in order. The publisher model's own resource
    /// depends on neither location nor permission, and `:countTokens` is not documented for Imagen. No page
    /// promises that the model is looked up before the prompt: do not conclude from a success that a model which
    /// is known to be retired is back.
    ///
    /// # Errors
    /// The cause, and the error with which a generation would end.
    pub async fn probe(
        &self,
        target: &Target,
        deadline: Instant,
    ) -> Result<(), (ProbeError, Error)> {
        let body = Bytes::from_static(target.model.family.body_without_prompt());
        let response =
            match self.post(&self.url(target), || body.clone(), &|| Ok(()), deadline).await {
                Ok(response) => response,
                Err(error) => return Err((ProbeError::Unreachable, send_failure(error).error)),
            };
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(());
        }
        let google = read_error(response, deadline).await;
        match ProbeError::of(status, &google) {
            Some(probe_error) => Err((probe_error, meaning(status, &google, target).error)),
            None => Ok(()),
        }
    }

    /// Scheme and host of the target's endpoint.
    pub fn base_url(&self, target: &Target) -> String {
        self.endpoint.clone().unwrap_or_else(|| base_url(&target.location))
    }

    fn url(&self, target: &Target) -> String {
        let base = self.base_url(target);
        let (project, location, model) = (&self.project_id, &target.location, target.model.id);
        let verb = target.model.family.verb();
        format!(
            "{base}/v1/projects/{project}/locations/{location}/publishers/google/models/{model}:{verb}"
        )
    }

    async fn attempt(
        &self,
        target: &Target,
        url: &str,
        body: impl Fn() -> Bytes,
        may_pay: MayPay<'_>,
        deadline: Instant,
    ) -> Result<Paid, Failure> {
        let response = self.post(url, body, may_pay, deadline).await.map_err(send_failure)?;
        match response.status() {
            StatusCode::OK => self.read(target, response.into_body(), deadline).await,
            _ => Err(response_failure(target, response, deadline).await),
        }
    }

    async fn post(
        &self,
        url: &str,
        body: impl Fn() -> Bytes,
        may_pay: MayPay<'_>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, SendError> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let request = || {
            may_pay().map_err(SendError::Unsent)?;
            let mut request = Request::post(url)
                .header(CONTENT_TYPE, "application/json")
                .header("x-server-timeout", remaining.as_secs().max(1));
            if let Some(request_type) = self.request_type {
                request = request.header("x-vertex-ai-llm-request-type", request_type.as_str());
            }
            Ok::<_, SendError>(request.body(text(body()))?)
        };
        self.client.send(deadline, remaining, request).await
    }

    /// Reads a 200 until its JSON is complete. A response that breaks off is not retried, because its
    /// image may be paid.
    async fn read(
        &self,
        target: &Target,
        mut body: Incoming,
        deadline: Instant,
    ) -> Result<Paid, Failure> {
        let reserve = async {
            match body.size_hint().exact() {
                Some(json_bytes) => {
                    let image_bytes = (json_bytes / 4 * 3) as usize;
                    self.budget.reserve(image_bytes.min(Limits::DEFAULT.image_bytes)).await
                }
                None => self.budget.reserve_usual().await,
            }
        };
        let mut reservation =
            timeout_at(deadline, reserve).await.map_err(|_| Failure::never(too_late()))?;
        let mut extractor = ImageExtractor::new(Limits::DEFAULT, target.model.family.best_so_far());
        let mut read = 0;
        while !extractor.is_complete() {
            let Some(chunk) =
                chunk_before(deadline, &mut body, read).await.map_err(Failure::never)?
            else {
                break;
            };
            read += chunk.len();
            extractor.feed(&chunk).map_err(|error| Failure::never(extract_error(error, read)))?;
            timeout_at(deadline, reservation.grow_to(extractor.held_bytes()))
                .await
                .map_err(|_| Failure::never(too_late()))?;
        }
        let extracted =
            extractor.finish().map_err(|error| Failure::never(extract_error(error, read)))?;
        tokio::spawn(drain(body));
        paid_image(target, extracted, reservation)
    }
}

/// Reads on for a moment after the JSON, so that a connection which ends its response properly can be reused.
/// Dropping the body closes any other.
async fn drain(mut body: Incoming) {
    let mut read = 0;
    let to_the_end = async {
        while let Ok(Some(chunk)) = next_chunk(&mut body).await {
            read += chunk.len();
            if read > MAX_DRAINED_BYTES {
                break;
            }
        }
    };
    let _ = timeout(DRAIN_TIME, to_the_end).await;
}

/// Base URL by location ("Locations", "Deployments and endpoints").
fn base_url(location: &str) -> String {
    match location {
        "global" => "https://aiplatform.googleapis.com".to_owned(),
        region if region.contains('-') => format!("https://{region}-aiplatform.googleapis.com"),
        multi_region => format!("https://aiplatform.{multi_region}.rep.googleapis.com"),
    }
}

async fn chunk_before(
    deadline: Instant,
    body: &mut Incoming,
    read: usize,
) -> Result<Option<Bytes>, Error> {
    match timeout_at(deadline, next_chunk(body)).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => Err(broken_off(read).caused_by(error)),
        Err(_) => Err(too_late()),
    }
}

/// The image of a complete response, or the failure that the response stands for.
fn paid_image(
    target: &Target,
    mut extracted: Extracted,
    mut reservation: Reservation,
) -> Result<Paid, Failure> {
    let skeleton = &extracted.skeleton;
    let outcome = target.model.family.outcome(skeleton);
    if let (false, Some(failure)) =
        (matches!(outcome, Outcome::Image(_)), failure_in_200(skeleton, target))
    {
        return Err(failure);
    }
    let error = match outcome {
        Outcome::Image(number) => {
            let blob = extracted.images.get_mut(number).and_then(Option::take);
            drop(extracted.images);
            let blob = blob.unwrap_or_default();
            reservation.settle(blob.len());
            match Image::new(blob, reservation) {
                Some(image) => {
                    let model = model_of(skeleton, target.model.id);
                    return Ok(Paid { image, model });
                }
                None => Kind::EmptyImage.because(Unusable::Empty.to_string()),
            }
        }
        Outcome::Blocked(text) => Kind::SafetyBlocked.because(text),
        Outcome::Empty(text) => {
            let problem = match extracted.unusable {
                None if text.is_empty() => Unusable::Empty.to_string(),
                problem => problem.map(|problem| problem.to_string()).unwrap_or_default(),
            };
            Kind::EmptyImage.because(format!("{problem} {text}").trim())
        }
        Outcome::Unknown => {
            Kind::VertexApi.because("The model's response is not what its API documents.")
        }
    };
    Err(Failure::never(error))
}

/// The failure of an error envelope in a 200.
fn failure_in_200(skeleton: &Value, target: &Target) -> Option<Failure> {
    elements(skeleton).iter().find(|chunk| !chunk["error"].is_null())?;
    let google = GoogleError::of(skeleton);
    let status = google.code.filter(|code| (400..600).contains(code)).unwrap_or(500);
    let mut failure = meaning(status, &google, target);
    failure.error.retry_after = google.retry_delay;
    Some(failure)
}

/// The id of the model that the response names, if that is another one than the requested one.
fn model_of(skeleton: &Value, requested: &str) -> String {
    let mut names = elements(skeleton).iter().flat_map(|chunk| {
        let resource = chunk["model"].as_str().filter(|name| name.contains("publishers/"));
        chunk["modelVersion"].as_str().or(resource)
    });
    let Some(name) = names.next() else { return requested.to_owned() };
    let id = name.rsplit('/').next().unwrap_or_default();
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    if id.is_empty() || id.len() > MAX_MODEL_ID_BYTES || !id.bytes().all(is_id) {
        return requested.to_owned();
    }
    if without_version(id).eq_ignore_ascii_case(without_version(requested)) {
        tracing::debug!(model_version = id, "the response names version {id} of its model");
        return requested.to_owned();
    }
    tracing::info!(
        model = requested,
        model_version = id,
        "model {requested} was requested, {id} made the image"
    );
    id.to_owned()
}

/// A model's id without the number or name of its version: `@006`, `@default`, `-001`, `-09-2025`.
fn without_version(id: &str) -> &str {
    let mut id = id.split('@').next().unwrap_or_default();
    while let Some((rest, number)) = id.rsplit_once('-') {
        let is_version = number.len() >= 2 && number.bytes().all(|byte| byte.is_ascii_digit());
        if !is_version {
            break;
        }
        id = rest;
    }
    id
}

fn extract_error(error: ExtractError, read: usize) -> Error {
    match error {
        ExtractError::Truncated => broken_off(read),
        ExtractError::InvalidJson => Kind::VertexApi.because(error.to_string()),
    }
}

fn broken_off(read: usize) -> Error {
    Kind::VertexApi.because(format!(
        "The model's response broke off after {read} bytes. If its image was paid, it is lost."
    ))
}

fn too_late() -> Error {
    Kind::VertexUnavailable
        .because("Service Unavailable: the model did not respond within the deadline.")
}

fn no_time_left() -> Error {
    Kind::VertexUnavailable
        .because("Service Unavailable: less time is left than the model needs for an image.")
}

fn send_failure(error: SendError) -> Failure {
    match error {
        SendError::Unsent(error) => Failure::never(error),
        SendError::Deadline => Failure::never(too_late()),
        SendError::Http(error) if error.is_connect() => Failure::later(
            Kind::VertexUnavailable.because("Service Unavailable: no connection.").caused_by(error),
        ),
        SendError::Http(error) => {
            let text = "Service Unavailable: the connection broke before the response began.";
            Failure::never(Kind::VertexUnavailable.because(text).caused_by(error))
        }
    }
}

/// The failure that a response other than 200 stands for.
async fn response_failure(
    target: &Target,
    response: Response<Incoming>,
    deadline: Instant,
) -> Failure {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let google = read_error(response, deadline).await;
    let mut failure = meaning(status, &google, target);
    failure.error.retry_after = google.retry_after(&headers);
    if let Some(body) = google.body {
        failure.error = failure.error.caused_by(body);
    }
    failure
}

async fn read_error(response: Response<Incoming>, deadline: Instant) -> GoogleError {
    let mut incoming = response.into_body();
    let mut body = Vec::new();
    let deadline = within(deadline, ERROR_TIME);
    while body.len() < MAX_ERROR_BYTES {
        match timeout_at(deadline, next_chunk(&mut incoming)).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            // The status alone must suffice.
            Ok(Ok(None) | Err(_)) | Err(_) => break,
        }
    }
    GoogleError::parse(&body)
}

/// The failure that a Google error means: by its HTTP status first, then by Google's status word and
/// reason; the message text only refines it ("API errors").
fn meaning(status: u16, google: &GoogleError, target: &Target) -> Failure {
    let text = google.text(status);
    match status {
        400 if is_about_permission(google) => Failure::never(Kind::PermissionDenied.because(text)),
        400 if is_safety_block(google) => Failure::never(Kind::SafetyBlocked.because(text)),
        400 if google.status == FAILED_PRECONDITION => {
            Failure::never(Kind::PermissionDenied.because(text))
        }
        400 => Failure::never(Kind::InvalidArgument.because(text)),
        401 | 403 => Failure::never(Kind::PermissionDenied.because(text)),
        404 => Failure::never(match Missing::of(google) {
            Missing::Model => Kind::ModelNotFound.because(format!(
                "{} Vertex AI: {text}",
                target.model.not_served_hint(&target.location)
            )),
            Missing::Location => Kind::PlaceNotFound.because(format!(
                "Vertex AI has no such address for location {}; check its spelling. {text}",
                target.location
            )),
            Missing::Project => Kind::PlaceNotFound
                .because(format!("Vertex AI does not find the project; check its id. {text}")),
            Missing::Other => Kind::InvalidArgument.because(text),
        }),
        429 if google.quota_is_zero => Failure::never(Kind::ResourceExhausted.because(text)),
        429 => Failure::later(Kind::ResourceExhausted.because(text)),
        503 => {
            Failure::later(Kind::VertexUnavailable.because(format!("Service Unavailable: {text}")))
        }
        _ => Failure::never(Kind::VertexApi.because(text)),
    }
}

/// What a 404 is about.
enum Missing {
    Model,
    Project,
    /// Also for a response without JSON, which only a wrong host or location sends.
    Location,
    Other,
}

impl Missing {
    fn of(google: &GoogleError) -> Missing {
        let message = google.message.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|words| message.contains(words));
        if !google.json {
            Missing::Location
        } else if has(&["publisher model", "publishers/google/models/", "end of life"]) {
            Missing::Model
        } else if has(&["project"]) {
            Missing::Project
        } else if has(&["location", "region"]) {
            Missing::Location
        } else {
            Missing::Other
        }
    }
}

fn is_about_permission(google: &GoogleError) -> bool {
    let reasons = ["BILLING_DISABLED", "SERVICE_DISABLED", "API_KEY_INVALID"];
    reasons.into_iter().any(|reason| google.has_reason(reason)) || wants_billing(google)
}

fn wants_billing(google: &GoogleError) -> bool {
    google.message.contains("requires billing to be enabled")
}

fn is_safety_block(google: &GoogleError) -> bool {
    let texts = [&google.message, &google.debug].map(|text| text.to_ascii_lowercase());
    SAFETY_WORDS.iter().any(|words| texts.iter().any(|text| text.contains(words)))
        || texts.iter().any(|text| support_codes(text).is_some())
}

impl ProbeError {
    /// `None` for the 400 that a missing prompt gets.
    fn of(status: u16, google: &GoogleError) -> Option<ProbeError> {
        Some(match status {
            400 | 403 if google.has_reason("SERVICE_DISABLED") => ProbeError::ApiDisabled,
            400 | 403 if google.has_reason("BILLING_DISABLED") || wants_billing(google) => {
                ProbeError::BillingDisabled
            }
            400 if google.json
                && google.status != FAILED_PRECONDITION
                && !is_about_permission(google) =>
            {
                return None;
            }
            403 => ProbeError::Permission,
            404 => match Missing::of(google) {
                Missing::Model => ProbeError::ModelGone,
                Missing::Location => ProbeError::NoSuchLocation,
                Missing::Project | Missing::Other => ProbeError::Other,
            },
            429 if google.quota_is_zero => ProbeError::NoQuota,
            429 => ProbeError::Busy,
            _ => ProbeError::Other,
        })
    }
}

/// The wording of a refused prompt, in lower case, in the API's older and newer versions.
const SAFETY_WORDS: &[&str] = &[
    "responsible ai",
    "could not be submitted",
    "violate our policies",
    "usage guidelines",
    "sensitive words",
    "prohibited content",
    "error code: 58061214",
];

const FAILED_PRECONDITION: &str = "FAILED_PRECONDITION";

/// The limits of reading the body of an error.
const ERROR_TIME: Duration = Duration::from_secs(2);
const MAX_ERROR_BYTES: usize = 64 * 1024;
const MAX_MODEL_ID_BYTES: usize = 100;

/// The limits of reading a response after its JSON.
const DRAIN_TIME: Duration = Duration::from_secs(1);
const MAX_DRAINED_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::retry::Again;
    use serde_json::json;

    fn target() -> Target {
        Target {
            model: Model::find("imagegeneration@006").unwrap(),
            location: "us-central1".to_owned(),
        }
    }

    fn meaning_of(status: u16, body: &str) -> (Kind, Again, String) {
        let failure = meaning(status, &GoogleError::parse(body.as_bytes()), &target());
        (failure.error.kind, failure.again, failure.error.to_string())
    }

    fn google(message: &str) -> String {
        json!({"error": {"code": 0, "message": message, "status": "X"}}).to_string()
    }

    #[test]
    fn a_missing_prompt_alone_is_not_an_error() {
        let error = |status: &str, message: &str, reason: &str| {
            json!({"error": {"status": status, "message": message, "details": [{"reason": reason}]}}).to_string()
        };
        let contents = "Unable to submit request because at least one contents field is required.";
        for (http, body, probe_error) in [
            (400, error("INVALID_ARGUMENT", contents, ""), None),
            (
                400,
                error("FAILED_PRECONDITION", "User location is not supported.", ""),
                Some(ProbeError::Other),
            ),
            (
                400,
                error("INVALID_ARGUMENT", "API key not valid.", "API_KEY_INVALID"),
                Some(ProbeError::Other),
            ),
            (400, "<html>".to_owned(), Some(ProbeError::Other)),
            (
                400,
                error("X", "requires billing to be enabled", ""),
                Some(ProbeError::BillingDisabled),
            ),
            (403, error("X", "", "BILLING_DISABLED"), Some(ProbeError::BillingDisabled)),
            (403, error("X", "", "SERVICE_DISABLED"), Some(ProbeError::ApiDisabled)),
            (403, error("X", "", "IAM_PERMISSION_DENIED"), Some(ProbeError::Permission)),
            (401, error("X", "", ""), Some(ProbeError::Other)),
            (
                404,
                error("NOT_FOUND", "Publisher Model `x` was not found", ""),
                Some(ProbeError::ModelGone),
            ),
            (404, error("NOT_FOUND", "Project `x` not found", ""), Some(ProbeError::Other)),
            (
                404,
                error("NOT_FOUND", "Location x is not found", ""),
                Some(ProbeError::NoSuchLocation),
            ),
            (
                404,
                error("NOT_FOUND", "Requested entity was not found.", ""),
                Some(ProbeError::Other),
            ),
            (404, "<html>".to_owned(), Some(ProbeError::NoSuchLocation)),
            (429, error("X", "", ""), Some(ProbeError::Busy)),
            (503, error("X", "", ""), Some(ProbeError::Other)),
        ] {
            assert_eq!(
                ProbeError::of(http, &GoogleError::parse(body.as_bytes())),
                probe_error,
                "{http} {body}"
            );
        }
    }

    #[test]
    fn the_host_follows_the_location() {
        assert_eq!(base_url("global"), "https://aiplatform.googleapis.com");
        assert_eq!(base_url("us-central1"), "https://us-central1-aiplatform.googleapis.com");
        assert_eq!(base_url("eu"), "https://aiplatform.eu.rep.googleapis.com");
    }

    #[test]
    fn every_status_has_its_line_of_the_contract() {
        for (status, message, kind, again) in [
            (400, "Invalid aspect ratio, 4:5", Kind::InvalidArgument, Again::Never),
            (
                400,
                "This method requires billing to be enabled.",
                Kind::PermissionDenied,
                Again::Never,
            ),
            (
                400,
                "The prompt could not be submitted. Support codes: 42876398",
                Kind::SafetyBlocked,
                Again::Never,
            ),
            (
                400,
                "The response is blocked, as it may violate our policies.",
                Kind::SafetyBlocked,
                Again::Never,
            ),
            (400, "Invalid safety setting: x", Kind::InvalidArgument, Again::Never),
            (
                401,
                "Request had invalid authentication credentials.",
                Kind::PermissionDenied,
                Again::Never,
            ),
            (
                403,
                "Permission 'aiplatform.endpoints.predict' denied",
                Kind::PermissionDenied,
                Again::Never,
            ),
            (
                404,
                "Publisher model `projects/p/x` was not found or your project does not have access to it.",
                Kind::ModelNotFound,
                Again::Never,
            ),
            (
                404,
                "Model publishers/google/models/x is retired.",
                Kind::ModelNotFound,
                Again::Never,
            ),
            (
                404,
                "The imagegeneration@005 model has reached its end of life.",
                Kind::ModelNotFound,
                Again::Never,
            ),
            (404, "Requested entity was not found.", Kind::InvalidArgument, Again::Never),
            (404, "Image size 512 is not found.", Kind::InvalidArgument, Again::Never),
            (404, "Project `iga-1` not found.", Kind::PlaceNotFound, Again::Never),
            (404, "Unknown location mars-1.", Kind::PlaceNotFound, Again::Never),
            (429, "Resource exhausted.", Kind::ResourceExhausted, Again::Later),
            (429, "Quota exceeded, limit: 0", Kind::ResourceExhausted, Again::Never),
            (499, "The operation was cancelled.", Kind::VertexApi, Again::Never),
            (500, "Internal error encountered.", Kind::VertexApi, Again::Never),
            (503, "The model is overloaded.", Kind::VertexUnavailable, Again::Later),
            (504, "Deadline expired", Kind::VertexApi, Again::Never),
            (302, "", Kind::VertexApi, Again::Never),
        ] {
            let (found, found_again, details) = meaning_of(status, &google(message));
            assert_eq!((found, found_again), (kind, again), "{status} {message}");
            assert!(details.contains(message), "{details}");
        }
    }

    #[test]
    fn a_failed_precondition_is_a_permission_unless_it_is_a_safety_block() {
        let body = |message: &str, details: Value| {
            json!({"error": {"status": "FAILED_PRECONDITION", "message": message, "details": details}})
                .to_string()
        };
        for message in [
            "Project `123` is not allowed to use Publisher Model `projects/x`",
            "User location is not supported for the API use.",
            "Constraint constraints/vertexai.allowedModels violated.",
        ] {
            assert_eq!(meaning_of(400, &body(message, json!(null))).0, Kind::PermissionDenied);
        }
        let blocked = "This prompt violates Google's Responsible AI practices.";
        assert_eq!(meaning_of(400, &body(blocked, json!(null))).0, Kind::SafetyBlocked);
        let hidden = json!([{"detail": "generic:: ... Support codes: 42876398"}]);
        let (kind, _, details) = meaning_of(400, &body("Image generation failed.", hidden));
        assert_eq!(kind, Kind::SafetyBlocked);
        assert_eq!(details, "Image generation failed. Support codes: 42876398");
    }

    #[test]
    fn an_error_in_a_200_counts_by_its_code() {
        let failure_of =
            |body: Value| failure_in_200(&body, &target()).map(|f| (f.error.kind, f.again));
        for (code, kind, again) in [
            (json!(429), Kind::ResourceExhausted, Again::Later),
            (json!("403"), Kind::PermissionDenied, Again::Never),
            (json!(404), Kind::InvalidArgument, Again::Never),
            (json!(null), Kind::VertexApi, Again::Never),
            (json!(200), Kind::VertexApi, Again::Never),
            (json!(70000), Kind::VertexApi, Again::Never),
        ] {
            let error = json!({"error": {"code": code, "message": "x"}});
            assert_eq!(failure_of(error.clone()), Some((kind, again)), "{error}");
            assert_eq!(failure_of(json!([{"candidates": []}, error])), Some((kind, again)));
        }
        assert_eq!(failure_of(json!({"error": "no"})), Some((Kind::VertexApi, Again::Never)));
        assert_eq!(failure_of(json!({"error": null})), None);
        assert_eq!(failure_of(json!([])), None);
    }

    #[test]
    fn the_response_names_the_model_that_made_the_image() {
        let requested = "gemini-3.1-flash-image";
        for (named, model) in [
            (json!("gemini-3.1-flash-image"), requested),
            (json!("publishers/google/models/gemini-3.1-flash-image"), requested),
            (json!("models/Gemini-3.1-flash-image-001"), requested),
            (json!("gemini-3.1-flash-image@default"), requested),
            (json!("gemini-3.1-flash-image-09-2025"), requested),
            (json!("gemini-3.1-flash-image-20261122"), requested),
            (json!("gemini-3.1-flash-image-preview"), "gemini-3.1-flash-image-preview"),
            (json!("publishers/google/models/gemini-4-image-002"), "gemini-4-image-002"),
            (json!(""), requested),
            (json!("a model"), requested),
            (json!("x".repeat(101)), requested),
            (json!(5), requested),
            (json!(null), requested),
        ] {
            assert_eq!(model_of(&json!({"modelVersion": named}), requested), model, "{named}");
            assert_eq!(model_of(&json!([null, {"modelVersion": named}]), requested), model);
        }
        let imagen = json!({"model": "publishers/google/models/imagegeneration@006"});
        assert_eq!(model_of(&imagen, "imagegeneration@005"), "imagegeneration@005");
        assert_eq!(model_of(&imagen, "imagen-4.0-generate-001"), "imagegeneration@006");
        assert_eq!(model_of(&json!({"model": "projects/1/models/2"}), "x"), "x");
    }

    #[test]
    fn errors_are_read_as_object_array_and_html() {
        let array = format!("[{}]", google("Resource exhausted."));
        assert_eq!(meaning_of(429, &array).2, "Resource exhausted.");
        let (kind, _, details) =
            meaning_of(404, "<html>The requested URL was not found on this server</html>");
        assert_eq!(kind, Kind::PlaceNotFound);
        assert!(details.contains("location us-central1") && !details.contains("html"), "{details}");
        assert_eq!(meaning_of(503, "").2, "Service Unavailable: HTTP 503 without an explanation.");
    }

    #[test]
    fn reasons_are_passed_on_and_decide_the_kind() {
        let disabled = json!({"error": {"message": "API has not been used", "details": [
            {"@type": "type.googleapis.com/google.rpc.Help", "links": []},
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED", "metadata": {"service": "x"}}]}});
        let (kind, _, details) = meaning_of(403, &disabled.to_string());
        assert_eq!(
            (kind, details.as_str()),
            (Kind::PermissionDenied, "API has not been used [SERVICE_DISABLED]")
        );
        let billing =
            json!({"error": {"message": "x", "details": [{"reason": "BILLING_DISABLED"}]}});
        assert_eq!(meaning_of(400, &billing.to_string()).0, Kind::PermissionDenied);
        let nothing_left = json!({"error": {"message": "Quota exceeded", "details": [
            {"reason": "RATE_LIMIT_EXCEEDED", "metadata": {"quota_limit_value": "0"}}]}});
        assert_eq!(meaning_of(429, &nothing_left.to_string()).1, Again::Never);
    }

    #[test]
    fn a_404_says_what_to_try() {
        let (_, _, details) = meaning_of(404, &google("has reached its end of life"));
        assert!(
            details.starts_with(
                "Model imagegeneration@006 is retired, or not served in us-central1; try"
            ),
            "{details}"
        );
        assert!(details.ends_with("Vertex AI: has reached its end of life"), "{details}");
    }
}
