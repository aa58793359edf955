//! Google Compute Engine's metadata server.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::response::Response;
use crate::tokens::Tokens;

/// Paths under `/computeMetadata/`.
pub(crate) fn metadata(
    tokens: &Tokens,
    path: &str,
    query: &BTreeMap<String, String>,
    headers: &HeaderMap,
) -> Response {
    if headers.get("metadata-flavor").is_none_or(|flavor| flavor != "Google") {
        let text = "Missing required header \"Metadata-Flavor\": \"Google\"\n";
        return Response::new(StatusCode::FORBIDDEN, "text/html; charset=UTF-8", text);
    }
    let service_account = "/computeMetadata/v1/instance/service-accounts/default";
    let text = match path.trim_end_matches('/').strip_prefix(service_account) {
        Some("/token") => {
            let body = json!({
                "access_token": tokens.issue(),
                "expires_in": tokens.life.as_secs(),
                "token_type": "Bearer",
            });
            return flavoured(Response::new(StatusCode::OK, "application/json", body.to_string()));
        }
        Some("") => {
            let body = json!({"aliases": ["default"], "email": EMAIL, "scopes": [SCOPE]});
            return flavoured(Response::new(StatusCode::OK, "application/json", body.to_string()));
        }
        Some("/identity") => {
            return match query.get("audience").filter(|audience| !audience.is_empty()) {
                Some(audience) => {
                    flavoured(Response::new(StatusCode::OK, "text/html", id_token(audience)))
                }
                None => {
                    let text = "non-empty audience parameter required\n";
                    let status = StatusCode::BAD_REQUEST;
                    flavoured(Response::new(status, "text/html; charset=UTF-8", text))
                }
            };
        }
        Some("/email") => EMAIL,
        Some("/scopes") => SCOPE,
        _ => match path {
            "/computeMetadata/v1/project/project-id" => "iga-local",
            "/computeMetadata/v1/project/numeric-project-id" => "123456789012",
            "/computeMetadata/v1/instance" | "/computeMetadata/v1/instance/" => INSTANCE,
            "/computeMetadata/v1/instance/region" => "projects/123456789012/regions/us-central1",
            "/computeMetadata/v1/universe/universe-domain" => "googleapis.com",
            _ => {
                return flavoured(Response::new(
                    StatusCode::NOT_FOUND,
                    "text/html; charset=UTF-8",
                    "Not Found\n",
                ));
            }
        },
    };
    flavoured(Response::new(StatusCode::OK, "application/text", text))
}

/// `GET /`, which some clients ask to detect the metadata server.
pub(crate) fn root() -> Response {
    flavoured(Response::new(StatusCode::OK, "text/plain", "computeMetadata/\n"))
}

/// An ID token for an hour, with a signature that does not verify.
fn id_token(audience: &str) -> String {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let header = json!({"alg": "RS256", "kid": "emulated", "typ": "JWT"});
    let claims = json!({
        "aud": audience,
        "azp": SUBJECT,
        "exp": now + 3600,
        "iat": now,
        "iss": "https://accounts.google.com",
        "sub": SUBJECT,
    });
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signature = URL_SAFE_NO_PAD.encode("emulated");
    format!("{}.{}.{signature}", encode(&header), encode(&claims))
}

fn flavoured(response: Response) -> Response {
    response.with("metadata-flavor", "Google").with("server", "Metadata Server for VM")
}

/// The entries of the directory.
const INSTANCE: &str = "region\nservice-accounts/\n";

const SUBJECT: &str = "123456789012345678901";
pub(crate) const EMAIL: &str = "iga@iga-local.iam.gserviceaccount.com";
pub(crate) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
