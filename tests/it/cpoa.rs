//! The caller's side: CPOA's own loop (`cpoa.py`) against the built binary.

use crate::process::Process;
use crate::service::{BUCKET, CURRENT, PROMPT, emulator};
use iga::retry::TRIES;
use iga_emulator::{Action, Emulator, Fault, Options, Stage};
use std::ffi::OsString;
use std::io::Write as _;
use std::time::Duration;
use tokio::process::Command;

/// A Python that has `requests`; None, and a line that says so, where there is none.
pub async fn python() -> Option<OsString> {
    let python = std::env::var_os("IGA_TEST_PYTHON").unwrap_or(OsString::from("python3"));
    match Command::new(&python).args(["-c", "import requests"]).output().await {
        Ok(output) if output.status.success() => Some(python),
        _ => {
            // Past the test harness, which hides what `eprintln!` writes.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {python:?} is no Python with the package requests"
            );
            None
        }
    }
}

/// What CPOA made of it.
pub struct Outcome {
    pub image_url: Option<String>,
    /// One line for each request that failed.
    pub complaints: Vec<String>,
}

async fn ask(python: OsString, process: &Process, prompt: &str, factor: u32) -> Outcome {
    ask_each(python, &process.url, prompt, factor).await
}

/// Asks several services in turn; their URLs are separated by commas.
pub async fn ask_each(python: OsString, urls: &str, prompt: &str, factor: u32) -> Outcome {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/cpoa.py");
    let mut command = Command::new(python);
    command
        .args([script, urls, prompt, &factor.to_string()])
        .envs([("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")]);
    let output = command.kill_on_drop(true).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome {
        image_url: output.status.success().then(|| text(output.stdout).trim().to_owned()),
        complaints: text(output.stderr).lines().map(str::to_owned).collect(),
    }
}

#[track_caller]
fn is_stored(outcome: &Outcome, emulator: &Emulator) {
    let objects = emulator.objects();
    assert_eq!(objects.len(), 1, "{:?}", outcome.complaints);
    let uri = format!("gs://{BUCKET}/{}", objects[0].name);
    assert_eq!(outcome.image_url.as_ref(), Some(&uri), "{:?}", outcome.complaints);
}

#[tokio::test]
async fn a_caller_gets_its_image() {
    let Some(python) = python().await else { return };
    let emulator = emulator().await;
    let process = Process::start(&emulator, &[]).await;
    let outcome = ask(python, &process, PROMPT, 1).await;
    is_stored(&outcome, &emulator);
    assert!(outcome.complaints.is_empty(), "{:?}", outcome.complaints);
}

#[tokio::test]
async fn a_caller_outlasts_a_model_that_is_unavailable_for_a_while() {
    let Some(python) = python().await else { return };
    let emulator = emulator().await;
    emulator.script(Fault::new(Stage::Model, Action::status(503)).times(TRIES as u32));
    let process = Process::start(&emulator, CURRENT).await;
    let outcome = ask(python, &process, PROMPT, 1).await;
    is_stored(&outcome, &emulator);
    assert_eq!(outcome.complaints.len(), 1, "{:?}", outcome.complaints);
    assert!(
        outcome.complaints[0].starts_with("failed: 503 ")
            && outcome.complaints[0].contains("IGA_VERTEXAI_API_ERROR")
    );
    assert_eq!(emulator.counters().paid_generations, 1);
}

#[tokio::test]
async fn a_caller_whose_patience_is_shorter_than_the_model_pays_once() {
    let Some(python) = python().await else { return };
    let (buckets, latency) = (vec![BUCKET.to_owned()], Duration::from_millis(2500));
    let emulator =
        Emulator::start(Options { buckets, latency, ..Options::default() }).await.unwrap();
    let process = Process::start(&emulator, CURRENT).await;
    // A tenth of 20 s: the first request is given up while the model works, a later one gets the image.
    let outcome = ask(python, &process, PROMPT, 10).await;
    is_stored(&outcome, &emulator);
    assert!(!outcome.complaints.is_empty());
    assert_eq!(emulator.counters().paid_generations, 1);
}

#[tokio::test]
async fn a_caller_does_not_pay_again_for_a_blocked_prompt() {
    let Some(python) = python().await else { return };
    let emulator = emulator().await;
    let process = Process::start(&emulator, CURRENT).await;
    let outcome = ask(python, &process, "[blocked]", 1).await;
    assert_eq!(outcome.image_url, None);
    assert_eq!(outcome.complaints.len(), 1, "{:?}", outcome.complaints);
    assert!(outcome.complaints[0].starts_with("gives up: 400 "), "{:?}", outcome.complaints);
    assert_eq!(emulator.counters().model_calls, 1);
}
