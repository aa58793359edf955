//! Lambda events, through the path that the Lambda runtime takes.

use crate::support::service::{BUCKET, CURRENT, config, emulator, records};
use iga::app::App;
use iga::runtime;
use iga_emulator::{Action, Emulator, Fault, Stage, StoredObject};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

const FUNCTION_URL: &str = include_str!("../../events/generate_image.json");
const BASE64: &str = include_str!("../../events/generate_image_base64.json");
const LOAD_BALANCER: &str = include_str!("../../events/generate_image_alb.json");
const REST: &str = include_str!("../../events/generate_image_rest.json");
const DIRECT: &str = include_str!("../../events/generate_image_direct.json");

async fn invoke(event: &str) -> (Value, Emulator) {
    let emulator = emulator().await;
    let app = App::new(config(&emulator, &[]));
    (runtime::invoke(app, event).await.unwrap(), emulator)
}

fn body(answer: &Value) -> Value {
    assert_eq!(answer["isBase64Encoded"], false);
    serde_json::from_str(answer["body"].as_str().unwrap()).unwrap()
}

/// The object that a response names.
fn stored(emulator: &Emulator, body: &Value) -> StoredObject {
    let url = body["image_url"].as_str().unwrap();
    let name = url.strip_prefix(&format!("gs://{BUCKET}/")).unwrap();
    emulator.object(BUCKET, name).expect("the object is stored")
}

fn header<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let single = &answer["headers"][name];
    if single.is_null() { &answer["multiValueHeaders"][name][0] } else { single }
}

#[tokio::test]
async fn events_of_every_shape_get_their_image() {
    for (event, prompt) in [
        (
            FUNCTION_URL,
            "A lighthouse on a cliff at dusk, warm light over a calm sea, soft watercolour",
        ),
        (BASE64, "A caf\u{e9} at night in the rain, neon signs, 35 mm photograph"),
        (LOAD_BALANCER, "A paper boat in a puddle, seen from above"),
        (REST, "A clockmaker at a bench, morning light"),
    ] {
        let (answer, emulator) = invoke(event).await;
        assert_eq!(answer["statusCode"], 200, "{answer}");
        assert_eq!(header(&answer, "content-type"), "application/json");
        assert!(header(&answer, "x-request-id").as_str().unwrap().starts_with("iga_req_"));
        let body = body(&answer);
        assert_eq!(body["prompt_used"], prompt);
        stored(&emulator, &body);
    }
}

#[tokio::test]
async fn the_path_and_the_method_of_an_event_count() {
    let mut event: Value = serde_json::from_str(FUNCTION_URL).unwrap();
    event["rawPath"] = json!("/health");
    event["requestContext"]["http"]["path"] = json!("/health");
    event["requestContext"]["http"]["method"] = json!("GET");
    let (answer, _) = invoke(&event.to_string()).await;
    assert_eq!((&answer["statusCode"], body(&answer)), (&json!(200), json!({"status": "ok"})));
}

#[tokio::test]
async fn a_bad_body_is_the_contracts_row_and_no_function_error() {
    let mut event: Value = serde_json::from_str(FUNCTION_URL).unwrap();
    event["body"] = json!("{}");
    let (answer, _) = invoke(&event.to_string()).await;
    assert_eq!(answer["statusCode"], 400);
    assert_eq!(body(&answer)["error_code"], "IGA_BAD_REQUEST_PROMPT_MISSING");
}

#[tokio::test]
async fn a_stage_is_not_part_of_the_path() {
    let with = |event: &str, changes: &[(&str, Value)]| {
        let mut event: Value = serde_json::from_str(event).unwrap();
        for (pointer, value) in changes {
            *event.pointer_mut(pointer).unwrap() = value.clone();
        }
        event
    };
    let payload_1_0 = {
        let mut event = with(REST, &[("/path", json!("/prod/generate_image"))]);
        event["version"] = json!("1.0");
        event
    };
    for event in [
        with(REST, &[]),
        payload_1_0,
        with(REST, &[("/requestContext/stage", json!("generate_image"))]),
        with(FUNCTION_URL, &[("/requestContext/stage", json!("prod"))]),
        with(
            FUNCTION_URL,
            &[
                ("/requestContext/stage", json!("prod")),
                ("/rawPath", json!("/prod/generate_image")),
            ],
        ),
    ] {
        let (answer, _) = invoke(&event.to_string()).await;
        assert_eq!(answer["statusCode"], 200, "{event}: {answer}");
    }
    let elsewhere = with(REST, &[("/path", json!("/production/generate_image"))]);
    assert_eq!(invoke(&elsewhere.to_string()).await.0["statusCode"], 404);
}

