//! Access tokens: the metadata server, the OAuth and STS endpoints, and who may enter.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::Clock;
use crate::rpc_error::error;
use crate::wire::{Answer, Handled, Refusal};

/// The tokens that open the services, each with the moment at which it stops.
pub(crate) struct Tokens {
    life: Duration,
    known: Mutex<HashMap<String, Instant>>,
}

/// Why a request may not enter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Denied {
    Missing,
    Expired,
    Unknown,
}

impl Tokens {
    pub fn new(life: Duration) -> Self {
        Self { life, known: Mutex::default() }
    }

    fn issue(&self) -> String {
        let mut known = self.lock();
        let token = format!("ya29.emulated-{}", known.len() + 1);
        known.insert(token.clone(), Instant::now() + self.life);
        token
    }

    pub fn expire(&self) {
        self.lock().values_mut().for_each(|end| *end = Instant::now());
    }

    /// Lets a bearer in whose token was issued here, or who signed one itself (unverified).
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let header = headers.get(header::AUTHORIZATION).ok_or(Denied::Missing)?;
        let token = header.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        let token = token.ok_or(Denied::Unknown)?;
        let mut known = self.lock();
        let end = match known.get(token) {
            Some(end) => *end,
            None => {
                let end = Instant::now() + self_signed_life(token).ok_or(Denied::Unknown)?;
                known.insert(token.to_owned(), end);
                end
            }
        };
        if Instant::now() < end { Ok(()) } else { Err(Denied::Expired) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Paths under `/computeMetadata/`.
pub(crate) fn metadata(tokens: &Tokens, path: &str, headers: &HeaderMap) -> Answer {
    if headers.get("metadata-flavor").is_none_or(|flavor| flavor != "Google") {
        let text = "Missing required header \"Metadata-Flavor\": \"Google\"\n";
        return Answer::new(StatusCode::FORBIDDEN, "text/html; charset=UTF-8", text);
    }
    let service_account = "/computeMetadata/v1/instance/service-accounts/default";
    let text = match path.trim_end_matches('/').strip_prefix(service_account) {
        Some("/token") => {
            let body = json!({
                "access_token": tokens.issue(),
                "expires_in": tokens.life.as_secs(),
                "token_type": "Bearer",
            });
            return flavoured(Answer::new(StatusCode::OK, "application/json", body.to_string()));
        }
        Some("") => {
            let body = json!({"aliases": ["default"], "email": EMAIL, "scopes": [SCOPE]});
            return flavoured(Answer::new(StatusCode::OK, "application/json", body.to_string()));
        }
        Some("/email") => EMAIL,
        Some("/scopes") => SCOPE,
        _ => match path {
            "/computeMetadata/v1/project/project-id" => "iga-local",
            "/computeMetadata/v1/project/numeric-project-id" => "123456789012",
            "/computeMetadata/v1/instance/region" => "projects/123456789012/regions/us-central1",
            "/computeMetadata/v1/universe/universe-domain" => "googleapis.com",
            _ => {
                return flavoured(Answer::new(
                    StatusCode::NOT_FOUND,
                    "text/html; charset=UTF-8",
                    "Not Found\n",
                ));
            }
        },
    };
    flavoured(Answer::new(StatusCode::OK, "application/text", text))
}

/// `POST /token`: the OAuth grants of authorized users and service accounts.
pub(crate) fn oauth(tokens: &Tokens, headers: &HeaderMap, body: &Bytes) -> Answer {
    let fields = fields(headers, body);
    let problem = match text(&fields, "grant_type") {
        "refresh_token" => missing(&fields, &["client_id", "client_secret", "refresh_token"]),
        "urn:ietf:params:oauth:grant-type:jwt-bearer" => {
            missing(&fields, &["assertion"]).or_else(|| {
                let life = self_signed_life(text(&fields, "assertion"));
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
        Answer::json(StatusCode::OK, &body)
    })
}

/// `POST /v1/token`: the security token service of workload identity federation.
pub(crate) fn exchange(tokens: &Tokens, headers: &HeaderMap, body: &Bytes) -> Answer {
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
        Answer::json(StatusCode::OK, &body)
    })
}

/// `POST /v1/projects/-/serviceAccounts/EMAIL:generateAccessToken`: impersonation.
pub(crate) fn impersonate(
    tokens: &Tokens,
    clock: &Clock,
    headers: &HeaderMap,
    body: &Bytes,
) -> Handled {
    tokens.admit(headers).map_err(unauthenticated)?;
    let request: Value = serde_json::from_slice(body).unwrap_or_default();
    if request["scope"].as_array().is_none_or(Vec::is_empty) {
        let message = "The scope of the access token must be specified.";
        return Ok(error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message, None));
    }
    let expiry = crate::rfc3339(clock.now() + tokens.life);
    let body = json!({"accessToken": tokens.issue(), "expireTime": expiry});
    Ok(Answer::json(StatusCode::OK, &body))
}

/// The fields of a form or of a JSON object; these endpoints take both.
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

fn missing(fields: &Map<String, Value>, needed: &[&str]) -> Option<Answer> {
    let name = needed.iter().find(|name| text(fields, name).is_empty())?;
    Some(oauth_error("invalid_request", &format!("Missing required parameter: {name}")))
}

fn oauth_error(error: &str, description: &str) -> Answer {
    let body = json!({"error": error, "error_description": description});
    Answer::json(StatusCode::BAD_REQUEST, &body)
}

fn flavoured(answer: Answer) -> Answer {
    answer.with("metadata-flavor", "Google").with("server", "Metadata Server for VM")
}

/// How much longer a JWT of a service account holds; its signature is not looked at.
fn self_signed_life(token: &str) -> Option<Duration> {
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else {
        return None;
    };
    let decode = |part: &str| -> Option<Value> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
    };
    let (header, claims) = (decode(header)?, decode(claims)?);
    let (issued, expiry) = (claims["iat"].as_i64()?, claims["exp"].as_i64()?);
    let addressed = claims["scope"].is_string() || claims["aud"].is_string();
    let well_formed =
        header["alg"] == "RS256" && !signature.is_empty() && claims["iss"].is_string();
    if !addressed || !well_formed || expiry - issued > MAX_JWT_SECONDS {
        return None;
    }
    u64::try_from(expiry - OffsetDateTime::now_utc().unix_timestamp()).ok().map(Duration::from_secs)
}

const EMAIL: &str = "iga@iga-local.iam.gserviceaccount.com";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// One hour, and the ten seconds that Google's own library adds before and after it.
const MAX_JWT_SECONDS: i64 = 3620;

/// 401, whatever it is that the caller lacks.
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
