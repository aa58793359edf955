//! The endpoints that issue access tokens in exchange for other credentials.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::clock::{Clock, rfc3339};
use crate::metadata_server::SCOPE;
use crate::response::{HandlerResult, Response};
use crate::rpc_error::{error, unauthenticated};
use crate::tokens::{Tokens, remaining_jwt_life};

/// `POST /token`: the OAuth grants of authorized users and service accounts.
pub(crate) fn oauth(tokens: &Tokens, headers: &HeaderMap, body: &Bytes) -> Response {
    let fields = fields(headers, body);
    let problem = match text(&fields, "grant_type") {
        "refresh_token" => missing(&fields, &["client_id", "client_secret", "refresh_token"]),
        "urn:ietf:params:oauth:grant-type:jwt-bearer" => {
            missing(&fields, &["assertion"]).or_else(|| {
                let life = remaining_jwt_life(text(&fields, "assertion"));
                life.is_none().then(|| oauth_error("invalid_grant", "Invalid JWT Signature."))
            })
        }
        other => {
            Some(oauth_error("unsupported_grant_type", &format!("Invalid grant_type: {other}")))
        }
    };
    problem.unwrap_or_else(|| {
        let body = json!({
            "access_token": tokens.issue(),
            "expires_in": tokens.life.as_secs(),
            "scope": SCOPE,
            "token_type": "Bearer",
        });
        Response::json(StatusCode::OK, &body)
    })
}

/// `POST /v1/token`: the security token service of workload identity federation.
pub(crate) fn exchange(tokens: &Tokens, headers: &HeaderMap, body: &Bytes) -> Response {
    let fields = fields(headers, body);
    let grant = ["grant_type", "grantType"].map(|name| text(&fields, name)).concat();
    if grant != "urn:ietf:params:oauth:grant-type:token-exchange" {
        return oauth_error("unsupported_grant_type", &format!("Invalid grant_type: {grant}"));
    }
    let needed: &[&str] = if fields.contains_key("grantType") {
        &["audience", "requestedTokenType", "subjectToken", "subjectTokenType"]
    } else {
        &["audience", "requested_token_type", "subject_token", "subject_token_type"]
    };
    missing(&fields, needed).unwrap_or_else(|| {
        let body = json!({
            "access_token": tokens.issue(),
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "token_type": "Bearer",
            "expires_in": tokens.life.as_secs(),
        });
        Response::json(StatusCode::OK, &body)
    })
}

/// `POST /v1/projects/-/serviceAccounts/EMAIL:generateAccessToken`: impersonation.
pub(crate) fn impersonate(
    tokens: &Tokens,
    clock: &Clock,
    headers: &HeaderMap,
    body: &Bytes,
) -> HandlerResult {
    tokens.admit(headers).map_err(unauthenticated)?;
    let request: Value = serde_json::from_slice(body).unwrap_or_default();
    if request["scope"].as_array().is_none_or(Vec::is_empty) {
        let message = "The scope of the access token must be specified.";
        return Ok(error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message, None));
    }
    let expiry = rfc3339(clock.now() + tokens.life);
    let body = json!({"accessToken": tokens.issue(), "expireTime": expiry});
    Ok(Response::json(StatusCode::OK, &body))
}

/// The fields of a form or of a JSON object; these endpoints accept both.
fn fields(headers: &HeaderMap, body: &Bytes) -> Map<String, Value> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|kind| kind.starts_with("application/json")) {
        return serde_json::from_slice(body).unwrap_or_default();
    }
    let pairs = form_urlencoded::parse(body);
    pairs.map(|(name, value)| (name.into_owned(), Value::String(value.into_owned()))).collect()
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn missing(fields: &Map<String, Value>, needed: &[&str]) -> Option<Response> {
    let name = needed.iter().find(|name| text(fields, name).is_empty())?;
    Some(oauth_error("invalid_request", &format!("Missing required parameter: {name}")))
}

fn oauth_error(error: &str, description: &str) -> Response {
    let body = json!({"error": error, "error_description": description});
    Response::json(StatusCode::BAD_REQUEST, &body)
}
