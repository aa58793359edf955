//! Vertex AI's image models: `:generateContent` and `:predict`.

use std::sync::Arc;

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::faults::{Stage, hinder, spoil};
use super::metadata::Denied;
use super::models::{Family, Model, pixels};
use super::wire::{Answer, Handled, Refusal};
use super::{Call, Services, not_found, rfc3339};
use crate::local::picture;

/// `POST …/projects/P/locations/L/publishers/google/models/M:VERB`.
pub(super) async fn generate(services: &Arc<Services>, call: &Call, place: [&str; 3], body: &Bytes) -> Handled {
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
        Refusal::from(invalid(&format!("Invalid JSON payload received. Unexpected token.\n{problem}")))
    })?;
    let order = match (model.family, verb) {
        (Family::Imagen, "predict") => imagen_order(model, &request)?,
        (Family::Imagen, _) => {
            let resource = resource(project, location, id);
            let message = format!("Publisher model `{resource}` is not supported in the generateContent API.");
            return Ok(invalid(&message));
        }
        (Family::Gemini25 | Family::Gemini3 | Family::NanoBanana, "generateContent") => gemini_order(model, &request)?,
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
    tokio::time::sleep(services.options.latency).await;
    let created = rfc3339(services.clock.now());
    let drawn = tokio::task::spawn_blocking(move || order.answer(&created));
    let value = drawn.await.map_err(|_| Refusal::from(plain_error(StatusCode::INTERNAL_SERVER_ERROR)))?;
    let answer = Answer { streamed: true, ..Answer::json(StatusCode::OK, &value) };
    spoil(services.faults.take(Stage::Answer, &call.path), answer).await
}

/// `GET /v1/publishers/google/models/M`, with which Google's Python SDK begins.
pub(super) fn publisher_model(services: &Services, call: &Call, id: &str) -> Handled {
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
        || text.contains('-') && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_alive(services: &Services, model: &Model) -> bool {
    !model.retired || services.options.revive.iter().any(|revived| revived == model.id)
}

fn resource(project: &str, location: &str, id: &str) -> String {
    format!("projects/{project}/locations/{location}/publishers/google/models/{id}")
}

/// The model, if there is one by this name, still alive, in this place.
fn served(services: &Services, project: &str, location: &str, id: &str) -> Result<&'static Model, Refusal> {
    let model = Model::find(id);
    if let Some(model) = model.filter(|model| is_alive(services, model) && model.served_in(location)) {
        return Ok(model);
    }
    let old = model.is_some_and(|model| !is_alive(services, model)) && id.starts_with("imagegeneration@");
    let message = if old {
        format!(
            "Image generation failed with the following error: The {id} model has reached its end of life. \
             Please refer to the migration guide for the models that replace it."
        )
    } else {
        let resource = resource(project, location, id);
        format!("Publisher model `{resource}` was not found or your project does not have access to it.")
    };
    Err(error(StatusCode::NOT_FOUND, "NOT_FOUND", &message, None).into())
}

/// A request that the model takes.
struct Order {
    model: &'static Model,
    prompt: String,
    ratio: String,
    size: String,
    mime_type: String,
    count: usize,
    with_text: bool,
    with_image: bool,
    /// Imagen's `includeRaiReason`.
    with_reason: bool,
}

impl Order {
    /// The 200 with its picture.
    fn answer(&self, created: &str) -> Value {
        match self.model.family {
            Family::Imagen => self.predictions(),
            Family::Gemini25 | Family::Gemini3 | Family::NanoBanana => self.candidates(created),
        }
    }

    fn predictions(&self) -> Value {
        let one = |number: usize| {
            let data = self.draw(&format!("{} #{number}", self.model.id), 1);
            json!({"bytesBase64Encoded": data, "mimeType": self.mime_type})
        };
        json!({"predictions": (1..=self.count).map(one).collect::<Vec<_>>()})
    }

