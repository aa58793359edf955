//! Access tokens and the metadata server.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use serde_json::{Value, json};

use crate::support::*;

#[tokio::test]
async fn only_valid_tokens_are_accepted() {
    let mut setup = Setup::new().await;
    let reason = |body: &Value| {
        body["error"]["details"][0]["reason"].as_str().unwrap_or_default().to_owned()
    };
    setup.emulator.expire_tokens();
    let (status, body) = send(setup.gemini(FLASH, "a fox", json!({}))).await;
    assert_eq!((status, reason(&body).as_str()), (401, "ACCESS_TOKEN_EXPIRED"));
    assert_eq!(send(setup.create("a.png", b"abc")).await.0, 401);
    setup.token = setup.fresh_token().await;
    assert_eq!(send(setup.gemini(FLASH, "a fox", json!({}))).await.0, 200);

    let path = "/v1/projects/p1/locations/global/publishers/google/models/x:generateContent";
    let (_, body) = send(setup.client.post(setup.emulator.url() + path)).await;
    assert_eq!(reason(&body), "CREDENTIALS_MISSING");
    let (_, body) =
        send(setup.client.post(setup.emulator.url() + path).bearer_auth("made-up")).await;
    assert_eq!(reason(&body), "ACCESS_TOKEN_TYPE_UNSUPPORTED");
    let counters = setup.emulator.counters();
    assert_eq!((counters.token_fetches, counters.unauthorized), (2, 4));
}

#[tokio::test]
async fn every_token_endpoint_issues_tokens() {
    let mut setup = Setup::new().await;
    let url = setup.emulator.url();
    let form = |path: &str, body: &'static str| {
        let request = setup.client.post(format!("{url}{path}"));
        request.header("content-type", "application/x-www-form-urlencoded").body(body)
    };
    let refresh = "grant_type=refresh_token&client_id=c&client_secret=s&refresh_token=r";
    let (status, body) = send(form("/token", refresh)).await;
    assert_eq!((status, body["token_type"].as_str()), (200, Some("Bearer")));
    assert_eq!(send(form("/token", "grant_type=refresh_token&client_id=c")).await.0, 400);
    let sts = "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&audience=a&subject_token=t\
               &requested_token_type=urn:x&subject_token_type=urn:y";
    let (status, body) = send(form("/v1/token", sts)).await;
    assert_eq!(status, 200);
    setup.token = body["access_token"].as_str().expect("a token").to_owned();
    let path = "/v1/projects/-/serviceAccounts/sa@p1.iam.gserviceaccount.com:generateAccessToken";
    let scope = json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"]}).to_string();
    let (status, body) = send(setup.request(Method::POST, path).body(scope)).await;
    assert_eq!((status, body["accessToken"].is_string()), (200, true));
}

#[tokio::test]
async fn the_metadata_server_requires_its_header() {
    let setup = Setup::new().await;
    let path = "/computeMetadata/v1/project/project-id";
    assert_eq!(send(setup.request(Method::GET, path)).await.0, 403);
    let response =
        setup.request(Method::GET, path).header("metadata-flavor", "Google").send().await;
    assert_eq!(response.expect("a response").text().await.expect("text"), "iga-local");
}

#[tokio::test]
async fn the_metadata_server_is_detected() {
    let setup = Setup::new().await;
    for path in ["/", "/computeMetadata/v1/instance"] {
        let request = setup.request(Method::GET, path).header("metadata-flavor", "Google");
        let response = request.send().await.expect("a response");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["metadata-flavor"]),
            (200, &http::HeaderValue::from_static("Google"))
        );
    }
}

#[tokio::test]
async fn the_metadata_server_issues_id_tokens_for_an_audience() {
    let setup = Setup::new().await;
    let path = "/computeMetadata/v1/instance/service-accounts/default/identity";
    let ask = async |query: &str| {
        let request = setup.request(Method::GET, &format!("{path}{query}"));
        request.header("metadata-flavor", "Google").send().await.expect("a response")
    };
    for query in ["", "?audience="] {
        assert_eq!(ask(query).await.status().as_u16(), 400);
    }
    let response = ask("?audience=https%3A%2F%2Figa-1.run.app&format=full").await;
    assert_eq!(response.status().as_u16(), 200);
    let token = response.text().await.expect("text");
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "{token}");
    let claims = URL_SAFE_NO_PAD.decode(parts[1]).expect("base64");
    let claims: Value = serde_json::from_slice(&claims).expect("JSON");
    assert_eq!(claims["aud"], "https://iga-1.run.app");
    assert_eq!(claims["iss"], "https://accounts.google.com");
    assert_eq!(
        claims["exp"].as_i64().zip(claims["iat"].as_i64()).map(|(exp, iat)| exp - iat),
        Some(3600)
    );
}
