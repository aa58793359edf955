//! Errors in the form of `google.rpc.Status`, as Vertex AI and the token services send them.

use http::StatusCode;
use serde_json::{Value, json};

use crate::response::{Refusal, Response};
use crate::tokens::Denied;

/// An error in the form of `google.rpc.Status`.
pub(crate) fn error(
    code: StatusCode,
    status: &str,
    message: &str,
    details: Option<Value>,
) -> Response {
    let mut error = json!({"code": code.as_u16(), "message": message, "status": status});
    if let Some(details) = details {
        error["details"] = details;
    }
    Response::json(code, &json!({"error": error}))
}

/// 401, with what is wrong with the credentials.
pub(crate) fn unauthenticated(denied: Denied) -> Refusal {
    let expectation = "Expected OAuth 2 access token, login cookie or other valid authentication credential. \
                       See https://developers.google.com/identity/sign-in/web/devconsole-project.";
    let invalid = "Request had invalid authentication credentials.";
    let (beginning, reason, challenge) = match denied {
        Denied::Missing => {
            ("Request is missing required authentication credential.", "CREDENTIALS_MISSING", "")
        }
        Denied::Expired => (invalid, "ACCESS_TOKEN_EXPIRED", ", error=\"invalid_token\""),
        Denied::Unknown => (invalid, "ACCESS_TOKEN_TYPE_UNSUPPORTED", ", error=\"invalid_token\""),
    };
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {
            "service": "aiplatform.googleapis.com",
            "method": "google.cloud.aiplatform.v1.PredictionService.Predict",
        },
    }]);
    error(
        StatusCode::UNAUTHORIZED,
        "UNAUTHENTICATED",
        &format!("{beginning} {expectation}"),
        Some(details),
    )
    .with("www-authenticate", format!("Bearer realm=\"https://accounts.google.com/\"{challenge}"))
    .into()
}

/// 403: the caller may not call models.
pub(crate) fn permission_denied(resource: &str) -> Response {
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

/// 400.
pub(crate) fn invalid(message: &str) -> Response {
    error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message, None)
}

/// 400 that names the invalid field.
pub(crate) fn violation(field: &str, description: &str) -> Response {
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"field": field, "description": description}],
    }]);
    error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", description, Some(details))
}

/// The error that usually comes with a status.
pub(crate) fn plain_error(code: StatusCode) -> Response {
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

/// The page that Google's front end sends for an unknown path or host.
pub(crate) fn not_found_page(path: &str) -> Response {
    let path = path.replace('&', "&amp;").replace('<', "&lt;");
    let page = format!(
        "<!DOCTYPE html>\n<html lang=en>\n  <title>Error 404 (Not Found)!!1</title>\n  \
         <p><b>404.</b> <ins>That’s an error.</ins>\n  \
         <p>The requested URL <code>{path}</code> was not found on this server.  \
         <ins>That’s all we know.</ins>\n"
    );
    Response::new(StatusCode::NOT_FOUND, "text/html; charset=UTF-8", page)
}
