//! Vertex AI's image models: `:generateContent`, `:streamGenerateContent`, `:predict`,
//! `:countTokens`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::faults::{Action, Fault, Stage, Subject, apply_after, apply_before};
use crate::generation_response::{self, Rendering};
use crate::generation_spec::{GenerationSpec, prompt_of};
use crate::image::ImageSpec;
use crate::models::{Family, Model};
use crate::recorder::Generation;
use crate::response::{Delivery, HandlerResult, Refusal, Response};
use crate::rpc_error::{error, invalid, not_found_page, plain_error, unauthenticated};
use crate::services::{Call, Services};
use crate::{gemini_request, imagen_request, magic_prompts};

/// `POST …/projects/P/locations/L/publishers/google/models/M:VERB`.
pub(crate) async fn generate(
    services: &Arc<Services>,
    call: &Call,
    [project, location, model_and_verb]: [&str; 3],
    body: &Bytes,
) -> HandlerResult {
    let (id, verb) = model_and_verb.rsplit_once(':').unwrap_or((model_and_verb, ""));
    if !is_location(location) {
        return Ok(not_found_page(&call.path));
    }
    let verb = match verb {
        "predict" => Verb::Predict,
        "generateContent" => Verb::Generate,
        "streamGenerateContent" => Verb::Stream,
        "countTokens" => return count_tokens(services, call, [project, location, id], body),
        _ => return Ok(not_found_page(&call.path)),
    };
    services.recorder.count(|counters| {
        counters.model_calls += 1;
        *counters.model_calls_by_model.entry(id.to_owned()).or_default() += 1;
    });
    services.tokens.admit(&call.headers).map_err(unauthenticated)?;
    let parsed = serde_json::from_slice(body);
    let prompt = parsed.as_ref().map(prompt_of).unwrap_or_default();
    let labels = parsed.as_ref().map(labels_of).unwrap_or_default();
    let subject = Subject { prompt: &prompt, ..Subject::path(&call.path) };
    let generation = Generation {
        project: project.to_owned(),
        location: location.to_owned(),
        model: id.to_owned(),
        prompt: prompt.clone(),
        labels,
        paid: false,
        status: None,
    };
    services.recorder.generation(call.number, generation);
    apply_before(services.faults.take(Stage::Model, subject)).await?;
    let model = find_served(services, project, location, id)?;
    let request = parsed.map_err(|problem| {
        let message = format!("Invalid JSON payload received. Unexpected token.\n{problem}");
        Refusal::from(invalid(&message))
    })?;
    let spec = read_spec(model, verb, &request, &Model::resource(project, location, id))?;
    let created = rfc3339(services.clock.now());
    let is_stream = verb == Verb::Stream;
    if let Some(response) = magic_prompts::respond(&created, project, location, &spec) {
        return Ok(if is_stream { stream(call, response) } else { response });
    }
    services.recorder.paid(call.number, id);
    tokio::time::sleep(services.options.latency).await;
    let fault = services.faults.take(Stage::Response, subject);
    let (fault, response) = render(services, spec, fault).await?;
    let response = if is_stream { stream(call, response) } else { response };
    apply_after(fault, response).await
}

/// The method of a model that a request calls.
#[derive(Clone, Copy, PartialEq)]
enum Verb {
    Predict,
    Generate,
    Stream,
}

fn read_spec(
    model: &'static Model,
    verb: Verb,
    request: &Value,
    resource: &str,
) -> Result<GenerationSpec, Refusal> {
    match (model.family, verb) {
        (Family::Imagen, Verb::Predict) => imagen_request::read(model, request),
        (Family::Imagen, Verb::Generate | Verb::Stream) => {
            let message = format!(
                "Publisher model `{resource}` is not supported in the generateContent API."
            );
            Err(invalid(&message).into())
        }
        (
            Family::Gemini25 | Family::Gemini3 | Family::NanoBanana,
            Verb::Generate | Verb::Stream,
        ) => gemini_request::read(model, request),
        (Family::Gemini25 | Family::Gemini3 | Family::NanoBanana, Verb::Predict) => {
            let message = "Gemini cannot be accessed through Vertex Predict/RawPredict API. \
                           Please use the generateContent API for Gemini models.";
            Err(error(StatusCode::BAD_REQUEST, "FAILED_PRECONDITION", message, None).into())
        }
    }
}

/// `:countTokens`; free, and not counted as a call of the model.
fn count_tokens(
    services: &Services,
    call: &Call,
    [project, location, id]: [&str; 3],
    body: &Bytes,
) -> HandlerResult {
    services.tokens.admit(&call.headers).map_err(unauthenticated)?;
    find_served(services, project, location, id)?;
    let request = serde_json::from_slice(body)
        .map_err(|_| Refusal::from(invalid("Invalid JSON payload received. Unexpected token.")))?;
    let tokens = gemini_request::count_tokens(&request)?;
    let body = json!({
        "totalTokens": tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}],
    });
    Ok(Response::json(StatusCode::OK, &body))
}

