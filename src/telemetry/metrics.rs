//! Metric lines: each function writes one, with the name, value and tags of the table in docs/operations.md.

use std::time::Duration;
use tracing::{Span, debug, info};

/// `iga_generate_image_latency_ms`. `iga_generate_image_request_count` is on the request's summary line.
pub fn request_timed(status: &str, latency: Duration) {
    let value = milliseconds(latency);
    debug!(metric_name = REQUEST_LATENCY, value, tags.status = status, "request timed");
}

/// `iga_vertexai_call_latency_ms`: one attempt, from the first byte sent to the last byte read.
pub fn vertex_called(model: &str, attempt: usize, outcome: &str, latency: Duration) {
    let value = milliseconds(latency);
    Span::current().record("model_ms", value);
    debug!(
        metric_name = CALL_LATENCY,
        value,
        tags.model = model,
        tags.attempt = attempt,
        tags.outcome = outcome,
        "model called"
    );
}

/// `token_ms` of the summary: how long a request waited for an access token.
pub fn token_fetched(latency: Duration) {
    Span::current().record("token_ms", milliseconds(latency));
}

/// `lease_ms` of the summary: how long it took to acquire the lease, waiting for others included.
pub fn lease_acquired(latency: Duration) {
    Span::current().record("lease_ms", milliseconds(latency));
}

/// `iga_vertexai_error_count`: one attempt that failed.
pub fn vertex_failed(error_type: &str) {
    info!(
        metric_name = VERTEX_ERRORS,
        value = 1,
        tags.error_type = error_type,
        "model call failed"
    );
}

/// `iga_gcs_upload_latency_ms`: one image stored, all tries included.
pub fn uploaded(bytes: usize, latency: Duration) {
    let value = milliseconds(latency);
    let span = Span::current();
    span.record("upload_ms", value);
    span.record("image_bytes", bytes);
    debug!(metric_name = UPLOAD_LATENCY, value, tags.bytes = bytes, "image stored");
}

/// `iga_gcs_upload_failure_count`; the detail is short and holds no URL.
pub fn upload_failed(error: &str) {
    let error_detail: String = error.chars().take(ERROR_DETAIL_CHARS).collect();
    info!(
        metric_name = UPLOAD_FAILURES,
        value = 1,
        tags.error_detail = error_detail,
        "upload failed"
    );
}

/// `iga_paid_generation_count`: a model made an image.
pub fn image_paid(model: &str) {
    Span::current().record("paid", true);
    debug!(metric_name = PAID, value = 1, tags.model = model, "image made");
}

/// `iga_lost_image_count`: a paid image could not be stored in time.
pub fn image_lost(reason: &str) {
    info!(metric_name = LOST, value = 1, tags.reason = reason, "paid image lost");
}

/// `iga_joined_count`: a request that gets the image of another request's generation.
pub fn joined(flight: &str, by_key: bool) {
    Span::current().record("joined", true);
    info!(metric_name = JOINED, value = 1, tags.by_key = by_key, flight, "joined flight {flight}");
}

/// `iga_lease_wait_ms`: how long a request waited for another instance's generation.
pub fn lease_waited(outcome: &str, wait: Duration) {
    let value = milliseconds(wait);
    info!(metric_name = LEASE_WAIT, value, tags.outcome = outcome, "waited for another instance");
}

/// `iga_delivered_image_count`: a caller got the URI of its image.
pub fn image_delivered(image_url: &str, model: &str) {
    let span = Span::current();
    span.record("image_url", image_url);
    span.record("model", model);
    debug!(metric_name = DELIVERED, value = 1, "image delivered");
}

/// `iga_undelivered_image_count`: a paid image is stored after every caller of it has left. A retry can still get it.
pub fn image_undelivered(image_url: &str, model: &str) {
    info!(
        metric_name = UNDELIVERED,
        value = 1,
        tags.model = model,
        image_url,
        "image stored after its callers left"
    );
}

fn milliseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_millis()).unwrap_or(u64::MAX)
}

const ERROR_DETAIL_CHARS: usize = 100;

/// Every metric, in the order of the table in docs/operations.md.
pub const ALL: &[&str] = &[
    REQUESTS,
    REQUEST_LATENCY,
    CALL_LATENCY,
    VERTEX_ERRORS,
    PAID,
    UPLOAD_LATENCY,
    UPLOAD_FAILURES,
    LOST,
    JOINED,
    LEASE_WAIT,
    DELIVERED,
    UNDELIVERED,
    DROPPED_LINES,
];

const REQUEST_LATENCY: &str = "iga_generate_image_latency_ms";
const CALL_LATENCY: &str = "iga_vertexai_call_latency_ms";
const VERTEX_ERRORS: &str = "iga_vertexai_error_count";
const UPLOAD_LATENCY: &str = "iga_gcs_upload_latency_ms";
const UPLOAD_FAILURES: &str = "iga_gcs_upload_failure_count";
const PAID: &str = "iga_paid_generation_count";
const LOST: &str = "iga_lost_image_count";
const JOINED: &str = "iga_joined_count";
const LEASE_WAIT: &str = "iga_lease_wait_ms";
const DELIVERED: &str = "iga_delivered_image_count";
const UNDELIVERED: &str = "iga_undelivered_image_count";
pub const REQUESTS: &str = "iga_generate_image_request_count";
pub const DROPPED_LINES: &str = "iga_dropped_log_lines_count";
