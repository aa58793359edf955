//! `iga doctor`: each fault of the settings and of Google's services is a finding with its fix.

use crate::support::process::{Process, command};
use crate::support::service::{BUCKET, CURRENT, emulator, emulator_with};
use iga_emulator::{Action, Emulator, Fault, Options, Stage};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;

/// The output and the exit code of the doctor.
struct Findings {
    code: Option<i32>,
    text: String,
}

impl Findings {
    /// Asserts a finding with this beginning that contains `words`, followed by `command` unless that is empty.
    #[track_caller]
    fn have(&self, verdict: &str, subject: &str, words: &str, command: &str) -> &Findings {
        let head = format!("{verdict:<5} {subject:<9} ");
        let lines: Vec<_> = self.text.lines().collect();
        let is_it = |line: &&str| line.starts_with(&head) && line.contains(words);
        let Some(place) = lines.iter().position(is_it) else {
            panic!("no {verdict} {subject} {words:?} in:\n{}", self.text);
        };
        let next = lines
            .get(place + 1)
            .and_then(|line| line.strip_prefix("                "))
            .unwrap_or_default();
        assert!(
            next.starts_with(command) && next.is_empty() == command.is_empty(),
            "{command:?} in:\n{}",
            self.text
        );
        self
    }

    #[track_caller]
    fn fail(&self, subject: &str, words: &str, command: &str) -> &Findings {
        assert_eq!(self.code, Some(1), "{}", self.text);
        self.have("FAIL", subject, words, command)
    }

    /// Asserts a warning, and that no check failed.
    #[track_caller]
    fn warn(&self, subject: &str, words: &str, command: &str) -> &Findings {
        self.well().have("warn", subject, words, command)
    }

    #[track_caller]
    fn ok(&self, subject: &str, words: &str) -> &Findings {
        self.have("ok", subject, words, "")
    }

    #[track_caller]
    fn skip(&self, subjects: &[&str], because: &str) -> &Findings {
        for subject in subjects {
            self.have("skip", subject, &format!("not checked: {because}"), "");
        }
        self
    }

    #[track_caller]
    fn well(&self) -> &Findings {
        assert!(self.code == Some(0) && !self.text.contains("FAIL"), "{}", self.text);
        self
    }
}

async fn run(emulator: &Emulator, command: &mut Command) -> Findings {
    let output = command.arg("doctor").output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((emulator.objects().len(), emulator.counters().paid_generations), (0, 0), "{text}");
    for secret in ["ya29", "TOP-SECRET", "PRIVATE KEY"] {
        assert!(!text.contains(secret), "{text}");
    }
    Findings { code: output.status.code(), text }
}

/// Runs the doctor with these settings in addition to the usual ones and a current model.
async fn doctor(emulator: &Emulator, settings: &[(&str, &str)]) -> Findings {
    let quiet = [("IGA_DEBUG_MODE", "False")];
    run(emulator, command(emulator, &[CURRENT, &quiet, settings].concat()).env_remove("HOME")).await
}

async fn doctor_after(fault: Fault) -> Findings {
    let emulator = emulator().await;
    emulator.script(fault);
    doctor(&emulator, &[]).await
}

async fn doctor_without(permissions: &[&str], settings: &[(&str, &str)]) -> Findings {
    let withheld = permissions.iter().map(|permission| (*permission).to_owned()).collect();
    doctor(&emulator_with(Options { withheld, ..Options::default() }).await, settings).await
}

/// Runs the doctor with this text as its credentials file.
async fn doctor_with_file(emulator: &Emulator, file: &str, settings: &[(&str, &str)]) -> Findings {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("credentials.json");
    std::fs::write(&path, file).unwrap();
    let path = ("GOOGLE_APPLICATION_CREDENTIALS", path.to_str().unwrap());
    doctor(emulator, &[settings, &[path]].concat()).await
}

const ADD_ROLE: &str = "gcloud projects add-iam-policy-binding test-project \
    --member=serviceAccount:iga@iga-local.iam.gserviceaccount.com --role=roles/aiplatform.user";
const OBJECT_CREATOR: &str = "gcloud storage buckets add-iam-policy-binding gs://test-images \
    --member=serviceAccount:iga@iga-local.iam.gserviceaccount.com --role=roles/storage.objectCreator";
const OBJECT_USER: &str = "gcloud storage buckets add-iam-policy-binding gs://test-images \
    --member=serviceAccount:iga@iga-local.iam.gserviceaccount.com --role=roles/storage.objectUser";

