//! AWS Lambda: every supported event gets its response, through the code that the Lambda runtime calls.

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

fn body(response: &Value) -> Value {
    assert_eq!(response["isBase64Encoded"], false);
    serde_json::from_str(response["body"].as_str().unwrap()).unwrap()
}

/// The object that a response names.
fn stored(emulator: &Emulator, body: &Value) -> StoredObject {
    let url = body["image_url"].as_str().unwrap();
    let name = url.strip_prefix(&format!("gs://{BUCKET}/")).unwrap();
    emulator.object(BUCKET, name).expect("the object is stored")
}

fn header<'a>(response: &'a Value, name: &str) -> &'a Value {
    let single = &response["headers"][name];
    if single.is_null() { &response["multiValueHeaders"][name][0] } else { single }
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
        let (response, emulator) = invoke(event).await;
        assert_eq!(response["statusCode"], 200, "{response}");
        assert_eq!(header(&response, "content-type"), "application/json");
        assert!(header(&response, "x-request-id").as_str().unwrap().starts_with("iga_req_"));
        let body = body(&response);
        assert_eq!(body["prompt_used"], prompt);
        stored(&emulator, &body);
    }
}

#[tokio::test]
async fn an_event_is_routed_by_its_path_and_method() {
    let mut event: Value = serde_json::from_str(FUNCTION_URL).unwrap();
    event["rawPath"] = json!("/health");
    event["requestContext"]["http"]["path"] = json!("/health");
    event["requestContext"]["http"]["method"] = json!("GET");
    let (response, _) = invoke(&event.to_string()).await;
    assert_eq!((&response["statusCode"], body(&response)), (&json!(200), json!({"status": "ok"})));
}

#[tokio::test]
async fn an_invalid_body_is_400_and_not_a_function_error() {
    let mut event: Value = serde_json::from_str(FUNCTION_URL).unwrap();
    event["body"] = json!("{}");
    let (response, _) = invoke(&event.to_string()).await;
    assert_eq!(response["statusCode"], 400);
    assert_eq!(body(&response)["error_code"], "IGA_BAD_REQUEST_PROMPT_MISSING");
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
        let (response, _) = invoke(&event.to_string()).await;
        assert_eq!(response["statusCode"], 200, "{event}: {response}");
    }
    let elsewhere = with(REST, &[("/path", json!("/production/generate_image"))]);
    assert_eq!(invoke(&elsewhere.to_string()).await.0["statusCode"], 404);
}

#[tokio::test]
async fn a_non_ascii_header_is_kept_and_an_invalid_one_is_dropped() {
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
            let (response, emulator) = invoke(&event.to_string()).await;
            assert_eq!(response["statusCode"], 200, "{event}: {response}");
            let object = stored(&emulator, &body(&response));
            assert_eq!(object.metadata["metadata"]["workflow_id"], kept, "{event}");
        }
    }
}

#[tokio::test]
async fn a_direct_invocation_gets_the_response_body_itself() {
    let (response, emulator) = invoke(DIRECT).await;
    assert_eq!(response["prompt_used"], "A tram in the fog, early morning");
    assert_eq!(stored(&emulator, &response).metadata["metadata"]["aspect_ratio"], "16:9");
    assert_eq!(response.as_object().unwrap().len(), 3);
    for (payload, code) in [
        (json!({"prompt": ""}), "IGA_BAD_REQUEST_PROMPT_MISSING"),
        (json!({"prompt": null}), "IGA_BAD_REQUEST_PROMPT_MISSING"),
        (json!({"prompt": "x", "seed": -1}), "IGA_VERTEXAI_INVALID_ARGUMENT"),
    ] {
        let (response, _) = invoke(&payload.to_string()).await;
        assert_eq!(response["error_code"], code, "{response}");
        assert_eq!(response.as_object().unwrap().len(), 3);
    }
    let prompt = "  \u{1f98a} \"quoted\" \\ back\0slash\n\ttab  ";
    let (response, _) = invoke(&json!({"prompt": prompt, "seed": 7.0}).to_string()).await;
    assert_eq!(response["prompt_used"], prompt);
}

#[tokio::test]
async fn a_body_of_invalid_base64_is_400() {
    for body in ["{\"prompt\": \"x\"", "%%%", "e30"] {
        let mut event: Value = serde_json::from_str(BASE64).unwrap();
        event["body"] = json!(body);
        let (response, _) = invoke(&event.to_string()).await;
        assert_eq!(response["statusCode"], 400, "{response}");
    }
}

/// A `GET /health` of each kind, with its changes.
fn health_events(changes: &[(&str, Value)]) -> [Value; 3] {
    [FUNCTION_URL, REST, LOAD_BALANCER].map(|event| {
        let mut event: Value = serde_json::from_str(event).unwrap();
        let is_v2 = event["httpMethod"].is_null();
        let path = if is_v2 { "rawPath" } else { "path" };
        event[path] = json!("/health");
        match is_v2 {
            true => event["requestContext"]["http"]["method"] = json!("GET"),
            false => event["httpMethod"] = json!("GET"),
        }
        for (member, value) in changes {
            match *member {
                "path" => event[path] = value.clone(),
                "method" if is_v2 => event["requestContext"]["http"]["method"] = value.clone(),
                "method" => event["httpMethod"] = value.clone(),
                "headers" => {
                    event["headers"] = value.clone();
                    event["multiValueHeaders"] = Value::Null;
                }
                other => event[other] = value.clone(),
            }
        }
        event
    })
}

