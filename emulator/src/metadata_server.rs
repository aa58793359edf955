//! Google Compute Engine's metadata server.

use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::response::Response;
use crate::tokens::Tokens;

/// Paths under `/computeMetadata/`.
pub(crate) fn metadata(tokens: &Tokens, path: &str, headers: &HeaderMap) -> Response {
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

fn flavoured(response: Response) -> Response {
    response.with("metadata-flavor", "Google").with("server", "Metadata Server for VM")
}

/// The entries of the directory.
const INSTANCE: &str = "region\nservice-accounts/\n";

pub(crate) const EMAIL: &str = "iga@iga-local.iam.gserviceaccount.com";
pub(crate) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