    fn candidates(&self, created: &str) -> Value {
        let mut parts = Vec::new();
        if self.model.family == Family::Gemini3 && self.with_image {
            let draft = self.draw("draft: not the picture to keep", 4);
            parts.push(json!({"inlineData": {"data": draft, "mimeType": self.mime_type}, "thought": true}));
        }
        if self.with_text && (self.model.family != Family::NanoBanana || !self.with_image) {
            parts.push(json!({"text": format!("Here is your picture: {}", self.prompt)}));
        }
        if self.with_image {
            let data = self.draw(self.model.id, 1);
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
        STANDARD.encode(picture::draw(&self.prompt, label, width / shrunk, height / shrunk))
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

/// Checks a `:predict` request.
fn imagen_order(model: &'static Model, request: &Value) -> Result<Order, Refusal> {
    known_fields(request, IMAGEN_FIELDS)?;
    let instances = request["instances"].as_array().map_or(&[][..], Vec::as_slice);
    let [instance] = instances else {
        return Err(invalid("Invalid number of instances: exactly one is required.").into());
    };
    let prompt = instance["prompt"].as_str().filter(|prompt| !prompt.trim().is_empty());
    let prompt = prompt.ok_or_else(|| invalid("Text prompt is required and must not be empty."))?;
    let parameters = Fields { value: &request["parameters"], at: "parameters" };

    let ratio = parameters.text("aspectRatio")?.unwrap_or("1:1");
    refuse_unless(model.ratios.contains(&ratio), || format!("Invalid aspect ratio, {ratio}"))?;
    let count = parameters.number("sampleCount", 1.0..=model.max_samples())?.unwrap_or(1.0);
    let watermark = parameters.boolean("addWatermark")?.unwrap_or(model.watermarks_by_default());
    let seed = parameters.number("seed", 1.0..=f64::from(i32::MAX))?;
    refuse_unless(!(watermark && seed.is_some()), || "Seed is not supported when watermark is enabled.".to_owned())?;
    refuse_unless(parameters.text("negativePrompt")?.is_none() || model.takes_negative_prompt(), || {
        "Negative prompt is not supported by this model.".to_owned()
    })?;
    parameters.text("sampleImageSize")?.map_or(Ok(()), |size| {
        refuse_unless(model.sizes.contains(&size), || format!("Invalid sample image size, {size}"))
    })?;
    parameters.word("personGeneration", &["dont_allow", "allow_adult", "allow_all"])?;
    parameters.word("safetySetting", IMAGEN_SAFETY)?;
    parameters.word("language", &["auto", "en", "zh", "zh-cn", "zh-tw", "hi", "ja", "ko", "pt", "es"])?;
    parameters.boolean("enhancePrompt")?;
    parameters.boolean("includeSafetyAttributes")?;
    refuse_unless(parameters.text("storageUri")?.is_none(), || "storageUri is not part of this emulator.".to_owned())?;
    Ok(Order {
        model,
        prompt: prompt.to_owned(),
        ratio: ratio.to_owned(),
        size: parameters.text("sampleImageSize")?.unwrap_or("1K").to_owned(),
        mime_type: output_type(&request["parameters"]["outputOptions"], "parameters.output_options")?,
        count: count as usize,
        with_text: false,
        with_image: true,
        with_reason: parameters.boolean("includeRaiReason")?.unwrap_or(false),
    })
}

/// Checks a `:generateContent` request.
fn gemini_order(model: &'static Model, request: &Value) -> Result<Order, Refusal> {
    known_fields(request, GEMINI_FIELDS)?;
    let prompt = gemini_prompt(&request["contents"])?;
    let config = Fields { value: &request["generationConfig"], at: "generation_config" };
    let image = Fields { value: &config.value["imageConfig"], at: "generation_config.image_config" };
    let thinking = Fields { value: &config.value["thinkingConfig"], at: "generation_config.thinking_config" };

    sampling(model, &config)?;
    let ratio = image.text("aspectRatio")?.unwrap_or("1:1");
    refuse_unless(model.ratios.contains(&ratio), || "Aspect ratio is not enabled for this model".to_owned())?;
    let size = image.text("imageSize")?;
    refuse_unless(size.is_none_or(|size| model.sizes.contains(&size)), || {
        format!("Image size {} is not enabled for this model", size.unwrap_or_default())
    })?;
    image.constant("personGeneration", &["ALLOW_ALL", "ALLOW_ADULT", "ALLOW_NONE"])?;
    image.constant("prominentPeople", &["ALLOW_PROMINENT_PEOPLE", "BLOCK_PROMINENT_PEOPLE"])?;
    let level = thinking.constant("thinkingLevel", &["LOW", "MINIMAL", "MEDIUM", "HIGH"])?;
    refuse_unless(level.is_none_or(|level| model.thinking.contains(&level)), || {
        format!("Thinking level {} is not supported by this model.", level.unwrap_or_default())
    })?;
    let budget = thinking.number("thinkingBudget", -1.0..=f64::from(i32::MAX))?;
    refuse_unless(budget.is_none() || model.family == Family::Gemini3, || {
        "Thinking budget is not supported by this model.".to_owned()
    })?;
    safety_settings(&request["safetySettings"])?;
    labels(&request["labels"])?;
    let modalities = modalities(&config)?;
    let output = &image.value["imageOutputOptions"];
    Ok(Order {
        model,
        prompt,
        ratio: ratio.to_owned(),
        size: size.unwrap_or("1K").to_owned(),
        mime_type: output_type(output, "generation_config.image_config.image_output_options")?,
        count: 1,
        with_text: modalities.contains(&"TEXT"),
        with_image: modalities.contains(&"IMAGE"),
        with_reason: true,
    })
}

fn gemini_prompt(contents: &Value) -> Result<String, Refusal> {
    let contents = contents
        .as_array()
        .filter(|contents| !contents.is_empty())
        .ok_or_else(|| invalid("Unable to submit request because at least one contents field is required."))?;
    let mut prompt = Vec::new();
    for (index, content) in contents.iter().enumerate() {
        only_known(content, &format!("contents[{index}]"), &["role", "parts"])?;
        refuse_unless(matches!(content["role"].as_str(), Some("user" | "model")), || {
            "Please use a valid role: user, model.".to_owned()
        })?;
        let parts = content["parts"]
            .as_array()
            .filter(|parts| !parts.is_empty())
            .ok_or_else(|| invalid("Unable to submit request because it must include at least one parts field."))?;
        for (part_index, part) in parts.iter().enumerate() {
            only_known(part, &format!("contents[{index}].parts[{part_index}]"), PART_FIELDS)?;
            prompt.extend(part["text"].as_str());
        }
    }
    let prompt = prompt.join("\n");
    refuse_unless(!prompt.is_empty(), || {
        "Unable to submit request because it has an empty text parameter. \
         Add a value to the parameter and try again."
            .to_owned()
    })?;
    Ok(prompt)
}

/// Sampling parameters, which the newest family no longer takes.
fn sampling(model: &Model, config: &Fields) -> Result<(), Refusal> {
    let given = [
        ("seed", config.number("seed", f64::from(i32::MIN)..=f64::from(i32::MAX))?),
        ("temperature", config.fraction("temperature", 0.0..=2.0)?),
        ("topP", config.fraction("topP", 0.0..=1.0)?),
        ("topK", config.fraction("topK", 0.0..=1000.0)?),
    ];
    let sampled = given.iter().find(|(_, value)| value.is_some());
    if let (Some((name, _)), Family::NanoBanana) = (sampled, model.family) {
        return Err(invalid(&format!("{name} is not supported by this model.")).into());
    }
    let most = if model.family == Family::Gemini25 { 8.0 } else { 1.0 };
    config.number("candidateCount", 1.0..=most)?;
    Ok(())
}

fn modalities<'a>(config: &Fields<'a>) -> Result<Vec<&'a str>, Refusal> {
    let Some(listed) = config.value["responseModalities"].as_array().filter(|listed| !listed.is_empty()) else {
        return Ok(vec!["TEXT", "IMAGE"]);
    };
    let mut modalities = Vec::new();
    for modality in listed {
        match modality.as_str() {
            Some(known @ ("TEXT" | "IMAGE")) => modalities.push(known),
            _ => {
                let message = format!("The model does not support the requested response modalities: {modality}");
                return Err(invalid(&message).into());
            }
        }
    }
    Ok(modalities)
}

fn output_type(options: &Value, at: &'static str) -> Result<String, Refusal> {
    let options = Fields { value: options, at };
    options.number("compressionQuality", 0.0..=100.0)?;
    let mime_type = options.text("mimeType")?.unwrap_or("image/png");
    refuse_unless(["image/png", "image/jpeg"].contains(&mime_type), || {
        format!("Unsupported output mime type: {mime_type}")
    })?;
    Ok(mime_type.to_owned())
}

fn safety_settings(settings: &Value) -> Result<(), Refusal> {
    for setting in settings.as_array().into_iter().flatten() {
        only_known(setting, "safety_settings", &["category", "threshold", "method"])?;
        let setting = Fields { value: setting, at: "safety_settings" };
        setting.constant("category", HARM_CATEGORIES)?;
        setting.constant("threshold", HARM_THRESHOLDS)?;
        setting.constant("method", &["SEVERITY", "PROBABILITY"])?;
    }
    Ok(())
}

fn labels(labels: &Value) -> Result<(), Refusal> {
    let Some(labels) = labels.as_object() else {
        return Ok(());
    };
    let legal = |text: &str| {
        let legal_char = |char: char| char.is_lowercase() || char.is_numeric() || char == '_' || char == '-';
        text.chars().count() <= 63 && text.chars().all(legal_char)
    };
    let all_legal = labels.iter().all(|(key, value)| legal(key) && value.as_str().is_some_and(legal));
    refuse_unless(labels.len() <= 64 && all_legal, || "Invalid labels: keys and values must be lower case.".to_owned())
}

/// The fields of one JSON object; a value of the wrong type is refused as Google's parser does.
struct Fields<'a> {
    value: &'a Value,
    /// Its path as Google writes it.
    at: &'static str,
}