#[tokio::test]
async fn every_check_of_a_healthy_service_is_ok() {
    let emulator = emulator().await;
    let findings = doctor(&emulator, &[]).await;
    assert!(findings.well().text.lines().all(|line| line.starts_with("ok ")), "{}", findings.text);
    let account = "service account iga@iga-local.iam.gserviceaccount.com (metadata server)";
    findings
        .ok("settings", "project test-project, location global, bucket test-images")
        .ok("prompts", "may be sent to Vertex AI in global");
    findings
        .ok("identity", account)
        .ok("clock", "agrees")
        .ok("model", "gemini-3.1-flash-image answers in global");
    findings
        .ok("bucket", "created in gs://test-images/images/iga/.iga/, read and deleted")
        .ok("port", "is free");
    let counters = emulator.counters();
    assert_eq!((counters.uploads_completed, counters.metadata_gets, counters.deletes), (1, 2, 1));
    assert_eq!(counters.token_fetches, 1);
}

#[tokio::test]
async fn the_example_of_the_page_is_real_output() {
    let options = Options { buckets: vec!["your-bucket".to_owned()], ..Options::default() };
    let emulator = Emulator::start(options).await.unwrap();
    let settings = [("GCP_PROJECT_ID", "your-project"), ("GCS_BUCKET_NAME", "your-bucket")];
    let findings = run(&emulator, &mut command(&emulator, &settings)).await;
    let all_but_the_port = findings.well().text.split("ok    port").next().unwrap();
    let all_but_the_port = all_but_the_port.replace("iga@iga-local.", "iga@your-project.");
    let page = include_str!("../../docs/operations.md");
    assert!(
        page.contains(&format!("```console\n$ iga doctor\n{all_but_the_port}ok    port")),
        "{all_but_the_port}"
    );
}

#[tokio::test]
async fn every_setting_that_is_missing_or_invalid_is_a_finding_and_the_rest_is_checked() {
    let emulator = emulator().await;
    for (names, words, remedy) in [
        (
            ["GCP_PROJECT_ID", ""],
            "IGA_VERTEXAI_PROJECT_ID or GCP_PROJECT_ID is not set",
            "export IGA_VERTEXAI_PROJECT_ID=$(",
        ),
        (
            ["GCP_LOCATION", ""],
            "IGA_VERTEXAI_LOCATION or GCP_LOCATION is not set",
            "export IGA_VERTEXAI_LOCATION=global",
        ),
        (
            ["GCS_BUCKET_NAME", ""],
            "GCS_BUCKET_NAME is not set",
            "export GCS_BUCKET_NAME=test-project-iga",
        ),
        (["GCS_BUCKET_NAME", "gs://x"], "no gs://", "export GCS_BUCKET_NAME=test-project-iga"),
        (["GCP_PROJECT_ID", "My Project"], "GCP_PROJECT_ID must be", "export GCP_PROJECT_ID=$("),
        (["GCP_LOCATION", "US/evil"], "GCP_LOCATION must be", "export GCP_LOCATION=global"),
        (["IGA_HOST", "localhost"], "IGA_HOST must be an IP", "unset IGA_HOST"),
        (["PORT", "eighty"], "PORT must be", "unset PORT"),
        (["IGA_DEBUG_MODE", "perhaps"], "IGA_DEBUG_MODE must be", "unset IGA_DEBUG_MODE"),
        (
            ["IGA_VERTEXAI_IMAGE_MODEL_ID", "dall-e"],
            "names no model",
            "unset IGA_VERTEXAI_IMAGE_MODEL_ID",
        ),
        (
            ["IGA_VERTEXAI_FALLBACK_MODELS", "x"],
            "names no model",
            "unset IGA_VERTEXAI_FALLBACK_MODELS",
        ),
        (["IGA_GCS_IMAGE_PREFIX", "../x"], "must not hold", "unset IGA_GCS_IMAGE_PREFIX"),
        (["IGA_DEFAULT_ASPECT_RATIO", "4:7"], "must be one of", "unset IGA_DEFAULT_ASPECT_RATIO"),
        (["IGA_MAX_GENERATIONS", "0"], "from 1 to", "unset IGA_MAX_GENERATIONS"),
        (["IGA_ANSWER_WITHIN_SECONDS", "x"], "(or off)", "unset IGA_ANSWER_WITHIN_SECONDS"),
        (
            ["STORAGE_EMULATOR_HOST", "http://x.com"],
            "must use https",
            "unset STORAGE_EMULATOR_HOST",
        ),
        (["IGA_VERTEXAI_ENDPOINT", "ftp://x"], "must be an http", "unset IGA_VERTEXAI_ENDPOINT"),
        (["GCE_METADATA_HOST", "evil.example.com"], "must be host", "unset GCE_METADATA_HOST"),
    ] {
        let [name, value] = names;
        let current = [("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-2.5-flash-image"), (name, value)];
        let mut command = command(&emulator, &current);
        let findings = run(&emulator, &mut command).await;
        findings.fail("settings", words, remedy);
        assert_eq!(findings.text.matches("FAIL").count(), 1, "{name} {value}: {}", findings.text);
        let skips = |subject: &str| findings.text.contains(&format!("skip  {subject}"));
        let model = [
            "GCP_PROJECT_ID",
            "GCP_LOCATION",
            "IGA_VERTEXAI_IMAGE_MODEL_ID",
            "IGA_VERTEXAI_ENDPOINT",
        ];
        let storage = ["GCS_BUCKET_NAME", "IGA_GCS_IMAGE_PREFIX", "STORAGE_EMULATOR_HOST"];
        let identity = name == "GCE_METADATA_HOST";
        assert_eq!(skips("model"), identity || model.contains(&name), "{name}: {}", findings.text);
        assert_eq!(
            skips("bucket"),
            identity || storage.contains(&name),
            "{name}: {}",
            findings.text
        );
        assert_eq!(
            skips("port"),
            ["PORT", "IGA_HOST"].contains(&name),
            "{name}: {}",
            findings.text
        );
    }
}

