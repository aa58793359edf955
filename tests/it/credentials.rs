//! Application Default Credentials: every kind works, and missing or refused credentials are explained.

use crate::support::process::Process;
use crate::support::service::{CURRENT, Service, client, config, emulator, fetch};
use iga::app::App;
use iga::runtime;
use iga_emulator::{Action, Emulator, Fault, Stage};
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

/// A key that exists for these tests only and gives access to nothing.
const PRIVATE_KEY: &str = include_str!("test_key.pem");

fn impersonation_url(emulator: &Emulator) -> String {
    let account = "iga@test-project.iam.gserviceaccount.com";
    format!("{}/v1/projects/-/serviceAccounts/{account}:generateAccessToken", emulator.url())
}

fn authorized_user(emulator: &Emulator) -> Value {
    json!({"type": "authorized_user", "client_id": "id", "client_secret": "s", "refresh_token": "r",
        "token_uri": format!("{}/token", emulator.url())})
}

/// A service with this credentials file and no other credentials.
async fn service_with(emulator: Emulator, file: &Value) -> (Service, TempDir) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("credentials.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let path = path.to_str().unwrap();
    let settings = [
        CURRENT,
        &[("GOOGLE_APPLICATION_CREDENTIALS", path), ("GCE_METADATA_HOST", "127.0.0.1:1")],
    ]
    .concat();
    (Service::on(emulator, &settings).await, folder)
}

/// The causes that the log and the doctor show when this file yields no token.
async fn causes(service: &Service, folder: &TempDir) -> String {
    let path = folder.path().join("credentials.json");
    let path = [("GOOGLE_APPLICATION_CREDENTIALS", path.to_str().unwrap())];
    let app = App::new(config(&service.emulator, &[CURRENT, &path].concat()));
    let deadline = Instant::now() + Duration::from_secs(60);
    app.client.credentials.try_token(deadline).await.expect_err("no token").causes()
}

#[tokio::test]
async fn an_authorized_user_and_an_impersonated_account_get_their_image() {
    let emulator = emulator().await;
    let user = authorized_user(&emulator);
    let impersonated = json!({"type": "impersonated_service_account", "source_credentials": user,
        "service_account_impersonation_url": impersonation_url(&emulator)});
    for file in [user, impersonated] {
        let (service, _folder) = service_with(emulator.clone(), &file).await;
        service.prompt().await.is_image();
    }
}

#[tokio::test]
async fn a_federated_identity_gets_its_image() {
    let emulator = emulator().await;
    let folder = TempDir::new().unwrap();
    let subject = folder.path().join("subject_token");
    std::fs::write(&subject, "a token of another cloud").unwrap();
    let file = json!({"type": "external_account", "audience": "//iam.googleapis.com/projects/1/x",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": format!("{}/v1/token", emulator.url()),
        "credential_source": {"file": subject}, "service_account_impersonation_url": impersonation_url(&emulator)});
    let (service, _folder) = service_with(emulator, &file).await;
    service.prompt().await.is_image();
}

#[tokio::test]
async fn a_service_account_signs_its_own_tokens() {
    let emulator = emulator().await;
    let file = json!({"type": "service_account", "project_id": "p", "private_key_id": "k", "private_key": PRIVATE_KEY,
        "client_email": "iga@test-project.iam.gserviceaccount.com", "token_uri": format!("{}/token", emulator.url())});
    let (service, _folder) = service_with(emulator, &file).await;
    service.prompt().await.is_image();
    assert_eq!(service.emulator.counters().token_fetches, 0, "no token was requested");
    let sent = service.emulator.requests()[0].headers["authorization"].to_str().unwrap().to_owned();
    assert_eq!(sent.matches('.').count(), 2, "a signed token has three parts");
}

#[tokio::test]
async fn without_credentials_the_response_names_the_sources_that_were_tried() {
    let emulator = emulator().await;
    let mut config = config(&emulator, CURRENT);
    config.credentials = Default::default();
    config.credentials.gcloud_file = Some("/nowhere/application_default_credentials.json".into());
    let app = App::new(config);
    let hint = app.client.credentials.hint().expect("nothing was found");
    assert!(
        hint.contains("GOOGLE_APPLICATION_CREDENTIALS (not set)") && hint.contains("/nowhere/"),
        "{hint}"
    );

    let event = include_str!("../../events/generate_image.json");
    let response = runtime::invoke(app, event).await.unwrap();
    assert_eq!(response["statusCode"], 403, "{response}");
    let body = response["body"].as_str().unwrap();
    assert!(
        body.contains("IGA_VERTEXAI_PERMISSION_DENIED")
            && body.contains("GOOGLE_APPLICATION_CREDENTIALS (not set)")
            && body.contains("gcloud's own file (not there)")
            && body.contains("the metadata server"),
        "{body}"
    );
    assert!(!body.contains("/nowhere/") && !body.contains("metadata.google.internal"), "{body}");
    assert_eq!(emulator.requests().len(), 0);
}