impl<'a> Fields<'a> {
    fn text(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        self.typed(name, "TYPE_STRING", Value::as_str)
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.typed(name, "TYPE_BOOL", Value::as_bool)
    }

    /// An integer, which may be written `1.0`.
    fn number(&self, name: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>, Refusal> {
        let number = self.typed(name, "TYPE_INT32", |value| value.as_f64().filter(|number| number.fract() == 0.0))?;
        self.within(name, number, range)
    }

    fn fraction(&self, name: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>, Refusal> {
        let number = self.typed(name, "TYPE_FLOAT", Value::as_f64)?;
        self.within(name, number, range)
    }

    fn within(
        &self,
        name: &str,
        number: Option<f64>,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, Refusal> {
        refuse_unless(number.is_none_or(|number| range.contains(&number)), || {
            format!("{name} must be in the range of {} to {}.", range.start(), range.end())
        })?;
        Ok(number)
    }

    /// A member of an enum of the API.
    fn constant(&self, name: &str, known: &[&str]) -> Result<Option<&'a str>, Refusal> {
        let is_known = |value: &'a Value| value.as_str().filter(|text| known.contains(text));
        self.typed(name, "type.googleapis.com/google.cloud.aiplatform.v1.Enum", is_known)
    }

    /// A word of Imagen's vocabularies, in any case.
    fn word(&self, name: &str, known: &[&str]) -> Result<(), Refusal> {
        let Some(text) = self.text(name)? else {
            return Ok(());
        };
        let is_known = known.iter().any(|word| word.eq_ignore_ascii_case(text));
        refuse_unless(is_known, || format!("Invalid value for {name}: {text}"))
    }

    fn typed<T>(&self, name: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Refusal> {
        let Some(value) = self.value.get(name).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => {
                let field = format!("{}.{}", self.at, snake(name));
                Err(violation(&field, &format!("Invalid value at '{field}' ({kind}), {value}")).into())
            }
        }
    }
}

/// Refuses the first field that is not in a schema: JSON pointer, Google's path, known names.
fn known_fields(request: &Value, schema: &[(&str, &str, &[&str])]) -> Result<(), Refusal> {
    for (pointer, at, known) in schema {
        let Some(value) = request.pointer(pointer) else {
            continue;
        };
        only_known(value, at, known)?;
    }
    Ok(())
}

fn only_known(value: &Value, at: &str, known: &[&str]) -> Result<(), Refusal> {
    let Some(object) = value.as_object() else {
        return Err(violation(at, &format!("Invalid value at '{at}': an object is expected.")).into());
    };
    let Some(unknown) = object.keys().find(|name| !known.contains(&name.as_str())) else {
        return Ok(());
    };
    let place = if at.is_empty() { String::new() } else { format!(" at '{at}'") };
    let description = format!("Invalid JSON payload received. Unknown name \"{unknown}\"{place}: Cannot find field.");
    Err(violation(at, &description).into())
}

fn refuse_unless(holds: bool, message: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(invalid(&message()).into()) }
}

/// `imageConfig` becomes `image_config`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for char in name.chars() {
        if char.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(char.to_ascii_lowercase());
    }
    snake
}