#[tokio::test]
async fn all_settings_missing_are_all_listed() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iga"));
    command
        .env_clear()
        .current_dir(std::env::temp_dir())
        .envs([("PORT", "0"), ("GCE_METADATA_HOST", "127.0.0.1:1")]);
    command.env("STORAGE_EMULATOR_HOST", "127.0.0.1:1");
    let findings = run(&emulator().await, &mut command).await;
    assert_eq!(findings.text.matches("FAIL  settings").count(), 3, "{}", findings.text);
    findings.fail(
        "token",
        "no access token from the metadata server",
        "gcloud auth application-default login",
    );
}

#[tokio::test]
async fn the_fix_of_a_setting_fits_the_platform() {
    let emulator = emulator().await;
    let cloud_run = doctor(&emulator, &[("K_SERVICE", "images"), ("GCP_PROJECT_ID", "")]).await;
    cloud_run.fail(
        "settings",
        "is not set",
        "gcloud run services update images --update-env-vars \"^;^IGA_VERTEXAI_PROJECT_ID=$(",
    );
    let lambda = [("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1"), ("IGA_DEBUG_MODE", "x")];
    let lambda = doctor(&emulator, &lambda).await;
    lambda
        .fail("settings", "IGA_DEBUG_MODE", "sam deploy   # without IGA_DEBUG_MODE")
        .ok("port", "none is needed");
}

#[tokio::test]
async fn an_env_file_that_cannot_be_read_is_a_finding() {
    let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
    std::fs::write(folder.path().join(".env"), "this is no setting").unwrap();
    let findings = run(&emulator, command(&emulator, CURRENT).current_dir(folder.path())).await;
    findings.fail("settings", "the file .env cannot be read", "").ok("bucket", "created");
}

