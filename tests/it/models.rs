//! Gemini and Imagen: their requests, which image is stored, refusals, retirement and fallbacks.

use crate::support::service::{
    BLUE, CURRENT, GREEN, PROMPT, RED, Response, Service, emulator_with, fetch, images,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use iga_emulator::{Action, Cut, Delivery, Ending, Fault, Options, Stage};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinHandle;

fn bytes(image: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(image).unwrap()
}

/// A service with an Imagen model that the emulator still serves.
async fn imagen() -> Service {
    let id = "imagen-4.0-generate-001";
    let emulator =
        emulator_with(Options { revive: vec![id.to_owned()], ..Options::default() }).await;
    Service::on(emulator, &[("IGA_VERTEXAI_IMAGE_MODEL_ID", id)]).await
}

#[tokio::test]
async fn imagen_gets_its_own_request_format() {
    let service = imagen().await;
    let response = service
        .post(json!({"prompt": PROMPT, "aspect_ratio": "16:9", "add_watermark": false}))
        .await;
    assert_eq!(response.is_image().text("model_version"), "vertex-ai-imagen-4.0-generate-001");
    let request = &service.model_requests()[0];
    assert_eq!(
        request.path,
        "/v1/projects/test-project/locations/us-central1/publishers/google/models/imagen-4.0-generate-001:predict"
    );
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(body["parameters"]["aspectRatio"], "16:9");
    assert_eq!(body["parameters"]["addWatermark"], false);
    assert_eq!(service.only_object().metadata["metadata"]["model"], "imagen-4.0-generate-001");
}

#[tokio::test]
async fn an_imagen_image_is_found_in_any_field_order() {
    let both_orders = [
        json!({"bytesBase64Encoded": RED, "mimeType": "image/png"}).to_string(),
        format!(
            r#"{{"mimeType": "image/png", "safetyAttributes": {{"scores": [1, 0.1, 1e-9]}}, "bytesBase64Encoded": "{RED}"}}"#
        ),
    ];
    for prediction in both_orders {
        let service = imagen().await;
        let reason = r#"{"raiFilteredReason": "filtered out 1"}"#;
        service.model_responds(
            200,
            format!(r#"{{"deployedModelId": "1", "predictions": [{prediction}, {reason}]}}"#),
        );
        service.prompt().await.is_image();
        assert_eq!(service.only_object().bytes, bytes(RED));
    }
}

#[tokio::test]
async fn an_imagen_refusal_is_a_safety_block() {
    for (body, words) in [
        (
            r#"{"predictions": [{"raiFilteredReason": "All filtered. Support codes: 39322892"}]}"#,
            "39322892",
        ),
        ("{}", "filtered out"),
        (r#"{"predictions": []}"#, "filtered out"),
        (r#"{"deployedModelId": "1"}"#, "filtered out"),
    ] {
        let service = imagen().await;
        service.model_responds(200, body);
        service
            .prompt()
            .await
            .is_error(400, "IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY")
            .details_have(words);
    }
}

#[tokio::test]
async fn an_image_stored_elsewhere_or_empty_is_not_an_image() {
    for (body, words) in [
        (
            r#"{"predictions": [{"gcsUri": "gs://x/y.png", "mimeType": "image/png"}]}"#,
            "gs://x/y.png",
        ),
        (
            r#"{"predictions": [{"bytesBase64Encoded": "", "mimeType": "image/png"}]}"#,
            "empty or inaccessible",
        ),
        (
            r#"{"predictions": [{"bytesBase64Encoded": "aGVsbG8=", "mimeType": "image/png"}]}"#,
            "not an image of a known type",
        ),
    ] {
        let service = imagen().await;
        service.model_responds(200, body);
        let response = service.prompt().await;
        response.is_error(500, "IGA_VERTEXAI_EMPTY_IMAGE_BYTES").details_have(words);
        assert_eq!(response.text("message"), "Image generation produced an empty image.");
    }
}

/// A `:generateContent` response with these parts.
fn gemini(parts: &[Value], finish_reason: &str) -> String {
    json!({"candidates": [{"index": 0, "content": {"role": "model", "parts": parts}, "finishReason": finish_reason,
        "safetyRatings": [{}]}], "usageMetadata": {"totalTokenCount": 9}, "responseId": "r"})
    .to_string()
}

fn part(image: &str) -> Value {
    json!({"inlineData": {"mimeType": "image/png", "data": image}, "thoughtSignature": "CpcB"})
}

fn draft(image: &str) -> Value {
    json!({"thought": true, "inlineData": {"mimeType": "image/png", "data": image}})
}

#[tokio::test]
async fn the_final_image_is_the_one_that_is_stored() {
    let text = json!({"text": "Here is the fox."});
    for (parts, stored) in [
        (vec![text.clone(), part(RED)], RED),
        (vec![part(RED)], RED),
        (vec![draft(RED), text.clone(), part(GREEN)], GREEN),
        (vec![part(RED), part(GREEN), part(BLUE)], BLUE),
        (vec![part(RED), draft(GREEN), draft(BLUE)], RED),
        (vec![draft(RED), draft(GREEN)], GREEN),
    ] {
        let service = Service::current().await;
        service.model_responds(200, gemini(&parts, "STOP"));
        service.prompt().await.is_image();
        assert_eq!(service.only_object().bytes, bytes(stored), "{parts:?}");
    }
}

#[tokio::test]
async fn a_usable_image_is_found_beside_anything() {
    let text_blob = BASE64_STANDARD.encode("a text/plain blob");
    for parts in [
        vec![part(RED), part("")],
        vec![part(RED), part(&text_blob)],
        vec![part(RED), part("no base64!")],
        vec![part(RED), part(&large_image(8))],
        vec![part(RED), json!({"functionCall": {"args": {"data": "no base64!"}}})],
        vec![draft("no base64!"), part(RED)],
        vec![draft(GREEN), part(RED), draft("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAI")],
        vec![json!(null), part(RED), json!(5), json!("x"), json!([[]])],
        vec![json!({"text": 5, "thought": "no", "inlineData": null}), part(RED)],
        vec![json!({"inline_data": {"mime_type": "image/png", "data": RED}})],
        vec![json!({"inlineData": {"mimeType": [], "data": RED}, "thought": {}})],
    ] {
        let service = Service::current().await;
        service.model_responds(200, gemini(&parts, "STOP"));
        service.prompt().await.is_image();
        assert_eq!(service.only_object().bytes, bytes(RED), "{parts:?}");
    }
    let good = json!({"content": {"parts": [part(RED)]}, "finishReason": 5, "safetyRatings": "x"});
    for response in [
        json!({"candidates": [null, good, 5], "promptFeedback": []}),
        json!({"candidates": [good], "promptFeedback": null, "error": null}),
        json!({"candidates": good, "modelVersion": 5}),
        json!([{"candidates": [good]}, {"usageMetadata": {}}]),
    ] {
        let service = Service::current().await;
        service.model_responds(200, response.to_string());
        service.prompt().await.is_image();
        assert_eq!(service.only_object().bytes, bytes(RED), "{response}");
    }
    let imagen_part = |image: &str| json!({"bytesBase64Encoded": image, "mimeType": "image/png"});
    for predictions in [
        json!([null, imagen_part(""), imagen_part(RED), imagen_part(GREEN)]),
        json!([imagen_part("no base64!"), {"bytesBase64Encoded": 5}, imagen_part(RED)]),
        json!([{"bytes_base64_encoded": RED}]),
    ] {
        let service = imagen().await;
        service.model_responds(200, json!({"predictions": predictions}).to_string());
        service.prompt().await.is_image();
        assert_eq!(service.only_object().bytes, bytes(RED), "{predictions}");
    }
}

#[tokio::test]
async fn drafts_alone_are_stored_unless_something_was_filtered() {
    for reason in [json!(null), json!("MAX_TOKENS"), json!("STOP")] {
        let service = Service::current().await;
        let parts = [draft(GREEN), draft(RED)];
        let response =
            json!({"candidates": [{"content": {"parts": parts}, "finishReason": reason}]});
        service.model_responds(200, response.to_string());
        service.prompt().await.is_image();
        assert_eq!(service.only_object().bytes, bytes(RED), "{reason}");
    }
}

#[tokio::test]
async fn a_response_is_complete_when_its_json_is() {
    let cut = |ending| Some(Cut::after_body(ending));
    let chunked = Some(16 * 1024);
    for delivery in [
        Delivery { chunk_bytes: chunked, cut: cut(Ending::Close), ..Delivery::default() },
        Delivery { chunk_bytes: chunked, cut: cut(Ending::Reset), ..Delivery::default() },
        Delivery { chunk_bytes: chunked, cut: cut(Ending::Stall), ..Delivery::default() },
        Delivery { excess_length: 1, ..Delivery::default() },
        Delivery { excess_length: 1, cut: cut(Ending::Reset), ..Delivery::default() },
        Delivery { excess_length: 1, cut: cut(Ending::Stall), ..Delivery::default() },
        Delivery { chunk_bytes: Some(1), ..Delivery::default() },
    ] {
        let service = Service::current().await;
        service.fault(Stage::Response, Action::deliver(delivery));
        for _ in 0..2 {
            service.prompt().await.is_image();
        }
        let counters = service.emulator.counters();
        assert_eq!(
            (counters.paid_generations, images(&service.emulator).len()),
            (2, 2),
            "{delivery:?}"
        );
    }
}

#[tokio::test]
async fn a_response_cut_within_its_json_is_500_and_reports_the_lost_image() {
    for ending in [Ending::Close, Ending::Reset] {
        for chunk_bytes in [None, Some(100)] {
            let service = Service::current().await;
            let cut = Some(Cut { after: 500, ending });
            let delivery = Delivery { chunk_bytes, cut, ..Delivery::default() };
            service.fault(Stage::Response, Action::deliver(delivery));
            let response = service.prompt().await;
            response.is_error(500, "IGA_VERTEXAI_API_ERROR").details_have("broke off after");
            response.details_have("it is lost");
            let counters = service.emulator.counters();
            assert_eq!(
                (counters.model_calls, images(&service.emulator).len()),
                (1, 0),
                "{delivery:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_error_with_a_stalled_body_is_reported_long_before_the_deadline() {
    let service = Service::current().await;
    let body = r#"{"error": {"message": "Permission denied on x."}}"#;
    let cut = Some(Cut::after_body(Ending::Stall));
    let delivery = Delivery { excess_length: 1, cut, ..Delivery::default() };
    let error = Action::response_with(403, "application/json", body).delivery(delivery);
    service.fault(Stage::Model, error);
    let response = tokio::time::timeout(Duration::from_secs(60), service.prompt()).await.unwrap();
    response
        .is_error(403, "IGA_VERTEXAI_PERMISSION_DENIED")
        .details_have("Permission denied on x.");
}

#[tokio::test]
async fn model_version_is_the_model_that_the_response_names() {
    for (named, expected) in [
        ("gemini-3.1-flash-image-001", "vertex-ai-gemini-3.1-flash-image"),
        ("publishers/google/models/gemini-3.1-flash-image", "vertex-ai-gemini-3.1-flash-image"),
        ("gemini-4-flash-image", "vertex-ai-gemini-4-flash-image"),
    ] {
        let service = Service::current().await;
        let parts = json!({"parts": [part(RED)]});
        let response = json!({"candidates": [{"content": parts}], "modelVersion": named});
        service.model_responds(200, response.to_string());
        assert_eq!(service.prompt().await.is_image().text("model_version"), expected);
        let metadata = &service.only_object().metadata["metadata"];
        assert_eq!(metadata["model"], expected.trim_start_matches("vertex-ai-"));
    }
}

#[tokio::test]
async fn a_refusal_names_all_candidates_and_no_thoughts() {
    let service = Service::current().await;
    let thought = json!({"text": "secret thought", "thought": true});
    let response = json!({"candidates": [
        {"content": {"parts": [thought, {"text": "I would rather not."}]}, "finishReason": "STOP"},
        {"finishReason": "IMAGE_SAFETY", "finishMessage": "Filtered out."}]});
    service.model_responds(200, response.to_string());
    let response = service.prompt().await;
    response.is_error(400, "IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY");
    assert_eq!(response.text("details"), "STOP: I would rather not. IMAGE_SAFETY: Filtered out.");
}

#[tokio::test]
async fn an_error_in_a_200_counts_by_its_code_and_another_shape_is_an_api_error() {
    let error = |code: u16| json!({"error": {"code": code, "message": "Said so."}});
    for (body, status, error_code, words) in [
        (error(403), 403, "IGA_VERTEXAI_PERMISSION_DENIED", "Said so."),
        (error(429), 429, "IGA_VERTEXAI_RESOURCE_EXHAUSTED", "Said so."),
        (json!([error(400)]), 400, "IGA_VERTEXAI_INVALID_ARGUMENT", "Said so."),
        (json!({"error": "odd"}), 500, "IGA_VERTEXAI_API_ERROR", "odd"),
        (json!({"candidates": []}), 500, "IGA_VERTEXAI_API_ERROR", "not what its API documents"),
        (json!({"predictions": "x"}), 500, "IGA_VERTEXAI_API_ERROR", "not what its API documents"),
        (json!(7), 500, "IGA_VERTEXAI_API_ERROR", "not what its API documents"),
    ] {
        let service = imagen().await;
        service.model_responds(200, body.to_string());
        service.prompt().await.is_error(status, error_code).details_have(words);
    }
}

#[tokio::test]
async fn no_call_starts_that_cannot_finish_in_time() {
    // A call counts as half of this deadline.
    let settings = [CURRENT, &[("IGA_GENERATION_DEADLINE_SECONDS", "8")]].concat();
    let service = Service::with(&settings).await;
    service.fault(Stage::Model, Action::status(503).header("retry-after", "5"));
    let response = service.prompt().await;
    response.is_error(503, "IGA_VERTEXAI_API_ERROR");
    assert_eq!(response.header("retry-after"), "5");
    assert_eq!(service.emulator.counters().model_calls, 1);

    let service = Service::with(&[("IGA_GENERATION_DEADLINE_SECONDS", "1")]).await;
    let delay = Fault::new(Stage::Model, Action::Delay { ms: 600 });
    service.emulator.script(delay.matching("imagegeneration@006"));
    let response = service.prompt().await;
    response.is_error(503, "IGA_VERTEXAI_API_ERROR").details_have("Service Unavailable");
    assert!(!response.header("retry-after").is_empty());
    let counters = service.emulator.counters();
    assert_eq!((counters.model_calls, counters.paid_generations), (1, 0));
}

#[tokio::test]
async fn a_draft_is_never_stored_when_the_final_image_was_filtered() {
    let service = Service::current().await;
    service.model_responds(200, gemini(&[draft(RED)], "IMAGE_SAFETY"));
    service
        .prompt()
        .await
        .is_error(400, "IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY")
        .details_have("IMAGE_SAFETY");
    assert_eq!(images(&service.emulator).len(), 0);
}

#[tokio::test]
async fn type_and_extension_follow_the_bytes() {
    let image = |begin: &[u8]| BASE64_STANDARD.encode([begin, &[0; 200]].concat());
    for (image, content_type, extension) in [
        (RED.to_owned(), "image/png", ".png"),
        (image(b"\xff\xd8\xff\xe0"), "image/jpeg", ".jpg"),
        (image(b"RIFF\x10\0\0\0WEBPVP8 "), "image/webp", ".webp"),
        (image(b"GIF89a"), "image/gif", ".gif"),
        (image(b"\0\0\0\x18ftypavif\0\0\0\0mif1"), "image/avif", ".avif"),
        (image(b"\0\0\0\x18ftypmif1\0\0\0\0heic"), "image/heic", ".heic"),
    ] {
        let service = Service::current().await;
        let part = json!({"inlineData": {"mimeType": "image/tiff", "data": image}});
        service.model_responds(200, gemini(&[part], "STOP"));
        assert!(service.prompt().await.is_image().text("image_url").ends_with(extension));
        assert_eq!(service.only_object().metadata["contentType"], content_type);
    }
}

#[tokio::test]
async fn every_response_without_an_image_has_its_row() {
    let finished = |reason: &str| {
        json!({"candidates": [{"content": {"role": "model"}, "finishReason": reason, "finishMessage": "Because."}]})
            .to_string()
    };
    for reason in [
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "SAFETY",
        "PROHIBITED_CONTENT",
        "BLOCKLIST",
        "SPII",
        "MODEL_ARMOR",
        "RECITATION",
        "IMAGE_RECITATION",
    ] {
        let service = Service::current().await;
        service.model_responds(200, finished(reason));
        let response = service.prompt().await;
        response
            .is_error(400, "IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY")
            .details_have(reason)
            .details_have("Because.");
    }
    for reason in
        ["IMAGE_OTHER", "OTHER", "MALFORMED_RESPONSE", "NO_IMAGE", "MAX_TOKENS", "A_NEW_REASON"]
    {
        let service = Service::current().await;
        service.model_responds(200, finished(reason));
        service.prompt().await.is_error(500, "IGA_VERTEXAI_EMPTY_IMAGE_BYTES").details_have(reason);
    }
    let service = Service::current().await;
    service.model_responds(200, gemini(&[json!({"text": "I can't draw that."})], "STOP"));
    service
        .prompt()
        .await
        .is_error(500, "IGA_VERTEXAI_EMPTY_IMAGE_BYTES")
        .details_have("I can't draw that.");
}

#[tokio::test]
async fn the_emulators_magic_prompts_have_their_outcomes() {
    let service = Service::start().await;
    for (word, status, code) in [
        ("[blocked]", 400, "IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY"),
        ("[filtered]", 400, "IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY"),
        ("[empty]", 500, "IGA_VERTEXAI_EMPTY_IMAGE_BYTES"),
        ("[refuse]", 500, "IGA_VERTEXAI_EMPTY_IMAGE_BYTES"),
        ("[quota]", 429, "IGA_VERTEXAI_RESOURCE_EXHAUSTED"),
        ("[overloaded]", 503, "IGA_VERTEXAI_API_ERROR"),
        ("[denied]", 403, "IGA_VERTEXAI_PERMISSION_DENIED"),
    ] {
        service.post(json!({"prompt": format!("a fox {word}")})).await.is_error(status, code);
    }
    assert_eq!(service.emulator.counters().paid_generations, 0);
}

#[tokio::test]
async fn a_retired_model_costs_one_404_in_a_process() {
    let service = Service::start().await;
    for _ in 0..2 {
        assert_eq!(
            service.prompt().await.is_image().text("model_version"),
            "vertex-ai-gemini-nano-banana-2.1"
        );
    }
    let calls = service.emulator.counters().model_calls_by_model;
    assert_eq!(calls.get("imagegeneration@006"), Some(&1));
    assert_eq!(calls.get("gemini-nano-banana-2.1"), Some(&2));
}

#[tokio::test]
async fn the_fallback_goes_down_its_list_and_stops_at_its_end() {
    let list =
        "us-central1/gemini-3-pro-image,imagen-4.0-generate-001,global/gemini-3.1-flash-lite-image";
    let service = Service::with(&[("IGA_VERTEXAI_FALLBACK_MODELS", list)]).await;
    let response = service.prompt().await;
    assert_eq!(response.is_image().text("model_version"), "vertex-ai-gemini-3.1-flash-lite-image");
    assert_eq!(service.emulator.counters().model_calls, 4);

    for list in ["", "imagen-4.0-generate-001"] {
        let service = Service::with(&[("IGA_VERTEXAI_FALLBACK_MODELS", list)]).await;
        let response = service.prompt().await;
        response
            .is_error(500, "IGA_VERTEXAI_API_ERROR")
            .details_have("is retired, or not served in us-central1; try");
    }
}

#[tokio::test]
async fn a_model_named_by_the_caller_never_falls_back() {
    let service = Service::start().await;
    let retired = service
        .post(json!({"prompt": PROMPT, "model_id_override": "imagen-4.0-generate-001"}))
        .await;
    retired.is_error(500, "IGA_VERTEXAI_API_ERROR").details_have("gemini-nano-banana-2.1 (global)");
    assert_eq!(service.emulator.counters().model_calls, 1);
    let named =
        service.post(json!({"prompt": PROMPT, "model_id_override": "gemini-3-pro-image"})).await;
    assert_eq!(named.is_image().text("model_version"), "vertex-ai-gemini-3-pro-image");
    let regional = service
        .post(json!({"prompt": PROMPT, "model_id_override": "gemini-2.5-flash-image"}))
        .await;
    regional.is_image();
    assert!(service.model_requests().last().unwrap().path.contains("/locations/us-central1/"));
}

#[tokio::test]
async fn the_limits_of_a_fallback_apply_to_it() {
    let service = Service::start().await;
    for field in ["seed", "image_size"] {
        let mut body = json!({"prompt": "of the second fallback", "add_watermark": false});
        body[field] = if field == "seed" { json!(7) } else { json!("512") };
        let other = service.post(body).await;
        assert_eq!(other.is_image().text("model_version"), "vertex-ai-gemini-3.1-flash-image");
    }
    let refused = service.post(json!({"prompt": PROMPT, "negative_prompt": "dogs"})).await;
    refused.is_error(400, "IGA_VERTEXAI_INVALID_ARGUMENT").details_have("gemini-nano-banana-2.1");
    let service = Service::start().await;
    service
        .post(json!({"prompt": PROMPT, "aspect_ratio": "8:1", "image_size": "2K"}))
        .await
        .is_image();
    let header = &service.only_object().bytes[16..24];
    assert_eq!(
        header,
        [&(6144u32 / 16).to_be_bytes()[..], &(768u32 / 16).to_be_bytes()].concat(),
        "8:1 at 2K, shrunk"
    );
}

#[tokio::test]
async fn every_model_and_every_ratio_of_the_table_is_accepted() {
    for model in iga::model::MODELS.iter().filter(|model| !model.retired) {
        let service =
            Service::with(&[CURRENT, &[("IGA_VERTEXAI_IMAGE_MODEL_ID", model.id)]].concat()).await;
        for ratio in model.ratios() {
            service.post(json!({"prompt": PROMPT, "aspect_ratio": ratio})).await.is_image();
        }
        let everything = json!({"prompt": PROMPT, "person_generation": "dont_allow", "output_mime_type": "image/png"});
        service.post(everything).await.is_image();
    }
}

#[tokio::test]
async fn a_watermark_that_cannot_be_left_out_is_not_an_error() {
    let service = Service::current().await;
    service.post(json!({"prompt": PROMPT, "add_watermark": false})).await.is_image();
    let body: Value = serde_json::from_slice(&service.model_requests()[0].body).unwrap();
    assert!(!body.to_string().contains("atermark"));
}

/// Bytes of this length that start with the signature of a PNG.
fn large_image(bytes: usize) -> String {
    let mut image = b"\x89PNG\r\n\x1a\n".to_vec();
    image.resize(bytes, 7);
    BASE64_STANDARD.encode(image)
}

#[tokio::test]
async fn a_response_of_30_mb_is_read() {
    let service = Service::current().await;
    service.model_responds(
        200,
        gemini(&[draft(&large_image(4 << 20)), part(&large_image(23 << 20))], "STOP"),
    );
    service.prompt().await.is_image();
    assert_eq!(service.only_object().bytes.len(), 23 << 20);
}

#[tokio::test]
async fn images_beyond_the_budget_wait_for_each_other() {
    let service = Service::with(&[CURRENT, &[("IGA_TRANSFER_BUDGET_MIB", "1")]].concat()).await;
    service.model_responds(200, gemini(&[part(&large_image(3 << 20))], "STOP"));
    let requests = several_at_once(&service, 6);
    for request in requests {
        request.await.unwrap().is_image();
    }
    assert_eq!(images(&service.emulator).len(), 6);
}

fn several_at_once(service: &Service, count: usize) -> Vec<JoinHandle<Response>> {
    let body = |i: usize| json!({"prompt": format!("{PROMPT} {i}")}).to_string();
    let request = |i| service.request().header("content-type", "application/json").body(body(i));
    (0..count).map(|i| tokio::spawn(fetch(request(i)))).collect()
}

#[tokio::test]
async fn an_image_beyond_the_limit_is_a_clear_error() {
    let service = Service::current().await;
    service.model_responds(200, gemini(&[part(&large_image((64 << 20) + 1))], "STOP"));
    service
        .prompt()
        .await
        .is_error(500, "IGA_VERTEXAI_EMPTY_IMAGE_BYTES")
        .details_have("an image of more than 67108864 bytes");
    assert_eq!(images(&service.emulator).len(), 0);
}

#[tokio::test]
async fn more_than_a_mib_beside_the_image_is_dropped() {
    let long = "x".repeat(2 << 20);
    let many: Vec<Value> = (0..100_000).map(|n| json!({"text": n.to_string()})).collect();
    let metadata = json!({"chunks": many, "long": long});
    for response in [
        gemini(&[json!({"text": long}), part(RED)], "STOP"),
        gemini(&[json!({"thought_signature": long}), part(RED)], "STOP"),
        gemini(&[many.clone(), vec![part(RED)], many.clone()].concat(), "STOP"),
        gemini(&[part(RED)], &long),
        json!({"candidates": [{"groundingMetadata": metadata, "content": {"parts": [part(RED)]}}]})
            .to_string(),
    ] {
        let service = Service::current().await;
        service.model_responds(200, response);
        service.prompt().await.is_image();
        assert_eq!(service.only_object().bytes, bytes(RED));
    }
}