/// Turns a response into the stream of its parts: server-sent events, or without `alt=sse` an
/// array.
fn stream(call: &Call, response: Response) -> Response {
    let Ok(whole) = serde_json::from_slice::<Value>(&response.body) else {
        return response;
    };
    if response.status != StatusCode::OK {
        return response;
    }
    let events = generation_response::events(whole);
    let delivery = response.delivery;
    if call.query.get("alt").is_none_or(|alt| alt != "sse") {
        return Response { delivery, ..Response::json(StatusCode::OK, &Value::Array(events)) };
    }
    let text: String = events.iter().map(|event| format!("data: {event}\r\n\r\n")).collect();
    Response { delivery, ..Response::new(StatusCode::OK, "text/event-stream", text) }
}

fn labels_of(request: &Value) -> BTreeMap<String, String> {
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    request["labels"].as_object().into_iter().flatten().filter_map(text).collect()
}

/// Makes the ordinary response, or puts the image into the body that a fault prescribes.
async fn render(
    services: &Services,
    spec: GenerationSpec,
    mut fault: Option<Fault>,
) -> Result<(Option<Fault>, Response), Refusal> {
    let created = rfc3339(services.clock.now());
    let ordinary = ImageSpec { format: None, bytes: services.options.image_bytes };
    let shrunk = services.options.shrunk;
    let rendered = tokio::task::spawn_blocking(move || {
        let mut rendering = Rendering { shrunk, image: ordinary };
        if let Some(Fault { action: Action::Response(scripted), .. }) = &mut fault {
            let image = scripted.image.unwrap_or_default();
            rendering.image = ImageSpec {
                format: image.format.or(ordinary.format),
                bytes: image.bytes.or(ordinary.bytes),
            };
            if scripted.body.is_some() {
                scripted.fill_in(|| spec.image(rendering));
                return (fault, Response::empty(StatusCode::OK));
            }
        }
        let body = spec.response(&created, rendering);
        let delivery = Delivery { chunk_bytes: Some(CHUNK_BYTES), ..Delivery::default() };
        (fault, Response { delivery, ..Response::json(StatusCode::OK, &body) })
    });
    rendered.await.map_err(|_| plain_error(StatusCode::INTERNAL_SERVER_ERROR).into())
}

/// `GET /v1/publishers/google/models/M`, the first request of Google's Python SDK.
pub(crate) fn publisher_model(services: &Services, call: &Call, id: &str) -> HandlerResult {
    services.tokens.admit(&call.headers).map_err(unauthenticated)?;
    let name = format!("publishers/google/models/{id}");
    let known = Model::find(id).filter(|model| is_current(services, model));
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
    Ok(Response::json(StatusCode::OK, &body))
}

/// `GET /v1beta1/publishers/google/models`.
pub(crate) fn publisher_models(services: &Services, call: &Call) -> HandlerResult {
    services.tokens.admit(&call.headers).map_err(unauthenticated)?;
    let current = Model::all().iter().filter(|model| is_current(services, model));
    let listed = current.map(|model| {
        json!({"name": format!("publishers/google/models/{}", model.id), "launchStage": "GA"})
    });
    let listed: Vec<Value> = listed.collect();
    Ok(Response::json(StatusCode::OK, &json!({"publisherModels": listed})))
}

fn is_location(text: &str) -> bool {
    matches!(text, "global" | "us" | "eu")
        || text.contains('-')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_current(services: &Services, model: &Model) -> bool {
    !model.retired || services.options.revive.iter().any(|revived| revived == model.id)
}

/// The model of this name, if it is not retired and the location serves it.
fn find_served(
    services: &Services,
    project: &str,
    location: &str,
    id: &str,
) -> Result<&'static Model, Refusal> {
    let model = Model::find(id);
    if let Some(model) =
        model.filter(|model| is_current(services, model) && model.served_in(location))
    {
        return Ok(model);
    }
    let is_old = model.is_some_and(|model| !is_current(services, model))
        && id.starts_with("imagegeneration@");
    let message = if is_old {
        format!(
            "Image generation failed with the following error: The {id} model has reached its end of life. \
             Please refer to the migration guide for the models that replace it."
        )
    } else {
        let resource = Model::resource(project, location, id);
        format!(
            "Publisher model `{resource}` was not found or your project does not have access to it."
        )
    };
    Err(error(StatusCode::NOT_FOUND, "NOT_FOUND", &message, None).into())
}

/// The models send their responses chunked.
const CHUNK_BYTES: usize = 16 * 1024;