/// An error in the form of `google.rpc.Status`.
pub(super) fn error(code: StatusCode, status: &str, message: &str, details: Option<Value>) -> Answer {
    let mut error = json!({"code": code.as_u16(), "message": message, "status": status});
    if let Some(details) = details {
        error["details"] = details;
    }
    Answer::json(code, &json!({"error": error}))
}

/// 401, whatever it is that the caller lacks.
pub(super) fn unauthenticated(denied: Denied) -> Refusal {
    let expectation = "Expected OAuth 2 access token, login cookie or other valid authentication credential. \
                       See https://developers.google.com/identity/sign-in/web/devconsole-project.";
    let invalid = "Request had invalid authentication credentials.";
    let (beginning, reason, challenge) = match denied {
        Denied::Missing => ("Request is missing required authentication credential.", "CREDENTIALS_MISSING", ""),
        Denied::Expired => (invalid, "ACCESS_TOKEN_EXPIRED", ", error=\"invalid_token\""),
        Denied::Unknown => (invalid, "ACCESS_TOKEN_TYPE_UNSUPPORTED", ", error=\"invalid_token\""),
    };
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {
            "service": "aiplatform.googleapis.com",
            "method": "google.cloud.aiplatform.v1.PredictionService.Predict",
        },
    }]);
    error(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", &format!("{beginning} {expectation}"), Some(details))
        .with("www-authenticate", format!("Bearer realm=\"https://accounts.google.com/\"{challenge}"))
        .into()
}

