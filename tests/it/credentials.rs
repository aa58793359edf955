//! Application Default Credentials of every kind, and their absence.

use crate::service::{CURRENT, Service, config, emulator};
use iga::app::App;
use iga::local::emulator::{Action, Emulator, Fault, Stage};
use iga::runtime;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A key that was made for these tests and opens nothing.
const PRIVATE_KEY: &str = include_str!("test_key.pem");

fn impersonation_url(emulator: &Emulator) -> String {
    let account = "iga@test-project.iam.gserviceaccount.com";
    format!("{}/v1/projects/-/serviceAccounts/{account}:generateAccessToken", emulator.url())
}

fn authorized_user(emulator: &Emulator) -> Value {
    json!({"type": "authorized_user", "client_id": "id", "client_secret": "s", "refresh_token": "r",
        "token_uri": format!("{}/token", emulator.url())})
}

/// A service whose only credentials are in this file.
async fn service_with(emulator: Emulator, file: &Value) -> (Service, TempDir) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("credentials.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let path = path.to_str().unwrap();
    let settings =
        [CURRENT, &[("GOOGLE_APPLICATION_CREDENTIALS", path), ("GCE_METADATA_HOST", "127.0.0.1:1")]].concat();
    (Service::on(emulator, &settings).await, folder)
}

#[tokio::test]
async fn an_authorized_user_and_an_impersonated_account_get_their_picture() {
    let emulator = emulator().await;
    let user = authorized_user(&emulator);
    let impersonated = json!({"type": "impersonated_service_account", "source_credentials": user,
        "service_account_impersonation_url": impersonation_url(&emulator)});
    for file in [user, impersonated] {
        let (service, _folder) = service_with(emulator.clone(), &file).await;
        service.prompt().await.is_picture();
    }
}

#[tokio::test]
async fn a_federated_identity_gets_its_picture() {
    let emulator = emulator().await;
    let folder = TempDir::new().unwrap();
    let subject = folder.path().join("subject_token");
    std::fs::write(&subject, "a token of another cloud").unwrap();
    let file = json!({"type": "external_account", "audience": "//iam.googleapis.com/projects/1/x",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": format!("{}/v1/token", emulator.url()),
        "credential_source": {"file": subject}, "service_account_impersonation_url": impersonation_url(&emulator)});
    let (service, _folder) = service_with(emulator, &file).await;
    service.prompt().await.is_picture();
}

#[tokio::test]
async fn a_service_account_signs_its_own_tokens() {
    let emulator = emulator().await;
    let file = json!({"type": "service_account", "project_id": "p", "private_key_id": "k", "private_key": PRIVATE_KEY,
        "client_email": "iga@test-project.iam.gserviceaccount.com", "token_uri": format!("{}/token", emulator.url())});
    let (service, _folder) = service_with(emulator, &file).await;
    service.prompt().await.is_picture();
    assert_eq!(service.emulator.counters().token_fetches, 0, "no token was asked for");
    let sent = service.emulator.requests()[0].headers["authorization"].to_str().unwrap().to_owned();
    assert_eq!(sent.matches('.').count(), 2, "a signed token has three parts");
}

#[tokio::test]
async fn without_any_source_the_answer_names_those_that_were_tried() {
    let emulator = emulator().await;
    let mut config = config(&emulator, CURRENT);
    config.credentials = Default::default();
    config.credentials.gcloud_file = Some("/nowhere/application_default_credentials.json".into());
    let app = App::new(config);
    let hint = app.auth.hint().expect("nothing was found");
    assert!(hint.contains("GOOGLE_APPLICATION_CREDENTIALS (not set)") && hint.contains("/nowhere/"), "{hint}");

    let event = include_str!("../../events/generate_image.json");
    let answer = runtime::invoke(app, event).await.unwrap();
    assert_eq!(answer["statusCode"], 403, "{answer}");
    let body = answer["body"].as_str().unwrap();
    assert!(body.contains("IGA_VERTEXAI_PERMISSION_DENIED") && body.contains("metadata.google.internal"), "{body}");
    assert_eq!(emulator.requests().len(), 0);
}

#[tokio::test]
async fn a_file_with_credentials_that_google_refuses_is_403() {
    let emulator = emulator().await;
    emulator.script(
        Fault::new(Stage::Token, Action::answer_with(400, "application/json", r#"{"error": "invalid_grant"}"#))
            .always(),
    );
    let file = authorized_user(&emulator);
    let (service, _folder) = service_with(emulator, &file).await;
    service.prompt().await.is_error(403, "IGA_VERTEXAI_PERMISSION_DENIED").details_have("credentials.json");
    assert_eq!(service.emulator.counters().model_calls, 0);
}

#[tokio::test]
async fn a_token_service_that_recovers_is_asked_again_and_costs_nothing() {
    for action in [Action::status(503), Action::Reset] {
        let service = Service::current().await;
        service.emulator.script(Fault::new(Stage::Token, action).times(2));
        service.prompt().await.is_picture();
    }
}

#[tokio::test]
async fn a_token_service_that_stays_away_is_503_and_the_next_request_starts_afresh() {
    let service = Service::current().await;
    service.emulator.script(Fault::new(Stage::Token, Action::status(503)).times(3));
    service.prompt().await.is_error(503, "IGA_VERTEXAI_API_ERROR").details_have("Service Unavailable: no access token");
    assert_eq!(service.emulator.counters().model_calls, 0);
    service.prompt().await.is_picture();
}