#[tokio::test]
async fn an_unusable_credentials_file_is_a_finding() {
    let emulator = emulator().await;
    let unset = "unset GOOGLE_APPLICATION_CREDENTIALS; gcloud auth application-default login";
    for (file, words) in [
        ("-----BEGIN PRIVATE KEY----- TOP-SECRET", "is not JSON"),
        ("{}", "has no type"),
        (r#"{"type": "weird", "private_key": "TOP-SECRET"}"#, "of an unknown type"),
    ] {
        let findings = doctor_with_file(&emulator, file, &[]).await;
        findings
            .fail("settings", words, unset)
            .skip(&["identity"], "GOOGLE_APPLICATION_CREDENTIALS needs attention");
        findings
            .skip(&["token", "model", "bucket"], "there is no identity")
            .ok("port", "is free")
            .ok("clock", "agrees");
    }
    let findings =
        doctor(&emulator, &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")]).await;
    findings.fail("settings", "cannot be read: No such file", unset);
    assert_eq!(emulator.counters().token_fetches, 0);
}

#[tokio::test]
async fn an_unusable_file_of_gcloud_is_a_finding() {
    let (emulator, deployment) = (emulator().await, TempDir::new().unwrap());
    let folder = deployment.path().join(".config/gcloud");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("application_default_credentials.json"), "TOP-SECRET").unwrap();
    let findings = run(&emulator, command(&emulator, CURRENT).env("HOME", deployment.path())).await;
    findings.fail(
        "identity",
        "is not JSON; sign in again with gcloud",
        "unset GOOGLE_APPLICATION_CREDENTIALS; gcloud auth",
    );
}

#[tokio::test]
async fn every_kind_of_credentials_file_is_named_without_its_secrets() {
    let emulator = emulator().await;
    let url = emulator.url();
    let email = "iga@test-project.iam.gserviceaccount.com";
    let acts_as = format!("{url}/v1/projects/-/serviceAccounts/{email}:generateAccessToken");
    let user = json!({"type": "authorized_user", "client_id": "id", "client_secret": "TOP-SECRET",
        "refresh_token": "TOP-SECRET", "token_uri": format!("{url}/token")});
    let key = include_str!("test_key.pem");
    let account = json!({"type": "service_account", "project_id": "p", "private_key_id": "TOP-SECRET", "private_key": key,
        "client_email": email, "token_uri": format!("{url}/token")});
    let impersonated = json!({"type": "impersonated_service_account", "source_credentials": user,
        "service_account_impersonation_url": acts_as});
    for (file, expected) in [
        (user, "a person's sign-in with gcloud (/".to_owned()),
        (account, format!("service account {email} (/")),
        (impersonated, format!("a person's sign-in, acting as service account {email} (/")),
    ] {
        let findings = doctor_with_file(&emulator, &file.to_string(), &[]).await;
        findings.well().ok("identity", &expected).ok("token", "").ok("bucket", "created");
    }
}

#[tokio::test]
async fn a_key_that_is_not_complete_is_a_finding() {
    let file = r#"{"type": "service_account", "client_email": "a@b.iam.gserviceaccount.com", "private_key": "TOP-SECRET"}"#;
    let findings = doctor_with_file(&emulator().await, file, &[]).await;
    findings.fail(
        "settings",
        "lacks private_key_id; download",
        "unset GOOGLE_APPLICATION_CREDENTIALS",
    );
    findings
        .skip(&["identity"], "GOOGLE_APPLICATION_CREDENTIALS needs attention")
        .skip(&["token", "model", "bucket"], "there is no identity");
}

fn federated(emulator: &Emulator, source: Value) -> String {
    let account = "iga@test-project.iam.gserviceaccount.com";
    let file = json!({"type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/p",
        "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
        "token_url": format!("{}/v1/token", emulator.url()), "credential_source": source,
        "service_account_impersonation_url":
            format!("{}/v1/projects/-/serviceAccounts/{account}:generateAccessToken", emulator.url())});
    file.to_string()
}

const AWS: &[(&str, &str)] = &[
    ("AWS_REGION", "eu-west-1"),
    ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "TOP-SECRET"),
];
const LAMBDA: &[(&str, &str)] = &[("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")];

#[tokio::test]
async fn a_federation_file_for_another_cloud_is_a_finding() {
    let emulator = emulator().await;
    // Like a metadata server on another cloud, this address has no listener.
    let metadata = "http://127.0.0.1:1/latest/meta-data";
    let aws = json!({"environment_id": "aws1", "region_url": metadata, "url": metadata});
    let azure = json!({"url": "http://127.0.0.1:1/metadata/identity/oauth2/token", "headers": {"Metadata": "True"}});
    let ec2 = json!({"environment_id": "aws1", "imdsv2_session_token_url": metadata});
    let unset = "unset GOOGLE_APPLICATION_CREDENTIALS";
    for (source, expected, words) in [
        (
            &aws,
            "federated from AWS, acting as",
            "made for AWS, and this process has no AWS identity. On AWS set AWS_ACCESS_KEY_ID",
        ),
        (&ec2, "federated from AWS, acting as", "made for EC2 (--enable-imdsv2)"),
        (
            &azure,
            "federated from Azure, acting as",
            "made for Azure, whose metadata server is not here",
        ),
        (
            &json!({"file": "/nowhere/token"}),
            "the token in /nowhere/token",
            "its own cloud in /nowhere/token",
        ),
        (
            &json!({"executable": {"command": "/nowhere/x"}}),
            "a program's token",
            "ALLOW_EXECUTABLES=1",
        ),
    ] {
        let findings =
            doctor_with_file(&emulator, &federated(&emulator, source.clone()), &[]).await;
        findings
            .ok("identity", expected)
            .fail("token", words, unset)
            .skip(&["model", "bucket"], "there is no access token");
    }
    for (source, words) in
        [(azure, "made for Azure, but this is AWS Lambda"), (ec2, "without --enable-imdsv2")]
    {
        let file = federated(&emulator, source);
        let findings = doctor_with_file(&emulator, &file, &[LAMBDA, AWS].concat()).await;
        findings.fail("settings", words, "scripts/setup-aws.sh --project");
    }
    let cloud_run = [("K_SERVICE", "iga")];
    let findings =
        doctor_with_file(&emulator, &federated(&emulator, aws.clone()), &cloud_run).await;
    findings.fail(
        "settings",
        "this is Cloud Run",
        "gcloud run services update iga --remove-env-vars GOOGLE_APPLICATION_CRED",
    );
    let findings =
        doctor_with_file(&emulator, &federated(&emulator, aws), &[LAMBDA, AWS].concat()).await;
    findings.well().ok("token", "").ok("bucket", "created");
}