fn permission_denied(resource: &str) -> Answer {
    let permission = "aiplatform.endpoints.predict";
    let message = format!("Permission '{permission}' denied on resource '{resource}' (or it may not exist).");
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "IAM_PERMISSION_DENIED",
        "domain": "aiplatform.googleapis.com",
        "metadata": {"permission": permission, "resource": resource},
    }]);
    error(StatusCode::FORBIDDEN, "PERMISSION_DENIED", &message, Some(details))
}

fn invalid(message: &str) -> Answer {
    error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message, None)
}

/// 400 with the field at fault.
fn violation(field: &str, description: &str) -> Answer {
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"field": field, "description": description}],
    }]);
    error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", description, Some(details))
}

/// The error that usually comes with a status.
pub(super) fn plain_error(code: StatusCode) -> Answer {
    let (status, message) = match code.as_u16() {
        400 => ("INVALID_ARGUMENT", "Request contains an invalid argument."),
        401 => ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
        403 => return permission_denied("//aiplatform.googleapis.com/projects/iga-local"),
        404 => ("NOT_FOUND", "Requested entity was not found."),
        429 => ("RESOURCE_EXHAUSTED", "Resource exhausted. Please try again later."),
        499 => ("CANCELLED", "The operation was cancelled."),
        503 => ("UNAVAILABLE", "The model is overloaded. Please try again later."),
        504 => ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
        _ => ("INTERNAL", "Internal error encountered."),
    };
    error(code, status, message, None)
}

