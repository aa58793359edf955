//! Settings at start-up: errors, warnings, and the line that names the locations of prompts.

use crate::support::process::command;
use crate::support::service::emulator;
use serde_json::Value;
use std::process::Stdio;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// The log lines of a process until it listens; then the process is killed.
async fn start(command: &mut Command) -> Vec<Value> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut logged: Vec<Value> = Vec::new();
    while logged.last().is_none_or(|line| line["message"] != "listening") {
        let line = lines.next_line().await.unwrap().expect("it listens before it ends");
        logged.push(serde_json::from_str(&line).unwrap());
    }
    child.kill().await.unwrap();
    logged
}

/// The message of a process that refuses to start.
async fn refusal(command: &mut Command) -> String {
    let output = command.output().await.unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    String::from_utf8(output.stderr).unwrap()
}

fn warnings(logged: &[Value]) -> Vec<&str> {
    let warnings = logged.iter().filter(|line| line["severity"] == "WARNING");
    warnings.map(|line| line["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn every_probable_mistake_is_one_warning() {
    let emulator = emulator().await;
    for (name, value, words) in [
        ("IGA_MAX_GENERATION", "3", "IGA_MAX_GENERATION is not a setting"),
        ("IGA_PORT", "tcp://10.96.0.7:5007", "IGA_PORT is ignored"),
        ("IGA_GENERATED_IMAGE_DIR", "/tmp", "IGA_GENERATED_IMAGE_DIR is deprecated"),
        ("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-9-image", "gemini-9-image, which this version"),
        ("GCP_LOCATION", "europe-west4", "Add global/gemini-nano-banana-2.1,global/"),
        ("IGA_DEFAULT_ASPECT_RATIO", "8:1", "gemini-2.5-flash-image cannot take"),
    ] {
        let logged = start(&mut command(&emulator, &[(name, value)])).await;
        let warnings = warnings(&logged);
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{name}: {warnings:?}");
    }
    let usual = start(&mut command(&emulator, &[])).await;
    assert!(warnings(&usual).is_empty(), "{usual:?}");
}

#[tokio::test]
async fn the_service_links_of_kubernetes_do_not_prevent_a_start() {
    let emulator = emulator().await;
    let links = [
        ("IGA_PORT", "tcp://10.96.0.7:5007"),
        ("IGA_SERVICE_HOST", "10.96.0.7"),
        ("IGA_SERVICE_PORT", "5007"),
        ("IGA_PORT_5007_TCP", "tcp://10.96.0.7:5007"),
        ("IGA_PORT_5007_TCP_ADDR", "10.96.0.7"),
    ];
    let logged = start(&mut command(&emulator, &links)).await;
    assert_eq!(warnings(&logged).len(), 1, "{logged:?}");
}

#[tokio::test]
async fn the_start_line_names_where_prompts_may_go() {
    let emulator = emulator().await;
    for (location, list, locations) in [
        ("us-central1", None, "us-central1,global"),
        ("us-central1", Some(""), "us-central1"),
        ("europe-west4", None, "europe-west4"),
        ("europe-west4", Some("global/gemini-3-pro-image"), "europe-west4,global"),
    ] {
        let mut settings = vec![("GCP_LOCATION", location)];
        settings.extend(list.map(|list| ("IGA_VERTEXAI_FALLBACK_MODELS", list)));
        let logged = start(&mut command(&emulator, &settings)).await;
        assert_eq!(logged.last().unwrap()["prompt_locations"], locations, "{location} {list:?}");
    }
}

#[tokio::test]
async fn no_value_that_may_hold_a_secret_is_printed() {
    let emulator = emulator().await;
    for (name, value) in [
        ("STORAGE_EMULATOR_HOST", "http://user:TOP-SECRET@[bad"),
        ("STORAGE_EMULATOR_HOST", "https://user:TOP-SECRET@example.com"),
        ("IGA_VERTEXAI_ENDPOINT", "http://TOP-SECRET@example.com"),
        ("IGA_VERTEXAI_ENDPOINT", "https://example.com/?key=TOP-SECRET"),
        ("GCE_METADATA_HOST", "user:TOP-SECRET@metadata"),
    ] {
        let text = refusal(&mut command(&emulator, &[(name, value)])).await;
        assert!(text.contains(&format!("{name} must be")), "{text}");
        assert!(!text.contains("TOP-SECRET"), "{text}");
    }
}

#[tokio::test]
async fn errors_in_the_env_file_name_only_the_line_and_the_variable() {
    let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
    for (file, words) in [
        ("# a comment\nTOP SECRET\n", "line 2 is not NAME=VALUE"),
        (
            "HOME=/\n\nGCS_BUCKET_NAME=\"TOP-SECRET\nIGA_PORT=1\n",
            "line 3, GCS_BUCKET_NAME: its value",
        ),
        ("A=b\nMIITOPSECRETxyz==TOP\"SECRET\n", "line 2 is not NAME=VALUE"),
        ("TOP-SECRET=x\n", "line 1 is not NAME=VALUE"),
    ] {
        std::fs::write(folder.path().join(".env"), file).unwrap();
        let text = refusal(command(&emulator, &[]).current_dir(folder.path())).await;
        assert!(text.contains("the file .env cannot be read") && text.contains(words), "{text}");
        assert!(!text.contains("SECRET"), "{text}");
    }
    std::fs::write(folder.path().join(".env"), b"A=\xffTOP-SECRET\n").unwrap();
    let text = refusal(command(&emulator, &[]).current_dir(folder.path())).await;
    assert!(text.contains("the file .env cannot be read") && !text.contains("SECRET"), "{text}");
}

#[tokio::test]
async fn quotes_that_docker_keeps_in_an_env_file_are_refused() {
    let emulator = emulator().await;
    for name in ["GCS_BUCKET_NAME", "IGA_GCS_IMAGE_PREFIX", "GCP_LOCATION", "IGA_DEBUG_MODE"] {
        let text = refusal(&mut command(&emulator, &[(name, "\"us-central1\"")])).await;
        let sentence = format!(
            "{name} must not be in quotes, which docker's --env-file keeps as part of the value"
        );
        assert!(text.contains(&sentence), "{text}");
    }
}
