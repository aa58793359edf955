//! Invalid requests: each gets a clear error and reaches neither the model nor the bucket.

use crate::support::service::{CURRENT, PROMPT, Service, fetch};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_missing_prompt_is_400() {
    let service = Service::start().await;
    for body in [
        "",
        "{}",
        r#"{"prompt": ""}"#,
        r#"{"prompt": "  "}"#,
        r#"{"prompt": null}"#,
        r#"{"prompt": 7}"#,
    ] {
        let refused = service.post_text(body).await;
        refused.is_error(400, "IGA_BAD_REQUEST_PROMPT_MISSING");
        assert_eq!(refused.text("message"), "Prompt is required for image generation.");
        assert_eq!(refused.text("details"), "Missing or empty 'prompt' in request body.");
    }
    fetch(service.request()).await.is_error(400, "IGA_BAD_REQUEST_PROMPT_MISSING");
    assert_eq!(service.emulator.requests().len(), 0);
}

#[tokio::test]
async fn a_body_that_is_not_a_json_object_is_400() {
    let service = Service::start().await;
    let malformed = service.post_text("{\"prompt\":\n \"x\",}").await;
    malformed.is_error(400, "IGA_MALFORMED_JSON").details_have("line 2 column 6");
    assert_eq!(malformed.text("message"), "Request body is not valid JSON.");
    let array = service.post_text("[1, 2]").await;
    array.is_error(400, "IGA_INVALID_PAYLOAD");
    assert_eq!(array.text("message"), "Request body must be a JSON object.");
}

#[tokio::test]
async fn deep_nesting_is_malformed_json() {
    let service = Service::start().await;
    let deep = "[".repeat(500_000);
    service.post_text(deep.clone()).await.is_error(400, "IGA_MALFORMED_JSON");
    service.post_text(format!(r#"{{"prompt": {deep}"#)).await.is_error(400, "IGA_MALFORMED_JSON");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413() {
    let service = Service::start().await;
    let large = json!({"prompt": "x".repeat(2 << 20)}).to_string();
    let refused = service.post_text(large).await;
    refused.is_error(413, "IGA_PAYLOAD_TOO_LARGE");
    assert_eq!(refused.text("message"), "Request body is too large.");
    assert_eq!(service.emulator.requests().len(), 0);
}

#[tokio::test]
async fn a_very_long_prompt_is_accepted() {
    let service = Service::with(CURRENT).await;
    let prompt = "\u{1f98a} a fox. ".repeat(10_000);
    let response = service.post(json!({"prompt": prompt})).await;
    assert_eq!(response.is_image().text("prompt_used"), prompt);
}

#[tokio::test]
async fn only_json_is_accepted() {
    let service = Service::start().await;
    let body = json!({"prompt": PROMPT}).to_string();
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        let refused =
            fetch(service.request().header("content-type", content_type).body(body.clone())).await;
        refused.is_error(415, "IGA_UNSUPPORTED_MEDIA_TYPE").details_have(content_type);
        assert_eq!(refused.text("message"), "Content-Type must be application/json.");
    }
    fetch(service.request().body(body.clone())).await.is_error(415, "IGA_UNSUPPORTED_MEDIA_TYPE");
    for content_type in ["Application/JSON; charset=utf-8", "application/vnd.cpoa+json"] {
        let taken = service.request().header("content-type", content_type);
        fetch(taken.body(json!({"prompt": content_type}).to_string())).await.is_image();
    }
    let octets = service.request().header("content-type", "application/octet-stream");
    fetch(octets.body(body)).await.is_error(415, "IGA_UNSUPPORTED_MEDIA_TYPE");
}

#[tokio::test]
async fn a_compressed_body_is_refused() {
    let service = Service::start().await;
    for coding in ["gzip", "br", "identity, gzip"] {
        let request = service.request().header("content-type", "application/json");
        let request = request.header("content-encoding", coding);
        let refused = fetch(request.body(&b"\x1f\x8b\x08\0"[..])).await;
        refused.is_error(415, "IGA_UNSUPPORTED_MEDIA_TYPE").details_have(coding);
    }
    let request = service.request().header("content-type", "application/json");
    let request = request.header("content-encoding", "identity");
    fetch(request.body(json!({"prompt": PROMPT}).to_string())).await.is_image();
}

#[tokio::test]
async fn a_truncated_body_is_400_and_the_next_request_is_served() {
    let service = Service::with(CURRENT).await;
    let address = service.url.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = "POST /generate_image HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(b"{\"prompt\": \"a red").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("IGA_MALFORMED_JSON") && text.contains("after 17 bytes"), "{text}");
    assert_eq!(service.emulator.requests().len(), 0);
    service.prompt().await.is_image();
}

#[tokio::test]
async fn an_invalid_parameter_is_400_and_nothing_is_paid() {
    let service = Service::with(&[
        ("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-3-pro-image"),
        ("IGA_VERTEXAI_LOCATION", "global"),
    ])
    .await;
    for (field, value, words) in [
        ("aspect_ratio", json!("8:1"), "21:9"),
        ("aspect_ratio", json!("5:7"), "21:9"),
        ("image_size", json!("8K"), "512, 1K, 2K, 4K"),
        ("negative_prompt", json!("dogs"), "say in the prompt"),
        ("add_watermark", json!("yes"), "true, false"),
        ("model_id_override", json!("dall-e"), "gemini-nano-banana-2.1"),
        ("seed", json!("seven"), "2147483647"),
        ("person_generation", json!("maybe"), "allow_adult"),
        ("output_mime_type", json!("image/gif"), "image/jpeg"),
    ] {
        let mut body = json!({"prompt": PROMPT});
        body[field] = value;
        let refused = service.post(body).await;
        refused.is_error(400, "IGA_VERTEXAI_INVALID_ARGUMENT").details_have(&format!("'{field}'"));
        refused.details_have(words);
        assert_eq!(refused.text("message"), "Invalid argument provided to Vertex AI.");
    }
    assert_eq!(service.emulator.counters().model_calls, 0);
}