#[tokio::test]
async fn a_federation_file_that_is_not_complete_is_a_finding() {
    let emulator = emulator().await;
    let file = r#"{"type": "external_account", "credential_source": {"environment_id": "aws1"}}"#;
    for (settings, remedy) in [
        (AWS.to_vec(), "unset GOOGLE_"),
        ([LAMBDA, AWS].concat(), "scripts/setup-aws.sh --project"),
    ] {
        let findings = doctor_with_file(&emulator, file, &settings).await;
        findings.fail("settings", "lacks audience; download or generate it again", remedy);
    }
}

#[tokio::test]
async fn a_federated_identity_that_google_refuses_is_a_finding() {
    for (path, words, remedy) in [
        (
            "/v1/token",
            "pool does not let this identity in",
            "gcloud iam workload-identity-pools providers list",
        ),
        (
            ":generateAccessToken",
            "needs roles/iam.workloadIdentityUser on iga@",
            "gcloud iam service-accounts add-iam-policy-binding iga@test-project.iam.gserviceaccount.com \
             --member=principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/\
             attribute.aws_role/arn:aws:sts::AWS_ACCOUNT:assumed-role/ROLE --role=roles/iam.workloadIdentityUser",
        ),
    ] {
        let emulator = emulator().await;
        emulator.script(Fault::new(Stage::Token, Action::status(403)).matching(path).always());
        let file = federated(&emulator, json!({"environment_id": "aws1"}));
        doctor_with_file(&emulator, &file, AWS).await.fail("token", words, remedy);
    }
}

#[tokio::test]
async fn a_missing_token_is_a_finding() {
    let sign_in = "gcloud auth application-default login";
    for status in [401, 403, 404, 500, 503] {
        let findings =
            doctor_after(Fault::new(Stage::Token, Action::status(status)).always()).await;
        findings
            .fail("token", &status.to_string(), sign_in)
            .skip(&["model", "bucket"], "there is no access token");
    }
    let findings = doctor_after(Fault::new(Stage::Token, Action::Reset).always()).await;
    findings.fail("token", "no access token from the metadata server", sign_in);
    let findings = doctor(&emulator().await, &[("GCE_METADATA_HOST", "127.0.0.1:1")]).await;
    findings.have("warn", "identity", "no credentials file", "").fail("token", "refused", sign_in);
    let findings =
        doctor(&emulator().await, &[("GCE_METADATA_HOST", "127.0.0.1:1"), ("K_SERVICE", "iga")])
            .await;
    findings.fail("token", "refused", "gcloud run services update iga --service-account=EMAIL");
}

#[tokio::test]
async fn a_token_that_is_refused_is_a_finding() {
    let findings = doctor_after(Fault::new(Stage::Model, Action::status(401)).always()).await;
    findings.fail("model", "invalid authentication credentials", "").ok("bucket", "created");
}

#[tokio::test]
async fn a_retired_model_costs_a_404_and_is_a_warning() {
    let emulator = emulator().await;
    let findings =
        doctor(&emulator, &[("IGA_VERTEXAI_IMAGE_MODEL_ID", "imagegeneration@006")]).await;
    let remedy =
        "export IGA_VERTEXAI_IMAGE_MODEL_ID=gemini-nano-banana-2.1 IGA_VERTEXAI_LOCATION=global";
    findings
        .warn("model", "imagegeneration@006 is not served in", remedy)
        .ok("model", "gemini-nano-banana-2.1 answers");
    findings.ok("model", "fallback gemini-3.1-flash-image answers in global");
    findings.ok("model", "fallback gemini-2.5-flash-image answers in global");
    assert_eq!(emulator.counters().model_calls, 4);
}

#[tokio::test]
async fn a_fallback_that_is_gone_is_a_warning_and_the_last_one_decides() {
    let emulator = emulator().await;
    let fallbacks =
        "global/gemini-3-pro-image-preview,global/gemini-nano-banana-2.1,imagen-3.0-generate-001";
    let findings = doctor(
        &emulator,
        &[
            ("IGA_VERTEXAI_IMAGE_MODEL_ID", "imagegeneration@006"),
            ("IGA_VERTEXAI_FALLBACK_MODELS", fallbacks),
        ],
    )
    .await;
    findings.warn(
        "model",
        "gemini-3-pro-image-preview is not served in global: a 404 at every start",
        "",
    );
    findings.ok("model", "gemini-nano-banana-2.1 answers");
    let remedy = "export IGA_VERTEXAI_FALLBACK_MODELS=global/gemini-3-pro-image-preview,global/gemini-nano-banana-2.1,global/";
    findings.warn("model", "fallback imagen-3.0-generate-001 in ", remedy);
}

