//! Vertex AI's image models: `:generateContent` and `:predict`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::drawing;
use crate::faults::{Stage, hinder, spoil};
use crate::metadata::unauthenticated;
use crate::models::{Family, Model, pixels};
use crate::order::{self, Order};
use crate::rpc_error::{error, invalid, permission_denied, plain_error};
use crate::wire::{Answer, Handled, Refusal};
use crate::{Call, Services, not_found, rfc3339};

/// `POST …/projects/P/locations/L/publishers/google/models/M:VERB`.
pub(crate) async fn generate(
    services: &Arc<Services>,
    call: &Call,
    place: [&str; 3],
    body: &Bytes,
) -> Handled {
    let [project, location, model_and_verb] = place;
    let (id, verb) = model_and_verb.rsplit_once(':').unwrap_or((model_and_verb, ""));
    if !matches!(verb, "predict" | "generateContent") || !is_location(location) {
        return Ok(not_found(&call.path));
    }
    services.count(|counters| {
        counters.model_calls += 1;
        *counters.model_calls_by_model.entry(id.to_owned()).or_default() += 1;
    });
    services.tokens.admit(&call.headers).map_err(unauthenticated)?;
    hinder(services.faults.take(Stage::Model, &call.path)).await?;
    let model = served(services, project, location, id)?;
    let request = serde_json::from_slice(body).map_err(|problem| {
        Refusal::from(invalid(&format!(
            "Invalid JSON payload received. Unexpected token.\n{problem}"
        )))
    })?;
    let order = match (model.family, verb) {
        (Family::Imagen, "predict") => order::imagen(model, &request)?,
        (Family::Imagen, _) => {
            let resource = resource(project, location, id);
            let message = format!(
                "Publisher model `{resource}` is not supported in the generateContent API."
            );
            return Ok(invalid(&message));
        }
        (Family::Gemini25 | Family::Gemini3 | Family::NanoBanana, "generateContent") => {
            order::gemini(model, &request)?
        }
        (Family::Gemini25 | Family::Gemini3 | Family::NanoBanana, _) => {
            let message = "Gemini cannot be accessed through Vertex Predict/RawPredict API. \
                           Please use the generateContent API for Gemini models.";
            return Ok(error(StatusCode::BAD_REQUEST, "FAILED_PRECONDITION", message, None));
        }
    };
    if let Some(answer) = magic(services, project, location, &order) {
        return Ok(answer);
    }
    services.count(|counters| {
        counters.paid_generations += 1;
        *counters.paid_generations_by_model.entry(id.to_owned()).or_default() += 1;
    });
    services.record_paid(call.number);
    tokio::time::sleep(services.options.latency).await;
    let created = rfc3339(services.clock.now());
    let shrunk = services.options.shrunk;
    let drawn = tokio::task::spawn_blocking(move || order.answer(&created, shrunk));
    let value =
        drawn.await.map_err(|_| Refusal::from(plain_error(StatusCode::INTERNAL_SERVER_ERROR)))?;
    let answer = Answer { streamed: true, ..Answer::json(StatusCode::OK, &value) };
    spoil(services.faults.take(Stage::Answer, &call.path), answer).await
}

/// `GET /v1/publishers/google/models/M`, with which Google's Python SDK begins.
pub(crate) fn publisher_model(services: &Services, call: &Call, id: &str) -> Handled {
    services.tokens.admit(&call.headers).map_err(unauthenticated)?;
    let name = format!("publishers/google/models/{id}");
    let known = Model::find(id).filter(|model| is_alive(services, model));
    let Some(model) = known else {
        let message = format!("Publisher Model `{name}` is not found.");
        return Ok(error(StatusCode::NOT_FOUND, "NOT_FOUND", &message, None));
    };
    let mut body = json!({
        "name": name,
        "versionId": id.rsplit(['@', '-']).next(),
        "launchStage": "GA",
        "publisherModelTemplate": format!("projects/{{user-project}}/locations/{{location}}/{name}"),
    });
    if model.family == Family::Imagen {
        let schema = "gs://google-cloud-aiplatform/schema/predict";
        body["predictSchemata"] = json!({
            "instanceSchemaUri": format!("{schema}/instance/vision_generative_model_1.0.0.yaml"),
            "parametersSchemaUri": format!("{schema}/params/vision_generative_model_1.0.0.yaml"),
            "predictionSchemaUri": format!("{schema}/prediction/vision_generative_model_1.0.0.yaml"),
        });
    }
    Ok(Answer::json(StatusCode::OK, &body))
}

fn is_location(text: &str) -> bool {
    matches!(text, "global" | "us" | "eu")
        || text.contains('-')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_alive(services: &Services, model: &Model) -> bool {
    !model.retired || services.options.revive.iter().any(|revived| revived == model.id)
}

fn resource(project: &str, location: &str, id: &str) -> String {
    format!("projects/{project}/locations/{location}/publishers/google/models/{id}")
}

/// The model, if there is one by this name, still alive, in this place.
fn served(
    services: &Services,
    project: &str,
    location: &str,
    id: &str,
) -> Result<&'static Model, Refusal> {
    let model = Model::find(id);
    if let Some(model) =
        model.filter(|model| is_alive(services, model) && model.served_in(location))
    {
        return Ok(model);
    }
    let old =
        model.is_some_and(|model| !is_alive(services, model)) && id.starts_with("imagegeneration@");
    let message = if old {
        format!(
            "Image generation failed with the following error: The {id} model has reached its end of life. \
             Please refer to the migration guide for the models that replace it."
        )
    } else {
        let resource = resource(project, location, id);
        format!(
            "Publisher model `{resource}` was not found or your project does not have access to it."
        )
    };
    Err(error(StatusCode::NOT_FOUND, "NOT_FOUND", &message, None).into())
}

