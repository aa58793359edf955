//! Cloud Storage's errors: the JSON API's own shape, without `status`.

use http::StatusCode;
use serde_json::{Value, json};

use crate::wire::Answer;

/// 400
pub(crate) fn invalid(message: &str) -> Answer {
    error(StatusCode::BAD_REQUEST, "invalid", message)
}

/// An error with one cause.
pub(crate) fn error(status: StatusCode, reason: &str, message: &str) -> Answer {
    let cause = json!({"message": message, "domain": "global", "reason": reason});
    failure(status, message, cause)
}

/// An error that names the header at fault.
pub(crate) fn located(status: StatusCode, reason: &str, message: &str, header: &str) -> Answer {
    let cause = json!({
        "message": message, "domain": "global", "reason": reason, "locationType": "header", "location": header,
    });
    failure(status, message, cause)
}

fn failure(status: StatusCode, message: &str, cause: Value) -> Answer {
    let body = json!({"error": {"code": status.as_u16(), "message": message, "errors": [cause]}});
    Answer::json(status, &body)
}

/// The error that usually comes with a status.
pub(crate) fn plain_error(status: StatusCode) -> Answer {
    let (reason, message) = match status.as_u16() {
        400 => ("invalid", "Invalid argument."),
        401 => return located(status, "authError", "Invalid Credentials", "Authorization"),
        403 => (
            "forbidden",
            "Permission 'storage.objects.create' denied on resource (or it may not exist).",
        ),
        404 => ("notFound", "The specified bucket does not exist."),
        410 => ("gone", "The upload session is gone."),
        412 => {
            let message = "At least one of the pre-conditions you specified did not hold.";
            return located(status, "conditionNotMet", message, "If-Match");
        }
        429 => (
            "rateLimitExceeded",
            "The object exceeded the rate limit for object mutation operations.",
        ),
        503 => ("backendError", "Service Unavailable"),
        _ => ("internalError", "We encountered an internal error. Please try again."),
    };
    error(status, reason, message)
}