#[tokio::test]
async fn a_model_that_is_served_elsewhere_gets_that_location_as_its_fix() {
    let settings = [("IGA_VERTEXAI_LOCATION", "us-central1"), ("IGA_VERTEXAI_FALLBACK_MODELS", "")];
    let findings = doctor(&emulator().await, &settings).await;
    let remedy =
        "export IGA_VERTEXAI_IMAGE_MODEL_ID=gemini-3.1-flash-image IGA_VERTEXAI_LOCATION=global";
    findings.fail("model", "retired, or not served in us-central1", remedy);
}

#[tokio::test]
async fn models_that_are_all_gone_are_a_finding() {
    let body = r#"{"error": {"message": "Publisher Model `x` was not found."}}"#;
    let gone = Action::response_with(404, "application/json", body);
    let findings = doctor_after(Fault::new(Stage::Model, gone).always()).await;
    let remedy = "export IGA_VERTEXAI_IMAGE_MODEL_ID=gemini-3.1-flash-lite-image IGA_VERTEXAI_LOCATION=global";
    findings.fail(
        "model",
        "gemini-3.1-flash-image in global: Model gemini-3.1-flash-image is retired, or not",
        remedy,
    );
    findings.fail("model", "gemini-nano-banana-2.1 in global", remedy).ok("bucket", "created");
}

#[tokio::test]
async fn a_retired_model_that_still_responds_is_a_warning() {
    let revive = vec!["imagegeneration@006".to_owned()];
    let emulator = emulator_with(Options { revive, ..Options::default() }).await;
    let settings = [
        ("IGA_VERTEXAI_IMAGE_MODEL_ID", "imagegeneration@006"),
        ("IGA_VERTEXAI_LOCATION", "us-central1"),
    ];
    let findings = doctor(&emulator, &settings).await;
    findings.warn("model", "Google has retired it", "export IGA_VERTEXAI_IMAGE_MODEL_ID=");
}

#[tokio::test]
async fn every_reason_why_a_model_cannot_be_used_is_a_finding_with_its_fix() {
    let service_disabled = json!({"error": {"code": 403, "status": "PERMISSION_DENIED",
        "message": "Vertex AI API has not been used in project test-project before or it is disabled.",
        "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED",
            "domain": "googleapis.com", "metadata": {"service": "aiplatform.googleapis.com"}}]}});
    let billing_disabled = json!({"error": {"code": 403, "status": "PERMISSION_DENIED",
        "message": "This API method requires billing to be enabled.", "details": [{"reason": "BILLING_DISABLED"}]}});
    let no_quota = json!({"error": {"code": 429, "message": "Quota exceeded.", "status": "RESOURCE_EXHAUSTED",
        "details": [{"reason": "RATE_LIMIT_EXCEEDED", "metadata": {"quota_limit_value": "0"}}]}});
    let not_allowed = json!({"error": {"code": 400, "status": "FAILED_PRECONDITION",
        "message": "Project `1` is not allowed to use Publisher Model `x`"}});
    let json =
        |status, body: &Value| Action::response_with(status, "application/json", body.to_string());
    let quotas = "https://console.cloud.google.com/iam-admin/quotas?service=aiplatform.googleapis.com&project=test-project";
    for (action, words, remedy) in [
        (Action::status(403), "Permission 'aiplatform.endpoints.predict' denied", ADD_ROLE),
        (
            json(403, &service_disabled),
            "SERVICE_DISABLED",
            "gcloud services enable aiplatform.googleapis.com --project test-project",
        ),
        (
            json(403, &billing_disabled),
            "billing",
            "gcloud billing projects link test-project --billing-account=",
        ),
        (json(429, &no_quota), "Quota exceeded", quotas),
        (json(400, &not_allowed), "not allowed to use", ""),
        (Action::status(500), "Internal error", ""),
        (Action::status(503), "Service Unavailable", ""),
        (Action::Reset, "connection broke", "unset IGA_VERTEXAI_ENDPOINT"),
    ] {
        let findings = doctor_after(Fault::new(Stage::Model, action).always()).await;
        findings.fail("model", words, remedy).ok("bucket", "created");
    }
    let findings = doctor_after(Fault::new(Stage::Model, Action::status(429)).always()).await;
    findings.warn("model", "gemini-3.1-flash-image in global: Resource exhausted", quotas);
    let findings = doctor(&emulator().await, &[("IGA_VERTEXAI_ENDPOINT", "127.0.0.1:1")]).await;
    findings.fail("model", "no connection", "unset IGA_VERTEXAI_ENDPOINT").ok("bucket", "created");
}

