//! The recorder: every request for an image, and every operation in Cloud Storage.

use http::Method;
use iga_emulator::{Action, Fault, OperationKind, Options, Stage};
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn generations_are_recorded_with_prompt_location_and_payment() {
    let setup = Setup::new().await;
    setup.emulator.script(Fault::new(Stage::Model, Action::status(503)).prompt("fox"));
    assert_eq!(send(setup.gemini(BANANA, "a fox", json!({}))).await.0, 503);
    assert_eq!(send(setup.gemini(BANANA, "a fox", json!({}))).await.0, 200);
    setup.emulator.script(Fault::new(Stage::Response, Action::Reset));
    assert!(setup.gemini(FLASH, "a wolf", json!({})).send().await.is_err());
    let contents = json!([{"role": "user", "parts": [{"text": "a bear"}]}]);
    let body = json!({"contents": contents, "labels": {"team": "podcast"}});
    assert_eq!(send(setup.model("us-central1", FLASH, "generateContent", &body)).await.0, 404);

    let generations = setup.emulator.generations();
    let seen: Vec<_> = generations
        .iter()
        .map(|one| (one.prompt.as_str(), one.location.as_str(), one.paid, one.status))
        .collect();
    let expected = [
        ("a fox", "global", false, Some(503)),
        ("a fox", "global", true, Some(200)),
        ("a wolf", "global", true, None),
        ("a bear", "us-central1", false, Some(404)),
    ];
    assert_eq!(seen, expected);
    assert_eq!(generations[3].labels["team"], "podcast");
    let (_, listed) = send(setup.request(Method::GET, "/_emulator/generations")).await;
    assert_eq!(listed, json!(generations));
}

#[tokio::test]
async fn storage_operations_are_recorded_in_order_with_their_outcome() {
    let withheld = vec!["storage.objects.list".to_owned()];
    let setup = Setup::with(Options { withheld, ..unlimited() }).await;
    send(setup.write_record("x.iga/k", json!({"holder": "a"}), Some("0"))).await;
    send(setup.write_record("x.iga/k", json!({"holder": "b"}), Some("0"))).await;
    send(setup.stat("x.iga/k")).await;
    setup.emulator.script(Fault::new(Stage::DeleteEnd, Action::Reset));
    assert!(setup.delete("x.iga/k").send().await.is_err());
    send(setup.request(Method::GET, &format!("/storage/v1/b/{BUCKET}/o?prefix=x"))).await;

    let operations = setup.emulator.operations();
    let seen: Vec<_> = operations
        .iter()
        .map(|one| (one.kind, one.object.as_str(), one.applied, one.status))
        .collect();
    let expected = [
        (OperationKind::Insert, "x.iga/k", true, Some(200)),
        (OperationKind::Insert, "x.iga/k", false, Some(412)),
        (OperationKind::Stat, "x.iga/k", false, Some(200)),
        (OperationKind::Delete, "x.iga/k", true, None),
        (OperationKind::List, "x", false, Some(403)),
    ];
    assert_eq!(seen, expected);
    assert_eq!(operations[1].conditions["ifGenerationMatch"], "0");
    assert_eq!(operations[1].metadata["holder"], "b");
    let (_, listed) = send(setup.request(Method::GET, "/_emulator/operations")).await;
    assert_eq!(listed, json!(operations));
}

#[tokio::test]
async fn requests_are_listed_without_credentials() {
    let setup = Setup::new().await;
    send(setup.stat("a")).await;
    let (_, listed) = send(setup.request(Method::GET, "/_emulator/requests")).await;
    assert_eq!((&listed[1]["status"], &listed[1]["method"]), (&json!(404), &json!("GET")));
    assert!(!listed.to_string().contains(&setup.token), "{listed}");
}

#[tokio::test]
async fn a_journal_holds_requests_with_their_responses() {
    let path = std::env::temp_dir().join(format!("emulator-journal-{}", std::process::id()));
    let setup = Setup::with(Options { journal: Some(path.clone()), ..unlimited() }).await;
    send(setup.gemini(BANANA, "a fox", json!({}))).await;
    setup.emulator.script(Fault::new(Stage::Stat, Action::Reset));
    assert!(setup.stat("a").send().await.is_err());
    setup.emulator.script(Fault::new(Stage::Stat, Action::status(503)));
    send(setup.stat("b")).await;
    let form = "grant_type=refresh_token&client_id=a%40b&client_secret=s&refresh_token=r";
    let request = setup.client.post(setup.emulator.url() + "/token").body(form);
    send(request.header("content-type", "application/x-www-form-urlencoded")).await;
    let text = std::fs::read_to_string(&path).expect("a journal");
    std::fs::remove_file(path).expect("made by this test");
    assert!(!text.contains(&format!("Bearer {}", setup.token)));
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 5, "tokens, the generation, the metadata");
    assert_eq!(lines[1]["body"]["contents"][0]["parts"][0]["text"], "a fox");
    let image = image_of(&lines[1]["response"]["body"]);
    assert!(image.starts_with(b"\x89PNG") && image.len() == 300, "{}", image.len());
    assert_eq!((&lines[2]["method"], &lines[2]["response"]), (&json!("GET"), &json!(null)));
    let is_scripted = |line: usize| &lines[line]["response"]["scripted"];
    assert_eq!([1, 3].map(is_scripted), [&json!(false), &json!(true)], "made by a fault or not");
    assert_eq!(lines[4]["body"]["client_id"], "a@b");
}
