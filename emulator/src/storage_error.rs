//! Cloud Storage's errors: the JSON API's own shape, without `status`.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value, json};

use crate::metadata_server::EMAIL;
use crate::response::{Refusal, Response};

/// 400.
pub(crate) fn invalid(message: &str) -> Response {
    error(StatusCode::BAD_REQUEST, "invalid", message)
}

/// 400 that names the parameter.
pub(crate) fn invalid_parameter(query: &BTreeMap<String, String>, parameter: &str) -> Refusal {
    let value = query.get(parameter).map_or("", String::as_str);
    invalid(&format!("Invalid value '{value}' for parameter {parameter}.")).into()
}

/// 404 for a bucket.
pub(crate) fn no_such_bucket() -> Refusal {
    error(StatusCode::NOT_FOUND, "notFound", "The specified bucket does not exist.").into()
}

/// An error with one cause.
pub(crate) fn error(status: StatusCode, reason: &str, message: &str) -> Response {
    let cause = json!({"message": message, "domain": "global", "reason": reason});
    failure(status, message, cause)
}

/// An error that names the header it is about.
pub(crate) fn located(status: StatusCode, reason: &str, message: &str, header: &str) -> Response {
    let cause = json!({
        "message": message, "domain": "global", "reason": reason, "locationType": "header", "location": header,
    });
    failure(status, message, cause)
}

fn failure(status: StatusCode, message: &str, cause: Value) -> Response {
    let body = json!({"error": {"code": status.as_u16(), "message": message, "errors": [cause]}});
    Response::json(status, &body)
}

/// 403: the caller lacks a permission.
pub(crate) fn forbidden(permission: &str) -> Response {
    let resource = if permission.starts_with("storage.buckets") { "bucket" } else { "object" };
    let message = format!(
        "{EMAIL} does not have {permission} access to the Google Cloud Storage {resource}. \
         Permission '{permission}' denied on resource (or it may not exist)."
    );
    error(StatusCode::FORBIDDEN, "forbidden", &message)
}

/// The error that usually comes with a status, for a request that needs this permission.
pub(crate) fn plain_error(status: StatusCode, permission: &str) -> Response {
    let (reason, message) = match status.as_u16() {
        400 => ("invalid", "Invalid argument."),
        401 => return located(status, "authError", "Invalid Credentials", "Authorization"),
        403 => return forbidden(permission),
        404 => ("notFound", "The specified bucket does not exist."),
        410 => ("gone", "The upload session is gone."),
        412 => {
            let message = "At least one of the pre-conditions you specified did not hold.";
            return located(status, "conditionNotMet", message, "If-Match");
        }
        429 => (
            "rateLimitExceeded",
            "The object exceeded the rate limit for object mutation operations (create, update, \
             and delete). Please reduce your request rate.",
        ),
        503 => ("backendError", "Service Unavailable"),
        _ => ("internalError", "We encountered an internal error. Please try again."),
    };
    error(status, reason, message)
}