#[tokio::test]
async fn a_file_with_credentials_that_google_refuses_is_403() {
    let emulator = emulator().await;
    emulator.script(
        Fault::new(
            Stage::Token,
            Action::response_with(400, "application/json", r#"{"error": "invalid_grant"}"#),
        )
        .always(),
    );
    let file = authorized_user(&emulator);
    let (service, folder) = service_with(emulator, &file).await;
    let response = service.prompt().await;
    response
        .is_error(403, "IGA_VERTEXAI_PERMISSION_DENIED")
        .details_have("Tried: the file that GOOGLE_APPLICATION_CREDENTIALS names.");
    let causes = causes(&service, &folder).await;
    assert!(causes.contains("HTTP 400: invalid_grant"), "{causes}");
    assert!(causes.contains("credentials.json") && causes.contains("Sign in again"), "{causes}");
    assert_eq!(service.emulator.counters().model_calls, 0);
}

#[tokio::test]
async fn a_transient_token_failure_is_retried() {
    for action in [Action::status(503), Action::Reset] {
        let service = Service::current().await;
        service.emulator.script(Fault::new(Stage::Token, action).times(2));
        service.prompt().await.is_image();
    }
}

#[tokio::test]
async fn a_lasting_token_failure_is_503_and_the_next_request_tries_again() {
    let service = Service::current().await;
    service.emulator.script(Fault::new(Stage::Token, Action::status(503)).times(3));
    service
        .prompt()
        .await
        .is_error(503, "IGA_VERTEXAI_API_ERROR")
        .details_have("Service Unavailable: no access token");
    assert_eq!(service.emulator.counters().model_calls, 0);
    service.prompt().await.is_image();
}

/// A federation file for another cloud, which is not reachable here.
fn federated(emulator: &Emulator, source: Value) -> Value {
    json!({"type": "external_account", "audience": "//iam.googleapis.com/POOL/providers/p",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": format!("{}/v1/token", emulator.url()),
        "credential_source": source, "service_account_impersonation_url": impersonation_url(emulator)})
}

#[tokio::test]
async fn a_federation_file_for_another_cloud_says_what_to_change() {
    for (source, status, words) in [
        (
            json!({"url": "http://127.0.0.1:1/metadata/identity/oauth2/token"}),
            503,
            "made for Azure",
        ),
        (json!({"url": "http://127.0.0.1:1/token"}), 503, "from 127.0.0.1:1"),
        (json!({"file": "/nowhere/token"}), 403, "its own cloud in /nowhere/token"),
        (json!({"executable": {"command": "/nowhere/program"}}), 403, "ALLOW_EXECUTABLES=1"),
    ] {
        let emulator = emulator().await;
        let file = federated(&emulator, source);
        let (service, folder) = service_with(emulator, &file).await;
        let response = service.prompt().await;
        assert_eq!(response.status, status, "{response:?}");
        response.details_have("the file that GOOGLE_APPLICATION_CREDENTIALS names");
        let causes = causes(&service, &folder).await;
        let where_else = "GOOGLE_APPLICATION_CREDENTIALS must name a file made for that platform";
        assert!(causes.contains(words) && causes.contains(where_else), "{causes}");
        let details = response.text("details");
        assert!(!details.contains("/nowhere") && !details.contains("127.0.0.1"), "{details}");
        assert_eq!(service.emulator.counters().model_calls, 0);
    }
}

#[tokio::test]
async fn a_federated_identity_that_google_refuses_is_403_with_the_cause_in_the_log() {
    for (path, words) in [
        ("/v1/token", "The pool POOL does not let this identity in"),
        (":generateAccessToken", "needs roles/iam.workloadIdentityUser on iga@test-project"),
    ] {
        let emulator = emulator().await;
        emulator.script(Fault::new(Stage::Token, Action::status(403)).matching(path).always());
        let subject = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(subject.path(), "a token of another cloud").unwrap();
        let file = federated(&emulator, json!({"file": subject.path()}));
        let (service, folder) = service_with(emulator, &file).await;
        let response = service.prompt().await;
        response.is_error(403, "IGA_VERTEXAI_PERMISSION_DENIED");
        assert!(!response.text("details").contains("POOL"), "{response:?}");
        let causes = causes(&service, &folder).await;
        assert!(causes.contains(words) && causes.contains("HTTP 403"), "{causes}");
    }
}

#[tokio::test]
async fn a_token_of_another_cloud_is_not_logged() {
    let emulator = emulator().await;
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token.json");
    std::fs::write(&token, r#"{"other_field": "THE-SECRET"}"#).unwrap();
    let format = json!({"type": "json", "subject_token_field_name": "access_token"});
    let file = federated(&emulator, json!({"file": token, "format": format}));
    let path = folder.path().join("federation.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let path = ("GOOGLE_APPLICATION_CREDENTIALS", path.to_str().unwrap());
    let process = Process::start(&emulator, &[CURRENT, &[path]].concat()).await;
    let request = client()
        .post(format!("{}/generate_image", process.url))
        .header("content-type", "application/json");
    fetch(request.body(json!({"prompt": "x"}).to_string()))
        .await
        .is_error(403, "IGA_VERTEXAI_PERMISSION_DENIED");
    process.signal("TERM");
    let (_, lines) = process.end().await;
    let log = lines.iter().map(Value::to_string).collect::<String>();
    assert!(log.contains("failed to read subject token") && !log.contains("THE-SECRET"), "{log}");
}