impl Order {
    /// The 200 with its picture.
    fn answer(&self, created: &str, shrunk: u32) -> Value {
        match self.model.family {
            Family::Imagen => self.predictions(shrunk),
            Family::Gemini25 | Family::Gemini3 | Family::NanoBanana => {
                self.candidates(created, shrunk)
            }
        }
    }

    fn predictions(&self, shrunk: u32) -> Value {
        let one = |number: usize| {
            let data = self.draw(&format!("{} #{number}", self.model.id), shrunk);
            json!({"bytesBase64Encoded": data, "mimeType": self.mime_type})
        };
        json!({"predictions": (1..=self.count).map(one).collect::<Vec<_>>()})
    }

    fn candidates(&self, created: &str, shrunk: u32) -> Value {
        let mut parts = Vec::new();
        if self.model.family == Family::Gemini3 && self.with_image {
            let draft = self.draw("draft: not the picture to keep", 4 * shrunk);
            parts.push(
                json!({"inlineData": {"data": draft, "mimeType": self.mime_type}, "thought": true}),
            );
        }
        if self.with_text && (self.model.family != Family::NanoBanana || !self.with_image) {
            parts.push(json!({"text": format!("Here is your picture: {}", self.prompt)}));
        }
        if self.with_image {
            let data = self.draw(self.model.id, shrunk);
            parts.push(json!({"inlineData": {"data": data, "mimeType": self.mime_type}}));
        }
        if let (Some(last), true) = (parts.last_mut(), self.model.family != Family::Gemini25) {
            last["thoughtSignature"] = STANDARD.encode("a thought of the emulator").into();
        }
        let image_tokens = if self.with_image { 1120 } else { 0 };
        let (thoughts, prompt_tokens) = (210, self.prompt_tokens());
        json!({
            "candidates": [{
                "index": 0,
                "content": {"role": "model", "parts": parts},
                "finishReason": "STOP",
                "safetyRatings": [{}],
            }],
            "usageMetadata": {
                "promptTokenCount": prompt_tokens,
                "candidatesTokenCount": image_tokens + 8,
                "thoughtsTokenCount": thoughts,
                "totalTokenCount": prompt_tokens + image_tokens + 8 + thoughts,
                "trafficType": "ON_DEMAND",
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt_tokens}],
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": image_tokens}],
            },
            "modelVersion": self.model.id,
            "createTime": created,
            "responseId": "emulated-response",
        })
    }

    /// The picture as base64, its sides divided by `shrunk`.
    fn draw(&self, label: &str, shrunk: u32) -> String {
        let (width, height) = pixels(self.model.family, &self.ratio, &self.size);
        STANDARD.encode(drawing::draw(
            &self.prompt,
            label,
            (width / shrunk).max(1),
            (height / shrunk).max(1),
        ))
    }

    fn prompt_tokens(&self) -> usize {
        self.prompt.split_whitespace().count() + 1
    }
}

/// The answer to a prompt that asks for a certain outcome.
fn magic(services: &Services, project: &str, location: &str, order: &Order) -> Option<Answer> {
    let asked = |word: &str| order.prompt.contains(word);
    let imagen = order.model.family == Family::Imagen;
    let denied = || {
        let resource = resource(project, location, order.model.id);
        permission_denied(&format!("//aiplatform.googleapis.com/{resource}"))
    };
    if asked("[quota]") {
        Some(plain_error(StatusCode::TOO_MANY_REQUESTS))
    } else if asked("[overloaded]") {
        Some(plain_error(StatusCode::SERVICE_UNAVAILABLE))
    } else if asked("[denied]") {
        Some(denied())
    } else if imagen {
        pictureless_imagen(order)
    } else {
        pictureless_gemini(order, &rfc3339(services.clock.now()))
    }
}

fn pictureless_imagen(order: &Order) -> Option<Answer> {
    let asked = |word: &str| order.prompt.contains(word);
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
    let body = if asked("[filtered]") && order.with_reason {
        json!({"predictions": [{"raiFilteredReason": reason}]})
    } else if asked("[filtered]") || asked("[empty]") {
        json!({})
    } else if asked("[refuse]") {
        json!({"predictions": []})
    } else {
        return None;
    };
    Some(Answer::json(StatusCode::OK, &body))
}

fn pictureless_gemini(order: &Order, created: &str) -> Option<Answer> {
    let asked = |word: &str| order.prompt.contains(word);
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
        let text = "I can't create that picture, but I can draw something else for you.";
        json!({"candidates": [
            {"index": 0, "content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"},
        ]})
    } else {
        return None;
    };
    let tokens = order.prompt_tokens();
    body["usageMetadata"] = json!({"promptTokenCount": tokens, "totalTokenCount": tokens});
    body["modelVersion"] = order.model.id.into();
    body["createTime"] = created.into();
    body["responseId"] = "emulated-response".into();
    Some(Answer::json(StatusCode::OK, &body))
}
