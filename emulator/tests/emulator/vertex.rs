//! Vertex AI.

use http::Method;
use iga_emulator::Options;
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn gemini_responds_with_draft_text_and_image() {
    let setup = Setup::new().await;
    let config = json!({"imageConfig": {"aspectRatio": "16:9"}});
    let (status, body) = send(setup.gemini(FLASH, "a red fox", config)).await;
    assert_eq!(status, 200);
    let parts = body["candidates"][0]["content"]["parts"].as_array().expect("parts");
    assert_eq!(parts[0]["thought"], true);
    assert!(parts[1]["text"].is_string());
    assert_eq!(png_size(&parts[2]["inlineData"]["data"]), (1376, 768));
    assert_eq!(setup.emulator.counters().paid_generations_by_model[FLASH], 1);
}

#[tokio::test]
async fn nano_banana_responds_with_the_image_only() {
    let setup = Setup::new().await;
    let (_, body) =
        send(setup.gemini(BANANA, "a red fox", json!({"responseModalities": ["IMAGE"]}))).await;
    assert_eq!(body["candidates"][0]["content"]["parts"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn imagen_is_retired_unless_revived() {
    let setup = Setup::new().await;
    let (status, body) = send(setup.imagen("a fox", json!({"sampleCount": 1}))).await;
    assert_eq!(status, 404);
    assert!(
        message(&body).contains("imagegeneration@006 model has reached its end of life"),
        "{body}"
    );
    assert_eq!(setup.emulator.counters().paid_generations, 0);

    let setup =
        Setup::with(Options { revive: vec!["imagegeneration@006".to_owned()], ..unlimited() })
            .await;
    let parameters = json!({"sampleCount": 2.0, "aspectRatio": "9:16", "addWatermark": true});
    let (status, body) = send(setup.imagen("a fox", parameters)).await;
    assert_eq!((status, body["predictions"].as_array().map(Vec::len)), (200, Some(2)));
    assert_eq!(png_size(&body["predictions"][1]["bytesBase64Encoded"]), (768, 1408));
}

#[tokio::test]
async fn gemini_refuses_what_google_refuses() {
    let setup = Setup::new().await;
    let cases = [
        (
            FLASH,
            json!({"imageConfig": {"ratio": "1:1"}}),
            "Unknown name \"ratio\" at 'generation_config.image_config'",
        ),
        (
            FLASH,
            json!({"negativePrompt": "cats"}),
            "Unknown name \"negativePrompt\" at 'generation_config'",
        ),
        (FLASH, json!({"imageConfig": {"aspectRatio": "7:5"}}), "Aspect ratio is not enabled"),
        (
            "gemini-3-pro-image",
            json!({"imageConfig": {"aspectRatio": "8:1"}}),
            "Aspect ratio is not enabled",
        ),
        (BANANA, json!({"imageConfig": {"imageSize": "512"}}), "Image size 512"),
        (FLASH, json!({"imageConfig": {"imageSize": "2k"}}), "Image size 2k"),
        ("gemini-2.5-flash-image", json!({"imageConfig": {"imageSize": "1K"}}), "Image size 1K"),
        (
            "gemini-3.1-flash-lite-image",
            json!({"imageConfig": {"imageSize": "2K"}}),
            "Image size 2K",
        ),
        (BANANA, json!({"seed": 7}), "seed is not supported"),
        (BANANA, json!({"temperature": 1.0}), "temperature is not supported"),
        (BANANA, json!({"candidateCount": 2}), "candidateCount"),
        (BANANA, json!({"thinkingConfig": {"thinkingBudget": 5}}), "Thinking budget"),
        (
            "gemini-2.5-flash-image",
            json!({"thinkingConfig": {"thinkingLevel": "HIGH"}}),
            "Thinking level",
        ),
        (
            FLASH,
            json!({"seed": "seven"}),
            "Invalid value at 'generation_config.seed' (TYPE_INT32), \"seven\"",
        ),
        (
            FLASH,
            json!({"imageConfig": {"personGeneration": "dont_allow"}}),
            "image_config.person_generation",
        ),
        (FLASH, json!({"responseModalities": ["VIDEO"]}), "response modalities"),
        (
            FLASH,
            json!({"responseModalities": ["SMELL"]}),
            "generation_config.response_modalities[0]",
        ),
        (FLASH, json!({"responseFormat": [{"audio": {}}]}), "response format"),
        (FLASH, json!({"responseFormat": {"image": {"delivery": "URI"}}}), "delivery URI"),
        (
            FLASH,
            json!({"imageConfig": {}, "responseFormat": {"image": {}}}),
            "Only one of image_config and response_format.image",
        ),
    ];
    for (model, config, expected) in cases {
        let (status, body) = send(setup.gemini(model, "a fox", config.clone())).await;
        assert_eq!(status, 400, "{model} {config}");
        assert!(message(&body).contains(expected), "{model} {config}: {body}");
    }
    let (status, body) = send(setup.gemini(FLASH, "", json!({}))).await;
    assert_eq!((status, message(&body).contains("empty text parameter")), (400, true));
    let no_role = json!({"contents": [{"parts": [{"text": "a fox"}]}]});
    let (status, body) = send(setup.model("global", FLASH, "generateContent", &no_role)).await;
    assert_eq!((status, message(&body)), (400, "Please use a valid role: user, model."));
    let (status, _) = send(setup.model("us-central1", FLASH, "generateContent", &no_role)).await;
    assert_eq!(status, 404, "served in `global` only");
    let (status, _) = send(setup.model("global", FLASH, "predict", &no_role)).await;
    assert_eq!(status, 400, "the other family's verb");
    assert_eq!(setup.emulator.counters().paid_generations, 0);
}

#[tokio::test]
async fn imagen_refuses_what_google_refuses() {
    let setup =
        Setup::with(Options { revive: vec!["imagegeneration@006".to_owned()], ..unlimited() })
            .await;
    let cases = [
        (json!({"seed": 5}), "Seed is not supported when watermark is enabled."),
        (json!({"aspectRatio": "4:5"}), "Invalid aspect ratio, 4:5"),
        (json!({"personGeneration": "ALLOW_NONE"}), "personGeneration"),
        (json!({"sampleCount": 5}), "sampleCount"),
        (
            json!({"safetyFilterLevel": "block_few"}),
            "Unknown name \"safetyFilterLevel\" at 'parameters'",
        ),
    ];
    for (parameters, expected) in cases {
        let (status, body) = send(setup.imagen("a fox", parameters.clone())).await;
        assert_eq!(status, 400, "{parameters}");
        assert!(message(&body).contains(expected), "{parameters}: {body}");
    }
    let fine = json!({"seed": 5, "addWatermark": false, "personGeneration": "ALLOW_ADULT", "negativePrompt": "cats"});
    assert_eq!(send(setup.imagen("a fox", fine)).await.0, 200);
}

#[tokio::test]
async fn magic_prompts_choose_the_outcome() {
    let setup =
        Setup::with(Options { revive: vec!["imagegeneration@006".to_owned()], ..unlimited() })
            .await;
    for (word, status) in [("[quota]", 429), ("[overloaded]", 503), ("[denied]", 403)] {
        assert_eq!(send(setup.gemini(FLASH, word, json!({}))).await.0, status, "{word}");
        assert_eq!(send(setup.imagen(word, json!({}))).await.0, status, "{word}");
    }
    let (status, body) = send(setup.gemini(FLASH, "a [blocked] fox", json!({}))).await;
    assert_eq!(
        (status, &body["promptFeedback"]["blockReason"]),
        (200, &json!("PROHIBITED_CONTENT"))
    );
    for (word, reason) in
        [("[filtered]", "IMAGE_SAFETY"), ("[empty]", "NO_IMAGE"), ("[refuse]", "STOP")]
    {
        let (status, body) = send(setup.gemini(BANANA, word, json!({}))).await;
        assert_eq!((status, &body["candidates"][0]["finishReason"]), (200, &json!(reason)));
    }
    assert_eq!(send(setup.imagen("[blocked]", json!({}))).await.0, 400);
    assert_eq!(send(setup.imagen("[filtered]", json!({}))).await, (200, json!({})));
    let (_, body) = send(setup.imagen("[filtered]", json!({"includeRaiReason": true}))).await;
    assert!(body["predictions"][0]["raiFilteredReason"].is_string());
    assert_eq!(setup.emulator.counters().paid_generations, 0);
}

#[tokio::test]
async fn the_python_sdk_finds_its_publisher_model() {
    let setup =
        Setup::with(Options { revive: vec!["imagegeneration@006".to_owned()], ..unlimited() })
            .await;
    let path = "/v1/publishers/google/models/imagegeneration%40006";
    let (status, body) = send(setup.request(Method::GET, path)).await;
    assert_eq!(status, 200);
    assert!(body["publisherModelTemplate"].is_string());
    assert!(body["predictSchemata"]["instanceSchemaUri"].is_string());
}

#[tokio::test]
async fn gemini_reads_what_protojson_allows() {
    let setup = Setup::new().await;
    let request = json!({
        "contents": {"role": "user", "parts": {"text": "a fox"}},
        "generation_config": {
            "image_config": {"aspect_ratio": "16:9", "image_size": null, "personGeneration": 1},
            "response_modalities": [2, "MODALITY_UNSPECIFIED"],
            "seed": "7",
            "temperature": "0.5",
            "topK": 3.0,
            "speechConfig": {"languageCode": "de"},
        },
        "safetySettings": [
            {"category": "HARM_CATEGORY_CIVIC_INTEGRITY", "threshold": "BLOCK_NONE"},
            {"category": 0, "threshold": "HARM_BLOCK_THRESHOLD_UNSPECIFIED"},
        ],
    });
    let (status, body) = send(setup.model("global", FLASH, "generateContent", &request)).await;
    assert_eq!(status, 200, "{body}");
    let parts = body["candidates"][0]["content"]["parts"].as_array().expect("parts");
    assert_eq!(parts.len(), 2, "a draft and the image, but no text");
    assert_eq!(png_size(&parts[1]["inlineData"]["data"]), (1376, 768));
    assert_eq!(setup.emulator.generations()[0].prompt, "a fox");
}

#[tokio::test]
async fn a_response_format_chooses_the_image() {
    let setup = Setup::new().await;
    let format = json!({"image": {
        "aspectRatio": "ASPECT_RATIO_NINE_BY_SIXTEEN",
        "imageSize": "IMAGE_SIZE_FIVE_TWELVE",
    }});
    let config = json!({"responseFormat": [format, {"text": {}}], "responseModalities": ["IMAGE"]});
    let (status, body) = send(setup.gemini(FLASH, "a fox", config)).await;
    assert_eq!(status, 200, "{body}");
    let parts = &body["candidates"][0]["content"]["parts"];
    assert_eq!(png_size(&parts[1]["inlineData"]["data"]), (384, 688));
    let config = json!({"responseFormat": {"image": {"mimeType": "IMAGE_JPEG"}}});
    let (_, body) = send(setup.gemini(BANANA, "a fox", config)).await;
    assert!(image_of(&body).starts_with(b"\xff\xd8\xff"));
}

#[tokio::test]
async fn a_response_can_be_streamed() {
    let setup = Setup::new().await;
    let contents = json!([{"role": "user", "parts": [{"text": "a fox"}]}]);
    let body = json!({"contents": contents});
    let (status, array) = send(setup.model("global", FLASH, "streamGenerateContent", &body)).await;
    assert_eq!((status, array.as_array().map(Vec::len)), (200, Some(3)));
    assert_eq!(array[0]["candidates"][0]["finishReason"], json!(null));
    assert_eq!(array[2]["candidates"][0]["finishReason"], "STOP");

    let request = setup.model("global", FLASH, "streamGenerateContent?alt=sse", &body);
    let response = request.send().await.expect("a response");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.expect("a body");
    let events: Vec<serde_json::Value> = text
        .split("\r\n\r\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .map(|event| serde_json::from_str(event).expect("JSON"))
        .collect();
    assert_eq!(events.len(), 3);
    assert_eq!(
        png_size(&events[2]["candidates"][0]["content"]["parts"][0]["inlineData"]["data"]).0,
        1024
    );
    assert_eq!(setup.emulator.counters().paid_generations, 2);
}

#[tokio::test]
async fn tokens_are_counted_for_free_and_models_listed() {
    let setup = Setup::new().await;
    let contents = json!([{"role": "user", "parts": [{"text": "a red fox"}]}]);
    let body = json!({"contents": contents});
    let (status, body) = send(setup.model("global", FLASH, "countTokens", &body)).await;
    assert_eq!((status, &body["totalTokens"]), (200, &json!(4)));
    assert_eq!(setup.emulator.counters().model_calls, 0);
    let (_, body) = send(setup.request(Method::GET, "/v1beta1/publishers/google/models")).await;
    let names = body["publisherModels"].to_string();
    assert!(names.contains(FLASH) && !names.contains("imagegeneration@006"), "{names}");
}