#[tokio::test]
async fn an_invalid_host_is_400_in_the_form_of_its_event() {
    let app = App::new(config(&emulator().await, CURRENT));
    for (host, status) in [
        (json!("a b"), 400),
        (json!(""), 400),
        (json!("user@host"), 400),
        (json!("host/path"), 400),
        (json!(["a", "b"]), 400),
        (json!("1.2.3.4.5"), 200),
        (json!("[::1]:80"), 200),
    ] {
        for event in health_events(&[("headers", json!({"Host": host}))]) {
            let response = runtime::invoke(app.clone(), &event.to_string()).await.unwrap();
            assert_eq!(response["statusCode"], status, "{event}: {response}");
            let id = header(&response, "x-request-id").as_str().unwrap();
            assert!(id.starts_with("iga_req_"), "{response}");
            if status == 400 {
                assert_eq!(body(&response)["error_code"], "IGA_INVALID_HOST");
            }
            let description = event["requestContext"]["elb"].is_object().then_some(status);
            let description = description.map(|status| format!("{status} "));
            let given = response["statusDescription"].as_str();
            assert_eq!(given.map(|text| text[..4].to_owned()), description, "{response}");
        }
    }
}

#[tokio::test]
async fn every_http_event_gets_a_response() {
    let app = App::new(config(&emulator().await, CURRENT));
    let many: serde_json::Map<_, _> =
        (0..40_000).map(|number| (format!("x-{number}"), json!("y"))).collect();
    for (member, value, status) in [
        ("path", json!("/health "), 404),
        ("path", json!("//health"), 404),
        ("path", json!("/\u{e9}\u{202e}\"<>\\^`{|}%zz#"), 404),
        ("path", json!("http://[:/health"), 404),
        ("path", json!("/health?x"), 404),
        ("path", json!("/a/../health"), 404),
        ("path", json!(format!("/{}", "x/\u{e9}".repeat(100_000))), 404),
        ("path", json!("*"), 404),
        ("path", json!(":99999"), 404),
        ("path", Value::Null, 200),
        ("method", json!("GE T"), 405),
        ("method", json!(""), 405),
        ("method", json!("\u{e9}"), 405),
        ("method", json!("PURGE"), 405),
        ("rawQueryString", json!("a=<b> \u{e9}\n#?"), 200),
        ("queryStringParameters", json!({"a b": "\u{0}", "": null}), 200),
        ("multiValueQueryStringParameters", json!({"a": [null, {"b": 1}]}), 200),
        ("pathParameters", json!({"proxy": null}), 200),
        ("cookies", json!(["a=\n", 7]), 200),
        ("headers", Value::Null, 200),
        ("headers", json!({"bad name": "x", "": "y", "x\n": "z"}), 200),
        ("headers", json!({"x": 7, "y": null, "z": {"a": "b"}, "u": [[]]}), 200),
        ("headers", json!({"x-forwarded-proto": "java script", "x": "y".repeat(1 << 20)}), 200),
        ("headers", Value::Object(many), 200),
        ("body", Value::Null, 200),
        ("body", json!({"prompt": "x"}), 200),
        ("stageVariables", json!({"a": null}), 200),
        ("isBase64Encoded", json!("perhaps"), 200),
    ] {
        for event in health_events(&[(member, value.clone())]) {
            let response = runtime::invoke(app.clone(), &event.to_string()).await.unwrap();
            assert_eq!(response["statusCode"], status, "{member}: {response}");
            let code = [(404, "IGA_NOT_FOUND"), (405, "IGA_METHOD_NOT_ALLOWED")];
            let code = code.iter().find(|(of, _)| *of == status).map(|(_, code)| json!(code));
            assert_eq!(body(&response)["error_code"], code.unwrap_or_default(), "{member}");
        }
    }
}

#[tokio::test]
async fn two_different_keys_in_an_event_are_400() {
    let mut event: Value = serde_json::from_str(REST).unwrap();
    // API Gateway sends the last value in `headers` also.
    event["headers"]["Idempotency-Key"] = json!("b");
    event["multiValueHeaders"]["Idempotency-Key"] = json!(["a", "b"]);
    let (response, emulator) = invoke(&event.to_string()).await;
    assert_eq!(body(&response)["error_code"], "IGA_INVALID_IDEMPOTENCY_KEY", "{response}");
    assert_eq!(emulator.requests().len(), 0);
}

#[tokio::test]
async fn an_unsupported_event_gets_an_error_that_names_the_supported_ones() {
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
    // The deadline is in 2020: no time is left, so nothing may be paid.
    let emulator = emulator().await;
    let app = App::new(config(&emulator, &[]));
    let response = runtime::invoke_until(app, FUNCTION_URL, 1_577_836_800_000).await.unwrap();
    assert_eq!(response["statusCode"], 503, "{response}");
    assert_eq!(emulator.counters().paid_generations, 0);
}

#[tokio::test]
async fn the_response_comes_after_the_lease_is_released() {
    let emulator = emulator().await;
    let settings = &[CURRENT, &[("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")]].concat();
    let app = App::new(config(&emulator, settings));
    emulator.script(Fault::new(Stage::Model, Action::Stall));
    let mut event: Value = serde_json::from_str(FUNCTION_URL).unwrap();
    event["headers"]["idempotency-key"] = json!("k");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let response = runtime::invoke_until(app, &event.to_string(), now + 4000).await.unwrap();
    assert_eq!(response["statusCode"], 503, "{response}");
    // Lambda freezes a function that has responded, so the release must come first.
    let records = records(&emulator);
    assert!(records.len() == 1 && records[0]["released"].is_string(), "{records:?}");
}