const IMAGEN_FIELDS: &[(&str, &str, &[&str])] = &[
    ("", "", &["instances", "parameters", "labels"]),
    ("/instances/0", "instances[0]", &["prompt"]),
    (
        "/parameters",
        "parameters",
        &[
            "addWatermark",
            "aspectRatio",
            "editConfig",
            "enhancePrompt",
            "guidanceScale",
            "includeRaiReason",
            "includeSafetyAttributes",
            "language",
            "mode",
            "negativePrompt",
            "outputOptions",
            "personGeneration",
            "safetySetting",
            "sampleCount",
            "sampleImageSize",
            "seed",
            "storageUri",
            "upscaleConfig",
        ],
    ),
    ("/parameters/outputOptions", "parameters.output_options", &["mimeType", "compressionQuality"]),
];

const GEMINI_FIELDS: &[(&str, &str, &[&str])] = &[
    (
        "",
        "",
        &[
            "cachedContent",
            "contents",
            "generationConfig",
            "labels",
            "modelArmorConfig",
            "outputConfig",
            "safetySettings",
            "systemInstruction",
            "toolConfig",
            "tools",
        ],
    ),
    ("/systemInstruction", "system_instruction", &["role", "parts"]),
    (
        "/generationConfig",
        "generation_config",
        &[
            "candidateCount",
            "frequencyPenalty",
            "imageConfig",
            "maxOutputTokens",
            "mediaResolution",
            "presencePenalty",
            "responseModalities",
            "responseFormat",
            "seed",
            "stopSequences",
            "temperature",
            "thinkingConfig",
            "topK",
            "topP",
        ],
    ),
    (
        "/generationConfig/imageConfig",
        "generation_config.image_config",
        &["aspectRatio", "imageOutputOptions", "imageSize", "personGeneration", "prominentPeople"],
    ),
    (
        "/generationConfig/imageConfig/imageOutputOptions",
        "generation_config.image_config.image_output_options",
        &["mimeType", "compressionQuality"],
    ),
    (
        "/generationConfig/thinkingConfig",
        "generation_config.thinking_config",
        &["includeThoughts", "thinkingBudget", "thinkingLevel"],
    ),
];

const PART_FIELDS: &[&str] = &["text", "inlineData", "fileData", "thought", "thoughtSignature", "mediaResolution"];

const IMAGEN_SAFETY: &[&str] = &[
    "block_low_and_above",
    "block_medium_and_above",
    "block_only_high",
    "block_none",
    "block_most",
    "block_some",
    "block_few",
    "block_fewest",
];

const HARM_CATEGORIES: &[&str] = &[
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_JAILBREAK",
    "HARM_CATEGORY_IMAGE_HATE",
    "HARM_CATEGORY_IMAGE_DANGEROUS_CONTENT",
    "HARM_CATEGORY_IMAGE_HARASSMENT",
    "HARM_CATEGORY_IMAGE_SEXUALLY_EXPLICIT",
];

const HARM_THRESHOLDS: &[&str] =
    &["BLOCK_LOW_AND_ABOVE", "BLOCK_MEDIUM_AND_ABOVE", "BLOCK_ONLY_HIGH", "BLOCK_NONE", "OFF"];
