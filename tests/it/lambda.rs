//! Lambda events, through the path that the Lambda runtime takes.

use crate::support::service::{BUCKET, config, emulator};
use iga::app::App;
use iga::runtime;
use iga_emulator::Emulator;
use serde_json::{Value, json};

const FUNCTION_URL: &str = include_str!("../../events/generate_image.json");
const BASE64: &str = include_str!("../../events/generate_image_base64.json");
const LOAD_BALANCER: &str = include_str!("../../events/generate_image_alb.json");

async fn invoke(event: &str) -> (Value, Emulator) {
    let emulator = emulator().await;
    let app = App::new(config(&emulator, &[]));
    (runtime::invoke(app, event).await.unwrap(), emulator)
}

fn body(answer: &Value) -> Value {
    assert_eq!(answer["isBase64Encoded"], false);
    serde_json::from_str(answer["body"].as_str().unwrap()).unwrap()
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
    ] {
        let (answer, emulator) = invoke(event).await;
        assert_eq!(answer["statusCode"], 200, "{answer}");
        assert_eq!(header(&answer, "content-type"), "application/json");
        assert!(header(&answer, "x-request-id").as_str().unwrap().starts_with("iga_req_"));
        let body = body(&answer);
        assert_eq!(body["prompt_used"], prompt);
        let object = &emulator.objects()[0];
        assert_eq!(body["image_url"], format!("gs://{BUCKET}/{}", object.name));
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
async fn what_is_no_event_is_said_in_a_sentence() {
    let emulator = emulator().await;
    let app = App::new(config(&emulator, &[]));
    let problem = runtime::invoke(app, r#"{"Records": []}"#).await.unwrap_err();
    assert!(problem.starts_with("This is no event that Lambda sends for HTTP"), "{problem}");
}

#[tokio::test]
async fn the_functions_own_timeout_is_a_deadline() {
    // 2020, long past: whatever is left of it, nothing is paid for an answer that nobody will get.
    let emulator = emulator().await;
    let app = App::new(config(&emulator, &[]));
    let answer = runtime::invoke_until(app, FUNCTION_URL, 1_577_836_800_000).await.unwrap();
    assert_eq!(answer["statusCode"], 503, "{answer}");
    assert_eq!(emulator.counters().paid_generations, 0);
}
