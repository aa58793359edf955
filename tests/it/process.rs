//! The built binary as a process: start, log lines, signals.

use crate::support::process::{Process, command, post};
use crate::support::service::{
    CURRENT, PROMPT, answer, emulator, emulator_with, images, only_image, reached,
};
use iga_emulator::Options;
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

async fn refused(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().await.unwrap();
    assert!(output.stdout.is_empty(), "nothing is logged before the settings are known to be good");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn missing_and_invalid_settings_end_it_with_one_list_and_code_2() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iga"));
    command
        .env_clear()
        .current_dir(std::env::temp_dir())
        .env("PORT", "x")
        .env("IGA_ADD_WATERMARK", "perhaps");
    let (code, text) = refused(&mut command).await;
    assert_eq!(code, Some(2));
    assert!(text.starts_with("IGA cannot start: 5 settings need attention."), "{text}");
    for name in [
        "IGA_VERTEXAI_PROJECT_ID or GCP_PROJECT_ID",
        "IGA_VERTEXAI_LOCATION or",
        "GCS_BUCKET_NAME",
        "PORT",
        "IGA_ADD_WATERMARK",
    ] {
        assert!(text.contains(name), "{name}: {text}");
    }
}

#[tokio::test]
async fn a_credentials_file_that_cannot_work_here_ends_it_with_what_to_change() {
    let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
    let path = folder.path().join("credentials.json");
    let azure = r#"{"type": "external_account", "audience": "a", "subject_token_type": "t", "token_url": "u", "credential_source":
        {"url": "http://169.254.169.254/metadata/identity/oauth2/token", "headers": {"Metadata": "TOP-SECRET"}}}"#;
    for (file, platform, words) in [
        ("-----BEGIN TOP-SECRET-----", "IGA_HOST", "is not JSON"),
        (
            azure,
            "AWS_LAMBDA_RUNTIME_API",
            "made for Azure, but this is AWS Lambda; make one with gcloud",
        ),
        (
            azure,
            "K_SERVICE",
            "this is Cloud Run, which has an identity of its own; unset the variable",
        ),
    ] {
        std::fs::write(&path, file).unwrap();
        let settings =
            [("GOOGLE_APPLICATION_CREDENTIALS", path.to_str().unwrap()), (platform, "127.0.0.1")];
        let (code, text) = refused(&mut command(&emulator, &settings)).await;
        assert_eq!(code, Some(2), "{text}");
        assert!(
            text.contains("GOOGLE_APPLICATION_CREDENTIALS names a file") && text.contains(words),
            "{text}"
        );
        assert!(text.contains("credentials.json") && !text.contains("TOP-SECRET"), "{text}");
    }
}

#[tokio::test]
async fn a_machine_without_certificates_is_said_in_a_sentence() {
    let emulator = emulator().await;
    let nothing = TempDir::new().unwrap();
    let empty = nothing.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let mut command = command(&emulator, &[]);
    let output = command
        .env("SSL_CERT_FILE", &empty)
        .env("SSL_CERT_DIR", nothing.path())
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("ca-certificates")
            && text.contains("SSL_CERT_FILE")
            && !text.contains("panicked"),
        "{text}"
    );
}

#[tokio::test]
async fn an_env_file_is_read_and_never_overrides() {
    let emulator = emulator().await;
    let folder = TempDir::new().unwrap();
    let env_file = "GCP_LOCATION=mars/\nIGA_MAX_GENERATIONS=none\n";
    std::fs::write(folder.path().join(".env"), env_file).unwrap();
    let (code, text) = refused(command(&emulator, &[]).current_dir(folder.path())).await;
    assert_eq!(code, Some(2));
    assert!(text.contains("IGA_MAX_GENERATIONS") && !text.contains("GCP_LOCATION"), "{text}");

    std::fs::write(folder.path().join(".env"), "this is no setting").unwrap();
    let (code, text) = refused(command(&emulator, &[]).current_dir(folder.path())).await;
    assert!(code == Some(2) && text.contains("the file .env cannot be read"), "{text}");
}

#[tokio::test]
async fn a_port_in_use_is_said_in_a_sentence() {
    let emulator = emulator().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = command(&emulator, &[("PORT", &port)]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains(&format!("IGA cannot listen on 127.0.0.1:{port}"))
            && text.contains("IGA_PORT"),
        "{text}"
    );
}

#[tokio::test]
async fn https_goes_through_the_proxy_of_the_environment() {
    let emulator = emulator().await;
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://user:pass@{}", proxy.local_addr().unwrap());
    let settings = [("HTTPS_PROXY", &*url), ("IGA_VERTEXAI_ENDPOINT", "https://vertex.example")];
    let process = Process::start(&emulator, &settings).await;
    let asking = tokio::spawn(post(&process, &json!({"prompt": PROMPT})).send());
    let mut lines = BufReader::new(proxy.accept().await.unwrap().0).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "CONNECT vertex.example:443 HTTP/1.1");
    let mut head = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
        head.push(line.to_lowercase());
    }
    assert!(head.contains(&"proxy-authorization: basic dxnlcjpwyxnz".to_owned()), "{head:?}");
    asking.abort();
}

