//! Errors in the form of `google.rpc.Status`, as Vertex AI and the token services send them.

use http::StatusCode;
use serde_json::{Value, json};

use crate::wire::Answer;

/// An error in the form of `google.rpc.Status`.
pub(crate) fn error(
    code: StatusCode,
    status: &str,
    message: &str,
    details: Option<Value>,
) -> Answer {
    let mut error = json!({"code": code.as_u16(), "message": message, "status": status});
    if let Some(details) = details {
        error["details"] = details;
    }
    Answer::json(code, &json!({"error": error}))
}

/// 403 for want of the permission to call models.
pub(crate) fn permission_denied(resource: &str) -> Answer {
    let permission = "aiplatform.endpoints.predict";
    let message =
        format!("Permission '{permission}' denied on resource '{resource}' (or it may not exist).");
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "IAM_PERMISSION_DENIED",
        "domain": "aiplatform.googleapis.com",
        "metadata": {"permission": permission, "resource": resource},
    }]);
    error(StatusCode::FORBIDDEN, "PERMISSION_DENIED", &message, Some(details))
}

/// 400
pub(crate) fn invalid(message: &str) -> Answer {
    error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message, None)
}

/// 400 with the field at fault.
pub(crate) fn violation(field: &str, description: &str) -> Answer {
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"field": field, "description": description}],
    }]);
    error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", description, Some(details))
}

/// The error that usually comes with a status.
pub(crate) fn plain_error(code: StatusCode) -> Answer {
    let (status, message) = match code.as_u16() {
        400 => ("INVALID_ARGUMENT", "Request contains an invalid argument."),
        401 => ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
        403 => return permission_denied("//aiplatform.googleapis.com/projects/iga-local"),
        404 => ("NOT_FOUND", "Requested entity was not found."),
        429 => ("RESOURCE_EXHAUSTED", "Resource exhausted. Please try again later."),
        499 => ("CANCELLED", "The operation was cancelled."),
        503 => ("UNAVAILABLE", "The model is overloaded. Please try again later."),
        504 => ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
        _ => ("INTERNAL", "Internal error encountered."),
    };
    error(code, status, message, None)
}
