//! Scripted responses of models: their content, their images, and how they are sent.

use http::Method;
use iga_emulator::{Action, Cut, Delivery, Ending, Fault, ImageFormat, ImageSpec, Stage};
use serde_json::json;

use crate::support::*;

const PATH: &str = "/v1/projects/p1/locations/global/publishers/google/models/gemini-nano-banana-2.1:generateContent";

async fn script(setup: &Setup, fault: serde_json::Value) {
    let request = setup.request(Method::POST, "/_emulator/faults").body(fault.to_string());
    let (status, body) = send(request).await;
    assert_eq!(status, 204, "{body}");
}

#[tokio::test]
async fn a_response_can_be_prescribed_with_a_real_image_in_it() {
    let setup = Setup::new().await;
    let parts = json!([
        {"inlineData": {"mimeType": "image/png", "data": "$IMAGE"}},
        {"inlineData": {"mimeType": "image/png", "data": ""}},
        null,
    ]);
    script(
        &setup,
        json!({"stage": "response", "prompt": "fox", "action": {"response": {
            "headers": {"x-of-a-gateway": "1"},
            "image": {"format": "gif", "bytes": 5000},
            "body": {"candidates": [{"content": {"parts": parts}, "finishReason": 1}]},
        }}}),
    )
    .await;
    let wolf = send(setup.gemini(BANANA, "a wolf", json!({}))).await.1;
    assert_eq!(wolf["candidates"][0]["finishReason"], "STOP", "another prompt");
    let response = setup.gemini(BANANA, "a fox", json!({})).send().await.expect("a response");
    assert_eq!(response.headers()["x-of-a-gateway"], "1");
    assert!(response.headers().contains_key("content-length"));
    let body = json_of(response).await;
    assert_eq!(body["candidates"][0]["finishReason"], 1);
    assert_eq!(body["candidates"][0]["content"]["parts"][2], json!(null));
    let image = image_of(&body);
    assert_eq!((&image[..3], image.len()), (&b"GIF"[..], 5000));
    assert_eq!(setup.emulator.counters().paid_generations, 2);
}

#[tokio::test]
async fn images_of_every_type_have_their_magic_number_and_size() {
    let setup = Setup::new().await;
    for (format, mime_type, at, magic) in [
        (ImageFormat::Png, "image/png", 0, &b"\x89PNG\r\n\x1a\n"[..]),
        (ImageFormat::Jpeg, "image/jpeg", 0, b"\xff\xd8\xff"),
        (ImageFormat::WebP, "image/webp", 8, b"WEBP"),
        (ImageFormat::Gif, "image/gif", 0, b"GIF8"),
        (ImageFormat::Avif, "image/avif", 4, b"ftypavif"),
        (ImageFormat::Heic, "image/heic", 4, b"ftypheic"),
    ] {
        let size = 4_000_000;
        let image = ImageSpec { format: Some(format), bytes: Some(size) };
        setup.emulator.script(Fault::new(Stage::Response, Action::image(image)));
        let (_, body) = send(setup.gemini(BANANA, "a fox", json!({}))).await;
        let blob = &body["candidates"][0]["content"]["parts"][0]["inlineData"];
        let image = image_of(&body);
        assert_eq!(blob["mimeType"], mime_type);
        assert_eq!((&image[at..at + magic.len()], image.len()), (magic, size), "{format:?}");
    }
}

#[tokio::test]
async fn jpeg_is_sent_where_jpeg_is_asked_for() {
    let setup = Setup::new().await;
    let options = json!({"imageConfig": {"imageOutputOptions": {"mimeType": "image/jpeg"}}});
    let (_, body) = send(setup.gemini(BANANA, "a fox", options)).await;
    let blob = &body["candidates"][0]["content"]["parts"][0]["inlineData"];
    assert_eq!(blob["mimeType"], "image/jpeg");
    let image = image_of(&body);
    assert!(image.starts_with(b"\xff\xd8\xff") && image.ends_with(b"\xff\xd9"));
}

fn request() -> serde_json::Value {
    json!({"contents": [{"role": "user", "parts": [{"text": "a fox"}]}]})
}

/// The head, and what follows it.
fn split(received: &[u8]) -> (String, &[u8]) {
    let end = received.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head") + 4;
    (String::from_utf8_lossy(&received[..end]).to_lowercase(), &received[end..])
}

#[tokio::test]
async fn a_body_can_be_sent_in_chunks_of_any_size() {
    let setup = Setup::new().await;
    let body = json!({"answer": 42});
    let chunked = Delivery { chunk_bytes: Some(5), chunk_delay_ms: 1, ..Delivery::default() };
    let action = Action::json(body.clone()).delivery(chunked);
    setup.emulator.script(Fault::new(Stage::Response, action));
    let (received, end) = setup.raw(PATH, &request()).await;
    let (head, body) = split(&received);
    assert!(end.is_ok() && head.contains("transfer-encoding: chunked"), "{head}");
    assert_eq!(
        String::from_utf8_lossy(body),
        "5\r\n{\"ans\r\n5\r\nwer\":\r\n3\r\n42}\r\n0\r\n\r\n"
    );
}

#[tokio::test]
async fn a_connection_can_end_after_the_json_and_before_the_last_chunk() {
    let setup = Setup::new().await;
    for ending in [Ending::Close, Ending::Reset] {
        let delivery = Delivery {
            chunk_bytes: Some(1000),
            cut: Some(Cut::after_body(ending)),
            ..Delivery::default()
        };
        let action = Action::json(json!({"answer": 42})).delivery(delivery);
        setup.emulator.script(Fault::new(Stage::Response, action));
        let (received, end) = setup.raw(PATH, &request()).await;
        assert_eq!(end.is_err(), ending == Ending::Reset, "{end:?}");
        assert_eq!(String::from_utf8_lossy(split(&received).1), "D\r\n{\"answer\":42}\r\n");
    }
}

#[tokio::test]
async fn a_connection_can_fall_silent_after_the_json() {
    let setup = Setup::new().await;
    script(
        &setup,
        json!({"stage": "response", "action": {"response": {
            "delivery": {"chunk_bytes": 1000, "cut": {"ending": "stall"}},
        }}}),
    )
    .await;
    let mut response = setup.gemini(BANANA, "a fox", json!({})).send().await.expect("a head");
    let mut body = Vec::new();
    while serde_json::from_slice::<serde_json::Value>(&body).is_err() {
        body.extend(response.chunk().await.expect("a connection").expect("more of the body"));
    }
    setup.emulator.stop();
    assert!(response.chunk().await.is_err(), "the last chunk never came");
}

#[tokio::test]
async fn content_length_can_be_too_large() {
    let setup = Setup::new().await;
    script(
        &setup,
        json!({"stage": "response", "action": {"response": {
            "body": {"answer": 42}, "delivery": {"excess_length": 1},
        }}}),
    )
    .await;
    let (received, _) = setup.raw(PATH, &request()).await;
    let (head, body) = split(&received);
    assert!(head.contains("content-length: 14\r\n"), "{head}");
    assert_eq!(String::from_utf8_lossy(body), r#"{"answer":42}"#);
}