#[tokio::test]
async fn the_log_tells_the_story_and_keeps_the_secrets() {
    let emulator = emulator().await;
    let process = Process::start(&emulator, &[("IGA_DEBUG_MODE", "False")]).await;
    let prompt = format!("{PROMPT}, {}", "and much more of it ".repeat(10));
    let request = post(&process, &json!({"prompt": prompt})).header("x-workflow-id", "wf-7");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answered = answer(request.header("traceparent", trace)).await;
    let id = answered.is_image().header("x-request-id").to_owned();
    answer(post(&process, &json!({"prompt": ""})))
        .await
        .is_error(400, "IGA_BAD_REQUEST_PROMPT_MISSING");
    process.signal("TERM");
    let (status, lines) = process.end().await;
    assert!(status.success());

    let of_request: Vec<_> = lines.iter().filter(|line| line["request_id"] == *id).collect();
    for line in &of_request {
        assert_eq!((&line["service_name"], &line["workflow_id"]), (&json!("iga"), &json!("wf-7")));
        let trace = "projects/test-project/traces/4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(line["logging.googleapis.com/trace"], trace);
        assert!(["INFO", "WARNING"].contains(&line["severity"].as_str().unwrap()));
    }
    let metric = |name: &str| {
        let line = of_request.iter().rfind(|line| line["metric_name"] == name);
        let line = line.unwrap_or_else(|| panic!("no {name}"));
        assert!(line["value"].is_u64());
        line["tags"].clone()
    };
    assert_eq!(metric("iga_generate_image_request_count"), json!({"status": "success"}));
    assert_eq!(metric("iga_vertexai_error_count"), json!({"error_type": "not_found"}));
    let warnings = of_request.iter().filter(|line| line["severity"] == "WARNING").count();
    assert_eq!(warnings, 1, "one warning names the retired model");
    let preview = of_request.iter().find_map(|line| line["prompt_preview"].as_str()).unwrap();
    assert_eq!(preview.chars().count(), 50);

    let counted = |tag: &str| lines.iter().filter(|line| line["tags"]["status"] == tag).count();
    assert_eq!(counted("validation_error_prompt_missing"), 1);
    let everything = lines.iter().map(Value::to_string).collect::<String>();
    assert!(!everything.contains("much more of it and much more"), "no whole prompt at info level");
    for request in emulator.requests() {
        if let Some(token) =
            request.headers.get("authorization").and_then(|value| value.to_str().ok())
        {
            assert!(!everything.contains(token.trim_start_matches("Bearer ")), "no token");
        }
    }
}

#[tokio::test]
async fn at_debug_level_every_metric_has_a_line() {
    let emulator = emulator().await;
    let process = Process::start(&emulator, &[("IGA_DEBUG_MODE", "True")]).await;
    let answered = answer(post(&process, &json!({"prompt": PROMPT}))).await;
    let id = answered.is_image().header("x-request-id").to_owned();
    process.signal("TERM");
    let (_, lines) = process.end().await;
    let metric = |name: &str| {
        let named = |line: &&Value| line["metric_name"] == name && line["request_id"] == *id;
        let line = lines.iter().rfind(named).unwrap_or_else(|| panic!("no {name}"));
        assert!(line["value"].is_u64());
        line["tags"].clone()
    };
    assert_eq!(metric("iga_generate_image_request_count"), json!({"status": "success"}));
    assert_eq!(metric("iga_generate_image_latency_ms"), json!({"status": "success"}));
    let call = json!({"model": "gemini-nano-banana-2.1", "attempt": 1, "outcome": "ok"});
    assert_eq!(metric("iga_vertexai_call_latency_ms"), call);
    let size = only_image(&emulator).bytes.len();
    assert_eq!(metric("iga_gcs_upload_latency_ms"), json!({"bytes": size}));
    let model = json!({"model": "gemini-nano-banana-2.1"});
    assert_eq!(metric("iga_paid_generation_count"), model);
    metric("iga_delivered_image_count");
}

