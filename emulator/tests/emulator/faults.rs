//! Scripted faults.

use http::{HeaderValue, Method};
use iga_emulator::{Action, Fault, Stage, Write};
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
        .script(Fault::new(Stage::Response, Action::response_with(200, "application/json", "{}")));
    assert_eq!(send(setup.gemini(FLASH, "a fox", json!({}))).await, (200, json!({})));
    assert_eq!(setup.emulator.counters().paid_generations, 2);
}

#[tokio::test]
async fn connections_break_where_the_fault_says() {
    let setup = Setup::new().await;
    for (action, reset) in [(Action::Reset, true), (Action::Truncate, false)] {
        setup.emulator.script(Fault::new(Stage::Response, action.clone()));
        assert!(
            setup.gemini(FLASH, "a fox", json!({})).send().await.is_err(),
            "{action:?}: not one byte"
        );

        setup.emulator.script(Fault::new(Stage::Response, action).after(100_000));
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
    setup.emulator.script(Fault::new(Stage::Response, Action::Stall).after(10));
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
    let fault = r#"{"stage": "model", "matching": "banana", "times": null, "action": {"response": {"status": 500}}}"#;
    assert_eq!(send(setup.request(Method::POST, "/_emulator/faults").body(fault)).await.0, 204);
    assert_eq!(send(setup.gemini(BANANA, "a fox", json!({}))).await.0, 500);
    assert_eq!(send(setup.request(Method::DELETE, "/_emulator/faults")).await.0, 204);
    assert_eq!(send(setup.gemini(BANANA, "a fox", json!({}))).await.0, 200);
    let (_, counters) = send(setup.request(Method::GET, "/_emulator/counters")).await;
    assert_eq!(counters, json!(setup.emulator.counters()));
    let nonsense = r#"{"stage": "model", "action": {"response": {"status": 7}}}"#;
    assert_eq!(send(setup.request(Method::POST, "/_emulator/faults").body(nonsense)).await.0, 400);
    assert_eq!(send(setup.request(Method::GET, "/_emulator/objects")).await, (200, json!([])));
}

/// A fault can name each stage of a storage record apart from the others.
#[tokio::test]
async fn the_stages_of_a_record_can_be_told_apart() {
    let setup = Setup::new().await;
    let lease = json!({"holder": "a"});
    let receipt = json!({"holder": "a", "image": "fox.png"});
    let record = |stage, action| Fault::new(stage, action).prefix("x.iga/").suffix("/k");
    setup
        .emulator
        .script(record(Stage::UploadStart, Action::status(503)).write(Write::Create).skip(1));
    setup.emulator.script(
        record(Stage::UploadEnd, Action::Reset).write(Write::Overwrite).without_metadata("image"),
    );
    setup.emulator.script(record(Stage::UploadStart, Action::status(403)).with_metadata("image"));
    setup.emulator.script(record(Stage::Stat, Action::status(500)));
    setup.emulator.script(record(Stage::DeleteEnd, Action::Reset).with_metadata("holder"));

    assert_eq!(send(setup.write_record("x.iga/other", lease.clone(), Some("0"))).await.0, 200);
    let (status, written) = send(setup.write_record("x.iga/k", lease.clone(), Some("0"))).await;
    assert_eq!(status, 200, "the first creation passes");
    assert_eq!(send(setup.write_record("x.iga/k", lease.clone(), Some("0"))).await.0, 503);
    let generation = written["generation"].as_str();
    let renewal = setup.write_record("x.iga/k", lease.clone(), generation);
    assert!(renewal.send().await.is_err(), "the renewal is applied, and its response lost");
    let renewed = setup.emulator.object(BUCKET, "x.iga/k").expect("it is there");
    assert_ne!(Some(renewed.metadata["generation"].as_str()), Some(generation));
    assert_eq!(send(setup.write_record("x.iga/k", receipt, None)).await.0, 403);
    assert_eq!(send(setup.stat("x.iga/k")).await.0, 500);
    assert_eq!(send(setup.stat("x.iga/k")).await.0, 200);
    assert!(setup.delete("x.iga/k").send().await.is_err(), "it is deleted, and the response lost");
    assert!(setup.emulator.object(BUCKET, "x.iga/k").is_none());
}

#[tokio::test]
async fn a_refusal_can_last_for_ever_and_name_its_permission() {
    let setup = Setup::new().await;
    let fault = r#"{"stage": "upload_start", "suffix": ".iga/writable", "times": null,
                    "action": {"response": {"status": 403}}}"#;
    assert_eq!(send(setup.request(Method::POST, "/_emulator/faults").body(fault)).await.0, 204);
    for _ in 0..3 {
        let (status, body) = send(setup.write_record("x.iga/writable", json!({}), Some("0"))).await;
        assert_eq!((status, reason(&body)), (403, "forbidden"));
        assert!(message(&body).contains("storage.objects.create"), "{body}");
    }
    assert_eq!(send(setup.write_record("x.iga/k", json!({}), Some("0"))).await.0, 200);
}

#[tokio::test]
async fn lists_and_permissions_can_fail() {
    let setup = Setup::new().await;
    let list = format!("/storage/v1/b/{BUCKET}/o?prefix=x");
    let permissions =
        format!("/storage/v1/b/{BUCKET}/iam/testPermissions?permissions=storage.objects.create");
    setup.emulator.script(Fault::new(Stage::List, Action::status(429)));
    setup.emulator.script(Fault::new(Stage::Permissions, Action::json(json!({}))).always());
    assert_eq!(send(setup.request(Method::GET, &list)).await.0, 429);
    assert_eq!(send(setup.request(Method::GET, &list)).await.0, 200);
    for _ in 0..2 {
        assert_eq!(send(setup.request(Method::GET, &permissions)).await, (200, json!({})));
    }
    setup.emulator.clear_faults();
    let (_, body) = send(setup.request(Method::GET, &permissions)).await;
    assert_eq!(body["permissions"], json!(["storage.objects.create"]));
}
