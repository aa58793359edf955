//! Which model gets a prompt, in which locations, and with which parameters, labels and headers.

use crate::support::service::{CURRENT, PROMPT, Service};
use iga_emulator::{Action, Fault, Stage};
use serde_json::{Value, json};

/// The locations that a prompt was sent to, without repetitions, in order.
fn locations(service: &Service) -> Vec<String> {
    let mut locations = Vec::new();
    for request in service.model_requests() {
        let rest = request.path.split("/locations/").nth(1).expect("a path with a location");
        let location = rest.split('/').next().unwrap_or_default().to_owned();
        if !locations.contains(&location) {
            locations.push(location);
        }
    }
    locations
}

#[tokio::test]
async fn a_prompt_goes_only_where_the_settings_allow() {
    const DEFAULT: Option<&str> = None;
    const OFF: Option<&str> = Some("");
    const GLOBAL: Option<&str> = Some("global/gemini-nano-banana-2.1");
    const PRO: Option<&str> = Some("gemini-3-pro-image");
    for (location, fallbacks, model_id_override, outcome, asked) in [
        ("europe-west4", DEFAULT, None, Ok("gemini-2.5-flash-image"), &["europe-west4"][..]),
        ("europe-west4", DEFAULT, PRO, Err(400), &[]),
        ("europe-west4", OFF, PRO, Err(400), &[]),
        ("europe-west4", GLOBAL, PRO, Ok("gemini-3-pro-image"), &["global"]),
        ("europe-west4", GLOBAL, None, Ok("gemini-nano-banana-2.1"), &["europe-west4", "global"]),
        (
            "europe-west4",
            OFF,
            Some("gemini-2.5-flash-image"),
            Ok("gemini-2.5-flash-image"),
            &["europe-west4"],
        ),
        ("europe-west3", DEFAULT, None, Err(500), &["europe-west3"]),
        ("eu", DEFAULT, None, Err(500), &["eu"]),
        ("us", DEFAULT, None, Err(500), &["us"]),
        ("us", DEFAULT, PRO, Err(400), &[]),
        ("asia-northeast1", DEFAULT, None, Err(500), &["asia-northeast1"]),
        ("asia-northeast1", DEFAULT, PRO, Err(400), &[]),
        (
            "asia-northeast1",
            GLOBAL,
            None,
            Ok("gemini-nano-banana-2.1"),
            &["asia-northeast1", "global"],
        ),
        ("us-central1", DEFAULT, None, Ok("gemini-nano-banana-2.1"), &["us-central1", "global"]),
        ("us-central1", DEFAULT, PRO, Ok("gemini-3-pro-image"), &["global"]),
        ("us-central1", OFF, PRO, Err(400), &[]),
        ("global", DEFAULT, PRO, Ok("gemini-3-pro-image"), &["global"]),
    ] {
        let mut settings = vec![("IGA_VERTEXAI_LOCATION", location)];
        settings.extend(fallbacks.map(|list| ("IGA_VERTEXAI_FALLBACK_MODELS", list)));
        let service = Service::with(&settings).await;
        let mut body = json!({"prompt": PROMPT});
        if let Some(id) = model_id_override {
            body["model_id_override"] = json!(id);
        }
        let response = service.post(body).await;
        let row = format!("{location} {fallbacks:?} {model_id_override:?}: {response:?}");
        match outcome {
            Ok(id) => {
                assert_eq!(response.text("model_version"), format!("vertex-ai-{id}"), "{row}")
            }
            Err(status) => assert_eq!(response.status, status, "{row}"),
        }
        if outcome == Err(400) {
            response.is_error(400, "IGA_VERTEXAI_INVALID_ARGUMENT");
            response.details_have("'model_id_override': gemini-3-pro-image is not served in");
            response.details_have(location);
        }
        assert_eq!(locations(&service), asked, "{row}");
    }
}

#[tokio::test]
async fn the_same_model_elsewhere_comes_before_another_model() {
    for (location, model, made_by) in [
        ("us-central1", "gemini-3-pro-image", "gemini-3-pro-image"),
        ("us-central1", "publishers/google/models/gemini-3-pro-image", "gemini-3-pro-image"),
        ("europe-west4", "gemini-3-pro-image", "gemini-2.5-flash-image"),
        ("us-central1", "gemini-9-image", "gemini-nano-banana-2.1"),
    ] {
        let settings =
            [("IGA_VERTEXAI_LOCATION", location), ("IGA_VERTEXAI_IMAGE_MODEL_ID", model)];
        let service = Service::with(&settings).await;
        let response = service.prompt().await;
        assert_eq!(response.is_image().text("model_version"), format!("vertex-ai-{made_by}"));
    }
}

#[tokio::test]
async fn an_unknown_model_is_called_with_every_parameter() {
    let settings =
        [("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-9-image"), ("IGA_VERTEXAI_LOCATION", "global")];
    let service = Service::with(&settings).await;
    let body = json!({"prompt": PROMPT, "aspect_ratio": "5:2", "image_size": "512", "seed": 7.0,
        "model_id_override": "gemini-9-image"});
    let response = service.post(body).await;
    response
        .is_error(500, "IGA_VERTEXAI_API_ERROR")
        .details_have("gemini-9-image is retired, or not");
    let requests = service.model_requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].path.ends_with("/models/gemini-9-image:generateContent"));
    let sent: Value = serde_json::from_slice(&requests[0].body).unwrap();
    assert_eq!(sent["generationConfig"]["seed"], 7);
    let image_config = json!({"aspectRatio": "5:2", "imageSize": "512"});
    assert_eq!(sent["generationConfig"]["imageConfig"], image_config);
}

#[tokio::test]
async fn labels_and_the_request_type_go_with_every_generation() {
    for request_type in ["dedicated", "shared"] {
        let settings = [
            ("IGA_VERTEXAI_LABELS", "team=podcast,env=prod"),
            ("IGA_VERTEXAI_REQUEST_TYPE", request_type),
        ];
        let service = Service::with(&settings).await;
        service.prompt().await.is_image();
        let requests = service.model_requests();
        assert_eq!(requests.len(), 2, "an Imagen and a Gemini");
        for request in requests {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(body["labels"], json!({"team": "podcast", "env": "prod"}));
            assert_eq!(request.headers["x-vertex-ai-llm-request-type"], request_type);
        }
    }
    let service = Service::current().await;
    service.prompt().await.is_image();
    let request = &service.model_requests()[0];
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    assert!(body.get("labels").is_none());
    assert!(!request.headers.contains_key("x-vertex-ai-llm-request-type"));
}

#[tokio::test]
async fn a_busy_model_falls_back_only_if_the_settings_say_so() {
    for status in [429, 503] {
        for (setting, outcome) in [("False", Err(status)), ("True", Ok("gemini-nano-banana-2.1"))] {
            let settings = [CURRENT, &[("IGA_FALLBACK_WHEN_BUSY", setting)]].concat();
            let service = Service::with(&settings).await;
            let busy = Fault::new(Stage::Model, Action::status(status));
            service.emulator.script(busy.matching("gemini-3.1-flash-image").always());
            for _ in 0..2 {
                let response = service.prompt().await;
                match outcome {
                    Ok(id) => assert_eq!(response.text("model_version"), format!("vertex-ai-{id}")),
                    Err(status) => assert_eq!(response.status, status, "{response:?}"),
                }
            }
            let calls = service.emulator.counters().model_calls_by_model;
            assert_eq!(calls["gemini-3.1-flash-image"], 6, "three tries each time, not remembered");
        }
    }
}