#[tokio::test]
async fn a_header_that_is_not_ascii_is_kept_and_one_that_cannot_be_is_dropped() {
    for (id, kept) in [("Zürich", json!("Z%C3%BCrich")), ("a\nb", Value::Null)] {
        for (event, headers) in [
            (FUNCTION_URL, &["headers"][..]),
            (REST, &["headers", "multiValueHeaders"]),
            (LOAD_BALANCER, &["multiValueHeaders"]),
        ] {
            let mut event: Value = serde_json::from_str(event).unwrap();
            for name in ["x-workflow-id", "X-Workflow-ID"] {
                for member in ["headers", "multiValueHeaders"] {
                    if let Some(headers) = event.get_mut(member) {
                        headers.as_object_mut().unwrap().remove(name);
                    }
                }
            }
            for member in headers {
                let value = if *member == "headers" { json!(id) } else { json!([id]) };
                event[member]["X-Workflow-ID"] = value;
            }
            let (answer, emulator) = invoke(&event.to_string()).await;
            assert_eq!(answer["statusCode"], 200, "{event}: {answer}");
            let object = stored(&emulator, &body(&answer));
            assert_eq!(object.metadata["metadata"]["workflow_id"], kept, "{event}");
        }
    }
}

#[tokio::test]
async fn a_direct_invocation_gets_the_response_body_itself() {
    let (answer, emulator) = invoke(DIRECT).await;
    assert_eq!(answer["prompt_used"], "A tram in the fog, early morning");
    assert_eq!(stored(&emulator, &answer).metadata["metadata"]["aspect_ratio"], "16:9");
    assert_eq!(answer.as_object().unwrap().len(), 3);
    for (payload, code) in [
        (json!({"prompt": ""}), "IGA_BAD_REQUEST_PROMPT_MISSING"),
        (json!({"prompt": null}), "IGA_BAD_REQUEST_PROMPT_MISSING"),
        (json!({"prompt": "x", "seed": -1}), "IGA_VERTEXAI_INVALID_ARGUMENT"),
    ] {
        let (answer, _) = invoke(&payload.to_string()).await;
        assert_eq!(answer["error_code"], code, "{answer}");
        assert_eq!(answer.as_object().unwrap().len(), 3);
    }
    let prompt = "  \u{1f98a} \"quoted\" \\ back\0slash\n\ttab  ";
    let (answer, _) = invoke(&json!({"prompt": prompt, "seed": 7.0}).to_string()).await;
    assert_eq!(answer["prompt_used"], prompt);
}

#[tokio::test]
async fn a_body_that_is_not_the_base64_it_claims_to_be_is_a_400() {
    for body in ["{\"prompt\": \"x\"", "%%%", "e30"] {
        let mut event: Value = serde_json::from_str(BASE64).unwrap();
        event["body"] = json!(body);
        let (answer, _) = invoke(&event.to_string()).await;
        assert_eq!(answer["statusCode"], 400, "{answer}");
    }
}

#[tokio::test]
async fn a_host_that_is_no_host_is_a_sentence_and_no_panic() {
    let app = App::new(config(&emulator().await, CURRENT));
    let event = json!({"version": "2.0", "rawPath": "/health", "headers": {"host": "1.2.3.4.5"},
        "requestContext": {"domainName": "1.2.3.4.5", "http": {"method": "GET", "path": "/health"}}});
    let refused = runtime::invoke(app, &event.to_string()).await.unwrap_err();
    assert!(refused.contains("host"), "{refused}");
}

#[tokio::test]
async fn another_event_gets_a_sentence_that_names_those_that_are_taken() {
    let emulator = emulator().await;
    for event in [
        json!({"Records": [{"eventSource": "aws:sqs", "body": "{\"prompt\": \"x\"}"}]}),
        json!({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}),
        json!({"requestContext": {"connectionId": "x", "routeKey": "$connect"}}),
        json!({"version": "2.0", "requestContext": {"serviceArn": "arn:aws:vpc-lattice"}, "method": "POST"}),
        json!({"key1": "value1"}),
        json!({}),
        json!([{"prompt": "x"}]),
        json!("prompt"),
        json!(null),
        json!(7),
    ] {
        let app = App::new(config(&emulator, &[]));
        let problem = runtime::invoke(app, &event.to_string()).await.unwrap_err();
        assert!(problem.starts_with("Not a Lambda HTTP event"), "{event}: {problem}");
        for words in ["function URL", "payload 1.0 and 2.0", "load balancer", "{\"prompt\": ...}"] {
            assert!(problem.contains(words), "{problem}");
        }
    }
    assert_eq!(emulator.requests().len(), 0);
}

#[tokio::test]
async fn the_functions_own_timeout_is_a_deadline() {
    // In 2020: the function has no time left, so nothing may be paid.
    let emulator = emulator().await;
    let app = App::new(config(&emulator, &[]));
    let answer = runtime::invoke_until(app, FUNCTION_URL, 1_577_836_800_000).await.unwrap();
    assert_eq!(answer["statusCode"], 503, "{answer}");
    assert_eq!(emulator.counters().paid_generations, 0);
}

#[tokio::test]
async fn the_answer_comes_after_the_lease_is_given_back() {
    let emulator = emulator().await;
    let settings = &[CURRENT, &[("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")]].concat();
    let app = App::new(config(&emulator, settings));
    emulator.script(Fault::new(Stage::Model, Action::Stall));
    let mut event: Value = serde_json::from_str(FUNCTION_URL).unwrap();
    event["headers"]["idempotency-key"] = json!("k");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let answer = runtime::invoke_until(app, &event.to_string(), now + 4000).await.unwrap();
    assert_eq!(answer["statusCode"], 503, "{answer}");
    // A function that has answered is frozen: nothing follows.
    let records = records(&emulator);
    assert!(records.len() == 1 && records[0]["released"].is_string(), "{records:?}");
}
