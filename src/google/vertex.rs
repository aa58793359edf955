//! Vertex AI over HTTP: the address of a model, the meaning of its responses and errors, and when to retry.

use crate::budget::{Budget, Reservation};
use crate::config::Target;
use crate::error::{Error, Kind};
use crate::extract::{ExtractError, ImageExtractor, Limits};
use crate::google::client::{Client, SendError};
use crate::google::http::{next_chunk, text};
use crate::image::Image;
use crate::model::{Family, Outcome, Params};
use crate::retry::{self, Failure};
use crate::telemetry::metrics;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

pub struct Vertex {
    pub client: Arc<Client>,
    /// Replaces Google's hosts.
    pub endpoint: Option<String>,
    pub project_id: String,
    pub budget: Budget,
    pub first_wait: Duration,
}

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
    Other,
}

impl Vertex {
    /// Generates one paid image, read while the response arrives.
    ///
    /// Retries only failures that cost nothing: 429, 503, and no connection.
    pub async fn image(
        &self,
        target: &Target,
        prompt: &str,
        params: &Params,
        deadline: Instant,
    ) -> Result<Image, Error> {
        let url = self.url(target);
        let body = Bytes::from(target.model.family.body(prompt, params));
        retry::until(deadline, self.first_wait, |attempt| {
            let (url, body) = (&url, body.clone());
            async move {
                let start = Instant::now();
                let result = self.attempt(target, url, body, deadline).await;
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
    /// The cause, and the error that a generation would end with.
    pub async fn probe(
        &self,
        target: &Target,
        deadline: Instant,
    ) -> Result<(), (ProbeError, Error)> {
        let body = Bytes::from_static(target.model.family.body_without_prompt());
        let response = match self.post(&self.url(target), &body, deadline).await {
            Ok(response) => response,
            Err(error) => return Err((ProbeError::Other, send_failure(error).error)),
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

    fn url(&self, target: &Target) -> String {
        let base = self.endpoint.clone().unwrap_or_else(|| base_url(&target.location));
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
        body: Bytes,
        deadline: Instant,
    ) -> Result<Image, Failure> {
        let response = self.post(url, &body, deadline).await.map_err(send_failure)?;
        match response.status() {
            StatusCode::OK => self
                .read(target.model.family, response.into_body(), deadline)
                .await
                .map_err(Failure::never),
            _ => Err(response_failure(target, response, deadline).await),
        }
    }

    async fn post(
        &self,
        url: &str,
        body: &Bytes,
        deadline: Instant,
    ) -> Result<Response<Incoming>, SendError> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let request = || {
            Request::post(url)
                .header(CONTENT_TYPE, "application/json")
                .header("x-server-timeout", remaining.as_secs().max(1))
                .body(text(body.clone()))
        };
        self.client.send(deadline, remaining, request).await
    }

    /// Reads a 200 to its end. The image may have been paid by now, so no failure is retried.
    async fn read(
        &self,
        family: Family,
        mut body: Incoming,
        deadline: Instant,
    ) -> Result<Image, Error> {
        let expected = body.size_hint().exact().map_or(0, |json_bytes| json_bytes as usize / 4 * 3);
        let reservation = self.budget.reserve(expected.min(Limits::DEFAULT.image_bytes));
        let mut reservation = timeout_at(deadline, reservation).await.map_err(|_| too_late())?;
        let mut extractor = ImageExtractor::new(Limits::DEFAULT, family.best_so_far());
        let mut read = 0;
        while let Some(chunk) = chunk_before(deadline, &mut body, read).await? {
            read += chunk.len();
            extractor.feed(&chunk).map_err(unreadable)?;
            timeout_at(deadline, reservation.grow_to(extractor.held_bytes()))
                .await
                .map_err(|_| too_late())?;
        }
        choose(family, extractor, reservation)
    }
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
        Ok(Err(error)) => Err(Kind::VertexApi
            .because(format!("The model's response broke off after {read} bytes."))
            .caused_by(error)),
        Err(_) => Err(too_late()),
    }
}

/// The image of a complete response, or the error that the response stands for.
fn choose(
    family: Family,
    extractor: ImageExtractor,
    reservation: Reservation,
) -> Result<Image, Error> {
    let mut extracted = extractor.finish().map_err(unreadable)?;
    let outcome = family.outcome(&extracted.skeleton).map_err(|error| {
        Kind::VertexApi
            .because("The model's response is not what its API documents.")
            .caused_by(error)
    })?;
    match outcome {
        Outcome::Blocked(text) => Err(Kind::SafetyBlocked.because(text)),
        Outcome::Empty(text) => Err(Kind::EmptyImage.because(text)),
        Outcome::Image(number) => {
            let blob = extracted.images.get_mut(number).and_then(Option::take).unwrap_or_default();
            if blob.is_empty() {
                return Err(Kind::EmptyImage
                    .because("The image data from Vertex AI was empty or inaccessible."));
            }
            let bytes = blob.len();
            let unknown = || {
                Kind::EmptyImage
                    .because(format!("The model sent {bytes} bytes that are no known image."))
            };
            Image::new(blob, reservation).ok_or_else(unknown)
        }
    }
}

fn unreadable(error: ExtractError) -> Error {
    Kind::VertexApi.because(error.to_string())
}

fn too_late() -> Error {
    Kind::VertexUnavailable
        .because("Service Unavailable: the model did not respond within the deadline.")
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
    let (status, wait) = (response.status(), retry_after(&response));
    let mut failure = meaning(status.as_u16(), &read_error(response, deadline).await, target);
    failure.error.retry_after = wait.or(failure.error.retry_after);
    failure
}

async fn read_error(response: Response<Incoming>, deadline: Instant) -> GoogleError {
    let mut response = response.into_body();
    let mut body = Vec::new();
    while body.len() < MAX_ERROR_BYTES {
        match timeout_at(deadline, next_chunk(&mut response)).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            // The status alone has to do.
            Ok(Ok(None) | Err(_)) | Err(_) => break,
        }
    }
    GoogleError::parse(&body)
}

fn retry_after<T>(response: &Response<T>) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Status first, then Google's status word and reason; message text only to refine ("API errors").
fn meaning(status: u16, google: &GoogleError, target: &Target) -> Failure {
    let said = google.text(status);
    match status {
        400 if google.is_about_permission() => Failure::never(Kind::PermissionDenied.because(said)),
        400 if google.is_safety_block() => Failure::never(Kind::SafetyBlocked.because(said)),
        400 => Failure::never(Kind::InvalidArgument.because(said)),
        401 | 403 => Failure::never(Kind::PermissionDenied.because(said)),
        404 if google.json => Failure::never(Kind::ModelNotFound.because(format!(
            "{} Vertex AI: {said}",
            target.model.not_served_hint(&target.location)
        ))),
        404 => Failure::never(Kind::PlaceNotFound.because(format!(
            "Vertex AI has no such address for location {}; is it spelt right? {said}",
            target.location
        ))),
        429 if google.quota_is_zero => Failure::never(Kind::ResourceExhausted.because(said)),
        429 => {
            let mut error = Kind::ResourceExhausted.because(said);
            error.retry_after = google.retry_delay;
            Failure::later(error)
        }
        503 => {
            Failure::later(Kind::VertexUnavailable.because(format!("Service Unavailable: {said}")))
        }
        _ => Failure::never(Kind::VertexApi.because(said)),
    }
}

impl ProbeError {
    /// `None` for the 400 that a missing prompt gets.
    fn of(status: u16, google: &GoogleError) -> Option<ProbeError> {
        let has = |reason: &str| google.reasons.iter().any(|given| given == reason);
        Some(match status {
            400 | 403 if has("SERVICE_DISABLED") => ProbeError::ApiDisabled,
            400 | 403 if has("BILLING_DISABLED") || google.wants_billing() => {
                ProbeError::BillingDisabled
            }
            400 if google.json
                && google.status != "FAILED_PRECONDITION"
                && !google.is_about_permission() =>
            {
                return None;
            }
            403 => ProbeError::Permission,
            404 if google.json => ProbeError::ModelGone,
            404 => ProbeError::NoSuchLocation,
            429 if google.quota_is_zero => ProbeError::NoQuota,
            429 => ProbeError::Busy,
            _ => ProbeError::Other,
        })
    }
}

/// Google's error envelope: an object, an array of one, or not JSON at all.
#[derive(Debug, Default)]
struct GoogleError {
    json: bool,
    /// Google's word for the kind of error.
    status: String,
    message: String,
    reasons: Vec<String>,
    quota_is_zero: bool,
    /// `google.rpc.RetryInfo`
    retry_delay: Option<Duration>,
}

impl GoogleError {
    fn parse(body: &[u8]) -> GoogleError {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Envelope {
            One { error: Inner },
            Many([ErrorField; 1]),
        }
        #[derive(Deserialize)]
        struct ErrorField {
            error: Inner,
        }
        #[derive(Deserialize)]
        struct Inner {
            #[serde(default)]
            status: String,
            #[serde(default)]
            message: String,
            #[serde(default)]
            details: Vec<Detail>,
        }
        #[derive(Deserialize)]
        struct Detail {
            reason: Option<String>,
            #[serde(rename = "retryDelay")]
            retry_delay: Option<String>,
            #[serde(default)]
            metadata: serde_json::Map<String, serde_json::Value>,
        }

        let inner = match serde_json::from_slice(body) {
            Ok(Envelope::One { error } | Envelope::Many([ErrorField { error }])) => error,
            Err(_) => return GoogleError::default(),
        };
        let zero = |detail: &Detail| {
            detail.metadata.get("quota_limit_value").is_some_and(|value| value == "0")
        };
        GoogleError {
            json: true,
            status: inner.status,
            message: inner.message,
            quota_is_zero: inner.details.iter().any(zero),
            retry_delay: inner
                .details
                .iter()
                .find_map(|detail| seconds(detail.retry_delay.as_deref()?)),
            reasons: inner.details.into_iter().filter_map(|detail| detail.reason).collect(),
        }
    }

    /// Google's message for the caller, with its reasons.
    fn text(&self, status: u16) -> String {
        match (self.message.as_str(), self.reasons.is_empty()) {
            ("", _) => format!("HTTP {status} without an explanation."),
            (message, true) => message.to_owned(),
            (message, false) => format!("{message} [{}]", self.reasons.join(", ")),
        }
    }

    fn is_about_permission(&self) -> bool {
        let reason = |reason: &String| {
            matches!(reason.as_str(), "BILLING_DISABLED" | "SERVICE_DISABLED" | "API_KEY_INVALID")
        };
        self.reasons.iter().any(reason) || self.wants_billing()
    }

    fn wants_billing(&self) -> bool {
        self.message.contains("requires billing to be enabled")
    }

    fn is_safety_block(&self) -> bool {
        SAFETY_WORDS.iter().any(|words| self.message.contains(words))
    }
}

/// A protobuf duration in JSON: `"17s"`, `"1.5s"`.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

/// The wording of a refused prompt, in the API's older and newer versions.
const SAFETY_WORDS: &[&str] = &[
    "Responsible AI",
    "could not be submitted",
    "violate our policies",
    "Support code",
    "support code",
    "Error Code: 58061214",
];

const MAX_ERROR_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::retry::Again;
    use serde_json::json;

    fn meaning_of(status: u16, body: &str) -> (Kind, Again, String) {
        let target = Target {
            model: Model::find("imagegeneration@006").unwrap(),
            location: "us-central1".to_owned(),
        };
        let failure = meaning(status, &GoogleError::parse(body.as_bytes()), &target);
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
            (404, error("NOT_FOUND", "", ""), Some(ProbeError::ModelGone)),
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
            (404, "Publisher model was not found", Kind::ModelNotFound, Again::Never),
            (429, "Resource exhausted.", Kind::ResourceExhausted, Again::Later),
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
    fn reasons_are_passed_on_and_count() {
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
    fn a_retry_delay_is_read_wherever_it_stands() {
        for (delay, expected) in
            [("17s", Some(17)), ("2.0s", Some(2)), ("soon", None), ("-1s", None)]
        {
            let body = json!({"error": {"message": "x", "details": [{"reason": "X"}, {"retryDelay": delay}]}});
            let google = GoogleError::parse(body.to_string().as_bytes());
            assert_eq!(google.retry_delay, expected.map(Duration::from_secs), "{delay}");
        }
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