#[tokio::test]
async fn joins_waits_and_deliveries_are_counted() {
    let emulator = emulator().await;
    let with_key = |process: &Process| {
        answer(post(process, &json!({"prompt": PROMPT})).header("idempotency-key", "k"))
    };
    let (payer, other) =
        (Process::start(&emulator, CURRENT).await, Process::start(&emulator, CURRENT).await);
    for process in [&payer, &payer, &other] {
        with_key(process).await.is_image();
    }
    payer.signal("TERM");
    other.signal("TERM");
    let ((_, payer), (_, other)) = (payer.end().await, other.end().await);
    let tags = |lines: &[Value], name: &str| -> Vec<Value> {
        lines
            .iter()
            .filter(|line| line["metric_name"] == name)
            .map(|line| line["tags"].clone())
            .collect()
    };
    assert_eq!(
        tags(&payer, "iga_paid_generation_count"),
        [json!({"model": "gemini-3.1-flash-image"})]
    );
    assert_eq!(tags(&payer, "iga_joined_count"), [json!({"by_key": true})]);
    assert_eq!(tags(&payer, "iga_delivered_image_count").len(), 2);
    assert_eq!(tags(&other, "iga_lease_wait_ms"), [json!({"outcome": "completed"})]);
    assert_eq!(
        (
            tags(&other, "iga_paid_generation_count").len(),
            tags(&other, "iga_delivered_image_count").len()
        ),
        (0, 1)
    );
}

#[tokio::test]
async fn a_failed_upload_and_a_lost_image_are_counted() {
    use iga_emulator::{Action, Fault, Stage};
    let emulator = emulator().await;
    let refused = Fault::new(Stage::UploadStart, Action::status(403)).matching("/iga_req_");
    emulator.script(refused.always());
    let deadline = &[("IGA_GENERATION_DEADLINE_SECONDS", "3")];
    let process = Process::start(&emulator, &[CURRENT, deadline].concat()).await;
    answer(post(&process, &json!({"prompt": PROMPT}))).await.is_error(500, "IGA_FILE_SAVE_ERROR");
    process.signal("INT");
    let (_, lines) = process.end().await;
    let metric = |name: &str| lines.iter().find(|line| line["metric_name"] == name).unwrap();
    assert_eq!(metric("iga_lost_image_count")["tags"]["reason"], "deadline");
    let is_error = |line: &&Value| line["severity"] == "ERROR";
    let errors = lines.iter().filter(is_error).map(|line| line["message"].as_str().unwrap());
    assert_eq!(errors.filter(|message| message.contains("paid image lost")).count(), 1);
    let failed = metric("iga_gcs_upload_failure_count");
    let detail = failed["tags"]["error_detail"].as_str().unwrap();
    assert!(!detail.is_empty() && !detail.contains("http"), "{detail}");
    assert!(
        lines
            .iter()
            .any(|line| line["severity"] == "ERROR" && line["error_code"] == "IGA_FILE_SAVE_ERROR")
    );
}

#[tokio::test]
async fn a_stop_signal_lets_the_work_finish() {
    for signal in ["TERM", "INT"] {
        let emulator =
            emulator_with(Options { latency: Duration::from_millis(300), ..Options::default() })
                .await;
        let process = Process::start(&emulator, CURRENT).await;
        let request = tokio::spawn(answer(post(&process, &json!({"prompt": PROMPT}))));
        reached(&emulator, |counters| counters.paid_generations == 1).await;
        process.signal(signal);
        request.await.unwrap().is_image();
        let (status, _) = process.end().await;
        assert!(status.success(), "{signal}: {status}");
        assert_eq!(images(&emulator).len(), 1);
    }
}

#[tokio::test]
async fn an_aws_identity_gets_its_image_without_a_key_of_googles() {
    let emulator = emulator().await;
    let folder = TempDir::new().unwrap();
    let account = "iga@test-project.iam.gserviceaccount.com";
    // As `gcloud iam workload-identity-pools create-cred-config --aws` writes it, but for the two addresses.
    let file = json!({
        "type": "external_account",
        "universe_domain": "googleapis.com",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/aws/providers/lambda",
        "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
        "token_url": format!("{}/v1/token", emulator.url()),
        "credential_source": {
            "environment_id": "aws1",
            "region_url": "http://169.254.169.254/latest/meta-data/placement/availability-zone",
            "url": "http://169.254.169.254/latest/meta-data/iam/security-credentials",
            "regional_cred_verification_url":
                "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
        },
        "service_account_impersonation_url":
            format!("{}/v1/projects/-/serviceAccounts/{account}:generateAccessToken", emulator.url()),
    });
    let path = folder.path().join("gcp-wif.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let identity = [
        ("GOOGLE_APPLICATION_CREDENTIALS", path.to_str().unwrap()),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_SESSION_TOKEN", "session"),
    ];
    let process = Process::start(&emulator, &[CURRENT, &identity].concat()).await;
    answer(post(&process, &json!({"prompt": PROMPT}))).await.is_image();
    let paths: Vec<_> = emulator.requests().into_iter().map(|request| request.path).collect();
    assert!(paths[0] == "/v1/token" && paths[1].ends_with(":generateAccessToken"), "{paths:?}");
    process.signal("TERM");
    process.end().await;
}
