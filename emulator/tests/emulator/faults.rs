//! Scripted faults.

use http::{HeaderValue, Method};
use iga_emulator::{Action, Fault, Stage};
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn faults_act_at_their_stage_and_then_pass() {
    let setup = Setup::new().await;
    setup
        .emulator
        .script(Fault::new(Stage::Model, Action::status(429).header("retry-after", "7")).times(2));
    for _ in 0..2 {
        let response = setup.gemini(FLASH, "a fox", json!({})).send().await.expect("a response");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (429, &HeaderValue::from_static("7"))
        );
    }
    assert_eq!(send(setup.gemini(FLASH, "a fox", json!({}))).await.0, 200);
    let counters = setup.emulator.counters();
    assert_eq!((counters.model_calls, counters.paid_generations), (3, 1));

    setup
        .emulator
        .script(Fault::new(Stage::Answer, Action::answer_with(200, "application/json", "{}")));
    assert_eq!(send(setup.gemini(FLASH, "a fox", json!({}))).await, (200, json!({})));
    assert_eq!(setup.emulator.counters().paid_generations, 2);
}

#[tokio::test]
async fn connections_break_where_the_fault_says() {
    let setup = Setup::new().await;
    for (action, reset) in [(Action::Reset, true), (Action::Truncate, false)] {
        setup.emulator.script(Fault::new(Stage::Answer, action.clone()));
        assert!(
            setup.gemini(FLASH, "a fox", json!({})).send().await.is_err(),
            "{action:?}: not one byte"
        );

        setup.emulator.script(Fault::new(Stage::Answer, action).after(100_000));
        let mut response =
            setup.gemini(FLASH, "a fox", json!({})).send().await.expect("the head of a response");
        let mut received = 0;
        let error = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => received += chunk.len(),
                Ok(None) => panic!("the response did not break off"),
                Err(error) => break error,
            }
        };
        assert_eq!(received, 100_000);
        assert_eq!(format!("{error:?}").contains("ConnectionReset"), reset, "{error:?}");
    }
    assert_eq!(setup.emulator.counters().paid_generations, 4);
}

#[tokio::test]
async fn stalled_responses_end_with_the_emulator() {
    let setup = Setup::new().await;
    setup.emulator.script(Fault::new(Stage::Answer, Action::Stall).after(10));
    let mut response =
        setup.gemini(FLASH, "a fox", json!({})).send().await.expect("the head of a response");
    assert_eq!(response.chunk().await.expect("its beginning").expect("bytes").len(), 10);
    setup.emulator.stop();
    assert!(response.chunk().await.is_err());
}

#[tokio::test]
async fn an_upload_can_succeed_without_a_response() {
    let setup = Setup::new().await;
    setup.emulator.script(Fault::new(Stage::UploadEnd, Action::Reset).matching("/.iga/"));
    assert_eq!(send(setup.create("fox.png", b"abc")).await.0, 200, "another name");
    assert!(
        setup.create(".iga%2Flease", b"abc").send().await.is_err(),
        "a bucket's name ends with a slash"
    );
    assert!(setup.emulator.object(BUCKET, ".iga/lease").is_some());
    setup.emulator.script(Fault::new(Stage::UploadEnd, Action::WrongChecksum));
    let (_, body) = send(setup.create("b.png", b"hello world")).await;
    assert_ne!(body["crc32c"], "yZRlqg==");

    setup.emulator.script(Fault::new(Stage::UploadStart, Action::status(503)));
    assert_eq!(send(setup.create("c.png", b"abc")).await.0, 503);
    setup.emulator.script(Fault::new(Stage::UploadBody, Action::Reset).after(1));
    assert!(setup.create("c.png", b"abc").send().await.is_err());
    assert!(setup.emulator.object(BUCKET, "c.png").is_none());
}

#[tokio::test]
async fn other_processes_can_script_faults_and_read_results() {
    let setup = Setup::new().await;
    let fault = r#"{"stage": "model", "matching": "banana", "times": null, "action": {"answer": {"status": 500}}}"#;
    assert_eq!(send(setup.request(Method::POST, "/_emulator/faults").body(fault)).await.0, 204);
    assert_eq!(send(setup.gemini(BANANA, "a fox", json!({}))).await.0, 500);
    assert_eq!(send(setup.request(Method::DELETE, "/_emulator/faults")).await.0, 204);
    assert_eq!(send(setup.gemini(BANANA, "a fox", json!({}))).await.0, 200);
    let (_, counters) = send(setup.request(Method::GET, "/_emulator/counters")).await;
    assert_eq!(counters, json!(setup.emulator.counters()));
    let nonsense = r#"{"stage": "model", "action": {"answer": {"status": 7}}}"#;
    assert_eq!(send(setup.request(Method::POST, "/_emulator/faults").body(nonsense)).await.0, 400);
    assert_eq!(send(setup.request(Method::GET, "/_emulator/objects")).await, (200, json!([])));
}
