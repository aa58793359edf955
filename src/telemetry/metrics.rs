//! Metric lines: each function writes one, with the name, value and tags of the table in docs/operations.md.

use std::time::Duration;
use tracing::info;

/// `iga_generate_image_request_count` and `iga_generate_image_latency_ms`.
pub fn request_done(status: &str, latency: Duration) {
    info!(
        metric_name = "iga_generate_image_request_count",
        value = 1,
        tags.status = status,
        "request counted"
    );
    let value = milliseconds(latency);
    info!(
        metric_name = "iga_generate_image_latency_ms",
        value,
        tags.status = status,
        "request timed"
    );
}

/// `iga_vertexai_call_latency_ms`: one attempt, from the first byte sent to the last byte read.
pub fn vertex_called(model: &str, attempt: usize, outcome: &str, latency: Duration) {
    let value = milliseconds(latency);
    info!(
        metric_name = "iga_vertexai_call_latency_ms",
        value,
        tags.model = model,
        tags.attempt = attempt,
        tags.outcome = outcome,
        "model called"
    );
}

/// `iga_vertexai_error_count`: one attempt that failed.
pub fn vertex_failed(error_type: &str) {
    info!(
        metric_name = "iga_vertexai_error_count",
        value = 1,
        tags.error_type = error_type,
        "model call failed"
    );
}

/// `iga_gcs_upload_latency_ms`: one image stored, all tries included.
pub fn uploaded(bytes: usize, latency: Duration) {
    let value = milliseconds(latency);
    info!(metric_name = "iga_gcs_upload_latency_ms", value, tags.bytes = bytes, "image stored");
}

/// `iga_gcs_upload_failure_count`; the detail is short and holds no URL.
pub fn upload_failed(error: &str) {
    let error_detail: String = error.chars().take(ERROR_DETAIL_CHARS).collect();
    info!(
        metric_name = "iga_gcs_upload_failure_count",
        value = 1,
        tags.error_detail = error_detail,
        "upload failed"
    );
}

/// `iga_paid_generation_count`: a model made an image.
pub fn image_paid(model: &str) {
    info!(metric_name = "iga_paid_generation_count", value = 1, tags.model = model, "image made");
}

/// `iga_lost_image_count`: a paid image could not be stored in time.
pub fn image_lost(reason: &str) {
    info!(metric_name = "iga_lost_image_count", value = 1, tags.reason = reason, "paid image lost");
}

/// `iga_joined_count`: a request that is answered by another's generation.
pub fn joined(flight: &str, by_key: bool) {
    info!(
        metric_name = "iga_joined_count",
        value = 1,
        tags.by_key = by_key,
        flight,
        "joined flight {flight}"
    );
}

/// `iga_lease_wait_ms`: how long another instance's generation was waited for.
pub fn lease_waited(outcome: &str, wait: Duration) {
    let value = milliseconds(wait);
    info!(
        metric_name = "iga_lease_wait_ms",
        value,
        tags.outcome = outcome,
        "waited for another instance"
    );
}

/// `iga_delivered_image_count`: a caller was told where its image is.
pub fn image_delivered() {
    info!(metric_name = "iga_delivered_image_count", value = 1, "image delivered");
}

fn milliseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_millis()).unwrap_or(u64::MAX)
}

const ERROR_DETAIL_CHARS: usize = 100;