#[tokio::test]
async fn a_fallback_without_permission_is_a_warning_while_the_model_responds() {
    let fault = Fault::new(Stage::Model, Action::status(403)).matching("nano-banana").always();
    let findings = doctor_after(fault).await;
    findings.warn("model", "fallback gemini-nano-banana-2.1 in global: Permission", ADD_ROLE);
}

#[tokio::test]
async fn a_location_that_does_not_exist_is_a_finding() {
    let settings = [("IGA_VERTEXAI_LOCATION", "mars"), ("IGA_VERTEXAI_FALLBACK_MODELS", "")];
    let findings = doctor(&emulator().await, &settings).await;
    let remedy =
        "export IGA_VERTEXAI_IMAGE_MODEL_ID=gemini-3.1-flash-image IGA_VERTEXAI_LOCATION=global";
    findings.fail("model", "no such address for location mars", remedy);
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_a_finding() {
    let findings = doctor(&emulator().await, &[("GCS_BUCKET_NAME", "missing-bucket")]).await;
    let remedy =
        "gcloud storage buckets create gs://missing-bucket --project test-project --location us";
    findings.fail("bucket", "gs://missing-bucket: The specified bucket does not exist.", remedy);
}

#[tokio::test]
async fn missing_permissions_are_a_finding_and_nothing_is_written() {
    let [create, get, delete] =
        ["storage.objects.create", "storage.objects.get", "storage.objects.delete"];
    let shared = [("IGA_SHARED_RETRIES", "True")];
    doctor_without(&[create], &[]).await.fail(
        "bucket",
        "lacks storage.objects.create",
        OBJECT_CREATOR,
    );
    doctor_without(&[create, get, delete], &[]).await.fail("bucket", create, OBJECT_CREATOR);
    doctor_without(&[create, get, delete], &shared).await.fail("bucket", create, OBJECT_USER);
    for permission in [get, delete, "storage.objects.list"] {
        let findings = doctor_without(&[permission], &[]).await;
        findings.warn("bucket", "requests with an idempotency key fail", OBJECT_USER);
        let findings = doctor_without(&[permission], &shared).await;
        findings.fail("bucket", "every request fails while IGA_SHARED_RETRIES is on", OBJECT_USER);
    }
    let withheld = vec![delete.to_owned()];
    let emulator = emulator_with(Options { withheld, ..Options::default() }).await;
    doctor(&emulator, &[]).await.have("warn", "bucket", delete, OBJECT_USER);
    assert_eq!((emulator.counters().uploads_started, emulator.counters().deletes), (0, 0));
}

#[tokio::test]
async fn an_upload_that_fails_in_spite_of_the_permissions_is_a_finding() {
    for status in [403, 503] {
        let findings =
            doctor_after(Fault::new(Stage::UploadStart, Action::status(status)).always()).await;
        findings.fail("bucket", "no object could be created", "");
    }
    let findings = doctor_after(Fault::new(Stage::Read, Action::status(403)).always()).await;
    findings.fail("bucket", "an object could not be read", "");
}

#[tokio::test]
async fn an_object_whose_creation_was_not_confirmed_is_deleted() {
    let findings = doctor_after(Fault::new(Stage::UploadEnd, Action::status(403))).await;
    findings.fail("bucket", "no object could be created", "");
}

#[tokio::test]
async fn an_object_that_is_left_behind_is_named() {
    let emulator = emulator().await;
    emulator.script(Fault::new(Stage::Delete, Action::status(403)).always());
    let output = command(&emulator, CURRENT).arg("doctor").output().await.unwrap();
    let findings =
        Findings { code: output.status.code(), text: String::from_utf8(output.stdout).unwrap() };
    let left = format!("gcloud storage rm gs://{BUCKET}/{}", emulator.objects()[0].name);
    findings.fail("bucket", "could not be deleted and is left behind", &left);
}

#[tokio::test]
async fn an_unreachable_cloud_storage_is_a_finding() {
    let findings = doctor(&emulator().await, &[("STORAGE_EMULATOR_HOST", "127.0.0.1:1")]).await;
    findings.fail("bucket", "Cloud Storage could not be reached.", "unset STORAGE_EMULATOR_HOST");
    findings.skip(&["clock"], "Cloud Storage could not be reached.").ok("model", "answers");
}

/// A server in front of the emulator that makes it ignore `ifGenerationMatch`, as some emulators do.
fn without_preconditions(emulator: &Emulator) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let behind = emulator.host();
    std::thread::spawn(move || {
        for mut near in listener.incoming().flatten() {
            let mut far = TcpStream::connect(&behind).unwrap();
            let (mut from, mut back) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut back));
            std::thread::spawn(move || {
                let mut chunk = [0; 65536];
                while let Ok(count @ 1..) = near.read(&mut chunk) {
                    let text = String::from_utf8_lossy(&chunk[..count]);
                    let changed = text.replace("ifGenerationMatch=0", "_fGenerationMatch=0");
                    far.write_all(changed.as_bytes()).unwrap();
                }
                let _ = far.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    address.to_string()
}

#[tokio::test]
async fn a_storage_server_that_ignores_preconditions_is_a_finding() {
    let emulator = emulator().await;
    let server = without_preconditions(&emulator);
    let findings = doctor(&emulator, &[("STORAGE_EMULATOR_HOST", &server)]).await;
    findings.fail("bucket", "ignores ifGenerationMatch", "unset STORAGE_EMULATOR_HOST");
}

#[tokio::test]
async fn prompts_that_are_logged_are_a_warning() {
    let findings = doctor(&emulator().await, &[("IGA_DEBUG_MODE", "True")]).await;
    findings.warn("prompts", "whole prompts are logged", "export IGA_DEBUG_MODE=False");
}

#[tokio::test]
async fn findings_are_available_as_json() {
    let emulator = emulator().await;
    for (settings, healthy) in [(&[][..], true), (&[("PORT", "eighty")][..], false)] {
        let mut command = command(&emulator, &[CURRENT, settings].concat());
        let output = command.args(["doctor", "--json"]).output().await.unwrap();
        assert_eq!(output.status.success(), healthy);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["healthy"], healthy);
        let findings = report["findings"].as_array().unwrap();
        let verdict = |subject: &str| {
            let finding = findings.iter().find(|finding| finding["subject"] == subject);
            finding.unwrap()["verdict"].as_str().unwrap().to_owned()
        };
        assert_eq!(verdict("bucket"), "ok");
        assert_eq!(verdict("port"), if healthy { "ok" } else { "skip" });
        assert_eq!(findings[0]["verdict"], if healthy { "ok" } else { "fail" });
        assert_eq!(findings[0].get("remedy").is_some(), !healthy, "{}", findings[0]);
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_a_finding() {
    for (seconds, verdict) in [(20, "ok"), (90, "warn"), (290, "warn"), (400, "FAIL")] {
        let emulator = emulator().await;
        emulator.advance_clock(Duration::from_secs(seconds));
        let findings = doctor(&emulator, &[]).await;
        let remedy = if verdict == "ok" { "" } else { "sudo timedatectl set-ntp true" };
        findings.have(verdict, "clock", " s behind Cloud Storage's", remedy);
        assert_eq!(findings.code, Some(i32::from(verdict == "FAIL")), "{}", findings.text);
    }
}

#[tokio::test]
async fn a_port_in_use_by_another_process_is_a_finding() {
    let emulator = emulator().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Closes each connection at once.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    for (name, others) in [("PORT", None), ("IGA_PORT", Some("PORT"))] {
        let mut command = command(&emulator, &[CURRENT, &[(name, &port.to_string())]].concat());
        others.map(|other| command.env_remove(other));
        let findings = run(&emulator, &mut command).await;
        let remedy = format!("export {name}={}", port.checked_add(1).unwrap_or(8080));
        findings.fail("port", &format!("127.0.0.1:{port} is in use by another process"), &remedy);
    }
}

#[tokio::test]
async fn a_port_in_use_by_the_running_service_is_ok() {
    let emulator = emulator().await;
    let process = Process::start(&emulator, &[]).await;
    let port = process.url.rsplit(':').next().unwrap();
    doctor(&emulator, &[("PORT", port)])
        .await
        .well()
        .ok("port", "is in use by a running service, which is healthy");
}

#[tokio::test]
async fn a_host_of_another_machine_is_a_finding() {
    let findings = doctor(&emulator().await, &[("IGA_HOST", "192.0.2.1")]).await;
    findings.fail("port", "192.0.2.1:0", "unset IGA_HOST");
}

#[tokio::test]
async fn missing_certificates_are_a_finding_and_the_other_checks_run() {
    let (emulator, nothing) = (emulator().await, TempDir::new().unwrap());
    let empty = nothing.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let mut command = command(&emulator, CURRENT);
    let findings =
        run(&emulator, command.env("SSL_CERT_FILE", &empty).env("SSL_CERT_DIR", nothing.path()))
            .await;
    findings.fail("tls", "no usable CA certificates", "sudo apt-get install ca-certificates");
    findings
        .skip(&["identity", "clock", "token", "model", "bucket"], "no TLS connection")
        .ok("port", "is free");
    assert_eq!(emulator.requests().len(), 0);
}
