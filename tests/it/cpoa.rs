//! The caller CPOA: its retry loop in Python (`cpoa.py`) gets its image from the built binary.

use crate::support::process::Process;
use crate::support::python::{Outcome, ask};
use crate::support::service::{BUCKET, CURRENT, PROMPT, emulator, only_image};
use iga::retry::TRIES;
use iga_emulator::{Action, Emulator, Fault, Options, Stage};
use std::time::Duration;

#[track_caller]
fn is_stored(outcome: &Outcome, emulator: &Emulator) {
    let image = only_image(emulator);
    let uri = format!("gs://{BUCKET}/{}", image.name);
    assert_eq!(outcome.image_url.as_ref(), Some(&uri), "{:?}", outcome.complaints);
}

#[tokio::test]
#[ignore = "needs Python with the package requests"]
async fn a_caller_gets_its_image() {
    let emulator = emulator().await;
    let process = Process::start(&emulator, &[]).await;
    let outcome = ask(&process, PROMPT, 1).await;
    is_stored(&outcome, &emulator);
    assert!(outcome.complaints.is_empty(), "{:?}", outcome.complaints);
}

#[tokio::test]
#[ignore = "needs Python with the package requests"]
async fn a_caller_gets_its_image_after_a_short_outage_of_the_model() {
    let emulator = emulator().await;
    emulator.script(Fault::new(Stage::Model, Action::status(503)).times(TRIES as u32));
    let process = Process::start(&emulator, CURRENT).await;
    let outcome = ask(&process, PROMPT, 1).await;
    is_stored(&outcome, &emulator);
    assert_eq!(outcome.complaints.len(), 1, "{:?}", outcome.complaints);
    assert!(
        outcome.complaints[0].starts_with("failed: 503 ")
            && outcome.complaints[0].contains("IGA_VERTEXAI_API_ERROR")
    );
    assert_eq!(emulator.counters().paid_generations, 1);
}

#[tokio::test]
#[ignore = "needs Python with the package requests"]
async fn a_caller_with_a_timeout_shorter_than_the_model_pays_once() {
    let (buckets, latency) = (vec![BUCKET.to_owned()], Duration::from_millis(2500));
    let emulator =
        Emulator::start(Options { buckets, latency, ..Options::default() }).await.unwrap();
    let process = Process::start(&emulator, CURRENT).await;
    // The timeout is a tenth of 20 s: the first request times out while the model works, a later one gets the image.
    let outcome = ask(&process, PROMPT, 10).await;
    is_stored(&outcome, &emulator);
    assert!(!outcome.complaints.is_empty());
    assert_eq!(emulator.counters().paid_generations, 1);
}

#[tokio::test]
#[ignore = "needs Python with the package requests"]
async fn a_caller_does_not_pay_again_for_a_blocked_prompt() {
    let emulator = emulator().await;
    let process = Process::start(&emulator, CURRENT).await;
    let outcome = ask(&process, "[blocked]", 1).await;
    assert_eq!(outcome.image_url, None);
    assert_eq!(outcome.complaints.len(), 1, "{:?}", outcome.complaints);
    assert!(outcome.complaints[0].starts_with("gives up: 400 "), "{:?}", outcome.complaints);
    assert_eq!(emulator.counters().model_calls, 1);
}
