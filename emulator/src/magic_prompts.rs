//! Prompts that ask for a certain outcome, for manual tests; [faults](crate::Fault) can do more.

use http::StatusCode;
use serde_json::json;

use crate::generation_response::RESPONSE_ID;
use crate::generation_spec::GenerationSpec;
use crate::models::{Family, Model};
use crate::response::Response;
use crate::rpc_error::{invalid, permission_denied, plain_error};

/// The response to a prompt that asks for a certain outcome.
pub(crate) fn respond(
    created: &str,
    project: &str,
    location: &str,
    spec: &GenerationSpec,
) -> Option<Response> {
    let asked = |word: &str| spec.prompt.contains(word);
    let imagen = spec.model.family == Family::Imagen;
    let denied = || {
        let resource = Model::resource(project, location, spec.model.id);
        permission_denied(&format!("//aiplatform.googleapis.com/{resource}"))
    };
    if asked("[quota]") {
        Some(plain_error(StatusCode::TOO_MANY_REQUESTS))
    } else if asked("[overloaded]") {
        Some(plain_error(StatusCode::SERVICE_UNAVAILABLE))
    } else if asked("[denied]") {
        Some(denied())
    } else if imagen {
        imageless_imagen(spec)
    } else {
        imageless_gemini(spec, created)
    }
}

fn imageless_imagen(spec: &GenerationSpec) -> Option<Response> {
    let asked = |word: &str| spec.prompt.contains(word);
    if asked("[blocked]") {
        return Some(invalid(
            "Image generation failed with the following error: The prompt could not be submitted. \
             This prompt contains sensitive words that violate Google's Responsible AI practices. \
             Try rephrasing the prompt. If you think this was an error, send feedback. Support codes: 42876398",
        ));
    }
    let reason = "Unable to show generated images. All images were filtered out because they violated \
                  Vertex AI's usage guidelines. You will not be charged for blocked images. \
                  Try rephrasing the prompt. Support codes: 39322892, 29310472";
    let body = if asked("[filtered]") && spec.with_reason {
        json!({"predictions": [{"raiFilteredReason": reason}]})
    } else if asked("[filtered]") || asked("[empty]") {
        json!({})
    } else if asked("[refuse]") {
        json!({"predictions": []})
    } else {
        return None;
    };
    Some(Response::json(StatusCode::OK, &body))
}

fn imageless_gemini(spec: &GenerationSpec, created: &str) -> Option<Response> {
    let asked = |word: &str| spec.prompt.contains(word);
    let mut body = if asked("[blocked]") {
        let message = "The prompt was blocked because it may contain prohibited content.";
        json!({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT", "blockReasonMessage": message}})
    } else if asked("[filtered]") {
        let message = "Unable to show the generated image. The image was filtered out because it violated \
                       Google's usage guidelines. Try rephrasing the prompt. Support code: 15236754";
        json!({"candidates": [
            {"index": 0, "content": {"role": "model"}, "finishReason": "IMAGE_SAFETY", "finishMessage": message},
        ]})
    } else if asked("[empty]") {
        let message = "Unable to show the generated image. Ask for an image explicitly.";
        json!({"candidates": [{"index": 0, "content": {}, "finishReason": "NO_IMAGE", "finishMessage": message}]})
    } else if asked("[refuse]") {
        let text = "I can't create that image, but I can draw something else for you.";
        json!({"candidates": [
            {"index": 0, "content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"},
        ]})
    } else {
        return None;
    };
    let tokens = spec.prompt_tokens();
    body["usageMetadata"] = json!({"promptTokenCount": tokens, "totalTokenCount": tokens});
    body["modelVersion"] = spec.model.id.into();
    body["createTime"] = created.into();
    body["responseId"] = RESPONSE_ID.into();
    Some(Response::json(StatusCode::OK, &body))
}
